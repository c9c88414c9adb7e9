//! The demo: load, SIGKILL of the leader at a third of it, restart, drain, verdict.
//!
//! The story runs beside two watchers: one feeds the screen, one takes note of nodes that end without having been told
//! to. A story that goes wrong half-way (no new leader, no rejoin) still ends with a verdict, a FAIL that says why.

use std::{
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::try_join_all;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    DevError, DevOptions, Failover, Group, Report, Screen,
    group::{Leader, Rejoined},
    report::{in_seconds, with_commas},
};
use crate::{
    chaos::Exit,
    check::{Gaps, Verdict},
    history::Recorder,
    op::{Election, Fault, FaultKind, Op, Span},
    stopwatch::Stopwatch,
    workload::{Drained, Observer, QueueLoad, QueueRun},
    world::{World, WorldError},
};

const TOPIC: &str = "demo";
const QUEUES: u32 = 8;
const GROUP: &str = "demo-group";
const PRODUCERS: usize = 4;
const CONSUMERS: usize = 4;
const BODY_BYTES: usize = 256;
/// Sends of one producer under way: at the default rate more than fit into an election of five seconds.
const IN_FLIGHT_MAX: usize = 4_096;
const RECEIVE_MAX: u32 = 32;
/// A killed node is down for this long after the new leader shows.
const DOWN_FOR: Duration = Duration::from_secs(1);
/// How long the first calls may fail after the first election.
const ARRANGE_PATIENCE: Duration = Duration::from_secs(10);
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Runs the demo on a group that has not been started.
pub(super) async fn run<W: World>(
    options: &DevOptions,
    group: &Group<W>,
    world: &Arc<W>,
    screen: &Arc<dyn Screen>,
    exits: &mut mpsc::Receiver<Exit>,
) -> Result<Report, DevError> {
    let started = Instant::now();
    let leader = group.start_all(exits).await?;
    introduce(group, screen, &leader, started.elapsed());
    let (endpoints, unix_us) = (group.plan.endpoints(), unix_us());
    patiently(|| world.arrange(&endpoints, TOPIC, QUEUES, GROUP)).await?;
    screen.line(&format!("  ✓ topic {TOPIC} ({QUEUES} queues), group {GROUP}"));
    screen.line(&format!("  any RocketMQ 5 client: endpoints \"{endpoints}\""));
    let producers = try_join_all((0..PRODUCERS).map(|_| patiently(|| world.producer(&endpoints, TOPIC)))).await?;
    let consumers =
        try_join_all((0..CONSUMERS).map(|_| patiently(|| world.consumer(&endpoints, TOPIC, GROUP)))).await?;

    let run = format!("{:x}", unix_us / 1_000);
    let path = group.plan.history(options.data.is_none(), &run);
    let stage = Stage {
        options,
        group,
        screen,
        recorder: Recorder::create(&path)?,
        watch: Stopwatch::start(unix_us),
        objections: Mutex::default(),
    };
    let load = QueueLoad {
        topic: TOPIC.into(),
        run: format!("{run}-").into(),
        rate: options.rate,
        body_bytes: BODY_BYTES,
        in_flight_max: IN_FLIGHT_MAX,
        receive_max: RECEIVE_MAX,
    };
    screen.line(&format!("  producing {}/s for {} s", with_commas(options.rate.into()), options.seconds));
    let mut workload = QueueRun::start(load, producers, consumers, stage.recorder.clone(), stage.watch);
    let observer = workload.observer();
    let failovers = tokio::select! {
        failovers = stage.story(&mut workload, &observer) => failovers?,
        never = stage.show(&observer) => match never {},
        crashed = stage.note_crashes(exits) => match crashed? {},
    };
    screen.progress(None);
    stage.recorder.close().await?;
    stage.judge(&path, failovers)
}

/// What the parts of the demo share.
struct Stage<'a, W> {
    options: &'a DevOptions,
    group: &'a Group<W>,
    screen: &'a Arc<dyn Screen>,
    recorder: Recorder,
    watch: Stopwatch,
    /// Why the verdict must be FAIL whatever the history shows.
    objections: Mutex<Vec<String>>,
}

