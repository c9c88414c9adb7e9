//! Three real nodes on small file systems of their own that fill up. Needs root, to mount them; says so loudly where it is skipped.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod nodes;

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nodes::{PATIENCE, Role, quorate};
use quorate_client::{Client, ClientConfig, ConsumerOptions, Doors, Message, Producer, SimpleConsumer};

/// A file system in memory, unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn new(path: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=300m", "tmpfs"]).arg(&path).output().ok()?;
        mount.status.success().then_some(Self(path))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes `mib` MiB of it, or all that is left.
    fn fill(&self, mib: usize) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.ballast()).unwrap();
        for _ in 0..mib {
            if file.write_all(&vec![1; 1 << 20]).is_err() {
                return;
            }
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

struct Group {
    dir: PathBuf,
    ports: Vec<u16>,
}

impl Group {
    fn start(&self, number: usize) -> Role {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let peers: Vec<_> = (1..=3).map(|n| format!("{n}@{}", at(self.ports[n - 1]))).collect();
        let config = self.dir.join("broker.toml");
        let data = self.dir.join(number.to_string()).join("data");
        let mut command = quorate(&[
            "broker",
            "--config",
            config.to_str().unwrap(),
            "--data",
            data.to_str().unwrap(),
            "--node",
            &number.to_string(),
            "--peers",
            &peers.join(";"),
            "--listen",
            &at(self.ports[2 + number]),
            "--peer-listen",
            &at(self.ports[number - 1]),
            "--http-listen",
            "127.0.0.1:0",
        ]);
        command.env_remove("QUORATE_RETENTION_DISK_WARN_PERCENT").env_remove("QUORATE_RETENTION_DISK_FULL_PERCENT");
        let mut role = Role::spawn(command);
        role.ready("client");
        role
    }

    fn endpoints(&self) -> String {
        self.ports[3..].iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(";")
    }
}

fn body(id: u32) -> Vec<u8> {
    let mut body = id.to_le_bytes().to_vec();
    body.resize(512 << 10, b'.');
    body
}

/// Sends one message after another until `is_enough` of an answer. Gives that answer and the ids that were acknowledged.
async fn send_until(
    producer: &Producer,
    ids: &mut impl Iterator<Item = u32>,
    is_enough: impl Fn(&Result<(), String>) -> bool,
) -> (Result<(), String>, Vec<u32>) {
    let (deadline, mut acked) = (Instant::now() + 4 * PATIENCE, Vec::new());
    for id in ids {
        let answer = producer.send(Message::new("t", body(id))).await.map(drop).map_err(|error| error.to_string());
        if answer.is_ok() {
            acked.push(id);
        }
        if is_enough(&answer) {
            return (answer, acked);
        }
        assert!(Instant::now() < deadline, "{answer:?}");
    }
    unreachable!("there are always more ids")
}

/// Receives once and acks it all.
async fn consume(consumer: &SimpleConsumer) -> Result<Vec<u32>, String> {
    let deliveries = consumer.receive("t").await.map_err(|error| error.to_string())?;
    let ids = deliveries.iter().map(|delivery| u32::from_le_bytes(delivery.body[..4].try_into().unwrap())).collect();
    let acks = consumer.ack_many(&deliveries).await;
    match acks.into_iter().find_map(Result::err) {
        None => Ok(ids),
        Some(error) => Err(error.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_on_small_disks_refuse_go_on_and_survive_a_disk_that_is_full_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mounts: Option<Vec<Mount>> = (1..=3).map(|number| Mount::new(dir.path().join(number.to_string()))).collect();
    let Some(mounts) = mounts else {
        // Past the capture of the test runner.
        std::io::stderr().write_all(b"\nSKIPPED: full_disk needs root to mount small file systems\n\n").unwrap();
        return;
    };
    let more = "[storage]\nsegment_bytes = \"32MiB\"\n[groups]\nstart = \"first\"\n";
    nodes::config(dir.path(), more);
    let group = Group { dir: dir.path().to_owned(), ports: nodes::free_ports(6) };
    let mut roles: Vec<Option<Role>> = (1..=3).map(|number| Some(group.start(number))).collect();
    mounts.iter().for_each(|mount| mount.fill(100));
    let client = Client::new(ClientConfig::parse(&group.endpoints()).unwrap(), Doors::system()).unwrap();
    let producer = client.producer();
    let mut ids = 1_u32..;
    let mut acked = BTreeSet::new();

    // Filled until it is refused, in words that name directory and remedy. No node ends.
    let (first, more) = send_until(&producer, &mut ids, Result::is_ok).await;
    first.unwrap();
    acked.extend(more);
    let is_full = |answer: &Result<(), String>| answer.as_ref().is_err_and(|said| said.contains("is full"));
    let (said, more) = send_until(&producer, &mut ids, is_full).await;
    let said = said.unwrap_err();
    assert!(said.contains("/data is ") && said.contains("make room there"), "{said}");
    acked.extend(more);
    assert!(acked.len() > 100, "{} messages of 512 KiB fit 200 MiB", acked.len());

    // Consumers read and ack on.
    let consumer = client.simple_consumer("g", ConsumerOptions::default()).unwrap();
    let mut seen: BTreeSet<u32> = consume(&consumer).await.unwrap().into_iter().collect();
    assert!(!seen.is_empty());

    // There is room again, and nobody has to be told.
    mounts.iter().for_each(Mount::empty);
    let (again, more) = send_until(&producer, &mut ids, Result::is_ok).await;
    again.unwrap();
    acked.extend(more);

    // Somebody else takes all that is left of one disk, at once: what its node must still write ends it, and the others go on.
    mounts[0].fill(300);
    let deadline = Instant::now() + 2 * PATIENCE;
    let mut first = roles[0].take().unwrap();
    let ended = loop {
        if let Some(status) = first.ended() {
            break status;
        }
        seen.extend(consume(&consumer).await.unwrap_or_default());
        let _ = producer.send(Message::new("t", 0_u32.to_le_bytes().to_vec())).await;
        assert!(Instant::now() < deadline, "a full disk does not end its node");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!ended.success(), "{ended}");
    let last = first.rest().join("\n");
    let dir_of_first = Path::new("1").join("data").display().to_string();
    assert!(last.contains(&dir_of_first) && last.contains("make room there and start this node again"), "{last}");

    mounts[0].empty();
    roles[0] = Some(group.start(1));
    let (again, more) = send_until(&producer, &mut ids, Result::is_ok).await;
    again.unwrap();
    acked.extend(more);
    let deadline = Instant::now() + 4 * PATIENCE;
    while !acked.is_subset(&seen) {
        seen.extend(consume(&consumer).await.unwrap_or_default());
        let lost = acked.difference(&seen).count();
        assert!(Instant::now() < deadline, "{lost} acknowledged messages do not come");
    }
    drop(roles);
}
