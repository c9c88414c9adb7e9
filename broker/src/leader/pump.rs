//! What the leader does on its own from time to time: moves the floor when the log is too long or too old, keeps log time
//! honest, and mends damaged consume queue records that a receive has met. Runs on every node, so that a new leader starts from fresh
//! notes; only the leader proposes.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use quorate_proto::time::Timestamp;
use quorate_raft::{Group, Position, ProposeError};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Leader, PeerClocks, TermClock};
use crate::{
    config::{BrokerConfig, OnFull},
    machine::{Carry, Command},
    metrics::Losing,
    replica::{Replica, Shared},
    schedule::{Portion, Schedule},
    store::retention::{Level, Loss, losses},
};

/// How often the pump looks.
const TICK: Duration = Duration::from_millis(500);
/// How often a leader compares its clock with its peers'.
const COMPARE_CLOCKS: Duration = Duration::from_secs(30);

/// How often a leader looks who is about to lose messages.
const LOOK_AHEAD: Duration = Duration::from_secs(5);
/// Time between two warnings of that.
const WARN_AGAIN: Duration = Duration::from_secs(600);
/// Losses that are told one by one.
const LOSSES_TOLD: usize = 64;

/// The pump of one node.
pub(crate) struct Pump {
    /// The log.
    pub group: Group<Replica>,
    /// The machine.
    pub shared: Shared,
    /// Log time.
    pub clock: Arc<TermClock>,
    /// The other nodes' clocks.
    pub peers: Arc<dyn PeerClocks>,
    /// How much is kept.
    pub config: Arc<BrokerConfig>,
    /// Reads bodies and proposes.
    pub leader: Arc<Leader>,
}

