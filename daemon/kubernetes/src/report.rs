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
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{
    connect::{Connection, Origin},
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
    let mut writer = Writer { origin, pace, connection: None };
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
        let done = writer.write(&node, &wanted).await;
        let trouble = match done {
            Ok(()) => {
                (said, failing_since) = (Some(wanted), None);
                look = Instant::now() + LOOK;
                waits.reset();
                None
            }
            Err(failure) => {
                let since = *failing_since.get_or_insert_with(Timestamp::now);
                if !failure.keeps_connection() {
                    writer.connection = None;
                }
                Some(writer.problem(&node, &failure, since))
            }
        };
        let wait = if trouble.is_some() { waits.next(None).max(GAP) } else { GAP };
        shared.with(|state| state.report.trouble = trouble);
        sleep(wait).await;
    }
}

struct Writer {
    origin: Origin,
    pace: Pace,
    connection: Option<Connection>,
}

impl Writer {
    /// Writes nothing if it stands there.
    async fn write(&mut self, node: &str, wanted: &VeilNodeStatus) -> Result<(), Failure> {
        let connection = match &self.connection {
            Some(connection) => connection.clone(),
            None => self.connection.insert(self.origin.connect(&self.pace).await?).clone(),
        };
        let get = Request::new(PATH).get(node, &Default::default()).map_err(unbuilt)?;
        let text = self.within(&connection, get).await?;
        let stands: VeilNode = serde_json::from_str(&text).map_err(Failure::Answer)?;
        let before = stands.status.unwrap_or_default();
        let mut status = wanted.clone();
        keep_transitions(&mut status.conditions, &before.conditions);
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
        let apply = Request::new(PATH).patch_subresource("status", node, &params, &patch).map_err(unbuilt)?;
        self.within(&connection, apply).await.map(drop)
    }

    async fn within(
        &self,
        connection: &Connection,
        request: http::Request<Vec<u8>>,
    ) -> Result<String, Failure> {
        let answer = timeout(self.pace.answer, connection.client.request_text(request)).await;
        answer.map_err(|_| Failure::Late(self.pace.answer))?.map_err(Failure::Request)
    }

    fn problem(&self, node: &str, failure: &Failure, since: Timestamp) -> Problem {
        let server = self.connection.as_ref().map_or("API server", |c| &c.server);
        let problem = failure.problem(server, Deed { verb: "patch", resource: "veilnodes/status" }, since);
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
}

fn unbuilt(error: kube::core::request::Error) -> Failure {
    Failure::Request(kube::Error::BuildRequest(error))
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
