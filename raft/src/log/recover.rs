//! Opening the log after any kind of end: finds its last entry, cuts a torn tail, refuses damage.
//!
//! Three things prove that a place was on stable storage once: the hard state's `synced` position, a later frame's synced
//! mark, and, through these, every later segment (a segment is synced before the next one is begun). Damage at a proven
//! place is corruption: this node may have acked what stood there, and starting without it could lose a committed entry,
//! so it refuses. Damage at any other place is the end of a write nobody was told to be done: it is cut.
//!
//! ```text
//! segments wholly below `synced`:  first header checked, the rest when it is read
//! from the one that holds it on:   every frame checked with its payload, up to the first that does not continue the log
//! behind that:                     searched for a voucher, then removed
//! ```
//! What is kept beyond `synced` is written again before it is synced: after a failed sync the kernel may hold pages for clean that
//! are not on the disk. Only then does the caller raise the era and save the hard state. Cut anywhere, it can run again.

use std::{io, sync::Arc};

use bytes::Bytes;
use tracing::warn;

use crate::{
    disk::DiskFile,
    hard_state::{OpenError, REJOIN, Record},
    log::{
        damage::is_damage,
        frame::{Frame, HEADER_BYTES, Header, Kind},
        index::{self, Index, Table, Wanted},
        read::frame_at,
        scan::{self, Checks, Cursor, Damage, Source, Stop, Walk},
        segment::Segments,
    },
    types::{LogIndex, Position},
};

const REWRITE_CHUNK: u64 = 1 << 20;

/// The log as it was found and made sound.
pub(crate) struct Recovered {
    pub cursor: Cursor,
    pub index: Index,
    pub specials: Vec<Frame>,
    /// Bytes cut behind the end.
    pub cut_bytes: u64,
}

/// Finds the end of the log and makes everything up to it durable.
pub(crate) fn recover(segments: &Segments, record: &Record) -> Result<Recovered, OpenError> {
    let log = segments.path(Position(0));
    Recovery {
        segments,
        record,
        checks: Checks { payloads: true, era: record.era, incarnation: record.node.incarnation() },
    }
    .run()
    .map_err(|failure| match failure {
        Failure::Io(error) => OpenError::io(log.parent().unwrap_or(&log))(error),
        Failure::Open(error) => error,
    })
}

enum Failure {
    Io(io::Error),
    Open(OpenError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Recovery<'a> {
    segments: &'a Segments,
    record: &'a Record,
    checks: Checks,
}

/// The end of the log, and what made the scan stop.
struct End {
    cursor: Cursor,
    stopped_at: Position,
    why: Option<Damage>,
    /// Everything below this was synced when the youngest frame was written.
    marked: Position,
}

impl Recovery<'_> {
    fn run(&self) -> Result<Recovered, Failure> {
        let floor = self.record.floor;
        let borders = self.segments.borders;
        let first = borders.below(floor.position);
        // A purge that was cut between saving the floor and the last unlink.
        for segment in self.segments.list()?.into_iter().filter(|segment| *segment < first) {
            self.segments.remove(segment)?;
        }
        let synced = self.record.synced.max(floor.position);
        let deep = if synced > floor.position { borders.below(Position(synced.0 - 1)).max(first) } else { first };
        let mut index = Index::default();
        let mut sealed = Vec::new();
        let mut segment = first;
        while segment < deep {
            let header = self.first_header(segment)?;
            self.check_length(segment)?;
            let after_floor = floor.purged.is_none_or(|purged| purged.index.0 + 1 == header.id.index.0)
                && floor.chain == header.place.prev_chain;
            if segment == floor.position && !after_floor {
                return Err(self.corrupt(segment, &Damage::Foreign, None));
            }
            index.add_stored(segment, header.id.index, header.place.prev_chain);
            sealed.push(segment);
            segment = Position(segment.0 + borders.segment_bytes);
        }
        let mut specials = Vec::new();
        let end = self.scan_tail(deep, first, &mut index, &mut specials)?;
        self.check_links(&sealed, deep, &index)?;
        let mut recovered = Recovered { cursor: end.cursor, index, specials: Vec::new(), cut_bytes: self.judge(&end)? };
        for segment in sealed {
            self.load_specials(segment, &mut recovered)?;
        }
        for position in specials {
            recovered.specials.push(frame_at(self.segments, self.checks.incarnation, position)?);
        }
        self.mend(&end)?;
        Ok(recovered)
    }

