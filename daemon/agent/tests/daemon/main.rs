//! The daemon itself, on this machine's kernel: what it says when something is missing or wrong, and what
//! its doors answer. Needs no WireGuard; tunnels are the lab's business.
#![expect(clippy::print_stdout, reason = "a test runner's output is the point of it")]
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod cell;
mod unit;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, ExitCode, Stdio},
};

use cell::{Cell, daemon};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    let mut trials = vec![
        trial("it_says_which_flag_is_missing", flags, None),
        trial("it_names_a_folder_that_is_no_bpf_file_system", no_bpffs, needs_root()),
        trial("it_names_a_capability_that_is_missing", no_capability, needs_root()),
        trial("a_second_daemon_is_refused", second, needs_root()),
        trial("a_key_file_open_to_others_is_set_aside_and_told", open_key, needs_root()),
        trial("underlay_devices_can_be_named", underlay, needs_root()),
        trial("a_port_in_use_leaves_no_node_unguarded", port_in_use, needs_root()),
        trial("doors_and_keys_are_for_root_alone", doors, needs_root()),
        trial("a_program_ahead_of_ours_is_a_problem", ahead, needs_root()),
        trial("counters_survive_a_restart", counters, needs_root()),
        trial("promtool_is_content", promtool, needs_root().or_else(needs_promtool)),
        trial("the_systemd_unit_is_one", unit::verified, needs_systemd()),
        trial("the_systemd_units_capabilities_suffice", unit::capabilities, needs_root()),
        trial("uninstall_wants_to_be_told", uninstall, needs_root()),
        trial("uninstall_by_others_than_root_says_so", uninstall_unprivileged, needs_root()),
    ];
    // A kernel that has it can't show what is said where it is missing.
    if needs_root().is_some() || !has_wireguard() {
        trials.push(trial("a_kernel_without_wireguard_is_named_and_closed", no_wireguard, needs_root()));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, run: fn(), missing: Option<&'static str>) -> Trial {
    let told = name.to_owned();
    Trial::ignorable_test(name, move || {
        if let Some(reason) = missing {
            println!("skipped: {told} ({reason})");
            return Ok(Completion::ignored_with(reason));
        }
        std::panic::catch_unwind(run).map(|()| Completion::Completed).map_err(|_| Failed::from("see above"))
    })
}

fn needs_root() -> Option<&'static str> {
    (!rustix::process::geteuid().is_root()).then_some("needs root: programs are loaded")
}

fn has_wireguard() -> bool {
    let script = "ip link add probe type wireguard";
    let made = Command::new("unshare").args(["--net", "sh", "-c", script]).stderr(Stdio::null()).status();
    made.is_ok_and(|s| s.success())
}

fn needs_promtool() -> Option<&'static str> {
    std::env::var_os("KUBEVEIL_PROMTOOL").is_none().then_some("needs promtool: `cargo xtask test` brings it")
}

fn needs_systemd() -> Option<&'static str> {
    let version = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status();
    version.is_err().then_some("needs systemd-analyze: it reads the unit")
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

fn flags() {
    for (arguments, said) in [
        (&[][..], "--source <SOURCE>\n  --node <NODE>"),
        (&["--source", "dir:/tmp"][..], "--node <NODE>"),
        (&["--node", "a"][..], "--source <SOURCE>"),
        (&["--node", "a", "--source", "etcd:x"][..], "must be dir:PATH"),
        (&["--node", "a", "--source", "dir:/tmp", "--log", "no=such=filter"][..], "--log"),
    ] {
        let mut command = daemon();
        command.env_remove("KUBEVEIL_NODE").env_remove("KUBEVEIL_SOURCE");
        let output = command.args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(arguments.contains(&"--log") || output.status.code() == Some(2), "{arguments:?}");
        contains(&String::from_utf8_lossy(&output.stderr), &[said]);
    }
}

fn no_bpffs() {
    let dir = tempfile::tempdir().unwrap();
    let output = daemon()
        .args(["--node", "a", "--source", "dir:/tmp", "--bpf-dir"])
        .arg(dir.path().join("bpf"))
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    contains(
        &String::from_utf8_lossy(&output.stderr),
        &["not on a BPF file system", "mount -t bpf bpf /sys/fs/bpf"],
    );
    assert!(!dir.path().join("state").exists(), "nothing is touched before all is there");
}

