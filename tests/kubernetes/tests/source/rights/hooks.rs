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
use serde_json::{Value, json};

use super::{Stage, attack::ours, merge};

/// Fields of a mesh's spec, as its definition has them.
fn mesh_fields(definition: &mut Value) -> &mut serde_json::Map<String, Value> {
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    definition.pointer_mut(path).and_then(Value::as_object_mut).expect("a schema")
}

pub(crate) fn they_can_do_their_work(server: &mut Server) {
    let stage = Stage::new(server);
    let origin = |account: &str| Origin::Kubeconfig(server.kubeconfig_of(account, "node-1").unwrap());
    // A definition of another version, as helm once installed it and never touches it again: it lacks a field, and has one that is no more.
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/encryptionmeshes.kubeveil.io";
    let mut older = stage.does(&Request::new(Method::GET, path, ""));
    let fields = |definition: &mut Value| -> Vec<String> {
        mesh_fields(definition)
            .keys()
            .filter(|field| ["adoption", "formerly"].contains(&field.as_str()))
            .cloned()
            .collect()
    };
    let is = mesh_fields(&mut older);
    is.remove("adoption");
    is.insert("formerly".to_owned(), json!({"type": "string"}));
    let mut older = stage.does(&Request::new(Method::PUT, path, &older.to_string()));
    assert_eq!(fields(&mut older), ["formerly"]);
    server.runtime.block_on(hook::apply_definitions(&origin("kubeveil-apply-crds"))).unwrap();
    assert_eq!(fields(&mut stage.does(&Request::new(Method::GET, path, ""))), ["adoption"]);

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
