//! The kernel we run on.

use std::{collections::BTreeMap, path::Path};

use kubeveil_abi::DEVICE_NAMES;
use kubeveil_core::{
    action::Action,
    backstop::{Form, Standing},
    observed::{Datapath, Hook, Link, Neighbours, Observed, Program, TunnelDevice},
};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    Count, Flow, Kernel, KernelError, Removed, Secrets, Sightings,
    backstop::{Backstops, route_checks},
    bpf::{Bpf, Held, Pins},
    link::Links,
    memory, sysctl, wireguard,
};

/// WireGuard, links and the datapath of the network namespace that the daemon runs in.
pub struct RealKernel {
    links: Links,
    pins: Pins,
    object: Vec<u8>,
    build: String,
    bpf: Option<Bpf>,
    backstops: Backstops,
    /// Devices as last seen: actions name them by index, some system calls want a name.
    seen: BTreeMap<u32, Link>,
    held: Held,
}

impl RealKernel {
    /// With the programs of `object`, pinned below `bpf_dir`. Call within a tokio runtime.
    pub fn new(bpf_dir: &Path, object: Vec<u8>) -> Result<Self, KernelError> {
        let build = crate::bpf::build_of(&object);
        let pins = Pins::new(bpf_dir);
        Ok(Self {
            links: Links::connect()?,
            backstops: Backstops::new(pins.clone(), &build),
            pins,
            object,
            build,
            bpf: None,
            seen: BTreeMap::new(),
            held: Held::default(),
        })
    }

    /// As a build of another ABI version would pin (for tests).
    #[must_use]
    pub fn of_version(mut self, bpf_dir: &Path, version: u32) -> Self {
        self.pins = Pins::of_version(bpf_dir, version);
        self.backstops = Backstops::new(self.pins.clone(), &self.build);
        self
    }

    /// What tells our object from others.
    pub fn build(&self) -> &str {
        &self.build
    }

    /// What holds packets back, at `links` and at all others.
    fn enforcement(
        &mut self,
        links: &BTreeMap<u32, Link>,
    ) -> Result<(Option<Datapath>, Standing), KernelError> {
        let unpinned = self.held.unpinned();
        let datapath = self.bpf.as_ref().map(|bpf| bpf.observe(links, &self.links, &unpinned)).transpose()?;
        Ok((datapath, self.backstops.observe(&unpinned)))
    }

    /// Holds what was pinned just now.
    fn hold(&mut self) -> Result<(), KernelError> {
        self.held.hold(&self.pins, &self.build)
    }

    fn bpf(&mut self) -> Result<&mut Bpf, KernelError> {
        self.bpf.as_mut().ok_or_else(not_loaded)
    }

    fn attach(&mut self, hook: Hook) -> Result<(), KernelError> {
        let device = self.name(hook.1)?;
        let bpf = self.bpf.as_mut().ok_or_else(not_loaded)?;
        bpf.attach(hook, &device, &self.links)?;
        self.hold()
    }

    fn name(&self, index: u32) -> Result<String, KernelError> {
        let gone =
            || KernelError::new("find device", index.to_string(), std::io::Error::from_raw_os_error(NODEV));
        self.seen.get(&index).map(|link| link.name.clone()).ok_or_else(gone)
    }
}

fn tunnels(links: &BTreeMap<u32, Link>) -> Result<BTreeMap<String, TunnelDevice>, KernelError> {
    let mut tunnels = BTreeMap::new();
    for (index, link) in links {
        if !DEVICE_NAMES.contains(&link.name.as_str()) || link.kind.as_deref() != Some("wireguard") {
            continue;
        }
        if let Some(dump) = wireguard::dump(&link.name)? {
            let device = TunnelDevice {
                ifindex: *index,
                public_key: dump.public_key,
                port: dump.port,
                fwmark: dump.fwmark,
                sysctls_right: sysctl::are_right(&link.name),
                peers: dump.peers,
            };
            tunnels.insert(link.name.clone(), device);
        }
    }
    Ok(tunnels)
}

fn not_loaded() -> KernelError {
    KernelError::new("use", "the programs", std::io::Error::other("they are not loaded yet"))
}

const NODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();

impl Kernel for RealKernel {
    fn observe(&mut self) -> Result<Observed, KernelError> {
        let links = self.links.dump()?;
        let tunnels = tunnels(&links)?;
        // Whoever looks has done what was planned before.
        if let Some(bpf) = &mut self.bpf {
            bpf.maps.settle()?;
        }
        let (datapath, backstop) = self.enforcement(&links)?;
        self.seen.clone_from(&links);
        let route_checks = route_checks();
        Ok(Observed { links, tunnels, datapath, backstop, route_checks, ..Observed::default() })
    }

