//! Three whole nodes in one process, each on a runtime of its own, over real sockets and files; clients speak the public protocol.
//!
//! A node is killed by dropping its runtime: its tasks end wherever they are and its sockets close. What needs real processes, real
//! power loss or virtual time is tested elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use quorate_broker::{Bound, BrokerConfig, Doors, RunError, run};
use quorate_proto::{
    admin::{
        ClusterStatusRequest, LeaderHistoryRequest, TransferLeadershipRequest, broker_admin_client::BrokerAdminClient,
    },
    doors::{TcpNet, connector},
    time::SystemClock,
    v2::{
        self, AckMessageEntry, AckMessageRequest, Code, Message, MessageQueue, ReceiveMessageRequest, Resource,
        SendMessageRequest, SystemProperties, messaging_service_client::MessagingServiceClient,
        receive_message_response::Content,
    },
};
use quorate_raft::{Disk, RealDisk, TcpNetwork};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};

#[path = "three_nodes/damaged_queues.rs"]
mod damaged_queues;
#[path = "three_nodes/dead_letters.rs"]
mod dead_letters;
#[path = "three_nodes/full_disk.rs"]
mod full_disk;
#[path = "three_nodes/order_and_filters.rs"]
mod order_and_filters;
#[path = "three_nodes/positions.rs"]
mod positions;
#[path = "three_nodes/pull.rs"]
mod pull;
#[path = "three_nodes/transactions.rs"]
mod transactions;

type Client = MessagingServiceClient<Channel>;

struct Node {
    runtime: Option<Runtime>,
    bound: Bound,
    stop: CancellationToken,
    ended: Option<JoinHandle<Result<(), RunError>>>,
}

impl Drop for Node {
    /// As `kill -9` as it gets inside one process.
    fn drop(&mut self) {
        self.runtime.take().expect("dropped once").shutdown_background();
    }
}

struct Cluster {
    nodes: BTreeMap<u16, Node>,
    configs: BTreeMap<u16, BrokerConfig>,
    disks: BTreeMap<u16, Arc<dyn Disk>>,
    _directory: tempfile::TempDir,
}

/// Ports on which nobody listens now, each given once by this process. They lie below those of outgoing connections, one of which might
/// have taken a port by the time its node starts.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(101);
    let ports = std::iter::repeat_with(|| {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        10_000 + (number % 22_000) as u16
    });
    ports.filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect()
}

impl Cluster {
    /// Three nodes that have a leader.
    async fn start(change: impl Fn(&mut BrokerConfig)) -> Self {
        Self::start_on(BTreeMap::new(), change).await
    }

