//! The identity of the far side, so that an empty mount point or another storage is never taken for it.
//!
//! `--init` writes a file `.bak-store` over there, and the same id into the outbox. Every pass compares the two before
//! anything else. Several nodes may share a far side: the second learns the identity that is there.

use anyhow::{Context, Error, Result, anyhow};
use bak_common::args::{Destination, Session};
pub use bak_common::far::identity::FILE;
use bak_common::far::identity::fetch;
use bak_common::far::{Bounds, Far, Url};
use bak_common::jsonl::Writer;
use bak_common::outbox::{Identity, Outbox};
use bak_common::report::Kind;
use std::fs;

use crate::apply::{Options, Scratch, apart, lock, url};

/// Refuses (exit 4) unless the far side is the one that `--init` was run on.
pub fn check(far: &Far, expected: &Identity) -> Result<()> {
    match fetch(far)? {
        Some(there) if there.id == expected.id => Ok(()),
        Some(there) => Err(Kind::Refused.says(format!(
            "the far side is another one: it says {} and should say {}; nothing was sent",
            there.id, expected.id
        ))),
        None => Err(Kind::Refused
            .says(format!("the far side has no {FILE}: is it not mounted, or was it emptied? Nothing was sent"))),
    }
}

/// Gives the far side an identity, or learns the one it has.
pub fn init(session: &Session, dest: &Destination, options: &Options) -> Result<()> {
    let url = url(dest)?;
    if let Url::Path(path) = &url
        && !path.is_dir()
    {
        return Err(Kind::Usage.says(format!("{} is no directory: make it, or mount it, first", path.display())));
    }
    if session.dry_run {
        return Ok(());
    }
    let outbox = Outbox::create(&dest.outbox, &dest.name, dest.ledger.as_deref())?;
    apart(dest, &url, &outbox)?;
    let known = outbox.identity()?;
    let lock = lock(session, &outbox)?;
    let scratch = Scratch::new(&outbox, &lock)?;
    let far = Far::open(url, &options.access, scratch.path())?;
    // rsync would make the last directory of a mistyped path; a listing of one that is not there fails.
    far.list(&[FILE.to_owned()]).map_err(not_there)?;
    let there = fetch(&far)?;
    let identity = match (known, there) {
        (Some(known), Some(there)) if known.id == there.id => return Ok(()),
        (Some(known), Some(there)) => {
            return Err(Kind::Refused.says(format!(
                "this outbox belongs to the far side {}, and there is {}: use another outbox for another storage",
                known.id, there.id
            )));
        }
        (Some(_), None) => {
            return Err(Kind::Refused.says(format!(
                "this outbox belongs to a far side, and there is none: is it not mounted? If it was emptied for good, begin with a new outbox ({FILE} was not written)"
            )));
        }
        (None, Some(there)) => there,
        (None, None) => write(&far, &scratch)?,
    };
    outbox.set_identity(&identity)?;
    if session.table && !session.quiet {
        Writer::stdout().line(&format!("{}: ready; its identity is {}", dest.name, identity.id))?;
    }
    Ok(())
}

/// `error`, with what to do about it if the directory may be what is missing.
fn not_there(error: Error) -> Error {
    let text = format!("{error:#}");
    let missing =
        ["No such file or directory", "is not there", "chdir failed"].iter().any(|words| text.contains(words));
    if missing { anyhow!("{text}; is that directory there? make it, or mount it, first") } else { error }
}

fn write(far: &Far, scratch: &Scratch) -> Result<Identity> {
    let identity = Identity { v: 1, id: uuid::Uuid::new_v4().to_string() };
    let dir = scratch.path().join("identity");
    fs::create_dir(&dir).context("cannot make a temporary directory")?;
    let text = serde_json::to_string(&identity).context("cannot describe the far side")? + "\n";
    fs::write(dir.join(FILE), text).context("cannot write a temporary file")?;
    far.send(&dir, "", &[FILE.to_owned()], &["--ignore-existing"], Bounds::default(), &mut |_| Ok(()))?
        .check()
        .context("cannot write the identity of the far side")?;
    // Another node may have been faster: what is there holds.
    match fetch(far)? {
        Some(there) => Ok(there),
        None => Err(Kind::Refused
            .says(format!("there is a {FILE} over there that --init did not write: look at it, and move it away"))),
    }
}
