//! A far side in trouble: full, dead between data and sidecar, unmounted.

mod common;

use bak_tests::{Ran, bin, check_store, finish, noise};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A small file system in memory on a directory, for as long as the value lives.
struct Mount(PathBuf);

impl Mount {
    fn new(place: &Place, dir: &Path, size: &str) -> Self {
        let dir = dir.display();
        let made =
            place.kit.sh(&format!("mkdir -p {dir} && mount -t tmpfs -o size={size} none {dir} && mountpoint -q {dir}"));
        assert!(made.status == 0, "these tests want root, and a container in which it can mount: {}", made.err);
        Self(dir.to_string().into())
    }

    fn grow(&self, place: &Place, size: &str) {
        place.kit.sh(&format!("mount -o remount,size={size} {}", self.0.display())).clean();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-q", "-l"]).arg(&self.0).status();
    }
}

/// A place whose far side, `far`, is mounted.
fn mounted(ssh: bool, size: &str) -> (Place, Mount) {
    let place = Place::new(ssh);
    fs::remove_dir_all(place.outbox()).unwrap();
    fs::remove_dir_all(place.far()).unwrap();
    let mount = Mount::new(&place, &place.far(), size);
    place.sync(["--init"]).clean();
    (place, mount)
}

/// Puts a stand-in before rsync on PATH: `case` lines of sh that look at `$*`, then the real one.
fn with_stand_in(place: &Place, case: &str) -> Ran {
    let rsync = place.kit.sh("command -v rsync").clean().out;
    let script = format!("#!/bin/sh\ncase \"$*\" in\n{case}\nesac\nexec {} \"$@\"\n", rsync.trim());
    let script = script.replace("RSYNC", rsync.trim());
    let stand_in = place.kit.write("stand-in/rsync", script);
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    let (program, args) = place.command([]);
    let mut command = place.kit.command(program);
    let dirs = [place.kit.path("stand-in"), bin("bak-sync").parent().unwrap().to_owned()];
    let path = format!("{}:{}:{}", dirs[0].display(), dirs[1].display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).args(args);
    finish(command, "")
}

#[test]
fn a_full_disk_is_said_once_and_the_dump_goes_when_there_is_room() {
    for (ssh, limit) in [(false, "none"), (true, "none"), (false, "3M"), (true, "3M")] {
        let (place, mount) = mounted(ssh, "4m");
        let small = place.wait_there("small", DAY1, 10_000, json!({"rank": 1}));
        let big = place.wait_with("big", DAY1, &noise(1, 5_000_000), json!({"rank": 2}));
        let mut ran = place.sync(["--limit", limit, "--retries", "9"]);
        if limit != "none" {
            // The first slice fits.
            ran.clean();
            ran = place.sync(["--limit", limit, "--retries", "9"]);
        }
        let ran = ran.expect(1);
        assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
        let ran = ran.says("big@20261118T010000Z: stays pending: the disk over there is full");
        assert!(limit != "none" || ran.column("id") == [small.as_str()], "the others go: {}", ran.out);
        let tried =
            place.ledger().into_iter().filter(|line| line["dump"] == big.as_str() && line["result"] == "failed");
        assert_eq!(tried.count(), 1, "tried again on a full disk");
        let seen = check_store(&place.far());
        assert_eq!((seen.whole, seen.broken.len()), (vec![small.clone()], 0));
        assert_eq!(check_store(&place.outbox()).whole, [big.as_str()]);
        mount.grow(&place, "40m");
        place.sync([]).clean();
        assert_eq!(check_store(&place.far()).whole, [big, small]);
    }
}

#[test]
fn a_far_side_that_dies_between_data_and_sidecar_has_no_dump_and_gets_no_data_twice() {
    let place = Place::new(true);
    let web = place.wait_with("web", DAY1, &noise(1, 1_000_000), json!({}));
    // All that is asked of it runs through this: once the data is there it kills the connection.
    let data = place.far().join("web/web-20261118T010000Z.raw");
    let (data, dead) = (data.display(), place.kit.path("dead"));
    let script = format!(
        "#!/bin/sh\nif [ -e {data} ] && [ -e {} ]; then kill -9 $PPID; fi\nexec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
        dead.display()
    );
    let gate = place.kit.write("gate", script);
    fs::set_permissions(&gate, fs::Permissions::from_mode(0o755)).unwrap();
    let key = fs::read_to_string(place.kit.path("sshd/authorized")).unwrap();
    fs::write(place.kit.path("sshd/authorized"), format!("command=\"{}\" {key}", gate.display())).unwrap();
    fs::write(&dead, "").unwrap();
    let ran = place.sync(["--retries", "1"]).expect(1).says("web@20261118T010000Z: stays pending");
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    let seen = check_store(&place.far());
    assert_eq!((seen.whole.len(), seen.broken.len(), seen.strange.len()), (0, 0, 1), "data and no sidecar");
    assert_eq!(check_store(&place.outbox()).whole, [web.as_str()]);
    let before = place.counted();
    fs::remove_file(&dead).unwrap();
    place.sync([]).clean();
    assert_eq!(check_store(&place.far()).whole, [web]);
    assert!(place.counted() - before < 20_000, "{} {before}", place.counted());
}

#[test]
fn a_mount_point_is_not_filled_when_its_mount_goes_away_not_even_in_mid_pass() {
    for ssh in [false, true] {
        let (place, mount) = mounted(ssh, "40m");
        let ids = [
            place.wait_there("a", DAY1, 10_000, json!({"rank": 1})),
            place.wait_there("b", DAY1, 10_000, json!({"rank": 2})),
            place.wait_there("c", DAY2, 10_000, json!({"rank": 3})),
        ];
        let umount = format!("umount -l {}", mount.0.display());
        // Once the first dump's sidecar has gone over.
        let ran = with_stand_in(
            &place,
            &format!("*/sidecar*) RSYNC \"$@\"; status=$?; {umount} 2>/dev/null; exit $status ;;"),
        );
        ran.expect(4).says("was it unmounted");
        assert_eq!(check_store(&place.outbox()).whole, ids, "counted as sent");
        assert_eq!(place.kit.sh("find far -type f").clean().out, "", "written where nothing is mounted");
        place.sync([]).expect(4).says("is it not mounted");
        assert_eq!(place.kit.sh("find far -type f").clean().out, "");
    }
}
