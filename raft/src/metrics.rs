//! Every metric of this crate: its name, its kind, its help, and what is counted as it happens.
//!
//! Counting costs one or two atomic additions and takes no lock, because some of it is done for every entry. What can be read off the node's
//! state is not counted here but looked at when somebody asks ([`crate::Group::metrics`]). The layer above writes texts of it, with the
//! same types for its own numbers; this crate knows no format.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::types::{NodeId, Term};

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins at 0 when the process starts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of values below bounds, and their sum.
    Histogram,
}

impl Kind {
    /// Its word in texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Exported name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One line of help.
    pub help: &'static str,
}

/// The values of one metric.
#[derive(Debug, Clone)]
pub struct Family {
    /// Which.
    pub metric: Metric,
    /// One value for each set of labels.
    pub samples: Vec<Sample>,
}

/// One value.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Values of the labels, in the order of [`Metric::labels`].
    pub labels: Vec<String>,
    /// The number or the distribution.
    pub value: Value,
}

/// What was measured.
#[derive(Debug, Clone)]
pub enum Value {
    /// A counter or a gauge.
    Number(f64),
    /// A histogram.
    Spread(Spread),
}

/// A histogram as it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// Upper bounds, and how many values were at most that.
    pub buckets: Vec<(f64, u64)>,
    /// How many there were.
    pub count: u64,
    /// What they add up to.
    pub sum: f64,
}

impl Metric {
    /// Its one value.
    pub fn is(&self, value: f64) -> Family {
        Family { metric: *self, samples: vec![Sample { labels: Vec::new(), value: Value::Number(value) }] }
    }

    /// Its distribution.
    pub fn spreads(&self, histogram: &Histogram) -> Family {
        Family { metric: *self, samples: vec![Sample { labels: Vec::new(), value: Value::Spread(histogram.read()) }] }
    }

    /// Its values by labels.
    pub fn each(&self, values: impl IntoIterator<Item = (Vec<String>, f64)>) -> Family {
        let sample = |(labels, value)| Sample { labels, value: Value::Number(value) };
        Family { metric: *self, samples: values.into_iter().map(sample).collect() }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count since start.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of whole values below fixed bounds. Recording is two additions.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One more than bounds: the last holds what is above all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// Recorded units in one exported unit.
    scale: f64,
}

impl Histogram {
    /// Of plain numbers.
    pub fn of(bounds: &'static [u64]) -> Self {
        Self::scaled(bounds, 1.0)
    }

    /// Of times, exported in seconds; bounds in microseconds.
    pub fn of_seconds(bounds: &'static [u64]) -> Self {
        Self::scaled(bounds, 1e6)
    }

    /// Of times, exported in milliseconds; bounds in microseconds.
    pub fn of_millis(bounds: &'static [u64]) -> Self {
        Self::scaled(bounds, 1e3)
    }

    fn scaled(bounds: &'static [u64], scale: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0), scale }
    }

