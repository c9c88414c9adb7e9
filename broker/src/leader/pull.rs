//! Consumers that pull: reads of a queue from an offset on, and the places of their groups.
//!
//! ```text
//!   pull ─▶ in range? ─▶ consume queue ─▶ filter ─▶ messages, next offset       reads only: nothing is handed out, held or counted
//!             │ no: confirm the leadership, look again, say what there is
//! ```
//! What is read is what this node has applied, so it is committed and stays. A leader that was replaced and does not know yet may see a
//! shorter queue: that costs a poll, and never a refusal, because a refusal confirms the leadership first. Places are read after such a
//! confirmation and changed by a command ([`crate::machine::UpdateOffset`]).

use std::time::Duration;

use quorate_proto::{names::TopicName, time::Timestamp};
use quorate_raft::ProposeError;
use tokio::time::Instant;

use super::{
    Failure, Leader,
    calls::{Done, GetOffset, Place, Pull, Pulled, PulledOne, QueryOffset, Range, UpdateOffset},
    names::{group_name, topic_name},
    scanned::Wanted,
};
use crate::{
    machine::{self, Command, GroupId, QueueId, QueueOffset, Refusal, StartAt, Topic, TopicId},
    replica::{Found, Spot},
    scan::Look as _,
};

/// Records looked up in one go.
const RECORDS_AT_ONCE: u64 = 256;
/// Records and bytes of messages read before others get their turn.
const RECORDS_MAX: u64 = 4_096;
const BYTES_MAX: u64 = 4 << 20;
/// Messages looked at around each place of a search by time. A message that was a half message before keeps the time at which it was
/// sent, and so may look older than its neighbours.
const NEIGHBOURS: u64 = 8;

/// A queue that a call names.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    pub topic: TopicId,
    pub queue: QueueId,
}

/// What one look at a queue came to.
struct Read {
    messages: Vec<PulledOne>,
    next: u64,
    /// There may be more from `next` on.
    more: bool,
}

impl Leader {
    /// Reads messages of a queue that the filter wants, waiting for a first one as long as the call says.
    pub async fn pull(&self, call: &Pull) -> Result<Pulled, Failure> {
        let until = Instant::now() + Duration::from_millis(call.wait_ms);
        let topic = self.topic(&call.topic).await?;
        let group = self.consumer_group(&call.group).await?;
        let lane = self.lane_of(topic.id, call.queue)?;
        let wanted = Wanted::parse(call.filter.as_ref())?;
        self.planner.lane(group.id, topic.id).note_pull(&call.client_id, wanted.expression(), Instant::now());
        let max = (call.max as usize).max(1);
        let mut leadership = self.group.leader();
        let (mut next, mut parked) = (call.offset, None);
        loop {
            let woken = self.shared.waiters().wait_for_queue(lane.topic, lane.queue);
            if let Some(out_of_range) = self.out_of_range(lane, next).await? {
                return Ok(Pulled { next_offset: next, out_of_range: Some(out_of_range), ..Pulled::default() });
            }
            let read = self.read_on(lane, next, max, &wanted).await?;
            next = read.next;
            if !read.messages.is_empty() || Instant::now() >= until {
                return Ok(Pulled { messages: read.messages, next_offset: next, out_of_range: None });
            }
            if read.more {
                tokio::task::yield_now().await;
                continue;
            }
            if parked.is_none() {
                parked = Some(self.park()?);
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(until) => {}
                changed = leadership.changed() => {
                    let view = *leadership.borrow_and_update();
                    if changed.is_err() || !view.serving {
                        return Err(ProposeError::NotLeader { leader: view.leader }.into());
                    }
                }
            }
        }
    }

    /// What the queue holds if that does not include `offset`, nor ends there.
    async fn out_of_range(&self, lane: Lane, offset: u64) -> Result<Option<Range>, Failure> {
        let outside = |(min, end): (u64, u64)| (offset < min || offset > end).then_some(Range { min, end });
        if outside(self.range(lane)?).is_none() {
            return Ok(None);
        }
        self.group.confirm_leadership().await?;
        Ok(outside(self.range(lane)?))
    }

