//! The one writer: carries out appends, truncations, purges and votes, strictly in the order they were asked for.
//!
//! It drains what is queued, writes the entries of all of it with one vectored write, syncs once, and then calls all callbacks.
//! So the group that shares a sync grows by itself with the load, and nothing waits for a timer. openraft relies on the order:
//! a vote must not overtake an entry, nor an entry a vote.
//!
//! Its logic is [`Writer::run`]; a thread or a task runs it (in simulation, where a sync takes virtual time, it sleeps).
//! With async flush callbacks follow the write, and a second thread syncs at each interval, or the writer itself as soon as too
//! much is unsynced.
//!
//! Any failed write or sync ends it for good: every operation from then on fails with the same reason, and nothing is
//! ever synced a second time, because after a failed sync the kernel may call pages clean that are not on the disk.

mod change;
mod flush;
mod forget;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::time::Instant;
use tracing::{error, warn};

use self::{flush::Flusher, forget::Forgetting};
use crate::{
    config::FlushMode,
    disk::DiskFile,
    hard_state::{CatchUpReason, HardState},
    log::{
        frame::{HEADER_BYTES, Local},
        handle::Shared,
        index,
        queue::{Append, Done, Op, Work},
    },
    types::{LogIndex, Position},
};

/// Entries written and synced together.
const BATCH_BYTES: u64 = 8 << 20;
/// With async flush: more unsynced bytes than this are synced before anything else is written.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;
/// The hard state follows the log at this distance.
const HARD_STATE_INTERVAL: Duration = Duration::from_secs(1);

/// Who runs the writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pace {
    /// A thread, which may block.
    Thread,
    /// A task, which may not.
    Task,
}

/// A place in the log and the last entry below it.
#[derive(Clone, Copy, Debug)]
struct Reached {
    position: Position,
    index: Option<LogIndex>,
}

/// The files as they are, and what is known about their durability.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    hard: HardState,
    pace: Pace,
    /// The segment written to.
    active: Option<(Position, Arc<dyn DiskFile>)>,
    written: Reached,
    synced: Reached,
    /// Cuts and resets carried out: a background sync from before one says nothing about what is there now.
    cuts: u64,
    hard_stale: bool,
    hard_saved_at: Instant,
    synced_at: Instant,
    forgetting: Forgetting,
    flusher: Option<Flusher>,
    flushing: bool,
    failure: Option<String>,
    sync_failed: bool,
}

