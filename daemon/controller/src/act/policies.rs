//! Slices of pods, and what is said of policies.

use anyhow::{Context as _, Result};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
    core::DynamicObject,
};
use kubeveil_api::{names, pod_slice::SlicedPod, policy::PolicyStatus};
use kubeveil_core::{lingering::SETTLE, policy::PolicyId};
use kubeveil_kubernetes::ours;
use serde_json::json;

use super::{MANAGER, Writer, said::Said, unless_another, write_all};
use crate::{
    census::{Census, KINDS, SeenPolicy},
    policies::{Selected, statuses},
    seen::{Node, Seen},
};

/// Between two writes of a policy's status that tell of no turn.
const COUNTED_EVERY: SignedDuration = SignedDuration::from_secs(60);

impl Writer {
    pub(super) async fn write_policies(
        &mut self,
        seen: &Seen,
        census: &Census,
        now: Timestamp,
    ) -> Result<()> {
        let Some(mesh) = &seen.mesh else { return Ok(()) };
        let (policies, waits) = self.in_force.see(census, self.began.elapsed());
        if waits {
            self.again = self.again.min(SETTLE);
        }
        self.sets.see(&policies, &census.ending);
        let mut selected = Selected::of(census, &policies, mesh.object.spec.mode);
        if mesh.object.spec.uninstall {
            selected.slices.clear();
        }
        let mut done = self.write_slices(seen, census, &selected).await;
        let waits = |uid: &String, said: &Said<PolicyStatus>| {
            let policy = census.policies.iter().find(|policy| policy.uid == *uid);
            policy.is_some_and(|policy| said.waits(&policy.status, now))
        };
        self.said.retain(|uid, said| waits(uid, said));
        for (policy, status) in statuses(census, &selected, &self.sets, seen, done.is_ok(), now) {
            if self.said.get(&policy.uid).is_some_and(|said| said.says(&status))
                || !is_due(policy, &status, self.counted.get(&policy.uid), now)
            {
                continue;
            }
            match self.write_policy_status(&policy.id, &status).await {
                Ok(false) => {}
                Ok(true) => {
                    self.counted.insert(policy.uid.clone(), now);
                    self.said.insert(policy.uid.clone(), Said::new(status, now));
                }
                // The others are told all the same.
                Err(e) => done = done.and(Err(e)),
            }
        }
        let is_there = |uid: &String| census.policies.iter().any(|policy| policy.uid == *uid);
        self.counted.retain(|uid, _| is_there(uid));
        done
    }

    async fn write_slices(&self, seen: &Seen, census: &Census, selected: &Selected) -> Result<()> {
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for (name, pods) in &selected.slices {
            // A node that can have no agent has pods, and policies ask for them what they ask for all.
            let Some(node) = seen.nodes.get(name).or_else(|| seen.excluded.get(name)) else { continue };
            let stands = census.slices.get(name);
            if stands.is_none_or(|stands| {
                stands.pods.as_ref() != Some(pods) || stands.owner.as_ref() != Some(&node.uid)
            }) {
                writes.push(self.write_slice(name, node, pods).boxed());
            }
        }
        for name in census.slices.keys().filter(|name| !selected.slices.contains_key(*name)) {
            writes.push(self.delete_slice(name).boxed());
        }
        write_all(writes).await.map(drop)
    }

    async fn delete_slice(&self, name: &str) -> Result<()> {
        let done = self.slices().delete(name, &DeleteParams::default()).await;
        unless_another(done).map(drop).with_context(|| format!("delete VeilPodSlice {name}"))
    }

    fn slices(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &ours("VeilPodSlice", "veilpodslices"))
    }

    /// Its owner is the Node, so it goes with it.
    async fn write_slice(&self, name: &str, node: &Node, pods: &[SlicedPod]) -> Result<()> {
        let patch = Patch::Apply(json!({
            "apiVersion": names::API_VERSION,
            "kind": "VeilPodSlice",
            "metadata": {
                "name": name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.uid}],
            },
            "pods": pods,
        }));
        let params = PatchParams::apply(MANAGER).force();
        let done = self.slices().patch(name, &params, &patch).await;
        done.with_context(|| format!("write VeilPodSlice {name}"))?;
        tracing::info!(
            node = name,
            pods = pods.len(),
            "told the other nodes of the pods of which something else is asked than of all"
        );
        Ok(())
    }

    async fn write_policy_status(&self, id: &PolicyId, status: &PolicyStatus) -> Result<bool> {
        let [kind, plural] = KINDS[usize::from(id.namespace.is_none())];
        let resource = ours(kind, plural);
        let api: Api<DynamicObject> = match &id.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let patch = Patch::Apply(json!({
            "apiVersion": names::API_VERSION,
            "kind": kind,
            "metadata": {"name": id.name},
            "status": status,
        }));
        let done = api.patch_status(&id.name, &PatchParams::apply(MANAGER).force(), &patch).await;
        unless_another(done).with_context(|| format!("write the status of {id}"))
    }
}

/// What turns is told at once; what only counts otherwise, or names other nodes, now and then: each write goes to every agent.
fn is_due(policy: &SeenPolicy, status: &PolicyStatus, counted: Option<&Timestamp>, now: Timestamp) -> bool {
    let turns = |status: &PolicyStatus| {
        let turns = status.conditions.iter().map(|c| (c.kind.clone(), c.status, c.reason.clone()));
        (status.observed_generation, turns.collect::<Vec<_>>())
    };
    turns(&policy.status) != turns(status)
        || counted.is_none_or(|last| now.duration_since(*last) >= COUNTED_EVERY)
}

#[cfg(test)]
mod tests {
    use kubeveil_api::condition::Condition;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn status(pods: u32, holds: bool, words: &str) -> PolicyStatus {
        let condition = Condition::new("InForce", holds, "R", words.to_owned(), at(0));
        PolicyStatus { observed_generation: 1, pods, conditions: vec![condition] }
    }

    fn policy(status: PolicyStatus) -> SeenPolicy {
        let id = PolicyId { namespace: None, name: "p".to_owned() };
        let policy = Err("no matter".to_owned());
        SeenPolicy { id, uid: "u".to_owned(), generation: 1, policy, last_good: None, status }
    }

    /// Each write goes to every agent, which watches policies.
    #[test]
    fn what_only_counts_otherwise_is_told_once_a_minute() {
        let policy = policy(status(7, true, "a"));
        let last = Some(at(100));
        for (now, pods, holds, words, is_told) in [
            (101, 7, false, "a", true),
            (101, 8, true, "a", false),
            (159, 7, true, "b", false),
            (160, 8, true, "b", true),
        ] {
            let told = is_due(&policy, &status(pods, holds, words), last.as_ref(), at(now));
            assert_eq!(told, is_told, "{now} {pods} {holds} {words}");
        }
        assert!(is_due(&policy, &status(8, true, "a"), None, at(101)), "the first of this controller");
    }
}
