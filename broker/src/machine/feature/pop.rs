//! Receive, ack, change-invisible: who holds which message, and until when.
//!
//! Per consumer group and queue:
//!
//! ```text
//!   offsets  0 ………… committed ……………………… next ………………… end
//!            │  all done  │ done, or in flight │ never handed out │
//!   in flight  offset ─▶ (visible at, serial, attempt)     ordered: its first key is `committed`
//!   hidden     (visible at, offset)                        ordered: what has timed out stands in front
//!   last       (visible at, offset)                        those that have no attempt left, see [`last`]
//! ```
//! *Done* is what lies below `next` and is not in flight: an ack out of order removes one key, and memory follows what is
//! in flight, not the span it covers. Nothing happens when a time runs out. The next receive finds the message in front
//! of `hidden` and hands it out again, one attempt later and under a new serial; a receipt whose serial is not the latest
//! one has expired, while a late ack by the holder who is still the last one counts.
//!
//! A receive of messages that the leader has looked at (filtered, or in order) is the matter of [`scanned`], and which message groups
//! are under way for a consumer group that wants order, of [`order`].
//!
//! A receive may carry an attempt key; a repeat of the key is answered with what is still in flight of the first answer (see
//! [`attempts`]), so an answer that was lost on its way costs nobody a wait.
//!
//! Origin: RocketMQ 5 POP consumption (`PopMessageProcessor`, `AckMessageProcessor`); there checkpoints are messages of a
//! revive topic, here they are state.

mod attempts;
mod last;
mod order;
mod place;
mod scanned;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{BufMut, BytesMut};
use quorate_proto::time::Timestamp;

use crate::machine::{
    QueueProgress,
    codec::{DecodeError, Reader},
    command::{Receive, ReceiveScanned, StartAt},
    effect::{Delivery, Refusal},
    handle::Handle,
    ids::{GroupId, MessageGroup, QueueId, QueueOffset, Serial, TopicId},
    topics::{QUEUES_MAX, Topic},
};

pub use attempts::AttemptKey;
use attempts::Attempts;
use last::Last;
pub use order::WAITING_MAX;
use order::{NEVER, Order};
pub use place::{Lag, Move};
use scanned::{Batches, Verdicts};

/// Most messages in flight per consumer group and queue; beyond it a queue hands out nothing new.
pub const IN_FLIGHT_MAX: usize = 65_536;

/// [`Subscription::ready`] counts at most this many timed-out or waiting messages per queue.
const COUNTED_MAX: usize = 256;

/// Where a consumer group stands in a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Subscription {
    queues: Vec<Progress>,
    attempts: Attempts,
}

/// Where it stands in one queue.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Progress {
    next: u64,
    /// How often the group gets a message.
    max_attempts: u32,
    in_flight: BTreeMap<u64, Flight>,
    /// Of what is in flight, what is handed out again when its time is over.
    hidden: BTreeSet<(Timestamp, u64)>,
    /// And what is not.
    last: Last,
    /// Empty for a group that does not want order; else everything in flight is in it.
    order: Order,
}

/// Where a group stands in a queue, as the leader needs it to read ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// First offset that the group has not come to.
    pub next: QueueOffset,
    /// Behind the last message.
    pub end: QueueOffset,
    /// How many more messages may be in flight.
    pub flight_room: usize,
    /// How many more messages may wait for their message group.
    pub waiting_room: usize,
}

/// A message that somebody holds, or held and lost by time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flight {
    visible_at: Timestamp,
    serial: Serial,
    /// 0 if it was handed out once and given back unseen.
    attempt: u32,
}

/// A message without an attempt left, whose time is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exhausted {
    /// Its last delivery.
    pub handle: Handle,
    /// Whose client id that went to, if it is known.
    pub consumer: Option<Arc<str>>,
}

/// What an ack came to.
pub(crate) enum Settled {
    /// The message was done already.
    Before,
    /// The message is done now; `freed` if that lets its message group go on.
    Now { freed: bool },
}

