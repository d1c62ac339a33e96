//! What the fake kernel claims of the real one. Run on both: on the fake as a unit test, on the real
//! one in the lab, in a network namespace of its own.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use ipnet::IpNet;
use kubeveil_abi::{BASE_PORT, DEVICE_NAMES, Mode};
use kubeveil_core::{
    action::Action,
    backstop::{Backstop, Form, Range, Rules, Standing},
    observed::TunnelDevice,
    tunnels::first_keepalive,
};
use kubeveil_keys::{Generation, PrivateKey, PublicKey};

use crate::{Kernel, KernelError, Secrets};

const DEVICE: &str = DEVICE_NAMES[0];

/// Private keys of generations 0 to 2.
struct Keys([PrivateKey; 3]);

impl Secrets for Keys {
    fn private_key(&self, generation: Generation) -> Option<&PrivateKey> {
        self.0.get(generation.number() as usize)
    }
}

struct Bench<'a> {
    kernel: &'a mut dyn Kernel,
    keys: Keys,
}

impl Bench<'_> {
    fn run(&mut self, action: Action) -> Result<(), String> {
        self.kernel.execute(&action, &self.keys).map_err(|e: KernelError| e.to_string())
    }

    fn device(&mut self) -> Result<TunnelDevice, String> {
        self.observed(DEVICE)
    }

    fn observed(&mut self, device: &str) -> Result<TunnelDevice, String> {
        let mut observed = self.kernel.observe().map_err(|e| e.to_string())?;
        observed.tunnels.remove(device).ok_or_else(|| format!("{device} is not there"))
    }

    fn standing(&mut self) -> Result<Standing, String> {
        Ok(self.kernel.observe().map_err(|e| e.to_string())?.backstop)
    }

    /// Each side learns of the handshake by the other's first packet.
    fn await_handshake(&mut self, device: &str, peer: PublicKey) -> Result<(), String> {
        for _ in 0..100 {
            if self.observed(device)?.peers.get(&peer).is_some_and(|p| p.last_handshake.is_some()) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(format!("does not hold: a keepalive set on a device that is up starts a handshake ({device})"))
    }

    fn set_key(&mut self, generation: u32) -> Result<PublicKey, String> {
        let generation = Generation::new(generation);
        let public = self.keys.private_key(generation).ok_or("no key")?.public();
        let key = Some((generation, public));
        self.run(Action::ConfigureTunnel { device: DEVICE.to_owned(), key, port: None, fwmark: None })?;
        Ok(public)
    }

    fn add(&mut self, key: PublicKey, ips: &[&str]) -> Result<(), String> {
        self.run(add_peer(key, ips))
    }

    fn add_together(&mut self, peers: &[(PublicKey, &[&str])]) -> Result<(), String> {
        let actions: Vec<Action> = peers.iter().map(|(key, ips)| add_peer(*key, ips)).collect();
        let done = self.kernel.execute_all(&actions, &self.keys);
        claim(done.len() == actions.len(), "each of several actions has its answer")?;
        done.into_iter().collect::<Result<(), _>>().map_err(|e| e.to_string())
    }
}

fn add_peer(key: PublicKey, ips: &[&str]) -> Action {
    Action::AddPeer {
        device: DEVICE.to_owned(),
        key,
        endpoint: SocketAddr::from(([192, 0, 2, 9], 51871)),
        allowed_ips: nets(ips),
        keepalive: 0,
    }
}

fn nets(ips: &[&str]) -> BTreeSet<IpNet> {
    ips.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn claim(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("does not hold: {what}")) }
}

