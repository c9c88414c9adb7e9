//! The coalescing proposer: whatever waits when it is free becomes one entry of the log.
//!
//! ```text
//!  calls ──submit──▶ queue (bounded by bytes and count) ──▶ one Batch ──▶ log.propose ──▶ replies, cut up again
//!                                                          └─ a few in flight, handed over in order
//! ```
//! So throughput does not depend on what an entry costs, and a lone command travels at once. A batch takes whole submissions until
//! it is full; a submission larger than a batch travels alone. The batch is stamped when it is made, after everything in it was
//! submitted (LAW-CLOCK). Outcomes stay of four kinds: `Overloaded` is said before anything is queued, everything else comes from the
//! log and holds for the whole batch; refusals are replies.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use quorate_proto::time::Timestamp;
use quorate_raft::ProposeError;
use tokio::sync::{mpsc, oneshot};

use crate::{
    config::Limits,
    machine::{Batch, Command, Reply},
    metrics::Metrics,
    replica::Applied,
};

/// Bytes a submission costs beside its commands.
const SUBMISSION_OVERHEAD_BYTES: usize = 128;
/// Submissions that wait at most, whatever their size.
const SUBMISSIONS_MAX: usize = 65_536;
/// How long a batch is held back where the mutant `mutant-ack-before-commit` is planted.
const PLANTED_DELAY: Duration = Duration::from_millis(50);

/// Future of a log.
pub(crate) type LogFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Where batches go. The Raft group in a node, a double in tests.
pub(crate) trait Log: Send + Sync + 'static {
    /// Proposes an entry and waits for its replies.
    fn propose(&self, payload: Bytes) -> LogFuture<Result<Applied, ProposeError>>;
    /// The stamp for the next batch. Waits only while log time is not settled after a change of leadership.
    fn stamp(&self) -> LogFuture<Timestamp>;
}

/// What a submission comes to.
pub(crate) type Outcome = Result<Applied, ProposeError>;

struct Submission {
    commands: Vec<Command>,
    bytes: usize,
    reply: oneshot::Sender<Outcome>,
}

/// Takes commands for the log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Submission>,
    waiting_bytes: Arc<AtomicUsize>,
    waiting_bytes_max: usize,
}

/// The working half of a proposer; [`ProposerTask::run`] is spawned by the node.
pub(crate) struct ProposerTask {
    queue: mpsc::Receiver<Submission>,
    waiting_bytes: Arc<AtomicUsize>,
    batch_bytes_max: usize,
    batch_commands_max: usize,
    batches_in_flight_max: usize,
    metrics: Arc<Metrics>,
}

impl Proposer {
    /// A proposer and the task that does its work.
    pub fn new(limits: &Limits, metrics: Arc<Metrics>) -> (Self, ProposerTask) {
        let (sender, receiver) = mpsc::channel(SUBMISSIONS_MAX);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let as_usize = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let task = ProposerTask {
            queue: receiver,
            waiting_bytes: waiting_bytes.clone(),
            batch_bytes_max: as_usize(limits.batch_bytes_max),
            batch_commands_max: limits.batch_commands_max,
            batches_in_flight_max: limits.batches_in_flight_max,
            metrics,
        };
        (Self { queue: sender, waiting_bytes, waiting_bytes_max: as_usize(limits.propose_bytes_max) }, task)
    }

    /// Proposes `commands` together and waits until they are applied here. Replies come in their order.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`] and [`ProposeError::NotLeader`]: certainly no effect. [`ProposeError::Unknown`]: perhaps.
    ///
    /// Dropped, the commands may still take effect.
    pub async fn propose(&self, commands: Vec<Command>) -> Outcome {
        self.submit(commands)?.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Queues `commands` without waiting for them.
    ///
    /// # Errors
    /// [`ProposeError::Overloaded`]: nothing was queued. [`ProposeError::Stopped`]: the node is going down.
    pub fn submit(&self, commands: Vec<Command>) -> Result<oneshot::Receiver<Outcome>, ProposeError> {
        let bytes = SUBMISSION_OVERHEAD_BYTES + commands.iter().map(Command::encoded_len).sum::<usize>();
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One submission always fits an empty queue, so that a limit set too low slows down and does not stop.
        if before != 0 && before + bytes > self.waiting_bytes_max {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ProposeError::Overloaded);
        }
        let (reply, receipt) = oneshot::channel();
        self.queue.try_send(Submission { commands, bytes, reply }).map_err(|error| {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
                mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped("the proposer has ended".into()),
            }
        })?;
        Ok(receipt)
    }
}

