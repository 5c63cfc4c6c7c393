//! A machine as `VBoxManage showvminfo --machinereadable` describes it. Pure.
//!
//! The hazard is text that users write, the description above all: it may hold lines that look like others. A value in quotes
//! goes on until its own closing quote, over line breaks; and what is said twice counts as said first, as all that matters
//! comes before such texts.

use anyhow::{Context, Result, bail, ensure};
use bak_common::hash::hex;
use bak_common::record::State;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What a machine is called whose settings cannot be read.
const INACCESSIBLE: &str = "<inaccessible>";

/// What makes a machine another one as far as its dump goes, beside its state, its disks and its network. Nothing that VirtualBox
/// itself changes or words anew with its next version (which adds lines, too), and nothing that moves by itself.
const CONFIGURATION: [&str; 8] =
    ["name", "hardwareuuid", "memory", "vram", "cpus", "firmware", "chipset", "CurrentSnapshotUUID"];

/// The same of each network adapter: these, and a number.
const ADAPTER: [&str; 7] =
    ["nic", "macaddress", "bridgeadapter", "hostonlyadapter", "hostonly-network", "intnet", "nat-network"];

/// What it said, in its order.
#[derive(Debug, Default)]
pub struct Info(Vec<(String, String)>);

/// A disk of a machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk<'a> {
    /// `SATA-0-0`: controller, port, device.
    pub slot: String,
    pub uuid: &'a str,
    pub path: &'a str,
}

impl Info {
    /// Fails where it does not say what every machine has.
    pub fn parse(text: &str) -> Result<Self> {
        let mut info = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            rest = match field(rest) {
                Some((key, value, after)) => {
                    info.0.push((key, value));
                    after
                }
                // Some warning, or what an older version failed to escape.
                None => rest.split_once('\n').map_or("", |(_, after)| after),
            };
        }
        ensure!(
            info.get("name") != Some(INACCESSIBLE),
            "VirtualBox cannot read its settings: `VBoxManage showvminfo {}` says why",
            info.get("UUID").unwrap_or_default()
        );
        for key in ["name", "UUID", "VMState"] {
            ensure!(
                info.get(key).is_some_and(|value| !value.is_empty()),
                "VBoxManage showvminfo does not tell its {key}"
            );
        }
        Ok(info)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub fn name(&self) -> &str {
        self.get("name").unwrap_or_default()
    }

    pub fn uuid(&self) -> &str {
        self.get("UUID").unwrap_or_default()
    }

    /// Groups but the topmost, without their leading slash.
    pub fn groups(&self) -> Vec<String> {
        let groups = self.get("groups").unwrap_or_default().split(',');
        groups.map(|group| group.trim_start_matches('/').to_owned()).filter(|group| !group.is_empty()).collect()
    }

    /// Stopped is what lies still on disk. All but that may be writing: it runs, starts, stops, is saved, has its snapshots
    /// changed, or does what only a later version of VirtualBox has a word for.
    pub fn state(&self) -> State {
        match self.get("VMState").unwrap_or_default() {
            "poweroff" | "saved" | "aborted" | "aborted-saved" | "teleported" => State::Stopped,
            "paused" => State::Paused,
            _ => State::Running,
        }
    }

    /// Whether it holds the memory of a machine that is to go on, which an export leaves out.
    pub fn is_saved(&self) -> bool {
        matches!(self.get("VMState"), Some("saved" | "aborted-saved"))
    }

    /// Its state since when, for people.
    pub fn since(&self) -> String {
        let state = self.get("VMState").unwrap_or_default();
        self.changed().map_or(state.to_owned(), |time| format!("{state} since {time}"))
    }

    /// When its state last changed, in UTC. Fractions of a second are known only until VirtualBox's service ends.
    fn changed(&self) -> Option<&str> {
        let time = self.get("VMStateChangeTime")?;
        let time = time.split_once('.').map_or(time, |(seconds, _)| seconds).trim_end_matches('Z');
        (!time.is_empty()).then_some(time)
    }

    /// The numbers of its network cards.
    pub fn network_cards(&self) -> Vec<String> {
        let card = |(key, value): &(String, String)| {
            let number = key.strip_prefix("nic").filter(|number| number.parse::<u32>().is_ok())?;
            (value != "none").then(|| number.to_owned())
        };
        self.0.iter().filter_map(card).collect()
    }

