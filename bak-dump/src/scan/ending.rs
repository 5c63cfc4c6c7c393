//! How files of a format end: what was cut off lacks it. Only what the last bytes tell; bak-verify reads all.

use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// As many of the last bytes as any of these formats needs.
const TAIL: usize = 1024;

/// What the end of a file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As it must be.
    Right,
    /// Not so: the format that it should be.
    Wrong(&'static str),
    /// This format does not tell.
    Unknown,
}

/// Reads the end of the file called `name`.
pub fn read(name: &str, file: &File) -> Result<Ending> {
    let size = file.metadata().context("cannot look at an open file")?.len();
    let length = size.min(TAIL as u64);
    // No truncation: at most TAIL.
    let mut tail = vec![0; length as usize];
    file.read_exact_at(&mut tail, size - length).context("cannot read its end")?;
    Ok(judge(name, &tail))
}

/// The same, of the last bytes.
pub fn judge(name: &str, tail: &[u8]) -> Ending {
    let (right, format) = match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        // A block of no bytes.
        "lzo" => (tail.ends_with(&[0; 4]), "lzop"),
        "xz" => (tail.ends_with(b"YZ"), "xz"),
        "bz2" => (ends_like_bzip2(tail), "bzip2"),
        // Two blocks of zeros.
        "tar" | "ova" => (tail.len() == TAIL && tail.iter().all(|byte| *byte == 0), "tar"),
        _ => return Ending::Unknown,
    };
    if right { Ending::Right } else { Ending::Wrong(format) }
}

/// The last block of bzip2 is six bytes, a checksum of four, and up to seven bits to fill the last byte.
fn ends_like_bzip2(tail: &[u8]) -> bool {
    const END: u128 = 0x1772_4538_5090;
    const MASK: u128 = (1 << 48) - 1;
    let Some(last) = tail.len().checked_sub(11).map(|at| &tail[at..]) else { return false };
    let bits = last.iter().fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte));
    (0..8).any(|fill| (bits >> (32 + fill)) & MASK == END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        let zeros = [0; TAIL];
        let table: [(&str, &[u8], Ending); 9] = [
            ("a.vma.lzo", &zeros, Ending::Right),
            ("a.vma.lzo", &[0, 0, 0, 1], Ending::Wrong("lzop")),
            ("a.lzo", &[0, 0, 0], Ending::Wrong("lzop")),
            ("a.tar", &zeros, Ending::Right),
            ("a.ova", &zeros[1..], Ending::Wrong("tar")),
            ("a.xz", b"..YZ", Ending::Right),
            ("a.bz2", &[0x17; 20], Ending::Wrong("bzip2")),
            ("a.bz2", b"short", Ending::Wrong("bzip2")),
            ("a.zst", &zeros, Ending::Unknown),
        ];
        for (name, tail, ending) in table {
            assert_eq!(judge(name, tail), ending, "{name}");
        }
    }

    /// What bzip2 makes of `hello`, and of nothing.
    #[test]
    fn bzip2_ends_at_any_bit() {
        let hello = [
            0x42, 0x5a, 0x68, 0x39, 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, 0x19, 0x31, 0x65, 0x3d, 0x00, 0x00, 0x00, 0x81,
            0x00, 0x02, 0x44, 0xa0, 0x00, 0x21, 0x9a, 0x68, 0x33, 0x4d, 0x07, 0x33, 0x8b, 0xb9, 0x22, 0x9c, 0x28, 0x48,
            0x0c, 0x98, 0xb2, 0x9e, 0x80,
        ];
        assert_eq!(judge("a.bz2", &hello), Ending::Right);
        assert_eq!(judge("a.bz2", &hello[..hello.len() - 2]), Ending::Wrong("bzip2"));
        let nothing = [0x42, 0x5a, 0x68, 0x39, 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, 0x00, 0x00, 0x00, 0x00];
        assert_eq!(judge("a.bz2", &nothing), Ending::Right);
    }
}
