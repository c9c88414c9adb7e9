//! What a send does when nodes die, refuse, fall silent or answer.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod fake;

use std::time::Duration;

use fake::{Answer, Cluster};
use quorate_client::{CheckListener, Client, Message, Producer, Resolution, SendError};
use quorate_proto::time::Timestamp;
use tokio::time::Instant;

const THREE: [&str; 3] = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"];
const ENDPOINTS: &str = "10.0.0.1:1;10.0.0.2:2;10.0.0.3:3";

async fn producer(client: &Client) -> Producer {
    let producer = client.producer();
    producer.prepare("t").await.unwrap();
    producer
}

fn message() -> Message {
    Message::new("t", "body").tag("x").key("k").property("p", "v")
}

/// Lets the client notice closed connections; a call sent before that is of unknown outcome, rightly.
async fn connections_break() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_send_goes_to_the_first_address_with_everything_the_message_has() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let sent = producer(&client).await.send(message()).await.unwrap();
    assert_eq!(sent.queue_offset, 5);
    let (node, request) = cluster.sends.lock().unwrap()[0].clone();
    let system = request.messages[0].system_properties.clone().unwrap();
    assert_eq!((node.as_str(), &request.messages[0].body[..]), (THREE[0], &b"body"[..]));
    assert_eq!((system.tag.as_deref(), system.keys.as_slice()), (Some("x"), &["k".to_owned()][..]));
    assert_eq!(system.message_id, sent.message_id);
    assert_eq!(system.message_id.len(), 34);
    assert_eq!(request.messages[0].user_properties["p"], "v");
    assert_eq!(cluster.header("send", "x-mq-language").as_deref(), Some("RUST"));
    assert_eq!(cluster.header("send", "grpc-timeout").as_deref(), Some("3000m"));
    assert!(cluster.header("send", "x-mq-client-id").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_repeated_send_keeps_its_message_id_and_goes_to_the_next_address_at_once() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    cluster.say([Answer::Code(50002), Answer::Code(50402)]);
    let start = Instant::now();
    let sent = producer.send(message()).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
    let all = cluster.sent();
    assert_eq!(all.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), THREE);
    assert!(all.iter().all(|(_, id)| *id == sent.message_id));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_during_the_call_hands_it_to_the_next_at_once() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    cluster.say([Answer::Death]);
    let start = Instant::now();
    let sent = producer.send(message()).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
    assert_eq!(
        cluster.sent(),
        [(THREE[0].to_owned(), sent.message_id.clone()), (THREE[1].to_owned(), sent.message_id)]
    );
    // The dead one is remembered: nobody waits for it again.
    let dials = cluster.dials_to(THREE[0]);
    producer.send(message()).await.unwrap();
    assert_eq!(cluster.dials_to(THREE[0]), dials);
}

#[tokio::test(start_paused = true)]
async fn dead_addresses_cost_no_attempt() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client_with(ENDPOINTS, |config| config.attempts = 1);
    let producer = producer(&client).await;
    cluster.kill(THREE[0]);
    cluster.kill(THREE[1]);
    connections_break().await;
    producer.send(message()).await.unwrap();
    assert_eq!(cluster.sent().last().unwrap().0, THREE[2]);
}

