use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    check::{Judgement, Table, Verdict},
    history::Recorder,
    op::{Acked, Op, Sent, Spot},
    stopwatch::Stopwatch,
    world::{Consuming, Handed, Message, Producing},
};

/// A queue in memory that is right, or wrong in one way.
#[derive(Default)]
struct Memory {
    messages: Mutex<Vec<Held>>,
    wrong: Wrong,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Wrong {
    #[default]
    Nothing,
    /// Acknowledges the 50th message without keeping it.
    Forgets,
    /// Keeps every 50th message twice.
    Repeats,
    /// Hands every 50th message out again although it was acknowledged.
    Returns,
}

struct Held {
    body: Bytes,
    attempt: u32,
    visible_at: Option<Instant>,
}

struct Client(Arc<Memory>);

impl Producing for Client {
    async fn send(&self, _key: &str, body: Bytes) -> Sent {
        sleep(Duration::from_millis(2)).await;
        let mut messages = self.0.messages.lock().unwrap();
        let offset = messages.len() as u64;
        let odd = offset % 50 == 49;
        let held = || Held { body: body.clone(), attempt: 0, visible_at: Some(Instant::now()) };
        if offset == 49 && self.0.wrong == Wrong::Forgets {
            messages.push(Held { body: Bytes::new(), attempt: 0, visible_at: None });
        } else {
            messages.push(held());
        }
        if odd && self.0.wrong == Wrong::Repeats {
            messages.push(held());
        }
        Sent::Stored { queue: None, offset: Some(offset) }
    }
}

impl Consuming for Client {
    type Receipt = usize;

    async fn receive(&self, max: u32) -> Handed<usize> {
        sleep(Duration::from_millis(2)).await;
        let mut messages = self.0.messages.lock().unwrap();
        let visible =
            messages.iter_mut().enumerate().filter(|(_, held)| held.visible_at.is_some_and(|at| at <= Instant::now()));
        let taken = visible.take(max as usize).map(|(offset, held)| {
            held.visible_at = Some(Instant::now() + Duration::from_secs(10));
            held.attempt += 1;
            let spot = Spot { queue: 0, offset: offset as u64 };
            Message { body: held.body.clone(), spot, attempt: held.attempt, receipt: offset }
        });
        Handed::Messages(taken.collect())
    }

    async fn ack(&self, offset: usize) -> Acked {
        let held = &mut self.0.messages.lock().unwrap()[offset];
        let comes_back = self.0.wrong == Wrong::Returns && offset % 50 == 49 && held.attempt == 1;
        held.visible_at = comes_back.then(|| Instant::now() + Duration::from_millis(100));
        Acked::Done
    }
}

async fn run(wrong: Wrong) -> (Vec<Op>, Drained) {
    let memory = Arc::new(Memory { wrong, ..Memory::default() });
    let recorder = Recorder::memory();
    let load = QueueLoad {
        topic: "demo".into(),
        run: "r".into(),
        rate: 1_000,
        body_bytes: 64,
        in_flight_max: 100,
        receive_max: 32,
    };
    let clients = |count: usize| (0..count).map(|_| Client(Arc::clone(&memory))).collect::<Vec<_>>();
    let mut run = QueueRun::start(load, clients(2), clients(3), recorder.clone(), Stopwatch::start(0));
    sleep(Duration::from_secs(2)).await;
    run.stop_producing().await;
    let drained = run.drain(Drain::default()).await;
    (recorder.take(), drained)
}

#[tokio::test(start_paused = true)]
async fn a_correct_queue_passes_at_the_rate_that_was_asked_for() {
    let (ops, drained) = run(Wrong::Nothing).await;
    let verdict = Verdict::of(&Table::of(&ops));
    assert_eq!((drained.outstanding, verdict.verdict), (0, Judgement::Pass), "{:?}", verdict.examples);
    assert!((1_990..=2_004).contains(&verdict.acked), "{}", verdict.acked);
    assert!(verdict.longest_gap_ms < 5.0, "{}", verdict.longest_gap_ms);
    let acks = ops.iter().filter(|op| matches!(op, Op::Ack(_))).count() as u64;
    assert_eq!((verdict.consumed, acks), (verdict.acked, verdict.acked));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_forgets_is_caught_and_the_drain_says_how_many_are_missing() {
    let (ops, drained) = run(Wrong::Forgets).await;
    let verdict = Verdict::of(&Table::of(&ops));
    assert_eq!((drained.outstanding, verdict.lost, verdict.verdict), (1, 1, Judgement::Fail));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_stores_twice_is_caught() {
    let verdict = Verdict::of(&Table::of(&run(Wrong::Repeats).await.0));
    assert!(verdict.duplicates > 30, "{}", verdict.duplicates);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_forgets_an_ack_is_caught() {
    let verdict = Verdict::of(&Table::of(&run(Wrong::Returns).await.0));
    assert!(verdict.acked_returned > 30, "{}", verdict.acked_returned);
}
