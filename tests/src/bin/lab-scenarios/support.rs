//! What scenarios share.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kubeveil_abi::ABI_VERSION;
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::{batch, program_path};
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, none_lost};
use kubeveil_tests::status::said_in;

/// Keeps the daemons' logs of a failed scenario where `cargo xtask` fetches files from; says where.
pub(crate) fn keep_logs(stage: &Stage, scenario: &str) {
    let folder = Path::new("/out/logs").join(scenario);
    if let Err(error) = std::fs::create_dir_all(&folder) {
        return eprintln!("{scenario}: the daemons' logs are not kept: {error}");
    }
    for node in stage.lab.nodes() {
        let path = folder.join(format!("{}.log", node.name()));
        if let Err(error) = std::fs::write(&path, stage.lab.daemon(node).log()) {
            eprintln!("{}: not kept: {error}", path.display());
        }
    }
    eprintln!("{scenario}: the daemons' logs are in {}", folder.display());
    for node in stage.lab.nodes() {
        if let Ok(metrics) = stage.metrics(node) {
            eprintln!("  {} dropped {:?}", node.name(), metrics.all_drops());
        }
    }
}

/// Are programs attached by links on this node, which live as long as their pins? (Filters need none.)
pub(crate) fn by_links(stage: &Stage, node: Node) -> bool {
    let links =
        std::fs::read_dir(stage.lab.daemon(node).file("bpf/kubeveil").join(format!("v{ABI_VERSION}/links")));
    links.is_ok_and(|mut links| links.next().is_some())
}

/// Has every daemon that runs go round at once: something in its folder was written, and is as it was.
pub(crate) fn stir(stage: &Stage) -> Result<()> {
    let path = stage.manifest("pods.yaml");
    Ok(std::fs::write(&path, std::fs::read(&path)?)?)
}

/// The device of a node's generation 0.
pub(crate) const DEVICE: &str = "kubeveil0";

/// Deletes a node's WireGuard device, as somebody's hand would.
pub(crate) fn delete_device(node: Node) -> Result<()> {
    batch(Some(&node.name()), &[format!("link del dev {DEVICE}")])
}

/// Index of a node's device.
pub(crate) fn index(node: Node, device: &str) -> Result<u32> {
    let text = said_in(node, "ip", &["-o", "link", "show", "dev", device])?;
    let index = text.split(':').next().context("what `ip link` says")?;
    index.parse().with_context(|| format!("no index: {text}"))
}

/// Makes a node's daemon go round: somebody's program or firewall makes no event, an address does.
pub(crate) fn look_round(stage: &Stage, node: Node) -> Result<()> {
    let rounds = || {
        let name = "kubeveil_reconcile_duration_seconds_count";
        anyhow::Ok(stage.metrics(node)?.count(name, &[]))
    };
    let before = rounds()?;
    let lines = ["add", "del"].map(|word| format!("address {word} 127.0.0.2/8 dev lo"));
    batch(Some(&node.name()), &lines)?;
    wait_until(Duration::from_secs(1), Duration::from_millis(20), || Ok(rounds()? > before))?;
    Ok(())
}

/// The key that a node uses, by its public half.
pub(crate) fn public_key(stage: &Stage, node: Node) -> Result<String> {
    let status = stage.status(node)?;
    let key = status["key"]["publicKey"].as_str().context("status.key.publicKey")?;
    Ok(key.to_owned())
}

/// An error unless `kubeveil status` of a node says nothing that a person should look at, all its peers are spoken to by their tunnels,
/// and it says these words.
pub(crate) fn nothing_alarming(stage: &Stage, node: Node, words: &[&str]) -> Result<()> {
    let (is_well, said) = kubeveil_tests::status::read(&stage.lab.daemon(node))?;
    // The table of peers: a node, how its tunnel is, and how packets go there.
    let peers = said.lines().filter(|line| line.starts_with("node-"));
    let mut peers = peers.map(|line| line.split_whitespace().skip(1).take(2).collect::<Vec<_>>());
    let has_tunnels = peers.all(|peer| matches!(peer[..], ["up" | "idle", "tunnel"]));
    let name = node.name();
    ensure!(is_well && has_tunnels && !said.contains("NOT "), "{name} alarms its people: {said}");
    for word in words {
        ensure!(said.contains(word), "{name} does not say {word:?}: {said}");
    }
    Ok(())
}

/// Privileged steps that a node's daemon has carried out.
pub(crate) fn kernel_writes(stage: &Stage, node: Node) -> Result<u64> {
    stage.status(node)?["kernelWrites"].as_u64().context("status.kernelWrites")
}

/// The eBPF object that `kubeveild` brings, cut out of the program: an ELF file within an ELF file.
pub(crate) fn embedded_object() -> Result<Vec<u8>> {
    let path = std::env::split_paths(&program_path())
        .map(|folder| folder.join("kubeveild"))
        .find(|path| path.exists())
        .context("kubeveild is not on PATH")?;
    let program = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    cut_out(&program).with_context(|| format!("{} holds no eBPF object", path.display()))
}

