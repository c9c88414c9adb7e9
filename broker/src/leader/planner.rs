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
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::filter::FilterKind;
use crate::{
    machine::{GroupId, QueueId, TopicId},
    scan::{Claimed, Scans},
};

/// Lanes kept before those without users are dropped.
const LANES_KEPT: usize = 4096;

/// Consumers told apart per group and topic; of more, the one silent for longest is forgotten.
const USERS_MAX: usize = 1024;
/// A consumer that says the same again within this time is not compared with the others again.
const FRESH: Duration = Duration::from_secs(1);
/// A consumer not heard of for so long is gone: twice the longest long poll that clients use.
const SILENCE: Duration = Duration::from_secs(60);

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

/// A consumer that was heard of lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Its filter; `None` if it wants every message.
    pub expression: Option<Expression>,
    /// It pulls, so its filter is nobody else's matter.
    pub pulls: bool,
    /// When.
    pub heard: Instant,
}

/// A consumer that filters otherwise than another one of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Differs {
    /// The other's client id.
    pub other: String,
    /// And its filter.
    pub expression: Option<Expression>,
    /// Nobody was told of such a pair in this lane yet.
    pub first: bool,
}

#[derive(Default)]
struct LaneState {
    /// Messages that receives under way expect to get.
    claimed: u64,
    /// Where the next receive begins.
    first_queue: u16,
    /// Messages that receives which read ahead expect to get.
    expected: Claimed,
    /// By client id; those silent for [`SILENCE`] are as good as gone.
    users: BTreeMap<String, User>,
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

    /// The consumers of a group that were heard of lately, by topic and client id.
    pub fn users(&self, group: GroupId, now: Instant) -> Vec<(TopicId, Vec<(String, User)>)> {
        self.lanes_of(group).into_iter().map(|(topic, lane)| (topic, lane.users(now))).collect()
    }

    /// A consumer of the group has gone.
    pub fn forget(&self, group: GroupId, client_id: &str) {
        for (_, lane) in self.lanes_of(group) {
            lock(&lane.state).users.remove(client_id);
        }
    }

    fn lanes_of(&self, group: GroupId) -> Vec<(TopicId, Arc<Lane>)> {
        let of_group = (group, TopicId(0))..=(group, TopicId(u32::MAX));
        lock(&self.lanes).range(of_group).map(|((_, topic), lane)| (*topic, lane.clone())).collect()
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

    /// Takes note of a consumer that receives with this filter, or is about to. One that is heard of and filters otherwise, if there is any.
    /// With `unless_it_differs` it is not taken note of then.
    pub fn note(
        &self,
        client_id: &str,
        expression: Option<&Expression>,
        now: Instant,
        unless_it_differs: bool,
    ) -> Option<Differs> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let same = |user: &&User| !user.pulls && user.expression.as_ref() == expression;
        let known = state.users.get(client_id).filter(same);
        if known.is_some_and(|user| now.saturating_duration_since(user.heard) < FRESH) {
            // Whoever differs was compared with it when that one came.
            return None;
        }
        state.users.retain(|_, user| now.saturating_duration_since(user.heard) < SILENCE);
        let differs = |(other, user): &(&String, &User)| {
            other.as_str() != client_id && !user.pulls && user.expression.as_ref() != expression
        };
        let other = state.users.iter().find(differs);
        let differs = other.map(|(other, user)| Differs {
            other: other.clone(),
            expression: user.expression.clone(),
            first: !std::mem::replace(&mut state.warned, true),
        });
        if differs.is_none() || !unless_it_differs {
            state.hear(client_id, User { expression: expression.cloned(), pulls: false, heard: now });
        }
        differs
    }

    /// Takes note of a consumer that pulls.
    pub fn note_pull(&self, client_id: &str, expression: Option<&Expression>, now: Instant) {
        let user = User { expression: expression.cloned(), pulls: true, heard: now };
        lock(&self.state).hear(client_id, user);
    }

    /// The consumers that were heard of lately, by client id.
    pub fn users(&self, now: Instant) -> Vec<(String, User)> {
        let users = &lock(&self.state).users;
        let heard = users.iter().filter(|(_, user)| now.saturating_duration_since(user.heard) < SILENCE);
        heard.map(|(client_id, user)| (client_id.clone(), user.clone())).collect()
    }

    /// Completes when a claim was given back after this call.
    pub fn released(&self) -> tokio::sync::futures::Notified<'_> {
        self.released.notified()
    }
}

impl LaneState {
    fn hear(&mut self, client_id: &str, user: User) {
        if self.users.len() >= USERS_MAX && !self.users.contains_key(client_id) {
            let silent = self.users.iter().min_by_key(|(_, user)| user.heard).map(|(id, _)| id.clone());
            silent.and_then(|id| self.users.remove(&id));
        }
        self.users.insert(client_id.to_owned(), user);
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

    #[tokio::test(start_paused = true)]
    async fn consumers_that_filter_differently_are_noticed_and_told_once_for_as_long_as_they_are_heard() {
        let lane = Planner::default().lane(GroupId(1), TopicId(1));
        let tag = |text: &str| Expression { kind: FilterKind::Tag, text: text.to_owned() };
        let note = |id: &str, filter: Option<&Expression>| lane.note(id, filter, Instant::now(), false);
        assert_eq!(note("a", Some(&tag("A"))), None);
        assert_eq!(note("b", Some(&tag("A"))), None);
        assert_eq!(note("b", Some(&tag("B"))).map(|differs| (differs.other, differs.first)), Some(("a".into(), true)));
        assert_eq!(note("a", Some(&tag("A"))), None, "it was compared a moment ago");
        tokio::time::advance(FRESH).await;
        let differs = note("a", Some(&tag("A"))).expect("b still wants B");
        assert_eq!((differs.expression, differs.first), (Some(tag("B")), false));
        lane.note_pull("p", None, Instant::now());
        assert_eq!(note("b", Some(&tag("A"))), None, "who pulls is nobody's matter");
        let users: Vec<_> = lane.users(Instant::now()).into_iter().map(|(id, user)| (id, user.pulls)).collect();
        assert_eq!(users, [("a".into(), false), ("b".into(), false), ("p".into(), true)]);
        tokio::time::advance(SILENCE).await;
        assert_eq!(note("c", None), None, "the others are gone");
        assert_eq!(lane.users(Instant::now()).len(), 1);
        assert_eq!(tag("A").to_string(), "tags A");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_refused_is_not_taken_note_of_and_the_longest_silent_is_forgotten_first() {
        let planner = Planner::default();
        let lane = planner.lane(GroupId(1), TopicId(1));
        let sql = Expression { kind: FilterKind::Sql, text: "a > 1".to_owned() };
        assert_eq!(lane.note("a", None, Instant::now(), true), None);
        assert!(lane.note("b", Some(&sql), Instant::now(), true).is_some());
        assert_eq!(lane.note("a", Some(&sql), Instant::now(), true), None, "alone one may change one's mind");
        for number in 0..USERS_MAX {
            tokio::time::advance(Duration::from_millis(1)).await;
            lane.note_pull(&format!("p{number}"), None, Instant::now());
        }
        let users = planner.users(GroupId(1), Instant::now());
        assert_eq!((users.len(), users[0].0, users[0].1.len()), (1, TopicId(1), USERS_MAX));
        assert!(users[0].1.iter().all(|(id, _)| id != "a"));
        assert!(planner.users(GroupId(2), Instant::now()).is_empty());
        planner.forget(GroupId(2), "p7");
        planner.forget(GroupId(1), "p7");
        assert_eq!(lane.users(Instant::now()).len(), USERS_MAX - 1);
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
