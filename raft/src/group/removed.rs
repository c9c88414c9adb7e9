//! The end of a membership: a node that was removed from its group stops, says so, and does not start again from that directory.
//!
//! A removed node may not know: it no longer gets entries, so the log it has still calls it a member. It finds out by asking the
//! leader, which compares where the two last memberships stand. An identity that has left never comes back (LAW-BIRTH), so this is
//! told once and for all, and written down before the node ends.

use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::async_runtime::watch::WatchReceiver;

use super::{Inner, StartError};
use crate::{
    binding::{RaftMembership, from_raft, put_log_id, take_log_id},
    config::GroupConfig,
    disk::Disk,
    types::{LogId, NodeId},
};

/// File in the data directory of a node that was removed.
const MARK: &str = "removed";

/// Longest text of a mark that is read.
const MARK_BYTES_MAX: u64 = 4096;

/// What makes a node sure that it is, or was, a member: a membership in its log that names it and cannot be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Where that membership stands.
    pub at: LogId,
    /// The running hash there, if the entry is still kept.
    pub chain: Option<u32>,
}

impl Claim {
    /// The claim of this node now, or the one it had before: once a member for certain, a node is one for good, or was removed.
    ///
    /// A voter's claim needs no commit: it was a committed learner before, or one of the founders.
    pub(super) fn of(inner: &Inner, before: Option<Self>) -> Option<Self> {
        let server = inner.raft.server_metrics().borrow_watched().membership_config.clone();
        let Some(at) = *server.log_id() else {
            return before;
        };
        let known = from_raft(&at);
        if before.is_some_and(|before| before.at == known) {
            return before;
        }
        let membership = server.membership();
        let is_voter = membership.voter_ids().any(|voter| voter == inner.me);
        let committed = inner.raft.data_metrics().borrow_watched().local_committed;
        if is_voter || membership.get_node(&inner.me).is_some() && committed.is_some_and(|id| id >= at) {
            return Some(Self { at: known, chain: inner.log.chain_at(known.index).ok().flatten() });
        }
        before
    }

    pub(super) fn encode(claim: Option<Self>) -> Bytes {
        let mut out = BytesMut::new();
        if let Some(Self { at, chain }) = claim {
            put_log_id(&mut out, at);
            out.put_u8(u8::from(chain.is_some()));
            out.put_u32_le(chain.unwrap_or(0));
        }
        out.freeze()
    }

    /// The reverse of [`Claim::encode`]; what cannot be read claims nothing.
    pub(super) fn decode(mut from: Bytes) -> Option<Self> {
        let at = take_log_id(&mut from)?;
        let is_known = from.try_get_u8().ok()? == 1;
        let chain = from.try_get_u32_le().ok()?;
        Some(Self { at, chain: is_known.then_some(chain) })
    }
}

/// How the log of a node that claims to be a member relates to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinship {
    /// The claimed entry is in this log, too, or its voters are known here.
    Same,
    /// There is another entry in its place.
    Other,
    /// It cannot be told any more.
    Unknown,
}

/// Whether a claim is of this group, going by the log and else by the voters that its node knows.
pub(super) fn kinship(inner: &Inner, claim: Claim, voters: &[NodeId], membership: &RaftMembership) -> Kinship {
    let ours = inner.log.chain_at(claim.at.index).ok().flatten();
    match (claim.chain, ours) {
        (Some(theirs), Some(ours)) if theirs == ours => Kinship::Same,
        _ if voters.iter().any(|voter| membership.get_node(voter).is_some()) => Kinship::Same,
        (Some(_), Some(_)) => Kinship::Other,
        _ => Kinship::Unknown,
    }
}

/// Whether a node with this claim has left, as the committed membership at `at` says.
pub(super) fn has_left(node: NodeId, claim: LogId, at: LogId, membership: &RaftMembership) -> bool {
    at > claim && membership.get_node(&node).is_none()
}

/// Writes down that this node was removed, durably, and returns what to say.
pub(super) fn mark(disk: &dyn Disk, config: &GroupConfig, told: &str) -> String {
    let reason = words(config, told);
    let path = disk.join(&config.data_dir, MARK);
    let write = || {
        let file = disk.open(&path, true)?;
        let text = Bytes::copy_from_slice(told.as_bytes());
        file.set_len(text.len() as u64)?;
        file.write_at(0, &[text])?;
        file.sync()?;
        disk.sync_dir(&config.data_dir)
    };
    // Without the mark the next start asks the leader once more.
    if let Err(error) = write() {
        tracing::warn!(path = %path.display(), %error, "the removal was not written down");
    }
    reason
}

/// Refuses the directory of a node that was removed.
pub(super) fn check(disk: &dyn Disk, config: &GroupConfig) -> Result<(), StartError> {
    let path = disk.join(&config.data_dir, MARK);
    let told = match disk.open(&path, false) {
        Ok(file) => file.len().and_then(|len| file.read_at(0, len.min(MARK_BYTES_MAX) as usize)).unwrap_or_default(),
        Err(_) => return Ok(()),
    };
    Err(StartError::WrongDirectory(words(config, &String::from_utf8_lossy(&told))))
}

fn words(config: &GroupConfig, told: &str) -> String {
    let dir: &Path = &config.data_dir;
    format!(
        "this node was removed from its group: {told}. It stops here. To take the machine in again, move its data directory {} aside, start \
         it, and run `quorate cluster add {}@HOST:PORT`",
        dir.display(),
        config.number
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        binding::Node,
        types::{LogIndex, Term},
    };

    fn id(term: u64, index: u64) -> LogId {
        LogId { term: Term(term), node: NodeId::new(1, 1), index: LogIndex(index) }
    }

    #[test]
    fn a_claim_survives_the_wire_and_garbage_claims_nothing() {
        for chain in [None, Some(7)] {
            let claim = Claim { at: id(3, 9), chain };
            assert_eq!(Claim::decode(Claim::encode(Some(claim))), Some(claim));
        }
        assert_eq!(Claim::decode(Claim::encode(None)), None);
        assert_eq!(Claim::decode(Bytes::from_static(&[1; 11])), None);
    }

    #[test]
    fn only_a_later_membership_without_a_node_says_that_it_has_left() {
        let members = [NodeId::new(1, 1), NodeId::new(2, 1)];
        let nodes: BTreeMap<NodeId, Node> = members.iter().map(|id| (*id, Node::default())).collect();
        let now = RaftMembership::new(vec![members.into()], nodes).expect("every voter has a node");
        let gone = NodeId::new(3, 1);
        assert!(has_left(gone, id(1, 0), id(1, 5), &now));
        assert!(has_left(gone, id(1, 9), id(2, 5), &now), "by term first");
        assert!(!has_left(gone, id(2, 6), id(1, 9), &now), "a leader of the past does not know yet");
        assert!(!has_left(members[1], id(1, 0), id(1, 5), &now));
    }
}
