//! What the brokers say about themselves before and after a load.

use quorate_client::{Admin, NodeStatus};

/// The broker group under load.
pub struct Servers(Option<Admin>);

/// Sums over the nodes at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub pids: Vec<u64>,
    pub cpu_us: u64,
    pub syncs: u64,
    pub entries: u64,
    pub flush: String,
    pub file_system: String,
}

impl Servers {
    pub fn new(admin: Admin) -> Self {
        Self(Some(admin))
    }

    /// Nobody to ask.
    #[cfg(test)]
    pub fn none() -> Self {
        Self(None)
    }

    /// `None` if nobody answers, or a node is away: a sum that lacks one says nothing.
    pub async fn sample(&self) -> Option<Sample> {
        let status = self.0.as_ref()?.cluster_status().await.ok()?;
        if status.nodes.is_empty() || status.nodes.iter().any(|node| !node.reachable) {
            return None;
        }
        let sum = |of: fn(&NodeStatus) -> u64| status.nodes.iter().map(of).sum();
        let words = |of: fn(&NodeStatus) -> &String| {
            let mut words: Vec<&str> = status.nodes.iter().map(|node| of(node).as_str()).collect();
            words.sort_unstable();
            words.dedup();
            words.join("+")
        };
        Some(Sample {
            pids: status.nodes.iter().map(|node| node.pid).collect(),
            cpu_us: sum(|node| node.cpu_us),
            syncs: sum(|node| node.syncs),
            entries: sum(|node| node.entries),
            flush: words(|node| &node.flush),
            file_system: words(|node| &node.file_system),
        })
    }
}

impl Sample {
    /// No node was restarted in between, so that differences of its counters mean something.
    pub fn same_processes(&self, other: &Self) -> bool {
        self.pids == other.pids
    }
}
