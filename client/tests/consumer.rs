//! What receives and acks do.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod fake;

use std::time::Duration;

use fake::{Answer, Cluster};
use quorate_client::{AckError, CallError, ConsumerOptions, Filter, ReceiveError, SimpleConsumer};
use tokio::time::Instant;

const THREE: [&str; 3] = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"];

fn consumer(cluster: &std::sync::Arc<Cluster>) -> SimpleConsumer {
    let client = cluster.client(&THREE.join(";"));
    client.simple_consumer("g", ConsumerOptions::default()).unwrap()
}

fn deliver(after: u64, bodies: &[&'static str]) -> Answer {
    Answer::Deliver { after: Duration::from_secs(after), bodies: bodies.to_vec(), dies: false }
}

#[tokio::test(start_paused = true)]
async fn a_receive_waits_at_the_broker_until_something_comes() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster);
    cluster.say([deliver(15, &["a", "b"])]);
    let start = Instant::now();
    let received = consumer.receive("t").await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 15);
    assert_eq!(received.iter().map(|delivery| &delivery.body[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(
        (received[1].receipt_handle.as_str(), received[1].queue_offset, received[1].attempt),
        ("handle-b", 1, 1)
    );
    let (_, request) = cluster.receives.lock().unwrap()[0].clone();
    assert_eq!(request.batch_size, 32);
    assert_eq!(request.invisible_duration.unwrap().seconds, 60);
    assert_eq!(request.long_polling_timeout.unwrap().seconds, 20);
    assert_eq!(cluster.header("receive", "grpc-timeout").as_deref(), Some("23000m"));
}

#[tokio::test(start_paused = true)]
async fn nothing_new_is_an_empty_answer() {
    let cluster = Cluster::start(&THREE);
    cluster.say([Answer::Code(40401), Answer::Code(40010)]);
    let consumer = consumer(&cluster);
    assert_eq!(consumer.receive("t").await, Ok(Vec::new()));
    assert!(matches!(consumer.receive("t").await, Err(ReceiveError::Refused { code: 40010, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_receive_carries_the_filter_of_its_topic_s_subscription() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster);
    cluster.say([Answer::Code(40401), Answer::Code(40401), Answer::Code(40401)]);
    consumer.receive("t").await.unwrap();
    consumer.subscribe("t", Filter::tags("paid || refunded"));
    consumer.receive("t").await.unwrap();
    consumer.subscribe("t", Filter::sql("amount > 100"));
    consumer.receive("t").await.unwrap();
    let receives = cluster.receives.lock().unwrap();
    let filters = receives.iter().map(|(_, request)| request.filter_expression.clone().unwrap());
    let filters: Vec<(i32, String)> = filters.map(|filter| (filter.r#type, filter.expression)).collect();
    assert_eq!(filters, [(1, "*".into()), (1, "paid || refunded".into()), (2, "amount > 100".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_receive_is_repeated_with_its_attempt_id_and_hands_out_one_batch() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster);
    cluster.say([
        Answer::Deliver { after: Duration::ZERO, bodies: vec!["a", "b"], dies: true },
        deliver(0, &["a", "b"]),
        deliver(0, &["c"]),
    ]);
    let received = consumer.receive("t").await.unwrap();
    assert_eq!(received.len(), 2);
    assert_eq!(consumer.receive("t").await.unwrap().len(), 1);
    let asked = cluster.receives.lock().unwrap().clone();
    let ids: Vec<_> = asked.iter().map(|(_, request)| request.attempt_id.clone().unwrap()).collect();
    assert_eq!((asked[0].0.as_str(), asked[1].0.as_str()), (THREE[0], THREE[1]));
    assert!(ids[0] == ids[1] && ids[1] != ids[2], "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn what_arrived_before_all_nodes_were_lost_is_not_thrown_away() {
    let cluster = Cluster::start(&THREE[..1]);
    let consumer = cluster
        .client_with(THREE[0], |config| config.attempts = 1)
        .simple_consumer("g", ConsumerOptions::default())
        .unwrap();
    cluster.say([Answer::Deliver { after: Duration::ZERO, bodies: vec!["a"], dies: true }]);
    assert_eq!(consumer.receive("t").await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_ack_has_a_result_of_its_own() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster);
    cluster.say([deliver(0, &["a", "b", "c"])]);
    let received = consumer.receive("t").await.unwrap();

    cluster.say([Answer::Entries(vec![20000, 40013, 20000])]);
    let results = consumer.ack_many(&received).await;
    assert!(results[0].is_ok() && results[2].is_ok());
    assert!(matches!(results[1], Err(AckError::Refused { code: 40013, .. })));

    // The whole call refused, not taken, or lost: acks are repeated where that helps.
    cluster.say([Answer::Code(40003)]);
    assert!(matches!(consumer.ack(&received[0]).await, Err(AckError::Refused { code: 40003, .. })));
    cluster.say([Answer::Code(50002), Answer::Death]);
    assert_eq!(consumer.ack(&received[0]).await, Ok(()));
    assert!(consumer.ack_many(&[]).await.is_empty());

    let mut other = received[1].clone();
    other.topic = "other".to_owned();
    let results = consumer.ack_many(&[received[0].clone(), other]).await;
    assert!(results.iter().all(|result| matches!(result, Err(AckError::Config { .. }))));
}

#[tokio::test(start_paused = true)]
async fn a_changed_invisible_duration_brings_a_new_handle() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster);
    cluster.say([deliver(0, &["a"])]);
    let mut delivery = consumer.receive("t").await.unwrap().remove(0);
    cluster.say([Answer::Code(40011)]);
    let error = consumer.change_invisible_duration(&mut delivery, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { code: 40011, .. }));
    assert_eq!(delivery.receipt_handle, "handle-a");
    consumer.change_invisible_duration(&mut delivery, Duration::from_secs(30)).await.unwrap();
    assert_eq!((delivery.receipt_handle.as_str(), delivery.invisible_duration.as_secs()), ("handle-a+", 30));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_no_group_s_never_leaves_the_process() {
    let cluster = Cluster::start(&THREE);
    let error = cluster.client(THREE[0]).simple_consumer("a b", ConsumerOptions::default()).unwrap_err();
    assert!(matches!(error, CallError::Config { .. }));
}
