//! What the leader can be asked, by its own node and by its followers, and how that looks between nodes.
//!
//! A call is executed where the leader is ([`super::Leader`]); every other node sends it there. In between it is one byte of kind and the
//! protobuf of the call's struct, which decodes without copying records. The node that serves the client has checked and normalised
//! everything, so a call holds words of the house (names, records), not of the wire. Between nodes of one group only: kinds and
//! tags may change with the version that all nodes run, which the handshake of peers guards.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::admin;

use super::{Failure, Leader};

/// A call: its kind on the wire, its answer, and whether it may be repeated.
pub(crate) trait Call: Message + Default + Clone + 'static {
    /// What comes back.
    type Answer: Message + Default;
    /// First byte between nodes.
    const KIND: u8;
    /// May be executed again when the outcome of an earlier try is unknown, because the machine recognises the repeat or
    /// doing it twice is the same as doing it once.
    const REPEATABLE: bool;

    /// Does it, on the node that leads.
    fn execute(&self, leader: &Leader) -> impl Future<Output = Result<Self::Answer, Failure>> + core::marker::Send;

    /// Tells a call that may wait how long it still may.
    fn set_wait(&mut self, _wait: Duration) {}

    /// The bytes for the leader.
    fn to_request(&self) -> Bytes {
        framed(Self::KIND, self)
    }
}

/// A message behind a first byte that says what it is.
pub(crate) fn framed(first: u8, message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + message.encoded_len());
    out.put_u8(first);
    message.encode(&mut out).expect("the buffer grows as needed");
    out.freeze()
}

/// One row per call: number, struct, answer, repeatable.
macro_rules! calls {
    ($($kind:literal $name:ident -> $answer:ident by $method:ident, repeatable: $repeatable:literal $(, waits in $wait:ident)?;)*) => {
        $(impl Call for $name {
            type Answer = $answer;
            const KIND: u8 = $kind;
            const REPEATABLE: bool = $repeatable;

            async fn execute(&self, leader: &Leader) -> Result<$answer, Failure> {
                leader.$method(self).await
            }

            $(fn set_wait(&mut self, wait: Duration) {
                self.$wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            })?
        })*

        /// Any call, as the leader finds it in a request of a follower.
        #[derive(Debug)]
        pub(crate) enum AnyCall {
            $(
                #[doc = stringify!($name)]
                $name($name),
            )*
        }

        impl AnyCall {
            /// Reads a request. `None` if it is none, which only another version or a bug can send.
            pub fn decode(mut request: Bytes) -> Option<Self> {
                if request.is_empty() {
                    return None;
                }
                let kind = request.split_to(1)[0];
                match kind {
                    $($kind => $name::decode(request).ok().map(Self::$name),)*
                    _ => None,
                }
            }

            /// Does it, and gives the bytes of its answer behind `first`.
            pub async fn execute(&self, leader: &Leader, first: u8) -> Result<Bytes, Failure> {
                match self {
                    $(Self::$name(call) => Ok(framed(first, &call.execute(leader).await?)),)*
                }
            }
        }
    };
}

