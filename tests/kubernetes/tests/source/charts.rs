//! The chart: what helm makes of it, what the API server says to that, and what an upgrade keeps.

use std::{
    collections::BTreeSet,
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use http::Method;
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    chart::{AGENT, CHART, NAMESPACE, helm, hook, release, render, said},
    server::{Server, Who},
};
use serde_json::{Value, json};

use crate::OnServer;

/// Set to anything, it makes a test write the goldens that differ.
const WRITE: &str = "KUBEVEIL_WRITE";
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/source/charts");
/// A moment, since the chart's own would be another each time.
const DEADLINE: &str = "--set=encryption.adoption.deadline=2027-01-31T12:00:00Z";
const ENABLED: &str = "--set=encryption.enabled=true";
const MESH: &str = "/apis/kubeveil.io/v1alpha1/encryptionmeshes/default";
const AGENTS: &str = "/apis/apps/v1/namespaces/kubeveil/daemonsets/kubeveil-agent";
/// As a cluster that has no admission policies tells helm of itself.
const WITHOUT_POLICIES: &str = "--api-versions=v1/Node";

/// Values, by the name of their golden.
const CASES: &[(&str, &[&str])] = &[
    ("default", &[]),
    ("enabled", &[ENABLED, DEADLINE]),
    (
        "prefer",
        &[
            ENABLED,
            DEADLINE,
            "--set=encryption.mode=prefer,encryption.keyGeneration=3",
            "--set=encryption.podCIDRs={10.0.0.0/8,fd00:244::/48},encryption.nodeCIDRs={192.0.2.0/24}",
            "--set=encryption.excludedNodes.selector.matchLabels.pool=virtual,encryption.excludedNodes.traffic=plain",
            "--set=encryption.peerSlices=never",
        ],
    ),
    (
        "image",
        &[
            "--set=image.repository=registry.example/veil,image.tag=ignored,image.pullPolicy=Always",
            "--set=image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ],
    ),
    (
        "agent",
        &[
            "--set=agent.metricsAddress=[::1]:9600,agent.logLevel=debug,agent.backstop=nftables",
            "--set=agent.extraArgs={--underlay=eth1},agent.resources.limits.memory=256Mi",
            "--set=agent.seccompProfile.type=Localhost,agent.seccompProfile.localhostProfile=kubeveil.json",
        ],
    ),
    ("metrics", &["--set=metrics.podMonitor.enabled=true,metrics.prometheusRule.enabled=true"]),
    ("kept", &["--set=uninstall.keepEnforcement=true,controller.replicas=1"]),
    ("without-policies", &[WITHOUT_POLICIES, "--set=admissionPolicy.acceptMissing=true"]),
];

/// Values that are refused, and what that says.
const REFUSED: &[(&[&str], &str)] = &[
    (&["--set=something=1"], "additional properties 'something' not allowed"),
    (&["--set=encryption.enable=true"], "additional properties 'enable' not allowed"),
    (&["--set=agent.resources.request.cpu=1"], "additional properties 'request' not allowed"),
    (&["--set=mode=require"], "is called encryption.mode"),
    (&["--set=encryption.podCidrs={10.0.0.0/8}"], "is called encryption.podCIDRs"),
    (&["--set=encryption.deadline=x"], "is called encryption.adoption.deadline"),
    (&["--set=image.registry=x"], "is called image.repository"),
    (&["--set=encryption.mode=observe"], "value must be one of 'require', 'prefer'"),
    (&["--set=encryption.enabled=yes"], "got string, want boolean"),
    (&["--set=encryption.podCIDRs={10.0.0.0}"], "does not match pattern"),
    (&["--set=encryption.excludedNodes.traffic=plain"], "required, if 'traffic' exists"),
    (&["--set=encryption.peerSlices=sometimes"], "value must be one of 'auto', 'always', 'never'"),
    (&["--set=encryption.adoption.deadline=tomorrow"], "does not match pattern"),
    (&["--set=encryption.keyGeneration=-1"], "minimum"),
    (&["--set=image.digest=sha256:1"], "does not match pattern"),
    (&["--set=agent.seccompProfile.type=Localhost"], "missing property 'localhostProfile'"),
    (&["--set-string=agent.metricsAddress=9586"], "does not match pattern"),
    (&["--kube-version=1.30.4"], "incompatible with Kubernetes v1.30.4"),
    (
        &[WITHOUT_POLICIES, "--kube-version=1.34.2"],
        "(Kubernetes v1.34.2) serves no ValidatingAdmissionPolicy of admissionregistration.k8s.io/v1",
    ),
];

pub(crate) const ALL: &[(&str, OnServer)] = &[
    ("chart::helm_finds_nothing", helm_finds_nothing),
    ("chart::renders_as_golden", renders_as_golden),
    ("chart::the_api_server_takes_all_of_it", the_api_server_takes_all_of_it),
    ("chart::wrong_values_are_refused", wrong_values_are_refused),
    ("chart::an_upgrade_keeps_what_the_mesh_has", an_upgrade_keeps_what_the_mesh_has),
];

fn helm_finds_nothing(server: &mut Server) {
    for (name, values) in CASES {
        let values = values.iter().filter(|value| **value != WITHOUT_POLICIES);
        let mut lint = helm(server.binaries(), server.dir());
        lint.args(["lint", "--strict", CHART]).args(values);
        said(&mut lint).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// The name of an object that no other has.
fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let [kind, namespace, name] = [&object["kind"], &metadata["namespace"], &metadata["name"]]
        .map(|part| part.as_str().unwrap_or_default());
    format!("{kind} {namespace}/{name}")
}

/// The objects that the values make otherwise than the default does, and the names of those that they don't make.
fn golden(default: &[Value], objects: &[Value]) -> String {
    let mut text = String::new();
    let keys = |objects: &[Value]| objects.iter().map(key).collect::<BTreeSet<_>>();
    for gone in keys(default).difference(&keys(objects)) {
        text += &format!("# not: {gone}\n");
    }
    // helm's order among hooks is another each time.
    let mut objects: Vec<&Value> = objects.iter().filter(|object| !default.contains(object)).collect();
    objects.sort_by_key(|object| key(object));
    for object in objects {
        text += &format!("---\n{}", serde_saphyr::to_string(object).unwrap());
    }
    text
}

/// By what `helm template` prints; with `KUBEVEIL_WRITE=1` this test writes what differs.
fn renders_as_golden(server: &mut Server) {
    let default = render(server.binaries(), &[]).unwrap();
    let mut differ = Vec::new();
    for (name, values) in CASES {
        let objects = render(server.binaries(), values).unwrap();
        let text = if values.is_empty() { golden(&[], &objects) } else { golden(&default, &objects) };
        assert!(!text.is_empty(), "{name} is the default");
        let path = Path::new(FOLDER).join(format!("{name}.golden.yaml"));
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        if env::var_os(WRITE).is_some() {
            fs::write(path, text).unwrap();
        } else {
            differ.push(format!("{name}:\n{text}"));
        }
    }
    assert!(differ.is_empty(), "not as golden; {WRITE}=1 writes them:\n{}", differ.join("\n"));
}

/// Field by field, without doing it. (PodMonitor and PrometheusRule are not known there.)
fn the_api_server_takes_all_of_it(server: &mut Server) {
    let kubeconfig = server.kubeconfig(Who::Admin).unwrap();
    // Two who apply share its list of ports; who upgrades has it alone.
    let client = server.client(Who::Admin).unwrap();
    ask(server, &client, &Request::new(Method::DELETE, AGENTS, "")).unwrap();
    // A mesh that is there already has a generation, which takes no leap.
    ask(server, &client, &Request::new(Method::DELETE, MESH, "")).ok();
    for (name, values) in CASES {
        let mut objects = render(server.binaries(), values).unwrap();
        // A Pod's account has to be there, and helm makes this one's later.
        for pod in objects.iter_mut().filter(|object| object["kind"] == "Pod") {
            pod["spec"]["serviceAccountName"] = json!(AGENT);
        }
        let known = objects.into_iter().filter(|object| {
            !object["apiVersion"]
                .as_str()
                .is_some_and(|version| version.starts_with("monitoring.coreos.com/"))
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": known.collect::<Vec<_>>()});
        let mut kubectl = Command::new(server.binaries().join("kubectl"));
        kubectl.args([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
        ]);
        kubectl.args(["-o", "name", "-f", "-", "--kubeconfig"]).arg(&kubeconfig);
        kubectl.env("HOME", server.dir()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = kubectl.spawn().unwrap();
        child.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{name}: {errors}");
    }
}

fn wrong_values_are_refused(server: &mut Server) {
    for (values, message) in REFUSED {
        let error = render(server.binaries(), values).expect_err(message).to_string();
        assert!(error.contains(message), "{values:?}: {error}");
    }
}

/// What the mesh has already: the deadline that the first install gave it, and a generation that people raised.
fn an_upgrade_keeps_what_the_mesh_has(server: &mut Server) {
    let client = server.client(Who::Admin).unwrap();
    // By whatever test was before this one.
    ask(server, &client, &Request::new(Method::DELETE, MESH, "")).ok();
    let upgrade = |values: &[&str]| {
        // Hooks are Jobs, and nobody runs them here.
        release(server, "upgrade", &["--no-hooks"], values).unwrap();
        ask(server, &client, &Request::new(Method::GET, MESH, "")).unwrap()["spec"].clone()
    };
    let spec = upgrade(&[]);
    assert_eq!((&spec["mode"], &spec["adoption"]), (&json!("observe"), &Value::Null));

    let spec = upgrade(&["encryption.enabled=true"]);
    assert_eq!(spec["mode"], "require");
    let first = spec["adoption"]["deadline"].clone();
    assert!(first.is_string(), "{spec}");
    // Another moment, or what is kept could be the same made anew.
    let later = ["encryption.enabled=true", "encryption.adoption.within=5h"];
    assert_eq!(upgrade(&later)["adoption"]["deadline"], first);
    let given = ["encryption.enabled=true", "encryption.adoption.deadline=2027-01-31T12:00:00Z"];
    assert_eq!(upgrade(&given)["adoption"]["deadline"], "2027-01-31T12:00:00Z");

    for generation in 1..=2 {
        let raise = json!({"spec": {"keyGeneration": generation}}).to_string();
        ask(server, &client, &Request::patch("merge", MESH, &raise)).unwrap();
    }
    let asked = r#"{"spec":{"rotation":{"paused":true,"every":"9d"}}}"#;
    ask(server, &client, &Request::patch("merge", MESH, asked)).unwrap();
    let spec = upgrade(&["encryption.enabled=true"]);
    assert_eq!(spec["keyGeneration"], 2);
    assert_eq!(spec["rotation"], json!({"paused": true, "every": "9d"}), "what people asked for stays");
    assert_eq!(upgrade(&["encryption.enabled=true", "encryption.keyGeneration=1"])["keyGeneration"], 2);
    let more = ["encryption.enabled=true", "encryption.keyGeneration=3", "encryption.rotation.every=30d"];
    let spec = upgrade(&more);
    assert_eq!((&spec["keyGeneration"], &spec["rotation"]["every"]), (&json!(3), &json!("30d")));

    // Not given any more; left out it would be removed, which the API server refuses.
    let spec = upgrade(&["agent.metricsAddress=127.0.0.1:9600"]);
    assert_eq!((&spec["keyGeneration"], &spec["rotation"]), (&json!(3), &json!({"paused": true})));
    let agents = ask(server, &client, &Request::new(Method::GET, AGENTS, "")).unwrap();
    let ports = &agents["spec"]["template"]["spec"]["containers"][0]["ports"];
    assert_eq!((ports.as_array().unwrap().len(), &ports[0]["containerPort"]), (1, &json!(9600)));
}

/// Only the definitions, and objects of them, are left. (Hooks are Jobs, and nobody runs them here; tests of a cluster do.) To be the
/// last test: the agents' account is gone with the rest.
pub(crate) fn nothing_is_left(server: &mut Server) {
    let client = server.client(Who::Admin).unwrap();
    let left = || -> BTreeSet<String> {
        let names = LISTS.iter().flat_map(|path| {
            let list = Request::new(
                Method::GET,
                &format!("{path}?labelSelector=app.kubernetes.io/name=kubeveil"),
                "",
            );
            let list = ask(server, &client, &list).unwrap();
            let items = list["items"].as_array().unwrap().clone();
            let resource = path.rsplit('/').next().unwrap();
            items
                .into_iter()
                .filter(|item| hook(item).is_none())
                .map(move |item| format!("{resource}/{}", item["metadata"]["name"].as_str().unwrap()))
        });
        names.collect()
    };
    // By whatever test was before this one.
    ask(server, &client, &Request::new(Method::DELETE, MESH, "")).ok();
    release(server, "upgrade", &["--no-hooks"], &["uninstall.keepEnforcement=true"]).unwrap();
    let kinds: BTreeSet<String> =
        left().iter().filter_map(|name| Some(name.split_once('/')?.0.to_owned())).collect();
    assert_eq!(kinds.len(), LISTS.len(), "each kind is there: {kinds:?}");
    let mut uninstall = helm(server.binaries(), server.dir());
    uninstall.args(["uninstall", "kubeveil", "--no-hooks", "--namespace", NAMESPACE]);
    said(uninstall.arg("--kubeconfig").arg(server.kubeconfig(Who::Admin).unwrap())).unwrap();
    let names: Vec<String> = left().into_iter().collect();
    assert_eq!(names, ["encryptionmeshes/default"], "what keepEnforcement keeps, and nothing else");
}

/// Where objects of the chart are.
const LISTS: &[&str] = &[
    "/api/v1/serviceaccounts",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
    "/apis/apps/v1/daemonsets",
    "/apis/apps/v1/deployments",
    "/apis/coordination.k8s.io/v1/leases",
    "/apis/kubeveil.io/v1alpha1/encryptionmeshes",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "/apis/rbac.authorization.k8s.io/v1/rolebindings",
    "/apis/rbac.authorization.k8s.io/v1/roles",
];

/// Why there is no promtool; `None` if there is.
pub(crate) fn lacks_promtool() -> Option<String> {
    env::var_os(PROMTOOL).is_none().then(|| "needs promtool: `cargo xtask test` brings it".to_owned())
}

const PROMTOOL: &str = "KUBEVEIL_PROMTOOL";

/// Each alert is raised by what it is for, and not before.
pub(crate) fn every_alert_is_raised() {
    let promtool = PathBuf::from(env::var_os(PROMTOOL).unwrap());
    let tests = Path::new(FOLDER).join("alerts.yaml");
    said(Command::new(promtool).args(["test", "rules"]).arg(&tests)).unwrap();
    let tested = fs::read_to_string(tests).unwrap();
    let rules = fs::read_to_string(Path::new(CHART).join("rules/alerts.yaml")).unwrap();
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let untested: Vec<&str> =
        names.filter(|name| !tested.contains(&format!("- alertname: {name}\n"))).collect();
    assert!(untested.is_empty(), "alerts that no test raises: {untested:?}");
}
