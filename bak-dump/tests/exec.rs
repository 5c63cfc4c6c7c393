//! Programs as drivers: the protocol, and programs that break it.

mod machines;
mod toy;

use bak_tests::check_store;
use bak_tests::process::{wait_for, wait_for_workers};
use machines::{Small, config, processes};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use toy::Toy;

#[test]
fn a_dump_by_a_program_and_back() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"db\",\"kind\":\"sql\",\"live\":true,\"state\":\"running\",\"tags\":[\"prod\"],\"fingerprint\":\"f1\",\"x\":7}\n");
    toy.does(
        "dump",
        r#"read -r record; printf '%s\n' "$record" >"$TOY/record"; pwd >"$TOY/cwd"
        echo '{"stream":"sql","mode":"snapshot","progress":0.5}'
        seq 100000 >&3
        echo notes on how it went >&2
        echo more >"$BAK_BASE.roles.txt"; echo scrap >"$BAK_BASE.scrap"; mkdir deep; echo x >deep/x; echo x >"$BAK_BASE.sql.zst.notes"
        printf '{"file":"roles.txt","fingerprint":"f2","record":{"version":15,"vm":"evil","listed_as":"evil"}}'"#,
    );
    let ran = toy.run("bak-dump", &["--driver", "toy", "--store", "store", "db"]).clean();
    let record = &ran.records()[0];
    assert_eq!(
        (&record["driver"], &record["kind"], &record["mode"]),
        (&json!("toy"), &json!("sql"), &json!("snapshot"))
    );
    assert_eq!((&record["tags"], &record["version"], &record["vm"]), (&json!(["prod"]), &json!(15), &json!("db")));
    assert!(record.get("listed_as").is_none());
    let stem = record["stem"].as_str().unwrap();
    let names: Vec<_> = record["files"].as_array().unwrap().iter().map(|file| file["name"].clone()).collect();
    assert_eq!(names, [format!("{stem}.sql.zst"), format!("{stem}.roles.txt")]);
    // What it saw.
    let saw: serde_json::Value = serde_json::from_str(&toy.read("record")).unwrap();
    assert_eq!((&saw["vm"], &saw["x"], &saw["driver"]), (&json!("db"), &json!(7), &json!("toy")));
    assert!(toy.read("cwd").trim_end().ends_with(&format!("/.bak/work/{stem}")));
    // What lies there: the dump, its log, and nothing else.
    let dir = toy.kit.store().join("db");
    let mut there: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(there, ["dump.json", "log", "roles.txt", "sql.zst"].map(|end| format!("{stem}.{end}")));
    assert_eq!(fs::read_to_string(dir.join(format!("{stem}.log"))).unwrap(), "notes on how it went\n");
    for name in &names {
        let mode = fs::metadata(dir.join(name.as_str().unwrap())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let seen = check_store(&toy.kit.store());
    assert!(seen.broken.is_empty() && seen.unfinished.is_empty() && seen.whole.len() == 1, "{seen:?}");
    toy.kit.sh(&format!("seq 100000 >seq; zstd -dcq 'store/db/{stem}.sql.zst' | cmp - seq")).clean();
    toy.kit.run("bak-list", ["store"]).clean();

    toy.does(
        "verify",
        r#"read -r record; case $record in *'"id":"db@'*) ;; *) exit 1 ;; esac
        [ "$(cat "$BAK_BASE.roles.txt")" = more ]; echo '{"decision":"good","why":"looked at it"}'"#,
    );
    let ran = toy.run("bak-verify", &["--store", "store", "db"]).clean();
    assert_eq!(ran.records()[0]["verify"]["why"], "SHA-256 as recorded, zstd -t, the driver toy (looked at it)");

    toy.does(
        "restore",
        r#"read -r record; name=${BAK_AS:-$BAK_VM}
        if [ -e "$TOY/$name" ] && [ -z "$BAK_FORCE" ]; then echo "$name is there already" >&2; exit 4; fi
        echo "{\"to\":\"the database $name\"}"
        [ -z "$BAK_DRY_RUN" ] || exit 0
        zstd -dcq "$BAK_BASE.sql.zst" >"$TOY/$name"; echo "$BAK_TO,$BAK_FORMAT" >"$TOY/options""#,
    );
    let restore = |args: &[&str]| toy.run("bak-restore", &[&["--store", "store", "db"], args].concat());
    let ran = restore(&["-n"]).clean();
    assert_eq!(ran.records()[0]["restored"]["to"], json!(["the database db"]));
    assert!(!toy.path("db").exists());
    restore(&[]).clean();
    assert_eq!(toy.read("db"), fs::read_to_string(toy.kit.path("seq")).unwrap());
    assert_eq!(toy.read("options"), ",\n");
    restore(&[]).expect(4).says("bak-driver-toy refuses: db is there already");
    restore(&["--force"]).clean();
    restore(&["--as", "new", "--to", "there", "--format", "raw"]).clean();
    assert_eq!((toy.read("new") == toy.read("db"), toy.read("options").as_str()), (true, "there,raw\n"));
    // From another place a program decides where to, as an image may not.
    fs::rename(toy.kit.store(), toy.kit.path("copy")).unwrap();
    fs::create_dir(toy.kit.store()).unwrap();
    toy.run("bak-restore", &["--from", "copy", "db", "--as", "far"]).clean();
    assert_eq!(toy.read("far"), toy.read("db"));
}

#[test]
fn lines_that_are_no_guests_fail_and_the_others_go_on() {
    let toy = Toy::new();
    let long = format!("{{\"vm\":\"{}\"}}", "x".repeat(2 << 20));
    toy.lists(&format!("{{\"vm\":\"a\"}}\ngarbage\n{long}\n{{\"vm\":\"b\",\"size\":-1}}\n{{\"vm\":\"../c\"}}\n{{\"vm\":\"d\",\"failed\":\"no\\u001bway\"}}\n{{\"vm\":\"e"));
    let ran = toy.run("bak-guests", &["--driver", "toy"]).expect(1);
    assert_eq!(ran.column("vm"), ["a", "../c"]);
    assert_eq!(ran.column("kind"), ["toy", "toy"]);
    for text in [
        "bak-driver-toy list, line 2: it is no guest: expected value",
        "bak-driver-toy list, line 3: it is longer than 1048576 bytes",
        "bak-guests: b: it is no guest: invalid value",
        "bak-guests: d: no\\u{1b}way",
        "bak-driver-toy list, line 7: it is cut off",
        "5 could not be listed",
    ] {
        assert!(ran.err.contains(text), "{text}: {}", ran.err);
    }
    // A guest that was named and is there is dumped, whatever the others are.
    toy.does("dump", "echo '{\"stream\":\"x\"}'; echo data >&3");
    let ran = toy.run("bak-dump", &["--driver", "toy", "--store", "store", "../c"]).clean();
    assert!(ran.column("stem")[0].starts_with("%2E.%2Fc-"));

    for (script, text) in [
        ("printf '\\377\\376\\n'", "line 1: it is no guest"),
        ("yes | head -c 300000000", "it printed more than"),
        ("echo '{\"vm\":\"a\"}'; echo no server >&2; exit 3", "bak-driver-toy exited with status 3: no server"),
        ("kill -9 $$", "bak-driver-toy exited with status 137"),
        ("exit 64", "does not know the command list"),
    ] {
        toy.does("list", script);
        let ran = toy.run("bak-guests", &["--driver", "toy"]).expect(1).says(text);
        assert_eq!(ran.out, "", "{script}");
    }
}

/// What a driver may do wrong while it dumps, what is said of it, and whether a log is kept.
const WRONG: [(&str, &str, bool); 21] = [
    ("echo dumping; sleep 99", "bak-driver-toy printed `dumping`, which is no message: not a JSON object", false),
    ("printf '\\377\\n'", "which is no message", false),
    ("echo '{\"file\":\"x\",\"fiel\":1}'", "unknown field `fiel`", false),
    ("echo '{\"file\":\"../../x\"}'", "it names a file `../../x`", false),
    ("yes '{\"progress\":0.5}' | head -c 9000000 | tr -d '\\n'", "it prints a line of more than 1048576 bytes", false),
    ("echo '{\"file\":\"x\"}'", "x was not made", false),
    (": >\"$BAK_BASE.x\"; echo '{\"file\":\"x\"}'", "x is empty", false),
    ("ln -s /etc/passwd \"$BAK_BASE.x\"; echo '{\"file\":\"x\"}'", "x is a symbolic link", false),
    ("mkdir \"$BAK_BASE.x\"; echo '{\"file\":\"x\"}'", "x is not a regular file", false),
    ("mkfifo \"$BAK_BASE.x\"; echo '{\"file\":\"x\"}'", "x is not a regular file", false),
    ("ln \"$TOY/dump\" \"$BAK_BASE.x\"; echo '{\"file\":\"x\"}'", "x is a hard link to another file", false),
    ("echo data >&3", "wrote to descriptor 3 and did not say what that is", false),
    ("echo '{\"stream\":\"x\"}'", "named a stream and wrote nothing to descriptor 3", false),
    ("echo x >\"$BAK_BASE.x.zst\"; echo '{\"stream\":\"x\"}'; echo x >&3", "x.zst itself", false),
    ("exit 0", "bak-driver-toy ended well and made no file", false),
    (
        "echo '{\"stream\":\"x\"}'; echo half >&3; echo no more room >&2; exit 5",
        "exited with status 5: no more room",
        true,
    ),
    ("echo '{\"stream\":\"x\"}'; echo half >&3; kill -9 $$", "bak-driver-toy exited with status 137", false),
    ("echo waiting >&2; sleep 99", "bak-driver-toy took longer than 3 s and was stopped", true),
    ("yes >&3", "bak-driver-toy took longer than 3 s and was stopped", false),
    (
        "echo '{\"stream\":\"x\"}'; (sleep 5; echo late) >&3 & exit 0",
        "left a program running that holds descriptor 3",
        false,
    ),
    ("yes words >&2 & sleep 0.3; kill $!; exit 1", "exited with status 1: words", true),
];

#[test]
fn what_a_program_does_wrong_is_its_guests_failure_and_leaves_nothing() {
    let toy = Toy::new();
    let config = config(
        &toy.kit,
        "driver = \"toy\"\nstore = \"store\"\nreserve = \"1M\"\n[exec.toy]\ntimeout = \"3s\"\nenv = { GREETING = \"hello\" }\n",
    );
    let mut list = String::new();
    let mut script = "case $BAK_VM in\n".to_owned();
    for (number, (snippet, ..)) in WRONG.iter().enumerate() {
        list += &format!("{{\"vm\":\"w{number}\"}}\n");
        script += &format!("w{number}) {snippet} ;;\n");
    }
    list += "{\"vm\":\"good\"}\n";
    script += "good) echo '{\"stream\":\"x\"}'; echo $GREETING >&3 ;;\nesac";
    toy.lists(&list);
    toy.does("dump", &script);
    let ran = toy.run("bak-dump", &["--config", &config, "--all", "--jobs", "8"]).expect(1);
    assert_eq!(ran.column("vm"), ["good"]);
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines.len(), WRONG.len() + 1, "{}", ran.err);
    let mut logs = 0;
    for (number, (snippet, text, logged)) in WRONG.iter().enumerate() {
        let line = lines.iter().find(|line| line.starts_with(&format!("bak-dump: w{number}: "))).unwrap();
        assert!(line.contains(text), "{snippet}: {line}");
        assert_eq!(line.contains("; its log is "), *logged, "{snippet}: {line}");
        if let Some((_, path)) = line.split_once("; its log is ") {
            let log = fs::metadata(path).unwrap();
            assert!(log.len() > 0 && log.len() < 5 << 20, "{path}");
            logs += 1;
        }
    }
    assert_eq!(fs::read_dir(toy.kit.store().join(".bak/log")).unwrap().count(), logs);
    let seen = check_store(&toy.kit.store());
    assert!(seen.broken.is_empty() && seen.unfinished.is_empty() && seen.strange.is_empty(), "{seen:?}");
    assert_eq!(seen.whole.len(), 1);
    toy.kit.sh("zstd -dcq store/good/*.zst").clean().out.contains("hello").then_some(()).unwrap();
    toy.does("dump", "sleep 99");
    let args = ["--config", &config, "good", "--timeout", "1s"];
    toy.run("bak-dump", &args).expect(1).says("bak-driver-toy took longer than 1 s");
    // What was stopped took what it had started with it.
    let left = processes("sleep 99");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn logs_of_failures_are_bounded() {
    let toy = Toy::new();
    toy.lists(&(0..60).map(|n| format!("{{\"vm\":\"g{n}\"}}\n")).collect::<String>());
    toy.does("dump", "echo no >&2; exit 1");
    toy.run("bak-dump", &["--driver", "toy", "--store", "store", "--all", "--jobs", "8"]).expect(1);
    assert_eq!(fs::read_dir(toy.kit.store().join(".bak/log")).unwrap().count(), 50);
}

#[test]
fn a_guest_that_cannot_be_dumped_now_is_tried_again_and_given_up() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"busy\"}\n{\"vm\":\"never\"}\n");
    toy.does(
        "dump",
        r#"echo x >>"$TOY/tries.$BAK_VM"
        [ "$BAK_VM" = busy ] && [ "$(wc -l <"$TOY/tries.busy")" -gt 1 ] || exit 75
        echo '{"stream":"x"}'; echo data >&3"#,
    );
    let args = ["--driver", "toy", "--store", "store", "--all", "--retry-wait", "1s", "--retry-for", "2s"];
    let ran = toy.run("bak-dump", &args).expect(1).says("bak-dump: never: is running");
    assert_eq!(ran.column("vm"), ["busy"]);
    assert_eq!(toy.read("tries.busy").lines().count(), 2);
    assert!((2..6).contains(&toy.read("tries.never").lines().count()));
    assert_eq!(check_store(&toy.kit.store()).unfinished, Vec::<String>::new());
}

