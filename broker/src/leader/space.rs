//! Whether there is room for what is sent: every node looks at its disk, and the leader knows of all of them.
//!
//! ```text
//!   disk ─look, ten times a second─▶ own level ─┐
//!   other nodes ─asked once a second by the leader─▶ their levels ─┴▶ sends: taken or refused · floor: stays or moves early
//! ```
//! Sends are refused while the leader's disk is full, or while fewer voters than a majority are known to have room: what is stored beyond
//! that would end nodes whose votes are needed. One full disk among three does not stop the others. Everything else goes on, because
//! it needs little and is what makes room again: receives, acks, the floor. That is what `retention.disk_reserve_bytes` is for.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use quorate_raft::{Disk, Group, MemberStatus};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Failure;
use crate::{
    config::{BrokerConfig, units::format_bytes},
    metrics::Metrics,
    replica::Replica,
    store::retention::{Level, Marks, Room},
};

/// First byte of the question for a node's disk.
pub(crate) const ASK_SPACE: u8 = 106;

/// How often a node looks at its disk: a fast one takes some ten MiB in between.
const LOOK: Duration = Duration::from_millis(100);
/// How often the leader asks the others, and how long it waits for them.
const ASK: Duration = Duration::from_secs(1);

/// Free bytes with which a disk is full, whatever failed.
const NOTHING_LEFT: u64 = 1 << 20;
/// What the system says of a write that found no room.
const NO_SPACE: &str = "No space left on device";

/// What a node says of its disk.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DiskReport {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// `Level`.
    #[prost(uint32, tag = "2")]
    pub level: u32,
    #[prost(uint32, tag = "3")]
    pub used_percent: u32,
    #[prost(uint64, tag = "4")]
    pub free_bytes: u64,
    #[prost(string, tag = "5")]
    pub dir: String,
}

impl DiskReport {
    /// How full it is.
    pub fn level(&self) -> Level {
        Level::of_number(self.level)
    }

    fn is_full(&self) -> bool {
        self.level() >= Level::Full
    }
}

/// What a node knows of the room on the disks of its group.
pub(crate) struct Space {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    number: u32,
    marks: Marks,
    full_percent: u8,
    reserve_bytes: u64,
    metrics: Arc<Metrics>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    own: DiskReport,
    /// What the others said last; known to the leader only.
    others: Vec<DiskReport>,
    /// Why nothing is stored.
    refused: Option<String>,
}

impl Space {
    /// Looks at the disk for the first time.
    pub fn new(config: &BrokerConfig, disk: Arc<dyn Disk>, metrics: Arc<Metrics>) -> Self {
        let space = Self {
            disk,
            dir: config.storage.data_dir.clone(),
            number: config.node.number.into(),
            marks: Marks::of(&config.retention),
            full_percent: config.retention.disk_full_percent,
            reserve_bytes: config.retention.disk_reserve_bytes,
            metrics,
            seen: Mutex::default(),
        };
        space.look();
        space
    }

    /// What this node says of its own disk.
    pub fn report(&self) -> DiskReport {
        self.seen().own.clone()
    }