calls! {
    // The machine knows a repeated send by topic, client, message id and body, and answers it with the first result.
    1 Send -> Sent by send, repeatable: true;
    // Every receive has an attempt id; a repeat gets the same deliveries.
    2 Receive -> Received by receive, repeatable: true, waits in wait_ms;
    // An ack of what is acked is OK.
    3 Ack -> Acked by ack, repeatable: true;
    // The first try may have replaced the receipt, and the repeat would find the old one expired.
    4 ChangeInvisible -> Changed by change_invisible, repeatable: false;
    // Keeps the receipt.
    5 Renew -> Renewed by renew, repeatable: true;
    6 EnsureTopic -> TopicShape by ensure_topic, repeatable: true;
    7 EnsureGroup -> GroupShape by ensure_group, repeatable: true;
    8 CreateTopic -> Done by create_topic, repeatable: true;
    9 CreateGroup -> Done by create_group, repeatable: true;
    // A repeat would say that the topic is unknown, though the first try removed it.
    10 DropTopic -> Dropped by drop_topic, repeatable: false;
    11 DropGroup -> Done by drop_group, repeatable: false;
    12 ListTopics -> Topics by list_topics, repeatable: true;
    13 ListGroups -> Groups by list_groups, repeatable: true;
    // A recalled message is remembered until it would have been due.
    40 Recall -> Recalled by recall, repeatable: true;
    // How a transaction ended is remembered; a repeat is answered like the first.
    50 EndTransaction -> Done by end_transaction, repeatable: true;
    51 ListTransactions -> Transactions by list_transactions, repeatable: true;
    // A message that is done is answered OK.
    60 ForwardToDeadLetters -> Done by forward_to_dead_letters, repeatable: true;
    61 ListDeadLetters -> DeadLetterTopics by list_dead_letters, repeatable: true;
    62 ShowDeadLetters -> DeadLetters by show_dead_letters, repeatable: true;
    // What was redriven is known; a repeat says so.
    63 RedriveDeadLetters -> RedrivenSome by redrive_dead_letters, repeatable: true;
    // Reads only.
    70 Pull -> Pulled by pull, repeatable: true, waits in wait_ms;
    71 GetOffset -> Place by offset_of_group, repeatable: true;
    // Putting a place where it stands changes nothing.
    72 UpdateOffset -> Done by update_offset, repeatable: true;
    73 QueryOffset -> Place by offset_of_queue, repeatable: true;
    74 DescribeGroup -> GroupState by describe_group, repeatable: true;
    // A repeat goes to the same places; what it tells then is that nothing moves.
    75 ResetOffsets -> ResetSome by reset_offsets, repeatable: true;
    76 Subscribe -> Done by subscribe, repeatable: true;
    77 Farewell -> Done by farewell, repeatable: true;
}

/// Store messages of one topic.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Send {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(string, tag = "2")]
    pub client_id: String,
    #[prost(message, repeated, tag = "3")]
    pub messages: Vec<Outgoing>,
}

/// A normalised message on its way into the log.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Outgoing {
    #[prost(string, tag = "1")]
    pub message_id: String,
    #[prost(fixed32, tag = "2")]
    pub body_crc: u32,
    #[prost(fixed64, tag = "3")]
    pub tag_hash: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub record: Bytes,
    /// When it becomes visible, in milliseconds since 1970; 0 if at once.
    #[prost(uint64, tag = "5")]
    pub due_ms: u64,
    /// `machine::MessageGroup` of an ordered message.
    #[prost(fixed64, optional, tag = "6")]
    pub message_group: Option<u64>,
    /// It is a half message, and how long its producer is left alone before it is asked; 0: as the settings say.
    #[prost(uint64, optional, tag = "7")]
    pub half_immunity_ms: Option<u64>,
}

/// One result per message, in order.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sent {
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<SentOne>,
}

/// Where a message stands, or why it does not.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SentOne {
    #[prost(uint32, tag = "1")]
    pub queue: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(message, optional, tag = "3")]
    pub no: Option<No>,
    /// Takes the message back; empty if it is visible already.
    #[prost(string, tag = "4")]
    pub recall_handle: String,
    /// Ends the transaction of a half message; else empty.
    #[prost(string, tag = "5")]
    pub transaction_id: String,
}

/// Commit a half message or roll it back.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EndTransaction {
    /// The topic that the client names; an operator names none.
    #[prost(string, optional, tag = "1")]
    pub topic: Option<String>,
    #[prost(string, tag = "2")]
    pub transaction_id: String,
    #[prost(bool, tag = "3")]
    pub commit: bool,
}