    fn tunnels(&mut self, last: &Observed) -> Result<BTreeMap<String, TunnelDevice>, KernelError> {
        tunnels(&last.links)
    }

    fn neighbours(&mut self) -> Result<Neighbours, KernelError> {
        self.links.neighbours()
    }

    fn still_holds(&mut self, last: &Observed) -> Result<bool, KernelError> {
        let is_guarded = |index: &u32| {
            last.datapath
                .as_ref()
                .is_some_and(|datapath| datapath.attached.keys().any(|hook| hook.1 == *index))
        };
        let guarded = last.links.iter().filter(|(index, _)| is_guarded(index));
        let (datapath, backstop) = self.enforcement(&guarded.map(|(i, l)| (*i, l.clone())).collect())?;
        let sysctls =
            last.tunnels.iter().all(|(name, tunnel)| sysctl::are_right(name) == tunnel.sysctls_right);
        Ok(datapath == last.datapath && backstop == last.backstop && sysctls)
    }

    fn execute(&mut self, action: &Action, secrets: &dyn Secrets) -> Result<(), KernelError> {
        match action {
            Action::LoadPrograms => {
                // What an older daemon of this process held is closed only when the new one stands.
                let bpf = Bpf::load_or_adopt(self.pins.clone(), &self.object, &self.build)?;
                self.bpf = Some(bpf);
                memory::give_back();
                self.hold()
            }
            Action::PinAgain => self.held.pin_again(&self.pins),
            Action::DropPredecessors => self.bpf()?.drop_predecessors(),
            Action::SetConfig(config) => self.bpf()?.maps.set_config(*config),
            Action::PutPrefix(net, prefix) => self.bpf()?.maps.put_prefix(*net, *prefix),
            Action::RemovePrefix(net) => self.bpf()?.maps.remove_prefix(*net),
            Action::PutOrigin(address, origin) => self.bpf()?.maps.put_origin(*address, *origin),
            Action::RemoveOrigin(address) => self.bpf()?.maps.remove_origin(*address),
            Action::PutDevice(index, kind) => self.bpf()?.maps.put_device(*index, *kind),
            Action::RemoveDevice(index) => self.bpf()?.maps.remove_device(*index),
            Action::Attach(hook) => match self.attach(*hook) {
                // A pod may have gone since the devices were listed, and with it all that was wanted there.
                Err(_) if hook.0 == Program::Origin && !self.links.dump()?.contains_key(&hook.1) => Ok(()),
                attached => attached,
            },
            Action::Detach(hook) => {
                self.held.let_go(&self.pins.link(*hook));
                self.bpf()?.detach(*hook)
            }
            Action::RaiseBackstop(backstop) => {
                self.bpf()?;
                let raised = self.backstops.raise(backstop, &self.object);
                memory::give_back();
                raised?;
                self.hold()
            }
            Action::RemoveBackstop(form) => {
                if *form == Form::Bpf {
                    self.held.let_go(&self.pins.backstop_links());
                }
                self.backstops.remove(*form).map(drop)
            }
            Action::CreateTunnel(name) => self.links.add_wireguard(name),
            Action::DeleteTunnel(index, _) => self.links.delete(*index),
            Action::RenameTunnel(index, name) => self.links.rename(*index, name),
            Action::ConfigureTunnel { device, key, port, fwmark } => {
                let private = key.map(|(generation, _)| {
                    secrets.private_key(generation).ok_or_else(|| {
                        let missing = std::io::Error::other("the key store has no such key");
                        KernelError::new("set key of", format!("{device}, generation {generation}"), missing)
                    })
                });
                wireguard::configure(device, private.transpose()?, *port, *fwmark)
            }
            Action::SetSysctls(device) => sysctl::set(&self.links, device),
            Action::AddAddress(index, address) => self.links.add_address(*index, *address),
            Action::SetMtu(index, mtu) => self.links.set_mtu(*index, *mtu),
            Action::SetUp(index) => self.links.set_up(*index),
            Action::AddPeer { device, key, endpoint, allowed_ips, keepalive } => {
                wireguard::add_peer(device, key, *endpoint, allowed_ips, *keepalive)
            }
            Action::SetEndpoint(device, key, endpoint) => wireguard::set_endpoint(device, key, *endpoint),
            Action::AddAllowedIps(device, key, ips) => wireguard::set_allowed_ips(device, key, ips, false),
            Action::ReplaceAllowedIps(device, key, ips) => wireguard::set_allowed_ips(device, key, ips, true),
            Action::SetKeepalive(device, key, seconds) => wireguard::set_keepalive(device, key, *seconds),
            Action::RemovePeer(device, key) => wireguard::remove_peer(device, key),
            Action::SetSlot(slot, index) => self.bpf()?.maps.set_slot(*slot, *index),
            Action::SetPeer(index, value) => {
                self.bpf()?.maps.set_peer(*index, *value);
                Ok(())
            }
        }
    }

