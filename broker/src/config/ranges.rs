//! The range of every size, count and duration of a node's settings.
//!
//! Inside its range a value works, alone; how values must relate stands in `mod.rs`. The lower ends keep a node from refusing what it is
//! there for, the upper ones from promising what formats, memory or frames between nodes cannot hold. Called by
//! [`super::BrokerConfig::validate`] before anything else looks at the numbers, so that sums of them cannot overflow.

use std::time::Duration;

use super::{BrokerConfig, ConfigError, ENTRY_OVERHEAD_BYTES, QUEUES_MAX, check, units};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const MS: u64 = 1;
const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

const SEGMENT_BYTES: &str = "storage.segment_bytes";
const SEGMENT_BYTES_WHY: &str = ", because a segment takes at least four of the largest entries (limits.message_bytes_max or \
                                 limits.batch_bytes_max, and what stands around it)";

/// Key, value, least, most.
type Row = (&'static str, u64, u64, u64);

/// The first value out of its range.
pub(super) fn check_all(config: &BrokerConfig) -> Result<(), ConfigError> {
    for (rows, text) in tables(config) {
        for (key, value, least, most) in rows {
            check((least..=most).contains(&value), key, || {
                let why = if key == SEGMENT_BYTES { SEGMENT_BYTES_WHY } else { "" };
                format!("{} is out of range; write {} to {}{why}", text(value), text(least), text(most))
            })?;
        }
    }
    Ok(())
}

/// The range of a key, as it is written: `1 to 1000`. `None` for what is no number, size or duration.
pub(super) fn of(config: &BrokerConfig, key: &str) -> Option<String> {
    if key == "node.number" {
        return Some(format!("1 to {}", u16::MAX));
    }
    tables(config).into_iter().find_map(|(rows, text)| {
        let (_, _, least, most) = rows.into_iter().find(|row| row.0 == key)?;
        Some(format!("{} to {}", text(least), text(most)))
    })
}

/// Rows of one kind of value, and how such a value is written.
type Table = (Vec<Row>, fn(u64) -> String);

fn tables(config: &BrokerConfig) -> [Table; 3] {
    [
        (sizes(config), units::format_bytes),
        (durations(config), |millis| units::format_duration(Duration::from_millis(millis))),
        (counts(config), |count| count.to_string()),
    ]
}

/// A segment takes four of the largest entries, so its lower end is that of the limits; limits out of their own range count as at its end,
/// and are refused themselves.
fn segment_bytes_min(config: &BrokerConfig) -> u64 {
    let limits = &config.limits;
    4 * (limits.message_bytes_max.max(limits.batch_bytes_max).clamp(KIB, 32 * MIB) + ENTRY_OVERHEAD_BYTES)
}

fn sizes(config: &BrokerConfig) -> Vec<Row> {
    let (storage, limits) = (&config.storage, &config.limits);
    vec![
        // An index file keeps places in a segment as 32 bits.
        (SEGMENT_BYTES, storage.segment_bytes, segment_bytes_min(config), 4 * GIB),
        ("storage.tail_cache_bytes", storage.tail_cache_bytes, 64 * KIB, 4 * GIB),
        ("storage.follower_window_bytes", storage.follower_window_bytes, 64 * KIB, GIB),
        ("retention.log_bytes_max", config.retention.log_bytes_max, 0, 1024 * TIB),
        ("retention.disk_reserve_bytes", config.retention.disk_reserve_bytes, 0, TIB),
        // What a request and an answer take between nodes ends at 64 MiB.
        ("limits.message_bytes_max", limits.message_bytes_max, KIB, 32 * MIB),
        ("limits.request_bytes_max", limits.request_bytes_max, 64 * KIB, 60 * MIB),
        ("limits.receive_bytes_max", limits.receive_bytes_max, KIB, 32 * MIB),
        ("limits.header_bytes_max", limits.header_bytes_max, 4 * KIB, MIB),
        ("limits.held_bytes_max", limits.held_bytes_max, 64 * KIB, 64 * GIB),
        // Together with one entry below 4 GiB, which is how many bytes the log counts as under way.
        ("limits.propose_bytes_max", limits.propose_bytes_max, 64 * KIB, 3 * GIB),
        ("limits.batch_bytes_max", limits.batch_bytes_max, KIB, 32 * MIB),
        ("limits.inbound_bytes_max", limits.inbound_bytes_max, MIB, TIB),
    ]
}

fn durations(config: &BrokerConfig) -> Vec<Row> {
    let (limits, timers) = (&config.limits, config.election.timers());
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    vec![
        ("node.stop_wait_max", millis(config.node.stop_wait_max), 0, HOUR),
        ("storage.flush_interval", millis(config.storage.flush_interval), MS, 10 * SECOND),
        ("retention.age_max", millis(config.retention.age_max), 0, 36_500 * DAY),
        ("election.heartbeat", millis(timers.heartbeat), MS, 10 * SECOND),
        ("election.timeout_min", millis(timers.timeout_min), 3 * MS, 30 * SECOND),
        ("election.timeout_max", millis(timers.timeout_max), 4 * MS, 60 * SECOND),
        ("election.fast_path_pause", millis(config.election.fast_path_pause), MS, SECOND),
        ("transactions.immunity", millis(config.transactions.immunity), MS, DAY),
        ("transactions.immunity_max", millis(config.transactions.immunity_max), MS, DAY),
        ("transactions.check_interval", millis(config.transactions.check_interval), SECOND, DAY),
        ("route.drop_after", millis(config.route.drop_after), 100 * MS, HOUR),
        ("route.return_after", millis(config.route.return_after), 0, HOUR),
        ("limits.invisible_min", millis(limits.invisible_min), MS, DAY),
        ("limits.invisible_max", millis(limits.invisible_max), SECOND, 30 * DAY),
        ("limits.delay_max", millis(limits.delay_max), SECOND, 3_650 * DAY),
        ("limits.long_poll_max", millis(limits.long_poll_max), MS, HOUR),
        ("limits.hold_max", millis(limits.hold_max), MS, HOUR),
        ("limits.client_idle_max", millis(limits.client_idle_max), SECOND, DAY),
    ]
}

fn counts(config: &BrokerConfig) -> Vec<Row> {
    const MANY: u64 = 1_000_000;
    let limits = &config.limits;
    let count = |count: usize| count as u64;
    vec![
        ("election.fast_path_probes", config.election.fast_path_probes.into(), 1, 20),
        ("transactions.checks_max", config.transactions.checks_max.into(), 1, 1_000),
        ("retention.disk_warn_percent", config.retention.disk_warn_percent.into(), 1, 98),
        ("retention.disk_full_percent", config.retention.disk_full_percent.into(), 2, 99),
        ("topics.auto_create_queues", config.topics.auto_create_queues.into(), 1, QUEUES_MAX.into()),
        ("limits.messages_per_call_max", limits.messages_per_call_max.into(), 1, 65_535),
        ("limits.receive_batch_max", limits.receive_batch_max.into(), 1, 65_535),
        ("limits.batch_commands_max", count(limits.batch_commands_max), 1, 65_536),
        ("limits.batches_in_flight_max", count(limits.batches_in_flight_max), 1, 256),
        ("limits.connections_max", count(limits.connections_max), 1, MANY),
        ("limits.streams_per_connection_max", limits.streams_per_connection_max.into(), 1, MANY),
        ("limits.parked_receives_max", count(limits.parked_receives_max), 1, 10 * MANY),
        ("limits.clients_max", count(limits.clients_max), 1, 10 * MANY),
        // None is a choice: deliveries to push consumers then come back after their invisible duration.
        ("limits.renewals_max", count(limits.renewals_max), 0, 10 * MANY),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rows(config: &BrokerConfig) -> impl Iterator<Item = Row> {
        [sizes(config), durations(config), counts(config)].into_iter().flatten()
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_key_value_and_range() {
        type Case = (fn(&mut BrokerConfig), &'static str, &'static str, &'static str);
        let cases: [Case; 9] = [
            (|c| c.storage.segment_bytes = 100 * TIB, "storage.segment_bytes", "100TiB", "17MiB to 4GiB"),
            (|c| c.storage.tail_cache_bytes = 0, "storage.tail_cache_bytes", "0B", "64KiB to 4GiB"),
            (|c| c.limits.message_bytes_max = 0, "limits.message_bytes_max", "0B", "1KiB to 32MiB"),
            (|c| c.limits.batch_bytes_max = 1, "limits.batch_bytes_max", "1B", "1KiB to 32MiB"),
            (|c| c.limits.parked_receives_max = 0, "limits.parked_receives_max", "0 ", "1 to 10000000"),
            (|c| c.limits.request_bytes_max = u64::MAX, "limits.request_bytes_max", "B ", "64KiB to 60MiB"),
            (|c| c.limits.hold_max = Duration::MAX, "limits.hold_max", "ms ", "1ms to 1h"),
            (|c| c.limits.held_bytes_max = 0, "limits.held_bytes_max", "0B", "64KiB to 64GiB"),
            (|c| c.topics.auto_create_queues = 2_000, "topics.auto_create_queues", "2000", "1 to 1024"),
        ];
        for (change, key, value, range) in cases {
            let mut config = BrokerConfig::default();
            change(&mut config);
            let error = config.validate().expect_err(key);
            assert!(error.key == key && error.problem.contains(value) && error.problem.contains(range), "{error}");
        }
    }

    /// The lower end that is told is one that works.
    #[test]
    fn the_least_segment_is_that_of_the_limits() {
        let with = |message_bytes_max, segment_bytes| {
            let mut config = BrokerConfig::default();
            config.limits.message_bytes_max = message_bytes_max;
            config.storage.segment_bytes = segment_bytes;
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(with(4 * MIB, 17 * MIB), Ok(()));
        assert!(with(4 * MIB, 17 * MIB - 1).is_err_and(|said| said.contains("17MiB to 4GiB, because")));
        assert!(with(10 * MIB, 17 * MIB).is_err_and(|said| said.contains("41MiB to 4GiB")));
        assert_eq!(with(KIB, 5 * MIB), Ok(()));
        assert_eq!(of(&BrokerConfig::default(), "storage.segment_bytes").as_deref(), Some("17MiB to 4GiB"));
        assert_eq!(of(&BrokerConfig::default(), "transactions.checks_max").as_deref(), Some("1 to 1000"));
        assert_eq!(of(&BrokerConfig::default(), "node.cluster"), None);
    }

    #[test]
    fn either_end_of_a_range_is_in_it_and_does_not_overflow_a_relation() {
        for end in [|row: Row| row.2, |row: Row| row.3] {
            let mut config = BrokerConfig::default();
            let value = |key: &str| rows(&BrokerConfig::default()).find(|row| row.0 == key).map(end).expect(key);
            config.storage.segment_bytes = value("storage.segment_bytes");
            config.retention.log_bytes_max = value("retention.log_bytes_max");
            config.limits.message_bytes_max = value("limits.message_bytes_max");
            config.limits.request_bytes_max = value("limits.request_bytes_max");
            config.limits.propose_bytes_max = value("limits.propose_bytes_max");
            config.limits.batch_bytes_max = value("limits.batch_bytes_max");
            assert_eq!(check_all(&config), Ok(()));
            // Whatever the relations say, they say it without a panic.
            let _ = config.validate();
        }
    }

    /// A setting added later cannot be forgotten here.
    #[test]
    fn every_number_of_the_settings_has_a_range() {
        let config = BrokerConfig::default();
        let ranged: BTreeSet<&str> = rows(&config).map(|row| row.0).collect();
        let whole = serde_json::to_value(&config).expect("plain data");
        for (table, settings) in whole.as_object().expect("tables") {
            for (name, value) in settings.as_object().expect("a table") {
                let text = value.as_str().unwrap_or_default();
                let is_number =
                    value.is_number() || units::parse_bytes(text).is_ok() || units::parse_duration(text).is_ok();
                let key = format!("{table}.{name}");
                let is_checked_elsewhere = key == "node.number";
                assert!(!is_number || is_checked_elsewhere || ranged.contains(key.as_str()), "{key} has no range");
            }
        }
    }
}
