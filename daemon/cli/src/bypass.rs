//! `kubeveil bypass`: has two nodes speak in plain for a while, when the encryption is what somebody suspects.

#![expect(clippy::print_stdout, reason = "standard output is where data goes")]

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use kubeveil_api::{
    bypass::{Bypass, LONGEST_BYPASS, MOST_BYPASSES, bypasses_and},
    mesh::Mode,
    problem::{Problem, few, readable},
};
use kubeveil_core::{
    agent::{Life, why_not_ready},
    control::{Control, Sight},
};
use serde_json::{Value, json};

use crate::{
    FINDING, Output, patience,
    source::{SourceArg, on_record},
    status::{age, grid},
    stop::Stop,
};

/// A shorter one would be over before all nodes have begun.
const SHORTEST: Duration = Duration::from_secs(10);
/// Nodes that are named where one is not found.
const MOST_NAMED: usize = 5;

/// Arguments of `bypass`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    request: Request,
    /// Where the cluster is: `kubernetes`, as kubectl finds it; `kubernetes:KUBECONFIG`; or `dir:PATH`, the folder that the daemons read.
    #[arg(long, global = true, default_value = "kubernetes", env = "KUBEVEIL_SOURCE")]
    source: SourceArg,
    /// Lines for people, or JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Args)]
struct Request {
    /// One of both nodes.
    #[arg(long, value_name = "NODE", required = true)]
    node: Option<String>,
    /// The other one.
    #[arg(long, value_name = "NODE", required = true)]
    peer: Option<String>,
    /// For how long, such as 10m; from 10 seconds to 24 hours. It ends by itself.
    #[arg(long = "for", value_name = "TIME", value_parser = length, required = true)]
    length: Option<Duration>,
    /// Why, for the record.
    #[arg(long, required = true)]
    reason: Option<String>,
    /// Though a node's agent is gone or not ready, which is an outage of this pair until the end.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Those that are on, and the last that were: between whom, since and until when, by whom and why. Exit code 1: one is on.
    List,
    /// End one before its time. Exit code 1: there is none.
    End {
        /// One of both nodes.
        #[arg(long, value_name = "NODE")]
        node: String,
        /// The other one.
        #[arg(long, value_name = "NODE")]
        peer: String,
    },
}

fn length(text: &str) -> Result<Duration, String> {
    let length = patience(text)?;
    let longest = Duration::from_secs(LONGEST_BYPASS.unsigned_abs());
    if (SHORTEST..=longest).contains(&length) {
        Ok(length)
    } else {
        Err("must be from 10 seconds to 24 hours".to_owned())
    }
}

/// Where to look when the mesh was changed meanwhile.
const LOOK: &str = "kubeveil bypass list";

/// The command.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut control = arguments.source.open(runtime.handle());
    let json = arguments.output == Output::Json;
    let done = match &arguments.command {
        None => begin(&mut *control, &arguments.request, json),
        Some(Command::List) => list(&mut *control, json),
        Some(Command::End { node, peer }) => end(&mut *control, node, peer, json),
    };
    Ok(done.unwrap_or_else(Stop::tell))
}

/// Whole seconds, as they are written.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn begin(control: &mut dyn Control, request: &Request, json: bool) -> Result<u8, Stop> {
    let Request { node: Some(node), peer: Some(peer), length: Some(length), reason: Some(reason), force } =
        request
    else {
        return Err(Stop::Usage("--node, --peer, --for and --reason are all needed".to_owned()));
    };
    let sight = control.look()?;
    let now = now();
    let bypass = Bypass {
        nodes: [node.clone(), peer.clone()],
        at: now,
        until: SignedDuration::try_from(*length).ok().and_then(|l| now.checked_add(l).ok()).unwrap_or(now),
        by: on_record(control)?,
        reason: reason.clone(),
    };
    refuse(&sight, &bypass)?;
    let doubts = doubts(control, &bypass, *force)?;
    let all = bypasses_and(&sight.mesh.spec.bypasses, bypass.clone(), now).ok_or_else(|| {
        Stop::Finding(format!(
            "{MOST_BYPASSES} bypasses are on, which is all there may be: end one first (`kubeveil bypass list`)"
        ))
    })?;
    control
        .change(&sight, &json!({ "spec": { "bypasses": all } }))
        .map_err(|refusal| Stop::refused(refusal, LOOK))?;
    if json {
        println!("{}", json!({ "event": "begun", "bypass": bypass, "doubts": doubts }));
    } else {
        println!("{}", begun(&bypass, length.as_secs(), sight.mesh.spec.mode));
        doubts.iter().for_each(|doubt| println!("{doubt}"));
    }
    Ok(0)
}

