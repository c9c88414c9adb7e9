//! What the leader asks the log for, and its bytes.
//!
//! One Raft entry is one [`Batch`]: the stamp of the leader and every command that waited when the proposer was free. The
//! codec is written by hand, little endian; the numbers below stand on disk and are never reused.
//!
//! ```text
//! batch     version 2 (1) | stamp, ms since 1970 (8) | count (4) | commands …
//! command   kind (1) | fields in the order of the struct
//! Send      topic 4 | queue 2 | key 16 | body crc32c 4 | tag hash 8 | record size 4 | record crc32c 4 | stamp 8 | record
//! Deliver   due 8 | number 8 | record size 4 | record crc32c 4 | stamp 8 | record       (Carry: the same behind a byte of kind)
//! DeadLetter  handle 30 | forwarded 1 | tag hash 8 | record as in Deliver
//! Redrive   topic 4 | queue 2 | offset 8 | topic 4 | queue 2 | tag hash 8 | record as in Deliver
//! Resolve   number 8 | topic 4 | resolution 1 | 0, or 1 and a record as in Deliver
//! ```
//! Crc and stamp stand before every record, so that a consume queue's pointer leads to the record, to the proof that it is sound and
//! to its store time without reading the head of the batch. `decode` never panics; records are slices of the input, not copies.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};

use super::{
    codec::{DecodeError, Reader, put_text},
    dedup::SendKey,
    feature::{
        delay::DelayId,
        pop::AttemptKey,
        retry::Retry,
        transaction::{HalfId, Resolution},
    },
    handle::Handle,
    ids::{GroupId, MessageGroup, QueueId, QueueOffset, TopicId},
    record::{PREFIX_BYTES, Record, record_crc},
};

/// 1 was never released; its records had no crc of their own.
const VERSION: u8 = 2;

const SEND: u8 = 1;
const RECEIVE: u8 = 2;
const ACK: u8 = 3;
const CHANGE_INVISIBLE: u8 = 4;
const COMMIT_OFFSET: u8 = 5;
const RESET_OFFSET: u8 = 6;
const PUT_TOPIC: u8 = 7;
const DROP_TOPIC: u8 = 8;
const PUT_GROUP: u8 = 9;
const DROP_GROUP: u8 = 10;
const RECEIVE_SCANNED: u8 = 11;
const SEND_DELAYED: u8 = 15;
const DELIVER: u8 = 16;
const RECALL: u8 = 17;
const CARRY: u8 = 18;
const SEND_HALF: u8 = 19;
const RESOLVE: u8 = 20;
const CHECKED: u8 = 21;
const DEAD_LETTER: u8 = 22;
const REDRIVE: u8 = 23;
const GIVE_BACK: u8 = 24;
// As those without: what came later stands in front.
const PUT_GROUP_RETRY: u8 = 25;
const RECEIVE_BY: u8 = 26;
const RECEIVE_SCANNED_BY: u8 = 27;
const UPDATE_OFFSET: u8 = 28;
const BEGIN: u8 = 29;

/// Longest client id of a consumer that is kept.
const CONSUMER_BYTES_MAX: usize = 255;

// What a carried body belongs to.
const CARRIED_DELAYED: u8 = 1;
const CARRIED_HALF: u8 = 2;

/// Bytes of an encoded [`Send`] without its record.
const SEND_BYTES: usize = 1 + 4 + 2 + 16 + 4 + 8 + RECORD_HEAD_BYTES;

/// Bytes before a record: its size, its crc and the stamp.
const RECORD_HEAD_BYTES: usize = 4 + PREFIX_BYTES;

/// What one Raft entry holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The leader's log time; never below the stamp of an earlier batch (LAW-CLOCK).
    pub now: Timestamp,
    /// Executed in this order.
    pub commands: Vec<Command>,
}

/// One wish to the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Store a message.
    Send(Send),
    /// Hand out messages.
    Receive(Receive),
    /// Messages are done.
    Ack(Ack),
    /// Hide a delivery for another time than it was handed out for.
    ChangeInvisible(ChangeInvisible),
    /// Everything before an offset is done.
    CommitOffset(CommitOffset),
    /// Continue at an offset, whatever was done.
    ResetOffset(ResetOffset),
    /// A consumer says how far its group is.
    UpdateOffset(UpdateOffset),
    /// A group that begins at a time begins in a topic.
    Begin(Begin),
    /// Make or change a topic.
    PutTopic(PutTopic),
    /// Remove a topic and everything it holds.
    DropTopic(DropTopic),
    /// Make or change a consumer group.
    PutGroup(PutGroup),
    /// Remove a consumer group and its progress.
    DropGroup(DropGroup),
    /// Hand out messages that the leader has looked at.
    ReceiveScanned(ReceiveScanned),
    /// Store a message that is invisible until a time.
    SendDelayed(SendDelayed),
    /// A delayed message is due: make it visible.
    Deliver(Deliver),
    /// Take a delayed message back.
    Recall(Recall),
    /// The body of a message that waits, once more, before the floor passes the old one.
    Carry(Carry),
    /// Store a message that is invisible until its producer commits it.
    SendHalf(SendHalf),
    /// Commit a half message or roll it back.
    Resolve(Resolve),
    /// A producer was asked about a half message, or nobody is any more.
    Checked(Checked),
    /// A message has no attempt left: it is done in its queue and stands among the dead letters.
    DeadLetter(DeadLetter),
    /// A dead letter stands in a topic again.
    Redrive(Redrive),
    /// Deliveries reached nobody.
    GiveBack(GiveBack),
}