/// Checks every claim that needs no second node.
///
/// # Errors
/// The first claim that does not hold, in words.
pub fn check(kernel: &mut dyn Kernel) -> Result<(), String> {
    let fresh = || PrivateKey::generate().map_err(|e| e.to_string());
    let (a, b) = (fresh()?.public(), fresh()?.public());
    let mut bench = Bench { kernel, keys: Keys([fresh()?, fresh()?, fresh()?]) };

    bench.run(Action::CreateTunnel(DEVICE.to_owned()))?;
    bench.run(Action::CreateTunnel(DEVICE.to_owned()))?;
    claim(bench.device()?.public_key.is_none(), "a new device has no key")?;
    let own = bench.set_key(0)?;
    claim(bench.device()?.public_key == Some(own), "a device tells the public half of its key")?;

    bench.add(a, &["10.0.1.0/24", "fd00:1::/64"])?;
    bench.add(b, &["10.0.1.0/24"])?;
    let device = bench.device()?;
    claim(
        device.peers[&a].allowed_ips == nets(&["fd00:1::/64"]),
        "an address moves away from the peer that had it",
    )?;
    claim(device.peers[&b].allowed_ips == nets(&["10.0.1.0/24"]), "… to the peer that claimed it last")?;
    claim(device.peers[&a].last_handshake.is_none(), "a new peer has had no handshake")?;

    bench.add(own, &["10.0.3.0/24"])?;
    claim(
        !bench.device()?.peers.contains_key(&own),
        "a peer with the device's own key is ignored without an error",
    )?;

    let c = fresh()?.public();
    bench.add_together(&[
        (a, &["10.0.6.0/24", "10.0.7.0/24"]),
        (own, &["10.0.6.0/24"]),
        (c, &["10.0.6.0/24"]),
    ])?;
    let device = bench.device()?;
    claim(
        device.peers[&a].allowed_ips == nets(&["10.0.7.0/24"])
            && device.peers[&c].allowed_ips == nets(&["10.0.6.0/24"]),
        "of peers that come together the last has what several claim",
    )?;
    claim(
        !device.peers.contains_key(&own),
        "the device's own key among them is ignored, and stops none of the others",
    )?;

    bench.run(Action::RemovePeer(DEVICE.to_owned(), a))?;
    claim(!bench.device()?.peers.contains_key(&a), "a peer that is removed is gone")?;
    bench.run(Action::RemovePeer(DEVICE.to_owned(), a))?;
    bench.run(Action::SetKeepalive(DEVICE.to_owned(), a, 5))?;
    claim(bench.device()?.peers.contains_key(&a), "an update of a peer that is gone adds it again")?;
    claim(bench.device()?.peers[&a].keepalive == 5, "a keepalive is told as it was set")?;

    bench.run(Action::AddAllowedIps(DEVICE.to_owned(), b, nets(&["10.0.4.0/24"])))?;
    claim(bench.device()?.peers[&b].allowed_ips.len() == 2, "addresses are added to those there are")?;
    bench.run(Action::ReplaceAllowedIps(DEVICE.to_owned(), b, nets(&["10.0.5.0/24"])))?;
    claim(bench.device()?.peers[&b].allowed_ips == nets(&["10.0.5.0/24"]), "addresses are replaced")?;

    let other = bench.set_key(1)?;
    let device = bench.device()?;
    claim(device.public_key == Some(other) && device.peers.contains_key(&b), "another key leaves the peers")
}

/// Checks what shows between two devices that speak to each other over the loopback device, which has
/// to be up: both of our names, in one place.
///
/// # Errors
/// The first claim that does not hold, in words.
pub fn check_handshake(kernel: &mut dyn Kernel) -> Result<(), String> {
    let fresh = || PrivateKey::generate().map_err(|e| e.to_string());
    let mut bench = Bench { kernel, keys: Keys([fresh()?, fresh()?, fresh()?]) };
    let [first, second] = [0, 1].map(|n| bench.keys.0[n].public());
    for (generation, device) in (0..).zip(DEVICE_NAMES) {
        bench.run(Action::CreateTunnel(device.to_owned()))?;
        let key = bench.keys.0[generation as usize].public();
        bench.run(Action::ConfigureTunnel {
            device: device.to_owned(),
            key: Some((Generation::new(generation), key)),
            port: Generation::new(generation).port(BASE_PORT),
            fwmark: None,
        })?;
        let index = bench.observed(device)?.ifindex;
        bench.run(Action::SetUp(index))?;
    }
    for (device, key, port, keepalive) in [
        (DEVICE_NAMES[1], first, BASE_PORT, 0),
        (DEVICE_NAMES[0], second, BASE_PORT + 1, first_keepalive(&second)),
    ] {
        bench.run(Action::AddPeer {
            device: device.to_owned(),
            key,
            endpoint: SocketAddr::from(([127, 0, 0, 1], port)),
            allowed_ips: nets(&["10.0.1.0/24"]),
            keepalive,
        })?;
    }
    bench.await_handshake(DEVICE_NAMES[0], second)?;
    bench.await_handshake(DEVICE_NAMES[1], first)?;
    claim(
        bench.device()?.peers[&second].keepalive == first_keepalive(&second),
        "a keepalive starts a handshake at once, however long it is",
    )?;

    // No further handshake comes in between.
    bench.run(Action::SetKeepalive(DEVICE.to_owned(), second, 0))?;
    let before = bench.device()?.peers[&second].last_handshake;
    bench.set_key(2)?;
    bench.set_key(0)?;
    let after = bench.device()?.peers[&second].last_handshake;
    claim(before == after, "a key set anew leaves the time of a handshake whose session it has ended")?;
    bench.set_key(1)?;
    claim(bench.device()?.peers.is_empty(), "a key set on a device removes the peer that has it")
}

