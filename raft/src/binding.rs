//! openraft's view of this crate: its type config, the entry it passes around, and conversions to our own types.
//!
//! Nothing of this leaves the crate, and nothing of it is on disk or on the wire by itself. An [`Entry`] is a [`Frame`] that
//! openraft can read the leader and the membership of; once it comes back from the log (or from a peer) the frame has its
//! place, so that replication sends it as it is on disk and the machine learns the position of its payload.

use std::{any::Any, collections::BTreeSet, fmt, sync::Mutex};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{EntryPayload, Membership, entry::RaftEntry};

use crate::{
    log::{Frame, Payload, VoteRecord},
    runtime::Runtime,
    snapshot::Image,
    types::{LogId, LogIndex, NodeId, Position, Term},
};

/// openraft, configured for this crate.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Command;
    type R = Reply;
    type NodeId = NodeId;
    type Node = Node;
    type Term = u64;
    type LeaderId = Leader;
    type Vote = RaftVote;
    type Payload = RaftPayloadOf;
    type Entry = Entry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type Leader = openraft::impls::leader_id_adv::LeaderId<u64, NodeId>;
pub(crate) type RaftLogId = openraft::LogId<Leader>;
pub(crate) type RaftVote = openraft::Vote<Leader>;
pub(crate) type RaftMembership = Membership<NodeId, Node>;
pub(crate) type StoredMembership = openraft::StoredMembership<Leader, NodeId, Node>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<Leader, NodeId, Node>;
pub(crate) type Snapshot = openraft::Snapshot<Leader, NodeId, Node, Option<Image>>;
pub(crate) type RaftPayloadOf = EntryPayload<Command, NodeId, Node>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type WriteResult = openraft::raft::ClientWriteResult<TypeConfig>;

/// What the membership says about a node beside its id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Node {
    /// Where its peer listener is.
    pub peer_address: String,
}

/// What is proposed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Bytes for the machine, with their crc32c.
    Normal { body: Bytes, crc: u32 },
    /// Everything below this segment border may be dropped.
    Floor(Position),
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal { body, .. } => write!(f, "{} bytes", body.len()),
            Self::Floor(floor) => write!(f, "floor {floor}"),
        }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What apply answers, before the group turns it back into the machine's own type.
///
/// The lock is never contended: it exists because openraft wants replies that can be shared, and is opened by value.
pub(crate) struct Reply(Mutex<Option<Box<dyn Any + Send>>>);

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

impl Reply {
    /// The answer to an entry that the machine does not see.
    pub(crate) fn none() -> Self {
        Self(Mutex::new(None))
    }

    /// The machine's answer.
    pub(crate) fn of<T: Send + 'static>(reply: T) -> Self {
        Self(Mutex::new(Some(Box::new(reply))))
    }

    /// The machine's answer in its own type; `None` if there is none of that type.
    pub(crate) fn take<T: 'static>(self) -> Option<T> {
        let boxed = self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)?;
        boxed.downcast::<T>().ok().map(|reply| *reply)
    }
}

/// An entry of the log in openraft's hands.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    leader: Leader,
    frame: Frame,
    /// Kept decoded, because openraft asks for it often.
    membership: Option<Box<RaftMembership>>,
}

impl Entry {
    /// What the log takes.
    pub(crate) fn into_frame(self) -> Frame {
        self.frame
    }

    /// What the log gave.
    pub(crate) fn frame(&self) -> &Frame {
        &self.frame
    }

