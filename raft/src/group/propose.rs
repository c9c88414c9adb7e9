//! Handing entries to the log, and asking whether this node still leads.
//!
//! openraft 0.10.0-alpha.37 keeps two answers apart that look alike: `ForwardToLeader` is sent only for a proposal it never
//! appended, `LogEntryDiscarded` for one it did. The first is `NotLeader` here, everything else after the hand-over is
//! `Unknown`. Checked in its source (`raft_core.rs`: every sender of either); check again before moving to another version.

use bytes::Bytes;
use openraft::{
    ReadPolicy,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
    impls::OneshotResponder,
};

use super::{Inner, ProposeError};
use crate::{
    binding::{Command, Reply, TypeConfig, WriteResult},
    types::Position,
};

/// What an entry costs beside its payload, so that a flood of empty ones is bounded too.
const ENTRY_COST: usize = 128;

pub(super) async fn propose(inner: &Inner, payload: Bytes) -> Result<Reply, ProposeError> {
    if payload.len() > inner.config.entry_bytes_max {
        return Err(ProposeError::TooLarge(payload.len()));
    }
    let crc = crc32c::crc32c(&payload);
    hand_over(inner, payload.len(), Command::Normal { body: payload, crc }).await
}

pub(super) async fn propose_floor(inner: &Inner, floor: Position) -> Result<(), ProposeError> {
    if !inner.is_leader() {
        return Err(ProposeError::NotLeader { leader: inner.leader.borrow().leader });
    }
    // The segment that is being written keeps its images behind it: its own border is the furthest a floor can be.
    let furthest = inner.log.border_below(inner.log.end());
    let border = inner.log.border_below(floor).min(furthest);
    if border <= inner.applied.borrow().floor {
        return Ok(());
    }
    hand_over(inner, 0, Command::Floor(border)).await.map(drop)
}

async fn hand_over(inner: &Inner, bytes: usize, command: Command) -> Result<Reply, ProposeError> {
    if let Some(reason) = inner.stopped() {
        return Err(ProposeError::Stopped(reason));
    }
    let leader = inner.leader.borrow().leader;
    if leader != Some(inner.me) {
        return Err(ProposeError::NotLeader { leader });
    }
    // At most one entry beyond the bound: `validate` keeps it above the largest entry.
    let cost = u32::try_from(bytes + ENTRY_COST).map_err(|_| ProposeError::TooLarge(bytes))?;
    let Ok(_permit) = inner.inflight.try_acquire_many(cost) else {
        return Err(ProposeError::Overloaded);
    };
    let (responder, answer) = OneshotResponder::<TypeConfig, WriteResult>::new_pair();
    if inner.raft.client_write_ff(command, Some(responder)).await.is_err() {
        return Err(ProposeError::Stopped(inner.stopped().unwrap_or_else(|| "its Raft core has ended".into())));
    }
    match answer.await {
        Ok(Ok(written)) => Ok(written.data),
        Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
            Err(ProposeError::NotLeader { leader: forward.leader_id.filter(|leader| *leader != inner.me) })
        }
        Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
    }
}

pub(super) async fn confirm_leadership(inner: &Inner) -> Result<(), ProposeError> {
    if let Some(reason) = inner.stopped() {
        return Err(ProposeError::Stopped(reason));
    }
    // Never `LeaseRead`: a lease trusts every node's clock, and an election by transfer breaks it.
    match inner.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            Err(ProposeError::NotLeader { leader: forward.leader_id.filter(|leader| *leader != inner.me) })
        }
        Err(RaftError::APIError(_)) => Err(ProposeError::NotLeader { leader: None }),
        Err(RaftError::Fatal(fatal)) => {
            Err(ProposeError::Stopped(inner.stopped().unwrap_or_else(|| fatal.to_string())))
        }
    }
}
