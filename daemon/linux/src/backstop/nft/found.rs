//! The table as it is found.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use kubeveil_core::backstop::{Range, Rules};

use super::{
    CHAIN, Counts, FAMILIES, GET_CHAIN, GET_ELEMENTS, GET_OBJECT, GET_RULE, GET_TABLE, GUARDED, INTERVAL_END,
    MODES, POST_ROUTING, PRIORITY, Set, TABLE, TUNNELS, counter_name, failed, outcomes, text,
};
use crate::{
    KernelError,
    backstop::netlink::{ask, attribute, attributes, word},
};

/// Our table as it is found.
#[derive(Debug, Default)]
pub(in crate::backstop) struct Found {
    /// There is one of this name.
    pub(in crate::backstop) exists: bool,
    /// Table, chain and counters are as we write them.
    pub(in crate::backstop) is_whole: bool,
    /// What it has counted, if it is whole.
    pub(in crate::backstop) counts: Counts,
    /// Its rules, if all of it is as we write it.
    pub(in crate::backstop) rules: Option<Rules>,
}

/// Looks at it. A kernel without nf_tables has none.
pub(in crate::backstop) fn observe() -> Result<Found, KernelError> {
    match look() {
        Err(e) if is_absent(&e) => Ok(Found::default()),
        other => other.map_err(failed("look at")),
    }
}

/// ENOENT; or what a kernel without nf_tables says.
fn is_absent(error: &io::Error) -> bool {
    let absent = [libc::ENOENT, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EINVAL];
    error.raw_os_error().is_some_and(|errno| absent.contains(&errno))
}

fn look() -> io::Result<Found> {
    let tables = ask(GET_TABLE, false, |a| a.text(1, TABLE))?;
    let mut found = Found { exists: !tables.is_empty(), ..Found::default() };
    // A flag puts a table to sleep, another makes it somebody's own.
    if tables.first().and_then(|table| word(table, 2)) != Some(0) {
        return Ok(found);
    }
    found.counts = counters()?;
    found.is_whole = has_chain()? && found.counts.len() == outcomes().len();
    if !found.is_whole {
        return Ok(found);
    }
    let rules = ask(GET_RULE, true, |a| {
        a.text(1, TABLE);
        a.text(2, CHAIN);
    })?;
    let labels: Vec<&[u8]> = rules.iter().map(|rule| attribute(rule, 7).unwrap_or_default()).collect();
    let Some(mode) = MODES.into_iter().find(|mode| labels == super::labels(*mode)) else {
        return Ok(found);
    };
    let mut remote = Vec::new();
    for (_, set, _) in FAMILIES {
        match ranges(&elements(&set)?) {
            Some(ranges) => remote.extend(ranges),
            None => return Ok(found),
        }
    }
    found.rules = Some(Rules { mode, guarded: indices(&GUARDED)?, tunnels: indices(&TUNNELS)?, remote });
    Ok(found)
}

fn has_chain() -> io::Result<bool> {
    let chains = ask(GET_CHAIN, false, |a| {
        a.text(1, TABLE);
        a.text(3, CHAIN);
    });
    let chains = match chains {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
        other => other?,
    };
    let hook = chains.first().and_then(|chain| attribute(chain, 4));
    let place = hook.map(|hook| (word(hook, 1), word(hook, 2)));
    Ok(place == Some((Some(POST_ROUTING), Some(PRIORITY))))
}

/// What has been counted, of the counters that there are.
pub(in crate::backstop) fn counters() -> io::Result<Counts> {
    let objects = match ask(GET_OBJECT, true, |a| a.text(1, TABLE)) {
        Err(e) if is_absent(&e) => Vec::new(),
        other => other?,
    };
    let long = |data: &[u8], kind| attribute(data, kind)?.first_chunk().copied().map(u64::from_be_bytes);
    let mut counts = Counts::new();
    for object in &objects {
        let name = attribute(object, 2).unwrap_or_default();
        let outcome = outcomes().into_iter().find(|o| text(&counter_name(*o)) == name);
        let data = attribute(object, 4).unwrap_or_default();
        if let (Some(outcome), Some(bytes), Some(packets)) = (outcome, long(data, 1), long(data, 2)) {
            counts.insert(outcome, (packets, bytes));
        }
    }
    Ok(counts)
}

/// Keys and flags, as they come.
fn elements(set: &Set) -> io::Result<Vec<(Vec<u8>, u32)>> {
    let lists = ask(GET_ELEMENTS, true, |a| {
        a.text(1, TABLE);
        a.text(2, set.0);
    });
    let lists = match lists {
        // A set that somebody took away has none.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
        other => other?,
    };
    let all = lists.iter().filter_map(|list| attribute(list, 3)).flat_map(attributes);
    let element = |(_, element): (u16, &[u8])| {
        let key = attribute(attribute(element, 1)?, 1)?;
        Some((key.to_vec(), word(element, 3).unwrap_or(0)))
    };
    Ok(all.filter_map(element).collect())
}

fn indices(set: &Set) -> io::Result<BTreeSet<u32>> {
    let index = |(key, _): (Vec<u8>, u32)| key.first_chunk().copied().map(u32::from_ne_bytes);
    Ok(elements(set)?.into_iter().filter_map(index).collect())
}

/// Ranges of their beginnings and ends; `None` if they are none.
pub(super) fn ranges(elements: &[(Vec<u8>, u32)]) -> Option<Vec<Range>> {
    let mut sorted: Vec<_> = elements.iter().map(|(key, flags)| (key, flags & INTERVAL_END != 0)).collect();
    sorted.sort();
    // The program `nft` lets a set begin with the end of what is not in it.
    let mut rest = sorted.into_iter().skip_while(|(_, is_end)| *is_end).peekable();
    let mut ranges = Vec::new();
    while let Some((first, is_end)) = rest.next() {
        if is_end {
            return None;
        }
        let last = match rest.next_if(|(_, is_end)| *is_end) {
            Some((end, _)) => address(end, true)?,
            // To the end of the space.
            None if rest.peek().is_none() => address(&vec![0; first.len()], true)?,
            None => return None,
        };
        ranges.push(Range { first: address(first, false)?, last });
    }
    Some(ranges)
}

/// The address of a key, or the one before it; before the first comes the last.
fn address(key: &[u8], before: bool) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(key) {
        let number = u32::from_be_bytes(v4).wrapping_sub(before.into());
        return Some(Ipv4Addr::from(number).into());
    }
    let number = u128::from_be_bytes(key.try_into().ok()?).wrapping_sub(before.into());
    Some(Ipv6Addr::from(number).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_that_make_no_sense_are_no_ranges() {
        let key = |n: u8| vec![10, 0, 0, n];
        assert_eq!(ranges(&[(key(1), 0), (key(2), 0)]), None);
        assert_eq!(ranges(&[(key(1), 0), (key(2), 1), (key(3), 1)]), None);
        assert_eq!(ranges(&[(vec![1], 0)]), None);
        assert_eq!(ranges(&[(key(0), 1)]), Some(vec![]));
    }
}
