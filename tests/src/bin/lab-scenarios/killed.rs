//! The daemon is killed after each kind of step that it takes, on the real kernel, and another one starts.
//!
//! It says each step before it takes it, in its log. So its log is a pipe that has room for one line: when a line of
//! interest is seen in it and left there, the daemon takes that step and can't say the next one.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use kubeveil_abi::ABI_VERSION;
use kubeveil_tests::address::{Families, Node};
use kubeveil_tests::lab::{batch, node_manifest};
use kubeveil_tests::namespace::{self, sysctl};
use kubeveil_tests::stage::{Stage, encrypted, none_plain, pod};
use kubeveil_tests::status::said_in;
use kubeveil_tests::traffic::{Load, flows};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe, pipe_with, tee};

use crate::Scenario;
use crate::backstop::best;
use crate::rotation::{wait_for, want};
use crate::support::{DEVICE, by_links, delete_device, public_key};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("killed_after_each_kind_of_step", each_kind).nodes(2).takes(70),
    Scenario::new("killed_after_each_kind_of_step_of_a_rotation", rotates).nodes(2).takes(55),
];

const NODE: Node = Node(1);
/// Kinds of steps, as the log begins to tell them. Two of them are here under one name (`give peer`).
const AT_START: [&str; 16] = [
    "adopt or load the programs",
    "put prefix",
    "set the configuration",
    "attach steer",
    "attach guard",
    "create WireGuard device",
    "put device",
    "configure ",
    "attach deliver",
    "give device",
    "set MTU",
    "add peer",
    "set device",
    "raise the backstop",
    "point slot",
    "set peer",
];
/// Those of a rotation, with what is done about keys, which is no step in the kernel.
const IN_A_ROTATION: [&str; 16] = [
    "key in use generation=1",
    "create WireGuard device",
    "configure ",
    "attach deliver",
    "give device",
    "set MTU",
    "put device",
    "add peer",
    "set device",
    "point slot 1",
    "set peer",
    "key given up generation=0",
    "point slot 0",
    "delete WireGuard device",
    "remove device",
    "detach",
];
/// What stands before a step in the log.
const HEADS: [&str; 2] = ["execute action=", "kubeveild::keeper: "];
/// What a pipe can be made to hold at least, bytes.
const PAGE: usize = 4096;
/// No step for so long: it is at rest. (Who has the higher key waits three seconds for the other's first word.)
const REST: Duration = Duration::from_secs(10);
/// The same of a rotation, which waits for the other node, and for silence.
const REST_IN_A_ROTATION: Duration = Duration::from_secs(40);

/// A daemon whose steps are watched.
struct Watched {
    child: Child,
    log: OwnedFd,
    kept: std::fs::File,
    rest: Duration,
}

impl Watched {
    fn start(stage: &Stage, more: &[&str]) -> Result<Self> {
        let (log, its_end) = pipe_with(PipeFlags::DIRECT | PipeFlags::CLOEXEC)?;
        // One page, which one line fills however short it is.
        fcntl_setpipe_size(&log, PAGE)?;
        let daemon = stage.lab.daemon(NODE);
        let more: Vec<_> = more.iter().map(|&argument| argument.to_owned()).collect();
        let mut command = daemon.command(&more)?;
        command.stdout(Stdio::null()).stderr(its_end);
        let child = namespace::spawn(&NODE.name(), &mut command)?;
        let kept = OpenOptions::new().append(true).open(daemon.file("kubeveild.log"))?;
        Ok(Self { child, log, kept, rest: REST })
    }

