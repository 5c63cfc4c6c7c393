//! A real rsync daemon on a port of loopback, for as long as the value lives; and a relay that counts what crosses to it,
//! independently of bak.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub struct Rsyncd {
    child: Child,
    pub port: u16,
    dir: PathBuf,
}

impl Rsyncd {
    /// Starts it with its files in `dir`, which is made. It serves the module `bak`: `path`, which can be written; `more` are
    /// further lines of the configuration, first of that module.
    pub fn start(dir: &Path, path: &Path, more: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        // A port that is free now; the next starter would have to take it within the blink until the daemon has it.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let shown = dir.display();
        let conf = format!(
            "motd file = {shown}/motd\nlog file = {shown}/log\nlock file = {shown}/lock\nuse chroot = no\nuid = {}\ngid = {}\n\
             [bak]\npath = {}\nread only = no\n{more}\n",
            own_id("-u"),
            own_id("-g"),
            path.display()
        );
        fs::write(dir.join("conf"), conf).unwrap();
        // What it tells everybody must not be taken for a listing.
        fs::write(dir.join("motd"), "Welcome!\n-rw-------          1,000 2026/11/20 01:00:00 free/space\n").unwrap();
        let child = Command::new("rsync")
            .args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--config={shown}/conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self { child, port, dir: dir.to_owned() };
        let begun = Instant::now();
        // A whole greeting, so that this connection is gone again when tests count them.
        while !daemon.greets() {
            assert!(begun.elapsed() < Duration::from_secs(20), "rsync does not listen: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn greets(&self) -> bool {
        let Ok(mut line) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else { return false };
        let mut letter = [0];
        line.read_exact(&mut letter).is_ok()
    }

    /// Writes the file of users and passwords that `secrets file = DIR/secrets` of the configuration means.
    pub fn secrets(dir: &Path, text: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("secrets"), text).unwrap();
        fs::set_permissions(dir.join("secrets"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Changes its configuration, which it reads anew for each connection.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let path = self.dir.join("conf");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    pub fn url(&self) -> String {
        format!("rsync://127.0.0.1:{}/bak", self.port)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Rsyncd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our own user or group: a daemon that root starts would serve as nobody.
fn own_id(option: &str) -> String {
    let output = Command::new("id").arg(option).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Passes connections on and counts all bytes, both ways.
pub struct Relay {
    pub port: u16,
    counts: Arc<Counts>,
    ended: Arc<AtomicBool>,
}

#[derive(Default)]
struct Counts {
    out: AtomicU64,
    into: AtomicU64,
    connections: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// Passes on to `port` of loopback.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let ours = listener.local_addr().unwrap().port();
        let (counts, ended) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let (shared, stop) = (Arc::clone(&counts), Arc::clone(&ended));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if stop.load(SeqCst) {
                    return;
                }
                let Ok(far) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) else { continue };
                shared.connections.fetch_add(1, SeqCst);
                shared.open.lock().unwrap().push(near.try_clone().unwrap());
                let ends = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (one, other) = (Arc::clone(&shared), Arc::clone(&shared));
                std::thread::spawn(move || pass(near, far, &one.out));
                std::thread::spawn(move || pass(ends.1, ends.0, &other.into));
            }
        });
        Self { port: ours, counts, ended }
    }

    /// Bytes so far, in both directions.
    pub fn seen(&self) -> u64 {
        self.counts.out.load(SeqCst) + self.counts.into.load(SeqCst)
    }

    /// Breaks all connections that there are now.
    pub fn cut(&self) {
        for near in self.counts.open.lock().unwrap().drain(..) {
            let _ = near.shutdown(Shutdown::Both);
        }
    }

    pub fn connections(&self) -> u64 {
        self.counts.connections.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, sum: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        sum.fetch_add(count as u64, SeqCst);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
