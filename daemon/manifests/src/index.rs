//! The last good state of every file, and what all of them say together.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use kubeveil_api::{names, selector::Labels};
use kubeveil_core::{
    lingering::{Lingering, SETTLE},
    policy::{
        Policies, Policy, PolicyId,
        census::{PodId, Resident},
        pods::{Pod, Workloads},
    },
    problem::Problem,
    snapshot::{Knowledge, NodeFacts, Snapshot},
    source::SourceState,
};

use crate::parse::{Object, parse, problem};

/// What reading one file gave.
pub(crate) type Content = Result<String, String>;

#[derive(Debug, Default)]
struct File {
    /// Hash of its text: the text itself is as large as all that is kept of it.
    text: Option<u64>,
    good: Option<Vec<Object>>,
    problem: Option<Problem>,
}

impl File {
    /// Takes in what it holds now.
    fn take(&mut self, name: &str, content: Content, hasher: &RandomState) {
        match content.map(|text| (hasher.hash_one(&text), text)) {
            Ok((hash, _)) if self.text == Some(hash) => {}
            Ok((hash, text)) => {
                match parse(name, &text) {
                    Ok(objects) => (self.good, self.problem) = (Some(objects), None),
                    Err(e) => self.problem = Some(self.advised(e)),
                }
                self.text = Some(hash);
            }
            Err(e) => {
                self.problem = Some(self.advised(problem(name, "", "", format!("can't be read: {e}"))));
                self.text = None;
            }
        }
    }

    /// A file that never was good has no state that could stand.
    fn advised(&self, mut problem: Problem) -> Problem {
        if self.good.is_none() {
            "Correct the file; nothing of it counts until then".clone_into(&mut problem.advice);
        }
        problem
    }
}

/// Remembers files and nodes from one reading to the next.
#[derive(Debug, Default)]
pub(crate) struct Index {
    files: BTreeMap<String, File>,
    /// Its key is random, so that nobody can write two files for which it is the same.
    hasher: RandomState,
    /// Nodes as of the last reading, and since when those are gone that are.
    nodes: BTreeMap<String, Arc<NodeFacts>>,
    gone: BTreeMap<String, Duration>,
    /// The same of policies, namespaces and pods.
    policies: Lingering<PolicyId, Policy>,
    namespaces: Lingering<String, Labels>,
    pods: Lingering<String, Pod>,
}

impl Index {
    /// Takes in a reading of the whole folder: every file's name and content, or why there is none.
    pub(crate) fn update(
        &mut self,
        reading: Result<BTreeMap<String, Content>, Problem>,
        now: Duration,
    ) -> SourceState {
        let mut problems = Vec::new();
        match reading {
            Ok(contents) => self.take(contents),
            Err(e) => problems.push(e),
        }
        // What another node wrote into its announcement says nothing about Nodes.
        let (announced, plain): (Vec<_>, Vec<_>) =
            self.files.iter().partition(|(name, _)| is_announcement(name));
        problems.extend(plain.iter().filter_map(|(_, f)| f.problem.clone()));
        let mut minor: Vec<Problem> = announced.iter().filter_map(|(_, f)| f.problem.clone()).collect();
        let mut snapshot = self.merge(&mut problems, &mut minor);
        let waiting =
            self.keep_for_a_while(&mut snapshot, now) | self.keep_policies_for_a_while(&mut snapshot, now);
        let whole = problems.is_empty() && !waiting;
        self.nodes.clone_from(&snapshot.nodes);
        let knowledge =
            if whole { Knowledge::Whole(snapshot.attest_whole()) } else { Knowledge::Partial(snapshot) };
        problems.append(&mut minor);
        SourceState { knowledge, problems, look_again: waiting.then_some(SETTLE) }
    }

    fn take(&mut self, contents: BTreeMap<String, Content>) {
        self.files.retain(|name, _| contents.contains_key(name));
        for (name, content) in contents {
            self.files.entry(name.clone()).or_default().take(&name, content, &self.hasher);
        }
    }

