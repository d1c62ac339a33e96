//! What a kernel can do and who else is at its devices, looked at without changing anything.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use kubeveil_abi::DEVICE_NAMES;
use kubeveil_core::observed::{Ahead, Link};

use crate::{
    KernelError,
    bpf::{self, Pins},
    link::Links,
    preflight, wireguard,
};

/// Where a kernel tells of its own types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// A kernel, and what is attached to its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Why there is no WireGuard; `None` if there is.
    pub no_wireguard: Option<String>,
    /// Why programs can't be loaded; `None` if they can.
    pub no_programs: Option<String>,
    /// Programs are attached by tcx links; else as filters.
    pub tcx: bool,
    /// The kernel tells of its own types.
    pub btf: bool,
    /// The folder is on a BPF file system.
    pub bpffs: bool,
    /// Programs that are not ours, at devices that lead to other nodes.
    pub programs: BTreeSet<Foreign>,
    /// UDP ports of WireGuard devices, by the device.
    pub wireguard: Vec<(String, u16)>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// Somebody else's program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// The device.
    pub device: String,
    /// Where at it.
    pub hook: &'static str,
    /// Which.
    pub program: String,
}

/// Looks, in the network namespace of the calling thread, at a node with these addresses. `bpf_dir` is where programs would be
/// pinned, `object` holds them. Call within a tokio runtime, and not on an async thread.
pub fn survey(bpf_dir: &Path, object: &[u8], own: &[IpAddr]) -> Survey {
    let mut survey = Survey {
        no_wireguard: wireguard::missing(),
        no_programs: bpf::try_load(object).err().map(|e| e.to_string()),
        tcx: bpf::has_tcx(),
        btf: PathBuf::from(BTF).exists(),
        bpffs: preflight::is_bpffs(bpf_dir),
        ..Survey::default()
    };
    if let Err(e) = devices(&mut survey, &Pins::new(bpf_dir), own) {
        survey.unseen.push(e.to_string());
    }
    survey
}

fn devices(survey: &mut Survey, pins: &Pins, own: &[IpAddr]) -> Result<(), KernelError> {
    let links = Links::connect()?;
    let all = links.dump()?;
    let xdp = links.xdp()?;
    let ours = bpf::ours(pins);
    for (index, link) in &all {
        if link.kind.as_deref() == Some("wireguard") {
            match wireguard::dump(&link.name) {
                Ok(dump) => survey.wireguard.extend(dump.map(|dump| (link.name.clone(), dump.port))),
                Err(e) => survey.unseen.push(e.to_string()),
            }
        }
        if !leads_out(link, own) {
            continue;
        }
        let foreign = |hook, program| Foreign { device: link.name.clone(), hook, program };
        survey.programs.extend(xdp.get(index).map(|id| foreign("xdp", format!("program {id}"))));
        for (hook, egress) in [("tc ingress", false), ("tc egress", true)] {
            match bpf::others(&ours, (*index, &link.name), egress, survey.tcx, &links) {
                Ok(others) => {
                    survey
                        .programs
                        .extend(others.iter().map(|other: &Ahead| foreign(hook, other.to_string())));
                }
                Err(e) => survey.unseen.push(e.to_string()),
            }
        }
    }
    Ok(())
}

/// By it the node speaks with others: it has one of the node's addresses or a default route, or puts packets into envelopes.
fn leads_out(link: &Link, own: &[IpAddr]) -> bool {
    let is_tunnel = DEVICE_NAMES.contains(&link.name.as_str());
    let has_own = link.addresses.iter().any(|address| own.contains(&address.addr()));
    let is_overlay = matches!(link.kind.as_deref(), Some("vxlan" | "geneve"));
    let leads_anywhere = link.routes.iter().any(|route| route.prefix_len() == 0);
    !link.loopback && !is_tunnel && (has_own || is_overlay || leads_anywhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<&str>, address: &str, route: &str) -> Link {
        Link {
            name: "d".to_owned(),
            kind: kind.map(str::to_owned),
            addresses: [address.parse().expect("address")].into(),
            routes: vec![route.parse().expect("route")],
            ..Link::default()
        }
    }

    #[test]
    fn a_pods_device_leads_nowhere_else() {
        let own = ["192.0.2.1".parse().expect("address")];
        assert!(leads_out(&link(None, "192.0.2.1/24", "192.0.2.0/24"), &own));
        assert!(leads_out(&link(None, "198.51.100.1/24", "0.0.0.0/0"), &own));
        assert!(leads_out(&link(Some("vxlan"), "10.244.0.0/32", "10.244.1.0/24"), &own));
        assert!(!leads_out(&link(Some("veth"), "10.244.0.1/24", "10.244.0.7/32"), &own));
        let mut tunnel = link(Some("wireguard"), "192.0.2.1/24", "0.0.0.0/0");
        DEVICE_NAMES[0].clone_into(&mut tunnel.name);
        assert!(!leads_out(&tunnel, &own));
    }
}