    /// Its disks. Not images of CDs, which are not dumped and change places all day.
    pub fn disks(&self) -> Vec<Disk<'_>> {
        let mut disks: Vec<Disk> = Vec::new();
        for (key, uuid) in &self.0 {
            let Some((controller, place)) = key.rsplit_once("-ImageUUID-") else { continue };
            let slot = format!("{controller}-{place}");
            let path = self.get(&slot).unwrap_or_default();
            let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
            let removable = matches!(ending.as_deref(), Some("iso" | "viso"));
            if !removable && !disks.iter().any(|disk| disk.slot == slot) {
                disks.push(Disk { slot, uuid, path });
            }
        }
        disks
    }

    /// What tells that it was used or changed, by name. `None` if it does not say when it was last used.
    pub fn marks(&self) -> Option<BTreeMap<String, String>> {
        let mut marks: BTreeMap<String, String> = BTreeMap::new();
        marks.insert("state".into(), format!("{} {}", self.get("VMState")?, self.changed()?));
        for (key, value) in &self.0 {
            let adapter = |name: &&str| key.strip_prefix(*name).is_some_and(is_number);
            let counts = CONFIGURATION.contains(&key.as_str()) || ADAPTER.iter().any(adapter);
            // An adapter that is not there may not be mentioned by another version.
            if counts && !value.is_empty() && value != "none" {
                marks.entry(key.clone()).or_insert_with(|| value.to_ascii_lowercase());
            }
        }
        marks.insert("name".into(), self.name().to_owned());
        for disk in self.disks() {
            marks.insert(format!("disk {}", disk.slot), disk.uuid.to_owned());
        }
        Some(marks)
    }

    /// A text that differs once it was used or changed. `None` if that cannot be told.
    pub fn fingerprint(&self) -> Option<String> {
        let mut hasher = Sha256::new();
        for (name, value) in self.marks()? {
            hasher.update(format!("{name}\0{value}\0"));
        }
        Some(hex(&hasher.finalize()))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The first field of a text, and what follows it. `None` if its first line is none.
fn field(text: &str) -> Option<(String, String, &str)> {
    let line = text.split_once('\n').map_or(text, |(line, _)| line);
    let (key, at) = if let Some(quoted) = line.strip_prefix('"') {
        let end = quoted.find("\"=")?;
        (unescape(&quoted[..end]), end + 3)
    } else {
        let end = line.find('=')?;
        (line[..end].to_owned(), end + 1)
    };
    let value = &text[at..];
    let Some(quoted) = value.strip_prefix('"') else {
        let (value, after) = value.split_once('\n').unwrap_or((value, ""));
        return Some((key, value.trim_end_matches('\r').to_owned(), after));
    };
    let (value, after) = until_quote(quoted);
    Some((key, unescape(value), after))
}

/// A value up to its closing quote, which ends a line, and what follows that line. A quote within a line is part of a value that
/// was not escaped, as older versions have some; such a one ends with its line.
fn until_quote(text: &str) -> (&str, &str) {
    let mut escaped = false;
    let mut stray = None;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let after = &text[at + 1..];
                let after = after.strip_prefix('\r').unwrap_or(after);
                if after.is_empty() {
                    return (&text[..at], "");
                }
                if let Some(after) = after.strip_prefix('\n') {
                    return (&text[..at], after);
                }
                stray = Some(at);
            }
            '\n' if stray.is_some() => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next @ ('"' | '\\')) if c == '\\' => {
                plain.push(*next);
                chars.next();
            }
            _ => plain.push(c),
        }
    }
    plain
}

