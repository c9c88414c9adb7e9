//! A transaction is all or nothing: a half message is in nobody's hands before somebody asked to commit it, one whose commit was answered OK
//! is delivered, and one whose rollback was answered OK never is.
//!
//! That a committed message stands at one place is for [`super::duplicates`] to say, as of every message. Of unknown outcome, a commit or
//! a rollback may have happened; a half message that nobody ended stays away.

use super::{
    Findings, Table,
    table::{Answer, SendOutcome},
};

/// Deliveries of half messages before their commit, committed messages that never came, rolled back ones that did, and transactions that
/// were told to have ended both ways.
pub fn atomic(table: &Table) -> Findings {
    let mut findings = Findings::default();
    for delivery in &table.deliveries {
        let Some(half) = table.keys[delivery.key as usize].half else { continue };
        if half.commit_from_us.is_none_or(|from_us| delivery.return_us < from_us) {
            findings.add(|| {
                let (key, place) = (table.key(delivery.key), table.describe(delivery.place));
                format!(
                    "{key} at {place} was delivered at {} us, half, before anybody asked to commit it",
                    delivery.return_us
                )
            });
        }
    }
    for (key, facts) in (0..).zip(&table.keys) {
        let Some(half) = facts.half else { continue };
        let (committed, rolled_back) = (half.committed == Some(Answer::Done), half.rolled_back == Some(Answer::Done));
        let sent = facts.send().is_some_and(|send| table.sends[send].outcome == SendOutcome::Acked);
        if committed && rolled_back {
            findings.add(|| format!("{} was committed and rolled back, both answered OK", table.key(key)));
        } else if rolled_back && facts.is_delivered() {
            findings.add(|| format!("{} was delivered although its rollback was answered OK", table.key(key)));
        } else if committed && sent && !facts.is_delivered() {
            findings.add(|| format!("{} was committed and never delivered", table.key(key)));
        }
    }
    findings
}
