//! A store in which all kinds of harm are planted, and a directory outside that nobody may open.

use bak_tests::{Kit, Ran, finish, put_dump};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const DAY1: &str = "2026-11-18T01:00:00Z";
pub const DAY2: &str = "2026-11-19T01:00:00Z";
pub const NOW: &str = "2026-11-20T12:00:00Z";
pub const CANARY: &str = "CANARY-7c1f";
const TITLE: &str = "\u{1b}]0;PWNED\u{7}";

pub struct Scene {
    pub kit: Kit,
    before: String,
}

pub fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// All regular files below a directory.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(below(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

impl Scene {
    pub fn new() -> Self {
        let kit = Kit::new();
        kit.write("outside/secret", CANARY.repeat(100));
        // A whole dump, to be taken for one of the store.
        put_dump(&kit.path("outside"), "canary", DAY1, 1000, json!({"annotation": CANARY}));
        fifo(&kit.path("outside/pipe"));
        fs::create_dir(kit.path("far")).unwrap();
        let mut scene = Self { kit, before: String::new() };
        scene.before = scene.look();
        scene
    }

    pub fn outside(&self) -> PathBuf {
        self.kit.path("outside")
    }

    /// What changes if anything outside is written to, linked or removed.
    fn look(&self) -> String {
        self.kit.sh("find outside -printf '%p %i %n %s %C@ %T@ %m\\n' | sort; cat outside/secret").clean().out
    }

    #[track_caller]
    pub fn untouched(&self) {
        assert_eq!(self.look(), self.before, "something outside was touched");
    }

    /// Runs a program and sees that it opens nothing outside, and that what it prints is sane.
    #[track_caller]
    pub fn watched(&self, program: &str, args: &str) -> Ran {
        let log = self.kit.path("calls");
        let mut command = self.kit.command("timeout");
        command.args(["-k", "1", "120", "strace", "-f", "-y", "-qq", "-o"]).arg(&log);
        command.args(["-e", "trace=open,openat,openat2,creat,link,linkat,unlink,unlinkat,truncate", "--", program]);
        command.args(args.split(' ')).args(["--now", NOW]);
        let ran = finish(command, "");
        let outside = format!("{}/", self.outside().display());
        let calls = fs::read_to_string(&log).unwrap();
        let reached = |line: &&str| {
            line.contains(&format!("<{outside}")) || line.contains(&format!("<{}>", self.outside().display()))
        };
        if let Some(line) = calls.lines().find(reached) {
            panic!("{program} {args} goes outside: {line}");
        }
        assert!(calls.contains("<"), "nothing was seen");
        sane(program, args, &ran);
        self.untouched();
        ran
    }

    fn link(&self, to: &str, at: &Path) {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(self.outside().join(to), at).unwrap();
    }

    /// Plants everything in `store`, around the two sound dumps of `web`.
    pub fn plant(&self, store: &Path) {
        let of = |vm: &str, ending: &str| store.join(format!("{vm}/{vm}-20261118T010000Z.{ending}"));
        for day in [DAY1, DAY2] {
            put_dump(store, "web", day, 1000, json!({"name": TITLE}));
        }
        self.link("", &store.join("linked"));
        self.link("canary/canary-20261118T010000Z.dump.json", &of("side", "dump.json"));
        for vm in ["data", "piped", "device"] {
            put_dump(store, vm, DAY1, 1000, json!({}));
            fs::remove_file(of(vm, "raw")).unwrap();
        }
        self.link("canary/canary-20261118T010000Z.raw", &of("data", "raw"));
        fifo(&of("piped", "raw"));
        let _ = Command::new("mknod").arg(of("device", "raw")).args(["c", "1", "5"]).output();
        fs::create_dir(store.join("pipe")).unwrap();
        fifo(&of("pipe", "dump.json"));
        // Companions of a sound dump.
        self.link("secret", &of("web", "log"));
        self.link("pipe", &of("web", "raw.notes"));
        for (vm, sidecar) in sidecars() {
            fs::create_dir_all(store.join(vm)).unwrap();
            fs::write(of(vm, "dump.json"), sidecar).unwrap();
        }
    }

