//! What a file's name says: Proxmox's own, and those of `--pattern`. Pure.

use anyhow::{Result, anyhow, bail, ensure};
use bak_common::name::printable;
use bak_common::report::Kind as Status;
use bak_common::store::PROTECTED;
use chrono::{NaiveDate, NaiveDateTime, NaiveTime};
use std::collections::HashSet;
use std::fmt::Write;

use crate::driver::vzdump::vmid;

/// When something began, as a name has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// By the wall clock of the host that wrote it.
    Local(NaiveDateTime),
    Utc(NaiveDateTime),
    /// At a time of day that there is not, as 25 o'clock.
    Never,
}

/// What the name of an archive of vzdump says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    pub stem: String,
    pub id: u32,
    /// `qemu`, or `lxc`, which Proxmox's old containers (`openvz`) are restored as.
    pub kind: &'static str,
    pub wall: NaiveDateTime,
}

/// What a name that begins as vzdump's do is the name of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vzdump {
    Archive(Archive),
    /// What vzdump writes until it renames it.
    Unfinished,
}

/// What something lies beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    Stem(String),
    File(String),
}

/// What Proxmox compresses with, as its archives' names end.
const PACKED: [&str; 5] = ["", ".zst", ".gz", ".lzo", ".bz2"];
const DATE: &str = "%Y_%m_%d-%H_%M_%S";
const DATE_LEN: usize = "2026_11_20-02_00_02".len();
/// What is appended to the whole name of an archive.
const MARKS: [&str; 2] = [".notes", PROTECTED];

/// Reads a name as vzdump writes them; nothing if it is none of these.
pub fn vzdump(name: &str) -> Option<Vzdump> {
    let (kind, rest) = name.strip_prefix("vzdump-")?.split_once('-')?;
    let kind = match kind {
        "qemu" => "qemu",
        "lxc" | "openvz" => "lxc",
        _ => return None,
    };
    let (id, rest) = rest.split_once('-')?;
    let id = vmid(id)?;
    let (date, ending) = rest.split_at_checked(DATE_LEN)?;
    let packed = |start: &str| ending.strip_prefix(start).is_some_and(|rest| PACKED.contains(&rest));
    let is_archive = ending == ".tgz" || packed(".vma") || packed(".tar");
    // First, as to read a date takes longer, and most other names are those of logs.
    if !is_archive && !matches!(ending, ".dat" | ".vma.dat" | ".tar.dat" | ".tmp") {
        return None;
    }
    let wall = NaiveDateTime::parse_from_str(date, DATE).ok()?;
    // Digits where chrono would take fewer, too.
    if wall.format(DATE).to_string() != date {
        return None;
    }
    let stem = name.strip_suffix(ending)?.to_owned();
    Some(if is_archive { Vzdump::Archive(Archive { stem, id, kind, wall }) } else { Vzdump::Unfinished })
}

/// What something that is no data lies beside, by its name: a log beside all of a stem, notes and marks beside one file.
pub fn beside(name: &str) -> Option<Of> {
    let of_file = MARKS.iter().find_map(|mark| name.strip_suffix(mark)).map(|file| Of::File(file.to_owned()));
    of_file.or_else(|| name.strip_suffix(".log").map(|stem| Of::Stem(stem.to_owned())))
}

/// What a pattern of `--pattern` found in a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub vm: String,
    pub began: Began,
    /// The name up to the first dot behind `{vm}` and `{started}`.
    pub stem: String,
}

/// A pattern of names: `*` and `?` as in a shell, `{vm}` and `{started}` once each; `{started:%d.%m.%Y}` for a date that is
/// not written from the year down.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    One,
    Any,
    Vm,
    Started(Option<String>),
}

/// The endings of what somebody is still writing.
const UNFINISHED: [&str; 6] = [".dat", ".tmp", ".part", ".partial", ".filepart", ".crdownload"];

/// Whether a name ends like that of a file that is not finished.
pub fn is_unfinished(name: &str) -> bool {
    UNFINISHED.iter().any(|ending| name.ends_with(ending))
}

