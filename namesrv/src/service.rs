//! The name server's two gRPC services: brokers register, clients ask for routes. Translates between the wire and the
//! [`Table`]; holds no rule of its own.
//!
//! Whatever else a client asks (a name server has no messages) is answered inside the protocol with `NOT_IMPLEMENTED`: some
//! official clients drop their connection on an error of gRPC itself.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use quorate_proto::{
    doors::parse_addresses,
    names::TopicName,
    namesrv::{self, RegisterRequest, RegisterResponse, UnregisterRequest, UnregisterResponse, name_server_server},
    time::Clock,
    v2::{self, AddressScheme, Code, messaging_service_server},
};
use tokio_stream::Once;
use tonic::{Request, Response, Streaming};
use tracing::{debug, info};

use crate::{
    metrics::{Metrics, Standing},
    table::{Claim, GroupRoute, NotClaimed, Table, Topic},
};

/// Most named listeners of one claim: every node of a group may have eight of its own.
const LISTENERS_MAX: usize = 64;

/// What a gRPC method returns. The error side is never used: every outcome is said inside the answer.
type Answer<T> = Result<Response<T>, tonic::Status>;

/// Both services over one table. Cheap to clone.
#[derive(Clone)]
pub(crate) struct NameService {
    table: Arc<Mutex<Table>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// The named listener that it answers at.
    listener: Option<Arc<str>>,
}

impl NameService {
    pub(crate) fn new(table: Table, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { table: Arc::new(Mutex::new(table)), clock, metrics, listener: None }
    }

    /// Tells what the table knows now.
    pub(crate) fn look(&self) -> impl Fn() -> Standing + Send + Sync + use<> {
        let (table, clock) = (self.table.clone(), self.clock.clone());
        move || table.lock().expect("no code panics while it holds the table").standing(clock.monotonic())
    }

    /// The same table as clients of a named listener see it.
    pub(crate) fn at(&self, listener: Option<&str>) -> Self {
        Self { listener: listener.map(Arc::from), ..self.clone() }
    }

    /// The table and the time; held for a look-up or a change, never while waiting.
    fn table(&self) -> (MutexGuard<'_, Table>, Duration) {
        let table = self.table.lock().expect("no code panics while it holds the table");
        (table, self.clock.monotonic())
    }
}

#[tonic::async_trait]
impl name_server_server::NameServer for NameService {
    async fn register(&self, request: Request<RegisterRequest>) -> Answer<RegisterResponse> {
        let outcome = parse_claim(request.into_inner()).and_then(|claim| {
            let (mut table, now) = self.table();
            table.register(claim, now).map_err(|refused| status(code_of(&refused), refused.to_string()))
        });
        let v2::Status { code, message } = match outcome {
            Ok(()) => {
                self.metrics.claims_taken.count();
                ok()
            }
            Err(status) => {
                self.metrics.claims_refused.count();
                debug!(code = status.code, reason = status.message, "claim refused");
                status
            }
        };
        Ok(Response::new(RegisterResponse { code, message }))
    }

    async fn unregister(&self, request: Request<UnregisterRequest>) -> Answer<UnregisterResponse> {
        let UnregisterRequest { cluster, group, number } = request.into_inner();
        self.table().0.unregister(&cluster, &group, number);
        self.metrics.goodbyes.count();
        info!(group, number, "node left");
        let v2::Status { code, message } = ok();
        Ok(Response::new(UnregisterResponse { code, message }))
    }
}

