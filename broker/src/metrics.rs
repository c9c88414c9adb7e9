//! Every metric of this crate: its name, its kind, its labels, its help, and what is counted as it happens.
//!
//! Names that RocketMQ 5 has are RocketMQ's, with its labels where they make sense here; all others are `quorate_broker_…`. Counting is a few
//! atomic additions and takes no lock. What can be read off the node's state is not counted but looked at by [`crate::http`] when somebody asks.
//! Labels come from closed sets, or are topics and consumer groups of which a fixed number is told apart ([`traffic`]); never clients.

pub mod traffic;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use quorate_raft::declare_metrics;
pub use quorate_raft::metrics::{Counter, Family, Histogram, Kind, Metric, Sample, Spread, Value};

use self::traffic::Traffic;

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// Adds one as long as it lives.
#[derive(Debug)]
pub(crate) struct Lifetime<'a>(&'a Gauge);

impl Gauge {
    pub(crate) fn add(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn hold(&self) -> Lifetime<'_> {
        self.add(1);
        Lifetime(self)
    }
}

impl Drop for Lifetime<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

/// Counters and gauges without labels: each declared once, as a field with its name.
macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal,)*) => {
        /// What this node has counted since it started.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $field: $kind,)*
            /// What is told apart by labels or spread over buckets.
            pub(crate) detail: Detail,
        }

        /// The counters and gauges without labels.
        static PLAIN: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[],
            help: concat!($($help),+).trim_ascii(),
        },)*];

        impl Metrics {
            fn plain(&self) -> impl Iterator<Item = Family> {
                let values = [$(self.$field.value() as f64,)*];
                PLAIN.iter().zip(values).map(|(metric, value)| metric.is(value))
            }
        }
    };
}

metrics! {
    /// Log entries proposed by this node.
    batches: Counter = "quorate_broker_batches_total",
    /// Commands in them.
    commands: Counter = "quorate_broker_commands_total",
    /// Calls sent on to the leader.
    forwarded: Counter = "quorate_broker_calls_forwarded_total",
    /// Calls that waited for a leader.
    held: Counter = "quorate_broker_calls_held_total",
    /// Calls waiting for a leader now.
    holding: Gauge = "quorate_broker_calls_holding",
    /// Calls answered 50002 because no leader came in time.
    not_now: Counter = "quorate_broker_calls_not_now_total",
    /// Calls answered 50402 because their outcome is unknown.
    unknown: Counter = "quorate_broker_calls_unknown_total",
    /// Calls answered 42900.
    overloaded: Counter = "quorate_broker_calls_overloaded_total",
    /// Calls turned away because too many request bytes were being served.
    turned_away: Counter = "quorate_broker_calls_turned_away_total",
    /// Delayed messages that wait for their time.
    delayed: Gauge = "quorate_broker_delayed_messages",
    /// Delayed messages that this leader made visible.
    delayed_delivered: Counter = "quorate_broker_delayed_delivered_total",
    /// Those that became visible more than 100 ms after their time.
    delayed_late: Counter = "quorate_broker_delayed_late_total",
    /// Bodies of waiting messages that this leader wrote again so that the log before them could go.
    carried: Counter = "quorate_broker_bodies_carried_total",
    /// Half messages whose producers have not resolved them and are asked; told by the leader only.
    half_messages: Gauge = "rocketmq_half_messages",
    /// Half messages that were checked in vain until nobody asks any more; told by the leader only.
    set_aside: Gauge = "quorate_broker_transactions_set_aside",
    /// Checks of half messages that this leader handed to a producer's stream.
    transaction_checks: Counter = "quorate_broker_transaction_checks_total",
    /// Commits that this leader answered OK, repeated ones included.
    committed: Counter = "rocketmq_commit_messages_total",
    /// Rollbacks that this leader answered OK, repeated ones included.
    rolled_back: Counter = "rocketmq_rollback_messages_total",
    /// Dead letters that this leader stored in a topic again.
    redriven: Counter = "quorate_broker_dead_letters_redriven_total",
    /// Receives and pulls that wait for messages on this node.
    parked: Gauge = "quorate_broker_receives_parked",
    /// Client connections open now.
    connections: Gauge = "quorate_broker_client_connections",
    /// Clients remembered.
    clients: Gauge = "quorate_broker_clients",
    /// Deliveries renewed for push consumers.
    renewed: Counter = "quorate_broker_deliveries_renewed_total",
    /// Distance of this leader's clock from its nearest peer's, when it is more than ten seconds.
    clock_off_seconds: Gauge = "quorate_broker_clock_off_seconds",
    /// 1 while sends are taken as far as this node knows, 0 while they are refused because disks are full.
    writable: Gauge = "quorate_broker_disk_writable",
    /// Sends and new topics refused because disks are full.
    refused_disk_full: Counter = "quorate_broker_refused_disk_full_total",
    /// Messages that retention dropped although a group of their topic, or everybody, had not consumed them; counted by the leader.
    dropped_unconsumed: Counter = "quorate_broker_messages_dropped_unconsumed_total",
    /// Name servers that took this node's latest registration.
    registered: Gauge = "quorate_broker_name_servers_registered",
    /// Registrations that a name server did not take.
    registrations_failed: Counter = "quorate_broker_registrations_failed_total",
    /// Messages whose bytes had rotted on this node's disk when they were to be handed out.
    rotten: Counter = "quorate_broker_messages_rotten_total",
    /// Consume queue records that had rotted on this node's disk when a message was to be handed out.
    damaged: Counter = "quorate_broker_queue_records_damaged_total",
}