impl std::str::FromStr for Pattern {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|error| {
            Status::Usage
                .says(format!("`{}` is no pattern like '{{vm}}-{{started}}*.vma.lzo': {error:#}", printable(text)))
        })
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self> {
        ensure!(!text.contains('/'), "it is for names, without directories");
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            rest = &rest[first.len_utf8()..];
            tokens.push(match first {
                '*' if tokens.last() == Some(&Token::Any) => continue,
                '*' => Token::Any,
                '?' => Token::One,
                '{' => {
                    let Some((inner, after)) = rest.split_once('}') else { bail!("a `{{` without its `}}`") };
                    rest = after;
                    match (inner, inner.strip_prefix("started:")) {
                        ("vm", _) => Token::Vm,
                        ("started", _) => Token::Started(None),
                        (_, Some(format)) => {
                            check_format(format)?;
                            Token::Started(Some(format.to_owned()))
                        }
                        _ => bail!("it knows {{vm}}, {{started}} and {{started:FORMAT}}, not {{{inner}}}"),
                    }
                }
                other => Token::Char(other),
            });
        }
        let count = |wanted: fn(&Token) -> bool| tokens.iter().filter(|token| wanted(token)).count();
        ensure!(count(|token| *token == Token::Vm) == 1, "it needs one {{vm}}");
        ensure!(count(|token| matches!(token, Token::Started(_))) == 1, "it needs one {{started}}");
        Ok(Self { text: text.to_owned(), tokens })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// What a whole name says by this pattern. Of several ways to read it the one with the longest `{vm}` counts, then the one
    /// with the most exact `{started}`.
    pub fn read(&self, name: &str) -> Option<Match> {
        let mut search = Search { name, tokens: &self.tokens, failed: HashSet::new(), vm: None, began: None };
        if !search.matches(0, 0) {
            return None;
        }
        let ((from, to), (began, end)) = (search.vm?, search.began?);
        let after = to.max(end);
        let stem = name[after..].find('.').map_or(name, |at| &name[..after + at]);
        Some(Match { vm: name[from..to].to_owned(), began, stem: stem.to_owned() })
    }
}

/// Makes sure that a moment can be read by it.
fn check_format(format: &str) -> Result<()> {
    let sample = NaiveDate::from_ymd_opt(2026, 11, 20).and_then(|date| date.and_hms_opt(2, 0, 2)).unwrap_or_default();
    let items: Vec<_> = chrono::format::StrftimeItems::new(format).collect();
    ensure!(!items.contains(&chrono::format::Item::Error), "`{format}` is no format of strftime");
    let mut written = String::new();
    // What it knows nothing of, as a zone, it refuses to write.
    write!(written, "{}", sample.format(format)).map_err(|_| anyhow!("`{format}` asks for more than a local time"))?;
    let read = by_format(&written, format).is_some_and(|(_, moment)| moment.date() == sample.date());
    ensure!(read, "`{format}` does not tell the year, the month and the day");
    Ok(())
}

/// The search for one way to read a name.
struct Search<'a> {
    name: &'a str,
    tokens: &'a [Token],
    /// From which token and byte on there is no way.
    failed: HashSet<(usize, usize)>,
    vm: Option<(usize, usize)>,
    /// And the byte where it ends.
    began: Option<(Began, usize)>,
}

impl Search<'_> {
    fn matches(&mut self, token: usize, at: usize) -> bool {
        if self.failed.contains(&(token, at)) {
            return false;
        }
        let found = self.step(token, at);
        if !found {
            self.failed.insert((token, at));
        }
        found
    }

    fn step(&mut self, token: usize, at: usize) -> bool {
        let name = self.name;
        let rest = &name[at..];
        let first = rest.chars().next();
        let Some(wanted) = self.tokens.get(token) else { return rest.is_empty() };
        match wanted {
            Token::Char(wanted) => first == Some(*wanted) && self.matches(token + 1, at + wanted.len_utf8()),
            Token::One => first.is_some_and(|first| self.matches(token + 1, at + first.len_utf8())),
            Token::Any => {
                let mut ends = rest.char_indices().map(|(end, _)| at + end).chain([name.len()]);
                ends.any(|end| self.matches(token + 1, end))
            }
            Token::Vm => {
                let ends = rest.char_indices().map(|(end, first)| at + end + first.len_utf8());
                let ends: Vec<usize> = ends.collect();
                ends.into_iter().rev().any(|end| {
                    self.vm = Some((at, end));
                    self.matches(token + 1, end)
                })
            }
            Token::Started(format) => {
                let found = match format {
                    None => moments(rest),
                    Some(format) => {
                        by_format(rest, format).map(|(end, moment)| (end, Began::Local(moment))).into_iter().collect()
                    }
                };
                found.into_iter().any(|(length, began)| {
                    self.began = Some((began, at + length));
                    self.matches(token + 1, at + length)
                })
            }
        }
    }
}

