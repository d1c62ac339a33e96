//! A node of one namespace: devices to the outside, and everything of the daemon's that is in the kernel.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use kubeveil_abi::{ABI_VERSION, Config, DeviceKind, Direction, FlowMode, Mode, PrefixKind, Reason};
use kubeveil_core::{
    action::Action,
    backstop::Backstop,
    observed::{Observed, Prefix, Program},
};
use kubeveil_keys::{Generation, PrivateKey};
use kubeveil_linux::{Kernel as _, RealKernel, Secrets};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::kernel::object;

/// No action here names a key.
pub struct NoKeys;

impl Secrets for NoKeys {
    fn private_key(&self, _: Generation) -> Option<&PrivateKey> {
        None
    }
}

/// Where packets go, in each family: to a pod of another node,
pub const REMOTE: [&str; 2] = ["10.244.2.10", "fd00:244:2::10"];
/// to an address of the mesh that no node owns,
pub const UNOWNED: [&str; 2] = ["10.244.99.10", "fd00:244:99::10"];
/// to a pod of this node,
pub const LOCAL: [&str; 2] = ["10.244.1.10", "fd00:244:1::10"];
/// to another node,
pub const NODE: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
/// and to somebody outside of the cluster.
pub const OUTSIDE: [&str; 2] = ["203.0.113.7", "2001:db8:ffff::7"];

/// What stands in the map of prefixes.
const PREFIXES: [(&str, PrefixKind); 8] = [
    ("10.244.0.0/16", PrefixKind::UnownedPods),
    ("fd00:244::/32", PrefixKind::UnownedPods),
    ("10.244.1.0/24", PrefixKind::LocalPods),
    ("fd00:244:1::/64", PrefixKind::LocalPods),
    ("10.244.2.0/24", PrefixKind::RemotePods),
    ("fd00:244:2::/64", PrefixKind::RemotePods),
    ("192.0.2.2/32", PrefixKind::RemoteNode),
    ("2001:db8::2/128", PrefixKind::RemoteNode),
];

/// By which all packets leave.
pub const DEVICE: &str = "new0";

/// The node. Its daemon is whoever calls.
pub struct Cell {
    /// The kernel as the daemon knows it.
    pub kernel: RealKernel,
    /// Where its BPF file system is mounted.
    pub dir: TempDir,
    object: Vec<u8>,
}

/// Runs `test` in namespaces of its own, which end with its thread.
pub fn within<T: Send + 'static>(test: impl FnOnce(&mut Cell) -> Result<T> + Send + 'static) -> Result<T> {
    let tested = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("make namespaces")?;
        // Several threads: calls of the kernel's port wait for a socket that another one drives.
        let runtime = Runtime::new()?;
        let _guard = runtime.enter();
        let mut cell = Cell::lay()?;
        let tested = test(&mut cell);
        let (_, errors) = cell.kernel.remove_everything();
        let told = tested?;
        ensure!(errors.is_empty(), "{errors:?}");
        run("umount", &[&cell.bpf_dir()])?;
        Ok(told)
    });
    tested.join().map_err(|_| anyhow!("the thread panicked"))?
}

impl Cell {
    fn lay() -> Result<Self> {
        run("mount", &["--make-rprivate", "/"])?;
        let dir = tempfile::tempdir()?;
        let bpf = dir.path().display().to_string();
        run("mount", &["-t", "bpf", "bpf", &bpf])?;
        run("ip", &["link", "set", "lo", "up"])?;
        let mut cell = Self { kernel: RealKernel::new(dir.path(), bytes()?)?, object: bytes()?, dir };
        cell.lay_device(None)?;
        Ok(cell)
    }

    /// Makes the device that packets leave by, with an index of somebody's choice.
    pub fn lay_device(&mut self, index: Option<u32>) -> Result<()> {
        self.add_device(DEVICE, index)?;
        for (family, address, gateway) in
            [("-4", "198.51.100.1/24", "198.51.100.2"), ("-6", "2001:db8:1::1/64", "2001:db8:1::2")]
        {
            let nodad: &[&str] = if family == "-6" { &["nodad"] } else { &[] };
            run("ip", &[&[family, "addr", "add", address, "dev", DEVICE], nodad].concat())?;
            // Nobody answers on the other end: the neighbour is said.
            run("ip", &["neigh", "add", gateway, "lladdr", "02:00:00:00:00:02", "dev", DEVICE])?;
            run("ip", &[family, "route", "add", "default", "via", gateway])?;
        }
        Ok(())
    }

