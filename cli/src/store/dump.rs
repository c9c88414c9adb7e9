//! `quorate store dump`: the entries of a log, and what each asks of the machine. Bodies are not shown.

use std::{ops::ControlFlow, path::PathBuf, process::ExitCode};

use prost::Message as _;
use quorate_broker::machine::{Batch, Command, QueueId, Record, TopicId};
use quorate_proto::v2::Message;
use quorate_raft::{LogIndex, inspect::Entry, log::Payload};
use serde_json::{Map, Value, json};

use crate::{
    failure::{self, Failure},
    output::{Answer, Format, note, utc},
};

/// Which entries of which directory.
#[derive(Debug, clap::Args)]
pub struct DumpArgs {
    /// The data directory of a node that does not run
    dir: PathBuf,
    /// The first entry's index
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Most entries
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    max: u64,
}

impl DumpArgs {
    /// Shows them: a table, or with `-o json` an object per entry and line.
    pub fn run(&self, format: Format) -> Result<ExitCode, Failure> {
        let inspector = super::open(&self.dir)?;
        let (mut rows, mut left, mut printed) = (Vec::new(), self.max, Ok(()));
        let stopped = inspector.entries(LogIndex(self.from), &mut |entry| {
            let value = entry_value(&entry);
            match format {
                Format::Json => printed = line(&value),
                Format::Table => rows.push(row(&value)),
            }
            left -= 1;
            if left == 0 || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let stopped = stopped.map_err(|error| {
            let next = format!("quorate store verify '{}'", self.dir.display());
            failure::error("the log was not read to its end", error.to_string(), next)
        })?;
        if format == Format::Table {
            let header = vec!["INDEX", "TERM", "POSITION", "KIND", "BYTES", "TIME", "COMMANDS"];
            printed = Answer { header, rows, json: Value::Null }.print(format);
        }
        printed.map_err(|error| failure::error("the result was not printed", error.to_string(), "open the output"))?;
        if let Some(why) = stopped {
            note(format!("the log cannot be read further: {why}; quorate store verify '{}'", self.dir.display()));
            return Ok(ExitCode::from(failure::VERIFICATION));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn line(value: &Value) -> std::io::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout().lock(), "{value}")
}

fn entry_value(entry: &Entry) -> Value {
    let mut value = Map::new();
    value.insert("index".into(), entry.id.index.0.into());
    value.insert("term".into(), entry.id.term.0.into());
    value.insert("leader".into(), entry.id.node.number().into());
    value.insert("position".into(), entry.position.0.into());
    let (kind, bytes) = match &entry.payload {
        Payload::Blank => ("blank", 0),
        Payload::Membership(bytes) => ("membership", bytes.len()),
        Payload::Floor(floor) => {
            value.insert("floor".into(), floor.0.into());
            ("floor", 8)
        }
        Payload::Normal(bytes) => {
            match Batch::decode(bytes.clone()) {
                Ok(batch) => {
                    value.insert("stamp_ms".into(), batch.now.0.into());
                    let commands: Vec<Value> =
                        batch.commands.iter().map(|command| command_value(command, entry.payload_position.0)).collect();
                    value.insert("commands".into(), commands.into());
                }
                Err(error) => {
                    value.insert("error".into(), error.to_string().into());
                }
            }
            ("commands", bytes.len())
        }
    };
    value.insert("kind".into(), kind.into());
    value.insert("bytes".into(), bytes.into());
    value.into()
}

fn row(value: &Value) -> Vec<String> {
    let text = |name: &str| match &value[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    };
    let time = utc(value["stamp_ms"].as_i64().unwrap_or_default());
    let commands = value["commands"].as_array().map_or_else(|| "-".to_owned(), |commands| summary(commands));
    vec![text("index"), text("term"), text("position"), text("kind"), text("bytes"), time, commands]
}

/// `Send hello/2 ×32, Ack ×4`: commands that are alike stand together.
fn summary(commands: &[Value]) -> String {
    let mut runs: Vec<(String, u32)> = Vec::new();
    for command in commands {
        let name = command["command"].as_str().unwrap_or("?");
        let place = command["name"].as_str().map(|name| format!(" {name}")).unwrap_or_default();
        let text = format!("{name}{place}");
        match runs.last_mut() {
            Some((last, count)) if *last == text => *count += 1,
            Some(_) | None => runs.push((text, 1)),
        }
    }
    let run = |(text, count): (String, u32)| if count == 1 { text } else { format!("{text} ×{count}") };
    runs.into_iter().map(run).collect::<Vec<_>>().join(", ")
}

fn command_value(command: &Command, payload: u64) -> Value {
    let mut value = match command {
        Command::Send(send) => stored("Send", send.topic, send.queue, &send.record, payload),
        Command::SendDelayed(delayed) => {
            let send = &delayed.send;
            let mut value = stored("SendDelayed", send.topic, send.queue, &send.record, payload);
            value.insert("due_ms".into(), delayed.due.0.into());
            value
        }
        Command::SendHalf(half) => {
            let send = &half.send;
            stored("SendHalf", send.topic, send.queue, &send.record, payload)
        }
        Command::Redrive(redrive) => stored("Redrive", redrive.to, redrive.to_queue, &redrive.record, payload),
        Command::Deliver(deliver) => of_message("Deliver", &deliver.record, payload),
        Command::Carry(carry) => of_message("Carry", &carry.record, payload),
        Command::DeadLetter(dead) => of_message("DeadLetter", &dead.record, payload),
        Command::Resolve(resolve) => match &resolve.record {
            Some(record) => of_message("Resolve", record, payload),
            None => named("Resolve"),
        },
        Command::Receive(receive) => of_group("Receive", receive.group.0, Some(receive.topic)),
        Command::ReceiveScanned(scanned) => {
            of_group("ReceiveScanned", scanned.receive.group.0, Some(scanned.receive.topic))
        }
        Command::Ack(ack) => counted("Ack", ack.group.0, ack.entries.len()),
        Command::GiveBack(back) => counted("GiveBack", back.group.0, back.entries.len()),
        Command::ChangeInvisible(change) => of_group("ChangeInvisible", change.group.0, None),
        Command::CommitOffset(commit) => of_group("CommitOffset", commit.group.0, Some(commit.topic)),
        Command::ResetOffset(reset) => of_group("ResetOffset", reset.group.0, Some(reset.topic)),
        Command::UpdateOffset(update) => of_group("UpdateOffset", update.group.0, Some(update.topic)),
        Command::Begin(begin) => of_group("Begin", begin.group.0, Some(begin.topic)),
        Command::DropGroup(drop) => of_group("DropGroup", drop.group.0, None),
        Command::PutGroup(put) => with_name("PutGroup", put.name.as_str()),
        Command::PutTopic(put) => with_name("PutTopic", put.name.as_str()),
        Command::DropTopic(drop) => {
            let mut value = named("DropTopic");
            value.insert("topic".into(), drop.topic.0.into());
            value
        }
        Command::Recall(_) => named("Recall"),
        Command::Checked(_) => named("Checked"),
    };
    value.entry("name").or_insert(Value::Null);
    value.into()
}

fn named(command: &str) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("command".into(), command.into());
    value
}

fn with_name(command: &str, name: &str) -> Map<String, Value> {
    let mut value = named(command);
    value.insert("name".into(), name.into());
    value
}

fn of_group(command: &str, group: u32, topic: Option<TopicId>) -> Map<String, Value> {
    let mut value = named(command);
    value.insert("group".into(), group.into());
    if let Some(topic) = topic {
        value.insert("topic".into(), topic.0.into());
    }
    value
}

fn counted(command: &str, group: u32, count: usize) -> Map<String, Value> {
    let mut value = of_group(command, group, None);
    value.insert("messages".into(), count.into());
    value
}

fn stored(command: &str, topic: TopicId, queue: QueueId, record: &Record, payload: u64) -> Map<String, Value> {
    let mut value = of_message(command, record, payload);
    value.insert("topic".into(), topic.0.into());
    value.insert("queue".into(), queue.0.into());
    value
}

/// What a message says of itself, and where it stands.
fn of_message(command: &str, record: &Record, payload: u64) -> Map<String, Value> {
    let mut value = named(command);
    value.insert("position".into(), (payload + u64::from(record.at())).into());
    value.insert("bytes".into(), record.bytes().len().into());
    let Ok(message) = Message::decode(record.bytes().clone()) else {
        value.insert("error".into(), "the message cannot be read".into());
        return value;
    };
    if let Some(topic) = message.topic {
        value.insert("name".into(), topic.name.into());
    }
    if let Some(system) = message.system_properties {
        value.insert("message_id".into(), system.message_id.into());
        value.insert("tag".into(), json!(system.tag));
        value.insert("keys".into(), json!(system.keys));
        value.insert("message_group".into(), json!(system.message_group));
    }
    value
}
