//! The queue workload: producers at a steady rate, consumers that receive and acknowledge, a final drain.
//!
//! Open loop: a send leaves when its time has come, whether or not earlier ones have returned, so a group that stalls is
//! asked on and its gap shows in full. Only [`QueueLoad::in_flight_max`] sends per producer may be under way; beyond
//! that a producer falls behind its schedule and catches up later.
//!
//! ```text
//! producer ── send(key, body) ──▶ group ──▶ receive ── consumer ── ack ──▶ group
//!     └──────── Send op ──────▶ recorder ◀── Receive ops, Ack ops ──┘
//! ```
//! Every send that was begun is recorded, as unknown if nobody knows; a message the consumers bring that was never
//! begun is an invention of the group. Messages that an earlier run left in the topic are acknowledged and not recorded.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    body::{body_of, key_of},
    tally::{Progress, Tally},
};
use crate::{
    history::Recorder,
    op::{Ack, Acked, Op, Receive, Received, Send, Sent, Span, Spot},
    stopwatch::Stopwatch,
    world::{Consuming, Handed, Message, Producing},
};

/// When the harness stops waiting for a client that has broken its own deadline.
const GIVE_UP: Duration = Duration::from_secs(30);
/// Pause after a receive that brought nothing, so that an error answered at once is no busy loop.
const IDLE: Duration = Duration::from_millis(5);

/// What to do, and how much of it.
#[derive(Clone, Debug)]
pub struct QueueLoad {
    pub topic: Arc<str>,
    /// Begins every key of this run and of no other.
    pub run: Arc<str>,
    /// Messages per second over all producers; at least 1.
    pub rate: u32,
    pub body_bytes: usize,
    /// Sends of one producer that may be under way at once.
    pub in_flight_max: usize,
    /// Messages that one receive asks for.
    pub receive_max: u32,
}

/// When a drain is over.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// All has arrived and nothing came for this long: what is stored twice would have come by now.
    pub quiet: Duration,
    /// Something is missing and nothing came for this long. Longer than the time for which a delivery whose answer was
    /// lost stays hidden.
    pub hopeless: Duration,
    /// However much still comes.
    pub patience: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { quiet: Duration::from_millis(1_500), hopeless: seconds(15), patience: seconds(60) }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Acknowledged messages that had not been received when the drain gave up; 0 when it was complete.
    pub outstanding: u64,
}

/// A workload under way. Dropping it aborts its tasks; the history then lacks what was in flight.
#[derive(Debug)]
pub struct QueueRun {
    producers: JoinSet<()>,
    consumers: JoinSet<()>,
    enough_sent: CancellationToken,
    enough_received: CancellationToken,
    shared: Arc<Shared>,
}

/// Sees how far a run is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Observer {
    shared: Arc<Shared>,
}

impl Observer {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.shared.tally.progress()
    }

    /// Begins a new measure of [`Progress::gap_us`].
    pub fn mark(&self) {
        self.shared.tally.mark();
    }
}

/// What every task of a run has in hand.
#[derive(Debug)]
struct Shared {
    load: QueueLoad,
    recorder: Recorder,
    watch: Stopwatch,
    tally: Tally,
}

impl QueueRun {
    /// Starts the tasks. Producers are processes 1, 2, …; consumers 1001, 1002, …
    pub fn start<P: Producing, C: Consuming>(
        load: QueueLoad,
        producers: Vec<P>,
        consumers: Vec<C>,
        recorder: Recorder,
        watch: Stopwatch,
    ) -> Self {
        let tally = Tally::new(watch.now_us());
        let shared = Arc::new(Shared { load, recorder, watch, tally });
        let mut run = Self {
            producers: JoinSet::new(),
            consumers: JoinSet::new(),
            enough_sent: CancellationToken::new(),
            enough_received: CancellationToken::new(),
            shared,
        };
        let every = Duration::from_secs(1) * u32::try_from(producers.len().max(1)).unwrap_or(u32::MAX)
            / run.shared.load.rate.max(1);
        for (process, producer) in (1..).zip(producers) {
            let (shared, stop) = (Arc::clone(&run.shared), run.enough_sent.clone());
            run.producers.spawn(produce(Arc::new(producer), process, every, shared, stop));
        }
        for (process, consumer) in (1001..).zip(consumers) {
            let (shared, stop) = (Arc::clone(&run.shared), run.enough_received.clone());
            run.consumers.spawn(consume(Arc::new(consumer), process, shared, stop));
        }
        run
    }

    /// A view of the run that outlives borrows of it.
    pub fn observer(&self) -> Observer {
        Observer { shared: Arc::clone(&self.shared) }
    }

    /// Ends the sending and waits for what is under way, which the clients' deadlines bound. Cancel safe.
    pub async fn stop_producing(&mut self) {
        self.enough_sent.cancel();
        while self.producers.join_next().await.is_some() {}
    }

