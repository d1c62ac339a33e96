//! Takes away all that is ours, and only when told to.

use std::{fs, io::ErrorKind, path::Path, process::ExitCode};

use anyhow::{Result, bail};
use kubeveil_abi::DEVICE_NAMES;
use kubeveil_api::mesh::Mode;
use kubeveil_linux::{Kernel as _, RealKernel, preflight};
use tokio::runtime::Runtime;

use crate::{
    args::{Args, Uninstall},
    kept::{ADOPTION, BYPASSES, GENERATIONS, KNOWN, Kept, KeptFile},
    lock,
};

/// Exit 0 when nothing of ours remains, 1 when something does.
pub(crate) fn uninstall(args: &Args, options: &Uninstall) -> Result<ExitCode> {
    let missing: Vec<_> = preflight::capabilities().iter().map(|p| format!("\n  {p}")).collect();
    if !missing.is_empty() {
        bail!("uninstall lacks what it needs:{}", missing.concat());
    }
    if !options.accept_plaintext && nothing_is_here(args) {
        return Ok(nothing(args, options));
    }
    // The locks make the folders that they lie in.
    let (had_pins, had_state) = (!is_empty(&args.bpf_dir), args.state_dir.exists());
    let _locks = lock::lock(args).map_err(|e| match e.is::<lock::Busy>() {
        true => e.context("uninstall needs the daemon to be stopped"),
        false => e,
    })?;
    let (_, kept, unreadable) = KeptFile::<Kept>::open(&args.state_dir, KNOWN);
    let mode = kept.snapshot.mesh.map(|mesh| mesh.mode);
    // Not knowing the mode is no reason to open.
    let lenient = unreadable.is_none() && matches!(mode, Some(Mode::Prefer | Mode::Observe));
    if !options.accept_plaintext && !lenient {
        bail!(
            "the mesh requires encryption (or its mode is not known here), and without kubeveil this node's pod traffic travels in plain. \
             Nothing was changed. If that is what you want: kubeveild uninstall --accept-plaintext"
        );
    }
    let runtime = Runtime::new()?;
    let _guard = runtime.enter();
    let (removed, mut errors) = {
        let mut kernel = RealKernel::new(&args.bpf_dir, Vec::new())?;
        let (removed, errors) = kernel.remove_everything();
        (removed, errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let mut gone = Vec::new();
    if removed.pins && had_pins {
        gone.push(format!("programs and maps below {}", args.bpf_dir.display()));
    }
    gone.extend(removed.backstops.iter().map(|form| format!("the backstop ({})", form.name())));
    gone.extend(removed.devices.iter().map(|d| format!("WireGuard device {d}")));
    remove_file(&args.socket, &mut gone, &mut errors);
    for name in [KNOWN, ADOPTION, BYPASSES] {
        remove_file(&args.state_dir.join(name), &mut gone, &mut errors);
    }
    if options.remove_keys {
        let keys = args.state_dir.join("keys");
        match fs::remove_dir_all(&keys) {
            Ok(()) => gone.push(format!("keys in {}", keys.display())),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => errors.push(format!("remove {}: {e}", keys.display())),
        }
        // It tells which keys those were.
        remove_file(&args.state_dir.join(GENERATIONS), &mut gone, &mut errors);
    }
    if gone.is_empty() && errors.is_empty() {
        if !had_state {
            fs::remove_dir_all(&args.state_dir)?;
        }
        return Ok(nothing(args, options));
    }
    report(args, options, &gone, &errors);
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// No trace of it, as far as can be seen without taking anything away.
fn nothing_is_here(args: &Args) -> bool {
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let has_device =
        |name: &&str| devices.lines().any(|line| line.trim_start().starts_with(&format!("{name}:")));
    is_empty(&args.bpf_dir) && !args.state_dir.join(KNOWN).exists() && !DEVICE_NAMES.iter().any(has_device)
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

fn nothing(args: &Args, options: &Uninstall) -> ExitCode {
    let keys = args.state_dir.join("keys");
    let kept = if !options.remove_keys && keys.exists() {
        format!("; keys are kept in {} (--remove-keys removes them)", keys.display())
    } else {
        String::new()
    };
    eprintln!(
        "kubeveild: nothing of kubeveil is on this node: no programs below {} (--bpf-dir), no device {}{kept}",
        args.bpf_dir.display(),
        DEVICE_NAMES.join(" or "),
    );
    ExitCode::FAILURE
}

fn remove_file(path: &Path, gone: &mut Vec<String>, errors: &mut Vec<String>) {
    match fs::remove_file(path) {
        Ok(()) => gone.push(path.display().to_string()),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => errors.push(format!("remove {}: {e}", path.display())),
    }
}

#[expect(clippy::print_stdout, reason = "the report is this command's output")]
fn report(args: &Args, options: &Uninstall, gone: &[String], errors: &[String]) {
    for what in gone {
        println!("removed {what}");
    }
    if !options.remove_keys {
        println!("kept    keys in {} (--remove-keys removes them)", args.state_dir.join("keys").display());
    }
    println!(
        "kept    this node's announcement in the source: the others encrypt to it until its Node is removed"
    );
    for error in errors {
        println!("REMAINS {error}");
    }
}
