//! What a demo ends with: the verdict over its history, and what its failovers cost.

use serde::Serialize;

use crate::check::{Judgement, Verdict};

/// The end of a demo. Serialized it is one flat object with the verdict's keys first.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub verdict: Verdict,
    pub elections: Vec<Failover>,
    /// Path of the saved history.
    pub history: String,
}

/// One leader killed and replaced.
#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    pub killed: u32,
    pub leader: u32,
    pub term: u64,
    /// On the run's clock.
    pub killed_us: u64,
    /// From the kill until a node said that it leads; asked every 20 ms.
    pub elected_ms: f64,
    /// The longest time without an acknowledged send between the kill and the election.
    pub unavailable_ms: f64,
    /// From the restart until the node had applied what was committed when it came back.
    pub rejoined_ms: f64,
    /// Log entries that it had missed.
    pub caught_up_entries: u64,
}

impl Report {
    /// PASS?
    pub fn is_pass(&self) -> bool {
        self.verdict.verdict == Judgement::Pass
    }

    /// The report for people.
    pub fn lines(&self) -> Vec<String> {
        let verdict = &self.verdict;
        let mut lines = Vec::new();
        for failover in &self.elections {
            lines.push(format!(
                "  election  broker {} → {} (term {})  elected in {:.0} ms  unavailable {:.0} ms  back after {:.0} ms",
                failover.killed,
                failover.leader,
                failover.term,
                failover.elected_ms,
                failover.unavailable_ms,
                failover.rejoined_ms
            ));
        }
        lines.push(format!(
            "  longest gap between acknowledged sends {:.0} ms    client errors: {} failed, {} unknown ({} of them stored)",
            verdict.longest_gap_ms, verdict.failed, verdict.unknown, verdict.recovered
        ));
        lines.push(format!("  history  {}", self.history));
        lines.push(format!(
            "  RESULT  acked {}  consumed {}  lost {}  duplicates {}  redelivered {} (allowed: at-least-once)  \
             order violations {}      {}",
            with_commas(verdict.acked),
            with_commas(verdict.consumed),
            with_commas(verdict.lost),
            with_commas(verdict.duplicates),
            with_commas(verdict.redelivered),
            with_commas(verdict.order_violations),
            match verdict.verdict {
                Judgement::Pass => "PASS",
                Judgement::Fail => "FAIL",
            }
        ));
        lines.extend(verdict.examples.iter().map(|example| format!("    {example}")));
        lines
    }
}

/// 1234567 as 1,234,567.
pub(super) fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as seconds with two digits behind the point.
pub(super) fn in_seconds(us: u64) -> String {
    format!("{:.2} s", us as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_a_comma_every_three_digits() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(with_commas(number), text);
        }
    }
}
