//! Archives as Proxmox's own jobs leave them.
#![allow(dead_code, reason = "each test file uses some of it")]

use bak_tests::{Kit, Ran, noise};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

/// 2026-11-20T02:00:02Z, when these backups began, as the kernel and as Proxmox has it.
pub const BEGAN: u64 = 1_795_140_002;
pub const DATE: &str = "2026_11_20-02_00_02";
pub const NOW: &str = "2026-11-20T12:00:00Z";

/// What vzdump logs; `end` is the last line without its date.
pub fn log(kind: &str, id: u32, archive: &str, end: &str) -> String {
    let name = if kind == "qemu" { "VM Name: web" } else { "CT Name: ct" };
    let lines = [
        format!("INFO: Starting Backup of VM {id} ({kind})"),
        "INFO: status = running".into(),
        format!("INFO: {name}"),
        "INFO: backup mode: snapshot".into(),
        "INFO: ionice priority: 7".into(),
        format!("INFO: creating vzdump archive '/var/lib/vz/dump/{archive}'"),
        "INFO:  12% (1.0 GiB of 8.0 GiB) in 9s, read: 120.0 MiB/s, write: 60.0 MiB/s".into(),
        "INFO: transferred 8.00 GiB in 60 seconds (136.5 MiB/s)".into(),
        end.to_owned(),
    ];
    lines.iter().map(|line| format!("2026-11-20 02:01:07 {line}\n")).collect()
}

/// An archive of so many bytes with its log, written when it says; its name.
pub fn archive(kit: &Kit, kind: &str, id: u32, ending: &str, bytes: usize) -> String {
    let end = format!("INFO: Finished Backup of VM {id} (00:01:05)");
    archive_with(kit, (kind, id, ending), &noise(id.into(), bytes), &end)
}

/// The same with this content and this last line of its log.
pub fn archive_with(kit: &Kit, (kind, id, ending): (&str, u32, &str), content: &[u8], end: &str) -> String {
    let stem = format!("vzdump-{kind}-{id}-{DATE}");
    let name = format!("{stem}{ending}");
    kit.write(&format!("store/{name}"), content);
    kit.write(&format!("store/{stem}.log"), log(kind, id, &name, end));
    written(kit, &name, BEGAN + 65);
    written(kit, &format!("{stem}.log"), BEGAN + 66);
    name
}

/// Sets when a file of the store was written, in Unix seconds.
pub fn written(kit: &Kit, name: &str, at: u64) {
    let file = File::options().append(true).open(kit.store().join(name)).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(at)).unwrap();
}

/// Runs bak-scan on the store, in the night after.
pub fn scan(kit: &Kit, args: &[&str]) -> Ran {
    kit.run("bak-scan", [&["--store", "store", "--now", NOW], args].concat())
}

/// The visible names in the store.
pub fn names(kit: &Kit) -> Vec<String> {
    let entries = fs::read_dir(kit.store()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

pub fn path(kit: &Kit, name: &str) -> PathBuf {
    kit.store().join(name)
}

/// A plain VMA archive, as vma-writer.c begins it, of a machine with this configuration.
pub fn vma(conf: &str) -> Vec<u8> {
    let mut blob = vec![0_u8];
    let mut add = |text: &[u8]| {
        let at = u32::try_from(blob.len()).unwrap();
        blob.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        blob.extend(text);
        at
    };
    let (name, data) = (add(b"qemu-server.conf\0"), add(conf.as_bytes()));
    let mut head = vec![0; 12_288];
    let size = u32::try_from(blob.len()).unwrap();
    let numbers = [(0, 0x564d_4100), (4, 1), (48, 12_288), (52, size), (56, 12_288 + size), (2044, name), (3068, data)];
    for (at, number) in numbers {
        head[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    head.extend(blob);
    head.extend(noise(1, 200_000));
    head
}
