//! Runs the golden scripts of `tests/scripts`: they are the specification of the machine.
//!
//! ```text
//! # What follows, in a sentence.
//! at 0s    receive group=g topic=t max=1 invisible=10s
//! ---
//! deliver q0@0 attempt=1 receipt=0 until=10s
//! ```
//! One command a line, then exactly what comes back: replies, and effects in brackets. A receipt is named by its serial;
//! `receipt=3` is the handle that was given out with it, `receipt=3 forged=q0@7` one that never was. `show …` reads.
//! `scan=q0@5:a,-,*` is what the leader read ahead: offset 5 is of message group `a`, a filter does not want 6, and 7 has no message
//! group. `verdict=q0@3:no` is what a filter says of an older message; `filtered` that there is a filter and no such message.
//! `border` and `floor` are what raft tells the machine. Every script runs twice, the second time through image bytes
//! between any two commands, and must say the same. `UPDATE_SCRIPTS=1 cargo test --test scripts` writes the answers anew;
//! read the difference.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use quorate_broker::machine::{
    Ack, AttemptKey, Batch, Begin, Carry, ChangeInvisible, Checked, Chosen, Command, CommitOffset, DeadLetter, DelayId,
    Delays, Deliver, DropGroup, DropTopic, Effect, GiveBack, GroupId, HalfId, Handle, Machine, MessageGroup, PutGroup,
    PutTopic, QueueId, QueueOffset, Recall, Receive, ReceiveScanned, Record, Redrive, Refusal, Reply, ResetOffset,
    Resolution, Resolve, Retry, Scan, Send, SendDelayed, SendHalf, SendKey, Serial, StartAt, TopicId, TopicKind,
    UpdateOffset, Verdict, Waiting, consumer, tag_hash,
};
use quorate_proto::{
    names::{GroupName, TopicName},
    time::Timestamp,
};
use quorate_raft::Position;

#[test]
fn every_script_says_what_it_said() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let entries = std::fs::read_dir(&folder).expect("the scripts are there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(paths.len() >= 20, "only {} scripts", paths.len());
    let mut different = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("readable");
        let said = run(&path, &text, false);
        assert_eq!(run(&path, &text, true), said, "{}: differs when it goes through images", path.display());
        if said != text {
            different.push(path.file_name().expect("a file").to_owned());
            if std::env::var_os("UPDATE_SCRIPTS").is_some() {
                std::fs::write(&path, said).expect("writable");
            } else {
                println!("=== {} now says\n{said}", path.display());
            }
        }
    }
    assert!(different.is_empty(), "these scripts say something else now: {different:?}");
}

/// Runs a script and returns it with the answers it got.
fn run(path: &Path, text: &str, through_images: bool) -> String {
    let mut stage = Stage { machine: Machine::default(), position: 0, handles: BTreeMap::new() };
    let mut out = String::new();
    let mut in_answers = false;
    for (number, line) in text.lines().enumerate() {
        if line == "---" {
            in_answers = true;
        } else if line.is_empty() || line.starts_with('#') {
            in_answers = false;
            writeln!(out, "{line}").expect("a string takes it");
        } else if let Some(rest) = line.strip_prefix("at ") {
            in_answers = false;
            if through_images {
                stage.go_through_image();
            }
            let answers = stage.act(rest).unwrap_or_else(|why| panic!("{}:{}: {why}", path.display(), number + 1));
            writeln!(out, "{line}\n---\n{}", answers.join("\n")).expect("a string takes it");
        } else {
            assert!(in_answers, "{}:{}: neither a command nor an answer: {line}", path.display(), number + 1);
        }
    }
    out
}

struct Stage {
    machine: Machine,
    /// Where the next batch's payload begins.
    position: u64,
    handles: BTreeMap<u64, Handle>,
}

impl Stage {
    fn go_through_image(&mut self) {
        let image = self.machine.save_image();
        self.machine = Machine::load_image(image.clone()).expect("a saved image loads");
        assert_eq!(self.machine.save_image(), image, "an image is the same after a round trip");
    }

