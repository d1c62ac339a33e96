//! What a stolen credential can do: real tokens, the chart's own rights and admission policies, a real API server.

pub(crate) mod attack;
mod hooks;
mod mistakes;
mod nodes;
mod objects;
mod table;

use std::{collections::BTreeSet, sync::OnceLock};

use http::Method;
use kube::Client;
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    chart,
    cluster::InApiServer,
    server::{Server, Who},
    world::{World, until},
};
use serde_json::{Value, json};

use self::attack::{Attack, CREDENTIALS, OTHER, OWN, Outcome, announcement, merge, ours, post};
pub(crate) use self::{
    hooks::they_can_do_their_work,
    mistakes::{ALL as MISTAKES, CONTROLLER},
    table::the_table_says_what_is_tested,
};
use crate::suite::mesh;

/// Where the mesh is.
pub(crate) fn mesh_path() -> String {
    ours("encryptionmeshes/default")
}

/// Each attack, by its name.
pub(crate) fn attacks() -> impl Iterator<Item = &'static Attack> {
    nodes::ALL.iter().chain(objects::ALL)
}

/// Who attacks; the same in all tests.
struct Thieves {
    /// By [`CREDENTIALS`].
    clients: Vec<Client>,
    /// Pods of our accounts, and their UIDs.
    pods: Vec<(String, String)>,
}

static THIEVES: OnceLock<Thieves> = OnceLock::new();

/// The chart's policies are in force when this returns.
pub(crate) fn with_policies(server: &Server) {
    Stage::new(server);
}

/// A cluster of two nodes with everything that is attacked.
struct Stage<'a> {
    server: &'a Server,
    admin: Client,
    thieves: &'static [Client],
}

impl<'a> Stage<'a> {
    fn new(server: &'a Server) -> Self {
        let mut stage = Self { server, admin: server.client(Who::Admin).unwrap(), thieves: &[] };
        stage.reset();
        stage.thieves = &THIEVES.get_or_init(|| stage.thieves()).clients;
        stage.wait_for_policies();
        stage
    }

    fn thieves(&self) -> Thieves {
        self.give_hooks_their_rights();
        let client = |credential: &str| match credential {
            "kubelet" => self.server.client(Who::Kubelet),
            _ => {
                let token = chart::token(self.server, &format!("kubeveil-{credential}"), "node-1").unwrap();
                self.server.client_by(&token)
            }
        };
        let clients = CREDENTIALS.iter().map(|credential| client(credential).unwrap()).collect();
        let mut pods = Vec::new();
        for account in ["kubeveil-agent", "kubeveil-controller"] {
            for node in ["node-1", "node-2"] {
                let pod = chart::pod(self.server, account, node).unwrap();
                pods.push((format!("{account}-{node}"), pod["metadata"]["uid"].as_str().unwrap().to_owned()));
            }
        }
        Thieves { clients, pods }
    }

    /// As the administrator; it has to be done.
    fn does(&self, request: &Request) -> Value {
        ask(self.server, &self.admin, request).unwrap()
    }

    /// The same; it may be done already.
    fn makes(&self, path: &str, object: &Value) {
        match ask(self.server, &self.admin, &post(path, &object.to_string())) {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => drop(made.unwrap()),
        }
    }

