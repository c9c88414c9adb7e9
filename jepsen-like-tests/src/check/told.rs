//! An answer tells the truth: a message is delivered with the offset that its producer was told.

use super::{Findings, Table};

/// Acknowledged sends whose key was delivered, but at no place with the offset that the answer told.
pub fn mistold(table: &Table) -> Findings {
    let mut delivered: Vec<(u32, u64)> =
        table.deliveries.iter().map(|delivery| (delivery.key, delivery.place.offset)).collect();
    delivered.sort_unstable();
    let mut findings = Findings::default();
    for send in table.sends.iter().filter(|send| table.keys[send.key as usize].is_delivered()) {
        let Some(told) = send.told_offset else { continue };
        if delivered.binary_search(&(send.key, told)).is_err() {
            findings.add(|| format!("{} was told offset {told} and delivered at another", table.key(send.key)));
        }
    }
    findings
}
