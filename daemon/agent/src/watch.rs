//! Packets that somebody wants to see (`kubeveil explain --watch`): armed for as long as that one waits, and no longer.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use kubeveil_abi::MAX_WATCHED;
use kubeveil_api::watch::{MOST_FLOWS, Seen, WATCH_VERSION, Watch, Watched};
use kubeveil_linux::{Kernel, KernelError, Sighting};
use tokio::sync::oneshot;

use crate::{
    events::{Event, Question},
    http::Door,
    node::Node,
    status,
};

const _: () = assert!(MOST_FLOWS <= MAX_WATCHED);

/// Watches, waits and answers.
pub(crate) async fn watch(State(door): State<Arc<Door>>, Json(watch): Json<Watch>) -> Response {
    if let Some(why) = watch.refusal() {
        return (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response();
    }
    let Ok(_alone) = door.watching.try_lock() else {
        return (StatusCode::CONFLICT, "somebody else watches packets on this node: one at a time\n")
            .into_response();
    };
    watched(&door, &watch).await.unwrap_or_else(|refused| refused)
}

async fn watched(door: &Door, watch: &Watch) -> Result<Response, Response> {
    let failed = |e: KernelError| (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response();
    let flows = watch.flows.clone();
    // From here on, as it may be armed whatever the answer is.
    let _armed = Armed(&door.events);
    door.question(|answer| Question::Watch(flows, answer)).await?.map_err(failed)?;
    tokio::time::sleep(Duration::from_secs(watch.seconds.into())).await;
    let seen = door.question(Question::Seen).await?.map_err(failed)?;
    Ok(Json(seen).into_response())
}

/// The programs look for packets as long as this lives: whoever asked may go before the time is over.
struct Armed<'a>(&'a mpsc::Sender<Event>);

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        // A daemon that ends leaves it armed, and the next one forgets it.
        drop(self.0.send(Event::Ask(Question::Watch(Vec::new(), oneshot::channel().0))));
    }
}

/// What was seen, at `now` since boot.
pub(crate) fn seen<K: Kernel>(node: &mut Node<K>, now: Duration) -> Result<Watched, KernelError> {
    let sightings = node.kernel.seen()?;
    let seen = |Sighting { flow, count, last }: Sighting| Seen {
        flow,
        direction: status::direction(count.direction),
        verdict: status::verdict(&count),
        reason: count.reason.name().to_owned(),
        advice: count.reason.advice().to_owned(),
        mode: status::flow_mode(count.mode),
        packets: count.packets,
        bytes: count.bytes,
        age_ms: u64::try_from(now.saturating_sub(last).as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Watched {
        schema_version: WATCH_VERSION,
        node: node.name.clone(),
        seen: sightings.found.into_iter().map(seen).collect(),
        is_short: sightings.is_short,
    })
}

#[cfg(test)]
mod tests;
