//! What the controller writes.

mod peers;
mod policies;
mod said;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use jiff::Timestamp;
use k8s_openapi::{
    api::{authentication::v1::SelfSubjectReview, core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use kubeveil_api::{
    condition::{BYPASSED, Condition, ROTATING, ROTATION_LATE},
    mesh::MeshStatus,
    names,
    policy::PolicyStatus,
    problem::readable,
    rotation::RotationRecord,
};
use kubeveil_core::{announced::Announced, rotation::progress::Progress};
use kubeveil_keys::Generation;
use kubeveil_kubernetes::ours;
use serde_json::json;

use said::Said;

use crate::{
    RESYNC,
    census::Census,
    peers::Slices,
    policies::{InForce, Sets},
    schedule,
    seen::Seen,
    status::status,
};

/// Field manager of server-side apply.
const MANAGER: &str = "kubeveil-controller";
/// The API server's answer to who asks for what is gone.
const GONE: u16 = 404;
/// … and to who changes what is another by now, or makes what is there.
const CONFLICT: u16 = 409;
/// Slices that are written at one time.
const AT_ONCE: usize = 16;
/// Bytes of an event's longest note (`NoteLengthLimit` in kubernetes `pkg/apis/core/validation/events.go`): a longer one is refused.
const LONGEST_NOTE: usize = 1024;

/// Writes where something is otherwise.
pub(crate) struct Writer {
    client: Client,
    identity: String,
    /// What was written last into the mesh's status.
    written: Option<Said<MeshStatus>>,
    /// What the nodes announce; what is valid is not verified twice.
    announced: Announced,
    /// As whom the API server knows us.
    who: Option<String>,
    /// What is in force, by the time since `began`.
    in_force: InForce,
    began: Instant,
    /// Until all is to be looked at again, though nothing stirs.
    pub(crate) again: Duration,
    peers: peers::Memory,
    /// Policies that there were together.
    sets: Sets,
    /// What was said of policies, by their UIDs …
    said: BTreeMap<String, Said<PolicyStatus>>,
    /// … and when.
    counted: BTreeMap<String, Timestamp>,
}

impl Writer {
    pub(crate) fn new(client: Client, identity: &str) -> Self {
        Self {
            client,
            identity: identity.to_owned(),
            written: None,
            announced: Announced::default(),
            who: None,
            in_force: InForce::default(),
            began: Instant::now(),
            again: RESYNC,
            peers: peers::Memory::default(),
            sets: Sets::default(),
            said: BTreeMap::new(),
            counted: BTreeMap::new(),
        }
    }

    /// `census`, and `slices` of nodes, are `None` until all of it was seen once.
    pub(crate) async fn write(
        &mut self,
        seen: &Seen,
        census: Option<&Census>,
        slices: Option<&Slices>,
        now: Timestamp,
    ) -> Result<()> {
        self.again = RESYNC;
        let leaves = seen.mesh.as_ref().is_some_and(|mesh| mesh.object.spec.uninstall);
        // What nodes go by comes first; that it fails is no reason not to tell how the mesh is.
        let told = match census {
            Some(census) => self.write_policies(seen, census, now).await,
            None => Ok(()),
        };
        let (peer_slices, told_of_peers) = match slices {
            Some(slices) => {
                let foreign = self.delete_foreign(&slices.foreign).await;
                let (count, done) = self.write_peers(seen, &slices.standing).await;
                (count, done.and(foreign))
            }
            None => (seen.mesh.as_ref().and_then(|mesh| mesh.object.status.as_ref()?.peer_slices), Ok(())),
        };
        self.write_mesh(seen, leaves, peer_slices, now).await.and(told).and(told_of_peers)
    }

    async fn write_mesh(
        &mut self,
        seen: &Seen,
        leaves: bool,
        peer_slices: Option<u32>,
        now: Timestamp,
    ) -> Result<()> {
        // Whoever takes kubeveil away takes them away.
        for (name, node) in seen.nodes.iter().filter(|_| !leaves) {
            if !seen.veil_nodes.contains_key(name) {
                self.make_veil_node(name, &node.uid).await?;
            }
        }
        let progress = self.progress(seen);
        let Some(status) = status(seen, &progress, peer_slices, now) else { return Ok(()) };
        let before = seen.mesh.as_ref().and_then(|mesh| mesh.object.status.clone()).unwrap_or_default();
        self.written.take_if(|written| !written.waits(&before, now));
        if status == before || self.written.as_ref().is_some_and(|written| written.says(&status)) {
            // By the status that stands, since the API server goes by that too: while the last one is not over there, it takes none.
            return self.begin_rotation(seen, &progress, now).await;
        }
        if !self.write_status(seen, &status).await? {
            return Ok(());
        }
        for condition in changed(&before.conditions, &status.conditions) {
            tracing::info!(kind = condition.kind, status = %condition.status, "{}", condition.message);
            self.tell(condition, now).await;
        }
        for record in status.rotations.iter().filter(|record| !before.rotations.contains(record)) {
            log(record);
        }
        self.written = Some(Said::new(status, now));
        Ok(())
    }

    /// How far the nodes are with the keys that the mesh wants.
    fn progress(&mut self, seen: &Seen) -> Progress {
        let nodes = seen.nodes.iter().map(|(name, node)| (name.clone(), node.clone().into())).collect();
        self.announced.update(&nodes);
        let wanted = seen.mesh.as_ref().map_or(0, |mesh| mesh.object.spec.key_generation);
        Progress::announced(Generation::new(wanted), nodes.keys(), &self.announced)
    }

    /// Where the schedule says so.
    async fn begin_rotation(&mut self, seen: &Seen, progress: &Progress, now: Timestamp) -> Result<()> {
        let Some(mesh) = &seen.mesh else { return Ok(()) };
        let rotations = mesh.object.status.as_ref().map_or(&[][..], |status| &status.rotations);
        let next = schedule::next(&mesh.object, rotations, progress, now);
        if !next.is_ok_and(|next| next.is_some_and(|next| next.is_due)) {
            return Ok(());
        }
        let who = self.who().await?;
        let Some(patch) = schedule::begin(mesh, &who, now) else { return Ok(()) };
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let done = self.meshes().patch(names::MESH, &params, &Patch::Merge(patch)).await;
        let is_begun = unless_another(done).with_context(|| {
            format!(
                "raise spec.keyGeneration of EncryptionMesh {}, as its spec.rotation.every says",
                names::MESH
            )
        })?;
        if is_begun {
            let generation = mesh.object.spec.key_generation.saturating_add(1);
            tracing::info!(generation, "begins the rotation that is due");
        }
        Ok(())
    }

    fn meshes(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &ours("EncryptionMesh", "encryptionmeshes"))
    }

    /// As the API server knows us.
    async fn who(&mut self) -> Result<String> {
        if let Some(who) = &self.who {
            return Ok(who.clone());
        }
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
        let status = review.context("ask the API server who we are")?.status;
        let who = status.and_then(|status| status.user_info?.username).unwrap_or_default();
        Ok(self.who.insert(who).clone())
    }

    /// Its owner is the Node, so it goes with it.
    async fn make_veil_node(&self, name: &str, uid: &str) -> Result<()> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &ours("VeilNode", "veilnodes"));
        let object = serde_json::from_value(json!({
            "apiVersion": names::API_VERSION,
            "kind": "VeilNode",
            "metadata": {
                "name": name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
            },
        }))?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        // Another may be there: the watch is late, or it is of a Node that was there before under this name and goes now.
        if unless_another(api.create(&params, &object).await)
            .with_context(|| format!("make VeilNode {name}"))?
        {
            tracing::info!(node = name, "made its VeilNode");
        }
        Ok(())
    }

    /// Over the mesh as it was seen: who was the leader a moment ago, and has not noticed, would write an older history over the newer. False
    /// if it is another by now.
    async fn write_status(&self, seen: &Seen, status: &MeshStatus) -> Result<bool> {
        let version = seen.mesh.as_ref().map(|mesh| &mesh.version);
        let patch = Patch::Apply(json!({
            "apiVersion": names::API_VERSION,
            "kind": "EncryptionMesh",
            "metadata": {"name": names::MESH, "resourceVersion": version},
            "status": status,
        }));
        let params = PatchParams::apply(MANAGER).force();
        let done = self.meshes().patch_status(names::MESH, &params, &patch).await;
        unless_another(done).with_context(|| format!("write the status of EncryptionMesh {}", names::MESH))
    }

    /// Each with its own words, which name other pairs each time: so no series of events. One that can't be written is no
    /// reason to stop: the status says the same.
    async fn tell(&self, condition: &Condition, now: Timestamp) {
        let is_normal = match condition.kind.as_str() {
            ROTATING => condition.reason != ROTATION_LATE,
            BYPASSED => !condition.holds(),
            _ => condition.holds(),
        };
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", names::MESH)),
                ..ObjectMeta::default()
            },
            action: Some(condition.kind.clone()),
            event_time: Some(MicroTime(now)),
            note: Some(note(&condition.message)),
            reason: Some(condition.reason.clone()),
            regarding: Some(ObjectReference {
                api_version: Some(names::API_VERSION.to_owned()),
                kind: Some("EncryptionMesh".to_owned()),
                name: Some(names::MESH.to_owned()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(MANAGER.to_owned()),
            reporting_instance: Some(self.identity.clone()),
            type_: Some(if is_normal { "Normal" } else { "Warning" }.to_owned()),
            ..Event::default()
        };
        // Where events of what is in no namespace are.
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        if let Err(e) = events.create(&PostParams::default(), &event).await {
            tracing::warn!("the event {} can't be written: {e}", condition.reason);
        }
    }
}

