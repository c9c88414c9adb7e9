//! What a name server knows: claims of broker nodes, and the routes that follow from them. Pure: time comes in as an argument.
//!
//! A node *claims*: "in term 7 I am the leader of group a, these addresses are alive, these topics exist". The table keeps the
//! last claim of each node for [`LEASE`]. A group's route is what its *best* claim says, and no claim is merged with another,
//! so a route is always something that one node believed as a whole.
//!
//! The best claim is that of the highest term; of one term, the leader's; then the one with more changes of topics; then that of
//! the lowest node number. Nothing depends on the order in which claims of different nodes arrived, which is what makes
//! name servers with the same input give the same answers without ever talking to each other. A claim of a lower term than the
//! node's last one came late and is refused. Once the claims of a high term have expired, lower ones count again: the
//! table remembers nothing that no living node says, so a group that was made anew is found within one lease.
//!
//! Entries belong to one cluster id, the configured one or else that of the first claim, for as long as any of its claims lives:
//! routes of two clusters must never mix, since a client cannot tell them apart.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use quorate_proto::names::TopicName;

use crate::metrics::Standing;

/// How long a claim counts after it was made. Brokers repeat theirs every second.
pub const LEASE: Duration = Duration::from_secs(10);

/// Most broker groups a table takes; bounds its memory against wrong configuration.
pub const GROUPS_MAX: usize = 1_024;
/// Most nodes of one broker group.
pub const NODES_MAX: usize = 64;

/// What one node says of its broker group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The cluster the node belongs to.
    pub cluster: String,
    /// The node's broker group.
    pub group: String,
    /// The node's number in the group.
    pub number: u32,
    /// Highest term the node knows.
    pub term: u64,
    /// The node leads in that term.
    pub leader: bool,
    /// Client addresses (`host:port`) of the group's live nodes, the leader first. Never empty.
    pub live: Vec<String>,
    /// The same nodes for clients of the nodes' named listeners.
    pub listeners: BTreeMap<String, Vec<String>>,
    /// Grows with each change of topics.
    pub topics_version: u64,
    /// Every topic of the group.
    pub topics: BTreeMap<TopicName, Topic>,
}

/// A topic in a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its queues are numbered from 0 to below this.
    pub queues: u16,
    /// Numbers of `apache.rocketmq.v2.MessageType`, handed through.
    pub accept_message_types: Vec<i32>,
}

/// Where one group's part of a topic is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRoute {
    /// Name of the broker group.
    pub group: String,
    /// Client addresses of its live nodes, the leader first, for clients of the listener that was asked for.
    pub live: Vec<String>,
    /// The topic as the group has it.
    pub topic: Topic,
}

/// Why a claim was not taken. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotClaimed {
    /// The claim is for another cluster.
    #[error("this name server serves cluster {ours:?}, not {theirs:?}; point the broker at its own name servers")]
    OtherCluster {
        /// The cluster served.
        ours: String,
        /// The claim's.
        theirs: String,
    },
    /// The same node has claimed in a higher term, and that claim still counts.
    #[error("node {number} of group {group:?} is known in term {known}; a claim of term {term} is out of date")]
    OldTerm {
        /// The group.
        group: String,
        /// The node.
        number: u32,
        /// Term of the claim that counts.
        known: u64,
        /// Term of the claim refused.
        term: u64,
    },
    /// More groups, or more nodes in a group, than a name server takes.
    #[error("too many {what}: a name server takes at most {max}")]
    TooMany {
        /// "broker groups" or "nodes in a broker group".
        what: &'static str,
        /// How many it takes.
        max: usize,
    },
}

/// The claims of one cluster. See the module's text for the rules.
#[derive(Debug, Default)]
pub struct Table {
    /// The configured cluster; none means that of the first claim.
    fixed: Option<String>,
    /// The cluster of the claims held; of use only while there are some.
    adopted: String,
    groups: BTreeMap<String, BTreeMap<u32, Held>>,
    /// Claims that were dropped because they were not repeated.
    expired: u64,
}

#[derive(Debug)]
struct Held {
    claim: Arc<Claim>,
    /// The first moment at which the claim no longer counts.
    end: Duration,
}

