//! Whose packet is it: Services, host processes and clients from outside, with addresses translated as kube-proxy does.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::{Families, Family, Node};
use kubeveil_tests::lab::{WIRE, batch, nft};
use kubeveil_tests::namespace;
use kubeveil_tests::stage::{Stage, none_plain, pod};

use crate::Scenario;

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("services_and_host_processes_are_encrypted", services).nodes(2),
    Scenario::new("services_in_an_overlay_are_encrypted", services)
        .nodes(2)
        .overlay(kubeveil_tests::lab::Overlay::Vxlan),
];

/// Requests of each kind and family, each of which is answered.
const REQUESTS: u64 = 10;
/// Addresses of Services, of each family.
const REMOTE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const LOCAL: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const HAIRPIN: [&str; 2] = ["10.96.0.12", "fd00:96::12"];
const HOST_NETWORK: [&str; 2] = ["10.96.0.13", "fd00:96::13"];
/// A client outside of the cluster, and the port by which a node serves such.
const CLIENT: [&str; 2] = ["192.0.2.77", "2001:db8::77"];
const NODE_PORT: u16 = 30_080;
/// Where pods and host processes listen.
const PORT: u16 = 9_000;

/// Whether any of it crosses the wire between nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Crosses {
    Encrypted,
    Not,
}

/// Who asks whom, by which address.
struct Talk {
    what: &'static str,
    from: &'static str,
    to: fn(Family) -> (IpAddr, u16),
    crosses: Crosses,
}

fn of(addresses: [&str; 2], family: Family) -> IpAddr {
    let text = addresses[usize::from(family == Family::V6)];
    text.parse().unwrap_or_else(|_| unreachable!("{text} was written by this file"))
}

const TALKS: &[Talk] = &[
    Talk {
        what: "a pod to a Service with a pod of another node",
        from: "pod-1a",
        to: |family| (of(REMOTE, family), 80),
        crosses: Crosses::Encrypted,
    },
    Talk {
        what: "a host process to a Service with a pod of another node",
        from: "node-1",
        to: |family| (of(REMOTE, family), 80),
        crosses: Crosses::Encrypted,
    },
    Talk {
        what: "a host process to a pod of another node",
        from: "node-1",
        to: |family| (pod("2a").address(family), PORT),
        crosses: Crosses::Encrypted,
    },
    Talk {
        what: "a pod to a Service with a host process of another node",
        from: "pod-1a",
        to: |family| (of(HOST_NETWORK, family), 80),
        crosses: Crosses::Encrypted,
    },
    Talk {
        what: "a masqueraded pod to a host process of another node",
        from: "pod-1b",
        to: |family| (Node(2).address(family), PORT),
        crosses: Crosses::Encrypted,
    },
    Talk {
        what: "a client from outside to a NodePort with a pod of another node",
        from: WIRE,
        to: |family| (Node(1).address(family), NODE_PORT),
        crosses: Crosses::Encrypted,
    },
    Talk {
        what: "a pod to a Service with a pod of its own node",
        from: "pod-1a",
        to: |family| (of(LOCAL, family), 80),
        crosses: Crosses::Not,
    },
    Talk {
        what: "a pod to a Service that is the pod itself",
        from: "pod-1a",
        to: |family| (of(HAIRPIN, family), 80),
        crosses: Crosses::Not,
    },
];

fn services(stage: &mut Stage) -> Result<()> {
    translate(stage)?;
    admit_client()?;
    let mut servers = Vec::new();
    for name in ["2a", "1b", "1a"] {
        servers.push(Server::start(&pod(name).name(), |family| pod(name).address(family))?);
    }
    // At its own address, or it would answer from that of the device by which the answer leaves.
    servers.push(Server::start(&Node(2).name(), |family| Node(2).address(family))?);
    // With nothing in force everybody is answered, and what crosses the wire is seen there.
    for talk in TALKS {
        let seen = talks(stage, talk)?;
        let shows_pods = seen.plaintext > 0;
        // Behind the node's address no pod is to be seen.
        let hides = talk.what.starts_with("a masqueraded");
        ensure!(shows_pods == (talk.crosses == Crosses::Encrypted && !hides), "{}: {seen}", talk.what);
    }
    stage.start()?;
    for talk in TALKS {
        let seen = talks(stage, talk)?;
        none_plain(&seen).context(talk.what)?;
        // Handshakes and keepalives apart, which are few.
        let asked = 2 * REQUESTS * Families::Dual.all().len() as u64;
        match talk.crosses {
            Crosses::Encrypted => {
                ensure!(seen.ciphertext >= asked, "{}: too little of it: {seen}", talk.what)
            }
            Crosses::Not => {
                ensure!(seen.ciphertext < asked / 2, "{}: it crosses the wire: {seen}", talk.what)
            }
        }
    }
    drop(servers);
    Ok(())
}

