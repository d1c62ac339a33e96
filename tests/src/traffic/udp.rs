//! UDP with numbered packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::{Flow, Ledger, Pace, Tally};
use crate::address::Family;
use crate::analysis::MARKER;
use crate::namespace;

/// What is in a packet: the marker, the run, the number, then the marker again and again.
const HEAD: usize = MARKER.len() + 16;
/// Room for more than ten seconds at 1,000 packets a second, bookkeeping of the kernel's included.
const RECEIVE_BUFFER: usize = 16 << 20;
/// How long a receiver waits after the last packet.
const QUIET: Duration = Duration::from_millis(700);
/// How often a waiting receiver looks up.
const GLANCE: Duration = Duration::from_millis(50);

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// In turn, one packet each.
    pub flows: Vec<Flow>,
    /// Packets a second, of all flows together.
    pub rate: u32,
    /// Bytes of a packet's payload.
    pub size: usize,
    /// Who sends in the pods' stead: a namespace that has their addresses too.
    pub stranger: Option<&'static str>,
    /// Whose address a stranger sends from; the sending pod's own if nobody's.
    pub guise: Option<fn(Family) -> IpAddr>,
    /// Sent to the nodes of the pods, not to the pods.
    pub for_nodes: bool,
    /// The pods that send are yet to be made.
    pub unborn: bool,
}

impl Load {
    /// So many packets a second over these flows, of a middling size.
    pub fn new(flows: Vec<Flow>, rate: u32) -> Self {
        Self { flows, rate, size: 200, stranger: None, guise: None, for_nodes: false, unborn: false }
    }

    /// Sent from another namespace than the pods'.
    pub fn by(mut self, namespace: &'static str) -> Self {
        self.stranger = Some(namespace);
        self
    }

    /// Sent from this address, which the namespace that sends has to have.
    pub fn disguised(mut self, address: fn(Family) -> IpAddr) -> Self {
        self.guise = Some(address);
        self
    }

    /// Sent to the node of each receiving pod, at the node's own address.
    pub fn for_nodes(mut self) -> Self {
        self.for_nodes = true;
        self
    }

    /// Sent by pods that are made while it runs: it tries again and again, so that the first packet is the first that the pod can send.
    pub fn unborn(mut self) -> Self {
        self.unborn = true;
        self
    }

    /// The namespace and the address that a flow's packets are sent to.
    fn receiver(&self, flow: Flow) -> (String, IpAddr) {
        match self.for_nodes {
            false => (flow.to.name(), flow.to.address(flow.family)),
            true => (flow.to.node.name(), flow.to.node.address(flow.family)),
        }
    }

    /// Sends so many packets, and waits for them.
    pub fn run(self, packets: u64) -> Result<Tally> {
        let running = self.start()?;
        while running.sent() < packets {
            ensure!(!running.is_over(), "the sender ended early");
            sleep(Duration::from_millis(5));
        }
        running.finish()
    }

    /// Begins to send, until [`Running::finish`].
    pub fn start(self) -> Result<Running> {
        ensure!(!self.flows.is_empty() && self.size >= HEAD, "a load without flows, or too small a packet");
        let run = rand()?;
        let expected = Arc::new(Expected::default());
        let mut ends = Vec::new();
        let mut receivers = Vec::new();
        let to: Vec<_> = self.flows.iter().map(|&flow| self.receiver(flow)).collect();
        for (&flow, (namespace, address)) in self.flows.iter().zip(&to) {
            let receiver = Receiver::open(namespace, *address)?;
            let mut end = Sender {
                namespace: self.stranger.map_or_else(|| flow.from.name(), str::to_owned),
                source: self.guise.map_or_else(|| flow.from.address(flow.family), |guise| guise(flow.family)),
                to: receiver.address,
                socket: None,
            };
            if !self.unborn {
                end.open()?;
            }
            ends.push(end);
            let expected = Arc::clone(&expected);
            receivers.push(std::thread::spawn(move || receiver.receive(run, &expected)));
        }
        let before = own_loss(&to)?;
        let halt = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let sender = {
            let (load, halt, sent) = (self.clone(), Arc::clone(&halt), Arc::clone(&sent));
            std::thread::spawn(move || load.send(ends, run, &halt, &sent))
        };
        Ok(Running { load: run, flows: self.flows, to, sender, receivers, halt, expected, sent, before })
    }

