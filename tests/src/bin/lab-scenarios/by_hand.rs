//! What somebody's hand changes or deletes on a node, under traffic in both families: it is put back, it is told, and
//! nothing is plain meanwhile; but for a few deeds of root's, which open for as long as they are not noticed.
//!
//! Each deed is judged by the same picture of the node, before and after.

mod deeds;
mod picture;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::batch;
use kubeveil_tests::namespace::sysctl;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Inconclusive, Stage, conclusive, encrypted, none_plain, pod};
use kubeveil_tests::traffic::{Load, flows};

use crate::Scenario;
use crate::support::{by_links, stir};
use deeds::{Deed, Form, Meanwhile};
use picture::{Counts, Picture};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("by_hand_the_tunnel_device", |stage| play(stage, deeds::DEVICE)).shared(),
    Scenario::new("by_hand_the_maps", |stage| play(stage, deeds::MAPS)).shared(),
    Scenario::new("by_hand_programs_links_and_pins", |stage| play(stage, deeds::PROGRAMS)).shared(),
    Scenario::new("by_hand_peers_and_keys_of_wireguard", |stage| play(stage, deeds::WIREGUARD)).shared(),
    Scenario::new("by_hand_files", |stage| play(stage, deeds::FILES)).shared(),
    Scenario::new("by_hand_routes_rules_and_sysctls_of_others", not_ours).shared(),
    Scenario::new("healings_leave_nothing_behind", nothing_left).shared(),
];

/// Packets a second.
const RATE: u32 = 200;
/// Longer than the daemon's regular look at everything.
const HEALED: Duration = Duration::from_secs(25);
/// What opens is closed again within this.
const BOUND: f64 = 1.0;
/// A machine on which the sender falls behind by more than this part of [`RATE`] has no time for the daemon either: how long something
/// was open there says nothing of it.
const BEHIND: f64 = 0.02;

/// Does one deed after the other.
fn play(stage: &mut Stage, deeds: &[Deed]) -> Result<()> {
    for deed in deeds {
        let form = if by_links(stage, Node(deed.node)) { Form::Links } else { Form::Filters };
        if deed.form.is_none_or(|wanted| wanted == form) {
            play_one(stage, deed).with_context(|| deed.what.to_owned())?;
        } else {
            eprintln!("  {}: not in this form of the datapath", deed.what);
        }
    }
    Ok(())
}

fn play_one(stage: &mut Stage, deed: &Deed) -> Result<()> {
    let node = Node(deed.node);
    let other = if deed.node == 1 { "2a" } else { "1a" };
    let own = format!("{}a", deed.node);
    let families = stage.lab.spec().families;
    let mut all = flows(pod(&own), pod(other), families);
    let opens = deed.meanwhile == Meanwhile::Open;
    if opens {
        stage.open()?;
    } else {
        all.extend(flows(pod(other), pod(&own), families));
    }
    let before = Picture::of(stage, node)?;
    let log = stage.lab.daemon(node).log().len();
    let mut healed = Duration::ZERO;
    let (tally, census) = stage.send_while(Load::new(all, RATE), |stage| {
        let start = Instant::now();
        (deed.act)(stage, node)?;
        if deed.stirs {
            stir(stage)?;
        }
        let back =
            wait_until(HEALED, Duration::from_millis(100), || Ok(Picture::of(stage, node)? == before))?;
        healed = start.elapsed();
        ensure!(back, "it is not put back: {}", before.difference(&Picture::of(stage, node)?));
        stage.wait_peers(node, 2)
    })?;
    // Packets come at a steady rate, so they tell the time.
    let open = census.plaintext as f64 / tally.rate;
    eprintln!(
        "  {}: {} plain, {:.0} ms; put back within {} ms; {tally}",
        deed.what,
        census.plaintext,
        open * 1e3,
        healed.as_millis()
    );
    // Packets may be lost, so that the machine lost some itself is no reason to play again.
    ensure!(tally.sent > 0, "nothing was sent: {tally}");
    if opens {
        ensure!(census.plaintext > 0, "nothing was open, so this shows nothing: {census}");
        if open > BOUND && tally.rate < f64::from(RATE) * (1.0 - BEHIND) {
            bail!(Inconclusive(format!("open for {open:.2} s on a machine that is too busy: {tally}")));
        }
        ensure!(open <= BOUND, "it was open for {open:.2} s, not {BOUND}: {census}");
        stage.close()?;
    } else {
        none_plain(&census)?;
    }
    let told = wait_until(Duration::from_secs(5), Duration::from_millis(100), || {
        Ok(deed.told.is_empty() || is_told(&stage.lab.daemon(node).log()[log..], deed.told))
    })?;
    ensure!(told, "nobody is told of it; the log has no line with `somebody` and `{}`", deed.told);
    let (tally, census) = stage.send(stage.load(&own, other, RATE), 40)?;
    encrypted(&tally, &census).context("afterwards")
}