/// Asks by both families; every request has to be answered. What crossed the wire meanwhile.
fn talks(stage: &mut Stage, talk: &Talk) -> Result<kubeveil_tests::analysis::Census> {
    stage.phase()?;
    for &family in Families::Dual.all() {
        let to = SocketAddr::from((talk.to)(family));
        ask(talk.from, to).with_context(|| format!("{}, by {family}", talk.what))?;
    }
    stage.phase()
}

fn ask(from: &str, to: SocketAddr) -> Result<()> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = namespace::within(from, || Ok(UdpSocket::bind(any)?))?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.connect(to)?;
    let mut answer = [0; 64];
    for number in 0..REQUESTS {
        // Not the marker of pods' payloads: a client's own way to the cluster is nobody's secret here.
        let request = format!("request {number}");
        socket.send(request.as_bytes()).context("ask")?;
        let length = socket.recv(&mut answer).with_context(|| format!("no answer to {request} from {to}"))?;
        ensure!(&answer[..length] == request.as_bytes(), "another answer than to {request}");
    }
    Ok(())
}

/// Says back what it is told, in both families.
struct Server {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(namespace: &str, address: impl Fn(Family) -> IpAddr) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for &family in Families::Dual.all() {
            let socket = namespace::within(namespace, || Ok(UdpSocket::bind((address(family), PORT))?))?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let ended = Arc::clone(&ended);
            threads.push(thread::spawn(move || echo(&socket, &ended)));
        }
        Ok(Self { ended, threads })
    }
}

fn echo(socket: &UdpSocket, ended: &AtomicBool) {
    let mut request = [0; 64];
    while !ended.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut request) {
            // Whoever waits for it says that it did not come.
            let _ = socket.send_to(&request[..length], from);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// As kube-proxy does it: destinations before routing, sources (where answers would else miss the node) after.
fn translate(stage: &Stage) -> Result<()> {
    let mut rules = String::from(
        "add table inet svc
        add chain inet svc pre { type nat hook prerouting priority dstnat; }
        add chain inet svc out { type nat hook output priority -100; }
        add chain inet svc post { type nat hook postrouting priority srcnat; }
        add rule inet svc post meta mark 0x4000 masquerade\n",
    );
    for &family in stage.lab.spec().families.all() {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let end = |address: IpAddr| SocketAddr::new(address, PORT);
        let to = |name: &str| end(pod(name).address(family));
        for (service, backend) in [
            (REMOTE, to("2a")),
            (LOCAL, to("1b")),
            (HAIRPIN, to("1a")),
            (HOST_NETWORK, end(Node(2).address(family))),
        ] {
            for chain in ["pre", "out"] {
                let service = of(service, family);
                rules += &format!(
                    "add rule inet svc {chain} {ip} daddr {service} udp dport 80 dnat {ip} to {backend}\n"
                );
            }
        }
        let (node, served) = (Node(1).address(family), to("2a"));
        rules += &format!(
            "add rule inet svc pre {ip} daddr {node} udp dport {NODE_PORT} meta mark set 0x4000 dnat {ip} to {served}\n"
        );
        let (own, masqueraded) = (pod("1a").address(family), pod("1b").address(family));
        // The other pod's answers would go past the node, and so past the translation, too.
        for local in [own, masqueraded] {
            rules += &format!("add rule inet svc post {ip} saddr {own} {ip} daddr {local} masquerade\n");
        }
        let nodes = kubeveil_tests::address::node_range(family);
        rules += &format!("add rule inet svc post {ip} saddr {masqueraded} {ip} daddr {nodes} masquerade\n");
    }
    nft("node-1", &rules).context("translate addresses")?;
    // A host process has to have a route to them before they are translated.
    let route = |family| {
        let range = if family == Family::V4 { "10.96.0.0/16" } else { "fd00:96::/64" };
        format!("route add {range} via {} dev eth0", Node(2).address(family))
    };
    batch(Some("node-1"), &Families::Dual.map(route))
}

/// On the cable between the nodes.
fn admit_client() -> Result<()> {
    for device in ["default", "all", "lo", "wire0"] {
        namespace::sysctl(WIRE, &format!("net/ipv6/conf/{device}/disable_ipv6"), "0")?;
    }
    let lines = [
        "link set dev lo up".to_owned(),
        format!("address add {}/24 dev wire0", CLIENT[0]),
        format!("address add {}/64 dev wire0 nodad", CLIENT[1]),
    ];
    batch(Some(WIRE), &lines)
}
