//! Delayed messages: stored once at their send, invisible until log time reaches their delivery timestamp.
//!
//! ```text
//!   SendDelayed ─▶ pending, by (due, number) ──▶ Deliver: a new record at the end of its queue
//!                       │   │                        (refused before `due`, and when it is not pending any more)
//!                       │   └── Carry: the body once more at the head of the log; the old place is let go
//!                       └────── Recall: remembered until `due`, so that a repeated recall is answered like the first
//! ```
//! A delivered message is a new record, body included, so that retention counts from when it becomes visible, as for every other
//! message. A pending one is a place in the log and nothing else: about 100 bytes of memory each, whatever its body (48 bytes in a
//! B-tree that is two thirds full), and 42 in an image. Bodies are read by whoever leads; the machine never sees one. Deliver,
//! Carry and Recall name the pending message and are refused if it is gone, so any number of leaders may propose them (LAW-SAME).
//! No clock but the log's stamps decides (LAW-CLOCK).

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, BytesMut};
use quorate_proto::time::Timestamp;
use quorate_raft::Position;

use crate::machine::{
    codec::{DecodeError, Reader},
    effect::Refusal,
    ids::{QueueId, TopicId},
    record::Pointer,
};

/// Pending messages whose due times share this many upper bits are saved together: about four minutes.
const PART_BITS: u32 = 18;

/// Names a delayed message for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DelayId {
    /// When it is due, in log time.
    pub due: Timestamp,
    /// Its number; counted from the group's birth.
    pub number: u64,
}

impl DelayId {
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn encode(self, out: &mut BytesMut) {
        out.put_u64_le(self.due.0);
        out.put_u64_le(self.number);
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { due: Timestamp(reader.u64()?), number: reader.u64()? })
    }
}

/// A delayed message that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Its topic.
    pub topic: TopicId,
    /// The queue it will stand in.
    pub queue: QueueId,
    /// Where its body stands now.
    pub pointer: Pointer,
}

/// How many messages wait, and for how long at least.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DelayStats {
    /// Messages that wait.
    pub pending: u64,
    /// Bytes of their bodies in the log.
    pub bytes: u64,
    /// Number of the next one to come.
    pub next_number: u64,
    /// When the next is due; that may have passed already.
    pub next_due: Option<Timestamp>,
    /// Messages whose body the floor has passed, ever: always 0, since the leader carries bodies up first.
    pub lost: u64,
}

/// The delayed messages of a broker group.
#[derive(Clone, Default)]
pub(crate) struct Delay {
    /// Number of the next one.
    next: u64,
    pending: BTreeMap<DelayId, Pending>,
    /// Taken back, and not yet due.
    recalled: BTreeSet<DelayId>,
    /// Bytes of pending bodies.
    bytes: u64,
    lost: u64,
}

impl Delay {
    /// Takes a message on.
    pub(crate) fn add(&mut self, due: Timestamp, message: Pending) -> DelayId {
        let id = DelayId { due, number: self.next };
        self.next += 1;
        self.bytes += u64::from(message.pointer.size);
        self.pending.insert(id, message);
        id
    }

    /// Hands a message over for its queue.
    pub(crate) fn deliver(&mut self, id: DelayId, now: Timestamp) -> Result<Pending, Refusal> {
        if now < id.due {
            return Err(Refusal::NotDue { due: id.due });
        }
        self.take(id).ok_or(Refusal::NotPending)
    }

    /// Takes a message back. Again, before it was due: the same answer.
    pub(crate) fn recall(&mut self, id: DelayId, topic: TopicId) -> Result<(), Refusal> {
        if id.number >= self.next {
            return Err(Refusal::RecallInvalid);
        }
        if self.recalled.contains(&id) {
            return Ok(());
        }
        match self.pending.get(&id) {
            None => Err(Refusal::RecallTooLate),
            Some(message) if message.topic != topic => Err(Refusal::RecallInvalid),
            Some(_) => {
                self.take(id);
                self.recalled.insert(id);
                Ok(())
            }
        }
    }

    /// The body of a message stands at `position` from now on.
    pub(crate) fn carry(&mut self, id: DelayId, position: Position) -> Result<(), Refusal> {
        let message = self.pending.get_mut(&id).ok_or(Refusal::NotPending)?;
        message.pointer.position = position;
        Ok(())
    }

    /// Forgets recalled messages that would be due by now.
    pub(crate) fn forget(&mut self, now: Timestamp) {
        while self.recalled.first().is_some_and(|id| id.due <= now) {
            self.recalled.pop_first();
        }
    }

