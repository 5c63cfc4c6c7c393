//! What qemu-img says about an image.

use anyhow::{Context, Result, bail};
use bak_common::command::{Finished, Program};
use bak_common::units::total;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Looking at an image takes milliseconds; a dead network file system must not hold up all guests for ever.
const PATIENCE: Duration = Duration::from_secs(120);

/// A disk image as it is now.
#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub format: String,
    pub virtual_size: u64,
    /// Bytes on disk, of the whole backing chain.
    pub allocated: u64,
    /// Another process holds QEMU's lock on it.
    pub running: bool,
    /// All files that it consists of, of the whole backing chain; absent if some of it is not in files of this host.
    files: Option<BTreeSet<PathBuf>>,
}

/// One node of what `qemu-img info --output=json` prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    filename: String,
    format: String,
    #[serde(default)]
    virtual_size: u64,
    #[serde(default)]
    actual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    children: Vec<Child>,
    #[serde(default)]
    format_specific: serde_json::Value,
}

#[derive(Debug, Deserialize)]
struct Child {
    info: Node,
}

/// What it prints of an image and its backing chain.
pub fn chain(text: &[u8]) -> Result<Vec<Node>> {
    serde_json::from_slice(text).context("cannot understand what qemu-img says about it")
}

/// Bytes on disk of a whole chain.
pub fn allocated(chain: &[Node]) -> u64 {
    total(chain.iter().map(|node| node.actual_size))
}

impl Node {
    /// The files that this node itself consists of, its backing file apart.
    pub fn files(&self) -> Vec<&str> {
        let mut files = vec![self.filename.as_str()];
        files.extend(self.children.iter().flat_map(|child| child.info.files()));
        let data = &self.format_specific["data"];
        files.extend(data["data-file"].as_str());
        files.extend(data["extents"].as_array().into_iter().flatten().filter_map(|extent| extent["filename"].as_str()));
        files
    }

    /// Another file that this one's content names.
    pub fn refers(&self) -> Option<&str> {
        self.backing_filename.as_deref().or_else(|| self.files().into_iter().find(|file| *file != self.filename))
    }
}

/// The format that a file's name says; `Some("")` if the name only says that it is an image.
pub fn named_format(path: &Path) -> Option<&'static str> {
    let format = match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "qcow2" => "qcow2",
        "raw" => "raw",
        "vmdk" => "vmdk",
        "vdi" => "vdi",
        "vhdx" => "vhdx",
        "vhd" | "vpc" => "vpc",
        "img" | "qcow" => "",
        _ => return None,
    };
    Some(format)
}

fn qemu_img_info(path: &Path, format: &str, more: &[&str]) -> Result<Finished> {
    let mut program = Program::new("qemu-img")?.timeout(PATIENCE).args(["info", "--output=json"]).args(more);
    if !format.is_empty() {
        program = program.args(["-f", format]);
    }
    let mut stdout = Vec::new();
    let mut finished = program.arg(path).run_with(|event| {
        if let bak_common::command::Event::Output(bytes) = event {
            stdout.extend_from_slice(bytes);
            anyhow::ensure!(stdout.len() < 64 << 20, "qemu-img says too much about it");
        }
        Ok(())
    })?;
    finished.stdout = stdout;
    Ok(finished)
}

fn says_locked(finished: &Finished) -> bool {
    !finished.status.success() && finished.stderr.contains("Failed to ") && finished.stderr.contains(" lock")
}

/// Whether a conversion of this file would fail on QEMU's lock. `qemu-img info` does not see a raw image's; a conversion
/// of nothing to nowhere does, and reads nothing.
fn locked(path: &Path) -> Result<bool> {
    let mut source = OsString::from("driver=raw,size=0,file.driver=file,file.filename=");
    let doubled = path.as_os_str().as_encoded_bytes().split(|byte| *byte == b',').collect::<Vec<_>>().join(&b",,"[..]);
    source.push(OsString::from_vec(doubled));
    let program =
        Program::new("qemu-img")?.timeout(PATIENCE).args(["convert", "-n", "--image-opts", "--target-image-opts"]);
    // Any other trouble is for the conversion itself to meet.
    Ok(says_locked(&program.arg(source).arg("driver=null-co,size=0").run()?))
}

