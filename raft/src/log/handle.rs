//! The log as the rest of the crate holds it. Every operation changes the state in memory at once and queues the rest for
//! the writer, both under one lock, so that the order of calls is the order on disk.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::watch;

use crate::{
    config::{FlushMode, GroupConfig},
    disk::Disk,
    hard_state::{CatchUpReason, Floor, HardState, OpenError, VoteRecord},
    log::{
        damage::{Damaged, Damages, is_damage},
        frame::{Frame, Header, Payload},
        index::Lookup,
        queue::{Append, Done, Queue, Work},
        read::{self, LogView},
        recover::{load_table, recover},
        scan::Checks,
        segment::Segments,
        state::State,
        tail::Tail,
        writer::{Pace, Writer},
    },
    metrics::Metrics,
    types::{ImagePoint, LogId, LogIndex, NodeId, Position},
};

/// A node's copy of the group's log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Last entry, or the purged one.
    pub last: Option<LogId>,
    /// End of the log.
    pub end: Position,
    /// Bytes of a torn tail that were cut.
    pub cut_bytes: u64,
    /// The last run closed the log.
    pub clean: bool,
    /// This node may have forgotten what it acked: no vote and no ack until it has caught up with a live leader and
    /// [`Log::caught_up`] was called. Survives restarts until then.
    pub catch_up: Option<CatchUp>,
}

/// Why and how far to catch up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatchUp {
    /// What happened.
    pub reason: CatchUpReason,
    /// Highest index this node is known to have acked. It may have acked more within the second before it stopped: only
    /// reaching what a live leader had committed after this start proves that nothing is missing.
    pub acked: Option<LogIndex>,
}

/// What handles, readers and the writer share.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub queue: Queue,
    pub segments: Segments,
    pub node: NodeId,
    pub flush: FlushMode,
    pub syncs: AtomicU64,
    pub serves_reads: AtomicBool,
    pub metrics: Metrics,
    pub damages: Damages,
    writer: Mutex<Option<Writer>>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A panic inside the lock is a broken invariant: go on with nothing.
        self.state.lock().expect("no thread has panicked while it changed the log's state")
    }

    /// How sealed segments are walked again: they were judged at start or written since, so any era will do.
    pub fn checks(&self) -> Checks {
        Checks { payloads: false, era: u32::MAX, incarnation: self.node.incarnation() }
    }
}

