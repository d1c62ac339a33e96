//! A pod: a namespace of its own, which a thread sends from.

use std::{
    net::{IpAddr, UdpSocket},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use kubeveil_tests_bpf::cell::{self, run};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{setsockopt, sockopt::UdpGsoSegment},
};

/// What one call sends: `segments` datagrams of `payload` bytes, in one large packet if they are several.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) payload: u16,
    pub(super) segments: u16,
}

struct Order {
    to: IpAddr,
    load: Load,
    time: Duration,
    done: mpsc::Sender<Result<u64>>,
}

/// The thread. It ends, and the namespace with it, when this is dropped.
pub(super) struct Pod(mpsc::Sender<Order>);

impl Pod {
    /// Lays the pod beside the caller's namespace, which is its node.
    pub(super) fn start() -> Result<Self> {
        let (orders, inbox) = mpsc::channel::<Order>();
        let (tell, told) = mpsc::channel();
        let (begin, laid) = mpsc::channel::<()>();
        thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).context("make the pod's namespace");
            if tell.send(made.map(|()| rustix::thread::gettid().as_raw_nonzero())).is_err()
                || laid.recv().is_err()
            {
                return;
            }
            let ready = inside();
            for Order { to, load, time, done } in inbox {
                let sent = match &ready {
                    Ok(()) => send(to, load, time),
                    Err(error) => Err(anyhow!("lay the pod: {error:#}")),
                };
                drop(done.send(sent));
            }
        });
        let id = told.recv()??.to_string();
        run("ip", &["link", "add", "cni0", "type", "veth", "peer", "name", "pod0"])?;
        run("ip", &["link", "set", "pod0", "netns", &id])?;
        run("ip", &["addr", "add", "10.244.1.1/24", "dev", "cni0"])?;
        run("ip", &["addr", "add", "fd00:244:1::1/64", "dev", "cni0", "nodad"])?;
        run("ip", &["link", "set", "cni0", "up"])?;
        begin.send(()).context("the pod's thread ended")?;
        Ok(Self(orders))
    }

    /// Sends for a while; how many packets.
    pub(super) fn send(&self, to: &str, load: Load, time: Duration) -> Result<u64> {
        let (done, told) = mpsc::channel();
        let to = to.parse()?;
        self.0.send(Order { to, load, time, done }).ok().context("the pod's thread ended")?;
        told.recv()?
    }
}

/// The pod's own side.
fn inside() -> Result<()> {
    run("ip", &["addr", "add", &format!("{}/24", cell::LOCAL[0]), "dev", "pod0"])?;
    run("ip", &["addr", "add", &format!("{}/64", cell::LOCAL[1]), "dev", "pod0", "nodad"])?;
    run("ip", &["link", "set", "pod0", "up"])?;
    run("ip", &["-4", "route", "add", "default", "via", "10.244.1.1"])?;
    run("ip", &["-6", "route", "add", "default", "via", "fd00:244:1::1"])
}

fn send(to: IpAddr, load: Load, time: Duration) -> Result<u64> {
    /// Packets between two looks at the clock.
    const BATCH: u32 = 64;
    let socket = UdpSocket::bind((if to.is_ipv4() { cell::LOCAL[0] } else { cell::LOCAL[1] }, 0))?;
    socket.connect((to, 9))?;
    if load.segments > 1 {
        setsockopt(&socket, UdpGsoSegment, &i32::from(load.payload))?;
    }
    let data = vec![0; usize::from(load.payload) * usize::from(load.segments)];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        for _ in 0..BATCH {
            socket.send(&data).with_context(|| format!("send to {to}"))?;
        }
        sent += u64::from(BATCH);
    }
    Ok(sent)
}
