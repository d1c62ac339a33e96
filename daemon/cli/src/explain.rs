//! `kubeveil explain`: what becomes of packets between two ends, and why.

mod seen;
mod table;

use std::{fmt::Display, path::PathBuf, time::Duration};

use clap::Args;
use jiff::Timestamp;
use kubeveil_api::{
    policy::FlowMode,
    status::{PeerStatus, Status, TunnelState, Way},
    watch::LONGEST_WATCH,
};
use kubeveil_core::policy::{
    explain::{Course, Desk, Explanation, Note, Who},
    services::{ServiceId, Services, Target},
};
use kubeveil_keys::Generation;
use serde::Serialize;

use self::seen::Observed;
use crate::{FINDING, Output, SOCKET, UNREACHABLE, USAGE, ask, patience, show, source::SourceArg};

/// Options of `explain`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Who sends: NAMESPACE/POD, svc/NAMESPACE/NAME, node/NAME or an address.
    #[arg(value_name = "SRC")]
    from: Target,
    /// Who is sent to, likewise.
    #[arg(value_name = "DST")]
    to: Target,
    /// Watch for so long, such as 5s (at most 10m), and show the packets of this flow that the node sees, with what became of them.
    #[arg(long, value_name = "TIME", value_parser = time_to_watch)]
    watch: Option<Duration>,
    /// Where the cluster is: `kubernetes`, as kubectl finds it; `kubernetes:KUBECONFIG`; or `dir:PATH`, the folder that the daemons read.
    #[arg(long, default_value = "kubernetes", env = "KUBEVEIL_SOURCE")]
    source: SourceArg,
    /// Socket of this node's daemon, which knows the tunnel and sees packets; only root may open it.
    #[arg(long, default_value = SOCKET, env = "KUBEVEIL_SOCKET")]
    socket: PathBuf,
    /// Lines for people or JSON for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn time_to_watch(text: &str) -> Result<Duration, String> {
    let time = patience(text)?;
    let is_whole = time.subsec_nanos() == 0 && (1..=LONGEST_WATCH.into()).contains(&time.as_secs());
    if is_whole { Ok(time) } else { Err("must be whole seconds, from 1s to 10m".to_owned()) }
}

/// The document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(flatten)]
    flows: Flows,
}

/// Between two ends, or whomever a Service can choose.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Flows {
    One(Box<Flow>),
    Chosen {
        /// Which Services are meant.
        services: Vec<ServiceId>,
        /// One for each that can be chosen.
        flows: Vec<Flow>,
    },
}

impl Flows {
    fn all_mut(&mut self) -> &mut [Flow] {
        match self {
            Self::One(flow) => std::slice::from_mut(flow),
            Self::Chosen { flows, .. } => flows,
        }
    }

    fn all(&self) -> &[Flow] {
        match self {
            Self::One(flow) => std::slice::from_ref(flow),
            Self::Chosen { flows, .. } => flows,
        }
    }
}

/// Packets between two ends.
#[derive(Debug, Serialize)]
struct Flow {
    #[serde(flatten)]
    explanation: Explanation,
    /// Absent where nothing crosses the wire between two nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Carried>,
    /// Absent where both are on one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Observed>,
}

impl Flow {
    /// By what holds, or by what is so.
    fn can_be_plain(&self) -> bool {
        self.explanation.can_be_plain
            || matches!(self.now, Some(Carried::Known { way: Way::Plain, .. }))
            || self.seen.as_ref().is_some_and(Observed::is_plain)
    }
}

/// How packets between both nodes go at this moment.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Carried {
    /// As the daemon of one of the nodes says.
    Known {
        /// That.
        on: String,
        to: String,
        way: Way,
        state: TunnelState,
        generation: Generation,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Whoever runs this command on one of these nodes learns it.
    NotKnown { ask_on: Vec<String>, why: String },
}

/// Exit code 0: nothing of it is on the wire in plain; 1: it could be, or was seen there; 2: somebody does not exist; 3: the cluster
/// can't be read, or packets not be watched.
pub(crate) fn run(options: &Options) -> anyhow::Result<u8> {
    let targets = [&options.from, &options.to];
    let may_be_services =
        targets.iter().any(|target| matches!(target, Target::Service(_) | Target::One(Who::Address(_))));
    let (census, services) = match options.source.census_and_services(may_be_services)? {
        Ok(surveyed) => surveyed,
        Err(problem) => return Ok(stopped(&problem, UNREACHABLE)),
    };
    let desk = Desk::at(&census, Timestamp::now());
    let is_needed = |target: &&Target| match target {
        Target::Service(_) => true,
        Target::One(Who::Address(address)) => desk.is_nobodys(address),
        Target::One(_) => false,
    };
    let services = match services {
        Ok(services) => services,
        // That of a Service is nobody else's, and looks as if it were somebody's outside.
        Err(problem) if targets.iter().any(is_needed) => return Ok(stopped(&problem, UNREACHABLE)),
        Err(_) => Services::default(),
    };
    let mut flows = match flows(&desk, &services, targets) {
        Ok(flows) => flows,
        Err(why) => return Ok(stopped(&why, USAGE)),
    };
    let status = ask::status(&options.socket).map_err(|e| format!("{e:#}"));
    now(&mut flows, status.as_ref());
    let is_watched = seen::observe(&mut flows, &census, options.watch, &options.socket);
    if let Ok(status) = &status {
        seen::blind_spots(&mut flows, status);
    }
    let is_plain = flows.all().iter().any(Flow::can_be_plain);
    let document = Document { schema_version: 1, flows };
    show(options.output, || table::table(&document.flows), &document);
    Ok(match is_watched {
        Err(why) => stopped(&format!("packets can't be watched: {why}"), UNREACHABLE),
        Ok(()) if is_plain => FINDING,
        Ok(()) => 0,
    })
}

