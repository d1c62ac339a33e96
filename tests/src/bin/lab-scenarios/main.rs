//! `lab-scenarios [FILTER] [--list]`: the leak tests, on the real kernel.
//!
//! Each plays on a stage that showed first, in the same capture, that it would see a leak. Scenarios
//! that leave the cluster as they found it share one stage, the others lay their own.

#![expect(clippy::print_stdout, reason = "a test runner's output is the point of it")]

mod adoption;
mod backstop;
mod by_hand;
mod bypass;
mod control;
mod crashes;
mod devices;
mod disk;
mod excluded;
mod explained;
mod firewall;
mod forgery;
mod kernel;
mod killed;
mod membership;
mod modes;
mod mtu;
mod neighbours;
mod newcomers;
mod operations;
mod origins;
mod overlays;
mod paths;
mod policies;
mod probe;
mod refusals;
mod rotation;
mod services;
mod share;
mod stopped;
mod support;
mod turns;
mod upgrades;
mod wire;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use kubeveil_tests::address::Families;
use kubeveil_tests::lab::{self, Mode, Overlay, Spec};
use kubeveil_tests::missing::Missing;
use kubeveil_tests::stage::{Inconclusive, Stage};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One scenario.
struct Scenario {
    name: &'static str,
    spec: Spec,
    /// It leaves all tunnels proven and everything as it was.
    shares: bool,
    /// It needs neither WireGuard nor a daemon.
    bare: bool,
    /// It sets the machine's clock.
    sets_clock: bool,
    /// About what it takes on the emulated kernel; by it only the shares are made even.
    seconds: u32,
    act: fn(&mut Stage) -> Result<()>,
}

impl Scenario {
    /// Three nodes of both families, that encrypt or drop.
    const fn new(name: &'static str, act: fn(&mut Stage) -> Result<()>) -> Self {
        let spec = Spec { nodes: 3, mode: Mode::Require, families: Families::Dual, overlay: Overlay::None };
        Self { name, spec, shares: false, bare: false, sets_clock: false, seconds: 20, act }
    }

    /// On the stage that others use too, with all daemons started and all tunnels proven.
    const fn shared(mut self) -> Self {
        self.shares = true;
        self
    }

    const fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    const fn sets_clock(mut self) -> Self {
        self.sets_clock = true;
        self
    }

    const fn takes(mut self, seconds: u32) -> Self {
        self.seconds = seconds;
        self
    }

    const fn mode(mut self, mode: Mode) -> Self {
        self.spec.mode = mode;
        self
    }

    const fn families(mut self, families: Families) -> Self {
        self.spec.families = families;
        self
    }

    const fn overlay(mut self, overlay: Overlay) -> Self {
        self.spec.overlay = overlay;
        self
    }

    const fn nodes(mut self, nodes: u8) -> Self {
        self.spec.nodes = nodes;
        self
    }
}

/// The stage of those that share one.
type Standing = Arc<Mutex<Option<Stage>>>;

/// A scenario whose machine lost packets itself is played this often before it counts as failed.
const TRIES: u32 = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: each has the one CPU for itself, and the names of namespaces.
    arguments.test_threads = Some(1);
    let missing = if arguments.list { Missing::default() } else { Missing::look() };
    if !arguments.list
        && missing.root.is_none()
        && let Err(error) = lab::make_private()
    {
        eprintln!("lab-scenarios: {error:#}");
        return ExitCode::FAILURE;
    }
    let standing = Standing::default();
    let all = [
        control::ALL,
        wire::ALL,
        services::ALL,
        refusals::ALL,
        forgery::ALL,
        membership::ALL,
        crashes::ALL,
        operations::ALL,
        origins::ALL,
        newcomers::ALL,
        upgrades::ALL,
        overlays::ALL,
        mtu::ALL,
        paths::ALL,
        probe::ALL,
        modes::ALL,
        policies::ALL,
        explained::ALL,
        adoption::ALL,
        bypass::ALL,
        excluded::ALL,
        by_hand::ALL,
        disk::ALL,
        rotation::ALL,
        rotation::amid::ALL,
        stopped::ALL,
        turns::ALL,
        killed::ALL,
        kernel::ALL,
        backstop::ALL,
        devices::ALL,
        neighbours::ALL,
        firewall::ALL,
    ];
    let all: Vec<&Scenario> = all.into_iter().flatten().collect();
    let share = match share::Share::asked() {
        Ok(share) => share.takes(&all.iter().map(|scenario| scenario.seconds).collect::<Vec<_>>()),
        Err(error) => {
            eprintln!("lab-scenarios: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let chosen = all.into_iter().zip(share).filter(|(_, is_taken)| *is_taken);
    let lacks = |scenario: &Scenario| missing.of(scenario.bare, scenario.sets_clock);
    let trials = chosen.map(|(scenario, _)| trial(scenario, &standing, lacks(scenario))).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = take(&standing).map_or(Ok(()), Stage::strike);
    if let Err(error) = &left {
        eprintln!("lab-scenarios: {error:#}");
    }
    if left.is_err() || conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn trial(scenario: &'static Scenario, standing: &Standing, missing: Option<String>) -> Trial {
    let standing = Arc::clone(standing);
    Trial::ignorable_test(scenario.name, move || {
        if let Some(reason) = missing {
            eprintln!("skipped: {} ({reason})", scenario.name);
            return Ok(Completion::ignored_with(reason));
        }
        let start = Instant::now();
        let outcome = play(scenario, &standing);
        // Where the harness writes: another stream would come in between.
        print!("({:.1} s) ", start.elapsed().as_secs_f64());
        outcome.map(|()| Completion::Completed).map_err(|error| {
            // At once, too: a run that is ended early never comes to its list of failures.
            eprintln!("\n{error:#}");
            Failed::from(format!("{error:#}"))
        })
    })
}

fn play(scenario: &Scenario, standing: &Standing) -> Result<()> {
    let mut tries = 1;
    loop {
        let outcome =
            if scenario.shares { on_standing(scenario, standing) } else { on_own(scenario, standing) };
        let Err(error) = outcome else { return Ok(()) };
        let again = tries < TRIES && error.chain().any(|cause| cause.is::<Inconclusive>());
        if !again {
            return Err(error);
        }
        eprintln!("{}: {error:#}; once more", scenario.name);
        tries += 1;
    }
}

fn on_own(scenario: &Scenario, standing: &Standing) -> Result<()> {
    // The names are taken while another lab stands.
    take(standing).map_or(Ok(()), Stage::strike)?;
    let mut stage = Stage::set(scenario.spec)?;
    let outcome = (scenario.act)(&mut stage).and_then(|()| stage.verdict());
    if outcome.is_err() {
        support::keep_logs(&stage, scenario.name);
    }
    let struck = stage.strike();
    outcome.and(struck)
}

fn on_standing(scenario: &Scenario, standing: &Standing) -> Result<()> {
    let mut stage = match take(standing) {
        Some(stage) => stage,
        None => {
            let mut stage = Stage::set(scenario.spec)?;
            stage.start().inspect_err(|_| support::keep_logs(&stage, scenario.name))?;
            stage
        }
    };
    let outcome = (scenario.act)(&mut stage).and_then(|()| stage.verdict());
    if outcome.is_ok() {
        *standing.lock().unwrap_or_else(PoisonError::into_inner) = Some(stage);
        return outcome;
    }
    // What it left is nobody's ground.
    support::keep_logs(&stage, scenario.name);
    outcome.and(stage.strike())
}

fn take(standing: &Standing) -> Option<Stage> {
    standing.lock().unwrap_or_else(PoisonError::into_inner).take()
}
