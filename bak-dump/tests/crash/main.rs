//! bak-dump, bak-verify and bak-restore, killed at every system call, and with calls that fail: theirs, and those of qemu-img.

#[path = "../toy/mod.rs"]
mod toy;

mod back;
mod dump;
mod unsaid;

use bak_tests::Kit;

/// Files in a store that are none of bak's.
fn foreign(kit: &Kit) {
    for name in ["web/readme.txt", "web/web-20261120T120000Z-copy.raw", "lost.qcow2", ".other/x"] {
        kit.write(&format!("store/{name}"), name);
    }
}
