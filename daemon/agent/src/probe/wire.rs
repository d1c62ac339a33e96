//! Questions and answers of probes, as they are in UDP packets. Both have one length, so nobody's packets are made larger.

use std::net::IpAddr;

use kubeveil_api::probe::Target;

/// Length of either, bytes.
pub(super) const LENGTH: usize = 32;
/// What they begin with.
const QUESTION: &[u8; 16] = b"kubeveil-probe-?";
const ANSWER: &[u8; 16] = b"kubeveil-probe-!";

/// A question; `word` comes back with its answer.
pub(super) fn question(word: u64) -> [u8; LENGTH] {
    packet(QUESTION, word, 0)
}

/// The answer of somebody whose clock says `now`, milliseconds since 1970; `None` if nothing was asked.
pub(super) fn answer(asked: &[u8], now: u64) -> Option<[u8; LENGTH]> {
    let (word, _) = read(QUESTION, asked)?;
    Some(packet(ANSWER, word, now))
}

/// The word of an answer, and the clock of who gave it.
pub(super) fn answered(packet: &[u8]) -> Option<(u64, u64)> {
    read(ANSWER, packet)
}

/// Whom to ask of a node: each port at each of its addresses of a family that `own` has too.
pub(super) fn targets(node: &str, addresses: &[IpAddr], own: &[IpAddr], ports: &[u16]) -> Vec<Target> {
    let reachable = addresses.iter().filter(|to| own.iter().any(|from| from.is_ipv4() == to.is_ipv4()));
    let at = |address: &IpAddr| {
        let target = |port: &u16| Target { node: node.to_owned(), address: *address, port: *port };
        ports.iter().map(target).collect::<Vec<_>>()
    };
    reachable.flat_map(at).collect()
}

fn packet(head: &[u8; 16], word: u64, clock: u64) -> [u8; LENGTH] {
    let mut packet = [0; LENGTH];
    packet[..16].copy_from_slice(head);
    packet[16..24].copy_from_slice(&word.to_be_bytes());
    packet[24..].copy_from_slice(&clock.to_be_bytes());
    packet
}

fn read(head: &[u8; 16], packet: &[u8]) -> Option<(u64, u64)> {
    let rest: &[u8; 16] = packet.strip_prefix(head)?.try_into().ok()?;
    let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
    Some((number(&rest[..8])?, number(&rest[8..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_to_its_question_and_no_larger() {
        let asked = question(7);
        let told = answer(&asked, 1_700_000_000_123).expect("a question");
        assert_eq!(answered(&told), Some((7, 1_700_000_000_123)));
        assert_eq!(told.len(), asked.len());
        // Two that answer each other would go on for ever.
        assert_eq!(answer(&told, 0), None);
        assert_eq!(answered(&asked), None);
        assert_eq!(answer(&asked[..31], 0), None);
        assert_eq!(answer(&[&asked[..], &[0]].concat(), 0), None);
    }

    #[test]
    fn families_that_both_have_are_asked() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let both = [ip("192.0.2.2"), ip("2001:db8::2")];
        assert_eq!(targets("n", &both, &both, &[1, 2]).len(), 4);
        let asked = targets("n", &both, &[ip("2001:db8::1")], &[1]);
        assert_eq!(asked, [Target { node: "n".to_owned(), address: both[1], port: 1 }]);
    }
}
