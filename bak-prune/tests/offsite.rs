//! `--only-sent`, judged by the history of an outbox; and the bases of deltas in a destination's copy.

use bak_tests::{Kit, Ran, check_store, put_dump};
use serde_json::json;
use std::fs;

const NOW: &str = "2026-11-20T12:00:00Z";

fn prune<'a>(kit: &Kit, args: impl IntoIterator<Item = &'a str>) -> Ran {
    kit.run("bak-prune", args.into_iter().chain(["--tz", "UTC", "--now", NOW]))
}

/// One dump a night, at 01:00, from the 1st of November to the 20th.
fn nights(kit: &Kit) -> Vec<String> {
    (1..=20).map(|day| kit.dump("web", &format!("2026-11-{day:02}T01:00:00Z"), 100)).collect()
}

/// Has a dump of the store count as sent to `box` at noon of another day.
fn sent(kit: &Kit, day: u32, at: u32) {
    let note =
        json!({"at": format!("2026-11-{at:02}T12:00:00Z"), "wire_out": 1, "wire_in": 1, "seconds": 1, "passes": 1});
    let history = kit.path("store/.outbox-box/.bak/sent");
    put_dump(&history, "web", &format!("2026-11-{day:02}T01:00:00Z"), 100, json!({"sent": {"box": note}}));
}

fn reason(ran: &Ran, id: &str) -> String {
    let record = ran.records().into_iter().find(|record| record["id"] == id).unwrap_or_else(|| panic!("{id}: {ran:?}"));
    format!("{}: {}", record["prune"]["decision"].as_str().unwrap(), record["prune"]["reasons"])
}

const RULES: [&str; 5] = ["store", "--keep-last", "2", "--only-sent", "box"];

#[test]
fn what_is_not_known_to_be_there_waits_for_its_grace() {
    let kit = Kit::new();
    let web = nights(&kit);
    for (day, at) in [(5, 5), (8, 8), (14, 14), (15, 15), (16, 21)] {
        sent(&kit, day, at);
    }
    let ran = prune(&kit, RULES.into_iter().chain(["--explain", "-n"])).clean();
    let decision = |day: usize| reason(&ran, &web[day - 1]);
    // Two weeks and 11 hours old: its grace has passed, whatever happened to it.
    assert!(decision(6).starts_with("remove"), "{}", decision(6));
    assert!(
        decision(7).contains("spared")
            && decision(7).contains("not known to be at box: kept until 2026-11-21T01:00:00Z"),
        "{}",
        decision(7)
    );
    assert!(decision(7).contains("last: 2 of 2 used"), "also why it would go: {}", decision(7));
    // Sent twelve days ago and not seen since; sent on the 14th, six days ago.
    assert!(decision(8).contains("not seen at box since 2026-11-08T12:00:00Z: kept until"), "{}", decision(8));
    assert!(decision(14).starts_with("remove") && decision(15).starts_with("remove"));
    assert!(
        decision(16).contains("not seen at box since 2026-11-21"),
        "a sighting of tomorrow is none: {}",
        decision(16)
    );
    assert!(decision(19).starts_with("keep: [\"last #2"));
    // A fresh listing of the far side shows all that counts as sent.
    kit.write("store/.outbox-box/.bak/sighted", "{\"v\":1,\"at\":\"2026-11-19T12:00:00Z\"}");
    let ran = prune(&kit, RULES).clean();
    let gone = [1, 2, 3, 4, 5, 6, 8, 14, 15].map(|day: usize| web[day - 1].clone());
    assert_eq!(ran.column("id"), gone);
    // A listing that has grown old shows nothing.
    kit.write("store/.outbox-box/.bak/sighted", "{\"v\":1,\"at\":\"2026-11-01T12:00:00Z\"}");
    assert_eq!(prune(&kit, RULES).clean().out, "");
    assert_eq!(prune(&kit, RULES.into_iter().chain(["--unsent-grace", "5d"])).clean().column("id").len(), 6);
}

