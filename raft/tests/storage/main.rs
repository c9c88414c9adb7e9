//! The storage half of the crate, from outside: disks, log, hard state, images.

#![allow(clippy::unwrap_used, reason = "in a test an unexpected error is a failure")]

mod contract;
mod disks;
mod images;
mod node;
mod power;
mod recovery;
mod samples;
mod verify;
