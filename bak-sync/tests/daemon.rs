//! bak-sync to a real rsync daemon on loopback. An independent relay counts what crosses.

mod common;

use bak_tests::rsyncd::{Relay, Rsyncd};
use bak_tests::{Ran, check_store, finish, noise, put_dump};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

const BEYOND: u64 = 64 << 10;

fn out(ran: &Ran) -> u64 {
    ran.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap()
}

/// One pass, or `more`, to the place that the daemon calls `url`.
fn sync_to(place: &Place, url: &str, more: &[&str]) -> Ran {
    let dest = format!("box={url}");
    place.kit.run("bak-sync", [&["--outbox", "outbox", "--dest", &dest], more].concat())
}

/// A place whose daemon is reached through a relay.
fn relayed(more: &str) -> (Place, Relay, String) {
    let place = Place::daemon(more);
    let relay = Relay::start(place.rsyncd.as_ref().unwrap().port);
    let url = format!("rsync://127.0.0.1:{}/bak", relay.port);
    (place, relay, url)
}

#[test]
fn arrives_and_the_second_dump_is_a_delta_counted_to_the_byte() {
    let (place, relay, url) = relayed("");
    let before = place.counted();
    let mut content = noise(1, 2_000_000);
    let one = place.wait_with("my db", DAY1, &content, json!({}));
    let first = sync_to(&place, &url, &[]).clean();
    content[1_000_000] ^= 0xff;
    let two = place.wait_with("my db", DAY2, &content, json!({}));
    let second = sync_to(&place, &url, &[]).clean();
    assert!(out(&first) > 1_900_000 && out(&second) < 30_000, "{} {}", out(&first), out(&second));
    let seen = check_store(&place.far());
    assert_eq!((seen.whole, seen.broken.len(), seen.strange.len()), (vec![one, two], 0, 0));
    assert_eq!(place.counted() - before, relay.seen());
    let old = fs::metadata(place.far().join("my db/my db-20261118T010000Z.raw")).unwrap();
    assert_eq!((old.nlink(), old.mode() & 0o077), (1, 0));
}

/// rsync 3.5.0 as a daemon, asked to remove sources of a directory below its module, removes the files of the same names
/// below the module itself.
#[test]
fn below_a_module_nothing_is_touched_that_bears_the_same_names_above() {
    for more in ["", "use chroot = yes"] {
        let place = Place::daemon_without_identity(more);
        fs::create_dir_all(place.far().join("a b/50%")).unwrap();
        let url = format!("{}/a b/50%", place.rsyncd.as_ref().unwrap().url());
        sync_to(&place, &url, &["--init"]).clean();
        let mut content = noise(1, 1_000_000);
        place.wait_with("web", DAY1, &content, json!({}));
        sync_to(&place, &url, &[]).clean();
        place.kit.sh("cp -a far/'a b'/50%/web far/web; mkdir far/web/.part; ls -R far/web > before").clean();
        for at in (0..content.len()).step_by(25_000) {
            content[at..at + 4096].copy_from_slice(&noise(at as u64, 4096));
        }
        place.wait_with("web", DAY2, &content, json!({}));
        // In slices, so that a partial file is seeded, and in one go.
        assert!(sync_to(&place, &url, &["--limit", "60K"]).clean().records()[0]["skipped"].is_object());
        assert!(out(&sync_to(&place, &url, &[]).clean()) < 400_000);
        place.wait_with("web", "2026-11-20T01:00:00Z", &content, json!({}));
        assert!(out(&sync_to(&place, &url, &[]).clean()) < 30_000);
        assert_eq!(place.kit.sh("ls -R far/web | diff before -").clean().out, "");
        let seen = check_store(&place.far().join("a b/50%"));
        assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (3, 0, 0));
        assert_eq!(place.kit.sh("find far -name '*.raw' -links +1; find far/'a b' -path '*/.*/*' -type f").out, "");
    }
}

