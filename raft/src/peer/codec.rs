//! What nodes say to each other, as bytes.
//!
//! Everything is little endian. A connection starts with [`Hello`] and [`Welcome`]; after that each message is a length
//! (4 bytes) and that many bytes. On control and call connections they start with a [`Tag`]; on append connections they are
//! requests one way and answers the other, in the same order. Entries travel as the frames they are on disk, header and
//! payload, and keep the crc that their proposer computed.
//!
//! Bytes from a peer are data, not trust: every length is bounded before memory is taken, and a malformed message is an
//! error of that connection, never a panic.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest, VoteResponse,
};

use crate::{
    binding::{
        AppendRequest, Entry, RaftLogId, RaftVote, TypeConfig, from_raft, put_log_id, put_optional_log_id, put_text,
        raft_vote, take_log_id, take_optional_log_id, take_text, to_raft, vote_record,
    },
    log::{Frame, VoteRecord, WIRE_HEADER_BYTES},
    types::{LogId, NodeId, Term},
};

/// First bytes of every connection.
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"QRTP");

/// Version of everything in this file. Nodes of different versions refuse each other.
pub(crate) const PROTOCOL: u16 = 1;

/// Largest hello or welcome.
pub(crate) const HANDSHAKE_BYTES_MAX: usize = 16 << 10;

/// Largest control message; heartbeats and votes are below a kilobyte.
pub(crate) const CONTROL_BYTES_MAX: usize = 1 << 20;

/// Largest request or answer of a call.
pub(crate) const CALL_BYTES_MAX: usize = 64 << 20;

/// Largest image.
pub(crate) const IMAGE_BYTES_MAX: usize = 1 << 30;

/// A message that is not what it should be; says which part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct Malformed(pub &'static str);

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Class {
    /// Heartbeats, votes, pre-votes, transfer, cards: short, never behind bulk.
    Control = 1,
    /// Entries.
    Append = 2,
    /// One image at a time.
    Image = 3,
    /// Requests of the layer above.
    Call = 4,
}

impl Class {
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Control),
            2 => Some(Self::Append),
            3 => Some(Self::Image),
            4 => Some(Self::Call),
            _ => None,
        }
    }
}

/// Where a node stands in the life of its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Empty, and takes part in a birth.
    Unborn = 1,
    /// Has a log.
    Member = 2,
    /// Has a log that may lack what it acked, and does not vote until it has caught up.
    Lost = 3,
    /// Empty, and told to start a group by itself.
    Bootstrap = 4,
}

impl Stage {
    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Unborn),
            2 => Some(Self::Member),
            3 => Some(Self::Lost),
            4 => Some(Self::Bootstrap),
            _ => None,
        }
    }
}

/// What a node says about itself: in both directions of a handshake, and regularly after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Card {
    pub cluster: String,
    pub node: NodeId,
    pub segment_bytes: u64,
    pub stage: Stage,
    /// Where others reach it.
    pub peer_address: String,
    /// `GroupConfig::info`.
    pub info: String,
    pub term: Term,
    pub leader: Option<NodeId>,
    /// Last applied entry and the running hash after it.
    pub applied: Option<(LogId, u32)>,
    pub last: Option<LogId>,
    /// Voters of the membership it knows.
    pub voters: Vec<NodeId>,
}

/// Voters a card can name.
const VOTERS_MAX: usize = 256;

impl Card {
    fn put(&self, out: &mut BytesMut) {
        put_text(out, &self.cluster);
        out.put_u64_le(self.node.0);
        out.put_u64_le(self.segment_bytes);
        out.put_u8(self.stage as u8);
        put_text(out, &self.peer_address);
        put_text(out, &self.info);
        out.put_u64_le(self.term.0);
        out.put_u64_le(self.leader.map_or(0, |leader| leader.0));
        put_optional_log_id(out, self.applied.map(|(id, _)| id));
        out.put_u32_le(self.applied.map_or(0, |(_, chain)| chain));
        put_optional_log_id(out, self.last);
        out.put_u16_le(self.voters.len() as u16);
        for voter in &self.voters {
            out.put_u64_le(voter.0);
        }
    }

