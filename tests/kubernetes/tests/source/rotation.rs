//! Keys are rotated by a person's own credentials, on a real API server.

pub(crate) mod outages;

use kubeveil_core::control::{Control as _, Refusal};
use kubeveil_kubernetes::{KubernetesControl, Origin, Pace};
use kubeveil_tests_kubernetes::{
    cluster::{InApiServer, mesh_kind},
    server::{Server, Who},
    world::World,
};
use serde_json::json;

use crate::suite::{mesh, put};

/// The policy's message.
pub(crate) const ASKED: &str = "spec.rotation.requestedBy must be the user who writes it, or be left out, unless it speaks of an earlier generation (forGeneration)";

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
    let back = bob.change(&seen, &json!({"spec": {"keyGeneration": 0}})).unwrap_err().to_string();
    assert!(back.contains("never decreases"), "{back}");
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
        control.change(&seen, &json!({"spec": spec})).map_err(|refusal| refusal.to_string())
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
    let merge = kubeveil_tests_kubernetes::ask::Request::patch("merge", &path, &scheduled.to_string());
    kubeveil_tests_kubernetes::ask::ask(server, &admin, &merge).unwrap();
    raises().unwrap();
    // What somebody asked for earlier, and that was of no generation, would speak for this one too.
    let asked = |of: serde_json::Value| {
        let rotation = json!({"requestedBy": "admin", "forGeneration": of});
        let merge = json!({"spec": {"rotation": rotation}}).to_string();
        let merge = kubeveil_tests_kubernetes::ask::Request::patch("merge", &path, &merge);
        kubeveil_tests_kubernetes::ask::ask(server, &admin, &merge).unwrap();
    };
    asked(serde_json::Value::Null);
    let refused = raises().unwrap_err();
    assert!(refused.contains(ASKED), "{refused}");
    asked(json!(1));
    raises().unwrap();
}
