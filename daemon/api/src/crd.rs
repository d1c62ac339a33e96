//! The CustomResourceDefinitions, made from the types. What the types' own code refuses is refused by the API server too, by rules in
//! CEL with the same reason.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Value, json};

use crate::{
    bypass::TWO_NODES,
    mesh::{EVERY_NODE, MeshSpec, MeshStatus, WHOLE},
    moment::{self, NO_TIME},
    names,
    peer_slice::{MOST_PEERS, SlicedPeer},
    pod_slice::SlicedPod,
    policy::{ClusterEncryptionPolicySpec, EncryptionPolicySpec, PolicyStatus},
    veil_node::VeilNodeStatus,
};

/// Most entries of a list of ranges: rules have a bounded cost.
const MOST_RANGES: u32 = 64;
/// Characters of the longest prefix: an IPv6 address with an embedded IPv4 one (RFC 4291, 45) and `/128`.
const LONGEST_RANGE: u32 = 49;
/// Most pods of a slice: far more than a node runs.
const MOST_PODS: u32 = 4096;
/// Most entries of `spec.revokedKeys`.
const MOST_KEYS: u32 = 4096;

/// Each definition's file name and text.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::SerializeError> {
    let text = |definition: &Value| {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Ok((
            format!("{name}.yaml"),
            format!("# Made by `cargo xtask codegen`.\n{}", serde_saphyr::to_string(definition)?),
        ))
    };
    [mesh(), veil_node(), policy(), cluster_policy(), pod_slice(), peer_slice()].iter().map(text).collect()
}

fn mesh() -> Value {
    let schema = json!({
        "type": "object",
        "description": "The cluster-wide settings of kubeveil; there is one, called default.",
        "required": ["spec"],
        "properties": {"spec": schema::<MeshSpec>(), "status": schema::<MeshStatus>()},
        "x-kubernetes-validations": [{
            "rule": format!("self.metadata.name == '{}'", names::MESH),
            "message": "there is one mesh and it is called default",
        }, {
            // One that the controller has not heard of yet is not over either.
            "rule": "!has(self.status) || !has(self.status.rotations) || size(self.status.rotations) == 0 \
                     || self.spec.keyGeneration == oldSelf.spec.keyGeneration \
                     || (self.status.rotations.all(r, r.result != 'running') \
                     && self.status.rotations.exists(r, r.generation == oldSelf.spec.keyGeneration))",
            "message": "the last rotation is not over: `kubeveil rotate status` tells what it waits for; a node that never comes back is \
                        left out by deleting its Node, or by `kubeveil rotate finish --force`. Where that says done, the controller has not \
                        written so yet: does it run?",
            "fieldPath": ".spec.keyGeneration",
        }],
    });
    let columns = json!([
        column("Mode", "string", ".spec.mode"),
        column("Encrypted", "string", &condition("FullyConnected", "status")),
        column("Pairs", "string", ".status.encryptedPairs"),
        column("Nodes", "integer", ".status.nodes"),
        column("Ready", "integer", ".status.readyNodes"),
        column("Generation", "integer", ".spec.keyGeneration"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ]);
    definition(["EncryptionMesh", "encryptionmesh", "encryptionmeshes"], "Cluster", schema, columns)
}

fn veil_node() -> Value {
    let schema = json!({
        "type": "object",
        "description": "What the agent of one node says of itself.",
        "properties": {"status": schema::<VeilNodeStatus>()},
    });
    let columns = json!([
        column("Ready", "string", &condition("Ready", "status")),
        column("Reason", "string", &condition("Ready", "reason")),
        column("Generation", "integer", ".status.generation"),
        column("Peers", "integer", ".status.peers"),
        column("Encrypted", "integer", ".status.encrypted"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ]);
    definition(["VeilNode", "veilnode", "veilnodes"], "Cluster", schema, columns)
}

fn policy() -> Value {
    let schema = json!({
        "type": "object",
        "description": "What the people of a namespace ask for of its pods: more than the mesh does.",
        "required": ["spec"],
        "properties": {"spec": schema::<EncryptionPolicySpec>(), "status": schema::<PolicyStatus>()},
    });
    definition(
        ["EncryptionPolicy", "encryptionpolicy", "encryptionpolicies"],
        "Namespaced",
        schema,
        of_policies(),
    )
}

fn cluster_policy() -> Value {
    let schema = json!({
        "type": "object",
        "description": "What is asked for of pods of the cluster, by the labels of their namespaces and their own.",
        "required": ["spec"],
        "properties": {"spec": schema::<ClusterEncryptionPolicySpec>(), "status": schema::<PolicyStatus>()},
    });
    let names = ["ClusterEncryptionPolicy", "clusterencryptionpolicy", "clusterencryptionpolicies"];
    definition(names, "Cluster", schema, of_policies())
}

fn of_policies() -> Value {
    json!([
        column("Mode", "string", ".spec.mode"),
        column("Pods", "integer", ".status.pods"),
        column("In force", "string", &condition("InForce", "status")),
        column("Age", "date", ".metadata.creationTimestamp"),
    ])
}

fn pod_slice() -> Value {
    let mut pods = schema::<Vec<SlicedPod>>();
    pods["maxItems"] = json!(MOST_PODS);
    slice(
        ["VeilPodSlice", "veilpodslice", "veilpodslices"],
        "Pods of the node of its name of which something else is asked for than of all; written by the controller.",
        json!({"pods": pods}),
    )
}

fn peer_slice() -> Value {
    let mut peers = schema::<Vec<SlicedPeer>>();
    peers["maxItems"] = json!(MOST_PEERS);
    slice(
        ["VeilPeerSlice", "veilpeerslice", "veilpeerslices"],
        "Nodes, and whose prefixes are whose; in a large cluster agents know the other nodes by it. Written by the controller.",
        json!({
            "tellsAll": {
                "type": "boolean",
                "description": "What nodes announce stands in it, and agents can go by it; else it is but a record.",
            },
            "peers": peers,
        }),
    )
}

/// What the controller tells all agents.
fn slice(names: [&str; 3], description: &str, properties: Value) -> Value {
    let schema = json!({"type": "object", "description": description, "properties": properties});
    let columns = json!([column("Age", "date", ".metadata.creationTimestamp")]);
    let mut slice = definition(names, "Cluster", schema, columns);
    // Nothing for people, who ask `kubectl get veil`.
    slice["spec"]["names"].as_object_mut().and_then(|names| names.remove("categories"));
    slice["spec"]["versions"][0].as_object_mut().and_then(|version| version.remove("subresources"));
    slice
}

/// Where a field of a condition is.
fn condition(kind: &str, field: &str) -> String {
    format!(".status.conditions[?(@.type==\"{kind}\")].{field}")
}

fn column(name: &str, kind: &str, path: &str) -> Value {
    json!({"name": name, "type": kind, "jsonPath": path})
}

/// In our group, category `veil`; what people want and what programs say are written apart.
fn definition([kind, singular, plural]: [&str; 3], scope: &str, schema: Value, columns: Value) -> Value {
    let version = names::API_VERSION.rsplit('/').next();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{}", names::GROUP)},
        "spec": {
            "group": names::GROUP,
            "scope": scope,
            "names": {
                "kind": kind, "listKind": format!("{kind}List"),
                "singular": singular, "plural": plural, "categories": ["veil"],
            },
            "versions": [{
                "name": version, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
            }],
        },
    })
}