/// Whether a machine was left alone between two looks at it; fails with what happened to it if not.
pub fn unused(before: &Info, after: &Info) -> Result<()> {
    let none = "VBoxManage showvminfo does not tell when it was last used";
    let (old, new) = (before.marks().context(none)?, after.marks().context(none)?);
    if old.get("state") != new.get("state") {
        bail!("was used while it was exported (it was {}, and now it is {})", before.since(), after.since());
    }
    let differs = |key: &&String| old.get(*key) != new.get(*key);
    if let Some(key) = old.keys().chain(new.keys()).find(differs) {
        bail!("was changed while it was exported (its {key})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "name=\"web\"\ngroups=\"/prod,/a/b\"\nostype=\"Debian (64-bit)\"\n\
        UUID=\"11111111-1111-4111-8111-11111111111a\"\nhardwareuuid=\"11111111-1111-4111-8111-11111111111a\"\nmemory=2048\nvram=16\n\
        cpus=2\nfirmware=\"BIOS\"\nVMState=\"poweroff\"\nVMStateChangeTime=\"2026-11-19T08:45:16.339000000\"\n\
        storagecontrollername0=\"SATA\"\n\"SATA-0-0\"=\"/vm/web/web.vdi\"\n\"SATA-ImageUUID-0-0\"=\"aaaa\"\n\
        \"SATA-1-0\"=\"/usr/share/virtualbox/VBoxGuestAdditions.iso\"\n\"SATA-ImageUUID-1-0\"=\"bbbb\"\n\"SATA-2-0\"=\"none\"\n\
        nic1=\"nat\"\nmacaddress1=\"080027EC9ECE\"\nnic2=\"none\"\nGuestMemoryBalloon=0\n";

    fn info(text: &str) -> Info {
        Info::parse(text).unwrap()
    }

    #[test]
    fn a_machine() {
        let web = info(SAMPLE);
        assert_eq!((web.name(), web.state(), web.groups()), ("web", State::Stopped, vec!["prod".into(), "a/b".into()]));
        assert_eq!(web.disks(), [Disk { slot: "SATA-0-0".into(), uuid: "aaaa", path: "/vm/web/web.vdi" }]);
        assert_eq!(web.since(), "poweroff since 2026-11-19T08:45:16");
    }

    #[test]
    fn escapes_and_line_breaks() {
        let text = "name=\"a \\\"b\\\" \\\\ c\nVMState=\\\"running\\\"\nd\"\nUUID=\"x\"\nVMState=\"saved\"\nVideoMode=\"720,400,0\"@0,0 1\n\
            memory=1\ndescription=\"two\nVMState=\\\"running\\\"\nVMState=running\n\"\n\"a\\\"b-0-0\"=\"c:\\dir\\x\"\nplain=1\n";
        let odd = info(text);
        assert_eq!(odd.name(), "a \"b\" \\ c\nVMState=\"running\"\nd");
        assert_eq!((odd.get("VMState"), odd.get("memory")), (Some("saved"), Some("1")));
        assert_eq!(odd.get("VideoMode"), Some("720,400,0\"@0,0 1"));
        assert_eq!(odd.get("description"), Some("two\nVMState=\"running\"\nVMState=running\n"));
        assert_eq!((odd.get("a\"b-0-0"), odd.get("plain")), (Some("c:\\dir\\x"), Some("1")));
    }

    #[test]
    fn what_is_no_machine() {
        for (text, why) in [
            ("", "does not tell its name"),
            ("garbage", "does not tell its name"),
            ("name=\"<inaccessible>\"\nUUID=\"1-2\"\n", "`VBoxManage showvminfo 1-2` says why"),
            ("name=\"a\"\nUUID=\"1-2\"\n", "does not tell its VMState"),
        ] {
            let error = Info::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_counts_as_use_or_change() {
        let plain = info(SAMPLE).fingerprint();
        assert!(plain.is_some());
        for (from, to) in [
            ("poweroff", "aborted"),
            ("08:45:16.", "08:45:17."),
            ("memory=2048", "memory=4096"),
            ("aaaa", "cccc"),
            ("nic2=\"none\"", "nic2=\"nat\""),
            ("080027EC9ECE", "080027EC9ECF"),
            ("name=\"web\"", "name=\"Web\""),
            ("cpus=2\n", "cpus=2\nCurrentSnapshotUUID=\"9\"\n"),
        ] {
            let text = SAMPLE.replacen(from, to, 1);
            assert_ne!(text, SAMPLE);
            assert_ne!(info(&text).fingerprint(), plain, "{from}");
        }
        // A service that was restarted, an upgrade, another CD, and what moves by itself.
        for (from, to) in [
            (".339000000", ".000000000"),
            ("VMState=", "tpm-type=\"none\"\nnic9=\"none\"\nVMState="),
            ("Debian (64-bit)", "Debian 12 (64-bit)"),
            ("\"BIOS\"", "\"bios\""),
            ("bbbb", "dddd"),
            ("GuestMemoryBalloon=0", "GuestMemoryBalloon=512"),
            ("/prod,", ""),
        ] {
            let text = SAMPLE.replacen(from, to, 1);
            assert_ne!(text, SAMPLE);
            assert_eq!(info(&text).fingerprint(), plain, "{from}");
        }
        let timeless = SAMPLE.replace("VMStateChangeTime", "Other");
        assert_eq!(info(&timeless).fingerprint(), None);
        assert!(unused(&info(&timeless), &info(&timeless)).is_err());
    }

    #[test]
    fn states() {
        for (word, state) in [
            ("poweroff", State::Stopped),
            ("aborted", State::Stopped),
            ("saved", State::Stopped),
            ("running", State::Running),
            ("paused", State::Paused),
            ("gurumeditation", State::Running),
            ("deletingsnapshot", State::Running),
            ("a new word", State::Running),
        ] {
            assert_eq!(info(&SAMPLE.replace("poweroff", word)).state(), state, "{word}");
        }
    }
}
