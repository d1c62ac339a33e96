//! Pods and what is asked for of their addresses, kept up as pods, namespaces and policies come, change and go: what changes costs what
//! it concerns.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use jiff::Timestamp;
use kubeveil_api::{pod, pod_slice::SlicedPod, policy::PolicyMode, selector::Labels};

use super::{FlowMode, OfNamespace, Policies, Standing, both, stricter};

/// A pod that has addresses of its own: none that shares its node's, and none that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The node that it runs on.
    pub node: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, of either family.
    pub addresses: BTreeSet<IpAddr>,
    /// When its network was made last, by the clock of its node; `None`: that is not told.
    pub network_since: Option<Timestamp>,
}

impl From<&pod::Pod> for Pod {
    fn from(given: &pod::Pod) -> Self {
        Self {
            node: given.spec.node_name.clone(),
            // What `kubectl` takes it for.
            namespace: given.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            labels: given.metadata.labels.clone(),
            addresses: given.own_addresses().collect(),
            network_since: pod::network_since(&given.status.conditions),
        }
    }
}

impl Pod {
    /// Its labels, if it is as it `was` but for them.
    pub fn labelled_otherwise(&self, was: &Self) -> Option<&Labels> {
        let expected = Self { labels: self.labels.clone(), ..was.clone() };
        (expected == *self).then_some(&self.labels)
    }
}

/// What is asked for of some addresses.
pub type Exceptions = BTreeMap<IpAddr, Standing>;

/// What a slice of pods says; of an address that two of them have, the stricter.
pub fn exceptions(pods: &[SlicedPod]) -> Exceptions {
    let mut exceptions = Exceptions::new();
    for pod in pods {
        let standing = Standing { mode: pod.mode, until: pod.until };
        for address in &pod.addresses {
            let named = exceptions.entry(*address).or_insert(standing);
            *named = stricter(*named, standing);
        }
    }
    exceptions
}

/// What is said otherwise of pods that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfPods {
    /// Labels of pods that are told of one by one, by UID.
    pub labels: BTreeMap<String, Labels>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// What is asked for of pods of nodes whose pods are not told of one by one; `None`: nothing else than of all.
    pub elsewhere: BTreeMap<String, Option<Arc<Exceptions>>>,
}

impl OfPods {
    /// Of how many something is said.
    pub fn len(&self) -> usize {
        self.labels.len() + self.namespaces.len() + self.elsewhere.len()
    }

    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Addresses of which something else may be asked than was, by the node of those who have them.
pub type Concerned = BTreeMap<String, BTreeSet<IpAddr>>;

/// Pods by their UID, and the labels of namespaces, as a source tells of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workloads {
    /// Labels by namespace.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods by UID.
    pub pods: BTreeMap<String, Pod>,
    /// Of nodes whose pods are not told of one by one: the addresses of which something else is asked for than of all.
    pub elsewhere: BTreeMap<String, Arc<Exceptions>>,
    /// All nodes' pods were told of by now, one by one or by their exceptions. As long as they were not, of other nodes' pods too
    /// nobody knows what is asked.
    pub knows_elsewhere: bool,
}

impl Workloads {
    /// Takes that in, and returns whom it concerns; `None` where it is of somebody who is not known: some of it may be taken in then.
    pub fn hear(&mut self, said: OfPods) -> Option<Concerned> {
        let mut concerned = Concerned::new();
        for (uid, labels) in said.labels {
            let pod = self.pods.get_mut(&uid)?;
            pod.labels = labels;
            concerned.entry(pod.node.clone()).or_default().extend(&pod.addresses);
        }
        for (name, labels) in said.namespaces {
            *self.namespaces.get_mut(&name)? = labels;
            for pod in self.pods.values().filter(|pod| pod.namespace == name) {
                concerned.entry(pod.node.clone()).or_default().extend(&pod.addresses);
            }
        }
        for (node, asked) in said.elsewhere {
            let addresses = concerned.entry(node.clone()).or_default();
            addresses.extend(asked.iter().flat_map(|asked| asked.keys()));
            let before = match asked {
                Some(asked) => self.elsewhere.insert(node, asked),
                None => self.elsewhere.remove(&node),
            };
            addresses.extend(before.iter().flat_map(|before| before.keys()));
        }
        Some(concerned)
    }

