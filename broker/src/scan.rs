//! Reading ahead of a consumer group's cursors: which messages are wanted, and of which message groups they are.
//!
//! The machine never reads a message. For a group that filters or wants order the leader reads consume queue records, and of those that
//! may matter the stored messages, from the cursors on, and tells the machine in the command what it saw. What stands at an offset never
//! changes, so what was read once is remembered until the cursor has passed it, and a command may carry it late.
//!
//! ```text
//!   cursor ──── looked at (Ahead) ────▶ end of queue        per queue
//!            chosen: offset, message group                  a Plan takes as many as are asked for and nobody else has claimed
//! ```
//! One call of [`Scans::plan`] reads a bounded number of records and bytes and says if it wants to read on. What no filter wants is passed
//! over in memory; the cursor follows when something is handed out, or when much has gathered ([`MOVE_MIN`]), so a consumer of one
//! message in a thousand neither transfers nor writes down the others. Never decides who gets what: that is the machine's.
//! Called by the leader, and by the simulation in its stead.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
};

use bytes::Bytes;
use quorate_proto::time::Timestamp;
use quorate_raft::Position;

use crate::{
    machine::{
        Chosen, Cursor, Group, GroupId, Machine, MessageGroup, Pointer, QueueId, QueueOffset, Scan, Topic, TopicId,
        Verdict,
    },
    replica::{Found, Shared, Spot},
};

/// Chosen messages remembered per queue. When so many are held up by their message groups, the cursor passes them.
pub const CHOSEN_MAX: usize = 2_048;
/// A cursor follows on its own when it lags so many records behind what was read.
pub const MOVE_MIN: u64 = 2_048;
/// Rescued messages remembered.
const RESCUED_MAX: usize = 16;
/// Records read in one go.
const RECORDS_AT_ONCE: u64 = 256;
/// Records and bytes of messages read by one plan.
const RECORDS_MAX: u64 = 4_096;
const BYTES_MAX: u64 = 4 << 20;

/// What a consumer wants to know of messages.
pub trait Look {
    /// There is a filter, so messages that were handed out before have to be looked at again.
    fn is_filter(&self) -> bool;

    /// The record of a consume queue is worth reading its message. `false` is final: the message is not wanted.
    fn may_want(&self, pointer: &Pointer) -> bool;

    /// The message group of a stored message that is wanted; `None` if it is not.
    fn look(&self, message: &Bytes) -> Option<MessageGroup>;
}

/// Who asks for messages, and what others have asked for already.
#[derive(Debug)]
pub struct Ask<'a> {
    /// The consumer group.
    pub group: GroupId,
    /// The topic.
    pub topic: TopicId,
    /// The queue to look at first.
    pub first: QueueId,
    /// Log time.
    pub now: Timestamp,
    /// Most messages.
    pub max: u16,
    /// What receives under way expect to get.
    pub claimed: &'a Claimed,
}

/// How many messages receives under way expect to get.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Claimed {
    /// Of those that were handed out or passed before.
    pub again: u64,
    /// Of new ones, per queue.
    pub new: BTreeMap<QueueId, u64>,
}

/// What to tell the machine.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// What was read, as far as it is needed for this receive.
    pub scans: Vec<Scan>,
    /// What the filter, if there is one, says of messages that were handed out or passed before.
    pub verdicts: Option<Vec<Verdict>>,
    /// What this receive is expected to get; nothing if there is nothing to hand out.
    pub expects: Claimed,
    /// The command is worth its place in the log even if it hands out nothing: cursors follow.
    pub moves: bool,
    /// There is more to read.
    pub more: bool,
    /// Reading stopped at a message that has rotted on this disk; see [`Scans::rescued`].
    pub rotten: Option<Pointer>,
    /// Reading stopped at a place whose record has rotted on this disk; see [`Shared::mend`]. Then plan again.
    pub damaged: Option<Spot>,
}

impl Plan {
    /// Messages this receive is expected to get.
    pub fn count(&self) -> u64 {
        self.expects.again + self.expects.new.values().sum::<u64>()
    }
}

/// What was read ahead for one consumer group in one topic.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Scans {
    queues: BTreeMap<QueueId, Ahead>,
    /// Messages that have rotted on this disk, as another node has them.
    rescued: BTreeMap<Position, Option<Bytes>>,
}

