//! The hooks' own code, by the accounts that the chart makes for it.

use std::time::Duration;

use http::Method;
use kubeveil_controller::hook;
use kubeveil_kubernetes::Origin;
use kubeveil_tests_kubernetes::{
    ask::{Request, ask},
    server::Server,
    world::until,
};

use super::{Stage, attack::ours, merge};

pub(crate) fn they_can_do_their_work(server: &mut Server) {
    let stage = Stage::new(server);
    let origin = |account: &str| Origin::Kubeconfig(server.kubeconfig_of(account, "node-1").unwrap());
    server.runtime.block_on(hook::apply_definitions(&origin("kubeveil-apply-crds"))).unwrap();

    // Nodes that never had an agent have nothing to clean up, so it need not wait.
    let patience = Duration::from_secs(20);
    let done = server.runtime.block_on(hook::uninstall(&origin("kubeveil-uninstall"), patience));
    done.unwrap().unwrap();
    let mesh = stage.does(&Request::new(Method::GET, &ours("encryptionmeshes/default"), ""));
    assert_eq!(mesh["spec"]["uninstall"], true);
    until("the VeilNodes are gone", || {
        let list = ask(server, &stage.admin, &Request::new(Method::GET, &ours("veilnodes"), ""));
        list.is_ok_and(|list| list["items"].as_array().is_some_and(Vec::is_empty))
    });
    stage.does(&merge(&ours("encryptionmeshes/default"), r#"{"spec":{"uninstall":null}}"#));
}
