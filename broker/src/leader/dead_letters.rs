//! Messages that nobody gets again: moved to the dead letters of their consumer group, when their last time is over or a consumer says so.
//!
//! ```text
//!   machine.exhausted ─▶ body, where it came from ─▶ DeadLetter ─▶ apply: done there, new record here, or refused
//! ```
//! Runs on every node and works while this one leads. Nothing is kept between two rounds but what could not be read: who has no attempt
//! left is in the machine, so a new leader goes on where the log says, and a move that is proposed twice is refused once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use quorate_proto::{names::TopicName, time::Timestamp};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Failure, Leader,
    calls::{Done, ForwardToDeadLetters},
    letter::{self, Origin},
};
use crate::machine::{
    Command, DeadLetter, Exhausted, GroupId, Handle, Machine, QueueId, QueueOffset, Refusal, Reply, StoredRecord,
    TopicId,
};

/// How often the machine is looked at, and so how late a dead letter may be.
const TICK: Duration = Duration::from_millis(100);
/// Queues looked at under one lock, so that apply waits for well below a millisecond.
const LOOKED_AT: usize = 2048;
/// Most messages of one proposal.
const COMMANDS_MAX: usize = 256;
/// How long a message rests that no node could read.
const REST: Duration = Duration::from_secs(5);

/// The task that moves messages, on one node.
pub(crate) struct Undertaker {
    /// Reads, plans and proposes.
    pub leader: Arc<Leader>,
}

/// What a message is called before it is a dead letter.
type Place = (TopicId, QueueId, QueueOffset);

/// The names that a dead letter tells.
struct Names {
    topic: TopicName,
    group: String,
    dead_letters: TopicName,
}

impl Undertaker {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let leadership = self.leader.group.leader();
        let mut unreadable = BTreeMap::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            while leadership.borrow().serving {
                let moved = tokio::select! {
                    () = shutdown.cancelled() => return,
                    moved = self.round(&mut unreadable) => moved,
                };
                if !moved {
                    break;
                }
            }
        }
    }

    /// Moves what is to be moved, as far as one round goes. Whether anything was.
    async fn round(&self, unreadable: &mut BTreeMap<Place, Instant>) -> bool {
        let leader = &self.leader;
        leader.clock.follow(leader.shared.log_now());
        let now = leader.clock.now();
        unreadable.retain(|_, until| *until > Instant::now());
        let (mut from, mut moved) = (Some((GroupId(0), TopicId(0))), false);
        while let Some(place) = from {
            let (found, next) = leader.shared.read(|machine| machine.exhausted(place, now, LOOKED_AT, COMMANDS_MAX));
            let rested: Vec<Exhausted> =
                found.into_iter().filter(|dead| !unreadable.contains_key(&place_of(&dead.handle))).collect();
            moved |= self.bury(rested, unreadable).await;
            from = next;
        }
        moved
    }

    async fn bury(&self, found: Vec<Exhausted>, unreadable: &mut BTreeMap<Place, Instant>) -> bool {
        let (mut portion, mut bytes, mut moved) = (Vec::new(), 0, false);
        for Exhausted { handle, consumer } in found {
            let origin = Origin {
                attempts: handle.attempt.into(),
                reason: letter::EXHAUSTED.into(),
                consumer: consumer.as_deref().unwrap_or_default().into(),
                ..Origin::default()
            };
            let dead = match self.leader.as_dead_letter(handle, false, origin).await {
                Ok(Some(dead)) => dead,
                // Retention has passed it: it is done when the floor is applied.
                Ok(None) => continue,
                Err(error) => {
                    unreadable.insert(place_of(&handle), Instant::now() + REST);
                    warn!(%error, "a message without an attempt left could not be read; it is held back until it can");
                    continue;
                }
            };
            bytes += dead.record.bytes().len() as u64;
            portion.push(dead);
            if bytes >= self.leader.config.limits.batch_bytes_max {
                moved |= self.propose(std::mem::take(&mut portion)).await;
                bytes = 0;
            }
        }
        moved | self.propose(portion).await
    }

    /// Whether any of these were moved. What is refused was acknowledged, hidden for longer or moved meanwhile.
    async fn propose(&self, dead: Vec<DeadLetter>) -> bool {
        if dead.is_empty() {
            return false;
        }
        let handles: Vec<Handle> = dead.iter().map(|dead| dead.handle).collect();
        match self.leader.proposer.propose(dead.into_iter().map(Command::DeadLetter).collect()).await {
            Ok(applied) => {
                let done =
                    handles.iter().zip(&applied.replies).filter(|(_, reply)| matches!(reply, Reply::Sent { .. }));
                let moved = done.map(|(handle, _)| self.leader.count_dead(handle)).count();
                if moved > 0 {
                    info!(moved, "messages without an attempt left are dead letters; see `quorate dlq list`");
                }
                moved > 0
            }
            Err(error) => {
                debug!(%error, "messages without an attempt left not moved yet");
                false
            }
        }
    }
}

