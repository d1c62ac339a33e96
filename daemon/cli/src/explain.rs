//! `kubeveil explain`: what becomes of packets between two ends, and why.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use kubeveil_api::{
    policy::FlowMode,
    problem::{few, readable},
    status::{PeerStatus, Status, TunnelState, Way},
};
use kubeveil_core::policy::explain::{Course, End, Explanation, Note, Place, Who, explain};
use kubeveil_keys::Generation;
use serde::Serialize;

use crate::{FINDING, Output, SOCKET, UNREACHABLE, USAGE, ask, policy::by, show, source::SourceArg};

/// Options of `explain`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Who sends: NAMESPACE/POD, node/NAME or an address.
    #[arg(value_name = "SRC")]
    from: Who,
    /// Who is sent to, likewise.
    #[arg(value_name = "DST")]
    to: Who,
    /// Where the cluster is: `kubernetes`, as kubectl finds it; `kubernetes:KUBECONFIG`; or `dir:PATH`, the folder that the daemons read.
    #[arg(long, default_value = "kubernetes", env = "KUBEVEIL_SOURCE")]
    source: SourceArg,
    /// Socket of this node's daemon, which knows the tunnel; only root may open it.
    #[arg(long, default_value = SOCKET, env = "KUBEVEIL_SOCKET")]
    socket: PathBuf,
    /// Lines for people or JSON for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// The document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    #[serde(flatten)]
    explanation: Explanation,
    /// Absent where nothing crosses the wire between two nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Carried>,
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

/// Exit code 0: nothing of it is on the wire in plain; 1: it could be; 2: somebody does not exist; 3: the cluster can't be read.
pub(crate) fn run(options: &Options) -> anyhow::Result<u8> {
    let census = match options.source.census()? {
        Ok(census) => census,
        Err(problem) => {
            eprintln!("kubeveil: {problem}");
            return Ok(UNREACHABLE);
        }
    };
    let explanation = match explain(&census, &options.from, &options.to, Timestamp::now()) {
        Ok(explanation) => explanation,
        Err(why) => {
            eprintln!("kubeveil: {why}");
            return Ok(USAGE);
        }
    };
    let nodes = explanation.from.place.node().zip(explanation.to.place.node());
    let now = nodes.filter(|_| explanation.course == Course::Crosses).map(|(from, to)| {
        let status = ask::status(&options.socket).map_err(|e| format!("{e:#}"));
        carried(from, to, &explanation, status)
    });
    let code = if explanation.can_be_plain { FINDING } else { 0 };
    let document = Document { schema_version: 1, explanation, now };
    show(options.output, || table(&document), &document);
    Ok(code)
}

