//! Passes that end before all has gone: by signals, by SIGKILL, by the clock. Nothing is left running here or over there,
//! what has arrived is gone on with, and each pass is in the ledger.

mod common;

use bak_tests::clock::{Clock, hour};
use bak_tests::process::wait_for;
use bak_tests::{Ran, check_store, noise};
use common::ending::{arrives, ended, half_changed, kill, killed, nothing_runs, running, start};
use common::{DAY1, DAY2, Place};
use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Whether this process has a file of this name open.
fn has_open(pid: u32, name: &str) -> bool {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| fs::read_link(link.path()).ok()).any(|path| path.ends_with(name))
}

fn last(place: &Place, what: &str) -> Value {
    place.ledger().into_iter().rfind(|line| line["type"] == what).unwrap()
}

#[test]
fn a_signal_ends_a_pass_in_order_and_the_next_one_goes_on() {
    let (mounted, ssh, daemon) = (|| Place::new(false), || Place::new(true), || Place::daemon(""));
    let places: [(fn() -> Place, _, _, _); 7] = [
        (ssh, "-TERM", 15, "SIGTERM"),
        (ssh, "-INT", 2, "SIGINT"),
        (mounted, "-HUP", 1, "SIGHUP"),
        (mounted, "-TERM", 15, "SIGTERM"),
        (daemon, "-HUP", 1, "SIGHUP"),
        (daemon, "-INT", 2, "SIGINT"),
        (daemon, "-TERM", 15, "SIGTERM"),
    ];
    for (place, signal, number, name) in places {
        let place = place();
        let web = place.wait_with("web", DAY1, &noise(1, 3_000_000), json!({"rank": 1}));
        let db = place.wait_there("db", DAY1, 1000, json!({"rank": 2}));
        let child = start(&place, ["--bwlimit", "500K"]);
        arrives(&place);
        let ran =
            ended(child, signal).says(&format!("bak-sync: box: stopped by {name}: what is pending stays pending"));
        assert_eq!((ran.status, ran.err.lines().count()), (-number, 1), "{ran:?}");
        assert_eq!(ran.column("id"), [web.as_str(), db.as_str()]);
        let why = ran.records()[0]["skipped"]["why"].as_str().unwrap().to_owned();
        assert_eq!(why, format!("cut in order, stopped by {name}: it goes on in the next pass"));
        nothing_runs(&place, signal);
        assert_eq!(
            (&last(&place, "attempt")["result"], &last(&place, "attempt")["dump"]),
            (&json!("stopped"), &json!(web))
        );
        let pass = last(&place, "pass");
        assert_eq!((&pass["ended"], &pass["cut"], &pass["pending"]), (&json!("stopped"), &json!(1), &json!(2)));
        let so_far = last(&place, "attempt")["wire_out"].as_u64().unwrap();
        assert!(so_far > 60_000 && so_far < 2_900_000, "{so_far}");
        assert!(!place.outbox().join(".bak/scratch").exists());
        // Over ssh up to a megabyte may have been on its way.
        let again = place.sync([]).clean();
        assert_eq!(again.column("id"), [web.as_str(), db.as_str()]);
        let sent = again.records()[0]["sent"]["box"].clone();
        assert!(sent["wire_out"].as_u64().unwrap() < 4_100_000 && sent["passes"] == 2, "{sent}");
        assert_eq!(check_store(&place.far()).whole, [db, web]);
    }
}

/// A stand-in for ssh that connects, and whose runs hang.
fn hanging_ssh(place: &Place) -> String {
    let ssh = place.sshd.as_ref().unwrap().command();
    let hang = place.kit.path("hang").display().to_string();
    let script = format!("#!/bin/sh\ncase \" $* \" in *' -M '*|*' -O '*) exec {ssh} \"$@\" ;; esac\n{hang} 1000\n");
    let path = place.kit.write("hanging", script);
    place.kit.sh("chmod 755 hanging; cp /bin/sleep hang").clean();
    path.display().to_string()
}

