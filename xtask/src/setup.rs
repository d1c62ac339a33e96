//! Programs of the machine that set-up needs: what is missing, why it is needed, installed.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{
    process::{self, find},
    report::say,
    workspace::Workspace,
};

/// A program that the machine must have, and Debian's package of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why }
}

/// Needed to build anything.
pub(crate) const COMPILER: &[Tool] =
    &[tool("cc", "gcc", "links the programs"), tool("ld", "binutils", "links the programs")];

/// Needed to fuzz.
pub(crate) const FUZZER: &[Tool] = &[tool("c++", "g++", "builds libFuzzer")];

/// Needed to build Kubernetes.
pub(crate) const GO: &[Tool] = &[tool("go", "golang-go", "builds an API server of Kubernetes, and helm")];

/// Needed to make a cluster and its control plane.
pub(crate) const CLUSTER: &[Tool] = &[
    tool("openssl", "openssl", "makes the cluster's certificates"),
    tool("mke2fs", "e2fsprogs", "makes the nodes' disk"),
    tool("setpriv", "util-linux", "ends the control plane with xtask"),
];

/// Needed to boot a guest.
pub(crate) const EMULATOR: &[Tool] = &[
    tool("qemu-system-x86_64", "qemu-system-x86", "runs a kernel that has WireGuard"),
    tool("mkfs.erofs", "erofs-utils", "makes the guest's disks"),
    tool("busybox", "busybox-static", "is the guest's first process"),
    tool("depmod", "kmod", "reads the kernel's modules"),
    tool("cpio", "cpio", "packs the guest's first file system"),
    tool("zstd", "zstd", "unpacks the kernel"),
    tool("xz", "xz-utils", "unpacks the kernel's modules"),
];

/// What COMMAND finds on PATH in the lab, on the machine's kernel or in the guest.
pub(crate) const LAB: &[Tool] = &[
    tool("ip", "iproute2", "lays the lab's network"),
    tool("tc", "iproute2", "lays the lab's network"),
    tool("wg", "wireguard-tools", "shows what WireGuard does"),
    tool("bpftool", "bpftool", "shows which programs are attached"),
    tool("tcpdump", "tcpdump", "captures the wire"),
    tool("nft", "nftables", "is for scenarios with a firewall"),
    tool("ping", "iputils-ping", "makes traffic"),
    tool("socat", "socat", "makes traffic"),
    tool("iperf3", "iperf3", "makes traffic"),
];

/// Installs what of `tools` this machine has not, after saying what and why.
pub(crate) fn ensure(workspace: &Workspace, tools: &[&[Tool]]) -> Result<()> {
    let missing = missing(tools, |program| find(program).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let reasons: Vec<String> = missing.iter().map(|t| format!("{} ({})", t.package, t.why)).collect();
    if find("apt-get").is_none() {
        let programs: Vec<&str> = missing.iter().map(|t| t.program).collect();
        bail!(
            "this machine lacks {}; they come with the packages that Debian calls {}. Set-up installs with apt-get only: \
             install them with this machine's package manager, then try again",
            programs.join(", "),
            reasons.join(", ")
        );
    }
    say(format!("installing {}", reasons.join(", ")));
    let mut packages: Vec<&str> = missing.iter().map(|t| t.package).collect();
    packages.sort_unstable();
    packages.dedup();
    install(workspace, &packages)
}

/// The tools of these lists that `has` knows nothing of.
fn missing<'a>(tools: &[&'a [Tool]], has: impl Fn(&str) -> bool) -> Vec<&'a Tool> {
    tools.iter().copied().flatten().filter(|tool| !has(tool.program)).collect()
}

/// `apt-get install`; the lists are fetched first where they are missing or out of date.
fn install(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    if apt_install(packages).is_err() {
        let mut update = process::as_root("apt-get")?;
        process::step("apt-get update", update.args(["-q", "update"]))?;
        apt_install(packages).context("install the packages named above by hand, then try again")?;
    }
    // Which packages set-up put on this machine, for who wants to take them away again.
    let list = workspace.cache.join("installed-packages");
    let before = fs::read_to_string(&list).unwrap_or_default();
    let added = packages.iter().filter(|p| !before.lines().any(|l| l == **p));
    let text = added.fold(before.clone(), |text, package| text + package + "\n");
    fs::write(&list, text).with_context(|| format!("write {}", list.display()))
}

fn apt_install(packages: &[&str]) -> Result<()> {
    // wireguard-tools recommends a whole kernel: none of that.
    let mut install = process::as_root("env")?;
    install.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-q",
        "install",
        "-y",
        "--no-install-recommends",
    ]);
    install.args(["-o", "DPkg::Lock::Timeout=300"]).args(packages);
    process::step(&format!("apt-get install {}", packages.join(" ")), &mut install).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        let has = |program: &str| program != "wg" && program != "xz";
        let packages: Vec<&str> = missing(&[EMULATOR, LAB], has).iter().map(|t| t.package).collect();
        assert_eq!(packages, ["xz-utils", "wireguard-tools"]);
    }
}
