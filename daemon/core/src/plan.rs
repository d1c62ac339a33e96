//! The difference between what should be and what is, as actions in an order in which no step opens
//! what a later one would close.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net};
use kubeveil_abi::{Asked, DEVICE_NAMES, DeviceKind, FWMARK, PeerState, PeerValue, PrefixKind};
use kubeveil_keys::PublicKey;

use crate::{
    action::Action,
    backstop,
    desired::{Desired, DesiredPeer, DesiredTunnel},
    observed::{Datapath, Hook, Observed, Peer, Prefix, Program, TunnelDevice},
    snapshot::Synced,
    tunnels,
};

/// An address of host scope for each tunnel device, the same on every node; nobody is ever spoken to by it.
///
/// From a device without any IPv4 address the kernel's reverse-path filter takes nothing, however loose
/// (`net/ipv4/fib_frontend.c`, `__fib_validate_source`: `no_addr`, `last_resort`), and what the tunnel
/// delivers is answered by another device.
pub const TUNNEL_ADDRESS: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 86, 86), 32));

/// The endpoint last written for each peer of each device. An endpoint is written when the peer is
/// made or what it announces changes, never because it roamed.
pub type Endpoints = BTreeMap<(String, PublicKey), SocketAddr>;

/// Plans. Without `synced` nothing is planned that removes a peer, a prefix or a hook for being
/// unknown (invariant 2).
pub fn plan(
    desired: &Desired,
    observed: &Observed,
    synced: Option<&Synced>,
    written: &Endpoints,
) -> Vec<Action> {
    let Some(datapath) = observed.datapath.as_ref().filter(|d| d.build == desired.build) else {
        // Maps may be pinned and full already: look before planning over them.
        return vec![Action::LoadPrograms];
    };
    let mut actions = Vec::new();
    if !datapath.unpinned.is_empty() {
        actions.push(Action::PinAgain);
    }
    withdraw(desired, datapath, observed, synced, &mut actions);
    let (ports, others): (Vec<_>, Vec<_>) =
        unattached(desired, datapath, observed).partition(|hook| hook.0 == Program::Origin);
    // Before anybody is held to less where his packets come in by a port that says so.
    actions.extend(ports.into_iter().map(Action::Attach));
    maps(desired, datapath, &mut actions);
    actions.extend(others.into_iter().map(Action::Attach));
    detach(datapath, observed, &mut actions);
    guarded(desired, datapath, &mut actions);
    let mut renamed = renamed(datapath, observed);
    for (name, tunnel) in &desired.tunnels {
        match observed.tunnels.get(name) {
            Some(device) => device_actions(name, tunnel, device, observed, synced, written, &mut actions),
            None if observed.links.values().any(|link| link.name == *name) => {} // not ours; a problem says so
            None => actions.push(match renamed.next() {
                Some(index) => Action::RenameTunnel(index, name.clone()),
                None => Action::CreateTunnel(name.clone()),
            }),
        }
    }
    travel(desired, datapath, &mut actions);
    remove(desired, datapath, observed, synced, &mut actions);
    let backstop = backstop::actions(desired, &observed.backstop, datapath, &actions);
    actions.extend(backstop);
    if !datapath.predecessors.is_empty() {
        succeed(desired, datapath, observed, &mut actions);
    }
    actions
}

/// The same of some nodes alone, where all else is as it should be: `desired` and `observed` hold what is theirs.
pub fn plan_part(
    desired: &Desired,
    observed: &Observed,
    synced: Option<&Synced>,
    written: &Endpoints,
) -> Vec<Action> {
    let Some(datapath) = &observed.datapath else { return Vec::new() };
    let mut actions = Vec::new();
    withdraw(desired, datapath, observed, synced, &mut actions);
    open_in_plain(desired, datapath, &mut actions);
    for (name, tunnel) in &desired.tunnels {
        if let Some(device) = observed.tunnels.get(name) {
            peers(name, tunnel, device, synced, written, &mut actions);
        }
    }
    travel(desired, datapath, &mut actions);
    actions
}