    fn add_device(&mut self, name: &str, index: Option<u32>) -> Result<()> {
        let far = format!("{name}-far");
        let index = index.map(|index| index.to_string());
        let with_index = index.iter().flat_map(|index| ["index", index]).collect::<Vec<_>>();
        let pair = ["type", "veth", "peer", "name", &far];
        run("ip", &[&["link", "add", name][..], &with_index, &pair].concat())?;
        run("ip", &["link", "set", &far, "up"])?;
        run("ip", &["link", "set", name, "up"])
    }

    /// Where pins are.
    pub fn bpf_dir(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// Where something of this ABI's is pinned.
    pub fn pin(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("v{ABI_VERSION}/{name}"))
    }

    /// Loads the programs and fills the maps; raises no backstop.
    pub fn load(&mut self, mode: Mode) -> Result<()> {
        self.run(Action::LoadPrograms)?;
        for (net, kind) in PREFIXES {
            self.run(Action::PutPrefix(net.parse()?, Prefix::new(kind, 1)))?;
        }
        self.run(Action::SetConfig(Config { mode: mode as u32, ..Config::default() }))
    }

    /// Carries out one action.
    pub fn run(&mut self, action: Action) -> Result<()> {
        self.kernel.execute(&action, &NoKeys).with_context(|| action.to_string())
    }

    /// The daemon ends, and another one of the same build starts.
    pub fn restart(&mut self) -> Result<()> {
        self.kernel = RealKernel::new(self.dir.path(), self.object.clone())?;
        Ok(())
    }

    /// Looks at the kernel.
    pub fn observe(&mut self) -> Result<Observed> {
        Ok(self.kernel.observe()?)
    }

    /// Raises a backstop, and sees that it stands.
    pub fn raise(&mut self, backstop: Backstop) -> Result<()> {
        self.run(Action::RaiseBackstop(backstop.clone()))?;
        let standing = self.observe()?.backstop;
        ensure!(standing.in_force() == Some(backstop.form()), "it does not stand: {standing:?}");
        Ok(())
    }

    /// The same beside another form, which is the one that counts.
    pub fn raise_beside(&mut self, backstop: Backstop) -> Result<()> {
        self.run(Action::RaiseBackstop(backstop))
    }

    /// Index of the device that packets leave by.
    pub fn index(&mut self) -> Result<u32> {
        let links = self.observe()?.links;
        let found = links.iter().find(|(_, link)| link.name == DEVICE);
        found.map(|(index, _)| *index).context("no device")
    }

    /// As the daemon does it.
    pub fn guard(&mut self) -> Result<()> {
        let index = self.index()?;
        self.run(Action::Attach((Program::Steer, index)))?;
        self.run(Action::PutDevice(index, DeviceKind::Underlay))
    }

    /// The daemon of another build of the same programs takes over.
    pub fn upgrade(&mut self) -> Result<()> {
        self.object.extend(b"another build");
        self.kernel = RealKernel::new(self.dir.path(), self.object.clone())?;
        self.run(Action::LoadPrograms)
    }

    /// Packets that the backstop has counted for a reason, held to a mode.
    pub fn counted(&mut self, outcome: (FlowMode, Reason)) -> Result<u64> {
        let counts = self.kernel.counters()?;
        let is_it =
            |c: &&kubeveil_linux::Count| c.direction == Direction::Backstop && (c.mode, c.reason) == outcome;
        Ok(counts.iter().filter(is_it).map(|c| c.packets).sum())
    }
}

fn bytes() -> Result<Vec<u8>> {
    let path = object()?;
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Sends a datagram; whether the kernel took it. A hook that drops what a process sends tells it so (EPERM).
pub fn passes(to: &str) -> Result<bool> {
    let to: IpAddr = to.parse()?;
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((any, 0))?;
    match socket.send_to(b"datagram", (to, 9)) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(e) => Err(e).with_context(|| format!("send to {to}")),
    }
}

/// Runs another program; what it says is the error where it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

/// The number of the program that is pinned there.
pub fn path_of_program(cell: &Cell) -> Result<PathBuf> {
    let build = cell.kernel.build();
    let path = cell.pin(&format!("programs-{build}/backstop"));
    ensure!(path.exists(), "{} is not there", path.display());
    Ok(path)
}
