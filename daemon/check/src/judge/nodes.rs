//! What probes say of the nodes' kernels, ports and clocks.

use std::collections::BTreeMap;

use kubeveil_api::probe::{Attachment, PortState, Probe, Target};

use super::{Findings, nodes_named, some};
use crate::facts::{Facts, Node};

/// Milliseconds by which clocks may differ unnoticed: certificates, tokens and the adoption's deadline go by them.
const CLOCK: u64 = 5_000;
/// The UDP port of a mesh whose keys were never rotated.
const FIRST_PORT: u16 = 51871;
/// Oldest kernel with CAP_BPF, and oldest that is tried: major and minor.
const OLDEST: (u32, u32) = (5, 8);
const TRIED: (u32, u32) = (6, 1);
/// What has to be looked at on the nodes themselves.
const ON_NODES: [&str; 6] = ["wireguard", "programs", "bpffs", "ports", "neighbours", "clock"];
/// Has the nodes looked at.
const PROBE: &str = "kubeveil check --image IMAGE    # the image that is, or will be, installed";

pub(super) fn judge(facts: &Facts, findings: &mut Findings) {
    let Ok(nodes) = &facts.nodes else { return };
    releases(nodes, findings);
    let probes = &facts.probes.by_node;
    let unseen: Vec<&String> = nodes
        .iter()
        .filter(|(name, node)| node.linux && !probes.contains_key(*name))
        .map(|(name, _)| name)
        .collect();
    if !unseen.is_empty() {
        let why = facts.probes.missing.as_deref().unwrap_or("its probe has said nothing");
        for check in ON_NODES {
            findings.unknown(check, nodes_named(&unseen), why, PROBE);
        }
    }
    if probes.is_empty() {
        return;
    }
    kernels(probes, findings);
    neighbours(probes, findings);
    ports(probes, findings);
    pairs(probes, findings);
    clocks(probes, findings);
}

/// One machine that asks nobody.
pub(super) fn machine(probe: &Probe, findings: &mut Findings) {
    let name = if probe.node.is_empty() { "this machine" } else { &probe.node };
    let of = |release: &str| Node { linux: true, kernel: release.to_owned(), ..Node::default() };
    releases(&[(name.to_owned(), of(&probe.kernel))].into(), findings);
    let probes = [(name.to_owned(), probe.clone())].into();
    kernels(&probes, findings);
    neighbours(&probes, findings);
    ports(&probes, findings);
}

fn releases(nodes: &BTreeMap<String, Node>, findings: &mut Findings) {
    let linux = || nodes.iter().filter(|(_, node)| node.linux);
    let older = |than: (u32, u32)| {
        let is_older = move |node: &Node| release(&node.kernel).is_some_and(|release| release < than);
        linux()
            .filter(move |(_, node)| is_older(node))
            .map(|(name, node)| format!("{name} ({})", node.kernel))
    };
    let too_old: Vec<String> = older(OLDEST).collect();
    let untried: Vec<String> = older(TRIED).filter(|name| !too_old.contains(name)).collect();
    const UPGRADE: &str =
        "on these nodes: uname -r    # and the distribution's upgrade to Linux 6.1 or later";
    if !too_old.is_empty() {
        findings.failed(
            "kernel",
            nodes_named(&too_old),
            "the kernel is older than Linux 5.8",
            "kubeveil can't load its programs there, so no agent starts",
            UPGRADE,
        );
    }
    if !untried.is_empty() {
        findings.warning(
            "kernel",
            nodes_named(&untried),
            "the kernel is older than any that kubeveil is tried on (6.1)",
            "it may work, and nobody has seen it",
            UPGRADE,
        );
    }
    if too_old.is_empty() && untried.is_empty() {
        let mut all: Vec<&str> = linux().map(|(_, node)| node.kernel.as_str()).collect();
        all.sort_unstable();
        all.dedup();
        findings.ok("kernel", "every Linux node", format!("Linux {}", some(&all)));
    }
    let named = |excluded: bool| -> Vec<&String> {
        let others = nodes.iter().filter(|(_, node)| !node.linux && node.excluded == excluded);
        others.map(|(name, _)| name).collect()
    };
    let (others, excluded) = (named(false), named(true));
    if !excluded.is_empty() {
        findings.ok(
            "kernel",
            nodes_named(&excluded),
            "it has no agent, as spec.excludedNodes of the mesh says",
        );
    }
    if !others.is_empty() {
        findings.warning(
            "kernel",
            nodes_named(&others),
            "it does not run Linux, so it has no agent",
            "in mode require no pod there can be reached from another node, nor reach one",
            "kubectl get nodes -L kubernetes.io/os    # keep pods that need each other on nodes of one kind, or name these nodes in the mesh's spec.excludedNodes",
        );
    }
}

fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Nodes of which the same is to be said, by that.
fn grouped<'a>(
    probes: &'a BTreeMap<String, Probe>,
    said: impl Fn(&'a Probe) -> Option<String>,
) -> BTreeMap<String, Vec<&'a String>> {
    let mut groups: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for (name, probe) in probes {
        if let Some(said) = said(probe) {
            groups.entry(said).or_default().push(name);
        }
    }
    groups
}

fn kernels(probes: &BTreeMap<String, Probe>, findings: &mut Findings) {
    let all = format!("all {} nodes that were looked at", probes.len());
    let wireguard = grouped(probes, |probe| probe.no_wireguard.clone());
    for (why, names) in &wireguard {
        findings.failed(
            "wireguard",
            nodes_named(names),
            format!("WireGuard is not to be had: {why}"),
            "nothing can be encrypted to or from there; in mode require its pods are cut off from other nodes",
            "on these nodes: modprobe wireguard    # where that fails: the kernel's package of further modules",
        );
    }
    if wireguard.is_empty() {
        findings.ok("wireguard", &*all, "the kernel has WireGuard");
    }
    let programs = grouped(probes, |probe| probe.no_programs.clone());
    for (why, names) in &programs {
        findings.failed(
            "programs",
            nodes_named(names),
            format!("the kernel does not take kubeveil's programs: {why}"),
            "no agent gets ready there, and nothing is enforced",
            "on these nodes: dmesg | tail    # a security profile or lockdown that refuses bpf(); agent.seccompProfile in the chart's values",
        );
    }
    if programs.is_empty() {
        let by = grouped(probes, |probe| Some(probe.attachment.name().to_owned()));
        let tcx = by.get(Attachment::Tcx.name()).map_or(0, Vec::len);
        let found =
            format!("the kernel takes kubeveil's programs ({tcx} by tcx, {} by clsact)", probes.len() - tcx);
        findings.ok("programs", &*all, found);
    }
    let btf = grouped(probes, |probe| (!probe.btf).then(String::new));
    for names in btf.values() {
        findings.warning(
            "programs",
            nodes_named(names),
            "the kernel has no BTF",
            "the backstop is a table of nftables there, which `nft flush ruleset` takes away for half a second",
            "on these nodes: ls /sys/kernel/btf/vmlinux    # a kernel built with CONFIG_DEBUG_INFO_BTF",
        );
    }
    let bpffs = grouped(probes, |probe| (!probe.bpffs).then(String::new));
    for names in bpffs.values() {
        findings.failed(
            "bpffs",
            nodes_named(names),
            "no BPF file system is mounted at /sys/fs/bpf",
            "programs can't outlive the agent, so it does not start",
            "on these nodes: mount -t bpf bpf /sys/fs/bpf && echo 'bpf /sys/fs/bpf bpf defaults 0 0' >> /etc/fstab",
        );
    }
    if bpffs.is_empty() {
        findings.ok("bpffs", &*all, "a BPF file system is mounted at /sys/fs/bpf");
    }
}

fn neighbours(probes: &BTreeMap<String, Probe>, findings: &mut Findings) {
    let hooks = |probe: &Probe, xdp: bool| {
        let of = probe.programs.iter().filter(|program| (program.hook == "xdp") == xdp);
        let told: Vec<String> = of.map(|p| format!("{} of {}: {}", p.hook, p.device, p.program)).collect();
        (!told.is_empty()).then(|| some(&told))
    };
    let (tc, xdp) =
        (grouped(probes, |probe| hooks(probe, false)), grouped(probes, |probe| hooks(probe, true)));
    for (what, names) in &tc {
        findings.warning(
            "neighbours",
            nodes_named(names),
            format!("somebody else's programs: {what}"),
            "behind ours they see only what we leave alone; should one get ahead of ours, what it takes away leaves unseen",
            "on these nodes: bpftool net show    # after the installation: kubeveil status, problem `position`",
        );
    }
    for (what, names) in &xdp {
        findings.warning(
            "neighbours",
            nodes_named(names),
            format!("somebody else's programs: {what}"),
            "what XDP takes or redirects never meets kubeveil: it can leave in plain",
            "on these nodes: bpftool net show    # ask its owner what it redirects; ip link set dev DEVICE xdp off",
        );
    }
    for (why, names) in grouped(probes, |probe| (!probe.unseen.is_empty()).then(|| some(&probe.unseen))) {
        findings.unknown(
            "neighbours",
            nodes_named(&names),
            why,
            "on these nodes: bpftool net show; ip -d link",
        );
    }
    if tc.is_empty() && xdp.is_empty() {
        findings.ok(
            "neighbours",
            "devices that lead to other nodes",
            "nobody else's programs are at tc or XDP",
        );
    }
}