    fn act(&mut self, line: &str) -> Result<Vec<String>, String> {
        let (time, line) = line.split_once(char::is_whitespace).ok_or("a time and a command")?;
        let now = Timestamp(millis(time)?);
        let line = line.trim();
        let Some((count, line)) = line.strip_prefix("repeat ").and_then(|rest| rest.split_once(' ')) else {
            return self.act_once(now, line);
        };
        let mut last = Vec::new();
        for n in 0..count.parse::<u32>().map_err(|error| error.to_string())? {
            last = self.act_once(now, &line.replace("{n}", &n.to_string()))?;
        }
        Ok(last)
    }

    fn act_once(&mut self, now: Timestamp, line: &str) -> Result<Vec<String>, String> {
        let words = Words::parse(line);
        let mut effects = Vec::new();
        match words.verb {
            "show" => return self.show(now, &words),
            "border" => {
                self.machine.border(Position(words.plain(0)?.parse().map_err(|_| "a position")?));
                return Ok(vec!["ok".to_owned()]);
            }
            "floor" => {
                self.machine.floor(Position(words.plain(0)?.parse().map_err(|_| "a position")?), &mut effects);
                return Ok(self.effects(&effects, vec!["ok".to_owned()]));
            }
            _ => {}
        }
        let payload = Batch { now, commands: vec![self.command(&words)?] }.encode();
        let position = Position(self.position);
        self.position += 1000;
        let mut answers = Vec::new();
        for command in Batch::decode(payload).map_err(|error| error.to_string())?.commands {
            let reply = self.machine.apply(now, position, command, &mut effects);
            answers.extend(self.reply(reply));
        }
        Ok(self.effects(&effects, answers))
    }

