//! The executor of committed entries on one node, and the read side that the leader and the services share.
//!
//! ```text
//!   raft ─entry─▶ Replica::apply ─decode─▶ Machine (write lock, some commands at a time) ─▶ replies ─▶ proposer
//!                      │ effects
//!                      ├─▶ consume queues (memory; written in bulk)      ├─▶ waiters (long polls)
//!                 settle ─▶ checkpoint, once the log is synced that far
//!
//!   services ─▶ Shared ─▶ Machine (read lock) · consume queue ─pointer─▶ log ─▶ stored message
//! ```
//! No rule of the domain stands here: the machine decides, this file carries out. Applying the same entries again, after a
//! restart from an image or a checkpoint, gives the same state and the same files.
//!
//! Raft's contract has no error for `apply`, since a replica that cannot apply is no replica: bytes that raft has checked
//! and that do not decode are a bug, a disk that fails is the end. Both stop the node through [`fatal`].

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use quorate_proto::time::Timestamp;
use quorate_raft::{
    CommittedEntry, Disk, ImagePoint, LogId, LogView, MachineError, MachineStart, Position, StateMachine,
};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::{
    machine::{
        Batch, Effect, Machine, Pointer, QueueId, QueueOffset, Reply, StoredRecord, TopicId, codec::DecodeError,
        record::PREFIX_BYTES,
    },
    store::{
        checkpoint::Database,
        consume_queue::{Append, ConsumeQueues, RECORDS_PER_FILE},
        files::{OpenFiles, Unsynced},
        plain::Plain,
        queue_record,
        save::{Checkpoint, Place, Remembered, Save, Saved},
    },
    waiters::Waiters,
};

pub use crate::store::queue_record::Spot;

/// Commands executed under one write lock, so that readers wait well below a millisecond.
const COMMANDS_PER_LOCK: usize = 128;

/// Unwritten consume queue records before they are written without waiting for a checkpoint.
const UNWRITTEN_MAX: usize = 8_192;

/// Log time between two checkpoints.
const CHECKPOINT_MS: u64 = 5_000;

/// Checkpoints write no more than this per second of log time, on average; a large state is saved less often.
const CHECKPOINT_BYTES_PER_SECOND: u64 = 2 << 20;

/// Who keeps the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckpointMode {
    /// The database, on a thread of its own (production). It opens its files itself.
    Database,
    /// One file through the `Disk` door, written while applying (simulation).
    Plain,
    /// Nobody: a restart replays from the newest image.
    Off,
}

/// What a replica is told at start.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// The node's data directory; `queue/`, `dedup/` and the checkpoint are made in it.
    pub data_dir: PathBuf,
    /// Who keeps the checkpoint.
    pub checkpoint: CheckpointMode,
    /// Records per consume queue file; must stay the same for a data directory.
    pub queue_file_records: u64,
}

impl ReplicaSettings {
    /// What a broker in production uses.
    pub fn new(data_dir: PathBuf) -> Self {
        Self { data_dir, checkpoint: CheckpointMode::Database, queue_file_records: RECORDS_PER_FILE }
    }
}

/// What a proposer gets back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The stamp the batch was executed with.
    pub now: Timestamp,
    /// One reply per command, in order.
    pub replies: Vec<Reply>,
}

/// What a place of a queue holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// A message.
    Record(StoredRecord),
    /// Nothing (any more).
    Gone,
    /// A message whose bytes have changed on this node's disk since they were written. Another node has them.
    Rotten(Pointer),
    /// A message, but this node's consume queue has no sound record of where it stands. Another node has one: see [`Shared::mend`].
    Damaged(Spot),
}

/// Committed bytes, by position.
pub trait ReadLog: Send + Sync + 'static {
    /// `len` bytes from `position` on, within one applied entry. `NotFound` if the floor has passed it, `InvalidData` if the file is damaged
    /// there.
    fn read(&self, position: Position, len: usize) -> io::Result<Bytes>;
    /// First position kept.
    fn floor(&self) -> Position;
}

