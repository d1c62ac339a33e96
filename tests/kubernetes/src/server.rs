//! etcd and kube-apiserver on loopback, with RBAC, for as long as a value lives.

use std::{
    env, fs,
    io::Read as _,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{certificate::Authority, chart};

/// Names the folder that holds etcd, kube-apiserver, kubectl and helm.
pub const VARIABLE: &str = "KUBEVEIL_KUBERNETES";
/// Within which both are ready; they take two seconds of an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// The node of [`Who::Agent`], [`Who::Controller`] and [`Who::Kubelet`].
pub const OWN: &str = "node-1";

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// May do everything.
    Admin,
    /// The kubelet of [`OWN`].
    Kubelet,
    /// The agent that the chart installs, by a token that is bound to a Pod on [`OWN`].
    Agent,
    /// The controller that the chart installs, the same way.
    Controller,
    /// An account without any right.
    Nobody,
}

impl Who {
    /// Those whose tokens the API server reads from a file: token, name and group.
    const FIXED: [(&'static str, &'static str, &'static str); 3] = [
        ("token-admin", "admin", "system:masters"),
        ("token-kubelet", "system:node:node-1", "system:nodes"),
        ("token-nobody", "nobody", "nobodies"),
    ];
}

/// An API server with its store. Both end with it.
pub struct Server {
    dir: TempDir,
    binaries: PathBuf,
    /// Who signed its certificate.
    pub authority: Authority,
    port: u16,
    etcd_port: u16,
    etcd: Process,
    api: Option<Process>,
    agent: String,
    controller: String,
    /// Runs what tests ask of it.
    pub runtime: Runtime,
}

/// Why there can't be one here; `None` if there can.
pub fn missing() -> Option<String> {
    let Some(folder) = env::var_os(VARIABLE) else {
        return Some(format!("needs {VARIABLE}: it names no folder with etcd and kube-apiserver"));
    };
    let folder = Path::new(&folder);
    let lacks = ["etcd", "kube-apiserver", "helm"].into_iter().find(|name| !folder.join(name).is_file());
    lacks.map(|name| format!("needs {VARIABLE}: {name} is not in {}", folder.display()))
}

impl Server {
    /// Starts both; ready when it returns. To be called from the main thread, with which they end.
    pub fn start() -> Result<Self> {
        let binaries = PathBuf::from(env::var_os(VARIABLE).context(VARIABLE)?);
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
        let authority = Authority::new()?;
        let identity = authority.issue(&["127.0.0.1", "localhost", "kubernetes.default.svc"])?;
        let accounts = authority.issue(&["accounts"])?;
        let tokens = Who::FIXED.map(|(token, name, group)| format!("{token},{name},{name},\"{group}\"\n"));
        for (name, text) in [
            ("ca.pem", authority.pem()),
            ("server.pem", identity.certificate),
            ("server.key", identity.key),
            ("accounts.pem", accounts.certificate),
            ("accounts.key", accounts.key),
            ("tokens.csv", tokens.concat()),
        ] {
            fs::write(dir.path().join(name), text)?;
        }
        let [port, etcd_port, peer_port] = free_ports()?;
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut etcd = Command::new(binaries.join("etcd"));
        etcd.arg("--data-dir").arg(dir.path().join("etcd"));
        etcd.args(["--listen-client-urls", &url(etcd_port), "--advertise-client-urls", &url(etcd_port)]);
        etcd.args(["--listen-peer-urls", &url(peer_port), "--initial-advertise-peer-urls", &url(peer_port)]);
        etcd.args(["--initial-cluster", &format!("default={}", url(peer_port))]);
        let etcd = Process::start(etcd, &dir.path().join("etcd.log"))?;
        let runtime = Runtime::new()?;
        let mut server = Self {
            dir,
            binaries,
            authority,
            port,
            etcd_port,
            etcd,
            api: None,
            agent: String::new(),
            controller: String::new(),
            runtime,
        };
        server.resume()?;
        chart::install(&server)?;
        server.agent = chart::token(&server, chart::AGENT, OWN)?;
        server.controller = chart::token(&server, chart::CONTROLLER, OWN)?;
        Ok(server)
    }

    /// Ends the API server, and leaves its store.
    pub fn halt(&mut self) {
        self.api = None;
    }

