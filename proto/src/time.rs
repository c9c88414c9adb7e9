//! Points in time and the clock door. Nothing else in the product reads the system's clocks.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This much later; saturates.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to here; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As the wire has it.
    pub fn to_proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: i64::try_from(self.0 / 1000).unwrap_or(i64::MAX),
            nanos: (self.0 % 1000) as i32 * 1_000_000,
        }
    }

    /// From the wire; times before 1970 become 0.
    pub fn from_proto(time: &prost_types::Timestamp) -> Self {
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        let nanos = u64::try_from(time.nanos).unwrap_or(0);
        Self(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// Tells time. A test hands in its own.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock; may jump.
    fn now(&self) -> Timestamp;
    /// Time since some fixed point; never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_survives_the_wire_to_the_millisecond() {
        let time = Timestamp(1_700_000_000_123);
        assert_eq!(Timestamp::from_proto(&time.to_proto()), time);
        assert_eq!(Timestamp::from_proto(&prost_types::Timestamp { seconds: -5, nanos: 7 }), Timestamp(0));
    }
}
