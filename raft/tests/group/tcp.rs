//! The real thing in small: three nodes over TCP on loopback, real files, real syncs, real threads.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorate_raft::{
    CallHandler, CommittedEntry, Doors, FlushMode, Group, GroupConfig, ImagePoint, LogId, MachineError, Member, NodeId,
    Position, ProposeError, RealDisk, StartError, StateMachine, TcpNetwork, WriterMode, network::BoxFuture,
};

/// Counts entries and adds up their bytes.
#[derive(Default)]
struct Sum(Arc<AtomicU64>);

impl StateMachine for Sum {
    type Reply = u64;

    fn applied(&self) -> Option<LogId> {
        None
    }

    fn apply(&mut self, entry: CommittedEntry) -> u64 {
        let add = u64::from(entry.payload[0]);
        self.0.fetch_add(add, Ordering::Relaxed) + add
    }

    fn settle(&mut self, _synced: Position) {}

    fn save_image(&mut self, _border: Position) -> Bytes {
        Bytes::copy_from_slice(&self.0.load(Ordering::Relaxed).to_le_bytes())
    }

    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError> {
        let sum = if at.applied.is_some() { u64::from_le_bytes(image.try_into().unwrap()) } else { 0 };
        self.0.store(sum, Ordering::Relaxed);
        Ok(())
    }

    fn floor(&mut self, _floor: Position) {}
}

struct NoCalls;

impl CallHandler for NoCalls {
    fn call(&self, _from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(async move { request })
    }
}

/// Ports on which nobody listens now, each given once by this process. They lie below those of outgoing connections, one of which might
/// have taken a port by the time its node starts.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(101);
    let ports = std::iter::repeat_with(|| {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        10_000 + (number % 22_000) as u16
    });
    ports.filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect()
}

fn free_addresses(count: usize) -> Vec<String> {
    free_ports(count).into_iter().map(|port| format!("127.0.0.1:{port}")).collect()
}

async fn start(dir: &Path, addresses: &[String], number: u16) -> (Group<Sum>, Arc<AtomicU64>) {
    try_start(dir, addresses, number).await.unwrap()
}

async fn try_start(dir: &Path, addresses: &[String], number: u16) -> Result<(Group<Sum>, Arc<AtomicU64>), StartError> {
    let member =
        |(index, address): (usize, &String)| Member { number: index as u16 + 1, peer_address: address.clone() };
    let config = GroupConfig {
        cluster: "tcp".into(),
        number,
        members: addresses.iter().enumerate().map(member).collect(),
        peer_listen: addresses[usize::from(number) - 1].clone(),
        info: String::new(),
        data_dir: dir.join(number.to_string()),
        segment_bytes: 4 << 20,
        entry_bytes_max: 1 << 20,
        inflight_bytes_max: 64 << 20,
        tail_cache_bytes: 8 << 20,
        follower_window_bytes: 2 << 20,
        flush: FlushMode::Sync,
        writer: WriterMode::Thread,
        heartbeat: Duration::from_millis(100),
        election_timeout: (Duration::from_millis(500), Duration::from_millis(1000)),
        fast_path: Some(quorate_raft::FastPath::default()),
        bootstrap: false,
        join: false,
        seed: u64::from(number),
        leader_restore: false,
    };
    let sum = Arc::new(AtomicU64::new(0));
    let machine = Sum(sum.clone());
    let doors = Doors { disk: Arc::new(RealDisk), network: Arc::new(TcpNetwork) };
    let group = Group::start(config, doors, Arc::new(NoCalls), move |_| Ok(machine)).await?;
    Ok((group, sum))
}

