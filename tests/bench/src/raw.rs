//! Programs of a few instructions, to compare ours with.

use anyhow::{Context, Result};
use aya::{Ebpf, programs::SchedClassifier};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

/// An instruction (Documentation/bpf/standardization/instruction-set.rst): opcode, registers, offset, number.
pub(crate) type Instruction = [u8; 8];

/// r0 = -1, which is TCX_NEXT.
pub(crate) const NEXT: Instruction = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
/// Return r0.
pub(crate) const EXIT: Instruction = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// What redirects every packet to a device: r0 = bpf_redirect(index, 0).
pub(crate) const fn redirect(index: u32) -> [Instruction; 4] {
    let [a, b, c, d] = index.to_le_bytes();
    [[0xb7, 1, 0, 0, a, b, c, d], [0xb7, 2, 0, 0, 0, 0, 0, 0], [0x85, 0, 0, 0, 23, 0, 0, 0], EXIT]
}

/// One of them in the kernel.
pub(crate) struct Program(Ebpf);

impl Program {
    const NAME: &str = "bare";

    /// Loads it.
    pub(crate) fn load(code: &[Instruction]) -> Result<Self> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
        object.append_section_data(license, b"GPL\0", 1);
        let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
        object.append_section_data(section, code.as_flattened(), 8);
        object.add_symbol(Symbol {
            name: Self::NAME.into(),
            value: 0,
            size: u64::try_from(code.as_flattened().len())?,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
        let mut program = Self(Ebpf::load(&object.write()?)?);
        program.classifier()?.load()?;
        Ok(program)
    }

    pub(crate) fn classifier(&mut self) -> Result<&mut SchedClassifier> {
        Ok(self.0.program_mut(Self::NAME).context(Self::NAME)?.try_into()?)
    }
}
