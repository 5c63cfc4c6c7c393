//! Counts what a program is sent and what it answers, independently of bak: `bak-test-count DIR PROGRAM ARGUMENT…`. The two
//! sums stand in `DIR/<pid>`, 8 bytes each. An ssh that only holds a connection is not counted.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

fn relay(mut from: impl Read, mut to: impl Write, counts: &File, at: u64) {
    let (mut buffer, mut sum) = (vec![0; 64 << 10], 0_u64);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        sum += count as u64;
        counts.write_all_at(&sum.to_le_bytes(), at).unwrap();
        if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

fn main() {
    let mut args = std::env::args_os().skip(1);
    let (dir, program) = (args.next().unwrap(), args.next().unwrap());
    let args: Vec<_> = args.collect();
    let mut command = Command::new(program);
    command.args(&args);
    if args.iter().any(|arg| arg == "-M" || arg == "-O") {
        panic!("{}", command.exec());
    }
    // Numbers of processes come round again.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let counts = File::create_new(std::path::Path::new(&dir).join(format!("{now}.{}", std::process::id()))).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let shared = counts.try_clone().unwrap();
    std::thread::spawn(move || relay(std::io::stdin().lock(), to, &shared, 0));
    relay(from, std::io::stdout().lock(), &counts, 8);
    std::process::exit(child.wait().unwrap().code().unwrap_or(255));
}
