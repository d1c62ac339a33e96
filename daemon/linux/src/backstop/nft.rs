//! The backstop as a table of nftables, for kernels that can't have the program.
//!
//! ```text
//! table inet kubeveil {
//!     counter require_unguarded_device { … }  …             one a mode and reason; they outlive a change of the rules
//!     set guarded { type iface_index; … }                   set tunnels: those of them that are tunnels
//!     set remote4 { type ipv4_addr; flags interval; … }     set remote6
//!     chain backstop {
//!         type filter hook postrouting priority 200; policy accept;
//!         oif @guarded accept
//!         ip daddr @remote4 iif @tunnels counter name require_tunnel_to_plain drop
//!         ip daddr @remote4 counter name require_unguarded_device drop
//!         …                                                 the same for IPv6
//!     }
//! }
//! ```

mod expression;
mod found;
mod route_checks;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use kubeveil_abi::{FlowMode, Mode, Reason, Verdict, is_observed};
use kubeveil_core::backstop::{Range, Rules};

use self::expression::{count, equals, lookup, meta, network_header, verdict};
use super::netlink::{APPEND, Attributes, Batch, CREATE, ask, attribute};
use crate::KernelError;

pub(super) use self::found::{counters, observe};
pub(crate) use self::route_checks::look as route_checks;

/// `NFT_MSG_*`.
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;
const NEW_OBJECT: u16 = 18;
const GET_OBJECT: u16 = 19;

const POST_ROUTING: u32 = 4;
/// Behind source NAT (`enum nf_ip_hook_priorities`).
const PRIORITY: u32 = 200;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `enum nft_meta_keys`.
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_NFPROTO: u32 = 15;
/// `NFT_SET_INTERVAL`, `NFT_SET_ELEM_INTERVAL_END`, `NFT_OBJECT_COUNTER`.
const INTERVAL: u32 = 4;
const INTERVAL_END: u32 = 1;
const COUNTER: u32 = 1;
/// Elements in one message: an attribute holds less than 64 KiB.
const ELEMENTS: usize = 1_000;

/// The step at which a kernel shows that it has no nf_tables.
pub(super) use crate::error::WRITE_TABLE as WRITE;

const TABLE: &str = "kubeveil";
const CHAIN: &str = "backstop";

