//! `quorate cluster status`: every node on one screen, and their health as an exit code.
//!
//! The nodes are asked at their client listeners. A node that reaches no other of its group closes those, so that clients move on; when none
//! answers there, the HTTP listeners are asked instead, which stay open. What several of them tell is put together, each node's own
//! word first, so that a group without a quorum shows who is there and who is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use prost::Message as _;
use quorate_client::{Admin, CallError, ClusterStatusResponse, NodeStatus};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    broker,
    failure::{self, Exit, Failure},
    members::bytes,
    output::{Answer, Format, is_screen, note},
    page,
};

/// What failed if nothing can be shown.
pub const PURPOSE: &str = "the cluster's state is not known";
/// Where a node's HTTP listener is if nobody said anything else.
const HTTP_PORT: u16 = 9872;

/// How to look.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show it again every so many seconds, 0.1 to 86400, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = rest)]
    pub watch: Option<Duration>,
    /// HTTP listeners of nodes, host:port, several separated by ; they are asked when no node takes clients [default: port 9872 of the
    /// endpoints' hosts, and network.http_listen as a node here would read it]
    #[arg(long, env = "QUORATE_HTTP", value_name = "LIST", value_parser = addresses)]
    http: Option<String>,
    /// TOML file with the settings of a node here
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

fn rest(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    // NaN is in no range.
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err("must be 0.1 to 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

impl StatusArgs {
    /// Shows it, once or until Ctrl-C. Returns what the last state is worth.
    ///
    /// # Errors
    /// No node answers (exit code 4), or the call was refused.
    pub async fn run(&self, admin: &Admin, endpoints: &str, format: Format) -> Result<Result<(), Exit>, Failure> {
        let Some(rest) = self.watch else {
            let status = self.look(admin, endpoints).await?;
            // A closed pipe on the other side changes nothing about the health.
            let _ = answer(&status).print(format);
            verdict(&status).into_iter().for_each(note);
            return Ok(health(&status));
        };
        loop {
            let text = match (self.look(admin, endpoints).await, format) {
                (Ok(status), Format::Json) => answer(&status).render(format),
                (Ok(status), Format::Table) => {
                    let table = answer(&status).render(format);
                    verdict(&status).map_or(table.clone(), |verdict| format!("{table}\n{verdict}"))
                }
                (Err(failure), Format::Json) => json!({ "error": failure.to_string() }).to_string(),
                (Err(failure), Format::Table) => failure.to_string(),
            };
            if is_screen() && format == Format::Table {
                print!("\x1b[H\x1b[2J");
            }
            if writeln!(io::stdout(), "{text}").is_err() {
                return Ok(Ok(()));
            }
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = tokio::signal::ctrl_c() => return Ok(Ok(())),
            }
        }
    }

    async fn look(&self, admin: &Admin, endpoints: &str) -> Result<ClusterStatusResponse, Failure> {
        let error = match admin.cluster_status().await {
            Ok(status) => return Ok(status),
            Err(error @ (CallError::Refused { .. } | CallError::Config { .. })) => {
                return Err(failure::call(PURPOSE, &error, endpoints));
            }
            Err(error) => error,
        };
        let (pages, is_told) = match &self.http {
            Some(list) => (split(list).map(str::to_owned).collect(), true),
            None => (self.guess(endpoints), false),
        };
        let mut asked = JoinSet::new();
        for page in pages {
            asked.spawn_blocking(move || {
                let answer = ask(&page);
                (page, answer)
            });
        }
        let (mut told, mut silent) = (Vec::new(), BTreeMap::new());
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((_, Ok(status))) if is_told || is_of(&status, endpoints) => told.push(status),
                Ok((page, Ok(status))) => {
                    drop(silent.insert(page, format!("a node of cluster {}, without these endpoints", status.cluster)));
                }
                Ok((page, Err(error))) => drop(silent.insert(page, error.to_string())),
                Err(panicked) => drop(silent.insert("?".to_owned(), panicked.to_string())),
            }
        }
        merge(told).ok_or_else(|| nobody(endpoints, &error, &silent))
    }

    /// Where the nodes behind `endpoints` may have their HTTP listeners. On this machine, where a node here would have it.
    fn guess(&self, endpoints: &str) -> BTreeSet<String> {
        let here = broker::http_listen(self.config.as_ref()).ok();
        let here = here.as_deref().and_then(port).unwrap_or(HTTP_PORT);
        let hosts = split(endpoints).filter_map(|endpoint| Some(endpoint.rsplit_once(':')?.0));
        hosts
            .map(|host| {
                let is_here = host == "localhost" || host.starts_with("127.") || host == "[::1]";
                format!("{host}:{}", if is_here { here } else { HTTP_PORT })
            })
            .collect()
    }
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split([';', ',']).map(str::trim).filter(|part| !part.is_empty())
}

