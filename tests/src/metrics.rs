//! What a daemon says at `/metrics`, read back.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::lab::Daemon;

/// The series of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: Vec<Series>,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Asks a daemon.
    pub fn of(daemon: &Daemon) -> Result<Self> {
        let answer = daemon.get("/metrics")?;
        ensure!(answer.status == 200, "/metrics says {}: {}", answer.status, answer.body.trim());
        Self::parse(&answer.body)
    }

    /// Reads the text format.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| parse_line(line).with_context(|| format!("no metric: {line}")));
        Ok(Self { series: series.collect::<Result<_>>()? })
    }

    /// The sum of all series of this name that carry these labels; nothing is zero.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |series: &&Series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(key, value)| series.labels.get(*key).is_some_and(|found| found == value))
        };
        self.series.iter().filter(carries).map(|series| series.value).sum()
    }

    /// As [`Self::sum`], of what counts things.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        // Counters of packets stay far below 2^53.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let count = self.sum(name, labels).max(0.0) as u64;
        count
    }

    /// Packets dropped for this reason, in whatever direction.
    pub fn drops(&self, reason: &str) -> u64 {
        self.count("kubeveil_drops_total", &[("reason", reason)])
    }

    /// Packets dropped for any reason, by reason.
    pub fn all_drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        for series in self.series.iter().filter(|series| series.name == "kubeveil_drops_total") {
            if let Some(reason) = series.labels.get("reason") {
                drops.entry(reason.clone()).or_insert_with(|| self.drops(reason));
            }
        }
        drops.retain(|_, count| *count > 0);
        drops
    }

    /// How many peers have a proven tunnel: in use, or idle.
    pub fn proven(&self) -> u64 {
        self.count("kubeveil_peers", &[("state", "up")]) + self.count("kubeveil_peers", &[("state", "idle")])
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }
}

fn parse_line(line: &str) -> Option<Series> {
    // A value of a label may hold a brace or a blank: the closing brace is the last.
    let ((name, labels), rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let close = rest.rfind('}')?;
            ((name, &rest[..close]), &rest[close + 1..])
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            ((name, ""), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series { name: name.trim().to_owned(), labels: parse_labels(labels)?, value })
}

fn parse_labels(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.trim_matches([',', ' ']).is_empty() {
        let (key, rest) = text.trim_start_matches([',', ' ']).split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, character) => value.push(character),
            }
        };
        labels.insert(key.to_owned(), value);
        text = &rest[end + 1..];
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP kubeveil_drops_total Packets dropped.
# TYPE kubeveil_drops_total counter
kubeveil_drops_total{direction="egress",reason="no_tunnel"} 7
kubeveil_drops_total{direction="ingress",reason="no_tunnel"} 2 1700000000
kubeveil_drops_total{direction="ingress",reason="plain_to_pod"} 0
kubeveil_peers{state="up"} 1
kubeveil_peers{state="idle"} 2
kubeveil_build_info{version="a \"b\" {c}, d"} 1
kubeveil_key_generation 0
"#;

    #[test]
    fn series_are_read_and_summed() {
        let metrics = Metrics::parse(TEXT).expect("metrics");
        assert_eq!(metrics.len(), 7);
        assert_eq!(metrics.drops("no_tunnel"), 9);
        assert_eq!(metrics.all_drops(), BTreeMap::from([("no_tunnel".to_owned(), 9)]));
        assert_eq!(metrics.proven(), 3);
        assert_eq!(metrics.count("kubeveil_build_info", &[("version", "a \"b\" {c}, d")]), 1);
    }

    #[test]
    fn what_is_no_metric_is_an_error() {
        assert!(Metrics::parse("kubeveil_peers{state=\"up\" 1").is_err());
        assert!(Metrics::parse("<html>").is_err());
    }
}
