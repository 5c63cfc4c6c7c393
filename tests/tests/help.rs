//! Every example in a `--help` is run, in a place where the paths it names exist; and every help tells the exit statuses.

use bak_tests::rsyncd::Rsyncd;
use bak_tests::sshd::Sshd;
use bak_tests::{Kit, noise, put_dump};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const TOOLS: [&str; 10] = [
    "bak-guests",
    "bak-state",
    "bak-dump",
    "bak-scan",
    "bak-link",
    "bak-sync",
    "bak-list",
    "bak-verify",
    "bak-restore",
    "bak-prune",
];

/// What stands in the examples, and what it is here.
fn here(kit: &Kit, sshd: &Sshd, rsyncd: &Rsyncd, example: &str) -> String {
    let root = kit.path("root").display().to_string();
    let far = format!("127.0.0.1:{root}/srv/bak");
    let module = rsyncd.url().replace("//", "//me@");
    let mut line = example.replace("backup@box:/srv/bak", &far).replace("rsync://me@box/bak", &module);
    for top in ["/var/", "/srv/", "/mnt/", "/nas/", "/etc/"] {
        line = line
            .replace(&format!(" {top}"), &format!(" {root}{top}"))
            .replace(&format!("={top}"), &format!("={root}{top}"));
        line = line.replace(&format!(" '{top}"), &format!(" '{root}{top}"));
    }
    // What the reader has in /etc/bak/bak.toml stands in a file here.
    let with_config = |part: &str| {
        let part = part.trim();
        let ssh = if part.contains(&far) && !part.starts_with("bak-link") {
            format!(" --ssh '{}'", sshd.command())
        } else {
            String::new()
        };
        if part.starts_with("bak-") {
            // What follows ` -- ` is another program's.
            let (own, command) = part.find(" -- ").map_or((part, ""), |at| part.split_at(at));
            format!("{own} --config bak.toml --now 2026-11-20T12:00:00Z{ssh}{command}")
        } else {
            part.to_owned()
        }
    };
    line.split(" | ").map(with_config).collect::<Vec<_>>().join(" | ")
}

fn scene() -> (Kit, Sshd, Rsyncd) {
    let kit = Kit::new();
    let sshd = Sshd::start(&kit.path("sshd"));
    let root = kit.path("root");
    for (i, image) in ["var/lib/libvirt/images/web.raw", "srv/vm/web1.qcow2"].iter().enumerate() {
        let path = kit.write(&format!("root/{image}"), noise(i as u64, 1 << 20));
        if image.ends_with("qcow2") {
            fs::remove_file(&path).unwrap();
            kit.sh(&format!("qemu-img create -q -f qcow2 '{}' 4M", path.display())).clean();
        }
    }
    for store in ["var/lib/vz/dump", "var/backups/vm", "srv/dumps", "mnt/box", "srv/bak", "nas/dumps"] {
        for day in ["2026-11-18", "2026-11-19", "2026-11-20"] {
            put_dump(&root.join(store), "web", &format!("{day}T01:00:00Z"), 1000, json!({"name": "web"}));
            put_dump(&root.join(store), "web", &format!("{day}T01:00:02Z"), 1000, json!({"name": "web"}));
            put_dump(&root.join(store), "web", &format!("{day}T03:00:00Z"), 1000, json!({"name": "web"}));
            put_dump(&root.join(store), "db-1", &format!("{day}T01:00:02Z"), 1000, json!({}));
        }
    }
    put_dump(&root.join("srv/dumps"), "100", "2026-11-20T01:00:02Z", 1000, json!({"adopted": {}}));
    for dir in ["var/bak", "var/tmp", "srv/images"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let words: Vec<String> = sshd.command().split(' ').map(|word| format!("{word:?}")).collect();
    let config = format!(
        "store = \"{0}/srv/dumps\"\ndb = \"{0}/var/bak/db\"\nkeep = {{ last = 3 }}\nreserve = \"1M\"\n[image]\nimages = [\"{0}/var/lib/libvirt/images\"]\n\
         [[dest]]\nname = \"box\"\nurl = \"127.0.0.1:{0}/srv/bak\"\nssh = [{1}]\n[[image.guest]]\nvm = \"db-1\"\ntags = [\"prod\"]\ndisks = [\"{0}/srv/vm/web1.qcow2\"]\n",
        root.display(),
        words.join(", ")
    );
    kit.write("bak.toml", config);
    kit.write("root/srv/vms", "web sync\ndb-1 nosync\n");
    kit.sh("bak-sync --config bak.toml --init").clean();
    for db in ["", "--db root/var/lib/bak", "--db root/nas/bak"] {
        kit.sh(&format!(
            "bak-guests --config bak.toml | bak-state observe - --config bak.toml --now 2026-11-20T11:00:00Z {db}"
        ))
        .clean();
    }
    let password = kit.write("root/etc/box.pass", "open sesame\n");
    fs::set_permissions(password, fs::Permissions::from_mode(0o600)).unwrap();
    let rsyncd = Rsyncd::start(&kit.path("rsyncd"), &root.join("mnt/box"), "");
    (kit, sshd, rsyncd)
}

#[test]
fn every_example_works() {
    let mut run = 0;
    for tool in TOOLS {
        let (kit, sshd, rsyncd) = scene();
        let mut helps = vec![kit.run(tool, ["--help"]).clean().out];
        if tool == "bak-state" {
            helps.extend(
                ["check", "archive", "activate", "observe", "get", "set", "list", "forget", "claim"]
                    .map(|command| kit.run(tool, [command, "--help"]).clean().out),
            );
        }
        assert!(helps.iter().any(|help| help.contains("Exit status")), "{tool} --help does not tell its exit statuses");
        let mut own = 0;
        for help in helps {
            for line in help.lines().filter(|line| line.starts_with("  bak-")) {
                // An explanation may follow in another column.
                let example = line.trim().split("   ").next().unwrap();
                let line = here(&kit, &sshd, &rsyncd, example);
                let ran = kit.sh(&line);
                assert_eq!(ran.status, 0, "{tool}: {example}\n{line}\n{}", ran.err);
                own += 1;
            }
        }
        assert!(own > 0, "{tool} --help has no example");
        run += own;
    }
    println!("{run} examples");
}