/// Half messages, in the order of their sends.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListTransactions {
    /// Of this topic only.
    #[prost(string, optional, tag = "1")]
    pub topic: Option<String>,
    /// Those only that nobody asks about any more.
    #[prost(bool, tag = "2")]
    pub set_aside: bool,
    /// Most of them.
    #[prost(uint32, tag = "3")]
    pub max: u32,
    /// Behind the transaction of this id; empty from the first on.
    #[prost(string, tag = "4")]
    pub after: String,
}

/// Half messages that wait.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Transactions {
    #[prost(message, repeated, tag = "1")]
    pub transactions: Vec<TransactionDetail>,
    /// There are more behind the last.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// One half message.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TransactionDetail {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(string, tag = "2")]
    pub transaction_id: String,
    /// Empty if no node can read the message now.
    #[prost(string, tag = "3")]
    pub message_id: String,
    #[prost(uint64, tag = "4")]
    pub sent_ms: u64,
    #[prost(uint32, tag = "5")]
    pub checks: u32,
    /// When a producer is asked next; `None` when it is set aside.
    #[prost(uint64, optional, tag = "6")]
    pub check_ms: Option<u64>,
    /// Bytes of the message as it is stored.
    #[prost(uint32, tag = "7")]
    pub size: u32,
    #[prost(string, repeated, tag = "8")]
    pub keys: Vec<String>,
}

/// A consumer gives a message up.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ForwardToDeadLetters {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(string, tag = "3")]
    pub handle: String,
    #[prost(string, tag = "4")]
    pub client_id: String,
    /// How often it was worked on, as its consumer counts.
    #[prost(uint32, tag = "5")]
    pub attempts: u32,
}

/// The dead letter topics.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListDeadLetters {}

/// The dead letter topics.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeadLetterTopics {
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<DeadLetterTopic>,
}

/// One of them.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeadLetterTopic {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    /// Those kept.
    #[prost(uint64, tag = "3")]
    pub letters: u64,
    /// Those of them that were redriven.
    #[prost(uint64, tag = "4")]
    pub redriven: u64,
}

/// Dead letters of a group; an empty text means any.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ShowDeadLetters {
    #[prost(string, tag = "1")]
    pub group: String,
    /// Where it came from.
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(string, tag = "3")]
    pub key: String,
    #[prost(string, tag = "4")]
    pub tag: String,
    #[prost(string, tag = "5")]
    pub message_id: String,
    /// Log time of its death: from here on, and before there.
    #[prost(uint64, optional, tag = "6")]
    pub since_ms: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub until_ms: Option<u64>,
    /// Behind this one.
    #[prost(message, optional, tag = "8")]
    pub after: Option<DeadLetterPlace>,
    /// Most of them.
    #[prost(uint32, tag = "9")]
    pub max: u32,
}

/// Where a message stands in a topic.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct DeadLetterPlace {
    #[prost(uint32, tag = "1")]
    pub queue: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// Some dead letters.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeadLetters {
    #[prost(message, repeated, tag = "1")]
    pub letters: Vec<DeadLetterDetail>,
    /// There may be more behind `last`.
    #[prost(bool, tag = "2")]
    pub more: bool,
    /// The last one looked at.
    #[prost(message, optional, tag = "3")]
    pub last: Option<DeadLetterPlace>,
}

/// One dead letter. `topic` and what follows is where it came from.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeadLetterDetail {
    #[prost(message, optional, tag = "1")]
    pub place: Option<DeadLetterPlace>,
    #[prost(string, tag = "2")]
    pub message_id: String,
    #[prost(string, repeated, tag = "3")]
    pub keys: Vec<String>,
    #[prost(string, tag = "4")]
    pub tag: String,
    #[prost(uint64, tag = "5")]
    pub body_bytes: u64,
    #[prost(uint64, tag = "6")]
    pub died_ms: u64,
    #[prost(bool, tag = "7")]
    pub redriven: bool,
    #[prost(string, tag = "8")]
    pub topic: String,
    #[prost(uint64, tag = "9")]
    pub queue: u64,
    #[prost(uint64, tag = "10")]
    pub offset: u64,
    #[prost(uint64, tag = "11")]
    pub sent_ms: u64,
    #[prost(uint64, tag = "12")]
    pub attempts: u64,
    #[prost(string, tag = "13")]
    pub reason: String,
    #[prost(string, tag = "14")]
    pub consumer: String,
}

