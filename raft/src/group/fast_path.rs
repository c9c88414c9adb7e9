//! The fast path: a leader whose process is gone is replaced at once, not after a timeout.
//!
//! ```text
//! a connection from the leader ends ─▶ its port refuses several connects in a row, it says nothing meanwhile
//!    ─▶ every other voter that answers has seen the same, and they and this node are a majority
//!    ─▶ the one with the longest log (then the lowest number) campaigns; an equal one waits a little, a shorter one for ever
//! ```
//! This is an ordinary election, only early: new term, vote on disk, log compared by every voter. It differs in that voters
//! grant although their lease has not run out, as in a planned transfer of leadership; so reads must never trust a lease.
//! A wrong suspicion costs one change of leadership and nothing else. It is made unlikely, and rare: a leader that any voter
//! still sees stays, and a node takes part in one fast election per term and then rests.
//!
//! What counts is a refused connect, the answer of a live host without the process. Silence and unreachable hosts are left to
//! the timeouts: a hung process and a cut network look like that too.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use openraft::{async_runtime::watch::WatchReceiver, raft::TransferLeaderRequest};
use tokio::time::Instant;

use super::{Inner, gate::Reign};
use crate::{
    binding::{RaftLogId, RaftMembership, RaftVote, from_raft, put_optional_log_id, take_optional_log_id, to_raft},
    config::FastPath,
    peer::{
        Peer,
        codec::{Kind, decode_vote, encode_vote},
    },
    runtime,
    types::{NodeId, Term},
};

/// Rounds of probes before a leader that neither refuses for good nor is there is left to the timeouts. A dying process
/// closes its connections one after another, and its port may be the last.
const ROUNDS: u32 = 4;

/// Longest wait for one connect. On a live host a refusal takes microseconds.
const KNOCK: Duration = Duration::from_millis(50);

/// Longest wait for what another voter sees: it probes by itself.
const CONFIRM: Duration = Duration::from_millis(300);

/// How long a node with an equal log and a higher number waits for the other to campaign, in thousandths of a heartbeat.
const COURTESY: std::ops::Range<u64> = 1000..2000;

/// Which reign this node takes or took part in ending by a fast election.
#[derive(Default)]
pub(super) struct Turn {
    state: Mutex<Option<TurnState>>,
}

#[derive(Clone, Copy)]
struct TurnState {
    reign: Reign,
    until: Instant,
    has_campaigned: bool,
}

impl Turn {
    /// Takes part in the fast election after this reign; false while this node rests from another one.
    fn enter(&self, reign: Reign, rest: Duration) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match *state {
            Some(turn) if turn.reign == reign => true,
            Some(turn) if now < turn.until => false,
            Some(_) | None => {
                *state = Some(TurnState { reign, until: now + rest, has_campaigned: false });
                true
            }
        }
    }

    /// Whether this node may campaign after this reign: once.
    fn campaign(&self, reign: Reign) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.as_mut().filter(|turn| turn.reign == reign && !turn.has_campaigned) {
            Some(turn) => {
                turn.has_campaigned = true;
                true
            }
            None => false,
        }
    }

    /// Whether this node has campaigned after this reign.
    fn is_over(&self, reign: Reign) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_some_and(|turn| turn.reign == reign && turn.has_campaigned)
    }

    /// Whether the leader of this term was seen to be gone.
    pub(super) fn has_seen_end_of(&self, term: Term) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_some_and(|turn| turn.reign.0 == term)
    }
}

fn reign_of(vote: &RaftVote) -> Reign {
    (Term(vote.leader_id.term), vote.leader_id.node_id)
}

/// Watches the connections that end, until the node stops.
pub(super) async fn watch(inner: Arc<Inner>) {
    let Some(settings) = inner.config.fast_path else {
        return;
    };
    let mut ended = inner.peers.ended();
    loop {
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            changed = ended.changed() => if changed.is_err() {
                return;
            },
        }
        pursue(&inner, settings).await;
    }
}

