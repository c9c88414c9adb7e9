//! The client of Quorate, and of anything else that speaks RocketMQ 5's gRPC protocol.
//!
//! ```text
//!   Producer   SimpleConsumer   Admin          what applications and tools hold; cheap to clone
//!       └──────────┬──────────────┘
//!               session                        telemetry stream, settings, heartbeats
//!                route                         where a topic lives, refreshed every 30 s and on failures
//!              transport                       one HTTP/2 connection per address, attempts, faults
//! ```
//! Every node of a broker group serves every call, so a client needs one live address and nothing more: calls go to the first usable
//! address of the route (the leader stands first) and move to the next the moment one fails. A repeated send keeps its message id,
//! by which the broker recognises it; a repeated receive keeps its attempt id. What a call can come to is in [`CallError`]: refused,
//! not now, unknown and a fault of the caller's own are four different things and never turn into one another.
//!
//! The crate opens no socket and reads no clock itself: [`Doors`] are handed in.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod admin;
mod backoff;
mod client;
mod config;
mod consumer;
mod error;
mod group_hash;
mod identity;
mod message;
mod picker;
mod producer;
mod route;
mod session;
mod transport;

pub use admin::Admin;
pub use backoff::Backoff;
pub use client::Client;
pub use config::{ClientConfig, Doors};
pub use consumer::{
    ConsumerOptions, Filter, OffsetOf, PullConsumer, PullOptions, ReceiveOptions, SimpleConsumer, TopicQueue,
};
pub use error::{AckError, AdminError, CallError, ReceiveError, SendError, code_name};
pub use group_hash::{queue_of_group, sip_hash_2_4};
pub use message::{Delivery, Message, PulledMessage, Resolution};
pub use picker::{Fault, Picker};
pub use producer::{CheckListener, Producer, Sent, Transaction};

/// A moment, in milliseconds since 1970.
pub use quorate_proto::time::Timestamp;

/// What operators ask for and get, as the wire has it.
pub use quorate_proto::admin::{
    ChangeMembersResponse, ChangeState, ClusterStatusResponse, ConsumerGroup, DeadLetter, DeadLetterPlace,
    DeadLetterTopic, DescribeGroupResponse, ExponentialDelays, GroupConsumer, GroupQueue, GroupTopic, LeaderChange,
    ListTransactionsResponse, NodeHistory, NodeStatus, Outcome, Queue, Redriven, ResetOffsetsRequest, ResetPlace,
    ResetQueue, Retry, ShowDeadLettersRequest, ShowDeadLettersResponse, StartAt, Topic, TopicType,
    Transaction as WaitingTransaction,
};