/// What a receipt handle is worth.
enum Standing {
    /// It is the latest word about its message.
    Held(Flight),
    /// Its message is done.
    Done,
}

impl Subscription {
    pub(crate) fn new(topic: &Topic, start: StartAt, max_attempts: u16) -> Self {
        let queues = topic.ranges().map(|range| Progress::new(start_offset(range, start), max_attempts));
        Self { queues: queues.collect(), attempts: Attempts::default() }
    }

    /// Adds the queues that the topic has got since. Whatever stands in them came later, so nothing is skipped.
    pub(crate) fn grow(&mut self, topic: &Topic, max_attempts: u16) {
        let new = topic.ranges().skip(self.queues.len());
        self.queues.extend(new.map(|(min, _)| Progress::new(min, max_attempts)));
    }

    /// The group gets a message so often from now on: what is in flight may have attempts left again, or none any more.
    pub(crate) fn set_max_attempts(&mut self, max_attempts: u16) {
        for progress in &mut self.queues {
            progress.set_max_attempts(max_attempts.into());
        }
    }

    /// Hands out what `receive` asks for. Takes serials from `issued` on.
    pub(crate) fn receive(
        &mut self,
        receive: &Receive,
        topic: &Topic,
        now: Timestamp,
        issued: &mut Serial,
    ) -> Vec<Delivery> {
        if let Some(key) = receive.attempt {
            let again = self.in_flight_of(receive.group, receive.topic, key, now);
            if !again.is_empty() {
                return again;
            }
        }
        let first_serial = *issued;
        let mut hand_out = HandOut::new(receive, now, issued);
        let count = self.queues.len();
        for number in rotation(count, receive.first_queue) {
            self.queues[number].hand_out_due(QueueId(number as u16), now, &mut hand_out, &mut self.attempts);
        }
        let ends: Vec<u64> = topic.ranges().map(|(_, end)| end).collect();
        for number in rotation(count, receive.first_queue) {
            self.queues[number].hand_out_new(QueueId(number as u16), ends[number], &mut hand_out);
        }
        self.remember(receive, first_serial, hand_out)
    }

    /// Hands out what is asked for from what was handed out before and from what the leader found in its scans; in the order of
    /// message groups if `fifo`. With verdicts, of the former only what is wanted.
    pub(crate) fn receive_scanned(
        &mut self,
        scanned: &ReceiveScanned,
        topic: &Topic,
        fifo: bool,
        now: Timestamp,
        issued: &mut Serial,
    ) -> Vec<Delivery> {
        let ReceiveScanned { receive, scans, verdicts } = scanned;
        if let Some(key) = receive.attempt {
            let again = self.in_flight_of(receive.group, receive.topic, key, now);
            if !again.is_empty() {
                return again;
            }
        }
        let first_serial = *issued;
        let mut hand_out = HandOut::new(receive, now, issued);
        let verdicts = verdicts.as_deref().map(Verdicts::new);
        let mut batches = Batches::default();
        for number in rotation(self.queues.len(), receive.first_queue) {
            let (queue, progress, attempts) = (QueueId(number as u16), &mut self.queues[number], &mut self.attempts);
            match (fifo, &verdicts) {
                (true, verdicts) => {
                    let verdicts = verdicts.as_ref();
                    progress.hand_out_free(queue, now, verdicts, &mut hand_out, attempts, &mut batches);
                }
                (false, None) => progress.hand_out_due(queue, now, &mut hand_out, attempts),
                (false, Some(verdicts)) => progress.hand_out_wanted(queue, now, verdicts, &mut hand_out, attempts),
            }
        }
        let ends: Vec<u64> = topic.ranges().map(|(_, end)| end).collect();
        for scan in scans {
            let number = usize::from(scan.queue.0);
            let (Some(progress), Some(end)) = (self.queues.get_mut(number), ends.get(number)) else { continue };
            if fifo {
                progress.hand_out_scan_in_order(scan, *end, &mut hand_out, &mut batches);
            } else {
                progress.hand_out_scan(scan, *end, &mut hand_out);
            }
        }
        self.remember(receive, first_serial, hand_out)
    }

