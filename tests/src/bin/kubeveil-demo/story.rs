//! What happens, in order.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use kubeveil_abi::DEVICE_NAMES;
use kubeveil_tests::address::{Families, Node};
use kubeveil_tests::lab::{Mode, Overlay, READY, Spec, batch};
use kubeveil_tests::stage::{Stage, pod};
use kubeveil_tests::status::{said_in, wireguard_devices, wireguard_peers};
use kubeveil_tests::traffic::{Load, flows};

use crate::facts::{Act, Facts};
use crate::show::Screen;

const SPEC: Spec = Spec { nodes: 3, mode: Mode::Require, families: Families::Dual, overlay: Overlay::None };
/// How often each daemon is killed.
const ROUNDS: u64 = 6;
/// The machine itself may lose packets; then an act is played again, at most so often.
const TRIES: u32 = 3;

/// Tells it. What was found out until an error is in `facts`.
pub(crate) fn tell(screen: &Screen, facts: &mut Facts) -> Result<()> {
    facts.kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    screen.title(facts);

    screen.act("Encryption off", "Three nodes, two pods each. Nothing is loaded: what does the wire show?");
    let mut stage = Stage::set(SPEC)?;
    facts.control = Some(everybody(&mut stage, 200)?);
    screen.held(facts.control_held(), "so a leak would be seen", facts.control.as_ref());

    screen.act("Encryption on", "A daemon a node; the mesh requires encryption.");
    stage.start()?;
    // The module is loaded with the first device.
    facts.wireguard = wireguard_version();
    facts.version = version(&stage)?;
    facts.handshakes = handshakes(&stage)?;
    screen.note(&format!(
        "kubeveild {}, WireGuard {}; {} of {} tunnels have shaken hands, each node's to the {} others",
        facts.version,
        facts.wireguard,
        facts.handshakes,
        SPEC.nodes * (SPEC.nodes - 1),
        SPEC.nodes - 1,
    ));
    facts.encrypted = Some(whole(|| everybody(&mut stage, 600))?);
    screen.held(facts.encrypted_held(), "the same pods, the same packets", facts.encrypted.as_ref());

    screen.act(
        "Keys rotated",
        "`kubeveil rotate`, under traffic: every node takes a new key and gives its old one up.",
    );
    let mut generation = 0;
    facts.rotated =
        Some(whole(|| rotated(&mut stage, screen, &mut generation, &mut facts.rotation_seconds))?);
    screen.held(
        facts.rotated_held(),
        "each pair moved when it was proven on the new keys",
        facts.rotated.as_ref(),
    );

    screen.act("Daemons killed", "SIGKILL under traffic, again and again, at any moment of their start.");
    facts.killed = Some(whole(|| killed(&mut stage, &mut facts.kills))?);
    screen.held(facts.killed_held(), "what is in the kernel does not need them", facts.killed.as_ref());

    screen.act("A tunnel taken away", "node-2's daemon is killed, its device deleted; node-1's device too.");
    cut(&mut stage, facts, generation)?;
    screen.held(facts.cut_held(), "dropped with a reason, never plain", facts.cut.as_ref());
    screen.drops(&facts.drops);

    screen.act("Recovery", "node-2's daemon is started again. Nobody else is told.");
    stage.lab.daemon(Node(2)).start()?;
    stage.wait_proven()?;
    facts.recovered = Some(whole(|| everybody(&mut stage, 200))?);
    screen.held(facts.recovered_held(), "as before", facts.recovered.as_ref());

    // Everything since the first daemon was ready, between the acts too.
    stage.verdict()?;
    stage.strike()
}

/// Traffic between pods of every pair of nodes, in both families.
fn everybody(stage: &mut Stage, packets: u64) -> Result<Act> {
    let pairs = [("1a", "2a"), ("2a", "3b"), ("3b", "1a"), ("2b", "1b"), ("3a", "2b"), ("1b", "3a")];
    let all = pairs.map(|(from, to)| flows(pod(from), pod(to), SPEC.families)).concat();
    let (tally, census) = stage.send(Load::new(all, 400), packets)?;
    Ok(Act { tally, census })
}

