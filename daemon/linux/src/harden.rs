//! What keeps keys out of core dumps and other processes' hands.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::KernelError;

/// Core dumps off; memory not readable by ptrace or /proc/PID/mem without CAP_SYS_PTRACE
/// (`PR_SET_DUMPABLE`, prctl(2)).
pub fn harden() -> Result<(), KernelError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| KernelError::new("make not dumpable", "this process", std::io::Error::from(e)))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|e| KernelError::new("limit core dumps of", "this process", std::io::Error::from(e)))
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn no_core_and_no_dump() {
        harden().expect("hardened");
        assert_eq!(dumpable_behavior().expect("asked"), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    }
}
