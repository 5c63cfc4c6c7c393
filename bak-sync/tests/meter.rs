//! The meter by itself, as rsync starts it.

use bak_tests::process::wait_for;
use bak_tests::{Kit, bin, noise};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// rsync gives its remote shell a socket for standard output that is non-blocking, and may be busy when it is full.
#[test]
fn a_reader_that_is_slow_gets_all_of_it() {
    let kit = Kit::new();
    let counts = kit.write("counts", [0; 48]);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut command = kit.command(bin("bak-sync"));
    command.args(["--bak-meter", counts.to_str().unwrap(), &u64::MAX.to_string(), "cat"]);
    let mut meter = command.stdin(Stdio::piped()).stdout(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
    drop(command);
    let content = noise(1, 8 << 20);
    let (mut stdin, sent) = (meter.stdin.take().unwrap(), content.clone());
    let feeder = std::thread::spawn(move || stdin.write_all(&sent));
    // What has come back: the second number. It stands still when all buffers are full.
    let back = || u64::from_le_bytes(fs::read(&counts).unwrap()[8..16].try_into().unwrap());
    let mut before = 0;
    wait_for("it goes on for ever", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        std::mem::replace(&mut before, back()) == back() && before > 100_000
    });
    let mut received = Vec::new();
    ours.read_to_end(&mut received).unwrap();
    assert!(received == content, "{} of {}", received.len(), content.len());
    feeder.join().unwrap().unwrap();
    assert!(meter.wait().unwrap().success());
}
