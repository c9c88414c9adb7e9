//! What comes out of the machine: a reply for whoever asked, and effects for the shell around it.
//!
//! A reply is the same on every node. Effects are the only way the machine touches anything outside: the replica carries
//! them out (consume queue records, files of dropped topics, waking long polls) and may drop those it does not need.

use quorate_proto::time::Timestamp;

use super::{
    feature::{
        delay::DelayId,
        transaction::{HalfId, Resolution},
    },
    handle::Handle,
    ids::{GroupId, QueueId, QueueOffset, TopicId},
    record::Pointer,
};

/// The answer to one command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// A message is stored.
    Sent {
        /// Its queue.
        queue: QueueId,
        /// Its offset there.
        offset: QueueOffset,
        /// It was stored by an earlier command with the same key and body; this is where.
        duplicate: bool,
    },
    /// A message is stored and waits for its time.
    Delayed {
        /// Its name.
        id: DelayId,
        /// It was stored by an earlier command with the same key, body and time.
        duplicate: bool,
    },
    /// A half message is stored and waits for its resolution.
    Half {
        /// Its name.
        id: HalfId,
        /// It was stored by an earlier command with the same key and body; it may have been resolved since.
        duplicate: bool,
    },
    /// Messages are handed out; none if there is nothing to hand out.
    Received {
        /// In order of queue rotation: first those whose time ran out, then new ones.
        deliveries: Vec<Delivery>,
    },
    /// One result per entry, in order.
    Acked {
        /// `Ok` also for what was acked before.
        results: Vec<Result<(), Refusal>>,
    },
    /// A delivery is hidden for another time.
    Changed {
        /// The receipt handle that is valid from now on.
        handle: Handle,
        /// Until when it is hidden.
        visible_at: Timestamp,
    },
    /// A topic exists.
    Topic {
        /// Its number.
        id: TopicId,
    },
    /// A consumer group exists.
    Group {
        /// Its number.
        id: GroupId,
    },
    /// Done, and nothing to say about it.
    Done,
    /// No, and nothing has changed.
    Refused(Refusal),
}

/// One message handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// Its queue.
    pub queue: QueueId,
    /// Its offset there.
    pub offset: QueueOffset,
    /// How often it has been handed out to this group, from 1.
    pub attempt: u32,
    /// The receipt for it.
    pub handle: Handle,
    /// When it is handed out again unless it is acked before.
    pub visible_at: Timestamp,
}

