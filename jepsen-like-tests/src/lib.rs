//! Proof that the promises hold, for whoever wants to run it: workloads that record what clients see, checkers that
//! judge the record, and processes that are killed on the way.
//!
//! ```text
//!   world (a client) ◀── workload ──ops──▶ history ──▶ check ──▶ verdict
//!        │                                                        ▲
//!   broker processes ◀── chaos (kill, pause, restart) ── dev ─────┘
//! ```
//! A library: `quorate dev` shows it to people, the tests and the simulator run it in earnest. What it must never do is
//! to learn from a broker whether the broker was right: verdicts come from what clients saw and from nothing else.

#![forbid(unsafe_code)]

pub mod chaos;
pub mod check;
pub mod dev;
pub mod failover;
pub mod history;
pub mod op;
pub mod quorate_world;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stopwatch;
pub mod workload;
pub mod world;
