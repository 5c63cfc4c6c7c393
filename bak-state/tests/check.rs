//! `check` as monitoring meets it: one line, four exit statuses, records, through whole sequences of nights.

use bak_common::name::{DumpId, GuestName};
use bak_common::record::Guest;
use bak_state::{Db, Outcome};
use bak_tests::{Kit, Ran, put_dump};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// `day` of November 2026, at this hour.
fn at(day: u32, hour: u32) -> String {
    format!("2026-11-{day:02}T{hour:02}:00:00Z")
}

fn check(kit: &Kit, now: &str, more: &str) -> Ran {
    let args = format!("check --db db --now {now} {more}");
    kit.run("bak-state", args.split(' ').filter(|word| !word.is_empty()))
}

fn record(vm: &str, fingerprint: &str) -> Guest {
    let mut guest = Guest::new(GuestName::new(vm).unwrap(), "qemu", "image");
    guest.fingerprint = Some(fingerprint.into());
    guest
}

fn observe(kit: &Kit, now: &str, more: &str, guests: &[(&str, &str)]) {
    let line = |(vm, fingerprint): &(&str, &str)| {
        json!({"v": 1, "type": "guest", "vm": vm, "kind": "qemu", "driver": "image", "fingerprint": fingerprint})
            .to_string()
            + "\n"
    };
    let args = format!("observe - --db db --now {now} {more}");
    let input: String = guests.iter().map(line).collect();
    kit.run_with("bak-state", args.split(' ').filter(|word| !word.is_empty()), &input).clean();
}

fn db(kit: &Kit) -> Db {
    Db::open(&kit.path("db"), Duration::from_secs(10)).unwrap()
}

/// A night in which the guest is dumped, as bak-dump does it.
fn dump(kit: &Kit, vm: &str, fingerprint: &str, now: &str) {
    let started = now.parse().unwrap();
    let claim = db(kit).claim(&record(vm, fingerprint), started).unwrap();
    kit.dump(vm, now, 100);
    let id = DumpId::of(&GuestName::new(vm).unwrap(), started);
    claim.finish(Outcome::Clean { fingerprint: Some(fingerprint.into()), started, id }, started).unwrap();
}

fn fail(kit: &Kit, vm: &str, now: &str) {
    let now = now.parse().unwrap();
    db(kit).claim(&record(vm, "x"), now).unwrap().finish(Outcome::Necessary, now).unwrap();
}

/// The text of the line and its performance data, as Nagios takes them apart.
fn parts(ran: &Ran) -> (String, BTreeMap<String, String>) {
    let line = ran.out.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "one line: {line}");
    let (text, data) = line.split_once(" | ").unwrap();
    assert!(!data.contains('|'), "{data}");
    let one = |part: &str| {
        let (label, value) = part.split_once('=').unwrap();
        let value = value.split(';').next().unwrap();
        let digits = value.trim_end_matches(['s', 'B']);
        assert!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()), "{part}");
        (label.trim_matches('\'').to_owned(), value.to_owned())
    };
    (text.to_owned(), data.split(' ').map(one).collect())
}

#[test]
fn an_unchanged_guest_is_fine_for_months_and_a_changed_one_from_night_to_night() {
    let kit = Kit::new();
    let observe = |now: &str, web: &str| observe(&kit, now, "--store store", &[("web", web), ("still", "a")]);
    observe(&at(1, 1), "a");
    let (text, data) = parts(&check(&kit, &at(1, 2), "--store store").clean());
    assert_eq!(text, "BAK OK - 2 guests");
    assert_eq!((data["guests"].as_str(), data["critical"].as_str(), data["due"].as_str()), ("2", "0", "3600s"));
    for vm in ["web", "still"] {
        dump(&kit, vm, "a", &at(1, 2));
    }
    observe(&at(28, 1), "a");
    check(&kit, &at(28, 2), "--store store").clean();
    // It changed an hour ago: its dump of four weeks ago is no scandal, but must be followed by another.
    observe(&at(28, 3), "b");
    check(&kit, &at(28, 4), "--store store").clean();
    observe(&at(29, 3), "b");
    check(&kit, &at(29, 5), "--store store").clean();
    let ran = check(&kit, &at(29, 6), "--store store").expect(2);
    assert_eq!(
        parts(&ran).0,
        "BAK CRITICAL - 1 of 2 guests: web: due for 27 h (limit 26 h), last good dump 28.2 d old"
    );
    assert_eq!(ran.err, "");
    dump(&kit, "web", "b", &at(29, 6));
    check(&kit, &at(29, 7), "--store store").clean();
}