declare_metrics! {
    /// Commands in one log entry proposed by this node.
    BATCH_COMMANDS = Histogram "quorate_broker_batch_commands" [];
    /// Bytes of commands in one log entry proposed by this node.
    BATCH_BYTES = Histogram "quorate_broker_batch_bytes" [];
    /// Calls that this node answered, by what came of them.
    CALLS = Counter "quorate_broker_calls_total" ["method", "outcome"];
    /// Milliseconds from the request's headers to the answer; a receive's include its wait for messages.
    RPC_LATENCY = Histogram "rocketmq_rpc_latency" ["protocol_type", "request_code"];
    /// Messages that clients sent and this node answered OK.
    MESSAGES_IN = Counter "rocketmq_messages_in_total" ["topic", "message_type"];
    /// Bytes of their bodies.
    THROUGHPUT_IN = Counter "rocketmq_throughput_in_total" ["topic", "message_type"];
    /// Bytes of the body of one message that was sent.
    MESSAGE_SIZE = Histogram "rocketmq_message_size" [];
    /// Messages that this node handed out to clients.
    MESSAGES_OUT = Counter "rocketmq_messages_out_total" ["topic", "consumer_group"];
    /// Bytes of their bodies.
    THROUGHPUT_OUT = Counter "rocketmq_throughput_out_total" ["topic", "consumer_group"];
    /// Messages that this leader handed out once more, since nobody had acknowledged them in time.
    REDELIVERIES = Counter "quorate_broker_redeliveries_total" ["topic", "consumer_group"];
    /// Messages of the topic that this leader moved to the dead letters of the group.
    DEAD_LETTERS = Counter "rocketmq_send_to_dlq_messages_total" ["topic", "consumer_group"];
    /// Messages that the group has not acknowledged; told by the leader only.
    CONSUMER_LAG = Gauge "rocketmq_consumer_lag_messages" ["topic", "consumer_group"];
    /// Messages that the group could receive now; told by the leader only.
    CONSUMER_READY = Gauge "rocketmq_consumer_ready_messages" ["topic", "consumer_group"];
    /// Messages that consumers of the group hold and have not acknowledged; told by the leader only.
    CONSUMER_INFLIGHT = Gauge "rocketmq_consumer_inflight_messages" ["topic", "consumer_group"];
    /// Topics.
    TOPICS = Gauge "rocketmq_topic_number" [];
    /// Consumer groups.
    GROUPS = Gauge "rocketmq_consumer_group_number" [];
    /// Bytes of the log that are kept.
    STORAGE_SIZE = Gauge "rocketmq_storage_size" [];
    /// Bytes at the end of the log that are not on stable storage yet.
    FLUSH_BEHIND = Gauge "rocketmq_storage_flush_behind_bytes" [];
    /// Sends that the window of repeats remembers.
    DEDUP_ENTRIES = Gauge "quorate_broker_dedup_entries" [];
    /// Memory of the window of repeats, about.
    DEDUP_BYTES = Gauge "quorate_broker_dedup_bytes" [];
    /// Age of the oldest send that the window of repeats remembers.
    DEDUP_SECONDS = Gauge "quorate_broker_dedup_window_seconds" [];
    /// Sends answered with the first result because they were repeats, since the group was born.
    DEDUP_REPEATS = Gauge "quorate_broker_dedup_repeats" [];
    /// Sends whose ids were known with another body and that were stored as new messages, since the group was born.
    DEDUP_COLLISIONS = Gauge "quorate_broker_dedup_collisions" [];
    /// Messages that the group has not consumed and that are about to be dropped; without a group those that no group has read. Told by the leader only.
    LOSING = Gauge "quorate_broker_losing_messages" ["topic", "consumer_group"];
    /// Seconds until the oldest segment is dropped and they with it; absent while nothing is about to be lost.
    LOSING_SECONDS = Gauge "quorate_broker_losing_seconds" [];
    /// Free bytes of the file system that holds the data directory.
    DISK_FREE = Gauge "quorate_broker_disk_free_bytes" [];
    /// Used bytes of that file system.
    DISK_USED = Gauge "quorate_broker_disk_used_bytes" [];
    /// Memory of this process that is in RAM.
    RESIDENT = Gauge "quorate_broker_resident_bytes" [];
    /// CPU time of this process.
    CPU_SECONDS = Counter "quorate_broker_cpu_seconds_total" [];
    /// Files and sockets that this process has open.
    OPEN_FILES = Gauge "quorate_broker_open_files" [];
    /// Seconds since this node started.
    UPTIME = Gauge "quorate_broker_uptime_seconds" [];
    /// 1 for the check that holds.
    HEALTH = Gauge "quorate_broker_health" ["check"];
    /// 1, with the version of this program.
    BUILD_INFO = Gauge "quorate_broker_build_info" ["version"];
}

