//! Who writes to a file, by what the kernel tells in /proc.

use bak_common::store::Inode;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

/// Which of these files any process of this machine that we may look at has open for writing. Only root sees all.
pub fn writers(wanted: &HashSet<Inode>) -> HashSet<Inode> {
    let mut found = HashSet::new();
    let Ok(processes) = std::fs::read_dir("/proc") else { return found };
    let is_number = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
    for process in processes.flatten().filter(|entry| is_number(&entry.file_name())) {
        // Gone, or somebody else's.
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        for fd in open.flatten() {
            let Ok(file) = std::fs::metadata(fd.path()) else { continue };
            let inode = (file.dev(), file.ino());
            if wanted.contains(&inode) && writes(&process.path().join("fdinfo").join(fd.file_name())) {
                found.insert(inode);
            }
        }
    }
    found
}

/// Whether an open file may be written to by what the kernel says of it; where it says nothing, it may.
fn writes(info: &std::path::Path) -> bool {
    let text = std::fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    // Octal; the last two bits are how it was opened, 0 to read only.
    flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_none_or(|flags| flags & 3 != 0)
}
