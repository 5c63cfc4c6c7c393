//! Counting what crosses the line, whatever rsync says of itself, and ending it where it may go no further.
//!
//! rsync is told that its remote shell is this very program, in a mode of its own: it starts the real shell and passes the
//! bytes on, both ways, and notes how many in a file, so that a count survives the death of anyone. What it sees is
//! rsync's stream; ssh's own framing adds about 4 KB a connection and 0.3 %.
//!
//! *The limit.* When both directions together have reached it, the meter passes nothing on any more and closes the shell's
//! input: the far side then keeps what has arrived as a partial file, and rsync here ends with 12. What the far side still
//! says is passed on, up to [`GRACE`]; beyond that the shell is ended.
//!
//! *The lead.* Who started the meter notes in the file how much of the count it has seen. The meter runs ahead of that by
//! [`LEAD`] at most, so that a crash can't forget more, however fast the line is.
//!
//! *The speed* stands in the file, too, and may change while the meter runs: it looks at least every 100 ms.
//!
//! *The silence.* Nor does a meter wait for ever: after a time that stands in the file, in which nothing has crossed, it ends the
//! transfer, also where rsync itself may be told to wait.
//!
//! *The stop.* Whoever started the meter may end the transfer by a word in the file: as at the limit, but at once, and the
//! far side has a time to end by itself. If rsync is gone the meter ends what it started, and itself.

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal, getppid};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

mod carry;
mod shell;
mod throttle;

use crate::command::Program;
use carry::{Carry, Copied, MOST, Spliced};
use shell::{Input, Shell, watch};
use throttle::LOOK;
pub use throttle::{Speed, Throttle};

/// The internal option that makes any bak program a meter: `--bak-meter COUNTS LIMIT PROGRAM ARGUMENT…`.
pub const METER: &str = "--bak-meter";
/// The same for a far side that is mounted here: `--bak-meter-here COUNTS LIMIT HOST PROGRAM ARGUMENT…`, HOST meaning
/// nothing.
pub const METER_HERE: &str = "--bak-meter-here";
/// The same before the socket of an rsync daemon: `--bak-meter-daemon COUNTS LIMIT HOST PORT`; what follows is ignored.
pub const METER_DAEMON: &str = "--bak-meter-daemon";

mod dial;

/// How far the meter runs ahead of what its starter has seen, in bytes.
pub const LEAD: u64 = 47 << 20;

/// What the far side may still say after the limit was reached, in bytes.
pub const GRACE: u64 = 16 << 10;

/// Where the numbers stand in the file, 8 bytes each, the lowest first.
const OUT: u64 = 0;
const INTO: u64 = 8;
const SEEN: u64 = 16;
const CUT: u64 = 24;
const SPEED: u64 = 32;
/// 0, or one more than the milliseconds that the far side has to end.
const STOP: u64 = 40;
/// After so many milliseconds without a byte either way the line is given up; 0 for never.
const PATIENCE: u64 = 56;
/// It was.
const SILENT: u64 = 64;
/// Not 0 if the speed is that of what comes in.
const INWARD: u64 = 72;
const LENGTH: usize = 80;

/// Bytes so far, as rsync's side sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Towards the storage.
    pub out: u64,
    pub into: u64,
}

impl Wire {
    /// Both directions: what a limit counts.
    pub fn both(self) -> u64 {
        self.out.saturating_add(self.into)
    }
}

impl std::ops::Add for Wire {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { out: self.out.saturating_add(other.out), into: self.into.saturating_add(other.into) }
    }
}

/// What rsync and others end programs by.
const ORDERS: [nix::sys::signal::Signal; 4] = {
    use nix::sys::signal::Signal;
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1]
};

/// The file through which a meter and its starter talk.
#[derive(Debug)]
pub struct Counts(File);

