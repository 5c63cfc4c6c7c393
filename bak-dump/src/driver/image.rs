//! Plain disk images of QEMU, without any manager: a guest is one image file, or several that the configuration declares
//! as one guest's disks.
//!
//! What runs is known by QEMU's own lock on the image: whoever holds it is writing. `-U`, which bypasses that lock, is
//! used for looking at sizes only, never for dumping. While `qemu-img convert` reads an image it holds the lock the other
//! way round, so that no guest can start on it; what other programs write meanwhile shows in the files' times.
//!
//! **Formats.** What lies in a raw image is the guest's to write, so it must never decide how the host reads it: a guest
//! could write the header of another format there, whose backing file is any file of the host. Hence a name that says the
//! format is believed (`.raw`, `.qcow2`, …); any other image is probed, and refused if it is not raw and refers to
//! another file.
//!
//! An image on which others are based is listed like any other: to leave a guest out silently would be worse than to dump
//! a template once more.

pub(super) mod convert;
mod find;
pub mod info;

use anyhow::{Context, Result, ensure};
use bak_common::config::{Config, ImageGuest};
use bak_common::record::{Guest, State};
use bak_common::report::Kind;
use bak_common::units::total;
use serde_json::json;
use std::sync::OnceLock;

use super::{Driver, Job, Listed, Made, Order, Running, Trial};
use find::{Found, Spec};
use info::Disk;

pub const NAME: &str = "image";

/// How dumps are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QCOW2 with clusters compressed by zstd.
    Qcow2,
    /// QCOW2 without compression.
    Plain,
    Raw,
}

impl Format {
    pub fn new(text: &str) -> Result<Self> {
        match text {
            "qcow2" => Ok(Self::Qcow2),
            "qcow2-plain" => Ok(Self::Plain),
            "raw" => Ok(Self::Raw),
            other => Err(Kind::Usage.says(format!(
                "`{}` is no format of dumps; there are: qcow2, qcow2-plain, raw",
                bak_common::name::printable(other)
            ))),
        }
    }
}

/// The driver.
pub struct Image {
    sources: Vec<String>,
    declared: Vec<ImageGuest>,
    format: Format,
    node: String,
    prefix: Option<String>,
    found: OnceLock<Found>,
}

impl Image {
    pub fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            sources: config.image.images.clone(),
            declared: config.image.guest.clone(),
            format: config.image.format.as_deref().map_or(Ok(Format::Qcow2), Format::new)?,
            node: config.node(),
            prefix: config.prefix.clone(),
            found: OnceLock::new(),
        })
    }

    /// Which images make up which guests. Looked up once a run; the images themselves are looked at again and again.
    fn found(&self) -> &Found {
        self.found.get_or_init(|| find::find(&self.sources, &self.declared, self.prefix.as_deref()))
    }

    fn spec(&self, guest: &Guest) -> Result<&Spec> {
        self.found().specs.iter().find(|spec| spec.vm == guest.vm).context("its images are gone")
    }

    fn guest(&self, spec: &Spec) -> Result<Guest> {
        let disks = inspect(spec)?;
        let mut guest = Guest::new(spec.vm.clone(), "qemu", NAME);
        guest.name.clone_from(&spec.name);
        guest.node = Some(self.node.clone());
        guest.tags.clone_from(&spec.tags);
        guest.pool.clone_from(&spec.pool);
        guest.state = if disks.iter().any(|disk| disk.running) { State::Running } else { State::Stopped };
        guest.size = Some(total(disks.iter().map(|disk| disk.allocated)));
        guest.fingerprint = info::fingerprint(&disks)?;
        let shown = |disk: &Disk| json!({"path": disk.path, "format": disk.format, "virtual_size": disk.virtual_size});
        guest.extra.insert("disks".into(), disks.iter().map(shown).collect());
        Ok(guest)
    }
}

fn inspect(spec: &Spec) -> Result<Vec<Disk>> {
    let look =
        |path: &std::path::PathBuf| info::inspect(path).with_context(|| format!("cannot read {}", path.display()));
    spec.disks.iter().map(look).collect()
}

impl Driver for Image {
    fn name(&self) -> &'static str {
        NAME
    }

    fn list(&self) -> Result<Listed> {
        if self.sources.is_empty() && self.declared.is_empty() {
            return Err(Kind::Usage
                .says("no images: name them by --images DIR, or `images` under [image] in the configuration"));
        }
        // Said once here rather than for every image.
        drop(bak_common::command::Program::new("qemu-img")?);
        let mut listed = Listed::default();
        for (what, why) in &self.found().failed {
            listed.failed.push((what.clone(), anyhow::anyhow!("{why}")));
        }
        for spec in &self.found().specs {
            match self.guest(spec) {
                Ok(guest) => listed.guests.push(guest),
                Err(error) => listed.failed.push((spec.vm.to_string(), error)),
            }
        }
        Ok(listed)
    }

    fn look(&self, guest: &Guest) -> Result<Guest> {
        self.guest(self.spec(guest)?)
    }

    fn dump(&self, job: &Job) -> Result<Made> {
        let disks = inspect(self.spec(job.guest)?)?;
        if disks.iter().any(|disk| disk.running) {
            return Err(Running.into());
        }
        let before = info::fingerprint(&disks)?;
        let files = convert::dump(&disks, self.format, job)?;
        // Images whose times tell nothing (block devices, other hosts) are covered by QEMU's lock alone.
        let after = info::fingerprint(&disks)?;
        ensure!(before == after, "was changed while it was dumped");
        Ok(Made { files, mode: Some("stop".into()), fingerprint: before, ..Made::default() })
    }

    fn restore(&self, order: &Order) -> Result<Vec<String>> {
        super::image_restore::restore(order)
    }

    fn drill(&self, trial: &Trial) -> Result<String> {
        super::image_drill::drill(trial)
    }
}
