//! The rules: what every command does to everything a broker group knows.
//!
//! ```text
//!   committed entry ─decode─▶ Batch ─▶ Machine::apply ─▶ Reply    to whoever proposed it
//!                                           │      └──▶ Effects  consume queue records, wake-ups (replica)
//!                topics · groups (feature/pop) · dedup · delay, transactions, redriven dead letters (feature/…)
//! ```
//! Pure: no file, clock, random number, task or log line. Time comes as the stamp in the batch, and nothing outside of
//! (machine, command) decides anything, so the same log prefix gives the same machine on every node, byte for byte
//! (LAW-SAME). Time passes by itself: a delivery whose time has run out is found by the next receive, not by a command.
//! Called by the replica to apply, and by the leader and the services to read.

pub mod codec;
pub mod command;
pub mod dedup;
pub mod effect;
pub mod feature;
pub mod groups;
pub mod handle;
pub mod ids;
pub mod image;
pub mod record;
pub mod topics;

use std::collections::{BTreeMap, VecDeque};

use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};
use quorate_raft::Position;

pub use command::{
    Ack, Batch, Begin, Carry, ChangeInvisible, Checked, Chosen, Command, CommitOffset, DeadLetter, Deliver, DropGroup,
    DropTopic, GiveBack, PutGroup, PutTopic, Recall, Receive, ReceiveScanned, Redrive, ResetOffset, Resolve, Scan,
    Send, SendDelayed, SendHalf, StartAt, TopicKind, UpdateOffset, Verdict, Waiting, consumer,
};
pub use dedup::{DedupStats, SendKey};
pub use effect::{Delivery, Effect, Refusal, Reply};
pub use feature::delay::{DelayId, DelayStats, Pending};
pub use feature::pop::{AttemptKey, Cursor, Exhausted, Lag, Move};
pub use feature::retry::{Delays, Retry, RetryError};
pub use feature::transaction::{Half, HalfId, Resolution, TransactionStats};
pub use groups::Group;
pub use handle::{ClusterHash, Handle, RecallHandle, TransactionHandle};
pub use ids::{GroupId, MessageGroup, QueueId, QueueOffset, Serial, TopicId};
pub use record::{Pointer, Record, StoredRecord, tag_hash};
pub use topics::Topic;

use dedup::{Dedup, Place};
use feature::{
    delay::Delay,
    pop::{IN_FLIGHT_MAX, Settled, Subscription, WAITING_MAX, start_offset},
    retry::{Deaths, Redriven},
    transaction::Transactions,
};
use groups::Groups;
use topics::Topics;

/// How far a group is in one queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QueueProgress {
    /// Everything before is done.
    pub committed: QueueOffset,
    /// First offset never handed out.
    pub next: QueueOffset,
    /// Handed out and not done.
    pub in_flight: u64,
    /// Not handed out yet.
    pub behind: u64,
}

/// What the machine has counted since the group was born; equal on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Messages stored.
    pub sent: u64,
    /// Hand-outs, repeated ones included.
    pub delivered: u64,
    /// Messages acknowledged.
    pub acked: u64,
}

/// Everything a broker group knows, bodies excepted.
#[derive(Clone, Default)]
pub struct Machine {
    now: Timestamp,
    /// The next delivery's serial.
    issued: Serial,
    totals: Totals,
    /// Segment borders above the floor, and the log time when apply came to them. Both rise.
    borders: VecDeque<(Position, Timestamp)>,
    topics: Topics,
    groups: Groups,
    dedup: Dedup,
    delay: Delay,
    transactions: Transactions,
    redriven: Redriven,
    deaths: Deaths,
}

