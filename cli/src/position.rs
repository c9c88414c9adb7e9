//! `quorate group describe` and `quorate group reset-offset`: where a consumer group stands, and somewhere else.

use clap::Args;
use quorate_client::{
    Admin, AdminError, DescribeGroupResponse, GroupConsumer, GroupQueue, GroupTopic, ResetOffsetsRequest, ResetPlace,
    ResetQueue, StartAt,
};
use serde_json::{Value, json};

use crate::{
    moment::{Moment, parse_moment},
    output::{Answer, note, utc},
};

/// Which place, and whether to go there.
#[derive(Args, Debug)]
pub struct Reset {
    /// The consumer group
    pub group: String,
    /// The topic
    #[arg(long)]
    topic: String,
    #[command(flatten)]
    to: To,
    /// Show what would be skipped and what would come again, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct To {
    /// To the first message stored then or later: 2h (ago) or 2026-11-24T22:13:20 (UTC)
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    to_time: Option<Moment>,
    /// To the first message kept
    #[arg(long)]
    first: bool,
    /// Behind the last message
    #[arg(long)]
    last: bool,
    /// Exactly there, in these queues only: 0=1500 (may be given more than once)
    #[arg(long, value_name = "QUEUE=OFFSET", value_parser = parse_place)]
    to_offset: Vec<ResetPlace>,
}

fn parse_place(text: &str) -> Result<ResetPlace, String> {
    let numbers = text.split_once('=').and_then(|(queue, offset)| Some((queue.parse().ok()?, offset.parse().ok()?)));
    let (queue, offset) = numbers.ok_or_else(|| format!("{text} is no place; write QUEUE=OFFSET, such as 0=1500"))?;
    Ok(ResetPlace { queue, offset })
}

impl Reset {
    fn request(&self) -> ResetOffsetsRequest {
        let (to, to_ms) = match (self.to.to_time, self.to.first, self.to.last) {
            (Some(moment), _, _) => (StartAt::Since, moment.ms()),
            (None, true, _) => (StartAt::First, 0),
            (None, false, true) => (StartAt::Last, 0),
            (None, false, false) => (StartAt::Unspecified, 0),
        };
        ResetOffsetsRequest {
            group: self.group.clone(),
            topic: self.topic.clone(),
            places: self.to.to_offset.clone(),
            to: to.into(),
            to_ms,
            dry_run: self.dry_run,
        }
    }

    /// Does it.
    pub async fn run(&self, admin: &Admin) -> Result<Answer, AdminError> {
        let queues = admin.reset_offsets(self.request()).await?;
        if self.dry_run {
            note("this is what would happen; nothing was changed");
        }
        Ok(moved(&self.topic, self.dry_run, &queues))
    }
}

fn moved(topic: &str, dry_run: bool, queues: &[ResetQueue]) -> Answer {
    let row = |queue: &ResetQueue| {
        let ResetQueue { id, from, to, skipped, again, forgotten } = queue;
        let mut row = vec![topic.to_owned(), id.to_string()];
        row.extend([from, to, skipped, again, forgotten].map(u64::to_string));
        row
    };
    let object = |queue: &ResetQueue| {
        let ResetQueue { id, from, to, skipped, again, forgotten } = queue;
        json!({ "queue": id, "from": from, "to": to, "skipped": skipped, "again": again, "forgotten": forgotten })
    };
    Answer {
        header: vec!["TOPIC", "QUEUE", "FROM", "TO", "SKIPPED", "AGAIN", "FORGOTTEN"],
        rows: queues.iter().map(row).collect(),
        json: json!({
            "topic": topic,
            "dry_run": dry_run,
            "queues": queues.iter().map(object).collect::<Vec<_>>(),
        }),
    }
}

/// Where a group stands.
pub async fn describe(admin: &Admin, name: &str) -> Result<Answer, AdminError> {
    let group = admin.describe_group(name).await?;
    for topic in group.topics.iter().filter(|topic| topic.differ) {
        note(differing(topic));
    }
    Ok(described(name, &group))
}

/// What the consumers of a topic do not agree about.
fn differing(topic: &GroupTopic) -> String {
    let receiving = topic.consumers.iter().filter(|consumer| !consumer.pulls);
    let filters: Vec<String> =
        receiving.map(|consumer| format!("{} filters by {}", consumer.client_id, consumer.filter)).collect();
    format!("topic {}: what one consumer does not want, none of them gets: {}", topic.name, filters.join("; "))
}

