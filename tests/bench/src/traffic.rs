//! Pod to pod through WireGuard, against the plain route: two labs stand at once, one without encryption and one with
//! it, and take turns. For information: where WireGuard's cipher is emulated it is most of what is measured.

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

/// Bits a second, and requests answered a second.
type Measured = [f64; 2];

/// Measures both in both, round by round.
pub(crate) fn measure(rounds: usize) -> Result<Vec<Row>> {
    say("traffic: two labs are laid");
    let mut labs = [Lab::lay("off")?, Lab::lay("require")?];
    let mut plain = [Series::new(), Series::new()];
    let mut encrypted = plain.clone();
    for round in 1..=rounds {
        say(format!("traffic: round {round} of {rounds}"));
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for lab in order {
            let series = if lab == 0 { &mut plain } else { &mut encrypted };
            series.iter_mut().zip(labs[lab].turn()?).for_each(|(series, value)| series.push(value));
        }
    }
    labs.into_iter().try_for_each(Lab::end)?;
    let row = |what: &str, kind: usize, unit: &str, scale: f64| {
        let [p, e] = [&plain, &encrypted].map(|all| all[kind].median() / scale);
        Row::of(format!("{what}, require / plain route"), "ratio", &encrypted[kind].over(&plain[kind]))
            .note(format!("for information; {p:.0} {unit} plain, {e:.0} {unit} encrypted"))
    };
    Ok(vec![
        row("TCP from pod to pod", 0, "Mbit/s", 1e6),
        row("TCP requests answered from pod to pod", 1, "a second", 1.0),
    ])
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
            .args(["--nodes", "2", "--mode", mode, "--family", "dual", "--"])
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
    fn turn(&mut self) -> Result<Measured> {
        writeln!(self.orders, "go")?;
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
