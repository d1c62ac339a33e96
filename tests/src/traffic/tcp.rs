//! One large transfer over TCP, checked byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Flow;
use crate::analysis::MARKER;
use crate::namespace;

/// How long nothing may move.
pub(super) const STALL: Duration = Duration::from_secs(15);
/// One write, and the size after which the content changes.
const BLOCK: usize = 64 << 10;

/// A transfer that was made.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// How much.
    pub bytes: u64,
    /// In which time.
    pub time: Duration,
}

impl Transfer {
    /// Megabits a second.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss)]
        let bits = self.bytes as f64 * 8.0;
        bits / 1e6 / self.time.as_secs_f64()
    }
}

/// Sends so many blocks of 64 KiB over a new connection. An error if it stalls, or if what arrives is
/// not exactly what was sent.
pub fn transfer(flow: Flow, blocks: u64) -> Result<Transfer> {
    let (listener, to) = listen(flow)?;
    let start = Instant::now();
    let receiver = std::thread::spawn(move || receive(&listener, blocks));
    let sent = send(flow, to, blocks);
    let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
    // The sender's error is the cause where both have one.
    sent.and(received).with_context(|| format!("a transfer, {flow}"))?;
    Ok(Transfer { bytes: blocks * BLOCK as u64, time: start.elapsed() })
}

/// Where a flow goes, for [`accept`] once.
pub(super) fn listen(flow: Flow) -> Result<(TcpListener, SocketAddr)> {
    let listener = namespace::within(&flow.to.name(), || {
        TcpListener::bind((flow.to.address(flow.family), 0))
            .with_context(|| format!("listen in {}", flow.to.name()))
    })?;
    listener.set_nonblocking(true)?;
    let to = listener.local_addr()?;
    Ok((listener, to))
}

/// From where it comes. Neither direction may stall.
pub(super) fn connect(flow: Flow, to: SocketAddr) -> Result<TcpStream> {
    let stream = namespace::within(&flow.from.name(), || {
        TcpStream::connect_timeout(&to, STALL).with_context(|| format!("connect to {to}"))
    })?;
    stream.set_write_timeout(Some(STALL))?;
    stream.set_read_timeout(Some(STALL))?;
    Ok(stream)
}

fn send(flow: Flow, to: SocketAddr, blocks: u64) -> Result<()> {
    let mut stream = connect(flow, to)?;
    let mut block = vec![0; BLOCK];
    for number in 0..blocks {
        fill(&mut block, number);
        stream.write_all(&block).with_context(|| format!("send block {number}"))?;
    }
    Ok(())
}

fn receive(listener: &TcpListener, blocks: u64) -> Result<()> {
    let mut stream = accept(listener)?;
    let mut block = vec![0; BLOCK];
    let mut expected = vec![0; BLOCK];
    for number in 0..blocks {
        stream.read_exact(&mut block).with_context(|| format!("receive block {number}"))?;
        fill(&mut expected, number);
        ensure!(block == expected, "block {number} arrived changed");
    }
    ensure!(stream.read(&mut block).context("wait for the end")? == 0, "more arrived than was sent");
    Ok(())
}

pub(super) fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let end = Instant::now() + STALL;
    while Instant::now() < end {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(STALL))?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(5)),
            Err(error) => return Err(error).context("accept"),
        }
    }
    bail!("nobody connected within {} s", STALL.as_secs())
}

/// The marker again and again, and the block's number every 4 KiB: a block that is lost, doubled or
/// shifted is not the one that was expected.
pub(super) fn fill(block: &mut [u8], number: u64) {
    for (index, chunk) in block.chunks_mut(4096).enumerate() {
        for piece in chunk.chunks_mut(MARKER.len()) {
            piece.copy_from_slice(&MARKER[..piece.len()]);
        }
        chunk[..8].copy_from_slice(&number.to_be_bytes());
        chunk[8..16].copy_from_slice(&(index as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_blocks_are_alike_and_each_frame_shows_the_marker() {
        let (mut one, mut other) = (vec![0; BLOCK], vec![0; BLOCK]);
        fill(&mut one, 1);
        fill(&mut other, 2);
        assert_ne!(one, other);
        assert_ne!(one[..4096], one[4096..8192]);
        assert!(
            one.windows(64)
                .all(|window| { window.windows(16).any(|bytes| bytes == MARKER) || window.contains(&0) })
        );
    }
}