/// Store dead letters in a topic again.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RedriveDeadLetters {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(message, repeated, tag = "2")]
    pub places: Vec<DeadLetterPlace>,
    /// The topic; empty for each one's own.
    #[prost(string, tag = "3")]
    pub to: String,
}

/// One result per place, in order.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RedrivenSome {
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<RedrivenOne>,
}

/// Where the message stands now, or why it does not.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RedrivenOne {
    #[prost(message, optional, tag = "1")]
    pub no: Option<No>,
    /// It was redriven before.
    #[prost(bool, tag = "2")]
    pub before: bool,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(message, optional, tag = "4")]
    pub place: Option<DeadLetterPlace>,
    #[prost(string, tag = "5")]
    pub message_id: String,
}

/// Take a delayed message back.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Recall {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(string, tag = "2")]
    pub handle: String,
}

/// It will not be delivered.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Recalled {
    #[prost(string, tag = "1")]
    pub message_id: String,
}

/// A fault of one entry or of a whole call between nodes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct No {
    /// RocketMQ's code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Hand out messages, waiting for some up to `wait_ms`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Receive {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(uint32, tag = "3")]
    pub max: u32,
    #[prost(uint64, tag = "4")]
    pub invisible_ms: u64,
    #[prost(string, tag = "5")]
    pub attempt_id: String,
    #[prost(uint64, tag = "6")]
    pub wait_ms: u64,
    /// Which messages; all without one.
    #[prost(message, optional, tag = "7")]
    pub filter: Option<FilterText>,
    #[prost(string, tag = "8")]
    pub client_id: String,
}

/// A filter as the client wrote it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FilterText {
    /// SQL rather than tags.
    #[prost(bool, tag = "1")]
    pub sql: bool,
    #[prost(string, tag = "2")]
    pub text: String,
}

/// What was handed out; nothing if there was nothing.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Received {
    #[prost(message, repeated, tag = "1")]
    pub deliveries: Vec<Delivered>,
    /// Log time of the hand-out.
    #[prost(uint64, tag = "2")]
    pub now_ms: u64,
}

/// One message handed out.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Delivered {
    #[prost(uint32, tag = "1")]
    pub queue: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// The receipt, as text for the client.
    #[prost(string, tag = "4")]
    pub handle: String,
    /// Log time at which it was stored.
    #[prost(uint64, tag = "5")]
    pub stored_ms: u64,
    /// How long it is hidden from others.
    #[prost(uint64, tag = "6")]
    pub invisible_ms: u64,
    #[prost(bytes = "bytes", tag = "7")]
    pub record: Bytes,
}

/// Read messages of a queue from an offset on, waiting for some up to `wait_ms`. Hands out nothing: whoever pulls keeps the books.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pull {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(uint32, tag = "3")]
    pub queue: u32,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
    #[prost(uint32, tag = "5")]
    pub max: u32,
    #[prost(uint64, tag = "6")]
    pub wait_ms: u64,
    /// Which messages; all without one.
    #[prost(message, optional, tag = "7")]
    pub filter: Option<FilterText>,
    #[prost(string, tag = "8")]
    pub client_id: String,
}

/// What was read; nothing if there was nothing.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Pulled {
    #[prost(message, repeated, tag = "1")]
    pub messages: Vec<PulledOne>,
    /// Where to go on.
    #[prost(uint64, tag = "2")]
    pub next_offset: u64,
    /// What the queue holds, if the offset that was asked for lies outside of it. Nothing was read then.
    #[prost(message, optional, tag = "3")]
    pub out_of_range: Option<Range>,
}

