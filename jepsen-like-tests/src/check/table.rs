//! A history laid out for sweeping: keys and queues as dense numbers, one vector per kind of op.
//!
//! Keys are told apart by a 64-bit hash first and by their bytes when hashes meet, in one sort instead of a hash map, so
//! memory is a few dozen bytes per op and no hostile key makes it slow. The builder takes ops one by one, so a history
//! is never in memory twice.

use std::{collections::BTreeMap, sync::Arc};

use crate::op::{Acked, Held, Op, Received, Sent, Span, Spot};

/// A queue of a topic, as a dense number.
pub(super) type Lane = u32;
/// A key, as a dense number.
pub(super) type KeyId = u32;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub lane: Lane,
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendOutcome {
    Acked,
    Failed,
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SendRow {
    pub span: Span,
    pub key: KeyId,
    pub outcome: SendOutcome,
    /// What the answer said, queue or no queue.
    pub told_offset: Option<u64>,
    /// From the answer, or else the one place at which the key was delivered. None for a message that was held: it came to its place
    /// some time after the send, so its place says nothing about the order of sends.
    pub place: Option<Place>,
}

/// One delivered message.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    pub(super) key: KeyId,
    pub(super) attempt: u32,
    pub(super) place: Place,
    /// The earliest moment at which the group can have handed this out: the invocation of the call that brought it, or
    /// of the first of the calls of unknown outcome right before it, because a repeated call may be answered with what
    /// the lost answer held.
    pub(super) since_us: u64,
    pub(super) return_us: u64,
    /// The call that brought it: its process and when it was invoked.
    pub(super) call: (u32, u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct AckRow {
    pub key: KeyId,
    pub place: Place,
    pub invoke_us: u64,
    pub return_us: u64,
}

/// A place together with a key that was seen there, by an answer to a send or by a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sighting {
    pub lane: Lane,
    pub key: KeyId,
    pub offset: u64,
}

/// The columns that the checkers read.
#[derive(Debug)]
pub struct Table {
    pub(super) sends: Vec<SendRow>,
    pub(super) deliveries: Vec<Delivery>,
    /// Acks that were answered OK.
    pub(super) acks: Vec<AckRow>,
    /// Places of acks of unknown outcome, and when they were invoked.
    pub(super) unknown_acks: Vec<(Place, u64)>,
    /// Distinct, in no order that matters.
    pub(super) sightings: Vec<Sighting>,
    /// Per key: its send, and whether it was delivered.
    pub(super) keys: Vec<KeyRow>,
    pub(super) attempted_twice: Vec<KeyId>,
    lanes: Vec<(Arc<str>, u32)>,
    arena: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRow {
    text: Text,
    send: u32,
    delivered: Delivered,
    /// Must not be seen before; 0 for an ordinary message.
    pub(super) not_before_us: u64,
    /// What its producer heard when it took the message back, if it did.
    pub(super) taken_back: Option<Answer>,
    /// What its producers asked for, if it is transactional.
    pub(super) half: Option<HalfRow>,
}

/// What is known of a transaction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HalfRow {
    /// When a commit was asked for first.
    pub commit_from_us: Option<u64>,
    pub committed: Option<Answer>,
    pub rolled_back: Option<Answer>,
}

/// What is known of a wish that takes a message away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    Unknown,
    Done,
}

/// Where a key was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivered {
    Nowhere,
    At(Place),
    Several,
}

impl Delivered {
    fn and(self, place: Place) -> Self {
        match self {
            Self::Nowhere => Self::At(place),
            Self::At(other) if other == place => self,
            Self::At(_) | Self::Several => Self::Several,
        }
    }
}

impl KeyRow {
    /// The row of the send that attempted this key.
    pub(super) fn send(&self) -> Option<usize> {
        (self.send != NONE).then_some(self.send as usize)
    }

    /// Whether any receive brought this key.
    pub(super) fn is_delivered(&self) -> bool {
        self.delivered != Delivered::Nowhere
    }
}

#[derive(Clone, Copy, Debug)]
struct Text {
    start: u64,
    length: u32,
}

impl Table {
    /// The table of `ops`.
    pub fn of<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Self {
        let mut builder = TableBuilder::default();
        ops.into_iter().for_each(|op| builder.add(op));
        builder.build()
    }

    pub(super) fn key(&self, key: KeyId) -> &str {
        std::str::from_utf8(text(&self.arena, self.keys[key as usize].text)).unwrap_or("?")
    }

    pub(super) fn describe(&self, place: Place) -> String {
        let (topic, queue) = &self.lanes[place.lane as usize];
        format!("{topic} queue {queue} offset {}", place.offset)
    }
}

fn text(arena: &[u8], text: Text) -> &[u8] {
    let start = usize::try_from(text.start).expect("the arena is in memory, so its places fit a usize");
    &arena[start..start + text.length as usize]
}