/// Stores a message at the end of a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Send {
    /// Its topic.
    pub topic: TopicId,
    /// The queue, chosen by the leader.
    pub queue: QueueId,
    /// What a repeat of this send is recognised by.
    pub key: SendKey,
    /// crc32c of the body: the same key with another body is another message.
    pub body_crc: u32,
    /// [`super::record::tag_hash`] of its tag.
    pub tag_hash: u64,
    /// The normalised message; not empty.
    pub record: Record,
}

/// Stores a message that becomes visible at a time; at once if that has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SendDelayed {
    /// When it becomes visible, in log time.
    pub due: Timestamp,
    /// The message, and the queue it will stand in.
    pub send: Send,
}

/// Makes a delayed message visible. Refused before it is due and when it is not pending any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deliver {
    /// Which one.
    pub id: DelayId,
    /// Its bytes, as they were sent.
    pub record: Record,
}

/// Takes a delayed message back before it is visible.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recall {
    /// Which one.
    pub id: DelayId,
    /// The topic it was sent to.
    pub topic: TopicId,
}

/// Gives a waiting message a new place in the log. Refused when it does not wait any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Carry {
    /// Which one.
    pub waiting: Waiting,
    /// Its bytes, as they were sent.
    pub record: Record,
}

/// A message whose body must be kept though no queue holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Waiting {
    /// It is not due yet.
    Delayed(DelayId),
    /// It is not resolved yet.
    Half(HalfId),
}

/// Stores a message that becomes visible when it is committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SendHalf {
    /// How long its producer is left alone before it is asked, from the batch's stamp on.
    pub immunity_ms: u64,
    /// The message, and the queue it will stand in.
    pub send: Send,
}

/// Ends a transaction. Done for one that has ended like that before; refused for one that has ended the other way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolve {
    /// Which one.
    pub id: HalfId,
    /// The topic it was sent to.
    pub topic: TopicId,
    /// How it ends.
    pub resolution: Resolution,
    /// The message's bytes, as they were sent, for a commit when a segment border lies between; refused without them then.
    pub record: Option<Record>,
}

/// Notes that a producer was asked about a half message. Refused when it does not wait any more, was checked since, or before its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// Which one.
    pub id: HalfId,
    /// How often one was asked before.
    pub checks: u16,
    /// When to ask again, from the batch's stamp on. `None` without having asked: it is set aside.
    pub again_ms: Option<u64>,
}

/// Moves a message to the dead letters of its consumer group. Done for one that is done; refused if it was handed out again since, or
/// will be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// Its latest delivery.
    pub handle: Handle,
    /// Its consumer says so; else it must have no attempt left, and its time must be over.
    pub forwarded: bool,
    /// [`super::record::tag_hash`] of its tag.
    pub tag_hash: u64,
    /// The message as a dead letter.
    pub record: Record,
}

/// Stores a dead letter in a topic again. Refused if that was done before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redrive {
    /// The topic of dead letters.
    pub from: TopicId,
    /// The dead letter's queue.
    pub queue: QueueId,
    /// Its offset.
    pub offset: QueueOffset,
    /// The topic it goes to.
    pub to: TopicId,
    /// The queue, chosen by the leader.
    pub to_queue: QueueId,
    /// [`super::record::tag_hash`] of its tag.
    pub tag_hash: u64,
    /// The message as it was before it died.
    pub record: Record,
}

/// Takes deliveries back that were handed out and reached nobody: they do not count as attempts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GiveBack {
    /// The consumer group.
    pub group: GroupId,
    /// Hidden for so long, from the batch's stamp on; 0 shows them at once.
    pub invisible_ms: u64,
    /// Their receipt handles.
    pub entries: Vec<Handle>,
}

/// Hands out up to `max` messages of a topic to a consumer of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receive {
    /// The consumer group.
    pub group: GroupId,
    /// The topic.
    pub topic: TopicId,
    /// Most messages to hand out.
    pub max: u16,
    /// How long they are hidden from the rest of the group, from the batch's stamp on.
    pub invisible_ms: u64,
    /// Queue to look at first; the others follow in order (taken modulo the number of queues).
    pub first_queue: QueueId,
    /// Names this attempt to receive: a repeat gets what is still in flight of the first answer.
    pub attempt: Option<AttemptKey>,
    /// The client id of whoever receives, for what is handed out for the last time; see [`consumer`].
    pub consumer: Option<Arc<str>>,
}

/// A client id as [`Receive`] takes it: the first 255 bytes of it, or nothing.
pub fn consumer(client_id: &str) -> Option<Arc<str>> {
    let end = client_id.floor_char_boundary(CONSUMER_BYTES_MAX);
    (end > 0).then(|| client_id[..end].into())
}

