//! One run of rsync, metered, within its bounds.

use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::end::End;
use super::{Bounds, Far, Ran, Url};
use crate::command::{Event, Program};
use crate::meter::{Counts, METER, METER_DAEMON, METER_HERE, Wire};
use crate::stop;

/// The longest listing that is read, in bytes: about half a million files.
const LISTING_MAX: usize = 48 << 20;

/// Seconds without traffic after which a run is given up: who looks after the disk over there may be silent for minutes. That
/// the line itself is dead is noticed within a minute, by ssh or by the meter before a daemon.
pub(super) const SILENCE_S: u64 = 600;

/// Bytes a second that are slow for a disk.
const SLOW_DISK: u64 = 10_000_000;

/// So much later the meter ends what rsync should have ended by itself.
const LATER: Duration = Duration::from_secs(30);

/// For how long a far side that lets in only one at a time is asked again.
const BUSY: Duration = Duration::from_secs(20);

impl Far {
    /// Runs one rsync with `options`, the names of `files`, and the two places that `places` makes of the far one. `watch`
    /// sees what has crossed since the last [`Far::take_wire`].
    ///
    /// A far side that lets in only one at a time (rrsync has a lock, a daemon `max connections`) is asked again for a
    /// while, and from then on our own runs take turns.
    pub(super) fn rsync(
        &self,
        options: &[&str],
        files: &[String],
        places: [OsString; 2],
        bounds: Bounds,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        let (mut asked, mut wait) = (None, Duration::from_millis(50));
        loop {
            let alone = self.alone.load(Relaxed);
            let run = |watch| self.once(options, files, places.clone(), bounds, watch);
            let ran = if alone {
                let _turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
                run(&mut *watch)?
            } else {
                let _turn = self.turn.read().unwrap_or_else(PoisonError::into_inner);
                run(&mut *watch)?
            };
            if self.compress.load(Relaxed) && ran.denies("--compress") {
                self.compress.store(false, Relaxed);
            } else if !ran.busy() || (alone && asked.get_or_insert_with(Instant::now).elapsed() > BUSY) {
                return Ok(ran);
            } else if alone {
                stop::sleep(wait, || self.check(&bounds))?;
                wait = (wait * 2).min(Duration::from_secs(2));
            } else {
                self.alone.store(true, Relaxed);
            }
        }
    }

    fn once(
        &self,
        options: &[&str],
        files: &[String],
        places: [OsString; 2],
        bounds: Bounds,
        watch: &mut dyn FnMut(Wire) -> Result<()>,
    ) -> Result<Ran> {
        self.check(&bounds)?;
        self.still_mounted()?;
        let list = self.names(files)?;
        let path = self.scratch_file("wire");
        let counts = Counts::create(&path)?;
        let silence = SILENCE_S + bounds.silent / SLOW_DISK;
        let timeout = format!("--timeout={}", if self.may_wait { 0 } else { silence });
        // The meter has it, too, as rsync has no limit where it may be told to wait for hours. The far side may still be busy
        // with what it was sent: who may be told to wait does not say that it is alive.
        let silence = Duration::from_secs(silence) + LATER;
        counts.set_patience(silence);
        let options = options.iter().copied().filter_map(|option| match option {
            "-z" | "--zl=1" if !self.compress.load(Relaxed) => None,
            option => Some(option),
        });
        let mut program = Program::new("rsync")?.args(options).args(["-8", "--no-h", "--from0", timeout.as_str()]);
        program = program.arg([b"--files-from=", list.as_os_str().as_bytes()].concat_os());
        if self.metered() {
            program = program.arg("-e").arg(self.metered_shell(&path, self.room(&bounds)));
            if !self.is_remote() {
                // No shell is there that would read the path: it goes as it is.
                program = program.arg("--secluded-args");
            }
        }
        if let Url::Daemon(_) = self.url {
            // What a daemon greets everybody with is no listing.
            program = program.arg("--no-motd");
            match &self.password_file {
                Some(path) => program = program.arg([b"--password-file=", path.as_os_str().as_bytes()].concat_os()),
                // Without one it would ask for it on the terminal, and wait.
                None if std::env::var_os("RSYNC_PASSWORD").is_none() => program = program.env("RSYNC_PASSWORD", ""),
                None => {}
            }
        }
        let [from, to] = places;
        // The meter waits for us to see what it has counted: 47 MiB in so long are more than any line carries.
        program = program.ticking(Duration::from_millis(20));
        // Asked to stop, rsync keeps what has arrived as a partial file and tells the far side.
        program = program.args(["--"]).arg(from).arg(to).env("TZ", "UTC").on_our_death(rustix::process::Signal::TERM);
        // A terminal's Ctrl-C is for us, who end it in order.
        program = program.own_group();
        if let Some(lock) = bounds.lock {
            program = program.holding(lock)?;
        }
        let mut stdout = Vec::new();
        let mut local = Wire::default();
        let (metered, before) = (self.metered(), self.traffic().wire);
        counts.set_speed(self.speed());
        if bounds.inward {
            counts.govern_inward();
        }
        self.position.store(0, Relaxed);
        let mut ending: Option<(End, Instant)> = None;
        let finished = program.run_with(|event| {
            counts.set_speed(self.speed());
            if ending.is_none() {
                ending = self.end(&bounds).map(|end| (end, Instant::now()));
                if let Some((end, _)) = &ending {
                    counts.stop(end.patience());
                }
            }
            // Without a meter rsync itself is asked, which keeps what has arrived, too.
            if let Some((end, since)) = &ending
                && (!metered || since.elapsed() > end.patience_of_rsync())
            {
                return Err(end.error());
            }
            if let Event::Output(bytes) = event {
                ensure!(stdout.len() + bytes.len() < LISTING_MAX, "rsync says more than {LISTING_MAX} bytes");
                stdout.extend_from_slice(bytes);
                if let Some(position) = progress(bytes) {
                    self.position.store(position, Relaxed);
                    if !metered {
                        local.out = local.out.max(position);
                    }
                }
            }
            let wire = if metered { counts.wire() } else { local };
            watch(before + wire)?;
            counts.seen(wire);
            counts.set_patience(silence + Duration::from_secs(self.position.load(Relaxed) / SLOW_DISK));
            Ok(())
        });
        counts.settle();
        let wire = if metered { counts.wire() } else { local };
        self.spent(wire);
        let _ = fs::remove_file(&list);
        let _ = fs::remove_file(&path);
        let mut finished = finished?;
        finished.stdout = stdout;
        finished.stderr = self.said_here(finished.stderr);
        let mut end = ending.map(|(end, _)| end);
        if !finished.status.success() && end.is_none() {
            end = End::soon();
        }
        let silent = !finished.status.success() && counts.silent();
        Ok(Ran { finished, wire, cut: counts.cut(), end, silent, pulls: false })
    }

