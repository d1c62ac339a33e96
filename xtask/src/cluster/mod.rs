//! `cargo xtask cluster`: a real Kubernetes, whose nodes have a kernel with WireGuard.
//!
//! The control plane runs on this machine's loopback. The nodes share one VM, each in namespaces and a cgroup of its own
//! with its own kubelet, containerd and kube-proxy. No interface, route or rule of this machine is touched.

mod control;
mod credentials;
mod demo;
mod guest;
mod installed;
mod life;
mod network;
mod nodes;
mod plan;
mod policies;
mod processes;
mod programs;
mod rotation;
mod smoke;
mod suite;
mod traffic;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

pub(crate) use self::demo::demo;
pub(crate) use self::guest::{NodeExecArguments, WireCaptureArguments, node_exec, wire_capture};
pub(crate) use self::suite::test;
use self::{
    installed::Product,
    network::Cni,
    plan::Plan,
    processes::{PAUSE, Processes},
    programs::Programs,
};
use crate::{
    machine, process,
    report::{Step, say},
    workspace::Workspace,
};

/// What nodes may take to get ready under emulation on a busy machine. A VM or a control plane that ends is seen at once.
const READY: Duration = Duration::from_secs(600);

/// Memory of the VM that holds the nodes.
const MEMORY: &str = "4G";

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Memory of the VM that holds the nodes
    #[arg(long, default_value = MEMORY)]
    memory: String,
    /// How packets get from one node's pods to another's
    #[arg(long, value_enum, default_value_t = Cni::Bridge)]
    cni: Cni,
    /// Without kubeveil: as a cluster is before it is installed
    #[arg(long)]
    bare: bool,
    /// The command, with kubectl, helm, node-exec and wire-capture on PATH, and KUBECONFIG, KUBEVEIL_CHART and
    /// KUBEVEIL_IMAGE set (--bare: the first only); an interactive shell if none
    #[arg(last = true)]
    command: Vec<String>,
}

/// Brings a cluster up, runs the command beside it, and takes it down.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if arguments.command.is_empty() && !machine::is_interactive() {
        bail!("cluster: without a terminal there is no shell to start: give a command after --");
    }
    let product = if arguments.bare { None } else { Some(Product::new(workspace)?) };
    with(workspace, arguments.nodes, &arguments.memory, arguments.cni, product, |cluster| {
        installed::install(cluster)?;
        cluster.beside(&arguments.command)
    })
}

/// Brings a cluster up, whose nodes have the product's image, does something with it, and takes it down.
fn with<T>(
    workspace: &Workspace,
    nodes: u8,
    memory: &str,
    cni: Cni,
    product: Option<Product>,
    deed: impl FnOnce(&mut Cluster) -> Result<T>,
) -> Result<T> {
    let programs = Programs::ensure(workspace)?;
    let _alone = lock(workspace)?;
    processes::note_interrupts()?;
    let folder = workspace.fresh_folder(cni.folder())?;
    let plan = Plan::new(nodes, folder, credentials::token()?)?;
    let processes = Processes::new(plan.folder.clone());
    let mut cluster = Cluster { plan, programs, cni, product, processes };
    let result = cluster.bring_up(workspace, memory).and_then(|()| deed(&mut cluster));
    if result.is_err() {
        // Whoever interrupts wants an end; a busy VM takes its time over logs.
        if !processes::interrupted() {
            cluster.save_node_logs();
        }
        say(format!("the cluster's logs are in {}", cluster.plan.folder.display()));
    }
    let step = Step::begin("taking the cluster down");
    drop(cluster);
    step.end();
    result
}

