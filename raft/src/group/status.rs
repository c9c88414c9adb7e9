//! The state of a node, as operators and tests see it.

use openraft::{ServerState, async_runtime::watch::WatchReceiver};

use super::{GroupStatus, Inner, LeaderView, MemberStatus, Role};
use crate::{
    binding::from_raft,
    types::{LogIndex, NodeId, Term},
};

/// What openraft has the node for. A leader that no majority answers any more stays one there until somebody tells it of a higher term, so
/// the view of who leads has a word too.
fn role(state: ServerState, view: LeaderView, me: NodeId) -> Role {
    match state {
        ServerState::Leader if view.leader == Some(me) => Role::Leader,
        ServerState::Leader => Role::Candidate,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
    }
}

fn damaged(inner: &Inner) -> Vec<String> {
    let segments: Vec<String> = inner.log.damaged().borrow().values().cloned().collect();
    let image = |border: &_| format!("{}: an image that cannot be read", inner.images.file(*border).display());
    let images: Vec<String> = inner.images.damaged().borrow().iter().map(image).collect();
    [segments, images].concat()
}

pub(super) fn status(inner: &Inner) -> GroupStatus {
    let server = inner.raft.server_metrics().borrow_watched().clone();
    let data = inner.raft.data_metrics().borrow_watched().clone();
    let applied = inner.applied.borrow().clone();
    let view = *inner.leader.borrow();
    let age = inner.config.election_timeout.1;

    let membership = server.membership_config.membership();
    let is_voter = |id: NodeId| membership.get_joint_config().iter().any(|config| config.contains(&id));
    let members = membership.nodes().map(|(id, node)| {
        let is_me = *id == inner.me;
        let seen = inner.peers.known(id.number()).and_then(|peer| peer.seen()).filter(|seen| seen.card.node == *id);
        let info = match is_me {
            true => Some(inner.config.info.clone()),
            false => seen.as_ref().map(|seen| seen.card.info.clone()),
        };
        let matched = data.replication.as_ref().and_then(|replication| replication.get(id).copied().flatten());
        MemberStatus {
            id: *id,
            peer_address: inner.config.address_of(id.number()).unwrap_or(&node.peer_address).to_owned(),
            info,
            voter: is_voter(*id),
            alive: is_me || seen.is_some_and(|seen| seen.at.elapsed() <= age),
            matched: matched.map(|id| LogIndex(id.index)),
        }
    });

    let committed = data.local_committed.as_ref().map(from_raft).max(applied.id);
    GroupStatus {
        id: inner.me,
        role: role(server.state, view, inner.me),
        term: Term(server.vote.leader_id.term),
        leader: view.leader,
        // While an image is being installed, what it stands for counts as committed before the log begins behind it.
        last: inner.log.last().max(committed),
        committed,
        applied: applied.id,
        end: inner.log.end(),
        synced: inner.log.synced(),
        floor: inner.log.floor().position,
        chain: applied.chain,
        syncs: inner.log.syncs(),
        entries: inner.log.entries(),
        damaged: damaged(inner),
        membership: server.membership_config.log_id().as_ref().map(|id| LogIndex(id.index)),
        members: members.collect(),
    }
}
