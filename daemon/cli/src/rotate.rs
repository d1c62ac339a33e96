//! `kubeveil rotate`: has the cluster take new keys, and shows how far it has got.

mod deed;
mod interrupt;
mod rival;
mod show;
mod teller;
#[cfg(test)]
mod tests;
mod wait;

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use kubeveil_api::{
    rotation::{RotationRecord, RotationSpec},
    selector::LabelSelector,
};
use kubeveil_core::{
    announced::Announced,
    control::{Control, Refusal, Sight},
    problem::Problem,
    rotation::{history, progress::Progress},
};
use kubeveil_keys::PublicKey;
use serde_json::json;

use crate::{FINDING, Output, TIMED_OUT, patience, source::SourceArg, stop::Stop};

/// Arguments of `rotate`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Rotate {
    #[command(subcommand)]
    command: Option<Command>,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    reason: String,
    /// Only nodes with these labels take a new key, as kubectl's --selector has it; the others go on with theirs.
    #[arg(long, value_name = "SELECTOR", conflicts_with = "compromised")]
    nodes: Option<LabelSelector>,
    /// After which time nodes that are not done are named as stragglers and this command no longer waits, such as 10m. It ends
    /// nothing.
    #[arg(long, default_value = "10m", value_parser = patience)]
    deadline: Duration,
    /// Don't wait until all nodes are done.
    #[arg(long)]
    no_wait: bool,
    /// The keys of this node are in wrong hands: they are refused everywhere from now on, and its traffic is dropped until it has
    /// announced another.
    #[arg(long, value_name = "NODE")]
    compromised: Option<String>,
    /// A key that is refused beside those that the node announces: whoever has its credential can announce another. `kubeveil status` of
    /// another node tells by which key it speaks to it.
    #[arg(long = "key", value_name = "KEY", requires = "compromised")]
    keys: Vec<PublicKey>,
    /// Where the cluster is: `kubernetes`, as kubectl finds it; `kubernetes:KUBECONFIG`; or `dir:PATH`, the folder that the daemons read.
    #[arg(long, global = true, default_value = "kubernetes", env = "KUBEVEIL_SOURCE")]
    source: SourceArg,
    /// Lines for people, or one JSON object a step for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How far the last rotation has got, and who holds it up. Exit code 1: it goes on, or nodes were cut off.
    Status,
    /// No node makes or gives up a key until `resume`.
    Pause,
    /// Goes on after `pause`.
    Resume,
    /// The last rotations: who asked, when, why, how long, who was late.
    History,
    /// Have every node give its older keys up at once. Nodes that have no newer one are cut off until they have. Exit code 1: some were.
    Finish {
        /// Yes, though packets of those nodes are dropped.
        #[arg(long)]
        force: bool,
        /// How long to wait until they have, such as 10m.
        #[arg(long, default_value = "10m", value_parser = patience)]
        deadline: Duration,
    },
}

/// The cluster, and what was last seen of it.
struct Desk {
    control: Box<dyn Control>,
    /// What is valid is not verified twice.
    announced: Announced,
    json: bool,
}

/// One look.
struct Look {
    sight: Sight,
    progress: Progress,
    /// Nobody else writes the mesh's status.
    keeps_status: bool,
    now: Timestamp,
}

impl Look {
    /// What was asked for of the generation that is wanted.
    fn asked(&self) -> RotationSpec {
        self.sight.mesh.spec.asked()
    }

    /// The history, with what is seen of the last one.
    fn records(&self) -> Vec<RotationRecord> {
        history::records(&records(self), &self.sight.mesh.spec, &self.progress, self.now)
    }

    /// All nodes are done, but for those that were cut off.
    fn is_over(&self) -> bool {
        self.progress.is_over(self.asked().retire_before)
    }

    /// How it stands: over, over but for those that were cut off, or not over.
    fn end(&self) -> Option<End> {
        let end = if self.progress.stragglers.is_empty() { End::Done } else { End::Stragglers };
        self.is_over().then_some(end)
    }
}

impl Desk {
    fn look(&mut self) -> Result<Look, Problem> {
        let sight = self.control.look()?;
        self.announced.update(&sight.nodes);
        let spec = &sight.mesh.spec;
        // Nobody waits for those that can have no agent.
        let awaited = sight.nodes.iter().filter(|(_, facts)| facts.excluded_by(spec).is_none());
        let progress = Progress::towards(spec, awaited.map(|(name, _)| name), &self.announced);
        Ok(Look { progress, sight, keeps_status: self.control.keeps_status(), now: Timestamp::now() })
    }

    /// Changes the mesh's spec. Where nobody else keeps the history, that too.
    fn change(&mut self, look: &Look, spec: serde_json::Value) -> Result<(), Stop> {
        let mut patch = json!({ "spec": spec });
        if self.control.keeps_status() {
            let mut wanted = json!(look.sight.mesh.spec);
            json_patch::merge(&mut wanted, &patch["spec"]);
            if let Ok(wanted) = serde_json::from_value(wanted) {
                // The one before may be done since anybody looked.
                let before = look.records();
                patch["status"] =
                    json!({ "rotations": history::records(&before, &wanted, &look.progress, look.now) });
            }
        }
        interrupt::is_asking();
        let done = self.control.change(&look.sight, &patch);
        done.map_err(|refusal| self.refused(refusal, look))
    }

    /// Who comes second is told of the first, where that can be known.
    fn refused(&mut self, refusal: Refusal, before: &Look) -> Stop {
        const LOOK: &str = "kubeveil rotate status";
        let now = if refusal == Refusal::Changed { self.look().ok() } else { None };
        match now.and_then(|now| rival::deed(&before.sight.mesh.spec, &now.sight.mesh.spec)) {
            Some(deed) => Stop::Finding(format!("{deed}. Nothing was changed by you; look at `{LOOK}`")),
            None => Stop::refused(refusal, LOOK),
        }
    }

    /// Brings the history up to date where nobody else does. That it can't be written harms nothing.
    fn keep_history(&mut self, look: &Look) {
        let now = look.records();
        if self.control.keeps_status() && now != records(look) {
            let kept = self.control.change(&look.sight, &json!({"status": {"rotations": now}}));
            if let Err(refusal) = kept {
                eprintln!("kubeveil: the history is not brought up to date: {refusal}");
            }
        }
    }
}

/// The history as the mesh has it.
fn records(look: &Look) -> Vec<RotationRecord> {
    look.sight.mesh.status.as_ref().map(|status| status.rotations.clone()).unwrap_or_default()
}

/// The command.
pub(crate) fn run(arguments: &Rotate) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let control = arguments.source.open(runtime.handle());
    let json = arguments.output == Output::Json;
    let mut desk = Desk { control, announced: Announced::default(), json };
    let done = match &arguments.command {
        None => deed::rotate(&mut desk, arguments),
        Some(Command::Status) => deed::status(&mut desk),
        Some(Command::Pause) => deed::pause(&mut desk, true),
        Some(Command::Resume) => deed::pause(&mut desk, false),
        Some(Command::History) => deed::history(&mut desk),
        Some(Command::Finish { force, deadline }) => deed::finish(&mut desk, *force, *deadline),
    };
    Ok(match done {
        Ok(End::Done) => 0,
        Ok(End::Stragglers) => FINDING,
        Ok(End::TimedOut) => TIMED_OUT,
        Err(stop) => stop.tell(),
    })
}

/// How a command ends that has done what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    /// Some nodes are not done, or were cut off.
    Stragglers,
    /// They were not within the deadline.
    TimedOut,
}
