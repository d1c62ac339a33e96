//! A device that nobody guards: a second cable between two nodes, by which one of them routes to the other's pods.
//!
//! ```text
//!  pod-1a       node-1 --eth0-- wire0 --eth0-- node-2       pod-2a
//!    +--- cni0 ---+ +-- new0 ------------- new0 --+ +--- cni0 ---+
//!                   198.51.100.1      198.51.100.2
//! ```

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Family, Node};
use kubeveil_tests::analysis::Census;
use kubeveil_tests::capture::{Capture, Tap};
use kubeveil_tests::lab::{READY, batch};
use kubeveil_tests::namespace;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, conclusive, encrypted, none_arrived, none_lost, none_plain, pod};
use kubeveil_tests::status::said_in;
use kubeveil_tests::traffic::{Load, Tally, flows};

use crate::Scenario;
use crate::support::other_build;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("a_device_that_nobody_guards_is_closed", by_program),
    Scenario::new("a_device_that_nobody_guards_is_closed_by_nftables", by_nftables),
    Scenario::new("the_backstop_is_upgraded_under_traffic", upgrade),
    Scenario::new("a_flushed_backstop_of_nftables_is_raised_again", flush).nodes(2),
    Scenario::new("prefer_and_observe_count_at_a_new_device", modes).nodes(2),
];

/// Who routes by the new device, and to whose pods.
const NEAR: Node = Node(1);
const FAR: Node = Node(2);
const CABLE: &str = "new0";
/// Packets of each kind, of both families together.
const PACKETS: u64 = 40;
/// Longer than the daemon's regular look at everything.
const RESYNC: Duration = Duration::from_secs(25);

/// Both ends of the cable.
fn ends(family: Family) -> [IpAddr; 2] {
    match family {
        Family::V4 => [[198, 51, 100, 1].into(), [198, 51, 100, 2].into()],
        Family::V6 => [1, 2].map(|n| [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, n].into()),
    }
}

/// A place outside of the cluster, which is at the far node.
fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => [203, 0, 113, 7].into(),
        Family::V6 => [0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7].into(),
    }
}

/// The second cable, and what is seen on it.
struct Cable {
    capture: Capture,
}

impl Cable {
    /// Lays it, with routes to the far node's pods, and shows that its capture sees plaintext.
    fn lay(stage: &mut Stage) -> Result<Self> {
        let pair = format!(
            "link add {CABLE} netns {} type veth peer name {CABLE} netns {}",
            NEAR.name(),
            FAR.name()
        );
        batch(None, &[pair])?;
        for (node, end) in [(NEAR, 0), (FAR, 1)] {
            let mut lines = vec![format!("link set dev {CABLE} gso_max_segs 1 up")];
            for &family in stage.lab.spec().families.all() {
                let (length, nodad) = if family == Family::V6 { (64, " nodad") } else { (24, "") };
                lines.push(format!("address add {}/{length} dev {CABLE}{nodad}", ends(family)[end]));
                if node == NEAR {
                    let via = ends(family)[1];
                    lines.push(format!("route add {} via {via} dev {CABLE}", outside(family)));
                    lines.push(format!("route replace {} via {via} dev {CABLE}", FAR.pod_cidr(family)));
                } else {
                    lines.push(format!("address add {} dev lo", outside(family)));
                }
            }
            batch(Some(&node.name()), &lines)?;
        }
        let tap = Tap { namespace: "node-2", device: CABLE, ends: stage.lab.spec().families.first(ends) };
        let capture = Capture::start_on(&stage.lab, tap, &stage.lab.folder().join("cable.pcap"))?;
        let mut cable = Self { capture };
        let (tally, census) = cable.send(stage, stage.load("1a", "2a", 200))?;
        none_lost(&tally).context("the control on the new cable, with nothing in force")?;
        ensure!(census.markers >= tally.sent, "the capture on the new cable misses packets: {census}");
        Ok(cable)
    }