/// One message as it stands in its queue.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PulledOne {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// Log time at which it was stored.
    #[prost(uint64, tag = "2")]
    pub stored_ms: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub record: Bytes,
}

/// Where a consumer group stands in a queue.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetOffset {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(uint32, tag = "3")]
    pub queue: u32,
}

/// An offset of a queue, if there is one to tell.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Place {
    #[prost(uint64, optional, tag = "1")]
    pub offset: Option<u64>,
}

/// A consumer says how far its group is.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpdateOffset {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(uint32, tag = "3")]
    pub queue: u32,
    #[prost(uint64, tag = "4")]
    pub offset: u64,
}

/// An offset of a queue: its end, or without `end` its first message stored at `since_ms` or later, or without that its first one.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct QueryOffset {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(uint32, tag = "2")]
    pub queue: u32,
    #[prost(bool, tag = "3")]
    pub end: bool,
    #[prost(uint64, optional, tag = "4")]
    pub since_ms: Option<u64>,
}

/// These deliveries are done.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ack {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(string, repeated, tag = "3")]
    pub handles: Vec<String>,
}

/// One result per handle, in order.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Acked {
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<AckedOne>,
}

/// Done, or why not.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AckedOne {
    #[prost(message, optional, tag = "1")]
    pub no: Option<No>,
}

/// Hide a delivery for another time; its receipt is replaced.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ChangeInvisible {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    #[prost(string, tag = "3")]
    pub handle: String,
    #[prost(uint64, tag = "4")]
    pub invisible_ms: u64,
}

/// The new receipt.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Changed {
    #[prost(string, tag = "1")]
    pub handle: String,
}

/// Hide deliveries of push consumers for longer; their receipts stay.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Renew {
    #[prost(string, repeated, tag = "1")]
    pub handles: Vec<String>,
    #[prost(uint64, tag = "2")]
    pub invisible_ms: u64,
}

/// Per handle: still in flight, so renew it again later.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Renewed {
    #[prost(bool, repeated, tag = "1")]
    pub renewed: Vec<bool>,
}

/// Look up a topic, making it if that is allowed.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EnsureTopic {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// A topic as routes need it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TopicShape {
    #[prost(uint32, tag = "1")]
    pub queues: u32,
    /// `machine::TopicKind` by its persisted number.
    #[prost(uint32, tag = "2")]
    pub kind: u32,
}

/// Look up a consumer group, making it if that is allowed.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EnsureGroup {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// A consumer group as settings need it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GroupShape {
    #[prost(bool, tag = "1")]
    pub fifo: bool,
}

/// Make a topic by hand.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateTopic {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub queues: u32,
    #[prost(uint32, tag = "3")]
    pub kind: u32,
}

/// Make a consumer group by hand.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateGroup {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub fifo: bool,
    /// Without it as RocketMQ does.
    #[prost(message, optional, tag = "3")]
    pub retry: Option<admin::Retry>,
    /// Change the group if it exists and differs.
    #[prost(bool, tag = "4")]
    pub replace: bool,
    /// Without it as the settings say.
    #[prost(message, optional, tag = "5")]
    pub start: Option<GroupStart>,
}

/// Where a group begins: at the end, or at a time, or else at the first message.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct GroupStart {
    #[prost(bool, tag = "1")]
    pub end: bool,
    #[prost(uint64, optional, tag = "2")]
    pub since_ms: Option<u64>,
}

/// Remove a topic and everything it holds.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DropTopic {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Though messages wait in it that nobody could receive yet.
    #[prost(bool, tag = "2")]
    pub force: bool,
}

/// The topic is removed, and with it messages that waited in it.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Dropped {
    #[prost(uint64, tag = "1")]
    pub halves: u64,
    #[prost(uint64, tag = "2")]
    pub delayed: u64,
}

/// Remove a consumer group and its progress.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DropGroup {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// It is so.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Done {}

/// All topics, or the one of that name.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListTopics {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
}