    /// Sends until told to halt.
    fn send(&self, mut ends: Vec<Sender>, run: u64, halt: &AtomicBool, sent: &AtomicU64) -> Sent {
        let mut packet: Vec<u8> = MARKER.iter().copied().cycle().take(self.size).collect();
        packet[MARKER.len()..MARKER.len() + 8].copy_from_slice(&run.to_be_bytes());
        let start = Instant::now();
        let mut pace = Pace::new(self.rate, start);
        let (mut taken, mut refused, mut round) = (0, 0, 0_u64);
        'rounds: loop {
            for end in &mut ends {
                if halt.load(Ordering::Relaxed) {
                    break 'rounds;
                }
                packet[MARKER.len() + 8..HEAD].copy_from_slice(&round.to_be_bytes());
                let to = end.to;
                match end.open().map(|socket| socket.send_to(&packet, to)) {
                    Ok(Ok(_)) => taken += 1,
                    Ok(Err(_)) => refused += 1,
                    // There is nobody yet who could send it.
                    Err(_) => {}
                }
                sent.store(taken + refused, Ordering::Relaxed);
                sleep(pace.wait(Instant::now()));
            }
            round += 1;
        }
        Sent { taken, refused, time: start.elapsed() }
    }
}

/// How many packets all receivers together may await, once it is known.
#[derive(Default)]
struct Expected {
    sent: OnceLock<u64>,
    arrived: AtomicU64,
}

impl Expected {
    fn say(&self, sent: u64) {
        let _ = self.sent.set(sent);
    }

    fn arrived(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing more will come: all is there, or nothing came for a while.
    fn is_over(&self, last: Instant) -> bool {
        self.sent
            .get()
            .is_some_and(|&sent| self.arrived.load(Ordering::Relaxed) >= sent || last.elapsed() >= QUIET)
    }
}

struct Sent {
    taken: u64,
    refused: u64,
    time: Duration,
}

/// A load that is being sent.
pub struct Running {
    load: u64,
    flows: Vec<Flow>,
    /// To whom, each.
    to: Vec<(String, IpAddr)>,
    sender: JoinHandle<Sent>,
    receivers: Vec<JoinHandle<Result<Ledger>>>,
    halt: Arc<AtomicBool>,
    expected: Arc<Expected>,
    sent: Arc<AtomicU64>,
    before: u64,
}

impl Running {
    /// How many packets were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many have arrived so far.
    pub fn arrived(&self) -> u64 {
        self.expected.arrived.load(Ordering::Relaxed)
    }

    /// Which load it is, as its packets say.
    pub fn load(&self) -> u64 {
        self.load
    }

    fn is_over(&self) -> bool {
        self.sender.is_finished()
    }

    /// Waits until so many more packets were sent.
    pub fn wait_for(&self, more: u64) {
        let until = self.sent() + more;
        while self.sent() < until && !self.is_over() {
            sleep(Duration::from_millis(2));
        }
    }

    /// Sends no more, waits for what is under way, and counts.
    pub fn finish(self) -> Result<Tally> {
        self.halt.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        self.expected.say(sent.taken);
        let mut tally = Tally {
            load: self.load,
            sent: sent.taken,
            refused: sent.refused,
            #[expect(clippy::cast_precision_loss)]
            rate: sent.taken as f64 / sent.time.as_secs_f64().max(1e-9),
            ..Tally::default()
        };
        for (receiver, flow) in self.receivers.into_iter().zip(&self.flows) {
            let ledger = receiver.join().map_err(|_| anyhow!("a receiver panicked"))??;
            tally.received += ledger.received;
            tally.by_family[usize::from(flow.family == Family::V6)] += ledger.received;
            tally.stretches += ledger.stretches();
            tally.duplicated += ledger.duplicated;
            tally.reordered += ledger.reordered;
        }
        tally.own_loss = own_loss(&self.to)? - self.before;
        Ok(tally)
    }
}

struct Sender {
    namespace: String,
    source: IpAddr,
    to: SocketAddr,
    socket: Option<UdpSocket>,
}

impl Sender {
    /// Its socket, which is opened as soon as the namespace has the address. Not connected: an ICMP error on one packet must not stop the
    /// next.
    fn open(&mut self) -> Result<&UdpSocket> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => socket(&self.namespace, self.source)?,
        };
        Ok(self.socket.insert(socket))
    }
}

