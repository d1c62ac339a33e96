//! Where a field lies in this kernel's structures: its own description of its types
//! (kernel `Documentation/bpf/btf.rst`).

use std::{fs, io};

use crate::KernelError;

/// Steps at which a kernel shows that it does not tell its types.
pub(super) const READ: &str = "read the kernel's types from";
pub(super) const FIND: &str = "find in the kernel's types";

const PATH: &str = "/sys/kernel/btf/vmlinux";
/// `BTF_MAGIC`, and the least header that has all that is read here.
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// Fields of `struct btf_type`: offsets of its name and of `info`, and its size.
const INFO: usize = 4;
const TYPE: usize = 12;
/// `struct btf_member`.
const MEMBER: usize = 12;
/// Kinds (`BTF_KIND_*`).
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// The types of a kernel.
pub(super) struct Btf {
    bytes: Vec<u8>,
    /// Where the description of each type begins; that of index 0, void, has none.
    types: Vec<usize>,
    strings: usize,
}

impl Btf {
    /// Of the running kernel.
    pub(super) fn of_kernel() -> Result<Self, KernelError> {
        let failed = |e| KernelError::new(READ, PATH, e);
        let bytes = fs::read(PATH).map_err(failed)?;
        Self::parse(bytes).ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidData)))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let mut btf = Self { bytes, types: vec![0], strings: 0 };
        let magic = u16::from_ne_bytes(*btf.bytes.first_chunk()?);
        let [header, types, length, strings] = [4, 8, 12, 16].map(|at| btf.size(at));
        let header = header.filter(|length| magic == MAGIC && *length >= HEADER)?;
        btf.strings = header + strings?;
        let mut at = header + types?;
        let end = at + length?;
        while at < end {
            btf.types.push(at);
            let info = btf.word(at + INFO)?;
            at += TYPE + more(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
        }
        Some(btf)
    }

    /// Offset of `structure.field`, bytes; also where the field is inside of something that has no name.
    pub(super) fn offset(&self, structure: &str, field: &str) -> Result<u32, KernelError> {
        let is_it =
            |at: &usize| self.kind(*at) == Some(STRUCT) && self.name(*at) == Some(structure.as_bytes());
        let found = self.types.iter().skip(1).copied().filter(is_it).find_map(|at| self.find(at, field));
        found.ok_or_else(|| {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            KernelError::new(FIND, format!("{structure}.{field}"), missing)
        })
    }

    /// Offset of the first of these fields that there is.
    pub(super) fn offset_of_any(&self, structure: &str, fields: &[&str]) -> Result<u32, KernelError> {
        let found = fields.iter().find_map(|field| self.offset(structure, field).ok());
        found.map_or_else(|| self.offset(structure, &fields.join(" or ")), Ok)
    }

    fn find(&self, at: usize, field: &str) -> Option<u32> {
        if !matches!(self.kind(at)?, STRUCT | UNION) {
            return None;
        }
        let info = self.word(at + INFO)?;
        // With bit fields in it, the upper byte of an offset is a width.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        (0..(info & 0xffff) as usize).find_map(|n| {
            let member = at + TYPE + MEMBER * n;
            let offset = (self.word(member + 8)? & mask) / 8;
            match self.name(member)? {
                b"" => {
                    let inner = *self.types.get(self.size(member + 4)?)?;
                    Some(offset + self.find(inner, field)?)
                }
                name => (name == field.as_bytes()).then_some(offset),
            }
        })
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(self.word(at + INFO)? >> 24 & 0x1f)
    }

    /// The name that the description of a type or a member begins with.
    fn name(&self, at: usize) -> Option<&[u8]> {
        let text = self.bytes.get(self.strings + self.size(at)?..)?;
        text.split(|byte| *byte == 0).next()
    }

    fn size(&self, at: usize) -> Option<usize> {
        self.word(at)?.try_into().ok()
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
    }
}

/// Bytes that follow a `struct btf_type` of this kind with `n` members.
fn more(kind: u32, n: usize) -> Option<usize> {
    Some(match kind {
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG.
        2 | 7..=12 | 16 | 18 => 0,
        // INT, VAR, DECL_TAG.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64.
        STRUCT | UNION | 15 | 19 => 12 * n,
        // ENUM, FUNC_PROTO.
        6 | 13 => 8 * n,
        // One that this version does not know: nobody can say where the next begins.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int first; union { struct { int deep; } ; int other; }; int flags : 3; }`
    fn example() -> Vec<u8> {
        let strings = b"\0int\0outer\0first\0deep\0other\0flags\0";
        let name = |text: &str| {
            let wanted = [&[0], text.as_bytes(), &[0]].concat();
            u32::try_from(strings.windows(wanted.len()).position(|w| w == wanted).expect("a name") + 1)
                .expect("small")
        };
        let info = |kind: u32, n: u32| kind << 24 | n;
        let bit_fields = 1 << 31;
        let types: Vec<u32> = [
            vec![name("int"), info(1, 0), 4, 32],
            vec![0, info(STRUCT, 1), 4, name("deep"), 1, 0],
            vec![0, info(UNION, 2), 4, 0, 2, 0, name("other"), 1, 0],
            vec![
                name("outer"),
                info(STRUCT, 3) | bit_fields,
                12,
                name("first"),
                1,
                0,
                0,
                3,
                32,
                name("flags"),
                1,
                3 << 24 | 64,
            ],
        ]
        .concat();
        let length = u32::try_from(types.len() * 4).expect("small");
        let mut out = MAGIC.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for word in [24, 0, length, length, u32::try_from(strings.len()).expect("small")].iter().chain(&types)
        {
            out.extend(word.to_ne_bytes());
        }
        out.extend(strings);
        out
    }

    #[test]
    fn fields_are_found_also_inside_of_what_has_no_name() {
        let btf = Btf::parse(example()).expect("BTF");
        let offset = |field| btf.offset("outer", field).ok();
        assert_eq!(
            [offset("first"), offset("deep"), offset("other"), offset("flags")],
            [0, 4, 4, 8].map(Some)
        );
        assert_eq!(offset("nothing"), None);
        assert!(btf.offset("int", "first").is_err());
    }

    #[test]
    fn what_is_cut_off_is_no_btf() {
        let whole = example();
        let types_end = whole.len() - 35;
        for length in 0..types_end {
            let found = Btf::parse(whole[..length].to_vec()).map(|btf| btf.offset("outer", "first").is_ok());
            assert_ne!(found, Some(true), "{length} bytes");
        }
    }
}
