//! The pull consumer: reads queues from a position that it keeps, and says how far its group is when the application wants it.
//!
//! ```text
//!   queues(topic) ─▶ pull(queue) ─▶ messages, position moves ─▶ commit(queue) ─▶ survives this process and any leader
//!                       ▲ seek(queue, offset)                     committed(queue): where a new process begins
//! ```
//! Nothing is handed out: whoever pulls the same offset gets the same messages, so which process reads which queue is the application's to
//! decide. A pull is a read and may be repeated, dropped or sent to any node; a position moves only when a pull has come back whole.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use quorate_proto::{
    time::Timestamp,
    v2::{self, pull_message_response::Content},
};

use crate::{
    consumer::Filter,
    error::{CallError, check_code, check_status},
    identity::Identity,
    message::PulledMessage,
    route::{Route, Routes},
    session::{Session, Talk, Topics},
    transport::{Attempt, Attempts, CallLimits, Transport, messaging},
};

/// How a pull consumer works unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct PullOptions {
    /// Most messages of one pull (default 32).
    pub batch: u16,
    /// How long a pull waits for a first message (default 20 s; the broker waits 30 s at most unless its operator chose otherwise).
    pub long_polling: Duration,
    /// Where it begins in a queue in which its group has not begun (default: at the first message).
    pub begin: OffsetOf,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { batch: 32, long_polling: Duration::from_secs(20), begin: OffsetOf::First }
    }
}

/// A place of a queue by what stands there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffsetOf {
    /// The first message that is kept.
    First,
    /// Behind the last message.
    End,
    /// The first message that was stored at a moment or later; the end if there is none.
    Since(Timestamp),
}

/// One queue of a topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicQueue {
    topic: String,
    broker: String,
    id: u32,
}

impl TopicQueue {
    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The broker group that holds the queue.
    pub fn broker(&self) -> &str {
        &self.broker
    }

    /// Its number there, from 0.
    pub fn id(&self) -> u32 {
        self.id
    }
}

/// Reads queues at its own pace as a member of a consumer group. Cheap to clone; all clones are one client and share their positions.
#[derive(Clone)]
pub struct PullConsumer {
    shared: Arc<Shared>,
}

struct Shared {
    transport: Arc<Transport>,
    routes: Arc<Routes>,
    identity: Arc<Identity>,
    limits: CallLimits,
    options: PullOptions,
    verify: bool,
    topics: Arc<Mutex<BTreeMap<String, Filter>>>,
    positions: Mutex<BTreeMap<TopicQueue, u64>>,
    session: Session,
}

/// What a pull brought.
struct Part {
    messages: Vec<PulledMessage>,
    next_offset: u64,
}

/// One unary call about a queue, with its attempts. The answer's status is sorted as every status is.
macro_rules! call {
    ($shared:expr, $queue:expr, $method:ident, |$wire:ident| $request:expr) => {{
        let (shared, queue): (&Shared, &TopicQueue) = ($shared, $queue);
        let mut route = shared.route(&queue.topic).await?;
        let $wire = shared.wire(&route, queue)?;
        let request = $request;
        let mut attempts = Attempts::new(&shared.transport, shared.limits);
        loop {
            let addresses = route.broker(&queue.broker).map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| shared.routes.report_failure())?;
            let mut client = messaging(&attempt.connection);
            let call = client.$method(shared.identity.request(request.clone(), attempt.timeout));
            let answer = attempts.answer(&attempt, call).await.map(tonic::Response::into_inner);
            match answer.and_then(|answer| check_status(answer.status.as_ref()).map(|()| answer)) {
                Ok(answer) => break answer,
                Err(error) => {
                    shared.note(&error);
                    attempts.failed(&attempt, error)?;
                }
            }
            route = shared.routes.known(&queue.topic).unwrap_or(route);
        }
    }};
}

impl PullConsumer {
    pub(crate) fn start(
        transport: Arc<Transport>,
        routes: Arc<Routes>,
        identity: Arc<Identity>,
        limits: CallLimits,
        options: PullOptions,
        verify: bool,
    ) -> Self {
        let topics: Arc<Mutex<BTreeMap<String, Filter>>> = Arc::default();
        let named: Topics = Arc::new({
            let topics = topics.clone();
            move || lock(&topics).iter().map(|(topic, filter)| (topic.clone(), filter.to_wire())).collect()
        });
        let session = Session::start(transport.clone(), routes.clone(), identity.clone(), Talk::about(named));
        let positions = Mutex::default();
        let shared = Shared { transport, routes, identity, limits, options, verify, topics, positions, session };
        Self { shared: Arc::new(shared) }
    }

    /// Pulls from `topic` what `filter` wants, from the next pull on; every message without one.
    pub fn subscribe(&self, topic: &str, filter: Filter) {
        lock(&self.shared.topics).insert(topic.to_owned(), filter);
    }

