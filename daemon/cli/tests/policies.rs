//! Policies before a cluster has them, and flows explained, over files: what is said, and how the program ends.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

use std::{fs, path::Path, process::Command};

use serde_json::Value;

const MESH: &str = "apiVersion: kubeveil.io/v1alpha1
kind: EncryptionMesh
metadata: {name: default}
spec: {mode: observe, podCIDRs: [10.244.0.0/16, 'fd00:244::/32'], nodeCIDRs: [192.0.2.0/24]}
";

/// As `kubectl get namespaces,pods -A -o yaml` prints them.
const CLUSTER: &str = "apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: payments, labels: {team: payments}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
- apiVersion: v1
  kind: Pod
  metadata: {name: ledger-1, namespace: payments, uid: u1, labels: {app: ledger, pod-template-hash: x}}
  spec: {nodeName: node-1}
  status: {phase: Running, podIPs: [{ip: 10.244.1.8}, {ip: 'fd00:244:1::8'}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: ledger-2, namespace: payments, uid: u2, labels: {app: ledger, pod-template-hash: y}}
  spec: {nodeName: node-2}
  status: {phase: Running, podIPs: [{ip: 10.244.2.8}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: web-1, namespace: shop, uid: u3, labels: {app: web}}
  spec: {nodeName: node-2}
  status: {phase: Running, podIPs: [{ip: 10.244.2.7}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: proxy, namespace: shop, uid: u4, labels: {app: proxy}}
  spec: {nodeName: node-2, hostNetwork: true}
  status: {phase: Running, podIPs: [{ip: 192.0.2.2}]}
- apiVersion: v1
  kind: Node
  metadata: {name: node-1, uid: n1}
  spec: {podCIDRs: [10.244.1.0/24, 'fd00:244:1::/64']}
  status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
- apiVersion: v1
  kind: Node
  metadata: {name: node-2, uid: n2}
  spec: {podCIDRs: [10.244.2.0/24, 'fd00:244:2::/64']}
  status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
";

const POLICY: &str = "apiVersion: kubeveil.io/v1alpha1
kind: EncryptionPolicy
metadata: {name: cardholder-data, namespace: payments}
spec: {podSelector: {matchLabels: {app: ledger}}, mode: require}
";

const EXEMPTION: &str = "apiVersion: kubeveil.io/v1alpha1
kind: ClusterEncryptionPolicy
metadata: {name: scrapes}
spec: {namespaceSelector: {matchLabels: {team: shop}}, podSelector: {}, mode: exempt, reason: 'metrics are public'}
";

const TESTS: &str = "apiVersion: kubeveil.io/v1alpha1
kind: PolicyTest
metadata: {name: pci}
spec:
  expect:
  - {from: {pod: payments/ledger-1}, to: {pod: shop/web-1}, mode: require}
  - {from: {namespace: payments, labels: {app: ledger}}, to: {namespace: shop, labels: {app: new}}, mode: require}
  - {from: {namespace: elsewhere, namespaceLabels: {team: shop}}, to: {pod: shop/web-1}, mode: prefer}
";

/// `kubeveil …` in this folder, as somebody whose environment names no cluster: how it ends, and what it says on both outputs.
fn kubeveil(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kubeveil"));
    program.env_remove("KUBECONFIG").env_remove("KUBEVEIL_SOURCE").env("KUBEVEIL_SOCKET", "no.sock");
    let done = program.args(arguments).current_dir(dir).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (done.status.code(), text(done.stdout), text(done.stderr))
}

/// A folder of these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }
    dir
}

/// A repository of policies, and a dump of a cluster beside it.
fn repository(tests: &str) -> tempfile::TempDir {
    folder(&[
        ("policies/mesh.yaml", MESH),
        ("policies/payments/pci.yaml", POLICY),
        ("policies/tests.yaml", tests),
        ("dump.yaml", CLUSTER),
    ])
}

const TEST: [&str; 6] = ["policy", "test", "-f", "policies", "--pods", "dump.yaml"];

#[test]
fn what_is_expected_passes_or_fails_with_the_rule() {
    let dir = repository(TESTS);
    let (code, told, _) = kubeveil(dir.path(), &TEST);
    insta::assert_snapshot!("policy_test_passes", told);
    assert_eq!(code, Some(0));
    // The same, where the policy is gone: the first fails.
    fs::remove_file(dir.path().join("policies/payments/pci.yaml")).expect("removed");
    let (code, told, _) = kubeveil(dir.path(), &TEST);
    insta::assert_snapshot!("policy_test_fails", told);
    assert_eq!(code, Some(1));
    let (code, told, _) = kubeveil(dir.path(), &[&TEST[..], &["-o", "json"]].concat());
    let document: Value = serde_json::from_str(&told).expect("JSON");
    insta::assert_json_snapshot!("policy_test_json", document);
    assert_eq!(code, Some(1));
    // In another mesh everything would be as strict.
    let (code, _, _) = kubeveil(dir.path(), &[&TEST[..], &["--mesh-mode", "require"]].concat());
    assert_eq!(code, Some(1), "one of them expects prefer");
}

#[test]
fn an_exemption_holds_between_those_who_have_it() {
    let expects = |mode: &str| {
        format!(
            "apiVersion: kubeveil.io/v1alpha1\nkind: PolicyTest\nspec: {{expect: [{{from: {{pod: shop/web-1}}, to: {{namespace: shop}}, mode: {mode}}}]}}\n"
        )
    };
    for (mode, ends) in [("exempt", 0), ("require", 1)] {
        let dir = folder(&[
            ("mesh.yaml", MESH),
            ("p.yaml", EXEMPTION),
            ("t.yaml", &expects(mode)),
            ("c.yaml", CLUSTER),
        ]);
        let (code, told, _) = kubeveil(dir.path(), &["policy", "test", "-f", ".", "--mesh-mode", "require"]);
        assert_eq!(code, Some(ends), "{told}");
    }
}

/// What can't be tested is no pass: 2, with file, document and field.
#[test]
fn what_can_not_be_tested_is_told_with_its_place() {
    let expect = |entry: &str| {
        format!(
            "apiVersion: kubeveil.io/v1alpha1\nkind: PolicyTest\nmetadata: {{name: pci}}\nspec: {{expect: [{entry}]}}\n"
        )
    };
    let second = |text: &str| format!("{MESH}---\n{text}");
    for (tests, words) in [
        ("", "policies/tests.yaml: holds no object"),
        (MESH, "PolicyTest: none of the files says what is expected"),
        ("apiVersion: kubeveil.io/v1alpha1\nkind: PolicyTest\nspec: {expect: []}\n", "spec.expect: is empty"),
        ("apiVersion: kubeveil.io/v1alpha1\nkind: PolicyTest\nspec: {}\n", "spec: missing field `expect`"),
        (
            &second(&expect("{from: {pod: shop/web-2}, to: {pod: shop/web-1}, mode: require}")),
            "spec.expect[0].from.pod: there is no pod shop/web-2 among the manifests; there is shop/web-1",
        ),
        (
            &expect("{from: {pod: shop/proxy}, to: {pod: shop/web-1}, mode: require}"),
            "is of its node's network",
        ),
        (&expect("{from: {}, to: {pod: shop/web-1}, mode: require}"), "spec.expect[0].from"),
        (
            &second(&expect("{from: {pod: shop/web-1}, to: {pod: shop/web-1}, mode: must}")),
            "policies/tests.yaml (document 2), PolicyTest pci spec.expect[0].mode: unknown variant `must`",
        ),
        (
            &expect("{from: {pod: shop/web-1, lables: {}}, to: {pod: shop/web-1}, mode: require}"),
            "spec.expect[0].from.lables: unknown field",
        ),
        (&second("a: ["), "policies/tests.yaml: is not YAML: unclosed bracket '[' at line 6"),
        (
            &second(&POLICY.replace("ledger", "other")),
            "EncryptionPolicy payments/cardholder-data: policies/payments/pci.yaml has one too",
        ),
    ] {
        let dir = repository(tests);
        let (code, told, wrong) = kubeveil(dir.path(), &TEST);
        assert_eq!((code, told.as_str()), (Some(2), ""), "{tests}: {wrong}");
        assert!(wrong.starts_with("kubeveil: ") && wrong.contains(words), "{tests}: {wrong}");
    }
    let dir = folder(&[("t.yaml", TESTS), ("c.yaml", CLUSTER)]);
    let (code, _, wrong) = kubeveil(dir.path(), &["policy", "test", "-f", "."]);
    assert!(
        code == Some(2) && wrong.contains("EncryptionMesh default spec.mode: is not among the files"),
        "{wrong}"
    );
    let (code, _, wrong) = kubeveil(dir.path(), &["policy", "test", "-f", "none.yaml"]);
    assert!(code == Some(2) && wrong.contains("file none.yaml: can't be read"), "{wrong}");
}

#[test]
fn a_flow_is_explained() {
    let dir = folder(&[
        ("mesh.yaml", MESH),
        ("cluster.yaml", CLUSTER),
        ("pci.yaml", POLICY),
        ("tests.yaml", TESTS),
    ]);
    let explain = |ends: [&str; 2], more: &[&str]| {
        kubeveil(dir.path(), &[&["explain"], &ends[..], &["--source", "dir:."], more].concat())
    };
    let (code, told, _) = explain(["shop/web-1", "payments/ledger-1"], &[]);
    insta::assert_snapshot!("explain_require", told);
    assert_eq!(code, Some(0));
    let (code, told, _) = explain(["shop/web-1", "node/node-1"], &[]);
    insta::assert_snapshot!("explain_a_node", told);
    assert_eq!(code, Some(1));
    let (code, told, _) = explain(["fd00:244:1::8", "shop/web-1"], &["-o", "json"]);
    let document: Value = serde_json::from_str(&told).expect("JSON");
    insta::assert_json_snapshot!("explain_json", document);
    assert_eq!(code, Some(0));
    assert_eq!(explain(["payments/ledger-2", "shop/web-1"], &[]).0, Some(0), "on one node");
    assert_eq!(explain(["payments/ledger-2", "198.51.100.7"], &[]).0, Some(1), "outside");
    let (code, told, wrong) = explain(["payments/ledger", "shop/web-1"], &[]);
    assert_eq!((code, told.as_str()), (Some(2), ""));
    assert!(
        wrong.contains("no pod payments/ledger; there is payments/ledger-1, payments/ledger-2"),
        "{wrong}"
    );
    let (code, _, wrong) = kubeveil(dir.path(), &["explain", "a/b", "c/d", "--source", "dir:none"]);
    assert!(code == Some(3) && wrong.contains("folder none: does not exist"), "{wrong}");
    // Half of the policies decide on nothing.
    fs::write(dir.path().join("more.yaml"), POLICY.replace("require", "must")).expect("written");
    let (code, _, wrong) = explain(["shop/web-1", "payments/ledger-1"], &[]);
    assert!(
        code == Some(3) && wrong.contains("more.yaml, EncryptionPolicy cardholder-data spec.mode"),
        "{wrong}"
    );
}

const SERVICES: &str = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: ledger, namespace: payments}
  spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], selector: {app: ledger}}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop}
  spec: {clusterIP: None, selector: {app: web}}
