//! The replicated commit log, DLedger's seat: three nodes, one Raft log, every body written once per node.
//!
//! This crate sees bytes and never a message. What the bytes mean is the business of the [`StateMachine`]
//! handed to [`Group::start`]. It is the only crate that names openraft; no openraft type appears in its public
//! API, on the wire or on disk.
//!
//! ```text
//! group › store, machine, peer › binding › log, snapshot › hard_state › disk › types, config, network, runtime, fatal
//! ```

#![forbid(unsafe_code)]

mod binding;
pub mod config;
pub mod disk;
mod fatal;
pub mod group;
pub mod hard_state;
pub mod inspect;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod network;
mod peer;
mod runtime;
pub mod snapshot;
mod store;
pub mod types;

pub use config::{ConfigError, FastPath, FlushMode, GroupConfig, Member, WriterMode};
pub use disk::{Disk, DiskFile, RealDisk, SimDisk};
pub use group::{
    CallError, CallHandler, Cause, ChangeError, ChangeStep, Doors, Group, GroupHealth, GroupStatus, LeaderChange,
    LeaderView, MachineStart, MemberChange, MemberStatus, ProposeError, Role, StartError, TransferError, VoterHealth,
};
pub use log::LogView;
pub use machine::{CommittedEntry, ImagePoint, MachineError, StateMachine};
pub use network::{Accepted, Duplex, Listener, MemoryNetwork, Network, TcpNetwork};
pub use types::{LogId, LogIndex, NodeId, Position, Term};
