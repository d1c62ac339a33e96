//! What becomes of packets between two ends, and why: as data.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use jiff::Timestamp;
use kubeveil_api::{
    bypass::Bypass,
    mesh::{ExcludedTraffic, Mode},
    policy::FlowMode,
};
use serde::Serialize;

pub use super::place::{Place, Who};
use super::{
    PolicyId,
    census::{Census, Holder, PodId, Resident},
    ruling::{FlowRuling, Law, Rule, Ruling, Subject, as_text},
};
use crate::ownership::Assignment;

/// One of both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// Who.
    #[serde(flatten)]
    pub place: Place,
    /// What it is held to by itself.
    pub held: Ruling,
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Course {
    /// Both ends are on one node: nothing crosses the wire.
    Local,
    /// From node to node: left alone.
    Hosts,
    /// To or from what is no part of the cluster: left alone.
    Outside,
    /// From one node to another, as pods' traffic.
    Crosses,
}

/// What else one has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Note {
    /// Less than the mesh asks for holds only while each end's node knows by which device it speaks.
    WhileDevicesAreKnown,
    /// The pair may still be open until its tunnel is proven, at most until then.
    Adopting {
        /// `spec.adoption.deadline`.
        deadline: Timestamp,
    },
    /// The pair is bypassed, until then: in plain, though there is a tunnel.
    Bypassed {
        /// When it ends.
        until: Timestamp,
        /// Who said so.
        by: String,
        /// Why.
        reason: String,
    },
    /// That node can have no agent, and the mesh lets its traffic pass in plain for that.
    Excluded {
        /// Which.
        node: String,
    },
    /// Who does not have to encrypt does not know that the other end has to: it is the receiver that drops.
    DroppedByReceiver,
    /// The mesh asks all agents to clean up.
    Uninstalled,
    /// No policy holds a pod of its node's network.
    HostNetwork {
        /// Which.
        pod: PodId,
    },
    /// It has ended, so its addresses are others'.
    HasEnded {
        /// Which.
        pod: PodId,
    },
    /// Nobody knows yet where it runs, or by which address.
    NotRunning {
        /// Which.
        pod: PodId,
    },
    /// Daemons don't take the word of a pod without its namespace.
    NamespaceUnknown {
        /// Which pod.
        pod: PodId,
    },
    /// Its namespace is being deleted. Policies of it that went before stand until it is gone, and are not there to be seen.
    NamespaceEnds {
        /// Which pod.
        pod: PodId,
    },
    /// Other pods are said to have the address as well; the strictest counts.
    AddressShared {
        /// All of them.
        pods: BTreeSet<PodId>,
    },
    /// There is no tunnel for an address that is of no node's ranges.
    NoTunnel {
        /// Such a one.
        address: IpAddr,
    },
    /// Where masquerading hides the pod behind its node, packets are held to this.
    Masqueraded {
        /// The most that is asked of anybody.
        mode: FlowMode,
    },
}

/// What would be without a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Without {
    /// Which.
    #[serde(serialize_with = "as_text")]
    pub policy: PolicyId,
    /// What the flow would be held to.
    pub flow: FlowRuling,
}

/// What becomes of packets between two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who sends.
    pub from: End,
    /// Who is sent to.
    pub to: End,
    /// Which way.
    pub course: Course,
    /// What they are held to; absent where they are left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowRuling>,
    /// What they would be held to without one of the policies that select an end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Without>,
    /// They could be on the wire in plain.
    pub can_be_plain: bool,
    /// What else one has to know.
    pub notes: Vec<Note>,
}

impl Explanation {
    /// Is it a policy that requires encryption of an end, and not the mesh alone? A pair that is open to others is closed to it.
    pub fn is_required_by_policy(&self) -> bool {
        [&self.from, &self.to].into_iter().any(is_required_by_policy)
    }
}

fn is_required_by_policy(end: &End) -> bool {
    let is_by_policy = || end.held.rules.iter().any(|rule| !matches!(rule, Rule::Mesh { .. }));
    end.held.mode == FlowMode::Require && is_by_policy()
}

fn course(from: &Place, to: &Place) -> Course {
    let same = from.node().zip(to.node()).is_some_and(|(one, other)| one == other);
    if same {
        Course::Local
    } else if from.is_outside() || to.is_outside() {
        Course::Outside
    } else if from.is_host() && to.is_host() {
        Course::Hosts
    } else {
        Course::Crosses
    }
}

/// What explanations are made of.
#[derive(Clone, Debug)]
pub struct Desk<'a> {
    census: &'a Census,
    law: Law,
    assignment: Arc<Assignment>,
    now: Timestamp,
}

