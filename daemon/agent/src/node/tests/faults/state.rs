//! What stands in the kernel, told so that two runs can be compared: without what they number or time differently.

use std::collections::BTreeMap;

use kubeveil_core::{
    action::Action,
    backstop::Rules,
    observed::{Observed, Peer},
    tunnels::at_rest,
};
use kubeveil_keys::PublicKey;

use super::packets::{Datapath, node_of};
use crate::node::tests::bench::Shared;

/// Facts, each with the node that it is about.
pub(super) type State = Vec<(Option<u8>, String)>;

/// Who is who.
#[derive(Clone)]
pub(super) struct Names {
    pub(super) keys: BTreeMap<PublicKey, u8>,
}

impl Names {
    /// What is in `kernel`.
    pub(super) fn state(&self, kernel: &Shared) -> State {
        let (truth, datapath) = kernel.with(|k| (k.truth(), Datapath::of(k)));
        let mut state: State = Vec::new();
        for link in truth.links.values() {
            state.push((None, format!("link {} {} {} {:?}", link.name, link.up, link.mtu, link.addresses)));
        }
        self.tunnels(&truth, &mut state);
        maps(&truth, &datapath, &mut state);
        state.sort();
        state
    }

    fn tunnels(&self, truth: &Observed, state: &mut State) {
        for (name, tunnel) in &truth.tunnels {
            let (key, port, mark) = (&tunnel.public_key, tunnel.port, tunnel.fwmark);
            state.push((None, format!("{name} {key:?} {port} {mark} {}", tunnel.sysctls_right)));
            for (key, Peer { endpoint, allowed_ips, keepalive, last_handshake, .. }) in &tunnel.peers {
                let proven = last_handshake.is_some();
                // Which keepalive is for chance and time to say.
                let speaks = if proven { at_rest(*keepalive) != *keepalive } else { *keepalive != 0 };
                let fact = format!("{name} {key} {endpoint:?} {allowed_ips:?} {speaks} {proven}");
                state.push((self.keys.get(key).copied(), fact));
            }
        }
    }

    /// The node that `action` is about, if it is about one; `kernel` says who has which index.
    pub(super) fn node_of(&self, action: &Action, kernel: &Datapath) -> Option<u8> {
        match action {
            Action::PutPrefix(net, _) | Action::RemovePrefix(net) => node_of(net),
            Action::SetPeer(index, _) => kernel.node_of(*index),
            Action::AddPeer { key, .. }
            | Action::SetEndpoint(_, key, _)
            | Action::AddAllowedIps(_, key, _)
            | Action::ReplaceAllowedIps(_, key, _)
            | Action::SetKeepalive(_, key, _)
            | Action::RemovePeer(_, key) => self.keys.get(key).copied(),
            _ => None,
        }
    }
}

fn maps(truth: &Observed, kernel: &Datapath, state: &mut State) {
    let device = |index: &u32| truth.links.get(index).map_or("none", |link| link.name.as_str());
    let Some(datapath) = &truth.datapath else { return };
    state.push((None, format!("programs {} {:?}", datapath.build, datapath.config)));
    state.push((None, format!("without pins {:?}", datapath.unpinned)));
    state.push((None, format!("left by others {:?}", datapath.predecessors)));
    for (net, prefix) in &datapath.prefixes {
        let peer = kernel.node_of(prefix.peer);
        state.push((node_of(net), format!("prefix {net} {:?} {peer:?} {:?}", prefix.kind, prefix.asked)));
    }
    for (address, origin) in &datapath.origins {
        let is_there = datapath.alive.contains(&origin.key());
        state.push((None, format!("{address} by {} {is_there} {:?}", device(&origin.device), origin.pod)));
    }
    for (index, value) in &datapath.peers {
        // An index that no prefix leads to is nobody's.
        let node = kernel.node_of(*index).unwrap_or(0);
        state.push((Some(node), format!("peer {node} {:?} {}", value.state(), value.slot())));
    }
    let slots: Vec<_> = datapath.slots.iter().map(device).collect();
    state.push((None, format!("slots {slots:?}")));
    for (index, kind) in &datapath.devices {
        state.push((None, format!("device {} {kind:?}", device(index))));
    }
    for (program, index) in datapath.attached.keys() {
        state.push((None, format!("attached {} {}", program.name(), device(index))));
    }
    let standing = &truth.backstop;
    state.push((None, format!("backstop {} {}", standing.bpf, standing.is_current)));
    if let Some(Rules { mode, guarded, tunnels, remote }) = &standing.nftables {
        let [guarded, tunnels] = [guarded, tunnels].map(|all| all.iter().map(device).collect::<Vec<_>>());
        state.push((None, format!("table {mode:?} {guarded:?} {tunnels:?} {remote:?}")));
    }
}

/// A word for each kind of action, and for what else is asked of a kernel.
pub(super) const KINDS: [&str; 33] = [
    "LoadPrograms",
    "SetConfig",
    "PutPrefix",
    "RemovePrefix",
    "PutDevice",
    "RemoveDevice",
    "Attach",
    "Detach",
    "RaiseBackstop",
    "RemoveBackstop",
    "CreateTunnel",
    "ConfigureTunnel",
    "SetSysctls",
    "AddAddress",
    "SetMtu",
    "SetUp",
    "AddPeer",
    "SetEndpoint",
    "AddAllowedIps",
    "ReplaceAllowedIps",
    "SetKeepalive",
    "RemovePeer",
    "SetSlot",
    "SetPeer",
    "PinAgain",
    "DropPredecessors",
    "RenameTunnel",
    "DeleteTunnel",
    "PutOrigin",
    "RemoveOrigin",
    "observe",
    "counters",
    "sweep_flows",
];

/// Calls that are no actions are made in every scenario, and come from here on in [`KINDS`].
pub(super) const LOOKS: usize = KINDS.len() - 3;

/// The place of an action's kind in [`KINDS`]. Without a wildcard, so that a new one can't be forgotten.
pub(super) fn kind(action: &Action) -> usize {
    match action {
        Action::LoadPrograms => 0,
        Action::SetConfig(..) => 1,
        Action::PutPrefix(..) => 2,
        Action::RemovePrefix(..) => 3,
        Action::PutDevice(..) => 4,
        Action::RemoveDevice(..) => 5,
        Action::Attach(..) => 6,
        Action::Detach(..) => 7,
        Action::RaiseBackstop(..) => 8,
        Action::RemoveBackstop(..) => 9,
        Action::CreateTunnel(..) => 10,
        Action::ConfigureTunnel { .. } => 11,
        Action::SetSysctls(..) => 12,
        Action::AddAddress(..) => 13,
        Action::SetMtu(..) => 14,
        Action::SetUp(..) => 15,
        Action::AddPeer { .. } => 16,
        Action::SetEndpoint(..) => 17,
        Action::AddAllowedIps(..) => 18,
        Action::ReplaceAllowedIps(..) => 19,
        Action::SetKeepalive(..) => 20,
        Action::RemovePeer(..) => 21,
        Action::SetSlot(..) => 22,
        Action::SetPeer(..) => 23,
        Action::PinAgain => 24,
        Action::DropPredecessors => 25,
        Action::RenameTunnel(..) => 26,
        Action::DeleteTunnel(..) => 27,
        Action::PutOrigin(..) => 28,
        Action::RemoveOrigin(..) => 29,
    }
}
