//! openraft's log storage over our log, and nothing else.
//!
//! Every write goes to the log's one writer in the order openraft asks for it: append, vote, truncate and purge must not
//! pass each other, or committed entries are lost. Reads come from the tail cache or the files. What replication reads at
//! once is bounded by bytes; what replay reads is exact.

use std::{
    fmt, io,
    ops::{Bound, RangeBounds},
    time::Duration,
};

use futures_util::{Stream, stream};
use openraft::{
    OptionalSend,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};
use tokio::sync::oneshot;

use crate::{
    binding::{Entry, RaftLogId, RaftVote, TypeConfig, from_raft, raft_vote, to_raft, vote_record},
    fatal::Fatal,
    log::{Diverged, Done, Log, damage::is_damage},
    runtime::Yield,
    types::LogIndex,
};

/// Bytes of entries in one AppendEntries (one entry may exceed it).
pub(crate) const APPEND_BYTES_MAX: usize = 1 << 20;

/// Pause before a part of the log that is damaged is read again for a follower.
const DAMAGE_PAUSE: Duration = Duration::from_millis(500);

/// Bytes of entries read at once on their way to the machine; between two such reads other tasks get their turn.
const APPLY_BYTES: usize = 4 << 20;

/// The log in openraft's hands. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Log,
    fatal: Fatal,
}

impl LogStore {
    pub(crate) fn new(log: Log, fatal: Fatal) -> Self {
        Self { log, fatal }
    }

    fn read(&self, start: u64, end: u64, max_bytes: Option<usize>) -> io::Result<Vec<Entry>> {
        let frames = self.log.read(LogIndex(start), LogIndex(end), max_bytes)?;
        let entries = frames.into_iter().map(Entry::from_frame).collect::<Result<Vec<_>, _>>();
        entries.map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

impl LogStore {
    /// A callback for work that nobody waits for: it can only fail by a disk fault, which ends the node.
    fn unwatched(&self, what: &'static str) -> Done {
        let fatal = self.fatal.clone();
        Box::new(move |result| {
            if let Err(error) = result
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                fatal.set(format!("log: {what}: {error}"));
            }
        })
    }
}

/// A callback for the writer, and what waits for it.
pub(crate) fn completion() -> (Done, impl Future<Output = io::Result<()>> + Send) {
    let (send, receive) = oneshot::channel();
    let done: Done = Box::new(move |result| {
        // The waiter may have gone, for example because the node stops: the write itself does not depend on it.
        let _ = send.send(result);
    });
    let wait = async move {
        let gone = || Err(io::Error::new(io::ErrorKind::BrokenPipe, "the log writer has stopped"));
        receive.await.unwrap_or_else(|_| gone())
    };
    (done, wait)
}

/// Start (inclusive) and end (exclusive) of a range.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        if start >= end {
            return Ok(Vec::new());
        }
        self.read(start, end, None)
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.vote().map(raft_vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        match self.read(start, end, Some(APPEND_BYTES_MAX)) {
            // openraft keeps what a follower is just reading, but forgets that a stream reads when an older stream of the same follower
            // reports its end late: then this one is behind the purge. Its transport ends it (`peer::append`), an image follows.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            // openraft ends a node whose log cannot be read, although the rest of it serves. Nothing read is sent as a heartbeat, which
            // promises nothing about the entries, and asked for again: until then the group has another leader, or this one waits.
            Err(error) if is_damage(&error) => {
                tokio::time::sleep(DAMAGE_PAUSE).await;
                Ok(Vec::new())
            }
            read => read,
        }
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let state = Some((self.clone(), start, end, Vec::new().into_iter()));
        let entries = stream::unfold(state, async |state| {
            let (store, mut start, end, mut ready): (LogStore, u64, u64, std::vec::IntoIter<Entry>) = state?;
            if let Some(entry) = ready.next() {
                return Some((Ok(entry), Some((store, start, end, ready))));
            }
            if start >= end {
                return None;
            }
            Yield::default().await;
            let mut more = match store.read(start, end, Some(APPLY_BYTES)) {
                Ok(entries) => entries.into_iter(),
                Err(error) => return Some((Err(error), None)),
            };
            start += more.len() as u64;
            let entry = more.next()?;
            Some((Ok(entry), Some((store, start, end, more))))
        });
        Box::pin(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState { last_purged_log_id: self.log.purged().map(to_raft), last_log_id: self.log.last().map(to_raft) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let (done, wait) = completion();
        self.log.save_vote(vote_record(vote), done);
        wait.await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(from_raft));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        // What was known committed may be ahead of what this node had written when it was cut.
        let Some(id) = self.log.committed() else {
            return Ok(None);
        };
        if self.log.last().is_none_or(|last| id.index > last.index) {
            return Ok(None);
        }
        let is_purged = self.log.purged().is_some_and(|purged| id.index <= purged.index);
        let is_held = is_purged || self.log.id_at(id.index)? == Some(id);
        Ok(is_held.then(|| to_raft(id)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let frames = entries.into_iter().map(Entry::into_frame).collect();
        let appended = self.log.append(frames, Box::new(move |result| callback.io_completed(result)));
        if let Err(error) = &appended
            && let Some(diverged) = error.get_ref().and_then(|inner| inner.downcast_ref::<Diverged>())
        {
            self.fatal.set(format!("{diverged}; compare this node's log with its peers' before it starts again"));
        }
        appended
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        // Not waited for: readers see it at once, and whatever is appended next is acknowledged after it, in FIFO order.
        self.log.truncate_after(last.as_ref().map(from_raft), self.unwatched("truncate"));
        Ok(())
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        // Not waited for: removing a segment may take long, and the Raft core must not stand still meanwhile.
        self.log.purge(from_raft(&upto), self.unwatched("purge"));
        Ok(())
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
