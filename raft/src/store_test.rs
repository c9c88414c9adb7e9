//! openraft's own suite for log stores, on both disks.
//!
//! Two things in it are looser than we are. The machine is a plain one: the suite applies entries that never were in a log,
//! which ours refuses. And it reads from below what is purged and wants what is left; our log calls that an error, because
//! clamping would hide a follower that must get an image. So the suite reads through [`Clamping`].

#![allow(clippy::unwrap_used, reason = "a test says by a panic what went wrong")]

use std::{fmt, io, ops::RangeBounds, sync::Arc};

use futures_util::{Stream, StreamExt};
use openraft::{
    OptionalSend, RaftSnapshotBuilder, StorageError,
    entry::RaftEntry,
    storage::{EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
};

use super::LogStore;
use crate::{
    binding::{Entry, RaftLogId, RaftVote, Reply, SnapshotMeta, StoredMembership, TypeConfig},
    config::{FlushMode, GroupConfig, WriterMode},
    disk::{Disk, RealDisk, SimDisk},
    fatal::Fatal,
    hard_state::HardState,
    log::Log,
    types::NodeId,
};

type Snapshot = openraft::Snapshot<crate::binding::Leader, NodeId, crate::binding::Node, SnapshotMeta>;

/// The store under test; reads start behind what is purged.
#[derive(Clone)]
struct Clamping(LogStore);

impl Clamping {
    fn clamp(&self, range: &impl RangeBounds<u64>) -> std::ops::Range<u64> {
        let (start, end) = super::bounds(range);
        let first = self.0.log.purged().map_or(0, |id| id.index.0 + 1);
        start.max(first)..end.max(first)
    }
}

impl RaftLogReader<TypeConfig> for Clamping {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let range = self.clamp(&range);
        self.0.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        self.0.read_vote().await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.0.limited_get_log_entries(start, end).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let range = self.clamp(&range);
        self.0.entries_stream(range).await
    }
}

impl RaftLogStorage<TypeConfig> for Clamping {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.0.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.0.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.0.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        self.0.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        self.0.truncate_after(last).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        self.0.purge(upto).await
    }
}

/// Remembers what was applied last, and snapshots exactly that.
#[derive(Clone, Default)]
struct Memory {
    meta: SnapshotMeta,
    current: Arc<std::sync::Mutex<Option<SnapshotMeta>>>,
}

impl Memory {
    fn snapshot(meta: SnapshotMeta) -> Snapshot {
        Snapshot { meta: meta.clone(), snapshot: meta }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Memory {
    type SnapshotData = SnapshotMeta;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        *self.current.lock().unwrap() = Some(self.meta.clone());
        Ok(Self::snapshot(self.meta.clone()))
    }
}

impl RaftStateMachine<TypeConfig> for Memory {
    type SnapshotData = SnapshotMeta;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        Ok((self.meta.last_log_id, self.meta.last_membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.meta.last_log_id = Some(entry.log_id());
            if let Some(membership) = entry.get_membership() {
                self.meta.last_membership = StoredMembership::new(Some(entry.log_id()), membership);
            }
            if let Some(responder) = responder {
                responder.send(Reply::none());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, _data: SnapshotMeta) -> io::Result<()> {
        self.meta = meta.clone();
        *self.current.lock().unwrap() = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.current.lock().unwrap().clone().map(Self::snapshot))
    }
}

fn config(dir: std::path::PathBuf, writer: WriterMode) -> GroupConfig {
    GroupConfig {
        cluster: "suite".into(),
        number: 1,
        members: Vec::new(),
        peer_listen: String::new(),
        info: String::new(),
        data_dir: dir,
        segment_bytes: 64 << 10,
        entry_bytes_max: 16 << 10,
        inflight_bytes_max: 1 << 20,
        tail_cache_bytes: 32 << 10,
        follower_window_bytes: 1 << 20,
        flush: FlushMode::Sync,
        writer,
        heartbeat: std::time::Duration::from_millis(50),
        election_timeout: (std::time::Duration::from_millis(150), std::time::Duration::from_millis(250)),
        fast_path: None,
        bootstrap: false,
        join: false,
        seed: 1,
        leader_restore: false,
    }
}

fn open(disk: Arc<dyn Disk>, config: &GroupConfig) -> Log {
    let hard = HardState::create(&disk, config, NodeId::new(1, 1)).unwrap();
    Log::open(disk, config, hard).unwrap().0
}

struct OnSim;

impl StoreBuilder<TypeConfig, Clamping, Memory, ()> for OnSim {
    async fn build(&self) -> Result<((), Clamping, Memory), StorageError<TypeConfig>> {
        let disk = SimDisk::new(7).disk();
        disk.create_dir("/data".as_ref()).unwrap();
        let log = open(disk, &config("/data".into(), WriterMode::Task));
        tokio::spawn(log.clone().run_writer());
        Ok(((), Clamping(LogStore::new(log, Fatal::new())), Memory::default()))
    }
}

struct OnReal;

/// Stops the writer before its directory goes.
struct Running(Log, #[allow(dead_code)] tempfile::TempDir);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl StoreBuilder<TypeConfig, Clamping, Memory, Running> for OnReal {
    async fn build(&self) -> Result<(Running, Clamping, Memory), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let log = open(disk, &config(dir.path().to_path_buf(), WriterMode::Thread));
        drop(log.spawn_writer_thread().unwrap());
        let store = Clamping(LogStore::new(log.clone(), Fatal::new()));
        Ok((Running(log, dir), store, Memory::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_suite_of_openraft_passes_on_the_memory_disk() {
    Suite::test_all(OnSim).await.unwrap();
}

#[tokio::test]
async fn the_suite_of_openraft_passes_on_the_real_disk() {
    Suite::test_all(OnReal).await.unwrap();
}
