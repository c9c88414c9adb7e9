//! `quorate store verify`: is everything in a data directory as it was written.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use indicatif::{ProgressBar, ProgressStyle};
use quorate_broker::store::inspect::{Queues, verify_queues};
use quorate_raft::{
    RealDisk,
    inspect::{Finding, Identity, Severity, Verified},
};
use serde_json::{Value, json};

use crate::{
    failure::{self, Failure},
    output::{Answer, Format, note},
};

/// Which directory.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The data directory of a node that does not run
    dir: PathBuf,
}

impl VerifyArgs {
    /// Reads it all.
    pub fn run(&self, format: Format) -> Result<ExitCode, Failure> {
        let inspector = super::open(&self.dir)?;
        let failed = |error: std::io::Error| {
            let what = format!("{} was not read", self.dir.display());
            failure::error(what, error.to_string(), "check the permissions and the disk")
        };
        let bar = ProgressBar::new(0).with_style(style());
        let mut log = inspector.verify(&mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let queues = verify_queues(Arc::new(RealDisk), &self.dir).map_err(failed)?;
        if let Ok(log) = &mut log {
            log.findings.extend(queues.findings.iter().cloned());
        }
        let log = log.map_err(failed)?;
        let answer = answer(&self.dir, &inspector.identity(), &log, &queues);
        answer
            .print(format)
            .map_err(|error| failure::error("the result was not printed", error.to_string(), "open the output"))?;
        let worst = log.findings.iter().map(|finding| finding.severity).max();
        if worst == Some(Severity::Corrupt) {
            note(
                "something that was on stable storage is lost here. The node may refuse to start, or end up serving it from the others: while the \
                 other nodes are up and whole (quorate cluster status), move the directory aside and start the node, which joins again as a \
                 new one (docs/OPERATIONS.md, \"One node is lost\")",
            );
            return Ok(ExitCode::from(failure::VERIFICATION));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}").expect("a legal template")
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Torn => "torn",
        Severity::Mended => "mended",
        Severity::Corrupt => "corrupt",
    }
}

fn answer(dir: &Path, identity: &Identity, log: &Verified, queues: &Queues) -> Answer {
    let entry = |id: Option<quorate_raft::LogId>| id.map_or(Value::Null, |id| Value::from(id.index.0));
    let figures = [
        ("directory", json!(dir.display().to_string())),
        ("cluster", json!(identity.cluster)),
        ("node", json!(identity.node.number())),
        ("stopped in order", json!(identity.clean)),
        ("floor", json!(identity.floor.0)),
        ("end", json!(log.end.0)),
        ("first entry", entry(log.range.map(|(first, _)| first))),
        ("last entry", entry(log.range.map(|(_, last)| last))),
        ("entries", json!(log.entries)),
        ("log files", json!(log.segments)),
        ("images", json!(log.images)),
        ("queue files", json!(queues.files)),
        ("queue records", json!(queues.records)),
        ("findings", json!(log.findings.len())),
    ];
    let mut rows: Vec<Vec<String>> = figures
        .iter()
        .map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            vec![(*name).to_owned(), if value.is_null() { "-".to_owned() } else { text }]
        })
        .collect();
    rows.extend(log.findings.iter().map(|finding| vec![name(finding.severity).to_owned(), words(finding)]));
    let findings: Vec<Value> = log
        .findings
        .iter()
        .map(|finding| {
            json!({
                "severity": name(finding.severity),
                "path": finding.path.display().to_string(),
                "byte": finding.byte,
                "what": finding.what,
            })
        })
        .collect();
    let mut json: serde_json::Map<String, Value> =
        figures.into_iter().map(|(name, value)| (name.replace(' ', "_"), value)).collect();
    json.insert("findings".to_owned(), findings.into());
    Answer { header: vec!["FIGURE", "VALUE"], rows, json: json.into() }
}

fn words(finding: &Finding) -> String {
    let at = finding.byte.map(|byte| format!(" byte {byte}:")).unwrap_or_default();
    format!("{}:{at} {}", finding.path.display(), finding.what)
}
