//! The command line.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use kubeveil_cli::{SourceArg, patience};
use kubeveil_core::backstop::{Choice, Form};
use kubeveil_kubernetes::Origin;

/// Encrypts the traffic between this node's pods and those of other nodes, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "kubeveild", version, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    /// Where the cluster is read from: `dir:PATH`, a folder of manifests; `kubernetes`, the API server of the pod that this runs
    /// in; `kubernetes:PATH`, the one of a kubeconfig file.
    #[arg(long, required = true, env = "KUBEVEIL_SOURCE")]
    pub(crate) source: Option<SourceArg>,
    /// Name of this node, as its Node object is called.
    #[arg(long, required = true, env = "KUBEVEIL_NODE")]
    pub(crate) node: Option<String>,
    /// Keys, and what must be known after a restart. On a disk that survives reboots.
    #[arg(long, global = true, default_value = "/var/lib/kubeveil")]
    pub(crate) state_dir: PathBuf,
    /// Programs and maps are pinned here; on a BPF file system.
    #[arg(long, global = true, default_value = "/sys/fs/bpf/kubeveil")]
    pub(crate) bpf_dir: PathBuf,
    /// `kubeveil status` asks here.
    #[arg(long, global = true, default_value = "/run/kubeveil/kubeveild.sock")]
    pub(crate) socket: PathBuf,
    /// /metrics, /healthz and /readyz answer here.
    #[arg(long, default_value = "127.0.0.1:9586")]
    pub(crate) metrics_address: SocketAddr,
    /// A device that carries frames between nodes; may be given several times. Found by itself if not given. What has
    /// one of the node's own addresses or a default route is guarded in any case.
    #[arg(long)]
    pub(crate) underlay: Vec<String>,
    /// What holds pod traffic back at devices that nobody guards: a netfilter program, or a table of nftables.
    #[arg(long, value_enum, default_value_t = BackstopArg::Auto)]
    pub(crate) backstop: BackstopArg,
    /// What to log: error, warn, info, debug, trace, or a filter such as `info,kubeveil_linux=debug`.
    #[arg(long, global = true, default_value = "info", env = "KUBEVEIL_LOG")]
    pub(crate) log: String,
    /// How to log.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Load this eBPF object instead of the built-in one.
    #[arg(long, hide_short_help = true)]
    pub(crate) ebpf_object: Option<PathBuf>,
    /// Pin as a build of another ABI version would.
    #[arg(long, hide = true, value_name = "VERSION")]
    pub(crate) abi: Option<u32>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What else it can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take away all that kubeveil put into this node's kernel: programs, maps, WireGuard devices.
    Uninstall(Uninstall),
    /// Does for the whole cluster what needs one writer: makes VeilNodes, tells in the mesh's status how far it has got.
    Controller(Controller),
    /// What the chart's hooks do.
    #[command(subcommand)]
    Hook(Hook),
    /// What this node's kernel can do, who else is at its devices, and which other nodes can be reached over our UDP ports: a JSON
    /// document a line, of which the last counts. Changes nothing; `kubeveil check` runs it on the nodes.
    Probe(ProbeOptions),
}

/// Options of `probe`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ProbeOptions {
    /// This node.
    #[arg(long = "name", env = "KUBEVEIL_NODE", default_value = "")]
    pub(crate) name: String,
    /// Each node, this one too, with its addresses: `NAME=ADDRESS,ADDRESS`. Without others nobody is asked.
    #[arg(long = "peer")]
    pub(crate) peers: Vec<Peer>,
    /// How long others are asked and answered, such as 30s.
    #[arg(long, default_value = "10m", value_parser = patience)]
    pub(crate) within: Duration,
}

/// The value of `--peer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Name of the node.
    pub(crate) name: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, addresses) = text.split_once('=').ok_or("must be NAME=ADDRESS,ADDRESS")?;
        let addresses: Result<Vec<IpAddr>, _> = addresses.split(',').map(str::parse).collect();
        let addresses = addresses.map_err(|_| "must be NAME=ADDRESS,ADDRESS".to_owned())?;
        Ok(Self { name: name.to_owned(), addresses })
    }
}

