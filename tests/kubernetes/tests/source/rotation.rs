//! Keys are rotated by a person's own credentials, on a real API server.

pub(crate) mod outages;

use http::Method;
use kubeveil_core::control::{Control as _, Refusal};
use kubeveil_kubernetes::{KubernetesControl, Origin, Pace};
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    cluster::{InApiServer, mesh_kind},
    server::{Server, Who},
    world::{World, until},
};
use serde_json::{Value, json};

use crate::suite::{mesh, put};

/// The policy's message.
pub(crate) const ASKED: &str = "spec.rotation.requestedBy must be the user who writes it, or be left out, unless it speaks of an earlier generation (forGeneration)";

/// The same policy's, of deeds.
pub(crate) const DID: &str = "spec.rotation.deeds tells who did what, so an entry that is added or changed must name the user who writes it (by)";

fn control(server: &Server) -> KubernetesControl {
    let origin = Origin::Kubeconfig(server.kubeconfig(Who::Admin).unwrap());
    KubernetesControl::new(origin, Pace::default(), server.runtime.handle())
}

/// What is seen, who asks, and that of two who ask at once one is told.
pub(crate) fn one_of_two_is_told_of_the_other(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    (1..=3).for_each(|n| put(&mut world, n));
    let (mut alice, mut bob) = (control(server), control(server));
    let (by_alice, by_bob) = (alice.look().unwrap(), bob.look().unwrap());
    assert_eq!(by_alice.nodes.keys().collect::<Vec<_>>(), ["node-1", "node-2", "node-3"]);
    assert!(by_alice.nodes.values().all(|node| !node.uid.is_empty()));
    let me = alice.who().unwrap();
    let asks = json!({"spec": {"keyGeneration": 1, "rotation": {"requestedBy": me, "reason": "audit"}}});
    alice.change(&by_alice, &asks).unwrap();
    assert_eq!(bob.change(&by_bob, &asks), Err(Refusal::Changed));
    let spec = bob.look().unwrap().mesh.spec;
    assert_eq!((spec.key_generation, spec.rotation.unwrap().reason.as_str()), (1, "audit"));
    // What the definition refuses is told with the field.
    let seen = bob.look().unwrap();
    let back = bob.change(&seen, &json!({"spec": {"keyGeneration": 0}})).unwrap_err();
    assert!(
        matches!(&back, Refusal::Refused(told) if told.to_string().contains("never decreases")),
        "{back}"
    );
    // So is what one has no right to, and each is told from an API server that does not answer.
    let origin = Origin::Kubeconfig(server.kubeconfig(Who::Nobody).unwrap());
    let mut nobody = KubernetesControl::new(origin, Pace::default(), server.runtime.handle());
    let refused = nobody.change(&seen, &json!({"spec": {"keyGeneration": 2}})).unwrap_err();
    assert!(
        matches!(&refused, Refusal::Refused(told) if told.to_string().contains("does not let us patch")),
        "{refused}"
    );
    assert!(!bob.keeps_status());
}

/// The chart's policy: nobody asks in another's name.
pub(crate) fn nobody_asks_in_anothers_name(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    let mut control = control(server);
    let me = control.who().unwrap();
    let mut asks = |generation: u32, by: Option<&str>| {
        let seen = control.look().unwrap();
        let spec = json!({"keyGeneration": generation, "rotation": {"requestedBy": by}});
        control.change(&seen, &json!({"spec": spec})).map_err(|refusal| match refusal {
            Refusal::Refused(told) => told.to_string(),
            other => panic!("the policy's answer counts for {other:?}"),
        })
    };
    asks(1, Some(&me)).unwrap();
    let refused = asks(2, Some("mallory")).unwrap_err();
    assert!(refused.contains(ASKED), "{refused}");
    // What stands there does not speak for who comes later.
    world.put(&mesh_kind(), &json!({"metadata": {"name": "default"}, "spec": mesh()})).unwrap();
    asks(2, None).unwrap();
    asks(2, Some("mallory")).unwrap_err();
}