/// Held while a cluster of this checkout is up: the next one begins with an empty folder.
fn lock(workspace: &Workspace) -> Result<fs::File> {
    let path = workspace.target.join("cluster.lock");
    let file = fs::File::create(&path).with_context(|| format!("make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("another cluster of this checkout is up ({} is locked): end it first", path.display())
        }
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// A cluster that is up, or on its way.
struct Cluster {
    plan: Plan,
    programs: Programs,
    cni: Cni,
    /// What is installed on it; a bare one has none.
    product: Option<Product>,
    processes: Processes,
}

impl Cluster {
    /// Starts everything, and waits until all nodes are ready.
    fn bring_up(&mut self, workspace: &Workspace, memory: &str) -> Result<()> {
        let mut step = Step::begin(format!("a cluster of {} nodes", self.plan.nodes));
        step.detail("credentials");
        credentials::make(&self.plan)?;
        fs::create_dir(self.plan.handed_in()).context("make a folder for the VM")?;
        self.product.as_ref().map_or(Ok(()), |product| product.hand_in(&self.plan))?;
        let guest = guest_command(workspace, memory, &self.plan, &self.programs)?;
        self.processes.start("vm", &guest)?;
        step.detail("control plane");
        control::start(&self.plan, &mut self.processes, &self.programs)?;
        step.detail("nodes register");
        self.lay_network()?;
        step.detail("nodes get ready");
        self.kubectl_waits(READY, &["--for=condition=Ready", "node", "--all"])?;
        if let Some(manifest) = self.cni.manifest() {
            step.detail("flannel");
            let file = self.plan.file("flannel.yaml");
            fs::write(&file, manifest).with_context(|| format!("write {}", file.display()))?;
            processes::output(self.kubectl(&["apply", "-f"]).arg(file))?;
            let mut rolled = self.kubectl(&[
                "rollout",
                "status",
                "daemonset/flannel",
                "-n",
                "kube-system",
                "--timeout=1s",
            ]);
            self.processes.wait_until("flannel runs", READY, || process::succeeds(&mut rolled))?;
        }
        step.end();
        command_folder(&self.plan, &self.programs.control)
    }

    /// `kubectl wait`, as long as it takes.
    fn kubectl_waits(&mut self, limit: Duration, words: &[&str]) -> Result<()> {
        let mut wait = self.kubectl(&["wait", "--timeout=1s"]);
        wait.args(words);
        self.processes
            .wait_until(&format!("kubectl wait {}", words.join(" ")), limit, || process::succeeds(&mut wait))
    }

    /// kubectl as the cluster's administrator.
    fn kubectl(&self, words: &[&str]) -> Command {
        let mut kubectl = process::command(self.programs.control.join("kubectl"));
        kubectl.arg("--kubeconfig").arg(self.plan.file("admin.kubeconfig")).args(words);
        kubectl
    }

    /// helm, likewise.
    fn helm(&self) -> Command {
        let mut helm = process::command(self.programs.control.join("helm"));
        helm.arg("--kubeconfig").arg(self.plan.file("admin.kubeconfig"));
        helm
    }

    /// Runs the command; it has our terminal, and Ctrl-C is its own business.
    fn beside(&mut self, words: &[String]) -> Result<ExitCode> {
        let shell = ["bash".to_owned()];
        let words = if words.is_empty() { &shell } else { words };
        let mut path = self.plan.file("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = process::command(&words[0]);
        command.args(&words[1..]).env("PATH", path).env("KUBECONFIG", self.plan.file("admin.kubeconfig"));
        if let Some(product) = &self.product {
            command.env("KUBEVEIL_CHART", &product.chart).env("KUBEVEIL_IMAGE", &product.image.name);
        }
        let mut child = command.spawn().with_context(|| format!("start {}", words[0]))?;
        let is_shell = words == shell;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if processes::interrupted() && !is_shell {
                processes::end(&mut child);
            }
            std::thread::sleep(PAUSE);
        };
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
    }

    /// What each node's programs said, beside the logs of this machine's own.
    fn save_node_logs(&self) {
        for node in 1..=self.plan.nodes {
            let line = "tail -n 500 /var/log/kubelet.log /var/log/containerd.log /var/log/kube-proxy.log";
            // A VM that is gone has no logs to give; that is told by what failed.
            if let Ok(text) = guest::run(self.plan.guest, &node.to_string(), line, b"") {
                let _ = fs::write(self.plan.file(&format!("node-{node}.log")), text);
            }
        }
    }
}

fn guest_command(workspace: &Workspace, memory: &str, plan: &Plan, programs: &Programs) -> Result<Command> {
    let scratch = plan.file("scratch.img");
    fs::File::create(&scratch).and_then(|file| file.set_len(16 << 30)).context("make the nodes' disk")?;
    let mut mke2fs = process::command(process::find("mke2fs").context("no mke2fs")?);
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"]);
    process::output(mke2fs.arg(&scratch))?;
    let handed_in = plan.handed_in();
    fs::copy(plan.file("ca.crt"), handed_in.join("ca.crt")).context("copy ca.crt")?;

    let mut vm = process::command(workspace.script("vm/run.sh"));
    vm.arg("-k").arg(&programs.kernel).arg("-i").arg(programs.nodes.join("root.img"));
    // One CPU: with more, an emulated kernel that patches itself runs into a breakpoint of its own now and then.
    vm.args(["-m", memory, "-c", "1", "-n", &plan.guest.to_string()]);
    vm.arg("-s").arg(&scratch).arg("-d").arg(&handed_in).arg("-l").arg(plan.file("kernel.log"));
    vm.args(["--", "/opt/node/boot", &plan.nodes.to_string(), &plan.api.to_string(), &plan.token]);
    vm.env("KUBEVEIL_VM_WATCH", std::process::id().to_string());
    Ok(vm)
}

/// What the command finds on PATH: kubectl, helm, and ways into the nodes.
fn command_folder(plan: &Plan, control: &Path) -> Result<()> {
    let folder = plan.file("bin");
    fs::create_dir(&folder).context("make the folder of the command's programs")?;
    for name in ["kubectl", "helm"] {
        std::os::unix::fs::symlink(control.join(name), folder.join(name))
            .with_context(|| format!("link {name}"))?;
    }
    // A copy: the checkout may be built anew while the cluster is up.
    let ourselves = plan.file("xtask");
    // Under its name there may be another by now.
    fs::copy("/proc/self/exe", &ourselves).context("copy this program")?;
    for name in ["node-exec", "wire-capture"] {
        let file = folder.join(name);
        let script =
            format!("#!/bin/sh\nexec '{}' {name} --port {} \"$@\"\n", ourselves.display(), plan.guest);
        fs::write(&file, script).with_context(|| format!("write {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
