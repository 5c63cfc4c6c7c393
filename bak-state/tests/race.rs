//! Sixteen workers race to claim two hundred guests; one guest in ten has its first claim killed by SIGKILL in mid-work.
//!
//! Each command proves for itself that nobody else works on its guest: it takes a lock of its own, outside the database,
//! which lives exactly as long as any process of that command, and notes a violation if that is taken. Nothing here waits
//! for time to pass: what is left running waits for the end of its standard input, and is gone when the pipe that it
//! writes to has no writer any more.

use bak_tests::Kit;
use serde_json::json;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read};
use std::path::Path;
use std::process::Child;

const GUESTS: usize = 200;
const WORKERS: usize = 16;

/// Takes what is due until nothing is. What another holds is passed over.
const WORKER: &str = "
while :; do
    due=$(sed -n 's/:BACKUP_NECESSARY$//p' db/vmtool-statedb)
    if [ -z \"$due\" ]; then
        bak-state observe -q - --db db <guests || exit 1
        due=$(sed -n 's/:BACKUP_NECESSARY$//p' db/vmtool-statedb)
        [ -n \"$due\" ] || exit 0
    fi
    for vm in $due; do
        bak-state claim --db db $vm -- sh work 2>>errors
        status=$?
        case $status in
        0 | 137) break ;;
        3) ;;
        *) echo \"$vm: status $status\" >>violations; exit 1 ;;
        esac
    done
done";

/// The first claim of every tenth guest ends by SIGKILL to bak-state. What then becomes of the command: 0 it is killed
/// too; 5 it ignores the signal that it gets; 15 what works is a background process in a session of its own.
const WORK: &str = "
exec 8>marks/$BAK_VM
flock -n 8 || echo \"$BAK_VM is held twice\" >>violations
number=${BAK_VM#g}
if [ $((number % 10)) = 5 ] && mkdir killed/$BAK_VM 2>/dev/null; then
    case $((number % 40)) in
    5 | 25) kill -KILL $PPID; kill -KILL $$ ;;
    15) trap '' TERM; kill -KILL $PPID; echo left; read end ;;
    35) exec 7<&0; setsid sh -c 'echo left; read end' <&7 & kill -KILL $PPID; wait ;;
    esac
    exit 1
fi
echo $BAK_VM >>done";

struct Race {
    kit: Kit,
}

/// Workers that were started, and the ends of the pipes that they and what they leave behind hold.
struct Started {
    workers: Vec<Child>,
    input: PipeWriter,
    output: PipeReader,
}

impl Race {
    fn new() -> Self {
        // Whole databases are flushed thousands of times: where there is memory for files, there.
        let memory = Path::new("/dev/shm");
        let kit = if memory.is_dir() { Kit::new_in(memory) } else { Kit::new() };
        let guest = |at| {
            let more = json!({"v": 1, "type": "guest", "vm": format!("g{at}"), "kind": "qemu", "driver": "image",
                "fingerprint": "a", "state": "stopped"});
            format!("{more}\n")
        };
        kit.write("guests", (0..GUESTS).map(guest).collect::<String>());
        kit.write("work", WORK);
        for name in ["done", "violations"] {
            kit.write(name, "");
        }
        for dir in ["marks", "killed"] {
            fs::create_dir(kit.path(dir)).unwrap();
        }
        let race = Self { kit };
        race.observe();
        race
    }

    fn observe(&self) {
        self.kit.sh("bak-state observe -q - --db db <guests").clean();
    }

    fn start(&self) -> Started {
        let (stdin, input) = std::io::pipe().unwrap();
        let (output, stdout) = std::io::pipe().unwrap();
        let worker = |_| {
            let mut command = self.kit.command("sh");
            command.args(["-c", WORKER]);
            command.stdin(stdin.try_clone().unwrap()).stdout(stdout.try_clone().unwrap());
            command.spawn().unwrap()
        };
        Started { workers: (0..WORKERS).map(worker).collect(), input, output }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.kit.path(name)).unwrap()
    }

    /// The guests in this status.
    fn in_status(&self, status: &str) -> Vec<usize> {
        let text = self.read("db/vmtool-statedb");
        let found = text.lines().filter_map(|line| line.strip_prefix('g')?.strip_suffix(&format!(":{status}")));
        let mut found: Vec<usize> = found.map(|number| number.parse().unwrap()).collect();
        found.sort_unstable();
        found
    }
}

impl Started {
    fn join(&mut self) {
        for worker in &mut self.workers {
            assert!(worker.wait().unwrap().success());
        }
    }

    /// Lets go what still works, and returns when it is gone: what it printed.
    fn release(mut self) -> String {
        drop(self.input);
        let mut printed = String::new();
        self.output.read_to_string(&mut printed).unwrap();
        printed
    }
}

#[test]
fn none_is_held_twice_and_all_end_clean() {
    let race = Race::new();
    let mut first = race.start();
    first.join();
    // Where all are gone the workers' own observations have found it; what was left running still holds its guest.
    let left: Vec<usize> = (0..GUESTS).filter(|number| number % 20 == 15).collect();
    assert_eq!(race.in_status("BACKUP_IN_PROGRESS"), left);
    assert_eq!(race.in_status("CLEAN").len(), GUESTS - left.len());
    race.observe();
    assert_eq!(race.in_status("BACKUP_IN_PROGRESS"), left);
    for number in &left {
        let ran = race.kit.run("bak-state", ["claim", "--db", "db", &format!("g{number}"), "--", "sh", "work"]);
        ran.expect(3).says("it is being dumped by bak-state (pid ");
    }
    assert_eq!(first.release(), "left\n".repeat(left.len()));
    race.observe();
    assert_eq!(race.in_status("BACKUP_NECESSARY"), left);
    let mut second = race.start();
    second.join();
    assert_eq!(second.release(), "");
    assert_eq!(race.in_status("CLEAN"), (0..GUESTS).collect::<Vec<_>>());
    assert_eq!(race.read("violations"), "");
    assert_eq!(fs::read_dir(race.kit.path("killed")).unwrap().count(), GUESTS / 10);
    let done = race.read("done");
    assert!((0..GUESTS).all(|number| done.lines().any(|line| line == format!("g{number}"))));
    let errors = race.read("errors");
    let (passed, other): (Vec<&str>, Vec<&str>) =
        errors.lines().partition(|line| line.contains("it is being dumped by bak-state"));
    assert_eq!(other, ["Killed"; GUESTS / 10], "the shell says that");
    println!("{} dumps, {} times held by another", done.lines().count(), passed.len());
}
