//! What operators ask: `quorate.admin.BrokerAdmin`, and RocketMQ's own Admin service, none of which is built.
//!
//! Both are served on the client listener of every node, so that whoever has an endpoint can look and change. Outcomes carry
//! RocketMQ's codes.

use std::sync::Arc;

use quorate_proto::{
    admin::{
        ChangeMembersRequest, ChangeMembersResponse, ClusterStatusRequest, ClusterStatusResponse, ConsumerGroup,
        CreateGroupRequest, CreateTopicRequest, DeadLetter, DeadLetterPlace, DeadLetterTopic, DeleteGroupRequest,
        DeleteTopicRequest, DeleteTopicResponse, DescribeGroupRequest, DescribeGroupResponse, DescribeTopicRequest,
        DescribeTopicResponse, EndTransactionRequest, LeaderHistoryRequest, LeaderHistoryResponse,
        ListDeadLettersRequest, ListDeadLettersResponse, ListGroupsRequest, ListGroupsResponse, ListTopicsRequest,
        ListTopicsResponse, ListTransactionsRequest, ListTransactionsResponse, NodeStatus, Outcome, Queue,
        RedriveDeadLettersRequest, RedriveDeadLettersResponse, Redriven, ResetOffsetsRequest, ResetOffsetsResponse,
        ShowDeadLettersRequest, ShowDeadLettersResponse, StartAt, Topic, TopicType, Transaction,
        TransferLeadershipRequest, TransferLeadershipResponse, broker_admin_server::BrokerAdmin,
    },
    names::{GroupName, TopicName},
    v2::{self, Code, admin_server::Admin},
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, async_trait};

use super::{
    Client, Service,
    client::came_by,
    forward::{Until, from_no},
    leadership,
    members::{self, Picture},
    wire::status::{Fault, ok},
};
use crate::{
    leader::{
        calls::{self, Call, TopicDetail, TransactionDetail},
        kind_of,
    },
    machine::TopicKind,
    registrar::ListenerName,
};

/// Half messages of a listing that names no number.
const TRANSACTIONS_LISTED: u32 = 100;
/// Dead letters of one that names no number.
const LETTERS_SHOWN: u32 = 100;
/// Most dead letters of one call to redrive some.
const REDRIVEN_MAX: usize = 256;

/// The operators' service as tonic calls it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Operators(pub Arc<Service>);

type Answer<T> = Result<Response<T>, Status>;

fn outcome(result: Result<(), Fault>) -> Outcome {
    let status = result.map_or_else(v2::Status::from, |()| ok());
    Outcome { code: status.code, message: status.message }
}

fn done<T>(result: Result<T, Fault>) -> Answer<Outcome> {
    Ok(Response::new(outcome(result.map(drop))))
}

impl Operators {
    /// Has a call executed within the deadline of its request.
    async fn call<C: Call>(&self, until: Until, call: Result<C, Fault>) -> Result<C::Answer, Fault> {
        Ok(self.0.dispatch.call(call?, until).await?)
    }

    fn until<T>(&self, request: &Request<T>) -> Until {
        Client::of(request.metadata(), request.extensions()).until(Instant::now(), &self.0.config.limits)
    }
}

fn topic_name(name: &str) -> Result<String, Fault> {
    let legal = TopicName::parse(name).map_err(|error| Fault::new(Code::IllegalTopic, error.to_string()))?;
    Ok(legal.to_string())
}

fn group_name(name: &str) -> Result<String, Fault> {
    let legal = GroupName::parse(name).map_err(|error| Fault::new(Code::IllegalConsumerGroup, error.to_string()))?;
    Ok(legal.to_string())
}

