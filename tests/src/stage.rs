//! A lab with a capture on its wire, on which a scenario plays.
//!
//! Each stage first shows, with nothing in force yet, that its capture sees the pods' plaintext. From
//! [`Stage::close`] on everything that crosses the wire is judged, between the acts too.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::address::{Node, Pod};
use crate::analysis::Census;
use crate::capture::Capture;
use crate::lab::{Lab, READY, Spec};
use crate::metrics::Metrics;
use crate::process::wait_until;
use crate::status;
use crate::traffic::{Load, Tally, flows};

/// How long tunnels may take to be proven.
pub const PROVEN: Duration = Duration::from_secs(30);
/// Packets of the control, of each family.
const CONTROL: u64 = 10;

/// Nothing was shown: the machine itself lost packets, so that nobody can be blamed or acquitted.
#[derive(Clone, Debug)]
pub struct Inconclusive(pub String);

impl fmt::Display for Inconclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inconclusive: {}", self.0)
    }
}

impl std::error::Error for Inconclusive {}

/// A lab, and what is seen of it.
pub struct Stage {
    /// The lab.
    pub lab: Lab,
    capture: Capture,
    /// What the capture saw with nothing in force.
    pub control: Census,
    closed: bool,
    since_closed: Census,
}

impl Stage {
    /// Lays a lab, starts no daemon, and makes the control: traffic between pods of two nodes, in each
    /// family, has to be seen in plain.
    pub fn set(spec: Spec) -> Result<Self> {
        let lab = Lab::lay(spec)?;
        let capture = Capture::start(&lab, &lab.folder().join("wire.pcap"))?;
        let mut stage =
            Self { lab, capture, control: Census::default(), closed: false, since_closed: Census::default() };
        stage.make_control().context("the control, with nothing in force")?;
        Ok(stage)
    }

    fn make_control(&mut self) -> Result<()> {
        let families = self.lab.spec().families;
        let wanted = CONTROL * families.all().len() as u64;
        let load = Load::new(flows(pod("1a"), pod("2a"), families), 200);
        let (tally, census) = self.send(load, wanted)?;
        conclusive(&tally)?;
        ensure!(tally.lost() == 0, "packets are lost: {tally}");
        for &family in families.all() {
            let seen = census.addresses_of(family);
            ensure!(seen >= CONTROL, "the capture shows {seen} of {CONTROL} packets by {family}: {census}");
        }
        ensure!(census.markers >= wanted, "the capture shows not every payload: {census}");
        self.control = census;
        Ok(())
    }

    /// From now on nothing may be plain.
    pub fn close(&mut self) -> Result<()> {
        self.phase()?;
        self.closed = true;
        Ok(())
    }

    /// From now on, plaintext is not held against anybody: the scenario makes some.
    pub fn open(&mut self) -> Result<()> {
        self.phase()?;
        self.closed = false;
        Ok(())
    }

    /// Starts all daemons, waits until every node has proven all its tunnels, and closes.
    pub fn start(&mut self) -> Result<()> {
        self.lab.nodes().try_for_each(|node| self.lab.daemon(node).spawn(&[]))?;
        self.settle()
    }

    /// As [`Self::start`], of daemons that were started already.
    pub fn settle(&mut self) -> Result<()> {
        self.lab.nodes().try_for_each(|node| self.lab.daemon(node).wait_ready(READY))?;
        self.close()?;
        self.wait_proven()
    }

    /// Waits until every node has proven its tunnels to all others.
    pub fn wait_proven(&self) -> Result<()> {
        let peers = u64::from(self.lab.spec().nodes) - 1;
        self.lab.nodes().try_for_each(|node| self.wait_peers(node, peers))
    }

    /// Waits until a node has so many peers, all of them proven.
    pub fn wait_peers(&self, node: Node, peers: u64) -> Result<()> {
        let mut last = None;
        let proven = wait_until(PROVEN, Duration::from_millis(100), || {
            let metrics = self.metrics(node)?;
            let now = (metrics.count("kubeveil_peers_desired", &[]), metrics.proven());
            last = Some(now);
            Ok(now == (peers, peers))
        })?;
        let (desired, up) = last.unwrap_or_default();
        ensure!(proven, "{}: {up} of {desired} peers are proven, not {peers} of {peers}", node.name());
        // The daemon sees the handshake a moment before it sends packets that way.
        self.wait_tunnelled(node, peers)
    }

    /// Waits until a node's packets to so many others travel in tunnels.
    pub fn wait_tunnelled(&self, node: Node, peers: u64) -> Result<()> {
        let travels = wait_until(PROVEN, Duration::from_millis(100), || {
            let status = self.status(node)?;
            let all = status["peers"].as_array().context("status.peers")?;
            Ok(all.iter().filter(|peer| peer["tunnelled"] == true).count() as u64 == peers)
        })?;
        ensure!(travels, "{}: its peers are proven, and their tunnels not used", node.name());
        Ok(())
    }

    /// What crossed the wire since the last call, or the last act.
    pub fn phase(&mut self) -> Result<Census> {
        let census = self.capture.phase()?;
        if self.closed {
            self.since_closed.merge(&census);
        }
        Ok(census)
    }

    /// Sends so many packets; what came of them, and what crossed the wire meanwhile.
    pub fn send(&mut self, load: Load, packets: u64) -> Result<(Tally, Census)> {
        self.phase()?;
        let tally = load.run(packets)?;
        Ok((tally, self.phase()?))
    }