    fn command(&self, words: &Words<'_>) -> Result<Command, String> {
        Ok(match words.verb {
            "topic" => Command::PutTopic(PutTopic {
                name: TopicName::parse(words.plain(0)?).map_err(|error| error.to_string())?,
                queues: words.number_or("queues", 1)?,
                kind: match words.value("kind").unwrap_or("any") {
                    "normal" => TopicKind::Normal,
                    "fifo" => TopicKind::Fifo,
                    "transaction" => TopicKind::Transaction,
                    "any" => TopicKind::Any,
                    other => return Err(format!("kind {other}")),
                },
                auto: words.flag("auto"),
                replace: words.flag("replace"),
            }),
            "group" => Command::PutGroup(PutGroup {
                name: GroupName::parse(words.plain(0)?).map_err(|error| error.to_string())?,
                fifo: words.flag("fifo"),
                start: match words.value("start") {
                    None | Some("first") => StartAt::First,
                    Some("last") => StartAt::Last,
                    Some(time) => StartAt::Since(Timestamp(millis(time)?)),
                },
                auto: words.flag("auto"),
                replace: words.flag("replace"),
                retry: match words.number_or("attempts", 0)? {
                    0 => None,
                    attempts => {
                        let retry = Retry::new(attempts, Delays::usual(words.flag("fifo")));
                        Some(retry.map_err(|error| error.to_string())?)
                    }
                },
            }),
            "drop-topic" => Command::DropTopic(DropTopic { topic: self.topic(words.plain(0)?)? }),
            "drop-group" => Command::DropGroup(DropGroup { group: self.group(words.plain(0)?)? }),
            "send" => Command::Send(self.send(words)?),
            "delay" => Command::SendDelayed(SendDelayed { due: due(words)?, send: self.send(words)? }),
            "deliver" => Command::Deliver(Deliver { id: delay_id(words)?, record: body(words) }),
            "recall" => Command::Recall(Recall { id: delay_id(words)?, topic: self.topic(words.need("topic")?)? }),
            "carry" if words.value("half").is_some() => {
                Command::Carry(Carry { waiting: Waiting::Half(half_id(words)?), record: body(words) })
            }
            "carry" => Command::Carry(Carry { waiting: Waiting::Delayed(delay_id(words)?), record: body(words) }),
            "half" => {
                let immunity_ms = millis(words.value("immunity").unwrap_or("6s"))?;
                Command::SendHalf(SendHalf { immunity_ms, send: self.send(words)? })
            }
            "end" => Command::Resolve(Resolve {
                id: half_id(words)?,
                topic: self.topic(words.need("topic")?)?,
                resolution: match words.plain(0)? {
                    "commit" => Resolution::Commit,
                    "rollback" => Resolution::Rollback,
                    other => return Err(format!("resolution {other}")),
                },
                record: words.value("body").map(|_| body(words)),
            }),
            "checked" => Command::Checked(Checked {
                id: half_id(words)?,
                checks: words.number_or("checks", 0)?,
                again_ms: words.value("again").map(millis).transpose()?,
            }),
            "dead" => Command::DeadLetter(DeadLetter {
                handle: self.handle(words.need("receipt")?, words)?,
                forwarded: words.flag("forwarded"),
                tag_hash: words.value("tag").map_or(0, tag_hash),
                record: body(words),
            }),
            "redrive" => {
                let (queue, offset) = queue_and_offset(words.plain(0)?)?;
                Command::Redrive(Redrive {
                    from: self.topic(words.need("from")?)?,
                    queue,
                    offset,
                    to: self.topic(words.need("to")?)?,
                    to_queue: QueueId(words.number_or("queue", 0)?),
                    tag_hash: words.value("tag").map_or(0, tag_hash),
                    record: body(words),
                })
            }
            "give-back" => {
                let receipts = words.pairs.iter().filter(|(key, _)| *key == "receipt");
                Command::GiveBack(GiveBack {
                    group: self.group(words.need("group")?)?,
                    invisible_ms: millis(words.value("invisible").unwrap_or("0s"))?,
                    entries: receipts.map(|(_, serial)| self.handle(serial, words)).collect::<Result<_, _>>()?,
                })
            }
            "receive" => self.receive(words)?,
            "ack" => {
                let group = self.group(words.need("group")?)?;
                let receipts = words.pairs.iter().filter(|(key, _)| *key == "receipt");
                let entries = receipts.map(|(_, serial)| self.handle(serial, words)).collect::<Result<_, _>>()?;
                Command::Ack(Ack { group, entries })
            }
            "change" => Command::ChangeInvisible(ChangeInvisible {
                group: self.group(words.need("group")?)?,
                handle: self.handle(words.need("receipt")?, words)?,
                invisible_ms: millis(words.need("invisible")?)?,
                renew: words.flag("renew"),
            }),
            "commit" => {
                let (group, topic, queue, offset) = self.place(words)?;
                Command::CommitOffset(CommitOffset { group, topic, queue, offset })
            }
            "reset" => {
                let (group, topic, queue, offset) = self.place(words)?;
                Command::ResetOffset(ResetOffset { group, topic, queue, offset })
            }
            "update" => {
                let (group, topic, queue, offset) = self.place(words)?;
                Command::UpdateOffset(UpdateOffset { group, topic, queue, offset })
            }
            "begin" => Command::Begin(Begin {
                group: self.group(words.need("group")?)?,
                topic: self.topic(words.need("topic")?)?,
                places: words.values("at").map(queue_and_offset).collect::<Result<_, _>>()?,
            }),
            other => return Err(format!("unknown command {other}")),
        })
    }

    fn receive(&self, words: &Words<'_>) -> Result<Command, String> {
        let receive = Receive {
            group: self.group(words.need("group")?)?,
            topic: self.topic(words.need("topic")?)?,
            max: words.number_or("max", 1)?,
            invisible_ms: millis(words.value("invisible").unwrap_or("10s"))?,
            first_queue: QueueId(words.number_or("first", 0)?),
            attempt: words.value("attempt").map(AttemptKey::new),
            consumer: words.value("by").and_then(consumer),
        };
        let scans: Vec<Scan> = words.values("scan").map(scan).collect::<Result<_, _>>()?;
        let verdicts: Vec<Verdict> = words.values("verdict").map(verdict).collect::<Result<_, _>>()?;
        let filtered = words.flag("filtered") || !verdicts.is_empty();
        if scans.is_empty() && !filtered {
            return Ok(Command::Receive(receive));
        }
        Ok(Command::ReceiveScanned(ReceiveScanned { receive, scans, verdicts: filtered.then_some(verdicts) }))
    }