/// Every metric of this crate.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    PLAIN.iter().chain(ALL.iter().copied())
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done.
    Ok = 0,
    /// A receive that found nothing.
    Empty = 1,
    /// Some messages of a send were stored and some were not.
    Partly = 2,
    /// A deterministic no.
    Refused = 3,
    /// Nobody led in time; certainly no effect.
    NotNow = 4,
    /// Too much under way; certainly no effect.
    Overloaded = 5,
    /// It may or may not have taken effect.
    Unknown = 6,
}

impl Outcome {
    const ALL: [(Self, &str); 7] = [
        (Self::Ok, "ok"),
        (Self::Empty, "empty"),
        (Self::Partly, "partly"),
        (Self::Refused, "refused"),
        (Self::NotNow, "not_now"),
        (Self::Overloaded, "overloaded"),
        (Self::Unknown, "unknown"),
    ];

    /// By the code that the client is told.
    pub fn of(code: i32) -> Self {
        match code {
            20000 => Self::Ok,
            30000 => Self::Partly,
            40401 => Self::Empty,
            42900 => Self::Overloaded,
            50002 => Self::NotNow,
            50402 => Self::Unknown,
            _ => Self::Refused,
        }
    }
}

/// Counts of a method's calls by outcome.
#[derive(Debug, Default)]
pub(crate) struct Outcomes([Counter; Outcome::ALL.len()]);

impl Outcomes {
    pub fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].add(1);
    }

    /// Labels and counts.
    fn read(&self, method: &str) -> impl Iterator<Item = (Vec<String>, f64)> {
        let value = |(outcome, name): (Outcome, &str)| {
            (vec![method.to_owned(), name.to_owned()], self.0[outcome as usize].value() as f64)
        };
        Outcome::ALL.map(value).into_iter()
    }
}

