//! Plans of the leader that are worth remembering between calls: which queue is next, and what is spoken for.
//!
//! Nothing here is needed for correctness: the machine checks every command. It spreads messages and receives over the queues, and it
//! keeps a herd of parked receives, woken by one message, from proposing receives that would find nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::machine::{GroupId, QueueId, TopicId};

/// Lanes kept before those without users are dropped.
const LANES_KEPT: usize = 4096;

/// The leader's memory between calls.
#[derive(Default)]
pub(crate) struct Planner {
    sends: AtomicU64,
    lanes: Mutex<BTreeMap<(GroupId, TopicId), Arc<Lane>>>,
}

/// The receives of one group in one topic.
#[derive(Default)]
pub(crate) struct Lane {
    state: Mutex<LaneState>,
    released: Notify,
}

#[derive(Default)]
struct LaneState {
    /// Messages that receives under way expect to get.
    claimed: u64,
    /// Where the next receive begins.
    first_queue: u16,
}

/// Messages that a receive under way expects. Given back when dropped, which lets parked receives look again.
pub(crate) struct Claim {
    lane: Arc<Lane>,
    count: u64,
    /// Queue the receive begins at.
    pub first_queue: QueueId,
}

impl Planner {
    /// The queue of the next send: all in turn, over all topics, so that each topic's queues fill evenly.
    pub fn next_queue(&self, queues: u16) -> QueueId {
        let turn = self.sends.fetch_add(1, Ordering::Relaxed) % u64::from(queues.max(1));
        QueueId(u16::try_from(turn).expect("less than a u16"))
    }

    /// The lane of a group in a topic.
    pub fn lane(&self, group: GroupId, topic: TopicId) -> Arc<Lane> {
        let mut lanes = lock(&self.lanes);
        if lanes.len() >= LANES_KEPT {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        lanes.entry((group, topic)).or_default().clone()
    }
}

impl Lane {
    /// Speaks for up to `max` of the `ready` messages that nobody else has spoken for. `None` if there are none, unless `anyway`.
    pub fn claim(self: &Arc<Self>, ready: u64, max: u16, queues: u16, anyway: bool) -> Option<Claim> {
        let mut state = lock(&self.state);
        let count = ready.saturating_sub(state.claimed).min(u64::from(max));
        if count == 0 && !anyway {
            return None;
        }
        state.claimed += count;
        let first_queue = QueueId(state.first_queue);
        state.first_queue = (state.first_queue + 1) % queues.max(1);
        Some(Claim { lane: self.clone(), count, first_queue })
    }

    /// Completes when a claim was given back after this call.
    pub fn released(&self) -> tokio::sync::futures::Notified<'_> {
        self.released.notified()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.lane.state).claimed -= self.count;
        self.lane.released.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while held")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_go_round_the_queues() {
        let planner = Planner::default();
        let queues: Vec<u16> = (0..5).map(|_| planner.next_queue(3).0).collect();
        assert_eq!(queues, [0, 1, 2, 0, 1]);
        assert_eq!(planner.next_queue(0), QueueId(0));
    }

    #[test]
    fn what_one_receive_expects_another_does_not_ask_for() {
        let planner = Planner::default();
        let lane = planner.lane(GroupId(1), TopicId(1));
        let first = lane.claim(5, 3, 8, false).expect("five are ready");
        let second = lane.claim(5, 32, 8, false).expect("two are left");
        assert_eq!((first.first_queue, second.first_queue), (QueueId(0), QueueId(1)));
        assert!(lane.claim(5, 1, 8, false).is_none());
        assert!(lane.claim(0, 1, 8, true).is_some(), "a repeat asks whatever is ready");
        drop(first);
        assert!(planner.lane(GroupId(1), TopicId(1)).claim(5, 1, 8, false).is_some());
        assert!(planner.lane(GroupId(2), TopicId(1)).claim(1, 1, 8, false).is_some(), "groups do not share");
    }

    #[tokio::test]
    async fn a_claim_given_back_wakes_a_parked_receive() {
        let lane = Planner::default().lane(GroupId(1), TopicId(1));
        let claim = lane.claim(1, 1, 1, false).expect("one is ready");
        let released = lane.released();
        drop(claim);
        released.await;
    }
}
