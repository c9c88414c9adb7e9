//! Several name servers, as brokers and clients see them: real listeners on loopback, and a clock that the test moves.
//!
//! They are equal and do not know each other, so everything below is about what each of them has heard: kill two of three, cut
//! one off from the brokers, let a broker die without a word.

use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quorate_namesrv::{Bound, Doors, NamedListener, NamesrvConfig, RunError, run};
use quorate_proto::{
    doors::{BoxFuture, Net, NetListener, Stream, TcpNet, connector},
    namesrv::{
        ListenerRoute, RegisterRequest, RegisterResponse, TopicRoute, UnregisterRequest,
        name_server_client::NameServerClient,
    },
    time::{Clock, Timestamp},
    v2::{self, Code, messaging_service_client::MessagingServiceClient},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

#[tokio::test]
async fn with_two_of_three_killed_the_third_serves_routes_and_registrations() {
    let mut house = House::new(3).await;
    house.tell_all(&broker(1, 1)).await;
    house.kill(0).await;
    house.kill(1).await;

    // The client has all three in its configuration, the dead ones first.
    let route = route(&house.net, &house.addresses(), "orders").await;
    assert_eq!(code(&route), Code::Ok);
    assert_eq!(queues(&route), ["a/0@10.0.0.1:8081", "a/1@10.0.0.1:8081"]);

    let grown = RegisterRequest { term: 2, topics: vec![topic("orders", 1), topic("new", 1)], ..broker(1, 2) };
    house.tell(2, &grown).await.expect("the third still takes registrations");
    assert_eq!(queues(&house.ask(2, "new").await), ["a/0@10.0.0.1:8081"]);
}

#[tokio::test]
async fn one_cut_off_from_the_brokers_forgets_while_the_others_serve_and_agrees_again_after() {
    let house = House::new(3).await;
    house.tell_all(&broker(1, 1)).await;
    let before = house.ask(0, "orders").await;
    house.net.cut(&house.servers[2].address);

    for _ in 0..11 {
        house.clock.advance(Duration::from_secs(1));
        house.tell_all(&broker(1, 1)).await;
    }
    assert_eq!(house.ask(0, "orders").await, before);
    assert_eq!(house.ask(1, "orders").await, before);
    house.net.heal();
    assert_eq!(code(&house.ask(2, "orders").await), Code::TopicNotFound);

    house.tell_all(&broker(1, 1)).await;
    assert_eq!(house.ask(2, "orders").await, before);
}

#[tokio::test]
async fn a_broker_that_dies_without_a_word_is_forgotten_after_ten_seconds() {
    let house = House::new(1).await;
    house.tell(0, &broker(1, 1)).await.expect("registered");
    house.clock.advance(Duration::from_millis(9_999));
    assert_eq!(code(&house.ask(0, "orders").await), Code::Ok);
    house.clock.advance(Duration::from_millis(1));
    assert_eq!(code(&house.ask(0, "orders").await), Code::TopicNotFound);
}

#[tokio::test]
async fn a_broker_that_says_goodbye_is_forgotten_at_once() {
    let house = House::new(1).await;
    house.tell(0, &broker(1, 1)).await.expect("registered");
    let goodbye = UnregisterRequest { cluster: "c".into(), group: "a".into(), number: 1 };
    let channel = channel(&house.net, &house.addresses());
    let answer = NameServerClient::new(channel).unregister(goodbye).await.expect("answered").into_inner();
    assert_eq!(answer.code, Code::Ok as i32);
    assert_eq!(code(&house.ask(0, "orders").await), Code::TopicNotFound);
}

/// As at a broker: an error of gRPC itself would cost official clients their connection.
#[tokio::test]
async fn what_cannot_be_read_is_answered_in_band_to_clients_and_as_wrong_to_brokers() {
    let house = House::new(1).await;
    let channel = || channel(&house.net, &house.addresses());
    // A text where a message belongs.
    let garbage = || UnregisterRequest { cluster: "c".into(), ..UnregisterRequest::default() };
    let large = || UnregisterRequest { cluster: "c".repeat(17 << 20), ..UnregisterRequest::default() };
    let route = "/apache.rocketmq.v2.MessagingService/QueryRoute";
    for (request, expected) in [(garbage(), 40000), (large(), 41300)] {
        let answer: v2::QueryRouteResponse = call(channel(), route, request).await.expect("in-band");
        let status = answer.status.expect("set");
        assert!(status.code == expected && status.message.contains("nothing was done"), "{status:?}");
    }
    let register = "/quorate.namesrv.NameServer/Register";
    // Field 1 is a text, and this one's is a message whose bytes are none.
    let odd = v2::QueryRouteRequest {
        topic: Some(v2::Resource { resource_namespace: "\u{7ff}".repeat(100), ..v2::Resource::default() }),
        endpoints: None,
    };
    let answer: Result<RegisterResponse, _> = call(channel(), register, odd).await;
    assert_eq!(answer.expect_err("not read").code(), tonic::Code::InvalidArgument);
    let answer: Result<RegisterResponse, _> = call(channel(), register, large()).await;
    let status = answer.expect_err("not read");
    assert!(
        status.code() == tonic::Code::ResourceExhausted && status.message().contains("nothing was done"),
        "{status}"
    );
}

#[tokio::test]
async fn groups_that_share_a_topic_are_one_route_sorted_by_group_then_queue() {
    let house = House::new(1).await;
    for (group, address) in [("b", "10.0.0.9:1"), ("a", "10.0.0.1:8081")] {
        let group =
            RegisterRequest { group: group.into(), client_address: address.into(), live: vec![], ..broker(1, 1) };
        house.tell(0, &group).await.expect("registered");
    }
    assert_eq!(
        queues(&house.ask(0, "orders").await),
        ["a/0@10.0.0.1:8081", "a/1@10.0.0.1:8081", "b/0@10.0.0.9:1", "b/1@10.0.0.9:1"]
    );
}

#[tokio::test]
async fn a_route_lists_the_live_nodes_as_their_leader_does() {
    let house = House::new(1).await;
    let live = ["10.0.0.2:8081", "10.0.0.1:8081", "10.0.0.3:8081"].map(str::to_owned).to_vec();
    house.tell(0, &RegisterRequest { leader: true, live: live.clone(), ..broker(2, 7) }).await.expect("registered");
    house.tell(0, &broker(1, 7)).await.expect("registered");
    let route = house.ask(0, "orders").await;
    let broker = route.message_queues[0].broker.clone().expect("a broker");
    let endpoints = broker.endpoints.expect("its endpoints");
    assert_eq!((broker.name.as_str(), broker.id), ("a", 0));
    assert_eq!(endpoints.scheme(), v2::AddressScheme::IPv4);
    let addresses: Vec<_> = endpoints.addresses.iter().map(|one| format!("{}:{}", one.host, one.port)).collect();
    assert_eq!(addresses, live);
}

#[tokio::test]
async fn another_cluster_and_an_older_term_are_refused_with_a_reason() {
    let house = House::new(1).await;
    house.tell(0, &broker(1, 5)).await.expect("registered");
    let (code, reason) =
        house.tell(0, &RegisterRequest { cluster: "other".into(), ..broker(1, 5) }).await.expect_err("no");
    assert_eq!(code, Code::Forbidden as i32, "{reason}");
    let (code, reason) = house.tell(0, &broker(1, 4)).await.expect_err("no");
    assert_eq!(code, Code::PreconditionFailed as i32, "{reason}");
}

#[tokio::test]
async fn everything_but_routes_is_answered_not_implemented_inside_the_protocol() {
    let house = House::new(1).await;
    let mut client = MessagingServiceClient::new(channel(&house.net, &house.addresses()));
    let sent = client.send_message(v2::SendMessageRequest::default()).await.expect("no gRPC error").into_inner();
    assert_eq!(sent.status.expect("a status").code(), Code::NotImplemented);

    let mut received =
        client.receive_message(v2::ReceiveMessageRequest::default()).await.expect("a stream").into_inner();
    let first = received.message().await.expect("no gRPC error").expect("one item");
    let Some(v2::receive_message_response::Content::Status(status)) = first.content else { panic!("{first:?}") };
    assert_eq!(status.code(), Code::NotImplemented);

    let commands = tokio_stream::once(v2::TelemetryCommand::default());
    let mut answers = client.telemetry(commands).await.expect("a stream").into_inner();
    let first = answers.message().await.expect("no gRPC error").expect("one item");
    assert_eq!(first.status.expect("a status").code(), Code::NotImplemented);

    for bad in ["", "a/b", "SCHEDULE_TOPIC_XXXX"] {
        assert_eq!(code(&house.ask(0, bad).await), Code::IllegalTopic, "{bad:?}");
    }
}

#[tokio::test]
async fn each_listener_answers_with_the_addresses_for_its_clients() {
    let house = House::new(1).await;
    let listener = ListenerRoute { name: "host".into(), live: vec!["127.0.0.1:8082".into(), "127.0.0.1:8081".into()] };
    house.tell(0, &RegisterRequest { listeners: vec![listener], ..broker(1, 1) }).await.expect("registered");
    assert_eq!(queues(&house.ask(0, "orders").await), ["a/0@10.0.0.1:8081", "a/1@10.0.0.1:8081"]);
    let host = route(&house.net, &[house.servers[0].host.clone()], "orders").await;
    assert_eq!(queues(&host), ["a/0@127.0.0.1:8082", "a/1@127.0.0.1:8082"]);
    // A broker may register by any of them.
    let channel = channel(&house.net, &[house.servers[0].host.clone()]);
    let answer = NameServerClient::new(channel).register(broker(1, 2)).await.expect("answered").into_inner();
    assert_eq!(answer.code, Code::Ok as i32);
    let host = route(&house.net, &[house.servers[0].host.clone()], "orders").await;
    assert_eq!(queues(&host), ["a/0@10.0.0.1:8081", "a/1@10.0.0.1:8081"], "nodes without that listener");
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let house = House::new(1).await;
    let taken = house.servers[0].address.clone();
    let config = NamesrvConfig { listen: taken.clone(), listeners: vec![], cluster: None };
    let doors = Doors { net: Arc::new(TcpNet), clock: house.clock.clone() };
    let error = run(config, doors, CancellationToken::new(), |_| panic!("not bound")).await.expect_err("in use");
    assert!(matches!(&error, RunError::Bind { .. }) && error.to_string().contains(&taken), "{error}");
}

/// A client that holds its connection open must not keep a name server from stopping.
#[tokio::test]
async fn a_stop_does_not_wait_for_idle_clients() {
    let mut house = House::new(1).await;
    let mut client = MessagingServiceClient::new(channel(&house.net, &house.addresses()));
    client.query_route(v2::QueryRouteRequest::default()).await.expect("answered");
    let deadline = Duration::from_secs(5);
    tokio::time::timeout(deadline, house.kill(0)).await.expect("stopped in time");
    client.query_route(v2::QueryRouteRequest::default()).await.expect_err("nobody listens");
}

// What brokers say.

fn topic(name: &str, queues: u32) -> TopicRoute {
    TopicRoute { name: name.into(), queues, accept_message_types: vec![v2::MessageType::Normal as i32] }
}

/// Node `number` of group "a", which has the topic "orders" with two queues and believes only itself alive.
fn broker(number: u32, term: u64) -> RegisterRequest {
    let client_address = format!("10.0.0.{number}:8081");
    RegisterRequest {
        cluster: "c".into(),
        group: "a".into(),
        number,
        term,
        leader: false,
        live: vec![client_address.clone()],
        client_address,
        topics_version: 1,
        topics: vec![topic("orders", 2)],
        listeners: vec![],
    }
}

// What clients see.

fn code(route: &v2::QueryRouteResponse) -> Code {
    route.status.as_ref().expect("every answer has a status").code()
}

/// `group/queue@first address` of each queue, in the order of the answer.
fn queues(route: &v2::QueryRouteResponse) -> Vec<String> {
    let text = |queue: &v2::MessageQueue| {
        let broker = queue.broker.as_ref().expect("a queue has a broker");
        let first = &broker.endpoints.as_ref().expect("a broker has endpoints").addresses[0];
        format!("{}/{}@{}:{}", broker.name, queue.id, first.host, first.port)
    };
    route.message_queues.iter().map(text).collect()
}

fn channel(net: &Arc<CutNet>, addresses: &[String]) -> Channel {
    Endpoint::from_static("http://name-servers").connect_with_connector_lazy(connector(net.clone(), addresses.to_vec()))
}

async fn route(net: &Arc<CutNet>, addresses: &[String], topic: &str) -> v2::QueryRouteResponse {
    let topic = v2::Resource { name: topic.into(), ..v2::Resource::default() };
    let request = v2::QueryRouteRequest { topic: Some(topic), endpoints: None };
    MessagingServiceClient::new(channel(net, addresses)).query_route(request).await.expect("answered").into_inner()
}

/// A call as no generated client makes it: this message at that path.
async fn call<M, A>(channel: Channel, path: &'static str, message: M) -> Result<A, tonic::Status>
where
    M: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("connected");
    let (path, codec) = (http::uri::PathAndQuery::from_static(path), tonic_prost::ProstCodec::<M, A>::default());
    Ok(client.unary(tonic::Request::new(message), path, codec).await?.into_inner())
}

// The servers.

/// Some name servers in this process, and the doors between them and everybody else.
struct House {
    servers: Vec<Server>,
    running: JoinSet<Result<(), RunError>>,
    net: Arc<CutNet>,
    clock: Arc<TestClock>,
}

struct Server {
    address: String,
    /// Its listener "host".
    host: String,
    shutdown: CancellationToken,
}

impl House {
    async fn new(count: usize) -> Self {
        let clock = Arc::new(TestClock::default());
        let (mut servers, mut running) = (Vec::new(), JoinSet::new());
        for _ in 0..count {
            let shutdown = CancellationToken::new();
            let (tell, told) = tokio::sync::oneshot::channel();
            let named = NamedListener { name: "host".into(), listen: "127.0.0.1:0".into() };
            let config = NamesrvConfig { listen: "127.0.0.1:0".into(), listeners: vec![named], cluster: None };
            let doors = Doors { net: Arc::new(TcpNet), clock: clock.clone() };
            running.spawn(run(config, doors, shutdown.clone(), |bound| drop(tell.send(bound))));
            let mut bound: Bound = told.await.expect("bound");
            let host = bound.listeners.remove(0).listen;
            servers.push(Server { address: bound.address, host, shutdown });
        }
        Self { servers, running, net: Arc::default(), clock }
    }

    fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.address.clone()).collect()
    }

    async fn kill(&mut self, index: usize) {
        self.servers[index].shutdown.cancel();
        self.running.join_next().await.expect("one stops").expect("no panic").expect("no error");
    }

    /// Registers with one name server.
    async fn tell(&self, index: usize, claim: &RegisterRequest) -> Result<(), (i32, String)> {
        let channel = channel(&self.net, &[self.servers[index].address.clone()]);
        let answer = NameServerClient::new(channel).register(claim.clone()).await;
        let answer = answer.map_err(|status| (-1, status.to_string()))?.into_inner();
        if answer.code == Code::Ok as i32 { Ok(()) } else { Err((answer.code, answer.message)) }
    }

    /// Registers with every name server, as brokers do; one that cannot be reached keeps nobody from the others.
    async fn tell_all(&self, claim: &RegisterRequest) {
        for index in 0..self.servers.len() {
            let told = self.tell(index, claim).await;
            assert_eq!(told.is_err(), self.net.is_cut(&self.servers[index].address), "{told:?}");
        }
    }

    async fn ask(&self, index: usize, topic: &str) -> v2::QueryRouteResponse {
        route(&self.net, &[self.servers[index].address.clone()], topic).await
    }
}

/// Loopback TCP, minus the addresses that are cut off.
#[derive(Default)]
struct CutNet {
    cut: Mutex<BTreeSet<String>>,
}

impl CutNet {
    fn cut(&self, address: &str) {
        self.cut.lock().expect("no test panics while it holds the list").insert(address.to_owned());
    }

    fn heal(&self) {
        self.cut.lock().expect("no test panics while it holds the list").clear();
    }

    fn is_cut(&self, address: &str) -> bool {
        self.cut.lock().expect("no test panics while it holds the list").contains(address)
    }
}

impl Net for CutNet {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        if self.is_cut(address) {
            return Box::pin(async { Err(io::ErrorKind::HostUnreachable.into()) });
        }
        TcpNet.connect(address)
    }

    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn NetListener>>> {
        TcpNet.listen(address)
    }
}

/// Stands still until a test moves it.
#[derive(Default)]
struct TestClock {
    ms: AtomicU64,
}

impl TestClock {
    fn advance(&self, by: Duration) {
        self.ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.ms.load(Ordering::Relaxed))
    }
}