/// Hands out messages of which the leader has read the message groups, or whether a filter wants them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceiveScanned {
    /// Who asks, and for how many. With `max` 0 only the cursors go on.
    pub receive: Receive,
    /// What was read ahead of the cursors, in the order in which it is to be handed out; at most one per queue.
    pub scans: Vec<Scan>,
    /// With a filter: what it says of messages that were handed out or passed before. Others of those are not handed out, and what
    /// is not wanted is done. `None` without a filter: all are wanted.
    pub verdicts: Option<Vec<Verdict>>,
}

/// What the leader read in a queue: true for ever, since what stands at an offset never changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// The queue.
    pub queue: QueueId,
    /// First offset that was looked at.
    pub from: QueueOffset,
    /// Behind the last one.
    pub end: QueueOffset,
    /// Those that are wanted, by offset. All others between `from` and `end` are not.
    pub chosen: Vec<Chosen>,
}

/// A message that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Its offset.
    pub offset: QueueOffset,
    /// Its message group; of no meaning for a consumer group without order.
    pub group: MessageGroup,
}

/// What a filter says of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Its queue.
    pub queue: QueueId,
    /// Its offset.
    pub offset: QueueOffset,
    /// The filter wants it.
    pub wanted: bool,
}

/// Says that deliveries are done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// The group the consumer belongs to.
    pub group: GroupId,
    /// Their receipt handles.
    pub entries: Vec<Handle>,
}

/// Hides a delivery for `invisible_ms` more, counted from the batch's stamp; 0 shows it at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeInvisible {
    /// The group the consumer belongs to.
    pub group: GroupId,
    /// Its receipt handle.
    pub handle: Handle,
    /// New duration.
    pub invisible_ms: u64,
    /// Keep the receipt handle valid (the server prolongs on the consumer's behalf) instead of issuing a new one.
    pub renew: bool,
}

/// Counts everything before `offset` as done. Never goes back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitOffset {
    /// The consumer group.
    pub group: GroupId,
    /// The topic.
    pub topic: TopicId,
    /// The queue.
    pub queue: QueueId,
    /// First offset that is not done.
    pub offset: QueueOffset,
}

/// Continues at `offset`, forwards or back. What is in flight in the queue is forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResetOffset {
    /// The consumer group.
    pub group: GroupId,
    /// The topic.
    pub topic: TopicId,
    /// The queue.
    pub queue: QueueId,
    /// Next offset to hand out.
    pub offset: QueueOffset,
}

/// Puts the group's place in a queue to `offset`, as a consumer asks for that keeps its own books: everything before is done. If that is
/// back, everything from there on is not, and what is in flight in the queue is forgotten.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateOffset {
    /// The consumer group.
    pub group: GroupId,
    /// The topic.
    pub topic: TopicId,
    /// The queue.
    pub queue: QueueId,
    /// First offset that is not done.
    pub offset: QueueOffset,
}

/// Where a group that has not begun in a topic begins there, as the leader has found it. Nothing happens if it has begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begin {
    /// The consumer group.
    pub group: GroupId,
    /// The topic.
    pub topic: TopicId,
    /// First offset of queues; where the group's own start says for others.
    pub places: Vec<(QueueId, QueueOffset)>,
}

/// What messages a topic takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TopicKind {
    /// Plain messages.
    Normal = 1,
    /// Messages with a message group, in order.
    Fifo = 2,
    /// Messages with a delivery timestamp.
    Delay = 3,
    /// Half messages.
    Transaction = 4,
    /// All of them.
    Any = 5,
}

/// Makes a topic, or changes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutTopic {
    /// Its name.
    pub name: TopicName,
    /// How many queues; may grow later, never shrink.
    pub queues: u16,
    /// What it takes.
    pub kind: TopicKind,
    /// Made because a client asked for its route: an existing topic is the answer, whatever it looks like.
    pub auto: bool,
    /// Change the topic if it exists and differs.
    pub replace: bool,
}

/// Removes a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DropTopic {
    /// Its number.
    pub topic: TopicId,
}

/// Where a group begins in a topic that it has never received from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StartAt {
    /// At the first message kept.
    First,
    /// Behind the last message there is at its first receive.
    Last,
    /// At the first message stored then or later. The leader looks for it; see [`Begin`].
    Since(Timestamp),
}

/// Makes a consumer group, or changes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutGroup {
    /// Its name.
    pub name: GroupName,
    /// Deliver in order.
    pub fifo: bool,
    /// Where it begins.
    pub start: StartAt,
    /// Made because a client used it: an existing group is the answer, whatever it looks like.
    pub auto: bool,
    /// Change the group if it exists and differs.
    pub replace: bool,
    /// How often it gets a message, and how long it waits in between; without it as RocketMQ does.
    pub retry: Option<Retry>,
}

/// Removes a consumer group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DropGroup {
    /// Its number.
    pub group: GroupId,
}

