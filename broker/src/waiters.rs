//! Long polls: receives that found nothing and wait for something to hand out.
//!
//! A wait is registered per (topic, group) when it is made, before the caller looks whether there is something, so
//! nothing that arrives in between is missed. When `n` messages arrive in a topic, each of its groups wakes its `n`
//! longest waiting receives and no more: every group gets every message, and within a group a message is for one. A
//! receive that was woken and then dropped passes its turn on. Time running out wakes nobody here; the caller knows
//! [`crate::machine::Machine::next_timeout`] and sets its own timer.
//!
//! ```text
//!   wait(topic, group) ──▶ Waiter (a future, once)        [(topic, group)] ─▶ oldest … newest
//!   appended(topic, n) ──▶ wakes min(n, waiting) per group
//! ```
//! Pulls wait for a queue and share nothing: when something arrives in it, all of them wake.
//! Only the leader has waiting receives, so on the other nodes waking finds an empty map. May wake for nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use quorate_proto::time::Timestamp;
use tokio::sync::{Notify, watch};

use crate::machine::{GroupId, QueueId, TopicId};

/// Long polls that wait for something to hand out. Cheap to clone.
#[derive(Clone)]
pub struct Waiters {
    inner: Arc<Inner>,
}

struct Inner {
    waiting: Mutex<Waiting>,
    topics: watch::Sender<u64>,
    alarm: Alarm,
}

/// Rings when something becomes ready sooner than the one who waits for time knows.
struct Alarm {
    /// Log time until which he sleeps; the end of time while he looks, so that nothing is missed.
    sleeps_until: AtomicU64,
    ring: Notify,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Line {
    /// Something for one of a group's receives.
    Group(TopicId, GroupId),
    /// Something in a queue, for everybody who pulls from it.
    Queue(TopicId, QueueId),
}

#[derive(Default)]
struct Waiting {
    lines: BTreeMap<Line, VecDeque<Ticket>>,
    /// Registered and neither woken nor dropped, or woken and not yet seen by their future.
    tickets: BTreeMap<Ticket, State>,
    next: u64,
}

type Ticket = u64;

enum State {
    /// Stands in its line; the waker of the last poll, if it was polled.
    Waiting(Option<Waker>),
    /// Taken out of its line; the future has not noticed yet.
    Woken,
}

/// One waiting receive; resolves once, when there may be something to hand out. Dropping it is fine at any time.
pub struct Waiter {
    inner: Arc<Inner>,
    line: Line,
    ticket: Ticket,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        let alarm = Alarm { sleeps_until: AtomicU64::new(u64::MAX), ring: Notify::new() };
        Self { inner: Arc::new(Inner { waiting: Mutex::default(), topics: watch::Sender::new(0), alarm }) }
    }

    /// Waits for something new for `group` in `topic`. Registered when this returns: look for messages afterwards, then
    /// await. Make a new one for every round.
    pub fn wait(&self, topic: TopicId, group: GroupId) -> Waiter {
        self.wait_in(Line::Group(topic, group))
    }

    /// The same for something new in a queue, whoever else waits for it.
    pub fn wait_for_queue(&self, topic: TopicId, queue: QueueId) -> Waiter {
        self.wait_in(Line::Queue(topic, queue))
    }

    fn wait_in(&self, line: Line) -> Waiter {
        let mut waiting = self.inner.lock();
        let ticket = waiting.next;
        waiting.next += 1;
        waiting.tickets.insert(ticket, State::Waiting(None));
        waiting.lines.entry(line).or_default().push_back(ticket);
        Waiter { inner: self.inner.clone(), line, ticket }
    }

    /// How many receives wait.
    pub fn count(&self) -> usize {
        self.inner.lock().lines.values().map(VecDeque::len).sum()
    }

    /// Counts every change of the set or shape of topics.
    pub fn topics_changed(&self) -> watch::Receiver<u64> {
        self.inner.topics.subscribe()
    }

