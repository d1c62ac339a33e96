//! The programs in the kernel, with the maps of a [`World`].

use std::{
    borrow::BorrowMut,
    collections::{BTreeMap, BTreeSet},
    env, mem,
    ops::{Deref, DerefMut},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key, xdp::DevMapHash},
    programs::SchedClassifier,
};
use kubeveil_abi::{
    COUNTERS, Counter, Direction, FlowKey, FlowMode, MAX_FLOWS, Origin, PrefixValue, Reason, counter_index,
    names,
};
use kubeveil_verdict::testing::{Situation, World};
use rustix::time::{ClockId, clock_gettime};

/// `struct __sk_buff` (`include/uapi/linux/bpf.h`): its size, and where the fields that we set lie.
const CONTEXT: usize = 192;
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;

/// ifindex of the loopback device of every network namespace.
const LOOPBACK: u32 = 1;
/// Bytes that each of several segments carries.
pub const SEGMENT: u32 = 1_300;

/// What the kernel is told to do with a packet (`include/uapi/linux/pkt_cls.h`).
pub const NEXT: u32 = u32::MAX;
/// The same: drop it.
pub const SHOT: u32 = 2;
/// The same: send it by another device.
pub const REDIRECT: u32 = 7;

/// Names of the programs by direction.
const fn program(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => names::STEER,
        Direction::Ingress => names::GUARD,
        Direction::Tunnel => names::DELIVER,
        Direction::Backstop => names::BACKSTOP,
    }
}

/// Why programs can't be loaded here, if they can't; in the words that the runner of all tests knows.
pub fn missing_privilege() -> Option<&'static str> {
    (!rustix::process::geteuid().is_root())
        .then_some("needs root: CAP_BPF and CAP_NET_ADMIN to load programs")
}

/// Seconds since boot, as the programs see them.
pub fn boot_seconds() -> u32 {
    u32::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(u32::MAX)
}

/// The object under test.
pub fn object() -> Result<PathBuf> {
    let path = match (env::var_os("KUBEVEIL_EBPF_OBJECT"), option_env!("KUBEVEIL_EBPF_OBJECT")) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(path)) => PathBuf::from(path),
        (None, None) => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/ebpf/kubeveil")),
    };
    ensure!(path.exists(), "no eBPF object at {}: run `cargo xtask build-ebpf`", path.display());
    Ok(path)
}

/// What became of a packet.
#[derive(Debug)]
pub struct Ran {
    /// What the program answered.
    pub action: u32,
    /// The packet as it left it.
    pub frame: Vec<u8>,
    /// Of one run; the mean of many where it ran often.
    pub duration: Duration,
}

/// Loaded programs that no test uses at the moment. Loading is what takes the time.
static IDLE: Mutex<Vec<Kernel>> = Mutex::new(Vec::new());

/// Loaded programs, for as long as a test needs them.
pub struct Loan(Option<Kernel>);

impl Deref for Loan {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        self.0.as_ref().expect("held until dropped")
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Kernel {
        self.0.as_mut().expect("held until dropped")
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // A test that failed may have left anything behind.
        if let Some(kernel) = self.0.take_if(|kernel| kernel.room == MAX_FLOWS && !thread::panicking()) {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(kernel);
        }
    }
}

/// The loaded programs.
pub struct Kernel {
    ebpf: Ebpf,
    epoch: u32,
    room: usize,
    peers: BTreeSet<u32>,
    /// What had been counted when the maps were last filled.
    counted: BTreeMap<u32, Counter>,
}

