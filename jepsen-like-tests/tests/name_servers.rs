//! Broker nodes, name servers and our client together, over real sockets and files: what a name server says is what real brokers
//! told it, and a client that knows nothing but name servers lives through the death of brokers and of name servers.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use quorate_broker::{Bound, BrokerConfig};
use quorate_client::{Client, ClientConfig, ConsumerOptions, Doors, Message, Producer, SimpleConsumer, TopicType};
use quorate_namesrv::NamesrvConfig;
use quorate_proto::{
    doors::{TcpNet, connector},
    time::SystemClock,
    v2::{QueryRouteRequest, Resource, messaging_service_client::MessagingServiceClient},
};
use quorate_raft::{RealDisk, TcpNetwork};
use tokio::{runtime::Runtime, sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

/// Longer than anything here may take: an entry that nobody renews is forgotten after ten seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// A process as far as it gets inside of one: dropped, its tasks end wherever they are and its sockets close.
struct Life(Option<Runtime>);

impl Life {
    fn new() -> Self {
        Self(Some(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

struct Cluster {
    name_servers: Vec<(String, Life)>,
    brokers: BTreeMap<u16, (Bound, Life)>,
    _directory: tempfile::TempDir,
}

async fn name_server() -> (String, Life) {
    let life = Life::new();
    let config = NamesrvConfig { listen: "127.0.0.1:0".into(), listeners: Vec::new(), cluster: None };
    let doors = quorate_namesrv::Doors { net: Arc::new(TcpNet), clock: Arc::new(SystemClock::new()) };
    let (sender, bound) = oneshot::channel();
    life.runtime().spawn(quorate_namesrv::run(config, doors, CancellationToken::new(), |bound| {
        sender.send(bound.address).unwrap();
    }));
    (bound.await.unwrap(), life)
}

impl Cluster {
    async fn start() -> Self {
        let mut name_servers = Vec::new();
        for _ in 0..3 {
            name_servers.push(name_server().await);
        }
        let directory = tempfile::tempdir().unwrap();
        let ports = quorate_jepsen::chaos::free_ports(3).unwrap();
        let mut brokers = BTreeMap::new();
        for number in 1..=3u16 {
            let mut config = BrokerConfig::default();
            config.node.number = number;
            config.node.peers =
                (1..).zip(&ports).map(|(n, port)| format!("{n}@127.0.0.1:{port}").parse().unwrap()).collect();
            config.network.client_listen = "127.0.0.1:0".into();
            config.network.http_listen = String::new();
            config.network.peer_listen = format!("127.0.0.1:{}", ports[usize::from(number) - 1]);
            config.network.name_servers = name_servers.iter().map(|(address, _)| address.clone()).collect();
            config.storage.data_dir = directory.path().join(number.to_string());
            config.storage.segment_bytes = 32 << 20;
            // The machine's disk may be nearly full of other things, and still has room for a test.
            (config.retention.disk_warn_percent, config.retention.disk_full_percent) = (97, 99);
            let life = Life::new();
            let doors = quorate_broker::Doors {
                clock: Arc::new(SystemClock::new()),
                disk: Arc::new(RealDisk),
                peers: Arc::new(TcpNetwork),
                net: Arc::new(TcpNet),
                raft_runtime: None,
                seed: u64::from(number),
                simulation: false,
            };
            let (sender, bound) = oneshot::channel();
            life.runtime().spawn(quorate_broker::run(config, doors, CancellationToken::new(), |bound| {
                sender.send(bound).unwrap();
            }));
            brokers.insert(number, (bound.await.unwrap(), life));
        }
        Self { name_servers, brokers, _directory: directory }
    }

    /// A client that is told of name servers alone.
    fn client(&self) -> Client {
        let endpoints = self.name_servers.iter().map(|(address, _)| address.clone()).collect();
        Client::new(ClientConfig::new(endpoints), Doors::system()).unwrap()
    }

    /// The number of the broker that a client address belongs to.
    fn owner(&self, address: &str) -> Option<u16> {
        self.brokers.iter().find(|(_, (bound, _))| bound.client == address).map(|(number, _)| *number)
    }

    /// What the name server at `address` says of the topic: the addresses of its broker, in order; none if it knows no such topic.
    async fn route(address: &str) -> Vec<String> {
        let endpoint = tonic::transport::Endpoint::from_static("http://name-server");
        let channel = endpoint.connect_with_connector_lazy(connector(Arc::new(TcpNet), vec![address.to_owned()]));
        let topic = Some(Resource { resource_namespace: String::new(), name: "orders".into() });
        let request = QueryRouteRequest { topic, endpoints: None };
        let mut client = MessagingServiceClient::new(channel);
        let asked = tokio::time::timeout(Duration::from_secs(2), client.query_route(request));
        let Ok(Ok(answer)) = asked.await else { return Vec::new() };
        let queue = answer.into_inner().message_queues.into_iter().next();
        let endpoints = queue.and_then(|queue| queue.broker).and_then(|broker| broker.endpoints);
        let addresses = endpoints.map(|endpoints| endpoints.addresses).unwrap_or_default();
        addresses.into_iter().map(|address| format!("{}:{}", address.host, address.port)).collect()
    }

    /// Waits until every name server that runs gives `wanted` addresses with the same one first; gives that.
    async fn agreed(&self, wanted: usize) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut routes = BTreeSet::new();
            for (address, _) in &self.name_servers {
                routes.insert(Self::route(address).await);
            }
            if let (1, Some(route)) = (routes.len(), routes.first())
                && route.len() == wanted
            {
                return route[0].clone();
            }
            assert!(Instant::now() < deadline, "{wanted} addresses expected of all name servers, they say {routes:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn send(producer: &Producer, body: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = producer.send(Message::new("orders", body.to_owned())).await {
        assert!(Instant::now() < deadline, "{body}: {error}");
    }
}

async fn received(consumer: &SimpleConsumer, count: usize) -> BTreeSet<String> {
    let (deadline, mut seen) = (Instant::now() + PATIENCE, BTreeSet::new());
    while seen.len() < count {
        assert!(Instant::now() < deadline, "{count} messages expected, {seen:?} came");
        let Ok(deliveries) = consumer.receive("orders").await else { continue };
        for delivery in deliveries {
            seen.insert(String::from_utf8(delivery.body.to_vec()).unwrap());
            let _ = consumer.ack(&delivery).await;
        }
    }
    seen
}

/// From the first registration to the last name server left: leadership moves, a broker dies without a word, two of three name
/// servers die, and clients that know nothing but name servers go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_know_only_name_servers_live_through_the_death_of_brokers_and_name_servers() {
    let mut cluster = Cluster::start().await;
    let (first, _) = cluster.brokers.values().next().unwrap();
    let operator = Client::new(ClientConfig::new(vec![first.client.clone()]), Doors::system()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = operator.admin().create_topic("orders", 4, TopicType::Normal).await {
        assert!(Instant::now() < deadline, "{error}");
    }

    // All name servers give the same whole route, without having spoken to each other.
    let leader = cluster.agreed(3).await;
    let client = cluster.client();
    let producer = client.producer();
    let consumer = client.simple_consumer("billing", ConsumerOptions::default()).unwrap();
    send(&producer, "before").await;

    // The leader dies without a word: within a lease nobody is sent to it any more, and another one stands first.
    let dead = cluster.owner(&leader).unwrap();
    drop(cluster.brokers.remove(&dead));
    send(&producer, "without its leader").await;
    let successor = cluster.agreed(2).await;
    assert!(successor != leader && cluster.owner(&successor).is_some(), "{successor}");

    // Two of three name servers die: the client goes on, and a new one finds its way by the third.
    cluster.name_servers.truncate(1);
    send(&producer, "with one name server").await;
    let late = cluster.client();
    send(&late.producer(), "from a newcomer").await;
    let expected = ["before", "without its leader", "with one name server", "from a newcomer"];
    assert_eq!(received(&consumer, 4).await, expected.map(str::to_owned).into());
}