    fn take(from: &mut Bytes) -> Option<Self> {
        let cluster = take_text(from)?;
        let node = NodeId(from.try_get_u64_le().ok()?);
        let segment_bytes = from.try_get_u64_le().ok()?;
        let stage = Stage::from_number(from.try_get_u8().ok()?)?;
        let peer_address = take_text(from)?;
        let info = take_text(from)?;
        let term = Term(from.try_get_u64_le().ok()?);
        let leader = Some(NodeId(from.try_get_u64_le().ok()?)).filter(|leader| leader.0 != 0);
        let applied = take_optional_log_id(from)?;
        let chain = from.try_get_u32_le().ok()?;
        let last = take_optional_log_id(from)?;
        let count = usize::from(from.try_get_u16_le().ok()?);
        if count > VOTERS_MAX {
            return None;
        }
        let voters = (0..count).map(|_| from.try_get_u64_le().ok().map(NodeId)).collect::<Option<Vec<_>>>()?;
        let applied = applied.map(|id| (id, chain));
        Some(Self { cluster, node, segment_bytes, stage, peer_address, info, term, leader, applied, last, voters })
    }

    /// A card on its own.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.put(&mut out);
        out.freeze()
    }

    /// The reverse of [`Card::encode`].
    pub(crate) fn decode(mut from: Bytes) -> Result<Self, Malformed> {
        Self::take(&mut from).ok_or(Malformed("card"))
    }
}

/// First message of who connects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hello {
    pub class: Class,
    /// Configured number of who should answer.
    pub number: u16,
    /// Its full identity, if a certain one is meant.
    pub expected: Option<NodeId>,
    pub card: Card,
}

/// Why two nodes do not talk: before anything else is said, and with words that help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub String);

/// The answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Welcome {
    /// `Err`: the connection ends here.
    pub accepted: Result<(), Refused>,
    pub card: Card,
}

fn put_start(out: &mut BytesMut) {
    out.put_u32_le(MAGIC);
    out.put_u16_le(PROTOCOL);
}

/// Magic and version; a wrong one is told apart from garbage.
fn take_start(from: &mut Bytes) -> Result<(), Refused> {
    let refuse = || Refused("not a quorate peer".into());
    if from.try_get_u32_le().map_err(|_| refuse())? != MAGIC {
        return Err(refuse());
    }
    let version = from.try_get_u16_le().map_err(|_| refuse())?;
    if version != PROTOCOL {
        return Err(Refused(format!("peer speaks protocol {version}, this node speaks {PROTOCOL}")));
    }
    Ok(())
}

impl Hello {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_start(&mut out);
        out.put_u8(self.class as u8);
        out.put_u16_le(self.number);
        out.put_u64_le(self.expected.map_or(0, |node| node.0));
        self.card.put(&mut out);
        out.freeze()
    }

    pub(crate) fn decode(mut from: Bytes) -> Result<Self, Refused> {
        take_start(&mut from)?;
        let rest = |from: &mut Bytes| {
            let class = Class::from_number(from.try_get_u8().ok()?)?;
            let number = from.try_get_u16_le().ok()?;
            let expected = Some(NodeId(from.try_get_u64_le().ok()?)).filter(|node| node.0 != 0);
            Some(Self { class, number, expected, card: Card::take(from)? })
        };
        rest(&mut from).ok_or_else(|| Refused(Malformed("hello").to_string()))
    }
}

