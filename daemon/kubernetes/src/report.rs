//! What this node's agent says of itself, in the status of its `VeilNode`: for people and for the controller.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::core::{
    Request,
    params::{Patch, PatchParams},
};
use kubeveil_api::{
    condition::keep_transitions,
    names,
    veil_node::{VeilNode, VeilNodeStatus},
};
use kubeveil_core::problem::Problem;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    connect::{Line, Origin},
    pace::{Pace, Waits},
    source::Shared,
    trouble::{Deed, Failure},
};

const PATH: &str = "/apis/kubeveil.io/v1alpha1/veilnodes";
/// Field manager of server-side apply.
const MANAGER: &str = "kubeveil-agent";
/// Between two writes of what changes and changes again: thousands of agents see each change of a cluster at once.
const GAP: Duration = Duration::from_secs(5);
/// How often it is looked whether what was written stands: somebody may have deleted the object.
const LOOK: Duration = Duration::from_secs(600);

/// What is to be said, and what is wrong with saying it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    wanted: Option<VeilNodeStatus>,
    pub(crate) trouble: Option<Problem>,
}

impl Report {
    /// This is to be said; whether that is new. Another moment of a condition that is as it was is nothing new.
    pub(crate) fn want(&mut self, mut status: VeilNodeStatus) -> bool {
        if let Some(before) = &self.wanted {
            keep_transitions(&mut status.conditions, &before.conditions);
        }
        let is_new = self.wanted.as_ref() != Some(&status);
        self.wanted = Some(status);
        is_new
    }
}

/// Writes what changes, for ever.
pub(crate) async fn run(shared: Arc<Shared>, origin: Origin, pace: Pace) {
    let mut line = Line::new(origin, pace);
    let mut waits = Waits::new(pace);
    let mut failing_since = None;
    let mut said: Option<VeilNodeStatus> = None;
    let mut look = Instant::now();
    let node = shared.with(|state| state.store.own().to_owned());
    loop {
        let stirred = shared.reported();
        let wanted = shared.with(|state| state.report.wanted.clone());
        let Some(wanted) = wanted.filter(|wanted| said.as_ref() != Some(wanted) || look <= Instant::now())
        else {
            // Which of both it was does not matter.
            drop(timeout_at(look.max(Instant::now() + GAP), stirred).await);
            continue;
        };
        let done = write(&mut line, &node, &wanted).await;
        let trouble = match done {
            Ok(()) => {
                (said, failing_since) = (Some(wanted), None);
                look = Instant::now() + LOOK;
                waits.reset();
                None
            }
            Err(failure) => {
                let since = *failing_since.get_or_insert_with(Timestamp::now);
                let told = problem(&line, &node, &failure, since);
                line.failed(&failure);
                Some(told)
            }
        };
        let wait = if trouble.is_some() { waits.next(None).max(GAP) } else { GAP };
        shared.with(|state| state.report.trouble = trouble);
        sleep(wait).await;
    }
}

/// Writes nothing if it stands there.
async fn write(line: &mut Line, node: &str, wanted: &VeilNodeStatus) -> Result<(), Failure> {
    let text = line.ask(Request::new(PATH).get(node, &Default::default())).await?;
    let stands: VeilNode = serde_json::from_str(&text).map_err(Failure::Answer)?;
    let before = stands.status.unwrap_or_default();
    let mut status = wanted.clone();
    keep_transitions(&mut status.conditions, &before.conditions);
    // A daemon that began anew does not know yet what an earlier one has carried out, which stands.
    status.policies = status.policies.or_else(|| before.policies.clone());
    if status == before {
        return Ok(());
    }
    let patch = Patch::Apply(json!({
        "apiVersion": names::API_VERSION,
        "kind": "VeilNode",
        "metadata": {"name": node},
        "status": status,
    }));
    let params = PatchParams::apply(MANAGER).force();
    line.ask(Request::new(PATH).patch_subresource("status", node, &params, &patch)).await.map(drop)
}

fn problem(line: &Line, node: &str, failure: &Failure, since: Timestamp) -> Problem {
    let problem = line.problem(failure, Deed { verb: "patch", resource: "veilnodes/status" }, since);
    Problem {
        object: format!("VeilNode {node}"),
        field: "status".to_owned(),
        message: format!(
            "can't be written, so `kubectl get veil` does not tell of this node: {}",
            problem.message
        ),
        advice: "The controller makes it: is it running? Encryption goes on without".to_owned(),
        ..problem
    }
}

#[cfg(test)]
mod tests {
    use kubeveil_api::condition::Condition;

    use super::*;

    /// Who goes round every ten seconds asks the API server nothing by that.
    #[test]
    fn the_same_at_another_time_is_nothing_new() {
        let mut report = Report::default();
        let mut says = |second, holds| {
            let at = Timestamp::from_second(second).expect("a time");
            let conditions = vec![Condition::new("Ready", holds, "R", String::new(), at)];
            report.want(VeilNodeStatus { conditions, ..VeilNodeStatus::default() })
        };
        assert!(says(1, true));
        assert!(!says(2, true));
        assert!(says(3, false));
        assert!(!says(4, false));
    }
}
