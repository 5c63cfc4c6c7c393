//! The framed writer alone, for `scripts/bench`: `frames [LEVEL] <stream >archive`. Prints the archive's SHA-256.

use std::fs::File;
use std::io::{stdin, stdout};
use std::os::fd::AsFd;

fn main() -> anyhow::Result<()> {
    let level = std::env::args().nth(1).map_or(Ok(bak_dump::frames::LEVEL), |level| level.parse())?;
    let input = File::from(stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(stdout().as_fd().try_clone_to_owned()?);
    bak_dump::frames::widen(&input);
    let how = (level, bak_dump::frames::threads());
    let written = bak_dump::frames::write(input, output, how, &|_| Ok(()), || ())?;
    eprintln!("{}  -", written.sha256);
    Ok(())
}