/// Maps of our own are empty at first, and the other version's programs stand: ours come when our maps say all that those
/// do, the backstop when the devices are in them, and the other's go when nothing is left to do.
fn succeed(desired: &Desired, datapath: &Datapath, observed: &Observed, actions: &mut Vec<Action>) {
    if actions.iter().any(fills_maps) {
        actions.retain(|action| !matches!(action, Action::Attach(_)));
    }
    if actions.iter().any(|action| !matches!(action, Action::RaiseBackstop(_))) {
        actions.retain(|action| !matches!(action, Action::RaiseBackstop(_)));
    }
    // With the mesh's ranges everything is closed that has to be; before, what the other left is all that holds.
    let knows_ranges = desired.prefixes.values().any(|prefix| prefix.kind == PrefixKind::UnownedPods);
    if actions.is_empty() && knows_ranges && is_succeeded(datapath, observed) {
        actions.push(Action::DropPredecessors);
    }
}

const fn fills_maps(action: &Action) -> bool {
    matches!(
        action,
        Action::SetConfig(_)
            | Action::PutPrefix(..)
            | Action::PutOrigin(..)
            | Action::SetSlot(..)
            | Action::SetPeer(..)
    )
}

/// Whether ours stands everywhere where another ABI's version does.
fn is_succeeded(datapath: &Datapath, observed: &Observed) -> bool {
    let has_ours =
        |hook: &Hook| datapath.attached.contains_key(hook) || !observed.links.contains_key(&hook.1);
    datapath.predecessors.values().all(|left| {
        left.hooks.iter().all(has_ours) && (!left.has_backstop || observed.backstop.in_force().is_some())
    })
}

/// The same of some addresses of other nodes' pods alone: `desired` and `observed` hold their entries.
pub fn plan_addresses(
    desired: &BTreeMap<IpNet, Prefix>,
    observed: &BTreeMap<IpNet, Prefix>,
    synced: Option<&Synced>,
) -> Vec<Action> {
    let (loose, mut actions): (Vec<_>, Vec<_>) = put(desired.iter(), observed).partition(is_loosening);
    actions.extend(loose);
    forget(desired, observed, synced, &mut actions);
    actions
}

fn put<'a>(
    desired: impl Iterator<Item = (&'a IpNet, &'a Prefix)>,
    observed: &BTreeMap<IpNet, Prefix>,
) -> impl Iterator<Item = Action> {
    desired
        .filter(|(prefix, want)| observed.get(prefix) != Some(want))
        .map(|(prefix, want)| Action::PutPrefix(*prefix, *want))
}

/// Nothing is removed for being unknown.
fn forget(
    desired: &BTreeMap<IpNet, Prefix>,
    observed: &BTreeMap<IpNet, Prefix>,
    synced: Option<&Synced>,
    actions: &mut Vec<Action>,
) {
    let gone = observed.keys().filter(|prefix| synced.is_some() && !desired.contains_key(*prefix));
    actions.extend(gone.map(|prefix| Action::RemovePrefix(*prefix)));
}

/// What somebody else undid: the steps that lead back to `desired`, which was reached before. That a device is gone is
/// no deed against us, unless it was a tunnel's.
pub fn undone(
    desired: &Desired,
    observed: &Observed,
    synced: Option<&Synced>,
    written: &Endpoints,
) -> Vec<Action> {
    let mut actions = plan(desired, observed, synced, written);
    actions.retain(|action| match action {
        Action::Attach((_, index)) | Action::PutDevice(index, _) => observed.links.contains_key(index),
        Action::Detach(_) => false,
        Action::RemoveDevice(index) => observed.links.contains_key(index),
        // It is told by itself, with what it held back.
        Action::RaiseBackstop(_) | Action::RemoveBackstop(_) | Action::DropPredecessors => false,
        _ => true,
    });
    actions
}

