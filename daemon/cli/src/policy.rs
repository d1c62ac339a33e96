//! `kubeveil policy`: what policies come to, before a cluster has them.

mod diff;
mod test;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kubeveil_api::mesh::Mode;

use crate::{Output, source::SourceArg};

/// Arguments of `policy`.
#[derive(Debug, Args)]
pub(crate) struct Policy {
    #[command(subcommand)]
    command: Command,
    /// Lines for people or JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hold manifests to what is expected of them (kind PolicyTest), without a cluster. Exit code 1: something is otherwise; 2: a file
    /// can't be read, or nothing is expected.
    Test {
        /// Files, or folders of them: policies, EncryptionMesh, Namespaces, Pods, and what is expected.
        #[arg(short, required = true, num_args = 1.., value_name = "PATH")]
        files: Vec<PathBuf>,
        /// More files, such as what `kubectl get namespaces,pods -A -o yaml` prints.
        #[arg(long, num_args = 1.., value_name = "PATH")]
        pods: Vec<PathBuf>,
        /// As if the mesh had this mode.
        #[arg(long, value_name = "MODE", value_parser = mode)]
        mesh_mode: Option<Mode>,
    },
    /// Which flows would be held to something else, if policies of files were added to those of a cluster, or came in the place of
    /// those of the same name. Exit code 0: none; 1: some; 2: a file can't be read; 3: the cluster can't.
    Diff {
        /// Files, or folders of them: policies, and EncryptionMesh where its mode is to change.
        #[arg(short, num_args = 1.., value_name = "PATH", required_unless_present = "remove")]
        files: Vec<PathBuf>,
        /// A policy that would be gone: EncryptionPolicy/NAMESPACE/NAME or ClusterEncryptionPolicy/NAME.
        #[arg(long, value_name = "KIND/NAME")]
        remove: Vec<diff::Removed>,
        /// The cluster as files, in the place of --source: Pods, Namespaces, the policies that there are and EncryptionMesh.
        #[arg(long, num_args = 1.., value_name = "PATH")]
        pods: Vec<PathBuf>,
        /// Where the cluster is: `kubernetes`, as kubectl finds it; `kubernetes:KUBECONFIG`; or `dir:PATH`, the folder that the daemons
        /// read.
        #[arg(long, default_value = "kubernetes", env = "KUBEVEIL_SOURCE")]
        source: SourceArg,
    },
}

/// The command.
pub(crate) fn run(policy: &Policy) -> anyhow::Result<u8> {
    match &policy.command {
        Command::Test { files, pods, mesh_mode } => Ok(test::run(files, pods, *mesh_mode, policy.output)),
        Command::Diff { files, remove, pods, source } => {
            diff::run(files, remove, (!pods.is_empty()).then_some(pods), source, policy.output)
        }
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    let known = Mode::ALL.iter().find(|mode| mode.name() == text);
    known.copied().ok_or_else(|| "must be observe, prefer or require".to_owned())
}

/// Rules, for people.
pub(crate) fn by(rules: &[kubeveil_core::policy::ruling::Rule]) -> String {
    format!("by {}", kubeveil_api::problem::few(rules.iter(), 3))
}
