//! `kubeveild probe` on nodes that have something against kubeveil.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use aya::programs::tc::TcAttachType;
use kubeveil_api::probe::{PortState, Probe, Target};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::{Mode, batch, nft, program_path};
use kubeveil_tests::namespace;
use kubeveil_tests::stage::Stage;

use crate::Scenario;
use crate::neighbours::foreign::{Answer, Foreign, NAME, Place};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("probe_finds_what_stands_against_us", finds).mode(Mode::Off).nodes(2).bare(),
    Scenario::new("probe_knows_what_is_ours", ours).shared(),
    Scenario::new("probe_finds_somebody_elses_wireguard", stranger).mode(Mode::Off).nodes(2),
];

/// Time for questions and answers: some rounds of one second each.
const WITHIN: &str = "6s";
/// What the even and the odd generations use.
const PORTS: [u16; 2] = [51871, 51872];

/// A port that a firewall holds back in one family, one that somebody else has, a program, no BPF file system.
fn finds(stage: &mut Stage) -> Result<()> {
    let ends = [Node(1), Node(2)];
    let [one, two] = probe_all(stage, ends)?;
    for probe in [&one, &two] {
        ensure!(probe.asked == 4 && probe.unanswered == 0, "nothing stands against it yet: {probe:?}");
        ensure!(probe.bpffs && probe.programs.is_empty() && probe.no_programs.is_none(), "{probe:?}");
        ensure!(probe.ports.iter().all(|port| port.state == PortState::Free), "{probe:?}");
    }
    nft(
        &ends[1].name(),
        "table inet blocks { chain in { type filter hook input priority 0; meta nfproto ipv6 udp dport 51872 drop; }; }",
    )?;
    let _taken = namespace::within(&ends[0].name(), || Ok(UdpSocket::bind(("0.0.0.0", PORTS[0]))?))?;
    let _foreign = Foreign::attach(ends[1], "eth0", TcAttachType::Ingress, Place::Ahead, Answer::Next)?;
    let [one, two] = probe_all(stage, ends)?;
    ensure!(one.silent == [target(ends[1], Family::V6, PORTS[1])], "{one:?}");
    ensure!(two.silent == [target(ends[0], Family::V4, PORTS[0])], "{two:?}");
    let states = |probe: &Probe| probe.ports.iter().map(|port| port.state).collect::<Vec<_>>();
    ensure!(states(&one) == [PortState::Taken, PortState::Free], "{one:?}");
    ensure!(states(&two) == [PortState::Free; 2], "{two:?}");
    ensure!(one.programs.is_empty(), "{one:?}");
    let [foreign] = &two.programs[..] else { anyhow::bail!("{two:?}") };
    ensure!((foreign.device.as_str(), foreign.hook.as_str()) == ("eth0", "tc ingress"), "{two:?}");
    ensure!(foreign.program.contains(NAME), "{two:?}");
    let nowhere = Command::new("kubeveild")
        .args(["probe", "--bpf-dir", "/tmp/kubeveil"])
        .env("PATH", program_path())
        .output()?;
    ensure!(!document(&nowhere.stdout)?.bpffs, "{nowhere:?}");
    Ok(())
}

/// Devices and programs of a daemon that runs.
fn ours(stage: &mut Stage) -> Result<()> {
    for probe in probe_all(stage, [Node(1), Node(2)])? {
        ensure!(probe.no_wireguard.is_none() && probe.programs.is_empty(), "{probe:?}");
        ensure!(probe.ports[0].state == PortState::Ours, "{probe:?}");
        ensure!(probe.ports[1].state == PortState::Free && probe.unanswered == 2, "{probe:?}");
    }
    Ok(())
}

fn stranger(stage: &mut Stage) -> Result<()> {
    let lines = ["link add dev wg9 type wireguard".to_owned()];
    batch(Some(&Node(1).name()), &lines)?;
    let mut set = Command::new("wg");
    set.args(["set", "wg9", "listen-port", "51872"]);
    ensure!(namespace::spawn(&Node(1).name(), &mut set)?.wait()?.success(), "wg set");
    batch(Some(&Node(1).name()), &["link set dev wg9 up".to_owned()])?;
    let [one, _] = probe_all(stage, [Node(1), Node(2)])?;
    ensure!(one.no_wireguard.is_none(), "{one:?}");
    ensure!(one.ports[0].state == PortState::Free && one.ports[1].state == PortState::Taken, "{one:?}");
    ensure!(one.ports[1].by == "WireGuard device wg9", "{one:?}");
    Ok(())
}

pub(crate) fn target(node: Node, family: Family, port: u16) -> Target {
    Target { node: node.name(), address: node.address(family), port }
}

/// On all of them at once.
pub(crate) fn probe_all<const N: usize>(stage: &Stage, nodes: [Node; N]) -> Result<[Probe; N]> {
    let peers = nodes.map(|node| {
        let addresses = Families::Dual.map(|family| node.address(family).to_string());
        format!("--peer={}={}", node.name(), addresses.join(","))
    });
    let running = nodes.map(|node| start(node, &stage.lab.daemon(node).file("bpf/kubeveil"), &peers));
    let mut probes = Vec::new();
    for running in running {
        let done = running?.wait_with_output()?;
        ensure!(done.status.success(), "{done:?}");
        probes.push(document(&done.stdout)?);
    }
    probes.try_into().map_err(|_| anyhow::anyhow!("too few"))
}

fn start(node: Node, bpf_dir: &Path, peers: &[String]) -> Result<Child> {
    let mut probe = Command::new("kubeveild");
    probe.args(["probe", "--within", WITHIN, "--name", &node.name()]).args(peers);
    probe.arg("--bpf-dir").arg(bpf_dir).env("PATH", program_path());
    probe.stdout(Stdio::piped()).stderr(Stdio::piped());
    namespace::spawn(&node.name(), &mut probe)
}

/// The last line counts.
fn document(printed: &[u8]) -> Result<Probe> {
    let text = String::from_utf8_lossy(printed);
    let last = text.lines().last().context("nothing was printed")?;
    serde_json::from_str(last).with_context(|| last.to_owned())
}
