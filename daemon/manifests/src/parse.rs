//! A file's text to objects.

use kubeveil_api::{
    mesh::{EncryptionMesh, InForce},
    names,
    node::Node,
    object::TypeMeta,
    pod::{Namespace, Pod},
    policy_test::PolicyTest,
    problem::readable,
};
use kubeveil_core::{
    policy::{Policy, PolicyId, Refusal},
    problem::{Problem, ProblemKind},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::yaml;

/// What a file can hold that matters to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Node(Box<Node>),
    Mesh(Box<InForce>),
    Namespace(Box<Namespace>),
    Pod(Box<Pod>),
    Policy(PolicyId, Box<Policy>),
    /// What people expect, which is nothing to a daemon.
    Test(Box<PolicyTest>),
}

const ADVICE: &str = "Correct the file; its last good state stands until then";

pub(crate) fn problem(
    file: &str,
    object: &str,
    field: impl Into<String>,
    message: impl Into<String>,
) -> Problem {
    Problem {
        kind: ProblemKind::Manifest,
        object: if object.is_empty() { format!("file {file}") } else { format!("file {file}, {object}") },
        field: readable(&field.into()),
        message: readable(&message.into()),
        advice: ADVICE.to_owned(),
    }
}

/// All objects of `text`, or the first thing that is wrong with it: a file counts as a whole.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Object>, Problem> {
    let documents =
        yaml::documents(text).map_err(|why| problem(file, "", "", format!("is not YAML: {why}")))?;
    if documents.is_empty() {
        // Emptied by somebody who is about to write it anew, as likely as not.
        return Err(problem(file, "", "", "holds no object; delete the file to remove what it held"));
    }
    let mut objects = Vec::new();
    for (number, value) in (1..).zip(documents) {
        object(&numbered(file, number), value, &mut objects)?;
    }
    Ok(objects)
}

/// With the place of the document, where it is not the first.
fn numbered(file: &str, document: usize) -> String {
    if document < 2 { file.to_owned() } else { format!("{file} (document {document})") }
}

fn object(file: &str, value: Value, objects: &mut Vec<Object>) -> Result<(), Problem> {
    let types: TypeMeta = typed(file, "", value.clone())?;
    let name =
        value.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str).unwrap_or("without a name");
    let label = readable(&format!("{} {name}", types.kind));
    match (types.api_version.as_str(), types.kind.as_str()) {
        ("v1", "List" | "NodeList" | "PodList" | "NamespaceList")
        | (
            names::API_VERSION,
            "EncryptionMeshList" | "EncryptionPolicyList" | "ClusterEncryptionPolicyList",
        ) => {
            let items = value.get("items").and_then(Value::as_array).cloned();
            let items = items.ok_or_else(|| problem(file, &types.kind, "items", "is missing or no list"))?;
            items.into_iter().try_for_each(|item| object(file, item, objects))
        }
        ("v1", "Node") => {
            let node: Node = typed(file, &label, value)?;
            check_node(file, &label, &node)?;
            objects.push(Object::Node(Box::new(node)));
            Ok(())
        }
        (names::API_VERSION, "EncryptionMesh") => {
            let mesh: EncryptionMesh = typed(file, &label, value)?;
            objects.push(Object::Mesh(Box::new(in_force(file, &label, mesh)?)));
            Ok(())
        }
        ("v1", "Pod") => {
            objects.push(Object::Pod(Box::new(typed(file, &label, value)?)));
            Ok(())
        }
        ("v1", "Namespace") => {
            objects.push(Object::Namespace(Box::new(typed(file, &label, value)?)));
            Ok(())
        }
        (names::API_VERSION, "EncryptionPolicy") => {
            let policy = Policy::of_namespace(typed(file, &label, value)?);
            objects.push(named(policy).map_err(|(field, why)| problem(file, &label, field, why))?);
            Ok(())
        }
        (names::API_VERSION, "ClusterEncryptionPolicy") => {
            let policy = Policy::of_cluster(typed(file, &label, value)?);
            objects.push(named(policy).map_err(|(field, why)| problem(file, &label, field, why))?);
            Ok(())
        }
        (names::API_VERSION, "PolicyTest") => {
            objects.push(Object::Test(Box::new(typed(file, &label, value)?)));
            Ok(())
        }
        (version, kind) if version.split('/').next() == Some(names::GROUP) => {
            let message = format!("{version} {kind} is not known to this version of kubeveil");
            Err(problem(file, &label, "kind", message))
        }
        // Whatever else lies there: nothing that this daemon acts upon.
        _ => Ok(()),
    }
}

fn named(policy: Result<(PolicyId, Policy), Refusal>) -> Result<Object, Refusal> {
    policy.map(|(id, policy)| Object::Policy(id, Box::new(policy)))
}

