//! The control plane: on this machine's loopback.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};

use super::{
    credentials::kubeconfig_name,
    guest,
    plan::{OUTSIDE, PODS, Plan, SERVICES},
    processes::Processes,
    programs::Programs,
};
use crate::process;

/// What the API server may take to answer, on a busy machine.
const READY: Duration = Duration::from_secs(180);

/// Starts etcd and the API server, waits for it, then starts what works through it.
pub(super) fn start(plan: &Plan, processes: &mut Processes, programs: &Programs) -> Result<()> {
    processes.start("etcd", &etcd(plan, &programs.control))?;
    let socket = plan.file("egress.sock");
    guest::serve_egress(&socket, plan.guest)?;
    let egress = format!(
        "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration\negressSelections:\n\
         - {{name: cluster, connection: {{proxyProtocol: HTTPConnect, transport: {{uds: {{udsName: \"{}\"}}}}}}}}\n",
        socket.display()
    );
    fs::write(plan.file("egress.yaml"), egress).context("write egress.yaml")?;
    processes.start("kube-apiserver", &api_server(plan, &programs.control))?;
    let mut ready = process::command(programs.control.join("kubectl"));
    ready.arg("--kubeconfig").arg(plan.file("admin.kubeconfig")).args(["get", "--raw", "/readyz"]);
    processes.wait_until("the API server gets ready", READY, || process::succeeds(&mut ready))?;
    processes.start("kube-controller-manager", &controllers(plan, &programs.nodes))?;
    processes.start("kube-scheduler", &scheduler(plan, &programs.nodes))
}

fn etcd(plan: &Plan, control: &Path) -> Command {
    let (clients, peers) =
        (format!("http://127.0.0.1:{}", plan.etcd), format!("http://127.0.0.1:{}", plan.etcd_peer));
    let mut etcd = process::command(control.join("etcd"));
    etcd.arg("--data-dir").arg(plan.file("etcd")).args(["--log-level", "warn"]);
    etcd.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    etcd.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    etcd.arg("--initial-cluster").arg(format!("default={peers}"));
    etcd
}

fn api_server(plan: &Plan, control: &Path) -> Command {
    let mut server = process::command(control.join("kube-apiserver"));
    let mut flag = |name: &str, value: &str| {
        server.arg(format!("--{name}={value}"));
    };
    flag("etcd-servers", &format!("http://127.0.0.1:{}", plan.etcd));
    flag("bind-address", "127.0.0.1");
    flag("secure-port", &plan.api.to_string());
    flag("advertise-address", OUTSIDE);
    flag("service-cluster-ip-range", SERVICES);
    flag("allow-privileged", "true");
    flag("tls-cert-file", "apiserver.crt");
    flag("tls-private-key-file", "apiserver.key");
    flag("client-ca-file", "ca.crt");
    flag("token-auth-file", "tokens.csv");
    flag("service-account-key-file", "accounts.pub");
    flag("service-account-signing-key-file", "accounts.key");
    flag("service-account-issuer", "https://kubernetes.default.svc");
    flag("authorization-mode", "Node,RBAC");
    flag("enable-admission-plugins", "NodeRestriction");
    flag("egress-selector-config-file", "egress.yaml");
    flag("kubelet-client-certificate", "kubelet-client.crt");
    flag("kubelet-client-key", "kubelet-client.key");
    flag("kubelet-preferred-address-types", "InternalIP");
    server
}

fn controllers(plan: &Plan, nodes: &Path) -> Command {
    let mut controllers =
        worker(nodes, "kube-controller-manager", plan.controllers, &kubeconfig_name("controllers"));
    controllers
        .args(["--use-service-account-credentials", "--service-account-private-key-file=accounts.key"]);
    controllers.args([
        "--root-ca-file=ca.crt",
        "--cluster-signing-cert-file=ca.crt",
        "--cluster-signing-key-file=ca.key",
    ]);
    controllers.args([
        "--allocate-node-cidrs",
        "--node-cidr-mask-size-ipv4=24",
        "--node-cidr-mask-size-ipv6=64",
    ]);
    controllers.arg(format!("--cluster-cidr={PODS}")).arg(format!("--service-cluster-ip-range={SERVICES}"));
    controllers
}

fn scheduler(plan: &Plan, nodes: &Path) -> Command {
    worker(nodes, "kube-scheduler", plan.scheduler, &kubeconfig_name("scheduler"))
}

/// One that works through the API server, the only one of its kind.
fn worker(folder: &Path, program: &str, port: u16, kubeconfig: &str) -> Command {
    let mut worker = process::command(folder.join(program));
    worker.arg(format!("--kubeconfig={kubeconfig}")).arg(format!("--secure-port={port}"));
    worker.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    worker
}
