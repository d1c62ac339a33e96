//! Pings between pods while something happens to their cluster: each is counted, and none may be seen on the wire.

use std::{collections::BTreeSet, fmt::Write, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Cluster, guest,
    guest::Watch,
    plan::PODS,
    smoke::{Pod, in_namespace_of},
};
use crate::report;

/// Pings a second, in each family, from each pod; the rest of an emulated CPU is for the nodes.
const RATE: u32 = 2;
/// Seconds that an answer may take; requests go on for as long after what happens, and the last ones are not judged.
const LATE: u32 = 6;

/// Pings of pods, each of the next one, in both families.
struct Traffic<'a> {
    pods: &'a [&'a Pod],
    watch: Watch,
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Told {
    answered: u32,
    /// One line a pair of addresses that lost any.
    lost: Vec<String>,
    /// Frames between pods, in plain, as tcpdump tells them.
    pub(super) plain: Vec<String>,
}

impl<'a> Traffic<'a> {
    fn start(cluster: &Cluster, pods: &'a [&'a Pod]) -> Result<Self> {
        let watch = Watch::start(cluster.plan.guest, &between_pods())?;
        for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
            let others = to.addresses.join(" ");
            let interval = 1.0 / f64::from(RATE);
            let pings = format!(
                "rm -rf /run/pings; mkdir /run/pings; for to in {others}; do nohup nsenter --net=$ns \
                 ping -n -i {interval} $to >/run/pings/$to 2>&1 </dev/null & done"
            );
            guest::run(cluster.plan.guest, &from.node_number()?, &in_namespace_of(from, &pings), b"")?;
        }
        Ok(Self { pods, watch })
    }

    fn stop(self, cluster: &Cluster) -> Result<Told> {
        thread::sleep(Duration::from_secs(LATE.into()));
        let mut told = Told::default();
        let end = "pkill -INT -x ping; while pgrep -x ping >/dev/null; do sleep 0.1; done; cd /run/pings; tail -n +1 -v *";
        for from in self.pods {
            let said = guest::run(cluster.plan.guest, &from.node_number()?, end, b"")?;
            told.count(&from.addresses, &said)?;
        }
        told.plain = frames(&self.watch.stop()?);
        Ok(told)
    }
}

/// Does something while pods ping each other: an error if a ping is lost, or one is seen in plain.
pub(super) fn undisturbed(
    cluster: &mut Cluster,
    pods: &[&Pod],
    deed: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    observed(cluster, pods, deed)?.judge()
}

/// The same, not judged yet.
pub(super) fn observed(
    cluster: &mut Cluster,
    pods: &[&Pod],
    deed: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<Told> {
    let traffic = Traffic::start(cluster, pods)?;
    let done = deed(cluster);
    let told = traffic.stop(cluster);
    done?;
    told
}

impl Told {
    /// Counts what the pings of one pod said, file after file under a head of its own.
    fn count(&mut self, from: &[String; 2], said: &str) -> Result<()> {
        for part in said.split("==> ").skip(1) {
            let (to, lines) = part.split_once(" <==").context("a file of pings without a name")?;
            let source = &from[usize::from(to.contains(':'))];
            let sent: u32 = lines
                .lines()
                .find_map(|line| line.split_once(" packets transmitted")?.0.trim().parse().ok())
                .with_context(|| {
                    format!("the pings from {source} to {to} did not end as they should:\n{lines}")
                })?;
            let judged = sent.saturating_sub(LATE * RATE);
            let mut missing: BTreeSet<u32> = (1..=judged).collect();
            for line in lines.lines().filter(|line| line.contains(" bytes from ")) {
                let number =
                    line.split_once("icmp_seq=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
                number.map(|number| missing.remove(&number));
            }
            let count = u32::try_from(missing.len())?;
            self.answered += judged - count;
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                self.lost
                    .push(format!("{source} > {to}: {count} of {judged}, from number {first} to {last}"));
            }
        }
        Ok(())
    }

    pub(super) fn judge(&self) -> Result<()> {
        report::print(format!(
            "    {} pings were answered, {} frames seen in plain",
            self.answered,
            self.plain.len()
        ));
        let mut wrong = String::new();
        for line in &self.lost {
            write!(wrong, "\npings were lost: {line}")?;
        }
        if let Some(frame) = self.plain.first() {
            write!(wrong, "\nthe wire has seen {} frames in plain, the first: {frame}", self.plain.len())?;
        }
        ensure!(wrong.is_empty(), "{}", wrong.trim_start());
        ensure!(self.answered > 50, "only {} pings were answered: what was tried with them?", self.answered);
        Ok(())
    }
}

/// flannel's, on the wire; tcpdump shows what is in them on a line of its own.
pub(super) const ENVELOPES: &str = "udp port 8472";

/// What tcpdump is to look for: frames whose outermost addresses are both a pod's, and envelopes.
pub(super) fn between_pods() -> String {
    let ranges = PODS.split(',').map(|range| format!("(src net {range} and dst net {range})"));
    ranges.chain([ENVELOPES.to_owned()]).collect::<Vec<_>>().join(" or ")
}

/// tcpdump's lines on frames, without what it says on itself.
pub(super) fn frames(seen: &str) -> Vec<String> {
    seen.lines().filter(|line| line.contains(" > ")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: [&str; 2] = ["10.244.0.2", "fd00:10:244::2"];

    /// What a ping prints that sent 112 requests, and got no answer to these.
    fn said(to: &str, unanswered: &[u32]) -> String {
        let answers = (1..=112).filter(|number| !unanswered.contains(number));
        let lines: String = answers
            .map(|number| format!("64 bytes from {to}: icmp_seq={number} ttl=62 time=1.20 ms\n"))
            .collect();
        format!(
            "==> {to} <==\nPING {to}\n{lines}\n--- {to} ping statistics ---\n112 packets transmitted, some received\n\n"
        )
    }

    fn told(said: &str) -> Told {
        let mut told = Told::default();
        told.count(&FROM.map(str::to_owned), said).expect("pings that ended");
        told
    }

    #[test]
    fn the_last_pings_are_not_judged_all_others_are() {
        let both = said("10.244.1.3", &[112]) + &said("fd00:10:244:1::3", &[101]);
        let well = told(&both);
        assert_eq!((well.answered, well.lost.len()), (200, 0));
        well.judge().expect("nothing was lost");

        let bad = told(&(said("10.244.1.3", &[7, 9]) + &said("fd00:10:244:1::3", &[100])));
        let error = bad.judge().expect_err("three were lost").to_string();
        assert!(error.contains("10.244.0.2 > 10.244.1.3: 2 of 100, from number 7 to 9"), "{error}");
        assert!(error.contains("fd00:10:244::2 > fd00:10:244:1::3: 1 of 100"), "{error}");
    }

    #[test]
    fn a_frame_in_plain_and_pings_that_never_were_are_told() {
        let seen = "listening on wire0, snapshot length 262144 bytes\n1.5 IP 10.244.0.2 > 10.244.1.3: ICMP echo request\n3 packets captured\n";
        let plain = frames(seen);
        assert_eq!(plain.len(), 1);
        let error = Told { plain, ..told(&said("10.244.1.3", &[])) }.judge().expect_err("seen").to_string();
        assert!(error.contains("10.244.0.2 > 10.244.1.3: ICMP echo request"), "{error}");
        Told::default().judge().expect_err("nothing was tried");
        Told::default().count(&FROM.map(str::to_owned), "==> 10.244.1.3 <==\nkilled\n").expect_err("no end");
    }
}
