//! Three questions about a node, answered by what it knows: does it live, is it ready, could it be stopped.
//!
//! | state | holds while | does not mean |
//! |---|---|---|
//! | live | the node's loop ticks, and its log has not failed | that it leads, has caught up, or answers any client: never restart a node for not being *ready* |
//! | ready | recovered, near the leader, a leader known, at a name server, not leaving | that a send will succeed: LAW-ACK is the answer to the send itself |
//! | safe to stop | a majority of voters is alive, near the end of the log and able to vote without this node | a reservation: two nodes asked at once may both say yes; and never that data could be deleted |
//!
//! What is read here is at most an election timeout old; it informs and decides nothing. Asked by `http`, by the gRPC health service and,
//! through the former, by `quorate health`.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use quorate_raft::{Group, GroupHealth, VoterHealth};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, replica::Replica};

/// How often the node's loop beats, and readiness is looked at for those who watch it.
const BEAT: Duration = Duration::from_millis(250);
/// A loop that has not beaten for this long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// A node this many entries behind has caught up for all that health means. Cards are a heartbeat or two old, so a busy group's
/// followers always look a little behind; a thousand entries are replayed in the blink of an eye.
const NEAR_ENTRIES: u64 = 1_000;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Does it run?
    Live,
    /// Can it serve or forward?
    Ready,
    /// Does the group keep its quorum without it?
    SafeToStop,
}

impl Check {
    /// All of them, as they are listed for people.
    pub const ALL: [Self; 3] = [Self::Live, Self::Ready, Self::SafeToStop];

    /// Its name in paths, in answers and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ready => "ready",
            Self::SafeToStop => "safe-to-stop",
        }
    }
}

/// The health of one node, from before its log is opened.
pub(crate) struct Health {
    started: Instant,
    /// Milliseconds from the start to the last beat.
    beat_ms: AtomicU64,
    leaving: AtomicBool,
    parts: OnceLock<Parts>,
    ready: watch::Sender<bool>,
}

/// What there is to ask once the log is open.
struct Parts {
    group: Group<Replica>,
    metrics: Arc<Metrics>,
    name_servers: usize,
}

impl Parts {
    /// One name server is enough to be found: the others may be away with their nodes.
    fn why_not_registered(&self) -> Option<String> {
        let unknown = self.name_servers > 0 && self.metrics.registered.value() == 0;
        unknown.then(|| format!("none of its {} name servers has its registration", self.name_servers))
    }
}

impl Health {
    /// The health of a node that opens its log.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            beat_ms: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            parts: OnceLock::new(),
            ready: watch::Sender::new(false),
        }
    }

    /// The log is open and recovered; from now on this is the node that is asked about.
    pub fn opened(&self, group: Group<Replica>, metrics: Arc<Metrics>, name_servers: usize) {
        let opened = self.parts.set(Parts { group, metrics, name_servers }).is_ok();
        assert!(opened, "a node is opened once");
    }

    /// A planned stop begins.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        self.ready.send_replace(false);
    }

    /// Readiness as it changes.
    pub fn watch_ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Beats until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.beat_ms.store(since, Ordering::Relaxed);
            let ready = self.why_not(Check::Ready).is_empty();
            self.ready.send_if_modified(|known| std::mem::replace(known, ready) != ready);
        }
    }

    /// What keeps `check` from holding, in words for operators; nothing if it holds.
    pub fn why_not(&self, check: Check) -> Vec<String> {
        let Some(parts) = self.parts.get() else {
            return match check {
                Check::Live => self.why_not_live(None),
                Check::Ready | Check::SafeToStop => {
                    vec!["it reads its log and has not joined its group yet".to_owned()]
                }
            };
        };
        let group = parts.group.health();
        match check {
            Check::Live => self.why_not_live(Some(&group)),
            Check::Ready => {
                let mut why = self.why_not_live(Some(&group));
                why.extend(self.leaving.load(Ordering::Relaxed).then(|| "it is stopping".to_owned()));
                why.extend(why_not_ready(&group));
                why.extend(parts.why_not_registered());
                why
            }
            Check::SafeToStop => why_not_safe_to_stop(&group),
        }
    }

    fn why_not_live(&self, group: Option<&GroupHealth>) -> Vec<String> {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        let silence = self.started.elapsed().saturating_sub(beat);
        let hangs = (silence > SILENCE_MAX).then(|| format!("its loop has not ticked for {} s", silence.as_secs()));
        let stopped =
            group.and_then(|group| group.stopped.clone()).map(|reason| format!("its log has stopped: {reason}"));
        hangs.into_iter().chain(stopped).collect()
    }
}

fn why_not_ready(group: &GroupHealth) -> Vec<String> {
    let mut why = Vec::new();
    if group.leader.isolated {
        why.push("it reaches no other node of its group".to_owned());
    } else if group.leader.leader.is_none() {
        why.push("it knows no leader".to_owned());
    } else {
        match group.behind {
            None => why.push("the leader has not said yet how far it is".to_owned()),
            Some(behind) if behind > NEAR_ENTRIES => why.push(format!("it is {behind} entries behind the leader")),
            Some(_) if leads(group) && !group.leader.serving => {
                why.push("it leads and has not applied everything from before its term yet".to_owned());
            }
            Some(_) => {}
        }
    }
    if group.unsure {
        why.push("it may have forgotten what it acknowledged, and has not caught up with a live leader yet".to_owned());
    }
    why
}