    fn send(&self, words: &Words<'_>) -> Result<Send, String> {
        let topic = self.topic(words.need("topic")?)?;
        let record = body(words);
        Ok(Send {
            topic,
            queue: QueueId(words.number_or("queue", 0)?),
            key: SendKey::new(topic, words.value("client").unwrap_or("c"), words.need("id")?),
            body_crc: crc32c::crc32c(record.bytes()),
            tag_hash: words.value("tag").map_or(0, tag_hash),
            record,
        })
    }

    fn place(&self, words: &Words<'_>) -> Result<(GroupId, TopicId, QueueId, QueueOffset), String> {
        let (queue, offset) = queue_and_offset(words.need("to")?)?;
        Ok((self.group(words.need("group")?)?, self.topic(words.need("topic")?)?, queue, offset))
    }

    /// A topic by its name, or by its number: `#3`.
    fn topic(&self, name: &str) -> Result<TopicId, String> {
        if let Some(number) = name.strip_prefix('#') {
            return Ok(TopicId(number.parse().map_err(|_| "a topic number")?));
        }
        let parsed = TopicName::parse(name).map_err(|error| error.to_string())?;
        Ok(self.machine.topic(&parsed).ok_or_else(|| format!("no topic {name}"))?.id())
    }

    fn group(&self, name: &str) -> Result<GroupId, String> {
        if let Some(number) = name.strip_prefix('#') {
            return Ok(GroupId(number.parse().map_err(|_| "a group number")?));
        }
        let parsed = GroupName::parse(name).map_err(|error| error.to_string())?;
        Ok(self.machine.group(&parsed).ok_or_else(|| format!("no group {name}"))?.id())
    }

    fn handle(&self, serial: &str, words: &Words<'_>) -> Result<Handle, String> {
        let serial = serial.parse().map_err(|_| "a receipt number")?;
        match words.value("forged") {
            Some(place) => {
                let (queue, offset) = queue_and_offset(place)?;
                let topic = self.topic(words.value("topic").unwrap_or("#0"))?;
                let group = self.group(words.need("group")?)?;
                Ok(Handle { topic, group, queue, offset, serial: Serial(serial), attempt: 1 })
            }
            None => self.handles.get(&serial).copied().ok_or_else(|| format!("receipt {serial} was never given out")),
        }
    }

    fn reply(&mut self, reply: Reply) -> Vec<String> {
        match reply {
            Reply::Sent { queue, offset, duplicate } => {
                vec![format!("sent q{queue}@{offset}{}", if duplicate { " duplicate" } else { "" })]
            }
            Reply::Delayed { id, duplicate } => {
                vec![format!("delayed {}{}", delayed(id), if duplicate { " duplicate" } else { "" })]
            }
            Reply::Half { id, duplicate } => {
                vec![format!("half {}{}", id.0, if duplicate { " duplicate" } else { "" })]
            }
            Reply::Received { deliveries } if deliveries.is_empty() => vec!["nothing".to_owned()],
            Reply::Received { deliveries } => deliveries
                .iter()
                .map(|delivery| {
                    self.handles.insert(delivery.handle.serial.0, delivery.handle);
                    assert_eq!(
                        (delivery.queue, delivery.offset, delivery.attempt),
                        (delivery.handle.queue, delivery.handle.offset, delivery.handle.attempt)
                    );
                    format!(
                        "deliver q{}@{} attempt={} receipt={} until={}",
                        delivery.queue,
                        delivery.offset,
                        delivery.attempt,
                        delivery.handle.serial,
                        time(delivery.visible_at)
                    )
                })
                .collect(),
            Reply::Acked { results } => results
                .into_iter()
                .map(|result| result.map_or_else(|refusal| refused(&refusal), |()| "acked".to_owned()))
                .collect(),
            Reply::Changed { handle, visible_at } => {
                self.handles.insert(handle.serial.0, handle);
                vec![format!("changed receipt={} until={}", handle.serial, time(visible_at))]
            }
            Reply::Topic { id } => vec![format!("topic #{id}")],
            Reply::Group { id } => vec![format!("group #{id}")],
            Reply::Done => vec!["done".to_owned()],
            Reply::Refused(refusal) => vec![refused(&refusal)],
        }
    }

