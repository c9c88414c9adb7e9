//! What the workloads and `dev` need of a client and of the group it talks to, and no more: the wall between the
//! harness and the product, so that the same workload runs over real sockets, in the simulator and against a stand-in.
//!
//! An implementation must keep the kinds of outcome apart. Saying *failed* means that the message will never be seen;
//! whoever is not sure says *unknown*. Mixing the two makes a correct broker look broken, or a broken one correct.
//! Every call has a deadline of its own and may be dropped at any point.

use std::future::Future;

use bytes::Bytes;

use crate::op::{Acked, Sent, Spot};

/// Sends messages to the topic it was made for. Many calls may be under way at once.
pub trait Producing: Send + Sync + 'static {
    /// Sends one message, with whatever retries the client makes under one message id.
    fn send(&self, key: &str, body: Bytes) -> impl Future<Output = Sent> + Send;
}

/// Receives from the topic and consumer group it was made for. One receive at a time, many acks.
pub trait Consuming: Send + Sync + 'static {
    /// What an ack needs.
    type Receipt: Send + 'static;

    /// Takes up to `max` messages, waiting for the first one for as long as the client's long poll lasts.
    fn receive(&self, max: u32) -> impl Future<Output = Handed<Self::Receipt>> + Send;

    /// Acknowledges one delivery.
    fn ack(&self, receipt: Self::Receipt) -> impl Future<Output = Acked> + Send;
}

/// What a receive brought. No messages is an answer too.
#[derive(Debug)]
pub enum Handed<R> {
    Messages(Vec<Message<R>>),
    /// Certainly nothing was handed out.
    Failed(Box<str>),
    /// Messages may have been handed out and lost on the way.
    Unknown(Box<str>),
}

/// One delivery.
#[derive(Debug)]
pub struct Message<R> {
    pub body: Bytes,
    pub spot: Spot,
    pub attempt: u32,
    pub receipt: R,
}

/// A group that can be reached: makes clients of it and asks its nodes how they are.
pub trait World: Send + Sync + 'static {
    type Producer: Producing;
    type Consumer: Consuming;

    /// A producer for `topic`. `endpoints` is a list `host:port;host:port`. May fail while the group has no leader.
    fn producer(&self, endpoints: &str, topic: &str)
    -> impl Future<Output = Result<Self::Producer, WorldError>> + Send;

    /// A consumer of `topic` in `group`.
    fn consumer(
        &self,
        endpoints: &str,
        topic: &str,
        group: &str,
    ) -> impl Future<Output = Result<Self::Consumer, WorldError>> + Send;

    /// Makes sure that `topic` with `queues` queues and the consumer group `group` exist. Done already is fine.
    fn arrange(
        &self,
        endpoints: &str,
        topic: &str,
        queues: u32,
        group: &str,
    ) -> impl Future<Output = Result<(), WorldError>> + Send;

    /// Asks the node at `endpoint` for the group's state. The node's view of itself is what counts; what it says of its
    /// peers may be old.
    fn status(&self, endpoint: &str) -> impl Future<Output = Result<Vec<NodeView>, WorldError>> + Send;
}

/// A node as a status call shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    pub number: u32,
    pub reachable: bool,
    pub role: Role,
    pub term: u64,
    /// The number of the leader that the node knows.
    pub leader: Option<u32>,
    pub last_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub pid: u64,
}

/// A node's part in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    /// The node said something else, or nothing.
    Unknown,
}

impl Role {
    /// The role that a status answer writes as `text`.
    pub fn parse(text: &str) -> Self {
        match text {
            "leader" => Self::Leader,
            "follower" => Self::Follower,
            "candidate" => Self::Candidate,
            "learner" => Self::Learner,
            _ => Self::Unknown,
        }
    }
}

/// A call of the harness that did not work; the text is the client's.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {why}")]
pub struct WorldError {
    pub call: &'static str,
    pub why: String,
}
