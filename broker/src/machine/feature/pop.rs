//! Receive, ack, change-invisible: who holds which message, and until when.
//!
//! Per consumer group and queue:
//!
//! ```text
//!   offsets  0 ………… committed ……………………… next ………………… end
//!            │  all done  │ done, or in flight │ never handed out │
//!   in flight  offset ─▶ (visible at, serial, attempt)     ordered: its first key is `committed`
//!   hidden     (visible at, offset)                        ordered: what has timed out stands in front
//! ```
//! *Done* is what lies below `next` and is not in flight: an ack out of order removes one key, and memory follows what is
//! in flight, not the span it covers. Nothing happens when a time runs out. The next receive finds the message in front
//! of `hidden` and hands it out again, one attempt later and under a new serial; a receipt whose serial is not the latest
//! one has expired, while a late ack by the holder who is still the last one counts.
//!
//! A receive may carry an attempt key; a repeat of the key is answered with what is still in flight of the first answer (see
//! [`attempts`]), so an answer that was lost on its way costs nobody a wait.
//!
//! Origin: RocketMQ 5 POP consumption (`PopMessageProcessor`, `AckMessageProcessor`); there checkpoints are messages of a
//! revive topic, here they are state.

mod attempts;

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, BytesMut};
use quorate_proto::time::Timestamp;

use crate::machine::{
    QueueProgress,
    codec::{DecodeError, Reader},
    command::{Receive, StartAt},
    effect::{Delivery, Refusal},
    handle::Handle,
    ids::{GroupId, QueueId, QueueOffset, Serial, TopicId},
    topics::{QUEUES_MAX, Topic},
};

pub use attempts::AttemptKey;
use attempts::Attempts;

/// Most messages in flight per consumer group and queue; beyond it a queue hands out nothing new.
pub const IN_FLIGHT_MAX: usize = 65_536;

/// [`Subscription::ready`] counts at most this many timed-out messages per queue.
const DUE_COUNTED_MAX: usize = 256;

/// Where a consumer group stands in a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Subscription {
    queues: Vec<Progress>,
    attempts: Attempts,
}

/// Where it stands in one queue.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Progress {
    next: u64,
    in_flight: BTreeMap<u64, Flight>,
    hidden: BTreeSet<(Timestamp, u64)>,
}

/// A message that somebody holds, or held and lost by time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flight {
    visible_at: Timestamp,
    serial: Serial,
    attempt: u32,
}

/// What a receipt handle is worth.
enum Standing {
    /// It is the latest word about its message.
    Held(Flight),
    /// Its message is done.
    Done,
}

impl Subscription {
    pub(crate) fn new(topic: &Topic, start: StartAt) -> Self {
        let queues = topic.ranges().map(|range| Progress { next: start_offset(range, start), ..Progress::default() });
        Self { queues: queues.collect(), attempts: Attempts::default() }
    }

    /// Adds the queues that the topic has got since. Whatever stands in them came later, so nothing is skipped.
    pub(crate) fn grow(&mut self, topic: &Topic) {
        let new = topic.ranges().skip(self.queues.len());
        self.queues.extend(new.map(|(min, _)| Progress { next: min, ..Progress::default() }));
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
        let mut hand_out = HandOut {
            group: receive.group,
            topic: receive.topic,
            visible_at: Timestamp(now.0.saturating_add(receive.invisible_ms)),
            max: usize::from(receive.max),
            issued,
            deliveries: Vec::new(),
        };
        let count = self.queues.len();
        let rotation = || (0..count).map(move |step| (usize::from(receive.first_queue.0) + step) % count);
        for number in rotation() {
            self.queues[number].hand_out_due(QueueId(number as u16), now, &mut hand_out, &mut self.attempts);
        }
        let ends: Vec<u64> = topic.ranges().map(|(_, end)| end).collect();
        for number in rotation() {
            self.queues[number].hand_out_new(QueueId(number as u16), ends[number], &mut hand_out);
        }
        let deliveries = hand_out.deliveries;
        if let Some(key) = receive.attempt {
            self.attempts.remember(key, first_serial, &deliveries);
        }
        deliveries
    }

    /// The message is done. `Ok(true)` if it was not before.
    pub(crate) fn ack(&mut self, handle: &Handle, issued: Serial) -> Result<bool, Refusal> {
        let progress = self.queue_mut(handle.queue).ok_or(Refusal::ReceiptInvalid)?;
        match progress.standing(handle, issued)? {
            Standing::Done => Ok(false),
            Standing::Held(flight) => {
                progress.settle(handle.offset.0, flight);
                self.attempts.retire(flight.serial);
                Ok(true)
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
        progress.hide(handle.offset.0, flight.visible_at, Flight { visible_at, serial, ..flight });
        if !renew {
            self.attempts.retire(flight.serial);
        }
        Ok(Handle { serial, attempt: flight.attempt, ..*handle })
    }

    /// Counts everything before `offset` as done; never goes back.
    pub(crate) fn commit(&mut self, queue: QueueId, offset: u64) {
        let Self { queues, attempts } = self;
        if let Some(progress) = queues.get_mut(usize::from(queue.0)) {
            progress.forget_below(offset, attempts);
            progress.next = progress.next.max(offset);
        }
    }

    /// Continues at `offset`; what is in flight is forgotten.
    pub(crate) fn reset(&mut self, queue: QueueId, offset: u64) {
        let Self { queues, attempts } = self;
        if let Some(progress) = queues.get_mut(usize::from(queue.0)) {
            progress.forget_below(u64::MAX, attempts);
            progress.next = offset;
        }
    }

    /// What a receive at `now` could hand out; timed-out messages are counted up to a limit per queue.
    pub(crate) fn ready(&self, topic: &Topic, now: Timestamp) -> u64 {
        let mut ready = 0u64;
        for (number, (min, end)) in topic.ranges().enumerate() {
            ready += match self.queues.get(number) {
                Some(progress) => progress.new_count(end) + progress.due(now).take(DUE_COUNTED_MAX).count() as u64,
                None => end - min,
            };
        }
        ready
    }

    /// When the next hidden message becomes visible.
    pub(crate) fn next_timeout(&self) -> Option<Timestamp> {
        self.queues.iter().filter_map(|progress| Some(progress.hidden.first()?.0)).min()
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
            behind: end.saturating_sub(progress.next),
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
        StartAt::First => min,
        StartAt::Last => end,
    }
}

fn take_serial(issued: &mut Serial) -> Serial {
    let serial = *issued;
    issued.0 += 1;
    serial
}

/// A receive in the making.
struct HandOut<'a> {
    group: GroupId,
    topic: TopicId,
    visible_at: Timestamp,
    max: usize,
    issued: &'a mut Serial,
    deliveries: Vec<Delivery>,
}

impl HandOut<'_> {
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
    fn committed(&self) -> u64 {
        self.in_flight.first_key_value().map_or(self.next, |(offset, _)| *offset)
    }

