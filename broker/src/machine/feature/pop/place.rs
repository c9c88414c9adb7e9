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

use super::Subscription;
use crate::machine::ids::QueueId;

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