    /// All is as it was before the first attack.
    fn reset(&self) {
        // What keeps a Node from being deleted.
        merge_if_there(self, OWN, r#"{"metadata":{"finalizers":null}}"#);
        let mut world = InApiServer::new(self.server).unwrap();
        let mut spec = mesh();
        spec["rotation"] = json!({"every": "30d", "paused": true});
        spec["revokedKeys"] = json!(["hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="]);
        world.put_mesh(&spec).unwrap();
        world.put_node("node-1", &[], &["192.0.2.1"]).unwrap();
        world.put_node("node-2", &["10.244.2.0/24"], &["192.0.2.2"]).unwrap();
        for node in [OWN, OTHER] {
            self.does(&merge(node, &announcement(4)));
            self.does(&merge(
                node,
                r#"{"metadata":{"labels":{"pool":"a"},"annotations":{"others":"theirs"}}}"#,
            ));
        }
        for name in ["node-1", "node-2"] {
            let made =
                json!({"apiVersion": "kubeveil.io/v1alpha1", "kind": "VeilNode", "metadata": {"name": name}});
            self.makes(&ours("veilnodes"), &made);
        }
        let slice = json!({"apiVersion": "kubeveil.io/v1alpha1", "kind": "VeilPodSlice", "metadata": {"name": "node-1"}});
        self.makes(&ours("veilpodslices"), &slice);
        let slice = json!({"apiVersion": "kubeveil.io/v1alpha1", "kind": "VeilPeerSlice", "metadata": {"name": "peers-0"}});
        self.makes(&ours("veilpeerslices"), &slice);
        let policy = json!({
            "apiVersion": "kubeveil.io/v1alpha1", "kind": "ClusterEncryptionPolicy", "metadata": {"name": "all"},
            "spec": {"namespaceSelector": {}, "podSelector": {}, "mode": "require"},
        });
        self.makes(&ours("clusterencryptionpolicies"), &policy);
        for name in ["kubeadm-config", "another"] {
            self.makes("/api/v1/namespaces/kube-system/configmaps", &json!({"metadata": {"name": name}}));
        }
        for (namespace, name) in [("kubeveil", "another"), ("kube-node-lease", "node-2")] {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
            self.makes(&path, &json!({"metadata": {"name": name}}));
        }
    }

    /// The hooks' accounts and roles, which helm makes only while it runs them.
    fn give_hooks_their_rights(&self) {
        for object in chart::render(self.server.binaries(), &[]).unwrap() {
            let Some("pre-upgrade" | "pre-delete") = chart::hook(&object) else { continue };
            let path = match object["kind"].as_str().unwrap() {
                "ServiceAccount" => "/api/v1/namespaces/kubeveil/serviceaccounts",
                "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
                "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                _ => continue,
            };
            self.makes(path, &object);
        }
    }

    /// The API server takes a moment to know rights and policies that were made just now. Nothing is done by this.
    fn wait_for_policies(&self) {
        let kubelet = post(
            "/api/v1/nodes?dryRun=All",
            r#"{"metadata":{"name":"node-1"},"spec":{"podCIDR":"10.244.9.0/24","podCIDRs":["10.244.9.0/24"]}}"#,
        );
        let hook = merge(&ours("encryptionmeshes/default?dryRun=All"), r#"{"spec":{"mode":"observe"}}"#);
        for (thief, request) in [(1, kubelet), (4, hook)] {
            until("the policies are in force", || {
                let refused = ask(self.server, &self.thieves[thief], &request).err();
                refused.is_some_and(|error| error.to_string().contains("ValidatingAdmissionPolicy"))
            });
        }
    }

    /// What is in the cluster that an attack of ours would change, but for what counts on with each write.
    fn nodes_and_ours(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let kinds = ["veilnodes", "encryptionmeshes", "clusterencryptionpolicies", "veilpodslices"];
        for path in ["/api/v1/nodes".to_owned()].into_iter().chain(kinds.map(ours)) {
            let mut list = self.does(&Request::new(Method::GET, &path, ""));
            for object in list["items"].as_array_mut().unwrap() {
                for counted in ["managedFields", "resourceVersion", "generation"] {
                    object["metadata"].as_object_mut().unwrap().remove(counted);
                }
                all.push(object.take());
            }
        }
        all
    }
}

fn merge_if_there(stage: &Stage<'_>, path: &str, body: &str) {
    match ask(stage.server, &stage.admin, &merge(path, body)) {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        done => drop(done.unwrap()),
    }
}

/// What came of it.
fn judge(outcome: Outcome, answer: &kube::Result<Value>) -> Result<(), String> {
    let refused = |parts: &[&str]| match answer {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let is_so = parts.iter().all(|part| status.message.contains(part));
            if is_so { Ok(()) } else { Err(format!("refused otherwise: {}", status.message)) }
        }
        Err(error) => Err(format!("{error}")),
        Ok(done) => Err(format!("done: {done}")),
    };
    match outcome {
        Outcome::NoRight => refused(&["User \"system:", " cannot "]),
        Outcome::Policy(message) => refused(&["ValidatingAdmissionPolicy 'kubeveil-", message]),
        Outcome::Restricted(message) => refused(&[message]),
        Outcome::Ignored | Outcome::Itself | Outcome::Can => {
            answer.as_ref().map(|_| ()).map_err(|error| error.to_string())
        }
    }
}

/// As the API server knows it.
fn user(credential: &str) -> String {
    match credential {
        "kubelet" => "system:node:node-1".to_owned(),
        account => format!("system:serviceaccount:kubeveil:kubeveil-{account}"),
    }
}

/// One attack, by each credential.
pub(crate) fn attacked(server: &Server, attack: &Attack) {
    let stage = Stage::new(server);
    let mut request = (attack.request)();
    for (pod, uid) in THIEVES.get().iter().flat_map(|thieves| &thieves.pods) {
        request = request.with(&format!("UID of {pod}"), uid);
    }
    let mut wrong = Vec::new();
    for ((credential, thief), outcome) in CREDENTIALS.iter().zip(stage.thieves).zip(attack.outcomes) {
        let before = stage.nodes_and_ours();
        let answer = ask(server, thief, &request.clone().with("the writer", &user(credential)));
        if let Err(why) = judge(outcome, &answer) {
            wrong.push(format!("by {credential}: not {outcome:?}: {why}"));
        }
        let is_unchanged = stage.nodes_and_ours() == before;
        if !is_unchanged && !matches!(outcome, Outcome::Itself | Outcome::Can) {
            wrong.push(format!("by {credential}: it has changed something"));
        }
        if answer.is_ok() {
            stage.reset();
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", attack.what, wrong.join("\n"));
}

/// Each message of a policy is what refuses an attack.
pub(crate) fn every_policy_refuses(server: &mut Server) {
    let mut met: BTreeSet<&str> = mistakes::messages().collect();
    for outcome in attacks().flat_map(|attack| attack.outcomes) {
        if let Outcome::Policy(message) = outcome {
            met.insert(message);
        }
    }
    // Met by `a_token_without_a_node_writes_nothing`.
    met.insert(UNBOUND);
    // Met by `rotation::nobody_asks_in_anothers_name`.
    met.insert(crate::rotation::ASKED);
    // Met by `rotation::nobody_does_anything_in_anothers_name`.
    met.insert(crate::rotation::DID);
    // Met by `bypasses::nobody_writes_in_anothers_name`.
    met.extend([crate::bypasses::WROTE, crate::bypasses::WHAT]);
    let mut messages = BTreeSet::new();
    for object in chart::render(server.binaries(), &[]).unwrap() {
        if object["kind"] == "ValidatingAdmissionPolicy" {
            let validations = object["spec"]["validations"].as_array().unwrap();
            messages.extend(validations.iter().map(|v| v["message"].as_str().unwrap().to_owned()));
        }
    }
    let untested: Vec<_> = messages.iter().filter(|message| !met.contains(message.as_str())).collect();
    assert!(messages.len() > 12 && untested.is_empty(), "messages without an attack: {untested:?}");
}

const UNBOUND: &str = "the token is bound to no Pod on a Node, so it is no agent's of a Node";

/// Who can make tokens of the agents' account has to bind them, or they write nothing.
pub(crate) fn a_token_without_a_node_writes_nothing(server: &mut Server) {
    let stage = Stage::new(server);
    let token = chart::token_by(server, chart::AGENT, &json!({})).unwrap();
    let thief = server.client_by(&token).unwrap();
    for (path, message) in [
        (OWN.to_owned(), UNBOUND),
        (ours("veilnodes/node-1/status"), "an agent writes to its own VeilNode only"),
    ] {
        let body = if path == OWN { announcement(8) } else { r#"{"status":{"peers":9}}"#.to_owned() };
        let answer = ask(server, &thief, &merge(&path, &body));
        assert_eq!(judge(Outcome::Policy(message), &answer), Ok(()), "{path}");
    }
    drop(stage);
}

/// A token is worth nothing once its Pod is gone.
pub(crate) fn a_token_ends_with_its_pod(server: &mut Server) {
    let stage = Stage::new(server);
    let thief = server.client_by(&chart::token(server, chart::AGENT, "node-3").unwrap()).unwrap();
    let reads = Request::new(Method::GET, "/api/v1/nodes", "");
    ask(server, &thief, &reads).unwrap();
    let pod = "/api/v1/namespaces/kubeveil/pods/kubeveil-agent-node-3";
    stage.does(&Request::new(Method::DELETE, pod, r#"{"gracePeriodSeconds":0}"#));
    // Answers about a token are kept for ten seconds.
    until(
        "it is refused",
        || matches!(ask(server, &thief, &reads), Err(kube::Error::Api(status)) if status.code == 401),
    );
}

/// The policies are about our accounts, and stop nobody else.
pub(crate) fn others_are_not_stopped(server: &mut Server) {
    let stage = Stage::new(server);
    stage.does(&merge(OWN, r#"{"metadata":{"labels":{"pool":"b"}},"spec":{"podCIDR":"10.244.9.0/24","podCIDRs":["10.244.9.0/24"]}}"#));
    stage.does(&merge(&ours("veilnodes/node-1/status"), r#"{"status":{"peers":9}}"#));
    stage
        .does(&merge(&ours("encryptionmeshes/default"), r#"{"spec":{"mode":"observe","revokedKeys":null}}"#));
    stage.does(&Request::new(Method::DELETE, OWN, ""));
    // As a kubelet begins.
    let kubelet = &stage.thieves[1];
    ask(server, kubelet, &post("/api/v1/nodes", r#"{"metadata":{"name":"node-1","labels":{"pool":"a"}}}"#))
        .unwrap();
    stage.does(&merge(OWN, r#"{"spec":{"podCIDR":"10.244.9.0/24","podCIDRs":["10.244.9.0/24"]}}"#));
    // With ranges that it was given.
    ask(server, kubelet, &merge(OWN, r#"{"metadata":{"labels":{"pool":"b"}}}"#)).unwrap();
    // As the agent does it.
    let body = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-1", "annotations": {"kubeveil.io/announcement": "said"}},
    });
    let path = format!("{OWN}?fieldManager=kubeveil-agent&force=true");
    ask(server, &stage.thieves[0], &Request::patch("apply", &path, &body.to_string())).unwrap();
}