    /// The first frame of a segment that was synced whole.
    fn first_header(&self, segment: Position) -> Result<Header, Failure> {
        let read = |file: Arc<dyn DiskFile>| {
            file.read_at(0, HEADER_BYTES.min(usize::try_from(file.len()?).unwrap_or(HEADER_BYTES)))
        };
        let bytes = match self.segments.file(segment) {
            Ok(file) => read(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.corrupt(segment, &"the file is missing", None));
            }
            Err(error) => return Err(error.into()),
        };
        match Header::decode(&bytes, self.checks.incarnation) {
            Ok((header, _)) if header.place.position == segment => Ok(header),
            Ok(_) => Err(self.corrupt(segment, &Damage::Foreign, None)),
            Err(error) => Err(self.corrupt(segment, &error, None)),
        }
    }

    /// A segment has its full length from the moment it is made; the rest of a sealed one is not read now, so this is what tells of a cut.
    fn check_length(&self, segment: Position) -> Result<(), Failure> {
        let (len, full) = (self.segments.file(segment)?.len()?, self.segments.borders.segment_bytes);
        if len < full {
            let why = format!("the file was cut short to {len} bytes of {full}");
            return Err(self.corrupt(Position(segment.0 + len), &why, None));
        }
        Ok(())
    }

    /// Reads every frame from the segment `deep` on.
    fn scan_tail(
        &self,
        deep: Position,
        first: Position,
        index: &mut Index,
        specials: &mut Vec<Position>,
    ) -> Result<End, Failure> {
        let (floor, borders) = (self.record.floor, self.segments.borders);
        let mut cursor = if deep == first {
            let next_index = floor.purged.map(|purged| LogIndex(purged.index.0.saturating_add(1)));
            Cursor { position: floor.position, prev: floor.purged, next_index, chain: floor.chain, era: 0 }
        } else {
            let header = self.first_header(deep)?;
            Cursor {
                position: deep,
                prev: None,
                next_index: Some(header.id.index),
                chain: header.place.prev_chain,
                era: 0,
            }
        };
        let mut marked = Position(0);
        let mut segment = deep;
        loop {
            let start = Cursor { position: cursor.position.max(segment), ..cursor };
            let mut source = match self.segments.source(segment) {
                Ok(source) => source,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(End { cursor, stopped_at: start.position, why: None, marked });
                }
                Err(error) => return Err(error.into()),
            };
            let range = segment.0..segment.0 + borders.segment_bytes;
            let Walk { cursor: after, stop } =
                scan::walk(&mut source, range, start, self.checks, &mut |header, local| {
                    let position = header.place.position;
                    index.push(segment, header.id.index, position, header.place.prev_chain, header.kind);
                    if matches!(header.kind, Kind::Membership | Kind::Floor) {
                        specials.push(position);
                    }
                    marked = marked.max(local.mark);
                })?;
            // A segment without a frame does not move the end: the next frame may still fit where the filler is.
            let stopped_at = after.position;
            if after != start {
                cursor = after;
            }
            match stop {
                Stop::Full => segment = Position(segment.0 + borders.segment_bytes),
                Stop::Zeros => return Ok(End { cursor, stopped_at, why: None, marked }),
                Stop::Damage(why) => return Ok(End { cursor, stopped_at, why: Some(why), marked }),
            }
        }
    }

    /// Sealed segments must count upwards to where the scan began.
    fn check_links(&self, sealed: &[Position], deep: Position, index: &Index) -> Result<(), Failure> {
        for (number, segment) in sealed.iter().enumerate() {
            let next = sealed.get(number + 1).copied().unwrap_or(deep);
            let ordered = index.first_of(*segment).zip(index.first_of(next)).is_some_and(|((a, _), (b, _))| a < b);
            if !ordered {
                return Err(self.corrupt(next, &Damage::Foreign, None));
            }
        }
        Ok(())
    }

    /// Torn tail or corruption? Returns the bytes to cut.
    fn judge(&self, end: &End) -> Result<u64, Failure> {
        let why = || end.why.as_ref().map_or("nothing is written here".to_owned(), ToString::to_string);
        if let Some(Damage::Newer(_)) = end.why {
            return Err(Failure::Open(OpenError::Corrupt(format!(
                "{}: position {} is younger than data/hard_state, whose newest slot must have been lost together with this node's vote; {REJOIN}",
                self.segments.path(self.segments.borders.below(end.stopped_at)).display(),
                end.stopped_at,
            ))));
        }
        if self.record.synced > end.cursor.position {
            return Err(self.corrupt(end.stopped_at, &why(), Some(self.record.synced)));
        }
        if self.record.clean && end.why.is_none() {
            return Ok(0);
        }
        let stopped_in = self.segments.borders.below(end.stopped_at);
        let mut last = end.cursor.position.0;
        for segment in self.segments.list()?.into_iter().filter(|segment| *segment >= stopped_in) {
            let range = segment.0.max(end.stopped_at.0)..segment.0 + self.segments.borders.segment_bytes;
            let mut source = self.segments.source(segment)?;
            let behind = scan::find_voucher(&mut source, range, end.stopped_at, self.checks)?;
            if let Some(voucher) = behind.voucher {
                return Err(self.corrupt(end.stopped_at, &why(), Some(voucher)));
            }
            last = last.max(behind.end);
        }
        Ok(last - end.cursor.position.0)
    }

    fn corrupt(&self, at: Position, why: &dyn ToString, proof: Option<Position>) -> Failure {
        let segment = self.segments.borders.below(at);
        let proof = proof.unwrap_or(self.record.synced);
        Failure::Open(OpenError::Corrupt(format!(
            "{}: damaged at byte {} (position {at}): {}. This place was on stable storage (vouched for by position {proof}), so it is no torn write and may have been acknowledged; {REJOIN}",
            self.segments.path(segment).display(),
            at.0 - segment.0,
            why.to_string(),
        )))
    }

    /// A sealed segment could not be read where it must be.
    fn unreadable(&self, segment: Position, error: io::Error) -> Failure {
        if !is_damage(&error) {
            return Failure::Open(OpenError::io(&self.segments.path(segment))(error));
        }
        // The error names file and byte.
        Failure::Open(OpenError::Corrupt(format!(
            "{error}. This was on stable storage and may have been acknowledged; {REJOIN}"
        )))
    }

    fn load_specials(&self, segment: Position, recovered: &mut Recovered) -> Result<(), Failure> {
        let Some(wanted) = recovered.index.wanted(segment) else { return Ok(()) };
        let table = load_table(self.segments, wanted, self.checks).map_err(|error| self.unreadable(segment, error))?;
        for (number, _) in &table.specials {
            let index = LogIndex(wanted.first.0 + u64::from(*number));
            if self.record.floor.purged.is_none_or(|purged| index > purged.index)
                && let Some(offset) = table.offsets.get(*number as usize)
            {
                let position = Position(segment.0 + u64::from(*offset));
                let frame = frame_at(self.segments, self.checks.incarnation, position);
                recovered.specials.push(frame.map_err(|error| self.unreadable(segment, error))?);
            }
        }
        Ok(())
    }

    /// Removes what lies behind the end and makes what lies before it durable.
    fn mend(&self, end: &End) -> Result<(), Failure> {
        let borders = self.segments.borders;
        let position = end.cursor.position;
        let active = borders.below(position);
        let mut removed = false;
        for segment in self.segments.list()?.into_iter().rev().filter(|segment| *segment >= position) {
            self.segments.remove(segment)?;
            removed = true;
        }
        if removed {
            self.segments.sync_dir()?;
        }
        self.segments.remove_index(active)?;
        if active < position && self.segments.list()?.contains(&active) {
            let file = self.segments.file(active)?;
            if file.len()? < borders.segment_bytes {
                file.set_len(borders.segment_bytes)?;
            }
            let rest = (borders.segment_bytes - (position.0 - active.0)).min(HEADER_BYTES as u64) as usize;
            if file.read_at(position.0 - active.0, rest)?.iter().any(|byte| *byte != 0) {
                file.write_at(position.0 - active.0, &[Bytes::from(vec![0; rest])])?;
            }
        }
        let trusted = self.record.synced.max(self.record.floor.position).max(end.marked);
        let mut segment = borders.below(trusted.min(position));
        while segment < position {
            let file = match self.segments.file(segment) {
                Ok(file) => Some(file),
                // The floor may stand in a segment of which nothing is left.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error.into()),
            };
            if let Some(file) = file {
                let until = position.min(borders.after(segment));
                let mut at = trusted.max(segment);
                while at < until {
                    let len = (until.0 - at.0).min(REWRITE_CHUNK);
                    let bytes = file.read_at(at.0 - segment.0, len as usize)?;
                    file.write_at(at.0 - segment.0, &[bytes])?;
                    at = Position(at.0 + len);
                }
                file.sync()?;
            }
            segment = borders.after(segment);
        }
        Ok(())
    }
}