    /// Receives on until every acknowledged message has arrived, or until `drain` says that it is in vain; then ends the
    /// consumers. Call [`QueueRun::stop_producing`] first. Cancel safe.
    pub async fn drain(&mut self, drain: Drain) -> Drained {
        let begun = Instant::now();
        let outstanding = loop {
            let progress = self.shared.tally.progress();
            let silent_us = self.shared.watch.now_us().saturating_sub(progress.last_receive_us);
            let silent = Duration::from_micros(silent_us).min(begun.elapsed());
            let enough = if progress.outstanding == 0 { drain.quiet } else { drain.hopeless };
            if silent >= enough || begun.elapsed() >= drain.patience {
                break progress.outstanding;
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.enough_received.cancel();
        while self.consumers.join_next().await.is_some() {}
        Drained { outstanding }
    }
}

/// One producer: begins send number n at start + n × `every`.
async fn produce<P: Producing>(
    producer: Arc<P>,
    process: u32,
    every: Duration,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut flights = JoinSet::new();
    let start = Instant::now();
    let mut number: u32 = 0;
    while stop.run_until_cancelled(sleep_until(start + every * number)).await.is_some() {
        while flights.len() >= shared.load.in_flight_max {
            flights.join_next().await;
        }
        while flights.try_join_next().is_some() {}
        let key = format!("{}-{process}-{number}", shared.load.run);
        flights.spawn(send(Arc::clone(&producer), process, key, Arc::clone(&shared)));
        let Some(next) = number.checked_add(1) else { break };
        number = next;
    }
    while flights.join_next().await.is_some() {}
}

async fn send<P: Producing>(producer: Arc<P>, process: u32, key: String, shared: Arc<Shared>) {
    let body = body_of(&key, shared.load.body_bytes);
    shared.tally.attempted();
    let invoke_us = shared.watch.now_us();
    let answer = timeout(GIVE_UP, producer.send(&key, body)).await;
    let outcome = answer.unwrap_or_else(|_| Sent::Unknown("the harness gave up waiting".into()));
    let span = Span { process, invoke_us, return_us: shared.watch.now_us() };
    shared.tally.sent(&key, &outcome, span.invoke_us, span.return_us);
    let topic = Arc::clone(&shared.load.topic);
    shared.recorder.record(Op::Send(Send { span, topic, key: key.into(), outcome })).await;
}

/// One consumer: one receive at a time, the acks of its messages side by side.
async fn consume<C: Consuming>(consumer: Arc<C>, process: u32, shared: Arc<Shared>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let invoke_us = shared.watch.now_us();
        let call = timeout(GIVE_UP, consumer.receive(shared.load.receive_max));
        let handed = match stop.run_until_cancelled(call).await {
            Some(Ok(handed)) => handed,
            Some(Err(_elapsed)) => Handed::Unknown("the harness gave up waiting".into()),
            None => Handed::Unknown("the run ended".into()),
        };
        let span = Span { process, invoke_us, return_us: shared.watch.now_us() };
        let outcome = match handed {
            Handed::Messages(messages) if messages.is_empty() => {
                sleep(IDLE).await;
                continue;
            }
            Handed::Messages(messages) => {
                take(&consumer, span, messages, &shared).await;
                continue;
            }
            Handed::Failed(why) => Received::Failed(why),
            Handed::Unknown(why) => Received::Unknown(why),
        };
        let topic = Arc::clone(&shared.load.topic);
        shared.recorder.record(Op::Receive(Receive { span, topic, outcome })).await;
        sleep(IDLE).await;
    }
}

/// Records the messages of one call and acknowledges them.
async fn take<C: Consuming>(consumer: &Arc<C>, span: Span, messages: Vec<Message<C::Receipt>>, shared: &Arc<Shared>) {
    let mut acks = JoinSet::new();
    for Message { body, spot, attempt, receipt } in messages {
        let key: Option<Box<str>> = match key_of(&body) {
            Some(key) if key.starts_with(&*shared.load.run) => Some(key.into()),
            Some(_) => None,
            None => Some(format!("damaged-{}-{}", spot.queue, spot.offset).into()),
        };
        if let Some(key) = &key {
            shared.tally.received(key, attempt, span.return_us);
            let outcome = Received::Message { key: key.clone(), spot, attempt };
            let topic = Arc::clone(&shared.load.topic);
            shared.recorder.record(Op::Receive(Receive { span, topic, outcome })).await;
        } else {
            shared.tally.leftover(span.return_us);
        }
        acks.spawn(acknowledge(Arc::clone(consumer), span.process, key, spot, receipt, Arc::clone(shared)));
    }
    while acks.join_next().await.is_some() {}
}

async fn acknowledge<C: Consuming>(
    consumer: Arc<C>,
    process: u32,
    key: Option<Box<str>>,
    spot: Spot,
    receipt: C::Receipt,
    shared: Arc<Shared>,
) {
    let invoke_us = shared.watch.now_us();
    let answer = timeout(GIVE_UP, consumer.ack(receipt)).await;
    let outcome = answer.unwrap_or_else(|_| Acked::Unknown("the harness gave up waiting".into()));
    let span = Span { process, invoke_us, return_us: shared.watch.now_us() };
    if let Some(key) = key {
        let topic = Arc::clone(&shared.load.topic);
        shared.recorder.record(Op::Ack(Ack { span, topic, key, spot, outcome })).await;
    }
}