impl<'a> Desk<'a> {
    /// A cluster at `now`.
    pub fn at(census: &'a Census, now: Timestamp) -> Self {
        Self { census, law: census.law(), assignment: census.assignment().into(), now }
    }

    /// What becomes of packets from `from` to `to`; or who of them does not exist, and who does.
    pub fn explain(&self, from: &Who, to: &Who) -> Result<Explanation, String> {
        let mut notes = Vec::new();
        let who = [from, to];
        let (from, to) = (self.end(from, &mut notes)?, self.end(to, &mut notes)?);
        let course = course(&from.place, &to.place);
        let flow = (course == Course::Crosses).then(|| self.law.on_flow([&from.held, &to.held], self.now));
        let can_be_plain = match &flow {
            None => course != Course::Local,
            Some(flow) => self.can_be_plain(flow, [&from, &to], &mut notes),
        };
        let without = if flow.is_some() { self.without(who, [&from, &to])? } else { Vec::new() };
        Ok(Explanation { from, to, course, flow, without, can_be_plain, notes })
    }

    pub(super) fn holder(&self, address: &IpAddr) -> Holder {
        self.census.holder(&self.assignment, address).0
    }

    /// It is no pod's and no node's.
    pub fn is_nobodys(&self, address: &IpAddr) -> bool {
        matches!(self.holder(address), Holder::Unowned | Holder::NoNode | Holder::Outside)
    }