/// From an ELF header for eBPF to the end of its section headers, which are its last part (gABI: machine
/// 247; offsets 18, 40, 58 and 60 of the header).
fn cut_out(program: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
    const EM_BPF: u16 = 247;
    let short = |bytes: &[u8], at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let starts = program.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
    starts.map(|(start, _)| &program[start..]).find_map(|object| {
        let sections = u64::from_le_bytes(*object.get(40..)?.first_chunk()?);
        let size = usize::from(short(object, 58)?) * usize::from(short(object, 60)?);
        let end = usize::try_from(sections).ok()?.checked_add(size)?;
        (short(object, 18)? == EM_BPF).then(|| object.get(..end).map(<[u8]>::to_vec))?
    })
}

/// An object that is another build of the same programs, as a file in the lab's folder.
pub(crate) fn other_build(stage: &Stage) -> Result<String> {
    let mut object = embedded_object()?;
    // After the section headers nobody reads on; but it is another file.
    object.extend_from_slice(b"another build");
    let path = stage.lab.folder().join("other-build.o");
    std::fs::write(&path, object).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}

/// Whether any of the files below `folder` holds `wanted`; their paths.
pub(crate) fn files_with(folder: &Path, wanted: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_with(&path, wanted)?);
        } else if path.is_file() {
            let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            if content.windows(wanted.len()).any(|window| window == wanted) {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(found)
}

/// The second node's daemon starts, and the tunnel is proven; the shop's pods, which may speak without one, lose nothing meanwhile. From then on
/// nothing may be in plain.
pub(crate) fn is_proven_unnoticed(stage: &mut Stage) -> Result<()> {
    let shop = stage.load("1a", "2a", 200);
    let (tally, _) = stage.send_while(shop, |stage| {
        stage.lab.daemon(Node(2)).start()?;
        stage.wait_proven()
    })?;
    none_lost(&tally).context("the shop's, while the tunnel is proven")?;
    stage.close()
}

/// Everything in a folder, not the folder. (A BPF file system does not tell what its entries are.)
pub(crate) fn empty(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            empty(&path)?;
            std::fs::remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// An error unless a node has dropped at least so many packets for this reason since `before`.
pub(crate) fn dropped_since(
    stage: &Stage,
    node: Node,
    reason: &str,
    before: u64,
    at_least: u64,
) -> Result<()> {
    let metrics = stage.metrics(node)?;
    let now = metrics.drops(reason) - before;
    ensure!(
        now >= at_least,
        "{} counts {now} drops for {reason}, not {at_least}; all: {:?}",
        node.name(),
        metrics.all_drops()
    );
    Ok(())
}

/// Where a drop is counted: direction and reason, as they are told.
pub(crate) type Counter = (&'static str, &'static str);

/// Of what is sent while there is no tunnel.
pub(crate) const NO_TUNNEL: Counter = ("egress", "no_tunnel");

/// Packets that a node has dropped for a reason: in the metrics, and in `kubeveil status -o json`.
pub(crate) fn told(stage: &Stage, node: Node, (direction, reason): Counter) -> Result<[u64; 2]> {
    let labels = [("direction", direction), ("reason", reason)];
    let metrics = stage.metrics(node)?.count("kubeveil_drops_total", &labels);
    let status = stage.status(node)?;
    let drops = status["drops"].as_array().context("status.drops")?;
    let is_it = |drop: &&serde_json::Value| {
        drop["direction"] == direction && drop["reason"] == reason && drop["observed"] == false
    };
    // One that is told says what to do about it.
    let advised = |drop: &serde_json::Value| drop["advice"].as_str().is_some_and(|advice| !advice.is_empty());
    let packets =
        drops.iter().filter(is_it).filter(|drop| advised(drop)).filter_map(|d| d["packets"].as_u64());
    Ok([metrics, packets.sum()])
}

/// An error unless a node comes to tell of exactly so many drops more than `before`, in both places.
pub(crate) fn rises_by(
    stage: &Stage,
    node: Node,
    counter: Counter,
    before: [u64; 2],
    wanted: u64,
) -> Result<()> {
    let wanted = before.map(|count| count + wanted);
    // A look at the kernel that is a moment old will do for an answer; and a packet may be under way.
    wait_until(Duration::from_secs(10), Duration::from_millis(50), || {
        Ok(told(stage, node, counter)?.iter().zip(&wanted).all(|(now, wanted)| now >= wanted))
    })?;
    sleep(Duration::from_millis(500));
    let now = told(stage, node, counter)?;
    ensure!(
        now == wanted,
        "{} tells of {now:?} drops for {counter:?} (metrics, status), not {wanted:?}; all: {:?}",
        node.name(),
        stage.metrics(node)?.all_drops()
    );
    Ok(())
}

/// How far the clock of all nodes is from what it was; set right when this goes.
#[derive(Default)]
pub(crate) struct Clock(i64);

impl Clock {
    /// So many seconds ahead of what it was.
    pub(crate) fn set(&mut self, off: i64) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let time = format!("@{:.3}", now + (off - self.0) as f64);
        let done = Command::new("date").args(["-s", &time]).output().context("run date")?;
        ensure!(done.status.success(), "date -s {time}: {}", String::from_utf8_lossy(&done.stderr).trim());
        self.0 = off;
        Ok(())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Err(error) = self.set(0) {
            eprintln!("  the clock is {} s off: {error:#}", self.0);
        }
    }
}
