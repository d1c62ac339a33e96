//! Who is behind a Service.

use kubeveil_api::{
    object::Metadata,
    service::{
        Endpoint, EndpointConditions, EndpointSlice, Ingress, LoadBalancer, SERVICE_NAME, Service, ServiceSpec,
        ServiceStatus,
    },
};

use super::explained::census;
use crate::policy::{
    explain::Who,
    services::{ServiceId, Services, Target},
};

use super::*;

fn metadata(name: &str, labels: &[(&str, &str)]) -> Metadata {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Metadata { name: name.to_owned(), namespace: Some("shop".to_owned()), labels, ..Metadata::default() }
}

fn service(name: &str, spec: ServiceSpec) -> Service {
    Service { metadata: metadata(name, &[]), spec, status: ServiceStatus::default() }
}

fn slice(of: &str, endpoints: &[(&str, Option<bool>)]) -> EndpointSlice {
    let endpoint = |(address, ready): &(&str, Option<bool>)| Endpoint {
        addresses: vec![(*address).to_owned()],
        conditions: EndpointConditions { ready: *ready },
    };
    EndpointSlice {
        metadata: metadata("x", &[(SERVICE_NAME, of)]),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn named(name: &str) -> ServiceId {
    ServiceId { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn pod(name: &str) -> Who {
    Who::Pod(name.parse().expect("a pod"))
}

/// Each pod once, by either family; who is not ready is not chosen; who is no pod is an address.
#[test]
fn its_endpoints_are_who_can_be_chosen() {
    let census = census(Mode::Prefer, &[], &[]);
    let slices = vec![
        slice("web", &[("10.244.1.7", None), ("10.244.2.7", Some(true)), ("10.244.2.8", Some(false))]),
        slice("web", &[("10.244.1.7", Some(true)), ("192.0.2.1", None), ("nonsense", None)]),
        slice("other", &[("10.244.1.8", None)]),
        slice("empty", &[]),
    ];
    // By a selector of its own it would be all pods.
    let selector: Labels = [("app".to_owned(), "none".to_owned())].into();
    let services = vec![
        service("web", ServiceSpec { selector: selector.clone(), ..ServiceSpec::default() }),
        service("empty", ServiceSpec { selector, ..ServiceSpec::default() }),
        service("alias", ServiceSpec { external_name: "example.com".to_owned(), ..ServiceSpec::default() }),
    ];
    let services = Services::new(services, slices);
    let node = Who::Address("192.0.2.1".parse().expect("an address"));
    assert_eq!(services.chosen(&named("web"), &census), Ok(vec![pod("shop/web"), pod("shop/web-2"), node]));
    let refused = |name: &str| services.chosen(&named(name), &census).expect_err("nobody");
    assert_eq!(refused("empty"), "nobody who is ready is behind svc/shop/empty: packets to it reach nobody");
    assert!(refused("alias").contains("another name for example.com"));
    assert_eq!(
        refused("wob"),
        "there is no svc/shop/wob; there is svc/shop/alias, svc/shop/empty, svc/shop/web"
    );
}

/// As a folder without EndpointSlices has it.
#[test]
fn without_slices_its_selector_says_who() {
    let mut census = census(Mode::Prefer, &[], &[]);
    let selector: Labels = [("app".to_owned(), "web".to_owned())].into();
    for (name, ended) in [("shop/web", false), ("shop/web-2", true), ("payments/ledger", false)] {
        let resident = census.pods.get_mut(&name.parse().expect("a pod")).expect("there");
        (resident.pod.labels, resident.has_ended) = (selector.clone(), ended);
    }
    let spec = |selector| ServiceSpec { selector, ..ServiceSpec::default() };
    let services = vec![service("web", spec(selector)), service("any", spec(Labels::new()))];
    let services = Services::new(services, Vec::new());
    assert_eq!(services.chosen(&named("web"), &census), Ok(vec![pod("shop/web")]));
    assert!(services.chosen(&named("any"), &census).is_err(), "without a selector nobody is selected");
}

#[test]
fn it_is_meant_by_its_name_and_by_its_addresses() {
    let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let spec = ServiceSpec {
        cluster_ip: "10.96.0.7".to_owned(),
        cluster_ips: texts(&["10.96.0.7", "fd00:96::7"]),
        external_ips: texts(&["198.51.100.7"]),
        ..ServiceSpec::default()
    };
    let ingress = vec![Ingress { ip: "203.0.113.7".to_owned() }, Ingress::default()];
    let status = ServiceStatus { load_balancer: LoadBalancer { ingress } };
    let web = Service { status, ..service("web", spec) };
    let headless = service("headless", ServiceSpec { cluster_ip: "None".to_owned(), ..ServiceSpec::default() });
    let services = Services::new(vec![web, headless], Vec::new());
    let meant = |text: &str| services.of(&text.parse::<Target>().expect("a target"));
    for text in ["svc/shop/web", "10.96.0.7", "fd00:96::7", "198.51.100.7", "203.0.113.7"] {
        assert_eq!(meant(text), Some(named("web")), "{text}");
    }
    assert_eq!(meant("svc/shop/headless"), Some(named("headless")));
    for text in ["10.96.0.8", "shop/web", "node/a"] {
        assert_eq!(meant(text), None, "{text}");
    }
    for text in ["svc/web", "svc/", "svc/a/b/c", "web"] {
        assert!(text.parse::<Target>().is_err(), "{text}");
    }
}
