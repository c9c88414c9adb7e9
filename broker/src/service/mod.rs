//! The words of the wire on one side, calls to the leader on the other.
//!
//! ```text
//!  listener (server) ─▶ gate ─▶ messaging / admin ─▶ wire (check, convert) ─▶ forward ─▶ leader, here or on another node
//! ```
//! Every node serves every call. A handler checks and converts what came, has the call executed by whoever leads, and converts what
//! comes back; it holds no rule of messages and no state that another node would miss. Answers are always gRPC OK with RocketMQ's
//! status inside, because official clients close their channel over anything else.

mod ack;
mod admin;
mod client;
pub(crate) mod forward;
mod gate;
mod health;
pub(crate) mod leadership;
pub(crate) mod members;
mod messaging;
pub(crate) mod node;
pub(crate) mod producers;
mod pull;
mod recall;
mod receive;
pub(crate) mod renew;
mod route;
mod send;
pub(crate) mod server;
mod telemetry;
mod transaction;
mod unread;
pub(crate) mod wire;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use quorate_proto::time::Clock;
use tokio_util::sync::CancellationToken;

pub(crate) use self::gate::Gate;
use self::{
    client::Client,
    forward::{Dispatch, Until},
    producers::Streams,
    renew::Renewals,
};
use crate::{
    config::BrokerConfig, health::Health, metrics::Metrics, registrar::Live, replica::Shared, session::Sessions,
};

/// What the handlers of one node share.
pub(crate) struct Service {
    /// Has calls executed.
    pub dispatch: Dispatch,
    /// Reads of topics and groups that need not be fresh.
    pub shared: Shared,
    /// Settings.
    pub config: Arc<BrokerConfig>,
    /// Clients heard of.
    pub sessions: Sessions,
    /// Producers whose Telemetry streams are open here.
    pub producers: Arc<Streams>,
    /// Deliveries prolonged for push consumers.
    pub renewals: Renewals,
    /// Addresses for routes.
    pub live: Live,
    /// This node's address for clients of the default listener, which messages name as where they are stored.
    pub address: String,
    /// The node's clocks.
    pub clock: Arc<dyn Clock>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Whether this node is ready.
    pub health: Arc<Health>,
    /// What this node reports about itself.
    pub reporter: node::Reporter,
    /// Cancelled when the client listener closes: long polls and Telemetry streams end.
    pub closing: Mutex<CancellationToken>,
    /// Cancelled when this node is about to hand over and stop: nobody waits for messages here any more.
    pub draining: CancellationToken,
    /// Makes attempt ids of receives that have none; begins at random, so that a restarted node does not repeat its own.
    pub attempts: AtomicU64,
}

impl Service {
    /// Ends with the client listener as it is open now.
    fn closing(&self) -> CancellationToken {
        self.closing.lock().expect("no panic while held").clone()
    }

    /// The client listener opens; what it serves lives until the token is cancelled.
    pub fn open(&self) -> CancellationToken {
        let token = CancellationToken::new();
        *self.closing.lock().expect("no panic while held") = token.clone();
        token
    }

    /// When a call that just came in is answered at the latest.
    fn until(&self, client: &Client) -> Until {
        client.until(tokio::time::Instant::now(), &self.config.limits)
    }

    /// A client is there.
    fn heard(&self, client_id: &str) {
        let known = self.sessions.touch(client_id, self.clock.monotonic());
        self.metrics.clients.set(i64::try_from(known).unwrap_or(i64::MAX));
    }

    /// An attempt id for a receive that came without one.
    fn attempt_id(&self) -> String {
        format!("{}#{}", self.config.node.number, self.attempts.fetch_add(1, Ordering::Relaxed))
    }
}
