//! Slices of pods, and what is said of policies.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
    core::DynamicObject,
};
use kubeveil_api::{condition::keep_transitions, names, pod_slice::SlicedPod, policy::PolicyStatus};
use kubeveil_core::policy::PolicyId;
use kubeveil_kubernetes::ours;
use serde_json::json;

use super::{MANAGER, Writer};
use crate::{
    census::{Census, KINDS},
    policies::{Selected, readable, statuses},
    seen::{Node, Seen},
};

/// The API server's answer to who asks for what is gone.
const GONE: u16 = 404;

impl Writer {
    pub(super) async fn write_policies(
        &mut self,
        seen: &Seen,
        census: &Census,
        now: Timestamp,
    ) -> Result<()> {
        let Some(mesh) = &seen.mesh else { return Ok(()) };
        let policies = readable(census);
        self.sets.see(&policies);
        let mut selected = Selected::of(census, &policies, mesh.object.spec.mode);
        if mesh.object.spec.uninstall {
            selected.slices.clear();
        }
        let done = self.write_slices(seen, census, &selected).await;
        for (policy, status) in statuses(census, &selected, &self.sets, seen, now) {
            if self.said.get(&policy.uid).is_some_and(|said| is_same(said, &status)) {
                continue;
            }
            self.write_policy_status(&policy.id, &status).await?;
            self.said.insert(policy.uid.clone(), status);
        }
        let is_there = |uid: &String| census.policies.iter().any(|policy| policy.uid == *uid);
        self.said.retain(|uid, _| is_there(uid));
        done
    }

    /// One that can't be written is no reason to leave the others as they are.
    async fn write_slices(&self, seen: &Seen, census: &Census, selected: &Selected) -> Result<()> {
        let mut done = Ok(());
        for (name, pods) in &selected.slices {
            let Some(node) = seen.nodes.get(name) else { continue };
            if census.slices.get(name).is_none_or(|stands| stands.as_ref() != Some(pods)) {
                done = done.and(self.write_slice(name, node, pods).await);
            }
        }
        for name in census.slices.keys().filter(|name| !selected.slices.contains_key(*name)) {
            match self.slices().delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(refused)) if refused.code == GONE => {}
                Err(e) => done = done.and(Err(e).with_context(|| format!("delete VeilPodSlice {name}"))),
            }
        }
        done
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
        tracing::info!(node = name, pods = pods.len(), "told the other nodes of whose pods more is asked");
        Ok(())
    }

    async fn write_policy_status(&self, id: &PolicyId, status: &PolicyStatus) -> Result<()> {
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
        match api.patch_status(&id.name, &PatchParams::apply(MANAGER).force(), &patch).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(refused)) if refused.code == GONE => Ok(()),
            Err(e) => Err(e).with_context(|| format!("write the status of {id}")),
        }
    }
}

/// But for the moments of transitions.
fn is_same(one: &PolicyStatus, other: &PolicyStatus) -> bool {
    let mut copy = one.clone();
    keep_transitions(&mut copy.conditions, &other.conditions);
    copy == *other
}
