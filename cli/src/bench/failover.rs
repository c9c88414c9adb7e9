//! `quorate bench failover`: how long a group of three is silent when a node is struck.
//!
//! ```text
//!   load: sends by the clock to all nodes but the victim, each sent once   ──▶ times of every send and its acknowledgement
//!   trial: load runs ─ strike ─ watch ─ load stops ─ repair ─ rest         ──▶ two figures, made from those times alone
//! ```
//! The clock starts at the signal. *Recovery* ends with the first acknowledgement of a send that was started after it; *gap* is the
//! longest time between two acknowledgements around it, whichever sends they belong to. The group's own processes run here, as in
//! `quorate dev`, and this process shares the machine with them.

mod load;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use quorate_jepsen::{
    dev::DevError,
    failover::{Strike, Target},
    quorate_world::QuorateWorld,
    world::World as _,
};
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use self::load::{Load, Timed};
use crate::{
    failure::{self, Failure},
    output::{Answer, note},
};

/// What happens to which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The leader is killed (SIGKILL)
    Kill,
    /// The leader freezes (SIGSTOP)
    Stop,
    /// The leader is cut off from both others
    Cut,
    /// The leader is told to stop (SIGTERM)
    Term,
    /// A follower is killed
    Follower,
}

/// How to strike, how often, under which load.
#[derive(Debug, Args)]
pub struct FailoverBench {
    /// What happens
    #[arg(long, value_enum)]
    kind: Kind,
    /// How often; each takes about ten seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    trials: u32,
    /// Messages per second, sent by the clock
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Bytes of each body
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    size: u32,
    /// File for the figures of every trial, as JSON
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// Load before a strike, so that connections and caches are warm.
const BEFORE: Duration = Duration::from_secs(1);
/// Load after a strike: far above what a failover may take.
const AFTER: Duration = Duration::from_secs(3);
/// Between two strikes: longer than a node rests after a fast election.
const BETWEEN: Duration = Duration::from_secs(6);

const TOPIC: &str = "bench-failover";
const QUEUES: u32 = 8;

/// One strike. Milliseconds.
#[derive(Debug, Clone, Serialize)]
struct Trial {
    trial: u32,
    /// Signal to first acknowledgement of a send that was started after it; missing if there was none in time.
    recovery_ms: Option<f64>,
    /// Longest time between two acknowledgements.
    gap_ms: f64,
    acked: u64,
    failed: u64,
    /// Why the first failed send failed.
    reason: Option<String>,
    victim: u32,
    leader: Option<u32>,
    term_before: u64,
    term: Option<u64>,
    /// Load average of the machine when it was done.
    load: f64,
}

impl FailoverBench {
    pub(super) async fn run(&self) -> Result<Answer, Failure> {
        let trials = self.trials().await.map_err(|error| {
            let next = "see the reason; quorate bench failover --help";
            failure::error("the failover was not measured", error.to_string(), next)
        })?;
        if let Some(path) = &self.save {
            let text = serde_json::to_vec_pretty(&trials).map_err(std::io::Error::from);
            let saved = text.and_then(|text| fs::write(path, text));
            saved.map_err(|error| {
                failure::error(
                    "the trials were not saved",
                    format!("{}: {error}", path.display()),
                    "choose another file",
                )
            })?;
        }
        Ok(self.answer(&trials))
    }

    fn strike(&self) -> Strike {
        match self.kind {
            Kind::Kill => Strike::Kill,
            Kind::Stop => Strike::Stop,
            Kind::Cut => Strike::Cut,
            Kind::Term => Strike::Term,
            Kind::Follower => Strike::Follower,
        }
    }

    async fn trials(&self) -> Result<Vec<Trial>, DevError> {
        let program = std::env::current_exe()
            .map_err(|source| DevError::Io { what: "finding this program's own file".to_owned(), source })?;
        let world = Arc::new(QuorateWorld::default());
        let command_line = Box::new(crate::dev::command_line);
        let mut target = Target::start(program, self.strike(), command_line, world.clone()).await?;
        let (_, client) = target.nodes().swap_remove(0);
        world.arrange(&client, TOPIC, QUEUES, "bench").await?;
        let mut trials = Vec::new();
        for number in 1..=self.trials {
            let trial = self.trial(&mut target, number).await?;
            let recovery = trial.recovery_ms.map_or_else(|| "none".to_owned(), |ms| format!("{ms:.0} ms"));
            note(format!("trial {number}: recovery {recovery}, gap {:.0} ms, failed {}", trial.gap_ms, trial.failed));
            trials.push(trial);
        }
        target.stop().await?;
        Ok(trials)
    }

