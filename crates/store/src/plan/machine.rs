//! What the machine has: memory, limits of control groups, and this process's own peak.
//!
//! Sources: `proc(5)` (`meminfo`, `self/status`, `self/cgroup`, `self/mountinfo`), the kernel's documentation of
//! control groups v1 (memory.rst) and v2 (cgroup-v2.rst).

use std::fs;
use std::path::{Path, PathBuf};

use files::{Error, Result};

/// Memory as a program of this process's control group finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// Installed memory, or the tightest control group limit if that is less.
    pub total_bytes: u64,
    /// What could be taken now without swapping: free memory and reclaimable caches, within all limits.
    pub available_bytes: u64,
    /// The tightest control group limit, if there is one.
    pub limit_bytes: Option<u64>,
}

/// Reads the machine's memory.
///
/// # Errors
/// `Io` or `NotFound` when the system does not tell: a memory budget must then be given.
pub fn machine_memory() -> Result<MachineMemory> {
    #[cfg(target_os = "macos")]
    return apple::machine_memory();
    #[cfg(not(target_os = "macos"))]
    machine_memory_at(Path::new("/"))
}

/// Reads a Linux machine's memory below `root`, which is `/` but for tests.
///
/// # Errors
/// As [`machine_memory`].
pub fn machine_memory_at(root: &Path) -> Result<MachineMemory> {
    let path = root.join("proc/meminfo");
    let untold = |e| Error::io(format!("{}: say how much memory to use with --memory", path.display()), e);
    let meminfo = fs::read_to_string(&path).map_err(untold)?;
    let field = |name| {
        kib_field(&meminfo, name).ok_or_else(|| Error::corrupt(format!("{}: no {name}", path.display())))
    };
    let mut memory = MachineMemory {
        total_bytes: field("MemTotal:")?,
        available_bytes: field("MemAvailable:")?,
        limit_bytes: None,
    };
    for group in groups(root) {
        let Some(limit) = group.limit_bytes.filter(|limit| *limit < memory.total_bytes) else { continue };
        let free = limit.saturating_sub(group.used_bytes.saturating_sub(group.reclaimable_bytes));
        memory.available_bytes = memory.available_bytes.min(free);
        memory.limit_bytes = Some(memory.limit_bytes.map_or(limit, |l| l.min(limit)));
    }
    memory.total_bytes = memory.limit_bytes.unwrap_or(memory.total_bytes);
    Ok(memory)
}

/// Signs that memory is short, beside [`MachineMemory::available_bytes`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryPressure {
    /// Memory of this process that the system has moved to swap.
    pub swapped_bytes: u64,
    /// Share of the last 10 s in which something waited for memory, in percent, in the innermost control group that
    /// keeps count, else in the whole machine; `None` where the system does not tell.
    pub stalled_percent: Option<f64>,
}

/// Reads the signs; what the system does not tell is left at its default.
/// Source: the kernel's documentation of pressure stall information (psi.rst).
pub fn memory_pressure() -> MemoryPressure {
    memory_pressure_at(Path::new("/"))
}

/// Reads the signs of a Linux machine below `root`, which is `/` but for tests.
pub fn memory_pressure_at(root: &Path) -> MemoryPressure {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let mut files: Vec<_> =
        group_dirs(root).into_iter().map(|(dir, _)| dir.join("memory.pressure")).collect();
    files.push(root.join("proc/pressure/memory"));
    let stalled_percent = files.iter().find_map(|path| some_avg10(&fs::read_to_string(path).ok()?));
    MemoryPressure { swapped_bytes: kib_field(&status, "VmSwap:").unwrap_or(0), stalled_percent }
}

/// `some avg10=1.23 …` as 1.23.
fn some_avg10(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let avg10 = some.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
    avg10.parse().ok().filter(|percent: &f64| percent.is_finite())
}

