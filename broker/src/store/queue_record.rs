//! A consume queue record: 20 bytes that say where a message stands, and for which place of which queue they say it.
//!
//! ```text
//! little endian   0: position in the commit log (8)   8: size (4)   12: tag hash (4)   16: crc32c (4)
//!     the crc is over   topic number (4)   queue (2)   queue offset (8)   and bytes 0 to 15 of the record
//! ```
//! The place is not written but checked, so a record that was zeroed or changed, that stands where another belongs, or that comes from
//! another queue's file is no record. Whoever finds none between the kept beginning and the end of a queue has found damage.
//! Must never judge where a queue begins and ends: a hole below its beginning looks the same.

use quorate_raft::Position;

use crate::machine::{Pointer, QueueId, QueueOffset, TopicId};

/// Bytes of a record.
pub(crate) const RECORD_BYTES: usize = 20;

/// Bytes of a record before its crc.
const SAYS_BYTES: usize = 16;
const PLACE_BYTES: usize = 14;

/// A place of a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Spot {
    /// The topic.
    pub topic: TopicId,
    /// The queue.
    pub queue: QueueId,
    /// The offset in it.
    pub offset: QueueOffset,
}

impl Spot {
    /// So many places further on.
    pub(crate) fn ahead(self, count: u64) -> Self {
        Self { offset: QueueOffset(self.offset.0 + count), ..self }
    }
}

/// The record of the message at `spot`. Of the tag hash, a sign-extended `i32`, the lower half is kept.
pub(crate) fn encode(spot: Spot, pointer: &Pointer) -> [u8; RECORD_BYTES] {
    let mut out = [0; RECORD_BYTES];
    out[..8].copy_from_slice(&pointer.position.0.to_le_bytes());
    out[8..12].copy_from_slice(&pointer.size.to_le_bytes());
    out[12..16].copy_from_slice(&pointer.tag_hash.to_le_bytes()[..4]);
    let crc = crc(spot, &out);
    out[16..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// What the record at `spot` points at; `None` if these bytes are not the record of this place.
pub(crate) fn decode(spot: Spot, record: &[u8; RECORD_BYTES]) -> Option<Pointer> {
    let [p0, p1, p2, p3, p4, p5, p6, p7, s0, s1, s2, s3, t0, t1, t2, t3, found @ ..] = *record;
    let size = u32::from_le_bytes([s0, s1, s2, s3]);
    let sound = size != 0 && u32::from_le_bytes(found) == crc(spot, record);
    sound.then(|| Pointer {
        position: Position(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
        size,
        tag_hash: i64::from(i32::from_le_bytes([t0, t1, t2, t3])) as u64,
    })
}

/// Records that stand one after another from `from` on; whole ones only.
pub(crate) fn decode_all(from: Spot, records: &[u8]) -> impl Iterator<Item = Option<Pointer>> + '_ {
    let spots = (0..).map(move |step| from.ahead(step));
    let records = records.chunks_exact(RECORD_BYTES);
    records.zip(spots).map(|(record, spot)| record.first_chunk().and_then(|record| decode(spot, record)))
}

fn crc(spot: Spot, record: &[u8; RECORD_BYTES]) -> u32 {
    let mut over = [0; PLACE_BYTES + SAYS_BYTES];
    over[..4].copy_from_slice(&spot.topic.0.to_le_bytes());
    over[4..6].copy_from_slice(&spot.queue.0.to_le_bytes());
    over[6..14].copy_from_slice(&spot.offset.0.to_le_bytes());
    over[14..].copy_from_slice(&record[..SAYS_BYTES]);
    crc32c::crc32c(&over)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{codec::sample, tag_hash};

    const SPOT: Spot = Spot { topic: TopicId(3), queue: QueueId(2), offset: QueueOffset(1_000_000) };

    fn pointer(number: u64) -> Pointer {
        Pointer {
            position: Position(0x0102_0304_0506 + number * 200),
            size: 77,
            tag_hash: tag_hash("polygenelubricants"),
        }
    }

    #[test]
    fn a_record_survives_its_20_bytes_with_tags_of_either_sign() {
        for tag_hash in [0, tag_hash("TagA"), tag_hash("polygenelubricants"), u64::MAX] {
            let pointer = Pointer { tag_hash, ..pointer(0) };
            assert_eq!(decode(SPOT, &encode(SPOT, &pointer)), Some(pointer));
        }
    }

    #[test]
    fn stored_records_are_read_and_written_byte_by_byte() {
        let pointers =
            [pointer(0), Pointer { tag_hash: tag_hash("TagA"), ..pointer(1) }, Pointer { tag_hash: 0, ..pointer(2) }];
        let now: Vec<u8> = (0..).zip(&pointers).flat_map(|(step, pointer)| encode(SPOT.ahead(step), pointer)).collect();
        let stored = sample("queue-2.bin", &now);
        assert_eq!(stored, now);
        assert_eq!(decode_all(SPOT, &stored).collect::<Vec<_>>(), pointers.map(Some));
    }

    #[test]
    fn a_record_with_any_bit_changed_is_none() {
        let sound = encode(SPOT, &pointer(0));
        for bit in 0..RECORD_BYTES * 8 {
            let mut rotten = sound;
            rotten[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(SPOT, &rotten), None, "bit {bit}");
        }
    }

    #[test]
    fn a_record_is_one_at_its_own_place_only() {
        let record = encode(SPOT, &pointer(0));
        let elsewhere = [
            SPOT.ahead(1),
            Spot { offset: QueueOffset(0), ..SPOT },
            Spot { queue: QueueId(3), ..SPOT },
            Spot { topic: TopicId(4), ..SPOT },
            Spot { topic: TopicId(2), queue: QueueId(3), ..SPOT },
        ];
        for spot in elsewhere {
            assert_eq!(decode(spot, &record), None, "{spot:?}");
        }
    }

    #[test]
    fn zeros_are_never_a_record() {
        for spot in [SPOT, Spot { topic: TopicId(0), queue: QueueId(0), offset: QueueOffset(0) }] {
            assert_eq!(decode(spot, &[0; RECORD_BYTES]), None);
        }
        // Not even with the crc of zeros.
        let nothing = Pointer { position: Position(0), size: 0, tag_hash: 0 };
        assert_eq!(decode(SPOT, &encode(SPOT, &nothing)), None);
    }

    #[test]
    fn neighbours_are_judged_one_by_one() {
        let mut records: Vec<u8> = (0..4).flat_map(|step| encode(SPOT.ahead(step), &pointer(step))).collect();
        records[RECORD_BYTES] ^= 1;
        records.truncate(4 * RECORD_BYTES - 1);
        let found: Vec<_> = decode_all(SPOT, &records).collect();
        assert_eq!(found, [Some(pointer(0)), None, Some(pointer(2))]);
    }

    /// Prints what a record costs: `cargo test --release -- --ignored --nocapture rate`.
    #[test]
    #[ignore = "prints a rate, checks nothing that other tests do not"]
    fn rate_of_records() {
        const COUNT: u64 = 2_000_000;
        let begin = std::time::Instant::now();
        let records: Vec<u8> = (0..COUNT).flat_map(|step| encode(SPOT.ahead(step), &pointer(step))).collect();
        let encoded = begin.elapsed();
        assert_eq!(decode_all(SPOT, &records).flatten().count() as u64, COUNT);
        let decoded = begin.elapsed() - encoded;
        let nanos = |time: std::time::Duration| time.as_nanos() as f64 / COUNT as f64;
        println!("{:.0} ns to write a record, {:.0} ns to check one", nanos(encoded), nanos(decoded));
    }
}
