//! The datapath's decision on a packet of a pod, over the maps of a node's kernel: the programs' own code (`kubeveil_verdict`).

use std::net::IpAddr;

use kubeveil_abi::{
    Address, DeviceKind, FlowKey, FlowValue, Origin, PeerValue, PrefixValue, Reason, Verdict, v4,
};
use kubeveil_core::observed::{Datapath, Program};
use kubeveil_verdict::{Bytes, Meta, Tables, steer};

use crate::kernel::address;

/// The device that packets to other nodes leave by.
pub(crate) const UNDERLAY: u32 = 1_000_000;
/// That of a pod.
const POD: u32 = 1_000_001;
/// EtherType of IPv4 (`include/uapi/linux/if_ether.h`).
const ETH_P_IP: u16 = 0x0800;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Into this device.
    Tunnel(u32),
    /// As it is, for this reason; none: no program was asked.
    Plain(Option<Reason>),
    /// It is dropped.
    Nowhere,
}

/// Of a packet of a pod of the node at `from` to one of that at `to`.
pub(crate) fn course(datapath: &Datapath, from: usize, to: usize, now: u32) -> Course {
    if !datapath.attached.contains_key(&(Program::Steer, UNDERLAY)) {
        return Course::Plain(None);
    }
    let meta = Meta { protocol: ETH_P_IP, ingress_ifindex: POD, mark: 0 };
    let decision = steer(&meta, &Datagram::new(from, to), &Maps { datapath, now }, &datapath.config);
    match decision.verdict() {
        Verdict::Pass => Course::Plain(Some(decision.reason)),
        Verdict::Tunnel | Verdict::Replace | Verdict::Wrap => Course::Tunnel(decision.ifindex),
        Verdict::Drop => Course::Nowhere,
    }
}

/// An empty UDP datagram, from its IPv4 header on.
struct Datagram([u8; Self::LENGTH]);

impl Datagram {
    const LENGTH: usize = 28;

    fn new(from: usize, to: usize) -> Self {
        let mut bytes = [0; Self::LENGTH];
        // RFC 791, section 3.1; RFC 768.
        (bytes[0], bytes[3], bytes[8], bytes[9], bytes[25]) = (0x45, 28, 64, 17, 8);
        for (at, place) in [(12, from), (16, to)] {
            if let IpAddr::V4(address) = address(place).addr() {
                bytes[at..at + 4].copy_from_slice(&address.octets());
            }
        }
        Self(bytes)
    }
}

impl Bytes for Datagram {
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let bytes = self.0.get(usize::try_from(offset).ok()?..)?.get(..N * 4)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        Some(words)
    }

    fn length(&self) -> u32 {
        28
    }

    fn segment(&self) -> u32 {
        0
    }

    fn port(&self) -> u16 {
        0
    }
}

struct Maps<'a> {
    datapath: &'a Datapath,
    now: u32,
}

impl Tables for Maps<'_> {
    fn prefix(&self, address: &Address) -> Option<PrefixValue> {
        let [0, 0, _, word] = *address else { return None };
        let wanted = IpAddr::from(word.to_ne_bytes());
        debug_assert_eq!(*address, v4(word), "all are IPv4");
        let holding = self.datapath.prefixes.iter().filter(|(prefix, _)| prefix.contains(&wanted));
        let (_, value) = holding.max_by_key(|(prefix, _)| prefix.prefix_len())?;
        Some(PrefixValue::new(value.kind, value.peer).asking(value.asked, value.until))
    }

    fn origin(&self, _: &Address) -> Origin {
        Origin::NONE
    }

    fn is_alive(&self, _: &Origin) -> bool {
        false
    }

    fn peer(&self, index: u32) -> PeerValue {
        self.datapath.peers.get(&index).copied().unwrap_or(PeerValue::NO_TUNNEL)
    }

    fn slot(&self, slot: u8) -> u32 {
        self.datapath.slots.get(usize::from(slot)).copied().unwrap_or(0)
    }

    fn device(&self, ifindex: u32) -> Option<DeviceKind> {
        self.datapath.devices.get(&ifindex).copied()
    }

    fn flow(&self, _: &FlowKey) -> Option<FlowValue> {
        None
    }

    fn remember(&self, _: &FlowKey, _: FlowValue) -> bool {
        false
    }

    fn now(&self) -> u32 {
        self.now
    }
}
