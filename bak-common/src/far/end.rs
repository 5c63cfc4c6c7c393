//! When a run ends before it is done: we were asked to end, or the time is up.

use anyhow::{Error, Result};
use std::time::Duration;

use super::{Bounds, Far};
use crate::stop::{self, Stopped};

/// Says whether the time is up.
pub struct Time(Box<dyn Fn() -> bool + Send + Sync>);

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if (self.0)() { "up" } else { "not up" })
    }
}

/// The time is up.
#[derive(Debug)]
pub struct TimeIsUp;

impl std::fmt::Display for TimeIsUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the time is up")
    }
}

impl std::error::Error for TimeIsUp {}

/// Why a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    TimeIsUp,
    Stopped(Stopped),
}

impl End {
    /// What the run is the result of: a [`TimeIsUp`] or a [`Stopped`].
    pub fn error(self) -> Error {
        match self {
            End::TimeIsUp => TimeIsUp.into(),
            End::Stopped(stopped) => stopped.into(),
        }
    }

    /// How long the far side may take what is on its way, before the line is shut.
    pub fn patience(self) -> Duration {
        match self {
            End::TimeIsUp => Duration::from_secs(30),
            // All of it is to be over within five seconds.
            End::Stopped(_) => Duration::from_millis(1000),
        }
    }

    /// How long rsync may take to end by that.
    pub fn patience_of_rsync(self) -> Duration {
        self.patience() + Duration::from_millis(800)
    }

    /// Where a program that failed may have been asked to end together with us.
    pub fn soon() -> Option<Self> {
        stop::caught_soon().map(End::Stopped)
    }
}

impl Far {
    /// From now on long runs end when `is_up` says so, which is asked again all the time.
    pub fn until(&mut self, is_up: impl Fn() -> bool + Send + Sync + 'static) {
        self.time = Some(Time(Box::new(is_up)));
    }

    pub fn time_is_up(&self) -> bool {
        self.time.as_ref().is_some_and(|time| (time.0)())
    }

    /// Whether a run is to end now, or not to begin.
    pub(super) fn end(&self, bounds: &Bounds) -> Option<End> {
        let up = || (bounds.long && self.time_is_up()).then_some(End::TimeIsUp);
        stop::caught().map(End::Stopped).or_else(up)
    }

    pub(super) fn check(&self, bounds: &Bounds) -> Result<()> {
        self.end(bounds).map_or(Ok(()), |end| Err(end.error()))
    }
}
