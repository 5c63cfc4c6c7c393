//! An OVA: a tar of a machine's description, its disks, and a manifest with a checksum of each (`SHA256(disk.vmdk)= …`,
//! or as VirtualBox writes it, `SHA256 (disk.vmdk) = …`).
//! One pass over the file, as the manifest may come anywhere in it.

use anyhow::{Context, Result};
use bak_common::hash::hex;
use bak_common::units::show_size;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use super::format::Found;

/// The longest manifest that is read: some ten thousand files.
const MANIFEST_MAX: u64 = 1 << 20;

/// A file's checksums by the names of their algorithms.
type Sums = BTreeMap<&'static str, String>;

pub fn check(file: impl Read, tick: &dyn Fn() -> Result<()>) -> Result<Found> {
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    let (mut manifest, mut too_long) = (None::<String>, None);
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, file));
    let mut buffer = vec![0; 1 << 20];
    for entry in archive.entries().context("cannot read it")? {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(error) => return Ok(Found::Bad(format!("it is no whole tar archive: {error}"))),
        };
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // A header of half a kilobyte may claim any number of zeros, which would all be hashed.
        if entry.header().entry_type().is_gnu_sparse() {
            return Ok(Found::Bad(format!("{name} in it is a sparse file, as no OVA has")));
        }
        if name.ends_with(".mf") && entry.size() > MANIFEST_MAX {
            too_long = Some(format!("its manifest of {} is too long to be read", show_size(entry.size())));
            continue;
        }
        if name.ends_with(".mf") {
            let mut text = String::new();
            if let Err(error) = entry.by_ref().take(MANIFEST_MAX).read_to_string(&mut text) {
                return Ok(Found::Bad(format!("its manifest cannot be read: {error}")));
            }
            manifest = Some(text);
            continue;
        }
        let (mut sha1, mut sha256, mut bytes) = (Sha1::new(), Sha256::new(), 0_u64);
        loop {
            match entry.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    bytes += count as u64;
                    sha1.update(&buffer[..count]);
                    sha256.update(&buffer[..count]);
                }
                Err(error) => return Ok(Found::Bad(format!("it ends within {name}: {error}"))),
            }
            tick()?;
        }
        if bytes != entry.size() {
            return Ok(Found::Bad(format!("it ends within {name}")));
        }
        sums.insert(name, [("SHA1", hex(&sha1.finalize())), ("SHA256", hex(&sha256.finalize()))].into());
    }
    Ok(match manifest {
        None if too_long.is_some() => Found::Unchecked(too_long.unwrap_or_default()),
        None if sums.is_empty() => Found::Bad("it holds nothing".into()),
        None => Found::Plausible("a tar archive without a manifest".into()),
        Some(text) => judge(&text, &sums),
    })
}

/// Compares what a manifest says with what is there.
fn judge(manifest: &str, sums: &BTreeMap<String, Sums>) -> Found {
    let mut compared = 0;
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // A name may hold anything, so the line is read from its ends.
        let parsed = line.rsplit_once('=').and_then(|(head, sum)| {
            let (algorithm, name) = head.trim_end().strip_suffix(')')?.split_once('(')?;
            Some((algorithm.trim_end(), name, sum.trim()))
        });
        let Some((algorithm, name, expected)) = parsed else {
            return Found::Bad(format!("a line of its manifest cannot be read: {line}"));
        };
        let Some(there) = sums.get(name) else { return Found::Bad(format!("{name} of its manifest is not in it")) };
        match there.get(algorithm.to_ascii_uppercase().as_str()) {
            Some(sum) if *sum == expected.to_ascii_lowercase() => compared += 1,
            Some(sum) => {
                return Found::Bad(format!("{name} in it is damaged: its {algorithm} is {sum} instead of {expected}"));
            }
            None => {}
        }
    }
    match compared {
        0 => Found::Plausible("a manifest with unknown checksums".into()),
        _ if compared < sums.len() => Found::Plausible("its manifest, which does not name every file".into()),
        _ => Found::Sound("its manifest".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests() {
        let sums: BTreeMap<String, Sums> =
            [("a.ovf".to_owned(), [("SHA1", "11".to_owned()), ("SHA256", "22".to_owned())].into())].into();
        let table = [
            ("SHA256(a.ovf)= 22\n", Found::Sound("its manifest".into())),
            ("SHA1 (a.ovf)= 11\r\n\n", Found::Sound("its manifest".into())),
            ("SHA256 (a.ovf) = 22\n", Found::Sound("its manifest".into())),
            ("SHA256 (a.ovf) = 23\n", Found::Bad("a.ovf in it is damaged: its SHA256 is 22 instead of 23".into())),
            ("SHA256 (a (1)=.ovf) = 22\n", Found::Bad("a (1)=.ovf of its manifest is not in it".into())),
            ("SHA256 a.ovf = 22\n", Found::Bad("a line of its manifest cannot be read: SHA256 a.ovf = 22".into())),
            ("SHA256(a.ovf)= 23\n", Found::Bad("a.ovf in it is damaged: its SHA256 is 22 instead of 23".into())),
            ("SHA256(b.vmdk)= 22\n", Found::Bad("b.vmdk of its manifest is not in it".into())),
            ("SHA512(a.ovf)= 33\n", Found::Plausible("a manifest with unknown checksums".into())),
            ("nonsense\n", Found::Bad("a line of its manifest cannot be read: nonsense".into())),
        ];
        for (text, found) in table {
            assert_eq!(judge(text, &sums), found, "{text}");
        }
    }
}