impl TopicKind {
    /// What RocketMQ calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Fifo => "FIFO",
            Self::Delay => "DELAY",
            Self::Transaction => "TRANSACTION",
            Self::Any => "MIXED",
        }
    }

    /// A topic of this kind takes messages of that one.
    pub fn takes(self, message: Self) -> bool {
        self == Self::Any || self == message
    }

    /// Back from its persisted number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Normal, Self::Fifo, Self::Delay, Self::Transaction, Self::Any]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

impl StartAt {
    const FIRST: u8 = 1;
    const LAST: u8 = 2;
    const SINCE: u8 = 3;

    pub(crate) fn encoded_len(self) -> usize {
        match self {
            Self::First | Self::Last => 1,
            Self::Since(_) => 1 + 8,
        }
    }

    pub(crate) fn encode(self, out: &mut BytesMut) {
        match self {
            Self::First => out.put_u8(Self::FIRST),
            Self::Last => out.put_u8(Self::LAST),
            Self::Since(at) => {
                out.put_u8(Self::SINCE);
                out.put_u64_le(at.0);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let error = reader.error("unknown start");
        match reader.u8()? {
            Self::FIRST => Ok(Self::First),
            Self::LAST => Ok(Self::Last),
            Self::SINCE => Ok(Self::Since(Timestamp(reader.u64()?))),
            _ => Err(error),
        }
    }
}

impl Batch {
    /// Bytes of an encoded batch without its commands.
    pub const HEADER_BYTES: usize = 1 + 8 + 4;

    /// The payload of a Raft entry.
    pub fn encode(&self) -> Bytes {
        let len = Self::HEADER_BYTES + self.commands.iter().map(Command::encoded_len).sum::<usize>();
        let mut out = BytesMut::with_capacity(len);
        out.put_u8(VERSION);
        out.put_u64_le(self.now.0);
        out.put_u32_le(u32::try_from(self.commands.len()).expect("a batch is bounded far below 4 billion commands"));
        for command in &self.commands {
            command.encode(self.now, &mut out);
        }
        debug_assert_eq!(out.len(), len);
        out.freeze()
    }

    /// Reads a payload back; every record knows where it stands in it.
    ///
    /// # Errors
    /// Says what is wrong and where. Bytes that raft has checked and that still fail are a bug, not an accident.
    pub fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        if reader.u8()? != VERSION {
            return Err(DecodeError { what: "unknown batch version", at: 0 });
        }
        let now = Timestamp(reader.u64()?);
        let count = reader.count(Command::BYTES_MIN)?;
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            commands.push(Command::decode(now, &mut reader)?);
        }
        reader.end()?;
        Ok(Self { now, commands })
    }
}

impl Command {
    /// Fewest bytes of an encoded command.
    const BYTES_MIN: usize = 5;

    /// Bytes that this command adds to an encoded batch.
    pub fn encoded_len(&self) -> usize {
        match self {
            Self::Send(send) => SEND_BYTES + send.record.bytes().len(),
            Self::SendDelayed(delayed) => SEND_BYTES + 8 + delayed.send.record.bytes().len(),
            Self::Deliver(deliver) => 1 + DelayId::BYTES + RECORD_HEAD_BYTES + deliver.record.bytes().len(),
            Self::Recall(_) => 1 + DelayId::BYTES + 4,
            Self::Carry(carry) => {
                let id = match carry.waiting {
                    Waiting::Delayed(_) => DelayId::BYTES,
                    Waiting::Half(_) => HalfId::BYTES,
                };
                1 + 1 + id + RECORD_HEAD_BYTES + carry.record.bytes().len()
            }
            Self::SendHalf(half) => SEND_BYTES + 8 + half.send.record.bytes().len(),
            Self::Resolve(resolve) => {
                let record = resolve.record.as_ref().map_or(0, |record| RECORD_HEAD_BYTES + record.bytes().len());
                1 + HalfId::BYTES + 4 + 1 + 1 + record
            }
            Self::Checked(_) => 1 + HalfId::BYTES + 2 + 1 + 8,
            Self::DeadLetter(dead) => 1 + Handle::BYTES + 1 + 8 + RECORD_HEAD_BYTES + dead.record.bytes().len(),
            Self::Redrive(redrive) => 1 + 4 + 2 + 8 + 4 + 2 + 8 + RECORD_HEAD_BYTES + redrive.record.bytes().len(),
            Self::GiveBack(given) => 1 + 4 + 8 + 4 + given.entries.len() * Handle::BYTES,
            Self::Receive(receive) => 1 + receive.encoded_len(),
            Self::ReceiveScanned(scanned) => {
                let scans: usize = scanned.scans.iter().map(Scan::encoded_len).sum();
                let verdicts = scanned.verdicts.as_ref().map_or(0, |verdicts| 4 + verdicts.len() * Verdict::BYTES);
                1 + scanned.receive.encoded_len() + 4 + scans + 1 + verdicts
            }
            Self::Ack(ack) => 1 + 4 + 4 + ack.entries.len() * Handle::BYTES,
            Self::ChangeInvisible(_) => 1 + 4 + Handle::BYTES + 8 + 1,
            Self::CommitOffset(_) | Self::ResetOffset(_) | Self::UpdateOffset(_) => 1 + 4 + 4 + 2 + 8,
            Self::Begin(begin) => 1 + 4 + 4 + 4 + begin.places.len() * Begin::PLACE_BYTES,
            Self::PutTopic(put) => 1 + 1 + put.name.as_str().len() + 2 + 1 + 1 + 1,
            Self::DropTopic(_) | Self::DropGroup(_) => 1 + 4,
            Self::PutGroup(put) => {
                1 + put.retry.as_ref().map_or(0, Retry::encoded_len)
                    + 1
                    + put.name.as_str().len()
                    + 1
                    + put.start.encoded_len()
                    + 1
                    + 1
            }
        }
    }

