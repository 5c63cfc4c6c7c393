//! Where a program that makes these system calls may be killed, and which of these may fail.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Which program of a run: itself, or a tool, and which start of it.
pub type Who = Option<(String, usize)>;

/// A system call as strace shows it, with the paths of descriptors.
pub struct Call {
    pub who: Who,
    pub thread: String,
    pub name: String,
    pub line: String,
}

/// One thing that happens to a run, at the `when`-th call of this name that one of its threads makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub who: Who,
    pub name: String,
    pub when: usize,
    /// Else it is killed.
    pub error: Option<&'static str>,
    /// Nothing on disk changes there.
    idle: bool,
}

impl Point {
    pub fn kills(&self) -> bool {
        self.error.is_none()
    }

    pub fn kills_program(&self) -> bool {
        self.kills() && self.who.is_none()
    }

    /// Names come and go there: always tried.
    fn weighs(&self) -> bool {
        self.kills_program() && ["rename", "link", "unlink"].iter().any(|word| self.name.starts_with(word))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((tool, start)) = &self.who {
            write!(f, "{tool}, start {start}: ")?;
        }
        match self.error {
            Some(error) => write!(f, "{} {} fails with {error}", self.name, self.when),
            None => write!(f, "killed at {} {}", self.name, self.when),
        }
    }
}

/// What may change something on disk.
const CHANGES: [&str; 29] = [
    "chmod",
    "copy_file_range",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fdatasync",
    "fsetxattr",
    "fsync",
    "ftruncate",
    "ioctl",
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "pwrite64",
    "pwritev",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "syncfs",
    "unlink",
    "unlinkat",
    "utimensat",
    "write",
    "writev",
];

/// What may fail, and how. Of calls on descriptors only those on files do.
const ERRORS: [(&str, &[&str]); 25] = [
    ("copy_file_range", &["EIO", "ENOSPC"]),
    ("fallocate", &["ENOSPC"]),
    ("fchmod", &["EIO"]),
    ("fdatasync", &["EIO"]),
    ("flock", &["EINTR", "ENOLCK"]),
    ("fsync", &["EIO", "EINTR", "ENOSPC"]),
    ("ftruncate", &["EIO", "EINTR", "ENOSPC"]),
    ("link", &["EIO", "ENOSPC", "EDQUOT"]),
    ("linkat", &["EIO", "ENOSPC", "EDQUOT"]),
    ("mkdir", &["ENOSPC", "EDQUOT"]),
    ("mkdirat", &["ENOSPC", "EDQUOT"]),
    ("open", &["EACCES", "EINTR", "ENOSPC"]),
    ("openat", &["EACCES", "EINTR", "ENOSPC"]),
    ("pwrite64", &["EIO", "EINTR", "ENOSPC", "EDQUOT"]),
    ("pwritev", &["EIO", "EINTR", "ENOSPC", "EDQUOT"]),
    ("rename", &["EIO", "ENOSPC"]),
    ("renameat", &["EIO", "ENOSPC"]),
    ("renameat2", &["EIO", "ENOSPC", "EINVAL"]),
    ("rmdir", &["EIO"]),
    ("syncfs", &["EIO", "ENOSPC"]),
    ("unlink", &["EIO"]),
    ("unlinkat", &["EIO"]),
    ("utimensat", &["EIO"]),
    ("write", &["EIO", "EINTR", "ENOSPC", "EDQUOT"]),
    ("writev", &["EIO", "EINTR", "ENOSPC", "EDQUOT"]),
];

