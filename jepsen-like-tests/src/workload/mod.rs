//! What clients do while the group suffers. A workload sends and receives through a [`crate::world::World`], records
//! every op and keeps a running tally for the screen; it never judges.

mod body;
mod queue;
mod tally;

pub use body::{body_of, key_of};
pub use queue::{Drain, Drained, Observer, QueueLoad, QueueRun};
pub use tally::Progress;

#[cfg(test)]
mod queue_test;
