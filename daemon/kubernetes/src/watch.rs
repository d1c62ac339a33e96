//! One kind of object, listed and then watched, for ever.

mod kinds;

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use kube::core::{
    ObjectList, Request,
    params::{ListParams, WatchParams},
    watch::WatchEvent,
};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    connect::{Connection, Line, Origin, unbuilt},
    object::version,
    pace::{Pace, Waits},
    source::Shared,
    store::{Disbelief, OutOfOrder},
    trouble::{Deed, Failure},
};
pub(crate) use kinds::Kind;

/// Objects a page of a list: some MB of Nodes.
const PAGE: u32 = 500;

/// Keeps a kind in the store as the API server has it.
pub(crate) struct Follower {
    kind: Kind,
    shared: Arc<Shared>,
    line: Line,
    must_list: bool,
    waits: Waits,
    /// When the first of the failures in a row was, and how many there were.
    failing: Option<(Timestamp, u32)>,
    /// What was asked last.
    verb: &'static str,
}

impl Follower {
    pub(crate) fn new(kind: Kind, shared: Arc<Shared>, origin: Origin, pace: Pace) -> Self {
        let waits = Waits::new(pace);
        Self {
            kind,
            shared,
            line: Line::new(origin, pace),
            must_list: true,
            waits,
            failing: None,
            verb: "list",
        }
    }

    /// For ever.
    pub(crate) async fn run(mut self) {
        loop {
            if let Err(failure) = self.round().await {
                let wait = self.failed(&failure);
                sleep(wait).await;
            }
        }
    }

    /// A list, if one is needed, and a watch until it ends.
    async fn round(&mut self) -> Result<(), Failure> {
        let kind = self.kind;
        self.must_list |= self.shared.with(|state| kind.turns(&state.store));
        self.verb = if self.must_list { "list" } else { "watch" };
        let connection = self.line.connection().await?;
        if self.must_list {
            self.shared.with(|state| kind.ask(&mut state.store));
            self.list(&connection).await?;
            (self.must_list, self.verb) = (false, "watch");
        }
        self.watch(&connection).await
    }

    async fn list(&self, connection: &Connection) -> Result<(), Failure> {
        let kind = self.kind;
        let mut params = ListParams { field_selector: self.fields(), ..ListParams::default() }.limit(PAGE);
        let mut listed = kind.listing();
        let as_of = loop {
            let request = Request::new(kind.path()).list(&params).map_err(unbuilt)?;
            let text = self.line.within(connection.client.request_text(request)).await?;
            let page: ObjectList<Box<RawValue>> = serde_json::from_str(&text).map_err(Failure::Answer)?;
            listed.add(&page.items).map_err(Failure::Answer)?;
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break version(page.metadata.resource_version.as_deref().unwrap_or_default()),
            }
        };
        if listed.is_empty() && !self.shared.with(|state| kind.known(&mut state.store).is_empty()) {
            self.knows_own(connection).await?;
        }
        self.shared.change(|store| listed.end(store, as_of)).map_err(Failure::Disbelief)
    }

    /// That nothing is there any more is believed of whom the Node is known to that this daemon runs on: with the last policy all that it
    /// held would be let go.
    async fn knows_own(&self, connection: &Connection) -> Result<(), Failure> {
        let own = self.shared.with(|state| state.store.own().to_owned());
        let params = ListParams::default().fields(&format!("metadata.name={own}"));
        let request = Request::new(Kind::Nodes.path()).list(&params).map_err(unbuilt)?;
        let text = self.line.within(connection.client.request_text(request)).await?;
        let nodes: ObjectList<Box<RawValue>> = serde_json::from_str(&text).map_err(Failure::Answer)?;
        let is_known = !nodes.items.is_empty();
        is_known.then_some(()).ok_or(Failure::Disbelief(Disbelief::LacksOwn(own)))
    }

    /// Until it ends; well only if it lasted.
    async fn watch(&mut self, connection: &Connection) -> Result<(), Failure> {
        let kind = self.kind;
        let mut params =
            WatchParams::default().timeout(u32::try_from(self.line.pace.watch.as_secs()).unwrap_or(u32::MAX));
        params.field_selector = self.fields();
        let from = self.shared.with(|state| kind.known(&mut state.store).newest()).to_string();
        let request = Request::new(kind.path()).watch(&params, &from).map_err(unbuilt)?;
        let events = self.line.within(connection.client.request_events::<Box<RawValue>>(request)).await?;
        let mut events = pin!(events);
        let start = Instant::now();
        let mut is_well = false;
        loop {
            let limit = if is_well { self.line.pace.silence } else { self.line.pace.steady };
            let event = tokio::select! {
                event = timeout(limit, events.try_next()) => event,
                () = self.shared.turned(), if kind == Kind::Nodes => {
                    if self.shared.with(|state| kind.turns(&state.store)) {
                        return Ok(());
                    }
                    continue;
                }
            };
            let event = match event {
                Ok(event) => event.map_err(Failure::Request)?,
                Err(_) if is_well => return Err(Failure::Broken("a watch fell silent")),
                Err(_) => {
                    is_well = true;
                    self.works();
                    continue;
                }
            };
            let Some(event) = event else {
                let lasted = start.elapsed() >= self.line.pace.steady;
                return if lasted { Ok(()) } else { Err(Failure::Broken("a watch ended at once")) };
            };
            let (object, is_deleted) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    let at = version(&bookmark.metadata.resource_version);
                    self.shared.with(|state| kind.known(&mut state.store).bookmark(at));
                    continue;
                }
                WatchEvent::Error(status) => return Err(Failure::Request(kube::Error::Api(status))),
            };
            let change = kind.event(&object, is_deleted).map_err(Failure::Answer)?;
            self.shared.change(change).map_err(|OutOfOrder| Failure::Expired)?;
            if !is_well {
                is_well = true;
                self.works();
            }
        }
    }

    fn fields(&self) -> Option<String> {
        self.shared.with(|state| self.kind.fields(&state.store))
    }

    fn works(&mut self) {
        self.failing = None;
        self.waits.reset();
        self.shared.with(|state| state.troubles.remove(&self.kind));
    }

    /// How long to wait before the next try.
    fn failed(&mut self, failure: &Failure) -> Duration {
        let (since, count) = self.failing.get_or_insert_with(|| (Timestamp::now(), 0));
        *count += 1;
        if *count > 1 || !failure.is_common() {
            let deed = Deed { verb: self.verb, resource: self.kind.resource() };
            let problem = self.line.problem(failure, deed, *since);
            self.shared.with(|state| state.troubles.insert(self.kind, problem));
        }
        self.must_list |= failure.needs_list();
        self.line.failed(failure);
        self.waits.next(failure.retry_after())
    }
}