- apiVersion: serving.knative.dev/v1
  kind: Service
  metadata: {name: web, namespace: shop}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: ledger-x, namespace: payments, labels: {kubernetes.io/service-name: ledger}}
  addressType: IPv4
  endpoints: [{addresses: [10.244.1.8], conditions: {ready: true}}, {addresses: [10.244.2.8], conditions: {ready: false}}]
";

#[test]
fn a_service_is_whomever_it_can_choose() {
    let dir = folder(&[
        ("mesh.yaml", MESH),
        ("cluster.yaml", CLUSTER),
        ("pci.yaml", POLICY),
        ("services.yaml", SERVICES),
    ]);
    let explain = |ends: [&str; 2], more: &[&str]| {
        kubeveil(dir.path(), &[&["explain"], &ends[..], &["--source", "dir:."], more].concat())
    };
    let (code, told, _) = explain(["shop/web-1", "svc/payments/ledger"], &[]);
    insta::assert_snapshot!("explain_a_service", told);
    assert_eq!(code, Some(0));
    assert_eq!(explain(["shop/web-1", "10.96.0.7"], &[]).1, told, "by its address");
    let (code, json, _) = explain(["svc/shop/web", "svc/payments/ledger"], &["-o", "json"]);
    let document: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(code, Some(0));
    assert_eq!(document["services"], serde_json::json!(["svc/shop/web", "svc/payments/ledger"]));
    assert_eq!(document["flows"][0]["from"]["pod"], "shop/web-1");
    assert_eq!(document["flows"][0]["flow"]["mode"], "require");
    let (code, told, wrong) = explain(["shop/web-1", "svc/payments/ledgers"], &[]);
    assert_eq!((code, told.as_str()), (Some(2), ""));
    assert!(wrong.contains("there is no svc/payments/ledgers; there is svc/payments/ledger"), "{wrong}");
}

