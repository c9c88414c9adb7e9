//! Which message groups of a queue somebody holds, for a consumer group that wants its messages in order.
//!
//! ```text
//!   lane of a message group    held (in flight) < waiting (passed by the cursor while the lane was held), by offset
//!   free at                    when the last of what is held becomes visible; that is when the lane may go out again, as a whole
//! ```
//! A lane has one batch in flight: nothing of it is handed out while any message of it is hidden, and then from its first offset on.
//! A message group whose head fails therefore blocks itself and nothing else: the cursor goes on past it, and what it passed waits
//! here. Waiting messages are bounded by [`WAITING_MAX`]; at the bound the cursor stops until a lane moves, so nothing is ever lost
//! or overtaken. A lane exists for as long as it holds or keeps waiting something.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, BytesMut};
use quorate_proto::time::Timestamp;

use crate::machine::{
    codec::{DecodeError, Reader},
    ids::MessageGroup,
};

/// Most messages of a queue that wait for their message group, per consumer group; beyond it the cursor stops.
pub const WAITING_MAX: usize = 16_384;

/// When time lets a message group go on that holds a message without an attempt left: only its end as a dead letter does.
pub(super) const NEVER: Timestamp = Timestamp(u64::MAX);

/// The message groups of one queue that are under way.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Order {
    lanes: BTreeMap<MessageGroup, Lane>,
    held: BTreeMap<u64, MessageGroup>,
    waiting: BTreeMap<u64, MessageGroup>,
    /// When each lane may go out; in turn, so that none starves.
    free_at: BTreeSet<(Timestamp, MessageGroup)>,
}

/// One message group.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Lane {
    /// In flight: offset and when it becomes visible, [`NEVER`] without an attempt left.
    held: BTreeMap<u64, Timestamp>,
    waiting: BTreeSet<u64>,
    /// The latest time in `held`; without any, when the last of them was done.
    free_at: Timestamp,
}

impl Order {
    /// A batch of the message group is in flight and hidden.
    pub(super) fn is_locked(&self, group: MessageGroup, now: Timestamp) -> bool {
        self.lanes.get(&group).is_some_and(|lane| lane.free_at > now)
    }

    /// Nothing of the message group is in flight or waits.
    pub(super) fn is_new(&self, group: MessageGroup) -> bool {
        !self.lanes.contains_key(&group)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// How many wait at `offset` or behind it.
    pub(super) fn waiting_from(&self, offset: u64) -> usize {
        self.waiting.range(offset..).count()
    }

    pub(super) fn is_waiting(&self, offset: u64) -> bool {
        self.waiting.contains_key(&offset)
    }

    pub(super) fn first_waiting(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(offset, _)| *offset)
    }

