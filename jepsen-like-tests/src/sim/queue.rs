//! The broker's own machine in the simulated group: producers send, consumers receive and acknowledge, and the same judges that
//! judge real processes judge what they saw.
//!
//! Each node runs the broker's replica: machine, consume queues and checkpoint over its simulated disk. The leader does what
//! the broker's leader does at its core: it stamps the time, proposes one batch per request and reads the bodies of what was
//! handed out through its consume queues and its log. Nodes' clocks are minutes apart. Clients repeat what they have no answer
//! to, under the same message id or attempt id, so a send that is stored twice or a receive that loses a message shows.
//!
//! Some messages are delayed, some of those recalled; some are transactional, and their producers commit them, roll them back, or leave
//! them open, so that the leader has to ask. Whether a transaction is to be committed stands in its key, so every process that is asked
//! gives the same answer, as a database would.
//!
//! Three consumer groups receive: a plain one, one that wants the order of message groups, and one with a filter. For the latter two the
//! leader reads ahead with the broker's own code. Each group is judged by what its own consumers saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_broker::{
    LogClock, Reading,
    machine::{
        Ack, AttemptKey, Batch, Carry, Checked, ClusterHash, Command, DelayId, Deliver, HalfId, Handle, Machine,
        MessageGroup, Pointer, PutGroup, PutTopic, QueueId, QueueOffset, Recall, Receive, ReceiveScanned, Record,
        Refusal, Reply, Resolution, Resolve, Send, SendDelayed, SendHalf, SendKey, StartAt, TopicId, TopicKind,
        Waiting,
    },
    replica::{self, Applied, CheckpointMode, Replica, ReplicaSettings},
    scan::{Ask, Claimed, Look, Scans},
    schedule::{Portion, Schedule},
};
use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};
use quorate_raft::{
    CallError, CommittedEntry, ImagePoint, LogId, LogView, MachineError, Position, ProposeError, StateMachine, Term,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    dice::Dice,
    world::{Opening, Running, Subject, Watching, World},
};
use crate::{
    check::{
        Findings, Judgement, Table, Verdict, acked_returned, atomic, double_deliveries, early, group_order, invented,
        lost, recalled, unwanted,
    },
    op::{self, Acked, Held, Op, Received, Sent, Span, Spot},
};

const TOPIC: &str = "simulated";
/// The consumer groups, by the numbers of [`Reader`].
const GROUPS: [&str; 3] = ["simulation", "simulation-ordered", "simulation-filtered"];
/// Message groups; some messages have none.
const MESSAGE_GROUPS: u64 = 6;
/// One message in so many is what the filter wants.
const WANTED_EVERY: u64 = 4;
/// One transaction in so many is rolled back.
const ROLLED_BACK_EVERY: u64 = 3;
/// How long the producer of a half message is left alone, at most, and the time between two checks.
const IMMUNITY_MS: u64 = 2000;
const CHECK_MS: u64 = 700;
/// Of a hundred checks so many are answered.
const ANSWERED_PERCENT: u64 = 70;
const CLUSTER: &str = "simulated";
const QUEUES: u16 = 4;
/// Records per consume queue file: few, so that files come and go within a run.
const QUEUE_FILE_RECORDS: u64 = 64;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a client repeats what it has no answer to.
const TRIES: u32 = 6;
/// Longest time that a delivery is hidden.
const INVISIBLE_MS: u64 = 4000;
/// Longest delay of a delayed message; short of [`INVISIBLE_MS`] twice, so that what waits when faults end comes before the end.
const DELAY_MS: u64 = 5000;
/// What a timer proposes at once: little, so that it takes several turns.
const PORTION: Portion = Portion { commands_max: 8, bytes_max: 4096 };
/// How long a node waits for another's consume queue records, and how many it is given.
const LEND_WITHIN: Duration = Duration::from_millis(500);
const LENT_MAX: u64 = 64;
/// Virtual time to receive what is left at the end.
const DRAIN_WITHIN: Duration = Duration::from_secs(120);
/// The wall clock at the start of a run, in milliseconds.
const WALL_MS: u64 = 1_700_000_000_000;
/// How far a node's clock may be off, in milliseconds.
const SKEW_MS: u64 = 120_000;
/// Process numbers of the one that drains and of the one that asks whether the group serves.
const DRAIN: u32 = 1000;
const PROBE: u32 = 1001;
/// And of the producers that are asked about half messages.
const ASKED: u32 = 1002;

/// The broker as a subject of the simulation.
#[derive(Debug, Default)]
pub struct Queueing {
    book: Mutex<Book>,
    went: Went,
}

/// What the clients saw, on a clock that never shows one time twice.
#[derive(Debug, Default)]
struct Book {
    last_us: u64,
    sent: u64,
    /// The sends, and what was said of delayed ones.
    ops: Vec<Op>,
    line: Line,
    /// Delayed and half messages by their key.
    waiting: BTreeMap<Box<str>, Waiting>,
    /// Receives and acks, by consumer group.
    seen: [Vec<Op>; 3],
}

/// Which consumer group a consumer belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Reader {
    Plain = 0,
    Ordered = 1,
    Filtered = 2,
}

impl Reader {
    const ALL: [Self; 3] = [Self::Plain, Self::Ordered, Self::Filtered];

    fn group(self) -> &'static str {
        GROUPS[self as usize]
    }
}

impl Look for Reader {
    fn is_filter(&self) -> bool {
        *self == Self::Filtered
    }

    fn may_want(&self, _: &Pointer) -> bool {
        true
    }

    fn look(&self, message: &Bytes) -> Option<MessageGroup> {
        let key = key_of(message);
        (!self.is_filter() || is_wanted(&key)).then(|| group_of(&key).map_or(MessageGroup::NONE, MessageGroup::of))
    }
}

/// The message group of a key, which stands behind a minus.
fn group_of(key: &str) -> Option<&str> {
    key.split_once('-').map(|(_, group)| group)
}

