//! README's table of what is encrypted, made from what the tests hold the kernel to: its answers are the matrix's
//! (`conditions::fate`, which `every_condition` and `lab-matrix` show to be true), and the scenarios that it names exist.

use kubeveil_abi::Mode;
use kubeveil_verdict::testing::conditions::{Fate, Kind, Tunnels, WAYS, fate};

/// A line of the table.
struct Line {
    traffic: &'static str,
    /// Ways of the matrix, by their names, and the kinds of packets on them.
    ways: &'static [&'static str],
    kinds: fn(Kind) -> bool,
    /// Both families, or IPv6 alone.
    v6_alone: bool,
    /// What there is to say besides.
    also: &'static str,
    /// Scenarios that show it too.
    scenarios: &'static [&'static str],
}

const fn line(traffic: &'static str, ways: &'static [&'static str], kinds: fn(Kind) -> bool) -> Line {
    Line { traffic, ways, kinds, v6_alone: false, also: "", scenarios: &[] }
}

impl Line {
    const fn also(mut self, also: &'static str) -> Self {
        self.also = also;
        self
    }

    const fn v6(mut self) -> Self {
        self.v6_alone = true;
        self
    }

    const fn shown(mut self, scenarios: &'static [&'static str]) -> Self {
        self.scenarios = scenarios;
        self
    }

    /// What becomes of it in `require`, in words.
    fn answer(&self) -> String {
        let mut fates = Vec::new();
        for name in self.ways {
            let way = WAYS.iter().find(|way| way.name == *name).unwrap_or_else(|| panic!("no way {name}"));
            for &kind in Kind::ALL.iter().filter(|kind| (self.kinds)(**kind)) {
                for is_v6 in [false, true].into_iter().filter(|v6| kind.is_of(*v6) && (*v6 || !self.v6_alone))
                {
                    let fate = |tunnels| fate(way, kind, is_v6, tunnels, Mode::Require);
                    fates.push((fate(Tunnels::Proven), fate(Tunnels::Unproven)));
                }
            }
        }
        fates.sort();
        fates.dedup();
        let words = match fates[..] {
            [(Fate::Encrypted, Fate::Dropped)] => "encrypted, or dropped",
            [(Fate::Encrypted, Fate::Encrypted)] => "taken, as it was encrypted",
            [(Fate::Dropped, Fate::Dropped)] => "dropped",
            [(Fate::Alone, Fate::Alone)] => "left alone",
            // Shown by scenarios alone.
            [] => "",
            _ => panic!("{}: not one answer but {fates:?}", self.traffic),
        };
        [words, self.also].concat()
    }
}

/// Whole, readable, and of a size that fits.
fn ordinary(kind: Kind) -> bool {
    !matches!(kind, Kind::TripleTagged | Kind::FalseVersion | Kind::NonIp | Kind::Undivided)
}

fn is_envelope(kind: Kind) -> bool {
    matches!(kind, Kind::Enveloped(_))
}

/// What the host sends that shows that it is the host's own.
fn host_own(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Udp | Kind::Tcp | Kind::Syn | Kind::Echo | Kind::Foreign | Kind::Options | Kind::Segments
    )
}

const SERVICES: &[&str] =
    &["services_and_host_processes_are_encrypted", "services_in_an_overlay_are_encrypted"];

