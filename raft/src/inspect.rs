//! Reading the data directory of a node that does not run: is every byte as it was written, and what stands in the log. Changes nothing.
//!
//! A start looks at no more than it must: the end of the log whole, of sealed segments the first frame and the length. Here every frame is
//! read with its payload, every index compared with its segment, every image decoded. What is wrong is a [`Finding`], and the reading goes
//! on behind it where it can: at the next segment.
//!
//! Must never write, and never look at a directory whose node runs: it would take for damage what is just being written.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    disk::Disk,
    hard_state::{OpenError, Record, Slots},
    log::{
        frame::{HEADER_BYTES, Header, Kind, Payload},
        index::{self, Wanted},
        parse_position,
        scan::{self, Checks, Cursor, Source, Stop},
        segment::Segments,
    },
    snapshot::Image,
    types::{LogId, LogIndex, NodeId, Position},
};

/// Whose directory it is and how far its node had come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The group.
    pub cluster: String,
    /// The node, with its number.
    pub node: NodeId,
    /// Length of its segments.
    pub segment_bytes: u64,
    /// First position kept.
    pub floor: Position,
    /// The log below this was on stable storage when the node said so last.
    pub synced: Position,
    /// The node stopped in order.
    pub clean: bool,
}

/// What something wrong means for the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is lost: the end of a write that nobody was told to be done. The next start cuts it.
    Torn,
    /// It is made again, or borrowed from another node, by a start or while the node runs.
    Mended,
    /// It was on stable storage, and this directory has it no more.
    Corrupt,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it means.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// Where in it, if it is one place.
    pub byte: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What a reading of everything has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries that are whole.
    pub entries: u64,
    /// The first and the last of them.
    pub range: Option<(LogId, LogId)>,
    /// Behind the last of them.
    pub end: Position,
    /// Segment files read.
    pub segments: u64,
    /// Images read.
    pub images: u64,
    /// What is wrong, by file.
    pub findings: Vec<Finding>,
}

/// An entry as it stands in the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which one.
    pub id: LogId,
    /// Where it stands.
    pub position: Position,
    /// Where its payload begins.
    pub payload_position: Position,
    /// What it holds.
    pub payload: Payload,
}

/// The data directory of a node that does not run. Held, so that the node cannot start meanwhile.
pub struct Inspector {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    record: Record,
    segments: Segments,
    unreadable_slots: usize,
    _lock: Option<Box<dyn Send + Sync>>,
}