/// Where no daemon is to see anything, the rest is told all the same, and that it lacks something.
#[test]
fn what_can_not_be_watched_is_told() {
    let dir = folder(&[("mesh.yaml", MESH), ("cluster.yaml", CLUSTER), ("pci.yaml", POLICY)]);
    let explain = |ends: [&str; 2], watch: &str| {
        let more = ["--source", "dir:.", "--watch", watch];
        kubeveil(dir.path(), &[&["explain"], &ends[..], &more].concat())
    };
    let (code, told, wrong) = explain(["shop/web-1", "payments/ledger-1"], "1s");
    assert_eq!(code, Some(3));
    assert!(told.contains("Flow   require") && told.contains("Seen   not observed: connect to"), "{told}");
    assert!(wrong.contains("packets can't be watched: connect to no.sock"), "{wrong}");
    let (code, told, wrong) = explain(["shop/web-1", "payments/ledger-2"], "1s");
    assert_eq!((code, wrong.as_str()), (Some(0), ""), "both are on one node");
    assert!(!told.contains("Seen"), "{told}");
    for time in ["0s", "1ms", "11m", "x"] {
        let (code, _, wrong) = explain(["shop/web-1", "payments/ledger-1"], time);
        assert!(code == Some(2) && wrong.contains("--watch <TIME>"), "{time}: {wrong}");
    }
}

