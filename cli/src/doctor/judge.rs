//! What the facts mean for clients at this place, each finding with its remedy. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use quorate_client::{CallError, ClusterStatusResponse, NodeStatus};

use super::visit::{Facts, Node, Reached, Visit};
use crate::status::voters;

/// A clock this far off makes people misread times; further off, leaders refuse to follow it (LAW-CLOCK).
const CLOCK_WARN_MS: u64 = 1_000;
const CLOCK_WRONG_MS: u64 = 10_000;
/// A follower this many entries behind is far behind.
const LAG_WARN: u64 = 10_000;
/// Data there is gone with the container or the machine's next start.
const SHORT_LIVED: [&str; 4] = ["overlay", "fuse.fuse-overlayfs", "tmpfs", "ramfs"];

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and deserves a look.
    Warn,
    /// Clients cannot rely on the group from here.
    Wrong,
}

impl Level {
    /// As it is printed.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    pub about: String,
    pub what: String,
    /// What to do; empty if nothing is to be done.
    pub fix: String,
}

fn ok(about: impl Into<String>, what: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, about: about.into(), what: what.into(), fix: String::new() }
}

fn warn(about: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { level: Level::Warn, about: about.into(), what: what.into(), fix: fix.into() }
}

fn wrong(about: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { level: Level::Wrong, ..warn(about, what, fix) }
}

/// All findings: endpoints, then routes, then the group, then clocks.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let (endpoints, named) = facts.visits.split_at(facts.endpoints);
    let mut findings: Vec<Finding> = endpoints.iter().map(endpoint).collect();
    let nodes: Vec<(&str, &Node)> = facts.visits.iter().filter_map(node).collect();
    findings.extend(routes(facts, endpoints, named));
    findings.extend(same_node(&nodes));
    if let Some((_, best)) = nodes.iter().max_by_key(|(_, node)| known(&node.status)) {
        findings.extend(group(&best.status));
    }
    findings.extend(clocks(&nodes));
    findings
}

fn node(visit: &Visit) -> Option<(&str, &Node)> {
    match &visit.reached {
        Reached::Node(node) => Some((visit.address.as_str(), node)),
        Reached::NotResolved(_) | Reached::NotConnected(_) | Reached::NotAnswered(_) => None,
    }
}

/// How much of its group a node sees.
fn known(status: &ClusterStatusResponse) -> usize {
    status.nodes.iter().filter(|node| node.reachable).count()
}

fn endpoint(Visit { address, reached }: &Visit) -> Finding {
    match reached {
        Reached::Node(node) => {
            let ClusterStatusResponse { cluster, group, answered_by, .. } = &node.status;
            ok(address, format!("node {answered_by} of group {group}, cluster {cluster}"))
        }
        Reached::NotResolved(why) => wrong(
            address,
            format!("the name does not resolve here: {why}"),
            "use a name or address that is known at this place",
        ),
        Reached::NotConnected(why) => wrong(
            address,
            format!("cannot be connected to from here: {why}"),
            "start the node, or correct the address; look at the firewall or at the published port. A node that reaches none of its \
             peers closes its client listeners: ask another node with quorate cluster status",
        ),
        Reached::NotAnswered(CallError::Refused { code: 50100, .. }) => wrong(
            address,
            "is a name server, which knows routes and no nodes",
            "give the doctor addresses of broker nodes",
        ),
        Reached::NotAnswered(error) => wrong(
            address,
            format!("takes connections and does not answer: {error}"),
            "see that it is the client port of a broker (8081 by default), and that its process is alive: a published port may \
             take connections for a container that is gone or paused",
        ),
    }
}

