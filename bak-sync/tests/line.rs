//! A line as lines are: slow, lossy, cut and back, silent for good, reset. Two network namespaces, a real sshd in one of them.

mod common;

use bak_tests::net::Line;
use bak_tests::process::{below, wait_for, words};
use bak_tests::{Kit, Ran, bin, check_store, finish, noise};
use common::{DAY1, DAY2, Place};
use serde_json::json;
use std::fs;
use std::process::{Child, Command, Stdio};

/// What comes before bak's own options: it notices in two to three seconds that a line is dead, not in a minute.
const IMPATIENT: &str = "-o ServerAliveInterval=1 -o ServerAliveCountMax=2 -o ConnectTimeout=2";

/// Pipes, ssh's window and the kernel's buffers together hold about so much, in bytes.
const IN_BUFFERS: u64 = 4 << 20;

/// A place whose far side is at the other end of a line.
struct Far {
    place: Place,
    line: Line,
}

impl Far {
    fn new() -> Self {
        let (kit, line) = (Kit::new(), Line::new());
        fs::create_dir(kit.path("far")).unwrap();
        let sshd = line.sshd(&kit.path("sshd"));
        let far = Self { place: Place { kit, sshd: Some(sshd), rsyncd: None }, line };
        far.sync(&["--init"]).clean();
        far.line.slow("20mbit");
        far
    }

    fn command(&self, more: &[&str]) -> Command {
        let sshd = self.place.sshd.as_ref().unwrap();
        let mut command = self.line.command(&self.place.kit, bin("bak-sync"));
        command.args(["--outbox", "outbox", "--dest", &format!("box={}", sshd.url(&self.place.far()))]);
        command.args(["--ssh", &format!("{} {IMPATIENT}", sshd.command())]).args(more);
        command
    }

    fn sync(&self, more: &[&str]) -> Ran {
        finish(self.command(more), "")
    }

    /// Starts a pass and waits until `bytes` have crossed.
    fn begin(&self, bytes: u64, more: &[&str]) -> Child {
        let before = self.line.crossed();
        let mut command = self.command(more);
        let mut pass = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("nothing crosses", || self.line.crossed() - before > bytes || pass.try_wait().unwrap().is_some());
        assert!(pass.try_wait().unwrap().is_none(), "it was over too soon");
        pass
    }

    /// The ledger must not have less than crossed, but for what TCP, IP and ssh add. It has more where a line dies: also what
    /// was on its way in buffers. In all, hardly more crossed than the `bytes` that had to.
    #[track_caller]
    fn ledger_is_right(&self, bytes: u64) {
        let (noted, crossed) = (self.place.counted(), self.line.crossed());
        println!("{bytes} to send, {noted} noted, {crossed} crossed");
        assert!(crossed < noted / 100 * 110 + 200_000, "{noted} noted, {crossed} crossed");
        assert!(noted < bytes + IN_BUFFERS, "{noted} noted of {bytes}");
        assert!(crossed < bytes / 100 * 110 + IN_BUFFERS, "{crossed} crossed of {bytes}");
    }

    /// All of it is over there and nowhere else, and nobody is left.
    fn arrived(&self, ids: &[&str]) {
        let seen = check_store(&self.place.far());
        assert_eq!(
            (seen.whole, seen.broken.len(), seen.strange.len()),
            (ids.iter().map(|id| (*id).to_owned()).collect(), 0, 0)
        );
        assert!(check_store(&self.place.outbox()).whole.is_empty());
    }
}

fn end(pass: Child) -> Ran {
    Ran::of(pass.wait_with_output().unwrap())
}

/// Waits until the ssh that holds the connection of a pass has given up.
fn given_up(pass: &Child) {
    let masters = || below(pass.id()).into_iter().filter(|pid| words(*pid).iter().any(|word| word == "-M")).count();
    wait_for("ssh never notices that the line is dead", || masters() == 0);
}

#[test]
fn a_pass_over_a_slow_line_that_loses_packets_is_right() {
    let far = Far::new();
    far.line.lose(1);
    let mut content = noise(1, 3 << 20);
    let web = far.place.wait_with("web", DAY1, &content, json!({}));
    let db = far.place.wait_there("db", DAY1, 10_000, json!({"rank": 2}));
    assert_eq!(far.sync(&[]).clean().column("id"), [web.as_str(), db.as_str()]);
    far.ledger_is_right(3 << 20);
    content[1_000_000] ^= 0xff;
    let next = far.place.wait_with("web", DAY2, &content, json!({}));
    let sent = far.sync(&[]).clean();
    assert!(sent.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap() < 30_000, "{}", sent.out);
    far.arrived(&[&db, &web, &next]);
}

