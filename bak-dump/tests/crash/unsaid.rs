//! qemu-img that cannot write an image's tables when it closes it: it says so, and exits with 0.

use bak_tests::{Kit, Ran, check_store, finish, noise};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Runs a program of bak's with such a qemu-img on PATH.
fn run(kit: &Kit, name: &str, args: &[&str]) -> Ran {
    let said = "qemu-img: Failed to flush the L2 table cache: No space left on device";
    let script =
        format!("#!/bin/sh\nPATH=${{PATH#*:}}\nqemu-img \"$@\" || exit\n[ \"$1\" != convert ] || echo '{said}' >&2\n");
    let tool = kit.write("bin/qemu-img", script);
    fs::set_permissions(tool, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = kit.command(bak_tests::bin(name));
    let path = command.get_envs().find(|(key, _)| *key == "PATH").unwrap().1.unwrap().to_str().unwrap().to_owned();
    command.env("PATH", format!("{}:{path}", kit.path("bin").display())).args(args);
    finish(command, "")
}

#[test]
fn what_qemu_img_says_at_its_end_is_believed_whatever_its_exit_status() {
    let kit = Kit::new();
    kit.write("vm/web.raw", noise(1, 65_536));
    let why = "qemu-img said, although it exited with 0: qemu-img: Failed to flush the L2 table cache";
    run(&kit, "bak-dump", &["--images", "vm", "--store", "store", "--all"]).expect(1).says(why);
    let seen = check_store(&kit.store());
    assert_eq!(
        (seen.whole.len(), seen.broken.len(), seen.strange.len(), seen.unfinished.len()),
        (0, 0, 0, 0),
        "{seen:?}"
    );
    kit.run("bak-dump", ["--images", "vm", "--store", "store", "--all", "--format", "raw"]).clean();
    fs::create_dir(kit.path("out")).unwrap();
    run(&kit, "bak-restore", &["web", "--store", "store", "--to", "out", "--format", "qcow2"]).expect(1).says(why);
    assert_eq!(fs::read_dir(kit.path("out")).unwrap().count(), 0);
}
