//! What users write: the configuration, sizes, times, destinations, patterns, the old list of guests.

use bak_common::calendar::{Time, Zone};
use bak_common::config::{self, Config};
use bak_common::far::Url;
use bak_common::name::GuestName;
use bak_common::record::{Dump, Guest};
use bak_common::select;
use bak_common::timetable::Timetable;
use bak_common::units;
use bak_dump::scan::name::{self, Pattern};

use super::first_line;

#[path = "../../../../bak-link/src/list.rs"]
mod list;

fn guest(vm: &str) -> Option<Guest> {
    Some(Guest::new(GuestName::new(vm).ok()?, "qemu", "image"))
}

pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text) {
        Ok(config) => {
            for dest in &config.dest {
                assert!(config::dest_name(&dest.name).is_ok());
                let limits = dest.limits().expect("limits were checked");
                assert!(limits.iter().all(|limit| limit.bytes <= i64::MAX as u64));
            }
            for guest in ["web", "db-1"].into_iter().filter_map(guest) {
                let held = config.effective(&guest);
                assert!(held.sync.iter().all(|name| config.dest.iter().any(|dest| dest.name == *name)));
                config.vzdump(&(&guest).into());
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error:#}"),
    }
}

pub fn units(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let most = i64::MAX as u64;
    for read in [units::size, units::rate, units::duration] {
        assert!(read(text).is_ok_and(|number| number <= most) || read(text).is_err());
    }
    if let Ok(bytes) = units::size(text) {
        assert_eq!(units::size(&bytes.to_string()).ok(), Some(bytes));
        assert!(!units::show_size(bytes).is_empty());
    }
    if let Ok(seconds) = units::duration(text) {
        units::show_duration(i64::try_from(seconds).expect("a duration fits"));
    }
    if let Ok(Some(limit)) = units::limit(text) {
        assert_eq!(units::limit(&limit.to_string()).expect("a limit that was printed"), Some(limit));
    }
    assert!(units::minute(text).map_or(true, |minute| minute < 24 * 60));
}

pub fn times(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = [text.parse::<Time>().ok(), Time::from_compact(text).ok()];
    for time in read.into_iter().flatten() {
        assert_eq!(time.to_string().parse::<Time>().expect("a time that was printed"), time);
        assert_eq!(Time::from_compact(&time.compact()).expect("a time that was printed"), time);
        Zone::Local.minute(time.plus(86_400));
    }
    if let Ok(table) = Timetable::parse(text) {
        let monday =
            chrono::NaiveDate::from_ymd_opt(2026, 11, 16).and_then(|day| day.and_hms_opt(0, 0, 0)).expect("a day");
        let rates = (0..7 * 24 * 4).map(|quarter| table.at(monday + chrono::TimeDelta::minutes(15 * quarter)));
        let waits = rates.filter(|speed| *speed == bak_common::meter::Speed::Wait).count();
        assert!(waits == 0 || table.ever_waits() && !table.is_free());
    }
}

pub fn urls(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Url::parse(text) {
        // No option of ssh's or rsync's, and nothing that a daemon would take for a pattern or a way up.
        Ok(Url::Ssh { host, path }) => assert!(!host.starts_with('-') && !host.is_empty() && path.ends_with('/')),
        Ok(Url::Daemon(daemon)) => {
            let parts = daemon.path.split('/').chain([daemon.module.as_str()]);
            assert!(parts.clone().all(|part| part != ".." && part != "." && !part.contains(char::is_control)));
            assert!(!daemon.module.is_empty() && daemon.port > 0);
        }
        Ok(Url::Path(path)) => assert!(path.is_absolute()),
        Err(error) => super::assert_printable(&error.to_string()),
    }
}

/// A list up to an empty line; then a guest's name.
pub fn old_list(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (lines, vm) = text.split_once("\n\n").unwrap_or((text, "web"));
    let Ok(list) = list::List::parse("list", lines) else { return };
    let Some(guest) = guest(vm) else { return };
    let started = Time::from_unix(0).expect("the epoch");
    let dump = Dump::of(&guest, started, bak_common::name::Stem::of(&guest.vm, started));
    let named = lines.contains(vm);
    assert!(!list.syncs(&dump) || named, "who is not named is not synced");
    list.unknown();
}

/// The first line is a pattern, the second a name.
pub fn patterns(data: &[u8]) {
    let (pattern, name) = first_line(data);
    let (Ok(pattern), Ok(name)) = (std::str::from_utf8(pattern), std::str::from_utf8(name)) else { return };
    if let Ok(glob) = select::Pattern::new(pattern) {
        glob.matches(name);
    }
    // Names of files are short.
    if let Ok(pattern) = pattern.parse::<Pattern>()
        && name.len() <= 255
        && let Some(found) = pattern.read(name)
    {
        assert!(!found.vm.is_empty() && name.contains(&found.vm) && name.starts_with(&found.stem));
    }
    name::beside(name);
    if let Some(name::Vzdump::Archive(archive)) = name::vzdump(name) {
        assert!(name.starts_with(&archive.stem) && (100..1_000_000_000).contains(&archive.id));
    }
}
