//! A consumer group's place in a queue, as its own consumers put it: those that pull keep their own books and say how far they are.
//!
//! ```text
//!                committed                    next
//!   ─ all done ─────┼─ done, or in flight ─────┼─ never handed out
//!      ◀── back     │ ──▶ forwards             │ ──▶ forwards
//! ```
//! There is one place per group and queue, however the group reads. So what is pulled and what is handed out share their progress, their lag
//! and their resets, and a place survives what progress survives: it is in the log and in every image. Forwards, what lies below the new place
//! is done, held or not, and what others hold from there on stays theirs. Back, everything from there on is handed out or pulled again.

use quorate_proto::time::Timestamp;

use super::{Progress, Subscription};
use crate::machine::ids::QueueId;

/// What a consumer group has not done in a queue; each message counts once.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lag {
    /// Nobody holds them: never handed out, or handed out and not acknowledged in time.
    pub ready: u64,
    /// Nobody holds them, and the message before them in their message group is not done.
    pub waiting: u64,
    /// A consumer holds them; or nobody gets them again, and they are on their way to the dead letters.
    pub in_flight: u64,
}

/// What another place means for a consumer group in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Move {
    /// Messages that are not done and that the group never gets.
    pub skipped: u64,
    /// Messages that are done and that it gets again.
    pub again: u64,
    /// Messages that consumers hold and that it gets again; receipts for them stop working.
    pub forgotten: u64,
}

impl Subscription {
    /// Puts the place to `offset`. True if it went back, so that there is more to hand out than before.
    pub(crate) fn put_place(&mut self, queue: QueueId, offset: u64, now: Timestamp) -> bool {
        let committed = self.queues.get(usize::from(queue.0)).map_or(0, |progress| progress.committed());
        if offset < committed {
            self.reset(queue, offset, now);
            return true;
        }
        self.commit(queue, offset, now);
        false
    }
}

impl Progress {
    fn lag(&self, end: u64, now: Timestamp) -> Lag {
        let in_flight = self.in_flight.len() as u64;
        let timed_out = self.due(now).count() as u64;
        Lag {
            ready: end.saturating_sub(self.next) + timed_out,
            waiting: self.order.waiting_count() as u64,
            in_flight: in_flight - timed_out,
        }
    }

    fn move_to(&self, offset: u64) -> Move {
        let held = self.in_flight.range(offset..).count() as u64;
        let waiting = self.order.waiting_from(offset) as u64;
        let (all_held, all_waiting) = (self.in_flight.len() as u64, self.order.waiting_count() as u64);
        Move {
            skipped: (all_held - held) + (all_waiting - waiting) + offset.saturating_sub(self.next),
            again: self.next.saturating_sub(offset).saturating_sub(held + waiting),
            forgotten: held,
        }
    }
}

impl Subscription {
    /// What is not done of a queue that ends at `end`.
    pub(crate) fn lag(&self, queue: QueueId, end: u64, now: Timestamp) -> Option<Lag> {
        Some(self.queues.get(usize::from(queue.0))?.lag(end, now))
    }

    /// What a reset to `offset` would mean.
    pub(crate) fn move_to(&self, queue: QueueId, offset: u64) -> Option<Move> {
        Some(self.queues.get(usize::from(queue.0))?.move_to(offset))
    }
}
