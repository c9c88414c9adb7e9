//! Operators change who is in the group: add a node, remove one, put one in the place of another.
//!
//! ```text
//! add      meet it ─▶ learner ─▶ catches up (image, then log) ─▶ voter
//! remove   not the leader itself (leadership goes first), not what keeps a quorum alive ─▶ gone
//! replace  as add, but its vote and the other's leave change in one go ─▶ gone
//! ```
//! A change is asked for again and again, each time of whoever leads; each question moves it one step and tells how far it is. What is
//! done is read from the membership alone, so a new leader goes on where the old one stopped, and a question whose answer was lost is
//! simply asked again. The voters change by joint consensus, one change at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use openraft::{
    ChangeMembers,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::time::{Instant, timeout};

use super::{
    Inner,
    members::{LAG_MAX, is_joint, lag, membership, stale_learners},
    transfer,
};
use crate::{
    binding::{Node, RaftMembership},
    peer::{
        codec::{Card, Kind, Stage},
        dial::DialError,
    },
    types::{LogIndex, NodeId},
};

/// Entries a voter may lack to count as one that carries a quorum.
const VOTER_LAG_MAX: u64 = 10 * LAG_MAX;

/// Without a question for so long, a change counts as given up, and another one may begin.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// Longest wait for a new node's answer, and for whoever else changes the membership just now.
const PATIENCE: Duration = Duration::from_secs(1);

/// A change of who is in the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// A new node becomes a voter.
    Add {
        /// Its configured number, which no node of the group has had at another address.
        number: u16,
        /// Where its peer listener is reached by the others, `host:port`.
        peer_address: String,
    },
    /// A node leaves, dead or alive.
    Remove {
        /// Its configured number.
        number: u16,
    },
    /// A new node becomes a voter in the place of another, which leaves.
    Replace {
        /// Configured number of the one that leaves.
        old: u16,
        /// Configured number of the new one.
        new: u16,
        /// Where the new one's peer listener is reached by the others, `host:port`.
        peer_address: String,
    },
}

/// How far a change is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeStep {
    /// It is done; says what is so now.
    Done(String),
    /// The new node receives what it lacks.
    CatchingUp {
        /// The new node.
        number: u16,
        /// Last entry that it is known to have; `None` until it has answered, and during the transfer of an image.
        matched: Option<LogIndex>,
        /// Last entry of the leader.
        last: LogIndex,
        /// Bytes of the leader's log behind `matched`, if they can be told.
        bytes: Option<u64>,
    },
    /// Something else must happen first, and does; says what.
    Waiting(String),
}

/// Why a change does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead; nothing was done.
    #[error("not the leader")]
    NotLeader {
        /// The leader this node knows.
        leader: Option<NodeId>,
    },
    /// Another change is under way; nothing was done.
    #[error("{0}")]
    Busy(String),
    /// It must not be, or the new node does not fit; says why and what would. Nothing was done.
    #[error("{0}")]
    Refused(String),
    /// The new node does not answer; nothing was done, and it may be asked again.
    #[error("{0}")]
    Unreachable(String),
    /// It was begun, and is not known to be committed: the same question goes on.
    #[error("{0}")]
    Unknown(String),
    /// The node has stopped or is stopping.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

/// The change that is under way, as far as this leader was asked.
#[derive(Default)]
pub(super) struct UnderWay(Mutex<Option<(MemberChange, Instant)>>);

