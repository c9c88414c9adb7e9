//! Transactional messages: stored once at their send as half messages, and in no queue until their producer says so.
//!
//! ```text
//!   SendHalf ─▶ half, by number ──┬── Resolve(commit): its place in the log joins its queue
//!                 │   ▲           └── Resolve(rollback): it is gone
//!                 │   └── Carry: the body once more at the head of the log; the old place is let go
//!                 └── Checked: its producer was asked; asked again later, or set aside after the last time
//! ```
//! A commit points to the body where it stands. Only if a segment border lies between the two does it bring the body along, since a
//! queue's records leave with the segment at whose border the queue ended, and a body must not leave before. A half message is a place
//! in the log and nothing else, whatever its body: about 120 bytes of memory, and 53 in an image. How the last [`KEPT`] transactions ended
//! is remembered as one bit each, so that a repeated resolution gets the same answer and the opposite one a clear no. Nobody asks about
//! a half message that is set aside, but it can still be resolved. Resolve, Checked and Carry name the half message and are refused if it
//! does not wait any more, so any number of leaders may propose them (LAW-SAME). No clock but the log's stamps decides (LAW-CLOCK).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bytes::{BufMut, BytesMut};
use quorate_proto::time::Timestamp;
use quorate_raft::Position;

use crate::machine::{
    codec::{DecodeError, Reader},
    effect::Refusal,
    ids::{QueueId, TopicId},
    record::Pointer,
};

/// How many of the latest transactions are remembered when they are resolved; half a MiB at most.
pub const KEPT: u64 = 1 << 22;

/// Half messages whose numbers share the upper bits are saved together.
const PART_BITS: u32 = 9;

/// Resolutions are remembered in pieces of so many.
const PIECE: u64 = 4096;
const WORDS: usize = PIECE as usize / 64;

/// Names a transaction for ever: its number, counted from the group's birth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HalfId(pub u64);

impl HalfId {
    pub(crate) const BYTES: usize = 8;
}

/// How a transaction ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Resolution {
    /// The message becomes visible.
    Commit = 1,
    /// It never does.
    Rollback = 2,
}

impl Resolution {
    /// What people call the end.
    pub fn name(self) -> &'static str {
        match self {
            Self::Commit => "committed",
            Self::Rollback => "rolled back",
        }
    }

    /// Back from its persisted number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Commit, Self::Rollback].into_iter().find(|resolution| *resolution as u8 == number)
    }
}

/// A message that waits for its resolution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Half {
    /// Its topic.
    pub topic: TopicId,
    /// The queue it will stand in.
    pub queue: QueueId,
    /// Where its body stands now.
    pub pointer: Pointer,
    /// When it was sent, in log time.
    pub sent_at: Timestamp,
    /// How often a producer was asked about it.
    pub checks: u16,
    /// When one is asked next. `None` when it is set aside and nobody asks any more.
    pub check_at: Option<Timestamp>,
}

/// How many half messages wait.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TransactionStats {
    /// Half messages that producers are asked about.
    pub pending: u64,
    /// Half messages that nobody asks about any more.
    pub set_aside: u64,
    /// Bytes of the bodies of both in the log.
    pub bytes: u64,
    /// Number of the next one to come.
    pub next_number: u64,
    /// Half messages whose body the floor has passed, ever: always 0, since the leader carries bodies up first.
    pub lost: u64,
}

/// The transactions of a broker group.
#[derive(Clone, Default)]
pub(crate) struct Transactions {
    /// Number of the next one.
    next: u64,
    halves: BTreeMap<HalfId, Half>,
    /// Those that are not set aside, by topic and by when a producer is asked next.
    checks: BTreeMap<TopicId, BTreeSet<(Timestamp, HalfId)>>,
    /// Which of the last [`KEPT`] were committed. What is neither here nor among the halves was rolled back.
    committed: BTreeMap<u64, [u64; WORDS]>,
    /// Bytes of bodies.
    bytes: u64,
    set_aside: u64,
    lost: u64,
}

