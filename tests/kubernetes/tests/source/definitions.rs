//! What the API server refuses by the definitions in `deploy/`, and why.

use std::collections::BTreeSet;

use kubeveil_api::names;
use kubeveil_tests_kubernetes::{
    cluster::{self, InApiServer, mesh_kind},
    server::Server,
};
use serde_json::{Value, json};

use crate::suite::mesh;

const GOOD_KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

/// What is refused in a new mesh, by the rule with this message: `mesh` with a field of `spec` otherwise.
const REFUSED: &[(&str, &str, &str)] = &[
    ("podCIDRs", "[]", "is empty, so no address would be a pod's and nothing encrypted"),
    ("podCIDRs", r#"["10.244.0.0/33"]"#, "is no range of addresses, such as 10.244.0.0/16 or fd00:244::/48"),
    ("podCIDRs", r#"["0.0.0.0/0"]"#, "is the whole address space; name the cluster's own ranges"),
    ("podCIDRs", r#"["10.244.0.0/16", "::/0"]"#, "is the whole address space; name the cluster's own ranges"),
    ("nodeCIDRs", r#"["192.0.2.1"]"#, "is no range of addresses, such as 10.244.0.0/16 or fd00:244::/48"),
    ("nodeCIDRs", r#"["0.0.0.0/0"]"#, "is the whole address space; name the cluster's own ranges"),
    (
        "revokedKeys",
        r#"["hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTm1="]"#,
        "is no WireGuard public key: must be 44 characters of base64",
    ),
    ("adoption", r#"{"deadline": "2027-01-31T12:00:00"}"#, NO_TIME),
    ("adoption", r#"{"deadline": "2027-02-29T12:00:00Z"}"#, NO_TIME),
    (
        "bypasses",
        r#"[{"nodes": ["a", "b"], "at": "2026-02-30T12:00:00Z", "until": "2026-03-01T12:00:00Z", "by": "admin", "reason": "x"}]"#,
        NO_TIME,
    ),
    (
        "bypasses",
        r#"[{"nodes": ["a", "b"], "at": "2026-02-28T23:59:00Z", "until": "2026-02-28T24:00:00Z", "by": "admin", "reason": "x"}]"#,
        NO_TIME,
    ),
    (
        "excludedNodes",
        r#"{"selector": {"matchLabels": {}}, "traffic": "plain"}"#,
        "is empty, so it would mean every node",
    ),
    ("rotation", r#"{"every": "30"}"#, PERIOD),
    ("rotation", r#"{"every": ""}"#, PERIOD),
    ("rotation", r#"{"jitter": "1h1d"}"#, PERIOD),
    ("rotation", r#"{"maxKeyAge": "0d"}"#, PERIOD),
    ("rotation", r#"{"window": {"start": "2:00", "end": "04:00"}}"#, "is no time of day, such as 02:00"),
    ("rotation", r#"{"window": {"start": "02:00", "end": "24:00"}}"#, "is no time of day, such as 02:00"),
    (
        "rotation",
        r#"{"window": {"start": "02:00", "end": "04:00", "timeZone": "+01:00"}}"#,
        "is no time zone, such as Europe/Berlin",
    ),
    ("rotation", r#"{"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}"#, VALUES),
    (
        "rotation",
        r#"{"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}"#,
        VALUES,
    ),
    (
        "bypasses",
        r#"[{"nodes": ["a", "a"], "at": "2027-01-31T12:00:00Z", "until": "2027-01-31T12:10:00Z", "by": "admin", "reason": "x"}]"#,
        "must be two different Nodes, by their names",
    ),
    (
        "bypasses",
        r#"[{"nodes": ["a", "b"], "at": "2027-01-31T12:00:00Z", "until": "2027-01-31T12:00:00Z", "by": "admin", "reason": "x"}]"#,
        "must be after at; to end it",
    ),
    (
        "bypasses",
        r#"[{"nodes": ["a", "b"], "at": "2027-01-31T12:00:00Z", "until": "2027-02-01T12:00:01Z", "by": "admin", "reason": "x"}]"#,
        "must be at most 24 hours after at",
    ),
    (
        "bypasses",
        r#"[{"nodes": ["a", "b"], "at": "2027-01-31T12:00:00Z", "until": "2027-01-31T12:10:00Z", "by": "admin", "reason": " "}]"#,
        "must say why: an auditor",
    ),
    // The rule's own error; it says what it could not do.
    ("rotation", r#"{"window": {"start": "02:00", "end": "04:00", "timeZone": "Mars/One"}}"#, "Mars/One"),
];

/// The same of policies.
const REFUSED_POLICIES: &[(&str, &str, &str)] = &[
    ("EncryptionPolicy", r#"{"podSelector": {}, "mode": "prefer"}"#, "may only be require"),
    (
        "ClusterEncryptionPolicy",
        r#"{"namespaceSelector": {}, "podSelector": {}, "mode": "exempt"}"#,
        "is missing; who is exempt needs a reason",
    ),
    (
        "ClusterEncryptionPolicy",
        r#"{"namespaceSelector": {}, "podSelector": {}, "mode": "exempt", "reason": " "}"#,
        "says nothing; an auditor",
    ),
    (
        "ClusterEncryptionPolicy",
        r#"{"namespaceSelector": {}, "podSelector": {}, "mode": "require", "until": "2027-01-31T12:00:00Z"}"#,
        "ends an exemption, and nothing else",
    ),
    (
        CLUSTER,
        r#"{"namespaceSelector": {}, "podSelector": {"matchLabels": {}}, "mode": "exempt", "reason": "x"}"#,
        "selects all pods, as spec.namespaceSelector does all namespaces",
    ),
    (
        CLUSTER,
        r#"{"namespaceSelector": {"matchExpressions": []}, "podSelector": {}, "mode": "prefer"}"#,
        "selects all pods, as spec.namespaceSelector does all namespaces",
    ),
    (
        CLUSTER,
        r#"{"namespaceSelector": {}, "podSelector": {}, "mode": "exempt", "reason": "x", "until": "2026-02-30T00:00:00Z"}"#,
        NO_TIME,
    ),
    (
        CLUSTER,
        r#"{"namespaceSelector": {}, "podSelector": {}, "mode": "exempt", "reason": "x", "until": "9999-12-31T23:59:59Z"}"#,
        NO_TIME,
    ),
];

const CLUSTER: &str = "ClusterEncryptionPolicy";
const NO_TIME: &str = "is no time with its zone, as in 2027-01-31T12:00:00Z (RFC 3339), on a day that there is in the years 0001 to 9998";

const VALUES: &str = "In and NotIn need values, Exists and DoesNotExist have none";
const PERIOD: &str =
    "is no length of time of a minute or more in days, hours and minutes, such as 30d or 12h30m";

/// Every rule of `value`, by its message.
fn rules(value: &Value, found: &mut BTreeSet<String>) {
    if let Some(rules) = value.get("x-kubernetes-validations").and_then(Value::as_array) {
        found.extend(rules.iter().filter_map(|rule| rule["message"].as_str()).map(str::to_owned));
    }
    match value {
        Value::Object(object) => object.values().for_each(|value| rules(value, found)),
        Value::Array(values) => values.iter().for_each(|value| rules(value, found)),
        _ => {}
    }
}

pub(crate) fn every_rule_refuses(server: &mut Server) {
    let world = InApiServer::new(server).unwrap();
    let put = |name: &str, spec: &Value| {
        world.put(&mesh_kind(), &json!({"metadata": {"name": name}, "spec": spec}))
    };
    let mut met = BTreeSet::new();
    for (kind, spec, message) in REFUSED_POLICIES {
        let namespace = (*kind == "EncryptionPolicy").then_some("default");
        let object = json!({
            "apiVersion": names::API_VERSION, "kind": kind,
            "metadata": {"name": "p", "namespace": namespace}, "spec": serde_json::from_str::<Value>(spec).unwrap(),
        });
        let error = world.apply(&object).expect_err(message);
        assert!(error.to_string().contains(message), "{spec}: {error}");
        met.insert((*message).to_owned());
    }
    let mut refused = |name: &str, spec: &Value, message: &str| {
        let error = put(name, spec).expect_err(message);
        let kube::Error::Api(status) = &error else { panic!("{error}") };
        assert_eq!(status.code, 422, "{spec}: {error}");
        assert!(status.message.contains(message), "{spec}: {}", status.message);
        met.insert(message.to_owned());
    };
    for (field, value, message) in REFUSED {
        let mut spec = mesh();
        spec[*field] = serde_json::from_str(value).unwrap();
        refused("default", &spec, message);
    }
    refused("another", &mesh(), "there is one mesh and it is called default");

    // All that is allowed, at once; and then the way back.
    let mut spec = mesh();
    spec["keyGeneration"] = json!(3);
    spec["revokedKeys"] = json!([GOOD_KEY]);
    for deadline in ["2027-01-31T12:00:00Z", "2027-01-31T13:00:00.5+01:00"] {
        spec["adoption"] = json!({"deadline": deadline});
        put("default", &spec).unwrap();
    }
    let never = "never decreases, and removing it counts as decreasing";
    for lower in [json!(2), Value::Null] {
        spec["keyGeneration"] = lower;
        refused("default", &spec, never);
    }
    spec["keyGeneration"] = json!(5);
    refused("default", &spec, "rises by one at a time");
    spec["keyGeneration"] = json!(4);
    spec["rotation"] = json!({
        "every": "30d", "jitter": "6h", "maxKeyAge": "90d",
        "nodeSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["d"]}]},
        "window": {"days": ["Sat", "Sun"], "start": "22:30", "end": "04:00", "timeZone": "Europe/Berlin"},
    });
    spec["excludedNodes"] =
        json!({"selector": {"matchLabels": {"kubernetes.io/os": "windows"}}, "traffic": "drop"});
    put("default", &spec).unwrap();
    // While nodes are on their way from one generation to the next there is no third.
    let record = |generation: u32, result: &str| {
        let record = json!({"generation": generation, "startedAt": "2027-01-01T00:00:00Z", "result": result});
        world.put_status(&mesh_kind(), "default", &json!({"rotations": [record]})).unwrap();
    };
    record(4, "running");
    spec["keyGeneration"] = json!(5);
    refused("default", &spec, "the last rotation is not over");
    spec["keyGeneration"] = json!(4);
    spec["mode"] = json!("prefer");
    put("default", &spec).unwrap();
    record(4, "done");
    spec["keyGeneration"] = json!(5);
    put("default", &spec).unwrap();
    // Nor before anybody has seen that one begin.
    spec["keyGeneration"] = json!(6);
    refused("default", &spec, "the last rotation is not over");
    record(5, "forced");
    put("default", &spec).unwrap();

    let mut all = BTreeSet::new();
    for (_, definition) in cluster::definitions().unwrap() {
        rules(&definition, &mut all);
    }
    let untested: Vec<_> = all.iter().filter(|rule| !met.iter().any(|met| rule.starts_with(met))).collect();
    assert!(all.len() > 6 && untested.is_empty(), "rules without a test: {untested:?}");
}

fn bypass(nodes: &[&str], until: &str, by: &str, reason: &str) -> Value {
    json!([{"nodes": nodes, "at": "2027-01-31T12:00:00Z", "until": until, "by": by, "reason": reason}])
}

/// What our own code takes the API server takes, and the other way round, for what both look at.
pub(crate) fn both_refuse_the_same(server: &mut Server) {
    let world = InApiServer::new(server).unwrap();
    let fields = [
        ("podCIDRs", json!(["fd00::/8", "10.0.0.1/8"])),
        ("podCIDRs", json!(["10.0.0.0/8", "nonsense"])),
        ("podCIDRs", json!([])),
        ("nodeCIDRs", json!([])),
        ("nodeCIDRs", json!(["0.0.0.0/0"])),
        ("mode", json!("observe")),
        ("mode", json!("requires")),
        ("keyGeneration", json!(-1)),
        ("keyGeneration", json!(4_294_967_296_u64)),
        ("keyGeneration", json!("1")),
        ("revokedKeys", json!([GOOD_KEY])),
        ("revokedKeys", json!([&GOOD_KEY[1..]])),
        ("adoption", json!({"deadline": "2027-01-31t12:00:00.123456789z"})),
        ("adoption", json!({"deadline": "2027-01-31"})),
        ("adoption", json!({"deadline": "2028-02-29T00:00:00Z"})),
        ("adoption", json!({"deadline": "2100-02-29T00:00:00Z"})),
        ("adoption", json!({"deadline": "2027-04-31T00:00:00Z"})),
        ("adoption", json!({"deadline": "9998-12-31T23:59:59-23:59"})),
        ("adoption", json!({})),
        ("excludedNodes", json!({"selector": {"matchLabels": {"pool": "virtual"}}, "traffic": "plain"})),
        (
            "excludedNodes",
            json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}, "traffic": "drop"}),
        ),
        ("peerSlices", json!("auto")),
        ("peerSlices", json!("sometimes")),
        ("excludedNodes", json!({"selector": {}, "traffic": "plain"})),
        ("excludedNodes", json!({"selector": {"matchLabels": {"pool": "virtual"}}, "traffic": "pass"})),
        ("excludedNodes", json!({"selector": {"matchLabels": {"pool": "virtual"}}})),
        ("rotation", json!({"every": "1d2h3m"})),
        ("rotation", json!({"every": "00001d"})),
        ("rotation", json!({"every": "000001d"})),
        ("rotation", json!({"every": "30s"})),
        ("rotation", json!({"every": "00m"})),
        ("rotation", json!({"maxKeyAge": 30})),
        ("rotation", json!({"window": {"start": "23:59", "end": "00:00"}})),
        ("rotation", json!({"window": {"start": "23:60", "end": "00:00"}})),
        ("rotation", json!({"window": {"start": "23:59"}})),
        ("rotation", json!({"window": {"start": "23:59", "end": "00:00", "days": ["Sunday"]}})),
        (
            "rotation",
            json!({"window": {"start": "23:59", "end": "00:00", "timeZone": "America/Indiana/Knox"}}),
        ),
        ("bypasses", bypass(&["a", "b"], "2027-02-01T12:00:00Z", "admin", "x")),
        ("bypasses", bypass(&["a", "b"], "2027-02-01T13:00:00+01:00", "admin", "x")),
        ("bypasses", bypass(&["a", "b"], "2027-02-01T12:00:00.1Z", "admin", "x")),
        ("bypasses", bypass(&["a", "b", "c"], "2027-01-31T12:10:00Z", "admin", "x")),
        ("bypasses", bypass(&["a"], "2027-01-31T12:10:00Z", "admin", "x")),
        ("bypasses", bypass(&["a", ""], "2027-01-31T12:10:00Z", "admin", "x")),
        ("bypasses", bypass(&["a", "b"], "in ten minutes", "admin", "x")),
        ("bypasses", bypass(&["a", "b"], "2027-01-31T12:10:00Z", "", "x")),
        ("bypasses", bypass(&["a", "b"], "2027-01-31T12:10:00Z", "admin", "")),
        ("bypasses", bypass(&["a", "b"], "2027-01-31T12:10:00Z", &"a".repeat(257), "x")),
        ("bypasses", bypass(&["a", "b"], "2027-01-31T12:10:00Z", "admin", &"ä".repeat(256))),
        (
            "bypasses",
            json!([{"nodes": ["a", "b"], "until": "2027-01-31T12:10:00Z", "by": "admin", "reason": "x"}]),
        ),
    ];
    for (field, value) in fields {
        let mut spec = mesh();
        spec[field] = value;
        let ours: Result<kubeveil_api::mesh::MeshSpec, _> = serde_json::from_value(spec.clone());
        let ours = ours.is_ok_and(|spec| spec.in_force(None).is_ok());
        let mut whole = json!({"metadata": {"name": "default"}, "spec": spec});
        whole["metadata"]["annotations"] = json!({"try": field});
        let theirs = world.put(&mesh_kind(), &whole);
        assert_eq!(ours, theirs.is_ok(), "{spec}: {theirs:?}");
        let fresh = InApiServer::new(server);
        assert!(fresh.is_ok(), "cleaned");
    }
}