/// What was read ahead in one queue: `[from, end)`, of which some are chosen.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Ahead {
    from: u64,
    end: u64,
    chosen: VecDeque<Chosen>,
}

/// One queue in the making of a plan.
struct Lane {
    queue: QueueId,
    cursor: Cursor,
    counted: Counted,
}

/// What of a queue's chosen messages this receive can get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counted {
    /// How many.
    mine: u64,
    /// How many chosen ones there are up to and with the last of them.
    prefix: usize,
    /// Where the cursor can come without handing out any.
    passable: u64,
}

impl Scans {
    /// Plans a receive, reading on as far as one call may.
    ///
    /// # Errors
    /// The disk's.
    pub fn plan(&mut self, shared: &Shared, ask: &Ask<'_>, look: &impl Look) -> io::Result<Plan> {
        let mut reading = Reading { records: RECORDS_MAX, bytes: BYTES_MAX, rotten: None, damaged: None };
        let most_again = u64::from(ask.max).saturating_add(ask.claimed.again) as usize;
        let again = shared.read(|machine| machine.again(ask.group, ask.topic, ask.first, ask.now, most_again));
        let verdicts =
            if look.is_filter() { Some(self.verdicts(shared, ask.topic, &again, look, &mut reading)?) } else { None };
        let wanted_again = verdicts.as_ref().map_or(again.len(), |all| all.iter().filter(|one| one.wanted).count());
        let again = (wanted_again as u64).saturating_sub(ask.claimed.again).min(ask.max.into());
        let (lanes, more) = loop {
            let lanes = self.follow(shared, ask);
            let found: u64 = lanes.iter().map(|lane| lane.counted.mine).sum();
            if again + found >= u64::from(ask.max) {
                break (lanes, false);
            }
            let unread: Vec<&Lane> = lanes.iter().filter(|lane| self.can_read_on(lane)).collect();
            if unread.is_empty() || reading.is_over() {
                let more = !unread.is_empty();
                break (lanes, more);
            }
            let mut read = false;
            for lane in unread {
                read |= self.read_on(shared, ask.topic, lane, look, &mut reading)?;
            }
            if !read {
                break (lanes, false);
            }
        };
        let mut plan = Plan { verdicts, more, rotten: reading.rotten, damaged: reading.damaged, ..Plan::default() };
        plan.expects.again = again;
        plan.moves = plan.verdicts.iter().flatten().any(|verdict| !verdict.wanted);
        let mut left = u64::from(ask.max) - again;
        for lane in &lanes {
            let take = lane.counted.mine.min(left);
            left -= take;
            if take > 0 {
                plan.expects.new.insert(lane.queue, take);
                plan.scans.extend(self.scan(shared, ask, lane, take));
            } else if lane.counted.passable >= lane.cursor.next.0 + MOVE_MIN {
                plan.moves = true;
                plan.scans.extend(self.passable_scan(lane, lane.counted.passable));
            }
        }
        Ok(plan)
    }

    /// What another node has in the place of a message that has rotted on this disk. Nothing means that nobody has it now: it counts as
    /// wanted then, since it must not be passed over, and whoever hands it out will find it again.
    pub fn rescued(&mut self, pointer: Pointer, message: Option<Bytes>) {
        if self.rescued.len() >= RESCUED_MAX {
            self.rescued.clear();
        }
        self.rescued.insert(pointer.position, message);
    }

    /// What may be told when a receive ends with nothing: what no filter wants before the first message that it does.
    pub fn unwanted(&mut self, shared: &Shared, ask: &Ask<'_>) -> Vec<Scan> {
        let lanes = self.follow(shared, ask);
        let unwanted = lanes.iter().filter_map(|lane| {
            let ahead = self.queues.get(&lane.queue)?;
            let first_chosen = ahead.chosen.front().map_or(ahead.end, |chosen| chosen.offset.0);
            self.passable_scan(lane, first_chosen)
        });
        unwanted.collect()
    }

