//! How a child learns to die with its harness, even when the harness is killed with SIGKILL.
//!
//! The child asks the kernel for it (`PR_SET_PDEATHSIG`) as the first thing in its `main`. Asking between fork and exec
//! would need `unsafe`; asking in the child needs one more check, because the harness may have died before the child
//! got that far: a parent of another number means so.
//!
//! The kernel sends the signal when the *thread* that forked ends, not the process; so [`super::Processes`] forks from
//! one thread that lives as long as the children may.

use std::{env, io};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Tells a child the process id of its harness. Deliberately without the prefix of the product's own variables.
pub const HARNESS_VARIABLE: &str = "HARNESS_PID";

/// If this process is a harness's child, ties its life to the harness's: SIGKILL when that one ends. Does nothing
/// otherwise. To be called first in `main`. An error means that the harness is gone already, or that the kernel refused:
/// end the process.
pub fn die_with_harness() -> io::Result<()> {
    let Ok(harness) = env::var(HARNESS_VARIABLE) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = getppid().map(|parent| parent.as_raw_nonzero().to_string());
    if parent.as_deref() == Some(&*harness) {
        Ok(())
    } else {
        Err(io::Error::other(format!("the harness that started this process (pid {harness}) is gone")))
    }
}
