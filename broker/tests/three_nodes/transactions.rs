//! Transactional messages through whole nodes: ended through any of them, checked through whichever holds a stream, across a killed leader.

use quorate_proto::{
    admin::{EndTransactionRequest as OperatorsEnd, ListTransactionsRequest, Transaction},
    v2::{
        EndTransactionRequest, MessageType, Publishing, QueryRouteRequest, Settings, TelemetryCommand,
        TransactionResolution, settings::PubSub, telemetry_command::Command,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::*;

/// A half message, whose producer is left alone for so long.
fn half(id: u32, immunity_ms: u64) -> Message {
    let mut half = message(id);
    let system = half.system_properties.as_mut().expect("set");
    system.message_type = MessageType::Transaction as i32;
    let nanos = i32::try_from(immunity_ms % 1000).expect("small") * 1_000_000;
    let recovery = prost_types::Duration { seconds: (immunity_ms / 1000) as i64, nanos };
    system.orphaned_transaction_recovery_duration = Some(recovery);
    half
}

async fn send_half(client: &mut Client, id: u32, immunity_ms: u64) -> String {
    let (code, entries) = send(client, vec![half(id, immunity_ms)]).await;
    assert_eq!(code, 20000);
    assert!(entries[0].recall_handle.is_empty());
    entries[0].transaction_id.clone()
}

async fn end(client: &mut Client, transaction_id: &str, resolution: TransactionResolution) -> i32 {
    let wanted = EndTransactionRequest {
        topic: named("t"),
        transaction_id: transaction_id.to_owned(),
        resolution: resolution as i32,
        ..EndTransactionRequest::default()
    };
    let answer = client.end_transaction(request(wanted, Duration::from_secs(3))).await;
    answer.expect("never an error at the level of gRPC").into_inner().status.expect("set").code
}

/// A producer's Telemetry stream, for as long as both halves live.
struct Producer {
    _settings: mpsc::UnboundedSender<TelemetryCommand>,
    questions: Streaming<TelemetryCommand>,
}

impl Producer {
    async fn of(client: &mut Client, topic: &str) -> Self {
        let publishing = Publishing { topics: named(topic).into_iter().collect(), ..Publishing::default() };
        let settings = Settings { pub_sub: Some(PubSub::Publishing(publishing)), ..Settings::default() };
        let (sender, receiver) = mpsc::unbounded_channel();
        let settings = TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
        sender.send(settings).expect("held");
        let mut asked = Request::new(UnboundedReceiverStream::new(receiver));
        asked.metadata_mut().insert("x-mq-client-id", "producer@1@0@x".parse().expect("ascii"));
        let mut questions = client.telemetry(asked).await.expect("opens").into_inner();
        let first = questions.message().await.expect("no error").expect("an answer");
        assert!(matches!(first.command, Some(Command::Settings(_))), "{first:?}");
        Self { _settings: sender, questions }
    }

    /// The next half message that the broker asks about, and the id of its transaction.
    async fn question(&mut self) -> (Message, String) {
        let next = tokio::time::timeout(Duration::from_secs(20), self.questions.message()).await;
        let command = next.expect("in time").expect("no error").expect("the stream is open").command;
        let Some(Command::RecoverOrphanedTransactionCommand(check)) = command else { panic!("{command:?}") };
        (check.message.expect("set"), check.transaction_id)
    }
}

async fn waiting(cluster: &Cluster, number: u16) -> Vec<Transaction> {
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&number].bound.client));
    let wanted = ListTransactionsRequest { topic: "t".into(), ..ListTransactionsRequest::default() };
    admin.list_transactions(wanted).await.expect("in-band").into_inner().transactions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_message_is_ended_through_any_node_and_every_wrong_word_has_its_code() {
    use TransactionResolution::{Commit, Rollback, Unspecified};
    let cluster = Cluster::start(|_| {}).await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let [mut at_leader, mut at_one, mut at_other] = [leader, followers[0], followers[1]].map(|n| cluster.client(n));

    let ids = [send_half(&mut at_one, 1, 60_000).await, send_half(&mut at_leader, 2, 60_000).await];
    assert_eq!(send_half(&mut at_other, 1, 60_000).await, ids[0], "a repeat is the same transaction");
    assert_eq!(receive(&mut at_leader, 32, 200).await.0, 40401);
    assert_eq!(end(&mut at_other, &ids[0], Commit).await, 20000);
    assert_eq!(end(&mut at_leader, &ids[0], Commit).await, 20000);
    assert_eq!(end(&mut at_one, &ids[0], Rollback).await, 42800);
    assert_eq!(end(&mut at_one, &ids[1], Rollback).await, 20000);
    assert_eq!(end(&mut at_other, &ids[1], Rollback).await, 20000);
    assert_eq!(end(&mut at_leader, &ids[1], Commit).await, 42800);
    assert_eq!(end(&mut at_one, &ids[1], Unspecified).await, 40000);
    for wrong in ["", "00FF", "no hex"] {
        assert_eq!(end(&mut at_one, wrong, Commit).await, 40008, "{wrong:?}");
    }
    let (_, messages) = receive(&mut at_one, 32, 2000).await;
    assert_eq!(bodies(&messages), ["body 1"]);
    let system = messages[0].system_properties.clone().expect("set");
    assert_eq!((system.message_type, system.queue_offset), (MessageType::Transaction as i32, Some(0)));

    // A topic that takes everything says so, and one of another type takes no half messages.
    let wanted = QueryRouteRequest { topic: named("t"), endpoints: None };
    let route = at_one.query_route(request(wanted, Duration::from_secs(3))).await.expect("in-band").into_inner();
    assert_eq!(route.message_queues[0].accept_message_types, [1, 2, 3, 4]);
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&leader].bound.client));
    for (name, kind, sent) in [("plain", 1, half(3, 0)), ("halves", 4, message(4))] {
        let topic = quorate_proto::admin::Topic { name: name.into(), queues: 1, r#type: kind, ..Default::default() };
        let created = quorate_proto::admin::CreateTopicRequest { topic: Some(topic) };
        assert_eq!(admin.create_topic(created).await.expect("in-band").into_inner().code, 20000);
        assert_eq!(send(&mut at_one, vec![Message { topic: named(name), ..sent }]).await.0, 40014, "{name}");
    }
    let mut ordered = half(5, 1000);
    ordered.system_properties.as_mut().expect("set").message_group = Some("g".into());
    assert_eq!(send(&mut at_one, vec![ordered]).await.0, 40014);
    assert_eq!(send(&mut at_one, vec![half(6, 3_600_001)]).await.0, 40000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_survive_a_killed_leader_and_are_checked_through_a_follower_s_stream() {
    let mut cluster = Cluster::start(|config| {
        config.transactions.check_interval = Duration::from_secs(1);
        config.transactions.checks_max = 2;
    })
    .await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let mut at_leader = cluster.client(leader);

    // Nobody to ask: it waits, and that does not count.
    let first = send_half(&mut at_leader, 1, 100).await;
    let mut stranger = Producer::of(&mut cluster.client(followers[0]), "u").await;
    tokio::time::timeout(Duration::from_secs(2), stranger.question()).await.expect_err("not about its topic");
    let listed = waiting(&cluster, followers[0]).await;
    assert_eq!((listed.len(), listed[0].checks, listed[0].transaction_id.as_str()), (1, 0, first.as_str()));
    assert_eq!(listed[0].message_id, format!("{:034X}", 1));

    // The only stream is on a follower.
    let mut producer = Producer::of(&mut cluster.client(followers[0]), "t").await;
    let (asked, id) = producer.question().await;
    assert_eq!((bodies(std::slice::from_ref(&asked)), id), (vec!["body 1".to_owned()], first.clone()));
    let system = asked.system_properties.expect("set");
    assert_eq!(system.body_digest.map(|digest| digest.checksum.len()), Some(32));
    assert_eq!(end(&mut cluster.client(followers[1]), &first, TransactionResolution::Commit).await, 20000);

    // The leader dies; the next one asks about what was left open, as often as is left.
    let second = send_half(&mut at_leader, 2, 100).await;
    assert_eq!(producer.question().await.1, second);
    cluster.kill(leader);
    cluster.leader().await;
    let (asked, id) = producer.question().await;
    assert_eq!((bodies(&[asked]), id), (vec!["body 2".to_owned()], second.clone()));

    // In vain: it is set aside, and an operator decides.
    let deadline = Instant::now() + Duration::from_secs(20);
    let follower = cluster.followers().await[0];
    loop {
        let listed = waiting(&cluster, follower).await;
        assert_eq!(listed.len(), 1);
        if listed[0].check_ms.is_none() {
            assert_eq!(listed[0].checks, 2);
            break;
        }
        assert!(Instant::now() < deadline, "{listed:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&follower].bound.client));
    let wanted = OperatorsEnd { transaction_id: second, commit: true };
    assert_eq!(admin.end_transaction(wanted).await.expect("in-band").into_inner().code, 20000);
    assert!(waiting(&cluster, follower).await.is_empty());
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        let (_, messages) = receive(&mut cluster.client(follower), 32, 3000).await;
        assert!(!messages.is_empty(), "only {seen:?}");
        ack(&mut cluster.client(follower), &messages).await;
        seen.extend(bodies(&messages));
    }
    assert_eq!(seen, ["body 1", "body 2"].map(str::to_owned).into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_message_does_not_pin_the_log_and_is_committed_after_its_segment_is_gone() {
    let cluster = Cluster::start(|config| {
        config.storage.segment_bytes = 2 << 20;
        config.limits.message_bytes_max = 100 << 10;
        config.limits.batch_bytes_max = 100 << 10;
        config.retention.log_bytes_max = 4 << 20;
    })
    .await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    let ids = [send_half(&mut client, 1, 600_000).await, send_half(&mut client, 2, 600_000).await];
    let files = || {
        let log = cluster.configs[&leader].storage.data_dir.join("log");
        std::fs::read_dir(log).expect("a folder").count()
    };
    for id in 100..220 {
        let plain = Message { body: vec![b'.'; 64 << 10].into(), ..message(id) };
        assert_eq!(send(&mut client, vec![plain]).await.0, 20000);
        if id == 150 {
            // Behind a segment border, and before the floor has passed it.
            assert_eq!(end(&mut client, &ids[0], TransactionResolution::Commit).await, 20000);
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while files() > 4 {
        assert!(Instant::now() < deadline, "the half message pins the log");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(end(&mut client, &ids[1], TransactionResolution::Commit).await, 20000);
    let mut seen = BTreeSet::new();
    loop {
        let (_, messages) = receive(&mut client, 32, 500).await;
        if messages.is_empty() {
            break;
        }
        ack(&mut client, &messages).await;
        seen.extend(bodies(&messages).into_iter().filter(|body| body.len() < 100));
    }
    assert!(seen.contains("body 2"), "{seen:?}");
}
