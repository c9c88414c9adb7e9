//! The broker's checkers are shown to fail: each planted bug is a build of its own (`--features mutant-…`), and within some seeds the
//! named promise must break. The same seeds pass without it; that is `tests/sim.rs`.

#![cfg(feature = "mutant-timer-lost-at-failover")]

use std::time::Duration;

use quorate_jepsen::sim::{self, Queueing, Report, Scenario};

/// The seeds of the first eight whose verdict shows `finding`.
fn caught(finding: &str) -> Vec<u64> {
    let run = |seed| {
        let scenario = Scenario::drawn(seed, Duration::from_secs(20));
        sim::run_subject(scenario, Queueing::default()).expect("this build is seeded")
    };
    let shows = |report: &Report| report.violations.iter().any(|violation| violation.to_string().contains(finding));
    (1..=8).map(run).filter(shows).map(|report| report.seed).collect()
}

/// A leader that knows only the delayed messages that came while it led never delivers those of its predecessor.
#[cfg(feature = "mutant-timer-lost-at-failover")]
#[test]
fn a_timer_that_is_lost_at_a_failover_is_caught_as_lost_messages() {
    let seeds = caught("and never delivered");
    println!("timer lost at failover: caught in seeds {seeds:?} of 1 to 8");
    assert!(!seeds.is_empty(), "no seed noticed");
}
