//! What a person's command sees of the cluster, and the one object that it writes: the mesh. From an API server or a folder, behind
//! one trait.

use std::{collections::BTreeMap, sync::Arc};

use kubeveil_api::mesh::EncryptionMesh;

use crate::{
    agent::Agent,
    policy::{census::Census, services::Services},
    problem::Problem,
    snapshot::NodeFacts,
};

/// The cluster at one moment.
#[derive(Clone, Debug)]
pub struct Sight {
    /// `EncryptionMesh/default`.
    pub mesh: EncryptionMesh,
    /// Tells whether the mesh is the one that was seen.
    pub version: String,
    /// Nodes by name, with what they announce.
    pub nodes: BTreeMap<String, Arc<NodeFacts>>,
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody else has changed the mesh since it was seen.
    #[error("somebody else has changed EncryptionMesh default meanwhile")]
    Changed,
    /// It is not to be: who decides on it has answered, and said why not.
    #[error("{0}")]
    Refused(Problem),
    /// Something is wrong.
    #[error("{0}")]
    Problem(#[from] Problem),
}

/// A cluster, as far as a command has to do with it. Calls block.
pub trait Control {
    /// What it is, for people.
    fn name(&self) -> String;

    /// Everything at this moment.
    fn look(&mut self) -> Result<Sight, Problem>;

    /// All that decides on flows between pods. Something that can't be read is an error: without it nobody can say what holds.
    fn census(&mut self) -> Result<Census, Problem>;

    /// Who is behind Services.
    fn services(&mut self) -> Result<Services, Problem>;

    /// The agent of `node`, as far as it can be known.
    fn agent(&mut self, node: &str) -> Result<Agent, Problem>;

    /// Who is asking, as it will be on record.
    fn who(&mut self) -> Result<String, Problem>;

    /// Changes the mesh by a JSON merge patch (RFC 7386), if it is still the one that was seen.
    fn change(&mut self, seen: &Sight, patch: &serde_json::Value) -> Result<(), Refusal>;

    /// Is there nobody else who writes the mesh's status?
    fn keeps_status(&self) -> bool;
}