/// What `status` says of packets between both nodes, for the flow that is explained.
fn carried(from: &str, to: &str, explanation: &Explanation, status: Result<Status, String>) -> Carried {
    let not_known = |why: String| Carried::NotKnown { ask_on: vec![from.to_owned(), to.to_owned()], why };
    let status = match status {
        Ok(status) => status,
        Err(why) => return not_known(why),
    };
    let peer = match status.node.as_str() {
        node if node == from => to,
        node if node == to => from,
        node => return not_known(format!("the daemon here is that of {node}")),
    };
    let Some(found) = status.peers.iter().find(|found| found.node == peer) else {
        return not_known(format!("the daemon of {} does not know {peer}", status.node));
    };
    let way = way_of_flow(&status, found, explanation);
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
    let is_required = explanation.flow.as_ref().is_some_and(|flow| flow.mode == FlowMode::Require);
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

fn table(document: &Document) -> String {
    let explanation = &document.explanation;
    let mut out = end("From", &explanation.from) + &end("To", &explanation.to);
    let mut line = |head: &str, text: &str| out += &format!("{head:<6} {text}\n");
    match &explanation.flow {
        Some(flow) => line("Flow", &format!("{}, {}", flow.mode, by(&flow.rules))),
        None => line("Flow", "left alone"),
    }
    line("", means(explanation));
    if let Some(now) = &document.now {
        line("Now", &going(now));
    }
    for note in &explanation.notes {
        line("Note", &words(note));
    }
    out
}

fn end(head: &str, end: &End) -> String {
    let on = |node: &Option<String>| {
        node.as_ref().map_or_else(|| "on no node".to_owned(), |node| format!("on {node}"))
    };
    let who = match &end.place {
        Place::Pod { pod, node, addresses } => {
            let addresses = few(addresses.iter(), 2);
            let addresses = if addresses.is_empty() { "without an address" } else { &addresses };
            format!("pod {pod} {}, {addresses}", on(node))
        }
        Place::HostPod { pod, node } => format!("pod {pod} {}, of its node's network", on(node)),
        Place::Node { node } => format!("node {node}"),
        Place::UnknownPod { address, node } => {
            format!("{address}, of the pods' range of {node}; no pod that is known has it")
        }
        Place::UnownedPod { address } => format!("{address}, of the mesh's podCIDRs, and of no node's range"),
        Place::NoNode { address } => {
            format!("{address}, of the mesh's nodeCIDRs, and no node that is known has it")
        }
        Place::Outside { address } => format!("{address}, outside of the mesh's podCIDRs and nodeCIDRs"),
    };
    let mut out = format!("{head:<6} {who}\n");
    let is_pod = matches!(end.place, Place::Pod { .. });
    if is_pod && end.held.selected_by.is_empty() {
        out += &format!("{:6} no policy selects it\n", "");
    }
    for selecting in &end.held.selected_by {
        let until = match selecting.until {
            Some(until) if selecting.ended => format!(" (ended {until:.0})"),
            Some(until) => format!(" (until {until:.0})"),
            None => String::new(),
        };
        out += &format!("{:6} selected by {}: {}{until}\n", "", selecting.policy, selecting.mode);
    }
    if is_pod || matches!(end.place, Place::UnknownPod { .. } | Place::UnownedPod { .. }) {
        out += &format!("{:6} held to {}, {}\n", "", end.held.mode, by(&end.held.rules));
    }
    out
}

/// What that comes to on the wire.
fn means(explanation: &Explanation) -> &'static str {
    match (explanation.course, explanation.flow.as_ref().map(|flow| flow.mode)) {
        (Course::Local, _) => "Both ends are on one node: nothing crosses the wire.",
        (Course::Hosts, _) => "From node to node, in plain: kubeveil does not touch it.",
        (Course::Outside, _) => "To or from outside of the mesh, in plain: kubeveil does not touch it.",
        (_, Some(FlowMode::Require)) if explanation.can_be_plain => {
            "By a proven tunnel; without one dropped, but for what the notes say."
        }
        (_, Some(FlowMode::Require)) => "By a proven tunnel, or dropped.",
        (_, Some(FlowMode::Prefer)) => "By a proven tunnel; without one in plain, and counted.",
        (_, Some(FlowMode::Exempt)) => "By a proven tunnel; without one in plain.",
        (_, Some(FlowMode::Observe)) => "In plain: nothing is steered; what would be dropped is counted.",
        (_, None) => "",
    }
}

fn going(now: &Carried) -> String {
    match now {
        Carried::Known { on, to, way, state, generation, reason } => {
            let reason =
                reason.as_ref().map_or_else(String::new, |reason| format!(" ({})", readable(reason)));
            let way = match way {
                Way::Tunnel => "in the tunnel",
                Way::Plain => "in plain",
                Way::Dropped => "nowhere, they are dropped",
            };
            format!(
                "from {on} to {to} its packets go {way}{reason}; tunnel {state}, key generation {generation}"
            )
        }
        Carried::NotKnown { ask_on, why } => {
            format!("not known from here; run it on {} as root ({why})", ask_on.join(" or "))
        }
    }
}

fn words(note: &Note) -> String {
    match note {
        Note::WhileDevicesAreKnown => "less than the mesh asks for holds only while the node of each pod knows by which device it speaks; `kubeveil status` there names those of which it does not".to_owned(),
        Note::Adopting { deadline } => format!(
            "spec.adoption leaves a pair of nodes open until its tunnel is proven, at most until {deadline:.0}; `kubeveil status` on either node names open pairs"
        ),
        Note::Bypassed { until, by, reason } => format!(
            "in plain until {until:.0} by bypass of {}: {}",
            readable(by),
            readable(reason)
        ),
        Note::DroppedByReceiver => "the controller has not told other nodes yet of whom encryption is required here (VeilPodSlice): what the other end sends without a tunnel is dropped by the receiver, but was on the wire".to_owned(),
        Note::Uninstalled => "spec.uninstall of the mesh asks all agents to clean up, and pod traffic travels in plain from then on".to_owned(),
        Note::HostNetwork { pod } => format!("{pod} has no address of its own, so no policy holds it"),
        Note::HasEnded { pod } => format!("{pod} has ended: its addresses may be another pod's by now"),
        Note::NotRunning { pod } => format!("{pod} has no node or no address yet; it is said what will hold"),
        Note::NamespaceUnknown { pod } => format!("the Namespace of {pod} is not known, so it is held to what is asked of whoever is not known"),
        Note::AddressShared { pods } => format!("{} are all said to have that address; the strictest counts", few(pods.iter(), 5)),
        Note::NoTunnel { address } => format!("{address} is of no node's range, so there is no tunnel for it"),
        Note::Masqueraded { mode } => format!("where masquerading gives the pod its node's address, packets to another node's are held to {mode}: nobody can tell whose they are"),
    }
}

#[cfg(test)]
mod tests;
