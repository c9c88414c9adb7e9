//! The log as the proposer sees it, and the clock that stamps what goes there.
//!
//! [`TermClock`] is the node's one [`LogClock`]: followed while others lead, stamping while this node does. When log time lags far
//! behind the wall clock at the beginning of a leadership (all nodes were down), the first batch waits, at most a second, for the
//! peers' clocks; in an ordinary failover it never does.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quorate_proto::time::{Clock, Timestamp};
use quorate_raft::{Group, ProposeError};
use tracing::{error, info};

use super::{
    clock::{LogClock, Reading, TOLERANCE},
    propose::{Log, LogFuture},
};
use crate::{
    metrics::Metrics,
    replica::{Applied, Replica, Shared},
};

/// Longest wait for the peers' clocks.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks the other nodes of the group for their wall clocks.
pub(crate) trait PeerClocks: Send + Sync + 'static {
    /// Of those that answer within `timeout`; `None` if there are no others.
    fn ask(&self, timeout: Duration) -> LogFuture<Option<Vec<Timestamp>>>;
}

/// Log time on this node.
pub(crate) struct TermClock {
    clock: Arc<dyn Clock>,
    log: Mutex<LogClock>,
    /// The leadership in which the peers were asked because log time lagged.
    asked_in: AtomicU64,
    metrics: Arc<Metrics>,
}

impl TermClock {
    /// Log time over the node's clocks.
    pub fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { clock, log: Mutex::new(LogClock::new()), asked_in: AtomicU64::new(0), metrics }
    }

    /// The node's wall clock, for peers that compare.
    pub fn wall(&self) -> Timestamp {
        self.clock.now()
    }

    /// Log time now, for plans; what is stamped later is never below it by more than the wall clock's slew.
    pub fn now(&self) -> Timestamp {
        let reading = self.reading();
        self.with(|log| log.now(reading))
    }

    /// Takes note of the last stamp applied here.
    pub fn follow(&self, applied: Timestamp) {
        let reading = self.reading();
        self.with(|log| log.follow(reading, applied));
    }

    /// Compares with the peers' clocks and raises or clears the alarm.
    pub async fn compare(&self, peers: &dyn PeerClocks) {
        let others = peers.ask(ASK_TIMEOUT).await;
        let reading = self.reading();
        let alarm = self.with(|log| log.compare(reading, others.as_deref()));
        let before = self.metrics.clock_off_seconds.value();
        let off = alarm.map_or(0, |off| i64::try_from(off.as_secs()).unwrap_or(i64::MAX));
        self.metrics.clock_off_seconds.set(off);
        match (before, off) {
            (0, 0) => {}
            (0, _) => error!(seconds = off, "this node's clock is far from its peers'; log time does not follow it"),
            (_, 0) => info!("this node's clock agrees with its peers' again"),
            _ => {}
        }
    }

    fn lag(&self) -> Duration {
        let reading = self.reading();
        self.with(|log| log.lag(reading))
    }

    fn stamp(&self, applied: Timestamp) -> Timestamp {
        let reading = self.reading();
        self.with(|log| log.stamp(reading, applied))
    }

    fn reading(&self) -> Reading {
        Reading { wall: self.clock.now(), monotonic: self.clock.monotonic() }
    }

    fn with<R>(&self, f: impl FnOnce(&mut LogClock) -> R) -> R {
        f(&mut self.log.lock().expect("no panic while held"))
    }
}

/// The Raft group as a log for the proposer.
pub(crate) struct RaftLog {
    /// The group.
    pub group: Group<Replica>,
    /// Read side of the machine.
    pub shared: Shared,
    /// The clock that stamps.
    pub clock: Arc<TermClock>,
    /// The other nodes' clocks.
    pub peers: Arc<dyn PeerClocks>,
}

impl Log for RaftLog {
    fn propose(&self, payload: Bytes) -> LogFuture<Result<Applied, ProposeError>> {
        let group = self.group.clone();
        Box::pin(async move { group.propose(payload).await })
    }

    fn stamp(&self) -> LogFuture<Timestamp> {
        let (shared, clock, peers) = (self.shared.clone(), self.clock.clone(), self.peers.clone());
        let term = self.group.leader().borrow().term;
        Box::pin(async move {
            clock.follow(shared.log_now());
            if clock.lag() > TOLERANCE && clock.asked_in.swap(term.0, Ordering::Relaxed) != term.0 {
                clock.compare(peers.as_ref()).await;
            }
            clock.stamp(shared.log_now())
        })
    }
}
