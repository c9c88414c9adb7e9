//! The machine as bytes.
//!
//! State is saved in *parts*, each under a key that sorts the parts into the order in which they can be loaded again.
//! A checkpoint keeps the parts as they are, so that what did not change need not be written again; an image strings them
//! together. Remembered sends come apart from the rest, since they are many and only ever appended to.
//!
//! ```text
//! image   "QMIM" (4) | version 3 (2) | 0 (2) | parts (4) | parts … | length of remembered sends (8) | remembered sends
//!         | crc32c of all before (4)
//! part    key length (1) | key | length (4) | bytes
//! key     0                                     meta: now, serials, next numbers, totals, borders, head of remembered sends
//!         1 | topic number, big endian (4)      topic
//!         2 | group number, big endian (4)      consumer group
//!         3 | group number | topic number       progress of the group in the topic
//!         16                                    delayed messages: next number, lost, those recalled and not yet due
//!         17 | due time >> 18, big endian (8)   delayed messages that wait, of about four minutes
//!         18                                    transactions: next number, lost
//!         19 | number >> 9, big endian (8)      half messages, of 512 transactions
//!         20 | number / 4096, big endian (8)    one bit per transaction: it was committed
//!         21 | topic number, big endian (4)     dead letters of the topic that were redriven
//!         22 | group number | topic number      how many messages of each queue have become dead letters
//! ```
//! Everything else is little endian, in the order of `save` of each type. Saving visits ordered maps only, so equal
//! machines give equal bytes (LAW-SAME). Loading trusts nothing: what it accepts is a state that the rules could have made
//! as far as one look can tell, and saving it gives the same bytes again.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_proto::time::Timestamp;
use quorate_raft::Position;

use super::{
    Machine, Totals,
    codec::{DecodeError, Reader},
    dedup::{Dedup, ENTRY_BYTES},
    feature::{
        delay::Delay,
        retry::{Deaths, Redriven},
        transaction::Transactions,
    },
    groups::Groups,
    ids::{GroupId, Serial, TopicId},
    topics::Topics,
};

const MAGIC: &[u8; 4] = b"QMIM";
const VERSION: u16 = 3;

const META: u8 = 0;
const TOPIC: u8 = 1;
const GROUP: u8 = 2;
const SUBSCRIPTION: u8 = 3;
const DELAY: u8 = 16;
const DELAYED: u8 = 17;
const TRANSACTIONS: u8 = 18;
const HALVES: u8 = 19;
const COMMITTED: u8 = 20;
const REDRIVEN: u8 = 21;
const DEATHS: u8 = 22;