    pub(super) fn pods(&self) -> &'a BTreeMap<PodId, Resident> {
        &self.census.pods
    }

    /// The same flow, once without each of the policies that select an end.
    fn without(&self, who: [&Who; 2], ends: [&End; 2]) -> Result<Vec<Without>, String> {
        let selecting = ends.into_iter().flat_map(|end| &end.held.selected_by).filter(|one| !one.ended);
        let policies: BTreeSet<&PolicyId> = selecting.map(|one| &one.policy).collect();
        let without = |policy: &PolicyId| {
            let law = self.law.without(policy);
            let desk = Desk { law, assignment: self.assignment.clone(), ..*self };
            let mut untold = Vec::new();
            let [from, to] = who.map(|who| desk.end(who, &mut untold));
            let flow = desk.law.on_flow([&from?.held, &to?.held], self.now);
            Ok(Without { policy: policy.clone(), flow })
        };
        policies.into_iter().map(without).collect()
    }

    fn end(&self, who: &Who, notes: &mut Vec<Note>) -> Result<End, String> {
        match who {
            Who::Pod(id) => {
                let found = self.census.pods.get(id);
                let resident =
                    found.ok_or_else(|| format!("there is no pod {id}; {}", self.census.near(id)))?;
                Ok(self.pod(id, resident, notes))
            }
            Who::Node(name) if self.census.nodes.contains_key(name) => {
                Ok(End { place: Place::Node { node: name.clone() }, held: self.law.on_others() })
            }
            Who::Node(name) => Err(format!("there is no node {name}; {}", self.census.near_node())),
            Who::Address(address) => Ok(self.address(*address, notes)),
        }
    }

    fn pod(&self, id: &PodId, resident: &Resident, notes: &mut Vec<Note>) -> End {
        let node = Some(resident.pod.node.clone()).filter(|node| !node.is_empty());
        let pod = || id.clone();
        if resident.has_ended {
            notes.push(Note::HasEnded { pod: pod() });
        } else if node.is_none() || (resident.pod.addresses.is_empty() && !resident.host_network) {
            notes.push(Note::NotRunning { pod: pod() });
        }
        if resident.host_network {
            notes.push(Note::HostNetwork { pod: pod() });
            return End { place: Place::HostPod { pod: pod(), node }, held: self.law.on_others() };
        }
        let addresses = resident.pod.addresses.clone();
        let no_tunnel =
            addresses.iter().find(|address| self.census.holder(&self.assignment, address).1.is_none());
        notes.extend(no_tunnel.map(|address| Note::NoTunnel { address: *address }));
        let held = self.held(id, resident, notes);
        End { place: Place::Pod { pod: pod(), node, addresses }, held }
    }

    fn held(&self, id: &PodId, resident: &Resident, notes: &mut Vec<Note>) -> Ruling {
        let Some(namespace_labels) = self.census.namespaces.get(&id.namespace) else {
            notes.push(Note::NamespaceUnknown { pod: id.clone() });
            return self.law.on_unknown();
        };
        if self.census.ending.contains(&id.namespace) {
            notes.push(Note::NamespaceEnds { pod: id.clone() });
        }
        let subject = Subject { namespace: &id.namespace, namespace_labels, labels: &resident.pod.labels };
        self.law.on_pod(subject, self.now)
    }

    fn address(&self, address: IpAddr, notes: &mut Vec<Note>) -> End {
        let place = match self.census.holder(&self.assignment, &address).0 {
            Holder::Pods(pods) => {
                let all: Vec<End> =
                    pods.iter().map(|id| self.pod(id, &self.census.pods[id], notes)).collect();
                if pods.len() > 1 {
                    notes.push(Note::AddressShared { pods });
                }
                let strictest = all.into_iter().max_by_key(|end| end.held.mode);
                return strictest.unwrap_or_else(|| self.unknown(Place::UnownedPod { address }));
            }
            Holder::Node(node) => Place::Node { node },
            Holder::OfNode(node) => return self.unknown(Place::UnknownPod { address, node }),
            Holder::Unowned => {
                notes.push(Note::NoTunnel { address });
                return self.unknown(Place::UnownedPod { address });
            }
            Holder::NoNode => Place::NoNode { address },
            Holder::Outside => Place::Outside { address },
        };
        End { place, held: self.law.on_others() }
    }

    fn unknown(&self, place: Place) -> End {
        End { place, held: self.law.on_unknown() }
    }

    /// Whether packets could be on the wire in plain, with what has to be known of it.
    fn can_be_plain(&self, flow: &FlowRuling, ends: [&End; 2], notes: &mut Vec<Note>) -> bool {
        if flow.mode < self.law.base() {
            notes.push(Note::WhileDevicesAreKnown);
        }
        let masqueraded = self.law.on_unknown().mode;
        if matches!(
            (&ends[0].place, &ends[1].place),
            (Place::Pod { .. }, Place::Node { .. } | Place::HostPod { .. })
        ) && masqueraded > flow.mode
        {
            notes.push(Note::Masqueraded { mode: masqueraded });
        }
        if self.census.mesh.uninstall {
            notes.push(Note::Uninstalled);
        }
        let bypass = self.bypass(ends).filter(|_| flow.mode != FlowMode::Observe);
        // A pair that adoption or a bypass leaves open is closed to whom a policy is about.
        let requiring: Vec<&End> = ends.into_iter().filter(|end| is_required_by_policy(end)).collect();
        if let Some(Bypass { until, by, reason, .. }) = bypass.filter(|_| requiring.is_empty()) {
            notes.push(Note::Bypassed { until: *until, by: by.clone(), reason: reason.clone() });
        }
        let excluded = ends.iter().filter_map(|end| end.place.node()).find(|node| self.passes_excluded(node));
        let excluded = excluded.filter(|_| requiring.is_empty() && flow.mode != FlowMode::Observe);
        notes.extend(excluded.map(|node| Note::Excluded { node: node.to_owned() }));
        if flow.mode != FlowMode::Require || self.census.mesh.uninstall || excluded.is_some() {
            return true;
        }
        let adopting = self.census.mesh.adoption.filter(|adoption| self.now < adoption.deadline);
        if self.law.mesh == Mode::Require && adopting.is_none() && bypass.is_none() {
            return false;
        }
        match (&requiring[..], adopting) {
            ([], Some(adoption)) => {
                notes.push(Note::Adopting { deadline: adoption.deadline });
                true
            }
            ([], None) if bypass.is_some() => true,
            ([end], _) if !self.is_told_of(end) => {
                notes.push(Note::DroppedByReceiver);
                true
            }
            _ => false,
        }
    }

    /// Can it have no agent, and does traffic with it pass in plain for that?
    fn passes_excluded(&self, node: &str) -> bool {
        let excluded = self.census.nodes.get(node).and_then(|facts| facts.excluded_by(&self.census.mesh));
        excluded == Some(ExcludedTraffic::Plain)
    }

    /// The bypass of the pair that lasts longest of those that are on.
    fn bypass(&self, [from, to]: [&End; 2]) -> Option<&Bypass> {
        let (from, to) = from.place.node().zip(to.place.node())?;
        let on = self.census.mesh.bypasses.iter().filter(|bypass| bypass.is_on(self.now));
        on.filter(|bypass| bypass.joins(from, to)).max_by_key(|bypass| bypass.until)
    }

    /// Does the other end's daemon know what is asked of this one?
    fn is_told_of(&self, end: &End) -> bool {
        match (&self.census.told, &end.place) {
            (Some(told), Place::Pod { addresses, .. }) => {
                !addresses.is_empty() && addresses.iter().all(|address| told.contains(address))
            }
            // Its own node holds it to the strictest; others hold its node's range to what is asked of all.
            (_, Place::UnknownPod { .. }) => false,
            _ => true,
        }
    }
}