fn create_topic(topic: Option<Topic>) -> Result<calls::CreateTopic, Fault> {
    let topic = topic.unwrap_or_default();
    let kind = match TopicType::try_from(topic.r#type) {
        Ok(TopicType::Unspecified | TopicType::Any) => TopicKind::Any,
        Ok(TopicType::Normal) => TopicKind::Normal,
        Ok(TopicType::Fifo) => TopicKind::Fifo,
        Ok(TopicType::Delay) => TopicKind::Delay,
        Ok(TopicType::Transaction) => TopicKind::Transaction,
        Err(_) => return Err(Fault::new(Code::BadRequest, format!("topic type {} is unknown", topic.r#type))),
    };
    let name = topic_name(&topic.name)?;
    if let Some(group) = dead_letters_of(&name) {
        let text =
            format!("{name} is for the dead letters of consumer group {group}; it is made with the first of them");
        return Err(Fault::new(Code::BadRequest, text));
    }
    Ok(calls::CreateTopic { name, queues: topic.queues, kind: kind as u32 })
}

/// The consumer group whose dead letters a topic holds.
fn dead_letters_of(topic: &str) -> Option<String> {
    TopicName::parse(topic).ok().and_then(|name| name.dead_letters_of().map(str::to_owned))
}

fn topic(detail: TopicDetail, with_offsets: bool) -> Topic {
    let kind = match kind_of(detail.kind) {
        TopicKind::Normal => TopicType::Normal,
        TopicKind::Fifo => TopicType::Fifo,
        TopicKind::Delay => TopicType::Delay,
        TopicKind::Transaction => TopicType::Transaction,
        TopicKind::Any => TopicType::Any,
    };
    let queues = u32::try_from(detail.queues.len()).unwrap_or(u32::MAX);
    let offsets = (0..).zip(detail.queues).map(|(id, range)| Queue { id, min: range.min, max: range.end });
    Topic {
        name: detail.name,
        queues,
        r#type: kind as i32,
        created_ms: wire_ms(detail.created_ms),
        offsets: if with_offsets { offsets.collect() } else { Vec::new() },
    }
}

fn create_group(group: ConsumerGroup, replace: bool) -> Result<calls::CreateGroup, Fault> {
    let start = start(group.start, group.start_ms)?;
    let ConsumerGroup { name, fifo, retry, .. } = group;
    Ok(calls::CreateGroup { name: group_name(&name)?, fifo, retry, replace, start })
}

/// Nothing for a place that is not said.
fn start(start: i32, since_ms: i64) -> Result<Option<calls::GroupStart>, Fault> {
    let (end, since_ms) = match StartAt::try_from(start) {
        Ok(StartAt::Unspecified) => return Ok(None),
        Ok(StartAt::First) => (false, None),
        Ok(StartAt::Last) => (true, None),
        Ok(StartAt::Since) => (false, Some(u64::try_from(since_ms).unwrap_or(0))),
        Err(_) => return Err(Fault::new(Code::BadRequest, format!("start {start} is unknown"))),
    };
    Ok(Some(calls::GroupStart { end, since_ms }))
}

fn group(detail: calls::GroupDetail) -> ConsumerGroup {
    let start = detail.start.unwrap_or_default();
    let (start, start_ms) = match (start.end, start.since_ms) {
        (true, _) => (StartAt::Last, 0),
        (false, Some(ms)) => (StartAt::Since, wire_ms(ms)),
        (false, None) => (StartAt::First, 0),
    };
    ConsumerGroup {
        name: detail.name,
        fifo: detail.fifo,
        created_ms: wire_ms(detail.created_ms),
        retry: detail.retry,
        start: start as i32,
        start_ms,
    }
}

fn reset_offsets(asked: ResetOffsetsRequest) -> Result<calls::ResetOffsets, Fault> {
    let to = start(asked.to, asked.to_ms)?;
    if to.is_some() != asked.places.is_empty() {
        let text = "say where to: either to the first or last message or a time, or exactly to places";
        return Err(Fault::new(Code::BadRequest, text));
    }
    let place = |place: quorate_proto::admin::ResetPlace| {
        let quorate_proto::admin::ResetPlace { queue, offset } = place;
        calls::QueuePlace { queue, offset }
    };
    let places: Vec<calls::QueuePlace> = asked.places.into_iter().map(place).collect();
    let mut queues: Vec<u32> = places.iter().map(|place| place.queue).collect();
    queues.sort_unstable();
    if let Some(twice) = queues.windows(2).find(|two| two[0] == two[1]) {
        return Err(Fault::new(Code::BadRequest, format!("queue {} is named twice", twice[0])));
    }
    let (group, topic) = (group_name(&asked.group)?, topic_name(&asked.topic)?);
    Ok(calls::ResetOffsets { group, topic, places, to, dry_run: asked.dry_run })
}

fn wire_ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn transaction(detail: TransactionDetail) -> Transaction {
    Transaction {
        topic: detail.topic,
        transaction_id: detail.transaction_id,
        message_id: detail.message_id,
        keys: detail.keys,
        sent_ms: wire_ms(detail.sent_ms),
        checks: detail.checks,
        check_ms: detail.check_ms.map(wire_ms),
        size: detail.size,
    }
}

fn show_dead_letters(asked: ShowDeadLettersRequest) -> Result<calls::ShowDeadLetters, Fault> {
    let since_ms = asked.since_ms.map(|ms| u64::try_from(ms).unwrap_or(0));
    let until_ms = asked.until_ms.map(|ms| u64::try_from(ms).unwrap_or(0));
    let after = asked.after.map(|DeadLetterPlace { queue, offset }| calls::DeadLetterPlace { queue, offset });
    Ok(calls::ShowDeadLetters {
        group: group_name(&asked.group)?,
        topic: asked.topic,
        key: asked.key,
        tag: asked.tag,
        message_id: asked.message_id,
        since_ms,
        until_ms,
        after,
        max: if asked.max == 0 { LETTERS_SHOWN } else { asked.max },
    })
}

fn redrive_dead_letters(asked: RedriveDeadLettersRequest) -> Result<calls::RedriveDeadLetters, Fault> {
    let RedriveDeadLettersRequest { group, places, to } = asked;
    if places.is_empty() || places.len() > REDRIVEN_MAX {
        let text = format!("the call names {} dead letters; name 1 to {REDRIVEN_MAX}", places.len());
        return Err(Fault::new(Code::BadRequest, text));
    }
    let place = |DeadLetterPlace { queue, offset }| calls::DeadLetterPlace { queue, offset };
    let to = if to.is_empty() { to } else { topic_name(&to)? };
    if dead_letters_of(&to).is_some() {
        let text = format!(
            "{to} holds dead letters, and one sent there would lose where it came from; name a topic that consumers work on"
        );
        return Err(Fault::new(Code::BadRequest, text));
    }
    Ok(calls::RedriveDeadLetters { group: group_name(&group)?, places: places.into_iter().map(place).collect(), to })
}

fn wire_place(place: calls::DeadLetterPlace) -> DeadLetterPlace {
    DeadLetterPlace { queue: place.queue, offset: place.offset }
}

fn redriven(one: calls::RedrivenOne) -> Redriven {
    let calls::RedrivenOne { no, before, topic, place, message_id } = one;
    let result = no.map_or(Ok(()), |no| Err(from_no(no)));
    Redriven { outcome: Some(outcome(result)), before, message_id, topic, place: place.map(wire_place) }
}

fn dead_letter(letter: calls::DeadLetterDetail) -> DeadLetter {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    DeadLetter {
        place: letter.place.map(wire_place),
        message_id: letter.message_id,
        keys: letter.keys,
        tag: letter.tag,
        body_bytes: letter.body_bytes,
        died_ms: wire_ms(letter.died_ms),
        redriven: letter.redriven,
        topic: letter.topic,
        queue: small(letter.queue),
        offset: letter.offset,
        sent_ms: wire_ms(letter.sent_ms),
        attempts: small(letter.attempts),
        reason: letter.reason,
        consumer: letter.consumer,
    }
}

#[async_trait]
impl BrokerAdmin for Operators {
    async fn create_topic(&self, request: Request<CreateTopicRequest>) -> Answer<Outcome> {
        let until = self.until(&request);
        done(self.call(until, create_topic(request.into_inner().topic)).await)
    }

    async fn delete_topic(&self, request: Request<DeleteTopicRequest>) -> Answer<DeleteTopicResponse> {
        let until = self.until(&request);
        let DeleteTopicRequest { name, force } = request.into_inner();
        let found = self.call(until, topic_name(&name).map(|name| calls::DropTopic { name, force })).await;
        let calls::Dropped { halves, delayed } = found.as_ref().copied().unwrap_or_default();
        let Outcome { code, message } = outcome(found.map(drop));
        Ok(Response::new(DeleteTopicResponse { code, message, halves, delayed }))
    }

    async fn describe_topic(&self, request: Request<DescribeTopicRequest>) -> Answer<DescribeTopicResponse> {
        let until = self.until(&request);
        let name = topic_name(&request.into_inner().name);
        let found = self.call(until, name.map(|name| calls::ListTopics { name: Some(name) })).await;
        let (result, topics) = split(found, |found| found.topics);
        let topic = topics.into_iter().next().map(|detail| topic(detail, true));
        Ok(Response::new(DescribeTopicResponse { outcome: Some(outcome(result)), topic }))
    }

    async fn list_topics(&self, request: Request<ListTopicsRequest>) -> Answer<ListTopicsResponse> {
        let found = self.call(self.until(&request), Ok(calls::ListTopics { name: None })).await;
        let (result, topics) = split(found, |found| found.topics);
        let topics = topics.into_iter().map(|detail| topic(detail, false)).collect();
        Ok(Response::new(ListTopicsResponse { outcome: Some(outcome(result)), topics }))
    }

    async fn create_group(&self, request: Request<CreateGroupRequest>) -> Answer<Outcome> {
        let until = self.until(&request);
        let CreateGroupRequest { group, replace } = request.into_inner();
        done(self.call(until, create_group(group.unwrap_or_default(), replace)).await)
    }

    async fn describe_group(&self, request: Request<DescribeGroupRequest>) -> Answer<DescribeGroupResponse> {
        let until = self.until(&request);
        let call = group_name(&request.into_inner().name).map(|name| calls::DescribeGroup { name });
        let (mut group, mut now_ms) = (None, 0);
        let (result, topics) = split(self.call(until, call).await, |found| {
            (group, now_ms) = (found.group.map(self::group), wire_ms(found.now_ms));
            found.topics
        });
        Ok(Response::new(DescribeGroupResponse { outcome: Some(outcome(result)), group, now_ms, topics }))
    }

    async fn reset_offsets(&self, request: Request<ResetOffsetsRequest>) -> Answer<ResetOffsetsResponse> {
        let until = self.until(&request);
        let call = reset_offsets(request.into_inner());
        let (result, queues) = split(self.call(until, call).await, |done| done.queues);
        Ok(Response::new(ResetOffsetsResponse { outcome: Some(outcome(result)), queues }))
    }

    async fn delete_group(&self, request: Request<DeleteGroupRequest>) -> Answer<Outcome> {
        let until = self.until(&request);
        let name = group_name(&request.into_inner().name);
        done(self.call(until, name.map(|name| calls::DropGroup { name })).await)
    }

    async fn list_groups(&self, request: Request<ListGroupsRequest>) -> Answer<ListGroupsResponse> {
        let found = self.call(self.until(&request), Ok(calls::ListGroups {})).await;
        let (result, groups) = split(found, |found| found.groups);
        let groups = groups.into_iter().map(group).collect();
        Ok(Response::new(ListGroupsResponse { outcome: Some(outcome(result)), groups }))
    }

    async fn list_transactions(&self, request: Request<ListTransactionsRequest>) -> Answer<ListTransactionsResponse> {
        let until = self.until(&request);
        let ListTransactionsRequest { topic, set_aside, max, after } = request.into_inner();
        let max = if max == 0 { TRANSACTIONS_LISTED } else { max };
        let topic = if topic.is_empty() { Ok(None) } else { topic_name(&topic).map(Some) };
        let call = topic.map(|topic| calls::ListTransactions { topic, set_aside, max, after });
        let mut more = false;
        let (result, transactions) = split(self.call(until, call).await, |found| {
            more = found.more;
            found.transactions
        });
        let transactions = transactions.into_iter().map(transaction).collect();
        Ok(Response::new(ListTransactionsResponse { outcome: Some(outcome(result)), transactions, more }))
    }

    async fn end_transaction(&self, request: Request<EndTransactionRequest>) -> Answer<Outcome> {
        let until = self.until(&request);
        let EndTransactionRequest { transaction_id, commit } = request.into_inner();
        let call = calls::EndTransaction { topic: None, transaction_id, commit };
        done(self.call(until, Ok(call)).await)
    }

    async fn list_dead_letters(&self, request: Request<ListDeadLettersRequest>) -> Answer<ListDeadLettersResponse> {
        let found = self.call(self.until(&request), Ok(calls::ListDeadLetters {})).await;
        let (result, topics) = split(found, |found| found.topics);
        let topic = |topic: calls::DeadLetterTopic| {
            let calls::DeadLetterTopic { group, topic, letters, redriven } = topic;
            DeadLetterTopic { group, topic, letters, redriven }
        };
        let topics = topics.into_iter().map(topic).collect();
        Ok(Response::new(ListDeadLettersResponse { outcome: Some(outcome(result)), topics }))
    }

    async fn show_dead_letters(&self, request: Request<ShowDeadLettersRequest>) -> Answer<ShowDeadLettersResponse> {
        let until = self.until(&request);
        let call = show_dead_letters(request.into_inner());
        let (mut more, mut last) = (false, None);
        let (result, letters) = split(self.call(until, call).await, |found| {
            (more, last) = (found.more, found.last.map(wire_place));
            found.letters
        });
        let letters = letters.into_iter().map(dead_letter).collect();
        Ok(Response::new(ShowDeadLettersResponse { outcome: Some(outcome(result)), letters, more, last }))
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<RedriveDeadLettersRequest>,
    ) -> Answer<RedriveDeadLettersResponse> {
        let until = self.until(&request);
        let call = redrive_dead_letters(request.into_inner());
        let (result, results) = split(self.call(until, call).await, |done| done.results);
        let results = results.into_iter().map(redriven).collect();
        Ok(Response::new(RedriveDeadLettersResponse { outcome: Some(outcome(result)), results }))
    }

    async fn cluster_status(&self, request: Request<ClusterStatusRequest>) -> Answer<ClusterStatusResponse> {
        Ok(Response::new(self.0.cluster_status(&came_by(request.extensions())).await))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Answer<TransferLeadershipResponse> {
        let service = &self.0;
        let election_timeout = service.config.election.timers().timeout_max;
        let number = request.into_inner().node;
        let moved = leadership::transfer(&service.reporter.group, number, election_timeout).await;
        let (result, response) = match moved {
            Ok(response) => (Ok(()), response),
            Err(fault) => (Err(fault), TransferLeadershipResponse::default()),
        };
        Ok(Response::new(TransferLeadershipResponse { outcome: Some(outcome(result)), ..response }))
    }

    async fn change_members(&self, request: Request<ChangeMembersRequest>) -> Answer<ChangeMembersResponse> {
        let answer = members::change(&self.0.reporter.group, request.into_inner()).await;
        Ok(Response::new(answer.unwrap_or_else(|fault| {
            let outcome = Some(outcome(Err(fault)));
            ChangeMembersResponse { outcome, ..ChangeMembersResponse::default() }
        })))
    }

    async fn leader_history(&self, _: Request<LeaderHistoryRequest>) -> Answer<LeaderHistoryResponse> {
        let nodes = leadership::histories(&self.0.reporter.group, self.0.clock.now()).await;
        Ok(Response::new(LeaderHistoryResponse { outcome: Some(outcome(Ok(()))), nodes }))
    }
}

impl Service {
    /// The state of every node, as the leader tells it or this one gathers it; needs no leader. Before the group is born, nodes of the
    /// configuration that have never been heard of are named too, so that whoever starts a group sees for whom it waits.
    pub(crate) async fn cluster_status(&self, listener: &ListenerName) -> ClusterStatusResponse {
        let mut picture = Picture::best(&self.reporter.group, self.reporter.report()).await;
        let missing = if picture.voters == 0 { self.config.peers() } else { Vec::new() };
        for peer in missing {
            if !picture.nodes.iter().any(|node| node.number == u32::from(peer.number)) {
                picture.nodes.push(NodeStatus {
                    number: peer.number.into(),
                    peer_address: peer.address,
                    error: "has not joined the group yet".into(),
                    ..NodeStatus::default()
                });
            }
        }
        picture.nodes.sort_by_key(|node| node.number);
        let node = &self.config.node;
        ClusterStatusResponse {
            outcome: Some(outcome(Ok(()))),
            cluster: node.cluster.clone(),
            group: node.group.clone(),
            nodes: picture.nodes,
            route: self.live.addresses(listener).to_vec(),
            answered_by: node.number.into(),
            voters: picture.voters,
            membership_index: picture.membership_index,
        }
    }
}

/// The outcome of a listing, and its list (empty without one).
fn split<A, T>(found: Result<A, Fault>, list: impl FnOnce(A) -> Vec<T>) -> (Result<(), Fault>, Vec<T>) {
    match found {
        Ok(found) => (Ok(()), list(found)),
        Err(fault) => (Err(fault), Vec::new()),
    }
}

/// RocketMQ's Admin service: every call says that it is not implemented.
#[derive(Clone, Copy)]
pub(crate) struct ProtocolAdmin;

macro_rules! not_built {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[allow(clippy::needless_update, reason = "some answers hold nothing but a status")]
        #[async_trait]
        impl Admin for ProtocolAdmin {
            async fn change_log_level(
                &self,
                _: Request<v2::ChangeLogLevelRequest>,
            ) -> Answer<v2::ChangeLogLevelResponse> {
                let remark = Fault::not_built("ChangeLogLevel").message;
                Ok(Response::new(v2::ChangeLogLevelResponse { remark }))
            }

            $(async fn $method(&self, _: Request<v2::$request>) -> Answer<v2::$response> {
                let status = Some(Fault::not_built(stringify!($method)).into());
                Ok(Response::new(v2::$response { status, ..v2::$response::default() }))
            })*
        }
    };
}

not_built! {
    describe_topic_status(DescribeTopicStatusRequest) -> DescribeTopicStatusResponse;
    list_subscription(ListSubscriptionRequest) -> ListSubscriptionResponse;
    describe_subscription(DescribeSubscriptionRequest) -> DescribeSubscriptionResponse;
    delete_subscription(DeleteSubscriptionRequest) -> DeleteSubscriptionResponse;
    describe_group_accumulation(DescribeGroupAccumulationRequest) -> DescribeGroupAccumulationResponse;
    list_consumer_connection(ListConsumerConnectionRequest) -> ListConsumerConnectionResponse;
    reset_group_offset(ResetGroupOffsetRequest) -> ResetGroupOffsetResponse;
    query_message(ListMessageRequest) -> ListMessageResponse;
    print_thread_stack_trace(PrintThreadStackTraceRequest) -> PrintThreadStackTraceResponse;
    verify_message(VerifyMessageRequest) -> VerifyMessageResponse;
    admin_send_message(AdminSendMessageRequest) -> AdminSendMessageResponse;
    get_consumer_running_info(GetConsumerRunningInfoRequest) -> GetConsumerRunningInfoResponse;
    get_topic_route(GetTopicRouteRequest) -> GetTopicRouteResponse;
    query_time_span(QueryTimeSpanRequest) -> QueryTimeSpanResponse;
    get_proxy_runtime_stats(GetProxyRuntimeStatsRequest) -> GetProxyRuntimeStatsResponse;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_checked_before_it_travels() {
        let named = |name: &str, kind: i32| {
            let topic = Topic { name: name.into(), queues: 4, r#type: kind, ..Topic::default() };
            create_topic(Some(topic)).map_err(|fault| fault.code)
        };
        assert_eq!(named("t", 0).map(|call| call.kind), Ok(TopicKind::Any as u32));
        assert_eq!(named("t", 2).map(|call| call.kind), Ok(TopicKind::Fifo as u32));
        assert_eq!(named("a b", 1), Err(Code::IllegalTopic));
        assert_eq!(named("t", 50), Err(Code::BadRequest));
        assert!(create_topic(None).is_err());
    }

    #[tokio::test]
    async fn rocketmq_s_admin_calls_say_that_they_are_not_built() {
        let answer = ProtocolAdmin.get_topic_route(Request::new(Default::default())).await.expect("in-band");
        let status = answer.into_inner().status.expect("set");
        assert_eq!(status.code, 50100);
        assert!(status.message.contains("get_topic_route"));
    }

    #[test]
    fn a_redrive_goes_to_no_dead_letter_topic() {
        let asked = |to: &str| RedriveDeadLettersRequest {
            group: "g".into(),
            places: vec![DeadLetterPlace { queue: 0, offset: 0 }],
            to: to.into(),
        };
        let fault = redrive_dead_letters(asked("%DLQ%g")).expect_err("it would lose where it came from");
        assert_eq!(fault.code, Code::BadRequest);
        assert!(fault.message.contains("%DLQ%g"), "{}", fault.message);
        assert!(redrive_dead_letters(asked("repair")).is_ok());
        assert!(redrive_dead_letters(asked("")).is_ok());
    }
}
