//! What is decided of a few nodes is what would be decided of all.

use std::time::Duration;

use jiff::Timestamp;
use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    mesh::Mode,
};
use kubeveil_keys::{Generation, PrivateKey};
use proptest::prelude::*;

use super::*;
use crate::{
    adoption::Adopting,
    bypass::{Bypassed, Bypassing},
    desired::{desired, tests::World},
    observed::{Link, Peer, TunnelDevice},
    ownership::Owners,
    plan::plan,
    snapshot::NodeFacts,
    testing::{mesh, node, snapshot},
    tunnels::Tunnels,
};

const DEVICE: &str = "kubeveil0";
const NAMES: [&str; 5] = ["n2", "n3", "n4", "n5", "n6"];
/// Long enough for everybody to have the word.
const NOW: Duration = Duration::from_secs(1_000);

/// What a node says of itself.
#[derive(Clone, Debug)]
enum Said {
    Nothing,
    /// This key, of this generation, and this port.
    Key(u8, u32, u16),
    /// What can't be verified.
    Forged,
}

/// How the tunnel to it is.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Never,
    Up,
    /// Long ago, and what was sent since has had no answer.
    Stale,
}

#[derive(Clone, Debug)]
struct Other {
    said: Said,
    answer: Answer,
    /// Address families: both, the first, the second.
    families: u8,
    /// Its pair is open.
    is_open: bool,
    /// The device remembers it by this key, from before the daemon started.
    kept: Option<u8>,
    /// It is bypassed, from and until these seconds.
    bypassed: Option<(u32, u32)>,
}

#[derive(Debug)]
struct Case {
    mode: Mode,
    before: Vec<Other>,
    /// What some of them say, and how they answer, afterwards.
    after: Vec<(usize, Said, Answer)>,
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        1 => Just(Said::Nothing),
        // Few keys, so that two nodes have the same; the first is this node's own.
        12 => (1u8..10, prop_oneof![9 => Just(0u32), 1 => Just(1)], 51871u16..51875)
            .prop_map(|(key, generation, port)| Said::Key(key, generation, port)),
        1 => Just(Said::Forged),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![Just(Answer::Never), Just(Answer::Up), Just(Answer::Stale)]
}

fn case() -> impl Strategy<Value = Case> {
    let families = prop_oneof![6 => Just(0u8), 1 => Just(1), 1 => Just(2)];
    let kept = prop_oneof![4 => Just(None), 1 => (2u8..10).prop_map(Some)];
    let bypassed = prop_oneof![2 => Just(None), 1 => (995_u32..1_005, 990_u32..1_100).prop_map(Some)];
    let other = (said(), answer(), families, any::<bool>(), kept, bypassed);
    let other = other.prop_map(|(said, answer, families, is_open, kept, bypassed)| Other {
        said,
        answer,
        families,
        is_open,
        kept,
        bypassed,
    });
    let mode = prop_oneof![Just(Mode::Require), Just(Mode::Prefer), Just(Mode::Observe)];
    let after = prop::collection::vec((0..NAMES.len(), said(), answer()), 1..3);
    (mode, prop::collection::vec(other, NAMES.len()), after).prop_map(|(mode, before, after)| Case {
        mode,
        before,
        after,
    })
}

fn public(key: u8) -> PublicKey {
    PrivateKey::copied_from(&[key; 32]).public()
}

fn announcement(name: &str, said: &Said) -> Option<String> {
    match said {
        Said::Nothing => None,
        Said::Forged => Some("{}".to_owned()),
        Said::Key(key, generation, port) => {
            let key = PrivateKey::copied_from(&[*key; 32]);
            let entry = GenerationEntry {
                generation: Generation::new(*generation),
                public_key: key.public(),
                port: (*port).try_into().expect("port"),
                state: GenerationState::Active,
            };
            let uid = format!("uid-{}", &name[1..]);
            let signed = Announcement::sign(name, &uid, vec![entry], NotFlipped::nobody(), &[&key]);
            Some(signed.expect("signed").to_json())
        }
    }
}