    /// Looks where the cursors are now, forgets what they have passed, and counts what may go out.
    fn follow(&mut self, shared: &Shared, ask: &Ask<'_>) -> Vec<Lane> {
        shared.read(|machine| {
            let queues = machine.topic_by_id(ask.topic).map_or(0, Topic::queues);
            let rotation = (0..queues).map(|step| QueueId((ask.first.0 % queues + step) % queues));
            let lane = |queue| {
                let cursor = machine.cursor(ask.group, ask.topic, queue)?;
                let ahead = self.queues.entry(queue).or_default();
                ahead.follow(cursor.next.0);
                let counted = ahead.count(machine, ask, queue, &cursor, ask.max.into());
                Some(Lane { queue, cursor, counted })
            };
            rotation.filter_map(lane).collect()
        })
    }

    fn can_read_on(&self, lane: &Lane) -> bool {
        let ahead = self.queues.get(&lane.queue);
        ahead.is_some_and(|ahead| ahead.end < lane.cursor.end.0 && ahead.chosen.len() < CHOSEN_MAX)
    }

    /// Reads some records of a queue. False if there were none.
    fn read_on(
        &mut self,
        shared: &Shared,
        topic: TopicId,
        lane: &Lane,
        look: &impl Look,
        reading: &mut Reading,
    ) -> io::Result<bool> {
        let Some(ahead) = self.queues.get_mut(&lane.queue) else { return Ok(false) };
        let room = (CHOSEN_MAX - ahead.chosen.len()) as u64;
        let count = RECORDS_AT_ONCE.min(lane.cursor.end.0.saturating_sub(ahead.end)).min(room);
        // May be fewer than the machine counts: records follow right behind it, and then wake whoever waits.
        let pointers = shared.pointers(topic, lane.queue, QueueOffset(ahead.end), count);
        let read = !pointers.is_empty();
        for pointer in pointers {
            if reading.is_over() {
                break;
            }
            let spot = Spot { topic, queue: lane.queue, offset: QueueOffset(ahead.end) };
            match reading.look_at(shared, spot, pointer, look, &self.rescued)? {
                Looked::Wanted(group) => ahead.chosen.push_back(Chosen { offset: QueueOffset(ahead.end), group }),
                Looked::Unwanted => {}
                Looked::Unreadable => break,
            }
            ahead.end += 1;
        }
        Ok(read)
    }

    /// What the filter says of messages that were handed out or passed before, as far as they can be read.
    fn verdicts(
        &self,
        shared: &Shared,
        topic: TopicId,
        places: &[(QueueId, QueueOffset)],
        look: &impl Look,
        reading: &mut Reading,
    ) -> io::Result<Vec<Verdict>> {
        let mut verdicts = Vec::with_capacity(places.len());
        for (queue, offset) in places {
            let pointer = shared.pointers(topic, *queue, *offset, 1).pop().flatten();
            let spot = Spot { topic, queue: *queue, offset: *offset };
            let wanted = match reading.look_at(shared, spot, pointer, look, &self.rescued)? {
                Looked::Wanted(_) => true,
                Looked::Unwanted => false,
                Looked::Unreadable => continue,
            };
            verdicts.push(Verdict { queue: *queue, offset: *offset, wanted });
        }
        Ok(verdicts)
    }

    /// What was read of a queue, up to and with the last of the `take` messages that this receive is to get.
    fn scan(&self, shared: &Shared, ask: &Ask<'_>, lane: &Lane, take: u64) -> Option<Scan> {
        let ahead = self.queues.get(&lane.queue)?;
        let counted = shared.read(|machine| ahead.count(machine, ask, lane.queue, &lane.cursor, take));
        let end = ahead.chosen.get(counted.prefix).map_or(QueueOffset(ahead.end), |behind| behind.offset);
        let chosen = ahead.chosen.iter().take(counted.prefix).copied().collect();
        Some(Scan { queue: lane.queue, from: QueueOffset(ahead.from), end, chosen })
    }

    /// What was read of a queue before `end`; `None` if that is nothing.
    fn passable_scan(&self, lane: &Lane, end: u64) -> Option<Scan> {
        let ahead = self.queues.get(&lane.queue).filter(|ahead| ahead.from < end)?;
        let chosen = ahead.chosen.iter().take_while(|chosen| chosen.offset.0 < end).copied().collect();
        Some(Scan { queue: lane.queue, from: QueueOffset(ahead.from), end: QueueOffset(end), chosen })
    }
}

