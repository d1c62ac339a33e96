//! Pods that come, and daemons, while somebody speaks already: who is to be encrypted is held to it from its first packet on, though nobody
//! has told of it. The mesh only observes, and payments' pods (`b`) require it; shop's (`a`) lose nothing.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Node, Pod};
use kubeveil_tests::analysis::Census;
use kubeveil_tests::lab::{Manifest, Mode, READY};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, conclusive, encrypted, none_arrived, none_lost, none_of_it_plain, pod};
use kubeveil_tests::traffic::Tally;
use serde_json::{Value, json};

use crate::Scenario;
use crate::policies::{is_held_back, is_plain, payments, wait_for, with_pod, write};
use crate::support::{NO_TUNNEL, told};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("a_new_pod_is_held_from_its_first_packet", held_from_the_first)
        .mode(Mode::Observe)
        .nodes(2),
    Scenario::new("an_ended_pods_address_is_another_pods", given_on).mode(Mode::Observe).nodes(2),
    Scenario::new("daemons_die_while_payments_speak", daemons_die).mode(Mode::Observe).nodes(2).takes(45),
];

/// From when a pod is there until the source tells of it.
const LAG: Duration = Duration::from_secs(1);
/// From when it tells until it has surely been heard, the folder's patience with what vanishes counted in.
const HEARD: Duration = Duration::from_secs(2);

/// A pod is made while somebody tries to send from it, and a moment later the source says `told`. What came of that, and what was on the
/// wire.
fn is_born(stage: &mut Stage, who: &str, to: &str, told: &Manifest) -> Result<(Tally, Census)> {
    stage.phase()?;
    let running = stage.load(who, to, 500).unborn().start()?;
    let made = stage.lab.add_pod(pod(who));
    sleep(LAG);
    let outcome = made.and_then(|()| write(stage, told));
    sleep(HEARD);
    let tally = running.finish()?;
    outcome?;
    let census = stage.phase()?;
    eprintln!("  {who} -> {to}: {tally}; {} in plain on the wire", census.of(tally.load));
    Ok((tally, census))
}

/// It goes, and the source tells of it no more.
fn goes(stage: &Stage, who: Pod) -> Result<()> {
    stage.lab.remove_pod(who)?;
    write(stage, &with_pod(stage, who, |items, at| drop(items.remove(at)))?)?;
    sleep(HEARD);
    Ok(())
}

fn held_from_the_first(stage: &mut Stage) -> Result<()> {
    // To a pod of which nothing is asked, so that the newcomer alone decides.
    let newcomer = pod("1b");
    let there = with_pod(stage, newcomer, |_, _| ())?;
    stage.lab.daemon(Node(1)).start()?;
    // Without a policy: all of it is seen.
    goes(stage, newcomer)?;
    let (tally, census) = is_born(stage, "1b", "2a", &there)?;
    ensure!(tally.received > 0 && census.of(tally.load) >= tally.received, "not plain: {tally}; {census}");
    write(stage, &payments())?;
    wait_for(stage, "1b", "2b", false)?;
    let shop = stage.load("1a", "2a", 100);
    let (tally, _) = stage.send_while(shop, |stage| {
        goes(stage, newcomer)?;
        let before = told(stage, Node(1), NO_TUNNEL)?;
        let (tally, census) = is_born(stage, "1b", "2a", &there)?;
        none_arrived(&tally).and_then(|()| none_of_it_plain(&tally, &census)).context("without a tunnel")?;
        is_counted(stage, before, tally.sent)?;
        is_held_back_of(stage, "2a", "1b")?;
        stage.lab.daemon(Node(2)).start()?;
        stage.wait_proven()?;
        goes(stage, newcomer)?;
        let (tally, census) = is_born(stage, "1b", "2a", &there)?;
        none_of_it_plain(&tally, &census).context("with a tunnel")?;
        conclusive(&tally)?;
        ensure!(tally.received > 0 && census.ciphertext >= tally.received, "{tally}; {census}");
        ensure!(
            tally.stretches <= 2 && tally.lost() < 20,
            "lost on its way: {tally}, {} stretches",
            tally.stretches
        );
        Ok(())
    })?;
    none_lost(&tally).context("shop's, meanwhile")
}

/// All that is held back at the node's end is counted. What a pod sends before its own device has a neighbour never comes there.
fn is_counted(stage: &Stage, before: [u64; 2], sent: u64) -> Result<()> {
    let rose = || {
        anyhow::Ok(
            told(stage, Node(1), NO_TUNNEL)?
                .iter()
                .zip(before)
                .map(|(now, before)| now - before)
                .min()
                .unwrap_or(0),
        )
    };
    wait_until(Duration::from_secs(5), Duration::from_millis(100), || Ok(rose()? == sent))?;
    let rose = rose()?;
    eprintln!("  {rose} of {sent} are counted");
    ensure!(rose <= sent && rose + 20 > sent, "{rose} of {sent} are counted");
    Ok(())
}

