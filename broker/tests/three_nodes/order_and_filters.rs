//! Message groups and filters over three whole nodes, the public protocol, and the death of the leader in the middle.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use quorate_proto::{
    admin::{
        ConsumerGroup, CreateGroupRequest, CreateTopicRequest, Topic, TopicType, broker_admin_client::BrokerAdminClient,
    },
    v2::{
        AckMessageEntry, AckMessageRequest, FilterExpression, FilterType, Message, MessageQueue, MessageType,
        ReceiveMessageRequest, SystemProperties, receive_message_response::Content,
    },
};

use super::{Client, Cluster, channel, named, request, send};

async fn prepare(cluster: &Cluster, topic: &str, kind: TopicType, group: &str, fifo: bool) {
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&cluster.leader().await].bound.client));
    let topic = Topic { name: topic.into(), queues: 4, r#type: kind as i32, ..Topic::default() };
    admin.create_topic(CreateTopicRequest { topic: Some(topic) }).await.expect("a topic");
    let group = ConsumerGroup { name: group.into(), fifo, ..ConsumerGroup::default() };
    admin.create_group(CreateGroupRequest { group: Some(group), replace: false }).await.expect("a group");
}

fn message(topic: &str, id: u32, change: impl FnOnce(&mut Message, &mut SystemProperties)) -> Message {
    let mut system = SystemProperties { message_id: format!("{id:034X}"), ..SystemProperties::default() };
    let mut message = Message { topic: named(topic), body: id.to_string().into(), ..Message::default() };
    change(&mut message, &mut system);
    Message { system_properties: Some(system), ..message }
}

fn ordered(id: u32, group: &str) -> Message {
    message("ordered", id, |_, system| {
        system.message_group = Some(group.into());
        system.message_type = MessageType::Fifo as i32;
    })
}

/// What a consumer asks for.
#[derive(Clone, Copy)]
struct Wish<'a> {
    topic: &'a str,
    group: &'a str,
    filter: Option<(FilterType, &'a str)>,
    max: i32,
}

async fn receive(client: &mut Client, wish: Wish<'_>) -> (i32, Vec<Message>) {
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let expression =
        |(kind, text): (FilterType, &str)| FilterExpression { r#type: kind as i32, expression: text.into() };
    let wanted = ReceiveMessageRequest {
        group: named(wish.group),
        message_queue: Some(MessageQueue { topic: named(wish.topic), ..MessageQueue::default() }),
        filter_expression: wish.filter.map(expression),
        batch_size: wish.max,
        invisible_duration: Some(seconds(2)),
        long_polling_timeout: Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 }),
        ..ReceiveMessageRequest::default()
    };
    let answer = client.receive_message(request(wanted, Duration::from_secs(6))).await;
    let mut stream = answer.expect("headers come at once").into_inner();
    let (mut code, mut messages) = (0, Vec::new());
    while let Some(item) = stream.message().await.expect("never an error at the level of gRPC") {
        match item.content.expect("set") {
            Content::Status(status) => code = status.code,
            Content::Message(message) => messages.push(message),
            Content::DeliveryTimestamp(_) => {}
        }
    }
    (code, messages)
}

/// Acks until the answer is certain: a repeat of an ack that counted is answered as the first one.
async fn ack(client: &mut Client, wish: Wish<'_>, message: &Message) -> i32 {
    for _ in 0..10 {
        let code = ack_once(client, wish, message).await;
        if !matches!(code, 50002 | 50402) {
            return code;
        }
    }
    panic!("no certain answer to an ack")
}

async fn ack_once(client: &mut Client, wish: Wish<'_>, message: &Message) -> i32 {
    let system = message.system_properties.clone().expect("set");
    let (message_id, receipt_handle) = (system.message_id, system.receipt_handle.expect("set"));
    let entry = AckMessageEntry { message_id, receipt_handle, lite_topic: None };
    let wanted = AckMessageRequest { group: named(wish.group), topic: named(wish.topic), entries: vec![entry] };
    let answer = client.ack_message(request(wanted, Duration::from_secs(3))).await.expect("in-band").into_inner();
    answer.entries[0].status.as_ref().expect("set").code
}

fn number(message: &Message) -> u32 {
    String::from_utf8(message.body.to_vec()).expect("text").parse().expect("a number")
}

