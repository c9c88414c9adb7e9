//! The engines: a closed loop and an open loop over any kind of call, and the record they write.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use quorate_client::CallError;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::servers::{Sample, Servers};
use crate::{
    failure::{self, Failure},
    output::note,
};

/// Longest latency told apart.
const LATENCY_MAX_US: u64 = 120_000_000;
/// How long calls under way may take to end when the time is up.
const DRAIN: Duration = Duration::from_secs(15);
/// Calls that may be due and not begun.
const DUE_MAX: usize = 1 << 16;

/// What one call came to.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Messages that were confirmed.
    pub acked: u64,
    /// Messages that were not, with the first reason.
    pub failed: u64,
    pub reason: Option<CallError>,
    /// Leave its latency out: it found nothing to do.
    pub idle: bool,
    /// The slot has nothing more to do.
    pub last: bool,
}

/// What a load is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub slots: usize,
    pub warmup: Duration,
    pub measured: Duration,
    /// Calls per second, or as fast as answers come.
    pub calls_per_s: Option<f64>,
}

/// What came out.
pub struct Outcome {
    latencies: Histogram<u64>,
    pub acked: u64,
    pub failed: u64,
    calls: u64,
    reason: Option<CallError>,
    elapsed: Duration,
    unanswered: u64,
    before: Option<Sample>,
    after: Option<Sample>,
    client_cpu_us: u64,
    load_1m: Option<f64>,
}

/// Written by every call. One short lock per call; there are far more bytes to move than that costs.
struct Record {
    inner: Mutex<Inner>,
    stop: AtomicBool,
}

struct Inner {
    latencies: Histogram<u64>,
    acked: u64,
    failed: u64,
    calls: u64,
    reason: Option<CallError>,
    window: Window,
}

/// Which calls count.
#[derive(Clone, Copy)]
enum Window {
    Shut,
    /// Those that end while it is open.
    Open,
    /// Those that were due in it, whenever they end.
    Due(Instant, Instant),
}

impl Record {
    fn new() -> Arc<Self> {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("these bounds are valid");
        let inner = Inner { latencies, acked: 0, failed: 0, calls: 0, reason: None, window: Window::Shut };
        Arc::new(Self { inner: Mutex::new(inner), stop: AtomicBool::new(false) })
    }

    fn set(&self, window: Window) {
        self.inner.lock().expect("no holder of this lock panics").window = window;
    }

    fn note(&self, begin: Instant, done: Done) {
        let latency = u64::try_from(begin.elapsed().as_micros()).unwrap_or(LATENCY_MAX_US);
        let mut inner = self.inner.lock().expect("no holder of this lock panics");
        let counts = match inner.window {
            Window::Shut => false,
            Window::Open => true,
            Window::Due(from, to) => (from..to).contains(&begin),
        };
        if !counts {
            return;
        }
        inner.acked += done.acked;
        inner.failed += done.failed;
        inner.calls += u64::from(!done.idle);
        if inner.reason.is_none() {
            inner.reason = done.reason;
        }
        if !done.idle && done.acked > 0 {
            inner.latencies.saturating_record(latency);
        }
    }

    fn acked(&self) -> u64 {
        self.inner.lock().expect("no holder of this lock panics").acked
    }
}

/// Runs `call` by the plan; it gets the number of its slot (closed loop) or of the call (open loop).
pub async fn run<F, C>(plan: Plan, servers: &Servers, call: F) -> Outcome
where
    F: Fn(usize) -> C + Clone + Send + Sync + 'static,
    C: Future<Output = Done> + Send + 'static,
{
    let load_1m = load_average();
    let record = Record::new();
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    match plan.calls_per_s {
        None => (0..plan.slots).for_each(|slot| {
            tasks.spawn(closed(slot, record.clone(), call.clone()));
        }),
        Some(rate) => {
            tasks.spawn(open(start, rate, plan.slots, record.clone(), call));
        }
    }
    tokio::time::sleep(plan.warmup).await;
    let (before, cpu_before) = (servers.sample().await, own_cpu_us());
    let from = Instant::now();
    let window = match plan.calls_per_s {
        None => Window::Open,
        Some(_) => Window::Due(from, from + plan.measured),
    };
    record.set(window);
    let (mut last, mut ended) = (0, false);
    while from.elapsed() < plan.measured && !ended {
        let tick = Duration::from_secs(1).min(plan.measured.saturating_sub(from.elapsed()));
        tokio::select! {
            () = tokio::time::sleep(tick) => {}
            // Every slot ran out of work.
            () = async { while tasks.join_next().await.is_some() {} } => ended = true,
        }
        let acked = record.acked();
        note(format!("{:>4} s  {:>9} messages/s", from.elapsed().as_secs(), acked - last));
        last = acked;
    }
    if matches!(window, Window::Open) {
        record.set(Window::Shut);
    }
    let elapsed = from.elapsed();
    let (after, cpu_after) = (servers.sample().await, own_cpu_us());
    record.stop.store(true, Ordering::Relaxed);
    let drained = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    let unanswered = if drained.is_err() { tasks.len() as u64 } else { 0 };
    let mut inner = record.inner.lock().expect("no holder of this lock panics");
    Outcome {
        latencies: inner.latencies.clone(),
        acked: inner.acked,
        failed: inner.failed,
        calls: inner.calls,
        reason: inner.reason.take(),
        elapsed,
        unanswered,
        before,
        after,
        client_cpu_us: cpu_after.saturating_sub(cpu_before),
        load_1m,
    }
}

