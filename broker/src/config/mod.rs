//! What a broker node is told at start: loaded once, checked by [`BrokerConfig::validate`], then never changed.
//!
//! One struct per component, one TOML table per struct; unknown keys are refused. Durations and sizes are texts with a unit
//! ([`units`]). Every default serves a three-node group on one machine; a real group sets `node`, `network` and `storage.data_dir`.
//! Read by the command line, by `lib.rs` and by the services; nothing here opens, resolves or listens.

mod election;
mod limits;
mod listener;
mod ranges;
mod transactions;
pub mod units;

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use quorate_raft::{FlushMode, GroupConfig, WriterMode};
use serde::{Deserialize, Serialize};

pub use self::{
    election::{ElectionConfig, Profile, Timers},
    limits::Limits,
    listener::{ListenerConfig, collide},
    transactions::TransactionsConfig,
};

/// Room of an entry's frame and of one command's fixed fields beside the message.
const ENTRY_OVERHEAD_BYTES: u64 = 256 << 10;

/// Queues of one topic; the machine refuses more, on every node alike.
const QUEUES_MAX: u16 = 1024;

/// A setting that cannot be used; the text names the key, the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// Path of the key, as in the TOML file.
    pub key: &'static str,
    /// What is wrong and what to write instead.
    pub problem: String,
}

/// Settings of one broker node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// Who this node is.
    pub node: NodeConfig,
    /// Where it listens and whom it talks to.
    pub network: NetworkConfig,
    /// Where and how it keeps the log.
    pub storage: StorageConfig,
    /// How much it keeps.
    pub retention: RetentionConfig,
    /// How fast a dead leader is noticed.
    pub election: ElectionConfig,
    /// Topics.
    pub topics: TopicsConfig,
    /// Consumer groups.
    pub groups: GroupsConfig,
    /// Transactional messages.
    pub transactions: TransactionsConfig,
    /// What clients are told about the group's nodes.
    pub route: RouteConfig,
    /// Bounds.
    pub limits: Limits,
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Cluster id, 1 to 64 of `[a-zA-Z0-9_-]`. Default `quorate`. Nodes, name servers and receipt handles of another cluster are refused,
    /// so two clusters with the same id can be mixed up by a wrong address.
    pub cluster: String,
    /// Name of the broker group, which is the broker name in routes. Default `broker-a`. Equal on all its nodes.
    pub group: String,
    /// Number of this node in the group, 1 to 65535. Default 1. Must be among `peers`; the data directory keeps it for life.
    pub number: u16,
    /// All nodes of the group with their peer addresses, this one included: `["1@10.0.0.1:9870", …]`. Empty (default) means a
    /// group of one. Must name the same nodes on every node when the group is formed; nodes that are added later are found by the group's
    /// own membership, and a new node needs itself and some of the others here. Addresses written here lead.
    pub peers: Vec<Peer>,
    /// Form the group although a peer is unreachable or not empty. Default false. Set by hand on one node once, never in a file:
    /// two groups formed this way lose what one of them stored.
    pub bootstrap: bool,
    /// Never form a group, only join the one that `peers` belong to. Default false. Set it on a node that `quorate cluster add` takes in: with
    /// wrong peers it waits then, and starts no group beside the one that was meant.
    pub join: bool,
    /// How long a node that is told to stop waits while the group would have no majority without it. Default `30s`. A second signal
    /// ends the wait and the process at once.
    #[serde(with = "units::duration")]
    pub stop_wait_max: Duration,
}

/// One node of the group: its number and where its peer listener is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Peer {
    /// Configured number, 1 to 65535.
    pub number: u16,
    /// `host:port`.
    pub address: String,
}