    fn encode(&self, now: Timestamp, out: &mut BytesMut) {
        match self {
            Self::Send(send) => {
                out.put_u8(SEND);
                put_send(out, send, now);
            }
            Self::SendDelayed(SendDelayed { due, send }) => {
                out.put_u8(SEND_DELAYED);
                out.put_u64_le(due.0);
                put_send(out, send, now);
            }
            Self::Deliver(Deliver { id, record }) => {
                out.put_u8(DELIVER);
                id.encode(out);
                put_record(out, record, now);
            }
            Self::Recall(Recall { id, topic }) => {
                out.put_u8(RECALL);
                id.encode(out);
                out.put_u32_le(topic.0);
            }
            Self::Carry(Carry { waiting, record }) => {
                out.put_u8(CARRY);
                match waiting {
                    Waiting::Delayed(id) => {
                        out.put_u8(CARRIED_DELAYED);
                        id.encode(out);
                    }
                    Waiting::Half(id) => {
                        out.put_u8(CARRIED_HALF);
                        out.put_u64_le(id.0);
                    }
                }
                put_record(out, record, now);
            }
            Self::SendHalf(SendHalf { immunity_ms, send }) => {
                out.put_u8(SEND_HALF);
                out.put_u64_le(*immunity_ms);
                put_send(out, send, now);
            }
            Self::Resolve(Resolve { id, topic, resolution, record }) => {
                out.put_u8(RESOLVE);
                out.put_u64_le(id.0);
                out.put_u32_le(topic.0);
                out.put_u8(*resolution as u8);
                out.put_u8(u8::from(record.is_some()));
                if let Some(record) = record {
                    put_record(out, record, now);
                }
            }
            Self::Checked(Checked { id, checks, again_ms }) => {
                out.put_u8(CHECKED);
                out.put_u64_le(id.0);
                out.put_u16_le(*checks);
                out.put_u8(u8::from(again_ms.is_some()));
                out.put_u64_le(again_ms.unwrap_or(0));
            }
            Self::DeadLetter(DeadLetter { handle, forwarded, tag_hash, record }) => {
                out.put_u8(DEAD_LETTER);
                handle.encode(out);
                out.put_u8(u8::from(*forwarded));
                out.put_u64_le(*tag_hash);
                put_record(out, record, now);
            }
            Self::Redrive(Redrive { from, queue, offset, to, to_queue, tag_hash, record }) => {
                out.put_u8(REDRIVE);
                out.put_u32_le(from.0);
                out.put_u16_le(queue.0);
                out.put_u64_le(offset.0);
                out.put_u32_le(to.0);
                out.put_u16_le(to_queue.0);
                out.put_u64_le(*tag_hash);
                put_record(out, record, now);
            }
            Self::GiveBack(GiveBack { group, invisible_ms, entries }) => {
                out.put_u8(GIVE_BACK);
                out.put_u32_le(group.0);
                out.put_u64_le(*invisible_ms);
                put_handles(out, entries);
            }
            Self::Receive(receive) => {
                out.put_u8(if receive.consumer.is_some() { RECEIVE_BY } else { RECEIVE });
                receive.encode(out);
            }
            Self::ReceiveScanned(scanned) => {
                out.put_u8(if scanned.receive.consumer.is_some() { RECEIVE_SCANNED_BY } else { RECEIVE_SCANNED });
                scanned.encode(out);
            }
            Self::Ack(ack) => {
                out.put_u8(ACK);
                out.put_u32_le(ack.group.0);
                put_handles(out, &ack.entries);
            }
            Self::ChangeInvisible(change) => {
                out.put_u8(CHANGE_INVISIBLE);
                out.put_u32_le(change.group.0);
                change.handle.encode(out);
                out.put_u64_le(change.invisible_ms);
                out.put_u8(u8::from(change.renew));
            }
            Self::CommitOffset(CommitOffset { group, topic, queue, offset }) => {
                out.put_u8(COMMIT_OFFSET);
                put_place(out, *group, *topic, *queue, *offset);
            }
            Self::ResetOffset(ResetOffset { group, topic, queue, offset }) => {
                out.put_u8(RESET_OFFSET);
                put_place(out, *group, *topic, *queue, *offset);
            }
            Self::UpdateOffset(UpdateOffset { group, topic, queue, offset }) => {
                out.put_u8(UPDATE_OFFSET);
                put_place(out, *group, *topic, *queue, *offset);
            }
            Self::Begin(Begin { group, topic, places }) => {
                out.put_u8(BEGIN);
                out.put_u32_le(group.0);
                out.put_u32_le(topic.0);
                out.put_u32_le(u32::try_from(places.len()).expect("a topic has no more queues than a u16"));
                for (queue, offset) in places {
                    out.put_u16_le(queue.0);
                    out.put_u64_le(offset.0);
                }
            }
            Self::PutTopic(put) => {
                out.put_u8(PUT_TOPIC);
                put_text(out, put.name.as_str());
                out.put_u16_le(put.queues);
                out.put_u8(put.kind as u8);
                out.put_u8(u8::from(put.auto));
                out.put_u8(u8::from(put.replace));
            }
            Self::DropTopic(drop) => {
                out.put_u8(DROP_TOPIC);
                out.put_u32_le(drop.topic.0);
            }
            Self::PutGroup(put) => {
                out.put_u8(if put.retry.is_some() { PUT_GROUP_RETRY } else { PUT_GROUP });
                if let Some(retry) = &put.retry {
                    retry.encode(out);
                }
                put_text(out, put.name.as_str());
                out.put_u8(u8::from(put.fifo));
                put.start.encode(out);
                out.put_u8(u8::from(put.auto));
                out.put_u8(u8::from(put.replace));
            }
            Self::DropGroup(drop) => {
                out.put_u8(DROP_GROUP);
                out.put_u32_le(drop.group.0);
            }
        }
    }

