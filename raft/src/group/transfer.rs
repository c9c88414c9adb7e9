//! Handing leadership over on purpose: a planned stop costs tens of milliseconds instead of an election.
//!
//! ```text
//! wait until the target has (nearly) all ─▶ openraft asks it to campaign; this leader takes no proposals from then on
//!     ├─ somebody leads ─▶ done
//!     └─ one election timeout later nobody does ─▶ taken back: this node is elected once more, in a new term
//! ```
//! openraft sends its request once, so it is repeated. It has no way to call a transfer off either: the mark that stops
//! proposals stays with the leadership it was set on, and a target that never campaigns would leave the group to an election
//! that the old leader, which never campaigns against itself, can even lose. So the old leadership ends first: this node grants
//! the next term to a candidate that does not exist, and then campaigns for the one after. Both are ordinary votes, on disk
//! before they count, and its log is as long as anybody's; whoever else was elected meanwhile wins by the same rules.

use std::{sync::Arc, time::Duration};

use openraft::{
    async_runtime::watch::WatchReceiver,
    raft::{TransferLeaderRequest, VoteRequest},
};
use tokio::time::Instant;

use super::Inner;
use crate::{
    binding::{RaftVote, raft_vote},
    log::VoteRecord,
    runtime,
    types::{LogIndex, NodeId, Term},
};

/// Pause before the request is sent again.
const PAUSE: Duration = Duration::from_millis(100);

/// Entries a target may lack when it is asked: they are on their way, and it waits for them.
const LAG_MAX: u64 = 256;

/// Why leadership is not handed over. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead.
    #[error("not the leader")]
    NotLeader {
        /// The leader this node knows.
        leader: Option<NodeId>,
    },
    /// There is no such voter, or none that lives.
    #[error("no live voter to hand leadership to")]
    Nobody,
    /// The target lacks too much of the log and did not catch up in time.
    #[error("node {to} lacks {lag} entries")]
    Behind {
        /// Who was to lead.
        to: NodeId,
        /// What it lacks.
        lag: u64,
    },
    /// The node has stopped or is stopping.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

pub(super) async fn transfer(inner: &Arc<Inner>, to: Option<NodeId>) -> Result<NodeId, TransferError> {
    if let Some(reason) = inner.stopped() {
        return Err(TransferError::Stopped(reason));
    }
    let leader = inner.leader.borrow().leader;
    if leader != Some(inner.me) {
        return Err(TransferError::NotLeader { leader });
    }
    if to == Some(inner.me) {
        return Ok(inner.me);
    }
    let to = to.or_else(|| most_caught_up(inner)).ok_or(TransferError::Nobody)?;
    if !voters(inner).contains(&to) || !is_alive(inner, to) {
        return Err(TransferError::Nobody);
    }
    let within = inner.config.election_timeout.1;
    catch_up(inner, to, Instant::now() + within).await?;
    let vote = inner.raft.server_metrics().borrow_watched().vote;
    if !vote.committed || vote.leader_id.node_id != inner.me {
        return Err(TransferError::NotLeader { leader: inner.leader.borrow().leader });
    }
    ask(inner, to).await?;
    let repeating = inner.clone();
    let seed = runtime::random();
    let task = inner.scope.spawn(seed, async move { see_through(&repeating, to, vote, Instant::now() + within).await });
    drop(task);
    Ok(to)
}

/// Waits until a target lacks so little that it can be asked.
async fn catch_up(inner: &Inner, to: NodeId, deadline: Instant) -> Result<(), TransferError> {
    let mut data = inner.raft.data_metrics();
    loop {
        let matched = {
            let data = data.borrow_and_update();
            data.replication.as_ref().and_then(|replication| replication.get(&to).copied().flatten())
        };
        let last = inner.log.last().map_or(LogIndex(0), |id| id.index);
        let lag = last.0.saturating_sub(matched.map_or(0, |id| id.index));
        if matched.is_some() && lag <= LAG_MAX {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, data.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(TransferError::Stopped("its Raft core has ended".into())),
            Err(_) => return Err(TransferError::Behind { to, lag }),
        }
    }
}

/// Asks again while nothing changes, and takes leadership back in the end.
async fn see_through(inner: &Inner, to: NodeId, vote: RaftVote, deadline: Instant) {
    let mut server = inner.raft.server_metrics();
    loop {
        let again = deadline.min(Instant::now() + PAUSE);
        let is_over = loop {
            if server.borrow_and_update().vote != vote {
                break true;
            }
            match tokio::time::timeout_at(again, server.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break true,
                Err(_) => break false,
            }
        };
        if is_over || inner.stop.is_cancelled() {
            return;
        }
        if Instant::now() >= deadline {
            tracing::warn!(%to, "leadership was not taken over in time, this node takes it back");
            take_back(inner, vote).await;
            return;
        }
        if ask(inner, to).await.is_err() {
            return;
        }
    }
}

async fn ask(inner: &Inner, to: NodeId) -> Result<(), TransferError> {
    tracing::info!(%to, "leadership transfer");
    inner.raft.trigger().transfer_leader(to).await.map_err(|fatal| TransferError::Stopped(fatal.to_string()))
}

/// Ends the leadership of `vote` and campaigns for the next one.
async fn take_back(inner: &Inner, vote: RaftVote) {
    let nobody = NodeId(0);
    let next = VoteRecord { term: Term(vote.leader_id.term + 1), node: nobody, committed: false };
    let next = raft_vote(next);
    let Ok(last) = inner.raft.with_raft_state(|state| state.log_ids.last().copied()).await else {
        return;
    };
    let mut request = VoteRequest::new(next, last);
    // This leader's own lease is in the way, which is exactly what is to end.
    request.leadership_transfer = true;
    match inner.raft.vote(request).await {
        Ok(response) if response.vote_granted => {}
        // Somebody was elected after all.
        Ok(_) | Err(_) => return,
    }
    // Without a last entry to wait for: openraft looks for it under the very vote, which covers none yet. What this node has of
    // the log goes to its disk before that vote does, by the one queue of the writer.
    let campaign = TransferLeaderRequest::new(next, inner.me, None);
    if let Ok(Err(error)) = inner.raft.handle_transfer_leader(campaign).await {
        tracing::info!(%error, "leadership was not taken back");
    }
}

fn voters(inner: &Inner) -> Vec<NodeId> {
    let server = inner.raft.server_metrics();
    let server = server.borrow_watched();
    server.membership_config.membership().voter_ids().collect()
}

fn is_alive(inner: &Inner, id: NodeId) -> bool {
    let seen = inner.peers.known(id.number()).and_then(|peer| peer.seen());
    seen.is_some_and(|seen| seen.card.node == id && seen.at.elapsed() <= inner.config.election_timeout.1)
}

/// The live voter that lacks the least.
fn most_caught_up(inner: &Inner) -> Option<NodeId> {
    let replication = inner.raft.data_metrics().borrow_watched().replication.clone()?;
    let others = voters(inner).into_iter().filter(|id| *id != inner.me && is_alive(inner, *id));
    others.max_by_key(|id| (replication.get(id).copied().flatten().map(|id| id.index), *id))
}
