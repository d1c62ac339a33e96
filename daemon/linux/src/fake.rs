//! A kernel made of memory, with the semantics that the daemon relies on.
//!
//! What it models of WireGuard, held to on the real kernel by the same sequence of actions ([`crate::claims`]):
//! AllowedIPs move to the peer that claimed them last; a peer with the device's own key is ignored
//! without a word; a private key set on a device leaves the times of handshakes whose sessions it ends;
//! an update of a peer that is gone adds it again; a keepalive set on a device that is up starts a
//! handshake.
//! Of the backstop: it outlives the daemon; the program is in force as soon as it is raised, and nftables tells the
//! rules that it was given until somebody flushes it, which is told.
//! And of the datapath, held to by the lab's scenarios: maps and attachments outlive the daemon; a program does nothing
//! any more when its device is gone, but what pins it stays; a link keeps the program of the build that attached it; that a pod's device is
//! there stands in the maps until it is gone, and a device that is not there can't be put into them.
//!
//! What it can't prove: that packets are steered, dropped or encrypted; timing; what the verifier says;
//! anything about two CPUs.

mod calls;
mod tamper;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use kubeveil_abi::Origin;
use kubeveil_core::{
    action::Action,
    backstop::{Backstop, Form, Standing},
    observed::{Datapath, Hook, Link, Neighbours, Observed, TunnelDevice},
};
use kubeveil_keys::PublicKey;

use crate::{Flow, Removed, Sightings};

pub use calls::{Call, Failure};

/// The fake.
#[derive(Default)]
pub struct FakeKernel {
    links: BTreeMap<u32, Link>,
    tunnels: BTreeMap<String, TunnelDevice>,
    /// Those that have another name, by which nobody looks for them.
    renamed: BTreeMap<u32, TunnelDevice>,
    /// What is pinned, whether a daemon has it open or not; attachments apart.
    pinned: Option<Datapath>,
    /// Attachments that are pinned, with the build of their program.
    attached: BTreeMap<Hook, String>,
    backstop: Standing,
    /// Forms of the backstop that this kernel does not take.
    refuses: BTreeMap<Form, String>,
    neighbours: Neighbours,
    open: bool,
    build: String,
    last_index: u32,
    answering: BTreeSet<PublicKey>,
    speaking: BTreeSet<PublicKey>,
    clock: Duration,
    fault: Option<calls::Fault>,
    /// After so many looks.
    meanwhile: Option<(usize, tamper::Deed)>,
    /// What somebody watches.
    pub watched: Vec<Flow>,
    /// What is seen of it: whoever plays the packets says so.
    pub sightings: Sightings,
    /// Every action that was tried, in order.
    pub tried: Vec<Action>,
}

impl FakeKernel {
    /// With one underlay device, `eth0`, that has `addresses`.
    pub fn new(build: &str, addresses: &[IpNet]) -> Self {
        let mut fake = Self { build: build.to_owned(), ..Self::default() };
        fake.add_link(Link {
            name: "eth0".to_owned(),
            up: true,
            mtu: 1500,
            addresses: addresses.iter().copied().collect(),
            ..Link::default()
        });
        fake
    }

    /// Adds a device; returns its index, which is never used again.
    pub fn add_link(&mut self, link: Link) -> u32 {
        self.last_index += 1;
        self.links.insert(self.last_index, link);
        self.last_index
    }

    /// Deletes a device as `ip link del` does: what is attached to it does nothing any more.
    pub fn delete_link(&mut self, name: &str) {
        let Some(index) = self.index(name) else { return };
        self.links.remove(&index);
        self.tunnels.remove(name);
        if let Some(pinned) = &mut self.pinned {
            let gone = pinned.origins.values().filter(|origin| origin.device == index).map(Origin::key);
            let gone: BTreeSet<u32> = gone.collect();
            pinned.alive.retain(|key| !gone.contains(key));
        }
    }