    /// Sound dumps of guests with ugly names; their ids.
    pub fn ugly_names(&self) -> Vec<String> {
        let guests = [
            ("-rf", "-rf"),
            ("a\nb", "a%0Ab"),
            ("\u{1b}]0;PWNED\u{7}", "%1B]0;PWNED%07"),
            ("$(touch PWNED)\"'", "$(touch PWNED)\"'"),
        ];
        let put = |(vm, encoded): &(&str, &str)| {
            let id = format!("{vm}@20261118T010000Z");
            put_dump(&self.kit.store(), encoded, DAY1, 1000, json!({"vm": vm, "id": id, "name": TITLE}));
            id
        };
        guests.iter().map(put).collect()
    }
}

fn record(vm: &str, more: Value) -> Value {
    let mut record = json!({"v": 1, "type": "dump", "id": format!("{vm}@20261118T010000Z"), "vm": vm, "kind": "qemu",
        "driver": "image", "started": DAY1, "finished": DAY1, "stem": format!("{vm}-20261118T010000Z"), "bytes": 0, "files": []});
    for (key, value) in more.as_object().unwrap() {
        record[key] = value.clone();
    }
    record
}

/// Sidecars that lie, or cannot be read, by the guest that they would be of.
fn sidecars() -> Vec<(&'static str, Vec<u8>)> {
    let claims = |vm: &str, name: &str| record(vm, json!({"bytes": 1000, "files": [{"name": name, "bytes": 1000}]}));
    let text = |record: Value| record.to_string().into_bytes();
    let deep = format!(
        "{{\"x\": {}{}, {}",
        "[".repeat(100_000),
        "]".repeat(100_000),
        &record("deep", json!({})).to_string()[1..]
    );
    let huge = record("huge", json!({})).to_string().replace("\"bytes\":0", "\"bytes\":1e999");
    let max = u64::MAX;
    let sum = json!({"bytes": 0, "files": [{"name": "sum-20261118T010000Z.a", "bytes": max}, {"name": "sum-20261118T010000Z.b", "bytes": 1}]});
    let double = record("double", json!({})).to_string().replacen("\"vm\":", "\"vm\":\"web\",\"vm\":", 1);
    let mut latin = text(record("latin", json!({"name": "X"})));
    let at = latin.iter().position(|byte| *byte == b'X').unwrap();
    latin[at] = 0xff;
    vec![
        ("thief", text(claims("thief", "web-20261118T010000Z.raw"))),
        ("up", text(claims("up", "../web/web-20261118T010000Z.raw"))),
        ("root", text(claims("root", "/etc/passwd"))),
        ("dots", text(claims("dots", "dots-20261118T010000Z.x/../../../outside/secret"))),
        ("stem", text(record("stem", json!({"stem": "../outside/canary"})))),
        ("id", text(record("id", json!({"id": format!("web@{TITLE}")})))),
        ("title", text(record("title", json!({"result": TITLE, "name": "x".repeat(1 << 20)})))),
        ("deep", deep.into_bytes()),
        ("huge", huge.into_bytes()),
        ("sum", text(record("sum", sum))),
        ("double", double.into_bytes()),
        // Whatever that will mean.
        ("newer", text(record("newer", json!({"v": 2})))),
        ("latin", latin),
        ("empty", Vec::new()),
        ("null", b"null".to_vec()),
        ("long", vec![b'['; 20 << 20]),
    ]
}

/// Lines that begin with the program's name, no longer than can be read, without control characters; records on standard output.
#[track_caller]
fn sane(program: &str, args: &str, ran: &Ran) {
    let shown = format!("{program} {args}: {}\n{}", ran.out.chars().take(4000).collect::<String>(), ran.err);
    assert!(!ran.out.contains(CANARY) && !ran.err.contains(CANARY), "{shown}");
    assert!((0..=4).contains(&ran.status) && !ran.err.contains("panicked"), "{shown}");
    for line in ran.err.lines() {
        assert!(line.starts_with(&format!("{program}: ")) && line.len() < 2000, "{shown}");
        assert!(!line.chars().any(|c| c.is_control()), "{line:?}");
    }
    if !args.starts_with("check") {
        ran.records();
    }
    assert!(!ran.out.chars().any(|c| c.is_control() && c != '\n'), "{shown}");
}
