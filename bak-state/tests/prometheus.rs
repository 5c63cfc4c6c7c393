//! The textfile for node_exporter, read by a parser of the test's own that knows nothing but the text format.

use bak_tests::{Kit, Ran, bin, finish, put_dump, strace};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

type Labels = BTreeMap<String, String>;

/// Samples by name, strictly: each family has its head once, before all of its samples, which stand together; no two have
/// the same labels; the file ends with a newline.
fn parse(text: &str) -> BTreeMap<String, BTreeMap<Labels, f64>> {
    let mut families: BTreeMap<String, BTreeMap<Labels, f64>> = BTreeMap::new();
    let (mut helped, mut family) = (BTreeSet::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.strip_suffix('\n').unwrap().split('\n') {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
            family = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert_eq!(kind, format!("{family} gauge"));
            assert!(families.insert(family.clone(), BTreeMap::new()).is_none());
        } else {
            let (name, labels, value) = sample(line);
            assert_eq!(name, family, "{line}");
            assert!(families.get_mut(&name).unwrap().insert(labels, value).is_none(), "twice: {line}");
        }
    }
    families
}

fn sample(line: &str) -> (String, Labels, f64) {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap();
    let (name, mut rest) = line.split_at(name_end);
    assert!(name.starts_with("bak_"), "{line}");
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase()), "{line}");
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().unwrap_or_else(|| panic!("{line}")) {
                    (end, '"') => break end,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("\\{c} is no escape: {line}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break rest = rest.strip_prefix('}').unwrap_or_else(|| panic!("{line}")),
            }
        }
    }
    (name.to_owned(), labels, rest.strip_prefix(' ').unwrap().parse().unwrap())
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.into_iter().map(|(label, value)| (label.to_owned(), value.to_owned())).collect()
}

const ODD: &str = "a \"b\" \\n\nc|d";

fn observe(kit: &Kit, now: &str) {
    let guest = |vm: &str, more: serde_json::Value| {
        let mut line = json!({"v": 1, "type": "guest", "vm": vm, "kind": "qemu", "driver": "image", "node": "n1"});
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{line}\n")
    };
    let input = guest("100", json!({"name": ODD})) + &guest(ODD, json!({}));
    kit.run_with("bak-state", ["observe", "-", "--db", "db", "--now", now], &input).clean();
}

const PLACES: &str = "--store store --outbox outbox --prometheus out/bak.prom";

fn check(kit: &Kit, now: &str, more: &str) -> Ran {
    kit.run("bak-state", format!("check --db db --now {now} {PLACES} {more}").trim().split(' '))
}

/// A guest with a dump that is sent, one that is pending, and one that waits.
fn scene() -> Kit {
    let kit = Kit::new();
    fs::create_dir(kit.path("out")).unwrap();
    observe(&kit, "2026-11-20T01:00:00Z");
    for day in [18, 19] {
        put_dump(&kit.store(), "100", &format!("2026-11-{day}T01:00:00Z"), 100 + day, json!({}));
    }
    put_dump(&kit.path("outbox/.bak/sent"), "100", "2026-11-18T01:00:00Z", 118, json!({}));
    put_dump(&kit.path("outbox"), "100", "2026-11-19T01:00:00Z", 119, json!({}));
    put_dump(&kit.store(), "other", "2026-11-19T01:00:00Z", 7, json!({}));
    kit
}

#[test]
fn what_stands_in_the_file() {
    let kit = scene();
    check(&kit, "2026-11-20T02:00:00Z", "").clean();
    let path = kit.path("out/bak.prom");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(kit.path("out")).unwrap().count(), 1);
    let families = parse(&fs::read_to_string(&path).unwrap());
    let web = labels([("vm", "100"), ("name", ODD), ("node", "n1"), ("kind", "qemu")]);
    let odd = labels([("vm", ODD), ("node", "n1"), ("kind", "qemu")]);
    let with = |of: &Labels, label: &str, value: &str| {
        let mut labels = of.clone();
        labels.insert(label.into(), value.into());
        labels
    };
    // By `date -ud … +%s`.
    let (eighteenth, nineteenth, observed) = (1_794_963_600.0, 1_795_050_000.0, 1_795_136_400.0);
    let each = |value| BTreeMap::from([(web.clone(), value), (odd.clone(), value)]);
    let only = |labels: Labels, value| BTreeMap::from([(labels, value)]);
    let status = |of: &Labels| {
        let all = ["NEW", "BACKUP_NECESSARY", "BACKUP_IN_PROGRESS", "CLEAN", "RUNNING", "ARCHIVED"];
        all.map(|status| (with(of, "status", status), f64::from(u8::from(status == "BACKUP_NECESSARY"))))
    };
    let dest = || labels([("dest", "default")]);
    let expected = BTreeMap::from([
        ("bak_guest_last_dump_success_timestamp_seconds", only(web.clone(), nineteenth)),
        ("bak_guest_last_sent_timestamp_seconds", only(with(&web, "dest", "default"), eighteenth)),
        ("bak_guest_last_dump_size_bytes", only(web.clone(), 119.0)),
        ("bak_guest_due_timestamp_seconds", each(observed)),
        ("bak_guest_failed_attempts", each(0.0)),
        ("bak_guest_overdue", each(0.0)),
        ("bak_guest_gone", each(0.0)),
        ("bak_guest_check_status", each(0.0)),
        ("bak_guest_status", status(&web).into_iter().chain(status(&odd)).collect()),
        ("bak_dest_pending_bytes", only(dest(), 119.0)),
        ("bak_dest_waiting_bytes", only(dest(), 7.0)),
        ("bak_check_status", only(Labels::new(), 0.0)),
        ("bak_check_timestamp_seconds", only(Labels::new(), observed + 3600.0)),
    ]);
    assert_eq!(families, expected.into_iter().map(|(name, samples)| (name.to_owned(), samples)).collect());
}