/// Whether the leader that this node knows is itself.
fn leads(group: &GroupHealth) -> bool {
    group.leader.leader == Some(group.id)
}

fn why_not_safe_to_stop(group: &GroupHealth) -> Vec<String> {
    let mut why = Vec::new();
    if group.is_voter && group.others.is_empty() {
        return vec!["it is the only voter of its group: while it is down nothing is served".to_owned()];
    }
    if group.leader.leader.is_none() {
        why.push("the group has no leader that this node knows".to_owned());
    }
    if group.is_changing {
        why.push("the membership of the group is being changed".to_owned());
    }
    let voters = group.others.len() + usize::from(group.is_voter);
    let quorum = voters / 2 + 1;
    let faults: Vec<String> = group.others.iter().filter_map(fault).collect();
    let sound = group.others.len() - faults.len();
    if sound < quorum {
        why.push(format!(
            "without it {sound} of {voters} voters are sound, and {quorum} must be: {}",
            faults.join(", ")
        ));
    }
    why
}

/// What keeps a voter from counting.
fn fault(voter: &VoterHealth) -> Option<String> {
    let number = voter.id.number();
    if !voter.is_alive {
        return Some(format!("node {number} is not heard of"));
    }
    if voter.is_unsure {
        return Some(format!("node {number} may lack what it acknowledged"));
    }
    (voter.behind > NEAR_ENTRIES).then(|| format!("node {number} is {} entries behind", voter.behind))
}

#[cfg(test)]
mod tests {
    use quorate_raft::{LeaderView, NodeId, Term};

    use super::*;

    fn id(number: u16) -> NodeId {
        NodeId::new(number, 1)
    }

    fn voter(number: u16) -> VoterHealth {
        VoterHealth { id: id(number), is_alive: true, is_unsure: false, behind: 0 }
    }

    /// Node 1 of three, following node 2.
    fn follower() -> GroupHealth {
        GroupHealth {
            id: id(1),
            stopped: None,
            leader: LeaderView { term: Term(3), leader: Some(id(2)), serving: false, isolated: false },
            unsure: false,
            behind: Some(7),
            is_changing: false,
            is_voter: true,
            others: vec![voter(2), voter(3)],
        }
    }

    #[test]
    fn a_follower_near_its_leader_is_ready_and_says_what_keeps_it_from_that() {
        let sound = follower();
        assert!(why_not_ready(&sound).is_empty());
        let cases: [(GroupHealth, &str); 5] = [
            (GroupHealth { behind: Some(NEAR_ENTRIES + 1), ..sound.clone() }, "1001 entries behind"),
            (GroupHealth { behind: None, ..sound.clone() }, "has not said"),
            (GroupHealth { leader: LeaderView { leader: None, ..sound.leader }, ..sound.clone() }, "no leader"),
            (GroupHealth { leader: LeaderView { isolated: true, ..sound.leader }, ..sound.clone() }, "no other node"),
            (GroupHealth { unsure: true, ..sound.clone() }, "forgotten"),
        ];
        for (case, expected) in cases {
            let why = why_not_ready(&case);
            assert!(why.len() == 1 && why[0].contains(expected), "{why:?}");
        }
    }

    #[test]
    fn a_leader_is_ready_once_it_serves() {
        let leader = |serving| GroupHealth {
            leader: LeaderView { term: Term(3), leader: Some(id(1)), serving, isolated: false },
            behind: Some(0),
            ..follower()
        };
        assert!(why_not_ready(&leader(true)).is_empty());
        assert!(why_not_ready(&leader(false))[0].contains("before its term"));
    }

    #[test]
    fn a_node_may_stop_only_if_the_others_keep_a_sound_majority() {
        let sound = follower();
        assert!(why_not_safe_to_stop(&sound).is_empty());
        let with = |change: fn(&mut VoterHealth)| {
            let mut group = follower();
            change(&mut group.others[1]);
            why_not_safe_to_stop(&group).join("; ")
        };
        assert!(with(|voter| voter.is_alive = false).contains("1 of 3 voters are sound, and 2 must be: node 3"));
        assert!(with(|voter| voter.is_unsure = true).contains("node 3 may lack"));
        assert!(with(|voter| voter.behind = 5_000).contains("node 3 is 5000 entries behind"));
        let changing = GroupHealth { is_changing: true, ..follower() };
        assert!(why_not_safe_to_stop(&changing)[0].contains("membership"));
        let leaderless = GroupHealth { leader: LeaderView::default(), ..follower() };
        assert!(why_not_safe_to_stop(&leaderless)[0].contains("no leader"));
    }

    #[test]
    fn a_group_of_one_is_never_safe_to_stop_and_a_learner_is() {
        let alone = GroupHealth { others: Vec::new(), behind: Some(0), ..follower() };
        assert!(why_not_safe_to_stop(&alone)[0].contains("only voter"));
        let learner = GroupHealth { is_voter: false, ..follower() };
        assert!(why_not_safe_to_stop(&learner).is_empty());
        let pair = GroupHealth { others: vec![voter(2)], ..follower() };
        assert!(why_not_safe_to_stop(&pair)[0].contains("1 of 2"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_node_that_reads_its_log_lives_and_is_neither_ready_nor_safe_to_stop() {
        let health = Health::new();
        assert!(health.why_not(Check::Live).is_empty());
        for check in [Check::Ready, Check::SafeToStop] {
            assert!(health.why_not(check)[0].contains("reads its log"));
        }
    }
}
