//! `quorate cluster …`: the broker group on one screen with its health as an exit code, and who leads it, now and before.

use std::{io::Write as _, time::Duration};

use clap::Subcommand;
use quorate_client::{Admin, AdminError, ClusterStatusResponse, NodeStatus};
use serde_json::{Value, json};

use crate::{
    failure::Exit,
    leadership::{self, TransferArgs},
    output::{Answer, Format, is_screen},
};

/// What to ask of the broker group.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show role, term and log of every node; exit code 3 if a node is away, 4 if nobody leads
    Status {
        /// Show it again every so many seconds, until Ctrl-C
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", require_equals = true)]
        watch: Option<f64>,
    },
    /// Hand leadership to another node, without an election timeout
    Transfer(TransferArgs),
    /// Show the last changes of leadership: why, how long the election took, how long nothing was acknowledged
    History,
}

impl ClusterCommand {
    /// What failed if the command does.
    pub fn purpose(&self) -> &'static str {
        match self {
            Self::Status { .. } => "the cluster's state is not known",
            Self::Transfer(_) => "leadership was not handed over",
            Self::History => "the past leaders are not known",
        }
    }

    /// Does it, once or until Ctrl-C. Returns what the last state is worth.
    pub async fn run(&self, admin: &Admin, format: Format) -> Result<Result<(), Exit>, AdminError> {
        let watch = match self {
            Self::Status { watch } => watch,
            Self::Transfer(transfer) => return printed(transfer.run(admin).await?, format),
            Self::History => return printed(leadership::history(admin).await?, format),
        };
        let Some(seconds) = watch else {
            let status = admin.cluster_status().await?;
            // A closed pipe on the other side changes nothing about the health.
            let _ = answer(&status).print(format);
            return Ok(health(&status));
        };
        let rest = Duration::try_from_secs_f64(seconds.max(0.1)).unwrap_or(Duration::from_secs(1));
        loop {
            let text = match admin.cluster_status().await {
                Ok(status) => answer(&status).render(format),
                Err(error) => error.to_string(),
            };
            if is_screen() && format == Format::Table {
                print!("\x1b[H\x1b[2J");
            }
            if writeln!(std::io::stdout(), "{text}").is_err() {
                return Ok(Ok(()));
            }
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = tokio::signal::ctrl_c() => return Ok(Ok(())),
            }
        }
    }
}

fn printed(answer: Answer, format: Format) -> Result<Result<(), Exit>, AdminError> {
    // A closed pipe on the other side changes nothing about what was done.
    let _ = answer.print(format);
    Ok(Ok(()))
}

/// Nobody leads, a node is away, or all is well.
fn health(status: &ClusterStatusResponse) -> Result<(), Exit> {
    let leads = |node: &NodeStatus| node.reachable && node.role == "leader";
    if !status.nodes.iter().any(leads) {
        return Err(Exit::NoQuorum);
    }
    if status.nodes.iter().all(|node| node.reachable) { Ok(()) } else { Err(Exit::Unhealthy) }
}

fn answer(status: &ClusterStatusResponse) -> Answer {
    let end = status.nodes.iter().filter(|node| node.reachable).map(|node| node.last_index).max().unwrap_or(0);
    let row = |node: &NodeStatus| {
        if !node.reachable {
            let mut row = vec![node.number.to_string(), "away".to_owned()];
            row.extend(std::iter::repeat_n("-".to_owned(), 6));
            row.extend([node.client_address.clone(), node.error.clone()]);
            return row;
        }
        let unsynced = node.end_position.saturating_sub(node.synced_position);
        let synced = if unsynced == 0 { "all".to_owned() } else { format!("-{unsynced} B") };
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
            format!("{} {} on {}", node.version, node.flush, node.file_system),
        ]
    };
    Answer {
        header: vec!["NODE", "ROLE", "TERM", "LAST", "COMMITTED", "APPLIED", "SYNCED", "LAG", "ADDRESS", "NOTE"],
        rows: status.nodes.iter().map(row).collect(),
        json: json!({
            "cluster": status.cluster,
            "group": status.group,
            "nodes": status.nodes.iter().map(|node| object(node, end)).collect::<Vec<_>>(),
        }),
    }
}

fn object(node: &NodeStatus, end: u64) -> Value {
    json!({
        "number": node.number,
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
    fn the_lag_counts_entries_behind_the_longest_log() {
        let answer = answer(&status(vec![node(1, "leader", 9), node(2, "follower", 7), node(3, "", 0)]));
        let lags: Vec<&str> = answer.rows.iter().map(|row| row[7].as_str()).collect();
        assert_eq!(lags, ["0", "2", "-"]);
        assert!(answer.rows.iter().all(|row| row.len() == answer.header.len()));
        assert_eq!(answer.json["nodes"][1]["lag"], 2);
    }
}
