//! A real sshd on a port of loopback, with keys of its own, for as long as the value lives.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Sshd {
    child: Child,
    pub port: u16,
    dir: PathBuf,
}

impl Sshd {
    /// Starts it with its files in `dir`, which is made.
    pub fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        // sshd insists on its separation directory.
        let _ = fs::create_dir_all("/run/sshd");
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.join(key))
                .status()
                .unwrap();
            assert!(made.success());
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized")).unwrap();
        // A port that is free now; the next starter would have to take it within the blink until sshd has it.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let shown = dir.display();
        let conf = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/authorized\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nPidFile none\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
        );
        fs::write(dir.join("conf"), conf).unwrap();
        let public = fs::read_to_string(dir.join("host.pub")).unwrap();
        fs::write(dir.join("known"), format!("[127.0.0.1]:{port} {public}")).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.join("conf"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let sshd = Self { child, port, dir: dir.to_owned() };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "sshd does not listen: {}",
                fs::read_to_string(dir.join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        sshd
    }

    /// From now on the key may run this command only, whatever it asks for.
    pub fn force(&self, command: &str) {
        let key = fs::read_to_string(self.dir.join("user.pub")).unwrap();
        fs::write(self.dir.join("authorized"), format!("restrict,command=\"{command}\" {key}")).unwrap();
    }

    pub fn forced(&self) -> bool {
        fs::read_to_string(self.dir.join("authorized")).unwrap().starts_with("restrict")
    }

    /// The command that reaches it, for `--ssh`. Its directory must have no spaces in its path.
    pub fn command(&self) -> String {
        let dir = self.dir.display();
        format!(
            "ssh -F none -p {} -i {dir}/user -o IdentitiesOnly=yes -o UserKnownHostsFile={dir}/known -o GlobalKnownHostsFile=none",
            self.port
        )
    }

    /// The destination's URL for a directory on this machine.
    pub fn url(&self, path: &Path) -> String {
        format!("127.0.0.1:{}", path.display())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
