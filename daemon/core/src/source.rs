//! Where the cluster is read from: an API server or a folder, behind one trait.

use std::{collections::BTreeMap, time::Duration};

use kubeveil_api::veil_node::VeilNodeStatus;

use crate::{policy::pods::OfPods, problem::Problem, snapshot::Knowledge};

/// What a source knows now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// The cluster.
    pub knowledge: Knowledge,
    /// What of it could not be read; its last good state stands in `knowledge`.
    pub problems: Vec<Problem>,
    /// Read again after this time, even if nothing wakes us.
    pub look_again: Option<Duration>,
}

/// What is otherwise than when a source was last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Nobody knows, or something that has to be seen as a whole.
    Any,
    /// What these nodes announce (`None`: nothing any more), and nothing else.
    Announcements(BTreeMap<String, Option<String>>),
    /// What is said of some pods, and nothing else.
    Pods(OfPods),
}

/// A source. It wakes its reader by a callback given when it was made; its calls may block.
pub trait Source: Send {
    /// As given on the command line, for people.
    fn name(&self) -> String;

    /// What is known at `now` (monotonic).
    fn read(&mut self, now: Duration) -> SourceState;

    /// What is otherwise since this or [`Source::read`] was last called. Of nodes that are not known it tells nothing by name.
    fn changes(&mut self) -> Changes {
        Changes::Any
    }

    /// Publishes the announcement of `node`, or takes it away; writes nothing if it stands there already.
    fn announce(&mut self, node: &str, uid: &str, announcement: Option<&str>) -> Result<(), Problem>;

    /// Tells people what `node` says of itself, where that has changed; times of transitions that are none are not told anew.
    fn report(&mut self, node: &str, status: VeilNodeStatus) -> Result<(), Problem>;
}
