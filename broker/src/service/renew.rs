//! Renewal of what push consumers hold: RocketMQ's clients give no invisible duration there and expect the server to keep the message
//! hidden for as long as they work on it.
//!
//! A push receive hides its messages for 60 s. The node that served it keeps their receipts and, from 10 s before the time runs out,
//! has the leader hide them for 60 s more without changing the receipt, as long as the client is heard of (heartbeats come every
//! 10 s) and for 3 h at most. It stops when the message is acked or given back through this node, or the leader says that the
//! delivery is over. The notes are this node's own: if it dies, or the client moves to another node, messages still being worked on
//! come back within 60 s, which is the at-least-once that push consumers know. Survives any change of leader.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Service, forward::Until};
use crate::leader::calls;

/// Invisible duration of a push receive, and of each renewal.
pub(crate) const INVISIBLE: Duration = Duration::from_secs(60);
/// A renewal is due this long before the time runs out.
const AHEAD: Duration = Duration::from_secs(10);
/// How often renewals are looked for.
const TICK: Duration = Duration::from_secs(2);
/// Nothing is renewed for longer than this after it was handed out.
const LONGEST: Duration = Duration::from_secs(3 * 60 * 60);
/// A client silent for longer is taken for gone.
const SILENCE: Duration = Duration::from_secs(40);
/// Receipts renewed by one call.
const BATCH: usize = 256;

/// Deliveries to renew. Times are monotonic.
pub(crate) struct Renewals {
    notes: Mutex<Notes>,
    max: usize,
}

#[derive(Default)]
struct Notes {
    /// By the time of the next renewal and a ticket that makes it unique.
    due: BTreeMap<(Duration, u64), Note>,
    /// From receipt to its place in `due`.
    places: HashMap<String, (Duration, u64)>,
    tickets: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    handle: String,
    client_id: Arc<str>,
    group: Arc<str>,
    delivered: Duration,
}

impl Renewals {
    /// Notes for at most `max` deliveries; more are not renewed.
    pub fn new(max: usize) -> Self {
        Self { notes: Mutex::default(), max }
    }

    /// Messages were handed out to a push consumer.
    pub fn add<'a>(&self, client_id: &str, group: &str, handles: impl Iterator<Item = &'a str>, now: Duration) {
        let (client_id, group): (Arc<str>, Arc<str>) = (client_id.into(), group.into());
        let mut notes = self.lock();
        for handle in handles {
            if notes.places.len() >= self.max {
                return;
            }
            let note =
                Note { handle: handle.to_owned(), client_id: client_id.clone(), group: group.clone(), delivered: now };
            notes.put(note, now + INVISIBLE - AHEAD);
        }
    }

    /// The delivery is over, or its consumer has taken its timing into its own hands.
    pub fn remove(&self, handle: &str) {
        let mut notes = self.lock();
        if let Some(place) = notes.places.remove(handle) {
            notes.due.remove(&place);
        }
    }

    /// Takes out what is due at `now`, at most `BATCH`; `is_heard` says whether a client is there. What is not put back is forgotten.
    fn take_due(&self, now: Duration, is_heard: impl Fn(&str) -> bool) -> Vec<Note> {
        let mut notes = self.lock();
        let mut due = Vec::new();
        while due.len() < BATCH {
            let Some(entry) = notes.due.first_entry().filter(|entry| entry.key().0 <= now) else { break };
            let note = entry.remove();
            notes.places.remove(&note.handle);
            if now.saturating_sub(note.delivered) < LONGEST && is_heard(&note.client_id) {
                due.push(note);
            }
        }
        due
    }

    fn put_back(&self, note: Note, next: Duration) {
        self.lock().put(note, next);
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("no panic while held")
    }
}

impl Notes {
    fn put(&mut self, note: Note, next: Duration) {
        self.tickets += 1;
        let place = (next, self.tickets);
        if let Some(before) = self.places.insert(note.handle.clone(), place) {
            self.due.remove(&before);
        }
        self.due.insert(place, note);
    }
}

impl Service {
    /// Renews until `shutdown`.
    pub async fn run_renewals(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = self.clock.monotonic();
            loop {
                let due = self.renewals.take_due(now, |client| self.sessions.is_heard(client, now, SILENCE));
                if due.is_empty() {
                    break;
                }
                self.renew(due, now).await;
            }
        }
    }

    async fn renew(&self, due: Vec<Note>, now: Duration) {
        let handles = due.iter().map(|note| note.handle.clone()).collect();
        let invisible_ms = u64::try_from(INVISIBLE.as_millis()).unwrap_or(u64::MAX);
        let answer = Instant::now() + TICK;
        let renewed = self.dispatch.call(calls::Renew { handles, invisible_ms }, Until { answer, wait: answer }).await;
        match renewed {
            Ok(renewed) => {
                let still = due.into_iter().zip(renewed.renewed).filter(|(_, renewed)| *renewed);
                for (note, _) in still {
                    self.metrics.renewed.add(1);
                    self.renewals.put_back(note, now + INVISIBLE - AHEAD);
                }
            }
            Err(undone) => {
                debug!(?undone, "deliveries not renewed, trying again");
                for note in due {
                    self.renewals.put_back(note, now + TICK);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn handles(notes: &[Note]) -> Vec<&str> {
        notes.iter().map(|note| note.handle.as_str()).collect()
    }

    #[test]
    fn a_delivery_is_due_ten_seconds_before_its_time_runs_out() {
        let renewals = Renewals::new(10);
        renewals.add("c", "g", ["a", "b"].into_iter(), s(0));
        assert!(renewals.take_due(s(49), |_| true).is_empty());
        renewals.remove("a");
        let due = renewals.take_due(s(50), |_| true);
        assert_eq!(handles(&due), ["b"], "what was acked is not renewed");
        renewals.put_back(due[0].clone(), s(100));
        assert!(renewals.take_due(s(99), |_| true).is_empty());
        assert_eq!(handles(&renewals.take_due(s(100), |_| true)), ["b"]);
    }

    #[test]
    fn a_silent_client_and_three_hours_end_renewal() {
        let renewals = Renewals::new(10);
        renewals.add("gone", "g", ["a"].into_iter(), s(0));
        assert!(renewals.take_due(s(60), |_| false).is_empty());
        assert!(renewals.take_due(s(60), |_| true).is_empty(), "forgotten");
        renewals.add("c", "g", ["b"].into_iter(), s(0));
        assert!(renewals.take_due(LONGEST, |_| true).is_empty());
    }

    #[test]
    fn notes_are_bounded_and_a_receipt_has_one() {
        let renewals = Renewals::new(2);
        renewals.add("c", "g", ["a", "b", "x"].into_iter(), s(0));
        assert_eq!(handles(&renewals.take_due(s(60), |_| true)), ["a", "b"]);
        renewals.add("c", "g", ["a"].into_iter(), s(0));
        renewals.add("c", "g", ["a"].into_iter(), s(5));
        assert_eq!(renewals.take_due(s(99), |_| true).len(), 1);
    }
}
