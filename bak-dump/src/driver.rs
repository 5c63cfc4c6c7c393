//! How a kind of guest is listed, dumped and restored.
//!
//! A driver knows its hypervisor and nothing of stores: it is given a work directory to make files in, and says what it
//! made. The order of guests, locks, space, publishing and failures are bak-dump's.

use anyhow::{Error, Result, bail};
use bak_common::calendar::Time;
use bak_common::config::Config;
use bak_common::far::LimitReached;
use bak_common::lock::Lock;
use bak_common::name::{GuestName, Stem};
use bak_common::record::{Dump, FileEntry, Guest};
use bak_common::report::Kind;
use bak_common::stop::Stopped;
use serde_json::{Map, Value};
use std::fmt;
use std::path::{Path, PathBuf};

pub mod exec;
pub mod image;
mod image_drill;
pub mod image_restore;
pub mod vbox;
pub mod vzdump;

/// The drivers that are built in.
const KNOWN: [&str; 3] = [image::NAME, vbox::NAME, vzdump::NAME];

/// The guests that a driver found; those that it could not read are failures of their own.
#[derive(Debug, Default)]
pub struct Listed {
    pub guests: Vec<Guest>,
    /// What it would be called (or what it is), and why it is no guest.
    pub failed: Vec<(String, anyhow::Error)>,
}

/// Why a guest could not be dumped now: it runs, and this driver cannot dump it running. To be tried again later.
#[derive(Debug)]
pub struct Running;

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is running; it can be dumped only while it is stopped")
    }
}

impl std::error::Error for Running {}

/// What is wrong is here, and says nothing of the dump: no room, no number that is free, what could not be run or removed.
#[derive(Debug)]
pub struct Here(String);

impl Here {
    pub fn says(text: String) -> Error {
        Error::new(Self(text))
    }

    /// `error` as such a one, but for what only ends a run.
    pub fn of(error: Error) -> Error {
        let ends = error.is::<Stopped>() || error.is::<LimitReached>();
        if ends || error.is::<Self>() { error } else { Self::says(format!("{error:#}")) }
    }
}

impl fmt::Display for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Here {}

/// This dump can never be brought back, wherever and whenever it is tried.
#[derive(Debug)]
pub struct Hopeless(String);

impl Hopeless {
    pub fn says(text: String) -> Error {
        Error::new(Self(text))
    }
}

impl fmt::Display for Hopeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hopeless {}

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
    /// The guest's fingerprint as it was dumped: it may have been used since it was listed.
    pub fingerprint: Option<String>,
    /// To be kept whatever the retention rules say; the driver has marked it so in its hypervisor's way.
    pub protected: bool,
    /// Further fields for the dump's record.
    pub extra: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Good,
    Bad,
    Unknown,
}

impl Decision {
    /// As records spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::Good => "good",
            Decision::Bad => "bad",
            Decision::Unknown => "unknown",
        }
    }
}

/// What a driver found about the content of a dump, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    pub why: String,
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
    /// The files are here. Else they are still to be fetched, and only what needs no look into them is planned.
    pub there: bool,
    /// A lock that what is started must hold, too.
    pub hold: Option<&'a Lock>,
    pub tick: &'a (dyn Fn(Progress) -> Result<()> + Sync),
}

/// A dump to be brought back on trial, where it is in nobody's way. Its files have been checked.
pub struct Trial<'a> {
    pub dump: &'a Dump,
    pub files: &'a [PathBuf],
    /// An empty directory of ours. All that is left in it is removed.
    pub dir: &'a Path,
    /// Where to, as the driver understands it.
    pub to: Option<&'a Path>,
    /// Marks what is made as this trial's, and as nobody else's: letters and digits.
    pub token: &'a str,
    /// Notes what is about to be made outside of `dir`, so that it can be found if we are killed. To be called before.
    pub note: &'a dyn Fn(&Map<String, Value>) -> Result<()>,
    pub hold: &'a Lock,
    pub tick: &'a (dyn Fn(Progress) -> Result<()> + Sync),
}

impl<'a> Trial<'a> {
    /// The order to restore it, as a guest of this name if it becomes one.
    pub fn order(&'a self, name: Option<&'a GuestName>) -> Order<'a> {
        Order {
            dump: self.dump,
            files: self.files,
            name,
            to: self.to,
            format: None,
            force: false,
            dry_run: false,
            there: true,
            hold: Some(self.hold),
            tick: self.tick,
        }
    }
}

/// What became of that which a killed trial had noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cleared {
    /// It is gone, or was never made.
    Gone,
    /// It may be somebody else's: what to look at.
    Unsure(String),
}

/// A kind of hypervisor.
pub trait Driver: Sync {
    /// What it is called in configuration and records.
    fn name(&self) -> &str;

    fn list(&self) -> Result<Listed>;

