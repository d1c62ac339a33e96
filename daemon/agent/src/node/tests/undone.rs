//! Somebody else changes what holds packets back, of which the kernel tells nobody.

use std::time::Duration;

use kubeveil_abi::{DeviceKind, Mode, PeerValue, PrefixKind};
use kubeveil_core::{
    observed::{Datapath, Link, Program},
    problem::Problem,
};
use kubeveil_linux::fake::{Call, Failure, FakeKernel};

use super::bench::{Bench, DEVICE};
use crate::node::{Now, undone::OBJECT};

type Deed = fn(&mut FakeKernel);

fn maps(fake: &mut FakeKernel, change: impl FnOnce(&mut Datapath)) {
    fake.tamper_maps(change);
}

fn called_our_own(maps: &mut Datapath) {
    let net = "10.244.2.0/24".parse().expect("net");
    maps.prefixes.get_mut(&net).expect("node-2's pods").kind = PrefixKind::LocalPods;
}

/// Each of them, and what is told to be put back.
const DEEDS: [(Deed, &str); 11] = [
    (|k| k.tamper(DEVICE, |tunnel| tunnel.sysctls_right = false), "set sysctls"),
    (|k| maps(k, |d| d.config.mode = Mode::Observe as u32), "set the configuration"),
    (|k| maps(k, |d| d.prefixes.clear()), "put prefix"),
    (|k| maps(k, called_our_own), "put prefix 10.244.2.0/24"),
    (|k| maps(k, |d| d.peers.clear()), "set peer"),
    (|k| maps(k, |d| d.peers.extend([(77, PeerValue::adopting(u32::MAX))])), "set peer 77"),
    (|k| maps(k, |d| d.slots[0] = 1), "point slot 0"),
    (|k| maps(k, |d| d.devices.clear()), "put device"),
    (|k| k.tamper_hook(&(Program::Steer, 1)), "attach"),
    (|k| k.tamper_hook(&(Program::Guard, 1)), "attach"),
    (|k| maps(k, |d| d.unpinned = ["maps/PEERS".to_owned()].into()), "pin again"),
];

#[test]
fn what_somebody_else_undid_is_seen_put_back_and_told() {
    for (number, (deed, told)) in DEEDS.iter().enumerate() {
        let (mut bench, mut node) = Bench::settled(3);
        let before = bench.truth();
        assert!(!node.is_touched(), "{number}");
        bench.kernel.with(deed);
        assert_ne!(bench.truth(), before, "{number}: it changes something");
        assert!(node.is_touched(), "{number}: seen at a glance");
        // Also where somebody asked for the status first.
        let at = Duration::from_secs(bench.seconds);
        node.look(Now { monotonic: at, epoch: at });
        assert!(node.is_touched(), "{number}: seen after a look");
        bench.settle(&mut node);
        assert!(!node.is_touched(), "{number}: over");
        assert_eq!(bench.truth().datapath, before.datapath, "{number}: put back");
        assert!(bench.truth().tunnels[DEVICE].sysctls_right, "{number}: put back");
        let problems: Vec<_> = node.last.problems.iter().filter(|p| p.object == OBJECT).collect();
        assert!(problems.len() == 1 && problems[0].message.contains(told), "{number}: {problems:?}");
        for _ in 0..3 {
            bench.settle(&mut node);
        }
        assert_eq!(node.last.problems, [], "{number}: told for a while only");
    }
}

fn bridge() -> Link {
    Link { name: "cni0".to_owned(), kind: Some("bridge".to_owned()), ..Link::default() }
}

/// A device that nobody guards is not opened to the backstop by an entry that we never made.
#[test]
fn an_entry_that_is_not_ours_is_taken_out() {
    let (mut bench, mut node) = Bench::settled(2);
    let strange = bench.kernel.with(|k| {
        let index = k.add_link(bridge());
        maps(k, |d| d.devices.extend([(index, DeviceKind::Underlay)]));
        index
    });
    assert!(node.is_touched());
    bench.settle(&mut node);
    assert!(!bench.truth().datapath.expect("maps").devices.contains_key(&strange));
}

