//! Consumers that pull, through whole nodes: what each node shows, places that outlive a leader, and every answer that is not a message.

use quorate_proto::v2::{
    EndTransactionRequest, FilterExpression, FilterType, GetOffsetRequest, MessageType, PullMessageRequest,
    QueryOffsetPolicy, QueryOffsetRequest, TransactionResolution, UpdateOffsetRequest,
    pull_message_response::Content as Pulled,
};

use super::*;

fn queue(topic: &str, id: i32) -> Option<MessageQueue> {
    Some(MessageQueue { topic: named(topic), id, ..MessageQueue::default() })
}

fn pull_request(offset: i64, max: i32, poll_ms: i64) -> PullMessageRequest {
    let nanos = (poll_ms % 1000) as i32 * 1_000_000;
    PullMessageRequest {
        group: named("pullers"),
        message_queue: queue("t", 0),
        offset,
        batch_size: max,
        filter_expression: None,
        long_polling_timeout: Some(prost_types::Duration { seconds: poll_ms / 1000, nanos }),
    }
}

/// Status code, messages and next offset of a pull, in which they come in this order.
async fn pull(client: &mut Client, wanted: PullMessageRequest) -> (i32, Vec<Message>, Option<i64>) {
    let stream = client.pull_message(request(wanted, Duration::from_secs(30))).await;
    let mut stream = stream.expect("headers come at once").into_inner();
    let (mut code, mut messages, mut next) = (0, Vec::new(), None);
    while let Some(item) = stream.message().await.expect("never an error at the level of gRPC") {
        assert!(next.is_none(), "the next offset comes last");
        match item.content.expect("set") {
            Pulled::Status(status) => {
                assert!(code == 0 && messages.is_empty(), "the status comes first, once");
                code = status.code;
            }
            Pulled::Message(message) => messages.push(message),
            Pulled::NextOffset(offset) => next = Some(offset),
        }
    }
    (code, messages, next)
}

/// A pull that is not woken finds its message when its poll ends, 25 s after it began.
async fn long_before_it_ends<T>(pull: tokio::task::JoinHandle<T>) -> T {
    tokio::time::timeout(Duration::from_secs(15), pull).await.expect("it was woken").expect("no panic")
}

async fn update(client: &mut Client, group: &str, queue: Option<MessageQueue>, offset: i64) -> i32 {
    let wanted = UpdateOffsetRequest { group: named(group), message_queue: queue, offset };
    let answer = client.update_offset(request(wanted, Duration::from_secs(5))).await.expect("in-band").into_inner();
    answer.status.expect("set").code
}

async fn place(client: &mut Client, group: &str, queue: Option<MessageQueue>) -> (i32, i64) {
    let wanted = GetOffsetRequest { group: named(group), message_queue: queue };
    let answer = client.get_offset(request(wanted, Duration::from_secs(5))).await.expect("in-band").into_inner();
    (answer.status.expect("set").code, answer.offset)
}

async fn ask(
    client: &mut Client,
    queue: Option<MessageQueue>,
    policy: i32,
    timestamp: Option<prost_types::Timestamp>,
) -> (i32, i64) {
    let wanted = QueryOffsetRequest { message_queue: queue, query_offset_policy: policy, timestamp };
    let answer = client.query_offset(request(wanted, Duration::from_secs(5))).await.expect("in-band").into_inner();
    (answer.status.expect("set").code, answer.offset)
}

