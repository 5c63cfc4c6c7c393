//! The database of guests and what is due for each: `<vm>:<STATUS>`, shared by all nodes that dump.
//!
//! `status` says which states there are, which moves are legal, and what an observation makes of a guest; `format` how the
//! files read; `db` how they are locked and written; `check` what monitoring is told. bak-dump needs [`Db::claim`] alone.

mod archive;
mod batch;
mod check;
mod claim;
pub mod cli;
mod db;
mod edit;
mod evidence;
pub mod format;
mod gather;
mod hold;
mod monitor;
mod nagios;
mod observe;
mod print;
mod prometheus;
mod repair;
mod show;
mod status;
mod table;

pub use claim::{Claim, Outcome};
pub use db::Db;
pub use status::Status;
