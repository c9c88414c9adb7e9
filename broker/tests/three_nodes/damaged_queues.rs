//! Consume queue files that rot, on the leader while it leads and on a node that is down: whatever happened to them, a consumer is handed
//! every message, in order, and nothing else.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use quorate_broker::RunError;
use quorate_proto::{
    admin::{
        ConsumerGroup, CreateGroupRequest, CreateTopicRequest, Topic, TopicType, TransferLeadershipRequest,
        broker_admin_client::BrokerAdminClient,
    },
    v2::{
        AckMessageEntry, AckMessageRequest, FilterExpression, FilterType, Message, MessageQueue, ReceiveMessageRequest,
        SystemProperties, receive_message_response::Content,
    },
};

use super::{Client, Cluster, channel, named, request, send};

/// More than a queue keeps in memory, so that its first messages are found through the file.
const MESSAGES: u32 = 1_200;
/// Those that are only in the file, and damaged.
const LOOKED_AT: u32 = 160;
const RECORD_BYTES: usize = 20;

/// Consumer groups that read pointers each in their own way.
const GROUPS: [&str; 3] = ["plain", "ordered", "filtered"];

/// What is done to a file.
type Damage = fn(&mut Vec<u8>, other: &[u8]);

const DAMAGES: [(&str, Damage); 8] = [
    ("zeroed", |bytes, _| bytes[40..2_000].fill(0)),
    ("position", |bytes, _| bytes[5 * RECORD_BYTES] ^= 1),
    ("size", |bytes, _| bytes[6 * RECORD_BYTES + 8] ^= 4),
    ("tag", |bytes, _| bytes[7 * RECORD_BYTES + 12] ^= 2),
    ("last-field", |bytes, _| bytes[8 * RECORD_BYTES + 19] ^= 0x80),
    ("swapped", |bytes, _| {
        let (first, second) = (bytes[100..120].to_vec(), bytes[300..320].to_vec());
        bytes[100..120].copy_from_slice(&second);
        bytes[300..320].copy_from_slice(&first);
    }),
    ("foreign", |bytes, other| bytes[200..220].copy_from_slice(&other[200..220])),
    ("truncated", |bytes, _| bytes.truncate(1_010)),
];

async fn prepare(cluster: &Cluster, topics: &[&str]) {
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&cluster.leader().await].bound.client));
    for name in topics {
        let topic = Topic { name: (*name).into(), queues: 1, r#type: TopicType::Normal as i32, ..Topic::default() };
        admin.create_topic(CreateTopicRequest { topic: Some(topic) }).await.expect("a topic");
    }
    for name in GROUPS {
        let group = ConsumerGroup { name: name.into(), fifo: name == "ordered", ..ConsumerGroup::default() };
        admin.create_group(CreateGroupRequest { group: Some(group), replace: false }).await.expect("a group");
    }
}

async fn fill(client: &mut Client, topic: &str) {
    for first in (0..MESSAGES).step_by(100) {
        let messages = (first..first + 100).map(|id| message(topic, id)).collect();
        let (code, entries) = send(client, messages).await;
        assert_eq!((code, entries.len()), (20000, 100));
    }
}

fn message(topic: &str, id: u32) -> Message {
    let message_id = format!("{id:034X}");
    let system = SystemProperties { message_id, tag: Some("wanted".into()), ..SystemProperties::default() };
    let body = format!("{topic} {id}").into();
    Message { topic: named(topic), body, system_properties: Some(system), ..Message::default() }
}

/// The files of a node's consume queues, by the number of their topic.
fn queue_files(cluster: &Cluster, number: u16) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![cluster.configs[&number].storage.data_dir.join("queue")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    let topic = |path: &Path| {
        let name = path.parent()?.parent()?.file_name()?;
        name.to_str()?.parse::<u32>().ok()
    };
    found.sort_by_key(|path| topic(path));
    found
}

