//! Whether programs can be loaded, and which of others' stand at devices: looked at, and nothing left behind.

use std::collections::BTreeSet;

use aya::{EbpfLoader, programs::SchedClassifier};
use kubeveil_core::observed::{Ahead, Program};

use super::{
    Pins,
    attach::{Form, clsact, tcx},
    load::load_programs,
};
use crate::{KernelError, link::Links};

/// Loads the programs of `object`, over maps of their own, and lets them go.
pub(crate) fn try_load(object: &[u8]) -> Result<(), KernelError> {
    load_programs(&mut EbpfLoader::new(), object).map(drop)
}

/// Whether programs are attached by tcx links here.
pub(crate) fn has_tcx() -> bool {
    Form::find() == Form::Tcx
}

/// Programs and filters at one side of a device that are none of `ours`.
pub(crate) fn others(
    ours: &BTreeSet<u32>,
    (index, device): (u32, &str),
    egress: bool,
    by_tcx: bool,
    links: &Links,
) -> Result<Vec<Ahead>, KernelError> {
    let side = if egress { Program::Steer } else { Program::Guard };
    let mut there = clsact::all(side, index, links)?;
    if by_tcx {
        there.extend(tcx::all(side, (index, device))?);
    }
    there.retain(|one| !ours.contains(&one.program));
    Ok(there)
}

/// Programs that are pinned by any build and any ABI version of ours.
pub(crate) fn ours(pins: &Pins) -> BTreeSet<u32> {
    let versions = pins.others().into_iter().chain([pins.clone()]);
    let folders = versions.flat_map(|pins| pins.other_programs(""));
    let paths = folders.flat_map(|folder| Program::ALL.map(|program| folder.join(program.name())));
    let id = |path| SchedClassifier::from_pin(path).ok()?.info().ok().map(|info| info.id());
    paths.filter_map(id).collect()
}