/// Most memory this process has had resident at once, in bytes; `None` where the system does not tell.
pub fn rss_peak_bytes() -> Option<u64> {
    #[cfg(target_os = "macos")]
    return apple::rss_peak_bytes();
    #[cfg(not(target_os = "macos"))]
    kib_field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory that this process has resident now, in bytes; `None` where the system does not tell.
pub fn rss_bytes() -> Option<u64> {
    #[cfg(target_os = "macos")]
    return apple::rss_bytes();
    #[cfg(not(target_os = "macos"))]
    kib_field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// `name   123 kB` as bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// One control group that limits us.
struct Group {
    limit_bytes: Option<u64>,
    used_bytes: u64,
    reclaimable_bytes: u64,
}

/// Our control groups with a memory controller, the innermost first, up to the root of each hierarchy.
fn groups(root: &Path) -> Vec<Group> {
    let read = |(dir, v2): (PathBuf, bool)| if v2 { group_v2(&dir) } else { group_v1(&dir) };
    group_dirs(root).into_iter().filter_map(read).collect()
}

/// The directories of these groups, and whether they are of version 2.
fn group_dirs(root: &Path) -> Vec<(PathBuf, bool)> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let v2 = controllers.is_empty();
        let v1 = controllers.split(',').any(|c| c == "memory");
        let mount = match (v2, v1) {
            (true, _) => root.join("sys/fs/cgroup"),
            (_, true) => root.join("sys/fs/cgroup/memory"),
            _ => continue,
        };
        found.extend(ancestors(&mount, path).into_iter().map(|dir| (dir, v2)));
    }
    found
}

/// `mount/a/b`, `mount/a`, `mount`. In a container the path may name directories outside of what is mounted here:
/// they do not exist, and the mount itself is then the innermost group.
fn ancestors(mount: &Path, path: &str) -> Vec<PathBuf> {
    let mut dirs = vec![mount.to_path_buf()];
    let names = path.split('/').filter(|n| !n.is_empty() && *n != "..");
    for name in names {
        let next = dirs[dirs.len() - 1].join(name);
        dirs.push(next);
    }
    dirs.reverse();
    dirs
}

fn number(path: PathBuf) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the kernel takes back from a group before anything in it has to swap: the clean pages of the page cache, those
/// that were used lately too. Files in memory (tmpfs) are not on these lists.
fn reclaimable_bytes(dir: &Path, prefix: &str) -> u64 {
    let text = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let stat = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(prefix)?.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let [dirty, writeback] = match prefix {
        "" => [stat("file_dirty"), stat("file_writeback")],
        _ => [stat("dirty"), stat("writeback")],
    };
    let cached = stat("inactive_file").saturating_add(stat("active_file"));
    cached.saturating_sub(dirty.saturating_add(writeback))
}

fn group_v2(dir: &Path) -> Option<Group> {
    // "max" is not a number: no limit. `memory.high` throttles like a limit, so it counts as one.
    let hard = number(dir.join("memory.max"));
    let soft = number(dir.join("memory.high"));
    let limit_bytes = match (hard, soft) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let used_bytes = number(dir.join("memory.current"))?;
    Some(Group { limit_bytes, used_bytes, reclaimable_bytes: reclaimable_bytes(dir, "") })
}

fn group_v1(dir: &Path) -> Option<Group> {
    let limit_bytes = number(dir.join("memory.limit_in_bytes"));
    let used_bytes = number(dir.join("memory.usage_in_bytes"))?;
    Some(Group { limit_bytes, used_bytes, reclaimable_bytes: reclaimable_bytes(dir, "total_") })
}

#[cfg(target_os = "macos")]
mod apple {
    use std::mem::{MaybeUninit, size_of};

    use files::{Error, Result};

    use super::MachineMemory;