    fn remember(&mut self, receive: &Receive, first_serial: Serial, hand_out: HandOut<'_>) -> Vec<Delivery> {
        let deliveries = hand_out.deliveries;
        if let Some(key) = receive.attempt {
            self.attempts.remember(key, first_serial, &deliveries);
        }
        deliveries
    }

    /// The message is done.
    pub(crate) fn ack(&mut self, handle: &Handle, now: Timestamp, issued: Serial) -> Result<Settled, Refusal> {
        let progress = self.queue_mut(handle.queue).ok_or(Refusal::ReceiptInvalid)?;
        match progress.standing(handle, issued)? {
            Standing::Done => Ok(Settled::Before),
            Standing::Held(flight) => {
                let freed = progress.settle(handle.offset.0, flight, now);
                self.attempts.retire(flight.serial);
                Ok(Settled::Now { freed })
            }
        }
    }

    /// Hides the delivery until `visible_at`, under the same serial if `renew`, else under the next one.
    pub(crate) fn change(
        &mut self,
        handle: &Handle,
        visible_at: Timestamp,
        renew: bool,
        issued: &mut Serial,
    ) -> Result<Handle, Refusal> {
        let progress = self.queue_mut(handle.queue).ok_or(Refusal::ReceiptInvalid)?;
        let Standing::Held(flight) = progress.standing(handle, *issued)? else {
            return Err(Refusal::ReceiptExpired);
        };
        let serial = if renew { flight.serial } else { take_serial(issued) };
        progress.hide(handle.offset.0, flight, Flight { visible_at, serial, ..flight });
        if !renew {
            self.attempts.retire(flight.serial);
        }
        Ok(Handle { serial, attempt: flight.attempt, ..*handle })
    }

    /// The delivery reached nobody: it does not count, and the message is visible at `visible_at`.
    pub(crate) fn give_back(&mut self, handle: &Handle, visible_at: Timestamp, issued: Serial) -> Result<(), Refusal> {
        let progress = self.queue_mut(handle.queue).ok_or(Refusal::ReceiptInvalid)?;
        let Standing::Held(flight) = progress.standing(handle, issued)? else {
            return Err(Refusal::ReceiptExpired);
        };
        let attempt = flight.attempt.saturating_sub(1);
        progress.hide(handle.offset.0, flight, Flight { visible_at, attempt, ..flight });
        self.attempts.retire(flight.serial);
        Ok(())
    }

    /// Whether the delivery ends as a dead letter: on its consumer's word (`forwarded`), else when it was the last one and its time is over.
    /// False if the message is done.
    pub(crate) fn check_dead(
        &self,
        handle: &Handle,
        forwarded: bool,
        now: Timestamp,
        issued: Serial,
    ) -> Result<bool, Refusal> {
        let progress = self.queues.get(usize::from(handle.queue.0)).ok_or(Refusal::ReceiptInvalid)?;
        match progress.standing(handle, issued)? {
            Standing::Done => Ok(false),
            Standing::Held(flight) if forwarded || progress.is_last(flight) && flight.visible_at <= now => Ok(true),
            Standing::Held(_) => Err(Refusal::AttemptsLeft),
        }
    }

    /// At most `max` messages without an attempt left whose time is over at `now`.
    pub(crate) fn exhausted(&self, group: GroupId, topic: TopicId, now: Timestamp, max: usize) -> Vec<Exhausted> {
        let mut found = Vec::new();
        for (queue, progress) in (0..).map(QueueId).zip(&self.queues) {
            let over = progress.last.over(now).take(max - found.len());
            found.extend(over.map(|offset| {
                let flight = &progress.in_flight[&offset];
                let consumer = progress.last.consumer(offset).cloned();
                Exhausted { handle: flight.delivery(group, topic, queue, offset).handle, consumer }
            }));
        }
        found
    }

