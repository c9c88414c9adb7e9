//! The simple consumer: `receive` hands out messages and hides them from the rest of the group, `ack` ends that for good.
//!
//! A receive waits at the broker until something arrives (long polling). One logical receive has one attempt id; if an attempt is lost, its
//! repetition with the same id gets the same messages, so a failover neither strands a batch until its invisible duration ends
//! nor hands out two. A receive is never sent to two nodes at a time.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quorate_proto::v2::{self, receive_message_response::Content};

use crate::{
    consumer::Filter,
    error::{AckError, CallError, ReceiveError, check_code, check_status},
    identity::{Identity, resource},
    message::Delivery,
    route::{Route, Routes},
    session::{Session, Talk, Topics},
    transport::{Attempt, Attempts, CallLimits, Transport, messaging},
};

/// What a receive asks for unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerOptions {
    /// Most messages of one receive (default 32).
    pub batch: u16,
    /// How long received messages stay hidden from others (default 60 s; the broker takes 10 s to 12 h).
    pub invisible_duration: Duration,
    /// How long a receive waits for a first message (default 20 s; the broker keeps it within 5 s to 20 s).
    pub long_polling: Duration,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self { batch: 32, invisible_duration: Duration::from_secs(60), long_polling: Duration::from_secs(20) }
    }
}

/// What one receive asks for.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveOptions {
    /// Most messages.
    pub batch: u16,
    /// How long they stay hidden from others.
    pub invisible_duration: Duration,
    /// How long to wait for a first message.
    pub long_polling: Duration,
}

impl From<ConsumerOptions> for ReceiveOptions {
    fn from(options: ConsumerOptions) -> Self {
        Self {
            batch: options.batch,
            invisible_duration: options.invisible_duration,
            long_polling: options.long_polling,
        }
    }
}

/// Receives and acks as a member of a consumer group. Cheap to clone; all clones are one client to the broker.
#[derive(Clone)]
pub struct SimpleConsumer {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Arc<Transport>,
    routes: Arc<Routes>,
    identity: Arc<Identity>,
    limits: CallLimits,
    options: ConsumerOptions,
    verify: bool,
    receives: AtomicU64,
    topics: Arc<Mutex<BTreeMap<String, Filter>>>,
    session: Session,
}

impl SimpleConsumer {
    pub(crate) fn start(
        transport: Arc<Transport>,
        routes: Arc<Routes>,
        identity: Arc<Identity>,
        limits: CallLimits,
        options: ConsumerOptions,
        verify: bool,
    ) -> Self {
        let topics: Arc<Mutex<BTreeMap<String, Filter>>> = Arc::default();
        let named: Topics = Arc::new({
            let topics = topics.clone();
            move || {
                let topics = topics.lock().expect("no holder of this lock panics");
                topics.iter().map(|(topic, filter)| (topic.clone(), filter.to_wire())).collect()
            }
        });
        let session = Session::start(transport.clone(), routes.clone(), identity.clone(), Talk::about(named));
        let receives = AtomicU64::new(0);
        let shared = Shared { transport, routes, identity, limits, options, verify, receives, topics, session };
        Self { shared: Arc::new(shared) }
    }

    /// Receives from `topic` what `filter` wants, from the next receive on; every message without one. All consumers of a group should
    /// use the same filter for a topic.
    pub fn subscribe(&self, topic: &str, filter: Filter) {
        self.shared.topics.lock().expect("no holder of this lock panics").insert(topic.to_owned(), filter);
    }

    /// Receives from a topic with the consumer's options. Empty if nothing came in time.
    ///
    /// # Errors
    /// See [`SimpleConsumer::receive_with`].
    pub async fn receive(&self, topic: &str) -> Result<Vec<Delivery>, ReceiveError> {
        self.receive_with(topic, self.shared.options.into()).await
    }