    /// Reads as far as one look goes.
    async fn read_on(&self, lane: Lane, from: u64, max: usize, wanted: &Wanted) -> Result<Read, Failure> {
        let Lane { topic, queue } = lane;
        let (_, end) = self.range(lane)?;
        let mut read = Read { messages: Vec::new(), next: from, more: false };
        let (mut looked_at, mut bytes_read, mut bytes) = (0, 0, 0);
        while looked_at < RECORDS_MAX && bytes_read < BYTES_MAX {
            let room = if wanted.is_filter() { RECORDS_AT_ONCE } else { (max - read.messages.len()) as u64 };
            let count = room.min(RECORDS_AT_ONCE).min(end.saturating_sub(read.next));
            // May be fewer than the machine counts: records follow right behind it, and then wake whoever waits.
            let pointers = self.shared.pointers(topic, queue, QueueOffset(read.next), count);
            if pointers.is_empty() {
                return Ok(read);
            }
            for pointer in pointers {
                looked_at += 1;
                if pointer.is_some_and(|pointer| !wanted.may_want(&pointer)) {
                    read.next += 1;
                    continue;
                }
                let found = match pointer {
                    // Reads files from a request task, as handing out does, and for the same reason.
                    Some(pointer) => self.shared.stored(pointer).map_err(unreadable)?,
                    None => self.shared.absent(Spot { topic, queue, offset: QueueOffset(read.next) }),
                };
                // Retention has passed it.
                let gone = found == Found::Gone;
                match self.recovered(found).await? {
                    None if gone => {}
                    // It must not be passed over: what was read before it goes out, and then nothing until somebody has it.
                    None if read.messages.is_empty() => {
                        return Err(Failure::Unreadable(format!("no node has offset {} now", read.next)));
                    }
                    None => return Ok(read),
                    Some(record) => {
                        let size = record.bytes.len() as u64;
                        bytes_read += size;
                        if wanted.look(&record.bytes).is_some() {
                            bytes += size;
                            if bytes > self.config.limits.receive_bytes_max && !read.messages.is_empty() {
                                return Ok(read);
                            }
                            let (offset, stored_ms) = (read.next, record.stored_at.0);
                            read.messages.push(PulledOne { offset, stored_ms, record: record.bytes });
                        }
                    }
                }
                read.next += 1;
                if read.messages.len() >= max {
                    return Ok(read);
                }
            }
        }
        read.more = true;
        Ok(read)
    }

    /// Where a group stands in a queue; nothing if it has not begun. A group that would be made by its first receive has not.
    pub async fn offset_of_group(&self, call: &GetOffset) -> Result<Place, Failure> {
        let (topic, group) = (topic_name(&call.topic)?, group_name(&call.group)?);
        self.group.confirm_leadership().await?;
        let lane = self.lane_of(self.known_topic(&topic)?, call.queue)?;
        let offset = self.shared.read(|machine| match machine.group(&group) {
            Some(group) => Ok(machine.place(group.id(), lane.topic, lane.queue)),
            None if self.config.groups.auto_create => Ok(None),
            None => Err(Refusal::GroupNotFound),
        });
        Ok(Place { offset: offset?.map(|offset| offset.0) })
    }

    /// Puts a group's place in a queue, forwards or back. When this returns a majority has it.
    ///
    /// Refused if the queue neither holds nor ends at the offset; nothing has changed then.
    pub async fn update_offset(&self, call: &UpdateOffset) -> Result<Done, Failure> {
        let lane = self.lane_of(self.known_topic(&topic_name(&call.topic)?)?, call.queue)?;
        let group = self.consumer_group(&call.group).await?.id;
        let (topic, queue, offset) = (lane.topic, lane.queue, QueueOffset(call.offset));
        self.begin(topic, group).await?;
        let update = machine::UpdateOffset { group, topic, queue, offset };
        self.propose_one(Command::UpdateOffset(update)).await.map(|_| Done {})
    }

