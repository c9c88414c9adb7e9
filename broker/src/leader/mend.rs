//! A consume queue record that has rotted on this node's disk, or that the disk does not give out, put back as another node of the group
//! has it.
//!
//! ```text
//!   no sound record ─▶ ask the others ─▶ records with their crcs ─▶ written back, read again ─▶ the message
//!                              └── nobody has one for a while ─▶ the node ends; its next start makes its queues again from its log
//! ```
//! Queues are the same on every node (LAW-SAME), and a record's crc is over its place, so the answer proves itself as a rescued body does.
//! Until a record is back nothing is handed out in its place and nothing behind it is read ahead. Called by receives; must never let one go
//! on as if the place were empty. The pump calls it for those that receives did not wait for.

use std::{collections::BTreeMap, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_raft::ProposeError;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, warn};

use super::{Failure, Leader};
use crate::{
    machine::{QueueId, QueueOffset, TopicId},
    replica::Spot,
};

/// First byte of the question to another node.
pub(crate) const ASK_POINTERS: u8 = 103;

/// Records asked for at once: damage comes in pages and files.
const RECORDS: u32 = 256;
/// Most records that anybody is given.
const RECORDS_MAX: u32 = 4_096;
/// Longest wait for one node's answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Rest before everybody is asked again.
const REST: Duration = Duration::from_millis(200);
/// A record that nobody has had for so long ends the node. Others may have been starting, or a moment behind.
const GIVE_UP: Duration = Duration::from_secs(3);

/// The damage that is being mended, and since when. One at a time: receives that meet the same damage wait for one another.
#[derive(Default)]
pub(super) struct Mending(tokio::sync::Mutex<BTreeMap<Spot, Instant>>);

impl Leader {
    /// Puts the record of a place back. When it returns the record can be read, or retention has passed it.
    ///
    /// Ends the node when no other node has had the record for [`GIVE_UP`], however many calls that took. Fails with "unknown" when this
    /// node does not lead any more.
    pub(super) async fn mend(&self, spot: Spot) -> Result<(), Failure> {
        let mut since = self.mending.0.lock().await;
        loop {
            if !self.shared.is_damaged(spot) {
                since.remove(&spot);
                return Ok(());
            }
            if !self.group.leader().borrow().serving {
                since.clear();
                return Err(ProposeError::Unknown.into());
            }
            let first = *since.entry(spot).or_insert_with(|| {
                self.metrics.damaged.add(1);
                Instant::now()
            });
            match self.borrow(spot).await {
                Ok(true) => continue,
                Ok(false) if first.elapsed() < GIVE_UP => sleep(REST).await,
                Ok(false) => return Err(self.give_up(spot, "no other node has it")),
                Err(error) => return Err(self.give_up(spot, &error.to_string())),
            }
        }
    }

    /// Goes on with damage that a receive has met and not waited for, so that it is mended, or ends the node, whoever asks next. On a node
    /// that does not lead any more: forgets it.
    pub(crate) async fn mend_known(&self) {
        let known: Vec<Spot> = self.mending.0.lock().await.keys().copied().collect();
        for spot in known {
            if let Err(error) = self.mend(spot).await {
                debug!(%error, ?spot, "a consume queue record is not mended");
            }
        }
    }

    /// Asks the other nodes, until one of them has the record.
    async fn borrow(&self, spot: Spot) -> std::io::Result<bool> {
        let status = self.group.status();
        for member in status.members.iter().filter(|member| member.id != status.id && member.alive) {
            let Ok(lent) = self.group.call(member.id, question(spot), PATIENCE).await else { continue };
            if self.shared.mend(spot, &lent)? {
                warn!(
                    file = %self.shared.queue_file(spot).display(),
                    offset = spot.offset.0,
                    from = ?member.id,
                    "consume queue records have rotted on this disk; put back as another node has them"
                );
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn give_up(&self, spot: Spot, why: &str) -> Failure {
        let file = self.shared.queue_file(spot);
        let reason = format!(
            "{}: the record of offset {} has rotted and could not be put back ({why}): start the node again, it makes its \
             consume queues again from its log; if this comes back, replace the disk",
            file.display(),
            spot.offset
        );
        error!(file = %file.display(), offset = spot.offset.0, why, "a consume queue record has rotted and could not be put back");
        self.shared.give_up(reason.clone());
        Failure::Unreadable(reason)
    }

    /// Answers another node's question with the records that are sound here.
    pub(crate) fn lend_pointers(&self, question: &[u8]) -> Bytes {
        let Some((from, count)) = asked(question) else { return Bytes::new() };
        self.shared.lend(from, count.min(RECORDS_MAX).into())
    }
}

/// Code (1), topic (4), queue (2), offset (8), number of records (4).
fn question(from: Spot) -> Bytes {
    let mut out = BytesMut::with_capacity(19);
    out.put_u8(ASK_POINTERS);
    out.put_u32_le(from.topic.0);
    out.put_u16_le(from.queue.0);
    out.put_u64_le(from.offset.0);
    out.put_u32_le(RECORDS);
    out.freeze()
}

fn asked(question: &[u8]) -> Option<(Spot, u32)> {
    let [_, t0, t1, t2, t3, q0, q1, o0, o1, o2, o3, o4, o5, o6, o7, count @ ..] = *question.first_chunk::<19>()?;
    let topic = TopicId(u32::from_le_bytes([t0, t1, t2, t3]));
    let queue = QueueId(u16::from_le_bytes([q0, q1]));
    let offset = QueueOffset(u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]));
    Some((Spot { topic, queue, offset }, u32::from_le_bytes(count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_understood_and_a_torn_one_is_not() {
        let spot =
            Spot { topic: TopicId(0x0102_0304), queue: QueueId(0x0506), offset: QueueOffset(0x0708_090a_0b0c_0d0e) };
        assert_eq!(asked(&question(spot)), Some((spot, RECORDS)));
        assert_eq!(asked(&question(spot)[..18]), None);
    }
}