impl<W: World> Stage<'_, W> {
    async fn story(&self, workload: &mut QueueRun, observer: &Observer) -> Result<Vec<Failover>, DevError> {
        let start = Instant::now();
        let length = Duration::from_secs(self.options.seconds.into());
        sleep_until(start + length / 3).await;
        let mut failovers = Vec::new();
        match self.failover(observer).await {
            Ok(failover) => failovers.push(failover),
            Err(error @ (DevError::TooLong { .. } | DevError::World(_))) => self.object(error.to_string()),
            Err(error) => return Err(error),
        }
        sleep_until(start + length).await;
        workload.stop_producing().await;
        let Drained { outstanding } = workload.drain(self.options.drain).await;
        if outstanding > 0 {
            self.screen.warn(&format!("{outstanding} acknowledged messages never arrived"));
        }
        Ok(failovers)
    }

    /// Kills the leader, waits for the next one and for the first send that it acknowledges, starts the killed node
    /// again and waits until it has caught up.
    async fn failover(&self, observer: &Observer) -> Result<Failover, DevError> {
        let old = patiently(|| async {
            let why = || WorldError { call: "status", why: "no node says that it leads".to_owned() };
            self.group.leader().await.ok_or_else(why)
        })
        .await?;
        let had = self.group.last_index(old.number).await;
        observer.mark();
        let killed_us = self.watch.now_us();
        self.group.kill(old.number).await?;
        self.fault(old.number, FaultKind::Kill, killed_us).await;
        self.screen.line(&format!("  ✗ SIGKILL broker {} (leader)", old.number));

        let new = self.group.new_leader(old.number, old.term).await?;
        let seen_us = self.watch.now_us();
        let span = Span { process: 0, invoke_us: killed_us, return_us: seen_us };
        self.recorder.record(Op::Election(Election { span, leader: new.number, term: new.term })).await;
        self.served(observer, seen_us).await?;
        let progress = observer.progress();
        self.screen.line(&format!(
            "  ✓ new leader {}  term {}    elected in {}  unavailable {}    client errors surfaced: {}",
            new.number,
            new.term,
            in_seconds(seen_us - killed_us),
            in_seconds(progress.gap_us),
            progress.failed + progress.unknown,
        ));

        sleep(DOWN_FOR).await;
        let restarted_us = self.watch.now_us();
        self.group.restart(old.number).await?;
        self.fault(old.number, FaultKind::Restart, restarted_us).await;
        let Rejoined { took, entries } = self.group.rejoined(old.number, had).await?;
        self.screen.line(&format!(
            "  ✓ broker {} restarted, caught up {} entries in {}",
            old.number,
            with_commas(entries),
            in_seconds(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        ));
        Ok(Failover {
            killed: old.number,
            leader: new.number,
            term: new.term,
            killed_us,
            elected_ms: (seen_us - killed_us) as f64 / 1_000.0,
            unavailable_ms: 0.0, // from the history, at the end
            rejoined_ms: took.as_secs_f64() * 1_000.0,
            caught_up_entries: entries,
        })
    }

    /// Waits for a send acknowledged after `since_us`.
    async fn served(&self, observer: &Observer, since_us: u64) -> Result<(), DevError> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while observer.progress().last_ack_us <= since_us {
            if Instant::now() >= deadline {
                let what = "acknowledging a send under the new leader";
                return Err(DevError::TooLong { what, seconds: 30, hint: String::new() });
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn fault(&self, node: u32, kind: FaultKind, invoke_us: u64) {
        let span = Span { process: 0, invoke_us, return_us: self.watch.now_us() };
        self.recorder.record(Op::Fault(Fault { span, node, kind })).await;
    }

    fn object(&self, reason: String) {
        self.screen.warn(&reason);
        self.objections.lock().unwrap_or_else(PoisonError::into_inner).push(reason);
    }

    async fn show(&self, observer: &Observer) -> Infallible {
        loop {
            self.screen.progress(Some(&observer.progress()));
            sleep(SHOW_EVERY).await;
        }
    }

    /// Nodes that end by themselves are started again, and nothing makes up for it in the verdict.
    async fn note_crashes(&self, exits: &mut mpsc::Receiver<Exit>) -> Result<Infallible, DevError> {
        loop {
            let exit = exits.recv().await.ok_or(DevError::Process(crate::chaos::ProcessError::KeeperGone))?;
            if exit.wanted {
                continue;
            }
            self.fault(exit.number, FaultKind::Crash, self.watch.now_us()).await;
            let tail = self.group.log_tail(exit.number);
            self.object(format!("broker {} ended by itself: {}; its log ends with\n{tail}", exit.number, exit.status));
            sleep(DOWN_FOR).await;
            self.group.restart(exit.number).await?;
        }
    }

    fn judge(&self, path: &Path, mut failovers: Vec<Failover>) -> Result<Report, DevError> {
        let (mut verdict, table) = Verdict::of_file(path)?;
        let objections = std::mem::take(&mut *self.objections.lock().unwrap_or_else(PoisonError::into_inner));
        objections.into_iter().for_each(|reason| verdict.object(reason));
        let gaps = Gaps::of(&table);
        for failover in &mut failovers {
            let elected_us = failover.killed_us + (failover.elected_ms * 1_000.0) as u64;
            let gap = gaps.longest_within(failover.killed_us, elected_us.max(failover.killed_us + 1));
            failover.unavailable_ms = gap.map_or(0.0, |gap| gap.length_us() as f64 / 1_000.0);
        }
        let report = Report { verdict, elections: failovers, history: path.display().to_string() };
        report.lines().iter().for_each(|line| self.screen.line(line));
        Ok(report)
    }
}

fn introduce<W: World>(group: &Group<W>, screen: &Arc<dyn Screen>, leader: &Leader, took: Duration) {
    let nodes = &group.plan.nodes;
    let ports = |of: fn(&super::NodePlan) -> &String| {
        let rest = nodes.iter().skip(1).map(|node| of(node).rsplit(':').next().unwrap_or_default());
        let first = nodes.first().map(|node| of(node).as_str());
        first.into_iter().chain(rest).collect::<Vec<_>>().join(" ")
    };
    screen.line(&format!("  ✓ name servers {}", ports(|node| &node.name_server)));
    screen.line(&format!(
        "  ✓ broker 1..{}  {}     leader: {}  term: {}      up in {} ms",
        nodes.len(),
        ports(|node| &node.client),
        leader.number,
        leader.term,
        took.as_millis()
    ));
}

/// Calls until it works or [`ARRANGE_PATIENCE`] is over; the last error counts.
async fn patiently<T, F: Future<Output = Result<T, WorldError>>>(call: impl Fn() -> F) -> Result<T, WorldError> {
    let deadline = Instant::now() + ARRANGE_PATIENCE;
    loop {
        match call().await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
            answer => return answer,
        }
    }
}

fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