/// Campaigns if the leader is gone, and this node is the one to do it.
async fn pursue(inner: &Inner, settings: FastPath) {
    let Some((vote, others)) = suspect(inner).await else {
        return;
    };
    let reign = reign_of(&vote);
    if inner.turn.is_over(reign) {
        return;
    }
    let Some(last) = looks_gone(inner, settings, &vote).await else {
        return;
    };
    if !inner.turn.enter(reign, settings.rest) {
        tracing::info!(leader = %reign.1, term = reign.0.0, "leader is gone; this node rests, the election waits for its timeout");
        return;
    }
    let asked = join_all(others.iter().map(|other| ask(inner, *other, &vote))).await;
    let mut seen = Vec::new();
    for (other, opinion) in others.iter().zip(asked) {
        match opinion {
            Some(Opinion::Gone(last)) => seen.push((*other, last)),
            Some(Opinion::Stays) => {
                tracing::info!(leader = %reign.1, by = %other, "another node does not see the leader gone");
                return;
            }
            None => {}
        }
    }
    let mut agreed: Vec<NodeId> = seen.iter().map(|(other, _)| *other).collect();
    agreed.push(inner.me);
    if !is_majority(&membership(inner), &agreed) || seen.iter().any(|(_, other)| *other > last) {
        // Nobody to elect it, or somebody who must be elected instead and has been told by the question.
        return;
    }
    if seen.iter().any(|(other, theirs)| *theirs == last && other.number() < inner.me.number()) {
        let thousandths = COURTESY.start + runtime::random() % (COURTESY.end - COURTESY.start);
        tokio::time::sleep(inner.config.heartbeat * thousandths as u32 / 1000).await;
    }
    campaign(inner, vote, last).await;
}

async fn campaign(inner: &Inner, vote: RaftVote, last: Option<RaftLogId>) {
    let reign = reign_of(&vote);
    let is_unchanged = own_state(inner).await.is_some_and(|(now, _)| now == vote);
    if !is_unchanged || !inner.gate.is_open() || inner.is_damaged() || !inner.turn.campaign(reign) {
        return;
    }
    tracing::info!(leader = %reign.1, term = reign.0.0, "the leader's process is gone, campaigning at once");
    // Waits until what this node has of the log is on its disk; openraft campaigns if the vote is still the same then.
    let request = TransferLeaderRequest::new(vote, inner.me, last);
    if let Ok(Err(error)) = inner.raft.handle_transfer_leader(request).await {
        tracing::info!(%error, "early election not started");
    }
}

/// The vote of the leader whose end might be near, and the voters beside it and this node.
async fn suspect(inner: &Inner) -> Option<(RaftVote, Vec<NodeId>)> {
    let vote = inner.raft.server_metrics().borrow_watched().vote;
    let leader = vote.leader_id.node_id;
    if !vote.committed || leader == inner.me || !inner.gate.is_open() || inner.peers.is_connected_from(leader) {
        return None;
    }
    let voters: Vec<NodeId> = membership(inner).voter_ids().collect();
    if !voters.contains(&inner.me) {
        return None;
    }
    Some((vote, voters.into_iter().filter(|voter| *voter != inner.me && *voter != leader).collect()))
}

fn membership(inner: &Inner) -> RaftMembership {
    inner.raft.server_metrics().borrow_watched().membership_config.membership().clone()
}

/// Whether these nodes could elect a leader.
fn is_majority(membership: &RaftMembership, nodes: &[NodeId]) -> bool {
    let is_majority_of = |config: &std::collections::BTreeSet<NodeId>| {
        nodes.iter().filter(|node| config.contains(node)).count() > config.len() / 2
    };
    membership.get_joint_config().iter().all(is_majority_of)
}

/// Vote and last entry of this node, after everything that was on its way to them.
async fn own_state(inner: &Inner) -> Option<(RaftVote, Option<RaftLogId>)> {
    inner.raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied())).await.ok()
}

/// What a connect to the leader's port says.
enum Knock {
    /// The host answers that nobody listens.
    Refused,
    Accepted,
    /// Nothing, or an answer that says nothing about the process.
    Unclear,
}

async fn knock(inner: &Inner, peer: &Peer) -> Knock {
    match inner.peers.knock(peer, KNOCK).await {
        Ok(()) => Knock::Accepted,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Knock::Refused,
        Err(_) => Knock::Unclear,
    }
}

/// Whether the process of this vote's leader looks gone from here; then this node's last entry, which only another leader can
/// change.
async fn looks_gone(inner: &Inner, settings: FastPath, vote: &RaftVote) -> Option<Option<RaftLogId>> {
    let (term, leader) = reign_of(vote);
    let peer = inner.peers.known(leader.number())?;
    if own_state(inner).await?.0 != *vote {
        return None;
    }
    let mut refused = 0;
    let mut spoke_at = inner.peers.led_at(term, leader);
    for attempt in 0..settings.probes * ROUNDS {
        if attempt > 0 {
            tokio::time::sleep(settings.pause).await;
        }
        match knock(inner, &peer).await {
            Knock::Refused => refused += 1,
            Knock::Accepted => refused = 0,
            Knock::Unclear => return None,
        }
        let spoke_now = inner.peers.led_at(term, leader);
        if spoke_now != spoke_at || inner.peers.is_connected_from(leader) {
            (refused, spoke_at) = (0, spoke_now);
        }
        if refused >= settings.probes {
            let (now, last) = own_state(inner).await?;
            return (now == *vote).then_some(last);
        }
    }
    None
}

