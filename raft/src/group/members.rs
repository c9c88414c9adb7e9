//! The leader's part in taking a node in: learner, then voter in place of the identity that had its number.
//!
//! The joining node keeps asking; each question moves things one step. Nothing is remembered between questions, so a new
//! leader simply goes on. A node that replaces nobody stays a learner until an operator wants it to vote (`change`), but for
//! the other founders of a group that was started by hand. A change that a leader left half done is finished by the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use openraft::{ChangeMembers, async_runtime::watch::WatchReceiver};

use super::{
    Inner,
    removed::{self, Claim, Kinship},
};
use crate::{
    binding::{Node, RaftMembership, from_raft},
    peer::codec::Card,
    runtime,
    types::{LogId, NodeId},
};

/// Entries a learner may lack when it gets its vote: it catches them up while the change commits.
pub(super) const LAG_MAX: u64 = 1000;

/// Pause between two looks for a change that was left half done.
const LOOK: Duration = Duration::from_millis(500);

/// First byte of the answer to a node that was removed; no other answer starts with it.
const REMOVED: u8 = 0;

/// What a joining node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// How far it is.
    Wait(String),
    /// Its identity has left the group for good.
    Removed(String),
}

impl Told {
    pub(super) fn encode(self) -> Bytes {
        match self {
            Self::Wait(text) => Bytes::from(text),
            Self::Removed(text) => [&[REMOVED], text.as_bytes()].concat().into(),
        }
    }

    pub(super) fn decode(from: &[u8]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match from {
            [REMOVED, rest @ ..] => Self::Removed(text(rest)),
            other => Self::Wait(text(other)),
        }
    }
}

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

fn next_move(joiner: NodeId, membership: &RaftMembership, is_founder: bool, lag: Option<u64>) -> Move {
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    if voters.contains(&joiner) {
        return Move::Nothing;
    }
    if is_joint(membership) {
        return Move::Wait("another change of membership is on");
    }
    let same_number = |id: &&NodeId| id.number() == joiner.number() && **id != joiner;
    if membership.get_node(&joiner).is_none() {
        return Move::AddLearner { drop: stale_learners(joiner, membership) };
    }
    let replaces = voters.iter().any(|id| same_number(&id));
    if !replaces && !is_founder {
        return Move::Wait("a learner: it gets a vote by `quorate cluster add`");
    }
    if lag.is_none_or(|lag| lag > LAG_MAX) {
        return Move::Wait("a learner, catching up");
    }
    let mut voters: BTreeSet<NodeId> = voters.iter().filter(|id| !same_number(id)).copied().collect();
    voters.insert(joiner);
    Move::Promote { voters }
}

/// Learners of an earlier directory of the same node: they never had a vote and will not come back.
pub(super) fn stale_learners(node: NodeId, membership: &RaftMembership) -> BTreeSet<NodeId> {
    let learners = membership.learner_ids();
    learners.filter(|id| id.number() == node.number() && *id != node).collect()
}

/// Two sets of voters count at once.
pub(super) fn is_joint(membership: &RaftMembership) -> bool {
    membership.get_joint_config().len() > 1
}

/// The membership that this node goes by, and where it stands if it is committed as far as this node knows.
pub(super) fn membership(inner: &Inner) -> (RaftMembership, Option<LogId>) {
    let stored = inner.raft.server_metrics().borrow_watched().membership_config.clone();
    let committed = inner.raft.data_metrics().borrow_watched().local_committed;
    let at = (*stored.log_id()).filter(|at| committed.is_some_and(|committed| committed >= *at));
    (stored.membership().clone(), at.as_ref().map(from_raft))
}

/// What a node lacks of the leader's log; `None` while that is not known, as during the transfer of an image.
pub(super) fn lag(inner: &Inner, node: NodeId) -> Option<u64> {
    let matched = inner.raft.data_metrics().borrow_watched().replication.clone()?.get(&node).copied().flatten()?;
    let last = inner.log.last().map_or(0, |id| id.index.0);
    Some(last.saturating_sub(matched.index))
}

