//! `quorate group …`

use clap::Subcommand;
use quorate_client::{Admin, AdminError, ConsumerGroup};
use serde_json::json;

use crate::output::Answer;

/// What to do with consumer groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create a consumer group
    Create {
        /// 1 to 120 characters of a-z A-Z 0-9 _ - % |
        name: String,
        /// Messages of one message group are handed out in order, one after the other
        #[arg(long)]
        fifo: bool,
    },
    /// List all consumer groups
    List,
    /// Delete a consumer group with its progress
    Delete {
        /// The consumer group
        name: String,
    },
}

impl GroupCommand {
    /// What it was for, to be said when it fails.
    pub fn purpose(&self) -> String {
        match self {
            Self::Create { name, .. } => format!("consumer group {name} was not created"),
            Self::List => "the consumer groups cannot be listed".to_owned(),
            Self::Delete { name } => format!("consumer group {name} was not deleted"),
        }
    }

    /// Does it.
    pub async fn run(&self, admin: &Admin) -> Result<Answer, AdminError> {
        match self {
            Self::Create { name, fifo } => {
                admin.create_group(name, *fifo).await?;
                let mut groups = admin.list_groups().await?;
                groups.retain(|group| group.name == *name);
                Ok(list(&groups))
            }
            Self::List => Ok(list(&admin.list_groups().await?)),
            Self::Delete { name } => {
                admin.delete_group(name).await?;
                Ok(Answer { header: vec!["DELETED"], rows: vec![vec![name.clone()]], json: json!({ "deleted": name }) })
            }
        }
    }
}

fn list(groups: &[ConsumerGroup]) -> Answer {
    let order = |group: &ConsumerGroup| if group.fifo { "fifo" } else { "any" };
    Answer {
        header: vec!["GROUP", "ORDER"],
        rows: groups.iter().map(|group| vec![group.name.clone(), order(group).to_owned()]).collect(),
        json: groups
            .iter()
            .map(|group| json!({ "name": group.name, "fifo": group.fifo, "created_ms": group.created_ms }))
            .collect(),
    }
}