    /// Without the pods of `node` of which all that is told is of before `boot`, when the node was started last: their addresses may be
    /// others' by now; and those addresses. `None`: there is no such pod.
    pub fn without_earlier(&self, node: &str, boot: Timestamp) -> Option<(Self, BTreeSet<IpAddr>)> {
        let is_earlier = |pod: &Pod| pod.node == node && pod.network_since.is_some_and(|since| since < boot);
        let earlier: Vec<&Pod> = self.pods.values().filter(|pod| is_earlier(pod)).collect();
        (!earlier.is_empty()).then(|| {
            let addresses = earlier.iter().flat_map(|pod| &pod.addresses).copied().collect();
            let mut now = self.clone();
            now.pods.retain(|_, pod| !is_earlier(pod));
            (now, addresses)
        })
    }

    /// What `policies` ask for of each address that a pod of a known namespace has, in a mesh of mode `base`, and what is said of those
    /// elsewhere. Nobody but its `owner`, the node of whose prefixes it is, says what has an address; one that is nobody's may be any
    /// pod's that we were told of by name. Of pods of the node `own` more counts wherever their addresses lie, if it is required.
    pub fn asked<'a>(
        &self,
        policies: &Policies,
        base: FlowMode,
        own: &str,
        owner: impl Fn(&IpAddr) -> Option<&'a str>,
    ) -> BTreeMap<IpAddr, Option<Standing>> {
        let pods = self.holders(policies, |pod, at| owner(at).is_none_or(|owner| owner == pod.node));
        let mut asked: BTreeMap<_, _> =
            pods.holders.keys().filter_map(|at| Some((*at, pods.of_address(base, at)?))).collect();
        // Where a pod of this node has an address of another's, what is required of it is, and nothing less.
        let astray =
            self.holders(policies, |pod, at| pod.node == own && owner(at).is_some_and(|node| node != own));
        for at in astray.holders.keys() {
            let standing = astray.of_address(base, at).flatten();
            if let Some(standing) = standing.filter(|standing| standing.mode == PolicyMode::Require) {
                asked.insert(*at, Some(standing));
            }
        }
        for (node, exceptions) in &self.elsewhere {
            let has = |address: &IpAddr| owner(address) == Some(node);
            for (address, standing) in exceptions.iter().filter(|(address, _)| has(address)) {
                // Whoever is told of by name as well is held to the stricter.
                let named = asked.entry(*address).or_insert(Some(*standing));
                *named = both(base, *named, Some(*standing));
            }
        }
        asked
    }

    /// The pods that have addresses of which this `counts`, and these alone.
    fn holders(&self, policies: &Policies, counts: impl Fn(&Pod, &IpAddr) -> bool) -> Pods {
        let that_count = |pod: &Pod| {
            let addresses: BTreeSet<_> = pod.addresses.iter().filter(|at| counts(pod, at)).copied().collect();
            (!addresses.is_empty()).then(|| Pod { addresses, ..pod.clone() })
        };
        let that_count: Vec<_> =
            self.pods.iter().filter_map(|(uid, pod)| Some((uid, that_count(pod)?))).collect();
        let mut pods = Pods::default();
        if that_count.is_empty() {
            return pods;
        }
        pods.set_policies(policies.clone());
        for (name, labels) in &self.namespaces {
            pods.set_namespace(name, Some(labels.clone()));
        }
        for (uid, pod) in that_count {
            pods.set_pod(uid, Some(pod));
        }
        pods
    }
}

/// Pods by their UID, what selects them, and whose an address is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    policies: Policies,
    namespaces: BTreeMap<String, Namespace>,
    pods: BTreeMap<String, Pod>,
    /// Of each pod whose namespace is known.
    standings: BTreeMap<String, Option<Standing>>,
    /// The pods that have an address: several, where it was given on before the first was gone.
    holders: BTreeMap<IpAddr, BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Namespace {
    labels: Labels,
    policies: OfNamespace,
    /// Its pods.
    pods: BTreeSet<String>,
}

