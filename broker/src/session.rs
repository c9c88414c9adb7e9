//! The clients this node has heard of lately.
//!
//! No call depends on a session held by the node that serves it: clients change nodes at will and reopen their Telemetry stream late
//! or never. This registry only answers "is that client still there?", for renewing the deliveries of push consumers. Bounded; the
//! client silent for longest is forgotten first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

/// What a client is written in, as far as it matters for what it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// Node, which calls itself `HTTP`.
    Node,
    /// Rust, which spreads calls over all addresses.
    Rust,
    /// Everything else, unknown ones included.
    Other,
}

impl Language {
    /// From the `x-mq-language` header.
    pub fn from_header(text: &str) -> Self {
        match text {
            "HTTP" | "NODE_JS" => Self::Node,
            "RUST" => Self::Rust,
            _ => Self::Other,
        }
    }
}

/// The registry of one node.
pub(crate) struct Sessions {
    seen: Mutex<Seen>,
    max: usize,
    idle_max: Duration,
}

#[derive(Default)]
struct Seen {
    /// When a client was last heard of, and the ticket of that hearing.
    clients: HashMap<String, (Duration, u64)>,
    /// The same by age: tickets grow with time.
    by_age: BTreeMap<u64, String>,
    tickets: u64,
}

impl Sessions {
    /// A registry of at most `max` clients, each forgotten after `idle_max` of silence.
    pub fn new(max: usize, idle_max: Duration) -> Self {
        Self { seen: Mutex::default(), max, idle_max }
    }

    /// A client was heard of at `now` (monotonic). Returns how many are known.
    pub fn touch(&self, client_id: &str, now: Duration) -> usize {
        let mut seen = self.lock();
        seen.remove(client_id);
        seen.tickets += 1;
        let ticket = seen.tickets;
        seen.clients.insert(client_id.to_owned(), (now, ticket));
        seen.by_age.insert(ticket, client_id.to_owned());
        let expired = now.saturating_sub(self.idle_max);
        while let Some((_, oldest)) = seen.by_age.first_key_value() {
            let (at, _) = seen.clients[oldest];
            if seen.clients.len() <= self.max && (at >= expired || now < self.idle_max) {
                break;
            }
            let oldest = oldest.clone();
            seen.remove(&oldest);
        }
        seen.clients.len()
    }

    /// The client says goodbye.
    pub fn remove(&self, client_id: &str) {
        self.lock().remove(client_id);
    }

    /// The client was heard of within `silence` before `now`.
    pub fn is_heard(&self, client_id: &str, now: Duration, silence: Duration) -> bool {
        self.lock().clients.get(client_id).is_some_and(|(at, _)| now.saturating_sub(*at) <= silence)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while held")
    }
}

impl Seen {
    fn remove(&mut self, client_id: &str) {
        if let Some((_, ticket)) = self.clients.remove(client_id) {
            self.by_age.remove(&ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_client_is_there_until_it_is_silent_or_says_goodbye() {
        let sessions = Sessions::new(10, s(120));
        sessions.touch("a", s(0));
        assert!(sessions.is_heard("a", s(30), s(30)));
        assert!(!sessions.is_heard("a", s(31), s(30)));
        sessions.touch("a", s(40));
        assert!(sessions.is_heard("a", s(60), s(30)));
        sessions.remove("a");
        assert!(!sessions.is_heard("a", s(60), s(30)));
        assert!(!sessions.is_heard("never", s(0), s(30)));
    }

    #[test]
    fn the_silent_and_then_the_oldest_are_forgotten() {
        let sessions = Sessions::new(3, s(120));
        for (at, client) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(sessions.touch(client, s(at as u64)), at + 1);
        }
        sessions.touch("a", s(10));
        assert_eq!(sessions.touch("d", s(11)), 3);
        assert!(!sessions.is_heard("b", s(11), s(60)), "b was silent for longest");
        assert!(sessions.is_heard("a", s(11), s(60)));
        assert_eq!(sessions.touch("e", s(500)), 1, "all others were silent for more than 120 s");
    }
}
