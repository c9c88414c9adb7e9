//! The broker: what the messages in the log mean, and who may put them there.
//!
//! ```text
//!   clients ─▶ service ─▶ (forward) ─▶ leader ─▶ raft ─▶ replica ─▶ machine
//!                 └── reads ────────────────────────────▶ shared ──┘
//! ```
//! [`run`] is one node: it opens everything through [`Doors`], owns every task and ends when told to or when something is broken.
//! `machine` holds the rules and nothing else; `leader` exists to propose; `service` speaks RocketMQ's protocol. Upper modules use
//! lower ones, never the other way round.

#![forbid(unsafe_code)]

pub mod config;
mod health;
mod http;
mod leader;
pub mod machine;
pub mod metrics;
mod registrar;
pub mod replica;
mod run;
pub mod scan;
pub mod schedule;
mod service;
mod session;
pub mod store;
pub mod waiters;

pub use config::{BrokerConfig, ConfigError, OnFull};
pub use http::{Page, Site, metrics_page, scrape::Beside, serve as serve_pages};
pub use leader::clock::{LogClock, Reading};
pub use run::{Bound, BoundListener, Doors, RunError, run, run_beside};
