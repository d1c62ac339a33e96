//! The lab: laid by a plan, taken down in reverse.

mod daemon;
mod manifests;
mod overlay;
mod plan;
mod privacy;
mod tunnels;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

pub use daemon::{Daemon, READY};
pub use manifests::{Manifest, mesh, node as node_manifest, pods as pods_manifest};
pub use overlay::Overlay;
pub use plan::{BRIDGE, WIRE};
pub use privacy::make_private;

use crate::address::{Families, Family, MAX_NODES, Node, Pod, nodes};
use crate::{namespace, process};
use plan::Network;

/// What `--mode` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// No daemon, nothing loaded: the control.
    Off,
    /// Attached and counting; steers nothing.
    Observe,
    /// Encrypted where a tunnel is proven, else plain.
    Prefer,
    /// Encrypted, or dropped.
    Require,
}

impl Mode {
    /// The mesh's mode. A lab that is off has a mesh too, for whoever starts a daemon by hand: one
    /// that changes nothing.
    pub fn in_manifest(self) -> &'static str {
        match self {
            Self::Off | Self::Observe => "observe",
            Self::Prefer => "prefer",
            Self::Require => "require",
        }
    }
}

/// What a lab is to be.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// How many nodes.
    pub nodes: u8,
    /// The mesh's mode.
    pub mode: Mode,
    /// Which address families.
    pub families: Families,
    /// How packets of pods get from node to node.
    pub overlay: Overlay,
}

/// A laid lab. Dropping it takes it down too, and says on standard error what could not be.
pub struct Lab {
    spec: Spec,
    folder: PathBuf,
    undo: Vec<Undo>,
}

/// How one step is undone, recorded as soon as the step is done.
enum Undo {
    RemoveFolder(PathBuf),
    Unmount(PathBuf),
    Namespace(String),
    Daemon(Daemon),
}

impl Lab {
    /// Lays network, folder and manifests; starts no daemon. What was done is undone when a step fails.
    /// The process has to be [private](make_private).
    pub fn lay(spec: Spec) -> Result<Self> {
        ensure!((1..=MAX_NODES).contains(&spec.nodes), "a lab has 1 to {MAX_NODES} nodes");
        let mut lab = Self { spec, folder: PathBuf::new(), undo: Vec::new() };
        lab.lay_folder().context("lay the lab's folder")?;
        lab.lay_network().context("lay the lab's network")?;
        lab.write_manifests().context("write the lab's manifests")?;
        Ok(lab)
    }

    fn lay_folder(&mut self) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("kubeveil-lab-").tempdir_in("/run")?.keep();
        self.folder.clone_from(&folder);
        self.undo.push(Undo::RemoveFolder(folder.clone()));
        // A file system of its own, in the private mount namespace: even a lab that is killed leaves
        // an empty folder and no key.
        self.mount("tmpfs", &folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        fs::create_dir(folder.join("manifests"))?;
        for node in nodes(self.spec.nodes) {
            let own = folder.join(node.name());
            fs::create_dir(&own)?;
            fs::DirBuilder::new().mode(0o700).create(own.join("state"))?;
            fs::create_dir(own.join("bpf"))?;
            // Not below /sys: `ip netns exec` mounts a fresh sysfs over it.
            self.mount("bpf", &own.join("bpf"))?;
            self.undo.push(Undo::Daemon(Daemon::new(node, &self.folder)));
        }
        Ok(())
    }

    fn mount(&mut self, kind: &str, target: &Path) -> Result<()> {
        mount(kind, target, kind, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
            .with_context(|| format!("mount a {kind} on {}", target.display()))?;
        self.undo.push(Undo::Unmount(target.to_owned()));
        Ok(())
    }

    fn lay_network(&mut self) -> Result<()> {
        let network = Network::plan(self.spec.nodes, self.spec.families, self.spec.overlay);
        for inner in &network.inner {
            ensure!(
                !namespace::path(&inner.namespace).exists(),
                "the namespace {} is there already",
                inner.namespace
            );
        }
        self.undo.extend(network.inner.iter().map(|inner| Undo::Namespace(inner.namespace.clone())));
        batch(None, &network.namespaces())?;
        for inner in &network.inner {
            for sysctl in &inner.sysctls {
                namespace::sysctl(&inner.namespace, sysctl.key, sysctl.value)?;
            }
        }
        batch(None, &network.links)?;
        for inner in &network.inner {
            batch(Some(&inner.namespace), &inner.lines)?;
        }
        for node in nodes(self.spec.nodes).filter(|_| self.spec.families.all().contains(&Family::V6)) {
            ["eth0", plan::PODS].into_iter().try_for_each(|device| wait_link_local(node, device))?;
        }
        Ok(())
    }

    fn write_manifests(&self) -> Result<()> {
        let folder = self.manifests();
        mesh(self.spec.mode, self.spec.families).write(&folder)?;
        for node in nodes(self.spec.nodes) {
            manifests::node(node, self.spec.families).write(&folder)?;
        }
        manifests::pods(self.spec.nodes, self.spec.families).write(&folder)
    }

    /// Starts all daemons, then waits until each is ready.
    pub fn start_daemons(&self, limit: Duration) -> Result<()> {
        self.start_daemons_while(limit, || Ok(()))
    }

    /// The same, for as long as `go_on`, asked again and again, does not err.
    pub fn start_daemons_while(&self, limit: Duration, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
        for node in self.nodes() {
            self.daemon(node).spawn(&[])?;
        }
        for node in self.nodes() {
            self.daemon(node).wait_ready_while(limit, &mut go_on)?;
        }
        Ok(())
    }

    /// The daemon of a node, running or not.
    pub fn daemon(&self, node: Node) -> Daemon {
        Daemon::new(node, &self.folder)
    }

    /// What this lab is.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Its nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + Clone + use<> {
        nodes(self.spec.nodes)
    }