/// Subcommands of `hook`.
#[derive(Debug, Subcommand)]
pub(crate) enum Hook {
    /// Apply the CustomResourceDefinitions that this version goes by.
    ApplyCrds {
        /// Which API server: `kubernetes` or `kubernetes:KUBECONFIG`.
        #[arg(long, default_value = "kubernetes")]
        source: SourceArg,
    },
    /// Have every node clean up (`spec.uninstall` of the mesh) and wait until all have. Exit code 4: some have not; they are named.
    Uninstall {
        /// Which API server: `kubernetes` or `kubernetes:KUBECONFIG`.
        #[arg(long, default_value = "kubernetes")]
        source: SourceArg,
        /// How long to wait for the nodes, such as 5m.
        #[arg(long, default_value = "5m", value_parser = patience)]
        timeout: Duration,
    },
    /// Answer what `hook test` has asked, in a pod on each node.
    TestEcho {
        /// Port, TCP.
        #[arg(long)]
        port: u16,
    },
    /// Have this node's `hook test-echo` ask another node's, and look at every frame that leaves this node meanwhile. Exit code 1: what
    /// was asked left in plain, or no answer came.
    Test {
        /// Which API server: `kubernetes` or `kubernetes:KUBECONFIG`.
        #[arg(long, default_value = "kubernetes")]
        source: SourceArg,
        /// This node.
        #[arg(long)]
        node: String,
        /// Namespace of the pods that answer.
        #[arg(long)]
        namespace: String,
        /// Their labels.
        #[arg(long)]
        echo: String,
        /// Their port.
        #[arg(long)]
        port: u16,
        /// How long to wait for them and for answers, such as 2m.
        #[arg(long, default_value = "2m", value_parser = patience)]
        timeout: Duration,
    },
}

/// Options of `controller`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Controller {
    /// Which API server: `kubernetes`, the one of the pod that this runs in, or `kubernetes:PATH`, the one of a kubeconfig file.
    #[arg(long, default_value = "kubernetes")]
    pub(crate) source: SourceArg,
    /// Namespace of its lease and of the agents' pods.
    #[arg(long, env = "KUBEVEIL_NAMESPACE")]
    pub(crate) namespace: String,
    /// Who this is among several controllers, of which one leads.
    #[arg(long)]
    pub(crate) identity: String,
    /// /healthz and /readyz answer here.
    #[arg(long, default_value = "127.0.0.1:9587")]
    pub(crate) health_address: SocketAddr,
}

/// Options of `uninstall`.
#[derive(Debug, ClapArgs)]
pub(crate) struct Uninstall {
    /// Say that pod traffic may travel in plain from now on. Needed where the mesh requires encryption.
    #[arg(long)]
    pub(crate) accept_plaintext: bool,
    /// Remove the node's keys too.
    #[arg(long)]
    pub(crate) remove_keys: bool,
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line an event, for people.
    Text,
    /// A JSON object an event.
    Json,
}

/// The value of `--backstop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackstopArg {
    /// The program, and nftables where the kernel refuses that.
    Auto,
    /// The program or nothing.
    Bpf,
    /// The table or nothing.
    Nftables,
}

impl From<BackstopArg> for Choice {
    fn from(argument: BackstopArg) -> Self {
        match argument {
            BackstopArg::Auto => Self::Auto,
            BackstopArg::Bpf => Self::Only(Form::Bpf),
            BackstopArg::Nftables => Self::Only(Form::Nftables),
        }
    }
}

/// Which API server a daemon asks, which finds its own by the account of its pod alone.
pub(crate) fn origin(kubeconfig: Option<&PathBuf>) -> Origin {
    kubeconfig.cloned().map_or(Origin::InCluster, Origin::Kubeconfig)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever kubeconfig lies about on its node.
    #[test]
    fn a_daemon_goes_by_its_pod() {
        assert_eq!(origin(None), Origin::InCluster);
        assert_eq!(origin(Some(&"/x:y".into())), Origin::Kubeconfig("/x:y".into()));
    }
}
