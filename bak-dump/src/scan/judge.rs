//! Whether files are a finished dump, and which: a decision about names, what looking at the files told, and the log. Pure.
//!
//! An archive of Proxmox is believed by its log, whose last line says that the backup finished: its name alone is there
//! before that. Anything else is believed only if it has been left alone for a while, nobody has it open for writing, and it
//! ends as its format does, where that tells. A file that is newer than the log that speaks for it was changed or copied
//! since, so it needs that proof, too.

use bak_common::calendar::{Time, Zone};
use bak_common::name::GuestName;
use bak_common::record::{Dump, FileEntry, Guest};
use bak_common::units::{show_duration, show_size};
use chrono::NaiveDateTime;
use serde_json::json;

use super::log::{self, End, Log};
use super::name::Began;
use super::sort::{By, Candidate};
use crate::driver::{image, vbox, vzdump};

const NEVER: &str = "its name does not tell a time that there can be";

/// What looking at a candidate's files told.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// In the order of its files.
    pub files: Vec<Look>,
    /// What its log says, as far as it was read, and when that was written, in Unix seconds.
    pub log: Option<(String, i64)>,
    pub notes: Option<String>,
}

/// One file.
#[derive(Clone, Debug)]
pub struct Look {
    pub bytes: u64,
    /// When its content was written last, in Unix seconds.
    pub written: i64,
    /// When anything of it changed last: a copy that has been given its times back tells by this.
    pub changed: i64,
    /// Why it cannot be a file of bak's.
    pub distrust: Option<String>,
}

/// What the decision depends on beside.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    pub now: Time,
    pub zone: Zone,
    /// For how long a file without a log must have been left alone, in seconds.
    pub settled_s: i64,
    /// Put before every guest's name.
    pub prefix: &'a str,
    pub node: Option<&'a str>,
    /// What guests are whose files do not say it.
    pub as_kind: Option<&'a str>,
}

/// What a candidate is, if what is still to be looked at agrees.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    pub dump: Dump,
    /// What proves it: `log`, `size` (its log tells its size), `settled`.
    pub proof: Vec<&'static str>,
    /// Nobody may have it open for writing, and its end must be right.
    pub doubtful: bool,
}

/// The dump that a candidate is, or why it is none.
pub fn judge(candidate: &Candidate, evidence: &Evidence, terms: &Terms) -> Result<Judged, String> {
    for (name, file) in candidate.files.iter().zip(&evidence.files) {
        let of = |why: &str| if candidate.files.len() == 1 { why.to_owned() } else { format!("{name} {why}") };
        if let Some(why) = &file.distrust {
            return Err(of(why));
        }
        if file.bytes == 0 {
            return Err(of("is empty"));
        }
    }
    match &candidate.by {
        By::Vzdump(archive) => {
            let (text, logged) = evidence.log.as_ref().ok_or("its log vanished meanwhile")?;
            let log = log::read(text, archive.id);
            let mut proof = by_log(candidate, evidence, &log)?;
            let doubtful = evidence.files.iter().any(|file| file.written > logged + 1);
            if doubtful {
                let settled = settled(evidence, terms).map_err(|why| format!("it is newer than its log, and {why}"))?;
                proof.extend(settled);
            }
            let vm = archive.id.to_string();
            let mut guest = guest(&vm, archive.kind, vzdump::NAME, terms)?;
            guest.name.clone_from(&log.name);
            let ended = written(evidence);
            let started = moment(Began::Local(archive.wall), ended - log.took_s.unwrap_or(0), terms)?;
            let finished = log.took_s.map_or_else(|| plausible(started, ended), |took| started.plus(took));
            let mut dump = dump(candidate, evidence, &guest, (started, finished));
            dump.mode = log.mode;
            Ok(Judged { dump, proof, doubtful })
        }
        By::Pattern(found, _) => {
            if found.began == Began::Never {
                return Err(NEVER.into());
            }
            let settled = settled(evidence, terms).map_err(|why| format!("it {why}"))?;
            let (kind, driver) = what(&candidate.files[0], terms.as_kind);
            let guest = guest(&found.vm, kind, driver, terms)?;
            let ended = written(evidence);
            let started = moment(found.began, ended, terms)?;
            let dump = dump(candidate, evidence, &guest, (started, plausible(started, ended)));
            Ok(Judged { dump, proof: settled.into_iter().collect(), doubtful: true })
        }
    }
}

