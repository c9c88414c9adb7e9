//! A stored message: its bytes in the commit log, and the 20-byte pointer to them in a consume queue.
//!
//! ```text
//! consume queue record (little endian)   0: position in the commit log (8)   8: size (4)   12: tag hash (8)
//! at `position - 8` in the commit log    stamp of the batch that holds the record (8), then the record itself
//! ```
//! The bytes are what the service normalised from the client's message (protobuf `apache.rocketmq.v2.Message`); the
//! machine never looks inside.

use bytes::Bytes;
use quorate_proto::time::Timestamp;
use quorate_raft::Position;

/// Bytes of a consume queue record.
pub const POINTER_BYTES: usize = 20;

/// Bytes of the stamp that stands before every record in the commit log.
pub const STAMP_BYTES: usize = 8;

/// The bytes of a message on their way into the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    bytes: Bytes,
    at: u32,
}

impl Record {
    /// Wraps the bytes of a normalised message.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// A record that was decoded from byte `at` of a batch.
    pub(crate) fn decoded(bytes: Bytes, at: u32) -> Self {
        Self { bytes, at }
    }

    /// The message.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where a decoded record stands in its encoded batch; 0 for one that was never encoded.
    pub fn at(&self) -> u32 {
        self.at
    }
}

impl From<Bytes> for Record {
    fn from(bytes: Bytes) -> Self {
        Self::new(bytes)
    }
}

/// Where a record stands in the commit log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pointer {
    /// Position of the record's first byte.
    pub position: Position,
    /// Its size in bytes; never 0.
    pub size: u32,
    /// Hash of its tag; 0 without one.
    pub tag_hash: u64,
}

impl Pointer {
    /// As it stands in a consume queue file.
    pub fn encode(&self) -> [u8; POINTER_BYTES] {
        let mut out = [0; POINTER_BYTES];
        out[..8].copy_from_slice(&self.position.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.size.to_le_bytes());
        out[12..].copy_from_slice(&self.tag_hash.to_le_bytes());
        out
    }

    /// Reads one back. `None` for a hole: offsets this node never wrote, since it began from an image behind them.
    pub fn decode(bytes: &[u8; POINTER_BYTES]) -> Option<Self> {
        let [p0, p1, p2, p3, p4, p5, p6, p7, s0, s1, s2, s3, tag @ ..] = *bytes;
        let size = u32::from_le_bytes([s0, s1, s2, s3]);
        (size != 0).then(|| Self {
            position: Position(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            size,
            tag_hash: u64::from_le_bytes(tag),
        })
    }
}

/// A message as it was read back from the commit log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRecord {
    /// The bytes that were sent.
    pub bytes: Bytes,
    /// The log's time when it was stored, equal on all nodes.
    pub stored_at: Timestamp,
}

/// The hash that a consume queue keeps of a tag: Java's `String.hashCode` over UTF-16 units, sign-extended, as RocketMQ
/// stores it. Without a tag: 0.
pub fn tag_hash(tag: &str) -> u64 {
    let hash = tag.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    i64::from(hash) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_survives_its_20_bytes_and_zeros_are_a_hole() {
        let pointer = Pointer { position: Position(0x0102_0304_0506), size: 77, tag_hash: u64::MAX };
        assert_eq!(Pointer::decode(&pointer.encode()), Some(pointer));
        assert_eq!(Pointer::decode(&[0; POINTER_BYTES]), None);
    }

    #[test]
    fn a_tag_hashes_like_java_s_string() {
        assert_eq!(tag_hash(""), 0);
        assert_eq!(tag_hash("TagA"), 2_598_919);
        assert_eq!(tag_hash("polygenelubricants") as i64, i64::from(i32::MIN));
    }
}
