//! A group of real processes grows from one node to three, has one replaced and one removed, while messages are sent.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod nodes;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nodes::{PATIENCE, Role, free_ports, run, said};
use quorate_client::{Client, ClientConfig, ConsumerOptions, Doors, Message};
use quorate_proto::v2::{self, Resource, messaging_service_client::MessagingServiceClient};
use serde_json::Value;
use tonic::{Request, transport::Endpoint};

/// Four nodes that may run, and a name server.
struct Place {
    dir: PathBuf,
    config: String,
    name_server: String,
    peer: Vec<String>,
    client: Vec<String>,
}

impl Place {
    fn new(dir: &Path, name_server: String) -> Self {
        let ports: Vec<String> = free_ports(8).into_iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let config = nodes::config(dir, "enabled = false\n");
        Self { dir: dir.to_owned(), config, name_server, peer: ports[..4].to_vec(), client: ports[4..].to_vec() }
    }

    fn peer(&self, number: usize) -> String {
        format!("{number}@{}", self.peer[number - 1])
    }

    /// A node that knows itself and these others.
    fn start(&self, number: usize, others: &[usize]) -> Role {
        let mut peers = vec![self.peer(number)];
        peers.extend(others.iter().map(|other| self.peer(*other)));
        let (own, peers) = (number.to_string(), peers.join(";"));
        let data = self.dir.join(&own);
        let mut args = vec!["broker", "--config", &self.config, "--data", data.to_str().unwrap(), "--node", &own];
        args.extend(["--peers", &peers, "--listen", &self.client[number - 1], "--peer-listen", &self.peer[number - 1]]);
        args.extend(["--http-listen", "127.0.0.1:0", "--name-servers", &self.name_server]);
        if !others.is_empty() {
            args.push("--join");
        }
        Role::start(&args)
    }

    fn endpoints(&self, numbers: &[usize]) -> String {
        numbers.iter().map(|number| self.client[number - 1].as_str()).collect::<Vec<_>>().join(";")
    }