/// # Errors
/// What is wrong with the request, as the code and words of the answer.
fn parse_claim(request: RegisterRequest) -> Result<Claim, v2::Status> {
    let bad = |message: String| status(Code::BadRequest, message);
    let RegisterRequest {
        cluster,
        group,
        number,
        term,
        leader,
        client_address,
        live,
        topics_version,
        topics,
        listeners,
    } = request;
    if cluster.is_empty() || group.is_empty() {
        return Err(bad("a registration names its cluster and its broker group".into()));
    }
    let live = if live.is_empty() { vec![client_address] } else { live };
    if listeners.len() > LISTENERS_MAX {
        return Err(bad(format!(
            "{} listeners are too many: a name server takes at most {LISTENERS_MAX}",
            listeners.len()
        )));
    }
    for address in live.iter().chain(listeners.iter().flat_map(|listener| &listener.live)) {
        parse_addresses(address).map_err(bad)?;
    }
    // A listener without a node has no route of its own.
    let listeners = listeners.into_iter().filter(|listener| !listener.name.is_empty() && !listener.live.is_empty());
    let listeners = listeners.map(|listener| (listener.name, listener.live)).collect();
    let topics = topics.into_iter().map(parse_topic).collect::<Result<_, _>>()?;
    Ok(Claim { cluster, group, number, term, leader, live, listeners, topics_version, topics })
}

fn parse_topic(topic: namesrv::TopicRoute) -> Result<(TopicName, Topic), v2::Status> {
    let namesrv::TopicRoute { name, queues, accept_message_types } = topic;
    let name = TopicName::parse(&name).map_err(|error| status(Code::IllegalTopic, error.to_string()))?;
    let queues = u16::try_from(queues).map_err(|_| {
        status(Code::BadRequest, format!("topic {name} claims {queues} queues, at most {} exist", u16::MAX))
    })?;
    Ok((name, Topic { queues, accept_message_types }))
}

fn code_of(refused: &NotClaimed) -> Code {
    match refused {
        NotClaimed::OtherCluster { .. } => Code::Forbidden,
        NotClaimed::OldTerm { .. } => Code::PreconditionFailed,
        NotClaimed::TooMany { .. } => Code::TooManyRequests,
    }
}

fn ok() -> v2::Status {
    status(Code::Ok, String::new())
}

fn status(code: Code, message: String) -> v2::Status {
    v2::Status { code: code.into(), message }
}

fn not_implemented(rpc: &str) -> Option<v2::Status> {
    Some(status(Code::NotImplemented, format!("a name server answers QueryRoute only; ask a broker for {rpc}")))
}

/// Every queue of the topic with the group that holds it, sorted by group name, then queue id.
fn message_queues(topic: &v2::Resource, routes: Vec<GroupRoute>) -> Vec<v2::MessageQueue> {
    let mut queues = Vec::with_capacity(routes.iter().map(|route| usize::from(route.topic.queues)).sum());
    for route in routes {
        let broker = v2::Broker { name: route.group, id: 0, endpoints: Some(endpoints(&route.live)) };
        queues.extend((0..route.topic.queues).map(|id| v2::MessageQueue {
            topic: Some(topic.clone()),
            id: id.into(),
            permission: v2::Permission::ReadWrite.into(),
            broker: Some(broker.clone()),
            accept_message_types: route.topic.accept_message_types.clone(),
        }));
    }
    queues
}

/// Addresses as the wire has them; the scheme is that of all hosts together.
fn endpoints(live: &[String]) -> v2::Endpoints {
    let addresses: Vec<_> = live.iter().filter_map(|address| split_address(address)).collect();
    let mut scheme = None;
    for v2::Address { host, .. } in &addresses {
        let this = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => AddressScheme::IPv4,
            Ok(IpAddr::V6(_)) => AddressScheme::IPv6,
            Err(_) => AddressScheme::DomainName,
        };
        scheme = Some(if scheme.is_none_or(|before| before == this) { this } else { AddressScheme::DomainName });
    }
    v2::Endpoints { scheme: scheme.unwrap_or_default().into(), addresses }
}

/// `[::1]:80` and `host:80` in two parts. Claims were checked when they came, so nothing is lost here.
fn split_address(address: &str) -> Option<v2::Address> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(v2::Address { host, port: port.parse().ok()? })
}