/// Twelve message groups, sent in order by all nodes; consumers at all nodes, of which every fourth ack is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_groups_keep_their_order_while_the_leader_dies_and_acks_fail() {
    const GROUPS: u32 = 12;
    const EACH: u32 = 10;
    let mut cluster = Cluster::start(|_| {}).await;
    prepare(&cluster, "ordered", TopicType::Fifo, "in-order", true).await;
    let mut client = cluster.client(cluster.followers().await[0]);
    for step in 0..EACH {
        let messages = (0..GROUPS).map(|group| ordered(step * GROUPS + group, &format!("group {group}"))).collect();
        let (code, entries) = send(&mut client, messages).await;
        assert_eq!((code, entries.len()), (20000, GROUPS as usize));
    }
    let wish = Wish { topic: "ordered", group: "in-order", filter: None, max: 7 };
    let mut acked = BTreeMap::<u32, u32>::new();
    let (mut round, mut killed, mut repeated) = (0u32, false, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while acked.values().sum::<u32>() < GROUPS * EACH {
        assert!(Instant::now() < deadline, "stuck at {acked:?}");
        let (_, messages) = receive(&mut client, wish).await;
        let mut batch = BTreeMap::<u32, u32>::new();
        for message in &messages {
            let system = message.system_properties.as_ref().expect("set");
            let group = number(message) % GROUPS;
            assert_eq!(system.message_group, Some(format!("group {group}")));
            assert_eq!(system.message_type, MessageType::Fifo as i32);
            repeated += u32::from(system.delivery_attempt > Some(1));
            let expected = acked.get(&group).copied().unwrap_or(0) + batch.get(&group).copied().unwrap_or(0);
            assert_eq!(number(message) / GROUPS, expected, "group {group} is out of order");
            *batch.entry(group).or_default() += 1;
        }
        // A message that is not acked holds back what its message group has behind it, and nothing else.
        let mut held = BTreeSet::new();
        for message in &messages {
            round += 1;
            let group = number(message) % GROUPS;
            if round.is_multiple_of(16) {
                held.insert(group);
            }
            if !held.contains(&group) && ack(&mut client, wish, message).await == 20000 {
                *acked.entry(group).or_default() += 1;
            }
        }
        if !killed && acked.values().sum::<u32>() > GROUPS * EACH / 3 {
            killed = true;
            let leader = cluster.leader().await;
            cluster.kill(leader);
            client = cluster.client(*cluster.nodes.keys().next().expect("two are left"));
        }
    }
    assert!(killed && repeated > 0, "killed: {killed}, {repeated} repeated");
    assert!(receive(&mut client, wish).await.1.is_empty());
}

