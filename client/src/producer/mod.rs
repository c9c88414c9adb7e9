//! Sends messages: one or many per call, each with an id that every repetition keeps.
//!
//! A call is encoded straight from the messages; its attempts share them, so a repetition costs an encoding and the usual call no clone.
//! Sends are answered when a quorum of the broker group has them. Nothing is queued here: to have many in flight, call often
//! (the future does nothing until polled, and dropping it abandons the call, whose outcome is then unknown).

mod codec;
mod transaction;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex},
};

use quorate_proto::{
    message_id::MessageIds,
    time::{Clock, Timestamp},
    v2,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::client::Grpc;

use self::codec::Shared as SharedCodec;
pub use self::transaction::{CheckListener, Transaction};
use crate::{
    error::{CallError, SendError, check_code, check_status},
    identity::{Identity, every_message, resource},
    message::Message,
    route::{Route, Routes},
    session::{Session, Talk, Topics},
    transport::{Attempt, Attempts, CallLimits, Transport, messaging},
};

const SEND_PATH: &str = "/apache.rocketmq.v2.MessagingService/SendMessage";

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The id the message was sent with.
    pub message_id: String,
    /// Its number in its queue; 0 for a delayed message, which has none yet.
    pub queue_offset: u64,
    /// Takes a delayed message back; see [`Producer::recall`].
    pub recall_handle: Option<String>,
    transaction_id: Option<String>,
}

/// Sends messages. Cheap to clone; all clones are one client to the broker.
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    calls: Arc<Calls>,
    ids: MessageIds,
    clock: Arc<dyn Clock>,
    topics: Arc<Mutex<BTreeSet<String>>>,
    /// The topics have changed.
    changed: Arc<Notify>,
    session: Session,
    _answers: Option<AbortOnDropHandle<()>>,
}

/// What a call needs.
struct Calls {
    transport: Arc<Transport>,
    routes: Arc<Routes>,
    identity: Arc<Identity>,
    limits: CallLimits,
}

/// Topics whose half messages the producer answers for.
pub(crate) struct Checks {
    pub topics: Vec<String>,
    pub listener: CheckListener,
}

/// Checks of half messages that wait for the listener; the broker asks again about those beyond.
const QUESTIONS_MAX: usize = 256;

impl Producer {
    pub(crate) fn start(
        transport: Arc<Transport>,
        routes: Arc<Routes>,
        identity: Arc<Identity>,
        limits: CallLimits,
        ids: MessageIds,
        clock: Arc<dyn Clock>,
        checks: Option<Checks>,
    ) -> Self {
        let declared = checks.iter().flat_map(|checks| checks.topics.iter().cloned()).collect();
        let topics: Arc<Mutex<BTreeSet<String>>> = Arc::new(Mutex::new(declared));
        let named: Topics = Arc::new({
            let topics = topics.clone();
            move || {
                let topics = topics.lock().expect("no holder of this lock panics");
                topics.iter().map(|topic| (topic.clone(), every_message())).collect()
            }
        });
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let changed: Arc<Notify> = Arc::default();
        let talk = Talk { topics: named, changed: changed.clone(), checks: checks.is_some().then_some(sender) };
        let session = Session::start(transport.clone(), routes.clone(), identity.clone(), talk);
        let calls = Arc::new(Calls { transport, routes, identity, limits });
        let answers = checks.map(|Checks { topics, listener }| {
            let answers = transaction::answer_checks(calls.clone(), topics, listener, questions);
            AbortOnDropHandle::new(tokio::spawn(answers))
        });
        Self { shared: Arc::new(Shared { calls, ids, clock, topics, changed, session, _answers: answers }) }
    }

    /// Sends one message and returns once a quorum has it.
    ///
    /// # Errors
    /// See [`SendError`]; only `Unknown` leaves open whether the message was stored. Not cancel safe: a dropped send is an unknown one.
    pub async fn send(&self, message: Message) -> Result<Sent, SendError> {
        let mut results = self.send_many(vec![message]).await;
        results.pop().unwrap_or_else(|| Err(missing_entry()))
    }

    /// Sends messages of one topic in one call. Returns one result per message, in their order; they may differ.
    ///
    /// Not cancel safe: dropped sends are unknown ones.
    pub async fn send_many(&self, messages: Vec<Message>) -> Vec<Result<Sent, SendError>> {
        self.send_kind(messages, false).await
    }

