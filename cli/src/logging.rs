//! Logs go to standard error, as lines for people or as JSON for collectors.
//!
//! One event is one line, whatever is in it: control characters, which a client may have put into a name that is told, are written as escapes
//! by [`Plain`], below both formats. So nobody who can only send a name can begin a line of his own or paint on an operator's terminal.

use std::io;

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    config::Origin,
    failure::{self, Failure},
};

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

impl LogFormat {
    /// As it stands in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// The `[log]` table of a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Default `text`.
    pub format: LogFormat,
    /// What is written: `info`, or per part `info,quorate_raft=debug`. Default `info,openraft=error`: the library below the log tells every
    /// step of an election, and each heartbeat that a dead peer does not answer.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,openraft=error".to_owned() }
    }
}

/// Writes lines without control characters. What is written at once is one event and ends with its line.
struct Plain<W>(W);

impl<W: io::Write> io::Write for Plain<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (line, end) = match event.split_last() {
            Some((b'\n', line)) => (line, "\n"),
            Some(_) | None => (event, ""),
        };
        match escape(&String::from_utf8_lossy(line)) {
            None => self.0.write_all(event)?,
            Some(escaped) => self.0.write_all(format!("{escaped}{end}").as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A line with its control characters as `\u001b`, which JSON reads back, if it has any. Those that turn the direction of writing are such too: they make a
/// terminal show another line than the one that was written.
fn escape(line: &str) -> Option<String> {
    let is_control = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !line.contains(is_control) {
        return None;
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        if is_control(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    Some(escaped)
}

fn filter(config: &LogConfig, from: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(&config.filter).map_err(|error| {
        let what = format!("log.filter cannot be {:?}{from}", config.filter);
        failure::config(what, error.to_string(), "write info, or per part info,quorate_raft=debug")
    })
}

/// Checks what [`start`] would be told.
///
/// # Errors
/// The filter is not one; says where it comes from.
pub fn check(config: &LogConfig, origin: &Origin) -> Result<(), Failure> {
    filter(config, &format!(" ({origin})")).map(drop)
}

/// Starts logging, once per process.
///
/// # Errors
/// The filter is not one.
pub fn start(config: &LogConfig) -> Result<(), Failure> {
    let filter = filter(config, "")?;
    let lines = fmt().with_env_filter(filter).with_writer(|| Plain(io::stderr()));
    let started = match config.format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| failure::error("logging did not start", error.to_string(), "report this as a bug"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        sync::{Arc, Mutex},
    };

    use tracing::info;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Everything a client can name, in every spelling of an event, in both formats: one line each, and nothing a terminal obeys.
    #[test]
    fn what_clients_name_stays_within_its_line() {
        let evil = "a\n\u{1b}[31mERROR forged\r\u{7}\u{9b}2J\u{202e}\u{2028}";
        for format in [LogFormat::Text, LogFormat::Json] {
            let kept = Kept::default();
            let writer = kept.clone();
            let lines = fmt().with_writer(move || Plain(writer.clone()));
            let log = || {
                info!(topic = evil, group = %evil, client_id = ?evil, "named");
                info!(tag = %evil, key = %evil, "{evil}");
            };
            match format {
                LogFormat::Text => tracing::subscriber::with_default(lines.with_ansi(false).finish(), log),
                LogFormat::Json => tracing::subscriber::with_default(lines.json().flatten_event(true).finish(), log),
            }
            let said = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
            assert_eq!(said.lines().count(), 2, "{said:?}");
            let odd = said.chars().filter(|c| *c != '\n').find(|c| escape(&c.to_string()).is_some());
            assert_eq!(odd, None, "{said:?}");
            assert_eq!(said.matches("forged").count(), 6, "{said:?}");
            let is_json = said.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
            assert_eq!(is_json, format == LogFormat::Json, "{said}");
        }
    }

    #[test]
    fn a_plain_line_is_written_as_it_is() {
        let mut kept = Plain(Vec::new());
        kept.write_all("grün ✓\n".as_bytes()).unwrap();
        kept.write_all(b"a\x1bb\n").unwrap();
        assert_eq!(String::from_utf8(kept.0).unwrap(), "grün ✓\na\\u001bb\n");
    }
}