const LINES: &[Line] = &[
    line(
        "pod to pod on another node, IPv4 and IPv6, any protocol, with options, extension headers or VLAN tags, fragments too",
        &["pod to pod", "pod to pod, overlay"],
        ordinary,
    )
    .shown(&["pods_of_all_nodes_talk_encrypted"]),
    line("pod to a Service whose endpoint is a pod on another node", &["pod to pod"], ordinary)
        .also(" (seen after DNAT)")
        .shown(SERVICES),
    line(
        "node (kubelet, any host process) to a pod on another node, directly or by a Service",
        &["host to pod", "host to pod, overlay"],
        ordinary,
    )
    .shown(SERVICES),
    line(
        "pod to another node's own address, or to a Service of a host process there, also where masquerading hides the pod; and the replies",
        &["pod to node", "masqueraded to node"],
        ordinary,
    )
    .also(", as long as that is an InternalIP of a Node that is known")
    .shown(SERVICES),
    line("from outside, by NodePort with SNAT, to a pod on another node: the leg between the nodes", &["masqueraded to pod"], ordinary)
        .shown(SERVICES),
    line(
        "any of these in an overlay's envelope (VXLAN on every port that a device of the node has, Geneve, IPIP, SIT, GRE, over IPv4 or IPv6)",
        &["host to node"],
        is_envelope,
    )
    .also(", the envelope as a whole; at devices like flannel's the packet is encrypted instead of being put into one")
    .shown(&["vxlan_is_replaced", "geneve_is_wrapped", "ipip_and_sit_are_wrapped", "ip6tnl_is_wrapped", "gre_is_wrapped"]),
    line(
        "an overlay's envelope with a packet for a pod of the cluster, to an address that is no node's",
        &["host to outside"],
        is_envelope,
    ),
    line("to a pod's address of the mesh's ranges that no node owns", &["pod to nobody's pod", "pod to nobody's pod, overlay"], ordinary),
    line(
        "pod or host to a pod on another node, by a device that kubeveil does not guard (a second cable, a VPN; also one that appeared while the daemon was dead)",
        &["unguarded: pod to pod", "unguarded: host to pod", "unguarded: pod to nobody's"],
        ordinary,
    )
    .also(" by the backstop (below)")
    .shown(&["a_device_that_nobody_guards_is_closed", "a_device_that_nobody_guards_is_closed_by_nftables"]),
    line("node to node (API server, kubelet, etcd, SSH)", &["host to node"], host_own)
        .also(", so that encryption can't cut a node off"),
    line(
        "node to node, what may be a pod's and can't be told apart: later fragments of UDP, ICMP errors about pods' packets",
        &["host to node"],
        |kind| matches!(kind, Kind::LaterFragment | Kind::Error | Kind::ErrorAboutEnvelope),
    )
    .shown(&["an_error_that_quotes_a_pods_packet_is_encrypted"]),
    line("node to node, any fragment of IPv6", &["host to node"], |kind| {
        matches!(kind, Kind::FirstFragment | Kind::LaterFragment | Kind::AtomicFragment)
    })
    .v6(),
    line("pod to pod on one node, directly or by a Service", &[], ordinary)
        .also("never leaves the node; left alone")
        .shown(SERVICES),
    line("pod to an address outside the cluster", &["pod to outside"], ordinary),
    line(
        "plain packets from the wire that claim a pod's address, or come from another node for a pod",
        &["wire: remote pod to pod", "wire: remote pod to node", "wire: node to pod", "wire: nobody's pod to pod", "wire: our own pod to us"],
        ordinary,
    )
    .shown(&["a_forged_source_from_the_wire_is_dropped"]),
    line("the same in an envelope, whoever sends it", &["wire: node to node", "wire: outside to pod"], is_envelope)
        .shown(&["an_envelope_forged_on_the_wire_is_dropped"]),
    line("an envelope out of a node's tunnel with a packet of another node's pod", &[], is_envelope)
        .also("dropped")
        .shown(&["a_node_cannot_speak_for_anothers_pods"]),
    line("a packet that does not fit into the tunnel: IPv6, or IPv4 with \"don't fragment\"", &["pod to pod", "pod to pod, overlay"], |kind| {
        kind == Kind::Undivided
    })
    .also(", and the sender told the size by ICMP, also through masquerading. TCP is clamped, so it fits")
    .shown(&["sizes_around_the_edge", "sizes_around_the_edge_over_ipv6", "a_masqueraded_sender_is_told"]),
    line("the same, IPv4 that may be fragmented", &["pod to pod"], |kind| kind == Kind::Divisible)
        .also(", and fragmented outside"),
    line(
        "what can't be read: more than two VLAN tags, another IP version than it says",
        &["pod to pod", "host to node", "pod to outside", "wire: outside to pod", "tunnel: pod to pod"],
        |kind| matches!(kind, Kind::TripleTagged | Kind::FalseVersion),
    ),
    line("what is no IP (ARP, LLDP)", &["host to node", "wire: node to node"], |kind| kind == Kind::NonIp)
        .also(": neighbours have to find each other, and the kernel forwards nothing but IP"),
];

fn table() -> String {
    let mut text = "| traffic | in mode `require` |\n|---|---|\n".to_owned();
    for line in LINES {
        text += &format!("| {} | {} |\n", line.traffic, line.answer());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Set to anything, it makes the test write what it finds missing.
    const WRITE: &str = "KUBEVEIL_WRITE";
    const BEGIN: &str = "<!-- this table is made by tests/src/readme.rs -->\n";
    const END: &str = "<!-- up to here -->\n";

    #[test]
    fn the_table_says_what_the_tests_show() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        let text = fs::read_to_string(&path).expect("README.md");
        let (before, rest) = text.split_once(BEGIN).expect("the table's beginning");
        let (found, after) = rest.split_once(END).expect("the table's end");
        let wanted = table();
        if std::env::var_os(WRITE).is_some() {
            fs::write(&path, [before, BEGIN, &wanted, END, after].concat()).expect("written");
        } else {
            assert!(
                found == wanted,
                "README's table is not what the tests show; with {WRITE}=1 this test mends it:\n{wanted}"
            );
        }
    }

    #[test]
    fn the_scenarios_exist() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/lab-scenarios");
        let files = fs::read_dir(folder).expect("the scenarios").map(|entry| entry.expect("an entry").path());
        let files = files.filter(|path| path.is_file());
        let all: String = files.map(|path| fs::read_to_string(path).expect("a file")).collect();
        for name in LINES.iter().flat_map(|line| line.scenarios) {
            assert!(all.contains(&format!("Scenario::new(\"{name}\"")), "no scenario {name}");
        }
    }
}
