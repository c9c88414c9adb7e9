//! Simulated groups: many seeds, the replay of one, and proof that a planted bug is caught.
//!
//! | Environment | Meaning |
//! |---|---|
//! | `QUORATE_SIM_SEEDS=300` | run so many seeds (default 24) |
//! | `QUORATE_SIM_SECONDS=120` | virtual seconds of faults per seed (default 30) |
//! | `QUORATE_SIM_FIRST=1000` | first seed (default 1) |
//! | `QUORATE_SIM_SEED=7` | `one_seed` runs this one and prints its trace |
//! | `QUORATE_SIM_LOG=info` | what the product itself logs, among the events of one seed |
//! | `QUORATE_SIM_TRACE=2000` | events printed for a failed seed (default 400); `all` prints each as it happens |

mod seeds;

use std::time::{Duration, Instant};

use quorate_jepsen::sim::{self, Queueing, Report, Retrying, Scenario, Tally};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Shows what the product logs, if asked for.
fn show_log() {
    if let Ok(filter) = std::env::var("QUORATE_SIM_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        let _ =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().try_init();
    }
}

fn seconds(default: u64) -> Duration {
    Duration::from_secs(number("QUORATE_SIM_SECONDS").unwrap_or(default))
}

fn scenario(seed: u64, length: Duration) -> Scenario {
    let mut scenario = Scenario::drawn(seed, length);
    match std::env::var("QUORATE_SIM_TRACE").as_deref() {
        Ok("all") => scenario.aloud = true,
        Ok(text) => scenario.events_kept = text.parse().expect("QUORATE_SIM_TRACE is a number or `all`"),
        Err(_) => {}
    }
    scenario
}

fn run(scenario: Scenario) -> Report {
    sim::run(scenario).expect("this build is seeded")
}

/// Time this thread has run on a processor; a simulation runs on one thread.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}

#[test]
fn every_acknowledgement_survives_every_fault_of_many_seeds() {
    let first = number("QUORATE_SIM_FIRST").unwrap_or(1);
    let count = number("QUORATE_SIM_SEEDS").unwrap_or(24);
    let length = seconds(30);
    let (started, cpu) = (Instant::now(), cpu_time());
    let (mut virtual_time, mut failed, mut tally) = (Duration::ZERO, Vec::new(), Tally::default());
    for seed in first..first + count {
        let report = run(scenario(seed, length));
        virtual_time += report.elapsed;
        tally += report.tally;
        if !report.passed() {
            println!("{report}");
            failed.push(seed);
        }
    }
    let cpu = cpu_time().saturating_sub(cpu).as_secs_f64();
    println!(
        "{count} seeds, {:.0} virtual s, {:.1} s real, {cpu:.1} s cpu, {:.0} virtual s per cpu s\n{tally}",
        virtual_time.as_secs_f64(),
        started.elapsed().as_secs_f64(),
        virtual_time.as_secs_f64() / cpu,
    );
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
}

/// Nodes are removed and added while everything else happens: the membership changes in the middle of elections, cuts and catching up.
#[test]
fn every_acknowledgement_survives_nodes_that_come_and_go_under_every_fault() {
    let first = number("QUORATE_SIM_FIRST").unwrap_or(1);
    let count = number("QUORATE_SIM_SEEDS").unwrap_or(12);
    let (mut failed, mut tally) = (Vec::new(), Tally::default());
    for seed in first..first + count {
        let report = run(Scenario { members: true, ..scenario(seed, seconds(30)) });
        tally += report.tally;
        if !report.passed() {
            println!("{report}");
            failed.push(seed);
        }
    }
    println!("members: {count} seeds\n{tally}");
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
}

/// Replays the seed given in the environment with nodes that come and go, or shows the first one.
#[test]
fn one_seed_of_members() {
    show_log();
    let seed = number("QUORATE_SIM_SEED").unwrap_or(1);
    let report = run(Scenario { members: true, ..scenario(seed, seconds(30)) });
    println!("{report}");
    assert!(report.passed(), "seed {seed} failed");
}

