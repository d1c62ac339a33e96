//! The backstop at netfilter's POST_ROUTING: a program where the kernel takes one, else a table of nftables.
//!
//! Which form is wanted is planned (`kubeveil_core::backstop`); here is what each is made of, and which is in force.
//! Both belong to the network namespace in which they are made, and outlive the daemon.

mod bpf;
mod btf;
mod netlink;
mod nft;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use kubeveil_abi::Direction;
use kubeveil_core::backstop::{Backstop, Form, Standing};

use crate::{Count, KernelError, bpf::Pins};

pub use nft::outcome;
pub(crate) use nft::route_checks;

/// How long it is told that somebody took a form away: a look or two of whoever watches.
const TOLD: Duration = Duration::from_secs(60);

/// Both forms of it.
pub(crate) struct Backstops {
    pins: Pins,
    build: String,
    refused: BTreeMap<Form, String>,
    /// What was raised, or found, since the daemon started, and not removed by us.
    raised: BTreeSet<Form>,
    /// What was raised and was not there any more, when last.
    lost: BTreeMap<Form, Instant>,
    /// When it was last seen.
    seen: Standing,
    /// What our table has counted: in tables that are gone, and when last looked at.
    before: nft::Counts,
    last: nft::Counts,
}

impl Backstops {
    /// With the program of `build`.
    pub(crate) fn new(pins: Pins, build: &str) -> Self {
        Self {
            pins,
            build: build.to_owned(),
            refused: BTreeMap::new(),
            raised: BTreeSet::new(),
            lost: BTreeMap::new(),
            seen: Standing::default(),
            before: nft::Counts::new(),
            last: nft::Counts::new(),
        }
    }

    /// What stands. That this can't be seen is no reason to see nothing else of the node.
    pub(crate) fn observe(&mut self, unpinned: &BTreeSet<PathBuf>) -> Standing {
        match self.look(unpinned) {
            Ok(standing) => {
                self.seen = standing.clone();
                standing
            }
            Err(e) => Standing { unseen: Some(e.to_string()), ..self.seen.clone() },
        }
    }

    fn look(&mut self, unpinned: &BTreeSet<PathBuf>) -> Result<Standing, KernelError> {
        let is_ours = |path: &PathBuf| {
            path.starts_with(self.pins.backstop_links()) || *path == self.pins.backstop_program(&self.build)
        };
        let linked = if unpinned.iter().any(is_ours) {
            // It is held, and stands as it stood.
            bpf::Linked { stands: self.seen.bpf, is_current: self.seen.is_current }
        } else {
            bpf::observe(&self.pins, &self.build)?
        };
        let found = nft::observe()?;
        self.notice(Form::Bpf, linked.stands);
        self.notice(Form::Nftables, found.rules.is_some());
        if found.is_whole {
            self.keep(found.counts);
        } else {
            // What was counted since the last look nobody knows any more.
            self.keep(nft::Counts::new());
        }
        let lately = self.lost.iter().filter(|(_, at)| at.elapsed() < TOLD);
        Ok(Standing {
            bpf: linked.stands,
            is_current: linked.is_current,
            nftables: found.rules,
            unseen: None,
            lost: lately.map(|(form, _)| *form).collect(),
            refused: self.refused.clone(),
        })
    }

    fn notice(&mut self, form: Form, stands: bool) {
        if stands {
            self.raised.insert(form);
        } else if self.raised.contains(&form) {
            self.lost.insert(form, Instant::now());
        }
    }

    /// Puts a form in force. That this kernel can't have it is noted, and no error.
    pub(crate) fn raise(&mut self, backstop: &Backstop, object: &[u8]) -> Result<(), KernelError> {
        let raised = match backstop {
            Backstop::Bpf => bpf::raise(&self.pins, object, &self.build),
            Backstop::Nftables(rules) => nft::raise(rules),
        };
        match (backstop, raised) {
            (_, Err(e)) if is_final(&e) => {
                tracing::info!("this kernel refuses the backstop's form {}: {e}", backstop.form().name());
                self.refused.insert(backstop.form(), e.to_string());
                Ok(())
            }
            (_, Ok(())) => {
                self.raised.insert(backstop.form());
                Ok(())
            }
            (_, Err(e)) => Err(e),
        }
    }