impl Log {
    /// Recovers the log of `config.data_dir` (see `recover`), raises the era and marks the directory as running.
    ///
    /// The writer does not run yet: call [`spawn_writer_thread`](Self::spawn_writer_thread) or spawn
    /// [`run_writer`](Self::run_writer). What is queued until then waits.
    ///
    /// # Errors
    /// `Corrupt` for damage that is no torn tail, `Io` if a file cannot be used.
    pub fn open(disk: Arc<dyn Disk>, config: &GroupConfig, mut hard: HardState) -> Result<(Self, Recovery), OpenError> {
        let segments = Segments::new(disk.clone(), &config.data_dir, config.segment_bytes);
        let before = hard.record().clone();
        let found = recover(&segments, &before)?;
        let (last, end) = (found.cursor.prev.or(before.floor.purged), found.cursor.position);
        let file = disk.join(&config.data_dir, "hard_state");
        let boot_id = disk.boot_id().map_err(OpenError::io(&file))?;
        let lost_power = before.async_flush && !before.clean && before.boot_id != boot_id;
        let reason = before.catch_up.or(lost_power.then_some(CatchUpReason::PowerLoss));
        let last_index = last.map(|id| id.index);
        // An index the hard state knows may exceed the log: that is what there is to catch up with.
        let acked = if reason.is_some() { before.acked.max(last_index) } else { last_index };
        // Saved only when synced, so it is in the log unless the file system has lied.
        let committed = before.committed.filter(|committed| Some(*committed) <= last).max(before.floor.purged);
        let mut record = before.clone();
        record.era += 1;
        (record.synced, record.committed, record.acked) = (end, committed, acked);
        (record.clean, record.boot_id, record.catch_up) = (false, boot_id, reason);
        record.async_flush = matches!(config.flush, FlushMode::Async(_));
        for _ in 0..2 {
            hard.write(record.clone()).and_then(|()| hard.file().sync()).map_err(OpenError::io(&file))?;
        }
        let state = State {
            floor: before.floor,
            last,
            end,
            chain: found.cursor.chain,
            index: found.index,
            tail: Tail::new(config.tail_cache_bytes),
            specials: found.specials.into_iter().map(|frame| (frame.id.index, frame)).collect(),
            vote: before.vote,
            committed,
            written: end,
            synced: end,
            cuts: Default::default(),
            removals: 0,
            failure: None,
            entries: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            queue: Queue::default(),
            segments,
            node: before.node,
            flush: config.flush,
            syncs: AtomicU64::new(0),
            serves_reads: AtomicBool::new(true),
            metrics: Metrics::default(),
            damages: Damages::default(),
            writer: Mutex::new(None),
        });
        let writer = Writer::open(shared.clone(), hard, end, last_index).map_err(OpenError::io(&file))?;
        *shared.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        let catch_up = reason.map(|reason| CatchUp { reason, acked });
        Ok((Self { shared }, Recovery { last, end, cut_bytes: found.cut_bytes, clean: before.clean, catch_up }))
    }

    /// Runs the writer on an OS thread of its own. It ends after [`close`](Self::close) or [`abandon`](Self::abandon).
    pub fn spawn_writer_thread(&self) -> io::Result<JoinHandle<()>> {
        let writer = self.take_writer();
        std::thread::Builder::new().name("log-writer".into()).spawn(move || {
            if let Some(writer) = writer {
                writer.run_blocking();
            }
        })
    }

    /// Runs the writer as a task. It ends after [`close`](Self::close) or [`abandon`](Self::abandon). Dropped before, it leaves
    /// the files as a kill would.
    pub async fn run_writer(self) {
        if let Some(writer) = self.take_writer() {
            drop(self);
            writer.run(Pace::Task).await;
        }
    }

    fn take_writer(&self) -> Option<Writer> {
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// This node's identity.
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// Puts entries behind the last one: places them, makes them readable, queues them. `done` is called when they are
    /// synced (sync flush) or written (async flush).
    ///
    /// # Errors
    /// Nothing has happened and `done` is dropped: `InvalidInput` for an entry that cannot follow or is too large,
    /// `InvalidData` with [`Diverged`](super::Diverged) if an entry brings another place than this log gives it, and
    /// any later call after the log has failed.
    pub fn append(&self, frames: Vec<Frame>, done: Done) -> io::Result<()> {
        let mut state = self.shared.state();
        check_failure(&state)?;
        let Some(last) = frames.last().map(|frame| frame.id.index) else {
            self.shared.queue.push(Work::Nothing, done);
            return Ok(());
        };
        let bytes = frames.iter().map(Frame::len).sum();
        let pieces = state.append(self.shared.segments.borders, frames)?;
        self.shared.queue.push(Work::Append(Append { pieces, end: state.end, last, bytes }), done);
        Ok(())
    }

    /// Keeps entries up to and including `last` (`None`: none). They are gone for readers at once; `done` when that is durable.
    /// Refuses to remove what is committed or to keep what is not in the log.
    pub fn truncate_after(&self, last: Option<LogId>, done: Done) {
        if let Err((error, done)) = self.try_truncate(last, done) {
            done(Err(error));
        }
    }

    fn try_truncate(&self, last: Option<LogId>, done: Done) -> Result<(), (io::Error, Done)> {
        loop {
            let (floor, end_id) = {
                let state = self.shared.state();
                (state.floor, state.last)
            };
            let kept = last.max(floor.purged);
            let found = match kept {
                kept if kept == floor.purged => Ok(Some((floor.position, floor.chain))),
                Some(id) => self.header_of(id.index).map(|header| {
                    header.filter(|header| header.id == id).map(|header| (header.end(), header.place.chain))
                }),
                None => Ok(None),
            };
            let (end, chain) = match found {
                Ok(Some(found)) => found,
                Ok(None) => {
                    return Err((
                        invalid(format!(
                            "cannot keep entry {kept:?}: it is not in the log, which ends with {end_id:?}"
                        )),
                        done,
                    ));
                }
                Err(error) => return Err((error, done)),
            };
            let mut state = self.shared.state();
            if let Err(error) = check_failure(&state) {
                return Err((error, done));
            }
            if state.floor != floor || state.last != end_id {
                continue;
            }
            if kept == state.last {
                self.shared.queue.push(Work::Nothing, done);
                return Ok(());
            }
            if let Some(committed) =
                state.committed.filter(|committed| kept.is_none_or(|kept| kept.index < committed.index))
            {
                return Err((invalid(format!("entry {committed} is committed and cannot be removed")), done));
            }
            if let Some(Lookup::Unloaded(wanted)) = kept.map(|kept| state.index.lookup(kept.index)) {
                drop(state);
                if let Err(error) = self.load(wanted) {
                    return Err((error, done));
                }
                continue;
            }
            state.cut(kept, end, chain);
            self.shared.queue.push(Work::Cut { last: kept.map(|kept| kept.index), end }, done);
            return Ok(());
        }
    }

    /// Drops entries up to and including `upto`; whole segments below it are unlinked after that is durable, then `done`.
    /// Nothing if `upto` is purged already.
    ///
    /// Beyond the last entry the log becomes empty and continues at the next segment border with chain 0. Positions are then no
    /// longer those of the other nodes, so a group does not do that: it installs an image and calls
    /// [`reset_to`](Self::reset_to) first.
    pub fn purge(&self, upto: LogId, done: Done) {
        if let Err((error, done)) = self.try_purge(upto, done) {
            done(Err(error));
        }
    }

    fn try_purge(&self, upto: LogId, done: Done) -> Result<(), (io::Error, Done)> {
        let found = match self.header_of(upto.index).and_then(|header| Ok((header, self.next_if_committed(upto)?))) {
            Ok(found) => found,
            // The damage itself is to go: what is kept begins with the chain of what went.
            Err(error) if is_damage(&error) => return self.purge_unread(upto, error, done),
            Err(error) => return Err((error, done)),
        };
        let mut state = self.shared.state();
        if let Err(error) = check_failure(&state) {
            return Err((error, done));
        }
        if state.floor.purged.is_some_and(|purged| purged.index >= upto.index) {
            self.shared.queue.push(Work::Nothing, done);
            return Ok(());
        }
        let borders = self.shared.segments.borders;
        if state.last.is_none_or(|last| last.index < upto.index) {
            let border = if borders.below(state.end) == state.end { state.end } else { borders.after(state.end) };
            let floor = Floor { purged: Some(upto), position: border, chain: 0 };
            state.reset(floor);
            self.shared.queue.push(Work::Reset(floor), done);
            return Ok(());
        }
        if state.floor.purged.is_none() && state.first() == Some(LogIndex(upto.index.0 + 1)) {
            // The log began behind it: nothing goes, but now it is written down.
            let floor = Floor { purged: Some(upto), ..state.floor };
            state.purge(borders, floor);
            self.shared.queue.push(Work::Purge(floor), done);
            return Ok(());
        }
        let (Some(header), next) = found else {
            return Err((invalid(format!("cannot purge up to {upto}: it is in no index")), done));
        };
        if header.id != upto {
            return Err((invalid(format!("cannot purge up to {upto}: the log has {} there", header.id)), done));
        }
        let floor = Floor { purged: Some(upto), position: next.unwrap_or(header.end()), chain: header.place.chain };
        state.purge(borders, floor);
        self.shared.queue.push(Work::Purge(floor), done);
        Ok(())
    }

    /// Purges up to an entry that cannot be read, if the next one begins a segment and is committed.
    fn purge_unread(&self, upto: LogId, error: io::Error, done: Done) -> Result<(), (io::Error, Done)> {
        let mut state = self.shared.state();
        if let Err(error) = check_failure(&state) {
            return Err((error, done));
        }
        let next = LogIndex(upto.index.0 + 1);
        let is_committed = state.committed.is_some_and(|committed| committed.index >= next);
        let Some((position, chain)) = state.index.segment_of_first(next).filter(|_| is_committed) else {
            return Err((error, done));
        };
        let floor = Floor { purged: Some(upto), position, chain };
        state.purge(self.shared.segments.borders, floor);
        self.shared.queue.push(Work::Purge(floor), done);
        Ok(())
    }

    /// Where the entry after `upto` stands, if it is committed: then it stays there, and a segment that holds no more than a
    /// filler before it can go.
    fn next_if_committed(&self, upto: LogId) -> io::Result<Option<Position>> {
        if self.committed().is_none_or(|committed| committed.index <= upto.index) {
            return Ok(None);
        }
        self.position_of(LogIndex(upto.index.0 + 1))
    }

    /// Makes the log continue behind an image: at `at.border`, after the entry `at.applied` with `chain`. Durable when `done` is called.
    ///
    /// If the log holds that entry with that chain, only what lies before it goes; if it is purged already, nothing.
    pub fn reset_to(&self, at: ImagePoint, chain: u32, done: Done) {
        let Some(applied) = at.applied else {
            return done(Err(invalid("an image of nothing is no place to continue from".into())));
        };
        match self.header_of(applied.index) {
            Err(error) => return done(Err(error)),
            Ok(Some(header)) if header.id == applied && header.place.chain == chain => {
                return self.purge(applied, done);
            }
            Ok(_) => (),
        }
        let mut state = self.shared.state();
        if let Err(error) = check_failure(&state) {
            drop(state);
            return done(Err(error));
        }
        if state.floor.purged.is_some_and(|purged| purged.index >= applied.index) {
            return self.shared.queue.push(Work::Nothing, done);
        }
        let floor = Floor { purged: Some(applied), position: at.border, chain };
        state.reset(floor);
        self.shared.queue.push(Work::Reset(floor), done);
    }

    /// Records what this node grants. Always synced before `done`.
    pub fn save_vote(&self, vote: VoteRecord, done: Done) {
        let mut state = self.shared.state();
        if let Err(error) = check_failure(&state) {
            drop(state);
            return done(Err(error));
        }
        state.vote = Some(vote);
        self.shared.queue.push(Work::Vote(vote), done);
    }

    /// Notes the last committed entry: in memory at once, on disk with the next save of the hard state (within a second of
    /// the next append).
    pub fn save_committed(&self, id: Option<LogId>) {
        let mut state = self.shared.state();
        state.committed = state.committed.max(id);
    }

    /// `done` once everything appended before this call is on stable storage, also with async flush.
    pub fn sync_all(&self, done: Done) {
        self.queue_simple(Work::Sync, done);
    }

    /// This node has caught up with a live leader: it may vote and ack again. Durable when `done` is called.
    pub fn caught_up(&self, done: Done) {
        self.queue_simple(Work::CaughtUp, done);
    }

    /// Writes and syncs what is queued, marks the directory clean and ends the writer. Later operations fail.
    pub fn close(&self, done: Done) {
        self.queue_simple(Work::Close, done);
    }

    fn queue_simple(&self, work: Work, done: Done) {
        let state = self.shared.state();
        if let Err(error) = check_failure(&state) {
            drop(state);
            return done(Err(error));
        }
        self.shared.queue.push(work, done);
    }

    /// Ends the writer without another write and forgets what is queued: a simulated kill.
    pub fn abandon(&self) {
        self.shared.state().failure.get_or_insert("the log was abandoned".into());
        self.shared.queue.abandon();
        drop(self.take_writer());
    }

    /// Entries `start..end` (exclusive, at most to the last entry), from memory or from files; checked.
    ///
    /// With `bytes_max` it stops before the entry that would exceed it, but returns at least one.
    ///
    /// # Errors
    /// `NotFound` if `start` is purged (never clamped); `InvalidData` on damage.
    pub fn read(&self, start: LogIndex, end: LogIndex, bytes_max: Option<usize>) -> io::Result<Vec<Frame>> {
        read::read(&self.shared, start, end, bytes_max)
    }

    /// Last entry, or the purged one if there is none.
    pub fn last(&self) -> Option<LogId> {
        self.shared.state().last
    }

    /// Last entry no longer kept.
    pub fn purged(&self) -> Option<LogId> {
        self.shared.state().floor.purged
    }

    /// Where the kept log starts.
    pub fn floor(&self) -> Floor {
        self.shared.state().floor
    }

    /// The last vote asked to be saved.
    pub fn vote(&self) -> Option<VoteRecord> {
        self.shared.state().vote
    }

    /// The last committed entry this node knows.
    pub fn committed(&self) -> Option<LogId> {
        self.shared.state().committed
    }

    /// End of what was appended.
    pub fn end(&self) -> Position {
        self.shared.state().end
    }

    /// Everything below is in the files.
    pub fn written(&self) -> Position {
        self.shared.state().written
    }

    /// Everything below is on stable storage.
    pub fn synced(&self) -> Position {
        self.shared.state().synced
    }

    /// Syncs of log and hard state since start.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Whether somebody reads what this log holds. True at first; where not, only its newest part stays in the page cache.
    pub fn serves_reads(&self, yes: bool) {
        self.shared.serves_reads.store(yes, Ordering::Relaxed);
    }

    /// Entries appended since start.
    pub fn entries(&self) -> u64 {
        self.shared.state().entries
    }

    /// Position of an entry's frame; `None` if it is not kept.
    pub fn position_of(&self, index: LogIndex) -> io::Result<Option<Position>> {
        loop {
            let state = self.shared.state();
            if state.first().is_none_or(|first| index < first) {
                return Ok(None);
            }
            let wanted = match state.index.lookup(index) {
                Lookup::Absent => return Ok(None),
                Lookup::At(position) => return Ok(Some(position)),
                Lookup::Unloaded(wanted) => wanted,
            };
            drop(state);
            self.load(wanted)?;
        }
    }

    /// Log id of an entry; also answers for the purged one.
    pub fn id_at(&self, index: LogIndex) -> io::Result<Option<LogId>> {
        if let Some(purged) = self.purged().filter(|purged| purged.index == index) {
            return Ok(Some(purged));
        }
        Ok(self.header_of(index)?.map(|header| header.id))
    }

    /// Chain after an entry; also answers for the purged one. Equal on two nodes exactly if their logs are equal up to there.
    pub fn chain_at(&self, index: LogIndex) -> io::Result<Option<u32>> {
        let floor = self.floor();
        if floor.purged.is_some_and(|purged| purged.index == index) {
            return Ok(Some(floor.chain));
        }
        Ok(self.header_of(index)?.map(|header| header.place.chain))
    }

    /// Size of a segment.
    pub fn segment_bytes(&self) -> u64 {
        self.shared.segments.borders.segment_bytes
    }

    /// Largest segment border ≤ `position`.
    pub fn border_below(&self, position: Position) -> Position {
        self.shared.segments.borders.below(position)
    }

    /// The last entry below `border` and the chain after it, once an entry stands at `border`; `None` before that, as more may
    /// still come below it, and if that entry is below the floor.
    pub fn last_below(&self, border: Position) -> io::Result<Option<(LogId, u32)>> {
        let (floor, first) = {
            let state = self.shared.state();
            (state.floor, state.index.first_of(border))
        };
        let Some((first, chain)) = first.filter(|_| border >= floor.position) else {
            return Ok(floor.purged.filter(|_| border == floor.position).map(|purged| (purged, floor.chain)));
        };
        let Some(index) = first.0.checked_sub(1) else { return Ok(None) };
        Ok(self.id_at(LogIndex(index))?.map(|id| (id, chain)))
    }

    /// The last membership and the last floor entry with an index ≤ `upto` that the log keeps.
    pub fn last_special(&self, upto: LogIndex) -> (Option<Frame>, Option<Frame>) {
        let state = self.shared.state();
        let newest = |is: fn(&Payload) -> bool| {
            state.specials.range(..=upto).rev().map(|(_, frame)| frame).find(|frame| is(&frame.payload)).cloned()
        };
        (
            newest(|payload| matches!(payload, Payload::Membership(_))),
            newest(|payload| matches!(payload, Payload::Floor(_))),
        )
    }

    /// Segments that are known to be damaged, now and later.
    pub(crate) fn damaged(&self) -> watch::Receiver<Damaged> {
        self.shared.damages.watch()
    }

    /// What is counted as it happens.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Reader of committed bytes.
    pub fn view(&self) -> LogView {
        LogView { shared: self.shared.clone() }
    }

    /// Why the log has failed or was closed, if so.
    pub fn failure(&self) -> Option<String> {
        self.shared.state().failure.clone()
    }

    fn header_of(&self, index: LogIndex) -> io::Result<Option<Header>> {
        loop {
            let removals = {
                let state = self.shared.state();
                if let Some(frame) = state.tail.get(index) {
                    return Ok(frame.place.map(|place| frame.header_at(place.position, place.prev_chain)));
                }
                state.removals
            };
            let Some(position) = self.position_of(index)? else { return Ok(None) };
            match read::header_at(&self.shared.segments, self.shared.node.incarnation(), position) {
                Err(_) if self.shared.state().removals != removals => (),
                Err(error) => return Err(self.shared.damages.note(&self.shared.segments, position, error)),
                Ok(header) => return Ok(Some(header)),
            }
        }
    }

    fn load(&self, wanted: crate::log::index::Wanted) -> io::Result<()> {
        let shared = &self.shared;
        let table = load_table(&shared.segments, wanted, shared.checks());
        let table = table.map_err(|error| shared.damages.note(&shared.segments, wanted.segment, error))?;
        self.shared.state().index.install(wanted, table);
        Ok(())
    }
}

fn check_failure(state: &State) -> io::Result<()> {
    state.failure.as_ref().map_or(Ok(()), |failure| Err(io::Error::other(failure.clone())))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
