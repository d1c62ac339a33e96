//! Whether what one kernel sends arrives at the other: by which devices, and with whose keys.

use std::time::Duration;

use ipnet::IpNet;
use kubeveil_core::observed::{Observed, Peer, TunnelDevice};
use kubeveil_keys::PublicKey;

/// A session ends so long after its handshake, if nobody makes another (kernel `REKEY_AFTER_TIME`).
const REKEY: Duration = Duration::from_secs(120);

/// The way of a packet.
pub(super) struct Way {
    /// By this device, which has the key `own`, to `peer`.
    pub(super) device: String,
    pub(super) own: PublicKey,
    pub(super) peer: PublicKey,
    /// It comes out of this one.
    pub(super) far: String,
}

/// The pods of a side, by its place.
fn pods(side: usize) -> IpNet {
    format!("10.244.{}.0/24", side + 1).parse().expect("a net")
}

/// The way from one to the other; or why there is none.
pub(super) fn arrives(from: &Observed, to: &Observed, (one, other): (usize, usize)) -> Result<Way, String> {
    let datapath = from.datapath.as_ref().ok_or("nothing is loaded")?;
    let index = datapath.prefixes.get(&pods(other)).map(|prefix| prefix.peer);
    let value = index.and_then(|index| datapath.peers.get(&index));
    let value = value.filter(|value| value.has_tunnel()).ok_or("by no tunnel")?;
    let slot = datapath.slots[usize::from(value.slot())];
    let sends = from.tunnels.iter().find(|(_, device)| device.ifindex == slot && is_up(from, device));
    let (device, sends) = sends.ok_or_else(|| format!("by slot {}, which leads nowhere", value.slot()))?;
    let own = sends.public_key.ok_or("by a device without a key")?;
    let (peer, _) = proven(sends, &pods(other)).ok_or_else(|| format!("by {device}, with nobody there"))?;
    let hears = to.tunnels.iter().find(|(_, device)| device.public_key == Some(*peer) && is_up(to, device));
    let (far, hears) = hears.ok_or_else(|| format!("by {device}: the far end has not that key"))?;
    match proven(hears, &pods(one)) {
        Some((key, _)) if *key == own => {
            Ok(Way { device: device.clone(), own, peer: *peer, far: far.clone() })
        }
        _ => Err(format!("by {device}: the far end's {far} does not know its key")),
    }
}

fn is_up(kernel: &Observed, device: &TunnelDevice) -> bool {
    kernel.links.get(&device.ifindex).is_some_and(|link| link.up)
}

/// Whom `net` goes to, and who has shaken hands.
fn proven<'a>(device: &'a TunnelDevice, net: &IpNet) -> Option<(&'a PublicKey, &'a Peer)> {
    let to = device.peers.iter().find(|(_, peer)| peer.allowed_ips.contains(net));
    to.filter(|(_, peer)| peer.last_handshake.is_some())
}

/// A device of each side, with the key of its peer there.
type Ends = [(String, PublicKey); 2];

/// Devices that shake hands now: each knows the other, and one wants to.
pub(super) fn handshakes(one: &Observed, other: &Observed, now: Duration) -> Vec<Ends> {
    let mut out = Vec::new();
    for (here, near) in one.tunnels.iter().filter(|(_, device)| is_up(one, device)) {
        for (there, far) in other.tunnels.iter().filter(|(_, device)| is_up(other, device)) {
            let (Some(near_key), Some(far_key)) = (near.public_key, far.public_key) else { continue };
            let (Some(to), Some(back)) = (near.peers.get(&far_key), far.peers.get(&near_key)) else {
                continue;
            };
            let meets =
                |peer: &Peer, device: &TunnelDevice| peer.endpoint.is_some_and(|at| at.port() == device.port);
            let is_new = [to, back].iter().any(|peer| peer.last_handshake.is_none_or(|at| now >= at + REKEY));
            let is_wanted =
                [to, back].iter().any(|peer| peer.keepalive != 0 || peer.last_handshake.is_some());
            if is_new && is_wanted && (meets(to, far) || meets(back, near)) {
                out.push([(here.clone(), far_key), (there.clone(), near_key)]);
            }
        }
    }
    out
}
