//! Loading the object, or adopting what an earlier daemon left pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, MapInfo},
    programs::{ProgramError, SchedClassifier},
};
use kubeveil_abi::names;
use kubeveil_core::observed::{Ahead, Datapath, Hook, Link, Predecessor, Program};

use super::{
    Maps, Pins,
    attach::{Form, clsact, tcx},
    pins::remove_tree,
};
use crate::{KernelError, error::PIN, link::Links};

/// The programs and maps in the kernel.
pub struct Bpf {
    pins: Pins,
    build: String,
    form: Form,
    /// Open maps.
    pub maps: Maps,
    programs: BTreeMap<Program, (SchedClassifier, u32)>,
}

/// What tells one object file from another. It need not be the same on every machine.
pub fn build_of(object: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl Bpf {
    /// Adopts the pinned programs of this very object; else loads it over the pinned maps.
    ///
    /// The links that exist keep the programs that they have: these are replaced when they are attached, which
    /// is planned after the maps are filled, so that new programs never stand over maps that lack something.
    pub fn load_or_adopt(pins: Pins, object: &[u8], build: &str) -> Result<Self, KernelError> {
        pins.create(build)?;
        let is_pinned = Program::ALL.iter().all(|p| pins.program(build, *p).exists());
        // A map that somebody removed is in use still, by programs that nobody can tell anything any more.
        let has_maps = names::MAPS.iter().all(|name| pins.map(name).exists());
        if !is_pinned || !has_maps {
            load(&pins, object, build)?;
        }
        let mut programs = BTreeMap::new();
        for program in Program::ALL {
            programs.insert(program, open(&pins, build, program)?);
        }
        let mut maps = Maps::open(&pins)?;
        for other in pins.others() {
            maps.take_flows(&other.map(names::FLOWS))?;
        }
        // Links hold their programs without these pins.
        for dir in pins.other_programs(build) {
            remove_tree(&dir).map_err(|e| KernelError::new("remove", dir.display().to_string(), e))?;
        }
        Ok(Self { pins, build: build.to_owned(), form: Form::find(), maps, programs })
    }

    /// What stands in the kernel, at `links`. What is unpinned, and held, stands too.
    pub(crate) fn observe(
        &self,
        links: &BTreeMap<u32, Link>,
        netlink: &Links,
        unpinned: &BTreeSet<PathBuf>,
    ) -> Result<Datapath, KernelError> {
        let attached = match self.form {
            Form::Tcx => self.linked(links, unpinned)?,
            Form::Clsact => self.filtering(links, netlink)?,
        };
        let origins = self.maps.origins()?;
        Ok(Datapath {
            alive: self.maps.alive(&origins)?,
            origins,
            build: self.build.clone(),
            config: self.maps.config()?,
            prefixes: self.maps.prefixes()?,
            peers: self.maps.peers(),
            slots: self.maps.slots()?,
            devices: self.maps.devices()?,
            attached,
            unpinned: unpinned.iter().map(|path| path.display().to_string()).collect(),
            predecessors: self.predecessors()?,
        })
    }

    fn predecessors(&self) -> Result<BTreeMap<String, Predecessor>, KernelError> {
        let look = |pins: Pins| {
            let hooks = pins.links()?.into_iter().collect();
            Ok((pins.version(), Predecessor { hooks, has_backstop: pins.has_backstop() }))
        };
        self.pins.others().into_iter().map(look).collect()
    }

    /// Takes over the flows of other versions, which came in since ours was loaded, and drops the rest of what they left.
    pub fn drop_predecessors(&mut self) -> Result<(), KernelError> {
        for pins in self.pins.others() {
            self.maps.take_flows(&pins.map(names::FLOWS))?;
            pins.remove_all()?;
        }
        Ok(())
    }

    fn linked(
        &self,
        links: &BTreeMap<u32, Link>,
        unpinned: &BTreeSet<PathBuf>,
    ) -> Result<BTreeMap<Hook, Vec<Ahead>>, KernelError> {
        let mut attached = BTreeMap::new();
        let held = unpinned.iter().filter_map(|path| self.pins.hook(path));
        for hook in self.pins.links()?.into_iter().chain(held) {
            let (program, index) = hook;
            match (links.get(&index), self.programs.get(&program)) {
                (Some(link), Some((_, id))) => {
                    if let Some(ahead) = tcx::ahead(hook, &link.name, *id)? {
                        attached.insert(hook, ahead);
                    }
                }
                // The device is gone and its pin is litter: shown, so that it is planned away.
                _ => {
                    attached.insert(hook, Vec::new());
                }
            }
        }
        Ok(attached)
    }

    fn filtering(
        &self,
        links: &BTreeMap<u32, Link>,
        netlink: &Links,
    ) -> Result<BTreeMap<Hook, Vec<Ahead>>, KernelError> {
        let mut attached = BTreeMap::new();
        for index in netlink.with_clsact()?.into_iter().filter(|index| links.contains_key(index)) {
            for (program, (_, id)) in &self.programs {
                let there = clsact::ahead(*program, index, netlink)?;
                if let Some((ahead, _)) = there.filter(|(_, there)| there == id) {
                    attached.insert((*program, index), ahead);
                }
            }
        }
        Ok(attached)
    }

    /// Attaches at a hook of the device called `device`.
    pub fn attach(&mut self, hook: Hook, device: &str, netlink: &Links) -> Result<(), KernelError> {
        let Some((program, id)) = self.programs.get_mut(&hook.0) else {
            return Ok(());
        };
        match self.form {
            Form::Tcx => tcx::attach((program, *id), hook, device, &self.pins),
            Form::Clsact => clsact::attach(program, hook.0, (hook.1, device), netlink),
        }
    }

    /// Takes a program off a device that is gone.
    pub fn detach(&mut self, hook: Hook) -> Result<(), KernelError> {
        match self.form {
            Form::Tcx => tcx::detach(hook, &self.pins),
            // Its filters went with the device.
            Form::Clsact => Ok(()),
        }
    }
}

/// Loads the object over the pinned maps and pins its programs. Nothing is attached by it.
fn load(pins: &Pins, object: &[u8], build: &str) -> Result<(), KernelError> {
    discard_misfits(pins, object)?;
    let mut loader = EbpfLoader::new();
    for name in names::MAPS {
        // Opens the pinned map where there is one, else makes and pins it.
        loader.map_pin_path(name, pins.map(name));
    }
    let mut ebpf = load_programs(&mut loader, object)?;
    for program in Program::ALL {
        let pin = pins.program(build, program);
        // Left over from a daemon that was killed in the midst of this.
        let _ = std::fs::remove_file(&pin);
        let failed = |e| KernelError::new(PIN, pin.display().to_string(), e);
        classifier(&mut ebpf, program)?.pin(&pin).map_err(failed)?;
    }
    Ok(())
}

/// The programs and maps of the object, in the kernel as long as what is returned lives.
pub(super) fn load_programs(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf, KernelError> {
    let mut ebpf = loader.load(object).map_err(|e| KernelError::new("load", "the eBPF object", e))?;
    for program in Program::ALL {
        let failed = |e: ProgramError| KernelError::new("load program", program.name(), e);
        classifier(&mut ebpf, program)?.load().map_err(failed)?;
    }
    Ok(ebpf)
}

fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, KernelError> {
    let failed = |e: ProgramError| KernelError::new("load program", program.name(), e);
    let missing =
        || KernelError::new("find program", program.name(), io::Error::from(io::ErrorKind::NotFound));
    ebpf.program_mut(program.name()).ok_or_else(missing)?.try_into().map_err(failed)
}

/// Unpins maps that another build of this ABI made in another size (it knew fewer directions to count, say): the new
/// programs get new ones, which are filled before these are attached. Programs that stand keep theirs.
fn discard_misfits(pins: &Pins, object: &[u8]) -> Result<(), KernelError> {
    let object =
        aya_obj::Object::parse(object).map_err(|e| KernelError::new("read", "the eBPF object", e))?;
    for name in names::MAPS {
        let pin = pins.map(name);
        let (Some(wanted), true) = (object.maps.get(name), pin.exists()) else { continue };
        let failed = |e: MapError| KernelError::new("look at", pin.display().to_string(), e);
        let info = MapInfo::from_pin(&pin).map_err(failed)?;
        let there = (info.key_size(), info.value_size(), info.max_entries());
        if there != (wanted.key_size(), wanted.value_size(), wanted.max_entries()) {
            tracing::info!("map {name} of another build has another size and is made anew");
            std::fs::remove_file(&pin)
                .map_err(|e| KernelError::new("remove", pin.display().to_string(), e))?;
        }
    }
    Ok(())
}

fn open(pins: &Pins, build: &str, program: Program) -> Result<(SchedClassifier, u32), KernelError> {
    let pin = pins.program(build, program);
    let failed = |e: ProgramError| KernelError::new("open", pin.display().to_string(), e);
    let opened = SchedClassifier::from_pin(&pin).map_err(failed)?;
    let id = opened.info().map_err(failed)?.id();
    Ok((opened, id))
}