    /// A topic is gone, and with it what waits for it.
    pub(crate) fn drop_topic(&mut self, topic: TopicId) {
        self.retain(|message| message.topic != topic);
    }

    /// The floor has moved. A body below it is gone, and a message without one can never be delivered.
    pub(crate) fn floor(&mut self, floor: Position) {
        let before = self.pending.len();
        self.retain(|message| message.pointer.position >= floor);
        self.lost += (before - self.pending.len()) as u64;
    }

    fn take(&mut self, id: DelayId) -> Option<Pending> {
        let message = self.pending.remove(&id)?;
        self.bytes -= u64::from(message.pointer.size);
        Some(message)
    }

    fn retain(&mut self, keep: impl Fn(&Pending) -> bool) {
        self.pending.retain(|_, message| keep(message));
        self.bytes = self.pending.values().map(|message| u64::from(message.pointer.size)).sum();
    }

    /// What is due at `now`, the longest overdue first.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = (DelayId, Pending)> + '_ {
        self.pending.iter().map(|(id, message)| (*id, *message)).take_while(move |(id, _)| id.due <= now)
    }

    /// What waits behind `after`, in order of its due time.
    pub(crate) fn after(&self, after: Option<DelayId>) -> impl Iterator<Item = (DelayId, Pending)> + '_ {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.pending.range((from, std::ops::Bound::Unbounded)).map(|(id, message)| (*id, *message))
    }

    pub(crate) fn stats(&self) -> DelayStats {
        DelayStats {
            pending: self.pending.len() as u64,
            bytes: self.bytes,
            next_number: self.next,
            next_due: self.pending.first_key_value().map(|(id, _)| id.due),
            lost: self.lost,
        }
    }

    /// No message was ever delayed.
    pub(crate) fn is_new(&self) -> bool {
        self.next == 0
    }

    /// Writes everything but the pending messages.
    pub(crate) fn save_head(&self, out: &mut BytesMut) {
        out.put_u64_le(self.next);
        out.put_u64_le(self.lost);
        out.put_u32_le(u32::try_from(self.recalled.len()).expect("recalled messages are fewer than 4 billion"));
        for id in &self.recalled {
            id.encode(out);
        }
    }

    /// Writes the pending messages part by part, each behind its number; parts come in order.
    pub(crate) fn save_pending(&self, mut part: impl FnMut(u64, &mut dyn FnMut(&mut BytesMut))) {
        let mut rest = self.pending.iter().peekable();
        while let Some((first, _)) = rest.peek() {
            let number = first.due.0 >> PART_BITS;
            part(number, &mut |out| {
                while let Some((id, message)) = rest.next_if(|(id, _)| id.due.0 >> PART_BITS == number) {
                    id.encode(out);
                    out.put_u32_le(message.topic.0);
                    out.put_u16_le(message.queue.0);
                    out.put_slice(&message.pointer.encode());
                }
            });
        }
    }

    pub(crate) fn load_head(&mut self, reader: &mut Reader) -> Result<(), DecodeError> {
        (self.next, self.lost) = (reader.u64()?, reader.u64()?);
        if self.next == 0 {
            return Err(reader.error("delayed messages before the first"));
        }
        for _ in 0..reader.count(DelayId::BYTES)? {
            let id = DelayId::decode(reader)?;
            if id.number >= self.next || self.recalled.last().is_some_and(|last| *last >= id) {
                return Err(reader.error("recalled messages are not in order"));
            }
            self.recalled.insert(id);
        }
        Ok(())
    }

    pub(crate) fn load_pending(&mut self, number: u64, reader: &mut Reader) -> Result<(), DecodeError> {
        if reader.left() == 0 {
            return Err(reader.error("a part without delayed messages"));
        }
        while reader.left() > 0 {
            let id = DelayId::decode(reader)?;
            let topic = TopicId(reader.u32()?);
            let queue = QueueId(reader.u16()?);
            let pointer = Pointer::load(reader)?;
            let in_order = self.pending.last_key_value().is_none_or(|(last, _)| *last < id);
            if !in_order || id.due.0 >> PART_BITS != number || id.number >= self.next || self.recalled.contains(&id) {
                return Err(reader.error("delayed messages are not in order"));
            }
            self.bytes += u64::from(pointer.size);
            self.pending.insert(id, Pending { topic, queue, pointer });
        }
        Ok(())
    }
}
