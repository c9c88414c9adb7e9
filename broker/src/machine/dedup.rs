//! Repeated sends: the last minute of log time, so that a retry gets the first answer instead of a second copy.
//!
//! A send is the same send if (topic, client id, message id) and the body are the same. The three texts come as one
//! 128-bit digest ([`SendKey`]): 10^6 keys in the window and 10^12 windows leave a chance of 10^-15 that two different
//! sends ever share one, and then their bodies' crc32c would have to agree as well. The digest is MD5, so somebody who may
//! choose both ids can make two of *his own* sends collide; hitting a key that somebody else is going to use stays out of
//! reach. The same key with another body is another message (containers share MAC addresses and process ids, so ids of two
//! producers can coincide); it is stored, remembered beside the first, and counted.
//!
//! ```text
//!   first ──▶ [entry][entry][entry] … [entry] ◀── first + len        numbered for ever, in log order
//!   newest: low half of the key ──▶ number of its newest entry ──previous──▶ older entry with the same low half
//! ```
//! Entries leave at the front: when their stamp is [`WINDOW_MS`] old by log time, or when there are more than
//! [`ENTRIES_MAX`]. Both depend on the log alone (LAW-SAME). The map is only looked up, never iterated.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use bytes::{BufMut, BytesMut};
use md5::{Digest, Md5};
use quorate_proto::time::Timestamp;

use super::{
    codec::{DecodeError, Reader},
    ids::{QueueId, QueueOffset, TopicId},
};

/// How long a send is remembered, in log time.
pub const WINDOW_MS: u64 = 60_000;

/// Most sends remembered; older ones are forgotten early. About 80 MiB of memory and 40 MiB of image.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Bytes of a remembered send on disk.
pub const ENTRY_BYTES: usize = 16 + 4 + 2 + 2 + 8 + 8;

/// Memory of one entry with its place in the map, about.
const ENTRY_MEMORY_BYTES: u64 = 80;

/// What a repeated send is recognised by: a 128-bit digest of (topic, client id, message id).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SendKey(pub u128);

impl SendKey {
    /// Digests what the client said about itself and its message.
    pub fn new(topic: TopicId, client_id: &str, message_id: &str) -> Self {
        let mut digest = Md5::new();
        digest.update(topic.0.to_le_bytes());
        digest.update((client_id.len() as u64).to_le_bytes());
        digest.update(client_id);
        digest.update(message_id);
        Self(u128::from_le_bytes(digest.finalize().into()))
    }

    fn low(self) -> u64 {
        self.0 as u64
    }
}

/// How much the window of repeats covers now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DedupStats {
    /// Sends remembered.
    pub entries: u64,
    /// Bytes of memory they take, about.
    pub bytes: u64,
    /// Age of the oldest one in log time.
    pub window_ms: u64,
    /// Repeats answered with the first result, ever.
    pub duplicates: u64,
    /// Sends whose key was known with another body, ever: stored as new messages.
    pub collisions: u64,
}

/// Where the first send of a key went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Into a queue.
    Queue {
        /// The queue.
        queue: QueueId,
        /// The offset.
        offset: QueueOffset,
    },
    /// Among the delayed messages.
    Delayed {
        /// Its number there.
        number: u64,
    },
    /// Among the half messages.
    Half {
        /// Its number there.
        number: u64,
    },
}

// Kinds of places on disk.
const IN_QUEUE: u16 = 0;
const DELAYED: u16 = 1;
const HALF: u16 = 2;

impl Place {
    /// Queue, kind, and offset or number.
    fn to_parts(self) -> (u16, u16, u64) {
        match self {
            Self::Queue { queue, offset } => (queue.0, IN_QUEUE, offset.0),
            Self::Delayed { number } => (0, DELAYED, number),
            Self::Half { number } => (0, HALF, number),
        }
    }

