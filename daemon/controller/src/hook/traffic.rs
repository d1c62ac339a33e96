//! `helm test`: the pod of this node asks one on another node, while every frame that leaves this node is read. It is well if the
//! answers came, what was asked was seen within the node, and not on its way to another one.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use kube::{Api, ResourceExt as _, api::ListParams, core::DynamicObject};
use kubeveil_kubernetes::{Origin, entries, theirs};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    echo::{WORD, ask},
    frames::{Frames, devices_of},
};
use crate::client;

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// For one question: the pod that is asked asks another one.
const PATIENCE: Duration = Duration::from_secs(8);
/// Time for the last frame to come by.
const REST: Duration = Duration::from_millis(500);

/// What is tried.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Which API server.
    pub origin: Origin,
    /// This node.
    pub node: String,
    /// Where the pods that answer are …
    pub namespace: String,
    /// … their labels …
    pub selector: String,
    /// … and their port.
    pub port: u16,
    /// How long to wait for them, and for answers.
    pub timeout: Duration,
}

/// A pod that answers.
#[derive(Clone, Debug)]
struct Echo {
    name: String,
    node: String,
    addresses: Vec<IpAddr>,
    /// Of its node.
    hosts: Vec<IpAddr>,
}

/// Tells what was seen; an error says what went wrong.
pub async fn try_traffic(trial: &Trial) -> Result<String> {
    let end = Instant::now() + trial.timeout;
    let (own, other) = pods(trial, end).await?;
    let outside = devices_of(&own.hosts)?;
    ensure!(!outside.is_empty(), "no device of this node has one of its addresses {:?}", own.hosts);
    let frames = Frames::begin()?;
    let mut words = Vec::new();
    for address in &other.addresses {
        let way = own.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
        let Some(way) = way else { continue };
        words.push(word()?);
        let word = &words[words.len() - 1];
        while let Err(e) = said(*way, trial.port, *address, word).await {
            if Instant::now() >= end {
                return Err(e.context(format!(
                    "pod {} on {} got no answer from pod {} ({address}) on {}: `kubeveil status` on both nodes says why",
                    own.name, own.node, other.name, other.node
                )));
            }
            sleep(AGAIN).await;
        }
    }
    ensure!(!words.is_empty(), "pods {} and {} have no address of the same family", own.name, other.name);
    sleep(REST).await;
    judge(&frames.holding(&words)?, &outside, &format!("{} to {}", own.node, other.node), words.len())
}

async fn said(way: IpAddr, port: u16, to: IpAddr, word: &str) -> Result<()> {
    let answer = ask(way, port, &format!("ask {to} {word}"), PATIENCE).await?;
    ensure!(answer == word, "it answers something else");
    Ok(())
}

fn judge(seen: &BTreeMap<String, u64>, outside: &[String], way: &str, families: usize) -> Result<String> {
    let plain: Vec<&String> = outside.iter().filter(|device| seen.contains_key(*device)).collect();
    if !plain.is_empty() {
        bail!(
            "pods' traffic from {way} left by {plain:?} in plain: is encryption enabled (`kubectl get veil`), and which pairs does the mesh name?"
        );
    }
    ensure!(
        !seen.is_empty(),
        "what the pods said was seen nowhere, so that it was not seen on the wire says nothing"
    );
    let within: Vec<&str> = seen.keys().map(String::as_str).collect();
    Ok(format!(
        "pods' traffic from {way} is answered in {families} families; in plain it was seen within the node ({}) and not by {}",
        within.join(", "),
        outside.join(", ")
    ))
}

/// The pod of this node, and one of another.
async fn pods(trial: &Trial, end: Instant) -> Result<(Echo, Echo)> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(client(&trial.origin).await?, &trial.namespace, &theirs("", "Pod", "pods"));
    loop {
        let listed = api.list(&ListParams::default().labels(&trial.selector)).await.context("list pods")?;
        let mut ready: Vec<Echo> = listed.iter().filter_map(read).collect();
        let own = ready.iter().position(|pod| pod.node == trial.node).map(|at| ready.swap_remove(at));
        let pods = ready.len();
        if let (Some(own), Some(other)) = (own, ready.into_iter().next()) {
            return Ok((own, other));
        }
        if Instant::now() >= end {
            bail!(
                "of the pods {} one on {} and one on another node are needed; {pods} on others are there and have addresses",
                trial.selector,
                trial.node
            );
        }
        sleep(AGAIN).await;
    }
}

fn read(pod: &DynamicObject) -> Option<Echo> {
    let status = &pod.data["status"];
    let node = pod.data["spec"]["nodeName"].as_str()?.to_owned();
    let addresses = |list: &Value| {
        let texts = entries(list).filter_map(|entry| entry["ip"].as_str());
        texts.filter_map(|text| text.parse().ok()).collect()
    };
    (status["phase"] == "Running").then(|| Echo {
        name: pod.name_any(),
        node,
        addresses: addresses(&status["podIPs"]),
        hosts: addresses(&status["hostIPs"]),
    })
}

/// What nobody else sends.
fn word() -> Result<String> {
    let mut bytes = [0; WORD / 2];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    ensure!(filled == bytes.len(), "too little randomness");
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_in_plain_fails_and_so_does_seeing_nothing() {
        let seen = |devices: &[&str]| devices.iter().map(|name| ((*name).to_owned(), 2)).collect();
        let outside = ["eth0".to_owned()];
        let judged =
            |devices: &[&str]| judge(&seen(devices), &outside, "a to b", 2).map_err(|e| e.to_string());
        assert!(
            judged(&["kubeveil0"]).expect("well").contains("within the node (kubeveil0) and not by eth0")
        );
        assert!(judged(&["kubeveil0", "eth0"]).expect_err("plain").contains("left by [\"eth0\"] in plain"));
        assert!(judged(&[]).expect_err("nothing").contains("says nothing"));
    }

    #[test]
    fn words_differ() {
        let words = [word().expect("word"), word().expect("word")];
        assert!(words[0] != words[1] && words[0].len() == WORD);
    }
}
