//! The lines that the README gives to cron, and the hook for Proxmox's jobs, run as they stand there, where the paths in them are
//! another machine's: in a mount namespace of its own.

mod archives;

use archives::{DATE, archive, names, path};
use bak_tests::{Kit, Ran, bin_dir, check_store};
use std::fs;
use std::path::Path;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The README's configuration and cron lines of this chapter.
fn chapter() -> (String, Vec<String>) {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, chapter) = text.split_once("## Beside the jobs you have").unwrap();
    let (chapter, _) = chapter.split_once("\n## ").unwrap();
    let (_, config) = chapter.split_once("```toml\n").unwrap();
    let lines = chapter.lines().filter_map(|line| Some(line.split_once("  root  ")?.1.to_owned()));
    (config.split_once("```").unwrap().0.to_owned(), lines.collect())
}

/// Runs a line of `sh` with next to no environment, where `store` is the dump directory, `bak.toml` in `/etc/bak`, and bak installed.
fn run(kit: &Kit, line: &str) -> Ran {
    let mounts = format!(
        "mkdir -p upper work && mount -t overlay -o lowerdir=/etc,upperdir=upper,workdir=work overlay /etc && mkdir -p /etc/bak && \
         cp bak.toml /etc/bak && top=$PWD && mount -t tmpfs none /var/lib && mkdir -p /var/lib/vz/dump && \
         mount --bind $top/store /var/lib/vz/dump && mount -t tmpfs none /srv && mkdir /srv/bak && mount --bind $top/far /srv/bak && \
         cp {hook} hook && mount --bind {bin} /usr/local/bin",
        bin = bin_dir().display(),
        hook = repository().join("scripts/bak-vzdump-hook").display(),
    );
    kit.write("line", line);
    kit.sh(&format!("unshare -m sh -c '{mounts} && cd $top && exec env -i PATH=/usr/local/bin:/usr/bin:/bin sh line'"))
}

fn scene() -> Kit {
    let kit = Kit::new();
    let (config, _) = chapter();
    // A box that is mounted serves as well as one behind ssh.
    kit.write("bak.toml", config.replace("backup@box:/srv/bak", "/srv/bak"));
    fs::create_dir(kit.path("far")).unwrap();
    archive(&kit, "lxc", 102, ".tar.zst", 10_000);
    run(&kit, "bak-sync --init").clean();
    kit
}

#[test]
fn from_cron() {
    let kit = scene();
    let (_, lines) = chapter();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        assert_eq!(run(&kit, line).clean().out, "", "{line}");
    }
    assert_eq!(check_store(&kit.path("far")).whole.len(), 1);
    for ending in [".tar.zst", ".log"] {
        fs::remove_file(path(&kit, &format!("vzdump-lxc-102-{DATE}{ending}"))).unwrap();
    }
    for line in &lines {
        run(&kit, line).clean();
    }
    assert!(names(&kit).is_empty(), "{:?}", names(&kit));
    assert_eq!(check_store(&kit.path("far")).whole.len(), 1);
}

#[test]
fn from_the_hook() {
    let kit = scene();
    for phase in
        ["job-init", "job-start", "backup-start snapshot 102", "backup-end snapshot 102", "log-end snapshot 102"]
    {
        run(&kit, &format!("exec env -i ./hook {phase}")).clean();
    }
    assert_eq!(names(&kit).len(), 2, "nothing before the job has ended");
    run(&kit, "exec env -i ./hook job-end").clean();
    assert_eq!(names(&kit).len(), 3);
    assert_eq!(check_store(&kit.store().join(".outbox-box")).whole.len(), 1);
    // What goes wrong is said, and is not the job's failure.
    kit.write("bak.toml", "store = 1\n");
    let ran = run(&kit, "exec env -i ./hook job-end").expect(0);
    assert!(ran.err.starts_with("bak-scan: "), "{}", ran.err);
}
