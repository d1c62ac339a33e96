//! Attacks on kubeveil's own objects, and on all else in a cluster.

use super::attack::{
    Attack, Outcome,
    Outcome::{Can, Ignored, Itself, NoRight, Policy, Restricted},
    delete, get, merge, ours, post,
};

const IN_OURS: &str = "/api/v1/namespaces/kubeveil";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces";
/// Who would need a right for it.
const NOBODY: [Outcome; 5] = [NoRight; 5];
const ONLY_KUBELET: [Outcome; 5] = [NoRight, Can, NoRight, NoRight, NoRight];
const CONTROLLER: Outcome = Policy(super::mistakes::CONTROLLER);
const MESH: Outcome = Policy("this hook writes nothing into the mesh's spec but uninstall");

/// Changes the mesh so.
fn on_mesh(patch: &str) -> kubeveil_tests_kubernetes::ask::Request {
    merge(&ours("encryptionmeshes/default"), patch)
}

/// Two nodes are bypassed, by this user; `more` stands before it in the spec.
fn bypass(by: &str, more: &str) -> String {
    let times = r#""at":"2027-01-31T12:00:00Z","until":"2027-01-31T12:10:00Z""#;
    format!(
        r#"{{"spec":{{{more}"bypasses":[{{"nodes":["node-1","node-2"],{times},"by":"{by}","reason":"mine"}}]}}}}"#
    )
}

/// An Event about a Node.
pub(super) fn event(namespace: &str) -> kubeveil_tests_kubernetes::ask::Request {
    post(
        &format!("{EVENTS}/{namespace}/events"),
        &format!(
            r#"{{"metadata":{{"generateName":"a-","namespace":"{namespace}"}},"eventTime":"2027-01-01T00:00:00.000000Z",
                "reportingController":"a","reportingInstance":"b","action":"c","reason":"d","type":"Normal",
                "regarding":{{"kind":"Node","name":"node-1"}}}}"#
        ),
    )
}