/// What another voter says about a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opinion {
    /// It sees it, knows a newer one, or does not take part.
    Stays,
    /// It is gone, and this is the voter's last entry.
    Gone(Option<RaftLogId>),
}

impl Opinion {
    fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Stays => out.put_u8(0),
            Self::Gone(last) => {
                out.put_u8(1);
                put_optional_log_id(&mut out, last.as_ref().map(from_raft));
            }
        }
        out.freeze()
    }

    /// What cannot be read says that the leader stays.
    fn decode(mut from: Bytes) -> Self {
        match from.try_get_u8() {
            Ok(1) => take_optional_log_id(&mut from).map_or(Self::Stays, |last| Self::Gone(last.map(to_raft))),
            Ok(_) | Err(_) => Self::Stays,
        }
    }
}

async fn ask(inner: &Inner, other: NodeId, vote: &RaftVote) -> Option<Opinion> {
    let address = inner.peers.known(other.number())?.address();
    let deadline = Instant::now() + CONFIRM;
    let answer = inner.peers.control(other, &address, Kind::Suspect, encode_vote(vote), deadline).await;
    answer.ok().map(Opinion::decode)
}

/// Answers another voter that sees the leader of a vote gone.
///
/// # Errors
/// The question cannot be read.
pub(super) async fn answer(inner: &Inner, mut question: Bytes) -> Result<Bytes, String> {
    let vote = decode_vote(&mut question).map_err(|malformed| malformed.to_string())?;
    Ok(opinion(inner, vote).await.encode())
}

async fn opinion(inner: &Inner, vote: RaftVote) -> Opinion {
    let reign = reign_of(&vote);
    let Some(settings) = inner.config.fast_path else {
        return Opinion::Stays;
    };
    if !vote.committed || reign.1 == inner.me || !inner.gate.may_vote() {
        return Opinion::Stays;
    }
    match looks_gone(inner, settings, &vote).await {
        Some(last) if inner.turn.enter(reign, settings.rest) => {
            // It may be this node that must campaign.
            inner.peers.look_again();
            Opinion::Gone(last)
        }
        Some(_) | None => Opinion::Stays,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{binding::Node, types::LogId, types::LogIndex};

    fn id(number: u16) -> NodeId {
        NodeId::new(number, 7)
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_campaigns_once_per_reign_and_then_rests() {
        let rest = Duration::from_secs(5);
        let (first, second) = ((Term(3), id(1)), (Term(4), id(2)));
        let turn = Turn::default();
        assert!(!turn.campaign(first), "it takes part first");
        assert!(turn.enter(first, rest) && turn.enter(first, rest));
        assert!(turn.campaign(first) && !turn.campaign(first), "once");
        assert!(turn.is_over(first) && turn.has_seen_end_of(Term(3)) && !turn.has_seen_end_of(Term(4)));
        assert!(!turn.enter(second, rest), "it rests");
        tokio::time::advance(rest).await;
        assert!(turn.enter(second, rest) && turn.campaign(second));
        assert!(!turn.enter(first, rest), "and rests again, whatever the reign");
    }

    #[test]
    fn opinions_survive_the_wire_and_garbage_means_that_the_leader_stays() {
        let last = to_raft(LogId { term: Term(2), node: id(1), index: LogIndex(9) });
        for opinion in [Opinion::Stays, Opinion::Gone(None), Opinion::Gone(Some(last))] {
            assert_eq!(Opinion::decode(opinion.encode()), opinion);
        }
        assert_eq!(Opinion::decode(Bytes::new()), Opinion::Stays);
        assert_eq!(Opinion::decode(Bytes::from_static(&[1])), Opinion::Stays);
        assert_eq!(Opinion::decode(Bytes::from_static(&[9, 9])), Opinion::Stays);
    }

    #[test]
    fn a_majority_is_one_of_every_set_of_voters() {
        let nodes: BTreeMap<NodeId, Node> = (1..=5).map(|number| (id(number), Node::default())).collect();
        let old: BTreeSet<NodeId> = (1..=3).map(id).collect();
        let new: BTreeSet<NodeId> = (1..=5).map(id).collect();
        let membership = RaftMembership::new(vec![old, new], nodes).unwrap();
        assert!(!is_majority(&membership, &[id(2), id(3)]), "two of five");
        assert!(!is_majority(&membership, &[id(3), id(4), id(5)]), "one of three");
        assert!(is_majority(&membership, &[id(2), id(3), id(5)]));
    }
}
