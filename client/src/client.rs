//! The client: connections and routes, shared by the producers, consumers and admins made from it.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use quorate_proto::{message_id::MessageIds, names::GroupName, v2};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    admin::Admin,
    config::{ClientConfig, Doors},
    consumer::{ConsumerOptions, PullConsumer, PullOptions, SimpleConsumer},
    error::CallError,
    identity::Identity,
    producer::{CheckListener, Checks, Producer},
    route::Routes,
    transport::{CallLimits, Transport},
};

/// A client of one cluster. Cheap to clone; connections close when the last clone and everything made from it are dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    doors: Doors,
    seed: u64,
    endpoints: Vec<Arc<str>>,
    transport: Arc<Transport>,
    routes: Arc<Routes>,
    made: AtomicU32,
}

impl Client {
    /// Takes note of the configuration; connects to nothing yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`CallError::Config`] says which setting cannot work.
    pub fn new(config: ClientConfig, doors: Doors) -> Result<Self, CallError> {
        config.check()?;
        let seed = config.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let endpoints: Vec<Arc<str>> = config.endpoints.iter().map(|endpoint| Arc::from(endpoint.as_str())).collect();
        let transport = Arc::new(Transport::new(&config, doors.clone(), seed));
        let identity = Identity::new(client_id(seed, 0), v2::ClientType::Producer, None, config.request_timeout);
        let limits = CallLimits { repeat_unknown: true, rounds: 3, ..call_limits(&config) };
        let routes = Arc::new(Routes::start(transport.clone(), identity, limits, endpoints.clone()));
        let made = AtomicU32::new(1);
        Ok(Self { shared: Arc::new(Shared { config, doors, seed, endpoints, transport, routes, made }) })
    }

    /// A producer, with a client id and message ids of its own.
    pub fn producer(&self) -> Producer {
        self.make_producer(None)
    }

    /// A producer that answers for half messages of `topics`: the broker asks `listener` about those that were left open, by this
    /// process or by any other that died. It is asked as soon as the producer exists, before anything is sent.
    pub fn transactional_producer<T: Into<String>>(
        &self,
        topics: impl IntoIterator<Item = T>,
        listener: CheckListener,
    ) -> Producer {
        let topics = topics.into_iter().map(Into::into).collect();
        self.make_producer(Some(Checks { topics, listener }))
    }

    fn make_producer(&self, checks: Option<Checks>) -> Producer {
        let shared = &self.shared;
        let number = shared.made.fetch_add(1, Ordering::Relaxed);
        let identity = self.identity(number, v2::ClientType::Producer, None);
        let mut node = [0; 6];
        StdRng::seed_from_u64(shared.seed ^ (u64::from(number) << 32)).fill(&mut node);
        let ids = MessageIds::new(node, std::process::id() as u16);
        let limits = CallLimits { repeat_unknown: true, ..call_limits(&shared.config) };
        Producer::start(
            shared.transport.clone(),
            shared.routes.clone(),
            identity,
            limits,
            ids,
            shared.doors.clock.clone(),
            checks,
        )
    }

    /// A consumer that receives when asked and acks message by message, as a member of `group`.
    ///
    /// # Errors
    /// [`CallError::Config`] if the group's name is not one.
    pub fn simple_consumer(&self, group: &str, options: ConsumerOptions) -> Result<SimpleConsumer, CallError> {
        let (identity, limits) = self.member(v2::ClientType::SimpleConsumer, group)?;
        let shared = &self.shared;
        let verify = shared.config.verify_digests;
        Ok(SimpleConsumer::start(shared.transport.clone(), shared.routes.clone(), identity, limits, options, verify))
    }

    /// A consumer that reads queues from where it wants and says how far it is, as a member of `group`.
    ///
    /// # Errors
    /// [`CallError::Config`] if the group's name is not one.
    pub fn pull_consumer(&self, group: &str, options: PullOptions) -> Result<PullConsumer, CallError> {
        let (identity, limits) = self.member(v2::ClientType::PullConsumer, group)?;
        let shared = &self.shared;
        let verify = shared.config.verify_digests;
        Ok(PullConsumer::start(shared.transport.clone(), shared.routes.clone(), identity, limits, options, verify))
    }

    fn member(&self, client_type: v2::ClientType, group: &str) -> Result<(Arc<Identity>, CallLimits), CallError> {
        GroupName::parse(group).map_err(|error| CallError::Config { message: error.to_string() })?;
        let number = self.shared.made.fetch_add(1, Ordering::Relaxed);
        let limits = CallLimits { repeat_unknown: true, ..call_limits(&self.shared.config) };
        Ok((self.identity(number, client_type, Some(group)), limits))
    }

    /// The operators' calls. Its endpoints must be broker nodes.
    pub fn admin(&self) -> Admin {
        let shared = &self.shared;
        let number = shared.made.fetch_add(1, Ordering::Relaxed);
        let identity = self.identity(number, v2::ClientType::Unspecified, None);
        let limits = CallLimits { rounds: 2, ..call_limits(&shared.config) };
        Admin::new(shared.transport.clone(), identity, limits, shared.endpoints.clone())
    }

    fn identity(&self, number: u32, client_type: v2::ClientType, group: Option<&str>) -> Arc<Identity> {
        Identity::new(client_id(self.shared.seed, number), client_type, group, self.shared.config.request_timeout)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.shared.config.endpoints).finish_non_exhaustive()
    }
}

/// `host@pid@number@random`, as RocketMQ's clients have it; the host's name is left to the broker's log, which knows the address.
fn client_id(seed: u64, number: u32) -> String {
    format!("quorate@{}@{number}@{seed:x}", std::process::id())
}

fn call_limits(config: &ClientConfig) -> CallLimits {
    CallLimits {
        attempts: config.attempts,
        attempt_timeout: config.request_timeout,
        total_timeout: config.total_timeout,
        rounds: u32::MAX,
        repeat_unknown: false,
    }
}
