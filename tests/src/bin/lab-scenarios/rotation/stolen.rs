//! A node's key in somebody else's hands.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubeveil_tests::address::{Family, Node};
use kubeveil_tests::memory;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, conclusive, encrypted, pod};
use kubeveil_tests::status::{said_in, wireguard_peers};
use kubeveil_tests::traffic::{Load, flows};
use serde_json::json;

use super::{LIMIT, PAUSE, expect, wait_for, want};
use crate::support::{public_key, told};

/// What a thief has of a node: its private key, in a file.
struct Stolen {
    private: String,
    file: PathBuf,
}

impl Stolen {
    fn from(stage: &Stage, node: Node) -> Result<Self> {
        let private = said_in(node, "wg", &["show", "kubeveil0", "private-key"])?;
        let file = stage.lab.daemon(node).file("stolen");
        fs::write(&file, &private)?;
        Ok(Self { private: private.trim().to_owned(), file })
    }

    /// How often its second half lies in the memory of a node's daemon: as bytes, and as they are written in files. (Over the first half of
    /// what was freed an allocator writes its own notes.)
    fn in_memory_of(&self, stage: &Stage, node: Node) -> Result<[usize; 2]> {
        let daemon = stage.lab.daemon(node).running()?.context("its daemon does not run")?;
        let bytes = STANDARD.decode(&self.private)?;
        let halves = [&bytes[bytes.len() / 2..], &self.private.as_bytes()[self.private.len() / 2..]];
        let [bytes, text] = halves.map(|half| memory::occurrences(daemon.id(), half));
        Ok([bytes?, text?])
    }
}

/// Somebody has kept a node's key, and speaks to its peer from that node's own address, as soon as that has another. Nor has the node's
/// own daemon it any more.
pub(super) fn old_key(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let (thief, peer) = (Node(1), Node(2));
    let (stolen, before) = (Stolen::from(stage, thief)?, public_key(stage, peer)?);
    // It is answered as long as the key is in use: else the rest would say nothing.
    stage.lab.daemon(thief).stop()?;
    ensure!(answers(thief, peer, &before, 51871, &stolen.file)?, "nobody answers a key that is in use");
    stage.lab.daemon(thief).start()?;
    stage.wait_proven()?;
    let [in_use, _] = stolen.in_memory_of(stage, thief)?;
    ensure!(in_use > 0, "a key in use is not found in memory, so nothing is shown by what is not");
    want(stage, 1, json!({}))?;
    wait_for(stage, 1)?;
    let left = stolen.in_memory_of(stage, thief)?;
    ensure!(left == [0, 0], "{left:?} copies of a key that was given up are in the daemon's memory");
    stage.lab.daemon(thief).stop()?;
    let now = public_key(stage, peer)?;
    for (key, port) in [(&before, 51871), (&before, 51872), (&now, 51872), (&now, 51871)] {
        ensure!(
            !answers(thief, peer, key, port, &stolen.file)?,
            "{key} at port {port} answers a key that was given up"
        );
    }
    stage.lab.daemon(thief).start()?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census)
}

/// Does `peer`, which is to have the key `public`, answer a handshake of stock WireGuard with the stolen key?
fn answers(thief: Node, peer: Node, public: &str, port: u16, private: &Path) -> Result<bool> {
    const DEVICE: &str = "wg-thief";
    said_in(thief, "ip", &["link", "add", DEVICE, "type", "wireguard"])?;
    let endpoint = format!("{}:{port}", peer.address(Family::V4));
    let private = private.display().to_string();
    let set = ["set", DEVICE, "private-key", &private];
    said_in(thief, "wg", &set)?;
    let set = ["set", DEVICE, "peer", public, "endpoint", &endpoint, "persistent-keepalive", "1"];
    said_in(thief, "wg", &set)?;
    said_in(thief, "ip", &["link", "set", DEVICE, "up"])?;
    let answered = wait_until(Duration::from_secs(8), Duration::from_millis(200), || {
        let said = said_in(thief, "wg", &["show", DEVICE, "latest-handshakes"])?;
        Ok(said.split_whitespace().last().is_some_and(|at| at != "0"))
    });
    said_in(thief, "ip", &["link", "del", DEVICE])?;
    answered
}

/// Whose key is stolen, and who is spoken to with it.
const VICTIM: Node = Node(2);
const FOOLED: Node = Node(3);
const OTHERS: [Node; 2] = [Node(1), FOOLED];

