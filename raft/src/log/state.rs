//! What the log is, as everybody but the writer sees it: entries, places and progress, ahead of the files.
//!
//! Every change happens here first, under one short lock, and is then carried out by the writer in the same order. So an
//! entry can be read as soon as `append` returns, and a truncated one cannot. No I/O in here.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
};

use bytes::Bytes;

use crate::{
    hard_state::{Floor, VoteRecord},
    log::{
        frame::{Frame, HEADER_BYTES, Header, Kind, Payload},
        index::Index,
        scan::ZEROS_MAX,
        segment::Borders,
        tail::Tail,
    },
    types::{LogId, LogIndex, Position},
};

/// No frame is longer: what lies behind a run of zeros of twice that length was never written (`scan`).
pub(crate) const FRAME_BYTES_MAX: u64 = ZEROS_MAX / 2;

/// A frame as it goes to the writer; a filler has no payload.
pub(crate) struct Piece {
    pub header: Header,
    pub payload: Bytes,
}

/// Same log id, other content: the replicas are no longer the same (LAW-SAME). The node must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "entry {id} diverges: its sender has it at {theirs_at} with chain {theirs:08x}, this log at {ours_at} with chain {ours:08x}"
)]
pub struct Diverged {
    /// The entry.
    pub id: LogId,
    /// Chain and position this log computed.
    pub ours: u32,
    /// Where this log would put it.
    pub ours_at: Position,
    /// Chain the sender has.
    pub theirs: u32,
    /// Where the sender has it.
    pub theirs_at: Position,
}

/// The log in memory.
pub(crate) struct State {
    pub floor: Floor,
    /// Last entry, or the purged one if there is none.
    pub last: Option<LogId>,
    /// Where the next frame goes if it fits.
    pub end: Position,
    pub chain: u32,
    pub index: Index,
    pub tail: Tail,
    /// Memberships and floors, for whoever restores a machine.
    pub specials: BTreeMap<LogIndex, Frame>,
    pub vote: Option<VoteRecord>,
    pub committed: Option<LogId>,
    /// Everything below is in the files.
    pub written: Position,
    /// Everything below is on stable storage.
    pub synced: Position,
    /// Where the log was set back to by changes the writer has not carried out yet. What the writer has done so far says
    /// nothing about positions above the lowest of them.
    pub cuts: VecDeque<Position>,
    /// Counts changes that take entries away, so that a reader of files knows when to look again.
    pub removals: u64,
    pub failure: Option<String>,
    pub entries: u64,
}

impl State {
    /// Checks and places frames behind the last entry. On error nothing has changed.
    pub fn append(&mut self, borders: Borders, frames: Vec<Frame>) -> io::Result<Vec<Piece>> {
        let (mut last, mut end, mut chain) = (self.last, self.end, self.chain);
        let mut pieces = Vec::with_capacity(frames.len() + 1);
        for frame in &frames {
            check_next(last, frame, borders)?;
            let placement = borders.place(end, frame.len());
            if let Some(position) = placement.filler {
                pieces.push(Piece { header: Header::filler(last, position, chain), payload: Bytes::new() });
            }
            let header = frame.header_at(placement.position, chain);
            if let Some(theirs) = frame.place.filter(|place| *place != header.place) {
                let (ours, ours_at) = (header.place.chain, header.place.position);
                let diverged =
                    Diverged { id: frame.id, ours, ours_at, theirs: theirs.chain, theirs_at: theirs.position };
                return Err(io::Error::new(io::ErrorKind::InvalidData, diverged));
            }
            pieces.push(Piece { header, payload: frame.payload_bytes() });
            (last, end, chain) = (Some(frame.id), header.end(), header.place.chain);
        }
        let headers: Vec<_> =
            pieces.iter().map(|piece| piece.header).filter(|header| header.kind != Kind::Filler).collect();
        for (mut frame, header) in frames.into_iter().zip(headers) {
            frame.place = Some(header.place);
            self.note(borders, &header, &frame);
            self.tail.push(frame);
            self.entries += 1;
        }
        (self.last, self.end, self.chain) = (last, end, chain);
        Ok(pieces)
    }

    /// Puts a frame into index and specials.
    pub fn note(&mut self, borders: Borders, header: &Header, frame: &Frame) {
        let position = header.place.position;
        self.index.push(borders.below(position), header.id.index, position, header.place.prev_chain, header.kind);
        if matches!(frame.payload, Payload::Membership(_) | Payload::Floor(_)) {
            self.specials.insert(header.id.index, frame.clone());
        }
    }

    /// Sets the log back to end at `end` with `last`. The caller has loaded the index table that holds `last`.
    pub fn cut(&mut self, last: Option<LogId>, end: Position, chain: u32) {
        let kept = last.map(|id| id.index);
        self.index.truncate_after(kept);
        self.tail.truncate_after(kept);
        self.specials.retain(|index, _| kept.is_some_and(|kept| *index <= kept));
        (self.last, self.end, self.chain) = (last, end, chain);
        self.set_back(end);
    }

    /// Drops all entries; the log continues behind `floor`.
    pub fn reset(&mut self, floor: Floor) {
        self.index.clear();
        self.tail.truncate_after(None);
        self.specials.clear();
        (self.last, self.end, self.chain) = (floor.purged, floor.position, floor.chain);
        self.committed = self.committed.max(floor.purged);
        self.floor = floor;
        // Until the writer has done it, the files hold nothing of this log.
        self.set_back(Position(0));
    }

    /// Drops entries up to `floor.purged`, which is in the log.
    pub fn purge(&mut self, borders: Borders, floor: Floor) {
        if let Some(purged) = floor.purged {
            self.tail.purge(purged.index);
            self.specials = self.specials.split_off(&LogIndex(purged.index.0 + 1));
        }
        self.index.drop_below(borders.below(floor.position));
        self.floor = floor;
        self.removals += 1;
    }

    /// The writer reports how far the files go.
    pub fn progress(&mut self, written: Position, synced: Position) {
        let limit = self.cuts.iter().min().copied().unwrap_or(Position(u64::MAX));
        self.written = written.min(limit);
        self.synced = synced.min(limit);
        self.tail.evict(self.written);
    }

    /// Index of the first entry that may be read.
    pub fn first(&self) -> Option<LogIndex> {
        match self.floor.purged {
            Some(purged) => Some(LogIndex(purged.index.0 + 1)),
            None => self.index.first(),
        }
    }

    fn set_back(&mut self, to: Position) {
        self.cuts.push_back(to);
        self.written = self.written.min(to);
        self.synced = self.synced.min(to);
        self.removals += 1;
    }
}

fn check_next(last: Option<LogId>, frame: &Frame, borders: Borders) -> io::Result<()> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    // An index that could not be counted on from would only come from damage.
    if frame.id.index.0 > u64::MAX / 2 {
        return refuse(format!("entry {} has an impossible index", frame.id));
    }
    if let Some(last) = last.filter(|last| last.index.0 + 1 != frame.id.index.0 || last.term > frame.id.term) {
        return refuse(format!("entry {} cannot follow entry {last}", frame.id));
    }
    let longest = borders.segment_bytes.min(FRAME_BYTES_MAX);
    if frame.len() > longest {
        return refuse(format!(
            "entry {} of {} bytes: at most {}",
            frame.id,
            frame.payload_len(),
            longest - HEADER_BYTES as u64
        ));
    }
    Ok(())
}
