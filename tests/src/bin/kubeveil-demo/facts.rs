//! What the demo found out. Pure.

use std::collections::BTreeMap;

use kubeveil_tests::analysis::Census;
use kubeveil_tests::traffic::Tally;
use serde_json::{Value, json};

/// One act: what was sent, and what the wire showed of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Act {
    /// Packets.
    pub(crate) tally: Tally,
    /// Frames.
    pub(crate) census: Census,
}

/// All facts; an act that was not reached is `None`.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Version of its WireGuard.
    pub(crate) wireguard: String,
    /// Version of the daemon.
    pub(crate) version: String,
    /// The control.
    pub(crate) control: Option<Act>,
    /// Encryption on.
    pub(crate) encrypted: Option<Act>,
    /// Handshakes that WireGuard completed, over all nodes.
    pub(crate) handshakes: u64,
    /// Keys rotated under traffic.
    pub(crate) rotated: Option<Act>,
    /// How long that took.
    pub(crate) rotation_seconds: u64,
    /// Daemons killed under traffic.
    pub(crate) killed: Option<Act>,
    /// How many.
    pub(crate) kills: u64,
    /// A tunnel taken away.
    pub(crate) cut: Option<Act>,
    /// What the node dropped meanwhile, by reason.
    pub(crate) drops: BTreeMap<String, u64>,
    /// The tunnel back.
    pub(crate) recovered: Option<Act>,
    /// Something else went wrong.
    pub(crate) failed: bool,
}

impl Act {
    /// Everything arrived, nothing was seen.
    fn is_whole(&self) -> bool {
        self.tally.sent > 0 && self.tally.lost() == 0 && self.tally.refused == 0 && self.is_closed()
    }

    fn is_closed(&self) -> bool {
        self.census.plaintext == 0
    }
}

impl Facts {
    /// The control saw every packet, in both families.
    pub(crate) fn control_held(&self) -> bool {
        self.control.as_ref().is_some_and(|act| {
            act.census.markers >= act.tally.sent
                && act.tally.sent > 0
                && act.census.addresses.iter().all(|&n| n > 0)
        })
    }

    /// All arrived, as ciphertext.
    pub(crate) fn encrypted_held(&self) -> bool {
        self.encrypted.as_ref().is_some_and(|act| act.is_whole() && act.census.ciphertext >= act.tally.sent)
    }

    /// Nobody noticed that every key is another.
    pub(crate) fn rotated_held(&self) -> bool {
        self.rotated.as_ref().is_some_and(Act::is_whole)
    }

    /// Nobody noticed.
    pub(crate) fn killed_held(&self) -> bool {
        self.kills > 0 && self.killed.as_ref().is_some_and(Act::is_whole)
    }

    /// Nothing arrived, nothing was plain, and each packet was counted with a reason.
    pub(crate) fn cut_held(&self) -> bool {
        self.cut.as_ref().is_some_and(|act| {
            act.tally.sent > 0
                && act.tally.received == 0
                && act.is_closed()
                && self.dropped() >= act.tally.sent
        })
    }

    /// As before.
    pub(crate) fn recovered_held(&self) -> bool {
        self.recovered.as_ref().is_some_and(Act::is_whole)
    }

    /// Packets dropped with a reason while the tunnel was away.
    pub(crate) fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }

    /// All of it.
    pub(crate) fn all_held(&self) -> bool {
        !self.failed
            && self.control_held()
            && self.encrypted_held()
            && self.rotated_held()
            && self.killed_held()
            && self.cut_held()
            && self.recovered_held()
    }

    /// For programs: what was not reached is null.
    pub(crate) fn to_json(&self) -> Value {
        let act =
            |act: &Option<Act>, fields: &dyn Fn(&Act) -> Value| act.as_ref().map_or(Value::Null, fields);
        json!({
            "kernel": self.kernel,
            "wireguard": self.wireguard,
            "version": self.version,
            "handshakes": self.handshakes,
            "control": act(&self.control, &|act| json!({
                "sent": act.tally.sent,
                "plaintext": act.census.plaintext,
            })),
            "encrypted": act(&self.encrypted, &|act| json!({
                "sent": act.tally.sent,
                "received": act.tally.received,
                "plaintext": act.census.plaintext,
                "ciphertext": act.census.ciphertext,
            })),
            "rotated": act(&self.rotated, &|act| json!({
                "seconds": self.rotation_seconds,
                "sent": act.tally.sent,
                "lost": act.tally.lost(),
                "plaintext": act.census.plaintext,
            })),
            "killed": act(&self.killed, &|act| json!({
                "kills": self.kills,
                "sent": act.tally.sent,
                "lost": act.tally.lost(),
                "plaintext": act.census.plaintext,
            })),
            "cut": act(&self.cut, &|act| json!({
                "sent": act.tally.sent,
                "dropped": self.dropped(),
                "reasons": self.drops,
                "plaintext": act.census.plaintext,
            })),
            "recovered": self.recovered_held(),
            "held": self.all_held(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(sent: u64, received: u64, plaintext: u64, ciphertext: u64) -> Option<Act> {
        let tally = Tally { sent, received, ..Tally::default() };
        let census = Census {
            plaintext,
            ciphertext,
            markers: plaintext,
            addresses: [plaintext; 2],
            ..Census::default()
        };
        Some(Act { tally, census })
    }

    fn good() -> Facts {
        Facts {
            control: act(9, 9, 9, 0),
            encrypted: act(9, 9, 0, 9),
            rotated: act(9, 9, 0, 9),
            kills: 3,
            killed: act(9, 9, 0, 9),
            cut: act(9, 0, 0, 0),
            drops: [("no_tunnel".to_owned(), 9)].into(),
            recovered: act(9, 9, 0, 9),
            ..Facts::default()
        }
    }

    #[test]
    fn all_held_only_if_each_did() {
        assert!(good().all_held());
        let broken: [fn(&mut Facts); 14] = [
            |facts| facts.control = None,
            |facts| facts.control = act(9, 9, 8, 0),
            |facts| facts.encrypted = act(9, 9, 1, 9),
            |facts| facts.encrypted = act(9, 8, 0, 9),
            |facts| facts.encrypted = act(9, 9, 0, 0),
            |facts| facts.rotated = None,
            |facts| facts.rotated = act(9, 8, 0, 9),
            |facts| facts.rotated = act(9, 9, 1, 9),
            |facts| facts.killed = act(9, 8, 0, 9),
            |facts| facts.kills = 0,
            |facts| facts.cut = act(9, 1, 0, 0),
            |facts| facts.drops.clear(),
            |facts| facts.recovered = None,
            |facts| facts.failed = true,
        ];
        for (index, spoil) in broken.iter().enumerate() {
            let mut facts = good();
            spoil(&mut facts);
            assert!(!facts.all_held(), "number {index}");
            assert_eq!(facts.to_json()["held"], false);
        }
    }

    #[test]
    fn the_fields_that_others_read() {
        let json = good().to_json();
        for path in [
            "/kernel",
            "/wireguard",
            "/control/plaintext",
            "/encrypted/sent",
            "/encrypted/received",
            "/encrypted/plaintext",
            "/rotated/lost",
            "/rotated/plaintext",
            "/killed/kills",
            "/killed/lost",
            "/killed/plaintext",
            "/cut/dropped",
            "/cut/plaintext",
            "/recovered",
        ] {
            assert!(json.pointer(path).is_some_and(|value| !value.is_null()), "{path}");
        }
    }
}
