//! Reading entries and bytes back, from memory or from files.
//!
//! What comes from a file is checked again (chain of the header, crc of the payload): damage done since is an error here and
//! never an answer. So is a file that has become shorter, is gone, or that the disk cannot read any more.

use std::{io, sync::Arc};

use bytes::Bytes;

use crate::{
    log::{
        frame::{Frame, HEADER_BYTES, Header},
        handle::Shared,
        index::Lookup,
        recover::load_table,
        segment::Segments,
    },
    types::{LogIndex, Position},
};

/// `EIO`: the medium under a file could not be read. Its kind has no name in std.
const EIO: i32 = 5;

/// Entries looked up under one lock.
const LOOKUPS_MAX: u64 = 256;

/// Reads committed bytes of the commit log. Cheap to clone.
#[derive(Clone)]
pub struct LogView {
    pub(crate) shared: Arc<Shared>,
}

impl LogView {
    /// `len` bytes from `position` on, which must lie within the payload of one committed entry.
    ///
    /// Copied from the file, or borrowed from the tail in memory. May wait for the disk. What stands at the place is not checked.
    ///
    /// # Errors
    /// `NotFound` if the floor has passed `position`; `InvalidInput` if that is not within one written entry; `InvalidData` if the file is
    /// damaged there, with its name.
    pub fn read(&self, position: Position, len: usize) -> io::Result<Bytes> {
        let outside = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at position {position} are not within one entry"),
            )
        };
        let end = position.0.checked_add(len as u64).ok_or_else(outside)?;
        {
            let state = self.shared.state();
            if position < state.floor.position {
                return Err(purged(position));
            }
            if end > state.written.0 {
                return state.tail.slice(position, len).ok_or_else(outside);
            }
        }
        let segments = &self.shared.segments;
        let segment = segments.borders.below(position);
        if end > segments.borders.after(position).0 {
            return Err(outside());
        }
        let offset = position.0 - segment.0;
        let bytes = segments.file(segment).and_then(|file| file.read_at(offset, len));
        bytes.map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound && position < self.floor() {
                return purged(position);
            }
            self.shared.damages.note(segments, position, named(segments, segment, offset, error))
        })
    }

    /// First position kept.
    pub fn floor(&self) -> Position {
        self.shared.state().floor.position
    }

    /// End of the written log.
    #[expect(
        clippy::misnamed_getters,
        reason = "a view ends where the files do; what is appended and not written is not its business"
    )]
    pub fn end(&self) -> Position {
        self.shared.state().written
    }
}

fn purged(position: Position) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("position {position} is below the floor"))
}

/// What the next round of a read has to do.
enum Round {
    Done,
    Files { at: Vec<Position>, removals: u64 },
    Load(crate::log::index::Wanted),
}

/// Collects entries up to a byte limit.
struct Collected {
    frames: Vec<Frame>,
    bytes: usize,
    bytes_max: usize,
}

impl Collected {
    /// False if the limit is reached without this frame.
    fn push(&mut self, frame: Frame) -> bool {
        let bytes = self.bytes.saturating_add(frame.payload_len() + HEADER_BYTES);
        if bytes > self.bytes_max && !self.frames.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.frames.push(frame);
        true
    }
}

/// See [`Log::read`](super::Log::read).
pub(crate) fn read(
    shared: &Shared,
    start: LogIndex,
    end: LogIndex,
    bytes_max: Option<usize>,
) -> io::Result<Vec<Frame>> {
    let mut out = Collected { frames: Vec::new(), bytes: 0, bytes_max: bytes_max.unwrap_or(usize::MAX) };
    let mut next = start;
    loop {
        match plan(shared, &mut next, end, &mut out)? {
            Round::Done => return Ok(out.frames),
            Round::Load(wanted) => {
                let table = load_table(&shared.segments, wanted, shared.checks());
                let table = table.map_err(|error| shared.damages.note(&shared.segments, wanted.segment, error))?;
                shared.state().index.install(wanted, table);
            }
            Round::Files { at, removals } => {
                for position in at {
                    let frame = match frame_at(&shared.segments, shared.node.incarnation(), position) {
                        Ok(frame) => frame,
                        // Entries were taken away meanwhile: look again.
                        Err(_) if shared.state().removals != removals => break,
                        Err(error) => return Err(shared.damages.note(&shared.segments, position, error)),
                    };
                    if frame.id.index != next {
                        if shared.state().removals != removals {
                            break;
                        }
                        let error =
                            damaged(format!("position {position} holds entry {}, expected index {next}", frame.id));
                        return Err(shared.damages.note(&shared.segments, position, error));
                    }
                    if !out.push(frame) {
                        return Ok(out.frames);
                    }
                    next = LogIndex(next.0 + 1);
                }
            }
        }
    }
}

