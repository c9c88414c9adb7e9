//! The producers whose Telemetry streams this node holds, by topic: whom it can ask about half messages.
//!
//! A producer is asked about the topics that its latest Settings listed. A stream takes some checks at a time and no more; what it does not
//! take stays with the leader, which asks again. The leader reaches the streams of other nodes through the group's connections.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use prost::Message;
use quorate_raft::{Group, NodeId};
use tokio::sync::mpsc;

use crate::{
    leader::{
        calls::framed,
        checks::{self, Check},
        propose::LogFuture,
    },
    replica::Replica,
};

/// First byte of a question to another node: which of these topics have producers there?
pub(crate) const ASK_PRODUCERS: u8 = 120;
/// First byte of a check for a producer there.
pub(crate) const ASK_CHECK: u8 = 121;

/// Checks that wait for one stream to take them.
const WAITING_MAX: usize = 16;
/// Topics of one stream that are taken note of; a producer of more is not asked about the rest.
const TOPICS_MAX: usize = 4096;
/// Longest wait for another node's answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The producers' streams of one node.
#[derive(Default)]
pub(crate) struct Streams(Mutex<Open>);

#[derive(Default)]
struct Open {
    tickets: u64,
    by_topic: BTreeMap<String, Vec<Listener>>,
}

struct Listener {
    ticket: u64,
    checks: mpsc::Sender<Check>,
}

/// A stream's place among the others; given up when dropped.
pub(crate) struct Seat {
    streams: Arc<Streams>,
    ticket: u64,
    sender: mpsc::Sender<Check>,
    checks: mpsc::Receiver<Check>,
}

impl Streams {
    /// A place for a stream that opens, which listens to nothing yet.
    pub fn seat(self: &Arc<Self>) -> Seat {
        let (sender, checks) = mpsc::channel(WAITING_MAX);
        let mut open = self.lock();
        open.tickets += 1;
        Seat { streams: self.clone(), ticket: open.tickets, sender, checks }
    }

    /// Some producer of the topic has a stream here.
    pub fn has(&self, topic: &str) -> bool {
        self.lock().by_topic.contains_key(topic)
    }

    /// Gives a check to a producer of its topic, to all of them in turn. False if there is none that takes it.
    pub fn give(&self, check: &Check) -> bool {
        let mut open = self.lock();
        let Some(listeners) = open.by_topic.get_mut(&check.topic) else { return false };
        let taken = listeners.iter().position(|listener| listener.checks.try_send(check.clone()).is_ok());
        // The next check begins behind the one that took this.
        listeners.rotate_left(taken.map_or(0, |at| at + 1));
        taken.is_some()
    }

