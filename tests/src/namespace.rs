//! Running code and programs inside a network namespace.
//!
//! A network namespace belongs to a thread. What a thread makes inside one stays there: a socket keeps
//! its namespace for life, a child process inherits it. So a guard is held only while something is made.

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps its namespaces.
pub const FOLDER: &str = "/run/netns";

/// Keeps the calling thread inside a namespace; back where it was when dropped.
///
/// Not `Send`: dropped by another thread it would move the wrong one.
#[must_use = "the thread leaves the namespace when this is dropped"]
pub struct Inside {
    before: File,
    not_send: PhantomData<*const ()>,
}

impl Inside {
    /// Moves the calling thread into the namespace `name`.
    pub fn enter(name: &str) -> Result<Self> {
        let before =
            File::open("/proc/thread-self/ns/net").context("open the thread's own network namespace")?;
        let path = path(name);
        let target = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter the network namespace {name}"))?;
        Ok(Self { before, not_send: PhantomData })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network)) {
            // A thread that goes on in another network would test, or change, the wrong machine.
            eprintln!("leave a network namespace: {error}");
            std::process::abort();
        }
    }
}

/// Where the namespace `name` is.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(FOLDER).join(name)
}

/// Calls `make` inside the namespace `name`.
pub fn within<T>(name: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let _inside = Inside::enter(name)?;
    make()
}

/// Starts a program inside the namespace `name`.
pub fn spawn(name: &str, command: &mut Command) -> Result<Child> {
    within(name, || {
        command.spawn().with_context(|| format!("start {} in {name}", command.get_program().display()))
    })
}

/// The text of a file of `/proc/net` in the namespace `name`, such as `snmp`.
pub fn proc_net(name: &str, file: &str) -> Result<String> {
    within(name, || {
        // Not /proc/net: that is the namespace of the process' first thread.
        let path = format!("/proc/thread-self/net/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("read {path} in {name}"))
    })
}

/// Writes a file of `/proc/sys` in the namespace `name`; `key` with slashes.
pub fn sysctl(name: &str, key: &str, value: &str) -> Result<()> {
    within(name, || {
        let path = format!("/proc/sys/{key}");
        std::fs::write(&path, value).with_context(|| format!("write {value} to {path} in {name}"))
    })
}
