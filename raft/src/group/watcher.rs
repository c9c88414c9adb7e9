//! Watches this node and its peers: who leads, whether this node may serve, whether it is cut off, whether it has failed.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use openraft::{Instant as _, ServerState, async_runtime::watch::WatchReceiver};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use super::{Inner, LeaderView, gate::Reign, history::Seen};
use crate::{
    metrics::Tenure,
    peer::{Peer, Peers},
    runtime::TokioInstant,
    types::{NodeId, Term},
};

/// Longest election timeouts without a word after which a leader is no leader any more. openraft itself refuses proposals
/// after one; this view waits longer, so that a hiccup does not look like a change of leadership.
const PATIENCE: u32 = 2;

/// Keeps the leader view and the list of voters up to date until the node stops.
pub(super) async fn watch_leader(
    inner: Arc<Inner>,
    view: watch::Sender<LeaderView>,
    voters: watch::Sender<Vec<NodeId>>,
) {
    let mut server = inner.raft.server_metrics();
    let mut data = inner.raft.data_metrics();
    let look = inner.config.election_timeout.0 / 2;
    let mut tenure = Tenure::new(Instant::now());
    let mut past = Past::default();
    let mut members_at = None;
    let mut awake = Awake::new(Instant::now());
    loop {
        let now = Instant::now();
        awake.look(now, inner.config.election_timeout.1);
        let isolated = is_isolated(&inner, now.saturating_duration_since(awake.since));
        let (next, quorum_at, is_waiting, now_voters) = {
            let server = server.borrow_and_update();
            if *server.membership_config.log_id() != members_at {
                members_at = *server.membership_config.log_id();
                for (id, node) in server.membership_config.membership().nodes() {
                    inner.peers.learn(id.number(), &node.peer_address);
                }
            }
            let (applied, quorum_at) = {
                let data = data.borrow_and_update();
                (data.last_applied, data.last_quorum_acked.map(|at| *at))
            };
            let term = Term(server.vote.leader_id.term);
            let voters = server.membership_config.membership().voter_ids().count();
            let leader = server.current_leader.filter(|leader| match *leader == inner.me {
                true => server.state == ServerState::Leader && has_quorum(&inner, voters, quorum_at),
                false => inner.peers.is_led_by(term, *leader, inner.config.election_timeout.1 * PATIENCE),
            });
            let is_leader = leader == Some(inner.me);
            past.see(&inner, term, leader);
            // An entry of this very leadership is applied, hence everything from before it.
            let has_applied = applied.is_some_and(|id| id.leader_id == server.vote.leader_id);
            if let Some(id) = applied {
                inner.history.applied((Term(id.leader_id.term), id.leader_id.node_id));
            }
            let voters: Vec<NodeId> = server.membership_config.membership().voter_ids().collect();
            // Who is a majority alone needs nobody.
            let isolated = isolated && voters != [inner.me];
            let next = LeaderView { term, leader, serving: is_leader && has_applied, isolated };
            // What makes an elected leader serve (a majority's word, an entry applied) shows in the data only. A follower waits
            // for that entry too: then it knows how long nobody led.
            let is_waiting = (server.current_leader == Some(inner.me) || leader.is_some()) && !has_applied;
            (
                next,
                quorum_at.map(|at| at.elapsed()),
                is_waiting || is_leader != (server.current_leader == Some(inner.me)),
                voters,
            )
        };
        // Without a leader it may become this node at any moment.
        inner.log.serves_reads(next.leader.is_none_or(|leader| leader == inner.me));
        let sign = next.leader.map(|leader| {
            let at = match leader == inner.me {
                true => quorum_at.and_then(|ago| now.checked_sub(ago)),
                false => inner.peers.led_at(next.term, leader),
            };
            (leader, at.unwrap_or(now))
        });
        tenure.look(now, next.term, sign, inner.log.metrics());
        voters.send_if_modified(|known| {
            let is_new = *known != now_voters;
            *known = now_voters;
            is_new
        });
        view.send_if_modified(|known| {
            if *known == next {
                return false;
            }
            if known.leader != next.leader || known.serving != next.serving {
                let leader = next.leader.map(|leader| leader.number());
                tracing::info!(node = %inner.me, term = next.term.0, ?leader, serving = next.serving, "leader");
            }
            *known = next;
            true
        });
        if let Some(reason) = inner.log.failure() {
            inner.fatal.set(format!("log: {reason}"));
        }
        let changed = tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            changed = server.changed() => changed,
            changed = data.changed(), if is_waiting => changed,
            () = tokio::time::sleep(look) => Ok(()),
        };
        if changed.is_err() {
            break;
        }
    }
    // openraft has ended by itself: a storage error or a broken invariant.
    let reason = match &inner.raft.metrics().borrow_watched().running_state {
        Err(fatal) => fatal.to_string(),
        Ok(()) => "its Raft core has ended".into(),
    };
    view.send_modify(|view| {
        view.leader = None;
        view.serving = false;
    });
    if !inner.stop.is_cancelled() {
        inner.fatal.set(reason);
    }
}