#[test]
fn five_failed_nights_are_seen_though_the_last_good_dump_is_kept() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a")]);
    dump(&kit, "web", "a", &at(1, 2));
    for night in 2..7 {
        observe(&kit, &at(night, 1), "--store store", &[("web", "x")]);
        fail(&kit, "web", &at(night, 2));
        let ran = check(&kit, &at(night, 12), "--store store").expect(if night == 2 { 1 } else { 2 });
        let expected = if night == 2 { ", the last attempt failed" } else { " failed attempts in a row" };
        assert!(ran.out.contains(expected), "{}", ran.out);
    }
    let text = parts(&check(&kit, &at(6, 12), "--store store").expect(2)).0;
    assert!(
        text.contains("web: due for 4.5 d (limit 26 h), last good dump 5.4 d old, 5 failed attempts in a row"),
        "{text}"
    );
    assert_eq!(kit.run("bak-state", ["get", "web", "--db", "db"]).clean().records()[0]["failures"], 5);
    dump(&kit, "web", "x", &at(7, 2));
    check(&kit, &at(7, 12), "--store store").clean();
    assert_eq!(kit.run("bak-state", ["get", "web", "--db", "db"]).clean().records()[0]["failures"], Value::Null);
}

#[test]
fn attempts_that_died_count_with_and_without_an_observation() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a")]);
    let now = at(1, 2).parse().unwrap();
    drop(db(&kit).claim(&record("web", "a"), now).unwrap());
    assert!(check(&kit, &at(1, 3), "").expect(1).out.contains("whoever dumped it is gone"));
    // The next one finds it dead, and fails.
    fail(&kit, "web", &at(1, 4));
    assert!(check(&kit, &at(1, 5), "").expect(1).out.contains("2 failed attempts in a row"));
    drop(db(&kit).claim(&record("web", "a"), now).unwrap());
    for hour in [6, 7] {
        observe(&kit, &at(1, hour), "", &[("web", "a")]);
    }
    assert!(check(&kit, &at(1, 8), "").expect(1).out.contains("3 failed attempts in a row"));
    assert_eq!(check(&kit, &at(2, 4), "").expect(2).err, "");
}

#[test]
fn a_gone_guest_is_quiet_and_a_broken_cron_job_is_not() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a"), ("old", "a")]);
    dump(&kit, "web", "a", &at(1, 2));
    observe(&kit, &at(9, 1), "", &[("web", "a")]);
    let ran = check(&kit, &at(9, 2), "--explain --store store").clean();
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("BAK OK - 2 guests, 1 gone | guests=2;"), "{}", ran.out);
    assert_eq!(lines[1], "old: BACKUP_NECESSARY OK: gone: not seen since 2026-11-01T01:00:00Z, others were");
    assert_eq!(lines[2], "web: CLEAN OK: unchanged since its dump 8 d ago");
    check(&kit, &at(10, 3), "--store store").clean();
    let ran = check(&kit, &at(10, 4), "--store store").expect(2);
    let expected = "BAK CRITICAL - 2 guests: 2 guests by the driver image not observed for 27 h (limit 26 h), last at ";
    assert!(ran.out.starts_with(expected), "{}", ran.out);
    // Whoever is asked about alone is judged by all that were seen.
    check(&kit, &at(9, 2), "old").clean();
    kit.run("bak-state", ["set", "ARCHIVED", "web", "old", "--db", "db"]).clean();
    assert!(check(&kit, &at(25, 4), "--store store").clean().out.contains("2 guests, 2 archived |"));
}

#[test]
fn clean_without_a_good_dump_and_what_cannot_be_read() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a")]);
    dump(&kit, "web", "a", &at(1, 2));
    kit.write("store/odd/odd-20261101T010000Z.dump.json", "{");
    let ran = check(&kit, &at(1, 3), "--store store").expect(1);
    assert!(ran.out.starts_with("BAK WARNING - 1 guest: cannot read ") && ran.out.contains("odd-20261101T010000Z"));
    fs::remove_dir_all(kit.path("store/odd")).unwrap();
    // Another guest under that name has a dump; this one's data has gone.
    put_dump(&kit.store(), "web", &at(1, 3), 10, json!({"kind": "lxc"}));
    check(&kit, &at(1, 4), "--store store").clean();
    fs::remove_file(kit.path("store/web/web-20261101T020000Z.raw")).unwrap();
    let ran = check(&kit, &at(1, 4), "--store store").expect(2);
    assert!(ran.out.contains("web: CLEAN, and there is no good dump in the store"), "{}", ran.out);
    put_dump(&kit.store(), "web", "2026-11-03T01:00:00Z", 10, json!({}));
    let ran = check(&kit, &at(1, 4), "--store store").expect(2);
    assert!(ran.out.contains("its dump of 2026-11-03T01:00:00Z is dated 45 h in the future"), "{}", ran.out);
}

