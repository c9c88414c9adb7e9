//! No two consumers hold one delivery: whoever gets a message again gets it with a higher attempt.

use super::{Findings, Table};

/// Deliveries that repeat the place and the attempt of another one.
pub fn double_deliveries(table: &Table) -> Findings {
    let mut rows: Vec<u32> = (0..).take(table.deliveries.len()).collect();
    let of = |row: &u32| {
        let delivery = &table.deliveries[*row as usize];
        (delivery.place, delivery.attempt)
    };
    rows.sort_unstable_by_key(of);
    let mut findings = Findings::default();
    for pair in rows.windows(2).filter(|pair| of(&pair[0]) == of(&pair[1])) {
        let (place, attempt) = of(&pair[0]);
        findings.add(|| format!("{} was handed out twice as attempt {attempt}", table.describe(place)));
    }
    findings
}

/// How many deliveries were repeats with a higher attempt, which at-least-once allows.
pub fn redelivered(table: &Table) -> u64 {
    table.deliveries.iter().filter(|delivery| delivery.attempt > 1).count() as u64
}
