//! From an entry's index to its position: a table of offsets per segment.
//!
//! Tables of the segments being filled are in memory. When a segment is sealed its table goes to `data/index/<position>`,
//! and only the few last used ones stay in memory. An index file is a reading of its segment: it is not synced, and if it
//! is missing, torn or does not match what stands around it, the segment is walked instead. Little endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `QRIX` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | zero |
//! | 8 | 8 | first position of the segment |
//! | 16 | 8 | index of its first entry |
//! | 24 | 4 | number of entries, n |
//! | 28 | 4 | number of special entries, s |
//! | 32 | 4 | chain after its last entry |
//! | 36 | 4 × n | offset of each entry's frame in the segment |
//! | … | 8 × s | special entries (memberships and floors): number in this segment (4), kind (1), zero (3) |
//! | … | 4 | crc32c of everything before |

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    disk::Disk,
    log::frame::Kind,
    types::{LogIndex, Position},
};

const MAGIC: [u8; 4] = *b"QRIX";
const VERSION: u16 = 1;
const HEADER: usize = 36;
/// Tables of sealed segments kept in memory.
const LOADED_MAX: usize = 4;

/// Offsets of a segment's entries, and which of them are memberships or floors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub offsets: Vec<u32>,
    pub specials: Vec<(u32, Kind)>,
}

/// What a stored table must match to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub segment: Position,
    pub first: LogIndex,
    pub count: u32,
    pub last_chain: u32,
}

/// Where an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Absent,
    At(Position),
    /// Its segment's table is on disk: load it, [`Index::install`] it, and ask again.
    Unloaded(Wanted),
}

struct Slot {
    first: LogIndex,
    prev_chain: u32,
    table: Option<Arc<Table>>,
    stored: bool,
}

/// The tables of all segments. Owned by the log's state, under its lock; does no I/O.
#[derive(Default)]
pub(crate) struct Index {
    slots: BTreeMap<Position, Slot>,
    /// Stored tables in memory, the one to drop first in front.
    loaded: VecDeque<Position>,
}

impl Index {
    /// Notes the next entry. `prev_chain` is the chain before it.
    pub fn push(&mut self, segment: Position, index: LogIndex, position: Position, prev_chain: u32, kind: Kind) {
        let slot = self.slots.entry(segment).or_insert_with(|| Slot {
            first: index,
            prev_chain,
            table: Some(Arc::default()),
            stored: false,
        });
        let table = Arc::make_mut(slot.table.as_mut().expect("the segment being filled has its table in memory"));
        let number = u32::try_from(table.offsets.len()).expect("a segment of at most 4 GiB has fewer frames");
        table.offsets.push((position.0 - segment.0) as u32);
        if matches!(kind, Kind::Membership | Kind::Floor) {
            table.specials.push((number, kind));
        }
    }

    /// Notes a sealed segment found at start, whose table stays on disk.
    pub fn add_stored(&mut self, segment: Position, first: LogIndex, prev_chain: u32) {
        self.slots.insert(segment, Slot { first, prev_chain, table: None, stored: true });
    }

    pub fn lookup(&self, index: LogIndex) -> Lookup {
        let Some((segment, slot)) = self.holder(index) else { return Lookup::Absent };
        let number = (index.0 - slot.first.0) as usize;
        match &slot.table {
            Some(table) => table
                .offsets
                .get(number)
                .map_or(Lookup::Absent, |offset| Lookup::At(Position(segment.0 + u64::from(*offset)))),
            None => self.wanted(segment).map_or(Lookup::Absent, Lookup::Unloaded),
        }
    }

    /// First index in a segment and the chain before it.
    pub fn first_of(&self, segment: Position) -> Option<(LogIndex, u32)> {
        self.slots.get(&segment).map(|slot| (slot.first, slot.prev_chain))
    }

    /// The segment that begins with this entry, and the chain before it.
    pub fn segment_of_first(&self, index: LogIndex) -> Option<(Position, u32)> {
        let (segment, slot) = self.holder(index)?;
        (slot.first == index).then_some((segment, slot.prev_chain))
    }

    /// First index of all that is kept in files, purged or not.
    pub fn first(&self) -> Option<LogIndex> {
        self.slots.values().next().map(|slot| slot.first)
    }

