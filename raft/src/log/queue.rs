//! The writer's queue: what was asked of it, in order.
//!
//! Not bounded by itself: entries are bounded by what `propose` lets in and by the window of each peer stream, and the other
//! operations are rare. Called by the log's handles; drained by the one writer.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    hard_state::{Floor, VoteRecord},
    log::state::Piece,
    types::{LogIndex, Position},
};

/// Told how an operation ended: called once by the writer, or at once by the caller's thread if it could not be queued.
/// Dropped uncalled only if the log is abandoned.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What the writer does, and whom it tells.
pub(crate) struct Op {
    pub work: Work,
    pub done: Done,
}

/// The work of an operation.
pub(crate) enum Work {
    Append(Append),
    /// Sets the end of the log back.
    Cut {
        last: Option<LogIndex>,
        end: Position,
    },
    /// Moves the floor within the log.
    Purge(Floor),
    /// Drops everything; the log continues behind the floor.
    Reset(Floor),
    Vote(VoteRecord),
    /// Everything before it to stable storage.
    Sync,
    /// The catch-up duty is over.
    CaughtUp,
    /// Answers in turn.
    Nothing,
    /// A background sync ended.
    Flushed {
        upto: Position,
        index: Option<LogIndex>,
        cuts: u64,
        result: io::Result<()>,
    },
    Close,
}

/// Entries of one call, placed.
pub(crate) struct Append {
    pub pieces: Vec<Piece>,
    pub end: Position,
    pub last: LogIndex,
    pub bytes: u64,
}

#[derive(Default)]
pub(crate) struct Queue {
    ops: Mutex<VecDeque<Op>>,
    filled: Condvar,
    notify: Notify,
    abandoned: AtomicBool,
}

impl Queue {
    pub fn push(&self, work: Work, done: Done) {
        self.lock().push_back(Op { work, done });
        self.filled.notify_one();
        self.notify.notify_one();
    }

    /// Takes operations until their entries exceed `bytes_max`; at least one if there is any.
    pub fn take(&self, bytes_max: u64) -> Vec<Op> {
        let mut ops = self.lock();
        let (mut count, mut bytes) = (0, 0);
        for op in ops.iter() {
            if let Work::Append(append) = &op.work {
                bytes += append.bytes;
            }
            if count > 0 && bytes > bytes_max {
                break;
            }
            count += 1;
        }
        ops.drain(..count).collect()
    }

    /// Blocks the thread until there is something, the log is abandoned, or the time is over.
    pub fn wait_blocking(&self, timeout: Option<Duration>) {
        let ops = self.lock();
        let idle = |ops: &mut VecDeque<Op>| ops.is_empty() && !self.is_abandoned();
        match timeout {
            Some(timeout) => drop(self.filled.wait_timeout_while(ops, timeout, idle)),
            None => drop(self.filled.wait_while(ops, idle)),
        }
    }

    /// As [`wait_blocking`](Self::wait_blocking), for a task.
    pub async fn wait(&self, timeout: Option<Duration>) {
        if !self.lock().is_empty() || self.is_abandoned() {
            return;
        }
        // A push since then has left a permit, so nothing is missed.
        match timeout {
            Some(timeout) => drop(tokio::time::timeout(timeout, self.notify.notified()).await),
            None => self.notify.notified().await,
        }
    }

    pub fn abandon(&self) {
        let mut ops = self.lock();
        self.abandoned.store(true, Ordering::SeqCst);
        ops.clear();
        drop(ops);
        self.filled.notify_all();
        self.notify.notify_one();
    }

    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    // A panic of another thread cannot leave the queue half changed.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Op>> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
