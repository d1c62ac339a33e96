//! Takes away all that is ours, and only when told to.

use std::{fs, io::ErrorKind, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use kubeveil_api::mesh::Mode;
use kubeveil_linux::RealKernel;
use tokio::runtime::Runtime;

use crate::{
    args::{Args, Uninstall},
    kept::KeptFile,
    run,
};

/// Exit 0 when nothing of ours remains, 1 when something does.
pub(crate) fn uninstall(args: &Args, options: &Uninstall) -> Result<ExitCode> {
    let _locks = run::lock(args).context("uninstall needs the daemon to be stopped")?;
    let (_, kept, unreadable) = KeptFile::open(&args.state_dir);
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
    if removed.pins {
        gone.push(format!("programs and maps below {}", args.bpf_dir.display()));
    }
    gone.extend(removed.backstops.iter().map(|form| format!("the backstop ({})", form.name())));
    gone.extend(removed.devices.iter().map(|d| format!("WireGuard device {d}")));
    remove_file(&args.socket, &mut gone, &mut errors);
    remove_file(&args.state_dir.join("known.json"), &mut gone, &mut errors);
    if options.remove_keys {
        let keys = args.state_dir.join("keys");
        match fs::remove_dir_all(&keys) {
            Ok(()) => gone.push(format!("keys in {}", keys.display())),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => errors.push(format!("remove {}: {e}", keys.display())),
        }
    }
    report(args, options, &gone, &errors);
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn remove_file(path: &std::path::Path, gone: &mut Vec<String>, errors: &mut Vec<String>) {
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
