//! Disks that fill up, told by a door: what is refused, what goes on, and what goes early.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use quorate_broker::OnFull;
use quorate_proto::admin::{CreateTopicRequest, NodeStatus, Topic};
use quorate_raft::{Disk, DiskFile};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// The real disk, which says that so much of it is used.
pub(super) struct Crowded {
    used_percent: AtomicU64,
}

impl Crowded {
    fn set(&self, percent: u64) {
        self.used_percent.store(percent, Ordering::Relaxed);
    }
}

impl Disk for Crowded {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path, create)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn space(&self, _: &Path) -> io::Result<(u64, u64)> {
        const PERCENT: u64 = 1 << 30;
        Ok(((100 - self.used_percent.load(Ordering::Relaxed)) * PERCENT, 100 * PERCENT))
    }

    fn file_system(&self, path: &Path) -> String {
        RealDisk.file_system(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        RealDisk.lock(path)
    }

    fn boot_id(&self) -> io::Result<u128> {
        RealDisk.boot_id()
    }

    fn join(&self, dir: &Path, name: &str) -> PathBuf {
        RealDisk.join(dir, name)
    }
}

/// A group whose disks are half used, and these disks.
async fn start(change: impl Fn(&mut BrokerConfig)) -> (Cluster, BTreeMap<u16, Arc<Crowded>>) {
    let disks: BTreeMap<u16, Arc<Crowded>> =
        (1..=3).map(|number| (number, Arc::new(Crowded { used_percent: 50.into() }))).collect();
    let doors = disks.iter().map(|(number, disk)| (*number, disk.clone() as Arc<dyn Disk>)).collect();
    let cluster = Cluster::start_on(doors, |config| {
        config.retention.disk_warn_percent = 75;
        config.retention.disk_full_percent = 90;
        change(config);
    });
    (cluster.await, disks)
}

/// Small segments, of which a few fill quickly.
fn small(config: &mut BrokerConfig) {
    config.storage.segment_bytes = 2 << 20;
    config.limits.message_bytes_max = 100 << 10;
    config.limits.batch_bytes_max = 100 << 10;
}

fn large(id: u32) -> Message {
    let mut body = format!("body {id} ").into_bytes();
    body.resize(64 << 10, b'.');
    Message { body: body.into(), ..message(id) }
}

/// Sends one message; gives the code and what was said.
async fn send_one(client: &mut Client, message: Message) -> (i32, String) {
    let wanted = request(SendMessageRequest { messages: vec![message] }, Duration::from_secs(3));
    let answer = client.send_message(wanted).await.expect("never an error at the level of gRPC").into_inner();
    let status = answer.status.expect("set");
    (status.code, status.message)
}

/// Sends until the answer has this code. Gives what was said then, and the ids that were stored on the way.
async fn until_code(client: &mut Client, code: i32, ids: &mut impl Iterator<Item = u32>) -> (String, Vec<u32>) {
    let (deadline, mut stored) = (Instant::now() + PATIENCE, Vec::new());
    for id in ids {
        let (now, said) = send_one(client, message(id)).await;
        if now == 20000 {
            stored.push(id);
        }
        if now == code {
            return (said, stored);
        }
        assert!(Instant::now() < deadline, "{now}: {said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("there are always more ids")
}

async fn status_of(cluster: &Cluster, number: u16) -> NodeStatus {
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&number].bound.client));
    let nodes = admin.cluster_status(ClusterStatusRequest {}).await.expect("answered").into_inner().nodes;
    nodes.into_iter().find(|node| node.number == u32::from(number)).expect("itself")
}

