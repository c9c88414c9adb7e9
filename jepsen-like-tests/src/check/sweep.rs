//! The sweep behind every order check: an event that began after another had ended must not stand before it.
//!
//! Within a lane each event has an interval of time and a witness (its offset). If A ended before B began, then A's offset
//! is below B's. Two sorts and one pass find each B that breaks this: walk the B by beginning, take in the A that have
//! ended by then, keep the highest offset among them. O(n log n); no search, because the offset says what the order was.

/// An event of a lane. `end_us` is `u64::MAX` for one that may take effect at any time after its beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub lane: u64,
    pub begin_us: u64,
    pub end_us: u64,
    pub offset: u64,
    /// What the caller finds the event by.
    pub row: u32,
}

/// Pairs (A, B) of rows: A had ended before B began and yet stands behind it. Each B appears once, with the A that
/// stands furthest behind.
pub(super) fn backwards(events: &mut [Event]) -> Vec<(u32, u32)> {
    events.sort_unstable_by_key(|event| (event.lane, event.end_us));
    let mut by_begin: Vec<u32> = (0..u32::try_from(events.len()).expect("a history has fewer than 2^32 ops")).collect();
    by_begin.sort_unstable_by_key(|at| {
        let event = &events[*at as usize];
        (event.lane, event.begin_us)
    });
    let mut found = Vec::new();
    let mut ended = events.iter().peekable();
    let mut highest: Option<&Event> = None;
    for at in by_begin {
        let event = &events[at as usize];
        while let Some(earlier) = ended.next_if(|e| (e.lane, e.end_us) < (event.lane, event.begin_us)) {
            let beats = highest.is_none_or(|best| best.lane != earlier.lane || best.offset < earlier.offset);
            if beats {
                highest = Some(earlier);
            }
        }
        if let Some(best) = highest.filter(|best| best.lane == event.lane && best.offset > event.offset) {
            found.push((best.row, event.row));
        }
    }
    found
}
