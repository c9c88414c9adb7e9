//! A message whose bytes have rotted on this node's disk, read from another node of the group.
//!
//! Positions are the same on every node (LAW-SAME), so the pointer in this node's consume queue is the question, and the record's
//! own crc judges the answer: whatever a peer says, only the bytes that were once sent are handed out.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_raft::Position;
use tracing::{error, warn};

use super::Leader;
use crate::{
    machine::{Pointer, Record, StoredRecord},
    replica::Found,
};

/// First byte of the question to another node.
pub(crate) const ASK_RECORD: u8 = 102;

/// Longest wait for one node's answer.
const PATIENCE: Duration = Duration::from_millis(500);

impl Leader {
    /// The message that `pointer` stands for, from whichever other node still has its bytes. `None` if none of them does now.
    pub(super) async fn rescue(&self, pointer: Pointer) -> Option<StoredRecord> {
        self.metrics.rotten.add(1);
        let status = self.group.status();
        let others = status.members.iter().filter(|member| member.id != status.id && member.alive);
        for member in others {
            let answer = self.group.call(member.id, question(pointer), PATIENCE).await;
            if let Some(record) = answer.ok().and_then(StoredRecord::checked) {
                let (position, size) = (pointer.position.0, pointer.size);
                warn!(position, size, from = ?member.id, "a message has rotted on this disk; served from another node");
                return Some(record);
            }
        }
        error!(
            position = pointer.position.0,
            size = pointer.size,
            "a message has rotted on this disk and no other node has it now; it is not delivered"
        );
        None
    }

    /// The bytes of a message that waits, from this disk or another. `None` if nobody has them now.
    pub(super) async fn body(&self, found: Found) -> Option<Record> {
        match found {
            Found::Record(record) => Some(record.bytes.into()),
            Found::Rotten(pointer) => self.rescue(pointer).await.map(|record| record.bytes.into()),
            // What waits is not in a queue, so no consume queue is asked about it.
            Found::Gone | Found::Damaged(_) => None,
        }
    }

    /// Answers another node's question: the record with its prefix if it is sound here, else nothing.
    pub(crate) fn lend(&self, question: &[u8]) -> Bytes {
        let Some(pointer) = asked(question) else { return Bytes::new() };
        let prefixed = self.shared.prefixed(pointer).ok().flatten().unwrap_or_default();
        if StoredRecord::checked(prefixed.clone()).is_some() { prefixed } else { Bytes::new() }
    }
}

/// Code (1), position (8), size (4).
fn question(pointer: Pointer) -> Bytes {
    let mut out = BytesMut::with_capacity(13);
    out.put_u8(ASK_RECORD);
    out.put_u64_le(pointer.position.0);
    out.put_u32_le(pointer.size);
    out.freeze()
}

fn asked(question: &[u8]) -> Option<Pointer> {
    let [_, p0, p1, p2, p3, p4, p5, p6, p7, size @ ..] = *question.first_chunk::<13>()?;
    let position = Position(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]));
    Some(Pointer { position, size: u32::from_le_bytes(size), tag_hash: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_understood_and_a_torn_one_is_not() {
        let pointer = Pointer { position: Position(0x0102_0304_0506_0708), size: 99, tag_hash: 0 };
        assert_eq!(asked(&question(pointer)), Some(pointer));
        assert_eq!(asked(&question(pointer)[..12]), None);
    }
}