/// Topics with the offsets of their queues.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Topics {
    #[prost(message, repeated, tag = "1")]
    pub topics: Vec<TopicDetail>,
}

/// One topic.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TopicDetail {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    #[prost(message, repeated, tag = "3")]
    pub queues: Vec<Range>,
    #[prost(uint64, tag = "4")]
    pub created_ms: u64,
}

/// Offsets that a queue holds, end exclusive.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Range {
    #[prost(uint64, tag = "1")]
    pub min: u64,
    #[prost(uint64, tag = "2")]
    pub end: u64,
}

/// All consumer groups.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListGroups {}

/// All consumer groups.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Groups {
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<GroupDetail>,
}

/// One consumer group.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GroupDetail {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bool, tag = "2")]
    pub fifo: bool,
    #[prost(uint64, tag = "3")]
    pub created_ms: u64,
    #[prost(message, optional, tag = "4")]
    pub retry: Option<admin::Retry>,
    #[prost(message, optional, tag = "5")]
    pub start: Option<GroupStart>,
}

/// Everything about a consumer group.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DescribeGroup {
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Where it stands, and who is there. What operators get is what travels.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GroupState {
    #[prost(message, optional, tag = "1")]
    pub group: Option<GroupDetail>,
    /// Log time.
    #[prost(uint64, tag = "2")]
    pub now_ms: u64,
    #[prost(message, repeated, tag = "3")]
    pub topics: Vec<admin::GroupTopic>,
}

/// Put a group somewhere else in a topic.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResetOffsets {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub topic: String,
    /// Exactly there, and in no other queue.
    #[prost(message, repeated, tag = "3")]
    pub places: Vec<QueuePlace>,
    /// Else in every queue: at the end, or at a time, or else at the first message.
    #[prost(message, optional, tag = "4")]
    pub to: Option<GroupStart>,
    /// Say what would happen, and do nothing.
    #[prost(bool, tag = "5")]
    pub dry_run: bool,
}

/// A place in a topic.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct QueuePlace {
    #[prost(uint32, tag = "1")]
    pub queue: u32,
    #[prost(uint64, tag = "2")]
    pub offset: u64,
}

/// What happened, or would, by queue.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResetSome {
    #[prost(message, repeated, tag = "1")]
    pub queues: Vec<admin::ResetQueue>,
}

/// A consumer says what it is going to receive.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Subscribe {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub client_id: String,
    #[prost(message, repeated, tag = "3")]
    pub topics: Vec<SubscribeTo>,
    /// It pulls.
    #[prost(bool, tag = "4")]
    pub pulls: bool,
}

/// A consumer goes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Farewell {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(string, tag = "2")]
    pub client_id: String,
}

/// What of one topic.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SubscribeTo {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(message, optional, tag = "2")]
    pub filter: Option<FilterText>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_survives_the_way_to_the_leader_and_keeps_its_record_uncopied() {
        let record = Bytes::from(vec![7; 4096]);
        let outgoing = Outgoing {
            message_id: "ID".into(),
            body_crc: 1,
            tag_hash: 2,
            record,
            due_ms: 3,
            message_group: Some(u64::MAX),
            half_immunity_ms: Some(6_000),
        };
        let call = Send { topic: "t".into(), client_id: "c".into(), messages: vec![outgoing] };
        let request = call.to_request();
        let inside = request.as_ptr_range();
        let Some(AnyCall::Send(back)) = AnyCall::decode(request.clone()) else { panic!("not a send") };
        assert_eq!(back, call);
        assert!(inside.contains(&back.messages[0].record.as_ptr()));
    }

    #[test]
    fn bytes_that_are_no_call_are_none() {
        for bytes in [&b""[..], b"\0", b"\xff\x01", b"\x01\xff\xff\xff"] {
            assert!(AnyCall::decode(Bytes::copy_from_slice(bytes)).is_none(), "{bytes:?}");
        }
    }
}
