//! What befalls a node while keys are rotated: the others go on, and come to the end of it.

use std::fs;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{batch, nft, node_manifest};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_plain, pod};
use kubeveil_tests::status::{read, said_in, wireguard_devices};
use kubeveil_tests::traffic::{Load, flows};
use serde_json::json;

use super::{LIMIT, PAUSE, announced, everybody, expect, said, wait_for, want};
use crate::Scenario;
use crate::support::{Clock, delete_device, empty, nothing_alarming};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("a_node_joins_in_a_rotation", joins).nodes(3),
    Scenario::new("a_node_is_hit_in_a_rotation", hit).nodes(3).takes(170),
    Scenario::new("a_node_is_down_for_three_rotations", down).nodes(3).takes(50),
    Scenario::new("two_nodes_part_in_a_rotation", parted).nodes(3).takes(55),
    Scenario::new("both_ends_die_in_a_rotation", both_die).nodes(2).takes(50),
    Scenario::new("the_clock_jumps_in_a_rotation", clock_jumps).nodes(3).takes(55).sets_clock(),
    Scenario::new("the_clock_stays_wrong_in_rotations", clock_stays).nodes(3).takes(75).sets_clock(),
];

/// The one that it befalls, and the others.
pub(super) const HIT: Node = Node(3);
pub(super) const OTHERS: [Node; 2] = [Node(1), Node(2)];

/// Between pods of the others, both ways and by both families.
pub(super) fn others(stage: &Stage) -> Load {
    let families = stage.lab.spec().families;
    let pairs = [("1a", "2a"), ("2a", "1a"), ("1b", "2b"), ("2b", "1b")];
    Load::new(pairs.iter().flat_map(|(from, to)| flows(pod(from), pod(to), families)).collect(), 200)
}

/// Begins a rotation and stops it in the middle: these nodes have both keys, and none gives the old one up.
fn hold(stage: &Stage, generation: u32, nodes: &[Node]) -> Result<()> {
    let both = [u64::from(generation) - 1, u64::from(generation)];
    let all = || -> Result<Vec<_>> { nodes.iter().map(|node| announced(stage, *node)).collect() };
    want(stage, generation, json!({}))?;
    let begun = wait_until(LIMIT, PAUSE, || Ok(all()?.iter().all(|said| *said == both)))?;
    want(stage, generation, json!({ "paused": true }))?;
    ensure!(begun && all()?.iter().all(|said| *said == both), "not in the middle: {:?}", all()?);
    Ok(())
}

/// Lets it go on to its end.
fn resume(stage: &Stage, generation: u32) -> Result<()> {
    want(stage, generation, json!({}))?;
    wait_for(stage, generation)
}

