//! A stored message: its bytes in the commit log, and the pointer to them.
//!
//! ```text
//! pointer in saved state (little endian)  0: position in the commit log (8)   8: size (4)   12: tag hash (8)
//! at `position - 12` in the commit log    crc32c of all that follows (4), stamp of the batch (8), then the record itself
//! ```
//! The crc is the record's own, beside the one of its frame: a body that has rotted in a file since is found when it is read,
//! without reading the megabytes around it.
//! How a consume queue file keeps a pointer stands in [`crate::store::queue_record`].
//! The bytes are what the service normalised from the client's message (protobuf `apache.rocketmq.v2.Message`); the
//! machine never looks inside.

use bytes::Bytes;
use quorate_proto::time::Timestamp;
use quorate_raft::Position;

use super::codec::{DecodeError, Reader};

/// Bytes of a pointer in saved state.
const POINTER_BYTES: usize = 20;

/// Bytes that stand before every record in the commit log: crc and stamp.
pub const PREFIX_BYTES: usize = CRC_BYTES + STAMP_BYTES;

const CRC_BYTES: usize = 4;
const STAMP_BYTES: usize = 8;

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
    /// Hash of its tag, a sign-extended `i32`; 0 without one.
    pub tag_hash: u64,
}

impl Pointer {
    /// As it stands in saved state.
    pub(crate) fn encode(&self) -> [u8; POINTER_BYTES] {
        let mut out = [0; POINTER_BYTES];
        out[..8].copy_from_slice(&self.position.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.size.to_le_bytes());
        out[12..].copy_from_slice(&self.tag_hash.to_le_bytes());
        out
    }

    /// Reads one out of saved state, where holes do not occur.
    pub(crate) fn load(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (position, size, tag_hash) = (Position(reader.u64()?), reader.u32()?, reader.u64()?);
        if size == 0 {
            return Err(reader.error("a pointer to nothing"));
        }
        Ok(Self { position, size, tag_hash })
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

impl StoredRecord {
    /// Reads a record with its prefix, as it stands in the commit log. `None` if its crc says that the bytes have changed since.
    pub fn checked(mut prefixed: Bytes) -> Option<Self> {
        if prefixed.len() < PREFIX_BYTES {
            return None;
        }
        let bytes = prefixed.split_off(PREFIX_BYTES);
        let [c0, c1, c2, c3, stamp @ ..] = *prefixed.first_chunk::<PREFIX_BYTES>()?;
        let stored_at = Timestamp(u64::from_le_bytes(stamp));
        (record_crc(stored_at, &bytes) == u32::from_le_bytes([c0, c1, c2, c3])).then_some(Self { bytes, stored_at })
    }
}

/// The crc that stands before a record: over its stamp and its bytes.
pub(crate) fn record_crc(stamp: Timestamp, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&stamp.0.to_le_bytes()), bytes)
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
    fn a_pointer_survives_saved_state_and_one_to_nothing_is_refused() {
        let pointer = Pointer { position: Position(0x0102_0304_0506), size: 77, tag_hash: u64::MAX };
        let load = |bytes: &[u8]| Pointer::load(&mut Reader::new(Bytes::copy_from_slice(bytes)));
        assert_eq!(load(&pointer.encode()), Ok(pointer));
        assert!(load(&[0; POINTER_BYTES]).is_err());
    }

    #[test]
    fn a_record_with_any_bit_changed_is_noticed() {
        let (stamp, bytes) = (Timestamp(77), b"a body");
        let prefix = [&record_crc(stamp, bytes).to_le_bytes()[..], &stamp.0.to_le_bytes()].concat();
        let stored = [&prefix[..], bytes].concat();
        let sound = StoredRecord { bytes: Bytes::from_static(bytes), stored_at: stamp };
        assert_eq!(StoredRecord::checked(stored.clone().into()), Some(sound));
        for bit in 0..stored.len() * 8 {
            let mut rotten = stored.clone();
            rotten[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(StoredRecord::checked(rotten.into()), None, "bit {bit}");
        }
        assert_eq!(StoredRecord::checked(Bytes::from_static(&[0; 11])), None);
    }

    #[test]
    fn a_tag_hashes_like_java_s_string() {
        assert_eq!(tag_hash(""), 0);
        assert_eq!(tag_hash("TagA"), 2_598_919);
        assert_eq!(tag_hash("polygenelubricants") as i64, i64::from(i32::MIN));
    }
}
