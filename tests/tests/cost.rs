//! What bak-link expects a dump to cost, against what it then costs over a real ssh.

use bak_tests::sshd::Sshd;
use bak_tests::{Kit, noise};
use std::fs;
use std::os::unix::fs::FileExt;

const SIZE: usize = 4 << 20;

#[test]
fn the_estimate_covers_what_really_crosses_and_is_far_below_the_size() {
    let kit = Kit::new();
    let sshd = Sshd::start(&kit.path("sshd"));
    let image = kit.write("images/web.raw", noise(1, SIZE));
    fs::create_dir(kit.path("far")).unwrap();
    let words: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
    kit.write(
        "bak.toml",
        format!(
            "store = \"store\"\nreserve = \"1M\"\n[image]\nimages = [\"images\"]\nformat = \"raw\"\n[[dest]]\nname = \"box\"\nurl = \"{}\"\nssh = [{}]\n",
            sshd.url(&kit.path("far")),
            words.join(", ")
        ),
    );
    kit.run("bak-sync", ["--config", "bak.toml", "--init"]).clean();
    for day in 1..=5_u64 {
        // Some forty blocks change every day, a few more or fewer, in places of their own.
        let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
        for block in 0..40 + (day * 7) % 5 {
            file.write_all_at(&noise(day * 1000 + block, 4096), (block * 97 + day * 13) % 1000 * 4096).unwrap();
        }
        let now = format!("2026-11-{:02}T01:00:00Z", 10 + day);
        kit.run("bak-dump", ["--config", "bak.toml", "--all", "--now", &now]).clean();
        let linked = kit.run("bak-link", ["--config", "bak.toml", "--now", &now]).clean();
        let cost = linked.records()[0]["link"]["box"]["cost"].as_u64().unwrap();
        let sent = kit.run("bak-sync", ["--config", "bak.toml", "--now", &now]).clean();
        let note = &sent.records()[0]["sent"]["box"];
        let wire = note["wire_out"].as_u64().unwrap() + note["wire_in"].as_u64().unwrap();
        println!("day {day}: {cost} expected, {wire} crossed");
        match day {
            1 | 2 => assert_eq!(cost, SIZE as u64, "nothing is known of changes"),
            _ => {
                assert!(wire <= cost, "day {day}: {wire} bytes crossed, {cost} were expected");
                assert!(cost < SIZE as u64 / 8, "day {day}: {cost} is no estimate of {wire}");
            }
        }
    }
}