#[test]
fn a_limit_holds_on_the_wire_and_what_is_cut_goes_on_as_a_delta() {
    let (place, relay, url) = relayed("");
    let mut content = noise(1, 4 << 20);
    place.wait_with("web", DAY1, &content, json!({}));
    sync_to(&place, &url, &[]).clean();
    for (i, at) in (0..content.len()).step_by(32 << 10).enumerate() {
        content[at..at + 4096].copy_from_slice(&noise(100 + i as u64, 4096));
    }
    place.wait_with("web", DAY2, &content, json!({}));
    let (limit, mut costs) = (200_000, Vec::new());
    while !check_store(&place.outbox()).whole.is_empty() {
        let before = (relay.seen(), place.counted());
        sync_to(&place, &url, &["--limit", &limit.to_string()]).clean();
        costs.push(relay.seen() - before.0);
        let counted = place.counted() - before.1;
        assert!(costs.last().unwrap() <= &(limit + BEYOND), "{costs:?}");
        // What the meter counted and could not pass on any more is little.
        assert!(counted + BEYOND >= relay.seen() - before.0 && counted <= relay.seen() - before.0 + 4096);
        assert!(costs.len() < 10, "{costs:?}");
    }
    // 128 changes of 4 KiB, and in each pass the checksums of 4 MiB.
    let sum: u64 = costs.iter().sum();
    assert!(costs.len() > 2 && sum < 128 * 4096 * 11 / 10 + 15_000 * costs.len() as u64, "{costs:?}");
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (2, 0, 0));
    let left = place.kit.sh("find far -path '*/.part/*' -o -path '*/.basis-*/*' -type f");
    assert_eq!(left.clean().out, "");
}

