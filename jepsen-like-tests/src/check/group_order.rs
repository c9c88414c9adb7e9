//! A consumer group that wants order gets the messages of a message group in their order: while one of them is not acknowledged, none
//! behind it is handed out, except together with it in one batch.
//!
//! ```text
//!   offsets of one message group    e1 e2 e3 e4 e5      a call brought e3 and e5: e1, e2 and e4 must be done by then
//! ```
//! A message can be done from the invocation of its first ack of any outcome on, but for one that was certainly without effect. The
//! history must be that of one consumer group. Two sorts and one range maximum per delivery: near-linear.

use super::{
    Findings, Table,
    table::{Delivery, Place},
};

/// Deliveries that overtook an earlier message of their message group. `group_of` says of a key which message group it is of; those
/// without are ordered by their queue. `exempt` names keys that may be overtaken, because retention dropped them.
pub fn group_order<'a>(
    table: &'a Table,
    group_of: impl Fn(&'a str) -> Option<&'a str>,
    exempt: impl Fn(&str) -> bool,
) -> Findings {
    let done = Done::of(table, exempt);
    // All places of a message group in order, each with the time from which it may count as done.
    let mut members: Vec<(Option<&str>, Place, u64)> = Vec::new();
    let mut places: Vec<(Place, u32)> = table.sightings.iter().map(sighted).collect();
    places.sort_unstable();
    places.dedup_by_key(|(place, _)| *place);
    members
        .extend(places.iter().map(|(place, key)| (group_of(table.key(*key)), *place, done.since(*place, *key, table))));
    members.sort_unstable_by_key(|(group, place, _)| (place.lane, *group, place.offset));
    let latest = RangeMax::of(members.iter().map(|(_, _, since)| *since));
    let row_of = |group: Option<&str>, place: Place| {
        members.binary_search_by_key(&(place.lane, group, place.offset), |(group, place, _)| {
            (place.lane, *group, place.offset)
        })
    };
    let mut deliveries: Vec<(Option<&str>, &Delivery)> =
        table.deliveries.iter().map(|delivery| (group_of(table.key(delivery.key)), delivery)).collect();
    deliveries
        .sort_unstable_by_key(|(group, delivery)| (delivery.call, delivery.place.lane, *group, delivery.place.offset));
    let mut findings = Findings::default();
    let same_batch = |a: &(Option<&str>, &Delivery), b: &(Option<&str>, &Delivery)| {
        (a.0, a.1.call, a.1.place.lane) == (b.0, b.1.call, b.1.place.lane)
    };
    for batch in deliveries.chunk_by(same_batch) {
        let (group, head) = batch[0];
        let first = members.partition_point(|(other, place, _)| (place.lane, *other) < (head.place.lane, group));
        let mut begin = first;
        for (_, delivery) in batch {
            let Ok(row) = row_of(group, delivery.place) else { continue };
            if let Some((overtaken, since)) = latest.max(begin..row)
                && since > delivery.return_us
            {
                findings.add(|| {
                    let (key, place) = (table.key(delivery.key), table.describe(delivery.place));
                    let behind = table.describe(members[overtaken].1);
                    let group = group.unwrap_or("of none");
                    format!("{key} at {place} (message group {group}) was handed out before {behind} was acknowledged")
                });
            }
            begin = row + 1;
        }
    }
    findings
}

fn sighted(sighting: &super::table::Sighting) -> (Place, u32) {
    (Place { lane: sighting.lane, offset: sighting.offset }, sighting.key)
}

/// From when on messages may count as done.
struct Done<F> {
    acks: Vec<(Place, u64)>,
    exempt: F,
}

impl<F: Fn(&str) -> bool> Done<F> {
    fn of(table: &Table, exempt: F) -> Self {
        let acks = table.acks.iter().map(|ack| (ack.place, ack.invoke_us));
        let mut acks: Vec<(Place, u64)> = acks.chain(table.unknown_acks.iter().copied()).collect();
        acks.sort_unstable();
        acks.dedup_by_key(|(place, _)| *place); // the earliest stays
        Self { acks, exempt }
    }

    fn since(&self, place: Place, key: u32, table: &Table) -> u64 {
        if (self.exempt)(table.key(key)) {
            return 0;
        }
        let found = self.acks.binary_search_by_key(&place, |(place, _)| *place);
        found.map_or(u64::MAX, |row| self.acks[row].1)
    }
}

/// The largest value of any range, in logarithmic time: a binary tree over the values, stored level by level.
struct RangeMax {
    levels: Vec<Vec<(u64, usize)>>,
}

impl RangeMax {
    fn of(values: impl Iterator<Item = u64>) -> Self {
        let mut levels = vec![values.enumerate().map(|(row, value)| (value, row)).collect::<Vec<_>>()];
        while let Some(last) = levels.last().filter(|last| last.len() > 1) {
            let above = last.chunks(2).map(|pair| pair.iter().copied().max().expect("a chunk is not empty")).collect();
            levels.push(above);
        }
        Self { levels }
    }

    /// The row of the largest value in `range`, and the value; `None` of an empty range.
    fn max(&self, range: std::ops::Range<usize>) -> Option<(usize, u64)> {
        let (mut begin, mut end) = (range.start, range.end);
        let mut best: Option<(u64, usize)> = None;
        for level in &self.levels {
            if begin >= end {
                break;
            }
            if begin % 2 == 1 {
                best = best.max(Some(level[begin]));
                begin += 1;
            }
            if end % 2 == 1 {
                best = best.max(Some(level[end - 1]));
                end -= 1;
            }
            (begin, end) = (begin / 2, end / 2);
        }
        best.map(|(value, row)| (row, value))
    }
}

#[cfg(test)]
mod tests {
    use super::RangeMax;

    #[test]
    fn the_largest_of_any_range_is_found() {
        let values: Vec<u64> = (0..37).map(|n| n * 7919 % 101).collect();
        let ranges = RangeMax::of(values.iter().copied());
        for begin in 0..values.len() {
            for end in begin..=values.len() {
                let expected = values[begin..end].iter().max().copied();
                assert_eq!(ranges.max(begin..end).map(|(_, value)| value), expected, "{begin}..{end}");
            }
        }
        assert_eq!(RangeMax::of(std::iter::empty()).max(0..0), None);
    }
}