/// Where this node listens and whom it talks to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Listener of clients and operators (gRPC). Default `127.0.0.1:8081`; port 0 takes a free one.
    pub client_listen: String,
    /// Address that clients are given for this node. Default: what `client_listen` is bound to. Must be set when that is a
    /// wildcard such as `0.0.0.0`; a wrong one leaves clients with addresses they cannot reach.
    pub client_advertise: Option<String>,
    /// More listeners of clients, for those who reach this node by another address: `["host@0.0.0.0:8181=127.0.0.1:8081", …]`. Default
    /// none. A client is given the addresses that the nodes have for the listener it came in by; a node without that listener is left out.
    pub listeners: Vec<ListenerConfig>,
    /// Listener of the other nodes. Default `127.0.0.1:9870`. Never expose it to clients.
    pub peer_listen: String,
    /// Listener of health checks and metrics (HTTP). Default `127.0.0.1:9872`; port 0 takes a free one, an empty text switches it off. It
    /// answers everyone who reaches it and changes nothing; topic and group names are to be seen.
    pub http_listen: String,
    /// Name servers that this node registers with, each of them. Default none.
    pub name_servers: Vec<String>,
    /// Allow listeners beyond loopback although nothing is encrypted or authenticated. Default false. True lets everyone who
    /// reaches the ports read, write and delete.
    pub insecure: bool,
}

/// Where and how the log is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Directory of this node alone. Default `data`. Locked while the node runs.
    pub data_dir: PathBuf,
    /// Size of a log segment. Default `1GiB`. Fixed for the life of the group; small ones mean many files and images, and bound
    /// how finely old messages can be dropped.
    #[serde(with = "units::bytes")]
    pub segment_bytes: u64,
    /// When a node acks an entry. Default `sync`.
    pub flush: Flush,
    /// Time between background syncs with `flush = "async"`. Default `100ms`: what a power loss of a majority may cost.
    #[serde(with = "units::duration")]
    pub flush_interval: Duration,
    /// Newest part of the log kept in memory for followers. Default `16MiB`; followers further behind read the files.
    #[serde(with = "units::bytes")]
    pub tail_cache_bytes: u64,
    /// Bytes sent to a follower and not yet acked. Default `8MiB`. Too little caps throughput on slow links.
    #[serde(with = "units::bytes")]
    pub follower_window_bytes: u64,
}

/// When a node acks an entry. One setting for the whole group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// After `fdatasync`: survives power loss of all nodes.
    Sync,
    /// Once in the page cache: survives `kill -9` of all nodes, not power loss of a majority within `flush_interval`.
    Async,
}

/// How much of the log is kept. The oldest segments go first; those too old or too much go consumed or not, as in RocketMQ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Size of the log per node. Default `0`: no limit. Reached, the oldest whole segments are dropped; needs two segments at least.
    #[serde(with = "units::bytes")]
    pub log_bytes_max: u64,
    /// Age of a segment's newest message. Default `7d` (RocketMQ's own is 72 h); `0` keeps messages for ever.
    #[serde(with = "units::duration")]
    pub age_max: Duration,
    /// From so many percent of the disk on, of any node, segments go early of which every message was consumed by all groups of its topic.
    /// Default 75. Used is counted as `df` does, whoever uses it.
    pub disk_warn_percent: u8,
    /// From so many percent of the disk on sends are refused with 50001, until two percent more are free. Default 90. Higher, and a full
    /// disk may come before the refusal.
    pub disk_full_percent: u8,
    /// Sends are refused, too, when less than this is free. Default `64MiB`: room for what was under way, receives, acks, votes, images.
    #[serde(with = "units::bytes")]
    pub disk_reserve_bytes: u64,
    /// What gives way when the disk fills up and nothing can go early. Default `refuse`.
    pub on_full: OnFull,
}

/// What gives way when the disk fills up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// What is sent: it is refused, and nothing that was not consumed is lost.
    Refuse,
    /// The oldest messages, consumed or not, from halfway between `disk_warn_percent` and `disk_full_percent` on.
    DeleteOldest,
}

/// Topics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicsConfig {
    /// Make an unknown topic at the first question for its route or the first send, at most 1,000 of them. Default true. Off, a
    /// misspelt name is answered 40402.
    pub auto_create: bool,
    /// Queues of a topic made that way. Default 8.
    pub auto_create_queues: u16,
}

/// Consumer groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupsConfig {
    /// Make an unknown consumer group at its first use. Default true. Off, it is answered 40403.
    pub auto_create: bool,
    /// Where a new group starts to read. Default `first` (RocketMQ's proxy: `last`).
    pub start: Start,
    /// What becomes of a consumer that filters a topic otherwise than another one of its group: what one does not want, none of them gets.
    /// Default `warn`.
    pub filters: Filters,
}