/// A set: its name, its number in a batch, the type as the program `nft` numbers them, bytes of a key.
struct Set(&'static str, u32, u32, u32);

const GUARDED: Set = Set("guarded", 1, 20, 4);
const TUNNELS: Set = Set("tunnels", 2, 20, 4);
const REMOTE4: Set = Set("remote4", 3, 7, 4);
const REMOTE6: Set = Set("remote6", 4, 8, 16);
const SETS: [Set; 4] = [GUARDED, TUNNELS, REMOTE4, REMOTE6];
/// `NFPROTO_*`, the set, and where the destination lies in the header.
const FAMILIES: [(u8, Set, u32); 2] = [(2, REMOTE4, 16), (10, REMOTE6, 24)];

/// What packets were held to, and why they met their verdict.
pub(super) type Outcome = (FlowMode, Reason);
/// Packets and bytes.
pub(super) type Counts = BTreeMap<Outcome, (u64, u64)>;

/// What the mode makes of a reason. As the datapath's own decision has it (`ebpf/verdict/src/decision.rs`).
pub fn outcome(mode: Mode, reason: Reason) -> Outcome {
    let counted = match (mode, reason) {
        (Mode::Prefer, Reason::UnguardedDevice) => Reason::Preferred,
        _ => reason,
    };
    (mode.into(), counted)
}

const REASONS: [Reason; 2] = [Reason::TunnelToPlain, Reason::UnguardedDevice];
const MODES: [Mode; 3] = [Mode::Require, Mode::Prefer, Mode::Observe];

/// All that there can be.
fn outcomes() -> BTreeSet<Outcome> {
    MODES.into_iter().flat_map(|mode| REASONS.map(|reason| outcome(mode, reason))).collect()
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn counter_name((mode, reason): Outcome) -> String {
    format!("{}_{}", mode.name(), reason.name())
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> KernelError {
    move |e| KernelError::new(operation, format!("nftables table inet {TABLE}"), e)
}

/// The keys that a range begins and ends with. The end is the address behind the last; behind the very last there is none.
fn boundaries(range: &Range) -> Vec<(Vec<u8>, u32)> {
    let end = match range.last {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|n| n.to_be_bytes().to_vec()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|n| n.to_be_bytes().to_vec()),
    };
    let first = match range.first {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    [Some((first, 0)), end.map(|end| (end, INTERVAL_END))].into_iter().flatten().collect()
}

/// Puts the rules in force: one transaction, in which the old ones go. A table that is not as we write it goes with
/// all that is in it; from one that is, the counters stay.
pub(super) fn raise(rules: &Rules) -> Result<(), KernelError> {
    let is_whole = observe()?.is_whole;
    let mut batch = Batch::default();
    if is_whole {
        batch.add(DELETE_RULE, 0, |a| {
            a.text(1, TABLE);
            a.text(2, CHAIN);
        });
        for set in present_sets().map_err(failed("look at"))? {
            batch.add(DELETE_SET, 0, |a| {
                a.text(1, TABLE);
                a.text(2, set.0);
            });
        }
    } else {
        make_table(&mut batch);
    }
    make_sets(&mut batch, rules);
    make_rules(&mut batch, rules.mode);
    batch.send().map_err(failed(WRITE))
}

/// Those of our sets that are there.
fn present_sets() -> io::Result<Vec<Set>> {
    const GET_SET: u16 = 10;
    let there = ask(GET_SET, true, |a| a.text(1, TABLE))?;
    let names: Vec<_> = there.iter().filter_map(|set| attribute(set, 2)).collect();
    Ok(SETS.into_iter().filter(|set| names.contains(&&text(set.0)[..])).collect())
}

/// Takes the table away; says whether it was there.
pub(super) fn remove() -> Result<bool, KernelError> {
    if !observe()?.exists {
        return Ok(false);
    }
    let mut batch = Batch::default();
    batch.add(DELETE_TABLE, 0, |a| a.text(1, TABLE));
    batch.send().map(|()| true).map_err(failed("remove"))
}

fn make_table(batch: &mut Batch) {
    let named = |a: &mut Attributes| a.text(1, TABLE);
    // So that there is one to delete.
    batch.add(NEW_TABLE, CREATE, named);
    batch.add(DELETE_TABLE, 0, named);
    batch.add(NEW_TABLE, CREATE, named);
    batch.add(NEW_CHAIN, CREATE, |a| {
        a.text(1, TABLE);
        a.text(3, CHAIN);
        a.nest(4, |hook| {
            hook.word(1, POST_ROUTING);
            hook.word(2, PRIORITY);
        });
        a.word(5, ACCEPT);
        a.text(7, "filter");
    });
    for outcome in outcomes() {
        batch.add(NEW_OBJECT, CREATE, |a| {
            a.text(1, TABLE);
            a.text(2, &counter_name(outcome));
            a.word(3, COUNTER);
            a.nest(4, |data| {
                data.bytes(1, &0_u64.to_be_bytes());
                data.bytes(2, &0_u64.to_be_bytes());
            });
        });
    }
}

fn make_sets(batch: &mut Batch, rules: &Rules) {
    let devices =
        |indices: &BTreeSet<u32>| indices.iter().map(|i| (i.to_ne_bytes().to_vec(), 0)).collect::<Vec<_>>();
    let ranges = |is_v6: bool| {
        let of_family = rules.remote.iter().filter(|range| range.first.is_ipv6() == is_v6);
        of_family.flat_map(boundaries).collect::<Vec<_>>()
    };
    for (set, flags, elements) in [
        (GUARDED, 0, devices(&rules.guarded)),
        (TUNNELS, 0, devices(&rules.tunnels)),
        (REMOTE4, INTERVAL, ranges(false)),
        (REMOTE6, INTERVAL, ranges(true)),
    ] {
        let Set(name, id, kind, length) = set;
        batch.add(NEW_SET, CREATE, |a| {
            a.text(1, TABLE);
            a.text(2, name);
            a.word(3, flags);
            a.word(4, kind);
            a.word(5, length);
            a.word(10, id);
            if flags == 0 {
                // For the program `nft`, which else prints the indices with their bytes swapped: user data
                // KEYBYTEORDER (0) of four bytes, the host's (1).
                a.bytes(13, &[&[0, 4][..], &1_u32.to_ne_bytes()].concat());
            }
        });
        for some in elements.chunks(ELEMENTS) {
            batch.add(NEW_ELEMENTS, CREATE, |a| {
                a.text(1, TABLE);
                a.text(2, name);
                a.word(4, id);
                a.nest(3, |list| {
                    some.iter().for_each(|(key, flags)| list.nest(1, |e| element(e, key, *flags)))
                });
            });
        }
    }
}

fn element(element: &mut Attributes, key: &[u8], flags: u32) {
    element.nest(1, |data| data.bytes(1, key));
    if flags != 0 {
        element.word(3, flags);
    }
}

/// By what a rule is known again: a comment, in the user data (`enum nftnl_udata_rule_types`).
fn labels(mode: Mode) -> Vec<Vec<u8>> {
    let label = |what: &str| {
        let comment = text(&format!("{mode:?}: {what}").to_lowercase());
        [&[0, u8::try_from(comment.len()).unwrap_or(u8::MAX)], &comment[..]].concat()
    };
    let mut labels = vec![label("guarded")];
    for (_, set, _) in FAMILIES {
        labels.extend(REASONS.map(|reason| label(&format!("{} {}", set.0, reason.name()))));
    }
    labels
}

fn make_rules(batch: &mut Batch, mode: Mode) {
    let mut labels = labels(mode).into_iter();
    let mut rule = |fill: &dyn Fn(&mut Attributes)| {
        batch.add(NEW_RULE, CREATE | APPEND, |a| {
            a.text(1, TABLE);
            a.text(2, CHAIN);
            a.nest(4, fill);
            a.bytes(7, &labels.next().unwrap_or_default());
        });
    };
    rule(&|r| {
        meta(r, META_OIF);
        lookup(r, &GUARDED);
        verdict(r, ACCEPT);
    });
    for (family, set, offset) in &FAMILIES {
        for reason in REASONS {
            let outcome @ (held, counted) = outcome(mode, reason);
            let is_dropped = !is_observed(held, counted) && counted.verdict() == Verdict::Drop;
            rule(&|r| {
                meta(r, META_NFPROTO);
                equals(r, &[*family]);
                network_header(r, *offset, set.3);
                lookup(r, set);
                if reason == Reason::TunnelToPlain {
                    meta(r, META_IIF);
                    lookup(r, &TUNNELS);
                }
                count(r, &counter_name(outcome));
                verdict(r, if is_dropped { DROP } else { ACCEPT });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{found::ranges, *};

    #[test]
    fn ranges_come_back_from_their_boundaries() {
        let range = |first: &str, last: &str| Range {
            first: first.parse().expect("an address"),
            last: last.parse().expect("an address"),
        };
        let all = [
            vec![range("10.244.0.0", "10.244.0.255"), range("10.244.2.0", "10.244.255.255")],
            vec![range("0.0.0.0", "255.255.255.255")],
            vec![range("10.0.0.0", "10.0.0.0"), range("224.0.0.0", "255.255.255.255")],
            vec![
                range("fd00:244::", "fd00:244::ff"),
                range("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ],
            vec![],
        ];
        for list in all {
            let mut elements: Vec<_> = list.iter().flat_map(boundaries).collect();
            elements.reverse();
            assert_eq!(ranges(&elements), Some(list));
        }
    }

    #[test]
    fn no_two_modes_have_the_same_rules() {
        for (n, mode) in MODES.into_iter().enumerate() {
            assert!(MODES[..n].iter().all(|other| labels(*other) != labels(mode)));
        }
    }
}
