//! A node that may have forgotten what it acked stays out of elections until it knows better.
//!
//! With async flush a power cut can take the last acknowledged entries of a node; after a failed sync nobody knows what is
//! on its disk. Such a node could help to elect a leader that lacks a committed entry, which nobody else would. So it
//! neither votes nor campaigns until a live leader, confirmed by a quorum, has said up to where a node must have come
//! (ReadIndex) and this node has applied that: by then it holds everything it ever acked, because that leader does.
//!
//! The leader may remember entries of this node that are gone. It finds the end of this log again then and sends what is missing
//! (`allow_log_reversion`), whatever took it: this node acknowledges entries from the start on. An acknowledgement counts only for
//! the leader that this node's own vote belongs to, votes are always synced, and that leader already holds whatever this node had
//! acked before.
//!
//! If so many voters are in this state that no leader can come, all voters' tails are compared, once all can be asked: the
//! longest may campaign, the others may vote for it, and the possible loss is reported.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::Inner;
use crate::{
    log::CatchUp,
    peer::codec::{Card, Kind, Stage},
    store::completion,
    types::{LogIndex, NodeId, Term},
};

const OPEN: u8 = 0;
const VOTES: u8 = 1;
const CLOSED: u8 = 2;

/// A leader in its term.
pub(super) type Reign = (Term, NodeId);

/// Whether this node takes part in elections.
pub(super) struct Gate(AtomicU8);

impl Gate {
    pub(super) fn new(is_closed: bool) -> Self {
        Self(AtomicU8::new(if is_closed { CLOSED } else { OPEN }))
    }

    /// It may campaign.
    pub(super) fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire) == OPEN
    }

    /// It may vote for another.
    pub(super) fn may_vote(&self) -> bool {
        self.0.load(Ordering::Acquire) != CLOSED
    }

    /// It says of itself that it may lack what it acked.
    pub(super) fn is_lost(&self) -> bool {
        !self.is_open()
    }
}

/// Longest wait for one question to the leader.
const PATIENCE: Duration = Duration::from_millis(500);

/// Runs at the start of a node that must catch up; ends when it has.
pub(super) async fn catch_up(inner: Arc<Inner>, why: CatchUp) {
    tracing::warn!(reason = ?why.reason, acked = ?why.acked, "this node must catch up before it votes");
    let pause = inner.config.election_timeout.1;
    loop {
        let leader = inner.leader.borrow().leader;
        let is_done = match leader {
            Some(leader) if leader == inner.me => true,
            Some(leader) => caught_up_with(&inner, leader).await,
            None => {
                compare_tails(&inner);
                false
            }
        };
        if is_done {
            open(&inner).await;
            return;
        }
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn open(inner: &Inner) {
    let (done, durable) = completion();
    inner.log.caught_up(done);
    if durable.await.is_err() {
        return;
    }
    inner.gate.0.store(OPEN, Ordering::Release);
    inner.raft.runtime_config().elect(true);
    tracing::info!("caught up: this node votes again");
}

/// Whether this node has applied what the leader says makes it up to date.
async fn caught_up_with(inner: &Inner, leader: NodeId) -> bool {
    let Some(answer) = ask(inner, leader, Kind::ReadIndex).await else {
        return false;
    };
    let Ok(index) = <[u8; 8]>::try_from(&answer[..]) else {
        return false;
    };
    let index = LogIndex(u64::from_le_bytes(index));
    let mut applied = inner.applied.clone();
    let reached = applied.wait_for(|now| now.id.is_some_and(|id| id.index >= index));
    matches!(tokio::time::timeout(Duration::from_secs(5), reached).await, Ok(Ok(_)))
}

async fn ask(inner: &Inner, leader: NodeId, kind: Kind) -> Option<Bytes> {
    let address = inner.peers.known(leader.number())?.address();
    inner.peers.control(leader, &address, kind, Bytes::new(), Instant::now() + PATIENCE).await.ok()
}

/// When too few healthy voters are left for any leader: the longest tail of all may lead.
///
/// Who votes is told by whoever has the most of the log: this node's own membership may be of a time before somebody left, whom a
/// majority must not be counted with.
fn compare_tails(inner: &Inner) {
    let age = inner.config.election_timeout.1 * 2;
    let mine = inner.peers.my_card();
    let others = inner.peers.all().into_iter().filter_map(|peer| inner.peers.fresh(peer.number, age));
    let others: Vec<Card> = others.filter(|card| card.voters.iter().any(|id| mine.voters.contains(id))).collect();
    let newest = others.iter().chain([&mine]).max_by_key(|card| card.last).map(|card| card.voters.clone());
    let voters = newest.unwrap_or_default();
    if !voters.contains(&inner.me) {
        return;
    }
    let mut cards = vec![mine];
    for voter in voters.iter().filter(|voter| **voter != inner.me) {
        match others.iter().find(|card| card.node == *voter) {
            Some(card) => cards.push(card.clone()),
            None => return,
        }
    }
    let healthy = cards.iter().filter(|card| card.stage == Stage::Member).count();
    if healthy > voters.len() / 2 {
        return;
    }
    let longest = cards.iter().max_by_key(|card: &&Card| (card.last, card.node)).map(|card| card.node);
    if longest == Some(inner.me) {
        tracing::warn!(
            last = ?inner.log.last(),
            healthy,
            "no majority is sure of its log: this node's is the longest and may lead; what was acknowledged within the last \
             flush interval before the power cut may be lost"
        );
        inner.raft.runtime_config().elect(true);
    }
    inner.gate.0.store(VOTES, Ordering::Release);
}
