//! `quorate cluster backup` and `restore`: which topics and consumer groups there are and how they are set, in a file. No messages, and not
//! how far groups are: both belong to one log and make no sense beside another one.
//!
//! Restoring makes what is missing and changes nothing that is there, so it can be repeated, also after it stopped half-way.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use quorate_client::{Admin, ConsumerGroup, ExponentialDelays, Retry, StartAt, Topic, TopicType};
use quorate_proto::names::DEAD_LETTER_PREFIX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    failure::{self, Failure},
    output::{Answer, Format},
};

/// Number of the file's format.
const FORMAT: u32 = 1;

/// Where to.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The file to write, or - for the standard output
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

/// Where from.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// A file that backup has written, or - for the standard input
    file: PathBuf,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
}

/// What the file holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    quorate_backup: u32,
    topics: Vec<SavedTopic>,
    groups: Vec<SavedGroup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedTopic {
    name: String,
    queues: u32,
    r#type: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Any,
    Normal,
    Fifo,
    Delay,
    Transaction,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedGroup {
    name: String,
    fifo: bool,
    start: Start,
    retry: Option<SavedRetry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Start {
    Default,
    First,
    Last,
    SinceMs(i64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRetry {
    max_attempts: u32,
    #[serde(flatten)]
    delays: SavedDelays,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SavedDelays {
    LadderMs(Vec<u64>),
    Exponential { initial_ms: u64, max_ms: u64, factor_percent: u32 },
}

/// What became of one topic or group.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    There,
    Made,
    ToBeMade,
    /// It is there with other settings, and stays as it is.
    Differs(String),
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::There => f.write_str("there already"),
            Self::Made => f.write_str("made"),
            Self::ToBeMade => f.write_str("would be made"),
            Self::Differs(why) => write!(f, "differs: {why}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

impl From<&Topic> for SavedTopic {
    fn from(topic: &Topic) -> Self {
        let kind = match topic.r#type() {
            TopicType::Unspecified | TopicType::Any => Kind::Any,
            TopicType::Normal => Kind::Normal,
            TopicType::Fifo => Kind::Fifo,
            TopicType::Delay => Kind::Delay,
            TopicType::Transaction => Kind::Transaction,
        };
        Self { name: topic.name.clone(), queues: topic.queues, r#type: kind }
    }
}

impl Kind {
    fn wire(self) -> TopicType {
        match self {
            Self::Any => TopicType::Any,
            Self::Normal => TopicType::Normal,
            Self::Fifo => TopicType::Fifo,
            Self::Delay => TopicType::Delay,
            Self::Transaction => TopicType::Transaction,
        }
    }
}

impl From<&ConsumerGroup> for SavedGroup {
    fn from(group: &ConsumerGroup) -> Self {
        let start = match group.start() {
            StartAt::Unspecified => Start::Default,
            StartAt::First => Start::First,
            StartAt::Last => Start::Last,
            StartAt::Since => Start::SinceMs(group.start_ms),
        };
        let retry = group.retry.as_ref().map(|retry| SavedRetry {
            max_attempts: retry.max_attempts,
            delays: match &retry.exponential {
                None => SavedDelays::LadderMs(retry.ladder_ms.clone()),
                Some(ExponentialDelays { initial_ms, max_ms, factor_percent }) => SavedDelays::Exponential {
                    initial_ms: *initial_ms,
                    max_ms: *max_ms,
                    factor_percent: *factor_percent,
                },
            },
        });
        Self { name: group.name.clone(), fifo: group.fifo, start, retry }
    }
}

impl SavedGroup {
    fn wire(&self) -> ConsumerGroup {
        let (start, start_ms) = match self.start {
            Start::Default => (StartAt::Unspecified, 0),
            Start::First => (StartAt::First, 0),
            Start::Last => (StartAt::Last, 0),
            Start::SinceMs(ms) => (StartAt::Since, ms),
        };
        let retry = self.retry.as_ref().map(|SavedRetry { max_attempts, delays }| {
            let mut retry = Retry { max_attempts: *max_attempts, ..Retry::default() };
            match delays {
                SavedDelays::LadderMs(ladder) => retry.ladder_ms = ladder.clone(),
                SavedDelays::Exponential { initial_ms, max_ms, factor_percent } => {
                    retry.exponential = Some(ExponentialDelays {
                        initial_ms: *initial_ms,
                        max_ms: *max_ms,
                        factor_percent: *factor_percent,
                    });
                }
            }
            retry
        });
        ConsumerGroup { name: self.name.clone(), fifo: self.fifo, created_ms: 0, retry, start: start.into(), start_ms }
    }
}

async fn take(admin: &Admin) -> Result<Backup, quorate_client::AdminError> {
    let topics = admin.list_topics().await?;
    // Those of dead letters are made with the first one.
    let topics = topics.iter().filter(|topic| !topic.name.starts_with(DEAD_LETTER_PREFIX));
    let groups = admin.list_groups().await?;
    Ok(Backup {
        quorate_backup: FORMAT,
        topics: topics.map(SavedTopic::from).collect(),
        groups: groups.iter().map(SavedGroup::from).collect(),
    })
}

impl BackupArgs {
    /// Writes the file, whole or not at all.
    pub async fn run(&self, admin: &Admin, endpoints: &str, format: Format) -> Result<ExitCode, Failure> {
        let what = || "nothing was saved".to_owned();
        let backup = take(admin).await.map_err(|error| failure::call(what(), &error, endpoints))?;
        let text = serde_json::to_string_pretty(&backup)
            .map_err(|error| failure::error(what(), error.to_string(), "report this"))?;
        if self.file == Path::new("-") {
            writeln!(io::stdout().lock(), "{text}")
                .map_err(|error| failure::error(what(), error.to_string(), "open the output"))?;
            return Ok(ExitCode::SUCCESS);
        }
        write(&self.file, &text, self.force).map_err(|error| {
            let is_there = error.kind() == io::ErrorKind::AlreadyExists;
            let next = if is_there {
                "name another file, or --force to replace it"
            } else {
                "name a file that can be written"
            };
            failure::error(what(), format!("{}: {error}", self.file.display()), next)
        })?;
        let figures = vec![
            ("file", json!(self.file.display().to_string())),
            ("topics", json!(backup.topics.len())),
            ("groups", json!(backup.groups.len())),
        ];
        print(&Answer::of_figures(figures), format)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Beside, synced, then under its name.
fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    let persisted = if force { file.persist(path) } else { file.persist_noclobber(path) };
    persisted.map(drop).map_err(|error| error.error)
}

impl RestoreArgs {
    /// Makes what is missing. Exit code 1 if something could not be made or is there with other settings.
    pub async fn run(&self, admin: &Admin, endpoints: &str, format: Format) -> Result<ExitCode, Failure> {
        let what = || "nothing was restored".to_owned();
        let backup = self.read()?;
        let there = take(admin).await.map_err(|error| failure::call(what(), &error, endpoints))?;
        let topics: BTreeMap<_, _> = there.topics.iter().map(|topic| (topic.name.as_str(), topic)).collect();
        let groups: BTreeMap<_, _> = there.groups.iter().map(|group| (group.name.as_str(), group)).collect();
        let mut done = Vec::new();
        for topic in &backup.topics {
            let outcome = match topics.get(topic.name.as_str()) {
                Some(same) if *same == topic => Outcome::There,
                Some(other) => Outcome::Differs(format!("{} queues, {}", other.queues, text(&other.r#type))),
                None if self.dry_run => Outcome::ToBeMade,
                None => outcome(admin.create_topic(&topic.name, topic.queues, topic.r#type.wire()).await),
            };
            done.push(("topic", topic.name.as_str(), outcome));
        }
        for group in &backup.groups {
            let outcome = match groups.get(group.name.as_str()) {
                Some(same) if *same == group => Outcome::There,
                Some(other) => Outcome::Differs(text(other)),
                None if self.dry_run => Outcome::ToBeMade,
                None => outcome(admin.put_group(group.wire(), false).await),
            };
            done.push(("group", group.name.as_str(), outcome));
        }
        let is_whole = done.iter().all(|(_, _, outcome)| !matches!(outcome, Outcome::Differs(_) | Outcome::Failed(_)));
        print(&answer(&done), format)?;
        Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn read(&self) -> Result<Backup, Failure> {
        let name = self.file.display().to_string();
        let wrong = |why: String| {
            failure::config(
                format!("{name} was not restored"),
                why,
                "name a file that quorate cluster backup has written",
            )
        };
        let text =
            if self.file == Path::new("-") { io::read_to_string(io::stdin()) } else { fs::read_to_string(&self.file) };
        let text = text.map_err(|error| wrong(error.to_string()))?;
        let backup: Backup = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        match backup.quorate_backup {
            FORMAT => Ok(backup),
            other => Err(wrong(format!("its format {other} is not known to this program, which knows {FORMAT}"))),
        }
    }
}

fn outcome(made: Result<(), quorate_client::AdminError>) -> Outcome {
    made.map_or_else(|error| Outcome::Failed(error.to_string()), |()| Outcome::Made)
}

/// Settings as they stand in the file.
fn text(settings: &impl Serialize) -> String {
    serde_json::to_string(settings).unwrap_or_default()
}

fn answer(done: &[(&str, &str, Outcome)]) -> Answer {
    let row = |(kind, name, outcome): &(&str, &str, Outcome)| {
        vec![(*kind).to_owned(), (*name).to_owned(), outcome.to_string()]
    };
    let object = |(kind, name, outcome): &(&str, &str, Outcome)| -> Value {
        let result = match outcome {
            Outcome::There => "there",
            Outcome::Made => "made",
            Outcome::ToBeMade => "to_be_made",
            Outcome::Differs(_) => "differs",
            Outcome::Failed(_) => "failed",
        };
        let why = match outcome {
            Outcome::Differs(why) | Outcome::Failed(why) => Value::from(why.as_str()),
            Outcome::There | Outcome::Made | Outcome::ToBeMade => Value::Null,
        };
        json!({ "kind": kind, "name": name, "result": result, "why": why })
    };
    Answer {
        header: vec!["KIND", "NAME", "OUTCOME"],
        rows: done.iter().map(row).collect(),
        json: done.iter().map(object).collect(),
    }
}

fn print(answer: &Answer, format: Format) -> Result<(), Failure> {
    answer
        .print(format)
        .map_err(|error| failure::error("the result was not printed", error.to_string(), "open the output"))
}