    /// Counts a value.
    pub fn record(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Counts a time.
    pub fn record_time(&self, time: Duration) {
        self.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// What was counted so far.
    pub fn read(&self) -> Spread {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(self.bounds.len());
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        for (bound, more) in self.bounds.iter().zip(&counts) {
            count += more;
            buckets.push((*bound as f64 / self.scale, count));
        }
        count += counts.last().copied().unwrap_or(0);
        Spread { buckets, count, sum: self.sum.load(Ordering::Relaxed) as f64 / self.scale }
    }
}

/// Declares metrics and the list of them.
#[macro_export]
macro_rules! declare_metrics {
    ($($(#[doc = $help:literal])+ $metric:ident = $kind:ident $name:literal [$($label:literal),*];)*) => {
        $($(#[doc = $help])+ pub static $metric: $crate::metrics::Metric = $crate::metrics::Metric {
            name: $name,
            kind: $crate::metrics::Kind::$kind,
            labels: &[$($label),*],
            help: concat!($($help),+).trim_ascii(),
        };)*

        /// Every metric that is declared here.
        pub static ALL: &[&$crate::metrics::Metric] = &[$(&$metric),*];
    };
}

declare_metrics! {
    /// 1 while this node leads its group and serves.
    IS_LEADER = Gauge "quorate_raft_is_leader" [];
    /// 1 for the role that this node has.
    ROLE = Gauge "quorate_raft_role" ["role"];
    /// Highest term this node has seen.
    TERM = Gauge "quorate_raft_term" [];
    /// Index of this node's last entry.
    LAST_LOG_INDEX = Gauge "quorate_raft_last_log_index" [];
    /// Index of the last entry that this node knows to be committed.
    COMMIT_INDEX = Gauge "quorate_raft_commit_index" [];
    /// Index of the last entry that this node has applied.
    APPLIED_INDEX = Gauge "quorate_raft_applied_index" [];
    /// Voters of the group.
    VOTERS = Gauge "quorate_raft_voters" [];
    /// 1 while this node hears from the peer.
    PEER_ALIVE = Gauge "quorate_raft_peer_alive" ["peer"];
    /// Entries that the leader has and the peer has not confirmed; told by the leader only.
    FOLLOWER_LAG_ENTRIES = Gauge "quorate_raft_follower_lag_entries" ["peer"];
    /// Bytes of the log that the leader has and the peer has not confirmed; told by the leader only.
    FOLLOWER_LAG_BYTES = Gauge "quorate_raft_follower_lag_bytes" ["peer"];
    /// Times that another node than before became the leader, as this node saw it.
    LEADER_CHANGES = Counter "quorate_raft_leader_changes_total" [];
    /// Leaders of a new term that this node has seen.
    ELECTIONS = Counter "quorate_raft_elections_total" [];
    /// From the last sign of a leader to the first of its successor, as this node saw it.
    ELECTION_SECONDS = Histogram "quorate_raft_election_seconds" [];
    /// Time in which this node knew no leader with a quorum behind it, so that nothing was acknowledged.
    UNAVAILABLE_SECONDS = Counter "quorate_raft_unavailable_seconds_total" [];
    /// Time of one sync of the log or of the hard state.
    APPEND_FSYNC_SECONDS = Histogram "quorate_raft_append_fsync_seconds" [];
    /// Entries written and synced together.
    GROUP_COMMIT_BATCH_SIZE = Histogram "quorate_raft_group_commit_batch_size" [];
    /// Bytes written and synced together.
    GROUP_COMMIT_BATCH_BYTES = Histogram "quorate_raft_group_commit_batch_bytes" [];
    /// Entries appended by this node since it started.
    ENTRIES = Counter "quorate_raft_entries_appended_total" [];
    /// Position at which the log ends.
    END_POSITION = Gauge "quorate_raft_end_position_bytes" [];
    /// First position that is kept.
    FLOOR_POSITION = Gauge "quorate_raft_floor_position_bytes" [];
    /// Files of this node that it knows to be damaged and that are not put back yet.
    DAMAGED_FILES = Gauge "quorate_raft_damaged_files" [];
    /// 1 while this node may have forgotten what it acknowledged and stays out of elections.
    UNSURE = Gauge "quorate_raft_unsure" [];
}

/// Times of syncs: from a fast SSD to a disk in trouble.
const SYNC_US: [u64; 14] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];
/// Times without a leader: from a planned change to an outage.
const ELECTION_US: [u64; 12] = [
    10_000, 50_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 1_500_000, 2_500_000, 5_000_000, 10_000_000,
    60_000_000,
];
/// Entries of one write.
const BATCH_ENTRIES: [u64; 9] = [1, 2, 4, 8, 16, 32, 64, 256, 1024];
/// Bytes of one write.
const BATCH_BYTES: [u64; 10] =
    [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20];

/// What this node counts as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub leader_changes: Counter,
    pub elections: Counter,
    pub election_seconds: Histogram,
    pub unavailable_us: Counter,
    pub sync_seconds: Histogram,
    pub batch_entries: Histogram,
    pub batch_bytes: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            leader_changes: Counter::default(),
            elections: Counter::default(),
            election_seconds: Histogram::of_seconds(&ELECTION_US),
            unavailable_us: Counter::default(),
            sync_seconds: Histogram::of_seconds(&SYNC_US),
            batch_entries: Histogram::of(&BATCH_ENTRIES),
            batch_bytes: Histogram::of(&BATCH_BYTES),
        }
    }
}

/// Tells elections and outages from what the node sees of its leader, a few times per election timeout.
#[derive(Debug)]
pub(crate) struct Tenure {
    term: Term,
    leader: Option<NodeId>,
    /// The last sign of a leader.
    sign: Option<Instant>,
    /// It was missed since.
    missed: bool,
    /// Until when time without a leader is counted.
    counted: Instant,
}

impl Tenure {
    pub(crate) fn new(now: Instant) -> Self {
        Self { term: Term(0), leader: None, sign: None, missed: true, counted: now }
    }