    /// With these disks instead of the real one.
    async fn start_on(disks: BTreeMap<u16, Arc<dyn Disk>>, change: impl Fn(&mut BrokerConfig)) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter("warn,openraft=off").with_test_writer().try_init();
        let directory = tempfile::tempdir().expect("a directory");
        let ports = free_ports(3);
        let peers: Vec<_> = (1..).zip(&ports).map(|(n, port)| format!("{n}@127.0.0.1:{port}").parse()).collect();
        let peers: Vec<_> = peers.into_iter().map(|peer| peer.expect("legal")).collect();
        let mut configs = BTreeMap::new();
        for (number, port) in (1..).zip(ports) {
            let mut config = BrokerConfig::default();
            config.node.number = number;
            config.node.peers = peers.clone();
            config.network.client_listen = "127.0.0.1:0".into();
            config.network.http_listen = "127.0.0.1:0".into();
            config.network.peer_listen = format!("127.0.0.1:{port}");
            config.storage.data_dir = directory.path().join(number.to_string());
            config.storage.segment_bytes = 32 << 20;
            config.limits.invisible_min = Duration::from_secs(1);
            // The tests run on full machines, too.
            (config.retention.disk_warn_percent, config.retention.disk_full_percent) = (97, 99);
            change(&mut config);
            configs.insert(number, config);
        }
        let mut cluster = Self { nodes: BTreeMap::new(), configs, disks, _directory: directory };
        for number in 1..=3 {
            cluster.open(number).await;
        }
        cluster.leader().await;
        cluster
    }

    async fn open(&mut self, number: u16) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let config = self.configs[&number].clone();
        let doors = Doors {
            clock: Arc::new(SystemClock::new()),
            disk: self.disks.get(&number).cloned().unwrap_or_else(|| Arc::new(RealDisk)),
            peers: Arc::new(TcpNetwork),
            net: Arc::new(TcpNet),
            raft_runtime: None,
            seed: u64::from(number),
            simulation: false,
        };
        let (sender, bound) = oneshot::channel();
        let stop = CancellationToken::new();
        let node = run(config, doors, stop.clone(), move |bound| sender.send(bound).expect("waited for"));
        let ended = runtime.spawn(node);
        let Ok(bound) = bound.await else { panic!("node {number} did not start: {:?}", ended.await) };
        // Once a node has its port it keeps it, as a real one does.
        self.configs.get_mut(&number).expect("known").network.client_listen = bound.client.clone();
        self.nodes.insert(number, Node { runtime: Some(runtime), bound, stop, ended: Some(ended) });
    }

    fn kill(&mut self, number: u16) {
        drop(self.nodes.remove(&number).expect("runs"));
    }

    /// A planned stop.
    async fn stop(&mut self, number: u16) -> Result<(), RunError> {
        let mut node = self.nodes.remove(&number).expect("runs");
        node.stop.cancel();
        node.ended.take().expect("stopped once").await.expect("no panic")
    }

    /// Changes a byte of `body` in the log file of a node that has it by now.
    fn rot(&self, number: u16, body: &[u8]) {
        use std::os::unix::fs::FileExt;
        let log = self.configs[&number].storage.data_dir.join("log");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            for entry in std::fs::read_dir(&log).expect("a folder") {
                let path = entry.expect("an entry").path();
                let bytes = std::fs::read(&path).expect("readable");
                if let Some(at) = bytes.windows(body.len()).position(|window| window == body) {
                    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("writable");
                    return file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("written");
                }
            }
            assert!(Instant::now() < deadline, "node {number} never wrote {}", body.escape_ascii());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The number of the node that leads, once the nodes that run agree on one of them.
    async fn leader(&self) -> u16 {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            for node in self.nodes.values() {
                let mut admin = BrokerAdminClient::new(channel(&node.bound.client));
                let answer =
                    tokio::time::timeout(Duration::from_secs(3), admin.cluster_status(ClusterStatusRequest {}));
                if let Ok(Ok(answer)) = answer.await {
                    let leads = |node: &&quorate_proto::admin::NodeStatus| node.reachable && node.role == "leader";
                    let nodes = answer.into_inner().nodes;
                    if let Some(leader) = nodes.iter().find(leads)
                        && self.nodes.contains_key(&(leader.number as u16))
                    {
                        return leader.number as u16;
                    }
                }
            }
            assert!(Instant::now() < deadline, "no leader in 30 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A client that comes in by the node's listener of that name.
    fn client_by(&self, number: u16, listener: &str) -> Client {
        let listeners = &self.nodes[&number].bound.listeners;
        let found = listeners.iter().find(|one| one.name == listener).expect("configured");
        MessagingServiceClient::new(channel(&found.client))
    }

    fn client(&self, number: u16) -> Client {
        MessagingServiceClient::new(channel(&self.nodes[&number].bound.client))
    }

    async fn followers(&self) -> Vec<u16> {
        let leader = self.leader().await;
        self.nodes.keys().copied().filter(|number| *number != leader).collect()
    }
}

fn channel(address: &str) -> Channel {
    tonic::transport::Endpoint::from_static("http://broker")
        .connect_with_connector_lazy(connector(Arc::new(TcpNet), vec![address.to_owned()]))
}

fn named(name: &str) -> Option<Resource> {
    Some(Resource { resource_namespace: String::new(), name: name.into() })
}

fn request<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-mq-client-id", "test@1@0@x".parse().expect("ascii"));
    request.set_timeout(timeout);
    request
}

fn message(id: u32) -> Message {
    Message {
        topic: named("t"),
        system_properties: Some(SystemProperties {
            message_id: format!("{id:034X}"),
            tag: Some("TagA".into()),
            ..SystemProperties::default()
        }),
        body: format!("body {id}").into(),
        ..Message::default()
    }
}

/// Sends with RocketMQ's usual deadline and gives code and entries.
async fn send(client: &mut Client, messages: Vec<Message>) -> (i32, Vec<v2::SendResultEntry>) {
    let answer = client.send_message(request(SendMessageRequest { messages }, Duration::from_secs(3))).await;
    let answer = answer.expect("never an error at the level of gRPC").into_inner();
    (answer.status.expect("set").code, answer.entries)
}

fn receive_request(max: i32, poll_ms: u64) -> ReceiveMessageRequest {
    let ms = |ms: u64| prost_types::Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 };
    ReceiveMessageRequest {
        group: named("g"),
        message_queue: Some(MessageQueue { topic: named("t"), ..MessageQueue::default() }),
        batch_size: max,
        invisible_duration: Some(ms(30_000)),
        long_polling_timeout: Some(ms(poll_ms)),
        ..ReceiveMessageRequest::default()
    }
}