fn ports(probes: &BTreeMap<String, Probe>, findings: &mut Findings) {
    let before = findings.0.len();
    let told = |probe: &Probe, wanted: PortState| {
        let of = probe.ports.iter().filter(|port| port.state == wanted);
        let told: Vec<String> =
            of.map(|port| format!("UDP {} {}", port.port, port.by).trim_end().to_owned()).collect();
        (!told.is_empty()).then(|| told.join(", "))
    };
    for (what, names) in grouped(probes, |probe| told(probe, PortState::Taken)) {
        let by_wireguard = what.contains("WireGuard device");
        findings.failed(
            "ports",
            nodes_named(&names),
            format!("somebody else has {what}"),
            "kubeveil's tunnel can't listen there, and nothing is encrypted to or from the node",
            if by_wireguard {
                "on these nodes: wg show; wg set DEVICE listen-port OTHER"
            } else {
                "on these nodes: ss -ulpn 'sport >= 51871 and sport <= 51872'"
            },
        );
    }
    for (what, names) in grouped(probes, |probe| told(probe, PortState::Refused)) {
        findings.unknown(
            "ports",
            nodes_named(&names),
            format!("could not listen: {what}"),
            "kubectl get nodes -o wide    # is the InternalIP an address of the node's own?",
        );
    }
    if before == findings.0.len() {
        findings.ok(
            "ports",
            format!("all {} nodes that were looked at", probes.len()),
            "UDP 51871 and 51872 are free, or ours",
        );
    }
}

/// Who did not answer, though somebody listened there.
fn pairs(probes: &BTreeMap<String, Probe>, findings: &mut Findings) {
    let listens = |target: &Target| {
        let probe = probes.get(&target.node);
        probe.is_some_and(|probe| {
            probe.ports.iter().any(|p| p.port == target.port && p.state == PortState::Free)
        })
    };
    // By which of the two tunnels go now depends on how often keys were rotated; before an installation it will be the first.
    let is_idle = |node: &str, port: u16| {
        let of = probes.get(node).into_iter().flat_map(|probe| &probe.ports);
        let in_use = of.filter(|port| port.state == PortState::Ours).map(|port| port.port).next();
        in_use.map_or(port != FIRST_PORT, |in_use| in_use != port)
    };
    let mut silent: BTreeMap<(&str, u16, bool), Vec<String>> = BTreeMap::new();
    let mut more = false;
    for (name, probe) in probes {
        for target in probe.silent.iter().filter(|target| listens(target)) {
            let way = (target.node.as_str(), target.port, target.address.is_ipv4());
            silent.entry(way).or_default().push(name.clone());
        }
        more |= probe.silent.len() < usize::try_from(probe.unanswered).unwrap_or(usize::MAX);
    }
    for ((to, port, v4), from) in &silent {
        let family = if *v4 { "IPv4" } else { "IPv6" };
        findings.failed(
            "ports",
            format!("Node {to}"),
            format!("UDP {port} over {family} does not answer {}", nodes_named(from)),
            if is_idle(to, *port) {
                "the next rotation of keys does not get through between them"
            } else {
                "no tunnel comes about between them"
            },
            &format!("on {to}: nft list ruleset | grep {port}; iptables -A INPUT -p udp --dport 51871:51872 -j ACCEPT    # or the cloud's security group"),
        );
    }
    if more {
        findings.unknown(
            "ports",
            "further pairs",
            "more did not answer than a probe names",
            "kubeveil check --pre    # again, when those above are mended",
        );
    }
    let asked: u32 = probes.values().map(|probe| probe.asked).sum();
    if silent.is_empty() && !more && asked > 0 {
        findings.ok(
            "ports",
            "every pair of nodes",
            "what nobody uses of UDP 51871 and 51872 answers, in each family",
        );
    }
}

fn clocks(probes: &BTreeMap<String, Probe>, findings: &mut Findings) {
    let mut off: BTreeMap<&str, (i64, Vec<&str>)> = BTreeMap::new();
    for (name, probe) in probes {
        for clock in probe.clocks.iter().filter(|clock| clock.ahead.unsigned_abs() > CLOCK) {
            off.entry(&clock.node).or_insert((clock.ahead, Vec::new())).1.push(name);
        }
    }
    // Whose clock is wrong is seen differently by most others, and sees most others differently.
    let most = off.values().map(|(_, by)| by.len()).max().unwrap_or_default();
    let wrong: Vec<_> = off.iter().filter(|(_, (_, by))| by.len() == most).collect();
    for (node, (ahead, by)) in &wrong {
        let way = if *ahead > 0 { "ahead of" } else { "behind" };
        findings.warning(
            "clock",
            format!("Node {node}"),
            format!("its clock is {} s {way} that of {}", ahead.unsigned_abs() / 1000, nodes_named(by)),
            "the adoption's deadline comes at another time there; WireGuard refuses handshakes of a clock that is set back",
            &format!("on {node}: timedatectl set-ntp true && chronyc makestep"),
        );
    }
    if wrong.is_empty() && probes.values().any(|probe| probe.asked > probe.unanswered) {
        findings.ok("clock", "nodes that answer each other", "their clocks agree within 5 s");
    }
}