impl Counts {
    /// Makes the file, with nothing counted.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options().create_new(true).read(true).write(true).open(path);
        let file = file.context("cannot make the meter's file")?;
        file.write_all_at(&[0; LENGTH], 0).context("cannot write the meter's file")?;
        Ok(Self(file))
    }

    fn number(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at).map_or(0, |()| u64::from_le_bytes(bytes))
    }

    pub fn wire(&self) -> Wire {
        Wire { out: self.number(OUT), into: self.number(INTO) }
    }

    /// Waits for the end of the meter, if rsync has ended without it: until then it may count. It ends by itself then.
    pub fn settle(&self) {
        let begun = Instant::now();
        while self.0.try_lock().is_err() && begun.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the limit ended it.
    pub fn cut(&self) -> bool {
        self.number(CUT) != 0
    }

    /// How fast the meter may send, from now on.
    pub fn set_speed(&self, speed: Speed) {
        // If this fails the old speed holds on.
        let _ = self.0.write_all_at(&speed.number().to_le_bytes(), SPEED);
    }

    /// Has the speed hold for what comes in, as where files are fetched; else it is that of what goes out.
    pub fn govern_inward(&self) {
        // If this fails what comes in is as fast as it can.
        let _ = self.0.write_all_at(&1_u64.to_le_bytes(), INWARD);
    }

    /// Has the meter end the transfer in order, with so much time for the far side.
    pub fn stop(&self, patience: Duration) {
        let number = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1);
        // If this fails rsync is stopped without it.
        let _ = self.0.write_all_at(&number.to_le_bytes(), STOP);
    }

    /// Has the meter end the transfer when nothing has crossed for so long, but for waits that the speed says.
    pub fn set_patience(&self, patience: Duration) {
        // If this fails the time holds that was said before.
        let number = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let _ = self.0.write_all_at(&number.to_le_bytes(), PATIENCE);
    }

    /// Whether it was ended so.
    pub fn silent(&self) -> bool {
        self.number(SILENT) != 0
    }

    /// Whether the transfer is to end, and how much time the far side has.
    fn stopped(&self) -> Option<Duration> {
        self.number(STOP).checked_sub(1).map(Duration::from_millis)
    }

    /// Lets the meter run on: this much has been seen.
    pub fn seen(&self, wire: Wire) {
        // If this fails the meter waits, and rsync ends by its own time limit.
        let _ = self.0.write_all_at(&wire.both().to_le_bytes(), SEEN);
    }
}

/// What the starter of a meter says.
struct Orders {
    /// How much of the count it has seen.
    seen: u64,
    speed: Speed,
    is_stopped: bool,
}

/// What the two directions of one line share.
struct Line {
    counts: Counts,
    limit: u64,
    both: AtomicU64,
    /// Who started us. If that is another now, nobody is left to see anything.
    parent: Option<Pid>,
}

impl Line {
    /// Takes `COUNTS LIMIT` from the arguments.
    fn begin(args: &mut impl Iterator<Item = OsString>) -> Result<Self> {
        let mut next = || args.next().context("wrong use of an internal option");
        let (counts, limit) = (next()?, next()?);
        let Some(limit) = limit.to_str().and_then(|text| text.parse().ok()) else {
            bail!("wrong use of an internal option")
        };
        let counts = File::options().read(true).write(true).open(&counts).context("cannot open the meter's file")?;
        // Held until this process ends. Where there are no locks nobody waits for us.
        let _ = counts.lock_shared();
        Ok(Self { counts: Counts(counts), limit, both: AtomicU64::new(0), parent: getppid() })
    }

    fn note(&self, at: u64, number: u64) -> bool {
        self.counts.0.write_all_at(&number.to_le_bytes(), at).is_ok()
    }

    /// Counts as many of `wanted` bytes as the limit (and `grace`) allows; how many these are.
    fn grant(&self, wanted: u64, grace: u64) -> u64 {
        let end = self.limit.saturating_add(grace);
        let granted = |both: u64| wanted.min(end.saturating_sub(both));
        let before = self.both.fetch_update(SeqCst, SeqCst, |both| Some(both + granted(both)));
        before.map_or(0, granted)
    }

