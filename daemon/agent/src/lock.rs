//! One daemon a node: locks on what two would fight over, held as long as the process lives.

use std::{
    fmt, fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::DirBuilderExt as _,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use rustix::net::sockopt::socket_peercred;

use crate::args::Args;

/// Devices, their programs and the UDP port are the network namespace's, wherever two daemons have their folders; and
/// so are abstract names of sockets (unix(7)), which end with the process.
const NAME: &[u8] = b"kubeveild";

/// Held as long as this lives.
#[derive(Debug)]
pub(crate) struct Locks {
    _files: [fs::File; 2],
    _network: Option<UnixListener>,
}

/// Another daemon has what this one wants.
#[derive(Debug)]
pub(crate) struct Busy(String);

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = &self.0;
        write!(
            f,
            "another kubeveild runs on this node: it holds {held}. Two would undo each other's work; stop one of them"
        )
    }
}

impl std::error::Error for Busy {}

/// Takes all locks, or none.
pub(crate) fn lock(args: &Args) -> Result<Locks> {
    let network = network()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.state_dir)
        .with_context(|| format!("make {} (--state-dir)", args.state_dir.display()))?;
    fs::create_dir_all(&args.bpf_dir)
        .with_context(|| format!("make {} (--bpf-dir)", args.bpf_dir.display()))?;
    let path = args.state_dir.join("lock");
    let state = fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    let pins = fs::File::open(&args.bpf_dir).with_context(|| format!("open {}", args.bpf_dir.display()))?;
    Ok(Locks { _files: [hold(state, &path)?, hold(pins, &args.bpf_dir)?], _network: network })
}

fn hold(file: fs::File, path: &Path) -> Result<fs::File> {
    match fs4::FileExt::try_lock(&file) {
        Ok(()) => Ok(file),
        Err(fs4::TryLockError::WouldBlock) => Err(Busy(path.display().to_string()).into()),
        Err(fs4::TryLockError::Error(e)) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

/// The network namespace. Anybody in it may take the name; only root's having it keeps us from guarding the node.
fn network() -> Result<Option<UnixListener>> {
    let address = SocketAddr::from_abstract_name(NAME)?;
    let error = match UnixListener::bind_addr(&address) {
        Ok(listener) => return Ok(Some(listener)),
        Err(error) => error,
    };
    if error.kind() != io::ErrorKind::AddrInUse {
        return Err(error).context("lock this network namespace (abstract socket @kubeveild)");
    }
    let holder = UnixStream::connect_addr(&address).and_then(|stream| Ok(socket_peercred(&stream)?));
    match holder {
        Ok(holder) if !holder.uid.is_root() => {
            tracing::warn!(
                process = holder.pid.as_raw_nonzero(),
                user = holder.uid.as_raw(),
                "the abstract socket @kubeveild, by which daemons know of each other, is held by somebody who is not root"
            );
            Ok(None)
        }
        Ok(holder) => {
            Err(Busy(format!("this network namespace, as process {}", holder.pid.as_raw_nonzero())).into())
        }
        Err(_) => Err(Busy("this network namespace".to_owned()).into()),
    }
}