    fn from_parts(queue: u16, kind: u16, number: u64) -> Option<Self> {
        match (kind, queue) {
            (IN_QUEUE, queue) => Some(Self::Queue { queue: QueueId(queue), offset: QueueOffset(number) }),
            (DELAYED, 0) => Some(Self::Delayed { number }),
            (HALF, 0) => Some(Self::Half { number }),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: [u64; 2],
    body_crc: u32,
    /// [`Place::to_parts`], which takes half of the enum's room.
    queue: u16,
    kind: u16,
    number: u64,
    at: Timestamp,
    /// Number of the next older entry whose key has the same low half, or [`NONE`].
    previous: u64,
}

const NONE: u64 = u64::MAX;

/// A key is a digest already: its low half is the hash.
#[derive(Clone, Copy, Default)]
struct Digested(u64);

impl Hasher for Digested {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `write_u64` is ever called; a sum keeps the trait's promise for anything else.
        self.0 = bytes.iter().fold(self.0, |sum, byte| sum.wrapping_mul(257).wrapping_add(u64::from(*byte)));
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }
}

/// The sends of the last minute.
#[derive(Clone, Default)]
pub(crate) struct Dedup {
    /// Number of the entry at the front.
    first: u64,
    entries: VecDeque<Entry>,
    newest: HashMap<u64, u64, BuildHasherDefault<Digested>>,
    duplicates: u64,
    collisions: u64,
}

impl Dedup {
    /// Where a send of this key and body was stored, if it is remembered. Counts the repeat, or the collision.
    pub(crate) fn check(&mut self, key: SendKey, body_crc: u32) -> Option<Place> {
        let mut number = self.newest.get(&key.low()).copied().unwrap_or(NONE);
        let mut same_key = false;
        while let Some(entry) = self.entry(number) {
            if entry.key == halves(key) {
                if entry.body_crc == body_crc {
                    let place = Place::from_parts(entry.queue, entry.kind, entry.number);
                    self.duplicates += 1;
                    return Some(place.expect("only whole places are remembered"));
                }
                same_key = true;
            }
            number = entry.previous;
        }
        self.collisions += u64::from(same_key);
        None
    }

    /// Remembers where a send went; the oldest is forgotten if there are too many.
    pub(crate) fn remember(&mut self, key: SendKey, body_crc: u32, place: Place, now: Timestamp) {
        let previous = self.newest.insert(key.low(), self.end()).unwrap_or(NONE);
        let (queue, kind, number) = place.to_parts();
        self.entries.push_back(Entry { key: halves(key), body_crc, queue, kind, number, at: now, previous });
        if self.entries.len() > ENTRIES_MAX {
            self.forget_oldest();
        }
    }

    /// Forgets what is older than the window.
    pub(crate) fn evict(&mut self, now: Timestamp) {
        while self.entries.front().is_some_and(|entry| entry.at.0.saturating_add(WINDOW_MS) <= now.0) {
            self.forget_oldest();
        }
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.entries.len() * 2);
            self.newest.shrink_to(self.entries.len() * 2);
        }
    }

    fn forget_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        if self.newest.get(&entry.key[0]) == Some(&self.first) {
            self.newest.remove(&entry.key[0]);
        }
        self.first += 1;
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        let index = number.checked_sub(self.first)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Number of the oldest entry.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Number that the next entry will have.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub(crate) fn stats(&self, now: Timestamp) -> DedupStats {
        DedupStats {
            entries: self.entries.len() as u64,
            bytes: self.entries.len() as u64 * ENTRY_MEMORY_BYTES,
            window_ms: self.entries.front().map_or(0, |entry| now.0.saturating_sub(entry.at.0)),
            duplicates: self.duplicates,
            collisions: self.collisions,
        }
    }

    /// Writes what stands beside the entries.
    pub(crate) fn save_head(&self, out: &mut BytesMut) {
        out.put_u64_le(self.first);
        out.put_u64_le(self.end());
        out.put_u64_le(self.duplicates);
        out.put_u64_le(self.collisions);
    }

    /// Writes the entries with numbers from `from` on, [`ENTRY_BYTES`] each; numbers already forgotten are left out.
    pub(crate) fn save_entries(&self, from: u64, out: &mut BytesMut) {
        let skip = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.entries.len());
        out.reserve((self.entries.len() - skip) * ENTRY_BYTES);
        for entry in self.entries.range(skip..) {
            out.put_u64_le(entry.key[0]);
            out.put_u64_le(entry.key[1]);
            out.put_u32_le(entry.body_crc);
            out.put_u16_le(entry.queue);
            out.put_u16_le(entry.kind);
            out.put_u64_le(entry.number);
            out.put_u64_le(entry.at.0);
        }
    }

    /// Reads both back. Entries must be as many as the head says, in the order of their stamps, none later than `now`.
    pub(crate) fn load(head: &mut Reader, entries: &mut Reader, now: Timestamp) -> Result<Self, DecodeError> {
        let (first, end) = (head.u64()?, head.u64()?);
        let (duplicates, collisions) = (head.u64()?, head.u64()?);
        let mut dedup = Self { first, duplicates, collisions, ..Self::default() };
        let count = end.checked_sub(first).ok_or_else(|| head.error("remembered sends end before they begin"))?;
        if count > ENTRIES_MAX as u64 || count.checked_mul(ENTRY_BYTES as u64) != Some(entries.left() as u64) {
            return Err(entries.error("not as many remembered sends as stated"));
        }
        let mut last = Timestamp(0);
        for _ in 0..count {
            let key = SendKey(entries.u128()?);
            let body_crc = entries.u32()?;
            let place = Place::from_parts(entries.u16()?, entries.u16()?, entries.u64()?);
            let place = place.ok_or_else(|| entries.error("a remembered send went to no known place"))?;
            let at = Timestamp(entries.u64()?);
            if at < last || at > now {
                return Err(entries.error("remembered sends are not in the order of their stamps"));
            }
            last = at;
            dedup.remember(key, body_crc, place, at);
        }
        Ok(dedup)
    }
}