impl Transactions {
    /// Takes a half message on.
    pub(crate) fn add(&mut self, half: Half) -> HalfId {
        let id = HalfId(self.next);
        self.next += 1;
        if self.next.is_multiple_of(PIECE) {
            let first = self.first_kept() / PIECE;
            self.committed = self.committed.split_off(&first);
        }
        self.insert(id, half);
        id
    }

    /// A half message that waits.
    pub(crate) fn half(&self, id: HalfId) -> Option<&Half> {
        self.halves.get(&id)
    }

    /// Ends a transaction. `None` if it had ended like that before.
    pub(crate) fn resolve(&mut self, id: HalfId, resolution: Resolution) -> Result<Option<Half>, Refusal> {
        if id.0 >= self.next {
            return Err(Refusal::TransactionUnknown);
        }
        if let Some(half) = self.take(id) {
            if resolution == Resolution::Commit {
                let piece = self.committed.entry(id.0 / PIECE).or_insert([0; WORDS]);
                piece[word(id)] |= bit(id);
            }
            return Ok(Some(half));
        }
        if id.0 < self.first_kept() {
            return Err(Refusal::TransactionForgotten);
        }
        let ended = if self.is_committed(id) { Resolution::Commit } else { Resolution::Rollback };
        if ended == resolution { Ok(None) } else { Err(Refusal::TransactionEnded { ended }) }
    }

    /// A producer was asked for the `checks + 1`st time and is asked again at `again`, or is not asked any more.
    pub(crate) fn checked(
        &mut self,
        id: HalfId,
        checks: u16,
        again: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let half = self.halves.get(&id).ok_or(Refusal::NotPending)?;
        let Some(due) = half.check_at.filter(|_| half.checks == checks) else { return Err(Refusal::CheckedSince) };
        if now < due {
            return Err(Refusal::NotDue { due });
        }
        let Some(mut half) = self.take(id) else { return Err(Refusal::NotPending) };
        half.checks = half.checks.saturating_add(u16::from(again.is_some()));
        half.check_at = again;
        self.insert(id, half);
        Ok(())
    }

    /// The body of a half message stands at `position` from now on.
    pub(crate) fn carry(&mut self, id: HalfId, position: Position) -> Result<(), Refusal> {
        let half = self.halves.get_mut(&id).ok_or(Refusal::NotPending)?;
        half.pointer.position = position;
        Ok(())
    }

    /// A topic is gone, and with it what waits for it.
    pub(crate) fn drop_topic(&mut self, topic: TopicId) {
        self.remove_if(|half| half.topic == topic);
    }

    /// The floor has moved. A body below it is gone, and a half message without one can never be committed.
    pub(crate) fn floor(&mut self, floor: Position) {
        self.lost += self.remove_if(|half| half.pointer.position < floor);
    }

    fn remove_if(&mut self, gone: impl Fn(&Half) -> bool) -> u64 {
        let ids: Vec<HalfId> = self.halves.iter().filter(|(_, half)| gone(half)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.take(id)).count() as u64
    }

    fn insert(&mut self, id: HalfId, half: Half) {
        self.bytes += u64::from(half.pointer.size);
        match half.check_at {
            Some(at) => drop(self.checks.entry(half.topic).or_default().insert((at, id))),
            None => self.set_aside += 1,
        }
        self.halves.insert(id, half);
    }

    fn take(&mut self, id: HalfId) -> Option<Half> {
        let half = self.halves.remove(&id)?;
        self.bytes -= u64::from(half.pointer.size);
        match half.check_at {
            Some(at) => {
                if let Some(of_topic) = self.checks.get_mut(&half.topic) {
                    of_topic.remove(&(at, id));
                    if of_topic.is_empty() {
                        self.checks.remove(&half.topic);
                    }
                }
            }
            None => self.set_aside -= 1,
        }
        Some(half)
    }