#[test]
fn the_way_off_site_is_watched_even_where_retention_removes_what_was_never_sent() {
    let kit = Kit::new();
    let places = "--store store --outbox outbox";
    let sidecar = |day: u32| kit.path(&format!("store/web/web-202611{day:02}T020000Z.dump.json"));
    let history = |day: u32| {
        fs::create_dir_all(kit.path("outbox/.bak/sent/web")).unwrap();
        let to = kit.path(&format!("outbox/.bak/sent/web/web-202611{day:02}T020000Z.dump.json"));
        fs::copy(sidecar(day), to).unwrap();
    };
    let mut seen = Vec::new();
    for day in 1..=20 {
        observe(&kit, &at(day, 1), places, &[("web", &day.to_string())]);
        dump(&kit, "web", &day.to_string(), &at(day, 2));
        // keep last = 1
        if day > 1 {
            fs::remove_file(sidecar(day - 1)).unwrap();
        }
        // Sent on the fourth and the fifth, and never again.
        if [4, 5].contains(&day) {
            history(day);
        }
        seen.push(check(&kit, &at(day, 12), places).status);
    }
    // The sixth is the first that is not there: on the thirteenth it has waited for more than seven days.
    assert_eq!(seen, [vec![0; 12], vec![2; 8]].concat());
    let ran = check(&kit, &at(20, 12), places).expect(2);
    let expected = "behind at default for 14.4 d (limit 7 d), newest there is of 2026-11-05T02:00:00Z; nothing waits";
    assert!(ran.out.contains(expected), "{}", ran.out);
    assert_eq!(parts(&ran).1["default_waiting"], "100B");
    check(&kit, &at(20, 12), &format!("{places} --sent-max-age 15d")).clean();
    put_dump(&kit.path("outbox"), "web", &at(20, 2), 100, json!({}));
    let ran = check(&kit, &at(20, 12), places).expect(2);
    assert!(ran.out.contains("; waits in the outbox | "), "{}", ran.out);
    let data = parts(&ran).1;
    assert_eq!((data["default_waiting"].as_str(), data["default_pending"].as_str()), ("0B", "100B"));
    history(20);
    check(&kit, &at(20, 12), places).clean();
    observe(&kit, &at(28, 1), places, &[("web", "20")]);
    check(&kit, &at(28, 2), places).clean();
}

#[test]
fn never_sent() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a")]);
    dump(&kit, "web", "a", &at(1, 2));
    observe(&kit, &at(8, 1), "", &[("web", "a")]);
    let ran = check(&kit, &at(8, 2), "--store store --dest box=/mnt/box").clean();
    assert!(ran.out.starts_with("BAK OK"));
    let ran = check(&kit, &at(8, 3), "--store store --dest box=/mnt/box").expect(2);
    assert!(ran.out.contains("web: never sent to box for"), "{}", ran.out);
    check(&kit, &at(8, 3), "--store store").clean();
}

#[test]
fn dumps_that_nobody_observed_are_remembered_too() {
    let kit = Kit::new();
    for day in 1..=10 {
        dump(&kit, "web", "a", &at(day, 2));
        if day > 1 {
            fs::remove_file(kit.path(&format!("store/web/web-202611{:02}T020000Z.dump.json", day - 1))).unwrap();
        }
        let now = at(day, 12);
        check(&kit, &now, "--store store").clean();
        check(&kit, &now, "--store store --dest box=/mnt/box").expect(if day > 7 { 2 } else { 0 });
    }
    check(&kit, &at(11, 4), "--store store").clean();
    assert!(check(&kit, &at(11, 5), "--store store").expect(2).out.contains("never observed"));
}

