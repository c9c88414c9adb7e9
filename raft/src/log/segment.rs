//! Segment files: where a position lives, and the open files behind it.
//!
//! The log is cut into files of `segment_bytes`, each named by its first position in 20 digits. A frame never straddles
//! two of them: what does not fit leaves a filler (or nothing, if not even a header fits) and starts the next segment.
//! So a position is a pure function of the log's content. Files get their full length when they are made and keep it
//! while they live: one that is shorter was damaged. They go by `unlink` alone.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{
    disk::{Disk, DiskFile},
    log::{frame::HEADER_BYTES, scan::Source},
    types::Position,
};

const CHUNK: usize = 1 << 20;

/// Arithmetic of segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Borders {
    pub segment_bytes: u64,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub position: Position,
    /// A filler goes here first.
    pub filler: Option<Position>,
}

impl Borders {
    /// Largest border ≤ `position`: the segment that holds the byte at `position`.
    pub fn below(&self, position: Position) -> Position {
        Position(position.0 - position.0 % self.segment_bytes)
    }

    /// End of the segment that holds the byte at `position`.
    pub fn after(&self, position: Position) -> Position {
        Position(self.below(position).0 + self.segment_bytes)
    }

    /// Where a frame of `len` bytes goes in a log that ends at `end`. `len` is at most a segment.
    pub fn place(&self, end: Position, len: u64) -> Placement {
        let border = self.after(end);
        if end.0 + len <= border.0 {
            return Placement { position: end, filler: None };
        }
        let filler = (end.0 + HEADER_BYTES as u64 <= border.0).then_some(end);
        Placement { position: border, filler }
    }
}

/// The segment files of a log and their index files. Opened when first needed; shared by the writer and all readers.
pub(crate) struct Segments {
    pub borders: Borders,
    disk: Arc<dyn Disk>,
    log_dir: PathBuf,
    index_dir: PathBuf,
    open: Mutex<BTreeMap<Position, Arc<dyn DiskFile>>>,
}

impl Segments {
    pub fn new(disk: Arc<dyn Disk>, data_dir: &Path, segment_bytes: u64) -> Self {
        let (log_dir, index_dir) = (disk.join(data_dir, "log"), disk.join(data_dir, "index"));
        Self { borders: Borders { segment_bytes }, disk, log_dir, index_dir, open: Mutex::default() }
    }

    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// First positions of the segment files on disk, in order. Files with other names are none of ours.
    pub fn list(&self) -> io::Result<Vec<Position>> {
        let names = self.disk.list(&self.log_dir)?;
        let mut found: Vec<_> = names
            .iter()
            .filter_map(|name| parse(name))
            .filter(|position| self.borders.below(*position) == *position)
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    pub fn path(&self, segment: Position) -> PathBuf {
        self.disk.join(&self.log_dir, &name(segment))
    }

    pub fn index_path(&self, segment: Position) -> PathBuf {
        self.disk.join(&self.index_dir, &name(segment))
    }

    /// The file of a segment. `NotFound` if there is none (any more).
    pub fn file(&self, segment: Position) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.lock();
        if let Some(file) = open.get(&segment) {
            return Ok(file.clone());
        }
        let file = self.disk.open(&self.path(segment), false)?;
        open.insert(segment, file.clone());
        Ok(file)
    }

    /// Makes an empty segment of full length. To be relied on after the file and [`sync_dir`](Self::sync_dir) are synced.
    pub fn create(&self, segment: Position) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.lock();
        let path = self.path(segment);
        // A file by that name is the leftover of a truncation: old bytes must not come back inside a new segment.
        self.disk.remove(&path)?;
        let file = self.disk.open(&path, true)?;
        file.set_len(self.borders.segment_bytes)?;
        open.insert(segment, file.clone());
        Ok(file)
    }

    /// Unlinks a segment and its index. Readers that hold the file keep it until they drop it.
    pub fn remove(&self, segment: Position) -> io::Result<()> {
        let mut open = self.lock();
        open.remove(&segment);
        self.disk.remove(&self.index_path(segment))?;
        self.disk.remove(&self.path(segment))
    }

    pub fn remove_index(&self, segment: Position) -> io::Result<()> {
        self.disk.remove(&self.index_path(segment))
    }

    /// Makes creations and removals durable.
    pub fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.log_dir)?;
        self.disk.sync_dir(&self.index_dir)
    }

    /// The bytes of a segment for a scan.
    pub fn source(&self, segment: Position) -> io::Result<SegmentSource> {
        let file = self.file(segment)?;
        let len = file.len()?;
        Ok(SegmentSource { file, segment, len, chunk: Bytes::new(), chunk_at: segment.0 })
    }

    // A panic of another thread cannot leave this map half changed.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Position, Arc<dyn DiskFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a segment file in chunks of 1 MiB.
pub(crate) struct SegmentSource {
    file: Arc<dyn DiskFile>,
    segment: Position,
    len: u64,
    chunk: Bytes,
    chunk_at: u64,
}

impl SegmentSource {
    /// Bytes that the file has.
    pub fn len(&self) -> u64 {
        self.len
    }
}

impl Source for SegmentSource {
    fn bytes(&mut self, position: u64, len: usize) -> io::Result<Bytes> {
        let end = self.segment.0 + self.len;
        let len = end.saturating_sub(position).min(len as u64) as usize;
        if position < self.segment.0 || len == 0 {
            return Ok(Bytes::new());
        }
        if len > CHUNK {
            return self.file.read_at(position - self.segment.0, len);
        }
        if position < self.chunk_at || position + len as u64 > self.chunk_at + self.chunk.len() as u64 {
            let wanted = (end - position).min(CHUNK as u64) as usize;
            self.chunk = self.file.read_at(position - self.segment.0, wanted)?;
            self.chunk_at = position;
        }
        let start = (position - self.chunk_at) as usize;
        Ok(self.chunk.slice(start..start + len))
    }
}

/// A file name for a position.
pub(crate) fn name(position: Position) -> String {
    format!("{:020}", position.0)
}

/// The position a file is named by.
pub(crate) fn parse(name: &str) -> Option<Position> {
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok().map(Position)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_never_straddles_a_border() {
        let borders = Borders { segment_bytes: 1000 };
        let at =
            |position, filler: Option<u64>| Placement { position: Position(position), filler: filler.map(Position) };
        assert_eq!(borders.place(Position(0), 1000), at(0, None));
        assert_eq!(borders.place(Position(1000), 1000), at(1000, None));
        assert_eq!(borders.place(Position(100), 900), at(100, None));
        assert_eq!(borders.place(Position(100), 901), at(1000, Some(100)));
        assert_eq!(borders.place(Position(928), 80), at(1000, Some(928)));
        assert_eq!(borders.place(Position(929), 80), at(1000, None), "not even a filler fits");
    }

    #[test]
    fn names_are_positions() {
        assert_eq!(name(Position(1 << 30)), "00000000001073741824");
        assert_eq!(parse("00000000001073741824"), Some(Position(1 << 30)));
        for other in ["1073741824", "0000000000107374182x", "99999999999999999999", "000000000010737418240"] {
            assert_eq!(parse(other), None);
        }
    }
}
