//! `quorate cluster add`, `remove` and `replace`: who is in the broker group, changed while it runs.
//!
//! The group takes a change one step further each time it is asked, and tells how far it is; so this asks until it is done. Ended half way,
//! by Ctrl-C or because the connection was lost, the same command goes on where the group stands.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use clap::Args;
use quorate_broker::config::Peer;
use quorate_client::{Admin, AdminError, ChangeMembersResponse, ChangeState};
use serde_json::json;

use crate::{
    failure::{self, Failure},
    output::{Answer, Format, note},
};

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(500);
/// Pause between two lines about the same state where they stay to be read.
const LINES: Duration = Duration::from_secs(5);
/// How long a new node may not answer, or nobody lead, before this gives up.
const SILENCE: Duration = Duration::from_secs(30);
/// Characters of the bar.
const BAR: usize = 20;

/// A node to add.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Number of the new node and the address of its peer listener as the other nodes reach it: 4@10.0.0.4:9870. It must be running, with an
    /// empty data directory, node.join = true, and some nodes of the group in node.peers
    #[arg(value_name = "N@HOST:PORT", value_parser = peer)]
    node: Peer,
}

/// A node to remove.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Number of the node, dead or alive; one that runs ends
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    node: u16,
}

/// A node to put in the place of another.
#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// Number of the node that leaves, dead or alive
    #[arg(value_name = "OLD", value_parser = clap::value_parser!(u16).range(1..))]
    old: u16,
    /// The new node, as for add
    #[arg(value_name = "NEW@HOST:PORT", value_parser = peer)]
    new: Peer,
}

fn peer(text: &str) -> Result<Peer, String> {
    text.parse().map_err(|_| "write number@host:port, for example 4@10.0.0.4:9870".to_owned())
}

/// A change as the group is asked for it.
pub struct Change<'a> {
    add: Option<&'a Peer>,
    remove: Option<u16>,
}

impl<'a> From<&'a AddArgs> for Change<'a> {
    fn from(args: &'a AddArgs) -> Self {
        Self { add: Some(&args.node), remove: None }
    }
}

impl From<&RemoveArgs> for Change<'_> {
    fn from(args: &RemoveArgs) -> Self {
        Self { add: None, remove: Some(args.node) }
    }
}

impl<'a> From<&'a ReplaceArgs> for Change<'a> {
    fn from(args: &'a ReplaceArgs) -> Self {
        Self { add: Some(&args.new), remove: Some(args.old) }
    }
}

impl Change<'_> {
    /// Asks until it is done, shows how far it is meanwhile, and prints what came of it.
    ///
    /// # Errors
    /// It was refused, or the group or the new node have not answered for half a minute; the same command goes on.
    pub async fn run(self, purpose: &str, admin: Admin, endpoints: &str, format: Format) -> Result<(), Failure> {
        let began = Instant::now();
        let mut told = Told::new(io::stderr().is_terminal());
        let mut heard_at = began;
        let done = loop {
            let add = self.add.map(|peer| (peer.number, peer.address.as_str()));
            let answer = admin.change_members(add, self.remove).await;
            let state = answer.as_ref().map_or(ChangeState::Unspecified, ChangeMembersResponse::state);
            match answer {
                Ok(answer) if state == ChangeState::Done => break answer,
                Ok(answer) if state == ChangeState::Unreachable => {
                    if heard_at.elapsed() >= SILENCE {
                        told.end();
                        return Err(self.silent(purpose, &answer.note));
                    }
                    told.tell(&answer.note, Instant::now());
                }
                Ok(answer) => {
                    heard_at = Instant::now();
                    told.step(&answer, heard_at);
                }
                Err(error @ (AdminError::NotNow { .. } | AdminError::Unknown { .. }))
                    if heard_at.elapsed() < SILENCE =>
                {
                    told.tell(&error.to_string(), Instant::now());
                }
                Err(error) => {
                    told.end();
                    return Err(failure::call(purpose, &error, endpoints));
                }
            }
            tokio::time::sleep(PAUSE).await;
        };
        told.end();
        let answer = Answer::of_figures(vec![
            ("done", json!(done.note)),
            ("added", json!(self.add.map(|peer| peer.number))),
            ("removed", json!(self.remove)),
            ("took_ms", json!(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX))),
        ]);
        // A closed pipe on the other side changes nothing about what was done.
        let _ = answer.print(format);
        Ok(())
    }

    fn silent(&self, purpose: &str, why: &str) -> Failure {
        let next = match self.add {
            Some(Peer { number, .. }) => format!(
                "start it with node.number = {number}, node.join = true, the group's node.cluster, and itself and some nodes of the group \
                 in node.peers; then repeat this"
            ),
            None => "repeat this".to_owned(),
        };
        failure::error(purpose, why, next)
    }
}

/// Says on standard error how far a change is: one line that is painted over, or lines that stay.
struct Told {
    is_screen: bool,
    last: String,
    at: Option<Instant>,
    pace: Pace,
    is_painted: bool,
}

impl Told {
    fn new(is_screen: bool) -> Self {
        Self { is_screen, last: String::new(), at: None, pace: Pace::default(), is_painted: false }
    }