    /// Sends while `act` acts; what came of it, and what crossed the wire meanwhile.
    pub fn send_while(
        &mut self,
        load: Load,
        act: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<(Tally, Census)> {
        self.phase()?;
        let running = load.start()?;
        running.wait_for(20);
        let outcome = act(self);
        running.wait_for(20);
        let tally = running.finish()?;
        outcome?;
        Ok((tally, self.phase()?))
    }

    /// A load between two pods, in all families of the lab.
    pub fn load(&self, from: &str, to: &str, rate: u32) -> Load {
        Load::new(flows(pod(from), pod(to), self.lab.spec().families), rate)
    }

    /// What a node's daemon says at `/metrics`.
    pub fn metrics(&self, node: Node) -> Result<Metrics> {
        Metrics::of(&self.lab.daemon(node))
    }

    /// What a node's daemon says of itself.
    pub fn status(&self, node: Node) -> Result<Value> {
        status::of(&self.lab.daemon(node))
    }

    /// A file that the daemons watch.
    pub fn manifest(&self, file: &str) -> PathBuf {
        self.lab.manifests().join(file)
    }

    /// An error if anything was plain that had not to be, or if the capture can't tell.
    pub fn verdict(&mut self) -> Result<()> {
        self.phase()?;
        let missed = self.capture.missed()?;
        if missed > 0 {
            bail!(Inconclusive(format!("tcpdump missed {missed} frames")));
        }
        none_plain(&self.since_closed)
    }

    /// Ends the capture and takes the lab down.
    pub fn strike(self) -> Result<()> {
        let Self { lab, capture, .. } = self;
        drop(capture);
        lab.take_down()
    }
}

/// The pod of this name.
///
/// # Panics
/// If there is no such pod: scenarios name them in their text.
#[expect(clippy::expect_used)]
pub fn pod(name: &str) -> Pod {
    name.parse().expect("a pod's name")
}

/// An error if the machine lost packets itself.
pub fn conclusive(tally: &Tally) -> Result<()> {
    if tally.inconclusive() {
        bail!(Inconclusive(tally.to_string()));
    }
    Ok(())
}

/// An error unless everything arrived, once.
pub fn none_lost(tally: &Tally) -> Result<()> {
    conclusive(tally)?;
    ensure!(tally.lost() == 0 && tally.refused == 0, "packets are lost: {tally}");
    ensure!(tally.duplicated == 0, "packets are doubled: {tally}");
    ensure!(tally.received > 0, "nothing was sent: {tally}");
    Ok(())
}

/// An error if anything arrived.
pub fn none_arrived(tally: &Tally) -> Result<()> {
    ensure!(tally.sent > 0, "nothing was sent: {tally}");
    ensure!(tally.received == 0, "packets arrive: {tally}");
    Ok(())
}

/// An error if a frame showed anything of pods.
pub fn none_plain(census: &Census) -> Result<()> {
    ensure!(census.plaintext == 0, "plaintext on the wire: {census}");
    Ok(())
}

/// An error if a frame showed what this load sent, whatever others did.
pub fn none_of_it_plain(tally: &Tally, census: &Census) -> Result<()> {
    ensure!(tally.sent > 0, "nothing was sent: {tally}");
    let plain = census.of(tally.load);
    ensure!(plain == 0, "{plain} of its packets are plain on the wire: {tally}");
    Ok(())
}

/// An error unless everything arrived, and went over the wire as ciphertext.
pub fn encrypted(tally: &Tally, census: &Census) -> Result<()> {
    none_plain(census)?;
    none_lost(tally)?;
    ensure!(census.ciphertext >= tally.sent, "too little ciphertext for {tally}: {census}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(sent: u64, received: u64, own_loss: u64) -> Tally {
        Tally { sent, received, own_loss, ..Tally::default() }
    }

    fn census(ciphertext: u64, plaintext: u64) -> Census {
        Census { ciphertext, plaintext, ..Census::default() }
    }

    #[test]
    fn encrypted_means_all_arrived_as_ciphertext() {
        assert!(encrypted(&tally(9, 9, 0), &census(9, 0)).is_ok());
        for (tally, census) in [
            (tally(9, 8, 0), census(9, 0)),
            (tally(0, 0, 0), census(9, 0)),
            (tally(9, 9, 0), census(9, 1)),
            (tally(9, 9, 0), census(8, 0)),
            (Tally { duplicated: 1, ..tally(9, 9, 0) }, census(9, 0)),
            (Tally { refused: 1, ..tally(9, 9, 0) }, census(9, 0)),
        ] {
            assert!(encrypted(&tally, &census).is_err(), "{tally}; {census}");
        }
    }

    #[test]
    fn a_loss_of_the_machines_own_is_no_verdict() {
        let error = none_lost(&tally(9, 8, 1)).expect_err("a loss");
        assert!(error.is::<Inconclusive>(), "{error}");
        assert!(!none_lost(&tally(9, 8, 0)).expect_err("a loss").is::<Inconclusive>());
        // Something else was lost on this machine, and nothing of this load.
        assert!(none_lost(&tally(9, 9, 1)).is_ok());
    }

    #[test]
    fn nothing_sent_proves_nothing() {
        assert!(none_arrived(&tally(9, 0, 0)).is_ok());
        assert!(none_arrived(&tally(9, 1, 0)).is_err());
        assert!(none_arrived(&tally(0, 0, 0)).is_err());
    }
}