    /// An entry from a log: of this node, or of the leader that sent it.
    ///
    /// # Errors
    /// A membership that is none; says which entry.
    pub(crate) fn from_frame(frame: Frame) -> Result<Self, String> {
        let membership = match &frame.payload {
            Payload::Membership(body) => {
                let membership = decode_membership(body.clone());
                Some(Box::new(membership.ok_or_else(|| format!("membership of entry {} is malformed", frame.id))?))
            }
            Payload::Blank | Payload::Normal(_) | Payload::Floor(_) => None,
        };
        Ok(Self { leader: to_raft(frame.id).leader_id, frame, membership })
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = Leader;
    type Payload = RaftPayloadOf;

    fn new(log_id: RaftLogId, payload: RaftPayloadOf) -> Self {
        let id = from_raft(&log_id);
        let (frame, membership) = match payload {
            EntryPayload::Blank => (Frame::new(id, Payload::Blank), None),
            EntryPayload::Normal(Command::Normal { body, crc }) => {
                (Frame { id, payload: Payload::Normal(body), payload_crc: crc, place: None }, None)
            }
            EntryPayload::Normal(Command::Floor(floor)) => (Frame::new(id, Payload::Floor(floor)), None),
            EntryPayload::Membership(membership) => {
                let body = encode_membership(&membership);
                (Frame::new(id, Payload::Membership(body)), Some(Box::new(membership)))
            }
        };
        Self { leader: log_id.leader_id, frame, membership }
    }

    fn log_id_parts(&self) -> (&Leader, u64) {
        (&self.leader, self.frame.id.index.0)
    }

    fn set_log_id(&mut self, new: RaftLogId) {
        self.leader = new.leader_id;
        self.frame.id = from_raft(&new);
        self.frame.place = None;
    }

    fn get_membership(&self) -> Option<RaftMembership> {
        self.membership.as_deref().cloned()
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} bytes", self.frame.id, self.frame.payload_len())
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// openraft's vote as the hard state keeps it.
pub(crate) fn vote_record(vote: &RaftVote) -> VoteRecord {
    VoteRecord { term: Term(vote.leader_id.term), node: vote.leader_id.node_id, committed: vote.committed }
}

/// The hard state's vote in openraft's type.
pub(crate) fn raft_vote(record: VoteRecord) -> RaftVote {
    RaftVote { leader_id: Leader { term: record.term.0, node_id: record.node }, committed: record.committed }
}

/// A log id of ours in openraft's type.
pub(crate) fn to_raft(id: LogId) -> RaftLogId {
    RaftLogId { leader_id: Leader { term: id.term.0, node_id: id.node }, index: id.index.0 }
}

/// A log id of openraft's in our type.
pub(crate) fn from_raft(id: &RaftLogId) -> LogId {
    LogId { term: Term(id.leader_id.term), node: id.leader_id.node_id, index: LogIndex(id.index) }
}

/// Most configs a membership can hold (two, while it changes), nodes, and bytes of an address: bounds for bytes from outside.
const CONFIGS_MAX: usize = 2;
const NODES_MAX: usize = 256;

/// Membership as bytes, little endian:
///
/// | bytes | what |
/// |---|---|
/// | 1 | configs: 1, or 2 while the membership changes |
/// | per config: 2, then 8 each | voters, their ids |
/// | 2 | nodes |
/// | per node: 8, 2, n | id, length of the peer address, the address |
pub(crate) fn encode_membership(membership: &RaftMembership) -> Bytes {
    let mut out = BytesMut::new();
    let configs = membership.get_joint_config();
    out.put_u8(configs.len() as u8);
    for config in configs {
        out.put_u16_le(config.len() as u16);
        for id in config {
            out.put_u64_le(id.0);
        }
    }
    out.put_u16_le(membership.nodes().count() as u16);
    for (id, node) in membership.nodes() {
        out.put_u64_le(id.0);
        put_text(&mut out, &node.peer_address);
    }
    out.freeze()
}

/// The reverse of [`encode_membership`]; `None` if the bytes are not a membership.
pub(crate) fn decode_membership(mut body: Bytes) -> Option<RaftMembership> {
    let configs = usize::from(body.try_get_u8().ok()?);
    if configs > CONFIGS_MAX {
        return None;
    }
    let mut voters = Vec::with_capacity(configs);
    for _ in 0..configs {
        let count = usize::from(body.try_get_u16_le().ok()?);
        if count == 0 || count > NODES_MAX {
            return None;
        }
        let ids = (0..count).map(|_| body.try_get_u64_le().ok().map(NodeId)).collect::<Option<BTreeSet<_>>>()?;
        voters.push(ids);
    }
    let count = usize::from(body.try_get_u16_le().ok()?);
    if count > NODES_MAX {
        return None;
    }
    let mut nodes = std::collections::BTreeMap::new();
    for _ in 0..count {
        let id = NodeId(body.try_get_u64_le().ok()?);
        nodes.insert(id, Node { peer_address: take_text(&mut body)? });
    }
    if !body.is_empty() {
        return None;
    }
    if voters.is_empty() {
        return nodes.is_empty().then(RaftMembership::default);
    }
    RaftMembership::new(voters, nodes).ok()
}

/// Appends a text with its length before it (2 bytes); longer texts are cut at 65,535 bytes, which addresses never reach.
pub(crate) fn put_text(out: &mut BytesMut, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    out.put_u16_le(bytes.len() as u16);
    out.put_slice(bytes);
}

/// Takes a text that [`put_text`] wrote; `None` if it is cut short or not UTF-8.
pub(crate) fn take_text(from: &mut Bytes) -> Option<String> {
    let len = usize::from(from.try_get_u16_le().ok()?);
    if from.len() < len {
        return None;
    }
    String::from_utf8(from.split_to(len).to_vec()).ok()
}

/// `Stored` membership of an image or of a place in the log: where it was written (absent for the empty one) and what it says.
pub(crate) fn encode_stored_membership(stored: &StoredMembership) -> Bytes {
    let mut out = BytesMut::new();
    match stored.log_id() {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            put_log_id(&mut out, from_raft(id));
        }
    }
    out.put_slice(&encode_membership(stored.membership()));
    out.freeze()
}

/// The reverse of [`encode_stored_membership`].
pub(crate) fn decode_stored_membership(mut body: Bytes) -> Option<StoredMembership> {
    let id = take_optional_log_id(&mut body)?;
    Some(StoredMembership::new(id.map(to_raft), decode_membership(body)?))
}

/// 24 bytes: term, node, index.
pub(crate) fn put_log_id(out: &mut BytesMut, id: LogId) {
    out.put_u64_le(id.term.0);
    out.put_u64_le(id.node.0);
    out.put_u64_le(id.index.0);
}

/// One byte that says whether it is there, then the log id.
pub(crate) fn put_optional_log_id(out: &mut BytesMut, id: Option<LogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

/// The reverse of [`put_log_id`].
pub(crate) fn take_log_id(from: &mut Bytes) -> Option<LogId> {
    Some(LogId {
        term: Term(from.try_get_u64_le().ok()?),
        node: NodeId(from.try_get_u64_le().ok()?),
        index: LogIndex(from.try_get_u64_le().ok()?),
    })
}

/// The reverse of [`put_optional_log_id`].
pub(crate) fn take_optional_log_id(from: &mut Bytes) -> Option<Option<LogId>> {
    match from.try_get_u8().ok()? {
        0 => Some(None),
        1 => Some(Some(take_log_id(from)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> RaftMembership {
        let nodes = [1u64, 2, 3, 9].map(|raw| (NodeId(raw), Node { peer_address: format!("127.0.0.1:{raw}") }));
        let configs = vec![BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)]), BTreeSet::from([NodeId(1), NodeId(2)])];
        RaftMembership::new(configs, std::collections::BTreeMap::from(nodes)).unwrap()
    }

    #[test]
    fn a_membership_comes_back_as_it_was() {
        assert_eq!(decode_membership(encode_membership(&membership())), Some(membership()));
        assert_eq!(decode_membership(encode_membership(&RaftMembership::default())), Some(RaftMembership::default()));
    }

    #[test]
    fn a_membership_cut_anywhere_is_an_error_and_never_a_panic() {
        let whole = encode_membership(&membership());
        for len in 0..whole.len() {
            assert_eq!(decode_membership(whole.slice(..len)), None, "cut at {len}");
        }
        for place in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[place] ^= 0xff;
            let _ = decode_membership(Bytes::from(bytes));
        }
    }

    #[test]
    fn a_reply_is_taken_back_in_its_own_type() {
        assert_eq!(Reply::of(7u32).take::<u32>(), Some(7));
        assert_eq!(Reply::of(7u32).take::<u64>(), None);
        assert_eq!(Reply::none().take::<u32>(), None);
    }
}
