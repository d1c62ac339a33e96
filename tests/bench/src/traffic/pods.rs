//! Inside of a lab: traffic from `pod-1a` to `pod-2a` whenever a line comes.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Measured, Order};

const CLIENT: &str = "pod-1a";
const SERVER: &str = "pod-2a";
const TO: &str = "10.244.2.10";
/// Where requests are answered.
const PORT: u16 = 7_000;
/// Bytes of a request, and of an answer.
const SIZE: usize = 64;
/// How long each is measured.
const SECONDS: u64 = 4;

/// Measures once for each line of standard input.
pub(crate) fn serve() -> Result<()> {
    let me = std::env::current_exe()?;
    let mut servers = [
        Server(within(SERVER, "iperf3").args(["-s"]).stdout(Stdio::null()).spawn().context("iperf3")?),
        Server(within(SERVER, &me.display().to_string()).arg("answer").spawn()?),
    ];
    // Who listens late refuses the first.
    thread::sleep(Duration::from_secs(2));
    for line in io::stdin().lines() {
        let rotation = (line? == Order::Rotate.word()).then(Rotation::begin).transpose()?;
        let [throughput, requests] = [throughput()?, requests(&me.display().to_string())?];
        let measured: Measured = [throughput, requests, rotation.map_or(Ok(0.0), Rotation::end)?];
        println!("{}", serde_json::to_string(&measured)?);
    }
    servers.iter_mut().try_for_each(|server| server.0.kill()).context("end the servers")
}

/// `kubeveil rotate`, as a person has it done.
struct Rotation {
    command: thread::JoinHandle<io::Result<(Output, Duration)>>,
}

impl Rotation {
    fn begin() -> Result<Self> {
        let folder = std::env::var("KUBEVEIL_LAB").context("KUBEVEIL_LAB")?;
        let source = format!("dir:{folder}/manifests");
        let command = thread::spawn(move || {
            let began = Instant::now();
            let output = Command::new("kubeveil").args(["rotate", "--source", &source]).output()?;
            Ok((output, began.elapsed()))
        });
        Ok(Self { command })
    }

    /// Seconds that it took, in all.
    fn end(self) -> Result<f64> {
        let done = self.command.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        let (told, took) = done.context("kubeveil rotate")?;
        ensure!(told.status.success(), "kubeveil rotate: {}", String::from_utf8_lossy(&told.stderr));
        Ok(took.as_secs_f64())
    }
}

/// Ends with us.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn within(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).stdin(Stdio::null());
    command
}

/// Bits a second that came.
fn throughput() -> Result<f64> {
    let told = within(CLIENT, "iperf3").args(["-c", TO, "-t", &SECONDS.to_string(), "-J"]).output()?;
    let json: serde_json::Value = serde_json::from_slice(&told.stdout).context("what iperf3 said")?;
    json["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("iperf3: {}", json["error"]))
}

fn requests(me: &str) -> Result<f64> {
    let told = within(CLIENT, me).arg("ask").output()?;
    ensure!(told.status.success(), "requests: {}", String::from_utf8_lossy(&told.stderr));
    Ok(serde_json::from_slice(&told.stdout)?)
}

/// Answers requests, one connection after the other.
pub(crate) fn answer() -> Result<()> {
    for stream in TcpListener::bind(("0.0.0.0", PORT))?.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        let mut request = [0; SIZE];
        while stream.read_exact(&mut request).is_ok() {
            stream.write_all(&request)?;
        }
    }
    Ok(())
}

/// Asks for a while, one request at a time; prints how many were answered a second.
pub(crate) fn ask() -> Result<()> {
    let mut stream = TcpStream::connect((TO, PORT))?;
    stream.set_nodelay(true)?;
    let mut request = [7; SIZE];
    let start = Instant::now();
    let mut answered = 0_u32;
    while start.elapsed() < Duration::from_secs(SECONDS) {
        stream.write_all(&request)?;
        stream.read_exact(&mut request)?;
        answered += 1;
    }
    println!("{}", f64::from(answered) / start.elapsed().as_secs_f64());
    Ok(())
}