    /// Lets it go on until it has taken a step that begins with one of `kinds`, and kills it there; says which.
    /// `None` if it came to rest before.
    fn kill_after(mut self, kinds: &BTreeSet<&'static str>) -> Result<Option<&'static str>> {
        while let Some(line) = self.look()? {
            let step = HEADS.iter().find_map(|head| line.split_once(head)).map(|(_, step)| step);
            if let Some(kind) = step.and_then(|step| kinds.iter().find(|kind| step.starts_with(**kind))) {
                self.wait_until_held()?;
                self.kill()?;
                return Ok(Some(kind));
            }
            self.read()?;
        }
        self.kill()?;
        Ok(None)
    }

    /// The next line, which stays where it is.
    fn look(&self) -> Result<Option<String>> {
        let timeout = Timespec::try_from(self.rest)?;
        let ready = poll(&mut [PollFd::new(&self.log, PollFlags::IN)], Some(&timeout))?;
        if ready == 0 {
            return Ok(None);
        }
        let (copy, into) = pipe()?;
        tee(&self.log, &into, PAGE, SpliceFlags::empty())?;
        drop(into);
        // At once: what does not fit into the first read of a packet is lost.
        let mut line = [0; PAGE];
        let length = rustix::io::read(&copy, &mut line)?;
        Ok(Some(String::from_utf8_lossy(&line[..length]).into_owned()))
    }

    /// Takes it away, and makes room for the next.
    fn read(&mut self) -> Result<()> {
        let mut line = [0; PAGE];
        let length = rustix::io::read(&self.log, &mut line)?;
        Ok(self.kept.write_all(&line[..length])?)
    }

    /// Waits until the daemon wants to say the next step, or has none to say.
    fn wait_until_held(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
                // The number of the system call that it is in, and its first argument: a write to standard error.
                let said = std::fs::read_to_string(task?.path().join("syscall")).unwrap_or_default();
                if said.starts_with("1 0x2 ") {
                    return Ok(());
                }
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        // What it had said.
        while poll(&mut [PollFd::new(&self.log, PollFlags::IN)], Some(&Timespec::default()))? > 0 {
            let mut line = [0; PAGE];
            if rustix::io::read(&self.log, &mut line)? == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Starts it again and again, each time until a step of a kind that it was not killed after yet.
fn one_by_one(stage: &Stage, wanted: &[&'static str], rest: Duration) -> Result<Vec<&'static str>> {
    let mut left: BTreeSet<_> = wanted.iter().copied().collect();
    let mut killed = Vec::new();
    while !left.is_empty() {
        let watched = Watched { rest, ..Watched::start(stage, &[])? };
        let Some(kind) = watched.kill_after(&left)? else { break };
        left.remove(kind);
        killed.push(kind);
    }
    ensure!(left.is_empty(), "it came to rest without: {left:?}");
    Ok(killed)
}

fn each_kind(stage: &mut Stage) -> Result<()> {
    stage.lab.daemon(Node(2)).start()?;
    // As long as this node has no program it is as open as one that never had any: only the other one speaks.
    let (first, then) = AT_START.split_at(5);
    stage.close()?;
    let load = stage.load("2a", "1a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        eprintln!("  killed after: {:?}", one_by_one(stage, first, REST)?);
        Ok(())
    })?;
    none_plain(&census).with_context(|| format!("before it is attached: {tally}"))?;
    let load = stage.load("1a", "2a", 200);
    let (tally, census) = stage.send_while(load, |stage| {
        eprintln!("  killed after: {:?}", one_by_one(stage, then, REST)?);
        Ok(())
    })?;
    none_plain(&census).with_context(|| format!("from nothing: {tally}"))?;
    whole(stage).context("from nothing")?;
    changes(stage)
}

/// It starts once more, and all is well.
fn whole(stage: &mut Stage) -> Result<()> {
    stage.lab.daemon(NODE).start()?;
    stage.wait_proven()?;
    let (tally, census) = stage.send(stage.load("1a", "2a", 200), 40)?;
    encrypted(&tally, &census)?;
    stage.lab.daemon(NODE).kill()
}

/// Steps that a start from nothing does not take: each after a deed while no daemon ran.
fn changes(stage: &mut Stage) -> Result<()> {
    type Deed = fn(&Stage) -> Result<()>;
    let by_links = by_links(stage, NODE);
    let deeds: [(Deed, &[&str]); 7] = [
        (|_| sysctl(&NODE.name(), &format!("net/ipv4/conf/{DEVICE}/rp_filter"), "1"), &["set sysctls"]),
        (
            |stage| {
                let peer = public_key(stage, Node(2))?;
                said_in(NODE, "wg", &["set", DEVICE, "peer", &peer, "persistent-keepalive", "9"]).map(drop)
            },
            &["set keepalive"],
        ),
        (
            |stage| {
                let peer = public_key(stage, Node(2))?;
                said_in(NODE, "wg", &["set", DEVICE, "peer", &peer, "allowed-ips", "203.0.113.0/24"])
                    .map(drop)
            },
            &["give peer"],
        ),
        (|_| said_in(NODE, "ip", &["link", "set", "dev", DEVICE, "down"]).map(drop), &["set device"]),
        (
            // It is reached by IPv6 then.
            |stage| node_manifest(Node(2), Families::Ipv6).write(&stage.lab.manifests()),
            &["move peer"],
        ),
        (
            |stage| {
                std::fs::remove_file(stage.manifest("node-2.yaml"))?;
                Ok(std::fs::remove_file(stage.manifest("announcements/node-2.yaml"))?)
            },
            &["remove peer", "remove prefix"],
        ),
        // Last: it leaves a device without peers.
        (|_| delete_device(NODE), &["detach", "remove device"]),
    ];
    // A filter goes with its device, so nothing has to be detached.
    let is_taken = |kind: &&str| *kind != "detach" || by_links;
    for (deed, kinds) in deeds {
        let kinds: Vec<_> = kinds.iter().copied().filter(is_taken).collect();
        let load = stage.load("1a", "2a", 200);
        let (tally, census) = stage.send_while(load, |stage| {
            deed(stage)?;
            eprintln!("  killed after: {:?}", one_by_one(stage, &kinds, REST)?);
            Ok(())
        })?;
        none_plain(&census).with_context(|| format!("{kinds:?}: {tally}"))?;
    }
    node_manifest(Node(2), stage.lab.spec().families).write(&stage.lab.manifests())?;
    // Another form of the backstop, where the kernel has two: the program goes when the table stands.
    if best()? == "bpf" {
        let left: BTreeSet<_> = ["remove the backstop"].into();
        let killed = Watched::start(stage, &["--backstop", "nftables"])?.kill_after(&left)?;
        eprintln!("  killed after: {killed:?}");
        ensure!(killed.is_some(), "it came to rest without: {left:?}");
    }
    whole(stage).context("after all of them")?;
    rename(stage)?;
    unpin(stage)?;
    another_version(stage)?;
    stage.lab.daemon(NODE).start()
}

/// The tunnel's device has another name when the daemon comes, and its own again when it is killed.
fn rename(stage: &mut Stage) -> Result<()> {
    let name = format!("link set dev {DEVICE} name wg-foreign");
    batch(Some(&NODE.name()), &[format!("link set dev {DEVICE} down"), name])?;
    eprintln!("  killed after: {:?}", one_by_one(stage, &["rename device"], REST)?);
    whole(stage).context("renamed")
}

/// A pin can be made again only by a daemon that was there when it was removed.
fn unpin(stage: &mut Stage) -> Result<()> {
    let links = stage.lab.daemon(NODE).file("bpf/kubeveil").join(format!("v{ABI_VERSION}/links"));
    let daemon = Watched::start(stage, &[])?;
    let removed = thread::spawn(move || {
        // Once it has opened what is pinned and has come to rest.
        sleep(REST / 2);
        std::fs::read_dir(links)?.try_for_each(|pin| std::fs::remove_file(pin?.path()))
    });
    let killed = daemon.kill_after(&["pin again"].into())?;
    removed.join().map_err(|_| anyhow!("the thread panicked"))?.context("remove the pins of links")?;
    ensure!(killed.is_some(), "no pin was made again");
    eprintln!("  killed after: {killed:?}");
    whole(stage).context("unpinned")
}

/// A build of another version of the maps has taken over all but the last of it.
fn another_version(stage: &mut Stage) -> Result<()> {
    let other = (ABI_VERSION + 1).to_string();
    let killed = Watched::start(stage, &["--abi", &other])?.kill_after(&["drop what another"].into())?;
    ensure!(killed.is_some(), "nothing of this version was dropped");
    eprintln!("  killed after: {killed:?}");
    whole(stage).context("back from another version")
}

/// Of a daemon that goes through a rotation, and the other node with it: nobody loses a packet by that.
fn rotates(stage: &mut Stage) -> Result<()> {
    stage.start()?;
    let by_links = by_links(stage, NODE);
    // A filter goes with its device, so nothing has to be detached.
    let kinds: Vec<_> = IN_A_ROTATION.into_iter().filter(|kind| *kind != "detach" || by_links).collect();
    stage.lab.daemon(NODE).kill()?;
    let families = stage.lab.spec().families;
    let both = [flows(pod("1a"), pod("2a"), families), flows(pod("2a"), pod("1a"), families)].concat();
    let (tally, census) = stage.send_while(Load::new(both, 200), |stage| {
        want(stage, 1, serde_json::json!({}))?;
        eprintln!("  killed after: {:?}", one_by_one(stage, &kinds, REST_IN_A_ROTATION)?);
        stage.lab.daemon(NODE).start()?;
        wait_for(stage, 1)
    })?;
    eprintln!("  {tally}");
    encrypted(&tally, &census)
}