/// What is wanted comes, once, and nothing else, with tags that share a hash, conditions, and the leader's death in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_give_each_group_what_it_asks_for_and_nothing_else() {
    const COUNT: u32 = 600;
    let mut cluster = Cluster::start(|_| {}).await;
    prepare(&cluster, "filtered", TopicType::Normal, "all", false).await;
    let mut client = cluster.client(cluster.followers().await[0]);
    // "Aa" and "BB" have one hash.
    let tag = |id: u32| ["Aa", "BB", "C"].get(id as usize % 4).copied();
    let numbered = |id: u32| {
        message("filtered", id, |message, system| {
            system.tag = tag(id).map(str::to_owned);
            message.user_properties.insert("n".into(), id.to_string());
            message.user_properties.insert("color".into(), if id.is_multiple_of(3) { "red" } else { "blue" }.into());
        })
    };
    for start in (0..COUNT).step_by(20) {
        let (code, _) = send(&mut client, (start..start + 20).map(numbered).collect()).await;
        assert_eq!(code, 20000);
    }
    type Wanted = fn(u32) -> bool;
    let asked: [(&str, FilterType, &str, Wanted); 5] = [
        ("all", FilterType::Tag, "*", |_| true),
        ("tag", FilterType::Tag, "BB", |id| id % 4 == 1),
        ("tags", FilterType::Tag, "Aa || C", |id| id % 4 == 0 || id % 4 == 2),
        ("rare", FilterType::Sql, "n = 599", |id| id == 599),
        ("sql", FilterType::Sql, "n BETWEEN 100 AND 400 AND color = 'red' AND TAGS IS NOT NULL", |id| {
            (100..=400).contains(&id) && id.is_multiple_of(3) && id % 4 != 3
        }),
    ];
    for (at, (group, kind, text, wanted)) in asked.into_iter().enumerate() {
        let wish = Wish { topic: "filtered", group, filter: Some((kind, text)), max: 32 };
        let expected: BTreeSet<u32> = (0..COUNT).filter(|id| wanted(*id)).collect();
        let mut acked = BTreeSet::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        while acked != expected {
            assert!(Instant::now() < deadline, "{text}: stuck at {} of {}", acked.len(), expected.len());
            let (_, messages) = receive(&mut client, wish).await;
            for message in &messages {
                assert!(expected.contains(&number(message)), "{text}: {} was not asked for", number(message));
                if ack(&mut client, wish, message).await == 20000 {
                    assert!(acked.insert(number(message)), "{text}: {} came after its ack", number(message));
                }
            }
            if at == 2 && cluster.nodes.len() == 3 && acked.len() > 50 {
                let leader = cluster.leader().await;
                cluster.kill(leader);
                client = cluster.client(*cluster.nodes.keys().next().expect("two are left"));
            }
        }
        assert!(receive(&mut client, wish).await.1.is_empty(), "{text}: nothing is left");
    }
    assert_eq!(cluster.nodes.len(), 2, "the leader died in the middle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_takes_its_own_kind_of_messages_and_a_bad_filter_is_named() {
    let cluster = Cluster::start(|_| {}).await;
    prepare(&cluster, "ordered", TopicType::Fifo, "in-order", true).await;
    prepare(&cluster, "plain", TopicType::Normal, "any", false).await;
    prepare(&cluster, "mixed", TopicType::Any, "any", false).await;
    let mut client = cluster.client(cluster.followers().await[0]);
    let with_group = |topic: &str, id| message(topic, id, |_, system| system.message_group = Some("g".into()));
    let plain = |topic: &str, id| message(topic, id, |_, _| {});
    for (messages, code) in [
        (vec![with_group("ordered", 1)], 20000),
        (vec![plain("ordered", 2)], 40014),
        (vec![with_group("ordered", 3), plain("ordered", 4)], 40014),
        (vec![plain("plain", 5)], 20000),
        (vec![with_group("plain", 6)], 40014),
        (vec![with_group("mixed", 7), plain("mixed", 8)], 20000),
        (vec![message("ordered", 9, |_, system| system.message_type = MessageType::Fifo as i32)], 40006),
    ] {
        assert_eq!(send(&mut client, messages.clone()).await.0, code, "{messages:?}");
    }
    let wish = Wish { topic: "plain", group: "any", filter: Some((FilterType::Sql, "n >")), max: 1 };
    assert_eq!(receive(&mut client, wish).await.0, 40010);
    // A consumer group without order takes from an ordered topic as it comes, and one with order takes plain messages in queue order.
    let wish = Wish { topic: "ordered", group: "any", filter: None, max: 9 };
    assert_eq!(receive(&mut client, wish).await.1.len(), 1);
    let wish = Wish { topic: "plain", group: "in-order", filter: None, max: 9 };
    assert_eq!(receive(&mut client, wish).await.1.len(), 1);
}

/// Reading ahead meets a message that has rotted on the leader's disk: it is neither passed over nor taken out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_rotted_on_the_leader_s_disk_is_read_ahead_from_another_node() {
    let cluster = Cluster::start(|_| {}).await;
    prepare(&cluster, "ordered", TopicType::Fifo, "in-order", true).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    let rotten = b"rots on the disk of the leader";
    let bodies = |id: u32| {
        let mut message = ordered(id, "g");
        message.body = if id == 1 { rotten.as_slice().into() } else { id.to_string().into() };
        message
    };
    let (code, _) = send(&mut client, (0..3).map(bodies).collect()).await;
    assert_eq!(code, 20000);
    cluster.rot(leader, rotten);
    let wish =
        Wish { topic: "ordered", group: "in-order", filter: Some((FilterType::Sql, "UNIQ_KEY IS NOT NULL")), max: 9 };
    let (_, messages) = receive(&mut client, wish).await;
    let bodies: Vec<_> = messages.iter().map(|message| message.body.to_vec()).collect();
    assert_eq!(bodies, [b"0".to_vec(), rotten.to_vec(), b"2".to_vec()]);
}