    /// The queues of a topic that may be read, in the order of its route.
    ///
    /// # Errors
    /// `Refused` with 40402 if there is no such topic and the broker makes none.
    pub async fn queues(&self, topic: &str) -> Result<Vec<TopicQueue>, CallError> {
        let route = self.shared.route(topic).await?;
        let queue = |(broker, id): (&str, i32)| {
            let id = u32::try_from(id).ok()?;
            Some(TopicQueue { topic: topic.to_owned(), broker: broker.to_owned(), id })
        };
        Ok(route.readable().filter_map(queue).collect())
    }

    /// Messages of a queue from this consumer's position on, which moves behind them. Empty if nothing came within the long polling time; the
    /// position has moved all the same if a filter wanted nothing of what came.
    ///
    /// The first pull of a queue begins where the group is, or as the options say. Cancel safe: dropped, the position has not moved.
    ///
    /// # Errors
    /// `Refused` with 40019 if the queue does not hold the position any more, because nobody read it for longer than messages are kept: what
    /// stood there is gone, and [`PullConsumer::seek`] says where to go on.
    pub async fn pull(&self, queue: &TopicQueue) -> Result<Vec<PulledMessage>, CallError> {
        let position = match self.position(queue) {
            Some(position) => position,
            None => self.begin(queue).await?,
        };
        let Part { messages, next_offset } = self.pull_at(queue, position).await?;
        // Unless somebody moved it meanwhile, whose word counts.
        let mut positions = lock(&self.shared.positions);
        if let Some(now) = positions.get_mut(queue).filter(|now| **now == position) {
            *now = next_offset;
        }
        Ok(messages)
    }

    /// Where the next pull of a queue begins, if that is known yet.
    pub fn position(&self, queue: &TopicQueue) -> Option<u64> {
        lock(&self.shared.positions).get(queue).copied()
    }

    /// Goes on at `offset` with the next pull of a queue, forwards or back. Only this consumer knows until it commits.
    pub fn seek(&self, queue: &TopicQueue, offset: u64) {
        lock(&self.shared.positions).insert(queue.clone(), offset);
    }

    /// Says that the group is done with everything before this consumer's position in a queue, and returns that position. `None` if nothing
    /// was pulled from it yet; then nothing is said.
    ///
    /// # Errors
    /// As [`PullConsumer::commit_at`].
    pub async fn commit(&self, queue: &TopicQueue) -> Result<Option<u64>, CallError> {
        let Some(position) = self.position(queue) else { return Ok(None) };
        self.commit_at(queue, position).await?;
        Ok(Some(position))
    }

    /// Says that the group is done with everything before `offset` and with nothing from there on, forwards or back. When this returns a
    /// majority of the broker group has it.
    ///
    /// # Errors
    /// `Refused` with 40019 if the queue neither holds nor ends at the offset; nothing has changed. After `Unknown` the group is where it was
    /// or at `offset`.
    pub async fn commit_at(&self, queue: &TopicQueue, offset: u64) -> Result<(), CallError> {
        let (group, offset) = (self.shared.identity.group.clone(), wire_offset(offset)?);
        let wanted = |message_queue| v2::UpdateOffsetRequest { group, message_queue: Some(message_queue), offset };
        call!(&self.shared, queue, update_offset, |queue| wanted(queue));
        Ok(())
    }

