//! A day of backups, with one of the tools killed at a random moment, again and again: every store is right at once, and
//! the next run finishes the job.

use bak_tests::sshd::Sshd;
use bak_tests::{Kit, Seen, check_store, noise};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const GUESTS: [&str; 3] = ["web", "db", "mail"];
const FOREIGN: [&str; 3] = ["store/web/readme.txt", "store/.outbox-box/db/mine", "far/notes"];

/// The day's lines; each is a program of its own, so that one that is killed ends the day.
const DAY: &str = "set -e
for tool in dump link sync prune; do
    case $tool in
    dump) bak-guests --config bak.toml --now $NOW | bak-state observe --due - --config bak.toml --now $NOW >due
          bak-dump - --config bak.toml --now $NOW <due >/dev/null ;;
    link) bak-link --config bak.toml --now $NOW >/dev/null ;;
    sync) bak-sync --config bak.toml --now $NOW >/dev/null ;;
    prune) bak-prune --all --keep-last 1 --config bak.toml --now $NOW >/dev/null ;;
    esac
done";

struct Day {
    kit: Kit,
    minute: u32,
}

impl Day {
    fn new(ssh: Option<&Sshd>, seed: u64) -> Self {
        let kit = Kit::new();
        for (i, guest) in GUESTS.iter().enumerate() {
            kit.write(&format!("images/{guest}.raw"), noise(seed + i as u64, 6 << 20));
        }
        for name in FOREIGN {
            kit.write(name, name);
        }
        let (url, options) = match ssh {
            Some(sshd) => {
                let words: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
                (sshd.url(&kit.path("far")), format!("ssh = [{}]\n", words.join(", ")))
            }
            None => (kit.path("far").display().to_string(), String::new()),
        };
        let config = format!(
            "store = \"store\"\ndb = \"state\"\nreserve = \"1M\"\n[image]\nimages = [\"images\"]\nformat = \"raw\"\n[[dest]]\nname = \"box\"\nurl = \"{url}\"\n{options}"
        );
        kit.write("bak.toml", config);
        kit.run("bak-sync", ["--config", "bak.toml", "--init"]).clean();
        Self { kit, minute: 0 }
    }

    fn start(&mut self) -> std::process::Child {
        // A later start each time: what was dumped before the kill is not dumped again at the same second.
        self.minute += 1;
        let mut command = self.kit.command("sh");
        command.args(["-c", DAY]).env("NOW", format!("2026-11-20T01:{:02}:00Z", self.minute));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.kit.path("errors")).unwrap())
            .spawn()
            .unwrap()
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.kit.path("errors")).unwrap()
    }

    /// The bak programs that run for this day, by their working directory.
    fn running(&self) -> Vec<i32> {
        let here = fs::canonicalize(self.kit.path(".")).unwrap();
        let is_ours = |pid: &i32| {
            let proc = Path::new("/proc").join(pid.to_string());
            let name = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            name.starts_with("bak-") && fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == here)
        };
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.filter(is_ours).collect()
    }

    /// What must hold at any moment.
    fn right(&self, point: &str) -> [Seen; 3] {
        for name in FOREIGN {
            assert_eq!(fs::read_to_string(self.kit.path(name)).ok().as_deref(), Some(name), "{point}");
        }
        ["store", "store/.outbox-box", "far"].map(|place| {
            let seen = check_store(&self.kit.path(place));
            assert!(seen.broken.is_empty(), "{point}: {place}: {seen:?}");
            seen
        })
    }
}

/// A random number below `end`, from a seed that a failure names.
fn random(state: &mut u64, end: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % end
}

/// Plays days until a tool was killed in as many of them as `rounds` says.
fn killed(ssh: bool, rounds: u64, mut seed: u64) {
    let sshd_kit = Kit::new();
    let sshd = ssh.then(|| Sshd::start(&sshd_kit.path("sshd")));
    let begun = Instant::now();
    let mut calm = Day::new(sshd.as_ref(), 0);
    assert!(calm.start().wait().unwrap().success(), "{}", calm.errors());
    let length = begun.elapsed().as_millis() as u64;
    let (mut kills, mut round) = (0, 0);
    while kills < rounds {
        round += 1;
        assert!(round < 5 * rounds, "most days end before anything is killed");
        let mut day = Day::new(sshd.as_ref(), round);
        let mut child = day.start();
        let moment = random(&mut seed, length);
        std::thread::sleep(Duration::from_millis(moment));
        // Whatever runs then; if it is the gap between two, what comes next.
        let mut victim = None;
        while victim.is_none() && child.try_wait().unwrap().is_none() {
            let running = day.running();
            victim = (!running.is_empty()).then(|| running[random(&mut seed, running.len() as u64) as usize]);
        }
        if let Some(pid) = victim {
            let point = format!("round {round}, ssh {ssh}: killed after {moment} ms");
            let killed = day.kit.sh(&format!("kill -9 {pid}"));
            kills += u64::from(killed.status == 0);
            child.wait().unwrap();
            day.right(&point);
            let ended = day.start().wait().unwrap();
            assert!(ended.success(), "{point}: {}", day.errors());
            let [store, outbox, far] = day.right(&point);
            for seen in [&store, &outbox] {
                assert!(seen.unfinished.is_empty(), "{point}: {seen:?}");
            }
            assert!(outbox.whole.is_empty(), "{point}: {outbox:?}");
            assert_eq!(
                (store.strange, far.strange),
                (vec!["web/readme.txt".to_owned()], vec!["notes".to_owned()]),
                "{point}"
            );
            for guest in GUESTS {
                for seen in [&store.whole, &far.whole] {
                    assert!(seen.iter().any(|id| id.starts_with(&format!("{guest}@"))), "{point}: {guest}: {seen:?}");
                }
            }
        }
        child.wait().unwrap();
    }
    println!("{kills} kills in {round} days");
}

#[test]
fn at_any_moment_to_a_mounted_path() {
    killed(false, 10, 1);
}

#[test]
fn at_any_moment_over_ssh() {
    killed(true, 10, 2);
}
