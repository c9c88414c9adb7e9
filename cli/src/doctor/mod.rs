//! `quorate doctor`: whether clients at this place can use the group, and what to do if not.
//!
//! ```text
//!   endpoints ──▶ resolve, connect, ask ──▶ their routes ──▶ resolve, connect, ask ──▶ findings ──▶ exit code
//! ```
//! It stands where a client stands: what counts is which addresses the group gives away here, and whether they can be reached from here.
//! It changes nothing: the route it asks is that of a topic that exists, or else what the admin call tells. `visit` gathers,
//! `judge` decides, and the two share only plain facts.

mod judge;
mod visit;

use std::process::ExitCode;

use clap::Args;
use quorate_client::CallError;
use quorate_proto::doors::parse_addresses;
use serde_json::json;

use self::{
    judge::{Finding, Level, judge},
    visit::examine,
};
use crate::{
    failure::{self, Exit, Failure},
    output::{Answer, Format},
};

/// Check from a client's place that the group can be used: addresses, routes, clocks, versions, quorum; exit code 3 if something is wrong
#[derive(Debug, Args)]
pub struct DoctorCommand {}

impl DoctorCommand {
    /// Looks, judges and prints.
    ///
    /// # Errors
    /// Endpoints that are none, and an output that is gone.
    pub async fn run(&self, endpoints: &str, format: Format) -> Result<ExitCode, Failure> {
        let addresses = parse_addresses(endpoints)
            .map_err(|message| failure::call("nothing was examined", &CallError::Config { message }, endpoints))?;
        let findings = judge(&examine(&addresses).await);
        let is_healthy = findings.iter().all(|finding| finding.level != Level::Wrong);
        answer(&findings, is_healthy)
            .print(format)
            .map_err(|error| failure::error("the result was not printed", error.to_string(), "open the output"))?;
        Ok(if is_healthy { ExitCode::SUCCESS } else { Exit::Unhealthy.into() })
    }
}

fn answer(findings: &[Finding], is_healthy: bool) -> Answer {
    let mut rows = Vec::new();
    for finding in findings {
        rows.push(vec![finding.level.text().to_owned(), finding.about.clone(), finding.what.clone()]);
        if !finding.fix.is_empty() {
            rows.push(vec![String::new(), "fix:".to_owned(), finding.fix.clone()]);
        }
    }
    let object = |finding: &Finding| json!({ "level": finding.level.text(), "about": finding.about, "finding": finding.what, "fix": finding.fix });
    Answer {
        header: vec!["LEVEL", "ABOUT", "FINDING"],
        rows,
        json: json!({ "healthy": is_healthy, "findings": findings.iter().map(object).collect::<Vec<_>>() }),
    }
}