/// First, packets stop going where they no longer may. A slot is changed before the peers that use it.
fn withdraw(
    desired: &Desired,
    datapath: &Datapath,
    observed: &Observed,
    synced: Option<&Synced>,
    actions: &mut Vec<Action>,
) {
    // One that is proven goes from plain into its tunnel by one store, and not by way of nowhere.
    let is_closed = |(index, have): &(&u32, &PeerValue)| {
        let is_known = || synced.is_some() || desired.prefixes.values().any(|prefix| prefix.peer == **index);
        is_plain(**have) && !desired.values.contains_key(index) && is_known()
    };
    let closed = datapath.peers.iter().filter(is_closed);
    actions.extend(closed.map(|(index, _)| Action::SetPeer(*index, PeerValue::NO_TUNNEL)));
    // Without our own key we know of no tunnel, which is no reason to take one away.
    if desired.tunnels.is_empty() {
        return;
    }
    // A device that stands takes packets until they go by another.
    let stands = |index: u32| observed.tunnels.values().any(|device| device.ifindex == index);
    for (slot, (want, have)) in (0u8..).zip(desired.slots.iter().zip(&datapath.slots)) {
        if *want == 0 && *have != 0 && !stands(*have) {
            actions.push(Action::SetSlot(slot, 0));
        }
    }
    let known: BTreeSet<u32> = desired.remotes.values().map(|r| r.index).collect();
    for (index, have) in &datapath.peers {
        let goes = have.has_tunnel() && !desired.values.contains_key(index);
        if goes && (known.contains(index) || synced.is_some()) {
            actions.push(Action::SetPeer(*index, PeerValue::NO_TUNNEL));
        }
    }
}

fn maps(desired: &Desired, datapath: &Datapath, actions: &mut Vec<Action>) {
    // The mesh's ranges first: with them alone everything is closed, whatever happens to the rest.
    let is_range = |prefix: &Prefix| prefix.kind == PrefixKind::UnownedPods;
    let (ranges, mut owned): (Vec<_>, Vec<_>) = desired.prefixes.iter().partition(|(_, want)| is_range(want));
    // Then the longest: nobody is held to what is asked for of those whom we don't know before it is said who he is.
    owned.sort_by_key(|(prefix, _)| Reverse(prefix.prefix_len()));
    let all = ranges.into_iter().chain(owned);
    let (loose, strict): (Vec<_>, Vec<_>) = put(all, &datapath.prefixes).partition(is_loosening);
    // What was said of who had an address is taken back before another device may speak for it, and what loosens is said of who is
    // known to have it.
    actions.extend(strict);
    origins(desired, datapath, actions);
    actions.extend(loose);
    // What may pass in plain as yet is not cut off by what follows.
    open_in_plain(desired, datapath, actions);
    // After the prefixes: a mode that is stricter than the last one must know all it is about.
    if datapath.config != desired.config {
        actions.push(Action::SetConfig(desired.config));
    }
    // A tunnel encrypts whatever stands at it; and steer should know one before anything comes out of it.
    let tunnels = desired.devices.iter().filter(|(_, kind)| **kind == DeviceKind::Tunnel);
    put_devices(tunnels, datapath, actions);
}

const fn is_loosening(action: &Action) -> bool {
    matches!(action, Action::PutPrefix(_, prefix) if matches!(prefix.asked, Asked::Exempt | Asked::Prefer))
}

fn origins(desired: &Desired, datapath: &Datapath, actions: &mut Vec<Action>) {
    let new = desired.origins.iter().filter(|(address, want)| datapath.origins.get(address) != Some(want));
    actions.extend(new.map(|(address, want)| Action::PutOrigin(*address, *want)));
}

/// Without a tunnel, and passing all the same.
const fn is_plain(value: PeerValue) -> bool {
    matches!(value.state(), PeerState::Adopting | PeerState::Bypass)
}

fn open_in_plain(desired: &Desired, datapath: &Datapath, actions: &mut Vec<Action>) {
    for (index, want) in desired.values.iter().filter(|(_, want)| is_plain(**want)) {
        if datapath.peers.get(index) != Some(want) {
            actions.push(Action::SetPeer(*index, *want));
        }
    }
}

fn put_devices<'a>(
    devices: impl Iterator<Item = (&'a u32, &'a DeviceKind)>,
    datapath: &Datapath,
    actions: &mut Vec<Action>,
) {
    for (index, want) in devices {
        if datapath.devices.get(index) != Some(want) {
            actions.push(Action::PutDevice(*index, *want));
        }
    }
}

/// The backstop leaves a device alone from here on: so only when all that belongs there was seen to be attached.
fn guarded(desired: &Desired, datapath: &Datapath, actions: &mut Vec<Action>) {
    let is_guarded = |index: u32| {
        let mut hooks = desired.hooks.iter().filter(|hook| hook.1 == index);
        hooks.all(|hook| datapath.attached.contains_key(hook))
    };
    let others = desired.devices.iter().filter(|(_, kind)| **kind != DeviceKind::Tunnel);
    put_devices(others.filter(|(index, _)| is_guarded(**index)), datapath, actions);
}

