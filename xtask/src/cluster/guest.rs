//! Requests to the guest (their form: `xtask/kubernetes/node/serve`).

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::processes::{PAUSE, interrupted};

/// Characters of the exit status that ends an answer.
const STATUS: usize = 4;

#[derive(Args)]
pub(crate) struct NodeExecArguments {
    #[arg(long)]
    port: u16,
    /// A node's number; `wire`: where all nodes' frames pass; `vm`: around the nodes
    target: String,
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct WireCaptureArguments {
    #[arg(long)]
    port: u16,
    seconds: u32,
    file: PathBuf,
}

/// Runs a command in a node; our input is its input, what it prints we print, its exit status is ours.
pub(crate) fn node_exec(arguments: &NodeExecArguments) -> Result<ExitCode> {
    let line = arguments.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let mut answer = ask(arguments.port, &arguments.target, &line)?;
    let mut input = answer.try_clone()?;
    // Not waited for: a command that reads nothing may end before its input does.
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut input);
        let _ = input.shutdown(Shutdown::Write);
    });
    let status = relay(&mut answer, &mut io::stdout().lock(), interrupted)?;
    Ok(ExitCode::from(status))
}

/// Captures every frame between the nodes, for so long.
pub(crate) fn wire_capture(arguments: &WireCaptureArguments) -> Result<ExitCode> {
    // 124 is how `timeout` says that the time was over: as it should be.
    let line = format!("timeout {} tcpdump -Z root -i wire0 -n -U -w - 2>/dev/null", arguments.seconds);
    let mut answer = ask(arguments.port, "wire", &line)?;
    let mut file =
        File::create(&arguments.file).with_context(|| format!("make {}", arguments.file.display()))?;
    let status = relay(&mut answer, &mut file, interrupted)?;
    ensure!(
        matches!(status, 0 | 124),
        "the capture ended with status {status}: is {} complete?",
        arguments.file.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Runs a shell line in the guest with this input; an error with what it said if it fails.
pub(super) fn run(port: u16, target: &str, line: &str, input: &[u8]) -> Result<String> {
    let mut answer = ask(port, target, line)?;
    answer.write_all(input)?;
    answer.shutdown(Shutdown::Write)?;
    answer.set_read_timeout(Some(PAUSE))?;
    let mut said = Vec::new();
    let status = relay(&mut answer, &mut said, interrupted)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    if status != 0 {
        bail!(
            "in {target} of the cluster `{}` failed (status {status}): {}",
            line.lines().next().unwrap_or_default(),
            said.trim()
        );
    }
    Ok(said)
}

/// What passes on the wire, told line by line as tcpdump tells it.
pub(super) struct Watch {
    port: u16,
    lines: BufReader<TcpStream>,
}

impl Watch {
    /// Comes back once the capture has begun. `filter` is tcpdump's; lines begin with the guest's time, in seconds since 1970.
    pub(super) fn start(port: u16, filter: &str) -> Result<Self> {
        let tcpdump = format!("exec tcpdump -Z root -l -n -tt -i wire0 {}", quoted(filter));
        let mut lines = BufReader::new(ask(port, "wire", &tcpdump)?);
        let mut line = String::new();
        while !line.starts_with("listening on") {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "tcpdump did not begin to capture");
        }
        Ok(Self { port, lines })
    }

    /// Everything since.
    pub(super) fn stop(mut self) -> Result<String> {
        run(self.port, "vm", "pkill -INT -x tcpdump", b"")?;
        let mut seen = Vec::new();
        let status = relay(&mut self.lines, &mut seen, interrupted)?;
        ensure!(status == 0, "tcpdump ended with status {status}");
        Ok(String::from_utf8_lossy(&seen).into_owned())
    }
}

fn ask(port: u16, target: &str, line: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("reach the cluster's VM on 127.0.0.1:{port} (is the cluster still up?)"))?;
    stream.write_all(format!("{target} {line}\0").as_bytes())?;
    Ok(stream)
}

/// Passes on what comes, but for the exit status at its end, which it gives. Where nothing has come for as long as the reader
/// waits, it is asked whether somebody wants an end.
fn relay(from: &mut impl Read, to: &mut impl Write, interrupted: impl Fn() -> bool) -> Result<u8> {
    let mut held = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ensure!(!interrupted(), "interrupted");
                continue;
            }
            read => read.context("read from the cluster's VM")?,
        };
        if count == 0 {
            break;
        }
        held.extend_from_slice(&buffer[..count]);
        let whole = held.len().saturating_sub(STATUS);
        to.write_all(&held[..whole])?;
        to.flush()?;
        held.drain(..whole);
    }
    let status = str::from_utf8(&held).ok().and_then(|text| text.trim().parse().ok());
    status.context("the connection to the cluster's VM was lost before the command's end")
}

/// A word as the shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The API server's way to kubelets, pods and services: HTTP CONNECT on a Unix socket, as its egress selector speaks it.
pub(super) fn serve_egress(socket: &Path, port: u16) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // One that fails is the API server's to report: it sees the connection end.
            thread::spawn(move || connect(client, port));
        }
    });
    Ok(())
}

fn connect(client: UnixStream, port: u16) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let to =
        first.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).context("CONNECT only")?;
    let mut inside = ask(port, "connect", to)?;
    let (mut up, mut client_out) = (inside.try_clone()?, client);
    client_out.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    thread::spawn(move || {
        let _ = io::copy(&mut reader, &mut up);
        let _ = up.shutdown(Shutdown::Write);
    });
    io::copy(&mut inside, &mut client_out)?;
    Ok(client_out.shutdown(Shutdown::Both)?)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn an_answer_ends_with_its_status() {
        let mut out = Vec::new();
        let status = relay(&mut &b"some bytes\n 124"[..], &mut out, || false).expect("whole");
        assert_eq!((status, out.as_slice()), (124, &b"some bytes\n"[..]));
        let cut = relay(&mut &b"some by"[..], &mut Vec::new(), || false).expect_err("cut off").to_string();
        assert!(cut.contains("lost"), "{cut}");
    }

    #[test]
    fn nobody_waits_for_an_answer_that_is_not_wanted() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(PAUSE)).expect("set");
        theirs.write_all(b"half an ans").expect("written");
        let asked = Cell::new(0);
        let unwanted = || asked.replace(asked.get() + 1) > 0;
        let error = relay(&mut ours, &mut Vec::new(), unwanted).expect_err("interrupted").to_string();
        assert_eq!((error.as_str(), asked.get()), ("interrupted", 2));
    }

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
