//! From a directory to a running node, in the order that keeps every promise:
//! lock, hard state, log, machine, listener, Raft, tasks. What fails on the way leaves nothing running.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use futures_util::FutureExt;
use openraft::{Config, Raft, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    CallHandler, Doors, Inner, LeaderView, MachineStart, StartError, birth, change,
    fast_path::{self, Turn},
    floor,
    gate::{self, Gate},
    history::History,
    members, mend, removed,
    service::NodeService,
    watcher,
};
use crate::{
    binding::TypeConfig,
    config::{GroupConfig, WriterMode},
    fatal::{Fatal, panic_words},
    hard_state::{HardState, REJOIN},
    log::{Log, LogView, Recovery},
    machine::{
        applier::{Applied, Applier},
        erased::ErasedMachine,
        restore,
        saver::Saver,
    },
    peer::{
        CardSource, Peers,
        client::Factory,
        codec::{Card, Stage},
        server,
    },
    runtime::{Scope, mix},
    snapshot::Images,
    store::LogStore,
    types::{NodeId, Term},
};

/// Ends what was begun if `start` does not get to its end.
struct Undo {
    scope: Scope,
    log: Option<Log>,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.armed {
            if let Some(log) = &self.log {
                log.abandon();
            }
            self.scope.end();
        }
    }
}

/// Numbers that keep the seeds of a node's tasks apart.
mod seeds {
    pub(super) const INCARNATION: u64 = 1;
    pub(super) const START: u64 = 2;
    pub(super) const TASKS: u64 = 16;
}

/// Makes the machine, once its view of the log is there.
pub(super) type Make<'a> = Box<dyn FnOnce(LogView) -> Result<Box<dyn ErasedMachine>, MachineStart> + Send + 'a>;

pub(super) async fn start(
    config: GroupConfig,
    doors: Doors,
    calls: Arc<dyn CallHandler>,
    make: Make<'_>,
) -> Result<Arc<Inner>, StartError> {
    config.validate()?;
    let scope = Scope::default();
    let mut undo = Undo { scope: scope.clone(), log: None, armed: true };
    let seed = config.seed;
    let inner = scope.enter(mix(seed, seeds::START), begin(config, doors, calls, make, &mut undo)).await?;
    undo.armed = false;
    Ok(inner)
}