fn refuse(sight: &Sight, bypass: &Bypass) -> Result<(), Stop> {
    for (argument, node) in ["--node", "--peer"].iter().zip(&bypass.nodes) {
        if !sight.nodes.contains_key(node) {
            let known = few(sight.nodes.keys(), MOST_NAMED);
            return Err(Stop::Usage(format!("{argument}: there is no Node {node}; there are {known}")));
        }
    }
    match bypass.refusal() {
        Some((field, why)) => {
            let argument = if field == "nodes" { "--peer" } else { "--reason" };
            Err(Stop::Usage(format!("{argument}: {why}")))
        }
        None => Ok(()),
    }
}

/// What speaks against it that both nodes carry it out: of who does not, the other one's packets are dropped until the end. Refused
/// where anything is known to, unless by force.
fn doubts(control: &mut dyn Control, bypass: &Bypass, force: bool) -> Result<Vec<String>, Stop> {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for node in &bypass.nodes {
        let why = match control.agent(node) {
            Ok(agent) => {
                if agent.life == Life::Unknown {
                    unknown.push(node.clone());
                }
                why_not_ready(agent.life, agent.said.as_ref())
            }
            Err(problem) if force => Some(format!("it can't be asked: {problem}")),
            Err(problem) => return Err(Stop::Unreachable(by_force(problem, node))),
        };
        known.extend(why.map(|why| format!("{node}: {}", readable(&why))));
    }
    let status = if control.keeps_status() { "kubeveil status` there" } else { "kubectl get veil`" };
    if !known.is_empty() && !force {
        return Err(Stop::Finding(format!(
            "a node whose agent does not carry it out drops what comes in plain, so nothing would pass between both until the end:\n  \
             {}\nBegin it when that is mended (`{status}), or with --force if such an outage is meant",
            known.join("\n  ")
        )));
    }
    let mut doubts: Vec<String> = known.iter().map(|why| format!("By force, though {why}")).collect();
    if !unknown.is_empty() {
        let named = unknown.join(" and ");
        doubts.push(format!(
            "Whether the daemons of {named} live can't be told from a folder, only what they said last: `{status} tells."
        ));
    }
    Ok(doubts)
}

/// Who may not look can still do it.
fn by_force(problem: Problem, node: &str) -> Problem {
    let advice = format!(
        "{}. Until then nobody knows whether {node} would carry the bypass out; --force begins it all the same",
        problem.advice.trim_end_matches('.')
    );
    Problem { advice, ..problem }
}

/// What that means, so that nobody does it unawares.
fn begun(bypass: &Bypass, seconds: u64, mode: Mode) -> String {
    let [one, other] = &bypass.nodes;
    let observes = if mode == Mode::Observe {
        "\nThe mesh's mode is observe: where no policy requires encryption of anybody all travels in plain anyway."
    } else {
        ""
    };
    format!(
        "Packets between {one} and {other} travel in plain until {}, for {}: whoever is on the wire can read them.\n\
         Each of both begins some seconds after it has heard of it, and ends by the time since its boot, though its daemon be dead.\n\
         Pods of which a policy requires encryption stay encrypted, and are cut off where there is no tunnel.{observes}\n\
         To end it sooner: kubeveil bypass end --node {one} --peer {other}",
        bypass.until,
        age(seconds)
    )
}