    async fn send_kind(&self, messages: Vec<Message>, half: bool) -> Vec<Result<Sent, SendError>> {
        let count = messages.len();
        match self.try_send(messages, half).await {
            Ok(results) => results,
            Err(error) => vec![Err(error); count],
        }
    }

    /// Takes a delayed message back, by the handle that its send was answered with. Returns its message id.
    ///
    /// # Errors
    /// `Refused` with 40400 if it is too late, with 40013 if the handle is none of this topic and cluster. After `Unknown` the message may
    /// come or not; recall it again.
    pub async fn recall(&self, topic: &str, recall_handle: &str) -> Result<String, SendError> {
        let request = v2::RecallMessageRequest {
            topic: Some(v2::Resource { name: topic.to_owned(), ..resource("") }),
            recall_handle: recall_handle.to_owned(),
        };
        let mut route = self.route(topic).await?;
        let mut attempts = Attempts::new(&self.calls().transport, self.calls().limits);
        loop {
            let addresses = route.broker("").map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| self.calls().routes.report_failure())?;
            let mut client = messaging(&attempt.connection);
            let call = client.recall_message(self.calls().identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            let error = match answer.and_then(|answer| check_status(answer.status.as_ref()).map(|()| answer)) {
                Ok(answer) => return Ok(answer.message_id),
                Err(error) => error,
            };
            self.calls().note(&error);
            attempts.failed(&attempt, error)?;
            route = self.calls().routes.known(topic).unwrap_or(route);
        }
    }

    /// Asks for a topic's route before the first send, so that this is not slower than the others. Makes the topic known to the broker
    /// where topics are made by their first use.
    ///
    /// # Errors
    /// As of a send; nothing is stored in any case.
    pub async fn prepare(&self, topic: &str) -> Result<(), SendError> {
        self.route(topic).await.map(drop)
    }

    /// This producer's name at the broker.
    pub fn client_id(&self) -> &str {
        &self.calls().identity.client_id
    }

    /// Tells the broker that this client goes. Best effort, at most a second.
    pub async fn close(&self) {
        self.shared.session.say_farewell().await;
    }