/// What is decided on, before.
fn world(case: &Case) -> World {
    let mut nodes = vec![("me", node(1))];
    for (n, (name, other)) in (2u8..).zip(NAMES.iter().zip(&case.before)) {
        let mut facts = NodeFacts { announcement: announcement(name, &other.said), ..node(n) };
        facts.internal_ips.retain(|ip| other.families == 0 || ip.is_ipv4() == (other.families == 1));
        nodes.push((name, facts));
    }
    let mut all = snapshot(&nodes);
    all.mesh.as_mut().expect("mesh").mode = case.mode;
    let first = World::of(all, &mesh(), &Owners::new());
    let open = NAMES.iter().zip(&case.before).filter(|(_, other)| other.is_open);
    let adopting = Adopting {
        open: open.map(|(name, _)| (*name).to_owned()).collect(),
        until: 10_000,
        ..Adopting::default()
    };
    let bypassed = NAMES.iter().zip(&case.before).filter_map(|(name, other)| {
        let (from, end) = other.bypassed?;
        let (until, by, reason) = (Timestamp::UNIX_EPOCH, String::new(), String::new());
        Some(((*name).to_owned(), Bypassed { from, end, until, by, reason }))
    });
    let link = |name: &str, kind: Option<&str>| Link {
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        up: true,
        mtu: 1500,
        ..Link::default()
    };
    let mut device = TunnelDevice { ifindex: 7, ..TunnelDevice::default() };
    for (name, key) in NAMES.iter().zip(&case.before).filter_map(|(name, other)| Some((name, other.kept?))) {
        let prefixes = first.assignment.of(name).iter().map(|(prefix, _)| *prefix).collect();
        device.allow(&public(key), &prefixes, true);
    }
    let observed = Observed {
        links: [(2, link("eth0", None)), (7, link(DEVICE, Some("wireguard")))].into(),
        tunnels: [(DEVICE.to_owned(), device)].into(),
        datapath: Some(Datapath { build: "build".to_owned(), ..Datapath::default() }),
        ..Observed::default()
    };
    let mut world = World {
        keys: vec![(Generation::FIRST, public(1))],
        adopting,
        bypassing: Bypassing { peers: bypassed.collect() },
        observed,
        now: NOW,
        ..first
    };
    world.announced.update(&world.knowledge.snapshot().nodes);
    world
}

/// Makes the kernel hold what is wanted, and the peers answer as they do, until nothing changes.
fn settle(world: &mut World, answers: &[Answer]) -> Desired {
    for _ in 0..4 {
        let wanted = desired(&world.inputs());
        let tunnel = &wanted.tunnels[DEVICE];
        let device = world.observed.tunnels.get_mut(DEVICE).expect("device");
        device.public_key = Some(tunnel.key.1);
        device.peers = tunnel
            .peers
            .iter()
            .map(|(key, want)| {
                let peer = Peer {
                    endpoint: want.endpoint.or(device.peers.get(key).and_then(|have| have.endpoint)),
                    allowed_ips: want.allowed_ips.clone(),
                    keepalive: want.keepalive,
                    ..Peer::default()
                };
                (*key, peer)
            })
            .collect();
        let datapath = world.observed.datapath.as_mut().expect("datapath");
        datapath.prefixes.clone_from(&wanted.prefixes);
        datapath.peers.clone_from(&wanted.values);
        datapath.slots = wanted.slots;
        let answers = NAMES.iter().zip(answers);
        let by_key: BTreeMap<PublicKey, Answer> =
            answers.filter_map(|(name, answer)| Some((wanted.remotes.get(*name)?.key?, *answer))).collect();
        world.tunnels = Tunnels::default();
        hear_of(world, &by_key);
    }
    let wanted = desired(&world.inputs());
    assert_eq!(Some(&wanted.values), world.observed.datapath.as_ref().map(|d| &d.peers));
    wanted
}

/// Looks three times: as it begins, once something was sent, and when no answer has come for long.
fn hear_of(world: &mut World, answers: &BTreeMap<PublicKey, Answer>) {
    let wall = Duration::from_secs(10_000);
    for (sent, at) in [(0, 900), (1, 960), (2, 999)] {
        for (key, peer) in &mut world.observed.tunnels.get_mut(DEVICE).expect("device").peers {
            (peer.last_handshake, peer.sent) = match answers.get(key) {
                None | Some(Answer::Never) => (None, 0),
                Some(Answer::Up) => (Some(wall + Duration::from_secs(900)), 0),
                Some(Answer::Stale) => (Some(wall), sent),
            };
        }
        let at = Duration::from_secs(at);
        world.tunnels.observe(&world.observed, at, wall + at);
    }
}

fn sorted(actions: Vec<Action>) -> Vec<String> {
    let mut told: Vec<String> = actions.iter().map(Action::to_string).collect();
    told.sort();
    told
}

