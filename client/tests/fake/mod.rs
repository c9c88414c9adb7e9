//! A broker group that answers by script, on a network of memory: what a test says happens, and everything asked is written down.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a part of the tests, of which each file uses its share"
)]

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream::BoxStream;
use quorate_client::{Client, ClientConfig, Doors};
use quorate_proto::{
    admin::{self, broker_admin_server::BrokerAdminServer},
    doors::{BoxFuture, Net, NetListener, Stream},
    time::SystemClock,
    v2::{self, messaging_service_server::MessagingServiceServer},
};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

/// What a node does with a send, a receive, an ack or an operator's change.
#[derive(Clone, Debug)]
pub enum Answer {
    /// All is well.
    Fine,
    /// gRPC OK with this code for the whole call.
    Code(i32),
    /// One code per message or entry.
    Entries(Vec<i32>),
    /// Nothing, ever.
    Silence,
    /// The process dies while it works on the call.
    Death,
    /// These bodies, after this long; then the status, or a death before it.
    Deliver { after: Duration, bodies: Vec<&'static str>, dies: bool },
}

/// The whole group: script and record.
#[derive(Default)]
pub struct Cluster {
    nodes: Mutex<HashMap<String, Node>>,
    dials: Mutex<Vec<String>>,
    pub script: Mutex<VecDeque<Answer>>,
    /// Addresses of the route, leader first.
    pub route: Mutex<Vec<String>>,
    pub sends: Mutex<Vec<(String, v2::SendMessageRequest)>>,
    pub receives: Mutex<Vec<(String, v2::ReceiveMessageRequest)>>,
    pub pulls: Mutex<Vec<(String, v2::PullMessageRequest)>>,
    /// Where the consumer group is, by queue.
    pub places: Mutex<HashMap<i32, i64>>,
    pub calls: Mutex<Vec<(String, &'static str)>>,
    headers: Mutex<Vec<(&'static str, tonic::metadata::MetadataMap)>>,
    pub settings: Mutex<Vec<v2::Settings>>,
    pub ends: Mutex<Vec<(String, v2::EndTransactionRequest)>>,
    /// Telemetry streams, oldest first.
    streams: Mutex<Vec<mpsc::UnboundedSender<Result<v2::TelemetryCommand, Status>>>>,
}

struct Node {
    incoming: mpsc::UnboundedSender<io::Result<Stream>>,
    wires: Vec<AbortOnDropHandle<()>>,
    _server: AbortOnDropHandle<()>,
}

impl Cluster {
    /// Nodes at these addresses, all in the route.
    pub fn start(addresses: &[&str]) -> Arc<Self> {
        let cluster = Arc::new(Self::default());
        *cluster.route.lock().unwrap() = addresses.iter().map(|address| (*address).to_owned()).collect();
        addresses.iter().for_each(|address| cluster.revive(address));
        cluster
    }

    /// (Re)starts a node.
    pub fn revive(self: &Arc<Self>, address: &str) {
        let (incoming, connections) = mpsc::unbounded_channel();
        let voice = Voice { address: address.to_owned(), cluster: self.clone() };
        let services =
            Services { messaging: MessagingServiceServer::new(voice.clone()), admin: BrokerAdminServer::new(voice) };
        let connections = tokio_stream::wrappers::UnboundedReceiverStream::new(connections);
        let server = tonic::transport::Server::builder().serve_with_incoming(services, connections);
        let server = AbortOnDropHandle::new(tokio::spawn(async move { server.await.unwrap() }));
        self.nodes.lock().unwrap().insert(address.to_owned(), Node { incoming, wires: Vec::new(), _server: server });
    }

    /// Ends a node as SIGKILL does: the port closes and every connection breaks.
    pub fn kill(&self, address: &str) {
        self.nodes.lock().unwrap().remove(address);
    }

    pub fn say(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().extend(answers);
    }

    pub fn dials_to(&self, address: &str) -> usize {
        self.dials.lock().unwrap().iter().filter(|dial| *dial == address).count()
    }

    pub fn calls_of(&self, method: &str) -> Vec<String> {
        self.calls.lock().unwrap().iter().filter(|(_, name)| *name == method).map(|(node, _)| node.clone()).collect()
    }

    /// A header of the last call of a method.
    pub fn header(&self, method: &str, name: &str) -> Option<String> {
        let headers = self.headers.lock().unwrap();
        let (_, headers) = headers.iter().rfind(|(of, _)| *of == method)?;
        headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    /// A client of these endpoints.
    pub fn client(self: &Arc<Self>, endpoints: &str) -> Client {
        self.client_with(endpoints, |_| {})
    }

    pub fn client_with(self: &Arc<Self>, endpoints: &str, change: impl FnOnce(&mut ClientConfig)) -> Client {
        let mut config = ClientConfig::parse(endpoints).unwrap();
        config.seed = Some(7);
        change(&mut config);
        let doors = Doors { net: Arc::new(MemoryNet(self.clone())), clock: Arc::new(SystemClock::new()) };
        Client::new(config, doors).unwrap()
    }

    /// Asks the client of the newest telemetry stream what became of a half message.
    pub fn check(&self, topic: &str, body: &'static str, transaction_id: &str) {
        let message = v2::Message {
            topic: Some(v2::Resource { name: topic.to_owned(), ..v2::Resource::default() }),
            body: bytes::Bytes::from_static(body.as_bytes()),
            system_properties: Some(v2::SystemProperties {
                message_id: format!("id of {body}"),
                ..v2::SystemProperties::default()
            }),
            ..v2::Message::default()
        };
        let transaction_id = transaction_id.to_owned();
        let check = v2::RecoverOrphanedTransactionCommand { message: Some(message), transaction_id };
        let command = v2::telemetry_command::Command::RecoverOrphanedTransactionCommand(check);
        let command = v2::TelemetryCommand { status: None, command: Some(command) };
        self.streams.lock().unwrap().last().unwrap().send(Ok(command)).unwrap();
    }

    /// The nodes and message ids of all sends so far.
    pub fn sent(&self) -> Vec<(String, String)> {
        let id = |request: &v2::SendMessageRequest| request.messages[0].system_properties.clone().unwrap().message_id;
        self.sends.lock().unwrap().iter().map(|(node, request)| (node.clone(), id(request))).collect()
    }
}

/// Connects to the nodes of a cluster; an address without a node refuses.
struct MemoryNet(Arc<Cluster>);

impl Net for MemoryNet {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            self.0.dials.lock().unwrap().push(address.to_owned());
            let mut nodes = self.0.nodes.lock().unwrap();
            let node = nodes.get_mut(address).ok_or(io::ErrorKind::ConnectionRefused)?;
            let (client, mut left) = tokio::io::duplex(1 << 16);
            let (mut right, server) = tokio::io::duplex(1 << 16);
            let wire = tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut left, &mut right).await;
            });
            node.wires.push(AbortOnDropHandle::new(wire));
            let accepted = Stream::new(server, "client".to_owned());
            node.incoming.send(Ok(accepted)).map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Stream::new(client, address.to_owned()))
        })
    }

    fn listen<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn NetListener>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
}

