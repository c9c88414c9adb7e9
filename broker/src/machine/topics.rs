//! Topics and where their queues begin and end.
//!
//! A queue is two numbers, `[min, end)`; its records are pointers in a consume queue, its bodies frames of the log. When
//! apply crosses a segment border every queue notes where it ends ([`Topics::border`]), so that when the floor moves to
//! that border the new `min` is known without reading a file ([`Topics::floor`]). A queue that got nothing since its last
//! note adds none.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, BytesMut};
use quorate_proto::{names::TopicName, time::Timestamp};
use quorate_raft::Position;

use super::{
    codec::{DecodeError, Reader, put_text},
    command::{PutTopic, TopicKind, take_kind},
    effect::Refusal,
    ids::{QueueId, QueueOffset, TopicId},
};

/// Most topics that clients bring into being by asking for a route.
pub const AUTO_TOPICS_MAX: u32 = 1_000;
/// Most topics altogether.
pub const TOPICS_MAX: u32 = 10_000;
/// Most queues of a topic.
pub const QUEUES_MAX: u16 = 1_024;

/// Queues of a dead letter topic that a dead letter brings into being: RocketMQ's number.
const DEAD_LETTER_QUEUES: u16 = 1;

/// A topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topic {
    id: TopicId,
    name: TopicName,
    kind: TopicKind,
    auto: bool,
    created: Timestamp,
    queues: Vec<Queue>,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Queue {
    min: u64,
    end: u64,
    /// (segment border, where the queue ended there); both rise, and the first is above `min`.
    borders: VecDeque<(Position, u64)>,
}

impl Topic {
    /// Its number.
    pub fn id(&self) -> TopicId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    /// What it takes.
    pub fn kind(&self) -> TopicKind {
        self.kind
    }

    /// A client's question for its route brought it into being.
    pub fn is_auto(&self) -> bool {
        self.auto
    }

    /// Log time of the command that made it.
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        self.queues.len() as u16
    }

    /// Offsets that a queue holds, `[min, end)`.
    pub fn range(&self, queue: QueueId) -> Option<(QueueOffset, QueueOffset)> {
        let queue = self.queues.get(usize::from(queue.0))?;
        Some((QueueOffset(queue.min), QueueOffset(queue.end)))
    }

    /// `(min, end)` of every queue, in order.
    pub(crate) fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.queues.iter().map(|queue| (queue.min, queue.end))
    }

    /// First offset of a queue whose record can lie at or above `floor`, as far as was noted.
    pub fn first_kept(&self, queue: QueueId, floor: Position) -> Option<QueueOffset> {
        let queue = self.queues.get(usize::from(queue.0))?;
        let noted = queue.borders.iter().rev().find(|(border, _)| *border <= floor);
        Some(QueueOffset(noted.map_or(queue.min, |(_, end)| *end)))
    }

    /// Gives out the next offset of a queue.
    pub(crate) fn append(&mut self, queue: QueueId) -> Result<QueueOffset, Refusal> {
        let queue = self.queues.get_mut(usize::from(queue.0)).ok_or(Refusal::QueueNotFound)?;
        queue.end += 1;
        Ok(QueueOffset(queue.end - 1))
    }
}

/// All topics.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Topics {
    by_id: BTreeMap<TopicId, Topic>,
    by_name: BTreeMap<TopicName, TopicId>,
    next: u32,
    autos: u32,
}

impl Topics {
    pub(crate) fn by_name(&self, name: &TopicName) -> Option<&Topic> {
        self.by_id.get(self.by_name.get(name)?)
    }

    pub(crate) fn by_id(&self, id: TopicId) -> Option<&Topic> {
        self.by_id.get(&id)
    }

