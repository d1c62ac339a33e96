//! Keys are rotated while packets go.

pub(crate) mod amid;
mod mended;
mod put_back;
mod stolen;
mod told;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Node};
use kubeveil_tests::lab::{Mode, mesh, nft, node_manifest, program_path};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, encrypted, none_plain, pod};
use kubeveil_tests::status::wireguard_devices;
use kubeveil_tests::traffic::{Load, Streamed, Streams, flows};
use rustix::process::{Pid, Signal, kill_process};

use crate::Scenario;
use crate::probe::{probe_all, target};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("an_old_key_gets_no_answer", stolen::old_key).nodes(2),
    Scenario::new("a_key_that_is_put_back_is_not_used", put_back::key_file).nodes(2),
    Scenario::new("a_disk_that_is_put_back_brings_no_key_back", put_back::disk).nodes(2),
    Scenario::new("a_stolen_key_is_refused", stolen::stolen_key).nodes(3).takes(75),
    Scenario::new("twenty_rotations_lose_nothing", twenty).nodes(3).takes(600),
    Scenario::new("a_node_that_is_down_holds_a_rotation_up", node_down).nodes(3),
    Scenario::new("a_rotation_by_command", by_command).nodes(3),
    Scenario::new("what_sticks_in_a_rotation_is_mended", mended::mended).nodes(3).takes(90),
    Scenario::new("a_blocked_port_delays_its_own_pair", blocked_port).nodes(3),
    Scenario::new("daemons_killed_in_a_rotation", killed).nodes(3).takes(100),
];

/// A rotation of three nodes takes some 20 seconds: an old key goes when nothing has come or gone by it for five and nobody has held it
/// for five, and what a node says of its peers it says every ten.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Blocks of 4 KiB a second that each connection sends: an emulated CPU has other things to do.
const BLOCKS: u32 = 8;
/// Between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(100);

/// The mesh wants this generation, and what else is in `rotation`.
pub(crate) fn want(stage: &Stage, generation: u32, rotation: serde_json::Value) -> Result<()> {
    let mut mesh = mesh(Mode::Require, stage.lab.spec().families);
    mesh.object["spec"]["keyGeneration"] = generation.into();
    mesh.object["spec"]["rotation"] = rotation;
    mesh.write(&stage.lab.manifests())
}

/// What a node announces.
fn said(stage: &Stage, node: Node) -> Result<serde_json::Value> {
    let text = fs::read_to_string(stage.manifest(&format!("announcements/{}.yaml", node.name())))?;
    let json: serde_json::Value = serde_saphyr::from_str(&text)?;
    let said =
        json["metadata"]["annotations"]["kubeveil.io/announcement"].as_str().context("announcement")?;
    Ok(serde_json::from_str(said)?)
}

/// The generations that a node announces.
pub(crate) fn announced(stage: &Stage, node: Node) -> Result<Vec<u64>> {
    let said = said(stage, node)?;
    let generations = said["generations"].as_array().context("generations")?;
    Ok(generations.iter().filter_map(|entry| entry["generation"].as_u64()).collect())
}

/// Every node has this generation, and no other.
pub(crate) fn wait_for(stage: &Stage, generation: u32) -> Result<()> {
    let all = || -> Result<Vec<_>> { stage.lab.nodes().map(|node| announced(stage, node)).collect() };
    let done = wait_until(LIMIT, PAUSE, || Ok(all()?.iter().all(|said| *said == [u64::from(generation)])))?;
    ensure!(done, "generation {generation} after {LIMIT:?}: {:?}", all()?);
    for node in stage.lab.nodes() {
        let device = format!("kubeveil{}", generation % 2);
        let gone =
            wait_until(Duration::from_secs(5), PAUSE, || Ok(wireguard_devices(node)? == [device.clone()]))?;
        ensure!(gone, "{} has {:?}", node.name(), wireguard_devices(node)?);
    }
    Ok(())
}

/// Every pod of the first two nodes with its like, both ways and by both families; and the third's.
pub(crate) fn everybody(stage: &Stage, rate: u32) -> Load {
    let pairs = [("1a", "2a"), ("2a", "1a"), ("1b", "3b"), ("3b", "2b")];
    let families = stage.lab.spec().families;
    Load::new(pairs.iter().flat_map(|(from, to)| flows(pod(from), pod(to), families)).collect(), rate)
}

