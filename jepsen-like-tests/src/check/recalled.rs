//! A recall that was answered OK holds: the message is never delivered.
//!
//! Of unknown outcome, the message may come or stay away.

use super::{Findings, Table, table::Answer};

/// Keys that were delivered although their recall was answered OK.
pub fn recalled(table: &Table) -> Findings {
    let mut findings = Findings::default();
    for (key, facts) in (0..).zip(&table.keys) {
        if facts.taken_back == Some(Answer::Done) && facts.is_delivered() {
            findings.add(|| format!("{} was delivered although its recall was answered OK", table.key(key)));
        }
    }
    findings
}
