//! Nothing is made up: what is delivered was sent, and what was refused stays away.

use super::{Findings, Table, table::SendOutcome};

/// Keys that were delivered although no send of the run attempted them.
pub fn invented(table: &Table) -> Findings {
    let mut findings = Findings::default();
    for (key, facts) in (0..).zip(&table.keys) {
        if facts.is_delivered() && facts.send().is_none() {
            findings.add(|| format!("{} was delivered and never sent", table.key(key)));
        }
    }
    findings
}

/// Keys that were delivered although their send had definitely failed (Jepsen's G1a, the aborted read).
pub fn aborted_reads(table: &Table) -> Findings {
    let mut findings = Findings::default();
    for send in table.sends.iter().filter(|send| send.outcome == SendOutcome::Failed) {
        if table.keys[send.key as usize].is_delivered() {
            let key = table.key(send.key);
            findings.add(|| format!("{key} was refused at {} us and delivered all the same", send.span.return_us));
        }
    }
    findings
}

/// Keys that two sends of the run share: a fault of the workload, which would blind the other checkers.
pub fn attempted_twice(table: &Table) -> Findings {
    let mut findings = Findings::default();
    for key in &table.attempted_twice {
        findings.add(|| format!("{} was sent twice by the workload", table.key(*key)));
    }
    findings
}
