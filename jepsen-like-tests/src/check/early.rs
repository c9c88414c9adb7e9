//! Nothing is early: a delayed message is in nobody's hands before the moment that its producer asked for.

use super::{Findings, Table};

/// Deliveries that had returned before the message may be seen.
pub fn early(table: &Table) -> Findings {
    let mut findings = Findings::default();
    for delivery in &table.deliveries {
        let moment = table.keys[delivery.key as usize].not_before_us;
        if delivery.return_us < moment {
            findings.add(|| {
                let (key, place) = (table.key(delivery.key), table.describe(delivery.place));
                let by_us = moment - delivery.return_us;
                format!("{key} at {place} was delivered {by_us} us before its time, {moment} us")
            });
        }
    }
    findings
}