    /// Of how many queues it keeps the progress.
    pub(crate) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Counts everything before `offset` as done; never goes back.
    pub(crate) fn commit(&mut self, queue: QueueId, offset: u64, now: Timestamp) {
        let Self { queues, attempts } = self;
        if let Some(progress) = queues.get_mut(usize::from(queue.0)) {
            progress.forget_below(offset, now, attempts);
            progress.next = progress.next.max(offset);
        }
    }

    /// Continues at `offset`; what is in flight is forgotten.
    pub(crate) fn reset(&mut self, queue: QueueId, offset: u64, now: Timestamp) {
        let Self { queues, attempts } = self;
        if let Some(progress) = queues.get_mut(usize::from(queue.0)) {
            progress.forget_below(u64::MAX, now, attempts);
            progress.next = offset;
        }
    }

    /// What a receive at `now` could hand out; what was handed out before is counted up to a limit per queue. In a group that wants
    /// order it may be less, since nobody here knows the message groups of what is new.
    pub(crate) fn ready(&self, topic: &Topic, fifo: bool, now: Timestamp) -> u64 {
        let mut ready = 0u64;
        for (number, (min, end)) in topic.ranges().enumerate() {
            ready += match self.queues.get(number) {
                Some(progress) => progress.new_count(end) + progress.again(fifo, now, COUNTED_MAX).len() as u64,
                None => end - min,
            };
        }
        ready
    }

    /// When the next message that was handed out, or waits for its message group, may go out.
    pub(crate) fn next_timeout(&self, fifo: bool) -> Option<Timestamp> {
        let next = |progress: &Progress| {
            if fifo { progress.order.next_free() } else { progress.hidden.first().map(|(at, _)| *at) }
        };
        self.queues.iter().filter_map(next).min()
    }

    /// Messages that were handed out or passed before and that a receive at `now` could hand out, at most `max`.
    pub(crate) fn again(&self, fifo: bool, first: QueueId, now: Timestamp, max: usize) -> Vec<(QueueId, QueueOffset)> {
        let mut places = Vec::new();
        for number in rotation(self.queues.len(), first) {
            let again = self.queues[number].again(fifo, now, max - places.len());
            places.extend(again.into_iter().map(|offset| (QueueId(number as u16), QueueOffset(offset))));
        }
        places
    }

    /// Where the group stands in a queue that ends at `end`.
    pub(crate) fn cursor(&self, queue: QueueId, end: u64) -> Option<Cursor> {
        let progress = self.queues.get(usize::from(queue.0))?;
        Some(Cursor {
            next: QueueOffset(progress.next),
            end: QueueOffset(end),
            flight_room: IN_FLIGHT_MAX.saturating_sub(progress.in_flight.len()),
            waiting_room: WAITING_MAX.saturating_sub(progress.order.waiting_count()),
        })
    }

    /// A batch of the message group is in flight and hidden.
    pub(crate) fn is_locked(&self, queue: QueueId, group: MessageGroup, now: Timestamp) -> bool {
        self.queues.get(usize::from(queue.0)).is_some_and(|progress| progress.order.is_locked(group, now))
    }

    /// Nothing is in flight and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.queues.iter().all(|progress| progress.in_flight.is_empty() && progress.order.is_empty())
    }

    /// What was handed out under `key` and is still hidden.
    pub(crate) fn in_flight_of(
        &self,
        group: GroupId,
        topic: TopicId,
        key: AttemptKey,
        now: Timestamp,
    ) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for (queue, offset, serial) in self.attempts.deliveries(key) {
            let Some(flight) = self.flight(queue, offset).filter(|flight| flight.serial == serial) else { continue };
            if flight.visible_at > now {
                deliveries.push(flight.delivery(group, topic, queue, offset));
            }
        }
        deliveries
    }

    pub(crate) fn progress(&self, queue: QueueId, end: u64) -> Option<QueueProgress> {
        let progress = self.queues.get(usize::from(queue.0))?;
        Some(QueueProgress {
            committed: QueueOffset(progress.committed()),
            next: QueueOffset(progress.next),
            in_flight: progress.in_flight.len() as u64,
            behind: end.saturating_sub(progress.next) + progress.order.waiting_count() as u64,
        })
    }

    fn flight(&self, queue: QueueId, offset: u64) -> Option<&Flight> {
        self.queues.get(usize::from(queue.0))?.in_flight.get(&offset)
    }

    fn queue_mut(&mut self, queue: QueueId) -> Option<&mut Progress> {
        self.queues.get_mut(usize::from(queue.0))
    }
}