/// Who led before, for the history.
#[derive(Default)]
struct Past {
    reign: Option<Reign>,
    /// When this node last knew that it led.
    led_at: Option<Instant>,
}

impl Past {
    fn see(&mut self, inner: &Inner, term: Term, leader: Option<NodeId>) {
        let Some(leader) = leader else { return };
        let reign = (term, leader);
        if self.reign != Some(reign) {
            let previous = self.reign;
            let led_itself = previous.is_some_and(|(_, leader)| leader == inner.me);
            let last_word = match led_itself {
                true => self.led_at,
                false => previous.and_then(|(term, leader)| inner.peers.led_at(term, leader)),
            };
            let is_crash = previous.is_some_and(|(term, _)| inner.turn.has_seen_end_of(term));
            let campaign = inner.peers.campaign(term);
            inner.history.push(&Seen { reign, previous, last_word, campaign, is_crash, led_itself });
            self.reign = Some(reign);
        }
        if leader == inner.me {
            self.led_at = Some(Instant::now());
        }
    }
}

/// Once the node has failed it stops to lead, vote and acknowledge at once; the process ends it for good.
pub(super) async fn end_on_fault(inner: Arc<Inner>) {
    inner.fatal.wait().await;
    let _ = inner.raft.shutdown().await;
}

/// Since when this process has been running without a pause.
///
/// A process that was stopped (SIGSTOP, a paused container, a suspended machine) finds all its timers run out when it goes on, although it has
/// missed nothing that was said: the words of its peers stand in its sockets, unread.
struct Awake {
    since: Instant,
    looked: Instant,
}

impl Awake {
    fn new(now: Instant) -> Self {
        Self { since: now, looked: now }
    }

    /// Called many times per `pause`; a longer time between two calls is one in which nothing ran.
    fn look(&mut self, now: Instant, pause: Duration) {
        if now.saturating_duration_since(self.looked) > pause {
            self.since = now;
        }
        self.looked = now;
    }
}

/// Whether nobody has answered for several election timeouts, all of which this node was `awake`. Slower than the view of who leads, since a
/// node that is cut off closes its client listener, and two peers that are both busy or starting must not send its clients away.
fn is_isolated(inner: &Inner, awake: Duration) -> bool {
    let patience = inner.config.election_timeout.1 * 4;
    awake > patience && inner.peers.last_heard().is_some_and(|at| at.elapsed() > patience)
}

/// Whether a majority still answers this leader.
fn has_quorum(inner: &Inner, voters: usize, at: Option<TokioInstant>) -> bool {
    voters <= 1 || at.is_some_and(|at| at.elapsed() <= inner.config.election_timeout.1 * PATIENCE)
}

/// Shows cards with every known peer, a few times per election timeout, until the node stops.
pub(super) async fn keep_in_touch(inner: Arc<Inner>) {
    let mut known = std::collections::BTreeSet::new();
    let mut talks = FuturesUnordered::new();
    let mut look = tokio::time::interval(Duration::from_millis(500));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            _ = look.tick() => {
                for peer in inner.peers.all() {
                    if known.insert(peer.number) {
                        talks.push(talk(inner.peers.clone(), peer));
                    }
                }
            }
            _ = talks.next(), if !talks.is_empty() => {}
        }
    }
}

async fn talk(peers: Arc<Peers>, peer: Arc<Peer>) {
    let period = peers.config.heartbeat * 2;
    let patience = peers.config.election_timeout.1.max(Duration::from_millis(200));
    let mut answers = true;
    loop {
        // Said when it changes, not several times a second.
        match peers.exchange_cards(&peer, Instant::now() + patience).await {
            Ok(()) if answers => {}
            Ok(()) => {
                tracing::info!(peer = peer.number, "peer answers again");
                answers = true;
            }
            Err(failure) if answers => {
                tracing::info!(peer = peer.number, %failure, "peer does not answer");
                answers = false;
            }
            Err(_) => {}
        }
        tokio::time::sleep(period).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_stopped_counts_its_time_from_when_it_went_on() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let pause = Duration::from_millis(250);
        let mut awake = Awake::new(start);
        for ms in (75..=1500).step_by(75) {
            awake.look(at(ms), pause);
        }
        assert_eq!(awake.since, start, "it never paused");
        awake.look(at(7500), pause);
        assert_eq!(awake.since, at(7500), "nothing ran for six seconds");
        awake.look(at(7600), pause);
        assert_eq!(awake.since, at(7500));
    }
}