/// A named piece of the machine's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Its name; parts sort by it.
    pub key: Bytes,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Machine {
    /// The state in parts, in the order of their keys, without remembered sends.
    pub fn save_parts(&self) -> Vec<Part> {
        let mut parts = Parts::default();
        parts.add(&[META], |out| self.save_meta(out));
        for topic in self.topics.iter() {
            parts.add(&key(TOPIC, &[topic.id().0]), |out| topic.save(out));
        }
        for group in self.groups.iter() {
            parts.add(&key(GROUP, &[group.id().0]), |out| group.save(out));
        }
        for group in self.groups.iter() {
            for (topic, subscription) in group.subscriptions() {
                parts.add(&key(SUBSCRIPTION, &[group.id().0, topic.0]), |out| subscription.save(out));
            }
        }
        if !self.delay.is_new() {
            parts.add(&[DELAY], |out| self.delay.save_head(out));
        }
        self.delay.save_pending(|number, save| parts.add(&long_key(DELAYED, number), |out| save(out)));
        if !self.transactions.is_new() {
            parts.add(&[TRANSACTIONS], |out| self.transactions.save_head(out));
        }
        self.transactions.save_halves(|number, save| parts.add(&long_key(HALVES, number), |out| save(out)));
        self.transactions.save_committed(|number, save| parts.add(&long_key(COMMITTED, number), |out| save(out)));
        self.redriven.save(|topic, save| parts.add(&key(REDRIVEN, &[topic.0]), |out| save(out)));
        self.deaths.save(|group, topic, save| parts.add(&key(DEATHS, &[group.0, topic.0]), |out| save(out)));
        parts.0
    }

    /// Remembered sends are numbered; these are those kept, `[first, end)`.
    pub fn remembered(&self) -> (u64, u64) {
        (self.dedup.first(), self.dedup.end())
    }

    /// Remembered sends from number `from` on, [`REMEMBERED_BYTES`] each; numbers below [`Machine::remembered`] are left out.
    pub fn save_remembered(&self, from: u64) -> Bytes {
        let mut out = BytesMut::new();
        self.dedup.save_entries(from, &mut out);
        out.freeze()
    }

    /// Puts saved parts together again. `remembered` gives the remembered sends of the stated numbers `[first, end)`.
    ///
    /// # Errors
    /// What is wrong with them; for an error of `remembered` itself, that.
    pub fn load_parts<E: From<DecodeError>>(
        parts: impl IntoIterator<Item = Part>,
        remembered: impl FnOnce(u64, u64) -> Result<Bytes, E>,
    ) -> Result<Self, E> {
        let mut parts = parts.into_iter();
        let meta = parts.next().filter(|part| part.key[..] == [META]).ok_or(missing_meta())?;
        let (mut machine, mut head) = Self::load_meta(meta.bytes)?;
        for part in parts {
            machine.load_part(&part)?;
        }
        let (first, end) = remembered_range(&head)?;
        let mut entries = Reader::new(remembered(first, end)?);
        machine.dedup = Dedup::load(&mut head, &mut entries, machine.now)?;
        head.end()?;
        Ok(machine)
    }

    /// The whole state, equal on every node that has applied the same log.
    pub fn save_image(&self) -> Bytes {
        let parts = self.save_parts();
        let (first, end) = self.remembered();
        let remembered_bytes = (end - first) * ENTRY_BYTES as u64;
        let parts_bytes: usize = parts.iter().map(|part| 5 + part.key.len() + part.bytes.len()).sum();
        let mut out = BytesMut::with_capacity(24 + parts_bytes + remembered_bytes as usize);
        out.put_slice(MAGIC);
        out.put_u16_le(VERSION);
        out.put_u16_le(0);
        out.put_u32_le(parts.len() as u32);
        for part in &parts {
            out.put_u8(part.key.len() as u8);
            out.put_slice(&part.key);
            out.put_u32_le(u32::try_from(part.bytes.len()).expect("in-flight records are bounded per queue"));
            out.put_slice(&part.bytes);
        }
        out.put_u64_le(remembered_bytes);
        self.dedup.save_entries(0, &mut out);
        out.put_u32_le(crc32c::crc32c(&out));
        out.freeze()
    }

    /// Reads an image back.
    ///
    /// # Errors
    /// What is wrong and where. Never panics, and allocates no more than a small multiple of the image.
    pub fn load_image(image: Bytes) -> Result<Self, DecodeError> {
        let body = image.len().checked_sub(4).ok_or(DecodeError { what: "ends too soon", at: 0 })?;
        let mut trailer = Reader::new(image.slice(body..));
        if trailer.u32()? != crc32c::crc32c(&image[..body]) {
            return Err(DecodeError { what: "checksum does not match", at: body });
        }
        let mut reader = Reader::new(image.slice(..body));
        if reader.slice(4)?[..] != MAGIC[..] {
            return Err(DecodeError { what: "not an image", at: 0 });
        }
        if reader.u16()? != VERSION || reader.u16()? != 0 {
            let what = "an image of another version (this one reads version 3 only; run the version that wrote it)";
            return Err(DecodeError { what, at: 4 });
        }
        let count = reader.count(6)?;
        let mut parts: Vec<Part> = Vec::new();
        for _ in 0..count {
            let key_len = usize::from(reader.u8()?);
            let key = reader.slice(key_len)?;
            let len = reader.u32()? as usize;
            let bytes = reader.slice(len)?;
            if parts.last().is_some_and(|last| last.key >= key) {
                return Err(reader.error("parts are not in order"));
            }
            parts.push(Part { key, bytes });
        }
        let remembered_bytes = reader.u64()?;
        if remembered_bytes != reader.left() as u64 {
            return Err(reader.error("length of remembered sends does not match"));
        }
        let remembered = reader.slice(reader.left())?;
        Self::load_parts(parts, |_, _| Ok(remembered))
    }

    fn save_meta(&self, out: &mut BytesMut) {
        out.put_u64_le(self.now.0);
        out.put_u64_le(self.issued.0);
        out.put_u32_le(self.topics.next());
        out.put_u32_le(self.groups.next());
        out.put_u64_le(self.totals.sent);
        out.put_u64_le(self.totals.delivered);
        out.put_u64_le(self.totals.acked);
        out.put_u32_le(self.borders.len() as u32);
        for (border, crossed) in &self.borders {
            out.put_u64_le(border.0);
            out.put_u64_le(crossed.0);
        }
        self.dedup.save_head(out);
    }

    fn load_meta(bytes: Bytes) -> Result<(Self, Reader), DecodeError> {
        let mut reader = Reader::new(bytes);
        let mut machine = Self {
            now: Timestamp(reader.u64()?),
            issued: Serial(reader.u64()?),
            topics: Topics::with_next(reader.u32()?),
            groups: Groups::with_next(reader.u32()?),
            totals: Totals { sent: reader.u64()?, delivered: reader.u64()?, acked: reader.u64()? },
            borders: VecDeque::new(),
            dedup: Dedup::default(),
            delay: Delay::default(),
            transactions: Transactions::default(),
            redriven: Redriven::default(),
            deaths: Deaths::default(),
        };
        for _ in 0..reader.count(16)? {
            let (border, crossed) = (Position(reader.u64()?), Timestamp(reader.u64()?));
            let rises = machine.borders.back().is_none_or(|(last, before)| *last < border && *before <= crossed);
            if !rises || crossed > machine.now {
                return Err(reader.error("segment borders do not rise"));
            }
            machine.borders.push_back((border, crossed));
        }
        Ok((machine, reader))
    }

    fn load_part(&mut self, part: &Part) -> Result<(), DecodeError> {
        let mut reader = Reader::new(part.bytes.clone());
        match (part.key.first(), part.key.len()) {
            (Some(&TOPIC), 5) => self.topics.load(TopicId(number(&part.key[1..])), self.now, &mut reader)?,
            (Some(&GROUP), 5) => self.groups.load(GroupId(number(&part.key[1..])), self.now, &mut reader)?,
            (Some(&SUBSCRIPTION), 9) => {
                let (group, topic) = (GroupId(number(&part.key[1..5])), TopicId(number(&part.key[5..])));
                let topic = self.topics.by_id(topic).ok_or_else(|| reader.error("progress in an unknown topic"))?;
                self.groups.load_subscription(group, topic, self.issued, &mut reader)?;
            }
            (Some(&DELAY), 1) => self.delay.load_head(&mut reader)?,
            (Some(&DELAYED), 9) => self.delay.load_pending(long_number(&part.key[1..]), &mut reader)?,
            (Some(&TRANSACTIONS), 1) => self.transactions.load_head(&mut reader)?,
            (Some(&HALVES), 9) => self.transactions.load_halves(long_number(&part.key[1..]), &mut reader)?,
            (Some(&COMMITTED), 9) => self.transactions.load_committed(long_number(&part.key[1..]), &mut reader)?,
            (Some(&REDRIVEN), 5) => {
                let number = TopicId(number(&part.key[1..]));
                let topic =
                    self.topics.by_id(number).ok_or_else(|| reader.error("dead letters of an unknown topic"))?;
                self.redriven.load(number, |queue| topic.range(queue), &mut reader)?;
            }
            (Some(&DEATHS), 9) => {
                let (group, number) = (GroupId(number(&part.key[1..5])), TopicId(number(&part.key[5..])));
                let topic =
                    self.topics.by_id(number).ok_or_else(|| reader.error("dead letters from an unknown topic"))?;
                if self.groups.by_id(group).is_none() {
                    return Err(reader.error("dead letters of an unknown group"));
                }
                self.deaths.load((group, number), topic.queues(), &mut reader)?;
            }
            _ => return Err(reader.error("unknown part")),
        }
        reader.end()
    }
}

/// Bytes of one remembered send.
pub const REMEMBERED_BYTES: usize = ENTRY_BYTES;

#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    fn add(&mut self, key: &[u8], save: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        save(&mut out);
        self.0.push(Part { key: Bytes::copy_from_slice(key), bytes: out.freeze() });
    }
}

fn key(kind: u8, numbers: &[u32]) -> Vec<u8> {
    let mut key = vec![kind];
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

fn long_key(kind: u8, number: u64) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn long_number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("the key's length was checked"))
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("the key's length was checked"))
}

fn missing_meta() -> DecodeError {
    DecodeError { what: "no meta part", at: 0 }
}

/// Peeks at the numbers of remembered sends in the head.
fn remembered_range(head: &Reader) -> Result<(u64, u64), DecodeError> {
    let mut peek = head.clone();
    Ok((peek.u64()?, peek.u64()?))
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