#[test]
fn a_line_that_is_cut_for_a_moment_costs_nothing() {
    let far = Far::new();
    let web = far.place.wait_with("web", DAY1, &noise(1, 4 << 20), json!({}));
    let pass = far.begin(1 << 20, &[]);
    far.line.cut();
    std::thread::sleep(std::time::Duration::from_secs(1));
    far.line.mend();
    assert_eq!(end(pass).clean().column("id"), [web.as_str()]);
    far.ledger_is_right(4 << 20);
    far.arrived(&[&web]);
}

#[test]
fn a_line_that_is_cut_and_comes_back_is_tried_again_in_the_same_pass() {
    let far = Far::new();
    let web = far.place.wait_with("web", DAY1, &noise(1, 6 << 20), json!({}));
    let pass = far.begin(4 << 20, &["--retries", "9"]);
    far.line.cut();
    given_up(&pass);
    far.line.mend();
    let ran = end(pass).clean();
    assert_eq!(ran.column("id"), [web.as_str()]);
    assert_eq!(ran.records()[0]["sent"]["box"]["passes"], 1);
    far.ledger_is_right(6 << 20);
    far.arrived(&[&web]);
}

#[test]
fn a_line_that_falls_silent_for_good_is_given_up_and_the_next_pass_goes_on() {
    let far = Far::new();
    let web = far.place.wait_with("web", DAY1, &noise(1, 6 << 20), json!({}));
    let pass = far.begin(4 << 20, &["--retries", "1"]);
    far.line.silence();
    let ran = end(pass).expect(1).says("web@20261118T010000Z: stays pending");
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    assert_eq!(check_store(&far.place.outbox()).whole, [web.as_str()]);
    // Nor does the next one reach it.
    let ran = far.sync(&[]).expect(1).says("1 dump stays pending");
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    far.line.heal();
    far.sync(&[]).clean();
    far.ledger_is_right(6 << 20);
    far.arrived(&[&web]);
}

#[test]
fn a_line_that_is_reset_is_tried_again() {
    let far = Far::new();
    let web = far.place.wait_with("web", DAY1, &noise(1, 6 << 20), json!({}));
    let pass = far.begin(4 << 20, &["--retries", "9"]);
    far.line.reset();
    given_up(&pass);
    far.line.heal();
    assert_eq!(end(pass).clean().column("id"), [web.as_str()]);
    far.ledger_is_right(6 << 20);
    far.arrived(&[&web]);
}

/// Here ssh is gone, but its end of the connection still holds what it could not deliver, and tries on for minutes. Over
/// there rsync still waits for it, with the partial file open.
#[test]
fn what_a_dead_line_delivers_late_does_not_reach_a_dump_that_was_finished_meanwhile() {
    let far = Far::new();
    let old = noise(1, 8 << 20);
    let inserted = |(i, piece): (usize, &[u8])| [&noise(i as u64 + 9, 4_000), piece].concat();
    let new = old.chunks(50_000).enumerate().map(inserted).collect::<Vec<_>>().concat();
    let put = |store: std::path::PathBuf, day, content: &[u8], note| {
        common::put_content(&store, "web", day, "vma", content, note)
    };
    put(far.place.outbox(), DAY1, &old, common::linked(json!({})));
    put(far.place.kit.store(), DAY1, &old, json!({}));
    far.sync(&[]).clean();
    let web = put(far.place.outbox(), DAY2, &new, common::linked(json!({})));
    // A first slice, so that the next one writes into the partial file itself.
    far.sync(&["--store", "store", "--limit", "200K"]).clean();
    far.line.slow("2mbit");
    let pass = far.begin(200_000, &["--store", "store", "--retries", "0"]);
    let ports = far.line.ports(&["01"]);
    far.line.silence();
    given_up(&pass);
    end(pass).expect(1);
    far.line.slow("100mbit");
    far.line.silence_from(&ports);
    let sent = far.sync(&["--store", "store"]).clean();
    assert_eq!(sent.column("id"), [web]);
    assert!(sent.records()[0]["sent"]["box"]["wire_out"].as_u64().unwrap() < 4 << 20, "{}", sent.out);
    // Those that wait for an answer to what they have sent last.
    let late = || far.line.ports(&["04", "09", "0B"]).iter().any(|port| ports.contains(port));
    assert!(late(), "nothing is late");
    far.line.heal();
    wait_for("it is never delivered", || !late());
    let seen = check_store(&far.place.far());
    assert_eq!((seen.whole.len(), seen.broken.len()), (2, 0), "{seen:?}");
}
