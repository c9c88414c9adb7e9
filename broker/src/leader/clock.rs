//! Log time (LAW-CLOCK): what the leader stamps on what it proposes.
//!
//! ```text
//! log time = last stamp + monotonic time since then, bent towards the wall clock by at most 5 %
//! ```
//! The wall clock counts only while the clocks of peers agree with it to within ten seconds. A leader whose clock is further away
//! than that raises an alarm and lets log time run on by its monotonic clock, so a wrong clock neither delivers early nor stops
//! time. Log time that has fallen far behind (all nodes were down) jumps forward once the peers agree; it never goes back.
//! Followers feed it what they apply, so that the next leader continues where the last one stopped. Pure: time comes as arguments.

use std::time::Duration;

use quorate_proto::time::Timestamp;

/// How far clocks may differ before one of them counts as wrong.
pub(crate) const TOLERANCE: Duration = Duration::from_secs(10);

/// Log time gains or loses at most one part in this many on the wall clock.
const SLEW: i128 = 20;

/// What the two clocks of a node say.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The wall clock.
    pub wall: Timestamp,
    /// Time since some fixed point.
    pub monotonic: Duration,
}

/// Log time as this node reckons it.
#[derive(Debug)]
pub struct LogClock {
    /// Log time at `monotonic`, in microseconds; `None` before anything was stamped.
    at: Option<u64>,
    monotonic: Duration,
    /// Highest stamp given or seen.
    last: Timestamp,
    /// Peers agree with this node's wall clock.
    trusted: bool,
}

impl Default for LogClock {
    fn default() -> Self {
        Self::new()
    }
}

impl LogClock {
    /// A clock that knows nothing yet.
    pub fn new() -> Self {
        Self { at: None, monotonic: Duration::ZERO, last: Timestamp(0), trusted: false }
    }

    /// A stamp was applied here. Called while following, soon after it happened; older stamps change nothing.
    pub fn follow(&mut self, reading: Reading, stamp: Timestamp) {
        if stamp > self.last {
            self.last = stamp;
            self.at = Some(stamp.0.saturating_mul(1000));
            self.monotonic = reading.monotonic;
        }
    }

    /// What the peers' wall clocks say, at the beginning of a leadership and from time to time. Without peers (`None`) this
    /// node's clock is all there is.
    ///
    /// Returns how far this node is away from its peers if that is too far.
    pub fn compare(&mut self, reading: Reading, peers: Option<&[Timestamp]>) -> Option<Duration> {
        let away = |peer: &Timestamp| peer.since(reading.wall).max(reading.wall.since(*peer));
        let nearest = match peers {
            None => Some(Duration::ZERO),
            Some(peers) => peers.iter().map(away).min(),
        };
        // Nobody answered: what was known before still holds.
        let nearest = nearest?;
        self.trusted = nearest <= TOLERANCE;
        if self.trusted && self.lag(reading) > TOLERANCE {
            self.at = Some(reading.wall.0.saturating_mul(1000));
            self.monotonic = reading.monotonic;
        }
        (!self.trusted).then_some(nearest)
    }

    /// How far log time is behind the wall clock.
    pub fn lag(&self, reading: Reading) -> Duration {
        self.reckon(reading).map_or(Duration::ZERO, |now| reading.wall.since(Timestamp(now / 1000)))
    }

    /// Log time now. Without a stamp ever given, the wall clock.
    pub fn now(&self, reading: Reading) -> Timestamp {
        self.reckon(reading).map_or(reading.wall, |now| Timestamp(now / 1000)).max(self.last)
    }

    /// The next stamp: log time now, at least `applied`, the last stamp applied, and at least every stamp given before.
    pub fn stamp(&mut self, reading: Reading, applied: Timestamp) -> Timestamp {
        let now = self.reckon(reading).unwrap_or(reading.wall.0.saturating_mul(1000));
        self.at = Some(now.max(applied.0.saturating_mul(1000)));
        self.monotonic = reading.monotonic;
        self.last = self.last.max(applied).max(Timestamp(now / 1000));
        self.last
    }

