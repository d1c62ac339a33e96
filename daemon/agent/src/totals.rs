//! Counters that never fall, made of the kernel's, which do.

use std::collections::BTreeMap;

use kubeveil_core::observed::{LinkStatistics, Observed};
use kubeveil_keys::PublicKey;

/// Bytes and refusals that never fall, though peers and devices come and go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) refused: LinkStatistics,
    seen_bytes: BTreeMap<(String, PublicKey), (u64, u64)>,
    seen_links: BTreeMap<u32, LinkStatistics>,
}

impl Totals {
    /// Takes in what the kernel says now.
    pub(crate) fn add(&mut self, observed: &Observed) {
        let mut bytes = BTreeMap::new();
        for (device, tunnel) in &observed.tunnels {
            for (key, peer) in &tunnel.peers {
                let id = (device.clone(), *key);
                let (received, sent) = self.seen_bytes.get(&id).copied().unwrap_or_default();
                self.received += grown(received, peer.received);
                self.sent += grown(sent, peer.sent);
                bytes.insert(id, (peer.received, peer.sent));
            }
            if let Some(link) = observed.links.get(&tunnel.ifindex) {
                let before = self.seen_links.get(&tunnel.ifindex).copied().unwrap_or_default();
                let now = link.statistics;
                self.refused.tx_dropped += grown(before.tx_dropped, now.tx_dropped);
                self.refused.tx_errors += grown(before.tx_errors, now.tx_errors);
                self.refused.rx_dropped += grown(before.rx_dropped, now.rx_dropped);
                self.refused.rx_errors += grown(before.rx_errors, now.rx_errors);
                self.refused.rx_frame_errors += grown(before.rx_frame_errors, now.rx_frame_errors);
                self.seen_links.insert(tunnel.ifindex, now);
            }
        }
        self.seen_bytes = bytes;
    }
}

/// What a counter grew by; one that fell has begun anew.
fn grown(before: u64, now: u64) -> u64 {
    if now < before { now } else { now - before }
}

#[cfg(test)]
mod tests {
    use kubeveil_core::observed::{Peer, TunnelDevice};

    use super::*;

    #[test]
    fn bytes_never_fall() {
        let key = PublicKey::from_bytes([1; 32]);
        let with = |received| {
            let peers = [(key, Peer { received, ..Peer::default() })].into();
            let device = TunnelDevice { peers, ..TunnelDevice::default() };
            Observed { tunnels: [("kubeveil0".to_owned(), device)].into(), ..Observed::default() }
        };
        let mut totals = Totals::default();
        let mut last = 0;
        // Grows, is made again, goes, comes back.
        for observed in [with(10), with(30), with(5), Observed::default(), with(7)] {
            totals.add(&observed);
            assert!(totals.received >= last);
            last = totals.received;
        }
        assert_eq!(last, 30 + 5 + 7);
    }
}
