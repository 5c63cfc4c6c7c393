//! "Coming from the old script" in the README, on directories as the old script left them: its commands are run as they stand
//! there.

use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Ran, noise};
use serde_json::Value;
use std::fs;

/// What stands in the chapter between ```KIND and ```, the first of that kind.
fn block(kind: &str) -> String {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let chapter = readme.split("\n## ").find(|chapter| chapter.starts_with("Coming from the old script\n")).unwrap();
    let (_, rest) = chapter.split_once(&format!("\n```{kind}\n")).unwrap();
    rest.split_once("\n```\n").unwrap().0.to_owned() + "\n"
}

/// A dump as the script made it: vzdump's stream through lzop, under its final name from the first byte on.
fn dump(kit: &Kit, name: &str, seed: u64, time: &str) {
    kit.write("stream", noise(seed, 300_000));
    kit.sh(&format!("lzop -c stream >store/{name} && touch -d '{time}' store/{name} && rm stream")).clean();
}

/// A node on which the script ran for some days, and what its other half has put onto the box.
fn left_by_the_script() -> (Kit, Sshd) {
    let kit = Kit::new();
    let sshd = Sshd::start(&kit.path("sshd"));
    kit.write("root/vms.list", "# guests\nweb sync\nweb-2 sync\n\ndb sync\nmail sync\nscratch nosync\n");
    let days = [("web", 18), ("web", 19), ("web-2", 19), ("db", 18), ("mail", 20), ("scratch", 20)];
    for (at, (vm, day)) in days.into_iter().enumerate() {
        let ending = if vm == "db" { "tar" } else { "vma" };
        let name = format!("{vm}-2018_10_{day}-01_00_02.{ending}.lzo");
        dump(&kit, &name, at as u64, &format!("2018-10-{day} 01:20:00"));
    }
    // One link of each guest; of db local retention has taken the dump itself since.
    let link = "cd store && mkdir .rsync && ln web-2018_10_19* web-2-2018_10_19* db-2018_10_18* .rsync && rm db-*";
    kit.sh(&format!("{link} && echo 4242424242 >.rsync/.limit && mkdir ../far")).clean();
    // Older ones are still there, too.
    let rsync = format!("rsync -a --exclude='.*' -e '{}' store/.rsync/", sshd.command());
    kit.sh(&format!("{rsync} {}/ && cp -p store/web-2018_10_18* far/", sshd.url(&kit.path("far")))).clean();
    // Made since; and one in the middle of which the script was killed.
    dump(&kit, "db-2018_10_20-01_00_02.tar.lzo", 9, "2018-10-20 01:20:00");
    dump(&kit, "mail-2018_10_21-01_00_02.vma.lzo", 10, "2018-10-21 01:20:00");
    kit.sh("f=store/mail-2018_10_21-01_00_02.vma.lzo; truncate -s 100000 $f; touch -d '2018-10-21 01:20:00' $f")
        .clean();
    (kit, sshd)
}

/// Its line, with what is here instead of what is there.
fn here(kit: &Kit, line: &str) -> String {
    let line = line.replace("/var/lib/vz/dump", &kit.store().display().to_string());
    let line = line.replace("/root/", "root/").replace("/etc/bak/bak.toml", "bak.toml");
    let words: Vec<String> = line.split(" #").next().unwrap().split(' ').map(str::to_owned).collect();
    if words[0].starts_with("bak-") { format!("{} --config bak.toml", words.join(" ")) } else { words.join(" ") }
}

fn decisions(ran: &Ran, of: &str) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let decision = |record: &Value| (word(&record["id"]), word(&record[of]["box"]["decision"]));
    let mut all: Vec<_> = ran.records().iter().filter(|record| record["type"] == "dump").map(decision).collect();
    all.sort();
    all
}

#[test]
fn what_the_old_script_left_is_adopted_at_both_ends_and_nothing_of_it_ships_again() {
    let (kit, sshd) = left_by_the_script();
    let ssh: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
    let config = block("toml").replace("/var/lib/vz/dump", &kit.store().display().to_string());
    let url = format!("{}\"\nssh = [{}]", sshd.url(&kit.path("far")), ssh.join(", "));
    kit.write("bak.toml", config.replace("backup@box:/srv/backup/pve1\"", &url));
    let far = || kit.sh("cd far && find . -type f -name '*.lzo' | sort | xargs sha256sum").clean().out;
    let (before, commands) = (far(), block("sh"));
    let run = |line| (line, kit.sh(&here(&kit, line)).clean());
    let ran: Vec<(&str, Ran)> = commands.lines().map(run).collect();
    let of_line = |begin: &str| &ran.iter().rfind(|(line, _)| line.starts_with(begin)).expect(begin).1;
    let ids = [
        "db@20181018T010002Z",
        "db@20181020T010002Z",
        "mail@20181020T010002Z",
        "scratch@20181020T010002Z",
        "web-2@20181019T010002Z",
        "web@20181018T010002Z",
        "web@20181019T010002Z",
    ];
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(sorted(kit.run("bak-list", ["--config", "bak.toml"]).clean().column("id")), ids);
    assert_eq!(sorted(of_line("bak-scan").column("id")), ids);
    let (_, plan) = ran.iter().find(|(line, _)| line.starts_with("bak-scan") && line.contains(" -n ")).unwrap();
    let cut = plan.records().into_iter().find(|record| record["file"] == "mail-2018_10_21-01_00_02.vma.lzo");
    assert!(cut.expect("the one that was cut off")["why"].as_str().unwrap().contains("does not end as lzop"));
    let (looked, reconciled) = (of_line("bak-sync --reconcile -n"), of_line("bak-sync --reconcile  "));
    let linked = of_line("bak-link -n --explain");
    let there = [ids[0], ids[4], ids[5], ids[6]].map(|id| (id.to_owned(), "adopted".to_owned()));
    assert_eq!((decisions(looked, "reconcile"), decisions(reconciled, "reconcile")), (there.to_vec(), there.to_vec()));
    let decided = decisions(linked, "link");
    let of = |id: &str| decided.iter().find(|one| one.0 == id).map(|one| one.1.as_str());
    // Two days newer than its copy is not staler than it may be; one was never sent; one is not to be.
    assert_eq!((of(ids[1]), of(ids[2]), of(ids[6])), (Some("not due"), Some("linked"), Some("sent")));
    assert_ne!(of(ids[3]), Some("linked"), "{decided:?}");
    assert_eq!(far(), before);
    // And so it is carried out: one dump of 300 kB goes.
    kit.sh("bak-link --config bak.toml").clean();
    let sent = kit.sh("bak-sync --config bak.toml").clean();
    assert_eq!(sent.column("id"), [ids[2]]);
    assert!(sent.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap() < 400_000, "{}", sent.out);
    assert!(!kit.store().join(".rsync").exists());
    // What lies over there is a store now, and is expired as one: of web all but the last.
    let pruned = kit.sh("bak-prune --config bak.toml --dest box").clean();
    assert_eq!(pruned.column("id"), [ids[5]]);
    let shown = kit.sh(&format!("bak-list --config bak.toml {}", kit.path("far").display())).clean();
    assert_eq!(sorted(shown.column("id")), [ids[0], ids[2], ids[4], ids[6]]);
    assert_eq!(shown.column("fault"), ["", "", "", ""]);
    let purge = "--purge web --yes-purge web --config bak.toml";
    kit.sh(&format!("bak-prune --dest box {purge} && bak-prune store {purge}")).clean();
    assert_eq!(kit.sh("find far store -name 'web-2018*' -not -path '*/.*'").out, "");
}
