//! The eBPF object as it is shipped: without what differs from one checkout to the next, and the kernel never reads.

use anyhow::{Context, Result};
use object::{
    build::elf::{Builder, SectionData},
    elf::{SHT_STRTAB, STB_LOCAL, STT_FILE, STT_FUNC},
};

/// The object without DWARF, without the names of its source files, and with its local functions numbered. BTF, which was
/// made from the DWARF, stays; it has no use for relocations, which are those of its offsets into code.
pub(crate) fn without_dwarf(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("read the eBPF object")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete =
            [&b".debug_"[..], b".rel.debug_", b".rel.BTF"].iter().any(|left| name.starts_with(left));
    }
    let mut local = 0;
    for symbol in &mut builder.symbols {
        symbol.delete = symbol.st_type() == STT_FILE;
        // Calls find a function by its symbol's number; its name holds a hash of where its crate lies.
        if symbol.st_type() == STT_FUNC && symbol.st_bind() == STB_LOCAL {
            symbol.name = format!("local.{local}").into_bytes().into();
            local += 1;
        }
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

    /// An object with code, BTF and DWARF, made from a file of that name, with a function of a crate of that hash.
    fn object(source: &'static str, verdict: &'static str) -> Vec<u8> {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        for (name, data) in
            [("classifier", "code"), (".BTF", "types"), (".rel.BTF.ext", "places"), (".debug_info", source)]
        {
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
        add_symbol(&mut builder.symbols, source, STB_LOCAL, STT_FILE);
        add_symbol(&mut builder.symbols, verdict, STB_LOCAL, STT_FUNC);
        add_symbol(&mut builder.symbols, "steer", elf::STB_GLOBAL, STT_FUNC);
        builder.set_section_sizes();
        let mut written = Vec::new();
        builder.write(&mut written).expect("written");
        written
    }

    fn add_symbol(
        symbols: &mut Symbols<'static>,
        name: &'static str,
        bind: elf::SymbolBind,
        kind: elf::SymbolType,
    ) {
        let symbol = symbols.add();
        symbol.name = ByteString::from(name.as_bytes());
        symbol.st_shndx = elf::SHN_ABS;
        symbol.set_st_info(bind, kind);
    }

    #[test]
    fn where_it_was_built_makes_no_difference() {
        let one = object("main.rs/@/kubeveil.1111-cgu.0", "_RNvNtCs1111_12kubeveil_abi7verdict");
        let other = object("main.rs/@/kubeveil.2222-cgu.0", "_RNvNtCs2222_12kubeveil_abi7verdict");
        assert_ne!(one, other);
        let shipped = without_dwarf(&one).expect("stripped");
        assert_eq!(shipped, without_dwarf(&other).expect("stripped"));
        let builder = Builder::read(shipped.as_slice()).expect("an object");
        let names: Vec<String> = builder.sections.iter().map(|s| s.name.to_string()).collect();
        assert_eq!(names, ["classifier", ".BTF", ".symtab", ".strtab", ".shstrtab"]);
        let symbols: Vec<String> = builder.symbols.iter().map(|s| s.name.to_string()).collect();
        assert_eq!(symbols, ["local.0", "steer"]);
    }
}