    fn decode(now: Timestamp, reader: &mut Reader) -> Result<Self, DecodeError> {
        let at = reader.at();
        let command = match reader.u8()? {
            SEND => Self::Send(decode_send(now, reader)?),
            RECEIVE => Self::Receive(Receive::decode(false, reader)?),
            RECEIVE_BY => Self::Receive(Receive::decode(true, reader)?),
            RECEIVE_SCANNED => Self::ReceiveScanned(ReceiveScanned::decode(false, reader)?),
            RECEIVE_SCANNED_BY => Self::ReceiveScanned(ReceiveScanned::decode(true, reader)?),
            ACK => Self::Ack(Ack { group: GroupId(reader.u32()?), entries: take_handles(reader)? }),
            CHANGE_INVISIBLE => Self::ChangeInvisible(ChangeInvisible {
                group: GroupId(reader.u32()?),
                handle: Handle::decode(reader)?,
                invisible_ms: reader.u64()?,
                renew: reader.flag()?,
            }),
            COMMIT_OFFSET => {
                let (group, topic, queue, offset) = take_place(reader)?;
                Self::CommitOffset(CommitOffset { group, topic, queue, offset })
            }
            RESET_OFFSET => {
                let (group, topic, queue, offset) = take_place(reader)?;
                Self::ResetOffset(ResetOffset { group, topic, queue, offset })
            }
            UPDATE_OFFSET => {
                let (group, topic, queue, offset) = take_place(reader)?;
                Self::UpdateOffset(UpdateOffset { group, topic, queue, offset })
            }
            BEGIN => {
                let (group, topic) = (GroupId(reader.u32()?), TopicId(reader.u32()?));
                let place = |reader: &mut Reader| Ok((QueueId(reader.u16()?), QueueOffset(reader.u64()?)));
                let count = reader.count(Begin::PLACE_BYTES)?;
                let places = (0..count).map(|_| place(reader)).collect::<Result<_, DecodeError>>()?;
                Self::Begin(Begin { group, topic, places })
            }
            PUT_TOPIC => Self::PutTopic(PutTopic {
                name: reader.text(TopicName::parse, "not a topic name")?,
                queues: reader.u16()?,
                kind: take_kind(reader)?,
                auto: reader.flag()?,
                replace: reader.flag()?,
            }),
            DROP_TOPIC => Self::DropTopic(DropTopic { topic: TopicId(reader.u32()?) }),
            PUT_GROUP => Self::PutGroup(PutGroup::decode(None, reader)?),
            PUT_GROUP_RETRY => {
                let retry = Retry::decode(reader)?;
                Self::PutGroup(PutGroup::decode(Some(retry), reader)?)
            }
            DROP_GROUP => Self::DropGroup(DropGroup { group: GroupId(reader.u32()?) }),
            SEND_DELAYED => {
                let due = Timestamp(reader.u64()?);
                Self::SendDelayed(SendDelayed { due, send: decode_send(now, reader)? })
            }
            DELIVER => Self::Deliver(Deliver { id: DelayId::decode(reader)?, record: decode_record(now, reader)? }),
            RECALL => Self::Recall(Recall { id: DelayId::decode(reader)?, topic: TopicId(reader.u32()?) }),
            CARRY => {
                let waiting = match reader.u8()? {
                    CARRIED_DELAYED => Waiting::Delayed(DelayId::decode(reader)?),
                    CARRIED_HALF => Waiting::Half(HalfId(reader.u64()?)),
                    _ => return Err(reader.error("a carried body of an unknown kind")),
                };
                Self::Carry(Carry { waiting, record: decode_record(now, reader)? })
            }
            SEND_HALF => {
                let immunity_ms = reader.u64()?;
                Self::SendHalf(SendHalf { immunity_ms, send: decode_send(now, reader)? })
            }
            RESOLVE => {
                let (id, topic) = (HalfId(reader.u64()?), TopicId(reader.u32()?));
                let error = reader.error("unknown resolution");
                let resolution = Resolution::from_number(reader.u8()?).ok_or(error)?;
                let record = if reader.flag()? { Some(decode_record(now, reader)?) } else { None };
                Self::Resolve(Resolve { id, topic, resolution, record })
            }
            CHECKED => {
                let (id, checks) = (HalfId(reader.u64()?), reader.u16()?);
                let again_ms = match (reader.flag()?, reader.u64()?) {
                    (true, ms) => Some(ms),
                    (false, 0) => None,
                    (false, _) => return Err(reader.error("set aside and asked again")),
                };
                Self::Checked(Checked { id, checks, again_ms })
            }
            DEAD_LETTER => Self::DeadLetter(DeadLetter {
                handle: Handle::decode(reader)?,
                forwarded: reader.flag()?,
                tag_hash: reader.u64()?,
                record: decode_record(now, reader)?,
            }),
            REDRIVE => Self::Redrive(Redrive {
                from: TopicId(reader.u32()?),
                queue: QueueId(reader.u16()?),
                offset: QueueOffset(reader.u64()?),
                to: TopicId(reader.u32()?),
                to_queue: QueueId(reader.u16()?),
                tag_hash: reader.u64()?,
                record: decode_record(now, reader)?,
            }),
            GIVE_BACK => Self::GiveBack(GiveBack {
                group: GroupId(reader.u32()?),
                invisible_ms: reader.u64()?,
                entries: take_handles(reader)?,
            }),
            _ => return Err(DecodeError { what: "unknown command", at }),
        };
        Ok(command)
    }
}