fn halves(key: SendKey) -> [u64; 2] {
    [key.low(), (key.0 >> 64) as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u64) -> Place {
        Place::Queue { queue: QueueId(1), offset: QueueOffset(offset) }
    }

    #[test]
    fn ids_cannot_be_shifted_between_client_and_message() {
        assert_ne!(SendKey::new(TopicId(1), "ab", "c"), SendKey::new(TopicId(1), "a", "bc"));
        assert_ne!(SendKey::new(TopicId(1), "ab", "c"), SendKey::new(TopicId(2), "ab", "c"));
    }

    #[test]
    fn the_same_key_with_another_body_is_remembered_beside_the_first() {
        let mut dedup = Dedup::default();
        let key = SendKey(9);
        for body in 0..3 {
            assert_eq!(dedup.check(key, body), None);
            dedup.remember(key, body, place(u64::from(body)), Timestamp(0));
        }
        for body in 0..3 {
            assert_eq!(dedup.check(key, body), Some(place(u64::from(body))));
        }
        assert_eq!((dedup.duplicates, dedup.collisions), (3, 2));
    }

    #[test]
    fn keys_that_share_their_low_half_are_told_apart() {
        let mut dedup = Dedup::default();
        let (a, b) = (SendKey(7), SendKey(1 << 64 | 7));
        dedup.remember(a, 5, place(1), Timestamp(0));
        assert_eq!(dedup.check(b, 5), None);
        dedup.remember(b, 5, place(2), Timestamp(0));
        assert_eq!((dedup.check(a, 5), dedup.check(b, 5)), (Some(place(1)), Some(place(2))));
        assert_eq!(dedup.collisions, 0);
    }

    #[test]
    fn a_send_is_forgotten_when_it_is_a_minute_old() {
        let mut dedup = Dedup::default();
        dedup.remember(SendKey(1), 0, place(1), Timestamp(1_000));
        dedup.evict(Timestamp(60_999));
        assert_eq!(dedup.check(SendKey(1), 0), Some(place(1)));
        dedup.evict(Timestamp(61_000));
        assert_eq!(dedup.check(SendKey(1), 0), None);
        assert!(dedup.newest.is_empty());
    }

    #[test]
    fn the_number_of_remembered_sends_is_bounded_and_the_oldest_go_first() {
        let mut dedup = Dedup::default();
        for number in 0..ENTRIES_MAX as u64 + 10 {
            dedup.remember(SendKey(u128::from(number)), 0, place(number), Timestamp(0));
        }
        assert_eq!((dedup.entries.len(), dedup.newest.len()), (ENTRIES_MAX, ENTRIES_MAX));
        assert_eq!(dedup.check(SendKey(9), 0), None);
        assert_eq!(dedup.check(SendKey(10), 0), Some(place(10)));
    }

    #[test]
    fn what_was_saved_answers_like_before() {
        let mut dedup = Dedup::default();
        for number in 0..10u64 {
            dedup.remember(SendKey(u128::from(number % 4)), number as u32, place(number), Timestamp(number * 10_000));
        }
        dedup.evict(Timestamp(80_000));
        let (mut head, mut entries) = (BytesMut::new(), BytesMut::new());
        dedup.save_head(&mut head);
        dedup.save_entries(0, &mut entries);
        let now = Timestamp(90_000);
        let load = |head: &BytesMut, entries: &BytesMut| {
            Dedup::load(&mut Reader::new(head.clone().freeze()), &mut Reader::new(entries.clone().freeze()), now)
        };
        let mut loaded = load(&head, &entries).expect("sound bytes");
        for number in 0..10u64 {
            let (key, body) = (SendKey(u128::from(number % 4)), number as u32);
            assert_eq!(loaded.check(key, body), dedup.check(key, body), "{number}");
        }
        assert!(load(&head, &BytesMut::from(&entries[1..])).is_err());
        let mut swapped = entries.clone();
        swapped[ENTRY_BYTES - 8..ENTRY_BYTES].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(load(&head, &swapped).is_err());
    }
}
