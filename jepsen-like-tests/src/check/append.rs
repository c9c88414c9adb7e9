//! Appends are linearizable: whichever producers sent them, a send that was invoked after another had been
//! acknowledged stands behind it in their queue. The offset is the witness, so no search is needed.

use super::{Findings, Table, order::sends_backwards};

/// Sends that stand before a send of any process that had been acknowledged before they were invoked. Holds every
/// finding of [`super::producer_order`] too.
pub fn nonlinear_appends(table: &Table) -> Findings {
    sends_backwards(table, |_, lane| u64::from(lane))
}
