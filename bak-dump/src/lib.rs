//! bak-guests, bak-list, bak-dump, bak-restore: a module each; `driver` is what they share.

mod claim;
pub mod driver;
pub mod dump;
pub mod guests;
pub mod list;
pub mod origin;
pub mod pick;
pub mod queue;
pub mod restore;