/// The files of all topics once their records are written on a node; time must pass and commands must come for that.
async fn written(cluster: &Cluster, client: &mut Client, number: u16, topics: usize) -> Vec<PathBuf> {
    let deadline = Instant::now() + Duration::from_secs(40);
    let mut tick = 0;
    loop {
        let files = queue_files(cluster, number);
        let full =
            |path: &PathBuf| path.metadata().is_ok_and(|data| data.len() >= u64::from(MESSAGES) * RECORD_BYTES as u64);
        let full: Vec<PathBuf> = files.into_iter().filter(full).collect();
        if full.len() == topics {
            return full;
        }
        assert!(Instant::now() < deadline, "node {number} has written {full:?}");
        let (code, _) = send(client, vec![message("ticks", tick)]).await;
        assert_eq!(code, 20000);
        tick += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn damage(files: &[PathBuf], at: usize, damage: Damage) {
    let mut bytes = std::fs::read(&files[at]).expect("readable");
    let other = std::fs::read(&files[(at + 1) % files.len()]).expect("readable");
    damage(&mut bytes, &other);
    // In place, as rot does: the node has the file open.
    let file = std::fs::OpenOptions::new().write(true).open(&files[at]).expect("writable");
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("written");
    file.set_len(bytes.len() as u64).expect("shortened");
}

async fn receive(client: &mut Client, topic: &str, group: &str) -> Vec<Message> {
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let filter = FilterExpression { r#type: FilterType::Tag as i32, expression: "wanted".into() };
    let wanted = ReceiveMessageRequest {
        group: named(group),
        message_queue: Some(MessageQueue { topic: named(topic), ..MessageQueue::default() }),
        filter_expression: (group == "filtered").then_some(filter),
        batch_size: 32,
        invisible_duration: Some(seconds(60)),
        long_polling_timeout: Some(seconds(1)),
        ..ReceiveMessageRequest::default()
    };
    // A node that ends meanwhile answers nothing.
    let Ok(answer) = client.receive_message(request(wanted, Duration::from_secs(15))).await else { return Vec::new() };
    let mut stream = answer.into_inner();
    let mut messages = Vec::new();
    while let Ok(Some(item)) = stream.message().await {
        if let Content::Message(message) = item.content.expect("set") {
            messages.push(message);
        }
    }
    messages
}

async fn ack(client: &mut Client, topic: &str, group: &str, messages: &[Message]) {
    let entry = |message: &Message| {
        let system = message.system_properties.clone().expect("set");
        let (message_id, receipt_handle) = (system.message_id, system.receipt_handle.expect("set"));
        AckMessageEntry { message_id, receipt_handle, lite_topic: None }
    };
    let entries = messages.iter().map(entry).collect();
    let wanted = AckMessageRequest { group: named(group), topic: named(topic), entries };
    let answer = client.ack_message(request(wanted, Duration::from_secs(5))).await.expect("in-band").into_inner();
    assert_eq!(answer.status.expect("set").code, 20000);
}

/// Every group is handed the first messages, one after another, and nothing else.
async fn everything_comes(client: &mut Client, topic: &str, what: &str) {
    for group in GROUPS {
        let mut next = 0;
        while next < LOOKED_AT {
            let messages = receive(client, topic, group).await;
            assert!(!messages.is_empty(), "{what}: {group} is handed nothing behind {next}");
            for message in &messages {
                let body = String::from_utf8_lossy(&message.body).into_owned();
                assert_eq!(body, format!("{topic} {next}"), "{what}: {group}");
                next += 1;
            }
            ack(client, topic, group, &messages).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_rot_under_the_leader_hide_no_message_and_hand_out_no_other() {
    let cluster = Cluster::start(|_| {}).await;
    let topics = DAMAGES.map(|(name, _)| name);
    prepare(&cluster, &topics).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    for topic in topics {
        fill(&mut client, topic).await;
    }
    let files = written(&cluster, &mut client, leader, topics.len()).await;
    for (at, (_, what)) in DAMAGES.into_iter().enumerate() {
        damage(&files, at, what);
    }
    for topic in topics {
        everything_comes(&mut client, topic, topic).await;
    }
    assert_eq!(cluster.leader().await, leader, "the leader has gone on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_with_damaged_records_leads_as_if_nothing_had_happened() {
    let mut cluster = Cluster::start(|_| {}).await;
    let topics: Vec<&str> = DAMAGES.iter().map(|(name, _)| *name).chain(["deleted"]).collect();
    prepare(&cluster, &topics).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    for topic in &topics {
        fill(&mut client, topic).await;
    }
    let node = cluster.followers().await[0];
    let files = written(&cluster, &mut client, node, topics.len()).await;
    cluster.stop(node).await.expect("a planned stop");
    for (at, (_, what)) in DAMAGES.into_iter().enumerate() {
        damage(&files, at, what);
    }
    std::fs::remove_file(files.last().expect("the last topic's")).expect("removed");
    cluster.open(node).await;
    lead(&cluster, node).await;
    let mut client = cluster.client(node);
    for topic in topics {
        everything_comes(&mut client, topic, topic).await;
    }
}

/// Makes a node lead, as soon as it may.
async fn lead(cluster: &Cluster, node: u16) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let leader = cluster.leader().await;
        if leader == node {
            return;
        }
        assert!(Instant::now() < deadline, "node {node} does not lead");
        let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&leader].bound.client));
        // Refused until the node has caught up.
        let _ = admin.transfer_leadership(TransferLeadershipRequest { node: node.into() }).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Nobody is left to ask: the leader ends and says why, and makes its queues again from its own log when it is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_has_rotted_on_all_nodes_ends_the_leader_and_is_made_again_from_its_log() {
    let mut cluster = Cluster::start(|_| {}).await;
    prepare(&cluster, &["t"]).await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    fill(&mut client, "t").await;
    let mut damaged = PathBuf::new();
    for number in 1..=3 {
        let files = written(&cluster, &mut client, number, 1).await;
        damage(&files, 0, |bytes, _| bytes[60..100].fill(0));
        if number == leader {
            damaged = files[0].clone();
        }
    }
    let handed_out = receive(&mut client, "t", "plain").await;
    assert!(handed_out.is_empty(), "{} messages, as if none were missing", handed_out.len());
    let mut node = cluster.nodes.remove(&leader).expect("runs");
    let ended = tokio::time::timeout(Duration::from_secs(20), node.ended.take().expect("not stopped yet"));
    let ended = ended.await.expect("the node ends by itself").expect("no panic");
    drop(node);
    let Err(RunError::Fatal(reason)) = ended else { panic!("{ended:?}") };
    assert!(reason.contains(&damaged.display().to_string()) && reason.contains("start the node again"), "{reason}");
    cluster.open(leader).await;
    lead(&cluster, leader).await;
    let mut client = cluster.client(leader);
    for group in ["ordered", "filtered"] {
        let messages = receive(&mut client, "t", group).await;
        let bodies: Vec<String> =
            messages.iter().map(|message| String::from_utf8_lossy(&message.body).into()).collect();
        let expected: Vec<String> = (0..32).map(|id| format!("t {id}")).collect();
        assert_eq!(bodies, expected, "{group}");
    }
}
