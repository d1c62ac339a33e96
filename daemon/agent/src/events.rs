//! How the async side reaches the thread that owns the node.

use std::{sync::mpsc, time::Duration};

use tokio::sync::oneshot;

use crate::status::View;

/// How long the node's thread may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the node's thread is woken by.
pub(crate) enum Event {
    /// Something may have changed in the kernel.
    Stir,
    /// The source may say something else.
    Hear,
    /// Somebody wants to know.
    Ask(oneshot::Sender<Box<View>>),
    /// The process is to end; the kernel keeps everything.
    Stop,
}

/// Asks the node's thread for its view; `None` if it does not answer in time.
pub(crate) async fn ask(events: &mpsc::Sender<Event>) -> Option<Box<View>> {
    let (answer, view) = oneshot::channel();
    events.send(Event::Ask(answer)).ok()?;
    tokio::time::timeout(PATIENCE, view).await.ok()?.ok()
}
