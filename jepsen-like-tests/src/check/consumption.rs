//! New messages of a queue are handed out in their order: a message whose first delivery was asked for after the first
//! delivery of a later one had arrived was held back or forgotten for a while.
//!
//! Only first deliveries (attempt 1) count; a redelivery comes when its time has run out.

use super::{
    Findings, Table,
    sweep::{Event, backwards},
};

/// First deliveries that came after the first delivery of a message further back in the same queue.
pub fn consumed_backwards(table: &Table) -> Findings {
    let mut events: Vec<Event> = (0..)
        .zip(&table.deliveries)
        .filter(|(_, delivery)| delivery.attempt == 1)
        .map(|(row, delivery)| Event {
            lane: u64::from(delivery.place.lane),
            begin_us: delivery.since_us,
            end_us: delivery.return_us,
            offset: delivery.place.offset,
            row,
        })
        .collect();
    let mut findings = Findings::default();
    for (earlier, later) in backwards(&mut events) {
        let [earlier, later] = [earlier, later].map(|row| &table.deliveries[row as usize]);
        findings.add(|| {
            let key = table.key(later.key);
            let (place, behind) = (table.describe(later.place), table.describe(earlier.place));
            format!("{key} at {place} was first handed out after {behind} had been, asked for at {} us", later.since_us)
        });
    }
    findings
}
