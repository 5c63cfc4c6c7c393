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

/// The identity of the far side; refuses (exit 4) one that has none, or another than is expected.
pub fn right_one(far: &Far, expected: Option<&Identity>) -> Result<Identity> {
    is_right(fetch(far)?, expected)
}

/// The same of what it says that it is.
pub fn is_right(there: Option<Identity>, expected: Option<&Identity>) -> Result<Identity> {
    match (there, expected) {
        (Some(there), None) => Ok(there),
        (Some(there), Some(expected)) if there.id == expected.id => Ok(there),
        (Some(there), Some(expected)) => Err(Kind::Refused
            .says(format!("this is another far side: it says {} and should say {}", there.id, expected.id))),
        (None, Some(_)) => {
            Err(Kind::Refused.says(format!("the far side has no {FILE}: is it not mounted, or was it emptied?")))
        }
        (None, None) => Err(Kind::Refused.says(format!(
            "the far side has no {FILE}, so nothing shows that it is a store of bak's: bak-sync --init gives it one"
        ))),
    }
}
