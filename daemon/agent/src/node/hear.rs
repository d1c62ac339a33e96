//! The short ways: a few nodes announce something else, their tunnels have begun to answer, or pods are labelled otherwise, and nothing else
//! has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kubeveil_core::{
    desired::{AddressPart, Part},
    policy::pods::OfPods,
    source::Changes,
};
use kubeveil_linux::Kernel;

use super::{Node, Now, changes};

/// Of more nodes than these at once the whole way round costs less than each by itself.
const FEW: usize = 64;

impl<K: Kernel> Node<K> {
    /// The source may say something else. What other nodes announce is taken in by itself, over the kernel as it was last seen;
    /// anything else takes the whole way round. Returns what [`Node::pass`] does.
    pub fn hear(&mut self, now: Now) -> Duration {
        self.hear_part(now).unwrap_or_else(|| self.pass(now))
    }

    /// The time has come that was returned last: to look whether peers answer, or for the whole way round. Returns what that does.
    pub fn tick(&mut self, now: Now) -> Duration {
        self.prove_part(now).unwrap_or_else(|| self.pass(now))
    }

    /// Is the kernel as it should be, and all of it known, so that a part can be decided on by itself?
    fn stands(&self, now: Now) -> bool {
        self.last.settled && self.last.synced && !self.touched && now.monotonic < self.due
    }

    /// `None` if it needs the whole way.
    fn hear_part(&mut self, now: Now) -> Option<Duration> {
        match self.stands(now).then(|| self.source.changes())? {
            Changes::Any => None,
            Changes::Announcements(said) => self.hear_announcements(said, now),
            Changes::Pods(said) => self.hear_of_pods(said, now),
        }
    }

    /// Something else may be asked for of some pods.
    fn hear_of_pods(&mut self, said: OfPods, now: Now) -> Option<Duration> {
        if said.len() > FEW {
            return None;
        }
        // Held once, it is changed where it is.
        self.known.snapshot.workloads = Arc::default();
        let concerned = self.knowledge.hear_of_pods(said);
        self.known.snapshot.workloads.clone_from(&self.knowledge.snapshot().workloads);
        let resting = BTreeSet::new();
        let inputs = self.inputs(&self.knowledge, &self.assignment, &self.last.observed, &resting, now);
        let part = AddressPart::of(&inputs, &self.last.desired, &concerned?)?;
        self.execute(&part.plan(self.knowledge.synced())).ok()?;
        part.put_back(&mut self.last.desired, &mut self.last.observed);
        Some(self.until_next(now))
    }

    fn hear_announcements(&mut self, said: BTreeMap<String, Option<String>>, now: Now) -> Option<Duration> {
        if said.len() > FEW || said.contains_key(&self.name) {
            return None;
        }
        let mut nodes = BTreeSet::new();
        for (name, announcement) in said {
            let facts = self.knowledge.hear(&name, announcement)?;
            self.known.snapshot.nodes.insert(name.clone(), Arc::clone(facts));
            let says_more = self.announced.hear(&name, facts);
            if self.announced.confirm(&name, self.known.snapshot.mesh.as_ref()) || says_more {
                nodes.insert(name);
            }
        }
        self.renew(&nodes, now)?;
        self.tell(now);
        Some(self.until_next(now))
    }

    /// `None` if it needs the whole way.
    fn prove_part(&mut self, now: Now) -> Option<Duration> {
        // A pair whose tunnel is proven closes, which is decided over all of them.
        let adopts = self.mesh()?.adoption.is_some() && !self.pairs.is_over();
        let rotates = self.keeper.publics().len() > 1;
        if adopts || rotates || !self.stands(now) {
            return None;
        }
        let seen = self.kernel.tunnels(&self.last.observed).ok()?;
        let before = &mut self.last.observed.tunnels;
        let is_same =
            |(name, device): (&String, _)| seen.get(name).is_some_and(|now| now.is_set_up_as(device));
        if seen.len() != before.len() || !before.iter().all(is_same) {
            return None;
        }
        *before = seen;
        self.tunnels.observe(&self.last.observed, now.monotonic, now.epoch);
        self.totals.add(&self.last.observed);
        let resting = BTreeSet::new();
        let inputs = self.inputs(&self.knowledge, &self.assignment, &self.last.observed, &resting, now);
        let nodes = Part::turned(&inputs, &self.last.desired);
        if nodes.len() > FEW {
            return None;
        }
        self.renew(&nodes, now)?;
        self.await_answers(now);
        Some(self.until_next(now))
    }

    /// Decides on `nodes` alone, and acts; `None` if that concerns others too, or fails.
    fn renew(&mut self, nodes: &BTreeSet<String>, now: Now) -> Option<()> {
        if nodes.is_empty() {
            return Some(());
        }
        let resting = BTreeSet::new();
        let inputs = self.inputs(&self.knowledge, &self.assignment, &self.last.observed, &resting, now);
        let part = Part::of(&inputs, &self.last.desired, nodes)?;
        let actions = part.plan(self.knowledge.synced(), self.written.endpoints());
        // What is half done is for the whole way to see, and to tell.
        self.execute(&actions).ok()?;
        for action in &actions {
            if let Some(wait) = self.tunnels.expect(action, now.monotonic) {
                let at = now.monotonic + wait;
                self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
            }
        }
        for change in changes::of_tunnels(&self.last.desired, part.desired()) {
            tracing::info!("{change}");
        }
        part.put_back(&actions, &mut self.last.desired, &mut self.last.observed);
        Some(())
    }
}
