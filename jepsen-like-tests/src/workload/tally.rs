//! The running tally of a workload: what the screen shows and when a drain is done. The verdict does not use it.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hdrhistogram::Histogram;

use crate::op::Sent;

/// A moment of a running workload.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub attempted: u64,
    pub acked: u64,
    pub failed: u64,
    pub unknown: u64,
    /// Different messages received.
    pub consumed: u64,
    /// Acknowledged and not yet received.
    pub outstanding: u64,
    /// Of acknowledged sends, from the invocation.
    pub p99_us: u64,
    /// When the last send was acknowledged, on the run's clock.
    pub last_ack_us: u64,
    /// Longest time between two acknowledgements since [`Tally::mark`].
    pub gap_us: u64,
    /// Messages that an earlier run had left in the topic.
    pub leftovers: u64,
    /// When a message was last received, on the run's clock.
    pub last_receive_us: u64,
}

/// Latencies beyond an hour count as one hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Shared by the tasks of a run; every lock is held for a few map operations.
#[derive(Debug)]
pub(super) struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    progress: Progress,
    latency_us: Histogram<u64>,
    /// Acknowledged and not received.
    waiting: HashSet<Box<str>>,
    /// Received before the send had returned.
    early: HashSet<Box<str>>,
}

impl Tally {
    pub(super) fn new(now_us: u64) -> Self {
        let progress = Progress { last_ack_us: now_us, last_receive_us: now_us, ..Progress::default() };
        // With bounds of its own, since a saturating record never lets a histogram grow.
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).expect("the bounds are in order, two digits are fine");
        let inner = Inner { progress, latency_us, waiting: HashSet::new(), early: HashSet::new() };
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn attempted(&self) {
        self.lock().progress.attempted += 1;
    }

    pub(super) fn sent(&self, key: &str, outcome: &Sent, invoke_us: u64, return_us: u64) {
        let inner = &mut *self.lock();
        let early = inner.early.remove(key);
        match outcome {
            Sent::Stored { .. } => {
                inner.progress.acked += 1;
                inner.progress.gap_us = inner.progress.gap_us.max(return_us.saturating_sub(inner.progress.last_ack_us));
                inner.progress.last_ack_us = inner.progress.last_ack_us.max(return_us);
                inner.latency_us.saturating_record(return_us - invoke_us);
                if !early {
                    inner.waiting.insert(key.into());
                }
            }
            Sent::Failed(_) => inner.progress.failed += 1,
            Sent::Unknown(_) => inner.progress.unknown += 1,
        }
    }

    pub(super) fn received(&self, key: &str, attempt: u32, now_us: u64) {
        let inner = &mut *self.lock();
        inner.progress.last_receive_us = inner.progress.last_receive_us.max(now_us);
        if inner.waiting.remove(key) || (attempt == 1 && inner.early.insert(key.into())) {
            inner.progress.consumed += 1;
        }
    }

    pub(super) fn leftover(&self, now_us: u64) {
        let progress = &mut self.lock().progress;
        progress.leftovers += 1;
        progress.last_receive_us = progress.last_receive_us.max(now_us);
    }

    /// Starts a new measure of the longest gap.
    pub(super) fn mark(&self) {
        self.lock().progress.gap_us = 0;
    }

    pub(super) fn progress(&self) -> Progress {
        let inner = self.lock();
        let outstanding = inner.waiting.len() as u64;
        Progress { outstanding, p99_us: inner.latency_us.value_at_quantile(0.99), ..inner.progress.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_that_is_shown_is_the_one_that_was_measured() {
        let tally = Tally::new(0);
        for key in ["a", "b", "c"] {
            tally.attempted();
            tally.sent(key, &Sent::Stored { queue: None, offset: None }, 1_000, 6_000);
        }
        let shown = tally.progress().p99_us;
        assert!((4_900..=5_100).contains(&shown), "{shown} us shown, 5000 us measured");
    }
}
