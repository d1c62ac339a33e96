//! What crosses the wire, by tcpdump on the bridge `wire0` or on another device.
//!
//! A capture that saw nothing proves nothing. So each phase stands between two probes, packets of one
//! host to another that every mode lets pass: it begins when the first has been seen in the file, and
//! ends when the second has.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pcap_file::PcapError;
use pcap_file::pcap::PcapParser;
use rustix::process::Signal;

use crate::address::Node;
use crate::analysis::{Census, Watch};
use crate::lab::{BRIDGE, Lab, WIRE};
use crate::namespace;
use crate::process::{Handle, wait_until};

/// The kernel's buffer, in KiB: a busy, emulated machine may not read it for a second.
const BUFFER: u32 = 32 * 1024;
/// Bytes that are kept of a frame. A wire carries no larger ones; and of one that some offload left
/// large, all headers and a marker are in these. In immediate mode each frame takes a slot of this size,
/// so with tcpdump's own 256 KiB the buffer would hold eight.
const SNAPLEN: &str = "2048";
/// Where nobody listens; the probe counts once it is on the wire.
const PROBE_PORT: u16 = 9;
const PROBE: &str = "kubeveil-probe";
/// How long a probe may take to turn up in the file.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running capture.
pub struct Capture {
    tcpdump: Child,
    said: BufReader<ChildStderr>,
    file: PathBuf,
    /// Where in the file the next phase is read from.
    offset: u64,
    parser: PcapParser,
    probes: u32,
    ends: [SocketAddr; 2],
    watch: Watch,
}

/// Where frames are captured.
#[derive(Clone, Copy, Debug)]
pub struct Tap {
    /// The namespace of the device.
    pub namespace: &'static str,
    /// The device.
    pub device: &'static str,
    /// An address of the first node, and one that it reaches by this device, of no pod.
    pub ends: [IpAddr; 2],
}

impl Capture {
    /// Starts it on the wire and waits until it captures.
    pub fn start(lab: &Lab, file: &Path) -> Result<Self> {
        let end = |node: u8| lab.spec().families.first(|family| Node(node).address(family));
        Self::start_on(lab, Tap { namespace: WIRE, device: BRIDGE, ends: [end(1), end(2)] }, file)
    }

    /// The same on another device.
    pub fn start_on(lab: &Lab, tap: Tap, file: &Path) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        // -Z root: it would become a user whom a bare machine lacks, and end. -U: each packet to the
        // file at once.
        command
            .args(["-Z", "root", "-n", "-i", tap.device, "--immediate-mode", "-U", "-s", SNAPLEN, "-B"])
            .arg(BUFFER.to_string())
            .arg("-w")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut tcpdump = namespace::spawn(tap.namespace, &mut command)?;
        let said = tcpdump.stderr.take().context("tcpdump's standard error")?;
        let mut said = BufReader::new(said);
        let heard = listening(&mut said);
        if heard.is_err() {
            let _ = tcpdump.kill();
            let _ = tcpdump.wait();
        }
        heard?;
        let header = wait_for_header(file)?;
        let mut capture = Self {
            tcpdump,
            said,
            file: file.to_owned(),
            offset: header.len() as u64,
            parser: PcapParser::new(&header).map_err(not_pcap)?.1,
            probes: 0,
            ends: tap.ends.map(|end| SocketAddr::new(end, PROBE_PORT)),
            watch: Watch::pods(lab.spec().nodes, lab.spec().families),
        };
        capture.phase().context("see the first probe")?;
        Ok(capture)
    }

    /// Ends a phase and begins the next: what crossed the wire since the last call.
    pub fn phase(&mut self) -> Result<Census> {
        self.frames(&mut |_| {})
    }

    /// As [`Self::phase`], and shows each frame.
    pub fn frames(&mut self, see: &mut dyn FnMut(&[u8])) -> Result<Census> {
        let token = self.probe()?;
        let mut census = Census::default();
        let mut unread = Unread::default();
        let seen = wait_until(PATIENCE, Duration::from_millis(20), || {
            self.read_more(&mut unread.bytes)?;
            while let Some(frame) = unread.next(&self.parser)? {
                let probe = probe_of(frame);
                if probe == Some(token.as_bytes()) {
                    return Ok(true);
                }
                if probe.is_none() {
                    census.add(frame, &self.watch);
                    see(frame);
                }
            }
            Ok(false)
        })?;
        ensure!(seen, "the capture does not see the probe {token}: it captures nothing");
        // What came behind the probe belongs to the next phase.
        self.offset -= unread.left();
        Ok(census)
    }

    /// Sends a probe from the first node to the second; what it carries.
    fn probe(&mut self) -> Result<String> {
        self.probes += 1;
        let token = format!("{PROBE} {} {};", std::process::id(), self.probes);
        let [from, to] = self.ends;
        let socket = namespace::within(&Node(1).name(), || {
            UdpSocket::bind((from.ip(), 0)).context("make the probe's socket")
        })?;
        socket.send_to(token.as_bytes(), to).context("send a probe")?;
        Ok(token)
    }

    fn read_more(&mut self, pending: &mut Vec<u8>) -> Result<()> {
        let mut file = File::open(&self.file).with_context(|| format!("open {}", self.file.display()))?;
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_end(pending).context("read the capture")?;
        self.offset += read as u64;
        Ok(())
    }

    /// How many frames the kernel could not give to the capture so far. If any, what it saw can't
    /// acquit anybody.
    pub fn missed(&mut self) -> Result<u64> {
        let process = Handle::open(self.tcpdump.id().cast_signed())?.context("tcpdump is gone")?;
        process.signal(Signal::USR1)?;
        let mut line = String::new();
        while self.said.read_line(&mut line).context("read what tcpdump says")? != 0 {
            if let Some(missed) = dropped(&line) {
                return Ok(missed);
            }
        }
        bail!("tcpdump ended, and says: {}", line.trim())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It is a child that nobody else waits for, so neither can fail, save after it ended.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
        let _ = fs::remove_file(&self.file);
    }
}

