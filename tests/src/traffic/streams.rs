//! Connections that last, at a pace, and what TCP made of them.

use std::io::{Read, Write};
use std::mem;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};

use super::tcp::{accept, connect, fill, listen};
use super::{Flow, Pace};
use crate::lab::program_path;
use crate::{namespace, process};

/// One write: a few packets.
const BLOCK: usize = 4096;
/// Bytes of a SHA-256.
const HASH: usize = 32;

/// Connections by which something is sent.
pub struct Streams {
    halt: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Result<Streamed>>>,
    receivers: Vec<JoinHandle<Result<TcpStream>>>,
}

/// A connection that was ended in order, with the same hash at both ends.
#[derive(Clone, Copy, Debug)]
pub struct Streamed {
    /// Whose.
    pub flow: Flow,
    /// What was sent.
    pub bytes: u64,
    /// By what its sender says (`TCP_INFO`).
    pub counts: Counts,
}

/// Of a connection, what its end counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Segments that were sent again: `tcpi_total_retrans`.
    pub retransmitted: u64,
    /// How often it saw that order was lost: `tcpi_reord_seen`.
    pub reordered: u64,
}

impl Streams {
    /// Opens a connection for each flow, and writes so many blocks of 4 KiB a second to each until [`Streams::finish`].
    pub fn start(flows: &[Flow], rate: u32) -> Result<Self> {
        let halt = Arc::new(AtomicBool::new(false));
        let mut streams = Self { halt, senders: Vec::new(), receivers: Vec::new() };
        for &flow in flows {
            let (listener, to) = listen(flow)?;
            let halt = Arc::clone(&streams.halt);
            streams.receivers.push(std::thread::spawn(move || receive(&listener)));
            streams.senders.push(std::thread::spawn(move || send(flow, to, rate, &halt)));
        }
        Ok(streams)
    }

    /// Ends all of them. An error if one was reset, stalled, or did not arrive as it was sent.
    pub fn finish(mut self) -> Result<Vec<Streamed>> {
        self.halt.store(true, Ordering::Relaxed);
        let (senders, receivers) = (mem::take(&mut self.senders), mem::take(&mut self.receivers));
        let mut all = Vec::new();
        for (sender, receiver) in senders.into_iter().zip(receivers) {
            let sent = sender.join().map_err(|_| anyhow!("a sender panicked"))?;
            let received = receiver.join().map_err(|_| anyhow!("a receiver panicked"))?;
            // The sender's error is the cause where both have one.
            let streamed = sent?;
            received.with_context(|| format!("a connection, {}", streamed.flow))?;
            all.push(streamed);
        }
        Ok(all)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.halt.store(true, Ordering::Relaxed);
    }
}

fn send(flow: Flow, to: SocketAddr, rate: u32, halt: &AtomicBool) -> Result<Streamed> {
    let outcome = || -> Result<Streamed> {
        let mut stream = connect(flow, to)?;
        let mut block = [0; BLOCK];
        let (mut hash, mut number) = (Sha256::new(), 0_u64);
        let mut pace = Pace::new(rate, Instant::now());
        while !halt.load(Ordering::Relaxed) {
            fill(&mut block, number);
            stream.write_all(&block).with_context(|| format!("send block {number}"))?;
            hash.update(block);
            number += 1;
            sleep(pace.wait(Instant::now()));
        }
        stream.shutdown(Shutdown::Write)?;
        let mut theirs = [0; HASH];
        stream.read_exact(&mut theirs).context("be told the hash of what arrived")?;
        ensure!(theirs[..] == hash.finalize()[..], "what arrived is not what was sent: another hash");
        // As long as the connection stands.
        let counts = counts(flow, &stream)?;
        Ok(Streamed { flow, bytes: number * BLOCK as u64, counts })
    };
    outcome().with_context(|| format!("a connection, {flow}"))
}

/// Tells the sender the hash of what came, once it has come to its end. The connection stands as long as what this returns.
fn receive(listener: &TcpListener) -> Result<TcpStream> {
    let mut stream = accept(listener)?;
    let (mut hash, mut bytes) = (Sha256::new(), [0; BLOCK]);
    loop {
        match stream.read(&mut bytes).context("receive")? {
            0 => break,
            length => hash.update(&bytes[..length]),
        }
    }
    stream.write_all(&hash.finalize()).context("tell the hash")?;
    Ok(stream)
}

/// `TCP_INFO` of a connection, as `ss` shows it.
fn counts(flow: Flow, stream: &TcpStream) -> Result<Counts> {
    let (own, far) = (stream.local_addr()?, stream.peer_addr()?);
    let mut command = Command::new("ss");
    command.env("PATH", program_path()).args(["-tinHO"]);
    command.args(["src", &written(own), "dst", &written(far)]);
    let said = namespace::within(&flow.from.name(), || process::run(&mut command, ""))?;
    // Without `TCP_INFO` (a kernel without tcp_diag) it shows less, and no error.
    ensure!(said.lines().count() == 1 && said.contains(" rto:"), "ss does not show {own}: {said:?}");
    Ok(read_counts(&said))
}

fn written(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) => format!("{ip}:{}", address.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", address.port()),
    }
}

/// What is not shown is zero. (`retrans:` has two numbers: on the way now, and in all.)
fn read_counts(line: &str) -> Counts {
    let field = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
        value.rsplit('/').next()?.parse().ok()
    };
    Counts { retransmitted: field("retrans:").unwrap_or(0), reordered: field("reord_seen:").unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ss_shows_is_read() {
        let quiet = "ESTAB 0 0 10.244.1.10:4 10.244.2.10:5 cubic wscale:7,7 rto:204 rtt:0.1/0.05 bytes_retrans:0 reordering:3";
        assert_eq!(read_counts(quiet), Counts::default());
        let busy = "ESTAB 0 0 [fd00::1]:4 [fd00::2]:5 cubic rto:204 bytes_retrans:2800 retrans:0/12 reordering:5 reord_seen:3";
        assert_eq!(read_counts(busy), Counts { retransmitted: 12, reordered: 3 });
    }

    #[test]
    fn addresses_are_written_as_ss_reads_them() {
        let read = |text: &str| written(text.parse().expect("an address"));
        assert_eq!(
            (read("10.0.0.1:80"), read("[fd00::1]:80")),
            ("10.0.0.1:80".into(), "[fd00::1]:80".into())
        );
    }
}
