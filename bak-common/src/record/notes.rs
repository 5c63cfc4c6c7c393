//! What records hold beside the guest or dump itself: files, and the notes that stages add.

use serde::{Deserialize, Serialize};

use super::Extra;
use crate::calendar::Time;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub name: String,
    pub bytes: u64,
    /// In lower-case hexadecimal, as `sha256sum -c` reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl FileEntry {
    /// Whether both may be of one file: a SHA-256 that one lacks says nothing.
    pub fn same(&self, other: &Self) -> bool {
        let sums = match (&self.sha256, &other.sha256) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        sums && self.name == other.name && self.bytes == other.bytes && self.extra == other.extra
    }
}

/// What bak-link decided for one destination, and how far bak-sync has come with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkNote {
    /// `linked`, or in an explanation what else was decided.
    pub decision: String,
    pub why: String,
    /// When that was decided. A dump that replaced another in the outbox has the time and rank of that one: they are its
    /// place in bak-sync's order.
    pub at: Time,
    /// Its place in the queue when it was linked; 1 goes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u64>,
    /// Absent if no dump of the guest was ever sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staleness_s: Option<i64>,
    /// Expected bytes on the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// Bytes that its files have. Absent in notes of before bak-link told cost and size apart: both were the size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes of the limit that were left after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<i64>,
    /// Attempts to send it that were begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<u64>,
    /// Why the last attempt failed; absent if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentNote {
    pub at: Time,
    pub wire_out: u64,
    pub wire_in: u64,
    pub seconds: u64,
    pub passes: u64,
    /// When bak-prune removed it over there, so that it is not missed; it still counts as sent, and is not sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Time>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneNote {
    /// `keep`, `remove` or `spared`.
    pub decision: String,
    pub reasons: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    /// `good`, `bad` or `unknown`.
    pub decision: String,
    pub why: String,
    pub at: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub stage: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub why: String,
}

#[cfg(test)]
mod tests {
    use crate::name::Stem;
    use crate::record::{Dump, Record, to_line};

    /// A sidecar of an outbox as it was written before notes told size and cost apart, and one of after.
    #[test]
    fn notes_of_bak_link_from_before_and_after_it_told_cost_and_size_apart() {
        let before = r#"{"v":1,"type":"dump","id":"web@20261120T010002Z","vm":"web","kind":"qemu","driver":"image","started":"2026-11-20T01:00:02Z","finished":"2026-11-20T01:00:02Z","stem":"web-20261120T010002Z","bytes":0,"files":[],"link":{"box":{"decision":"linked","why":"never sent, 1 of 1 due","at":"2026-11-20T02:00:00Z","rank":1,"cost":93000000,"remaining":7,"tries":1}}}"#;
        let after = before.replace("\"remaining\"", "\"size\":1288490188,\"remaining\"");
        let stem = Stem::new("web-20261120T010002Z").unwrap();
        for (text, size) in [(before, None), (after.as_str(), Some(1_288_490_188))] {
            let read = Dump::from_sidecar(&stem, text.as_bytes()).unwrap();
            let note = &read.link["box"];
            assert_eq!((note.cost, note.size, note.tries, note.extra.len()), (Some(93_000_000), size, Some(1), 0));
            assert_eq!(to_line(&Record::Dump(Box::new(read.clone()))), text);
        }
    }
}