fn joins(stage: &mut Stage) -> Result<()> {
    fs::remove_file(stage.manifest("node-3.yaml"))?;
    OTHERS.iter().try_for_each(|&node| stage.lab.daemon(node).start())?;
    stage.close()?;
    OTHERS.iter().try_for_each(|&node| stage.wait_peers(node, 1))?;
    let load = others(stage);
    let (tally, census) = stage.send_while(load, |stage| {
        hold(stage, 1, &OTHERS)?;
        node_manifest(HIT, stage.lab.spec().families).write(&stage.lab.manifests())?;
        stage.lab.daemon(HIT).start()?;
        stage.wait_proven()?;
        ensure!(announced(stage, HIT)? == [1], "the newcomer says {:?}", announced(stage, HIT)?);
        resume(stage, 1)
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census).context("those who were there before")?;
    let (tally, census) = stage.send(everybody(stage, 200), 200)?;
    encrypted(&tally, &census).context("with the newcomer")
}

/// One rotation for each way in which a node can be hit. There is nothing that people could do for it but find out who deleted a device; so
/// that is all that they are told, and at the node itself.
fn hit(stage: &mut Stage) -> Result<()> {
    type Deed = fn(&Stage) -> Result<()>;
    const WHO: [&str; 2] = ["somebody else changed it, and it is put back", "Find out who"];
    let deeds: [(&str, Deed, &[&str]); 4] = [
        ("it reboots", reboot, &[]),
        ("it is replaced", replace, &[]),
        ("its device of the new key is deleted", |stage| delete_devices(HIT, &device(stage, true)?), &WHO),
        ("its device of the old key is deleted", |stage| delete_devices(HIT, &device(stage, false)?), &WHO),
    ];
    stage.start()?;
    for (generation, (what, deed, tells)) in (1..).zip(deeds) {
        let load = others(stage);
        let (tally, census) = stage.send_while(load, |stage| {
            hold(stage, generation, &[OTHERS[0], OTHERS[1], HIT])?;
            let to_it = stage.load("1b", "3b", 100).start()?;
            let outcome = deed(stage).and_then(|()| stage.wait_proven());
            to_it.wait_for(50);
            let arrived = to_it.finish()?;
            outcome?;
            eprintln!("  {what}, to it: {arrived}");
            ensure!(arrived.received > 0, "nothing arrives at it: {arrived}");
            OTHERS.iter().try_for_each(|node| nothing_alarming(stage, *node, &["rotation is paused"]))?;
            let said = read(&stage.lab.daemon(HIT))?;
            let is_told = said.0 == tells.is_empty() && tells.iter().all(|words| said.1.contains(words));
            ensure!(is_told, "it does not say {tells:?}, and that alone: {}", said.1);
            resume(stage, generation)
        })?;
        eprintln!("  {what}, between the others: {tally}");
        encrypted(&tally, &census).context(what)?;
        let (tally, census) = stage.send(everybody(stage, 200), 200)?;
        encrypted(&tally, &census).with_context(|| format!("after this: {what}"))?;
    }
    Ok(())
}

/// The device of its newest key, or of its oldest.
fn device(stage: &Stage, is_newest: bool) -> Result<[String; 1]> {
    let has = announced(stage, HIT)?;
    let generation = if is_newest { has.last() } else { has.first() };
    Ok([format!("kubeveil{}", generation.context("it announces no key")? % 2)])
}

fn delete_devices(node: Node, devices: &[String]) -> Result<()> {
    let lines: Vec<_> = devices.iter().map(|device| format!("link del dev {device}")).collect();
    batch(Some(&node.name()), &lines)
}

/// Nothing is left but what is on disk. (None of its pods speaks: it is open until the daemon has started.)
fn goes_down(stage: &Stage) -> Result<()> {
    let daemon = stage.lab.daemon(HIT);
    daemon.kill()?;
    delete_devices(HIT, &wireguard_devices(HIT)?)?;
    empty(&daemon.file("bpf/kubeveil"))?;
    // What has no pins, where the kernel knows no links: filters, and the backstop as a table.
    said_in(HIT, "tc", &["qdisc", "del", "dev", "eth0", "clsact"]).ok();
    nft(&HIT.name(), "flush ruleset")?;
    fs::remove_file(daemon.file("kubeveild.sock"))?;
    Ok(())
}

fn reboot(stage: &Stage) -> Result<()> {
    goes_down(stage)?;
    stage.lab.daemon(HIT).start()
}

/// Another machine under the same name.
fn replace(stage: &Stage) -> Result<()> {
    goes_down(stage)?;
    empty(&stage.lab.daemon(HIT).file("state"))?;
    fs::remove_file(stage.manifest("node-3.yaml"))?;
    // A Node's annotation goes with the Node.
    fs::remove_file(stage.manifest("announcements/node-3.yaml"))?;
    OTHERS.iter().try_for_each(|&node| stage.wait_peers(node, 1))?;
    OTHERS.iter().try_for_each(|node| nothing_alarming(stage, *node, &[]))?;
    let mut another = node_manifest(HIT, stage.lab.spec().families);
    another.object["metadata"]["uid"] = "00000063-244a-4002-8000-6b7562657665".into();
    another.write(&stage.lab.manifests())?;
    stage.lab.daemon(HIT).start()
}

/// The others cut it off as soon as they have moved to each other, or would wait for it; it comes back with the newest key alone.
fn down(stage: &mut Stage) -> Result<()> {
    const LAST: u32 = 3;
    stage.start()?;
    stage.lab.daemon(HIT).kill()?;
    let load = others(stage);
    let (tally, census) = stage.send_while(load, |stage| {
        for generation in 1..=LAST {
            let newest = [u64::from(generation)];
            let all = |is_so: &dyn Fn(Node) -> Result<bool>| {
                wait_until(LIMIT, PAUSE, || Ok(is_so(OTHERS[0])? && is_so(OTHERS[1])?))
            };
            want(stage, generation, json!({}))?;
            let have_moved = all(&|node| {
                let list = said(stage, node)?["notFlipped"].clone();
                let has = announced(stage, node)?.last() == newest.last();
                Ok(has && (list == json!([]) || list == json!([HIT.name()])))
            })?;
            ensure!(have_moved, "{:?} after {LIMIT:?}", OTHERS.map(|node| said(stage, node)));
            let behind = format!(
                "node-3 has no key of generation {generation}, its newest is of 0: is kubeveild running there"
            );
            expect(stage, &["status"], 1, &[&behind, "`kubeveil status` there"])?;
            want(stage, generation, json!({ "retireBefore": generation }))?;
            let done = all(&|node| Ok(announced(stage, node)? == newest))?;
            ensure!(done, "{:?} after {LIMIT:?}", OTHERS.map(|node| said(stage, node)));
        }
        ensure!(announced(stage, HIT)? == [0], "it says {:?}", announced(stage, HIT)?);
        expect(stage, &["status"], 1, &["done, but for those that were cut off", "node-3 has no key of"])?;
        stage.lab.daemon(HIT).start()?;
        wait_for(stage, LAST)?;
        stage.wait_proven()?;
        expect(stage, &["status"], 0, &["generation 3", "done"])?;
        stage.lab.nodes().try_for_each(|node| nothing_alarming(stage, node, &["generation 3"]))
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census).context("between those that rotated")?;
    let (tally, census) = stage.send(everybody(stage, 200), 200)?;
    encrypted(&tally, &census).context("when it is back")
}

/// They lose each other by both keys, and nobody else; it is told of whom.
fn parted(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let families = stage.lab.spec().families;
    let pairs = [("1a", "3a"), ("3a", "1a"), ("2b", "3b"), ("3b", "2b")];
    let flows = pairs.iter().flat_map(|(from, to)| flows(pod(from), pod(to), families)).collect();
    let (tally, census) = stage.send_while(Load::new(flows, 200), |stage| {
        let chain = |hook: &str, end: &str| {
            let rules = ["ip", "ip6"].into_iter().zip(["192.0.2.1", "2001:db8::1"]);
            let rules = rules.map(|(ip, first)| format!("{ip} {end} {first} udp dport 51871-51872 drop\n"));
            let rules: String = rules.collect();
            format!("chain {hook} {{\ntype filter hook {hook} priority -300\n{rules}}}\n")
        };
        let chains = [chain("input", "saddr"), chain("output", "daddr")].concat();
        nft(&Node(2).name(), &format!("table inet parted {{\n{chains}}}\n"))?;
        want(stage, 1, json!({}))?;
        let third = wait_until(LIMIT, PAUSE, || Ok(announced(stage, Node(3))? == [1]))?;
        ensure!(third, "the third node says {:?}", announced(stage, Node(3))?);
        for node in [Node(1), Node(2)] {
            ensure!(announced(stage, node)? == [0, 1], "{} says {:?}", node.name(), announced(stage, node)?);
        }
        let words =
            ["node-1 has no handshake with node-2", "node-2 has no handshake with node-1", "UDP 51872"];
        expect(stage, &["status"], 1, &words)?;
        let to_it = stage.load("1b", "2b", 100).run(50)?;
        ensure!(to_it.received == 0, "they reach each other: {to_it}");
        nft(&Node(2).name(), "delete table inet parted")?;
        wait_for(stage, 1)
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census).context("with the third")?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(everybody(stage, 200), 200)?;
    none_plain(&census)?;
    encrypted(&tally, &census).context("when they reach each other again")
}

/// The daemons of both ends die at once, at many points, and begin again: while keys are made and announced, while packets move, and
/// while all that the old keys wait for is silence.
fn both_die(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let die = |stage: &Stage| -> Result<()> {
        let daemons = OTHERS.map(|node| stage.lab.daemon(node));
        thread::scope(|scope| {
            let killing = daemons.each_ref().map(|daemon| scope.spawn(|| daemon.kill()));
            killing.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| bail!("the kill panicked")))
        })?;
        daemons.iter().try_for_each(|daemon| daemon.spawn(&[]))
    };
    let ready = |stage: &Stage| OTHERS.iter().try_for_each(|node| stage.lab.daemon(*node).wait_ready(LIMIT));
    let (tally, census) = stage.send_while(others(stage), |stage| {
        want(stage, 1, json!({}))?;
        for round in 0..12 {
            sleep(Duration::from_millis(50 << (round % 6)));
            die(stage)?;
        }
        ready(stage)?;
        let have_moved = |node| -> Result<bool> {
            Ok(announced(stage, node)? == [0, 1] && said(stage, node)?["notFlipped"] == json!([]))
        };
        let moved = wait_until(LIMIT, PAUSE, || Ok(have_moved(OTHERS[0])? && have_moved(OTHERS[1])?))?;
        ensure!(moved, "{:?} after {LIMIT:?}", OTHERS.map(|node| said(stage, node)));
        sleep(Duration::from_secs(2));
        die(stage)?;
        ready(stage)?;
        wait_for(stage, 1)
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census)
}

const HOUR: i64 = 3600;

/// An hour back and forth while packets move, and an hour forth and back while the old keys wait for silence. Nobody is told of it: there
/// is nothing to do.
fn clock_jumps(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let (tally, census) = stage.send_while(everybody(stage, 300), |stage| {
        let mut clock = Clock::default();
        for (generation, waits, off) in [(1, [400, 1500], -HOUR), (2, [400, 7000], HOUR)] {
            want(stage, generation, json!({}))?;
            for (wait, off) in waits.into_iter().zip([off, 0]) {
                sleep(Duration::from_millis(wait));
                clock.set(off)?;
                stage.lab.nodes().try_for_each(|node| nothing_alarming(stage, node, &[]))?;
            }
            wait_for(stage, generation)?;
            expect(stage, &["status"], 0, &["done"])?;
        }
        stage.lab.nodes().try_for_each(|node| nothing_alarming(stage, node, &["generation 2"]))
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census)
}

/// The clock is an hour behind, then an hour ahead, and stays so: while a device is made anew, through two rotations, and through daemons that
/// begin by it. To make the device anew forces handshakes upon keys that have had some by the right clock, and WireGuard takes no
/// initiation that is stamped earlier than the last one from the same key: so the others have to speak first, and do as soon as they have
/// something to send.
fn clock_stays(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let mut clock = Clock::default();
    let (tally, census) = stage.send_while(others(stage), |stage| {
        let families = stage.lab.spec().families;
        let load = |pairs: [(&str, &str); 2]| {
            Load::new(pairs.iter().flat_map(|(from, to)| flows(pod(from), pod(to), families)).collect(), 100)
        };
        clock.set(-HOUR)?;
        let to_it = load([("1b", "3b"), ("2b", "3b")]).start()?;
        let proven = delete_device(HIT).and_then(|()| stage.wait_proven());
        to_it.wait_for(20);
        let arrived = to_it.finish()?;
        eprintln!("  a device is made anew by a clock that is behind, to it: {arrived}");
        proven?;
        let with_it = load([("1b", "3b"), ("3b", "2b")]).run(100)?;
        ensure!(with_it.lost() == 0, "by the handshakes that were forced: {with_it}");
        Ok(())
    })?;
    eprintln!("  between the others: {tally}");
    encrypted(&tally, &census).context("between the others, while a device is made anew")?;
    let (tally, census) = stage.send_while(everybody(stage, 300), |stage| {
        for (generation, off) in [(1, -HOUR), (2, HOUR)] {
            clock.set(off)?;
            want(stage, generation, json!({}))?;
            stage.lab.daemon(Node(1)).kill()?;
            stage.lab.daemon(Node(1)).start()?;
            wait_for(stage, generation)?;
            expect(stage, &["status"], 0, &["done"])?;
            OTHERS.iter().try_for_each(|node| nothing_alarming(stage, *node, &[]))?;
        }
        Ok(())
    })?;
    eprintln!("  rotations by a wrong clock: {tally}");
    encrypted(&tally, &census).context("rotations by a wrong clock")
}
