//! The leader's alarm clock: makes delayed messages visible when log time has come to them.
//!
//! Runs on every node, sleeps until the next thing is due, and proposes only while this node leads. Nothing is kept between two
//! rounds: what is due is in the machine, and a proposal that comes twice, from here or from the leader before, is refused by apply.
//! One proposal is under way at a time, so that a burst of due messages does not crowd out sends.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use quorate_proto::time::Timestamp;
use quorate_raft::Term;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Leader;
use crate::{
    machine::{Command, DelayId, Deliver, Reply},
    schedule::{Portion, Schedule},
};

/// Longest sleep; also what a follower looks after its gauge.
const LOOK: Duration = Duration::from_secs(1);
/// Rest after a proposal that was not taken.
const REST: Duration = Duration::from_millis(20);
/// Most messages of one proposal.
const COMMANDS_MAX: usize = 1024;
/// What counts as late.
const LATE: Duration = Duration::from_millis(100);

/// The timer of one node.
pub(crate) struct Timer {
    /// Reads, plans and proposes.
    pub leader: Arc<Leader>,
}

impl Timer {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let leader = &self.leader;
        let mut schedule = Schedule::new(leader.shared.clone());
        let mut leadership = leader.group.leader();
        let waiters = leader.shared.waiters().clone();
        let (mut missing, mut forgiven) = (BTreeSet::new(), Instant::now());
        loop {
            if forgiven.elapsed() > LOOK {
                (missing, forgiven) = (BTreeSet::new(), Instant::now());
            }
            waiters.awake();
            let view = *leadership.borrow_and_update();
            // What is due waits with everybody else while there is hardly room for acks.
            let works = view.serving && !leader.space.is_spent();
            let rest = if works { self.work(&mut schedule, view.term, &mut missing).await } else { LOOK };
            let pending = leader.shared.read(|machine| machine.delay_stats().pending);
            leader.metrics.delayed.set(i64::try_from(pending).unwrap_or(i64::MAX));
            waiters.sleep_until(if view.serving { leader.clock.now().after(rest) } else { Timestamp(0) });
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = waiters.sooner() => {}
                () = tokio::time::sleep(rest) => {}
                changed = leadership.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Proposes what is due until nothing is. Returns how long to sleep. `missing` are messages whose body no node had lately.
    async fn work(&self, schedule: &mut Schedule, term: Term, missing: &mut BTreeSet<DelayId>) -> Duration {
        let leader = &self.leader;
        let portion = Portion { commands_max: COMMANDS_MAX, bytes_max: leader.config.limits.batch_bytes_max };
        loop {
            leader.clock.follow(leader.shared.log_now());
            let now = leader.clock.now();
            let due = match schedule.due(term, now, portion) {
                Ok(due) => due,
                Err(error) => {
                    warn!(%error, "the body of a delayed message could not be read; it waits");
                    return LOOK;
                }
            };
            let mut deliveries = Vec::with_capacity(due.len());
            for (id, found) in due.into_iter().filter(|(id, _)| !missing.contains(id)).collect::<Vec<_>>() {
                match leader.body(found).await {
                    Some(record) => deliveries.push(Deliver { id, record }),
                    // It stays pending; a later look, or another leader, may find it.
                    None => drop(missing.insert(id)),
                }
            }
            if deliveries.is_empty() {
                let next = schedule.next().map_or(LOOK, |next| next.since(now));
                let soonest = if missing.is_empty() { Duration::from_millis(1) } else { LATE };
                return next.clamp(soonest, LOOK);
            }
            if !self.propose(deliveries).await {
                return REST;
            }
        }
    }

    /// Whether any of these messages became visible.
    async fn propose(&self, deliveries: Vec<Deliver>) -> bool {
        let times: Vec<Timestamp> = deliveries.iter().map(|deliver| deliver.id.due).collect();
        let commands = deliveries.into_iter().map(Command::Deliver).collect();
        match self.leader.proposer.propose(commands).await {
            Ok(applied) => {
                let done = applied.replies.iter().zip(times).filter(|(reply, _)| matches!(reply, Reply::Sent { .. }));
                let lateness: Vec<Duration> = done.map(|(_, due)| applied.now.since(due)).collect();
                let metrics = &self.leader.metrics;
                metrics.delayed_delivered.add(lateness.len() as u64);
                metrics.delayed_late.add(lateness.iter().filter(|late| **late > LATE).count() as u64);
                !lateness.is_empty()
            }
            Err(error) => {
                debug!(%error, "delayed messages not delivered yet");
                false
            }
        }
    }
}
