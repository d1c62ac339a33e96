//! Where the cluster is: `--source` of commands that see all of it.

use std::{env, fmt, path::PathBuf, str::FromStr};

use kubeveil_core::control::Control;
use kubeveil_kubernetes::{KubernetesControl, Origin, Pace};
use kubeveil_manifests::FolderControl;
use tokio::runtime::Handle;

/// The value of `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceArg {
    /// The folder of manifests that the daemons read.
    Folder(PathBuf),
    /// An API server.
    Kubernetes(Origin),
}

impl FromStr for SourceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes(Origin::Usual)),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Folder(path.into())),
            Some(("kubernetes", path)) if !path.is_empty() => {
                Ok(Self::Kubernetes(Origin::Kubeconfig(path.into())))
            }
            _ => Err("must be kubernetes, kubernetes:KUBECONFIG or dir:PATH".to_owned()),
        }
    }
}

impl fmt::Display for SourceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "dir:{}", path.display()),
            Self::Kubernetes(origin) => origin.fmt(f),
        }
    }
}

impl SourceArg {
    /// Opens it; an API server is asked on `runtime`.
    pub(crate) fn open(&self, runtime: &Handle) -> Box<dyn Control> {
        match self {
            Self::Folder(path) => Box::new(FolderControl::new(path, who())),
            Self::Kubernetes(origin) => {
                Box::new(KubernetesControl::new(origin.clone(), Pace::default(), runtime))
            }
        }
    }
}

/// The person at this terminal, and the machine. Nobody vouches for it.
fn who() -> String {
    let named = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let uid = || format!("uid {}", rustix::process::getuid().as_raw());
    let user = named("SUDO_USER").or_else(|| named("USER")).unwrap_or_else(uid);
    let machine = rustix::system::uname();
    format!("{user}@{}", machine.nodename().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_reads_as_it_is_written() {
        for text in ["kubernetes", "kubernetes:/etc/kubeconfig", "dir:/etc/kubeveil"] {
            assert_eq!(text.parse::<SourceArg>().expect("a source").to_string(), text);
        }
        for text in ["", "dir", "dir:", "folder:/x", "kubernetes:"] {
            assert!(text.parse::<SourceArg>().is_err(), "{text}");
        }
    }
}
