//! Somebody else's rules that what comes out of a tunnel does not meet: `fib saddr . iif oif missing drop`, as firewalld
//! writes it for IPv6. Such a packet has come in by our device, and its answer leaves by another.

use std::{collections::BTreeSet, io};

use super::{GET_CHAIN, GET_RULE};
use crate::backstop::netlink::{INET, ask_of, attribute, attributes, word};

/// `NFPROTO_IPV4`, `NFPROTO_IPV6` and both, as nft(8) calls them.
const FAMILIES: [(u8, &str); 3] = [(INET, "inet"), (2, "ip"), (10, "ip6")];
/// `NF_INET_PRE_ROUTING` (`include/uapi/linux/netfilter.h`).
const PRE_ROUTING: u32 = 0;
/// Compared are the sender's address and the device that the packet came in by: `NFTA_FIB_F_SADDR` and `NFTA_FIB_F_IIF`
/// (`include/uapi/linux/netfilter/nf_tables.h`).
const SENDER_AND_DEVICE: u32 = 1 | 1 << 3;
/// What the names of our devices begin with.
const OURS: &[u8] = b"kubeveil";

/// The chains at PRE_ROUTING with such a rule, as `FAMILY TABLE CHAIN`; none where nobody can look.
pub(crate) fn look() -> BTreeSet<String> {
    let of = |(family, name): (u8, &'static str)| {
        chains(family, name).inspect_err(|e| tracing::debug!("chains of {name}: {e}")).unwrap_or_default()
    };
    FAMILIES.into_iter().flat_map(of).collect()
}

fn chains(family: u8, name: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for chain in ask_of(family, GET_CHAIN, true, |_| {})? {
        let hook = attribute(&chain, 4).and_then(|hook| word(hook, 1));
        let (Some(table), Some(chain), Some(PRE_ROUTING)) =
            (attribute(&chain, 1), attribute(&chain, 3), hook)
        else {
            continue;
        };
        let rules = ask_of(family, GET_RULE, true, |a| {
            a.bytes(1, table);
            a.bytes(2, chain);
        })?;
        if refuses_ours(&rules) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
            found.push(format!("{name} {} {}", text(table), text(chain)));
        }
    }
    Ok(found)
}

/// Whether one of these rules makes the comparison, and neither it nor one before it names a device of ours.
fn refuses_ours(rules: &[Vec<u8>]) -> bool {
    let names_ours = |rule: &&Vec<u8>| rule.windows(OURS.len()).any(|bytes| bytes == OURS);
    rules.iter().take_while(|rule| !names_ours(rule)).any(|rule| compares(rule))
}

fn compares(rule: &[u8]) -> bool {
    let expressions = attributes(attribute(rule, 4).unwrap_or_default());
    expressions.into_iter().any(|(_, expression)| {
        let flags = attribute(expression, 2).and_then(|data| word(data, 3));
        attribute(expression, 1) == Some(&b"fib\0"[..])
            && flags.is_some_and(|flags| flags & SENDER_AND_DEVICE == SENDER_AND_DEVICE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backstop::netlink::Attributes;

    fn rule(name: &str, flags: u32, device: &str) -> Vec<u8> {
        let mut rule = Attributes::default();
        rule.nest(4, |list| {
            list.nest(1, |expression| {
                expression.text(1, "cmp");
                expression.nest(2, |data| data.text(3, device));
            });
            list.nest(1, |expression| {
                expression.text(1, name);
                expression.nest(2, |data| data.word(3, flags));
            });
        });
        rule.into_bytes()
    }

    #[test]
    fn which_rules_refuse_what_comes_out_of_a_tunnel() {
        const MARK: u32 = 4;
        let strict = rule("fib", SENDER_AND_DEVICE | MARK, "eth0");
        assert!(refuses_ours(&[rule("counter", 9, "eth0"), strict.clone()]));
        // Loose; another expression; ours are let through before.
        assert!(!refuses_ours(&[rule("fib", 1 | MARK, "eth0")]));
        assert!(!refuses_ours(&[rule("counter", SENDER_AND_DEVICE, "eth0")]));
        assert!(!refuses_ours(&[rule("fib", SENDER_AND_DEVICE, "kubeveil0")]));
        assert!(!refuses_ours(&[rule("counter", 0, "kubeveil"), strict]));
        assert!(!refuses_ours(&[Vec::new()]));
    }
}
