//! Somebody else's firewall on the nodes, with rules as firewalld writes them.
//!
//! What comes out of a tunnel has come in by `kubeveil0`, and its answers leave by `eth0`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kubeveil_tests::address::Node;
use kubeveil_tests::lab::nft;
use kubeveil_tests::process::wait_until;
use kubeveil_tests::stage::{Stage, conclusive, encrypted, none_arrived, none_plain};

use crate::Scenario;
use crate::support::look_round;

pub(crate) const ALL: &[Scenario] =
    &[Scenario::new("firewalld_lets_tunnels_alone_as_readme_says", acts).nodes(2)];

/// Packets of both families together.
const PACKETS: u64 = 40;
/// The daemon's regular look at everything, and some more.
const RESYNC: Duration = Duration::from_secs(25);

/// README's settings for firewalld: what lacks without one of them, and that nothing does with all.
fn acts(stage: &mut Stage) -> Result<()> {
    const STRICT: &str = "saddr . mark . iif";
    const LOOSE: &str = "saddr . mark";
    stage.start()?;
    let mut send = |zone: &str, check: &str| {
        [Node(1), Node(2)].into_iter().try_for_each(|node| write(node, zone, check))?;
        look_round(stage, Node(2))?;
        let is_told = wait_until(RESYNC, Duration::from_millis(200), || {
            let problems = stage.status(Node(2))?["problems"].to_string();
            Ok(problems.contains("nftables chain inet firewalld filter_PREROUTING") == (check == STRICT))
        })?;
        ensure!(is_told, "{check}: {}", stage.status(Node(2))?["problems"]);
        stage.send(stage.load("1a", "2a", 200), PACKETS)
    };
    let (tally, census) = send("\"cni0\"", LOOSE)?;
    none_plain(&census)?;
    none_arrived(&tally).context("though the tunnel is in no trusted zone")?;
    let (tally, census) = send("\"cni0\", \"kubeveil0\"", STRICT)?;
    none_plain(&census)?;
    conclusive(&tally)?;
    let [v4, v6] = tally.by_family;
    ensure!(
        (v4, v6) == (tally.sent.div_ceil(2), 0),
        "with IPv6_rpfilter=strict {v4} by IPv4, {v6} by IPv6: {tally}"
    );
    let (tally, census) = send("\"cni0\", \"kubeveil0\"", LOOSE)?;
    encrypted(&tally, &census).context("with all that README says")
}

/// The chains of firewalld 2 that matter here: `trusted` are the devices of the zone that may go anywhere, `check` what
/// IPv6_rpfilter compares.
fn write(node: Node, trusted: &str, check: &str) -> Result<()> {
    let rules = format!(
        "table inet firewalld
        delete table inet firewalld
        table inet firewalld {{
            chain filter_PREROUTING {{
                type filter hook prerouting priority 10; policy accept;
                icmpv6 type {{ nd-router-advert, nd-neighbor-solicit }} accept
                meta nfproto ipv6 fib {check} oif missing drop
            }}
            chain filter_INPUT {{
                type filter hook input priority 10; policy drop;
                ct state {{ established, related }} accept
                iifname \"lo\" accept
                meta l4proto {{ icmp, ipv6-icmp }} accept
                udp dport 51871-51872 accept
            }}
            chain filter_FORWARD {{
                type filter hook forward priority 10; policy drop;
                ct state {{ established, related }} accept
                iifname {{ {trusted} }} accept
            }}
        }}"
    );
    nft(&node.name(), &rules).context("the firewall")
}
