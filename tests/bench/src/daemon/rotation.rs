//! What one node has to do when the keys of all are rotated: the daemon's own way round, among nodes that are played, over a kernel
//! that is made of memory. So the times are the daemon's alone, and its writes are counted.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kubeveil_keys::PrivateKey;
use kubeveil_linux::fake::FakeKernel;
use kubeveild::node::{Node, Now};

use super::{
    NODES,
    cluster::{self, Memory, Other, Own},
    profile::{Profile, Profiled},
};
use crate::{
    row::{Row, Series},
    say,
};

/// Nodes with which the cost of a peer is told from that of the device.
const FEW: u16 = 100;
/// Nodes that take a step in a second: `kubeveil_core::rotation::PACE` apart.
const A_SECOND: usize = 100;

/// A rotation, as one node has it.
struct Cost {
    /// Privileged steps.
    writes: f64,
    /// Seconds of work.
    work: f64,
    /// Of these, the longest look.
    longest: f64,
    /// Seconds from the wish to the end, by the daemon's clock.
    lasted: f64,
}

/// Measures it among few nodes and among many.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    let [mut writes, mut work, mut longest, mut lasted]: [Series; 4] = Default::default();
    for number in 1..=rounds {
        say(format!("rotation: round {number} of {rounds}"));
        let [few, many] = [rotate(FEW)?, rotate(NODES)?];
        writes.push((many.writes - few.writes) / f64::from(NODES - FEW));
        work.push(many.work);
        longest.push(many.longest);
        lasted.push(many.lasted);
    }
    Ok(vec![
        Row::of("kernel writes of a rotation, a peer", "writes", &writes)
            .at_most(2.0)
            .note("it is added on the new device, and its packets go the new way"),
        Row::of("work of one node in a rotation of 5,000", "s", &work)
            .note("over a kernel of memory, in all"),
        Row::of("its longest look", "s", &longest),
        Row::of("how long such a rotation lasts", "s", &lasted)
            .note("of the daemon's clock, where every step of the others comes as soon as it may"),
    ])
}

/// Nobody tells anything; it is time to look.
fn in_time(node: &mut Node<Profiled<FakeKernel>>, now: Now) {
    node.pass(now);
}

/// A daemon among `nodes` others.
struct Stage {
    node: Node<Profiled<FakeKernel>>,
    profile: Profile,
    source: Memory,
    second: u64,
    cost: Cost,
}

fn rotate(nodes: u16) -> Result<Cost> {
    let own = Own::make()?;
    let mut others = cluster::others(nodes, &own)?;
    let fresh = (0..nodes).map(|_| Ok(PrivateKey::generate()?)).collect::<Result<Vec<_>>>()?;
    let mut stage = Stage::laid(&own, &others, &fresh)?;
    stage.profile.take();
    stage.cost = Cost { writes: 0.0, work: 0.0, longest: 0.0, lasted: 0.0 };
    let began = stage.second;
    stage.source.change(|snapshot| {
        if let Some(mesh) = &mut snapshot.mesh {
            mesh.key_generation = 1;
        }
    });
    for keeps in [true, false] {
        for (others, fresh) in others.chunks_mut(A_SECOND).zip(fresh.chunks(A_SECOND)) {
            for (other, fresh) in others.iter_mut().zip(fresh) {
                other.rotate(fresh, keeps)?;
                stage.source.hear(other);
            }
            stage.look(|node, now| {
                node.hear(now);
            });
        }
    }
    for _ in 0..300 {
        if stage.generations()? == [1] {
            stage.cost.writes = f64::from(stage.profile.take().writes);
            stage.cost.lasted = (stage.second - began) as f64;
            return Ok(stage.cost);
        }
        stage.look(in_time);
    }
    anyhow::bail!("it is not over: {:?}", stage.node.problems())
}

impl Stage {
    /// All have their first keys, and answer.
    fn laid(own: &Own, others: &[Other], fresh: &[PrivateKey]) -> Result<Self> {
        let mut kernel = FakeKernel::new("bench", &["198.51.100.1/24".parse()?, "2001:db8:1::1/64".parse()?]);
        others.iter().for_each(|other| kernel.answer(other.public()));
        fresh.iter().for_each(|key| kernel.speak(key.public()));
        let (kernel, profile) = Profiled::new(kernel);
        let source = Memory::of(others);
        let (mesh, facts) = (cluster::mesh()?, cluster::own()?);
        source.change(|snapshot| {
            snapshot.mesh = Some(mesh);
            snapshot.nodes.insert(cluster::OWN.to_owned(), facts.into());
        });
        let node = Node::new(cluster::OWN, &[], "bench", kernel, Box::new(source.clone()), own.state());
        let cost = Cost { writes: 0.0, work: 0.0, longest: 0.0, lasted: 0.0 };
        let mut stage = Self { node, profile, source, second: 1_000, cost };
        (0..10).for_each(|_| stage.look(in_time));
        ensure!(stage.node.is_settled(), "it does not settle: {:?}", stage.node.problems());
        ensure!(stage.generations()? == [0], "it has no key");
        Ok(stage)
    }

    /// A second later, by what wakes the daemon.
    fn look(&mut self, wakes: fn(&mut Node<Profiled<FakeKernel>>, Now)) {
        self.second += 1;
        let at = Duration::from_secs(self.second);
        let start = Instant::now();
        wakes(&mut self.node, Now { monotonic: at, epoch: at });
        let took = start.elapsed().as_secs_f64();
        self.cost.work += took;
        self.cost.longest = self.cost.longest.max(took);
    }

    /// Those that the daemon announces.
    fn generations(&self) -> Result<Vec<u32>> {
        self.source.generations(cluster::OWN)
    }
}