    /// Takes a table that was loaded for `wanted`, unless things have changed since.
    pub fn install(&mut self, wanted: Wanted, table: Arc<Table>) {
        if self.wanted(wanted.segment) == Some(wanted)
            && let Some(slot) = self.slots.get_mut(&wanted.segment)
            && slot.table.is_none()
        {
            slot.table = Some(table);
            self.keep(wanted.segment);
        }
    }

    /// The table of a segment that another one follows, to be stored.
    pub fn sealed(&self, segment: Position) -> Option<(Wanted, Arc<Table>)> {
        Some((self.wanted(segment)?, self.slots.get(&segment)?.table.clone()?))
    }

    /// The table was stored, if it is still the same one; it may leave the memory now.
    pub fn mark_stored(&mut self, wanted: Wanted, table: &Arc<Table>) {
        if self.wanted(wanted.segment) == Some(wanted)
            && let Some(slot) = self.slots.get_mut(&wanted.segment)
            && slot.table.as_ref().is_some_and(|held| Arc::ptr_eq(held, table))
        {
            slot.stored = true;
            self.keep(wanted.segment);
        }
    }

    /// Drops entries above `last`. The table of the segment that holds `last` must be in memory.
    pub fn truncate_after(&mut self, last: Option<LogIndex>) {
        let Some(last) = last else { return self.clear() };
        self.slots.retain(|_, slot| slot.first <= last);
        let slots = &self.slots;
        self.loaded.retain(|segment| slots.contains_key(segment));
        if let Some((segment, slot)) = self.slots.iter_mut().next_back() {
            let keep = last.0 - slot.first.0 + 1;
            let table = Arc::make_mut(slot.table.as_mut().expect("the caller has loaded the table it truncates"));
            table.offsets.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            table.specials.retain(|(number, _)| u64::from(*number) < keep);
            slot.stored = false;
            self.loaded.retain(|loaded| loaded != segment);
        }
    }

    /// Drops the tables of segments below `segment`.
    pub fn drop_below(&mut self, segment: Position) {
        self.slots = self.slots.split_off(&segment);
        self.loaded.retain(|loaded| *loaded >= segment);
    }

    pub fn clear(&mut self) {
        self.slots.clear();
        self.loaded.clear();
    }

    fn holder(&self, index: LogIndex) -> Option<(Position, &Slot)> {
        // Few segments, sorted by position and so by index; the newest are asked for most.
        self.slots.iter().rev().find(|(_, slot)| slot.first <= index).map(|(segment, slot)| (*segment, slot))
    }

    /// What a sealed segment's table must match.
    pub fn wanted(&self, segment: Position) -> Option<Wanted> {
        let slot = self.slots.get(&segment)?;
        let next = self.slots.range(Position(segment.0 + 1)..).next()?.1;
        let count = u32::try_from(next.first.0.checked_sub(slot.first.0)?).ok()?;
        Some(Wanted { segment, first: slot.first, count, last_chain: next.prev_chain })
    }

    fn keep(&mut self, segment: Position) {
        self.loaded.push_back(segment);
        if self.loaded.len() > LOADED_MAX
            && let Some(oldest) = self.loaded.pop_front()
            && let Some(slot) = self.slots.get_mut(&oldest).filter(|slot| slot.stored)
        {
            slot.table = None;
        }
    }
}

/// Writes a table to its file. Not synced.
pub(crate) fn store(disk: &dyn Disk, path: &Path, wanted: Wanted, table: &Table) -> io::Result<()> {
    let bytes = encode(wanted, table);
    disk.remove(path)?;
    disk.open(path, true)?.write_at(0, &[bytes])
}

/// Reads a table from its file; `None` if there is none that matches.
pub(crate) fn load(disk: &dyn Disk, path: &Path, wanted: Wanted) -> io::Result<Option<Table>> {
    let file = match disk.open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.len()?;
    // No longer than a table of that many entries, all of them special.
    if len > HEADER as u64 + 12 * u64::from(wanted.count) + 4 {
        return Ok(None);
    }
    Ok(decode(&file.read_at(0, len as usize)?, wanted))
}

fn encode(wanted: Wanted, table: &Table) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + 4 * table.offsets.len() + 8 * table.specials.len() + 4);
    out.put_slice(&MAGIC);
    out.put_u16_le(VERSION);
    out.put_u16_le(0);
    out.put_u64_le(wanted.segment.0);
    out.put_u64_le(wanted.first.0);
    out.put_u32_le(table.offsets.len() as u32);
    out.put_u32_le(table.specials.len() as u32);
    out.put_u32_le(wanted.last_chain);
    table.offsets.iter().for_each(|offset| out.put_u32_le(*offset));
    for (number, kind) in &table.specials {
        out.put_u32_le(*number);
        out.put_u32_le(u32::from(*kind as u8));
    }
    let crc = crc32c::crc32c(&out);
    out.put_u32_le(crc);
    out.freeze()
}

