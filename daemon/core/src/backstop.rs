//! The backstop: what keeps a packet for a remote pod from leaving by a device at which no program of ours stands.
//!
//! Its first form is a netfilter program over the datapath's own maps. Where the kernel can't have that, nftables
//! does, which has to be told what the maps say ([`Rules`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use kubeveil_abi::{Asked, Config, DeviceKind, Mode, PrefixKind};

use crate::{
    action::Action,
    desired::Desired,
    observed::{Datapath, Prefix},
    problem::{Problem, ProblemKind},
};

/// Which form the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The program, and nftables where the kernel refuses that.
    #[default]
    Auto,
    /// This one or none.
    Only(Form),
}

/// A form of the backstop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// A netfilter program.
    Bpf,
    /// A table of nftables.
    Nftables,
}

impl Form {
    /// As the status and the command line say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Nftables => "nftables",
        }
    }
}

/// A form with what it has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backstop {
    /// It reads the maps.
    Bpf,
    /// It does not.
    Nftables(Rules),
}

impl Backstop {
    /// Which form.
    pub const fn form(&self) -> Form {
        match self {
            Self::Bpf => Form::Bpf,
            Self::Nftables(_) => Form::Nftables,
        }
    }
}

/// What nftables goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What becomes of a packet.
    pub mode: Mode,
    /// Devices that packets may leave by, by ifindex.
    pub guarded: BTreeSet<u32>,
    /// Those of them that are tunnels.
    pub tunnels: BTreeSet<u32>,
    /// Addresses of other nodes' pods, and of those that nobody owns.
    pub remote: Vec<Range>,
}

/// First and last address of a range, both of one family. A list of them rises, IPv4 first, and no two touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
}

/// The backstop in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// A program of ours is linked, for both families.
    pub bpf: bool,
    /// It is that of the build that we bring.
    pub is_current: bool,
    /// The rules of our table, if it is as we write it.
    pub nftables: Option<Rules>,
    /// Forms that stood and that somebody else took away, or changed, a short while ago.
    pub lost: BTreeSet<Form>,
    /// Why it could not be looked at; all else is then as it was when it last could.
    pub unseen: Option<String>,
    /// Why this kernel can't have a form, for those that were tried and refused.
    pub refused: BTreeMap<Form, String>,
}

impl Standing {
    /// The form that holds now.
    pub fn in_force(&self) -> Option<Form> {
        if self.bpf { Some(Form::Bpf) } else { self.nftables.as_ref().map(|_| Form::Nftables) }
    }

    /// The form that can be had; `None` if each that may be tried was refused.
    fn best(&self, choice: Choice) -> Option<Form> {
        let can = |form: &Form| !self.refused.contains_key(form);
        match choice {
            Choice::Auto => [Form::Bpf, Form::Nftables].into_iter().find(can),
            Choice::Only(form) => Some(form).filter(can),
        }
    }
}

/// The steps that are left, given those that are planned for prefixes and devices already.
///
/// Before this node's own pods are known nothing is raised that was not there: to the backstop they would be pods that
/// nobody owns, and the node would be cut off from its own pods. So the program, which reads the maps, also waits until
/// they are seen there: a write that is planned may fail.
pub(crate) fn actions(
    desired: &Desired,
    standing: &Standing,
    datapath: &Datapath,
    planned: &[Action],
) -> Vec<Action> {
    let mut actions = Vec::new();
    let Some(form) = standing.best(desired.backstop) else {
        return actions;
    };
    let is_own = |prefix: &Prefix| prefix.kind == PrefixKind::LocalPods;
    let knows_own = desired.prefixes.values().chain(datapath.prefixes.values()).any(is_own);
    let stands = match form {
        Form::Bpf => {
            let stands = standing.bpf && standing.is_current;
            let mut own = desired.prefixes.iter().filter(|(_, prefix)| is_own(prefix));
            let sees_own = own.all(|(net, prefix)| datapath.prefixes.get(net) == Some(prefix));
            if !stands && sees_own && (knows_own || standing.bpf) {
                actions.push(Action::RaiseBackstop(Backstop::Bpf));
            }
            stands
        }
        Form::Nftables => {
            let rules = rules(desired, datapath, planned);
            let stands = standing.nftables.as_ref() == Some(&rules);
            if !stands && (knows_own || standing.nftables.is_some()) {
                actions.push(Action::RaiseBackstop(Backstop::Nftables(rules)));
            }
            stands
        }
    };
    // The other one goes when this one is seen to stand.
    let other = match form {
        Form::Bpf => standing.nftables.as_ref().map(|_| Form::Nftables),
        Form::Nftables => standing.bpf.then_some(Form::Bpf),
    };
    actions.extend(other.filter(|_| stands).map(Action::RemoveBackstop));
    actions
}

/// What the maps will say when all that is planned is done.
fn rules(desired: &Desired, datapath: &Datapath, planned: &[Action]) -> Rules {
    let (mut prefixes, mut devices) = (datapath.prefixes.clone(), datapath.devices.clone());
    for action in planned {
        match action {
            Action::PutPrefix(net, prefix) => drop(prefixes.insert(*net, *prefix)),
            Action::RemovePrefix(net) => drop(prefixes.remove(net)),
            Action::PutDevice(index, kind) => drop(devices.insert(*index, *kind)),
            Action::RemoveDevice(index) => drop(devices.remove(index)),
            _ => {}
        }
    }
    let tunnels = devices.iter().filter(|(_, kind)| **kind == DeviceKind::Tunnel).map(|(index, _)| *index);
    Rules {
        mode: mode(desired.config),
        tunnels: tunnels.collect(),
        guarded: devices.keys().copied().collect(),
        remote: remote(&prefixes),
    }
}