#[test]
fn a_difference_is_told_before_it_is_made() {
    let dir = folder(&[("cluster/mesh.yaml", MESH), ("cluster/pods.yaml", CLUSTER), ("new.yaml", POLICY)]);
    let diff = |arguments: &[&str]| kubeveil(dir.path(), &[&["policy", "diff"], arguments].concat());
    let (code, told, _) = diff(&["-f", "new.yaml", "--source", "dir:cluster"]);
    insta::assert_snapshot!("policy_diff", told);
    assert_eq!(code, Some(1));
    let (code, json, _) = diff(&["-f", "new.yaml", "--pods", "cluster", "-o", "json"]);
    let document: Value = serde_json::from_str(&json).expect("JSON");
    insta::assert_json_snapshot!("policy_diff_json", document);
    assert_eq!(code, Some(1));
    fs::copy(dir.path().join("new.yaml"), dir.path().join("cluster/pci.yaml")).expect("copied");
    let (code, told, _) = diff(&["-f", "new.yaml", "--pods", "cluster"]);
    assert_eq!(
        (code, told.as_str()),
        (Some(0), "Nothing changes: every flow would be held to what it is held to now.\n")
    );
    let (code, told, _) =
        diff(&["--remove", "EncryptionPolicy/payments/cardholder-data", "--pods", "cluster"]);
    insta::assert_snapshot!("policy_diff_of_one_removed", told);
    assert_eq!(code, Some(1));
    let (code, _, wrong) = diff(&["--remove", "ClusterEncryptionPolicy/x", "--pods", "cluster"]);
    let known =
        "ClusterEncryptionPolicy x: does not exist; there is EncryptionPolicy payments/cardholder-data";
    assert!(code == Some(2) && wrong.contains(known), "{wrong}");
    for arguments in [
        &["--pods", "cluster"][..],
        &["-f", "cluster/pods.yaml", "--pods", "cluster"],
        &["--remove", "Pod/x", "--pods", "cluster"],
    ] {
        assert_eq!(diff(arguments).0, Some(2), "{arguments:?}");
    }
    assert_eq!(diff(&["-f", "new.yaml", "--source", "dir:none"]).0, Some(3));
}
