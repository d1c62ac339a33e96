//! The status document as a person reads it.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, TableStyle};
use kubeveil_api::{
    mesh::Mode,
    problem::readable,
    status::{
        AdoptionStatus, BackstopForm, BackstopStatus, BypassStatus, PeerStatus, PolicyStatus, Status, Verdict,
    },
};

/// The whole, ending in a newline; with `colour`, for a terminal, what is in plain by a bypass is red.
pub(crate) fn table(status: &Status, colour: bool) -> String {
    let mut out = String::new();
    head(status, colour, &mut out);
    peers(status, &mut out);
    programs(status, &mut out);
    drops(status, &mut out);
    fragmented(status, &mut out);
    plain(status, &mut out);
    problems(status, &mut out);
    out
}

fn head(status: &Status, colour: bool, out: &mut String) {
    let ready = if status.ready {
        "ready".to_owned()
    } else {
        format!("NOT READY, waits for {}", status.waiting_for.join("; "))
    };
    let mode = status.mode.map_or_else(|| "unknown (no mesh seen)".to_owned(), |mode| mode.to_string());
    let mut rows =
        vec![("Node", format!("{}, {ready}", status.node)), ("Mode", mode), ("Encrypted", encrypted(status))];
    rows.extend(status.bypasses.iter().map(|bypass| ("BYPASSED", red(&bypassed(bypass), colour))));
    if let Some(key) = &status.key {
        let rotating = if key.generation == key.desired_generation {
            String::new()
        } else {
            format!(" (wanted: {})", key.desired_generation)
        };
        rows.push((
            "Key",
            format!("{}  generation {}{rotating}, {} old", key.public_key, key.generation, age(key.age)),
        ));
    }
    for older in status.key.iter().flat_map(|key| &key.older) {
        let why = older.held_for.join("; ");
        rows.push(("Older key", format!("{}  generation {}, {why}", older.public_key, older.generation)));
    }
    if let Some(device) = &status.device {
        let up = if device.up { "up" } else { "DOWN" };
        rows.push((
            "Device",
            format!(
                "{} {up}, UDP port {}, inner packets up to {} bytes",
                device.name, device.port, device.mtu
            ),
        ));
    }
    rows.extend(status.policies.as_ref().map(|policies| ("Policies", asked(policies))));
    rows.push(("Backstop", backstop(&status.backstop)));
    rows.extend(
        status.adoption.as_ref().map(|adoption| ("Adoption", adopting(adoption, status.peers.len()))),
    );
    let synced = if status.source.synced { "in sync" } else { "NOT in sync: nothing is removed" };
    rows.push(("Source", format!("{}, {synced}", status.source.name)));
    rows.push(("Version", format!("kubeveil {}, Linux {}", status.version, status.kernel)));
    for (name, value) in rows {
        // Writing to a String can't fail.
        let _ = writeln!(out, "{name:<10} {value}");
    }
}

fn bypassed(bypass: &BypassStatus) -> String {
    let BypassStatus { node, until, ends_in, by, reason } = bypass;
    let (by, reason) = (readable(by), readable(reason));
    format!(
        "to {node} in plain until {until}, another {}, by {by}: {reason} (what policies require stays encrypted)",
        age(*ends_in)
    )
}

fn red(text: &str, colour: bool) -> String {
    if colour { format!("\u{1b}[31m{text}\u{1b}[0m") } else { text.to_owned() }
}

fn asked(policies: &PolicyStatus) -> String {
    let PolicyStatus { count, others, required, known_by_device, .. } = policies;
    format!(
        "{count}; encryption is required of {required} addresses of this node's pods, and for all others the mode is {others}; {known_by_device} are known by their device"
    )
}

/// Nothing is in `observe`; then, what would be.
fn encrypted(status: &Status) -> String {
    let wanted = status.peers.iter().filter(|peer| !peer.excluded).count();
    let of = |peers: usize| format!("to {peers} of {wanted} other nodes");
    let others = status.policies.as_ref().map(|policies| policies.others).or(status.mode);
    if others == Some(Mode::Observe) {
        let proven = status.peers.iter().filter(|p| p.proven).count();
        return format!("nothing, since the mode is observe; it would be {}", of(proven));
    }
    of(status.peers.iter().filter(|p| p.tunnelled).count())
}

/// A pair that is open is named: somebody has to find out why.
fn adopting(adoption: &AdoptionStatus, others: usize) -> String {
    let deadline = &adoption.deadline;
    match adoption.open.len() {
        _ if adoption.over => format!("over, every pair is closed (deadline {deadline})"),
        0 => format!("no pair is open (deadline {deadline})"),
        open => format!(
            "{open} of {others} pairs open, in plain until proven, at most until {deadline}: {}",
            adoption.open.join(", ")
        ),
    }
}

