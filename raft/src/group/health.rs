//! What a node knows of its own and its group's soundness, in numbers. What they are worth is for the layer above to judge.

use openraft::async_runtime::watch::WatchReceiver;

use super::{Inner, LeaderView};
use crate::{
    peer::{
        Seen,
        codec::{Card, Stage},
    },
    types::{LogIndex, NodeId},
};

/// The soundness of this node and its group, as this node sees it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupHealth {
    /// This node.
    pub id: NodeId,
    /// Why nothing can be asked of this node any more, if so.
    pub stopped: Option<String>,
    /// Who leads, as this node knows it.
    pub leader: LeaderView,
    /// This node may have forgotten what it acked, and stays out of elections until it has caught up with a live leader.
    pub unsure: bool,
    /// Entries that the leader has applied and this node has not, by the leader's latest card; none for the leader itself. `None`: no
    /// leader is known, or it has not shown a fresh card yet.
    pub behind: Option<u64>,
    /// The membership is being changed: two sets of voters count at once.
    pub is_changing: bool,
    /// This node votes.
    pub is_voter: bool,
    /// The other voters.
    pub others: Vec<VoterHealth>,
}

/// Another voter, by its latest card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoterHealth {
    /// Its identity.
    pub id: NodeId,
    /// It was heard of within the election timeout.
    pub is_alive: bool,
    /// It says of itself that it may lack what it acked, so it may be kept from voting.
    pub is_unsure: bool,
    /// Entries it has applied less than the furthest node that this one knows of.
    pub behind: u64,
}

pub(super) fn health(inner: &Inner) -> GroupHealth {
    let leader = *inner.leader.borrow();
    let mine = inner.applied.borrow().id.map_or(LogIndex(0), |id| id.index);
    let age = inner.config.election_timeout.1;
    let (voters, is_changing) = {
        let server = inner.raft.server_metrics();
        let server = server.borrow_watched();
        let membership = server.membership_config.membership();
        (membership.voter_ids().collect::<Vec<NodeId>>(), membership.get_joint_config().len() > 1)
    };
    let card_of = |id: NodeId| {
        let seen = inner.peers.known(id.number())?.seen()?;
        (seen.card.node == id).then_some(seen)
    };
    let applied_of = |card: &Card| card.applied.map_or(LogIndex(0), |(id, _)| id.index);
    let behind = leader.leader.and_then(|id| match id == inner.me {
        true => Some(0),
        false => {
            let seen = card_of(id).filter(|seen| seen.at.elapsed() <= age)?;
            Some(applied_of(&seen.card).0.saturating_sub(mine.0))
        }
    });
    let others: Vec<_> = voters.iter().filter(|id| **id != inner.me).map(|id| (*id, card_of(*id))).collect();
    let known = others.iter().filter_map(|(_, seen)| Some(applied_of(&seen.as_ref()?.card)));
    let furthest = known.max().unwrap_or_default().max(mine);
    let voter = |(id, seen): (NodeId, Option<Seen>)| VoterHealth {
        id,
        is_alive: seen.as_ref().is_some_and(|seen| seen.at.elapsed() <= age),
        is_unsure: seen.as_ref().is_none_or(|seen| seen.card.stage == Stage::Lost),
        behind: furthest.0 - seen.map_or(0, |seen| applied_of(&seen.card).0),
    };
    GroupHealth {
        id: inner.me,
        stopped: inner.stopped().or_else(|| inner.log.failure()),
        leader,
        unsure: inner.gate.is_lost(),
        behind,
        is_changing,
        is_voter: voters.contains(&inner.me),
        others: others.into_iter().map(voter).collect(),
    }
}