impl Machine {
    /// Executes one command of a batch stamped `now` whose payload begins at `payload` in the commit log.
    ///
    /// Appends what is to be done outside to `effects`. A stamp below the last one counts as the last one (LAW-CLOCK).
    pub fn apply(&mut self, now: Timestamp, payload: Position, command: Command, effects: &mut Vec<Effect>) -> Reply {
        self.now = self.now.max(now);
        self.dedup.evict(self.now);
        self.delay.forget(self.now);
        let result = match command {
            Command::Send(send) => self.send(&send, payload, effects),
            Command::Receive(receive) => self.receive(&receive),
            Command::Ack(ack) => self.ack(&ack, effects),
            Command::ChangeInvisible(change) => self.change_invisible(&change, effects),
            Command::CommitOffset(commit) => self.commit_offset(&commit),
            Command::ResetOffset(reset) => self.reset_offset(&reset, effects),
            Command::UpdateOffset(update) => self.update_offset(&update, effects),
            Command::Begin(begin) => self.begin(&begin),
            Command::PutTopic(put) => self.put_topic(&put, effects),
            Command::DropTopic(drop) => self.drop_topic(drop.topic, effects),
            Command::PutGroup(put) => self.groups.put(&put, self.now).map(|id| Reply::Group { id }),
            Command::DropGroup(drop) => self.drop_group(drop.group),
            Command::ReceiveScanned(scanned) => self.receive_scanned(&scanned),
            Command::SendDelayed(delayed) => self.send_delayed(&delayed, payload, effects),
            Command::Deliver(deliver) => self.deliver(&deliver, payload, effects),
            Command::Recall(recall) => self.delay.recall(recall.id, recall.topic).map(|()| Reply::Done),
            Command::Carry(Carry { waiting: Waiting::Delayed(id), record }) => {
                self.delay.carry(id, position_of(payload, &record)).map(|()| Reply::Done)
            }
            Command::Carry(Carry { waiting: Waiting::Half(id), record }) => {
                self.transactions.carry(id, position_of(payload, &record)).map(|()| Reply::Done)
            }
            Command::SendHalf(half) => self.send_half(&half, payload, effects),
            Command::Resolve(resolve) => self.resolve(&resolve, payload, effects),
            Command::Checked(Checked { id, checks, again_ms }) => {
                let again = again_ms.map(|ms| Timestamp(self.now.0.saturating_add(ms)));
                self.transactions.checked(id, checks, again, self.now).map(|()| Reply::Done)
            }
            Command::DeadLetter(dead) => self.dead_letter(&dead, payload, effects),
            Command::Redrive(redrive) => self.redrive(&redrive, payload, effects),
            Command::GiveBack(given) => self.give_back(&given, effects),
        };
        result.unwrap_or_else(Reply::Refused)
    }

    /// Apply has come to a segment border: notes where every queue ends. Doing it again changes nothing.
    pub fn border(&mut self, border: Position) {
        if self.borders.back().is_none_or(|(last, _)| *last < border) {
            self.borders.push_back((border, self.now));
            self.topics.border(border);
        }
    }

    /// The floor has moved: what lies below it is not kept any more. Progress behind it jumps forward.
    pub fn floor(&mut self, floor: Position, effects: &mut Vec<Effect>) {
        while self.borders.pop_front_if(|(border, _)| *border <= floor).is_some() {}
        let (groups, redriven, now) = (&mut self.groups, &mut self.redriven, self.now);
        self.topics.floor(floor, |topic, queue, min| {
            redriven.forget_below(topic, queue, min);
            for group in groups.iter_mut() {
                if let Some(subscription) = group.subscription_mut(topic) {
                    subscription.commit(queue, min.0, now);
                }
            }
            effects.push(Effect::MinMoved { topic, queue, min });
        });
        self.delay.floor(floor);
        self.transactions.floor(floor);
    }

    fn send(&mut self, send: &Send, payload: Position, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let topic = self.topics.by_id_mut(send.topic).ok_or(Refusal::TopicNotFound)?;
        match self.dedup.check(send.key, send.body_crc) {
            Some(Place::Queue { queue, offset }) => return Ok(Reply::Sent { queue, offset, duplicate: true }),
            // Another kind of send with the same key and sum is another message.
            Some(Place::Delayed { .. } | Place::Half { .. }) | None => {}
        }
        let offset = topic.append(send.queue)?;
        let pointer = pointer(payload, &send.record, send.tag_hash);
        self.dedup.remember(send.key, send.body_crc, Place::Queue { queue: send.queue, offset }, self.now);
        self.totals.sent += 1;
        effects.push(Effect::Append { topic: send.topic, queue: send.queue, offset, pointer });
        Ok(Reply::Sent { queue: send.queue, offset, duplicate: false })
    }

