//! What only the leader does: plan, stamp, coalesce, propose.
//!
//! ```text
//!   call ─▶ plan (read the machine) ─▶ commands ─▶ proposer ─▶ log ─▶ apply ─▶ replies ─▶ answer
//! ```
//! A [`Leader`] stands ready on every node and is used on the one that leads; elsewhere the log answers "not the leader" and nothing
//! has happened. It never looks at the wire: calls come checked and normalised from `service`, by way of this node or of a follower.
//! It decides nothing that `apply` does not check again.

pub(crate) mod calls;
pub(crate) mod checks;
pub(crate) mod clock;
pub(crate) mod dead_letters;
mod describe;
pub(crate) mod filter;
pub(crate) mod letter;
pub(crate) mod mend;
mod messages;
mod names;
mod planner;
pub(crate) mod propose;
mod pull;
pub(crate) mod pump;
mod redrive;
pub(crate) mod rescue;
mod scanned;
pub(crate) mod space;
mod term;
pub(crate) mod timer;
mod transactions;

use std::{sync::Arc, time::Duration};

use quorate_raft::{Group, ProposeError};

pub(crate) use self::names::kind_of;
pub(crate) use self::term::{PeerClocks, RaftLog, TermClock};
use self::{mend::Mending, planner::Planner, propose::Proposer, space::Space};
use crate::{
    config::{BrokerConfig, units::format_duration},
    machine::{ClusterHash, Refusal, Reply, RetryError, TopicKind},
    metrics::Metrics,
    replica::{Applied, Replica, Shared},
};

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The machine says no; nothing has changed.
    #[error("{0}")]
    Refused(Refusal),
    /// The log did not take it, or may have.
    #[error("{0}")]
    Propose(ProposeError),
    /// The topic is for other messages than this one.
    #[error("the topic takes {} messages only, and this one is {}; send it to a topic of its type", takes.name(), sent.name())]
    TopicTakes {
        /// What the topic takes.
        takes: TopicKind,
        /// What was sent.
        sent: TopicKind,
    },
    /// A delivery timestamp further ahead than is allowed.
    #[error(
        "the delivery timestamp lies {} s ahead, at most {} are allowed; choose an earlier one (limits.delay_max)",
        ahead.as_secs(), format_duration(*max)
    )]
    DelayTooLong {
        /// How far.
        ahead: Duration,
        /// How far is allowed.
        max: Duration,
    },
    /// Messages wait in a topic that is to be removed.
    #[error(
        "{halves} half and {delayed} delayed messages wait in topic {topic}, and nobody could receive them yet; nothing was deleted; \
         force it to drop them too (quorate topic delete {topic} --force)"
    )]
    StillWaiting {
        /// Its name.
        topic: String,
        /// Half messages.
        halves: u64,
        /// Delayed ones.
        delayed: u64,
    },
    /// A topic of dead letters is to be deleted with them.
    #[error(
        "{topic} holds {letters} dead letters of consumer group {group}; nothing was deleted; look at them (quorate dlq show {group}), or \
         force it to drop them (quorate topic delete {topic} --force)"
    )]
    HoldsDeadLetters {
        /// Its name.
        topic: String,
        /// Whose they are.
        group: String,
        /// How many.
        letters: u64,
    },
    /// The filter cannot be read.
    #[error("{0}")]
    Filter(filter::FilterError),
    /// A consumer filters otherwise than another one of its group, and that is not allowed.
    #[error(
        "the consumer group {group} has a consumer, {other}, that filters topic {topic} by {theirs}, and this one filters by {ours}: what one \
         does not want, none of them gets; use one filter in a group (groups.filters)"
    )]
    FiltersDiffer {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// The other's client id.
        other: String,
        /// Its filter.
        theirs: String,
        /// The filter that was refused.
        ours: String,
    },
    /// Retry settings out of range.
    #[error("{0}")]
    Retry(RetryError),
    /// The consumer group has never had a dead letter.
    #[error("the consumer group has no dead letters")]
    NoDeadLetters,
    /// A message of a dead letter topic that somebody sent there.
    #[error("the message does not say where it came from, since it was sent here; say where it is to go (--to)")]
    NoOrigin,
    /// There is no room for anything more; nothing has changed.
    #[error("{0}")]
    DiskFull(String),
    /// A message is stored and could not be read.
    #[error("a stored message could not be read: {0}")]
    Unreadable(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        Self::Propose(error)
    }
}

/// Turns the "no" about one entry into code and text. Lives in `service`, where the table of codes is.
pub(crate) type ToNo = fn(Failure) -> calls::No;

/// Executes calls on the node that leads.
pub(crate) struct Leader {
    group: Group<Replica>,
    shared: Shared,
    proposer: Proposer,
    planner: Planner,
    mending: Mending,
    space: Arc<Space>,
    clock: Arc<TermClock>,
    config: Arc<BrokerConfig>,
    cluster: ClusterHash,
    metrics: Arc<Metrics>,
    to_no: ToNo,
}

/// What a leader looks at and counts with, shared with the rest of the node.
pub(crate) struct Instruments {
    /// Log time.
    pub clock: Arc<TermClock>,
    /// Room on the group's disks.
    pub space: Arc<Space>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Leader {
    /// A leader over the node's parts.
    pub fn new(
        group: Group<Replica>,
        shared: Shared,
        proposer: Proposer,
        Instruments { clock, space, metrics }: Instruments,
        config: Arc<BrokerConfig>,
        to_no: ToNo,
    ) -> Self {
        let cluster = ClusterHash::of(&config.node.cluster);
        let (planner, mending) = (Planner::default(), Mending::default());
        Self { group, shared, proposer, planner, mending, space, clock, config, cluster, metrics, to_no }
    }

    /// Proposes one command and gives its reply; a refusal is a failure.
    async fn propose_one(&self, command: crate::machine::Command) -> Result<(Reply, Applied), Failure> {
        let mut applied = self.proposer.propose(vec![command]).await?;
        let reply = applied.replies.pop().expect("the proposer gives one reply per command");
        if let Reply::Refused(refusal) = reply {
            return Err(refusal.into());
        }
        Ok((reply, applied))
    }
}

/// The machine answered a command with a reply of another command.
fn mismatched(reply: &Reply) -> ! {
    unreachable!("the machine's reply does not fit the command: {reply:?}")
}