    fn effects(&self, effects: &[Effect], mut answers: Vec<String>) -> Vec<String> {
        answers.extend(effects.iter().map(|effect| match effect {
            Effect::Append { topic, queue, offset, pointer } => format!(
                "[append #{topic} q{queue}@{offset} position={} size={} tag={:x}]",
                pointer.position, pointer.size, pointer.tag_hash
            ),
            Effect::Visible { group, topic } => format!("[visible topic #{topic} group #{group}]"),
            Effect::Scheduled { at } => format!("[scheduled {}]", time(*at)),
            Effect::TopicsChanged => "[topics changed]".to_owned(),
            Effect::TopicDropped { topic } => format!("[topic #{topic} dropped]"),
            Effect::MinMoved { topic, queue, min } => format!("[min #{topic} q{queue}@{min}]"),
        }));
        answers
    }

    fn show(&self, now: Timestamp, words: &Words<'_>) -> Result<Vec<String>, String> {
        let machine = &self.machine;
        let group_and_topic =
            || Ok::<_, String>((self.group(words.need("group")?)?, self.topic(words.need("topic")?)?));
        Ok(vec![match words.plain(0)? {
            "ready" => {
                let (group, topic) = group_and_topic()?;
                let timeout = machine.next_timeout(group, topic).map_or("never".to_owned(), time);
                format!("ready {} timeout={timeout}", machine.ready(group, topic, now))
            }
            "again" => {
                let (group, topic) = group_and_topic()?;
                let places = machine.again(group, topic, QueueId(words.number_or("first", 0)?), now, 100);
                let places = places.into_iter().map(|(queue, offset)| format!(" q{queue}@{offset}"));
                format!("again:{}", places.collect::<String>())
            }
            "locked" => {
                let (group, topic) = group_and_topic()?;
                let (queue, message_group) = (QueueId(words.number_or("queue", 0)?), MessageGroup::of(words.plain(1)?));
                format!("locked: {}", machine.is_locked(group, topic, queue, message_group, now))
            }
            "cursor" => {
                let (group, topic) = group_and_topic()?;
                let cursor = machine.cursor(group, topic, QueueId(words.number_or("queue", 0)?));
                cursor.map_or("none".to_owned(), |cursor| {
                    format!(
                        "next={} end={} flight-room={} waiting-room={}",
                        cursor.next, cursor.end, cursor.flight_room, cursor.waiting_room
                    )
                })
            }
            "attempt" => {
                let (group, topic) = group_and_topic()?;
                let key = AttemptKey::new(words.plain(1)?);
                format!("in flight: {}", machine.attempt_in_flight(group, topic, key, now))
            }
            "progress" => {
                let (group, topic) = group_and_topic()?;
                match machine.progress(group, topic, QueueId(words.number_or("queue", 0)?)) {
                    Some(p) => {
                        format!(
                            "committed={} next={} in-flight={} behind={}",
                            p.committed, p.next, p.in_flight, p.behind
                        )
                    }
                    None => "none".to_owned(),
                }
            }
            "lag" => {
                let (group, topic) = group_and_topic()?;
                let queue = QueueId(words.number_or("queue", 0)?);
                let dead = machine.dead(group, topic, queue);
                let delayed = machine.delayed_by_queue(|of| of == topic).get(&(topic, queue)).copied().unwrap_or(0);
                machine.lag(group, topic, queue, now).map_or("none".to_owned(), |lag| {
                    let (ready, waiting, in_flight) = (lag.ready, lag.waiting, lag.in_flight);
                    format!("ready={ready} waiting={waiting} in-flight={in_flight} delayed={delayed} dead={dead}")
                })
            }
            "move" => {
                let (group, topic, queue, offset) = self.place(words)?;
                machine.move_to(group, topic, queue, offset).map_or("none".to_owned(), |to| {
                    format!("skipped={} again={} forgotten={}", to.skipped, to.again, to.forgotten)
                })
            }
            "place" => {
                let (group, topic) = group_and_topic()?;
                let place = machine.place(group, topic, QueueId(words.number_or("queue", 0)?));
                place.map_or("none".to_owned(), |offset| format!("place {offset}"))
            }
            "queue" => {
                let topic = self.topic(words.need("topic")?)?;
                let range = machine.queue_range(topic, QueueId(words.number_or("queue", 0)?));
                range.map_or("none".to_owned(), |(min, end)| format!("min={min} end={end}"))
            }
            "dedup" => {
                let stats = machine.dedup_stats();
                let (window, duplicates) = (time(Timestamp(stats.window_ms)), stats.duplicates);
                format!(
                    "entries={} window={window} duplicates={duplicates} collisions={}",
                    stats.entries, stats.collisions
                )
            }
            "totals" => {
                let totals = machine.totals();
                format!("sent={} delivered={} acked={}", totals.sent, totals.delivered, totals.acked)
            }
            "older" => {
                let border = machine.border_at(Timestamp(millis(words.plain(1)?)?));
                border.map_or("none".to_owned(), |border| format!("border {border}"))
            }
            "delayed" => {
                let stats = machine.delay_stats();
                let next = stats.next_due.map_or("never".to_owned(), time);
                format!("pending={} bytes={} next={next} lost={}", stats.pending, stats.bytes, stats.lost)
            }
            "due" => some(machine.due(now).map(|(id, message)| {
                format!("{} #{} q{} position={}", delayed(id), message.topic, message.queue, message.pointer.position)
            })),
            "waiting" => {
                let after = match words.value("after-half") {
                    Some(number) => Some(Waiting::Half(HalfId(number.parse().map_err(|_| "a number")?))),
                    None => None,
                };
                some(machine.waiting(after).map(|(waiting, pointer)| {
                    let name = match waiting {
                        Waiting::Delayed(id) => delayed(id),
                        Waiting::Half(id) => format!("half={}", id.0),
                    };
                    format!("{name} position={} size={}", pointer.position, pointer.size)
                }))
            }
            "halves" => some(machine.halves(None).map(|(id, half)| {
                let next = half.check_at.map_or("set aside".to_owned(), |at| format!("next={}", time(at)));
                format!(
                    "half={} #{} q{} sent={} checks={} {next}",
                    id.0,
                    half.topic,
                    half.queue,
                    time(half.sent_at),
                    half.checks
                )
            })),
            "transactions" => {
                let stats = machine.transaction_stats();
                format!(
                    "pending={} set-aside={} bytes={} next={} lost={}",
                    stats.pending, stats.set_aside, stats.bytes, stats.next_number, stats.lost
                )
            }
            "to-check" => some(machine.topics_to_check(now).flat_map(|topic| {
                let halves = machine.to_check(topic, now);
                halves.map(move |(id, half)| format!("half={} #{topic} checks={}", id.0, half.checks))
            })),
            "exhausted" => {
                some(machine.exhausted((GroupId(0), TopicId(0)), now, 1000, 1000).0.into_iter().map(|dead| {
                    let Handle { topic, group, queue, offset, serial, attempt } = dead.handle;
                    let by = dead.consumer.map_or(String::new(), |consumer| format!(" by={consumer}"));
                    format!("group #{group} topic #{topic} q{queue}@{offset} attempt={attempt} receipt={serial}{by}")
                }))
            }
            "redriven" => {
                let (queue, topic) = (QueueId(words.number_or("queue", 0)?), self.topic(words.need("topic")?)?);
                format!("redriven {}", machine.redriven(topic, queue))
            }
            "below" => {
                let border = machine.border_below(Position(words.plain(1)?.parse().map_err(|_| "a position")?));
                border.map_or("none".to_owned(), |border| format!("border {border}"))
            }
            "now" => time(machine.now()),
            other => return Err(format!("cannot show {other}")),
        }])
    }
}

