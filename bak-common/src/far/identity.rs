//! What the far side says it is: the file that `bak-sync --init` wrote there.

use anyhow::{Context, Result};

use super::{Far, Fetched};
use crate::name::printable;
use crate::outbox::Identity;
use crate::report::Kind;

/// The far side's file.
pub const FILE: &str = ".bak-store";

/// The only version there is.
const VERSION: u64 = 1;

/// What the far side says it is; `None` if it says nothing.
pub fn fetch(far: &Far) -> Result<Option<Identity>> {
    match far.fetch(FILE).context("cannot read the identity of the far side")? {
        Fetched::Here(text) => Ok(Some(read(&text)?)),
        Fetched::Missing => Ok(None),
    }
}

/// What an identity says. Its id is part of paths here, so it is what `--init` writes: letters, digits and dashes, and none that
/// means something else there.
fn read(text: &[u8]) -> Result<Identity> {
    let refused = |why: &str| Kind::Refused.says(format!("the file {FILE} over there {why}"));
    let found: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    if let Some(v) = found["v"].as_u64().filter(|v| *v != VERSION) {
        return Err(refused(&format!("is of version {v}, and this bak knows {VERSION}: a newer bak wrote it")));
    }
    let identity: Identity =
        serde_json::from_value(found).map_err(|_| refused("is not one that --init wrote: it holds no identity"))?;
    let id = &identity.id;
    let sound = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    if !(1..=64).contains(&id.len()) || !id.bytes().all(sound) || id == crate::drills::DIR {
        let shown = printable(&id.chars().take(64).collect::<String>());
        return Err(refused(&format!("is not one that --init wrote: its id is `{shown}`")));
    }
    Ok(identity)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_identity() {
        assert_eq!(read(br#"{"v":1,"id":"the-box"}"#).unwrap().id, "the-box");
        for (text, why) in [
            (r#"{"v":9,"id":"the-box"}"#, "is of version 9, and this bak knows 1"),
            (r#"{"v":1}"#, "holds no identity"),
            ("x", "holds no identity"),
            (r#"{"v":1,"id":"drill"}"#, "its id is `drill`"),
            (r#"{"v":1,"id":"../x"}"#, "its id is `../x`"),
            (r#"{"v":1,"id":".x"}"#, "its id is `.x`"),
            (r#"{"v":1,"id":""}"#, "its id is ``"),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert_eq!(crate::report::status(&error), 4);
            assert!(format!("{error:#}").contains(why), "{text}: {error:#}");
        }
    }
}