/// Receives once and gives the status code and the messages.
async fn receive(client: &mut Client, max: i32, poll_ms: u64) -> (i32, Vec<Message>) {
    let wanted = request(receive_request(max, poll_ms), Duration::from_millis(poll_ms + 3000));
    let mut stream = client.receive_message(wanted).await.expect("headers come at once").into_inner();
    let (mut code, mut messages, mut delivered) = (0, Vec::new(), false);
    while let Some(item) = stream.message().await.expect("never an error at the level of gRPC") {
        match item.content.expect("set") {
            Content::Status(status) => code = status.code,
            Content::Message(message) => messages.push(message),
            Content::DeliveryTimestamp(_) => delivered = true,
        }
    }
    assert!(delivered || code != Code::Ok as i32, "the time of delivery comes last");
    (code, messages)
}

async fn ack(client: &mut Client, messages: &[Message]) -> Vec<i32> {
    let entry = |message: &Message| {
        let system = message.system_properties.clone().expect("set");
        AckMessageEntry {
            message_id: system.message_id,
            receipt_handle: system.receipt_handle.expect("set"),
            lite_topic: None,
        }
    };
    let entries = messages.iter().map(entry).collect();
    let wanted = AckMessageRequest { group: named("g"), topic: named("t"), entries };
    let answer = client.ack_message(request(wanted, Duration::from_secs(3))).await.expect("in-band").into_inner();
    answer.entries.into_iter().map(|entry| entry.status.expect("set").code).collect()
}

