//! What the kernel refused.

use std::io;

use kubeveil_core::problem::causes;

/// A privileged step that failed: what was done, to what, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {}{}", self.cause(), .advice.map(|a| format!(". {a}")).unwrap_or_default())]
pub struct KernelError {
    /// For example `attach steer to`.
    pub operation: &'static str,
    /// For example `eth0`.
    pub object: String,
    /// What to do about it, where it is known.
    pub advice: Option<&'static str>,
    /// What the kernel or a library said.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl KernelError {
    /// Names the step that failed.
    pub fn new(
        operation: &'static str,
        object: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let advice = errno(source.as_ref()).and_then(|errno| advice(operation, errno));
        Self { operation, object: object.into(), advice, source }
    }

    /// What the kernel said, to the bottom of it: libraries tell which of their calls failed, and only their sources why.
    pub fn cause(&self) -> String {
        causes(self.source.as_ref())
    }

    /// The kernel's error number, if one is at the bottom of it.
    pub fn errno(&self) -> Option<i32> {
        errno(self.source.as_ref())
    }
}

/// Making a WireGuard device.
pub(crate) const CREATE_WIREGUARD: &str = "create WireGuard device";
/// Writing the backstop's table.
pub(crate) const WRITE_TABLE: &str = "write the rules of";
/// Loading the backstop's program, and linking it.
pub(crate) const LOAD_NETFILTER: &str = "load netfilter program";
pub(crate) const LINK_NETFILTER: &str = "link to netfilter";
/// Attaching a program.
pub(crate) const ATTACH: &str = "attach to";
/// Pinning something.
pub(crate) const PIN: &str = "pin";
/// The same where a filter of somebody else's has the first place that there is.
pub(crate) const ATTACH_FIRST: &str = "attach ahead of all filters of";

fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        at = error.source();
    }
    None
}

fn advice(operation: &str, errno: i32) -> Option<&'static str> {
    use rustix::io::Errno;
    Some(match Errno::from_raw_os_error(errno) {
        // The kernel's answer wherever else than on a BPF file system.
        Errno::PERM if operation == PIN => {
            "The BPF file system is not there any more: mount it again (`mount -t bpf bpf /sys/fs/bpf`) before \
             kubeveild ends. Until then all goes on; without it, nothing of kubeveil would outlive the daemon"
        }
        Errno::PERM | Errno::ACCESS => {
            "kubeveild needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (a privileged container has them)"
        }
        Errno::OPNOTSUPP if operation == CREATE_WIREGUARD => {
            "This kernel lacks it: `modprobe wireguard`, or a kernel with CONFIG_WIREGUARD"
        }
        Errno::INVAL | Errno::EXIST if operation == ATTACH_FIRST => {
            "A filter of another kind or protocol stands at priority 1, before which there is none: have its owner give it a later one (`tc filter show dev DEVICE`)"
        }
        Errno::INVAL if [LOAD_NETFILTER, LINK_NETFILTER].contains(&operation) => {
            "Netfilter programs need Linux 6.4 or later, not locked down for confidentiality"
        }
        Errno::NOENT | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::INVAL
            if operation == WRITE_TABLE =>
        {
            "This kernel lacks nf_tables or a part of it: `modprobe -a nf_tables nft_objref`"
        }
        Errno::NOSPC | Errno::TOOBIG => "A map of the datapath is full",
        Errno::NOMEM => "The kernel is short of memory; it is tried again",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use aya::{maps::MapError, sys::SyscallError};

    use super::*;

    /// As aya tells of it: the call, and below it why.
    #[test]
    fn an_error_tells_what_the_kernel_said() {
        let busy = rustix::io::Errno::BUSY;
        let of_call = SyscallError { call: "bpf_map_update_elem", io_error: busy.into() };
        let error = KernelError::new("write", "map PREFIXES", MapError::from(of_call));
        let text = error.to_string();
        assert!(text.starts_with("write map PREFIXES: `bpf_map_update_elem` failed: "), "{text}");
        assert!(text.contains(&io::Error::from(busy).to_string()), "{text}");
        assert_eq!(error.errno(), Some(busy.raw_os_error()));
        // What is the bottom itself is told once.
        let plain = KernelError::new("list", "devices", io::Error::from(busy));
        assert_eq!(plain.cause(), io::Error::from(busy).to_string());
    }
}