/// Collects ops into a [`Table`].
#[derive(Debug, Default)]
pub struct TableBuilder {
    sends: Vec<SendRow>,
    deliveries: Vec<Delivery>,
    acks: Vec<AckRow>,
    unknown_acks: Vec<(Place, u64)>,
    holds: Vec<Hold>,
    mentions: Vec<Mention>,
    arena: Vec<u8>,
    lane_ids: BTreeMap<(Arc<str>, u32), Lane>,
    last_lane: Option<(Arc<str>, u32, Lane)>,
    receivers: BTreeMap<u32, Receiver>,
}

#[derive(Clone, Copy, Debug)]
enum Hold {
    Until(u64),
    TakenBack(Answer),
    Half,
    Committed(u64, Answer),
    RolledBack(Answer),
}

/// A key as it stands in one row, before keys have numbers.
#[derive(Clone, Copy, Debug)]
struct Mention {
    hash: u64,
    text: Text,
    row: Row,
}

#[derive(Clone, Copy, Debug)]
enum Row {
    Send(u32),
    Delivery(u32),
    Ack(u32),
    Hold(u32),
}

/// What a consumer's calls so far say about when its next delivery can have been handed out.
#[derive(Clone, Copy, Debug, Default)]
struct Receiver {
    unknown_since: Option<u64>,
    answered: Option<u64>,
}

impl Receiver {
    fn unknown(&mut self, invoke_us: u64) {
        if self.answered.take().is_some() {
            self.unknown_since = None;
        }
        self.unknown_since.get_or_insert(invoke_us);
    }

    fn message(&mut self, invoke_us: u64) -> u64 {
        if self.answered.is_some_and(|call| call != invoke_us) {
            self.unknown_since = None;
        }
        self.answered = Some(invoke_us);
        self.unknown_since.unwrap_or(invoke_us).min(invoke_us)
    }
}

impl TableBuilder {
    /// Adds one op. Receives of one process must come in the order of their calls, as every recorder writes them.
    pub fn add(&mut self, op: &Op) {
        match op {
            Op::Send(send) => {
                let (outcome, queue, told_offset) = match &send.outcome {
                    Sent::Stored { queue, offset } => (SendOutcome::Acked, *queue, *offset),
                    Sent::Failed(_) => (SendOutcome::Failed, None, None),
                    Sent::Unknown(_) => (SendOutcome::Unknown, None, None),
                };
                let spot = queue.zip(told_offset).map(|(queue, offset)| Spot { queue, offset });
                let place = spot.map(|spot| self.place(&send.topic, spot));
                self.mention(&send.key, Row::Send(row(self.sends.len())));
                self.sends.push(SendRow { span: send.span, key: NONE, outcome, told_offset, place });
            }
            Op::Receive(receive) => {
                let process = receive.span.process;
                let receiver = self.receivers.entry(process).or_default();
                match &receive.outcome {
                    Received::Message { key, spot, attempt } => {
                        let since_us = receiver.message(receive.span.invoke_us);
                        let place = self.place(&receive.topic, *spot);
                        self.mention(key, Row::Delivery(row(self.deliveries.len())));
                        let return_us = receive.span.return_us;
                        let (attempt, call) = (*attempt, (process, receive.span.invoke_us));
                        self.deliveries.push(Delivery { key: NONE, attempt, place, since_us, return_us, call });
                    }
                    Received::Unknown(_) => receiver.unknown(receive.span.invoke_us),
                    Received::Failed(_) => {}
                }
            }
            Op::Ack(ack) => match ack.outcome {
                Acked::Done => {
                    let place = self.place(&ack.topic, ack.spot);
                    self.mention(&ack.key, Row::Ack(row(self.acks.len())));
                    let Span { invoke_us, return_us, .. } = ack.span;
                    self.acks.push(AckRow { key: NONE, place, invoke_us, return_us });
                }
                Acked::Unknown(_) => {
                    let place = self.place(&ack.topic, ack.spot);
                    self.unknown_acks.push((place, ack.span.invoke_us));
                }
                Acked::Failed(_) => {}
            },
            Op::Hold(hold) => {
                let held = match hold.what {
                    Held::Until { not_before_us } => Hold::Until(not_before_us),
                    Held::Recall(Acked::Done) => Hold::TakenBack(Answer::Done),
                    Held::Recall(Acked::Unknown(_)) => Hold::TakenBack(Answer::Unknown),
                    Held::Half => Hold::Half,
                    Held::End { commit: true, outcome: Acked::Done } => {
                        Hold::Committed(hold.span.invoke_us, Answer::Done)
                    }
                    Held::End { commit: true, outcome: Acked::Unknown(_) } => {
                        Hold::Committed(hold.span.invoke_us, Answer::Unknown)
                    }
                    Held::End { commit: false, outcome: Acked::Done } => Hold::RolledBack(Answer::Done),
                    Held::End { commit: false, outcome: Acked::Unknown(_) } => Hold::RolledBack(Answer::Unknown),
                    Held::Recall(Acked::Failed(_)) | Held::End { outcome: Acked::Failed(_), .. } => return,
                };
                self.mention(&hold.key, Row::Hold(row(self.holds.len())));
                self.holds.push(held);
            }
            Op::Fault(_) | Op::Election(_) => {}
        }
    }