/// What becomes of consumers of one group that filter differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filters {
    /// They are served, and the log and `quorate group describe` tell of it.
    Warn,
    /// The later one is refused (42800) for as long as the other is there.
    Reject,
}

/// Where a new consumer group starts to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// At the oldest message kept.
    First,
    /// At the end: only what is sent from now on.
    Last,
}

/// What clients are told about the group's nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteConfig {
    /// Default `live`.
    pub mode: RouteMode,
    /// Give Node clients, which take one address only, all nodes in one text of the form `ipv4:a:1,b:2`. Default true. Off, they
    /// get the leader alone and lose it until their next route refresh when it dies.
    pub node_all_addresses: bool,
    /// A node not heard of for this long leaves the route. Default `5s`. A changed list costs clients new connections.
    #[serde(with = "units::duration")]
    pub drop_after: Duration,
    /// A node that came back must stay this long before it returns to the route. Default `10s`.
    #[serde(with = "units::duration")]
    pub return_after: Duration,
}

/// Which addresses a route holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteMode {
    /// The live nodes, leader first.
    Live,
    /// What the client itself asked (behind a virtual IP, a load balancer or a Kubernetes service).
    Echo,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            cluster: "quorate".into(),
            group: "broker-a".into(),
            number: 1,
            peers: Vec::new(),
            bootstrap: false,
            join: false,
            stop_wait_max: Duration::from_secs(30),
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            client_listen: "127.0.0.1:8081".into(),
            client_advertise: None,
            listeners: Vec::new(),
            peer_listen: "127.0.0.1:9870".into(),
            http_listen: "127.0.0.1:9872".into(),
            name_servers: Vec::new(),
            insecure: false,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            data_dir: "data".into(),
            segment_bytes: 1 << 30,
            flush: Flush::Sync,
            flush_interval: Duration::from_millis(100),
            tail_cache_bytes: 16 << 20,
            follower_window_bytes: 8 << 20,
        }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            log_bytes_max: 0,
            age_max: Duration::from_secs(7 * 24 * 60 * 60),
            disk_warn_percent: 75,
            disk_full_percent: 90,
            disk_reserve_bytes: 64 << 20,
            on_full: OnFull::Refuse,
        }
    }
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self { auto_create: true, auto_create_queues: 8 }
    }
}

impl Default for GroupsConfig {
    fn default() -> Self {
        Self { auto_create: true, start: Start::First, filters: Filters::Warn }
    }
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self {
            mode: RouteMode::Live,
            node_all_addresses: true,
            drop_after: Duration::from_secs(5),
            return_after: Duration::from_secs(10),
        }
    }
}

impl FromStr for Peer {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let error = || ConfigError {
            key: "node.peers",
            problem: format!("{text:?} is not a peer; write number@host:port, for example \"1@10.0.0.1:9870\""),
        };
        let (number, address) = text.split_once('@').ok_or_else(error)?;
        let number = number.trim().parse().ok().filter(|number| *number != 0).ok_or_else(error)?;
        let address = address.trim();
        split_address(address).ok_or_else(error)?;
        Ok(Self { number, address: address.to_owned() })
    }
}

impl TryFrom<String> for Peer {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> Self {
        format!("{}@{}", peer.number, peer.address)
    }
}

