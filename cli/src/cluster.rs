//! `quorate cluster …`: the broker group on one screen with its health as an exit code, who leads it, now and before, and who is in it.

use clap::Subcommand;
use quorate_client::{Admin, AdminError};

use crate::{
    backup::{BackupArgs, RestoreArgs},
    leadership::{self, TransferArgs},
    members::{AddArgs, RemoveArgs, ReplaceArgs},
    output::{Answer, Format},
    status::{self, StatusArgs},
};

/// What to ask of the broker group.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show role, term and log of every node; exit code 3 if a node is away, 4 if nobody leads or no node answers
    Status(StatusArgs),
    /// Hand leadership to another node, without an election timeout
    Transfer(TransferArgs),
    /// Show the last changes of leadership: why, how long the election took, how long nothing was acknowledged
    History,
    /// Add a node while the group runs: it catches up first, then it votes
    Add(AddArgs),
    /// Remove a node while the group runs, dead or alive; refused if the rest would have no quorum
    Remove(RemoveArgs),
    /// Put a new node in the place of another, dead or alive, while the group runs
    Replace(ReplaceArgs),
    /// Save which topics and consumer groups there are, and their settings, in a file; no messages
    Backup(BackupArgs),
    /// Make the topics and consumer groups of a backup that are missing; exit code 1 if some differ or could not be made
    Restore(RestoreArgs),
}

impl ClusterCommand {
    /// What failed if the command does.
    pub fn purpose(&self) -> &'static str {
        match self {
            Self::Status(_) => status::PURPOSE,
            Self::Transfer(_) => "leadership was not handed over",
            Self::History => "the past leaders are not known",
            Self::Add(_) => "the node was not added",
            Self::Remove(_) => "the node was not removed",
            Self::Replace(_) => "the node was not replaced",
            Self::Backup(_) => "nothing was saved",
            Self::Restore(_) => "nothing was restored",
        }
    }
}

/// Hands leadership over and prints what came of it.
pub async fn transfer(args: &TransferArgs, admin: &Admin, format: Format) -> Result<(), AdminError> {
    printed(&args.run(admin).await?, format);
    Ok(())
}

/// Prints the last changes of leadership.
pub async fn history(admin: &Admin, format: Format) -> Result<(), AdminError> {
    printed(&leadership::history(admin).await?, format);
    Ok(())
}

fn printed(answer: &Answer, format: Format) {
    // A closed pipe on the other side changes nothing about what was done.
    let _ = answer.print(format);
}
