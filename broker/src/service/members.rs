//! Who is in the group, asked and changed by operators: one picture of all nodes, and changes of the membership.
//!
//! A node knows the members by its own log, which may be far behind: a learner that has just begun, a voter that was away. So the picture
//! is the leader's; without a leader it is that of the node with the newest membership. A change is taken one step further by whoever
//! leads, and any node passes the question on.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use prost::Message;
use quorate_proto::{
    admin::{ChangeMembersRequest, ChangeMembersResponse, ChangeState, ClusterStatusResponse, NodeStatus, Outcome},
    v2::Code,
};
use quorate_raft::{CallError, ChangeError, ChangeStep, Group, MemberChange, NodeId};
use tokio::time::{Instant, timeout_at};

use super::wire::status::Fault;
use crate::{registrar::Addresses, replica::Replica};

/// First byte of the questions of this file between nodes.
pub(crate) const ASK_STATUS: u8 = 101;
pub(crate) const ASK_PICTURE: u8 = 113;
pub(crate) const ASK_CHANGE: u8 = 114;

/// Longest wait for a node's report.
const REPORT: Duration = Duration::from_secs(1);
/// And for another node's picture, which may hold nodes that do not answer.
const PICTURE: Duration = Duration::from_secs(2);
/// Longest wait for one step of a change; one that takes longer goes on by itself.
const STEP: Duration = Duration::from_secs(3);
/// Longest wait for a leader to be known.
const PATIENCE: Duration = Duration::from_secs(1);

/// The state of all nodes.
pub(crate) struct Picture {
    /// By number; of a node with two identities the one that answers.
    pub nodes: Vec<NodeStatus>,
    /// How many vote.
    pub voters: u32,
    /// Where the membership stands that says so.
    pub membership_index: u64,
}