async fn leader(groups: &[Option<Group<Sum>>]) -> Group<Sum> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = groups.iter().flatten().find(|group| group.leader().borrow().serving);
        if let Some(group) = found {
            return group.clone();
        }
        assert!(Instant::now() < deadline, "no leader within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Entries of one, proposed by many at once; how many were acknowledged.
async fn load(group: &Group<Sum>, proposers: usize, each: usize, bytes: usize) -> u64 {
    let acknowledged = Arc::new(AtomicU64::new(0));
    let tasks = (0..proposers).map(|_| {
        let (group, acknowledged) = (group.clone(), acknowledged.clone());
        tokio::spawn(async move {
            for _ in 0..each {
                match group.propose(Bytes::from(vec![1; bytes])).await {
                    Ok(_) => drop(acknowledged.fetch_add(1, Ordering::Relaxed)),
                    Err(ProposeError::Unknown | ProposeError::Stopped(_)) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    acknowledged.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_over_tcp_replicate_survive_and_share_syncs() {
    crate::support::trace();
    let dir = tempfile::tempdir().unwrap();
    let addresses = free_addresses(3);
    let mut groups = Vec::new();
    let mut sums = Vec::new();
    for number in 1..=3 {
        let (group, sum) = start(dir.path(), &addresses, number).await;
        groups.push(Some(group));
        sums.push(sum);
    }
    let first = leader(&groups).await;
    let before = Instant::now();
    let acknowledged = load(&first, 64, 30, 1024).await;
    println!("{acknowledged} entries of 1 KiB in {:?}, syncs {}", before.elapsed(), first.status().syncs);
    assert_eq!(acknowledged, 64 * 30);
    assert!(first.status().syncs < acknowledged / 2, "syncs are shared: {}", first.status().syncs);

    let killed = usize::from(first.id().number()) - 1;
    groups[killed].take().unwrap().kill();
    drop(first);
    let second = leader(&groups).await;
    let more = load(&second, 8, 20, 64 << 10).await;
    assert_eq!(more, 160);

    let (group, sum) = start(dir.path(), &addresses, killed as u16 + 1).await;
    groups[killed] = Some(group);
    sums[killed] = sum;
    let deadline = Instant::now() + Duration::from_secs(20);
    while sums.iter().any(|sum| sum.load(Ordering::Relaxed) < acknowledged + more) {
        assert!(Instant::now() < deadline, "a node did not catch up: {sums:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(sums.iter().all(|sum| sum.load(Ordering::Relaxed) == acknowledged + more), "{sums:?}");
    for group in groups.into_iter().flatten() {
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_segment_that_was_cut_short_refuses_the_start_with_file_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let addresses = free_addresses(1);
    let (group, _) = start(dir.path(), &addresses, 1).await;
    let first = leader(&[Some(group)]).await;
    assert_eq!(load(&first, 16, 400, 1024).await, 6400);
    first.shutdown().await;
    drop(first);
    let data = dir.path().join("1");
    // Without images every entry is read again.
    std::fs::remove_dir_all(data.join("image")).unwrap();
    std::fs::create_dir(data.join("image")).unwrap();
    let sealed = data.join("log").join(format!("{:020}", 0));
    std::fs::OpenOptions::new().write(true).open(&sealed).unwrap().set_len(1 << 20).unwrap();
    let refused = try_start(dir.path(), &addresses, 1).await.map(|_| ()).unwrap_err();
    let StartError::Corrupt(text) = &refused else { panic!("{refused}") };
    assert!(text.contains(&sealed.display().to_string()) && text.contains("One node is lost"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_indexes_that_is_gone_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let addresses = free_addresses(1);
    let (group, _) = start(dir.path(), &addresses, 1).await;
    let first = leader(&[Some(group)]).await;
    assert_eq!(load(&first, 16, 400, 1024).await, 6400);
    first.shutdown().await;
    drop(first);
    let index = dir.path().join("1/index");
    std::fs::remove_dir_all(&index).unwrap();
    let (group, sum) = start(dir.path(), &addresses, 1).await;
    let first = leader(&[Some(group)]).await;
    assert_eq!(load(&first, 16, 400, 1024).await, 6400);
    assert_eq!(sum.load(Ordering::Relaxed), 12_800);
    first.shutdown().await;
    assert_ne!(std::fs::read_dir(&index).unwrap().count(), 0, "the indexes of sealed segments are stored");
}