    fn mention(&mut self, key: &str, row: Row) {
        let text = Text {
            start: self.arena.len() as u64,
            length: u32::try_from(key.len()).expect("a key is shorter than a line of a history, which is bounded"),
        };
        self.arena.extend_from_slice(key.as_bytes());
        self.mentions.push(Mention { hash: fnv1a(key.as_bytes()), text, row });
    }

    fn place(&mut self, topic: &Arc<str>, spot: Spot) -> Place {
        let lane = match &self.last_lane {
            Some((last, queue, lane)) if *queue == spot.queue && (Arc::ptr_eq(last, topic) || last == topic) => *lane,
            _ => {
                let next = row(self.lane_ids.len());
                let lane = *self.lane_ids.entry((Arc::clone(topic), spot.queue)).or_insert(next);
                self.last_lane = Some((Arc::clone(topic), spot.queue, lane));
                lane
            }
        };
        Place { lane, offset: spot.offset }
    }

    /// Numbers the keys and puts the columns together.
    pub fn build(self) -> Table {
        let Self { mut sends, mut deliveries, mut acks, unknown_acks, holds, mut mentions, arena, lane_ids, .. } = self;
        mentions
            .sort_unstable_by(|a, b| a.hash.cmp(&b.hash).then_with(|| text(&arena, a.text).cmp(text(&arena, b.text))));
        let (mut keys, mut attempted_twice): (Vec<KeyRow>, Vec<KeyId>) = (Vec::new(), Vec::new());
        for same in mentions.chunk_by(|a, b| a.hash == b.hash && text(&arena, a.text) == text(&arena, b.text)) {
            let key = row(keys.len());
            let mut facts = KeyRow {
                text: same[0].text,
                send: NONE,
                delivered: Delivered::Nowhere,
                not_before_us: 0,
                taken_back: None,
                half: None,
            };
            for mention in same {
                match mention.row {
                    Row::Send(at) => {
                        sends[at as usize].key = key;
                        if facts.send != NONE {
                            attempted_twice.push(key);
                        }
                        facts.send = if facts.send == NONE { at } else { facts.send.min(at) };
                    }
                    Row::Delivery(at) => {
                        let delivery = &mut deliveries[at as usize];
                        delivery.key = key;
                        facts.delivered = facts.delivered.and(delivery.place);
                    }
                    Row::Ack(at) => acks[at as usize].key = key,
                    Row::Hold(at) => match holds[at as usize] {
                        Hold::Until(moment) => facts.not_before_us = moment,
                        Hold::TakenBack(answer) => facts.taken_back = facts.taken_back.max(Some(answer)),
                        Hold::Half => drop(facts.half.get_or_insert_default()),
                        Hold::Committed(from_us, answer) => {
                            let half = facts.half.get_or_insert_default();
                            half.commit_from_us = Some(half.commit_from_us.map_or(from_us, |first| first.min(from_us)));
                            half.committed = half.committed.max(Some(answer));
                        }
                        Hold::RolledBack(answer) => {
                            let half = facts.half.get_or_insert_default();
                            half.rolled_back = half.rolled_back.max(Some(answer));
                        }
                    },
                }
            }
            keys.push(facts);
        }
        drop(mentions);
        let sightings = sightings(&sends, &deliveries);
        for send in sends.iter_mut().filter(|send| send.place.is_none()) {
            let facts = &keys[send.key as usize];
            send.place = match facts.delivered {
                Delivered::At(place) if facts.not_before_us == 0 && facts.half.is_none() => Some(place),
                Delivered::At(_) | Delivered::Nowhere | Delivered::Several => None,
            };
        }
        let mut lanes: Vec<_> = lane_ids.into_iter().collect();
        lanes.sort_unstable_by_key(|(_, lane)| *lane);
        let lanes = lanes.into_iter().map(|(lane, _)| lane).collect();
        Table { sends, deliveries, acks, unknown_acks, sightings, keys, attempted_twice, lanes, arena }
    }
}

fn sightings(sends: &[SendRow], deliveries: &[Delivery]) -> Vec<Sighting> {
    let seen = |place: Place, key| Sighting { lane: place.lane, key, offset: place.offset };
    let mut all: Vec<Sighting> = Vec::with_capacity(sends.len() + deliveries.len());
    all.extend(sends.iter().filter_map(|send| send.place.map(|place| seen(place, send.key))));
    all.extend(deliveries.iter().map(|delivery| seen(delivery.place, delivery.key)));
    all.sort_unstable();
    all.dedup();
    all
}

fn row(count: usize) -> u32 {
    u32::try_from(count).ok().filter(|row| *row != NONE).expect("a history has fewer than 2^32 - 1 ops")
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo): spreads keys for the sort; nothing depends on its strength.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