/// As many as a mesh may see in years, with connections that last longer than any key; then some time without, to compare.
fn twenty(stage: &mut Stage) -> Result<()> {
    const LAST: u32 = 20;
    stage.start()?;
    go_on(stage, &format!("{LAST} rotations"), |stage| rotate(stage, LAST))?;
    for node in stage.lab.nodes() {
        let keys = stage.lab.daemon(node).file("state/keys");
        let names: Vec<String> = fs::read_dir(&keys)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        let keys: Vec<_> = names.iter().filter(|name| name.contains("generation-")).collect();
        ensure!(keys == [&format!("generation-{LAST}.key")], "{} keeps {keys:?}", node.name());
        let status = stage.status(node)?;
        ensure!(status["key"]["generation"] == LAST, "{} says {}", node.name(), status["key"]);
        ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{}", status["problems"]);
    }
    go_on(stage, "without rotation", |_| {
        sleep(Duration::from_secs(60));
        Ok(())
    })
}

/// Up to generation `last`, each to its end.
fn rotate(stage: &Stage, last: u32) -> Result<()> {
    (1..=last).try_for_each(|generation| {
        want(stage, generation, serde_json::json!({}))?;
        wait_for(stage, generation)
    })
}

/// Numbered packets between everybody, and connections that last as long as `act`: none is lost, none is reset, and what TCP had to do
/// for it is said.
fn go_on(stage: &mut Stage, what: &str, act: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let families = stage.lab.spec().families;
    let pairs = [("1a", "2a"), ("3b", "1b")];
    let lasting: Vec<_> = pairs.iter().flat_map(|(from, to)| flows(pod(from), pod(to), families)).collect();
    let (streams, begin) = (Streams::start(&lasting, BLOCKS)?, Instant::now());
    let load = everybody(stage, 400);
    let sent = stage.send_while(load, act);
    let streamed = streams.finish();
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    let a_minute = |count: u64| count as f64 / minutes;
    let (tally, census) = sent?;
    eprintln!("  {what}: {tally}");
    for Streamed { flow, bytes, counts } in streamed.with_context(|| format!("connections through {what}"))? {
        let [again, order] = [counts.retransmitted, counts.reordered].map(a_minute);
        eprintln!(
            "  {what}: {flow}: {} KiB by TCP, a minute {again:.1} segments sent again, order lost {order:.1} times",
            bytes >> 10
        );
    }
    encrypted(&tally, &census).with_context(|| what.to_owned())
}

/// A node is down while the others rotate: all go on speaking, nobody gives the old key up, somebody cuts it off, and it comes back.
fn node_down(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let down = Node(3);
    stage.lab.daemon(down).kill()?;
    let load = everybody(stage, 200);
    let (tally, census) = stage.send_while(load, |stage| {
        want(stage, 1, serde_json::json!({}))?;
        // Its device stands, and goes on by the old key.
        sleep(Duration::from_secs(25));
        for node in [Node(1), Node(2)] {
            ensure!(announced(stage, node)? == [0, 1], "{} says {:?}", node.name(), announced(stage, node)?);
        }
        Ok(())
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census).context("while a daemon is down")?;
    want(stage, 1, serde_json::json!({ "retireBefore": 1 }))?;
    let cut = wait_until(LIMIT, Duration::from_millis(200), || {
        Ok(announced(stage, Node(1))? == [1] && announced(stage, Node(2))? == [1])
    })?;
    ensure!(cut, "the rotation was not finished by force");
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 100)?;
    encrypted(&tally, &census).context("between those that are not cut off")?;
    let (_, census) = stage.send(stage.load("1a", "3a", 200), 100)?;
    none_plain(&census).context("to the one that is cut off")?;
    stage.lab.daemon(down).start()?;
    wait_for(stage, 1)?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(everybody(stage, 200), 400)?;
    encrypted(&tally, &census).context("when it is back")
}

