//! How fast bytes may pass, at any moment.

use std::time::{Duration, Instant};

/// How often it looks what the speed is.
pub(super) const LOOK: Duration = Duration::from_millis(100);
const CREDIT: Duration = Duration::from_millis(200);

/// How fast a transfer may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speed {
    /// As fast as it can.
    #[default]
    Free,
    /// Bytes a second.
    Rate(u64),
    /// Not at all, for now.
    Wait,
}

impl Speed {
    /// As it stands in the meter's file.
    pub(super) fn number(self) -> u64 {
        match self {
            Speed::Free => 0,
            Speed::Rate(rate) => rate.clamp(1, u64::MAX - 1),
            Speed::Wait => u64::MAX,
        }
    }

    pub(super) fn of(number: u64) -> Self {
        match number {
            0 => Speed::Free,
            u64::MAX => Speed::Wait,
            rate => Speed::Rate(rate),
        }
    }
}

/// Keeps a stream to a speed that may change at any time. A pause of the sender is made up for by at most [`CREDIT`].
pub struct Throttle {
    speed: Speed,
    /// When the next bytes may go.
    next: Instant,
}

impl Throttle {
    #[expect(clippy::new_without_default, reason = "it begins now")]
    pub fn new() -> Self {
        Self { speed: Speed::Free, next: Instant::now() }
    }

    /// How many bytes may go at once now, at most `most`; or how long to wait before asking again, as the speed may have
    /// changed by then.
    pub fn turn(&mut self, speed: Speed, most: usize) -> Result<usize, Duration> {
        let now = Instant::now();
        self.speed = speed;
        match speed {
            Speed::Wait => self.next = now + LOOK,
            // About 50 ms' worth: a line that is shared is not held for longer by us.
            Speed::Rate(rate) if self.next <= now => {
                return Ok(usize::try_from(rate / 20).unwrap_or(most).clamp(512.min(most), most));
            }
            Speed::Rate(_) => {}
            Speed::Free => {
                self.next = now;
                return Ok(most);
            }
        }
        Err(self.next.saturating_duration_since(now).min(LOOK))
    }

    /// So much has gone.
    pub fn passed(&mut self, count: usize) {
        if let Speed::Rate(rate) = self.speed {
            let earliest = Instant::now().checked_sub(CREDIT).unwrap_or(self.next);
            self.next = self.next.max(earliest) + Duration::from_secs_f64(count as f64 / rate as f64);
        }
    }
}
