//! Asks producers about half messages that they have not resolved, and sets aside what nobody answers for.
//!
//! ```text
//!   machine.to_check ─▶ which nodes hold a stream of a producer of that topic? ─▶ hand it one ─▶ Checked (asked again later)
//!                                        └ none: it waits, and that does not count     └ after the last: Checked (set aside)
//! ```
//! Runs on every node and works while this one leads. Nothing is kept between two rounds: what is due is in the machine, so a new
//! leader goes on where the log says. A check is handed over before it is counted, so a leader that dies in between asks once too often
//! and never once too little; for the producer an answer that comes twice is the same as one. Which producer is asked changes from check to
//! check, so one that never answers does not stand in the way of the others.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use prost::Message;
use quorate_proto::time::Timestamp;
use quorate_raft::NodeId;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Leader, propose::LogFuture};
use crate::machine::{Checked, Command, Half, HalfId, Reply, TopicId, TransactionHandle};

/// How often the machine is looked at, and so how late a check may be.
const TICK: Duration = Duration::from_millis(200);
/// Most half messages of one topic in one round.
const PER_TOPIC: usize = 256;
/// Bytes of bodies in one round; one always fits.
const BYTES_MAX: u64 = 8 << 20;
/// Checks handed over at once.
const AT_ONCE: usize = 32;

/// A question to a producer, on its way to the node that holds a stream of it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Check {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(string, tag = "2")]
    pub transaction_id: String,
    #[prost(uint32, tag = "3")]
    pub queue: u32,
    /// Log time of its send.
    #[prost(uint64, tag = "4")]
    pub sent_ms: u64,
    #[prost(bytes = "bytes", tag = "5")]
    pub record: Bytes,
}

/// Finds the producers of topics, wherever in the group their streams are.
pub(crate) trait Producers: Send + Sync + 'static {
    /// For each topic the nodes that hold streams of its producers.
    fn whereabouts(&self, topics: Vec<String>) -> LogFuture<Vec<Vec<NodeId>>>;
    /// Hands a check to a producer at that node. False if there is none any more, or none that takes more now.
    fn ask(&self, node: NodeId, check: Check) -> LogFuture<bool>;
}

/// The task that checks, on one node.
pub(crate) struct Checker {
    /// Reads, plans and proposes.
    pub leader: Arc<Leader>,
    /// Where producers are.
    pub producers: Arc<dyn Producers>,
}

/// A half message that is due, with the name of its topic.
struct Due {
    topic: Arc<str>,
    id: HalfId,
    half: Half,
}

impl Checker {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let leadership = self.leader.group.leader();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let serving = leadership.borrow().serving;
            self.tell(serving);
            if !serving {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.round() => {}
            }
        }
    }

    fn tell(&self, serving: bool) {
        let stats = self.leader.shared.read(crate::machine::Machine::transaction_stats);
        let gauge = |count: u64| if serving { i64::try_from(count).unwrap_or(i64::MAX) } else { 0 };
        self.leader.metrics.half_messages.set(gauge(stats.pending));
        self.leader.metrics.set_aside.set(gauge(stats.set_aside));
    }

    /// Checks what is due, as far as one round goes.
    async fn round(&self) {
        let leader = &self.leader;
        leader.clock.follow(leader.shared.log_now());
        let now = leader.clock.now();
        let topics = self.topics(now);
        if topics.is_empty() {
            return;
        }
        let names = topics.iter().map(|(_, name)| name.to_string()).collect();
        let whereabouts = self.producers.whereabouts(names).await;
        let (mut asks, mut aside, mut bytes) = (Vec::new(), Vec::new(), 0);
        for ((topic, name), nodes) in topics.into_iter().zip(whereabouts) {
            for (id, half) in self.due(topic, now) {
                if half.checks >= leader.config.transactions.checks_max {
                    aside.push(Checked { id, checks: half.checks, again_ms: None });
                } else if !nodes.is_empty() && (bytes == 0 || bytes + u64::from(half.pointer.size) <= BYTES_MAX) {
                    bytes += u64::from(half.pointer.size);
                    asks.push((Due { topic: name.clone(), id, half }, nodes.clone()));
                }
            }
        }
        let asked: Vec<Option<Checked>> =
            stream::iter(asks).map(|(due, nodes)| self.ask(due, nodes)).buffer_unordered(AT_ONCE).collect().await;
        let asked: Vec<Checked> = asked.into_iter().flatten().collect();
        leader.metrics.transaction_checks.add(asked.len() as u64);
        self.propose(asked.into_iter().chain(aside).collect()).await;
    }

    fn topics(&self, now: Timestamp) -> Vec<(TopicId, Arc<str>)> {
        self.leader.shared.read(|machine| {
            let named = |topic| Some((topic, Arc::from(machine.topic_by_id(topic)?.name().as_str())));
            machine.topics_to_check(now).filter_map(named).collect()
        })
    }

    fn due(&self, topic: TopicId, now: Timestamp) -> Vec<(HalfId, Half)> {
        self.leader.shared.read(|machine| machine.to_check(topic, now).take(PER_TOPIC).collect())
    }

    /// Hands one check to a producer. `None` if nobody took it.
    async fn ask(&self, due: Due, nodes: Vec<NodeId>) -> Option<Checked> {
        let Due { topic, id, half } = due;
        let leader = &self.leader;
        let body = leader.body_at(half.pointer).await;
        let record = body.inspect_err(|error| warn!(%error, "a half message could not be read")).ok().flatten()?;
        let check = Check {
            topic: topic.to_string(),
            transaction_id: TransactionHandle { topic: half.topic, id }.to_text(leader.cluster),
            queue: half.queue.0.into(),
            sent_ms: half.sent_at.0,
            record: record.bytes().clone(),
        };
        let first = usize::from(half.checks) % nodes.len();
        for node in nodes[first..].iter().chain(&nodes[..first]) {
            if self.producers.ask(*node, check.clone()).await {
                let interval = leader.config.transactions.check_interval;
                let again_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
                return Some(Checked { id, checks: half.checks, again_ms: Some(again_ms) });
            }
        }
        None
    }

    /// Writes down what was asked and what is set aside. What is refused was resolved meanwhile, or checked by another leader.
    async fn propose(&self, checked: Vec<Checked>) {
        if checked.is_empty() {
            return;
        }
        let commands = checked.iter().map(|checked| Command::Checked(*checked)).collect();
        match self.leader.proposer.propose(commands).await {
            Ok(applied) => {
                let done = checked.iter().zip(&applied.replies).filter(|(_, reply)| matches!(reply, Reply::Done));
                let aside = done.filter(|(checked, _)| checked.again_ms.is_none()).count();
                if aside > 0 {
                    info!(
                        aside,
                        "half messages were checked in vain and are set aside; see `quorate transaction list`"
                    );
                }
            }
            Err(error) => debug!(%error, "checks of half messages not written down; asked again"),
        }
    }
}