    /// Sends; what came of it, and what crossed the cable meanwhile.
    fn send(&mut self, stage: &mut Stage, load: Load) -> Result<(Tally, Census)> {
        self.capture.phase()?;
        let (tally, _) = stage.send(load, PACKETS)?;
        Ok((tally, self.capture.phase()?))
    }
}

/// Packets that the node's backstop has dropped for this reason.
fn dropped(stage: &Stage, reason: &str) -> Result<u64> {
    let metrics = stage.metrics(NEAR)?;
    Ok(metrics.count("kubeveil_drops_total", &[("direction", "backstop"), ("reason", reason)]))
}

fn form(stage: &Stage, node: Node) -> Result<String> {
    let status = stage.status(node)?;
    Ok(status["backstop"]["form"].as_str().context("status.backstop.form")?.to_owned())
}

fn arguments(form: &str, more: &[&str]) -> Vec<String> {
    [&["--backstop", form], more].concat().into_iter().map(str::to_owned).collect()
}

/// What the daemon should find that this kernel can have: netfilter programs came with 6.4.
pub(crate) fn best() -> Result<&'static str> {
    let release = kubeveil_linux::preflight::kernel_release();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().context(release.clone())?, numbers.next().unwrap_or(0));
    Ok(if version >= (6, 4) { "bpf" } else { "nftables" })
}

/// All daemons, with this form of the backstop.
fn start(stage: &mut Stage, form: &str, shown: &str) -> Result<()> {
    for node in stage.lab.nodes() {
        stage.lab.daemon(node).spawn(&arguments(form, &[]))?;
    }
    stage.settle()?;
    for node in stage.lab.nodes() {
        let found = self::form(stage, node)?;
        ensure!(found == shown, "{}: the backstop is {found}, not {shown}", node.name());
    }
    Ok(())
}