/// A node's keys are refused at once, at the price of its traffic until it has others; the rest of the cluster loses nothing. And they stay
/// refused, whatever becomes of the daemons, of the list, and of what the node announces.
pub(super) fn stolen_key(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let (stolen, public) = (Stolen::from(stage, VICTIM)?, public_key(stage, VICTIM)?);
    let announcement = stage.manifest("announcements/node-2.yaml");
    let announced = fs::read(&announcement)?;
    let key = public_key(stage, FOOLED)?;
    let is_answered = |when: &str| {
        let is_answered = answers(VICTIM, FOOLED, &key, 51871, &stolen.file);
        is_answered.with_context(|| when.to_owned())
    };
    stage.lab.daemon(VICTIM).stop()?;
    ensure!(is_answered("in use")?, "nobody answers a key that is in use");
    stage.lab.daemon(VICTIM).start()?;
    stage.wait_proven()?;
    revoked_under_load(stage, &public)?;
    let is_refused = |when: &str| -> Result<()> {
        ensure!(!is_answered(when)?, "{when}: somebody answers a revoked key");
        for node in OTHERS {
            let peers = wireguard_peers(node, "kubeveil0")?;
            ensure!(peers.iter().all(|peer| peer.key != public), "{when}: {} has it as a peer", node.name());
        }
        Ok(())
    };
    is_refused("just revoked")?;
    // As it was before; what is left of the list is on the nodes' disks.
    want(stage, 0, json!({}))?;
    stage.lab.nodes().try_for_each(|node| stage.lab.daemon(node).stop())?;
    stage.lab.nodes().try_for_each(|node| stage.lab.daemon(node).start())?;
    stage.wait_proven()?;
    is_refused("begun anew with an empty list")?;
    stage.lab.daemon(VICTIM).stop()?;
    fs::write(&announcement, announced)?;
    for node in OTHERS {
        let mut said = String::new();
        let told = wait_until(LIMIT, PAUSE, || {
            said = kubeveil_tests::status::read(&stage.lab.daemon(node))?.1;
            Ok(["Node node-2", "the key is revoked", "so that it makes a new one"]
                .iter()
                .all(|words| said.contains(words)))
        })?;
        ensure!(told, "{} does not tell of the revoked key that is announced: {said}", node.name());
    }
    is_refused("announced again")?;
    stage.lab.daemon(VICTIM).start()?;
    stage.wait_proven()?;
    ensure!(public_key(stage, VICTIM)? != public, "it has the revoked key again");
    let (tally, census) = stage.send(super::everybody(stage, 200), 200)?;
    encrypted(&tally, &census).context("after all of it")
}

/// Numbered packets from and to the node, and between the others, while its key is revoked by command.
fn revoked_under_load(stage: &mut Stage, public: &str) -> Result<()> {
    let families = stage.lab.spec().families;
    let load = |pairs: [(&str, &str); 2]| {
        Load::new(pairs.iter().flat_map(|(from, to)| flows(pod(from), pod(to), families)).collect(), 200)
    };
    let with_it = || load([("1a", "2a"), ("2a", "1a")]);
    let (tally, census) = stage.send_while(load([("1b", "3b"), ("3b", "1b")]), |stage| {
        let counted = |stage: &Stage| -> Result<[u64; 2]> {
            let of = |node| -> Result<u64> { Ok(told(stage, node, ("egress", "no_tunnel"))?[0]) };
            Ok([of(Node(1))?, of(VICTIM)?])
        };
        let (before, running) = (counted(stage)?, with_it().start()?);
        running.wait_for(40);
        let acted = revoke(stage, public);
        running.wait_for(40);
        let cut = running.finish()?;
        acted?;
        conclusive(&cut)?;
        let [at_one, at_it] = [0, 1].map(|at| counted(stage).map(|now| now[at] - before[at]));
        let (at_one, at_it) = (at_one?, at_it?);
        eprintln!("  with the node whose key is revoked: {cut}; dropped for want of a tunnel: {at_one} to it, {at_it} by it");
        // What was on its way by the old key finds nobody who has it.
        ensure!(at_one > 0 && at_it > 0, "nobody says where packets went: {at_one} to it, {at_it} by it, of {cut}");
        ensure!(at_one + at_it <= cut.lost(), "more is counted than was lost: {at_one} and {at_it}, of {cut}");
        Ok(())
    })?;
    eprintln!("  between the others: {tally}");
    encrypted(&tally, &census).context("between the others, and nothing in plain")?;
    let (tally, census) = stage.send(with_it(), 200)?;
    encrypted(&tally, &census).context("with the new key")
}

/// By command; until all have proven the node's new key.
fn revoke(stage: &Stage, public: &str) -> Result<()> {
    expect(stage, &["--compromised", "node-2"], 0, &["refused from now on", public, "node-2 has announced"])?;
    let now = public_key(stage, VICTIM)?;
    ensure!(now != *public, "it still has the key that was revoked");
    let all_have_it = wait_until(LIMIT, PAUSE, || {
        let has = |node| -> Result<bool> {
            let peers = wireguard_peers(node, "kubeveil0")?;
            Ok(peers.iter().any(|peer| peer.key == now) && peers.iter().all(|peer| peer.key != public))
        };
        Ok(has(OTHERS[0])? && has(OTHERS[1])?)
    })?;
    ensure!(all_have_it, "not all have its new key, and that alone");
    stage.wait_proven()
}
