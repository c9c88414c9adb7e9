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
    codec::{DecodeError, Reader, put_text},
    effect::Refusal,
    feature::{delay::DelayId, transaction::HalfId},
    ids::{GroupId, QueueId, QueueOffset, Serial, TopicId},
};

const VERSION: u8 = 1;
const PACKED_BYTES: usize = 1 + 4 + Handle::BYTES + 4;
/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 1024;

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
        let packed = from_hex(text).filter(|packed| packed.len() == PACKED_BYTES).ok_or(Refusal::ReceiptInvalid)?;
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

/// Names a delayed message to the client that may take it back. As text: upper-case hex of
///
/// ```text
/// version 1 (1) | 'R' (1) | cluster hash (4) | topic 4 | due 8 | number 8 | message id length (1) | message id | crc32c (4)
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecallHandle {
    /// The topic, by the number it had then.
    pub topic: TopicId,
    /// The message.
    pub id: DelayId,
    /// What the client calls it; comes back in the answer to a recall.
    pub message_id: String,
}

/// Tells recall handles from receipt handles.
const RECALL: u8 = b'R';

impl RecallHandle {
    /// The text that clients carry.
    pub fn to_text(&self, cluster: ClusterHash) -> String {
        let mut bytes = BytesMut::with_capacity(1 + 1 + 4 + 4 + DelayId::BYTES + 1 + self.message_id.len() + 4);
        bytes.put_u8(VERSION);
        bytes.put_u8(RECALL);
        bytes.put_u32_le(cluster.0);
        bytes.put_u32_le(self.topic.0);
        self.id.encode(&mut bytes);
        put_text(&mut bytes, &self.message_id);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        to_hex(&bytes)
    }

    /// Reads the text that a client gave back.
    ///
    /// # Errors
    /// [`Refusal::RecallInvalid`] if it is not a recall handle, [`Refusal::RecallForeign`] if another cluster issued it.
    pub fn parse(text: &str, cluster: ClusterHash) -> Result<Self, Refusal> {
        let packed = from_hex(text).ok_or(Refusal::RecallInvalid)?;
        let body = packed.len().checked_sub(4).ok_or(Refusal::RecallInvalid)?;
        let crc = crc32c::crc32c(&packed[..body]);
        let mut reader = Reader::new(Bytes::from(packed));
        let (hash, handle, given) = Self::unpack(&mut reader).map_err(|_| Refusal::RecallInvalid)?;
        if given != crc {
            return Err(Refusal::RecallInvalid);
        }
        if hash != cluster.0 {
            return Err(Refusal::RecallForeign);
        }
        Ok(handle)
    }

    fn unpack(reader: &mut Reader) -> Result<(u32, Self, u32), DecodeError> {
        if (reader.u8()?, reader.u8()?) != (VERSION, RECALL) {
            return Err(reader.error("not a recall handle"));
        }
        let hash = reader.u32()?;
        let (topic, id) = (TopicId(reader.u32()?), DelayId::decode(reader)?);
        let message_id = reader.text(|text| Ok::<_, ()>(text.to_owned()), "not a message id")?;
        let crc = reader.u32()?;
        reader.end()?;
        Ok((hash, Self { topic, id, message_id }, crc))
    }
}

/// Names a transaction to its producer and to operators: the transaction id. As text: upper-case hex of
///
/// ```text
/// version 1 (1) | 'T' (1) | cluster hash (4) | topic 4 | number 8 | crc32c (4)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionHandle {
    /// The topic, by the number it had then.
    pub topic: TopicId,
    /// The half message.
    pub id: HalfId,
}

/// Tells transaction ids from other handles.
const TRANSACTION: u8 = b'T';

impl TransactionHandle {
    const BYTES: usize = 1 + 1 + 4 + 4 + HalfId::BYTES + 4;

    /// The text that clients carry.
    pub fn to_text(&self, cluster: ClusterHash) -> String {
        let mut bytes = BytesMut::with_capacity(Self::BYTES);
        bytes.put_u8(VERSION);
        bytes.put_u8(TRANSACTION);
        bytes.put_u32_le(cluster.0);
        bytes.put_u32_le(self.topic.0);
        bytes.put_u64_le(self.id.0);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        to_hex(&bytes)
    }

