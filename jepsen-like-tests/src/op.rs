//! What a run saw: one [`Op`] per send, delivered message, ack, fault and election.
//!
//! The workloads make them, [`crate::history`] keeps them, [`crate::check`] judges them. An op says only what its
//! process saw from outside: when it asked, when the answer came, what the answer was. It must never hold what a broker
//! told about itself behind the client's back, because the checkers exist to contradict the broker.
//!
//! The wrong op cannot be written down: a failed send has no place, a delivered message always has one.

use std::sync::Arc;

/// Who asked, and when: microseconds on the run's clock, which never steps back or jumps within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// A number for each producer, consumer or the harness itself, unique in the run.
    pub process: u32,
    /// Read before the request left.
    pub invoke_us: u64,
    /// Read after the answer came, or when the process stopped waiting for it.
    pub return_us: u64,
}

/// Where a message stands: a queue of a topic and the number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pub queue: u32,
    pub offset: u64,
}

/// One thing a process did, or one thing done to the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Send(Send),
    Receive(Receive),
    Ack(Ack),
    Hold(Hold),
    Fault(Fault),
    Election(Election),
}

/// One message handed to the group. No two sends of a run have the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    pub span: Span,
    pub topic: Arc<str>,
    pub key: Box<str>,
    pub outcome: Sent,
}

/// What a producer knows after a send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Acknowledged. What the client does not tell is missing: RocketMQ 5's answer has the offset and not the queue.
    Stored { queue: Option<u32>, offset: Option<u64> },
    /// Certainly not stored, now or later.
    Failed(Box<str>),
    /// May be stored, or become stored after the return.
    Unknown(Box<str>),
}

/// One message that a receive call delivered, or a call that delivered none because it broke.
/// A process has at most one receive call under way; a call that delivers five messages makes five ops of one span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receive {
    pub span: Span,
    pub topic: Arc<str>,
    pub outcome: Received,
}

/// What a receive call brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Message {
        key: Box<str>,
        spot: Spot,
        /// How often this message has been handed out, starting at 1.
        attempt: u32,
    },
    /// Certainly nothing was handed out.
    Failed(Box<str>),
    /// Messages may have been handed out and lost on the way.
    Unknown(Box<str>),
}

/// One acknowledgement of one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub span: Span,
    pub topic: Arc<str>,
    pub key: Box<str>,
    pub spot: Spot,
    pub outcome: Acked,
}

/// What a consumer knows after an ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acked {
    /// The message must never come back.
    Done,
    /// Certainly without effect.
    Failed(Box<str>),
    /// May have had its effect.
    Unknown(Box<str>),
}

/// What a producer asked for about when, or whether, a message may be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub span: Span,
    pub topic: Arc<str>,
    pub key: Box<str>,
    pub what: Held,
}

/// How a message is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// It must not be seen before this moment of the run's clock, as far as its producer can know.
    Until { not_before_us: u64 },
    /// It was taken back: done, it must never be seen; unknown, either.
    Recall(Acked),
    /// It is half: it must not be seen before somebody asks to commit it.
    Half,
    /// It was asked to be committed or rolled back. Committed it must be seen once, rolled back never; unknown, either.
    End { commit: bool, outcome: Acked },
}

/// Something done to a node; the span covers the doing, not how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub span: Span,
    pub node: u32,
    pub kind: FaultKind,
}

/// What was done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// SIGKILL by the harness.
    Kill,
    /// Started again with the directory it had.
    Restart,
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Resume,
    /// The process ended and the harness had not asked for it.
    Crash,
}

/// A new leader: the span begins with what made it necessary and ends when the harness saw the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    pub span: Span,
    pub leader: u32,
    pub term: u64,
}
