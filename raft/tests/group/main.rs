//! Whole groups: in one process under virtual time, and over TCP with real files.

#![allow(clippy::unwrap_used, reason = "a test says by a panic what went wrong")]

mod async_flush;
mod cluster;
mod damage;
mod fast_path;
mod leader_restore;
mod membership;
mod support;
mod tcp;