async fn closed<F, C>(slot: usize, record: Arc<Record>, call: F)
where
    F: Fn(usize) -> C,
    C: Future<Output = Done>,
{
    while !record.stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let done = call(slot).await;
        let last = done.last;
        record.note(begin, done);
        if last {
            return;
        }
    }
}

/// Begins each call when it is due, or as soon after as fewer than `slots` are under way; its latency counts from when it was due.
async fn open<F, C>(start: Instant, rate: f64, slots: usize, record: Arc<Record>, call: F)
where
    F: Fn(usize) -> C,
    C: Future<Output = Done> + Send + 'static,
{
    let (due, mut calls) = mpsc::channel(DUE_MAX);
    // A thread of its own keeps time: the runtime's timer ticks in milliseconds.
    let pacer = std::thread::Builder::new().name("pacer".to_owned()).spawn(move || pace(start, rate, &due));
    if let Err(error) = pacer {
        note(format!("no thread for the clock of the load: {error}"));
        return;
    }
    let places = Arc::new(Semaphore::new(slots));
    let mut tasks = JoinSet::new();
    let mut number = 0;
    while let Some(begin) = calls.recv().await {
        if record.stop.load(Ordering::Relaxed) {
            break;
        }
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let (call, record) = (call(number), record.clone());
        number += 1;
        tasks.spawn(async move {
            record.note(begin, call.await);
            drop(place);
        });
        while tasks.try_join_next().is_some() {}
    }
    // Ends the pacer, too.
    drop(calls);
    while tasks.join_next().await.is_some() {}
}

fn pace(start: Instant, rate: f64, due: &mpsc::Sender<Instant>) {
    for number in 0u64.. {
        let at = start + Duration::from_secs_f64(number as f64 / rate);
        let early = at.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        if due.blocking_send(at).is_err() {
            return;
        }
    }
}

impl Outcome {
    /// A load of which nothing at all succeeded has measured nothing.
    ///
    /// # Errors
    /// Every call failed; says why the first did.
    pub fn worked(&self, endpoints: &str) -> Result<(), Failure> {
        let failed = self.failed + self.unanswered;
        if self.acked > 0 || failed == 0 {
            return Ok(());
        }
        let what = format!("all {failed} messages failed");
        Err(match &self.reason {
            Some(reason) => failure::call(what, reason, endpoints),
            None => {
                failure::no_quorum(what, "no call was answered in time", "quorate cluster status, then the load again")
            }
        })
    }

    /// The figures of a report, in the order people read them.
    pub fn figures(&self, body_bytes: u64) -> Vec<(&'static str, Value)> {
        let seconds = self.elapsed.as_secs_f64().max(f64::EPSILON);
        let per_s = |count: u64| json!((count as f64 / seconds * 10.0).round() / 10.0);
        let ms = |us: u64| json!(us as f64 / 1000.0);
        let at = |quantile: f64| ms(self.latencies.value_at_quantile(quantile));
        let per_message = |count: Option<u64>| match count {
            Some(count) if self.acked > 0 => json!((count as f64 / self.acked as f64 * 1000.0).round() / 1000.0),
            Some(_) | None => Value::Null,
        };
        let grown = |of: fn(&Sample) -> u64| match (&self.before, &self.after) {
            (Some(before), Some(after)) if before.same_processes(after) => Some(of(after).saturating_sub(of(before))),
            _ => None,
        };
        let last = self.after.as_ref().or(self.before.as_ref());
        let word = |of: fn(&Sample) -> &str| last.map_or(Value::Null, |sample| json!(of(sample)));
        vec![
            ("messages_per_s", per_s(self.acked)),
            ("mb_per_s", json!((self.acked as f64 * body_bytes as f64 / seconds / 1e4).round() / 100.0)),
            ("calls_per_s", per_s(self.calls)),
            ("p50_ms", at(0.5)),
            ("p90_ms", at(0.9)),
            ("p99_ms", at(0.99)),
            ("p999_ms", at(0.999)),
            ("max_ms", ms(self.latencies.max())),
            ("acked", json!(self.acked)),
            ("errors", json!(self.failed + self.unanswered)),
            ("first_error", self.reason.as_ref().map_or(Value::Null, |reason| json!(reason.to_string()))),
            ("server_cpu_us_per_message", per_message(grown(|sample| sample.cpu_us))),
            ("client_cpu_us_per_message", per_message(Some(self.client_cpu_us))),
            ("syncs_per_message", per_message(grown(|sample| sample.syncs))),
            ("entries_per_message", per_message(grown(|sample| sample.entries))),
            ("flush", word(|sample| &sample.flush)),
            ("file_system", word(|sample| &sample.file_system)),
            ("seconds", json!((seconds * 100.0).round() / 100.0)),
            ("load_1m", self.load_1m.map_or(Value::Null, |load| json!(load))),
        ]
    }
}