/// What was refused is of interest where it made a difference.
fn backstop(backstop: &BackstopStatus) -> String {
    let form = match backstop.form {
        BackstopForm::Bpf => return "netfilter program".to_owned(),
        BackstopForm::Nftables => "nftables",
        BackstopForm::None => "NONE",
    };
    if backstop.refused.is_empty() {
        form.to_owned()
    } else {
        format!("{form} ({})", backstop.refused.join("; "))
    }
}

pub(crate) fn grid(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    // Much of it is others' words, and a terminal obeys some characters.
    let shown = |cell: String| cell.replace(char::is_control, "\u{fffd}");
    rows.for_each(|row| {
        table.add_row(row.into_iter().map(shown));
    });
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn peers(status: &Status, out: &mut String) {
    if status.peers.is_empty() {
        let _ = writeln!(out, "\nNo other nodes are known.");
        return;
    }
    let row = |p: &PeerStatus| {
        vec![
            p.node.clone(),
            p.state.to_string(),
            p.way.to_string(),
            p.reason.as_deref().map(readable).unwrap_or_default(),
            p.last_handshake.map_or_else(|| "never".to_owned(), |s| format!("{} ago", age(s))),
            bytes(p.received),
            bytes(p.sent),
            p.path_mtu.to_string(),
            p.endpoint.map_or_else(|| "-".to_owned(), |e| e.to_string()),
            p.public_key.map_or_else(|| "not announced".to_owned(), |k| k.to_string()),
        ]
    };
    let header =
        ["NODE", "STATE", "PACKETS", "REASON", "HANDSHAKE", "RECEIVED", "SENT", "MTU", "ENDPOINT", "KEY"];
    let _ = write!(out, "\n{}", grid(&header, status.peers.iter().map(row)));
}

fn programs(status: &Status, out: &mut String) {
    let rows = status.programs.iter().map(|p| {
        let place = match (p.attached, p.ahead) {
            (false, _) => "NOT ATTACHED".to_owned(),
            (true, 0) => "first".to_owned(),
            (true, n) => format!("after {n} of others"),
        };
        vec![p.program.clone(), p.device.clone(), p.device_kind.clone(), place]
    });
    let _ = write!(out, "\n{}", grid(&["PROGRAM", "DEVICE", "KIND", "POSITION"], rows));
}

fn drops(status: &Status, out: &mut String) {
    let mut dropped = status.drops.iter().filter(|drop| !drop.observed).peekable();
    if dropped.peek().is_none() {
        let _ = writeln!(out, "\nNo packet was dropped.");
        return;
    }
    let _ = writeln!(out, "\nDropped packets:");
    for drop in dropped {
        let what = format!("{} {}", drop.direction, drop.reason);
        let _ = writeln!(out, "  {:>10}  {what}\n              {}", drop.packets, drop.advice);
    }
}

fn fragmented(status: &Status, out: &mut String) {
    if status.fragmented > 0 {
        let _ = writeln!(
            out,
            "\nCrossed the wire in fragments:\n  {:>10}  too big for the tunnel, and without \"don't fragment\"\n              Lower the MTU of the pods' network to the tunnel's.",
            status.fragmented
        );
    }
}

fn plain(status: &Status, out: &mut String) {
    if status.plain.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nPassed in plain:");
    for passed in &status.plain {
        let would = match passed.verdict {
            Verdict::WouldDrop => " (would have been dropped)",
            Verdict::WouldTunnel | Verdict::WouldWrap | Verdict::WouldReplace => {
                " (would have been encrypted)"
            }
            _ => "",
        };
        let what = format!("{} {}{would}", passed.direction, passed.reason);
        let _ = writeln!(out, "  {:>10}  {what}\n              {}", passed.packets, passed.advice);
    }
}

fn problems(status: &Status, out: &mut String) {
    if status.problems.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nProblems:");
    for problem in &status.problems {
        let field = if problem.field.is_empty() { String::new() } else { format!(" {}", problem.field) };
        let _ = writeln!(
            out,
            "  {}{field}: {}\n              {}",
            problem.object, problem.message, problem.advice
        );
    }
}

/// Seconds, in the two largest units.
pub(crate) fn age(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, m) => format!("{m} min {s} s"),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

/// Bytes, in binary units.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
pub(crate) mod tests;
