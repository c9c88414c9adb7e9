//! What a follower keeps in the page cache: the newest part of its log, and no more.
//!
//! Nobody reads a follower's log, except a new leader's consumers its end. Left alone, the kernel keeps every byte that was ever
//! written, and each append takes memory that was never touched before; given back as the log goes on, the same pages serve again and
//! again. That is a sixth of all CPU time under load on a virtual machine, where memory touched first is memory the host must find.
//! A leader keeps what the kernel keeps: its consumers may be far behind.

use crate::{
    log::segment::{Borders, Segments},
    types::Position,
};

/// Bytes at the end of the log that stay: seconds of it, so that consumers go on from memory after a failover.
const KEPT_BYTES: u64 = 64 << 20;
/// Least that one advice is about.
const STEP_BYTES_MIN: u64 = 1 << 20;
/// Most that one advice is about: a node that led for long has much behind it, and the writer must not stop for that.
const STEP_BYTES_MAX: u64 = 16 << 20;

/// How far a follower's log is given back.
#[derive(Debug)]
pub(super) struct Forgetting {
    upto: Position,
}

impl Forgetting {
    /// Of a log that ends here: what stands before was read at the start, and is the kernel's business.
    pub fn new(end: Position) -> Self {
        Self { upto: end }
    }

    /// The log is synced up to here, and this node follows: gives back what is due. Advice to the kernel only, so no error.
    pub fn step(&mut self, segments: &Segments, synced: Position) {
        let Some((segment, from, len)) = self.due(segments.borders, synced) else { return };
        // A file that is purged has nothing to give back.
        if let Ok(file) = segments.file(segment) {
            file.forget(from, len);
        }
    }

    /// Segment, first byte and length of the next advice.
    fn due(&mut self, borders: Borders, synced: Position) -> Option<(Position, u64, u64)> {
        // Behind a cut the log is written again.
        self.upto = self.upto.min(synced);
        let from = self.upto;
        let segment = borders.below(from);
        let step = (synced.0 - from.0).saturating_sub(KEPT_BYTES).min(STEP_BYTES_MAX);
        if step < STEP_BYTES_MIN {
            return None;
        }
        let upto = Position(from.0 + step).min(borders.after(from));
        self.upto = upto;
        Some((segment, from.0 - segment.0, upto.0 - from.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_newest_part_stays_and_the_rest_goes_once_segment_by_segment() {
        let borders = Borders { segment_bytes: 100 * MIB };
        let mut forgetting = Forgetting::new(Position(90 * MIB));
        assert_eq!(forgetting.due(borders, Position(154 * MIB)), None);
        assert_eq!(forgetting.due(borders, Position(155 * MIB - 1)), None, "too little for one advice");
        assert_eq!(forgetting.due(borders, Position(157 * MIB)), Some((Position(0), 90 * MIB, 3 * MIB)));
        assert_eq!(forgetting.due(borders, Position(157 * MIB)), None, "once");
        let at = Position(400 * MIB);
        let mut advice = std::iter::from_fn(|| forgetting.due(borders, at));
        assert_eq!(advice.next(), Some((Position(0), 93 * MIB, 7 * MIB)), "up to the border");
        assert_eq!(advice.next(), Some((Position(100 * MIB), 0, 16 * MIB)), "a step at a time");
        assert_eq!(advice.map(|(_, _, len)| len).sum::<u64>() + 116 * MIB, (400 - 64) * MIB);
    }

    #[test]
    fn what_is_written_again_behind_a_cut_goes_again() {
        let borders = Borders { segment_bytes: 1000 * MIB };
        let mut forgetting = Forgetting::new(Position(0));
        assert_eq!(forgetting.due(borders, Position(80 * MIB)), Some((Position(0), 0, 16 * MIB)));
        assert_eq!(forgetting.due(borders, Position(10 * MIB)), None, "cut");
        assert_eq!(forgetting.due(borders, Position(75 * MIB)), Some((Position(0), 10 * MIB, MIB)));
    }
}
