//! Who leads, asked and changed by operators: leadership handed over, past changes told, and what nodes that leave say to each other.
//!
//! A transfer is sent to the leader, once. Whether it happened is seen in who leads afterwards, so the node that was asked waits for
//! that; a transfer that fails is undone by the log itself within an election timeout.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::{
    admin::{LeaderChange, NodeHistory, TransferLeadershipResponse},
    time::Timestamp,
    v2::Code,
};
use quorate_raft::{CallError, Cause, Group, MemberStatus, NodeId};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::wire::status::Fault;
use crate::replica::Replica;

/// First byte of the questions of this file between nodes.
pub(crate) const ASK_HISTORY: u8 = 110;
pub(crate) const ASK_TRANSFER: u8 = 111;
pub(crate) const ASK_LEAVING: u8 = 112;

// First byte of the answer to ASK_TRANSFER.
const ASKED: u8 = 1;
const NOT_ASKED: u8 = 0;

/// Longest wait for what another node says.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest wait for a new leader, beyond the election timeout after which a failed transfer is undone.
const AFTERMATH: Duration = Duration::from_secs(2);

/// How a cause is called, here and in the command line.
fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Crash => "crash",
        Cause::Timeout => "timeout",
        Cause::Transfer => "transfer",
        Cause::Start => "start",
        Cause::Unknown => "unknown",
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What this node has seen of past leaders.
pub(crate) fn own_history(group: &Group<Replica>, now: Timestamp) -> NodeHistory {
    let change = |change: quorate_raft::LeaderChange| {
        let ago = i64::try_from(change.at.elapsed().as_millis()).unwrap_or(i64::MAX);
        LeaderChange {
            at_ms: i64::try_from(now.0).unwrap_or(i64::MAX).saturating_sub(ago),
            term: change.term.0,
            leader: change.leader.number().into(),
            previous: change.previous.map_or(0, |node| node.number().into()),
            cause: cause_name(change.cause).into(),
            heartbeat_age_us: change.heartbeat_age.map(micros),
            election_us: change.election.map(micros),
            without_leader_us: change.without_leader.map(micros),
        }
    };
    NodeHistory {
        number: group.id().number().into(),
        reachable: true,
        error: String::new(),
        changes: group.history().into_iter().map(change).collect(),
    }
}