/// nftables knows no pod from another: where policies ask for more of some, it asks for that of all.
const fn mode(config: Config) -> Mode {
    match (Mode::from_raw(config.mode), Asked::from_raw(config.unknown)) {
        (Mode::Prefer, Asked::Require) => Mode::Require,
        (mode, _) => mode,
    }
}

/// Where the longest prefix that holds an address is a remote pod's or nobody's.
pub fn remote(prefixes: &BTreeMap<IpNet, Prefix>) -> Vec<Range> {
    let is_remote = |prefix: &Prefix| match prefix.kind {
        PrefixKind::RemotePods | PrefixKind::UnownedPods => true,
        PrefixKind::LocalPods | PrefixKind::LocalNode | PrefixKind::RemoteNode => false,
    };
    let mut sweep = [Sweep::default(), Sweep::default()];
    let mut sorted: Vec<_> = prefixes.iter().collect();
    // A prefix comes before those within it.
    sorted.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
    for (net, prefix) in sorted {
        let family = &mut sweep[usize::from(net.network().is_ipv6())];
        family.enter(number(net.network()), number(net.broadcast()), is_remote(prefix));
    }
    let [v4, v6] = sweep.map(Sweep::finish);
    let v4 = v4.into_iter().map(|(first, last)| Range { first: v4_of(first), last: v4_of(last) });
    let v6 = v6.into_iter().map(|(first, last)| Range { first: v6_of(first), last: v6_of(last) });
    v4.chain(v6).collect()
}

/// Goes over nested prefixes in the order of their first addresses.
#[derive(Default)]
struct Sweep {
    /// Those that hold the place reached: last address, and whether they are wanted.
    open: Vec<(u128, bool)>,
    /// What comes before it is done with; `None`: everything is.
    at: Option<u128>,
    ranges: Vec<(u128, u128)>,
}

impl Sweep {
    fn enter(&mut self, first: u128, last: u128, wanted: bool) {
        self.leave_until(first);
        if let (Some((_, true)), Some(before)) = (self.open.last(), first.checked_sub(1)) {
            self.emit(before);
        }
        self.at = Some(first);
        self.open.push((last, wanted));
    }

    /// Closes what ends before `place`.
    fn leave_until(&mut self, place: u128) {
        while let Some((last, wanted)) = self.open.pop_if(|(last, _)| *last < place) {
            self.leave(last, wanted);
        }
    }

    fn leave(&mut self, last: u128, wanted: bool) {
        if wanted {
            self.emit(last);
        }
        self.at = last.checked_add(1);
    }

    /// From the place reached to `last`.
    fn emit(&mut self, last: u128) {
        let Some(first) = self.at.filter(|first| *first <= last) else { return };
        match self.ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
            _ => self.ranges.push((first, last)),
        }
    }

    fn finish(mut self) -> Vec<(u128, u128)> {
        while let Some((last, wanted)) = self.open.pop() {
            self.leave(last, wanted);
        }
        self.ranges
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn v4_of(number: u128) -> IpAddr {
    Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into()
}

fn v6_of(number: u128) -> IpAddr {
    Ipv6Addr::from(number).into()
}

/// What a person should know of it.
pub fn problems(choice: Choice, standing: &Standing) -> Vec<Problem> {
    let problem = |message: String, advice: &str| Problem {
        kind: ProblemKind::Kernel,
        object: "backstop".to_owned(),
        field: String::new(),
        message,
        advice: advice.to_owned(),
    };
    let mut problems = Vec::new();
    if let Some(why) = &standing.unseen {
        problems.push(problem(
            format!("it can't be looked at: {why}"),
            "It is tried again; what stood goes on holding",
        ));
    }
    if standing.lost.contains(&Form::Bpf) {
        problems.push(problem(
            "somebody removed the pins of its netfilter program; it was linked anew".to_owned(),
            "Until then pod traffic by devices that nobody guards was not held back. Find out who removes files below --bpf-dir",
        ));
    }
    if standing.lost.contains(&Form::Nftables) {
        problems.push(problem(
            "somebody took the nftables table `inet kubeveil` away, or changed it; it was written anew".to_owned(),
            "Until then pod traffic by devices that nobody guards was not held back. `nft flush ruleset` does that: let the firewall's reload replace its own tables only, or use a kernel that has the netfilter program (6.4 or later, with BTF)",
        ));
    }
    if standing.in_force().is_none() && standing.best(choice).is_none() {
        let why: Vec<String> =
            standing.refused.iter().map(|(form, why)| format!("{}: {why}", form.name())).collect();
        problems.push(problem(
            format!("there is none on this node ({})", why.join("; ")),
            "A packet for a remote pod that leaves by a device that kubeveil does not guard travels in plain. Linux 6.4 or later with BTF, or nf_tables (`modprobe nf_tables`), mends it; then restart kubeveild. Till then name every device that leads to other nodes with --underlay",
        ));
    }
    problems
}

#[cfg(test)]
mod tests;
