//! All states, breadth first.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
};

use kubeveil_keys::Generation;

use super::{
    Bounds,
    node::{Death, Memories, Node},
    said::{GENERATIONS, MOST},
    state::{Action, State},
};
use crate::rules::Rules;

/// What does not hold, and how that comes to be.
#[derive(Clone, Debug)]
pub struct Broken {
    /// What.
    pub what: String,
    /// All that happens before, in order.
    pub path: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "  then: {}", self.what)
    }
}

/// What was looked at.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Different states.
    pub states: usize,
    /// Ways from one to another.
    pub steps: usize,
    /// The first thing that does not hold; a shortest way to it.
    pub broken: Option<Broken>,
}

/// Plain multiplication: there is nobody to guard against.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Quickly = BuildHasherDefault<Quick>;

/// Things by number, each once.
struct Numbered<T> {
    all: Vec<T>,
    numbers: HashMap<T, u32, Quickly>,
}

impl<T: Copy + Eq + Hash> Numbered<T> {
    fn new() -> Self {
        Self { all: Vec::new(), numbers: HashMap::default() }
    }

    /// Its number, and whether it is new.
    fn number(&mut self, thing: T) -> (u32, bool) {
        let next = u32::try_from(self.all.len()).expect("no more than memory has room for");
        let number = *self.numbers.entry(thing).or_insert(next);
        if number == next {
            self.all.push(thing);
        }
        (number, number == next)
    }

    fn of(&self, number: u32) -> T {
        self.all[number as usize]
    }
}

/// A way round: what the node was like when it had read, whose it is, and where it ends.
type Passing = (u32, usize, Option<Death>);

struct Search {
    bounds: Bounds,
    rules: Rules,
    memories: Memories,
    nodes: Numbered<Node>,
    /// What way rounds come to: there are few that differ, and they are what takes time.
    passed: HashMap<Passing, (u32, Option<u8>), Quickly>,
    states: Numbered<State>,
    /// How each state was first come to.
    parents: Vec<(u32, Action)>,
    /// Ways that need nobody's deed, for each state one after another, and where those of each begin.
    course: Vec<u32>,
    course_of: Vec<usize>,
    steps: usize,
}

/// Looks at all states.
pub fn check(bounds: Bounds, rules: Rules) -> Checked {
    let mut search = Search {
        bounds,
        rules,
        memories: Memories::new(),
        nodes: Numbered::new(),
        passed: HashMap::default(),
        states: Numbered::new(),
        parents: Vec::new(),
        course: Vec::new(),
        course_of: Vec::new(),
        steps: 0,
    };
    let broken = search.run().or_else(|| search.stuck());
    let broken = broken.map(|(state, what)| Broken { what, path: search.path(state) });
    Checked { states: search.states.all.len(), steps: search.steps, broken }
}

impl Search {
    fn count(&self) -> usize {
        usize::from(self.bounds.nodes).clamp(2, MOST)
    }

    fn begin(&mut self) -> State {
        let mut state = State {
            nodes: [0; MOST],
            board: [0; MOST],
            flight: [0; MOST],
            ghost: [0; MOST],
            on_its_way: [[0; MOST]; MOST],
            wanted: 0,
            left: Bounds { rotations: self.bounds.rotations.min(GENERATIONS - 1), ..self.bounds },
        };
        for place in 0..self.count() {
            let node = Node::settled(place, self.count());
            state.nodes[place] = self.nodes.number(node).0;
            state.board[place] = node.says;
        }
        state
    }

    fn nodes_of(&self, state: &State) -> [Node; MOST] {
        state.nodes.map(|number| self.nodes.of(number))
    }

    /// The first state in which something does not hold.
    fn run(&mut self) -> Option<(u32, String)> {
        let first = self.begin();
        self.states.number(first);
        self.parents.push((0, Action::Raise));
        let mut next = 0;
        while next < self.states.all.len() {
            let at = u32::try_from(next).expect("no more than memory has room for");
            let state = self.states.of(at);
            self.course_of.push(self.course.len());
            let nodes = self.nodes_of(&state);
            let nodes = &nodes[..self.count()];
            if let Some(what) = state.broken(nodes) {
                return Some((at, what));
            }
            for action in state.actions(nodes) {
                let (after, again) = self.after(state, nodes, action);
                let (after, again) = if self.bounds.prompt > 0 && after != state {
                    self.react(after, again)
                } else {
                    (after, again)
                };
                if after == state {
                    continue;
                }
                self.steps += 1;
                let (number, is_new) = self.states.number(after);
                if is_new {
                    self.parents.push((at, action));
                }
                if let Some(again) = again {
                    return Some((number, format!("the key of generation {again} is made again")));
                }
                if action.is_course() {
                    self.course.push(number);
                }
            }
            next += 1;
        }
        self.course_of.push(self.course.len());
        None
    }

