//! What drivers print, and the archives of other programs.

use bak_common::name::Stem;
use bak_common::record::{Record, to_line};
use bak_dump::driver::exec::list::{Source, read};
use bak_dump::driver::exec::say::{Lines, NAMES_MAX, Said, ToDump, ToRestore, ToVerify, message};
use bak_dump::driver::image::info as qemu;
use bak_dump::driver::vbox;
use bak_dump::driver::vzdump::list::{parse_columns, parse_resources};
use bak_dump::driver::vzdump::{Conf, Heard, Kind};
use bak_dump::scan::{ending, header, log};
use bak_dump::verify::ova;
use std::collections::HashSet;
use std::os::unix::fs::FileExt;

use super::assert_printable;

pub fn exec_list(data: &[u8]) {
    for prefix in [None, Some("pve1-")] {
        let listed = read(data, &Source { driver: "toy", node: "pve1", prefix });
        let mut keys = HashSet::new();
        for guest in listed.guests {
            assert!(guest.driver == "toy" && guest.vm.as_str().starts_with(prefix.unwrap_or_default()));
            assert!(guest.status.is_none() && guest.last_dump.is_none() && !guest.planned && guest.failed.is_none());
            assert!(keys.insert(guest.key()), "each guest is there once");
            let record = Record::Guest(Box::new(guest));
            assert_eq!(Record::parse(to_line(&record).as_bytes()).expect("what is printed can be read"), record);
        }
    }
}

pub fn exec_say(data: &[u8]) {
    let mut lines = Vec::new();
    let mut whole = Lines::default();
    let mut each = |line: &[u8]| {
        lines.push(line.to_vec());
        Ok(())
    };
    if whole.feed(data, &mut each).and_then(|()| whole.end(&mut each)).is_err() {
        return;
    }
    // However it comes, the lines are the same.
    let (mut cut, mut parts) = (Vec::new(), Lines::default());
    let mut each = |line: &[u8]| {
        cut.push(line.to_vec());
        Ok(())
    };
    let fed = data.chunks(7).try_for_each(|part| parts.feed(part, &mut each));
    fed.and_then(|()| parts.end(&mut each)).expect("as above");
    assert_eq!(cut, lines);
    let stem = Stem::new("web-20261120T010002Z").expect("a stem");
    let mut said = Said::default();
    for line in &lines {
        let heard = message::<ToDump>("toy", line).and_then(|message| said.hear(&stem, message));
        heard.err().iter().for_each(|error| assert_printable(&error.to_string()));
        if let Ok(verdict) = message::<ToVerify>("toy", line).and_then(ToVerify::verdict) {
            assert_printable(&verdict.why);
        }
        if let Ok(Some(target)) = message::<ToRestore>("toy", line).and_then(ToRestore::target) {
            assert_printable(&target);
        }
    }
    let names: Vec<&String> = said.files.iter().chain(&said.stream).collect();
    assert!(names.iter().all(|name| stem.owns(name)));
    assert!(names.len() <= NAMES_MAX + lines.len() && (0.0..=1.0).contains(&said.progress));
}

pub fn vbox_info(data: &[u8]) {
    let Ok(info) = vbox::info::Info::parse(&String::from_utf8_lossy(data)) else { return };
    assert!(!info.name().is_empty() && !info.uuid().is_empty());
    let _ = (info.state(), info.groups(), info.disks(), info.since());
    assert_eq!(vbox::info::unused(&info, &info).is_ok(), info.fingerprint().is_some());
}

pub fn vbox_list(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(uuids) = vbox::list::uuids(&text) {
        assert!(uuids.iter().all(|uuid| vbox::list::is_uuid(uuid) && !uuid.starts_with('-')));
        assert_eq!(uuids.iter().collect::<HashSet<_>>().len(), uuids.len());
    }
    assert!(vbox::say::percent(data).is_none_or(|done| (0.0..=1.0).contains(&done)));
}

pub fn pve_list(data: &[u8]) {
    let sound = |id: u32| assert!((100..1_000_000_000).contains(&id));
    if let Ok(rows) = parse_resources(data, "pve1") {
        rows.rows.iter().for_each(|row| sound(row.id));
    }
    let text = String::from_utf8_lossy(data);
    for kind in [Kind::Qemu, Kind::Lxc] {
        match parse_columns(&text, kind) {
            Ok(rows) => rows.iter().for_each(|row| sound(row.id)),
            Err(error) => assert_printable(&error.to_string()),
        }
    }
}

pub fn pve_conf(data: &[u8]) {
    let conf = Conf::parse(&String::from_utf8_lossy(data));
    for text in [conf.name(Kind::Qemu), conf.name(Kind::Lxc), conf.uuid()].into_iter().flatten().chain(conf.tags()) {
        assert!(!text.is_empty() && !text.contains('\n'));
    }
    conf.networks().for_each(|(key, _)| assert!(key.starts_with("net")));
    conf.is_template();
}

pub fn pve_log(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let log = log::read(&text, 100);
    assert!(log.archive.is_none_or(|name| !name.contains('/') && !name.is_empty()));
    assert!(log.size.is_none_or(|(least, most)| least <= most) && log.took_s.is_none_or(|took| took >= 0));
    assert!(log.end != log::End::Finished || text.contains("Finished Backup of VM 100"));
    let mut heard = Heard::default();
    text.lines().for_each(|line| heard.line(line, 100));
    assert!((0.0..=1.0).contains(&heard.done) && heard.last.chars().count() <= 200);
}

/// Read as a file is.
struct Bytes<'a>(&'a [u8]);

impl FileExt for Bytes<'_> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, _: &[u8], _: u64) -> std::io::Result<usize> {
        unreachable!("nothing is written")
    }
}

pub fn archives(data: &[u8]) {
    for name in ["a.vma", "a.vma.zst"] {
        header::Reader::default().conf(name, &Bytes(data));
    }
    for name in ["a.lzo", "a.xz", "a.bz2", "a.tar", "a"] {
        ending::judge(name, &data[data.len().saturating_sub(1024)..]);
    }
    let checks = std::cell::Cell::new(0);
    // What takes longer than its own length allows is a find.
    let tick = || {
        checks.set(checks.get() + 1);
        assert!(checks.get() <= 2 * data.len() + 2, "it does not end");
        Ok(())
    };
    let _ = ova::check(data, &tick);
}

pub fn qemu_info(data: &[u8]) {
    let Ok(chain) = qemu::chain(data) else { return };
    qemu::allocated(&chain);
    for node in &chain {
        assert!(!node.files().is_empty());
        node.refers();
    }
}