impl ReadLog for LogView {
    fn read(&self, position: Position, len: usize) -> io::Result<Bytes> {
        Self::read(self, position, len)
    }

    fn floor(&self) -> Position {
        Self::floor(self)
    }
}

/// The executor of committed entries.
pub struct Replica {
    shared: Shared,
    checkpoint: Option<Box<dyn Checkpoint>>,
    effects: Vec<Effect>,
    applied: Option<LogId>,
    /// End of the last applied payload.
    applied_end: Position,
    /// The files may hold more than the machine: to be cut before anything is appended.
    uncut: bool,
    /// A checkpoint that waits for this node's log to be synced that far.
    pending: Option<(Position, Save)>,
    /// What the checkpoint before was asked to sync, for as long as it may not have.
    handed_over: Unsynced,
    /// Log time before which no checkpoint is taken.
    next_checkpoint: Timestamp,
    /// First remembered send that no checkpoint was given yet.
    remembered_from: u64,
    /// Consume queue files that go once the log behind them is gone.
    doomed: Vec<Doomed>,
    /// Position of the entry or floor that is being executed.
    executing: Position,
}

/// Consume queue files that the machine no longer knows, but an image that this node may have to start from still does.
///
/// A start goes on from the image at the log's floor at the latest. So what a command made superfluous stays until the
/// floor has passed that command: a node that dies in between finds every record that its image counts on.
struct Doomed {
    /// They go when the log's floor is here or above.
    until: Position,
    what: Superfluous,
}

enum Superfluous {
    Below { topic: TopicId, queue: QueueId, min: QueueOffset },
    Topic(TopicId),
}

/// The read side. Cheap to clone.
#[derive(Clone)]
pub struct Shared {
    inner: Arc<Inner>,
}

struct Inner {
    machine: RwLock<Machine>,
    queues: ConsumeQueues,
    files: Arc<OpenFiles>,
    log: Box<dyn ReadLog>,
    waiters: Waiters,
    /// Why the node must end, once somebody has found that out.
    given_up: watch::Sender<Option<String>>,
}

impl Replica {
    /// Opens consume queues and checkpoint and restores what the checkpoint kept. Of the consume queues only what is damaged or of an older
    /// format goes yet.
    ///
    /// # Errors
    /// A file or directory that cannot be used; says which and what to do.
    pub fn open(
        settings: ReplicaSettings,
        disk: Arc<dyn Disk>,
        log: impl ReadLog,
    ) -> Result<(Self, Shared), MachineStart> {
        let files = Arc::new(OpenFiles::new(disk));
        let place = Place::new(files.clone(), settings.data_dir.clone());
        let queues = ConsumeQueues::new(files.clone(), settings.data_dir.join("queue"), settings.queue_file_records);
        let older = queues.remove_older();
        if older.map_err(|error| format!("{}: {error}", settings.data_dir.join("queue").display()))? {
            warn!("consume queues of an older format are removed and made again from the log; this start takes longer");
        }
        let (checkpoint, saved) = open_checkpoint(settings.checkpoint, &place)?;
        let (mut machine, mut applied) = (Machine::default(), None);
        if let Some(saved) = saved {
            match restore(&saved, &place, &queues, log.floor()) {
                Ok(restored) => (machine, applied) = (restored, Some(saved.applied)),
                Err(reason) => warn!(%reason, "checkpoint not usable; starting from the newest image"),
            }
        }
        if let Some(id) = applied {
            info!(applied = %id, "checkpoint loaded");
        }
        let (next_checkpoint, remembered_from) = (next_checkpoint(&machine, 0), machine.remembered().1);
        let inner = Inner {
            machine: RwLock::new(machine),
            queues,
            files,
            log: Box::new(log),
            waiters: Waiters::new(),
            given_up: watch::Sender::new(None),
        };
        let shared = Shared { inner: Arc::new(inner) };
        let replica = Self {
            shared: shared.clone(),
            checkpoint,
            effects: Vec::new(),
            applied,
            applied_end: Position(0),
            uncut: true,
            pending: None,
            handed_over: Unsynced::default(),
            next_checkpoint,
            remembered_from,
            doomed: Vec::new(),
            executing: Position(0),
        };
        Ok((replica, shared))
    }

