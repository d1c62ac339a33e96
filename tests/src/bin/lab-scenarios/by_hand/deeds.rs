//! The deeds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kubeveil_abi::{DeviceKind, Mode, PeerValue};
use kubeveil_linux::bpf::{Maps, Pins};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::batch;
use kubeveil_tests::namespace::sysctl;
use kubeveil_tests::stage::Stage;
use kubeveil_tests::status::said_in;

use crate::support::{DEVICE as TUNNEL, public_key};

/// What somebody does to a node.
pub(super) struct Deed {
    /// In a few words.
    pub(super) what: &'static str,
    /// To which node.
    pub(super) node: u8,
    /// Does it.
    pub(super) act: fn(&Stage, Node) -> Result<()>,
    /// What the node's log says of it, in a line that blames somebody; empty if nobody can know.
    pub(super) told: &'static str,
    /// What becomes of packets until it is put back.
    pub(super) meanwhile: Meanwhile,
    /// The daemon goes round at once: nobody tells it of the deed, and its regular look is seconds away.
    pub(super) stirs: bool,
    /// It can be done to programs that are attached in this form only.
    pub(super) form: Option<Form>,
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By links, from Linux 6.6 on.
    Links,
    /// As filters of a clsact qdisc.
    Filters,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// None is plain.
    Closed,
    /// Until it is noticed, some are.
    Open,
}

const fn closed(what: &'static str, act: fn(&Stage, Node) -> Result<()>, told: &'static str) -> Deed {
    Deed { what, node: 1, act, told, meanwhile: Meanwhile::Closed, stirs: false, form: None }
}

const fn opens(what: &'static str, act: fn(&Stage, Node) -> Result<()>, told: &'static str) -> Deed {
    Deed { meanwhile: Meanwhile::Open, ..closed(what, act, told) }
}

const fn at(node: u8, deed: Deed) -> Deed {
    Deed { node, ..deed }
}

const fn stirs(node: u8, deed: Deed) -> Deed {
    Deed { stirs: true, ..at(node, deed) }
}

const fn of_links(deed: Deed) -> Deed {
    Deed { form: Some(Form::Links), ..deed }
}

const fn of_filters(deed: Deed) -> Deed {
    Deed { form: Some(Form::Filters), ..deed }
}

fn ip(node: Node, line: &str) -> Result<()> {
    batch(Some(&node.name()), &[line.to_owned()])
}

fn conf(node: Node, family: &str, name: &str, value: &str) -> Result<()> {
    sysctl(&node.name(), &format!("net/{family}/conf/{TUNNEL}/{name}"), value)
}

/// The tunnel's device and its settings.
pub(super) const DEVICE: &[Deed] = &[
    closed("MTU", |_, node| ip(node, "link set dev kubeveil0 mtu 1300"), "set MTU"),
    closed(
        "address",
        |_, node| ip(node, "address del 169.254.86.86/32 dev kubeveil0"),
        "the address 169.254.86.86",
    ),
    closed("rp_filter", |_, node| conf(node, "ipv4", "rp_filter", "1"), "set sysctls"),
    at(
        2,
        closed(
            "forwarding",
            |_, node| ["ipv4", "ipv6"].iter().try_for_each(|family| conf(node, family, "forwarding", "0")),
            "set sysctls",
        ),
    ),
    closed("IPv6 switched off", |_, node| conf(node, "ipv6", "disable_ipv6", "1"), "set sysctls"),
    closed(
        "another name",
        |_, node| {
            // Before Linux 6.2 a device that is up keeps its name.
            let rename = "link set dev kubeveil0 name wg-foreign";
            let down = "link set dev kubeveil0 down";
            ip(node, rename).or_else(|_| batch(Some(&node.name()), &[down.to_owned(), rename.to_owned()]))
        },
        "it is put back",
    ),
    closed("set down", |_, node| ip(node, "link set dev kubeveil0 down"), " up"),
];

fn maps(stage: &Stage, node: Node) -> Result<Maps> {
    Ok(Maps::open(&Pins::new(&stage.lab.daemon(node).file("bpf/kubeveil")))?)
}