    /// How far the group is in a queue: everything before is done. `None` if it has not begun.
    ///
    /// # Errors
    /// `Refused` names what the broker does not accept.
    pub async fn committed(&self, queue: &TopicQueue) -> Result<Option<u64>, CallError> {
        match self.try_committed(queue).await {
            Ok(offset) => Ok(Some(offset)),
            Err(error) if error.code() == 40404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn try_committed(&self, queue: &TopicQueue) -> Result<u64, CallError> {
        let group = self.shared.identity.group.clone();
        let wanted = |message_queue| v2::GetOffsetRequest { group, message_queue: Some(message_queue) };
        let answer = call!(&self.shared, queue, get_offset, |queue| wanted(queue));
        known_offset(answer.offset)
    }

    /// The offset at which something stands in a queue.
    ///
    /// # Errors
    /// `Refused` names what the broker does not accept.
    pub async fn query_offset(&self, queue: &TopicQueue, what: OffsetOf) -> Result<u64, CallError> {
        let (policy, timestamp) = match what {
            OffsetOf::First => (v2::QueryOffsetPolicy::Beginning, None),
            OffsetOf::End => (v2::QueryOffsetPolicy::End, None),
            OffsetOf::Since(moment) => (v2::QueryOffsetPolicy::Timestamp, Some(moment.to_proto())),
        };
        let wanted = |message_queue| v2::QueryOffsetRequest {
            message_queue: Some(message_queue),
            query_offset_policy: policy.into(),
            timestamp,
        };
        let answer = call!(&self.shared, queue, query_offset, |queue| wanted(queue));
        known_offset(answer.offset)
    }

    /// This consumer's name at the broker.
    pub fn client_id(&self) -> &str {
        &self.shared.identity.client_id
    }

    /// Tells the broker that this client goes. Commits nothing. Best effort, at most a second.
    pub async fn close(&self) {
        self.shared.session.say_farewell().await;
    }

    /// Where a queue is pulled first; the position is known from then on.
    async fn begin(&self, queue: &TopicQueue) -> Result<u64, CallError> {
        let offset = match self.committed(queue).await? {
            Some(offset) => offset,
            None => self.query_offset(queue, self.shared.options.begin).await?,
        };
        Ok(*lock(&self.shared.positions).entry(queue.clone()).or_insert(offset))
    }

    async fn pull_at(&self, queue: &TopicQueue, offset: u64) -> Result<Part, CallError> {
        let (shared, options) = (&*self.shared, self.shared.options);
        let mut route = shared.route(&queue.topic).await?;
        let request = v2::PullMessageRequest {
            group: shared.identity.group.clone(),
            message_queue: Some(shared.wire(&route, queue)?),
            offset: wire_offset(offset)?,
            batch_size: i32::from(options.batch),
            filter_expression: Some(lock(&shared.topics).get(&queue.topic).cloned().unwrap_or_default().to_wire()),
            long_polling_timeout: prost_types::Duration::try_from(options.long_polling).ok(),
        };
        let attempt_timeout = options.long_polling + shared.limits.attempt_timeout;
        let total_timeout = options.long_polling + shared.limits.total_timeout;
        let limits = CallLimits { attempt_timeout, total_timeout, ..shared.limits };
        let mut attempts = Attempts::new(&shared.transport, limits);
        loop {
            let addresses = route.broker(&queue.broker).map_or(&[][..], |broker| &broker.addresses);
            let attempt = attempts.next(addresses).await.inspect_err(|_| shared.routes.report_failure())?;
            let call = shared.pull_once(&attempt, request.clone());
            match attempts.answer(&attempt, call).await.flatten() {
                Ok(part) => return Ok(part),
                Err(error) => {
                    shared.note(&error);
                    attempts.failed(&attempt, error)?;
                }
            }
            route = shared.routes.known(&queue.topic).unwrap_or(route);
        }
    }
}

impl Shared {
    /// The outer result is the transport's, the inner the broker's. What came without its end is thrown away: it is read again.
    async fn pull_once(
        &self,
        attempt: &Attempt,
        request: v2::PullMessageRequest,
    ) -> Result<Result<Part, CallError>, tonic::Status> {
        let mut client = messaging(&attempt.connection);
        let mut stream = client.pull_message(self.identity.request(request, attempt.timeout)).await?.into_inner();
        let (mut messages, mut verdict, mut next) = (Vec::new(), None, None);
        while let Some(part) = stream.message().await? {
            match part.content {
                Some(Content::Message(message)) => messages.push(PulledMessage::from_wire(message, self.verify)),
                Some(Content::Status(status)) => verdict = Some(check_code(status.code, &status.message)),
                Some(Content::NextOffset(offset)) => next = Some(offset),
                None => {}
            }
        }
        // No new message: an answer, not an error.
        let verdict = verdict.unwrap_or_else(|| check_status(None));
        if let Err(error) = verdict
            && error.code() != 40401
        {
            return Ok(Err(error));
        }
        Ok(known_offset(next.unwrap_or(-1)).map(|next_offset| Part { messages, next_offset }))
    }

    async fn route(&self, topic: &str) -> Result<Arc<Route>, CallError> {
        if let Some(route) = self.routes.known(topic) {
            return Ok(route);
        }
        lock(&self.topics).entry(topic.to_owned()).or_default();
        self.routes.of(topic).await
    }

    /// The queue as the wire has it.
    fn wire(&self, route: &Route, queue: &TopicQueue) -> Result<v2::MessageQueue, CallError> {
        let found = i32::try_from(queue.id).ok().and_then(|id| route.queue(&queue.broker, id));
        found.ok_or_else(|| CallError::NotNow {
            code: 0,
            message: format!("topic {} has no queue {} of {} in its route", queue.topic, queue.id, queue.broker),
        })
    }

    fn note(&self, error: &CallError) {
        if !matches!(error, CallError::Refused { .. }) || error.code() == 40402 {
            self.routes.report_failure();
        }
    }
}

impl fmt::Debug for PullConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullConsumer").field("client_id", &self.shared.identity.client_id).finish_non_exhaustive()
    }
}

fn wire_offset(offset: u64) -> Result<i64, CallError> {
    i64::try_from(offset).map_err(|_| CallError::Config { message: format!("no queue has an offset {offset}") })
}

fn known_offset(offset: i64) -> Result<u64, CallError> {
    u64::try_from(offset)
        .map_err(|_| CallError::Unknown { code: 0, message: "the answer has no offset to go on from".to_owned() })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}
