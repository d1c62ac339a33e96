//! The short way: what a few nodes announce is otherwise, and nothing else.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kubeveil_core::{desired::Part, source::Changes};
use kubeveil_linux::Kernel;

use super::{Node, Now, changes};

/// Of more nodes than these at once the whole way round costs less than each by itself.
const FEW: usize = 64;

impl<K: Kernel> Node<K> {
    /// The source may say something else. What other nodes announce is taken in by itself, over the kernel as it was last seen;
    /// anything else takes the whole way round. Returns when to go that at the latest.
    pub fn hear(&mut self, now: Now) -> Duration {
        self.hear_part(now).unwrap_or_else(|| self.pass(now))
    }

    /// `None` if it needs the whole way.
    fn hear_part(&mut self, now: Now) -> Option<Duration> {
        let stands = self.last.settled && self.last.synced && !self.touched && now.monotonic < self.due;
        let Changes::Announcements(said) = stands.then(|| self.source.changes())? else { return None };
        if said.len() > FEW || said.contains_key(&self.name) {
            return None;
        }
        let mut nodes = BTreeSet::new();
        for (name, announcement) in said {
            let facts = self.knowledge.hear(&name, announcement)?;
            self.known.snapshot.nodes.insert(name.clone(), Arc::clone(facts));
            if self.announced.hear(&name, facts) {
                nodes.insert(name);
            }
        }
        if !nodes.is_empty() {
            self.renew(&nodes, now)?;
        }
        self.tell(now);
        Some(self.due.saturating_sub(now.monotonic))
    }

    /// Decides on `nodes` alone, and acts; `None` if that concerns others too, or fails.
    fn renew(&mut self, nodes: &BTreeSet<String>, now: Now) -> Option<()> {
        let resting = BTreeSet::new();
        let inputs = self.inputs(&self.knowledge, &self.assignment, &self.last.observed, &resting, now);
        let part = Part::of(&inputs, &self.last.desired, nodes)?;
        let actions = part.plan(self.knowledge.synced(), self.written.endpoints());
        // What is half done is for the whole way to see, and to tell.
        self.execute(&actions).ok()?;
        for action in &actions {
            if let Some(wait) = self.tunnels.expect(action, now.monotonic) {
                self.due = self.due.min(now.monotonic + wait);
            }
        }
        for change in changes::of_tunnels(&self.last.desired, part.desired()) {
            tracing::info!("{change}");
        }
        part.put_back(&actions, &mut self.last.desired, &mut self.last.observed);
        Some(())
    }
}