#[test]
fn what_the_cluster_wants_otherwise_is_nobodys_deed() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.world.change(|said| drop(said.snapshot.nodes.remove("node-3")));
    bench.settle(&mut node);
    bench.kernel.with(|k| k.add_link(bridge()));
    bench.settle(&mut node);
    let eth0 = bench.truth().links.remove(&1).expect("eth0");
    bench.kernel.with(|k| {
        k.delete_link("eth0");
        k.add_link(eth0);
    });
    bench.settle(&mut node);
    assert_eq!(node.last.problems, []);
    assert!(!node.is_touched());
}

/// It is tried again as anything that fails is, and not twice a second.
#[test]
fn a_kernel_that_can_not_be_seen_is_left_to_the_next_try() {
    let (mut bench, mut node) = Bench::settled(2);
    bench.kernel.with(|kernel| {
        kernel.fail_calls(|call| {
            let errno = rustix::io::Errno::NOBUFS.raw_os_error();
            matches!(call, Call::Observe).then_some(Failure { errno, is_done: false })
        });
    });
    assert!(node.is_touched(), "that is news");
    bench.seconds += 1;
    node.pass(bench.now());
    assert!(!node.is_touched(), "it is known, and when it is tried again");
    bench.kernel.with(FakeKernel::heal);
    bench.settle(&mut node);
    assert!(!node.is_touched());
}

/// A device that goes while the daemon is at work makes its steps fail, and the way round ends half done: it is told all the same.
#[test]
fn a_device_that_goes_in_the_midst_is_told() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.wants(1);
    bench.kernel.with(|k| k.fail(|_| Some(19)));
    bench.seconds += 1;
    node.pass(bench.now());
    assert!(!node.last.settled, "its steps fail");
    let is_told = |node: &crate::node::Node<_>| node.last.problems.iter().any(|p| p.object == OBJECT);
    bench.seconds += 1;
    node.pass(bench.now());
    assert!(!is_told(&node), "nobody did anything");
    bench.kernel.with(|k| k.delete_link(DEVICE));
    bench.kernel.with(FakeKernel::heal);
    bench.settle(&mut node);
    assert!(is_told(&node), "{:?}", node.last.problems);
}

fn delete(k: &mut FakeKernel) {
    k.delete_link(DEVICE);
}

/// The way round has looked, has something to do, and looks again.
#[test]
fn a_device_that_goes_between_two_looks_is_told() {
    for looks in 0..2 {
        let (mut bench, mut node) = Bench::settled(3);
        bench.kernel.with(|k| {
            maps(k, |d| d.devices.clear());
            k.meanwhile(looks, delete);
        });
        bench.settle(&mut node);
        let told = |p: &Problem| p.object == OBJECT && p.message.contains("create WireGuard device");
        assert!(node.last.problems.iter().any(told), "after {looks} looks: {:?}", node.last.problems);
    }
}

/// It is looked at while it goes: links are listed with it, and WireGuard is asked without.
#[test]
fn a_device_that_goes_while_it_is_looked_at_is_told() {
    for has_work in [false, true] {
        for looks in 0..2 {
            let (mut bench, mut node) = Bench::settled(3);
            bench.kernel.with(|k| {
                if has_work {
                    maps(k, |d| d.devices.clear());
                }
                k.meanwhile(looks, |k| {
                    k.is_going(DEVICE);
                    k.meanwhile(0, delete);
                });
            });
            for _ in 0..3 {
                bench.seconds += 1;
                node.pass(bench.now());
            }
            bench.settle(&mut node);
            let told = |p: &Problem| p.object == OBJECT && p.message.contains("create WireGuard device");
            let is_told = node.last.problems.iter().any(told);
            assert!(is_told, "{has_work}, after {looks} looks: {:?}", node.last.problems);
        }
    }
}

/// A way round that could not even look has forgotten nothing.
#[test]
fn a_device_that_goes_while_nothing_can_be_seen_is_told() {
    let (mut bench, mut node) = Bench::settled(3);
    bench.kernel.with(|k| {
        k.fail_calls(|call| matches!(call, Call::Observe).then_some(Failure { errno: 105, is_done: false }));
    });
    for _ in 0..2 {
        bench.seconds += 1;
        node.pass(bench.now());
    }
    bench.kernel.with(|k| {
        delete(k);
        k.heal();
    });
    bench.settle(&mut node);
    assert!(node.last.problems.iter().any(|p| p.object == OBJECT), "{:?}", node.last.problems);
}