async fn begin(
    config: GroupConfig,
    doors: Doors,
    calls: Arc<dyn CallHandler>,
    make: Make<'_>,
    undo: &mut Undo,
) -> Result<Arc<Inner>, StartError> {
    let config = Arc::new(config);
    let fatal = Fatal::new();
    let stop = CancellationToken::new();
    let scope = undo.scope.clone();

    // The directory.
    let lock = take_lock(&config, &doors)?;
    removed::check(doors.disk.as_ref(), &config)?;
    let hard = match HardState::load(&doors.disk, &config)? {
        Some(hard) => hard,
        None => HardState::create(&doors.disk, &config, NodeId::new(config.number, incarnation(&config)))?,
    };
    // Indexes are readings of the segments, so their folder may be deleted.
    let index = doors.disk.join(&config.data_dir, "index");
    doors.disk.create_dir(&index).map_err(|source| io_error(&index.display().to_string(), source))?;
    let me = hard.node();
    let (log, recovery) = Log::open(doors.disk.clone(), &config, hard)?;
    undo.log = Some(log.clone());
    let images = Images::open(doors.disk.clone(), &config)?;
    match config.writer {
        WriterMode::Thread => drop(log.spawn_writer_thread().map_err(|source| io_error("log writer", source))?),
        WriterMode::Task => drop(crate::runtime::spawn(log.clone().run_writer())),
    }
    report(me, &recovery);

    // The machine.
    let mut machine = make(log.view()).map_err(StartError::Corrupt)?;
    let place = restore::restore(machine.as_mut(), &log, &images).await?;
    let (saver, saving, saved) = Saver::new(log.clone(), images.clone(), config.writer, fatal.clone());
    let voters = watch::Sender::new(place.membership.membership().voter_ids().collect::<Vec<_>>());
    let applier = Applier::new(machine, place, log.clone(), images.clone(), config.writer, saver, fatal.clone());
    let applied = applier.watch();

    // The listener, before anything is said to anybody: a port in use ends the start.
    let listener = doors.network.listen(&config.peer_listen).await;
    let listener = listener.map_err(|source| io_error(&format!("peer listener on {}", config.peer_listen), source))?;

    // Raft.
    let view = watch::Sender::new(LeaderView::default());
    let gate = Arc::new(Gate::new(recovery.catch_up.is_some()));
    let card = card_source(CardParts {
        config: config.clone(),
        me,
        address: config.address_of(me.number()).map_or_else(|| listener.local_address(), str::to_owned),
        log: log.clone(),
        applied: applied.clone(),
        leader: view.subscribe(),
        voters: voters.subscribe(),
        gate: gate.clone(),
    });
    let peers = Peers::new(config.clone(), me, doors.network.clone(), card, log.clone(), fatal.clone());
    // Before raft replays what is committed: replay saves an image at each border it crosses, and waits while too many are unsaved.
    let mut spawner = Spawner { scope: scope.clone(), fatal: fatal.clone(), seed: config.seed, next: seeds::TASKS };
    spawner.spawn(saving);
    let raft_config = raft_config(&config, recovery.catch_up.is_none())?;
    let factory = Factory { peers: peers.clone() };
    let store = LogStore::new(log.clone(), fatal.clone());
    let raft = Raft::<TypeConfig, Applier>::build(me, raft_config, factory, store, applier).await;
    let raft = raft.map_err(not_started)?;

    let inner = Arc::new(Inner {
        inflight: Semaphore::new(config.inflight_bytes_max),
        config,
        me,
        raft,
        log,
        images,
        peers: peers.clone(),
        calls,
        leader: view.subscribe(),
        applied,
        gate,
        turn: Turn::default(),
        history: History::default(),
        fatal,
        scope: scope.clone(),
        stop: stop.clone(),
        admitting: tokio::sync::Mutex::new(()),
        under_way: change::UnderWay::default(),
        is_removed: AtomicBool::new(false),
        lock: Mutex::new(Some(lock)),
    });

    // Tasks.
    inner.raft.run();
    spawner.spawn(server::serve(listener, peers, Arc::new(NodeService(inner.clone())), stop));
    spawner.spawn(watcher::watch_leader(inner.clone(), view, voters));
    spawner.spawn(watcher::keep_in_touch(inner.clone()));
    spawner.spawn(watcher::end_on_fault(inner.clone()));
    spawner.spawn(fast_path::watch(inner.clone()));
    spawner.spawn(birth::be_born(inner.clone(), doors.disk));
    spawner.spawn(members::finish_halves(inner.clone()));
    spawner.spawn(floor::follow(inner.clone(), saved));
    spawner.spawn(mend::images(inner.clone()));
    spawner.spawn(mend::step_aside(inner.clone()));
    if let Some(why) = recovery.catch_up {
        spawner.spawn(gate::catch_up(inner.clone(), why));
    }
    Ok(inner)
}

/// Spawns a node's own tasks; a panic in one of them ends the node.
struct Spawner {
    scope: Scope,
    fatal: Fatal,
    seed: u64,
    next: u64,
}

impl Spawner {
    fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let seed = mix(self.seed, self.next);
        self.next += 1;
        let fatal = self.fatal.clone();
        drop(self.scope.spawn(seed, async move {
            if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                fatal.set(format!("task: {}", panic_words(panic.as_ref())));
            }
        }));
    }
}

/// What openraft reads at its start was written and synced long before: if it cannot be read, the disk has lost it.
fn not_started(error: openraft::errors::Fatal<TypeConfig>) -> StartError {
    let openraft::errors::Fatal::StorageError(error) = error else { return StartError::Raft(error.to_string()) };
    StartError::Corrupt(format!("{error}; {REJOIN}"))
}

