//! How the program ends where nobody answers, which scripts and timers go by.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Output},
    thread,
};

use serde_json::json;

/// Each way of `rotate` that asks before it does anything.
const ALL: [&[&str]; 8] = [
    &[],
    &["--no-wait"],
    &["--compromised", "node-1"],
    &["status"],
    &["history"],
    &["pause"],
    &["resume"],
    &["finish", "--force"],
];

/// `kubeveil rotate …`, as somebody whose environment names no cluster.
fn rotate(arguments: &[&str], source: &str) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kubeveil"));
    program.env_remove("KUBECONFIG").env_remove("KUBEVEIL_SOURCE").env_remove("HTTPS_PROXY");
    program.arg("rotate").args(arguments).args(["--source", source]).output().expect("it runs")
}

/// An API server at this port of loopback.
fn kubeconfig(dir: &Path, port: u16) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "test", "user": {"token": "t"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    let path = dir.join(format!("{port}.kubeconfig"));
    fs::write(&path, config.to_string()).expect("written");
    format!("kubernetes:{}", path.display())
}

/// It ends with 3, says on standard error who does not answer, and nothing on standard output, which programs read.
fn is_told(arguments: &[&str], source: &str, names: &str) {
    let done = rotate(arguments, source);
    let told = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "rotate {arguments:?}: {told}");
    assert!(told.starts_with("kubeveil: ") && told.contains(names), "rotate {arguments:?}: {told}");
    assert!(done.stdout.is_empty(), "rotate {arguments:?}: {}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn rotate_ends_with_3_where_no_api_server_listens() {
    let dir = tempfile::tempdir().expect("a folder");
    // Held until its number is known, so that it is nobody's.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let source = kubeconfig(dir.path(), port);
    for arguments in ALL {
        is_told(arguments, &source, &format!("127.0.0.1:{port}"));
    }
}

/// Something listens there, such as a load balancer without an API server behind it.
#[test]
fn rotate_ends_with_3_where_something_else_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // It ends with the process.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The head of the request; who is gone already has no need of an answer.
            let head = BufReader::new(&stream).lines().map_while(Result::ok);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            drop(stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"));
        }
    });
    let source = kubeconfig(dir.path(), port);
    for arguments in ALL {
        is_told(arguments, &source, &format!("127.0.0.1:{port}"));
    }
}

/// A finding is something else than silence: 1, and 2 for what makes no sense.
#[test]
fn rotate_ends_otherwise_where_somebody_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = format!("dir:{}", dir.path().display());
    is_told(&["status"], &source, "no file in it holds EncryptionMesh");
    let mesh = "apiVersion: kubeveil.io/v1alpha1\nkind: EncryptionMesh\nmetadata: {name: default}\nspec: {mode: require, podCIDRs: [10.244.0.0/16]}\n";
    fs::write(dir.path().join("mesh.yaml"), mesh).expect("written");
    let code = |arguments: &[&str]| rotate(arguments, &source).status.code();
    assert_eq!(code(&["history"]), Some(0));
    assert_eq!(code(&["--no-wait"]), Some(1), "no node announces a key");
    assert_eq!(code(&["--reason", &"x".repeat(257)]), Some(2));
    assert_eq!(code(&["--nodes", "pool=a", "--compromised", "node-1"]), Some(2));
}
