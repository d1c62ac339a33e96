//! `kubeveild probe`: what this node can do and who else is on it, for `kubeveil check`. It changes nothing.
//!
//! Where other nodes are named, their probes are asked over our UDP ports, and are answered, until the time is up; whenever
//! something has changed a line is printed, so the last line counts.

mod answers;
mod wire;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kubeveil_abi::{BASE_PORT, DEVICE_NAMES};
use kubeveil_api::probe::{Attachment, ForeignProgram, MOST_LISTED, PROBE_VERSION, Port, PortState, Probe};
use kubeveil_linux::{
    preflight,
    survey::{Survey, survey},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    args::{Args, Peer, ProbeOptions},
    run,
};
use answers::{Answers, Doors};

/// Between two looks at what has been answered.
const LOOK: Duration = Duration::from_secs(1);
/// Our UDP ports, of even and of odd key generations.
const PORTS: [u16; 2] = [BASE_PORT, BASE_PORT + 1];

pub(crate) fn probe(args: &Args, options: &ProbeOptions) -> Result<ExitCode> {
    run::log(args)?;
    let runtime = Runtime::new().context("start the async runtime")?;
    let _guard = runtime.enter();
    let nodes = by_name(&options.peers);
    let own = nodes.get(&options.name).cloned().unwrap_or_default();
    let seen = survey(&args.bpf_dir, &run::object(args)?, &own);
    let others = || nodes.iter().filter(|(name, _)| **name != options.name);
    let known = others().flat_map(|(_, addresses)| addresses).copied().collect();
    let doors = runtime.block_on(Doors::open(&own, &PORTS, known));
    let mut probe = document(&options.name, &seen, &doors);
    if others().next().is_none() {
        print(&probe)?;
        return Ok(ExitCode::SUCCESS);
    }
    let targets =
        others().flat_map(|(node, addresses)| wire::targets(node, addresses, &own, &PORTS)).collect();
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("handle SIGTERM")?;
        tokio::select! {
            _ = term.recv() => Ok(()),
            done = ask(&mut probe, Answers::begin(&own, targets), options.within) => done,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn by_name(peers: &[Peer]) -> BTreeMap<String, Vec<IpAddr>> {
    peers.iter().map(|peer| (peer.name.clone(), peer.addresses.clone())).collect()
}

/// Until the time is up: whoever asks has to be answered though all have answered us.
async fn ask(probe: &mut Probe, mut answers: Answers, within: Duration) -> Result<()> {
    let end = Instant::now() + within;
    let mut printed = None;
    while Instant::now() < end {
        answers.ask_again().await;
        tokio::time::sleep(LOOK).await;
        answers.tell(probe);
        if printed.as_ref() != Some(&*probe) {
            print(probe)?;
            printed = Some(probe.clone());
        }
    }
    Ok(())
}

fn document(node: &str, seen: &Survey, doors: &Doors) -> Probe {
    let programs = seen.programs.iter().take(MOST_LISTED).map(|foreign| ForeignProgram {
        device: foreign.device.clone(),
        hook: foreign.hook.to_owned(),
        program: foreign.program.clone(),
    });
    Probe {
        schema_version: PROBE_VERSION,
        node: node.to_owned(),
        kernel: preflight::kernel_release(),
        no_wireguard: seen.no_wireguard.clone(),
        no_programs: seen.no_programs.clone(),
        attachment: if seen.tcx { Attachment::Tcx } else { Attachment::Clsact },
        btf: seen.btf,
        bpffs: seen.bpffs,
        programs: programs.collect(),
        ports: PORTS.iter().map(|port| state(*port, doors, &seen.wireguard)).collect(),
        asked: 0,
        silent: Vec::new(),
        unanswered: 0,
        clocks: Vec::new(),
        unseen: seen.unseen.clone(),
    }
}

/// A port that nobody has is heard at; of another it is told whose it is.
fn state(port: u16, doors: &Doors, wireguard: &[(String, u16)]) -> Port {
    let device = wireguard.iter().find(|(_, of)| *of == port).map(|(name, _)| name.as_str());
    let (state, by) = match (doors.refused(port), device) {
        (None, _) => (PortState::Free, String::new()),
        (_, Some(device)) if DEVICE_NAMES.contains(&device) => (PortState::Ours, device.to_owned()),
        (_, Some(device)) => (PortState::Taken, format!("WireGuard device {device}")),
        (Some(e), None) if e.kind() == std::io::ErrorKind::AddrInUse => (PortState::Taken, String::new()),
        (Some(e), None) => (PortState::Refused, e.to_string()),
    };
    Port { port, state, by }
}

#[expect(clippy::print_stdout, reason = "the document is this command's output")]
fn print(probe: &Probe) -> Result<()> {
    println!("{}", serde_json::to_string(probe)?);
    Ok(())
}
