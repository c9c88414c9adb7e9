//! `quorate group …`

use std::time::Duration;

use clap::Subcommand;
use quorate_broker::{
    config::units::{format_duration, parse_duration},
    machine::{Delays, Retry as Checked},
};
use quorate_client::{Admin, AdminError, ConsumerGroup, ExponentialDelays, Retry, StartAt};
use serde_json::{Value, json};

use crate::{
    moment::{Moment, parse_moment},
    output::{Answer, utc},
    position::{self, Reset},
};

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
        /// How often a message is handed out before it goes to the dead letters, the first time included [default: 17]
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
        max_attempts: Option<u16>,
        /// What push consumers wait between attempts: ladder (10s to 2h), ladder:10s,1m,…, exponential (5s,2h,2) or
        /// exponential:FIRST,LONGEST,FACTOR [default: ladder, with --fifo ladder:3s]
        #[arg(long, value_parser = parse_delays)]
        retry: Option<Delays>,
        /// Where it begins in a topic that it has never received from: first, last, or the first message stored at a time or later, which is
        /// 2h (ago) or 2026-11-24T22:13:20 (UTC) [default: groups.start of the brokers, first unless changed]
        #[arg(long, value_name = "first|last|TIME", value_parser = parse_from)]
        from: Option<Begin>,
        /// Change the group if it exists with other settings; its progress stays
        #[arg(long)]
        replace: bool,
    },
    /// List all consumer groups
    List,
    /// Show where a consumer group stands in each queue, what it has not done, and who consumes
    Describe {
        /// The consumer group
        name: String,
    },
    /// Continue somewhere else in a topic; what consumers hold in those queues comes again, and their receipts stop working
    ResetOffset(Reset),
    /// Delete a consumer group with its progress
    Delete {
        /// The consumer group
        name: String,
    },
}

/// Where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    First,
    Last,
    Since(Moment),
}

fn parse_from(text: &str) -> Result<Begin, String> {
    match text {
        "first" => Ok(Begin::First),
        "last" => Ok(Begin::Last),
        text => parse_moment(text).map(Begin::Since).map_err(|error| format!("{error}, or first, or last")),
    }
}

impl Begin {
    fn wire(this: Option<Self>) -> (StartAt, i64) {
        match this {
            None => (StartAt::Unspecified, 0),
            Some(Self::First) => (StartAt::First, 0),
            Some(Self::Last) => (StartAt::Last, 0),
            Some(Self::Since(moment)) => (StartAt::Since, moment.ms()),
        }
    }
}

impl GroupCommand {
    /// What it was for, to be said when it fails.
    pub fn purpose(&self) -> String {
        match self {
            Self::Create { name, .. } => format!("consumer group {name} was not created"),
            Self::List => "the consumer groups cannot be listed".to_owned(),
            Self::Describe { name } => format!("consumer group {name} cannot be described"),
            Self::ResetOffset(reset) => format!("consumer group {} was not moved", reset.group),
            Self::Delete { name } => format!("consumer group {name} was not deleted"),
        }
    }

    /// Does it.
    pub async fn run(&self, admin: &Admin) -> Result<Answer, AdminError> {
        match self {
            Self::Create { name, fifo, max_attempts, retry, from, replace } => {
                let wish = (max_attempts.is_some() || retry.is_some()).then(|| wish(*max_attempts, retry.as_ref()));
                let (start, start_ms) = Begin::wire(*from);
                let (name, fifo, start) = (name.clone(), *fifo, start.into());
                let group = ConsumerGroup { name: name.clone(), fifo, created_ms: 0, retry: wish, start, start_ms };
                admin.put_group(group, *replace).await?;
                let mut groups = admin.list_groups().await?;
                groups.retain(|group| group.name == name);
                Ok(list(&groups))
            }
            Self::List => Ok(list(&admin.list_groups().await?)),
            Self::Describe { name } => position::describe(admin, name).await,
            Self::ResetOffset(reset) => reset.run(admin).await,
            Self::Delete { name } => {
                admin.delete_group(name).await?;
                Ok(Answer { header: vec!["DELETED"], rows: vec![vec![name.clone()]], json: json!({ "deleted": name }) })
            }
        }
    }
}

fn wish(max_attempts: Option<u16>, delays: Option<&Delays>) -> Retry {
    let mut wish = Retry { max_attempts: max_attempts.unwrap_or(0).into(), ..Retry::default() };
    match delays {
        None => {}
        Some(Delays::Ladder(steps)) => wish.ladder_ms = steps.clone(),
        Some(Delays::Exponential { initial_ms, max_ms, factor_percent }) => {
            let (initial_ms, max_ms, factor_percent) = (*initial_ms, *max_ms, u32::from(*factor_percent));
            wish.exponential = Some(ExponentialDelays { initial_ms, max_ms, factor_percent });
        }
    }
    wish
}