    /// `sysctl hw.memsize` and the free, inactive and purgeable pages of `host_statistics64`.
    pub(super) fn machine_memory() -> Result<MachineMemory> {
        let failed = |what| Error::io(what, std::io::Error::last_os_error());
        let (mut total_bytes, mut size) = (0u64, size_of::<u64>());
        // SAFETY: the name is a C string, the buffer holds the 8 bytes that this value has and `size` says so.
        let status = unsafe {
            let to = (&raw mut total_bytes).cast();
            libc::sysctlbyname(c"hw.memsize".as_ptr(), to, &raw mut size, std::ptr::null_mut(), 0)
        };
        if status != 0 {
            return Err(failed("sysctl hw.memsize"));
        }
        let mut statistics = MaybeUninit::<libc::vm_statistics64>::zeroed();
        let mut count = libc::HOST_VM_INFO64_COUNT;
        // SAFETY: the buffer is a `vm_statistics64`, and `count` is its length in the units of the call.
        let status = unsafe {
            #[allow(deprecated)] // the replacement is a crate of its own for this one call
            let host = libc::mach_host_self();
            libc::host_statistics64(
                host,
                libc::HOST_VM_INFO64,
                statistics.as_mut_ptr().cast(),
                &raw mut count,
            )
        };
        if status != libc::KERN_SUCCESS {
            return Err(failed("host_statistics64"));
        }
        // SAFETY: all-zero is a valid value of this struct of integers, and the call has filled it.
        let statistics = unsafe { statistics.assume_init() };
        let pages = [statistics.free_count, statistics.inactive_count, statistics.purgeable_count];
        let pages: u64 = pages.iter().map(|n| u64::from(*n)).sum();
        let available_bytes = (pages * rustix::param::page_size() as u64).min(total_bytes);
        Ok(MachineMemory { total_bytes, available_bytes, limit_bytes: None })
    }

    /// `ru_maxrss` of `getrusage(2)`, in bytes on this system.
    pub(super) fn rss_peak_bytes() -> Option<u64> {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the call fills a `rusage`, which is what the buffer is.
        let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
        // SAFETY: all-zero is a valid value of this struct of integers.
        let usage = unsafe { usage.assume_init() };
        (status == 0).then_some(usage.ru_maxrss as u64)
    }

    /// `pti_resident_size` of `proc_pidinfo`.
    pub(super) fn rss_bytes() -> Option<u64> {
        let mut info = MaybeUninit::<libc::proc_taskinfo>::zeroed();
        let size = size_of::<libc::proc_taskinfo>() as libc::c_int;
        // SAFETY: the call fills a `proc_taskinfo`, which is what the buffer is, and `size` is its size.
        let filled = unsafe {
            let to = info.as_mut_ptr().cast();
            libc::proc_pidinfo(libc::getpid(), libc::PROC_PIDTASKINFO, 0, to, size)
        };
        // SAFETY: all-zero is a valid value of this struct of integers.
        let info = unsafe { info.assume_init() };
        (filled == size).then_some(info.pti_resident_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   25165824 kB\n";
        for (path, content) in [("proc/meminfo", meminfo)].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn machine(files: &[(&str, &str)]) -> MachineMemory {
        machine_memory_at(root(files).path()).unwrap()
    }

    #[test]
    fn the_innermost_group_tells_its_pressure_before_the_machine() {
        let quiet = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        let mut files =
            vec![("proc/pressure/memory", quiet), ("proc/self/status", "VmRSS: 9 kB\nVmSwap:\t   12 kB\n")];
        let at = |files: &[(&str, &str)]| memory_pressure_at(root(files).path());
        assert_eq!(at(&files), MemoryPressure { swapped_bytes: 12 << 10, stalled_percent: Some(0.0) });
        files.push(("proc/self/cgroup", "4:memory:/x\n0::/a/b\n"));
        files.push(("sys/fs/cgroup/a/memory.pressure", "some avg10=12.50 avg60=1.00 avg300=0.1 total=5\n"));
        assert_eq!(at(&files).stalled_percent, Some(12.5));
        assert_eq!(at(&[("proc/pressure/memory", "some avg10=nan")]), MemoryPressure::default());
    }

    #[test]
    fn without_groups_the_machine_counts() {
        let want = MachineMemory { total_bytes: 32 * GIB, available_bytes: 24 * GIB, limit_bytes: None };
        assert_eq!(machine(&[]), want);
    }

    #[test]
    fn a_v2_ancestor_limits_and_its_file_cache_is_reclaimable() {
        let memory = machine(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "5\n"),
            ("sys/fs/cgroup/a/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/a/memory.current", "6442450944\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 2147483648\nfile 3\n"),
        ]);
        let want =
            MachineMemory { total_bytes: 8 * GIB, available_bytes: 4 * GIB, limit_bytes: Some(8 * GIB) };
        assert_eq!(memory, want);
    }

