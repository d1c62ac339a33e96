//! A program of somebody else's at a node's device.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcAttachType, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use kubeveil_tests::address::Node;
use kubeveil_tests::namespace;
use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

/// What it makes of every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The next one decides.
    Next,
    /// It passes, and nobody else is asked.
    Pass,
    /// It leaves by another device.
    To(u32),
}

impl Answer {
    /// Its instructions (kernel `Documentation/bpf/standardization/instruction-set.rst`).
    fn code(self) -> Vec<u8> {
        const MOVE: u8 = 0xb7;
        const CALL: [u8; 8] = [0x85, 0, 0, 0, BPF_REDIRECT, 0, 0, 0];
        const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
        /// `BPF_FUNC_redirect` (`include/uapi/linux/bpf.h`).
        const BPF_REDIRECT: u8 = 23;
        let set = |register: u8, value: u32| {
            let [a, b, c, d] = value.to_le_bytes();
            [MOVE, register, 0, 0, a, b, c, d]
        };
        // `TCX_NEXT` and `TC_ACT_UNSPEC` are -1, `TCX_PASS` and `TC_ACT_OK` 0.
        match self {
            Self::Next => [set(0, u32::MAX), EXIT].concat(),
            Self::Pass => [set(0, 0), EXIT].concat(),
            Self::To(device) => [set(1, device), set(2, 0), CALL, EXIT].concat(),
        }
    }
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before ours, in the way that ours are attached here.
    Ahead,
    /// Behind ours.
    Behind,
    /// A filter of a clsact qdisc, though ours are attached by tcx.
    Filter,
}

/// How its owner calls it.
pub(crate) const NAME: &str = "neighbour";
/// Priorities of filters before and behind ours (`daemon/linux/src/bpf/attach/clsact.rs`).
const EARLY: u16 = 0x4000;
const LATE: u16 = 0xd000;

/// It stands as long as this lives.
pub(crate) struct Foreign {
    /// `None` when it is gone.
    ebpf: Option<Ebpf>,
    node: Node,
}

impl Foreign {
    pub(crate) fn attach(
        node: Node,
        device: &str,
        side: TcAttachType,
        place: Place,
        answer: Answer,
    ) -> Result<Self> {
        let mut ebpf = Ebpf::load(&elf(&answer.code())?).context("load somebody else's program")?;
        let program: &mut SchedClassifier = ebpf.program_mut(NAME).context(NAME)?.try_into()?;
        program.load()?;
        let filter = |priority| {
            TcAttachOptions::Netlink(NlOptions { priority, handle: 1.into(), ..NlOptions::default() })
        };
        let options = match (place, has_tcx()) {
            (Place::Ahead, true) => TcAttachOptions::TcxOrder(LinkOrder::first()),
            (Place::Behind, true) => TcAttachOptions::TcxOrder(LinkOrder::last()),
            (Place::Ahead, false) => filter(EARLY),
            (Place::Behind | Place::Filter, _) => filter(LATE),
        };
        namespace::within(&node.name(), || {
            if matches!(options, TcAttachOptions::Netlink(_)) {
                // There already where ours are such.
                let _ = qdisc_add_clsact(device);
            }
            let attached = program.attach_with_options(device, side, options);
            attached.map(drop).with_context(|| format!("attach {place:?} to {device}"))
        })?;
        Ok(Self { ebpf: Some(ebpf), node })
    }

    fn info(&self) -> Result<aya::programs::ProgramInfo> {
        let program = self.ebpf.as_ref().and_then(|ebpf| ebpf.program(NAME)).context(NAME)?;
        Ok(program.info()?)
    }

    /// Its number in the kernel.
    pub(crate) fn id(&self) -> Result<u32> {
        Ok(self.info()?.id())
    }

    /// How often it has run, since somebody counts that.
    pub(crate) fn runs(&self) -> Result<u64> {
        Ok(self.info()?.run_count())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let ebpf = self.ebpf.take();
        // A filter is taken off by a message, in the namespace of whoever drops it.
        let gone = namespace::within(&self.node.name(), || {
            drop(ebpf);
            Ok(())
        });
        if let Err(error) = gone {
            eprintln!("take somebody else's program off: {error:#}");
        }
    }
}

/// Whether ours are attached by tcx here.
pub(crate) fn has_tcx() -> bool {
    let asked = SchedClassifier::query_tcx("lo", TcAttachType::Ingress);
    !matches!(asked, Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(INVAL))
}

const INVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

fn elf(code: &[u8]) -> Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"GPL\0", 1);
    let section = object.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
    object.append_section_data(section, code, 8);
    object.add_symbol(Symbol {
        name: NAME.as_bytes().to_vec(),
        value: 0,
        size: u64::try_from(code.len())?,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    Ok(object.write()?)
}