impl PutGroup {
    fn decode(retry: Option<Retry>, reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            name: reader.text(GroupName::parse, "not a consumer group name")?,
            fifo: reader.flag()?,
            start: StartAt::decode(reader)?,
            auto: reader.flag()?,
            replace: reader.flag()?,
            retry,
        })
    }
}

impl Receive {
    fn encoded_len(&self) -> usize {
        let consumer = self.consumer.as_ref().map_or(0, |consumer| 1 + consumer.len());
        consumer + 4 + 4 + 2 + 8 + 2 + 1 + if self.attempt.is_some() { 16 } else { 0 }
    }

    fn encode(&self, out: &mut BytesMut) {
        if let Some(consumer) = &self.consumer {
            put_text(out, consumer);
        }
        out.put_u32_le(self.group.0);
        out.put_u32_le(self.topic.0);
        out.put_u16_le(self.max);
        out.put_u64_le(self.invisible_ms);
        out.put_u16_le(self.first_queue.0);
        out.put_u8(u8::from(self.attempt.is_some()));
        if let Some(attempt) = self.attempt {
            out.put_u128_le(attempt.0);
        }
    }

    fn decode(by: bool, reader: &mut Reader) -> Result<Self, DecodeError> {
        let consumer = if by {
            Some(
                reader
                    .text(|text| consumer(text).filter(|kept| kept.len() == text.len()).ok_or(()), "not a client id")?,
            )
        } else {
            None
        };
        Ok(Self {
            consumer,
            group: GroupId(reader.u32()?),
            topic: TopicId(reader.u32()?),
            max: reader.u16()?,
            invisible_ms: reader.u64()?,
            first_queue: QueueId(reader.u16()?),
            attempt: if reader.flag()? { Some(AttemptKey(reader.u128()?)) } else { None },
        })
    }
}

impl ReceiveScanned {
    fn encode(&self, out: &mut BytesMut) {
        let count = |len: usize| u32::try_from(len).expect("what one receive looks at is bounded");
        self.receive.encode(out);
        out.put_u32_le(count(self.scans.len()));
        for scan in &self.scans {
            out.put_u16_le(scan.queue.0);
            out.put_u64_le(scan.from.0);
            out.put_u64_le(scan.end.0);
            out.put_u32_le(count(scan.chosen.len()));
            for chosen in &scan.chosen {
                out.put_u32_le(count((chosen.offset.0 - scan.from.0) as usize));
                out.put_u64_le(chosen.group.0);
            }
        }
        out.put_u8(u8::from(self.verdicts.is_some()));
        if let Some(verdicts) = &self.verdicts {
            out.put_u32_le(count(verdicts.len()));
            for verdict in verdicts {
                out.put_u16_le(verdict.queue.0);
                out.put_u64_le(verdict.offset.0);
                out.put_u8(u8::from(verdict.wanted));
            }
        }
    }

