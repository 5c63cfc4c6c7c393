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
    address: String,
    pub port: u16,
    dir: PathBuf,
}

impl Rsyncd {
    /// Starts it with its files in `dir`, which is made. It serves the module `bak`: `path`, which can be written; `more` are
    /// further lines of the configuration, first of that module.
    pub fn start(dir: &Path, path: &Path, more: &str) -> Self {
        // A port that is free now; the next starter would have to take it within the blink until the daemon has it.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let daemon = Self::launch(dir, path, more, ("127.0.0.1", port), &[]);
        // A whole greeting, so that this connection is gone again when tests count them.
        daemon.waited(|daemon| daemon.greets())
    }

    /// The same at another address, started by a command that begins with `enter`; `listens` says when it can be reached.
    pub fn start_on(dir: &Path, path: &Path, at: (&str, u16), enter: &[String], listens: impl Fn() -> bool) -> Self {
        Self::launch(dir, path, "", at, enter).waited(|_| listens())
    }

    fn waited(self, ready: impl Fn(&Self) -> bool) -> Self {
        let begun = Instant::now();
        while !ready(&self) {
            assert!(begun.elapsed() < Duration::from_secs(60), "rsync does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self
    }

    fn launch(dir: &Path, path: &Path, more: &str, (address, port): (&str, u16), enter: &[String]) -> Self {
        fs::create_dir_all(dir).unwrap();
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
        let words = enter.iter().map(String::as_str).chain(["rsync", "--daemon", "--no-detach"]).collect::<Vec<_>>();
        let child = Command::new(words[0])
            .args(&words[1..])
            .args([format!("--address={address}"), format!("--port={port}"), format!("--config={shown}/conf")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address: address.to_owned(), port, dir: dir.to_owned() }
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
        format!("rsync://{}:{}/bak", self.address, self.port)
    }

    /// How many connections it serves now.
    pub fn serves(&self) -> usize {
        crate::process::below(self.child.id()).len() - 1
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
    silent: AtomicBool,
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
                std::thread::spawn(move || pass(near, far, &one.out, &one.silent));
                std::thread::spawn(move || pass(ends.1, ends.0, &other.into, &other.silent));
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

    /// From now on, or no more, it lets in and takes nothing and gives nothing: as a daemon that hangs.
    pub fn hang(&self, hangs: bool) {
        self.counts.silent.store(hangs, SeqCst);
    }

    pub fn connections(&self) -> u64 {
        self.counts.connections.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        self.hang(false);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, sum: &AtomicU64, silent: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if silent.load(SeqCst) {
            // Both ends stay open meanwhile.
            while silent.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return;
        }
        sum.fetch_add(count as u64, SeqCst);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
