//! This node's announcement, on its Node: written where it is missing or otherwise, and nothing else of the Node.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::core::{
    Request,
    params::{Patch, PatchParams},
};
use kubeveil_api::names;
use kubeveil_core::{problem::Problem, snapshot::NodeFacts};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    connect::{Line, Origin},
    object::{NodeObject, Read},
    pace::{Pace, Waits},
    source::Shared,
    trouble::{Deed, Failure},
};

/// Field manager of server-side apply.
const MANAGER: &str = "kubeveil-agent";
/// Who undoes what we write sooner than this is met with growing waits.
const PEACE: Duration = Duration::from_secs(60);

/// What is to stand on the Node of this UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) uid: String,
    /// `None`: nothing any more.
    pub(crate) text: Option<String>,
}

/// What is to be published, and how far that is.
#[derive(Debug, Default)]
pub(crate) struct Publication {
    wanted: Option<Wanted>,
    /// The Node's version after we wrote `wanted`.
    written: Option<u64>,
    pub(crate) trouble: Option<Problem>,
}

impl Publication {
    /// This is to stand there; whether that is new.
    pub(crate) fn want(&mut self, wanted: Wanted) -> bool {
        let is_new = self.wanted.as_ref() != Some(&wanted);
        if is_new {
            *self = Self { wanted: Some(wanted), written: None, trouble: None };
        }
        is_new
    }

    /// What has to be written, as the own Node is known.
    fn due(&self, own: Option<&Read<Arc<NodeFacts>>>) -> Option<&Wanted> {
        let (wanted, own) = (self.wanted.as_ref()?, own?);
        let stands = own.value.announcement == wanted.text;
        // What we wrote comes back by the watch; until then it is not missing.
        let is_under_way = self.written.is_some_and(|version| own.version < version);
        (own.uid == wanted.uid && !stands && !is_under_way).then_some(wanted)
    }

    fn mark_written(&mut self, wanted: &Wanted, version: u64) {
        if self.wanted.as_ref() == Some(wanted) {
            (self.written, self.trouble) = (Some(version), None);
        }
    }
}

/// Writes what has to be written, for ever.
pub(crate) async fn run(shared: Arc<Shared>, origin: Origin, pace: Pace) {
    let mut line = Line::new(origin, pace);
    let mut waits = Waits::new(pace);
    let mut last: Option<(Wanted, Instant)> = None;
    let mut failing_since = None;
    let mut asked = None;
    loop {
        let stirred = shared.stirred();
        let due = |state: &mut crate::source::State| {
            let own = state.store.nodes.get(state.store.own());
            state.publication.due(own).cloned()
        };
        let Some(wanted) = shared.with(due) else {
            stirred.await;
            continue;
        };
        match &last {
            Some((before, at)) if *before == wanted && at.elapsed() < PEACE => {
                sleep(waits.next(asked.take())).await;
                // It may have been mended meanwhile.
                if shared.with(due).as_ref() != Some(&wanted) {
                    continue;
                }
            }
            _ => waits.reset(),
        }
        let node = shared.with(|state| state.store.own().to_owned());
        let done = write(&mut line, &node, &wanted).await;
        last = Some((wanted.clone(), Instant::now()));
        match done {
            Ok(version) => {
                failing_since = None;
                shared.with(|state| state.publication.mark_written(&wanted, version));
            }
            Err(failure) => {
                let since = *failing_since.get_or_insert_with(Timestamp::now);
                asked = failure.retry_after();
                let problem = problem(&line, &node, &failure, since);
                shared.with(|state| state.publication.trouble = Some(problem));
                line.failed(&failure);
            }
        }
    }
}

/// The Node's version after that. Refused by the API server if the Node has another UID.
async fn write(line: &mut Line, node: &str, wanted: &Wanted) -> Result<u64, Failure> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node,
            "uid": wanted.uid,
            "annotations": {names::ANNOUNCEMENT: wanted.text},
        },
    });
    // Whoever else wrote the annotation has no say in it. To apply an object without it would leave what others own.
    let (patch, params) = match wanted.text {
        Some(_) => (Patch::Apply(object), PatchParams::apply(MANAGER).force()),
        None => (
            Patch::Merge(object),
            PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() },
        ),
    };
    let text = line.ask(Request::new("/api/v1/nodes").patch(node, &params, &patch)).await?;
    let written: NodeObject = serde_json::from_str(&text).map_err(Failure::Answer)?;
    Ok(written.read("").version)
}

fn problem(line: &Line, node: &str, failure: &Failure, since: Timestamp) -> Problem {
    let problem = line.problem(failure, Deed { verb: "patch", resource: "nodes" }, since);
    Problem {
        object: format!("Node {node}"),
        field: format!("metadata.annotations[{}]", names::ANNOUNCEMENT),
        message: format!("the announcement can't be written: {}: {}", problem.object, problem.message),
        advice: format!("{}. Other nodes can't learn this node's key until it is written", problem.advice),
        ..problem
    }
}