/// Both services of a node's port.
#[derive(Clone)]
struct Services {
    messaging: MessagingServiceServer<Voice>,
    admin: BrokerAdminServer<Voice>,
}

impl tower::Service<http::Request<tonic::body::Body>> for Services {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        match request.uri().path().starts_with("/quorate.admin.") {
            true => self.admin.call(request),
            false => self.messaging.call(request),
        }
    }
}

/// One node's voice.
#[derive(Clone)]
struct Voice {
    address: String,
    cluster: Arc<Cluster>,
}

impl Voice {
    fn note<T>(&self, method: &'static str, request: &Request<T>) {
        self.cluster.calls.lock().unwrap().push((self.address.clone(), method));
        self.cluster.headers.lock().unwrap().push((method, request.metadata().clone()));
    }

    /// The next answer of the script; silences and deaths never return.
    async fn answer(&self) -> Answer {
        let next = self.cluster.script.lock().unwrap().pop_front().unwrap_or(Answer::Fine);
        match next {
            Answer::Silence => std::future::pending().await,
            Answer::Death => {
                self.cluster.kill(&self.address);
                std::future::pending().await
            }
            other => other,
        }
    }
}

fn status(code: i32) -> v2::Status {
    v2::Status { code, message: format!("code {code}") }
}

/// The status of a whole call.
fn verdict(answer: &Answer) -> v2::Status {
    match answer {
        Answer::Code(code) => status(*code),
        Answer::Entries(_) => status(30000),
        _ => status(20000),
    }
}

