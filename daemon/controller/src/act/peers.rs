//! Slices of nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::DynamicObject,
};
use kubeveil_api::{
    names,
    peer_slice::{self, SlicedPeer},
};
use kubeveil_kubernetes::{ours, theirs};
use serde_json::json;

use super::{AT_ONCE, CONFLICT, GONE, MANAGER, Writer};
use crate::{
    peers::{FOR_EACH_NODE, Standing, Stands, count, peers, slices, tell_all, vanished},
    seen::Seen,
};

/// When each slice was written last.
pub(super) type Written = BTreeMap<u32, Instant>;

impl Writer {
    /// Of how many slices agents are to be told that they can know all nodes by them.
    pub(super) async fn write_peers(&mut self, seen: &Seen, standing: &Standing) -> Result<Option<u32>> {
        let Some(mesh) = &seen.mesh else { return Ok(None) };
        let (spec, before) = (&mesh.object.spec, mesh.object.status.as_ref().and_then(|s| s.peer_slices));
        if spec.uninstall {
            self.write_slices_of_peers(&[], standing, None, Duration::ZERO).await?;
            return Ok(None);
        }
        let Ok(mesh) = spec.clone().in_force(mesh.object.status.as_ref()) else { return Ok(before) };
        // Where no node is, it is not the cluster that we know.
        if seen.nodes.is_empty() {
            return Ok(before);
        }
        let gone = self.gone(seen, standing).await;
        let nodes = seen.nodes.len() + seen.excluded.len();
        let tells_all = tell_all(spec, nodes, before.is_some());
        let wanted = slices(standing, peers(seen, standing, &gone, &mesh.spec, tells_all));
        let pace = FOR_EACH_NODE * u32::try_from(nodes).unwrap_or(u32::MAX);
        self.write_slices_of_peers(&wanted, standing, before, pace).await?;
        Ok(tells_all.then(|| count(&wanted, standing, before)).flatten())
    }

    /// Those nodes that no watch shows, and of which the API server says that they are not there: a list that is wrong takes nobody away.
    async fn gone(&self, seen: &Seen, standing: &Standing) -> BTreeSet<String> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &theirs("", "Node", "nodes"));
        let names: Vec<String> = vanished(seen, standing).map(|peer| peer.name.clone()).collect();
        let asked = names.into_iter().map(|name| {
            let api = api.clone();
            async move {
                let found = api.get_metadata_opt(&name).await;
                found.is_ok_and(|found| found.is_none()).then_some(name)
            }
        });
        stream::iter(asked).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
    }

    /// Those that are otherwise and were not written a moment ago; and takes away those that no agent looks for any more.
    async fn write_slices_of_peers(
        &mut self,
        wanted: &[Vec<SlicedPeer>],
        standing: &Standing,
        before: Option<u32>,
        pace: Duration,
    ) -> Result<()> {
        let (now, this) = (Instant::now(), &*self);
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        let (mut written, mut again) = (Written::new(), self.again);
        for (number, peers) in (0..).zip(wanted) {
            let stands = standing.get(&number);
            if stands.and_then(|slice| slice.peers.as_ref()) == Some(peers) {
                continue;
            }
            let due = this.peers_written.get(&number).map_or(now, |last| *last + pace);
            if due > now {
                again = again.min(due - now);
                continue;
            }
            written.insert(number, now);
            writes.push(this.write_slice_of_peers(number, stands, peers).boxed());
        }
        let most = u32::try_from(wanted.len()).unwrap_or(u32::MAX).max(before.unwrap_or(0));
        for (number, stands) in standing.iter().filter(|(number, _)| **number >= most) {
            writes.push(this.delete_slice_of_peers(*number, stands).boxed());
        }
        let done = Self::write_all(writes).await;
        self.again = again;
        self.peers_written.extend(written);
        done
    }

    fn slices_of_peers(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &ours("VeilPeerSlice", "veilpeerslices"))
    }

    /// Over what `stands`, and over nothing else: who knows of an older one, by a list that is late or as a leader that is none any more, may lack
    /// nodes that are in it.
    async fn write_slice_of_peers(
        &self,
        number: u32,
        stands: Option<&Stands>,
        peers: &[SlicedPeer],
    ) -> Result<()> {
        let (api, name) = (self.slices_of_peers(), peer_slice::name(number));
        let version = stands.map(|slice| &slice.version);
        let slice = json!({
            "apiVersion": names::API_VERSION,
            "kind": "VeilPeerSlice",
            "metadata": {"name": name, "resourceVersion": version},
            "peers": peers,
        });
        let done = if version.is_some() {
            api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(slice)).await
        } else {
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            api.create(&params, &serde_json::from_value(slice)?).await
        };
        unless_another(done.map(drop)).with_context(|| format!("write VeilPeerSlice {name}"))
    }

    async fn delete_slice_of_peers(&self, number: u32, stands: &Stands) -> Result<()> {
        let name = peer_slice::name(number);
        let only = Preconditions { resource_version: Some(stands.version.clone()), uid: None };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        let done = self.slices_of_peers().delete(&name, &params).await;
        unless_another(done.map(drop)).with_context(|| format!("delete VeilPeerSlice {name}"))
    }
}

/// That it is another by now is no failure: the watch will tell of it.
fn unless_another(done: kube::Result<()>) -> kube::Result<()> {
    match done {
        Err(kube::Error::Api(refused)) if [CONFLICT, GONE].contains(&refused.code) => Ok(()),
        done => done,
    }
}
