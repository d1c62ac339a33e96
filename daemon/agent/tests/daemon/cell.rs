//! A daemon in namespaces of its own: a network with one device, a BPF file system, folders.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tempfile::TempDir;

const MANIFESTS: &str = "\
apiVersion: kubeveil.io/v1alpha1
kind: EncryptionMesh
metadata: {name: default, uid: mesh}
spec: {mode: require, podCIDRs: [10.244.0.0/16], nodeCIDRs: [192.0.2.0/24]}
---
apiVersion: v1
kind: Node
metadata: {name: node-1, uid: uid-1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-2, uid: uid-2}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
";

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// `kubeveild`, to be run where we are.
pub(crate) fn daemon() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kubeveild"))
}

/// The namespaces, held open by a process that sleeps in them, and perhaps a daemon in them.
pub(crate) struct Cell {
    dir: TempDir,
    holder: Child,
    daemon: Option<Child>,
}

impl Cell {
    /// Lays the cell and starts a daemon in it.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["manifests", "bpf", "state"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("manifests/all.yaml"), MANIFESTS).unwrap();
        let script = "mount -t bpf bpf \"$1/bpf\" && ip link set lo up && ip link add eth0 type veth peer name far \
                      && ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up && ip link set far up \
                      && touch \"$1/laid\" && exec sleep 600";
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", script, "sh"])
            .arg(dir.path())
            .spawn()
            .unwrap();
        let cell = Self { dir, holder, daemon: None };
        let start = Instant::now();
        while !cell.dir.path().join("laid").exists() {
            assert!(start.elapsed() < PATIENCE, "the cell could not be laid");
            thread::sleep(Duration::from_millis(10));
        }
        cell.start_again()
    }

    /// A daemon, to be run in the cell, with its state and its pins in folders of these names.
    pub(crate) fn command(&self, state: &str, pins: &str) -> Command {
        let mut command = self.enter();
        command.arg(env!("CARGO_BIN_EXE_kubeveild"));
        command.args(["--node", "node-1", "--log", "debug", "--source"]);
        command.arg(format!("dir:{}", self.dir.path().join("manifests").display()));
        self.places(&mut command, state, pins);
        command
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "-t", &self.holder.id().to_string()]);
        command
    }

    fn places(&self, command: &mut Command, state: &str, pins: &str) {
        let at = |name: &str| self.dir.path().join(name);
        command.arg("--state-dir").arg(at(state)).arg("--bpf-dir").arg(at("bpf").join(pins));
        command.arg("--socket").arg(at("socket"));
    }

    /// Starts a daemon with these capabilities (as setpriv(1) writes them) and no others.
    pub(crate) fn start_bounded(mut self, capabilities: &str) -> Self {
        let inner = self.command("state", "kubeveil");
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("nsenter");
        // Its own arguments up to the program, which setpriv then runs.
        let mut arguments = inner.get_args();
        let of_nsenter = arguments.by_ref().take_while(|a| *a != env!("CARGO_BIN_EXE_kubeveild"));
        command.args(of_nsenter).args(["setpriv", "--bounding-set", capabilities, "--no-new-privs"]);
        command.arg(env!("CARGO_BIN_EXE_kubeveild")).args(arguments);
        self.daemon = Some(command.stderr(log).stdout(Stdio::null()).spawn().unwrap());
        self
    }

    /// Starts a daemon where none runs.
    pub(crate) fn start_again(self) -> Self {
        self.start_with(&[])
    }

    /// The same, with more arguments.
    pub(crate) fn start_with(mut self, arguments: &[&str]) -> Self {
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        self.daemon = Some(
            self.command("state", "kubeveil")
                .args(arguments)
                .stderr(log)
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        self
    }

    /// Ends the daemon. (`nsenter` without --pid runs it in its own place, so this is its process.)
    pub(crate) fn stop(mut self) -> Self {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        self
    }

    /// `kubeveild uninstall`.
    pub(crate) fn uninstall(&self, options: &[&str]) -> Output {
        let mut command = self.enter();
        command.arg(env!("CARGO_BIN_EXE_kubeveild"));
        self.places(&mut command, "state", "kubeveil");
        command.arg("uninstall").args(options).output().unwrap()
    }

    /// Some packets to the link's other end, which answers none.
    pub(crate) fn chatter(&self) {
        let script = "for i in 1 2 3; do echo x >/dev/udp/192.0.2.9/9; sleep 0.1; done";
        self.enter().args(["bash", "-c", script]).stderr(Stdio::null()).status().unwrap();
    }

    /// A program of somebody else's at the head of the egress of `device`, as long as the value lives.
    pub(crate) fn attach_ahead(&self, device: &'static str) -> Ebpf {
        self.inside(move || {
            let mut ebpf = Ebpf::load_file(env!("KUBEVEIL_EBPF_OBJECT")).unwrap();
            let program: &mut SchedClassifier = ebpf.program_mut("steer").unwrap().try_into().unwrap();
            program.load().unwrap();
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            program.attach_with_options(device, TcAttachType::Egress, first).unwrap();
            ebpf
        })
    }

    /// Somebody else listens on a port of the cell's loopback address, as long as the value lives.
    pub(crate) fn take_port(&self, port: u16) -> TcpListener {
        self.inside(move || TcpListener::bind(("127.0.0.1", port)).unwrap())
    }

    /// Runs `make` in the cell's network, in a thread of its own, which stays there.
    fn inside<T: Send + 'static>(&self, make: impl FnOnce() -> T + Send + 'static) -> T {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        let made = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            make()
        });
        made.join().unwrap()
    }

    /// The state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What the daemon has logged since it was last started.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// What the socket answers; empty if nobody does.
    pub(crate) fn get(&self, path: &str) -> String {
        let ask = || {
            let mut stream = UnixStream::connect(self.dir.path().join("socket"))?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: kubeveild\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = ask().unwrap_or_default();
        answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())
    }

    /// The status document, once it is as wanted.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = serde_json::from_str(&self.get("/v1/status")).unwrap_or(Value::Null);
            if !status.is_null() && wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain; last status {status}; log:\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        for process in self.daemon.iter_mut().chain([&mut self.holder]) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
