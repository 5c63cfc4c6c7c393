//! Which guests this node has: from Proxmox's interface, or, where that does not answer, from `qm list` and `pct list`.

use anyhow::{Context, Result, anyhow};
use bak_common::command::Program;
use bak_common::record::State;
use bak_common::report::Kind as Status;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

use super::{Kind, state, vmid};

/// How long a listing may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a listing says of a guest; its configuration says the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: u32,
    pub kind: Kind,
    pub state: State,
    pub name: Option<String>,
    pub pool: Option<String>,
    pub template: bool,
}

/// What was listed; what could not be read of that, by what it is called, is no reason to leave out the others.
#[derive(Debug, Default)]
pub struct Rows {
    pub rows: Vec<Row>,
    pub failed: Vec<(String, anyhow::Error)>,
}

/// The guests of this node, by number.
pub fn rows(node: &str) -> Result<Rows> {
    let mut found = match by_interface(node) {
        Ok(found) => found,
        Err(error) => by_tools().map_err(|second| match [&error, &second].iter().all(|e| is_missing(e)) {
            true => Status::Usage.says("this is no Proxmox node: neither pvesh nor qm and pct are on PATH"),
            false => error.context("Proxmox does not answer"),
        })?,
    };
    found.rows.sort_by_key(|row| row.id);
    found.rows.dedup_by_key(|row| row.id);
    Ok(found)
}

fn is_missing(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("on PATH")
}

/// What `pvesh` prints of a guest; of the whole cluster.
#[derive(Debug, Deserialize)]
struct Resource {
    vmid: Number,
    r#type: String,
    status: Option<String>,
    name: Option<String>,
    pool: Option<String>,
    template: Option<Value>,
}

/// Perl has its own idea of what is a number.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a number")]
enum Number {
    Number(u32),
    Text(String),
}

fn by_interface(node: &str) -> Result<Rows> {
    let args = ["get", "/cluster/resources", "--type", "vm", "--output-format", "json"];
    let out = Program::new("pvesh")?.args(args).timeout(TIMEOUT).run()?.check()?;
    parse_resources(&out, node)
}

pub fn parse_resources(text: &[u8], node: &str) -> Result<Rows> {
    let all: Vec<Value> = serde_json::from_slice(text).context("cannot read what pvesh prints")?;
    // One that doesn't say where it is might be ours.
    let ours = all.into_iter().filter(|guest| guest.get("node").and_then(Value::as_str).is_none_or(|at| at == node));
    let mut found = Rows::default();
    for guest in ours {
        match resource(&guest) {
            Ok(row) => found.rows.push(row),
            Err(error) => {
                found.failed.push((called(&guest), error.context("cannot read what pvesh prints of this guest")))
            }
        }
    }
    Ok(found)
}

