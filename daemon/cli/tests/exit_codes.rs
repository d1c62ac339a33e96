//! How the program ends where nobody answers, which scripts and timers go by.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Output},
    thread,
};

use kubeveil_api::{
    announcement::{Announcement, GenerationEntry, GenerationState, NotFlipped},
    names,
};
use kubeveil_keys::{Generation, PrivateKey};
use serde_json::{Value, json};

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

/// A node of this name with a key of the first generation.
fn node(name: &str) -> Value {
    let key = PrivateKey::generate().expect("randomness");
    let entry = GenerationEntry {
        generation: Generation::FIRST,
        public_key: key.public(),
        port: 51871.try_into().expect("a port"),
        state: GenerationState::Active,
    };
    let said = Announcement::sign(name, "uid", vec![entry], NotFlipped::nobody(), &[&key]).expect("signed");
    json!({"metadata": {"name": name, "uid": "uid", "annotations": {names::ANNOUNCEMENT: said.to_json()}}})
}

/// What an API server with one node says to a request; to a change this, with that code.
fn says(request: &str, node: &Value, (code, message): (u16, &str)) -> (u16, Value) {
    let mesh = json!({
        "apiVersion": "kubeveil.io/v1alpha1", "kind": "EncryptionMesh",
        "metadata": {"name": "default", "resourceVersion": "7"},
        "spec": {"mode": "require", "podCIDRs": ["10.244.0.0/16"], "keyGeneration": 0},
    });
    match request.split_whitespace().next() {
        Some("PATCH") => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code,
            });
            (code, status)
        }
        Some("POST") => (201, json!({"status": {"userInfo": {"username": "alice"}}})),
        _ if request.contains("/nodes") => {
            let (version, kind) = ("meta.k8s.io/v1", "PartialObjectMetadataList");
            (200, json!({"apiVersion": version, "kind": kind, "metadata": {}, "items": [node]}))
        }
        _ => (200, mesh),
    }
}

/// An API server that answers each change so, as a source. It ends with the process.
fn refusing(dir: &Path, change: (u16, &'static str)) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let node = node("node-1");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("the same"));
            let head: Vec<String> =
                reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let length = head
                .iter()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            drop(reader.read_exact(&mut body));
            let (code, answer) = says(head.first().map_or("", String::as_str), &node, change);
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            drop(stream.write_all(format!("{head}{answer}").as_bytes()));
        }
    });
    kubeconfig(dir, port)
}

/// An API server that says no is one that answers: 1, with its words. One that can't, or does not know who asks, is none.
#[test]
fn rotate_ends_with_1_where_a_change_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    for (code, message, ends) in [
        (403, "users may not patch encryptionmeshes", 1),
        (422, "the last rotation is not over", 1),
        (400, "denied by a webhook", 1),
        (401, "who are you", 3),
        (500, "etcd is away", 3),
    ] {
        let source = refusing(dir.path(), (code, message));
        for arguments in [&["--no-wait"][..], &["pause"], &["--compromised", "node-1"]] {
            let done = rotate(arguments, &source);
            let told = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(ends), "rotate {arguments:?} after {code}: {told}");
            assert!(told.contains(message), "rotate {arguments:?} after {code}: {told}");
            assert!(done.stdout.is_empty(), "rotate {arguments:?} after {code}");
        }
    }
}
