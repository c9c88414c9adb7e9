//! The name server: tells clients which broker groups hold a topic, and where their nodes answer.
//!
//! Name servers are equal and do not know each other. Every broker node registers with each of them once a second and at
//! each change; what was not repeated for ten seconds is forgotten. All of it lives in memory: a name server that restarts is
//! whole again one heartbeat later. It holds no data whose loss would lose a message, which is why it needs no Raft of its own:
//! a route may be out of date, and then the node it names forwards the call.
//!
//! ```text
//! broker nodes ──Register──▶ service ──Claim──▶ table ──Route──▶ service ──QueryRoute──▶ clients
//! ```
//! `table` is pure and holds the rules; `service` only translates. [`run`] serves both until told to stop; the
//! `quorate` binary runs it alone or beside a broker.

#![forbid(unsafe_code)]

pub mod metrics;
mod run;
mod service;
mod table;

pub use metrics::{Metrics, Standing};
pub use run::{Bound, Doors, NamedListener, NamesrvConfig, RunError, run, run_counted};
pub use table::{Claim, GroupRoute, LEASE, NotClaimed, Table, Topic};
