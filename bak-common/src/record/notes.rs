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

/// What bak-link decided for one destination, and how far bak-sync has come with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkNote {
    /// `linked`, or in an explanation what else was decided.
    pub decision: String,
    pub why: String,
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
