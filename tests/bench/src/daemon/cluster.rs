//! Thousands of nodes, dual-stack, that have announced their keys; and a source in memory that tells of them.

pub(crate) mod folder;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    mesh::{MeshSpec, Mode},
};
use kubeveil_core::{
    policy::pods::OfPods,
    problem::Problem,
    snapshot::{Knowledge, NodeFacts, Snapshot},
    source::{Changes, Source, SourceState},
};
use kubeveil_keys::{Generation, KeyStore, PrivateKey, PublicKey};
use tempfile::TempDir;

/// This node.
pub(crate) const OWN: &str = "node-own";
const OWN_UID: &str = "uid-own";

/// This node's state, with a key higher than most, so that lower ones are soon found.
pub(crate) struct Own {
    state: TempDir,
    pub(crate) key: PublicKey,
}

impl Own {
    pub(crate) fn make() -> Result<Self> {
        loop {
            let state = tempfile::tempdir()?;
            let store = KeyStore::open(state.path().join("keys"), OWN_UID)?;
            let key = store.load_or_create(Generation::FIRST, 1)?.info.public;
            if key.as_bytes()[0] >= 0xe0 {
                return Ok(Self { state, key });
            }
        }
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    /// As on its first day, but for its key.
    pub(crate) fn forget(&self) -> Result<()> {
        for file in ["known.json", "adoption.json"] {
            let path = self.state().join(file);
            if path.exists() {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Another node: its key, and what is known of it.
pub(crate) struct Other {
    number: u16,
    key: PrivateKey,
    pub(crate) facts: NodeFacts,
}

impl Other {
    fn make(number: u16, below: &PublicKey) -> Result<Self> {
        let key = loop {
            let key = PrivateKey::generate()?;
            if key.public() < *below {
                break key;
            }
        };
        let [high, low] = number.to_be_bytes();
        let facts = NodeFacts {
            uid: format!("uid-{number}"),
            pod_cidrs: vec![
                IpNet::new(Ipv4Addr::new(10, 128 + high, low, 0).into(), 24)?,
                IpNet::new(Ipv6Addr::new(0xfd00, 0x244, number, 0, 0, 0, 0, 0).into(), 64)?,
            ],
            internal_ips: vec![
                Ipv4Addr::new(172, 16 + high, low, 1).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, number).into(),
            ],
            ..NodeFacts::default()
        };
        let mut other = Self { number, key, facts };
        other.announce(51_871)?;
        Ok(other)
    }

    pub(crate) fn name(&self) -> String {
        name(self.number)
    }

    /// It says that it listens on `port`.
    pub(crate) fn announce(&mut self, port: u16) -> Result<()> {
        self.announce_keys(&[(0, &self.key, port)]).map(|said| self.facts.announcement = Some(said))
    }

    /// It has `fresh` as the key of the next generation, and that of the first as long as it `keeps` it.
    pub(crate) fn rotate(&mut self, fresh: &PrivateKey, keeps: bool) -> Result<()> {
        let keys = [(0, &self.key, 51_871), (1, fresh, 51_872)];
        let said = self.announce_keys(&keys[usize::from(!keeps)..])?;
        self.facts.announcement = Some(said);
        Ok(())
    }

    pub(crate) fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// Keys by generation, with their ports.
    fn announce_keys(&self, keys: &[(u32, &PrivateKey, u16)]) -> Result<String> {
        let entry = |(generation, key, port): &(u32, &PrivateKey, u16)| -> Result<_> {
            Ok(GenerationEntry {
                generation: Generation::new(*generation),
                public_key: key.public(),
                port: (*port).try_into()?,
                state: GenerationState::Active,
            })
        };
        let entries = keys.iter().map(entry).collect::<Result<_>>()?;
        let keys: Vec<&PrivateKey> = keys.iter().map(|(_, key, _)| *key).collect();
        let signed = Announcement::sign(&self.name(), &self.facts.uid, entries, NotFlipped::nobody(), &keys);
        Ok(signed.context("sign")?.to_json())
    }
}

/// What the node of this number is called.
pub(crate) fn name(number: u16) -> String {
    format!("node-{number:05}")
}

/// `count` nodes beside this one.
pub(crate) fn others(count: u16, own: &Own) -> Result<Vec<Other>> {
    below(count, &own.key)
}

/// The same, with keys lower than `key`.
pub(crate) fn below(count: u16, key: &PublicKey) -> Result<Vec<Other>> {
    (1..=count).map(|number| Other::make(number, key)).collect()
}

/// The mesh that all of them are in.
pub(crate) fn mesh() -> Result<MeshSpec> {
    let nets = |texts: [&str; 2]| texts.map(str::parse).into_iter().collect::<Result<Vec<IpNet>, _>>();
    // This node's own addresses are the cell's.
    let nodes = [nets(["172.0.0.0/8", "2001:db8::/32"])?, nets(["198.51.100.0/24", "2001:db8:1::/64"])?];
    Ok(MeshSpec::new(Mode::Require, nets(["10.0.0.0/8", "fd00:244::/32"])?, nodes.concat()))
}

/// This node, as the cell has it.
pub(crate) fn own() -> Result<NodeFacts> {
    Ok(NodeFacts {
        uid: OWN_UID.to_owned(),
        pod_cidrs: vec!["10.244.1.0/24".parse()?, "fd00:244:ffff::/64".parse()?],
        internal_ips: vec!["198.51.100.1".parse()?, "2001:db8:1::1".parse()?],
        ..NodeFacts::default()
    })
}

/// A source in memory, which the bench changes.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    snapshot: Snapshot,
    /// What has changed since it was last asked.
    heard: BTreeMap<String, Option<String>>,
    /// What is said of pods, likewise.
    pods: OfPods,
    /// And that is not all.
    is_stirred: bool,
}

impl Memory {
    pub(crate) fn of(others: &[Other]) -> Self {
        let nodes = others.iter().map(|other| (other.name(), other.facts.clone().into())).collect();
        let snapshot = Snapshot { nodes, ..Snapshot::default() };
        Self(Arc::new(Mutex::new(Said { snapshot, ..Said::default() })))
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut said = self.said();
        said.is_stirred = true;
        change(&mut said.snapshot);
    }

    /// Generations that a node announces.
    pub(crate) fn generations(&self, node: &str) -> Result<Vec<u32>> {
        let said = self.said();
        let Some(facts) = said.snapshot.nodes.get(node) else { return Ok(Vec::new()) };
        let Some(json) = &facts.announcement else { return Ok(Vec::new()) };
        let announcement = Announcement::parse_and_verify(json, node, &facts.uid)?;
        Ok(announcement.generations().iter().map(|entry| entry.generation.number()).collect())
    }

    /// Something else is said of pods.
    pub(crate) fn hear_of_pods(&self, pods: OfPods) -> Result<()> {
        let mut said = self.said();
        let known = Arc::make_mut(&mut said.snapshot.workloads).hear(pods.clone());
        said.pods = pods;
        known.context("of who is not known").map(drop)
    }

    /// A node has another announcement.
    pub(crate) fn hear(&self, other: &Other) {
        let mut said = self.said();
        said.heard.insert(other.name(), other.facts.announcement.clone());
        said.snapshot.nodes.insert(other.name(), other.facts.clone().into());
    }
}

impl Source for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn read(&mut self, _: Duration) -> SourceState {
        let mut said = self.said();
        (said.heard, said.pods, said.is_stirred) = Default::default();
        let snapshot = said.snapshot.clone();
        SourceState {
            knowledge: Knowledge::Whole(snapshot.attest_whole()),
            problems: vec![],
            look_again: None,
        }
    }

    fn changes(&mut self) -> Changes {
        let mut said = self.said();
        let (heard, pods) = (std::mem::take(&mut said.heard), std::mem::take(&mut said.pods));
        match (std::mem::take(&mut said.is_stirred), heard.is_empty(), pods.is_empty()) {
            (false, _, true) => Changes::Announcements(heard),
            (false, true, false) => Changes::Pods(pods),
            _ => Changes::Any,
        }
    }

    fn announce(&mut self, node: &str, _: &str, json: Option<&str>) -> Result<(), Problem> {
        let stands = self.said().snapshot.nodes.get(node).and_then(|facts| facts.announcement.clone());
        if stands.as_deref() != json {
            self.change(|snapshot| {
                if let Some(facts) = snapshot.node_mut(node) {
                    facts.announcement = json.map(str::to_owned);
                }
            });
        }
        Ok(())
    }

    fn report(&mut self, _: &str, _: kubeveil_api::veil_node::VeilNodeStatus) -> Result<(), Problem> {
        Ok(())
    }
}
