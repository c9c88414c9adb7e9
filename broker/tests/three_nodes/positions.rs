//! Where consumer groups stand, through whole nodes: lag, resets, starts at a time, and consumers that do not agree.

use quorate_broker::config::Filters;
use quorate_proto::{
    admin::{
        ConsumerGroup, CreateGroupRequest, DescribeGroupRequest, DescribeGroupResponse, GroupQueue, GroupTopic,
        ResetOffsetsRequest, ResetPlace, ResetQueue, Retry, StartAt,
    },
    v2::{
        ChangeInvisibleDurationRequest, ClientType, FilterExpression, FilterType, MessageType,
        NotifyClientTerminationRequest, Settings, Subscription, SubscriptionEntry, SyncLiteSubscriptionRequest,
        TelemetryCommand, settings::PubSub, telemetry_command::Command,
    },
};

use super::*;

type Operator = BrokerAdminClient<Channel>;

fn operator(cluster: &Cluster, number: u16) -> Operator {
    BrokerAdminClient::new(channel(&cluster.nodes[&number].bound.client))
}

async fn cluster() -> Cluster {
    Cluster::start(|config| config.topics.auto_create_queues = 1).await
}

async fn describe(operator: &mut Operator, name: &str) -> DescribeGroupResponse {
    let answer = operator.describe_group(DescribeGroupRequest { name: name.into() }).await;
    answer.expect("in-band").into_inner()
}

/// The one topic of the group.
async fn state(operator: &mut Operator) -> GroupTopic {
    let answer = describe(operator, "g").await;
    assert_eq!(answer.outcome.expect("set").code, 20000);
    assert_eq!(answer.topics.len(), 1);
    answer.topics.into_iter().next().expect("one")
}

/// Ready, in flight, delayed, dead.
fn counts(queue: &GroupQueue) -> [u64; 4] {
    assert_eq!(queue.waiting, 0);
    [queue.ready, queue.in_flight, queue.delayed, queue.dead]
}

async fn reset(operator: &mut Operator, to: StartAt, to_ms: i64, dry_run: bool) -> (i32, Vec<ResetQueue>) {
    let (group, topic) = ("g".into(), "t".into());
    let wanted = ResetOffsetsRequest { group, topic, to: to.into(), to_ms, dry_run, ..ResetOffsetsRequest::default() };
    ask(operator, wanted).await
}

async fn ask(operator: &mut Operator, wanted: ResetOffsetsRequest) -> (i32, Vec<ResetQueue>) {
    let answer = operator.reset_offsets(wanted).await.expect("in-band").into_inner();
    (answer.outcome.expect("set").code, answer.queues)
}

async fn create(operator: &mut Operator, group: ConsumerGroup, replace: bool) -> i32 {
    let request = CreateGroupRequest { group: Some(group), replace };
    operator.create_group(request).await.expect("in-band").into_inner().code
}

fn handle(message: &Message) -> String {
    message.system_properties.clone().expect("set").receipt_handle.expect("set")
}