impl Welcome {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_start(&mut out);
        match &self.accepted {
            Ok(()) => put_text(&mut out, ""),
            Err(Refused(reason)) => put_text(&mut out, reason),
        }
        self.card.put(&mut out);
        out.freeze()
    }

    pub(crate) fn decode(mut from: Bytes) -> Result<Self, Refused> {
        take_start(&mut from)?;
        let rest = |from: &mut Bytes| {
            let reason = take_text(from)?;
            let accepted = if reason.is_empty() { Ok(()) } else { Err(Refused(reason)) };
            Some(Self { accepted, card: Card::take(from)? })
        };
        rest(&mut from).ok_or_else(|| Refused(Malformed("welcome").to_string()))
    }
}

/// What a message on a control or call connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Vote = 1,
    PreVote = 2,
    /// Append without a stream: heartbeats.
    Append = 3,
    Transfer = 4,
    Card = 5,
    /// An empty node asks the leader to be taken in.
    Join = 6,
    /// Asks the leader which entry makes a node up to date.
    ReadIndex = 7,
    /// A request of the layer above.
    Call = 9,
    /// Asks whether the leader's process is gone, as seen from there.
    Suspect = 10,
    /// Asks for a file, to put a damaged one back.
    Lend = 11,
    /// The answer to a request.
    Answer = 32,
    /// The request is refused; the body says why.
    Refusal = 33,
    /// Nobody waits for the answer any more.
    Cancel = 34,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        let known = [
            Self::Vote,
            Self::PreVote,
            Self::Append,
            Self::Transfer,
            Self::Card,
            Self::Join,
            Self::ReadIndex,
            Self::Call,
            Self::Suspect,
            Self::Lend,
            Self::Answer,
            Self::Refusal,
            Self::Cancel,
        ];
        known.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Start of a message on a control or call connection: kind, and the number that joins a request and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag {
    pub kind: Kind,
    pub id: u64,
}

/// Bytes of a tag.
pub(crate) const TAG_BYTES: usize = 9;

impl Tag {
    /// Length, tag and body as they are sent.
    pub(crate) fn message(self, body: &Bytes) -> [Bytes; 2] {
        let mut head = BytesMut::with_capacity(4 + TAG_BYTES);
        head.put_u32_le((TAG_BYTES + body.len()) as u32);
        head.put_u8(self.kind as u8);
        head.put_u64_le(self.id);
        [head.freeze(), body.clone()]
    }

    pub(crate) fn take(from: &mut Bytes) -> Result<Self, Malformed> {
        let kind = from.try_get_u8().ok().and_then(Kind::from_number).ok_or(Malformed("message kind"))?;
        let id = from.try_get_u64_le().map_err(|_| Malformed("message number"))?;
        Ok(Self { kind, id })
    }
}

fn put_vote(out: &mut BytesMut, vote: &RaftVote) {
    let record = vote_record(vote);
    out.put_u64_le(record.term.0);
    out.put_u64_le(record.node.0);
    out.put_u8(u8::from(record.committed));
}

fn take_vote(from: &mut Bytes) -> Option<RaftVote> {
    let term = Term(from.try_get_u64_le().ok()?);
    let node = NodeId(from.try_get_u64_le().ok()?);
    let committed = from.try_get_u8().ok()? == 1;
    Some(raft_vote(VoteRecord { term, node, committed }))
}

fn put_raft_log_id(out: &mut BytesMut, id: Option<&RaftLogId>) {
    put_optional_log_id(out, id.map(from_raft));
}

fn take_raft_log_id(from: &mut Bytes) -> Option<Option<RaftLogId>> {
    Some(take_optional_log_id(from)?.map(to_raft))
}

/// A vote alone: in the answer to an image.
pub(crate) fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, vote);
    out.freeze()
}

/// The reverse of [`encode_vote`]; takes it from the front of `from`.
pub(crate) fn decode_vote(from: &mut Bytes) -> Result<RaftVote, Malformed> {
    take_vote(from).ok_or(Malformed("vote"))
}