    /// Those that are prompt do what they can.
    fn react(&mut self, mut state: State, mut again: Option<u8>) -> (State, Option<u8>) {
        loop {
            let nodes = self.nodes_of(&state);
            let nodes = &nodes[..self.count()];
            let mut next = None;
            for action in state.at_once(nodes) {
                let (after, made) = self.after(state, nodes, action);
                again = again.or(made);
                if after != state {
                    next = Some(after);
                    break;
                }
            }
            match next {
                Some(after) => state = after,
                None => return (state, again),
            }
        }
    }

    fn after(&mut self, state: State, nodes: &[Node], action: Action) -> (State, Option<u8>) {
        let mut out = state;
        let mut again = None;
        match action {
            Action::Raise => {
                out.wanted += 1;
                out.left.rotations -= 1;
            }
            Action::Pass { node: place, reads, hears, death } => {
                let mut node = nodes[place];
                if reads {
                    (node.seen, node.whole) = (state.board, true);
                }
                if hears {
                    node.wanted = state.wanted;
                }
                let before = self.nodes.number(node).0;
                (out.nodes[place], again) = self.pass(before, place, death);
                let node = self.nodes.of(out.nodes[place]);
                let ways = node.ways;
                for (to, by) in nodes[place].ways.iter().enumerate() {
                    if ways[to] != *by && u32::from(*by) < 8 {
                        out.on_its_way[place][to] |= 1 << by;
                    }
                }
                if death.is_some() {
                    out.left.crashes -= 1;
                    if state.flight[place] != 0 {
                        (out.ghost[place], out.flight[place]) = (state.flight[place], 0);
                    }
                } else {
                    out.publish(place, &node);
                }
            }
            Action::Wait(place) => {
                let node = nodes[place];
                let rotation = self.memories.age(node.rotation);
                out.nodes[place] = self.nodes.number(Node { rotation, ..node }).0;
                out.on_its_way[place] = [0; MOST];
                out.on_its_way.iter_mut().for_each(|from| from[place] = 0);
            }
            Action::Shake { node: place, with, parity } => {
                let mut node = nodes[place];
                node.shaken[parity] |= 1 << with;
                node.stale[parity] &= !(1 << with);
                out.nodes[place] = self.nodes.number(node).0;
            }
            Action::Silence { node: place, with, parity } => {
                let mut node = nodes[place];
                node.stale[parity] |= 1 << with;
                out.nodes[place] = self.nodes.number(node).0;
                out.left.silences -= 1;
            }
            Action::Arrive(place) => {
                (out.board[place], out.flight[place], out.ghost[place]) = (state.flight[place], 0, 0);
                out.publish(place, &nodes[place]);
            }
            Action::Haunt(place) => (out.board[place], out.ghost[place]) = (state.ghost[place], 0),
        }
        (out, again)
    }

    fn pass(&mut self, before: u32, place: usize, death: Option<Death>) -> (u32, Option<u8>) {
        if let Some(known) = self.passed.get(&(before, place, death)) {
            return *known;
        }
        let node = self.nodes.of(before);
        let (after, again) = node.pass(place, self.rules, death, &mut self.memories);
        let number = self.nodes.number(after).0;
        self.passed.insert((before, place, death), (number, again));
        (number, again)
    }

    /// A state from which what goes on by itself never comes to an end.
    fn stuck(&self) -> Option<(u32, String)> {
        let count = self.states.all.len();
        let mut before: Vec<Vec<u32>> = Vec::new();
        before.resize_with(count, Vec::new);
        for state in 0..count {
            let number = u32::try_from(state).expect("no more than memory has room for");
            for next in &self.course[self.course_of[state]..self.course_of[state + 1]] {
                before[*next as usize].push(number);
            }
        }
        let is_done = |number: &u32| {
            let state = self.states.of(*number);
            state.is_done(&self.nodes_of(&state)[..self.count()])
        };
        let numbers = 0..u32::try_from(count).expect("no more than memory has room for");
        let mut ends = vec![false; count];
        let mut left: Vec<u32> = numbers.clone().filter(is_done).collect();
        left.iter().for_each(|number| ends[*number as usize] = true);
        while let Some(number) = left.pop() {
            for from in std::mem::take(&mut before[number as usize]) {
                if !std::mem::replace(&mut ends[from as usize], true) {
                    left.push(from);
                }
            }
        }
        let stuck = numbers.into_iter().find(|number| !ends[*number as usize])?;
        let nodes = self.nodes_of(&self.states.of(stuck));
        let newest = nodes.iter().map(|node| Generation::new(node.newest().into())).max()?;
        Some((stuck, format!("not all come to one generation ({newest} or the next) from here on")))
    }

    /// How a state was come to.
    fn path(&self, mut state: u32) -> Vec<String> {
        let mut path = Vec::new();
        while state != 0 {
            let (parent, action) = self.parents[state as usize];
            path.push(action.to_string());
            state = parent;
        }
        path.reverse();
        path
    }
}
