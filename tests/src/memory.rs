//! What lies in another process's memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context, Result, ensure};
use memchr::memmem;

/// How often `needle` lies in what the process `pid` can write.
pub fn occurrences(pid: i32, needle: &[u8]) -> Result<usize> {
    let open = |what: &str| format!("/proc/{pid}/{what}");
    let maps = fs::read_to_string(open("maps")).with_context(|| format!("what process {pid} has mapped"))?;
    let memory = File::open(open("mem")).with_context(|| format!("memory of process {pid}"))?;
    let (mut found, mut seen) = (0, 0);
    for (start, end) in maps.lines().filter_map(writable) {
        let mut region = vec![0; usize::try_from(end - start)?];
        seen += read(&memory, start, &mut region);
        found += memmem::find_iter(&region, needle).count();
    }
    ensure!(seen > 0, "nothing of the memory of process {pid} can be read");
    Ok(found)
}

/// Reads what can be read, as a device's memory can't and what is gone meanwhile; the rest stays zero. Returns how many bytes that was.
fn read(memory: &File, start: u64, region: &mut [u8]) -> usize {
    const PAGE: usize = 4096;
    let mut at = 0;
    let mut seen = 0;
    while at < region.len() {
        match memory.read_at(&mut region[at..], start + at as u64) {
            Ok(length) if length > 0 => {
                at += length;
                seen += length;
            }
            _ => at += PAGE,
        }
    }
    seen
}

/// The bounds of a line of `/proc/PID/maps` that can be read and written (proc_pid_maps(5)).
fn writable(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let bound = |text| u64::from_str_radix(text, 16).ok();
    rest.starts_with("rw").then(|| Some((bound(start)?, bound(end)?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_holds_is_found() {
        // As it is made when it runs, it stands nowhere else.
        let held: Vec<u8> = (0..64_u8).map(|byte| byte.wrapping_mul(37) ^ 0xa5).collect();
        let pid = std::process::id().cast_signed();
        assert!(occurrences(pid, &held).expect("read") > 0);
        assert!(occurrences(i32::MAX, &held).is_err());
    }

    #[test]
    fn only_what_can_be_written_is_looked_at() {
        assert_eq!(writable("7f10-7f20 rw-p 00000000 00:00 0 [heap]"), Some((0x7f10, 0x7f20)));
        assert_eq!(writable("7f10-7f20 r--p 00000000 00:00 0"), None);
    }
}
