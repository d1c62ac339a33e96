//! What happens to the near node's devices, and how it is undone.

use anyhow::Result;
use kubeveil_tests::address::{Family, Node};
use kubeveil_tests::lab::{WIRE, batch};
use kubeveil_tests::status::said_in;

use super::NEAR;
use crate::support::index;

const FAR: Node = Node(2);

pub(super) type Act = fn() -> Result<()>;

/// What happens to a node's devices, and what is true then.
pub(super) struct Change {
    pub(super) what: &'static str,
    pub(super) make: Act,
    /// Where it is not as it was already.
    pub(super) undo: Option<Act>,
    /// The devices that packets leave by afterwards.
    pub(super) guarded: &'static [&'static str],
    /// The network itself carries packets all the time: what is lost was dropped by us.
    pub(super) unbroken: bool,
    /// With nobody to find the device, the backstop holds; else the programs still stand at it.
    pub(super) is_new: bool,
    /// Another device, or the same without its programs, under the index of the one that was guarded: what has no
    /// eye for programs (the backstop's nftables form) takes it for guarded (SECURITY.md).
    pub(super) old_index: bool,
}

impl Change {
    const fn new(what: &'static str, make: Act, guarded: &'static [&'static str]) -> Self {
        Self { what, make, undo: None, guarded, unbroken: false, is_new: true, old_index: false }
    }

    const fn undone_by(mut self, undo: Act) -> Self {
        self.undo = Some(undo);
        self
    }

    const fn unbroken(mut self) -> Self {
        self.unbroken = true;
        self
    }

    const fn with_its_programs(mut self) -> Self {
        self.is_new = false;
        self
    }

    const fn old_index(mut self) -> Self {
        self.old_index = true;
        self
    }
}

pub(super) const CHANGES: [Change; 9] = [
    Change::new("a bond over eth0", bond, &["bond0"]).undone_by(unbond),
    Change::new("a bridge over eth0", bridge, &["br0"]).undone_by(unbridge),
    Change::new("a VLAN on eth0", vlan, &["eth0", "eth0.100"]).undone_by(unvlan).unbroken(),
    Change::new("a macvlan on eth0", macvlan, &["eth0", "mv0"]).undone_by(unmacvlan).unbroken(),
    Change::new("a second card, by rules for pods", card, &["eth0", "eth1"]).undone_by(uncard).unbroken(),
    Change::new("eth0 under another name", || rename("eth0", "uplink0"), &["uplink0"])
        .undone_by(|| rename("uplink0", "eth0"))
        .with_its_programs(),
    Change::new("eth0 away in another namespace and back", away, &["eth0"]).with_its_programs().old_index(),
    Change::new("eth0 made anew", || anew(None), &["eth0"]),
    Change::new("eth0 made anew with the same index", || anew(Some(index(NEAR, "eth0")?)), &["eth0"])
        .old_index(),
];

fn near(lines: &[String]) -> Result<()> {
    batch(Some(&NEAR.name()), lines)
}

fn words(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// The node's addresses and its routes to the other one's pods, at a device.
fn home(device: &str) -> Vec<String> {
    let of = |family| {
        let (length, nodad) = if family == Family::V6 { (64, " nodad") } else { (24, "") };
        let via = FAR.address(family);
        [
            format!("address add {}/{length} dev {device}{nodad}", NEAR.address(family)),
            format!("route replace {} via {via} dev {device}", FAR.pod_cidr(family)),
        ]
    };
    [Family::V4, Family::V6].map(of).concat()
}

fn bond() -> Result<()> {
    let lines = [
        "link add bond0 type bond mode active-backup miimon 50",
        "link set dev eth0 down",
        "address flush dev eth0",
        "link set dev eth0 master bond0",
        "link set dev bond0 up",
    ];
    near(&[words(&lines), home("bond0")].concat())
}

fn unbond() -> Result<()> {
    let lines = ["link set dev eth0 nomaster", "link del dev bond0", "link set dev eth0 up"];
    near(&[words(&lines), home("eth0")].concat())
}

fn bridge() -> Result<()> {
    let lines = [
        "link add br0 type bridge stp_state 0 mcast_snooping 0",
        "address flush dev eth0 scope global",
        "link set dev eth0 master br0",
        "link set dev br0 up",
    ];
    near(&[words(&lines), home("br0")].concat())
}

fn unbridge() -> Result<()> {
    near(&[words(&["link set dev eth0 nomaster", "link del dev br0"]), home("eth0")].concat())
}

/// Another network between the two nodes.
fn second(family: Family, node: Node) -> String {
    match family {
        Family::V4 => format!("198.51.100.{}", node.0),
        Family::V6 => format!("2001:db8:51::{}", node.0),
    }
}

fn second_address(word: &str, node: Node, device: &str) -> Vec<String> {
    let of = |family| {
        let (length, nodad) = if family == Family::V6 { (64, " nodad") } else { (24, "") };
        format!("address {word} {}/{length} dev {device}{nodad}", second(family, node))
    };
    [Family::V4, Family::V6].map(of).to_vec()
}

/// By the other network to the far node and to its pods: as the sender that it is known as.
fn second_routes(device: &str) -> Vec<String> {
    let of = |family| {
        let (length, via) = (if family == Family::V6 { 128 } else { 32 }, second(family, FAR));
        let (far, near) = (FAR.address(family), NEAR.address(family));
        [
            format!("route replace {} via {via} dev {device}", FAR.pod_cidr(family)),
            format!("route add {far}/{length} via {via} dev {device} src {near}"),
        ]
    };
    [Family::V4, Family::V6].map(of).concat()
}

/// To the far node's pods by eth0, as it was.
fn routes_back() -> Vec<String> {
    let of = |family| format!("route replace {} via {} dev eth0", FAR.pod_cidr(family), FAR.address(family));
    [Family::V4, Family::V6].map(of).to_vec()
}

const TAGGED: &str = "link add link eth0 name eth0.100 type vlan id 100";

fn vlan() -> Result<()> {
    let lay = |node| [words(&[TAGGED, "link set dev eth0.100 up"]), second_address("add", node, "eth0.100")];
    batch(Some(&FAR.name()), &lay(FAR).concat())?;
    near(&[lay(NEAR).concat(), second_routes("eth0.100")].concat())
}

fn unvlan() -> Result<()> {
    let gone = words(&["link del dev eth0.100"]);
    near(&[routes_back(), gone.clone()].concat())?;
    batch(Some(&FAR.name()), &gone)
}

fn macvlan() -> Result<()> {
    batch(Some(&FAR.name()), &second_address("add", FAR, "eth0"))?;
    let lines = ["link add link eth0 name mv0 type macvlan mode bridge", "link set dev mv0 up"];
    near(&[words(&lines), second_address("add", NEAR, "mv0"), second_routes("mv0")].concat())
}

fn unmacvlan() -> Result<()> {
    near(&[routes_back(), words(&["link del dev mv0"])].concat())?;
    batch(Some(&FAR.name()), &second_address("del", FAR, "eth0"))
}

/// Everything of pods, and nothing else, leaves by it.
fn card() -> Result<()> {
    batch(Some(&FAR.name()), &second_address("add", FAR, "eth0"))?;
    batch(None, &[format!("link add eth1 netns {} type veth peer name port-9 netns {WIRE}", NEAR.name())])?;
    batch(Some(WIRE), &words(&["link set dev port-9 master wire0 up"]))?;
    let by_table = |family| {
        let option = if family == Family::V6 { "-6 " } else { "" };
        let default = if family == Family::V6 { "::/0" } else { "0.0.0.0/0" };
        [
            format!("route add {default} via {} dev eth1 table 100", second(family, FAR)),
            format!("{option}rule add iif cni0 lookup 100 priority 100"),
        ]
    };
    let up = words(&["link set dev eth1 gso_max_segs 1 up"]);
    near(&[up, second_address("add", NEAR, "eth1")].concat())?;
    for family in [Family::V4, Family::V6] {
        let [route, rule] = by_table(family);
        near(&[route])?;
        said_in(NEAR, "ip", &rule.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

fn uncard() -> Result<()> {
    for option in ["-4", "-6"] {
        said_in(NEAR, "ip", &[option, "rule", "del", "priority", "100"])?;
    }
    near(&words(&["link del dev eth1"]))?;
    batch(Some(&FAR.name()), &second_address("del", FAR, "eth0"))
}

/// While it is up, where the kernel allows that (6.2 and later).
fn rename(from: &str, to: &str) -> Result<()> {
    if near(&[format!("link set dev {from} name {to}")]).is_ok() {
        return Ok(());
    }
    let lines = [
        format!("address flush dev {from} scope global"),
        format!("link set dev {from} down"),
        format!("link set dev {from} name {to}"),
        format!("link set dev {to} up"),
    ];
    near(&[lines.to_vec(), home(to)].concat())
}

/// It keeps its index, which nobody else has there.
fn away() -> Result<()> {
    const AWAY: &str = "away";
    batch(None, &[format!("netns add {AWAY}")])?;
    near(&[format!("link set dev eth0 netns {AWAY}")])?;
    batch(Some(AWAY), &[format!("link set dev eth0 netns {}", NEAR.name())])?;
    batch(None, &[format!("netns del {AWAY}")])?;
    near(&[words(&["link set dev eth0 gso_max_segs 1 up"]), home("eth0")].concat())
}

fn anew(index: Option<u32>) -> Result<()> {
    near(&words(&["link del dev eth0"]))?;
    let index = index.map_or_else(String::new, |index| format!(" index {index}"));
    let pair = format!("link add eth0 netns {}{index} type veth peer name port-1 netns {WIRE}", NEAR.name());
    batch(None, &[pair])?;
    batch(Some(WIRE), &words(&["link set dev port-1 master wire0 up"]))?;
    let up = format!("link set dev eth0 address {} gso_max_segs 1 up", NEAR.mac());
    near(&[vec![up], home("eth0")].concat())
}
