//! One send is stored once: no key stands at two places, however often its producer had to try.
//!
//! A redelivery of the same place is none of this; see [`super::double_deliveries`].

use super::{Findings, Table, table::Place};

/// Places beyond the first at which a key was seen, by answers to its send and by deliveries.
pub fn duplicates(table: &Table) -> Findings {
    let mut findings = Findings::default();
    let mut seen = table.sightings.clone();
    seen.sort_unstable_by_key(|sighting| (sighting.key, sighting.lane, sighting.offset));
    for pair in seen.windows(2).filter(|pair| pair[0].key == pair[1].key) {
        findings.add(|| {
            let [first, second] = [pair[0], pair[1]]
                .map(|sighting| table.describe(Place { lane: sighting.lane, offset: sighting.offset }));
            format!("{} stands at {first} and at {second}", table.key(pair[0].key))
        });
    }
    findings
}
