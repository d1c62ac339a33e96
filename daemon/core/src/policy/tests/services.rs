//! Who is behind a Service.

use kubeveil_api::{
    object::Metadata,
    service::{
        Endpoint, EndpointConditions, EndpointSlice, Ingress, LoadBalancer, SERVICE_NAME, Service,
        ServiceSpec, ServiceStatus,
    },
};

use super::explained::census;
use crate::policy::{
    census::{Census, PodId},
    explain::{Desk, Who},
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
        conditions: EndpointConditions { ready: *ready, ..EndpointConditions::default() },
    };
    EndpointSlice {
        metadata: metadata("x", &[(SERVICE_NAME, of)]),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn named(name: &str) -> ServiceId {
    ServiceId(PodId { namespace: "shop".to_owned(), name: name.to_owned() })
}

fn desk(census: &Census) -> Desk<'_> {
    Desk::at(census, Timestamp::UNIX_EPOCH)
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
    let node = Who::Node("a".to_owned());
    assert_eq!(
        services.chosen(&named("web"), &desk(&census)),
        Ok(vec![pod("shop/web"), pod("shop/web-2"), node])
    );
    let refused = |name: &str| services.chosen(&named(name), &desk(&census)).expect_err("nobody");
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
    assert_eq!(services.chosen(&named("web"), &desk(&census)), Ok(vec![pod("shop/web")]));
    assert!(services.chosen(&named("any"), &desk(&census)).is_err(), "without a selector nobody is selected");
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
    let ingress = |ip: &str, mode: &str| Ingress { ip: ip.to_owned(), ip_mode: mode.to_owned() };
    // As k3s' load balancer has it, and one that packets go out to.
    let ingress = vec![
        ingress("203.0.113.7", ""),
        ingress("192.0.2.1", "VIP"),
        ingress("203.0.113.8", "Proxy"),
        ingress("", ""),
    ];
    let status = ServiceStatus { load_balancer: LoadBalancer { ingress } };
    let web = Service { status, ..service("web", spec) };
    let headless =
        service("headless", ServiceSpec { cluster_ip: "None".to_owned(), ..ServiceSpec::default() });
    let tls =
        service("tls", ServiceSpec { external_ips: texts(&["198.51.100.7"]), ..ServiceSpec::default() });
    let services = Services::new(vec![web, tls, headless], Vec::new());
    let census = census(Mode::Prefer, &[], &[]);
    let meant = |text: &str| services.of(&text.parse::<Target>().expect("a target"), &desk(&census));
    for text in ["svc/shop/web", "10.96.0.7", "fd00:96::7", "203.0.113.7"] {
        assert_eq!(meant(text), [named("web")], "{text}");
    }
    assert_eq!(meant("198.51.100.7"), [named("tls"), named("web")], "by the port");
    assert_eq!(meant("svc/shop/headless"), [named("headless")]);
    for text in ["10.96.0.8", "shop/web", "node/a", "192.0.2.1", "203.0.113.8"] {
        assert_eq!(meant(text), [], "{text}");
    }
    for text in ["svc/", "svc/a/b/c", "svc//b", "web"] {
        assert!(text.parse::<Target>().is_err(), "{text}");
    }
    let pod = Target::One(Who::Pod("svc/web".parse().expect("a pod")));
    assert_eq!("svc/web".parse(), Ok(pod), "a namespace may be called so");
}

/// While the last of them ends; and whoever has an address that two are said to have is not made up.
#[test]
fn where_nobody_is_ready_who_still_serves_is_chosen() {
    let census = census(Mode::Prefer, &[], &[("shop/twin", "b", "10.244.2.8")]);
    let ending = |address: &str, serving| Endpoint {
        addresses: vec![address.to_owned()],
        conditions: EndpointConditions {
            ready: Some(false),
            serving: Some(serving),
            terminating: Some(true),
        },
    };
    let mut slice = slice("web", &[]);
    slice.endpoints = vec![ending("10.244.2.8", true), ending("10.244.1.8", false)];
    let all = |slice: &EndpointSlice| {
        let services = Services::new(vec![service("web", ServiceSpec::default())], vec![slice.clone()]);
        services.chosen(&named("web"), &desk(&census)).expect("somebody")
    };
    assert_eq!(all(&slice), [Who::Address("10.244.2.8".parse().expect("an address"))]);
    slice.endpoints.push(Endpoint { addresses: vec!["10.244.2.7".to_owned()], ..Endpoint::default() });
    assert_eq!(all(&slice), [pod("shop/web-2")]);
}