#[test]
fn a_signal_is_heeded_wherever_bak_sync_waits() {
    let place = Place::new(true);
    place.wait_with("web", DAY1, &noise(1, 300_000), json!({}));
    // For a lock.
    let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).open(place.outbox().join(".bak/pass"));
    let lock = lock.unwrap();
    lock.lock().unwrap();
    let child = start(&place, ["--wait", "1h"]);
    wait_for("it does not wait", || has_open(child.id(), ".bak/pass"));
    assert_eq!(ended(child, "-TERM").says("stopped by SIGTERM").status, -15);
    lock.unlock().unwrap();
    // For a rate other than none.
    let hour = chrono::Utc::now().format("%H").to_string().parse::<u32>().unwrap();
    let table = format!("{:02}:00,0 {:02}:00,off", hour, (hour + 12) % 24);
    let child = start(&place, ["--bwlimit", &table]);
    wait_for("it does not begin", || {
        place.kit.sh("ls outbox/.bak/scratch/wire.* 2>/dev/null; true").out.contains("wire")
    });
    assert_eq!(ended(child, "-INT").says("stopped by SIGINT").status, -2);
    nothing_runs(&place, "rate 0");
    // For a listing, a look at the identity, a line that is dead.
    let hanging = hanging_ssh(&place);
    for what in [&[][..], &["--init"], &["--reconcile"]] {
        let url = place.sshd.as_ref().unwrap().url(&place.far());
        let mut command = place.kit.command(bak_tests::bin("bak-sync"));
        command.args(["--outbox", "outbox", "--dest", &format!("box={url}"), "--ssh", &hanging]).args(what);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("nothing hangs", || running(&place).iter().any(|words| words.ends_with("/hang 1000 ")));
        assert_eq!(ended(child, "-TERM").says("stopped by SIGTERM").status, -15, "{what:?}");
        nothing_runs(&place, "a dead line");
    }
    // For the next try.
    let mut place = place;
    let sshd = place.sshd.take().unwrap();
    let (command, url) = (sshd.command(), sshd.url(&place.far()));
    let port = sshd.port;
    drop(sshd);
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let mut pass = place.kit.command(bak_tests::bin("bak-sync"));
    pass.args(["--outbox", "outbox", "--dest", &format!("box={url}"), "--ssh", &command]);
    let child = pass.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // ssh is connected, and hears nothing.
    let silent = listener.accept().unwrap();
    assert_eq!(ended(child, "-TERM").says("stopped by SIGTERM").status, -15);
    drop(silent);
    nothing_runs(&place, "a host that says nothing");
}

#[test]
fn a_signal_ends_the_wait_for_the_next_try() {
    let place = Place::new(true);
    place.wait_with("web", DAY1, &noise(1, 3_000_000), json!({}));
    let child = start(&place, ["--bwlimit", "500K", "--retries", "9"]);
    arrives(&place);
    // The connection that the runs share is ended.
    let known = place.kit.path("sshd/known").display().to_string();
    let master = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let found = words.starts_with("ssh ") && words.contains(&known) && words.contains(" -M ");
        found.then(|| entry.file_name().to_str()?.parse::<u32>().ok()).flatten()
    });
    kill("-KILL", master.expect("no connection"));
    wait_for("the run goes on", || running(&place).iter().all(|words| !words.contains("--files-from")));
    assert_eq!(ended(child, "-TERM").says("stopped by SIGTERM").status, -15);
    nothing_runs(&place, "between tries");
}

