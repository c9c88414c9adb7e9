//! LAW-BIRTH: a group is born once, and a node that lost its log is somebody else.
//!
//! An empty node looks at the cards of all configured members. If every one is reachable, of this cluster and empty too,
//! the one with the lowest number writes the first entry: a membership of identities, incarnations included. If any has a
//! log, the group exists, and an empty node asks its leader to be taken in: as a learner first, then in place of the
//! identity that had its number before. A node that is told to join never forms a group, whatever it finds, and one that is configured
//! alone looks for others first. One that others no longer count among their voters asks the leader, too, and ends if it was removed; so
//! does one that forms a second group beside the one its number belongs to. If so many were wiped that the old voters have no majority
//! left, nobody can say what was acknowledged; the node refuses with the runbook instead of voting.
//!
//! Cards a moment old are enough. A member that is wiped between its card and the first entry comes back as a new identity,
//! which is not in that membership; the others form a majority without it and take it in.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use super::{
    Inner,
    members::Told,
    removed::{self, Claim},
};
use crate::{
    binding::Node,
    disk::Disk,
    peer::codec::{Card, Kind, Stage},
    types::{LogId, NodeId},
};

/// Pause between two questions to be taken in.
const JOIN_PAUSE: Duration = Duration::from_millis(200);

/// Pause between two looks of a node that is in place.
const SETTLED_PAUSE: Duration = Duration::from_secs(1);

/// Looks in a row that must say so before a node refuses to go on.
const REFUSALS: u32 = 10;

/// Election timeouts in which an empty node that is configured alone looks whether others know of it: it may have lost its directory after
/// its group had grown.
const ALONE: u32 = 8;

/// Longest wait for an answer of the leader.
const PATIENCE: Duration = Duration::from_secs(1);

