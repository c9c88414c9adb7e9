//! One entry as bytes: the frame. Pure; no file, clock or task.
//!
//! A frame is the same on every node of a group, on disk and on the wire, except for the node-local part that tells
//! how far *this* node's log was synced when it wrote the frame. Little endian:
//!
//! | offset | bytes | field | |
//! |---|---|---|---|
//! | 0 | 4 | magic | `QRTF` |
//! | 4 | 1 | version | 1 |
//! | 5 | 1 | kind | 0 blank · 1 normal · 2 membership · 3 floor · 4 filler |
//! | 6 | 2 | zero | |
//! | 8 | 4 | payload length | |
//! | 12 | 4 | payload crc | crc32c of the payload |
//! | 16 | 8 | position | of the frame's first byte in the commit log |
//! | 24 | 8 | term | |
//! | 32 | 8 | node | |
//! | 40 | 8 | index | |
//! | 48 | 4 | previous chain | chain of the entry before; 0 before the first |
//! | 52 | 4 | chain | crc32c of bytes 0..52 |
//! | 56 | 4 | era | node-local: how often this node's log end was set back or opened |
//! | 60 | 8 | synced mark | node-local: everything below this position was on stable storage when the frame was written |
//! | 68 | 4 | local crc | crc32c of bytes 52..68, seeded with the directory's incarnation |
//! | 72 | … | payload | |
//!
//! The wire carries bytes 0..56 and the payload. The chain covers the payload through its crc and all history through
//! the previous chain: two logs with the same chain at an index are the same up to there. The leader computes the
//! payload crc once; a follower checks it once, on receipt; after that only reads from disk check it again.
//!
//! A *filler* says that the rest of its segment is empty because the next frame did not fit. It is no entry: it carries
//! the log id and the chain of the entry before it, and the next entry chains to that entry, not to the filler.

use bytes::Bytes;

use crate::types::{LogId, LogIndex, NodeId, Position, Term};

/// Bytes before the payload on disk.
pub const HEADER_BYTES: usize = 72;
/// Bytes before the payload on the wire: the header without its node-local part.
pub const WIRE_HEADER_BYTES: usize = 56;
/// First bytes of every frame.
pub(crate) const MAGIC: [u8; 4] = *b"QRTF";
const VERSION: u8 = 1;

/// What an entry carries. The kinds' numbers are format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// What was proposed.
    Normal(Bytes),
    /// A membership, encoded by the group.
    Membership(Bytes),
    /// The floor may move up to this segment border.
    Floor(Position),
}

/// Kind of a frame as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Blank = 0,
    Normal = 1,
    Membership = 2,
    Floor = 3,
    Filler = 4,
}

/// Where a frame stands and what it is chained to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position of its first byte.
    pub position: Position,
    /// Chain of the entry before it.
    pub prev_chain: u32,
    /// Chain after it.
    pub chain: u32,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its log id.
    pub id: LogId,
    /// What it carries.
    pub payload: Payload,
    /// crc32c of the payload's bytes.
    pub payload_crc: u32,
    /// Where it stands; set once appended, and on frames read from the log or from the wire.
    pub place: Option<Place>,
}

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("{0} bytes are too short for a frame header")]
    Short(usize),
    /// Another magic.
    #[error("no frame starts here")]
    Magic,
    /// The header's crc does not match.
    #[error("header crc {found:08x}, expected {expected:08x}")]
    HeaderCrc {
        /// Computed from the bytes.
        found: u32,
        /// Written in the header.
        expected: u32,
    },
    /// A version this program does not know.
    #[error("frame version {0} is unknown")]
    Version(u8),
    /// A kind this program does not know.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// The crc of the node-local part does not match.
    #[error("crc of the synced mark does not match")]
    LocalCrc,
    /// The payload's length is not the one in the header, or wrong for its kind.
    #[error("payload of {0} bytes has the wrong length")]
    Length(usize),
    /// The payload's crc does not match.
    #[error("payload crc {found:08x}, expected {expected:08x}")]
    PayloadCrc {
        /// Computed from the bytes.
        found: u32,
        /// Written in the header.
        expected: u32,
    },
}

/// The part of a header that is equal on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    pub payload_len: u32,
    pub payload_crc: u32,
    pub id: LogId,
    pub place: Place,
}

/// The node-local part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Local {
    pub era: u32,
    pub mark: Position,
}

impl Frame {
    /// A frame not yet placed. Computes the payload's crc: the one time it is computed on the leader.
    pub fn new(id: LogId, payload: Payload) -> Self {
        let payload_crc = crc32c::crc32c(&payload.bytes());
        Self { id, payload, payload_crc, place: None }
    }

    /// The header as sent to a peer.
    ///
    /// # Panics
    /// If the frame has no place. Frames read from the log or from the wire always have one.
    pub fn wire_header(&self) -> [u8; WIRE_HEADER_BYTES] {
        let place = self.place.expect("a frame that is sent was read from the log, which gives it a place");
        self.header_at(place.position, place.prev_chain).encode_wire()
    }