/// A deterministic "no". Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No topic with that number, any more.
    #[error("the topic does not exist; create it first")]
    TopicNotFound,
    /// No consumer group with that number, any more.
    #[error("the consumer group does not exist; create it first")]
    GroupNotFound,
    /// The topic has fewer queues.
    #[error("the topic has no such queue; refresh the route")]
    QueueNotFound,
    /// Not a receipt handle, or one of a delivery that never was.
    #[error("the receipt handle is not valid; use the one that came with the message, unchanged")]
    ReceiptInvalid,
    /// A receipt handle of another cluster.
    #[error("the receipt handle was issued by another cluster; send it there")]
    ReceiptForeign,
    /// The message was handed out again since, its receipt was replaced, or (for a change of its duration) it is done.
    #[error("the receipt handle has expired: the message is done or was handed out again; use the latest handle")]
    ReceiptExpired,
    /// The limit of topics that clients bring into being.
    #[error("{max} topics were created automatically, that is the limit; create this one by hand or delete some")]
    TooManyAutoTopics {
        /// The limit.
        max: u32,
    },
    /// The limit of consumer groups that clients bring into being.
    #[error(
        "{max} consumer groups were created automatically, that is the limit; create this one by hand or delete some"
    )]
    TooManyAutoGroups {
        /// The limit.
        max: u32,
    },
    /// The limit of topics.
    #[error("there are {max} topics, that is the limit; delete some")]
    TooManyTopics {
        /// The limit.
        max: u32,
    },
    /// The limit of consumer groups.
    #[error("there are {max} consumer groups, that is the limit; delete some")]
    TooManyGroups {
        /// The limit.
        max: u32,
    },
    /// A topic of that name exists and looks different.
    #[error("the topic exists with other settings; change it explicitly or choose another name")]
    TopicExists {
        /// Its number.
        id: TopicId,
    },
    /// A consumer group of that name exists and looks different.
    #[error("the consumer group exists with other settings; change it explicitly or choose another name")]
    GroupExists {
        /// Its number.
        id: GroupId,
    },
    /// Whether a consumer group wants order can change only while it has nothing in flight.
    #[error("the consumer group has messages in flight; its order can change when all are acknowledged")]
    GroupInUse {
        /// Its number.
        id: GroupId,
    },
    /// No queue, or more than a topic may have.
    #[error("a topic has 1 to {max} queues")]
    QueueCount {
        /// The limit.
        max: u16,
    },
    /// A topic's queues would become fewer.
    #[error("the topic has {have} queues and cannot shrink, since messages may stand in them; delete and re-create it")]
    QueuesShrink {
        /// How many it has.
        have: u16,
    },
    /// A delayed message before its time.
    #[error("the message is not due before {due}")]
    NotDue {
        /// When it is.
        due: Timestamp,
    },
    /// A message that does not wait any more: it is visible, was taken back, or its topic is gone.
    #[error("the message does not wait any more")]
    NotPending,
    /// Not a recall handle, or one of another topic.
    #[error("the recall handle is not valid; use the one that the send was answered with, unchanged, and its topic")]
    RecallInvalid,
    /// A recall handle of another cluster.
    #[error("the recall handle was issued by another cluster; send it there")]
    RecallForeign,
    /// The message is visible already, or was taken back and would be visible by now.
    #[error("it is too late: the message has been delivered, or it was recalled and its time has passed since")]
    RecallTooLate,
    /// Not a transaction id, one of another topic, or one of a transaction that never was.
    #[error("the transaction id is not valid; use the one that the send was answered with, unchanged, and its topic")]
    TransactionUnknown,
    /// A transaction id of another cluster.
    #[error("the transaction id was issued by another cluster; send it there")]
    TransactionForeign,
    /// A transaction that ended so long ago that nobody remembers how.
    #[error("the transaction ended so long ago that it is not known how; nothing was done")]
    TransactionForgotten,
    /// A transaction that has ended the other way.
    #[error("the transaction was {} before, and that is final; nothing was done", ended.name())]
    TransactionEnded {
        /// How it ended.
        ended: Resolution,
    },
    /// A half message that somebody was asked about, or that was set aside, since this was planned.
    #[error("the half message was checked or set aside since")]
    CheckedSince,
    /// A commit without the body of a half message that stands behind a segment border.
    #[error("the half message stands behind a segment border; commit it with its body")]
    BodyNeeded,
    /// A message that is not to be a dead letter: it will be handed out again, or its consumer still has time.
    #[error("the message has attempts left, or its consumer still has time for it")]
    AttemptsLeft,
    /// A dead letter that stands in a topic again.
    #[error("the dead letter was redriven before; nothing was done")]
    Redriven,
    /// An offset outside of what the queue holds.
    #[error("the queue holds offsets {min} to {end} (exclusive)")]
    OffsetOutOfRange {
        /// First offset kept.
        min: QueueOffset,
        /// Behind the last one.
        end: QueueOffset,
    },
}

/// Something the shell has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Append a record to a consume queue. Offsets of a queue come without gaps.
    Append {
        /// The topic.
        topic: TopicId,
        /// The queue.
        queue: QueueId,
        /// Its offset.
        offset: QueueOffset,
        /// What stands there.
        pointer: Pointer,
    },
    /// Messages became visible to a group other than by being sent or by time passing.
    Visible {
        /// The group.
        group: GroupId,
        /// The topic.
        topic: TopicId,
    },
    /// Time will make something ready then.
    Scheduled {
        /// In log time.
        at: Timestamp,
    },
    /// The set of topics, or the shape of one, has changed.
    TopicsChanged,
    /// A topic is gone; its files may go.
    TopicDropped {
        /// The number it had.
        topic: TopicId,
    },
    /// A queue's first offset has moved up; files below may go.
    MinMoved {
        /// The topic.
        topic: TopicId,
        /// The queue.
        queue: QueueId,
        /// First offset kept.
        min: QueueOffset,
    },
}
