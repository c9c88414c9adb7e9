//! Reading frames out of a segment's bytes one after another, and telling the end of the log from damage. Pure: bytes
//! come through [`Source`], nothing is changed, and no byte sequence makes it panic or allocate more than the bytes exist.
//!
//! A frame continues the log only if everything fits: its crc's, its own position, the chain and index of the entry
//! before it, a term that is not lower, and an era that is not lower. The era rises whenever this node sets the end of
//! its log back, so a frame left over behind a truncation never attaches again, whatever is written in front of it.
//!
//! What follows a frame that does not continue the log is judged by [`find_voucher`]: a frame of the *current* era whose
//! synced mark lies behind the damaged place proves that the place was on stable storage once. That is corruption. With
//! no such proof it is the tail of a write that was cut, which nobody was told to be safe. Called by `recover` and, for
//! old segments, by `index`.

use std::{io, ops::Range};

use bytes::Bytes;

use crate::{
    log::frame::{FrameError, HEADER_BYTES, Header, Kind, Local, MAGIC},
    types::{LogId, LogIndex, Position},
};

const HEADER: u64 = HEADER_BYTES as u64;
/// The search for vouchers ends after this many zero bytes: no frame is that long (`GroupConfig::validate` and the
/// limit in `Log::append` see to that), so nothing was ever written behind them.
pub(crate) const ZEROS_MAX: u64 = 64 << 20;
const CHUNK: usize = 1 << 20;

/// Bytes by position.
pub(crate) trait Source {
    /// Up to `len` bytes from `position` on; fewer, or none, where the file ends.
    fn bytes(&mut self, position: u64, len: usize) -> io::Result<Bytes>;
}

/// What a frame has to continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Where the next frame stands, unless a filler sends it to the next segment.
    pub position: Position,
    /// The entry before it, if known.
    pub prev: Option<LogId>,
    /// The index it has to have; `None` if any will do (a log that never had an entry).
    pub next_index: Option<LogIndex>,
    /// Chain of the entry before it.
    pub chain: u32,
    /// Era of the entry before it.
    pub era: u32,
}

/// How strictly frames are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checks {
    /// Read payloads and check their crc.
    pub payloads: bool,
    /// The directory's current era: no frame has a higher one.
    pub era: u32,
    /// Seed of the local crc.
    pub incarnation: u32,
}

/// Why a walk through a segment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The log continues in the next segment.
    Full,
    /// Nothing was written here.
    Zeros,
    /// Bytes that do not continue the log.
    Damage(Damage),
}

/// What is wrong with the bytes at the cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    /// Not a sound frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A sound frame that does not belong here.
    #[error("a frame that does not continue the log")]
    Foreign,
    /// A frame that continues the log but is younger than the directory's hard state knows of.
    #[error("era {0} is ahead of the hard state")]
    Newer(u32),
    /// The file ends inside a frame.
    #[error("the file ends")]
    FileEnds,
}

/// Where a walk ended and why.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    pub cursor: Cursor,
    pub stop: Stop,
}

/// Reads frames of the segment `range` from `cursor` on and shows each to `visit`.
pub(crate) fn walk(
    source: &mut dyn Source,
    range: Range<u64>,
    mut cursor: Cursor,
    checks: Checks,
    visit: &mut dyn FnMut(&Header, Local),
) -> io::Result<Walk> {
    loop {
        let at = cursor.position.0;
        if range.end.saturating_sub(at) < HEADER {
            return Ok(Walk { cursor, stop: Stop::Full });
        }
        let bytes = source.bytes(at, HEADER_BYTES)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Walk { cursor, stop: Stop::Zeros });
        }
        let (header, local) = match Header::decode(&bytes, checks.incarnation) {
            Ok(decoded) => decoded,
            Err(FrameError::Short(_)) => return Ok(Walk { cursor, stop: Stop::Damage(Damage::FileEnds) }),
            Err(error) => return Ok(Walk { cursor, stop: Stop::Damage(error.into()) }),
        };
        if !continues(&cursor, &header, local) || header.end().0 > range.end {
            return Ok(Walk { cursor, stop: Stop::Damage(Damage::Foreign) });
        }
        if local.era > checks.era {
            return Ok(Walk { cursor, stop: Stop::Damage(Damage::Newer(local.era)) });
        }
        if header.kind == Kind::Filler {
            return Ok(Walk { cursor, stop: Stop::Full });
        }
        if checks.payloads {
            let payload = source.bytes(at + HEADER, header.payload_len as usize)?;
            if payload.len() < header.payload_len as usize {
                return Ok(Walk { cursor, stop: Stop::Damage(Damage::FileEnds) });
            }
            if let Err(error) = header.check_payload(&payload) {
                return Ok(Walk { cursor, stop: Stop::Damage(error.into()) });
            }
        }
        visit(&header, local);
        cursor = Cursor {
            position: header.end(),
            prev: Some(header.id),
            next_index: Some(LogIndex(header.id.index.0.saturating_add(1))),
            chain: header.place.chain,
            era: local.era,
        };
    }
}

