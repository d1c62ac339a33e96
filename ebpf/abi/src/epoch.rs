/// Whether the programs may answer from what they looked up in [`names::PREFIXES`](crate::names::PREFIXES)
/// before, at this value of [`names::EPOCH`](crate::names::EPOCH).
///
/// Whoever changes prefixes stores an odd value first, and when done an even one that was not there
/// before. 0, in a map that nobody has written to, and an odd one, which a crash in the midst of a
/// change leaves behind, both mean that every address is looked up anew: slower, never wrong.
#[inline(always)]
pub const fn is_settled(epoch: u32) -> bool {
    epoch != 0 && epoch.is_multiple_of(2)
}