    /// There is room for what a client wants to store.
    ///
    /// # Errors
    /// [`Failure::DiskFull`], naming node, directory and remedy.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.seen().refused {
            None => Ok(()),
            Some(why) => {
                self.metrics.refused_disk_full.add(1);
                Err(Failure::DiskFull(why.clone()))
            }
        }
    }

    /// Nothing but what clients ask for should be written now.
    pub fn is_spent(&self) -> bool {
        self.seen().own.level() >= Level::Spent
    }

    /// How full the fullest disk of the group is, as far as this node knows.
    pub fn worst(&self) -> Level {
        let seen = self.seen();
        seen.others.iter().chain([&seen.own]).map(DiskReport::level).max().unwrap_or_default()
    }

    /// A reason why the node ends, with what to do if a full disk is behind it.
    pub fn explain(&self, reason: String) -> String {
        let (free, total) = self.disk.space(&self.dir).unwrap_or_default();
        // Whatever could not be written may have left a little, and says so in words of the system.
        let is_full = total > 0 && free < NOTHING_LEFT || reason.contains(NO_SPACE);
        if !is_full {
            return reason;
        }
        format!(
            "{reason}; the disk that holds {} is full ({} free): make room there and start this node again, nothing that was \
             acknowledged is lost",
            self.dir.display(),
            format_mib(free)
        )
    }

    /// Looks at the disk from time to time, until `shutdown`.
    pub async fn watch(self: Arc<Self>, group: Group<Replica>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.look();
            self.judge(&group);
        }
    }

    /// While this node leads, asks the others how full their disks are, until `shutdown`.
    pub async fn ask(self: Arc<Self>, group: Group<Replica>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(ASK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let others = if group.leader().borrow().serving { ask_others(&group).await } else { Vec::new() };
            self.seen().others = others;
            self.judge(&group);
        }
    }

    fn look(&self) {
        // What cannot be asked is not full; whoever writes there will say what is wrong.
        let (free, total) = self.disk.space(&self.dir).unwrap_or_default();
        let room = Room { free, total };
        let (before, now) = {
            let mut seen = self.seen();
            let before = seen.own.level();
            let now = self.marks.level(before, room);
            seen.own = DiskReport {
                number: self.number,
                level: now as u32,
                used_percent: room.used_percent(),
                free_bytes: free,
                dir: self.dir.display().to_string(),
            };
            (before, now)
        };
        if before != now {
            let (dir, used_percent, free) = (self.dir.display(), room.used_percent(), format_mib(free));
            match now {
                Level::Roomy => info!(%dir, used_percent, free, "the disk has room again"),
                Level::Tight | Level::Scarce | Level::Full | Level::Spent => {
                    warn!(%dir, used_percent, free, level = now.name(), "the disk fills up; make room");
                }
            }
        }
    }

    /// Decides whether sends are taken.
    fn judge(&self, group: &Group<Replica>) {
        let voters: Vec<u32> = group.status().members.iter().filter(|member| member.voter).map(number_of).collect();
        let mut seen = self.seen();
        let blamed = verdict(&voters, &seen.own, &seen.others).cloned();
        let refused = blamed.map(|report| self.words(&report));
        self.metrics.writable.set(i64::from(refused.is_none()));
        match (&seen.refused, &refused) {
            (None, Some(why)) => warn!(%why, "sends are refused"),
            (Some(_), None) => info!("sends are taken again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        seen.refused = refused;
    }

    fn words(&self, report: &DiskReport) -> String {
        let DiskReport { number, used_percent, free_bytes, dir, .. } = report;
        format!(
            "the disk of node {number} is full: {dir} is {used_percent} % used with {} free, and nothing is stored from {} % on or \
             with less than {} free (retention.disk_full_percent, disk_reserve_bytes); nothing was done: make room there, and \
             sending goes on by itself",
            format_mib(*free_bytes),
            self.full_percent,
            format_bytes(self.reserve_bytes),
        )
    }

    // A panic of another thread leaves at most an old report here.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn format_mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn number_of(member: &MemberStatus) -> u32 {
    member.id.number().into()
}

async fn ask_others(group: &Group<Replica>) -> Vec<DiskReport> {
    let status = group.status();
    let others = status.members.iter().filter(|member| member.id != status.id);
    let ask = others.map(|member| group.call(member.id, Bytes::from_static(&[ASK_SPACE]), ASK));
    let answers = futures_util::future::join_all(ask).await;
    // A node that does not answer stores nothing either.
    answers.into_iter().filter_map(|answer| DiskReport::decode(answer.ok()?).ok()).collect()
}

/// The full disk because of which nothing may be stored, if any.
fn verdict<'a>(voters: &[u32], own: &'a DiskReport, others: &'a [DiskReport]) -> Option<&'a DiskReport> {
    if own.is_full() {
        return Some(own);
    }
    let has_room = |number: &&u32| {
        **number == own.number || others.iter().any(|report| report.number == **number && !report.is_full())
    };
    let with_room = voters.iter().filter(has_room).count();
    let full = others.iter().filter(|report| report.is_full() && voters.contains(&report.number));
    if with_room > voters.len() / 2 { None } else { full.max_by_key(|report| (report.level, report.used_percent)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(number: u32, level: Level) -> DiskReport {
        DiskReport { number, level: level as u32, ..DiskReport::default() }
    }

    fn blamed(own: Level, others: &[(u32, Level)]) -> Option<u32> {
        let others: Vec<_> = others.iter().map(|(number, level)| report(*number, *level)).collect();
        verdict(&[1, 2, 3], &report(1, own), &others).map(|report| report.number)
    }

    #[test]
    fn sends_are_refused_when_the_leader_is_full_or_no_majority_has_room() {
        use Level::{Full, Roomy, Scarce, Spent};
        assert_eq!(blamed(Scarce, &[(2, Roomy), (3, Scarce)]), None);
        assert_eq!(blamed(Full, &[(2, Roomy), (3, Roomy)]), Some(1), "the leader itself");
        assert_eq!(blamed(Roomy, &[(2, Full), (3, Roomy)]), None, "one of three");
        assert_eq!(blamed(Roomy, &[(2, Full), (3, Spent)]), Some(3), "the fuller of two");
        assert_eq!(blamed(Roomy, &[(2, Full)]), Some(2), "the third does not answer");
    }

    #[test]
    fn whoever_is_silent_is_not_full() {
        assert_eq!(blamed(Level::Roomy, &[]), None, "without a majority the log refuses by itself");
        assert!(verdict(&[1], &report(1, Level::Tight), &[]).is_none(), "a group of one");
        let learner = [report(2, Level::Roomy), report(4, Level::Spent)];
        assert!(verdict(&[1, 2, 3], &report(1, Level::Roomy), &learner).is_none(), "a learner has no say");
    }
}
