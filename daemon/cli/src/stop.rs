//! How a command ends that has not done what it is for.

use kubeveil_core::{control::Refusal, problem::Problem};

use crate::{FINDING, UNREACHABLE, USAGE};

/// What ends a command before it has done what it is for.
#[derive(Debug)]
pub(crate) enum Stop {
    /// With a finding, in words.
    Finding(String),
    /// It was asked for in a way that makes no sense.
    Usage(String),
    /// Nobody answers, or not what is needed.
    Unreachable(Problem),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Unreachable(problem)
    }
}

impl Stop {
    /// A change was refused; `look` is the command by which to see what others have changed.
    pub(crate) fn refused(refusal: Refusal, look: &str) -> Self {
        match refusal {
            Refusal::Changed => Self::Finding(format!("{refusal}; look at `{look}`, and try again")),
            Refusal::Refused(problem) => Self::Finding(problem.to_string()),
            Refusal::Problem(problem) => Self::Unreachable(problem),
        }
    }

    /// Tells it on standard error; returns the exit code.
    pub(crate) fn tell(self) -> u8 {
        let (code, words) = match self {
            Self::Finding(words) => (FINDING, words),
            Self::Usage(words) => (USAGE, words),
            Self::Unreachable(problem) => (UNREACHABLE, problem.to_string()),
        };
        eprintln!("kubeveil: {words}");
        code
    }
}