#[test]
fn a_password_comes_from_a_file_that_nobody_else_may_read() {
    let kit_dir = |place: &Place| place.kit.path("rsyncd");
    let place = Place::daemon_without_identity("auth users = me\nsecrets file = secrets");
    // The daemon's configuration names it from where the daemon runs.
    let conf = kit_dir(&place).join("conf");
    let text = fs::read_to_string(&conf).unwrap();
    let secrets = kit_dir(&place).join("secrets");
    fs::write(&conf, text.replace("= secrets", &format!("= {}", secrets.display()))).unwrap();
    Rsyncd::secrets(&kit_dir(&place), "me:open sesame\n");
    let port = place.rsyncd.as_ref().unwrap().port;
    let relay = Relay::start(port);
    let url = format!("rsync://me@127.0.0.1:{}/bak", relay.port);
    let password = |text: &str, mode: u32| {
        let path = place.kit.write("password", text);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let with = |more: &[&str]| sync_to(&place, &url, &[&["--password-file", "password"], more].concat());
    password("wrong\n", 0o600);
    let ran = with(&["--init"]).expect(1);
    let why = "bak-sync: box: cannot list the far side: the daemon does not let us in: are the user and the password_file right?";
    assert!(ran.err.starts_with(why) && !ran.err.contains("directory"), "{}", ran.err);
    password("open sesame\n", 0o600);
    with(&["--init"]).clean();
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    for (text, mode, why) in [("x", 0o604, "other users may read it"), ("\n", 0o600, "its first line is empty")] {
        password(text, mode);
        with(&[]).expect(2).says(why).says("password");
    }
    fs::remove_file(place.kit.path("password")).unwrap();
    with(&[]).expect(2).says("No such file");
    fs::create_dir(place.kit.path("password")).unwrap();
    with(&[]).expect(2).says("it is not a file");
    fs::remove_dir(place.kit.path("password")).unwrap();
    let before = relay.connections();
    password("wrong\n", 0o600);
    with(&[]).expect(1).says("auth failed on module bak").says("1 dump stays pending");
    assert_eq!(relay.connections() - before, 2, "identity and listing, and no second try");
    // Nobody is asked on the terminal.
    let line = format!("timeout 60 bak-sync --outbox outbox --dest 'box={url}'");
    let mut command = place.kit.command("script");
    command.args(["-qec", &line, "/dev/null"]).env_remove("RSYNC_PASSWORD");
    let ran = finish(command, "").expect(1);
    assert!(ran.out.contains("auth failed on module bak") && !ran.out.contains("Password"), "{}", ran.out);
    sync_to(&place, &url.replace("me@", ""), &["--password-file", "password"]).expect(2).says("rsync://USER@");
    sync_to(&place, "far", &["--password-file", "password"]).expect(2).says("only rsync:// takes one");
    // From the configuration, as a rule.
    password("open sesame\n", 0o600);
    let config =
        format!("[[dest]]\nname = \"box\"\nurl = \"{url}\"\noutbox = \"outbox\"\npassword_file = \"password\"\n");
    place.kit.write("bak.toml", config);
    let ran = place.kit.run("bak-sync", ["--config", "bak.toml"]).clean();
    assert_eq!(ran.column("id"), [web.as_str()]);
    let listed = place.kit.run("bak-list", ["box", "--config", "bak.toml"]).clean();
    assert_eq!(listed.column("id"), [web]);
}

#[test]
fn what_a_daemon_refuses_is_said_in_words() {
    let others = |lines: &str| format!("[other]\npath = /nowhere\n{lines}");
    for (more, status, why) in [
        ("read only = yes", 1, "the module is read only"),
        ("write only = yes", 1, "the module needs `write only = no`"),
        ("hosts deny = *", 1, "takes no connections from here"),
        ("exclude = .*", 1, "the module's filters exclude"),
        ("refuse options = files-from", 1, "--files-from"),
    ] {
        let place = Place::daemon_without_identity(more);
        place.sync(["--init"]).expect(status).says(why);
        assert_eq!(fs::read_dir(place.far()).unwrap().count(), 0);
    }
    let place = Place::daemon(&others(""));
    let url = place.rsyncd.as_ref().unwrap().url();
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    sync_to(&place, &url.replace("/bak", "/bka"), &[]).expect(1).says("no such module").says("Unknown module 'bka'");
    sync_to(&place, &url.replace("/bak", "/other"), &["--init"]).expect(1).says("is that directory there?");
    sync_to(&place, &format!("{url}/not/there"), &["--init"]).expect(1).says("is that directory there?");
    assert!(!place.far().join("not").exists());
    sync_to(&place, "rsync://127.0.0.1:1/bak", &[]).expect(1).says("cannot connect to 127.0.0.1 port 1");
    sync_to(&place, "rsync://127.0.0.1/", &[]).expect(2).says("name the module");
    assert_eq!(check_store(&place.outbox()).whole, [web.as_str()]);
    // Written over there while nobody looks: the pass itself is refused.
    let rsyncd = place.rsyncd.as_ref().unwrap();
    rsyncd.reconfigure("read only = no", "read only = yes");
    place.sync([]).expect(1).says("web@20261118T010000Z: stays pending: the module is read only");
    rsyncd.reconfigure("read only = yes", "read only = no\nrefuse options = partial-dir");
    place.sync([]).expect(1).says("to refuse --partial-dir");
}

#[test]
fn a_module_that_hides_what_has_arrived_of_a_file_is_said() {
    let place = Place::daemon("exclude = .part/");
    place.wait_there("web", DAY1, 400_000, json!({}));
    let ran = place.sync(["--limit", "200K"]).expect(0);
    ran.says("web@20261118T010000Z: cannot be sent in slices: the module's filters exclude");
    place.sync([]).clean();
    assert_eq!(check_store(&place.far()).whole.len(), 1);
}

#[test]
fn what_a_daemon_refuses_and_is_not_needed_is_done_without() {
    let odd = "munge symlinks = yes\nincoming chmod = Dug+rwx,Fug+rw";
    for more in ["refuse options = compress fsync", "refuse options = delete", odd] {
        let place = Place::daemon(more);
        let mut content = noise(1, 1_000_000);
        place.wait_with("web", DAY1, &content, json!({}));
        place.sync([]).clean();
        content[500_000] ^= 0xff;
        place.wait_with("web", DAY2, &content, json!({}));
        assert!(out(&place.sync([]).clean()) < 20_000, "{more}");
        let seen = check_store(&place.far());
        assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (2, 0, 0));
        assert_eq!(place.kit.sh("find far -name '*.raw' -links +1").out, "", "{more}");
    }
}