/// How old a message is, in the largest unit that says something.
fn age(now_ms: i64, stored_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(stored_ms).max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn described(name: &str, group: &DescribeGroupResponse) -> Answer {
    let rows = group.topics.iter().flat_map(|topic| {
        let consumers = topic.consumers.len().to_string();
        let row = move |queue: &GroupQueue| {
            let mut row = vec![topic.name.clone(), queue.id.to_string()];
            let GroupQueue { committed, max, ready, waiting, in_flight, delayed, dead, .. } = queue;
            row.extend([committed, max, ready, waiting, in_flight, delayed, dead].map(u64::to_string));
            row.push(queue.oldest_ms.map_or_else(|| "-".to_owned(), |stored| age(group.now_ms, stored)));
            row.push(consumers.clone());
            row
        };
        topic.queues.iter().map(row).collect::<Vec<_>>()
    });
    Answer {
        header: vec![
            "TOPIC",
            "QUEUE",
            "DONE TO",
            "END",
            "READY",
            "WAITING",
            "IN FLIGHT",
            "DELAYED",
            "DEAD",
            "OLDEST",
            "CONSUMERS",
        ],
        rows: rows.collect(),
        json: json!({
            "group": name,
            "fifo": group.group.as_ref().map(|group| group.fifo),
            "from": group.group.as_ref().map(|group| start(group.start(), group.start_ms)),
            "now_ms": group.now_ms,
            "topics": group.topics.iter().map(|one| topic(one, group.now_ms)).collect::<Vec<_>>(),
        }),
    }
}

fn topic(topic: &GroupTopic, now_ms: i64) -> Value {
    let queue = |queue: &GroupQueue| {
        json!({
            "id": queue.id,
            "min": queue.min,
            "max": queue.max,
            "committed": queue.committed,
            "lag": queue.ready + queue.waiting + queue.in_flight,
            "ready": queue.ready,
            "waiting": queue.waiting,
            "in_flight": queue.in_flight,
            "delayed": queue.delayed,
            "dead": queue.dead,
            "oldest_ms": queue.oldest_ms,
            "oldest_age_ms": queue.oldest_ms.map(|stored| now_ms.saturating_sub(stored).max(0)),
        })
    };
    let consumer = |consumer: &GroupConsumer| {
        json!({
            "client_id": consumer.client_id,
            "pulls": consumer.pulls,
            "filter": consumer.filter,
            "silent_ms": consumer.silent_ms,
        })
    };
    json!({
        "name": topic.name,
        "filters_differ": topic.differ,
        "queues": topic.queues.iter().map(queue).collect::<Vec<_>>(),
        "consumers": topic.consumers.iter().map(consumer).collect::<Vec<_>>(),
    })
}

/// As `--from` takes it.
pub fn start(start: StartAt, since_ms: i64) -> String {
    match start {
        StartAt::Unspecified | StartAt::First => "first".to_owned(),
        StartAt::Last => "last".to_owned(),
        StartAt::Since => utc(since_ms).replace(' ', "T"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_queue_and_an_offset() {
        assert_eq!(parse_place("3=1500"), Ok(ResetPlace { queue: 3, offset: 1500 }));
        for text in ["3", "3=", "=3", "-1=3", "3=-1", "a=b"] {
            assert!(parse_place(text).expect_err("no place").contains("QUEUE=OFFSET"), "{text}");
        }
    }

    #[test]
    fn an_age_is_told_in_the_unit_that_says_something() {
        for (seconds, said) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(1_000_000_000, 1_000_000_000 - seconds * 1000), said);
        }
        assert_eq!(age(5, 9), "0s", "never negative");
    }

    #[test]
    fn consumers_that_disagree_are_named_with_what_they_want_and_those_that_pull_are_not() {
        let consumer = |client_id: &str, pulls, filter: &str| GroupConsumer {
            client_id: client_id.into(),
            pulls,
            filter: filter.into(),
            silent_ms: 0,
        };
        let consumers = vec![
            consumer("a", false, "tags A"),
            consumer("b", false, "every message"),
            consumer("c", true, "SQL x > 1"),
        ];
        let topic = GroupTopic { name: "t".into(), consumers, differ: true, ..GroupTopic::default() };
        let said = differing(&topic);
        assert!(said.contains("a filters by tags A; b filters by every message") && !said.contains("SQL"), "{said}");
    }
}
