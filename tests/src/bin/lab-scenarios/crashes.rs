//! Daemons that die, are replaced or have their things taken away, under traffic.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::READY;
use kubeveil_tests::stage::{Stage, encrypted, none_plain, pod};
use kubeveil_tests::status::{wireguard_devices, wireguard_peers};
use kubeveil_tests::traffic::{Load, flows};

use crate::Scenario;
use crate::support::{DEVICE, delete_device, index, other_build};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("fifty_kills_under_traffic", fifty_kills).shared(),
    Scenario::new("sigterm_leaves_enforcement", sigterm).shared(),
    Scenario::new("a_restart_adopts_device_and_sessions", restart).shared(),
    Scenario::new("the_program_is_upgraded_under_traffic", upgrade),
    Scenario::new("the_tunnel_device_is_deleted_by_hand", device_deleted),
    Scenario::new("the_device_is_deleted_while_the_daemon_is_dead", device_deleted_unseen),
    Scenario::new("a_broken_manifest_removes_nobody", broken_source),
];

fn fifty_kills(stage: &mut Stage) -> Result<()> {
    const KILLS: u64 = 50;
    let families = stage.lab.spec().families;
    let all = [flows(pod("1a"), pod("2a"), families), flows(pod("2b"), pod("3b"), families)].concat();
    let nodes: Vec<_> = stage.lab.nodes().collect();
    let (tally, census) = stage.send_while(Load::new(all, 1000), |stage| {
        for (kill, &node) in (0..KILLS).zip(nodes.iter().cycle()) {
            let daemon = stage.lab.daemon(node);
            daemon.kill()?;
            daemon.spawn(&[])?;
            // Sometimes it gets ready, mostly it dies again at another point of its start.
            if kill % 10 == 9 {
                daemon.wait_ready(READY)?;
            } else {
                sleep(Duration::from_millis(kill * 37 % 250));
            }
        }
        nodes.iter().try_for_each(|&node| stage.lab.daemon(node).wait_ready(READY))
    })?;
    eprintln!("  {tally}; {census}");
    stage.wait_proven()?;
    encrypted(&tally, &census)
}

fn sigterm(stage: &mut Stage) -> Result<()> {
    let nodes: Vec<_> = stage.lab.nodes().collect();
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        nodes.iter().try_for_each(|&node| stage.lab.daemon(node).stop())?;
        sleep(Duration::from_millis(500));
        Ok(())
    })?;
    encrypted(&tally, &census).context("while the daemons stop")?;
    let (tally, census) = stage.send(stage.load("3a", "1b", 200), 100)?;
    encrypted(&tally, &census).context("without daemons")?;
    stage.lab.start_daemons(READY)?;
    stage.wait_proven()
}

fn restart(stage: &mut Stage) -> Result<()> {
    let node = Node(1);
    let before = (index(node, DEVICE)?, wireguard_peers(node, DEVICE)?);
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        stage.lab.daemon(node).stop()?;
        stage.lab.daemon(node).start()
    })?;
    encrypted(&tally, &census)?;
    let after = (index(node, DEVICE)?, wireguard_peers(node, DEVICE)?);
    ensure!(before.0 == after.0, "the device was made again");
    ensure!(before.1.len() == after.1.len(), "{before:?} became {after:?}");
    for (was, is) in before.1.iter().zip(&after.1) {
        ensure!(was.key == is.key && is.bytes >= was.bytes, "{was:?} became {is:?}");
        // A session lives 120 s before WireGuard itself renews it; younger ones must be the same.
        ensure!(was.handshake == is.handshake || old(was.handshake)?, "a session was lost: {was:?}, {is:?}");
    }
    Ok(())
}

fn old(handshake: u64) -> Result<bool> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    Ok(now.saturating_sub(handshake) > 110)
}

