//! The counter's clients, and the book of what they were told.
//!
//! A client asks any node, as a broker's client does; the node passes the request on to the leader. An answer is one of three:
//! *done* at an index, *not now* (certainly never), *unknown* (may be, now or later). No value is ever sent twice, so each of the
//! three can be held against the final state: done means contained, not now means absent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes};
use quorate_raft::{CallError, LogIndex, MachineStart, ProposeError};
use tokio_util::sync::CancellationToken;

use super::{
    counter::{Counter, Shared, Value},
    dice::Dice,
    world::{Opening, Running, Subject, Watching, World},
};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Marks the numbers of reads in a trace.
const READ: u64 = 1 << 63;
/// Client number of the probes of the healing phase.
const PROBE: u32 = 1000;

/// What a client knows of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was done.
    Done,
    /// It was not, and never will be.
    NotNow,
    /// It may be, now or later; also while the answer is awaited.
    Unknown,
}

/// The counter as a subject of the simulation.
#[derive(Clone, Debug, Default)]
pub struct Counting {
    book: Arc<Mutex<BTreeMap<u32, Vec<Fate>>>>,
}

impl Subject for Counting {
    type Machine = Counter;
    type Shared = Shared;

    fn open(&self, opening: Opening) -> Result<(Counter, Shared), MachineStart> {
        Ok(Counter::open(opening))
    }

    async fn serve(group: Watching<Self>, shared: Shared, request: Bytes) -> Bytes {
        let answer = match Request::decode(&request) {
            None => Answer::NotNow,
            Some(Request::Add(entry)) => Answer::of(group.propose(entry).await.map(Some)),
            Some(Request::Read) => {
                let confirmed = group.confirm_leadership().await;
                Answer::of(confirmed.map(|()| shared.applied()))
            }
        };
        answer.encode()
    }

    async fn client(world: World<Self>, number: u32, stop: CancellationToken) {
        let mut client = Client::new(&world, number, 1);
        while !stop.is_cancelled() {
            let think = client.world.scenario().think.as_micros() as u64;
            tokio::time::sleep(Duration::from_micros(client.dice.within(100..=think))).await;
            client.ask().await;
        }
    }

    async fn probe(world: &World<Self>, node: u16) -> bool {
        Client::new(world, PROBE, node).add().await == Fate::Done
    }

    fn state(shared: &Shared) -> Bytes {
        shared.numbers().encode()
    }

    fn judge(&self, shared: &Shared) -> Vec<String> {
        let numbers = shared.numbers();
        let mut wrong = Vec::new();
        let (mut lost, mut aborted, mut landed) = (Vec::new(), Vec::new(), 0);
        for (client, fates) in &*self.book.lock().unwrap_or_else(PoisonError::into_inner) {
            for (number, fate) in fates.iter().enumerate() {
                let contained = numbers.contains(Value { client: *client, number: number as u64 });
                landed += u64::from(contained);
                match fate {
                    Fate::Done if !contained => lost.push((*client, number)),
                    Fate::NotNow if contained => aborted.push((*client, number)),
                    Fate::Done | Fate::NotNow | Fate::Unknown => {}
                }
            }
        }
        if !lost.is_empty() {
            wrong.push(format!(
                "lost-write: lacks {} acknowledged values, first (client, number) {:?}",
                lost.len(),
                lost[0]
            ));
        }
        if !aborted.is_empty() {
            wrong.push(format!(
                "aborted-read: has {} values answered \"not now\", first {:?}",
                aborted.len(),
                aborted[0]
            ));
        }
        let (repeats, strangers) = numbers.wrong();
        if repeats > 0 || strangers > 0 {
            wrong.push(format!("duplicate: {repeats} values came twice, {strangers} entries are not what was sent"));
        }
        if landed != numbers.count() {
            wrong.push(format!("phantom: holds {} values, {landed} of them were ever asked for", numbers.count()));
        }
        wrong
    }
}

impl Counting {
    fn fates<R>(&self, client: u32, change: impl FnOnce(&mut Vec<Fate>) -> R) -> R {
        change(self.book.lock().unwrap_or_else(PoisonError::into_inner).entry(client).or_default())
    }

    /// The next number of a client. Its fate is unknown until [`Counting::settle`].
    fn reserve(&self, client: u32) -> u64 {
        self.fates(client, |fates| {
            fates.push(Fate::Unknown);
            fates.len() as u64 - 1
        })
    }

    fn settle(&self, client: u32, number: u64, fate: Fate) {
        self.fates(client, |fates| fates[number as usize] = fate);
    }
}

/// One client with one request under way.
pub struct Client {
    world: World<Counting>,
    dice: Dice,
    client: u32,
    node: u16,
    reads: u64,
}