#[test]
fn written_when_things_are_bad_and_left_alone_when_nothing_is_known() {
    let kit = scene();
    let path = kit.path("out/bak.prom");
    check(&kit, "2026-11-20T02:00:00Z", "-n").clean();
    assert!(!path.exists());
    check(&kit, "2026-11-25T02:00:00Z", "-q").expect(2);
    let text = fs::read_to_string(&path).unwrap();
    let families = parse(&text);
    assert_eq!(families["bak_check_status"].values().copied().collect::<Vec<_>>(), [2.0]);
    assert_eq!(families["bak_guest_overdue"].values().copied().collect::<Vec<_>>(), [1.0, 1.0]);
    kit.run("bak-state", format!("check nobody --db db {PLACES}").split(' ')).expect(3);
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    // Critical stays critical where it cannot be written, and is said.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    check(&kit, "2026-11-25T02:00:00Z", "").expect(2).says("cannot write out/bak.prom");
    assert!(
        check(&kit, "2026-11-20T02:00:00Z", "").expect(3).out.starts_with("BAK UNKNOWN - cannot write out/bak.prom")
    );
    assert_eq!(fs::read_dir(kit.path("out")).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_link_in_its_place_is_replaced_and_not_followed() {
    let kit = scene();
    let precious = kit.write("precious", "mine");
    symlink(&precious, kit.path("out/bak.prom")).unwrap();
    // The shell becomes the program, so its number is known before.
    let line = format!(
        "ln -s ../precious out/.bak.prom.$$.tmp; exec '{}' check --db db --now 2026-11-20T02:00:00Z {PLACES}",
        bin("bak-state").display()
    );
    kit.sh(&line).clean();
    assert_eq!(fs::read_to_string(precious).unwrap(), "mine");
    assert!(kit.path("out/bak.prom").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read_dir(kit.path("out")).unwrap().count(), 1);
}

#[test]
fn what_is_no_regular_file_is_not_replaced() {
    let kit = scene();
    let path = kit.path("out/bak.prom");
    let refused = || {
        let ran = check(&kit, "2026-11-20T02:00:00Z", "").expect(3);
        assert!(ran.out.contains("cannot write out/bak.prom: it is there, and is no regular file"), "{}", ran.out);
    };
    kit.sh("mkfifo out/bak.prom").clean();
    refused();
    assert!(path.symlink_metadata().unwrap().file_type().is_fifo());
    fs::remove_file(&path).unwrap();
    symlink("/dev/null", &path).unwrap();
    refused();
    assert!(path.is_symlink());
    assert_eq!(fs::read_dir(kit.path("out")).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn killed_at_any_call_it_leaves_the_old_file_or_the_new() {
    let kit = scene();
    let path = kit.path("out/bak.prom");
    check(&kit, "2026-11-20T02:00:00Z", "").clean();
    let old = fs::read_to_string(&path).unwrap();
    check(&kit, "2026-11-20T03:00:00Z", "").clean();
    let new = fs::read_to_string(&path).unwrap();
    assert_ne!(old, new);
    let line = format!("check --db db --now 2026-11-20T03:00:00Z {PLACES}");
    let argv: Vec<OsString> =
        std::iter::once(bin("bak-state").into()).chain(line.split(' ').map(OsString::from)).collect();
    let calls = strace::count(&kit, &argv, &kit.path("log"));
    let mut seen = BTreeSet::new();
    for name in ["openat", "write", "fchmod", "fsync", "rename", "renameat", "renameat2", "unlinkat"] {
        for nth in 1..=calls.get(name).copied().unwrap_or(0) {
            fs::write(&path, &old).unwrap();
            strace::inject(&kit, &argv, name, "signal=KILL", nth);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text == old || text == new, "{name} {nth}: {text}");
            seen.insert(text);
            for left in fs::read_dir(kit.path("out")).unwrap() {
                let left = left.unwrap().file_name();
                let left = left.to_str().unwrap();
                assert!(left == "bak.prom" || !left.ends_with(".prom"), "{left}");
            }
        }
    }
    assert_eq!(seen.len(), 2, "killed before and after");
    let mut command = kit.command(bin("bak-state"));
    command.args(line.split(' '));
    finish(command, "").clean();
    assert_eq!(fs::read_to_string(&path).unwrap(), new);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
}