    fn step(&mut self, answer: &ChangeMembersResponse, now: Instant) {
        if answer.state() == ChangeState::CatchingUp {
            let text = self.pace.describe(answer, now, self.is_screen);
            self.show(&text, "catching up", now);
        } else {
            self.tell(&answer.note, now);
        }
    }

    fn tell(&mut self, text: &str, now: Instant) {
        self.show(text, text, now);
    }

    /// `state` is what `text` is about: a line that stays is repeated for the same one only now and then.
    fn show(&mut self, text: &str, state: &str, now: Instant) {
        if self.is_screen {
            // Nobody to tell is no reason to fail.
            let _ = write!(io::stderr().lock(), "\r\x1b[K{text}");
            self.is_painted = true;
        } else if self.last != state || self.at.is_none_or(|at| now.saturating_duration_since(at) >= LINES) {
            note(text);
            (self.last, self.at) = (state.to_owned(), Some(now));
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.is_painted) {
            note("");
        }
    }
}

/// How fast a new node catches up.
#[derive(Default)]
struct Pace {
    /// When the amount that is left was seen first, and how much it was.
    first: Option<(Instant, u64)>,
}

impl Pace {
    fn describe(&mut self, answer: &ChangeMembersResponse, now: Instant, with_bar: bool) -> String {
        let node = answer.catching_up;
        let Some(matched) = answer.matched_index else {
            return format!("node {node} is a learner; it gets an image, or has not answered yet");
        };
        let entries = answer.last_index.saturating_sub(matched);
        // Without the bytes, which purging may have taken away, the entries are what there is to go by.
        let (left, unit) = answer.bytes_behind.map_or((entries, false), |bytes| (bytes, true));
        let amount = |n: u64| if unit { bytes(n) } else { format!("{n} entries") };
        let (since, all) = *self.first.get_or_insert((now, left));
        let all = all.max(left).max(1);
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        let rate = if seconds > 0.0 { (all - left) as f64 / seconds } else { 0.0 };
        let pace = if rate >= 1.0 {
            let eta = (left as f64 / rate).ceil();
            format!(", {}/s, about {eta} s", amount(rate as u64))
        } else {
            String::new()
        };
        let percent = (all - left) * 100 / all;
        let bar = match with_bar {
            true => {
                let full = (percent as usize * BAR) / 100;
                format!("[{}{}] {percent} % ", "#".repeat(full), "-".repeat(BAR - full))
            }
            false => String::new(),
        };
        let size = if unit { format!("{entries} entries, {}", bytes(left)) } else { amount(left) };
        format!("node {node} catches up: {bar}{size} to go{pace}")
    }
}

/// A size as people read it.
pub fn bytes(n: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, size)| n >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", n as f64 / size as f64),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catching_up(matched: Option<u64>, last: u64, bytes_behind: Option<u64>) -> ChangeMembersResponse {
        let state = ChangeState::CatchingUp as i32;
        ChangeMembersResponse {
            state,
            catching_up: 4,
            matched_index: matched,
            last_index: last,
            bytes_behind,
            ..ChangeMembersResponse::default()
        }
    }

    #[test]
    fn progress_tells_what_is_left_how_fast_it_goes_and_how_long_it_takes() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tell = |answer: &ChangeMembersResponse, seconds, bar| pace.describe(answer, at(seconds), bar);
        let unknown = tell(&catching_up(None, 900, None), 0, false);
        assert!(unknown.contains("node 4 is a learner; it gets an image"), "{unknown}");
        let first = tell(&catching_up(Some(100), 900, Some(8 << 20)), 1, false);
        assert_eq!(first, "node 4 catches up: 800 entries, 8.0 MiB to go");
        let then = tell(&catching_up(Some(500), 1000, Some(4 << 20)), 3, false);
        assert_eq!(then, "node 4 catches up: 500 entries, 4.0 MiB to go, 2.0 MiB/s, about 2 s");
        let screen = tell(&catching_up(Some(500), 1000, Some(4 << 20)), 3, true);
        assert!(screen.contains("[##########----------] 50 % "), "{screen}");
        // A group that writes faster than the node catches up.
        let more = tell(&catching_up(Some(500), 1000, Some(16 << 20)), 4, true);
        assert!(more.contains("0 % ") && !more.contains("/s"), "{more}");
    }

    #[test]
    fn without_bytes_the_entries_are_counted() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.describe(&catching_up(Some(0), 1000, None), start, false);
        let then = pace.describe(&catching_up(Some(500), 1000, None), start + Duration::from_secs(5), false);
        assert_eq!(then, "node 4 catches up: 500 entries to go, 100 entries/s, about 5 s");
    }

    #[test]
    fn a_node_is_named_by_number_and_address() {
        assert_eq!(peer("4@10.0.0.4:9870").map(String::from), Ok("4@10.0.0.4:9870".to_owned()));
        for wrong in ["4", "@a:1", "0@a:1", "4@a", "70000@a:1"] {
            assert!(peer(wrong).is_err(), "{wrong}");
        }
    }
}