    /// Starts the API server, on the port that it always has.
    pub fn resume(&mut self) -> Result<()> {
        let at = |name: &str| self.dir.path().join(name);
        let mut api = Command::new(self.binaries.join("kube-apiserver"));
        let mut file = |flag: &str, name: &str| {
            api.arg(flag).arg(at(name));
        };
        file("--cert-dir", "certificates");
        file("--tls-cert-file", "server.pem");
        file("--tls-private-key-file", "server.key");
        file("--token-auth-file", "tokens.csv");
        file("--service-account-key-file", "accounts.pem");
        file("--service-account-signing-key-file", "accounts.key");
        api.args([
            "--etcd-servers",
            &format!("http://127.0.0.1:{}", self.etcd_port),
            "--secure-port",
            &self.port.to_string(),
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
        ]);
        self.api = Some(Process::start(api, &at("kube-apiserver.log"))?);
        self.until_ready()
    }

    fn until_ready(&mut self) -> Result<()> {
        let client = self.client(Who::Admin)?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let ready = kube::core::Request::new("/readyz").list(&Default::default())?;
            if self.runtime.block_on(client.request_text(ready)).is_ok_and(|said| said == "ok") {
                return Ok(());
            }
            let api = self.api.as_mut().context("not started")?;
            if let Some(log) = api.ended()?.or(self.etcd.ended()?) {
                bail!("it ended: {log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("not ready within {} s", PATIENCE.as_secs())
    }

    fn token(&self, who: Who) -> &str {
        let [admin, kubelet, nobody] = Who::FIXED.map(|(token, ..)| token);
        match who {
            Who::Admin => admin,
            Who::Kubelet => kubelet,
            Who::Agent => &self.agent,
            Who::Controller => &self.controller,
            Who::Nobody => nobody,
        }
    }

    /// The folder of etcd, kube-apiserver, kubectl and helm.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// A folder that is there as long as the server.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A kubeconfig for `who`, in a file that is there as long as the server.
    pub fn kubeconfig(&self, who: Who) -> Result<PathBuf> {
        let path = self.dir.path().join(format!("{who:?}.kubeconfig"));
        self.write_kubeconfig(&path, &self.url(), who, &self.dir.path().join("ca.pem"))?;
        Ok(path)
    }

    /// A kubeconfig for an account of the chart's, by a token that is bound to a Pod on `node`.
    pub fn kubeconfig_of(&self, account: &str, node: &str) -> Result<PathBuf> {
        let token = chart::token(self, account, node)?;
        let path = self.dir.path().join(format!("{account}-{node}.kubeconfig"));
        fs::write(&path, kubeconfig(&self.url(), &token, &self.dir.path().join("ca.pem")).to_string())?;
        Ok(path)
    }

    /// A kubeconfig for `who` at the server of `url`, whose certificate is signed by the authority in `ca`.
    pub fn write_kubeconfig(&self, path: &Path, url: &str, who: Who, ca: &Path) -> Result<()> {
        Ok(fs::write(path, kubeconfig(url, self.token(who), ca).to_string())?)
    }

    /// A client of it.
    pub fn client(&self, who: Who) -> Result<Client> {
        self.client_by(self.token(who))
    }

    /// A client of it by a token.
    pub fn client_by(&self, token: &str) -> Result<Client> {
        let config = kubeconfig(&self.url(), token, &self.dir.path().join("ca.pem"));
        let read: Kubeconfig = serde_json::from_value(config)?;
        self.runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
            Ok(Client::try_from(config)?)
        })
    }
}

fn kubeconfig(url: &str, token: &str, ca: &Path) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": ca}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        // Before its store.
        self.halt();
    }
}

/// Ports of loopback that nobody listens at.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All at once, or one would be found twice.
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// A process that ends with this value, and with the thread that started it.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(command: Command, log: &Path) -> Result<Self> {
        let out = fs::File::options().create(true).append(true).open(log)?;
        // What ends this process by force leaves no time to end others.
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        bound.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = bound.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// The end of its log, if it has ended.
    fn ended(&mut self) -> Result<Option<String>> {
        if self.child.try_wait()?.is_none() {
            return Ok(None);
        }
        let mut log = String::new();
        fs::File::open(&self.log)?.read_to_string(&mut log)?;
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        Ok(Some(lines.into_iter().rev().collect::<Vec<_>>().join("\n")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
