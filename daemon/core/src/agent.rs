//! Whether the agent of a node does its work, as far as it can be told from elsewhere.

use kubeveil_api::{
    condition::{READY, find},
    veil_node::VeilNodeStatus,
};

/// What is known of an agent's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// There is none.
    None,
    /// It is there, and not ready.
    Unready,
    /// It is ready.
    Ready,
    /// Nobody here can say.
    Unknown,
}

impl Life {
    /// By its pod: whether there is one, and whether that is ready.
    pub fn of_pod(is_ready: Option<bool>) -> Self {
        match is_ready {
            None => Self::None,
            Some(false) => Self::Unready,
            Some(true) => Self::Ready,
        }
    }
}

/// The agent of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its process.
    pub life: Life,
    /// What it has said last.
    pub said: Option<VeilNodeStatus>,
}

/// Why it can't be relied on, in words; `None` if it can, as far as anybody knows.
pub fn why_not_ready(life: Life, said: Option<&VeilNodeStatus>) -> Option<String> {
    match life {
        Life::None => return Some("no agent".to_owned()),
        Life::Unready => return Some("its agent's pod is not ready".to_owned()),
        Life::Ready | Life::Unknown => {}
    }
    let Some(said) = said else { return Some("its agent has said nothing yet".to_owned()) };
    match find(&said.conditions, READY) {
        Some(ready) if ready.holds() => None,
        Some(ready) => Some(ready.message.clone()),
        None => Some("its agent does not say".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use kubeveil_api::condition::Condition;

    use super::*;

    #[test]
    fn who_is_gone_or_not_ready_is_not_relied_on() {
        let says = |holds: bool| {
            let ready = Condition::new(READY, holds, "R", "waits for X".to_owned(), Timestamp::UNIX_EPOCH);
            VeilNodeStatus { conditions: vec![ready], ..VeilNodeStatus::default() }
        };
        let (well, waits, mute) = (says(true), says(false), VeilNodeStatus::default());
        let why = |life, said| why_not_ready(life, said);
        for life in [Life::Ready, Life::Unknown] {
            assert_eq!(why(life, Some(&well)), None);
            assert_eq!(why(life, Some(&waits)).as_deref(), Some("waits for X"));
            assert_eq!(why(life, Some(&mute)).as_deref(), Some("its agent does not say"));
            assert_eq!(why(life, None).as_deref(), Some("its agent has said nothing yet"));
        }
        // What it said last counts no more.
        assert_eq!(why(Life::of_pod(None), Some(&well)).as_deref(), Some("no agent"));
        assert_eq!(
            why(Life::of_pod(Some(false)), Some(&well)).as_deref(),
            Some("its agent's pod is not ready")
        );
    }
}