#[test]
fn who_waits_for_standard_input_just_ends_and_who_ignores_a_signal_goes_on() {
    let place = Place::new(false);
    let (program, args) = place.command(["-"]);
    let mut command = place.kit.command(program);
    let mut child = command.args(args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    wait_for("it does not wait", || {
        fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|at| at.contains("pipe"))
    });
    kill("-TERM", pid);
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    // As under nohup.
    place.wait_with("web", DAY1, &noise(1, 1_000_000), json!({}));
    let (program, args) = place.command(["--bwlimit", "500K"]);
    let mut command = place.kit.command("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(program).args(args);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    arrives(&place);
    kill("-HUP", child.id());
    Ran::of(child.wait_with_output().unwrap()).clean();
    assert_eq!(check_store(&place.far()).whole.len(), 1);
}

/// Also where what is called instead of ssh starts it as a program of its own, and where the line is dead.
#[test]
fn nobody_outlives_a_pass_that_is_killed() {
    let place = Place::new(true);
    let web = half_changed(&place);
    let (ssh, url) = (place.sshd.as_ref().unwrap().command(), place.sshd.as_ref().unwrap().url(&place.far()));
    place.kit.write("wrapped", format!("#!/bin/sh\n{ssh} \"$@\"\nexit $?\n"));
    place.kit.sh("chmod 755 wrapped").clean();
    let (hanging, wrapped) = (hanging_ssh(&place), place.kit.path("wrapped").display().to_string());
    for (round, millis) in noise(7, 12).into_iter().enumerate() {
        let command = [&ssh, &wrapped, &hanging][round % 3];
        let mut pass = place.kit.command(bak_tests::bin("bak-sync"));
        pass.args(["--outbox", "outbox", "--dest", &format!("box={url}"), "--ssh", command]);
        pass.args(["--bwlimit", "300K", "--limit", "10M"]);
        let mut child = pass.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let moment = Instant::now() + Duration::from_millis(u64::from(millis) * 6);
        wait_for("it ends too soon", || Instant::now() >= moment || child.try_wait().unwrap().is_some());
        killed(&place, child, &format!("round {round}, after {} ms", u64::from(millis) * 6));
    }
    place.sync([]).clean();
    assert_eq!(check_store(&place.far()).whole.last(), Some(&web));
}

/// Starts a pass by this clock.
fn start_by<const N: usize>(clock: &Clock, place: &Place, zone: &str, more: [&str; N]) -> Child {
    let (program, args) = place.command(more);
    let mut command = place.kit.command(program);
    clock.govern(&mut command);
    command.env("TZ", zone).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn lasts_until_its_time(place: Place) {
    let web = place.wait_with("web", DAY1, &noise(1, 4_000_000), json!({"rank": 1}));
    let db = place.wait_there("db", DAY1, 1000, json!({"rank": 2}));
    let clock = Clock::new(&place.kit, "2026-11-20 05:59:50");
    let pass = start_by(&clock, &place, "Europe/Berlin", ["--until", "6:00", "--bwlimit", "200K"]);
    arrives(&place);
    clock.set("2026-11-20 06:00:00");
    let asked = Instant::now();
    let ran = Ran::of(pass.wait_with_output().unwrap()).clean();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(ran.column("id"), [web.as_str(), db.as_str()]);
    let why = |at: usize| ran.records()[at]["skipped"]["why"].as_str().unwrap().to_owned();
    assert_eq!(why(0), "cut in order, it is past 2026-11-20 06:00 (until): it goes on in the next pass");
    assert_eq!(why(1), "it is past 2026-11-20 06:00 (until): it stays pending");
    let attempt = last(&place, "attempt");
    assert_eq!((&attempt["result"], last(&place, "pass")["ended"].as_str()), (&json!("cut"), Some("until")));
    let so_far = attempt["wire_out"].as_u64().unwrap();
    assert!((100_000..2_500_000).contains(&so_far), "{so_far}");
    // Together with a limit, whichever comes first.
    let ran = place.sync(["--until", &hour(6), "--limit", "300K", "--tz", "UTC"]).clean();
    // One that is larger than a pass goes after the others.
    assert_eq!(ran.column("id"), [db.as_str(), web.as_str()]);
    assert!(ran.records()[1]["skipped"]["why"].as_str().unwrap().contains("the limit of 300 KiB"), "{}", ran.out);
    let ran = place.sync(["--until", &hour(6), "--tz", "UTC"]).clean();
    assert_eq!(ran.column("id"), [web.as_str()]);
    let sent = &ran.records()[0]["sent"]["box"];
    assert!(sent["wire_out"].as_u64().unwrap() < 4_400_000 && sent["passes"] == 3, "{sent}");
    assert_eq!(check_store(&place.far()).whole, [db, web]);
}

#[test]
fn a_pass_over_ssh_lasts_until_its_time_and_the_next_one_goes_on() {
    lasts_until_its_time(Place::new(true));
}

#[test]
fn a_pass_to_a_mounted_path_lasts_until_its_time_and_the_next_one_goes_on() {
    lasts_until_its_time(Place::new(false));
}

#[test]
fn a_pass_to_a_daemon_lasts_until_its_time_and_the_next_one_goes_on() {
    lasts_until_its_time(Place::daemon(""));
}

#[test]
fn what_is_no_time_of_the_day_is_refused() {
    let place = Place::new(false);
    for (bad, why) in [("6", "no time of the day"), ("24:00", "no time of the day"), ("tomorrow", "no time of the day")]
    {
        place.sync(["--until", bad]).expect(2).says(why);
    }
}

#[test]
fn what_the_clock_may_cut_keeps_its_basis_over_the_passes() {
    let place = Place::new(true);
    let old = noise(1, 8 << 20);
    place.wait_with("web", DAY1, &old, json!({}));
    place.sync([]).clean();
    // One write of 4 KiB in every 32: 1 MiB.
    let mut new = old;
    for at in (0..new.len()).step_by(32 << 10) {
        new[at..at + 4096].copy_from_slice(&noise(100 + at as u64, 4096));
    }
    let web = place.wait_with("web", DAY2, &new, json!({}));
    let part = place.far().join("web/.part/web-20261119T010000Z.raw");
    let mut arrived = 0;
    for _ in 0..2 {
        let clock = Clock::new(&place.kit, "2026-11-20 05:59:52");
        let pass = start_by(&clock, &place, "UTC", ["--until", "06:00", "--bwlimit", "80K"]);
        // The basis is laid in no time; what is new is seen where the old one and the new one differ.
        wait_for("nothing arrives", || {
            let there = fs::read(&part).unwrap_or_default();
            let same = there.chunks(4096).zip(new.chunks(4096)).step_by(8).filter(|(one, other)| one == other).count();
            let more = same > arrived + 20;
            arrived = if more { same } else { arrived };
            more
        });
        clock.set("2026-11-20 06:00:00");
        let ran = Ran::of(pass.wait_with_output().unwrap()).clean();
        assert!(ran.records()[0]["skipped"]["why"].as_str().unwrap().contains("(until)"), "{}", ran.out);
    }
    let length = fs::metadata(&part).unwrap().len();
    assert!(length >= 8 << 20, "{length}: not what is old, and what has arrived");
    let sent = place.sync([]).clean().records()[0]["sent"]["box"].clone();
    assert_eq!((sent["passes"].as_u64(), check_store(&place.far()).whole.contains(&web)), (Some(3), true));
    // Each cut may lose what was on its way.
    assert!(sent["wire_out"].as_u64().unwrap() < 1_100_000 + 2 * 1_000_000, "{sent}");
}

#[test]
fn who_comes_too_late_begins_nothing_and_the_configuration_may_say_when() {
    let place = Place::new(false);
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    let far = place.far().display().to_string();
    place.kit.write(
        "bak.toml",
        format!("[[dest]]\nname = \"box\"\nurl = \"{far}\"\noutbox = \"outbox\"\nuntil = \"06:00\"\n"),
    );
    let held = fs::OpenOptions::new().create(true).truncate(false).write(true).open(place.outbox().join(".bak/pass"));
    let held = held.unwrap();
    held.lock().unwrap();
    let clock = Clock::new(&place.kit, "2026-11-20 05:59:55");
    let mut command = place.kit.command(bak_tests::bin("bak-sync"));
    clock.govern(&mut command);
    command.args(["--config", "bak.toml"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let pass = command.spawn().unwrap();
    wait_for("it does not wait", || has_open(pass.id(), ".bak/pass"));
    // Whoever has the lock lets it go after the time.
    clock.set("2026-11-20 06:00:00");
    held.unlock().unwrap();
    let ran = Ran::of(pass.wait_with_output().unwrap()).clean();
    assert_eq!(ran.records()[0]["skipped"]["why"], "it is past 2026-11-20 06:00 (until): it stays pending");
    assert_eq!(check_store(&place.outbox()).whole, [web]);
    place.kit.write(
        "bak.toml",
        format!("[[dest]]\nname = \"box\"\nurl = \"{far}\"\noutbox = \"outbox\"\nuntil = \"noon\"\n"),
    );
    place.kit.run("bak-sync", ["--config", "bak.toml"]).expect(2).says("until: `noon` is no time of the day");
}
