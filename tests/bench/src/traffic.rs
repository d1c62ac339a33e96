//! Pod to pod through WireGuard, against the plain route, and while keys are rotated: two labs of three nodes stand at once, one without
//! encryption and one with it, and take turns. For information: where WireGuard's cipher is emulated it is most of what is
//! measured.

mod pods;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

pub(crate) use self::pods::{answer, ask, serve};
use crate::{
    row::{Row, Series},
    say,
};

/// Bits a second, requests answered a second, and how many seconds the rotation took that went on meanwhile; 0 without.
type Measured = [f64; 3];

/// What a lab is told to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Go,
    /// The same, while a rotation goes on.
    Rotate,
}

/// Each kind of [`Measured`], round by round.
type All = [Series; 3];

/// Measures all of it, round by round.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    say("traffic: two labs are laid");
    let mut labs = [Lab::lay("off")?, Lab::lay("require")?];
    let [mut plain, mut encrypted, mut rotating]: [All; 3] = Default::default();
    for round in 1..=rounds {
        say(format!("traffic: round {round} of {rounds}"));
        let mut turns =
            [(0, Order::Go, &mut plain), (1, Order::Go, &mut encrypted), (1, Order::Rotate, &mut rotating)];
        // Nobody is always first.
        turns.rotate_left(round % 3);
        for (lab, order, series) in turns {
            series.iter_mut().zip(labs[lab].turn(order)?).for_each(|(series, value)| series.push(value));
        }
    }
    labs.into_iter().try_for_each(Lab::end)?;
    let row = |what: &str, kind: usize, [over, under]: [(&str, &All); 2], unit: &str, scale: f64| {
        let [o, u] = [over, under].map(|(_, all)| all[kind].median() / scale);
        let name = format!("{what}, {} / {}", over.0, under.0);
        Row::of(name, "ratio", &over.1[kind].over(&under.1[kind]))
            .note(format!("for information; {o:.0} {unit} against {u:.0}"))
    };
    let mut rows = Vec::new();
    for pair in [
        [("require", &encrypted), ("plain route", &plain)],
        [("in a rotation", &rotating), ("without", &encrypted)],
    ] {
        rows.push(row("TCP from pod to pod", 0, pair, "Mbit/s", 1e6));
        rows.push(row("TCP requests answered from pod to pod", 1, pair, "a second", 1.0));
    }
    let of_both = "three nodes, with the traffic above; an old key goes after five silent seconds, and what is said of peers is said every ten";
    rows.push(Row::of("a rotation", "s", &rotating[2]).note(of_both));
    Ok(rows)
}

impl Order {
    const fn word(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Rotate => "rotate",
        }
    }
}

/// A lab, and in it the program of [`serve`].
struct Lab {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Lab {
    fn lay(mode: &str) -> Result<Self> {
        let mut child = Command::new("kubeveil-lab")
            .args(["--nodes", "3", "--mode", mode, "--family", "dual", "--"])
            .arg(std::env::current_exe()?)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start kubeveil-lab")?;
        let orders = child.stdin.take().context("no pipe")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child, orders, answers })
    }

    /// Measures once.
    fn turn(&mut self, order: Order) -> Result<Measured> {
        writeln!(self.orders, "{}", order.word())?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the lab said {line:?}"))
    }

    fn end(mut self) -> Result<()> {
        drop(self.orders);
        let status = self.child.wait()?;
        ensure!(status.success(), "kubeveil-lab: {status}");
        Ok(())
    }
}