/// What the log proves; else why it does not.
fn by_log(candidate: &Candidate, evidence: &Evidence, log: &Log) -> Result<Vec<&'static str>, String> {
    match &log.end {
        End::Finished => {}
        End::Failed(why) => return Err(format!("its log says that it failed: {why}")),
        End::Other(said) => return Err(format!("its log is of another guest ({said}): was it renamed?")),
        End::Open => return Err("its log does not end with its success (yet)".into()),
    }
    // Another place is fine, and so is another ending: what it was packed with since is proved by its size.
    if let Some(name) = log.archive.as_ref().filter(|name| !candidate.stem.owns(name)) {
        return Err(format!("its log is of {name}: was it renamed?"));
    }
    let bytes: u64 = evidence.files.iter().map(|file| file.bytes).sum();
    match log.size {
        Some((least, most)) if !(least..=most).contains(&bytes) => {
            Err(format!("it has {}, which is not the size in its log: it is not what vzdump wrote", show_size(bytes)))
        }
        Some(_) => Ok(vec!["log", "size"]),
        None => Ok(vec!["log"]),
    }
}

/// That nobody has changed it for long enough, which proves nothing where that was asked for; else why it cannot be told yet
/// whether somebody is still writing it.
fn settled(evidence: &Evidence, terms: &Terms) -> Result<Option<&'static str>, String> {
    let changed = evidence.files.iter().map(|file| file.written.max(file.changed)).max().unwrap_or_default();
    let since = terms.now.unix().saturating_sub(changed);
    if terms.settled_s == 0 {
        return Ok(None);
    }
    if since >= terms.settled_s {
        return Ok(Some("settled"));
    }
    Err(match since {
        ..0 => "was changed in the future: is a clock wrong?".into(),
        _ => format!("was changed {} ago (--settled {})", show_duration(since), show_duration(terms.settled_s)),
    })
}

/// When something ended that was written last at `ended`, in Unix seconds; its start, where that is too long after it: then it
/// was copied without its times.
fn plausible(started: Time, ended: i64) -> Time {
    const LONGEST_S: i64 = 7 * 86_400;
    Time::from_unix(ended).filter(|end| (0..LONGEST_S).contains(&end.since(started))).unwrap_or(started)
}

/// When the newest of its files was written last.
fn written(evidence: &Evidence) -> i64 {
    evidence.files.iter().map(|file| file.written).max().unwrap_or_default()
}

fn guest(vm: &str, kind: &str, driver: &str, terms: &Terms) -> Result<Guest, String> {
    let vm = GuestName::new(format!("{}{vm}", terms.prefix)).map_err(|error| error.to_string())?;
    let mut guest = Guest::new(vm, kind, driver);
    guest.node = terms.node.map(str::to_owned);
    Ok(guest)
}

/// What kind of guest, and of which driver, a file is of by its name.
pub fn what<'a>(file: &str, as_kind: Option<&'a str>) -> (&'a str, &'static str) {
    let file = [".zst", ".gz", ".lzo", ".bz2", ".xz"].iter().find_map(|end| file.strip_suffix(end)).unwrap_or(file);
    let (kind, driver) = match file.rsplit_once('.').map_or("", |(_, end)| end) {
        "vma" => ("qemu", vzdump::NAME),
        "tar" | "tgz" => ("lxc", vzdump::NAME),
        "ova" => (vbox::NAME, vbox::NAME),
        "qcow2" | "raw" | "img" => ("qemu", image::NAME),
        _ => match as_kind {
            Some(_) => ("", vzdump::NAME),
            None => ("unknown", "unknown"),
        },
    };
    (as_kind.unwrap_or(kind), driver)
}

fn dump(candidate: &Candidate, evidence: &Evidence, guest: &Guest, (started, finished): (Time, Time)) -> Dump {
    let mut dump = Dump::of(guest, started, candidate.stem.clone());
    dump.finished = finished.max(started);
    let files = candidate.files.iter().zip(&evidence.files);
    let entry = |(name, file): (&String, &Look)| FileEntry {
        name: name.clone(),
        bytes: file.bytes,
        sha256: None,
        extra: Default::default(),
    };
    dump.files = files.map(entry).collect();
    dump.bytes = dump.files.iter().map(|file| file.bytes).sum();
    dump.protected = candidate.protected;
    dump.annotation.clone_from(&evidence.notes);
    dump
}