/// A moment at the beginning of a text, and how long it is written.
fn by_format(text: &str, format: &str) -> Option<(usize, NaiveDateTime)> {
    let length = |rest: &str| text.len() - rest.len();
    if let Ok((moment, rest)) = NaiveDateTime::parse_and_remainder(text, format) {
        return Some((length(rest), moment));
    }
    let (date, rest) = NaiveDate::parse_and_remainder(text, format).ok()?;
    Some((length(rest), date.and_time(NaiveTime::MIN)))
}

/// The moments that a text may begin with, from the year down, the most exact first: `20261120T010002Z`,
/// `2026_11_20-02_00_02`, `2026-11-20 02:00`, `20261120`. A date alone is its midnight; one with a time that there is not is never.
fn moments(text: &str) -> Vec<(usize, Began)> {
    let mut found = Vec::new();
    let mut reader = Reader { text, at: 0 };
    let Some(date) = reader.date() else { return found };
    let mut add = |reader: &Reader, moment: Option<NaiveDateTime>| {
        let Some(moment) = moment else { return found.push((reader.at, Began::Never)) };
        found.push((reader.at, Began::Local(moment)));
        if reader.text[reader.at..].starts_with('Z') {
            found.push((reader.at + 1, Began::Utc(moment)));
        }
    };
    add(&Reader { ..reader }, Some(date.and_time(NaiveTime::MIN)));
    reader.skip(|c| matches!(c, '-' | '_' | '.' | ':' | 'T' | ' '));
    if let Some(hour) = reader.two() {
        reader.skip(is_between);
        if let Some(minute) = reader.two() {
            add(&Reader { ..reader }, date.and_hms_opt(hour, minute, 0));
            reader.skip(is_between);
            if let Some(second) = reader.two() {
                add(&Reader { ..reader }, date.and_hms_opt(hour, minute, second));
            }
        }
    }
    found.reverse();
    found
}

