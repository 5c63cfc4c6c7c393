//! How a kind of guest is listed, dumped and restored.
//!
//! A driver knows its hypervisor and nothing of stores: it is given a work directory to make files in, and says what it
//! made. The order of guests, locks, space, hashes of what was asked for, publishing and failures are bak-dump's.

pub mod image_restore;

use anyhow::Result;
use bak_common::lock::Lock;
use bak_common::name::{GuestName, Stem};
use bak_common::record::{Dump, FileEntry, Guest};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The guests that a driver found; those that it could not read are failures of their own.
#[derive(Debug, Default)]
pub struct Listed {
    pub guests: Vec<Guest>,
    /// What it is, and why it is no guest.
    pub failed: Vec<(String, anyhow::Error)>,
}

/// One dump to be made.
pub struct Job<'a> {
    pub guest: &'a Guest,
    /// Every file made is called stem, a dot, and an extension.
    pub stem: &'a Stem,
    /// An empty directory on the store's file system. What is left in it and not named in [`Made`] is removed.
    pub dir: &'a Path,
    /// Locks that every program started for this dump must hold: see `Program::holding`.
    pub locks: &'a [&'a Lock],
    /// To be called several times a second; an error means: stop, and fail with it.
    pub tick: &'a (dyn Fn(Progress) -> Result<()> + Sync),
}

/// How far a dump has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// From 0 to 1.
    pub done: f64,
}

/// What a driver made: complete, flushed to disk, hashed. May be no files at all, where the store keeps the dump itself.
#[derive(Debug, Default)]
pub struct Made {
    pub files: Vec<FileEntry>,
    /// How it was really made: `snapshot`, `suspend`, `stop`, …
    pub mode: Option<String>,
    /// Further fields for the dump's record.
    pub extra: Map<String, Value>,
}

/// One dump to be brought back. Its files have been checked.
pub struct Order<'a> {
    pub dump: &'a Dump,
    /// The dump's files, in its order.
    pub files: &'a [PathBuf],
    /// What the guest shall be called; its old name if absent.
    pub name: Option<&'a GuestName>,
    /// Where to, as the driver understands it; a directory or a file for images.
    pub to: Option<&'a Path>,
    /// The format of what is written, as the driver understands it; the driver's choice if absent.
    pub format: Option<&'a str>,
    /// May replace what is there.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    pub tick: &'a (dyn Fn(Progress) -> Result<()> + Sync),
}

/// A kind of hypervisor.
pub trait Driver: Sync {
    /// What it is called in configuration and records.
    fn name(&self) -> &'static str;

    fn list(&self) -> Result<Listed>;

    /// Below which directory of the store this driver's dumps lie: `<vm>/`, unless a manager wants them elsewhere.
    fn place(&self, guest: &Guest) -> String {
        guest.vm.encoded()
    }

    fn stem(&self, guest: &Guest, started: bak_common::calendar::Time) -> Stem {
        Stem::of(&guest.vm, started)
    }

    fn dump(&self, job: &Job) -> Result<Made>;

    /// Returns what it made, as paths or names for the user.
    fn restore(&self, order: &Order) -> Result<Vec<String>>;
}
