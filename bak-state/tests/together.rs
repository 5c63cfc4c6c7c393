//! Sets that wait for the database are carried out together.

use bak_tests::{Kit, Ran, bin};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A database, and its lock held by the test.
fn locked() -> (Kit, File) {
    let kit = Kit::new();
    kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
    let guests: String = (0..40).map(|at| format!("vm{at:02}:CLEAN\n")).collect();
    kit.write("db/vmtool-statedb", guests);
    kit.run("bak-state", ["set", "ARCHIVED", "vm39", "--db", "db"]).clean();
    let lock = File::options().read(true).write(true).open(kit.path("db/vmtool-dblock")).unwrap();
    lock.lock().unwrap();
    (kit, lock)
}

fn start(kit: &Kit, line: &str) -> Child {
    let mut command = kit.command(bin("bak-state"));
    command.args(line.split(' ')).args(["--db", "db"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().unwrap_or_else(|| -output.status.signal().unwrap()),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn queue(kit: &Kit) -> Vec<String> {
    let names = fs::read_dir(kit.path("db/queue")).into_iter().flatten();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::yield_now();
    }
}

/// Whether every order that lies there is whole.
fn written(kit: &Kit, count: usize) -> bool {
    let whole =
        |name: &String| fs::read_to_string(kit.path("db/queue").join(name)).is_ok_and(|text| text.ends_with('}'));
    let names = queue(kit);
    names.len() == count && names.iter().all(whole)
}

fn statedb(kit: &Kit) -> String {
    fs::read_to_string(kit.path("db/vmtool-statedb")).unwrap()
}

fn generation(kit: &Kit) -> u64 {
    let holder: Value = serde_json::from_slice(&fs::read(kit.path("db/vmtool-dblock")).unwrap()).unwrap();
    holder["generation"].as_u64().unwrap()
}

#[test]
fn many_who_wait_need_one_rewrite() {
    let (kit, lock) = locked();
    let before = generation(&kit);
    let waiting: Vec<Child> = (0..6).map(|at| start(&kit, &format!("set ARCHIVED vm{at:02} vm1{at}"))).collect();
    let illegal = start(&kit, "set CLEAN vm20 vm39");
    let forced = start(&kit, "set --force NEW vm21");
    wait_until("eight orders", || written(&kit, 8));
    lock.unlock().unwrap();
    for (at, child) in waiting.into_iter().enumerate() {
        let ran = end(child).clean();
        assert_eq!(ran.column("vm"), [format!("vm{at:02}"), format!("vm1{at}")]);
        assert_eq!(
            (ran.column("was"), ran.column("status")),
            (vec!["CLEAN".to_owned(); 2], vec!["ARCHIVED".to_owned(); 2])
        );
    }
    end(illegal).expect(4).says("vm39: it is ARCHIVED and may not become CLEAN (--force)");
    assert_eq!(end(forced).clean().column("status"), ["NEW"]);
    assert_eq!(statedb(&kit).matches(":ARCHIVED").count(), 13);
    assert_eq!(generation(&kit), before + 1, "one of them wrote for all");
    assert_eq!(queue(&kit), [""; 0]);
}

#[test]
fn what_depends_on_who_wins_waits_its_turn() {
    let (kit, lock) = locked();
    let racers: Vec<Child> = (0..6)
        .map(|_| start(&kit, "set --from CLEAN BACKUP_NECESSARY vm05"))
        .chain([start(&kit, "set ARCHIVED vm06")])
        .collect();
    wait_until("one order", || written(&kit, 1));
    lock.unlock().unwrap();
    let statuses: Vec<i32> = racers.into_iter().map(|child| end(child).status).collect();
    assert_eq!(statuses[..6].iter().filter(|status| **status == 0).count(), 1, "one wins: {statuses:?}");
    assert_eq!(statuses[6], 0);
}

#[test]
fn the_order_of_a_dead_program_is_not_carried_out() {
    let (kit, lock) = locked();
    let mut dead = start(&kit, "set ARCHIVED vm07");
    wait_until("its order", || written(&kit, 1));
    dead.kill().unwrap();
    dead.wait().unwrap();
    let alive = start(&kit, "set ARCHIVED vm08");
    wait_until("the other order", || written(&kit, 2));
    lock.unlock().unwrap();
    end(alive).clean();
    assert!(statedb(&kit).contains("vm07:CLEAN\nvm08:ARCHIVED\n"));
    assert_eq!(queue(&kit), [""; 0]);
}

#[test]
fn who_gives_up_takes_his_order_back() {
    let (kit, lock) = locked();
    end(start(&kit, "set ARCHIVED vm07 --wait 0")).expect(3).says("is locked by another program");
    assert_eq!(queue(&kit), [""; 0]);
    lock.unlock().unwrap();
    kit.run("bak-state", ["set", "ARCHIVED", "vm08", "--db", "db"]).clean();
    assert!(statedb(&kit).contains("vm07:CLEAN\n"));
}

#[test]
fn an_order_that_was_taken_is_waited_for() {
    let (kit, lock) = locked();
    let patient = start(&kit, "set ARCHIVED vm07 --wait 1s");
    wait_until("its order", || written(&kit, 1));
    let token = queue(&kit).remove(0);
    let queue = kit.path("db/queue");
    // What somebody else does who has the database.
    fs::rename(queue.join(&token), queue.join(format!("{token}.taken"))).unwrap();
    let ran = end(patient).expect(3);
    ran.says("another program is carrying this out, or died of it");
    drop(lock);
}

/// Killed anywhere while it carries out another's order: the list is sound, the other is not told what is not so.
#[test]
fn killed_while_others_wait() {
    let (kit, lock) = locked();
    lock.unlock().unwrap();
    let (old, own, both) = ("a:CLEAN\nb:CLEAN\n", "a:ARCHIVED\nb:CLEAN\n", "a:ARCHIVED\nb:ARCHIVED\n");
    let mut points = 0;
    for call in ["openat", "write", "fsync", "rename", "renameat", "renameat2", "unlinkat", "flock", "fdatasync"] {
        for nth in 1.. {
            kit.write("db/vmtool-statedb", old);
            let _ = fs::remove_dir_all(kit.path("db/queue"));
            let order = kit.write("db/queue/other", r#"{"to":"ARCHIVED","force":false,"vms":["b"]}"#);
            let waits = File::open(order).unwrap();
            waits.lock().unwrap();
            let mut command = kit.command("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
            command.arg(format!("inject={call}:signal=KILL:when={nth}")).arg(bin("bak-state"));
            let ran = bak_tests::finish(
                {
                    command.args(["set", "ARCHIVED", "a", "--db", "db"]);
                    command
                },
                "",
            );
            let text = statedb(&kit);
            assert!([old, own, both].contains(&text.as_str()), "{call} {nth}: {text}");
            let answer = fs::read_to_string(kit.path("db/queue/other.done")).unwrap_or_default();
            if answer.ends_with('}') || answer.ends_with(']') {
                assert_eq!(text, both, "{call} {nth}: answered before it was so");
            }
            if ran.status == 0 {
                assert_eq!((text.as_str(), answer.as_str()), (both, r#"[{"vm":"b","was":"CLEAN"}]"#));
                break;
            }
            assert_eq!(ran.status, -9, "{call} {nth}: {}", ran.err);
            points += 1;
            waits.unlock().unwrap();
            kit.run("bak-state", ["set", "ARCHIVED", "a", "b", "--db", "db"]).clean();
            assert_eq!((statedb(&kit).as_str(), queue(&kit).len()), (both, 0), "{call} {nth}");
            let left =
                fs::read_dir(kit.path("db")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let left: Vec<String> = left.filter(|name| name.starts_with('.')).collect();
            assert_eq!(left, [""; 0], "{call} {nth}: what was not finished is cleared away");
        }
    }
    assert!(points > 30, "{points}");
}

/// Real processes, many at once, one in eight killed: no set that was reported is lost.
#[test]
fn none_is_lost() {
    let kit = Kit::new();
    kit.write("db/vmtool-db-version", "TOOL_VERSION: 0.0\nDB_VERSION: 1.0\n");
    let guests: String = (0..200).map(|at| format!("vm{at:03}:CLEAN\n")).collect();
    kit.write("db/vmtool-statedb", guests);
    let worker = |worker: usize| {
        let mut done = Vec::new();
        for at in (worker * 25)..(worker * 25 + 25) {
            let mut child = start(&kit, &format!("set ARCHIVED vm{at:03}"));
            if at % 8 == 0 {
                // Wherever it is just now.
                for _ in 0..(at * 97) % 2000 {
                    std::hint::spin_loop();
                }
                child.kill().unwrap();
            }
            let ran = end(child);
            if ran.status == 0 {
                done.push(at);
            } else {
                assert_eq!((ran.status, at % 8), (-9, 0), "{}", ran.err);
            }
        }
        done
    };
    let done: Vec<usize> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|at| scope.spawn(move || worker(at))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(done.len() >= 175, "{}", done.len());
    let text = statedb(&kit);
    assert_eq!(text.lines().count(), 200);
    for at in done {
        assert!(text.contains(&format!("vm{at:03}:ARCHIVED\n")), "vm{at:03} was set and is not");
    }
    kit.run("bak-state", ["set", "CLEAN", "--force", "vm000", "--db", "db"]).clean();
    assert_eq!(queue(&kit), [""; 0], "the next writer clears away what the killed ones left");
}
