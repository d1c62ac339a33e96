//! Announcements in one byte: which of four generations there are, and whom of three nodes the list names.

use std::{num::NonZeroU16, sync::OnceLock};

use kubeveil_api::announcement::{GenerationEntry, GenerationState, NotFlipped};
use kubeveil_core::rotation::Said;
use kubeveil_keys::{Generation, PublicKey};

use crate::world::NAMES;

/// Nodes that there can be.
pub(super) const MOST: usize = 3;
/// Generations that there can be.
pub(super) const GENERATIONS: u8 = 4;
/// Where the list begins, and the word for "many".
const LIST: u32 = 4;
const MANY: u8 = 1 << 7;

/// 0 is nothing said.
pub(super) type Code = u8;

/// Generations by bit.
pub(super) fn generations(code: Code) -> u8 {
    code & 0b1111
}

pub(super) fn code(generations: u8, list: &NotFlipped) -> Code {
    let named = (0..MOST).filter(|place| list.names(NAMES[*place])).fold(0, |all, place| all | 1 << place);
    let many = if *list == NotFlipped::Many { MANY } else { 0 };
    generations | named << LIST | many
}

/// What a code stands for.
pub(super) fn said(code: Code) -> Option<Said<'static>> {
    static ALL: OnceLock<Vec<(Vec<GenerationEntry>, NotFlipped)>> = OnceLock::new();
    let all = ALL.get_or_init(|| (0..=Code::MAX).map(decode).collect());
    let (generations, not_flipped) = &all[usize::from(code)];
    (!generations.is_empty()).then_some(Said { generations, not_flipped })
}

fn decode(code: Code) -> (Vec<GenerationEntry>, NotFlipped) {
    let entry = |generation: u8| GenerationEntry {
        generation: Generation::new(generation.into()),
        public_key: PublicKey::from_bytes([generation; 32]),
        port: NonZeroU16::MIN,
        state: GenerationState::Active,
    };
    let entries = bits(generations(code)).map(entry).collect();
    let named = (0..MOST).filter(|place| code >> LIST & 1 << place != 0);
    let list = named.map(|place| NAMES[place].to_owned());
    (entries, if code & MANY != 0 { NotFlipped::Many } else { NotFlipped::of(list) })
}

/// The places of the bits that are set.
pub(super) fn bits(mask: u8) -> impl DoubleEndedIterator<Item = u8> + Clone {
    (0..8).filter(move |bit| mask & 1 << bit != 0)
}