#[test]
fn commands_under_a_claim_and_guests_taken_back() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a"), ("db", "a")]);
    dump(&kit, "db", "a", &at(1, 2));
    let claim = |now: &str, command: &str| {
        let args = ["claim", "--db", "db", "--now", now, "web", "--", command];
        kit.run("bak-state", args)
    };
    claim(&at(1, 2), "true").clean();
    for day in 2..4 {
        observe(&kit, &at(day, 1), "", &[("web", "b"), ("db", "a")]);
        claim(&at(day, 2), "false").expect(1);
    }
    let ran = check(&kit, &at(3, 5), "").expect(2);
    assert!(ran.out.contains("web: due for 28 h (limit 26 h), last good dump 2.1 d old, 2 failed"), "{}", ran.out);
    claim(&at(3, 6), "true").clean();
    check(&kit, &at(3, 7), "").clean();
    // A guest that somebody dumps each day does not mean that somebody looks for the others.
    for day in 4..7 {
        claim(&at(day, 2), "true").clean();
    }
    let ran = check(&kit, &at(6, 3), "").expect(2);
    assert!(ran.out.contains("1 guest by the driver image not observed for 3.1 d"), "{}", ran.out);
    // Who comes back from the archive after weeks has a day, as everybody else.
    let moving = |order: &str, now: &str| {
        let args = [order, "--db", "db", "--store", "store", "--archive-dir", "archive", "--now", now, "db"];
        kit.run("bak-state", args).clean()
    };
    fs::create_dir(kit.path("archive")).unwrap();
    moving("archive", &at(7, 1));
    observe(&kit, &at(28, 1), "", &[("web", "a"), ("db", "a")]);
    moving("activate", &at(28, 2));
    let due = |now: &str| check(&kit, now, "db --store store");
    due(&at(28, 3)).clean();
    observe(&kit, &at(29, 3), "", &[("web", "a"), ("db", "a")]);
    due(&at(29, 4)).clean();
    assert!(due(&at(29, 5)).expect(2).out.contains("db: due for 27 h (limit 26 h), last good dump 28.1 d old |"));
}

#[test]
fn limits_of_the_configuration() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a"), ("db-1", "a"), ("lab", "a")]);
    let config = |text: &str| kit.write("bak.toml", format!("db = {:?}\n{text}", kit.path("db")));
    let levels = |more: &str| {
        let args = format!("check --json --config bak.toml --now {} {more}", at(1, 13));
        kit.run("bak-state", args.split(' ').filter(|word| !word.is_empty())).column("level").join(" ")
    };
    // In the order of their names: db-1, lab, web. All have been due for twelve hours.
    let rules = "[[guest]]\nmatch = \"db-*\"\nmax_age = \"6h\"\n[[guest]]\nmatch = \"lab\"\nmax_age = \"30d\"\n";
    config(rules);
    assert_eq!(levels(""), "critical critical ok ok", "one more: nobody looks every six hours");
    observe(&kit, &at(1, 12), "", &[("web", "a"), ("db-1", "a"), ("lab", "a")]);
    assert_eq!(levels(""), "critical ok ok");
    assert_eq!(levels("--max-age 6h"), "critical ok critical");
    assert_eq!(levels("--max-age 12h"), "critical ok ok");
    config(&format!("max_age = \"6h\"\n{rules}"));
    assert_eq!(levels(""), "critical ok critical");
    assert_eq!(levels("--max-age 26h"), "critical ok ok");
    assert_eq!(levels("web lab"), "ok critical");
    let ran = kit.run("bak-state", ["check", "--check-config", "--config", "bak.toml"]).clean();
    let ages: Vec<Option<u64>> = ran.records().iter().map(|record| record["max_age_s"].as_u64()).collect();
    assert_eq!(ages, [Some(21_600), Some(2_592_000), Some(21_600)]);
}

