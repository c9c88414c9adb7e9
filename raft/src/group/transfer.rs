//! Handing leadership over on purpose: a planned stop costs tens of milliseconds instead of an election.
//!
//! openraft sends the request once and refuses proposals from then on; a lost request would leave the group to a full
//! election. So the request is repeated a few times while nothing changes.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;

use super::{Inner, ProposeError};
use crate::{runtime, types::NodeId};

/// Times the request is sent, and the pause between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn transfer(inner: &Arc<Inner>, to: Option<NodeId>) -> Result<(), ProposeError> {
    if let Some(reason) = inner.stopped() {
        return Err(ProposeError::Stopped(reason));
    }
    let leader = inner.leader.borrow().leader;
    if leader != Some(inner.me) {
        return Err(ProposeError::NotLeader { leader });
    }
    if to == Some(inner.me) {
        return Ok(());
    }
    let Some(to) = to.or_else(|| most_caught_up(inner)) else {
        return Err(ProposeError::NotLeader { leader });
    };
    if !voters(inner).contains(&to) {
        return Err(ProposeError::NotLeader { leader });
    }
    ask(inner, to).await?;
    let repeating = inner.clone();
    let mut view = inner.leader.clone();
    let seed = runtime::random();
    let task = inner.scope.spawn(seed, async move {
        let inner = repeating;
        for _ in 1..TRIES {
            let gone = view.wait_for(|view| view.leader != Some(inner.me));
            let is_done = tokio::time::timeout(PAUSE, gone).await.is_ok();
            if is_done || ask(&inner, to).await.is_err() {
                return;
            }
        }
    });
    drop(task);
    Ok(())
}

async fn ask(inner: &Inner, to: NodeId) -> Result<(), ProposeError> {
    tracing::info!(%to, "leadership transfer");
    inner.raft.trigger().transfer_leader(to).await.map_err(|fatal| ProposeError::Stopped(fatal.to_string()))
}

fn voters(inner: &Inner) -> Vec<NodeId> {
    let server = inner.raft.server_metrics();
    let server = server.borrow_watched();
    server.membership_config.membership().voter_ids().collect()
}

/// The voter that lacks the least; among equals one that was heard most recently.
fn most_caught_up(inner: &Inner) -> Option<NodeId> {
    let replication = inner.raft.data_metrics().borrow_watched().replication.clone()?;
    let others = voters(inner).into_iter().filter(|id| *id != inner.me);
    others.max_by_key(|id| {
        let matched = replication.get(id).copied().flatten().map(|id| id.index);
        let seen = inner.peers.known(id.number()).and_then(|peer| peer.seen());
        let is_alive =
            seen.is_some_and(|seen| seen.card.node == *id && seen.at.elapsed() <= inner.config.election_timeout.1);
        (is_alive, matched, *id)
    })
}