    /// The first number whose end is remembered.
    fn first_kept(&self) -> u64 {
        self.next.saturating_sub(KEPT)
    }

    fn is_committed(&self, id: HalfId) -> bool {
        self.committed.get(&(id.0 / PIECE)).is_some_and(|piece| piece[word(id)] & bit(id) != 0)
    }

    /// Topics with half messages that somebody is to be asked about at `now`.
    pub(crate) fn topics_due(&self, now: Timestamp) -> impl Iterator<Item = TopicId> + '_ {
        let due = move |checks: &BTreeSet<(Timestamp, HalfId)>| checks.first().is_some_and(|(at, _)| *at <= now);
        self.checks.iter().filter(move |(_, checks)| due(checks)).map(|(topic, _)| *topic)
    }

    /// Half messages of a topic that somebody is to be asked about at `now`, the longest overdue first.
    pub(crate) fn due(&self, topic: TopicId, now: Timestamp) -> impl Iterator<Item = (HalfId, Half)> + '_ {
        let due = self.checks.get(&topic).into_iter().flatten().take_while(move |(at, _)| *at <= now);
        due.filter_map(|(_, id)| Some((*id, *self.halves.get(id)?)))
    }

    /// What waits behind `after`, in order of its number.
    pub(crate) fn after(&self, after: Option<HalfId>) -> impl Iterator<Item = (HalfId, Half)> + '_ {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.halves.range((from, Bound::Unbounded)).map(|(id, half)| (*id, *half))
    }

    pub(crate) fn stats(&self) -> TransactionStats {
        TransactionStats {
            pending: self.halves.len() as u64 - self.set_aside,
            set_aside: self.set_aside,
            bytes: self.bytes,
            next_number: self.next,
            lost: self.lost,
        }
    }

    /// There never was a transaction.
    pub(crate) fn is_new(&self) -> bool {
        self.next == 0
    }

    /// Writes everything but half messages and ends.
    pub(crate) fn save_head(&self, out: &mut BytesMut) {
        out.put_u64_le(self.next);
        out.put_u64_le(self.lost);
    }

    /// Writes the half messages part by part, each behind its number; parts come in order.
    pub(crate) fn save_halves(&self, mut part: impl FnMut(u64, &mut dyn FnMut(&mut BytesMut))) {
        let mut rest = self.halves.iter().peekable();
        while let Some((first, _)) = rest.peek() {
            let number = first.0 >> PART_BITS;
            part(number, &mut |out| {
                while let Some((id, half)) = rest.next_if(|(id, _)| id.0 >> PART_BITS == number) {
                    out.put_u64_le(id.0);
                    out.put_u32_le(half.topic.0);
                    out.put_u16_le(half.queue.0);
                    out.put_slice(&half.pointer.encode());
                    out.put_u64_le(half.sent_at.0);
                    out.put_u16_le(half.checks);
                    out.put_u8(u8::from(half.check_at.is_some()));
                    out.put_u64_le(half.check_at.map_or(0, |at| at.0));
                }
            });
        }
    }

    /// Writes which transactions were committed, piece by piece, each behind its number.
    pub(crate) fn save_committed(&self, mut part: impl FnMut(u64, &mut dyn FnMut(&mut BytesMut))) {
        for (number, words) in &self.committed {
            part(*number, &mut |out| words.iter().for_each(|word| out.put_u64_le(*word)));
        }
    }

    pub(crate) fn load_head(&mut self, reader: &mut Reader) -> Result<(), DecodeError> {
        (self.next, self.lost) = (reader.u64()?, reader.u64()?);
        if self.next == 0 {
            return Err(reader.error("transactions before the first"));
        }
        Ok(())
    }

    pub(crate) fn load_halves(&mut self, number: u64, reader: &mut Reader) -> Result<(), DecodeError> {
        if reader.left() == 0 {
            return Err(reader.error("a part without half messages"));
        }
        while reader.left() > 0 {
            let id = HalfId(reader.u64()?);
            let topic = TopicId(reader.u32()?);
            let queue = QueueId(reader.u16()?);
            let pointer = Pointer::load(reader)?;
            let (sent_at, checks) = (Timestamp(reader.u64()?), reader.u16()?);
            let check_at = match (reader.flag()?, reader.u64()?) {
                (true, at) => Some(Timestamp(at)),
                (false, 0) => None,
                (false, _) => return Err(reader.error("a half message is set aside and has a time")),
            };
            let in_order = self.halves.last_key_value().is_none_or(|(last, _)| *last < id);
            if !in_order || id.0 >> PART_BITS != number || id.0 >= self.next {
                return Err(reader.error("half messages are not in order"));
            }
            self.insert(id, Half { topic, queue, pointer, sent_at, checks, check_at });
        }
        Ok(())
    }

    pub(crate) fn load_committed(&mut self, number: u64, reader: &mut Reader) -> Result<(), DecodeError> {
        let mut words = [0; WORDS];
        for word in &mut words {
            *word = reader.u64()?;
        }
        let bits = |number: u64| (0..PIECE).filter_map(move |step| Some(HalfId(number.checked_mul(PIECE)? + step)));
        let is_set = |id: &HalfId| words[word(*id)] & bit(*id) != 0;
        let (mut some, mut sound) = (false, number >= self.first_kept_piece());
        for id in bits(number).filter(is_set) {
            some = true;
            sound &= id.0 < self.next && !self.halves.contains_key(&id);
        }
        if !some || !sound {
            return Err(reader.error("committed transactions that cannot be"));
        }
        self.committed.insert(number, words);
        Ok(())
    }

    /// The first piece that is kept: pieces go when a whole one was added.
    fn first_kept_piece(&self) -> u64 {
        (self.next - self.next % PIECE).saturating_sub(KEPT) / PIECE
    }
}