    /// What the starter says now; `None` if nobody is left to see anything.
    fn orders(&self) -> Option<Orders> {
        let mut bytes = [0; LENGTH];
        // A file that can't be read any more is as one that says nothing.
        let _ = self.counts.0.read_exact_at(&mut bytes, 0);
        // They all stand within it.
        let number = |at: u64| bytes[at as usize..].first_chunk().copied().map_or(0, u64::from_le_bytes);
        (getppid() == self.parent).then(|| Orders {
            seen: number(SEEN),
            speed: Speed::of(number(SPEED)),
            is_stopped: number(STOP) != 0,
        })
    }

    /// Passes bytes on until the end, or until the limit is reached, noting the running sum at `at`. Whether it was
    /// reached.
    fn pass(&self, mut bytes: impl Carry, at: u64, grace: u64) -> bool {
        let mut sum = 0_u64;
        // What goes the other way is little, and is not ours to hold.
        let governed = if self.counts.number(INWARD) == 0 { OUT } else { INTO };
        let mut throttle = Throttle::new();
        while let Some(orders) = self.orders() {
            let ahead = self.both.load(SeqCst).saturating_sub(orders.seen) > LEAD;
            let turn = throttle.turn(if at == governed { orders.speed } else { Speed::Free }, MOST);
            let most = match turn {
                // What still comes back from one that is to end may pass: it is what the far side ends with.
                _ if orders.is_stopped && (at == OUT || ahead || turn.is_err()) => return false,
                _ if ahead => {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
                Err(wait) => {
                    std::thread::sleep(wait);
                    continue;
                }
                Ok(most) => most,
            };
            let Ok(count @ 1..) = bytes.take(most) else { return false };
            // Counted before it is passed on: never less than what crossed.
            let granted = self.grant(count as u64, grace);
            sum += granted;
            let reached = granted < count as u64;
            if reached {
                self.note(CUT, 1);
            }
            // At most `count`, so it is a length.
            if !self.note(at, sum) || bytes.give(granted as usize).is_err() || reached {
                return reached;
            }
            throttle.passed(count);
        }
        false
    }
}

/// Since when nothing has crossed, where something might.
struct Quiet {
    since: Instant,
    seen: Wire,
}

impl Quiet {
    fn new() -> Self {
        Self { since: Instant::now(), seen: Wire::default() }
    }

    /// Notes that the line is to be given up, if so.
    fn is_too_long(&mut self, line: &Line) -> bool {
        let wire = line.counts.wire();
        if wire != self.seen || line.counts.number(SPEED) == Speed::Wait.number() {
            (self.since, self.seen) = (Instant::now(), wire);
        }
        let most = line.counts.number(PATIENCE);
        most > 0 && self.since.elapsed().as_millis() > u128::from(most) && line.note(SILENT, 1)
    }
}

/// Is a meter, if this process was started as one: the status to exit with. `None` otherwise.
pub fn run() -> Option<Result<u8>> {
    let mut args = std::env::args_os().skip(1);
    let mode = args.next()?;
    if mode.to_str().is_some_and(|mode| mode.starts_with(METER)) {
        // rsync leaves its socket, our standard output, non-blocking: while it is slow to read that would be an error. If
        // this fails, so does what follows.
        let _ = rustix::io::ioctl_fionbio(std::io::stdin(), false);
        let _ = rustix::io::ioctl_fionbio(std::io::stdout(), false);
    }
    match mode.to_str() {
        Some(METER) => Some(meter(args)),
        Some(METER_HERE) => {
            let (counts, limit) = (args.next(), args.next());
            Some(meter(counts.into_iter().chain(limit).chain(args.skip(1))))
        }
        Some(METER_DAEMON) => Some(dial::dialed(args)),
        _ => None,
    }
}

fn meter(mut args: impl Iterator<Item = OsString>) -> Result<u8> {
    let line = Arc::new(Line::begin(&mut args)?);
    let program = args.next().context("wrong use of an internal option")?;
    // What ends rsync, or all of its group, must not end us before what we have started.
    SigSet::from_iter(ORDERS).thread_block().context("cannot block signals")?;
    let program = Program::new(&program)?.args(args).own_locale().stdin(Stdio::piped());
    let mut child = program.spawn(Stdio::piped(), Stdio::inherit())?;
    let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(anyhow!("cannot talk with a program"));
    };
    // Larger pipes mean fewer turns; where that is not allowed the usual size will do.
    let _ = rustix::pipe::fcntl_setpipe_size(&to, 1 << 20);
    let _ = rustix::pipe::fcntl_setpipe_size(&from, 1 << 20);
    let input = Input::new(to);
    let shell = Arc::new(Shell::new(child));
    let (shared, to) = (Arc::clone(&line), input.clone());
    let stdin = rustix::io::dup(std::io::stdin()).context("cannot open standard input once more")?;
    let spliced = Spliced::new(stdin, to.clone());
    // Both threads end with this process: nobody waits for them.
    std::thread::spawn(move || {
        match spliced {
            Ok(spliced) => shared.pass(spliced, OUT, 0),
            Err(_) => shared.pass(Copied::new(std::io::stdin().lock(), to.clone()), OUT, 0),
        };
        to.close();
    });
    let (watched, known) = (Arc::clone(&line), Arc::clone(&shell));
    std::thread::spawn(move || watch(&watched, &input, &known));
    // Unbuffered: `Stdout` would look for line ends.
    let stdout = File::from(rustix::io::dup(std::io::stdout()).context("cannot open standard output once more")?);
    if line.pass(Copied::new(from, stdout), INTO, GRACE) {
        shell.signal(Signal::TERM);
    }
    shell.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(dir: &Path, limit: u64) -> (Line, Counts) {
        let path = dir.join("counts");
        let ours = Counts::create(&path).unwrap();
        let counts = Counts(File::options().read(true).write(true).open(&path).unwrap());
        (Line { counts, limit, both: AtomicU64::new(0), parent: getppid() }, ours)
    }