    fn send_delayed(
        &mut self,
        delayed: &SendDelayed,
        payload: Position,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Refusal> {
        let SendDelayed { due, send } = delayed;
        let topic = self.topics.by_id_mut(send.topic).ok_or(Refusal::TopicNotFound)?;
        // The time belongs to what makes a repeat a repeat, since it is part of the handle in the answer.
        let sum = crc32c::crc32c_append(send.body_crc, &due.0.to_le_bytes());
        match self.dedup.check(send.key, sum) {
            Some(Place::Queue { queue, offset }) => return Ok(Reply::Sent { queue, offset, duplicate: true }),
            Some(Place::Delayed { number }) => {
                return Ok(Reply::Delayed { id: DelayId { due: *due, number }, duplicate: true });
            }
            Some(Place::Half { .. }) | None => {}
        }
        let pointer = pointer(payload, &send.record, send.tag_hash);
        if *due <= self.now {
            let offset = topic.append(send.queue)?;
            self.dedup.remember(send.key, sum, Place::Queue { queue: send.queue, offset }, self.now);
            self.totals.sent += 1;
            effects.push(Effect::Append { topic: send.topic, queue: send.queue, offset, pointer });
            return Ok(Reply::Sent { queue: send.queue, offset, duplicate: false });
        }
        topic.range(send.queue).ok_or(Refusal::QueueNotFound)?;
        let id = self.delay.add(*due, Pending { topic: send.topic, queue: send.queue, pointer });
        self.dedup.remember(send.key, sum, Place::Delayed { number: id.number }, self.now);
        effects.push(Effect::Scheduled { at: *due });
        Ok(Reply::Delayed { id, duplicate: false })
    }

    fn deliver(&mut self, deliver: &Deliver, payload: Position, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let Pending { topic, queue, pointer } = self.delay.deliver(deliver.id, self.now)?;
        let offset = self.topics.by_id_mut(topic).ok_or(Refusal::TopicNotFound)?.append(queue)?;
        let pointer = self::pointer(payload, &deliver.record, pointer.tag_hash);
        self.totals.sent += 1;
        effects.push(Effect::Append { topic, queue, offset, pointer });
        Ok(Reply::Sent { queue, offset, duplicate: false })
    }

    fn send_half(&mut self, half: &SendHalf, payload: Position, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let SendHalf { immunity_ms, send } = half;
        let topic = self.topics.by_id_mut(send.topic).ok_or(Refusal::TopicNotFound)?;
        // Another message than a plain one with the same id and body.
        let sum = crc32c::crc32c_append(send.body_crc, b"half");
        if let Some(Place::Half { number }) = self.dedup.check(send.key, sum) {
            return Ok(Reply::Half { id: HalfId(number), duplicate: true });
        }
        topic.range(send.queue).ok_or(Refusal::QueueNotFound)?;
        let pointer = pointer(payload, &send.record, send.tag_hash);
        if cfg!(feature = "mutant-half-visible-early") {
            let offset = topic.append(send.queue)?;
            effects.push(Effect::Append { topic: send.topic, queue: send.queue, offset, pointer });
        }
        let check_at = Some(Timestamp(self.now.0.saturating_add(*immunity_ms)));
        let (topic, queue, sent_at) = (send.topic, send.queue, self.now);
        let id = self.transactions.add(Half { topic, queue, pointer, sent_at, checks: 0, check_at });
        self.dedup.remember(send.key, sum, Place::Half { number: id.0 }, self.now);
        Ok(Reply::Half { id, duplicate: false })
    }

    fn resolve(&mut self, resolve: &Resolve, payload: Position, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let id = resolve.id;
        let Some(&Half { topic, queue, pointer, .. }) = self.transactions.half(id) else {
            return self.transactions.resolve(id, resolve.resolution).map(|_| Reply::Done);
        };
        if topic != resolve.topic {
            return Err(Refusal::TransactionUnknown);
        }
        if resolve.resolution == Resolution::Rollback {
            return self.transactions.resolve(id, resolve.resolution).map(|_| Reply::Done);
        }
        let pointer = match &resolve.record {
            Some(record) => self::pointer(payload, record, pointer.tag_hash),
            None if self.is_behind_border(pointer.position) => return Err(Refusal::BodyNeeded),
            None => pointer,
        };
        if cfg!(feature = "mutant-half-visible-early") {
            return self.transactions.resolve(id, resolve.resolution).map(|_| Reply::Done);
        }
        let offset = self.topics.by_id_mut(topic).ok_or(Refusal::TopicNotFound)?.append(queue)?;
        self.transactions.resolve(id, resolve.resolution)?;
        self.totals.sent += 1;
        effects.push(Effect::Append { topic, queue, offset, pointer });
        Ok(Reply::Sent { queue, offset, duplicate: false })
    }

    /// In one step the message is done in its queue and stands among the dead letters.
    fn dead_letter(
        &mut self,
        dead: &DeadLetter,
        payload: Position,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Refusal> {
        let DeadLetter { handle, forwarded, tag_hash, record } = dead;
        let group = self.groups.by_id_mut(handle.group).ok_or(Refusal::GroupNotFound)?;
        let name = group.dead_letters();
        let subscription = held_by(group, handle)?;
        if !subscription.check_dead(handle, *forwarded, self.now, self.issued)? {
            return Ok(Reply::Done);
        }
        let (topic, made) = self.topics.dead_letters(&name, self.now);
        let queue = QueueId(0);
        let settled = subscription.ack(handle, self.now, self.issued)?;
        self.deaths.add(handle.group, handle.topic, handle.queue);
        if cfg!(feature = "mutant-dead-letter-lost") {
            return Ok(Reply::Done);
        }
        let offset = self.topics.by_id_mut(topic).ok_or(Refusal::TopicNotFound)?.append(queue)?;
        if made {
            effects.push(Effect::TopicsChanged);
        }
        self.totals.sent += 1;
        effects.push(Effect::Append { topic, queue, offset, pointer: pointer(payload, record, *tag_hash) });
        if let Settled::Now { freed: true } = settled {
            effects.push(Effect::Visible { group: handle.group, topic: handle.topic });
        }
        Ok(Reply::Sent { queue, offset, duplicate: false })
    }

    fn redrive(&mut self, redrive: &Redrive, payload: Position, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let Redrive { from, queue, offset, to, to_queue, tag_hash, record } = redrive;
        let (min, end) = self.queue_range(*from, *queue).ok_or(Refusal::TopicNotFound)?;
        if *offset < min || *offset >= end {
            return Err(Refusal::OffsetOutOfRange { min, end });
        }
        if self.redriven.contains(*from, *queue, *offset) {
            return Err(Refusal::Redriven);
        }
        let new = self.topics.by_id_mut(*to).ok_or(Refusal::TopicNotFound)?.append(*to_queue)?;
        self.redriven.add(*from, *queue, *offset);
        self.totals.sent += 1;
        let pointer = pointer(payload, record, *tag_hash);
        effects.push(Effect::Append { topic: *to, queue: *to_queue, offset: new, pointer });
        Ok(Reply::Sent { queue: *to_queue, offset: new, duplicate: false })
    }

    fn give_back(&mut self, given: &GiveBack, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let group = self.groups.by_id_mut(given.group).ok_or(Refusal::GroupNotFound)?;
        let visible_at = Timestamp(self.now.0.saturating_add(given.invisible_ms));
        let results = given.entries.iter().map(|handle| {
            held_by(group, handle)?.give_back(handle, visible_at, self.issued)?;
            effects.push(Effect::Visible { group: handle.group, topic: handle.topic });
            Ok(())
        });
        Ok(Reply::Acked { results: results.collect() })
    }

    fn receive(&mut self, receive: &Receive) -> Result<Reply, Refusal> {
        let topic = self.topics.by_id(receive.topic).ok_or(Refusal::TopicNotFound)?;
        let group = self.groups.by_id_mut(receive.group).ok_or(Refusal::GroupNotFound)?;
        let (fifo, subscription) = (group.is_fifo(), group.subscribe(topic));
        let deliveries = if fifo {
            // Nobody has looked at what is new, so it cannot be put in order: what was handed out before is all there is.
            let scanned = ReceiveScanned { receive: receive.clone(), scans: Vec::new(), verdicts: None };
            subscription.receive_scanned(&scanned, topic, true, self.now, &mut self.issued)
        } else {
            subscription.receive(receive, topic, self.now, &mut self.issued)
        };
        self.totals.delivered += deliveries.len() as u64;
        Ok(Reply::Received { deliveries })
    }

    fn receive_scanned(&mut self, scanned: &ReceiveScanned) -> Result<Reply, Refusal> {
        let topic = self.topics.by_id(scanned.receive.topic).ok_or(Refusal::TopicNotFound)?;
        let group = self.groups.by_id_mut(scanned.receive.group).ok_or(Refusal::GroupNotFound)?;
        let (fifo, subscription) = (group.is_fifo(), group.subscribe(topic));
        let deliveries = subscription.receive_scanned(scanned, topic, fifo, self.now, &mut self.issued);
        self.totals.delivered += deliveries.len() as u64;
        Ok(Reply::Received { deliveries })
    }

    fn ack(&mut self, ack: &Ack, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let group = self.groups.by_id_mut(ack.group).ok_or(Refusal::GroupNotFound)?;
        let mut acked = 0;
        let results = ack.entries.iter().map(|handle| {
            let subscription = held_by(group, handle)?;
            match subscription.ack(handle, self.now, self.issued)? {
                Settled::Before => {}
                Settled::Now { freed } => {
                    acked += 1;
                    if freed {
                        effects.push(Effect::Visible { group: handle.group, topic: handle.topic });
                    }
                }
            }
            Ok(())
        });
        let results = results.collect();
        self.totals.acked += acked;
        Ok(Reply::Acked { results })
    }

    fn change_invisible(&mut self, change: &ChangeInvisible, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let group = self.groups.by_id_mut(change.group).ok_or(Refusal::GroupNotFound)?;
        let visible_at = Timestamp(self.now.0.saturating_add(change.invisible_ms));
        let subscription = held_by(group, &change.handle)?;
        let handle = subscription.change(&change.handle, visible_at, change.renew, &mut self.issued)?;
        effects.push(Effect::Visible { group: change.group, topic: handle.topic });
        Ok(Reply::Changed { handle, visible_at })
    }

    fn commit_offset(&mut self, commit: &CommitOffset) -> Result<Reply, Refusal> {
        let now = self.now;
        let subscription = self.subscription_at(commit.group, commit.topic, commit.queue, commit.offset)?;
        subscription.commit(commit.queue, commit.offset.0, now);
        Ok(Reply::Done)
    }

    fn reset_offset(&mut self, reset: &ResetOffset, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let now = self.now;
        let subscription = self.subscription_at(reset.group, reset.topic, reset.queue, reset.offset)?;
        subscription.reset(reset.queue, reset.offset.0, now);
        effects.push(Effect::Visible { group: reset.group, topic: reset.topic });
        Ok(Reply::Done)
    }

    fn update_offset(&mut self, update: &UpdateOffset, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let now = self.now;
        let UpdateOffset { group, topic, queue, offset } = *update;
        let went_back = self.subscription_at(group, topic, queue, offset)?.put_place(queue, offset.0, now);
        if went_back {
            effects.push(Effect::Visible { group, topic });
        }
        Ok(Reply::Done)
    }

    /// An offset that the floor has passed since the leader looked counts as the first one kept.
    fn begin(&mut self, begin: &Begin) -> Result<Reply, Refusal> {
        let now = self.now;
        let topic = self.topics.by_id(begin.topic).ok_or(Refusal::TopicNotFound)?;
        let group = self.groups.by_id_mut(begin.group).ok_or(Refusal::GroupNotFound)?;
        if group.subscription(begin.topic).is_some() {
            return Ok(Reply::Done);
        }
        if begin.places.iter().any(|(queue, _)| topic.range(*queue).is_none()) {
            return Err(Refusal::QueueNotFound);
        }
        let subscription = group.subscribe(topic);
        for (queue, offset) in &begin.places {
            let (min, end) = topic.range(*queue).ok_or(Refusal::QueueNotFound)?;
            subscription.reset(*queue, offset.0.clamp(min.0, end.0), now);
        }
        Ok(Reply::Done)
    }

    /// The subscription in which `offset` is a place that progress can have.
    fn subscription_at(
        &mut self,
        group: GroupId,
        topic: TopicId,
        queue: QueueId,
        offset: QueueOffset,
    ) -> Result<&mut Subscription, Refusal> {
        let topic = self.topics.by_id(topic).ok_or(Refusal::TopicNotFound)?;
        let group = self.groups.by_id_mut(group).ok_or(Refusal::GroupNotFound)?;
        let (min, end) = topic.range(queue).ok_or(Refusal::QueueNotFound)?;
        if offset < min || offset > end {
            return Err(Refusal::OffsetOutOfRange { min, end });
        }
        Ok(group.subscribe(topic))
    }

    fn put_topic(&mut self, put: &PutTopic, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let (id, changed) = self.topics.put(put, self.now)?;
        if changed {
            effects.push(Effect::TopicsChanged);
        }
        Ok(Reply::Topic { id })
    }

    fn drop_group(&mut self, group: GroupId) -> Result<Reply, Refusal> {
        self.groups.drop_group(group)?;
        self.deaths.drop_group(group);
        Ok(Reply::Done)
    }

    fn drop_topic(&mut self, topic: TopicId, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        self.topics.drop_topic(topic)?;
        self.groups.drop_topic(topic);
        self.delay.drop_topic(topic);
        self.transactions.drop_topic(topic);
        self.redriven.drop_topic(topic);
        self.deaths.drop_topic(topic);
        effects.push(Effect::TopicDropped { topic });
        effects.push(Effect::TopicsChanged);
        Ok(Reply::Done)
    }
}

/// What others may know.
impl Machine {
    /// Log time: the last stamp applied.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The topic of that name.
    pub fn topic(&self, name: &TopicName) -> Option<&Topic> {
        self.topics.by_name(name)
    }

    /// The topic of that number.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Topic> {
        self.topics.by_id(id)
    }

    /// All topics, by number.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> + '_ {
        self.topics.iter()
    }

