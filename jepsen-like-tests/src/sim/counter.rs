//! The first machine of the simulation: a set of numbers, each added once, and the order they came in.
//!
//! It is small enough to be obviously right, and it forgets nothing that matters: which numbers it holds, a hash over their order and
//! positions, and how often a number came twice or an entry was not what a client had sent. Every entry's filler is a
//! function of its number, so damage to a body cannot pass. Its checkpoint exercises LAW-ORDER: it is written only up to
//! what this node has synced, and it survives a power cut only if it was.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_raft::{
    CommittedEntry, Disk, ImagePoint, LogId, LogIndex, MachineError, NodeId, Position, StateMachine, Term,
};

use super::{dice::mix, world::Opening};

/// One number of one client. No two requests of a run have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    /// Who adds it.
    pub client: u32,
    /// Its number among the client's.
    pub number: u64,
}

/// Bytes of a value in front of its filler.
const VALUE_BYTES: usize = 12;

impl Value {
    /// The entry that adds this value: the value, then `filler` bytes that follow from it.
    pub fn entry(self, filler: usize) -> Bytes {
        let mut out = BytesMut::with_capacity(VALUE_BYTES + filler + 8);
        out.put_u32_le(self.client);
        out.put_u64_le(self.number);
        let mut word = mix(self.number ^ u64::from(self.client) << 48);
        while out.len() < VALUE_BYTES + filler {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            out.put_u64_le(word);
        }
        out.truncate(VALUE_BYTES + filler);
        out.freeze()
    }

    /// The value of an entry, if every byte of it is as [`Value::entry`] made it.
    pub fn of(entry: &Bytes) -> Option<Self> {
        let mut head = entry.get(..VALUE_BYTES)?;
        let value = Self { client: head.get_u32_le(), number: head.get_u64_le() };
        (value.entry(entry.len() - VALUE_BYTES) == *entry).then_some(value)
    }
}

/// What the machine knows: equal on all nodes that executed the same entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    count: u64,
    order: u64,
    repeats: u64,
    strangers: u64,
    floor: Position,
    /// Per client the numbers it added, as runs: first → last.
    runs: BTreeMap<u32, BTreeMap<u64, u64>>,
}

impl Numbers {
    /// Whether this value was added.
    pub fn contains(&self, value: Value) -> bool {
        let runs = self.runs.get(&value.client);
        let run = runs.and_then(|runs| runs.range(..=value.number).next_back());
        run.is_some_and(|(_, last)| *last >= value.number)
    }

    /// How many values were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Values that came twice, and entries that no client had sent.
    pub fn wrong(&self) -> (u64, u64) {
        (self.repeats, self.strangers)
    }

    fn add(&mut self, entry: &CommittedEntry) {
        self.order = mix(self.order ^ mix(entry.id.index.0) ^ entry.position.0.rotate_left(32));
        self.order = mix(self.order ^ u64::from(crc32c::crc32c(&entry.payload)));
        match Value::of(&entry.payload) {
            None => self.strangers += 1,
            Some(value) if self.contains(value) => self.repeats += 1,
            Some(value) => self.insert(value),
        }
    }

    fn insert(&mut self, value: Value) {
        self.count += 1;
        let runs = self.runs.entry(value.client).or_default();
        let last = runs.remove(&(value.number + 1)).unwrap_or(value.number);
        let before = runs.range_mut(..value.number).next_back();
        match before {
            Some((_, end)) if *end + 1 == value.number => *end = last,
            _ => {
                runs.insert(value.number, last);
            }
        }
    }

    /// The state as bytes, little endian: count, order, repeats, strangers, floor (8 each), then per client its id (4),
    /// the number of its runs (4) and the runs (8 + 8).
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        for number in [self.count, self.order, self.repeats, self.strangers, self.floor.0] {
            out.put_u64_le(number);
        }
        for (client, runs) in &self.runs {
            out.put_u32_le(*client);
            out.put_u32_le(runs.len() as u32);
            for (first, last) in runs {
                out.put_u64_le(*first);
                out.put_u64_le(*last);
            }
        }
        out.freeze()
    }

    /// The state of such bytes; `None` if they are cut short.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut numbers = Self {
            count: bytes.try_get_u64_le().ok()?,
            order: bytes.try_get_u64_le().ok()?,
            repeats: bytes.try_get_u64_le().ok()?,
            strangers: bytes.try_get_u64_le().ok()?,
            floor: Position(bytes.try_get_u64_le().ok()?),
            runs: BTreeMap::new(),
        };
        while !bytes.is_empty() {
            let client = bytes.try_get_u32_le().ok()?;
            let runs = numbers.runs.entry(client).or_default();
            for _ in 0..bytes.try_get_u32_le().ok()? {
                runs.insert(bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
            }
        }
        Some(numbers)
    }
}

/// What a node's server reads of its machine.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    applied: Option<LogId>,
    numbers: Numbers,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state now.
    pub fn numbers(&self) -> Numbers {
        self.lock().numbers.clone()
    }

    /// The last executed entry that added a number.
    pub fn applied(&self) -> Option<LogIndex> {
        self.lock().applied.map(|id| id.index)
    }
}

/// The machine of one node.
pub struct Counter {
    shared: Shared,
    checkpoint: Checkpoint,
    /// End of the last executed payload.
    end: Position,
    /// Entries executed since the last checkpoint.
    fresh: u32,
}