impl Kernel {
    /// The programs with the maps of the world.
    pub fn with(world: &World) -> Result<Loan> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let used = if world.room == MAX_FLOWS { idle.pop() } else { None };
        drop(idle);
        let mut kernel = used.map_or_else(|| Self::load(world.room), Ok)?;
        kernel.install(world)?;
        Ok(Loan(Some(kernel)))
    }

    fn load(room: usize) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader.map_max_entries(names::FLOWS, u32::try_from(room)?).load_file(object()?)?;
        for name in names::PROGRAMS {
            let classifier: &mut SchedClassifier =
                ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
            classifier.load().with_context(|| format!("the verifier refuses {name}"))?;
        }
        Ok(Self { ebpf, epoch: 0, room, peers: BTreeSet::new(), counted: BTreeMap::new() })
    }

    /// Brings the maps to the state of the world, whatever was in them; counters begin anew.
    pub fn install(&mut self, world: &World) -> Result<()> {
        let c = &world.config;
        let [even, odd] = c.ports;
        let [e0, e1, e2, e3, e4, e5, e6] = c.envelope_ports;
        let (tcp, other) = (c.flow_tcp_seconds, c.flow_other_seconds);
        let config = [
            c.mode, c.unknown, c.fwmark, even, odd, c.mss_v4, c.mss_v6, tcp, other, c.mtu, e0, e1, e2, e3,
            e4, e5, e6, c.reserved,
        ];
        Array::<_, [u32; 18]>::try_from(self.map(names::CONFIG)?)?.set(0, config, 0)?;
        self.unsettle()?;
        self.replace_prefixes(world)?;
        replace_origins(&mut self.map(names::ORIGINS)?.try_into()?, world)?;
        replace_alive(&mut self.map(names::ALIVE)?.try_into()?, world)?;
        self.settle()?;
        self.install_peers(world)?;
        let mut devices: HashMap<_, u32, u32> = self.map(names::DEVICES)?.try_into()?;
        let old: Vec<_> = devices.keys().collect::<Result<_, _>>()?;
        old.iter().try_for_each(|key| devices.remove(key))?;
        for (ifindex, kind) in &world.devices {
            devices.insert(ifindex, *kind as u32, 0)?;
        }
        let mut flows = self.flow_map()?;
        let old: Vec<_> = flows.keys().collect::<Result<_, _>>()?;
        old.iter().try_for_each(|key| flows.remove(key))?;
        for (key, value) in world.flows.borrow().iter() {
            flows.insert(words(key), [value.seen, 0], 0)?;
        }
        self.counted = self.all_counters()?;
        Ok(())
    }

    fn install_peers(&mut self, world: &World) -> Result<()> {
        let old = mem::replace(&mut self.peers, world.peers.keys().copied().collect());
        let mut peers: Array<_, u64> = self.map(names::PEERS)?.try_into()?;
        for index in old {
            peers.set(index, 0, 0)?;
        }
        for (index, value) in &world.peers {
            peers.set(*index, value.0, 0)?;
        }
        let mut slots: Array<_, u32> = self.map(names::SLOTS)?.try_into()?;
        for (index, ifindex) in (0..).zip(world.slots) {
            slots.set(index, ifindex, 0)?;
        }
        Ok(())
    }

    /// Brings the prefixes to the state of the world. The epoch is the caller's.
    pub fn replace_prefixes(&mut self, world: &World) -> Result<()> {
        let mut prefixes: LpmTrie<_, [u32; 4], [u32; 2]> = self.map(names::PREFIXES)?.try_into()?;
        let old: Vec<_> = prefixes.keys().collect::<Result<_, _>>()?;
        old.iter().try_for_each(|key| prefixes.remove(key))?;
        for (address, length, value) in &world.prefixes {
            prefixes.insert(&Key::new(*length, *address), words_of(value), 0)?;
        }
        Ok(())
    }

    /// From now on the programs look every address up.
    pub fn unsettle(&mut self) -> Result<()> {
        self.epoch |= 1;
        self.store_epoch(self.epoch)
    }

    /// From now on the programs keep what they have looked up. No epoch comes twice.
    pub fn settle(&mut self) -> Result<()> {
        self.epoch = (self.epoch | 1) + 1;
        self.store_epoch(self.epoch)
    }

    /// As it is before anybody has written to the map.
    pub fn clear_epoch(&mut self) -> Result<()> {
        self.store_epoch(0)
    }

    fn store_epoch(&mut self, epoch: u32) -> Result<()> {
        Array::<_, u32>::try_from(self.map(names::EPOCH)?)?.set(0, epoch, 0)?;
        Ok(())
    }

    /// Runs the program of a direction on a packet.
    pub fn run(&mut self, direction: Direction, situation: &Situation) -> Result<Ran> {
        self.run_frame(direction, situation, &situation.build.frame(), 0)
    }

    /// The same with these bytes, `segments` of them.
    pub fn run_frame(
        &mut self,
        direction: Direction,
        situation: &Situation,
        frame: &[u8],
        segments: u32,
    ) -> Result<Ran> {
        self.run_often(direction, situation, frame, segments, 1)
    }

    /// The same, `repeat` times: for its duration.
    pub fn run_often(
        &mut self,
        direction: Direction,
        situation: &Situation,
        frame: &[u8],
        segments: u32,
        repeat: u32,
    ) -> Result<Ran> {
        self.run_program(program(direction), situation, frame, segments, repeat)
    }

    /// The same for a program that shares its direction with another.
    pub fn run_program(
        &mut self,
        name: &'static str,
        situation: &Situation,
        frame: &[u8],
        segments: u32,
        repeat: u32,
    ) -> Result<Ran> {
        let mut context = [0; CONTEXT];
        let mut set = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        set(MARK, situation.mark);
        set(INGRESS_IFINDEX, situation.ingress_ifindex);
        set(GSO_SEGS, segments);
        set(GSO_SIZE, if segments == 0 { 0 } else { SEGMENT });
        let classifier: &mut SchedClassifier = self.ebpf.program_mut(name).context(name)?.try_into()?;
        test_run(classifier, frame, Some(&context), repeat).with_context(|| {
            format!("run {name} on {} bytes: {:02x?}", frame.len(), &frame[..frame.len().min(80)])
        })
    }

    /// One counter, summed over the CPUs.
    pub fn counter(&self, index: u32) -> Result<Counter> {
        Ok(self.counters()?.get(&index).copied().unwrap_or_default())
    }

    /// What of a direction was counted since this was asked last: what it was held to, and the reason.
    pub fn moved(&mut self, direction: Direction) -> Result<Vec<(FlowMode, Reason)>> {
        let mut moved = Vec::new();
        let all = FlowMode::ALL.into_iter().flat_map(|mode| Reason::ALL.iter().map(move |r| (mode, *r)));
        for (mode, reason) in all {
            let index = counter_index(direction, mode, reason);
            let now = self.read_counter(index)?;
            if self.counted.insert(index, now).unwrap_or_default() != now {
                moved.push((mode, reason));
            }
        }
        Ok(moved)
    }

    /// Every counter that has moved since the maps were filled, and by how much.
    pub fn counters(&self) -> Result<BTreeMap<u32, Counter>> {
        let mut counters = self.all_counters()?;
        counters.retain(|index, counter| {
            let before = self.counted.get(index).copied().unwrap_or_default();
            counter.packets -= before.packets;
            counter.bytes -= before.bytes;
            *counter != Counter::default()
        });
        Ok(counters)
    }

    fn all_counters(&self) -> Result<BTreeMap<u32, Counter>> {
        let mut counters = BTreeMap::new();
        for index in 0..u32::try_from(COUNTERS)? {
            let counter = self.read_counter(index)?;
            if counter.packets != 0 {
                counters.insert(index, counter);
            }
        }
        Ok(counters)
    }

    fn read_counter(&self, index: u32) -> Result<Counter> {
        let map = self.ebpf.map(names::COUNTERS).context(names::COUNTERS)?;
        let map: PerCpuArray<_, [u64; 2]> = map.try_into()?;
        let values = map.get(&index, 0)?;
        let [packets, bytes] = values.iter().fold([0, 0], |sum, v| [sum[0] + v[0], sum[1] + v[1]]);
        Ok(Counter { packets, bytes })
    }

    /// The flows, and when each was last seen.
    pub fn flows(&mut self) -> Result<BTreeMap<[u32; 10], u32>> {
        let flows = self.flow_map()?;
        flows.iter().map(|entry| entry.map(|(key, [seen, _])| (key, seen)).map_err(Into::into)).collect()
    }

    fn flow_map(&mut self) -> Result<HashMap<&mut MapData, [u32; 10], [u32; 2]>> {
        Ok(self.map(names::FLOWS)?.try_into()?)
    }

    /// Instructions that the verifier looked at, by program.
    pub fn verified(&mut self) -> Result<BTreeMap<&'static str, u32>> {
        let mut counts = BTreeMap::new();
        for name in names::PROGRAMS {
            let classifier: &SchedClassifier = self.ebpf.program(name).context(name)?.try_into()?;
            let count = classifier.info()?.verified_instruction_count().context("an old kernel")?;
            counts.insert(name, count);
        }
        Ok(counts)
    }

    /// One of the maps.
    pub fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }
}