    /// Takes note of the leader of `term` whose last sign was at `sign`, or of there being none.
    pub(crate) fn look(&mut self, now: Instant, term: Term, leader: Option<(NodeId, Instant)>, metrics: &Metrics) {
        let count = |from: Instant| {
            let gone = now.saturating_duration_since(from);
            metrics.unavailable_us.add(u64::try_from(gone.as_micros()).unwrap_or(u64::MAX));
        };
        let Some((leader, sign)) = leader else {
            count(self.counted);
            (self.counted, self.missed) = (now, true);
            return;
        };
        let is_new = term > self.term;
        if is_new || self.missed {
            // Without a new term it is the same leader, found again.
            count(self.counted);
        }
        if is_new {
            metrics.elections.add(1);
            if let Some(before) = self.sign {
                metrics.election_seconds.record_time(now.saturating_duration_since(before));
            }
            self.term = term;
        }
        if self.leader.is_some_and(|before| before != leader) {
            metrics.leader_changes.add(1);
        }
        (self.leader, self.sign, self.missed) = (Some(leader), Some(sign), false);
        self.counted = sign;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_value_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::of(&[1, 10]);
        for value in [0, 1, 2, 10, 11] {
            histogram.record(value);
        }
        assert_eq!(histogram.read(), Spread { buckets: vec![(1.0, 2), (10.0, 4)], count: 5, sum: 24.0 });
        let times = Histogram::of_seconds(&[500_000]);
        times.record_time(Duration::from_millis(250));
        assert_eq!(times.read(), Spread { buckets: vec![(0.5, 1)], count: 1, sum: 0.25 });
    }

    #[test]
    fn an_election_lasts_from_the_last_sign_of_the_old_leader_to_the_first_of_the_new() {
        let (metrics, start) = (Metrics::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let (a, b) = (NodeId::new(1, 1), NodeId::new(2, 1));
        let mut tenure = Tenure::new(start);
        tenure.look(at(300), Term(1), Some((a, at(290))), &metrics);
        assert_eq!((metrics.elections.value(), metrics.leader_changes.value()), (1, 0));
        assert_eq!(metrics.unavailable_us.value(), 300_000, "from the start on nobody led");
        // It goes silent, is missed, and another one is there.
        tenure.look(at(400), Term(1), Some((a, at(350))), &metrics);
        tenure.look(at(700), Term(2), None, &metrics);
        tenure.look(at(850), Term(2), Some((b, at(850))), &metrics);
        assert_eq!((metrics.elections.value(), metrics.leader_changes.value()), (2, 1));
        assert_eq!(metrics.unavailable_us.value(), 300_000 + 500_000);
        let elections = metrics.election_seconds.read();
        assert_eq!((elections.count, elections.sum), (1, 0.5));
        // As long as it is there, nothing is counted.
        tenure.look(at(900), Term(2), Some((b, at(890))), &metrics);
        assert_eq!(metrics.unavailable_us.value(), 800_000);
    }

    #[test]
    fn a_leader_that_is_found_again_in_its_term_is_no_election() {
        let (metrics, start) = (Metrics::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let a = NodeId::new(1, 1);
        let mut tenure = Tenure::new(start);
        tenure.look(at(0), Term(3), Some((a, at(0))), &metrics);
        tenure.look(at(2_000), Term(3), None, &metrics);
        tenure.look(at(2_500), Term(3), Some((a, at(2_500))), &metrics);
        assert_eq!((metrics.elections.value(), metrics.leader_changes.value()), (1, 0));
        assert_eq!(metrics.unavailable_us.value(), 2_500_000);
    }
}
