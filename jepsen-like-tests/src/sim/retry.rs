//! Retries and dead letters in the simulated group: consumers that fail more often than not, and a group that gives a message few attempts.
//!
//! Each node runs the broker's replica, as in [`super::queue`]; whoever leads moves what has no attempt left to the dead letters, as the
//! broker's leader does. Clients repeat what they have no answer to. At the end everything is either acknowledged or dead, and the book
//! of what clients saw is held against what stands among the dead letters:
//!
//! ```text
//!   attempts       of one message: 1, 2, 3, each delivery one more than the one before, never beyond the last
//!   once           no message is among the dead letters twice, and none that was acknowledged before its last time was over
//!   complete       a message that nobody acknowledged is a dead letter, and says where it came from and that it had all its attempts
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use quorate_broker::{
    LogClock, Reading,
    machine::{
        Ack, AttemptKey, Batch, ClusterHash, Command, DeadLetter, Delays, Exhausted, GroupId, Handle, Machine,
        PutGroup, PutTopic, QueueId, QueueOffset, Receive, Reply, Retry, Send, SendKey, StartAt, TopicId, TopicKind,
        consumer,
    },
    replica::{self, Applied, CheckpointMode, Replica, ReplicaSettings},
};
use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};
use quorate_raft::{CallError, CommittedEntry, ImagePoint, LogId, MachineError, Position, ProposeError, StateMachine};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    dice::Dice,
    world::{Opening, Running, Subject, Watching, World},
};
use crate::check::Findings;

const TOPIC: &str = "retried";
const GROUP: &str = "failing";
const CLUSTER: &str = "simulated";
const QUEUES: u16 = 2;
const QUEUE_FILE_RECORDS: u64 = 64;
/// How often the group gets a message.
const ATTEMPTS: u16 = 3;
/// Of a hundred deliveries so many are acknowledged.
const ACKED_PERCENT: u64 = 30;
/// Longest time that a delivery is hidden.
const INVISIBLE_MS: u64 = 1500;
/// How long a client waits for an answer, and how often it repeats what it has none to.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: u32 = 6;
const LEND_WITHIN: Duration = Duration::from_millis(500);
const LENT_MAX: u64 = 64;
/// Virtual time until everything is acknowledged or dead at the end.
const DRAIN_WITHIN: Duration = Duration::from_secs(120);
const WALL_MS: u64 = 1_700_000_000_000;
const SKEW_MS: u64 = 120_000;
const DRAIN: u32 = 1000;
const PROBE: u32 = 1001;

/// A message by its place.
type Place = (u16, u64);

/// The broker's retries as a subject of the simulation.
#[derive(Debug, Default)]
pub struct Retrying {
    book: Mutex<Book>,
    died: Died,
}

/// Where each dead letter stands, as the nodes applied it: also if nobody heard.
type Died = Arc<Mutex<BTreeMap<Place, BTreeSet<u64>>>>;

/// What the clients saw.
#[derive(Debug, Default)]
struct Book {
    sent: u64,
    /// By place: serial of each delivery, and its attempt.
    deliveries: BTreeMap<Place, BTreeMap<u64, u32>>,
    /// Places whose ack was answered OK, or may have counted.
    acked: BTreeSet<Place>,
}

/// A node's replica and clock.
#[derive(Clone)]
pub struct Desk {
    replica: replica::Shared,
    clock: Arc<Mutex<LogClock>>,
    started: Instant,
    wall: Timestamp,
}

/// A replica that notes what died.
pub struct Noting {
    replica: Replica,
    died: Died,
}

impl StateMachine for Noting {
    type Reply = Applied;

    fn applied(&self) -> Option<LogId> {
        self.replica.applied()
    }

