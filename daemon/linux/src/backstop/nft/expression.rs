//! Expressions of rules. All of them use register 1, which is 16 bytes.

use super::{COUNTER, Set};
use crate::backstop::netlink::Attributes;

fn expression(rule: &mut Attributes, name: &str, fill: impl FnOnce(&mut Attributes)) {
    rule.nest(1, |a| {
        a.text(1, name);
        a.nest(2, fill);
    });
}

pub(super) fn meta(rule: &mut Attributes, key: u32) {
    expression(rule, "meta", |a| {
        a.word(1, 1);
        a.word(2, key);
    });
}

pub(super) fn equals(rule: &mut Attributes, value: &[u8]) {
    expression(rule, "cmp", |a| {
        a.word(1, 1);
        a.word(2, 0);
        a.nest(3, |data| data.bytes(1, value));
    });
}

pub(super) fn network_header(rule: &mut Attributes, offset: u32, length: u32) {
    expression(rule, "payload", |a| {
        a.word(1, 1);
        a.word(2, 1);
        a.word(3, offset);
        a.word(4, length);
    });
}

pub(super) fn lookup(rule: &mut Attributes, set: &Set) {
    expression(rule, "lookup", |a| {
        a.text(1, set.0);
        a.word(2, 1);
        a.word(4, set.1);
    });
}

pub(super) fn count(rule: &mut Attributes, counter: &str) {
    expression(rule, "objref", |a| {
        a.word(1, COUNTER);
        a.text(2, counter);
    });
}

pub(super) fn verdict(rule: &mut Attributes, code: u32) {
    expression(rule, "immediate", |a| {
        a.word(1, 0);
        a.nest(2, |data| data.nest(2, |verdict| verdict.word(1, code)));
    });
}