/// What came of a case: whether it was decided by itself.
fn check(case: &Case) -> bool {
    let mut world = world(case);
    let mut answers: Vec<Answer> = case.before.iter().map(|other| other.answer).collect();
    let last = settle(&mut world, &answers);
    let mut nodes = BTreeSet::new();
    for (n, said, answer) in &case.after {
        let facts = world.knowledge.hear(NAMES[*n], announcement(NAMES[*n], said)).expect("a node").clone();
        world.announced.hear(NAMES[*n], &facts);
        answers[*n] = *answer;
        nodes.insert(NAMES[*n].to_owned());
    }
    // They answer otherwise too.
    let keys = NAMES.iter().zip(&answers).filter_map(|(n, a)| Some((last.remotes.get(*n)?.key?, *a)));
    let answering = keys.collect();
    world.tunnels = Tunnels::default();
    hear_of(&mut world, &answering);

    let inputs = world.inputs();
    let Some(part) = Part::of(&inputs, &last, &nodes) else { return false };
    let (synced, written) = (inputs.knowledge.synced(), Endpoints::new());
    let whole = desired(&inputs);
    let actions = part.plan(synced, &written);
    // What is not about peers is the same before and after, so it is none of this.
    let all = plan(&whole, inputs.observed, synced, &written);
    let before = plan(&last, inputs.observed, synced, &written);
    let all = all.into_iter().filter(|action| !before.contains(action)).collect();
    assert_eq!(sorted(actions.clone()), sorted(all));

    let (mut wanted, mut seen) = (last, world.observed.clone());
    part.put_back(&actions, &mut wanted, &mut seen);
    // This node's own announcement, and those that were refused, are told of elsewhere.
    assert_eq!(wanted, whole);
    assert!(plan_part(&wanted, &seen, synced, &written).is_empty(), "{wanted:#?}");
    true
}

/// Everybody answers as told, and nobody says anything else.
fn check_answers(before: Vec<Other>, mode: Mode, answers: &[Answer]) {
    let was: Vec<Answer> = before.iter().map(|other| other.answer).collect();
    let mut world = world(&Case { mode, before, after: vec![] });
    let mut last = settle(&mut world, &was);
    let keys = NAMES.iter().zip(answers).filter_map(|(n, a)| Some((last.remotes.get(*n)?.key?, *a)));
    let answering = keys.collect();
    world.tunnels = Tunnels::default();
    hear_of(&mut world, &answering);

    let inputs = world.inputs();
    let whole = desired(&inputs);
    let nodes = Part::turned(&inputs, &last);
    let Some(part) = Part::of(&inputs, &last, &nodes) else { return };
    let actions = part.plan(inputs.knowledge.synced(), &Endpoints::new());
    part.put_back(&actions, &mut last, &mut world.observed.clone());
    // How long it is ago is for people.
    for (name, remote) in &mut last.remotes {
        remote.health = whole.remotes[name].health;
    }
    assert_eq!(last, whole, "{nodes:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_part_is_decided_as_the_whole_is(case in case()) {
        check(&case);
    }

    /// Who has to be looked at again is found by the answers alone.
    #[test]
    fn whose_tunnel_has_turned_is_found(case in case(), answers in prop::collection::vec(answer(), NAMES.len())) {
        check_answers(case.before, case.mode, &answers);
    }
}

fn plain(key: u8) -> Other {
    let said = Said::Key(key, 0, 51871);
    Other { said, answer: Answer::Up, families: 0, is_open: false, kept: None, bypassed: None }
}

/// What is ordinary is decided by itself; what is not, never.
#[test]
fn what_concerns_others_is_decided_as_a_whole() {
    let is_by_itself = |after: Said| {
        let before = (2..7).map(plain).collect();
        check(&Case { mode: Mode::Require, before, after: vec![(0, after, Answer::Up)] })
    };
    // The same key at another port; another key; nothing, and something false, which change nothing; another generation.
    for said in
        [Said::Key(2, 0, 4000), Said::Key(9, 0, 51871), Said::Nothing, Said::Forged, Said::Key(2, 1, 51872)]
    {
        assert!(is_by_itself(said.clone()), "{said:?}");
    }
    // This node's own key, and another's.
    for said in [Said::Key(1, 0, 51871), Said::Key(3, 0, 51871)] {
        assert!(!is_by_itself(said.clone()), "{said:?}");
    }
}

/// The tunnel's MTU is everybody's.
#[test]
fn the_first_that_is_reached_by_ipv6_concerns_all() {
    let by = |families: u8, said: Said| {
        let mut before: Vec<Other> = (2..7).map(plain).collect();
        before[0] = Other { said: Said::Nothing, families, ..plain(2) };
        check(&Case { mode: Mode::Require, before, after: vec![(0, said, Answer::Never)] })
    };
    assert!(by(1, Said::Key(2, 0, 51871)));
    assert!(!by(2, Said::Key(2, 0, 51871)));
}