pub(crate) fn encode_vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, &request.vote);
    put_raft_log_id(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn decode_vote_request(mut from: Bytes) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let take = |from: &mut Bytes| {
        let mut request = VoteRequest::new(take_vote(from)?, take_raft_log_id(from)?);
        request.leadership_transfer = from.try_get_u8().ok()? == 1;
        Some(request)
    };
    take(&mut from).ok_or(Malformed("vote request"))
}

pub(crate) fn encode_vote_response(response: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, &response.vote);
    out.put_u8(u8::from(response.vote_granted));
    put_raft_log_id(&mut out, response.last_log_id.as_ref());
    out.freeze()
}

pub(crate) fn decode_vote_response(mut from: Bytes) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let take = |from: &mut Bytes| {
        let vote = take_vote(from)?;
        let granted = from.try_get_u8().ok()? == 1;
        Some(VoteResponse::new(vote, take_raft_log_id(from)?, granted))
    };
    take(&mut from).ok_or(Malformed("vote response"))
}

pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(request.to_node_id().0);
    put_raft_log_id(&mut out, request.last_log_id());
    out.freeze()
}

pub(crate) fn decode_transfer(mut from: Bytes) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    let take = |from: &mut Bytes| {
        let vote = take_vote(from)?;
        let to = NodeId(from.try_get_u64_le().ok()?);
        Some(TransferLeaderRequest::new(vote, to, take_raft_log_id(from)?))
    };
    take(&mut from).ok_or(Malformed("transfer request"))
}

/// Payloads below this size are copied next to their headers: fewer, larger pieces for the socket.
const COPY_BELOW: usize = 4096;

/// A request to append, in pieces that share the entries' bytes; the message length is the first piece.
///
/// vote (17) · previous entry (1 or 25) · commit (1 or 25) · entries (4) · per entry its frame (wire header, payload)
///
/// Entries have a place here: they were read from this node's log.
pub(crate) fn encode_append(request: &AppendRequest) -> Vec<Bytes> {
    let mut pieces = vec![Bytes::new()];
    let mut open = BytesMut::with_capacity(128 + request.entries.len() * (WIRE_HEADER_BYTES + 64));
    put_vote(&mut open, &request.vote);
    put_raft_log_id(&mut open, request.prev_log_id.as_ref());
    put_raft_log_id(&mut open, request.leader_commit.as_ref());
    open.put_u32_le(request.entries.len() as u32);
    for entry in &request.entries {
        let frame = entry.frame();
        open.put_slice(&frame.wire_header());
        let payload = frame.payload_bytes();
        if payload.len() < COPY_BELOW {
            open.put_slice(&payload);
        } else {
            pieces.push(open.split().freeze());
            pieces.push(payload);
        }
    }
    if !open.is_empty() {
        pieces.push(open.freeze());
    }
    let len: usize = pieces.iter().map(Bytes::len).sum();
    pieces[0] = Bytes::copy_from_slice(&(len as u32).to_le_bytes());
    pieces
}