#[tonic::async_trait]
impl messaging_service_server::MessagingService for NameService {
    async fn query_route(&self, request: Request<v2::QueryRouteRequest>) -> Answer<v2::QueryRouteResponse> {
        let topic = request.into_inner().topic.unwrap_or_default();
        let answer = match TopicName::parse(&topic.name) {
            Err(error) => v2::QueryRouteResponse {
                status: Some(status(Code::IllegalTopic, error.to_string())),
                message_queues: Vec::new(),
            },
            Ok(name) => {
                let routes = {
                    let (table, now) = self.table();
                    table.route(&name, self.listener.as_deref(), now)
                };
                let message_queues = message_queues(&topic, routes);
                let status = if message_queues.is_empty() {
                    self.metrics.routes_unknown.count();
                    status(Code::TopicNotFound, format!("no broker group has registered topic {name}; create it first"))
                } else {
                    self.metrics.routes_told.count();
                    ok()
                };
                v2::QueryRouteResponse { status: Some(status), message_queues }
            }
        };
        Ok(Response::new(answer))
    }

    type ReceiveMessageStream = Once<Result<v2::ReceiveMessageResponse, tonic::Status>>;

    async fn receive_message(&self, _: Request<v2::ReceiveMessageRequest>) -> Answer<Self::ReceiveMessageStream> {
        let content = not_implemented("ReceiveMessage").map(v2::receive_message_response::Content::Status);
        Ok(Response::new(tokio_stream::once(Ok(v2::ReceiveMessageResponse { content }))))
    }

    type PullMessageStream = Once<Result<v2::PullMessageResponse, tonic::Status>>;

    async fn pull_message(&self, _: Request<v2::PullMessageRequest>) -> Answer<Self::PullMessageStream> {
        let content = not_implemented("PullMessage").map(v2::pull_message_response::Content::Status);
        Ok(Response::new(tokio_stream::once(Ok(v2::PullMessageResponse { content }))))
    }

    type TelemetryStream = Once<Result<v2::TelemetryCommand, tonic::Status>>;

    async fn telemetry(&self, _: Request<Streaming<v2::TelemetryCommand>>) -> Answer<Self::TelemetryStream> {
        let command = v2::TelemetryCommand { status: not_implemented("Telemetry"), command: None };
        Ok(Response::new(tokio_stream::once(Ok(command))))
    }

    // The rest of the protocol, in its order.

    async fn heartbeat(&self, _: Request<v2::HeartbeatRequest>) -> Answer<v2::HeartbeatResponse> {
        Ok(Response::new(v2::HeartbeatResponse { status: not_implemented("Heartbeat") }))
    }

    async fn send_message(&self, _: Request<v2::SendMessageRequest>) -> Answer<v2::SendMessageResponse> {
        Ok(Response::new(v2::SendMessageResponse { status: not_implemented("SendMessage"), ..Default::default() }))
    }

    async fn query_assignment(&self, _: Request<v2::QueryAssignmentRequest>) -> Answer<v2::QueryAssignmentResponse> {
        Ok(Response::new(v2::QueryAssignmentResponse {
            status: not_implemented("QueryAssignment"),
            ..Default::default()
        }))
    }

