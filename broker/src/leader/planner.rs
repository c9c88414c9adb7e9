//! Plans of the leader that are worth remembering between calls: which queue is next, and what is spoken for.
//!
//! Nothing here is needed for correctness: the machine checks every command. It spreads messages and receives over the queues, it
//! keeps a herd of parked receives, woken by one message, from proposing receives that would find nothing, it remembers what was read
//! ahead for groups that filter or want order, and it notices when consumers of one group filter differently.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use super::filter::FilterKind;
use crate::{
    machine::{GroupId, QueueId, TopicId},
    scan::{Claimed, Scans},
};

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
    /// What was read ahead. Held while reading on, so that no two receives read the same.
    ahead: tokio::sync::Mutex<ReadAhead>,
}

/// What was read ahead of a group's cursors, with the filter it was read for.
#[derive(Default)]
pub(crate) struct ReadAhead {
    expression: Option<Expression>,
    scans: Scans,
}

/// A filter as its consumer wrote it. Without one, every message is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression {
    /// The language.
    pub kind: FilterKind,
    /// The text.
    pub text: String,
}

/// The filter that a consumer of a group used last.
struct Used {
    client_id: String,
    expression: Option<Expression>,
}

#[derive(Default)]
struct LaneState {
    /// Messages that receives under way expect to get.
    claimed: u64,
    /// Where the next receive begins.
    first_queue: u16,
    /// Messages that receives which read ahead expect to get.
    expected: Claimed,
    used: Option<Used>,
    /// It was said that consumers filter differently.
    warned: bool,
}

/// Messages that a receive under way expects. Given back when dropped, which lets parked receives look again.
pub(crate) struct Claim {
    lane: Arc<Lane>,
    count: u64,
    /// Queue the receive begins at.
    pub first_queue: QueueId,
}

/// Messages that a receive which read ahead expects. Given back when dropped, as a [`Claim`] is.
pub(crate) struct Expected {
    lane: Arc<Lane>,
    claimed: Claimed,
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

    /// What was read ahead for this expression; anew if the one before was another.
    pub async fn read_ahead(&self, expression: Option<&Expression>) -> tokio::sync::MutexGuard<'_, ReadAhead> {
        let mut ahead = self.ahead.lock().await;
        if ahead.expression.as_ref() != expression {
            *ahead = ReadAhead { expression: expression.cloned(), scans: Scans::default() };
        }
        ahead
    }

    /// What receives under way that read ahead expect, and the queue for the next one to begin at.
    pub fn expected(&self, queues: u16) -> (Claimed, QueueId) {
        let mut state = lock(&self.state);
        let first_queue = QueueId(state.first_queue);
        state.first_queue = (state.first_queue + 1) % queues.max(1);
        (state.expected.clone(), first_queue)
    }

    /// Speaks for what a plan expects; `None` if that is nothing.
    pub fn expect(self: &Arc<Self>, claimed: Claimed) -> Option<Expected> {
        if claimed == Claimed::default() {
            return None;
        }
        let mut state = lock(&self.state);
        state.expected.again += claimed.again;
        for (queue, count) in &claimed.new {
            *state.expected.new.entry(*queue).or_default() += count;
        }
        Some(Expected { lane: self.clone(), claimed })
    }

    /// Notes the filter of a receive. The first time that it is not the one of the receive before: that one, and whose it was.
    pub fn note(&self, client_id: &str, expression: Option<&Expression>) -> Option<(String, Option<Expression>)> {
        let mut state = lock(&self.state);
        if state.used.as_ref().is_some_and(|used| used.expression.as_ref() == expression) {
            return None;
        }
        let now = Used { client_id: client_id.to_owned(), expression: expression.cloned() };
        let before = state.used.replace(now)?;
        let first = !std::mem::replace(&mut state.warned, true);
        first.then_some((before.client_id, before.expression))
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

impl ReadAhead {
    /// What was read.
    pub fn scans(&mut self) -> &mut Scans {
        &mut self.scans
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut state = lock(&self.lane.state);
        state.expected.again -= self.claimed.again;
        for (queue, count) in &self.claimed.new {
            if let Some(expected) = state.expected.new.get_mut(queue) {
                *expected -= count;
            }
        }
        state.expected.new.retain(|_, count| *count > 0);
        drop(state);
        self.lane.released.notify_one();
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FilterKind::Tag => write!(f, "tags {}", self.text),
            FilterKind::Sql => write!(f, "SQL {}", self.text),
        }
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
    async fn what_one_that_reads_ahead_expects_is_told_to_the_next_until_it_has_it() {
        let lane = Planner::default().lane(GroupId(1), TopicId(1));
        let claimed = Claimed { again: 2, new: [(QueueId(3), 4)].into() };
        let expected = lane.expect(claimed.clone());
        assert_eq!(lane.expected(8), (claimed.clone(), QueueId(0)));
        let other = lane.expect(Claimed { again: 1, new: [(QueueId(0), 1)].into() });
        let both = Claimed { again: 3, new: [(QueueId(0), 1), (QueueId(3), 4)].into() };
        assert_eq!(lane.expected(8), (both, QueueId(1)));
        let released = lane.released();
        drop(other);
        released.await;
        assert_eq!(lane.expected(8).0, claimed);
        // One that expects nothing wakes nobody, or two that wait would wake each other for ever.
        assert!(lane.expect(Claimed::default()).is_none());
        drop(expected);
        assert_eq!(lane.expected(8).0, Claimed::default());
    }

    #[test]
    fn consumers_that_filter_differently_are_noticed_once() {
        let lane = Planner::default().lane(GroupId(1), TopicId(1));
        let tag = |text: &str| Expression { kind: FilterKind::Tag, text: text.to_owned() };
        assert_eq!(lane.note("a", Some(&tag("A"))), None);
        assert_eq!(lane.note("b", Some(&tag("A"))), None);
        assert_eq!(lane.note("c", None), Some(("a".to_owned(), Some(tag("A")))));
        assert_eq!(lane.note("b", Some(&tag("A"))), None, "once is enough");
        assert_eq!(tag("A").to_string(), "tags A");
    }

    #[tokio::test]
    async fn what_was_read_for_one_filter_is_not_used_for_another() {
        let lane = Planner::default().lane(GroupId(1), TopicId(1));
        let tag = |text: &str| Expression { kind: FilterKind::Tag, text: text.to_owned() };
        drop(lane.read_ahead(Some(&tag("A"))).await);
        assert_eq!(lane.read_ahead(Some(&tag("A"))).await.expression, Some(tag("A")));
        assert_eq!(lane.read_ahead(Some(&tag("B"))).await.expression, Some(tag("B")));
        assert_eq!(lane.read_ahead(None).await.expression, None);
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
