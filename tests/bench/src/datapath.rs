//! Packets a second from a pod to a stand-in for the tunnel's device: by a plain route into it, and by the route to
//! another node, where `steer` takes them and redirects them into it.
//!
//! ```text
//!  a pod's namespace          the node's
//!   pod0 ---- veth ---- cni0 --+-- route to 10.244.3.0/24 ------------------> sink0    plain
//!                              +-- default route -> new0, egress: steer ----> sink0    steered
//!                              +-- route by bare0, egress: a bare redirect -> sink0    bare
//! ```
//! Nothing reads from `sink0` and its room is used up, so that each packet goes all the way into its driver and is
//! freed there. It has no link header, no queue, and takes large packets whole, as WireGuard's device does: what it
//! costs to encrypt is not there to hide what it costs to steer. The steered packet has one device more on its way, the
//! one that it is taken from. All runs on one CPU, that of the sending process, whose own work is in all. The bare
//! redirect, a program of four instructions, tells how much of the difference is the kernel's.

mod pod;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::programs::TcAttachType;
use kubeveil_abi::{Config, DeviceKind, FWMARK, Mode, PeerValue};
use kubeveil_core::{action::Action, observed::Program};
use kubeveil_tests_bpf::cell::{self, Cell, run};
use tun_rs::{DeviceBuilder, SyncDevice};

use self::pod::{Load, Pod};
use crate::{
    raw,
    row::{Row, Series},
    say,
};

/// The stand-in.
const SINK: &str = "sink0";
/// Bytes that fit into the tunnel, and so into the stand-in.
const MTU: u32 = 1440;
/// Where packets go: a pod that the stand-in is the route to, and one that `steer` takes there. In each family.
const PLAIN: [&str; 2] = ["10.244.3.10", "fd00:244:3::10"];
const STEERED: [&str; 2] = cell::REMOTE;
const BARE: [&str; 2] = ["10.244.4.10", "fd00:244:4::10"];
/// How long is sent at a time, and how often in a round: the best counts, for what disturbs only ever slows down.
const SLICE: Duration = Duration::from_millis(40);
const SLICES: usize = 8;

/// Which packets, and the bar.
const LOADS: [(&str, usize, Load, f64); 3] = [
    ("64 bytes, IPv4", 0, Load { payload: 64 - 28, segments: 1 }, 0.95),
    ("64 bytes, IPv6", 1, Load { payload: 64 - 48, segments: 1 }, 0.95),
    ("full size, GSO (40 of 1,440 bytes), IPv4", 0, Load { payload: 1440 - 28, segments: 40 }, 0.98),
];

/// Measures each load by all ways in turn.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    cell::within(move |cell| {
        let sink = lay(cell)?;
        let _bare = lay_bare(sink.if_index()?)?;
        let pod = Pod::start()?;
        LOADS.iter().map(|load| one(&pod, load, rounds)).collect()
    })
}

fn one(pod: &Pod, (name, family, load, bar): &(&str, usize, Load, f64), rounds: usize) -> Result<Row> {
    let mut rates = [const { Series::new() }; 3];
    for round in 1..=rounds {
        say(format!("datapath: {name}, round {round} of {rounds}"));
        let mut best = [0.0_f64; 3];
        for _ in 0..SLICES {
            for (best, way) in best.iter_mut().zip([PLAIN, STEERED, BARE]) {
                *best = best.max(rate(pod, way[*family], *load)?);
            }
        }
        rates.iter_mut().zip(best).for_each(|(series, best)| series.push(best));
    }
    let [plain, steered, bare] = &rates;
    let [a, b, c] = [plain, steered, bare].map(|rate| 1e9 / rate.median());
    let note = format!(
        "{a:.0} ns a packet by the plain route, {b:.0} ns through steer, {c:.0} ns through a redirect by a program that \
         looks at nothing"
    );
    let name = format!("packets a second through steer / plain route, {name}");
    Ok(Row::of(name, "ratio", &steered.over(plain)).at_least(*bar).note(note))
}