fn plan(shared: &Shared, next: &mut LogIndex, end: LogIndex, out: &mut Collected) -> io::Result<Round> {
    let state = shared.state();
    let Some(first) = state.first() else { return Ok(Round::Done) };
    if *next < first {
        if let Some(purged) = state.floor.purged {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("entry {next} is purged, the log starts after {purged}"),
            ));
        }
        *next = first;
    }
    let end = end.min(LogIndex(state.last.map_or(0, |last| last.index.0 + 1)));
    if let Some(tail) = state.tail.first()
        && *next >= tail
    {
        while *next < end {
            let Some(frame) = state.tail.get(*next) else { break };
            if !out.push(frame.clone()) {
                break;
            }
            next.0 += 1;
        }
        return Ok(Round::Done);
    }
    if *next >= end {
        return Ok(Round::Done);
    }
    let stop = end.0.min(next.0 + LOOKUPS_MAX).min(state.tail.first().map_or(u64::MAX, |tail| tail.0));
    let mut at = Vec::new();
    for index in next.0..stop {
        match state.index.lookup(LogIndex(index)) {
            Lookup::At(position) => at.push(position),
            Lookup::Unloaded(wanted) if at.is_empty() => return Ok(Round::Load(wanted)),
            Lookup::Unloaded(_) => break,
            Lookup::Absent => return Err(damaged(format!("entry {index} is in no index"))),
        }
    }
    Ok(Round::Files { at, removals: state.removals })
}

/// Header of the frame at `position`, checked.
pub(crate) fn header_at(segments: &Segments, incarnation: u32, position: Position) -> io::Result<Header> {
    let segment = segments.borders.below(position);
    let offset = position.0 - segment.0;
    let bytes = segments.file(segment).and_then(|file| file.read_at(offset, HEADER_BYTES));
    decode(segments, incarnation, position, &bytes.map_err(|error| named(segments, segment, offset, error))?)
}

/// The frame at `position`, checked.
pub(crate) fn frame_at(segments: &Segments, incarnation: u32, position: Position) -> io::Result<Frame> {
    let segment = segments.borders.below(position);
    let file = segments.file(segment).map_err(|error| named(segments, segment, 0, error))?;
    let bytes =
        |offset: u64, len: usize| file.read_at(offset, len).map_err(|error| named(segments, segment, offset, error));
    let offset = position.0 - segment.0;
    let header = decode(segments, incarnation, position, &bytes(offset, HEADER_BYTES)?)?;
    if header.end() > segments.borders.after(segment) {
        return Err(damaged(format!(
            "{}: the frame at byte {offset} is longer than the segment",
            segments.path(segment).display()
        )));
    }
    let payload = bytes(offset + HEADER_BYTES as u64, header.payload_len as usize)?;
    header
        .with_payload(payload)
        .map_err(|error| damaged(format!("{}: byte {offset}: {error}", segments.path(segment).display())))
}

/// The same error with the file's name. A file that is too short for what stood in it, or gone, or that the disk cannot read, is damaged.
fn named(segments: &Segments, segment: Position, offset: u64, error: io::Error) -> io::Error {
    let place = format!("{}: byte {offset}", segments.path(segment).display());
    let kind = error.kind();
    if kind == io::ErrorKind::UnexpectedEof {
        damaged(format!("{place}: the file ends too early"))
    } else if kind == io::ErrorKind::NotFound {
        damaged(format!("{place}: the file is missing"))
    } else if error.raw_os_error() == Some(EIO) {
        damaged(format!("{place}: {error}"))
    } else {
        io::Error::new(kind, format!("{place}: {error}"))
    }
}

fn decode(segments: &Segments, incarnation: u32, position: Position, bytes: &[u8]) -> io::Result<Header> {
    let segment = segments.borders.below(position);
    let place = || format!("{}: byte {}", segments.path(segment).display(), position.0 - segment.0);
    let (header, _) = Header::decode(bytes, incarnation).map_err(|error| damaged(format!("{}: {error}", place())))?;
    if header.place.position != position {
        return Err(damaged(format!("{}: a frame of position {}", place(), header.place.position)));
    }
    Ok(header)
}

pub(crate) fn damaged(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