impl Table {
    /// An empty table for `cluster`, or for whichever cluster claims first.
    pub fn new(cluster: Option<String>) -> Self {
        Self { fixed: cluster, ..Self::default() }
    }

    /// Takes a claim made at `now`; it counts until `now + LEASE` or until the node's next.
    ///
    /// # Errors
    /// Says why the claim was refused; then everything is as before, the lease of the node's last claim included.
    pub fn register(&mut self, claim: Claim, now: Duration) -> Result<(), NotClaimed> {
        self.expire(now);
        self.check_cluster(&claim.cluster)?;
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&claim.group) {
            return Err(NotClaimed::TooMany { what: "broker groups", max: GROUPS_MAX });
        }
        if let Some(nodes) = self.groups.get(&claim.group) {
            match nodes.get(&claim.number) {
                Some(held) if held.claim.term > claim.term => {
                    let Claim { group, number, term, .. } = claim;
                    return Err(NotClaimed::OldTerm { group, number, known: held.claim.term, term });
                }
                None if nodes.len() >= NODES_MAX => {
                    return Err(NotClaimed::TooMany { what: "nodes in a broker group", max: NODES_MAX });
                }
                Some(_) | None => {}
            }
        }
        self.adopted.clone_from(&claim.cluster);
        let held = Held { claim: Arc::new(claim), end: now + LEASE };
        self.groups.entry(held.claim.group.clone()).or_default().insert(held.claim.number, held);
        Ok(())
    }

    /// Forgets what a node claimed, because it leaves. Does nothing if nothing is known of it.
    pub fn unregister(&mut self, cluster: &str, group: &str, number: u32) {
        if self.check_cluster(cluster).is_err() {
            return;
        }
        if let Entry::Occupied(mut nodes) = self.groups.entry(group.to_owned()) {
            nodes.get_mut().remove(&number);
            if nodes.get().is_empty() {
                nodes.remove();
            }
        }
    }

    /// Where `topic` is at `now`: one entry for each group that has it, sorted by group name. Empty if none has. Addresses are those
    /// for clients of `listener`, or the group's usual ones if its nodes have no listener of that name.
    pub fn route(&self, topic: &TopicName, listener: Option<&str>, now: Duration) -> Vec<GroupRoute> {
        self.groups
            .values()
            .filter_map(|nodes| {
                let best = best(nodes, now)?;
                let topic = best.topics.get(topic)?;
                let named = listener.and_then(|name| best.listeners.get(name));
                let live = named.unwrap_or(&best.live).clone();
                Some(GroupRoute { group: best.group.clone(), live, topic: topic.clone() })
            })
            .collect()
    }

    /// How much counts at `now`.
    pub fn standing(&mut self, now: Duration) -> Standing {
        self.expire(now);
        let topics: BTreeSet<&TopicName> =
            self.groups.values().filter_map(|nodes| best(nodes, now)).flat_map(|claim| claim.topics.keys()).collect();
        Standing {
            nodes: self.groups.values().map(|nodes| nodes.len() as u64).sum(),
            groups: self.groups.len() as u64,
            topics: topics.len() as u64,
            expired: self.expired,
        }
    }

    /// Drops what no longer counts at `now`. [`Self::route`] does not need it; it frees memory.
    fn expire(&mut self, now: Duration) {
        self.groups.retain(|_, nodes| {
            let before = nodes.len();
            nodes.retain(|_, held| now < held.end);
            self.expired += (before - nodes.len()) as u64;
            !nodes.is_empty()
        });
    }

    fn check_cluster(&self, theirs: &str) -> Result<(), NotClaimed> {
        let ours = match &self.fixed {
            Some(fixed) => fixed,
            None if self.groups.is_empty() => return Ok(()),
            None => &self.adopted,
        };
        if ours == theirs {
            return Ok(());
        }
        Err(NotClaimed::OtherCluster { ours: ours.clone(), theirs: theirs.to_owned() })
    }
}

fn best(nodes: &BTreeMap<u32, Held>, now: Duration) -> Option<&Claim> {
    let claims = nodes.values().filter(|held| now < held.end).map(|held| &*held.claim);
    claims.max_by_key(|claim| (claim.term, claim.leader, claim.topics_version, Reverse(claim.number)))
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