/// Nothing of what the other node's pod sends arrives.
fn is_held_back_of(stage: &mut Stage, from: &str, to: &str) -> Result<()> {
    let (tally, _) = stage.send(stage.load(from, to, 200), 60)?;
    none_arrived(&tally).with_context(|| format!("{from} -> {to}"))
}

/// Pods end, and their addresses are given on to pods of another kind: who comes is held to what is asked of it, and to no less before
/// that is known.
fn given_on(stage: &mut Stage) -> Result<()> {
    write(stage, &payments())?;
    stage.lab.daemon(Node(1)).start()?;
    is_plain(stage, "1a", "2a")?;
    is_held_back(stage, "1b", "2a")?;
    // Shop's address, to a pod of payments.
    let (tally, census) = succeeds(stage, "1a", "2a", "payments", "ledger")?;
    none_arrived(&tally).and_then(|()| none_of_it_plain(&tally, &census)).context("who requires it now")?;
    is_held_back_of(stage, "2a", "1a").context("who requires it now")?;
    // Payments' address, to a pod of shop: nothing is lost from when it is known.
    let (tally, census) = succeeds(stage, "1b", "2a", "shop", "web")?;
    conclusive(&tally)?;
    let flows = stage.lab.spec().families.all().len() as u64;
    ensure!(
        tally.stretches == flows && tally.lost() > 0 && census.of(tally.load) == tally.received,
        "not held back before it is known, and plain from then on: {tally}, {} stretches; {census}",
        tally.stretches
    );
    is_plain(stage, "1b", "2a")?;
    is_plain(stage, "2a", "1b")
}

/// A pod ends, and another has its addresses, of this namespace and with this label.
fn succeeds(stage: &mut Stage, who: &str, to: &str, namespace: &str, app: &str) -> Result<(Tally, Census)> {
    let ends = |items: &mut Vec<Value>, at: usize| items[at]["status"]["phase"] = json!("Succeeded");
    stage.lab.remove_pod(pod(who))?;
    write(stage, &with_pod(stage, pod(who), ends)?)?;
    sleep(HEARD);
    let other = |items: &mut Vec<Value>, at: usize| {
        let mut other = items[at].clone();
        let labels = json!({ "app": app });
        other["metadata"] = json!({ "name": "heir", "namespace": namespace, "uid": format!("heir-of-{who}"), "labels": labels });
        items.push(other);
        ends(items, at);
    };
    let told = with_pod(stage, pod(who), other)?;
    is_born(stage, who, to, &told)
}

/// Payments speak before the first daemon starts. From when it is ready for the first time nothing of it is plain, whoever dies.
fn daemons_die(stage: &mut Stage) -> Result<()> {
    const KILLS: u64 = 15;
    let kill = |stage: &Stage, nodes: &[Node]| -> Result<()> {
        for (kill, &node) in (0..KILLS).zip(nodes.iter().cycle()) {
            let daemon = stage.lab.daemon(node);
            daemon.kill()?;
            daemon.spawn(&[])?;
            // Sometimes it gets ready, mostly it dies again at another point of its start.
            if kill % 5 == 4 {
                daemon.wait_ready(READY)?
            } else {
                sleep(Duration::from_millis(kill * 37 % 250))
            }
        }
        nodes.iter().try_for_each(|&node| stage.lab.daemon(node).wait_ready(READY))
    };
    write(stage, &payments())?;
    let mut before = Census::default();
    let load = stage.load("1b", "2b", 500);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(Node(1)).start()?;
        before = stage.phase()?;
        kill(stage, &[Node(1)])
    })?;
    eprintln!("  {tally}, {} stretches; {} in plain before", tally.stretches, before.of(tally.load));
    ensure!(before.of(tally.load) > 0, "nothing was plain before the first daemon was there: {tally}");
    none_of_it_plain(&tally, &census).context("without a tunnel")?;
    // By it each flow was held back once, and never again let go.
    let flows = stage.lab.spec().families.all().len() as u64;
    ensure!(tally.stretches == flows, "{} stretches of {flows} flows arrive: {tally}", tally.stretches);
    let load = stage.load("1b", "2b", 500);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(Node(2)).start()?;
        stage.wait_proven()
    })?;
    none_of_it_plain(&tally, &census).context("while the tunnel is proven")?;
    let load = stage.load("1b", "2b", 500);
    let (tally, census) = stage.send_while(load, |stage| kill(stage, &[Node(1), Node(2)]))?;
    encrypted(&tally, &census).context("with a tunnel")
}