    /// Somebody with this address was heard behind a port of a bridge.
    pub fn hear(&mut self, address: IpAddr, bridge: u32, port: u32) {
        let [a, b, c, d] = port.to_be_bytes();
        let hardware = [2, 0, a, b, c, d];
        self.neighbours.hardware.insert((bridge, address), hardware);
        self.neighbours.ports.insert((bridge, hardware), port);
    }

    /// The next daemon brings other programs.
    pub fn upgrade(&mut self, build: &str) {
        build.clone_into(&mut self.build);
    }

    /// Where a program of ours looks at packets, of whichever build.
    pub fn enforced(&self) -> BTreeSet<Hook> {
        self.attached.keys().filter(|hook| self.links.contains_key(&hook.1)).copied().collect()
    }

    /// From now on every form of the backstop can be had.
    pub fn take_backstops(&mut self) {
        self.refuses.clear();
    }

    /// From now on a form of the backstop can't be had; it is refused when it is tried.
    pub fn refuse_backstop(&mut self, form: Form, why: &str) {
        self.refuses.insert(form, why.to_owned());
    }

    /// Somebody flushes nftables.
    pub fn flush_nftables(&mut self) {
        if self.backstop.nftables.take().is_some() {
            self.backstop.lost.insert(Form::Nftables);
        }
    }

    fn forget_everything(&mut self) -> Removed {
        let devices: Vec<String> = std::mem::take(&mut self.tunnels).into_keys().collect();
        self.links.retain(|_, link| !devices.contains(&link.name));
        self.attached.clear();
        self.open = false;
        let backstops = self.backstop.in_force().into_iter().collect();
        self.backstop = Standing::default();
        Removed { devices, pins: self.pinned.take().is_some(), backstops }
    }

    fn raise(&mut self, backstop: &Backstop) -> Result<(), i32> {
        self.datapath()?;
        let form = backstop.form();
        if let Some(why) = self.refuses.get(&form) {
            self.backstop.refused.insert(form, why.clone());
            return Ok(());
        }
        match backstop {
            Backstop::Bpf => (self.backstop.bpf, self.backstop.is_current) = (true, true),
            Backstop::Nftables(rules) => self.backstop.nftables = Some(rules.clone()),
        }
        Ok(())
    }

    /// The daemon ends, however: all it had open closes, all that is pinned stays.
    pub fn daemon_ends(&mut self) {
        self.open = false;
        if let Some(pinned) = &mut self.pinned {
            // What was held without a pin, and is made anew. (That it was gone meanwhile is not modelled.)
            pinned.unpinned.clear();
        }
        // What a kernel refuses is tried anew by every daemon.
        self.backstop.refused.clear();
        self.backstop.lost.clear();
        self.tried.clear();
    }

    /// The peer with `key` answers handshakes from now on.
    pub fn answer(&mut self, key: PublicKey) {
        self.answering.insert(key);
    }

    /// The same, and it speaks first where its key is the lower one.
    pub fn speak(&mut self, key: PublicKey) {
        self.answer(key);
        self.speaking.insert(key);
    }

    /// From now on no peer answers.
    pub fn nobody_answers(&mut self) {
        self.answering.clear();
    }

    /// Makes actions fail, with these error numbers.
    pub fn fail(&mut self, mut fault: impl FnMut(&Action) -> Option<i32> + Send + 'static) {
        self.fail_calls(move |call| match call {
            Call::Execute(action) => fault(action).map(|errno| Failure { errno, is_done: false }),
            Call::Observe | Call::Counters | Call::SweepFlows => None,
        });
    }