/// Methods whose latency is told apart; the last stands for all others.
const METHODS: [&str; 17] = [
    "QueryRoute",
    "Heartbeat",
    "SendMessage",
    "QueryAssignment",
    "ReceiveMessage",
    "AckMessage",
    "ForwardMessageToDeadLetterQueue",
    "PullMessage",
    "UpdateOffset",
    "GetOffset",
    "QueryOffset",
    "EndTransaction",
    "NotifyClientTermination",
    "ChangeInvisibleDuration",
    "RecallMessage",
    "SyncLiteSubscription",
    "other",
];
/// Latencies: from a read to a held call.
const LATENCY_US: [u64; 14] = [
    500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 3_000_000, 10_000_000,
    30_000_000,
];
const COMMAND_COUNTS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096];
const SIZES: [u64; 10] = [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

/// Latencies by method.
#[derive(Debug)]
pub(crate) struct Latencies([Histogram; METHODS.len()]);

impl Default for Latencies {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Histogram::of_millis(&LATENCY_US)))
    }
}

impl Latencies {
    /// Where a method stands.
    pub fn place(method: &str) -> usize {
        METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1)
    }

    /// The latencies of the method that stands there.
    pub fn at(&self, place: usize) -> &Histogram {
        &self.0[place]
    }
}

/// What is about to be lost.
#[derive(Debug, Default)]
pub(crate) struct Losing {
    /// How soon; `None` if nothing is.
    pub within: Option<Duration>,
    /// How many messages, by topic and group.
    pub messages: Vec<([String; 2], u64)>,
}

/// What is told apart by labels or spread over buckets.
#[derive(Debug)]
pub(crate) struct Detail {
    pub batch_commands: Histogram,
    pub batch_bytes: Histogram,
    pub sends: Outcomes,
    pub receives: Outcomes,
    /// What came of pulls.
    pub pulls: Outcomes,
    pub latencies: Latencies,
    pub message_size: Histogram,
    pub traffic: Traffic,
    pub losing: Mutex<Losing>,
}

impl Default for Detail {
    fn default() -> Self {
        Self {
            batch_commands: Histogram::of(&COMMAND_COUNTS),
            batch_bytes: Histogram::of(&SIZES),
            sends: Outcomes::default(),
            receives: Outcomes::default(),
            pulls: Outcomes::default(),
            latencies: Latencies::default(),
            message_size: Histogram::of(&SIZES),
            traffic: Traffic::default(),
            losing: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Everything that is counted, in a fixed order.
    pub fn read(&self) -> Vec<Family> {
        let detail = &self.detail;
        let latencies = METHODS.iter().zip(&detail.latencies.0).map(|(method, histogram)| Sample {
            labels: vec!["grpc".to_owned(), (*method).to_owned()],
            value: Value::Spread(histogram.read()),
        });
        let losing = detail.losing.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = detail.sends.read("SendMessage").chain(detail.receives.read("ReceiveMessage"));
        let calls = calls.chain(detail.pulls.read("PullMessage"));
        let spread = [
            BATCH_COMMANDS.spreads(&detail.batch_commands),
            BATCH_BYTES.spreads(&detail.batch_bytes),
            CALLS.each(calls),
            Family { metric: RPC_LATENCY, samples: latencies.collect() },
            MESSAGE_SIZE.spreads(&detail.message_size),
            LOSING_SECONDS.each(losing.within.iter().map(|within| (Vec::new(), within.as_secs_f64()))),
            LOSING.each(losing.messages.iter().map(|(labels, messages)| (labels.to_vec(), *messages as f64))),
        ];
        self.plain().chain(spread).chain(detail.traffic.read()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own_and_a_line_of_help() {
        let mut names: Vec<_> = all().map(|metric| metric.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for metric in all().chain(quorate_raft::metrics::ALL.iter().copied()) {
            assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{metric:?}");
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
            assert!(
                ["rocketmq_", "quorate_broker_", "quorate_raft_"].iter().any(|start| metric.name.starts_with(start))
            );
        }
    }

    #[test]
    fn every_outcome_stands_in_its_place() {
        for (at, (outcome, _)) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, at);
        }
        assert_eq!(
            [20000, 40401, 50402, 40402].map(Outcome::of),
            [Outcome::Ok, Outcome::Empty, Outcome::Unknown, Outcome::Refused]
        );
    }
}