#[tokio::test(start_paused = true)]
async fn a_send_outlives_an_outage_of_all_nodes() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    THREE.iter().for_each(|node| cluster.kill(node));
    let sending = producer.send(message());
    let returning = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        cluster.revive(THREE[2]);
    };
    let start = Instant::now();
    let (sent, ()) = tokio::join!(sending, returning);
    sent.unwrap();
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn with_nobody_there_a_send_ends_as_not_now_when_its_time_is_up() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    THREE.iter().for_each(|node| cluster.kill(node));
    connections_break().await;
    let start = Instant::now();
    let error = producer.send(message()).await.unwrap_err();
    assert!(matches!(error, SendError::NotNow { code: 0, .. }), "{error}");
    assert!((9..12).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_four_kinds_of_failure_stay_apart() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    let codes = |codes: [i32; 3]| codes.map(Answer::Code);

    // Refused: said once, not asked again.
    cluster.say([Answer::Code(41301)]);
    assert!(matches!(producer.send(message()).await, Err(SendError::Refused { code: 41301, .. })));
    assert_eq!(cluster.sent().len(), 1);

    // Not now: three nodes asked, none took it.
    cluster.say(codes([50002; 3]));
    assert!(matches!(producer.send(message()).await, Err(SendError::NotNow { code: 50002, .. })));
    assert_eq!(cluster.sent().len(), 4);

    // Unknown: and no later "no" makes it anything else.
    cluster.say(codes([50402; 3]));
    assert!(matches!(producer.send(message()).await, Err(SendError::Unknown { code: 50402, .. })));
    cluster.say(codes([50402, 50002, 50002]));
    assert!(matches!(producer.send(message()).await, Err(SendError::Unknown { code: 50402, .. })));
    cluster.say([Answer::Code(50402), Answer::Code(40402)]);
    assert!(matches!(producer.send(message()).await, Err(SendError::Unknown { code: 50402, .. })));

    // Config: nothing left the process.
    let before = cluster.sent().len();
    let results = producer.send_many(vec![message(), Message::new("other", "x")]).await;
    assert!(results.len() == 2 && results.iter().all(|result| matches!(result, Err(SendError::Config { .. }))));
    assert_eq!(cluster.sent().len(), before);
    assert!(producer.send_many(Vec::new()).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_answers_costs_one_deadline_and_leaves_the_outcome_unknown_if_all_do() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    cluster.say([Answer::Silence]);
    let start = Instant::now();
    producer.send(message()).await.unwrap();
    assert!((3000..3500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    cluster.say([Answer::Silence, Answer::Silence, Answer::Silence]);
    assert!(matches!(producer.send(message()).await, Err(SendError::Unknown { .. })));
}

#[tokio::test(start_paused = true)]
async fn overload_is_answered_with_a_rest() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    cluster.say([Answer::Code(42900), Answer::Code(42900)]);
    let start = Instant::now();
    producer.send(message()).await.unwrap();
    assert!((10..100).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_call_have_results_of_their_own() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    cluster.say([Answer::Entries(vec![20000, 40004, 50002])]);
    let results = producer.send_many(vec![message(), message(), message()]).await;
    assert!(results[0].is_ok());
    assert!(matches!(results[1], Err(SendError::Refused { code: 40004, .. })));
    assert!(matches!(results[2], Err(SendError::NotNow { code: 50002, .. })));
    // If every message may be sent again, the call is.
    cluster.say([Answer::Entries(vec![50002, 50402, 50002])]);
    assert!(producer.send_many(vec![message(), message(), message()]).await.iter().all(Result::is_ok));
    // An answer that does not fit the call says nothing about it.
    cluster.say([Answer::Entries(vec![20000]), Answer::Entries(vec![20000]), Answer::Entries(vec![20000])]);
    let results = producer.send_many(vec![message(), message()]).await;
    assert!(results.iter().all(|result| matches!(result, Err(SendError::Unknown { .. }))), "{results:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_topic_is_refused_and_asked_for_again_next_time() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = client.producer();
    for _ in 0..2 {
        let error = producer.send(Message::new("missing", "x")).await.unwrap_err();
        assert!(matches!(error, SendError::Refused { code: 40402, .. }), "{error}");
    }
    assert_eq!(cluster.calls_of("route").len(), 2);
    assert!(cluster.sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failure_refreshes_the_route_so_that_the_new_leader_is_first() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    cluster.kill(THREE[0]);
    *cluster.route.lock().unwrap() = vec![THREE[2].to_owned(), THREE[1].to_owned()];
    producer.send(message()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        producer.send(message()).await.unwrap();
        if cluster.sent().last().unwrap().0 == THREE[2] {
            break;
        }
        assert!(Instant::now() < deadline, "the route was not refreshed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_address_may_be_a_name_server_that_knows_routes_only() {
    let cluster = Cluster::start(&["10.0.0.9:9", THREE[0], THREE[1]]);
    *cluster.route.lock().unwrap() = vec![THREE[0].to_owned(), THREE[1].to_owned()];
    let client = cluster.client("10.0.0.9:9");
    producer(&client).await.send(message()).await.unwrap();
    assert_eq!(cluster.calls_of("route"), ["10.0.0.9:9"]);
    assert_eq!(cluster.sent()[0].0, THREE[0]);
}

#[tokio::test(start_paused = true)]
async fn many_sends_at_once_share_one_connection_and_one_route_call() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = client.producer();
    let results = futures_util::future::join_all((0..300).map(|_| producer.send(message()))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(cluster.dials_to(THREE[0]), 1);
    assert_eq!(cluster.calls_of("route").len(), 1);
    let mut ids: Vec<String> = cluster.sent().into_iter().map(|(_, id)| id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 300);
}

#[tokio::test(start_paused = true)]
async fn bodies_larger_than_the_windows_go_through() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let body = vec![7u8; 3 << 20];
    producer(&client).await.send(Message::new("t", body.clone())).await.unwrap();
    assert_eq!(cluster.sends.lock().unwrap()[0].1.messages[0].body, body);
}

#[tokio::test(start_paused = true)]
async fn the_session_sends_settings_and_heartbeats_and_comes_back_after_a_loss() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(cluster.calls_of("telemetry"), [THREE[0]]);
    let settings = cluster.settings.lock().unwrap()[0].clone();
    assert_eq!(settings.client_type(), quorate_proto::v2::ClientType::Producer);
    assert!(matches!(settings.pub_sub, Some(quorate_proto::v2::settings::PubSub::Publishing(publishing))
        if publishing.topics[0].name == "t"));
    let beats = cluster.calls_of("heartbeat");
    for node in THREE {
        assert!((2..=3).contains(&beats.iter().filter(|beat| *beat == node).count()), "{beats:?}");
    }
    cluster.kill(THREE[0]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.calls_of("telemetry")[1..], [THREE[1]]);
    producer.close().await;
    assert_eq!(cluster.calls_of("farewell").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_carries_its_time_and_is_recalled_by_its_handle_through_the_next_node_if_need_be() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    let moment = Timestamp(1_700_000_000_250);
    let sent = producer.send(message().deliver_at(moment)).await.unwrap();
    let system = cluster.sends.lock().unwrap()[0].1.messages[0].system_properties.clone().unwrap();
    assert_eq!((system.message_type, system.delivery_timestamp), (3, Some(moment.to_proto())));
    assert_eq!(producer.send(message()).await.unwrap().recall_handle, None);

    let handle = sent.recall_handle.unwrap();
    cluster.say([Answer::Code(50002), Answer::Code(50402)]);
    assert_eq!(producer.recall("t", &handle).await.unwrap(), "id of handle in t");
    assert_eq!(cluster.calls_of("recall"), THREE);
    cluster.say([Answer::Code(40400)]);
    assert_eq!(producer.recall("t", &handle).await.unwrap_err().code(), 40400);
}

#[tokio::test(start_paused = true)]
async fn a_half_message_is_ended_through_the_next_node_if_need_be() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let producer = producer(&client).await;
    let half = producer.send_half(message().check_after(Duration::from_millis(2500))).await.unwrap();
    assert_eq!((half.transaction_id.as_str(), half.topic.as_str()), ("transaction", "t"));
    let system = cluster.sends.lock().unwrap()[0].1.messages[0].system_properties.clone().unwrap();
    let recovery = prost_types::Duration { seconds: 2, nanos: 500_000_000 };
    assert_eq!((system.message_type, system.orphaned_transaction_recovery_duration), (4, Some(recovery)));
    assert_eq!(half.message_id, system.message_id);

    cluster.say([Answer::Code(50002), Answer::Code(50402)]);
    producer.commit(&half).await.unwrap();
    let ends = cluster.ends.lock().unwrap().clone();
    assert_eq!(ends.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), THREE);
    let last = &ends[2].1;
    assert_eq!((last.transaction_id.as_str(), last.resolution, last.source), ("transaction", 1, 1));
    assert_eq!((last.topic.as_ref().unwrap().name.as_str(), &last.message_id), ("t", &half.message_id));
    cluster.say([Answer::Code(42800)]);
    assert_eq!(producer.rollback(&half).await.unwrap_err().code(), 42800);
    assert_eq!(cluster.ends.lock().unwrap()[3].1.resolution, 2);
}

#[tokio::test(start_paused = true)]
async fn a_listener_is_asked_for_the_topics_it_was_made_for_before_anything_is_sent() {
    let cluster = Cluster::start(&THREE);
    let client = cluster.client(ENDPOINTS);
    let listener = CheckListener::new(|half: quorate_client::Delivery| async move {
        match &half.body[..] {
            b"paid" => Some(Resolution::Commit),
            b"failed" => Some(Resolution::Rollback),
            _ => None,
        }
    });
    let producer = client.transactional_producer(["t"], listener);
    let listed = |topics: &[&str]| {
        let settings = cluster.settings.lock().unwrap();
        settings.last().is_some_and(|settings| match &settings.pub_sub {
            Some(quorate_proto::v2::settings::PubSub::Publishing(publishing)) => {
                publishing.topics.iter().map(|topic| topic.name.as_str()).eq(topics.iter().copied())
            }
            _ => false,
        })
    };
    until(|| listed(&["t"])).await;
    cluster.check("t", "unknown", "0");
    cluster.check("t", "paid", "1");
    cluster.check("t", "failed", "2");
    until(|| cluster.ends.lock().unwrap().len() == 2).await;
    let mut ends: Vec<_> = cluster.ends.lock().unwrap().iter().map(|(_, end)| end.clone()).collect();
    ends.sort_by(|a, b| a.transaction_id.cmp(&b.transaction_id));
    let facts = |at: usize| (ends[at].transaction_id.as_str(), ends[at].resolution, ends[at].source);
    assert_eq!((facts(0), facts(1)), (("1", 1, 2), ("2", 2, 2)));
    assert_eq!(ends[0].message_id, "id of paid");

    // A topic that is used later is listed from then on.
    producer.send(Message::new("u", "x")).await.unwrap();
    until(|| listed(&["t", "u"])).await;
}

/// Waits, in the tests' own time, until something holds.
async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it does not come to hold");
}
