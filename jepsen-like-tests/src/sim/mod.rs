//! Deterministic simulation: a whole group in one process, under virtual time, out of one seed.
//!
//! The log, the recovery, the peer protocol and the machines are the product's own; only the doors are the simulator's: disks
//! in memory that lose what was not synced, a network in memory that can be cut. One thread runs everything, time jumps to the
//! next timer whenever nobody has anything to do, and every choice, tokio's and openraft's included, is drawn from the seed. So
//! one seed is one history: a failure is replayed by its number, in another process, on another machine.
//!
//! ```text
//!  scenario (drawn) ─▶ world: 3 nodes ◀─ nemesis lanes, retention, queue rot
//!                        ▲     │
//!                    clients   └─▶ witness: invariants at every step, trace hash ─▶ verdict after healing
//! ```
//! A run has three parts: faults and load together; then all faults end and the group must heal and serve; then the
//! clients stop, and every replica must hold every acknowledgement exactly once and equal the others byte for byte.

mod client;
mod counter;
mod dice;
mod invariants;
mod nemesis;
mod queue;
mod retry;
mod scenario;
mod trace;
mod verdict;
mod watched;
mod world;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

pub use client::{Client, Counting, Fate};
pub use counter::{Counter, Numbers, Value};
pub use dice::Dice;
pub use invariants::{Asked, Known, Tally, Violation, Witness};
pub use nemesis::Kind;
pub use queue::Queueing;
pub use retry::Retrying;
pub use scenario::Scenario;
pub use trace::{Event, Trace};
pub use verdict::{HEAL_WITHIN, agree, heal};
pub use watched::Watched;
pub use world::{Death, Opening, Running, Subject, Watching, World};

/// Virtual time between two looks of the witness at every node.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Virtual time the first leader has to serve.
const BORN_WITHIN: Duration = Duration::from_secs(20);

/// The simulator refuses to run, because one seed would not give one history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the simulator needs tokio's seeded scheduler: build with RUSTFLAGS=\"--cfg tokio_unstable\" \
     (.cargo/config.toml sets it unless RUSTFLAGS is set in the environment)"
)]
pub struct NotSeeded;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Fold of every event with its time: equal for every run of one scenario.
    pub hash: u64,
    /// Events in it.
    pub events: u64,
    /// Virtual time from the start to the verdict.
    pub elapsed: Duration,
    /// What happened how often.
    pub tally: Tally,
    /// The rules that did not hold; empty is a pass.
    pub violations: Vec<Violation>,
    /// The last events in words.
    pub last: Vec<String>,
}

impl Report {
    /// Whether every rule held.
    pub fn passed(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, hash, events, elapsed, tally, violations, last } = self;
        let seconds = elapsed.as_secs_f64();
        writeln!(f, "seed {seed}: trace {hash:016x}, {events} events, {seconds:.1} virtual s; {tally}")?;
        if violations.is_empty() {
            return Ok(());
        }
        writeln!(f, "last {} events:", last.len())?;
        last.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        violations.iter().try_for_each(|violation| writeln!(f, "VIOLATION {violation}"))?;
        write!(f, "replay: QUORATE_SIM_SEED={seed} cargo test -p quorate-jepsen --test sim one_seed -- --nocapture")
    }
}

/// Runs a scenario of the counter from its first start to the verdict.
///
/// # Errors
/// [`NotSeeded`] if this build cannot repeat a run.
pub fn run(scenario: Scenario) -> Result<Report, NotSeeded> {
    run_subject(scenario, Counting::default())
}

/// Runs a scenario of any subject from its first start to the verdict.
///
/// # Errors
/// [`NotSeeded`] if this build cannot repeat a run.
pub fn run_subject<S: Subject>(scenario: Scenario, subject: S) -> Result<Report, NotSeeded> {
    simulate(scenario, subject, async |world| {
        if born(&world).await {
            under_faults(&world).await;
        }
    })
}

/// Runs a script against a group whose processes are still down. The witness looks on until the script ends.
///
/// # Errors
/// [`NotSeeded`] if this build cannot repeat a run.
pub fn simulate<S: Subject>(
    scenario: Scenario,
    subject: S,
    script: impl AsyncFnOnce(World<S>),
) -> Result<Report, NotSeeded> {
    let seed = scenario.seed;
    let runtime = runtime(seed)?;
    let guard = Guard::new(seed);
    let report = runtime.block_on(async move {
        let witness = Witness::new(scenario.events_kept, scenario.aloud);
        let world = World::new(scenario, subject, witness.clone());
        tokio::select! {
            biased;
            () = watch(&world, &guard) => {}
            () = script(world.clone()) => {}
        }
        for panic in world.panics() {
            witness.violate("no-crash", panic);
        }
        world.close();
        let (hash, events, last, tally, violations) = witness.summary();
        Report { seed, hash, events, elapsed: witness.elapsed(), tally, violations, last }
    });
    drop(runtime);
    Ok(report)
}

