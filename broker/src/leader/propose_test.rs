//! The proposer against a log that applies when the test says so.

use std::sync::Mutex;

use super::*;
use crate::machine::{DropTopic, TopicId};

type Gate = oneshot::Receiver<Option<ProposeError>>;

/// Every batch waits at its gate; replies repeat the command's number as a topic id.
#[derive(Default)]
struct GatedLog {
    batches: Mutex<Vec<Batch>>,
    gates: Mutex<Vec<Gate>>,
    stamps: AtomicUsize,
}

impl Log for GatedLog {
    fn propose(&self, payload: Bytes) -> LogFuture<Outcome> {
        let batch = Batch::decode(payload).expect("the proposer encodes batches");
        self.batches.lock().expect("no panic").push(batch.clone());
        let gate = self.gates.lock().expect("no panic").remove(0);
        Box::pin(async move {
            if let Some(error) = gate.await.expect("the test opens every gate") {
                return Err(error);
            }
            let reply = |command| {
                let Command::DropTopic(DropTopic { topic }) = command else { panic!("not sent by these tests") };
                Reply::Topic { id: topic }
            };
            Ok(Applied { now: batch.now, replies: batch.commands.into_iter().map(reply).collect() })
        })
    }

    fn stamp(&self) -> LogFuture<Timestamp> {
        let stamp = self.stamps.fetch_add(1, Ordering::Relaxed) as u64;
        Box::pin(std::future::ready(Timestamp(stamp)))
    }
}

struct Bench {
    proposer: Proposer,
    log: Arc<GatedLog>,
    gates: Vec<oneshot::Sender<Option<ProposeError>>>,
    task: tokio::task::JoinHandle<()>,
}

fn bench(change: impl FnOnce(&mut Limits), gates: usize) -> Bench {
    let mut limits = Limits { batches_in_flight_max: 1, ..Limits::default() };
    change(&mut limits);
    let (proposer, task) = Proposer::new(&limits, Arc::new(Metrics::default()));
    let log = Arc::new(GatedLog::default());
    let (senders, receivers) = (0..gates).map(|_| oneshot::channel()).unzip();
    *log.gates.lock().expect("no panic") = receivers;
    let task = tokio::spawn(task.run(log.clone()));
    Bench { proposer, log, gates: senders, task }
}

fn command(number: u32) -> Command {
    Command::DropTopic(DropTopic { topic: TopicId(number) })
}

fn numbers(outcome: Outcome) -> Vec<u32> {
    let number = |reply| {
        let Reply::Topic { id } = reply else { panic!("not answered by the gated log") };
        id.0
    };
    outcome.expect("applied").replies.into_iter().map(number).collect()
}

/// Lets every ready task run, as often as it takes them to get stuck.
async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_waits_while_a_batch_is_under_way_becomes_the_next_one() {
    let mut bench = bench(|_| {}, 2);
    let first = bench.proposer.submit(vec![command(1)]).expect("room");
    settle().await;
    let rest: Vec<_> = (2..10)
        .map(|number| bench.proposer.submit(vec![command(number), command(100 + number)]).expect("room"))
        .collect();
    settle().await;
    assert_eq!(bench.log.batches.lock().expect("no panic").len(), 1, "one in flight, the rest waits");
    for gate in bench.gates.drain(..) {
        gate.send(None).expect("waited for");
    }
    assert_eq!(numbers(first.await.expect("answered")), [1]);
    for (number, receipt) in (2..10).zip(rest) {
        assert_eq!(numbers(receipt.await.expect("answered")), [number, 100 + number]);
    }
    let batches = bench.log.batches.lock().expect("no panic");
    assert_eq!(batches.iter().map(|batch| batch.commands.len()).collect::<Vec<_>>(), [1, 16]);
    assert!(batches[0].now < batches[1].now);
}

#[tokio::test]
async fn batches_in_flight_are_handed_over_in_the_order_of_submission() {
    let mut bench = bench(|limits| (limits.batches_in_flight_max, limits.batch_commands_max) = (8, 1), 5);
    let receipts: Vec<_> = (0..5).map(|number| bench.proposer.submit(vec![command(number)]).expect("room")).collect();
    settle().await;
    let seen: Vec<_> = bench.log.batches.lock().expect("no panic").iter().flat_map(|b| b.commands.clone()).collect();
    assert_eq!(seen, (0..5).map(command).collect::<Vec<_>>());
    for gate in bench.gates.drain(..).rev() {
        gate.send(None).expect("waited for");
        settle().await;
    }
    for (number, receipt) in (0..5).zip(receipts) {
        assert_eq!(numbers(receipt.await.expect("answered")), [number]);
    }
}

#[tokio::test]
async fn a_batch_is_bounded_and_what_does_not_fit_comes_next() {
    let two = 2 * (SUBMISSION_OVERHEAD_BYTES + command(0).encoded_len()) as u64;
    let mut bench = bench(|limits| limits.batch_bytes_max = two, 4);
    let receipts: Vec<_> = (0..6).map(|number| bench.proposer.submit(vec![command(number)]).expect("room")).collect();
    for gate in bench.gates.drain(..) {
        let _ = gate.send(None);
    }
    for (number, receipt) in (0..6).zip(receipts) {
        assert_eq!(numbers(receipt.await.expect("answered")), [number]);
    }
    let sizes: Vec<_> = bench.log.batches.lock().expect("no panic").iter().map(|batch| batch.commands.len()).collect();
    assert_eq!(sizes, [2, 2, 2]);
}

#[tokio::test]
async fn beyond_its_bytes_the_queue_says_overloaded_and_takes_again_once_drained() {
    let mut bench = bench(|limits| limits.propose_bytes_max = 300, 2);
    let first = bench.proposer.submit(vec![command(1)]).expect("room");
    settle().await;
    let second = bench.proposer.submit(vec![command(2)]).expect("room");
    assert_eq!(bench.proposer.submit(vec![command(3)]).err(), Some(ProposeError::Overloaded));
    for gate in bench.gates.drain(..) {
        gate.send(None).expect("waited for");
    }
    assert_eq!(numbers(first.await.expect("answered")), [1]);
    assert_eq!(numbers(second.await.expect("answered")), [2]);
    assert!(bench.proposer.submit(vec![command(4)]).is_ok());
}

#[tokio::test]
async fn a_failure_of_the_batch_is_the_failure_of_each_submission() {
    let mut bench = bench(|_| {}, 1);
    let receipts: Vec<_> = (0..3).map(|number| bench.proposer.submit(vec![command(number)]).expect("room")).collect();
    bench.gates.remove(0).send(Some(ProposeError::Unknown)).expect("waited for");
    for receipt in receipts {
        assert_eq!(receipt.await.expect("answered").err(), Some(ProposeError::Unknown));
    }
}

#[tokio::test]
async fn the_task_ends_when_every_proposer_is_gone_and_finishes_what_it_took() {
    let mut bench = bench(|_| {}, 1);
    let receipt = bench.proposer.submit(vec![command(1)]).expect("room");
    drop(bench.proposer);
    settle().await;
    bench.gates.remove(0).send(None).expect("waited for");
    assert_eq!(numbers(receipt.await.expect("answered")), [1]);
    bench.task.await.expect("ended by itself");
}