    /// Raft has decided to go on from the present state.
    fn begin(&mut self) {
        if std::mem::take(&mut self.uncut) {
            self.inner().queues.cut().unwrap_or_else(|error| fatal("consume queues cannot be cut", &error));
        }
    }

    fn inner(&self) -> &Inner {
        &self.shared.inner
    }

    fn carry_out(&mut self) {
        let inner = &self.shared.inner;
        let mut appended = BTreeMap::<TopicId, BTreeMap<QueueId, usize>>::new();
        inner.queues.append(self.effects.iter().filter_map(|effect| match *effect {
            Effect::Append { topic, queue, offset, pointer } => {
                *appended.entry(topic).or_default().entry(queue).or_default() += 1;
                Some(Append { spot: Spot { topic, queue, offset }, pointer })
            }
            Effect::Visible { .. }
            | Effect::Scheduled { .. }
            | Effect::TopicsChanged
            | Effect::TopicDropped { .. }
            | Effect::MinMoved { .. } => None,
        }));
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Append { .. } => {}
                Effect::Visible { group, topic } => inner.waiters.visible(topic, group),
                Effect::Scheduled { at } => inner.waiters.scheduled(at),
                Effect::TopicsChanged => inner.waiters.topics_have_changed(),
                Effect::TopicDropped { topic } => {
                    inner.queues.forget_topic(topic);
                    let until = Position(self.executing.0 + 1);
                    self.doomed.push(Doomed { until, what: Superfluous::Topic(topic) });
                }
                Effect::MinMoved { topic, queue, min } => {
                    let what = Superfluous::Below { topic, queue, min };
                    self.doomed.push(Doomed { until: self.executing, what });
                }
            }
        }
        for (topic, queues) in appended {
            inner.waiters.appended(topic, queues.values().sum());
            for queue in queues.into_keys() {
                inner.waiters.appended_to(topic, queue);
            }
        }
    }

    /// Removes the files whose messages' log is gone.
    fn remove_doomed(&mut self) {
        if self.doomed.is_empty() {
            return;
        }
        let inner = &self.shared.inner;
        let floor = inner.log.floor();
        for Doomed { what, .. } in self.doomed.extract_if(.., |doomed| doomed.until <= floor) {
            let removed = match what {
                Superfluous::Below { topic, queue, min } => inner.queues.drop_below(topic, queue, min),
                Superfluous::Topic(topic) => inner.queues.remove_topic(topic),
            };
            removed.unwrap_or_else(|error| fatal("consume queue file not removed", &error));
        }
    }

    fn write_queues(&self) {
        self.inner().queues.write().unwrap_or_else(|error| fatal("consume queue not written", &error));
    }

    /// Takes a checkpoint of the present state, to be kept when the log is synced up to it.
    fn capture(&mut self, applied: LogId) {
        self.write_queues();
        let (parts, remembered) = self.shared.read(|machine| {
            let first = machine.remembered().0;
            let from = self.remembered_from.max(first);
            (machine.save_parts(), Remembered { first, from, bytes: machine.save_remembered(from) })
        });
        let unsynced = self.inner().files.take_unsynced();
        self.pending = Some((self.applied_end, Save { applied, parts, remembered, unsynced }));
    }

    fn hand_over(&mut self, save: Save) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        self.handed_over = save.unsynced.clone();
        self.remembered_from = save.remembered.from + save.remembered.count();
        checkpoint.save(save).unwrap_or_else(|error| fatal("sync of the checkpoint failed", &error));
        let cost = checkpoint.cost_bytes();
        self.next_checkpoint = self.shared.read(|machine| next_checkpoint(machine, cost));
    }
}

