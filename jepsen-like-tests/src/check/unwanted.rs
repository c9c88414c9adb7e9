//! A filter lets nothing through that it does not want.

use super::{Findings, Table};

/// Deliveries of keys that the consumers' filter does not want.
pub fn unwanted(table: &Table, wanted: impl Fn(&str) -> bool) -> Findings {
    let mut findings = Findings::default();
    for delivery in table.deliveries.iter().filter(|delivery| !wanted(table.key(delivery.key))) {
        findings.add(|| {
            let (key, place) = (table.key(delivery.key), table.describe(delivery.place));
            format!("{key} at {place} was handed out past a filter that does not want it")
        });
    }
    findings
}
