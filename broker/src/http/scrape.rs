//! What a scrape sees: what was counted, and what is read off the node's state now.
//!
//! Reading the machine is bounded: at most [`PAIRS_MAX`] pairs of consumer group and topic have lines of their own, the first ones by number; the
//! rest is summed up. Lags are the group's, not a node's, so only the leader tells them, and sums over nodes are right.

use std::{path::PathBuf, sync::Arc};

use quorate_proto::time::Timestamp;
use quorate_raft::{Disk, Group};
use tokio::time::Instant;

use super::{Page, metrics_page};
use crate::{
    config::BrokerConfig,
    health::{Check, Health},
    machine::{Machine, QueueId},
    metrics::{self as names, Family, Metrics, traffic::OTHER},
    replica::{Replica, Shared},
    service::node,
};

/// Pairs of consumer group and topic with lines of their own.
const PAIRS_MAX: usize = 256;
/// Queues of pairs that are looked at, the sum of the rest included: beyond it a scrape would hold the machine for too long.
const QUEUES_LOOKED_AT_MAX: usize = 16_384;

/// Metrics of other parts of the process.
pub type Beside = Arc<dyn Fn() -> Vec<Family> + Send + Sync>;

/// Makes scrapes of one node.
pub(crate) struct Scrape {
    /// The log and the group.
    pub group: Group<Replica>,
    /// The machine.
    pub shared: Shared,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What the node says of its health.
    pub health: Arc<Health>,
    /// Names and folder.
    pub config: Arc<BrokerConfig>,
    /// Tells of space.
    pub disk: Arc<dyn Disk>,
    /// When the node started.
    pub started: Instant,
    /// What stands beside it in the process.
    pub beside: Option<Beside>,
}

/// What a group has before it in a topic.
#[derive(Clone, Copy, Default)]
struct Lag {
    lag: u64,
    ready: u64,
    in_flight: u64,
}

impl Scrape {
    /// Everything, as a page.
    pub fn page(&self) -> Page {
        let node = &self.config.node;
        let id = format!("{}-{}", node.group, node.number);
        let common = [("cluster", node.cluster.as_str()), ("node_type", "broker"), ("node_id", id.as_str())];
        metrics_page(&self.families(), &common)
    }

    fn families(&self) -> Vec<Family> {
        let mut families = self.group.metrics();
        families.extend(self.metrics.read());
        families.extend(self.storage());
        families.extend(self.process());
        let now = self.shared.log_now();
        families.extend(self.shared.read(|machine| {
            let dedup = machine.dedup_stats();
            [
                names::TOPICS.is(machine.topics().len() as f64),
                names::GROUPS.is(machine.groups().len() as f64),
                names::DEDUP_ENTRIES.is(dedup.entries as f64),
                names::DEDUP_BYTES.is(dedup.bytes as f64),
                names::DEDUP_SECONDS.is(dedup.window_ms as f64 / 1e3),
                names::DEDUP_REPEATS.is(dedup.duplicates as f64),
                names::DEDUP_COLLISIONS.is(dedup.collisions as f64),
            ]
        }));
        if self.group.leader().borrow().serving {
            families.extend(lag_families(self.shared.read(|machine| lags(machine, now))));
        }
        families.extend(self.beside.iter().flat_map(|beside| beside()));
        families
    }

    fn storage(&self) -> Vec<Family> {
        let status = self.group.status();
        let mut families = vec![
            names::STORAGE_SIZE.is(status.end.0.saturating_sub(status.floor.0) as f64),
            names::FLUSH_BEHIND.is(status.end.0.saturating_sub(status.synced.0) as f64),
        ];
        let dir: &PathBuf = &self.config.storage.data_dir;
        if let Ok((free, total)) = self.disk.space(dir) {
            families.push(names::DISK_FREE.is(free as f64));
            families.push(names::DISK_USED.is(total.saturating_sub(free) as f64));
        }
        families
    }

    fn process(&self) -> Vec<Family> {
        let holds = |check: Check| {
            let value = f64::from(u8::from(self.health.why_not(check).is_empty()));
            (vec![check.name().to_owned()], value)
        };
        vec![
            names::RESIDENT.is(node::resident_bytes() as f64),
            names::CPU_SECONDS.is(node::cpu_us() as f64 / 1e6),
            names::OPEN_FILES.is(node::open_files() as f64),
            names::UPTIME.is(self.started.elapsed().as_secs_f64()),
            names::HEALTH.each(Check::ALL.map(holds)),
            names::BUILD_INFO.each([(vec![env!("CARGO_PKG_VERSION").to_owned()], 1.0)]),
        ]
    }
}

/// Lags by topic and group; the last one may be the sum of the rest.
fn lags(machine: &Machine, now: Timestamp) -> Vec<([String; 2], Lag)> {
    let mut lags = Vec::new();
    let mut rest: Option<Lag> = None;
    let pairs = machine.groups().flat_map(|group| group.topics().map(move |topic| (group, topic)));
    let mut looked_at = 0;
    for (at, (group, id)) in pairs.enumerate() {
        let Some(topic) = machine.topic_by_id(id) else { continue };
        looked_at += usize::from(topic.queues());
        if looked_at > QUEUES_LOOKED_AT_MAX {
            break;
        }
        let mut lag = Lag { ready: machine.ready(group.id(), id, now), ..Lag::default() };
        for queue in 0..topic.queues() {
            if let Some(progress) = machine.progress(group.id(), id, QueueId(queue)) {
                lag.lag += progress.behind + progress.in_flight;
                lag.in_flight += progress.in_flight;
            }
        }
        if at < PAIRS_MAX {
            lags.push(([topic.name().to_string(), group.name().to_string()], lag));
        } else {
            let sum = rest.get_or_insert_default();
            sum.lag += lag.lag;
            sum.ready += lag.ready;
            sum.in_flight += lag.in_flight;
        }
    }
    lags.extend(rest.map(|rest| ([OTHER.to_owned(), OTHER.to_owned()], rest)));
    lags
}

fn lag_families(lags: Vec<([String; 2], Lag)>) -> [Family; 3] {
    let each = |of: fn(&Lag) -> u64| lags.iter().map(move |(labels, lag)| (labels.to_vec(), of(lag) as f64));
    [
        names::CONSUMER_LAG.each(each(|lag| lag.lag)),
        names::CONSUMER_READY.each(each(|lag| lag.ready)),
        names::CONSUMER_INFLIGHT.each(each(|lag| lag.in_flight)),
    ]
}
