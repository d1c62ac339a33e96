//! Where the cluster is: `--source` of the daemon, and of commands that see all of it.

use std::{env, path::PathBuf, str::FromStr};

use kubeveil_api::{problem::Problem, rotation::MOST_WORDS};
use kubeveil_core::{
    control::Control,
    policy::{census::Census, services::Services},
};
use kubeveil_kubernetes::{KubernetesControl, Origin, Pace};
use kubeveil_manifests::FolderControl;
use tokio::runtime::{Builder, Handle};

/// The value of `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceArg {
    /// A folder of manifests.
    Folder(PathBuf),
    /// An API server: that of a kubeconfig file, else the one that the program finds by itself.
    Kubernetes(Option<PathBuf>),
}

impl FromStr for SourceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Folder(path.into())),
            Some(("kubernetes", path)) if !path.is_empty() => Ok(Self::Kubernetes(Some(path.into()))),
            None if text == "kubernetes" => Ok(Self::Kubernetes(None)),
            _ => Err("must be dir:PATH, kubernetes or kubernetes:KUBECONFIG".to_owned()),
        }
    }
}

impl SourceArg {
    /// Opens it; an API server is asked on `runtime`.
    pub(crate) fn open(&self, runtime: &Handle) -> Box<dyn Control> {
        match self {
            Self::Folder(path) => Box::new(FolderControl::new(path, who())),
            Self::Kubernetes(file) => {
                let origin = file.clone().map_or(Origin::Usual, Origin::Kubeconfig);
                Box::new(KubernetesControl::new(origin, Pace::default(), runtime))
            }
        }
    }

    /// All that decides on flows between pods.
    pub(crate) fn census(&self) -> anyhow::Result<Result<Census, Problem>> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut control = self.open(runtime.handle());
        Ok(control.census())
    }

    /// The same, and if that is wanted who is behind Services.
    pub(crate) fn census_and_services(&self, wants_services: bool) -> anyhow::Result<Surveyed> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut control = self.open(runtime.handle());
        let census = control.census();
        Ok(census.map(|census| {
            (census, if wants_services { control.services() } else { Ok(Services::default()) })
        }))
    }
}

/// A census, and Services if they may be read.
pub(crate) type Surveyed = Result<(Census, Result<Services, Problem>), Problem>;

/// Who asks, as it goes on record.
pub(crate) fn on_record(control: &mut dyn Control) -> Result<String, Problem> {
    Ok(control.who()?.chars().take(MOST_WORDS).collect())
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
    fn a_source_is_read() {
        for (text, source) in [
            ("dir:/x", SourceArg::Folder("/x".into())),
            ("kubernetes", SourceArg::Kubernetes(None)),
            ("kubernetes:/x:y", SourceArg::Kubernetes(Some("/x:y".into()))),
        ] {
            assert_eq!(text.parse(), Ok(source), "{text}");
        }
        for text in ["", "dir", "dir:", "kubernetes:", "kube", "folder:/x", "/x"] {
            assert!(text.parse::<SourceArg>().is_err(), "{text}");
        }
    }
}
