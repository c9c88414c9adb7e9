//! What a broker group's log is told at start. Checked once by [`GroupConfig::validate`], then never changed.

use std::{path::PathBuf, time::Duration};

/// When an appended frame counts as safe on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushMode {
    /// `fdatasync` before the node acks (default): survives power loss.
    Sync,
    /// Page cache, synced in the background each interval: survives `kill -9`, not power loss of a majority within it.
    Async(Duration),
}

/// Who runs the log writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriterMode {
    /// An OS thread of its own (production).
    Thread,
    /// A task on the current runtime (simulation).
    Task,
}

/// How a follower tells a leader whose process is gone from one that is merely silent, without waiting for a timeout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FastPath {
    /// Connects in a row that the leader's port must refuse.
    pub probes: u32,
    /// Pause between two of them.
    pub pause: Duration,
    /// After a fast election no other one for this long, on this node.
    pub rest: Duration,
}

impl Default for FastPath {
    fn default() -> Self {
        Self { probes: 3, pause: Duration::from_millis(5), rest: Duration::from_secs(5) }
    }
}

/// A member of the group at its birth.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Configured number, 1 to 65535.
    pub number: u16,
    /// Where the peer listener of this node is reached, `host:port`.
    pub peer_address: String,
}

/// Settings of one node of one group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Cluster id: peers with another one are refused.
    pub cluster: String,
    /// This node's configured number; must be among `members` unless it joins an existing group.
    pub number: u16,
    /// The members at the group's birth, or some of those of the group that this node joins; this node included. Members that came
    /// later are found by the group's own membership, and those that left may stay in the list. These addresses lead.
    pub members: Vec<Member>,
    /// Address the peer listener binds to.
    pub peer_listen: String,
    /// Text about this node that every peer learns in the handshake and by heartbeats (the broker puts its client address here).
    pub info: String,
    /// Directory of log, index, images and hard state.
    pub data_dir: PathBuf,
    /// Size of a segment file. All nodes of a group must agree; it is written into the hard state and checked.
    pub segment_bytes: u64,
    /// Largest payload of one entry.
    pub entry_bytes_max: usize,
    /// Bytes proposed and not yet answered before `propose` says overloaded.
    pub inflight_bytes_max: usize,
    /// Bytes of the in-memory tail of the log.
    pub tail_cache_bytes: usize,
    /// Unacknowledged bytes per follower stream.
    pub follower_window_bytes: usize,
    /// Sync or async flush, for the whole group.
    pub flush: FlushMode,
    /// Thread or task.
    pub writer: WriterMode,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Shortest and longest election timeout (openraft adds the longest as lease).
    pub election_timeout: (Duration, Duration),
    /// Campaign at once when the leader's process is seen to be gone; `None` leaves it to the timeouts.
    pub fast_path: Option<FastPath>,
    /// Start a group with this node's members although peers are unreachable or not empty (`--bootstrap`).
    pub bootstrap: bool,
    /// Never form a group, only join one that exists, whatever `members` and the peers look like.
    pub join: bool,
    /// Seed of every random choice of this node.
    pub seed: u64,
    /// Test only: openraft's `enable_leader_restore`. `Group::start` refuses `true` unless the crate is built for the named regression test.
    pub leader_restore: bool,
}

/// A setting that cannot work; says which and what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Smallest segment: tests use it, and every frame must fit with room to spare.
const SEGMENT_BYTES_MIN: u64 = 4096;

impl GroupConfig {
    /// Checks each setting and how they relate.
    ///
    /// # Errors
    /// The first setting that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |text: String| Err(ConfigError(text));
        if self.cluster.is_empty() || self.cluster.len() > 255 {
            return refuse(format!("cluster: {} bytes long, must be 1 to 255", self.cluster.len()));
        }
        if self.number == 0 {
            return refuse("number: must be 1 to 65535".into());
        }
        if self.members.is_empty() {
            return refuse("members: empty, must name at least this node".into());
        }
        let mut numbers = std::collections::BTreeSet::new();
        for member in &self.members {
            if member.number == 0 || !numbers.insert(member.number) {
                return refuse(format!("members: number {} is zero or named twice", member.number));
            }
            if member.peer_address.len() > 255 {
                return refuse(format!("members: the address of node {} is longer than 255 bytes", member.number));
            }
        }
        if self.join && self.bootstrap {
            return refuse("join and bootstrap: a node either joins a group or starts one".into());
        }
        if self.join && self.members.iter().all(|member| member.number == self.number) {
            return refuse("members: name no other node, so there is no group to join".into());
        }
        if self.info.len() > 1024 {
            return refuse(format!("info: {} bytes long, at most 1024", self.info.len()));
        }
        if self.segment_bytes < SEGMENT_BYTES_MIN {
            return refuse(format!("segment_bytes: {}, at least {SEGMENT_BYTES_MIN}", self.segment_bytes));
        }
        if self.entry_bytes_max as u64 > self.segment_bytes / 2 {
            return refuse(format!("entry_bytes_max: {} is more than half of segment_bytes", self.entry_bytes_max));
        }
        if self.inflight_bytes_max < self.entry_bytes_max || self.inflight_bytes_max > u32::MAX as usize {
            return refuse(format!(
                "inflight_bytes_max: {}, must hold one entry and be below 4 GiB",
                self.inflight_bytes_max
            ));
        }
        let (shortest, longest) = self.election_timeout;
        if self.heartbeat < Duration::from_millis(1) || self.heartbeat * 3 > shortest {
            return refuse(format!(
                "heartbeat: {:?}, must be at least 1 ms and at most a third of {shortest:?}",
                self.heartbeat
            ));
        }
        if shortest >= longest {
            return refuse(format!("election_timeout: {shortest:?} must be shorter than {longest:?}"));
        }
        if let Some(FastPath { probes, pause, rest }) = self.fast_path {
            if !(1..=20).contains(&probes) || pause.is_zero() || pause * probes > shortest {
                return refuse(format!(
                    "fast_path: {probes} probes every {pause:?}, must be 1 to 20 and together shorter than {shortest:?}"
                ));
            }
            if rest < Duration::from_secs(1) {
                return refuse(format!("fast_path: a rest of {rest:?}, must be at least 1 s"));
            }
        }
        if self.leader_restore && !cfg!(feature = "mutant-leader-restore") {
            return refuse(
                "leader_restore: loses acknowledged entries (the leader cut inside its own sync); never on".into(),
            );
        }
        Ok(())
    }

    /// Where the configured member of this number listens.
    pub(crate) fn address_of(&self, number: u16) -> Option<&str> {
        self.members.iter().find(|member| member.number == number).map(|member| member.peer_address.as_str())
    }
}
