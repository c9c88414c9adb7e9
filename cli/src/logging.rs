//! Logs go to standard error, as lines for people or as JSON for collectors.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt};

use crate::failure::{self, Failure};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// The `[log]` table of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Default `text`.
    pub format: LogFormat,
    /// What is written: `info`, or per part `info,quorate_raft=debug`. Default `info,openraft=warn`: the library below the log tells every
    /// step of an election.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,openraft=warn".to_owned() }
    }
}

/// Starts logging, once per process.
///
/// # Errors
/// The filter is not one.
pub fn start(config: &LogConfig) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| {
        let what = format!("log.filter cannot be {:?}", config.filter);
        failure::config(what, error.to_string(), "write info, or per part info,quorate_raft=debug")
    })?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| failure::error("logging did not start", error.to_string(), "report this as a bug"))
}