fn is_between(c: char) -> bool {
    matches!(c, '-' | '_' | '.' | ':')
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn skip(&mut self, what: impl Fn(char) -> bool) {
        let first = self.text[self.at..].chars().next();
        self.at += first.filter(|first| what(*first)).map_or(0, char::len_utf8);
    }

    fn digits(&mut self, count: usize) -> Option<u32> {
        let text = self.text.get(self.at..self.at + count)?;
        let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())??;
        self.at += count;
        Some(number)
    }

    fn two(&mut self) -> Option<u32> {
        self.digits(2)
    }

    fn date(&mut self) -> Option<NaiveDate> {
        let year = self.digits(4).filter(|year| (1980..2200).contains(year))?;
        self.skip(is_between);
        let month = self.two()?;
        self.skip(is_between);
        let day = self.two()?;
        NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> NaiveDateTime {
        text.parse().unwrap()
    }

    #[test]
    fn names_of_vzdump() {
        let archive = |name: &str| match vzdump(name) {
            Some(Vzdump::Archive(archive)) => Some((archive.id, archive.kind, archive.stem)),
            _ => None,
        };
        let stem = "vzdump-qemu-100-2026_11_20-02_00_02";
        for ending in ["vma", "vma.zst", "vma.gz", "vma.lzo", "vma.bz2", "tar", "tgz", "tar.zst"] {
            assert_eq!(archive(&format!("{stem}.{ending}")), Some((100, "qemu", stem.into())), "{ending}");
        }
        let old = "vzdump-openvz-101-2012_11_20-02_00_02";
        assert_eq!(archive(&format!("{old}.tgz")), Some((101, "lxc", old.into())));
        for ending in ["dat", "vma.dat", "tar.dat", "tmp"] {
            assert_eq!(vzdump(&format!("{stem}.{ending}")), Some(Vzdump::Unfinished), "{ending}");
        }
        assert_eq!(beside(&format!("{stem}.log")), Some(Of::Stem(stem.into())));
        let file = format!("{stem}.vma.zst");
        assert_eq!(beside(&format!("{file}.notes")), Some(Of::File(file.clone())));
        assert_eq!(beside(&format!("{file}.protected")), Some(Of::File(file.clone())));
        assert_eq!(beside(&file), None);
        for foreign in [
            "vzdump-qemu-100-2026_11_20-02_00_02.log",
            "vzdump-qemu-100-2026_11_20-02_00_02.vma.zst.part",
            "vzdump-qemu-100-2026_11_20-02_00_02.vma.xz",
            "vzdump-qemu-100-2026_11_20-02_00_02",
            "vzdump-qemu-100-2026_11_20-02_00_02-copy.vma",
            "vzdump-qemu-100-2026_13_20-02_00_02.vma",
            "vzdump-qemu-100-2026_11_20-2_00_02_.vma",
            "vzdump-qemu-99-2026_11_20-02_00_02.vma",
            "vzdump-qemu-0100-2026_11_20-02_00_02.vma",
            "vzdump-host-100-2026_11_20-02_00_02.vma",
            "old-vzdump-qemu-100-2026_11_20-02_00_02.vma",
            "vzdump-qemu-100-2026_11_20-02_00_0é.vma",
        ] {
            assert_eq!(vzdump(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_patterns_find() {
        let local = |text: &str| Began::Local(at(text));
        let table = [
            ("{vm}-{started}*", "web-20180501.lzo", "web", local("2018-05-01T00:00:00"), "web-20180501"),
            // Not a dump of the guest `web`.
            (
                "{vm}-{started}*",
                "web-2-2018-05-01_0230.lzo",
                "web-2",
                local("2018-05-01T02:30:00"),
                "web-2-2018-05-01_0230",
            ),
            (
                "{vm}-{started}*",
                "web-2018-01-01-20180501T020000Z.vma.lzo",
                "web-2018-01-01",
                Began::Utc(at("2018-05-01T02:00:00")),
                "web-2018-01-01-20180501T020000Z",
            ),
            (
                "{vm}-{started}.vma.lzo",
                "db.prod-2018_05_01-02_00_02.vma.lzo",
                "db.prod",
                local("2018-05-01T02:00:02"),
                "db.prod-2018_05_01-02_00_02",
            ),
            (
                "{started}_{vm}.ova",
                "2026-11-20_win 10.ova",
                "win 10",
                local("2026-11-20T00:00:00"),
                "2026-11-20_win 10",
            ),
            (
                "export_{vm}_{started:%d.%m.%Y}.qcow2",
                "export_mail_20.11.2026.qcow2",
                "mail",
                local("2026-11-20T00:00:00"),
                "export_mail_20.11.2026",
            ),
            (
                "vzdump-*-{vm}-{started}.*",
                "vzdump-qemu-100-2026_11_20-02_00_02.vma.zst",
                "100",
                local("2026-11-20T02:00:02"),
                "vzdump-qemu-100-2026_11_20-02_00_02",
            ),
            ("Köln ?{vm} {started}*", "Köln 7db 20261120.raw", "db", local("2026-11-20T00:00:00"), "Köln 7db 20261120"),
        ];
        for (pattern, name, vm, began, stem) in table {
            let found = pattern.parse::<Pattern>().unwrap().read(name);
            assert_eq!(found, Some(Match { vm: vm.into(), began, stem: stem.into() }), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("{vm}-{started}.lzo", "web-20180501.lzo.tmp"),
            ("{vm}-{started}*", "web-20181301.lzo"),
            ("{vm}-{started}*", "web.lzo"),
            ("{vm}-{started}*", "-20180501.lzo"),
            ("{vm}-{started}*", "web-01052018.lzo"),
        ] {
            assert_eq!(pattern.parse::<Pattern>().unwrap().read(name), None, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_that_are_refused() {
        for bad in [
            "",
            "*.lzo",
            "{vm}*.lzo",
            "{started}.lzo",
            "{vm}-{vm}-{started}",
            "{vm}-{started",
            "{name}-{started}",
            "dir/{vm}-{started}",
            "{vm}-{started:%H}",
            "{vm}-{started:%Q}",
            "{vm}-{started:%Y}",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn stars_do_not_take_for_ever() {
        let pattern: Pattern = format!("{}{{vm}}-{{started}}z", "*a".repeat(30)).parse().unwrap();
        assert_eq!(pattern.read(&"a".repeat(250)), None);
    }
}
