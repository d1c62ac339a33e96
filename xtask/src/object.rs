//! The eBPF object as it is shipped: without what differs from one checkout to the next, and the kernel never reads.

use anyhow::{Context, Result};
use object::{
    build::elf::{Builder, SectionData},
    elf::{SHT_STRTAB, STT_FILE},
};

/// The object without DWARF and without the names of its source files. BTF, which was made from the DWARF, stays.
pub(crate) fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("read the eBPF object")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    for symbol in &mut builder.symbols {
        symbol.delete = symbol.st_type() == STT_FILE;
    }
    builder.delete_orphans();
    // The linker keeps names of sections and of symbols in one section, the writer in two.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let section = builder.sections.add();
        section.name = b".shstrtab"[..].into();
        section.sh_type = SHT_STRTAB;
        section.sh_addralign = 1;
        section.data = SectionData::SectionString;
    }
    builder.set_section_sizes();
    let mut written = Vec::new();
    builder.write(&mut written).context("write the eBPF object")?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use object::build::{ByteString, elf::Symbols};
    use object::{Endianness, elf};

    use super::*;

    /// An object with code, BTF and DWARF, made from a file of that name.
    fn object(source: &'static str) -> Vec<u8> {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        for (name, data) in [("classifier", "code"), (".BTF", "types"), (".debug_info", source)] {
            let section = builder.sections.add();
            section.name = ByteString::from(name.as_bytes());
            section.sh_type = elf::SHT_PROGBITS;
            section.sh_addralign = 1;
            section.data = SectionData::Data(data.as_bytes().into());
        }
        for (name, data) in [
            (".symtab", SectionData::Symbol),
            (".strtab", SectionData::String),
            (".shstrtab", SectionData::SectionString),
        ] {
            let section = builder.sections.add();
            section.name = ByteString::from(name.as_bytes());
            section.sh_type = if name == ".symtab" { elf::SHT_SYMTAB } else { SHT_STRTAB };
            section.sh_addralign = 8;
            section.data = data;
        }
        add_symbol(&mut builder.symbols, source, STT_FILE);
        add_symbol(&mut builder.symbols, "steer", elf::STT_FUNC);
        builder.set_section_sizes();
        let mut written = Vec::new();
        builder.write(&mut written).expect("written");
        written
    }

    fn add_symbol(symbols: &mut Symbols<'static>, name: &'static str, kind: elf::SymbolType) {
        let symbol = symbols.add();
        symbol.name = ByteString::from(name.as_bytes());
        symbol.st_shndx = elf::SHN_ABS;
        symbol.set_st_info(elf::STB_LOCAL, kind);
    }

    #[test]
    fn where_it_was_built_makes_no_difference() {
        let (one, other) = (object("main.rs/@/kubeveil.1111-cgu.0"), object("main.rs/@/kubeveil.2222-cgu.0"));
        assert_ne!(one, other);
        let shipped = without_dwarf(&one).expect("stripped");
        assert_eq!(shipped, without_dwarf(&other).expect("stripped"));
        let builder = Builder::read(shipped.as_slice()).expect("an object");
        let names: Vec<String> = builder.sections.iter().map(|s| s.name.to_string()).collect();
        assert_eq!(names, ["classifier", ".BTF", ".symtab", ".strtab", ".shstrtab"]);
        let symbols: Vec<String> = builder.symbols.iter().map(|s| s.name.to_string()).collect();
        assert_eq!(symbols, ["steer"]);
    }
}
