//! Attacks on Nodes.

use super::attack::{
    Attack, NODES, OTHER, OWN,
    Outcome::{Ignored, Itself, NoRight, Policy, Restricted},
    announcement, delete, get, merge, post,
};
use kubeveil_tests_kubernetes::ask::Request;

const LABEL: &str = r#"{"metadata":{"labels":{"pool":"b"}}}"#;
const WRITES: super::attack::Outcome =
    Policy("an agent writes nothing into a Node's metadata but its announcement");
const SPEC: super::attack::Outcome = Policy("an agent writes nothing into a Node's spec");
const FOREIGN: super::attack::Outcome = Policy("an agent writes to its own Node only");
const FOREIGN_TO_KUBELET: super::attack::Outcome =
    Restricted(r#"node "node-1" is not allowed to modify node "node-2""#);

pub(crate) const ALL: &[Attack] = &[
    Attack {
        name: "announces_for_its_node",
        what: "announces another key for its own Node",
        request: || merge(OWN, &announcement(8)),
        outcomes: [Itself, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "takes_its_announcement_back",
        what: "removes its own Node's announcement",
        request: || merge(OWN, r#"{"metadata":{"annotations":{"kubeveil.io/announcement":null}}}"#),
        outcomes: [Itself, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "announces_without_end",
        what: "announces more than others read (8 KiB)",
        request: || merge(OWN, &announcement(8193)),
        outcomes: [Policy("an announcement has 8192 characters at most"), Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "another_annotation",
        what: "writes another annotation of its own Node",
        request: || merge(OWN, r#"{"metadata":{"annotations":{"others":"changed"}}}"#),
        outcomes: [
            Policy("an agent writes no annotation of a Node but kubeveil.io/announcement"),
            Itself,
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "removes_another_annotation",
        what: "removes another annotation of its own Node",
        request: || merge(OWN, r#"{"metadata":{"annotations":{"others":null}}}"#),
        outcomes: [
            Policy("an agent removes no annotation of a Node but kubeveil.io/announcement"),
            Itself,
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "label",
        what: "labels its own Node, to draw pods to it",
        request: || merge(OWN, LABEL),
        outcomes: [WRITES, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "label_by_apply",
        what: "… by server-side apply, as another manager by force",
        request: || {
            let body =
                r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node-1","labels":{"pool":"b"}}}"#;
            Request::patch("apply", &format!("{OWN}?fieldManager=kubelet&force=true"), body)
        },
        outcomes: [WRITES, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "label_by_json_patch",
        what: "… by a JSON patch",
        request: || {
            let body = r#"[{"op":"replace","path":"/metadata/labels/pool","value":"b"}]"#;
            Request::patch("json", OWN, body)
        },
        outcomes: [WRITES, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "label_by_strategic_merge",
        what: "… by a strategic merge patch",
        request: || Request::patch("strategic-merge", OWN, LABEL),
        outcomes: [WRITES, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "label_beside_the_announcement",
        what: "… in one request with its announcement",
        request: || {
            merge(OWN, &announcement(8).replace(r#"{"metadata":{"#, r#"{"metadata":{"labels":{"pool":"b"},"#))
        },
        outcomes: [WRITES, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "removes_labels",
        what: "removes its own Node's labels",
        request: || merge(OWN, r#"{"metadata":{"labels":null}}"#),
        outcomes: [
            Policy("an agent removes nothing from a Node's metadata but its announcement"),
            Itself,
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "label_of_isolation",
        what: "gives its own Node a label of node-restriction.kubernetes.io",
        request: || merge(OWN, r#"{"metadata":{"labels":{"node-restriction.kubernetes.io/a":"b"}}}"#),
        outcomes: [WRITES, Restricted("is not allowed to modify labels"), NoRight, NoRight, NoRight],
    },
    Attack {
        name: "finalizer",
        what: "gives its own Node a finalizer, so that it can't be deleted",
        request: || merge(OWN, r#"{"metadata":{"finalizers":["example.com/never"]}}"#),
        outcomes: [WRITES, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "owner",
        what: "gives its own Node an owner, with which it is collected",
        request: || {
            let owner = r#"{"apiVersion":"v1","kind":"Node","name":"node-2","uid":"d4a7d6a4-9f8e-4c7e-8d0b-6f0b5f1f5f11"}"#;
            merge(OWN, &format!(r#"{{"metadata":{{"ownerReferences":[{owner}]}}}}"#))
        },
        outcomes: [WRITES, Restricted("is not allowed to modify ownerReferences"), NoRight, NoRight, NoRight],
    },
    Attack {
        name: "taint",
        what: "taints its own Node, or takes a taint off",
        request: || merge(OWN, r#"{"spec":{"taints":[{"key":"a","effect":"NoExecute"}]}}"#),
        outcomes: [SPEC, Restricted("is not allowed to modify taints"), NoRight, NoRight, NoRight],
    },
    Attack {
        name: "cordon",
        what: "cordons its own Node",
        request: || merge(OWN, r#"{"spec":{"unschedulable":true}}"#),
        outcomes: [SPEC, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "provider",
        what: "says that its own Node is another machine of the cloud (providerID)",
        request: || merge(OWN, r#"{"spec":{"providerID":"cloud://another"}}"#),
        outcomes: [SPEC, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "pod_ranges",
        what: "claims a range of pods for its own Node, which has none yet",
        request: || merge(OWN, r#"{"spec":{"podCIDR":"10.244.9.0/24","podCIDRs":["10.244.9.0/24"]}}"#),
        outcomes: [
            SPEC,
            Policy("a kubelet does not choose its pods' ranges (podCIDRs)"),
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "makes_its_node_with_ranges",
        what: "makes its own Node anew, with a range of pods",
        request: || {
            post(
                NODES,
                r#"{"metadata":{"name":"node-1"},"spec":{"podCIDR":"10.244.9.0/24","podCIDRs":["10.244.9.0/24"]}}"#,
            )
        },
        outcomes: [
            NoRight,
            Policy("a kubelet does not choose its pods' ranges (podCIDRs)"),
            NoRight,
            NoRight,
            NoRight,
        ],
    },
    Attack {
        name: "status_by_the_node",
        what: "gives its own Node another address, by the Node itself",
        request: || merge(OWN, r#"{"status":{"addresses":[{"type":"InternalIP","address":"8.8.8.8"}]}}"#),
        outcomes: [Ignored, Ignored, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "address_of_anybody",
        what: "gives its own Node the address 8.8.8.8, by its status",
        request: || {
            merge(
                &format!("{OWN}/status"),
                r#"{"status":{"addresses":[{"type":"InternalIP","address":"8.8.8.8"}]}}"#,
            )
        },
        outcomes: [NoRight, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "address_of_another_node",
        what: "gives its own Node another Node's address, by its status",
        request: || {
            merge(
                &format!("{OWN}/status"),
                r#"{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"}]}}"#,
            )
        },
        outcomes: [NoRight, Itself, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "replaces_its_node",
        what: "replaces its own Node as a whole",
        request: || Request::new(http::Method::PUT, OWN, r#"{"metadata":{"name":"node-1"}}"#),
        outcomes: [NoRight, Restricted("is not allowed to modify taints"), NoRight, NoRight, NoRight],
    },
    Attack {
        name: "deletes_its_node",
        what: "deletes its own Node",
        request: || delete(OWN),
        outcomes: [NoRight; 5],
    },
    Attack {
        name: "reaches_through_its_node",
        what: "reaches its node's kubelet through the API server",
        request: || get(&format!("{OWN}/proxy/pods")),
        outcomes: [NoRight; 5],
    },
    Attack {
        name: "announces_for_another",
        what: "announces a key for another Node",
        request: || merge(OTHER, &announcement(8)),
        outcomes: [FOREIGN, FOREIGN_TO_KUBELET, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "silences_another",
        what: "removes another Node's announcement",
        request: || merge(OTHER, r#"{"metadata":{"annotations":{"kubeveil.io/announcement":null}}}"#),
        outcomes: [FOREIGN, FOREIGN_TO_KUBELET, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "label_of_another",
        what: "labels another Node",
        request: || merge(OTHER, LABEL),
        outcomes: [FOREIGN, FOREIGN_TO_KUBELET, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "cordons_another",
        what: "cordons another Node",
        request: || merge(OTHER, r#"{"spec":{"unschedulable":true}}"#),
        outcomes: [FOREIGN, FOREIGN_TO_KUBELET, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "address_for_another",
        what: "gives another Node an address",
        request: || {
            merge(
                &format!("{OTHER}/status"),
                r#"{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}"#,
            )
        },
        outcomes: [NoRight, FOREIGN_TO_KUBELET, NoRight, NoRight, NoRight],
    },
    Attack {
        name: "deletes_another",
        what: "deletes another Node",
        request: || delete(OTHER),
        outcomes: [NoRight; 5],
    },
    Attack {
        name: "deletes_all",
        what: "deletes all Nodes",
        request: || delete(NODES),
        outcomes: [NoRight; 5],
    },
    Attack {
        name: "makes_a_node",
        what: "makes a Node that there is not",
        request: || post(NODES, r#"{"metadata":{"name":"node-9"}}"#),
        outcomes: [NoRight, Restricted("is not allowed to"), NoRight, NoRight, NoRight],
    },
    Attack {
        name: "makes_a_node_by_apply",
        what: "… by server-side apply",
        request: || {
            let body = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"node-9"}}"#;
            Request::patch("apply", &format!("{NODES}/node-9?fieldManager=a"), body)
        },
        outcomes: [NoRight, Restricted("is not allowed to"), NoRight, NoRight, NoRight],
    },
];
