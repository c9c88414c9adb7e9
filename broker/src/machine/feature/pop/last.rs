//! Messages that were handed out for the last time: when that time is over, and who has them.
//!
//! They stand apart from what is handed out again, so that no receive looks at them: acknowledged, they are done; else they wait for
//! their `DeadLetter`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{BufMut, BytesMut};
use quorate_proto::time::Timestamp;

use crate::machine::codec::{DecodeError, Reader, put_text};

/// Those of one queue.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Last {
    /// By the end of their time, and offset.
    ends: BTreeSet<(Timestamp, u64)>,
    /// The client ids of their consumers, as far as known.
    consumers: BTreeMap<u64, Arc<str>>,
}

impl Last {
    pub(super) fn add(&mut self, offset: u64, end: Timestamp) {
        self.ends.insert((end, offset));
    }

    /// Keeps who has it.
    pub(super) fn note(&mut self, offset: u64, consumer: &Arc<str>) {
        self.consumers.insert(offset, consumer.clone());
    }

    /// Its time ends at another moment from now on; who has it stays.
    pub(super) fn take(&mut self, offset: u64, end: Timestamp) {
        self.ends.remove(&(end, offset));
    }

    /// It has attempts left after all, or is done.
    pub(super) fn forget(&mut self, offset: u64, end: Timestamp) {
        self.take(offset, end);
        self.consumers.remove(&offset);
    }

    pub(super) fn consumer(&self, offset: u64) -> Option<&Arc<str>> {
        self.consumers.get(&offset)
    }

    /// Those whose time is over at `now`, the longest ago first.
    pub(super) fn over(&self, now: Timestamp) -> impl Iterator<Item = u64> + '_ {
        self.ends.range(..=(now, u64::MAX)).map(|(_, offset)| *offset)
    }

    /// All offsets.
    pub(super) fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        self.ends.iter().map(|(_, offset)| *offset)
    }

    /// Writes the consumers; the ends follow from what is in flight.
    pub(super) fn save(&self, out: &mut BytesMut) {
        out.put_u32_le(self.consumers.len() as u32);
        for (offset, consumer) in &self.consumers {
            out.put_u64_le(*offset);
            put_text(out, consumer);
        }
    }

    /// Reads consumers of what was added before.
    pub(super) fn load_consumers(&mut self, reader: &mut Reader) -> Result<(), DecodeError> {
        let offsets: BTreeSet<u64> = self.offsets().collect();
        for _ in 0..reader.count(9)? {
            let offset = reader.u64()?;
            let consumer = reader.text(|text| Ok::<_, ()>(Arc::from(text)), "not a client id")?;
            let in_order = self.consumers.last_key_value().is_none_or(|(last, _)| *last < offset);
            if !in_order || !offsets.contains(&offset) {
                return Err(reader.error("a consumer of a message that has attempts left"));
            }
            self.consumers.insert(offset, consumer);
        }
        Ok(())
    }
}