    fn new_count(&self, end: u64) -> u64 {
        let room = IN_FLIGHT_MAX.saturating_sub(self.in_flight.len()) as u64;
        end.saturating_sub(self.next).min(room)
    }

    fn due(&self, now: Timestamp) -> impl Iterator<Item = u64> + '_ {
        self.hidden.range(..=(now, u64::MAX)).map(|(_, offset)| *offset)
    }

    fn hand_out_due(&mut self, queue: QueueId, now: Timestamp, out: &mut HandOut<'_>, attempts: &mut Attempts) {
        if out.left() == 0 || self.hidden.first().is_none_or(|(visible_at, _)| *visible_at > now) {
            return;
        }
        let due: Vec<u64> = self.due(now).take(out.left()).collect();
        for offset in due {
            let old = *self.in_flight.get(&offset).expect("what is hidden is in flight");
            let flight = out.deliver(queue, offset, old.attempt.saturating_add(1));
            self.hide(offset, old.visible_at, flight);
            attempts.retire(old.serial);
        }
    }

    fn hand_out_new(&mut self, queue: QueueId, end: u64, out: &mut HandOut<'_>) {
        let count = self.new_count(end).min(out.left() as u64);
        for offset in self.next..self.next + count {
            let flight = out.deliver(queue, offset, 1);
            self.in_flight.insert(offset, flight);
            self.hidden.insert((flight.visible_at, offset));
        }
        self.next += count;
    }

    fn hide(&mut self, offset: u64, visible_before: Timestamp, flight: Flight) {
        self.hidden.remove(&(visible_before, offset));
        self.hidden.insert((flight.visible_at, offset));
        self.in_flight.insert(offset, flight);
    }

    fn settle(&mut self, offset: u64, flight: Flight) {
        self.in_flight.remove(&offset);
        self.hidden.remove(&(flight.visible_at, offset));
    }

    fn standing(&self, handle: &Handle, issued: Serial) -> Result<Standing, Refusal> {
        if handle.serial >= issued {
            return Err(Refusal::ReceiptInvalid);
        }
        match self.in_flight.get(&handle.offset.0) {
            Some(flight) if handle.serial == flight.serial => Ok(Standing::Held(*flight)),
            Some(flight) if handle.serial < flight.serial => Err(Refusal::ReceiptExpired),
            Some(_) => Err(Refusal::ReceiptInvalid),
            None if handle.offset.0 < self.next => Ok(Standing::Done),
            // The group was set back to before this message since the handle was issued.
            None => Err(Refusal::ReceiptExpired),
        }
    }

    fn forget_below(&mut self, offset: u64, attempts: &mut Attempts) {
        while let Some(first) = self.in_flight.first_entry().filter(|first| *first.key() < offset) {
            let (offset, flight) = first.remove_entry();
            self.hidden.remove(&(flight.visible_at, offset));
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
        }
        self.attempts.save(out);
    }

    pub(crate) fn load(topic: &Topic, issued: Serial, reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = reader.count(12)?;
        if count > usize::from(QUEUES_MAX.min(topic.queues())) {
            return Err(reader.error("progress in more queues than the topic has"));
        }
        let ends = topic.ranges().map(|(_, end)| end).take(count);
        let queues = ends.map(|end| Progress::load(end, issued, reader)).collect::<Result<_, _>>()?;
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
    fn load(end: u64, issued: Serial, reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut progress = Self { next: reader.u64()?, ..Self::default() };
        if progress.next > end {
            return Err(reader.error("progress behind the end of its queue"));
        }
        let mut behind = 0;
        for _ in 0..reader.count(28)? {
            let offset = reader.u64()?;
            let visible_at = Timestamp(reader.u64()?);
            let serial = Serial(reader.u64()?);
            let attempt = reader.u32()?;
            if offset < behind || offset >= progress.next || serial >= issued || attempt == 0 {
                return Err(reader.error("a delivery that cannot be"));
            }
            behind = offset + 1;
            progress.in_flight.insert(offset, Flight { visible_at, serial, attempt });
            progress.hidden.insert((visible_at, offset));
        }
        Ok(progress)
    }
}
