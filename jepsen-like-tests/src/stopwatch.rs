//! The run's clock: microseconds that never step, for the spans of ops.

use std::time::Duration;

use tokio::time::Instant;

/// Counts on from a base by the runtime's monotonic time, which is virtual in a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    base_us: u64,
    start: Instant,
}

impl Stopwatch {
    /// Reads `base_us` now. `dev` passes the Unix time, so that histories of one machine can be laid side by side.
    pub fn start(base_us: u64) -> Self {
        Self { base_us, start: Instant::now() }
    }

    /// The present, never below an earlier answer.
    pub fn now_us(&self) -> u64 {
        self.base_us + u64::try_from(self.start.elapsed().as_micros()).expect("a run is shorter than 500,000 years")
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
