//! Packets of a flow that the daemon of this node saw, and what became of them.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _},
    net::IpAddr,
    path::Path,
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use kubeveil_api::{
    status::{BackstopForm, Direction, Status, Verdict},
    watch::{self, MOST_FLOWS, Seen, Watch, Watched},
};
use kubeveil_core::policy::{
    census::Census,
    explain::{Course, Explanation},
};
use serde::Serialize;

use super::{Flow, Flows};
use crate::{ask, status::bytes};

/// What was seen of one flow.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Observed {
    /// By the daemon of this node.
    Watched {
        on: String,
        seconds: u32,
        /// From SRC to DST; what is not there was not seen.
        there: Vec<Seen>,
        /// From DST to SRC.
        back: Vec<Seen>,
        /// There were more than could be noted.
        is_short: bool,
        /// What can't be seen by this.
        #[serde(skip_serializing_if = "Option::is_none")]
        blind_spot: Option<&'static str>,
    },
    /// Nobody watched.
    NotObserved { why: String },
}

/// Adds what is seen of each flow while `time` passes; without it, that nobody looked. An error says why it could not be.
pub(super) fn observe(
    flows: &mut Flows,
    census: &Census,
    time: Option<Duration>,
    socket: &Path,
) -> Result<(), String> {
    let ways: Vec<_> = flows.all().iter().map(|flow| both_ways(&flow.explanation, census)).collect();
    let wanted: BTreeSet<watch::Flow> = ways.iter().flatten().flatten().copied().collect();
    let watched = match time {
        // Of two pods of one node nothing can be seen, which nobody has to be told of.
        None => Err("--watch 5s, as root on the node of either end, shows its packets".to_owned()),
        Some(_) if wanted.is_empty() => Err("the ends have no address of one family".to_owned()),
        Some(time) => watched(wanted, time, socket),
    };
    let is_local = |flow: &Flow| flow.explanation.course == Course::Local;
    let is_all_local = flows.all().iter().all(is_local);
    for (flow, ways) in flows.all_mut().iter_mut().zip(&ways).filter(|(flow, _)| !is_local(flow)) {
        flow.seen = Some(match &watched {
            Ok((watched, seconds)) => of(watched, *seconds, &flow.explanation, ways),
            Err(why) => Observed::NotObserved { why: why.clone() },
        });
    }
    match watched {
        Err(why) if time.is_some() && !is_all_local => Err(why),
        _ => Ok(()),
    }
}

/// What the daemon of this node can't see.
pub(super) fn blind_spots(flows: &mut Flows, status: &Status) {
    let is_nftables = status.backstop.form == BackstopForm::Nftables;
    for flow in flows.all_mut() {
        if let Some(Observed::Watched { blind_spot, .. }) = &mut flow.seen {
            *blind_spot =
                is_nftables.then_some("what the backstop drops, which is nftables here, is not seen");
        }
    }
}

/// From SRC to DST, and back: each of the addresses of one end with each of the other's.
fn both_ways(explanation: &Explanation, census: &Census) -> [Vec<watch::Flow>; 2] {
    if explanation.course == Course::Local {
        return [Vec::new(), Vec::new()];
    }
    let [from, to] = [&explanation.from, &explanation.to].map(|end| census.addresses(&end.place));
    let flows = |from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>| {
        let pairs = from.iter().flat_map(|source| to.iter().map(move |destination| (*source, *destination)));
        let same = pairs.filter(|(source, destination)| source.is_ipv4() == destination.is_ipv4());
        same.map(|(source, destination)| watch::Flow { source, destination }).collect()
    };
    [flows(&from, &to), flows(&to, &from)]
}

/// What the daemon saw of one flow, there and back.
pub(super) fn of(
    watched: &Watched,
    seconds: u32,
    explanation: &Explanation,
    [there, back]: &[Vec<watch::Flow>; 2],
) -> Observed {
    let nodes = [&explanation.from, &explanation.to].map(|end| end.place.node());
    let is_elsewhere = nodes.iter().all(|node| node.is_some_and(|node| node != watched.node));
    if is_elsewhere {
        return Observed::NotObserved { why: format!("the daemon here is that of {}", watched.node) };
    }
    let among = |flows: &[watch::Flow]| {
        watched.seen.iter().filter(|seen| flows.contains(&seen.flow)).cloned().collect()
    };
    Observed::Watched {
        on: watched.node.clone(),
        seconds,
        there: among(there),
        back: among(back),
        is_short: watched.is_short,
        blind_spot: None,
    }
}