impl Pods {
    /// Other policies. Returns the addresses whose standing is another.
    pub fn set_policies(&mut self, policies: Policies) -> BTreeSet<IpAddr> {
        self.policies = policies;
        let mut changed = BTreeSet::new();
        for (name, namespace) in &mut self.namespaces {
            namespace.policies = self.policies.of_namespace(name, &namespace.labels);
            changed.extend(renew(namespace, &self.pods, &mut self.standings));
        }
        changed
    }

    /// A namespace has these labels; `None`: it is not known. Returns the same.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> BTreeSet<IpAddr> {
        let before = self.namespaces.remove(name);
        let Some(labels) = labels else {
            let pods = before.map(|before| before.pods).unwrap_or_default();
            let forgotten = pods.iter().filter(|uid| self.standings.remove(*uid).is_some());
            return forgotten.flat_map(|uid| &self.pods[uid].addresses).copied().collect();
        };
        let pods = before.map_or_else(|| self.pods_of(name), |before| before.pods);
        let policies = self.policies.of_namespace(name, &labels);
        let namespace = Namespace { labels, policies, pods };
        let changed = renew(&namespace, &self.pods, &mut self.standings);
        self.namespaces.insert(name.to_owned(), namespace);
        changed
    }

    fn pods_of(&self, namespace: &str) -> BTreeSet<String> {
        self.pods.iter().filter(|(_, pod)| pod.namespace == namespace).map(|(uid, _)| uid.clone()).collect()
    }

    /// A pod is so; `None`: it is gone. Returns the addresses that it had, and has.
    pub fn set_pod(&mut self, uid: &str, pod: Option<Pod>) -> BTreeSet<IpAddr> {
        let mut changed = self.forget(uid);
        let Some(pod) = pod else { return changed };
        for address in &pod.addresses {
            self.holders.entry(*address).or_default().insert(uid.to_owned());
        }
        changed.extend(&pod.addresses);
        if let Some(namespace) = self.namespaces.get_mut(&pod.namespace) {
            self.standings.insert(uid.to_owned(), namespace.policies.standing(&pod.labels));
            namespace.pods.insert(uid.to_owned());
        }
        self.pods.insert(uid.to_owned(), pod);
        changed
    }

    fn forget(&mut self, uid: &str) -> BTreeSet<IpAddr> {
        let Some(before) = self.pods.remove(uid) else { return BTreeSet::new() };
        for address in &before.addresses {
            if let Some(holders) = self.holders.get_mut(address) {
                holders.remove(uid);
            }
            if self.holders.get(address).is_some_and(BTreeSet::is_empty) {
                self.holders.remove(address);
            }
        }
        if let Some(namespace) = self.namespaces.get_mut(&before.namespace) {
            namespace.pods.remove(uid);
        }
        self.standings.remove(uid);
        before.addresses
    }

    /// What is asked for of whoever has `address`, in a mesh of mode `base`; `None`: of somebody nothing is known, and of nobody else
    /// that nothing may pass.
    pub fn of_address(&self, base: FlowMode, address: &IpAddr) -> Option<Option<Standing>> {
        let holders = self.holders.get(address)?;
        let known: Vec<_> = holders.iter().filter_map(|uid| self.standings.get(uid)).copied().collect();
        let strictest = known.iter().copied().reduce(|one, other| both(base, one, other))?;
        let is_required = strictest.is_some_and(|standing| standing.mode == PolicyMode::Require);
        (known.len() == holders.len() || is_required).then_some(strictest)
    }
}

/// Decides anew on the pods of a namespace. Returns the addresses whose standing is another.
fn renew(
    namespace: &Namespace,
    pods: &BTreeMap<String, Pod>,
    standings: &mut BTreeMap<String, Option<Standing>>,
) -> BTreeSet<IpAddr> {
    let mut changed = BTreeSet::new();
    for (uid, pod) in namespace.pods.iter().filter_map(|uid| Some((uid, pods.get(uid)?))) {
        let now = namespace.policies.standing(&pod.labels);
        if standings.insert(uid.clone(), now) != Some(now) {
            changed.extend(&pod.addresses);
        }
    }
    changed
}
