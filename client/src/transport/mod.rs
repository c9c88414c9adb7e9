//! Connections to addresses, the memory of which of them failed, and the attempts of a call.
//!
//! The layer knows gRPC and addresses, but no topic: `route` says which addresses serve a topic and hands them in.

mod attempts;
mod connection;
mod peer;

use std::{
    collections::HashMap,
    error::Error as _,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use quorate_proto::v2::messaging_service_client::MessagingServiceClient;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

pub(crate) use self::{
    attempts::{Attempt, Attempts, CallLimits},
    connection::Connection,
};
use self::{connection::TransportError, peer::Peer};
use crate::{
    config::{ClientConfig, Doors},
    error::CallError,
    picker::{Fault, Picker},
};

/// Largest answer: 32 bodies of 4 MiB and their headers.
const ANSWER_BYTES_MAX: usize = 130 << 20;

/// All connections of a client.
pub(crate) struct Transport {
    doors: Doors,
    connect_timeout: Duration,
    connections: usize,
    avoid_slow: bool,
    start: Instant,
    peers: RwLock<HashMap<Arc<str>, Arc<Peer>>>,
    picker: Mutex<Picker>,
    chance: Mutex<StdRng>,
}

impl Transport {
    pub(crate) fn new(config: &ClientConfig, doors: Doors, seed: u64) -> Self {
        Self {
            doors,
            connect_timeout: config.connect_timeout,
            connections: config.connections,
            avoid_slow: config.avoid_slow,
            start: Instant::now(),
            peers: RwLock::default(),
            picker: Mutex::default(),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }

    /// A number of 0 .. 1.
    pub(crate) fn chance(&self) -> f64 {
        self.chance.lock().expect("no holder of this lock panics").random()
    }

    /// A live connection to `address`.
    ///
    /// # Errors
    /// Why it cannot be reached within `left` or the configured time.
    pub(crate) async fn connect(&self, address: &Arc<str>, left: Duration) -> Result<Connection, String> {
        let peer = self.peer(address);
        let timeout = self.connect_timeout.min(left);
        // The wait for another caller's dial of the same address counts too.
        let connecting = peer.connection(&*self.doors.net, timeout, || self.chance());
        match tokio::time::timeout(left, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("{address}: no connection within {left:?}")),
        }
    }

    fn peer(&self, address: &Arc<str>) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().expect("no holder of this lock panics").get(address) {
            return peer.clone();
        }
        let mut peers = self.peers.write().expect("no holder of this lock panics");
        peers.entry(address.clone()).or_insert_with(|| Arc::new(Peer::new(address.clone(), self.connections))).clone()
    }

    /// The address to use next, or `None` if all were tried.
    pub(crate) fn choose(&self, addresses: &[Arc<str>], tried: &[Arc<str>]) -> Option<Arc<str>> {
        let picker = self.picker.lock().expect("no holder of this lock panics");
        picker.choose(addresses, tried, self.start.elapsed()).map(|place| addresses[place].clone())
    }

    /// Avoid the address for a while.
    pub(crate) fn blame(&self, address: &Arc<str>, fault: Fault) {
        let now = self.start.elapsed();
        self.picker.lock().expect("no holder of this lock panics").blame(address, fault, now);
    }

    /// The address is fine again.
    pub(crate) fn clear(&self, address: &str) {
        self.picker.lock().expect("no holder of this lock panics").clear(address);
    }

    fn answered(&self, address: &Arc<str>, latency: Duration) {
        if self.avoid_slow {
            self.blame(address, Fault::Slow(latency));
        }
    }
}

/// RocketMQ's service on a connection.
pub(crate) fn messaging(connection: &Connection) -> MessagingServiceClient<Connection> {
    MessagingServiceClient::with_origin(connection.clone(), connection.origin())
        .max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// gRPC's codes that are a certain no, and RocketMQ's for them. The last two are what servers say of a request larger than they decode.
const REFUSALS: [(tonic::Code, i32); 4] = [
    (tonic::Code::Unimplemented, 50100),
    (tonic::Code::InvalidArgument, 40000),
    (tonic::Code::OutOfRange, 41300),
    (tonic::Code::ResourceExhausted, 41300),
];

/// With this a server says that the same call may be taken later, so it was not done (gRPC's proposal A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Sorts a gRPC failure, and says whether the node was reached at all.
fn sort_status(address: &str, status: &tonic::Status) -> (CallError, bool) {
    let transport = status.source().and_then(|source| source.downcast_ref::<TransportError>());
    let message = format!("{address}: {}", status.message());
    if let Some(error) = transport {
        let error =
            if error.sent { CallError::Unknown { code: 0, message } } else { CallError::NotNow { code: 0, message } };
        return (error, false);
    }
    if status.code() == tonic::Code::ResourceExhausted && status.metadata().contains_key(PUSHBACK) {
        return (CallError::NotNow { code: 42900, message }, true);
    }
    let refusal = REFUSALS.iter().find(|(grpc, _)| *grpc == status.code());
    let error = match refusal {
        Some((_, code)) => CallError::Refused { code: *code, message },
        None => CallError::Unknown { code: 0, message },
    };
    (error, true)
}

#[cfg(test)]
mod tests {
    use tonic::{Status, metadata::MetadataValue};

    use super::*;

    /// A request that was not read was not executed, whatever it is called; what is unknown stays unknown.
    #[test]
    fn a_request_that_is_too_large_is_refused_and_one_that_comes_too_early_may_be_repeated() {
        let too_large = Status::resource_exhausted("the request is too large for this call");
        let refused = |status: &Status| match sort_status("a:1", status).0 {
            CallError::Refused { code, message } => Some((code, message.contains(status.message()))),
            CallError::NotNow { .. } | CallError::Unknown { .. } | CallError::Config { .. } => None,
        };
        assert_eq!(refused(&too_large), Some((41300, true)));
        assert_eq!(refused(&Status::out_of_range("too large")), Some((41300, true)));
        let mut busy = Status::resource_exhausted("busy");
        busy.metadata_mut().insert(PUSHBACK, MetadataValue::from_static("100"));
        assert!(matches!(sort_status("a:1", &busy), (CallError::NotNow { code: 42900, .. }, true)));
        for status in [Status::unavailable("x"), Status::internal("x"), Status::deadline_exceeded("x")] {
            assert!(matches!(sort_status("a:1", &status).0, CallError::Unknown { .. }), "{status}");
        }
    }
}