    fn decode(by: bool, reader: &mut Reader) -> Result<Self, DecodeError> {
        let receive = Receive::decode(by, reader)?;
        let count = reader.count(Scan::BYTES_MIN)?;
        let scans = (0..count).map(|_| Scan::decode(reader)).collect::<Result<_, _>>()?;
        let verdicts = if reader.flag()? {
            let count = reader.count(Verdict::BYTES)?;
            let verdict = |reader: &mut Reader| {
                let (queue, offset) = (QueueId(reader.u16()?), QueueOffset(reader.u64()?));
                Ok(Verdict { queue, offset, wanted: reader.flag()? })
            };
            Some((0..count).map(|_| verdict(reader)).collect::<Result<_, DecodeError>>()?)
        } else {
            None
        };
        Ok(Self { receive, scans, verdicts })
    }
}

impl Scan {
    /// Bytes of one that chose nothing.
    const BYTES_MIN: usize = 2 + 8 + 8 + 4;
    const CHOSEN_BYTES: usize = 4 + 8;

    fn encoded_len(&self) -> usize {
        Self::BYTES_MIN + self.chosen.len() * Self::CHOSEN_BYTES
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (queue, from, end) = (QueueId(reader.u16()?), QueueOffset(reader.u64()?), QueueOffset(reader.u64()?));
        let mut chosen = Vec::new();
        let mut behind = from.0;
        for _ in 0..reader.count(Self::CHOSEN_BYTES)? {
            let step = u64::from(reader.u32()?);
            let group = MessageGroup(reader.u64()?);
            let offset = from.0.checked_add(step).filter(|offset| *offset >= behind && *offset < end.0);
            let offset = offset.ok_or_else(|| reader.error("a scan chose an offset that it did not look at"))?;
            behind = offset + 1;
            chosen.push(Chosen { offset: QueueOffset(offset), group });
        }
        Ok(Self { queue, from, end, chosen })
    }
}

impl Begin {
    const PLACE_BYTES: usize = 2 + 8;
}

impl Verdict {
    const BYTES: usize = 2 + 8 + 1;
}

fn decode_send(now: Timestamp, reader: &mut Reader) -> Result<Send, DecodeError> {
    let topic = TopicId(reader.u32()?);
    let queue = QueueId(reader.u16()?);
    let key = SendKey(reader.u128()?);
    let body_crc = reader.u32()?;
    let tag_hash = reader.u64()?;
    let record = decode_record(now, reader)?;
    Ok(Send { topic, queue, key, body_crc, tag_hash, record })
}

fn decode_record(now: Timestamp, reader: &mut Reader) -> Result<Record, DecodeError> {
    let size = reader.u32()?;
    let crc = reader.u32()?;
    if reader.u64()? != now.0 {
        return Err(reader.error("a record's stamp differs from its batch's"));
    }
    if size == 0 {
        return Err(reader.error("an empty record"));
    }
    let at = u32::try_from(reader.at()).map_err(|_| reader.error("a batch larger than 4 GiB"))?;
    let bytes = reader.slice(size as usize)?;
    if record_crc(now, &bytes) != crc {
        return Err(reader.error("a record's crc is wrong"));
    }
    Ok(Record::decoded(bytes, at))
}

fn put_send(out: &mut BytesMut, send: &Send, now: Timestamp) {
    out.put_u32_le(send.topic.0);
    out.put_u16_le(send.queue.0);
    out.put_u128_le(send.key.0);
    out.put_u32_le(send.body_crc);
    out.put_u64_le(send.tag_hash);
    put_record(out, &send.record, now);
}

fn put_record(out: &mut BytesMut, record: &Record, now: Timestamp) {
    let bytes = record.bytes();
    out.put_u32_le(u32::try_from(bytes.len()).expect("a message is bounded far below 4 GiB"));
    out.put_u32_le(record_crc(now, bytes));
    out.put_u64_le(now.0);
    out.put_slice(bytes);
}

fn put_handles(out: &mut BytesMut, handles: &[Handle]) {
    out.put_u32_le(u32::try_from(handles.len()).expect("handles are bounded by a request"));
    for handle in handles {
        handle.encode(out);
    }
}

fn take_handles(reader: &mut Reader) -> Result<Vec<Handle>, DecodeError> {
    let count = reader.count(Handle::BYTES)?;
    (0..count).map(|_| Handle::decode(reader)).collect()
}

fn put_place(out: &mut BytesMut, group: GroupId, topic: TopicId, queue: QueueId, offset: QueueOffset) {
    out.put_u32_le(group.0);
    out.put_u32_le(topic.0);
    out.put_u16_le(queue.0);
    out.put_u64_le(offset.0);
}

fn take_place(reader: &mut Reader) -> Result<(GroupId, TopicId, QueueId, QueueOffset), DecodeError> {
    Ok((GroupId(reader.u32()?), TopicId(reader.u32()?), QueueId(reader.u16()?), QueueOffset(reader.u64()?)))
}

/// A topic kind by its persisted number.
pub(crate) fn take_kind(reader: &mut Reader) -> Result<TopicKind, DecodeError> {
    let error = reader.error("unknown topic kind");
    TopicKind::from_number(reader.u8()?).ok_or(error)
}

#[cfg(test)]
#[path = "command_test.rs"]
mod tests;