#[test]
fn killed_with_us_and_recovered() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n");
    let mark = format!("4{}", std::process::id());
    toy.does("dump", &format!("echo begun >&3; : >\"$TOY/begun\"; sleep {mark} | cat"));
    let mut child = toy.command("bak-dump").args(["--driver", "toy", "--store", "store", "--all"]).spawn().unwrap();
    wait_for("the dump to begin", || toy.path("begun").exists() && !processes(&format!("sleep {mark}")).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for_workers(&toy.kit.store());
    assert_eq!(check_store(&toy.kit.store()).unfinished.len(), 1);
    toy.does("dump", "echo '{\"stream\":\"x\"}'; echo data >&3");
    toy.run("bak-dump", &["--driver", "toy", "--store", "store", "--all"]).clean();
    let seen = check_store(&toy.kit.store());
    assert!(seen.unfinished.is_empty() && seen.whole.len() == 1, "{seen:?}");
}

/// Also one that has left the driver's session, and has nothing of bak's but the file.
#[test]
fn what_is_still_written_is_no_dump() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n");
    toy.does(
        "dump",
        r#"echo 1 >"$BAK_BASE.x"; echo '{"file":"x"}'
        setsid sh -c ': >"$TOY/writes"; until [ -e "$TOY/go" ]; do sleep 0.05; done; rm "$TOY/writes"' >>"$BAK_BASE.x" 2>&- 3>&- <&- &
        until [ -e "$TOY/writes" ]; do sleep 0.05; done"#,
    );
    let args = ["--driver", "toy", "--store", "store", "--all"];
    let ran = toy.run("bak-dump", &args).expect(1);
    ran.says("bak-driver-toy has ended, and left a program running that has a-").says(".x open for writing");
    let seen = check_store(&toy.kit.store());
    assert!(seen.whole.is_empty() && seen.unfinished.is_empty(), "{seen:?}");
    fs::write(toy.path("go"), "").unwrap();
    wait_for("its end", || !toy.path("writes").exists());
}

