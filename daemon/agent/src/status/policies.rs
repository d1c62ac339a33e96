//! What policies come to on this node.

use ipnet::IpNet;
use jiff::Timestamp;
use kubeveil_abi::{Asked, Origin, PrefixKind};
use kubeveil_api::{
    mesh::Mode,
    status::{PodsByMode, PolicyStatus},
};
use kubeveil_core::{desired, observed::Prefix, origin::is_alive, policy::FlowMode};
use kubeveil_linux::Kernel;

use crate::node::{Node, Now};

/// `None` where there are none, or no mesh is known.
pub(super) fn of<K: Kernel>(node: &Node<K>, now: Now) -> Option<PolicyStatus> {
    let policies = &node.snapshot().policies;
    let base = node.snapshot().mode().filter(|_| !policies.is_empty())?;
    let others = match base {
        FlowMode::Observe => Mode::Observe,
        FlowMode::Exempt | FlowMode::Prefer => Mode::Prefer,
        FlowMode::Require => Mode::Require,
    };
    let is_required = |(net, prefix): &(&IpNet, &Prefix)| {
        prefix.kind == PrefixKind::LocalPods
            && prefix.asked == Asked::Require
            && net.prefix_len() == net.max_prefix_len()
    };
    let datapath = node.last.observed.datapath.as_ref();
    let is_there = |origin: &Origin| is_alive(datapath, origin);
    let exemptions: Vec<_> = policies.exemptions(timestamp(now)).collect();
    let first_end = exemptions.iter().flatten().min();
    Some(PolicyStatus {
        count: policies.iter().count(),
        namespaced: policies.iter().filter(|(id, _)| id.namespace.is_some()).count(),
        others,
        required: node.last.desired.prefixes.iter().filter(is_required).count(),
        known_by_device: node.last.desired.origins.values().filter(|origin| is_there(origin)).count(),
        pods: pods(node, base),
        exemptions: exemptions.len(),
        exemption_ends: first_end.and_then(|end| u64::try_from(end.as_second()).ok()),
    })
}

/// By the clock of this node; one that shows no time at all ends nothing.
fn timestamp(now: Now) -> Timestamp {
    let seconds = i64::try_from(now.epoch.as_secs()).ok();
    seconds.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// As they are held by what the kernel should hold.
fn pods<K: Kernel>(node: &Node<K>, base: FlowMode) -> PodsByMode {
    let own = node.snapshot().workloads.pods.values().filter(|pod| pod.node == node.name);
    let mut pods = PodsByMode::default();
    let (desired, datapath) = (&node.last.desired, node.last.observed.datapath.as_ref());
    for mode in own.filter_map(|pod| desired::held(base, desired, datapath, &pod.addresses)) {
        *match mode {
            FlowMode::Observe => &mut pods.observe,
            FlowMode::Exempt => &mut pods.exempt,
            FlowMode::Prefer => &mut pods.prefer,
            FlowMode::Require => &mut pods.require,
        } += 1;
    }
    pods
}
