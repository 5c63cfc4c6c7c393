//! bak-guests, bak-list, bak-dump, bak-scan, bak-verify, bak-restore: a module each; `driver` is what they share.

mod bar;
mod check;
mod claim;
mod drill;
pub mod driver;
pub mod dump;
mod fetch;
pub mod frames;
pub mod guests;
pub mod list;
pub mod origin;
pub mod pick;
mod place;
mod proof;
pub mod queue;
pub mod restore;
pub mod scan;
pub mod verify;
mod writers;