/// What lies in the store is read once, at the beginning; what another run has made since must count all the same.
#[test]
fn a_dump_that_another_run_made_meanwhile_counts() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n{\"vm\":\"b\"}\n");
    toy.does(
        "dump",
        r#"read -r guest; case $guest in *'"vm":"a"'*) : >"$TOY/begun"; until [ -e "$TOY/go" ]; do sleep 0.05; done;; esac
        echo '{"stream":"x"}'; echo data >&3"#,
    );
    let args = ["--driver", "toy", "--store", "store", "--now", "2026-11-20T01:00:02Z"];
    let mut waits = toy.command("bak-dump");
    let waits = waits.args(args).arg("--all").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the first dump to begin", || toy.path("begun").exists());
    toy.run("bak-dump", &[&args[..], &["b"]].concat()).clean();
    fs::write(toy.path("go"), "").unwrap();
    let ran = bak_tests::Ran::of(waits.wait_with_output().unwrap());
    ran.expect(1).says("bak-dump: b: its newest dump was begun in this very second");
}

/// Also what leaves its session, as daemons do, and what it is the child of then.
#[test]
fn what_it_started_ends_with_it_wherever_that_went() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n");
    for (end, mark) in [("by time", "5"), ("by kill", "6"), ("by TERM", "7")] {
        let mark = format!("{mark}{}", std::process::id());
        let script = format!(
            "setsid sh -c 'trap \"\" TERM; setsid sleep {mark} & sleep {mark}' >&- 2>&- 3>&- & setsid sleep {mark} & \
             sleep {mark}"
        );
        toy.does("dump", &script);
        let mut command = toy.command("bak-dump");
        command.args(["--driver", "toy", "--store", "store", "--all"]);
        command.args(if end == "by time" { &["--timeout", "5s"][..] } else { &[] });
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if end != "by time" {
            wait_for("all of it to begin", || processes(&format!("sleep {mark}")).len() == 5);
            let signal = if end == "by kill" { "-KILL" } else { "-TERM" };
            toy.kit.sh(&format!("kill {signal} {}", child.id())).clean();
        }
        child.wait().unwrap();
        wait_for(&format!("its programs to end {end}"), || processes(&format!("sleep {mark}")).is_empty());
    }
}