impl Ahead {
    /// The cursor stands at `next`.
    fn follow(&mut self, next: u64) {
        if next < self.from || next > self.end {
            *self = Self { from: next, end: next, chosen: VecDeque::new() };
        }
        self.from = next;
        while self.chosen.pop_front_if(|chosen| chosen.offset.0 < next).is_some() {}
    }

    /// Counts up to `limit` messages that this receive can get, behind those that others expect. Message groups that others are about
    /// to get are as good as locked.
    fn count(&self, machine: &Machine, ask: &Ask<'_>, queue: QueueId, cursor: &Cursor, limit: u64) -> Counted {
        let fifo = machine.group_by_id(ask.group).is_some_and(Group::is_fifo);
        let locked = |group| fifo && machine.is_locked(ask.group, ask.topic, queue, group, ask.now);
        let mut others = ask.claimed.new.get(&queue).copied().unwrap_or(0);
        let mut room = cursor.flight_room;
        let (mut mine, mut prefix, mut waits, mut passable) = (0, 0, 0, None);
        let mut taken = BTreeSet::new();
        for (number, chosen) in self.chosen.iter().enumerate() {
            if passable.is_some() && (mine == limit || room == 0) {
                break;
            }
            if locked(chosen.group) || (others == 0 && taken.contains(&chosen.group)) {
                if waits == cursor.waiting_room {
                    passable.get_or_insert(chosen.offset.0);
                    break;
                }
                waits += 1;
                continue;
            }
            passable.get_or_insert(chosen.offset.0);
            if room == 0 || mine == limit {
                break;
            }
            room -= 1;
            if others > 0 {
                others -= 1;
                if fifo {
                    taken.insert(chosen.group);
                }
            } else {
                mine += 1;
                prefix = number + 1;
            }
        }
        Counted { mine, prefix, passable: passable.unwrap_or(self.end) }
    }
}

/// What one plan may still read, and what it could not.
struct Reading {
    records: u64,
    bytes: u64,
    rotten: Option<Pointer>,
    damaged: Option<Spot>,
}

/// What a record came to.
enum Looked {
    Wanted(MessageGroup),
    Unwanted,
    /// It, or its record, has rotted on this disk, and nobody has asked another node yet.
    Unreadable,
}

impl Reading {
    fn is_over(&self) -> bool {
        self.records == 0 || self.bytes == 0 || self.rotten.is_some() || self.damaged.is_some()
    }

    /// Reads what the pointer of a place leads to, if that can matter. What retention has taken is not wanted: there is nothing to hand out.
    fn look_at(
        &mut self,
        shared: &Shared,
        spot: Spot,
        pointer: Option<Pointer>,
        look: &impl Look,
        rescued: &BTreeMap<Position, Option<Bytes>>,
    ) -> io::Result<Looked> {
        self.records = self.records.saturating_sub(1);
        let skipped = cfg!(feature = "mutant-filter-skipped");
        let found = match pointer {
            Some(pointer) if !skipped && !look.may_want(&pointer) => return Ok(Looked::Unwanted),
            Some(pointer) => {
                self.bytes = self.bytes.saturating_sub(pointer.size.into());
                shared.stored(pointer)?
            }
            None => shared.absent(spot),
        };
        let message = match found {
            Found::Record(stored) => stored.bytes,
            Found::Gone => return Ok(Looked::Unwanted),
            // Nobody knows what stands there, so it must not be passed over.
            Found::Damaged(spot) => {
                self.damaged = Some(spot);
                return Ok(Looked::Unreadable);
            }
            Found::Rotten(pointer) => match rescued.get(&pointer.position) {
                Some(Some(message)) => message.clone(),
                Some(None) => return Ok(Looked::Wanted(MessageGroup::NONE)),
                None => {
                    self.rotten = Some(pointer);
                    return Ok(Looked::Unreadable);
                }
            },
        };
        Ok(match look.look(&message) {
            Some(group) => Looked::Wanted(group),
            None if skipped => Looked::Wanted(MessageGroup::NONE),
            None => Looked::Unwanted,
        })
    }
}