/// The index by which node 2 is known.
fn index_of_node_2(maps: &Maps) -> Result<u32> {
    Ok(maps.prefixes()?.get(&"10.244.2.0/24".parse()?).context("node-2's prefix")?.peer)
}

fn device(maps: &Maps, kind: DeviceKind) -> Result<u32> {
    let devices = maps.devices()?;
    devices.into_iter().find(|(_, is)| *is == kind).map(|(index, _)| index).context("a device of this kind")
}

/// Entries of the maps. (This hand tells the programs that prefixes changed, as the daemon does; without that, what
/// they looked up last would hold for longer.)
pub(super) const MAPS: &[Deed] = &[
    closed(
        "a node's prefixes deleted",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            maps.remove_prefix("10.244.2.0/24".parse()?)?;
            Ok(maps.remove_prefix("fd00:244:2::/64".parse()?)?)
        },
        "put prefix 10.244.2.0/24",
    ),
    opens(
        "every prefix deleted",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let all = maps.prefixes()?;
            all.keys().try_for_each(|net| maps.remove_prefix(*net))?;
            Ok(())
        },
        "put prefix 10.244.0.0/16",
    ),
    closed(
        "another node's pods called our own",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let own = maps.prefixes()?.get(&"10.244.1.0/24".parse()?).copied().context("our own prefix")?;
            maps.put_prefix("10.244.2.0/24".parse()?, own)?;
            Ok(maps.put_prefix("fd00:244:2::/64".parse()?, own)?)
        },
        "put prefix 10.244.2.0/24",
    ),
    closed(
        "a peer without its tunnel",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let index = index_of_node_2(&maps)?;
            maps.set_peer(index, PeerValue::NO_TUNNEL);
            Ok(())
        },
        "set peer",
    ),
    opens(
        "a peer that may be spoken to in plain",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let index = index_of_node_2(&maps)?;
            maps.set_peer(index, PeerValue::adopting(u32::MAX));
            Ok(())
        },
        "set peer",
    ),
    closed("a slot without a device", |stage, node| Ok(maps(stage, node)?.set_slot(0, 0)?), "point slot 0"),
    closed(
        "a slot that leads to eth0",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let eth0 = device(&maps, DeviceKind::Underlay)?;
            Ok(maps.set_slot(0, eth0)?)
        },
        "point slot 0",
    ),
    closed(
        "the tunnel's device unknown",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let tunnel = device(&maps, DeviceKind::Tunnel)?;
            Ok(maps.remove_device(tunnel)?)
        },
        "put device",
    ),
    closed(
        "eth0 unknown",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let eth0 = device(&maps, DeviceKind::Underlay)?;
            Ok(maps.remove_device(eth0)?)
        },
        "put device",
    ),
    opens(
        "the mode",
        |stage, node| {
            let mut maps = maps(stage, node)?;
            let mut config = maps.config()?;
            config.mode = Mode::Observe as u32;
            Ok(maps.set_config(config)?)
        },
        "set the configuration",
    ),
];

fn links(stage: &Stage, node: Node, program: &str, act: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let folder = pins(stage, node)?.join("links");
    // Where programs are attached as filters, there may be none.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(program)) {
            act(&path)?;
        }
    }
    Ok(())
}

/// The folder of this ABI's version.
fn pins(stage: &Stage, node: Node) -> Result<std::path::PathBuf> {
    let base = stage.lab.daemon(node).file("bpf/kubeveil");
    let first = fs::read_dir(&base)?.next().context("a folder of pins")?;
    Ok(first?.path())
}

fn detach(path: &Path) -> Result<()> {
    let path = path.display().to_string();
    said_in(Node(1), "bpftool", &["link", "detach", "pinned", &path]).map(drop)
}

