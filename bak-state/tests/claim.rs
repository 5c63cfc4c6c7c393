//! `claim`: a command run while its guest is claimed.

use bak_tests::{Kit, Ran, bin};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Stdio};

fn observe(kit: &Kit, more: Value) -> Ran {
    kit.run_with("bak-state", ["observe", "-", "--db", "db"], &guest(more))
}

fn guest(more: Value) -> String {
    let mut record = json!({"v": 1, "type": "guest", "vm": "web", "kind": "qemu", "driver": "image", "uid": "u1",
        "fingerprint": "a", "state": "stopped"});
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    format!("{record}\n")
}

/// A database that has seen the guest `web`.
fn kit() -> Kit {
    let kit = Kit::new();
    observe(&kit, json!({})).clean();
    kit
}

/// Runs `script` by `sh` under a claim on `web`.
fn claim(kit: &Kit, script: &str) -> Ran {
    kit.run("bak-state", ["claim", "--db", "db", "web", "--", "sh", "-c", script])
}

/// The same, started: its standard output, and when it has printed its first line.
fn started(kit: &Kit, wrapper: &[&str], script: &str) -> (Child, BufReader<ChildStdout>) {
    let state = bin("bak-state");
    let words = wrapper.iter().map(|word| (*word).to_owned()).chain([state.to_str().unwrap().to_owned()]);
    let words: Vec<String> = words.collect();
    let mut command = kit.command(&words[0]);
    command.args(&words[1..]).args(["claim", "--db", "db", "web", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "began\n");
    (child, out)
}

fn kill(signal: &str, child: &Child) {
    let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

fn statedb(kit: &Kit) -> String {
    fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap()
}

const NECESSARY: &str = "web:BACKUP_NECESSARY\n";
const CLEAN: &str = "web:CLEAN\n";

#[test]
fn the_commands_streams_and_environment_are_the_callers() {
    let kit = kit();
    let script = "read line; echo \"out $line ${LC_ALL-unset}\"; echo err >&2; echo three >&3; env | grep ^BAK_";
    kit.write("run", format!("unset LC_ALL; exec 3>three; exec bak-state claim --db db --now 2026-11-20T01:00:02Z web -- sh -c '{script}'\n"));
    let ran = bak_tests::finish(sh(&kit, ". ./run"), "in\n");
    assert_eq!((ran.status, ran.err.as_str()), (0, "err\n"));
    let mut lines: Vec<&str> = ran.out.lines().collect();
    lines.sort_unstable();
    let expected = [
        "BAK_ALLOW_NOW=1",
        "BAK_ID=web@20261120T010002Z",
        "BAK_STARTED=2026-11-20T01:00:02Z",
        "BAK_VM=web",
        "out in unset",
    ];
    assert_eq!(lines, expected);
    assert_eq!(fs::read_to_string(kit.path("three")).unwrap(), "three\n");
    // Its dump is known, with what the guest was when it began.
    let known = kit.run("bak-state", ["get", "web", "--db", "db"]).clean().records().remove(0);
    let dump = json!({"id": "web@20261120T010002Z", "started": "2026-11-20T01:00:02Z", "fingerprint": "a"});
    assert_eq!((&known["dump"], &known["status"]), (&dump, &json!("CLEAN")));
    assert_eq!(observe(&kit, json!({})).clean().column("status"), ["CLEAN"]);
    let ran = kit.sh("LC_ALL=xx bak-state claim --db db web -- sh -c 'echo $LC_ALL'");
    assert_eq!(ran.clean().out, "xx\n");
    // No shell comes between, and options of the command are its own.
    let ran = kit.run("bak-state", ["claim", "web", "--db", "db", "--", "echo", "-n", "$BAK_VM", "*", "--db"]);
    assert_eq!(ran.clean().out, "$BAK_VM * --db");
}

fn sh(kit: &Kit, line: &str) -> std::process::Command {
    let mut command = kit.command("sh");
    command.args(["-c", line]);
    command
}

#[test]
fn the_exit_status_is_the_commands() {
    let kit = kit();
    claim(&kit, "true").clean();
    assert_eq!(statedb(&kit), CLEAN);
    for (script, status, says) in [
        ("exit 7", 7, "bak-state: web: it is BACKUP_NECESSARY: the command exited with status 7\n"),
        ("exit 3", 3, "status 3"),
        ("kill -TERM $$", 143, "signal 15"),
        ("kill -KILL $$", 137, "signal 9"),
    ] {
        claim(&kit, "true").clean();
        let ran = claim(&kit, script).expect(status).says(says);
        assert_eq!((ran.err.lines().count(), statedb(&kit).as_str()), (1, NECESSARY), "{script}");
    }
    claim(&kit, "true").clean();
    // What cannot be started changes nothing, as far as that can be known before.
    kit.write("plain", "x");
    fs::create_dir(kit.path("dir")).unwrap();
    for (command, status) in [("no-such-program", 127), ("./nothing", 127), ("./plain", 126), ("./dir", 126)] {
        let ran = kit.run("bak-state", ["claim", "--db", "db", "web", "--", command]).expect(status);
        assert_eq!((ran.says(command).err.lines().count(), statedb(&kit).as_str()), (1, CLEAN), "{command}");
    }
    kit.write("script", "#!/no/such/shell\n");
    kit.sh("chmod +x script").clean();
    kit.run("bak-state", ["claim", "--db", "db", "web", "--", "./script"]).expect(127).says("cannot run ./script");
    assert_eq!(statedb(&kit), NECESSARY);
    for args in ["claim --db db web", "claim --db db", "claim --db db web true", "claim --db nowhere web -- true"] {
        kit.run("bak-state", args.split(' ')).expect(2);
    }
    assert!(!kit.path("nowhere").exists());
}

#[test]
fn what_an_observation_sees_meanwhile_spoils_it() {
    // What it was before, what is observed meanwhile, one after the other, and what then is said; nothing if it is CLEAN.
    let (a, b) = (json!({}), json!({"fingerprint": "b"}));
    let runs = json!({"state": "running"});
    let cases = [
        (a.clone(), vec![a.clone()], None),
        (a.clone(), vec![b.clone()], Some("fingerprint")),
        (a.clone(), vec![b.clone(), a.clone()], Some("fingerprint")),
        (a.clone(), vec![json!({"fingerprint": null}), b.clone()], Some("fingerprint")),
        (a.clone(), vec![json!({"changed": true}), a.clone()], Some("changed")),
        (a.clone(), vec![json!({"changed": false}), a.clone()], None),
        (a.clone(), vec![runs.clone(), a.clone()], Some("started")),
        (a.clone(), vec![json!({"state": "paused"})], Some("started")),
        (a.clone(), vec![json!({"state": "running", "live": true})], None),
        (runs.clone(), vec![runs.clone()], None),
        (runs.clone(), vec![a.clone(), runs.clone()], Some("started")),
        (a.clone(), vec![json!({"uid": "u2"}), a.clone()], Some("another guest")),
        (a.clone(), vec![json!({"kind": "lxc"})], Some("another guest")),
    ];
    for (before, meanwhile, expected) in cases {
        let kit = Kit::new();
        observe(&kit, before.clone()).clean();
        let seen: String = meanwhile.iter().map(|more| guest(more.clone())).collect();
        let seen = seen.replace(",\"fingerprint\":null", "");
        kit.write("seen", seen);
        let script = "while read -r record; do printf '%s\\n' \"$record\" | bak-state observe -q - --db db; done <seen";
        let ran = claim(&kit, script).expect(0);
        match expected {
            None => assert_eq!((ran.err.as_str(), statedb(&kit).as_str()), ("", CLEAN), "{meanwhile:?}"),
            Some(why) => {
                assert_eq!((ran.err.lines().count(), statedb(&kit).as_str()), (1, NECESSARY), "{meanwhile:?}");
                ran.says("bak-state: web: it is BACKUP_NECESSARY: ").says(why);
            }
        }
        // The next one is judged by what is seen then.
        claim(&kit, "true").clean();
        assert_eq!(statedb(&kit), CLEAN, "{meanwhile:?}");
    }
}

#[test]
fn an_old_database_and_old_details_will_do() {
    let kit = Kit::new();
    kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
    kit.write("db/vmtool-statedb", "web:BACKUP_NECESSARY\nold:CLEAN\n");
    kit.write(
        "db/vmtool-details",
        "{\"vm\":\"old\",\"uid\":\"u1\",\"kind\":\"qemu\",\"seen\":\"2026-11-20T01:00:02Z\"}\n",
    );
    claim(&kit, "true").clean();
    kit.run("bak-state", ["claim", "old", "--db", "db", "--", "true"]).clean();
    assert_eq!(statedb(&kit), "web:CLEAN\nold:CLEAN\n");
    // Nothing was made up that an observation would contradict; but nothing proves that it is unchanged either.
    let ran = kit.run_with("bak-state", ["observe", "--explain", "-", "--db", "db"], &guest(json!({}))).clean();
    assert_eq!(ran.column("why"), ["nothing proves that it is unchanged"]);
    let known = kit.run("bak-state", ["get", "web", "--db", "db"]).clean().records().remove(0);
    assert!(known["dump"]["id"].is_string(), "{known}");
}

#[test]
fn it_is_held_by_one_and_by_what_it_leaves_running() {
    let kit = kit();
    let inner =
        "bak-state claim --db db web -- touch ran; test $? = 3 && bak-state claim -n --db db web -- true; test $? = 3";
    let ran = claim(&kit, inner).expect(0);
    assert_eq!(ran.err.matches("bak-state: web: it is being dumped by bak-state (pid ").count(), 2, "{}", ran.err);
    assert!(!kit.path("ran").exists());
    assert_eq!(statedb(&kit), CLEAN);
    // A daemon in a session of its own works on: the status is set, and the claim is still held.
    let (mut child, mut out) = started(&kit, &[], "echo began; exec 7<&0; setsid cat <&7 &");
    assert!(child.wait_with_status());
    assert_eq!(statedb(&kit), CLEAN);
    claim(&kit, "touch ran").expect(3);
    assert_eq!(observe(&kit, json!({"fingerprint": "b"})).clean().column("status"), ["BACKUP_NECESSARY"]);
    claim(&kit, "touch ran").expect(3);
    drop(child.stdin.take());
    out.read_to_end(&mut Vec::new()).unwrap();
    claim(&kit, "true").clean();
    assert!(!kit.path("ran").exists());
}

trait Ended {
    fn wait_with_status(&mut self) -> bool;
}

impl Ended for Child {
    /// Waits without closing its standard input, which others may read.
    fn wait_with_status(&mut self) -> bool {
        let stdin = self.stdin.take();
        let status = self.wait().unwrap();
        self.stdin = stdin;
        status.success()
    }
}

#[test]
fn a_dry_run_says_what_would_be_claimed() {
    let kit = kit();
    let run = |args: &str| kit.run("bak-state", args.split(' '));
    let ran = run("claim -n --look --db db web -- touch ran").clean();
    let record = json!({"v": 1, "type": "guest", "vm": "web", "status": "BACKUP_IN_PROGRESS", "was": "BACKUP_NECESSARY", "planned": true});
    assert_eq!(ran.records(), [record]);
    run("claim -n --db db wbe -- touch ran").expect(4).says("not in the database");
    run("claim -n --db nowhere web -- touch ran").expect(4).says("not in the database");
    assert_eq!(statedb(&kit), NECESSARY);
    let ran = run("claim --explain --db db web -- true").clean();
    let record = json!({"v": 1, "type": "guest", "vm": "web", "status": "CLEAN", "was": "BACKUP_NECESSARY", "why": "the command ended well"});
    assert_eq!(ran.records(), [record]);
    run("set ARCHIVED --db db web").clean();
    run("claim -n --db db web -- touch ran").expect(4).says("ARCHIVED");
    assert!(!kit.path("ran").exists() && !kit.path("nowhere").exists());
}

#[test]
fn a_signal_stops_the_command_and_the_claim_ends_right() {
    use std::os::unix::process::ExitStatusExt;
    let end = |child: Child, mut out: BufReader<ChildStdout>| {
        let mut said = String::new();
        // Its standard input stays open until it has ended.
        out.read_to_string(&mut said).unwrap();
        let ended = child.wait_with_output().unwrap();
        (ended.status, said, String::from_utf8(ended.stderr).unwrap())
    };
    for (name, number) in [("-HUP", 1), ("-INT", 2), ("-QUIT", 3), ("-TERM", 15)] {
        let kit = kit();
        let (child, out) = started(&kit, &[], "echo began; exec cat");
        kill(name, &child);
        let (status, _, err) = end(child, out);
        assert_eq!((status.code(), statedb(&kit).as_str()), (Some(128 + number), NECESSARY), "{name}: {err}");
        assert!(err.contains(&format!("killed by signal {number}")), "{err}");
    }
    // A command that ends well after all has not been let alone.
    let kit = kit();
    let (child, out) = started(&kit, &[], "trap 'echo trapped; exit 0' TERM; echo began; while read x; do :; done");
    kill("-TERM", &child);
    let (status, said, err) = end(child, out);
    assert_eq!((status.code(), said.as_str(), statedb(&kit).as_str()), (Some(0), "trapped\n", NECESSARY));
    assert!(err.contains("SIGTERM was to stop it"), "{err}");
    // What our caller ignores, the command ignores too.
    let (mut child, out) = started(&kit, &["nohup"], "echo began; exec cat");
    kill("-HUP", &child);
    drop(child.stdin.take());
    let (status, _, err) = end(child, out);
    assert_eq!((status.code(), err.contains("web"), statedb(&kit).as_str()), (Some(0), false, CLEAN), "{err}");
    // Without us it is told to stop, and the claim is free when it has.
    let (child, out) = started(&kit, &[], "trap 'echo trapped; exit 0' TERM; echo began; while read x; do :; done");
    kill("-KILL", &child);
    let (status, said, _) = end(child, out);
    assert_eq!((status.signal(), said.as_str()), (Some(9), "trapped\n"));
    assert_eq!(statedb(&kit), "web:BACKUP_IN_PROGRESS\n");
    assert_eq!(observe(&kit, json!({})).clean().column("status"), ["BACKUP_NECESSARY"]);
}

#[test]
fn a_terminals_signal_reaches_the_command_once() {
    let kit = kit();
    // The terminal sends it to both; what bak-state passes on comes after, and in order. A shell that stayed between it and
    // `script` (dash does) would die of the signal, too.
    let traps = "trap 'n=$((n+1)); echo int $n' INT; trap 'echo term $n; exit 9' TERM; echo began $PPID";
    kit.write("count", format!("{traps}; while :; do read x; done"));
    let mut command = kit.command("script");
    command.args(["-qec", "exec bak-state claim --db db web -- sh count", "/dev/null"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut until = |word: &str| lines.find_map(|line| Some(line.split_once(word)?.1.trim().to_owned()));
    let pid = until("began ").unwrap();
    stdin.write_all(b"\x03").unwrap();
    assert_eq!(until("int ").as_deref(), Some("1"));
    let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(sent.success());
    assert_eq!(until("term ").as_deref(), Some("1"));
    assert!(until("it is BACKUP_NECESSARY: the command exited with status 9").is_some());
    assert_eq!((child.wait().unwrap().code(), statedb(&kit).as_str()), (Some(9), NECESSARY));
}

#[test]
fn what_was_set_by_force_meanwhile_stays() {
    let kit = kit();
    claim(&kit, "bak-state set -q --force --db db ARCHIVED web").expect(0).says("it is ARCHIVED: somebody set that");
    assert_eq!(statedb(&kit), "web:ARCHIVED\n");
    kit.run("bak-state", ["set", "BACKUP_NECESSARY", "web", "--db", "db"]).clean();
    claim(&kit, "bak-state forget -q --force --db db web; exit 5").expect(5).says("it is no longer in the database");
    assert_eq!(statedb(&kit), "");
}

#[test]
fn who_has_lost_the_claim_sets_nothing() {
    let kit = kit();
    // Another client has it now, as its signature says.
    let thief = "echo '{\"program\":\"bak-dump\",\"pid\":7,\"node\":\"pve9\"}' >db/claims/web";
    let ran = claim(&kit, thief)
        .expect(1)
        .says("web: cannot set its status: the claim cannot be proved: our lock web was lost: bak-dump (pid 7 on pve9) has it");
    assert_eq!((ran.err.lines().count(), statedb(&kit).as_str()), (1, "web:BACKUP_IN_PROGRESS\n"));
    claim(&kit, &format!("{thief}; exit 6")).expect(6).says("the command exited with status 6; and cannot set");
    // A file server that gave up on us takes no write on the lock.
    let path = kit.path("db/claims/web");
    for call in ["write", "fdatasync"] {
        observe(&kit, json!({})).clean();
        let line = format!(
            "strace -qq -o log -P {} -e inject={call}:error=EIO:when=2 bak-state claim --db db web -- true",
            path.display()
        );
        kit.sh(&line).expect(1).says("the claim cannot be proved").says("Input/output error");
        assert_eq!(statedb(&kit), "web:BACKUP_IN_PROGRESS\n", "{call}");
    }
    claim(&kit, "true").clean();
    // A database that cannot be written at the end.
    claim(&kit, "echo broken >>db/vmtool-statedb").expect(1).says("cannot set its status").says("vmtool-statedb:2");
}

#[test]
fn decisions_are_logged() {
    let kit = kit();
    kit.write("bak.toml", format!("db = {:?}\nlog = {:?}\n", kit.path("db"), kit.path("log")));
    kit.sh("bak-state claim --config bak.toml web -- false").expect(1);
    let log = fs::read_to_string(kit.path("log")).unwrap();
    let log: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(log[0]["status"], "BACKUP_IN_PROGRESS");
    assert!(log[1]["failed"].as_str().unwrap().contains("status 1"));
    assert_eq!((&log[2]["was"], &log[2]["status"]), (&json!("BACKUP_NECESSARY"), &json!("BACKUP_NECESSARY")));
    assert_eq!(log.len(), 3);
}