impl StateMachine for Replica {
    type Reply = Applied;

    fn applied(&self) -> Option<LogId> {
        self.applied
    }

    fn apply(&mut self, entry: CommittedEntry) -> Applied {
        self.begin();
        self.executing = entry.position;
        let end = entry.position.0 + entry.payload.len() as u64;
        let batch = Batch::decode(entry.payload)
            .unwrap_or_else(|error| fatal(&format!("entry {} at {} is not a batch", entry.id, entry.position), &error));
        let mut replies = Vec::with_capacity(batch.commands.len());
        let mut commands = batch.commands.into_iter();
        while commands.len() > 0 {
            let mut machine = self.shared.write();
            for command in commands.by_ref().take(COMMANDS_PER_LOCK) {
                replies.push(machine.apply(batch.now, entry.position, command, &mut self.effects));
            }
        }
        self.carry_out();
        self.applied = Some(entry.id);
        self.applied_end = Position(end);
        if self.inner().queues.unwritten() >= UNWRITTEN_MAX {
            self.write_queues();
        }
        Applied { now: self.shared.log_now(), replies }
    }

    fn settle(&mut self, synced: Position) {
        self.remove_doomed();
        let Some(checkpoint) = &self.checkpoint else { return };
        if !checkpoint.is_idle() {
            return;
        }
        if let Some(applied) = self.applied
            && self.pending.is_none()
            && self.shared.log_now() >= self.next_checkpoint
        {
            self.capture(applied);
        }
        if let Some((_, save)) = self.pending.take_if(|(end, _)| *end <= synced) {
            self.hand_over(save);
        }
    }

    fn save_image(&mut self, border: Position) -> Bytes {
        self.begin();
        self.write_queues();
        // An image outlives this process, so the records it counts on must: those just written, those that a checkpoint
        // waits to vouch for, and those that one is syncing at this moment.
        let inner = self.inner();
        let pending = self.pending.as_ref().map(|(_, save)| &save.unsynced);
        let just_written = inner.files.take_unsynced();
        for unsynced in pending.into_iter().chain([&self.handed_over, &just_written]) {
            inner.files.sync(unsynced).unwrap_or_else(|error| fatal("sync of a consume queue failed", &error));
        }
        self.shared.write().border(border);
        self.shared.read(Machine::save_image)
    }

    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError> {
        let refuse = |reason: String| MachineError { border: at.border, reason };
        let machine = match at.applied {
            None if image.is_empty() => Machine::default(),
            Some(_) | None => Machine::load_image(Bytes::copy_from_slice(image)).map_err(|e| refuse(e.to_string()))?,
        };
        let covered = self.inner().queues.restore(&machine, self.inner().log.floor());
        if !covered.map_err(|error| refuse(error.to_string()))? {
            return Err(refuse("consume queue files below it are missing, short or damaged".to_owned()));
        }
        self.next_checkpoint = next_checkpoint(&machine, 0);
        self.remembered_from = 0;
        *self.shared.write() = machine;
        (self.applied, self.applied_end) = (at.applied, at.border);
        (self.uncut, self.pending) = (true, None);
        self.doomed.clear();
        self.inner().waiters.topics_have_changed();
        self.inner().waiters.wake_all();
        Ok(())
    }

    fn floor(&mut self, floor: Position) {
        self.begin();
        self.executing = floor;
        let mut effects = std::mem::take(&mut self.effects);
        self.shared.write().floor(floor, &mut effects);
        self.effects = effects;
        self.carry_out();
        self.remove_doomed();
    }
}

impl Shared {
    /// Reads the machine under a short lock; `f` must not block. Do not call [`Shared`] inside of `f`.
    pub fn read<R>(&self, f: impl FnOnce(&Machine) -> R) -> R {
        f(&self.lock())
    }

    /// One message. See [`Shared::records`].
    ///
    /// # Errors
    /// The disk's.
    pub fn record(&self, topic: TopicId, queue: QueueId, offset: QueueOffset) -> io::Result<Found> {
        Ok(self.records(topic, &[(queue, offset)])?.pop().unwrap_or(Found::Gone))
    }