fn bodies(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8(message.body.to_vec()).expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_hands_out_and_acks() {
    let cluster = Cluster::start(|_| {}).await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let mut clients: Vec<Client> = [leader, followers[0], followers[1]].map(|n| cluster.client(n)).into();

    // Each node takes messages, one and many per call.
    for (at, client) in (0u32..).zip(&mut clients) {
        let (code, entries) = send(client, vec![message(at * 10)]).await;
        assert_eq!((code, entries.len()), (20000, 1));
        let (code, entries) = send(client, (1..10).map(|n| message(at * 10 + n)).collect()).await;
        assert_eq!((code, entries.len()), (20000, 9));
        assert!(entries.iter().all(|entry| entry.status.as_ref().is_some_and(|status| status.code == 20000)));
    }

    // The same id and body again is the same message.
    let (_, first) = send(&mut clients[1], vec![message(0)]).await;
    let (_, again) = send(&mut clients[2], vec![message(0)]).await;
    assert_eq!((first[0].offset, &first[0].message_id), (again[0].offset, &again[0].message_id));

    // Each node hands out, each other one takes the acks.
    let mut seen = BTreeSet::new();
    for round in 0..30 {
        let (code, messages) = receive(&mut clients[round % 3], 4, 300).await;
        if messages.is_empty() {
            assert_eq!(code, 40401);
            break;
        }
        for message in &messages {
            let system = message.system_properties.as_ref().expect("set");
            assert_eq!(system.delivery_attempt, Some(1));
            assert_eq!(system.tag.as_deref(), Some("TagA"));
            assert_eq!(system.body_digest.as_ref().map(|digest| digest.checksum.len()), Some(32));
        }
        assert!(ack(&mut clients[(round + 1) % 3], &messages).await.iter().all(|code| *code == 20000));
        assert!(
            ack(&mut clients[(round + 2) % 3], &messages).await.iter().all(|code| *code == 20000),
            "again: the same"
        );
        seen.extend(bodies(&messages));
    }
    assert_eq!(seen, (0..30).map(|id| format!("body {id}")).collect());

    // Each node gives the whole route, leader first.
    let addresses: Vec<String> =
        [leader, followers[0], followers[1]].iter().map(|n| cluster.nodes[n].bound.client.clone()).collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    for client in &mut clients {
        loop {
            let wanted = v2::QueryRouteRequest { topic: named("t"), endpoints: None };
            let route =
                client.query_route(request(wanted, Duration::from_secs(3))).await.expect("in-band").into_inner();
            assert_eq!(route.message_queues.len(), 8);
            let broker = route.message_queues[7].broker.clone().expect("set");
            let given = broker.endpoints.expect("set").addresses;
            let given: Vec<_> = given.iter().map(|address| format!("{}:{}", address.host, address.port)).collect();
            if given == addresses {
                break;
            }
            assert!(Instant::now() < deadline, "{given:?}, expected {addresses:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A body is written once per node, so each node may lose it to its own disk; what is handed out is what was sent, or nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_rots_on_the_leader_s_disk_is_served_from_another_node_and_one_that_rots_on_all_is_not_served() {
    let cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    let (code, _) = send(&mut client, (11..14).map(message).collect()).await;
    assert_eq!(code, 20000);
    cluster.rot(leader, b"body 11");
    for number in 1..=3 {
        cluster.rot(number, b"body 12");
    }
    let mut seen = BTreeSet::new();
    let mut messages = receive(&mut client, 16, 300).await.1;
    while !messages.is_empty() {
        seen.extend(bodies(&messages));
        messages = receive(&mut client, 16, 300).await.1;
    }
    assert_eq!(seen, ["body 11".to_owned(), "body 13".to_owned()].into());
}

/// The addresses that a client is given, as soon as they are the expected ones.
async fn route_becomes(client: &mut Client, expected: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let wanted = v2::QueryRouteRequest { topic: named("t"), endpoints: None };
        let route = client.query_route(request(wanted, Duration::from_secs(3))).await.expect("in-band").into_inner();
        let broker = route.message_queues.first().and_then(|queue| queue.broker.clone()).unwrap_or_default();
        let given = broker.endpoints.unwrap_or_default().addresses;
        let given: Vec<_> = given.iter().map(|address| format!("{}:{}", address.host, address.port)).collect();
        if given == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{given:?}, expected {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two networks: all nodes have the listener "host", and only two of them a "vpn".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_gives_the_addresses_for_its_own_clients_through_any_node() {
    let cluster = Cluster::start(|config| {
        let number = config.node.number;
        let mut listeners = vec![format!("host@127.0.0.1:0=192.0.2.{number}:8081")];
        if number != 3 {
            listeners.push("vpn@127.0.0.1:0".into());
        }
        config.network.listeners = listeners.iter().map(|text| text.parse().expect("legal")).collect();
    })
    .await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let order = [leader, followers[0], followers[1]];
    let own: Vec<String> = order.iter().map(|n| cluster.nodes[n].bound.client.clone()).collect();
    let host: Vec<String> = order.iter().map(|n| format!("192.0.2.{n}:8081")).collect();
    let with_vpn = order.iter().filter(|n| **n != 3);
    let vpn: Vec<String> = with_vpn.map(|n| cluster.nodes[n].bound.listeners[1].advertised.clone()).collect();
    for number in order {
        route_becomes(&mut cluster.client(number), &own).await;
        route_becomes(&mut cluster.client_by(number, "host"), &host).await;
        if number != 3 {
            route_becomes(&mut cluster.client_by(number, "vpn"), &vpn).await;
        }
    }

    // An operator is told the same list, and every listener serves the whole protocol.
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&followers[0]].bound.listeners[0].client));
    let status = admin.cluster_status(ClusterStatusRequest {}).await.expect("in-band").into_inner();
    assert_eq!((status.route, status.answered_by), (host, followers[0].into()));
    assert!(status.nodes.iter().all(|node| node.wall_ms > 0), "every node tells its clock");
    let told: Vec<_> = status.nodes.iter().map(|node| node.client_address.clone()).collect();
    assert_eq!(told, (1..=3).map(|n| cluster.nodes[&n].bound.client.clone()).collect::<Vec<_>>());
    assert_eq!(send(&mut cluster.client_by(followers[1], "host"), vec![message(1)]).await.0, 20000);
    let (code, received) = receive(&mut cluster.client_by(leader, "host"), 1, 2000).await;
    assert_eq!((code, bodies(&received)), (20000, vec!["body 1".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_dies_and_clients_of_a_follower_see_neither_error_nor_loss() {
    let mut cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader().await;
    let follower = cluster.followers().await[0];
    let mut client = cluster.client(follower);

    let mut sent = 0;
    let mut longest = Duration::ZERO;
    let mut killed = None;
    while killed.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(3)) {
        let start = Instant::now();
        let (code, _) = send(&mut client, vec![message(sent)]).await;
        assert_eq!(code, 20000, "message {sent}, {:?} after it was sent", start.elapsed());
        longest = longest.max(start.elapsed());
        sent += 1;
        if sent == 50 {
            cluster.kill(leader);
            killed = Some(Instant::now());
        }
    }
    println!("{sent} messages sent, longest call {longest:?}");
    assert!(cluster.leader().await != leader);

    let mut received = BTreeMap::new();
    loop {
        let (_, messages) = receive(&mut client, 32, 500).await;
        if messages.is_empty() {
            break;
        }
        ack(&mut client, &messages).await;
        for body in bodies(&messages) {
            *received.entry(body).or_insert(0) += 1;
        }
    }
    assert_eq!(received, (0..sent).map(|id| (format!("body {id}"), 1)).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_of_the_dead_leader_works_at_its_successor() {
    let mut cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader().await;
    let follower = cluster.followers().await[0];
    let (mut of_leader, mut of_follower) = (cluster.client(leader), cluster.client(follower));
    send(&mut of_leader, (0..4).map(message).collect()).await;
    let (code, messages) = receive(&mut of_leader, 4, 1000).await;
    assert_eq!((code, messages.len()), (20000, 4));

    cluster.kill(leader);
    let codes = ack(&mut of_follower, &messages[..3]).await;
    assert_eq!(codes, [20000; 3]);
    // The fourth is in flight for 30 s at the new leader too; given back, it comes again as the second attempt.
    assert_eq!(receive(&mut of_follower, 4, 300).await.0, 40401);
    let system = messages[3].system_properties.clone().expect("set");
    let wanted = v2::ChangeInvisibleDurationRequest {
        group: named("g"),
        topic: named("t"),
        receipt_handle: system.receipt_handle.clone().expect("set"),
        invisible_duration: Some(prost_types::Duration::default()),
        message_id: system.message_id,
        ..Default::default()
    };
    let changed = of_follower.change_invisible_duration(request(wanted, Duration::from_secs(3))).await;
    assert_eq!(changed.expect("in-band").into_inner().status.expect("set").code, 20000);
    let (_, again) = receive(&mut of_follower, 4, 2000).await;
    assert_eq!(bodies(&again), bodies(&messages[3..]));
    assert_eq!(again[0].system_properties.as_ref().expect("set").delivery_attempt, Some(2));
    assert_eq!(ack(&mut of_follower, &messages[3..]).await, [40013], "the old receipt has expired");
    assert_eq!(ack(&mut of_follower, &again).await, [20000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_receive_is_answered_by_the_next_message_wherever_it_comes_from() {
    let cluster = Cluster::start(|_| {}).await;
    let followers = cluster.followers().await;
    let (mut one, mut other) = (cluster.client(followers[0]), cluster.client(followers[1]));
    let parked = tokio::spawn(async move { (receive(&mut one, 1, 20_000).await, Instant::now()) });
    // Time to get parked; were it not yet, the test would only prove less.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (code, _) = send(&mut other, vec![message(7)]).await;
    assert_eq!(code, 20000);
    let sent = Instant::now();
    let ((code, messages), received) = parked.await.expect("no panic");
    assert_eq!((code, bodies(&messages)), (20000, vec!["body 7".to_owned()]));
    assert!(received.saturating_duration_since(sent) < Duration::from_secs(2), "woken, not timed out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_hands_over_and_disturbs_nobody() {
    let mut cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader().await;
    let follower = cluster.followers().await[0];
    let mut client = cluster.client(follower);
    let sender = tokio::spawn(async move {
        let start = Instant::now();
        let (mut sent, mut longest) = (0, Duration::ZERO);
        while start.elapsed() < Duration::from_secs(4) {
            let call = Instant::now();
            assert_eq!(send(&mut client, vec![message(sent)]).await.0, 20000);
            longest = longest.max(call.elapsed());
            sent += 1;
        }
        (sent, longest)
    });
    // The sender is at work before, during and after the stop.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopping = Instant::now();
    cluster.stop(leader).await.expect("a planned stop is no error");
    println!("stopped in {:?}", stopping.elapsed());
    let (sent, longest) = sender.await.expect("no failed send");
    println!("{sent} messages sent, longest call {longest:?}");

    // It comes back with what it had.
    cluster.open(leader).await;
    let mut client = cluster.client(leader);
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut received = BTreeSet::new();
    while received.len() < sent as usize {
        let answer = client.receive_message(request(receive_request(32, 500), Duration::from_secs(4))).await;
        assert!(Instant::now() < deadline, "{} of {sent} received", received.len());
        // Its listener opens once it has heard of its peers.
        let Ok(stream) = answer else { continue };
        let mut stream = stream.into_inner();
        while let Ok(Some(item)) = stream.message().await {
            if let Some(Content::Message(message)) = item.content {
                received.insert(message.body);
            }
        }
    }
}

/// Leadership is moved through a node that does not lead, to one that is named, and every node can tell of it afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_moves_leadership_and_reads_its_history() {
    let cluster = Cluster::start(|_| {}).await;
    let followers = cluster.followers().await;
    let (asked, target) = (followers[0], followers[1]);
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&asked].bound.client));
    let code = |outcome: Option<quorate_proto::admin::Outcome>| outcome.expect("set").code;

    let unknown = admin.transfer_leadership(TransferLeadershipRequest { node: 9 }).await.expect("in-band").into_inner();
    let outcome = unknown.outcome.expect("set");
    assert_eq!(outcome.code, Code::PreconditionFailed as i32);
    assert!(outcome.message.contains("node 9 is no voter"), "{}", outcome.message);

    // A machine that is busy enough lets one election timeout pass, and the transfer is undone: then it is asked for again.
    let deadline = Instant::now() + Duration::from_secs(30);
    let moved = loop {
        let request = TransferLeadershipRequest { node: target.into() };
        let moved = admin.transfer_leadership(request).await.expect("in-band").into_inner();
        let outcome = moved.outcome.as_ref().expect("set");
        if outcome.code == Code::Ok as i32 {
            break moved;
        }
        assert!(Instant::now() < deadline, "{outcome:?}");
    };
    assert_eq!(moved.to, u32::from(target));
    let (sent, _) = send(&mut cluster.client(asked), vec![message(1)]).await;
    assert_eq!(sent, Code::Ok as i32);

    let history = admin.leader_history(LeaderHistoryRequest {}).await.expect("in-band").into_inner();
    assert_eq!(code(history.outcome), Code::Ok as i32);
    assert_eq!(history.nodes.iter().map(|node| node.number).collect::<Vec<_>>(), [1, 2, 3]);
    let told = history.nodes.iter().find(|node| node.number == u32::from(target)).expect("there");
    let change = told.changes.iter().find(|change| change.term == moved.term).expect("it led in that term");
    assert_eq!((change.leader, change.cause.as_str()), (target.into(), "transfer"));
    assert!(change.without_leader_us.is_some_and(|us| us < 5_000_000), "{change:?}");
}

/// With one node down, a second one that is told to stop stays until the first is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_waits_while_the_group_would_lose_its_majority() {
    let mut cluster = Cluster::start(|config| config.node.stop_wait_max = Duration::from_secs(60)).await;
    let followers = cluster.followers().await;
    let (down, leaving) = (followers[0], followers[1]);
    cluster.stop(down).await.expect("the two others stay, so it may go");
    let mut leaver = cluster.nodes.remove(&leaving).expect("runs");
    leaver.stop.cancel();
    let ended = leaver.ended.as_mut().expect("runs");
    let early = tokio::time::timeout(Duration::from_secs(2), &mut *ended).await;
    assert!(early.is_err(), "it stopped although only one node would have been left");
    let address = leaver.bound.client.clone();
    let (sent, _) = send(&mut MessagingServiceClient::new(channel(&address)), vec![message(1)]).await;
    assert_eq!(sent, Code::Ok as i32, "and it serves meanwhile");

    cluster.open(down).await;
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it stops once it may");
    ended.expect("no panic").expect("in order");
    let (sent, _) = send(&mut cluster.client(down), vec![message(2)]).await;
    assert_eq!(sent, Code::Ok as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_peers_lets_its_clients_go_and_takes_them_again() {
    let named = |config: &mut BrokerConfig| config.network.listeners = vec!["host@127.0.0.1:0".parse().expect("legal")];
    let mut cluster = Cluster::start(named).await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let bound = cluster.nodes[&followers[0]].bound.clone();
    let connects = |address: &String| std::net::TcpStream::connect(address).is_ok();
    let both = [bound.client, bound.listeners[0].client.clone()];
    // Open as long as one of them is, open again once both are.
    let is_open = || both.iter().any(connects);
    let is_whole = || both.iter().all(connects);
    assert!(is_whole());
    cluster.kill(leader);
    cluster.stop(followers[1]).await.expect("a planned stop");
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_open() {
        assert!(Instant::now() < deadline, "still taking connections");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.open(followers[1]).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_whole() {
        assert!(Instant::now() < deadline, "takes no connections although a peer is back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.leader().await;
    assert_eq!(send(&mut cluster.client(followers[0]), vec![message(1)]).await.0, 20000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_come_at_once_and_bad_input_is_answered_in_band() {
    let cluster = Cluster::start(|config| config.topics.auto_create = false).await;
    let follower = cluster.followers().await[0];
    let mut client = cluster.client(follower);

    let publishing = v2::Publishing { topics: vec![named("t").expect("set")], ..Default::default() };
    let settings = v2::Settings {
        client_type: Some(v2::ClientType::Producer as i32),
        pub_sub: Some(v2::settings::PubSub::Publishing(publishing)),
        ..Default::default()
    };
    let command =
        v2::TelemetryCommand { status: None, command: Some(v2::telemetry_command::Command::Settings(settings)) };
    let (commands, outbound) = tokio::sync::mpsc::channel(1);
    let outbound = futures_util::stream::unfold(outbound, |mut outbound| async {
        outbound.recv().await.map(|command| (command, outbound))
    });
    let mut stream = Request::new(outbound);
    stream.metadata_mut().insert("x-mq-client-id", "test@1@0@x".parse().expect("ascii"));
    // Headers come before the first command, as Rust's client wants it.
    let mut answers = client.telemetry(stream).await.expect("headers at once").into_inner();
    commands.send(command).await.expect("open");
    let answer = answers.message().await.expect("in-band").expect("an answer");
    assert_eq!(answer.status.expect("set").code, 20000);

    assert_eq!(send(&mut client, vec![message(1)]).await.0, 40402, "no topic is made");
    let wanted = v2::QueryRouteRequest { topic: named("a b"), endpoints: None };
    let route = client.query_route(request(wanted, Duration::from_secs(3))).await.expect("in-band").into_inner();
    assert_eq!(route.status.expect("set").code, 40002);
    let mut large = message(2);
    large.body = vec![7; (4 << 20) + 1].into();
    assert_eq!(send(&mut client, vec![large]).await.0, 41301);
    assert_eq!(
        ack(
            &mut client,
            &[Message {
                system_properties: Some(SystemProperties { receipt_handle: Some("x".into()), ..Default::default() }),
                ..Default::default()
            }]
        )
        .await,
        [40402]
    );
    let anonymous = client.heartbeat(Request::new(v2::HeartbeatRequest::default())).await.expect("in-band");
    assert_eq!(anonymous.into_inner().status.expect("set").code, 40017);
}

fn wall_ms() -> u64 {
    use quorate_proto::time::Clock;
    SystemClock::new().now().0
}

/// A message that becomes visible at `due_ms`.
fn delayed(id: u32, due_ms: u64) -> Message {
    let mut message = message(id);
    let system = message.system_properties.as_mut().expect("set");
    system.message_type = v2::MessageType::Delay as i32;
    system.delivery_timestamp = Some(quorate_proto::time::Timestamp(due_ms).to_proto());
    message
}

async fn recall(client: &mut Client, topic: &str, handle: &str) -> (i32, String) {
    let wanted = v2::RecallMessageRequest { topic: named(topic), recall_handle: handle.to_owned() };
    let answer = client.recall_message(request(wanted, Duration::from_secs(3))).await.expect("in-band").into_inner();
    (answer.status.expect("set").code, answer.message_id)
}

/// Receives until `count` messages came or 15 s are over; each with the wall clock when it came.
async fn collect(client: &mut Client, count: usize) -> Vec<(Message, u64)> {
    let (mut all, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(15));
    while all.len() < count && Instant::now() < deadline {
        let (_, messages) = receive(client, 32, 1_000).await;
        let at = wall_ms();
        ack(client, &messages).await;
        all.extend(messages.into_iter().map(|message| (message, at)));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_comes_at_its_time_and_can_be_recalled_through_any_node() {
    let cluster = Cluster::start(|_| {}).await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let mut clients: Vec<Client> = [leader, followers[0], followers[1]].map(|n| cluster.client(n)).into();
    let now = wall_ms();
    let due = |id: u32| now + 1_500 + u64::from(id) * 50;

    let mut handles = Vec::new();
    for id in 0..12 {
        let (code, entries) = send(&mut clients[id as usize % 3], vec![delayed(id, due(id))]).await;
        assert_eq!((code, entries[0].recall_handle.is_empty()), (20000, false));
        handles.push(entries[0].recall_handle.clone());
    }
    // The same send again: the same handle, and it waits once.
    let (_, again) = send(&mut clients[1], vec![delayed(0, due(0))]).await;
    assert_eq!(again[0].recall_handle, handles[0]);
    // One in the past is a plain one, with nothing to recall.
    let (code, past) = send(&mut clients[0], vec![delayed(50, now - 5_000)]).await;
    assert_eq!((code, past[0].recall_handle.as_str()), (20000, ""));

    // Any node takes it back; again is the same; what is no handle is said to be none.
    for client in &mut clients {
        assert_eq!(recall(client, "t", &handles[5]).await, (20000, format!("{:034X}", 5)));
    }
    assert_eq!(recall(&mut clients[1], "t", "no handle").await.0, 40013);
    assert_eq!(recall(&mut clients[1], "t", "").await.0, 40013);
    let edited = format!("{}0", &handles[1][..handles[1].len() - 1]);
    let edited = if edited == handles[1] { format!("{}1", &handles[1][..handles[1].len() - 1]) } else { edited };
    assert_eq!(recall(&mut clients[2], "t", &edited).await.0, 40013);

    // Too far ahead, and the bound in words.
    let far = delayed(60, now + 41 * 86_400_000);
    let (code, entries) = send(&mut clients[2], vec![far]).await;
    let words = entries[0].status.clone().expect("set").message;
    assert!(code == 40012 && words.contains("at most 40d"), "{code} {words}");

    let came = collect(&mut clients[1], 12).await;
    let expected: BTreeSet<String> = (0..12).filter(|id| *id != 5).chain([50]).map(|id| format!("body {id}")).collect();
    assert_eq!(
        came.iter().map(|(message, _)| bodies(std::slice::from_ref(message)).remove(0)).collect::<BTreeSet<_>>(),
        expected
    );
    assert_eq!(came.len(), expected.len(), "each once");
    for (message, at) in &came {
        let system = message.system_properties.as_ref().expect("set");
        assert_eq!(system.message_type, v2::MessageType::Delay as i32);
        let id = u32::from_str_radix(&system.message_id, 16).expect("hex");
        if id < 50 {
            let timestamp = system.delivery_timestamp.as_ref().expect("kept");
            assert_eq!(quorate_proto::time::Timestamp(due(id)).to_proto(), *timestamp);
            assert!(*at >= due(id), "message {id} came {} ms early", due(id) - at);
        }
    }
    assert_eq!(recall(&mut clients[2], "t", &handles[1]).await.0, 40400, "too late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_messages_survive_a_killed_leader_a_restart_and_the_end_of_their_segment() {
    // Segments of 2 MiB, of which two are kept, and bodies of 64 KiB: the log before the waiting messages goes several times.
    let mut cluster = Cluster::start(|config| {
        config.storage.segment_bytes = 2 << 20;
        config.limits.message_bytes_max = 100 << 10;
        config.limits.batch_bytes_max = 100 << 10;
        config.retention.log_bytes_max = 4 << 20;
    })
    .await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    let due = wall_ms() + 15_000;
    let mut handles = Vec::new();
    for id in 0..8 {
        let (code, entries) = send(&mut client, vec![delayed(id, due + u64::from(id))]).await;
        assert_eq!(code, 20000);
        handles.push(entries[0].recall_handle.clone());
    }
    let plain = |id: u32| Message { body: vec![b'.'; 64 << 10].into(), ..message(id) };
    for id in 100..260 {
        let mut client = cluster.client(if id < 180 { leader } else { *cluster.nodes.keys().next().expect("two run") });
        assert_eq!(send(&mut client, vec![plain(id)]).await.0, 20000);
        if id == 179 {
            cluster.kill(leader);
            cluster.leader().await;
        }
    }
    let follower = cluster.followers().await[0];
    assert_eq!(recall(&mut cluster.client(follower), "t", &handles[3]).await.0, 20000);
    let files = |cluster: &Cluster, number: u16| {
        let log = cluster.configs[&number].storage.data_dir.join("log");
        std::fs::read_dir(log).expect("a folder").count()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while files(&cluster, cluster.leader().await) > 4 {
        assert!(Instant::now() < deadline, "the waiting messages pin the log");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left: Vec<u16> = cluster.nodes.keys().copied().collect();
    for number in &left {
        cluster.stop(*number).await.expect("a planned stop");
    }
    for number in left {
        cluster.open(number).await;
    }
    let mut client = cluster.client(cluster.leader().await);
    let mut seen = BTreeMap::<String, u64>::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while seen.len() < 7 && Instant::now() < deadline {
        let (_, messages) = receive(&mut client, 32, 500).await;
        let now = wall_ms();
        ack(&mut client, &messages).await;
        for message in messages.iter().filter(|message| message.body.len() < 100) {
            assert!(now >= due, "{} ms early", due - now);
            *seen.entry(bodies(std::slice::from_ref(message)).remove(0)).or_default() += 1;
        }
    }
    let expected = [0, 1, 2, 4, 5, 6, 7].map(|id| (format!("body {id}"), 1));
    assert_eq!(seen, expected.into());
}