    /// Makes calls fail.
    pub fn fail_calls(&mut self, fault: impl FnMut(&Call<'_>) -> Option<Failure> + Send + 'static) {
        self.fault = Some(Box::new(fault));
    }

    /// Calls succeed again.
    pub fn heal(&mut self) {
        self.fault = None;
    }

    /// What is in the kernel, whoever looks. A program of another build than the maps' last counts as not attached.
    pub fn truth(&self) -> Observed {
        let datapath = self.pinned.clone().map(|mut datapath| {
            let is_shown = |(hook, build): &(&Hook, &String)| {
                **build == datapath.build || !self.links.contains_key(&hook.1)
            };
            datapath.attached =
                self.attached.iter().filter(is_shown).map(|(hook, _)| (*hook, Vec::new())).collect();
            datapath
        });
        Observed {
            links: self.links.clone(),
            tunnels: self.tunnels.clone(),
            datapath,
            backstop: self.backstop.clone(),
            ..Observed::default()
        }
    }

    fn index(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
    }

    fn datapath(&mut self) -> Result<&mut Datapath, i32> {
        if self.open { self.pinned.as_mut().ok_or(ENOENT) } else { Err(EBADF) }
    }

    fn link(&mut self, index: u32) -> Result<&mut Link, i32> {
        self.links.get_mut(&index).ok_or(ENODEV)
    }

    fn tunnel(&mut self, name: &str) -> Result<&mut TunnelDevice, i32> {
        self.tunnels.get_mut(name).ok_or(ENODEV)
    }

    fn keepalive(&mut self, device: &str, key: &PublicKey, seconds: u16) -> Result<(), i32> {
        self.tunnel(device)?.change(key, |peer| peer.keepalive = seconds);
        self.shake(device);
        Ok(())
    }

    /// Handshakes that keepalives start, on either side, with those who answer.
    fn shake(&mut self, device: &str) {
        let up = self.index(device).is_some_and(|index| self.links[&index].up);
        self.clock += Duration::from_secs(1);
        let Some(tunnel) = self.tunnels.get_mut(device).filter(|t| up && t.public_key.is_some()) else {
            return;
        };
        let (own, mut shaken) = (tunnel.public_key, Vec::new());
        for (key, peer) in &mut tunnel.peers {
            let is_spoken_to = || own.is_some_and(|own| *key < own) && self.speaking.contains(key);
            let is_wanted = peer.keepalive != 0 || is_spoken_to() && peer.last_handshake.is_none();
            if is_wanted && peer.endpoint.is_some() && self.answering.contains(key) {
                peer.last_handshake = Some(self.clock);
                shaken.push(*key);
            }
        }
        // The far end, where that is a device of ours too.
        for tunnel in self.tunnels.values_mut().filter(|t| t.public_key.is_some_and(|k| shaken.contains(&k)))
        {
            if let Some(peer) = own.and_then(|own| tunnel.peers.get_mut(&own)) {
                peer.last_handshake = Some(self.clock);
            }
        }
    }

    fn add_peer(
        &mut self,
        device: &str,
        key: &PublicKey,
        endpoint: SocketAddr,
        ips: &BTreeSet<IpNet>,
        keepalive: u16,
    ) -> Result<(), i32> {
        let tunnel = self.tunnel(device)?;
        tunnel.allow(key, ips, true);
        tunnel.change(key, |peer| peer.endpoint = Some(endpoint));
        self.keepalive(device, key, keepalive)
    }

    fn configure(
        &mut self,
        device: &str,
        key: Option<PublicKey>,
        port: Option<u16>,
        fwmark: Option<u32>,
    ) -> Result<(), i32> {
        let tunnel = self.tunnel(device)?;
        if let Some(public) = key {
            // Sessions end, but the time of the last handshake stands (`noise.c`, `expire_current_peer_keypairs`).
            tunnel.public_key = Some(public);
            tunnel.peers.remove(&public);
            self.answering.insert(public);
        }
        let tunnel = self.tunnel(device)?;
        tunnel.port = port.unwrap_or(tunnel.port);
        tunnel.fwmark = fwmark.unwrap_or(tunnel.fwmark);
        Ok(())
    }

    fn create_tunnel(&mut self, name: &str) {
        if self.index(name).is_none() {
            let link = Link {
                name: name.to_owned(),
                kind: Some("wireguard".to_owned()),
                mtu: 1420,
                ..Link::default()
            };
            let ifindex = self.add_link(link);
            self.tunnels.insert(name.to_owned(), TunnelDevice { ifindex, ..TunnelDevice::default() });
        }
    }

    fn carry_out(&mut self, action: &Action) -> Result<(), i32> {
        match action {
            Action::LoadPrograms => {
                self.open = true;
                self.pinned.get_or_insert_default().build.clone_from(&self.build);
            }
            Action::PinAgain => self.datapath()?.unpinned.clear(),
            Action::DropPredecessors => self.datapath()?.predecessors.clear(),
            Action::SetConfig(config) => self.datapath()?.config = *config,
            Action::PutPrefix(net, prefix) => drop(self.datapath()?.prefixes.insert(*net, *prefix)),
            Action::RemovePrefix(net) => drop(self.datapath()?.prefixes.remove(net)),
            Action::PutOrigin(address, origin) => {
                let is_there = self.links.contains_key(&origin.device);
                let datapath = self.datapath()?;
                if is_there {
                    datapath.alive.insert(origin.key());
                    datapath.origins.insert(*address, *origin);
                }
            }
            Action::RemoveOrigin(address) => drop(self.datapath()?.origins.remove(address)),
            Action::PutDevice(index, kind) => drop(self.datapath()?.devices.insert(*index, *kind)),
            Action::RemoveDevice(index) => drop(self.datapath()?.devices.remove(index)),
            Action::Attach(hook) => {
                self.link(hook.1)?;
                let build = self.datapath()?.build.clone();
                self.attached.insert(*hook, build);
            }
            Action::Detach(hook) => {
                self.datapath()?;
                self.attached.remove(hook);
            }
            Action::RaiseBackstop(backstop) => self.raise(backstop)?,
            Action::RemoveBackstop(Form::Bpf) => {
                (self.backstop.bpf, self.backstop.is_current) = (false, false)
            }
            Action::RemoveBackstop(Form::Nftables) => self.backstop.nftables = None,
            Action::CreateTunnel(name) => self.create_tunnel(name),
            Action::DeleteTunnel(_, name) => self.delete_link(name),
            Action::RenameTunnel(index, name) => self.rename(*index, name)?,
            Action::ConfigureTunnel { device, key, port, fwmark } => {
                self.configure(device, key.map(|(_, public)| public), *port, *fwmark)?;
            }
            Action::SetSysctls(device) => self.tunnel(device)?.sysctls_right = true,
            Action::AddAddress(index, address) => drop(self.link(*index)?.addresses.insert(*address)),
            Action::SetMtu(index, mtu) => self.link(*index)?.mtu = *mtu,
            Action::SetUp(index) => {
                let link = self.link(*index)?;
                link.up = true;
                let name = link.name.clone();
                self.shake(&name);
            }
            Action::AddPeer { device, key, endpoint, allowed_ips, keepalive } => {
                self.add_peer(device, key, *endpoint, allowed_ips, *keepalive)?;
            }
            Action::SetEndpoint(device, key, endpoint) => {
                self.tunnel(device)?.change(key, |peer| peer.endpoint = Some(*endpoint));
            }
            Action::AddAllowedIps(device, key, ips) => self.tunnel(device)?.allow(key, ips, false),
            Action::ReplaceAllowedIps(device, key, ips) => self.tunnel(device)?.allow(key, ips, true),
            Action::SetKeepalive(device, key, seconds) => self.keepalive(device, key, *seconds)?,
            Action::RemovePeer(device, key) => drop(self.tunnel(device)?.peers.remove(key)),
            Action::SetSlot(slot, index) => self.datapath()?.slots[usize::from(*slot)] = *index,
            Action::SetPeer(index, value) => self.datapath()?.set_peer(*index, *value),
        }
        Ok(())
    }
}

const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
const EBADF: i32 = rustix::io::Errno::BADF.raw_os_error();
const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();