    fn apply(&mut self, entry: CommittedEntry) -> Applied {
        let commands = Batch::decode(entry.payload.clone()).map(|batch| batch.commands).unwrap_or_default();
        let applied = self.replica.apply(entry);
        for (command, reply) in commands.iter().zip(&applied.replies) {
            if let (Command::DeadLetter(dead), Reply::Sent { offset, .. }) = (command, reply) {
                let place = (dead.handle.queue.0, dead.handle.offset.0);
                lock(&self.died).entry(place).or_default().insert(offset.0);
            }
        }
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

fn topic_name() -> TopicName {
    TopicName::parse(TOPIC).expect("a name")
}

fn group_name() -> GroupName {
    GroupName::parse(GROUP).expect("a name")
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Prepare,
    Send {
        client: String,
        key: String,
        queue: u16,
    },
    Receive {
        client: String,
        max: u16,
        invisible_ms: u64,
        attempt: String,
    },
    Ack {
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
    Done,
    Received(Vec<Delivered>),
    Acked(Vec<bool>),
    Lent(Vec<u8>),
    NotNow,
    Unknown,
}

#[derive(Debug, Serialize, Deserialize)]
struct Delivered {
    queue: u16,
    offset: u64,
    attempt: u32,
    serial: u64,
    handle: String,
}

impl Desk {
    fn reading(&self) -> Reading {
        let elapsed = self.started.elapsed();
        Reading { wall: self.wall.after(elapsed), monotonic: elapsed }
    }

    fn now(&self) -> Timestamp {
        let applied = self.replica.log_now();
        let mut clock = lock(&self.clock);
        clock.follow(self.reading(), applied);
        clock.stamp(self.reading(), applied)
    }

    fn ids(&self) -> Option<(TopicId, GroupId)> {
        self.replica.read(|machine| Some((machine.topic(&topic_name())?.id(), machine.group(&group_name())?.id())))
    }

    fn commands(&self, request: &Request) -> Option<Vec<Command>> {
        if let Request::Prepare = request {
            let kind = TopicKind::Any;
            let topic = PutTopic { name: topic_name(), queues: QUEUES, kind, auto: false, replace: false };
            let retry = Retry::new(ATTEMPTS, Delays::usual(false)).ok();
            let (name, start) = (group_name(), StartAt::First);
            let group = PutGroup { name, fifo: false, start, auto: false, replace: false, retry };
            return Some(vec![Command::PutTopic(topic), Command::PutGroup(group)]);
        }
        let (topic, group) = self.ids()?;
        let command = match request {
            Request::Prepare | Request::Lend { .. } => return None,
            Request::Send { client, key, queue } => {
                let record = Bytes::from(key.clone().into_bytes());
                let body_crc = crc32c::crc32c(&record);
                let (key, queue) = (SendKey::new(topic, client, key), QueueId(*queue));
                Command::Send(Send { topic, queue, key, body_crc, tag_hash: 0, record: record.into() })
            }
            Request::Receive { client, max, invisible_ms, attempt } => Command::Receive(Receive {
                group,
                topic,
                max: *max,
                invisible_ms: *invisible_ms,
                first_queue: QueueId(0),
                attempt: Some(AttemptKey::new(attempt)),
                consumer: consumer(client),
            }),
            Request::Ack { handles } => {
                let parse = |text: &String| Handle::parse(text, ClusterHash::of(CLUSTER)).ok();
                Command::Ack(Ack { group, entries: handles.iter().filter_map(parse).collect() })
            }
        };
        Some(vec![command])
    }

    /// What the leader moves now.
    async fn burials(&self, group: &Watching<Retrying>) -> Vec<Command> {
        let now = lock(&self.clock).now(self.reading());
        let from = (GroupId(0), TopicId(0));
        let found = self.replica.read(|machine| machine.exhausted(from, now, 1000, 8).0);
        let mut commands = Vec::new();
        for Exhausted { handle, consumer } in found {
            let Some(body) = self.body(group, handle.topic, handle.queue, handle.offset).await else { continue };
            let by = consumer.as_deref().unwrap_or("?");
            let record = format!("{body} {} {} {} {by}", handle.queue, handle.offset, handle.attempt);
            let record = Bytes::from(record.into_bytes()).into();
            commands.push(Command::DeadLetter(DeadLetter { handle, forwarded: false, tag_hash: 0, record }));
        }
        commands
    }

    /// The text of a message, once its queue record has been mended if it must be and can be.
    async fn body(
        &self,
        group: &Watching<Retrying>,
        topic: TopicId,
        queue: QueueId,
        offset: QueueOffset,
    ) -> Option<String> {
        let mut found = self.replica.record(topic, queue, offset).ok()?;
        if let replica::Found::Damaged(spot) = found
            && self.mend(group, spot).await
        {
            found = self.replica.record(topic, queue, offset).ok()?;
        }
        match found {
            replica::Found::Record(record) => Some(String::from_utf8_lossy(&record.bytes).into_owned()),
            replica::Found::Gone | replica::Found::Rotten(_) | replica::Found::Damaged(_) => None,
        }
    }

    async fn mend(&self, group: &Watching<Retrying>, spot: replica::Spot) -> bool {
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

    fn answer(&self, reply: Option<Reply>) -> Answer {
        match reply {
            None => Answer::Unknown,
            Some(Reply::Acked { results }) => Answer::Acked(results.into_iter().map(|result| result.is_ok()).collect()),
            Some(Reply::Received { deliveries }) => {
                let delivered = deliveries.into_iter().map(|delivery| Delivered {
                    queue: delivery.queue.0,
                    offset: delivery.offset.0,
                    attempt: delivery.attempt,
                    serial: delivery.handle.serial.0,
                    handle: delivery.handle.to_text(ClusterHash::of(CLUSTER)),
                });
                Answer::Received(delivered.collect())
            }
            Some(Reply::Refused(_)) => Answer::NotNow,
            Some(
                Reply::Sent { .. }
                | Reply::Delayed { .. }
                | Reply::Half { .. }
                | Reply::Changed { .. }
                | Reply::Topic { .. }
                | Reply::Group { .. }
                | Reply::Done,
            ) => Answer::Done,
        }
    }
}

/// Moves what has no attempt left, while its node leads.
async fn undertaker(world: World<Retrying>, number: u16) {
    let mut dice = Dice::new(world.scenario().seed, &format!("undertaker of n{number}"));
    loop {
        sleep(dice.millis(10..=80)).await;
        let Some(Running { group, shared: desk, death }) = world.running(number) else { continue };
        lock(&desk.clock).follow(desk.reading(), desk.replica.log_now());
        if !group.leader().borrow().serving {
            continue;
        }
        let work = async {
            let commands = desk.burials(&group).await;
            if !commands.is_empty() {
                // Lost or not, the next look shows what is still to be moved.
                let _ = group.propose(Batch { now: desk.now(), commands }.encode()).await;
            }
        };
        tokio::select! {
            biased;
            () = death.cancelled() => {}
            () = work => {}
        }
    }
}

impl Subject for Retrying {
    type Machine = Noting;
    type Shared = Desk;

    fn open(&self, opening: Opening) -> Result<(Noting, Desk), String> {
        let checkpoint = CheckpointMode::Plain;
        let settings = ReplicaSettings { data_dir: opening.dir, checkpoint, queue_file_records: QUEUE_FILE_RECORDS };
        let (machine, replica) = Replica::open(settings, opening.disk, opening.view)?;
        let skew_ms = Dice::new(opening.seed, &format!("clock of n{}", opening.node)).below(SKEW_MS);
        let clock = Arc::new(Mutex::new(LogClock::new()));
        let desk = Desk { replica, clock, started: opening.started, wall: Timestamp(WALL_MS + skew_ms) };
        Ok((Noting { replica: machine, died: self.died.clone() }, desk))
    }

    async fn serve(group: Watching<Self>, desk: Desk, request: Bytes) -> Bytes {
        let answer = serve(&group, &desk, &request).await;
        serde_json::to_vec(&answer).map_or_else(|_| Bytes::new(), Bytes::from)
    }

    async fn prepare(world: &World<Self>) -> bool {
        for number in world.numbers() {
            world.spawn(undertaker(world.clone(), number));
        }
        let mut client = Client::new(world, PROBE, 1);
        matches!(client.insist(100, |_| Request::Prepare).await, Answer::Done)
    }

    async fn client(world: World<Self>, number: u32, stop: CancellationToken) {
        let mut client = Client::new(&world, number, 1);
        while !stop.is_cancelled() {
            let think = world.scenario().think.as_micros() as u64;
            sleep(Duration::from_micros(client.dice.within(100..=think))).await;
            if number.is_multiple_of(2) {
                client.send(TRIES).await;
            } else {
                client.receive().await;
            }
        }
    }

    /// Receives until every message is acknowledged or dead, then holds the book against what stands there.
    async fn drain(world: &World<Self>) {
        let mut client = Client::new(world, DRAIN, 1);
        let started = Instant::now();
        loop {
            client.receive().await;
            if let Some((_, leader)) = world.leader()
                && leader.shared.is_done()
            {
                return world.subject().judge_history(world, &leader).await;
            }
            if started.elapsed() > DRAIN_WITHIN {
                let why = format!("messages are neither acknowledged nor dead {DRAIN_WITHIN:?} after the last send");
                return world.witness().violate("drains", why);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn probe(world: &World<Self>, node: u16) -> bool {
        Client::new(world, PROBE, node).send(1).await
    }

    fn state(desk: &Desk) -> Bytes {
        desk.replica.read(Machine::save_image)
    }

    fn judge(&self, _: &Desk) -> Vec<String> {
        Vec::new()
    }
}

impl Desk {
    /// The group has nothing in flight and nothing before it.
    fn is_done(&self) -> bool {
        let Some((topic, group)) = self.ids() else { return false };
        (0..QUEUES).all(|queue| {
            let progress = self.replica.read(|machine| machine.progress(group, topic, QueueId(queue)));
            progress.is_some_and(|progress| progress.in_flight == 0 && progress.behind == 0)
        })
    }
}

async fn serve(group: &Watching<Retrying>, desk: &Desk, request: &Bytes) -> Answer {
    let Ok(request) = serde_json::from_slice::<Request>(request) else { return Answer::NotNow };
    if let Request::Lend { topic, queue, offset } = request {
        let from = replica::Spot { topic: TopicId(topic), queue: QueueId(queue), offset: QueueOffset(offset) };
        return Answer::Lent(desk.replica.lend(from, LENT_MAX).to_vec());
    }
    if !group.leader().borrow().serving {
        return Answer::NotNow;
    }
    let Some(commands) = desk.commands(&request) else { return Answer::NotNow };
    match group.propose(Batch { now: desk.now(), commands }.encode()).await {
        Ok(applied) => desk.answer(applied.replies.into_iter().next()),
        Err(ProposeError::Unknown) => Answer::Unknown,
        Err(
            ProposeError::NotLeader { .. }
            | ProposeError::Overloaded
            | ProposeError::TooLarge(_)
            | ProposeError::Stopped(_),
        ) => Answer::NotNow,
    }
}

impl Retrying {
    async fn judge_history(&self, world: &World<Self>, leader: &Running<Self>) {
        let Some((topic, _)) = leader.shared.ids() else { return };
        let tell = |counted: Findings, doubled: Findings, incomplete: Findings| {
            let rules = ["attempts", "dead letters: once", "dead letters: complete"];
            for (rule, findings) in rules.into_iter().zip([counted, doubled, incomplete]) {
                if findings.count > 0 {
                    world.witness().violate(rule, format!("{findings:?}"));
                }
            }
        };
        let (mut counted, mut doubled, mut incomplete) =
            (Findings::default(), Findings::default(), Findings::default());
        let (deliveries, acked) = {
            let book = lock(&self.book);
            (book.deliveries.clone(), book.acked.clone())
        };
        for (place, attempts) in &deliveries {
            let attempts: Vec<u32> = attempts.values().copied().collect();
            let rise = attempts.windows(2).all(|pair| pair[0] < pair[1]);
            if !rise || attempts.iter().any(|attempt| !(1..=u32::from(ATTEMPTS)).contains(attempt)) {
                counted.add(|| format!("{place:?} was handed out with attempts {attempts:?}, in this order"));
            }
        }
        let died = lock(&self.died).clone();
        for (place, offsets) in died.iter().filter(|(_, offsets)| offsets.len() > 1) {
            doubled.add(|| format!("{place:?} is among them at {offsets:?}"));
        }
        for queue in 0..QUEUES {
            let range = leader.shared.replica.read(|machine| machine.queue_range(topic, QueueId(queue)));
            let Some((min, end)) = range else { continue };
            // What retention has dropped is nobody's loss.
            for place in (min.0..end.0).map(|offset| (queue, offset)) {
                if !acked.contains(&place) && !died.contains_key(&place) {
                    incomplete.add(|| format!("{place:?} is done, not acknowledged, and not dead"));
                }
            }
        }
        let name = TopicName::dead_letters(&group_name());
        let letters = leader.shared.replica.read(|machine| Some(machine.topic(&name)?.id()));
        let Some(letters) = letters else { return tell(counted, doubled, incomplete) };
        let range = leader.shared.replica.read(|machine| machine.queue_range(letters, QueueId(0)));
        for ((queue, offset), stands) in died {
            for stands in stands.into_iter().filter(|stands| range.is_some_and(|(min, _)| *stands >= min.0)) {
                let body = leader.shared.body(&leader.group, letters, QueueId(0), QueueOffset(stands)).await;
                let says = body.as_deref().and_then(|body| body.split_once(' ')).map(|(_, says)| says.to_owned());
                let wanted = format!("{queue} {offset} {ATTEMPTS} client");
                if !says.as_deref().is_some_and(|says| says.starts_with(&wanted)) {
                    incomplete.add(|| format!("({queue}, {offset}) stands at {stands} as {body:?}"));
                }
            }
        }
        tell(counted, doubled, incomplete);
    }
}

struct Client {
    world: World<Retrying>,
    dice: Dice,
    number: u32,
    node: u16,
    calls: u64,
}

impl Client {
    fn new(world: &World<Retrying>, number: u32, node: u16) -> Self {
        let dice = Dice::new(world.scenario().seed, &format!("client {number}"));
        Self { world: world.clone(), dice, number, node, calls: 0 }
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

    /// Calls until there is an answer, through another node each time; `Unknown` if any call may have had its effect and none said so.
    async fn insist(&mut self, tries: u32, request: impl Fn(&mut Dice) -> Request) -> Answer {
        let request = request(&mut self.dice);
        let mut last = Answer::NotNow;
        for _ in 0..tries {
            match self.call(&request).await {
                Answer::NotNow => {}
                Answer::Unknown => last = Answer::Unknown,
                answer @ (Answer::Done | Answer::Received(_) | Answer::Acked(_) | Answer::Lent(_)) => return answer,
            }
            self.node = self.dice.pick(&self.world.numbers());
            sleep(self.dice.millis(5..=300)).await;
        }
        last
    }

    /// Sends one message. Whether it is stored.
    async fn send(&mut self, tries: u32) -> bool {
        let number = {
            let mut book = lock(&self.world.subject().book);
            book.sent += 1;
            book.sent
        };
        let (client, key) = (format!("client {}", self.number), format!("m{number}"));
        self.world.witness().invoke(self.number, number, self.node);
        let send = |dice: &mut Dice| Request::Send {
            client: client.clone(),
            key: key.clone(),
            queue: dice.below(QUEUES.into()) as u16,
        };
        let answer = self.insist(tries, send).await;
        let witness = self.world.witness();
        match answer {
            Answer::Done => witness.stored(self.number, number),
            Answer::Unknown => witness.unknown(self.number, number),
            Answer::NotNow | Answer::Received(_) | Answer::Acked(_) | Answer::Lent(_) => {
                witness.not_now(self.number, number);
            }
        }
        matches!(answer, Answer::Done)
    }

    /// Receives once and acknowledges few of what came.
    async fn receive(&mut self) {
        self.calls += 1;
        let (client, attempt) = (format!("client {}", self.number), format!("{} {}", self.number, self.calls));
        let receive = |dice: &mut Dice| Request::Receive {
            client: client.clone(),
            max: dice.within(1..=8) as u16,
            invisible_ms: dice.within(200..=INVISIBLE_MS),
            attempt: attempt.clone(),
        };
        let Answer::Received(mut came) = self.insist(TRIES, receive).await else { return };
        {
            let mut book = lock(&self.world.subject().book);
            for Delivered { queue, offset, attempt, serial, .. } in &came {
                book.deliveries.entry((*queue, *offset)).or_default().insert(*serial, *attempt);
            }
        }
        came.retain(|_| self.dice.chance(ACKED_PERCENT));
        if came.is_empty() {
            return;
        }
        let handles: Vec<String> = came.iter().map(|message| message.handle.clone()).collect();
        let answer = self.insist(TRIES, |_| Request::Ack { handles: handles.clone() }).await;
        let mut book = lock(&self.world.subject().book);
        for (at, Delivered { queue, offset, .. }) in came.into_iter().enumerate() {
            let counted = match &answer {
                Answer::Acked(results) => results.get(at) == Some(&true),
                Answer::Unknown => true,
                Answer::Done | Answer::Received(_) | Answer::Lent(_) | Answer::NotNow => false,
            };
            if counted {
                book.acked.insert((queue, offset));
            }
        }
    }
}
