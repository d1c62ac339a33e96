//! What lies between two nodes: the devices of the matrix.

use anyhow::{Context, Result};
use kubeveil_tests::address::{Families, Family, Node, pod_range};
use kubeveil_tests::lab::{Mode, Overlay, Spec, batch, nft};
use kubeveil_tests::stage::Stage;
use kubeveil_verdict::testing::conditions::{Hook, Kind, Way};
use kubeveil_verdict::testing::{Envelope, Place};

/// From where packets are sent.
pub(crate) const NEAR: Node = Node(1);
/// To whom.
pub(crate) const FAR: Node = Node(2);
/// A cable that nobody guards.
pub(crate) const CABLE: &str = "new0";
/// The nodes' VLAN: the number that a [`Build`](kubeveil_verdict::testing::Build)'s tags bear.
const VLAN: &str = "eth0.7";
/// A device without a link header.
const HEADERLESS: &str = "up0";

/// What lies between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// Their network cards, and routes.
    Plain,
    /// The same, where the node translates the addresses of one of its pods.
    Masquerading,
    /// A VLAN on their network cards.
    Vlan,
    /// A device without a link header, by which the nodes reach each other.
    Headerless,
    /// An overlay.
    Over(Overlay),
    /// A second cable, by which pods are routed and which is not guarded.
    Unguarded,
}

impl Ground {
    pub(crate) const ALL: [Self; 9] = [
        Self::Plain,
        Self::Masquerading,
        Self::Vlan,
        Self::Headerless,
        Self::Over(Overlay::Vxlan),
        Self::Over(Overlay::Geneve),
        Self::Over(Overlay::Ipip),
        Self::Over(Overlay::Gre),
        Self::Unguarded,
    ];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Masquerading => "masquerading".to_owned(),
            Self::Vlan => "vlan".to_owned(),
            Self::Headerless => "headerless".to_owned(),
            Self::Over(overlay) => overlay.to_string(),
            Self::Unguarded => "unguarded".to_owned(),
        }
    }

    pub(crate) fn spec(self) -> Spec {
        let overlay = if let Self::Over(overlay) = self { overlay } else { Overlay::None };
        Spec { nodes: 2, mode: Mode::Require, families: Families::Dual, overlay }
    }

    /// Which ways it shows.
    pub(crate) fn has(self, way: &Way) -> bool {
        let is_masqueraded =
            way.hook == Hook::Underlay && way.ingress_ifindex != 0 && way.from == Place::LocalNode;
        let is_sent_here = matches!(way.from, Place::LocalPod | Place::LocalNode);
        match self {
            Self::Masquerading => is_masqueraded,
            Self::Unguarded => way.hook == Hook::Unguarded,
            Self::Plain | Self::Vlan | Self::Headerless | Self::Over(_) => match way.hook {
                Hook::Underlay => is_sent_here && !is_masqueraded,
                // What comes by the cable there is none of the device's.
                Hook::Wire => self != Self::Headerless,
                Hook::Overlay | Hook::Tunnel | Hook::Unguarded => false,
            },
        }
    }

    /// Why there is nothing to be seen of such a packet here, whatever we do.
    pub(crate) fn hidden(self, way: &Way, kind: Kind) -> Option<&'static str> {
        use Kind::{
            Divisible, DoubleTagged, FalseVersion, FirstFragment, LaterFragment, NonIp, ProviderTagged,
            Segments, Tagged, TripleTagged, Undivided,
        };
        let is_from_wire = way.hook == Hook::Wire;
        match kind {
            Segments => Some("a raw socket sends no such packets"),
            Tagged | DoubleTagged | ProviderTagged | TripleTagged if !is_from_wire => {
                Some("a bridge has no use for a pod's own tags")
            }
            // Here a tag is the VLAN's own.
            DoubleTagged | ProviderTagged | TripleTagged if self == Self::Vlan => Some("no such VLAN"),
            FalseVersion | NonIp if !is_from_wire => Some("the kernel routes no such packets"),
            Divisible | Undivided if matches!(self, Self::Over(_) | Self::Headerless) => {
                Some("the device itself is smaller than that")
            }
            Divisible if way.ingress_ifindex == 0 => Some("a raw socket does not cut its packets"),
            Divisible | Undivided if is_from_wire => None,
            FirstFragment | LaterFragment if self == Self::Masquerading => {
                Some("address translation waits for the other fragments")
            }
            Kind::Foreign | Kind::Enveloped(Envelope::Gre(_) | Envelope::Gretap)
                if self == Self::Masquerading =>
            {
                Some("address translation does not take such packets as they are")
            }
            _ => None,
        }
    }

    /// Lays what the lab has not.
    pub(crate) fn lay(self, stage: &Stage) -> Result<()> {
        // What is for nobody's pod leaves, too; what is outside ends at the far node, without an answer.
        let by = |family| format!("route add default via {} dev eth0", FAR.address(family));
        batch(Some(&NEAR.name()), &Families::Dual.map(by))?;
        let sink = |family| format!("route add blackhole {}", outside(family));
        batch(Some(&FAR.name()), &Families::Dual.map(sink))?;
        match self {
            Self::Plain | Self::Over(_) => Ok(()),
            Self::Masquerading => masquerade(),
            Self::Vlan => stage.lab.nodes().try_for_each(|node| move_to(node, VLAN, &vlan())),
            Self::Headerless => {
                stage.lab.nodes().try_for_each(|node| move_to(node, HEADERLESS, &headerless(node)))
            }
            Self::Unguarded => lay_cable(),
        }
    }
}