fn io_error(what: &str, source: io::Error) -> StartError {
    StartError::Io { what: what.to_owned(), source }
}

fn take_lock(config: &GroupConfig, doors: &Doors) -> Result<Box<dyn Send + Sync>, StartError> {
    let dir = &config.data_dir;
    doors.disk.create_dir(dir).map_err(|source| io_error(&format!("data directory {}", dir.display()), source))?;
    let path = doors.disk.join(dir, "lock");
    match doors.disk.lock(&path) {
        Ok(lock) => Ok(lock),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let reason = format!(
                "data directory {} is used by {error} (it holds {}): stop that one first, or give this node a directory of its \
                 own with --data",
                dir.display(),
                path.display()
            );
            Err(StartError::WrongDirectory(reason))
        }
        Err(source) => Err(io_error(&path.display().to_string(), source)),
    }
}

/// A number that no directory of this node has had before. In production the operating system makes it; a simulation
/// gives every start a seed of its own.
fn incarnation(config: &GroupConfig) -> u32 {
    let drawn = mix(config.seed, seeds::INCARNATION);
    let drawn = match config.writer {
        WriterMode::Thread => drawn ^ rand::random::<u64>(),
        WriterMode::Task => drawn,
    };
    ((drawn >> 32) as u32).max(1)
}

fn report(me: NodeId, recovery: &Recovery) {
    tracing::info!(
        node = ?me,
        last = ?recovery.last,
        end = recovery.end.0,
        cut_bytes = recovery.cut_bytes,
        clean = recovery.clean,
        "log opened"
    );
}

fn raft_config(config: &GroupConfig, may_elect: bool) -> Result<Arc<Config>, StartError> {
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let raft = Config {
        cluster_name: config.cluster.clone(),
        heartbeat_interval: millis(config.heartbeat),
        election_timeout_min: millis(config.election_timeout.0),
        election_timeout_max: millis(config.election_timeout.1),
        // The count is no bound worth having: the store caps every request by bytes.
        max_payload_entries: 4096,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        enable_elect: may_elect,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(config.leader_restore),
        // A follower may come back with less than it had acknowledged, by async flush or by a damaged disk. Off, its leader would never send it
        // what is missing.
        allow_log_reversion: Some(true),
        ..Config::default()
    };
    // A leader that is cut inside its own sync and back before an election would write another entry under the same id.
    assert!(
        raft.enable_leader_restore == Some(false) || cfg!(feature = "mutant-leader-restore"),
        "leader restore loses acknowledged entries"
    );
    let raft = raft.validate().map_err(|error| StartError::Config(error.to_string()))?;
    Ok(Arc::new(raft))
}

/// What a card is made of.
struct CardParts {
    config: Arc<GroupConfig>,
    me: NodeId,
    address: String,
    log: Log,
    applied: watch::Receiver<Applied>,
    leader: watch::Receiver<LeaderView>,
    voters: watch::Receiver<Vec<NodeId>>,
    gate: Arc<Gate>,
}

fn card_source(parts: CardParts) -> CardSource {
    Arc::new(move || {
        let CardParts { config, me, address, log, applied, leader, voters, gate } = &parts;
        let is_empty = log.last().is_none() && log.vote().is_none();
        let stage = match (is_empty, gate.is_lost()) {
            (true, _) if config.bootstrap => Stage::Bootstrap,
            (true, _) => Stage::Unborn,
            (false, true) => Stage::Lost,
            (false, false) => Stage::Member,
        };
        let view = *leader.borrow();
        let applied = applied.borrow().clone();
        Card {
            cluster: config.cluster.clone(),
            node: *me,
            segment_bytes: config.segment_bytes,
            stage,
            peer_address: address.clone(),
            info: config.info.clone(),
            term: Term(log.vote().map_or(0, |vote| vote.term.0)),
            leader: view.leader,
            applied: applied.id.map(|id| (id, applied.chain)),
            last: log.last(),
            voters: voters.borrow().clone(),
        }
    })
}
