//! Counting what crosses the line, whatever rsync says of itself.
//!
//! rsync is told that its remote shell is this very program, in a mode of its own: it starts the real shell and passes the
//! bytes on, both ways, and notes how many in a file, so that a count survives the death of anyone. What it sees is
//! rsync's stream; ssh's own framing adds about 4 KB a connection and 0.3 %.

use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The internal option that makes any bak program a meter: `--bak-meter COUNTS PROGRAM ARGUMENT…`.
pub const METER: &str = "--bak-meter";

/// Bytes so far, as rsync's side sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Towards the storage.
    pub out: u64,
    pub into: u64,
}

impl std::ops::Add for Wire {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { out: self.out.saturating_add(other.out), into: self.into.saturating_add(other.into) }
    }
}

/// Reads what a meter has noted in `file`; a file that is not there yet counts nothing.
pub fn read(file: &Path) -> Wire {
    let mut bytes = [0; 16];
    match File::open(file).and_then(|file| file.read_exact_at(&mut bytes, 0)) {
        Ok(()) => {
            let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            Wire { out: number(0), into: number(8) }
        }
        Err(_) => Wire::default(),
    }
}

/// Passes bytes on until the end, noting the running sum at `at` in `counts`.
fn pass(mut from: impl Read, mut to: impl Write, counts: &File, at: u64) {
    let mut buffer = vec![0; 256 << 10];
    let mut sum = 0_u64;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // Counted before it is passed on: never less than what crossed.
        sum += count as u64;
        let noted = counts.write_all_at(&sum.to_le_bytes(), at);
        if noted.is_err() || to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

/// Is a meter, if this process was started as one: the status to exit with. `None` otherwise.
pub fn run() -> Option<Result<u8>> {
    let mut args = std::env::args_os().skip(1);
    (args.next()? == METER).then(|| meter(args))
}

fn meter(mut args: impl Iterator<Item = OsString>) -> Result<u8> {
    let (Some(counts), Some(program)) = (args.next(), args.next()) else { bail!("wrong use of an internal option") };
    let counts = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&counts)
        .context("cannot open the meter's file")?;
    let mut child = Command::new(&program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.to_string_lossy()))?;
    let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(anyhow!("cannot talk with a program"));
    };
    // Larger pipes mean fewer turns; where that is not allowed the usual size will do.
    let _ = rustix::pipe::fcntl_setpipe_size(&to, 1 << 20);
    let _ = rustix::pipe::fcntl_setpipe_size(&from, 1 << 20);
    let shared = counts.try_clone().context("cannot open the meter's file once more")?;
    // Ends with rsync's stream, or with this process: nobody waits for it. Dropping `to` closes the shell's input.
    std::thread::spawn(move || pass(std::io::stdin().lock(), to, &shared, 0));
    // Unbuffered: `Stdout` would look for line ends.
    let stdout = File::from(rustix::io::dup(std::io::stdout()).context("cannot open standard output once more")?);
    pass(from, stdout, &counts, 8);
    let status = child.wait().context("cannot wait for the remote shell")?;
    Ok(u8::try_from(status.code().unwrap_or(255)).unwrap_or(255))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_noted_as_they_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counts");
        assert_eq!(read(&path), Wire::default());
        let file = File::create(&path).unwrap();
        let mut to = Vec::new();
        pass(&[7_u8; 300_000][..], &mut to, &file, 0);
        pass(&[7_u8; 5][..], &mut to, &file, 8);
        assert_eq!((read(&path), to.len()), (Wire { out: 300_000, into: 5 }, 300_005));
    }
}