/// Answers a node that asks to be taken in, and starts the next step if there is one.
///
/// # Errors
/// In words, when this node is not the leader or is busy with another.
pub(super) fn admit(inner: &Arc<Inner>, joiner: NodeId, claim: Option<Claim>) -> Result<Told, String> {
    if !inner.leader.borrow().serving {
        return Err("this node does not lead".into());
    }
    let seen = inner.peers.known(joiner.number()).and_then(|peer| peer.seen());
    let Some(card) = seen.map(|seen| seen.card).filter(|card| card.node == joiner) else {
        return Err("its card is not here yet".into());
    };
    let (membership, committed) = membership(inner);
    if membership.get_node(&joiner).is_none()
        && let Some(claim) = claim
        && let Some(verdict) = expelled(inner, &card, claim, &membership, committed)
    {
        return verdict;
    }
    let is_founder = inner.config.bootstrap && inner.config.address_of(joiner.number()).is_some();
    let todo = next_move(joiner, &membership, is_founder, lag(inner, joiner));
    match todo {
        Move::Nothing => return Ok(Told::Wait("it votes".into())),
        Move::Wait(why) => return Ok(Told::Wait(why.into())),
        Move::AddLearner { .. } | Move::Promote { .. } => {}
    }
    let Ok(turn) = inner.admitting.try_lock() else {
        return Ok(Told::Wait("a change of membership is on".into()));
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
    Ok(Told::Wait("on its way".into()))
}

/// The answer to a node that is certain to have been a member of something and is none here; `None` if it may be taken in again.
fn expelled(
    inner: &Inner,
    card: &Card,
    claim: Claim,
    membership: &RaftMembership,
    committed: Option<LogId>,
) -> Option<Result<Told, String>> {
    match removed::kinship(inner, claim, &card.voters, membership) {
        Kinship::Other | Kinship::Unknown => {
            let reason = "it has a log of another group under the same cluster id, or one so old that nobody can tell";
            Some(Err(reason.into()))
        }
        Kinship::Same => match committed {
            Some(at) if removed::has_left(card.node, claim.at, at, membership) => {
                let numbers: BTreeSet<u16> = membership.voter_ids().map(|id| id.number()).collect();
                Some(Ok(Told::Removed(format!("since entry {at} the voters are {numbers:?}, says node {}", inner.me))))
            }
            // This leader may know less than the node, or its own knowledge may yet be taken back.
            Some(_) | None => Some(Err("the last change of membership is not settled yet".into())),
        },
    }
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

/// While this node leads, finishes what an earlier leader, or a caller that gave up, has left half done, until the node stops.
///
/// Between its two halves a change needs a majority of the old voters and one of the new ones for everything.
pub(super) async fn finish_halves(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let (membership, committed) = membership(&inner);
        if !is_joint(&membership) || committed.is_none() || !inner.leader.borrow().serving {
            continue;
        }
        let Ok(_turn) = inner.admitting.try_lock() else {
            continue;
        };
        tracing::info!("finishing a change of membership that was left half done");
        let longest = inner.config.election_timeout.1 * 20;
        let changes = ChangeMembers::AddVoterIds(BTreeSet::new());
        match tokio::time::timeout(longest, inner.raft.change_membership(changes, false)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%error, "change of membership failed"),
            Err(_) => tracing::warn!("change of membership takes long"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_joining_node_is_told_survives_the_wire() {
        for told in [Told::Wait("on its way".into()), Told::Removed("gone".into()), Told::Wait(String::new())] {
            assert_eq!(Told::decode(&told.clone().encode()), told);
        }
    }

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
    fn a_node_that_replaces_nobody_stays_a_learner_unless_it_founds_the_group() {
        let now = membership(&[id(1, 1)], &[id(4, 1)]);
        assert_eq!(
            next_move(id(4, 1), &now, false, Some(0)),
            Move::Wait("a learner: it gets a vote by `quorate cluster add`")
        );
        let voters = BTreeSet::from([id(1, 1), id(4, 1)]);
        assert_eq!(next_move(id(4, 1), &now, true, Some(0)), Move::Promote { voters });
    }
}