/// All points of a run, of threads alike only one.
pub fn of(calls: &[Call], more: &[(&str, &'static [&'static str])]) -> Vec<Point> {
    let mut counted: BTreeMap<(&Who, &str, &str), usize> = BTreeMap::new();
    let mut points = BTreeMap::new();
    for call in calls {
        let when = counted.entry((&call.who, &call.thread, &call.name)).or_default();
        *when += 1;
        let point = |error, idle| Point { who: call.who.clone(), name: call.name.clone(), when: *when, error, idle };
        let idle = !changes(call);
        if !matches!(call.name.as_str(), "execve" | "exit_group" | "exit") {
            let known = points.entry(point(None, false)).or_insert(idle);
            *known &= idle;
        }
        let usual = ERRORS.iter().filter(|_| fails(call)).filter(|(name, _)| *name == call.name);
        let more = more.iter().filter(|(name, _)| *name == call.name);
        for error in usual.chain(more).flat_map(|(_, errors)| *errors) {
            points.insert(point(Some(error), false), false);
        }
    }
    points.into_iter().map(|(point, idle)| Point { idle, ..point }).collect()
}

fn creates(call: &Call) -> bool {
    call.name.starts_with("open") && (call.line.contains("O_CREAT") || call.line.contains("O_TRUNC"))
}

fn changes(call: &Call) -> bool {
    creates(call) || CHANGES.contains(&call.name.as_str())
}

/// Whether a disk may make it fail.
fn fails(call: &Call) -> bool {
    let first = call.line.split_once('(').map_or("", |(_, rest)| rest);
    let digits = first.trim_start_matches(|c: char| c.is_ascii_digit());
    let file = digits.len() < first.len()
        && digits.strip_prefix('<').is_some_and(|path| path.starts_with('/') && !path.starts_with("/dev/null"));
    match call.name.as_str() {
        "open" | "openat" => creates(call),
        "link" | "mkdir" | "rename" | "rmdir" | "unlink" | "linkat" | "mkdirat" | "renameat" | "renameat2"
        | "unlinkat" => true,
        _ => file,
    }
}

/// How many points of a scene are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    Sample(usize),
    /// Not one more than so many of each.
    Few(usize),
    All,
    /// Also where nothing changes on disk.
    Every,
    /// The one that a fault was told of.
    Only(String),
}

impl Count {
    pub fn of_environment(sample: usize, dear: bool) -> Self {
        match std::env::var("BAK_POINTS").as_deref() {
            Ok("all" | "every") if dear => Self::Few(10 * sample),
            Ok("all") => Self::All,
            Ok("every") => Self::Every,
            Ok(text) => text.parse().map_or_else(|_| Self::Only(text.to_owned()), Self::Sample),
            Err(_) if dear => Self::Few(sample),
            Err(_) => Self::Sample(sample),
        }
    }
}

/// The points to try. A sample is the same each time. It has of each call, of the program's own errors and of each tool's
/// calls at least one.
pub fn choose(name: &str, points: Vec<Point>, count: Count) -> Vec<Point> {
    let points = points.into_iter().filter(|point| count == Count::Every || !point.idle);
    let (sample, most) = match &count {
        Count::Sample(sample) => (*sample, usize::MAX),
        Count::Few(few) => (*few, *few),
        Count::All | Count::Every => return points.collect(),
        Count::Only(text) => return points.filter(|point| point.to_string() == *text).collect(),
    };
    let (kills, errors): (Vec<_>, Vec<_>) = points.partition(Point::kills);
    [kills, errors].into_iter().flat_map(|points| choose_some(name, points, sample).into_iter().take(most)).collect()
}

fn choose_some(name: &str, mut points: Vec<Point>, sample: usize) -> Vec<Point> {
    points.sort_by_cached_key(|point| <[u8; 32]>::from(Sha256::digest(format!("{name}: {point}"))));
    let mut kinds = BTreeSet::new();
    let (mut chosen, others): (Vec<_>, Vec<_>) = points.into_iter().partition(|point| {
        let tool = point.who.as_ref().map(|(tool, _)| tool.clone());
        let error = point.error.filter(|_| tool.is_none());
        kinds.insert((tool, point.name.clone(), error)) || point.weighs()
    });
    let more = sample.saturating_sub(chosen.len());
    chosen.extend(others.into_iter().take(more));
    chosen
}