#[test]
fn one_that_serves_one_at_a_time_is_waited_for() {
    let place = Place::daemon("max connections = 1");
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    // Who is asked for the listing and does not go on has the only seat.
    let rsyncd = place.rsyncd.as_ref().unwrap();
    let mut other = TcpStream::connect((Ipv4Addr::LOCALHOST, rsyncd.port)).unwrap();
    other.write_all(b"@RSYNCD: 31.0 md5\nbak\n").unwrap();
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("@RSYNCD: OK") {
        let mut letter = [0];
        other.read_exact(&mut letter).unwrap();
        said.push(letter[0]);
    }
    let (program, args) = place.command([]);
    let mut command = place.kit.command(program);
    command.args(args);
    let pass = std::thread::spawn(move || finish(command, ""));
    let begun = Instant::now();
    // The two of a look are turned away, and then each in its turn, again and again.
    while rsyncd.log().matches("max connections").count() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not asked: {}", rsyncd.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(other);
    assert_eq!(pass.join().unwrap().clean().column("id"), [web]);
}

#[test]
fn a_far_side_that_is_down_another_or_empty_gets_nothing() {
    let mut place = Place::daemon("");
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    let identity = fs::read(place.far().join(".bak-store")).unwrap();
    fs::write(place.far().join(".bak-store"), "{\"v\":1,\"id\":\"other\"}").unwrap();
    place.sync([]).expect(4).says("is another one");
    fs::remove_file(place.far().join(".bak-store")).unwrap();
    place.sync([]).expect(4).says("not mounted, or was it emptied");
    fs::remove_dir(place.far()).unwrap();
    place.sync([]).expect(4).says("1 dump stays pending");
    assert!(!place.far().exists());
    fs::create_dir(place.far()).unwrap();
    fs::write(place.far().join(".bak-store"), identity).unwrap();
    let (program, args) = place.command([]);
    place.rsyncd = None;
    let mut command = place.kit.command(program);
    command.args(args);
    finish(command, "").expect(1).says("Connection refused").says("1 dump stays pending");
    assert_eq!(check_store(&place.outbox()).whole, [web]);
}

#[test]
fn what_is_there_is_listed_and_reconciled() {
    let place = Place::daemon("");
    let web = place.wait_there("web", DAY1, 1000, json!({}));
    place.sync([]).clean();
    put_dump(&place.far(), "lost", DAY1, 1000, json!({}));
    fs::write(place.far().join("lost/lost-20261118T010000Z.raw"), "short").unwrap();
    let url = place.rsyncd.as_ref().unwrap().url();
    let listed = place.kit.run("bak-list", [url.as_str(), "--json"]).clean();
    assert_eq!(listed.column("id"), ["lost@20261118T010000Z", web.as_str()]);
    assert_eq!(listed.column("fault"), ["its file lost-20261118T010000Z.raw has 5 bytes instead of 1000", ""]);
    fs::remove_dir_all(place.far().join("web")).unwrap();
    let ran = place.sync(["--reconcile"]).clean();
    assert_eq!(ran.records()[0]["reconcile"]["box"]["decision"], "gone");
    place.wait_there("web", DAY1, 1000, json!({}));
    assert_eq!(place.sync([]).clean().column("id"), [web]);
}

#[test]
fn a_line_that_drops_is_tried_again_and_what_has_arrived_counts() {
    let (place, relay, url) = relayed("");
    let web = place.wait_with("web", DAY1, &noise(1, 8 << 20), json!({}));
    let mut command = place.kit.command(bak_tests::bin("bak-sync"));
    command.args(["--outbox", "outbox", "--dest", &format!("box={url}"), "--bwlimit", "4M"]);
    let pass = std::thread::spawn(move || finish(command, ""));
    let begun = Instant::now();
    while relay.seen() < 4 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing crosses");
        std::thread::sleep(Duration::from_millis(5));
    }
    relay.cut();
    let ran = pass.join().unwrap().clean();
    assert_eq!((ran.column("id"), ran.records()[0]["sent"]["box"]["passes"].as_u64()), (vec![web], Some(1)));
    assert!(relay.seen() < 10 << 20, "{}: what had arrived was sent again", relay.seen());
    assert_eq!(check_store(&place.far()).whole.len(), 1);
}
