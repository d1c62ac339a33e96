use super::*;

/// Everything that is decided on.
pub(in crate::desired) struct World {
    pub(in crate::desired) keys: Vec<(Generation, PublicKey)>,
    pub(in crate::desired) knowledge: Knowledge,
    pub(in crate::desired) told: Told,
    pub(in crate::desired) assignment: Assignment,
    pub(in crate::desired) announced: Announced,
    pub(in crate::desired) adopting: Adopting,
    pub(in crate::desired) bypassing: Bypassing,
    pub(in crate::desired) rotation: Rotation,
    pub(in crate::desired) tunnels: Tunnels,
    pub(in crate::desired) observed: Observed,
    pub(in crate::desired) steers_on: bool,
    pub(in crate::desired) resting: BTreeSet<u32>,
    pub(in crate::desired) now: Duration,
    pub(in crate::desired) epoch: Duration,
}

impl World {
    /// Of the node `me`, which has no key yet, with all else as it is at first; prefixes are those that `mesh` admits.
    pub(in crate::desired) fn of(snapshot: Snapshot, mesh: &MeshSpec, recorded: &Owners) -> Self {
        let knowledge = Knowledge::Whole(snapshot.attest_whole());
        let assignment = assign(&knowledge, mesh, recorded);
        Self {
            keys: Vec::new(),
            knowledge,
            told: Told { mesh: true, all: true, kept: true, is_early: false },
            assignment,
            announced: Announced::default(),
            adopting: Adopting::default(),
            bypassing: Bypassing::default(),
            rotation: Rotation::default(),
            tunnels: Tunnels::default(),
            observed: Observed::default(),
            steers_on: false,
            resting: BTreeSet::new(),
            now: Duration::ZERO,
            epoch: Duration::ZERO,
        }
    }

    pub(in crate::desired) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            node: "me",
            keys: &self.keys,
            knowledge: &self.knowledge,
            told: self.told,
            assignment: &self.assignment,
            announced: &self.announced,
            rotation: &self.rotation,
            tunnels: &self.tunnels,
            observed: &self.observed,
            underlay: &[],
            backstop: backstop::Choice::Auto,
            build: "build",
            adopting: &self.adopting,
            bypassing: &self.bypassing,
            steers_on: self.steers_on,
            resting: &self.resting,
            now: self.now,
            epoch: self.epoch,
        }
    }
}
