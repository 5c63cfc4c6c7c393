//! bak-guests, bak-list, bak-dump, bak-restore: a module each; `driver` is what they share.

pub mod driver;
pub mod list;
pub mod origin;
pub mod pick;
pub mod restore;