/// The filter wants every few messages, by their numbers.
fn is_wanted(key: &str) -> bool {
    let number = key.split('-').next().and_then(|name| name.strip_prefix('m')?.parse::<u64>().ok());
    number.is_some_and(|number| number.is_multiple_of(WANTED_EVERY))
}

/// Whether a transaction of this key is to be committed: what the application's own database says.
fn is_committed(key: &str) -> bool {
    let number = key.strip_prefix('m').and_then(|number| number.parse::<u64>().ok());
    number.is_none_or(|number| !number.is_multiple_of(ROLLED_BACK_EVERY))
}

/// A point on the line that log time never leaves upwards: it runs as fast as the run's clock at most, whoever stamps it.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    asked_us: u64,
    log_ms: u64,
}

impl Line {
    /// The earliest moment of the run at which log time can be `due_ms`; stamps are cut to whole milliseconds.
    fn reaches_us(self, due_ms: u64) -> u64 {
        self.asked_us + (due_ms.saturating_sub(self.log_ms) * 1000).saturating_sub(1000)
    }

    /// The latest that log time can be at a moment.
    fn at_most_ms(self, now_us: u64) -> u64 {
        self.log_ms + now_us.saturating_sub(self.asked_us) / 1000
    }
}

/// A node's replica, its clocks, and what its timer knows.
#[derive(Clone)]
pub struct Desk {
    replica: replica::Shared,
    log: LogView,
    clock: Arc<Mutex<LogClock>>,
    started: Instant,
    /// What the node's wall clock showed at the start of the run.
    wall: Timestamp,
    schedule: Arc<Mutex<Schedule>>,
}

/// A replica that notes where delayed and half messages went, as nobody else learns it when an answer is lost.
pub struct Noting {
    replica: Replica,
    went: Went,
}

/// Where each message that waited became visible.
type Went = Arc<Mutex<BTreeMap<Waiting, Spot>>>;

impl Noting {
    fn note(&self, payload: &Bytes, replies: &[Reply]) {
        let commands = Batch::decode(payload.clone()).map(|batch| batch.commands).unwrap_or_default();
        for (command, reply) in commands.iter().zip(replies) {
            let waited = if let Command::Deliver(deliver) = command {
                Waiting::Delayed(deliver.id)
            } else if let Command::Resolve(resolve) = command {
                Waiting::Half(resolve.id)
            } else {
                continue;
            };
            if let Reply::Sent { queue, offset, .. } = reply {
                lock(&self.went).insert(waited, Spot { queue: queue.0.into(), offset: offset.0 });
            }
        }
    }
}

impl StateMachine for Noting {
    type Reply = Applied;

    fn applied(&self) -> Option<LogId> {
        self.replica.applied()
    }

    fn apply(&mut self, entry: CommittedEntry) -> Applied {
        let payload = entry.payload.clone();
        let applied = self.replica.apply(entry);
        self.note(&payload, &applied.replies);
        applied
    }

    fn settle(&mut self, synced: Position) {
        self.replica.settle(synced);
    }

    fn save_image(&mut self, border: Position) -> Bytes {
        self.replica.save_image(border)
    }

    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError> {
        self.replica.load_image(at, image)
    }