fn typed<T: DeserializeOwned>(file: &str, object: &str, value: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let field = e.path().to_string();
        problem(file, object, if field == "." { String::new() } else { field }, e.into_inner().to_string())
    })
}

fn check_node(file: &str, label: &str, node: &Node) -> Result<(), Problem> {
    if !names::is_node_name(&node.metadata.name) {
        return Err(problem(file, label, "metadata.name", "is not a name that a Node can have"));
    }
    if node.metadata.uid.is_empty() {
        return Err(problem(file, label, "metadata.uid", "is missing; the node's key is bound to it"));
    }
    if let Some(bad) = node.internal_ips().1.first() {
        return Err(problem(file, label, "status.addresses", format!("InternalIP {bad:?} is no IP address")));
    }
    Ok(())
}

fn in_force(file: &str, label: &str, mesh: EncryptionMesh) -> Result<InForce, Problem> {
    if mesh.metadata.name != names::MESH {
        return Err(problem(file, label, "metadata.name", "there is one mesh and it is called default"));
    }
    mesh.spec.in_force(mesh.status.as_ref()).map_err(|(field, why)| problem(file, label, field, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str =
        "apiVersion: v1\nkind: Node\nmetadata: {name: a, uid: u}\nspec: {podCIDRs: [10.244.1.0/24]}\n";

    fn fails(text: &str) -> String {
        parse("x.yaml", text).expect_err("must be refused").to_string()
    }

    #[test]
    fn documents_lists_and_strangers() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n";
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: b, uid: v}}\n";
        let all = parse("x.yaml", &format!("---\n{NODE}---\n{pod}---\n{list}")).expect("good");
        let is_pod = |object: &Object| matches!(object, Object::Pod(_));
        assert_eq!((all.len(), all.iter().filter(|object| is_pod(object)).count()), (3, 1));
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n";
        assert_eq!(parse("x.yaml", service).expect("good"), [], "nothing that the daemon acts upon");
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_told() {
        let policy = |kind: &str, metadata: &str, spec: &str| {
            format!(
                "apiVersion: kubeveil.io/v1alpha1\nkind: {kind}\nmetadata: {{name: p{metadata}}}\nspec: {{{spec}}}\n"
            )
        };
        let (own, clusters) = ("EncryptionPolicy", "ClusterEncryptionPolicy");
        for (kind, metadata, spec, why) in [
            (own, "", "podSelector: {}, mode: require", "EncryptionPolicy p metadata.namespace: is missing"),
            (own, ", namespace: n", "podSelector: {}, mode: prefer", "spec.mode: may only be require"),
            (own, ", namespace: n", "mode: require, podSelectr: {}", "unknown field `podSelectr`"),
            (own, ", namespace: n", "mode: require", "missing field `podSelector`"),
            (own, ", namespace: n", "podSelector: {}, mode: must", "spec.mode: unknown variant `must`"),
            (clusters, "", "namespaceSelector: {}, podSelector: {}, mode: exempt", "spec.reason: is missing"),
            (
                clusters,
                "",
                "namespaceSelector: {}, podSelector: {}, mode: exempt, reason: x",
                "spec.podSelector: selects all pods",
            ),
            (
                clusters,
                "",
                "namespaceSelector: {}, podSelector: {matchLabels: {}}, mode: prefer",
                "spec.podSelector: selects all pods",
            ),
            (
                clusters,
                "",
                "namespaceSelector: {}, podSelector: {}, mode: require, until: 2027-01-31T12:00:00Z",
                "spec.until: ends an exemption",
            ),
        ] {
            let text = fails(&policy(kind, metadata, spec));
            assert!(text.contains(why), "{text}");
        }
        let good =
            parse("x.yaml", &policy(own, ", namespace: n", "podSelector: {}, mode: require")).expect("good");
        assert!(matches!(&good[..], [Object::Policy(id, _)] if id.to_string() == "EncryptionPolicy n/p"));
    }

    #[test]
    fn an_error_names_file_object_and_field() {
        let text = fails(&NODE.replace("10.244.1.0/24", "10.244.1.0/24, nonsense"));
        assert!(text.contains("file x.yaml, Node a spec.podCIDRs[1]: "), "{text}");
        let text = fails(&NODE.replace(", uid: u", ""));
        assert!(text.contains("metadata.uid"), "{text}");
        let mesh = "apiVersion: kubeveil.io/v1alpha1\nkind: EncryptionMesh\nmetadata: {name: default}\nspec: {mode: requires, podCIDRs: [10.0.0.0/8], nodeCIDRs: []}\n";
        assert!(fails(mesh).contains("spec.mode: unknown variant `requires`"), "{}", fails(mesh));
        let open = mesh.replace("requires", "require").replace("10.0.0.0/8", "0.0.0.0/0");
        assert!(fails(&open).contains("spec.podCIDRs[0]"), "{}", fails(&open));
        let typo = mesh.replace("mode: requires", "mode: require, mod: x");
        assert!(fails(&typo).contains("mod"), "{}", fails(&typo));
    }

    #[test]
    fn adoption_ends_at_a_time_that_can_be_read() {
        let mesh = |adoption: &str| {
            format!(
                "apiVersion: kubeveil.io/v1alpha1\nkind: EncryptionMesh\nmetadata: {{name: default}}\nspec: {{mode: require, podCIDRs: [10.0.0.0/8], nodeCIDRs: [], adoption: {adoption}}}\n"
            )
        };
        for good in ["2027-01-31T12:00:00Z", "\"2027-01-31T13:00:00+01:00\""] {
            let objects = parse("x.yaml", &mesh(&format!("{{deadline: {good}}}"))).expect(good);
            let [Object::Mesh(spec)] = &objects[..] else { panic!("{objects:?}") };
            assert_eq!(spec.spec.adoption.expect("adoption").deadline().as_secs(), 1_801_396_800, "{good}");
        }
        for (bad, field, why) in [
            ("{deadline: tomorrow}", "spec.adoption.deadline", "2027-01-31T12:00:00Z (RFC 3339)"),
            ("{deadline: 2027-01-31}", "spec.adoption.deadline", "RFC 3339"),
            ("{deadline: 2027-01-31T12:00:00}", "spec.adoption.deadline", "RFC 3339"),
            ("{deadline: 1801396800}", "spec.adoption.deadline", "expected a string"),
            ("{deadline: }", "spec.adoption.deadline", "expected a string"),
            ("{}", "spec.adoption", "missing field `deadline`"),
            ("{until: 2027-01-31T12:00:00Z}", "spec.adoption", "unknown field `until`"),
        ] {
            let error = parse("x.yaml", &mesh(bad)).expect_err(bad);
            assert!(error.field.starts_with(field) && error.message.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn half_a_file_is_no_file() {
        assert!(fails("").contains("holds no object"));
        assert!(fails("apiVersion: v1\n").contains("kind"));
        assert!(fails("apiVersion: v1\nkind: Node\nmetadata: {name: a").contains("is not YAML"));
    }

    /// Whatever is written into a file, reading it ends, in a short line that says where it is wrong.
    #[test]
    fn hostile_files_are_refused() {
        let annotated = |text: &str| NODE.replace("uid: u", &format!("uid: u, annotations: {text}"));
        let bomb: String = (1..40).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |all, n| {
            let of = format!("*a{}, ", n - 1).repeat(9);
            format!("{all}a{n}: &a{n} [{}]\n", of.trim_end_matches(", "))
        });
        let cases = [
            ("brackets", "[".repeat(1 << 20), ""),
            ("braces", "{a: ".repeat(200_000), ""),
            ("dashes", "- ".repeat(200_000), ""),
            ("brackets in a node", annotated(&"[".repeat(1 << 20)), ""),
            ("an alias of itself", format!("{NODE}status: &a {{addresses: *a}}\n"), ""),
            ("aliases of aliases", format!("{bomb}apiVersion: v1\nkind: Node\n"), ""),
            ("a number for a name", NODE.replace("name: a", "name: 7"), "metadata.name"),
            (
                "lines in a name",
                NODE.replace("name: a", "name: \"a\\nforged: line\\e[31m\""),
                "metadata.name",
            ),
            ("a path for a name", NODE.replace("name: a", "name: ../../a"), "metadata.name"),
            ("no name", NODE.replace("name: a", "name: ''"), "metadata.name"),
            (
                "a long name",
                NODE.replace("name: a", &format!("name: {}", "a".repeat(1 << 20))),
                "metadata.name",
            ),
            ("another type", NODE.replace("podCIDRs: [10.244.1.0/24]", "podCIDRs: {a: b}"), "spec.podCIDRs"),
            ("a long prefix", NODE.replace("10.244.1.0/24", "10.244.1.0/33"), "spec.podCIDRs[0]"),
            ("a text for a prefix", NODE.replace("10.244.1.0/24", &"a".repeat(1 << 20)), "spec.podCIDRs[0]"),
            ("a number beyond all", NODE.replace("10.244.1.0/24", &"1".repeat(1 << 20)), ""),
            (
                "a list in a list",
                format!(
                    "apiVersion: v1\nkind: List\nitems: [{}",
                    "{apiVersion: v1, kind: List, items: [".repeat(10_000)
                ),
                "",
            ),
            ("zeros", "\0".repeat(1000), ""),
        ];
        for (what, text, field) in cases {
            let error = parse("x.yaml", &text).expect_err(what);
            assert!(error.object.starts_with("file x.yaml"), "{what}: {error}");
            assert!(error.field.starts_with(field), "{what}: {error}");
            let line = error.to_string();
            assert!(!line.chars().any(char::is_control) && line.len() < 2000, "{what}: {line}");
        }
    }
}