/// Where a group begins in a queue.
pub(crate) fn start_offset((min, end): (u64, u64), start: StartAt) -> u64 {
    match start {
        // A group that begins at a time has begun before it receives, unless nobody could look: then nothing is skipped.
        StartAt::First | StartAt::Since(_) => min,
        StartAt::Last => end,
    }
}

fn take_serial(issued: &mut Serial) -> Serial {
    let serial = *issued;
    issued.0 += 1;
    serial
}

/// The numbers of `count` queues, each once, beginning at `first`.
fn rotation(count: usize, first: QueueId) -> impl Iterator<Item = usize> {
    (0..count).map(move |step| (usize::from(first.0) + step) % count)
}

/// A receive in the making.
struct HandOut<'a> {
    group: GroupId,
    topic: TopicId,
    visible_at: Timestamp,
    consumer: Option<&'a Arc<str>>,
    max: usize,
    issued: &'a mut Serial,
    deliveries: Vec<Delivery>,
}

impl<'a> HandOut<'a> {
    fn new(receive: &'a Receive, now: Timestamp, issued: &'a mut Serial) -> Self {
        let visible_at = Timestamp(now.0.saturating_add(receive.invisible_ms));
        let (group, topic, max) = (receive.group, receive.topic, usize::from(receive.max));
        Self { group, topic, visible_at, consumer: receive.consumer.as_ref(), max, issued, deliveries: Vec::new() }
    }

    fn left(&self) -> usize {
        self.max - self.deliveries.len()
    }

    fn deliver(&mut self, queue: QueueId, offset: u64, attempt: u32) -> Flight {
        let flight = Flight { visible_at: self.visible_at, serial: take_serial(self.issued), attempt };
        self.deliveries.push(flight.delivery(self.group, self.topic, queue, offset));
        flight
    }
}

impl Flight {
    fn delivery(&self, group: GroupId, topic: TopicId, queue: QueueId, offset: u64) -> Delivery {
        let Self { visible_at, serial, attempt } = *self;
        let offset = QueueOffset(offset);
        let handle = Handle { topic, group, queue, offset, serial, attempt };
        Delivery { queue, offset, attempt, handle, visible_at }
    }
}

impl Progress {
    fn new(next: u64, max_attempts: u16) -> Self {
        Self {
            next,
            max_attempts: max_attempts.into(),
            in_flight: BTreeMap::new(),
            hidden: BTreeSet::new(),
            last: Last::default(),
            order: Order::default(),
        }
    }

    /// Nobody gets the message again after this delivery.
    fn is_last(&self, flight: Flight) -> bool {
        flight.attempt >= self.max_attempts
    }

    /// When time alone lets the message group of a delivery go on.
    fn frees_at(&self, flight: Flight) -> Timestamp {
        if self.is_last(flight) { NEVER } else { flight.visible_at }
    }

    fn set_max_attempts(&mut self, max_attempts: u32) {
        self.max_attempts = max_attempts;
        let last = std::mem::take(&mut self.last);
        self.hidden.clear();
        for (offset, flight) in self.in_flight.clone() {
            self.note(offset, flight);
            if let Some(consumer) = last.consumer(offset).filter(|_| self.is_last(flight)) {
                self.last.note(offset, consumer);
            }
            self.order.hide(offset, self.frees_at(flight));
        }
    }

    fn note(&mut self, offset: u64, flight: Flight) {
        if self.is_last(flight) {
            self.last.add(offset, flight.visible_at);
        } else {
            self.hidden.insert((flight.visible_at, offset));
        }
    }