fn stored_ms(message: &Message) -> i64 {
    let at = message.system_properties.as_ref().expect("set").store_timestamp.expect("set");
    at.seconds * 1000 + i64::from(at.nanos) / 1_000_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_that_is_not_done_counts_once_and_every_node_tells_the_same() {
    let mut cluster = cluster().await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let mut at_follower = operator(&cluster, followers[0]);
    assert_eq!(describe(&mut at_follower, "g").await.outcome.expect("set").code, 40403);
    let few = Retry { max_attempts: 1, ..Retry::default() };
    let group = ConsumerGroup { name: "g".into(), retry: Some(few), ..ConsumerGroup::default() };
    assert_eq!(create(&mut at_follower, group, false).await, 20000);
    assert!(describe(&mut at_follower, "g").await.topics.is_empty(), "it has not begun");

    let mut client = cluster.client(followers[0]);
    assert_eq!(send(&mut client, (0..6).map(message).collect()).await.0, 20000);
    let mut later = message(6);
    let tomorrow = std::time::SystemTime::now() + Duration::from_secs(86_400);
    later.system_properties.as_mut().expect("set").delivery_timestamp = Some(tomorrow.into());
    assert_eq!(send(&mut client, vec![later]).await.0, 20000);

    let held = receive(&mut client, 4, 3000).await.1;
    assert_eq!(held.len(), 4);
    assert_eq!(ack(&mut client, &held[..1]).await, [20000]);
    let topic = state(&mut at_follower).await;
    let queue = &topic.queues[0];
    assert_eq!((topic.name.as_str(), queue.committed, queue.max, counts(queue)), ("t", 1, 6, [2, 3, 1, 0]));
    assert_eq!(queue.oldest_ms, Some(stored_ms(&held[1])));
    assert_eq!(topic.consumers.iter().map(|one| one.client_id.as_str()).collect::<Vec<_>>(), ["test@1@0@x"]);
    assert!(!topic.differ && !topic.consumers[0].pulls);

    // Its only attempt is over: it is on its way to the dead letters, and then it is one.
    let given_up = ChangeInvisibleDurationRequest {
        group: named("g"),
        topic: named("t"),
        receipt_handle: handle(&held[1]),
        invisible_duration: Some(prost_types::Duration::default()),
        ..ChangeInvisibleDurationRequest::default()
    };
    let answer = client.change_invisible_duration(request(given_up, Duration::from_secs(3))).await;
    assert_eq!(answer.expect("in-band").into_inner().status.expect("set").code, 20000);
    let deadline = Instant::now() + Duration::from_secs(10);
    while counts(&state(&mut at_follower).await.queues[0]) != [2, 2, 1, 1] {
        assert!(Instant::now() < deadline, "{:?}", state(&mut at_follower).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    cluster.kill(leader);
    cluster.leader().await;
    for number in followers {
        let queue = state(&mut operator(&cluster, number)).await.queues.remove(0);
        assert_eq!((queue.committed, counts(&queue)), (2, [2, 2, 1, 1]));
        assert_eq!(queue.oldest_ms, Some(stored_ms(&held[2])));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_says_what_it_means_does_it_once_and_ends_receipts_of_what_comes_again() {
    let mut cluster = cluster().await;
    let (leader, follower) = (cluster.leader().await, cluster.followers().await[0]);
    let (mut client, mut operator) = (cluster.client(follower), operator(&cluster, follower));
    assert_eq!(send(&mut client, (0..6).map(message).collect()).await.0, 20000);
    let held = receive(&mut client, 4, 3000).await.1;
    assert_eq!(ack(&mut client, &[held[0].clone(), held[2].clone()]).await, [20000, 20000]);

    // 1 and 3 are held, 4 and 5 were never handed out.
    let (code, plan) = reset(&mut operator, StartAt::First, 0, true).await;
    let expected = ResetQueue { id: 0, from: 1, to: 0, skipped: 0, again: 2, forgotten: 2 };
    assert_eq!((code, plan), (20000, vec![expected]));
    let (_, plan) = reset(&mut operator, StartAt::Last, 0, true).await;
    assert_eq!(plan, [ResetQueue { id: 0, from: 1, to: 6, skipped: 4, again: 0, forgotten: 0 }]);
    assert_eq!(counts(&state(&mut operator).await.queues[0]), [2, 2, 0, 0], "nothing was changed");

    let place = |queue, offset| ResetOffsetsRequest {
        group: "g".into(),
        topic: "t".into(),
        places: vec![ResetPlace { queue, offset }],
        ..ResetOffsetsRequest::default()
    };
    let (code, done) = ask(&mut operator, place(0, 2)).await;
    assert_eq!((code, done), (20000, vec![ResetQueue { id: 0, from: 1, to: 2, skipped: 1, again: 1, forgotten: 1 }]));
    // What was skipped is done, so its holder may say so; what comes again is not its holder's any more.
    assert_eq!(ack(&mut client, &[held[1].clone(), held[3].clone()]).await, [20000, 40013]);
    cluster.kill(leader);
    cluster.leader().await;
    assert_eq!(state(&mut operator).await.queues[0].committed, 2, "acknowledged, so it stays");
    let again = receive(&mut client, 32, 3000).await.1;
    assert_eq!(bodies(&again), ["body 2", "body 3", "body 4", "body 5"]);
    assert_eq!(ack(&mut client, &held[3..]).await, [40013], "it is somebody else's now");
    assert_eq!(ack(&mut client, &again).await, [20000; 4]);

    // By time: from the fourth message on, or whichever was stored with it.
    let since = stored_ms(&held[3]);
    let (code, done) = reset(&mut operator, StartAt::Since, since, false).await;
    assert_eq!((code, done.len()), (20000, 1));
    let come = receive(&mut client, 32, 3000).await.1;
    assert!(come.iter().all(|message| stored_ms(message) >= since) && come.len() >= 3, "{:?}", bodies(&come));
    let (_, done) = reset(&mut operator, StartAt::Last, 0, false).await;
    assert_eq!((done[0].skipped, done[0].again, done[0].forgotten), (come.len() as u64, 0, 0));
    assert_eq!(receive(&mut client, 32, 200).await.0, 40401);
    assert_eq!(ack(&mut client, &come).await.iter().filter(|code| **code != 20000).count(), 0, "skipped is done");

    // Every refusal changes nothing.
    assert_eq!(ask(&mut operator, place(0, 7)).await.0, 40019);
    assert_eq!(ask(&mut operator, place(1, 0)).await.0, 40400);
    let nowhere = ResetOffsetsRequest { places: Vec::new(), ..place(0, 0) };
    assert_eq!(ask(&mut operator, nowhere).await.0, 40000);
    let both = ResetOffsetsRequest { to: StartAt::First.into(), ..place(0, 0) };
    assert_eq!(ask(&mut operator, both).await.0, 40000);
    let twice = ResetOffsetsRequest { places: vec![ResetPlace { queue: 0, offset: 0 }; 2], ..place(0, 0) };
    assert_eq!(ask(&mut operator, twice).await.0, 40000);
    assert_eq!(ask(&mut operator, ResetOffsetsRequest { group: "h".into(), ..place(0, 0) }).await.0, 40403);
    assert_eq!(ask(&mut operator, ResetOffsetsRequest { topic: "u".into(), ..place(0, 0) }).await.0, 40402);
    assert_eq!(state(&mut operator).await.queues[0].committed, 6);
}

/// What a group that orders or filters has read ahead is of no use after a reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_wants_order_and_one_that_filters_begin_anew_where_they_are_put() {
    let cluster = cluster().await;
    let follower = cluster.followers().await[0];
    let (mut client, mut operator) = (cluster.client(follower), operator(&cluster, follower));
    let ordered = ConsumerGroup { name: "ordered".into(), fifo: true, ..ConsumerGroup::default() };
    assert_eq!(create(&mut operator, ordered, false).await, 20000);
    let lane = |id: u32| {
        let mut message = message(id);
        let system = message.system_properties.as_mut().expect("set");
        system.message_group = Some(format!("lane {}", id % 2));
        system.tag = Some(if id.is_multiple_of(3) { "third" } else { "other" }.into());
        message
    };
    assert_eq!(send(&mut client, (0..6).map(lane).collect()).await.0, 20000);
    let filter = FilterExpression { r#type: FilterType::Tag as i32, expression: "third".into() };
    let of = |group: &str, filter: &Option<FilterExpression>| ReceiveMessageRequest {
        group: named(group),
        filter_expression: filter.clone(),
        ..receive_request(32, 3000)
    };
    for (group, filter, all) in [
        ("ordered", None, &["body 0", "body 1", "body 2", "body 3", "body 4", "body 5"][..]),
        ("filters", Some(filter), &["body 0", "body 3"]),
    ] {
        for _ in 0..2 {
            let stream = client.receive_message(request(of(group, &filter), Duration::from_secs(6))).await;
            let mut stream = stream.expect("headers come at once").into_inner();
            let mut messages = Vec::new();
            while let Some(item) = stream.message().await.expect("no error") {
                if let Some(Content::Message(message)) = item.content {
                    assert_eq!(message.system_properties.as_ref().expect("set").delivery_attempt, Some(1));
                    messages.push(message);
                }
            }
            assert_eq!(bodies(&messages), all, "{group}");
            let wanted = ResetOffsetsRequest {
                group: group.into(),
                topic: "t".into(),
                to: StartAt::First.into(),
                ..ResetOffsetsRequest::default()
            };
            let (code, queues) = ask(&mut operator, wanted).await;
            assert_eq!((code, queues[0].to, queues[0].forgotten), (20000, 0, all.len() as u64));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_begins_at_the_first_or_the_last_message_or_at_a_time_whoever_leads() {
    let mut cluster = cluster().await;
    let (leader, follower) = (cluster.leader().await, cluster.followers().await[0]);
    let (mut client, mut operator) = (cluster.client(follower), operator(&cluster, follower));
    for id in 0..4 {
        assert_eq!(send(&mut client, vec![message(id)]).await.0, 20000);
    }
    let held = receive(&mut client, 4, 3000).await.1;
    let since = stored_ms(&held[2]);
    let group = |name: &str, start: StartAt, start_ms| ConsumerGroup {
        name: name.into(),
        start: start.into(),
        start_ms,
        ..ConsumerGroup::default()
    };
    for (name, start, ms) in
        [("first", StartAt::First, 0), ("last", StartAt::Last, 0), ("since", StartAt::Since, since)]
    {
        assert_eq!(create(&mut operator, group(name, start, ms), false).await, 20000);
        let known = describe(&mut operator, name).await.group.expect("set");
        assert_eq!((known.start(), known.start_ms), (start, ms));
    }
    assert_eq!(create(&mut operator, group("since", StartAt::Since, since + 1), false).await, 42800);
    let wrong = ConsumerGroup { start: 77, ..group("wrong", StartAt::First, 0) };
    assert_eq!(create(&mut operator, wrong, false).await, 40000);

    cluster.kill(leader);
    cluster.leader().await;
    let mut begun = BTreeMap::new();
    for name in ["first", "last", "since"] {
        let wanted = ReceiveMessageRequest { group: named(name), ..receive_request(32, 300) };
        let stream = client.receive_message(request(wanted, Duration::from_secs(4))).await;
        let mut stream = stream.expect("headers come at once").into_inner();
        let mut messages = Vec::new();
        while let Some(item) = stream.message().await.expect("no error") {
            if let Some(Content::Message(message)) = item.content {
                messages.push(message);
            }
        }
        begun.insert(name, messages);
    }
    assert_eq!(bodies(&begun["first"]), ["body 0", "body 1", "body 2", "body 3"]);
    assert!(begun["last"].is_empty());
    let expected: Vec<String> = held
        .iter()
        .filter(|message| stored_ms(message) >= since)
        .map(|message| bodies(std::slice::from_ref(message)).remove(0))
        .collect();
    assert_eq!(bodies(&begun["since"]), expected);
}

fn filtered(expression: &str) -> ReceiveMessageRequest {
    let filter = FilterExpression { r#type: FilterType::Tag as i32, expression: expression.into() };
    ReceiveMessageRequest { filter_expression: Some(filter), ..receive_request(1, 0) }
}

/// The status of a receive by a client of that id.
async fn receive_as(client: &mut Client, id: &'static str, wanted: ReceiveMessageRequest) -> i32 {
    let mut wanted = request(wanted, Duration::from_secs(3));
    wanted.metadata_mut().insert("x-mq-client-id", id.parse().expect("ascii"));
    let mut stream = client.receive_message(wanted).await.expect("headers come at once").into_inner();
    let Some(Content::Status(status)) = stream.message().await.expect("no error").expect("a status").content else {
        panic!("the status comes first")
    };
    status.code
}

/// The status of the answer to a consumer's settings.
async fn subscribe_as(client: &mut Client, id: &'static str, kind: ClientType, expression: &str) -> i32 {
    let expression = Some(FilterExpression { r#type: FilterType::Tag as i32, expression: expression.into() });
    let entry = SubscriptionEntry { topic: named("t"), expression };
    let subscription = Subscription { group: named("g"), subscriptions: vec![entry], ..Subscription::default() };
    let pub_sub = Some(PubSub::Subscription(subscription));
    let settings = Settings { client_type: Some(kind as i32), pub_sub, ..Settings::default() };
    let asked = TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
    let mut asked = Request::new(tokio_stream::iter([asked]));
    asked.metadata_mut().insert("x-mq-client-id", id.parse().expect("ascii"));
    let mut answers = client.telemetry(asked).await.expect("opens").into_inner();
    answers.message().await.expect("no error").expect("an answer").status.expect("always").code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_of_one_group_that_filter_differently_are_shown_with_their_filters() {
    let cluster = cluster().await;
    let followers = cluster.followers().await;
    let (mut one, mut other) = (cluster.client(followers[0]), cluster.client(followers[1]));
    let mut operator = operator(&cluster, followers[1]);
    assert_eq!(send(&mut one, vec![message(0)]).await.0, 20000);
    assert_ne!(receive_as(&mut one, "a@1", filtered("TagA")).await, 42800);
    assert!(!state(&mut operator).await.differ);
    // Its settings are enough, at any node, before it receives.
    assert_eq!(subscribe_as(&mut other, "b@1", ClientType::SimpleConsumer, "TagA || TagB").await, 20000);
    assert_eq!(subscribe_as(&mut other, "c@1", ClientType::PullConsumer, "TagC").await, 20000);
    let topic = state(&mut operator).await;
    let seen: Vec<_> =
        topic.consumers.iter().map(|one| (one.client_id.as_str(), one.filter.as_str(), one.pulls)).collect();
    assert!(topic.differ);
    assert_eq!(seen, [("a@1", "tags TagA", false), ("b@1", "tags TagA || TagB", false), ("c@1", "tags TagC", true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_reject_the_second_filter_of_a_group_is_refused_by_settings_and_by_receives() {
    let cluster = Cluster::start(|config| {
        config.topics.auto_create_queues = 1;
        config.groups.filters = Filters::Reject;
    })
    .await;
    let followers = cluster.followers().await;
    let (mut one, mut other) = (cluster.client(followers[0]), cluster.client(followers[1]));
    let mut operator = operator(&cluster, followers[1]);
    assert_eq!(send(&mut one, vec![message(0)]).await.0, 20000);
    assert_ne!(receive_as(&mut one, "a@1", filtered("TagA")).await, 42800);
    assert_eq!(subscribe_as(&mut other, "b@1", ClientType::SimpleConsumer, "TagB").await, 42800);
    assert_eq!(receive_as(&mut other, "b@1", filtered("TagB")).await, 42800);
    assert_eq!(receive_as(&mut other, "b@1", receive_request(1, 0)).await, 42800);
    assert_ne!(receive_as(&mut other, "b@1", filtered("TagA")).await, 42800, "the same filter is fine");
    assert_eq!(receive_as(&mut one, "a@1", filtered("TagB")).await, 42800, "now neither may change alone");
    assert_eq!(subscribe_as(&mut other, "c@1", ClientType::PullConsumer, "TagC").await, 20000);
    let topic = state(&mut operator).await;
    assert!(!topic.differ, "{topic:?}");
    // One that says goodbye, to any node, is nobody's matter any more.
    let mut farewell = request(NotifyClientTerminationRequest { group: named("g") }, Duration::from_secs(3));
    farewell.metadata_mut().insert("x-mq-client-id", "b@1".parse().expect("ascii"));
    let answer = other.notify_client_termination(farewell).await.expect("in-band").into_inner();
    assert_eq!(answer.status.expect("set").code, 20000);
    assert_ne!(receive_as(&mut one, "a@1", filtered("TagB")).await, 42800);
    let seen: Vec<String> =
        state(&mut operator).await.consumers.into_iter().map(|consumer| consumer.client_id).collect();
    assert_eq!(seen, ["a@1", "c@1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lite_topics_and_priorities_are_recognised_and_refused_by_name() {
    let cluster = cluster().await;
    let mut client = cluster.client(cluster.followers().await[0]);
    for kind in [ClientType::LitePushConsumer, ClientType::LiteSimpleConsumer] {
        assert_eq!(subscribe_as(&mut client, "a@1", kind, "*").await, 50100);
    }
    let wanted = SyncLiteSubscriptionRequest { topic: named("t"), group: named("g"), ..Default::default() };
    let answer = client.sync_lite_subscription(request(wanted, Duration::from_secs(3))).await;
    let status = answer.expect("in-band").into_inner().status.expect("set");
    assert!(status.code == 50100 && status.message.contains("SyncLiteSubscription"), "{status:?}");
    let mut lite = message(1);
    lite.system_properties.as_mut().expect("set").message_type = MessageType::Lite as i32;
    let mut urgent = message(2);
    urgent.system_properties.as_mut().expect("set").priority = Some(9);
    let mut named_lite = message(3);
    named_lite.system_properties.as_mut().expect("set").lite_topic = Some("l".into());
    for (message, word) in [(lite, "lite"), (urgent, "priority"), (named_lite, "lite")] {
        let (_, entries) = send(&mut client, vec![message]).await;
        let status = entries[0].status.clone().expect("set");
        assert!(status.code == 50100 && status.message.contains(word), "{status:?}");
    }
    let mut entry =
        AckMessageRequest { group: named("g"), topic: named("t"), entries: vec![AckMessageEntry::default()] };
    entry.entries[0].lite_topic = Some("l".into());
    let answer = client.ack_message(request(entry, Duration::from_secs(3))).await.expect("in-band").into_inner();
    assert_eq!(answer.status.expect("set").code, 50100);
}
