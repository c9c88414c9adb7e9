//! What this node has seen of changes of leadership: who followed whom, why, and what it cost. The last few are kept, in memory.
//!
//! Each node tells its own story. A node that was down or cut off has gaps, and two nodes may differ by a heartbeat in what
//! they measured; the new leader's story is the best one.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::gate::Reign;
use crate::types::{NodeId, Term};

/// Changes that are kept.
const KEPT: usize = 64;

/// Why leadership changed, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The leader's process was seen to be gone: the fast path.
    Crash,
    /// Nothing was heard of the leader for an election timeout.
    Timeout,
    /// It was handed over.
    Transfer,
    /// The first leader since this node started.
    Start,
    /// This node did not see the election.
    Unknown,
}

/// One change of leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderChange {
    /// When this node learned of the new leader.
    pub at: Instant,
    /// Term of the new leader.
    pub term: Term,
    /// The new leader.
    pub leader: NodeId,
    /// Who led before, if this node knows.
    pub previous: Option<NodeId>,
    /// Why.
    pub cause: Cause,
    /// How long the old leader had been silent when the election began. `None`: this node led itself, or knows nothing of it.
    pub heartbeat_age: Option<Duration>,
    /// From the first vote that was asked to the new leader.
    pub election: Option<Duration>,
    /// From the old leader's last word to the first entry of the new leader that was applied here. `None`: not yet, or nobody led before.
    pub without_leader: Option<Duration>,
}

/// What is known of an election when its winner appears.
pub(super) struct Seen {
    pub reign: Reign,
    pub previous: Option<Reign>,
    /// When the previous leader spoke as one last.
    pub last_word: Option<Instant>,
    /// When a vote for the new term was first asked, and whether in spite of leases.
    pub campaign: Option<(Instant, bool)>,
    /// The previous leader's process was seen to be gone.
    pub is_crash: bool,
    pub led_itself: bool,
}

/// The last changes.
#[derive(Default)]
pub(super) struct History {
    changes: Mutex<VecDeque<(LeaderChange, Option<Instant>)>>,
}

impl History {
    /// Notes a new leader.
    pub(super) fn push(&self, seen: &Seen) {
        let now = Instant::now();
        let cause = match (seen.previous, seen.campaign) {
            (None, _) => Cause::Start,
            (Some(_), Some((_, true))) if seen.is_crash => Cause::Crash,
            (Some(_), Some((_, true))) => Cause::Transfer,
            (Some(_), Some((_, false))) => Cause::Timeout,
            (Some(_), None) => Cause::Unknown,
        };
        let began = seen.campaign.map(|(at, _)| at);
        let age = seen.last_word.zip(began).map(|(word, began)| began.saturating_duration_since(word));
        let change = LeaderChange {
            at: now,
            term: seen.reign.0,
            leader: seen.reign.1,
            previous: seen.previous.map(|(_, node)| node),
            cause,
            heartbeat_age: age.filter(|_| !seen.led_itself),
            election: began.map(|began| now.saturating_duration_since(began)),
            without_leader: None,
        };
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() == KEPT {
            changes.pop_front();
        }
        changes.push_back((change, seen.last_word));
    }

    /// Notes that an entry of this leadership is applied. False if that was known.
    pub(super) fn applied(&self, reign: Reign) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((change, last_word)) = changes.back_mut()
            && (change.term, change.leader) == reign
            && change.without_leader.is_none()
        {
            change.without_leader = last_word.take().map(|word| word.elapsed());
        }
    }

    /// Oldest first.
    pub(super) fn list(&self) -> Vec<LeaderChange> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.iter().map(|(change, _)| *change).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(term: u64) -> Seen {
        let reign = (Term(term), NodeId::new(1, 1));
        Seen { reign, previous: None, last_word: None, campaign: None, is_crash: false, led_itself: false }
    }

    #[tokio::test(start_paused = true)]
    async fn causes_and_times_follow_from_what_was_seen() {
        let history = History::default();
        history.push(&seen(1));
        let word = Instant::now();
        tokio::time::advance(Duration::from_millis(30)).await;
        let began = Instant::now();
        tokio::time::advance(Duration::from_millis(12)).await;
        let previous = Some((Term(1), NodeId::new(1, 1)));
        let known = |term, by_transfer, is_crash| Seen {
            previous,
            last_word: Some(word),
            campaign: Some((began, by_transfer)),
            is_crash,
            ..seen(term)
        };
        history.push(&known(2, true, true));
        tokio::time::advance(Duration::from_millis(8)).await;
        history.applied((Term(2), NodeId::new(1, 1)));
        tokio::time::advance(Duration::from_millis(500)).await;
        history.applied((Term(2), NodeId::new(1, 1)));
        history.push(&known(3, true, false));
        history.push(&known(4, false, true));
        history.push(&Seen { previous, ..seen(5) });
        let list = history.list();
        let causes: Vec<Cause> = list.iter().map(|change| change.cause).collect();
        assert_eq!(causes, [Cause::Start, Cause::Crash, Cause::Transfer, Cause::Timeout, Cause::Unknown]);
        let crash = list[1];
        assert_eq!(crash.heartbeat_age, Some(Duration::from_millis(30)));
        assert_eq!(crash.election, Some(Duration::from_millis(12)));
        assert_eq!(crash.without_leader, Some(Duration::from_millis(50)), "counted once");
        for term in 6..200 {
            history.push(&seen(term));
        }
        assert_eq!(history.list().len(), KEPT);
    }
}
