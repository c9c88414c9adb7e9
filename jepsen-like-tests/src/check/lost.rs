//! Nothing acknowledged is lost: after the final drain every acknowledged message has been delivered at least once.
//!
//! A message that its producer took back, or may have, need not come; whether a transactional one must is for [`super::atomic`] to say.
//!
//! Only meaningful for a history that ends with a drain; one that was cut off shows as lost what it did not live to read.

use super::{Findings, Table, table::SendOutcome};

/// Acknowledged sends whose key no receive ever brought.
pub fn lost(table: &Table) -> Findings {
    let mut findings = Findings::default();
    for send in table.sends.iter().filter(|send| send.outcome == SendOutcome::Acked) {
        let facts = &table.keys[send.key as usize];
        if !facts.is_delivered() && facts.taken_back.is_none() && facts.half.is_none() {
            findings.add(|| {
                let place = send.place.map_or_else(|| "an untold place".to_owned(), |place| table.describe(place));
                let (key, at) = (table.key(send.key), send.span.return_us);
                format!("{key} was acknowledged at {at} us as {place} and never delivered")
            });
        }
    }
    findings
}