/// Checks what shows of the backstop, over a kernel in which nothing is loaded yet.
///
/// # Errors
/// The first claim that does not hold, in words.
pub fn check_backstop(kernel: &mut dyn Kernel) -> Result<(), String> {
    let fresh = || PrivateKey::generate().map_err(|e| e.to_string());
    let mut bench = Bench { kernel, keys: Keys([fresh()?, fresh()?, fresh()?]) };
    let mut rules = Rules {
        mode: Mode::Require,
        guarded: [1].into(),
        tunnels: BTreeSet::new(),
        remote: vec![Range { first: [10, 244, 2, 0].into(), last: [10, 244, 255, 255].into() }],
    };
    claim(bench.standing()? == Standing::default(), "at first there is none")?;
    let raise = Action::RaiseBackstop(Backstop::Bpf);
    claim(bench.run(raise.clone()).is_err(), "the program needs the maps")?;
    bench.run(Action::LoadPrograms)?;
    claim(bench.standing()?.in_force().is_none(), "what is loaded is not in force")?;
    bench.run(raise.clone())?;
    let is_refused = bench.standing()?.refused.contains_key(&Form::Bpf);
    for _ in 0..2 {
        bench.run(raise.clone())?;
        let standing = bench.standing()?;
        let stands = standing.bpf && standing.is_current;
        claim(stands != is_refused, "the program is refused, or in force when it was raised, also twice")?;
    }
    bench.run(Action::RaiseBackstop(Backstop::Nftables(rules.clone())))?;
    let standing = bench.standing()?;
    claim(standing.nftables.as_ref() == Some(&rules), "nftables tells the rules that it was given")?;
    let first = if is_refused { Form::Nftables } else { Form::Bpf };
    claim(standing.in_force() == Some(first), "the program counts where both are in force")?;
    bench.run(Action::RemoveBackstop(Form::Bpf))?;
    claim(bench.standing()?.in_force() == Some(Form::Nftables), "one goes without the other")?;
    (rules.mode, rules.guarded, rules.remote) = (Mode::Prefer, BTreeSet::new(), vec![]);
    bench.run(Action::RaiseBackstop(Backstop::Nftables(rules.clone())))?;
    claim(
        bench.standing()?.nftables == Some(rules),
        "new rules take the old ones' place, though they be empty",
    )?;
    for _ in 0..2 {
        bench.run(Action::RemoveBackstop(Form::Nftables))?;
        let standing = bench.standing()?;
        let is_gone = standing.in_force().is_none() && standing.lost.is_empty();
        claim(is_gone, "what is removed, also twice, is gone and not lost")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;

    #[test]
    fn the_fake_holds_to_them() {
        let mut fake = FakeKernel::new("build", &[]);
        check(&mut fake).expect("every claim");
        let mut fake = FakeKernel::new("build", &[]);
        check_handshake(&mut fake).expect("every claim");
        let mut fake = FakeKernel::new("build", &[]);
        check_backstop(&mut fake).expect("every claim");
        let mut fake = FakeKernel::new("build", &[]);
        fake.refuse_backstop(Form::Bpf, "it is too old");
        check_backstop(&mut fake).expect("every claim");
    }
}
