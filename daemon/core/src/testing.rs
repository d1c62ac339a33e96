//! Objects for tests: the addresses of the lab (tests/README.md).

use std::sync::Arc;

use ipnet::IpNet;
use kubeveil_api::mesh::{MeshSpec, Mode};

use crate::snapshot::{NodeFacts, Snapshot};

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

pub(crate) fn mesh() -> MeshSpec {
    let pod_cidrs = vec![net("10.244.0.0/16"), net("fd00:244::/32")];
    MeshSpec::new(Mode::Require, pod_cidrs, vec![net("192.0.2.0/24"), net("2001:db8::/64")])
}

pub(crate) fn node(n: u8) -> NodeFacts {
    NodeFacts {
        uid: format!("uid-{n}"),
        pod_cidrs: vec![net(&format!("10.244.{n}.0/24")), net(&format!("fd00:244:{n}::/64"))],
        internal_ips: vec![
            format!("192.0.2.{n}").parse().expect("v4"),
            format!("2001:db8::{n}").parse().expect("v6"),
        ],
        ..NodeFacts::default()
    }
}

pub(crate) fn snapshot(nodes: &[(&str, NodeFacts)]) -> Snapshot {
    Snapshot {
        mesh: Some(mesh()),
        nodes: nodes.iter().map(|(name, facts)| ((*name).to_owned(), Arc::new(facts.clone()))).collect(),
        ..Snapshot::default()
    }
}
