//! A lane: records of one size, numbered without end, in files of so many records each.
//!
//! ```text
//!   <dir>/00000000000000000000   records 0 … per_file - 1
//!   <dir>/00000000000000300000   records per_file …          record n stands at (n mod per_file) × record size
//! ```
//! Holes are zeros or missing files: numbers that this node never wrote. A lane is only arithmetic and names; who owns it knows where it
//! begins and ends, since the files may hold more at both ends.

use std::{io, ops::Range, path::PathBuf};

use bytes::Bytes;

use super::files::OpenFiles;

/// Names and arithmetic of one lane.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    /// Directories up to here exist before the first record.
    pub(crate) root: PathBuf,
    /// Where the files stand.
    pub(crate) dir: PathBuf,
    /// Size of a record.
    pub(crate) record_bytes: u64,
    /// Records per file.
    pub(crate) per_file: u64,
}

impl Lane {
    /// Writes records with numbers from `from` on.
    pub(crate) fn write(&self, files: &OpenFiles, mut from: u64, mut records: Bytes) -> io::Result<()> {
        while !records.is_empty() {
            let first = self.file_of(from);
            let room = (first + self.per_file - from) * self.record_bytes;
            let now = records.split_to(usize::try_from(room).unwrap_or(usize::MAX).min(records.len()));
            let count = now.len() as u64 / self.record_bytes;
            files.write(&self.root, &self.path(first), (from - first) * self.record_bytes, now)?;
            from += count;
        }
        Ok(())
    }

    /// Reads up to `count` records from `from` on, whole ones only. Fewer at the end of a file: ask again behind them.
    /// None at all means there is nothing there, up to the next file at least.
    pub(crate) fn read(&self, files: &OpenFiles, from: u64, count: u64) -> io::Result<Bytes> {
        let first = self.file_of(from);
        let Some(file) = files.existing(&self.path(first))? else { return Ok(Bytes::new()) };
        let at = (from - first) * self.record_bytes;
        let wanted = count.min(first + self.per_file - from) * self.record_bytes;
        match file.read_at(at, wanted as usize) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let there = file.len()?.saturating_sub(at).min(wanted);
                file.read_at(at, (there / self.record_bytes * self.record_bytes) as usize)
            }
            other => other,
        }
    }

    /// The first record number of the file behind the one that holds `number`.
    pub(crate) fn next_file(&self, number: u64) -> u64 {
        self.file_of(number) + self.per_file
    }

    /// The first record number of every file, in order. Other names are left alone.
    pub(crate) fn list(&self, files: &OpenFiles) -> io::Result<Vec<u64>> {
        let names = files.disk().list(&self.dir)?;
        let numbers = names.iter().filter(|name| name.len() == 20).filter_map(|name| name.parse().ok());
        let mut numbers: Vec<u64> = numbers.filter(|number| number % self.per_file == 0).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Every record of `range` has been written, as far as the lengths of the files tell.
    pub(crate) fn covers(&self, files: &OpenFiles, range: Range<u64>) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let first = self.file_of(at);
            let until = range.end.min(first + self.per_file);
            let Some(file) = files.existing(&self.path(first))? else { return Ok(false) };
            if file.len()? < (until - first) * self.record_bytes {
                return Ok(false);
            }
            at = until;
        }
        Ok(true)
    }

    /// Removes all records from `end` on.
    pub(crate) fn cut(&self, files: &OpenFiles, end: u64) -> io::Result<()> {
        for first in self.list(files)? {
            if first >= end {
                files.remove(&self.path(first))?;
            } else if end < first + self.per_file {
                files.cut(&self.path(first), (end - first) * self.record_bytes)?;
            }
        }
        Ok(())
    }

    /// Removes the files that hold only records below `min`, beginning at the file of `lowest`.
    pub(crate) fn drop_below(&self, files: &OpenFiles, lowest: u64, min: u64) -> io::Result<()> {
        let mut first = self.file_of(lowest);
        while first + self.per_file <= min {
            files.remove(&self.path(first))?;
            first += self.per_file;
        }
        Ok(())
    }

    fn file_of(&self, number: u64) -> u64 {
        number - number % self.per_file
    }

    /// The file that holds a record.
    pub(crate) fn path_of(&self, number: u64) -> PathBuf {
        self.path(self.file_of(number))
    }

    fn path(&self, first: u64) -> PathBuf {
        self.dir.join(format!("{first:020}"))
    }
}
