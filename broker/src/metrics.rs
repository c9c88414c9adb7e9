//! Every metric of this crate: its name, its help, its value. Names that RocketMQ 5 has are RocketMQ's.
//!
//! Counters are bare atomics, so that counting costs nothing worth measuring. Whoever exports them reads [`Metrics::read`].

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The count since start.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

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
}

/// Adds one as long as it lives.
#[derive(Debug)]
pub(crate) struct Lifetime<'a>(&'a Gauge);

impl Gauge {
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

/// Name, help and value of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Exported name.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// Its value.
    pub value: i64,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal,)*) => {
        /// What this node has counted since it started.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $field: $kind,)*
        }

        impl Metrics {
            /// Every metric, in a fixed order.
            pub fn read(&self) -> Vec<Reading> {
                vec![$(Reading {
                    name: $name,
                    help: concat!($($help),+).trim_ascii(),
                    value: i64::try_from(self.$field.value()).unwrap_or(i64::MAX),
                },)*]
            }
        }
    };
}

metrics! {
    /// Messages that clients sent and this node answered OK.
    messages_in: Counter = "rocketmq_messages_in_total",
    /// Messages that this node handed out to clients.
    messages_out: Counter = "rocketmq_messages_out_total",
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
    /// Receives that wait for messages on this node.
    parked: Gauge = "quorate_broker_receives_parked",
    /// Client connections open now.
    connections: Gauge = "quorate_broker_client_connections",
    /// Clients remembered.
    clients: Gauge = "quorate_broker_clients",
    /// Deliveries renewed for push consumers.
    renewed: Counter = "quorate_broker_deliveries_renewed_total",
    /// Distance of this leader's clock from its nearest peer's, when it is more than ten seconds.
    clock_off_seconds: Gauge = "quorate_broker_clock_off_seconds",
    /// Name servers that took this node's latest registration.
    registered: Gauge = "quorate_broker_name_servers_registered",
    /// Registrations that a name server did not take.
    registrations_failed: Counter = "quorate_broker_registrations_failed_total",
    /// Messages whose bytes had rotted on this node's disk when they were to be handed out.
    rotten: Counter = "quorate_broker_messages_rotten_total",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own_and_help() {
        let metrics = Metrics::default();
        metrics.batches.add(3);
        let readings = metrics.read();
        let mut names: Vec<_> = readings.iter().map(|reading| reading.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), readings.len());
        assert!(readings.iter().all(|reading| reading.help.ends_with('.')));
        assert!(readings.iter().any(|reading| reading.name.contains("batches") && reading.value == 3));
    }
}