/// `kubeveil rotate …` over the lab's folder.
fn program(stage: &Stage, arguments: &[&str]) -> Command {
    let source = format!("dir:{}", stage.lab.manifests().display());
    let mut command = Command::new("kubeveil");
    command.env("PATH", program_path()).arg("rotate").args(arguments).args(["--source", &source]);
    command
}

/// Its exit code and what it said on both streams.
fn ended(output: Output) -> (i32, String) {
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

fn command(stage: &Stage, arguments: &[&str]) -> Result<(i32, String)> {
    Ok(ended(program(stage, arguments).output().context("run kubeveil")?))
}

/// Somebody interrupts it when it has asked for `generation`: it says that the rotation goes on, and how to look again.
fn interrupted(stage: &Stage, generation: u32) -> Result<()> {
    let started = program(stage, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = started.context("run kubeveil")?;
    let wanted = format!("keyGeneration: {generation}");
    let mesh = stage.manifest("mesh.yaml");
    let asked =
        wait_until(Duration::from_secs(20), PAUSE, || Ok(fs::read_to_string(&mesh)?.contains(&wanted)))?;
    ensure!(asked, "generation {generation} was not asked for");
    // Then it waits, for at least as long as a rotation takes.
    sleep(Duration::from_secs(3));
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(pid, Signal::INT)?;
    let (code, said) = ended(child.wait_with_output()?);
    for words in ["the rotation goes on", "`kubeveil rotate status`"] {
        ensure!(code == 130 && said.contains(words), "interrupted it ends with {code}: {said}");
    }
    Ok(())
}

pub(crate) fn expect(stage: &Stage, arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let (got, said) = command(stage, arguments)?;
    ensure!(got == code, "rotate {arguments:?} ends with {got}, not {code}: {said}");
    for word in words {
        ensure!(said.contains(word), "rotate {arguments:?} does not say {word:?}: {said}");
    }
    Ok(())
}

/// A person's way through it: begin to end, two at once, a node that is late, its end by force, and a stolen key.
fn by_command(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    expect(stage, &["history"], 0, &["never rotated"])?;
    expect(stage, &["status"], 0, &["generation 0", "done"])?;
    let load = everybody(stage, 300);
    let (tally, census) = stage.send_while(load, |stage| told::to_programs(stage, 1, "a first one"))?;
    encrypted(&tally, &census).context("by command")?;
    told::by_metrics(stage, Node(1), 1, [1, 0], &[("done", 3)])?;
    expect(stage, &["history"], 0, &["a first one", "done", "@"])?;
    // Nobody goes on while it is paused, and nobody begins another.
    interrupted(stage, 2)?;
    expect(stage, &["pause"], 0, &["resume"])?;
    expect(stage, &["--no-wait"], 1, &["the rotation to generation 2", "is not over", "finish --force"])?;
    expect(stage, &["status"], 1, &["paused"])?;
    expect(stage, &["resume"], 0, &[])?;
    wait_for(stage, 2)?;
    // A node is late, is named, and is cut off.
    stage.lab.daemon(Node(3)).kill()?;
    let words = ["not done after 20 s", "node-3 has no key of generation 3", "`kubeveil status` there"];
    expect(stage, &["--deadline", "20s"], 4, &words)?;
    expect(stage, &["finish"], 2, &["node-3", "--force"])?;
    let (code, said) = command(stage, &["finish", "--force"])?;
    ensure!(code == 1 && said.contains("cut off until they have newer ones: node-3"), "{code}: {said}");
    told::by_metrics(stage, Node(1), 3, [2, 1], &[("done", 2), ("behind", 1)])?;
    // Then it holds nothing up any more, though it be away still; and it comes back to what is wanted by then.
    expect(stage, &["--no-wait"], 0, &["generation 4 is asked for"])?;
    stage.lab.daemon(Node(3)).start()?;
    wait_for(stage, 4)?;
    stage.wait_proven()?;
    expect(stage, &["history"], 0, &["forced", "node-3"])?;
    // A stolen key.
    let stolen = crate::support::public_key(stage, Node(2))?;
    expect(
        stage,
        &["--compromised", "node-2"],
        0,
        &["refused from now on", &stolen, "node-2 has announced"],
    )?;
    let now = crate::support::public_key(stage, Node(2))?;
    ensure!(now != stolen, "node-2 still has the key that was revoked");
    stage.wait_proven()?;
    for node in [Node(1), Node(3)] {
        let peers = kubeveil_tests::status::wireguard_peers(node, "kubeveil0")?;
        ensure!(peers.iter().all(|peer| peer.key != stolen), "{} speaks to a revoked key", node.name());
    }
    let (tally, census) = stage.send(everybody(stage, 200), 200)?;
    encrypted(&tally, &census).context("after all of it")?;
    some_nodes(stage)
}

/// The keys of one node alone: the others go to the next device with theirs.
fn some_nodes(stage: &mut Stage) -> Result<()> {
    let keys = |stage: &Stage| {
        stage.lab.nodes().map(|node| crate::support::public_key(stage, node)).collect::<Result<Vec<_>>>()
    };
    let mut labelled = node_manifest(Node(1), stage.lab.spec().families);
    labelled.object["metadata"]["labels"] = serde_json::json!({"pool": "edge"});
    labelled.write(&stage.lab.manifests())?;
    let before = keys(stage)?;
    let (tally, census) = stage.send_while(everybody(stage, 300), |stage| {
        expect(stage, &["--nodes", "pool in (edge,core)"], 0, &["no old key: 3/3 nodes", "done in"])
    })?;
    encrypted(&tally, &census).context("the keys of some nodes")?;
    let is_new: Vec<bool> = before.iter().zip(keys(stage)?).map(|(before, after)| *before != after).collect();
    ensure!(is_new == [true, false, false], "who has a new key: {is_new:?}");
    expect(stage, &["history"], 0, &["pool in (edge,core)"])
}

/// Two nodes can't reach each other's second port: a probe finds that beforehand. They keep their old keys for each other and lose
/// nothing, the third is done with both, and the command says which port.
fn blocked_port(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let from = ["ip saddr 192.0.2.1", "ip6 saddr 2001:db8::1"];
    let rules = from.map(|from| format!("{from} udp dport 51872 drop\n{from} udp sport 51872 drop\n"));
    let rules = format!(
        "table inet blocked {{\nchain in {{\ntype filter hook input priority -300\n{}}}\n}}\n",
        rules.concat()
    );
    nft(&Node(2).name(), &rules)?;
    for (probe, other) in probe_all(stage, [Node(1), Node(2)])?.iter().zip([Node(2), Node(1)]) {
        let is_found = |family| probe.silent.contains(&target(other, family, 51872));
        ensure!(Families::Dual.map(is_found).iter().all(|found| *found), "{probe:?}");
    }
    let load = everybody(stage, 300);
    let (tally, census) = stage.send_while(load, |stage| {
        expect(stage, &["--deadline", "30s"], 4, &["node-1 has no handshake with node-2", "UDP 51872"])
    })?;
    encrypted(&tally, &census).context("while a port is blocked")?;
    expect(stage, &["status"], 1, &["node-1 has no handshake with node-2", "UDP 51872"])?;
    ensure!(announced(stage, Node(3))? == [1], "the third node says {:?}", announced(stage, Node(3))?);
    for node in [Node(1), Node(2)] {
        ensure!(announced(stage, node)? == [0, 1], "{} says {:?}", node.name(), announced(stage, node)?);
    }
    nft(&Node(2).name(), "delete table inet blocked")?;
    wait_for(stage, 1)
}

/// Each daemon is killed and started again, all the while that keys are rotated.
fn killed(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let load = everybody(stage, 300);
    let (tally, census) = stage.send_while(load, |stage| {
        for generation in 1..=2 {
            want(stage, generation, serde_json::json!({}))?;
            for round in 0..24_u64 {
                let node = Node(u8::try_from(round % 3)? + 1);
                sleep(Duration::from_millis(100 + round * 37 % 400));
                stage.lab.daemon(node).kill()?;
                stage.lab.daemon(node).spawn(&[])?;
            }
            for node in stage.lab.nodes() {
                stage.lab.daemon(node).wait_ready(LIMIT)?;
            }
            wait_for(stage, generation)?;
        }
        Ok(())
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census).context("while daemons are killed")
}
