//! Retries and dead letters through whole nodes: attempts across a killed leader, what consumers give up, and the way back.

use quorate_proto::{
    admin::{
        ConsumerGroup, CreateGroupRequest, CreateTopicRequest, DeadLetter, DeadLetterPlace, DeleteTopicRequest,
        ListDeadLettersRequest, RedriveDeadLettersRequest, Redriven, Retry, ShowDeadLettersRequest, Topic,
    },
    v2::{
        ChangeInvisibleDurationRequest, ForwardMessageToDeadLetterQueueRequest, Settings, Subscription,
        TelemetryCommand, retry_policy::Strategy, settings::PubSub, telemetry_command::Command,
    },
};

use super::*;

const DEAD: &str = "%DLQ%g";

type Operator = BrokerAdminClient<Channel>;

fn operator(cluster: &Cluster, number: u16) -> Operator {
    BrokerAdminClient::new(channel(&cluster.nodes[&number].bound.client))
}

async fn group(operator: &mut Operator, fifo: bool, retry: Retry, replace: bool) -> i32 {
    let group = ConsumerGroup { name: "g".into(), fifo, retry: Some(retry), ..ConsumerGroup::default() };
    let request = CreateGroupRequest { group: Some(group), replace };
    operator.create_group(request).await.expect("in-band").into_inner().code
}

fn attempts(max_attempts: u32) -> Retry {
    Retry { max_attempts, ..Retry::default() }
}

fn handle(message: &Message) -> String {
    message.system_properties.clone().expect("set").receipt_handle.expect("set")
}

fn attempt(message: &Message) -> i32 {
    message.system_properties.clone().expect("set").delivery_attempt.expect("set")
}

/// Gives a delivery back at once, as a consumer that failed.
async fn fail(client: &mut Client, message: &Message) -> i32 {
    let wanted = ChangeInvisibleDurationRequest {
        group: named("g"),
        topic: named("t"),
        receipt_handle: handle(message),
        invisible_duration: Some(prost_types::Duration::default()),
        ..ChangeInvisibleDurationRequest::default()
    };
    let answer = client.change_invisible_duration(request(wanted, Duration::from_secs(3))).await;
    answer.expect("in-band").into_inner().status.expect("set").code
}

async fn forward(client: &mut Client, topic: &str, handle: &str) -> i32 {
    let wanted = ForwardMessageToDeadLetterQueueRequest {
        group: named("g"),
        topic: named(topic),
        receipt_handle: handle.to_owned(),
        delivery_attempt: 5,
        ..ForwardMessageToDeadLetterQueueRequest::default()
    };
    let answer = client.forward_message_to_dead_letter_queue(request(wanted, Duration::from_secs(3))).await;
    answer.expect("in-band").into_inner().status.expect("set").code
}

/// The next message; there must be one.
async fn next(client: &mut Client) -> Message {
    let (code, mut messages) = receive(client, 1, 5000).await;
    assert_eq!(code, 20000);
    messages.remove(0)
}

async fn letters(operator: &mut Operator) -> Vec<DeadLetter> {
    let wanted = ShowDeadLettersRequest { group: "g".into(), ..ShowDeadLettersRequest::default() };
    operator.show_dead_letters(wanted).await.expect("in-band").into_inner().letters
}

async fn letters_become(operator: &mut Operator, count: usize) -> Vec<DeadLetter> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = letters(operator).await;
        if found.len() >= count {
            assert_eq!(found.len(), count, "{found:?}");
            return found;
        }
        assert!(Instant::now() < deadline, "only {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn redrive(operator: &mut Operator, offsets: &[u64], to: &str) -> Vec<Redriven> {
    let places = offsets.iter().map(|offset| DeadLetterPlace { queue: 0, offset: *offset }).collect();
    let wanted = RedriveDeadLettersRequest { group: "g".into(), places, to: to.into() };
    operator.redrive_dead_letters(wanted).await.expect("in-band").into_inner().results
}