/// The host itself sends to a pod of the far node; how many packets it was told are not permitted.
fn sent_by_host(stage: &Stage) -> Result<u64> {
    let mut refused = 0;
    for &family in stage.lab.spec().families.all() {
        let any: IpAddr = if family == Family::V4 { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = namespace::within(&NEAR.name(), || Ok(UdpSocket::bind((any, 0))?))?;
        for _ in 0..PACKETS / 2 {
            match socket.send_to(kubeveil_tests::analysis::MARKER, (pod("2a").address(family), 9)) {
                Err(e) if e.kind() == ErrorKind::PermissionDenied => refused += 1,
                other => drop(other.context("send from the host")?),
            }
        }
    }
    Ok(refused)
}

/// A pod sends to a place outside of the cluster.
fn sent_outside(stage: &Stage) -> Result<u64> {
    for &family in stage.lab.spec().families.all() {
        let socket = namespace::within("pod-1a", || Ok(UdpSocket::bind((pod("1a").address(family), 0))?))?;
        for _ in 0..PACKETS / 2 {
            socket.send_to(kubeveil_tests::analysis::MARKER, (outside(family), 9)).context("send outside")?;
        }
    }
    Ok(PACKETS)
}

fn by_program(stage: &mut Stage) -> Result<()> {
    hold(stage, "auto", best()?)
}

fn by_nftables(stage: &mut Stage) -> Result<()> {
    hold(stage, "nftables", "nftables")
}

fn hold(stage: &mut Stage, wanted: &str, shown: &str) -> Result<()> {
    let mut cable = Cable::lay(stage)?;
    start(stage, wanted, shown)?;
    let daemon = stage.lab.daemon(NEAR);
    let before = dropped(stage, "unguarded_device")?;
    daemon.kill()?;
    if shown == "bpf" {
        said_in(NEAR, "nft", &["flush", "ruleset"])?;
    }
    // Forwarded, and the host's own.
    let (tally, census) = cable.send(stage, stage.load("1a", "2a", 200))?;
    none_arrived(&tally)?;
    none_plain(&census).context("on the new cable, from a pod")?;
    let refused = sent_by_host(stage)?;
    ensure!(refused == PACKETS, "{refused} of {PACKETS} packets of the host were refused");
    none_plain(&cable.capture.phase()?).context("on the new cable, from the host")?;
    let outside = sent_outside(stage)?;
    let census = cable.capture.phase()?;
    ensure!(census.markers == outside, "{} of {outside} packets to elsewhere pass: {census}", census.markers);
    // What the guarded device carries is not its business.
    let (others, on_wire) = stage.send(stage.load("1b", "3a", 200), PACKETS)?;
    encrypted(&others, &on_wire).context("by the guarded device")?;

    daemon.spawn(&arguments(wanted, &[]))?;
    daemon.wait_ready(READY)?;
    let counted = dropped(stage, "unguarded_device")? - before;
    let sent = tally.sent + refused;
    ensure!(counted == sent, "{counted} drops are counted of {sent}");
    from_tunnel(stage, &mut cable)?;

    // Now the daemon guards it, and what goes that way goes into the tunnel.
    daemon.stop()?;
    daemon.spawn(&arguments(wanted, &["--underlay", "eth0", "--underlay", CABLE]))?;
    daemon.wait_ready(READY)?;
    let before = stage.metrics(NEAR)?.count("kubeveil_drops_total", &[("direction", "backstop")]);
    stage.wait_proven()?;
    cable.capture.phase()?;
    let (tally, on_wire) = stage.send(stage.load("1a", "2a", 200), PACKETS)?;
    encrypted(&tally, &on_wire).context("by the new device, once it is guarded")?;
    none_plain(&cable.capture.phase()?).context("on the new cable, once it is guarded")?;
    let after = stage.metrics(NEAR)?.count("kubeveil_drops_total", &[("direction", "backstop")]);
    ensure!(before == after, "{} packets by a guarded device are dropped", after - before);
    Ok(())
}

/// A pod of a third node reaches one of the far node's by a port of the near one: out of a tunnel, and about to go on in plain.
fn from_tunnel(stage: &mut Stage, cable: &mut Cable) -> Result<()> {
    const PORT: u16 = 4000;
    let translate = |family: Family| {
        let (table, to) = match family {
            Family::V4 => ("ip", format!("{}:9", pod("2a").address(family))),
            Family::V6 => ("ip6", format!("[{}]:9", pod("2a").address(family))),
        };
        let chain = "{ type nat hook prerouting priority -100 ; }";
        format!(
            "add table {table} lab; add chain {table} lab to {chain}; add rule {table} lab to udp dport {PORT} dnat to {to}"
        )
    };
    for &family in stage.lab.spec().families.all() {
        said_in(NEAR, "nft", &[translate(family)])?;
    }
    let before = dropped(stage, "tunnel_to_plain")?;
    cable.capture.phase()?;
    for &family in stage.lab.spec().families.all() {
        let socket = namespace::within("pod-3a", || Ok(UdpSocket::bind((pod("3a").address(family), 0))?))?;
        for _ in 0..PACKETS / 2 {
            socket
                .send_to(kubeveil_tests::analysis::MARKER, (NEAR.address(family), PORT))
                .context("send to a node")?;
        }
    }
    let mut counted = 0;
    wait_until(Duration::from_secs(5), Duration::from_millis(100), || {
        counted = dropped(stage, "tunnel_to_plain")? - before;
        Ok(counted >= PACKETS)
    })?;
    none_plain(&cable.capture.phase()?).context("on the new cable, out of a tunnel")?;
    ensure!(counted == PACKETS, "{counted} of {PACKETS} packets out of a tunnel are dropped and counted");
    for &family in stage.lab.spec().families.all() {
        let table = if family == Family::V4 { "ip" } else { "ip6" };
        said_in(NEAR, "nft", &["delete", "table", table, "lab"])?;
    }
    Ok(())
}

/// One build takes over from another: what is guarded loses nothing, what is not shows nothing.
fn upgrade(stage: &mut Stage) -> Result<()> {
    let mut cable = Cable::lay(stage)?;
    start(stage, "auto", best()?)?;
    let file = other_build(stage)?;
    cable.capture.phase()?;
    let closed = stage.load("1a", "2a", 300).start()?;
    let open = Load::new(flows(pod("1b"), pod("3a"), stage.lab.spec().families), 300);
    let (tally, census) = stage.send_while(open, |stage| {
        let daemon = stage.lab.daemon(NEAR);
        for build in [
            &["--ebpf-object".to_owned(), file.clone()][..],
            &[],
            &["--ebpf-object".to_owned(), file.clone()],
        ] {
            daemon.kill()?;
            daemon.spawn(build)?;
            daemon.wait_ready(READY)?;
        }
        Ok(())
    })?;
    let held = closed.finish()?;
    eprintln!("  guarded: {tally}; not guarded: {held}");
    none_arrived(&held)?;
    none_plain(&cable.capture.phase()?).context("on the new cable")?;
    conclusive(&tally)?;
    encrypted(&tally, &census)?;
    ensure!(form(stage, NEAR)? == best()?, "it is not in force any more");
    Ok(())
}

/// Somebody's firewall starts with `flush ruleset`.
fn flush(stage: &mut Stage) -> Result<()> {
    let mut cable = Cable::lay(stage)?;
    start(stage, "nftables", "nftables")?;
    let (tally, census) = cable.send(stage, stage.load("1a", "2a", 200))?;
    none_arrived(&tally)?;
    none_plain(&census)?;
    let before = dropped(stage, "unguarded_device")?;
    said_in(NEAR, "nft", &["flush", "ruleset"])?;
    let healed = wait_until(RESYNC, Duration::from_millis(200), || {
        Ok(said_in(NEAR, "nft", &["list", "tables"])?.contains("table inet kubeveil"))
    })?;
    ensure!(healed, "the table does not come back");
    // At the end of the way round in which it came back.
    let told = wait_until(RESYNC, Duration::from_millis(200), || {
        Ok(stage.lab.daemon(NEAR).log().contains("somebody took the nftables table"))
    })?;
    ensure!(told, "nobody is told");
    cable.capture.phase()?;
    let (tally, census) = cable.send(stage, stage.load("1a", "2a", 200))?;
    none_arrived(&tally)?;
    none_plain(&census)?;
    let counted = dropped(stage, "unguarded_device")? - before;
    ensure!(counted == tally.sent, "{counted} drops are counted of {}", tally.sent);
    Ok(())
}

fn modes(stage: &mut Stage) -> Result<()> {
    use kubeveil_tests::lab::{Mode, mesh};
    let mut cable = Cable::lay(stage)?;
    start(stage, "auto", best()?)?;
    stage.open()?;
    for (mode, verdict) in [(Mode::Prefer, "pass"), (Mode::Observe, "would_drop")] {
        mesh(mode, stage.lab.spec().families).write(&stage.lab.manifests())?;
        let counted = |stage: &Stage| {
            let labels = [("direction", "backstop"), ("verdict", verdict)];
            anyhow::Ok(stage.metrics(NEAR)?.count("kubeveil_packets_total", &labels))
        };
        let in_force = wait_until(RESYNC, Duration::from_millis(100), || {
            Ok(stage.status(NEAR)?["mode"] == format!("{mode:?}").to_lowercase())
        })?;
        ensure!(in_force, "the mode does not become {mode:?}");
        if mode == Mode::Observe {
            // What was steered is steered on for five seconds (`EBB`).
            sleep(Duration::from_secs(6));
        }
        let before = counted(stage)?;
        let (tally, census) = cable.send(stage, stage.load("1a", "2a", 200))?;
        none_lost(&tally).with_context(|| format!("{mode:?}"))?;
        ensure!(census.markers >= tally.sent, "{mode:?}: not by the new device: {census}");
        let counted = counted(stage)? - before;
        ensure!(counted == tally.sent, "{mode:?}: {counted} are counted of {}", tally.sent);
    }
    Ok(())
}
