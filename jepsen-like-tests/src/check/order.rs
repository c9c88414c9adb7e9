//! A producer's later send is later in the queue: what it invoked after an earlier send had been acknowledged stands
//! behind that one, across failover and retry.

use super::{
    Findings, Table,
    sweep::{Event, backwards},
    table::SendOutcome,
};

/// Sends that stand before an earlier acknowledged send of the same process in the same queue.
pub fn producer_order(table: &Table) -> Findings {
    sends_backwards(table, |process, lane| (u64::from(process) << 32) | u64::from(lane))
}

/// The sends that went backwards among those that `lane` puts together. A send of unknown outcome that was seen counts
/// as a later one only: it began at its invocation, but nobody knows when it ended.
pub(super) fn sends_backwards(table: &Table, lane: impl Fn(u32, u32) -> u64) -> Findings {
    let mut events: Vec<Event> = (0..)
        .zip(&table.sends)
        .filter_map(|(row, send)| {
            let end_us = match send.outcome {
                SendOutcome::Acked => send.span.return_us,
                SendOutcome::Unknown => u64::MAX,
                SendOutcome::Failed => return None,
            };
            let place = send.place?;
            let lane = lane(send.span.process, place.lane);
            Some(Event { lane, begin_us: send.span.invoke_us, end_us, offset: place.offset, row })
        })
        .collect();
    let mut findings = Findings::default();
    for (earlier, later) in backwards(&mut events) {
        let [earlier, later] = [earlier, later].map(|row| &table.sends[row as usize]);
        findings.add(|| {
            let place =
                |send: &super::table::SendRow| send.place.map(|place| table.describe(place)).unwrap_or_default();
            format!(
                "{} (process {}, acknowledged at {} us, {}) stands behind {} (process {}, invoked at {} us, {})",
                table.key(earlier.key),
                earlier.span.process,
                earlier.span.return_us,
                place(earlier),
                table.key(later.key),
                later.span.process,
                later.span.invoke_us,
                place(later),
            )
        });
    }
    findings
}
