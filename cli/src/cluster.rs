//! `quorate cluster …`: the broker group on one screen with its health as an exit code, and who leads it, now and before.

use clap::Subcommand;
use quorate_client::{Admin, AdminError};

use crate::{
    leadership::{self, TransferArgs},
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
}

impl ClusterCommand {
    /// What failed if the command does.
    pub fn purpose(&self) -> &'static str {
        match self {
            Self::Status(_) => status::PURPOSE,
            Self::Transfer(_) => "leadership was not handed over",
            Self::History => "the past leaders are not known",
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
