//! `lab-matrix [GROUND…]`: the matrix of conditions in real packets, on real devices of this kernel.
//!
//! On each ground every kind of packet is sent on every way that the ground has: with nothing in force, which has to
//! show it in plain; with all tunnels proven; and with none. What becomes of it, and what is counted for it, must be what
//! `conditions::fate` says.

#![expect(clippy::print_stdout, reason = "a test runner's output is the point of it")]

mod batch;
mod ground;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kubeveil_abi::{Direction, Mode, PeerValue, Reason, Verdict};
use kubeveil_tests::lab;
use kubeveil_tests::missing::Missing;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::Stage;
use kubeveil_verdict::testing::conditions::{Fate, Hook, Kind, Table, Tunnels, fate};
use kubeveil_verdict::testing::{Scene, Slice};
use kubeveil_verdict::{guard, steer};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use batch::{Batch, Item, Seen, ends_at_pod};
use ground::{Ground, NEAR};

/// `first` or `second`: a half of the trials, for two kernels to share.
const HALF: &str = "LAB_MATRIX_HALF";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One after the other: they share the names of namespaces.
    arguments.test_threads = Some(1);
    let missing = if arguments.list { Missing::default() } else { Missing::look() };
    if !arguments.list
        && missing.root.is_none()
        && let Err(error) = lab::make_private()
    {
        eprintln!("lab-matrix: {error:#}");
        return ExitCode::FAILURE;
    }
    let states = [Tunnels::Proven, Tunnels::Unproven];
    let all = Ground::ALL.into_iter().flat_map(|ground| states.map(|tunnels| (ground, tunnels)));
    let half = std::env::var(HALF).ok();
    // Of neighbours one has its tunnels proven and the other not, so each half has every ground and every state.
    let is_chosen = |number: usize| match half.as_deref() {
        Some("first") => (number / 2 + number).is_multiple_of(2),
        Some("second") => !(number / 2 + number).is_multiple_of(2),
        _ => true,
    };
    let chosen = all.enumerate().filter(|(number, _)| is_chosen(*number)).map(|(_, condition)| condition);
    let trials = chosen.map(|(ground, tunnels)| {
        let name = format!("matrix/{}/{}", ground.name(), format!("{tunnels:?}").to_lowercase());
        let missing = missing.of(false, false);
        Trial::ignorable_test(name.clone(), move || {
            if let Some(reason) = missing {
                eprintln!("skipped: {name} ({reason})");
                return Ok(Completion::ignored_with(reason));
            }
            let start = Instant::now();
            let outcome = play(ground, tunnels).map_err(|error| Failed::from(format!("{error:#}")));
            print!("({:.1} s) ", start.elapsed().as_secs_f64());
            outcome.map(|()| Completion::Completed)
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn play(ground: Ground, tunnels: Tunnels) -> Result<()> {
    let mut stage = Stage::set(ground.spec())?;
    let outcome = on(&mut stage, ground, tunnels);
    let struck = stage.strike();
    outcome.and(struck)
}

fn on(stage: &mut Stage, ground: Ground, tunnels: Tunnels) -> Result<()> {
    batch::introduce(stage)?;
    ground.lay(stage)?;
    let batch = Batch::of(ground)?;
    control(&batch, &batch.send(ground, false)?)?;
    match tunnels {
        Tunnels::Proven => stage.start()?,
        // Who the other node is, is known; what its key is, is not.
        Tunnels::Unproven => stage.lab.daemon(NEAR).start()?,
    }
    let before = drops(stage)?;
    let seen = batch.send(ground, tunnels == Tunnels::Proven)?;
    let (table, mut wrong) = judge(&batch, &seen, tunnels);
    println!(
        "\n{}, tunnels {tunnels:?}, Linux {}:\n{table}",
        ground.name(),
        kubeveil_linux::preflight::kernel_release()
    );
    wrong.extend(counted(stage, &batch, tunnels, &before)?);
    ensure!(
        wrong.is_empty(),
        "{} of {} conditions are wrong:\n  {}",
        wrong.len(),
        table.len(),
        wrong.join("\n  ")
    );
    Ok(())
}

fn told(item: &Item) -> String {
    let family = if item.is_v6 { "IPv6" } else { "IPv4" };
    format!("{}, {}, {family}", item.way.name, item.kind.name())
}

/// With nothing in force each packet is seen where it would leak: else nothing could be shown by its absence.
fn control(batch: &Batch, seen: &Seen) -> Result<()> {
    let mut unseen = Vec::new();
    for (id, item) in (0..).zip(&batch.items) {
        // Tags that nobody has a device for, and other versions, the kernel itself drops behind `guard`.
        let is_dropped_anyway = matches!(
            item.kind,
            Kind::Tagged
                | Kind::DoubleTagged
                | Kind::ProviderTagged
                | Kind::TripleTagged
                | Kind::FalseVersion
                | Kind::NonIp
        );
        let found = match item.way.hook {
            Hook::Wire if !ends_at_pod(item) || is_dropped_anyway => continue,
            Hook::Wire => seen.pod.get(&id),
            _ => seen.wire.get(&id),
        };
        if found.is_none_or(|&count| count < item.copies()) {
            unseen.push(told(item));
        }
    }
    ensure!(unseen.is_empty(), "with nothing in force these are not seen:\n  {}", unseen.join("\n  "));
    Ok(())
}

/// What became of each, and where that is wrong.
fn judge(batch: &Batch, seen: &Seen, tunnels: Tunnels) -> (Table, Vec<String>) {
    let (mut table, mut wrong) = (Table::default(), Vec::new());
    for (id, item) in (0..).zip(&batch.items) {
        let wanted = fate(item.way, item.kind, item.is_v6, tunnels, Mode::Require);
        let count = |seen: &BTreeMap<u32, u64>| seen.get(&id).copied().unwrap_or_default();
        let (plain, decrypted, arrived) = (count(&seen.wire), count(&seen.tunnel), count(&seen.pod));
        let found = match item.way.hook {
            // Its counters tell, or that there are none.
            Hook::Wire if !ends_at_pod(item) => wanted,
            Hook::Wire if arrived > 0 => Fate::Alone,
            // Nobody has a device for such tags, or a use for such a packet.
            Hook::Wire
                if wanted == Fate::Alone
                    && matches!(
                        item.kind,
                        Kind::Tagged | Kind::DoubleTagged | Kind::ProviderTagged | Kind::NonIp
                    ) =>
            {
                wanted
            }
            Hook::Wire => Fate::Dropped,
            _ if plain > 0 => Fate::Alone,
            _ if decrypted >= item.copies() => Fate::Encrypted,
            _ => Fate::Dropped,
        };
        if found != wanted {
            wrong.push(format!(
                "{}: {found:?}, not {wanted:?} ({plain} seen in plain, {decrypted} out of the tunnel, {arrived} at the pod)",
                told(item)
            ));
        }
        table.add(item.way.name, item.kind, item.is_v6, found);
    }
    (table, wrong)
}

type Drops = BTreeMap<(&'static str, &'static str), u64>;

/// What the near node has dropped, by direction and reason.
fn drops(stage: &Stage) -> Result<Drops> {
    let metrics = stage.metrics(NEAR)?;
    let mut drops = Drops::new();
    for direction in Direction::ALL {
        for reason in Reason::ALL.iter().filter(|reason| reason.verdict() == Verdict::Drop) {
            let labels = [("direction", direction.name()), ("reason", reason.name())];
            drops.insert((direction.name(), reason.name()), metrics.count("kubeveil_drops_total", &labels));
        }
    }
    Ok(drops)
}

/// Where what the node counts is not what was to be dropped.
fn counted(stage: &Stage, batch: &Batch, tunnels: Tunnels, before: &Drops) -> Result<Vec<String>> {
    let mut wanted = before.clone();
    for item in &batch.items {
        if fate(item.way, item.kind, item.is_v6, tunnels, Mode::Require) == Fate::Dropped {
            let (direction, reason) = reason(item, tunnels);
            *wanted.entry((direction.name(), reason.name())).or_default() += item.copies();
        }
    }
    // A look at the kernel that is a moment old does for an answer.
    let mut now = Drops::new();
    wait_until(Duration::from_secs(5), Duration::from_millis(100), || {
        now = drops(stage)?;
        Ok(now == wanted)
    })?;
    let differ = wanted.iter().filter(|(key, count)| now.get(key) != Some(count));
    Ok(differ
        .map(|(key, count)| {
            let found = now.get(key).copied().unwrap_or_default();
            let was = before.get(key).copied().unwrap_or_default();
            format!("dropped as {key:?}: {} packets, not {}", found - was, count - was)
        })
        .collect())
}

/// Why a packet is to be dropped: by the decision itself, on the host.
fn reason(item: &Item, tunnels: Tunnels) -> (Direction, Reason) {
    let mut scene = Scene::calm(Mode::Require);
    if tunnels == Tunnels::Unproven {
        scene.peers = [PeerValue::NO_TUNNEL; Scene::PEERS as usize];
    }
    let (world, bytes) = (scene.world(), item.situation.build.network());
    let (meta, slice) = (item.situation.meta(), Slice::new(&bytes));
    match item.way.hook {
        Hook::Wire => (Direction::Ingress, guard(&meta, &slice, &world, &world.config).reason),
        Hook::Unguarded => (Direction::Backstop, Reason::UnguardedDevice),
        _ => (Direction::Egress, steer(&meta, &slice, &world, &world.config).reason),
    }
}
