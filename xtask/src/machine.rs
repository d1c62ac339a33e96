//! Where a command with our programs runs: on this machine's kernel, or in the guest.

use std::{
    env, fmt, fs,
    io::{self, IsTerminal},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context, Result, bail};

use crate::{
    process,
    report::say,
    setup,
    vm::{self, Images},
    workspace::Workspace,
};

/// The kernel of the VM where nobody names one.
pub(crate) const DEFAULT_VERSION: &str = "6.12";
/// The oldest that is tried, without tcx and without netfilter programs.
pub(crate) const OLD_VERSION: &str = "6.1";

/// What a guest may need: more than the packets of a lab, captures and a Python beside.
const MEMORY: &str = "2G";

/// A kernel, as a person asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    Host,
    Guest(String),
}

impl FromStr for Kernel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "6.1" | "6.12" | "canary" => Ok(Self::Guest(text.to_owned())),
            _ => Err("kernels are host, 6.12, 6.1 and canary".to_owned()),
        }
    }
}

/// A place to run things, set up.
pub(crate) struct Machine {
    scripts: PathBuf,
    cache: PathBuf,
    guest: Option<Images>,
}

/// A command to run there.
#[derive(Default)]
pub(crate) struct Request {
    pub(crate) command: Vec<String>,
    /// Our programs, first on PATH.
    pub(crate) programs: PathBuf,
    /// The command's working folder.
    pub(crate) payload: Option<PathBuf>,
    /// Where what it leaves in /out comes to.
    pub(crate) out: Option<PathBuf>,
    /// Seconds; then the exit status is 124.
    pub(crate) timeout: Option<u64>,
    pub(crate) environment: Vec<(String, String)>,
    /// Whether it gets a terminal of its own (the caller's is one).
    pub(crate) terminal: bool,
}

impl Machine {
    /// Sets up the kernel asked for; where none is, the machine's own if it has WireGuard.
    pub(crate) fn ensure(workspace: &Workspace, kernel: Option<&Kernel>) -> Result<Self> {
        let host = Facts::of_host();
        let kernel = match kernel {
            Some(kernel) => kernel.clone(),
            None if host.can_run_lab() => Kernel::Host,
            None => Kernel::Guest(DEFAULT_VERSION.to_owned()),
        };
        let guest = match &kernel {
            Kernel::Host => {
                setup::ensure(workspace, &[setup::LAB])?;
                None
            }
            Kernel::Guest(version) => Some(vm::ensure_images(workspace, version)?),
        };
        let machine = Self { scripts: workspace.script("vm"), cache: workspace.cache.clone(), guest };
        say(format!("running on {machine}; this machine's own kernel is {host}"));
        Ok(machine)
    }

    /// Whether it is a VM.
    pub(crate) fn is_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// The command that runs the request.
    fn command(&self, request: &Request) -> Result<Command> {
        let mut command = match &self.guest {
            Some(images) => self.in_guest(images, request),
            None => self.on_host()?,
        };
        command.arg("-p").arg(&request.programs);
        if let Some(payload) = &request.payload {
            let folder =
                fs::canonicalize(payload).with_context(|| format!("--payload {}", payload.display()))?;
            command.arg("-d").arg(folder);
        }
        if let Some(out) = &request.out {
            fs::create_dir_all(out).with_context(|| format!("make --out {}", out.display()))?;
            command.arg("-o").arg(fs::canonicalize(out)?);
        }
        if let Some(seconds) = request.timeout {
            command.arg("-T").arg(seconds.to_string());
        }
        for (name, value) in &request.environment {
            command.arg("-e").arg(format!("{name}={value}"));
        }
        command.arg("--").args(&request.command);
        Ok(command)
    }

    /// The same, to be started by us: a guest ends with us, should we be killed.
    pub(crate) fn child(&self, request: &Request) -> Result<Command> {
        let mut command = self.command(request)?;
        command.env("KUBEVEIL_VM_WATCH", std::process::id().to_string());
        Ok(command)
    }

    /// Becomes the request: its exit status is ours, signals are its own business.
    pub(crate) fn become_request(&self, request: &Request) -> Result<()> {
        let mut command = self.command(request)?;
        let error = command.exec();
        Err(error).with_context(|| format!("start {}", process::name_of(&command)))
    }

    fn in_guest(&self, images: &Images, request: &Request) -> Command {
        let mut command = process::command(self.scripts.join("run.sh"));
        command.arg("-k").arg(&images.kernel).arg("-i").arg(&images.tools).args(["-m", MEMORY]);
        if request.terminal {
            command.arg("-t");
        }
        command
    }

    fn on_host(&self) -> Result<Command> {
        let mut command = process::as_root(self.scripts.join("host.sh"))?;
        command.arg("-l").arg(self.cache.join("host.lock"));
        Ok(command)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.guest {
            Some(images) => write!(f, "a VM with kernel {}", images.release),
            None => write!(f, "this machine itself"),
        }
    }
}

/// What this machine's own kernel can do, by trying it.
pub(crate) struct Facts {
    release: String,
    wireguard: bool,
    btf: bool,
}

impl Facts {
    pub(crate) fn of_host() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            release: release.trim().to_owned(),
            wireguard: has_link_kind("wireguard"),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }

    pub(crate) fn can_run_lab(&self) -> bool {
        self.wireguard && self.btf
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacks = match (self.wireguard, self.btf) {
            (true, true) => "with WireGuard and BTF",
            (false, _) => "without WireGuard",
            (true, false) => "without BTF",
        };
        write!(f, "{} {lacks}", self.release)
    }
}

/// An error where the machine's own kernel was asked for and can't encrypt: before anything is built for it.
pub(crate) fn refuse_without_wireguard(kernel: Option<&Kernel>) -> Result<()> {
    let host = Facts::of_host();
    if kernel == Some(&Kernel::Host) && !host.wireguard {
        bail!(
            "--kernel host: this machine's own kernel ({}) has no WireGuard (`modprobe wireguard`?); \
             without --kernel it runs in a VM",
            host.release
        );
    }
    Ok(())
}

/// Whether a link of that kind can be made, in a network namespace that ends with the try.
pub(crate) fn has_link_kind(kind: &str) -> bool {
    let mut attempt = if process::is_root() {
        process::command("unshare")
    } else if process::succeeds(process::command("sudo").args(["-n", "true"])) {
        let mut sudo = process::command("sudo");
        sudo.args(["-n", "unshare"]);
        sudo
    } else {
        let mut unshare = process::command("unshare");
        unshare.args(["--user", "--map-root-user"]);
        unshare
    };
    let ip = process::find("ip").unwrap_or_else(|| "ip".into());
    process::succeeds(attempt.arg("--net").arg(ip).args(["link", "add", "probe0", "type", kind]))
}

/// Whether a person sits at all three ends.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// What a program needs to know of the person's terminal: its kind, and the wish for colours.
pub(crate) fn terminal_environment() -> Vec<(String, String)> {
    const PASSED: [&str; 6] = ["TERM", "COLORTERM", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR"];
    PASSED.iter().filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?))).collect()
}

/// Whether what a program prints is shown to a person who has not declined colours.
pub(crate) fn wants_colors() -> bool {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none()
}