/// User and system time of this process.
fn own_cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted behind the name, which may hold blanks; in ticks of 10 ms, which Linux never changes for readers.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10_000
}

/// What else runs on the machine: its load of the last minute.
pub fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(slots: usize, millis: u64, calls_per_s: Option<f64>) -> Plan {
        Plan { slots, warmup: Duration::ZERO, measured: Duration::from_millis(millis), calls_per_s }
    }

    #[tokio::test]
    async fn a_closed_loop_ends_when_its_slots_have_nothing_more_to_do() {
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let outcome = run(plan(4, 5_000, None), &Servers::none(), {
            let calls = calls.clone();
            move |_| {
                let last = calls.fetch_add(1, Ordering::Relaxed) >= 20;
                async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Done { acked: 2, last, ..Done::default() }
                }
            }
        })
        .await;
        assert!(outcome.elapsed < Duration::from_secs(4));
        assert_eq!(outcome.acked, 2 * outcome.calls);
        assert!(calls.load(Ordering::Relaxed) >= 24);
    }

    /// A server that stands still for 200 ms must show in the latencies of all calls that were due meanwhile.
    #[tokio::test]
    async fn an_open_loop_counts_the_wait_of_calls_that_were_due() {
        let begin = Instant::now();
        let outcome = run(plan(1, 400, Some(500.0)), &Servers::none(), move |_| async move {
            let stands_still = (100..300).contains(&begin.elapsed().as_millis());
            if stands_still {
                tokio::time::sleep(Duration::from_millis(300) - begin.elapsed()).await;
            }
            Done { acked: 1, ..Done::default() }
        })
        .await;
        assert!((150..=210).contains(&outcome.acked), "{}", outcome.acked);
        assert!(outcome.latencies.value_at_quantile(0.7) > 50_000, "{}", outcome.latencies.value_at_quantile(0.7));
    }

    /// Whoever runs a benchmark in a script looks at the exit code.
    #[tokio::test]
    async fn a_load_of_which_nothing_succeeds_is_a_failure_that_says_why() {
        let outcome = run(plan(1, 200, None), &Servers::none(), |_| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Done {
                failed: 1,
                reason: Some(CallError::Refused { code: 41301, message: "too large".into() }),
                ..Done::default()
            }
        })
        .await;
        let failure = outcome.worked("a:1").expect_err("nothing was acknowledged").to_string();
        assert!(failure.contains("refused with 41301"), "{failure}");
    }

    #[test]
    fn a_report_has_the_figures_programs_rely_on() {
        let mut latencies = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("valid");
        latencies.record(1500).expect("in range");
        let sample = |cpu_us, syncs| Sample { pids: vec![1], cpu_us, syncs, flush: "sync".into(), ..Sample::default() };
        let outcome = Outcome {
            latencies,
            acked: 1000,
            failed: 1,
            calls: 500,
            reason: None,
            elapsed: Duration::from_secs(2),
            unanswered: 1,
            before: Some(sample(0, 10)),
            after: Some(sample(20_000, 60)),
            client_cpu_us: 0,
            load_1m: None,
        };
        let figures: serde_json::Map<String, Value> =
            outcome.figures(1024).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(figures["messages_per_s"], 500.0);
        assert_eq!(figures["mb_per_s"], 0.51);
        assert_eq!(figures["server_cpu_us_per_message"], 20.0);
        assert_eq!(figures["syncs_per_message"], 0.05);
        assert_eq!(
            (&figures["errors"], &figures["p50_ms"], &figures["flush"]),
            (&json!(2), &json!(1.5), &json!("sync"))
        );
    }
}
