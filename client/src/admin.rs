//! The operators' calls: topics, consumer groups, the state of the broker group. Any node answers them.
//!
//! A change whose outcome is unknown is not repeated by itself, because the repetition's answer would tell of the first one's effect
//! ("exists already"): the caller looks and decides.

use std::{fmt, sync::Arc};

use quorate_proto::{
    admin::{self, broker_admin_client::BrokerAdminClient},
    v2,
};

use crate::{
    error::{AdminError, CallError, check_code, check_status},
    identity::{Identity, resource},
    message::Resolution,
    route::{addresses, wire_endpoints},
    transport::{Attempts, CallLimits, Connection, Transport, messaging},
};

/// Asks broker nodes; tries the next one when one cannot be reached. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    transport: Arc<Transport>,
    identity: Arc<Identity>,
    limits: CallLimits,
    endpoints: Arc<[Arc<str>]>,
}

/// One call of the service, with its attempts. The answer's `Outcome` is sorted like every status.
macro_rules! call {
    ($admin:expr, $method:ident($request:expr), repeat: $repeat:expr, $outcome:expr) => {{
        let request = $request;
        let limits = CallLimits { repeat_unknown: $repeat, ..$admin.limits };
        let mut attempts = Attempts::new(&$admin.transport, limits);
        loop {
            let attempt = attempts.next(&$admin.endpoints).await?;
            let mut client = broker_admin(&attempt.connection);
            let call = client.$method($admin.identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            match answer.and_then(|answer| check_outcome($outcome(&answer)).map(|()| answer)) {
                Ok(answer) => break Ok(answer),
                Err(error) => attempts.failed(&attempt, error)?,
            }
        }
    }};
}

impl Admin {
    pub(crate) fn new(
        transport: Arc<Transport>,
        identity: Arc<Identity>,
        limits: CallLimits,
        endpoints: Vec<Arc<str>>,
    ) -> Self {
        Self { transport, identity, limits, endpoints: endpoints.into() }
    }

    /// Creates a topic. `queues` 0 takes the broker's default.
    ///
    /// # Errors
    /// `Refused` if it exists with other settings or the name is not one.
    pub async fn create_topic(&self, name: &str, queues: u32, kind: admin::TopicType) -> Result<(), AdminError> {
        let topic = admin::Topic { name: name.to_owned(), queues, r#type: kind.into(), ..admin::Topic::default() };
        let request = admin::CreateTopicRequest { topic: Some(topic) };
        let outcome: Result<admin::Outcome, AdminError> = call!(self, create_topic(request), repeat: false, Some);
        outcome.map(drop)
    }

    /// Deletes a topic with everything in it. Messages that wait in it and that nobody could receive yet (half and delayed ones) are dropped
    /// only with `force`. The answer says how many of them there were.
    ///
    /// # Errors
    /// `Refused` with 40402 if there is none, with 42800 if messages wait in it and it is not forced; then nothing was deleted.
    pub async fn delete_topic(&self, name: &str, force: bool) -> Result<admin::DeleteTopicResponse, AdminError> {
        let request = admin::DeleteTopicRequest { name: name.to_owned(), force };
        call!(self, delete_topic(request), repeat: false, |answer: &'_ admin::DeleteTopicResponse| {
            Some(admin::Outcome { code: answer.code, message: answer.message.clone() })
        })
    }

    /// A topic with the offsets of its queues.
    ///
    /// # Errors
    /// `Refused` with 40402 if there is none.
    pub async fn describe_topic(&self, name: &str) -> Result<admin::Topic, AdminError> {
        let request = admin::DescribeTopicRequest { name: name.to_owned() };
        let answer: Result<admin::DescribeTopicResponse, AdminError> = call!(self, describe_topic(request), repeat: true, |answer: &'_ admin::DescribeTopicResponse| answer
                .outcome
                .clone());
        answer?.topic.ok_or_else(|| CallError::Unknown { code: 0, message: "the answer has no topic".to_owned() })
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// Only what keeps a call from being answered.
    pub async fn list_topics(&self) -> Result<Vec<admin::Topic>, AdminError> {
        let answer: Result<admin::ListTopicsResponse, AdminError> = call!(self, list_topics(admin::ListTopicsRequest {}), repeat: true, |answer: &'_ admin::ListTopicsResponse| {
            answer.outcome.clone()
        });
        let mut topics = answer?.topics;
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// Creates a consumer group. A FIFO group gets messages of one message group in order.
    ///
    /// # Errors
    /// `Refused` if it exists with other settings or the name is not one.
    pub async fn create_group(&self, name: &str, fifo: bool) -> Result<(), AdminError> {
        let group = admin::ConsumerGroup { name: name.to_owned(), fifo, ..admin::ConsumerGroup::default() };
        self.put_group(group, false).await
    }

    /// Creates a consumer group with all its settings, or with `replace` changes one that exists with others; its progress stays.
    ///
    /// # Errors
    /// `Refused` if it exists with other settings, the name is not one, or a setting is out of range.
    pub async fn put_group(&self, group: admin::ConsumerGroup, replace: bool) -> Result<(), AdminError> {
        let request = admin::CreateGroupRequest { group: Some(group), replace };
        let outcome: Result<admin::Outcome, AdminError> = call!(self, create_group(request), repeat: false, Some);
        outcome.map(drop)
    }

    /// Deletes a consumer group with its progress.
    ///
    /// # Errors
    /// `Refused` with 40403 if there is none.
    pub async fn delete_group(&self, name: &str) -> Result<(), AdminError> {
        let request = admin::DeleteGroupRequest { name: name.to_owned() };
        let outcome: Result<admin::Outcome, AdminError> = call!(self, delete_group(request), repeat: false, Some);
        outcome.map(drop)
    }

    /// All consumer groups, by name.
    ///
    /// # Errors
    /// Only what keeps a call from being answered.
    pub async fn list_groups(&self) -> Result<Vec<admin::ConsumerGroup>, AdminError> {
        let answer: Result<admin::ListGroupsResponse, AdminError> = call!(self, list_groups(admin::ListGroupsRequest {}), repeat: true, |answer: &'_ admin::ListGroupsResponse| {
            answer.outcome.clone()
        });
        let mut groups = answer?.groups;
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(groups)
    }

    /// Where a consumer group stands in each topic, who is there, and whether they agree.
    ///
    /// # Errors
    /// `Refused` with 40403 if there is none.
    pub async fn describe_group(&self, name: &str) -> Result<admin::DescribeGroupResponse, AdminError> {
        let request = admin::DescribeGroupRequest { name: name.to_owned() };
        call!(self, describe_group(request), repeat: true, |answer: &'_ admin::DescribeGroupResponse| answer
            .outcome
            .clone())
    }

    /// Puts a consumer group somewhere else in a topic, all queues or none, or with `dry_run` says what that would mean.
    ///
    /// # Errors
    /// `Refused` with 40402 or 40403 if there is no such topic or group, with 40019 if a queue neither holds nor ends at a place that is named;
    /// nothing has changed. After `Unknown` the group is where it was or where it was to go: look with [`Self::describe_group`].
    pub async fn reset_offsets(
        &self,
        request: admin::ResetOffsetsRequest,
    ) -> Result<Vec<admin::ResetQueue>, AdminError> {
        let answer: Result<admin::ResetOffsetsResponse, AdminError> = call!(self, reset_offsets(request), repeat: false, |answer: &'_ admin::ResetOffsetsResponse| answer
            .outcome
            .clone());
        Ok(answer?.queues)
    }

    /// Half messages that wait, in the order of their sends: of one topic or of all, at most `max`, behind the transaction `after`.
    /// `set_aside`: those only that the broker asks nobody about any more.
    ///
    /// # Errors
    /// `Refused` with 40402 if there is no such topic, with 40008 if `after` is no transaction id.
    pub async fn list_transactions(
        &self,
        topic: Option<&str>,
        set_aside: bool,
        max: u32,
        after: &str,
    ) -> Result<admin::ListTransactionsResponse, AdminError> {
        let topic = topic.unwrap_or_default().to_owned();
        let request = admin::ListTransactionsRequest { topic, set_aside, max, after: after.to_owned() };
        call!(self, list_transactions(request), repeat: true, |answer: &'_ admin::ListTransactionsResponse| answer
            .outcome
            .clone())
    }

    /// Ends a transaction as its producer would. Done again is done.
    ///
    /// # Errors
    /// `Refused` with 42800 if it ended the other way before, with 40008 if there is no such transaction.
    pub async fn end_transaction(&self, transaction_id: &str, resolution: Resolution) -> Result<(), AdminError> {
        let commit = resolution == Resolution::Commit;
        let request = admin::EndTransactionRequest { transaction_id: transaction_id.to_owned(), commit };
        let outcome: Result<admin::Outcome, AdminError> = call!(self, end_transaction(request), repeat: true, Some);
        outcome.map(drop)
    }

    /// The consumer groups with dead letters, by name.
    ///
    /// # Errors
    /// Only what keeps a call from being answered.
    pub async fn list_dead_letters(&self) -> Result<Vec<admin::DeadLetterTopic>, AdminError> {
        let answer: Result<admin::ListDeadLettersResponse, AdminError> = call!(
            self,
            list_dead_letters(admin::ListDeadLettersRequest {}),
            repeat: true,
            |answer: &'_ admin::ListDeadLettersResponse| answer.outcome.clone()
        );
        let mut topics = answer?.topics;
        topics.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(topics)
    }

    /// Some dead letters of a group, in the order in which they died. One call looks at a bounded number: if there may be `more`, go on
    /// behind `last`.
    ///
    /// # Errors
    /// `Refused` with 40403 if there is no such group, with 40400 if it has never had a dead letter.
    pub async fn show_dead_letters(
        &self,
        request: admin::ShowDeadLettersRequest,
    ) -> Result<admin::ShowDeadLettersResponse, AdminError> {
        call!(self, show_dead_letters(request), repeat: true, |answer: &'_ admin::ShowDeadLettersResponse| answer
            .outcome
            .clone())
    }

    /// Stores dead letters of a group in a topic again, each at most once for ever: in `to`, or where each came from. One result per place,
    /// in order; what was redriven before says so, whoever did it.
    ///
    /// # Errors
    /// `Refused` as [`Self::show_dead_letters`]. After `Unknown` some may have been redriven: ask again.
    pub async fn redrive_dead_letters(
        &self,
        group: &str,
        places: Vec<admin::DeadLetterPlace>,
        to: Option<&str>,
    ) -> Result<Vec<admin::Redriven>, AdminError> {
        let to = to.unwrap_or_default().to_owned();
        let request = admin::RedriveDeadLettersRequest { group: group.to_owned(), places, to };
        let answer: Result<admin::RedriveDeadLettersResponse, AdminError> = call!(
            self,
            redrive_dead_letters(request),
            repeat: true,
            |answer: &'_ admin::RedriveDeadLettersResponse| answer.outcome.clone()
        );
        Ok(answer?.results)
    }

    /// The addresses that clients are given for a topic, each once, in the order of its route. Asked anew each time, and answered by name
    /// servers too. A node that makes unknown topics makes this one.
    ///
    /// # Errors
    /// `Refused` with 40402 if there is no such topic and none is made.
    pub async fn route(&self, topic: &str) -> Result<Vec<String>, AdminError> {
        let endpoints = Some(wire_endpoints(&self.endpoints));
        let request = v2::QueryRouteRequest { topic: Some(resource(topic)), endpoints };
        let mut attempts = Attempts::new(&self.transport, self.limits);
        let answer = loop {
            let attempt = attempts.next(&self.endpoints).await?;
            let mut client = messaging(&attempt.connection);
            let call = client.query_route(self.identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            match answer.and_then(|answer| check_status(answer.status.as_ref()).map(|()| answer)) {
                Ok(answer) => break answer,
                Err(error) => attempts.failed(&attempt, error)?,
            }
        };
        Ok(addresses(answer.message_queues))
    }

    /// The state of every node, as one of them gathered it, by number.
    ///
    /// # Errors
    /// Only what keeps a call from being answered; nodes that were not reached say so in their entry.
    pub async fn cluster_status(&self) -> Result<admin::ClusterStatusResponse, AdminError> {
        let answer: Result<admin::ClusterStatusResponse, AdminError> = call!(
            self,
            cluster_status(admin::ClusterStatusRequest {}),
            repeat: true,
            |answer: &'_ admin::ClusterStatusResponse| answer.outcome.clone()
        );
        let mut status = answer?;
        status.nodes.sort_by_key(|node| node.number);
        Ok(status)
    }
}

impl Admin {
    /// Hands leadership to node `number` (0: to the one that lacks the least) and waits until it is done.
    ///
    /// # Errors
    /// `Refused` with 42800 if it did not happen; the reason says who leads.
    pub async fn transfer_leadership(&self, number: u32) -> Result<admin::TransferLeadershipResponse, AdminError> {
        let request = admin::TransferLeadershipRequest { node: number };
        call!(self, transfer_leadership(request), repeat: false, |answer: &'_ admin::TransferLeadershipResponse| answer
            .outcome
            .clone())
    }

    /// Takes a change of the broker group's members one step further and tells how far it is: node `add`, a number and the address of its
    /// peer listener, is added, node `remove` is removed, or with both the first takes the place of the second. To be called again until
    /// it is done; a repeated call does no harm.
    ///
    /// # Errors
    /// `Refused` with 42800 if it must not be or another change is under way; the reason says what to do. `NotNow` and `Unknown`: the
    /// same call goes on.
    pub async fn change_members(
        &self,
        add: Option<(u16, &str)>,
        remove: Option<u16>,
    ) -> Result<admin::ChangeMembersResponse, AdminError> {
        let add = add
            .map(|(number, address)| admin::MemberAddress { number: number.into(), peer_address: address.to_owned() });
        let request = admin::ChangeMembersRequest { add, remove: remove.unwrap_or(0).into() };
        call!(self, change_members(request), repeat: true, |answer: &'_ admin::ChangeMembersResponse| answer
            .outcome
            .clone())
    }

    /// The last changes of leadership as every node saw them, by number of the node.
    ///
    /// # Errors
    /// Only what keeps a call from being answered; nodes that were not reached say so in their entry.
    pub async fn leader_history(&self) -> Result<Vec<admin::NodeHistory>, AdminError> {
        let answer: Result<admin::LeaderHistoryResponse, AdminError> = call!(
            self,
            leader_history(admin::LeaderHistoryRequest {}),
            repeat: true,
            |answer: &'_ admin::LeaderHistoryResponse| answer.outcome.clone()
        );
        let mut nodes = answer?.nodes;
        nodes.sort_by_key(|node| node.number);
        Ok(nodes)
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

fn broker_admin(connection: &Connection) -> BrokerAdminClient<Connection> {
    BrokerAdminClient::with_origin(connection.clone(), connection.origin())
}

fn check_outcome(outcome: Option<impl std::borrow::Borrow<admin::Outcome>>) -> Result<(), CallError> {
    match outcome {
        Some(outcome) => check_code(outcome.borrow().code, &outcome.borrow().message),
        None => Err(CallError::Unknown { code: 0, message: "the answer has no outcome".to_owned() }),
    }
}