#[test]
fn a_full_disk_is_said_and_stops_the_program() {
    let toy = Toy::new();
    let Some(small) = Small::new(&toy.kit, 8) else { return };
    toy.lists("{\"vm\":\"a\"}\n");
    toy.does("dump", "echo '{\"stream\":\"x\"}'; cat /dev/urandom >&3");
    let store = small.path().to_str().unwrap();
    let ran = toy.run("bak-dump", &["--driver", "toy", "--store", store, "--all", "--reserve", "0"]).expect(1);
    assert!(ran.err.contains("cannot write the archive: No space left"), "{}", ran.err);
    toy.does("dump", "echo '{\"stream\":\"x\"}'; while :; do head -c 100000 /dev/urandom >&3; sleep 0.05; done");
    let ran = toy.run("bak-dump", &["--driver", "toy", "--store", store, "--all", "--reserve", "2M"]).expect(1);
    assert!(ran.err.contains("must stay free (--reserve)"), "{}", ran.err);
    assert_eq!(check_store(small.path()).unfinished, Vec::<String>::new());
}

#[test]
fn verdicts_of_a_program() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n");
    toy.does("dump", "echo '{\"stream\":\"x\"}'; echo data >&3");
    toy.run("bak-dump", &["--driver", "toy", "--store", "store", "--all"]).clean();
    let hashes = "SHA-256 as recorded, zstd -t";
    for (script, status, decision, why) in [
        ("exit 64", 0, "good", hashes),
        ("echo '{\"decision\":\"unknown\",\"why\":\"no idea\"}'", 0, "good", hashes),
        ("echo '{\"decision\":\"good\"}'", 0, "good", "SHA-256 as recorded, zstd -t, the driver toy"),
        ("echo '{\"decision\":\"bad\",\"why\":\"torn\"}'", 1, "bad", "the driver toy: torn"),
        ("echo '{\"decision\":\"fine\"}'", 1, "unknown", "`fine` is no verdict"),
        ("echo '{\"decision\":\"good\"}'; exit 1", 1, "unknown", "bak-driver-toy exited with status 1"),
        ("exit 0", 1, "unknown", "gave no verdict"),
        ("echo '{\"decision\":\"good\"}'; echo '{\"decision\":\"bad\"}'", 1, "unknown", "gave two verdicts"),
    ] {
        toy.does("verify", script);
        let ran = toy.run("bak-verify", &["--store", "store", "--all"]).expect(status);
        let verify = &ran.records()[0]["verify"];
        assert_eq!(verify["decision"], decision, "{script}: {verify}");
        assert!(verify["why"].as_str().unwrap().contains(why), "{script}: {verify}");
    }
    // Not asked where only hashes are, and not needed where it is not installed.
    toy.run("bak-verify", &["--store", "store", "--all", "--hash-only"]).clean();
    fs::remove_file(toy.kit.path("bin/bak-driver-toy")).unwrap();
    toy.run("bak-verify", &["--store", "store", "--all"]).clean();
    toy.run("bak-restore", &["--store", "store", "a"]).expect(1).says("there is no program bak-driver-toy on PATH");
}

