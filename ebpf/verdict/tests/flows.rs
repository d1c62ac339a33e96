//! Connections with a node's own address: which of a host's packets answer one that came out of the tunnel, and which are its own affair.

use kubeveil_abi::{FlowValue, Mode, Reason, Verdict};
use kubeveil_verdict::{
    deliver, steer,
    testing::{Place, Scene, Situation, Slice, Transport, World},
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The host's port, and that of the far end, behind whose address is a pod, or the far host itself.
const HERE: u16 = 6443;
const THERE: u16 = 40_000;

/// A node that requires, and what comes to its own address from the other.
struct Host {
    world: World,
    is_v6: bool,
}

impl Host {
    fn new(is_v6: bool) -> Self {
        Self { world: Scene::calm(Mode::Require).world(), is_v6 }
    }

    fn packet(&self, from: Place, to: Place, ports: (u16, u16), flags: u8) -> (Situation, Vec<u8>) {
        let situation = Situation::new(from, to, self.is_v6, Transport::Tcp(ports.0, ports.1, None));
        let mut bytes = situation.build.network();
        let header = if self.is_v6 { 40 } else { 20 };
        bytes[header + 13] = flags;
        (situation, bytes)
    }

    /// The far node's packet comes out of the tunnel.
    fn hears(&self, flags: u8) -> Reason {
        let (situation, bytes) = self.packet(Place::RemoteNode(0), Place::LocalNode, (THERE, HERE), flags);
        let meta = situation.by(Scene::TUNNELS[0]).meta();
        deliver(&meta, &Slice::new(&bytes), &self.world, &self.world.config).reason
    }

    /// The host sends one; does it go into the tunnel?
    fn answers(&self, flags: u8) -> bool {
        let (situation, bytes) = self.packet(Place::LocalNode, Place::RemoteNode(0), (HERE, THERE), flags);
        let decision = steer(&situation.meta(), &Slice::new(&bytes), &self.world, &self.world.config);
        match decision.reason {
            Reason::Tunnelled => true,
            Reason::Host => {
                assert_eq!(decision.verdict(), Verdict::Pass);
                false
            }
            other => panic!("{other:?}"),
        }
    }

    fn later(&mut self, seconds: u32) {
        self.world.now += seconds;
    }

    /// A pod begins a connection.
    fn is_called(&self) {
        assert_eq!(self.hears(SYN), Reason::Delivered);
        assert!(self.answers(SYN | ACK));
        assert_eq!(self.hears(ACK), Reason::Delivered);
    }
}

fn both(look: impl Fn(Host)) {
    [false, true].map(Host::new).into_iter().for_each(look);
}

const LONG: u32 = FlowValue::BRIEF_SECONDS + 1;

#[test]
fn what_is_established_is_remembered_though_nobody_speaks() {
    both(|mut host| {
        host.is_called();
        host.later(LONG * 10);
        assert!(host.answers(ACK));
        // Half of it has ended, and the other has all the time it wants.
        assert_eq!(host.hears(FIN | ACK), Reason::Delivered);
        host.later(LONG * 10);
        assert!(host.answers(ACK));
        host.later(LONG * 10);
        assert!(host.answers(FIN | ACK));
        // Now it is over, and what is left of it still on its way.
        assert_eq!(host.hears(ACK), Reason::Delivered);
        host.later(LONG - 1);
        assert!(host.answers(ACK));
        host.later(LONG);
        assert!(!host.answers(ACK));
    });
}

#[test]
fn what_was_never_established_or_was_reset_is_soon_forgotten() {
    both(|mut host| {
        assert_eq!(host.hears(SYN), Reason::Delivered);
        host.later(LONG - 1);
        assert!(host.answers(SYN | ACK), "the last time that it is answered");
        host.later(LONG);
        assert!(!host.answers(ACK));
        // The port is closed.
        assert_eq!(host.hears(SYN), Reason::Delivered);
        assert!(host.answers(RST | ACK));
        host.later(LONG);
        assert!(!host.answers(ACK));
        // Of one that goes on there was no reset, whoever sent it.
        for resets in [Host::hears as fn(&Host, u8) -> Reason, |host, flags| {
            assert!(host.answers(flags));
            Reason::Delivered
        }] {
            host.is_called();
            assert_eq!(resets(&host, RST), Reason::Delivered);
            assert_eq!(host.hears(ACK), Reason::Delivered);
            host.later(LONG * 10);
            assert!(host.answers(ACK));
        }
    });
}

/// The far node's pod had the port a moment ago, and then went with its node, without a word: the far host has it now, and speaks in plain.
#[test]
fn a_host_is_answered_though_a_pod_had_its_port() {
    both(|mut host| {
        host.is_called();
        host.later(LONG);
        // Its SYN came in plain, so nobody noted it.
        assert!(!host.answers(SYN | ACK));
        assert!(!host.answers(ACK), "nor what follows");
        // Until the next pod has the port.
        host.is_called();
        assert!(host.answers(ACK));
    });
}

/// This host calls the far one by ports that a pod's connection had.
#[test]
fn what_a_host_begins_is_no_answer() {
    both(|host| {
        host.is_called();
        assert!(!host.answers(SYN));
        assert!(!host.answers(ACK), "nor what follows");
        host.is_called();
        assert!(host.answers(ACK));
    });
}

/// A server that waits for the first bytes answers the SYN again, though the connection is established for its client (`TCP_DEFER_ACCEPT`).
#[test]
fn a_syn_is_answered_again() {
    both(|mut host| {
        host.is_called();
        host.later(60);
        assert!(host.answers(SYN | ACK));
        assert!(host.answers(ACK));
    });
}

/// On the client's node the flow begins with the answer, which bears both flags.
#[test]
fn the_other_end_is_remembered_too() {
    both(|mut host| {
        assert_eq!(host.hears(SYN | ACK), Reason::Delivered);
        host.later(LONG * 10);
        assert!(host.answers(ACK));
        assert!(!host.answers(SYN), "the pod's port is the host's now");
    });
}

/// Where answers are a pod's, and forwarded, nobody sees this end close: on the client's node, and where a node's address leads to a pod.
#[test]
fn what_is_forwarded_is_over_when_the_far_end_is() {
    both(|mut host| {
        for begins in [SYN | ACK, SYN] {
            for flags in [begins, ACK, FIN | ACK, ACK] {
                assert_eq!(host.hears(flags), Reason::Delivered);
            }
            host.later(LONG);
            let flows = host.world.flows.borrow();
            let flow = flows.iter().find(|(key, _)| key.ports != 0).expect("noted");
            assert!(flow.1.is_over(flow.0.protocol, &host.world.config, host.world.now));
        }
    });
}

/// What waits to be sent again, to somebody who does not answer, stays encrypted for as long as that is tried.
#[test]
fn what_is_sent_again_is_no_plain() {
    both(|mut host| {
        host.is_called();
        assert_eq!(host.hears(FIN | ACK), Reason::Delivered);
        assert!(host.answers(FIN | ACK));
        for _ in 0..8 {
            // `TCP_RTO_MAX`, and a timer that is late.
            host.later(124);
            assert!(host.answers(ACK));
        }
    });
}

/// Each is forgotten when it is over: a table is not filled by what was there in the last days.
#[test]
fn what_is_over_is_swept() {
    both(|mut host| {
        let is_swept = |host: &Host| {
            let flows = host.world.flows.borrow();
            let of = flows.iter().find(|(key, _)| key.ports != 0).expect("noted");
            of.1.is_over(of.0.protocol, &host.world.config, host.world.now)
        };
        host.is_called();
        host.hears(FIN | ACK);
        host.answers(FIN | ACK);
        assert!(!is_swept(&host));
        host.later(LONG);
        assert!(is_swept(&host));
        host.is_called();
        host.later(LONG);
        assert!(!is_swept(&host));
        host.answers(SYN);
        assert!(is_swept(&host));
    });
}