/// The note of how a dump was adopted, in its record.
pub fn note(candidate: &Candidate, proof: &[&str], now: Time) -> serde_json::Value {
    let mut note = json!({"at": now.to_string(), "proof": proof});
    if let By::Pattern(_, pattern) = &candidate.by {
        note["pattern"] = pattern.as_str().into();
    }
    note
}

/// The moment that a name means. What a clock shows twice, in the night in which summer time ends, is the one closer to
/// `about`, in Unix seconds.
fn moment(began: Began, about: i64, terms: &Terms) -> Result<Time, String> {
    let closest = all_moments(began, terms.zone).into_iter().min_by_key(|time| time.unix().abs_diff(about));
    closest.ok_or_else(|| NEVER.into())
}

/// All moments that a name may mean.
pub fn all_moments(began: Began, zone: Zone) -> Vec<Time> {
    match began {
        Began::Utc(moment) => vec![Time::new(moment.and_utc())],
        Began::Local(wall) => moments(wall, zone),
        Began::Never => Vec::new(),
    }
}

/// All moments at which a clock shows this.
fn moments(wall: NaiveDateTime, zone: Zone) -> Vec<Time> {
    let Some(first) = zone.moment(wall) else { return Vec::new() };
    // By how much clocks are put back: mostly an hour; half an hour or two in places.
    let again = [1800, 3600, 7200].map(|later| first.plus(later));
    std::iter::once(first).chain(again.into_iter().filter(|time| zone.local(*time) == wall)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::name::{self, Pattern, Vzdump};
    use bak_common::name::Stem;

    const NAME: &str = "vzdump-qemu-100-2026_11_20-02_00_02.vma.zst";
    const NOW: &str = "2026-11-20T12:00:00Z";

    fn candidate(name: &str) -> Candidate {
        let Some(Vzdump::Archive(archive)) = name::vzdump(name) else { panic!("{name}") };
        let stem = Stem::new(archive.stem.clone()).unwrap();
        let files = vec![name.to_owned()];
        Candidate {
            place: String::new(),
            stem,
            files,
            by: By::Vzdump(archive),
            log: true,
            notes: false,
            protected: false,
        }
    }

    fn at(text: &str) -> i64 {
        text.parse::<Time>().unwrap().unix()
    }

    fn evidence(bytes: u64, written: &str, log: &str) -> Evidence {
        let written = at(written);
        let files = vec![Look { bytes, written, changed: written, distrust: None }];
        Evidence { files, log: Some((log.into(), written + 2)), notes: None }
    }

    fn terms(zone: &str) -> Terms<'static> {
        let (now, zone) = (NOW.parse().unwrap(), zone.parse().unwrap());
        Terms { now, zone, settled_s: 600, prefix: "", node: None, as_kind: None }
    }

    fn log(said: &str) -> String {
        format!(
            "2026-11-20 02:00:03 INFO: VM Name: web\n2026-11-20 02:00:03 INFO: backup mode: snapshot\n{said}2026-11-20 02:01:07 INFO: Finished Backup of VM 100 (00:01:05)\n"
        )
    }

    #[test]
    fn a_finished_archive() {
        let judged =
            judge(&candidate(NAME), &evidence(5000, "2026-11-20T01:01:05Z", &log("")), &terms("Europe/Berlin"));
        let Judged { dump, proof, doubtful } = judged.unwrap();
        assert_eq!((dump.id.as_str(), dump.stem.as_str()), ("100@20261120T010002Z", &NAME[..NAME.len() - 8]));
        assert_eq!((dump.kind.as_str(), dump.driver.as_str(), dump.bytes), ("qemu", "vzdump", 5000));
        assert_eq!((dump.name.as_deref(), dump.mode.as_deref()), (Some("web"), Some("snapshot")));
        assert_eq!((dump.finished.to_string(), proof, doubtful), ("2026-11-20T01:01:07Z".into(), vec!["log"], false));
    }

    #[test]
    fn the_hour_that_comes_twice() {
        // Begun at 02:30 by a clock that shows it at 00:30 and at 01:30 UTC; took 65 seconds.
        for (written, started) in [("2026-10-25T00:31:05Z", "00:30"), ("2026-10-25T01:31:05Z", "01:30")] {
            let name = "vzdump-qemu-100-2026_10_25-02_30_00.vma.zst";
            let judged = judge(&candidate(name), &evidence(1, written, &log("")), &terms("Europe/Berlin")).unwrap();
            assert_eq!(judged.dump.started.to_string(), format!("2026-10-25T{started}:00Z"));
        }
        assert_eq!(moments("2026-04-05T01:45:00".parse().unwrap(), "Australia/Lord_Howe".parse().unwrap()).len(), 2);
        assert_eq!(moments("2026-03-29T02:30:00".parse().unwrap(), "Europe/Berlin".parse().unwrap()).len(), 1);
    }

    #[test]
    fn what_speaks_against_it() {
        let refused = |evidence: Evidence| judge(&candidate(NAME), &evidence, &terms("UTC")).unwrap_err();
        let long_ago = "2026-11-20T03:00:00Z";
        assert!(refused(evidence(0, long_ago, &log(""))).contains("empty"));
        assert!(refused(evidence(1, long_ago, "INFO: Starting Backup of VM 100 (qemu)\n")).contains("(yet)"));
        assert!(refused(evidence(1, long_ago, &log("").replace("VM 100", "VM 101"))).contains("another guest"));
        let size = "INFO: archive file size: 300MB\n";
        assert!(refused(evidence(200 << 20, long_ago, &log(size))).contains("not the size in its log"));
        let other = "INFO: creating vzdump archive '/x/vzdump-qemu-100-2026_11_19-02_00_02.vma.zst'\n";
        assert!(refused(evidence(1, long_ago, &log(other))).contains("was it renamed?"));
        let mut foreign = evidence(1, long_ago, &log(""));
        foreign.files[0].distrust = Some("is not a regular file".into());
        assert!(refused(foreign).contains("regular"));
        // Being copied over an old log.
        let mut copied = evidence(1, "2026-11-20T11:55:00Z", &log(""));
        copied.log.as_mut().unwrap().1 -= 86_400;
        assert_eq!(refused(copied.clone()), "it is newer than its log, and was changed 5 min ago (--settled 10 min)");
        copied.files[0].changed = at("2026-11-20T11:45:00Z");
        copied.files[0].written = at("2026-11-20T11:44:00Z");
        let judged = judge(&candidate(NAME), &copied, &terms("UTC")).unwrap();
        assert_eq!((judged.proof, judged.doubtful), (vec!["log", "settled"], true));
    }

    #[test]
    fn by_a_pattern() {
        let pattern: Pattern = "{vm}-{started}*".parse().unwrap();
        let by = |name: &str, written: &str, terms: &Terms| {
            let found = pattern.read(name).unwrap();
            let stem = Stem::new(found.stem.clone()).unwrap();
            let candidate =
                Candidate { stem, files: vec![name.into()], by: By::Pattern(found, "p".into()), ..candidate(NAME) };
            judge(&candidate, &evidence(1, written, ""), terms)
        };
        let (old, utc) = ("2026-11-20T03:00:00Z", terms("UTC"));
        let judged = by("web-2-20261119.vma.lzo", old, &utc).unwrap();
        assert_eq!((judged.dump.id.as_str(), judged.dump.kind.as_str()), ("web-2@20261119T000000Z", "qemu"));
        assert_eq!((judged.dump.finished.to_string().as_str(), judged.doubtful), (old, true));
        assert_eq!(judged.proof, ["settled"]);
        let copied = by("web-20250101.vma", old, &Terms { settled_s: 0, ..utc.clone() }).unwrap();
        assert_eq!((copied.dump.finished == copied.dump.started, copied.proof.len()), (true, 0));
        let kinds = [
            ("web-20261119.tgz", ("lxc", "vzdump")),
            ("web-20261119.ova", ("vbox", "vbox")),
            ("web-20261119.raw", ("qemu", "image")),
            ("web-20261119.lzo", ("unknown", "unknown")),
        ];
        for (name, expected) in kinds {
            let dump = by(name, old, &utc).unwrap().dump;
            assert_eq!((dump.kind.as_str(), dump.driver.as_str()), expected, "{name}");
        }
        let told = Terms { as_kind: Some("lxc"), prefix: "pve1-", ..utc.clone() };
        let dump = by("web-20261119.lzo", old, &told).unwrap().dump;
        assert_eq!((dump.kind.as_str(), dump.driver.as_str(), dump.vm.as_str()), ("lxc", "vzdump", "pve1-web"));
        assert_eq!(
            by("web-20261119.lzo", "2026-11-20T11:59:30Z", &utc).unwrap_err(),
            "it was changed 30 s ago (--settled 10 min)"
        );
        assert!(by("web-20261119.lzo", "2026-11-20T12:59:30Z", &utc).unwrap_err().contains("clock wrong"));
    }
}