#[test]
fn restores_that_fail() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n");
    toy.does("dump", "echo '{\"stream\":\"x\"}'; echo data >&3");
    toy.run("bak-dump", &["--driver", "toy", "--store", "store", "--all"]).clean();
    for (script, status, text) in [
        ("exit 64", 1, "does not know the command restore"),
        ("exit 4", 4, "bak-driver-toy refuses: it does not say why"),
        ("echo '{\"to\":\"x\"}'; echo no server >&2; exit 2", 1, "exited with status 2: no server"),
        ("exit 0", 1, "did not say what it made"),
        ("echo restoring", 1, "printed `restoring`"),
        ("echo '{\"to\":\" \"}'", 1, "without a name"),
    ] {
        toy.does("restore", script);
        toy.run("bak-restore", &["--store", "store", "a"]).expect(status).says(text);
    }
    // Nothing is called for a dump that is damaged, but for the plan.
    toy.does("restore", "echo '{\"to\":\"x\"}'; [ -n \"$BAK_DRY_RUN\" ] || : >\"$TOY/called\"");
    toy.kit.sh("printf X | dd of=$(ls store/a/*.zst) bs=1 seek=9 conv=notrunc status=none").clean();
    toy.run("bak-restore", &["--store", "store", "a"]).expect(1).says("is damaged");
    assert!(!toy.path("called").exists());
}

