//! The database of guests and what is due for each: `<vm>:<STATUS>`, shared by all nodes that dump.
//!
//! `status` says which states there are, which moves are legal, and what an observation makes of a guest; `format` how the
//! files read; `db` how they are locked and written. bak-dump needs [`Db::claim`] alone.

mod claim;
pub mod cli;
mod db;
mod edit;
mod format;
mod observe;
mod print;
mod show;
mod status;

pub use claim::{Claim, Outcome};
pub use db::Db;
pub use status::Status;