    /// Message groups that may go out at `now`, the one that has been so for longest first.
    pub(super) fn free(&self, now: Timestamp) -> impl Iterator<Item = MessageGroup> + '_ {
        self.free_at.range(..=(now, MessageGroup(u64::MAX))).map(|(_, group)| *group)
    }

    /// When the next message group becomes free by time; that may have passed already.
    pub(super) fn next_free(&self) -> Option<Timestamp> {
        self.free_at.first().map(|(at, _)| *at).filter(|at| *at != NEVER)
    }

    /// The messages of a group that were handed out or passed, in order.
    pub(super) fn places(&self, group: MessageGroup) -> impl Iterator<Item = u64> + '_ {
        let lane = self.lanes.get(&group).into_iter();
        lane.flat_map(|lane| lane.held.keys().chain(&lane.waiting)).copied()
    }

    /// The message is in flight until `visible_at`: handed out for the first time or again, or hidden for another time.
    pub(super) fn hold(&mut self, group: MessageGroup, offset: u64, visible_at: Timestamp) {
        self.waiting.remove(&offset);
        self.held.insert(offset, group);
        self.change(group, Timestamp(0), |lane| {
            lane.waiting.remove(&offset);
            lane.held.insert(offset, visible_at);
        });
    }

    /// A message in flight is hidden until `visible_at`. Nothing happens for one that is in no lane.
    pub(super) fn hide(&mut self, offset: u64, visible_at: Timestamp) {
        if let Some(group) = self.held.get(&offset) {
            self.hold(*group, offset, visible_at);
        }
    }

    /// The cursor has passed a message that may not go out yet.
    pub(super) fn wait(&mut self, group: MessageGroup, offset: u64) {
        self.waiting.insert(offset, group);
        self.change(group, Timestamp(0), |lane| {
            lane.waiting.insert(offset);
        });
    }

    /// The message is done. True if its message group is not locked any more.
    pub(super) fn settle(&mut self, offset: u64, now: Timestamp) -> bool {
        let held = self.held.remove(&offset);
        let waiting = self.waiting.remove(&offset);
        let Some(group) = held.or(waiting) else { return false };
        let was_locked = self.is_locked(group, now);
        self.change(group, now, |lane| {
            lane.held.remove(&offset);
            lane.waiting.remove(&offset);
        });
        was_locked && !self.is_locked(group, now)
    }

    /// Everything before `offset` is done.
    pub(super) fn settle_below(&mut self, offset: u64, now: Timestamp) {
        let below = |places: &BTreeMap<u64, MessageGroup>| places.range(..offset).map(|(at, _)| *at).collect();
        let mut gone: Vec<u64> = below(&self.held);
        gone.extend::<Vec<u64>>(below(&self.waiting));
        for offset in gone {
            self.settle(offset, now);
        }
    }

    /// Changes a lane and what follows from it. `now` is when it becomes free if this takes the last of what was in flight.
    fn change(&mut self, group: MessageGroup, now: Timestamp, change: impl FnOnce(&mut Lane)) {
        let lane = self.lanes.entry(group).or_default();
        self.free_at.remove(&(lane.free_at, group));
        let was_held = !lane.held.is_empty();
        change(lane);
        lane.free_at = match lane.held.values().max() {
            Some(latest) => *latest,
            None if was_held => now,
            None => lane.free_at,
        };
        if lane.held.is_empty() && lane.waiting.is_empty() {
            self.lanes.remove(&group);
        } else {
            self.free_at.insert((lane.free_at, group));
        }
    }
}

impl Order {
    pub(super) fn save(&self, out: &mut BytesMut) {
        out.put_u32_le(self.lanes.len() as u32);
        for (group, lane) in &self.lanes {
            out.put_u64_le(group.0);
            out.put_u64_le(lane.free_at.0);
            out.put_u32_le(lane.held.len() as u32);
            for offset in lane.held.keys() {
                out.put_u64_le(*offset);
            }
            out.put_u32_le(lane.waiting.len() as u32);
            for offset in &lane.waiting {
                out.put_u64_le(*offset);
            }
        }
    }

    /// Reads lanes that must fit what is in flight (`visible_at` of an offset) below `next`; all of it, or nothing is in order.
    pub(super) fn load(
        in_flight: usize,
        visible_at: impl Fn(u64) -> Option<Timestamp>,
        next: u64,
        reader: &mut Reader,
    ) -> Result<Self, DecodeError> {
        let mut order = Self::default();
        let mut last = None;
        for _ in 0..reader.count(24)? {
            let group = MessageGroup(reader.u64()?);
            let mut lane = Lane { free_at: Timestamp(reader.u64()?), ..Lane::default() };
            let mut behind = 0;
            for _ in 0..reader.count(8)? {
                let offset = reader.u64()?;
                let visible = visible_at(offset).filter(|_| offset >= behind);
                let visible = visible.ok_or_else(|| reader.error("a message group holds what is not in flight"))?;
                behind = offset + 1;
                lane.held.insert(offset, visible);
                if order.held.insert(offset, group).is_some() {
                    return Err(reader.error("two message groups hold one message"));
                }
            }
            for _ in 0..reader.count(8)? {
                let offset = reader.u64()?;
                if offset < behind || offset >= next || visible_at(offset).is_some() {
                    return Err(reader.error("a message waits that cannot"));
                }
                behind = offset + 1;
                lane.waiting.insert(offset);
                if order.waiting.insert(offset, group).is_some() {
                    return Err(reader.error("two message groups wait for one message"));
                }
            }
            let latest = lane.held.values().max();
            let sound = latest.is_none_or(|latest| *latest == lane.free_at) && behind > 0;
            if !sound || last.replace(group).is_some_and(|last| last >= group) {
                return Err(reader.error("a message group that cannot be"));
            }
            order.free_at.insert((lane.free_at, group));
            order.lanes.insert(group, lane);
        }
        if order.held.len() != in_flight {
            return Err(reader.error("a message in flight has no message group"));
        }
        if order.waiting.len() > WAITING_MAX {
            return Err(reader.error("more messages wait than may"));
        }
        Ok(order)
    }
}
