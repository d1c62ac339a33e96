//! The sysctls that packets out of a tunnel device need.

use std::{fs, io, path::PathBuf};

use crate::KernelError;

/// Name below `/proc/sys/net/{family}/conf/{device}/`, and value.
///
/// `rp_filter` 2 (loose): packets come in by the tunnel whose answers leave by the underlay, where
/// steer takes them. The value in force is the larger of `all` and the device
/// (kernel `Documentation/networking/ip-sysctl.rst`), so 0 would not do where `all` is 1.
const WANTED: [(&str, &str, &str); 4] = [
    ("ipv4", "rp_filter", "2"),
    ("ipv4", "forwarding", "1"),
    ("ipv6", "forwarding", "1"),
    ("ipv6", "disable_ipv6", "0"),
];

fn path(family: &str, device: &str, name: &str) -> PathBuf {
    format!("/proc/sys/net/{family}/conf/{device}/{name}").into()
}

/// Are they as they should be? One that this kernel lacks (no IPv6) is no fault.
pub fn are_right(device: &str) -> bool {
    WANTED.iter().all(|(family, name, value)| match fs::read_to_string(path(family, device, name)) {
        Ok(now) => now.trim() == *value,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    })
}

/// Sets them.
pub fn set(device: &str) -> Result<(), KernelError> {
    for (family, name, value) in WANTED {
        let path = path(family, device, name);
        match fs::write(&path, value) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::new("write", path.display().to_string(), e));
            }
            _ => {}
        }
    }
    Ok(())
}