impl Pump {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let leadership = self.group.leader();
        let mut compared: Option<(quorate_raft::Term, Instant)> = None;
        let mut ahead = LookAhead::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.clock.follow(self.shared.log_now());
            self.leader.mend_known().await;
            let view = *leadership.borrow();
            if !view.serving {
                ahead = self.forget();
                continue;
            }
            if compared.is_none_or(|(term, at)| term != view.term || at.elapsed() > COMPARE_CLOCKS) {
                self.clock.compare(self.peers.as_ref()).await;
                compared = Some((view.term, Instant::now()));
            }
            self.move_floor().await;
            if ahead.at.is_none_or(|at| at.elapsed() >= LOOK_AHEAD) {
                ahead = self.look_ahead(ahead);
            }
        }
    }

    /// Proposes a higher floor if retention asks for one, after the bodies of waiting messages below it went up.
    ///
    /// The order is safe whoever leads at each step: a body only moves up, new ones stand above every border that was crossed, and
    /// a floor is proposed only by a node whose own machine shows nothing waiting below it.
    async fn move_floor(&self) {
        let (retention, segment) = (&self.config.retention, self.config.storage.segment_bytes);
        let status = self.group.status();
        let by_size = floor_by_size(status.end, retention.log_bytes_max, segment);
        let by_age = (!retention.age_max.is_zero()).then(|| self.floor_by_age(retention.age_max)).flatten();
        let by_disk = self.floor_by_disk(status.floor);
        let wanted = by_size.max(by_age).max(by_disk);
        let Some(floor) = wanted.filter(|floor| *floor >= Position(status.floor.0 + segment)) else {
            return;
        };
        let Some(floor) = self.shared.read(|machine| machine.border_below(floor)) else { return };
        if !self.is_worth_it(status.floor, floor) || !self.carry(floor).await {
            return;
        }
        let lost: Vec<Loss> = self.shared.read(|machine| losses(machine, floor).collect());
        match self.group.propose_floor(floor).await {
            Ok(()) => {
                info!(%floor, early = wanted == by_disk, "floor moved");
                self.tell_lost(&lost);
            }
            // Proposed again at the next tick, here or by the next leader.
            Err(ProposeError::NotLeader { .. } | ProposeError::Overloaded | ProposeError::Unknown) => {
                debug!(%floor, "floor not moved");
            }
            Err(error @ (ProposeError::TooLarge(_) | ProposeError::Stopped(_))) => {
                debug!(%floor, %error, "floor not moved")
            }
        }
    }

    /// The end of the oldest segment, if the fullest disk of the group wants it gone and nothing is in the way. A segment at a time: the
    /// next one goes when this one's file is gone and the disk is still too full.
    fn floor_by_disk(&self, from: Position) -> Option<Position> {
        let level = self.leader.space.worst();
        if level < Level::Tight {
            return None;
        }
        let next = Position(from.0 + self.config.storage.segment_bytes);
        let gives_way = self.config.retention.on_full == OnFull::DeleteOldest && level >= Level::Scarce;
        self.shared.read(|machine| {
            let border = machine.border_below(next).filter(|border| *border > from)?;
            (gives_way || losses(machine, border).next().is_none()).then_some(border)
        })
    }

    /// Says what a floor that has moved took from whom.
    fn tell_lost(&self, lost: &[Loss]) {
        for Loss { topic, group, messages } in lost.iter().take(LOSSES_TOLD) {
            let group = group.as_ref().map_or("(none has read the topic)", |group| group.as_str());
            warn!(%topic, group, messages, "messages were dropped that had not been consumed");
        }
        self.leader.metrics.dropped_unconsumed.add(lost.iter().map(|loss| loss.messages).sum());
    }

    /// Who loses what with the oldest segment, and when, if that is near: a seventh of `age_max`, or the next full segment or disk.
    fn look_ahead(&self, before: LookAhead) -> LookAhead {
        let now = Some(Instant::now());
        let Some((border, left)) = self.next_to_go() else { return LookAhead { at: now, ..self.forget() } };
        let lost: Vec<Loss> = self.shared.read(|machine| losses(machine, border).take(LOSSES_TOLD).collect());
        if lost.is_empty() {
            return LookAhead { at: now, ..self.forget() };
        }
        let label = |loss: &Loss| {
            let group = loss.group.as_ref().map_or_else(String::new, ToString::to_string);
            ([loss.topic.to_string(), group], loss.messages)
        };
        self.set_losing(Losing { within: Some(left), messages: lost.iter().map(label).collect() });
        if before.border == Some(border) && before.warned.is_some_and(|at| at.elapsed() < WARN_AGAIN) {
            return LookAhead { at: now, ..before };
        }
        for Loss { topic, group, messages } in &lost {
            let group = group.as_ref().map_or("(none has read the topic)", |group| group.as_str());
            warn!(%topic, group, messages, in_seconds = left.as_secs(), "messages that are not consumed will be dropped");
        }
        LookAhead { at: now, border: Some(border), warned: now }
    }

    /// Nothing is about to be lost, or another node tells of it.
    fn forget(&self) -> LookAhead {
        self.set_losing(Losing::default());
        LookAhead::default()
    }

    fn set_losing(&self, losing: Losing) {
        *self.leader.metrics.detail.losing.lock().unwrap_or_else(PoisonError::into_inner) = losing;
    }

    /// The end of the oldest segment, and how soon it is dropped, if that is near.
    fn next_to_go(&self) -> Option<(Position, Duration)> {
        let (retention, storage) = (&self.config.retention, &self.config.storage);
        let (border, crossed) = self.shared.read(|machine| machine.first_border())?;
        let status = self.group.status();
        let kept = status.end.0.saturating_sub(border.0);
        let gives_way = retention.on_full == OnFull::DeleteOldest && self.leader.space.worst() >= Level::Tight;
        // The next segment that is begun pushes it out.
        let overflows = retention.log_bytes_max > 0 && kept + 2 * storage.segment_bytes > retention.log_bytes_max;
        if gives_way || overflows {
            return Some((border, Duration::ZERO));
        }
        let left = crossed.after(retention.age_max).since(self.clock.now());
        (!retention.age_max.is_zero() && left <= retention.age_max / 7).then_some((border, left))
    }

    /// Writing waiting bodies again must free more than it takes, or a log that is full of them would chase its own end.
    fn is_worth_it(&self, from: Position, floor: Position) -> bool {
        let waiting = Schedule::new(self.shared.clone()).bytes_below(floor);
        let worth = frees_more_than_it_takes(from, floor, waiting);
        if !worth {
            debug!(%floor, waiting, "floor not moved: most of the log below it are messages that wait");
        }
        worth
    }

    /// Writes the bodies of waiting messages below `floor` once more. False if that was not done to the end.
    async fn carry(&self, floor: Position) -> bool {
        let leader = &self.leader;
        let schedule = Schedule::new(self.shared.clone());
        let portion = Portion { commands_max: 1024, bytes_max: self.config.limits.batch_bytes_max };
        let mut after = None;
        loop {
            let going_up = match schedule.carry(floor, after, portion) {
                Ok(going_up) => going_up,
                Err(error) => {
                    warn!(%error, %floor, "the body of a waiting message could not be read; the floor stays");
                    return false;
                }
            };
            let mut commands = Vec::with_capacity(going_up.bodies.len());
            for (waiting, found) in going_up.bodies {
                let Some(record) = leader.body(found).await else {
                    warn!(?waiting, %floor, "no node has the body of a waiting message now; the floor stays");
                    return false;
                };
                commands.push(Command::Carry(Carry { waiting, record }));
            }
            let count = commands.len() as u64;
            if count > 0 {
                if let Err(error) = leader.proposer.propose(commands).await {
                    debug!(%error, %floor, "waiting messages not carried; the floor stays");
                    return false;
                }
                leader.metrics.carried.add(count);
            }
            match going_up.after {
                Some(last) => after = Some(last),
                None => return true,
            }
        }
    }

    /// The border behind which everything is younger than `age_max`.
    fn floor_by_age(&self, age_max: Duration) -> Option<Position> {
        let now = self.clock.now();
        let age_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
        let cutoff = Timestamp(now.0.checked_sub(age_ms)?);
        self.shared.read(|machine| machine.border_at(cutoff))
    }
}