/// Only a program that can remove what a drill has made is asked for one.
#[test]
fn drills() {
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n");
    toy.does("dump", "echo '{\"stream\":\"x\"}'; echo data >&3");
    toy.run("bak-dump", &["--driver", "toy", "--store", "store", "--all"]).clean();
    let drill = || toy.run("bak-restore", &["--drill", "--store", "store"]);
    // As it is told: it has no such name yet, and makes a file of it.
    let restore = "[ -n \"$BAK_AS\" ] && [ ! -e \"$TOY/$BAK_AS\" ]; echo \"{\\\"to\\\":\\\"$BAK_AS\\\"}\"\n\
        [ -n \"$BAK_DRY_RUN\" ] || zstd -dcq \"$BAK_BASE.x.zst\" >\"$TOY/$BAK_AS\"";
    toy.does("restore", restore);
    drill().expect(1).says("dumps of the driver toy cannot be drilled: bak-driver-toy has no command undrill");
    toy.does(
        "undrill",
        "[ -n \"$BAK_DRY_RUN\" ] || rm -f \"$TOY/$BAK_AS\"; echo \"$BAK_VM/$BAK_AS\" >>\"$TOY/undrilled\"",
    );
    let left = || toy.kit.sh("ls toy | grep -c ^bak-drill || :").clean().out;
    let ran = drill().clean();
    let why = ran.records()[0]["drill"]["why"].as_str().unwrap().to_owned();
    assert!(why.starts_with("SHA-256 as recorded; restored as bak-drill-") && why.ends_with(", removed"), "{why}");
    assert_eq!((left().trim(), toy.read("undrilled").lines().count()), ("0", 2));
    assert!(toy.read("undrilled").lines().nth(1).unwrap().starts_with("a/bak-drill-"));
    // What fails is removed, too.
    toy.does("restore", &format!("{restore}; [ -n \"$BAK_DRY_RUN\" ] || {{ echo no server >&2; exit 2; }}"));
    drill().expect(1).says("the drill failed: bak-driver-toy exited with status 2: no server");
    assert_eq!(left().trim(), "0");
    // What cannot be removed is told of until it can.
    toy.does("restore", restore);
    toy.does("undrill", "[ -n \"$BAK_DRY_RUN\" ] || { echo in use >&2; exit 1; }");
    drill().expect(1).says("which says nothing of the dump: bak-driver-toy exited with status 1: in use");
    drill().expect(1).says("in use");
    toy.does("undrill", "[ -n \"$BAK_DRY_RUN\" ] || rm -f \"$TOY/$BAK_AS\"");
    drill().clean();
    assert_eq!(left().trim(), "0");
}

