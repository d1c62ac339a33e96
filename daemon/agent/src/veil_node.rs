//! What people and the controller are told of this node.

use jiff::Timestamp;
use kubeveil_api::{
    condition::{Condition, DEGRADED, READY},
    problem::Problem,
    status::Way,
    veil_node::{MOST_NAMED, UNINSTALLED, Unencrypted, VeilNodeStatus},
};
use kubeveil_linux::Kernel;

use crate::{
    node::{Node, Now},
    status,
};

/// Nothing in it changes while nothing happens: no age, no count of packets.
pub(crate) fn report<K: Kernel>(node: &Node<K>, now: Now) -> VeilNodeStatus {
    let (mut peers, mut encrypted) = (0, 0);
    let mut not_encrypted = Vec::new();
    for (name, remote) in &node.last.desired.remotes {
        let going = status::going(node, name, remote, now);
        if going.is_excluded {
            continue;
        }
        peers += 1;
        if going.way == Way::Tunnel {
            encrypted += 1;
        } else if not_encrypted.len() < MOST_NAMED {
            let reason = status::why(node, name, remote, &going, now);
            not_encrypted.push(Unencrypted { node: name.clone(), way: going.way, reason });
        }
    }
    let key = node.keeper.info();
    let waiting = if node.is_misled() { "PodAddressesUnknown" } else { "Waiting" };
    VeilNodeStatus {
        generation: key.map(|key| key.generation.number()),
        key_created_at: key.and_then(|key| Timestamp::from_second(i64::try_from(key.created).ok()?).ok()),
        peers,
        encrypted,
        not_encrypted,
        policies: policies(node),
        conditions: conditions((waiting, &status::waiting_for(node)), &node.last.problems, now),
    }
}

/// Which ones the kernel goes by; of those that are not all known, or not carried out and enforced, nobody can say.
fn policies<K: Kernel>(node: &Node<K>) -> Option<String> {
    let is_so = node.last.synced && status::waiting_for(node).is_empty();
    is_so.then(|| node.snapshot().policies.digest(&node.snapshot().ending)).flatten()
}

/// Of a node that kubeveil has left, or is about to.
pub(crate) fn gone(is_over: bool, problems: &[Problem], now: Now) -> VeilNodeStatus {
    let mut conditions =
        conditions(("Uninstalling", &["the mesh, which says uninstall".to_owned()]), problems, now);
    let message =
        if is_over { "nothing of kubeveil is on this node" } else { "is being removed from this node" };
    let reason = if is_over { "Removed" } else { "Removing" };
    let at = conditions[0].last_transition_time;
    conditions.push(Condition::new(UNINSTALLED, is_over, reason, message.to_owned(), at));
    VeilNodeStatus { conditions, ..VeilNodeStatus::default() }
}

fn conditions((waiting, waiting_for): (&str, &[String]), problems: &[Problem], now: Now) -> Vec<Condition> {
    let at = i64::try_from(now.epoch.as_secs()).ok().and_then(|at| Timestamp::from_second(at).ok());
    let condition = |kind: &str, holds: bool, reason: &str, message: String| {
        Condition::new(kind, holds, reason, message, at.unwrap_or_default())
    };
    let ready = match waiting_for {
        [] => condition(READY, true, "Enforcing", "all that is known is carried out".to_owned()),
        waits => condition(READY, false, waiting, format!("waits for {}", waits.join("; "))),
    };
    let degraded = match problems {
        [] => condition(DEGRADED, false, "NoProblem", "nothing is wrong".to_owned()),
        [first, more @ ..] => {
            let mut message = first.to_string();
            if !more.is_empty() {
                message = format!("{message} And {} more: `kubeveil status` on the node tells.", more.len());
            }
            condition(DEGRADED, true, &reason(first.kind.name()), message)
        }
    };
    vec![ready, degraded]
}

/// A name such as `key_store` as a condition's reason is written: `KeyStore`.
fn reason(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubeveil_api::{condition::ConditionStatus, problem::ProblemKind};

    use super::*;

    #[test]
    fn what_is_wrong_first_is_told_and_how_much_more() {
        let now = Now { monotonic: Duration::ZERO, epoch: Duration::from_secs(1_800_000_000) };
        let problem = |object: &str| Problem {
            kind: ProblemKind::KeyStore,
            object: object.to_owned(),
            field: String::new(),
            message: "is wrong".to_owned(),
            advice: "Mend it".to_owned(),
        };
        let told =
            conditions(("Waiting", &["a".to_owned(), "b".to_owned()]), &[problem("x"), problem("y")], now);
        let [ready, degraded] = &told[..] else { panic!("{told:?}") };
        assert_eq!((ready.status, ready.reason.as_str()), (ConditionStatus::False, "Waiting"));
        assert_eq!(ready.message, "waits for a; b");
        assert_eq!((degraded.status, degraded.reason.as_str()), (ConditionStatus::True, "KeyStore"));
        assert!(degraded.message.starts_with("x: is wrong. Mend it. And 1 more"), "{}", degraded.message);
        let well = conditions(("Waiting", &[]), &[], now);
        assert_eq!((well[0].status, well[1].status), (ConditionStatus::True, ConditionStatus::False));
        assert_eq!(well[0].last_transition_time.as_second(), 1_800_000_000);
    }
}
