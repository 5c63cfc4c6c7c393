//! What the bak tools share. `record` and `store` are where a reader begins.

pub mod args;
pub mod calendar;
pub mod command;
pub mod config;
pub mod drills;
pub mod far;
pub mod fsio;
pub mod hash;
pub mod jsonl;
pub mod ledger;
pub mod lock;
pub mod meter;
pub mod name;
pub mod outbox;
pub mod pass;
pub mod period;
pub mod record;
pub mod report;
pub mod select;
pub mod signals;
pub mod stop;
pub mod store;
pub mod table;
pub mod timetable;
pub mod units;
