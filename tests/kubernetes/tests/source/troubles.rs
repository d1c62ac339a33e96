//! What is wrong, told so that somebody can mend it.

use std::{
    fs,
    time::{Duration, Instant},
};

use kubeveil_core::source::SourceState;
use kubeveil_tests_kubernetes::{
    certificate::Authority,
    cluster::{self, InApiServer},
    server::{Server, Who},
    world::World,
};

use crate::suite::{knows, mesh, opened, settle};

fn told(state: &SourceState, parts: &[&str]) -> bool {
    state.problems.iter().any(|problem| {
        let text = problem.to_string();
        parts.iter().all(|part| text.contains(part))
    })
}

/// By which right, and whose.
pub(crate) fn a_missing_right_is_named(server: &mut Server) {
    let world = InApiServer::new(server).unwrap();
    let mut watching = world.open_by("node-1", &server.kubeconfig(Who::Nobody).unwrap());
    let url = server.url();
    for resource in ["nodes", "encryptionmeshes.kubeveil.io"] {
        let what = format!("API server {url}: does not let us list {resource}");
        watching.until(resource, |state| told(state, &[&what, &format!("the verb list on {resource}")]));
    }
}

pub(crate) fn a_missing_definition_is_named(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    settle(&mut world, 2);
    let mut watching = opened(&world, &["node-1", "node-2"]);
    cluster::remove_definition(server, "encryptionmeshes.kubeveil.io").unwrap();
    let parts = ["CustomResourceDefinition encryptionmeshes.kubeveil.io: is not installed", "deploy/crds"];
    let state = watching.until("it is told", |state| told(state, &parts));
    assert_eq!(state.knowledge.snapshot().nodes.len(), 2);
    cluster::install_definitions(server).unwrap();
    world.put_mesh(&mesh()).unwrap();
    watching.until("all is known", |state| knows(state, &["node-1", "node-2"]) && state.problems.is_empty());
}

pub(crate) fn a_certificate_of_somebody_else_is_refused(server: &mut Server) {
    let world = InApiServer::new(server).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ca, kubeconfig) = (dir.path().join("ca.pem"), dir.path().join("kubeconfig"));
    fs::write(&ca, Authority::new().unwrap().pem()).unwrap();
    server.write_kubeconfig(&kubeconfig, &server.url(), Who::Agent, &ca).unwrap();
    let mut watching = world.open_by("node-1", &kubeconfig);
    let parts = ["its certificate is refused", "certificate authority"];
    let state = watching.until("it is told", |state| told(state, &parts));
    assert!(state.knowledge.synced().is_none());
    // The kubeconfig is mended, and nobody has to be told of it.
    drop(state);
    let mut world = world;
    settle(&mut world, 1);
    fs::copy(server.kubeconfig(Who::Agent).unwrap(), &kubeconfig).unwrap();
    watching.until("all is known", |state| knows(state, &["node-1"]) && state.problems.is_empty());
}

pub(crate) fn a_kubeconfig_that_is_missing_is_named(server: &mut Server) {
    let world = InApiServer::new(server).unwrap();
    let path = std::path::Path::new("/nonexistent/kubeconfig");
    let mut watching = world.open_by("node-1", path);
    let parts = ["file /nonexistent/kubeconfig: gives no access to an API server", "--source"];
    watching.until("it is told", |state| told(state, &parts));
}

/// An API server that is down removes nobody; it is told since when, and what was wanted is done when it is back.
pub(crate) fn an_api_server_that_is_down_removes_nobody(server: &mut Server) {
    let mut watching = {
        let mut world = InApiServer::new(server).unwrap();
        settle(&mut world, 3);
        opened(&world, &["node-1", "node-2", "node-3"])
    };
    server.halt();
    let state = watching
        .until("it is told", |state| told(state, &["can't be asked to watch nodes since", "reach it"]));
    assert!(knows(&state, &["node-1", "node-2", "node-3"]), "{state:#?}");
    let since = state.problems[0].message.split(" since ").nth(1).unwrap()[..20].to_owned();
    let uid = state.knowledge.snapshot().nodes["node-1"].uid.clone();
    watching.source.announce("node-1", &uid, Some("said")).unwrap();
    let mut refused = None;
    kubeveil_tests_kubernetes::world::until("it can't be written", || {
        refused = watching.source.announce("node-1", &uid, Some("said")).err();
        refused.is_some()
    });
    let refused = refused.unwrap().to_string();
    assert!(refused.starts_with("Node node-1 metadata.annotations[kubeveil.io/announcement]: "), "{refused}");
    // The time is that of the first failure, however often it is tried.
    std::thread::sleep(Duration::from_secs(2));
    let now = watching.read();
    assert!(told(&now, &[&since]), "{since}: {:?}", now.problems);
    server.resume().unwrap();
    watching.until("it is back", |state| {
        state.problems.is_empty()
            && state.knowledge.snapshot().nodes["node-1"].announcement.as_deref() == Some("said")
    });
    assert_eq!(watching.source.announce("node-1", &uid, Some("said")), Ok(()));
}

/// Nobody but the Node of that UID is written to.
pub(crate) fn another_node_of_the_name_is_not_written_to(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    settle(&mut world, 1);
    let mut watching = opened(&world, &["node-1"]);
    let before = watching.read().knowledge.snapshot().nodes["node-1"].uid.clone();
    world.delete_node("node-1").unwrap();
    settle(&mut world, 1);
    watching.source.announce("node-1", &before, Some("said")).ok();
    watching.until("another", |state| {
        state.knowledge.snapshot().nodes.get("node-1").is_some_and(|node| node.uid != before)
    });
    watching.source.announce("node-1", &before, Some("said")).ok();
    // A write takes some milliseconds.
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        assert_eq!(watching.read_announcement("node-1"), None);
        watching.woken.recv_timeout(Duration::from_millis(50)).ok();
    }
    assert_eq!(world.announced("node-1").unwrap(), None);
}

/// What kubelets write every few minutes.
pub(crate) fn a_heartbeat_wakes_nobody(server: &mut Server) {
    let mut world = InApiServer::new(server).unwrap();
    settle(&mut world, 2);
    let mut watching = opened(&world, &["node-1", "node-2"]);
    while watching.woken.recv_timeout(Duration::from_millis(500)).is_ok() {}
    for beat in 0..20 {
        world.beat("node-2", beat).unwrap();
    }
    // After them, something that counts.
    world.annotate("node-2", Some("said")).unwrap();
    let mut wakes = 0;
    while watching.read_announcement("node-2").as_deref() != Some("said") {
        watching.woken.recv_timeout(Duration::from_secs(10)).unwrap();
        wakes += 1;
    }
    wakes += watching.woken.try_iter().count();
    assert_eq!(wakes, 1);
}