fn end(control: &mut dyn Control, node: &str, peer: &str, json: bool) -> Result<u8, Stop> {
    let sight = control.look()?;
    let now = now();
    let mut all = sight.mesh.spec.bypasses.clone();
    let mut ended = Vec::new();
    for bypass in all.iter_mut().filter(|bypass| bypass.joins(node, peer) && bypass.is_on(now)) {
        // What has begun in this second ends with it.
        let begun = bypass.at.checked_add(SignedDuration::from_secs(1)).unwrap_or(now);
        let end = now.max(begun);
        if end < bypass.until {
            bypass.until = end;
            ended.push(bypass.clone());
        }
    }
    if ended.is_empty() {
        return Err(Stop::Finding(format!("no bypass is on between {node} and {peer}")));
    }
    control
        .change(&sight, &json!({ "spec": { "bypasses": all } }))
        .map_err(|refusal| Stop::refused(refusal, LOOK))?;
    if json {
        println!("{}", json!({ "event": "ended", "bypasses": ended }));
    } else {
        println!(
            "Packets between {node} and {peer} travel as the mesh says again, as soon as both have heard of it."
        );
    }
    Ok(0)
}

fn list(control: &mut dyn Control, json: bool) -> Result<u8, Stop> {
    let sight = control.look()?;
    let (all, now) = (&sight.mesh.spec.bypasses, Timestamp::now());
    if json {
        println!(
            "{}",
            json!({ "bypasses": all.iter().rev().map(|one| object(one, now)).collect::<Vec<_>>() })
        );
    } else {
        print!("{}", table(all, now));
    }
    Ok(if all.iter().any(|bypass| bypass.is_on(now)) { FINDING } else { 0 })
}

fn object(bypass: &Bypass, now: Timestamp) -> Value {
    let mut object = json!(bypass);
    object["on"] = json!(bypass.is_on(now));
    object
}

/// The newest first.
fn table(all: &[Bypass], now: Timestamp) -> String {
    if all.is_empty() {
        return "No bypass is on, and none is on record.\n".to_owned();
    }
    let row = |bypass: &Bypass| {
        let left = u64::try_from(bypass.until.as_second().saturating_sub(now.as_second())).unwrap_or(0);
        vec![
            bypass.nodes.join(" - "),
            if bypass.is_on(now) { format!("ON, {} left", age(left)) } else { "over".to_owned() },
            bypass.at.to_string(),
            bypass.until.to_string(),
            readable(&bypass.by),
            readable(&bypass.reason),
        ]
    };
    grid(&["NODES", "STATE", "SINCE", "UNTIL", "BY", "REASON"], all.iter().rev().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn bypass(since: i64, until: i64, by: &str) -> Bypass {
        Bypass {
            nodes: ["node-1".to_owned(), "node-2".to_owned()],
            at: at(since),
            until: at(until),
            by: by.to_owned(),
            reason: "INC-1".to_owned(),
        }
    }

    #[test]
    fn they_are_shown() {
        let all = [bypass(0, 600, "alice"), bypass(700, 1_300, "bob")];
        insta::assert_snapshot!("bypass_table", table(&all, at(800)));
        insta::assert_snapshot!("bypass_begun", begun(&all[0], 600, Mode::Require));
        assert_eq!(table(&[], at(0)), "No bypass is on, and none is on record.\n");
        assert!(begun(&all[0], 600, Mode::Observe).contains("mode is observe"));
    }

    /// Whoever may write the mesh does not move the cursor of who looks at it, or forge lines.
    #[test]
    fn no_control_character_reaches_the_terminal() {
        let one = Bypass { reason: "a\u{1b}[2J\nb".to_owned(), ..bypass(0, 600, "\u{9b}eve\r") };
        let text = table(&[one], at(10));
        assert!(text.contains("\u{fffd}eve\u{fffd}") && text.contains("a\u{fffd}[2J\u{fffd}b"), "{text}");
        assert_eq!(
            (text.chars().filter(|c| c.is_control()).count(), text.lines().count()),
            (2, 2),
            "{text:?}"
        );
    }

    #[test]
    fn a_length_has_bounds() {
        for text in ["9s", "25h", "0s", "ten"] {
            assert!(length(text).is_err(), "{text}");
        }
        for text in ["10s", "10m", "24h", "1h 30m"] {
            assert!(length(text).is_ok(), "{text}");
        }
    }
}
