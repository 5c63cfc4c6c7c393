//! What the far side says it is: the file that `bak-sync --init` wrote there.

use anyhow::{Context, Result};

use super::{Far, Fetched};
use crate::outbox::Identity;
use crate::report::Kind;

/// The far side's file.
pub const FILE: &str = ".bak-store";

/// What the far side says it is; `None` if it says nothing.
pub fn fetch(far: &Far) -> Result<Option<Identity>> {
    match far.fetch(FILE).context("cannot read the identity of the far side")? {
        Fetched::Here(text) => {
            let sound = |identity: &Identity| {
                !identity.id.is_empty() && identity.id.len() <= 64 && identity.id.bytes().all(|b| b.is_ascii_graphic())
            };
            let identity = serde_json::from_slice(&text).ok().filter(sound);
            Ok(Some(identity.ok_or_else(|| {
                Kind::Refused.says(format!("the file {FILE} over there is not one that --init wrote"))
            })?))
        }
        Fetched::Missing => Ok(None),
    }
}