    /// Reads the text that a client gave back.
    ///
    /// # Errors
    /// [`Refusal::TransactionUnknown`] if it is no transaction id, [`Refusal::TransactionForeign`] if another cluster issued it.
    pub fn parse(text: &str, cluster: ClusterHash) -> Result<Self, Refusal> {
        let packed = from_hex(text).filter(|packed| packed.len() == Self::BYTES).ok_or(Refusal::TransactionUnknown)?;
        let crc = crc32c::crc32c(&packed[..Self::BYTES - 4]);
        let mut reader = Reader::new(Bytes::from(packed));
        let (hash, handle, given) = Self::unpack(&mut reader).map_err(|_| Refusal::TransactionUnknown)?;
        if given != crc {
            return Err(Refusal::TransactionUnknown);
        }
        if hash != cluster.0 {
            return Err(Refusal::TransactionForeign);
        }
        Ok(handle)
    }

    fn unpack(reader: &mut Reader) -> Result<(u32, Self, u32), DecodeError> {
        if (reader.u8()?, reader.u8()?) != (VERSION, TRANSACTION) {
            return Err(reader.error("not a transaction id"));
        }
        let hash = reader.u32()?;
        let handle = Self { topic: TopicId(reader.u32()?), id: HalfId(reader.u64()?) };
        Ok((hash, handle, reader.u32()?))
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

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > TEXT_BYTES_MAX {
        return None;
    }
    let byte = |pair: &[u8]| {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        u8::try_from(high << 4 | low).ok()
    };
    digits.chunks_exact(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use quorate_proto::time::Timestamp;

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
    fn a_recall_handle_survives_its_text_and_no_edited_digit_passes() {
        let (cluster, other) = (ClusterHash::of("c1"), ClusterHash::of("c2"));
        let id = DelayId { due: Timestamp(1 << 41), number: 77 };
        let recall = RecallHandle { topic: TopicId(7), id, message_id: "01AB".repeat(8) };
        let text = recall.to_text(cluster);
        assert_eq!(RecallHandle::parse(&text, cluster), Ok(recall));
        assert_eq!(RecallHandle::parse(&text, other), Err(Refusal::RecallForeign));
        let receipt = handle().to_text(cluster);
        for bad in ["", "x", &text[1..], &text[..text.len() - 2], &receipt, &"é".repeat(39), &"0".repeat(78)] {
            assert_eq!(RecallHandle::parse(bad, cluster), Err(Refusal::RecallInvalid), "{bad}");
        }
        assert_eq!(Handle::parse(&text, cluster), Err(Refusal::ReceiptInvalid));
        for at in 0..text.len() {
            let mut edited = text.clone().into_bytes();
            edited[at] = if edited[at] == b'0' { b'1' } else { b'0' };
            let edited = String::from_utf8(edited).expect("ascii");
            assert_eq!(RecallHandle::parse(&edited, cluster), Err(Refusal::RecallInvalid), "digit {at}");
        }
    }

    #[test]
    fn a_transaction_id_survives_its_text_and_no_edited_digit_passes() {
        let (cluster, other) = (ClusterHash::of("c1"), ClusterHash::of("c2"));
        let transaction = TransactionHandle { topic: TopicId(7), id: HalfId(1 << 40) };
        let text = transaction.to_text(cluster);
        assert_eq!(TransactionHandle::parse(&text, cluster), Ok(transaction));
        assert_eq!(TransactionHandle::parse(&text, other), Err(Refusal::TransactionForeign));
        let receipt = handle().to_text(cluster);
        for bad in ["", "x", &text[1..], &text[..text.len() - 2], &receipt, &"é".repeat(22), &"0".repeat(44)] {
            assert_eq!(TransactionHandle::parse(bad, cluster), Err(Refusal::TransactionUnknown), "{bad}");
        }
        assert_eq!(Handle::parse(&text, cluster), Err(Refusal::ReceiptInvalid));
        assert_eq!(RecallHandle::parse(&text, cluster), Err(Refusal::RecallInvalid));
        for at in 0..text.len() {
            let mut edited = text.clone().into_bytes();
            edited[at] = if edited[at] == b'0' { b'1' } else { b'0' };
            let edited = String::from_utf8(edited).expect("ascii");
            assert_eq!(TransactionHandle::parse(&edited, cluster), Err(Refusal::TransactionUnknown), "digit {at}");
        }
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
