//! What holds where no program stands at a device.

use kubeveil_abi::DeviceKind;
use kubeveil_core::{
    action::Action,
    backstop::{Choice, Form},
    observed::Link,
};

use super::bench::Bench;

/// A device counts as guarded when its programs are seen to stand, and the backstop comes after all that it goes by.
#[test]
fn it_comes_after_what_it_goes_by() {
    let (bench, _node) = Bench::settled(2);
    let tried = bench.tried();
    let first = |wanted: fn(&Action) -> bool| tried.iter().position(wanted).expect("tried");
    let last = |wanted: fn(&Action) -> bool| tried.iter().rposition(wanted).expect("tried");
    let raised = first(|a| matches!(a, Action::RaiseBackstop(_)));
    assert!(last(|a| matches!(a, Action::PutPrefix(..) | Action::SetConfig(_))) < raised, "{tried:#?}");
    let attached = last(|a| matches!(a, Action::Attach(hook) if hook.1 == 1));
    assert!(attached < first(|a| matches!(a, Action::PutDevice(1, DeviceKind::Underlay))), "{tried:#?}");
    assert_eq!(bench.truth().backstop.in_force(), Some(Form::Bpf));
}

/// Attaching fails: to the backstop the device is one that nobody guards.
#[test]
fn a_device_that_can_not_be_guarded_is_none_that_is() {
    let (mut bench, mut node) = Bench::settled(2);
    let second = Link { name: "eth1".to_owned(), up: true, mtu: 1500, ..Link::default() };
    let index = bench.kernel.with(|k| k.add_link(second));
    bench.kernel.with(|k| {
        k.fail(move |action| matches!(action, Action::Attach(hook) if hook.1 == index).then_some(12))
    });
    node.pass(super::bench::FIRST);
    let devices = || bench.truth().datapath.expect("loaded").devices;
    assert!(!devices().contains_key(&index), "{:?}", devices());
    bench.kernel.with(kubeveil_linux::fake::FakeKernel::heal);
    bench.settle(&mut node);
    assert_eq!(bench.truth().datapath.expect("loaded").devices.get(&index), Some(&DeviceKind::Underlay));
}

#[test]
fn a_kernel_without_the_program_gets_the_table() {
    let mut bench = Bench::new(2);
    bench.kernel.with(|k| k.refuse_backstop(Form::Bpf, "it is too old"));
    let mut node = bench.start();
    bench.settle(&mut node);
    let standing = bench.truth().backstop;
    assert_eq!(standing.in_force(), Some(Form::Nftables));
    assert_eq!(node.last.problems, []);
    let rules = standing.nftables.expect("rules");
    let datapath = bench.truth().datapath.expect("loaded");
    assert!(rules.guarded.iter().eq(datapath.devices.keys()), "{rules:?}");
    assert_eq!(rules.tunnels.len(), 1);
    // Nothing is left to do, nor for a daemon that finds it; it only tries what the other has tried.
    bench.tried();
    let mut again = bench.restart(node);
    bench.settle(&mut again);
    let tried = bench.tried();
    assert!(tried.iter().all(|a| matches!(a, Action::LoadPrograms | Action::RaiseBackstop(_))), "{tried:?}");
    assert_eq!(bench.settle(&mut again), 0);
}

#[test]
fn a_kernel_without_any_is_told_and_no_reason_to_fail() {
    let mut bench = Bench::new(2);
    bench
        .kernel
        .with(|k| [Form::Bpf, Form::Nftables].map(|form| k.refuse_backstop(form, "it is not built in")));
    let mut node = bench.start();
    bench.settle(&mut node);
    assert_eq!(bench.tunnelled(), 1);
    let problem = node.last.problems.first().expect("a problem");
    assert!(problem.object == "backstop" && problem.message.contains("it is not built in"), "{problem}");
    assert_eq!(bench.settle(&mut node), 0);
}

#[test]
fn a_table_that_somebody_flushed_is_raised_again_and_told() {
    let mut bench = Bench::new(2);
    let mut node = bench.start();
    node.backstop = Choice::Only(Form::Nftables);
    bench.settle(&mut node);
    bench.tried();
    bench.kernel.with(|k| k.flush_nftables());
    bench.settle(&mut node);
    assert!(matches!(bench.tried()[..], [Action::RaiseBackstop(_)]));
    assert_eq!(bench.truth().backstop.in_force(), Some(Form::Nftables));
    assert!(node.last.problems.iter().any(|p| p.message.contains("took")), "{:?}", node.last.problems);
}
