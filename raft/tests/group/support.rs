//! A group in one process: memory disks, a memory network, and a machine that adds numbers and remembers what it saw.
//!
//! Runs under a paused, seeded, single-threaded runtime: waiting costs no time, and one seed is one run.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_raft::{
    CallHandler, ChangeError, ChangeStep, CommittedEntry, Doors, FastPath, FlushMode, Group, GroupConfig, ImagePoint,
    LogId, LogIndex, MachineError, Member, MemberChange, MemoryNetwork, NodeId, Position, ProposeError, StartError,
    StateMachine, Term, WriterMode,
    disk::sim::{Keep, SimDisk},
    network::BoxFuture,
};
use tokio::time::Instant;

/// Shows what the nodes log, if `RUST_LOG` says so.
pub fn trace() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    }
}

/// Runs a test under virtual time from one seed.
pub fn simulate<F: Future<Output = ()>>(seed: u64, test: F) {
    trace();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let _ = seed;
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

/// What a counter holds, shared with the test.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub struct Count {
    pub sum: u64,
    pub entries: u64,
    pub applied: Option<LogId>,
    pub floor: Position,
    /// Index of an entry and its number, for entries since the machine was loaded.
    pub seen: BTreeMap<u64, u64>,
    /// Images that were loaded.
    pub loads: u64,
    /// Borders that were crossed; part of the image.
    pub borders: u64,
    /// Survives a restart, as a checkpoint does.
    pub is_checkpoint: bool,
}

/// Adds up the numbers in its entries (first 8 bytes; the rest is ballast).
pub struct Counter(pub Arc<Mutex<Count>>);

impl StateMachine for Counter {
    type Reply = u64;

    fn applied(&self) -> Option<LogId> {
        let count = self.0.lock().unwrap();
        count.applied.filter(|_| count.is_checkpoint)
    }

    fn apply(&mut self, entry: CommittedEntry) -> u64 {
        let mut count = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = entry.payload.clone().get_u64_le();
        assert_ne!(number, POISON, "the disk is on fire");
        count.sum += number;
        count.entries += 1;
        count.applied = Some(entry.id);
        count.seen.insert(entry.id.index.0, number);
        count.sum
    }

    fn settle(&mut self, _synced: Position) {}

    fn save_image(&mut self, _border: Position) -> Bytes {
        let mut count = self.0.lock().unwrap();
        count.borders += 1;
        let mut image = BytesMut::new();
        image.put_u64_le(count.sum);
        image.put_u64_le(count.entries);
        image.put_u64_le(count.borders);
        image.freeze()
    }

    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError> {
        let mut count = self.0.lock().unwrap();
        let loads = count.loads + u64::from(at.applied.is_some());
        *count = Count { applied: at.applied, loads, is_checkpoint: count.is_checkpoint, ..Count::default() };
        if at.applied.is_some() {
            let mut image = image;
            if image.len() != 24 {
                return Err(MachineError { border: at.border, reason: "not 24 bytes".into() });
            }
            count.sum = image.get_u64_le();
            count.entries = image.get_u64_le();
            count.borders = image.get_u64_le();
        }
        Ok(())
    }

    fn floor(&mut self, floor: Position) {
        self.0.lock().unwrap().floor = floor;
    }
}

/// Answers a call with the node's number and the request.
struct Echo(u16);

impl CallHandler for Echo {
    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let number = self.0;
        Box::pin(async move {
            if &request[..] == b"never" {
                std::future::pending::<()>().await;
            }
            Bytes::from(format!("{number} heard {} from {from}", String::from_utf8_lossy(&request)))
        })
    }
}

pub struct Node {
    pub number: u16,
    pub disk: SimDisk,
    pub group: Option<Group<Counter>>,
    pub count: Arc<Mutex<Count>>,
}

pub struct Cluster {
    pub network: MemoryNetwork,
    pub nodes: BTreeMap<u16, Node>,
    pub config: GroupConfig,
    seed: u64,
    starts: u64,
}

/// A number that the counter cannot add.
pub const POISON: u64 = u64::MAX;

pub const SEGMENT: u64 = 16 << 10;

pub fn address(number: u16) -> String {
    format!("n{number}:9870")
}

pub fn host(number: u16) -> String {
    format!("n{number}")
}

