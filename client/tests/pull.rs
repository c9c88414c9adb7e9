//! What a pull consumer reads, keeps and says.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod fake;

use std::time::Duration;

use fake::{Answer, Cluster};
use quorate_client::{CallError, Filter, OffsetOf, PullConsumer, PullOptions, Timestamp, TopicQueue};
use tokio::time::Instant;

const THREE: [&str; 3] = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"];

fn consumer(cluster: &std::sync::Arc<Cluster>, begin: OffsetOf) -> PullConsumer {
    let options = PullOptions { begin, ..PullOptions::default() };
    cluster.client(&THREE.join(";")).pull_consumer("g", options).unwrap()
}

async fn first_queue(consumer: &PullConsumer) -> TopicQueue {
    consumer.queues("t").await.unwrap().remove(0)
}

fn deliver(after: u64, bodies: &[&'static str], dies: bool) -> Answer {
    Answer::Deliver { after: Duration::from_secs(after), bodies: bodies.to_vec(), dies }
}

fn offsets(cluster: &Cluster) -> Vec<i64> {
    cluster.pulls.lock().unwrap().iter().map(|(_, request)| request.offset).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pull_begins_where_the_options_say_waits_at_the_broker_and_moves_the_position() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster, OffsetOf::First);
    let queues = consumer.queues("t").await.unwrap();
    let named: Vec<_> = queues.iter().map(|queue| (queue.topic(), queue.broker(), queue.id())).collect();
    assert_eq!(named, [("t", "g", 0), ("t", "g", 1), ("t", "g", 2), ("t", "g", 3)]);
    assert_eq!(consumer.position(&queues[1]), None);

    cluster.say([Answer::Fine, Answer::Fine, deliver(15, &["a", "b"], false), deliver(0, &["c"], false)]);
    let start = Instant::now();
    let pulled = consumer.pull(&queues[1]).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 15);
    let places: Vec<_> = pulled.iter().map(|one| (&one.body[..], one.queue, one.queue_offset)).collect();
    assert_eq!(places, [(&b"a"[..], 1, 100), (&b"b"[..], 1, 101)]);
    assert_eq!(consumer.position(&queues[1]), Some(102));
    assert_eq!(consumer.pull(&queues[1]).await.unwrap().len(), 1);
    assert_eq!((offsets(&cluster), consumer.position(&queues[1])), (vec![100, 102], Some(103)));
    let (_, request) = cluster.pulls.lock().unwrap()[0].clone();
    assert_eq!((request.batch_size, request.long_polling_timeout.unwrap().seconds), (32, 20));
    assert_eq!(request.group.unwrap().name, "g");
    assert_eq!(cluster.header("pull", "grpc-timeout").as_deref(), Some("23000m"));
}

#[tokio::test(start_paused = true)]
async fn a_group_that_has_begun_goes_on_where_it_is_and_another_where_it_wants() {
    let cluster = Cluster::start(&THREE);
    cluster.places.lock().unwrap().insert(0, 150);
    for (begin, id, expected) in [
        (OffsetOf::End, 0, 150),
        (OffsetOf::End, 1, 200),
        (OffsetOf::Since(Timestamp(7_000)), 1, 107),
        (OffsetOf::First, 1, 100),
    ] {
        let consumer = consumer(&cluster, begin);
        let queue = consumer.queues("t").await.unwrap().remove(id);
        assert_eq!(consumer.pull(&queue).await, Ok(Vec::new()), "no new message is an empty answer");
        assert_eq!(consumer.position(&queue), Some(expected), "{begin:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_says_the_position_and_seeking_says_nothing() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster, OffsetOf::First);
    let queue = first_queue(&consumer).await;
    assert_eq!(consumer.commit(&queue).await, Ok(None), "nothing was pulled");
    assert_eq!(consumer.committed(&queue).await, Ok(None));
    consumer.seek(&queue, 120);
    assert_eq!(consumer.committed(&queue).await, Ok(None));
    assert_eq!(consumer.commit(&queue).await, Ok(Some(120)));
    assert_eq!(consumer.committed(&queue).await, Ok(Some(120)));
    consumer.commit_at(&queue, 110).await.unwrap();
    assert_eq!((consumer.committed(&queue).await, consumer.position(&queue)), (Ok(Some(110)), Some(120)));

    // Refused, and lost on the way: a commit is repeated, since saying it twice is saying it once.
    cluster.say([Answer::Code(40019)]);
    let error = consumer.commit_at(&queue, 999).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { code: 40019, .. }), "{error:?}");
    cluster.say([Answer::Code(50002), Answer::Death]);
    consumer.commit_at(&queue, 130).await.unwrap();
    assert_eq!(consumer.committed(&queue).await, Ok(Some(130)));
    let error = consumer.commit_at(&queue, u64::MAX).await.unwrap_err();
    assert!(matches!(error, CallError::Config { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_is_cut_short_is_made_again_whole_at_another_node() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster, OffsetOf::First);
    let queue = first_queue(&consumer).await;
    consumer.seek(&queue, 5);
    cluster.say([deliver(0, &["a", "b"], true), deliver(0, &["a", "b", "c"], false)]);
    assert_eq!(consumer.pull(&queue).await.unwrap().len(), 3);
    assert_eq!((offsets(&cluster), consumer.position(&queue)), (vec![5, 5], Some(8)));
    let nodes: Vec<String> = cluster.pulls.lock().unwrap().iter().map(|(node, _)| node.clone()).collect();
    assert_eq!(nodes, THREE[..2]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_pull_moves_nothing_and_a_seek_during_one_counts() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster, OffsetOf::First);
    let queue = first_queue(&consumer).await;
    consumer.seek(&queue, 5);
    cluster.say([Answer::Code(40019), deliver(10, &["a"], false)]);
    assert!(matches!(consumer.pull(&queue).await, Err(CallError::Refused { code: 40019, .. })));
    assert_eq!(consumer.position(&queue), Some(5));
    let seek = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        consumer.seek(&queue, 77);
    };
    let (pulled, ()) = tokio::join!(consumer.pull(&queue), seek);
    assert_eq!((pulled.unwrap().len(), consumer.position(&queue)), (1, Some(77)));
}

#[tokio::test(start_paused = true)]
async fn a_pull_carries_the_filter_of_its_topic_s_subscription() {
    let cluster = Cluster::start(&THREE);
    let consumer = consumer(&cluster, OffsetOf::First);
    let queue = first_queue(&consumer).await;
    consumer.seek(&queue, 0);
    consumer.pull(&queue).await.unwrap();
    consumer.subscribe("t", Filter::sql("amount > 100"));
    consumer.pull(&queue).await.unwrap();
    let pulls = cluster.pulls.lock().unwrap();
    let filters = pulls.iter().map(|(_, request)| request.filter_expression.clone().unwrap());
    let filters: Vec<(i32, String)> = filters.map(|filter| (filter.r#type, filter.expression)).collect();
    assert_eq!(filters, [(1, "*".into()), (2, "amount > 100".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_no_group_s_never_leaves_the_process_and_a_topic_that_is_not_there_is_refused() {
    let cluster = Cluster::start(&THREE);
    let error = cluster.client(THREE[0]).pull_consumer("a b", PullOptions::default()).unwrap_err();
    assert!(matches!(error, CallError::Config { .. }));
    let error = consumer(&cluster, OffsetOf::First).queues("missing").await.unwrap_err();
    assert!(matches!(error, CallError::Refused { code: 40402, .. }), "{error:?}");
}