    /// Log time in microseconds.
    fn reckon(&self, reading: Reading) -> Option<u64> {
        let elapsed = reading.monotonic.saturating_sub(self.monotonic).as_micros() as i128;
        let straight = i128::from(self.at?) + elapsed;
        let bend = if self.trusted {
            let behind = i128::from(reading.wall.0) * 1000 - straight;
            behind.clamp(-elapsed / SLEW, elapsed / SLEW)
        } else {
            0
        };
        u64::try_from(straight + bend).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1000;

    fn at(wall_ms: u64, monotonic_ms: u64) -> Reading {
        Reading { wall: Timestamp(wall_ms), monotonic: Duration::from_millis(monotonic_ms) }
    }

    #[test]
    fn the_first_stamp_ever_is_the_wall_clock() {
        assert_eq!(LogClock::new().stamp(at(1000 * S, 5), Timestamp(0)), Timestamp(1000 * S));
    }

    #[test]
    fn stamps_never_go_back_though_the_wall_clock_does() {
        let mut clock = LogClock::new();
        assert_eq!(clock.compare(at(1000 * S, 0), None), None);
        let mut last = Timestamp(0);
        for (wall, monotonic) in [(1000 * S, 0), (1001 * S, 1000), (400 * S, 1500), (0, 1500), (2000 * S, 3000)] {
            let stamp = clock.stamp(at(wall, monotonic), last);
            assert!(stamp >= last, "{stamp} after {last}");
            last = stamp;
        }
        assert!(last < Timestamp(1004 * S), "and a jump of the wall clock is not followed: {last}");
    }

    #[test]
    fn a_new_leader_continues_after_what_it_applied() {
        let mut clock = LogClock::new();
        clock.follow(at(7 * S, 100), Timestamp(5000 * S));
        assert_eq!(clock.stamp(at(8 * S, 1100), Timestamp(5000 * S)), Timestamp(5001 * S));
        assert_eq!(clock.stamp(at(8 * S, 1100), Timestamp(6000 * S)), Timestamp(6000 * S));
    }

    #[test]
    fn log_time_is_bent_towards_a_trusted_wall_clock_by_a_twentieth() {
        let mut clock = LogClock::new();
        clock.follow(at(0, 0), Timestamp(100 * S));
        assert_eq!(clock.compare(at(104 * S, 0), Some(&[Timestamp(104 * S)])), None);
        assert_eq!(clock.stamp(at(124 * S, 20 * S), Timestamp(0)), Timestamp(121 * S), "20 s passed, 1 s gained");
        assert_eq!(clock.stamp(at(224 * S, 120 * S), Timestamp(0)), Timestamp(224 * S), "and then it is there");
        clock.compare(at(220 * S, 120 * S), Some(&[Timestamp(220 * S)]));
        assert_eq!(clock.stamp(at(240 * S, 140 * S), Timestamp(0)), Timestamp(243 * S), "ahead, it loses");
    }

    #[test]
    fn a_leader_far_from_its_peers_raises_an_alarm_and_runs_on_by_its_monotonic_clock() {
        let mut clock = LogClock::new();
        clock.follow(at(0, 0), Timestamp(100 * S));
        let alarm = clock.compare(at(9000 * S, 0), Some(&[Timestamp(100 * S), Timestamp(101 * S)]));
        assert_eq!(alarm, Some(Duration::from_secs(8899)));
        assert_eq!(clock.stamp(at(9100 * S, 100 * S), Timestamp(0)), Timestamp(200 * S));
    }

    #[test]
    fn log_time_that_stood_still_jumps_forward_once_a_peer_agrees() {
        let mut clock = LogClock::new();
        clock.follow(at(9000 * S, 0), Timestamp(100 * S));
        assert_eq!(clock.lag(at(9000 * S, 0)), Duration::from_secs(8900));
        assert_eq!(clock.compare(at(9000 * S, 0), Some(&[Timestamp(1), Timestamp(9001 * S)])), None);
        assert_eq!(clock.stamp(at(9000 * S, 0), Timestamp(100 * S)), Timestamp(9000 * S));
    }

    #[test]
    fn silence_of_the_peers_changes_nothing() {
        let mut clock = LogClock::new();
        clock.follow(at(0, 0), Timestamp(100 * S));
        assert_eq!(clock.compare(at(9000 * S, 0), Some(&[])), None);
        assert_eq!(clock.stamp(at(9000 * S, 0), Timestamp(0)), Timestamp(100 * S));
    }
}