/// Packets a second that came to the stand-in while the pod sent.
fn rate(pod: &Pod, to: &str, load: Load) -> Result<f64> {
    let before = came()?;
    let start = Instant::now();
    let sent = pod.send(to, load, SLICE)?;
    let elapsed = start.elapsed();
    let came = came()? - before;
    // Another way than the one that is measured, or segmented on the way.
    ensure!(came.abs_diff(sent) * 100 <= sent, "{sent} packets were sent to {to}, {came} came to {SINK}");
    #[expect(clippy::cast_precision_loss, reason = "some millions of packets")]
    Ok((came * u64::from(load.segments)) as f64 / elapsed.as_secs_f64())
}

/// Packets that the kernel handed to the stand-in: those that it had room for, and all others.
fn came() -> Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{SINK}:")));
    // Receive: 8 columns; transmit: bytes, packets, errs, drop (kernel net/core/net-procfs.c).
    let columns: Vec<u64> =
        line.context(SINK)?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Ok(columns[9] + columns[11])
}

/// The network of the picture above; the device lives as long as what is returned.
fn lay(cell: &mut Cell) -> Result<SyncDevice> {
    let sink = DeviceBuilder::new().name(SINK).offload(true).build_sync().context("make a TUN device")?;
    run("tc", &["qdisc", "replace", "dev", SINK, "root", "noqueue"])?;
    let mtu = MTU.to_string();
    run("ip", &["link", "set", SINK, "mtu", &mtu, "txqueuelen", "1", "addrgenmode", "none", "up"])?;
    for (family, net) in [("-4", "10.244.3.0/24"), ("-6", "fd00:244:3::/64")] {
        run("ip", &[family, "route", "add", net, "dev", SINK])?;
    }
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/{path}"), "1").with_context(|| path.to_owned())?;
    }
    cell.load(Mode::Require)?;
    let config = Config { mode: Mode::Require as u32, mtu: MTU, fwmark: FWMARK, ..Config::default() };
    cell.run(Action::SetConfig(config))?;
    let links = cell.observe()?.links;
    let of = |name: &str| links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index);
    let (sink_index, underlay) = (of(SINK).context(SINK)?, of(cell::DEVICE).context(cell::DEVICE)?);
    cell.run(Action::PutDevice(sink_index, DeviceKind::Tunnel))?;
    cell.run(Action::PutDevice(underlay, DeviceKind::Underlay))?;
    cell.run(Action::SetSlot(0, sink_index))?;
    cell.run(Action::SetPeer(1, PeerValue::tunnel(0, 0)))?;
    cell.run(Action::Attach((Program::Steer, underlay)))?;
    cell.run(Action::Attach((Program::Guard, underlay)))?;
    // The last look settles the prefixes: from here on the programs keep what they look up.
    cell.observe()?;
    Ok(sink)
}

/// A device from which everything is redirected, by a program that looks at nothing.
fn lay_bare(sink: u32) -> Result<raw::Program> {
    run("ip", &["link", "add", "bare0", "type", "veth", "peer", "name", "bare0-far"])?;
    run("ip", &["link", "set", "bare0-far", "up"])?;
    run("ip", &["link", "set", "bare0", "up"])?;
    for (family, address, gateway, net) in [
        ("-4", "198.51.101.1/24", "198.51.101.2", "10.244.4.0/24"),
        ("-6", "2001:db8:2::1/64", "2001:db8:2::2", "fd00:244:4::/64"),
    ] {
        let nodad: &[&str] = if family == "-6" { &["nodad"] } else { &[] };
        run("ip", &[&[family, "addr", "add", address, "dev", "bare0"], nodad].concat())?;
        run("ip", &["neigh", "add", gateway, "lladdr", "02:00:00:00:00:02", "dev", "bare0"])?;
        run("ip", &[family, "route", "add", net, "via", gateway])?;
    }
    let mut program = raw::Program::load(&raw::redirect(sink))?;
    program.classifier()?.attach("bare0", TcAttachType::Egress)?;
    Ok(program)
}
