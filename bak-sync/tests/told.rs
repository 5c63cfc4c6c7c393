//! What a pass tells: its figures in the ledger, in the log and on a terminal, and what has crossed of what was begun.

mod common;

use bak_tests::clock::hour;
use bak_tests::{Ran, noise};
use common::{DAY1, Place};
use serde_json::{Value, json};
use std::fs;

/// Runs bak-sync on a terminal of so many columns; what it shows, each line as it stands in the end.
fn on_terminal<const N: usize>(place: &Place, columns: u32, more: [&str; N]) -> Ran {
    let (program, args) = place.command(more);
    let words: Vec<String> = args.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("stty rows 24 cols {columns}; {} {}", program.display(), words.join(" "));
    let mut command = place.kit.command("script");
    command.args(["-qec", &line, "/dev/null"]);
    bak_tests::finish(command, "")
}

/// The lines of a terminal's output that were drawn, without what moves its cursor.
fn drawn(out: &str) -> Vec<String> {
    let mut text = String::new();
    let mut rest = out;
    while let Some((before, after)) = rest.split_once('\x1b') {
        text += before;
        text.push('\n');
        let end = after.find(|c: char| c.is_ascii_alphabetic()).map_or(after.len(), |at| at + 1);
        rest = &after[end..];
    }
    text += rest;
    text.split(['\n', '\r']).map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[test]
fn the_figures_of_a_pass_are_in_the_ledger_and_in_the_log() {
    let place = Place::new(true);
    let log = place.kit.path("log");
    place.kit.write("bak.toml", format!("log = \"{}\"\n", log.display()));
    place.wait_with("big", DAY1, &noise(1, 900_000), json!({"rank": 3, "cost": 900_000}));
    place.wait_there("good", DAY1, 50_000, json!({"rank": 1}));
    place.wait_there("bad", DAY1, 1000, json!({"rank": 2}));
    fs::write(place.far().join("bad"), "in the way").unwrap();
    let ran = place.sync(["--config", "bak.toml", "--limit", "300K", "--limit", "1G/day"]).expect(1);
    let lines = place.ledger();
    let pass = lines.last().unwrap();
    let figure = |key: &str| pass[key].as_u64().unwrap();
    assert_eq!((figure("sent"), figure("failed"), figure("cut"), figure("pending")), (1, 1, 1, 2), "{pass}");
    assert_eq!((figure("bytes"), &pass["ended"], &pass["limited"]), (50_000, &json!("limit"), &json!(true)));
    // Also the look at the far side.
    let all = figure("wire_out") + figure("wire_in");
    assert_eq!(all, place.counted());
    let limit = |at: usize, key: &str| pass["limits"][at][key].clone();
    assert_eq!((limit(0, "limit"), limit(0, "bytes"), limit(0, "used")), (json!("307200"), json!(307_200), json!(all)));
    assert_eq!((limit(1, "limit"), limit(1, "used")), (json!(format!("{}/day", 1 << 30)), json!(all)));
    let logged: Vec<Value> =
        fs::read_to_string(log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = logged.last().unwrap();
    assert_eq!((&told["type"], &told["v"], &told["program"]), (&json!("pass"), &json!(1), &json!("bak-sync")));
    let same = |key: &str| told[key] == pass[key];
    assert!(["id", "at", "dest", "wire_out", "seconds", "sent", "limits", "ended"].into_iter().all(same), "{told}");
    // Standard output is dumps and nothing else.
    assert!(ran.records().iter().all(|record| record["type"] == "dump"));
    // What has crossed of the dump that was cut.
    let of = |ran: &Ran| ran.records().into_iter().find(|record| record["vm"] == "big").unwrap();
    let begun = of(&ran)["begun"]["box"].clone();
    let attempt = lines.iter().rfind(|line| line["dump"] == of(&ran)["id"]).unwrap();
    assert_eq!(
        (&begun["wire_out"], &begun["wire_in"], &begun["passes"]),
        (&attempt["wire_out"], &attempt["wire_in"], &json!(1))
    );
    let planned = place.sync(["-n"]).clean();
    assert_eq!(of(&planned)["begun"]["box"], begun);
    assert!(planned.records().iter().all(|record| record["vm"] == "big" || record["vm"] == "bad"));
}

#[test]
fn a_terminal_shows_two_lines_that_fit_and_what_came_of_the_pass() {
    let until = hour(6);
    for (columns, shown) in [(80, ["of 1.9 MiB", &format!("until {until}")]), (60, ["/s", "a pass"])] {
        let place = Place::new(false);
        place.wait_with("web", DAY1, &noise(1, 2_000_000), json!({"rank": 1}));
        place.wait_there("db", DAY1, 1000, json!({"rank": 2}));
        let ran =
            on_terminal(&place, columns, ["--bwlimit", "600K", "--limit", "10M", "--until", &until, "--tz", "UTC"])
                .clean();
        let lines = drawn(&ran.out);
        let find = |what: &str| lines.iter().any(|line| line.contains(what));
        assert!(lines.iter().all(|line| line.chars().count() <= 2 * columns as usize), "{lines:?}");
        assert!(find("web@20261118T010000Z: ") && find(" %  ") && find("1 of 2"), "{lines:?}");
        assert!(shown.iter().all(|text| find(text)), "{lines:?}");
        // What stays is the table, narrower where there is less room, and the sum.
        assert!(find("STATE") && find("box: 2 sent (1.9 MiB)") && find(" used of 10 MiB a pass, "), "{lines:?}");
        assert_eq!(find("TIME"), columns == 80, "{lines:?}");
        // Nothing of that where nobody watches.
        place.wait_there("last", DAY1, 1000, json!({}));
        assert_eq!(place.sync([]).clean().out.lines().count(), 1);
    }
}

#[test]
fn a_failure_is_told_in_words_that_fit_it_and_without_an_empty_table() {
    let kit = bak_tests::Kit::new();
    let init = ["--outbox", "outbox", "--dest", "box=127.0.0.1:/nowhere", "--ssh", "ssh -F none -p 1", "--init"];
    let ran = kit.run("bak-sync", init).expect(1).says("Connection refused");
    assert!(ran.err.ends_with("bak-sync: 1 failed; run --init again when that is mended\n"), "{}", ran.err);
    let place = Place::new(false);
    place.wait_there("web", DAY1, 1000, json!({}));
    fs::remove_file(place.far().join(".bak-store")).unwrap();
    let ran = on_terminal(&place, 80, []).expect(4);
    assert_eq!(drawn(&ran.out).len(), 2, "{}", ran.out);
    assert!(ran.out.contains("1 failed; what is pending stays pending"), "{}", ran.out);
}
