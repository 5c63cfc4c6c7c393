//! The guest's configuration in the header of a VMA archive: who a machine is, beyond its number. Only what is cheap: the
//! first bytes of a plain archive, the first frame of one that zstd packed.
//!
//! The header is 12 KiB, its numbers big-endian: the magic, and where a buffer of texts begins, how long it is, and where all
//! ends; from byte 2044 on 256 offsets of names in that buffer, then 256 of what is called so. Each text has its length before
//! it, two bytes, little-endian; names end in NUL.

use std::os::unix::fs::FileExt;
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective};

use crate::driver::vzdump::Conf;

const MAGIC: &[u8] = b"VMA\0";
const HEAD: usize = 12_288;
/// Proxmox writes at most eight clusters.
const HEAD_MAX: usize = 8 * 65_536;
/// What is read of a packed archive at once, and in all; no block of zstd is longer than 128 KiB.
const CHUNK: usize = 32 << 10;
const PACKED_MAX: u64 = 256 << 10;
const NAMES: usize = 2044;
const CONFIGS: usize = 256;
const CONF: &[u8] = b"qemu-server.conf\0";

/// Reads headers, many one after the other: what unpacking needs is made once.
#[derive(Default)]
pub struct Reader {
    zstd: Option<DCtx<'static>>,
    packed: Vec<u8>,
}

impl Reader {
    /// What the archive called `name` has in its header; nothing where that is not cheap, or not sound.
    pub fn conf(&mut self, name: &str, file: &impl FileExt) -> Option<Conf> {
        let head = if name.ends_with(".vma") {
            plain(file)
        } else if name.ends_with(".vma.zst") {
            self.packed(file)
        } else {
            None
        };
        let head = head?;
        let text = find(&head)?;
        Some(Conf::parse(&String::from_utf8_lossy(text)))
    }

    /// The header of an archive that zstd packed. Of a header, which is mostly zeros, a few KiB are left; the block in which it
    /// lies may hold some of the data behind it, too.
    fn packed(&mut self, file: &impl FileExt) -> Option<Vec<u8>> {
        if self.zstd.is_none() {
            self.zstd = DCtx::try_create();
        }
        let zstd = self.zstd.as_mut()?;
        zstd.reset(ResetDirective::SessionOnly).ok()?;
        let (mut head, mut size, mut done, mut at) = (vec![0; HEAD], HEAD, 0, 0);
        self.packed.resize(CHUNK, 0);
        while at < PACKED_MAX {
            let got = file.read_at(&mut self.packed, at).ok().filter(|got| *got > 0)?;
            at += got as u64;
            let mut input = InBuffer::around(&self.packed[..got]);
            while input.pos() < got || done < size {
                let before = (input.pos(), done);
                let mut output = OutBuffer::around_pos(&mut head[..size], done);
                zstd.decompress_stream(&mut output, &mut input).ok()?;
                done = output.pos();
                if done == size && size == HEAD {
                    size = whole(&head)?;
                    head.resize(size, 0);
                }
                if done == size {
                    return Some(head);
                }
                if before == (input.pos(), done) {
                    break;
                }
            }
        }
        None
    }
}

/// The header of a plain archive.
fn plain(file: &impl FileExt) -> Option<Vec<u8>> {
    let mut head = vec![0; HEAD];
    file.read_exact_at(&mut head, 0).ok()?;
    head.resize(whole(&head)?, 0);
    file.read_exact_at(&mut head[HEAD..], HEAD as u64).ok()?;
    Some(head)
}

/// How long the header is that begins so.
fn whole(head: &[u8]) -> Option<usize> {
    number(head, 56).filter(|size| head.starts_with(MAGIC) && (HEAD..=HEAD_MAX).contains(size))
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
    use std::fs::File;
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
        let mut reader = Reader::default();
        let mut uuid = |name: &str, bytes: &[u8]| reader.conf(name, &file(bytes)).and_then(|conf| conf.uuid());
        assert_eq!(uuid("a.vma", &bytes).as_deref(), Some("6d0c1c5e-0000-4000-8000-000000000001"));
        let packed = zstd::encode_all(&bytes[..], 3).unwrap();
        assert_eq!(uuid("a.vma.zst", &packed), uuid("a.vma", &bytes));
        // Behind 100 KiB of data that does not compress, and after one that was cut off.
        assert!(uuid("a.vma.zst", &packed[..20]).is_none());
        bytes.extend(bak_tests::noise(1, 300_000));
        let packed = zstd::encode_all(&bytes[..], 3).unwrap();
        assert_eq!(uuid("a.vma.zst", &packed), uuid("a.vma", &bytes));
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
            let found = Reader::default().conf("a.vma", &file(&bytes)).and_then(|conf| conf.uuid());
            assert_eq!(found, None, "byte {at}");
        }
        assert!(Reader::default().conf("a.vma", &file(b"")).is_none());
        assert!(Reader::default().conf("a.vma.zst", &file(b"")).is_none());
    }
}