fn body(words: &Words<'_>) -> Record {
    bytes::Bytes::from(words.value("body").unwrap_or("x").to_owned()).into()
}

fn due(words: &Words<'_>) -> Result<Timestamp, String> {
    millis(words.need("due")?).map(Timestamp)
}

/// A delayed message by its due time and number: `due=10s number=0`.
fn delay_id(words: &Words<'_>) -> Result<DelayId, String> {
    let number = words.need("number")?.parse().map_err(|_| "a number")?;
    Ok(DelayId { due: due(words)?, number })
}

/// A half message by its number: `half=0`.
fn half_id(words: &Words<'_>) -> Result<HalfId, String> {
    words.need("half")?.parse().map(HalfId).map_err(|_| "a number".to_owned())
}

fn delayed(id: DelayId) -> String {
    format!("due={} number={}", time(id.due), id.number)
}

fn some(lines: impl Iterator<Item = String>) -> String {
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() { "none".to_owned() } else { lines.join("\n") }
}

fn refused(refusal: &Refusal) -> String {
    format!("refused {refusal:?}")
}

/// A line in pieces: `verb plain key=value flag`.
struct Words<'a> {
    verb: &'a str,
    plain: Vec<&'a str>,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let (pairs, plain): (Vec<_>, Vec<_>) = words.partition(|word| word.contains('='));
        Self { verb, plain, pairs: pairs.into_iter().filter_map(|pair| pair.split_once('=')).collect() }
    }

    fn plain(&self, number: usize) -> Result<&'a str, String> {
        self.plain.get(number).copied().ok_or_else(|| format!("{} needs more words", self.verb))
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    fn values(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(name, _)| *name == key).map(|(_, value)| *value)
    }

    fn need(&self, key: &str) -> Result<&'a str, String> {
        self.value(key).ok_or_else(|| format!("{} needs {key}=", self.verb))
    }

    fn number_or(&self, key: &str, default: u16) -> Result<u16, String> {
        self.value(key).map_or(Ok(default), |value| value.parse().map_err(|_| format!("{key}={value}")))
    }

    fn flag(&self, name: &str) -> bool {
        self.plain.contains(&name)
    }
}