/// The schema of `T`, in the form that a definition may have ("structural"): nothing is referred to.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        (s.inline_subschemas, s.meta_schema) = (true, None);
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

fn structural(value: &mut Value) {
    match value {
        Value::Object(object) => {
            // Unknown fields are pruned, or refused where that is asked for; a definition may not say so twice.
            if object.get("additionalProperties").is_some_and(Value::is_boolean) {
                object.remove("additionalProperties");
            }
            object.remove("title");
            if object.get("format").is_some_and(|format| format == "uint32") {
                object.insert("format".to_owned(), json!("int64"));
                object.insert("maximum".to_owned(), json!(u32::MAX));
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
            }
            object.values_mut().for_each(structural);
        }
        Value::Array(values) => values.iter_mut().for_each(structural),
        _ => {}
    }
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

/// `spec.keyGeneration` never decreases.
pub(crate) fn generation_grows() -> Value {
    json!([{
        "rule": "self.keyGeneration >= oldSelf.keyGeneration",
        "message": "never decreases, and removing it counts as decreasing: a key that was given up is never used \
                    again; the way back is a higher generation",
        "fieldPath": ".keyGeneration",
    }, {
        "rule": "self.keyGeneration <= oldSelf.keyGeneration + 1",
        "message": "rises by one at a time, when all nodes are done with the last one: a node has room for two generations",
        "fieldPath": ".keyGeneration",
    }])
}

/// A selector that means something.
pub(crate) fn selects_some() -> Value {
    json!([rule(
        "size(self.?matchLabels.orValue({})) + size(self.?matchExpressions.orValue([])) > 0",
        EVERY_NODE,
    )])
}

/// A text for which `holds`, of at most so many characters.
fn text(holds: &str, most: u32, message: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": most,
        "x-kubernetes-validations": [rule(holds, message)],
    })
}

/// A length of time: what [`schedule::Period`](crate::schedule::Period) reads.
pub(crate) fn period(_: &mut SchemaGenerator) -> Schema {
    text(
        "self.matches('^([0-9]{1,5}d)?([0-9]{1,5}h)?([0-9]{1,5}m)?$') && self.matches('[1-9]')",
        18,
        "is no length of time of a minute or more in days, hours and minutes, such as 30d or 12h30m",
    )
}