impl ProposerTask {
    /// Works until every [`Proposer`] is gone.
    pub async fn run(mut self, log: Arc<dyn Log>) {
        let mut in_flight = FuturesUnordered::new();
        let mut next = None;
        loop {
            let free = in_flight.len() < self.batches_in_flight_max;
            tokio::select! {
                // Polling what flies first also hands over the newest batch before another one is made: they go in order.
                biased;
                Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
                first = take(&mut next, &mut self.queue), if free => {
                    let Some(first) = first else { break };
                    let batch = self.collect(first, &mut next);
                    let now = log.stamp().await;
                    in_flight.push(self.fly(batch, now, log.clone()));
                }
            }
        }
        while in_flight.next().await.is_some() {}
    }

    /// `first` and what waits behind it, as far as it fits; what does not is left in `next`.
    fn collect(&mut self, first: Submission, next: &mut Option<Submission>) -> Vec<Submission> {
        let (mut bytes, mut commands) = (first.bytes, first.commands.len());
        let mut batch = vec![first];
        while let Ok(submission) = self.queue.try_recv() {
            bytes += submission.bytes;
            commands += submission.commands.len();
            if bytes > self.batch_bytes_max || commands > self.batch_commands_max {
                *next = Some(submission);
                break;
            }
            batch.push(submission);
        }
        batch
    }

    /// Encodes a batch now; the future hands it over and cuts up the replies.
    fn fly(&self, batch: Vec<Submission>, now: Timestamp, log: Arc<dyn Log>) -> impl Future<Output = ()> + use<> {
        let bytes: usize = batch.iter().map(|submission| submission.bytes).sum();
        let mut commands = Vec::with_capacity(batch.iter().map(|submission| submission.commands.len()).sum());
        let mut replies = Vec::with_capacity(batch.len());
        for submission in batch {
            replies.push((submission.commands.len(), submission.reply));
            commands.extend(submission.commands);
        }
        self.metrics.batches.add(1);
        self.metrics.commands.add(commands.len() as u64);
        self.metrics.detail.batch_commands.record(commands.len() as u64);
        self.metrics.detail.batch_bytes.record(bytes as u64);
        let payload = Batch { now, commands }.encode();
        let waiting_bytes = self.waiting_bytes.clone();
        async move {
            if cfg!(feature = "mutant-ack-before-commit") {
                // Long enough that a kill always finds something acknowledged which no other node has.
                tokio::time::sleep(PLANTED_DELAY).await;
            }
            let outcome = log.propose(payload).await;
            waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            cut_up(outcome, replies);
        }
    }
}

/// What did not fit the last batch, else the next submission.
async fn take(next: &mut Option<Submission>, queue: &mut mpsc::Receiver<Submission>) -> Option<Submission> {
    match next.take() {
        Some(submission) => Some(submission),
        None => queue.recv().await,
    }
}

/// Gives each submission its share of the replies. A receiver that is gone has stopped caring.
fn cut_up(outcome: Outcome, receivers: Vec<(usize, oneshot::Sender<Outcome>)>) {
    match outcome {
        Ok(Applied { now, replies }) => {
            let mut replies = replies.into_iter();
            for (count, receiver) in receivers {
                let replies: Vec<Reply> = replies.by_ref().take(count).collect();
                assert_eq!(replies.len(), count, "the machine answers every command of a batch");
                let _ = receiver.send(Ok(Applied { now, replies }));
            }
        }
        Err(error) => {
            for (_, receiver) in receivers {
                let _ = receiver.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
#[path = "propose_test.rs"]
mod tests;