fn remove(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { remove(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(fs::remove_dir(folder)?)
}

/// `tc`, on the qdisc that holds the filters of eth0 or of the tunnel's device.
fn tc(node: Node, line: &str) -> Result<()> {
    said_in(node, "tc", &line.split(' ').collect::<Vec<_>>()).map(drop)
}

/// Programs, what attaches them, and what pins them.
pub(super) const PROGRAMS: &[Deed] = &[
    // Packets to pods are the backstop's then, whose program sees that none of ours stands there any more.
    of_links(closed("steer's link detached", |s, node| links(s, node, "steer", detach), "attach steer")),
    of_links(closed("guard's link detached", |s, node| links(s, node, "guard", detach), "attach guard")),
    of_links(closed(
        "deliver's link detached",
        |s, node| links(s, node, "deliver", detach),
        "attach deliver",
    )),
    of_filters(opens(
        "clsact of eth0 deleted",
        |_, node| tc(node, "qdisc del dev eth0 clsact"),
        "attach steer",
    )),
    of_filters(opens(
        "steer's filter deleted",
        |_, node| tc(node, "filter del dev eth0 egress"),
        "attach steer",
    )),
    of_filters(closed(
        "clsact of the tunnel's device deleted",
        |_, node| tc(node, "qdisc del dev kubeveil0 clsact"),
        "attach deliver",
    )),
    closed("every pin removed", |stage, node| remove(&pins(stage, node)?), "pin again"),
];

/// What is done again and again to see whether anything grows.
pub(super) const OFTEN: &[fn(&Stage, Node) -> Result<()>] =
    &[|stage, node| links(stage, node, "", detach), |stage, node| remove(&pins(stage, node)?)];

fn wg(node: Node, arguments: &[&str]) -> Result<()> {
    said_in(node, "wg", &[&["set", TUNNEL], arguments].concat()).map(drop)
}

/// What stock `wg` changes. Nobody tells of it, so by itself it would take until the daemon's next way round.
pub(super) const WIREGUARD: &[Deed] = &[
    stirs(
        1,
        closed(
            "a peer's AllowedIPs given to another peer",
            |stage, node| {
                let thief = public_key(stage, Node(3))?;
                wg(node, &["peer", &thief, "allowed-ips", "10.244.2.0/24,fd00:244:2::/64"])
            },
            "give peer",
        ),
    ),
    stirs(
        2,
        closed(
            "another private key",
            |stage, node| {
                let file = stage.lab.folder().join("foreign.key");
                fs::write(&file, said_in(node, "wg", &["genkey"])?)?;
                wg(node, &["private-key", &file.display().to_string()])
            },
            "configure kubeveil0",
        ),
    ),
    stirs(
        3,
        closed(
            "a peer removed, another port and another mark",
            |stage, node| {
                let peer = public_key(stage, Node(1))?;
                wg(node, &["listen-port", "40000", "fwmark", "0", "peer", &peer, "remove"])
            },
            "configure kubeveil0",
        ),
    ),
    // The peer's own packets correct it, as when it roams.
    closed(
        "a peer's endpoint",
        |stage, node| {
            let peer = public_key(stage, Node(2))?;
            wg(node, &["peer", &peer, "endpoint", "192.0.2.77:9"])
        },
        "",
    ),
];

/// The daemon's own files.
pub(super) const FILES: &[Deed] = &[
    stirs(
        1,
        closed(
            "known.json removed",
            |stage, node| Ok(fs::remove_file(stage.lab.daemon(node).file("state/known.json"))?),
            "known.json",
        ),
    ),
    stirs(
        2,
        closed(
            "known.json cut off",
            |stage, node| Ok(fs::write(stage.lab.daemon(node).file("state/known.json"), "{\"version\":1,")?),
            "known.json",
        ),
    ),
    closed(
        "announcement removed",
        |stage, node| Ok(fs::remove_file(stage.manifest(&format!("announcements/{}.yaml", node.name())))?),
        "",
    ),
    stirs(
        2,
        closed(
            "announcement garbled",
            |stage, node| {
                Ok(fs::write(stage.manifest(&format!("announcements/{}.yaml", node.name())), "nothing: [")?)
            },
            "",
        ),
    ),
];
