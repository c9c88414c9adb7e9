//! `quorate dev`'s engine from end to end, over real processes of a stand-in group: the demo's verdict, the group that
//! is kept up, and that nobody survives.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod stand_in;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use quorate_jepsen::{
    check::{Judgement, Verdict},
    dev::{self, CommandLine, DevEnd, DevError, DevOptions, Screen, StopSignals},
    workload::{Drain, Progress},
    world::World,
};
use rustix::process::{Pid, Signal, kill_process};
use stand_in::{Mode, StandIn};
use tokio_util::sync::CancellationToken;

#[test]
fn stand_in_broker_process() {
    stand_in::run_if_asked();
}

/// Keeps what the engine says.
#[derive(Default)]
struct Said {
    lines: Mutex<Vec<String>>,
    print_ready: bool,
}

impl Said {
    fn all(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    fn add(&self, text: &str) {
        self.lines.lock().unwrap().push(text.to_owned());
    }

    async fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(line) = self.lines.lock().unwrap().iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "nobody said {text:?}:\n{}", self.all());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Screen for Said {
    fn line(&self, text: &str) {
        self.add(text);
    }

    fn warn(&self, text: &str) {
        self.add(text);
    }

    fn progress(&self, _: Option<&Progress>) {}

    fn ready(&self, text: &str) {
        self.add(text);
        if self.print_ready {
            println!("\n{text}");
        }
    }
}

fn options(data: &Path, demo: bool) -> DevOptions {
    let program = std::env::current_exe().unwrap();
    let drain = Drain { hopeless: Duration::from_millis(2_500), ..Drain::default() }; // a delivery is hidden for 1 s
    DevOptions { program, port: None, data: Some(data.to_owned()), demo, seconds: 3, rate: 300, drain }
}

fn command_line(mode: Mode) -> CommandLine {
    Box::new(move |group, node| Ok(stand_in::arguments(mode, node.number, &node.client, &group.folder)))
}

async fn run(options: DevOptions, mode: Mode, said: &Arc<Said>, stop: CancellationToken) -> Result<DevEnd, DevError> {
    let screen: Arc<dyn Screen> = Arc::clone(said) as _;
    dev::run(options, command_line(mode), Arc::new(StandIn), screen, stop).await
}

/// The process ids of the group, as its nodes tell them.
async fn pids(endpoints: &str) -> Vec<u64> {
    let mut pids = Vec::new();
    for endpoint in endpoints.split(';') {
        pids.extend(StandIn.status(endpoint).await.into_iter().flatten().map(|view| view.pid));
    }
    pids
}

/// Gone, or a zombie that only waits for its parent to look.
fn is_gone(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().is_empty() || rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_kills_the_leader_and_passes_on_a_group_that_keeps_its_promises() {
    let folder = tempfile::tempdir().unwrap();
    let said = Arc::new(Said::default());
    let end = run(options(folder.path(), true), Mode::Right, &said, CancellationToken::new()).await;
    let Ok(DevEnd::Judged(report)) = end else { panic!("{end:?}\n{}", said.all()) };
    println!("{}", said.all());
    assert!(report.is_pass(), "{report:#?}");
    assert!(report.verdict.acked > 600 && report.verdict.consumed == report.verdict.acked, "{report:#?}");
    let [failover] = &report.elections[..] else { panic!("{report:#?}") };
    assert!(failover.killed != failover.leader && failover.term == 2, "{failover:?}");
    assert!(report.verdict.longest_gap_ms >= failover.unavailable_ms && failover.unavailable_ms > 0.0, "{report:#?}");

    let json = serde_json::to_value(&report).unwrap();
    for key in ["acked", "consumed", "lost", "duplicates", "order_violations", "longest_gap_ms", "verdict", "elections"]
    {
        assert!(!json[key].is_null(), "{key} is missing in {json}");
    }
    let (again, _) = Verdict::of_file(Path::new(&report.history)).unwrap();
    assert_eq!(again.acked, report.verdict.acked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_fails_on_a_group_that_acknowledges_what_it_does_not_keep() {
    let folder = tempfile::tempdir().unwrap();
    let said = Arc::new(Said::default());
    let end = run(options(folder.path(), true), Mode::Forgets, &said, CancellationToken::new()).await;
    let Ok(DevEnd::Judged(report)) = end else { panic!("{end:?}\n{}", said.all()) };
    assert_eq!(report.verdict.verdict, Judgement::Fail, "{report:#?}");
    assert!(report.verdict.lost > 0 && report.verdict.lost == report.verdict.acked - report.verdict.consumed);
    assert!(said.all().contains("never arrived") && said.all().contains("FAIL"), "{}", said.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_group_is_kept_up_when_its_leader_is_killed_from_outside_and_is_gone_two_seconds_after_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let said = Arc::new(Said::default());
    let stop = CancellationToken::new();
    let story = async {
        let ready = said.wait_for("ready endpoints=").await;
        let endpoints = ready.strip_prefix("ready endpoints=").unwrap().to_owned();
        let before = pids(&endpoints).await;
        assert_eq!(before.len(), 3);
        let leader = StandIn.status(endpoints.split(';').next().unwrap()).await.unwrap()[0].leader.unwrap();
        let victim = before[leader as usize - 1];
        kill_process(Pid::from_raw(victim as i32).unwrap(), Signal::KILL).unwrap();
        said.wait_for(&format!("broker {leader} (pid {victim}) ended: signal: 9")).await;
        said.wait_for(&format!("broker {leader} runs again")).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        let after = loop {
            let after = pids(&endpoints).await;
            if after.len() == 3 {
                break after;
            }
            assert!(Instant::now() < deadline, "the node did not return");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let same = before.iter().filter(|pid| after.contains(pid)).count();
        assert_eq!(same, 2, "the others stay up: {before:?} {after:?}");
        stop.cancel();
        (after, Instant::now())
    };
    let (end, (pids, told)) = tokio::join!(run(options(folder.path(), false), Mode::Right, &said, stop.clone()), story);
    assert!(matches!(end, Ok(DevEnd::Stopped)), "{end:?}");
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    assert!(pids.iter().all(|pid| is_gone(*pid)), "{pids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_ends_while_the_group_starts_is_an_error_that_shows_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let said = Arc::new(Said::default());
    let end = run(options(folder.path(), false), Mode::Broken, &said, CancellationToken::new()).await;
    let error = end.unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("cannot read the config"), "{error}");
}

/// The harness of the next test: this binary again, with `harness,FOLDER` among the arguments.
#[tokio::test(flavor = "multi_thread")]
async fn harness_process() {
    let Some(folder) = std::env::args().find_map(|arg| arg.strip_prefix("harness,").map(str::to_owned)) else { return };
    let said = Arc::new(Said { print_ready: true, ..Said::default() });
    let signals = StopSignals::listen().unwrap();
    run(options(Path::new(&folder), false), Mode::Right, &said, signals.token()).await.unwrap();
}

/// Starts a harness of its own, ends it with `signal` and returns how long its children outlived the signal.
async fn outlived(signal: Signal) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let mut harness = Command::new(std::env::current_exe().unwrap())
        .args(["harness_process", "--exact", "--nocapture"])
        .arg(format!("harness,{}", folder.path().display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(harness.stdout.take().unwrap()).lines();
    let ready = lines.find_map(|line| line.unwrap().strip_prefix("ready endpoints=").map(str::to_owned)).unwrap();
    let pids = pids(&ready).await;
    assert_eq!(pids.len(), 3);
    let told = Instant::now();
    kill_process(Pid::from_child(&harness), signal).unwrap();
    while !pids.iter().all(|pid| is_gone(*pid)) {
        assert!(told.elapsed() < Duration::from_secs(10), "orphans: {pids:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let outlived = told.elapsed();
    harness.wait().unwrap();
    outlived
}

#[tokio::test(flavor = "multi_thread")]
async fn no_broker_outlives_a_harness_that_is_killed_or_told_to_stop() {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let outlived = outlived(signal).await;
        assert!(outlived < Duration::from_secs(2), "{signal:?}: {outlived:?}");
    }
}
