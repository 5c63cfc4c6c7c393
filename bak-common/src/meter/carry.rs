//! How a meter moves bytes: first they are taken, then as many as may pass are given on.

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use super::shell::Input;

/// The most that is taken at once, in bytes.
pub const MOST: usize = 256 << 10;

pub trait Carry {
    /// Takes at most `most` bytes, and waits for the first of them; how many they are, 0 at the end. What was taken before
    /// and not given is dropped.
    fn take(&mut self, most: usize) -> io::Result<usize>;
    /// Gives on the first `count` of what was taken.
    fn give(&mut self, count: usize) -> io::Result<()>;
}

/// Through memory of our own.
pub struct Copied<R, W> {
    from: R,
    to: W,
    buffer: Vec<u8>,
}

impl<R: Read, W: Write> Copied<R, W> {
    pub fn new(from: R, to: W) -> Self {
        Self { from, to, buffer: vec![0; MOST] }
    }
}

impl<R: Read, W: Write> Carry for Copied<R, W> {
    fn take(&mut self, most: usize) -> io::Result<usize> {
        let most = most.min(self.buffer.len());
        self.from.read(&mut self.buffer[..most])
    }

    fn give(&mut self, count: usize) -> io::Result<()> {
        self.to.write_all(&self.buffer[..count.min(self.buffer.len())])?;
        self.to.flush()
    }
}

/// From rsync to the shell by way of a pipe of our own, in which the kernel hands on pages and copies nothing.
pub struct Spliced {
    from: OwnedFd,
    ours: (OwnedFd, OwnedFd),
    to: Input,
    held: usize,
    /// What is done instead where that can't be.
    instead: Option<Copied<File, Input>>,
}

impl Spliced {
    pub fn new(from: OwnedFd, to: Input) -> io::Result<Self> {
        let ours = pipe_with(PipeFlags::CLOEXEC)?;
        // Where that is not allowed less is taken at once.
        let _ = fcntl_setpipe_size(&ours.1, 1 << 20);
        Ok(Self { from, ours, to, held: 0, instead: None })
    }
}

impl Carry for Spliced {
    fn take(&mut self, most: usize) -> io::Result<usize> {
        if let Some(copied) = &mut self.instead {
            return copied.take(most);
        }
        // What is left is what a limit has cut: nothing follows it.
        if self.held > 0 {
            return Ok(0);
        }
        match splice(&self.from, None, &self.ours.1, None, most.min(MOST), SpliceFlags::MOVE) {
            Ok(count) => {
                self.held = count;
                Ok(count)
            }
            Err(Errno::INVAL | Errno::NOSYS) => {
                let from = File::from(self.from.try_clone()?);
                self.instead.insert(Copied::new(from, self.to.clone())).take(most)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn give(&mut self, count: usize) -> io::Result<()> {
        if let Some(copied) = &mut self.instead {
            return copied.give(count);
        }
        let mut left = count.min(self.held);
        while left > 0 {
            let given = self.to.with(|to| Ok(splice(&self.ours.0, None, to, None, left, SpliceFlags::MOVE)?))?;
            if given == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            (left, self.held) = (left - given, self.held - given);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    /// From `from` through `cat`, all but the last 1000 bytes.
    fn through(from: OwnedFd, bytes: usize) -> Vec<u8> {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = cat.stdout.take().unwrap();
        let to = Input::new(cat.stdin.take().unwrap());
        let mut spliced = Spliced::new(from, to.clone()).unwrap();
        let moving = std::thread::spawn(move || {
            let mut left = bytes - 1000;
            while let Ok(count @ 1..) = spliced.take(100_000) {
                spliced.give(count.min(left)).unwrap();
                left -= count.min(left);
            }
            to.close();
        });
        let mut got = Vec::new();
        out.read_to_end(&mut got).unwrap();
        moving.join().unwrap();
        cat.wait().unwrap();
        got
    }

    #[test]
    fn the_same_bytes_come_out_from_a_socket_a_pipe_and_a_file() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let sent = bytes.clone();
        let writing = std::thread::spawn(move || {
            ours.write_all(&sent).unwrap();
            drop(ours);
            File::from(write).write_all(&sent).unwrap();
        });
        for from in [theirs.into(), read, file.into()] {
            assert!(through(from, bytes.len()) == bytes[..bytes.len() - 1000]);
        }
        writing.join().unwrap();
    }
}