struct Receiver {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Receiver {
    fn open(namespace: &str, address: IpAddr) -> Result<Self> {
        let socket = socket(namespace, address)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
            .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))
            .context("enlarge a receive buffer")?;
        socket.set_read_timeout(Some(GLANCE))?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// Receives until nothing more is expected.
    fn receive(&self, run: u64, expected: &Expected) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        let mut packet = [0; 65536];
        let mut last = Instant::now();
        loop {
            match self.socket.recv(&mut packet) {
                Ok(length) => {
                    if let Some(number) = number(&packet[..length], run) {
                        ledger.enter(number);
                        expected.arrived();
                        last = Instant::now();
                    }
                }
                Err(error) if is_time_out(&error) => {
                    if expected.is_over(last) {
                        return Ok(ledger);
                    }
                }
                Err(error) => return Err(error).context("receive"),
            }
        }
    }
}

fn is_time_out(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// The number of a packet of this run.
fn number(packet: &[u8], run: u64) -> Option<u64> {
    let rest = packet.strip_prefix(MARKER)?;
    let (found, rest) = rest.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    (u64::from_be_bytes(*found) == run).then(|| u64::from_be_bytes(*number))
}

fn socket(namespace: &str, address: IpAddr) -> Result<UdpSocket> {
    namespace::within(namespace, || {
        UdpSocket::bind((address, 0)).with_context(|| format!("bind {address} in {namespace}"))
    })
}

/// What the receivers' namespaces and the machine's network backlog have dropped for lack of room. The
/// lab's own packets are by far the most of this machine, and one too many only asks for another try.
fn own_loss(to: &[(String, IpAddr)]) -> Result<u64> {
    let Some((first, _)) = to.first() else { return Ok(0) };
    let mut lost = backlog(&namespace::proc_net(first, "softnet_stat")?);
    let receivers: BTreeSet<_> = to.iter().map(|(name, address)| (name, Family::of(*address))).collect();
    for (name, family) in receivers {
        lost += match family {
            Family::V4 => snmp(&namespace::proc_net(name, "snmp")?),
            Family::V6 => snmp6(&namespace::proc_net(name, "snmp6")?),
        };
    }
    Ok(lost)
}

/// `Udp:` twice: names, then values.
fn snmp(text: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .filter(|(name, _)| matches!(*name, "RcvbufErrors" | "MemErrors"))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

fn snmp6(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .filter(|(name, _)| matches!(*name, "Udp6RcvbufErrors" | "Udp6MemErrors"))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

/// The second column, in hexadecimal, of each CPU.
fn backlog(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter_map(|dropped| u64::from_str_radix(dropped, 16).ok())
        .sum()
}

/// So that a straggler of an earlier run is not taken for one of this.
fn rand() -> Result<u64> {
    let mut bytes = [0; 8];
    let mut file = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    std::io::Read::read_exact(&mut file, &mut bytes).context("read /dev/urandom")?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_loss_is_read() {
        let text = "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\n\
                    Udp: 9 0 5 9 3 0\nUdpLite: InDatagrams RcvbufErrors\nUdpLite: 0 7\n";
        assert_eq!(snmp(text), 3);
        assert_eq!(snmp6("Ip6InReceives 5\nUdp6RcvbufErrors                \t4\nUdp6InErrors 9\n"), 4);
        assert_eq!(backlog("0000aaaa 00000010 00000000\n00000001 00000002 00000000\n"), 18);
    }

    #[test]
    fn only_packets_of_this_run_have_a_number() {
        let packet = [&MARKER[..], &7_u64.to_be_bytes(), &42_u64.to_be_bytes(), MARKER].concat();
        assert_eq!(number(&packet, 7), Some(42));
        assert_eq!(number(&packet, 8), None);
        assert_eq!(number(&packet[1..], 7), None);
        assert_eq!(number(MARKER, 7), None);
    }
}