/// `q0@5:a,-,*`: one word per offset, or `ax100` for a hundred of them.
fn scan(text: &str) -> Result<Scan, String> {
    let (place, groups) = text.split_once(':').ok_or("a scan is q0@5:a,-,*")?;
    let (queue, from) = queue_and_offset(place)?;
    let mut offset = from;
    let mut chosen = Vec::new();
    for word in groups.split(',').filter(|word| !word.is_empty()) {
        let (name, times) =
            word.split_once('x').and_then(|(name, times)| Some((name, times.parse().ok()?))).unwrap_or((word, 1));
        for _ in 0..times {
            let group = if name == "*" { MessageGroup::NONE } else { MessageGroup::of(name) };
            if name != "-" {
                chosen.push(Chosen { offset, group });
            }
            offset.0 += 1;
        }
    }
    Ok(Scan { queue, from, end: offset, chosen })
}

/// `q0@3:yes` or `q0@3:no`.
fn verdict(text: &str) -> Result<Verdict, String> {
    let (place, word) = text.split_once(':').ok_or("a verdict is q0@3:no")?;
    let (queue, offset) = queue_and_offset(place)?;
    match word {
        "yes" => Ok(Verdict { queue, offset, wanted: true }),
        "no" => Ok(Verdict { queue, offset, wanted: false }),
        other => Err(format!("verdict {other}")),
    }
}

fn queue_and_offset(text: &str) -> Result<(QueueId, QueueOffset), String> {
    let parts = text.strip_prefix('q').and_then(|rest| rest.split_once('@'));
    let (queue, offset) = parts.ok_or_else(|| format!("{text} is not q0@0"))?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text} is not a number"));
    Ok((QueueId(number(queue)? as u16), QueueOffset(number(offset)?)))
}

fn millis(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{text} is not a time")),
    };
    Ok(digits.parse::<u64>().map_err(|_| format!("{text} is not a time"))? * factor)
}

fn time(at: Timestamp) -> String {
    if at.0.is_multiple_of(1000) { format!("{}s", at.0 / 1000) } else { format!("{}ms", at.0) }
}
