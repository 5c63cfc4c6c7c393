//! The meter before a daemon's socket: it makes the connection itself, so nothing here listens that others could reach.
//!
//! It gives a line up as ssh does: a daemon that lets in and does not greet, after half a minute; a line over which no answer
//! comes to what was sent, after a minute. A daemon that answers and is only slow to read is left to rsync's own limit.

use anyhow::{Context, Result};
use rustix::net::sockopt;
use rustix::process::getppid;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Copied, GRACE, INTO, Line, OUT, Quiet};

/// How long an address is tried, and then how long the daemon may take to greet: as ssh is told.
const CONNECT: Duration = Duration::from_secs(30);

/// For how long what was sent may be unanswered: as ssh is told.
const UNANSWERED: Duration = Duration::from_secs(60);

/// How often it is looked whether answers come.
const LOOK: Duration = Duration::from_secs(1);

/// So often in a row, at least, the same must have been sent in vain: a line that loses much answers in between.
const IN_VAIN: u32 = 4;

/// How long the last bytes may take once rsync is gone.
const LAST: Duration = Duration::from_secs(1);

/// The sending half of a connection; the far side sees its end.
struct Half(TcpStream);

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

/// `COUNTS LIMIT HOST PORT` and what rsync would have a remote shell run. The status to exit with.
pub(super) fn dialed(mut args: impl Iterator<Item = OsString>) -> Result<u8> {
    let line = Line::begin(&mut args)?;
    let mut word = || args.next().and_then(|word| word.into_string().ok()).context("wrong use of an internal option");
    let (host, port) = (word()?, word()?);
    let port = port.parse().context("wrong use of an internal option")?;
    let socket = connect(&host, port)?;
    // As ssh is told: a line that is dead for a minute is dead, also where rsync waits for nothing. For what was sent TCP's
    // own limit (TCP_USER_TIMEOUT) would also end a line whose other end is only slow to read: see [`Silence`].
    let _ = socket.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
    let _ = sockopt::set_tcp_keepidle(&socket, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepcnt(&socket, 4);
    let line = Arc::new(line);
    let to = Half(socket.try_clone().context("cannot share a connection")?);
    let shared = Arc::clone(&line);
    std::thread::spawn(move || shared.pass(Copied::new(std::io::stdin().lock(), to), OUT, 0));
    let watched = Arc::clone(&line);
    let ends = socket.try_clone().context("cannot share a connection")?;
    let mut silence = Silence::new(&socket);
    std::thread::spawn(move || {
        let (mut asked, mut quiet) = (None::<Instant>, Quiet::new());
        while getppid() == watched.parent {
            std::thread::sleep(Duration::from_millis(50));
            if quiet.is_too_long(&watched) {
                std::process::exit(255);
            }
            if let Some(why) = silence.look(watched.counts.wire().into) {
                // rsync hands it on; it has no other words for a line that is dead.
                eprintln!("the daemon at {host} port {port} {why}");
                std::process::exit(255);
            }
            // The far side sees the end of what is sent, and keeps it; then it has its time.
            if let Some(patience) = watched.counts.stopped() {
                let late = asked.get_or_insert_with(Instant::now).elapsed() > patience;
                let _ = ends.shutdown(if late { Shutdown::Both } else { Shutdown::Write });
            }
        }
        // Nobody is left to speak for.
        std::thread::sleep(LAST);
        std::process::exit(255);
    });
    let stdout = File::from(rustix::io::dup(std::io::stdout()).context("cannot open standard output once more")?);
    let from = socket.try_clone().context("cannot share a connection")?;
    line.pass(Copied::new(from, stdout), INTO, GRACE);
    // Only now, as the far side would take it for a broken line before.
    let _ = socket.shutdown(Shutdown::Both);
    Ok(0)
}

/// How long nothing has been heard.
struct Silence {
    /// The socket's, by which the kernel's table names it.
    inode: Option<u64>,
    begun: Instant,
    looked: Instant,
    heard: u64,
    /// Since when what was sent is unanswered, and how often it was sent again.
    since: Option<(Instant, u32)>,
}

impl Silence {
    fn new(socket: &TcpStream) -> Self {
        let (now, inode) = (Instant::now(), rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino));
        Self { inode, begun: now, looked: now, heard: 0, since: None }
    }

    /// Why it is to be given up, if so, once `heard` bytes have come.
    fn look(&mut self, heard: u64) -> Option<&'static str> {
        if heard == 0 && self.begun.elapsed() > CONNECT {
            return Some("lets in and says nothing");
        }
        if self.looked.elapsed() < LOOK {
            return None;
        }
        self.looked = Instant::now();
        let times = self.inode.and_then(|inode| {
            let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
            tables.into_iter().find_map(|table| in_vain(&fs::read_to_string(table).ok()?, inode))
        });
        let times = times.filter(|times| *times > 0 && heard == self.heard);
        self.heard = heard;
        self.since = match (times, self.since) {
            (Some(times), Some((since, before))) if times >= before => Some((since, times)),
            (Some(times), _) => Some((self.looked, times)),
            (None, _) => None,
        };
        let dead = self.since.is_some_and(|(since, times)| times >= IN_VAIN && since.elapsed() > UNANSWERED);
        dead.then_some("does not answer any more")
    }
}

/// How often in a row this socket has sent the same, or has asked whether there is room over there, without an answer, by
/// the kernel's table of connections.
fn in_vain(table: &str, inode: u64) -> Option<u32> {
    let rows = table.lines().skip(1).map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
    let row = rows.into_iter().find(|row| row.get(9).and_then(|word| word.parse().ok()) == Some(inode))?;
    let again = u32::from_str_radix(row[6], 16).ok()?;
    Some(again.max(row[8].parse().ok()?))
}

/// Tries each address of the host.
fn connect(host: &str, port: u16) -> Result<TcpStream> {
    let addresses = (host, port).to_socket_addrs().with_context(|| format!("cannot find the host {host}"))?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| std::io::ErrorKind::NotFound.into());
    Err(error).with_context(|| format!("cannot connect to {host} port {port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 shows them: one that is well, one that sends the same for the fifth time, one whose other end has no room.
    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 020200C0:D43E 010200C0:221A 01 00000000:00000000 00:00000000 00000000     0        0 7001 2 0000000000000000 20 4 30 10 -1
   1: 020200C0:D440 010200C0:221A 01 0000B5C8:00000000 01:00000A2C 00000005     0        0 7002 2 0000000000000000 20 4 30 10 -1
   2: 020200C0:D442 010200C0:221A 01 0001F5C8:00000000 04:00000A2C 00000000     0        3 7003 2 0000000000000000 20 4 30 10 -1
";

    #[test]
    fn the_kernels_table() {
        assert_eq!([7001, 7002, 7003, 7].map(|inode| in_vain(TABLE, inode)), [Some(0), Some(5), Some(3), None]);
    }
}