#[test]
fn a_line_that_is_down_for_a_month_neither_loses_what_counts_nor_fills_the_disk() {
    let kit = Kit::new();
    fs::create_dir_all(kit.path("store/.outbox-box/.bak")).unwrap();
    let mut most = 0;
    for day in 1..=60 {
        let date = kit.sh(&format!("date -u -d '2026-09-01 +{day} days' +%Y-%m-%dT01:00:00Z")).out.trim().to_owned();
        kit.dump("web", &date, 10);
        let now = date.replace("T01", "T02");
        let args = ["store", "--keep-last", "3", "--only-sent", "all", "--tz", "UTC", "--now", &now];
        let config = kit.write("bak.toml", "[[dest]]\nname = \"box\"\n[[guest]]\nmatch = \"other\"\nsync = []\n");
        kit.run("bak-prune", args.into_iter().chain(["--config", config.to_str().unwrap()])).clean();
        let left = check_store(&kit.store()).whole.len();
        // Everything of fourteen days.
        assert_eq!(left, day.min(14), "day {day}");
        most = most.max(left);
    }
    assert_eq!(most, 14);
}

#[test]
fn guests_that_are_not_sent_there_need_not_wait_and_mistakes_are_said() {
    let kit = Kit::new();
    nights(&kit);
    prune(&kit, RULES).expect(2).says("cannot tell what is at box: there is no outbox at ");
    prune(&kit, ["store", "--only-sent", "all"]).expect(2).says("no [[dest]]");
    prune(&kit, ["store", "--only-sent", "../x"]).expect(2);
    prune(&kit, ["store", "--sighted", "1d"]).expect(2);
    assert_eq!(check_store(&kit.store()).whole.len(), 20);
    fs::create_dir_all(kit.path("elsewhere/.bak")).unwrap();
    kit.write("bak.toml", "[[dest]]\nname = \"box\"\noutbox = \"elsewhere\"\n[[guest]]\nmatch = \"web\"\nsync = []\n");
    let ran = prune(&kit, RULES.into_iter().chain(["--config", "bak.toml", "-n"])).clean();
    assert_eq!(ran.out.lines().count(), 18);
    assert_eq!(prune(&kit, RULES.into_iter().chain(["--outbox", "elsewhere", "-n"])).clean().out.lines().count(), 6);
    // A history that cannot be read is no proof.
    kit.write("elsewhere/.bak/sent/web/web-20261115T010000Z.dump.json", "{");
    let ran =
        prune(&kit, RULES.into_iter().chain(["--outbox", "elsewhere", "-n"])).expect(1).says("counts as not sent");
    assert_eq!(ran.out.lines().count(), 6);
    kit.write("elsewhere/.bak/sighted", "{");
    prune(&kit, RULES.into_iter().chain(["--outbox", "elsewhere", "-n"])).expect(1).says("elsewhere/.bak/sighted");
}

#[test]
fn what_a_pending_delta_is_made_against_stays_over_there() {
    let kit = Kit::new();
    let far = kit.path("far");
    for day in [10, 11, 12] {
        put_dump(&far, "web", &format!("2026-11-{day}T01:00:00Z"), 100, json!({}));
        if day < 12 {
            sent(&kit, day, day);
        }
    }
    let link = json!({"box": {"decision": "linked", "why": "never sent", "at": "2026-11-13T02:00:00Z", "rank": 1}});
    put_dump(&kit.path("store/.outbox-box"), "web", "2026-11-13T01:00:00Z", 100, json!({"link": link}));
    let config =
        format!("store = \"{}\"\n[[dest]]\nname = \"box\"\nurl = \"{}\"\n", kit.store().display(), far.display());
    kit.write("bak.toml", config);
    let args = ["far", "--keep-last", "1", "--config", "bak.toml"];
    let ran = prune(&kit, args.into_iter().chain(["--explain", "-n"])).clean();
    assert!(
        reason(&ran, "web@20261111T010000Z")
            .contains("spared: [\"web@20261113T010000Z, which waits to be sent, needs it")
    );
    assert!(reason(&ran, "web@20261110T010000Z").starts_with("remove"));
    prune(&kit, ["far", "web@20261111T010000Z", "--config", "bak.toml"]).expect(4).says("waits to be sent");
    assert_eq!(prune(&kit, args).clean().column("id"), ["web@20261110T010000Z"]);
    // Nothing waits any more.
    fs::remove_dir_all(kit.path("store/.outbox-box/web")).unwrap();
    assert_eq!(prune(&kit, args).clean().column("id"), ["web@20261111T010000Z"]);
}
