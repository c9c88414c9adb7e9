//! Every metric of this crate: its name, its help, and what is counted as it happens. All of them are counters without labels.
//!
//! A name server has no listener for scrapers; whoever runs it beside a broker shows its readings on that one's.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Exported name.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// The count since start.
    pub value: u64,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

macro_rules! counters {
    ($(#[doc = $help:literal] $field:ident = $name:literal;)*) => {
        /// What a name server has counted since it started.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $(#[doc = $help] pub(crate) $field: Counter,)*
        }

        impl Metrics {
            /// Every counter, in a fixed order.
            pub fn read(&self) -> Vec<Reading> {
                vec![$(Reading {
                    name: $name,
                    help: $help.trim_ascii(),
                    value: self.$field.0.load(Ordering::Relaxed),
                },)*]
            }
        }
    };
}

counters! {
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
}