/// By the command, as a person would. Says how long that took.
fn rotated(stage: &mut Stage, screen: &Screen, generation: &mut usize, seconds: &mut u64) -> Result<Act> {
    let pairs = [("1a", "2a"), ("2b", "3b"), ("3a", "1b")];
    let all = pairs.map(|(from, to)| flows(pod(from), pod(to), SPEC.families)).concat();
    let (tally, census) = stage.send_while(Load::new(all, 400), |stage| {
        let source = format!("dir:{}", stage.lab.manifests().display());
        let said =
            said_in(Node(1), "kubeveil", &["rotate", "--source", &source, "--reason", "demo", "-o", "json"])?;
        let last = said.lines().last().context("what `kubeveil rotate` says")?;
        let last: serde_json::Value = serde_json::from_str(last)?;
        *generation += 1;
        *seconds = last["seconds"].as_u64().context("seconds")?;
        let devices: Vec<String> =
            stage.lab.nodes().map(|node| Ok(wireguard_devices(node)?.join(", "))).collect::<Result<_>>()?;
        screen.note(&format!(
            "generation {generation} after {seconds} s; WireGuard devices of the nodes: {}",
            devices.join("; ")
        ));
        Ok(())
    })?;
    Ok(Act { tally, census })
}

fn killed(stage: &mut Stage, kills: &mut u64) -> Result<Act> {
    *kills = 0;
    let nodes: Vec<_> = stage.lab.nodes().collect();
    let load = Load::new(flows(pod("1a"), pod("2a"), SPEC.families), 500);
    let (tally, census) = stage.send_while(load, |stage| {
        for round in 0..ROUNDS {
            for &node in &nodes {
                let daemon = stage.lab.daemon(node);
                daemon.kill()?;
                *kills += 1;
                daemon.spawn(&[])?;
                sleep(Duration::from_millis(*kills * 37 % (60 * (round + 1))));
            }
        }
        nodes.iter().try_for_each(|&node| stage.lab.daemon(node).wait_ready(READY))
    })?;
    Ok(Act { tally, census })
}

/// node-1 still knows node-2, and has a key for it, but no tunnel that was ever proven.
fn cut(stage: &mut Stage, facts: &mut Facts, generation: usize) -> Result<()> {
    stage.lab.daemon(Node(2)).kill()?;
    for node in [Node(2), Node(1)] {
        batch(Some(&node.name()), &[format!("link del dev {}", DEVICE_NAMES[generation % 2])])?;
    }
    // Until node-1's daemon has noticed and made its own anew.
    let devices = || Ok(!wireguard_devices(Node(1))?.is_empty());
    kubeveil_tests::process::wait_until(READY, Duration::from_millis(100), devices)?;
    let before = stage.metrics(Node(1))?.all_drops();
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    facts.cut = Some(Act { tally, census });
    facts.drops = stage.metrics(Node(1))?.all_drops();
    for (reason, count) in &mut facts.drops {
        *count -= before.get(reason).copied().unwrap_or(0);
    }
    facts.drops.retain(|_, count| *count > 0);
    Ok(())
}

/// Plays an act again while the machine loses packets itself.
fn whole(mut play: impl FnMut() -> Result<Act>) -> Result<Act> {
    let mut act = play()?;
    for _ in 1..TRIES {
        if !act.tally.inconclusive() {
            break;
        }
        act = play()?;
    }
    Ok(act)
}

fn version(stage: &Stage) -> Result<String> {
    let status = stage.status(Node(1))?;
    Ok(status["version"].as_str().context("status.version")?.to_owned())
}

fn handshakes(stage: &Stage) -> Result<u64> {
    let mut proven = 0;
    for node in stage.lab.nodes() {
        let peers = wireguard_peers(node, DEVICE_NAMES[0])?;
        proven += peers.iter().filter(|peer| peer.handshake > 0).count() as u64;
    }
    Ok(proven)
}

fn wireguard_version() -> String {
    let file = std::fs::read_to_string("/sys/module/wireguard/version");
    file.map_or_else(|_| "of the kernel".to_owned(), |text| text.trim().to_owned())
}
