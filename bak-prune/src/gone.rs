//! Guests that are gone: who they are, and how their last dumps age out. Pure.
//!
//! Rules that count dumps never let the last ones of a guest go that is not dumped any more. So a guest that somebody has
//! named as gone is judged as if it had been dumped every day since, and its dumps leave as they would have left then.

use bak_common::calendar::{Time, Zone};
use bak_common::name::GuestName;
use bak_common::record::Head;

use crate::policy::Moment;

/// What a dump is called that a gone guest would have had.
pub const NAME: &str = "a dump that it would have had";
/// The first reason for what becomes of a gone guest's dumps.
pub const WHY: &str = "its guest is gone: judged as if dumped every day since";

const DAY_S: i64 = 86_400;
/// More dumps than any rule would count for a guest dumped daily: forty years of them.
const DAYS_MAX: i64 = 40 * 366;

/// Whether `gone`, as bak-state or anybody else names it, is this guest. Without `uid` or `kind`: any guest called so.
pub fn is(gone: &Head, vm: &GuestName, kind: &str, uid: Option<&str>) -> bool {
    gone.vm == *vm
        && gone.kind.as_deref().is_none_or(|own| own == kind)
        && gone.uid.as_deref().is_none_or(|own| Some(own) == uid)
}

/// When a guest last dumped at `last` would have been dumped until `now`.
pub fn since(last: Option<Moment>, now: Time, zone: Zone) -> Vec<Moment> {
    let Some(last) = last else { return Vec::new() };
    let days = now.since(last.started) / DAY_S;
    let moment = |day: i64| {
        let started = last.started.plus(day * DAY_S);
        Moment { started, local: zone.local(started) }
    };
    ((days - DAYS_MAX).max(0) + 1..=days).map(moment).collect()
}