    /// An offset of a queue by what stands there.
    pub async fn offset_of_queue(&self, call: &QueryOffset) -> Result<Place, Failure> {
        self.group.confirm_leadership().await?;
        let lane = self.lane_of(self.known_topic(&topic_name(&call.topic)?)?, call.queue)?;
        let (min, end) = self.range(lane)?;
        let offset = match call.since_ms {
            _ if call.end => end,
            None => min,
            Some(since) => self.first_since(lane, (min, end), Timestamp(since)).await?,
        };
        Ok(Place { offset: Some(offset) })
    }

    /// A group that begins at a time, and has not begun in a topic, begins there now. To be called before whatever else makes it begin.
    pub(super) async fn begin(&self, topic: TopicId, group: GroupId) -> Result<(), Failure> {
        let begins = self.shared.read(|machine| match machine.group_by_id(group)?.start() {
            StartAt::Since(since) if !machine.is_subscribed(group, topic) => {
                Some((since, machine.topic_by_id(topic)?.queues()))
            }
            StartAt::First | StartAt::Last | StartAt::Since(_) => None,
        });
        let Some((since, queues)) = begins else { return Ok(()) };
        let mut places = Vec::with_capacity(usize::from(queues));
        for queue in (0..queues).map(QueueId) {
            let lane = Lane { topic, queue };
            let offset = self.first_since(lane, self.range(lane)?, since).await?;
            places.push((queue, QueueOffset(offset)));
        }
        self.propose_one(Command::Begin(machine::Begin { group, topic, places })).await.map(drop)
    }

    /// The first message of a queue stored at `since` or later, or its end. Log time never goes back, so this is a search by halves.
    pub(super) async fn first_since(
        &self,
        lane: Lane,
        (min, end): (u64, u64),
        since: Timestamp,
    ) -> Result<u64, Failure> {
        let (mut low, mut high) = (min, end);
        'search: while low < high {
            let middle = low + (high - low) / 2;
            let mut unknown = None;
            for offset in low.max(middle.saturating_sub(NEIGHBOURS - 1))..=middle {
                match self.stored_at(lane.topic, lane.queue, QueueOffset(offset)).await {
                    Ok(Some(record)) if record.stored_at >= since => {
                        high = offset;
                        continue 'search;
                    }
                    // What retention has taken meanwhile is older than anything.
                    Ok(Some(_) | None) => {}
                    Err(Failure::Unreadable(_)) => unknown = unknown.or(Some(offset)),
                    Err(error) => return Err(error),
                }
            }
            match unknown {
                // Nobody can say how old it is: rather something twice than something never.
                Some(offset) => high = offset,
                None => low = middle + 1,
            }
        }
        Ok(low)
    }

    pub(super) fn lane_of(&self, topic: TopicId, queue: u32) -> Result<Lane, Refusal> {
        let queue = QueueId(u16::try_from(queue).map_err(|_| Refusal::QueueNotFound)?);
        let range = self.shared.read(|machine| machine.queue_range(topic, queue));
        range.map(|_| Lane { topic, queue }).ok_or(Refusal::QueueNotFound)
    }

    pub(super) fn range(&self, lane: Lane) -> Result<(u64, u64), Refusal> {
        let range = self.shared.read(|machine| machine.queue_range(lane.topic, lane.queue));
        range.map(|(min, end)| (min.0, end.0)).ok_or(Refusal::TopicNotFound)
    }

    pub(super) fn known_topic(&self, name: &TopicName) -> Result<TopicId, Refusal> {
        self.shared.read(|machine| machine.topic(name).map(Topic::id)).ok_or(Refusal::TopicNotFound)
    }
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::Unreadable(error.to_string())
}
