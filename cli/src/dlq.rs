//! `quorate dlq …`: messages that nobody gets again, and once more into a topic.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use quorate_broker::config::units::parse_duration;
use quorate_client::{
    Admin, AdminError, DeadLetter, DeadLetterPlace, DeadLetterTopic, Doors, Redriven, ShowDeadLettersRequest, code_name,
};
use serde_json::{Value, json};

use crate::output::{Answer, note};

/// Dead letters of one call to redrive some.
const BATCH: u32 = 64;
/// How often progress is told.
const TELL: Duration = Duration::from_secs(1);
/// What the broker says of what is done.
const OK: i32 = 20000;
/// The outcome of a dead letter that was not redriven though it should have been.
const FAILED: &str = "failed";

/// Whether an answer tells of a dead letter that was not redriven though it should have been.
pub fn has_failed(answer: &Answer) -> bool {
    answer.json["failed"].as_u64().is_some_and(|count| count > 0)
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List the consumer groups that have dead letters
    List,
    /// Show dead letters of a consumer group, in the order in which they died
    Show {
        /// The consumer group
        group: String,
        #[command(flatten)]
        wanted: Wanted,
        /// Most of them
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
        max: u64,
    },
    /// Store dead letters in their topics again, each at most once: done again after it stopped half-way, it goes on
    Redrive {
        /// The consumer group
        group: String,
        #[command(flatten)]
        wanted: Wanted,
        /// Into this topic rather than where each came from
        #[arg(long)]
        to: Option<String>,
        /// Most of them
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        max: Option<u64>,
        /// Most of them per second
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        rate: u32,
        /// Say what would be redriven and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which dead letters.
#[derive(Args, Debug)]
pub struct Wanted {
    /// Those only that came from this topic
    #[arg(long)]
    topic: Option<String>,
    /// Those only with this key
    #[arg(long)]
    key: Option<String>,
    /// Those only with this tag
    #[arg(long)]
    tag: Option<String>,
    /// The message of this id only
    #[arg(long)]
    id: Option<String>,
    /// Those only that died within this time: 2h
    #[arg(long, value_parser = parse_duration)]
    since: Option<Duration>,
    /// Those only that died longer ago than this: 10m
    #[arg(long, value_parser = parse_duration)]
    until: Option<Duration>,
}

impl Wanted {
    fn request(&self, group: &str) -> ShowDeadLettersRequest {
        let now = i64::try_from(Doors::system().clock.now().0).unwrap_or(i64::MAX);
        let ago = |duration: &Option<Duration>| {
            duration.map(|ago| now.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)))
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        ShowDeadLettersRequest {
            group: group.to_owned(),
            topic: text(&self.topic),
            key: text(&self.key),
            tag: text(&self.tag),
            message_id: text(&self.id),
            since_ms: ago(&self.since),
            until_ms: ago(&self.until),
            after: None,
            max: 0,
        }
    }
}

/// What became of one dead letter.
struct Done {
    letter: DeadLetter,
    state: &'static str,
    detail: String,
    result: Option<Redriven>,
}

impl DlqCommand {
    /// What it was for, to be said when it fails.
    pub fn purpose(&self) -> String {
        match self {
            Self::List => "the dead letters cannot be listed".to_owned(),
            Self::Show { group, .. } => format!("the dead letters of {group} cannot be shown"),
            Self::Redrive { group, .. } => format!("the dead letters of {group} were not redriven to the end"),
        }
    }

    /// Does it.
    pub async fn run(&self, admin: &Admin) -> Result<Answer, AdminError> {
        match self {
            Self::List => Ok(list(&admin.list_dead_letters().await?)),
            Self::Show { group, wanted, max } => {
                let mut letters = Letters::new(admin, wanted.request(group), *max);
                let mut found = Vec::new();
                while let Some(some) = letters.next().await? {
                    found.extend(some);
                }
                Ok(show(&found))
            }
            Self::Redrive { group, wanted, to, max, rate, dry_run } => {
                let letters = Letters::new(admin, wanted.request(group), u64::MAX);
                let redrive = Redrive { admin, group, to: to.as_deref(), rate: *rate, max: max.unwrap_or(u64::MAX) };
                redrive.run(letters, *dry_run).await
            }
        }
    }
}

/// Walks over the dead letters that are wanted.
struct Letters<'a> {
    admin: &'a Admin,
    request: ShowDeadLettersRequest,
    left: u64,
    ended: bool,
}

impl<'a> Letters<'a> {
    fn new(admin: &'a Admin, request: ShowDeadLettersRequest, max: u64) -> Self {
        Self { admin, request, left: max, ended: false }
    }