/// Brings the devices of the world's pods into their map.
pub fn replace_origins<T: BorrowMut<MapData>>(
    origins: &mut HashMap<T, [u32; 4], [u32; 4]>,
    world: &World,
) -> Result<()> {
    let old: Vec<_> = origins.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| origins.remove(key))?;
    for (address, Origin { device, via, pod: [first, second] }) in &world.origins {
        origins.insert(address, [*device, *via, *first, *second], 0)?;
    }
    Ok(())
}

/// The same of those that are there: all of them the loopback device, since the kernel takes none that does not exist.
pub fn replace_alive<T: BorrowMut<MapData>>(alive: &mut DevMapHash<T>, world: &World) -> Result<()> {
    let old: Vec<_> = alive.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| alive.remove(*key))?;
    for device in &world.alive {
        alive.insert(*device, LOOPBACK, None, 0)?;
    }
    Ok(())
}

/// One call of BPF_PROG_TEST_RUN.
pub fn test_run(
    classifier: &SchedClassifier,
    frame: &[u8],
    context: Option<&[u8]>,
    repeat: u32,
) -> Result<Ran> {
    let mut out = vec![0; frame.len() + 256];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: context,
        repeat,
        ..TestRunOptions::default()
    };
    let ran = classifier.test_run(options)?;
    out.truncate(usize::try_from(ran.data_size_out)?);
    Ok(Ran { action: ran.return_value, frame: out, duration: ran.duration })
}

/// A key as the map holds it.
pub fn words(key: &FlowKey) -> [u32; 10] {
    let mut words = [0; 10];
    words[..4].copy_from_slice(&key.remote);
    words[4..8].copy_from_slice(&key.local);
    words[8..].copy_from_slice(&[key.protocol, key.ports]);
    words
}

/// A value as it lies in the map.
pub fn words_of(value: &PrefixValue) -> [u32; 2] {
    let [low, high] = value.peer.to_ne_bytes();
    [u32::from_ne_bytes([value.kind, value.asked, low, high]), value.until]
}
