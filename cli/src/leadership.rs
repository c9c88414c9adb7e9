//! `quorate cluster transfer` and `quorate cluster history`: leadership moved on purpose, and told afterwards.

use std::collections::BTreeMap;

use clap::Args;
use quorate_client::{Admin, AdminError, LeaderChange, NodeHistory};
use serde_json::{Value, json};

use crate::output::Answer;

/// Whom to make leader.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Number of the node that shall lead [default: the one that lacks the least of the log]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_535))]
    node: Option<u32>,
}

impl TransferArgs {
    /// Moves leadership, and says how long that took.
    pub async fn run(&self, admin: &Admin) -> Result<Answer, AdminError> {
        let moved = admin.transfer_leadership(self.node.unwrap_or(0)).await?;
        Ok(Answer::of_figures(vec![
            ("from", json!(moved.from)),
            ("to", json!(moved.to)),
            ("term", json!(moved.term)),
            ("took_ms", json!(millis(moved.took_us))),
        ]))
    }
}

/// The story of all nodes.
pub async fn history(admin: &Admin) -> Result<Answer, AdminError> {
    Ok(answer(&admin.leader_history().await?))
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// One line per term, as its leader tells it, or else whoever saw most of it.
fn answer(nodes: &[NodeHistory]) -> Answer {
    let mut terms: BTreeMap<u64, (&NodeHistory, &LeaderChange)> = BTreeMap::new();
    for node in nodes {
        for change in &node.changes {
            let worth = |teller: &NodeHistory, change: &LeaderChange| {
                let is_known = change.cause != "start" && change.cause != "unknown";
                (is_known, teller.number == change.leader, change.without_leader_us.is_some())
            };
            let best = terms.entry(change.term).or_insert((node, change));
            if worth(node, change) > worth(best.0, best.1) {
                *best = (node, change);
            }
        }
    }
    let in_ms = |micros: Option<u64>| micros.map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", millis(us)));
    let rows = terms.values().rev().map(|(node, change)| {
        vec![
            change.term.to_string(),
            time_of_day(change.at_ms),
            if change.previous == 0 { "-".to_owned() } else { change.previous.to_string() },
            change.leader.to_string(),
            change.cause.clone(),
            in_ms(change.heartbeat_age_us),
            in_ms(change.election_us),
            in_ms(change.without_leader_us),
            node.number.to_string(),
        ]
    });
    let away = nodes.iter().filter(|node| !node.reachable);
    Answer {
        header: vec!["TERM", "AT (UTC)", "FROM", "TO", "CAUSE", "HEARTBEAT AGE", "ELECTION", "WITHOUT ACKS", "TOLD BY"],
        rows: rows.collect(),
        json: json!({
            "changes": terms.values().map(|(node, change)| object(node, change)).collect::<Vec<_>>(),
            "away": away.map(|node| json!({ "number": node.number, "error": node.error })).collect::<Vec<_>>(),
        }),
    }
}

fn object(node: &NodeHistory, change: &LeaderChange) -> Value {
    json!({
        "term": change.term,
        "at_ms": change.at_ms,
        "from": (change.previous != 0).then_some(change.previous),
        "to": change.leader,
        "cause": change.cause,
        "heartbeat_age_ms": change.heartbeat_age_us.map(millis),
        "election_ms": change.election_us.map(millis),
        "without_acks_ms": change.without_leader_us.map(millis),
        "told_by": node.number,
    })
}

/// Hours, minutes, seconds and milliseconds of a wall clock.
fn time_of_day(at_ms: i64) -> String {
    let of_day = at_ms.rem_euclid(86_400_000);
    let (seconds, ms) = (of_day / 1000, of_day % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(term: u64, leader: u32, cause: &str) -> LeaderChange {
        LeaderChange { term, leader, previous: 1, cause: cause.to_owned(), ..LeaderChange::default() }
    }

    fn node(number: u32, changes: Vec<LeaderChange>) -> NodeHistory {
        NodeHistory { number, reachable: true, changes, ..NodeHistory::default() }
    }

    #[test]
    fn each_term_is_told_by_its_leader_if_that_one_saw_it() {
        let measured = LeaderChange { without_leader_us: Some(81_500), ..change(3, 2, "crash") };
        let nodes = [
            node(1, vec![change(3, 2, "start")]),
            node(2, vec![change(2, 1, "start"), measured]),
            node(3, vec![change(2, 1, "timeout"), change(3, 2, "crash")]),
        ];
        let answer = answer(&nodes);
        let told: Vec<(&str, &str, &str)> =
            answer.rows.iter().map(|row| (row[0].as_str(), row[4].as_str(), row[8].as_str())).collect();
        assert_eq!(told, [("3", "crash", "2"), ("2", "timeout", "3")], "the latest first");
        assert_eq!(answer.rows[0][7], "81.5 ms");
        assert_eq!(answer.json["changes"][1]["without_acks_ms"], 81.5);
        assert!(answer.rows.iter().all(|row| row.len() == answer.header.len()));
    }

    #[test]
    fn a_time_is_written_as_people_read_it() {
        assert_eq!(time_of_day(1_700_000_000_042), "22:13:20.042");
    }
}