/// When the leader looked ahead, at which border, and when it warned of it.
#[derive(Debug, Clone, Copy, Default)]
struct LookAhead {
    at: Option<Instant>,
    border: Option<Position>,
    warned: Option<Instant>,
}

/// At least as much of the log goes for good as is written again.
fn frees_more_than_it_takes(from: Position, floor: Position, waiting_bytes: u64) -> bool {
    waiting_bytes <= floor.0.saturating_sub(from.0) / 2
}

/// The lowest floor with which a log that ends at `end` takes at most `bytes_max`, rounded so that the segment border below it will
/// do. `None` if nothing has to go.
fn floor_by_size(end: Position, bytes_max: u64, segment_bytes: u64) -> Option<Position> {
    if bytes_max == 0 {
        return None;
    }
    let over = end.0.checked_sub(bytes_max).filter(|over| *over > 0)?;
    Some(Position(over.div_ceil(segment_bytes) * segment_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_within_its_size_keeps_everything() {
        assert_eq!(floor_by_size(Position(100), 0, 10), None);
        assert_eq!(floor_by_size(Position(100), 100, 10), None);
        assert_eq!(floor_by_size(Position(5), 100, 10), None);
    }

    #[test]
    fn a_log_full_of_waiting_messages_is_not_written_again_and_again() {
        assert!(frees_more_than_it_takes(Position(100), Position(200), 0));
        assert!(frees_more_than_it_takes(Position(100), Position(200), 50));
        assert!(!frees_more_than_it_takes(Position(100), Position(200), 51));
        assert!(!frees_more_than_it_takes(Position(200), Position(100), 1));
    }

    #[test]
    fn a_log_over_its_size_loses_whole_segments_until_it_fits() {
        assert_eq!(floor_by_size(Position(101), 100, 10), Some(Position(10)));
        assert_eq!(floor_by_size(Position(110), 100, 10), Some(Position(10)));
        assert_eq!(floor_by_size(Position(111), 100, 10), Some(Position(20)));
    }
}