/// Where ours should be and is not.
fn unattached(desired: &Desired, datapath: &Datapath, observed: &Observed) -> impl Iterator<Item = Hook> {
    // Where another version's stands, ours has to before that goes.
    let left = datapath.predecessors.values().flat_map(|left| &left.hooks);
    let left = left.filter(|hook| observed.links.contains_key(&hook.1));
    let all = desired.hooks.iter().chain(left).filter(|hook| !datapath.attached.contains_key(*hook));
    all.copied().collect::<BTreeSet<_>>().into_iter()
}

fn detach(datapath: &Datapath, observed: &Observed, actions: &mut Vec<Action>) {
    // Enforcement is never taken off a device that exists, whatever we think that device is now: at
    // worst a program looks at packets that are none of its business, and leaves them alone.
    for hook in datapath.attached.keys().filter(|hook| !observed.links.contains_key(&hook.1)) {
        actions.push(Action::Detach(*hook));
    }
}

/// Tunnels of ours that somebody gave another name: we know them by their entries in the map. They have our ports, so that new
/// ones could not be set up beside them.
fn renamed<'a>(datapath: &'a Datapath, observed: &'a Observed) -> impl Iterator<Item = u32> + 'a {
    let tunnels = datapath.devices.iter().filter(|(_, kind)| **kind == DeviceKind::Tunnel);
    tunnels.map(|(index, _)| *index).filter(|index| {
        observed.links.get(index).is_some_and(|link| {
            link.kind.as_deref() == Some("wireguard") && !DEVICE_NAMES.contains(&link.name.as_str())
        })
    })
}

fn device_actions(
    name: &str,
    want: &DesiredTunnel,
    have: &TunnelDevice,
    observed: &Observed,
    synced: Option<&Synced>,
    written: &Endpoints,
    actions: &mut Vec<Action>,
) {
    let key = (have.public_key != Some(want.key.1)).then_some(want.key);
    let port = (have.port != want.port).then_some(want.port);
    let fwmark = (have.fwmark != FWMARK).then_some(FWMARK);
    if key.is_some() && !have.peers.is_empty() {
        // Another key than ours (the state folder was lost): all sessions end, but the kernel keeps the
        // times of their handshakes, which would pass for proof. The peers come back in the next round.
        actions.extend(have.peers.keys().map(|key| Action::RemovePeer(name.to_owned(), *key)));
        actions.push(Action::ConfigureTunnel { device: name.to_owned(), key, port, fwmark });
        return;
    }
    if key.is_some() || port.is_some() || fwmark.is_some() {
        actions.push(Action::ConfigureTunnel { device: name.to_owned(), key, port, fwmark });
    }
    let link = observed.links.get(&have.ifindex);
    if link.is_some_and(|l| l.mtu != want.mtu) {
        actions.push(Action::SetMtu(have.ifindex, want.mtu));
    }
    if link.is_some_and(|l| !l.addresses.contains(&TUNNEL_ADDRESS)) {
        actions.push(Action::AddAddress(have.ifindex, TUNNEL_ADDRESS));
    }
    if !have.sysctls_right {
        actions.push(Action::SetSysctls(name.to_owned()));
    }
    // Peers first, then up: setting it up sends what keepalives are set.
    peers(name, want, have, synced, written, actions);
    if link.is_some_and(|l| !l.up) {
        actions.push(Action::SetUp(have.ifindex));
    }
}

fn peers(
    name: &str,
    want: &DesiredTunnel,
    have: &TunnelDevice,
    synced: Option<&Synced>,
    written: &Endpoints,
    actions: &mut Vec<Action>,
) {
    for (key, peer) in &want.peers {
        peer_actions(name, *key, peer, have.peers.get(key), synced, written, actions);
    }
    let mut strangers = have.peers.iter().filter(|(key, _)| !want.peers.contains_key(key)).peekable();
    // Either all is known and nobody announces this key, or it is known to be refused, or others have all its addresses by now.
    let claimed: BTreeSet<IpNet> = match strangers.peek() {
        Some(_) => want.peers.values().flat_map(|p| &p.allowed_ips).copied().collect(),
        None => BTreeSet::new(),
    };
    for (key, peer) in strangers {
        if synced.is_some() || want.revoked.contains(key) || peer.allowed_ips.is_subset(&claimed) {
            actions.push(Action::RemovePeer(name.to_owned(), *key));
        }
    }
}