/// Hours and minutes.
pub(crate) fn time_of_day(_: &mut SchemaGenerator) -> Schema {
    text("self.matches('^([01][0-9]|2[0-3]):[0-5][0-9]$')", 5, "is no time of day, such as 02:00")
}

/// What the API server knows as a time zone; of one that it does not, it says so by itself.
pub(crate) fn time_zone(_: &mut SchemaGenerator) -> Schema {
    text(
        "self.matches('^[A-Za-z][A-Za-z0-9_+/-]*$') && timestamp('2027-01-01T00:00:00Z').getHours(self) >= 0",
        64,
        "is no time zone, such as Europe/Berlin",
    )
}

/// Values go with the operators that compare with them.
pub(crate) fn requirement() -> Value {
    json!([rule(
        "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
        "In and NotIn need values, Exists and DoesNotExist have none",
    )])
}

/// A namespace's people loosen nothing.
pub(crate) fn only_tightens() -> Value {
    json!([{
        "rule": "self.mode == 'require'",
        "message": "may only be require: a namespace may ask for more than the mesh does. A ClusterEncryptionPolicy may ask for less",
        "fieldPath": ".mode",
    }])
}

/// Does a selector ask for anything?
fn asks(selector: &str) -> String {
    let has = |field: &str| format!("(has(self.{selector}.{field}) && self.{selector}.{field}.size() > 0)");
    format!("{} || {}", has("matchLabels"), has("matchExpressions"))
}

/// Who is exempt, why, and for how long.
pub(crate) fn exemption() -> Value {
    json!([{
        "rule": "self.mode != 'exempt' || has(self.reason)",
        "message": "is missing; who is exempt needs a reason that an auditor can read",
        "fieldPath": ".reason",
    }, {
        "rule": format!("self.mode == 'require' || {} || {}", asks("namespaceSelector"), asks("podSelector")),
        "message": "selects all pods, as spec.namespaceSelector does all namespaces (an API server takes a misspelt field for none): say whom less is asked of, or set the mesh's mode",
        "fieldPath": ".podSelector",
    }, {
        "rule": "self.mode == 'exempt' || !has(self.until)",
        "message": "ends an exemption, and nothing else; take it away, or set mode to exempt",
        "fieldPath": ".until",
    }])
}

/// Which nodes, for how long.
pub(crate) fn bypass() -> Value {
    json!([{
        "rule": "timestamp(self.until) > timestamp(self.at)",
        "message": "must be after at; to end it, bring it forward to now, or take the entry out",
        "fieldPath": ".until",
    }, {
        "rule": "timestamp(self.until) - timestamp(self.at) <= duration('24h')",
        "message": "must be at most 24 hours after at",
        "fieldPath": ".until",
    }])
}

/// Two of them.
pub(crate) fn two_nodes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        // As long as a Node's name is (RFC 1123).
        "items": {"type": "string", "minLength": 1, "maxLength": 253},
        "x-kubernetes-validations": [rule("self.size() != 2 || self[0] != self[1]", TWO_NODES)],
    })
}

/// Why, in a few words.
pub(crate) fn why(_: &mut SchemaGenerator) -> Schema {
    text("self.matches('[^ ]')", 256, "must say why: an auditor has to be able to read it")
}

/// Why.
pub(crate) fn reason(_: &mut SchemaGenerator) -> Schema {
    text("self.matches('[^ ]')", 1024, "says nothing; an auditor has to be able to read it")
}

/// A list of ranges of addresses.
pub(crate) fn ranges(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MOST_RANGES,
        "items": {
            "type": "string",
            "maxLength": LONGEST_RANGE,
            "x-kubernetes-validations": [
                rule("isCIDR(self)", "is no range of addresses, such as 10.244.0.0/16 or fd00:244::/48"),
                rule(
                    "!isCIDR(self) || cidr(self).prefixLength() > 0",
                    WHOLE,
                ),
            ],
        },
    })
}

/// The same, of pods, of which there are some.
pub(crate) fn pod_ranges(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = ranges(generator);
    let some = rule("self.size() > 0", "is empty, so no address would be a pod's and nothing encrypted");
    schema.insert("x-kubernetes-validations".to_owned(), json!([some]));
    schema
}

/// A list of public keys.
pub(crate) fn keys(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MOST_KEYS,
        "items": {
            "type": "string",
            "maxLength": 44,
            "x-kubernetes-validations": [rule(
                "self.matches('^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$')",
                "is no WireGuard public key: must be 44 characters of base64",
            )],
        },
    })
}

/// A moment.
pub(crate) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 40,
        "x-kubernetes-validations": [rule(
            &format!("self.matches('{}') && !self.matches('^(0000|9999)')", moment::pattern()),
            NO_TIME,
        )],
    })
}