impl Counter {
    /// The machine of a node that starts, as of its checkpoint if there is one.
    pub fn open(opening: Opening) -> (Self, Shared) {
        let checkpoint = Checkpoint { disk: opening.disk, dir: opening.dir.join("machine") };
        let (applied, numbers) =
            checkpoint.load().map_or((None, Numbers::default()), |(id, numbers)| (Some(id), numbers));
        let shared = Shared(Arc::new(Mutex::new(State { applied, numbers })));
        (Self { shared: shared.clone(), checkpoint, end: Position(0), fresh: 0 }, shared)
    }
}

/// Entries between two checkpoints.
const CHECKPOINT_EVERY: u32 = 100;

impl StateMachine for Counter {
    type Reply = LogIndex;

    fn applied(&self) -> Option<LogId> {
        self.shared.lock().applied
    }

    fn apply(&mut self, entry: CommittedEntry) -> LogIndex {
        let mut state = self.shared.lock();
        state.numbers.add(&entry);
        state.applied = Some(entry.id);
        self.end = Position(entry.position.0 + entry.payload.len() as u64);
        self.fresh += 1;
        entry.id.index
    }

    fn settle(&mut self, synced: Position) {
        if self.fresh < CHECKPOINT_EVERY || self.end > synced {
            return;
        }
        let state = self.shared.lock().clone();
        if let Some(applied) = state.applied {
            self.checkpoint.save(applied, &state.numbers);
            self.fresh = 0;
        }
    }

    fn save_image(&mut self, _border: Position) -> Bytes {
        self.shared.lock().numbers.encode()
    }

    fn load_image(&mut self, at: ImagePoint, image: &[u8]) -> Result<(), MachineError> {
        let numbers =
            if at.applied.is_none() && image.is_empty() { Some(Numbers::default()) } else { Numbers::decode(image) };
        let numbers = numbers.ok_or_else(|| MachineError { border: at.border, reason: "cut short".into() })?;
        *self.shared.lock() = State { applied: at.applied, numbers };
        self.end = at.border;
        self.fresh = CHECKPOINT_EVERY;
        Ok(())
    }

    fn floor(&mut self, floor: Position) {
        self.shared.lock().numbers.floor = floor;
    }
}

/// The machine's own file: crc32c (4), term, node, index (8 each), the numbers. Replaced by a rename.
struct Checkpoint {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Checkpoint {
    fn path(&self, name: &str) -> PathBuf {
        self.disk.join(&self.dir, name)
    }

    /// Replaces the file. A disk that fails ends the process in the product; here the node is dying anyway.
    fn save(&self, applied: LogId, numbers: &Numbers) {
        let mut body = BytesMut::new();
        for number in [applied.term.0, applied.node.0, applied.index.0] {
            body.put_u64_le(number);
        }
        body.extend_from_slice(&numbers.encode());
        let crc = Bytes::copy_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        let replace = || {
            self.disk.create_dir(&self.dir)?;
            let new = self.path("checkpoint.new");
            self.disk.remove(&new)?;
            let file = self.disk.open(&new, true)?;
            file.write_at(0, &[crc, body.freeze()])?;
            file.sync()?;
            self.disk.rename(&new, &self.path("checkpoint"))?;
            self.disk.sync_dir(&self.dir)
        };
        let _: std::io::Result<()> = replace();
    }

    fn load(&self) -> Option<(LogId, Numbers)> {
        let file = self.disk.open(&self.path("checkpoint"), false).ok()?;
        let mut bytes = file.read_at(0, file.len().ok()? as usize).ok()?;
        let crc = bytes.try_get_u32_le().ok()?;
        if crc32c::crc32c(&bytes) != crc {
            return None;
        }
        let term = Term(bytes.try_get_u64_le().ok()?);
        let node = NodeId(bytes.try_get_u64_le().ok()?);
        let index = LogIndex(bytes.try_get_u64_le().ok()?);
        Some((LogId { term, node, index }, Numbers::decode(&bytes)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, value: Value) -> CommittedEntry {
        let id = LogId { index: LogIndex(index), ..LogId::default() };
        CommittedEntry { id, position: Position(index * 100), payload: value.entry(20) }
    }

    #[test]
    fn a_damaged_entry_is_a_stranger() {
        let value = Value { client: 3, number: 9 };
        let mut bytes = value.entry(30).to_vec();
        assert_eq!(Value::of(&Bytes::from(bytes.clone())), Some(value));
        bytes[40] ^= 1;
        assert_eq!(Value::of(&Bytes::from(bytes)), None);
        assert_eq!(Value::of(&Bytes::from_static(b"short")), None);
    }

    #[test]
    fn numbers_added_in_any_order_become_one_run() {
        let mut numbers = Numbers::default();
        for (index, number) in [4, 0, 2, 1, 3, 7].into_iter().enumerate() {
            numbers.add(&entry(index as u64, Value { client: 1, number }));
        }
        assert_eq!(numbers.runs[&1], BTreeMap::from([(0, 4), (7, 7)]));
        assert!(numbers.contains(Value { client: 1, number: 3 }));
        assert!(!numbers.contains(Value { client: 1, number: 5 }));
        assert!(!numbers.contains(Value { client: 2, number: 0 }));
        assert_eq!(numbers.count(), 6);
    }

    #[test]
    fn a_repeated_number_is_counted_and_the_state_survives_its_bytes() {
        let mut numbers = Numbers::default();
        numbers.add(&entry(1, Value { client: 1, number: 5 }));
        numbers.add(&entry(2, Value { client: 1, number: 5 }));
        assert_eq!(numbers.wrong(), (1, 0));
        let bytes = numbers.encode();
        assert_eq!(Numbers::decode(&bytes), Some(numbers));
        assert_eq!(Numbers::decode(&bytes[..bytes.len() - 1]), None);
    }
}
