//! What is said when somebody wants to see packets: `kubeveil explain --watch`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    policy::FlowMode,
    status::{Direction, Verdict},
};

/// Version of [`Watched`].
pub const WATCH_VERSION: u32 = 1;
/// Flows that may be asked for at once.
pub const MOST_FLOWS: usize = 256;
/// Longest time to watch, seconds.
pub const LONGEST_WATCH: u32 = 600;

/// Packets from one address to another, as their IP header has them where they meet the node's underlay or tunnel: after a Service has
/// chosen a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Flow {
    /// Source.
    pub source: IpAddr,
    /// Destination, of the same family.
    pub destination: IpAddr,
}

/// The question.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// At most [`MOST_FLOWS`].
    pub flows: Vec<Flow>,
    /// For how long, at most [`LONGEST_WATCH`].
    pub seconds: u32,
}

impl Watch {
    /// What is wrong with it.
    pub fn refusal(&self) -> Option<String> {
        if self.flows.is_empty() {
            return Some("flows: there is none to watch".to_owned());
        }
        if self.flows.len() > MOST_FLOWS {
            return Some(format!(
                "flows: {} are more than {MOST_FLOWS}; ask for fewer ends",
                self.flows.len()
            ));
        }
        if !(1..=LONGEST_WATCH).contains(&self.seconds) {
            return Some(format!("seconds: must be from 1 to {LONGEST_WATCH}"));
        }
        let mixed = self.flows.iter().find(|flow| flow.source.is_ipv4() != flow.destination.is_ipv4());
        mixed.map(|flow| format!("flows: {} and {} are of different families", flow.source, flow.destination))
    }
}

/// The answer, when the time is over.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Watched {
    /// [`WATCH_VERSION`].
    pub schema_version: u32,
    /// Whose daemon says so.
    pub node: String,
    /// What was seen; a flow that is not named was not.
    pub seen: Vec<Seen>,
    /// Packets were seen that could not be noted: there were more than is told.
    pub is_short: bool,
}

/// Packets of one flow that met one verdict at one place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Which.
    #[serde(flatten)]
    pub flow: Flow,
    /// Where on the node, and which way.
    pub direction: Direction,
    /// What was done with them.
    pub verdict: Verdict,
    /// Why: the reason's name.
    pub reason: String,
    /// What that means, and what to do.
    pub advice: String,
    /// What they were held to.
    pub mode: FlowMode,
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// How long ago the last of them was when the time was over, milliseconds.
    pub age_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_held_to_its_bounds() {
        let flow = |source: &str, destination: &str| Flow {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        };
        let refused = |flows: Vec<Flow>, seconds| Watch { flows, seconds }.refusal().unwrap_or_default();
        let one = flow("10.244.0.2", "10.244.1.2");
        assert_eq!(refused(vec![one; MOST_FLOWS], LONGEST_WATCH), "");
        assert_eq!(refused(vec![one], 1), "");
        assert!(refused(Vec::new(), 1).starts_with("flows: there is none"));
        assert!(refused(vec![one; MOST_FLOWS + 1], 1).starts_with("flows: 257 are more than 256"));
        assert!(refused(vec![one], 0).starts_with("seconds: "));
        assert!(refused(vec![one], LONGEST_WATCH + 1).starts_with("seconds: "));
        assert!(refused(vec![flow("10.244.0.2", "fd00::1")], 1).contains("different families"));
    }
}