    fn floor(&mut self, floor: Position) {
        self.replica.floor(floor);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Prepare,
    Send {
        client: String,
        key: String,
        queue: u16,
        filler: usize,
        due_ms: Option<u64>,
    },
    Recall {
        due_ms: u64,
        number: u64,
    },
    Half {
        client: String,
        key: String,
        queue: u16,
        filler: usize,
        immunity_ms: u64,
    },
    End {
        number: u64,
        commit: bool,
    },
    Receive {
        reader: Reader,
        max: u16,
        invisible_ms: u64,
        first_queue: u16,
        attempt: String,
    },
    Ack {
        reader: Reader,
        handles: Vec<String>,
    },
    /// Of one node to another: consume queue records from a place on.
    Lend {
        topic: u32,
        queue: u16,
        offset: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Done, at this log time.
    Prepared(u64),
    Delayed {
        number: u64,
    },
    Half {
        number: u64,
    },
    Sent {
        queue: u16,
        offset: u64,
    },
    Received(Vec<Delivered>),
    Acked(Vec<bool>),
    Lent(Vec<u8>),
    /// A deterministic no.
    Refused(String),
    /// Certainly no effect.
    NotNow,
    /// May have an effect.
    Unknown,
}

#[derive(Debug, Serialize, Deserialize)]
struct Delivered {
    queue: u16,
    offset: u64,
    attempt: u32,
    key: String,
    handle: String,
}

impl Desk {
    fn reading(&self) -> Reading {
        let elapsed = self.started.elapsed();
        Reading { wall: self.wall.after(elapsed), monotonic: elapsed }
    }

    /// The stamp of the next batch.
    fn now(&self) -> Timestamp {
        let applied = self.replica.log_now();
        let mut clock = lock(&self.clock);
        clock.follow(self.reading(), applied);
        clock.stamp(self.reading(), applied)
    }

    /// Notes log time, as every node does all the time.
    fn follow(&self) {
        lock(&self.clock).follow(self.reading(), self.replica.log_now());
    }

    /// What the node's timer would propose now.
    fn due(&self, term: Term) -> Vec<Command> {
        let now = lock(&self.clock).now(self.reading());
        let due = lock(&self.schedule).due(term, now, PORTION).unwrap_or_default();
        let deliver = |(id, found)| Some(Command::Deliver(Deliver { id, record: body(found)? }));
        due.into_iter().filter_map(deliver).collect()
    }

    async fn command(&self, group: &Watching<Queueing>, request: &Request) -> Option<Vec<Command>> {
        let topic_name = TopicName::parse(TOPIC).ok()?;
        if let Request::Prepare = request {
            let kind = TopicKind::Any;
            let topic = PutTopic { name: topic_name, queues: QUEUES, kind, auto: false, replace: false };
            let group = |reader: Reader| {
                let name = GroupName::parse(reader.group()).expect("a name");
                let fifo = reader == Reader::Ordered;
                Command::PutGroup(PutGroup {
                    name,
                    fifo,
                    start: StartAt::First,
                    auto: false,
                    replace: false,
                    retry: None,
                })
            };
            let topic = std::iter::once(Command::PutTopic(topic));
            return Some(topic.chain(Reader::ALL.map(group)).collect());
        }
        let reader = match request {
            Request::Receive { reader, .. } | Request::Ack { reader, .. } => *reader,
            Request::Prepare
            | Request::Send { .. }
            | Request::Recall { .. }
            | Request::Half { .. }
            | Request::End { .. }
            | Request::Lend { .. } => Reader::Plain,
        };
        let group_name = GroupName::parse(reader.group()).ok()?;
        let ids = |machine: &Machine| Some((machine.topic(&topic_name)?.id(), machine.group(&group_name)?.id()));
        let (topic, readers) = self.replica.read(ids)?;
        let command = match request {
            Request::Prepare | Request::Lend { .. } => return None,
            Request::Send { client, key, queue, filler, due_ms } => {
                let send = send_of(topic, client, key, *queue, *filler);
                match due_ms {
                    None => Command::Send(send),
                    Some(due_ms) => Command::SendDelayed(SendDelayed { due: Timestamp(*due_ms), send }),
                }
            }
            Request::Recall { due_ms, number } => {
                let id = DelayId { due: Timestamp(*due_ms), number: *number };
                Command::Recall(Recall { id, topic })
            }
            Request::Half { client, key, queue, filler, immunity_ms } => {
                let send = send_of(topic, client, key, *queue, *filler);
                Command::SendHalf(SendHalf { immunity_ms: *immunity_ms, send })
            }
            Request::End { number, commit } => self.resolve(HalfId(*number), topic, *commit)?,
            Request::Receive { max, invisible_ms, first_queue, attempt, .. } => {
                let receive = Receive {
                    group: readers,
                    topic,
                    max: *max,
                    invisible_ms: *invisible_ms,
                    first_queue: QueueId(*first_queue),
                    attempt: Some(AttemptKey::new(attempt)),
                    consumer: None,
                };
                if reader == Reader::Plain {
                    Command::Receive(receive)
                } else {
                    Command::ReceiveScanned(self.read_ahead(group, receive, reader).await?)
                }
            }
            Request::Ack { handles, .. } => {
                let parse = |text: &String| Handle::parse(text, ClusterHash::of(CLUSTER)).ok();
                Command::Ack(Ack { group: readers, entries: handles.iter().filter_map(parse).collect() })
            }
        };
        Some(vec![command])
    }

    /// The end of a transaction as the leader plans it. `None` if the disk does not give the body that is needed.
    fn resolve(&self, id: HalfId, topic: TopicId, commit: bool) -> Option<Command> {
        let behind = self.replica.read(|machine| {
            let pointer = machine.half(id)?.pointer;
            (commit && machine.is_behind_border(pointer.position)).then_some(pointer)
        });
        let record = match behind {
            Some(pointer) => Some(body(self.replica.stored(pointer).ok()?)?),
            None => None,
        };
        let resolution = if commit { Resolution::Commit } else { Resolution::Rollback };
        Some(Command::Resolve(Resolve { id, topic, resolution, record }))
    }

    /// Half messages that a producer is to be asked about now: their keys, and the note that it was asked.
    fn checks(&self) -> Vec<(String, TopicId, Checked)> {
        let now = lock(&self.clock).now(self.reading());
        let due: Vec<_> = self.replica.read(|machine| {
            let due = |topic| machine.to_check(topic, now).take(PORTION.commands_max);
            machine.topics_to_check(now).flat_map(due).collect()
        });
        let key = |pointer| Some(key_of(body(self.replica.stored(pointer).ok()?)?.bytes()));
        let checks = due.into_iter().filter_map(|(id, half)| {
            Some((key(half.pointer)?, half.topic, Checked { id, checks: half.checks, again_ms: Some(CHECK_MS) }))
        });
        checks.collect()
    }

    /// A receive with what the leader reads ahead for it, from the cursors on each time. `None` if the disk fails, or no node has a record
    /// now that has rotted here.
    async fn read_ahead(&self, group: &Watching<Queueing>, receive: Receive, reader: Reader) -> Option<ReceiveScanned> {
        let (mut scans, claimed) = (Scans::default(), Claimed::default());
        let (readers, topic, first, max) = (receive.group, receive.topic, receive.first_queue, receive.max);
        loop {
            let ask = Ask { group: readers, topic, first, now: self.now(), max, claimed: &claimed };
            let plan = scans.plan(&self.replica, &ask, &reader).ok()?;
            if let Some(spot) = plan.damaged {
                if !self.mend(group, spot).await {
                    return None;
                }
                continue;
            }
            match plan.rotten {
                Some(pointer) => scans.rescued(pointer, None),
                None if plan.more && plan.count() == 0 && !plan.moves => {}
                None => return Some(ReceiveScanned { receive, scans: plan.scans, verdicts: plan.verdicts }),
            }
        }
    }

    /// Puts rotten consume queue records back as another node has them, as the broker's leader does.
    async fn mend(&self, group: &Watching<Queueing>, spot: replica::Spot) -> bool {
        let lend = Request::Lend { topic: spot.topic.0, queue: spot.queue.0, offset: spot.offset.0 };
        let lend: Bytes = serde_json::to_vec(&lend).map_or_else(|_| Bytes::new(), Bytes::from);
        let status = group.status();
        for member in status.members.iter().filter(|member| member.id != status.id) {
            let Ok(answer) = group.call(member.id, lend.clone(), LEND_WITHIN).await else { continue };
            if let Ok(Answer::Lent(records)) = serde_json::from_slice(&answer)
                && self.replica.mend(spot, &records).unwrap_or(false)
            {
                return true;
            }
        }
        false
    }

    /// What stands at a place of a queue, once its record has been mended if it must be and can be.
    async fn mended(&self, group: &Watching<Queueing>, found: replica::Found) -> replica::Found {
        match found {
            replica::Found::Damaged(spot) if self.mend(group, spot).await => {
                self.replica.record(spot.topic, spot.queue, spot.offset).unwrap_or(replica::Found::Damaged(spot))
            }
            found @ (replica::Found::Record(_)
            | replica::Found::Gone
            | replica::Found::Rotten(_)
            | replica::Found::Damaged(_)) => found,
        }
    }

    async fn answer(&self, group: &Watching<Queueing>, reply: Option<Reply>) -> Answer {
        match reply {
            None => Answer::Unknown,
            Some(Reply::Sent { queue, offset, .. }) => Answer::Sent { queue: queue.0, offset: offset.0 },
            Some(Reply::Acked { results }) => Answer::Acked(results.into_iter().map(|result| result.is_ok()).collect()),
            Some(Reply::Delayed { id, .. }) => Answer::Delayed { number: id.number },
            Some(Reply::Half { id, .. }) => Answer::Half { number: id.0 },
            // A segment border came between plan and apply: planned again, as the broker's leader does.
            Some(Reply::Refused(Refusal::BodyNeeded)) => Answer::NotNow,
            Some(Reply::Topic { .. } | Reply::Group { .. } | Reply::Changed { .. } | Reply::Done) => {
                Answer::Prepared(self.replica.log_now().0)
            }
            Some(Reply::Refused(refusal)) => Answer::Refused(refusal.to_string()),
            Some(Reply::Received { deliveries }) => {
                let places: Vec<_> = deliveries.iter().map(|delivery| (delivery.queue, delivery.offset)).collect();
                let Some(topic) = deliveries.first().map(|delivery| delivery.handle.topic) else {
                    return Answer::Received(Vec::new());
                };
                let Ok(records) = self.replica.records(topic, &places) else { return Answer::Unknown };
                let mut with_record = Vec::with_capacity(deliveries.len());
                for (delivery, found) in deliveries.into_iter().zip(records) {
                    let key = match self.mended(group, found).await {
                        replica::Found::Record(record) => key_of(&record.bytes),
                        // Below the floor between hand-out and here; or it comes back when its time is over.
                        replica::Found::Gone | replica::Found::Rotten(_) | replica::Found::Damaged(_) => continue,
                    };
                    let handle = delivery.handle.to_text(ClusterHash::of(CLUSTER));
                    let (queue, offset, attempt) = (delivery.queue.0, delivery.offset.0, delivery.attempt);
                    with_record.push(Delivered { queue, offset, attempt, key, handle });
                }
                Answer::Received(with_record)
            }
        }
    }
}

/// The bytes of a message that waits, unless this node's disk has lost them.
fn body(found: replica::Found) -> Option<Record> {
    match found {
        replica::Found::Record(record) => Some(record.bytes.into()),
        replica::Found::Gone | replica::Found::Rotten(_) | replica::Found::Damaged(_) => None,
    }
}

/// What a node's timer does, for as long as the world stands: it follows log time, and while it leads it delivers what is due and asks
/// about half messages.
async fn timer(world: World<Queueing>, number: u16) {
    let mut dice = Dice::new(world.scenario().seed, &format!("timer of n{number}"));
    loop {
        sleep(dice.millis(10..=50)).await;
        let Some(Running { group, shared: desk, death }) = world.running(number) else { continue };
        desk.follow();
        let view = *group.leader().borrow();
        if !view.serving {
            continue;
        }
        let mut commands = desk.due(view.term);
        let asked_us = world.subject().now_us(&world);
        for (key, topic, checked) in desk.checks() {
            commands.push(Command::Checked(checked));
            let commit = is_committed(&key);
            let answer = dice.chance(ANSWERED_PERCENT).then(|| desk.resolve(checked.id, topic, commit)).flatten();
            if let Some(answer) = answer {
                // A producer, through this node; it hears nothing of what becomes of its answer.
                let outcome = Acked::Unknown("an answer to a check".into());
                let span = Span { process: ASKED, invoke_us: asked_us, return_us: world.subject().now_us(&world) };
                let what = Held::End { commit, outcome };
                let hold = op::Hold { span, topic: TOPIC.into(), key: key.into(), what };
                world.subject().record(Op::Hold(hold));
                commands.push(answer);
            }
        }
        if commands.is_empty() {
            continue;
        }
        let batch = Batch { now: desk.now(), commands };
        tokio::select! {
            biased;
            () = death.cancelled() => {}
            // Lost or not, the next look shows what is still due.
            _ = group.propose(batch.encode()) => {}
        }
    }
}

fn send_of(topic: TopicId, client: &str, key: &str, queue: u16, filler: usize) -> Send {
    let record = record(key, filler);
    let body_crc = crc32c::crc32c(&record);
    let (key, queue) = (SendKey::new(topic, client, key), QueueId(queue));
    Send { topic, queue, key, body_crc, tag_hash: 0, record: record.into() }
}

/// A message: length of its key (2), the key, filler.
fn record(key: &str, filler: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(2 + key.len() + filler);
    out.put_u16_le(key.len() as u16);
    out.put_slice(key.as_bytes());
    out.put_bytes(b'.', filler);
    out.freeze()
}

/// The key of a message; damaged bytes give a key that nobody sent.
fn key_of(record: &[u8]) -> String {
    let len = record.get(..2).map_or(0, |len| usize::from(u16::from_le_bytes([len[0], len[1]])));
    let key = record.get(2..2 + len).unwrap_or(b"?");
    String::from_utf8_lossy(key).into_owned()
}

impl Subject for Queueing {
    type Machine = Noting;
    type Shared = Desk;

    fn open(&self, opening: Opening) -> Result<(Noting, Desk), String> {
        let checkpoint = CheckpointMode::Plain;
        let settings = ReplicaSettings { data_dir: opening.dir, checkpoint, queue_file_records: QUEUE_FILE_RECORDS };
        let (machine, replica) = Replica::open(settings, opening.disk, opening.view.clone())?;
        let skew_ms = Dice::new(opening.seed, &format!("clock of n{}", opening.node)).below(SKEW_MS);
        let desk = Desk {
            schedule: Arc::new(Mutex::new(Schedule::new(replica.clone()))),
            replica,
            log: opening.view,
            clock: Arc::new(Mutex::new(LogClock::new())),
            started: opening.started,
            wall: Timestamp(WALL_MS + skew_ms),
        };
        Ok((Noting { replica: machine, went: self.went.clone() }, desk))
    }

    /// Carries what waits below the floor first, as the broker's leader does.
    async fn before_floor(leader: &Running<Self>, floor: Position) -> Option<Position> {
        let desk = &leader.shared;
        let floor = desk.replica.read(|machine| machine.border_below(floor))?;
        let mut after = None;
        loop {
            let going_up = lock(&desk.schedule).carry(floor, after, PORTION).ok()?;
            let carry = |(waiting, found)| Some(Command::Carry(Carry { waiting, record: body(found)? }));
            let commands: Option<Vec<Command>> = going_up.bodies.into_iter().map(carry).collect();
            // A body that has rotted here holds the floor: this simulation asks no other node for it.
            let commands = commands?;
            if !commands.is_empty() {
                leader.group.propose(Batch { now: desk.now(), commands }.encode()).await.ok()?;
            }
            match going_up.after {
                Some(last) => after = Some(last),
                None => return Some(floor),
            }
        }
    }

    async fn serve(group: Watching<Self>, desk: Desk, request: Bytes) -> Bytes {
        let answer = answer(&group, &desk, &request).await;
        serde_json::to_vec(&answer).map_or_else(|_| Bytes::new(), Bytes::from)
    }

    async fn prepare(world: &World<Self>) -> bool {
        let client = Client::new(world, PROBE, 1);
        for number in world.numbers() {
            world.spawn(timer(world.clone(), number));
        }
        for _ in 0..100 {
            let asked_us = client.now_us();
            if let Answer::Prepared(log_ms) = client.call(&Request::Prepare).await {
                world.subject().book().line = Line { asked_us, log_ms };
                return true;
            }
            sleep(Duration::from_millis(100)).await;
        }
        false
    }

    async fn client(world: World<Self>, number: u32, stop: CancellationToken) {
        let mut client = Client::new(&world, number, 1);
        while !stop.is_cancelled() {
            let think = world.scenario().think.as_micros() as u64;
            sleep(Duration::from_micros(client.dice.within(100..=think))).await;
            match number % 2 {
                0 if client.dice.chance(30) => client.send_delayed().await,
                0 if client.dice.chance(40) => client.transact().await,
                0 => client.send().await,
                _ => {
                    let reader = client.dice.pick(&Reader::ALL);
                    client.receive(reader, 80).await;
                }
            }
        }
    }

    async fn probe(world: &World<Self>, node: u16) -> bool {
        let mut client = Client::new(world, PROBE, node);
        matches!(client.send_once(1).await, Sent::Stored { .. })
    }

    /// Receives until nothing comes for longer than a delivery can be hidden, then lets the checkers judge.
    async fn drain(world: &World<Self>) {
        let mut client = Client::new(world, DRAIN, 1);
        let (started, mut last) = (Instant::now(), Instant::now());
        while last.elapsed() < Duration::from_millis(INVISIBLE_MS * 2) {
            for reader in Reader::ALL {
                let before = world.subject().book().seen[reader as usize].len();
                client.receive(reader, 100).await;
                if world.subject().book().seen[reader as usize].len() > before {
                    last = Instant::now();
                }
            }
            if started.elapsed() > DRAIN_WITHIN {
                world.witness().violate("drains", format!("messages still come {DRAIN_WITHIN:?} after the last send"));
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        world.subject().judge_history(world);
    }

    fn state(desk: &Desk) -> Bytes {
        desk.replica.read(Machine::save_image)
    }

    /// Every message that every queue still holds can be read, and stands where its producer was told.
    fn judge(&self, desk: &Desk) -> Vec<String> {
        let mut wrong = Vec::new();
        for op in &self.book().ops {
            let Op::Send(send) = op else { continue };
            let Some(spot) = spot(send) else { continue };
            match desk.stored(spot) {
                // A node that has no record any more knows it, and asks when it leads.
                Found::Dropped | Found::Damaged => {}
                Found::Message(found) if *found == *send.key => {}
                found @ (Found::Message(_) | Found::Nothing(_)) => {
                    wrong.push(format!("{} was stored at {spot:?}, where {found} is", send.key))
                }
            }
        }
        wrong.truncate(3);
        wrong
    }
}

/// Where an acknowledged message stands.
fn spot(send: &op::Send) -> Option<Spot> {
    match send.outcome {
        Sent::Stored { queue: Some(queue), offset: Some(offset) } => Some(Spot { queue, offset }),
        Sent::Stored { .. } | Sent::Failed(_) | Sent::Unknown(_) => None,
    }
}

/// What stands at a place of a queue.
enum Found {
    /// Retention has passed it.
    Dropped,
    /// A message whose consume queue record has rotted.
    Damaged,
    /// A message with this key.
    Message(String),
    /// Nothing, though something should.
    Nothing(String),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dropped => f.write_str("nothing, dropped by retention,"),
            Self::Damaged => f.write_str("a rotten record"),
            Self::Message(key) => write!(f, "message {key}"),
            Self::Nothing(why) => write!(f, "nothing ({why})"),
        }
    }
}

impl Desk {
    fn stored(&self, spot: Spot) -> Found {
        let queue = QueueId(spot.queue as u16);
        let topic =
            TopicName::parse(TOPIC).ok().and_then(|name| self.replica.read(|machine| Some(machine.topic(&name)?.id())));
        let Some(topic) = topic else { return Found::Nothing("no topic".into()) };
        let Some((min, end)) = self.replica.read(|machine| machine.queue_range(topic, queue)) else {
            return Found::Nothing("no queue".into());
        };
        if spot.offset < min.0 {
            return Found::Dropped;
        }
        match self.replica.record(topic, queue, QueueOffset(spot.offset)) {
            Ok(replica::Found::Record(record)) => Found::Message(key_of(&record.bytes)),
            Ok(replica::Found::Gone) => Found::Nothing(format!("range {min}..{end}, floor {}", self.log.floor())),
            Ok(replica::Found::Damaged(_)) => Found::Damaged,
            Ok(replica::Found::Rotten(pointer)) => Found::Nothing(format!("rotten at {}", pointer.position)),
            Err(error) => Found::Nothing(error.to_string()),
        }
    }
}

async fn answer(group: &Watching<Queueing>, desk: &Desk, request: &Bytes) -> Answer {
    let Ok(request) = serde_json::from_slice::<Request>(request) else { return Answer::NotNow };
    if let Request::Lend { topic, queue, offset } = request {
        let from = replica::Spot { topic: TopicId(topic), queue: QueueId(queue), offset: QueueOffset(offset) };
        return Answer::Lent(desk.replica.lend(from, LENT_MAX).to_vec());
    }
    // Until everything from before this term is applied, log time and names are not known.
    if !group.leader().borrow().serving {
        return Answer::NotNow;
    }
    let Some(commands) = desk.command(group, &request).await else { return Answer::NotNow };
    let batch = Batch { now: desk.now(), commands };
    match group.propose(batch.encode()).await {
        Ok(applied) => desk.answer(group, applied.replies.into_iter().next()).await,
        Err(ProposeError::Unknown) => Answer::Unknown,
        Err(
            ProposeError::NotLeader { .. }
            | ProposeError::Overloaded
            | ProposeError::TooLarge(_)
            | ProposeError::Stopped(_),
        ) => Answer::NotNow,
    }
}

impl Queueing {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run's time, a microsecond later each time it is read, so that "returned before" is never a tie.
    fn now_us(&self, world: &World<Self>) -> u64 {
        let now = world.witness().elapsed().as_micros() as u64;
        let mut book = self.book();
        book.last_us = now.max(book.last_us + 1);
        book.last_us
    }

    /// Keeps what a producer saw.
    fn record(&self, op: Op) {
        self.book().ops.push(op);
    }

    /// Keeps what a consumer of a group saw.
    fn record_seen(&self, reader: Reader, op: Op) {
        self.book().seen[reader as usize].push(op);
    }

    /// Lets the checkers of the real runs judge what the clients saw. A message that retention dropped before anyone received it
    /// is nobody's loss: its send counts as unknown.
    fn judge_history(&self, world: &World<Self>) {
        let Some((_, leader)) = world.leader() else {
            return world.witness().violate("drains", "no leader serves at the end".into());
        };
        let (mut sends, waiting) = {
            let book = self.book();
            (book.ops.clone(), book.waiting.clone())
        };
        let went = lock(&self.went).clone();
        let later = |key: &str| went.get(waiting.get(key)?).copied();
        let mut dropped = BTreeSet::new();
        for op in &mut sends {
            if let Op::Send(send) = op
                && let Some(spot) = spot(send).or_else(|| later(&send.key))
                && matches!(leader.shared.stored(spot), Found::Dropped)
            {
                send.outcome = Sent::Unknown("dropped by retention".into());
                dropped.insert(send.key.clone());
            }
        }
        // A message whose send has no certain outcome is known by its deliveries only.
        for op in &self.book().seen[Reader::Ordered as usize] {
            if let Op::Receive(op::Receive { outcome: Received::Message { key, spot, .. }, .. }) = op
                && matches!(leader.shared.stored(*spot), Found::Dropped)
            {
                dropped.insert(key.clone());
            }
        }
        let [plain, ordered, filtered] = Reader::ALL.map(|reader| {
            let seen = self.book().seen[reader as usize].clone();
            Table::of(sends.iter().filter(|op| reader != Reader::Filtered || is_of_filter(op)).chain(&seen))
        });
        let verdict = Verdict::of(&plain);
        if verdict.verdict == Judgement::Fail {
            world.witness().violate("history", format!("{verdict:?}"));
        }
        let violate = |rule, findings: Findings| {
            if findings.count > 0 {
                world.witness().violate(rule, format!("{findings:?}"));
            }
        };
        violate("ordered: message groups", group_order(&ordered, group_of, |key| dropped.contains(key)));
        violate("filtered: unwanted", unwanted(&filtered, is_wanted));
        for table in [&ordered, &filtered] {
            violate("lost", lost(table));
            violate("acked and back", acked_returned(table));
            violate("double delivery", double_deliveries(table));
            violate("early", early(table));
            violate("recalled and back", recalled(table));
        }
        for table in [&plain, &ordered, &filtered] {
            violate("transactions", atomic(table));
        }
        violate("ordered: invented", invented(&ordered));
    }
}

/// About a message that the filtered consumer group is to get.
fn is_of_filter(op: &Op) -> bool {
    match op {
        Op::Send(send) => is_wanted(&send.key),
        Op::Hold(hold) => is_wanted(&hold.key),
        Op::Receive(_) | Op::Ack(_) | Op::Fault(_) | Op::Election(_) => false,
    }
}

/// A producer or a consumer with one call under way.
struct Client {
    world: World<Queueing>,
    dice: Dice,
    number: u32,
    node: u16,
    calls: u64,
}

impl Client {
    fn new(world: &World<Queueing>, number: u32, node: u16) -> Self {
        let dice = Dice::new(world.scenario().seed, &format!("client {number}"));
        Self { world: world.clone(), dice, number, node, calls: 0 }
    }

    fn now_us(&self) -> u64 {
        self.world.subject().now_us(&self.world)
    }

    fn topic(&self) -> Arc<str> {
        TOPIC.into()
    }

    fn span(&self, invoke_us: u64) -> Span {
        Span { process: self.number, invoke_us, return_us: self.now_us() }
    }

    async fn call(&self, request: &Request) -> Answer {
        let (Some(running), Ok(bytes)) = (self.world.running(self.node), serde_json::to_vec(request)) else {
            return Answer::NotNow;
        };
        let Running { group, death, .. } = running;
        let called = tokio::select! {
            biased;
            () = death.cancelled() => return Answer::Unknown,
            called = group.call_leader(bytes.into(), PATIENCE) => called,
        };
        match called {
            Ok(answer) => serde_json::from_slice(&answer).unwrap_or(Answer::Unknown),
            Err(CallError::NotSent(_)) => Answer::NotNow,
            Err(CallError::Unknown(_)) => Answer::Unknown,
        }
    }

    /// Calls until there is an answer, through another node each time. The last answer, and whether any earlier call may have had
    /// its effect.
    async fn insist(&mut self, tries: u32, mut request: impl FnMut(&mut Dice) -> Request) -> (Answer, bool) {
        let mut maybe = false;
        for tried in 1.. {
            let request = request(&mut self.dice);
            let answer = self.call(&request).await;
            match answer {
                Answer::NotNow => {}
                Answer::Unknown => maybe = true,
                Answer::Prepared(_)
                | Answer::Sent { .. }
                | Answer::Delayed { .. }
                | Answer::Half { .. }
                | Answer::Received(_)
                | Answer::Acked(_)
                | Answer::Lent(_)
                | Answer::Refused(_) => {
                    return (answer, maybe);
                }
            }
            if tried == tries {
                return (answer, maybe);
            }
            self.node = self.dice.pick(&self.world.numbers());
            sleep(self.dice.millis(5..=300)).await;
        }
        (Answer::Unknown, maybe)
    }

    async fn send(&mut self) {
        self.send_once(TRIES).await;
    }

    /// Sends a message that is due in some seconds, and takes some of those back.
    async fn send_delayed(&mut self) {
        let line = self.world.subject().book().line;
        let due_ms = line.at_most_ms(self.now_us()) + self.dice.within(1..=DELAY_MS);
        let Some((key, number)) = self.send_due(TRIES, Some(due_ms)).await.1 else { return };
        if !self.dice.chance(20) {
            return;
        }
        sleep(self.dice.millis(0..=DELAY_MS)).await;
        let invoke_us = self.now_us();
        let (answer, maybe) = self.insist(TRIES, |_| Request::Recall { due_ms, number }).await;
        let outcome = match answer {
            Answer::Prepared(_) => Acked::Done,
            Answer::NotNow | Answer::Refused(_) if !maybe => Acked::Failed("too late, or not now".into()),
            Answer::Sent { .. }
            | Answer::Delayed { .. }
            | Answer::Half { .. }
            | Answer::Received(_)
            | Answer::Acked(_)
            | Answer::Lent(_)
            | Answer::Refused(_)
            | Answer::NotNow
            | Answer::Unknown => Acked::Unknown("no answer".into()),
        };
        self.hold(invoke_us, key, Held::Recall(outcome));
    }

    /// Sends a half message, and ends most of them; the rest is left open, as by a producer that dies.
    async fn transact(&mut self) {
        let number = {
            let mut book = self.world.subject().book();
            book.sent += 1;
            book.sent
        };
        let (key, client) = (format!("m{number}"), format!("client {}", self.number));
        let (filler, immunity_ms) = (self.dice.below(200) as usize, self.dice.within(200..=IMMUNITY_MS));
        let invoke_us = self.now_us();
        self.hold(invoke_us, key.as_str().into(), Held::Half);
        self.world.witness().invoke(self.number, number, self.node);
        let half = |dice: &mut Dice| {
            let queue = dice.below(QUEUES.into()) as u16;
            Request::Half { client: client.clone(), key: key.clone(), queue, filler, immunity_ms }
        };
        let (answer, maybe) = self.insist(TRIES, half).await;
        let id = if let Answer::Half { number } = answer { Some(number) } else { None };
        let outcome = match (id, maybe) {
            (Some(_), _) => Sent::Stored { queue: None, offset: None },
            (None, true) => Sent::Unknown("no answer".into()),
            (None, false) if matches!(answer, Answer::Unknown) => Sent::Unknown("no answer".into()),
            (None, false) => Sent::Failed("not now, or refused".into()),
        };
        self.told(number, &outcome);
        let (span, topic) = (self.span(invoke_us), self.topic());
        if let Some(id) = id {
            self.world.subject().book().waiting.insert(key.as_str().into(), Waiting::Half(HalfId(id)));
        }
        self.world.subject().record(Op::Send(op::Send { span, topic, key: key.as_str().into(), outcome }));
        let Some(id) = id.filter(|_| self.dice.chance(80)) else { return };
        sleep(self.dice.millis(0..=IMMUNITY_MS * 2)).await;
        let (invoke_us, commit) = (self.now_us(), is_committed(&key));
        let (answer, maybe) = self.insist(TRIES, |_| Request::End { number: id, commit }).await;
        let outcome = match answer {
            Answer::Sent { .. } | Answer::Prepared(_) => Acked::Done,
            Answer::NotNow | Answer::Refused(_) if !maybe => Acked::Failed("not now, or refused".into()),
            Answer::Delayed { .. }
            | Answer::Half { .. }
            | Answer::Received(_)
            | Answer::Acked(_)
            | Answer::Lent(_)
            | Answer::Refused(_)
            | Answer::NotNow
            | Answer::Unknown => Acked::Unknown("no answer".into()),
        };
        self.hold(invoke_us, key.into(), Held::End { commit, outcome });
    }

    fn hold(&self, invoke_us: u64, key: Box<str>, what: Held) {
        let hold = op::Hold { span: self.span(invoke_us), topic: self.topic(), key, what };
        self.world.subject().record(Op::Hold(hold));
    }

    /// Sends one message and writes down what became of it.
    async fn send_once(&mut self, tries: u32) -> Sent {
        self.send_due(tries, None).await.0
    }

    /// The same for one that is due at a log time; its key and number if it waits.
    async fn send_due(&mut self, tries: u32, due_ms: Option<u64>) -> (Sent, Option<(Box<str>, u64)>) {
        let number = {
            let mut book = self.world.subject().book();
            book.sent += 1;
            book.sent
        };
        let group = self.dice.below(MESSAGE_GROUPS + 2);
        // What is delayed has no message group.
        let (key, grouped) = match group < MESSAGE_GROUPS && due_ms.is_none() {
            true => (format!("m{number}-g{group}"), Some(MessageGroup::of(&format!("g{group}")))),
            false => (format!("m{number}"), None),
        };
        let client = format!("client {}", self.number);
        let filler = self.dice.below(if self.dice.clone().chance(10) { 2000 } else { 200 }) as usize;
        let (invoke_us, topic) = (self.now_us(), self.topic());
        let mut delayed = None;
        if let Some(due_ms) = due_ms {
            let not_before_us = self.world.subject().book().line.reaches_us(due_ms);
            self.hold(invoke_us, key.as_str().into(), Held::Until { not_before_us });
        }
        self.world.witness().invoke(self.number, number, self.node);
        let (answer, maybe) = self
            .insist(tries, |dice| {
                let anywhere = dice.below(QUEUES.into()) as u16;
                let queue = grouped.map_or(anywhere, |group| group.queue(QUEUES).0);
                Request::Send { client: client.clone(), key: key.clone(), queue, filler, due_ms }
            })
            .await;
        let outcome = match answer {
            Answer::Sent { queue, offset } => Sent::Stored { queue: Some(queue.into()), offset: Some(offset) },
            Answer::Delayed { number } => {
                delayed = Some((Box::from(key.as_str()), number));
                Sent::Stored { queue: None, offset: None }
            }
            Answer::NotNow if !maybe => Sent::Failed("not now".into()),
            Answer::Refused(why) if !maybe => Sent::Failed(why.into()),
            Answer::Prepared(_)
            | Answer::Half { .. }
            | Answer::Received(_)
            | Answer::Acked(_)
            | Answer::Lent(_)
            | Answer::Refused(_)
            | Answer::NotNow
            | Answer::Unknown => Sent::Unknown("no answer".into()),
        };
        let span = self.span(invoke_us);
        self.told(number, &outcome);
        if let Some((key, number)) = delayed.clone() {
            let due = Timestamp(due_ms.unwrap_or_default());
            let waiting = Waiting::Delayed(DelayId { due, number });
            self.world.subject().book().waiting.insert(key, waiting);
        }
        self.world.subject().record(Op::Send(op::Send { span, topic, key: key.into(), outcome: outcome.clone() }));
        (outcome, delayed)
    }

    fn told(&self, number: u64, outcome: &Sent) {
        let witness = self.world.witness();
        match outcome {
            Sent::Stored { .. } => witness.stored(self.number, number),
            Sent::Failed(_) => witness.not_now(self.number, number),
            Sent::Unknown(_) => witness.unknown(self.number, number),
        }
    }

    /// Receives once and acknowledges most of what came.
    async fn receive(&mut self, reader: Reader, ack_percent: u64) {
        self.calls += 1;
        let attempt = format!("{} {}", self.number, self.calls);
        let (max, invisible_ms) = (self.dice.within(1..=16) as u16, self.dice.within(500..=INVISIBLE_MS));
        let (mut invoke_us, topic) = (self.now_us(), self.topic());
        let mut came = Vec::new();
        for _ in 0..TRIES {
            let first_queue = self.dice.below(QUEUES.into()) as u16;
            let request = Request::Receive { reader, max, invisible_ms, first_queue, attempt: attempt.clone() };
            match self.call(&request).await {
                Answer::Received(deliveries) => {
                    came = deliveries;
                    break;
                }
                Answer::Unknown => {
                    let (span, outcome) = (self.span(invoke_us), Received::Unknown("no answer".into()));
                    let op = Op::Receive(op::Receive { span, topic: topic.clone(), outcome });
                    self.world.subject().record_seen(reader, op);
                    invoke_us = self.now_us();
                }
                Answer::Prepared(_)
                | Answer::Sent { .. }
                | Answer::Delayed { .. }
                | Answer::Half { .. }
                | Answer::Acked(_)
                | Answer::Lent(_)
                | Answer::Refused(_)
                | Answer::NotNow => {}
            }
            self.node = self.dice.pick(&self.world.numbers());
            sleep(self.dice.millis(5..=300)).await;
        }
        let span = self.span(invoke_us);
        for message in &came {
            let spot = Spot { queue: message.queue.into(), offset: message.offset };
            let outcome = Received::Message { key: message.key.as_str().into(), spot, attempt: message.attempt };
            let op = Op::Receive(op::Receive { span, topic: topic.clone(), outcome });
            self.world.subject().record_seen(reader, op);
        }
        came.retain(|_| self.dice.chance(ack_percent));
        if !came.is_empty() {
            self.acknowledge(reader, came).await;
        }
    }

    async fn acknowledge(&mut self, reader: Reader, messages: Vec<Delivered>) {
        let (invoke_us, topic) = (self.now_us(), self.topic());
        let handles: Vec<String> = messages.iter().map(|message| message.handle.clone()).collect();
        let (answer, maybe) = self.insist(TRIES, |_| Request::Ack { reader, handles: handles.clone() }).await;
        let span = self.span(invoke_us);
        for (number, message) in messages.into_iter().enumerate() {
            let outcome = match &answer {
                Answer::Acked(results) if results.get(number) == Some(&true) => Acked::Done,
                Answer::Acked(_) | Answer::Refused(_) | Answer::NotNow if !maybe => Acked::Failed("refused".into()),
                Answer::Prepared(_)
                | Answer::Sent { .. }
                | Answer::Delayed { .. }
                | Answer::Half { .. }
                | Answer::Received(_)
                | Answer::Acked(_)
                | Answer::Lent(_)
                | Answer::Refused(_)
                | Answer::NotNow
                | Answer::Unknown => Acked::Unknown("no answer".into()),
            };
            let spot = Spot { queue: message.queue.into(), offset: message.offset };
            let key = message.key.into();
            let op = Op::Ack(op::Ack { span, topic: topic.clone(), key, spot, outcome });
            self.world.subject().record_seen(reader, op);
        }
    }
}