/// Each address that clients are given, and which endpoints give it away.
fn routes(facts: &Facts, endpoints: &[Visit], named: &[Visit]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut sayers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (address, node) in facts.visits.iter().filter_map(node) {
        for given in &node.route {
            sayers.entry(given).or_default().push(address);
        }
        if !endpoints.iter().any(|endpoint| endpoint.address == address) {
            continue;
        }
        let asked = node.asked.as_ref().map_or_else(|| "no topic yet".to_owned(), |topic| format!("topic {topic}"));
        let about = format!("route at {address}");
        let live = known(&node.status);
        if node.route.is_empty() {
            findings.push(wrong(about, "is empty", "look at the node's log; this is a bug if it has a leader"));
        } else if node.route.len() < live {
            findings.push(warn(
                about,
                format!("{} of {live} live nodes: {} ({asked})", node.route.len(), node.route.join(", ")),
                "give every node the listener that clients here come in by (network.listeners); a node that has just come \
                 back is listed after route.return_after, 10s by default",
            ));
        } else {
            findings.push(ok(about, format!("{} ({asked})", node.route.join(", "))));
        }
    }
    for Visit { address, reached } in named {
        let by = sayers.get(address.as_str()).map_or_else(String::new, |sayers| sayers.join(", "));
        let about = format!("{address}, given to clients of {by}");
        findings.push(match reached {
            Reached::Node(node) => ok(about, format!("node {}, reached from here", node.status.answered_by)),
            Reached::NotResolved(why) => wrong(
                about,
                format!("the name does not resolve here: {why}"),
                "advertise an IP address that clients here can reach (network.client_advertise, network.listeners)",
            ),
            Reached::NotConnected(why) => {
                wrong(about, format!("cannot be reached from here: {why}"), advice(address, &by))
            }
            Reached::NotAnswered(error) => {
                wrong(about, format!("takes connections and does not answer: {error}"), advice(address, &by))
            }
        });
    }
    findings.extend(strangers(facts));
    findings
}