    /// Several messages of a topic, in the order asked for.
    ///
    /// What was sent lately comes from memory; older offsets read a consume queue file and may wait for the disk, so a
    /// caller that is far behind the end belongs on the blocking pool. Neighbouring offsets are looked up together.
    ///
    /// # Errors
    /// The disk's.
    pub fn records(&self, topic: TopicId, places: &[(QueueId, QueueOffset)]) -> io::Result<Vec<Found>> {
        let mut records = Vec::with_capacity(places.len());
        let runs = places.chunk_by(|(queue, offset), (next_queue, next)| queue == next_queue && offset.0 + 1 == next.0);
        for run in runs {
            let [(queue, offset), ..] = *run else { continue };
            let pointers = self.inner.queues.pointers(topic, queue, offset, run.len() as u64);
            for step in 0..run.len() {
                records.push(match pointers.get(step).copied().flatten() {
                    Some(pointer) => self.stored(pointer)?,
                    None => self.absent(Spot { topic, queue, offset }.ahead(step as u64)),
                });
            }
        }
        Ok(records)
    }

    /// Pointers of up to `count` neighbouring offsets; `None` where this node has no sound record: [`Shared::absent`] says why. Fewer than the machine counts if the last
    /// ones are just being taken on.
    pub(crate) fn pointers(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        count: u64,
    ) -> Vec<Option<Pointer>> {
        self.inner.queues.pointers(topic, queue, from, count)
    }

    /// What it means that this node has no record of a place: retention has taken it, or it has rotted or cannot be read.
    pub(crate) fn absent(&self, spot: Spot) -> Found {
        // The floor first: where it moves meanwhile, files go only after the machine's own beginning has moved.
        let floor = self.inner.log.floor();
        let kept = self.read(|machine| machine.topic_by_id(spot.topic)?.first_kept(spot.queue, floor));
        let in_files = spot.offset < self.inner.queues.end(spot.topic, spot.queue);
        if in_files && kept.is_some_and(|kept| spot.offset >= kept) { Found::Damaged(spot) } else { Found::Gone }
    }

    /// Consume queue records of up to `count` places from `from` on as they stand in a file, for another node to put back; zeros where this
    /// node has none. Any node may be asked, and the answer proves itself: each record's crc is over its place.
    pub fn lend(&self, from: Spot, count: u64) -> Bytes {
        let pointers = self.pointers(from.topic, from.queue, from.offset, count);
        let records = (0..).zip(pointers).flat_map(|(step, pointer)| {
            pointer.map_or([0; queue_record::RECORD_BYTES], |pointer| queue_record::encode(from.ahead(step), &pointer))
        });
        records.collect()
    }

    /// Puts consume queue records from `from` on back into their file, as another node has lent them, and says whether the first of them
    /// can be read now. Records that are not what was written at their places are passed over.
    ///
    /// # Errors
    /// The disk's: the file may hold some of them.
    pub fn mend(&self, from: Spot, lent: &[u8]) -> io::Result<bool> {
        let pointers: Vec<Option<Pointer>> = queue_record::decode_all(from, lent).collect();
        self.inner.queues.mend(from, &pointers)?;
        Ok(!self.is_damaged(from))
    }

    /// This node has no sound record of where a message stands that it keeps, or cannot read it.
    pub fn is_damaged(&self, spot: Spot) -> bool {
        let found = self.pointers(spot.topic, spot.queue, spot.offset, 1).pop().flatten();
        found.is_none() && matches!(self.absent(spot), Found::Damaged(_))
    }

    /// The consume queue file of a place.
    pub(crate) fn queue_file(&self, spot: Spot) -> PathBuf {
        self.inner.queues.file_of(spot)
    }