fn place_of(handle: &Handle) -> Place {
    (handle.topic, handle.queue, handle.offset)
}

impl Leader {
    /// Moves a delivery to the dead letters because its consumer gives it up; fine if the message is done.
    pub async fn forward_to_dead_letters(&self, call: &ForwardToDeadLetters) -> Result<Done, Failure> {
        let (topic, group) = self.known(&call.topic, &call.group)?;
        let handle = self.handle(&call.handle, topic, group)?;
        for _ in 0..2 {
            if !self.shared.read(|machine| machine.is_held(&handle))? {
                return Ok(Done {});
            }
            let origin = Origin {
                attempts: u64::from(handle.attempt.max(call.attempts)),
                reason: letter::FORWARDED.into(),
                consumer: call.client_id.clone(),
                ..Origin::default()
            };
            // Without a message retention has passed it, and there is nothing left to keep.
            let Some(dead) = self.as_dead_letter(handle, true, origin).await? else { return Ok(Done {}) };
            match self.propose_one(Command::DeadLetter(dead)).await? {
                (Reply::Sent { .. }, _) => {
                    self.count_dead(&handle);
                    return Ok(Done {});
                }
                (_, _) => continue,
            }
        }
        Ok(Done {})
    }

    /// The command that makes a dead letter of a delivery; `origin` knows what the delivery does not tell. `None` if retention has passed
    /// the message.
    ///
    /// # Errors
    /// No node can read the message now.
    async fn as_dead_letter(
        &self,
        handle: Handle,
        forwarded: bool,
        origin: Origin,
    ) -> Result<Option<DeadLetter>, Failure> {
        let Some(names) = self.shared.read(|machine| names(machine, &handle)) else {
            return Err(Refusal::ReceiptInvalid.into());
        };
        let Some(record) = self.stored_at(handle.topic, handle.queue, handle.offset).await? else { return Ok(None) };
        let StoredRecord { bytes, stored_at: Timestamp(stored_ms) } = record;
        let (topic, queue, offset) = (names.topic.to_string(), handle.queue.0.into(), handle.offset.0);
        let origin = Origin { topic, queue, offset, stored_ms, ..origin };
        let dead = letter::to_dead_letter(bytes, &names.dead_letters, &origin);
        let (record, tag_hash) = dead.ok_or_else(|| Failure::Unreadable("it is no message".into()))?;
        Ok(Some(DeadLetter { handle, forwarded, tag_hash, record: record.into() }))
    }

    fn count_dead(&self, handle: &Handle) {
        if let Some(names) = self.shared.read(|machine| names(machine, handle)) {
            self.metrics.detail.traffic.dead(names.topic.as_str(), &names.group, 1);
        }
    }
}

fn names(machine: &Machine, handle: &Handle) -> Option<Names> {
    let group = machine.group_by_id(handle.group)?;
    let topic = machine.topic_by_id(handle.topic)?.name().clone();
    Some(Names { topic, group: group.name().to_string(), dead_letters: group.dead_letters() })
}