    /// The next ones, perhaps none though there are more behind. `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<DeadLetter>>, AdminError> {
        if self.ended || self.left == 0 {
            return Ok(None);
        }
        self.request.max = u32::try_from(self.left).unwrap_or(u32::MAX).min(BATCH);
        let found = self.admin.show_dead_letters(self.request.clone()).await?;
        self.ended = !found.more;
        self.request.after = found.last.or(self.request.after);
        self.left = self.left.saturating_sub(found.letters.len() as u64);
        Ok(Some(found.letters))
    }
}

/// A redrive with what it keeps to.
struct Redrive<'a> {
    admin: &'a Admin,
    group: &'a str,
    to: Option<&'a str>,
    rate: u32,
    max: u64,
}

impl Redrive<'_> {
    async fn run(&self, mut letters: Letters<'_>, dry_run: bool) -> Result<Answer, AdminError> {
        let (mut done, mut before) = (Vec::new(), 0_u64);
        let (began, mut told) = (Instant::now(), Instant::now());
        let step = (self.rate / 4).clamp(1, BATCH) as usize;
        while let Some(found) = letters.next().await.inspect_err(|_| stopped(&done))? {
            let (redriven, mut wanted): (Vec<_>, Vec<_>) = found.into_iter().partition(|letter| letter.redriven);
            before += redriven.len() as u64;
            wanted.truncate(usize::try_from(self.max - done.len() as u64).unwrap_or(usize::MAX));
            for some in wanted.chunks(step) {
                if dry_run {
                    done.extend(some.iter().map(|letter| would(letter, self.to)));
                    continue;
                }
                let places: Vec<DeadLetterPlace> = some.iter().filter_map(|letter| letter.place).collect();
                let results = self.admin.redrive_dead_letters(self.group, places, self.to).await;
                let results = results.inspect_err(|_| stopped(&done))?;
                done.extend(some.iter().zip(results).map(|(letter, result)| became(letter, result)));
                if told.elapsed() >= TELL {
                    told = Instant::now();
                    note(format!("{} of the dead letters of {} looked at", done.len(), self.group));
                }
                let due = Duration::from_secs_f64(done.len() as f64 / f64::from(self.rate));
                tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
            }
            if done.len() as u64 >= self.max {
                break;
            }
        }
        let count = |state: &str| done.iter().filter(|done| done.state == state).count();
        let failed = count(FAILED);
        note(match dry_run {
            true => format!("{} would be redriven; {before} were before", done.len()),
            false => format!("{} redriven, {failed} failed; {before} were before", count("redriven")),
        });
        Ok(outcomes(&done, before, dry_run))
    }
}

/// Says what was done before an error.
fn stopped(done: &[Done]) {
    for Done { letter, state, detail, .. } in done {
        note(format!("{} {state} {detail}", letter.message_id));
    }
    note("the same command again goes on from here; nothing is sent twice");
}

fn would(letter: &DeadLetter, to: Option<&str>) -> Done {
    let detail = to.map_or_else(|| letter.topic.clone(), str::to_owned);
    Done { letter: letter.clone(), state: "would be redriven", detail, result: None }
}

fn became(letter: &DeadLetter, result: Redriven) -> Done {
    let outcome = result.outcome.clone().unwrap_or_default();
    let (state, detail) = match outcome.code {
        OK => {
            let place = result.place.unwrap_or_default();
            ("redriven", format!("{} queue {} offset {}", result.topic, place.queue, place.offset))
        }
        _ if result.before => ("redriven before", String::new()),
        code => (FAILED, format!("{} {}: {}", code, code_name(code), outcome.message)),
    };
    Done { letter: letter.clone(), state, detail, result: Some(result) }
}

fn outcomes(done: &[Done], before: u64, dry_run: bool) -> Answer {
    let row = |done: &Done| {
        let place = done.letter.place.unwrap_or_default();
        vec![place.offset.to_string(), done.letter.message_id.clone(), done.state.to_owned(), done.detail.clone()]
    };
    let object = |done: &Done| -> Value {
        let place = done.result.as_ref().and_then(|result| result.place);
        json!({
            "letter": object(&done.letter),
            "state": done.state,
            "topic": done.result.as_ref().map(|result| &result.topic),
            "queue": place.map(|place| place.queue),
            "offset": place.map(|place| place.offset),
            "detail": done.detail,
        })
    };
    Answer {
        header: vec!["DEAD LETTER", "MESSAGE ID", "OUTCOME", "DETAIL"],
        rows: done.iter().map(row).collect(),
        json: json!({
            "outcomes": done.iter().map(object).collect::<Vec<_>>(),
            "redriven_before": before,
            "failed": done.iter().filter(|done| done.state == FAILED).count(),
            "dry_run": dry_run,
        }),
    }
}

