//! What a person sees.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use kubeveil_abi::Reason;

use crate::facts::{Act, Facts};

/// Standard output, with colours or without.
pub(crate) struct Screen {
    colours: bool,
}

const BOLD: &str = "1";
const FAINT: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "1;32";
const YELLOW: &str = "33";
const BLUE: &str = "1;34";
/// Columns between the borders of the summary.
const WIDTH: usize = 74;

impl Screen {
    /// By <https://bixense.com/clicolors> and <https://no-color.org>.
    pub(crate) fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let colours = set("CLICOLOR_FORCE") || (std::io::stdout().is_terminal() && !set("NO_COLOR"));
        Self { colours }
    }

    /// The head.
    pub(crate) fn title(&self, facts: &Facts) {
        let what = format!("pod traffic encrypted in the kernel; here, Linux {}", facts.kernel);
        self.line(&format!("{}  {}", self.paint(BLUE, "kubeveil"), self.paint(FAINT, &what)));
        for row in [
            "",
            "   pod-1a  pod-1b      pod-2a  pod-2b      pod-3a  pod-3b",
            "      └──┬───┘            └──┬───┘            └──┬───┘",
            "       node-1              node-2              node-3",
            "         └───────────────────┴───────────────────┘   the wire: captured",
        ] {
            self.line(&self.paint(FAINT, row));
        }
    }

    /// Begins an act.
    pub(crate) fn act(&self, name: &str, what: &str) {
        self.line("");
        self.line(&format!("{}  {}", self.paint(BOLD, &format!("▸ {name}")), self.paint(FAINT, what)));
    }

    /// Ends it.
    pub(crate) fn held(&self, held: bool, why: &str, act: Option<&Act>) {
        if let Some(act) = act {
            self.line(&format!("  {}", act.tally));
            let plain = format!("{} with plaintext", act.census.plaintext);
            let colour = if act.census.plaintext > 0 { YELLOW } else { GREEN };
            let frames = format!("{} of WireGuard", act.census.ciphertext);
            self.line(&format!("  on the wire: {}, {frames}", self.paint(colour, &plain)));
            if let Some(example) = act.census.examples.first() {
                self.note(example);
            }
        }
        let sign = if held { self.paint(GREEN, "✔") } else { self.paint(RED, "✘ this did not hold:") };
        self.line(&format!("  {sign} {why}"));
    }

    /// A remark.
    pub(crate) fn note(&self, text: &str) {
        self.line(&format!("  {}", self.paint(FAINT, text)));
    }

    /// Reasons of drops, and what they mean.
    pub(crate) fn drops(&self, drops: &BTreeMap<String, u64>) {
        for (name, count) in drops {
            let known = Reason::ALL.iter().find(|reason| reason.name() == name);
            let advice = known.map_or("", |reason| reason.advice());
            self.line(&format!("  {}", self.paint(YELLOW, &format!("{name} {count}"))));
            wrapped(advice, WIDTH - 2)
                .iter()
                .for_each(|line| self.line(&format!("    {}", self.paint(FAINT, line))));
        }
    }

    /// The end of the story.
    pub(crate) fn summary(&self, facts: &Facts) {
        self.line("");
        self.line(&format!("╭{}╮", "─".repeat(WIDTH)));
        self.row(facts.control_held(), "Encryption off", &control(facts));
        self.row(facts.encrypted_held(), "Encryption on", &sent(facts.encrypted.as_ref()));
        self.row(facts.rotated_held(), "All keys rotated", &sent(facts.rotated.as_ref()));
        let name = format!("{} daemons killed", facts.kills);
        self.row(facts.killed_held(), &name, &sent(facts.killed.as_ref()));
        self.row(facts.cut_held(), "A tunnel taken away", &cut(facts));
        self.row(facts.recovered_held(), "Recovered", &sent(facts.recovered.as_ref()));
        self.line(&format!("╰{}╯", "─".repeat(WIDTH)));
        let (colour, text) = if facts.all_held() {
            (GREEN, "All of it held: with encryption on, no packet of a pod crossed the wire in plain.")
        } else {
            (RED, "Not all of it held.")
        };
        self.line(&format!("  {}", self.paint(colour, text)));
    }

    /// What went wrong.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        eprintln!("{}", self.paint(RED, &format!("kubeveil-demo: {error:#}")));
    }

    fn row(&self, held: bool, name: &str, what: &str) {
        let text = format!("{name:<21}{what}");
        let room = " ".repeat(WIDTH.saturating_sub(text.chars().count() + 4));
        let sign = if held { self.paint(GREEN, "✔") } else { self.paint(RED, "✘") };
        self.line(&format!("│ {sign} {text}{room} │"));
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A reader who has gone away does not end the demo.
    fn line(&self, text: &str) {
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }
}

fn control(facts: &Facts) -> String {
    facts.control.as_ref().map_or_else(not_reached, |act| {
        format!("{} sent, {} seen in plain: the capture works", act.tally.sent, act.census.markers)
    })
}

fn sent(act: Option<&Act>) -> String {
    act.map_or_else(not_reached, |act| {
        let Act { tally, census } = act;
        format!("{} sent, {} lost, {} in plain", tally.sent, tally.lost(), census.plaintext)
    })
}

fn cut(facts: &Facts) -> String {
    facts.cut.as_ref().map_or_else(not_reached, |act| {
        format!(
            "{} sent, {} dropped and counted, {} in plain",
            act.tally.sent,
            facts.dropped(),
            act.census.plaintext
        )
    })
}

fn not_reached() -> String {
    "not reached".to_owned()
}

/// Text in lines of at most `width` characters, where its words allow that.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_within_the_box() {
        for reason in Reason::ALL {
            let lines = wrapped(reason.advice(), WIDTH - 2);
            assert!(lines.iter().all(|line| line.chars().count() <= WIDTH - 2), "{lines:?}");
            assert_eq!(lines.join(" "), reason.advice());
        }
    }
}