/// What was read of the file and not yet taken apart.
#[derive(Default)]
struct Unread {
    bytes: Vec<u8>,
    taken: usize,
}

impl Unread {
    /// The next frame, if all of it is there.
    fn next(&mut self, parser: &PcapParser) -> Result<Option<&[u8]>> {
        let unread = &self.bytes[self.taken..];
        match parser.next_packet(unread) {
            Ok((rest, packet)) => {
                let (before, length) = (self.taken, packet.data.len());
                self.taken += unread.len() - rest.len();
                // The frame is the record's end, behind a header of a fixed size.
                let start = self.taken - length;
                debug_assert!(start > before);
                Ok(Some(&self.bytes[start..self.taken]))
            }
            Err(PcapError::IncompleteBuffer) => Ok(None),
            Err(error) => Err(not_pcap(error)),
        }
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.taken) as u64
    }
}

/// What the probe carries, if the frame is one. Only a short way is searched: probes are short.
fn probe_of(frame: &[u8]) -> Option<&[u8]> {
    const LONGEST: usize = 128;
    let frame = frame.get(..LONGEST.min(frame.len()))?;
    let start = frame.windows(PROBE.len()).position(|window| window == PROBE.as_bytes())?;
    let end = start + frame[start..].iter().position(|&byte| byte == b';')? + 1;
    Some(&frame[start..end])
}

/// tcpdump says it after the socket is bound and before it reads.
fn listening(said: &mut impl BufRead) -> Result<()> {
    let mut text = String::new();
    while said.read_line(&mut text).context("read what tcpdump says")? != 0 {
        if text.contains("listening on") {
            return Ok(());
        }
    }
    bail!("tcpdump does not capture: {}", text.trim())
}

fn wait_for_header(file: &Path) -> Result<[u8; 24]> {
    let mut header = [0; 24];
    let there = wait_until(PATIENCE, Duration::from_millis(10), || {
        Ok(File::open(file).and_then(|mut file| file.read_exact(&mut header)).is_ok())
    })?;
    ensure!(there, "tcpdump writes nothing to {}", file.display());
    Ok(header)
}

/// Of `…, 12 packets dropped by kernel`, 12.
fn dropped(line: &str) -> Option<u64> {
    let (head, _) = line.split_once(" dropped by kernel")?;
    head.split_whitespace().rev().nth(1)?.parse().ok()
}

fn not_pcap(error: PcapError) -> anyhow::Error {
    anyhow::anyhow!("the capture is not readable: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_known_and_nothing_else_is() {
        let probe = [&[0; 42][..], b"kubeveil-probe 7 3;", &[0; 9]].concat();
        assert_eq!(probe_of(&probe), Some(&b"kubeveil-probe 7 3;"[..]));
        assert_eq!(probe_of(&[&[0; 42][..], b"kubeveil-payload"].concat()), None);
        assert_eq!(probe_of(b"kubeveil-probe without an end"), None);
    }

    #[test]
    fn what_tcpdump_says() {
        assert_eq!(dropped("0 packets dropped by kernel"), Some(0));
        assert_eq!(dropped("9 packets captured, 1 packet dropped by kernel"), Some(1));
        assert_eq!(dropped("12 packets captured"), None);
        assert!(listening(&mut &b"tcpdump: listening on wire0, link-type"[..]).is_ok());
        assert!(listening(&mut &b"tcpdump: wire0: No such device"[..]).is_err());
    }
}
