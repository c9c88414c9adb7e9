//! What a run is: everything that is decided before it starts, drawn from its seed.
//!
//! Each seed draws its own group (segment size, timers, latencies, clients) and its own mix of faults: a run with few kinds goes
//! deeper into each of them than a run with all ("Swarm Testing", Groce et al., ISSTA 2012).

use std::time::Duration;

use quorate_raft::{FastPath, FlushMode};

use super::{dice::Dice, nemesis::Kind};

/// With async flush: time between background syncs.
const ASYNC_EVERY: Duration = Duration::from_millis(100);

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where all chance comes from.
    pub seed: u64,
    /// How long faults happen, in virtual time. The healing and the final checks come on top.
    pub length: Duration,
    /// Nodes of the group.
    pub nodes: u16,
    /// Clients, each with one request under way.
    pub clients: u32,
    /// Longest pause of a client between two requests.
    pub think: Duration,
    /// Largest entry.
    pub entry_bytes_max: usize,
    /// Segment size of the log.
    pub segment_bytes: u64,
    /// Sync or async flush.
    pub flush: FlushMode,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Shortest and longest election timeout.
    pub election_timeout: (Duration, Duration),
    /// Whether and how a leader's dead process is noticed at once.
    pub fast_path: Option<FastPath>,
    /// Latency of a healthy network, one way.
    pub latency: (Duration, Duration),
    /// Time of a healthy sync.
    pub sync: (Duration, Duration),
    /// Whether the floor moves.
    pub retention: bool,
    /// Whether nodes are removed and added while the rest goes on.
    pub members: bool,
    /// The faults of this run.
    pub faults: Vec<Kind>,
    /// Lanes of faults that run beside each other.
    pub lanes: u16,
    /// Mutant: a leader that comes back resumes its leadership.
    pub leader_restore: bool,
    /// Mutant: once the group is born, no disk syncs any more, and all say they do.
    pub lie_on_sync: bool,
    /// Events kept in words for a failure's report.
    pub events_kept: usize,
    /// Print every event as it happens.
    pub aloud: bool,
}

impl Scenario {
    /// The run of a seed: every setting and the mix of faults are drawn.
    pub fn drawn(seed: u64, length: Duration) -> Self {
        let mut dice = Dice::new(seed, "scenario");
        let heartbeat = Duration::from_millis(dice.pick(&[20, 50, 100]));
        let election = heartbeat * dice.pick(&[4, 6]);
        let mut faults: Vec<Kind> = Kind::ALL.into_iter().filter(|_| dice.chance(50)).collect();
        if faults.is_empty() {
            faults.extend(Kind::ALL);
        }
        Self {
            seed,
            length,
            nodes: dice.pick(&[3, 3, 3, 3, 5]),
            clients: dice.pick(&[2, 3, 4, 8]),
            think: Duration::from_millis(dice.pick(&[5, 20, 40, 100])),
            entry_bytes_max: 4096,
            segment_bytes: dice.pick(&[16, 32, 64]) << 10,
            flush: dice.pick(&[FlushMode::Sync, FlushMode::Sync, FlushMode::Sync, FlushMode::Async(ASYNC_EVERY)]),
            heartbeat,
            election_timeout: (election, election * 2),
            fast_path: Some(FastPath {
                rest: dice.pick(&[Duration::from_secs(1), Duration::from_secs(5)]),
                ..FastPath::default()
            }),
            latency: (Duration::from_micros(100), Duration::from_micros(dice.pick(&[500, 1500, 5000]))),
            sync: (Duration::from_micros(300), Duration::from_micros(dice.pick(&[1000, 3000, 10_000]))),
            retention: dice.chance(75),
            members: false,
            faults,
            lanes: dice.within(1..=2) as u16,
            leader_restore: false,
            lie_on_sync: false,
            events_kept: super::trace::KEPT,
            aloud: false,
        }
    }

    /// A run without faults: for scripts that do everything by hand.
    pub fn calm(seed: u64) -> Self {
        Self { faults: Vec::new(), lanes: 0, ..Self::drawn(seed, Duration::ZERO) }
    }
}
