//! The driver of the README's example, with a real PostgreSQL.

use bak_tests::{Kit, Ran, bin, bin_dir, check_store, finish};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server of its own for one test, reached by a socket; ended and removed when dropped.
struct Server {
    dir: tempfile::TempDir,
    bin: PathBuf,
    postgres: Option<Child>,
}

impl Server {
    fn start() -> Self {
        let versions = fs::read_dir("/usr/lib/postgresql").expect("install the package postgresql");
        let bin =
            versions.map(|entry| entry.unwrap().path().join("bin")).filter(|dir| dir.join("initdb").exists()).max();
        let bin = bin.expect("install the package postgresql");
        // Its socket wants a short path, and the server must get there as another user.
        let dir = tempfile::Builder::new().prefix("bak-pg-").tempdir_in("/tmp").unwrap();
        if root() {
            let owned = Command::new("chown").arg("nobody").arg(dir.path()).status().unwrap();
            assert!(owned.success());
        }
        let mut server = Self { dir, bin, postgres: None };
        let initdb = server
            .own("initdb")
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"])
            .arg(server.dir.path().join("data"))
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let log = fs::File::create(server.dir.path().join("log")).unwrap();
        let mut postgres = server.own("postgres");
        postgres.args([
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
            "-c",
            "shared_buffers=16MB",
            "-c",
            "autovacuum=off",
            "-k",
        ]);
        postgres.arg(server.dir.path()).arg("-D").arg(server.dir.path().join("data"));
        server.postgres = Some(postgres.stderr(log).spawn().unwrap());
        let begun = Instant::now();
        while !server.client("pg_isready").arg("-q").status().unwrap().success() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{}",
                fs::read_to_string(server.dir.path().join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// A program of the server's, which does not run as root, and dies with this test.
    fn own(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL");
        if root() {
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
        }
        command.arg(self.bin.join(name)).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn at(&self, command: &mut Command) {
        command.env("PGHOST", self.dir.path()).env("PGUSER", "postgres").env_remove("PGPORT");
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        self.at(&mut command);
        command
    }

    #[track_caller]
    fn sql(&self, database: &str, text: &str) -> String {
        let mut command = self.client("psql");
        command.env("PGOPTIONS", "-c client_min_messages=warning").env("PGDATABASE", database).args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            text,
        ]);
        finish(command, "").clean().out
    }

    /// It ends its sessions, and then itself.
    fn stop(&mut self) {
        if let Some(mut postgres) = self.postgres.take() {
            let _ = Command::new("kill").arg("-INT").arg(postgres.id().to_string()).status();
            let _ = postgres.wait();
        }
    }

    /// A program of bak's, with the driver on PATH.
    /// Runs the line that was told; roles that are there are told of and passed over.
    fn roles(&self, line: &str) {
        let mut command = Command::new("bash");
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap_or_default());
        self.at(command.args(["-c", line]).env("PATH", path));
        finish(command, "").expect(0);
    }

    fn run(&self, kit: &Kit, name: &str, args: &[&str]) -> Ran {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = kit.command(bin(name));
        let dirs = [scripts.as_path(), &bin_dir(), &self.bin].map(|dir| dir.display().to_string()).join(":");
        self.at(command.args(args).env("PATH", format!("{dirs}:{path}")));
        finish(command, "")
    }
}

fn root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

const SHOP: &str = "a \"shop\" = 1 $HOME";