#[test]
fn seeds_that_ever_failed_pass() {
    for (seed, length, found) in seeds::FAILED {
        let report = run(scenario(*seed, Duration::from_secs(*length)));
        assert!(report.passed(), "seed {seed} once found: {found}\n{report}");
    }
}

/// Replays the seed given in the environment, or shows the first one.
#[test]
fn one_seed() {
    show_log();
    let seed = number("QUORATE_SIM_SEED").unwrap_or(1);
    let report = run(scenario(seed, seconds(30)));
    println!("{report}");
    assert!(report.passed(), "seed {seed} failed");
}

#[test]
fn a_seed_gives_the_same_trace_again_and_in_another_process() {
    let length = seconds(10);
    let seed = 11;
    let (one, two) = (run(scenario(seed, length)), run(scenario(seed, length)));
    assert_eq!((one.hash, one.events), (two.hash, two.events), "two runs in one process differ");
    let other = std::process::Command::new(std::env::current_exe().expect("the path of this test"))
        .args(["one_seed", "--exact", "--nocapture"])
        .env("QUORATE_SIM_SEED", seed.to_string())
        .env("QUORATE_SIM_SECONDS", length.as_secs().to_string())
        .output()
        .expect("another process of this test");
    let text = String::from_utf8_lossy(&other.stdout);
    let expected = format!("seed {seed}: trace {:016x}, {} events", one.hash, one.events);
    assert!(text.contains(&expected), "expected {expected:?} in:\n{text}");
}

/// The broker's machine, consume queues and checkpoint in the same world, judged by the checkers of the real runs.
#[test]
fn producers_and_consumers_of_the_broker_find_every_promise_kept() {
    let (mut virtual_time, mut failed, mut tally) = (Duration::ZERO, Vec::new(), Tally::default());
    let first = number("QUORATE_SIM_FIRST").unwrap_or(1);
    let count = number("QUORATE_SIM_SEEDS").unwrap_or(6);
    let cpu = cpu_time();
    for seed in first..first + count {
        let report = run_queue(scenario(seed, seconds(20)));
        virtual_time += report.elapsed;
        tally += report.tally;
        if !report.passed() {
            println!("{report}");
            failed.push(seed);
        }
    }
    let cpu = cpu_time().saturating_sub(cpu).as_secs_f64();
    let virtual_time = virtual_time.as_secs_f64();
    println!(
        "broker: {count} seeds, {virtual_time:.0} virtual s, {:.0} virtual s per cpu s\n{tally}",
        virtual_time / cpu
    );
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
}

/// Consumers that fail more often than not: attempts stay exact across failovers, and every message ends acknowledged or dead, once.
#[test]
fn attempts_are_exact_and_no_dead_letter_is_lost_or_doubled() {
    let (mut failed, mut tally) = (Vec::new(), Tally::default());
    let first = number("QUORATE_SIM_FIRST").unwrap_or(1);
    let count = number("QUORATE_SIM_SEEDS").unwrap_or(4);
    for seed in first..first + count {
        let report = sim::run_subject(scenario(seed, seconds(20)), Retrying::default()).expect("this build is seeded");
        tally += report.tally;
        if !report.passed() {
            println!("{report}");
            failed.push(seed);
        }
    }
    println!("retries: {count} seeds\n{tally}");
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
}

fn run_queue(scenario: Scenario) -> Report {
    sim::run_subject(scenario, Queueing::default()).expect("this build is seeded")
}

/// Replays the seed given in the environment with the broker's machine, or shows the first one.
#[test]
fn one_broker_seed() {
    show_log();
    let seed = number("QUORATE_SIM_SEED").unwrap_or(1);
    let report = run_queue(scenario(seed, seconds(20)));
    println!("{report}");
    assert!(report.passed(), "seed {seed} failed");
}
