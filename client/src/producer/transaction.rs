//! Transactional messages: sent half, then committed or rolled back, or asked about by the broker if neither comes.
//!
//! The transaction that counts is the application's own, in its database. A half message is stored before it and resolved after it; a
//! process that dies in between leaves a half message whose fate only the database knows, so the broker asks any producer of the topic.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use quorate_proto::v2;
use tokio::sync::mpsc;

use super::{Calls, Producer, Sent};
use crate::{
    error::{CallError, SendError, check_status},
    identity::resource,
    message::{Delivery, Message, Resolution},
    transport::{Attempts, messaging},
};

/// Checks answered at once.
const AT_ONCE: usize = 16;
/// The rest before a topic's route is asked for again.
const ROUTE_PAUSE: Duration = Duration::from_secs(1);

/// A half message that waits for its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The id the message was sent with.
    pub message_id: String,
    /// Its topic.
    pub topic: String,
    /// What ends it, from any process.
    pub transaction_id: String,
}

type Answer = Pin<Box<dyn Future<Output = Option<Resolution>> + Send>>;

/// Answers the broker's questions: what became of this half message? `None`: not known yet, ask again later.
#[derive(Clone)]
pub struct CheckListener(Arc<dyn Fn(Delivery) -> Answer + Send + Sync>);

impl CheckListener {
    /// A listener that asks `answer`. It must give the same answer whenever it is asked about the same message, in every process.
    pub fn new<F>(answer: impl Fn(Delivery) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Option<Resolution>> + Send + 'static,
    {
        Self(Arc::new(move |half| Box::pin(answer(half))))
    }
}

impl fmt::Debug for CheckListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckListener")
    }
}

/// The broker's questions on their way from the Telemetry stream to the listener.
pub(super) type Questions = mpsc::Receiver<v2::RecoverOrphanedTransactionCommand>;

impl Producer {
    /// Sends a half message: stored as safely as any, and invisible until it is committed. The producer should have a check listener
    /// ([`crate::Client::transactional_producer`]); without one, what it leaves open waits for another producer of the topic.
    ///
    /// # Errors
    /// As of [`Producer::send`]. After `Unknown` a half message may wait, and the listener will be asked about it.
    pub async fn send_half(&self, message: Message) -> Result<Transaction, SendError> {
        let topic = message.topic.clone();
        let mut results = self.send_kind(vec![message], true).await;
        let Sent { message_id, transaction_id, .. } = results.pop().unwrap_or_else(|| Err(super::missing_entry()))?;
        match transaction_id {
            Some(transaction_id) => Ok(Transaction { message_id, topic, transaction_id }),
            None => Err(CallError::Unknown { code: 0, message: "the answer has no transaction id".to_owned() }),
        }
    }

    /// Makes the message of a transaction visible. Done again is done.
    ///
    /// # Errors
    /// As of [`Producer::end`].
    pub async fn commit(&self, transaction: &Transaction) -> Result<(), SendError> {
        self.end(transaction, Resolution::Commit).await
    }

    /// Takes the message of a transaction away for good. Done again is done.
    ///
    /// # Errors
    /// As of [`Producer::end`].
    pub async fn rollback(&self, transaction: &Transaction) -> Result<(), SendError> {
        self.end(transaction, Resolution::Rollback).await
    }

    /// Ends a transaction.
    ///
    /// # Errors
    /// `Refused` with 42800 if it ended the other way before, with 40008 if there is no such transaction. After `NotNow` or `Unknown` end it
    /// again, or leave it to the check.
    pub async fn end(&self, transaction: &Transaction, resolution: Resolution) -> Result<(), SendError> {
        self.shared.calls.end(transaction, resolution, v2::TransactionSource::SourceClient).await
    }
}

impl Calls {
    async fn end(
        &self,
        transaction: &Transaction,
        resolution: Resolution,
        source: v2::TransactionSource,
    ) -> Result<(), SendError> {
        let resolution = match resolution {
            Resolution::Commit => v2::TransactionResolution::Commit,
            Resolution::Rollback => v2::TransactionResolution::Rollback,
        };
        let request = v2::EndTransactionRequest {
            topic: Some(resource(&transaction.topic)),
            message_id: transaction.message_id.clone(),
            transaction_id: transaction.transaction_id.clone(),
            resolution: resolution.into(),
            source: source.into(),
            trace_context: String::new(),
        };
        let mut route = self.routes.of(&transaction.topic).await?;
        let mut attempts = Attempts::new(&self.transport, self.limits);
        loop {
            let addresses = route.broker("").map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| self.routes.report_failure())?;
            let mut client = messaging(&attempt.connection);
            let call = client.end_transaction(self.identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            let error = match answer.and_then(|answer| check_status(answer.status.as_ref())) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.note(&error);
            attempts.failed(&attempt, error)?;
            route = self.routes.known(&transaction.topic).unwrap_or(route);
        }
    }
}

/// Answers the broker's questions for as long as it is polled. The routes of `topics` are found first, without which there is no stream
/// to be asked on.
pub(super) async fn answer_checks(
    calls: Arc<Calls>,
    topics: Vec<String>,
    listener: CheckListener,
    questions: Questions,
) {
    for topic in &topics {
        while let Err(error) = calls.routes.of(topic).await {
            tracing::debug!(topic, %error, "no route yet to the topic of half messages");
            tokio::time::sleep(ROUTE_PAUSE).await;
        }
    }
    let answer = |question: v2::RecoverOrphanedTransactionCommand| answer_check(&calls, &listener, question);
    let questions = stream::unfold(questions, |mut questions| async { Some((questions.recv().await?, questions)) });
    questions.for_each_concurrent(AT_ONCE, answer).await;
}

async fn answer_check(calls: &Calls, listener: &CheckListener, question: v2::RecoverOrphanedTransactionCommand) {
    let transaction_id = question.transaction_id;
    let Some(message) = question.message else { return };
    let half = Delivery::from_wire(message, false);
    let transaction = Transaction { message_id: half.message_id.clone(), topic: half.topic.clone(), transaction_id };
    let Some(resolution) = (listener.0)(half).await else { return };
    let source = v2::TransactionSource::SourceServerCheck;
    if let Err(error) = calls.end(&transaction, resolution, source).await {
        // The broker asks again.
        tracing::debug!(message_id = transaction.message_id, %error, "the answer to a check was not taken");
    }
}