/// A list of `host:port`, or none at all.
fn addresses(list: &str) -> Result<String, String> {
    split(list).try_for_each(page::check_address).map(|()| list.to_owned())
}

fn port(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

/// What the node with this HTTP listener knows of its group.
fn ask(address: &str) -> io::Result<ClusterStatusResponse> {
    let page = page::get(address, "/cluster")?;
    match page.status {
        200 => {
            ClusterStatusResponse::decode(page.body.as_slice()).map_err(|_| page::no_node("not the state of a group"))
        }
        503 => Err(io::Error::other(String::from_utf8_lossy(&page.body).trim().to_owned())),
        status => Err(page::no_node(&format!("status {status}"))),
    }
}

/// Whether a listener that was only guessed is one of the group that was asked for: another one may run on the same machine.
fn is_of(status: &ClusterStatusResponse, endpoints: &str) -> bool {
    let asked: BTreeSet<u16> = split(endpoints).filter_map(port).collect();
    status.nodes.iter().filter_map(|node| port(&node.client_address)).any(|port| asked.contains(&port))
}

/// One state of what several nodes tell: of each node its own word, else that of one that reached it, else that of one that did not.
fn merge(told: Vec<ClusterStatusResponse>) -> Option<ClusterStatusResponse> {
    let weight = |by: u32, node: &NodeStatus| (by == node.number, node.reachable);
    let mut best: BTreeMap<u32, (u32, NodeStatus)> = BTreeMap::new();
    for status in &told {
        for node in &status.nodes {
            let known = best.get(&node.number);
            if known.is_none_or(|(by, known)| weight(*by, known) < weight(status.answered_by, node)) {
                best.insert(node.number, (status.answered_by, node.clone()));
            }
        }
    }
    // Who votes, and who is a member at all, is told by the newest membership.
    let newest =
        told.iter().max_by_key(|status| (status.membership_index, std::cmp::Reverse(status.answered_by)))?.clone();
    let is_told = newest.voters > 0;
    let member = |number: u32| newest.nodes.iter().find(|node| node.number == number);
    let mut nodes: Vec<NodeStatus> = Vec::new();
    for (_, node) in best.into_values() {
        match member(node.number) {
            Some(known) => nodes.push(NodeStatus { voter: known.voter, ..node }),
            None if !is_told => nodes.push(node),
            // It has left, and whoever names it does not know yet.
            None => {}
        }
    }
    let answered_by = told.iter().map(|status| status.answered_by).min()?;
    Some(ClusterStatusResponse { nodes, answered_by, ..newest })
}

fn nobody(endpoints: &str, error: &CallError, silent: &BTreeMap<String, String>) -> Failure {
    let silent: Vec<String> = silent.iter().map(|(page, why)| format!("{page} ({why})")).collect();
    failure::no_quorum(
        format!("{PURPOSE}: no node answers, so no leader and no quorum can be seen from here"),
        format!(
            "none of the client listeners {} ({error}), none of the HTTP listeners {}",
            split(endpoints).collect::<Vec<_>>().join(", "),
            silent.join(", ")
        ),
        "start the nodes, or name their HTTP listeners with --http: a node that reaches no other takes no clients, and answers there",
    )
}

fn leads(node: &NodeStatus) -> bool {
    node.reachable && node.role == "leader"
}

/// How many vote. Before the group is born, and of a broker that does not tell, each number does once: a learner is to take the place of the node
/// that had its number before, which is named beside it.
pub fn voters(status: &ClusterStatusResponse) -> usize {
    match status.voters {
        0 => status.nodes.iter().map(|node| node.number).collect::<BTreeSet<_>>().len(),
        voters => voters as usize,
    }
}

/// Whether a node counts for the quorum.
pub fn votes(status: &ClusterStatusResponse, node: &NodeStatus) -> bool {
    node.voter || status.voters == 0
}

/// Nobody leads, a node is away or its vote is, one has damaged files, or all is well.
fn health(status: &ClusterStatusResponse) -> Result<(), Exit> {
    if !status.nodes.iter().any(leads) {
        return Err(Exit::NoQuorum);
    }
    let voting = status.nodes.iter().filter(|node| node.reachable && votes(status, node)).count();
    let all_there = status.nodes.iter().all(|node| node.reachable) && voting >= voters(status);
    let all_whole = status.nodes.iter().all(|node| node.damaged.is_empty());
    if all_there && all_whole { Ok(()) } else { Err(Exit::Unhealthy) }
}

/// What is wrong when nobody leads, in words.
fn verdict(status: &ClusterStatusResponse) -> Option<String> {
    if health(status) != Err(Exit::NoQuorum) {
        return None;
    }
    let named = |reachable: bool, one: &str, many: &str| {
        let nodes = status.nodes.iter().filter(|node| node.reachable == reachable && votes(status, node));
        let numbers: Vec<String> = nodes.map(|node| node.number.to_string()).collect();
        match numbers.as_slice() {
            [] => None,
            [number] => Some(format!("node {number} {one}")),
            several => Some(format!("nodes {} {many}", several.join(", "))),
        }
    };
    let parts: Vec<String> =
        [named(true, "answers", "answer"), named(false, "does not", "do not")].into_iter().flatten().collect();
    let voters = voters(status);
    Some(format!(
        "no leader / no quorum: {}; {} of {voters} must reach each other, so start those that are away",
        parts.join(", "),
        voters / 2 + 1
    ))
}

fn answer(status: &ClusterStatusResponse) -> Answer {
    let reachable = || status.nodes.iter().filter(|node| node.reachable);
    let end = reachable().map(|node| node.last_index).max().unwrap_or(0);
    let end_position = reachable().map(|node| node.end_position).max().unwrap_or(0);
    let row = |node: &NodeStatus| {
        if !node.reachable {
            let mut row = vec![node.number.to_string(), "away".to_owned()];
            row.extend(std::iter::repeat_n("-".to_owned(), 6));
            row.extend([node.client_address.clone(), node.error.clone()]);
            return row;
        }
        let unsynced = node.end_position.saturating_sub(node.synced_position);
        let synced = if unsynced == 0 { "all".to_owned() } else { format!("all but {unsynced} B") };
        vec![
            node.number.to_string(),
            node.role.clone(),
            node.term.to_string(),
            node.last_index.to_string(),
            node.committed_index.to_string(),
            node.applied_index.to_string(),
            synced,
            end.saturating_sub(node.last_index).to_string(),
            node.client_address.clone(),
            format!(
                "{} {} on {}{}{}{}",
                node.version,
                node.flush,
                node.file_system,
                disk(node),
                damage(node),
                learner(status, node, end_position)
            ),
        ]
    };
    Answer {
        header: vec!["NODE", "ROLE", "TERM", "LAST", "COMMITTED", "APPLIED", "SYNCED", "LAG", "ADDRESS", "NOTE"],
        rows: status.nodes.iter().map(row).collect(),
        json: json!({
            "cluster": status.cluster,
            "group": status.group,
            "leader": status.nodes.iter().find(|node| leads(node)).map(|node| node.number),
            "voters": voters(status),
            "nodes": status.nodes.iter().map(|node| object(node, votes(status, node), end)).collect::<Vec<_>>(),
        }),
    }
}

/// What is to be said of a node without a vote.
fn learner(status: &ClusterStatusResponse, node: &NodeStatus, end_position: u64) -> String {
    if votes(status, node) {
        return String::new();
    }
    match end_position.saturating_sub(node.end_position) {
        0 => ", no vote: has all of the log".to_owned(),
        left => format!(", no vote: {} of the log to come", bytes(left)),
    }
}

/// What is to be said of damaged files.
fn damage(node: &NodeStatus) -> String {
    match node.damaged.as_slice() {
        [] => String::new(),
        [one] => format!(", DAMAGED: {one}"),
        [one, more @ ..] => format!(", DAMAGED: {one}, and {} more", more.len()),
    }
}

/// What is to be said of a disk that fills up.
fn disk(node: &NodeStatus) -> String {
    let used = node.disk_used_percent;
    match node.disk_level.as_str() {
        "" | "roomy" => String::new(),
        "full" | "spent" => format!(", disk {used} % used: too full for sends"),
        _ => format!(", disk {used} % used"),
    }
}

fn object(node: &NodeStatus, votes: bool, end: u64) -> Value {
    json!({
        "number": node.number,
        "voter": votes,
        "reachable": node.reachable,
        "role": node.role,
        "term": node.term,
        "leader": node.leader,
        "last_index": node.last_index,
        "committed_index": node.committed_index,
        "applied_index": node.applied_index,
        "synced_position": node.synced_position,
        "end_position": node.end_position,
        "floor_position": node.floor_position,
        "lag": end.saturating_sub(node.last_index),
        "client_address": node.client_address,
        "peer_address": node.peer_address,
        "version": node.version,
        "syncs": node.syncs,
        "entries": node.entries,
        "cpu_us": node.cpu_us,
        "resident_bytes": node.resident_bytes,
        "flush": node.flush,
        "file_system": node.file_system,
        "disk_level": node.disk_level,
        "disk_used_percent": node.disk_used_percent,
        "damaged": node.damaged,
        "disk_free_bytes": node.disk_free_bytes,
        "pid": node.pid,
        "error": node.error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u32, role: &str, last_index: u64) -> NodeStatus {
        NodeStatus { number, reachable: !role.is_empty(), role: role.to_owned(), last_index, ..NodeStatus::default() }
    }

    fn status(nodes: Vec<NodeStatus>) -> ClusterStatusResponse {
        ClusterStatusResponse { nodes, ..ClusterStatusResponse::default() }
    }

    #[test]
    fn health_is_an_exit_code() {
        let all = status(vec![node(1, "leader", 9), node(2, "follower", 9), node(3, "follower", 7)]);
        assert_eq!(health(&all), Ok(()));
        assert_eq!(health(&status(vec![node(1, "leader", 9), node(2, "", 0)])), Err(Exit::Unhealthy));
        assert_eq!(health(&status(vec![node(1, "candidate", 9), node(2, "", 0)])), Err(Exit::NoQuorum));
    }

    #[test]
    fn a_node_with_damaged_files_is_not_healthy_and_says_which() {
        let damaged = vec!["log/0: byte 9: bad crc".to_owned(), "image/1.img: an image that cannot be read".to_owned()];
        let one = status(vec![node(1, "leader", 9), NodeStatus { damaged, ..node(2, "follower", 9) }]);
        assert_eq!(health(&one), Err(Exit::Unhealthy));
        assert!(
            answer(&one).rows[1][9].contains("DAMAGED: log/0: byte 9: bad crc, and 1 more"),
            "{:?}",
            answer(&one).rows
        );
    }

    fn told(voters: u32, membership_index: u64, nodes: Vec<(bool, NodeStatus)>) -> ClusterStatusResponse {
        let nodes = nodes.into_iter().map(|(voter, node)| NodeStatus { voter, ..node }).collect();
        ClusterStatusResponse { voters, membership_index, ..status(nodes) }
    }

    #[test]
    fn only_voters_count_for_the_quorum_and_a_learner_says_how_far_it_is() {
        let mut learner = node(4, "learner", 5);
        learner.end_position = 1 << 20;
        let mut leader = node(1, "leader", 9);
        leader.end_position = 3 << 20;
        let voters = vec![(true, leader), (true, node(2, "follower", 9)), (true, node(3, "follower", 9))];
        let grows = told(3, 7, [voters.clone(), vec![(false, learner)]].concat());
        assert_eq!(health(&grows), Ok(()));
        let answer = answer(&grows);
        assert!(answer.rows[3][9].contains("no vote: 2.0 MiB of the log to come"), "{:?}", answer.rows[3]);
        assert_eq!((&answer.json["voters"], &answer.json["nodes"][3]["voter"]), (&json!(3), &json!(false)));
        // The identity that votes under number 3 is gone; a new directory has its number and no vote yet.
        let mut wiped = voters;
        wiped[2].0 = false;
        assert_eq!(health(&told(3, 7, wiped)), Err(Exit::Unhealthy));
        let alone = told(
            3,
            7,
            vec![
                (true, node(1, "candidate", 9)),
                (true, node(2, "", 0)),
                (true, node(3, "", 0)),
                (false, node(4, "learner", 1)),
            ],
        );
        let said = verdict(&alone).expect("nobody leads");
        assert!(said.contains("node 1 answers, nodes 2, 3 do not; 2 of 3 must"), "{said}");
    }

    #[test]
    fn of_several_answers_the_newest_membership_says_who_is_in_the_group() {
        let mut old = told(3, 4, vec![(true, node(1, "", 0)), (true, node(2, "follower", 9)), (true, node(3, "", 0))]);
        old.answered_by = 2;
        let mut new =
            told(3, 30, vec![(true, node(2, "", 0)), (true, node(3, "leader", 9)), (true, node(4, "follower", 9))]);
        new.answered_by = 3;
        let merged = merge(vec![old, new]).expect("somebody told something");
        let roles: Vec<_> = merged.nodes.iter().map(|node| (node.number, node.role.as_str(), node.voter)).collect();
        assert_eq!(roles, [(2, "follower", true), (3, "leader", true), (4, "follower", true)]);
        assert_eq!((health(&merged), merged.answered_by), (Ok(()), 2));
    }

    #[test]
    fn the_lag_counts_entries_behind_the_longest_log() {
        let answer = answer(&status(vec![node(1, "leader", 9), node(2, "follower", 7), node(3, "", 0)]));
        let lags: Vec<&str> = answer.rows.iter().map(|row| row[7].as_str()).collect();
        assert_eq!(lags, ["0", "2", "-"]);
        assert!(answer.rows.iter().all(|row| row.len() == answer.header.len()));
        assert_eq!(answer.json["nodes"][1]["lag"], 2);
    }

    #[test]
    fn without_a_leader_it_says_who_answers_and_who_does_not() {
        let alone = status(vec![node(1, "candidate", 9), node(2, "", 0), node(3, "", 0)]);
        let said = verdict(&alone).expect("nobody leads");
        assert!(said.contains("node 1 answers, nodes 2, 3 do not; 2 of 3 must reach each other"), "{said}");
        assert_eq!(answer(&alone).json["leader"], Value::Null);
        let led = status(vec![node(1, "leader", 9), node(2, "", 0)]);
        assert_eq!((verdict(&led), answer(&led).json["leader"].as_u64()), (None, Some(1)));
    }

    #[test]
    fn a_learner_and_the_node_whose_place_it_takes_vote_once() {
        let alone = status(vec![node(1, "candidate", 9), node(2, "", 0), node(3, "learner", 4), node(3, "", 0)]);
        let said = verdict(&alone).expect("nobody leads");
        assert!(said.contains("2 of 3 must reach each other"), "{said}");
    }

    #[test]
    fn of_each_node_its_own_word_counts_first() {
        let told = |by, nodes| ClusterStatusResponse { answered_by: by, ..status(nodes) };
        let one = told(1, vec![node(1, "follower", 9), node(2, "", 0), node(3, "", 0)]);
        let two = told(2, vec![node(1, "", 0), node(2, "candidate", 8), node(3, "", 0)]);
        for order in [vec![one.clone(), two.clone()], vec![two, one]] {
            let merged = merge(order).expect("somebody told something");
            let roles: Vec<_> = merged.nodes.iter().map(|node| (node.number, node.role.as_str())).collect();
            assert_eq!((roles, merged.answered_by), (vec![(1, "follower"), (2, "candidate"), (3, "")], 1));
        }
        assert_eq!(merge(Vec::new()), None);
    }

    #[test]
    fn a_guessed_listener_counts_only_if_its_group_has_the_endpoints() {
        let mut own = node(1, "follower", 1);
        own.client_address = "172.28.81.11:8081".to_owned();
        assert!(is_of(&status(vec![own.clone()]), "127.0.0.1:8081;127.0.0.1:8082"));
        assert!(!is_of(&status(vec![own]), "127.0.0.1:18081"));
    }

    #[test]
    fn an_interval_is_a_sane_number_of_seconds() {
        assert_eq!(rest("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "nan", "inf", "1e9", "", "1s"] {
            assert!(rest(wrong).is_err(), "{wrong}");
        }
    }
}