    /// Takes in what one node's file of its announcement holds now, and says whose announcement that is. `None` where it
    /// is anything but that, in the place of another: then the whole folder has to be read.
    pub(crate) fn hear(&mut self, name: &str, content: Content) -> Option<(String, String)> {
        let node = announcer(name)?;
        let stem = format!("{}/{node}.", names::ANNOUNCEMENTS_DIR);
        let mut alike = self.files.range(stem.clone()..).map(|(file, _)| file);
        if alike
            .by_ref()
            .take_while(|f| f.starts_with(&stem))
            .any(|f| f != name && announcer(f) == Some(node))
        {
            return None;
        }
        let file = self.files.entry(name.to_owned()).or_default();
        let was_good = file.problem.is_none();
        file.take(name, content, &self.hasher);
        let file = Some(file).filter(|_| was_good)?;
        let Some([Object::Node(said)]) = file.good.as_deref().filter(|_| file.problem.is_none()) else {
            return None;
        };
        let json = said.metadata.annotations.get(names::ANNOUNCEMENT)?;
        let is_same = |facts: &&mut Arc<NodeFacts>| facts.uid == said.metadata.uid;
        let facts = self.nodes.get_mut(node).filter(is_same).filter(|_| said.metadata.name == node)?;
        Arc::make_mut(facts).announcement = Some(json.clone());
        Some((node.to_owned(), json.clone()))
    }

    /// Pods by name, as of the last reading.
    pub(crate) fn residents(&self) -> BTreeMap<PodId, Resident> {
        let objects = self.files.values().filter_map(|file| file.good.as_ref()).flatten();
        let pods = objects.filter_map(|object| match object {
            Object::Pod(pod) => Some(Resident::read(pod)),
            _ => None,
        });
        pods.collect()
    }

    fn merge(&self, problems: &mut Vec<Problem>, minor: &mut Vec<Problem>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut workloads = Workloads { knows_elsewhere: true, ..Workloads::default() };
        let mut policies = BTreeMap::new();
        let (announced, plain): (Vec<_>, Vec<_>) =
            self.files.iter().partition(|(name, _)| is_announcement(name));
        for (name, file) in plain {
            for object in file.good.iter().flatten() {
                match object {
                    Object::Mesh(_) if snapshot.mesh.is_some() => {
                        let twice = "another file has one too; that one counts";
                        problems.push(told_twice(name, "EncryptionMesh default", twice));
                    }
                    Object::Mesh(mesh) => snapshot.set_mesh(Some((**mesh).clone())),
                    Object::Node(node) => {
                        let facts = NodeFacts {
                            uid: node.metadata.uid.clone(),
                            pod_cidrs: node.pod_cidrs(),
                            internal_ips: node.internal_ips().0,
                            announcement: node.metadata.annotations.get(names::ANNOUNCEMENT).cloned(),
                            labels: node.metadata.labels.clone(),
                        };
                        let facts = self.not_less(name, &node.metadata.name, facts, problems);
                        if snapshot.nodes.insert(node.metadata.name.clone(), facts.into()).is_some() {
                            let object = format!("Node {}", node.metadata.name);
                            let twice = "another file has it too; this one counts";
                            problems.push(told_twice(name, &object, twice));
                        }
                    }
                    Object::Namespace(namespace) => {
                        let (name, labels) =
                            (namespace.metadata.name.clone(), namespace.metadata.labels.clone());
                        if namespace.metadata.deletion_timestamp.is_some() {
                            snapshot.ending.insert(name.clone());
                        }
                        workloads.namespaces.insert(name, labels);
                    }
                    Object::Test(_) => {}
                    Object::Pod(pod) => drop(workloads.pods.insert(uid_of(pod), Pod::from(&**pod))),
                    Object::Policy(id, policy) => {
                        if policies.insert(id.clone(), (**policy).clone()).is_some() {
                            let twice = "another file has it too; this one counts";
                            problems.push(told_twice(name, &id.to_string(), twice));
                        }
                    }
                }
            }
        }
        snapshot.policies = Policies::new(policies);
        snapshot.workloads = Arc::new(workloads);
        for (file, object) in
            announced.into_iter().flat_map(|(name, f)| f.good.iter().flatten().map(move |o| (name, o)))
        {
            let Object::Node(node) = object else { continue };
            // Who may write one node's file must not speak for another.
            if announcer(file) != Some(&node.metadata.name) {
                let object = format!("Node {}", node.metadata.name);
                minor.push(problem(
                    file,
                    &object,
                    "metadata.name",
                    "is not the node that the file is named after",
                ));
                continue;
            }
            let known = snapshot.node_mut(&node.metadata.name).filter(|n| n.uid == node.metadata.uid);
            if let (Some(known), Some(json)) = (known, node.metadata.annotations.get(names::ANNOUNCEMENT)) {
                known.announcement = Some(json.clone());
            }
        }
        snapshot
    }

