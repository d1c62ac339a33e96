//! How the async side reaches the thread that owns the node.

use std::{sync::mpsc, time::Duration};

use kubeveil_api::watch::Watched;
use kubeveil_linux::{Flow, KernelError};
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
    Ask(Question),
    /// The process is to end; the kernel keeps everything.
    Stop,
}

/// What the node's thread is asked, and where it answers.
pub(crate) enum Question {
    /// How the node is.
    View(oneshot::Sender<Box<View>>),
    /// To watch packets of these flows from now on, and of no others.
    Watch(Vec<Flow>, oneshot::Sender<Result<(), KernelError>>),
    /// What was seen of them since.
    Seen(oneshot::Sender<Result<Watched, KernelError>>),
}

/// Asks the node's thread; `None` if it does not answer in time.
pub(crate) async fn ask<A>(
    events: &mpsc::Sender<Event>,
    question: impl FnOnce(oneshot::Sender<A>) -> Question,
) -> Option<A> {
    let (answer, answered) = oneshot::channel();
    events.send(Event::Ask(question(answer))).ok()?;
    tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
}