    fn forget(&mut self, offset: u64, flight: Flight) {
        self.hidden.remove(&(flight.visible_at, offset));
        self.last.forget(offset, flight.visible_at);
    }

    fn committed(&self) -> u64 {
        let in_flight = self.in_flight.first_key_value().map_or(self.next, |(offset, _)| *offset);
        self.order.first_waiting().map_or(in_flight, |waiting| waiting.min(in_flight))
    }

    fn new_count(&self, end: u64) -> u64 {
        let room = IN_FLIGHT_MAX.saturating_sub(self.in_flight.len()) as u64;
        end.saturating_sub(self.next).min(room)
    }

    fn due(&self, now: Timestamp) -> impl Iterator<Item = u64> + '_ {
        self.hidden.range(..=(now, u64::MAX)).map(|(_, offset)| *offset)
    }

    /// What was handed out or passed before and may go out at `now`, at most `max`.
    fn again(&self, fifo: bool, now: Timestamp, max: usize) -> Vec<u64> {
        if fifo {
            self.order.free(now).flat_map(|group| self.order.places(group)).take(max).collect()
        } else {
            self.due(now).take(max).collect()
        }
    }

    fn hand_out_due(&mut self, queue: QueueId, now: Timestamp, out: &mut HandOut<'_>, attempts: &mut Attempts) {
        if out.left() == 0 || self.hidden.first().is_none_or(|(visible_at, _)| *visible_at > now) {
            return;
        }
        let due: Vec<u64> = self.due(now).take(out.left()).collect();
        for offset in due {
            let old = *self.in_flight.get(&offset).expect("what is hidden is in flight");
            self.deliver_again(queue, offset, old, out, attempts);
        }
    }

    fn deliver_again(
        &mut self,
        queue: QueueId,
        offset: u64,
        old: Flight,
        out: &mut HandOut<'_>,
        attempts: &mut Attempts,
    ) {
        let forgotten = cfg!(feature = "mutant-attempt-forgotten") && offset.is_multiple_of(3);
        let flight = out.deliver(queue, offset, old.attempt.saturating_add(u32::from(!forgotten)));
        self.hide(offset, old, flight);
        self.note_consumer(offset, flight, out);
        attempts.retire(old.serial);
    }

    fn deliver_new(&mut self, queue: QueueId, offset: u64, out: &mut HandOut<'_>) -> Flight {
        let flight = out.deliver(queue, offset, 1);
        self.in_flight.insert(offset, flight);
        self.note(offset, flight);
        self.note_consumer(offset, flight, out);
        flight
    }

    fn note_consumer(&mut self, offset: u64, flight: Flight, out: &HandOut<'_>) {
        if let Some(consumer) = out.consumer.filter(|_| self.is_last(flight)) {
            self.last.note(offset, consumer);
        }
    }

    fn hand_out_new(&mut self, queue: QueueId, end: u64, out: &mut HandOut<'_>) {
        let count = self.new_count(end).min(out.left() as u64);
        for offset in self.next..self.next + count {
            self.deliver_new(queue, offset, out);
        }
        self.next += count;
    }

    fn hide(&mut self, offset: u64, before: Flight, flight: Flight) {
        if self.is_last(before) && self.is_last(flight) {
            self.last.take(offset, before.visible_at);
        } else {
            self.forget(offset, before);
        }
        self.note(offset, flight);
        self.in_flight.insert(offset, flight);
        self.order.hide(offset, self.frees_at(flight));
    }

    /// The message is done. True if that lets its message group go on.
    fn settle(&mut self, offset: u64, flight: Flight, now: Timestamp) -> bool {
        self.in_flight.remove(&offset);
        self.forget(offset, flight);
        self.order.settle(offset, now)
    }

    fn standing(&self, handle: &Handle, issued: Serial) -> Result<Standing, Refusal> {
        if handle.serial >= issued {
            return Err(Refusal::ReceiptInvalid);
        }
        match self.in_flight.get(&handle.offset.0) {
            Some(flight) if handle.serial == flight.serial => Ok(Standing::Held(*flight)),
            Some(flight) if handle.serial < flight.serial => Err(Refusal::ReceiptExpired),
            Some(_) => Err(Refusal::ReceiptInvalid),
            None if handle.offset.0 < self.next && !self.order.is_waiting(handle.offset.0) => Ok(Standing::Done),
            // The group was set back to before this message since the handle was issued.
            None => Err(Refusal::ReceiptExpired),
        }
    }

    fn forget_below(&mut self, offset: u64, now: Timestamp, attempts: &mut Attempts) {
        self.order.settle_below(offset, now);
        while let Some(first) = self.in_flight.first_entry().filter(|first| *first.key() < offset) {
            let (offset, flight) = first.remove_entry();
            self.forget(offset, flight);
            attempts.retire(flight.serial);
        }
    }
}