    /// Receives from a topic. Empty if nothing came within the long polling time.
    ///
    /// # Errors
    /// `Refused` names what the broker does not accept. After `Unknown`, and if the future is dropped, messages may have been handed
    /// out that come back when their invisible duration ends.
    pub async fn receive_with(&self, topic: &str, options: ReceiveOptions) -> Result<Vec<Delivery>, ReceiveError> {
        let mut route = self.route(topic).await?;
        let (broker, queue) = route.queue_to_read(topic).ok_or_else(|| CallError::NotNow {
            code: 0,
            message: format!("topic {topic} has no queue that may be read"),
        })?;
        let broker = broker.name.clone();
        let number = self.shared.receives.fetch_add(1, Ordering::Relaxed);
        let request = v2::ReceiveMessageRequest {
            group: self.shared.identity.group.clone(),
            message_queue: Some(queue),
            filter_expression: Some(self.filter(topic).to_wire()),
            batch_size: i32::from(options.batch),
            invisible_duration: wire_duration(options.invisible_duration),
            auto_renew: false,
            long_polling_timeout: wire_duration(options.long_polling),
            attempt_id: Some(format!("{}-{number}", self.shared.identity.client_id)),
        };
        let limits = self.shared.limits;
        let attempt_timeout = options.long_polling + limits.attempt_timeout;
        let total_timeout = options.long_polling + limits.total_timeout;
        let mut attempts =
            Attempts::new(&self.shared.transport, CallLimits { attempt_timeout, total_timeout, ..limits });
        loop {
            let addresses = route.broker(&broker).map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| self.shared.routes.report_failure())?;
            let mut received = Vec::new();
            let call = self.receive_once(&attempt, request.clone(), &mut received);
            let error = match attempts.answer(&attempt, call).await.flatten() {
                Ok(()) => return Ok(received),
                Err(error) => error,
            };
            if !matches!(error, CallError::Refused { .. }) || error.code() == 40402 {
                self.shared.routes.report_failure();
            }
            if let Err(error) = attempts.failed(&attempt, error) {
                // What did arrive was handed out and can be acked.
                return if received.is_empty() { Err(error) } else { Ok(received) };
            }
            route = self.shared.routes.known(topic).unwrap_or(route);
        }
    }

    /// The outer result is the transport's, the inner the broker's.
    async fn receive_once(
        &self,
        attempt: &Attempt,
        request: v2::ReceiveMessageRequest,
        received: &mut Vec<Delivery>,
    ) -> Result<Result<(), CallError>, tonic::Status> {
        let mut client = messaging(&attempt.connection);
        let answer = client.receive_message(self.shared.identity.request(request, attempt.timeout)).await?;
        let mut stream = answer.into_inner();
        let mut verdict = None;
        while let Some(part) = stream.message().await? {
            match part.content {
                Some(Content::Message(message)) => received.push(Delivery::from_wire(message, self.shared.verify)),
                Some(Content::Status(status)) => verdict = Some(check_code(status.code, &status.message)),
                Some(Content::DeliveryTimestamp(_)) | None => {}
            }
        }
        Ok(match verdict {
            Some(Err(error)) if is_empty_handed(&error) => Ok(()),
            Some(verdict) => verdict,
            None if received.is_empty() => check_status(None),
            None => Ok(()),
        })
    }

    /// Ends a delivery: the group never gets the message again. Acking twice is fine.
    ///
    /// # Errors
    /// `Refused` with 40013 if the message was handed out again since.
    pub async fn ack(&self, delivery: &Delivery) -> Result<(), AckError> {
        let mut results = self.ack_many(std::slice::from_ref(delivery)).await;
        results.pop().unwrap_or_else(|| check_status(None))
    }

    /// Acks deliveries of one topic in one call; one result per delivery, in their order.
    pub async fn ack_many(&self, deliveries: &[Delivery]) -> Vec<Result<(), AckError>> {
        match self.try_ack(deliveries).await {
            Ok(results) => results,
            Err(error) => vec![Err(error); deliveries.len()],
        }
    }

    async fn try_ack(&self, deliveries: &[Delivery]) -> Result<Vec<Result<(), AckError>>, AckError> {
        let Some(first) = deliveries.first() else { return Ok(Vec::new()) };
        if let Some(other) = deliveries.iter().find(|delivery| delivery.topic != first.topic) {
            let message = format!("one call acks for one topic, not for both {} and {}", first.topic, other.topic);
            return Err(CallError::Config { message });
        }
        let entry = |delivery: &Delivery| v2::AckMessageEntry {
            message_id: delivery.message_id.clone(),
            receipt_handle: delivery.receipt_handle.clone(),
            lite_topic: None,
        };
        let request = v2::AckMessageRequest {
            group: self.shared.identity.group.clone(),
            topic: Some(resource(&first.topic)),
            entries: deliveries.iter().map(entry).collect(),
        };
        let mut route = self.route(&first.topic).await?;
        let mut attempts = Attempts::new(&self.shared.transport, self.shared.limits);
        loop {
            let addresses = route.broker("").map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| self.shared.routes.report_failure())?;
            let mut client = messaging(&attempt.connection);
            let call = client.ack_message(self.shared.identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            let error = match answer.and_then(|answer| sort_acks(answer, deliveries.len())) {
                Ok(results) => return Ok(results),
                Err(error) => error,
            };
            self.note(&error);
            attempts.failed(&attempt, error)?;
            route = self.shared.routes.known(&first.topic).unwrap_or(route);
        }
    }

    /// Hides a delivery for `invisible_duration` more, counted from now, and puts its new receipt handle into it.
    ///
    /// # Errors
    /// `Refused` with 40013 if the message was handed out again since. After `Unknown` the handle may have stopped working; the message
    /// comes back when its invisible duration ends.
    pub async fn change_invisible_duration(
        &self,
        delivery: &mut Delivery,
        invisible_duration: Duration,
    ) -> Result<(), AckError> {
        let request = v2::ChangeInvisibleDurationRequest {
            group: self.shared.identity.group.clone(),
            topic: Some(resource(&delivery.topic)),
            receipt_handle: delivery.receipt_handle.clone(),
            invisible_duration: wire_duration(invisible_duration),
            message_id: delivery.message_id.clone(),
            ..v2::ChangeInvisibleDurationRequest::default()
        };
        let mut route = self.route(&delivery.topic).await?;
        let mut attempts = Attempts::new(&self.shared.transport, self.shared.limits);
        loop {
            let addresses = route.broker("").map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| self.shared.routes.report_failure())?;
            let mut client = messaging(&attempt.connection);
            let call = client.change_invisible_duration(self.shared.identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            let error = match answer.and_then(|answer| check_status(answer.status.as_ref()).map(|()| answer)) {
                Ok(answer) => {
                    delivery.receipt_handle = answer.receipt_handle;
                    delivery.invisible_duration = invisible_duration;
                    return Ok(());
                }
                Err(error) => error,
            };
            self.note(&error);
            attempts.failed(&attempt, error)?;
            route = self.shared.routes.known(&delivery.topic).unwrap_or(route);
        }
    }

    /// This consumer's name at the broker.
    pub fn client_id(&self) -> &str {
        &self.shared.identity.client_id
    }

    /// Tells the broker that this client goes. Best effort, at most a second.
    pub async fn close(&self) {
        self.shared.session.say_farewell().await;
    }

    fn note(&self, error: &CallError) {
        if !matches!(error, CallError::Refused { .. }) {
            self.shared.routes.report_failure();
        }
    }

    async fn route(&self, topic: &str) -> Result<Arc<Route>, CallError> {
        if let Some(route) = self.shared.routes.known(topic) {
            return Ok(route);
        }
        self.shared.topics.lock().expect("no holder of this lock panics").entry(topic.to_owned()).or_default();
        self.shared.routes.of(topic).await
    }

    fn filter(&self, topic: &str) -> Filter {
        self.shared.topics.lock().expect("no holder of this lock panics").get(topic).cloned().unwrap_or_default()
    }
}