#[test]
fn what_keeps_it_from_judging_is_unknown() {
    let kit = Kit::new();
    let unknown = |ran: Ran, says: &str| {
        let ran = ran.expect(3);
        let line = ran.out.strip_suffix('\n').unwrap();
        assert!(line.starts_with("BAK UNKNOWN - ") && line.contains(says) && !line.contains('\n'), "{line}");
        assert!(!ran.err.is_empty());
    };
    let now = at(1, 2);
    unknown(check(&kit, &now, ""), "there is no database at db");
    kit.write("db/vmtool-db-version", "DB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", "");
    unknown(check(&kit, &now, ""), "the database has no guests");
    observe(&kit, &at(1, 1), "", &[("web", "a")]);
    check(&kit, &now, "").clean();
    unknown(check(&kit, &now, "web wbe"), "wbe: no such guest");
    unknown(check(&kit, &now, "w[b"), "no name or pattern");
    unknown(check(&kit, &now, "--tag prod"), "no guest fits");
    unknown(check(&kit, &now, "--max-age soon"), "soon");
    unknown(check(&kit, &now, "--no-such"), "--no-such");
    unknown(check(&kit, &now, "--store nowhere"), "there is no store at nowhere");
    unknown(check(&kit, &now, "--config nowhere.toml"), "nowhere.toml");
    unknown(check(&kit, &now, "--dest box"), "there is no destination `box`");
    unknown(check(&kit, &now, "--prometheus no/where.prom"), "cannot write no/where.prom");
    unknown(kit.run("bak-state", ["check", "--config", "/dev/null"]), "no database");
    unknown(kit.run_with("bak-state", ["check", "-", "--db", "db"], "not json\n"), "standard input");
    let ran = check(&kit, &now, "wbe --json").expect(3);
    assert_eq!(ran.column("level"), ["unknown"]);
    assert_eq!(check(&kit, &now, "wbe -q").expect(3).out, "");
    let lock = fs::File::open(kit.path("db/vmtool-dblock")).unwrap();
    lock.lock().unwrap();
    unknown(check(&kit, &now, "--wait 0"), "is locked by");
    drop(lock);
    for (file, text) in [("vmtool-details", "{\"vm\":\"web\""), ("vmtool-statedb", "web:FINE\n")] {
        kit.write(&format!("db/{file}"), text);
        unknown(check(&kit, &now, ""), &format!("{file}:1"));
    }
    kit.write("db/vmtool-db-version", "DB_VERSION: 7\n");
    unknown(check(&kit, &now, ""), "it says `7`");
    kit.run("bak-state", ["check", "--help"]).clean();
}

#[test]
fn names_cannot_leave_their_place() {
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("a|b\nOK", "a")]);
    let ran = check(&kit, &at(1, 2), "").clean();
    assert_eq!(parts(&ran).1["guests"], "1");
    observe(&kit, &at(3, 1), "", &[("a|b\nOK", "a")]);
    let ran = check(&kit, &at(3, 2), "").expect(2);
    assert!(parts(&ran).0.starts_with("BAK CRITICAL - 1 of 1 guest: a\\u{7c}b\\nOK: due for"), "{}", ran.out);
    let ran = check(&kit, &at(3, 2), "--explain").expect(2);
    assert_eq!((ran.out.lines().count(), ran.out.matches('|').count()), (2, 1));
}

#[test]
fn records_say_what_the_manual_says() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Problem {
        level: String,
        what: String,
        dest: Option<String>,
        why: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        v: u32,
        r#type: String,
        vm: String,
        status: String,
        level: String,
        last_dump: Option<String>,
        due: Option<String>,
        last_sent: BTreeMap<String, String>,
        failures: u32,
        problems: Vec<Problem>,
        why: String,
        planned: bool,
    }
    let kit = Kit::new();
    observe(&kit, &at(1, 1), "", &[("web", "a")]);
    dump(&kit, "web", "a", &at(1, 2));
    put_dump(&kit.path("outbox/.bak/sent"), "web", "2026-10-01T02:00:00Z", 100, json!({}));
    observe(&kit, &at(2, 1), "", &[("web", "b")]);
    fail(&kit, "web", &at(2, 2));
    let more = "--json -n --store store --outbox outbox --sent-max-age 1d";
    let ran = check(&kit, &at(2, 3), more).expect(2);
    let line: Line = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((line.v, line.r#type.as_str(), line.vm.as_str()), (1, "check", "web"));
    assert_eq!((line.status.as_str(), line.level.as_str(), line.failures), ("BACKUP_NECESSARY", "critical", 1));
    assert_eq!((line.last_dump, line.due), (Some(at(1, 2)), Some(at(2, 1))));
    assert_eq!(line.last_sent["default"], "2026-10-01T02:00:00Z");
    assert!(line.planned && !line.why.is_empty());
    let [behind, failed] = &line.problems[..] else { panic!("{}", ran.out) };
    assert_eq!((behind.what.as_str(), behind.dest.as_deref()), ("behind", Some("default")));
    assert_eq!((failed.level.as_str(), failed.what.as_str(), failed.dest.is_none()), ("warning", "failed", true));
    assert!(behind.why.contains("2026-10-01"));
}
