//! One add or one remove of a store and nothing else, so that a test can kill it at every system call.
//!
//!     bak-test-store add STORE VM STARTED BYTES
//!     bak-test-store remove STORE ID
//!     bak-test-store recover STORE

use anyhow::{Context, Result, bail};
use bak_common::calendar::Time;
use bak_common::name::{DumpId, GuestName, Stem};
use bak_common::record::{Dump, FileEntry, Guest};
use bak_common::report::{self, Report};
use bak_common::store::Store;
use std::path::Path;
use std::time::Duration;

fn main() -> std::process::ExitCode {
    report::main("bak-test-store", run)
}

fn run() -> Result<u8> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let report = Report::new("bak-test-store");
    let wait = Duration::from_secs(30);
    match args[..] {
        ["add", store, vm, started, bytes] => {
            let store = Store::open(Path::new(store))?;
            let started: Time = started.parse()?;
            let guest = Guest::new(GuestName::new(vm)?, "qemu", "image");
            let stem = Stem::of(&guest.vm, started);
            let work = store.lock(wait, &report)?.begin(&stem, &guest.vm.encoded())?;
            let mut dump = Dump::of(&guest, started, stem.clone());
            let content = bak_tests::noise(7, bytes.parse()?);
            for part in ["disk0.raw", "disk1.raw"] {
                let name = format!("{stem}.{part}");
                std::fs::write(work.path().join(&name), &content)?;
                work.open_file(&name)?.sync_all()?;
                let sha256 = Some(bak_tests::sha256_file(&work.path().join(&name)));
                dump.files.push(FileEntry { name, bytes: content.len() as u64, sha256, extra: Default::default() });
            }
            dump.bytes = 2 * content.len() as u64;
            store.lock(wait, &report)?.publish(work, &dump)?;
        }
        ["remove", store, id] => {
            let store = Store::open(Path::new(store))?;
            let locked = store.lock(wait, &report)?;
            let listing = store.list();
            let entry = listing.find(&DumpId::new(id)?).context("there is no such dump")?;
            locked.remove(&[entry]).into_iter().collect::<Result<()>>()?;
        }
        ["recover", store] => drop(Store::open(Path::new(store))?.lock(wait, &report)?),
        _ => bail!("see the source"),
    }
    Ok(report.finish(|failed| format!("{failed} failed")))
}