    pub(crate) fn by_id_mut(&mut self, id: TopicId) -> Option<&mut Topic> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Topic> + '_ {
        self.by_id.values()
    }

    /// Makes (at log time `now`) or changes a topic. Says its number and whether anything changed.
    pub(crate) fn put(&mut self, put: &PutTopic, now: Timestamp) -> Result<(TopicId, bool), Refusal> {
        if put.queues == 0 || put.queues > QUEUES_MAX {
            return Err(Refusal::QueueCount { max: QUEUES_MAX });
        }
        match self.by_name.get(&put.name) {
            Some(id) => self.change(*id, put),
            None => self.create(put, now),
        }
    }

    fn create(&mut self, put: &PutTopic, now: Timestamp) -> Result<(TopicId, bool), Refusal> {
        if put.auto && self.autos >= AUTO_TOPICS_MAX {
            return Err(Refusal::TooManyAutoTopics { max: AUTO_TOPICS_MAX });
        }
        if self.by_id.len() >= TOPICS_MAX as usize {
            return Err(Refusal::TooManyTopics { max: TOPICS_MAX });
        }
        let id = TopicId(self.next);
        self.next += 1;
        self.insert(Topic {
            id,
            name: put.name.clone(),
            kind: put.kind,
            auto: put.auto,
            created: now,
            queues: vec![Queue::default(); usize::from(put.queues)],
        });
        Ok((id, true))
    }

    /// The dead letter topic of that name, made (at log time `now`) if there is none; whether it was. Not subject to the limit of topics, since
    /// there are no more of them than consumer groups, and a message must go somewhere.
    pub(crate) fn dead_letters(&mut self, name: &TopicName, now: Timestamp) -> (TopicId, bool) {
        if let Some(id) = self.by_name.get(name) {
            return (*id, false);
        }
        let id = TopicId(self.next);
        self.next += 1;
        let (name, queues) = (name.clone(), vec![Queue::default(); usize::from(DEAD_LETTER_QUEUES)]);
        self.insert(Topic { id, name, kind: TopicKind::Any, auto: false, created: now, queues });
        (id, true)
    }

    fn change(&mut self, id: TopicId, put: &PutTopic) -> Result<(TopicId, bool), Refusal> {
        let topic = self.by_id.get_mut(&id).expect("every name leads to a topic");
        let same = topic.queues() == put.queues && topic.kind == put.kind;
        if put.auto || (same && !topic.auto) {
            return Ok((id, false));
        }
        if !same && !put.replace {
            return Err(Refusal::TopicExists { id });
        }
        if put.queues < topic.queues() {
            return Err(Refusal::QueuesShrink { have: topic.queues() });
        }
        self.autos -= u32::from(topic.auto);
        topic.auto = false;
        topic.kind = put.kind;
        topic.queues.resize_with(usize::from(put.queues), Queue::default);
        Ok((id, true))
    }

    /// Removes a topic; its number is never used again.
    pub(crate) fn drop_topic(&mut self, id: TopicId) -> Result<(), Refusal> {
        let topic = self.by_id.remove(&id).ok_or(Refusal::TopicNotFound)?;
        self.by_name.remove(&topic.name);
        self.autos -= u32::from(topic.auto);
        Ok(())
    }

    /// Notes where every queue ends at a segment border. Noting the same border again changes nothing.
    pub(crate) fn border(&mut self, border: Position) {
        for queue in self.by_id.values_mut().flat_map(|topic| &mut topic.queues) {
            let noted = queue.borders.back().map_or(queue.min, |(_, end)| *end);
            if noted != queue.end {
                queue.borders.push_back((border, queue.end));
            }
        }
    }

    /// Raises the first offset of every queue to what stands at or above `floor`, and tells which moved.
    pub(crate) fn floor(&mut self, floor: Position, mut moved: impl FnMut(TopicId, QueueId, QueueOffset)) {
        for topic in self.by_id.values_mut() {
            for (number, queue) in topic.queues.iter_mut().enumerate() {
                let before = queue.min;
                while let Some((_, end)) = queue.borders.pop_front_if(|(border, _)| *border <= floor) {
                    queue.min = end;
                }
                if queue.min != before {
                    moved(topic.id, QueueId(number as u16), QueueOffset(queue.min));
                }
            }
        }
    }

    fn insert(&mut self, topic: Topic) {
        self.autos += u32::from(topic.auto);
        self.by_name.insert(topic.name.clone(), topic.id);
        self.by_id.insert(topic.id, topic);
    }

    /// The number that the next topic gets.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    pub(crate) fn with_next(next: u32) -> Self {
        Self { next, ..Self::default() }
    }

    /// `now`: the machine's log time.
    pub(crate) fn load(&mut self, id: TopicId, now: Timestamp, reader: &mut Reader) -> Result<(), DecodeError> {
        let topic = Topic::load(id, reader)?;
        if topic.created > now {
            return Err(reader.error("a topic was made in the future"));
        }
        let known = self.by_id.contains_key(&id) || self.by_name.contains_key(&topic.name);
        if known || id.0 >= self.next {
            return Err(reader.error("a topic's number or name is not its own"));
        }
        self.insert(topic);
        Ok(())
    }
}

impl Topic {
    pub(crate) fn save(&self, out: &mut BytesMut) {
        put_text(out, self.name.as_str());
        out.put_u8(self.kind as u8);
        out.put_u8(u8::from(self.auto));
        out.put_u64_le(self.created.0);
        out.put_u32_le(u32::from(self.queues()));
        for queue in &self.queues {
            out.put_u64_le(queue.min);
            out.put_u64_le(queue.end);
            out.put_u32_le(queue.borders.len() as u32);
            for (border, end) in &queue.borders {
                out.put_u64_le(border.0);
                out.put_u64_le(*end);
            }
        }
    }

    fn load(id: TopicId, reader: &mut Reader) -> Result<Self, DecodeError> {
        let name = reader.text(TopicName::parse, "not a topic name")?;
        let kind = take_kind(reader)?;
        let auto = reader.flag()?;
        let created = Timestamp(reader.u64()?);
        let count = reader.count(20)?;
        if count == 0 || count > usize::from(QUEUES_MAX) {
            return Err(reader.error("a topic with no queue or too many"));
        }
        let queues = (0..count).map(|_| Queue::load(reader)).collect::<Result<_, _>>()?;
        Ok(Self { id, name, kind, auto, created, queues })
    }
}

impl Queue {
    fn load(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (min, end) = (reader.u64()?, reader.u64()?);
        let count = reader.count(16)?;
        let mut borders = VecDeque::with_capacity(count);
        let mut last = (None, min);
        for _ in 0..count {
            let (border, noted) = (Position(reader.u64()?), reader.u64()?);
            if Some(border) <= last.0 || noted <= last.1 {
                return Err(reader.error("noted queue ends do not rise"));
            }
            borders.push_back((border, noted));
            last = (Some(border), noted);
        }
        if last.1 > end {
            return Err(reader.error("a queue ends before it begins"));
        }
        Ok(Self { min, end, borders })
    }
}