    async fn trial(&self, target: &mut Target<QuorateWorld>, number: u32) -> Result<Trial, DevError> {
        let no_leader = || DevError::TooLong { what: "finding the leader", seconds: 0, hint: String::new() };
        let strike = self.strike();
        let (_, term_before) = target.leader().await.ok_or_else(no_leader)?;
        let victim = target.victim(strike).await.ok_or_else(no_leader)?;
        let survivors = target.nodes().into_iter().filter(|(number, _)| *number != victim).map(|(_, address)| address);
        let load = Load::start(survivors.collect(), TOPIC, self.rate, self.size as usize).await;
        let load = load.map_err(|source| DevError::Io { what: "connecting to the group".to_owned(), source })?;
        sleep(BEFORE).await;
        let struck = target.strike(strike, victim).await?;
        sleep_until(struck + AFTER).await;
        let sends = load.stop().await;
        let leader = target.leader().await;
        target.repair(strike, victim).await?;
        sleep_until(struck + BETWEEN).await;
        let figures = figures(&sends, struck);
        Ok(Trial {
            trial: number,
            recovery_ms: figures.recovery.map(millis),
            gap_ms: millis(figures.gap),
            acked: figures.acked,
            failed: figures.failed,
            reason: sends.iter().find_map(|send| send.failure.clone()),
            victim,
            leader: leader.map(|(number, _)| number),
            term_before,
            term: leader.map(|(_, term)| term),
            load: load_average(),
        })
    }

    /// For a follower's death what counts is the gap, since the leader goes on; for all else the recovery.
    fn answer(&self, trials: &[Trial]) -> Answer {
        let mut gaps: Vec<f64> = trials.iter().map(|trial| trial.gap_ms).collect();
        let mut recoveries: Vec<f64> = trials.iter().filter_map(|trial| trial.recovery_ms).collect();
        for list in [&mut gaps, &mut recoveries] {
            list.sort_by(f64::total_cmp);
        }
        let counts = if self.kind == Kind::Follower { &gaps } else { &recoveries };
        let sum = |of: fn(&Trial) -> u64| trials.iter().map(of).sum::<u64>();
        let kind = self.kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        Answer::of_figures(vec![
            ("kind", json!(kind)),
            ("trials", json!(trials.len())),
            ("measured", json!(counts.len())),
            ("p50_ms", json!(quantile(counts, 0.5))),
            ("max_ms", json!(counts.last())),
            ("gap_p50_ms", json!(quantile(&gaps, 0.5))),
            ("gap_max_ms", json!(gaps.last())),
            ("acked", json!(sum(|trial| trial.acked))),
            ("failed", json!(sum(|trial| trial.failed))),
            ("rate", json!(self.rate)),
            ("size", json!(self.size)),
            ("load", json!(load_average())),
        ])
    }
}

/// What a trial's sends say.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    recovery: Option<Duration>,
    gap: Duration,
    acked: u64,
    failed: u64,
}

fn figures(sends: &[Timed], struck: Instant) -> Figures {
    let mut acks: Vec<Instant> = sends.iter().filter_map(|send| send.acked).collect();
    acks.sort();
    let after = sends.iter().filter(|send| send.started >= struck).filter_map(|send| send.acked).min();
    // The end counts as an acknowledgement: a group that stays silent shows the whole time as its gap.
    let end = sends.iter().map(|send| send.acked.unwrap_or(send.started)).max();
    let around = acks.iter().copied().chain(end).filter(|at| *at >= struck - BEFORE / 2);
    let mut last = None;
    let mut gap = Duration::ZERO;
    for at in around {
        gap = gap.max(last.map_or(Duration::ZERO, |last| at - last));
        last = Some(at);
    }
    Figures {
        recovery: after.map(|at| at - struck),
        gap,
        acked: acks.len() as u64,
        failed: sends.iter().filter(|send| send.failure.is_some()).count() as u64,
    }
}

/// The smallest value that so many of all do not exceed.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_counts_sends_that_were_started_after_the_strike_only() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let send = |started: u64, acked: Option<u64>| Timed {
            started: at(started),
            acked: acked.map(at),
            failure: acked.is_none().then(|| "no answer".to_owned()),
        };
        let struck = at(1000);
        // Started before and answered after: it ends the gap, not the recovery.
        let sends = [send(900, Some(910)), send(990, Some(1100)), send(1005, Some(1180)), send(1200, Some(1210))];
        let figures_of = figures(&sends, struck);
        let ms = Duration::from_millis;
        assert_eq!(figures_of, Figures { recovery: Some(ms(180)), gap: ms(190), acked: 4, failed: 0 });
        let silent = figures(&[send(900, Some(910)), send(1005, None), send(2500, None)], struck);
        assert_eq!(silent, Figures { recovery: None, gap: ms(1590), acked: 1, failed: 2 });
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 1.0)), (Some(2.0), Some(4.0)));
        assert_eq!(quantile(&[7.0], 0.5), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