    #[test]
    fn counts_are_noted_as_they_pass() {
        let dir = tempfile::tempdir().unwrap();
        let (line, counts) = line(dir.path(), u64::MAX);
        assert_eq!(counts.wire(), Wire::default());
        let mut to = Vec::new();
        assert!(!line.pass(Copied::new(&[7_u8; 300_000][..], &mut to), OUT, 0));
        assert!(!line.pass(Copied::new(&[7_u8; 5][..], &mut to), INTO, GRACE));
        assert_eq!((counts.wire(), to.len(), counts.cut()), (Wire { out: 300_000, into: 5 }, 300_005, false));
    }

    #[test]
    fn both_directions_share_a_limit_that_holds_to_the_byte() {
        for (limit, first, passed, cut) in
            [(300_000, 300_000, 300_000, false), (299_999, 300_000, 299_999, true), (0, 1, 0, true)]
        {
            let dir = tempfile::tempdir().unwrap();
            let (line, counts) = line(dir.path(), limit);
            let mut to = Vec::new();
            assert_eq!(line.pass(Copied::new(&vec![7_u8; first][..], &mut to), OUT, 0), cut);
            assert_eq!((to.len(), counts.wire().out, counts.cut()), (passed, passed as u64, cut));
            // What comes back has the grace, and no more.
            let mut back = Vec::new();
            assert!(line.pass(Copied::new(&[7_u8; 100_000][..], &mut back), INTO, GRACE));
            assert_eq!((back.len() as u64, counts.cut()), (GRACE, true));
        }
    }

    #[test]
    fn it_does_not_run_out_of_sight() {
        let dir = tempfile::tempdir().unwrap();
        let (mut line, counts) = line(dir.path(), u64::MAX);
        let bytes = vec![0; usize::try_from(LEAD).unwrap() + (1 << 20)];
        counts.seen(Wire { out: 1 << 20, into: 0 });
        assert!(!line.pass(Copied::new(&bytes[..], std::io::sink()), OUT, 0));
        assert_eq!(counts.wire().out, bytes.len() as u64);
        // The starter is gone, and nobody sees what would follow.
        line.parent = None;
        line.pass(Copied::new(&bytes[..], std::io::sink()), OUT, 0);
        assert!(line.both.load(SeqCst) <= bytes.len() as u64 + (256 << 10));
    }
}