    /// Length of the payload that follows a wire header. Checks the header, so a length that comes back was written by a
    /// sender of frames; the caller still bounds it before it allocates.
    pub fn wire_payload_len(header: &[u8; WIRE_HEADER_BYTES]) -> Result<usize, FrameError> {
        Header::decode_wire(header).map(|header| header.payload_len as usize)
    }

    /// Checks a header and its payload as they came from a peer.
    pub fn from_wire(header: &[u8; WIRE_HEADER_BYTES], payload: Bytes) -> Result<Self, FrameError> {
        Header::decode_wire(header)?.with_payload(payload)
    }

    /// The payload as bytes.
    pub fn payload_bytes(&self) -> Bytes {
        self.payload.bytes()
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// Bytes it takes in the log, header included; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least its header")]
    pub fn len(&self) -> u64 {
        (HEADER_BYTES + self.payload_len()) as u64
    }

    /// Position of the payload's first byte.
    ///
    /// # Panics
    /// If the frame has no place.
    pub fn payload_position(&self) -> Position {
        let place = self.place.expect("only a placed frame is asked where its payload is");
        Position(place.position.0 + HEADER_BYTES as u64)
    }

    /// Position after its last byte.
    ///
    /// # Panics
    /// If the frame has no place.
    pub fn end(&self) -> Position {
        let place = self.place.expect("only a placed frame is asked where it ends");
        Position(place.position.0 + self.len())
    }

    /// The header this frame gets at `position` behind an entry with `prev_chain`.
    pub(crate) fn header_at(&self, position: Position, prev_chain: u32) -> Header {
        let payload_len =
            u32::try_from(self.payload_len()).expect("append bounds a payload by the segment, which is at most 4 GiB");
        Header::seal(self.payload.kind(), payload_len, self.payload_crc, self.id, position, prev_chain)
    }
}

impl Payload {
    fn kind(&self) -> Kind {
        match self {
            Self::Blank => Kind::Blank,
            Self::Normal(_) => Kind::Normal,
            Self::Membership(_) => Kind::Membership,
            Self::Floor(_) => Kind::Floor,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Blank => 0,
            Self::Normal(bytes) | Self::Membership(bytes) => bytes.len(),
            Self::Floor(_) => 8,
        }
    }

    fn bytes(&self) -> Bytes {
        match self {
            Self::Blank => Bytes::new(),
            Self::Normal(bytes) | Self::Membership(bytes) => bytes.clone(),
            Self::Floor(position) => Bytes::copy_from_slice(&position.0.to_le_bytes()),
        }
    }
}

impl Kind {
    fn parse(number: u8) -> Result<Self, FrameError> {
        Ok(match number {
            0 => Self::Blank,
            1 => Self::Normal,
            2 => Self::Membership,
            3 => Self::Floor,
            4 => Self::Filler,
            other => return Err(FrameError::Kind(other)),
        })
    }
}

impl Header {
    /// Puts the parts together and computes the chain.
    pub fn seal(
        kind: Kind,
        payload_len: u32,
        payload_crc: u32,
        id: LogId,
        position: Position,
        prev_chain: u32,
    ) -> Self {
        let mut header = Self { kind, payload_len, payload_crc, id, place: Place { position, prev_chain, chain: 0 } };
        header.place.chain = crc32c::crc32c(&header.encode_wire()[..52]);
        header
    }

    /// A filler at `position`, behind the entry `prev` with chain `prev_chain`.
    pub fn filler(prev: Option<LogId>, position: Position, prev_chain: u32) -> Self {
        Self::seal(Kind::Filler, 0, 0, prev.unwrap_or_default(), position, prev_chain)
    }

    /// Bytes from the frame's first to after its last.
    pub fn frame_len(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.payload_len)
    }

    pub fn end(&self) -> Position {
        Position(self.place.position.0 + self.frame_len())
    }