    /// For the one task that waits for log time. Call it, look what is ready and when the next thing will be, tell
    /// [`Waiters::sleep_until`], then await [`Waiters::sooner`] beside a timer: nothing scheduled since this call is missed.
    pub(crate) fn awake(&self) {
        self.inner.alarm.sleeps_until.store(u64::MAX, Ordering::SeqCst);
    }

    /// What is scheduled from here on and not before `until` wakes nobody.
    pub(crate) fn sleep_until(&self, until: Timestamp) {
        self.inner.alarm.sleeps_until.store(until.0, Ordering::SeqCst);
    }

    /// Completes when something was scheduled sooner than the sleeper knows.
    pub(crate) fn sooner(&self) -> impl Future<Output = ()> + '_ {
        self.inner.alarm.ring.notified()
    }

    /// Wakes every waiting receive, so that it looks again at the world: leadership was lost, or the node stops.
    pub fn wake_all(&self) {
        let first = Line::Group(TopicId(0), GroupId(0));
        self.inner.wake(first, Line::Queue(TopicId(u32::MAX), QueueId(u16::MAX)), usize::MAX);
    }

    /// `count` messages came into `topic`.
    pub(crate) fn appended(&self, topic: TopicId, count: usize) {
        self.inner.wake(Line::Group(topic, GroupId(0)), Line::Group(topic, GroupId(u32::MAX)), count);
    }

    /// Something came into a queue.
    pub(crate) fn appended_to(&self, topic: TopicId, queue: QueueId) {
        self.inner.wake(Line::Queue(topic, queue), Line::Queue(topic, queue), usize::MAX);
    }

    /// Something became visible to one group in another way, or sooner than it was going to.
    pub(crate) fn visible(&self, topic: TopicId, group: GroupId) {
        self.inner.wake(Line::Group(topic, group), Line::Group(topic, group), 1);
    }

    /// Something becomes ready at this time, by log time.
    pub(crate) fn scheduled(&self, at: Timestamp) {
        let alarm = &self.inner.alarm;
        if at.0 < alarm.sleeps_until.load(Ordering::SeqCst) {
            alarm.ring.notify_one();
        }
    }

    /// The set or shape of topics has changed.
    pub(crate) fn topics_have_changed(&self) {
        self.inner.topics.send_modify(|version| *version += 1);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing below can panic half way through a change.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, first: Line, last: Line, count: usize) {
        let mut waiting = self.lock();
        if waiting.lines.is_empty() {
            return;
        }
        let lines: Vec<Line> = waiting.lines.range(first..=last).map(|(line, _)| *line).collect();
        let wakers: Vec<Waker> = lines.into_iter().flat_map(|line| waiting.call(line, count)).collect();
        drop(waiting);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Waiting {
    /// Takes the first `count` out of a line and says whom to wake once the lock is released.
    fn call(&mut self, line: Line, count: usize) -> Vec<Waker> {
        let Some(tickets) = self.lines.get_mut(&line) else { return Vec::new() };
        let called: Vec<Ticket> = tickets.drain(..count.min(tickets.len())).collect();
        if tickets.is_empty() {
            self.lines.remove(&line);
        }
        let woken = called.into_iter().filter_map(|ticket| match self.tickets.insert(ticket, State::Woken) {
            Some(State::Waiting(waker)) => waker,
            Some(State::Woken) | None => None,
        });
        woken.collect()
    }
}

impl Future for Waiter {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.inner.lock();
        match waiting.tickets.get_mut(&self.ticket) {
            Some(State::Waiting(waker)) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
            Some(State::Woken) => {
                waiting.tickets.remove(&self.ticket);
                Poll::Ready(())
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.inner.lock();
        match waiting.tickets.remove(&self.ticket) {
            Some(State::Waiting(_)) => {
                let line = waiting.lines.get_mut(&self.line);
                let tickets = line.expect("a ticket that waits stands in its line");
                tickets.retain(|ticket| *ticket != self.ticket);
                if tickets.is_empty() {
                    waiting.lines.remove(&self.line);
                }
            }
            Some(State::Woken) => {
                let wakers = waiting.call(self.line, 1);
                drop(waiting);
                wakers.into_iter().for_each(Waker::wake);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const T: TopicId = TopicId(1);
    const G: GroupId = GroupId(1);

    fn woken(waiters: &mut [Waiter]) -> Vec<bool> {
        waiters.iter_mut().map(|waiter| waiter.now_or_never().is_some()).collect()
    }

    #[test]
    fn as_many_receives_wake_as_messages_arrive_and_the_oldest_first() {
        let waiters = Waiters::new();
        let mut first: Vec<Waiter> = (0..3).map(|_| waiters.wait(T, G)).collect();
        waiters.appended(T, 2);
        assert_eq!(woken(&mut first), [true, true, false]);
        assert_eq!(waiters.count(), 1);
        waiters.appended(T, 100);
        assert!(first.pop().is_some_and(|waiter| waiter.now_or_never().is_some()));
        assert_eq!(waiters.count(), 0);
    }

    #[test]
    fn every_group_of_the_topic_is_told_and_no_other_topic() {
        let waiters = Waiters::new();
        let mut all = [waiters.wait(T, G), waiters.wait(T, GroupId(2)), waiters.wait(TopicId(2), G)];
        waiters.appended(T, 1);
        assert_eq!(woken(&mut all), [true, true, false]);
    }

    #[test]
    fn a_message_between_looking_and_waiting_is_not_missed() {
        let waiters = Waiters::new();
        let waiter = waiters.wait(T, G);
        waiters.appended(T, 1);
        assert!(waiter.now_or_never().is_some());
    }

    #[test]
    fn a_woken_receive_that_is_dropped_passes_its_turn_on() {
        let waiters = Waiters::new();
        let gone = waiters.wait(T, G);
        let mut next = waiters.wait(T, G);
        assert!((&mut next).now_or_never().is_none());
        waiters.appended(T, 1);
        drop(gone);
        assert!(next.now_or_never().is_some());
    }

    #[test]
    fn nothing_is_left_of_receives_that_went_away() {
        let waiters = Waiters::new();
        let mut all: Vec<Waiter> = (0..4).map(|_| waiters.wait(T, G)).collect();
        all.remove(1);
        waiters.appended(T, 1);
        assert!((&mut all[0]).now_or_never().is_some());
        drop(all);
        let waiting = waiters.inner.lock();
        assert!(waiting.lines.is_empty() && waiting.tickets.is_empty());
    }

    #[test]
    fn everybody_who_pulls_from_a_queue_is_told_and_nobody_is_told_for_another_s_sake() {
        const Q: QueueId = QueueId(3);
        let waiters = Waiters::new();
        let mut pulls = [
            waiters.wait_for_queue(T, Q),
            waiters.wait_for_queue(T, Q),
            waiters.wait_for_queue(T, QueueId(4)),
            waiters.wait_for_queue(TopicId(2), Q),
            waiters.wait(T, G),
        ];
        waiters.appended_to(T, Q);
        assert_eq!(woken(&mut pulls), [true, true, false, false, false]);
        waiters.appended(T, 9);
        assert!((&mut pulls[2]).now_or_never().is_none(), "a receive's message");
        assert!((&mut pulls[4]).now_or_never().is_some());
        waiters.wake_all();
        assert!((&mut pulls[2]).now_or_never().is_some() && (&mut pulls[3]).now_or_never().is_some());
    }

    #[test]
    fn changes_of_topics_are_counted() {
        let waiters = Waiters::new();
        let mut changes = waiters.topics_changed();
        assert!(!changes.has_changed().expect("the sender lives"));
        waiters.topics_have_changed();
        assert!(changes.has_changed().expect("the sender lives"));
        assert_eq!(*changes.borrow_and_update(), 1);
    }
}
