//! The API server, and what a daemon's source makes of its watches.

use std::{collections::BTreeMap, rc::Rc};

use kubeveil_api::{
    announcement::{GenerationEntry, NotFlipped},
    mesh::Adoption,
};
use kubeveil_core::rotation::Said;
use kubeveil_keys::{Generation, PublicKey};

/// An announcement without its signatures.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Saying {
    pub(crate) generations: Vec<GenerationEntry>,
    pub(crate) not_flipped: NotFlipped,
}

impl Saying {
    pub(crate) fn said(&self) -> Said<'_> {
        Said { generations: &self.generations, not_flipped: &self.not_flipped }
    }

    pub(crate) fn key(&self, generation: Generation) -> Option<PublicKey> {
        let entry = self.generations.iter().find(|entry| entry.generation == generation);
        entry.map(|entry| entry.public_key)
    }

    /// Whether who hears this has to expect that `node` is sent to by `generation`: the contract between two nodes.
    pub(crate) fn lets_expect(&self, node: &str, generation: Generation) -> bool {
        let newest = self.generations.last().map(|entry| entry.generation);
        self.key(generation).is_some() && (newest == Some(generation) || self.not_flipped.names(node))
    }
}

/// A Node.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) uid: u32,
    pub(crate) said: Option<Rc<Saying>>,
    pub(crate) version: usize,
}

/// The mesh object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Mesh {
    pub(crate) generation: u32,
    pub(crate) paused: bool,
    pub(crate) retire_before: u32,
    pub(crate) revoked: Vec<PublicKey>,
    /// Nodes that the rotation leaves their key, a bit each by place.
    pub(crate) left_out: u32,
    /// What has no proven tunnel passes in plain: mode prefer, else it is require.
    pub(crate) prefers: bool,
    /// In mode require: pairs speak in plain until they are proven, or until then.
    pub(crate) adoption: Option<Adoption>,
}

/// Which of the two watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Nodes,
    Mesh,
}

enum Change {
    Node(&'static str, Option<Object>),
    Mesh(Rc<Mesh>),
}

/// Everything, and how it came to be: the version of a change is its place in the log, from 1.
#[derive(Default)]
pub(crate) struct Api {
    pub(crate) nodes: BTreeMap<&'static str, Object>,
    pub(crate) mesh: Rc<Mesh>,
    log: Vec<Change>,
}

impl Api {
    pub(crate) fn version(&self) -> usize {
        self.log.len()
    }

    /// A Node is made, or in place of another of that name.
    pub(crate) fn make(&mut self, name: &'static str, uid: u32) {
        self.put(name, Object { uid, said: None, version: 0 });
    }

    pub(crate) fn remove(&mut self, name: &'static str) {
        self.nodes.remove(name);
        self.log.push(Change::Node(name, None));
    }

    /// What `name` says; refused if it has another UID. The version of it.
    pub(crate) fn say(&mut self, name: &'static str, uid: u32, said: Rc<Saying>) -> Option<usize> {
        self.nodes.get(name).filter(|node| node.uid == uid)?;
        self.put(name, Object { uid, said: Some(said), version: 0 });
        Some(self.version())
    }

    fn put(&mut self, name: &'static str, object: Object) {
        let object = Object { version: self.version() + 1, ..object };
        self.nodes.insert(name, object.clone());
        self.log.push(Change::Node(name, Some(object)));
    }

    /// The Nodes, and of each what it said then, where that is of an older generation.
    fn nodes_at(&self, version: usize) -> BTreeMap<&'static str, Object> {
        let then: BTreeMap<&str, &Object> = self.log[..version]
            .iter()
            .filter_map(|change| match change {
                Change::Node(name, Some(object)) => Some((*name, object)),
                _ => None,
            })
            .collect();
        let newest = |object: &Object| Some(object.said.as_ref()?.generations.last()?.generation);
        let mut nodes = self.nodes.clone();
        for (name, node) in &mut nodes {
            let then = then.get(name).filter(|then| then.uid == node.uid && then.said.is_some());
            if let Some(then) = then.filter(|then| newest(then) < newest(node)) {
                *node = (*then).clone();
            }
        }
        nodes
    }