    /// Writes the names of `files` for `--files-from`.
    fn names(&self, files: &[String]) -> Result<PathBuf> {
        ensure!(files.iter().all(|name| !name.contains('\0')), "a name holds a NUL character");
        let list = self.scratch_file("files");
        // rsync takes a name that begins with `#` or `;` for a comment, even here.
        let named: Vec<String> = files.iter().map(|name| format!("./{name}")).collect();
        fs::write(&list, named.join("\0")).context("cannot write a temporary file")?;
        Ok(list)
    }

    /// rsync's `-e`: a meter that lets `room` bytes pass, before our ssh, before the other end of rsync here, or before a
    /// daemon's socket. For that rsync is told that the daemon is reached by a remote shell, which is the meter: what it
    /// would have the shell run is ignored, as the daemon runs already. (What `RSYNC_CONNECT_PROG` says a shell would read.)
    fn metered_shell(&self, counts: &Path, room: u64) -> OsString {
        // The path stays ours even if this program is replaced by a newer one meanwhile.
        let mut shell = quote(OsString::from(format!("/proc/{}/exe", std::process::id())));
        let (mode, program) = match &self.url {
            Url::Path(_) => (METER_HERE, Vec::new()),
            Url::Ssh { .. } => (METER, self.ssh.clone()),
            Url::Daemon(daemon) => {
                (METER_DAEMON, vec![daemon.host.clone().into(), OsString::from(daemon.port.to_string())])
            }
        };
        let meter = [OsString::from(mode), counts.as_os_str().to_owned(), room.to_string().into()];
        for word in meter.into_iter().chain(program) {
            shell.push(" ");
            shell.push(quote(word));
        }
        shell
    }
}

trait ConcatOs {
    fn concat_os(self) -> OsString;
}

impl ConcatOs for [&[u8]; 2] {
    fn concat_os(self) -> OsString {
        OsString::from_vec(self.concat())
    }
}

/// A word of rsync's `-e`, which it splits itself: quoted, quotes doubled.
fn quote(word: OsString) -> OsString {
    let mut quoted = vec![b'\''];
    for byte in word.into_vec() {
        quoted.extend(if byte == b'\'' { &b"''"[..] } else { std::slice::from_ref(&byte) });
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

/// How many bytes `--info=progress2` says have been sent, from the last of its lines in `output`.
fn progress(output: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(output).ok()?;
    text.split(['\r', '\n']).rev().find_map(|line| {
        let mut words = line.split_whitespace();
        let bytes = words.next()?.parse().ok()?;
        words.next()?.ends_with('%').then_some(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines() {
        assert_eq!(progress(b"\r     32,768   0%\r        65536  12%    1.00MB/s"), Some(65536));
        assert_eq!(progress(b"sent 5 bytes"), None);
    }

    #[test]
    fn words_for_rsync() {
        assert_eq!(quote("a 'b'".into()), OsString::from("'a ''b'''"));
    }
}