/// A runtime whose every choice follows from the seed, with time that jumps.
#[cfg(tokio_unstable)]
fn runtime(seed: u64) -> Result<tokio::runtime::Runtime, NotSeeded> {
    let seed = tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes());
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).rng_seed(seed).build();
    Ok(runtime.expect("a runtime without I/O asks nothing of the system"))
}

#[cfg(not(tokio_unstable))]
fn runtime(_seed: u64) -> Result<tokio::runtime::Runtime, NotSeeded> {
    Err(NotSeeded)
}

/// Ends the test process when virtual time stands still: tasks that wake each other for ever at one instant would hang it.
///
/// The one place that looks at real time, and only to give up. Its thread ends with it.
struct Guard {
    looks: Arc<AtomicU64>,
    end: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Real time without a step of virtual time before a run is given up.
const STUCK_AFTER: Duration = Duration::from_secs(60);

impl Guard {
    fn new(seed: u64) -> Self {
        let looks = Arc::new(AtomicU64::new(0));
        let (end, ended) = mpsc::channel();
        let seen = Arc::clone(&looks);
        let thread = thread::Builder::new().name("guard".to_owned()).spawn(move || {
            let mut last = u64::MAX;
            while ended.recv_timeout(STUCK_AFTER) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = seen.load(Ordering::Relaxed);
                if now == last {
                    let at = LOOK_EVERY * u32::try_from(now).unwrap_or(u32::MAX);
                    eprintln!("seed {seed}: virtual time stands still near {at:?}: tasks wake each other for ever");
                    std::process::exit(101);
                }
                last = now;
            }
        });
        Self { looks, end: Some(end), thread: thread.ok() }
    }

    fn time_passes(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end = None;
        // It only waits for this.
        self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Looks at every node again and again and reads bodies back; ends at the first violation.
async fn watch<S: Subject>(world: &World<S>, guard: &Guard) {
    let mut dice = Dice::new(world.scenario().seed, "watch");
    while !world.witness().broken().is_cancelled() {
        sleep(LOOK_EVERY).await;
        guard.time_passes();
        world.look();
        if dice.chance(20) {
            read_back(world, &mut dice);
        }
    }
}

/// Reads the payload of any executed entry from the log of any node.
fn read_back<S: Subject>(world: &World<S>, dice: &mut Dice) {
    let running = world.all_running();
    if running.is_empty() {
        return;
    }
    let (node, running) = &running[dice.below(running.len() as u64) as usize];
    if !world.is_sound(*node) {
        return;
    }
    let status = running.group.status();
    let Some(applied) = status.applied else { return };
    let index = quorate_raft::LogIndex(dice.below(applied.index.0 + 1));
    let Some(known) = world.witness().known(index) else { return };
    match running.group.log().read(known.position, known.len as usize) {
        Ok(bytes) => world.witness().body(*node, known, Some(&bytes)),
        Err(_) if known.position < running.group.log().floor() => world.witness().body(*node, known, None),
        Err(error) => {
            let floor = running.group.log().floor();
            world.witness().violate("body", format!("n{node} cannot read {known:?} above its floor {floor}: {error}"));
        }
    }
}

/// Starts all nodes and waits for the first leader.
pub async fn born<S: Subject>(world: &World<S>) -> bool {
    world.numbers().into_iter().for_each(|number| world.start(number));
    let waited = tokio::time::timeout(BORN_WITHIN, async {
        while world.leader().is_none() {
            sleep(LOOK_EVERY).await;
        }
    });
    if waited.await.is_err() {
        world.witness().violate("heals", format!("no leader serves {BORN_WITHIN:?} after the birth"));
        return false;
    }
    true
}

/// Faults and load, then healing, then the verdict.
async fn under_faults<S: Subject>(world: &World<S>) {
    if world.scenario().lie_on_sync {
        world.lie_on_sync();
    }
    if !S::prepare(world).await {
        return world.witness().violate("heals", "the clients' things cannot be prepared".into());
    }
    let stop = CancellationToken::new();
    let mut clients = JoinSet::new();
    for number in 0..world.scenario().clients {
        clients.spawn(S::client(world.clone(), number, stop.clone()));
    }
    let mut nemesis = JoinSet::new();
    for number in 0..world.scenario().lanes {
        nemesis.spawn(nemesis::lane(world.clone(), number));
    }
    nemesis.spawn(nemesis::retention(world.clone()));
    nemesis.spawn(nemesis::queue_rot(world.clone()));
    nemesis.spawn(nemesis::membership(world.clone()));
    sleep(world.scenario().length).await;
    nemesis.shutdown().await;
    if !heal(world).await {
        return;
    }
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        if let Err(panic) = ended {
            world.witness().violate("no-crash", format!("a client panicked: {panic}"));
        }
    }
    S::drain(world).await;
    agree(world).await;
}