#[test]
fn a_prefix_is_ours_and_the_program_sees_its_own_name() {
    let toy = Toy::new();
    let config =
        config(&toy.kit, "driver = \"toy\"\nstore = \"store\"\nprefix = \"n1-\"\nnode = \"n1\"\nreserve = \"1M\"\n");
    toy.lists("{\"vm\":\"db\"}\n");
    toy.does("dump", "echo '{\"stream\":\"x\"}'; echo \"$BAK_VM\" >&3; echo \"$BAK_VM\" >\"$TOY/vm\"");
    toy.does("restore", "echo \"{\\\"to\\\":\\\"$BAK_VM\\\"}\"");
    let ran = toy.run("bak-dump", &["--config", &config, "--all"]).clean();
    let record = &ran.records()[0];
    assert_eq!((&record["vm"], &record["name"], &record["node"]), (&json!("n1-db"), &json!("db"), &json!("n1")));
    assert_eq!(toy.read("vm"), "db\n");
    // On another machine, too, which puts another prefix before its own.
    let ran = toy.run("bak-restore", &["--store", "store", "n1-db"]).clean();
    assert_eq!(ran.records()[0]["restored"]["to"], json!(["db"]));
}

#[test]
fn names_that_are_no_drivers() {
    let toy = Toy::new();
    for name in ["nope", "../toy", "/bin/true", "", "t oy", "toy\n"] {
        toy.run("bak-guests", &["--driver", name]).expect(2).says("there is no driver `");
    }
    fs::set_permissions(toy.kit.path("bin/bak-driver-toy"), fs::Permissions::from_mode(0o600)).unwrap();
    toy.run("bak-guests", &["--driver", "toy"]).expect(1).says("cannot run bak-driver-toy: it is not executable");
    // What lies around in our own environment is no order.
    let toy = Toy::new();
    toy.lists("{\"vm\":\"a\"}\n");
    toy.does("dump", "echo '{\"stream\":\"x\"}'; echo \"[$BAK_FORCE$BAK_AS$BAK_TO]\" >&3");
    let mut command = toy.command("bak-dump");
    command
        .args(["--driver", "toy", "--store", "store", "--all"])
        .env("BAK_FORCE", "1")
        .env("BAK_AS", "x")
        .env("BAK_TO", "/");
    bak_tests::finish(command, "").clean();
    assert_eq!(toy.kit.sh("zstd -dcq store/a/*.zst").clean().out, "[]\n");
}