impl Client {
    /// A client that asks this node, until it is told otherwise.
    pub fn new(world: &World<Counting>, client: u32, node: u16) -> Self {
        let dice = Dice::new(world.scenario().seed, &format!("client {client}"));
        Self { world: world.clone(), dice, client, node, reads: 0 }
    }

    /// Adds or reads, by chance, and goes to another node when it was not served.
    async fn ask(&mut self) {
        if self.dice.chance(10) {
            self.node = self.dice.pick(&self.world.numbers());
        }
        let fate = if self.dice.chance(10) { self.read().await } else { self.add().await };
        if fate != Fate::Done {
            self.node = self.dice.pick(&self.world.numbers());
        }
    }

    /// Adds the client's next value and writes down what became of it. Dropped, its fate stays unknown.
    pub async fn add(&mut self) -> Fate {
        let largest = if self.dice.chance(10) { 2000 } else { 200 };
        let filler = self.dice.below(largest) as usize;
        let number = self.world.subject().reserve(self.client);
        let entry = Value { client: self.client, number }.entry(filler);
        let crc = crc32c::crc32c(&entry);
        let witness = self.world.witness();
        let asked = witness.invoke(self.client, number, self.node);
        let fate = match self.call(Request::Add(entry)).await {
            Answer::Done(Some(index)) => {
                witness.acked(self.client, number, asked, index, crc);
                Fate::Done
            }
            Answer::NotNow => {
                witness.not_now(self.client, number);
                Fate::NotNow
            }
            Answer::Done(None) | Answer::Unknown => {
                witness.unknown(self.client, number);
                Fate::Unknown
            }
        };
        self.world.subject().settle(self.client, number, fate);
        fate
    }

    /// Reads with a confirmed leadership.
    async fn read(&mut self) -> Fate {
        let witness = self.world.witness();
        self.reads += 1;
        let asked = witness.invoke(self.client, READ | self.reads, self.node);
        match self.call(Request::Read).await {
            Answer::Done(index) => {
                witness.read(self.client, READ | self.reads, asked, index);
                Fate::Done
            }
            Answer::NotNow | Answer::Unknown => Fate::Unknown,
        }
    }

    async fn call(&self, request: Request) -> Answer {
        let Some(running) = self.world.running(self.node) else {
            return Answer::NotNow;
        };
        let Running { group, death, .. } = running;
        let called = tokio::select! {
            biased;
            () = death.cancelled() => return Answer::Unknown,
            called = group.call_leader(request.encode(), PATIENCE) => called,
        };
        match called {
            Ok(answer) => Answer::decode(answer),
            Err(CallError::NotSent(_)) => Answer::NotNow,
            Err(CallError::Unknown(_)) => Answer::Unknown,
        }
    }
}

/// What a client asks of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    /// Add the value of this entry.
    Add(Bytes),
    /// Tell how far the confirmed state goes.
    Read,
}

impl Request {
    /// Number of the request, then the entry.
    fn encode(&self) -> Bytes {
        match self {
            Self::Add(entry) => [&[1], entry.as_ref()].concat().into(),
            Self::Read => Bytes::from_static(&[2]),
        }
    }

    fn decode(bytes: &Bytes) -> Option<Self> {
        match bytes.first()? {
            1 => Some(Self::Add(bytes.slice(1..))),
            2 => Some(Self::Read),
            _ => None,
        }
    }
}

/// What the leader answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Done; the entry's index, or how far the read saw.
    Done(Option<LogIndex>),
    /// Certainly no effect.
    NotNow,
    /// May have an effect.
    Unknown,
}

impl Answer {
    fn of(result: Result<Option<LogIndex>, ProposeError>) -> Self {
        match result {
            Ok(index) => Self::Done(index),
            Err(ProposeError::Unknown) => Self::Unknown,
            Err(
                ProposeError::NotLeader { .. }
                | ProposeError::Overloaded
                | ProposeError::TooLarge(_)
                | ProposeError::Stopped(_),
            ) => Self::NotNow,
        }
    }

    fn encode(self) -> Bytes {
        let (kind, index) = match self {
            Self::Done(None) => (1u8, 0),
            Self::Done(Some(index)) => (2, index.0),
            Self::NotNow => (3, 0),
            Self::Unknown => (4, 0),
        };
        [&[kind], index.to_le_bytes().as_slice()].concat().into()
    }

    /// An answer; bytes that are none count as unknown.
    fn decode(mut bytes: Bytes) -> Self {
        match (bytes.try_get_u8(), bytes.try_get_u64_le()) {
            (Ok(1), Ok(_)) => Self::Done(None),
            (Ok(2), Ok(index)) => Self::Done(Some(LogIndex(index))),
            (Ok(3), Ok(_)) => Self::NotNow,
            _ => Self::Unknown,
        }
    }
}