impl Inspector {
    /// Takes the directory's lock and reads whose it is.
    ///
    /// # Errors
    /// `WrongDirectory` if it is none, or of another version, or its node runs; `Corrupt` if neither copy of the hard state can be read,
    /// without which nothing else can be judged.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, OpenError> {
        let path = disk.join(dir, "hard_state");
        if let Err(error) = disk.open(&path, false) {
            let none = format!("{}: there is no node's data here", dir.display());
            let is_none = error.kind() == io::ErrorKind::NotFound;
            return Err(if is_none { OpenError::WrongDirectory(none) } else { OpenError::io(&path)(error) });
        }
        let lock_path = disk.join(dir, "lock");
        let lock = match disk.lock(&lock_path) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(OpenError::WrongDirectory(format!("{}: its node runs ({error}); stop it", dir.display())));
            }
            // A copy that cannot be written cannot have a node either.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
            Err(error) => return Err(OpenError::io(&lock_path)(error)),
        };
        let Slots { newest, unreadable } = Slots::read(disk.as_ref(), &path)?;
        let segments = Segments::new(disk.clone(), dir, newest.segment_bytes);
        Ok(Self { disk, dir: dir.to_owned(), record: newest, segments, unreadable_slots: unreadable, _lock: lock })
    }

    /// Whose directory it is.
    pub fn identity(&self) -> Identity {
        let Record { cluster, node, segment_bytes, floor, synced, clean, .. } = self.record.clone();
        Identity { cluster, node, segment_bytes, floor: floor.position, synced, clean }
    }

    /// Reads everything. `progress` is told the bytes of the log read so far, and how many there are.
    ///
    /// # Errors
    /// Only what keeps directories from being listed; what cannot be read of a file is a finding.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> io::Result<Verified> {
        let mut verified = Verified { end: self.record.floor.position, ..Verified::default() };
        if self.unreadable_slots > 0 {
            verified.findings.push(Finding {
                severity: Severity::Mended,
                path: self.disk.join(&self.dir, "hard_state"),
                byte: None,
                what: "one of its two copies cannot be read; the other one is whole".to_owned(),
            });
        }
        self.verify_log(&mut verified, progress)?;
        self.verify_images(&mut verified)?;
        Ok(verified)
    }

    fn checks(&self) -> Checks {
        Checks { payloads: true, era: self.record.era, incarnation: self.record.node.incarnation() }
    }

    fn start(&self) -> Cursor {
        let floor = self.record.floor;
        Cursor {
            position: floor.position,
            prev: floor.purged,
            next_index: floor.purged.map(|purged| LogIndex(purged.index.0.saturating_add(1))),
            chain: floor.chain,
            era: 0,
        }
    }

    fn verify_log(&self, verified: &mut Verified, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let borders = self.segments.borders;
        let floor = self.record.floor.position;
        let first = borders.below(floor);
        let on_disk: Vec<Position> = self.segments.list()?.into_iter().filter(|segment| *segment >= first).collect();
        let last = on_disk.last().copied();
        let bytes = on_disk.len() as u64 * borders.segment_bytes;
        let mut cursor = self.start();
        let mut segment = first;
        while Some(segment) <= last {
            let begin = Cursor { position: cursor.position.max(segment), ..cursor };
            let read = self.read_segment(segment, begin, verified);
            verified.segments += u64::from(!matches!(read, Read::Missing));
            progress(segment.0 + borders.segment_bytes - first.0, bytes);
            cursor = match read {
                Read::Full(after) => after,
                Read::Stopped { at, why, after } => {
                    let severity = self.judge(at, why.is_some(), &on_disk);
                    let what = why.unwrap_or_else(|| "nothing is written here".to_owned());
                    match severity {
                        // The end of the log.
                        None => return Ok(()),
                        Some(Severity::Torn) => {
                            verified.findings.push(self.finding(Severity::Torn, at, what));
                            return Ok(());
                        }
                        Some(severity) => verified.findings.push(self.finding(severity, at, what)),
                    }
                    after
                }
                Read::Missing => {
                    verified.findings.push(self.finding(Severity::Corrupt, segment, "the file is missing".to_owned()));
                    cursor
                }
            };
            segment = Position(segment.0 + borders.segment_bytes);
            // Behind damage the log goes on with the first frame of the next segment.
            if cursor.position < segment
                && let Some(resumed) = self.resume(segment)
            {
                cursor = resumed;
            }
        }
        if self.record.synced > verified.end && Some(self.record.synced) > last {
            let what = format!("the log ended at {} or later, and nothing is here", self.record.synced);
            verified.findings.push(self.finding(Severity::Corrupt, verified.end, what));
        }
        Ok(())
    }

    /// Reads the frames of one segment.
    fn read_segment(&self, segment: Position, begin: Cursor, verified: &mut Verified) -> Read {
        let unreadable = |error: io::Error, after: Cursor| Read::Stopped {
            at: segment,
            why: Some(format!("it cannot be read: {error}")),
            after,
        };
        let mut source = match self.segments.source(segment) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Read::Missing,
            Err(error) => return unreadable(error, begin),
        };
        let range = segment.0..self.segments.borders.after(segment).0;
        let mut seen: Vec<Header> = Vec::new();
        let walked = scan::walk(&mut source, range, begin, self.checks(), &mut |header, _| seen.push(*header));
        if let Some(newest) = seen.last() {
            verified.entries += seen.len() as u64;
            let oldest = verified.range.map_or(seen[0].id, |(oldest, _)| oldest);
            verified.range = Some((oldest, newest.id));
            verified.end = newest.end();
        }
        let walk = match walked {
            Ok(walk) => walk,
            Err(error) => return unreadable(error, begin),
        };
        // A segment has its full length from the moment it is made.
        let (len, full) = (source.len(), self.segments.borders.segment_bytes);
        if len < full {
            let why = Some(format!("the file was cut short to {len} bytes of {full}"));
            return Read::Stopped { at: walk.cursor.position.min(Position(segment.0 + len)), why, after: walk.cursor };
        }
        match walk.stop {
            Stop::Full => {
                self.check_index(segment, &seen, verified);
                Read::Full(walk.cursor)
            }
            Stop::Zeros => Read::Stopped { at: walk.cursor.position, why: None, after: walk.cursor },
            Stop::Damage(why) => {
                Read::Stopped { at: walk.cursor.position, why: Some(why.to_string()), after: walk.cursor }
            }
        }
    }

    /// What it means that the log stops here: `None` for its end, else damage if anything proves that more was there.
    fn judge(&self, at: Position, is_damaged: bool, on_disk: &[Position]) -> Option<Severity> {
        if self.record.synced > at {
            return Some(Severity::Corrupt);
        }
        let borders = self.segments.borders;
        let here = borders.below(at);
        for segment in on_disk.iter().copied().filter(|segment| *segment >= here) {
            let Ok(mut source) = self.segments.source(segment) else { continue };
            let range = segment.0.max(at.0)..segment.0 + borders.segment_bytes;
            let behind = scan::find_voucher(&mut source, range, at, self.checks());
            if behind.is_ok_and(|behind| behind.voucher.is_some()) {
                return Some(Severity::Corrupt);
            }
        }
        is_damaged.then_some(Severity::Torn)
    }

    /// Where the log goes on in a segment, if its first frame can be read.
    fn resume(&self, segment: Position) -> Option<Cursor> {
        let mut source = self.segments.source(segment).ok()?;
        let bytes = source.bytes(segment.0, HEADER_BYTES).ok()?;
        let (header, local) = Header::decode(&bytes, self.record.node.incarnation()).ok()?;
        (header.place.position == segment).then_some(Cursor {
            position: segment,
            prev: None,
            next_index: Some(header.id.index),
            chain: header.place.prev_chain,
            era: local.era.min(self.record.era),
        })
    }

    fn check_index(&self, segment: Position, seen: &[Header], verified: &mut Verified) {
        let (Some(first), Some(last)) = (seen.first(), seen.last()) else { return };
        // In the segment that the floor stands in, the index counts from where the floor stood when it was made.
        if first.place.position != segment {
            return;
        }
        let path = self.segments.index_path(segment);
        let wanted = Wanted { segment, first: first.id.index, count: seen.len() as u32, last_chain: last.place.chain };
        let exists = self.disk.open(&path, false).is_ok();
        let offsets_fit = match index::load(self.disk.as_ref(), &path, wanted) {
            Ok(Some(table)) => {
                let offsets = seen.iter().map(|header| (header.place.position.0 - segment.0) as u32);
                table.offsets.iter().copied().eq(offsets)
            }
            Ok(None) => !exists,
            Err(_) => false,
        };
        if !offsets_fit {
            let what = "it does not fit its segment; it is made again when it is needed".to_owned();
            verified.findings.push(Finding { severity: Severity::Mended, path, byte: None, what });
        }
    }

    fn verify_images(&self, verified: &mut Verified) -> io::Result<()> {
        let dir = self.disk.join(&self.dir, "image");
        let (mut whole, mut findings) = (Vec::new(), Vec::new());
        for name in self.disk.list(&dir)? {
            let Some(border) = name.strip_suffix(".img").and_then(parse_position) else { continue };
            let path = self.disk.join(&dir, &name);
            let read = || {
                let file = self.disk.open(&path, false)?;
                file.read_at(0, file.len()? as usize)
            };
            verified.images += 1;
            let what = match read().map(Image::decode) {
                Ok(Ok(image)) if image.meta.point.border == border => {
                    whole.push(border);
                    continue;
                }
                Ok(Ok(image)) => format!("it is the image of {}", image.meta.point.border),
                Ok(Err(error)) => error.to_string(),
                Err(error) => format!("it cannot be read: {error}"),
            };
            findings.push(Finding { severity: Severity::Mended, path, byte: None, what });
        }
        // Whatever the log does not begin with must come from an image.
        let is_needed = self.record.floor.purged.is_some();
        if is_needed && whole.is_empty() {
            findings.iter_mut().for_each(|finding| finding.severity = Severity::Corrupt);
            if findings.is_empty() {
                let what = "there is no image of what came before the log".to_owned();
                findings.push(Finding { severity: Severity::Corrupt, path: dir, byte: None, what });
            }
        }
        verified.findings.append(&mut findings);
        Ok(())
    }

    fn finding(&self, severity: Severity, at: Position, what: String) -> Finding {
        let segment = self.segments.borders.below(at);
        Finding { severity, path: self.segments.path(segment), byte: Some(at.0 - segment.0), what }
    }

    /// Shows entries from `from` on, in order, until `visit` says that it is enough. Stops at the end of the log and at damage.
    /// Returns why it stopped, if by damage.
    ///
    /// # Errors
    /// The disk's.
    pub fn entries(
        &self,
        from: LogIndex,
        visit: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> io::Result<Option<String>> {
        let borders = self.segments.borders;
        let mut segment = borders.below(self.record.floor.position);
        // Segments that end before it need not be read.
        while let Some(next) = self.resume(Position(segment.0 + borders.segment_bytes)) {
            if next.next_index.is_none_or(|index| index > from) {
                break;
            }
            segment = next.position;
        }
        let mut cursor = self.start();
        if segment > cursor.position {
            cursor = self.resume(segment).unwrap_or(cursor);
        }
        loop {
            let mut source = match self.segments.source(segment) {
                Ok(source) => source,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let begin = Cursor { position: cursor.position.max(segment), ..cursor };
            let range = segment.0..borders.after(segment).0;
            let mut wanted = Vec::new();
            let walk = scan::walk(&mut source, range, begin, self.checks(), &mut |header, _| {
                if header.id.index >= from && header.kind != Kind::Filler {
                    wanted.push(*header);
                }
            })?;
            for header in wanted {
                let begins = header.place.position.0 + HEADER_BYTES as u64;
                let payload: Bytes = source.bytes(begins, header.payload_len as usize)?;
                let frame = header.with_payload(payload).map_err(|error| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("position {}: {error}", header.place.position))
                })?;
                let entry = Entry {
                    id: frame.id,
                    position: header.place.position,
                    payload_position: Position(begins),
                    payload: frame.payload,
                };
                if visit(entry).is_break() {
                    return Ok(None);
                }
            }
            match walk.stop {
                Stop::Full => (cursor, segment) = (walk.cursor, borders.after(segment)),
                Stop::Zeros => return Ok(None),
                Stop::Damage(why) => {
                    let at = walk.cursor.position;
                    let byte = at.0 - segment.0;
                    return Ok(Some(format!("{}: byte {byte}: {why}", self.segments.path(segment).display())));
                }
            }
        }
    }
}

/// How the reading of a segment went.
enum Read {
    /// To its end.
    Full(Cursor),
    /// Up to a place that does not continue the log.
    Stopped { at: Position, why: Option<String>, after: Cursor },
    /// There is no such file.
    Missing,
}