/// An entry that adds `number`, with ballast to fill segments.
pub fn entry(number: u64, ballast: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8 + ballast);
    bytes.put_u64_le(number);
    bytes.put_bytes(0x5a, ballast);
    bytes.freeze()
}

impl Cluster {
    /// A cluster of `size` nodes, none of them started.
    pub fn new(seed: u64, size: u16) -> Self {
        let members = (1..=size).map(|number| Member { number, peer_address: format!("n{number}:9870") }).collect();
        let config = GroupConfig {
            cluster: "test".into(),
            number: 1,
            members,
            peer_listen: String::new(),
            info: String::new(),
            data_dir: "/data".into(),
            segment_bytes: SEGMENT,
            entry_bytes_max: 4 << 10,
            inflight_bytes_max: 1 << 20,
            tail_cache_bytes: 64 << 10,
            follower_window_bytes: 64 << 10,
            flush: FlushMode::Sync,
            writer: WriterMode::Task,
            heartbeat: Duration::from_millis(50),
            election_timeout: (Duration::from_millis(150), Duration::from_millis(250)),
            fast_path: Some(FastPath::default()),
            bootstrap: false,
            join: false,
            seed,
            leader_restore: false,
        };
        let network = MemoryNetwork::new(seed);
        network.latency(Duration::from_micros(100)..Duration::from_micros(1500));
        let nodes = (1..=size).map(|number| (number, Self::empty_node(seed, number))).collect();
        Self { network, nodes, config, seed, starts: 0 }
    }

    fn empty_node(seed: u64, number: u16) -> Node {
        let disk = SimDisk::new(seed ^ (u64::from(number) << 20));
        disk.faults(|faults| faults.sync_delay = Some((Duration::from_micros(300), Duration::from_millis(3))));
        Node { number, disk, group: None, count: Arc::default() }
    }

    /// A cluster of three that has a leader.
    pub async fn born(seed: u64) -> Self {
        let mut cluster = Self::new(seed, 3);
        for number in 1..=3 {
            cluster.start(number).await;
        }
        cluster.leader().await;
        cluster
    }

    pub fn group(&self, number: u16) -> Group<Counter> {
        self.nodes[&number].group.clone().unwrap()
    }

    pub fn count(&self, number: u16) -> Count {
        self.nodes[&number].count.lock().unwrap().clone()
    }

    pub fn config_of(&mut self, number: u16) -> GroupConfig {
        self.starts += 1;
        let mut config = self.config.clone();
        config.number = number;
        config.peer_listen = format!("n{number}:9870");
        config.info = format!("client-{number}");
        config.seed = self.seed.wrapping_mul(1000) + self.starts;
        config
    }

    pub async fn try_start(&mut self, number: u16) -> Result<(), StartError> {
        let config = self.config_of(number);
        self.start_with(number, config).await
    }

    pub async fn start_with(&mut self, number: u16, config: GroupConfig) -> Result<(), StartError> {
        let network = self.network.door(&host(number));
        let node = self.nodes.get_mut(&number).unwrap();
        if !node.count.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_checkpoint {
            node.count = Arc::default();
        }
        let doors = Doors { disk: node.disk.disk(), network };
        let count = node.count.clone();
        let group = Group::start(config, doors, Arc::new(Echo(number)), move |_| Ok(Counter(count))).await?;
        node.group = Some(group);
        Ok(())
    }

    pub async fn start(&mut self, number: u16) {
        self.try_start(number).await.unwrap();
    }

    fn end(&mut self, number: u16, silent: bool) -> &SimDisk {
        if let Some(group) = self.nodes.get_mut(&number).unwrap().group.take() {
            group.kill();
        }
        self.network.crash(&host(number), silent);
        &self.nodes[&number].disk
    }

    /// SIGKILL.
    pub fn kill(&mut self, number: u16) {
        self.end(number, false).kill();
    }

    /// Power loss of one machine: what was not synced is gone.
    pub fn power_cut(&mut self, number: u16) {
        self.end(number, true).power_cut(Keep::Nothing);
    }