    fn leave(&self, ticket: u64) {
        let mut open = self.lock();
        open.by_topic.retain(|_, listeners| {
            listeners.retain(|listener| listener.ticket != ticket);
            !listeners.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().expect("no panic while held")
    }
}

impl Seat {
    /// From now on this stream is asked about these topics, and about no others.
    pub fn listen(&self, topics: impl Iterator<Item = String>) {
        self.streams.leave(self.ticket);
        let mut open = self.streams.lock();
        for topic in topics.take(TOPICS_MAX) {
            let listeners = open.by_topic.entry(topic).or_default();
            if listeners.last().is_none_or(|last| last.ticket != self.ticket) {
                listeners.push(Listener { ticket: self.ticket, checks: self.sender.clone() });
            }
        }
    }

    /// The next check for this stream. Cancel safe.
    pub async fn next(&mut self) -> Check {
        let next = self.checks.recv().await;
        next.expect("the seat holds a sender itself")
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.streams.leave(self.ticket);
    }
}

/// Topics by name, between nodes.
#[derive(Clone, PartialEq, Message)]
struct Names {
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
}

/// The answer to [`ASK_PRODUCERS`]: a byte per topic, 1 if it has a producer here.
pub(crate) fn answer_producers(streams: &Streams, question: Bytes) -> Bytes {
    let names = Names::decode(question).unwrap_or_default().names;
    let mut out = BytesMut::with_capacity(names.len());
    names.iter().for_each(|name| out.put_u8(u8::from(streams.has(name))));
    out.freeze()
}

/// The answer to [`ASK_CHECK`]: 1 if a producer took it.
pub(crate) fn answer_check(streams: &Streams, check: Bytes) -> Bytes {
    let taken = Check::decode(check).is_ok_and(|check| streams.give(&check));
    Bytes::from_static(if taken { &[1] } else { &[0] })
}

/// The producers of a whole group, as the leader sees them.
pub(crate) struct AskProducers {
    /// Reaches the other nodes.
    pub group: Group<Replica>,
    /// The streams of this one.
    pub streams: Arc<Streams>,
}

impl checks::Producers for AskProducers {
    fn whereabouts(&self, topics: Vec<String>) -> LogFuture<Vec<Vec<NodeId>>> {
        let (group, streams) = (self.group.clone(), self.streams.clone());
        Box::pin(async move {
            let status = group.status();
            let mut nodes: Vec<Vec<NodeId>> =
                topics.iter().map(|topic| if streams.has(topic) { vec![status.id] } else { Vec::new() }).collect();
            let question = framed(ASK_PRODUCERS, &Names { names: topics });
            let others = status.members.iter().filter(|member| member.id != status.id && member.alive);
            let answers = join_all(others.map(|member| {
                let (group, question, id) = (group.clone(), question.clone(), member.id);
                async move { (id, group.call(id, question, PATIENCE).await.unwrap_or_default()) }
            }));
            for (id, answer) in answers.await {
                for (nodes, has) in nodes.iter_mut().zip(answer) {
                    if has == 1 {
                        nodes.push(id);
                    }
                }
            }
            nodes
        })
    }

    fn ask(&self, node: NodeId, check: Check) -> LogFuture<bool> {
        let (group, streams) = (self.group.clone(), self.streams.clone());
        Box::pin(async move {
            if node == group.id() {
                return streams.give(&check);
            }
            let answer = group.call(node, framed(ASK_CHECK, &check), PATIENCE).await;
            answer.is_ok_and(|answer| answer.as_ref() == [1])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(topic: &str, id: &str) -> Check {
        Check { topic: topic.into(), transaction_id: id.into(), ..Check::default() }
    }

    fn topics<'a>(names: &'a [&'a str]) -> impl Iterator<Item = String> + 'a {
        names.iter().map(|name| (*name).to_owned())
    }

    #[tokio::test]
    async fn checks_go_to_the_producers_of_a_topic_in_turn_until_they_leave() {
        let streams = Arc::new(Streams::default());
        assert!(!streams.give(&check("t", "0")));
        let (mut a, mut b) = (streams.seat(), streams.seat());
        a.listen(topics(&["t", "t", "u"]));
        b.listen(topics(&["t"]));
        for id in ["1", "2", "3"] {
            assert!(streams.give(&check("t", id)));
        }
        assert_eq!((a.next().await, a.next().await), (check("t", "1"), check("t", "3")));
        assert_eq!(b.next().await, check("t", "2"));
        assert!(streams.has("u"));
        a.listen(topics(&["v"]));
        assert!(!streams.has("u") && streams.has("v"));
        drop(a);
        assert!(streams.has("t") && !streams.has("v"));
        drop(b);
        assert!(!streams.give(&check("t", "4")));
    }

    #[test]
    fn a_stream_that_takes_no_more_is_passed_over() {
        let streams = Arc::new(Streams::default());
        let (a, b) = (streams.seat(), streams.seat());
        a.listen(topics(&["t"]));
        for _ in 0..WAITING_MAX {
            assert!(streams.give(&check("t", "x")));
        }
        assert!(!streams.give(&check("t", "x")));
        b.listen(topics(&["t"]));
        assert!(streams.give(&check("t", "x")));
    }

    #[test]
    fn another_node_is_told_which_topics_have_producers_here_and_whether_a_check_was_taken() {
        let streams = Arc::new(Streams::default());
        let seat = streams.seat();
        seat.listen(topics(&["b"]));
        let names = Names { names: topics(&["a", "b"]).collect() }.encode_to_vec();
        assert_eq!(answer_producers(&streams, names.into()), Bytes::from_static(&[0, 1]));
        let answer = |topic| answer_check(&streams, check(topic, "1").encode_to_vec().into());
        assert_eq!((answer("a"), answer("b")), (Bytes::from_static(&[0]), Bytes::from_static(&[1])));
        assert_eq!(answer_check(&streams, Bytes::from_static(b"\xff")), Bytes::from_static(&[0]));
    }
}