    /// Takes a form away; says whether it was there.
    pub(crate) fn remove(&mut self, form: Form) -> Result<bool, KernelError> {
        let was_there = match form {
            Form::Bpf => bpf::remove(&self.pins)?,
            Form::Nftables => nft::remove()?,
        };
        self.raised.remove(&form);
        self.lost.remove(&form);
        Ok(was_there)
    }

    /// What the table has counted. (The program counts with all others.) What can't be read now is as it was.
    pub(crate) fn counters(&mut self) -> Vec<Count> {
        if self.raised.contains(&Form::Nftables)
            && let Ok(now) = nft::counters()
        {
            self.keep(now);
        }
        let mut sum = self.before.clone();
        add(&mut sum, &self.last);
        let count = |((mode, reason), (packets, bytes)): (nft::Outcome, (u64, u64))| Count {
            direction: Direction::Backstop,
            mode,
            reason,
            packets,
            bytes,
        };
        sum.into_iter().filter(|(_, (packets, _))| *packets != 0).map(count).collect()
    }

    /// A table made anew begins at nothing; what the one before had counted stays counted.
    fn keep(&mut self, now: nft::Counts) {
        let fell = |(key, (packets, _)): (&nft::Outcome, &(u64, u64))| {
            now.get(key).is_none_or(|(left, _)| left < packets)
        };
        if self.last.iter().any(fell) {
            add(&mut self.before, &self.last);
        }
        self.last = now;
    }
}

fn add(sum: &mut nft::Counts, more: &nft::Counts) {
    for (key, (packets, bytes)) in more {
        let sum = sum.entry(*key).or_default();
        sum.0 += packets;
        sum.1 += bytes;
    }
}

/// Trying again won't help: the kernel lacks it (then there may be no number at all: its types are not told, or lack
/// a field), its verifier refuses it, or the privilege is missing.
fn is_final(error: &KernelError) -> bool {
    /// `ENOTSUPP` (`include/linux/errno.h`), which libc does not know.
    const NOT_SUPPORTED: i32 = 524;
    const REFUSALS: [i32; 9] = [
        libc::EINVAL,
        libc::EOPNOTSUPP,
        libc::ENOSYS,
        libc::EPERM,
        libc::EACCES,
        libc::ENOENT,
        libc::EPROTONOSUPPORT,
        libc::EAFNOSUPPORT,
        NOT_SUPPORTED,
    ];
    let step = error.operation;
    let is_refused = error.errno().is_none_or(|errno| REFUSALS.contains(&errno));
    is_refused && [bpf::LOAD, bpf::LINK, btf::READ, btf::FIND, nft::WRITE].contains(&step)
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use kubeveil_abi::{FlowMode, Reason};

    use super::*;

    #[test]
    fn what_was_counted_stays_counted_when_the_table_is_made_anew() {
        let mut backstops = Backstops::new(Pins::new(Path::new("/nonexistent")), "build");
        let outcome = (FlowMode::Require, Reason::UnguardedDevice);
        let dropped = |packets: u64| nft::Counts::from([(outcome, (packets, packets * 60))]);
        for (now, sum) in [(5, 5), (8, 8), (0, 8), (2, 10), (1, 11)] {
            backstops.keep(dropped(now));
            let counted = backstops.counters();
            assert_eq!(counted.iter().map(|c| (c.packets, c.bytes)).collect::<Vec<_>>(), [(sum, sum * 60)]);
        }
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        let error = |errno| KernelError::new(bpf::LOAD, "it", io::Error::from_raw_os_error(errno));
        for errno in [libc::EBUSY, libc::ENOMEM, libc::ENOBUFS, libc::EINTR, libc::EAGAIN] {
            assert!(!is_final(&error(errno)), "{errno}");
        }
        for errno in [libc::EINVAL, libc::EPERM, libc::EOPNOTSUPP] {
            assert!(is_final(&error(errno)), "{errno}");
        }
        assert!(is_final(&KernelError::new(btf::FIND, "a field", io::Error::from(io::ErrorKind::NotFound))));
        let pin = io::Error::from_raw_os_error(libc::ENOENT);
        assert!(!is_final(&KernelError::new("pin", "it", pin)), "that says nothing of the kernel");
    }
}