/// Waits until a node says that so much of its disk is used.
async fn until_used(cluster: &Cluster, number: u16, percent: u32) -> NodeStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = status_of(cluster, number).await;
        if status.disk_used_percent == percent {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Receives and acks until nothing comes; gives the ids.
async fn drain(client: &mut Client) -> BTreeSet<u32> {
    let (mut seen, mut empty) = (BTreeSet::new(), 0);
    while empty < 2 {
        let (_, messages) = receive(client, 32, 300).await;
        empty = if messages.is_empty() { empty + 1 } else { 0 };
        assert!(ack(client, &messages).await.iter().all(|code| *code == 20000));
        let id = |message: &Message| {
            u32::from_str_radix(&message.system_properties.as_ref().expect("set").message_id, 16).expect("hex")
        };
        seen.extend(messages.iter().map(id));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_leader_refuses_sends_serves_consumers_and_takes_sends_again_by_itself() {
    let (cluster, disks) = start(|_| {}).await;
    let (leader, follower) = (cluster.leader().await, cluster.followers().await[0]);
    let mut client = cluster.client(follower);
    let mut ids = 1..;
    let (_, mut stored) = until_code(&mut client, 20000, &mut ids).await;

    disks[&leader].set(91);
    let (said, more) = until_code(&mut client, 50001, &mut ids).await;
    stored.extend(more);
    let dir = cluster.configs[&leader].storage.data_dir.display().to_string();
    for part in [&format!("the disk of node {leader} is full"), &dir, "91 % used", "nothing was done", "by itself"] {
        assert!(said.contains(part), "{said}");
    }
    let status = until_used(&cluster, leader, 91).await;
    assert_eq!(status.disk_level, "full");

    // No new topic either, neither by hand nor by use.
    let mut admin = BrokerAdminClient::new(channel(&cluster.nodes[&follower].bound.client));
    let topic = Topic { name: "u".into(), queues: 1, ..Topic::default() };
    let made = admin.create_topic(CreateTopicRequest { topic: Some(topic) }).await.expect("answered").into_inner();
    assert_eq!(made.code, 50001, "{}", made.message);
    let unknown = Message { topic: named("v"), ..message(9_999) };
    assert_eq!(send_one(&mut client, unknown).await.0, 50001);

    // What was stored is read and acked.
    let mut seen = drain(&mut client).await;
    assert_eq!(seen, stored.iter().copied().collect());

    // A little room is not enough, and enough is.
    disks[&leader].set(89);
    until_used(&cluster, leader, 89).await;
    assert_eq!(send_one(&mut client, message(9_998)).await.0, 50001);
    disks[&leader].set(80);
    let (_, more) = until_code(&mut client, 20000, &mut ids).await;
    stored.extend(more);
    seen.extend(drain(&mut client).await);
    assert_eq!(seen, stored.into_iter().collect(), "what was refused was not stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_full_follower_stops_nobody_and_two_do() {
    let (cluster, disks) = start(|_| {}).await;
    let (leader, followers) = (cluster.leader().await, cluster.followers().await);
    let mut client = cluster.client(leader);
    let mut ids = 1..;
    disks[&followers[0]].set(96);
    until_used(&cluster, followers[0], 96).await;
    until_code(&mut client, 20000, &mut ids).await;
    disks[&followers[1]].set(92);
    let (said, _) = until_code(&mut client, 50001, &mut ids).await;
    assert!(said.contains(&format!("the disk of node {} is full", followers[0])), "the fuller one: {said}");
    disks[&followers[0]].set(50);
    until_code(&mut client, 20000, &mut ids).await;
}

/// How many segments a node has, once that is as expected.
async fn until_segments(cluster: &Cluster, number: u16, is_fine: impl Fn(usize) -> bool) {
    let log = cluster.configs[&number].storage.data_dir.join("log");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let count = std::fs::read_dir(&log).expect("a folder").count();
        if is_fine(count) {
            return;
        }
        assert!(Instant::now() < deadline, "node {number} has {count} segments");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_tight_disk_consumed_segments_go_early_and_unconsumed_ones_stay_at_any_fullness() {
    let (cluster, disks) = start(small).await;
    let (leader, follower) = (cluster.leader().await, cluster.followers().await[0]);
    let mut client = cluster.client(leader);
    for id in 0..100 {
        assert_eq!(send_one(&mut client, large(id)).await.0, 20000);
    }
    assert_eq!(drain(&mut client).await.len(), 100);
    for id in 100..200 {
        assert_eq!(send_one(&mut client, large(id)).await.0, 20000);
    }
    until_segments(&cluster, leader, |count| count >= 6).await;

    // One tight disk of three is enough for what nobody misses.
    disks[&follower].set(76);
    for number in 1..=3 {
        until_segments(&cluster, number, |count| count <= 5).await;
    }
    // And the fullest is not enough for what somebody may miss: it stays, while the leader looks several times.
    disks.values().for_each(|disk| disk.set(94));
    until_code(&mut client, 50001, &mut (1000..)).await;
    assert!(drain(&mut client).await.is_superset(&(100..200).collect()));
    // Now it is consumed, too.
    for number in 1..=3 {
        until_segments(&cluster, number, |count| count <= 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_delete_oldest_the_oldest_messages_make_room_and_that_is_counted() {
    let (cluster, disks) = start(|config| {
        small(config);
        config.retention.on_full = OnFull::DeleteOldest;
    })
    .await;
    let leader = cluster.leader().await;
    let mut client = cluster.client(leader);
    for id in 0..100 {
        assert_eq!(send_one(&mut client, large(id)).await.0, 20000);
    }
    disks[&leader].set(78);
    let page = async |name: &str| {
        let address = cluster.nodes[&leader].bound.http.clone().expect("on");
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("text");
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
    };
    // Before anything goes, it is told who will lose something.
    let deadline = Instant::now() + PATIENCE;
    while page("quorate_broker_losing_messages{").await == 0.0 {
        assert!(Instant::now() < deadline, "nobody is told");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(page("quorate_broker_messages_dropped_unconsumed_total").await, 0.0);
    disks[&leader].set(84);
    until_segments(&cluster, leader, |count| count <= 2).await;
    assert!(page("quorate_broker_messages_dropped_unconsumed_total").await > 50.0);
    let left = drain(&mut client).await;
    assert!(left.contains(&99) && !left.contains(&0), "{left:?}");
}