fn list(topics: &[DeadLetterTopic]) -> Answer {
    let row = |topic: &DeadLetterTopic| {
        let left = topic.letters.saturating_sub(topic.redriven);
        vec![topic.group.clone(), left.to_string(), topic.redriven.to_string(), topic.topic.clone()]
    };
    let object = |topic: &DeadLetterTopic| -> Value {
        json!({
            "group": topic.group,
            "topic": topic.topic,
            "dead_letters": topic.letters,
            "redriven": topic.redriven,
        })
    };
    Answer {
        header: vec!["GROUP", "DEAD LETTERS", "REDRIVEN", "TOPIC"],
        rows: topics.iter().map(row).collect(),
        json: topics.iter().map(object).collect(),
    }
}

fn object(letter: &DeadLetter) -> Value {
    let place = letter.place.unwrap_or_default();
    json!({
        "queue": place.queue,
        "offset": place.offset,
        "message_id": letter.message_id,
        "keys": letter.keys,
        "tag": letter.tag,
        "body_bytes": letter.body_bytes,
        "died_ms": letter.died_ms,
        "redriven": letter.redriven,
        "origin": {
            "topic": letter.topic,
            "queue": letter.queue,
            "offset": letter.offset,
            "sent_ms": letter.sent_ms,
        },
        "attempts": letter.attempts,
        "reason": letter.reason,
        "last_consumer": letter.consumer,
    })
}

fn show(letters: &[DeadLetter]) -> Answer {
    let now_ms = i64::try_from(Doors::system().clock.now().0).unwrap_or(i64::MAX);
    let row = |letter: &DeadLetter| {
        let origin = match letter.topic.as_str() {
            "" => "sent here".to_owned(),
            topic => format!("{topic} queue {} offset {}", letter.queue, letter.offset),
        };
        vec![
            letter.place.unwrap_or_default().offset.to_string(),
            letter.message_id.clone(),
            letter.keys.join(" "),
            letter.tag.clone(),
            origin,
            letter.attempts.to_string(),
            letter.reason.clone(),
            letter.consumer.clone(),
            format!("{} s", now_ms.saturating_sub(letter.died_ms).max(0) / 1000),
            if letter.redriven { "yes" } else { "no" }.to_owned(),
        ]
    };
    Answer {
        header: vec![
            "OFFSET",
            "MESSAGE ID",
            "KEYS",
            "TAG",
            "FROM",
            "ATTEMPTS",
            "REASON",
            "LAST CONSUMER",
            "DEAD FOR",
            "REDRIVEN",
        ],
        rows: letters.iter().map(row).collect(),
        json: letters.iter().map(object).collect(),
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::Outcome;

    use super::*;

    fn letter(offset: u64) -> DeadLetter {
        let place = Some(DeadLetterPlace { queue: 0, offset });
        DeadLetter { place, message_id: format!("ID{offset}"), topic: "orders".into(), ..DeadLetter::default() }
    }

    #[test]
    fn every_dead_letter_says_what_became_of_it() {
        let outcome = |code, message: &str| Some(Outcome { code, message: message.into() });
        let moved = Redriven {
            outcome: outcome(20000, "OK"),
            topic: "orders".into(),
            place: Some(DeadLetterPlace { queue: 3, offset: 9 }),
            ..Redriven::default()
        };
        let before = Redriven { outcome: outcome(42800, "before"), before: true, ..Redriven::default() };
        let failed = Redriven { outcome: outcome(40402, "no topic"), ..Redriven::default() };
        let done = [(0, moved), (1, before), (2, failed)].map(|(offset, result)| became(&letter(offset), result));
        let answer = outcomes(&done, 4, false);
        let states: Vec<&str> = answer.rows.iter().map(|row| row[2].as_str()).collect();
        assert_eq!(states, ["redriven", "redriven before", "failed"]);
        assert_eq!(answer.rows[0][3], "orders queue 3 offset 9");
        assert!(answer.rows[2][3].contains("40402") && answer.rows[2][3].contains("no topic"), "{:?}", answer.rows[2]);
        assert_eq!((&answer.json["outcomes"][0]["offset"], &answer.json["redriven_before"]), (&json!(9), &json!(4)));
        assert!(has_failed(&answer) && !has_failed(&outcomes(&done[..2], 4, false)));
        assert_eq!(would(&letter(1), Some("repair")).detail, "repair");
    }

    #[test]
    fn listings_have_a_cell_for_every_column() {
        let topic = DeadLetterTopic { group: "g".into(), topic: "%DLQ%g".into(), letters: 5, redriven: 2 };
        let groups = list(&[topic]);
        assert_eq!(groups.rows[0], ["g", "3", "2", "%DLQ%g"]);
        let shown = show(&[letter(7), DeadLetter::default()]);
        assert!(shown.rows.iter().all(|row| row.len() == shown.header.len()));
        assert_eq!((shown.rows[0][4].as_str(), shown.rows[1][4].as_str()), ("orders queue 0 offset 0", "sent here"));
    }
}
