//! Embeds the eBPF object that `cargo xtask build-ebpf` made.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=KUBEVEIL_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kubeveil.bpf.o");
    let object = env::var_os("KUBEVEIL_EBPF_OBJECT").map(PathBuf::from);
    if let Some(object) = &object {
        println!("cargo::rerun-if-changed={}", object.display());
    }
    match object.filter(|path| path.exists()) {
        Some(object) => {
            fs::copy(&object, &out)
                .unwrap_or_else(|e| panic!("copy the eBPF object {}: {e}", object.display()));
        }
        // Checks and unit tests don't need it; the daemon says so when it is started.
        None => fs::write(&out, []).expect("write to OUT_DIR"),
    }
}
