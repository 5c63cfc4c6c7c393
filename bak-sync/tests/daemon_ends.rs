//! Passes to an rsync daemon that are killed, and daemons that hang. (How passes end in order is in `ends.rs`.)

mod common;

use bak_tests::clock::{Clock, hour};
use bak_tests::net::Line;
use bak_tests::process::wait_for;
use bak_tests::rsyncd::Relay;
use bak_tests::{Kit, Ran, bin, check_store, noise};
use common::ending::{half_changed, killed, nothing_runs};
use common::{DAY1, Place};
use serde_json::json;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon that is given up sooner than this was not given up by the true clock, by which rsync's own limit is 600 s.
const TOO_LONG: Duration = Duration::from_secs(300);

/// Has the clocks of a pass that began by this one go forward in steps of so many seconds, until the pass ends.
fn hurried(clock: &Clock, step: u32, mut child: Child) -> Ran {
    let (begun, mut jumps) = (Instant::now(), 1..);
    wait_for("it is not given up", || {
        clock.set(&format!("+{}", step * jumps.next().unwrap()));
        std::thread::sleep(Duration::from_millis(500));
        child.try_wait().unwrap().is_some()
    });
    assert!(begun.elapsed() < TOO_LONG, "{:?}", begun.elapsed());
    Ran::of(child.wait_with_output().unwrap()).expect(1)
}

/// A pass to the place that the daemon calls `url`.
fn pass(mut command: Command, url: &str, more: &[&str]) -> Child {
    command.args(["--outbox", "outbox", "--dest", &format!("box={url}")]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn relayed() -> (Place, Relay, String) {
    let place = Place::daemon("");
    let relay = Relay::start(place.rsyncd.as_ref().unwrap().port);
    let url = format!("rsync://127.0.0.1:{}/bak", relay.port);
    (place, relay, url)
}

#[test]
fn nobody_outlives_a_pass_that_is_killed() {
    let (place, relay, url) = relayed();
    let web = half_changed(&place);
    for (round, share) in noise(7, 8).into_iter().enumerate() {
        // Anywhere from the first words to the middle of the data.
        let (before, bytes) = (relay.seen(), u64::from(share) * 1_500);
        let command = place.kit.command(bin("bak-sync"));
        let mut child = pass(command, &url, &["--bwlimit", "300K", "--limit", "10M"]);
        wait_for("nothing crosses", || relay.seen() - before > bytes || child.try_wait().unwrap().is_some());
        killed(&place, child, &format!("round {round}, after {bytes} bytes"));
    }
    place.sync([]).clean();
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.last(), seen.broken.len(), seen.strange.len()), (Some(&web), 0, 0));
    assert_eq!(place.kit.sh("find far -path '*/.*/*' -type f").clean().out, "");
}

#[test]
fn what_has_arrived_of_a_pass_that_is_killed_is_not_sent_again() {
    let (place, relay, url) = relayed();
    let web = place.wait_with("web", DAY1, &noise(1, 8 << 20), json!({}));
    let mut child = pass(place.kit.command(bin("bak-sync")), &url, &["--bwlimit", "4M"]);
    wait_for("nothing crosses", || relay.seen() > 3 << 20);
    child.kill().unwrap();
    child.wait().unwrap();
    nothing_runs(&place, "killed");
    let before = relay.seen();
    let ran = Ran::of(pass(place.kit.command(bin("bak-sync")), &url, &[]).wait_with_output().unwrap()).clean();
    assert_eq!(ran.column("id"), [web.as_str()]);
    assert!(relay.seen() - before < 7 << 20, "what had arrived was sent again");
    assert_eq!(check_store(&place.far()).whole, [web]);
}

#[test]
fn a_daemon_that_lets_in_and_says_nothing_is_given_up_as_ssh_gives_up() {
    let (place, relay, url) = relayed();
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    relay.hang(true);
    let clock = Clock::new(&place.kit, "+0");
    let mut command = place.kit.command(bin("bak-sync"));
    clock.govern_all(&mut command);
    let child = pass(command, &url, &[]);
    // One asks for the identity, one for a listing.
    wait_for("it does not connect", || relay.connections() == 2);
    let ran = hurried(&clock, 40, child);
    relay.hang(false);
    let words = format!("the daemon at 127.0.0.1 port {} lets in and says nothing", relay.port);
    ran.says(&words).says("1 dump stays pending");
    nothing_runs(&place, "it is silent");
    assert_eq!(check_store(&place.outbox()).whole, [web]);
}

#[test]
fn a_daemon_that_hangs_in_the_middle_is_given_up_also_where_the_timetable_may_wait_for_hours() {
    // (The hour in which nothing is sent is not this one.)
    let mut table = [hour(11) + ",0", hour(12) + ",300K"];
    table.sort();
    for rate in ["300K", &table.join(" ")] {
        let (place, relay, url) = relayed();
        let web = place.wait_with("web", DAY1, &noise(1, 3_000_000), json!({}));
        let clock = Clock::new(&place.kit, "+0");
        let mut command = place.kit.command(bin("bak-sync"));
        clock.govern_all(&mut command);
        let child = pass(command, &url, &["--bwlimit", rate, "--tz", "UTC", "--retries", "0"]);
        wait_for("nothing crosses", || relay.seen() > 500_000);
        relay.hang(true);
        // Until it has filled all buffers it is not silent.
        let ran = hurried(&clock, 700, child);
        ran.says("web@20261118T010000Z: stays pending: the far side did not answer in time");
        relay.hang(false);
        nothing_runs(&place, "it hung");
        place.sync([]).clean();
        assert_eq!(check_store(&place.far()).whole, [web]);
    }
}

/// Packets that nobody answers: the other machine is off, or something in between swallows them.
#[test]
fn a_line_to_a_daemon_that_falls_silent_is_given_up_as_one_of_ssh_is_and_the_next_pass_goes_on() {
    let (kit, line) = (Kit::new(), Line::new());
    fs::create_dir(kit.path("far")).unwrap();
    let rsyncd = line.rsyncd(&kit.path("rsyncd"), &kit.path("far"));
    let url = rsyncd.url();
    let place = Place { kit, sshd: None, rsyncd: Some(rsyncd) };
    let run = |more: &[&str]| {
        let child = pass(line.command(&place.kit, bin("bak-sync")), &url, more);
        Ran::of(child.wait_with_output().unwrap())
    };
    run(&["--init"]).clean();
    line.slow("20mbit");
    let web = place.wait_with("web", DAY1, &noise(1, 6 << 20), json!({}));
    let clock = Clock::new(&place.kit, "+0");
    let mut command = line.command(&place.kit, bin("bak-sync"));
    clock.govern_all(&mut command);
    let before = line.crossed();
    let child = pass(command, &url, &["--retries", "0"]);
    wait_for("nothing crosses", || line.crossed() - before > 2 << 20);
    line.silence();
    // Some seconds without an answer: it has been noticed.
    wait_for("nothing is sent again", || line.in_vain() >= 5);
    let ran = hurried(&clock, 70, child);
    ran.says("web@20261118T010000Z: stays pending: the daemon at 192.0.2.2 port 8730 does not answer any more");
    line.heal();
    assert_eq!(run(&[]).clean().column("id"), [web.as_str()]);
    assert_eq!(check_store(&place.far()).whole, [web]);
}
