//! The whole job in one line of `sh`, over ssh to a real sshd, on real disk images; and what may go wrong between stages.

use bak_tests::sshd::Sshd;
use bak_tests::{Kit, check_store, noise};
use std::fs;

/// Three guests, a configuration with a database and an ssh destination that was initialised.
fn scene() -> (Kit, Sshd) {
    let kit = Kit::new();
    for (name, bytes) in [("web", 3 << 20), ("db", 2 << 20), ("my mail", 1 << 20)] {
        kit.write(&format!("images/{name}.raw"), noise(name.len() as u64, bytes));
    }
    fs::create_dir(kit.path("far")).unwrap();
    let sshd = Sshd::start(&kit.path("sshd"));
    let ssh: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
    let config = format!(
        "store = \"store\"\ndb = \"state\"\nreserve = \"1M\"\nkeep = {{ last = 2 }}\n[image]\nimages = [\"images\"]\n\
         [[dest]]\nname = \"box\"\nurl = \"{}\"\nssh = [{}]\n",
        sshd.url(&kit.path("far")),
        ssh.join(", ")
    );
    kit.write("bak.toml", config);
    kit.sh("bak-sync --config bak.toml --init").clean();
    (kit, sshd)
}

const STAGES: [&str; 5] = ["bak-guests", "bak-state observe --due -", "bak-dump -", "bak-link -", "bak-sync -"];

fn line(now: &str, between: &str) -> String {
    STAGES.map(|stage| format!("{stage} --config bak.toml --now {now}")).join(between)
}

#[test]
fn one_line_does_it_all_and_so_it_does_with_jq_between_any_two_stages() {
    let (kit, _sshd) = scene();
    let ran = kit.sh(&line("2026-11-19T01:00:00Z", " | ")).clean();
    let ids = ["db@20261119T010000Z", "my mail@20261119T010000Z", "web@20261119T010000Z"];
    let mut sent = ran.column("id");
    sent.sort();
    assert_eq!(sent, ids);
    for place in ["store", "far"] {
        let seen = check_store(&kit.path(place));
        assert_eq!(
            (seen.whole, seen.broken.len(), seen.strange.len(), seen.unfinished.len()),
            (ids.map(str::to_owned).to_vec(), 0, 0, 0)
        );
    }
    // Nothing has changed: nothing is due, nothing happens.
    let ran = kit.sh(&line("2026-11-19T02:00:00Z", " | ")).clean();
    assert_eq!(ran.out, "");
    // One guest changes, and jq stands between any two stages.
    kit.write("images/web.raw", noise(9, 3 << 20));
    let ran = kit.sh(&line("2026-11-20T01:00:00Z", " | jq -c . | ")).clean();
    assert_eq!(ran.column("id"), ["web@20261120T010000Z"]);
    assert_eq!(check_store(&kit.path("far")).whole.len(), 4);
    let list = kit.sh("bak-list --config bak.toml").clean();
    assert!(list.records().iter().all(|dump| dump["sent"]["box"]["at"].is_string()), "{}", list.out);
}

#[test]
fn what_a_stage_adds_survives_to_the_end() {
    let (kit, _sshd) = scene();
    let stages = STAGES.map(|stage| format!("{stage} --config bak.toml --now 2026-11-19T01:00:00Z"));
    let [guests, observe, dump, link, sync] = &stages;
    let tagged = format!(
        "{guests} | jq -c '. + {{\"x-job\": \"nightly\"}}' | {observe} | {dump} | {link} | jq -c '. + {{\"x-late\": 1}}' | {sync}"
    );
    let ran = kit.sh(&tagged).clean();
    assert_eq!(ran.records().len(), 3);
    for dump in ran.records() {
        assert_eq!((&dump["x-job"], &dump["x-late"]), (&"nightly".into(), &1.into()), "{dump}");
    }
}

#[test]
fn a_dry_run_is_refused_by_a_real_one_and_changes_nothing() {
    let (kit, _sshd) = scene();
    let common = "--config bak.toml --now 2026-11-19T01:00:00Z";
    let planned = kit.sh(&format!("bak-guests {common} | bak-dump -n - {common}")).clean();
    assert!(planned.records().iter().all(|record| record["planned"] == true));
    for real in ["bak-dump -", "bak-link -", "bak-sync -", "bak-state observe -", "bak-prune -"] {
        kit.sh(&format!("bak-guests {common} | bak-dump -n - {common} | {real} {common}")).expect(2).says("dry run");
    }
    assert!(check_store(&kit.store()).whole.is_empty());
    let all_dry = STAGES.map(|stage| format!("{stage} -n {common}")).join(" | ");
    kit.sh(&all_dry).clean();
    assert!(check_store(&kit.store()).whole.is_empty() && check_store(&kit.path("far")).whole.is_empty());
}

#[test]
fn one_bad_guest_keeps_no_other_from_shipping() {
    let (kit, _sshd) = scene();
    kit.write("images/broken.qcow2", "QFI\u{fb}no image at all");
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts");
    let common = "--config bak.toml --now 2026-11-19T01:00:00Z";
    kit.sh(&format!("{scripts}/bak-cron-dump {common}")).expect(1).says("broken");
    let ran = kit.sh(&format!("{scripts}/bak-cron-ship {common}")).clean();
    assert_eq!(ran.out, "", "cron mails what it sees");
    assert_eq!(check_store(&kit.path("far")).whole.len(), 3);
}

#[test]
fn cron_expires_over_there_what_it_is_told_to() {
    let (kit, _sshd) = scene();
    let config = fs::read_to_string(kit.path("bak.toml")).unwrap();
    kit.write("bak.toml", config.replace("[[dest]]", "[[dest]]\nkeep = { last = 1 }"));
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts");
    for (day, expire, left) in [(18, "", 3), (19, "", 6), (20, "BAK_EXPIRE=box", 3)] {
        let common = format!("--config bak.toml --now 2026-11-{day}T01:00:00Z");
        for name in ["web", "db", "my mail"] {
            kit.write(&format!("images/{name}.raw"), noise(day, 1 << 20));
        }
        kit.sh(&format!("{scripts}/bak-cron-dump {common}")).clean();
        let ran = kit.sh(&format!("{expire} {scripts}/bak-cron-ship {common}")).clean();
        assert_eq!((ran.out.as_str(), check_store(&kit.path("far")).whole.len()), ("", left), "{day}");
    }
}

/// The unit for systemd leaves no more than these; what it does is done with them.
#[test]
fn shipping_needs_no_more_than_its_unit_allows() {
    let (kit, _sshd) = scene();
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts");
    let unit = fs::read_to_string(format!("{scripts}/systemd/bak-ship.service")).unwrap();
    let allowed = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let allowed: String = allowed.split(' ').map(|name| format!(",+{}", name[4..].to_lowercase())).collect();
    let common = "--config bak.toml --now 2026-11-19T01:00:00Z";
    kit.sh(&format!("{scripts}/bak-cron-dump {common}")).clean();
    let bounded = format!("setpriv --no-new-privs --bounding-set=-all{allowed}");
    kit.sh(&format!("BAK_EXPIRE=box {bounded} {scripts}/bak-cron-ship {common}")).clean();
    assert_eq!(check_store(&kit.path("far")).whole.len(), 3);
}
