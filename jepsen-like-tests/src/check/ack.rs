//! An ack is final: once it was answered OK, no later call brings that message again.

use super::{Findings, Table, table::Place};

/// Deliveries that were asked for after an ack of the same place had been answered OK.
pub fn acked_returned(table: &Table) -> Findings {
    let mut acks: Vec<(Place, u64)> = table.acks.iter().map(|ack| (ack.place, ack.return_us)).collect();
    acks.sort_unstable();
    acks.dedup_by_key(|(place, _)| *place); // the earliest stays
    let mut findings = Findings::default();
    for delivery in &table.deliveries {
        let Ok(at) = acks.binary_search_by_key(&delivery.place, |(place, _)| *place) else { continue };
        let (place, acked_us) = acks[at];
        if acked_us < delivery.since_us {
            findings.add(|| {
                let (key, place, since) = (table.key(delivery.key), table.describe(place), delivery.since_us);
                format!("{key} at {place} was acknowledged at {acked_us} us and came back, asked for at {since} us")
            });
        }
    }
    findings
}
