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
    mesh::MeshSpec,
    names,
    peer_slice::{self, SlicedPeer},
};
use kubeveil_kubernetes::{ours, theirs};
use serde_json::json;

use super::{AT_ONCE, MANAGER, Writer, unless_another, write_all};
use crate::{
    peers::{FOR_EACH_NODE, Standing, Stands, count, order, peers, slices, tell_all, vanished},
    seen::Seen,
};

/// What a writer remembers of slices.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// When each was written last.
    written: BTreeMap<u32, Instant>,
    /// The mesh as it was when it could be read last: one that is deleted changes nothing …
    mesh: Option<MeshSpec>,
    /// … and of how many slices agents were told.
    told: Option<u32>,
}

impl Writer {
    /// Of how many slices agents are to be told that they can know all nodes by them; and whether all stand as they should, or are about to.
    pub(super) async fn write_peers(
        &mut self,
        seen: &Seen,
        standing: &Standing,
    ) -> (Option<u32>, Result<()>) {
        if let Some(mesh) = &seen.mesh {
            let status = mesh.object.status.as_ref();
            if let Some(status) = status {
                self.peers.told = status.peer_slices;
            }
            if let Ok(mesh) = mesh.object.spec.clone().in_force(status) {
                self.peers.mesh = Some(mesh.spec);
            }
        }
        let before = self.peers.told;
        // Where no node is, it is not the cluster that we know.
        let Some(mesh) = self.peers.mesh.clone().filter(|_| !seen.nodes.is_empty()) else {
            return (before, Ok(()));
        };
        // Agents that are about to leave have to know the others; and whoever takes kubeveil away takes slices away.
        if mesh.uninstall {
            return (before, Ok(()));
        }
        let gone = self.gone(seen, standing).await;
        let stay = vanished(seen, standing).filter(|peer| !gone.contains(&peer.name)).count();
        let nodes = seen.nodes.len() + seen.excluded.len() + stay;
        let is_to_tell = tell_all(&mesh, nodes, before.is_some());
        // As long as agents go by them.
        let tells_all = is_to_tell || before.is_some();
        let slices = slices(standing, before, peers(seen, standing, &gone, &mesh, tells_all));
        let told = is_to_tell.then(|| count(&slices, standing, before)).flatten();
        let pace = FOR_EACH_NODE * u32::try_from(nodes).unwrap_or(u32::MAX);
        (told, self.write_slices_of_peers(&Wanted { slices, tells_all, before }, standing, pace).await)
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
        wanted: &Wanted,
        standing: &Standing,
        pace: Duration,
    ) -> Result<()> {
        let Wanted { slices, tells_all, before } = wanted;
        let now = Instant::now();
        let order = order(slices, standing, (*tells_all, *before), &self.peers.written, (pace, now));
        let write = |numbers: &[u32]| {
            let numbers = numbers
                .iter()
                .filter_map(|number| Some((*number, slices.get(usize::try_from(*number).ok()?)?)));
            let this = &*self;
            numbers
                .map(|(number, peers)| {
                    this.write_slice_of_peers(number, standing.get(&number), peers, *tells_all).boxed()
                })
                .collect::<Vec<Write<'_>>>()
        };
        let gained = write_all(write(&order.gaining)).await;
        let is_all = gained.as_ref().is_ok_and(|gained| gained.iter().all(|is_written| *is_written));
        let gaps = if is_all { order.gaps } else { vec![] };
        let rest = [order.others, gaps].concat();
        let mut writes = write(&rest);
        let most = u32::try_from(slices.len()).unwrap_or(u32::MAX).max(before.unwrap_or(0));
        for (number, stands) in standing.iter().filter(|(number, _)| **number >= most) {
            writes.push(self.delete_slice_of_peers(*number, stands).boxed());
        }
        let done = write_all(writes).await;
        let sent = order.gaining.into_iter().chain(rest);
        self.peers.written.extend(sent.map(|number| (number, now)));
        self.again = order.again.map_or(self.again, |again| self.again.min(again));
        gained.and(done).map(drop)
    }

    fn slices_of_peers(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &ours("VeilPeerSlice", "veilpeerslices"))
    }

    /// Over what `stands`, and over nothing else: who knows of an older one, by a list that is late or as a leader that is none any more, may lack
    /// nodes that are in it. False if another stands by now.
    async fn write_slice_of_peers(
        &self,
        number: u32,
        stands: Option<&Stands>,
        peers: &[SlicedPeer],
        tells_all: bool,
    ) -> Result<bool> {
        let (api, name) = (self.slices_of_peers(), peer_slice::name(number));
        let metadata = match stands {
            Some(slice) => json!({"name": name, "uid": slice.uid, "resourceVersion": slice.version}),
            None => json!({ "name": name }),
        };
        let slice = json!({
            "apiVersion": names::API_VERSION,
            "kind": "VeilPeerSlice",
            "metadata": metadata,
            "tellsAll": tells_all,
            "peers": peers,
        });
        let done = if stands.is_some() {
            api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(slice)).await
        } else {
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            api.create(&params, &serde_json::from_value(slice)?).await
        };
        unless_another(done).with_context(|| format!("write VeilPeerSlice {name}"))
    }

    async fn delete_slice_of_peers(&self, number: u32, stands: &Stands) -> Result<bool> {
        let name = peer_slice::name(number);
        let only = Preconditions { resource_version: Some(stands.version.clone()), uid: None };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        let done = self.slices_of_peers().delete(&name, &params).await;
        unless_another(done).with_context(|| format!("delete VeilPeerSlice {name}"))
    }

    /// Those that are called as none of the controller's is.
    pub(super) async fn delete_foreign(&self, names: &[String]) -> Result<()> {
        for name in names {
            let done = self.slices_of_peers().delete(name, &DeleteParams::default()).await;
            unless_another(done).with_context(|| format!("delete VeilPeerSlice {name}"))?;
        }
        Ok(())
    }
}

/// What slices are to say, where `before` many agents know of.
struct Wanted {
    slices: Vec<Vec<SlicedPeer>>,
    tells_all: bool,
    before: Option<u32>,
}

/// Whether it was done, or another stands by now.
type Write<'a> = BoxFuture<'a, Result<bool>>;
