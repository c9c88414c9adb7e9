//! `quorate transaction …`: half messages that wait for their end, and the operator's word on them.

use clap::Subcommand;
use quorate_client::{Admin, AdminError, Doors, ListTransactionsResponse, Resolution, Timestamp, WaitingTransaction};
use serde_json::{Value, json};

use crate::output::{Answer, note};

/// A check that is so late did not find a producer to ask.
const OVERDUE_MS: i64 = 3000;

/// What to do with transactions.
#[derive(Debug, Subcommand)]
pub enum TransactionCommand {
    /// List half messages that are neither committed nor rolled back
    List {
        /// Of this topic only
        #[arg(long)]
        topic: Option<String>,
        /// Those only that were checked in vain and that nobody is asked about any more
        #[arg(long)]
        set_aside: bool,
        /// Most of them, 1 to 1000
        #[arg(long, default_value_t = 100, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
        max: u32,
        /// Behind this transaction id
        #[arg(long, default_value = "", hide_default_value = true)]
        after: String,
    },
    /// Make the message of a transaction visible
    Commit {
        /// The transaction id
        id: String,
    },
    /// Take the message of a transaction away for good
    Rollback {
        /// The transaction id
        id: String,
    },
}

impl TransactionCommand {
    /// What it was for, to be said when it fails.
    pub fn purpose(&self) -> String {
        match self {
            Self::List { .. } => "the transactions cannot be listed".to_owned(),
            Self::Commit { id } => format!("transaction {id} was not committed"),
            Self::Rollback { id } => format!("transaction {id} was not rolled back"),
        }
    }

    /// Does it.
    pub async fn run(&self, admin: &Admin) -> Result<Answer, AdminError> {
        match self {
            Self::List { topic, set_aside, max, after } => {
                let found = admin.list_transactions(topic.as_deref(), *set_aside, *max, after).await?;
                if found.more {
                    note("there are more; go on with --after and the last id");
                }
                Ok(list(&found, Doors::system().clock.now()))
            }
            Self::Commit { id } => {
                admin.end_transaction(id, Resolution::Commit).await?;
                Ok(ended("COMMITTED", "committed", id))
            }
            Self::Rollback { id } => {
                admin.end_transaction(id, Resolution::Rollback).await?;
                Ok(ended("ROLLED BACK", "rolled_back", id))
            }
        }
    }
}

fn ended(header: &'static str, name: &str, id: &str) -> Answer {
    Answer { header: vec![header], rows: vec![vec![id.to_owned()]], json: json!({ name: id }) }
}

/// What stands in the way of its end.
fn state(transaction: &WaitingTransaction, now_ms: i64) -> String {
    match transaction.check_ms {
        None => "set aside".to_owned(),
        Some(at) if at + OVERDUE_MS < now_ms => "no producer to ask".to_owned(),
        Some(at) => format!("next check in {} s", (at - now_ms).max(0).div_euclid(1000)),
    }
}

fn list(found: &ListTransactionsResponse, now: Timestamp) -> Answer {
    let now_ms = i64::try_from(now.0).unwrap_or(i64::MAX);
    let row = |transaction: &WaitingTransaction| {
        vec![
            transaction.transaction_id.clone(),
            transaction.topic.clone(),
            transaction.message_id.clone(),
            transaction.keys.join(" "),
            format!("{} s", now_ms.saturating_sub(transaction.sent_ms).max(0) / 1000),
            transaction.checks.to_string(),
            state(transaction, now_ms),
        ]
    };
    let object = |transaction: &WaitingTransaction| -> Value {
        json!({
            "transaction_id": transaction.transaction_id,
            "topic": transaction.topic,
            "message_id": transaction.message_id,
            "keys": transaction.keys,
            "sent_ms": transaction.sent_ms,
            "checks": transaction.checks,
            "next_check_ms": transaction.check_ms,
            "set_aside": transaction.check_ms.is_none(),
            "size": transaction.size,
        })
    };
    Answer {
        header: vec!["TRANSACTION", "TOPIC", "MESSAGE ID", "KEYS", "AGE", "CHECKS", "STATE"],
        rows: found.transactions.iter().map(row).collect(),
        json: json!({
            "transactions": found.transactions.iter().map(object).collect::<Vec<_>>(),
            "more": found.more,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_says_what_it_waits_for() {
        let waits =
            |check_ms| WaitingTransaction { check_ms, sent_ms: 1_000, checks: 2, ..WaitingTransaction::default() };
        let transactions = vec![waits(Some(15_000)), waits(Some(2_000)), waits(None)];
        let answer = list(&ListTransactionsResponse { transactions, ..Default::default() }, Timestamp(10_000));
        let states: Vec<&str> = answer.rows.iter().map(|row| row[6].as_str()).collect();
        assert_eq!(states, ["next check in 5 s", "no producer to ask", "set aside"]);
        assert_eq!((answer.rows[0][4].as_str(), answer.rows[0][5].as_str()), ("9 s", "2"));
        assert!(answer.rows.iter().all(|row| row.len() == answer.header.len()));
        assert_eq!(answer.json["transactions"][2]["set_aside"], true);
        assert_eq!(answer.json["transactions"][0]["next_check_ms"], 15_000);
    }
}