impl Subscription {
    pub(crate) fn save(&self, out: &mut BytesMut) {
        out.put_u32_le(self.queues.len() as u32);
        for progress in &self.queues {
            out.put_u64_le(progress.next);
            out.put_u32_le(progress.in_flight.len() as u32);
            for (offset, flight) in &progress.in_flight {
                out.put_u64_le(*offset);
                out.put_u64_le(flight.visible_at.0);
                out.put_u64_le(flight.serial.0);
                out.put_u32_le(flight.attempt);
            }
            progress.last.save(out);
            progress.order.save(out);
        }
        self.attempts.save(out);
    }

    pub(crate) fn load(
        topic: &Topic,
        (fifo, max_attempts): (bool, u16),
        issued: Serial,
        reader: &mut Reader,
    ) -> Result<Self, DecodeError> {
        let count = reader.count(16)?;
        if count > usize::from(QUEUES_MAX.min(topic.queues())) {
            return Err(reader.error("progress in more queues than the topic has"));
        }
        let ends = topic.ranges().map(|(_, end)| end).take(count);
        let load = |end| Progress::load(end, (fifo, max_attempts), issued, reader);
        let queues = ends.map(load).collect::<Result<_, _>>()?;
        let mut subscription = Self { queues, attempts: Attempts::default() };
        let mut in_flight = BTreeMap::new();
        for (queue, progress) in (0..).map(QueueId).zip(&subscription.queues) {
            for (offset, flight) in &progress.in_flight {
                if in_flight.insert(flight.serial, (queue, *offset)).is_some() {
                    return Err(reader.error("two deliveries under one serial"));
                }
            }
        }
        subscription.attempts = Attempts::load(&in_flight, issued, reader)?;
        Ok(subscription)
    }
}

impl Progress {
    fn load(
        end: u64,
        (fifo, max_attempts): (bool, u16),
        issued: Serial,
        reader: &mut Reader,
    ) -> Result<Self, DecodeError> {
        let mut progress = Self::new(reader.u64()?, max_attempts);
        if progress.next > end {
            return Err(reader.error("progress behind the end of its queue"));
        }
        let mut behind = 0;
        for _ in 0..reader.count(28)? {
            let offset = reader.u64()?;
            let visible_at = Timestamp(reader.u64()?);
            let serial = Serial(reader.u64()?);
            let attempt = reader.u32()?;
            if offset < behind || offset >= progress.next || serial >= issued {
                return Err(reader.error("a delivery that cannot be"));
            }
            behind = offset + 1;
            let flight = Flight { visible_at, serial, attempt };
            progress.in_flight.insert(offset, flight);
            progress.note(offset, flight);
        }
        progress.last.load_consumers(reader)?;
        let frees_at = |offset| progress.in_flight.get(&offset).map(|flight| progress.frees_at(*flight));
        let in_order = if fifo { progress.in_flight.len() } else { 0 };
        let order = Order::load(in_order, frees_at, progress.next, reader)?;
        if !fifo && !order.is_empty() {
            return Err(reader.error("message groups of a consumer group without order"));
        }
        progress.order = order;
        Ok(progress)
    }
}
