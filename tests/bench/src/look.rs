//! What the daemon looks at twice a second, on this machine's own kernel: attachments and maps, with the entries of a
//! large cluster.

use std::time::Instant;

use anyhow::{Result, ensure};
use ipnet::IpNet;
use kubeveil_abi::{Mode, PeerValue, PrefixKind};
use kubeveil_core::{action::Action, observed::Prefix};
use kubeveil_linux::Kernel as _;
use kubeveil_tests_bpf::cell;

use crate::{
    row::{Row, Series},
    say,
};

const NODES: u16 = 5_000;
/// Looks a round.
const LOOKS: u32 = 5;

/// Milliseconds that one look takes.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    cell::within(move |cell| {
        cell.load(Mode::Require)?;
        cell.guard()?;
        say("look: filling the maps");
        for node in 0..NODES {
            let peer = u32::from(node) + 1;
            for (net, kind) in prefixes(node)? {
                cell.run(Action::PutPrefix(net, Prefix::new(kind, peer)))?;
            }
            cell.run(Action::SetPeer(peer, PeerValue::tunnel(0, 0)))?;
        }
        let last = cell.observe()?;
        let mut series = Series::new();
        for round in 1..=rounds {
            say(format!("look: round {round} of {rounds}"));
            let start = Instant::now();
            for _ in 0..LOOKS {
                ensure!(cell.kernel.still_holds(&last)?, "somebody changes the maps that are looked at");
            }
            series.push(start.elapsed().as_secs_f64() * 1e3 / f64::from(LOOKS));
        }
        let name = format!("look at what holds packets back, {NODES} nodes");
        Ok(vec![Row::of(name, "ms", &series).note("twice a second, so 10 ms are 2 % of a core")])
    })
}

/// What a node of both families has in the map.
fn prefixes(node: u16) -> Result<[(IpNet, PrefixKind); 4]> {
    use PrefixKind::{RemoteNode, RemotePods};
    let [high, low] = node.to_be_bytes();
    Ok([
        (format!("10.{}.{low}.0/24", 100 + high).parse()?, RemotePods),
        (format!("fd00:244:0:{node:x}::/64").parse()?, RemotePods),
        (format!("172.{}.{low}.1/32", 16 + high).parse()?, RemoteNode),
        (format!("2001:db8::1:{node:x}/128").parse()?, RemoteNode),
    ])
}