/// The chart's policy: where nobody has scheduled any, the controller's credential begins none.
pub(crate) fn the_controller_begins_what_is_scheduled(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    let origin = Origin::Kubeconfig(server.kubeconfig(Who::Controller).unwrap());
    let mut control = KubernetesControl::new(origin, Pace::default(), server.runtime.handle());
    let mut raises = || {
        let seen = control.look().unwrap();
        let spec = json!({"keyGeneration": seen.mesh.spec.key_generation + 1});
        control.change(&seen, &json!({"spec": spec})).map_err(|refusal| refusal.to_string())
    };
    let refused = raises().unwrap_err();
    assert!(refused.contains(crate::rights::CONTROLLER), "{refused}");
    let scheduled = json!({"metadata": {"name": "default"}, "spec": {"rotation": {"every": "30d"}}});
    let admin = server.client(Who::Admin).unwrap();
    let path = crate::rights::mesh_path();
    let merge = Request::patch("merge", &path, &scheduled.to_string());
    ask(server, &admin, &merge).unwrap();
    raises().unwrap();
    // What somebody asked for earlier, and that was of no generation, would speak for this one too.
    let asked = |of: Value| {
        let rotation = json!({"requestedBy": "admin", "forGeneration": of});
        let merge = json!({"spec": {"rotation": rotation}}).to_string();
        let merge = Request::patch("merge", &path, &merge);
        ask(server, &admin, &merge).unwrap();
    };
    asked(Value::Null);
    let refused = raises().unwrap_err();
    assert!(refused.contains(ASKED), "{refused}");
    asked(json!(1));
    raises().unwrap();
}

/// The chart's policy: what somebody did is on record in his own name, and stays so whoever comes later.
pub(crate) fn nobody_does_anything_in_anothers_name(server: &mut Server) {
    crate::rights::with_policies(server);
    let mut world = InApiServer::new(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    let admin = server.client(Who::Admin).unwrap();
    let path = crate::rights::mesh_path();
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let may = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "alice"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
    });
    ask(server, &admin, &Request::new(Method::POST, bindings, &may.to_string())).unwrap();
    let deed = |by: &str, at: usize| json!({"at": format!("2026-11-28T10:00:{at:02}Z"), "by": by, "what": "forced", "generation": 0, "node": "n".repeat(253)});
    let writes = |user: Option<&'static str>, deeds: &[Value]| {
        let body = json!({"spec": {"rotation": {"deeds": deeds}}}).to_string();
        let mut request = Request::patch("merge", &path, &body);
        request.impersonates = user;
        let done = ask(server, &admin, &request);
        done.map(|mesh| mesh["spec"]["rotation"]["deeds"].clone()).map_err(|error| error.to_string())
    };
    let is_refused = |user: Option<&'static str>, deeds: &[Value]| {
        let refused = writes(user, deeds).unwrap_err();
        assert!(refused.contains(DID), "{refused}");
    };
    until("alice may write", || writes(Some("alice"), &[]).is_ok());
    let mut deeds = vec![deed("alice", 0)];
    assert_eq!(writes(Some("alice"), &deeds).unwrap(), json!(deeds), "all of it is kept");
    // The next adds his own behind hers, and no other; nor does he change hers.
    is_refused(None, &[deed("alice", 0), deed("alice", 1)]);
    is_refused(None, &[deed("alice", 1)]);
    is_refused(Some("alice"), &[deed("alice", 0), deed("admin", 1)]);
    is_refused(None, &[deed("", 0)]);
    deeds.push(deed("admin", 1));
    writes(None, &deeds).unwrap();
    // As many as there may be, by one and the other, cost the API server no more than it gives a policy.
    for at in 2..20 {
        let by = ["alice", "admin"][at % 2];
        deeds.push(deed(by, at));
        writes((by == "alice").then_some("alice"), &deeds).unwrap();
    }
    is_refused(None, &[&deeds[1..], &[deed("alice", 20)]].concat());
    writes(None, &[&deeds[1..], &[deed("admin", 20)]].concat()).unwrap();
    let many = writes(None, &[&deeds[..], &[deed("admin", 20)]].concat()).unwrap_err();
    assert!(many.contains("must have at most 20 items"), "{many}");
    // Who comes later and speaks of something else is not asked about it.
    let mut other = Request::patch("merge", &path, &json!({"spec": {"mode": "prefer"}}).to_string());
    other.impersonates = Some("alice");
    ask(server, &admin, &other).unwrap();
    ask(server, &admin, &Request::new(Method::DELETE, &format!("{bindings}/alice"), "")).unwrap();
}