    #[test]
    fn clean_page_cache_of_a_group_is_not_taken_and_dirty_is() {
        let stat = "anon 20000000\nfile 1900000000\nfile_dirty 40000000\nfile_writeback 10000000\n\
            inactive_file 100000000\nactive_file 1800000000\n";
        let memory = machine(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "2000000000\n"),
            ("sys/fs/cgroup/memory.current", "1950000000\n"),
            ("sys/fs/cgroup/memory.stat", stat),
        ]);
        assert_eq!(memory.available_bytes, 2_000_000_000 - (1_950_000_000 - 1_850_000_000));
        let stat = "cache 1900000000\ndirty 1\ninactive_file 5\ntotal_inactive_file 100000000\n\
            total_active_file 1800000000\ntotal_dirty 40000000\ntotal_writeback 10000000\n";
        let memory = machine(&[
            ("proc/self/cgroup", "7:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1950000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", stat),
        ]);
        assert_eq!(memory.available_bytes, 2_000_000_000 - (1_950_000_000 - 1_850_000_000));
        // More dirty than there is cached of files: numbers are read one after the other.
        let memory = machine(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "2000000000\n"),
            ("sys/fs/cgroup/memory.current", "1950000000\n"),
            ("sys/fs/cgroup/memory.stat", "inactive_file 5\nfile_dirty 9\n"),
        ]);
        assert_eq!(memory.available_bytes, 50_000_000);
    }

    #[test]
    fn a_v1_limit_is_found_also_where_the_path_is_not_mounted() {
        let memory = machine(&[
            ("proc/self/cgroup", "11:cpu:/x\n7:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "6442450944\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
        ]);
        let want =
            MachineMemory { total_bytes: 6 * GIB, available_bytes: 5 * GIB, limit_bytes: Some(6 * GIB) };
        assert_eq!(memory, want);
    }

    #[test]
    fn the_v1_number_for_no_limit_is_none() {
        let memory = machine(&[
            ("proc/self/cgroup", "7:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
        ]);
        assert_eq!((memory.limit_bytes, memory.available_bytes), (None, 24 * GIB));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_answers_and_the_peak_grows_with_what_is_touched() {
        let memory = machine_memory().unwrap();
        assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes);
        let mut slab = crate::SlabMemory::anonymous(64 << 20).unwrap();
        slab.as_mut_slice().fill(1);
        assert!(rss_bytes().unwrap() >= 64 << 20);
        assert!(rss_peak_bytes().unwrap() >= 64 << 20);
        // Other tests of the process may touch more between the two.
        let rss = rss_bytes().unwrap();
        assert!((1 << 20..=rss_peak_bytes().unwrap()).contains(&rss));
    }

    #[test]
    fn a_missing_meminfo_is_named() {
        let error = machine_memory_at(Path::new("/nonexistent")).unwrap_err();
        for said in ["/nonexistent/proc/meminfo", "--memory", "No such file"] {
            assert!(error.message().contains(said), "{said:?} is not in: {error}");
        }
    }
}
