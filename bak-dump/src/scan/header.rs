//! The guest's configuration in the header of a VMA archive: who a machine is, beyond its number. Only what is cheap: the
//! first bytes of a plain archive, the first frame of one that zstd packed.
//!
//! The header is 12 KiB, its numbers big-endian: the magic, and where a buffer of texts begins, how long it is, and where all
//! ends; from byte 2044 on 256 offsets of names in that buffer, then 256 of what is called so. Each text has its length before
//! it, two bytes, little-endian; names end in NUL.

use std::fs::File;
use std::io::Read;

use crate::driver::vzdump::Conf;

const MAGIC: &[u8] = b"VMA\0";
const HEAD: usize = 12_288;
/// Proxmox writes at most eight clusters.
const HEAD_MAX: usize = 8 * 65_536;
const NAMES: usize = 2044;
const CONFIGS: usize = 256;
const CONF: &[u8] = b"qemu-server.conf\0";

/// What the archive called `name` has in its header; nothing where that is not cheap, or not sound.
pub fn conf(name: &str, file: File) -> Option<Conf> {
    let head = if name.ends_with(".vma") {
        head(file)
    } else if name.ends_with(".vma.zst") {
        head(zstd::stream::read::Decoder::new(file).ok()?)
    } else {
        None
    };
    let head = head?;
    let text = find(&head)?;
    Some(Conf::parse(&String::from_utf8_lossy(text)))
}

/// The bytes of a header.
fn head(mut input: impl Read) -> Option<Vec<u8>> {
    let mut head = vec![0; HEAD];
    input.read_exact(&mut head).ok()?;
    let size = number(&head, 56)?;
    if !head.starts_with(MAGIC) || !(HEAD..=HEAD_MAX).contains(&size) {
        return None;
    }
    head.resize(size, 0);
    input.read_exact(&mut head[HEAD..]).ok()?;
    Some(head)
}

fn number(head: &[u8], at: usize) -> Option<usize> {
    let bytes = head.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(bytes)).ok()
}

/// The configuration in a whole header.
fn find(head: &[u8]) -> Option<&[u8]> {
    let (start, size) = (number(head, 48)?, number(head, 52)?);
    let buffer = head.get(start..start.checked_add(size)?)?;
    let text = |at: usize| {
        let length = usize::from(u16::from_le_bytes(buffer.get(at..at.checked_add(2)?)?.try_into().ok()?));
        buffer.get(at + 2..(at + 2).checked_add(length)?)
    };
    let at = (0..CONFIGS).find(|at| {
        let name = number(head, NAMES + 4 * at).filter(|offset| *offset > 0);
        name.and_then(text) == Some(CONF)
    })?;
    text(number(head, NAMES + 4 * (CONFIGS + at))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    /// A header as vma-writer.c makes it.
    fn archive(conf: &str) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        let mut blob = vec![0_u8];
        let mut add = |text: &[u8]| {
            let at = blob.len() as u32;
            blob.extend((text.len() as u16).to_le_bytes());
            blob.extend(text);
            at
        };
        let (name, data) = (add(CONF), add(conf.as_bytes()));
        head[..4].copy_from_slice(MAGIC);
        for (at, value) in [
            (4, 1),
            (48, HEAD as u32),
            (52, blob.len() as u32),
            (56, (HEAD + blob.len()) as u32),
            (NAMES, name),
            (NAMES + 4 * CONFIGS, data),
        ] {
            head[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        head.extend(blob);
        head
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn who_a_machine_is() {
        let mut bytes = archive("name: web\nsmbios1: uuid=6D0C1C5E-0000-4000-8000-000000000001\n[snap]\nname: old\n");
        bytes.extend([7; 5000]);
        let uuid = |name: &str, bytes: &[u8]| conf(name, file(bytes)).and_then(|conf| conf.uuid());
        assert_eq!(uuid("a.vma", &bytes).as_deref(), Some("6d0c1c5e-0000-4000-8000-000000000001"));
        let packed = zstd::encode_all(&bytes[..], 3).unwrap();
        assert_eq!(uuid("a.vma.zst", &packed), uuid("a.vma", &bytes));
        // Cut off behind the header, which is no affair of ours; and within it.
        assert!(uuid("a.vma.zst", &packed[..packed.len() - 1]).is_none());
        assert!(uuid("a.vma", &bytes[..HEAD + 10]).is_none());
        assert!(uuid("a.vma.gz", &bytes).is_none());
    }

    #[test]
    fn no_header_is_trusted() {
        let sound = archive("smbios1: uuid=x\n");
        for at in [
            0,
            48,
            49,
            50,
            51,
            52,
            54,
            55,
            56,
            57,
            58,
            NAMES,
            NAMES + 1,
            NAMES + 3,
            NAMES + 4 * CONFIGS,
            NAMES + 4 * CONFIGS + 3,
        ] {
            let mut bytes = sound.clone();
            bytes[at] = bytes[at].wrapping_add(200);
            let found = conf("a.vma", file(&bytes)).and_then(|conf| conf.uuid());
            assert_eq!(found, None, "byte {at}");
        }
        assert!(conf("a.vma", file(b"")).is_none());
    }
}