fn codes(answer: &Answer, count: usize) -> Vec<i32> {
    match answer {
        Answer::Code(_) => Vec::new(),
        Answer::Entries(codes) => codes.clone(),
        _ => vec![20000; count],
    }
}

#[tonic::async_trait]
impl v2::messaging_service_server::MessagingService for Voice {
    type ReceiveMessageStream = BoxStream<'static, Result<v2::ReceiveMessageResponse, Status>>;
    type PullMessageStream = BoxStream<'static, Result<v2::PullMessageResponse, Status>>;
    type TelemetryStream = BoxStream<'static, Result<v2::TelemetryCommand, Status>>;

    async fn query_route(&self, r: Request<v2::QueryRouteRequest>) -> Result<Response<v2::QueryRouteResponse>, Status> {
        self.note("route", &r);
        let topic = r.into_inner().topic;
        if topic.as_ref().is_some_and(|topic| topic.name == "missing") {
            return Ok(Response::new(v2::QueryRouteResponse {
                status: Some(status(40402)),
                message_queues: Vec::new(),
            }));
        }
        let address = |text: &String| {
            let (host, port) = text.rsplit_once(':').unwrap();
            v2::Address { host: host.to_owned(), port: port.parse().unwrap() }
        };
        let addresses = self.cluster.route.lock().unwrap().iter().map(address).collect();
        let endpoints = v2::Endpoints { scheme: v2::AddressScheme::IPv4.into(), addresses };
        let broker = v2::Broker { name: "g".to_owned(), id: 0, endpoints: Some(endpoints) };
        let queue = |id| v2::MessageQueue {
            topic: topic.clone(),
            id,
            permission: v2::Permission::ReadWrite.into(),
            broker: Some(broker.clone()),
            accept_message_types: vec![v2::MessageType::Normal.into()],
        };
        let message_queues = (0..4).map(queue).collect();
        Ok(Response::new(v2::QueryRouteResponse { status: Some(status(20000)), message_queues }))
    }

    async fn heartbeat(&self, r: Request<v2::HeartbeatRequest>) -> Result<Response<v2::HeartbeatResponse>, Status> {
        self.note("heartbeat", &r);
        Ok(Response::new(v2::HeartbeatResponse { status: Some(status(20000)) }))
    }

    async fn send_message(
        &self,
        r: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        self.note("send", &r);
        let request = r.into_inner();
        let count = request.messages.len();
        let handle = |message: &v2::Message| {
            let delayed = message.system_properties.as_ref().is_some_and(|system| system.delivery_timestamp.is_some());
            if delayed { "handle".to_owned() } else { String::new() }
        };
        let transaction = |message: &v2::Message| {
            let half = message.system_properties.as_ref().is_some_and(|system| system.message_type == 4);
            if half { "transaction".to_owned() } else { String::new() }
        };
        let handles: Vec<_> = request.messages.iter().map(|message| (handle(message), transaction(message))).collect();
        self.cluster.sends.lock().unwrap().push((self.address.clone(), request));
        let answer = self.answer().await;
        let entry = |(code, (recall_handle, transaction_id))| v2::SendResultEntry {
            status: Some(status(code)),
            offset: 5,
            recall_handle,
            transaction_id,
            ..v2::SendResultEntry::default()
        };
        let entries = codes(&answer, count).into_iter().zip(handles).map(entry).collect();
        Ok(Response::new(v2::SendMessageResponse { status: Some(verdict(&answer)), entries }))
    }