fn word(id: HalfId) -> usize {
    (id.0 % PIECE / 64) as usize
}

fn bit(id: HalfId) -> u64 {
    1 << (id.0 % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half() -> Half {
        Half {
            topic: TopicId(0),
            queue: QueueId(0),
            pointer: Pointer { position: Position(1), size: 1, tag_hash: 0 },
            sent_at: Timestamp(0),
            checks: 0,
            check_at: Some(Timestamp(6)),
        }
    }

    #[test]
    fn the_ends_of_the_latest_transactions_are_remembered_and_no_more() {
        let mut transactions = Transactions::default();
        for number in 0..KEPT + 3 * PIECE {
            let id = transactions.add(half());
            assert_eq!(id, HalfId(number));
            let resolution = if number % 2 == 0 { Resolution::Commit } else { Resolution::Rollback };
            assert!(matches!(transactions.resolve(id, resolution), Ok(Some(_))));
        }
        assert_eq!(transactions.committed.len() as u64, KEPT / PIECE);
        let first = transactions.next - KEPT;
        assert_eq!(transactions.resolve(HalfId(first - 2), Resolution::Commit), Err(Refusal::TransactionForgotten));
        for number in [first, first + PIECE, transactions.next - 2] {
            let ended = Resolution::Commit;
            assert_eq!(transactions.resolve(HalfId(number), ended), Ok(None));
            let opposite = transactions.resolve(HalfId(number), Resolution::Rollback);
            assert_eq!(opposite, Err(Refusal::TransactionEnded { ended }));
            let ended = Resolution::Rollback;
            assert_eq!(transactions.resolve(HalfId(number + 1), ended), Ok(None));
            let opposite = transactions.resolve(HalfId(number + 1), Resolution::Commit);
            assert_eq!(opposite, Err(Refusal::TransactionEnded { ended }));
        }
        let stats = transactions.stats();
        assert_eq!((stats.pending, stats.bytes, transactions.checks.len()), (0, 0, 0));
    }
}