/// What every node has seen of past leaders, this one's story included, by number.
pub(crate) async fn histories(group: &Group<Replica>, now: Timestamp) -> Vec<NodeHistory> {
    let ask = |member: MemberStatus| async move {
        let answer = group.call(member.id, Bytes::from_static(&[ASK_HISTORY]), PATIENCE).await;
        let told = match answer {
            Ok(answer) => NodeHistory::decode(answer).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        told.unwrap_or_else(|error| NodeHistory {
            number: member.id.number().into(),
            reachable: false,
            error,
            changes: Vec::new(),
        })
    };
    let status = group.status();
    let others = status.members.into_iter().filter(|member| member.id != status.id);
    let mut nodes = futures_util::future::join_all(others.map(ask)).await;
    nodes.push(own_history(group, now));
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// Asks whoever leads to hand leadership to the node of this number (0: to the one that lacks the least), and waits for it.
pub(crate) async fn transfer(
    group: &Group<Replica>,
    number: u32,
    election_timeout: Duration,
) -> Result<TransferLeadershipResponse, Fault> {
    let began = Instant::now();
    let mut leadership = group.leader();
    // Held during an election, as every call is.
    let known = timeout_at(began + PATIENCE, leadership.wait_for(|view| view.leader.is_some())).await;
    let Some(from) = known.ok().and_then(Result::ok).and_then(|view| view.leader) else {
        return Err(Fault::no_leader());
    };
    let mut request = BytesMut::new();
    request.put_u8(ASK_TRANSFER);
    request.put_u32(number);
    let mut answer = match group.call(from, request.freeze(), PATIENCE + election_timeout).await {
        Ok(answer) => answer,
        Err(CallError::NotSent(_)) => return Err(Fault::no_leader()),
        Err(CallError::Unknown(reason)) => {
            let message = format!("node {from} was asked and did not answer ({reason}); look at who leads");
            return Err(Fault::new(Code::ProxyTimeout, message));
        }
    };
    let to = match answer.try_get_u8() {
        Ok(ASKED) => answer.try_get_u64().map(NodeId).ok(),
        Ok(_) | Err(_) => None,
    };
    let Some(to) = to else {
        let reason = String::from_utf8_lossy(&answer).into_owned();
        return Err(Fault::new(Code::PreconditionFailed, format!("leadership stays with node {from}: {reason}")));
    };
    let deadline = Instant::now() + election_timeout + AFTERMATH;
    // By then either the target leads, or somebody else in a later term.
    let term = leadership.borrow().term;
    let settled = leadership.wait_for(|view| view.leader == Some(to) || view.leader.is_some() && view.term > term);
    let now = match timeout_at(deadline, settled).await {
        Ok(Ok(view)) => Some(*view),
        Ok(Err(_)) | Err(_) => None,
    };
    match now.and_then(|view| Some((view.leader?, view.term))) {
        Some((leader, term)) if leader == to => Ok(TransferLeadershipResponse {
            outcome: None,
            from: from.number().into(),
            to: to.number().into(),
            term: term.0,
            took_us: micros(began.elapsed()),
        }),
        Some((leader, term)) => {
            let message = format!("node {to} did not take over in time; node {leader} leads in term {term}");
            Err(Fault::new(Code::PreconditionFailed, message))
        }
        None => Err(Fault::no_leader()),
    }
}

/// The leader's part of [`transfer`].
pub(crate) async fn answer_transfer(group: &Group<Replica>, mut request: Bytes) -> Bytes {
    let mut answer = BytesMut::new();
    match hand_to(group, request.try_get_u32().unwrap_or(0)).await {
        Ok(to) => {
            answer.put_u8(ASKED);
            answer.put_u64(to.0);
        }
        Err(reason) => {
            answer.put_u8(NOT_ASKED);
            answer.put_slice(reason.as_bytes());
        }
    }
    answer.freeze()
}

async fn hand_to(group: &Group<Replica>, number: u32) -> Result<NodeId, String> {
    let to = match number {
        0 => None,
        number => {
            let members = group.status().members.into_iter();
            let mut voters = members.filter(|member| member.voter && u32::from(member.id.number()) == number);
            Some(voters.next().ok_or_else(|| format!("node {number} is no voter of the group"))?.id)
        }
    };
    group.transfer(to).await.map_err(|error| error.to_string())
}

/// How often a node that waits to leave looks whether it may, and how long the others have to answer.
const LOOK: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_millis(500);

/// Waits until the group can go on without this node, if this node is what it lacks, and at most `max`. False: it still cannot.
pub(crate) async fn can_go_without_me(group: &Group<Replica>, max: Duration) -> bool {
    let deadline = Instant::now() + max;
    loop {
        let status = group.status();
        let voters: Vec<NodeId> = status.members.iter().filter(|member| member.voter).map(|member| member.id).collect();
        let others = voters.iter().copied().filter(|voter| *voter != status.id);
        let answers: Vec<bool> = futures_util::future::join_all(others.map(|other| leaves(group, other)))
            .await
            .into_iter()
            .flatten()
            .collect();
        match parting(voters.len(), &answers) {
            Parting::Go => return true,
            Parting::Wait if Instant::now() >= deadline => return false,
            Parting::Wait => tokio::time::sleep_until(deadline.min(Instant::now() + LOOK)).await,
        }
    }
}

/// Whether a node may leave now.
#[derive(Debug, PartialEq, Eq)]
enum Parting {
    Go,
    Wait,
}

/// `leaving`: of each other voter that answers, whether it is about to stop too.
fn parting(voters: usize, leaving: &[bool]) -> Parting {
    let majority = voters / 2 + 1;
    let staying = leaving.iter().filter(|leaves| !**leaves).count();
    // A group of one or two has no majority without this node whatever it waits for; one that has none even with it, or
    // that is being stopped as a whole, loses nothing.
    let is_lost_anyway = voters <= 2 || leaving.len() + 1 < majority || staying == 0;
    if staying >= majority || is_lost_anyway { Parting::Go } else { Parting::Wait }
}

/// Whether another node is about to stop; `None` if it does not answer.
async fn leaves(group: &Group<Replica>, other: NodeId) -> Option<bool> {
    let answer = group.call(other, Bytes::from_static(&[ASK_LEAVING]), ANSWER).await.ok()?;
    Some(answer.first() == Some(&1))
}

/// This node's answer to another that wants to leave.
pub(crate) fn answer_leaving(stopping: &CancellationToken) -> Bytes {
    if stopping.is_cancelled() { Bytes::from_static(&[1]) } else { Bytes::from_static(&[0]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_leaves_unless_it_is_what_keeps_a_majority_together() {
        assert_eq!(parting(3, &[false, false]), Parting::Go, "both others stay");
        assert_eq!(parting(3, &[false]), Parting::Wait, "one is down");
        assert_eq!(parting(3, &[true, false]), Parting::Wait, "one is about to go");
        assert_eq!(parting(3, &[true, true]), Parting::Go, "the group is being stopped");
        assert_eq!(parting(3, &[]), Parting::Go, "there is no majority anyway");
        assert_eq!(parting(2, &[false]), Parting::Go, "waiting changes nothing");
        assert_eq!(parting(1, &[]), Parting::Go);
        assert_eq!(parting(5, &[false, false]), Parting::Wait);
        assert_eq!(parting(5, &[false, false, false]), Parting::Go);
        assert_eq!(parting(5, &[false]), Parting::Go, "two of five are no majority");
    }
}
