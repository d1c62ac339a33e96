use super::*;
use crate::testing::net;

fn prefixes(list: &[(&str, PrefixKind)]) -> BTreeMap<IpNet, Prefix> {
    list.iter().map(|(text, kind)| (net(text), Prefix::new(*kind, 0))).collect()
}

fn texts(ranges: &[Range]) -> Vec<String> {
    ranges.iter().map(|r| format!("{}-{}", r.first, r.last)).collect()
}

const OWN: PrefixKind = PrefixKind::LocalPods;
const OTHER: PrefixKind = PrefixKind::RemotePods;
const NOBODYS: PrefixKind = PrefixKind::UnownedPods;
const NODE: PrefixKind = PrefixKind::RemoteNode;

#[test]
fn the_longest_prefix_counts_and_neighbours_are_one() {
    let all = prefixes(&[
        ("10.244.0.0/16", NOBODYS),
        ("10.244.1.0/24", OWN),
        ("10.244.2.0/24", OTHER),
        ("10.244.2.7/32", NODE),
        ("10.245.0.0/24", OTHER),
        ("192.0.2.2/32", NODE),
        ("fd00:244::/32", NOBODYS),
        ("fd00:244:1::/64", OWN),
    ]);
    assert_eq!(
        texts(&remote(&all)),
        [
            "10.244.0.0-10.244.0.255",
            "10.244.2.0-10.244.2.6",
            "10.244.2.8-10.245.0.255",
            "fd00:244::-fd00:244:0:ffff:ffff:ffff:ffff:ffff",
            "fd00:244:1:1::-fd00:244:ffff:ffff:ffff:ffff:ffff:ffff",
        ]
    );
}

#[test]
fn the_ends_of_the_space_are_no_exception() {
    let all = prefixes(&[
        ("0.0.0.0/0", NOBODYS),
        ("0.0.0.0/32", OWN),
        ("255.255.255.255/32", OWN),
        ("::/0", NOBODYS),
        ("::/128", OWN),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", OWN),
    ]);
    assert_eq!(
        texts(&remote(&all)),
        ["0.0.0.1-255.255.255.254", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"]
    );
    assert_eq!(texts(&remote(&prefixes(&[("::/0", OTHER)]))).len(), 1);
}

/// Every address of a small space against the look-up itself. The prefixes are all there are of some lengths, chosen by
/// the bits of a number that no two rounds share.
#[test]
fn ranges_say_what_the_trie_says() {
    let mut state = 0x9e37_79b9_u64;
    for _ in 0..200 {
        let mut list = BTreeMap::new();
        for length in 24..=32_u8 {
            for slot in 0..1_u32 << (length - 24) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let kind = [OWN, OTHER, NOBODYS, NODE][(state >> 60) as usize & 3];
                let is_in = state >> 33 & 0xff < 256 >> (length - 24);
                if is_in {
                    let address = Ipv4Addr::from(0x0af4_0000 | slot << (32 - length));
                    let net = IpNet::new(address.into(), length).expect("a prefix");
                    list.insert(net, Prefix::new(kind, 0));
                }
            }
        }
        let ranges = remote(&list);
        for pair in ranges.windows(2) {
            assert!(number(pair[0].last) + 1 < number(pair[1].first), "{pair:?} touch");
        }
        for host in 0..=255_u32 {
            let address: IpAddr = Ipv4Addr::from(0x0af4_0000 | host).into();
            let longest =
                list.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
            let expected = longest.is_some_and(|(_, p)| [OTHER, NOBODYS].contains(&p.kind));
            let found = ranges.iter().any(|r| (r.first..=r.last).contains(&address));
            assert_eq!(found, expected, "{address} among {list:?}");
        }
    }
}

fn desired(choice: Choice) -> Desired {
    Desired {
        backstop: choice,
        prefixes: prefixes(&[("10.244.1.0/24", OWN), ("10.244.2.0/24", OTHER)]),
        ..Desired::default()
    }
}

fn datapath() -> Datapath {
    Datapath {
        prefixes: desired(Choice::Auto).prefixes,
        devices: [(2, DeviceKind::Underlay)].into(),
        ..Datapath::default()
    }
}

fn refusing(forms: &[Form]) -> Standing {
    Standing { refused: forms.iter().map(|form| (*form, "no".to_owned())).collect(), ..Standing::default() }
}