/// What to change when clients are given an address that they cannot reach.
fn advice(address: &str, by: &str) -> String {
    let is_loopback = |address: &str| {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    if is_loopback(address) && !by.split(", ").all(is_loopback) {
        return format!(
            "{address} is every machine's own: set network.client_advertise of that node to the address that clients use for it"
        );
    }
    "if the node is up, clients here need addresses of their own: add to every node a listener for this network, \
     network.listeners = [\"NAME@LISTEN=ADVERTISE\"], and come in by it (docs/OPERATIONS.md, addresses and listeners)"
        .to_owned()
}

/// Addresses that lead to some other group.
fn strangers(facts: &Facts) -> Vec<Finding> {
    let name = |node: &Node| (node.status.cluster.clone(), node.status.group.clone());
    let mut nodes = facts.visits.iter().filter_map(node);
    let Some((first, ours)) = nodes.next().map(|(address, node)| (address, name(node))) else { return Vec::new() };
    let others = nodes.filter(|(_, node)| name(node) != ours);
    let finding = |(address, node): (&str, &Node)| {
        wrong(
            address,
            format!("is of group {} in cluster {}, {first} is not", node.status.group, node.status.cluster),
            "name nodes of one group only; if a route led there, correct what that node advertises",
        )
    };
    others.map(finding).collect()
}

/// Addresses of one route that lead to the same node: a port that is published twice.
fn same_node(nodes: &[(&str, &Node)]) -> Vec<Finding> {
    let number_of: BTreeMap<&str, u32> =
        nodes.iter().map(|(address, node)| (*address, node.status.answered_by)).collect();
    let mut findings = BTreeSet::new();
    for (_, node) in nodes {
        let mut seen: BTreeMap<u32, &str> = BTreeMap::new();
        for address in &node.route {
            let Some(number) = number_of.get(address.as_str()) else { continue };
            if let Some(before) = seen.insert(*number, address) {
                findings.insert((before.to_owned(), address.clone(), *number));
            }
        }
    }
    let finding = |(one, other, number): (String, String, u32)| {
        wrong(
            format!("{one} and {other}"),
            format!("both lead to node {number}, so another node cannot be reached"),
            "correct the published port, or what one of the nodes advertises",
        )
    };
    findings.into_iter().map(finding).collect()
}

/// The group itself, as the node that sees most of it tells.
fn group(status: &ClusterStatusResponse) -> Vec<Finding> {
    let mut findings = Vec::new();
    let about = format!("group {}", status.group);
    let live: Vec<&NodeStatus> = status.nodes.iter().filter(|node| node.reachable).collect();
    let (have, all) = (live.len(), status.nodes.len());
    let end = live.iter().map(|node| node.last_index).max().unwrap_or(0);
    match live.iter().find(|node| node.role == "leader") {
        Some(leader) => findings.push(ok(
            &about,
            format!("node {} leads in term {}; {have} of {all} nodes are there", leader.number, leader.term),
        )),
        None => findings.push(wrong(
            &about,
            format!("nobody leads; {have} of {all} nodes are there, {} voters are needed", voters(status) / 2 + 1),
            "start the nodes that are away; if they are up, see that the nodes reach each other's peer ports (9870 by default)",
        )),
    }
    for node in &status.nodes {
        let about = format!("node {}", node.number);
        if !node.reachable {
            findings.push(wrong(
                &about,
                format!("is away: {}", node.error),
                "start it, or see that its peers reach its peer port; the group goes on without it, and stops if one more is lost",
            ));
            continue;
        }
        if node.role == "learner" {
            findings.push(warn(
                &about,
                "is a learner: it receives and has no vote yet",
                "wait until it has caught up; do not stop another node before",
            ));
        }
        if end.saturating_sub(node.last_index) > LAG_WARN {
            findings.push(warn(
                &about,
                format!("is {} entries behind", end - node.last_index),
                "see that its disk and network keep up; do not stop another node before it has caught up",
            ));
        }
        if SHORT_LIVED.contains(&node.file_system.as_str()) {
            findings.push(warn(
                &about,
                format!("keeps its data on {}", node.file_system),
                "put storage.data_dir on a volume or a disk: what is there is gone with the container or the next start",
            ));
        }
    }
    findings.extend(unequal(&about, &live));
    findings
}

/// What should be the same on all nodes.
fn unequal(about: &str, live: &[&NodeStatus]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let kinds = |of: fn(&NodeStatus) -> &String| live.iter().map(|node| of(node).as_str()).collect::<BTreeSet<_>>();
    let versions = kinds(|node| &node.version);
    if versions.len() > 1 {
        let list = versions.into_iter().collect::<Vec<_>>().join(", ");
        findings.push(warn(about, format!("runs versions {list}"), "finish the upgrade, one node at a time"));
    }
    let flushes = kinds(|node| &node.flush);
    if flushes.len() > 1 {
        let fix = "set storage.flush to the same on all nodes: what a power loss may cost is decided by the weakest";
        findings.push(wrong(about, "some nodes sync before they answer and some do not", fix));
    }
    findings
}

/// Every node's clock against this machine's, by the most exact of the answers.
fn clocks(nodes: &[(&str, &Node)]) -> Vec<Finding> {
    let exact = nodes.iter().min_by_key(|(_, node)| node.uncertain_ms);
    let Some((_, Node { status, here_ms, uncertain_ms, .. })) = exact else { return Vec::new() };
    let told = status.nodes.iter().filter(|node| node.reachable && node.wall_ms > 0);
    let mut findings: Vec<Finding> = told
        .filter_map(|node| {
            let off = node.wall_ms.abs_diff(*here_ms).saturating_sub(*uncertain_ms);
            let way = if node.wall_ms > *here_ms { "ahead of" } else { "behind" };
            let (about, what) =
                (format!("node {}", node.number), format!("its clock is {off} ms {way} this machine's"));
            let fix = "let NTP or chrony set the clocks of all machines; see which of the two is wrong";
            match off {
                0..CLOCK_WARN_MS => None,
                CLOCK_WARN_MS..CLOCK_WRONG_MS => Some(warn(about, what, fix)),
                CLOCK_WRONG_MS.. => Some(wrong(about, what, fix)),
            }
        })
        .collect();
    if findings.is_empty() {
        findings.push(ok("clocks", format!("agree with this machine's to within {CLOCK_WARN_MS} ms")));
    }
    findings
}

#[cfg(test)]
#[path = "judge_test.rs"]
mod tests;
