//! Who is behind a Service: a packet is judged after the Service has chosen one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
};

use kubeveil_api::{
    problem::few,
    selector::Labels,
    service::{Endpoint, EndpointConditions, EndpointSlice, SERVICE_NAME, Service},
};
use serde::{Serialize, Serializer};

use super::{
    census::{Holder, PodId},
    explain::Desk,
    place::Who,
};

/// Most names that are told of what exists.
const MOST: usize = 5;

/// A Service's name, written as a pod's is, behind `svc/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub PodId);

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "svc/{}", self.0)
    }
}

impl Serialize for ServiceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What somebody asks about, before Services have chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whoever it chooses.
    Service(ServiceId),
    /// One end.
    One(Who),
}

impl FromStr for Target {
    type Err = String;

    /// `svc/NAMESPACE/NAME`, else as [`Who`] is written.
    fn from_str(text: &str) -> Result<Self, String> {
        // A namespace may be called svc.
        let name = text.strip_prefix("svc/").filter(|name| name.contains('/'));
        let Some(name) = name else {
            return text.parse().map(Self::One);
        };
        let id = name.parse().map_err(|_| "a Service is svc/NAMESPACE/NAME".to_owned())?;
        Ok(Self::Service(ServiceId(id)))
    }
}

/// A Service, and who is behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Behind {
    /// By which it is reached.
    addresses: BTreeSet<IpAddr>,
    selector: Labels,
    external_name: String,
    /// What its EndpointSlices name; `None`: it has none.
    endpoints: Option<Endpoints>,
}

/// Addresses of those behind a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Endpoints {
    ready: BTreeSet<IpAddr>,
    /// About to end, and still serving: kube-proxy takes these where nobody is ready (KEP-1669).
    last: BTreeSet<IpAddr>,
}

impl Endpoints {
    fn add(&mut self, endpoint: &Endpoint) {
        let EndpointConditions { ready, serving, terminating } = endpoint.conditions;
        let address = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
        if ready != Some(false) {
            self.ready.extend(address);
        } else if terminating == Some(true) && serving == Some(true) {
            self.last.extend(address);
        }
    }

    fn chosen(&self) -> &BTreeSet<IpAddr> {
        if self.ready.is_empty() { &self.last } else { &self.ready }
    }
}

/// Services by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(BTreeMap<ServiceId, Behind>);

impl Services {
    /// As objects say. An address that nobody can read is left out.
    pub fn new(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Self {
        let id = |namespace: Option<String>, name| {
            ServiceId(PodId { namespace: namespace.unwrap_or_else(|| "default".to_owned()), name })
        };
        let mut all: BTreeMap<ServiceId, Behind> = BTreeMap::new();
        for Service { metadata, spec, status } in services {
            let given = status.load_balancer.ingress.iter().filter(|ingress| ingress.ip_mode != "Proxy");
            let given = given.map(|ingress| &ingress.ip);
            let addresses = spec.cluster_ips.iter().chain([&spec.cluster_ip]).chain(&spec.external_ips);
            let addresses = addresses.chain(given).filter_map(|text| text.parse().ok()).collect();
            let (selector, external_name) = (spec.selector, spec.external_name);
            let behind = Behind { addresses, selector, external_name, endpoints: None };
            all.insert(id(metadata.namespace, metadata.name), behind);
        }
        for slice in slices {
            let name = slice.metadata.labels.get(SERVICE_NAME).cloned().unwrap_or_default();
            if let Some(behind) = all.get_mut(&id(slice.metadata.namespace, name)) {
                let endpoints = behind.endpoints.get_or_insert_default();
                slice.endpoints.iter().for_each(|endpoint| endpoints.add(endpoint));
            }
        }
        Self(all)
    }

    /// The Services that are meant: by name, or by an address that is nobody else's. Several may have one, and tell packets by the port.
    pub fn of(&self, target: &Target, desk: &Desk<'_>) -> Vec<ServiceId> {
        match target {
            Target::Service(id) => vec![id.clone()],
            Target::One(Who::Address(address)) if desk.is_nobodys(address) => {
                let has = |behind: &Behind| behind.addresses.contains(address);
                self.0.iter().filter(|(_, behind)| has(behind)).map(|(id, _)| id.clone()).collect()
            }
            Target::One(_) => Vec::new(),
        }
    }

    /// Whom it can choose; or why nobody.
    pub fn chosen(&self, id: &ServiceId, desk: &Desk<'_>) -> Result<Vec<Who>, String> {
        let Some(behind) = self.0.get(id) else {
            return Err(format!("there is no {id}; {}", self.near(id)));
        };
        if !behind.external_name.is_empty() {
            return Err(format!(
                "{id} is another name for {}, and has nobody behind it",
                behind.external_name
            ));
        }
        let chosen: Vec<Who> = match &behind.endpoints {
            Some(endpoints) => who(endpoints.chosen(), desk),
            None if behind.selector.is_empty() => Vec::new(),
            None => selected(behind, id, desk).map(|id| Who::Pod(id.clone())).collect(),
        };
        if chosen.is_empty() {
            return Err(format!("nobody who is ready is behind {id}: packets to it reach nobody"));
        }
        Ok(chosen)
    }

    fn near(&self, wanted: &ServiceId) -> String {
        let same: Vec<&ServiceId> = self
            .0
            .keys()
            .filter(|id| id.0.namespace == wanted.0.namespace || id.0.name == wanted.0.name)
            .collect();
        match (same.is_empty(), self.0.is_empty()) {
            (false, _) => format!("there is {}", few(same.into_iter(), MOST)),
            (true, false) => format!("there is {}", few(self.0.keys(), MOST)),
            (true, true) => "no Service is known at all".to_owned(),
        }
    }
}

/// Who has these addresses: a pod or a node once, though it have one of either family. Where several pods are said to have one, it stays an
/// address, of which the strictest counts.
fn who(addresses: &BTreeSet<IpAddr>, desk: &Desk<'_>) -> Vec<Who> {
    let (mut pods, mut nodes, mut others) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for address in addresses {
        match desk.holder(address) {
            Holder::Pods(found) if found.len() == 1 => pods.extend(found),
            Holder::Node(node) => drop(nodes.insert(node)),
            _ => others.push(Who::Address(*address)),
        }
    }
    pods.into_iter().map(Who::Pod).chain(nodes.into_iter().map(Who::Node)).chain(others).collect()
}

/// Pods of its namespace with all of its labels.
fn selected<'a>(
    behind: &'a Behind,
    id: &'a ServiceId,
    desk: &'a Desk<'a>,
) -> impl Iterator<Item = &'a PodId> {
    let is_behind =
        |labels: &Labels| behind.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let of = desk.pods().iter().filter(|(pod, _)| pod.namespace == id.0.namespace);
    of.filter(move |(_, resident)| !resident.has_ended && is_behind(&resident.pod.labels)).map(|(pod, _)| pod)
}