fn stopped(why: &impl Display, code: u8) -> u8 {
    eprintln!("kubeveil: {why}");
    code
}

/// More would be told than anybody reads.
const MOST_WAYS: usize = 256;

/// Each flow that there can be between both.
fn flows(desk: &Desk<'_>, services: &Services, targets: [&Target; 2]) -> Result<Flows, String> {
    let meant = targets.map(|target| services.of(target, desk));
    let ends = |at: usize| match (&meant[at][..], targets[at]) {
        ([], Target::One(who)) => Ok(vec![who.clone()]),
        (meant, _) => {
            let chosen: Result<Vec<_>, String> = meant.iter().map(|id| services.chosen(id, desk)).collect();
            chosen.map(|all| all.concat())
        }
    };
    let (from, to): (Vec<Who>, Vec<Who>) = (ends(0)?, ends(1)?);
    let count = from.len() * to.len();
    if count > MOST_WAYS {
        return Err(format!("there are {count} ways between these, and {MOST_WAYS} are the most; name pods"));
    }
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (from, to)));
    let explained = pairs.map(|(from, to)| {
        let explanation = desk.explain(from, to)?;
        Ok(Flow { explanation, now: None, seen: None })
    });
    let mut flows = explained.collect::<Result<Vec<Flow>, String>>()?;
    let services: Vec<ServiceId> = meant.into_iter().flatten().collect();
    Ok(match flows.pop() {
        Some(only) if services.is_empty() => Flows::One(Box::new(only)),
        last => Flows::Chosen { services, flows: flows.into_iter().chain(last).collect() },
    })
}

/// Adds what a daemon says of the tunnels that flows take.
fn now(flows: &mut Flows, status: Result<&Status, &String>) {
    for flow in flows.all_mut() {
        let explanation = &flow.explanation;
        let nodes = explanation.from.place.node().zip(explanation.to.place.node());
        let nodes = nodes.filter(|_| explanation.course == Course::Crosses);
        flow.now = nodes.map(|(from, to)| carried(from, to, explanation, status));
    }
}

/// What `status` says of packets between both nodes, for the flow that is explained.
fn carried(from: &str, to: &str, explanation: &Explanation, status: Result<&Status, &String>) -> Carried {
    let not_known = |why: String| Carried::NotKnown { ask_on: vec![from.to_owned(), to.to_owned()], why };
    let status = match status {
        Ok(status) => status,
        Err(why) => return not_known(why.clone()),
    };
    let peer = match status.node.as_str() {
        node if node == from => to,
        node if node == to => from,
        node => return not_known(format!("the daemon here is that of {node}")),
    };
    let Some(found) = status.peers.iter().find(|found| found.node == peer) else {
        return not_known(format!("the daemon of {} does not know {peer}", status.node));
    };
    let way = way_of_flow(status, found, explanation);
    Carried::Known {
        on: status.node.clone(),
        to: peer.to_owned(),
        way,
        state: found.state,
        generation: found.generation,
        reason: found.reason.clone().filter(|_| way != Way::Tunnel),
    }
}

/// What a node says of a peer is about those of whom no policy is: who has to be encrypted does not go in plain with them.
fn way_of_flow(status: &Status, peer: &PeerStatus, explanation: &Explanation) -> Way {
    let is_required = explanation.flow.as_ref().is_some_and(|flow| flow.mode == FlowMode::Require)
        && explanation.is_required_by_policy();
    let is_steered = status.programs.iter().any(|program| program.program == "steer" && program.attached);
    let opens =
        |note: &Note| matches!(note, Note::Adopting { .. } | Note::Bypassed { .. } | Note::DroppedByReceiver);
    if peer.way != Way::Plain || !is_required || !is_steered || explanation.notes.iter().any(opens) {
        return peer.way;
    }
    let is_bypassed = status.bypasses.iter().any(|bypass| bypass.node == peer.node);
    match peer.proven {
        false => Way::Dropped,
        true if is_bypassed => Way::Tunnel,
        true => peer.way,
    }
}

#[cfg(test)]
mod tests;
