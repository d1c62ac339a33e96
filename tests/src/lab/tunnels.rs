//! Waiting for tunnels: a lab whose mode needs them is laid when they carry packets.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Lab, Mode};
use crate::status;

impl Mode {
    /// Whether pods' packets are encrypted in it.
    pub fn needs_tunnels(self) -> bool {
        matches!(self, Self::Prefer | Self::Require)
    }
}

impl Lab {
    /// Waits until packets from every node to every other one go by a tunnel, for as long as `go_on`, asked again and
    /// again, does not err.
    pub fn wait_tunnels(&self, limit: Duration, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
        let end = Instant::now() + limit;
        for node in self.nodes() {
            loop {
                let missing = missing(&status::of(&self.daemon(node))?, usize::from(self.spec.nodes) - 1)?;
                if missing.is_empty() {
                    break;
                }
                go_on()?;
                ensure!(
                    Instant::now() < end,
                    "{} has not all tunnels after {} s: {}",
                    node.name(),
                    limit.as_secs(),
                    missing.join("; ")
                );
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        Ok(())
    }
}

/// Of `others` nodes, those that packets do not go to by a tunnel, and why.
fn missing(status: &Value, others: usize) -> Result<Vec<String>> {
    let peers = status["peers"].as_array().context("status.peers")?;
    let plain = peers.iter().filter(|peer| peer["tunnelled"] != true);
    let text = |value: &Value| value.as_str().unwrap_or("nobody knows why").to_owned();
    let mut out: Vec<_> =
        plain.map(|peer| format!("to {}: {}", text(&peer["node"]), text(&peer["reason"]))).collect();
    if peers.len() < others {
        out.push(format!("it knows {} of {others} other nodes", peers.len()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let peer = |node: &str, tunnelled: bool| json!({ "node": node, "tunnelled": tunnelled, "reason": (!tunnelled).then_some("no announcement") });
        let status = |peers: &[Value]| json!({ "peers": peers });
        assert!(missing(&status(&[peer("a", true), peer("b", true)]), 2).expect("read").is_empty());
        let some = missing(&status(&[peer("a", true), peer("b", false)]), 3).expect("read");
        assert_eq!(some, ["to b: no announcement", "it knows 2 of 3 other nodes"]);
        assert!(missing(&json!({}), 0).is_err());
    }
}