/// Whether it was done: that the object is another by now, or gone, is no failure, and the watch will tell of it.
fn unless_another<T>(done: kube::Result<T>) -> kube::Result<bool> {
    match done {
        Err(kube::Error::Api(refused)) if [CONFLICT, GONE].contains(&refused.code) => Ok(false),
        done => done.map(|_| true),
    }
}

/// What each comes to. One that can't be written is no reason to leave the others as they are.
async fn write_all<T>(writes: Vec<BoxFuture<'_, Result<T>>>) -> Result<Vec<T>> {
    let ended: Vec<Result<T>> = stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
    ended.into_iter().collect()
}

/// A rotation has begun, is late, or is over.
fn log(record: &RotationRecord) {
    let end = record.finished_at.map(|end| end.as_second().saturating_sub(record.started_at.as_second()));
    tracing::info!(
        generation = record.generation,
        result = %record.result,
        requested_by = readable(&record.requested_by),
        reason = readable(&record.reason),
        nodes = readable(&record.nodes),
        started_at = %record.started_at,
        seconds = end,
        stragglers = record.stragglers.join(","),
        "rotation"
    );
}

/// As much of it as an event may hold; the status has all of it.
fn note(message: &str) -> String {
    const MORE: &str = "…";
    if message.len() <= LONGEST_NOTE {
        return message.to_owned();
    }
    format!("{}{MORE}", &message[..message.floor_char_boundary(LONGEST_NOTE - MORE.len())])
}

/// Conditions that hold now and did not, or the other way round; a rotation that goes on for another reason; another one that goes
/// on, or is over, though no look saw what was between the two; and other nodes that are bypassed.
fn changed<'a>(before: &[Condition], now: &'a [Condition]) -> Vec<&'a Condition> {
    let turned = |now: &&Condition| {
        let was = before.iter().find(|c| c.kind == now.kind);
        match now.kind.as_str() {
            // That there never was one is no news.
            BYPASSED if was.is_none() => now.holds(),
            BYPASSED => was.is_some_and(|was| was.message != now.message),
            ROTATING if was.is_some_and(|was| is_another(was, now)) => true,
            _ => was.map(|c| c.status) != Some(now.status),
        }
    };
    now.iter().filter(turned).collect()
}

/// Do they tell of different things? Who is late is told at once, and not each time that another one is.
fn is_another(was: &Condition, now: &Condition) -> bool {
    was.reason != now.reason
        || (was.message != now.message && ["RotationUnderWay", "RotationOver"].contains(&now.reason.as_str()))
}
