//! The meter before a daemon's socket: it makes the connection itself, so nothing here listens that others could reach.

use anyhow::{Context, Result};
use rustix::net::sockopt;
use rustix::process::getppid;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{GRACE, INTO, Line, OUT};

/// How long an address is tried.
const CONNECT: Duration = Duration::from_secs(30);

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
    // As ssh is told: a line that is dead for a minute is dead, also where rsync waits for nothing. What was sent and is
    // not acknowledged has rsync's own time limit: TCP's would also end a line whose other end is only slow to read.
    let _ = socket.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
    let _ = sockopt::set_tcp_keepidle(&socket, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepcnt(&socket, 4);
    let line = Arc::new(line);
    let to = Half(socket.try_clone().context("cannot share a connection")?);
    let shared = Arc::clone(&line);
    std::thread::spawn(move || shared.pass(std::io::stdin().lock(), to, OUT, 0));
    let watched = Arc::clone(&line);
    let ends = socket.try_clone().context("cannot share a connection")?;
    std::thread::spawn(move || {
        let mut asked: Option<Instant> = None;
        while getppid() == watched.parent {
            std::thread::sleep(Duration::from_millis(50));
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
    line.pass(from, stdout, INTO, GRACE);
    // Only now, as the far side would take it for a broken line before.
    let _ = socket.shutdown(Shutdown::Both);
    Ok(0)
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