/// The index table of a sealed segment: from its file, or from a walk through the segment, which is then stored.
///
/// # Errors
/// `InvalidData` if the segment does not hold the entries it must.
pub(crate) fn load_table(segments: &Segments, wanted: Wanted, checks: Checks) -> io::Result<Arc<Table>> {
    let path = segments.index_path(wanted.segment);
    if let Some(table) = index::load(segments.disk().as_ref(), &path, wanted)? {
        return Ok(Arc::new(table));
    }
    let table = walk_table(segments, wanted, checks)?;
    if let Err(error) = index::store(segments.disk().as_ref(), &path, wanted, &table) {
        warn!(%error, path = %path.display(), "index not stored");
    }
    Ok(Arc::new(table))
}

fn walk_table(segments: &Segments, wanted: Wanted, checks: Checks) -> io::Result<Table> {
    let damaged = |why: String| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", segments.path(wanted.segment).display()))
    };
    let mut source = segments.source(wanted.segment)?;
    let first = source.bytes(wanted.segment.0, HEADER_BYTES)?;
    let (header, _) = Header::decode(&first, checks.incarnation).map_err(|error| damaged(error.to_string()))?;
    let start = Cursor {
        position: wanted.segment,
        prev: None,
        next_index: Some(header.id.index),
        chain: header.place.prev_chain,
        era: 0,
    };
    let mut table = Table::default();
    let range = wanted.segment.0..segments.borders.after(wanted.segment).0;
    let walk = scan::walk(&mut source, range, start, Checks { payloads: false, ..checks }, &mut |header, _| {
        // Entries below were purged before this node began to count in this segment.
        if header.id.index >= wanted.first {
            if matches!(header.kind, Kind::Membership | Kind::Floor) {
                table.specials.push((table.offsets.len() as u32, header.kind));
            }
            table.offsets.push((header.place.position.0 - wanted.segment.0) as u32);
        }
    })?;
    if table.offsets.len() != wanted.count as usize || walk.cursor.chain != wanted.last_chain {
        let found = table.offsets.len();
        return Err(damaged(format!(
            "{found} entries can be read, {} were written; the reading stopped at {}",
            wanted.count, walk.cursor.position
        )));
    }
    Ok(table)
}