impl BrokerConfig {
    /// Checks every value against its range, and every relation between values.
    ///
    /// # Errors
    /// The first setting that cannot work, with the remedy.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ranges::check_all(self)?;
        self.check_node()?;
        self.check_network()?;
        self.check_storage()?;
        self.election.check()?;
        self.transactions.check()?;
        self.check_limits()?;
        self.check_apart(&[])
    }

    /// What a value of `key` may be, as it is written: `1 to 1000`. `None` for what is no number, size or duration. Where it depends on
    /// other settings, they are at their defaults.
    pub fn range(key: &str) -> Option<String> {
        ranges::of(&Self::default(), key)
    }

    /// Checks that no two listeners of the process take the same port of the same host: this node's, and those `beside` it, each with its
    /// key.
    ///
    /// # Errors
    /// The second of the two.
    pub fn check_apart(&self, beside: &[(&'static str, &str)]) -> Result<(), ConfigError> {
        let network = &self.network;
        let own = [
            ("network.client_listen", network.client_listen.as_str()),
            ("network.peer_listen", &network.peer_listen),
            ("network.http_listen", &network.http_listen),
        ];
        let named = network.listeners.iter().map(|listener| ("network.listeners", listener.listen.as_str()));
        let all: Vec<_> = own.into_iter().chain(named).chain(beside.iter().copied()).collect();
        for (at, (key, address)) in all.iter().enumerate() {
            let other = all[..at].iter().find(|(_, other)| listener::collide(address, other));
            check(other.is_none(), key, || {
                let (other_key, other) = other.copied().unwrap_or_default();
                format!("{address} is taken by {other_key} ({other}); give each listener a port of its own")
            })?;
        }
        Ok(())
    }

    /// The nodes of the group; a group of one if none is configured.
    pub fn peers(&self) -> Vec<Peer> {
        if self.node.peers.is_empty() {
            return vec![Peer { number: self.node.number, address: self.network.peer_listen.clone() }];
        }
        self.node.peers.clone()
    }

    /// Largest payload of one log entry: one message of the largest size with its properties, or one full batch.
    pub fn entry_bytes_max(&self) -> u64 {
        self.limits.message_bytes_max.max(self.limits.batch_bytes_max) + ENTRY_OVERHEAD_BYTES
    }

    /// What the log is told. `info` is where clients find this node.
    pub(crate) fn to_group(&self, info: String, seed: u64, writer: WriterMode) -> GroupConfig {
        let flush = match self.storage.flush {
            Flush::Sync => FlushMode::Sync,
            Flush::Async => FlushMode::Async(self.storage.flush_interval),
        };
        let peers = self.peers().into_iter();
        let timers = self.election.timers();
        GroupConfig {
            cluster: self.node.cluster.clone(),
            number: self.node.number,
            members: peers
                .map(|peer| quorate_raft::Member { number: peer.number, peer_address: peer.address })
                .collect(),
            peer_listen: self.network.peer_listen.clone(),
            info,
            data_dir: self.storage.data_dir.clone(),
            segment_bytes: self.storage.segment_bytes,
            entry_bytes_max: as_usize(self.entry_bytes_max()),
            inflight_bytes_max: as_usize(self.limits.propose_bytes_max + self.entry_bytes_max()),
            tail_cache_bytes: as_usize(self.storage.tail_cache_bytes),
            follower_window_bytes: as_usize(self.storage.follower_window_bytes),
            flush,
            writer,
            heartbeat: timers.heartbeat,
            election_timeout: (timers.timeout_min, timers.timeout_max),
            fast_path: self.election.fast_path(),
            bootstrap: self.node.bootstrap,
            join: self.node.join,
            seed,
            leader_restore: false,
        }
    }

    fn check_node(&self) -> Result<(), ConfigError> {
        let node = &self.node;
        for (key, name) in [("node.cluster", &node.cluster), ("node.group", &node.group)] {
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            let ok = !name.is_empty() && name.len() <= 64 && name.chars().all(legal);
            check(ok, key, || format!("{name:?} is not a name; write 1 to 64 of a-z A-Z 0-9 _ -"))?;
        }
        check(node.number != 0, "node.number", || "0 is not a node number; write 1 to 65535".into())?;
        let peers = self.peers();
        for (at, peer) in peers.iter().enumerate() {
            let twice = peers[..at].iter().any(|other| other.number == peer.number || other.address == peer.address);
            check(!twice, "node.peers", || {
                format!("node {} or address {} is listed twice; list every node once", peer.number, peer.address)
            })?;
        }
        check(!(node.join && node.bootstrap), "node.join", || {
            "a node either joins a group or forms one; drop node.join or node.bootstrap".into()
        })?;
        check(!node.join || peers.len() > 1, "node.peers", || {
            "name no other node, so there is no group to join; add some nodes of that group".into()
        })?;
        check(peers.iter().any(|peer| peer.number == node.number), "node.peers", || {
            format!(
                "node {0} itself is missing; add \"{0}@{1}\" with the address its peers reach",
                node.number, self.network.peer_listen
            )
        })
    }

    fn check_network(&self) -> Result<(), ConfigError> {
        let network = &self.network;
        let named = network.listeners.iter().map(|listener| ("network.listeners", &listener.listen));
        let all = [
            ("network.client_listen", &network.client_listen),
            ("network.peer_listen", &network.peer_listen),
            ("network.http_listen", &network.http_listen),
        ];
        for (key, address) in all.into_iter().chain(named) {
            if key == "network.http_listen" && address.is_empty() {
                continue;
            }
            let (host, _) = split_address(address).ok_or_else(|| not_an_address(key, address))?;
            check(network.insecure || is_loopback(host), key, || {
                format!(
                    "{address} is reachable from other machines, and nothing is encrypted or authenticated; \
                     use 127.0.0.1, or set network.insecure = true (--insecure) inside a trusted network"
                )
            })?;
        }
        let advertise = network.client_advertise.as_deref();
        listener::check_advertised("network.client_advertise", &network.client_listen, advertise)?;
        listener::check_all(&network.listeners)?;
        for address in &network.name_servers {
            split_address(address).ok_or_else(|| not_an_address("network.name_servers", address))?;
        }
        Ok(())
    }

    fn check_storage(&self) -> Result<(), ConfigError> {
        let (storage, retention) = (&self.storage, &self.retention);
        check(!storage.data_dir.as_os_str().is_empty(), "storage.data_dir", || {
            "is empty; write a directory of this node alone".into()
        })?;
        check(retention.disk_warn_percent < retention.disk_full_percent, "retention.disk_warn_percent", || {
            format!(
                "{} is not below retention.disk_full_percent = {}; the warning must come first",
                retention.disk_warn_percent, retention.disk_full_percent
            )
        })?;
        let keeps_two = retention.log_bytes_max == 0 || retention.log_bytes_max >= 2 * storage.segment_bytes;
        check(keeps_two, "retention.log_bytes_max", || {
            format!(
                "{} is less than two segments; write {} or more, or make storage.segment_bytes smaller",
                units::format_bytes(retention.log_bytes_max),
                units::format_bytes(2 * storage.segment_bytes),
            )
        })
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        check(limits.request_bytes_max >= limits.message_bytes_max + (64 << 10), "limits.request_bytes_max", || {
            format!(
                "must be at least limits.message_bytes_max + 64KiB; write {} or more",
                units::format_bytes(limits.message_bytes_max * 2)
            )
        })?;
        check(limits.invisible_min < limits.invisible_max, "limits.invisible_max", || {
            format!("must be longer than limits.invisible_min ({})", units::format_duration(limits.invisible_min))
        })?;
        check(limits.propose_bytes_max >= self.entry_bytes_max(), "limits.propose_bytes_max", || {
            format!("must hold at least one entry; write {} or more", units::format_bytes(self.entry_bytes_max()))
        })?;
        check(limits.inbound_bytes_max >= limits.request_bytes_max, "limits.inbound_bytes_max", || {
            format!(
                "{} does not let in one request of limits.request_bytes_max ({}); write that or more",
                units::format_bytes(limits.inbound_bytes_max),
                units::format_bytes(limits.request_bytes_max),
            )
        })
    }
}

fn check(ok: bool, key: &'static str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError { key, problem: problem() }) }
}

fn not_an_address(key: &'static str, address: &str) -> ConfigError {
    ConfigError { key, problem: format!("{address:?} is not an address; write host:port") }
}

/// `host:port` as its two parts; an IPv6 host stands in brackets, which are dropped.
pub(crate) fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(())?;
    Some((host, port.parse().ok()?))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_wildcard(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

fn as_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut BrokerConfig)) -> String {
        let mut config = BrokerConfig::default();
        change(&mut config);
        config.validate().expect_err("must be refused").to_string()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(BrokerConfig::default().validate(), Ok(()));
    }

    #[test]
    fn settings_survive_a_file_and_unknown_keys_do_not() {
        let text = toml::to_string(&BrokerConfig::default()).expect("every field has a text");
        assert_eq!(toml::from_str(&text), Ok(BrokerConfig::default()));
        let few: BrokerConfig =
            toml::from_str("[node]\npeers = [\"1@a:1\"]\n[storage]\nsegment_bytes = \"64MiB\"").expect("legal");
        assert_eq!((few.node.peers.len(), few.storage.segment_bytes), (1, 64 << 20));
        for wrong in ["[node]\nnumer = 1", "[storage]\nsegment_bytes = 5", "[election]\nheartbeat = \"5\"", "x = 1"] {
            assert!(toml::from_str::<BrokerConfig>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_peer_is_a_number_and_an_address() {
        let peer: Peer = "2@10.0.0.2:9870".parse().expect("legal");
        assert_eq!(peer, Peer { number: 2, address: "10.0.0.2:9870".into() });
        assert_eq!(String::from(peer), "2@10.0.0.2:9870");
        for text in ["10.0.0.2:9870", "0@a:1", "70000@a:1", "1@a", "1@:1", "x@a:1"] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn listeners_leave_loopback_only_when_insecure_is_set() {
        let open = |config: &mut BrokerConfig| config.network.client_listen = "10.1.1.1:8081".into();
        assert!(problem(open).contains("--insecure"));
        let mut config = BrokerConfig::default();
        open(&mut config);
        config.network.insecure = true;
        assert_eq!(config.validate(), Ok(()));
        assert!(problem(|c| c.network.peer_listen = "0.0.0.0:9870".into()).contains("peer_listen"));
        assert!(problem(|c| c.network.http_listen = "0.0.0.0:9872".into()).contains("http_listen"));
        assert!(problem(|c| c.network.http_listen = "9872".into()).contains("not an address"));
        let mut silent = BrokerConfig::default();
        silent.network.http_listen = String::new();
        assert_eq!(silent.validate(), Ok(()));
        let named = "host@0.0.0.0:8181=127.0.0.1:8081";
        assert!(problem(|c| c.network.listeners = vec![named.parse().expect("legal")]).contains("network.listeners"));
    }

    #[test]
    fn a_wildcard_listener_needs_an_advertised_address() {
        let wildcard = |config: &mut BrokerConfig| {
            config.network.insecure = true;
            config.network.client_listen = "0.0.0.0:8081".into();
        };
        assert!(problem(wildcard).contains("client_advertise"));
        assert!(
            problem(|config| {
                wildcard(config);
                config.network.client_advertise = Some("0.0.0.0:8081".into());
            })
            .contains("cannot be reached")
        );
    }

    #[test]
    fn relations_between_values_are_checked_with_a_remedy() {
        assert!(problem(|c| c.election.heartbeat = Duration::from_millis(200)).contains("third"));
        assert!(problem(|c| c.election.timeout_max = Duration::from_millis(150)).contains("longer"));
        assert!(problem(|c| c.storage.segment_bytes = 8 << 20).contains("17MiB"));
        assert!(problem(|c| c.retention.log_bytes_max = 1 << 30).contains("2GiB"));
        assert!(problem(|c| c.retention.disk_full_percent = 75).contains("the warning must come first"));
        assert!(problem(|c| c.limits.request_bytes_max = 4 << 20).contains("request_bytes_max"));
        assert!(problem(|c| c.limits.batch_commands_max = 0).contains("batch_commands_max"));
        assert!(problem(|c| c.transactions.immunity = Duration::from_secs(3601)).contains("immunity_max"));
        assert!(problem(|c| c.transactions.check_interval = Duration::from_millis(1)).contains("check_interval"));
        assert!(problem(|c| c.transactions.checks_max = 0).contains("checks_max"));
        assert!(problem(|c| c.network.peer_listen = "127.0.0.1:8081".into()).contains("network.client_listen"));
        assert!(problem(|c| c.network.http_listen = "localhost:9870".into()).contains("network.peer_listen"));
        let named = |c: &mut BrokerConfig| c.network.listeners = vec!["vpn@127.0.0.1:9872".parse().expect("legal")];
        assert!(problem(named).contains("network.http_listen (127.0.0.1:9872)"));
        assert!(problem(|c| c.node.peers = vec!["2@a:1".parse().expect("legal")]).contains("node 1 itself"));
        assert!(
            problem(|c| c.node.peers = ["1@a:1", "2@a:1"].map(|p| p.parse().expect("legal")).to_vec())
                .contains("twice")
        );
    }
}