    /// The node is killed and its disk replaced by an empty one.
    pub fn wipe(&mut self, number: u16) {
        self.kill(number);
        self.starts += 1;
        let fresh = Self::empty_node(self.seed + self.starts, number);
        self.nodes.insert(number, fresh);
    }

    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, number: u16) {
        for other in self.nodes.keys().filter(|other| **other != number) {
            self.network.cut(&host(number), &host(*other));
            self.network.cut(&host(*other), &host(number));
        }
    }

    /// Starts a node that no other one has in its configuration: it knows itself and the nodes the cluster began with.
    pub async fn start_new(&mut self, number: u16) {
        self.nodes.insert(number, Self::empty_node(self.seed, number));
        self.restart_new(number).await;
    }

    /// Starts a node again that was started by [`Cluster::start_new`].
    pub async fn restart_new(&mut self, number: u16) {
        let mut config = self.config_of(number);
        config.join = true;
        if !config.members.iter().any(|member| member.number == number) {
            config.members.push(Member { number, peer_address: address(number) });
        }
        self.start_with(number, config).await.unwrap();
    }

    /// Asks whoever leads to change the membership, until it is done.
    pub async fn change(&self, change: MemberChange) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match self.ask_change(change.clone()).await {
                Ok(ChangeStep::Done(_)) => return,
                Ok(ChangeStep::CatchingUp { .. } | ChangeStep::Waiting(_)) => {}
                Err(ChangeError::NotLeader { .. } | ChangeError::Unknown(_)) => {}
                Err(error) => panic!("{change:?}: {error}"),
            }
            assert!(Instant::now() < deadline, "not within 30 s: {change:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks whoever leads once.
    pub async fn ask_change(&self, change: MemberChange) -> Result<ChangeStep, ChangeError> {
        let leader = self.leader().await;
        self.group(leader).change_members(change).await
    }

    /// Numbers of the voters as the leader has them.
    pub async fn voters(&self) -> Vec<u16> {
        let members = self.group(self.leader().await).status().members;
        members.iter().filter(|member| member.voter).map(|member| member.id.number()).collect()
    }

    pub fn running(&self) -> Vec<u16> {
        self.nodes.values().filter(|node| node.group.is_some()).map(|node| node.number).collect()
    }

    /// The one running node that serves, within 20 s. With several (an old one cut off), the one of the highest term.
    pub async fn leader(&self) -> u16 {
        self.leader_among(&self.running()).await
    }

    pub async fn leader_among(&self, numbers: &[u16]) -> u16 {
        let serving = || {
            let views = numbers.iter().map(|number| (*self.group(*number).leader().borrow(), *number));
            views
                .filter(|(view, _)| view.serving)
                .max_by_key(|(view, number)| (view.term, *number))
                .map(|(_, number)| number)
        };
        until("a node serves", || serving().is_some()).await;
        serving().unwrap()
    }

    /// Proposes at whoever leads, again and again, until an entry is certainly applied. Returns the reply.
    pub async fn add(&self, number: u64, ballast: usize) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            let leader = self.leader().await;
            let propose = self.group(leader);
            match tokio::time::timeout(Duration::from_secs(5), propose.propose(entry(number, ballast))).await {
                Ok(Ok(reply)) => return reply,
                Ok(Err(ProposeError::Unknown)) | Err(_) => panic!("an outcome is unknown and this test expects none"),
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        panic!("nothing could be proposed for 30 s");
    }

    /// Waits until all running nodes have applied the same and hold the same.
    pub async fn agree(&self) -> Count {
        let states = || {
            let running = self.running();
            running.iter().map(|number| (self.group(*number).status(), self.count(*number))).collect::<Vec<_>>()
        };
        until("all nodes agree", || {
            let states = states();
            let first = &states[0];
            states.iter().all(|(status, count)| {
                status.applied == first.0.applied
                    && status.committed == status.applied
                    && status.last == status.applied
                    && count.sum == first.1.sum
            })
        })
        .await;
        let states = states();
        for (status, count) in &states {
            assert_eq!(status.chain, states[0].0.chain, "node {}", status.id);
            assert_eq!(count.entries, states[0].1.entries, "node {}", status.id);
        }
        states[0].1.clone()
    }
}

/// Waits for a condition, up to 20 s of virtual time.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index.0)
}

pub const NO_TERM: Term = Term(0);
pub const FIRST: LogIndex = LogIndex(0);