/// The reverse of [`encode_append`], without the length. Verifies the crc of every payload: nobody does so again.
pub(crate) fn decode_append(mut from: Bytes) -> Result<AppendRequest, Malformed> {
    let malformed = Malformed("append request");
    let head = |from: &mut Bytes| Some((take_vote(from)?, take_raft_log_id(from)?, take_raft_log_id(from)?));
    let (vote, prev_log_id, leader_commit) = head(&mut from).ok_or(malformed.clone())?;
    let count = from.try_get_u32_le().map_err(|_| malformed)? as usize;
    if count > from.len() / WIRE_HEADER_BYTES {
        return Err(Malformed("number of entries"));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let (header, _) = from.split_first_chunk::<WIRE_HEADER_BYTES>().ok_or(Malformed("entry header"))?;
        let header = *header;
        from.advance(WIRE_HEADER_BYTES);
        let len = Frame::wire_payload_len(&header).map_err(|_| Malformed("entry header"))?;
        if len > from.len() {
            return Err(Malformed("entry length"));
        }
        let frame = Frame::from_wire(&header, from.split_to(len)).map_err(|_| Malformed("entry"))?;
        entries.push(Entry::from_frame(frame).map_err(|_| Malformed("membership"))?);
    }
    if !from.is_empty() {
        return Err(Malformed("end of append request"));
    }
    Ok(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

/// What a follower says to one append request of a stream, with its length before it.
pub(crate) fn encode_append_result(result: &StreamAppendResult<TypeConfig>, out: &mut BytesMut) {
    let at = out.len();
    out.put_u32_le(0);
    match result {
        Ok(matched) => {
            out.put_u8(1);
            put_raft_log_id(out, matched.as_ref());
        }
        Err(StreamAppendError::Conflict(id)) => {
            out.put_u8(2);
            put_log_id(out, from_raft(id));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(3);
            put_vote(out, vote);
        }
    }
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Largest answer to an append request.
pub(crate) const APPEND_RESULT_BYTES_MAX: usize = 64;

pub(crate) fn decode_append_result(mut from: Bytes) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    let take = |from: &mut Bytes| match from.try_get_u8().ok()? {
        1 => Some(Ok(take_raft_log_id(from)?)),
        2 => Some(Err(StreamAppendError::Conflict(to_raft(take_log_id(from)?)))),
        3 => Some(Err(StreamAppendError::HigherVote(take_vote(from)?))),
        _ => None,
    };
    take(&mut from).ok_or(Malformed("append answer"))
}

/// What a follower says to a heartbeat.
pub(crate) fn encode_append_response(response: &AppendEntriesResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    match response {
        AppendEntriesResponse::Success => out.put_u8(1),
        AppendEntriesResponse::PartialSuccess(matched) => {
            out.put_u8(2);
            put_raft_log_id(&mut out, matched.as_ref());
        }
        AppendEntriesResponse::Conflict => out.put_u8(3),
        AppendEntriesResponse::HigherVote(vote) => {
            out.put_u8(4);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub(crate) fn decode_append_response(mut from: Bytes) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    let take = |from: &mut Bytes| match from.try_get_u8().ok()? {
        1 => Some(AppendEntriesResponse::Success),
        2 => Some(AppendEntriesResponse::PartialSuccess(take_raft_log_id(from)?)),
        3 => Some(AppendEntriesResponse::Conflict),
        4 => Some(AppendEntriesResponse::HigherVote(take_vote(from)?)),
        _ => None,
    };
    take(&mut from).ok_or(Malformed("heartbeat answer"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogIndex, Position};

    fn id(index: u64) -> LogId {
        LogId { term: Term(7), node: NodeId::new(2, 9), index: LogIndex(index) }
    }

    fn card() -> Card {
        Card {
            cluster: "c".into(),
            node: NodeId::new(1, 5),
            segment_bytes: 1 << 20,
            stage: Stage::Member,
            peer_address: "127.0.0.1:9870".into(),
            info: "127.0.0.1:8081".into(),
            term: Term(3),
            leader: Some(NodeId::new(2, 6)),
            applied: Some((id(41), 0xdead_beef)),
            last: Some(id(44)),
            voters: vec![NodeId::new(1, 5), NodeId::new(2, 6)],
        }
    }

    #[test]
    fn hello_and_welcome_come_back_as_they_were() {
        let hello = Hello { class: Class::Append, number: 2, expected: Some(NodeId::new(2, 6)), card: card() };
        assert_eq!(Hello::decode(hello.encode()), Ok(hello));
        let welcome = Welcome { accepted: Err(Refused("another cluster".into())), card: card() };
        assert_eq!(Welcome::decode(welcome.encode()), Ok(welcome));
    }

    #[test]
    fn a_handshake_cut_or_bent_anywhere_is_refused_and_never_a_panic() {
        let whole = Hello { class: Class::Call, number: 1, expected: None, card: card() }.encode();
        for len in 0..whole.len() {
            assert!(Hello::decode(whole.slice(..len)).is_err(), "cut at {len}");
            let mut bent = whole.to_vec();
            bent[len] ^= 0x55;
            let _ = Hello::decode(Bytes::from(bent));
        }
        assert!(Hello::decode(Bytes::from_static(b"GET / HTTP/1.1")).is_err());
    }

    #[test]
    fn a_peer_of_another_version_is_told_so() {
        let mut bytes = Hello { class: Class::Call, number: 1, expected: None, card: card() }.encode().to_vec();
        bytes[4] = 99;
        let refused = Hello::decode(Bytes::from(bytes)).expect_err("another version");
        assert!(refused.to_string().contains("protocol 99"), "{refused}");
    }

    #[test]
    fn votes_and_answers_come_back_as_they_were() {
        let vote = raft_vote(VoteRecord { term: Term(9), node: NodeId::new(3, 1), committed: true });
        let mut request = VoteRequest::new(vote, Some(to_raft(id(5))));
        request.leadership_transfer = true;
        assert_eq!(decode_vote_request(encode_vote_request(&request)), Ok(request));
        let response = VoteResponse::new(vote, None, true);
        assert_eq!(decode_vote_response(encode_vote_response(&response)), Ok(response));
        for response in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(Some(to_raft(id(2)))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote),
        ] {
            assert_eq!(decode_append_response(encode_append_response(&response)), Ok(response));
        }
        let results = [
            Ok(None),
            Ok(Some(to_raft(id(8)))),
            Err(StreamAppendError::Conflict(to_raft(id(8)))),
            Err(StreamAppendError::HigherVote(vote)),
        ];
        for result in results {
            let mut out = BytesMut::new();
            encode_append_result(&result, &mut out);
            assert_eq!(decode_append_result(out.freeze().slice(4..)), Ok(result));
        }
    }

    fn append_request() -> AppendRequest {
        let placed = |mut frame: Frame, position, prev_chain| {
            frame.place = Some(frame.header_at(Position(position), prev_chain).place);
            frame
        };
        let small = placed(Frame::new(id(1), crate::log::Payload::Normal(Bytes::from_static(b"small"))), 0, 0);
        let large = placed(Frame::new(id(2), crate::log::Payload::Normal(Bytes::from(vec![7; 9000]))), 128, 5);
        let blank = placed(Frame::new(id(3), crate::log::Payload::Blank), 9500, 6);
        let entries = [small, large, blank].map(|frame| Entry::from_frame(frame).expect("no membership in it"));
        let vote = raft_vote(VoteRecord { term: Term(7), node: NodeId::new(2, 9), committed: true });
        AppendRequest { vote, prev_log_id: Some(to_raft(id(0))), entries: entries.to_vec(), leader_commit: None }
    }

    #[test]
    fn entries_travel_with_their_place() {
        let request = append_request();
        let pieces = encode_append(&request);
        let bytes = Bytes::from(pieces.concat());
        assert_eq!(u32::from_le_bytes(bytes[..4].try_into().expect("four")) as usize, bytes.len() - 4);
        let back = decode_append(bytes.slice(4..)).expect("what was encoded");
        assert_eq!(back.entries, request.entries);
        assert_eq!((back.vote, back.prev_log_id, back.leader_commit), (request.vote, request.prev_log_id, None));
    }

    #[test]
    fn a_bent_entry_is_an_error_and_never_a_panic() {
        let whole = Bytes::from(encode_append(&append_request()).concat()).slice(4..);
        for place in 0..whole.len() {
            assert!(decode_append(whole.slice(..place)).is_err(), "cut at {place}");
            let mut bent = whole.to_vec();
            bent[place] ^= 0x10;
            if place > 71 {
                assert!(decode_append(Bytes::from(bent)).is_err(), "bent at {place}");
            }
        }
    }
}