fn is_told(log: &str, what: &str) -> bool {
    log.lines().any(|line| line.contains("somebody") && line.contains(what))
}

/// Things of others, which are not put back: what they break is closed.
fn not_ours(stage: &mut Stage) -> Result<()> {
    let node = Node(1);
    let lines: [(&str, &[&str], &[&str]); 4] = [
        (
            "no route to another node's pods",
            &["route del 10.244.2.0/24", "route del fd00:244:2::/64"],
            &["route add 10.244.2.0/24 via 192.0.2.2", "route add fd00:244:2::/64 via 2001:db8::2"],
        ),
        (
            "a route past eth0's program, into the tunnel's device",
            &["route replace 10.244.2.0/24 dev kubeveil0", "route replace fd00:244:2::/64 dev kubeveil0"],
            &["route replace 10.244.2.0/24 via 192.0.2.2", "route replace fd00:244:2::/64 via 2001:db8::2"],
        ),
        (
            "a rule that leads to another table",
            &[
                "rule add to 10.244.2.0/24 lookup 77 priority 77",
                "-6 rule add to fd00:244:2::/64 lookup 77 priority 77",
                "route add default via 192.0.2.3 table 77",
                "-6 route add default via 2001:db8::3 table 77",
            ],
            &[
                "rule del priority 77",
                "-6 rule del priority 77",
                "route flush table 77",
                "-6 route flush table 77",
            ],
        ),
        (
            "a rule that throws away",
            &[
                "rule add to 10.244.2.0/24 blackhole priority 77",
                "-6 rule add to fd00:244:2::/64 blackhole priority 77",
            ],
            &["rule del priority 77", "-6 rule del priority 77"],
        ),
    ];
    for (what, deed, undo) in lines {
        let by_hand = |lines: &[&str]| {
            lines.iter().try_for_each(|line| {
                let words: Vec<_> = line.split(' ').collect();
                kubeveil_tests::status::said_in(node, "ip", &words).map(drop)
            })
        };
        let load = stage.load("1a", "2a", RATE);
        let (tally, census) = stage.send_while(load, |_| {
            by_hand(deed)?;
            std::thread::sleep(Duration::from_millis(300));
            by_hand(undo)
        })?;
        eprintln!("  {what}: {} plain; {tally}", census.plaintext);
        none_plain(&census).context(what)?;
    }
    // The larger one of two counts, and ours is 2: strict for all others changes nothing.
    let (tally, census) = stage.send_while(stage.load("2a", "1a", RATE), |_| {
        sysctl("node-1", "net/ipv4/conf/all/rp_filter", "1")?;
        std::thread::sleep(Duration::from_millis(300));
        sysctl("node-1", "net/ipv4/conf/all/rp_filter", "0")
    })?;
    eprintln!("  rp_filter 1 for all: {} plain; {tally}", census.plaintext);
    conclusive(&tally)?;
    encrypted(&tally, &census).context("rp_filter 1 for all")
}

/// What heals often must not use up anything: descriptors, devices, pins.
fn nothing_left(stage: &mut Stage) -> Result<()> {
    const TIMES: u32 = 3;
    let node = Node(1);
    let mut counts = Vec::new();
    for _ in 0..TIMES {
        for deed in deeds::OFTEN {
            (deed)(stage, node)?;
        }
        // Seen, healed and proven anew.
        let before = stage.metrics(node)?.count("kubeveil_kernel_writes_total", &[]);
        batch(Some(&node.name()), &["link del dev kubeveil0".to_owned()])?;
        wait_until(HEALED, Duration::from_millis(50), || {
            Ok(stage.metrics(node)?.count("kubeveil_kernel_writes_total", &[]) > before)
        })?;
        stage.wait_peers(node, 2)?;
        let whole =
            wait_until(HEALED, Duration::from_millis(200), || Ok(picture::missing_pins(stage, node)? == 0))?;
        ensure!(whole, "{} pins are missing", picture::missing_pins(stage, node)?);
        counts.push(Counts::of(stage, node)?);
    }
    eprintln!("  {counts:?}");
    let ends = counts.first().zip(counts.last());
    ensure!(ends.is_some_and(|(first, last)| last.is_within(first)), "it grows: {counts:?}");
    let (tally, census) = stage.send(stage.load("1a", "2a", RATE), 40)?;
    encrypted(&tally, &census)
}