    pub(crate) fn change_mesh(&mut self, change: impl FnOnce(&mut Mesh)) {
        let mut mesh = (*self.mesh).clone();
        change(&mut mesh);
        self.mesh = Rc::new(mesh);
        self.log.push(Change::Mesh(Rc::clone(&self.mesh)));
    }
}

/// What one daemon's source holds: lost when that ends.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) nodes: BTreeMap<&'static str, Object>,
    pub(crate) mesh: Option<Rc<Mesh>>,
    /// Up to which version of each stream; 0 before the first list.
    newest: [usize; 2],
}

impl Store {
    /// All has been listed since the start.
    pub(crate) fn is_listed(&self) -> bool {
        self.newest.iter().all(|newest| *newest > 0)
    }

    /// That kind has been.
    pub(crate) fn has_listed(&self, stream: Stream) -> bool {
        self.newest[stream as usize] > 0
    }

    /// A list as of now, of one kind.
    pub(crate) fn list(&mut self, api: &Api, stream: Stream) {
        match stream {
            Stream::Nodes => self.nodes.clone_from(&api.nodes),
            Stream::Mesh => self.mesh = Some(Rc::clone(&api.mesh)),
        }
        self.newest[stream as usize] = api.version();
    }

    /// A list of Nodes that say what they said then.
    pub(crate) fn list_of(&mut self, api: &Api, version: usize) {
        self.nodes = api.nodes_at(version);
        self.newest[Stream::Nodes as usize] = api.version();
    }

    /// Events of a watch up to `version`; whether any was news. What is told twice or late is known already.
    pub(crate) fn watch(&mut self, api: &Api, stream: Stream, version: usize) -> bool {
        let newest = self.newest[stream as usize];
        if newest == 0 || version <= newest {
            return false;
        }
        let mut is_news = false;
        for change in &api.log[newest..version] {
            match (change, stream) {
                (Change::Node(name, Some(object)), Stream::Nodes) => {
                    self.nodes.insert(name, object.clone());
                }
                (Change::Node(name, None), Stream::Nodes) => drop(self.nodes.remove(name)),
                (Change::Mesh(mesh), Stream::Mesh) => self.mesh = Some(Rc::clone(mesh)),
                _ => continue,
            }
            is_news = true;
        }
        self.newest[stream as usize] = version;
        is_news
    }
}

/// What is to stand on the own Node, and how far that is (`daemon/kubernetes/src/publish.rs`).
#[derive(Default)]
pub(crate) struct Publication {
    wanted: Option<Rc<Saying>>,
    written: Option<usize>,
    /// A request is under way.
    pub(crate) is_writing: bool,
}

impl Publication {
    pub(crate) fn want(&mut self, wanted: Rc<Saying>) -> bool {
        let is_new = self.wanted.as_ref() != Some(&wanted);
        if is_new {
            (self.wanted, self.written) = (Some(wanted), None);
        }
        is_new
    }

    /// Is that what is to stand there?
    pub(crate) fn is_wanted(&self, said: Option<&Rc<Saying>>) -> bool {
        self.wanted.as_ref() == said
    }

    /// What has to be written, as the own Node is known.
    pub(crate) fn due(&self, own: Option<&Object>) -> Option<Rc<Saying>> {
        let (wanted, own) = (self.wanted.as_ref()?, own?);
        let stands = own.said.as_ref() == Some(wanted);
        let is_under_way = self.written.is_some_and(|version| own.version < version);
        (!stands && !is_under_way).then(|| Rc::clone(wanted))
    }

    pub(crate) fn is_written(&mut self, wanted: &Rc<Saying>, version: usize) {
        if self.wanted.as_ref() == Some(wanted) {
            self.written = Some(version);
        }
    }
}
