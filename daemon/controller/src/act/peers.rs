//! Slices of nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use kube::{Api, core::DynamicObject};
use kubeveil_api::{
    names,
    peer_slice::{self, SlicedPeer},
};
use kubeveil_kubernetes::theirs;
use serde_json::json;

use super::{AT_ONCE, Writer};
use crate::{
    peers::{FOR_EACH_NODE, Standing, count, peers, slices, tell_all, vanished},
    seen::Seen,
};

/// As `kubectl` has them.
const SLICES: [&str; 2] = ["VeilPeerSlice", "veilpeerslices"];

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
            if standing.get(&number).and_then(Option::as_ref) == Some(peers) {
                continue;
            }
            let due = this.peers_written.get(&number).map_or(now, |last| *last + pace);
            if due > now {
                again = again.min(due - now);
                continue;
            }
            written.insert(number, now);
            writes.push(this.write_slice_of_peers(number, peers).boxed());
        }
        let most = u32::try_from(wanted.len()).unwrap_or(u32::MAX).max(before.unwrap_or(0));
        for number in standing.keys().filter(|number| **number >= most) {
            let name = peer_slice::name(*number);
            writes.push(async move { this.delete_slice(SLICES, &name).await }.boxed());
        }
        let done = Self::write_all(writes).await;
        self.again = again;
        self.peers_written.extend(written);
        done
    }

    async fn write_slice_of_peers(&self, number: u32, peers: &[SlicedPeer]) -> Result<()> {
        let slice = json!({
            "apiVersion": names::API_VERSION,
            "kind": SLICES[0],
            "metadata": {"name": peer_slice::name(number)},
            "peers": peers,
        });
        self.apply_slice(SLICES[1], slice).await
    }
}