    /// A Node never loses prefixes or all its addresses while it lives: a manifest with fewer is half of
    /// one, and what it had stands.
    fn not_less(&self, file: &str, name: &str, mut now: NodeFacts, problems: &mut Vec<Problem>) -> NodeFacts {
        let Some(before) = self.nodes.get(name).filter(|before| before.uid == now.uid) else { return now };
        let object = format!("Node {name}");
        if before.pod_cidrs.iter().any(|p| !now.pod_cidrs.contains(p)) {
            now.pod_cidrs.clone_from(&before.pod_cidrs);
            problems.push(problem(
                file,
                &object,
                "spec.podCIDRs",
                "has lost a prefix, though the node is the same",
            ));
        }
        if now.internal_ips.is_empty() && !before.internal_ips.is_empty() {
            now.internal_ips.clone_from(&before.internal_ips);
            let lost = "has no InternalIP any more, though the node is the same";
            problems.push(problem(file, &object, "status.addresses", lost));
        }
        now
    }

    /// So are policies, and who pods are: what is written anew is not gone, and nothing passes in plain meanwhile.
    fn keep_policies_for_a_while(&mut self, snapshot: &mut Snapshot, now: Duration) -> bool {
        let mut policies = Vec::from(std::mem::take(&mut snapshot.policies)).into_iter().collect();
        let mut workloads = Arc::unwrap_or_clone(std::mem::take(&mut snapshot.workloads));
        let waiting = self.policies.keep_in(&mut policies, SETTLE, now)
            | self.namespaces.keep_in(&mut workloads.namespaces, SETTLE, now)
            | self.pods.keep_in(&mut workloads.pods, SETTLE, now);
        (snapshot.policies, snapshot.workloads) = (Policies::new(policies), Arc::new(workloads));
        waiting
    }

    /// Nodes, and addresses of nodes, that vanished a moment ago are still there. True if there are any.
    fn keep_for_a_while(&mut self, snapshot: &mut Snapshot, now: Duration) -> bool {
        let less = |name: &String, before: &NodeFacts| match snapshot.nodes.get(name) {
            None => true,
            Some(facts) if facts.uid != before.uid => false,
            Some(facts) => before.internal_ips.iter().any(|ip| !facts.internal_ips.contains(ip)),
        };
        let gone: BTreeSet<String> =
            self.nodes.iter().filter(|(n, before)| less(n, before)).map(|(n, _)| n.clone()).collect();
        self.gone.retain(|name, _| gone.contains(name));
        let mut waiting = false;
        for name in gone {
            let since = *self.gone.entry(name.clone()).or_insert(now);
            if now.saturating_sub(since) < SETTLE {
                waiting = true;
                if let Some(facts) = self.nodes.get(&name) {
                    snapshot.nodes.insert(name, facts.clone());
                }
            }
        }
        waiting
    }
}

/// A manifest that nobody has applied yet has none.
fn uid_of(pod: &kubeveil_api::pod::Pod) -> String {
    let metadata = &pod.metadata;
    match metadata.uid.as_str() {
        "" => format!("{}/{}", metadata.namespace.as_deref().unwrap_or("default"), metadata.name),
        uid => uid.to_owned(),
    }
}

fn told_twice(file: &str, object: &str, message: &str) -> Problem {
    let advice = "Take it out of one of the two; until then nothing is removed".to_owned();
    Problem { advice, ..problem(file, object, "", message) }
}

fn is_announcement(file: &str) -> bool {
    file.strip_prefix(names::ANNOUNCEMENTS_DIR).is_some_and(|rest| rest.starts_with('/'))
}

