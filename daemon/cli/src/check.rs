//! `kubeveil check`: asks, has the nodes looked at, and shows what was found.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kubeveil_api::{
    check::{Report, Severity},
    probe::Probe,
};
use kubeveil_check::{
    facts::{Facts, Probes},
    gather,
    judge::{judge, judge_machine},
    probes::{Set, left_behind},
};
use tokio::time::Instant;

use crate::{Output, server::Server};

/// Options of `check`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Before an installation: whether this cluster is fit for it.
    #[arg(long)]
    pre: bool,
    /// This machine alone, without asking an API server. As root, on a node; runs `kubeveild probe`.
    #[arg(long, conflicts_with_all = ["pre", "image", "no_probe"])]
    local: bool,
    /// With --local: where programs would be pinned.
    #[arg(long, default_value = "/sys/fs/bpf/kubeveil")]
    bpf_dir: PathBuf,
    #[command(flatten)]
    server: Server,
    /// Namespace that kubeveil is, or will be, installed in.
    #[arg(short, long, default_value = "kubeveil")]
    namespace: String,
    /// Image that looks at the nodes: a DaemonSet for half a minute, in a namespace of its own. If not given, that of the agents.
    #[arg(long)]
    image: Option<String>,
    /// Run nothing on the nodes; what would have to be looked at there reads unknown.
    #[arg(long, conflicts_with = "image")]
    no_probe: bool,
    /// How long to wait for what runs on the nodes, such as 2m.
    #[arg(long, default_value = "2m", value_parser = crate::patience)]
    timeout: Duration,
    /// A table for people or JSON for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Finds out; what comes of it is shown, and the exit code.
pub(crate) fn check(options: &Options) -> Result<(Report, Output)> {
    if options.local {
        let findings = judge_machine(local(&options.bpf_dir).map_err(|e| format!("{e:#}")));
        return Ok((Report::new(false, false, findings), options.output));
    }
    let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
    let (facts, left) = runtime.block_on(facts(options))?;
    let mut findings = judge(&facts);
    findings.extend(left.iter().map(|namespace| kubeveil_check::judge::left_behind(namespace)));
    Ok((Report::new(options.pre, facts.probes.timed_out, findings), options.output))
}

/// 0 all is well, 1 a finding, 3 something is unknown, 4 it did not come in time.
pub(crate) fn exit_code(report: &Report) -> u8 {
    match report.worst() {
        Severity::Failed | Severity::Warning => crate::FINDING,
        Severity::Unknown if report.timed_out => crate::TIMED_OUT,
        Severity::Unknown => crate::UNREACHABLE,
        Severity::Ok => 0,
    }
}

async fn facts(options: &Options) -> Result<(Facts, Vec<String>)> {
    let client = options.server.client().await?;
    let left = left_behind(&client).await;
    let mut facts = gather::facts(&client, &options.namespace, options.pre).await;
    facts.probes = if options.no_probe {
        missing("nothing was run on the nodes (--no-probe)")
    } else {
        let image = match &options.image {
            Some(image) => Ok(Some(image.clone())),
            None => gather::installed_image(&client, &options.namespace).await,
        };
        match image {
            Ok(Some(image)) => probed(&client, &image, &facts, options.timeout).await,
            Ok(None) => missing("no image is known: no agents are installed there, and --image names none"),
            Err(why) => missing(&format!("the agents' image is not known: {why}")),
        }
    };
    Ok((facts, left))
}

fn missing(why: &str) -> Probes {
    Probes { missing: Some(why.to_owned()), ..Probes::default() }
}

/// What is made for it is gone when this returns, whatever came of it, also after Ctrl-C.
async fn probed(client: &kube::Client, image: &str, facts: &Facts, patience: Duration) -> Probes {
    let Ok(nodes) = &facts.nodes else { return missing("the nodes are not known") };
    let wanted: BTreeSet<String> =
        nodes.iter().filter(|(_, node)| node.linux).map(|(name, _)| name.clone()).collect();
    let set = match Set::make(client, image, nodes).await {
        Ok(set) => set,
        Err(e) => return missing(&format!("nothing can be run on the nodes: {e:#}")),
    };
    eprintln!("kubeveil: looks at {} nodes (namespace {})", wanted.len(), set.namespace());
    let probes = tokio::select! {
        probes = set.read(&wanted, Instant::now() + patience) => probes,
        _ = tokio::signal::ctrl_c() => missing("it was interrupted"),
    };
    if let Err(e) = set.remove().await {
        eprintln!("kubeveil: {e:#}");
    }
    probes
}

/// What the daemon's program, beside this one or on PATH, says of this machine.
fn local(bpf_dir: &Path) -> Result<Probe> {
    const PROGRAM: &str = "kubeveild";
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let program = beside.filter(|program| program.exists()).unwrap_or_else(|| PROGRAM.into());
    let done = Command::new(&program).arg("probe").arg("--bpf-dir").arg(bpf_dir).output();
    let done = done.with_context(|| format!("run {}", program.display()))?;
    if !done.status.success() {
        bail!("{} probe: {}", program.display(), String::from_utf8_lossy(&done.stderr).trim());
    }
    serde_json::from_slice(&done.stdout).with_context(|| format!("read what {} says", program.display()))
}

/// For people: what is wrong with what to do about it, then what is well in a line each.
pub(crate) fn table(report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let severity = finding.severity.name().to_uppercase();
        out += &format!("{severity:<8} {:<12} {}: {}\n", finding.check, finding.object, finding.found);
        if finding.severity != Severity::Ok {
            out += &format!("{:21} {}\n{:21} $ {}\n", "", finding.means, "", finding.mend);
        }
    }
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let [failed, warnings, unknown, ok] =
        [Severity::Failed, Severity::Warning, Severity::Unknown, Severity::Ok].map(count);
    out + &format!("\n{failed} failed, {warnings} warnings, {unknown} unknown, {ok} ok\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubeveil_api::check::Finding;

    fn finding(severity: Severity, check: &str) -> Finding {
        let text = |text: &str| if severity == Severity::Ok { String::new() } else { text.to_owned() };
        Finding {
            severity,
            check: check.to_owned(),
            object: "Node node-2".to_owned(),
            found: format!("what was found of {check}"),
            means: text("what it means"),
            mend: text("a command    # and a word"),
        }
    }

    fn report(timed_out: bool, severities: &[Severity]) -> Report {
        let findings = severities.iter().zip(["bpffs", "ports", "webhooks", "wireguard"]);
        Report::new(true, timed_out, findings.map(|(severity, check)| finding(*severity, check)).collect())
    }

    #[test]
    fn it_is_shown() {
        let all = report(false, Severity::ALL);
        insta::assert_snapshot!("check_table", table(&all));
        insta::assert_json_snapshot!("check_json", all);
    }

    #[test]
    fn the_exit_code_says_the_worst() {
        use Severity::{Failed, Ok, Unknown, Warning};
        for (timed_out, severities, code) in [
            (false, &[Ok, Ok][..], 0),
            (false, &[Ok, Unknown], 3),
            (true, &[Ok, Unknown], 4),
            (true, &[Unknown, Warning], 1),
            (false, &[Ok, Failed], 1),
        ] {
            assert_eq!(exit_code(&report(timed_out, severities)), code, "{severities:?}");
        }
    }
}
