//! `quorate topic …`

use clap::{Subcommand, ValueEnum};
use quorate_client::{Admin, AdminError, Topic, TopicType};
use serde_json::json;

use crate::output::{Answer, note, utc};

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic
    Create {
        /// 1 to 127 characters of a-z A-Z 0-9 _ - % |
        name: String,
        /// Numbered lanes, 1 to 1024; more of them let more consumers of an ordered topic work side by side
        #[arg(long, default_value_t = 8, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1024))]
        queues: u32,
        /// The kind of messages it takes
        #[arg(long = "type", value_enum, default_value_t = Kind::Normal)]
        kind: Kind,
    },
    /// List all topics
    List,
    /// Show a topic with the offsets of its queues
    Describe {
        /// The topic
        name: String,
    },
    /// Delete a topic with everything in it; refused while half or delayed messages wait in it, unless forced
    Delete {
        /// The topic
        name: String,
        /// Drop messages too that wait in it and that nobody could receive yet: half and delayed ones
        #[arg(long)]
        force: bool,
    },
}

/// The kinds of messages a topic takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Normal,
    Fifo,
    Delay,
    Transaction,
    Any,
}

impl From<Kind> for TopicType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Normal => Self::Normal,
            Kind::Fifo => Self::Fifo,
            Kind::Delay => Self::Delay,
            Kind::Transaction => Self::Transaction,
            Kind::Any => Self::Any,
        }
    }
}

impl TopicCommand {
    /// What it was for, to be said when it fails.
    pub fn purpose(&self) -> String {
        match self {
            Self::Create { name, .. } => format!("topic {name} was not created"),
            Self::List => "the topics cannot be listed".to_owned(),
            Self::Describe { name } => format!("topic {name} cannot be described"),
            Self::Delete { name, .. } => format!("topic {name} was not deleted"),
        }
    }

    /// Does it.
    pub async fn run(&self, admin: &Admin) -> Result<Answer, AdminError> {
        match self {
            Self::Create { name, queues, kind } => {
                admin.create_topic(name, *queues, (*kind).into()).await?;
                Ok(list(&[admin.describe_topic(name).await?]))
            }
            Self::List => Ok(list(&admin.list_topics().await?)),
            Self::Describe { name } => Ok(describe(&admin.describe_topic(name).await?)),
            Self::Delete { name, force } => {
                let dropped = admin.delete_topic(name, *force).await?;
                if dropped.halves + dropped.delayed > 0 {
                    note(format!("{} half and {} delayed messages went with it", dropped.halves, dropped.delayed));
                }
                Ok(Answer {
                    header: vec!["DELETED"],
                    rows: vec![vec![name.clone()]],
                    json: json!({ "deleted": name, "halves": dropped.halves, "delayed": dropped.delayed }),
                })
            }
        }
    }
}

fn kind_name(topic: &Topic) -> &'static str {
    match topic.r#type() {
        TopicType::Unspecified => "unspecified",
        TopicType::Normal => "normal",
        TopicType::Fifo => "fifo",
        TopicType::Delay => "delay",
        TopicType::Transaction => "transaction",
        TopicType::Any => "any",
    }
}

fn list(topics: &[Topic]) -> Answer {
    let row = |topic: &Topic| {
        vec![topic.name.clone(), kind_name(topic).to_owned(), topic.queues.to_string(), utc(topic.created_ms)]
    };
    let object = |topic: &Topic| json!({ "name": topic.name, "type": kind_name(topic), "queues": topic.queues, "created_ms": topic.created_ms });
    Answer {
        header: vec!["TOPIC", "TYPE", "QUEUES", "CREATED (UTC)"],
        rows: topics.iter().map(row).collect(),
        json: topics.iter().map(object).collect(),
    }
}

fn describe(topic: &Topic) -> Answer {
    let row = |queue: &quorate_client::Queue| {
        vec![
            topic.name.clone(),
            kind_name(topic).to_owned(),
            queue.id.to_string(),
            queue.min.to_string(),
            queue.max.to_string(),
            queue.max.saturating_sub(queue.min).to_string(),
            utc(topic.created_ms),
        ]
    };
    let object = |queue: &quorate_client::Queue| json!({ "id": queue.id, "min": queue.min, "max": queue.max });
    Answer {
        header: vec!["TOPIC", "TYPE", "QUEUE", "MIN", "MAX", "MESSAGES", "CREATED (UTC)"],
        rows: topic.offsets.iter().map(row).collect(),
        json: json!({
            "name": topic.name,
            "type": kind_name(topic),
            "queues": topic.queues,
            "created_ms": topic.created_ms,
            "offsets": topic.offsets.iter().map(object).collect::<Vec<_>>(),
        }),
    }
}