fn upgrade(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let file = other_build(stage)?;
    let nodes: Vec<_> = stage.lab.nodes().collect();
    let load = stage.load("1a", "2a", 500);
    let (tally, census) = stage.send_while(load, |stage| {
        for &node in &nodes {
            stage.lab.daemon(node).stop()?;
            stage.lab.daemon(node).spawn(&["--ebpf-object".to_owned(), file.clone()])?;
            stage.lab.daemon(node).wait_ready(READY)?;
        }
        Ok(())
    })?;
    encrypted(&tally, &census).context("towards the other build")?;
    let load = stage.load("2a", "3a", 500);
    let (tally, census) = stage.send_while(load, |stage| {
        for &node in &nodes {
            stage.lab.daemon(node).kill()?;
            stage.lab.daemon(node).start()?;
        }
        Ok(())
    })?;
    encrypted(&tally, &census).context("and back")
}

/// Packets that may end uncounted: half a second's.
const UNSEEN: u64 = 100;

fn device_deleted(stage: &mut Stage) -> Result<()> {
    let node = Node(1);
    stage.start()?;
    let before = stage.metrics(node)?.all_drops();
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        delete_device(node)?;
        // While it is being noticed, and until the new one is proven.
        sleep(Duration::from_millis(500));
        stage.wait_proven()
    })?;
    none_plain(&census)?;
    let after = stage.metrics(node)?.all_drops();
    eprintln!("  {tally}; drops {before:?} -> {after:?}");
    ensure!(tally.received > 0, "it did not recover: {tally}");
    // Until the daemon hears of it, the kernel frees what is redirected to a device that is gone.
    let counted = after.values().sum::<u64>() - before.values().sum::<u64>();
    let unseen = tally.lost().saturating_sub(counted);
    eprintln!("  {unseen} packets ended uncounted, {:.0} ms", unseen as f64 / tally.rate * 1e3);
    ensure!(tally.lost() <= counted + UNSEEN, "{} packets ended without a reason", tally.lost() - counted);
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census).context("after it recovered")
}

/// Nobody can say why these packets end; only that none is plain.
fn device_deleted_unseen(stage: &mut Stage) -> Result<()> {
    let node = Node(1);
    stage.start()?;
    stage.lab.daemon(node).kill()?;
    delete_device(node)?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    kubeveil_tests::stage::none_arrived(&tally)?;
    none_plain(&census)?;
    stage.lab.daemon(node).start()?;
    stage.wait_proven()?;
    ensure!(wireguard_devices(node)?.contains(&DEVICE.to_owned()), "no {DEVICE}");
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census).context("after the daemon came back")
}

fn broken_source(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let path = stage.manifest("node-2.yaml");
    let whole = fs::read(&path)?;
    let broken: [(&str, &[u8]); 4] = [
        ("half-written", &whole[..whole.len() / 2]),
        ("empty", b""),
        ("not YAML", b"\x00\x01: [}"),
        ("without its prefixes", b"apiVersion: v1\nkind: Node\nmetadata:\n  name: node-2\n  uid:\n"),
    ];
    for (what, content) in broken {
        let load = stage.load("1a", "2a", 200);
        let (tally, census) = stage.send_while(load, |stage| {
            // In place: as an editor or a copy does it, not by rename.
            fs::write(stage.manifest("node-2.yaml"), content)?;
            sleep(Duration::from_millis(1500));
            // Nor does a daemon that starts meanwhile forget whom it knew.
            stage.lab.daemon(Node(1)).kill()?;
            stage.lab.daemon(Node(1)).spawn(&[])?;
            sleep(Duration::from_millis(1500));
            Ok(())
        })?;
        encrypted(&tally, &census).context(what)?;
        let log = stage.lab.daemon(Node(3)).log();
        ensure!(log.contains("node-2.yaml"), "{what}: the log does not name the file");
    }
    fs::write(&path, &whole)?;
    stage.lab.daemon(Node(1)).wait_ready(READY)?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census).context("mended")
}
