//! `quorate health`: asks a node how it is, for a person, a script or a container's HEALTHCHECK.
//!
//! Made to be started every second or two: no runtime, no threads, one small HTTP request (`page`).
//! The address is where `quorate broker` would listen with the same file and variables.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    broker,
    failure::{self, Exit, Failure},
    output::Format,
    page::{self, Page},
};

/// What to ask, and whom.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 it holds, 3 it does not, 1 nobody could be asked, 2 wrong usage or configuration"
)]
pub struct HealthArgs {
    /// Does it run? Never restart a node for anything else
    #[arg(long, conflicts_with_all = ["ready", "safe_to_stop"])]
    live: bool,
    /// Can it serve or forward? (the default)
    #[arg(long, conflicts_with = "safe_to_stop")]
    ready: bool,
    /// Would the group keep its quorum without it?
    #[arg(long)]
    safe_to_stop: bool,
    /// HTTP listener of the node [default: network.http_listen, as the node itself would read it]
    #[arg(long, value_name = "HOST:PORT", value_parser = |text: &str| page::check_address(text).map(|()| text.to_owned()))]
    address: Option<String>,
    /// TOML file with the node's settings
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What the node says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    check: String,
    ok: bool,
    why: Vec<String>,
}

impl HealthArgs {
    /// Asks and prints one line.
    ///
    /// # Errors
    /// Nobody could be asked.
    pub fn run(&self, format: Format) -> Result<ExitCode, Failure> {
        let address = match &self.address {
            Some(address) => address.clone(),
            None => broker::http_listen(self.config.as_ref())?,
        };
        let answer = ask(&address, self.check()).map_err(|error| {
            let next = "start the node, or name its HTTP listener with --address";
            failure::error(format!("{address} cannot be asked"), error.to_string(), next)
        })?;
        // Nobody reads the words of a HEALTHCHECK; the code counts.
        let _ = writeln!(io::stdout(), "{}", answer.render(format));
        Ok(if answer.ok { ExitCode::SUCCESS } else { Exit::Unhealthy.into() })
    }

    fn check(&self) -> &'static str {
        match (self.live, self.safe_to_stop) {
            (true, _) => "live",
            (false, true) => "safe-to-stop",
            (false, false) => "ready",
        }
    }
}

impl Answer {
    fn render(&self, format: Format) -> String {
        match format {
            Format::Json => serde_json::to_string(self).expect("plain data has a text"),
            Format::Table if self.ok => format!("{}: yes", self.check),
            Format::Table => format!("{}: no, {}", self.check, self.why.join("; ")),
        }
    }
}

/// Asks once. Status and body must agree, and must be about what was asked: something else may listen there.
fn ask(address: &str, check: &str) -> io::Result<Answer> {
    read(&page::get(address, &format!("/health/{check}"))?, check)
}

fn read(Page { status, body }: &Page, check: &str) -> io::Result<Answer> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| page::no_node(&format!("status {status}")))?;
    let expected = if answer.ok { 200 } else { 503 };
    if *status != expected || answer.check != check {
        return Err(page::no_node(&format!("status {status}, check {:?}", answer.check)));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(status: u16, body: &str) -> Page {
        Page { status, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn an_answer_is_one_line_for_people_and_one_object_for_programs() {
        let answer = read(&page(503, "{\"check\":\"ready\",\"ok\":false,\"why\":[\"a\",\"b\"]}\n"), "ready").unwrap();
        assert_eq!(answer.render(Format::Table), "ready: no, a; b");
        assert_eq!(answer.render(Format::Json), r#"{"check":"ready","ok":false,"why":["a","b"]}"#);
        let fine = read(&page(200, "{\"check\":\"live\",\"ok\":true,\"why\":[]}"), "live").unwrap();
        assert_eq!(fine.render(Format::Table), "live: yes");
    }

    #[test]
    fn what_is_no_node_s_answer_is_an_error() {
        let no = "{\"check\":\"ready\",\"ok\":false,\"why\":[]}";
        assert!(read(&page(503, no), "live").is_err());
        assert!(read(&page(200, no), "ready").is_err());
        assert!(read(&page(200, "<html>"), "ready").is_err());
    }
}