fn decode(bytes: &[u8], wanted: Wanted) -> Option<Table> {
    let u32_at = |offset: usize| {
        bytes.get(offset..offset + 4).map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")))
    };
    let (specials, n) = (u32_at(28)? as usize, wanted.count as usize);
    let end = HEADER.checked_add(n.checked_mul(4)?)?.checked_add(specials.checked_mul(8)?)?;
    if bytes.len() != end + 4 || crc32c::crc32c(&bytes[..end]) != u32_at(end)? {
        return None;
    }
    let empty = Table { offsets: vec![], specials: vec![] };
    let mut expected = encode(wanted, &empty)[..HEADER].to_vec();
    expected[24..28].copy_from_slice(&wanted.count.to_le_bytes());
    expected[28..32].copy_from_slice(&(specials as u32).to_le_bytes());
    if bytes[..HEADER] != expected {
        return None;
    }
    let offsets = (0..n).map(|number| u32_at(HEADER + 4 * number)).collect::<Option<Vec<_>>>()?;
    let special = |number: usize| {
        let at = HEADER + 4 * n + 8 * number;
        let kind = match u32_at(at + 4)? {
            2 => Kind::Membership,
            3 => Kind::Floor,
            _ => return None,
        };
        Some((u32_at(at)?, kind))
    };
    Some(Table { offsets, specials: (0..specials).map(special).collect::<Option<Vec<_>>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1000;

    /// Segments of three entries each.
    fn index(segments: u64) -> Index {
        let mut index = Index::default();
        for segment in 0..segments {
            for number in 0..3 {
                let kind = if number == 1 { Kind::Floor } else { Kind::Normal };
                let (at, entry) = (Position(segment * S), segment * 3 + number);
                index.push(at, LogIndex(entry), Position(at.0 + number * 100), entry as u32, kind);
            }
        }
        index
    }

    #[test]
    fn an_entry_is_found_in_memory_or_its_table_is_asked_for() {
        let mut index = index(10);
        assert_eq!(index.lookup(LogIndex(4)), Lookup::At(Position(1100)));
        assert_eq!(index.lookup(LogIndex(30)), Lookup::Absent);
        for segment in 0..9 {
            let (wanted, table) = index.sealed(Position(segment * S)).unwrap();
            index.mark_stored(wanted, &table);
        }
        let wanted = Wanted { segment: Position(1000), first: LogIndex(3), count: 3, last_chain: 6 };
        assert_eq!(index.lookup(LogIndex(4)), Lookup::Unloaded(wanted));
        index.install(wanted, Arc::new(Table { offsets: vec![0, 100, 200], specials: vec![] }));
        assert_eq!(index.lookup(LogIndex(4)), Lookup::At(Position(1100)));
        assert!(index.sealed(Position(9000)).is_none(), "the last segment is not sealed");
    }

    #[test]
    fn truncation_drops_what_is_above() {
        let mut index = index(4);
        index.truncate_after(Some(LogIndex(6)));
        assert_eq!(index.lookup(LogIndex(7)), Lookup::Absent);
        assert_eq!(index.lookup(LogIndex(6)), Lookup::At(Position(2000)));
        index.truncate_after(None);
        assert_eq!(index.first(), None);
    }

    #[test]
    fn a_stored_table_that_does_not_match_is_not_believed() {
        let wanted = Wanted { segment: Position(1000), first: LogIndex(3), count: 2, last_chain: 6 };
        let table = Table { offsets: vec![0, 100], specials: vec![(1, Kind::Membership)] };
        let good = encode(wanted, &table);
        assert_eq!(decode(&good, wanted), Some(table));
        for byte in 0..good.len() {
            let mut bad = good.to_vec();
            bad[byte] ^= 1;
            assert_eq!(decode(&bad, wanted), None, "byte {byte}");
            assert_eq!(decode(&good[..byte], wanted), None);
        }
        for other in [
            Wanted { segment: Position(0), ..wanted },
            Wanted { first: LogIndex(2), ..wanted },
            Wanted { count: 3, ..wanted },
            Wanted { last_chain: 7, ..wanted },
        ] {
            assert_eq!(decode(&good, other), None);
        }
    }
}
