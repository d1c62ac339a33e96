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
    service::{EndpointSlice, SERVICE_NAME, Service},
};
use serde::{Serialize, Serializer};

use super::{
    census::{Census, PodId},
    place::Who,
};

/// Most names that are told of what exists.
const MOST: usize = 5;

/// A Service's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// Its namespace.
    pub namespace: String,
    /// Its own.
    pub name: String,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "svc/{}/{}", self.namespace, self.name)
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
        let Some(name) = text.strip_prefix("svc/") else {
            return text.parse().map(Self::One);
        };
        let id: PodId = name.parse().map_err(|_| "a Service is svc/NAMESPACE/NAME".to_owned())?;
        Ok(Self::Service(ServiceId { namespace: id.namespace, name: id.name }))
    }
}

/// A Service, and who is behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Behind {
    /// By which it is reached.
    addresses: BTreeSet<IpAddr>,
    selector: Labels,
    external_name: String,
    /// What its EndpointSlices name, ready ones; `None`: it has none.
    endpoints: Option<BTreeSet<IpAddr>>,
}

/// Services by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(BTreeMap<ServiceId, Behind>);

impl Services {
    /// As objects say. An address that nobody can read is left out.
    pub fn new(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Self {
        let id = |namespace: Option<String>, name| ServiceId { namespace: namespace.unwrap_or_default(), name };
        let mut all: BTreeMap<ServiceId, Behind> = BTreeMap::new();
        for Service { metadata, spec, status } in services {
            let given = status.load_balancer.ingress.iter().map(|ingress| &ingress.ip);
            let addresses = spec.cluster_ips.iter().chain([&spec.cluster_ip]).chain(&spec.external_ips);
            let addresses = addresses.chain(given).filter_map(|text| text.parse().ok()).collect();
            let (selector, external_name) = (spec.selector, spec.external_name);
            let behind = Behind { addresses, selector, external_name, endpoints: None };
            all.insert(id(metadata.namespace, metadata.name), behind);
        }
        for slice in slices {
            let name = slice.metadata.labels.get(SERVICE_NAME).cloned().unwrap_or_default();
            if let Some(behind) = all.get_mut(&id(slice.metadata.namespace, name)) {
                let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready != Some(false));
                let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<IpAddr>().ok());
                behind.endpoints.get_or_insert_default().extend(addresses);
            }
        }
        Self(all)
    }

    /// The Service that is meant: by its name, or by an address of its own.
    pub fn of(&self, target: &Target) -> Option<ServiceId> {
        match target {
            Target::Service(id) => Some(id.clone()),
            Target::One(Who::Address(address)) => {
                self.0.iter().find(|(_, behind)| behind.addresses.contains(address)).map(|(id, _)| id.clone())
            }
            Target::One(_) => None,
        }
    }

    /// Whom it can choose; or why nobody.
    pub fn chosen(&self, id: &ServiceId, census: &Census) -> Result<Vec<Who>, String> {
        let Some(behind) = self.0.get(id) else {
            return Err(format!("there is no {id}; {}", self.near(id)));
        };
        if !behind.external_name.is_empty() {
            return Err(format!("{id} is another name for {}, and has nobody behind it", behind.external_name));
        }
        let chosen: Vec<Who> = match &behind.endpoints {
            Some(addresses) => endpoints(addresses, census),
            None if behind.selector.is_empty() => Vec::new(),
            None => selected(behind, id, census).map(|id| Who::Pod(id.clone())).collect(),
        };
        if chosen.is_empty() {
            return Err(format!("nobody who is ready is behind {id}: packets to it reach nobody"));
        }
        Ok(chosen)
    }

    fn near(&self, wanted: &ServiceId) -> String {
        let same: Vec<&ServiceId> =
            self.0.keys().filter(|id| id.namespace == wanted.namespace || id.name == wanted.name).collect();
        match (same.is_empty(), self.0.is_empty()) {
            (false, _) => format!("there is {}", few(same.into_iter(), MOST)),
            (true, false) => format!("there is {}", few(self.0.keys(), MOST)),
            (true, true) => "no Service is known at all".to_owned(),
        }
    }
}

/// Pods by their names, each once though it have an address of either family; and who is no pod.
fn endpoints(addresses: &BTreeSet<IpAddr>, census: &Census) -> Vec<Who> {
    let mut pods = BTreeMap::new();
    for (id, resident) in &census.pods {
        pods.extend(resident.pod.addresses.iter().map(|address| (*address, id)));
    }
    let of_pods: BTreeSet<&PodId> = addresses.iter().filter_map(|address| pods.get(address).copied()).collect();
    let others = addresses.iter().filter(|address| !pods.contains_key(address));
    of_pods.into_iter().cloned().map(Who::Pod).chain(others.copied().map(Who::Address)).collect()
}

/// Pods of its namespace with all of its labels.
fn selected<'a>(
    behind: &'a Behind,
    id: &'a ServiceId,
    census: &'a Census,
) -> impl Iterator<Item = &'a PodId> {
    let is_behind = |labels: &Labels| behind.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let of = census.pods.iter().filter(|(pod, _)| pod.namespace == id.namespace);
    of.filter(move |(_, resident)| !resident.has_ended && is_behind(&resident.pod.labels)).map(|(pod, _)| pod)
}