    pub fn encode_wire(&self) -> [u8; WIRE_HEADER_BYTES] {
        let mut out = [0; WIRE_HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.kind as u8;
        out[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.place.position.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.id.term.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.id.node.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.id.index.0.to_le_bytes());
        out[48..52].copy_from_slice(&self.place.prev_chain.to_le_bytes());
        out[52..56].copy_from_slice(&self.place.chain.to_le_bytes());
        out
    }

    pub fn encode(&self, local: Local, incarnation: u32) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..WIRE_HEADER_BYTES].copy_from_slice(&self.encode_wire());
        out[56..60].copy_from_slice(&local.era.to_le_bytes());
        out[60..68].copy_from_slice(&local.mark.0.to_le_bytes());
        let crc = crc32c::crc32c_append(incarnation, &out[52..68]);
        out[68..72].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Decodes the shared part. The crc is checked before anything else is believed.
    pub fn decode_wire(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() < WIRE_HEADER_BYTES {
            return Err(FrameError::Short(bytes.len()));
        }
        if bytes[0..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let (found, expected) = (crc32c::crc32c(&bytes[..52]), u32_at(bytes, 52));
        if found != expected {
            return Err(FrameError::HeaderCrc { found, expected });
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version(bytes[4]));
        }
        let id = LogId {
            term: Term(u64_at(bytes, 24)),
            node: NodeId(u64_at(bytes, 32)),
            index: LogIndex(u64_at(bytes, 40)),
        };
        let place = Place { position: Position(u64_at(bytes, 16)), prev_chain: u32_at(bytes, 48), chain: expected };
        Ok(Self {
            kind: Kind::parse(bytes[5])?,
            payload_len: u32_at(bytes, 8),
            payload_crc: u32_at(bytes, 12),
            id,
            place,
        })
    }

    /// Decodes a header as it is on disk, node-local part included.
    pub fn decode(bytes: &[u8], incarnation: u32) -> Result<(Self, Local), FrameError> {
        if bytes.len() < HEADER_BYTES {
            return Err(FrameError::Short(bytes.len()));
        }
        let header = Self::decode_wire(bytes)?;
        if crc32c::crc32c_append(incarnation, &bytes[52..68]) != u32_at(bytes, 68) {
            return Err(FrameError::LocalCrc);
        }
        Ok((header, Local { era: u32_at(bytes, 56), mark: Position(u64_at(bytes, 60)) }))
    }

    /// Checks the payload's length and crc.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() != self.payload_len as usize {
            return Err(FrameError::Length(payload.len()));
        }
        let found = crc32c::crc32c(payload);
        if found != self.payload_crc {
            return Err(FrameError::PayloadCrc { found, expected: self.payload_crc });
        }
        Ok(())
    }

    /// The entry this header and `payload` make.
    pub fn with_payload(&self, payload: Bytes) -> Result<Frame, FrameError> {
        self.check_payload(&payload)?;
        let payload = match self.kind {
            Kind::Blank if payload.is_empty() => Payload::Blank,
            Kind::Normal => Payload::Normal(payload),
            Kind::Membership => Payload::Membership(payload),
            Kind::Floor if payload.len() == 8 => Payload::Floor(Position(u64_at(&payload, 0))),
            Kind::Blank | Kind::Floor => return Err(FrameError::Length(payload.len())),
            Kind::Filler => return Err(FrameError::Kind(Kind::Filler as u8)),
        };
        Ok(Frame { id: self.id, payload, payload_crc: self.payload_crc, place: Some(self.place) })
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes were sliced"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes were sliced"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: Payload) -> Frame {
        let mut frame = Frame::new(LogId { term: Term(3), node: NodeId::new(2, 7), index: LogIndex(9) }, payload);
        frame.place = Some(frame.header_at(Position(4096), 0xabcd).place);
        frame
    }

    #[test]
    fn every_kind_survives_the_wire() {
        let payloads = [
            Payload::Blank,
            Payload::Normal(Bytes::from_static(b"body")),
            Payload::Membership(Bytes::from_static(b"1,2,3")),
            Payload::Floor(Position(1 << 30)),
        ];
        for payload in payloads {
            let frame = frame(payload);
            let header = frame.wire_header();
            assert_eq!(Frame::wire_payload_len(&header), Ok(frame.payload_len()));
            assert_eq!(Frame::from_wire(&header, frame.payload_bytes()), Ok(frame));
        }
    }

    #[test]
    fn a_flip_of_any_header_bit_is_seen() {
        let header = frame(Payload::Normal(Bytes::from_static(b"body"))).header_at(Position(4096), 1);
        let good = header.encode(Local { era: 5, mark: Position(4000) }, 77);
        assert_eq!(Header::decode(&good, 77), Ok((header, Local { era: 5, mark: Position(4000) })));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, 77).is_err(), "bit {bit}");
        }
        assert_eq!(Header::decode(&good, 78), Err(FrameError::LocalCrc));
    }

    #[test]
    fn a_payload_of_another_length_or_content_is_refused() {
        let frame = frame(Payload::Normal(Bytes::from_static(b"body")));
        let header = frame.wire_header();
        assert_eq!(Frame::from_wire(&header, Bytes::from_static(b"bod")), Err(FrameError::Length(3)));
        let refused = Frame::from_wire(&header, Bytes::from_static(b"bodz"));
        assert!(matches!(refused, Err(FrameError::PayloadCrc { .. })), "{refused:?}");
    }

    #[test]
    fn a_filler_is_no_entry() {
        let header = Header::filler(None, Position(100), 4);
        assert_eq!(header.with_payload(Bytes::new()), Err(FrameError::Kind(4)));
    }
}
