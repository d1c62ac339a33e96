//! What is explained, in lines for people.

use kubeveil_api::{
    policy::FlowMode,
    problem::{few, readable},
    status::Way,
};
use kubeveil_core::policy::explain::{Course, End, Explanation, Note, Place, Without};

use super::{Carried, Flow, Flows};
use crate::policy::by;

/// The document, for people.
pub(super) fn table(flows: &Flows) -> String {
    match flows {
        Flows::One(flow) => one(flow),
        Flows::Chosen { services, flows } => {
            let services: Vec<String> = services.iter().map(ToString::to_string).collect();
            let mut out = format!(
                "{} can choose {}; a packet is judged after that.\n",
                services.join(" and "),
                if flows.len() == 1 { "one way".to_owned() } else { format!("{} ways", flows.len()) }
            );
            for flow in flows {
                out += "\n";
                out += &one(flow);
            }
            out
        }
    }
}

fn one(flow: &Flow) -> String {
    let explanation = &flow.explanation;
    let mut out = end("From", &explanation.from) + &end("To", &explanation.to);
    let mut line = |head: &str, text: &str| out += &format!("{head:<6} {text}\n");
    match &explanation.flow {
        Some(flow) => line("Flow", &format!("{}, {}", flow.mode, by(&flow.rules))),
        None => line("Flow", "left alone"),
    }
    line("", means(explanation));
    if let Some(now) = &flow.now {
        line("Now", &going(now));
    }
    for Without { policy, flow } in &explanation.without {
        line("Else", &format!("without {policy}: {}, {}", flow.mode, by(&flow.rules)));
    }
    for note in &explanation.notes {
        line("Note", &words(note));
    }
    if let Some(seen) = &flow.seen {
        for (at, text) in seen.lines().iter().enumerate() {
            line(if at == 0 { "Seen" } else { "" }, text);
        }
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
        Note::Excluded { node } => format!("{node} can have no agent, and spec.excludedNodes lets its traffic pass in plain"),
        Note::DroppedByReceiver => "the controller has not told other nodes yet of whom encryption is required here (VeilPodSlice): what the other end sends without a tunnel is dropped by the receiver, but was on the wire".to_owned(),
        Note::Uninstalled => "spec.uninstall of the mesh asks all agents to clean up, and pod traffic travels in plain from then on".to_owned(),
        Note::HostNetwork { pod } => format!("{pod} has no address of its own, so no policy holds it"),
        Note::HasEnded { pod } => format!("{pod} has ended: its addresses may be another pod's by now"),
        Note::NotRunning { pod } => format!("{pod} has no node or no address yet; it is said what will hold"),
        Note::NamespaceEnds { pod } => format!(
            "the Namespace of {pod} is being deleted: policies of it that are gone already stand until it is gone, and agents may hold its \
             pods to more than is told here"
        ),
        Note::NamespaceUnknown { pod } => format!("the Namespace of {pod} is not known, so it is held to what is asked of whoever is not known"),
        Note::AddressShared { pods } => format!("{} are all said to have that address; the strictest counts", few(pods.iter(), 5)),
        Note::NoTunnel { address } => format!("{address} is of no node's range, so there is no tunnel for it"),
        Note::Masqueraded { mode } => format!("where masquerading gives the pod its node's address, packets to another node's are held to {mode}: nobody can tell whose they are"),
    }
}