    async fn receive_message(
        &self,
        r: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<Self::ReceiveMessageStream>, Status> {
        self.note("receive", &r);
        self.cluster.receives.lock().unwrap().push((self.address.clone(), r.into_inner()));
        let part = |content| Ok(v2::ReceiveMessageResponse { content: Some(content) });
        let (address, cluster) = (self.address.clone(), self.cluster.clone());
        let parts: BoxStream<'static, _> = match self.answer().await {
            Answer::Deliver { after, bodies, dies } => {
                let message = |(offset, body): (usize, &str)| v2::Message {
                    topic: Some(v2::Resource { name: "t".to_owned(), ..v2::Resource::default() }),
                    body: bytes::Bytes::copy_from_slice(body.as_bytes()),
                    system_properties: Some(v2::SystemProperties {
                        message_id: format!("id-{body}"),
                        receipt_handle: Some(format!("handle-{body}")),
                        queue_offset: Some(offset as i64),
                        delivery_attempt: Some(1),
                        ..v2::SystemProperties::default()
                    }),
                    ..v2::Message::default()
                };
                let messages: Vec<_> = bodies.into_iter().enumerate().map(message).collect();
                Box::pin(async_parts(after, messages, dies, move || cluster.kill(&address)))
            }
            answer => {
                let code = if let Answer::Code(code) = answer { code } else { 40401 };
                let content = v2::receive_message_response::Content::Status(status(code));
                Box::pin(futures_util::stream::iter([part(content)]))
            }
        };
        Ok(Response::new(parts))
    }

    async fn ack_message(&self, r: Request<v2::AckMessageRequest>) -> Result<Response<v2::AckMessageResponse>, Status> {
        self.note("ack", &r);
        let count = r.into_inner().entries.len();
        let answer = self.answer().await;
        let entry =
            |code| v2::AckMessageResultEntry { status: Some(status(code)), ..v2::AckMessageResultEntry::default() };
        let entries = codes(&answer, count).into_iter().map(entry).collect();
        Ok(Response::new(v2::AckMessageResponse { status: Some(verdict(&answer)), entries }))
    }

    async fn telemetry(
        &self,
        r: Request<tonic::Streaming<v2::TelemetryCommand>>,
    ) -> Result<Response<Self::TelemetryStream>, Status> {
        use futures_util::StreamExt as _;
        self.note("telemetry", &r);
        let (cluster, incoming) = (self.cluster.clone(), r.into_inner());
        let answers = incoming.map(move |command| {
            let command = command?;
            if let Some(v2::telemetry_command::Command::Settings(settings)) = &command.command {
                cluster.settings.lock().unwrap().push(settings.clone());
            }
            Ok(v2::TelemetryCommand { status: Some(status(20000)), ..command })
        });
        let (sender, pushed) = mpsc::unbounded_channel();
        self.cluster.streams.lock().unwrap().push(sender);
        let pushed = tokio_stream::wrappers::UnboundedReceiverStream::new(pushed);
        Ok(Response::new(Box::pin(futures_util::stream::select(answers, pushed))))
    }