fn resource(guest: &Value) -> Result<Row> {
    guest.get("node").context("it has no node")?;
    let guest = Resource::deserialize(guest)?;
    // 1 or true, as the version has it.
    let template = guest.template.is_some_and(|value| value == 1 || value == true || value == "1");
    let id = match &guest.vmid {
        Number::Number(number) => vmid(&number.to_string()),
        Number::Text(text) => vmid(text),
    };
    Ok(Row {
        id: id.with_context(|| format!("{:?} is no number of a guest", guest.vmid))?,
        kind: Kind::of(&guest.r#type).with_context(|| format!("`{}` is no kind of guest", guest.r#type))?,
        state: state(guest.status.as_deref().unwrap_or_default()),
        name: guest.name,
        pool: guest.pool.filter(|pool| !pool.is_empty()),
        template,
    })
}

/// What a guest is called of which not all can be read.
fn called(guest: &Value) -> String {
    let text = |key: &str| match guest.get(key)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    text("vmid").or_else(|| text("id")).or_else(|| text("name")).unwrap_or_else(|| "a guest without a number".into())
}

fn by_tools() -> Result<Rows> {
    let mut rows = Vec::new();
    let mut asked = 0;
    let mut missing = None;
    for (tool, kind) in [("qm", Kind::Qemu), ("pct", Kind::Lxc)] {
        let program = match Program::new(tool) {
            Ok(program) => program,
            Err(error) => {
                missing = Some(error);
                continue;
            }
        };
        let out = program.arg("list").timeout(TIMEOUT).run()?.check()?;
        rows.extend(parse_columns(&String::from_utf8_lossy(&out), kind).with_context(|| format!("{tool} list"))?);
        asked += 1;
    }
    match missing {
        Some(error) if asked == 0 => Err(error),
        _ => Ok(Rows { rows, failed: Vec::new() }),
    }
}

/// The lines of `qm list` and `pct list`. Their columns are aligned, not separated: a name may hold a space or be longer than
/// its column, and a container's lock is mostly blank. So only what stands at an end that can't shift is read.
pub fn parse_columns(text: &str, kind: Kind) -> Result<Vec<Row>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && line.split_whitespace().next() != Some("VMID"));
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let status = match kind {
            // VMID NAME… STATUS MEM(MB) BOOTDISK(GB) PID
            Kind::Qemu => words.len().checked_sub(4).filter(|at| *at >= 1).map(|at| words[at]),
            // VMID STATUS [LOCK] NAME
            Kind::Lxc => words.get(1).copied(),
        };
        let id = words.first().and_then(|word| vmid(word));
        let (id, status) = id.zip(status).ok_or_else(|| anyhow!("a line cannot be read: {}", line.escape_debug()))?;
        Ok(Row { id, kind, state: state(status), name: None, pool: None, template: false })
    };
    lines.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(rows: &[Row]) -> Vec<(u32, State)> {
        rows.iter().map(|row| (row.id, row.state)).collect()
    }

    #[test]
    fn columns_that_shift() {
        let qm = "      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID       \n       \
                  100 web                  running    2048              32.00 1234      \n       \
                  101 VM 101               stopped    512                0.00 0         \n 999999999 a-name-that-is-longer-than-its-column stopped    4096               8.00 0         \n";
        let rows = parse_columns(qm, Kind::Qemu).unwrap();
        assert_eq!(short(&rows), [(100, State::Running), (101, State::Stopped), (999_999_999, State::Stopped)]);
        let pct = "VMID       Status     Lock         Name                \n\
                   102        running                 ct                  \n103        stopped    backup       db                  \n";
        assert_eq!(short(&parse_columns(pct, Kind::Lxc).unwrap()), [(102, State::Running), (103, State::Stopped)]);
        assert!(parse_columns("", Kind::Qemu).unwrap().is_empty());
        assert!(parse_columns("garbage\n", Kind::Qemu).is_err());
    }

    #[test]
    fn what_the_interface_says() {
        let text = br#"[{"id":"qemu/100","vmid":100,"node":"pve1","type":"qemu","status":"running","name":"web","template":0,"pool":"prod"},
            {"id":"lxc/102","vmid":102,"node":"pve1","type":"lxc","status":"stopped","name":"ct","template":0},
            {"id":"qemu/900","vmid":900,"node":"pve1","type":"qemu","status":"stopped","template":1},
            {"id":"qemu/200","vmid":200,"node":"pve2","type":"qemu","status":"running"}]"#;
        let Rows { rows, failed } = parse_resources(text, "pve1").unwrap();
        assert!(failed.is_empty());
        assert_eq!(short(&rows), [(100, State::Running), (102, State::Stopped), (900, State::Stopped)]);
        assert_eq!((rows[0].pool.as_deref(), rows[1].kind, rows[2].template), (Some("prod"), Kind::Lxc, true));
        assert!(parse_resources(b"oops", "pve1").is_err());
    }

    #[test]
    fn one_bad_row_is_told_and_the_others_are_read() {
        let text = br#"[{"id":"qemu/100","vmid":"100","node":"pve1","type":"qemu","status":"running"},
            {"id":"qemu/101","vmid":101,"node":"pve1","type":"qemu","status":{"not":"text"}},
            {"id":"lxc/102","vmid":-5,"node":"pve1","type":"lxc"},
            {"id":"odd/103","vmid":103,"node":"pve1","type":"odd"},
            {"id":"qemu/104","node":"pve1","type":"qemu"}, 7,
            {"id":"qemu/201","vmid":201,"node":"pve2","type":"odd"}]"#;
        let Rows { rows, failed } = parse_resources(text, "pve1").unwrap();
        assert_eq!(short(&rows), [(100, State::Running)]);
        let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["101", "-5", "103", "qemu/104", "a guest without a number"]);
    }
}
