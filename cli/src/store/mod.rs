//! `quorate store …`: the data directory of a node that does not run, read without changing it.

mod dump;
mod verify;

use std::{path::Path, process::ExitCode, sync::Arc};

use clap::Subcommand;
use quorate_raft::{RealDisk, hard_state::OpenError, inspect::Inspector};

use crate::{
    failure::{self, Failure},
    output::Format,
};

/// What to do with a data directory.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Read every byte of a stopped node's directory and say what is not as it was written; exit code 5 if something is lost
    Verify(verify::VerifyArgs),
    /// Show the entries of a stopped node's log
    Dump(dump::DumpArgs),
}

impl StoreCommand {
    pub fn run(&self, format: Format) -> Result<ExitCode, Failure> {
        match self {
            Self::Verify(args) => args.run(format),
            Self::Dump(args) => args.run(format),
        }
    }
}

/// Takes a directory for as long as it is read.
fn open(dir: &Path) -> Result<Inspector, Failure> {
    Inspector::open(Arc::new(RealDisk), dir).map_err(|error| {
        let next = match &error {
            OpenError::WrongDirectory(_) => "name the data directory of a node that does not run, and no directory above it",
            OpenError::Corrupt(_) => {
                "while the other nodes are up and whole (quorate cluster status), move the directory aside; the node joins again as a new one"
            }
            OpenError::Io { .. } => "check the permissions and the disk",
        };
        let failure = failure::error(format!("{} was not read", dir.display()), error.to_string(), next);
        if matches!(error, OpenError::Corrupt(_)) { failure.of_verification() } else { failure }
    })
}