fn no_capability() {
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-bpf,-sys_admin,-net_admin", "--inh-caps", "-bpf,-sys_admin,-net_admin"])
        .arg(env!("CARGO_BIN_EXE_kubeveild"))
        .args(["--node", "a", "--source", "dir:/tmp"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    contains(&String::from_utf8_lossy(&output.stderr), &["CAP_BPF", "CAP_NET_ADMIN", "securityContext"]);
}

fn no_wireguard() {
    let cell = Cell::start();
    // Closed all the same: the programs stand, and nothing goes by a tunnel.
    let status =
        cell.wait_for(|status| status["problems"].to_string().contains("kubeveil0") && all_attached(status));
    contains(&status["problems"].to_string(), &["kubeveil0", "modprobe wireguard"]);
    assert_eq!(status["ready"], false);
    assert!(status["peers"].as_array().unwrap().iter().all(|p| p["tunnelled"] == false), "{status}");
}

/// As of the daemon's last look at the kernel, which follows the round that attaches them.
fn all_attached(status: &serde_json::Value) -> bool {
    let programs = status["programs"].as_array().unwrap();
    !programs.is_empty() && programs.iter().all(|p| p["attached"] == true)
}

fn second() {
    let cell = Cell::start();
    cell.wait_for(|_| true);
    // Over the same state, over the same pins alone, and with nothing in common but the network.
    for (state, pins) in [("state", "kubeveil"), ("elsewhere", "kubeveil"), ("elsewhere", "other")] {
        // One that is not refused runs until it is ended.
        let mut second = Command::new("timeout");
        let command = cell.command(state, pins);
        second.arg("10").arg(command.get_program()).args(command.get_args());
        let output = second.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{state}, {pins}");
        let said = String::from_utf8_lossy(&output.stderr);
        contains(&said, &["another kubeveild runs on this node", "stop one of them"]);
    }
}

fn open_key() {
    let cell = Cell::start();
    let key = |status: &serde_json::Value| status["key"]["publicKey"].as_str().map(str::to_owned);
    let before = key(&cell.wait_for(|status| key(status).is_some()));
    let cell = cell.stop();
    let file = cell.state().join("keys/generation-0.key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let cell = cell.start_again();
    let status = cell.wait_for(|status| key(status).is_some());
    assert_ne!(key(&status), before, "a key that others could read is not used");
    contains(&status["problems"].to_string(), &["generation-0.key", "0644", "set-aside"]);
    contains(&cell.log(), &["generation-0.key", "0644"]);
    contains(&cell.get("/metrics"), &["kubeveil_reconcile_errors_total{kind=\"key_store\"} 1\n"]);
    // It stays in sight after a restart, until somebody has looked.
    let cell = cell.stop().start_again();
    let again = cell.wait_for(|status| key(status).is_some());
    assert_eq!(key(&again), key(&status));
    contains(&again["problems"].to_string(), &["set aside by an earlier start"]);
}

/// `eth0` has the node's address: it is guarded whatever is named, as well as what is named.
fn underlay() {
    let devices = |status: &serde_json::Value| {
        let programs = status["programs"].as_array().unwrap().iter();
        let there = programs.filter(|p| p["deviceKind"] == "underlay" && p["attached"] == true);
        let mut devices: Vec<_> = there.map(|p| p["device"].as_str().unwrap().to_owned()).collect();
        devices.sort_unstable();
        devices
    };
    let cell = Cell::start();
    cell.wait_for(|status| devices(status) == ["eth0", "eth0"]);
    let cell = cell.stop().start_with(&["--underlay", "far"]);
    cell.wait_for(|status| devices(status) == ["eth0", "eth0", "far", "far"]);
    let cell = cell.stop().start_with(&["--underlay", "eht0"]);
    let status = cell.wait_for(|status| status["problems"].to_string().contains("--underlay"));
    contains(&status["problems"].to_string(), &["device eht0", "there are:", "eth0"]);
    contains(&status["waitingFor"].to_string(), &["device eht0 (--underlay)"]);
    assert_eq!(status["ready"], false);
    assert_eq!(devices(&status), ["eth0", "eth0"]);
}

fn port_in_use() {
    let cell = Cell::start().stop();
    let taken = cell.take_port(9586);
    let cell = cell.start_again();
    cell.wait_for(|status| {
        status["problems"].to_string().contains("--metrics-address") && all_attached(status)
    });
    drop(taken);
    cell.wait_for(|status| !status["problems"].to_string().contains("--metrics-address"));
}

/// Only root may ask: the socket is the way to what a node knows.
fn doors() {
    let cell = Cell::start();
    cell.wait_for(|_| true);
    let mode = |path: &str| fs::metadata(cell.state().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("../socket"), 0o600);
    assert_eq!((mode("keys"), mode("keys/generation-0.key")), (0o700, 0o600));
}

/// Somebody attaches a program before ours: it could take packets away, so it is told, until it is gone.
fn ahead() {
    let cell = Cell::start();
    let steer = |status: &serde_json::Value| {
        let programs = status["programs"].as_array().unwrap();
        programs.iter().find(|p| p["program"] == "steer").map_or(u64::MAX, |p| p["ahead"].as_u64().unwrap())
    };
    cell.wait_for(|status| steer(status) == 0);
    let foreign = cell.attach_ahead("eth0");
    let status =
        cell.wait_for(|status| steer(status) == 1 && status["problems"].to_string().contains("position"));
    contains(
        &status["problems"].to_string(),
        &["device eth0", "before ours runs program ", "(steer)", "leaves in plain", "bpftool prog show id"],
    );
    drop(foreign);
    cell.wait_for(|status| steer(status) == 0 && !status["problems"].to_string().contains("position"));
}

/// Packets that `steer` passed: the devices' own chatter on a new link will do.
fn counters() {
    let passed = |cell: &Cell| {
        let metrics = cell.get("/metrics");
        let name = "kubeveil_packets_total{direction=\"egress\",verdict=\"pass\"} ";
        metrics.lines().find_map(|l| l.strip_prefix(name)).map_or(0, |n| n.parse::<u64>().unwrap())
    };
    let cell = Cell::start();
    cell.wait_for(|status| status["programs"].as_array().unwrap().iter().all(|p| p["attached"] == true));
    cell.chatter();
    let before = passed(&cell);
    assert!(before > 0, "{}", cell.get("/metrics"));
    let cell = cell.stop().start_again();
    cell.wait_for(|_| true);
    assert!(passed(&cell) >= before, "{} after {before}", passed(&cell));
}

fn promtool() {
    let cell = Cell::start();
    cell.wait_for(|_| true);
    let file = cell.state().join("metrics");
    fs::write(&file, cell.get("/metrics")).unwrap();
    let promtool = std::env::var_os("KUBEVEIL_PROMTOOL").unwrap();
    let output = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

fn uninstall() {
    let cell = Cell::start();
    cell.wait_for(|_| true);
    let running = cell.uninstall(&["--accept-plaintext"]);
    assert!(!running.status.success());
    contains(&String::from_utf8_lossy(&running.stderr), &["needs the daemon to be stopped"]);
    let cell = cell.stop();
    let unasked = cell.uninstall(&[]);
    assert!(!unasked.status.success());
    contains(
        &String::from_utf8_lossy(&unasked.stderr),
        &["requires encryption", "Nothing was changed", "--accept-plaintext"],
    );
    let told = cell.uninstall(&["--accept-plaintext"]);
    assert!(told.status.success());
    contains(&String::from_utf8_lossy(&told.stdout), &["removed programs and maps", "kept    keys"]);
    // Nothing is left to take away.
    for options in [&[][..], &["--accept-plaintext"]] {
        let again = cell.uninstall(options);
        assert_eq!(again.status.code(), Some(1), "{options:?}");
        contains(&String::from_utf8_lossy(&again.stderr), &["nothing of kubeveil is on this node"]);
    }
}

fn uninstall_unprivileged() {
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg("/proc/self/fd/0")
        .arg("uninstall")
        .stdin(fs::File::open(env!("CARGO_BIN_EXE_kubeveild")).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    contains(&said, &["CAP_NET_ADMIN", "Run kubeveild as root"]);
    assert!(!said.contains("stopped"), "{said}");
}