impl Picture {
    /// The picture that this node has by its own membership. `own` is what it reports about itself.
    pub async fn own(group: &Group<Replica>, own: NodeStatus) -> Self {
        let status = group.status();
        let ask = |member: quorate_raft::MemberStatus| async move {
            let answer = group.call(member.id, Bytes::from_static(&[ASK_STATUS]), REPORT).await;
            let report = match answer {
                Ok(answer) => NodeStatus::decode(answer).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let report = report.unwrap_or_else(|error| NodeStatus {
                number: member.id.number().into(),
                client_address: member.info.map(|info| Addresses::parse(&info).own).unwrap_or_default(),
                peer_address: member.peer_address,
                error,
                ..NodeStatus::default()
            });
            NodeStatus { voter: member.voter, ..report }
        };
        let votes = status.members.iter().any(|member| member.id == status.id && member.voter);
        let voters = status.members.iter().filter(|member| member.voter).count();
        let others = status.members.into_iter().filter(|member| member.id != status.id);
        let mut nodes = join_all(others.map(ask)).await;
        nodes.push(NodeStatus { voter: votes, ..own });
        Self {
            nodes: once_each(nodes),
            voters: u32::try_from(voters).unwrap_or(u32::MAX),
            membership_index: status.membership.map_or(0, |index| index.0),
        }
    }

    /// The picture to show: the leader's, else that of the newest membership.
    pub async fn best(group: &Group<Replica>, own: NodeStatus) -> Self {
        let status = group.status();
        if let Some(leader) = status.leader.filter(|leader| *leader != status.id)
            && let Some(picture) = Self::of(group, leader).await
        {
            return picture.with(own);
        }
        let picture = Self::own(group, own.clone()).await;
        let Some(newer) = newer(&picture) else { return picture };
        let id = status.members.iter().find(|member| u32::from(member.id.number()) == newer).map(|member| member.id);
        let theirs = match id {
            Some(id) => Self::of(group, id).await,
            None => None,
        };
        theirs.map_or(picture, |theirs| theirs.with(own))
    }

    async fn of(group: &Group<Replica>, node: NodeId) -> Option<Self> {
        let answer = group.call(node, Bytes::from_static(&[ASK_PICTURE]), PICTURE).await.ok()?;
        let ClusterStatusResponse { nodes, voters, membership_index, .. } =
            ClusterStatusResponse::decode(answer).ok()?;
        // A node of an earlier version does not know the question.
        (!nodes.is_empty()).then_some(Self { nodes, voters, membership_index })
    }

    /// With this node's own word about itself, even if it is no member.
    fn with(mut self, own: NodeStatus) -> Self {
        let votes = self.nodes.iter().any(|node| node.number == own.number && node.voter);
        self.nodes.retain(|node| node.number != own.number);
        self.nodes.push(NodeStatus { voter: votes, ..own });
        self.nodes.sort_by_key(|node| node.number);
        self
    }

    /// As it travels between nodes.
    pub fn encode(self) -> Bytes {
        let Self { nodes, voters, membership_index } = self;
        ClusterStatusResponse { nodes, voters, membership_index, ..ClusterStatusResponse::default() }
            .encode_to_vec()
            .into()
    }
}

/// By number. While a new directory of a node takes the place of its old one there are two members of one number: the one that answers.
fn once_each(mut nodes: Vec<NodeStatus>) -> Vec<NodeStatus> {
    nodes.sort_by_key(|node| (node.number, !node.reachable));
    nodes.dedup_by_key(|node| node.number);
    nodes
}

/// The node that goes by the newest membership, if that is not the picture's own.
fn newer(picture: &Picture) -> Option<u32> {
    let reachable = picture.nodes.iter().filter(|node| node.reachable);
    let newest = reachable.max_by_key(|node| node.membership_index)?;
    (newest.membership_index > picture.membership_index).then_some(newest.number)
}

/// Asks whoever leads to take a change one step further.
pub(crate) async fn change(
    group: &Group<Replica>,
    request: ChangeMembersRequest,
) -> Result<ChangeMembersResponse, Fault> {
    let mut leadership = group.leader();
    let known = timeout_at(Instant::now() + PATIENCE, leadership.wait_for(|view| view.leader.is_some())).await;
    let Some(leader) = known.ok().and_then(Result::ok).and_then(|view| view.leader) else {
        return Err(Fault::no_leader());
    };
    let mut question = BytesMut::new();
    question.put_u8(ASK_CHANGE);
    question.put_slice(&request.encode_to_vec());
    let answer = match group.call(leader, question.freeze(), STEP).await {
        Ok(answer) => answer,
        Err(CallError::NotSent(_)) => return Err(Fault::no_leader()),
        Err(CallError::Unknown(_)) => {
            return Ok(waiting(format!("node {leader} was asked and has not answered yet")));
        }
    };
    match ChangeMembersResponse::decode(answer) {
        Ok(answer) if answer.outcome.is_some() => Ok(answer),
        Ok(_) | Err(_) => {
            let message = format!("node {leader} leads and does not know the call; run one version on all nodes");
            Err(Fault::new(Code::NotImplemented, message))
        }
    }
}

/// The leader's part in [`change`].
pub(crate) async fn answer_change(group: &Group<Replica>, question: Bytes) -> Bytes {
    let done = match ChangeMembersRequest::decode(question).map_err(|error| error.to_string()).and_then(wanted) {
        Ok(wanted) => group.change_members(wanted).await.map(described).or_else(told),
        Err(reason) => Err(Fault::new(Code::BadRequest, reason)),
    };
    let answer = match done {
        Ok(answer) => answer,
        Err(Fault { code, message }) => {
            let outcome = Some(Outcome { code: code as i32, message });
            ChangeMembersResponse { outcome, ..ChangeMembersResponse::default() }
        }
    };
    answer.encode_to_vec().into()
}

fn wanted(request: ChangeMembersRequest) -> Result<MemberChange, String> {
    let number = |number: u32| match u16::try_from(number) {
        Ok(0) | Err(_) => Err(format!("{number} is not a node number; write 1 to 65535")),
        Ok(number) => Ok(number),
    };
    Ok(match (request.add, request.remove) {
        (None, 0) => return Err("the call names no node; name one to add, to remove, or both".into()),
        (None, remove) => MemberChange::Remove { number: number(remove)? },
        (Some(add), 0) => MemberChange::Add { number: number(add.number)?, peer_address: add.peer_address },
        (Some(add), remove) => {
            MemberChange::Replace { old: number(remove)?, new: number(add.number)?, peer_address: add.peer_address }
        }
    })
}

/// What keeps a change from going on: for now, or for good.
fn told(error: ChangeError) -> Result<ChangeMembersResponse, Fault> {
    match error {
        ChangeError::NotLeader { .. } => Err(Fault::no_leader()),
        ChangeError::Busy(_) | ChangeError::Refused(_) => Err(Fault::new(Code::PreconditionFailed, error.to_string())),
        ChangeError::Unreachable(reason) => Ok(answer(ChangeState::Unreachable, reason)),
        ChangeError::Unknown(reason) => Ok(waiting(reason)),
        ChangeError::Stopped(_) => Err(Fault::new(Code::InternalServerError, error.to_string())),
    }
}

fn answer(state: ChangeState, note: String) -> ChangeMembersResponse {
    let outcome = Some(Outcome { code: Code::Ok as i32, message: String::new() });
    ChangeMembersResponse { outcome, state: state as i32, note, ..ChangeMembersResponse::default() }
}

fn waiting(note: String) -> ChangeMembersResponse {
    answer(ChangeState::Waiting, note)
}

fn described(step: ChangeStep) -> ChangeMembersResponse {
    match step {
        ChangeStep::Done(note) => answer(ChangeState::Done, note),
        ChangeStep::Waiting(note) => waiting(note),
        ChangeStep::CatchingUp { number, matched, last, bytes } => ChangeMembersResponse {
            catching_up: number.into(),
            matched_index: matched.map(|index| index.0),
            last_index: last.0,
            bytes_behind: bytes,
            ..answer(ChangeState::CatchingUp, format!("node {number} is a learner and catches up"))
        },
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::admin::MemberAddress;

    use super::*;

    fn node(number: u32, reachable: bool, membership_index: u64) -> NodeStatus {
        NodeStatus { number, reachable, membership_index, ..NodeStatus::default() }
    }

    /// A learner that has the log up to where it was let in knows nothing of who came and went since.
    #[test]
    fn without_a_leader_the_newest_membership_among_the_answers_counts() {
        let picture = |nodes| Picture { nodes, voters: 3, membership_index: 7 };
        assert_eq!(newer(&picture(vec![node(1, true, 7), node(2, true, 40), node(3, true, 9)])), Some(2));
        assert_eq!(newer(&picture(vec![node(1, true, 7), node(2, false, 40), node(4, true, 3)])), None);
    }

    #[test]
    fn a_node_that_is_no_member_of_the_picture_still_speaks_for_itself() {
        let picture = Picture { nodes: vec![node(1, true, 7), node(2, true, 7)], voters: 2, membership_index: 7 };
        let shown = picture.with(node(4, true, 3));
        let votes: Vec<(u32, bool)> = shown.nodes.iter().map(|node| (node.number, node.voter)).collect();
        assert_eq!(votes, [(1, false), (2, false), (4, false)]);
    }

    #[test]
    fn of_two_identities_of_one_number_the_one_that_answers_is_shown() {
        let shown = once_each(vec![node(3, false, 0), node(1, true, 1), node(3, true, 1)]);
        let seen: Vec<(u32, bool)> = shown.iter().map(|node| (node.number, node.reachable)).collect();
        assert_eq!(seen, [(1, true), (3, true)]);
    }

    #[test]
    fn a_change_names_a_node_to_add_or_to_remove_or_both() {
        let add = |number| Some(MemberAddress { number, peer_address: "a:1".into() });
        let asked = |add, remove| wanted(ChangeMembersRequest { add, remove });
        let peer_address = String::from("a:1");
        assert_eq!(asked(None, 3), Ok(MemberChange::Remove { number: 3 }));
        assert_eq!(asked(add(4), 0), Ok(MemberChange::Add { number: 4, peer_address: peer_address.clone() }));
        assert_eq!(asked(add(4), 3), Ok(MemberChange::Replace { old: 3, new: 4, peer_address }));
        for (add, remove) in [(None, 0), (add(0), 0), (None, 70_000)] {
            assert!(asked(add, remove).is_err());
        }
    }
}
