//! What a node reports about itself: its part in the group, its log, and what its process costs.
//!
//! CPU time, memory and file system come from `/proc`, read when asked; elsewhere they are 0. They inform people and decide nothing.

use std::{fs, path::PathBuf, sync::Arc};

use quorate_proto::{admin::NodeStatus, time::Clock};
use quorate_raft::{Group, Role};

use crate::{
    config::{BrokerConfig, Flush},
    leader::space::Space,
    replica::Replica,
};

/// Microseconds of one tick of `/proc/self/stat` (USER_HZ is 100 on every Linux).
const TICK_US: u64 = 10_000;

/// Makes reports. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reporter {
    /// This node's part in the group.
    pub group: Group<Replica>,
    clock: Arc<dyn Clock>,
    space: Arc<Space>,
    client_address: String,
    peer_address: String,
    flush: Flush,
    file_system: String,
}

impl Reporter {
    /// A reporter of this node.
    pub fn new(
        group: Group<Replica>,
        clock: Arc<dyn Clock>,
        space: Arc<Space>,
        client_address: String,
        config: &BrokerConfig,
    ) -> Self {
        let own = config.peers().into_iter().find(|peer| peer.number == config.node.number);
        Self {
            group,
            clock,
            space,
            client_address,
            peer_address: own.map_or_else(|| config.network.peer_listen.clone(), |peer| peer.address),
            flush: config.storage.flush,
            file_system: file_system_of(&config.storage.data_dir),
        }
    }

    /// The node now.
    pub fn report(&self) -> NodeStatus {
        let status = self.group.status();
        let role = match status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
        };
        let flush = match self.flush {
            Flush::Sync => "sync",
            Flush::Async => "async",
        };
        let disk = self.space.report();
        let index = |id: Option<quorate_raft::LogId>| id.map_or(0, |id| id.index.0);
        NodeStatus {
            number: status.id.number().into(),
            reachable: true,
            role: role.into(),
            term: status.term.0,
            leader: status.leader.map_or(0, |leader| leader.number().into()),
            last_index: index(status.last),
            committed_index: index(status.committed),
            applied_index: index(status.applied),
            synced_position: status.synced.0,
            end_position: status.end.0,
            floor_position: status.floor.0,
            client_address: self.client_address.clone(),
            peer_address: self.peer_address.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            syncs: status.syncs,
            cpu_us: cpu_us(),
            resident_bytes: resident_bytes(),
            flush: flush.into(),
            file_system: self.file_system.clone(),
            entries: status.entries,
            pid: std::process::id().into(),
            error: String::new(),
            wall_ms: self.clock.now().0,
            disk_level: disk.level().name().into(),
            disk_used_percent: disk.used_percent,
            disk_free_bytes: disk.free_bytes,
            damaged: status.damaged,
            membership_index: status.membership.map_or(0, |index| index.0),
            voter: status.members.iter().any(|member| member.id == status.id && member.voter),
        }
    }
}

/// User and system time of this process since its start.
pub(crate) fn cpu_us() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    parse_cpu_ticks(&stat).unwrap_or(0) * TICK_US
}

/// The command name, in parentheses, may hold anything; fields are counted from behind it.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of this process that is in RAM.
pub(crate) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_resident_kib(&status).unwrap_or(0) * 1024
}

/// Files and sockets that this process has open; 0 where the system does not say.
pub(crate) fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn parse_resident_kib(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Type of the file system that holds `dir`: the mount point that is its longest prefix.
fn file_system_of(dir: &std::path::Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    parse_file_system(&mounts, &absolute).unwrap_or_else(|| "unknown".into())
}

fn parse_file_system(mounts: &str, dir: &std::path::Path) -> Option<String> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        // Blanks in mount points are written in octal.
        let point = PathBuf::from(fields.next()?.replace("\\040", " "));
        let kind = fields.next()?.to_owned();
        dir.starts_with(&point).then(|| (point.components().count(), kind))
    };
    // Later mounts cover earlier ones at the same place, and max_by_key takes the last of equals.
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_blanks_and_parentheses() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194304 100 0 0 0 700 33 0 0 20 0 1 0 100 0 0";
        assert_eq!(parse_cpu_ticks(stat), Some(733));
        assert_eq!(parse_cpu_ticks("nonsense"), None);
    }

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(parse_resident_kib("VmPeak:\t 9 kB\nVmRSS:\t   1234 kB\n"), Some(1234));
        assert_eq!(parse_resident_kib(""), None);
    }

    #[test]
    fn the_deepest_mount_names_the_file_system() {
        let mounts = "overlay / overlay rw 0 0\n/dev/a /data ext4 rw 0 0\ntmpfs /data/my\\040dir tmpfs rw 0 0\n";
        let kind = |dir: &str| parse_file_system(mounts, std::path::Path::new(dir));
        assert_eq!(kind("/data/q").as_deref(), Some("ext4"));
        assert_eq!(kind("/database").as_deref(), Some("overlay"));
        assert_eq!(kind("/data/my dir/x").as_deref(), Some("tmpfs"));
        assert_eq!(parse_file_system("", std::path::Path::new("/")), None);
    }
}