    async fn notify_client_termination(
        &self,
        r: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<Response<v2::NotifyClientTerminationResponse>, Status> {
        self.note("farewell", &r);
        Ok(Response::new(v2::NotifyClientTerminationResponse { status: Some(status(20000)) }))
    }

    async fn change_invisible_duration(
        &self,
        r: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<v2::ChangeInvisibleDurationResponse>, Status> {
        self.note("change", &r);
        let answer = self.answer().await;
        let receipt_handle = format!("{}+", r.into_inner().receipt_handle);
        Ok(Response::new(v2::ChangeInvisibleDurationResponse { status: Some(verdict(&answer)), receipt_handle }))
    }

    async fn query_assignment(
        &self,
        _: Request<v2::QueryAssignmentRequest>,
    ) -> Result<Response<v2::QueryAssignmentResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        _: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn pull_message(
        &self,
        r: Request<v2::PullMessageRequest>,
    ) -> Result<Response<Self::PullMessageStream>, Status> {
        use v2::pull_message_response::Content;
        self.note("pull", &r);
        let request = r.into_inner();
        self.cluster.pulls.lock().unwrap().push((self.address.clone(), request.clone()));
        let (address, cluster) = (self.address.clone(), self.cluster.clone());
        let answer = self.answer().await;
        let (code, bodies, dies) = match answer {
            Answer::Deliver { after, bodies, dies } => {
                tokio::time::sleep(after).await;
                (20000, bodies, dies)
            }
            Answer::Code(code) => (code, Vec::new(), false),
            _ => (40401, Vec::new(), false),
        };
        let next = request.offset + bodies.len() as i64;
        let mut parts = vec![Content::Status(status(code))];
        parts.extend(bodies.into_iter().zip(request.offset..).map(|(body, offset)| {
            Content::Message(v2::Message {
                topic: request.message_queue.clone().unwrap().topic,
                body: bytes::Bytes::copy_from_slice(body.as_bytes()),
                system_properties: Some(v2::SystemProperties {
                    message_id: format!("id-{body}"),
                    queue_id: request.message_queue.as_ref().unwrap().id,
                    queue_offset: Some(offset),
                    ..v2::SystemProperties::default()
                }),
                ..v2::Message::default()
            })
        }));
        let last = async move {
            if dies {
                tokio::time::sleep(Duration::from_millis(1)).await;
                cluster.kill(&address);
                std::future::pending::<()>().await;
            }
            Content::NextOffset(next)
        };
        use futures_util::StreamExt as _;
        let parts = futures_util::stream::iter(parts).chain(futures_util::stream::once(last));
        Ok(Response::new(Box::pin(parts.map(|content| Ok(v2::PullMessageResponse { content: Some(content) })))))
    }

    async fn update_offset(
        &self,
        r: Request<v2::UpdateOffsetRequest>,
    ) -> Result<Response<v2::UpdateOffsetResponse>, Status> {
        self.note("update", &r);
        let request = r.into_inner();
        let answer = self.answer().await;
        if !matches!(answer, Answer::Code(_)) {
            self.cluster.places.lock().unwrap().insert(request.message_queue.unwrap().id, request.offset);
        }
        Ok(Response::new(v2::UpdateOffsetResponse { status: Some(verdict(&answer)) }))
    }

    async fn get_offset(&self, r: Request<v2::GetOffsetRequest>) -> Result<Response<v2::GetOffsetResponse>, Status> {
        self.note("place", &r);
        let answer = self.answer().await;
        let place = self.cluster.places.lock().unwrap().get(&r.into_inner().message_queue.unwrap().id).copied();
        let status = if place.is_none() { status(40404) } else { verdict(&answer) };
        Ok(Response::new(v2::GetOffsetResponse { status: Some(status), offset: place.unwrap_or(0) }))
    }

    /// A queue begins at 100 and ends at 200, and the message of second `n` stands at 100 + `n`.
    async fn query_offset(
        &self,
        r: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Status> {
        self.note("query", &r);
        let request = r.into_inner();
        let offset = match request.query_offset_policy() {
            v2::QueryOffsetPolicy::Beginning => 100,
            v2::QueryOffsetPolicy::End => 200,
            v2::QueryOffsetPolicy::Timestamp => 100 + request.timestamp.unwrap().seconds,
        };
        Ok(Response::new(v2::QueryOffsetResponse { status: Some(verdict(&self.answer().await)), offset }))
    }

    async fn end_transaction(
        &self,
        r: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Status> {
        self.note("end", &r);
        self.cluster.ends.lock().unwrap().push((self.address.clone(), r.into_inner()));
        Ok(Response::new(v2::EndTransactionResponse { status: Some(verdict(&self.answer().await)) }))
    }

    async fn recall_message(
        &self,
        r: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Status> {
        self.note("recall", &r);
        let request = r.into_inner();
        let answer = self.answer().await;
        let message_id = format!("id of {} in {}", request.recall_handle, request.topic.unwrap_or_default().name);
        Ok(Response::new(v2::RecallMessageResponse { status: Some(verdict(&answer)), message_id }))
    }

    async fn sync_lite_subscription(
        &self,
        _: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Result<Response<v2::SyncLiteSubscriptionResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Messages after a while, then the status or the death of the node.
fn async_parts(
    after: Duration,
    messages: Vec<v2::Message>,
    dies: bool,
    die: impl FnOnce() + Send + 'static,
) -> impl futures_core::Stream<Item = Result<v2::ReceiveMessageResponse, Status>> + Send + 'static {
    use futures_util::StreamExt as _;
    use v2::receive_message_response::Content;
    let part = |content| Ok(v2::ReceiveMessageResponse { content: Some(content) });
    let first = futures_util::stream::once(async move {
        tokio::time::sleep(after).await;
        part(Content::DeliveryTimestamp(prost_types::Timestamp::default()))
    });
    let last = futures_util::stream::once(async move {
        if dies {
            tokio::time::sleep(Duration::from_millis(1)).await;
            die();
            std::future::pending::<()>().await;
        }
        part(Content::Status(status(20000)))
    });
    first.chain(futures_util::stream::iter(messages).map(move |message| part(Content::Message(message)))).chain(last)
}

fn outcome(answer: &Answer) -> admin::Outcome {
    let status = verdict(answer);
    admin::Outcome { code: status.code, message: status.message }
}

#[tonic::async_trait]
impl admin::broker_admin_server::BrokerAdmin for Voice {
    async fn create_topic(&self, r: Request<admin::CreateTopicRequest>) -> Result<Response<admin::Outcome>, Status> {
        self.note("create_topic", &r);
        Ok(Response::new(outcome(&self.answer().await)))
    }

    async fn delete_topic(
        &self,
        r: Request<admin::DeleteTopicRequest>,
    ) -> Result<Response<admin::DeleteTopicResponse>, Status> {
        self.note("delete_topic", &r);
        let admin::Outcome { code, message } = outcome(&self.answer().await);
        Ok(Response::new(admin::DeleteTopicResponse { code, message, ..Default::default() }))
    }

    async fn describe_group(
        &self,
        r: Request<admin::DescribeGroupRequest>,
    ) -> Result<Response<admin::DescribeGroupResponse>, Status> {
        self.note("describe_group", &r);
        let outcome = Some(outcome(&self.answer().await));
        Ok(Response::new(admin::DescribeGroupResponse { outcome, now_ms: 7, ..Default::default() }))
    }

    async fn reset_offsets(
        &self,
        r: Request<admin::ResetOffsetsRequest>,
    ) -> Result<Response<admin::ResetOffsetsResponse>, Status> {
        self.note("reset_offsets", &r);
        let outcome = Some(outcome(&self.answer().await));
        let queue =
            |place: admin::ResetPlace| admin::ResetQueue { id: place.queue, to: place.offset, ..Default::default() };
        let queues = r.into_inner().places.into_iter().map(queue).collect();
        Ok(Response::new(admin::ResetOffsetsResponse { outcome, queues }))
    }

    async fn describe_topic(
        &self,
        r: Request<admin::DescribeTopicRequest>,
    ) -> Result<Response<admin::DescribeTopicResponse>, Status> {
        self.note("describe_topic", &r);
        let outcome = outcome(&self.answer().await);
        let topic = admin::Topic { name: r.into_inner().name, queues: 4, ..admin::Topic::default() };
        Ok(Response::new(admin::DescribeTopicResponse { outcome: Some(outcome), topic: Some(topic) }))
    }

    async fn list_topics(
        &self,
        r: Request<admin::ListTopicsRequest>,
    ) -> Result<Response<admin::ListTopicsResponse>, Status> {
        self.note("list_topics", &r);
        let topic = |name: &str| admin::Topic { name: name.to_owned(), ..admin::Topic::default() };
        let outcome = outcome(&self.answer().await);
        Ok(Response::new(admin::ListTopicsResponse { outcome: Some(outcome), topics: vec![topic("b"), topic("a")] }))
    }

    async fn create_group(&self, r: Request<admin::CreateGroupRequest>) -> Result<Response<admin::Outcome>, Status> {
        self.note("create_group", &r);
        Ok(Response::new(outcome(&self.answer().await)))
    }

    async fn delete_group(&self, r: Request<admin::DeleteGroupRequest>) -> Result<Response<admin::Outcome>, Status> {
        self.note("delete_group", &r);
        Ok(Response::new(outcome(&self.answer().await)))
    }

    async fn list_groups(
        &self,
        r: Request<admin::ListGroupsRequest>,
    ) -> Result<Response<admin::ListGroupsResponse>, Status> {
        self.note("list_groups", &r);
        Ok(Response::new(admin::ListGroupsResponse { outcome: Some(outcome(&Answer::Fine)), groups: Vec::new() }))
    }

    async fn list_dead_letters(
        &self,
        r: Request<admin::ListDeadLettersRequest>,
    ) -> Result<Response<admin::ListDeadLettersResponse>, Status> {
        self.note("list_dead_letters", &r);
        let topic = |group: &str| admin::DeadLetterTopic { group: group.into(), ..admin::DeadLetterTopic::default() };
        let (outcome, topics) = (Some(outcome(&self.answer().await)), vec![topic("b"), topic("a")]);
        Ok(Response::new(admin::ListDeadLettersResponse { outcome, topics }))
    }

    async fn show_dead_letters(
        &self,
        r: Request<admin::ShowDeadLettersRequest>,
    ) -> Result<Response<admin::ShowDeadLettersResponse>, Status> {
        self.note("show_dead_letters", &r);
        let outcome = Some(outcome(&self.answer().await));
        let last = r.into_inner().after;
        Ok(Response::new(admin::ShowDeadLettersResponse { outcome, last, ..Default::default() }))
    }

    async fn redrive_dead_letters(
        &self,
        r: Request<admin::RedriveDeadLettersRequest>,
    ) -> Result<Response<admin::RedriveDeadLettersResponse>, Status> {
        self.note("redrive_dead_letters", &r);
        let outcome = Some(outcome(&self.answer().await));
        let result = |place| admin::Redriven { place: Some(place), ..admin::Redriven::default() };
        let results = r.into_inner().places.into_iter().map(result).collect();
        Ok(Response::new(admin::RedriveDeadLettersResponse { outcome, results }))
    }

    async fn list_transactions(
        &self,
        r: Request<admin::ListTransactionsRequest>,
    ) -> Result<Response<admin::ListTransactionsResponse>, Status> {
        self.note("list_transactions", &r);
        let request = r.into_inner();
        let transaction = admin::Transaction {
            topic: request.topic,
            transaction_id: format!("behind {}", request.after),
            ..admin::Transaction::default()
        };
        let outcome = Some(outcome(&self.answer().await));
        Ok(Response::new(admin::ListTransactionsResponse { outcome, transactions: vec![transaction], more: true }))
    }

    async fn end_transaction(
        &self,
        r: Request<admin::EndTransactionRequest>,
    ) -> Result<Response<admin::Outcome>, Status> {
        self.note("end_transaction", &r);
        Ok(Response::new(outcome(&self.answer().await)))
    }

    async fn cluster_status(
        &self,
        r: Request<admin::ClusterStatusRequest>,
    ) -> Result<Response<admin::ClusterStatusResponse>, Status> {
        self.note("cluster_status", &r);
        Ok(Response::new(admin::ClusterStatusResponse { outcome: Some(outcome(&Answer::Fine)), ..Default::default() }))
    }

    async fn transfer_leadership(
        &self,
        r: Request<admin::TransferLeadershipRequest>,
    ) -> Result<Response<admin::TransferLeadershipResponse>, Status> {
        self.note("transfer_leadership", &r);
        let outcome = Some(outcome(&self.answer().await));
        let to = r.into_inner().node;
        Ok(Response::new(admin::TransferLeadershipResponse { outcome, from: 1, to, term: 7, took_us: 9_000 }))
    }

    async fn change_members(
        &self,
        r: Request<admin::ChangeMembersRequest>,
    ) -> Result<Response<admin::ChangeMembersResponse>, Status> {
        self.note("change_members", &r);
        let outcome = Some(outcome(&self.answer().await));
        let asked = r.into_inner();
        let note = format!("{:?} for {}", asked.add.map(|add| (add.number, add.peer_address)), asked.remove);
        let state = admin::ChangeState::Done as i32;
        Ok(Response::new(admin::ChangeMembersResponse { outcome, state, note, ..Default::default() }))
    }

    async fn leader_history(
        &self,
        r: Request<admin::LeaderHistoryRequest>,
    ) -> Result<Response<admin::LeaderHistoryResponse>, Status> {
        self.note("leader_history", &r);
        let node = |number| admin::NodeHistory { number, ..admin::NodeHistory::default() };
        let outcome = Some(outcome(&Answer::Fine));
        Ok(Response::new(admin::LeaderHistoryResponse { outcome, nodes: vec![node(2), node(1)] }))
    }
}