/// The near node's second pod goes by the node's address.
fn masquerade() -> Result<()> {
    let rules = "add table inet lab
        add chain inet lab post { type nat hook postrouting priority srcnat; }
        add rule inet lab post ip saddr 10.244.1.11 masquerade
        add rule inet lab post ip6 saddr fd00:244:1::11 masquerade";
    nft(&NEAR.name(), rules).context("masquerade a pod")
}

fn vlan() -> Vec<String> {
    vec![format!("link add link eth0 name {VLAN} type vlan id 7")]
}

/// A tunnel of somebody else's between the nodes' cards: to the kernel a device like a mobile link's, or a VPN's.
fn headerless(node: Node) -> Vec<String> {
    let other = if node == NEAR { FAR } else { NEAR };
    let [own, far] = [node, other].map(|node| format!("198.51.100.{}", node.0));
    vec![
        format!("address add {own}/24 dev eth0"),
        format!("link add {HEADERLESS} type gre local {own} remote {far} ttl 64"),
    ]
}

/// The node's addresses and routes go to `device`, which `lines` make.
fn move_to(node: Node, device: &str, lines: &[String]) -> Result<()> {
    let other = if node == NEAR { FAR } else { NEAR };
    let mut lines = lines.to_vec();
    lines.push(format!("link set dev {device} up"));
    for &family in Families::Dual.all() {
        let (length, nodad) = if family == Family::V6 { (64, " nodad") } else { (24, "") };
        let (own, far) = (node.address(family), other.address(family));
        lines.push(format!("address del {own}/{length} dev eth0"));
        lines.push(format!("address add {own}/{length} dev {device}{nodad}"));
        lines.push(format!("route replace {} via {far} dev {device}", other.pod_cidr(family)));
        if node == NEAR {
            lines.push(format!("route replace default via {far} dev {device}"));
        }
    }
    batch(Some(&node.name()), &lines)
}

/// By it the near node reaches all pods, and what is outside.
fn lay_cable() -> Result<()> {
    let (near, far) = (NEAR.name(), FAR.name());
    batch(None, &[format!("link add {CABLE} netns {near} type veth peer name {CABLE} netns {far}")])?;
    let ends = [["198.51.100.1/24", "2001:db8:51::1/64"], ["198.51.100.2/24", "2001:db8:51::2/64"]];
    for (name, [v4, v6]) in [&near, &far].into_iter().zip(ends) {
        let lines = [
            format!("link set dev {CABLE} up"),
            format!("address add {v4} dev {CABLE}"),
            format!("address add {v6} dev {CABLE} nodad"),
        ];
        batch(Some(name), &lines)?;
    }
    let mut lines = Vec::new();
    for (family, by) in [(Family::V4, "198.51.100.2"), (Family::V6, "2001:db8:51::2")] {
        for to in [FAR.pod_cidr(family).as_str(), pod_range(family), outside(family)] {
            lines.push(format!("route replace {to} via {by} dev {CABLE}"));
        }
    }
    batch(Some(&near), &lines)
}

/// As [`Place::Outside`] has it. No default route: what has one is guarded.
const fn outside(family: Family) -> &'static str {
    match family {
        Family::V4 => "203.0.113.0/24",
        Family::V6 => "2001:db8:ffff::/64",
    }
}
