//! Rotations that begin by themselves.

use jiff::Timestamp;
use kubeveil_api::{
    mesh::EncryptionMesh,
    rotation::{RotationRecord, RotationResult, request},
};
use kubeveil_core::rotation::{
    progress::Progress,
    schedule::{self, Next},
};
use serde_json::{Value, json};

use crate::seen::Mesh;

/// The next one after those that there were. None while one goes on or is to wait, and before any node has a key.
pub(crate) fn next(
    mesh: &EncryptionMesh,
    rotations: &[RotationRecord],
    progress: &Progress,
    now: Timestamp,
) -> Result<Option<Next>, String> {
    let Some(asked) = &mesh.spec.rotation else { return Ok(None) };
    let goes_on = rotations.last().is_some_and(|last| last.result == RotationResult::Running);
    let has_begun = progress.generation.number() == mesh.spec.key_generation && progress.speaking() > 0;
    if goes_on || asked.paused || mesh.spec.uninstall || !has_begun {
        return Ok(None);
    }
    // One of some nodes renews the keys of no other.
    let of_all = rotations.iter().rev().find(|record| record.nodes.is_empty());
    let Some(since) = of_all.map(|record| record.started_at).or(mesh.metadata.creation_timestamp) else {
        return Ok(None);
    };
    schedule::next(asked, since, &mesh.metadata.uid, now)
}

/// What begins one that is due, as a JSON merge patch of the mesh that was seen and of no other, asked for by `who`.
pub(crate) fn begin(mesh: &Mesh, who: &str, now: Timestamp) -> Option<Value> {
    let every = mesh.object.spec.rotation.as_ref()?.every?;
    let generation = mesh.object.spec.key_generation.checked_add(1)?;
    Some(json!({
        "metadata": {"resourceVersion": mesh.version},
        "spec": request(generation, who, &format!("every {every}"), now),
    }))
}
