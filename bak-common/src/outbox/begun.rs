//! What of this outbox was begun over there: a copy of the sidecar in `.bak/begun/<vm>/`, from before the first byte until
//! the dump has arrived. Should the dump be taken out of the outbox meanwhile, this tells whose the rest over there is.

use anyhow::{Context, Result};
use std::os::fd::AsFd;

use super::{Outbox, read_history};
use crate::fsio;
use crate::record::Dump;

const BEGUN: &str = "begun";
const TEMP: &str = ".begun.new";

impl Outbox {
    /// Notes that the dump is about to be sent; nothing is done if that is noted.
    pub fn note_begun(&self, dump: &Dump) -> Result<()> {
        let top = fsio::make_dir(self.store.make_bak()?.as_fd(), BEGUN)?;
        let dir = fsio::make_dir(top.as_fd(), &Self::place(&dump.vm))?;
        let name = dump.stem.sidecar();
        if fsio::stat(dir.as_fd(), &name)?.is_some() {
            return Ok(());
        }
        fsio::write_whole(dir.as_fd(), TEMP, &name, &dump.bare().to_sidecar())
    }

    /// Notes that nothing of the dump is left over there that has no sidecar.
    pub fn forget_begun(&self, dump: &Dump) -> Result<()> {
        let Some(bak) = self.store.bak()? else { return Ok(()) };
        let place = Self::place(&dump.vm);
        let Ok(top) = fsio::open_dir(bak.as_fd(), BEGUN) else { return Ok(()) };
        let Ok(dir) = fsio::open_dir(top.as_fd(), &place) else { return Ok(()) };
        fsio::unlink(dir.as_fd(), &dump.stem.sidecar())?;
        fsio::remove_empty_dir(top.as_fd(), &place);
        Ok(())
    }

    /// What was begun and is in the outbox no more, though it never arrived. What can't be read is left out.
    pub fn abandoned(&self) -> Result<Vec<Dump>> {
        let Some(bak) = self.store.bak()? else { return Ok(Vec::new()) };
        let top = match fsio::open_dir(bak.as_fd(), BEGUN) {
            Ok(top) => top,
            Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot open the notes of what was begun"),
        };
        let places = fsio::names(top.as_fd()).context("cannot list the notes of what was begun")?;
        let noted = read_history(top.as_fd(), places.into_iter().map(|(place, _)| place))?;
        let gone = |dump: &Dump| matches!(self.store.look(&Self::place(&dump.vm), &dump.stem), Ok(None));
        Ok(noted.dumps.into_iter().filter(gone).collect())
    }
}
