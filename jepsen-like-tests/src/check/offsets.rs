//! One offset of a queue holds one message for ever, whoever asks and whichever node answers.

use super::{Findings, Table, table::Place};

/// Keys beyond the first that were seen at one place.
pub fn inconsistent_offsets(table: &Table) -> Findings {
    let mut findings = Findings::default();
    let mut seen = table.sightings.clone();
    seen.sort_unstable_by_key(|sighting| (sighting.lane, sighting.offset, sighting.key));
    for pair in seen.windows(2).filter(|pair| (pair[0].lane, pair[0].offset) == (pair[1].lane, pair[1].offset)) {
        findings.add(|| {
            let place = table.describe(Place { lane: pair[0].lane, offset: pair[0].offset });
            format!("{place} held {} and {}", table.key(pair[0].key), table.key(pair[1].key))
        });
    }
    findings
}