    /// One guest as it is now, listed before.
    fn look(&self, guest: &Guest) -> Result<Guest> {
        let listed = self.list()?;
        if let Some(found) = listed.guests.into_iter().find(|found| found.key() == guest.key()) {
            return Ok(found);
        }
        match listed.failed.into_iter().find(|(what, _)| what == guest.vm.as_str()) {
            Some((_, error)) => Err(error),
            None => bail!("it is gone"),
        }
    }

    /// Below which directory of the store this driver's dumps lie: `<vm>/`, unless a manager wants them elsewhere.
    fn place(&self, guest: &Guest) -> String {
        guest.vm.encoded()
    }

    fn stem(&self, guest: &Guest, started: Time) -> Stem {
        Stem::of(&guest.vm, started)
    }

    /// Fails with [`Running`] if the guest turns out to run and cannot be dumped so.
    fn dump(&self, job: &Job) -> Result<Made>;

    /// What it makes of a dump whose files, in `dir`, are as they were when it was made; nothing if it has no opinion. An error
    /// says what could not be run or read, which proves nothing.
    fn verify(&self, _dump: &Dump, _dir: &Path, _tick: &dyn Fn() -> Result<()>) -> Result<Option<Verdict>> {
        Ok(None)
    }

    /// Returns what it made, as paths or names for the user.
    fn restore(&self, order: &Order) -> Result<Vec<String>>;

    /// Brings a dump back on trial, never starts it, checks it, and removes what it made, whatever happens. What was looked at; an
    /// error says what is wrong with the dump, or why it could not be brought back; a [`Here`], what was wrong but with the dump.
    fn drill(&self, _trial: &Trial) -> Result<String> {
        bail!("the driver {} cannot bring dumps back on trial", self.name())
    }

    /// Why its dumps cannot be brought back on trial, if that is so.
    fn cannot_drill(&self) -> Option<String> {
        None
    }

    /// Removes what a killed trial with this token has left, by its note, if it surely is that.
    fn clear(&self, _token: &str, _note: &Map<String, Value>) -> Result<Cleared> {
        Ok(Cleared::Gone)
    }
}

/// The arguments that say which driver, and what it looks at.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Guests")]
pub struct DriverArgs {
    /// How guests are listed and dumped: image, vbox, vzdump, or NAME where there is a program bak-driver-NAME [default: the
    /// configuration's; image if images are named]
    #[arg(long, value_name = "NAME")]
    pub driver: Option<String>,
    /// Disk images, each a guest: a directory, a file or a pattern; may be repeated. Replaces the configuration's
    #[arg(long, value_name = "DIR|GLOB")]
    pub images: Vec<String>,
}

impl DriverArgs {
    /// Whether any guests are asked for.
    pub fn is_named(&self, config: &Config) -> bool {
        let images = || !self.images.is_empty() || !config.image.images.is_empty() || !config.image.guest.is_empty();
        self.name(config).is_some_and(|name| name != image::NAME || images())
    }

    fn name<'a>(&'a self, config: &'a Config) -> Option<&'a str> {
        let images = !config.image.images.is_empty() || !config.image.guest.is_empty();
        let by_images = |given: bool| given.then_some(image::NAME);
        let name = self.driver.as_deref().or(by_images(!self.images.is_empty()));
        name.or(config.driver.as_deref()).or(by_images(images))
    }

    /// The driver that these and `config` ask for; what these say is laid over `config`.
    pub fn driver(&self, config: &mut Config) -> Result<Box<dyn Driver>> {
        if !self.images.is_empty() {
            config.image.images.clone_from(&self.images);
            config.image.guest.clear();
        }
        match self.name(config).map(str::to_owned) {
            Some(name) => find(&name, config),
            None => Err(Kind::Usage
                .says("no guests are configured: name disk images by --images DIR, or a driver (see --help)")),
        }
    }
}

/// The driver called `name`.
pub fn find(name: &str, config: &Config) -> Result<Box<dyn Driver>> {
    match name {
        image::NAME => Ok(Box::new(image::Image::new(config)?)),
        vbox::NAME => Ok(Box::new(vbox::Vbox::new(config))),
        vzdump::NAME => Ok(Box::new(vzdump::Vzdump::new(config)?)),
        other => match exec::Exec::installed(other, config)? {
            Some(driver) => Ok(Box::new(driver)),
            None => Err(Kind::Usage.says(format!(
                "there is no driver `{0}`: it is not built in ({1}), and there is no program bak-driver-{0} on PATH",
                bak_common::name::printable(other),
                KNOWN.join(", ")
            ))),
        },
    }
}

/// A word as a shell reads it.
pub(crate) fn shown(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '=' | ':' | '@');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_of_a_shell() {
        assert_eq!(["a-b", "it's", ""].map(super::shown), ["a-b", r"'it'\''s'", "''"]);
    }
}
