//! Every metric of this crate: its name, its help, and what is counted as it happens. None has labels.
//!
//! Whoever runs a name server shows its readings: beside a broker on that one's HTTP listener, alone on one of its own.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins at 0 when the name server starts.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A metric as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Exported name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// One line of help.
    pub help: &'static str,
    /// The value now.
    pub value: u64,
}

/// What a name server knows now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Nodes whose claim counts.
    pub nodes: u64,
    /// Broker groups with such a node.
    pub groups: u64,
    /// Topics with a route.
    pub topics: u64,
    /// Claims that ended unrepeated, since the start.
    pub expired: u64,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Looks at what is known now.
type Look = Box<dyn Fn() -> Standing + Send + Sync>;

/// Set when the name server starts.
#[derive(Default)]
pub(crate) struct Table(OnceLock<Look>);

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.read().fmt(f)
    }
}

impl Table {
    pub(crate) fn set(&self, look: impl Fn() -> Standing + Send + Sync + 'static) {
        assert!(self.0.set(Box::new(look)).is_ok(), "one name server counts in one place");
    }

    fn read(&self) -> Standing {
        self.0.get().map(|look| look()).unwrap_or_default()
    }
}

macro_rules! metrics {
    (counted: $(#[doc = $help:literal] $field:ident = $name:literal;)*
     known: $(#[doc = $known_help:literal] $kind:ident $known:ident = $known_name:literal;)*) => {
        /// What a name server has counted since it started, and what it knows now.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub(crate) $field: Counter,)*
            pub(crate) table: Table,
        }

        impl Metrics {
            /// Every metric, in a fixed order.
            pub fn read(&self) -> Vec<Reading> {
                let standing = self.standing();
                vec![
                    $(Reading {
                        name: $name,
                        kind: Kind::Counter,
                        help: $help.trim_ascii(),
                        value: self.$field.0.load(Ordering::Relaxed),
                    },)*
                    $(Reading {
                        name: $known_name,
                        kind: Kind::$kind,
                        help: $known_help.trim_ascii(),
                        value: standing.$known,
                    },)*
                ]
            }
        }
    };
}

impl Metrics {
    /// What the name server knows now; nothing before it runs.
    pub fn standing(&self) -> Standing {
        self.table.read()
    }

    /// Registrations taken since the start.
    pub fn claims_taken(&self) -> u64 {
        self.claims_taken.0.load(Ordering::Relaxed)
    }
}

metrics! {
    counted:
    /// Registrations of nodes that were taken, heartbeats included.
    claims_taken = "quorate_namesrv_claims_taken_total";
    /// Registrations that were refused: another cluster's, or ones that cannot be read.
    claims_refused = "quorate_namesrv_claims_refused_total";
    /// Nodes that said goodbye.
    goodbyes = "quorate_namesrv_goodbyes_total";
    /// Questions of clients for a route that were answered with one.
    routes_told = "quorate_namesrv_routes_told_total";
    /// Questions of clients for the route of a topic that nobody has registered.
    routes_unknown = "quorate_namesrv_routes_unknown_total";
    known:
    /// Nodes forgotten because they were silent for ten seconds.
    Counter expired = "quorate_namesrv_claims_expired_total";
    /// Nodes whose registration counts.
    Gauge nodes = "quorate_namesrv_nodes";
    /// Broker groups with a registered node.
    Gauge groups = "quorate_namesrv_groups";
    /// Topics with a route.
    Gauge topics = "quorate_namesrv_topics";
}
