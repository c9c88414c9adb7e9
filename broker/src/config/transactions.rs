//! When producers are asked about half messages that they have not resolved.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, check, units};

/// Transactions. The leader's settings hold, so they should be equal on all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransactionsConfig {
    /// How long a producer is left alone with its half message before it is asked. Default `6s`, RocketMQ's. Shorter than the transaction
    /// takes, it asks for an end that is on its way. A message may name its own (`orphaned_transaction_recovery_duration`).
    #[serde(with = "units::duration")]
    pub immunity: Duration,
    /// Longest such time that a message may name. Default `1h`, RocketMQ's; beyond it a send is answered 40000.
    #[serde(with = "units::duration")]
    pub immunity_max: Duration,
    /// Time between two checks of a half message. Default `30s`, RocketMQ's.
    #[serde(with = "units::duration")]
    pub check_interval: Duration,
    /// Checks of a half message; after the last and one more interval it is set aside for an operator. Default 15, RocketMQ's. A check
    /// that reached no producer does not count.
    pub checks_max: u16,
}

impl Default for TransactionsConfig {
    fn default() -> Self {
        Self {
            immunity: Duration::from_secs(6),
            immunity_max: Duration::from_secs(60 * 60),
            check_interval: Duration::from_secs(30),
            checks_max: 15,
        }
    }
}

impl TransactionsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check(self.immunity <= self.immunity_max, "transactions.immunity", || {
            "it is longer than transactions.immunity_max; raise that, too".into()
        })
    }
}
