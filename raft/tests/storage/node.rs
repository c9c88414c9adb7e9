//! One node's storage on either disk, opened and driven by hand.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use quorate_raft::{
    Disk, FlushMode, GroupConfig, LogId, LogIndex, Member, NodeId, SimDisk, Term, WriterMode,
    disk::RealDisk,
    hard_state::HardState,
    log::{Done, Frame, Log, OpenError, Payload, Recovery, VoteRecord},
};

pub const DATA: &str = "/data";

/// A disk and a data directory on it.
pub struct Place {
    pub disk: Arc<dyn Disk>,
    pub config: GroupConfig,
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    pub fn real() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let config = config(&temporary.path().join("data"));
        Self { disk: Arc::new(RealDisk), config, _temporary: Some(temporary) }
    }

    pub fn sim(sim: &SimDisk) -> Self {
        Self { disk: sim.disk(), config: config(Path::new(DATA)), _temporary: None }
    }

    /// A directory on each kind of disk.
    pub fn both() -> [Self; 2] {
        [Self::real(), Self::sim(&SimDisk::new(1))]
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.disk.join(&self.config.data_dir, name)
    }

    pub fn segment(&self, position: u64) -> PathBuf {
        self.path(&format!("log/{position:020}"))
    }

    /// Opens the log; a fresh directory becomes that of node 1. The writer does not run.
    pub fn open_idle(&self) -> Result<(Log, Recovery), OpenError> {
        let hard = match HardState::load(&self.disk, &self.config)? {
            Some(hard) => hard,
            None => HardState::create(&self.disk, &self.config, NodeId::new(1, 0x1234_5678))?,
        };
        Log::open(self.disk.clone(), &self.config, hard)
    }

    pub fn open(&self) -> Result<(Node, Recovery), OpenError> {
        let (log, recovery) = self.open_idle()?;
        let writer = log.spawn_writer_thread().unwrap();
        Ok((Node { log, writer: Some(writer) }, recovery))
    }

    pub fn start(&self) -> Node {
        self.open().unwrap().0
    }
}

/// A log with its writer on a thread. Dropped, it stops as if killed.
pub struct Node {
    pub log: Log,
    writer: Option<JoinHandle<()>>,
}

impl Node {
    pub fn append(&self, frames: Vec<Frame>) -> io::Result<()> {
        let (done, wait) = waiter();
        self.log.append(frames, done)?;
        wait()
    }

    /// Appends entries with payloads of these sizes behind the last one, one call each.
    pub fn fill(&self, term: u64, sizes: impl IntoIterator<Item = usize>) {
        for size in sizes {
            self.append(vec![next(&self.log, term, size)]).unwrap();
        }
    }

    pub fn truncate(&self, last: Option<LogId>) -> io::Result<()> {
        let (done, wait) = waiter();
        self.log.truncate_after(last, done);
        wait()
    }

    pub fn purge(&self, upto: LogId) -> io::Result<()> {
        let (done, wait) = waiter();
        self.log.purge(upto, done);
        wait()
    }

    pub fn vote(&self, term: u64, committed: bool) -> io::Result<()> {
        let (done, wait) = waiter();
        self.log.save_vote(VoteRecord { term: Term(term), node: NodeId::new(2, 9), committed }, done);
        wait()
    }

    pub fn close(mut self) {
        let (done, wait) = waiter();
        self.log.close(done);
        wait().unwrap();
        self.writer.take().unwrap().join().unwrap();
    }

    pub fn all(&self) -> io::Result<Vec<Frame>> {
        all(&self.log)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.log.abandon();
            writer.join().unwrap();
        }
    }
}

/// Everything a log keeps.
pub fn all(log: &Log) -> io::Result<Vec<Frame>> {
    let start = log.purged().map_or(LogIndex(0), |purged| LogIndex(purged.index.0 + 1));
    log.read(start, LogIndex(u64::MAX), None)
}

/// A callback and a wait for it with a deadline.
pub fn waiter() -> (Done, impl FnOnce() -> io::Result<()>) {
    let (sender, receiver) = mpsc::channel();
    let done: Done = Box::new(move |result| drop(sender.send(result)));
    (done, move || receiver.recv_timeout(Duration::from_secs(20)).expect("the writer answers within its deadline"))
}

pub fn id(term: u64, index: u64) -> LogId {
    LogId { term: Term(term), node: NodeId::new(1, 7), index: LogIndex(index) }
}

/// The entry that follows the last one; its payload tells its term, index and size.
pub fn next(log: &Log, term: u64, size: usize) -> Frame {
    entry(term, log.last().map_or(0, |last| last.index.0 + 1), size)
}

pub fn entry(term: u64, index: u64, size: usize) -> Frame {
    Frame::new(id(term, index), Payload::Normal(payload(term, index, size)))
}

pub fn payload(term: u64, index: u64, size: usize) -> Bytes {
    (0..size).map(|at| (term * 31 + index * 7 + at as u64) as u8 | 1).collect::<Vec<_>>().into()
}

pub fn config(data_dir: &Path) -> GroupConfig {
    GroupConfig {
        cluster: "test".into(),
        number: 1,
        members: vec![Member { number: 1, peer_address: "127.0.0.1:1".into() }],
        peer_listen: "127.0.0.1:0".into(),
        info: String::new(),
        data_dir: data_dir.to_owned(),
        segment_bytes: 4096,
        entry_bytes_max: 2048,
        inflight_bytes_max: 1 << 20,
        tail_cache_bytes: 2000,
        follower_window_bytes: 1 << 20,
        flush: FlushMode::Sync,
        writer: WriterMode::Thread,
        heartbeat: Duration::from_millis(50),
        election_timeout: (Duration::from_millis(150), Duration::from_millis(300)),
        fast_path: None,
        bootstrap: false,
        join: false,
        seed: 1,
        leader_restore: false,
    }
}
