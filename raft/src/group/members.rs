//! The leader's part in taking a node in: learner, then voter in place of the identity that had its number.
//!
//! The joining node keeps asking; each question moves things one step. Nothing is remembered between questions, so a new
//! leader simply goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use openraft::{ChangeMembers, async_runtime::watch::WatchReceiver};

use super::Inner;
use crate::{
    binding::{Node, RaftMembership},
    runtime,
    types::NodeId,
};

/// Entries a learner may lack when it gets its vote: it catches them up while the change commits.
const LAG_MAX: u64 = 1000;

/// What to do next for a joining node.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// It votes already.
    Nothing,
    /// It is to be a learner; identities to drop with it were never voters.
    AddLearner { drop: BTreeSet<NodeId> },
    /// It has caught up: these are the voters from now on.
    Promote { voters: BTreeSet<NodeId> },
    /// It has to catch up first, or stays a learner.
    Wait(&'static str),
}

fn next_move(joiner: NodeId, membership: &RaftMembership, is_configured: bool, lag: Option<u64>) -> Move {
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    if voters.contains(&joiner) {
        return Move::Nothing;
    }
    if membership.get_joint_config().len() > 1 {
        return Move::Wait("another change of membership is on");
    }
    let same_number = |id: &&NodeId| id.number() == joiner.number() && **id != joiner;
    if membership.get_node(&joiner).is_none() {
        let drop = membership.nodes().map(|(id, _)| id).filter(same_number).filter(|id| !voters.contains(id));
        return Move::AddLearner { drop: drop.copied().collect() };
    }
    let replaces = voters.iter().any(|id| same_number(&id));
    if !replaces && !is_configured {
        return Move::Wait("a learner: its number is not among the configured members");
    }
    if lag.is_none_or(|lag| lag > LAG_MAX) {
        return Move::Wait("a learner, catching up");
    }
    let mut voters: BTreeSet<NodeId> = voters.iter().filter(|id| !same_number(id)).copied().collect();
    voters.insert(joiner);
    Move::Promote { voters }
}

/// Answers a node that asks to be taken in, and starts the next step if there is one.
///
/// # Errors
/// In words, when this node is not the leader or is busy with another.
pub(super) fn admit(inner: &Arc<Inner>, joiner: NodeId) -> Result<String, String> {
    if !inner.leader.borrow().serving {
        return Err("this node does not lead".into());
    }
    let seen = inner.peers.known(joiner.number()).and_then(|peer| peer.seen());
    let Some(card) = seen.map(|seen| seen.card).filter(|card| card.node == joiner) else {
        return Err("its card is not here yet".into());
    };
    let membership = inner.raft.server_metrics().borrow_watched().membership_config.membership().clone();
    let is_configured = inner.config.members.iter().any(|member| member.number == joiner.number());
    let matched = inner.raft.data_metrics().borrow_watched().replication.clone();
    let matched = matched.and_then(|replication| replication.get(&joiner).copied().flatten());
    let last = inner.log.last().map_or(0, |id| id.index.0);
    let lag = matched.map(|id| last.saturating_sub(id.index));

    let todo = next_move(joiner, &membership, is_configured, lag);
    match todo {
        Move::Nothing => return Ok("it votes".into()),
        Move::Wait(why) => return Ok(why.into()),
        Move::AddLearner { .. } | Move::Promote { .. } => {}
    }
    let Ok(turn) = inner.admitting.try_lock() else {
        return Ok("a change of membership is on".into());
    };
    drop(turn);
    let inner = inner.clone();
    let address = inner.config.address_of(joiner.number()).unwrap_or(&card.peer_address).to_owned();
    let scope = inner.scope.clone();
    scope.spawn(runtime::random(), async move {
        let Ok(_turn) = inner.admitting.try_lock() else {
            return;
        };
        let longest = inner.config.election_timeout.1 * 20;
        let change = change(&inner, joiner, address, todo);
        if tokio::time::timeout(longest, change).await.is_err() {
            tracing::warn!(node = %joiner, "change of membership takes long");
        }
    });
    Ok("on its way".into())
}

async fn change(inner: &Inner, joiner: NodeId, address: String, todo: Move) {
    let done = match todo {
        Move::Nothing | Move::Wait(_) => return,
        Move::AddLearner { drop } => {
            tracing::info!(node = ?joiner, "node joins as a learner");
            let add = ChangeMembers::AddNodes(BTreeMap::from([(joiner, Node { peer_address: address })]));
            let changes = match drop.is_empty() {
                true => add,
                false => ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(drop), add]),
            };
            inner.raft.change_membership(changes, true).await
        }
        Move::Promote { voters } => {
            tracing::info!(node = ?joiner, "node becomes a voter");
            inner.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), false).await
        }
    };
    if let Err(error) = done {
        tracing::info!(node = ?joiner, %error, "change of membership failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAGGING: Option<u64> = Some(LAG_MAX + 1);

    fn id(number: u16, incarnation: u32) -> NodeId {
        NodeId::new(number, incarnation)
    }

    fn membership(voters: &[NodeId], learners: &[NodeId]) -> RaftMembership {
        let nodes: BTreeMap<NodeId, Node> = voters.iter().chain(learners).map(|id| (*id, Node::default())).collect();
        RaftMembership::new(vec![voters.iter().copied().collect()], nodes).expect("every voter has a node")
    }

    #[test]
    fn a_wiped_node_becomes_a_learner_then_takes_the_place_of_its_old_identity() {
        let old = [id(1, 1), id(2, 1), id(3, 1)];
        let new = id(2, 9);
        let before = membership(&old, &[]);
        assert_eq!(next_move(new, &before, true, None), Move::AddLearner { drop: BTreeSet::new() });
        let learning = membership(&old, &[new]);
        assert_eq!(next_move(new, &learning, true, LAGGING), Move::Wait("a learner, catching up"));
        let voters = BTreeSet::from([old[0], new, old[2]]);
        assert_eq!(next_move(new, &learning, true, Some(3)), Move::Promote { voters: voters.clone() });
        let after = membership(&[old[0], new, old[2]], &[]);
        assert_eq!(next_move(new, &after, true, Some(0)), Move::Nothing);
    }

    #[test]
    fn a_learner_wiped_again_leaves_no_trace() {
        let old = [id(1, 1), id(2, 1), id(3, 1)];
        let learning = membership(&old, &[id(2, 9)]);
        assert_eq!(next_move(id(2, 10), &learning, true, None), Move::AddLearner { drop: BTreeSet::from([id(2, 9)]) });
    }

    #[test]
    fn a_number_nobody_configured_stays_a_learner() {
        let now = membership(&[id(1, 1)], &[id(4, 1)]);
        assert_eq!(
            next_move(id(4, 1), &now, false, Some(0)),
            Move::Wait("a learner: its number is not among the configured members")
        );
        let voters = BTreeSet::from([id(1, 1), id(4, 1)]);
        assert_eq!(next_move(id(4, 1), &now, true, Some(0)), Move::Promote { voters });
    }
}
