//! The words on the wire: generated types of `apache.rocketmq.v2` and of our own services, and the
//! names, ids, times and doors that every crate shares. Holds no rule of the broker.

#![forbid(unsafe_code)]

pub mod authority;
pub mod doors;
mod hpack;
mod huffman;
pub mod message_id;
pub mod names;
pub mod time;
pub mod unread;

/// RocketMQ 5's public protocol, compiled from our own `.proto` files.
#[allow(clippy::all, missing_docs, reason = "generated")]
pub mod v2 {
    tonic::include_proto!("apache.rocketmq.v2");
}

/// gRPC's health checking protocol.
#[allow(clippy::all, missing_docs, reason = "generated")]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// The operators' service of a broker node.
#[allow(clippy::all, missing_docs, reason = "generated")]
pub mod admin {
    tonic::include_proto!("quorate.admin");
}

/// Registration of brokers with name servers.
#[allow(clippy::all, missing_docs, reason = "generated")]
pub mod namesrv {
    tonic::include_proto!("quorate.namesrv");
}