    /// The consumer group of that name.
    pub fn group(&self, name: &GroupName) -> Option<&Group> {
        self.groups.by_name(name)
    }

    /// The consumer group of that number.
    pub fn group_by_id(&self, id: GroupId) -> Option<&Group> {
        self.groups.by_id(id)
    }

    /// All consumer groups, by number.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &Group> + '_ {
        self.groups.iter()
    }

    /// How many messages a receive at `now` could hand out; 0 for an unknown group or topic.
    ///
    /// Counts no more than some hundreds of timed-out ones per queue, so the cost follows the number of queues. For a group that wants
    /// order it is a bound: what is new may belong to a message group that is under way.
    pub fn ready(&self, group: GroupId, topic: TopicId, now: Timestamp) -> u64 {
        let (Some(topic), Some(group)) = (self.topics.by_id(topic), self.groups.by_id(group)) else { return 0 };
        match group.subscription(topic.id()) {
            Some(subscription) => subscription.ready(topic, group.is_fifo(), now),
            None => topic.ranges().map(|(min, end)| end - start_offset((min, end), group.start())).sum(),
        }
    }

    /// When the next hidden message becomes visible to the group; that may have passed already.
    pub fn next_timeout(&self, group: GroupId, topic: TopicId) -> Option<Timestamp> {
        let group = self.groups.by_id(group)?;
        group.subscription(topic)?.next_timeout(group.is_fifo())
    }

    /// The group has received from the topic before.
    pub fn is_subscribed(&self, group: GroupId, topic: TopicId) -> bool {
        self.groups.by_id(group).is_some_and(|group| group.subscription(topic).is_some())
    }

    /// Where a group stands in a queue, or would begin; `None` without such a group, topic or queue.
    pub fn cursor(&self, group: GroupId, topic: TopicId, queue: QueueId) -> Option<Cursor> {
        let (group, topic) = (self.groups.by_id(group)?, self.topics.by_id(topic)?);
        let (min, end) = topic.range(queue)?;
        let subscription = group.subscription(topic.id());
        let begins = || match subscription {
            // A queue that the topic has got since; see `Subscription::grow`.
            Some(_) => min.0,
            None => start_offset((min.0, end.0), group.start()),
        };
        let known = subscription.and_then(|subscription| subscription.cursor(queue, end.0));
        Some(known.unwrap_or_else(|| Cursor {
            next: QueueOffset(begins()),
            end,
            flight_room: IN_FLIGHT_MAX,
            waiting_room: WAITING_MAX,
        }))
    }

    /// At most `max` messages that were handed out or passed before and that a receive at `now` could hand out, in its order.
    pub fn again(
        &self,
        group: GroupId,
        topic: TopicId,
        first: QueueId,
        now: Timestamp,
        max: usize,
    ) -> Vec<(QueueId, QueueOffset)> {
        let Some(group) = self.groups.by_id(group) else { return Vec::new() };
        let subscription = group.subscription(topic);
        subscription.map_or_else(Vec::new, |subscription| subscription.again(group.is_fifo(), first, now, max))
    }

    /// A batch of the message group is in flight and hidden at `now`, so nothing of it may go out.
    pub fn is_locked(
        &self,
        group: GroupId,
        topic: TopicId,
        queue: QueueId,
        message_group: MessageGroup,
        now: Timestamp,
    ) -> bool {
        let subscription = self.groups.by_id(group).and_then(|group| group.subscription(topic));
        subscription.is_some_and(|subscription| subscription.is_locked(queue, message_group, now))
    }

    /// A receive at `now` under this attempt key would get deliveries again that are still in flight.
    pub fn attempt_in_flight(&self, group: GroupId, topic: TopicId, attempt: AttemptKey, now: Timestamp) -> bool {
        let subscription = self.groups.by_id(group).and_then(|group| group.subscription(topic));
        subscription.is_some_and(|subscription| !subscription.in_flight_of(group, topic, attempt, now).is_empty())
    }

    /// Offsets that a queue holds, `[min, end)`.
    pub fn queue_range(&self, topic: TopicId, queue: QueueId) -> Option<(QueueOffset, QueueOffset)> {
        self.topics.by_id(topic)?.range(queue)
    }

    /// How far a group is in a queue; `None` if it has never received from the topic.
    pub fn progress(&self, group: GroupId, topic: TopicId, queue: QueueId) -> Option<QueueProgress> {
        let (_, end) = self.queue_range(topic, queue)?;
        self.groups.by_id(group)?.subscription(topic)?.progress(queue, end.0)
    }

    /// Where a group stands in a queue, as a consumer sees it that keeps its own books: everything before is done. `None` if the group has
    /// neither received from the topic nor said how far it is in any queue of it.
    pub fn place(&self, group: GroupId, topic: TopicId, queue: QueueId) -> Option<QueueOffset> {
        let (min, end) = self.queue_range(topic, queue)?;
        let subscription = self.groups.by_id(group)?.subscription(topic)?;
        // A queue that the topic has got since; see `Subscription::grow`.
        Some(subscription.progress(queue, end.0).map_or(min, |progress| progress.committed))
    }

    /// What a group has not done in a queue; `None` if it has not begun in the topic.
    pub fn lag(&self, group: GroupId, topic: TopicId, queue: QueueId, now: Timestamp) -> Option<Lag> {
        let (min, end) = self.queue_range(topic, queue)?;
        let subscription = self.groups.by_id(group)?.subscription(topic)?;
        let later = || Lag { ready: end.0 - min.0, ..Lag::default() };
        Some(subscription.lag(queue, end.0, now).unwrap_or_else(later))
    }

    /// What it would mean to reset a group to `offset` in a queue; `None` without such a group, topic or queue.
    pub fn move_to(&self, group: GroupId, topic: TopicId, queue: QueueId, offset: QueueOffset) -> Option<Move> {
        let begins = self.cursor(group, topic, queue)?.next;
        let subscription = self.groups.by_id(group)?.subscription(topic);
        let known = subscription.and_then(|subscription| subscription.move_to(queue, offset.0));
        // Before it has begun in a queue nothing of it is done.
        let skipped = offset.0.saturating_sub(begins.0);
        Some(known.unwrap_or(Move { skipped, ..Move::default() }))
    }

    /// How many messages of a queue have become dead letters of a group.
    pub fn dead(&self, group: GroupId, topic: TopicId, queue: QueueId) -> u64 {
        self.deaths.count(group, topic, queue)
    }

    /// How many messages wait for their delivery timestamp, by the queue they will stand in. The cost follows the number of all that wait.
    pub fn delayed_by_queue(&self, is_wanted: impl Fn(TopicId) -> bool) -> BTreeMap<(TopicId, QueueId), u64> {
        let mut counts = BTreeMap::new();
        for (_, message) in self.delay.after(None).filter(|(_, message)| is_wanted(message.topic)) {
            *counts.entry((message.topic, message.queue)).or_default() += 1;
        }
        counts
    }

    /// The largest segment border that was crossed at `cutoff` or before: everything below it is older.
    pub fn border_at(&self, cutoff: Timestamp) -> Option<Position> {
        let older = self.borders.iter().rev().find(|(_, crossed)| *crossed <= cutoff);
        older.map(|(border, _)| *border)
    }

    /// Messages without an attempt left whose time is over at `now`, at most `found_max`; and where to go on, if not everything was looked
    /// at: the cost follows the number of queues looked at, `queues_max` or a few more.
    pub fn exhausted(
        &self,
        from: (GroupId, TopicId),
        now: Timestamp,
        queues_max: usize,
        found_max: usize,
    ) -> (Vec<Exhausted>, Option<(GroupId, TopicId)>) {
        let (mut found, mut looked_at) = (Vec::new(), 0);
        for group in self.groups.from(from.0) {
            let first = if group.id() == from.0 { from.1 } else { TopicId(0) };
            for (topic, subscription) in group.subscriptions_from(first) {
                if looked_at >= queues_max || found.len() >= found_max {
                    return (found, Some((group.id(), topic)));
                }
                looked_at += subscription.queue_count();
                found.extend(subscription.exhausted(group.id(), topic, now, found_max - found.len()));
            }
        }
        (found, None)
    }

    /// The receipt is the latest word about its message, which is not done; false if it is.
    ///
    /// # Errors
    /// As an ack would be refused.
    pub fn is_held(&self, handle: &Handle) -> Result<bool, Refusal> {
        let group = self.groups.by_id(handle.group).ok_or(Refusal::GroupNotFound)?;
        let subscription = group.subscription(handle.topic).ok_or(Refusal::ReceiptInvalid)?;
        subscription.check_dead(handle, true, self.now, self.issued)
    }

    /// A dead letter stands in a topic again.
    pub fn is_redriven(&self, topic: TopicId, queue: QueueId, offset: QueueOffset) -> bool {
        self.redriven.contains(topic, queue, offset)
    }

    /// How many dead letters of a queue do.
    pub fn redriven(&self, topic: TopicId, queue: QueueId) -> u64 {
        self.redriven.count(topic, queue)
    }

    /// The first segment border above the floor, and when it was crossed: what goes next ends there.
    pub fn first_border(&self) -> Option<(Position, Timestamp)> {
        self.borders.front().copied()
    }

    /// Delayed messages that are due at `now`, the longest overdue first.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = (DelayId, Pending)> + '_ {
        self.delay.due(now)
    }

    /// Messages that wait and keep their body, in an order of their own, behind `after`.
    pub fn waiting(&self, after: Option<Waiting>) -> impl Iterator<Item = (Waiting, Pointer)> + '_ {
        let (delayed, half) = match after {
            None => (Some(None), None),
            Some(Waiting::Delayed(id)) => (Some(Some(id)), None),
            Some(Waiting::Half(id)) => (None, Some(id)),
        };
        let delayed = delayed.into_iter().flat_map(|after| self.delay.after(after));
        let halves = self.transactions.after(half).map(|(id, half)| (Waiting::Half(id), half.pointer));
        delayed.map(|(id, message)| (Waiting::Delayed(id), message.pointer)).chain(halves)
    }

    /// What stands there leaves with a segment that is complete: a queue that takes it on now must get it anew.
    pub fn is_behind_border(&self, position: Position) -> bool {
        self.borders.back().is_some_and(|(border, _)| position < *border)
    }

    /// A half message that waits for its resolution.
    pub fn half(&self, id: HalfId) -> Option<&Half> {
        self.transactions.half(id)
    }

    /// Half messages behind `after`, in the order of their sends.
    pub fn halves(&self, after: Option<HalfId>) -> impl Iterator<Item = (HalfId, Half)> + '_ {
        self.transactions.after(after)
    }

    /// How many half messages, and how many delayed ones, wait in a topic.
    pub fn waiting_in(&self, topic: TopicId) -> (u64, u64) {
        let halves = self.transactions.after(None).filter(|(_, half)| half.topic == topic).count();
        let delayed = self.delay.after(None).filter(|(_, message)| message.topic == topic).count();
        (halves as u64, delayed as u64)
    }

    /// Topics with half messages that a producer is to be asked about at `now`, by number.
    pub fn topics_to_check(&self, now: Timestamp) -> impl Iterator<Item = TopicId> + '_ {
        self.transactions.topics_due(now)
    }

    /// Half messages of a topic that a producer is to be asked about at `now`, the longest overdue first.
    pub fn to_check(&self, topic: TopicId, now: Timestamp) -> impl Iterator<Item = (HalfId, Half)> + '_ {
        self.transactions.due(topic, now)
    }

    /// The state of transactions.
    pub fn transaction_stats(&self) -> TransactionStats {
        self.transactions.stats()
    }

    /// The largest segment border at or below `floor` that apply has come to: every command before it is part of this state.
    pub fn border_below(&self, floor: Position) -> Option<Position> {
        self.borders.iter().rev().map(|(border, _)| *border).find(|border| *border <= floor)
    }

    /// The state of delayed messages.
    pub fn delay_stats(&self) -> DelayStats {
        self.delay.stats()
    }

    /// The state of the window of repeats.
    pub fn dedup_stats(&self) -> DedupStats {
        self.dedup.stats(self.now)
    }

    /// What was counted since birth.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

/// Where a record of a batch whose payload begins at `payload` stands in the log.
fn position_of(payload: Position, record: &Record) -> Position {
    Position(payload.0 + u64::from(record.at()))
}

fn pointer(payload: Position, record: &Record, tag_hash: u64) -> Pointer {
    Pointer { position: position_of(payload, record), size: record.bytes().len() as u32, tag_hash }
}

/// The subscription that a receipt of `group` belongs to.
fn held_by<'a>(group: &'a mut Group, handle: &Handle) -> Result<&'a mut Subscription, Refusal> {
    if handle.group != group.id() {
        return Err(Refusal::ReceiptInvalid);
    }
    group.subscription_mut(handle.topic).ok_or(Refusal::ReceiptInvalid)
}
