//! The SHA-256 of files, as records carry it.

use anyhow::{Context, Result, ensure};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What is read at once, in bytes.
const BLOCK: usize = 1 << 20;

/// Size and SHA-256 of a whole file, wherever it was read to. Holes are hashed without being read. `tick` is told of bytes as
/// they are dealt with; its error ends the work.
pub fn hash(file: &File, tick: &mut dyn FnMut(u64) -> Result<()>) -> Result<(u64, String)> {
    let size = file.metadata()?.len();
    let (zeros, mut block) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < size {
        let (start, end) = data(file, at, size)?.unwrap_or((size, size));
        while at < end {
            let hole = at < start;
            // In bounds, and so no truncation: at most BLOCK.
            let want = (if hole { start } else { end } - at).min(BLOCK as u64) as usize;
            let got = if hole { want } else { file.read_at(&mut block[..want], at)? };
            ensure!(got > 0, "it became shorter meanwhile");
            hasher.update(if hole { &zeros[..got] } else { &block[..got] });
            at += got as u64;
            tick(got as u64)?;
        }
    }
    Ok((size, hex(&hasher.finalize())))
}

/// The next part of a file that holds data, from `at` on; `None` if there is none before `size`. On a file system that
/// knows of no holes all of it does.
pub fn data(file: &File, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
        Err(error) => return Err(error).context("cannot look for its data"),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
    Ok(Some((start, if end > start { end } else { size })))
}

/// A digest in lower-case hexadecimal, as `sha256sum -c` reads it.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    #[test]
    fn holes_hash_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let mut file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        file.write_all(&[7; 5000]).unwrap();
        file.seek(std::io::SeekFrom::Start(3_500_001)).unwrap();
        file.write_all(&[9; 3]).unwrap();
        file.set_len(9_000_001).unwrap();
        let content = std::fs::read(&path).unwrap();
        let expected = (content.len() as u64, hex(&Sha256::digest(&content)));
        assert_eq!(hash(&file, &mut |_| Ok(())).unwrap(), expected);
        let empty = File::create(&path).unwrap();
        assert_eq!(hash(&empty, &mut |_| Ok(())).unwrap(), (0, hex(&Sha256::digest([]))));
    }
}
