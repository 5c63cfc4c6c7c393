//! bak-prune: read, plan, apply, report. `policy` knows the rules, `plan` what they do to a store, `apply` does it.

pub mod apply;
pub mod calendar;
pub mod cli;
pub mod forecast;
pub mod free;
pub mod gone;
pub mod held;
pub mod look;
pub mod offsite;
pub mod output;
pub mod places;
pub mod plan;
pub mod policy;
pub mod protect;
pub mod remote;
pub mod request;
pub mod simulate;
pub mod space;