fn offsets(messages: &[Message]) -> Vec<i64> {
    let offset = |message: &Message| message.system_properties.as_ref().expect("set").queue_offset.expect("set");
    messages.iter().map(offset).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_shows_the_same_messages_and_a_place_outlives_its_leader() {
    let mut cluster = Cluster::start(|config| config.topics.auto_create_queues = 1).await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let mut clients: Vec<Client> = [leader, followers[0], followers[1]].map(|n| cluster.client(n)).into();
    assert_eq!(send(&mut clients[1], (0..6).map(message).collect()).await.0, 20000);

    let mut seen = BTreeSet::new();
    for client in &mut clients {
        let (code, messages, next) = pull(client, pull_request(1, 3, 0)).await;
        assert_eq!((code, offsets(&messages), next), (20000, vec![1, 2, 3], Some(4)));
        for message in &messages {
            let system = message.system_properties.as_ref().expect("set");
            assert_eq!((&system.receipt_handle, system.queue_id, system.tag.as_deref()), (&None, 0, Some("TagA")));
            assert!(system.store_timestamp.is_some() && system.body_digest.is_some());
        }
        seen.insert(bodies(&messages));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");

    // Nobody has begun; then one says how far its group is, through any node, and each node knows.
    assert_eq!(place(&mut clients[2], "pullers", queue("t", 0)).await.0, 40404);
    assert_eq!(update(&mut clients[1], "pullers", queue("t", 0), 4).await, 20000);
    for client in &mut clients {
        assert_eq!(place(client, "pullers", queue("t", 0)).await, (20000, 4));
    }
    cluster.kill(leader);
    cluster.leader().await;
    for client in &mut clients[1..] {
        assert_eq!(place(client, "pullers", queue("t", 0)).await, (20000, 4), "acknowledged, so it stays");
        let (code, messages, next) = pull(client, pull_request(4, 32, 0)).await;
        assert_eq!((code, bodies(&messages), next), (20000, vec!["body 4".to_owned(), "body 5".to_owned()], Some(6)));
    }
    // Back by its own word, and what it pulls again is what it pulled before.
    assert_eq!(update(&mut clients[1], "pullers", queue("t", 0), 1).await, 20000);
    assert_eq!(place(&mut clients[2], "pullers", queue("t", 0)).await, (20000, 1));
    assert!(seen.contains(&bodies(&pull(&mut clients[2], pull_request(1, 3, 0)).await.1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_at_the_end_waits_at_any_node_for_a_message_of_its_queue_and_survives_a_killed_leader() {
    let mut cluster = Cluster::start(|config| config.topics.auto_create_queues = 1).await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let mut client = cluster.client(followers[0]);
    assert_eq!(send(&mut client, vec![message(0)]).await.0, 20000);
    let (code, messages, next) = pull(&mut client, pull_request(1, 32, 300)).await;
    assert_eq!((code, messages.len(), next), (40401, 0, Some(1)), "nothing came, and here is where to go on");

    // Two wait for the same message; both get it, since neither takes it from the other.
    let waiting: Vec<_> = followers
        .iter()
        .map(|number| {
            let mut client = cluster.client(*number);
            tokio::spawn(async move { pull(&mut client, pull_request(1, 32, 25_000)).await })
        })
        .collect();
    assert_eq!(send(&mut client, vec![message(1)]).await.0, 20000);
    for pulled in waiting {
        let (code, messages, next) = long_before_it_ends(pulled).await;
        assert_eq!((code, bodies(&messages), next), (20000, vec!["body 1".to_owned()], Some(2)));
    }

    // The leader dies while one waits.
    let mut waiter = cluster.client(followers[1]);
    let waiting = tokio::spawn(async move { pull(&mut waiter, pull_request(2, 32, 25_000)).await });
    cluster.kill(leader);
    cluster.leader().await;
    assert_eq!(send(&mut client, vec![message(2)]).await.0, 20000);
    let (code, messages, next) = long_before_it_ends(waiting).await;
    assert_eq!((code, bodies(&messages), next), (20000, vec!["body 2".to_owned()], Some(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_gets_what_its_filter_wants_and_goes_on_behind_all_that_was_looked_at() {
    let cluster = Cluster::start(|config| config.topics.auto_create_queues = 1).await;
    let mut client = cluster.client(cluster.followers().await[0]);
    let colored = |id: u32| {
        let mut message = message(id);
        let color = if id.is_multiple_of(100) { "red" } else { "blue" };
        message.system_properties.as_mut().expect("set").tag = Some(color.into());
        message.user_properties.insert("number".into(), id.to_string());
        message
    };
    for first in (0..300).step_by(50) {
        assert_eq!(send(&mut client, (first..first + 50).map(colored).collect()).await.0, 20000);
    }
    let filtered = |kind: FilterType, expression: &str, offset, max| PullMessageRequest {
        filter_expression: Some(FilterExpression { r#type: kind as i32, expression: expression.into() }),
        ..pull_request(offset, max, 0)
    };
    let (code, messages, next) = pull(&mut client, filtered(FilterType::Tag, "red || green", 0, 2)).await;
    assert_eq!((code, offsets(&messages), next), (20000, vec![0, 100], Some(101)));
    let (code, messages, next) = pull(&mut client, filtered(FilterType::Tag, "red || green", 101, 2)).await;
    assert_eq!((code, offsets(&messages), next), (20000, vec![200], Some(300)));
    let (code, messages, next) = pull(&mut client, filtered(FilterType::Sql, "number BETWEEN 150 AND 151", 7, 9)).await;
    assert_eq!((code, offsets(&messages), next), (20000, vec![150, 151], Some(300)));
    let (code, messages, next) = pull(&mut client, filtered(FilterType::Sql, "number > 1000", 7, 9)).await;
    assert_eq!((code, messages.len(), next), (40401, 0, Some(300)));
    assert_eq!(pull(&mut client, filtered(FilterType::Sql, "number >", 7, 9)).await.0, 40010);
    // A filter of one pull is nobody else's matter.
    assert_eq!(pull(&mut client, pull_request(298, 9, 0)).await.1.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_place_has_its_code_and_says_which_one_is_right() {
    let cluster = Cluster::start(|config| config.topics.auto_create_queues = 1).await;
    let mut client = cluster.client(cluster.followers().await[0]);
    assert_eq!(send(&mut client, (0..3).map(message).collect()).await.0, 20000);

    let code_and_next = |(code, messages, next): (i32, Vec<Message>, Option<i64>)| {
        assert!(messages.is_empty());
        (code, next)
    };
    assert_eq!(code_and_next(pull(&mut client, pull_request(9, 1, 20_000)).await), (40019, Some(3)), "at once");
    assert_eq!(code_and_next(pull(&mut client, pull_request(-1, 1, 0)).await), (40019, None));
    let of = |queue| PullMessageRequest { message_queue: queue, ..pull_request(0, 1, 0) };
    assert_eq!(code_and_next(pull(&mut client, of(queue("t", 1))).await), (40400, None));
    assert_eq!(code_and_next(pull(&mut client, of(queue("t", -1))).await), (40000, None));
    assert_eq!(code_and_next(pull(&mut client, of(queue("a b", 0))).await), (40002, None));
    let of = |group: &str| PullMessageRequest { group: named(group), ..pull_request(0, 1, 0) };
    assert_eq!(code_and_next(pull(&mut client, of("a b")).await), (40003, None));
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let polled = PullMessageRequest { long_polling_timeout: negative, ..pull_request(0, 1, 0) };
    assert_eq!(code_and_next(pull(&mut client, polled).await), (40018, None));
    assert_eq!(code_and_next(pull(&mut client, pull_request(0, -5, 0)).await), (40000, None));

    assert_eq!(update(&mut client, "pullers", queue("t", 0), 4).await, 40019);
    assert_eq!(update(&mut client, "pullers", queue("t", 0), -4).await, 40019);
    assert_eq!(update(&mut client, "pullers", queue("t", 5), 0).await, 40400);
    assert_eq!(update(&mut client, "pullers", queue("unknown", 0), 0).await, 40402);
    assert_eq!(update(&mut client, "a b", queue("t", 0), 0).await, 40003);
    assert_eq!(place(&mut client, "pullers", queue("t", 0)).await.0, 40404, "what was refused has changed nothing");
    assert_eq!(place(&mut client, "pullers", queue("unknown", 0)).await.0, 40402);
    assert_eq!(place(&mut client, "never-heard-of", queue("t", 0)).await.0, 40404);
    assert_eq!(ask(&mut client, queue("unknown", 0), QueryOffsetPolicy::End as i32, None).await.0, 40402);
    assert_eq!(ask(&mut client, queue("t", 0), QueryOffsetPolicy::Timestamp as i32, None).await.0, 40000);
    assert_eq!(ask(&mut client, queue("t", 0), 7, None).await.0, 40000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_tells_its_beginning_its_end_and_the_first_message_of_a_time() {
    let cluster = Cluster::start(|config| config.topics.auto_create_queues = 1).await;
    let mut client = cluster.client(cluster.followers().await[0]);
    for id in 0..20 {
        assert_eq!(send(&mut client, vec![message(id)]).await.0, 20000);
    }
    assert_eq!(ask(&mut client, queue("t", 0), QueryOffsetPolicy::Beginning as i32, None).await, (20000, 0));
    assert_eq!(ask(&mut client, queue("t", 0), QueryOffsetPolicy::End as i32, None).await, (20000, 20));
    let messages = pull(&mut client, pull_request(0, 32, 0)).await.1;
    let stored: Vec<_> =
        messages.iter().map(|one| one.system_properties.as_ref().expect("set").store_timestamp.expect("set")).collect();
    let by_time = QueryOffsetPolicy::Timestamp as i32;
    for (offset, time) in stored.iter().enumerate() {
        let first = stored.iter().position(|other| other == time).expect("itself");
        assert!(first <= offset);
        assert_eq!(ask(&mut client, queue("t", 0), by_time, Some(*time)).await, (20000, first as i64));
    }
    let never = prost_types::Timestamp { seconds: 1 << 40, nanos: 0 };
    assert_eq!(ask(&mut client, queue("t", 0), by_time, Some(never)).await, (20000, 20));
    let long_ago = prost_types::Timestamp { seconds: -1, nanos: 0 };
    assert_eq!(ask(&mut client, queue("t", 0), by_time, Some(long_ago)).await, (20000, 0));
}

/// A search by halves meets the message that was a half one first, and must not take its neighbours for as old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_waited_as_a_half_one_hides_none_that_is_younger_from_a_search_by_time() {
    let cluster = Cluster::start(|config| config.topics.auto_create_queues = 1).await;
    let mut client = cluster.client(cluster.followers().await[0]);
    let mut half = message(100);
    half.system_properties.as_mut().expect("set").message_type = MessageType::Transaction as i32;
    let (_, sent) = send(&mut client, vec![half]).await;
    let stored = |message: &Message| message.system_properties.as_ref().expect("set").store_timestamp.expect("set");
    // So long that the half message is older by log time.
    let mut count = 0;
    let (first, since) = loop {
        assert_eq!(send(&mut client, vec![message(count)]).await.0, 20000);
        count += 1;
        let all = pull(&mut client, pull_request(0, 1024, 0)).await.1;
        let (oldest, newest) = (stored(&all[0]), stored(all.last().expect("sent")));
        if (newest.seconds, newest.nanos) > (oldest.seconds, oldest.nanos) {
            break (i64::from(count) - 1, newest);
        }
    };
    let end = EndTransactionRequest {
        topic: named("t"),
        transaction_id: sent[0].transaction_id.clone(),
        resolution: TransactionResolution::Commit as i32,
        ..EndTransactionRequest::default()
    };
    let ended = client.end_transaction(request(end, Duration::from_secs(3))).await.expect("in-band").into_inner();
    assert_eq!(ended.status.expect("set").code, 20000);
    // As many behind it as there are before: the search begins at the one that looks old.
    assert_eq!(send(&mut client, (500..500 + count).map(message).collect()).await.0, 20000);
    let all = pull(&mut client, pull_request(0, 1024, 0)).await.1;
    assert_eq!(bodies(&all)[count as usize], "body 100");
    let at = |offset: i64| stored(&all[offset as usize]);
    assert!((at(count.into()).seconds, at(count.into()).nanos) < (since.seconds, since.nanos), "it looks old");
    let by_time = QueryOffsetPolicy::Timestamp as i32;
    assert_eq!(ask(&mut client, queue("t", 0), by_time, Some(since)).await, (20000, first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_retention_passes_moves_with_it_and_a_pull_below_is_told_where_the_queue_begins() {
    let cluster = Cluster::start(|config| {
        config.topics.auto_create_queues = 1;
        config.storage.segment_bytes = 2 << 20;
        config.limits.message_bytes_max = 100 << 10;
        config.limits.batch_bytes_max = 100 << 10;
        config.retention.log_bytes_max = 4 << 20;
    })
    .await;
    let mut client = cluster.client(cluster.followers().await[0]);
    assert_eq!(send(&mut client, vec![message(0), message(1)]).await.0, 20000);
    assert_eq!(update(&mut client, "pullers", queue("t", 0), 1).await, 20000);
    let large = |id: u32| Message { body: vec![b'.'; 64 << 10].into(), ..message(id) };
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut id = 2;
    let min = loop {
        assert_eq!(send(&mut client, vec![large(id)]).await.0, 20000);
        id += 1;
        let (code, min) = ask(&mut client, queue("t", 0), QueryOffsetPolicy::Beginning as i32, None).await;
        assert_eq!(code, 20000);
        if min > 1 {
            break min;
        }
        assert!(Instant::now() < deadline, "retention took nothing");
    };
    let (code, messages, next) = pull(&mut client, pull_request(0, 32, 20_000)).await;
    let next = next.expect("the nearest one that is kept");
    assert!(code == 40019 && messages.is_empty() && next >= min, "{code} {next}");
    assert_eq!(update(&mut client, "pullers", queue("t", 0), 0).await, 40019);
    let (code, place) = place(&mut client, "pullers", queue("t", 0)).await;
    assert!(code == 20000 && place >= next, "the group stands at {place}, and the queue begins at {next}");
    let (code, messages, _) = pull(&mut client, pull_request(place, 1, 0)).await;
    assert_eq!((code, offsets(&messages)), (20000, vec![place]));
}