    /// The node must end: it cannot serve what it has promised. The first reason counts.
    pub(crate) fn give_up(&self, reason: String) {
        self.inner.given_up.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(reason);
            first
        });
    }

    /// Waits for the reason why the node must end. Cancel safe.
    pub(crate) async fn given_up(&self) -> String {
        let mut given_up = self.inner.given_up.subscribe();
        let reason = given_up.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).expect("this keeps the sender, and waited for a reason")
    }

    /// Long polls.
    pub fn waiters(&self) -> &Waiters {
        &self.inner.waiters
    }

    /// Log time: the last stamp applied.
    pub fn log_now(&self) -> Timestamp {
        self.read(Machine::now)
    }

    /// What a consume queue points at, with its prefix, unchecked; `None` if the floor has passed it.
    ///
    /// # Errors
    /// The disk's; `InvalidInput` for a place that is not within one entry.
    pub fn prefixed(&self, pointer: Pointer) -> io::Result<Option<Bytes>> {
        let start = Position(pointer.position.0.saturating_sub(PREFIX_BYTES as u64));
        match self.inner.log.read(start, PREFIX_BYTES + pointer.size as usize) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What stands at a place of the log.
    ///
    /// # Errors
    /// The disk's, but for damage: that is [`Found::Rotten`].
    pub fn stored(&self, pointer: Pointer) -> io::Result<Found> {
        match self.prefixed(pointer) {
            Ok(None) => Ok(Found::Gone),
            Ok(Some(prefixed)) => Ok(StoredRecord::checked(prefixed).map_or(Found::Rotten(pointer), Found::Record)),
            // The log has said so, with the file.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Found::Rotten(pointer)),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> RwLockReadGuard<'_, Machine> {
        self.inner.machine.read().expect("if apply panicked, the node is stopping")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Machine> {
        self.inner.machine.write().expect("only the applier writes, and it has not panicked")
    }
}

/// A keeper and what it kept.
type Opened = (Option<Box<dyn Checkpoint>>, Option<Saved>);

fn open_checkpoint(mode: CheckpointMode, place: &Place) -> Result<Opened, MachineStart> {
    match mode {
        CheckpointMode::Database => {
            let (database, saved) = Database::open(place.clone()).map_err(|error| error.to_string())?;
            Ok((Some(Box::new(database)), saved))
        }
        CheckpointMode::Plain => {
            let opened = Plain::open(place.clone());
            let (plain, saved) = opened.map_err(|error| format!("checkpoint of the simulation: {error}"))?;
            Ok((Some(Box::new(plain)), saved))
        }
        CheckpointMode::Off => Ok((None, None)),
    }
}

fn restore(saved: &Saved, place: &Place, queues: &ConsumeQueues, floor: Position) -> Result<Machine, RestoreError> {
    let machine = Machine::load_parts(saved.parts.iter().cloned(), |first, end| {
        place.load_remembered(first, end).map_err(RestoreError::Io)
    })?;
    if queues.restore(&machine, floor)? { Ok(machine) } else { Err(RestoreError::Damaged) }
}

/// Why a checkpoint is of no use.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error("its parts: {0}")]
    Parts(#[from] DecodeError),
    #[error("a file: {0}")]
    Io(#[from] io::Error),
    #[error("consume queue files are missing, short or damaged")]
    Damaged,
}

fn next_checkpoint(machine: &Machine, cost_bytes: u64) -> Timestamp {
    let rest_ms = CHECKPOINT_MS.max(cost_bytes * 1000 / CHECKPOINT_BYTES_PER_SECOND);
    Timestamp(machine.now().0.saturating_add(rest_ms))
}

/// Ends the node: its state can no longer be trusted to follow the log.
///
/// A panic on purpose. It ends raft's apply task, which stops the node and is what `Group::fatal` reports, and a
/// simulation survives it.
fn fatal(what: &str, error: &dyn std::error::Error) -> ! {
    error!(%error, what, "replica stopped");
    panic!("{what}: {error}");
}

#[cfg(test)]
#[path = "replica_test.rs"]
mod tests;