fn continues(cursor: &Cursor, header: &Header, local: Local) -> bool {
    let placed = header.place.position == cursor.position && header.place.prev_chain == cursor.chain;
    let numbered = header.kind == Kind::Filler || cursor.next_index.is_none_or(|index| index == header.id.index);
    let termed = cursor.prev.is_none_or(|prev| header.id.term >= prev.term);
    placed && local.era >= cursor.era && numbered && termed
}

/// What lies behind the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Behind {
    /// A frame that proves that the damaged place was once on stable storage.
    pub voucher: Option<Position>,
    /// After the last byte that is not zero; 0 if there is none.
    pub end: u64,
}

/// Looks in `range` for a frame that vouches for the place `damaged`.
pub(crate) fn find_voucher(
    source: &mut dyn Source,
    range: Range<u64>,
    damaged: Position,
    checks: Checks,
) -> io::Result<Behind> {
    let mut behind = Behind::default();
    let mut at = range.start;
    while at < range.end && at.saturating_sub(behind.end.max(range.start)) <= ZEROS_MAX {
        // Chunks overlap by a header, so that a frame's header lies whole in one of them.
        let wanted = (range.end - at).min((CHUNK + HEADER_BYTES) as u64) as usize;
        let bytes = source.bytes(at, wanted)?;
        if bytes.is_empty() {
            break;
        }
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            behind.end = behind.end.max(at + last as u64 + 1);
            for start in (0..bytes.len()).filter(|start| bytes[*start] == MAGIC[0]) {
                let Ok((header, local)) = Header::decode(&bytes[start..], checks.incarnation) else { continue };
                let sound = header.place.position.0 == at + start as u64 && local.era >= checks.era;
                if sound && local.mark > damaged {
                    return Ok(Behind { voucher: Some(header.place.position), ..behind });
                }
            }
        }
        at += CHUNK as u64;
    }
    Ok(behind)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        log::frame::{Frame, Payload},
        types::{NodeId, Term},
    };

    pub(crate) struct Memory(pub Bytes);

    impl Source for Memory {
        fn bytes(&mut self, position: u64, len: usize) -> io::Result<Bytes> {
            let start = (position as usize).min(self.0.len());
            Ok(self.0.slice(start..(start + len).min(self.0.len())))
        }
    }

    const CHECKS: Checks = Checks { payloads: true, era: 2, incarnation: 9 };
    const START: Cursor = Cursor { position: Position(0), prev: None, next_index: None, chain: 0, era: 0 };

    /// Frames with payloads of the given sizes, marked as one write each.
    fn bytes_of(sizes: &[usize], marks: bool) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut ends, mut chain) = (Vec::new(), Vec::new(), 0);
        for (index, size) in sizes.iter().enumerate() {
            let id = LogId { term: Term(1), node: NodeId(1), index: LogIndex(index as u64) };
            let frame = Frame::new(id, Payload::Normal(vec![7; *size].into()));
            let header = frame.header_at(Position(out.len() as u64), chain);
            chain = header.place.chain;
            let mark = if marks { out.len() as u64 } else { 0 };
            out.extend(header.encode(Local { era: 2, mark: Position(mark) }, 9));
            out.extend(frame.payload_bytes());
            ends.push(out.len());
        }
        (out, ends)
    }

    #[test]
    fn a_cut_at_every_byte_leaves_the_frames_before_it() {
        let (bytes, ends) = bytes_of(&[0, 5, 100, 1, 40], false);
        for cut in 0..=bytes.len() {
            let mut seen = 0;
            let mut source = Memory(Bytes::copy_from_slice(&bytes[..cut]));
            let walk = walk(&mut source, 0..4096, START, CHECKS, &mut |_, _| seen += 1).unwrap();
            assert_eq!(seen, ends.iter().filter(|end| **end <= cut).count(), "cut at {cut}");
            assert_eq!(
                walk.cursor.position.0 as usize,
                ends.iter().copied().filter(|end| *end <= cut).max().unwrap_or(0)
            );
        }
    }

    #[test]
    fn a_later_mark_vouches_and_a_frame_of_an_older_era_does_not() {
        let (bytes, ends) = bytes_of(&[10, 10, 10], true);
        let mut source = Memory(bytes.into());
        let damaged = Position(ends[0] as u64 + 3);
        let found = find_voucher(&mut source, damaged.0..4096, damaged, CHECKS).unwrap();
        assert_eq!(found.voucher, Some(Position(ends[1] as u64)));
        let later = Checks { era: 3, ..CHECKS };
        assert_eq!(find_voucher(&mut source, damaged.0..4096, damaged, later).unwrap().voucher, None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0u64..700) {
            let mut source = Memory(bytes.into());
            let start = Cursor { position: Position(at), ..START };
            walk(&mut source, 0..512, start, CHECKS, &mut |_, _| ()).unwrap();
            find_voucher(&mut source, at..at + 512, Position(at), CHECKS).unwrap();
        }

        #[test]
        fn a_changed_byte_never_yields_another_frame(change in 0usize..400, to in any::<u8>()) {
            let (mut bytes, ends) = bytes_of(&[20, 30, 0, 60], false);
            let at = change % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let mut seen = 0;
            walk(&mut Memory(bytes.into()), 0..4096, START, CHECKS, &mut |_, _| seen += 1).unwrap();
            prop_assert_eq!(seen, ends.iter().filter(|end| **end <= at).count());
        }
    }
}
