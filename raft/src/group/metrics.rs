//! A node's metrics, gathered when somebody asks.

use super::{GroupStatus, Inner, Role, status};
use crate::{
    metrics::{self as names, Family},
    types::{LogId, LogIndex},
};

pub(super) fn families(inner: &Inner) -> Vec<Family> {
    let status = status::status(inner);
    let view = *inner.leader.borrow();
    let counted = inner.log.metrics();
    let index = |id: Option<LogId>| id.map_or(0.0, |id| id.index.0 as f64);
    let flag = |holds: bool| f64::from(u8::from(holds));
    let number = |member: &super::MemberStatus| vec![member.id.number().to_string()];
    let others = || status.members.iter().filter(|member| member.id != status.id);
    let roles = [
        (Role::Leader, "leader"),
        (Role::Follower, "follower"),
        (Role::Candidate, "candidate"),
        (Role::Learner, "learner"),
    ];
    let lags: Vec<_> = match view.serving {
        true => others().map(|member| (number(member), lag(inner, &status, member.matched))).collect(),
        false => Vec::new(),
    };
    vec![
        names::IS_LEADER.is(flag(view.serving)),
        names::ROLE.each(roles.map(|(role, name)| (vec![name.to_owned()], flag(role == status.role)))),
        names::TERM.is(status.term.0 as f64),
        names::LAST_LOG_INDEX.is(index(status.last)),
        names::COMMIT_INDEX.is(index(status.committed)),
        names::APPLIED_INDEX.is(index(status.applied)),
        names::VOTERS.is(status.members.iter().filter(|member| member.voter).count() as f64),
        names::PEER_ALIVE.each(others().map(|member| (number(member), flag(member.alive)))),
        names::FOLLOWER_LAG_ENTRIES.each(lags.iter().map(|(peer, (entries, _))| (peer.clone(), *entries))),
        names::FOLLOWER_LAG_BYTES.each(lags.iter().map(|(peer, (_, bytes))| (peer.clone(), *bytes))),
        names::LEADER_CHANGES.is(counted.leader_changes.value() as f64),
        names::ELECTIONS.is(counted.elections.value() as f64),
        names::ELECTION_SECONDS.spreads(&counted.election_seconds),
        names::UNAVAILABLE_SECONDS.is(counted.unavailable_us.value() as f64 / 1e6),
        names::APPEND_FSYNC_SECONDS.spreads(&counted.sync_seconds),
        names::GROUP_COMMIT_BATCH_SIZE.spreads(&counted.batch_entries),
        names::GROUP_COMMIT_BATCH_BYTES.spreads(&counted.batch_bytes),
        names::ENTRIES.is(status.entries as f64),
        names::END_POSITION.is(status.end.0 as f64),
        names::FLOOR_POSITION.is(status.floor.0 as f64),
        names::DAMAGED_FILES.is(status.damaged.len() as f64),
        names::UNSURE.is(flag(inner.gate.is_lost())),
    ]
}

/// Entries and bytes between what a follower has and the end of this log. A follower that has said nothing yet lacks everything kept.
fn lag(inner: &Inner, status: &GroupStatus, matched: Option<LogIndex>) -> (f64, f64) {
    let last = status.last.map_or(0, |id| id.index.0);
    let next = LogIndex(matched.map_or(0, |index| index.0 + 1));
    if next.0 > last {
        return (0.0, 0.0);
    }
    // Below the floor, or not readable just now: all that is kept.
    let from = inner.log.position_of(next).ok().flatten().unwrap_or(status.floor);
    ((last + 1 - next.0) as f64, status.end.0.saturating_sub(from.0) as f64)
}