/// The node of one image without its backing chain, locked or not.
fn probe(path: &Path, format: &str) -> Result<Node> {
    let text = qemu_img_info(path, format, &["-U"])?.check()?;
    serde_json::from_slice(&text).context("cannot understand what qemu-img says about it")
}

/// Whether qemu-img sees more in it than raw bytes.
pub fn has_format(path: &Path) -> bool {
    probe(path, "").is_ok_and(|node| node.format != "raw")
}

/// The other files of an image that keeps its data beside its header, as some VMDKs do.
pub fn extents(path: &Path) -> Option<Vec<PathBuf>> {
    if named_format(path)? != "vmdk" {
        return None;
    }
    let node = probe(path, "vmdk").ok()?;
    Some(node.files().into_iter().map(PathBuf::from).filter(|file| file != path).collect())
}

/// The format by which an image may be read: what its name says, or what is found in it, as long as that refers to
/// nothing else (see the module above).
fn trusted_format(path: &Path) -> Result<String> {
    if let Some(named @ ("raw" | "qcow2" | "vmdk" | "vdi" | "vhdx" | "vpc")) = named_format(path) {
        return Ok(named.to_owned());
    }
    let node = probe(path, "")?;
    if let Some(other) = node.refers().filter(|_| node.format != "raw") {
        bail!(
            "it looks like {format} and refers to {other}, which a guest with a raw disk could have written there; \
             rename it: .{format} if that is what it is, .raw if not",
            format = node.format
        );
    }
    Ok(node.format)
}

pub fn inspect(path: &Path) -> Result<Disk> {
    let format = trusted_format(path)?;
    let mut finished = qemu_img_info(path, &format, &["--backing-chain"])?;
    let unseen = says_locked(&finished);
    if unseen {
        finished = qemu_img_info(path, &format, &["--backing-chain", "-U"])?;
    }
    let chain = chain(&finished.check()?)?;
    let top = chain.first().context("qemu-img says nothing about it")?;
    let files: BTreeSet<PathBuf> = chain.iter().flat_map(Node::files).map(PathBuf::from).collect();
    let local = |path: &PathBuf| path.is_absolute() && fs::metadata(path).is_ok_and(|meta| meta.is_file());
    Ok(Disk {
        path: path.to_owned(),
        virtual_size: top.virtual_size,
        allocated: allocated(&chain),
        running: unseen || locked(path)?,
        files: files.iter().all(local).then_some(files),
        format,
    })
}

/// A text that differs once any file of the disks was written, replaced or renamed. `None` where files do not tell.
pub fn fingerprint(disks: &[Disk]) -> Result<Option<String>> {
    let mut hasher = Sha256::new();
    for disk in disks {
        let Some(files) = &disk.files else { return Ok(None) };
        hasher.update(format!("disk {}\0", files.len()));
        for path in files {
            let meta = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
            hasher.update(path.as_os_str().as_encoded_bytes());
            hasher.update(format!(
                "\0{} {}.{:09} {}.{:09} {} {}\0",
                meta.size(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
                meta.ino(),
                meta.dev()
            ));
        }
    }
    Ok(Some(bak_common::hash::hex(&hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_formats() {
        for (name, format) in [
            ("a.qcow2", Some("qcow2")),
            ("a.RAW", Some("raw")),
            ("a.vhd", Some("vpc")),
            ("a.img", Some("")),
            ("a.qcow", Some("")),
            ("a.qcow2.bak", None),
            ("qcow2", None),
            (".qcow2", None),
        ] {
            assert_eq!(named_format(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn what_a_node_consists_of() {
        let node = |text: &str| serde_json::from_str::<Node>(text).unwrap();
        let plain = node(
            r#"{"filename":"/a","format":"qcow2","children":[{"name":"file","info":{"filename":"/a","format":"file"}}]}"#,
        );
        assert_eq!(plain.refers(), None);
        let overlay = node(r#"{"filename":"/a","format":"qcow2","backing-filename":"b"}"#);
        assert_eq!(overlay.refers(), Some("b"));
        let data = node(r#"{"filename":"/a","format":"qcow2","format-specific":{"data":{"data-file":"d"}}}"#);
        assert_eq!(data.refers(), Some("d"));
        let extents = node(
            r#"{"filename":"/a","format":"vmdk","format-specific":{"data":{"extents":[{"filename":"/a-flat"}]}}}"#,
        );
        assert_eq!(extents.files(), ["/a", "/a-flat"]);
    }
}