    /// New peers of a device, thousands of them in a large cluster, come in a few messages; where one is refused, each
    /// of them by itself, so that it is known which.
    fn execute_all(&mut self, actions: &[Action], secrets: &dyn Secrets) -> Vec<Result<(), KernelError>> {
        let mut done = Vec::with_capacity(actions.len());
        for run in actions.chunk_by(Action::goes_with) {
            let together = run.len() > 1 && run.iter().all(wireguard::fits_one_message);
            if together && wireguard::add_peers(run).is_ok() {
                done.extend(run.iter().map(|_| Ok(())));
            } else {
                done.extend(run.iter().map(|action| self.execute(action, secrets)));
            }
        }
        // Whatever became of them. What fails here the next look does, and until then addresses are looked up anew.
        if let Some(bpf) = &mut self.bpf {
            drop(bpf.maps.settle());
        }
        done
    }

    fn counters(&mut self) -> Result<Vec<Count>, KernelError> {
        let mut counts = self.bpf.as_ref().map_or(Ok(Vec::new()), |bpf| bpf.maps.counters())?;
        for more in self.backstops.counters() {
            let is_same =
                |c: &&mut Count| (c.direction, c.mode, c.reason) == (more.direction, more.mode, more.reason);
            match counts.iter_mut().find(is_same) {
                Some(count) => {
                    count.packets += more.packets;
                    count.bytes += more.bytes;
                }
                None => counts.push(more),
            }
        }
        Ok(counts)
    }

    fn watch(&mut self, flows: &[Flow]) -> Result<(), KernelError> {
        match &mut self.bpf {
            // Who watches nothing wants nothing.
            None if flows.is_empty() => Ok(()),
            _ => self.bpf()?.maps.watches.set(flows),
        }
    }

    fn seen(&mut self) -> Result<Sightings, KernelError> {
        self.bpf()?.maps.watches.seen()
    }

    fn sweep_flows(&mut self) -> Result<usize, KernelError> {
        // bpf_ktime_get_boot_ns counts on this clock too.
        let now = u32::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(u32::MAX);
        self.bpf.as_mut().map_or(Ok(0), |bpf| bpf.maps.sweep_flows(now))
    }

    /// The programs at the devices go first: as long as they stand, what needs a tunnel
    /// is dropped and nothing is half open. The backstop goes when they are gone: it holds the other devices.
    fn remove_everything(&mut self) -> (Removed, Vec<KernelError>) {
        let mut removed = Removed::default();
        let mut errors = Vec::new();
        self.bpf = None;
        // What is held would stand on without its pin.
        self.held = Held::default();
        let links = self.links.dump().unwrap_or_else(|e| {
            errors.push(e);
            BTreeMap::new()
        });
        let others = self.pins.others();
        for pins in others.iter().chain([&self.pins]) {
            errors.extend(pins.remove_links());
        }
        errors.extend(crate::bpf::remove_filters(&links, &self.links));
        for form in [Form::Bpf, Form::Nftables] {
            match self.backstops.remove(form) {
                Ok(true) => removed.backstops.push(form),
                Ok(false) => {}
                Err(e) => errors.push(e),
            }
        }
        // A backstop of another version is among its pins.
        for pins in others.iter().chain([&self.pins]) {
            match pins.remove_all() {
                Ok(there) => removed.pins |= there,
                Err(e) => errors.push(e),
            }
        }
        let ours =
            |l: &Link| DEVICE_NAMES.contains(&l.name.as_str()) && l.kind.as_deref() == Some("wireguard");
        for (index, link) in links.iter().filter(|(_, link)| ours(link)) {
            match self.links.delete(*index) {
                Ok(()) => removed.devices.push(link.name.clone()),
                Err(e) => errors.push(e),
            }
        }
        (removed, errors)
    }
}