#[test]
fn a_database_is_dumped_lost_and_restored() {
    let server = Server::start();
    let kit = Kit::new();
    server.sql("postgres", &format!("CREATE DATABASE \"{}\"", SHOP.replace('"', "\"\"")));
    server.sql("postgres", "CREATE ROLE clerk");
    server.sql(
        SHOP,
        "CREATE TABLE goods (id int PRIMARY KEY, name text, code text);
         INSERT INTO goods SELECT n, 'Köln ' || n, md5(n::text) FROM generate_series(1, 40000) n;
         ALTER TABLE goods OWNER TO clerk; CREATE VIEW dear AS SELECT * FROM goods WHERE id > 100",
    );
    let content =
        |database: &str| server.sql(database, "SELECT md5(string_agg(g::text, '\n' ORDER BY id)) FROM dear g");
    let before = content(SHOP);
    let run = |name: &str, args: &[&str]| server.run(&kit, name, args);

    let guests = run("bak-guests", &["--driver", "postgres"]).clean();
    assert_eq!(guests.column("vm"), [SHOP, "postgres"]);
    let first = run("bak-dump", &["--driver", "postgres", "--store", "store", "--all"]).clean();
    assert_eq!(first.column("kind"), ["postgres", "postgres"]);
    let first = first.records().into_iter().find(|record| record["vm"] == SHOP).unwrap();
    assert_eq!(run("bak-list", &["store", "--json"]).clean().records().len(), 2);
    let verified = run("bak-verify", &["--store", "store", "--all"]).clean().records();
    let why = "SHA-256 as recorded, zstd -t, the driver postgres (pg_dump came to its end)";
    assert!(verified.iter().all(|record| record["verify"]["why"] == why), "{verified:?}");

    // A change of one row costs about what it takes.
    server.sql(SHOP, "UPDATE goods SET name = 'a much longer name than before' WHERE id = 777");
    let now = "2100-01-01T00:00:00Z";
    let second = run("bak-dump", &["--driver", "postgres", "--store", "store", "--now", now, SHOP])
        .expect(0)
        .records()
        .remove(0);
    let path = |record: &serde_json::Value| {
        Path::new(record["dir"].as_str().unwrap()).join(record["files"][0]["name"].as_str().unwrap())
    };
    fs::copy(path(&first), kit.path("basis")).unwrap();
    let mut rsync = kit.command("rsync");
    rsync.args(["--no-whole-file", "--inplace", "--ignore-times", "--stats"]).arg(path(&second)).arg("basis");
    let stats = finish(rsync, "").clean().out;
    let literal = stats.lines().find_map(|line| line.strip_prefix("Literal data: ")?.split(' ').next()).unwrap();
    let literal: u64 = literal.replace(',', "").parse().unwrap();
    let whole = second["bytes"].as_u64().unwrap();
    assert!(literal > 0 && literal * 5 < whole, "{literal} of {whole}");

    // Lost, and brought back from the first dump.
    server.sql("postgres", &format!("DROP DATABASE \"{}\"", SHOP.replace('"', "\"\"")));
    let id = first["id"].as_str().unwrap();
    let restore = |args: &[&str]| run("bak-restore", &[&["--store", "store", id], args].concat());
    let planned = restore(&["-n"]).clean().records();
    assert_eq!(planned[0]["restored"]["to"], json!([format!("database {SHOP}")]));
    let there = || server.sql("postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1");
    assert_eq!(there(), "postgres\n");
    // On a server that has not its roles yet, which is no fault of the dump.
    server.sql("postgres", "DROP ROLE clerk");
    let ran = restore(&[]).expect(4).says("role \"clerk\" does not exist").says("bring the roles back first: ");
    let line = ran.err.split("first: ").nth(1).unwrap().split(".roles.sql").next().unwrap().to_owned() + ".roles.sql";
    let drilled = run("bak-restore", &["--drill", "--store", "store", id]).expect(1).records();
    assert_eq!(drilled[0]["drill"]["decision"], "failed", "{drilled:?}");
    assert_eq!(there(), "postgres\n");
    server.roles(&line);
    restore(&[]).clean();
    assert_eq!((content(SHOP), there()), (before.clone(), format!("{SHOP}\npostgres\n")));
    // Never over one that is there, but if told to; and beside it under another name.
    server.sql(SHOP, "DELETE FROM goods");
    restore(&[]).expect(4).says("is there already");
    restore(&["--as", "copy"]).clean();
    assert_eq!(content("copy"), before);
    restore(&["--force"]).clean();
    assert_eq!(content(SHOP), before);
    // On trial: nothing of it stays.
    let all = there();
    let drilled = run("bak-restore", &["--drill", "--store", "store", id]).clean().records();
    assert_eq!((&drilled[0]["drill"]["decision"], there()), (&json!("good"), all));
    // What cannot be restored leaves what is there as it was, and nothing else.
    server.sql("postgres", "DROP DATABASE copy");
    server.sql(SHOP, "DROP OWNED BY clerk CASCADE");
    server.sql("postgres", "DROP ROLE clerk");
    restore(&["--force"]).expect(4).says("clerk");
    assert_eq!(there(), format!("{SHOP}\npostgres\n"));
    assert_eq!(server.sql(SHOP, "SELECT count(*) FROM pg_tables WHERE tablename = 'goods'"), "0\n");
    // The roles are in the dump.
    let roles = Path::new(first["dir"].as_str().unwrap()).join(first["files"][1]["name"].as_str().unwrap());
    assert!(fs::read_to_string(roles).unwrap().contains("CREATE ROLE clerk"));
}

#[test]
fn a_server_that_is_gone_is_said_and_leaves_nothing() {
    let mut server = Server::start();
    let kit = Kit::new();
    let guests = server.run(&kit, "bak-guests", &["--driver", "postgres"]).clean().out;
    kit.write("guests", guests);
    // pg_dump fails where psql, which lists, did not.
    kit.write("broken/pg_dump", "#!/bin/sh\necho '-- PostgreSQL'\necho connection lost >&2\nexit 1\n");
    kit.sh("chmod 755 broken/pg_dump").clean();
    let whole = std::mem::replace(&mut server.bin, kit.path("broken"));
    let path = format!("{}:{}", kit.path("broken").display(), whole.display());
    server.bin = PathBuf::from(path);
    let ran = server.run(&kit, "bak-dump", &["--driver", "postgres", "--store", "store", "--all"]).expect(1);
    assert!(
        ran.err.contains("postgres: bak-driver-postgres exited with status 1: connection lost; its log is "),
        "{}",
        ran.err
    );
    server.bin = whole;
    let seen = check_store(&kit.store());
    assert!(seen.whole.is_empty() && seen.strange.is_empty() && seen.unfinished.is_empty(), "{seen:?}");
    server.stop();
    server
        .run(&kit, "bak-guests", &["--driver", "postgres"])
        .expect(1)
        .says("bak-driver-postgres exited with status 2");
}