#[test]
fn the_program_comes_first_and_nftables_where_it_is_refused() {
    let plan = |choice, standing: &Standing| actions(&desired(choice), standing, &datapath(), &[]);
    let raised = |actions: Vec<Action>| match &actions[..] {
        [Action::RaiseBackstop(backstop)] => Some(backstop.form()),
        _ => None,
    };
    let only = Choice::Only;
    assert_eq!(raised(plan(Choice::Auto, &refusing(&[]))), Some(Form::Bpf));
    assert_eq!(raised(plan(Choice::Auto, &refusing(&[Form::Bpf]))), Some(Form::Nftables));
    assert_eq!(raised(plan(only(Form::Nftables), &refusing(&[]))), Some(Form::Nftables));
    for (choice, standing) in [
        (Choice::Auto, refusing(&[Form::Bpf, Form::Nftables])),
        (only(Form::Bpf), refusing(&[Form::Bpf])),
        (only(Form::Nftables), refusing(&[Form::Nftables])),
    ] {
        assert_eq!(plan(choice, &standing), []);
        assert_eq!(problems(choice, &standing).len(), 1);
    }
    assert_eq!(problems(Choice::Auto, &refusing(&[Form::Bpf])), []);
}

#[test]
fn one_goes_only_when_the_other_is_seen_to_stand() {
    let rules = rules(&desired(Choice::Auto), &datapath(), &[]);
    let old = Standing { nftables: Some(rules.clone()), ..Standing::default() };
    let raise = Action::RaiseBackstop(Backstop::Bpf);
    assert_eq!(actions(&desired(Choice::Auto), &old, &datapath(), &[]), std::slice::from_ref(&raise));
    let outdated = Standing { bpf: true, ..old.clone() };
    assert_eq!(actions(&desired(Choice::Auto), &outdated, &datapath(), &[]), [raise]);
    let both = Standing { bpf: true, is_current: true, ..old };
    let remove = Action::RemoveBackstop;
    assert_eq!(actions(&desired(Choice::Auto), &both, &datapath(), &[]), [remove(Form::Nftables)]);
    let nftables = desired(Choice::Only(Form::Nftables));
    assert_eq!(actions(&nftables, &both, &datapath(), &[]), [remove(Form::Bpf)]);
}

/// The rules are those of the maps as they will be, not of what is desired: what is not known to be gone stays closed.
#[test]
fn rules_follow_the_maps() {
    let planned = [
        Action::PutPrefix(net("10.244.3.0/24"), Prefix::new(OTHER, 1)),
        Action::PutDevice(7, DeviceKind::Tunnel),
        Action::RemoveDevice(2),
    ];
    let rules = rules(&Desired::default(), &datapath(), &planned);
    assert_eq!(texts(&rules.remote), ["10.244.2.0-10.244.3.255"]);
    assert_eq!((rules.guarded, rules.tunnels), ([7].into(), [7].into()));
    assert_eq!(rules.mode, Mode::Require);
}

/// It knows no pod from another: what policies require of some it requires of all, but where the mesh has nothing steered.
#[test]
fn rules_are_as_strict_as_the_strictest_policy() {
    for (mesh, unknown, expected) in [
        (Mode::Require, Asked::Mesh, Mode::Require),
        (Mode::Prefer, Asked::Mesh, Mode::Prefer),
        (Mode::Observe, Asked::Mesh, Mode::Observe),
        (Mode::Require, Asked::Require, Mode::Require),
        (Mode::Prefer, Asked::Require, Mode::Require),
        (Mode::Observe, Asked::Require, Mode::Observe),
    ] {
        let config = Config { mode: mesh as u32, unknown: unknown as u32, ..Config::default() };
        let desired = Desired { config, ..Desired::default() };
        assert_eq!(rules(&desired, &datapath(), &[]).mode, expected, "{mesh:?}, {unknown:?}");
    }
}

#[test]
fn a_node_that_does_not_know_its_own_pods_is_not_cut_off_from_them() {
    let mut desired = desired(Choice::Auto);
    desired.prefixes.retain(|_, prefix| prefix.kind != OWN);
    let empty = Datapath::default();
    assert_eq!(actions(&desired, &Standing::default(), &empty, &[]), []);
    // What stands is brought up to date all the same.
    let old = Standing { bpf: true, ..Standing::default() };
    assert_eq!(actions(&desired, &old, &empty, &[]).len(), 1);
    assert_eq!(actions(&desired, &Standing::default(), &datapath(), &[]).len(), 1);
}

#[test]
fn what_a_person_should_know_is_told() {
    let told = |standing: Standing| {
        problems(Choice::Auto, &standing).iter().map(|p| p.message.clone()).collect::<String>()
    };
    let stands = Standing { bpf: true, is_current: true, ..Standing::default() };
    assert_eq!(told(stands.clone()), "");
    assert!(told(Standing { unseen: Some("no".to_owned()), ..stands.clone() }).ends_with("looked at: no"));
    assert!(told(Standing { lost: [Form::Bpf].into(), ..stands.clone() }).contains("pins"));
    assert!(told(Standing { lost: [Form::Nftables].into(), ..stands }).contains("inet kubeveil"));
}