impl Writer {
    pub fn open(shared: Arc<Shared>, hard: HardState, end: Position, last: Option<LogIndex>) -> io::Result<Self> {
        let segment = shared.segments.borders.below(end);
        let active = match shared.segments.file(segment) {
            Ok(file) if segment < end => Some((segment, file)),
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let reached = Reached { position: end, index: last };
        let now = Instant::now();
        Ok(Self {
            shared,
            hard,
            pace: Pace::Thread,
            active,
            written: reached,
            synced: reached,
            cuts: 0,
            hard_stale: false,
            hard_saved_at: now,
            synced_at: now,
            forgetting: Forgetting::new(end),
            flusher: None,
            flushing: false,
            failure: None,
            sync_failed: false,
        })
    }

    /// Runs on the current thread until the log is closed or abandoned.
    pub fn run_blocking(mut self) {
        if self.shared.flush != FlushMode::Sync {
            self.flusher = Flusher::spawn(self.shared.clone());
        }
        self.run(Pace::Thread)
            .now_or_never()
            .expect("at a thread's pace nothing is awaited, the thread blocks instead");
    }

    /// Runs until the log is closed or abandoned.
    pub async fn run(mut self, pace: Pace) {
        self.pace = pace;
        loop {
            let ops = self.shared.queue.take(BATCH_BYTES);
            if self.shared.queue.is_abandoned() {
                return;
            }
            if ops.is_empty() {
                self.wait().await;
            } else {
                self.drain(ops).await;
            }
            if let Err(error) = self.keep_house().await {
                self.fail(error).await;
            }
            if self.failure.is_some() {
                // The state refuses everything by now, so this is the last of what was queued.
                let rest = self.shared.queue.take(u64::MAX);
                return self.drain(rest).await;
            }
        }
    }

    /// Carries out what was taken from the queue.
    async fn drain(&mut self, ops: Vec<Op>) {
        let (mut run, mut dones) = (Vec::new(), Vec::new());
        for Op { work, done } in ops {
            if let Work::Append(append) = work {
                run.push(append);
                dones.push(done);
            } else {
                self.append(std::mem::take(&mut run), std::mem::take(&mut dones)).await;
                self.single(work, done).await;
            }
        }
        self.append(run, dones).await;
    }

    /// Writes the entries of several calls, and answers them.
    async fn append(&mut self, run: Vec<Append>, dones: Vec<Done>) {
        let Some(last) = run.last() else { return };
        let upto = Reached { position: last.end, index: Some(last.last) };
        if self.failure.is_none()
            && let Err(error) = self.write(&run, upto).await
        {
            self.fail(error).await;
        }
        // The newest first: one watermark follows from them, and its first step is the whole way.
        for done in dones.into_iter().rev() {
            done(self.outcome());
        }
        self.forget();
    }

    async fn single(&mut self, work: Work, done: Done) {
        let closing = matches!(work, Work::Close);
        if self.failure.is_none()
            && let Err(error) = self.carry_out(work).await
        {
            self.fail(error).await;
        }
        let outcome = self.outcome();
        if closing {
            self.end("the log was closed");
        }
        done(outcome);
    }

    async fn carry_out(&mut self, work: Work) -> io::Result<()> {
        match work {
            Work::Cut { last, end } => self.cut(Reached { position: end, index: last }).await,
            Work::Purge(floor) => self.purge(floor).await,
            Work::Reset(floor) => self.reset(floor).await,
            Work::Vote(vote) => self.vote(vote).await,
            Work::Sync => self.sync().await,
            Work::CaughtUp => self.save_hard(|record| record.catch_up = None).await,
            Work::Flushed { upto, index, cuts, result } => {
                self.flushed(Reached { position: upto, index }, cuts, result)
            }
            Work::Close => self.close().await,
            Work::Append(_) | Work::Nothing => Ok(()),
        }
    }

    /// One vectored write per segment, one sync at the end.
    async fn write(&mut self, run: &[Append], upto: Reached) -> io::Result<()> {
        let borders = self.shared.segments.borders;
        let count = run.iter().map(|append| append.pieces.len()).sum::<usize>();
        self.shared.metrics.batch_entries.record(count as u64);
        self.shared.metrics.batch_bytes.record(run.iter().map(|append| append.bytes).sum());
        let mut headers = BytesMut::with_capacity(count * HEADER_BYTES);
        let mut parts: Vec<Bytes> = Vec::with_capacity(count * 2);
        let (mut from, mut end) = (self.written.position, self.written.position);
        for piece in run.iter().flat_map(|append| &append.pieces) {
            let position = piece.header.place.position;
            let segment = borders.below(position);
            if self.active.as_ref().is_none_or(|(active, _)| *active != segment) {
                self.write_parts(from, &mut parts)?;
                self.written.position = end;
                self.roll(segment).await?;
                (from, end) = (position, position);
            }
            assert!(position == end, "a frame of position {position} would be written at {end}");
            // All below the segment was synced when it was begun, so that is vouched for even if nothing stood at its end.
            let local = Local { era: self.hard.record().era, mark: self.synced.position.max(segment) };
            headers.put_slice(&piece.header.encode(local, self.shared.node.incarnation()));
            parts.push(headers.split().freeze());
            if !piece.payload.is_empty() {
                parts.push(piece.payload.clone());
            }
            end = piece.header.end();
        }
        self.write_parts(from, &mut parts)?;
        assert!(end == upto.position, "entries up to {} were written up to {end}", upto.position);
        self.written = upto;
        self.hard_stale = true;
        let unsynced = self.written.position.0 - self.synced.position.0.min(self.written.position.0);
        match self.shared.flush {
            FlushMode::Sync => self.sync().await?,
            FlushMode::Async(_) if unsynced > UNSYNCED_BYTES_MAX => self.sync().await?,
            FlushMode::Async(_) => self.publish(),
        }
        Ok(())
    }

    fn write_parts(&self, from: Position, parts: &mut Vec<Bytes>) -> io::Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let (segment, file) = self.active.as_ref().expect("parts are gathered for the active segment");
        file.write_at(from.0 - segment.0, parts)?;
        parts.clear();
        Ok(())
    }

    /// Syncs the segment written to so far and begins the next one.
    async fn roll(&mut self, segment: Position) -> io::Result<()> {
        if let Some((sealed, file)) = self.active.take() {
            self.sync_log(&file).await?;
            self.store_index(sealed);
        }
        let file = self.shared.segments.create(segment)?;
        self.sync_log(&file).await?;
        self.shared.segments.sync_dir()?;
        self.active = Some((segment, file));
        Ok(())
    }