/// A token of this account, bound to this Pod, or to none.
fn token(account: &str, pod: &str) -> kubeveil_tests_kubernetes::ask::Request {
    let bound = format!(r#"{{"apiVersion":"v1","kind":"Pod","name":"{pod}","uid":"UID of {pod}"}}"#);
    let bound = if pod.is_empty() { "null" } else { &bound };
    let body = format!(r#"{{"spec":{{"boundObjectRef":{bound}}}}}"#);
    post(&format!("{IN_OURS}/serviceaccounts/{account}/token"), &body)
}

pub(crate) const ALL: &[Attack] = &[
    Attack {
        name: "status_of_its_veilnode",
        what: "lies in the status of its own VeilNode",
        request: || merge(&ours("veilnodes/node-1/status"), r#"{"status":{"peers":9}}"#),
        outcomes: [Itself, NoRight, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "status_of_another_veilnode",
        what: "lies in the status of another VeilNode",
        request: || merge(&ours("veilnodes/node-2/status"), r#"{"status":{"peers":9}}"#),
        outcomes: [Policy("an agent writes to its own VeilNode only"), NoRight, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "more_than_the_status",
        what: "labels its own VeilNode, by its status",
        request: || merge(&ours("veilnodes/node-1/status"), r#"{"metadata":{"labels":{"a":"b"}}}"#),
        outcomes: [Ignored, NoRight, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "veilnode",
        what: "changes a VeilNode besides its status",
        request: || merge(&ours("veilnodes/node-1"), r#"{"metadata":{"finalizers":["example.com/never"]}}"#),
        outcomes: NOBODY,
    },
    Attack {
        name: "makes_a_veilnode",
        what: "makes a VeilNode",
        request: || {
            post(
                &ours("veilnodes"),
                r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"VeilNode","metadata":{"name":"node-9"}}"#,
            )
        },
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "deletes_a_veilnode",
        what: "deletes a VeilNode (nothing is decided by them)",
        request: || delete(&ours("veilnodes/node-2")),
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "deletes_all_veilnodes",
        what: "deletes all VeilNodes",
        request: || delete(&ours("veilnodes")),
        outcomes: [NoRight, NoRight, NoRight, NoRight, Can],
    },
    Attack {
        name: "mode",
        what: "switches encryption off (spec.mode of the mesh)",
        request: || on_mesh(r#"{"spec":{"mode":"observe"}}"#),
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "generation",
        what: "begins a rotation, where spec.rotation.every is set",
        request: || on_mesh(r#"{"spec":{"keyGeneration":1}}"#),
        outcomes: [NoRight, NoRight, Can, NoRight, MESH],
    },
    Attack {
        name: "generation_and_more",
        what: "begins a rotation, and switches encryption off with it",
        request: || on_mesh(r#"{"spec":{"keyGeneration":1,"mode":"observe"}}"#),
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "generation_and_an_owner",
        what: "begins a rotation, and gives the mesh an owner, with which it is collected",
        request: || {
            let owner = r#"{"apiVersion":"v1","kind":"Node","name":"node-9","uid":"d4a7d6a4-9f8e-4c7e-8d0b-6f0b5f1f5f11"}"#;
            on_mesh(&format!(
                r#"{{"metadata":{{"ownerReferences":[{owner}]}},"spec":{{"keyGeneration":1}}}}"#
            ))
        },
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "generation_and_an_annotation",
        what: "begins a rotation, and has helm keep the mesh",
        request: || {
            on_mesh(
                r#"{"metadata":{"annotations":{"helm.sh/resource-policy":"keep"}},"spec":{"keyGeneration":1}}"#,
            )
        },
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "rotates_more_often",
        what: "begins a rotation, and schedules more of them with it",
        request: || on_mesh(r#"{"spec":{"keyGeneration":1,"rotation":{"every":"1h"}}}"#),
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "cuts_nodes_off",
        what: "begins a rotation, and cuts off who is not done with it",
        request: || on_mesh(r#"{"spec":{"keyGeneration":1,"rotation":{"retireBefore":1}}}"#),
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "goes_on_after_a_pause",
        what: "begins a rotation, and ends a pause with it",
        request: || on_mesh(r#"{"spec":{"keyGeneration":1,"rotation":{"paused":null}}}"#),
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "pardons_a_key",
        what: "takes a revoked key back",
        request: || on_mesh(r#"{"spec":{"revokedKeys":null}}"#),
        outcomes: [
            NoRight,
            NoRight,
            CONTROLLER,
            NoRight,
            Policy("this hook removes nothing from the mesh's spec"),
        ],
    },
    Attack {
        name: "bypasses_a_pair",
        what: "has two nodes speak in plain (spec.bypasses of the mesh)",
        request: || on_mesh(&bypass("the writer", "")),
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "generation_and_a_bypass",
        what: "begins a rotation, and has two nodes speak in plain with it",
        request: || {
            let generation = r#""keyGeneration":1,"#;
            on_mesh(&bypass("the writer", generation))
        },
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, MESH],
    },
    Attack {
        name: "uninstalls",
        what: "asks all agents to clean up (spec.uninstall of the mesh)",
        request: || on_mesh(r#"{"spec":{"uninstall":true}}"#),
        outcomes: [NoRight, NoRight, CONTROLLER, NoRight, Can],
    },
    Attack {
        name: "status_of_the_mesh",
        what: "lies in the mesh's status",
        request: || merge(&ours("encryptionmeshes/default/status"), r#"{"status":{"observedGeneration":9}}"#),
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "mode_by_the_status",
        what: "switches encryption off, by the mesh's status",
        request: || merge(&ours("encryptionmeshes/default/status"), r#"{"spec":{"mode":"observe"}}"#),
        outcomes: [NoRight, NoRight, Ignored, NoRight, NoRight],
    },
    Attack {
        name: "deletes_the_mesh",
        what: "deletes the mesh",
        request: || delete(&ours("encryptionmeshes/default")),
        outcomes: NOBODY,
    },
    Attack {
        name: "makes_a_mesh",
        what: "makes a mesh",
        request: || {
            post(
                &ours("encryptionmeshes"),
                r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"EncryptionMesh","metadata":{"name":"default"}}"#,
            )
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "our_definition",
        what: "changes kubeveil's definitions",
        request: || {
            merge(
                &format!("{DEFINITIONS}/veilnodes.kubeveil.io"),
                r#"{"metadata":{"annotations":{"a":"b"}}}"#,
            )
        },
        outcomes: [NoRight, NoRight, NoRight, Can, NoRight],
    },
    Attack {
        name: "deletes_our_definition",
        what: "deletes a definition of kubeveil's, and all its objects",
        request: || delete(&format!("{DEFINITIONS}/veilnodes.kubeveil.io")),
        outcomes: NOBODY,
    },
    Attack {
        name: "makes_a_definition",
        what: "makes a definition of somebody else's group",
        request: || {
            post(
                DEFINITIONS,
                r#"{"metadata":{"name":"as.example.com"},"spec":{"group":"example.com","scope":"Cluster",
                    "names":{"kind":"A","plural":"as","singular":"a","listKind":"AList"},
                    "versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}"#,
            )
        },
        outcomes: [
            NoRight,
            NoRight,
            NoRight,
            Policy("this hook makes definitions of kubeveil.io only"),
            NoRight,
        ],
    },
    Attack {
        name: "another_definition",
        what: "changes somebody else's definition",
        request: || {
            merge(&format!("{DEFINITIONS}/as.example.com"), r#"{"metadata":{"annotations":{"a":"b"}}}"#)
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "leads",
        what: "takes the controller's Lease",
        request: || {
            merge(
                &format!("{LEASES}/kubeveil/leases/kubeveil-controller"),
                r#"{"spec":{"holderIdentity":"thief"}}"#,
            )
        },
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "leads_another",
        what: "takes somebody else's Lease",
        request: || {
            merge(&format!("{LEASES}/kubeveil/leases/another"), r#"{"spec":{"holderIdentity":"thief"}}"#)
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "beats_for_another",
        what: "says that another node lives, or does not (its Lease)",
        request: || {
            merge(
                &format!("{LEASES}/kube-node-lease/leases/node-2"),
                r#"{"spec":{"holderIdentity":"thief"}}"#,
            )
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "event",
        what: "tells Events",
        request: || event("default"),
        outcomes: [NoRight, Can, Can, NoRight, NoRight],
    },
    Attack {
        name: "event_elsewhere",
        what: "tells Events in another namespace",
        request: || event("kube-system"),
        outcomes: ONLY_KUBELET,
    },
    Attack {
        name: "reads_nodes",
        what: "reads all Nodes",
        request: || get("/api/v1/nodes"),
        outcomes: [Can, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "reads_pods",
        what: "reads all Pods, with what their specs hold",
        request: || get("/api/v1/pods"),
        outcomes: [Can, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "reads_policies",
        what: "reads all policies, and the labels of all Namespaces",
        request: || get("/api/v1/namespaces"),
        outcomes: [Can, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "exempts_pods",
        what: "exempts pods from encryption, by a ClusterEncryptionPolicy of its own",
        request: || {
            let policy = r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"ClusterEncryptionPolicy","metadata":{"name":"open"},
                "spec":{"namespaceSelector":{},"podSelector":{"matchLabels":{"a":"b"}},"mode":"exempt","reason":"mine"}}"#;
            post(&ours("clusterencryptionpolicies"), policy)
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "deletes_policies",
        what: "takes the cluster's policies away",
        request: || delete(&ours("clusterencryptionpolicies")),
        outcomes: NOBODY,
    },
    Attack {
        name: "asks_more_of_pods",
        what: "has packets to another node's pods held to require (a VeilPodSlice)",
        request: || {
            let slice = r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"VeilPodSlice","metadata":{"name":"node-2"},
                "pods":[{"namespace":"default","name":"p","addresses":["10.244.2.7"],"mode":"require"}]}"#;
            post(&ours("veilpodslices"), slice)
        },
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "withholds_what_is_asked",
        what: "keeps from senders of which pods more is asked (deletes a VeilPodSlice)",
        request: || delete(&ours("veilpodslices/node-1")),
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "deletes_all_slices",
        what: "deletes all VeilPodSlices",
        request: || delete(&ours("veilpodslices")),
        outcomes: [NoRight, NoRight, NoRight, NoRight, Can],
    },
    Attack {
        name: "speaks_for_all_nodes",
        what: "tells the agents of any node's key, prefixes and labels, where they go by slices (a VeilPeerSlice)",
        request: || {
            let slice = r#"{"apiVersion":"kubeveil.io/v1alpha1","kind":"VeilPeerSlice","metadata":{"name":"peers-1"},
                "peers":[{"name":"node-2","uid":"another","podCIDRs":["10.244.2.0/24"]}]}"#;
            post(&ours("veilpeerslices"), slice)
        },
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "withholds_nodes",
        what: "takes away what agents know of a hundred nodes, where they go by slices (deletes a VeilPeerSlice)",
        request: || delete(&ours("veilpeerslices/peers-0")),
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "deletes_all_slices_of_nodes",
        what: "deletes all VeilPeerSlices",
        request: || delete(&ours("veilpeerslices")),
        outcomes: [NoRight, NoRight, NoRight, NoRight, Can],
    },
    Attack {
        name: "status_of_a_policy",
        what: "lies in a policy's status (nothing is decided by it)",
        request: || merge(&ours("clusterencryptionpolicies/all/status"), r#"{"status":{"pods":9}}"#),
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "reads_our_pods",
        what: "reads the Pods of kubeveil's own namespace",
        request: || get(&format!("{IN_OURS}/pods")),
        outcomes: [Can, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "reads_secrets",
        what: "reads Secrets",
        request: || get("/api/v1/secrets"),
        outcomes: NOBODY,
    },
    Attack {
        name: "reads_settings",
        what: "reads kubeadm's settings (ConfigMap kubeadm-config)",
        request: || get("/api/v1/namespaces/kube-system/configmaps/kubeadm-config"),
        outcomes: [NoRight, NoRight, Can, NoRight, NoRight],
    },
    Attack {
        name: "reads_other_settings",
        what: "reads another ConfigMap",
        request: || get("/api/v1/namespaces/kube-system/configmaps/another"),
        outcomes: NOBODY,
    },
    Attack {
        name: "makes_a_pod",
        what: "runs a Pod on another node",
        request: || {
            post(
                &format!("{IN_OURS}/pods"),
                r#"{"metadata":{"name":"a"},"spec":{"nodeName":"node-2","serviceAccountName":"kubeveil-agent","containers":[{"name":"a","image":"a"}]}}"#,
            )
        },
        outcomes: [NoRight, Restricted("can only create mirror pods"), NoRight, NoRight, NoRight],
    },
    Attack {
        name: "enters_a_pod",
        what: "runs a command in a Pod",
        request: || post(&format!("{IN_OURS}/pods/kubeveil-agent-node-2/exec?command=a&stdout=true"), ""),
        outcomes: NOBODY,
    },
    Attack {
        name: "deletes_a_pod",
        what: "deletes a Pod of another node",
        request: || delete(&format!("{IN_OURS}/pods/kubeveil-agent-node-2")),
        outcomes: [
            NoRight,
            Restricted("can only delete pods with spec.nodeName set to itself"),
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "changes_the_agents",
        what: "changes what the agents run (the DaemonSet)",
        request: || {
            merge(
                "/apis/apps/v1/namespaces/kubeveil/daemonsets/kubeveil-agent",
                r#"{"metadata":{"labels":{"a":"b"}}}"#,
            )
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "token_of_its_agent",
        what: "asks for a token of its own node's agent",
        request: || token("kubeveil-agent", "kubeveil-agent-node-1"),
        outcomes: [NoRight, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "token_of_another_agent",
        what: "asks for a token of another node's agent",
        request: || token("kubeveil-agent", "kubeveil-agent-node-2"),
        outcomes: [
            NoRight,
            Restricted("bound to a pod scheduled on a different node"),
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "token_of_no_node",
        what: "asks for a token of the agents that is bound to nothing",
        request: || token("kubeveil-agent", ""),
        outcomes: [NoRight, Restricted("not bound to a pod"), NoRight, NoRight, NoRight],
    },
    Attack {
        name: "token_of_the_controller",
        what: "asks for a token of the controller, which runs on its node",
        request: || token("kubeveil-controller", "kubeveil-controller-node-1"),
        outcomes: ONLY_KUBELET,
    },
    Attack {
        name: "token_of_the_controller_elsewhere",
        what: "… which runs on another node",
        request: || token("kubeveil-controller", "kubeveil-controller-node-2"),
        outcomes: [
            NoRight,
            Restricted("bound to a pod scheduled on a different node"),
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "gives_itself_rights",
        what: "gives itself more rights",
        request: || {
            post(
                "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                r#"{"metadata":{"name":"a"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}}"#,
            )
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "takes_a_policy_away",
        what: "takes an admission policy out of force",
        request: || delete(&format!("{POLICIES}/validatingadmissionpolicybindings/kubeveil-agent-own-node")),
        outcomes: NOBODY,
    },
    Attack {
        name: "webhook",
        what: "puts itself between others and the API server (a webhook)",
        request: || {
            post(&format!("{POLICIES}/mutatingwebhookconfigurations"), r#"{"metadata":{"name":"a"}}"#)
        },
        outcomes: NOBODY,
    },
    Attack {
        name: "impersonates",
        what: "speaks as somebody else (impersonation)",
        request: || {
            let mut request = get("/api/v1/nodes");
            request.impersonates = Some("admin");
            request
        },
        outcomes: NOBODY,
    },
];
