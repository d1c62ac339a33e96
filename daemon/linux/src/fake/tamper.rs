//! What somebody does behind the daemon's back.

use kubeveil_abi::DEVICE_NAMES;
use kubeveil_core::observed::{Datapath, Hook, TunnelDevice};

use super::{ENODEV, FakeKernel};

pub(super) type Deed = Box<dyn FnOnce(&mut FakeKernel) + Send>;

impl FakeKernel {
    /// Somebody does this after `looks` more looks, just before the next.
    pub fn meanwhile(&mut self, looks: usize, deed: impl FnOnce(&mut Self) + Send + 'static) {
        self.meanwhile = Some((looks, Box::new(deed)));
    }

    pub(super) fn time_passes(&mut self) {
        match self.meanwhile.take() {
            Some((0, deed)) => deed(self),
            Some((looks, deed)) => self.meanwhile = Some((looks - 1, deed)),
            None => {}
        }
    }

    /// Changes a WireGuard device behind the daemon's back.
    pub fn tamper(&mut self, device: &str, change: impl FnOnce(&mut TunnelDevice)) {
        if let Some(tunnel) = self.tunnels.get_mut(device) {
            change(tunnel);
        }
    }

    /// A device is about to go: the list of links still has it, and WireGuard knows it no more.
    pub fn is_going(&mut self, device: &str) {
        self.tunnels.remove(device);
    }

    /// Changes the maps behind the daemon's back, or unpins something.
    pub fn tamper_maps(&mut self, change: impl FnOnce(&mut Datapath)) {
        if let Some(datapath) = &mut self.pinned {
            change(datapath);
        }
    }

    /// Detaches a program behind the daemon's back.
    pub fn tamper_hook(&mut self, hook: &Hook) {
        self.attached.remove(hook);
    }

    /// Renames a device, as `ip link set … name` does.
    pub fn tamper_name(&mut self, name: &str, to: &str) {
        if let Some(index) = self.index(name) {
            // A device that is there can have any name.
            let _ = self.rename(index, to);
        }
    }

    /// WireGuard devices are found by our names alone.
    pub(super) fn rename(&mut self, index: u32, to: &str) -> Result<(), i32> {
        let link = self.links.get_mut(&index).ok_or(ENODEV)?;
        let tunnel = self.tunnels.remove(&link.name).or_else(|| self.renamed.remove(&index));
        to.clone_into(&mut link.name);
        match tunnel {
            Some(tunnel) if DEVICE_NAMES.contains(&to) => drop(self.tunnels.insert(to.to_owned(), tunnel)),
            Some(tunnel) => drop(self.renamed.insert(index, tunnel)),
            None => {}
        }
        Ok(())
    }
}