    /// The index is a reading of the segment: without it a later start walks the segment.
    fn store_index(&self, segment: Position) {
        let sealed = {
            let state = self.shared.state();
            // With a cut ahead in the queue the table speaks of another future than the file.
            if state.cuts.is_empty() { state.index.sealed(segment) } else { None }
        };
        let Some((wanted, table)) = sealed else { return };
        let segments = &self.shared.segments;
        match index::store(segments.disk().as_ref(), &segments.index_path(segment), wanted, &table) {
            Ok(()) => {
                let mut state = self.shared.state();
                if state.cuts.is_empty() {
                    state.index.mark_stored(wanted, &table);
                }
            }
            Err(error) => warn!(%error, %segment, "index not stored"),
        }
    }

    /// Everything written to stable storage.
    async fn sync(&mut self) -> io::Result<()> {
        if self.synced.position != self.written.position
            && let Some((_, file)) = &self.active
        {
            let file = file.clone();
            self.publish();
            self.sync_log(&file).await?;
        }
        self.synced = self.written;
        self.synced_at = Instant::now();
        self.publish();
        Ok(())
    }

    async fn sync_log(&mut self, file: &Arc<dyn DiskFile>) -> io::Result<()> {
        let result = self.sync_file(file).await;
        self.sync_failed |= result.is_err();
        result
    }

    /// See [`forget`]. After the answers, which nobody should wait longer for.
    fn forget(&mut self) {
        if !self.shared.serves_reads.load(Ordering::Relaxed) {
            self.forgetting.step(&self.shared.segments, self.synced.position);
        }
    }

    async fn sync_file(&self, file: &Arc<dyn DiskFile>) -> io::Result<()> {
        let began = Instant::now();
        let delay = file.sync_delay();
        match self.pace {
            _ if delay.is_zero() => (),
            Pace::Thread => std::thread::sleep(delay),
            Pace::Task => tokio::time::sleep(delay).await,
        }
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        if cfg!(feature = "mutant-no-sync") {
            return Ok(());
        }
        let synced = file.sync();
        self.shared.metrics.sync_seconds.record_time(began.elapsed());
        synced
    }

    fn publish(&self) {
        self.shared.state().progress(self.written.position, self.synced.position);
    }

    /// What is due besides what is asked: the hard state once a second while things move, and the background sync.
    async fn keep_house(&mut self) -> io::Result<()> {
        if self.failure.is_some() {
            return Ok(());
        }
        if self.flush_due_in().is_some_and(|due| due.is_zero()) {
            self.flush().await?;
        }
        if self.hard_due_in().is_some_and(|due| due.is_zero()) {
            self.save_hard(|_| ()).await?;
        }
        Ok(())
    }

    async fn wait(&self) {
        let due = match (self.hard_due_in(), self.flush_due_in()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let due = due.filter(|_| self.failure.is_none());
        match self.pace {
            Pace::Thread => self.shared.queue.wait_blocking(due),
            Pace::Task => self.shared.queue.wait(due).await,
        }
    }

    fn hard_due_in(&self) -> Option<Duration> {
        self.hard_stale.then(|| HARD_STATE_INTERVAL.saturating_sub(self.hard_saved_at.elapsed()))
    }

    /// The end of this log, for this process: everything from now on fails.
    async fn fail(&mut self, error: io::Error) {
        if self.failure.is_some() {
            return;
        }
        error!(%error, "the log has failed, nothing more is written");
        self.end(&format!("the log has failed: {error}"));
        if self.sync_failed {
            // So that the next start knows that this node may not hold what it believes to hold. If this fails too, the
            // next start writes again what it keeps, which is nearly as good.
            if let Err(error) = self.save_hard(|record| record.catch_up = Some(CatchUpReason::SyncFailed)).await {
                warn!(%error, "the failed sync was not recorded");
            }
        }
    }

    fn end(&mut self, reason: &str) {
        self.failure.get_or_insert(reason.to_owned());
        self.shared.state().failure.get_or_insert(reason.to_owned());
    }

    fn outcome(&self) -> io::Result<()> {
        self.failure.as_ref().map_or(Ok(()), |failure| Err(io::Error::other(failure.clone())))
    }
}

impl Drop for Writer {
    /// A writer that panicked leaves nobody waiting: the log has failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end("the log writer has panicked");
            for op in self.shared.queue.take(u64::MAX) {
                (op.done)(self.outcome());
            }
        }
    }
}
