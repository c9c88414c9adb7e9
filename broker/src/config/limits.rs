//! Every bound of the broker's service side, in one place.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;

/// What one client, one call or one node may take. Names and property counts are RocketMQ's own and not configurable
/// (`service/validate.rs`); these are the ones a site may want to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest message body. Default `4MiB`, RocketMQ's limit; clients check it before they send. Larger bodies need larger
    /// entries, windows and caches everywhere; must stay below a quarter of a segment.
    #[serde(with = "units::bytes")]
    pub message_bytes_max: u64,
    /// Largest gRPC request. Default `16MiB`. Below `message_bytes_max` plus headers, legal messages fail with a gRPC error
    /// instead of code 41301.
    #[serde(with = "units::bytes")]
    pub request_bytes_max: u64,
    /// Largest gRPC header block. Default `16KiB`. Smaller may refuse clients with long tokens.
    #[serde(with = "units::bytes")]
    pub header_bytes_max: u64,
    /// Messages in one SendMessage call. Default 1024.
    pub messages_per_call_max: u16,
    /// Messages in one ReceiveMessage call; more are asked for, fewer are given. Default 1024.
    pub receive_batch_max: u16,
    /// Bytes of message bodies in one ReceiveMessage answer, at least one message. Default `8MiB`; also what a forwarded answer
    /// may take on the connection between nodes.
    #[serde(with = "units::bytes")]
    pub receive_bytes_max: u64,
    /// Shortest invisible duration of a receive. Default `10s`, RocketMQ's. Shorter invites redelivery before the consumer is done.
    #[serde(with = "units::duration")]
    pub invisible_min: Duration,
    /// Longest invisible duration. Default `12h`, RocketMQ's.
    #[serde(with = "units::duration")]
    pub invisible_max: Duration,
    /// How far ahead a delivery timestamp may lie. Default `40d`. A waiting message costs about 100 bytes of memory on every node
    /// and its body in the log; further ahead means more of both at once.
    #[serde(with = "units::duration")]
    pub delay_max: Duration,
    /// Longest wait of a receive that finds nothing. Default `30s`. Shorter costs more calls, longer more parked ones.
    #[serde(with = "units::duration")]
    pub long_poll_max: Duration,
    /// Longest time a call is held while nobody leads. Default `10s`; the client's deadline minus 300 ms comes first.
    #[serde(with = "units::duration")]
    pub hold_max: Duration,
    /// Bytes of calls that this node holds or has under way to the leader. Default `64MiB`. Less refuses calls during an election;
    /// more is memory a burst can take.
    #[serde(with = "units::bytes")]
    pub held_bytes_max: u64,
    /// Bytes of commands on the leader that wait for a place in the log. Default `32MiB`; beyond it sends answer 42900.
    #[serde(with = "units::bytes")]
    pub propose_bytes_max: u64,
    /// Bytes of commands that share one log entry (one larger command travels alone). Default `1MiB`.
    #[serde(with = "units::bytes")]
    pub batch_bytes_max: u64,
    /// Commands that share one log entry. Default 4096.
    pub batch_commands_max: usize,
    /// Entries under way to the quorum at once. Default 2. One leaves the disks idle while replies travel; many make small batches, and
    /// each entry costs every node.
    pub batches_in_flight_max: usize,
    /// Bytes of requests being served by this node. Default `256MiB`; beyond it a call is answered RESOURCE_EXHAUSTED unread.
    #[serde(with = "units::bytes")]
    pub inbound_bytes_max: u64,
    /// Client connections of a node. Default 4096. A connection beyond it is closed at once.
    pub connections_max: usize,
    /// Calls at once on one connection, parked receives and Telemetry streams included. Default 2048.
    pub streams_per_connection_max: u32,
    /// Receives parked on a node. Default 32768; beyond it 42900, as RocketMQ answers when its polling slots are full.
    pub parked_receives_max: usize,
    /// Clients remembered by a node. Default 16384; the one silent for longest is forgotten first, which costs it nothing but
    /// server-side renewal.
    pub clients_max: usize,
    /// A client not heard of for this long is forgotten. Default `2m`, RocketMQ's.
    #[serde(with = "units::duration")]
    pub client_idle_max: Duration,
    /// Deliveries to push consumers that a node renews. Default 65536. Those beyond it are not renewed: they come back after 60 s.
    pub renewals_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 4 << 20,
            request_bytes_max: 16 << 20,
            header_bytes_max: 16 << 10,
            messages_per_call_max: 1024,
            receive_batch_max: 1024,
            receive_bytes_max: 8 << 20,
            invisible_min: Duration::from_secs(10),
            invisible_max: Duration::from_secs(12 * 60 * 60),
            delay_max: Duration::from_secs(40 * 24 * 60 * 60),
            long_poll_max: Duration::from_secs(30),
            hold_max: Duration::from_secs(10),
            held_bytes_max: 64 << 20,
            propose_bytes_max: 32 << 20,
            batch_bytes_max: 1 << 20,
            batch_commands_max: 4096,
            batches_in_flight_max: 2,
            inbound_bytes_max: 256 << 20,
            connections_max: 4096,
            streams_per_connection_max: 2048,
            parked_receives_max: 32_768,
            clients_max: 16_384,
            client_idle_max: Duration::from_secs(120),
            renewals_max: 65_536,
        }
    }
}