fn parse_delays(text: &str) -> Result<Delays, String> {
    let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
    let ms = |text: &str| {
        let duration = parse_duration(text).map_err(|error| format!("{text}: {error}"))?;
        u64::try_from(duration.as_millis()).map_err(|_| format!("{text} is too long"))
    };
    let delays = match (kind, rest) {
        ("ladder", None) => Delays::usual(false),
        ("ladder", Some(steps)) => {
            let steps = steps.split(',').filter(|step| !step.is_empty());
            Delays::Ladder(steps.map(ms).collect::<Result<_, _>>()?)
        }
        ("exponential", None) => Delays::exponential(),
        ("exponential", Some(rest)) => {
            let parts: Vec<&str> = rest.split(',').collect();
            let (first, longest, factor) = match parts[..] {
                [first, longest] => (first, longest, "2"),
                [first, longest, factor] => (first, longest, factor),
                _ => return Err("write exponential:FIRST,LONGEST or exponential:FIRST,LONGEST,FACTOR".to_owned()),
            };
            let factor: f64 = factor.parse().map_err(|_| format!("the factor {factor} is no number"))?;
            // Out of range stays out of range.
            let factor_percent = (factor * 100.0).round().clamp(0.0, f64::from(u16::MAX)) as u16;
            Delays::Exponential { initial_ms: ms(first)?, max_ms: ms(longest)?, factor_percent }
        }
        _ => return Err(format!("{kind} is neither ladder or exponential; write one of them")),
    };
    Checked::new(1, delays.clone()).map_err(|error| error.to_string())?;
    Ok(delays)
}

/// As `--retry` takes it.
fn retry(retry: &Retry) -> String {
    let text = |ms: &u64| format_duration(Duration::from_millis(*ms));
    match &retry.exponential {
        Some(ExponentialDelays { initial_ms, max_ms, factor_percent }) => {
            let factor = f64::from(*factor_percent) / 100.0;
            format!("exponential:{},{},{factor}", text(initial_ms), text(max_ms))
        }
        None if Delays::Ladder(retry.ladder_ms.clone()) == Delays::usual(false) => "ladder".to_owned(),
        None => format!("ladder:{}", retry.ladder_ms.iter().map(text).collect::<Vec<_>>().join(",")),
    }
}

fn list(groups: &[ConsumerGroup]) -> Answer {
    let order = |group: &ConsumerGroup| if group.fifo { "fifo" } else { "any" };
    let row = |group: &ConsumerGroup| {
        let attempts = group.retry.as_ref().map(|retry| retry.max_attempts.to_string()).unwrap_or_default();
        let delays = group.retry.as_ref().map(retry).unwrap_or_default();
        let from = position::start(group.start(), group.start_ms);
        vec![group.name.clone(), order(group).to_owned(), attempts, delays, from, utc(group.created_ms)]
    };
    let object = |group: &ConsumerGroup| -> Value {
        json!({
            "name": group.name,
            "fifo": group.fifo,
            "created_ms": group.created_ms,
            "max_attempts": group.retry.as_ref().map(|retry| retry.max_attempts),
            "retry": group.retry.as_ref().map(retry),
            "from": position::start(group.start(), group.start_ms),
        })
    };
    Answer {
        header: vec!["GROUP", "ORDER", "ATTEMPTS", "RETRY", "FROM", "CREATED (UTC)"],
        rows: groups.iter().map(row).collect(),
        json: groups.iter().map(object).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_shown_as_they_are_written() {
        for text in ["ladder", "ladder:3s", "ladder:10s,1m,2h", "exponential:5s,2h,2", "exponential:500ms,9s,1.5"] {
            let delays = parse_delays(text).expect("legal");
            assert_eq!(retry(&wish(Some(3), Some(&delays))), text);
        }
        assert_eq!(parse_delays("exponential"), Ok(Delays::exponential()));
        assert_eq!(retry(&wish(None, Some(&Delays::exponential()))), "exponential:5s,2h,2");
    }

    #[test]
    fn a_group_begins_at_the_first_or_last_message_or_at_a_time() {
        let wire = |text| Begin::wire(Some(parse_from(text).expect("legal")));
        assert_eq!((wire("first"), wire("last")), ((StartAt::First, 0), (StartAt::Last, 0)));
        let (start, ms) = wire("2026-11-24T22:13:20");
        assert_eq!(position::start(start, ms), "2026-11-24T22:13:20");
        assert!(parse_from("middle").expect_err("no start").contains("or first, or last"));
    }

    #[test]
    fn delays_that_cannot_be_are_refused_with_what_to_write() {
        for (text, part) in [
            ("steps", "ladder or exponential"),
            ("ladder:", "1 to 32 delays"),
            ("ladder:0s", "1ms to 12h"),
            ("ladder:13h", "1ms to 12h"),
            ("ladder:fast", "fast"),
            ("exponential:1s", "exponential:FIRST,LONGEST"),
            ("exponential:1s,2s,0.5", "factor"),
            ("exponential:1s,2s,x", "x is no number"),
            ("exponential:3s,2s", "shorter than the first"),
        ] {
            let error = parse_delays(text).expect_err("illegal");
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
