//! How long nobody got an acknowledgement: the figure that says what a failover cost.
//!
//! The first invocation and the last return of any send are edges of the measure, so a group that never comes back
//! does not look good by leaving no second acknowledgement to measure to.

use super::{Table, table::SendOutcome};

/// A time without an acknowledged send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub start_us: u64,
    pub end_us: u64,
}

impl Gap {
    /// Its length.
    pub fn length_us(self) -> u64 {
        self.end_us - self.start_us
    }
}

/// The moments at which sends were acknowledged, in order, between the edges.
#[derive(Debug)]
pub struct Gaps {
    moments: Vec<u64>,
}

impl Gaps {
    /// The acknowledgements of `table`.
    pub fn of(table: &Table) -> Self {
        let acked = table.sends.iter().filter(|send| send.outcome == SendOutcome::Acked);
        let mut moments: Vec<u64> = acked.map(|send| send.span.return_us).collect();
        moments.extend(table.sends.iter().map(|send| send.span.invoke_us).min());
        moments.extend(table.sends.iter().map(|send| send.span.return_us).max());
        moments.sort_unstable();
        Self { moments }
    }

    /// The longest gap of the run; `None` without sends.
    pub fn longest(&self) -> Option<Gap> {
        self.all().max_by_key(|gap| gap.length_us())
    }

    /// The longest gap that begins before `to_us` and ends after `from_us`.
    pub fn longest_within(&self, from_us: u64, to_us: u64) -> Option<Gap> {
        self.all().filter(|gap| gap.start_us < to_us && gap.end_us > from_us).max_by_key(|gap| gap.length_us())
    }

    fn all(&self) -> impl Iterator<Item = Gap> {
        self.moments.windows(2).map(|pair| Gap { start_us: pair[0], end_us: pair[1] })
    }
}
