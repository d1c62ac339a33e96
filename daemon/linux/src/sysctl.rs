//! The sysctls that packets out of a tunnel device need.
//!
//! In a container `/proc/sys` can be read only. What netlink can set is set by netlink, and what need not be changed is not written.

use std::{fs, io, path::PathBuf};

use crate::{KernelError, link::Links};

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

/// Those of IPv4 as netlink numbers them: `IPV4_DEVCONF_RP_FILTER` and `IPV4_DEVCONF_FORWARDING`
/// (kernel `include/uapi/linux/ip.h`). There is no such way for IPv6's, which a device has from `default`: what forwards
/// packets has them already.
const BY_NETLINK: [(u16, u32); 2] = [(8, 2), (1, 1)];

fn path(family: &str, device: &str, name: &str) -> PathBuf {
    format!("/proc/sys/net/{family}/conf/{device}/{name}").into()
}

fn is_right((family, name, value): (&str, &str, &str), device: &str) -> bool {
    match fs::read_to_string(path(family, device, name)) {
        Ok(now) => now.trim() == value,
        // This kernel lacks it (no IPv6), which is no fault.
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

/// Are they as they should be?
pub fn are_right(device: &str) -> bool {
    WANTED.iter().all(|wanted| is_right(*wanted, device))
}

/// Sets them.
pub(crate) fn set(links: &Links, device: &str) -> Result<(), KernelError> {
    links.set_ipv4_conf(device, &BY_NETLINK)?;
    for wanted in WANTED {
        if is_right(wanted, device) {
            continue;
        }
        let (family, name, value) = wanted;
        let path = path(family, device, name);
        fs::write(&path, value).map_err(|e| KernelError::new("write", path.display().to_string(), e))?;
    }
    Ok(())
}
