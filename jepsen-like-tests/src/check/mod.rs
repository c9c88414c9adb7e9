//! The judges: one promise per file, each a pure function from the [`Table`] of a history to its [`Findings`].
//!
//! They must never ask a broker anything, never look at a clock and never depend on the order in which ops were
//! recorded. All of them sort columns and sweep over them, so a history of a million ops takes seconds and some hundred
//! MiB, not a search. `dev`, the chaos runs and the simulator share them; `check_history.py` repeats the headline
//! figures without sharing a line with them.
//!
//! An op whose outcome is unknown counts as either: its message may be seen or not, and neither is a finding.

mod ack;
mod append;
mod atomic;
mod consumption;
mod double;
mod duplicates;
mod early;
mod gap;
mod group_order;
mod lost;
mod offsets;
mod order;
mod phantom;
mod recalled;
mod sweep;
mod table;
mod told;
mod unwanted;
mod verdict;

pub use ack::acked_returned;
pub use append::nonlinear_appends;
pub use atomic::atomic;
pub use consumption::consumed_backwards;
pub use double::{double_deliveries, redelivered};
pub use duplicates::duplicates;
pub use early::early;
pub use gap::{Gap, Gaps};
pub use group_order::group_order;
pub use lost::lost;
pub use offsets::inconsistent_offsets;
pub use order::producer_order;
pub use phantom::{aborted_reads, attempted_twice, invented};
pub use recalled::recalled;
pub use table::{Delivery, Table, TableBuilder};
pub use told::mistold;
pub use unwanted::unwanted;
pub use verdict::{Judgement, Verdict};

/// How many findings of one kind are described; the count goes on.
const EXAMPLES_MAX: usize = 5;

/// What a checker found: how many breaches of its promise, and the first few in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub count: u64,
    pub examples: Vec<String>,
}

impl Findings {
    pub(crate) fn add(&mut self, describe: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(describe());
        }
    }
}

#[cfg(test)]
mod check_test;