fn peer_actions(
    device: &str,
    key: PublicKey,
    want: &DesiredPeer,
    have: Option<&Peer>,
    synced: Option<&Synced>,
    written: &Endpoints,
    actions: &mut Vec<Action>,
) {
    let device = device.to_owned();
    let Some(have) = have else {
        if let Some(endpoint) = want.endpoint {
            let allowed_ips = want.allowed_ips.clone();
            actions.push(Action::AddPeer { device, key, endpoint, allowed_ips, keepalive: want.keepalive });
        }
        return;
    };
    let missing: BTreeSet<IpNet> = want.allowed_ips.difference(&have.allowed_ips).copied().collect();
    if synced.is_some() && !have.allowed_ips.is_subset(&want.allowed_ips) {
        actions.push(Action::ReplaceAllowedIps(device.clone(), key, want.allowed_ips.clone()));
    } else if !missing.is_empty() {
        actions.push(Action::AddAllowedIps(device.clone(), key, missing));
    }
    if let Some(endpoint) = want.endpoint {
        let announced_anew = written.get(&(device.clone(), key)).is_some_and(|last| *last != endpoint);
        // A peer that we want to reach and can't has not roamed: it never answered from elsewhere.
        let is_wanted = want.keepalive != tunnels::at_rest(want.keepalive)
            || want.keepalive != 0 && have.last_handshake.is_none();
        if announced_anew || is_wanted && have.endpoint != Some(endpoint) {
            actions.push(Action::SetEndpoint(device.clone(), key, endpoint));
        }
    }
    if have.keepalive != want.keepalive {
        // One goes out at once where there was none, and not where there was another (`drivers/net/wireguard/netlink.c`, `set_peer`).
        if have.keepalive != 0 && want.keepalive != 0 {
            actions.push(Action::SetKeepalive(device.clone(), key, 0));
        }
        actions.push(Action::SetKeepalive(device, key, want.keepalive));
    }
}

/// Last but one, packets start going into what is ready.
fn travel(desired: &Desired, datapath: &Datapath, actions: &mut Vec<Action>) {
    for (slot, (want, have)) in (0u8..).zip(desired.slots.iter().zip(&datapath.slots)) {
        if *want != 0 && want != have {
            actions.push(Action::SetSlot(slot, *want));
        }
    }
    for (index, want) in desired.values.iter().filter(|(_, want)| !is_plain(**want)) {
        if datapath.peers.get(index) != Some(want) {
            actions.push(Action::SetPeer(*index, *want));
        }
    }
}

/// The devices of generations that this node has no key of any more. Without any key it knows of no generation.
fn retired(desired: &Desired, datapath: &Datapath, observed: &Observed, actions: &mut Vec<Action>) {
    if desired.tunnels.is_empty() {
        return;
    }
    for (name, device) in observed.tunnels.iter().filter(|(name, _)| !desired.tunnels.contains_key(*name)) {
        for (slot, have) in (0u8..).zip(&datapath.slots) {
            if *have == device.ifindex && desired.slots[usize::from(slot)] == 0 {
                actions.push(Action::SetSlot(slot, 0));
            }
        }
        actions.push(Action::DeleteTunnel(device.ifindex, name.clone()));
    }
}

/// Last, what nobody needs any more.
fn remove(
    desired: &Desired,
    datapath: &Datapath,
    observed: &Observed,
    synced: Option<&Synced>,
    actions: &mut Vec<Action>,
) {
    forget(&desired.prefixes, &datapath.prefixes, synced, actions);
    // After what was said of the address: without a device that would hold for whoever has it now.
    let gone = datapath.origins.keys().filter(|address| !desired.origins.contains_key(*address));
    actions.extend(gone.map(|address| Action::RemoveOrigin(*address)));
    retired(desired, datapath, observed, actions);
    let is_guarded = |index: u32| datapath.attached.keys().any(|hook| hook.1 == index);
    // One that exists, and that we never said to be guarded, would be open to the backstop.
    let is_strange =
        |index: &u32| synced.is_some() && !desired.devices.contains_key(index) && !is_guarded(*index);
    let gone = |index: &u32| !observed.links.contains_key(index);
    for index in datapath.devices.keys().filter(|index| gone(index) || is_strange(index)) {
        actions.push(Action::RemoveDevice(*index));
    }
}