/// The node that a file of an announcement is named after.
fn announcer(file: &str) -> Option<&str> {
    Some(file.rsplit('/').next()?.rsplit_once('.')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: &str = "apiVersion: kubeveil.io/v1alpha1\nkind: EncryptionMesh\nmetadata: {name: default}\nspec: {mode: require, podCIDRs: [10.244.0.0/16], nodeCIDRs: [192.0.2.0/24]}\n";

    fn node(n: u8) -> String {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{n}, uid: u{n}}}\nspec: {{podCIDRs: [10.244.{n}.0/24]}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.0.2.{n}}}]}}\n"
        )
    }

    fn folder(files: &[(&str, &str)]) -> Result<BTreeMap<String, Content>, Problem> {
        Ok(files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect())
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn names_of(state: &SourceState) -> Vec<&str> {
        state.knowledge.snapshot().nodes.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_broken_file_removes_nobody() {
        let mut index = Index::default();
        let good = folder(&[("mesh.yaml", MESH), ("1.yaml", &node(1)), ("2.yaml", &node(2))]);
        assert!(index.update(good, seconds(0)).knowledge.synced().is_some());
        for half in [
            "",
            "apiVersion: v1\nkind: Node\nmetad",
            "apiVersion: v1\nkind: Node\nmetadata: {name: node-2, uid: u2}\nspec:\n",
        ] {
            let broken = folder(&[("mesh.yaml", MESH), ("1.yaml", &node(1)), ("2.yaml", half)]);
            let state = index.update(broken, seconds(100));
            assert_eq!(names_of(&state), ["node-1", "node-2"], "{half:?}");
            assert_eq!(state.knowledge.snapshot().nodes["node-2"].pod_cidrs.len(), 1, "{half:?}");
            assert!(state.knowledge.synced().is_none(), "{half:?}");
            assert!(!state.problems.is_empty(), "{half:?}");
        }
        let unreadable = Err(problem("the folder", "", "", "can't be read"));
        let state = index.update(unreadable, seconds(200));
        assert_eq!(names_of(&state), ["node-1", "node-2"]);
        assert!(state.knowledge.synced().is_none());
    }

    #[test]
    fn no_last_good_state_is_claimed_where_there_is_none() {
        let mut index = Index::default();
        let bad = MESH.replace("require", "requires");
        let advice = |state: &SourceState| state.problems[0].advice.clone();
        let fresh = index.update(folder(&[("mesh.yaml", &bad)]), seconds(0));
        assert!(advice(&fresh).contains("nothing of it counts"), "{:?}", fresh.problems);
        index.update(folder(&[("mesh.yaml", MESH)]), seconds(1));
        let later = index.update(folder(&[("mesh.yaml", &bad)]), seconds(2));
        assert!(advice(&later).contains("last good state stands"), "{:?}", later.problems);
    }

    #[test]
    fn a_node_is_gone_after_a_while_only() {
        let mut index = Index::default();
        let both = folder(&[("mesh.yaml", MESH), ("1.yaml", &node(1)), ("2.yaml", &node(2))]);
        let one = || folder(&[("mesh.yaml", MESH), ("1.yaml", &node(1))]);
        index.update(both, seconds(0));
        let state = index.update(one(), seconds(10));
        assert_eq!(names_of(&state), ["node-1", "node-2"]);
        assert!(state.knowledge.synced().is_none());
        assert_eq!(state.look_again, Some(SETTLE));
        let state = index.update(one(), seconds(11));
        assert_eq!(names_of(&state), ["node-1"]);
        assert!(state.knowledge.synced().is_some());
    }

    /// Cut between two lines of a list, a file is still a manifest.
    #[test]
    fn a_node_that_lost_a_part_was_read_too_early() {
        let dual = node(1).replace("192.0.2.1}]", "192.0.2.1}, {type: InternalIP, address: 2001:db8::1}]");
        let mut index = Index::default();
        index.update(folder(&[("mesh.yaml", MESH), ("1.yaml", &dual)]), seconds(0));
        let one_address = || folder(&[("mesh.yaml", MESH), ("1.yaml", &node(1))]);
        let state = index.update(one_address(), seconds(10));
        assert_eq!(state.knowledge.snapshot().nodes["node-1"].internal_ips.len(), 2);
        assert!(state.knowledge.synced().is_none());
        // It stays that way, so it is meant.
        let state = index.update(one_address(), seconds(12));
        assert_eq!(state.knowledge.snapshot().nodes["node-1"].internal_ips.len(), 1);
        assert!(state.knowledge.synced().is_some());
    }

    /// An editor writes anew what it edits; nothing passes in plain meanwhile.
    #[test]
    fn a_policy_is_gone_after_a_while_only() {
        const POLICY: &str = "apiVersion: kubeveil.io/v1alpha1\nkind: EncryptionPolicy\nmetadata: {name: p, namespace: n}\nspec: {podSelector: {}, mode: require}\n";
        const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, uid: u}\nspec: {nodeName: node-1}\nstatus: {podIP: 10.244.1.7}\n";
        let mut index = Index::default();
        let with = |more: &[(&str, &str)]| {
            let node = node(1);
            folder(&[&[("mesh.yaml", MESH), ("1.yaml", &node)], more].concat())
        };
        let count = |state: &SourceState| {
            let snapshot = state.knowledge.snapshot();
            (snapshot.policies.iter().count(), snapshot.workloads.pods.len())
        };
        let state = index.update(with(&[("policy.yaml", POLICY), ("pod.yaml", POD)]), seconds(0));
        assert!(count(&state) == (1, 1) && state.knowledge.synced().is_some());
        let state = index.update(with(&[]), seconds(10));
        assert!(count(&state) == (1, 1) && state.knowledge.synced().is_none());
        assert_eq!(state.look_again, Some(SETTLE));
        let state = index.update(with(&[("policy.yaml", POLICY)]), seconds(11));
        assert!(count(&state) == (1, 0) && state.knowledge.synced().is_some(), "{state:?}");
        let state = index.update(with(&[]), seconds(20));
        assert_eq!(count(&state), (1, 0), "it was back");
        assert_eq!(count(&index.update(with(&[]), seconds(21))), (0, 0));
    }

    #[test]
    fn a_bad_announcement_does_not_stop_removals() {
        let mut index = Index::default();
        let files = folder(&[("mesh.yaml", MESH), ("1.yaml", &node(1)), ("announcements/x.yaml", "{")]);
        let state = index.update(files, seconds(0));
        assert_eq!(state.problems.len(), 1);
        assert!(state.knowledge.synced().is_some());
    }

    #[test]
    fn nobody_speaks_for_another() {
        let mut index = Index::default();
        let say = |text: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1, uid: u1, annotations: {{kubeveil.io/announcement: {text}}}}}\n"
            )
        };
        let (own, forged) = (say("own"), say("forged"));
        let files = folder(&[
            ("mesh.yaml", MESH),
            ("1.yaml", &node(1)),
            ("announcements/node-1.yaml", &own),
            ("announcements/node-2.yaml", &forged),
            ("announcements/node-1.yaml.yaml", &forged),
        ]);
        let state = index.update(files, seconds(0));
        assert_eq!(state.knowledge.snapshot().nodes["node-1"].announcement.as_deref(), Some("own"));
        assert_eq!(state.problems.len(), 2, "{:?}", state.problems);
        assert!(state.problems[1].to_string().contains("node-2.yaml, Node node-1 metadata.name"));
        // It stops no removal either.
        assert!(state.knowledge.synced().is_some());
    }

    #[test]
    fn an_announcement_counts_from_either_place() {
        let mut index = Index::default();
        let say = |uid: &str, text: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1, uid: {uid}, annotations: {{kubeveil.io/announcement: {text}}}}}\n"
            )
        };
        let annotated = say("u1", "first");
        let state = index.update(folder(&[("1.yaml", &annotated)]), seconds(0));
        assert_eq!(state.knowledge.snapshot().nodes["node-1"].announcement.as_deref(), Some("first"));
        let (own, other) = (say("u1", "second"), say("other", "third"));
        let state =
            index.update(folder(&[("1.yaml", &annotated), ("announcements/node-1.yaml", &own)]), seconds(1));
        assert_eq!(state.knowledge.snapshot().nodes["node-1"].announcement.as_deref(), Some("second"));
        let state = index
            .update(folder(&[("1.yaml", &annotated), ("announcements/node-1.yaml", &other)]), seconds(2));
        assert_eq!(state.knowledge.snapshot().nodes["node-1"].announcement.as_deref(), Some("first"));
    }
}