fn codes(results: &[Redriven]) -> Vec<i32> {
    results.iter().map(|result| result.outcome.as_ref().expect("set").code).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_counted_across_a_killed_leader_and_the_last_one_ends_among_the_dead_letters_once() {
    let mut cluster = Cluster::start(|_| {}).await;
    let (leader, follower) = (cluster.leader().await, cluster.followers().await[0]);
    assert_eq!(group(&mut operator(&cluster, follower), false, attempts(4), false).await, 20000);
    let mut client = cluster.client(follower);
    assert_eq!(send(&mut client, vec![message(1)]).await.0, 20000);
    for expected in 1..=2 {
        let failed = next(&mut client).await;
        assert_eq!(attempt(&failed), expected);
        assert_eq!(fail(&mut client, &failed).await, 20000);
    }
    cluster.kill(leader);
    cluster.leader().await;
    for expected in 3..=4 {
        let failed = next(&mut client).await;
        assert_eq!(attempt(&failed), expected);
        assert_eq!(fail(&mut client, &failed).await, 20000);
    }
    let mut operator = operator(&cluster, follower);
    let dead = letters_become(&mut operator, 1).await.remove(0);
    assert_eq!((dead.topic.as_str(), dead.attempts, dead.reason.as_str()), ("t", 4, "no attempt left"));
    assert_eq!((dead.message_id, dead.consumer.as_str()), (format!("{:034X}", 1), "test@1@0@x"));
    assert_eq!(receive(&mut client, 1, 500).await.0, 40401, "nobody gets it again");

    // Anybody can read it, as a message like others.
    let wanted = ReceiveMessageRequest {
        group: named("undertakers"),
        message_queue: Some(v2::MessageQueue { topic: named(DEAD), ..v2::MessageQueue::default() }),
        ..receive_request(1, 3000)
    };
    let stream = client.receive_message(request(wanted, Duration::from_secs(6))).await;
    let mut stream = stream.expect("headers come at once").into_inner();
    let mut read = None;
    while let Some(item) = stream.message().await.expect("no error") {
        if let Some(Content::Message(message)) = item.content {
            read = Some(message);
        }
    }
    let read = read.expect("the dead letter");
    assert_eq!((read.topic.clone(), &read.body[..]), (named(DEAD), &b"body 1"[..]));
    let property = |name: &str| read.user_properties.get(name).map(String::as_str);
    assert_eq!((property("DLQ_ORIGIN_TOPIC"), property("DLQ_ATTEMPTS")), (Some("t"), Some("4")));
    let from = read.system_properties.expect("set").dead_letter_queue.expect("set");
    assert_eq!((from.topic.as_str(), from.message_id), ("t", format!("{:034X}", 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_consumer_gives_up_is_a_dead_letter_at_once_and_its_message_group_goes_on() {
    let cluster = Cluster::start(|_| {}).await;
    let followers = cluster.followers().await;
    let mut operator = operator(&cluster, followers[0]);
    assert_eq!(group(&mut operator, true, attempts(2), false).await, 20000);
    let ordered = |id| {
        let mut message = message(id);
        message.system_properties.as_mut().expect("set").message_group = Some("x".into());
        message
    };
    let mut client = cluster.client(followers[0]);
    assert_eq!(send(&mut client, vec![ordered(1), ordered(2), ordered(3)]).await.0, 20000);

    let first = next(&mut client).await;
    assert_eq!(bodies(std::slice::from_ref(&first)), ["body 1"]);
    assert_eq!(forward(&mut client, "t", &handle(&first)).await, 20000);
    assert_eq!(forward(&mut cluster.client(followers[1]), "t", &handle(&first)).await, 20000, "a repeat is fine");
    let second = next(&mut client).await;
    assert_eq!(bodies(std::slice::from_ref(&second)), ["body 2"]);
    assert_eq!(forward(&mut client, "t", "00FF").await, 40013);
    assert_eq!(forward(&mut client, "unknown", &handle(&second)).await, 40402);
    assert_eq!(forward(&mut client, "a b", &handle(&second)).await, 40002);

    // Its last attempt ends among the dead letters as well, and the message group goes on.
    assert_eq!(fail(&mut client, &second).await, 20000);
    let second = next(&mut client).await;
    assert_eq!((attempt(&second), bodies(std::slice::from_ref(&second))), (2, vec!["body 2".to_owned()]));
    assert_eq!(fail(&mut client, &second).await, 20000);
    let third = next(&mut client).await;
    assert_eq!((attempt(&third), bodies(std::slice::from_ref(&third))), (1, vec!["body 3".to_owned()]));
    assert_eq!(ack(&mut client, std::slice::from_ref(&third)).await, [20000]);
    assert_eq!(forward(&mut client, "t", &handle(&third)).await, 20000, "it is done");

    let dead = letters_become(&mut operator, 2).await;
    assert_eq!(dead.iter().map(|dead| dead.attempts).collect::<Vec<_>>(), [5, 2]);
    assert_eq!(
        dead.iter().map(|dead| dead.reason.as_str()).collect::<Vec<_>>(),
        ["given up by its consumer", "no attempt left"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_redriven_once_whoever_leads_and_every_wrong_word_has_its_code() {
    let mut cluster = Cluster::start(|_| {}).await;
    let (leader, follower) = (cluster.leader().await, cluster.followers().await[0]);
    let mut at_follower = operator(&cluster, follower);
    let shown = |group: &str| ShowDeadLettersRequest { group: group.into(), ..ShowDeadLettersRequest::default() };
    let code = |answer: quorate_proto::admin::ShowDeadLettersResponse| answer.outcome.expect("set").code;
    assert_eq!(code(at_follower.show_dead_letters(shown("g")).await.expect("in-band").into_inner()), 40403);
    assert_eq!(group(&mut at_follower, false, attempts(1001), false).await, 40000);
    assert_eq!(group(&mut at_follower, false, attempts(1), false).await, 20000);
    assert_eq!(group(&mut at_follower, false, attempts(2), false).await, 42800);
    assert_eq!(group(&mut at_follower, false, attempts(1), true).await, 20000);
    assert_eq!(code(at_follower.show_dead_letters(shown("g")).await.expect("in-band").into_inner()), 40400);

    let mut client = cluster.client(follower);
    assert_eq!(send(&mut client, vec![message(1), message(2), message(3)]).await.0, 20000);
    for _ in 0..3 {
        let failed = next(&mut client).await;
        assert_eq!(fail(&mut client, &failed).await, 20000);
    }
    letters_become(&mut at_follower, 3).await;
    let results = redrive(&mut at_follower, &[0, 0, 7], "").await;
    assert_eq!(codes(&results), [20000, 42800, 40019]);
    assert!(results[1].before && !results[2].before && results[0].topic == "t", "{results:?}");
    assert_eq!(codes(&redrive(&mut at_follower, &[1], "nowhere").await), [40402]);

    cluster.kill(leader);
    cluster.leader().await;
    let results = redrive(&mut at_follower, &[0, 1, 2], "").await;
    assert_eq!(codes(&results), [42800, 20000, 20000]);
    let mut again = Vec::new();
    while again.len() < 3 {
        let message = next(&mut client).await;
        assert_eq!(attempt(&message), 1, "it begins anew");
        assert!(!message.user_properties.keys().any(|name| name.starts_with("DLQ_")), "{message:?}");
        assert_eq!(ack(&mut client, std::slice::from_ref(&message)).await, [20000]);
        again.extend(bodies(&[message]));
    }
    again.sort();
    assert_eq!(again, ["body 1", "body 2", "body 3"]);
    assert_eq!(receive(&mut client, 1, 500).await.0, 40401);
    let topics = at_follower.list_dead_letters(ListDeadLettersRequest {}).await.expect("in-band").into_inner().topics;
    assert_eq!((topics.len(), topics[0].topic.as_str(), topics[0].letters, topics[0].redriven), (1, DEAD, 3, 3));
    assert!(letters(&mut at_follower).await.iter().all(|letter| letter.redriven));
    // Dead letters are deleted on purpose or not at all, and their topic is made by nobody.
    let mut delete = async |force: bool| {
        let request = DeleteTopicRequest { name: DEAD.into(), force };
        at_follower.delete_topic(request).await.expect("in-band").into_inner()
    };
    let kept = delete(false).await;
    assert!(kept.code == 42800 && kept.message.contains("3 dead letters"), "{kept:?}");
    assert_eq!(delete(true).await.code, 20000);
    let topic = Topic { name: DEAD.into(), ..Topic::default() };
    let made = at_follower.create_topic(CreateTopicRequest { topic: Some(topic) }).await.expect("in-band").into_inner();
    assert!(made.code == 40000 && made.message.contains("consumer group g"), "{made:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_carry_what_the_group_was_made_with() {
    let cluster = Cluster::start(|_| {}).await;
    let leader = cluster.leader().await;
    let retry = Retry { max_attempts: 5, ladder_ms: vec![1000, 2500], exponential: None };
    assert_eq!(group(&mut operator(&cluster, leader), false, retry, false).await, 20000);
    let subscription = Subscription { group: named("g"), ..Subscription::default() };
    let settings = Settings { pub_sub: Some(PubSub::Subscription(subscription)), ..Settings::default() };
    let asked = TelemetryCommand { status: None, command: Some(Command::Settings(settings)) };
    let mut asked = Request::new(tokio_stream::iter([asked]));
    asked.metadata_mut().insert("x-mq-client-id", "push@1@0@x".parse().expect("ascii"));
    let mut answers = cluster.client(leader).telemetry(asked).await.expect("opens").into_inner();
    let answer = answers.message().await.expect("no error").expect("an answer").command;
    let Some(Command::Settings(settings)) = answer else { panic!("{answer:?}") };
    let policy = settings.backoff_policy.expect("always");
    let Some(Strategy::CustomizedBackoff(delays)) = policy.strategy else { panic!("{policy:?}") };
    let ms: Vec<i64> =
        delays.next.iter().map(|delay| delay.seconds * 1000 + i64::from(delay.nanos) / 1_000_000).collect();
    assert_eq!((policy.max_attempts, ms), (5, vec![1000, 2500]));
}
