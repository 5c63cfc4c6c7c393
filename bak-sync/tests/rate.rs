//! How fast a pass sends, by a counter of the tests' own between the meter and ssh.

mod common;

use bak_tests::bin;
use bak_tests::clock::Clock;
use common::{DAY1, Place};
use serde_json::json;
use std::fs;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A pass over ssh that is counted.
struct Counted {
    place: Place,
    pass: Child,
    clock: Option<Clock>,
}

impl Counted {
    /// Starts one with 30 MB to send, its clock standing still at `time` if one is given.
    fn start(time: Option<&str>, bwlimit: &str) -> Self {
        let place = Place::new(true);
        let mut content = vec![0; 30_000_000];
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut content).unwrap();
        place.wait_with("web", DAY1, &content, json!({}));
        fs::create_dir(place.kit.path("counts")).unwrap();
        let sshd = place.sshd.as_ref().unwrap();
        let counter = format!("{} {}", bin("bak-test-count").display(), place.kit.path("counts").display());
        let mut command = place.kit.command(bin("bak-sync"));
        let clock = time.map(|time| Clock::new(&place.kit, time));
        if let Some(clock) = &clock {
            clock.govern(&mut command);
        }
        command.args(["--outbox", "outbox", "--dest", &format!("box={}", sshd.url(&place.far()))]);
        command.args(["--ssh", &format!("{counter} {}", sshd.command()), "--bwlimit", bwlimit]);
        let pass = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { place, pass, clock }
    }

    /// What was sent so far.
    fn seen(&self) -> u64 {
        let files = fs::read_dir(self.place.kit.path("counts")).unwrap().flatten();
        let first = |bytes: Vec<u8>| bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        files.map(|file| first(fs::read(file.path()).unwrap_or_default())).sum()
    }

    /// When it had sent so much, and how much that was.
    fn at(&mut self, bytes: u64) -> (Instant, u64) {
        let begun = Instant::now();
        while self.seen() < bytes {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not send");
            assert!(self.pass.try_wait().unwrap().is_none(), "it was over too soon");
            std::thread::sleep(Duration::from_millis(1));
        }
        (Instant::now(), self.seen())
    }

    /// Bytes a second from now on, for so long.
    fn rate(&mut self, time: Duration) -> f64 {
        let (begun, before) = (Instant::now(), self.seen());
        std::thread::sleep(time);
        (self.seen() - before) as f64 / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.pass.kill();
        let _ = self.pass.wait();
    }
}

#[test]
fn the_average_is_within_a_tenth_of_the_rate() {
    for (text, rate) in [("1M", 1_048_576.0), ("16Mbit", 2_000_000.0)] {
        let mut counted = Counted::start(None, text);
        let (begun, first) = counted.at(300_000);
        let (end, last) = counted.at(300_000 + (rate * 4.0) as u64);
        let measured = (last - first) as f64 / (end - begun).as_secs_f64();
        assert!((measured / rate - 1.0).abs() < 0.1, "{measured} instead of {rate}");
    }
}

/// Within five seconds of its time, in a transfer that runs.
fn a_timetable_holds(before: &str, after: &str, least: f64, most: f64) {
    let mut counted = Counted::start(Some("2026-11-20 07:59:59"), &format!("07:00,{before} 08:00,{after}"));
    counted.at(100_000);
    counted.clock.as_ref().unwrap().set("2026-11-20 08:00:00");
    std::thread::sleep(Duration::from_secs(5));
    let rate = counted.rate(Duration::from_secs(2));
    assert!(rate > least && rate < most, "{before} to {after}: {rate}");
}

#[test]
fn a_timetable_slows_a_running_transfer_down() {
    a_timetable_holds("2M", "200K", 150_000.0, 260_000.0);
}

#[test]
fn a_timetable_speeds_a_running_transfer_up() {
    a_timetable_holds("200K", "2M", 1_500_000.0, 2_600_000.0);
}
