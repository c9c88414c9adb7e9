//! Faults on real processes: broker children that are started, killed, paused and never left behind.

mod parent;
mod ports;
mod processes;

pub use parent::{HARNESS_VARIABLE, die_with_harness};
pub use ports::{check_free, free_ports};
pub use processes::{Exit, Launch, NodeLaunch, ProcessError, Processes};
