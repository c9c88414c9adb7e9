//! Receives that may be repeated: which deliveries an attempt key was answered with.
//!
//! Kept as runs of offsets for as long as one of the deliveries is in flight under the serial it got, so there are never
//! more attempts than messages in flight. The serials of one answer follow one another: the first one and the runs name
//! all of them.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};
use md5::{Digest, Md5};

use crate::machine::{
    codec::{DecodeError, Reader},
    effect::Delivery,
    ids::{QueueId, Serial},
};

/// Names one attempt to receive: a 128-bit digest of the client's `attempt_id`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AttemptKey(pub u128);

impl AttemptKey {
    /// Digests an `attempt_id`.
    pub fn new(attempt_id: &str) -> Self {
        Self(u128::from_le_bytes(Md5::digest(attempt_id).into()))
    }
}

/// Receives that may be repeated.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Attempts {
    by_key: BTreeMap<AttemptKey, Serial>,
    /// By the serial of the first delivery; those of an attempt follow one another.
    by_first: BTreeMap<Serial, Attempt>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Attempt {
    key: AttemptKey,
    /// Deliveries still in flight under the serial they got.
    left: u32,
    runs: Vec<Run>,
}

/// Neighbouring messages of one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    queue: QueueId,
    first: u64,
    count: u32,
}

impl Attempts {
    pub(super) fn remember(&mut self, key: AttemptKey, first: Serial, deliveries: &[Delivery]) {
        if deliveries.is_empty() {
            return;
        }
        let mut runs: Vec<Run> = Vec::new();
        for delivery in deliveries {
            match runs.last_mut() {
                Some(run) if run.queue == delivery.queue && run.first + u64::from(run.count) == delivery.offset.0 => {
                    run.count += 1;
                }
                Some(_) | None => runs.push(Run { queue: delivery.queue, first: delivery.offset.0, count: 1 }),
            }
        }
        if let Some(before) = self.by_key.insert(key, first) {
            self.by_first.remove(&before);
        }
        self.by_first.insert(first, Attempt { key, left: deliveries.len() as u32, runs });
    }

    /// `serial` is no longer the latest word about its message.
    pub(super) fn retire(&mut self, serial: Serial) {
        let Some((first, attempt)) = self.by_first.range_mut(..=serial).next_back() else { return };
        if serial.0 - first.0 >= attempt.count() {
            return;
        }
        attempt.left -= 1;
        if attempt.left == 0 {
            let (first, key) = (*first, attempt.key);
            self.by_first.remove(&first);
            self.by_key.remove(&key);
        }
    }

    pub(super) fn deliveries(&self, key: AttemptKey) -> impl Iterator<Item = (QueueId, u64, Serial)> + '_ {
        let attempt = self.by_key.get(&key).and_then(|first| Some((*first, self.by_first.get(first)?)));
        attempt
            .into_iter()
            .flat_map(|(first, attempt)| attempt.places().zip((first.0..).map(Serial)))
            .map(|((queue, offset), serial)| (queue, offset, serial))
    }
}

impl Attempt {
    /// The serial behind the last one, if runs as these can have been handed out at once: a receive hands out at most
    /// 65,535 messages, so larger ones are a lie that would only cost time to follow.
    fn end(&self, first: Serial) -> Option<u64> {
        let sound = self.runs.iter().all(|run| run.first.checked_add(u64::from(run.count)).is_some());
        let count = Some(self.count()).filter(|count| sound && *count <= u64::from(u16::MAX))?;
        first.0.checked_add(count)
    }

    fn count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// The message that the delivery `index` of this attempt is about.
    fn place(&self, mut index: u64) -> Option<(QueueId, u64)> {
        for run in &self.runs {
            if index < u64::from(run.count) {
                return Some((run.queue, run.first + index));
            }
            index -= u64::from(run.count);
        }
        None
    }

    fn places(&self) -> impl Iterator<Item = (QueueId, u64)> + '_ {
        self.runs.iter().flat_map(|run| (0..u64::from(run.count)).map(|step| (run.queue, run.first + step)))
    }
}

impl Attempts {
    pub(super) fn save(&self, out: &mut BytesMut) {
        out.put_u32_le(self.by_first.len() as u32);
        for (first, attempt) in &self.by_first {
            out.put_u64_le(first.0);
            out.put_u128_le(attempt.key.0);
            out.put_u32_le(attempt.runs.len() as u32);
            for run in &attempt.runs {
                out.put_u16_le(run.queue.0);
                out.put_u64_le(run.first);
                out.put_u32_le(run.count);
            }
        }
    }

    /// Reads attempts that must fit what is in flight: `in_flight` says which message each serial is about.
    pub(super) fn load(
        in_flight: &BTreeMap<Serial, (QueueId, u64)>,
        issued: Serial,
        reader: &mut Reader,
    ) -> Result<Self, DecodeError> {
        let mut attempts = Self::default();
        let mut behind = 0;
        for _ in 0..reader.count(28)? {
            let first = Serial(reader.u64()?);
            let key = AttemptKey(reader.u128()?);
            let mut attempt = Attempt { key, left: 0, runs: Vec::new() };
            for _ in 0..reader.count(14)? {
                attempt.runs.push(Run { queue: QueueId(reader.u16()?), first: reader.u64()?, count: reader.u32()? });
            }
            let end = attempt.end(first).filter(|end| first.0 >= behind && *end <= issued.0);
            behind = end.ok_or_else(|| reader.error("an attempt with runs that cannot be"))?;
            let live = || in_flight.range(first..Serial(behind));
            if live().any(|(serial, place)| attempt.place(serial.0 - first.0) != Some(*place)) {
                return Err(reader.error("an attempt that does not fit what is in flight"));
            }
            attempt.left = live().count() as u32;
            if attempt.left == 0 || attempts.by_key.insert(key, first).is_some() {
                return Err(reader.error("an attempt with nothing in flight, or twice"));
            }
            attempts.by_first.insert(first, attempt);
        }
        Ok(attempts)
    }
}