impl fmt::Debug for SimpleConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimpleConsumer").field("client_id", &self.shared.identity.client_id).finish_non_exhaustive()
    }
}

/// No new message: an answer, not an error.
fn is_empty_handed(error: &CallError) -> bool {
    error.code() == 40401
}

/// One result per entry, or what the whole call came to if it had no effect and should be repeated.
fn sort_acks(answer: v2::AckMessageResponse, count: usize) -> Result<Vec<Result<(), AckError>>, CallError> {
    if answer.entries.len() != count {
        // A refusal of the whole call, or a server that answers by one status for all.
        check_status(answer.status.as_ref())?;
        return Ok(vec![Ok(()); count]);
    }
    let sort = |entry: &v2::AckMessageResultEntry| match &entry.status {
        Some(status) => check_code(status.code, &status.message),
        None => check_status(answer.status.as_ref()),
    };
    let results: Vec<Result<(), AckError>> = answer.entries.iter().map(sort).collect();
    // Acking again does no harm, so one entry that may be repeated repeats the call.
    let again =
        |result: &&Result<(), AckError>| matches!(result, Err(CallError::NotNow { .. } | CallError::Unknown { .. }));
    match results.iter().find(again) {
        Some(Err(error)) if results.iter().all(|result| again(&result)) => Err(error.clone()),
        _ => Ok(results),
    }
}

fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