    async fn ack_message(&self, _: Request<v2::AckMessageRequest>) -> Answer<v2::AckMessageResponse> {
        Ok(Response::new(v2::AckMessageResponse { status: not_implemented("AckMessage"), ..Default::default() }))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        _: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Answer<v2::ForwardMessageToDeadLetterQueueResponse> {
        Ok(Response::new(v2::ForwardMessageToDeadLetterQueueResponse {
            status: not_implemented("ForwardMessageToDeadLetterQueue"),
        }))
    }

    async fn update_offset(&self, _: Request<v2::UpdateOffsetRequest>) -> Answer<v2::UpdateOffsetResponse> {
        Ok(Response::new(v2::UpdateOffsetResponse { status: not_implemented("UpdateOffset") }))
    }

    async fn get_offset(&self, _: Request<v2::GetOffsetRequest>) -> Answer<v2::GetOffsetResponse> {
        Ok(Response::new(v2::GetOffsetResponse { status: not_implemented("GetOffset"), ..Default::default() }))
    }

    async fn query_offset(&self, _: Request<v2::QueryOffsetRequest>) -> Answer<v2::QueryOffsetResponse> {
        Ok(Response::new(v2::QueryOffsetResponse { status: not_implemented("QueryOffset"), ..Default::default() }))
    }

    async fn end_transaction(&self, _: Request<v2::EndTransactionRequest>) -> Answer<v2::EndTransactionResponse> {
        Ok(Response::new(v2::EndTransactionResponse { status: not_implemented("EndTransaction") }))
    }

    async fn notify_client_termination(
        &self,
        _: Request<v2::NotifyClientTerminationRequest>,
    ) -> Answer<v2::NotifyClientTerminationResponse> {
        Ok(Response::new(v2::NotifyClientTerminationResponse { status: not_implemented("NotifyClientTermination") }))
    }

    async fn change_invisible_duration(
        &self,
        _: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Answer<v2::ChangeInvisibleDurationResponse> {
        Ok(Response::new(v2::ChangeInvisibleDurationResponse {
            status: not_implemented("ChangeInvisibleDuration"),
            ..Default::default()
        }))
    }

    async fn recall_message(&self, _: Request<v2::RecallMessageRequest>) -> Answer<v2::RecallMessageResponse> {
        Ok(Response::new(v2::RecallMessageResponse { status: not_implemented("RecallMessage"), ..Default::default() }))
    }

    async fn sync_lite_subscription(
        &self,
        _: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Answer<v2::SyncLiteSubscriptionResponse> {
        Ok(Response::new(v2::SyncLiteSubscriptionResponse { status: not_implemented("SyncLiteSubscription") }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(live: &[&str]) -> RegisterRequest {
        RegisterRequest {
            cluster: "c".into(),
            group: "a".into(),
            number: 1,
            client_address: "10.0.0.1:8081".into(),
            live: live.iter().map(|&address| address.to_owned()).collect(),
            ..RegisterRequest::default()
        }
    }

    #[test]
    fn a_claim_without_live_nodes_stands_for_its_own_node() {
        assert_eq!(parse_claim(request(&[])).expect("valid").live, ["10.0.0.1:8081"]);
    }

    #[test]
    fn a_claim_that_cannot_be_right_is_refused_with_its_reason() {
        let code = |request| parse_claim(request).expect_err("refused").code;
        let topic = |name: &str, queues| namesrv::TopicRoute { name: name.into(), queues, ..Default::default() };
        assert_eq!(code(RegisterRequest { cluster: String::new(), ..request(&[]) }), 40000);
        assert_eq!(code(request(&["10.0.0.1"])), 40000);
        let listener = |live: &str| namesrv::ListenerRoute { name: "host".into(), live: vec![live.into()] };
        assert_eq!(code(RegisterRequest { listeners: vec![listener("10.0.0.1")], ..request(&[]) }), 40000);
        assert_eq!(code(RegisterRequest { listeners: vec![listener("10.0.0.1:1"); 65], ..request(&[]) }), 40000);
        assert_eq!(code(RegisterRequest { topics: vec![topic("a/b", 8)], ..request(&[]) }), 40002);
        assert_eq!(code(RegisterRequest { topics: vec![topic("t", 70_000)], ..request(&[]) }), 40000);
    }

    #[test]
    fn the_scheme_is_that_of_all_hosts_together() {
        let scheme = |live: &[&str]| {
            let live: Vec<_> = live.iter().map(|&address| address.to_owned()).collect();
            endpoints(&live).scheme()
        };
        assert_eq!(scheme(&["10.0.0.1:1", "10.0.0.2:1"]), AddressScheme::IPv4);
        assert_eq!(scheme(&["[::1]:1", "[fe80::2]:1"]), AddressScheme::IPv6);
        assert_eq!(scheme(&["10.0.0.1:1", "broker-2:1"]), AddressScheme::DomainName);
        assert_eq!(scheme(&["10.0.0.1:1", "[::1]:1"]), AddressScheme::DomainName);
    }
}