    /// The status that a node tells, once it is well and has so many voters.
    fn is_well(&self, asked: usize, voters: &[usize]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = said(&run(&["cluster", "status", "-o", "json", "--endpoints", &self.client[asked - 1]]));
            let status: Value = serde_json::from_str(&told.1).unwrap_or_default();
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            let votes = nodes.iter().filter(|node| node["voter"] == true).map(|node| node["number"].as_u64().unwrap());
            if told.0 == 0 && votes.eq(voters.iter().map(|number| *number as u64)) {
                assert_eq!(status["voters"], voters.len());
                return;
            }
            assert!(Instant::now() < deadline, "{told:?}");
        }
    }

    /// The addresses that the name server gives, once they are the expected ones.
    async fn route_becomes(&self, numbers: &[usize]) {
        let expected: BTreeSet<&str> = numbers.iter().map(|number| self.client[number - 1].as_str()).collect();
        let channel = Endpoint::from_shared(format!("http://{}", self.name_server)).unwrap().connect().await.unwrap();
        let mut names = MessagingServiceClient::new(channel);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let topic = Some(Resource { resource_namespace: String::new(), name: "t".to_owned() });
            let mut request = Request::new(v2::QueryRouteRequest { topic, endpoints: None });
            request.metadata_mut().insert("x-mq-client-id", "client-1".parse().unwrap());
            request.metadata_mut().insert("x-mq-language", "RUST".parse().unwrap());
            let route = names.query_route(request).await.unwrap().into_inner();
            let broker = route.message_queues.first().and_then(|queue| queue.broker.clone()).unwrap_or_default();
            let given = broker.endpoints.unwrap_or_default().addresses;
            let given: BTreeSet<String> =
                given.iter().map(|address| format!("{}:{}", address.host, address.port)).collect();
            if given.iter().map(String::as_str).eq(expected.iter().copied()) {
                return;
            }
            assert!(Instant::now() < deadline, "{given:?}, expected {expected:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Sends until it is told to stop; the bodies that were acknowledged.
async fn send(endpoints: String, stop: Arc<AtomicBool>) -> BTreeSet<String> {
    let client = Client::new(ClientConfig::parse(&endpoints).unwrap(), Doors::system()).unwrap();
    let producer = client.producer();
    let mut acknowledged = BTreeSet::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let body = format!("message {number}");
        if producer.send(Message::new("t", body.clone().into_bytes())).await.is_ok() {
            acknowledged.insert(body);
        }
    }
    producer.close().await;
    acknowledged
}

/// Everything in the topic.
async fn receive(endpoints: &str, wanted: &BTreeSet<String>) -> BTreeSet<String> {
    let client = Client::new(ClientConfig::parse(endpoints).unwrap(), Doors::system()).unwrap();
    let options = ConsumerOptions {
        batch: 32,
        invisible_duration: Duration::from_secs(60),
        long_polling: Duration::from_secs(1),
    };
    let consumer = client.simple_consumer("g", options).unwrap();
    let (mut seen, deadline) = (BTreeSet::new(), Instant::now() + PATIENCE);
    while !wanted.is_subset(&seen) && Instant::now() < deadline {
        let received = consumer.receive("t").await.unwrap_or_default();
        seen.extend(received.iter().map(|delivery| String::from_utf8_lossy(&delivery.body).into_owned()));
        consumer.ack_many(&received).await;
    }
    consumer.close().await;
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_from_one_to_three_and_has_nodes_replaced_and_removed_under_sends() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = Role::start(&["namesrv", "--listen", "127.0.0.1:0", "--http-listen", ""]);
    let place = Place::new(dir.path(), names.ready("name_server"));
    let cluster = |args: &[&str], asked: usize| {
        said(&run(&[&["cluster"], args, &["--endpoints", &place.client[asked - 1]]].concat()))
    };
    let mut first = place.start(1, &[]);
    first.ready("client");
    nodes::run_until_fine(&["topic", "create", "t", "--endpoints", &place.client[0]]);
    let stop = Arc::new(AtomicBool::new(false));
    let sending = tokio::spawn(send(place.endpoints(&[1, 2, 3, 4]), stop.clone()));

    // From one to three, the second time by way of a follower.
    let mut second = place.start(2, &[1]);
    second.line("not in a group yet");
    let (code, out, err) = cluster(&["add", &place.peer(2), "-o", "json"], 1);
    let done: Value = serde_json::from_str(&out).unwrap_or_default();
    assert_eq!((code, &done["added"], &done["done"]), (0, &Value::from(2), &Value::from("node 2 votes")), "{out}{err}");
    place.is_well(1, &[1, 2]);
    let mut third = place.start(3, &[1]);
    third.line("not in a group yet");
    let (code, out, err) = cluster(&["add", &place.peer(3)], 2);
    assert!(code == 0 && out.contains("node 3 votes"), "{out}{err}");
    place.is_well(3, &[1, 2, 3]);
    place.route_becomes(&[1, 2, 3]).await;
    let (code, out, _) = cluster(&["add", &place.peer(3)], 3);
    assert!(code == 0 && out.contains("node 3 votes"), "asked again, it is done: {out}");

    // What must not be.
    third.kill();
    let (code, _, err) = cluster(&["remove", "2"], 1);
    assert!(code == 1 && err.contains("2 must live") && err.contains("bring nodes 3 back"), "{code} {err}");
    let third = place.start(3, &[1]);
    place.is_well(2, &[1, 2, 3]);
    let (code, _, err) = cluster(&["add", &format!("5@{}", place.peer[0])], 2);
    assert!(code == 1 && err.contains("is the address of node 1"), "{err}");
    let (code, _, err) = cluster(&["add", "5"], 2);
    assert!(code == 2 && err.contains("number@host:port"), "{err}");

    // The founder, which may lead, gives its place to a fourth node, which knows two of the others.
    let mut fourth = place.start(4, &[2, 3]);
    fourth.line("not in a group yet");
    let (code, out, err) = cluster(&["replace", "1", &place.peer(4)], 3);
    assert!(code == 0 && out.contains("node 4 votes in the place of node 1"), "{out}{err}");
    let ended = first.line("removed from its group");
    assert!(ended.contains("cluster add 1@HOST:PORT"), "{ended}");
    drop(first);
    place.is_well(4, &[2, 3, 4]);
    place.route_becomes(&[2, 3, 4]).await;
    let mut again = place.start(1, &[]);
    assert!(again.line("why:").contains("removed from its group"));

    // And back to two.
    let (code, out, err) = cluster(&["remove", "3"], 4);
    assert!(code == 0 && out.contains("node 3 was removed"), "{out}{err}");
    place.is_well(4, &[2, 4]);
    place.route_becomes(&[2, 4]).await;

    stop.store(true, Ordering::Relaxed);
    let acknowledged = sending.await.unwrap();
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    let seen = receive(&place.endpoints(&[2, 4]), &acknowledged).await;
    let lost: Vec<_> = acknowledged.difference(&seen).collect();
    assert!(lost.is_empty(), "of {} acknowledged, lost: {lost:?}", acknowledged.len());
    drop((names, second, third, fourth));
}