    /// `KUBEVEIL_LAB`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the daemons watch.
    pub fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    /// Another pod takes the place of `pod` and has its addresses, as a plugin gives them on once the first is gone: its devices are
    /// others.
    pub fn replace_pod(&self, pod: Pod) -> Result<()> {
        unplug(pod)?;
        self.plug(pod)
    }

    /// `pod` ends: its devices and its namespace are gone.
    pub fn remove_pod(&self, pod: Pod) -> Result<()> {
        unplug(pod)?;
        remove_namespace(&pod.name())
    }

    /// One takes the place of a pod that was [removed](Self::remove_pod), and is made as a plugin makes it.
    pub fn add_pod(&self, pod: Pod) -> Result<()> {
        let name = pod.name();
        batch(None, &[format!("netns add {name}")])?;
        for sysctl in plan::common() {
            namespace::sysctl(&name, sysctl.key, sysctl.value)?;
        }
        self.plug(pod)
    }

    /// Makes a pod's devices, the node's end first, and gives it its addresses.
    fn plug(&self, pod: Pod) -> Result<()> {
        batch(None, &[plan::link_of(pod)])?;
        let line = format!("link set dev {} master {} up", plan::device_of(pod), plan::PODS);
        batch(Some(&pod.node.name()), &[line])?;
        batch(Some(&pod.name()), &plan::pod_lines(pod, self.spec.families))
    }

    /// From now on there is a route to `pod` alone, and it is no port of its node's bridge.
    pub fn route_pod(&self, pod: Pod) -> Result<()> {
        batch(Some(&pod.node.name()), &plan::routed_lines(pod, self.spec.families))?;
        // The bridge answered for its gateway so far, and hears nothing of it any more.
        batch(Some(&pod.name()), &["neigh flush dev eth0".to_owned()])
    }

    /// Takes the lab down. Goes on past an error, and reports them all.
    pub fn take_down(mut self) -> Result<()> {
        let errors = self.undo_all();
        if errors.is_empty() {
            return Ok(());
        }
        let mut text = String::from("the lab was not taken down cleanly:");
        for error in errors {
            let _ = write!(text, "\n  {error:#}");
        }
        bail!(text)
    }

    fn undo_all(&mut self) -> Vec<anyhow::Error> {
        std::iter::from_fn(|| self.undo.pop()).filter_map(|step| step.undo().err()).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for error in self.undo_all() {
            eprintln!("lab: {error:#}");
        }
    }
}

impl Undo {
    fn undo(self) -> Result<()> {
        match self {
            Self::RemoveFolder(path) => {
                fs::remove_dir(&path).with_context(|| format!("remove {}", path.display()))
            }
            // Detached: a shell that stands in the folder must not keep the lab alive.
            Self::Unmount(path) => {
                unmount(&path, UnmountFlags::DETACH).with_context(|| format!("unmount {}", path.display()))
            }
            Self::Namespace(name) => remove_namespace(&name),
            Self::Daemon(daemon) => daemon.end(),
        }
    }
}

/// Takes a pod's devices away.
fn unplug(pod: Pod) -> Result<()> {
    batch(Some(&pod.node.name()), &[format!("link delete {}", plan::device_of(pod))])
}

/// As `ip netns del`, without a process for each.
fn remove_namespace(name: &str) -> Result<()> {
    let path = namespace::path(name);
    if !path.exists() {
        return Ok(());
    }
    // Not mounted: `ip netns add` failed half-way.
    let _ = unmount(&path, UnmountFlags::DETACH);
    fs::remove_file(&path).with_context(|| format!("remove the namespace {name}"))
}

/// `PATH` with the programs: those beside this one first.
pub fn program_path() -> std::ffi::OsString {
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let all = own.into_iter().chain(std::env::split_paths(&inherited));
    // A folder with a colon in its name can't be on PATH; then what was there has to do.
    std::env::join_paths(all).unwrap_or(inherited)
}

/// Waits until a node's device has an IPv6 address of its link, which the kernel makes once it has seen that the link
/// is up: a second later, now and then (`net/core/link_watch.c`). For packets that are forwarded neighbours are asked
/// from no other address (`net/ipv6/ndisc.c`, `ndisc_send_ns`), so until then they are lost.
pub fn wait_link_local(node: Node, device: &str) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(10);
    // Address, index, length, scope (`IPV6_ADDR_LINKLOCAL`), flags, name.
    let is_it = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(3) == Some(&"20") && fields.get(5) == Some(&device)
    };
    let there = process::wait_until(LIMIT, Duration::from_millis(20), || {
        Ok(namespace::proc_net(&node.name(), "if_inet6")?.lines().any(is_it))
    })?;
    ensure!(there, "{device} of {} gets no IPv6 address of its link", node.name());
    Ok(())
}

/// Gives `rules` to `nft -f` inside a namespace.
pub fn nft(inside: &str, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).env("PATH", program_path());
    namespace::within(inside, || process::run(&mut command, rules))
        .with_context(|| format!("nft in {inside}"))?;
    Ok(())
}

/// Gives lines to one `ip -batch`, inside a namespace or outside of all.
pub fn batch(inside: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = inside {
        command.args(["-n", name]);
    }
    let text = lines.join("\n") + "\n";
    let outcome = process::run(command.args(["-batch", "-"]), &text);
    outcome.with_context(|| {
        let numbered = lines.iter().enumerate().fold(String::new(), |mut text, (index, line)| {
            let _ = write!(text, "\n  {}: {line}", index + 1);
            text
        });
        format!("in {}, of these lines:{numbered}", inside.unwrap_or("no namespace"))
    })?;
    Ok(())
}
