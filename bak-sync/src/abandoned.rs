//! What was begun over there and then taken out of the outbox by hand: what has arrived of it would lie there for ever.
//!
//! The hazard is to remove what belongs to others. Only what this outbox has begun itself is looked at, by the notes that
//! it made of it; only what it no longer holds; only the very names of that dump's files, and their partial and temporary
//! ones; and nothing at all where a sidecar of that name is over there, as then it is a dump.

use anyhow::{Result, anyhow};
use bak_common::far::FarFile;
use bak_common::outbox::Outbox;
use bak_common::record::Dump;
use bak_common::units::total;
use serde_json::json;

use crate::apply::Pass;
use crate::plan::{self, There};

impl Pass<'_> {
    /// Removes what is left over there of these dumps. What can't be removed is tried again in the next pass.
    pub fn clear(&mut self, abandoned: Vec<Dump>) {
        for dump in abandoned {
            if self.over().is_some() {
                return;
            }
            if let Err(error) = self.clear_one(&dump) {
                let error =
                    error.context("cannot remove over there what had arrived before it was taken out of the outbox");
                self.session.report.warn(dump.id.as_str(), &format!("{error:#}"));
            }
        }
    }

    fn clear_one(&mut self, dump: &Dump) -> Result<()> {
        let place = Outbox::place(&dump.vm);
        // bak-link may have put it there again since.
        if self.outbox.store.look(&place, &dump.stem)?.is_some() {
            return Ok(());
        }
        let sent = self.outbox.sent(dump)?.is_some();
        let rest = match plan::there(dump, &place, &self.basis, &self.listing) {
            There::InTheWay(name) => return Err(anyhow!("{name} over there is not a directory")),
            There::Sidecar => Vec::new(),
            _ if sent => Vec::new(),
            There::Begun | There::Nothing => plan::rest(dump, &place, &self.listing),
        };
        if !rest.is_empty() {
            self.far.discard("", &rest)?.check()?;
            self.listing.retain(|file| !rest.contains(file));
            let bytes = total(rest.iter().map(|file: &FarFile| file.bytes));
            let line = json!({"program": "bak-sync", "id": dump.id, "dest": self.dest.name, "at": self.session.clock(),
                "decision": "cleared", "why": "it was taken out of the outbox before it had arrived", "bytes": bytes});
            self.session.report.decided(&line.to_string());
        }
        self.outbox.forget_begun(dump)
    }
}
