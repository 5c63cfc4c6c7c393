//! Counting what crosses the line, whatever rsync says of itself.
//!
//! rsync is told that its remote shell is this very program, in a mode of its own: it starts the real shell and passes the
//! bytes on, both ways, and notes how many in a file, so that a count survives the death of anyone. What it sees is
//! rsync's stream; ssh's own framing adds about 4 KB a connection and 0.3 %.
//!
//! In the same file it is told how fast it may send. That may change while it runs: it looks at least every 100 ms.

use anyhow::{Context, Result, anyhow, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The internal option that makes any bak program a meter: `--bak-meter COUNTS PROGRAM ARGUMENT…`.
pub const METER: &str = "--bak-meter";
/// The same for a far side that is mounted here: `--bak-meter-here COUNTS HOST PROGRAM ARGUMENT…`, HOST meaning nothing.
pub const METER_HERE: &str = "--bak-meter-here";

/// Bytes so far, as rsync's side sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Towards the storage.
    pub out: u64,
    pub into: u64,
}

/// How fast a transfer may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speed {
    /// As fast as it can.
    #[default]
    Free,
    /// Bytes a second.
    Rate(u64),
    /// Not at all, for now.
    Wait,
}

impl Speed {
    /// As it stands in the meter's file.
    fn to_bytes(self) -> [u8; 8] {
        let number = match self {
            Speed::Free => 0,
            Speed::Rate(rate) => rate.clamp(1, u64::MAX - 1),
            Speed::Wait => u64::MAX,
        };
        number.to_le_bytes()
    }

    fn from_bytes(bytes: [u8; 8]) -> Self {
        match u64::from_le_bytes(bytes) {
            0 => Speed::Free,
            u64::MAX => Speed::Wait,
            rate => Speed::Rate(rate),
        }
    }
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

/// Where the speed stands in the meter's file, behind the two counts.
const SPEED_AT: u64 = 16;

/// Tells the meter whose file this is how fast it may send, from now on.
pub fn set_speed(file: &Path, speed: Speed) -> Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(file);
    file.and_then(|file| file.write_all_at(&speed.to_bytes(), SPEED_AT)).context("cannot write into the meter's file")
}

/// Keeps a stream to a speed that may change at any time. A pause of the sender is made up for by at most [`CREDIT`].
struct Throttle {
    /// When the next bytes may go.
    next: Instant,
}

/// How often it looks what the speed is.
const LOOK: Duration = Duration::from_millis(100);
const CREDIT: Duration = Duration::from_millis(200);

impl Throttle {
    /// Waits until bytes may go, and says how many at once.
    fn turn(&mut self, counts: &File) -> usize {
        loop {
            let mut bytes = [0; 8];
            let read = counts.read_exact_at(&mut bytes, SPEED_AT);
            let now = Instant::now();
            match read.map(|()| Speed::from_bytes(bytes)) {
                Ok(Speed::Wait) => self.next = now + LOOK,
                Ok(Speed::Rate(rate)) if self.next <= now => return piece(rate),
                Ok(Speed::Rate(_)) => {}
                // Nothing was said.
                Ok(Speed::Free) | Err(_) => {
                    self.next = now;
                    return BUFFER;
                }
            }
            std::thread::sleep(self.next.saturating_duration_since(now).min(LOOK));
        }
    }

    /// So much has gone.
    fn passed(&mut self, counts: &File, count: usize) {
        let mut bytes = [0; 8];
        let read = counts.read_exact_at(&mut bytes, SPEED_AT);
        if let (Ok(()), Speed::Rate(rate)) = (read, Speed::from_bytes(bytes)) {
            let earliest = Instant::now().checked_sub(CREDIT).unwrap_or(self.next);
            self.next = self.next.max(earliest) + Duration::from_secs_f64(count as f64 / rate as f64);
        }
    }
}

const BUFFER: usize = 256 << 10;

/// About 50 ms' worth: a line that is shared is not held for longer by us.
fn piece(rate: u64) -> usize {
    usize::try_from(rate / 20).unwrap_or(BUFFER).clamp(512, BUFFER)
}

/// Passes bytes on until the end, noting the running sum at `at` in `counts`.
fn pass(mut from: impl Read, mut to: impl Write, counts: &File, at: u64, mut throttle: Option<Throttle>) {
    let mut buffer = vec![0; BUFFER];
    let mut sum = 0_u64;
    loop {
        let most = throttle.as_mut().map_or(BUFFER, |throttle| throttle.turn(counts));
        let Ok(count @ 1..) = from.read(&mut buffer[..most]) else { return };
        // Counted before it is passed on: never less than what crossed.
        sum += count as u64;
        let noted = counts.write_all_at(&sum.to_le_bytes(), at);
        if noted.is_err() || to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
            return;
        }
        if let Some(throttle) = &mut throttle {
            throttle.passed(counts, count);
        }
    }
}

/// Is a meter, if this process was started as one: the status to exit with. `None` otherwise.
pub fn run() -> Option<Result<u8>> {
    let mut args = std::env::args_os().skip(1);
    match args.next()?.to_str() {
        Some(METER) => Some(meter(args)),
        Some(METER_HERE) => {
            let counts = args.next();
            Some(meter(counts.into_iter().chain(args.skip(1))))
        }
        _ => None,
    }
}

fn meter(mut args: impl Iterator<Item = OsString>) -> Result<u8> {
    let (Some(counts), Some(program)) = (args.next(), args.next()) else { bail!("wrong use of an internal option") };
    let counts = File::options()
        .create(true)
        .truncate(false)
        .read(true)
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
    std::thread::spawn(move || pass(std::io::stdin().lock(), to, &shared, 0, Some(Throttle { next: Instant::now() })));
    // Unbuffered: `Stdout` would look for line ends.
    let stdout = File::from(rustix::io::dup(std::io::stdout()).context("cannot open standard output once more")?);
    pass(from, stdout, &counts, 8, None);
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
        pass(&[7_u8; 300_000][..], &mut to, &file, 0, None);
        pass(&[7_u8; 5][..], &mut to, &file, 8, None);
        assert_eq!((read(&path), to.len()), (Wire { out: 300_000, into: 5 }, 300_005));
    }
}