/// Brings an empty node into its group, and keeps asking while it has no vote.
pub(super) async fn be_born(inner: Arc<Inner>, disk: Arc<dyn Disk>) {
    let mut said = String::new();
    let mut refusals = 0;
    let mut claim = None;
    let alone_from = Instant::now() + inner.config.election_timeout.1 * ALONE;
    loop {
        claim = Claim::of(&inner, claim);
        let step = step(&inner, claim, alone_from).await;
        refusals = if matches!(step, Step::Refuse(_)) { refusals + 1 } else { 0 };
        let pause = match step {
            Step::Settled => SETTLED_PAUSE,
            // Cards of several nodes are not of one moment: only what stays true is acted on.
            Step::Refuse(_) if refusals < REFUSALS => JOIN_PAUSE,
            Step::Again(reason) => {
                if reason != said {
                    tracing::info!(%reason, "not in a group yet");
                    said = reason;
                }
                JOIN_PAUSE.min(inner.config.election_timeout.0)
            }
            Step::Refuse(reason) => {
                inner.fatal.set(reason);
                return;
            }
            Step::Removed(told) => {
                let reason = removed::mark(disk.as_ref(), &inner.config, &told);
                inner.is_removed.store(true, Ordering::Release);
                inner.fatal.set(reason);
                return;
            }
        };
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum Step {
    /// This node votes, or nobody wants it to.
    Settled,
    /// Nothing to do but wait; says for what.
    Again(String),
    /// It must not go on.
    Refuse(String),
    /// It has left the group, in the leader's words.
    Removed(String),
}

async fn step(inner: &Arc<Inner>, claim: Option<Claim>, alone_from: Instant) -> Step {
    let voters: Vec<NodeId> = {
        let server = inner.raft.server_metrics();
        let server = server.borrow_watched();
        server.membership_config.membership().voter_ids().collect()
    };
    let age = inner.config.election_timeout.1 * 4;
    if voters.contains(&inner.me) {
        let cards = all_cards(inner, age);
        if voters == [inner.me]
            && let Some(reason) = second_group(inner.me, inner.log.last(), &cards)
        {
            return Step::Refuse(reason);
        }
        // Somebody who has more of the log does not count this node among the voters: it may have been removed meanwhile.
        let last = inner.log.last();
        let is_left_out = |card: &Card| {
            card.stage == Stage::Member
                && card.last > last
                && !card.voters.is_empty()
                && !card.voters.contains(&inner.me)
        };
        return if cards.values().any(is_left_out) { join(inner, &cards, claim).await } else { Step::Settled };
    }
    let is_empty = inner.log.last().is_none();
    if is_empty && inner.config.bootstrap {
        return initialise(inner, BTreeMap::from([(inner.me, my_node(inner))])).await;
    }
    let all = all_cards(inner, age);
    if all.values().any(|card| card.stage == Stage::Member || card.stage == Stage::Lost) {
        return join(inner, &all, claim).await;
    }
    if !is_empty {
        return Step::Again("this node is a learner and waits for the leader".into());
    }
    if inner.config.join {
        return Step::Again("this node joins a group and forms none; no node of a group answers yet".into());
    }
    let mut cards = BTreeMap::new();
    let mut missing = Vec::new();
    for member in inner.config.members.iter().filter(|member| member.number != inner.me.number()) {
        match all.get(&member.number) {
            Some(card) => drop(cards.insert(member.number, card.clone())),
            None => missing.push(member.number),
        }
    }
    if let Some(number) = cards.values().find(|card| card.stage == Stage::Bootstrap).map(|card| card.node) {
        return Step::Again(format!("node {number} starts the group"));
    }
    if !missing.is_empty() {
        return Step::Again(format!("a new group is formed when all members are there; missing: {missing:?}"));
    }
    if !inner.config.members.iter().any(|member| member.number == inner.me.number()) {
        return Step::Again("this node is not among the configured members and waits for a group to join".into());
    }
    if cards.is_empty() && Instant::now() < alone_from {
        return Step::Again("it is configured alone and looks whether nodes of an older group call it".into());
    }
    if cards.keys().any(|number| *number < inner.me.number()) {
        return Step::Again("the member with the lowest number forms the group".into());
    }
    let mut members = BTreeMap::from([(inner.me, my_node(inner))]);
    for card in cards.values() {
        let address = inner.config.address_of(card.node.number()).unwrap_or(&card.peer_address);
        members.insert(card.node, Node { peer_address: address.to_owned() });
    }
    initialise(inner, members).await
}

/// Whether this node, alone in its group, was begun anew beside the group that its number belongs to: members with more of a log name the
/// directory that it had before.
fn second_group(me: NodeId, last: Option<LogId>, cards: &BTreeMap<u16, Card>) -> Option<String> {
    let names_the_old = |card: &&Card| {
        card.stage == Stage::Member
            && card.last > last
            && !card.voters.contains(&me)
            && card.voters.iter().any(|voter| voter.number() == me.number())
    };
    let numbers: Vec<u16> = cards.values().filter(names_the_old).map(|card| card.node.number()).collect();
    (!numbers.is_empty()).then(|| {
        format!(
            "this node's directory was lost and begun anew while nobody else could be seen, and is a second group now: nodes {numbers:?} are \
             the group of node {}. It stops, so that nobody sends to the wrong one. Move its data directory aside (it holds what was sent here \
             since), and start it with node.join = true and node.peers naming itself and them",
            me.number()
        )
    })
}

/// The cards of all nodes that were heard of within `age`, configured or not.
fn all_cards(inner: &Inner, age: Duration) -> BTreeMap<u16, Card> {
    let peers = inner.peers.all().into_iter();
    peers.filter_map(|peer| Some((peer.number, inner.peers.fresh(peer.number, age)?))).collect()
}

/// This node's entry in the membership.
fn my_node(inner: &Inner) -> Node {
    Node { peer_address: inner.peers.my_card().peer_address }
}

async fn initialise(inner: &Inner, members: BTreeMap<NodeId, Node>) -> Step {
    let numbers: Vec<u16> = members.keys().map(|id| id.number()).collect();
    match inner.raft.initialize(members).await {
        Ok(()) => {
            tracing::info!(members = ?numbers, "group is born");
            Step::Again("the first election is on".into())
        }
        Err(error) => Step::Again(format!("cannot form the group: {error}")),
    }
}

async fn join(inner: &Arc<Inner>, cards: &BTreeMap<u16, Card>, claim: Option<Claim>) -> Step {
    let known = inner.leader.borrow().leader;
    let leader = known.or_else(|| {
        let told = cards.values().filter(|card| card.leader.is_some()).max_by_key(|card| card.term);
        told.and_then(|card| card.leader)
    });
    // A leader without its majority still speaks as one, but knows better and says so on its own card.
    let disowns = |leader: &NodeId| cards.get(&leader.number()).is_some_and(|card| card.leader != Some(*leader));
    let Some(leader) = leader.filter(|leader| *leader != inner.me && !disowns(leader)) else {
        if let Some(reason) = too_many_wiped(inner.me, cards) {
            return Step::Refuse(reason);
        }
        return Step::Again("the group has no leader; this node joins when there is one".into());
    };
    let Some(address) = cards.get(&leader.number()).map(|card| card.peer_address.clone()) else {
        return Step::Again(format!("the leader, node {leader}, cannot be reached"));
    };
    let deadline = Instant::now() + PATIENCE;
    match inner.peers.control(leader, &address, Kind::Join, Claim::encode(claim), deadline).await {
        Ok(answer) => match Told::decode(&answer) {
            Told::Wait(how_far) => Step::Again(format!("joining: {how_far}")),
            Told::Removed(told) => Step::Removed(told),
        },
        Err(failure) => Step::Again(format!("the leader, node {leader}, does not take this node in: {failure}")),
    }
}

/// LAW-BIRTH's refusal: so many voters have lost their directories that the rest are no majority.
///
/// A voter is lost if its number is answered by another identity. One that is merely down is not.
fn too_many_wiped(me: NodeId, cards: &BTreeMap<u16, Card>) -> Option<String> {
    let members = cards.values().filter(|card| card.stage == Stage::Member || card.stage == Stage::Lost);
    // The membership of whoever knows the most.
    let voters = &members.max_by_key(|card| card.last)?.voters;
    let is_wiped = |voter: &&NodeId| match cards.get(&voter.number()) {
        Some(card) => card.node != **voter,
        None => voter.number() == me.number() && **voter != me,
    };
    let wiped: Vec<u16> = voters.iter().filter(is_wiped).map(|voter| voter.number()).collect();
    let quorum = voters.len() / 2 + 1;
    if voters.is_empty() || voters.len() - wiped.len() >= quorum {
        return None;
    }
    let left: Vec<u16> = voters.iter().map(|voter| voter.number()).filter(|number| !wiped.contains(number)).collect();
    Some(format!(
        "the data directories of nodes {wiped:?} are new, and the remaining nodes {left:?} are no majority of the group: what \
         was acknowledged cannot be known. Bring back the old directory of one of {wiped:?} if it still exists. If it does \
         not: stop all nodes, keep a copy of the directories of {left:?}, and start a new, empty group as docs/OPERATIONS.md, \
         \"More than one directory lost\", says"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogId, LogIndex, Term};

    fn card(node: NodeId, stage: Stage, voters: &[NodeId]) -> Card {
        let last = (stage == Stage::Member).then_some(LogId { term: Term(1), node, index: LogIndex(9) });
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
            last,
            voters: voters.to_vec(),
        }
    }

    #[test]
    fn two_wiped_of_three_are_refused_and_one_is_not() {
        let old = [NodeId::new(1, 1), NodeId::new(2, 1), NodeId::new(3, 1)];
        let survivor = card(old[0], Stage::Member, &old);
        let healthy = card(old[2], Stage::Member, &old);
        let wiped = card(NodeId::new(3, 7), Stage::Unborn, &[]);
        let me = NodeId::new(2, 7);
        let seen = |cards: &[&Card]| cards.iter().map(|card| (card.node.number(), (*card).clone())).collect();

        assert_eq!(too_many_wiped(me, &seen(&[&survivor, &healthy])), None, "one wiped");
        assert_eq!(too_many_wiped(me, &seen(&[&survivor])), None, "one wiped, one down");
        let newborn = card(old[0], Stage::Member, &[]);
        assert_eq!(too_many_wiped(me, &seen(&[&newborn, &wiped])), None, "a group being born");
        let refused = too_many_wiped(me, &seen(&[&survivor, &wiped])).expect("two wiped");
        assert!(refused.contains("[2, 3]") && refused.contains("OPERATIONS.md"), "{refused}");
    }
}
