//! What a client is told at start, and the doors it touches the world through.

use std::{sync::Arc, time::Duration};

use quorate_proto::{
    doors::{Net, TcpNet, parse_addresses},
    time::{Clock, SystemClock},
};

use crate::error::CallError;

/// Settings of a [`crate::Client`]. The defaults are those of RocketMQ's own clients where they have one.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where to ask first, `host:port` each: broker nodes or name servers, in order of preference.
    pub endpoints: Vec<String>,
    /// Longest wait for the answer of one attempt (default 3 s). The broker holds a call during an election for almost as long.
    pub request_timeout: Duration,
    /// Longest wait for a connection (default 1 s): what a silent address costs a call before it moves on.
    pub connect_timeout: Duration,
    /// How often a send, an ack or a change of an invisible duration is handed to some node (default 3).
    /// Addresses that cannot be connected to do not count.
    pub attempts: u32,
    /// Longest time a call may take with all its attempts (default 10 s).
    pub total_timeout: Duration,
    /// Connections per address (default 1). More than one serves load tests that run into one connection's stream limit.
    pub connections: usize,
    /// Prefer other addresses for a while after a slow answer, by RocketMQ's table (default off, as there).
    pub avoid_slow: bool,
    /// Compare each delivered body with its digest (default on).
    pub verify_digests: bool,
    /// Seed of jitter, message ids and client ids; `None` (default) takes a random one. Two clients must not share a seed.
    pub seed: Option<u64>,
}

impl ClientConfig {
    /// The defaults with these addresses.
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            request_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            attempts: 3,
            total_timeout: Duration::from_secs(10),
            connections: 1,
            avoid_slow: false,
            verify_digests: true,
            seed: None,
        }
    }

    /// The defaults with the addresses of `a:1;b:2` (or `,`).
    ///
    /// # Errors
    /// [`CallError::Config`] names what is not an address.
    pub fn parse(endpoints: &str) -> Result<Self, CallError> {
        let endpoints = parse_addresses(endpoints).map_err(|message| CallError::Config { message })?;
        Ok(Self::new(endpoints))
    }

    pub(crate) fn check(&self) -> Result<(), CallError> {
        let wrong = if self.endpoints.is_empty() {
            "no endpoint given; name at least one broker or name server as host:port"
        } else if self.attempts == 0 {
            "attempts is 0; a call needs at least one"
        } else if self.connections == 0 {
            "connections is 0; an address needs at least one"
        } else if self.request_timeout.is_zero() || self.connect_timeout.is_zero() || self.total_timeout.is_zero() {
            "a timeout is 0; nothing could ever be answered"
        } else {
            return Ok(());
        };
        Err(CallError::Config { message: wrong.to_owned() })
    }
}

/// The doors of a client: network and time.
#[derive(Clone)]
pub struct Doors {
    /// Connections to brokers and name servers.
    pub net: Arc<dyn Net>,
    /// Stamps message ids and birth times.
    pub clock: Arc<dyn Clock>,
}

impl Doors {
    /// The machine's TCP and clocks.
    pub fn system() -> Self {
        Self { net: Arc::new(TcpNet), clock: Arc::new(SystemClock::new()) }
    }
}