/// What the daemon sees within that time, and the seconds of it.
fn watched(flows: BTreeSet<watch::Flow>, time: Duration, socket: &Path) -> Result<(Watched, u32), String> {
    if flows.len() > MOST_FLOWS {
        return Err(format!(
            "these ends make {} flows, and {MOST_FLOWS} are the most; name pods, not a Service",
            flows.len()
        ));
    }
    let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let watch = Watch { flows: flows.into_iter().collect(), seconds };
    let done = thread::scope(|scope| {
        let asked = scope.spawn(|| ask::watch(socket, &watch));
        wait(time, || asked.is_finished());
        asked.join()
    });
    let watched = done.map_err(|_| "the question was cut off".to_owned())?;
    watched.map(|watched| (watched, seconds)).map_err(|e| format!("{e:#}"))
}

/// Shows how much of the time is over, on a terminal only.
fn wait(time: Duration, is_done: impl Fn() -> bool) {
    /// Between two looks whether it is done.
    const STEP: Duration = Duration::from_millis(50);
    if !io::stderr().is_terminal() {
        eprintln!("kubeveil: watching for {} s", time.as_secs());
    }
    let bar = ProgressBar::new(time.as_secs());
    if let Ok(style) = ProgressStyle::with_template("watching {bar:30} {pos}/{len} s") {
        bar.set_style(style);
    }
    while !is_done() {
        thread::sleep(STEP);
        bar.set_position(bar.elapsed().as_secs().min(time.as_secs()));
    }
    bar.finish_and_clear();
}

impl Observed {
    /// Was some of it on the wire in plain?
    pub(super) fn is_plain(&self) -> bool {
        let Self::Watched { there, back, .. } = self else { return false };
        there.iter().chain(back).any(|seen| match (seen.direction, seen.verdict) {
            // What left was encrypted, or not; or it did not leave.
            (Direction::Egress | Direction::Backstop, verdict) => {
                !matches!(verdict, Verdict::Tunnel | Verdict::Wrap | Verdict::Replace | Verdict::Drop)
            }
            // Whatever becomes of what came by the wire as it is.
            (Direction::Ingress, _) => true,
            (Direction::Tunnel, _) => false,
        })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Self::NotObserved { why } => vec![format!("not observed: {why}")],
            Self::Watched { on, seconds, there, back, is_short, blind_spot } => {
                let mut lines = vec![format!("on {on}, in {seconds} s:")];
                if there.is_empty() && back.is_empty() {
                    lines.push("nothing, either way: nobody spoke, or it looks different here; packets of an envelope, or behind masquerading, have their nodes' addresses (ask with node/NAME)".to_owned());
                } else {
                    lines.extend(one_way("there", there).chain(one_way("back", back)));
                }
                if *is_short {
                    lines.push("there were more than could be noted".to_owned());
                }
                lines.extend(blind_spot.map(str::to_owned));
                lines
            }
        }
    }
}

fn one_way(way: &str, seen: &[Seen]) -> impl Iterator<Item = String> {
    let nothing = seen.is_empty().then(|| format!("{way:<5} nothing"));
    seen.iter().map(move |seen| format!("{way:<5} {}", packets(seen))).chain(nothing)
}

fn packets(seen: &Seen) -> String {
    let place = match seen.direction {
        Direction::Egress => "on its way out",
        Direction::Ingress => "as it came in from the wire",
        Direction::Tunnel => "as it came out of the tunnel",
        Direction::Backstop => "on its way out by a device that nobody guards",
    };
    let mut text = format!(
        "{} > {}: {} packets ({}) {place}: {} ({}), the last {} before the end",
        seen.flow.source,
        seen.flow.destination,
        seen.packets,
        bytes(seen.bytes),
        seen.verdict,
        seen.reason,
        ago(seen.age_ms)
    );
    if matches!(seen.verdict, Verdict::Drop | Verdict::WouldDrop) {
        text += &format!(". {}", seen.advice);
    }
    text
}

fn ago(milliseconds: u64) -> String {
    match milliseconds {
        0..1_000 => format!("{milliseconds} ms"),
        _ => format!("{} s", milliseconds / 1_000),
    }
}