    async fn try_send(&self, messages: Vec<Message>, half: bool) -> Result<Vec<Result<Sent, SendError>>, SendError> {
        let Some(first) = messages.first() else { return Ok(Vec::new()) };
        if let Some(other) = messages.iter().find(|message| message.topic != first.topic) {
            let message = format!("one call sends to one topic, not to both {} and {}", first.topic, other.topic);
            return Err(CallError::Config { message });
        }
        let topic = first.topic.clone();
        let mut route = self.route(&topic).await?;
        let (broker, queue) = route.queue_to_write(first.message_group.as_deref()).ok_or_else(|| {
            CallError::NotNow { code: 0, message: format!("topic {topic} has no queue that may be written") }
        })?;
        let broker = broker.name.clone();
        let request = Arc::new(self.to_wire(messages, queue, half));
        let mut attempts = Attempts::new(&self.calls().transport, self.calls().limits);
        loop {
            let addresses = route.broker(&broker).map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| self.calls().routes.report_failure())?;
            let error = match self.send_once(&attempts, &attempt, request.clone()).await {
                Ok(response) => match sort_entries(response, &request) {
                    Ok(results) => return Ok(results),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            self.calls().note(&error);
            attempts.failed(&attempt, error)?;
            route = self.calls().routes.known(&topic).unwrap_or(route);
        }
    }

    async fn send_once(
        &self,
        attempts: &Attempts<'_>,
        attempt: &Attempt,
        request: Arc<v2::SendMessageRequest>,
    ) -> Result<v2::SendMessageResponse, CallError> {
        let codec = SharedCodec::for_request(&*request);
        let request = self.calls().identity.request(request, attempt.timeout);
        let mut grpc = Grpc::with_origin(attempt.connection.clone(), attempt.connection.origin());
        let call = grpc.unary(request, http::uri::PathAndQuery::from_static(SEND_PATH), codec);
        let response = attempts.answer(attempt, call).await?.into_inner();
        Ok(response)
    }

    async fn route(&self, topic: &str) -> Result<Arc<Route>, SendError> {
        if let Some(route) = self.calls().routes.known(topic) {
            self.declare(topic);
            return Ok(route);
        }
        self.declare(topic);
        self.calls().routes.of(topic).await
    }

    fn calls(&self) -> &Calls {
        &self.shared.calls
    }

    /// The settings list this topic from now on.
    fn declare(&self, topic: &str) {
        let mut topics = self.shared.topics.lock().expect("no holder of this lock panics");
        if !topics.contains(topic) {
            topics.insert(topic.to_owned());
            self.shared.changed.notify_one();
        }
    }

    fn to_wire(&self, messages: Vec<Message>, queue: i32, half: bool) -> v2::SendMessageRequest {
        let now = self.shared.clock.now();
        let to_wire = |message: Message| {
            let kind = match (&message.message_group, &message.deliver_at) {
                _ if half => v2::MessageType::Transaction,
                (Some(_), _) => v2::MessageType::Fifo,
                (None, Some(_)) => v2::MessageType::Delay,
                (None, None) => v2::MessageType::Normal,
            };
            let system = v2::SystemProperties {
                tag: message.tag,
                keys: message.keys,
                message_id: message.id.unwrap_or_else(|| self.shared.ids.next(now)),
                body_encoding: v2::Encoding::Identity.into(),
                message_type: kind.into(),
                born_timestamp: Some(now.to_proto()),
                queue_id: queue,
                message_group: message.message_group,
                delivery_timestamp: message.deliver_at.map(Timestamp::to_proto),
                orphaned_transaction_recovery_duration: message
                    .check_after
                    .and_then(|after| prost_types::Duration::try_from(after).ok()),
                ..v2::SystemProperties::default()
            };
            v2::Message {
                topic: Some(v2::Resource { name: message.topic, ..resource("") }),
                user_properties: message.properties,
                system_properties: Some(system),
                body: message.body,
            }
        };
        v2::SendMessageRequest { messages: messages.into_iter().map(to_wire).collect() }
    }
}

impl Calls {
    /// An error after which the route is worth another look.
    fn note(&self, error: &CallError) {
        if !matches!(error, CallError::Refused { .. }) || error.code() == 40402 {
            self.routes.report_failure();
        }
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("client_id", &self.calls().identity.client_id).finish_non_exhaustive()
    }
}

/// One result per message, or what the whole call came to if no message fared better than "again".
fn sort_entries(
    response: v2::SendMessageResponse,
    request: &v2::SendMessageRequest,
) -> Result<Vec<Result<Sent, SendError>>, CallError> {
    let entries = response.entries;
    if entries.is_empty() {
        check_status(response.status.as_ref())?;
    }
    if entries.len() != request.messages.len() {
        check_status(response.status.as_ref())?;
        return Err(missing_entry());
    }
    let sort = |(entry, message): (v2::SendResultEntry, &v2::Message)| {
        match &entry.status {
            Some(status) => check_code(status.code, &status.message)?,
            None => check_status(response.status.as_ref())?,
        }
        let id = message.system_properties.as_ref().map(|system| system.message_id.clone()).unwrap_or_default();
        let recall_handle = Some(entry.recall_handle).filter(|handle| !handle.is_empty());
        let transaction_id = Some(entry.transaction_id).filter(|id| !id.is_empty());
        let queue_offset = u64::try_from(entry.offset).unwrap_or(0);
        Ok(Sent { message_id: id, queue_offset, recall_handle, transaction_id })
    };
    let results: Vec<Result<Sent, SendError>> = entries.into_iter().zip(&request.messages).map(sort).collect();
    // All of one call go one way as a rule. If all may be repeated, the call is.
    let again = |result: &Result<Sent, SendError>| {
        matches!(result, Err(CallError::NotNow { .. } | CallError::Unknown { .. })).then(|| result.clone())
    };
    let errors: Option<Vec<_>> = results.iter().map(again).collect();
    match errors.and_then(worst) {
        Some(error) => Err(error),
        None => Ok(results),
    }
}

/// An unknown one if there is any, else the first.
fn worst(results: Vec<Result<Sent, SendError>>) -> Option<CallError> {
    let mut errors: Vec<CallError> = results.into_iter().filter_map(Result::err).collect();
    let unknown = errors.iter().position(|error| matches!(error, CallError::Unknown { .. })).unwrap_or(0);
    (!errors.is_empty()).then(|| errors.swap_remove(unknown))
}

fn missing_entry() -> CallError {
    CallError::Unknown {
        code: 0,
        message: "the answer has another number of entries than the call had messages".to_owned(),
    }
}