impl UnderWay {
    /// Notes that a change is asked for.
    ///
    /// # Errors
    /// Another one is, and was asked for a moment ago.
    fn begin(&self, change: &MemberChange) -> Result<(), ChangeError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.as_ref().filter(|(_, at)| at.elapsed() < GIVEN_UP) {
            Some((other, _)) if other != change => {
                Err(ChangeError::Busy(format!("another change is under way: {}", describe(other))))
            }
            Some(_) | None => {
                *known = Some((change.clone(), Instant::now()));
                Ok(())
            }
        }
    }

    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn describe(change: &MemberChange) -> String {
    match change {
        MemberChange::Add { number, peer_address } => format!("node {number} at {peer_address} is being added"),
        MemberChange::Remove { number } => format!("node {number} is being removed"),
        MemberChange::Replace { old, new, peer_address } => {
            format!("node {old} is being replaced by node {new} at {peer_address}")
        }
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, ChangeError> {
    Err(ChangeError::Refused(reason.into()))
}

/// One step of a change; see [`Group::change_members`](super::Group::change_members).
pub(super) async fn step(inner: &Arc<Inner>, change: MemberChange) -> Result<ChangeStep, ChangeError> {
    if let Some(reason) = inner.stopped() {
        return Err(ChangeError::Stopped(reason));
    }
    let view = *inner.leader.borrow();
    if !view.serving {
        return Err(ChangeError::NotLeader { leader: view.leader.filter(|leader| *leader != inner.me) });
    }
    check(&change)?;
    inner.under_way.begin(&change)?;
    let result = take_turn(inner, &change).await;
    match &result {
        Ok(ChangeStep::CatchingUp { .. } | ChangeStep::Waiting(_)) | Err(ChangeError::Unknown(_)) => {}
        Ok(ChangeStep::Done(_)) | Err(_) => inner.under_way.end(),
    }
    result
}

fn check(change: &MemberChange) -> Result<(), ChangeError> {
    let (numbers, address) = match change {
        MemberChange::Add { number, peer_address } => (vec![*number], Some(peer_address)),
        MemberChange::Remove { number } => (vec![*number], None),
        MemberChange::Replace { old, new, peer_address } => (vec![*old, *new], Some(peer_address)),
    };
    if numbers.contains(&0) {
        return refuse("0 is not a node number; write 1 to 65535");
    }
    if let [old, new] = numbers[..]
        && old == new
    {
        return refuse(format!(
            "node {old} cannot take its own place: a new directory under the same number and address is taken in by itself; give a new \
             machine a number of its own"
        ));
    }
    match address.map(|address| (address, address.rsplit_once(':'))) {
        None => Ok(()),
        Some((address, Some((host, port)))) if !host.is_empty() && address.len() <= 255 => match port.parse::<u16>() {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => refuse(format!("{address:?} is not an address; write host:port")),
        },
        Some((address, _)) => refuse(format!("{address:?} is not an address; write host:port")),
    }
}

async fn take_turn(inner: &Arc<Inner>, change: &MemberChange) -> Result<ChangeStep, ChangeError> {
    let wait = |what: &str| Ok(ChangeStep::Waiting(what.to_owned()));
    let Ok(_turn) = timeout(PATIENCE, inner.admitting.lock()).await else {
        return wait("another change of membership is on");
    };
    let (mut now, committed) = membership(inner);
    if committed.is_none() {
        return wait("the last change of membership is not committed yet");
    }
    if is_joint(&now) {
        commit(inner, ChangeMembers::AddVoterIds(BTreeSet::new()), false).await?;
        now = membership(inner).0;
    }
    match change {
        MemberChange::Add { number, peer_address } => add(inner, &now, *number, peer_address, &BTreeSet::new()).await,
        MemberChange::Remove { number } => remove(inner, &now, *number).await,
        MemberChange::Replace { old, new, peer_address } => replace(inner, &now, *old, *new, peer_address).await,
    }
}

/// Members of this number: more than one while a new directory of a node takes the place of its old one.
fn of_number(membership: &RaftMembership, number: u16) -> BTreeSet<NodeId> {
    membership.nodes().map(|(id, _)| *id).filter(|id| id.number() == number).collect()
}

fn voters(membership: &RaftMembership) -> BTreeSet<NodeId> {
    membership.voter_ids().collect()
}

fn is_alive(inner: &Inner, id: NodeId) -> bool {
    id == inner.me
        || inner.peers.fresh(id.number(), inner.config.election_timeout.1).is_some_and(|card| card.node == id)
}

fn list(nodes: impl IntoIterator<Item = NodeId>) -> String {
    let numbers: BTreeSet<u16> = nodes.into_iter().map(NodeId::number).collect();
    numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

async fn add(
    inner: &Arc<Inner>,
    now: &RaftMembership,
    number: u16,
    address: &str,
    instead_of: &BTreeSet<NodeId>,
) -> Result<ChangeStep, ChangeError> {
    let voting = voters(now);
    let same = of_number(now, number);
    let configured = inner.config.address_of(number);
    if let Some(voter) = same.iter().find(|id| voting.contains(id)) {
        let known =
            configured.or_else(|| now.get_node(voter).map(|node| node.peer_address.as_str())).unwrap_or_default();
        if known != address {
            return refuse(format!(
                "node {number} is a voter already, at {known}; give a new machine a number of its own"
            ));
        }
        let is_new = inner.peers.fresh(number, inner.config.election_timeout.1).is_some_and(|card| card.node != *voter);
        return Ok(match is_new {
            true => ChangeStep::Waiting(format!("the new directory of node {number} takes the place of its old one")),
            false => ChangeStep::Done(format!("node {number} votes")),
        });
    }
    if let Some(known) = configured.filter(|known| *known != address) {
        return refuse(format!(
            "node.peers of node {} has node {number} at {known}, and what is configured leads; give a new machine a number of its own, or \
             change node.peers of all nodes",
            inner.me
        ));
    }
    if let Some((other, _)) = now.nodes().find(|(id, node)| id.number() != number && node.peer_address == address) {
        return refuse(format!("{address} is the address of node {other}"));
    }
    let learner = same.iter().copied().find(|id| is_alive(inner, *id));
    let Some(learner) = learner else {
        return take_in(inner, now, number, address).await;
    };
    // It may have joined by itself from elsewhere: what is written down is where the others will look for it.
    if now.get_node(&learner).is_some_and(|node| node.peer_address != address) {
        let card = meet(inner, number, address).await?;
        if card.node != learner {
            return refuse(format!("{address} is the address of another directory of node {number}"));
        }
    }
    if let Some(step) = catching_up(inner, learner) {
        return Ok(step);
    }
    let mut changes = address_changes(inner, now, Some((learner, address)));
    let wanted: BTreeSet<NodeId> = voting.difference(instead_of).copied().chain([learner]).collect();
    has_quorum(inner, &wanted, &format!("with node {number}")).await?;
    changes.push(ChangeMembers::ReplaceAllVoters(wanted));
    tracing::info!(node = ?learner, leaving = ?instead_of, "node becomes a voter");
    commit(inner, ChangeMembers::Batch(changes), false).await?;
    Ok(ChangeStep::Done(format!("node {number} votes")))
}

/// Meets a node that is no live member, and makes it a learner.
async fn take_in(
    inner: &Arc<Inner>,
    now: &RaftMembership,
    number: u16,
    address: &str,
) -> Result<ChangeStep, ChangeError> {
    let card = meet(inner, number, address).await?;
    fits(&card, now).map_err(ChangeError::Refused)?;
    let id = card.node;
    inner.peers.observe(card);
    if now.get_node(&id).is_none() {
        let mut changes = address_changes(inner, now, None);
        let stale = stale_learners(id, now);
        if !stale.is_empty() {
            changes.push(ChangeMembers::RemoveNodes(stale));
        }
        let node = Node { peer_address: address.to_owned() };
        changes.push(ChangeMembers::AddNodes(BTreeMap::from([(id, node)])));
        tracing::info!(node = ?id, %address, "node is added as a learner");
        commit(inner, ChangeMembers::Batch(changes), true).await?;
    }
    inner.peers.learn(number, address);
    Ok(progress(inner, id))
}

/// Asks whoever listens at an address who it is.
async fn meet(inner: &Inner, number: u16, address: &str) -> Result<Card, ChangeError> {
    inner.peers.meet(number, address, Instant::now() + PATIENCE).await.map_err(|error| match error {
        DialError::Io { address, source } => {
            ChangeError::Unreachable(format!("node {number} does not answer at {address}: {source}"))
        }
        refused @ DialError::Refused { .. } => ChangeError::Refused(refused.to_string()),
    })
}

/// Whether a node that answers can become a member.
fn fits(card: &Card, now: &RaftMembership) -> Result<(), String> {
    let number = card.node.number();
    if now.get_node(&card.node).is_some() {
        return Ok(());
    }
    match card.stage {
        Stage::Unborn => Ok(()),
        Stage::Bootstrap => {
            Err(format!("node {number} is told to start a group of its own: start it without --bootstrap"))
        }
        Stage::Member | Stage::Lost => {
            let is_kin = card.voters.iter().any(|voter| now.get_node(voter).is_some());
            let was_voter = card.voters.contains(&card.node);
            match (is_kin, was_voter || !card.voters.is_empty()) {
                (true, _) if was_voter => Err(format!(
                    "node {number} was a member and was removed: stop it, move its data directory aside, and start it again"
                )),
                (false, true) => Err(format!(
                    "node {number} has a log of another group, whose voters are nodes {}: stop it, move its data directory aside if nothing \
                     in it is needed, and start it with node.join = true and node.peers naming nodes of this group",
                    list(card.voters.iter().copied())
                )),
                // A learner whose joining was taken back, or that has received nothing yet.
                (true | false, _) => Ok(()),
            }
        }
    }
}

/// How far a learner is; `None` once it is near enough to vote.
fn catching_up(inner: &Inner, learner: NodeId) -> Option<ChangeStep> {
    (lag(inner, learner).is_none_or(|lag| lag > LAG_MAX)).then(|| progress(inner, learner))
}

fn progress(inner: &Inner, learner: NodeId) -> ChangeStep {
    let last = inner.log.last().map_or(LogIndex(0), |id| id.index);
    let matched = lag(inner, learner).map(|lag| LogIndex(last.0.saturating_sub(lag)));
    let behind = |matched: LogIndex| {
        let next = inner.log.position_of(LogIndex(matched.0 + 1)).ok().flatten()?;
        Some(inner.log.end().0.saturating_sub(next.0))
    };
    let bytes = matched.and_then(|matched| if matched >= last { Some(0) } else { behind(matched) });
    ChangeStep::CatchingUp { number: learner.number(), matched, last, bytes }
}

/// Where the membership is wrong about an address: this leader's own, which may have been a local one while it was alone, and that of a
/// learner which joined before the operator said where it is reached.
fn address_changes(
    inner: &Inner,
    now: &RaftMembership,
    learner: Option<(NodeId, &str)>,
) -> Vec<ChangeMembers<NodeId, Node>> {
    let own = inner.peers.my_card().peer_address;
    let right = [Some((inner.me, own.as_str())), learner];
    let wrong = right.into_iter().flatten().filter(|(id, address)| {
        !address.is_empty() && now.get_node(id).is_some_and(|node| node.peer_address != *address)
    });
    let wrong: BTreeMap<NodeId, Node> =
        wrong.map(|(id, address)| (id, Node { peer_address: address.to_owned() })).collect();
    if wrong.is_empty() { Vec::new() } else { vec![ChangeMembers::SetNodes(wrong)] }
}

async fn remove(inner: &Arc<Inner>, now: &RaftMembership, number: u16) -> Result<ChangeStep, ChangeError> {
    let leaving = of_number(now, number);
    if leaving.is_empty() {
        return Ok(ChangeStep::Done(format!("node {number} is not a member")));
    }
    let voting = voters(now);
    let rest: BTreeSet<NodeId> = voting.difference(&leaving).copied().collect();
    let done = ChangeStep::Done(format!("node {number} was removed"));
    let learners: BTreeSet<NodeId> = leaving.difference(&voting).copied().collect();
    if rest.len() == voting.len() {
        tracing::info!(nodes = ?learners, "learner is removed");
        commit(inner, ChangeMembers::RemoveNodes(learners), false).await?;
        return Ok(done);
    }
    if rest.is_empty() {
        return refuse(format!("node {number} is the only voter; add another first"));
    }
    has_quorum(inner, &rest, &format!("without node {number}")).await?;
    if leaving.contains(&inner.me) {
        return step_aside(inner, number).await;
    }
    tracing::info!(nodes = ?leaving, "node is removed");
    let vote = ChangeMembers::ReplaceAllVoters(rest);
    let changes = match learners.is_empty() {
        true => vote,
        false => ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(learners), vote]),
    };
    commit(inner, changes, false).await?;
    Ok(done)
}

/// Makes sure that these voters would be a quorum of themselves, by asking each of them now: a node that died a moment ago still has a fresh
/// card, and a change that counts on it could be finished by nobody. One that has to catch up a lot cannot carry a quorum either.
async fn has_quorum(inner: &Inner, wanted: &BTreeSet<NodeId>, what: &str) -> Result<(), ChangeError> {
    let answers = join_all(wanted.iter().map(|id| is_sound(inner, *id))).await;
    let (sound, others): (Vec<_>, Vec<_>) = wanted.iter().copied().zip(answers).partition(|(_, is_sound)| *is_sound);
    let majority = wanted.len() / 2 + 1;
    if sound.len() >= majority {
        return Ok(());
    }
    let numbers = |nodes: Vec<(NodeId, bool)>| list(nodes.into_iter().map(|(id, _)| id));
    refuse(format!(
        "{what} the voters are nodes {}, of which {majority} must live and have nearly all of the log, and only {} do: bring nodes {} back, \
         or remove them first",
        list(wanted.iter().copied()),
        if sound.is_empty() { "none".to_owned() } else { numbers(sound) },
        numbers(others)
    ))
}

async fn is_sound(inner: &Inner, id: NodeId) -> bool {
    if id == inner.me {
        return true;
    }
    let Some(peer) = inner.peers.known(id.number()) else {
        return false;
    };
    let (card, deadline) = (inner.peers.my_card().encode(), Instant::now() + PATIENCE);
    let answer = inner.peers.control(id, &peer.address(), Kind::Card, card, deadline).await;
    answer.is_ok() && lag(inner, id).is_some_and(|lag| lag <= VOTER_LAG_MAX)
}

/// Hands leadership over before this node leaves.
async fn step_aside(inner: &Arc<Inner>, number: u16) -> Result<ChangeStep, ChangeError> {
    match transfer::transfer(inner, None).await {
        Ok(to) => Ok(ChangeStep::Waiting(format!("node {number} leads; leadership goes to node {to} first"))),
        Err(transfer::TransferError::NotLeader { leader }) => Err(ChangeError::NotLeader { leader }),
        Err(transfer::TransferError::Stopped(reason)) => Err(ChangeError::Stopped(reason)),
        Err(error) => refuse(format!("node {number} leads and cannot hand leadership over: {error}")),
    }
}

async fn replace(
    inner: &Arc<Inner>,
    now: &RaftMembership,
    old: u16,
    new: u16,
    address: &str,
) -> Result<ChangeStep, ChangeError> {
    let voting = voters(now);
    let leaving = of_number(now, old);
    let has_new = of_number(now, new).iter().any(|id| voting.contains(id));
    if leaving.is_empty() {
        return match has_new {
            true => Ok(ChangeStep::Done(format!("node {new} votes, node {old} is not a member"))),
            false => refuse(format!("node {old} is not a member; quorate cluster add {new}@{address} adds node {new}")),
        };
    }
    if has_new {
        return remove(inner, now, old).await;
    }
    let learner = of_number(now, new).into_iter().find(|id| is_alive(inner, *id));
    let is_ready = learner.is_some_and(|id| catching_up(inner, id).is_none());
    if is_ready && leaving.contains(&inner.me) {
        return step_aside(inner, old).await;
    }
    let leaving_voters = leaving.intersection(&voting).copied().collect();
    match add(inner, now, new, address, &leaving_voters).await? {
        ChangeStep::Done(_) => {
            // A learner of the old number has no vote to lose.
            let rest = of_number(&membership(inner).0, old);
            if !rest.is_empty() {
                commit(inner, ChangeMembers::RemoveNodes(rest), false).await?;
            }
            Ok(ChangeStep::Done(format!("node {new} votes in the place of node {old}")))
        }
        step @ (ChangeStep::CatchingUp { .. } | ChangeStep::Waiting(_)) => Ok(step),
    }
}

/// Has a change committed, both halves of it.
async fn commit(
    inner: &Inner,
    changes: ChangeMembers<NodeId, Node>,
    keep_as_learners: bool,
) -> Result<(), ChangeError> {
    let longest = inner.config.election_timeout.1 * 20;
    let unknown = |why: String| Err(ChangeError::Unknown(format!("{why}; the same call goes on from there")));
    match timeout(longest, inner.raft.change_membership(changes, keep_as_learners)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
            Err(ChangeError::NotLeader { leader: forward.leader_id.filter(|leader| *leader != inner.me) })
        }
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))))) => {
            Err(ChangeError::Busy("another change is under way".into()))
        }
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => refuse(error.to_string()),
        Ok(Err(RaftError::APIError(other))) => unknown(other.to_string()),
        Ok(Err(RaftError::Fatal(fatal))) => {
            Err(ChangeError::Stopped(inner.stopped().unwrap_or_else(|| fatal.to_string())))
        }
        Err(_) => unknown("the change is not confirmed by a majority".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Term;

    fn card(node: NodeId, stage: Stage, voters: &[NodeId]) -> Card {
        Card {
            cluster: "c".into(),
            node,
            segment_bytes: 1,
            stage,
            peer_address: String::new(),
            info: String::new(),
            term: Term(1),
            leader: None,
            applied: None,
            last: None,
            voters: voters.to_vec(),
        }
    }

    #[test]
    fn a_new_node_must_be_empty_or_of_this_group() {
        let (one, two, new) = (NodeId::new(1, 1), NodeId::new(2, 1), NodeId::new(4, 9));
        let nodes: BTreeMap<NodeId, Node> = [one, two].map(|id| (id, Node::default())).into();
        let now = RaftMembership::new(vec![[one, two].into()], nodes).expect("every voter has a node");
        let fits = |stage, voters: &[NodeId]| fits(&card(new, stage, voters), &now);
        assert_eq!(fits(Stage::Unborn, &[]), Ok(()));
        assert_eq!(fits(Stage::Member, &[one, two]), Ok(()), "a learner that the next leader did not know");
        assert_eq!(fits(Stage::Member, &[]), Ok(()), "and one that got no entry");
        assert!(fits(Stage::Member, &[one, new]).is_err_and(|why| why.contains("was removed")));
        assert!(fits(Stage::Member, &[new]).is_err_and(|why| why.contains("another group, whose voters are nodes 4")));
        assert!(fits(Stage::Bootstrap, &[]).is_err_and(|why| why.contains("--bootstrap")));
    }

    #[test]
    fn numbers_and_addresses_are_checked_before_anything_is_done() {
        let add = |number, address: &str| check(&MemberChange::Add { number, peer_address: address.into() });
        assert_eq!(add(4, "10.0.0.4:9870"), Ok(()));
        assert_eq!(add(4, "[::1]:9870"), Ok(()));
        for (number, address) in [(0, "a:1"), (4, "a"), (4, ":1"), (4, "a:0"), (4, "a:x"), (4, "")] {
            assert!(matches!(add(number, address), Err(ChangeError::Refused(_))), "{number}@{address}");
        }
        let same = MemberChange::Replace { old: 3, new: 3, peer_address: "a:1".into() };
        assert!(check(&same).is_err_and(|error| error.to_string().contains("own place")));
    }
}
