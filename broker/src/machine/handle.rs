//! Receipt handles: what a consumer gets with a message and gives back with its ack.
//!
//! A handle says everything about its delivery itself, so the node that takes the ack need not be the one that handed out
//! the message, nor know the consumer. As text it is the upper-case hex of
//!
//! ```text
//! version 1 (1) | cluster hash (4) | topic 4 | group 4 | queue 2 | offset 8 | serial 8 | attempt 4 | crc32c of all before (4)
//! ```
//! little endian. The cluster hash catches handles that wandered in from another cluster, the crc those that were cut or
//! edited. Neither is a secret: a handle grants what its group may do anyway.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    codec::{DecodeError, Reader},
    effect::Refusal,
    ids::{GroupId, QueueId, QueueOffset, Serial, TopicId},
};

const VERSION: u8 = 1;
const PACKED_BYTES: usize = 1 + 4 + Handle::BYTES + 4;

/// One delivery of one message to one consumer group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle {
    /// The topic, by the number it had then.
    pub topic: TopicId,
    /// The consumer group.
    pub group: GroupId,
    /// The queue.
    pub queue: QueueId,
    /// The message.
    pub offset: QueueOffset,
    /// Which delivery of it.
    pub serial: Serial,
    /// How often it had been handed out, this time included; for show.
    pub attempt: u32,
}

/// What tells the handles of one cluster from those of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterHash(u32);

impl ClusterHash {
    /// Of a cluster id.
    pub fn of(cluster: &str) -> Self {
        Self(crc32c::crc32c(cluster.as_bytes()))
    }
}

impl Handle {
    /// Bytes of a handle in a command.
    pub(crate) const BYTES: usize = 4 + 4 + 2 + 8 + 8 + 4;

    /// The text that clients carry.
    pub fn to_text(&self, cluster: ClusterHash) -> String {
        let mut bytes = BytesMut::with_capacity(PACKED_BYTES);
        bytes.put_u8(VERSION);
        bytes.put_u32_le(cluster.0);
        self.encode(&mut bytes);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        to_hex(&bytes)
    }

    /// Reads the text that a client gave back.
    ///
    /// # Errors
    /// [`Refusal::ReceiptInvalid`] if it is not a handle, [`Refusal::ReceiptForeign`] if another cluster issued it.
    pub fn parse(text: &str, cluster: ClusterHash) -> Result<Self, Refusal> {
        let packed = from_hex(text).ok_or(Refusal::ReceiptInvalid)?;
        let mut reader = Reader::new(Bytes::copy_from_slice(&packed));
        let (version, hash, handle, crc) = Self::unpack(&mut reader).map_err(|_| Refusal::ReceiptInvalid)?;
        if version != VERSION || crc != crc32c::crc32c(&packed[..PACKED_BYTES - 4]) {
            return Err(Refusal::ReceiptInvalid);
        }
        if hash != cluster.0 {
            return Err(Refusal::ReceiptForeign);
        }
        Ok(handle)
    }

    fn unpack(reader: &mut Reader) -> Result<(u8, u32, Self, u32), DecodeError> {
        Ok((reader.u8()?, reader.u32()?, Self::decode(reader)?, reader.u32()?))
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.topic.0);
        out.put_u32_le(self.group.0);
        out.put_u16_le(self.queue.0);
        out.put_u64_le(self.offset.0);
        out.put_u64_le(self.serial.0);
        out.put_u32_le(self.attempt);
    }

    pub(crate) fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            topic: TopicId(reader.u32()?),
            group: GroupId(reader.u32()?),
            queue: QueueId(reader.u16()?),
            offset: QueueOffset(reader.u64()?),
            serial: Serial(reader.u64()?),
            attempt: reader.u32()?,
        })
    }
}

/// Upper-case hex, as RocketMQ writes digests and ids.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn from_hex(text: &str) -> Option<[u8; PACKED_BYTES]> {
    let digits = text.as_bytes();
    if digits.len() != PACKED_BYTES * 2 {
        return None;
    }
    let mut bytes = [0; PACKED_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> Handle {
        Handle {
            topic: TopicId(7),
            group: GroupId(3),
            queue: QueueId(2),
            offset: QueueOffset(1 << 40),
            serial: Serial(99),
            attempt: 4,
        }
    }

    #[test]
    fn a_handle_survives_its_text() {
        let cluster = ClusterHash::of("c1");
        let text = handle().to_text(cluster);
        assert_eq!(text.len(), 78);
        assert_eq!(Handle::parse(&text, cluster), Ok(handle()));
        assert_eq!(Handle::parse(&text.to_lowercase(), cluster), Ok(handle()));
    }

    #[test]
    fn a_handle_of_another_cluster_is_foreign() {
        let text = handle().to_text(ClusterHash::of("c1"));
        assert_eq!(Handle::parse(&text, ClusterHash::of("c2")), Err(Refusal::ReceiptForeign));
    }

    #[test]
    fn text_that_is_not_a_handle_is_refused() {
        let cluster = ClusterHash::of("c1");
        let text = handle().to_text(cluster);
        for bad in ["", "x", &text[1..], &text[..76], &"é".repeat(39), &"0".repeat(78)] {
            assert_eq!(Handle::parse(bad, cluster), Err(Refusal::ReceiptInvalid), "{bad}");
        }
        for at in 0..text.len() {
            let mut edited = text.clone().into_bytes();
            edited[at] = if edited[at] == b'0' { b'1' } else { b'0' };
            let edited = String::from_utf8(edited).expect("ascii");
            assert_eq!(Handle::parse(&edited, cluster), Err(Refusal::ReceiptInvalid), "digit {at}");
        }
    }
}
