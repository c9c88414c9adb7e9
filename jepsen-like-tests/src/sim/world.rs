//! The group in one process: three nodes with disks in memory, a network in memory, and hands that can hurt them.
//!
//! ```text
//!  clients ──call_leader──▶ Group ─ Watched<Machine> ──▶ Witness
//!                             │ doors
//!                     SimDisk ┴ MemoryNetwork ◀── nemesis: kill, cut, slow, wipe …
//! ```
//! A node is a disk that stays and a process that comes and goes. Killing a process ends its tasks between two steps,
//! its disk handles for ever and its connections; nothing of it runs on. Every call here takes effect at once and never
//! waits, so that a fault can strike in the middle of anything.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use quorate_raft::{
    CallHandler, ChangeError, ChangeStep, Disk, Doors, FlushMode, Group, GroupConfig, GroupStatus, LogView,
    MachineStart, Member, MemberChange, MemberStatus, NodeId, Position, StateMachine, WriterMode,
    disk::sim::{Damage, Faults, Keep, SimDisk},
    network::{BoxFuture, MemoryNetwork},
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{dice::Dice, invariants::Witness, scenario::Scenario, trace::Event, watched::Watched};

/// What is simulated on top of the log: a machine, how its leader serves, what its clients do and what they may demand.
pub trait Subject: Send + Sync + Sized + 'static {
    /// The machine of a node.
    type Machine: StateMachine;
    /// What the server of a node reads of its machine.
    type Shared: Clone + Send + Sync + 'static;

    /// Opens the machine of a node that starts.
    fn open(&self, opening: Opening) -> Result<(Self::Machine, Self::Shared), MachineStart>;

    /// Serves one request at the node that leads.
    fn serve(group: Watching<Self>, shared: Self::Shared, request: Bytes) -> impl Future<Output = Bytes> + Send;

    /// One client: asks until `stop`, then ends.
    fn client(world: World<Self>, number: u32, stop: CancellationToken) -> impl Future<Output = ()> + Send;

    /// What must be there before the clients come; whether it is.
    fn prepare(_world: &World<Self>) -> impl Future<Output = bool> + Send {
        std::future::ready(true)
    }

    /// What the clients still have to do once the group has healed and they have stopped.
    fn drain(_world: &World<Self>) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// What the leader must do before a floor may be proposed; the floor that may, if any.
    fn before_floor(_leader: &Running<Self>, floor: Position) -> impl Future<Output = Option<Position>> + Send {
        std::future::ready(Some(floor))
    }

    /// Whether a request through this node is served.
    fn probe(world: &World<Self>, node: u16) -> impl Future<Output = bool> + Send;

    /// The state of a replica as bytes, to be compared with the others'.
    fn state(shared: &Self::Shared) -> Bytes;

    /// What is wrong with a replica's final state, by what the clients were told.
    fn judge(&self, shared: &Self::Shared) -> Vec<String>;
}

/// The group of a subject, under observation.
pub type Watching<S> = Group<Watched<<S as Subject>::Machine>>;

/// What a machine is opened with.
pub struct Opening {
    /// Number of the node.
    pub node: u16,
    /// Its disk in this life.
    pub disk: Arc<dyn Disk>,
    /// Its data directory.
    pub dir: PathBuf,
    /// Reader of its log.
    pub view: LogView,
    /// Seed of the run.
    pub seed: u64,
    /// Start of the run.
    pub started: Instant,
}

/// The simulated group. Cheap to clone.
pub struct World<S: Subject>(Arc<Inner<S>>);

impl<S: Subject> Clone for World<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<S: Subject> {
    scenario: Scenario,
    subject: S,
    witness: Witness,
    network: MemoryNetwork,
    started: Instant,
    nodes: Mutex<BTreeMap<u16, Node<S>>>,
    tasks: Mutex<JoinSet<()>>,
    dice: Mutex<Dice>,
}

/// A seat of the group: its disk, and the process that runs on it, if any.
struct Node<S: Subject> {
    disk: SimDisk,
    run: u32,
    process: Option<Process<S>>,
    /// Its identity when it was last seen.
    id: Option<NodeId>,
    /// Its disk fails now.
    failing: bool,
    /// Its disk fails or has failed since the process started: the process may end by itself.
    excused: bool,
    /// A file of it was damaged: it may refuse to start, and gets an empty disk then.
    rotten: bool,
    /// Consume queue records have rotted since its process started.
    queue_rot: bool,
    /// Its removal from the group was asked for: its process may end over it, and the machine comes back with an empty disk.
    leaving: bool,
    /// With async flush: it lost power and may not have got back yet what it had acknowledged.
    forgetful: bool,
    /// Its disk was replaced, and it does not vote again yet.
    wiped: bool,
}

impl<S: Subject> Node<S> {
    fn new(disk: SimDisk) -> Self {
        Self {
            disk,
            run: 0,
            process: None,
            id: None,
            failing: false,
            excused: false,
            rotten: false,
            queue_rot: false,
            leaving: false,
            forgetful: false,
            wiped: false,
        }
    }
}

struct Process<S: Subject> {
    death: CancellationToken,
    /// Filled once the process has recovered; its server reads it too.
    up: Slot<S>,
}

type Slot<S> = Arc<Mutex<Option<Running<S>>>>;

impl<S: Subject> Process<S> {
    /// Ends everything of the process at its next step. The slot is emptied because the group holds the server that holds it.
    fn end(self) {
        self.death.cancel();
        if let Some(running) = lock(&self.up).take() {
            running.group.kill();
        }
    }
}

/// A process that has recovered.
pub struct Running<S: Subject> {
    /// Its handle.
    pub group: Watching<S>,
    /// Its machine's read side.
    pub shared: S::Shared,
    /// Cancelled when the process ends: nothing it was asked will be answered any more.
    pub death: CancellationToken,
}

impl<S: Subject> Clone for Running<S> {
    fn clone(&self) -> Self {
        Self { group: self.group.clone(), shared: self.shared.clone(), death: self.death.clone() }
    }
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// `kill -9`: the page cache survives, peers see their connections reset.
    Kill,
    /// The machine loses power: unsynced writes are lost as `Keep` says, peers hear nothing.
    Power(Keep),
}

/// Answers peers once the process has recovered.
struct Server<S: Subject>(Slot<S>);

impl<S: Subject> CallHandler for Server<S> {
    fn call(&self, _from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes> {
        let running = lock(&self.0).clone();
        Box::pin(async move {
            match running {
                Some(running) => S::serve(running.group, running.shared, request).await,
                None => Bytes::new(),
            }
        })
    }
}

/// Where a node keeps its files.
const DATA_DIR: &str = "/data";

/// How a process ends that does not start.
const REFUSAL: &str = "does not start";

/// Pause between two questions for a change of the membership, and how often it is asked for.
const CHANGE_PAUSE: Duration = Duration::from_millis(100);
const CHANGE_ASKED: u32 = 50;

/// What a node says that ends because it was removed.
const REMOVED: &str = "removed from its group";

/// What a lost packet costs a connection until it is sent again.
const STALL: Duration = Duration::from_millis(200);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn host(node: u16) -> String {
    format!("n{node}")
}

fn address(node: u16) -> String {
    format!("n{node}:9870")
}

impl<S: Subject> World<S> {
    /// The seats of a scenario, all processes down.
    pub fn new(scenario: Scenario, subject: S, witness: Witness) -> Self {
        let mut dice = Dice::new(scenario.seed, "world");
        let network = MemoryNetwork::new(dice.draw());
        let numbers = 1..=scenario.nodes;
        let nodes = numbers.map(|number| (number, Node::new(new_disk(&scenario, dice.draw()))));
        let nodes = Mutex::new(nodes.collect());
        let (started, tasks, dice) = (Instant::now(), Mutex::default(), Mutex::new(dice));
        let inner = Inner { subject, witness, network, started, nodes, tasks, dice, scenario };
        let world = Self(Arc::new(inner));
        world.calm_network();
        world
    }

    /// The run's settings.
    pub fn scenario(&self) -> &Scenario {
        &self.0.scenario
    }

    /// The run's witness.
    pub fn witness(&self) -> &Witness {
        &self.0.witness
    }

    /// What is simulated.
    pub fn subject(&self) -> &S {
        &self.0.subject
    }

    /// Numbers of the nodes.
    pub fn numbers(&self) -> Vec<u16> {
        (1..=self.scenario().nodes).collect()
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<u16, Node<S>>> {
        lock(&self.0.nodes)
    }

    /// Runs a task that belongs to the world, not to a node.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.0.tasks).spawn(task);
    }

    /// The panics of the world's own tasks that have ended.
    pub fn panics(&self) -> Vec<String> {
        let mut tasks = lock(&self.0.tasks);
        let ended = std::iter::from_fn(|| tasks.try_join_next());
        ended
            .filter_map(|end| end.err().filter(tokio::task::JoinError::is_panic))
            .map(|panic| panic.to_string())
            .collect()
    }

    /// The process of a node, if it has recovered.
    pub fn running(&self, node: u16) -> Option<Running<S>> {
        let slot = self.nodes().get(&node)?.process.as_ref()?.up.clone();
        lock(&slot).clone()
    }

    /// All processes that have recovered.
    pub fn all_running(&self) -> Vec<(u16, Running<S>)> {
        self.numbers().into_iter().filter_map(|node| Some((node, self.running(node)?))).collect()
    }

    /// The node that serves as leader, by its own word.
    pub fn leader(&self) -> Option<(u16, Running<S>)> {
        self.all_running().into_iter().find(|(_, running)| running.group.leader().borrow().serving)
    }

    /// Whether the leader has all nodes as voters, each with the disk it has now.
    pub fn is_whole(&self) -> bool {
        self.leader().is_some_and(|(_, leader)| self.has_all(&leader.group.status()))
    }

    fn has_all(&self, status: &GroupStatus) -> bool {
        let ids: Option<Vec<NodeId>> = self.nodes().values().map(|node| node.id).collect();
        let voters: Vec<NodeId> = status.members.iter().filter(|member| member.voter).map(|member| member.id).collect();
        let same = |ids: Vec<NodeId>| ids.iter().all(|id| voters.contains(id)) && voters.len() == ids.len();
        status.members.len() == voters.len() && ids.is_some_and(same)
    }

    /// Whether the group promises to lose nothing if this node loses its disk now: all others have theirs, undamaged, and the
    /// membership that says so is committed.
    pub fn survives_loss(&self, lost: u16) -> bool {
        let Some((_, leader)) = self.leader() else { return false };
        let status = leader.group.status();
        let is_sound = |(number, node): (&u16, &Node<S>)| *number == lost || !(node.rotten || node.forgetful);
        status.committed == status.last && self.has_all(&status) && self.nodes().iter().all(is_sound)
    }

    /// Whether the group promises to lose nothing if these nodes lose power now: always with sync flush; with async flush only
    /// a minority may be without what it acknowledged, and a replaced disk has nothing of it.
    pub fn survives_power_cut(&self, cut: &[u16]) -> bool {
        if self.scenario().flush == FlushMode::Sync {
            return true;
        }
        // Where members come and go, one whose disk has no vote yet is as good as gone, and else one with a new disk until it votes.
        let members = self.scenario().members;
        let leader = self.leader().filter(|_| members).map(|(_, leader)| leader.group.status().members);
        let has_no_vote = |id: Option<NodeId>| {
            let votes =
                |members: &Vec<MemberStatus>| members.iter().any(|member| member.voter && Some(member.id) == id);
            leader.as_ref().is_none_or(|members| !votes(members))
        };
        let is_lost = |number: &u16, node: &Node<S>| {
            let is_new = if members { has_no_vote(node.id) } else { node.wiped };
            node.forgetful || cut.contains(number) || is_new
        };
        let forgetful = self.nodes().iter().filter(|(number, node)| is_lost(number, node)).count();
        forgetful * 2 < self.numbers().len()
    }

    /// Whether a node with a new disk does not vote again yet.
    pub fn awaits_a_new_disk(&self) -> bool {
        self.nodes().values().any(|node| node.wiped)
    }

    // ----- processes -----

    /// Starts the process of a node, unless one runs.
    pub fn start(&self, number: u16) {
        let (run, death, up, disk) = {
            let mut nodes = self.nodes();
            let Some(node) = nodes.get_mut(&number).filter(|node| node.process.is_none()) else { return };
            node.run += 1;
            node.excused = node.failing;
            // What it counts on is read before it serves.
            node.queue_rot = false;
            let death = CancellationToken::new();
            let up = Slot::<S>::default();
            node.process = Some(Process { death: death.clone(), up: up.clone() });
            (node.run, death, up, node.disk.disk())
        };
        self.witness().start(number, run);
        let world = self.clone();
        self.spawn(async move {
            tokio::select! {
                biased;
                () = death.cancelled() => {}
                () = world.live(number, run, disk, up, death.clone()) => {}
            }
        });
    }

    /// The life of a process: recovery, then waiting for a fault of its own.
    async fn live(&self, number: u16, run: u32, disk: Arc<dyn Disk>, up: Slot<S>, death: CancellationToken) {
        let server = Arc::new(Server(up.clone()));
        let doors = Doors { disk: Arc::clone(&disk), network: self.0.network.door(&host(number)) };
        let config = self.config(number, run);
        let dir = config.data_dir.clone();
        let shared = Arc::new(OnceLock::new());
        let (world, told) = (self.clone(), Arc::clone(&shared));
        let make = move |view: LogView| {
            let (seed, started) = (world.scenario().seed, world.0.started);
            let opening = Opening { node: number, disk, dir, view, seed, started };
            let (machine, shared) = world.0.subject.open(opening)?;
            // The one machine of this process.
            let _ = told.set(shared);
            Ok(Watched::new(machine, world.witness().clone(), number, run))
        };
        let group = match Group::start(config, doors, server, make).await {
            Ok(group) => group,
            Err(error) => return self.ended_by_itself(number, run, format!("{REFUSAL}: {error}")),
        };
        let Some(shared) = shared.get().cloned() else { return };
        let status = group.status();
        self.witness().ready(number, run, &status);
        if let Some(node) = self.nodes().get_mut(&number) {
            node.id = Some(status.id);
        }
        *lock(&up) = Some(Running { group: group.clone(), shared, death });
        let reason = group.fatal().await;
        self.ended_by_itself(number, run, reason);
    }

    fn ended_by_itself(&self, number: u16, run: u32, reason: String) {
        let is_removed = reason.contains(REMOVED);
        let (excused, rotten) = {
            let mut nodes = self.nodes();
            let Some(node) = nodes.get_mut(&number).filter(|node| node.run == run) else { return };
            let Some(process) = node.process.take() else { return };
            node.disk.kill();
            process.end();
            self.0.network.crash(&host(number), false);
            (node.excused || node.rotten || is_removed && node.leaving, node.rotten)
        };
        self.witness().end(number, Event::Crash { node: number });
        if !self.scenario().lie_on_sync && !excused {
            self.witness().violate("no-crash", format!("n{number} run {run}: {reason}"));
        }
        if rotten && reason.starts_with(REFUSAL) || is_removed {
            self.wipe(number);
        }
        self.start_later(number, Duration::from_millis(500));
    }

    /// Ends the process of a node, unless it is down. Returns whether one ran.
    pub fn end(&self, number: u16, how: Death) -> bool {
        {
            let mut nodes = self.nodes();
            let Some(node) = nodes.get_mut(&number) else { return false };
            let Some(process) = node.process.take() else { return false };
            // The disk first: whatever still runs for a moment can write nothing.
            match how {
                Death::Kill => node.disk.kill(),
                Death::Power(keep) => {
                    node.disk.power_cut(keep);
                    node.forgetful = self.0.scenario.flush != FlushMode::Sync;
                }
            }
            process.end();
            self.0.network.crash(&host(number), how != Death::Kill);
        }
        let event = match how {
            Death::Kill => Event::Kill { node: number },
            Death::Power(_) => Event::PowerCut { node: number },
        };
        self.witness().end(number, event);
        if self.scenario().lie_on_sync {
            self.witness().forget(number, None);
        }
        true
    }

    /// Starts a node after a while.
    pub fn start_later(&self, number: u16, delay: Duration) {
        let world = self.clone();
        self.spawn(async move {
            tokio::time::sleep(delay).await;
            world.start(number);
        });
    }

    /// Shuts a node down in order, in the background, and starts it again after a while. With `rot`, a bit of its files, chosen
    /// by this number, flips meanwhile.
    pub fn restart(&self, number: u16, pause: Duration, rot: Option<u64>) {
        let Some(running) = self.running(number) else { return };
        let world = self.clone();
        self.spawn(async move {
            tokio::select! {
                biased;
                () = running.death.cancelled() => return,
                () = running.group.shutdown() => {}
            }
            world.stopped(number);
            if let Some(chance) = rot {
                world.rot(number, chance);
            }
            tokio::time::sleep(pause).await;
            world.start(number);
        });
    }

    /// Flips a bit in one file of a node that is down. The hard state is spared: one bad slot of its two cannot be told from
    /// a write that was cut.
    fn rot(&self, number: u16, chance: u64) {
        let mut dice = Dice::new(chance, "rot");
        let mut nodes = self.nodes();
        let Some(node) = nodes.get_mut(&number).filter(|node| node.process.is_none()) else { return };
        let disk = node.disk.disk();
        let dir = disk.join(Path::new(DATA_DIR), dice.pick(&["log", "log", "index", "image"]));
        let names = disk.list(&dir).unwrap_or_default();
        if names.is_empty() {
            return;
        }
        let path = disk.join(&dir, &names[dice.below(names.len() as u64) as usize]);
        let len = node.disk.peek(&path).map_or(0, |bytes| bytes.len() as u64);
        let damage = Damage::Flip { offset: dice.below(len.max(1)), mask: 1 << dice.below(8) };
        node.rotten |= node.disk.damage(&path, damage).is_ok();
        self.witness().note(Event::Rot { node: number });
    }

    /// Damages a consume queue file of a node, whether it is up or down: flips a bit, zeroes some records, or shortens it. Only while all
    /// other nodes have been started since theirs were, so that each record is sound somewhere; says whether it happened.
    pub fn rot_queue(&self, number: u16, chance: u64) -> bool {
        let mut dice = Dice::new(chance, "queue rot");
        let mut nodes = self.nodes();
        if nodes.iter().any(|(other, node)| *other != number && node.queue_rot) {
            return false;
        }
        let Some(node) = nodes.get_mut(&number) else { return false };
        let dir = Path::new(DATA_DIR).join("queue");
        let files: Vec<PathBuf> = node.disk.files().into_iter().filter(|path| path.starts_with(&dir)).collect();
        if files.is_empty() {
            return false;
        }
        let path = &files[dice.below(files.len() as u64) as usize];
        let len = node.disk.peek(path).map_or(0, |bytes| bytes.len() as u64);
        let offset = dice.below(len.max(1));
        let damage = match dice.below(4) {
            0 => Damage::Truncate { len: offset },
            1 | 2 => Damage::Zero { offset, len: dice.within(1..=200) },
            _ => Damage::Flip { offset, mask: 1 << dice.below(8) },
        };
        node.queue_rot |= node.disk.damage(path, damage).is_ok();
        drop(nodes);
        self.witness().note(Event::QueueRot { node: number });
        true
    }

    /// Makes a disk fail from now on. The process may end by itself.
    pub fn fail_disk(&self, number: u16, change: impl FnOnce(&mut Faults)) {
        if let Some(node) = self.nodes().get_mut(&number) {
            (node.failing, node.excused) = (true, true);
            // It may be kept from voting until it has caught up, and a group that is short of a member cannot spare it.
            node.forgetful |= self.scenario().members;
            node.disk.faults(change);
        }
        self.witness().note(Event::Disk { node: number, well: false });
    }

    /// Ends the faults of a disk.
    pub fn mend_disk(&self, number: u16) {
        if let Some(node) = self.nodes().get_mut(&number) {
            node.failing = false;
            node.disk.faults(|faults| {
                (faults.sync_error, faults.read_error, faults.capacity) = (false, false, None);
            });
        }
        self.witness().note(Event::Disk { node: number, well: true });
    }

    fn stopped(&self, number: u16) {
        {
            let mut nodes = self.nodes();
            let Some(node) = nodes.get_mut(&number) else { return };
            let Some(process) = node.process.take() else { return };
            process.end();
            node.disk.kill();
            self.0.network.crash(&host(number), false);
        }
        self.witness().end(number, Event::Stop { node: number });
    }

    /// Cuts the power of a node and gives it an empty disk.
    pub fn wipe(&self, number: u16) {
        self.end(number, Death::Power(Keep::Nothing));
        let seed = lock(&self.0.dice).draw();
        if let Some(node) = self.nodes().get_mut(&number) {
            *node = Node { run: node.run, wiped: true, ..Node::new(new_disk(self.scenario(), seed)) };
        }
        self.witness().forget(number, Some(Event::Wipe { node: number }));
    }

    fn config(&self, number: u16, run: u32) -> GroupConfig {
        let scenario = self.scenario();
        let members = self.numbers().into_iter().map(|number| Member { number, peer_address: address(number) });
        GroupConfig {
            cluster: "simulated".into(),
            number,
            members: members.collect(),
            peer_listen: address(number),
            info: host(number),
            data_dir: PathBuf::from(DATA_DIR),
            segment_bytes: scenario.segment_bytes,
            entry_bytes_max: scenario.entry_bytes_max,
            inflight_bytes_max: 1 << 20,
            tail_cache_bytes: 64 << 10,
            follower_window_bytes: 32 << 10,
            flush: scenario.flush,
            writer: WriterMode::Task,
            heartbeat: scenario.heartbeat,
            election_timeout: scenario.election_timeout,
            fast_path: scenario.fast_path,
            bootstrap: false,
            join: false,
            seed: Dice::new(scenario.seed ^ u64::from(run) << 32, &host(number)).draw(),
            leader_restore: scenario.leader_restore,
        }
    }

    // ----- membership -----

    /// Has whoever leads remove a node, until it is done or refused. The node ends by itself and comes back with an empty disk.
    pub async fn expel(&self, number: u16) {
        if let Some(node) = self.nodes().get_mut(&number) {
            node.leaving = true;
        }
        self.change(MemberChange::Remove { number }).await;
    }

    /// Has whoever leads give a vote to every node that has none, once each.
    pub async fn admit_all(&self) {
        let Some((_, leader)) = self.leader() else { return };
        let voters: Vec<NodeId> =
            leader.group.status().members.iter().filter(|member| member.voter).map(|member| member.id).collect();
        for number in self.numbers() {
            if !voters.iter().any(|id| id.number() == number) {
                self.change(MemberChange::Add { number, peer_address: address(number) }).await;
            }
        }
    }

    /// Asks for a change until it is done, refused, or not done for a while.
    async fn change(&self, change: MemberChange) {
        for _ in 0..CHANGE_ASKED {
            let Some((_, leader)) = self.leader() else {
                tokio::time::sleep(CHANGE_PAUSE).await;
                continue;
            };
            let answer = tokio::select! {
                biased;
                () = leader.death.cancelled() => continue,
                answer = leader.group.change_members(change.clone()) => answer,
            };
            match answer {
                Ok(ChangeStep::Done(_)) | Err(ChangeError::Refused(_)) => return,
                Ok(ChangeStep::CatchingUp { .. } | ChangeStep::Waiting(_)) | Err(_) => {}
            }
            tokio::time::sleep(CHANGE_PAUSE).await;
        }
    }

    // ----- network and disks -----

    /// Cuts or opens one direction between two nodes.
    pub fn link(&self, from: u16, to: u16, open: bool) {
        match open {
            true => self.0.network.heal(&host(from), &host(to)),
            false => self.0.network.cut(&host(from), &host(to)),
        }
        self.witness().link(from, to, open);
    }

    /// Puts a firewall that rejects between two nodes, or takes it away.
    pub fn firewall(&self, one: u16, other: u16, closed: bool) {
        match closed {
            true => self.0.network.reject(&host(one), &host(other)),
            false => self.0.network.accept(&host(one), &host(other)),
        }
        self.witness().link(one, other, !closed);
        self.witness().link(other, one, !closed);
    }

    /// Sets the latency of all links and the chance, per mille and write, that a connection stalls or breaks.
    pub fn weather(&self, longest: Duration, trouble: u32) {
        let shortest = self.scenario().latency.0;
        self.0.network.latency(shortest..longest);
        let chance = f64::from(trouble) / 1000.0;
        self.0.network.stalls(chance, STALL);
        self.0.network.resets(chance / 20.0);
        self.witness().note(Event::Weather { latency_us: longest.as_micros() as u64, trouble: trouble.into() });
    }

    /// The network of a good day: all links open.
    pub fn calm_network(&self) {
        self.0.network.heal_all();
        self.weather(self.scenario().latency.1, 0);
    }

    /// Makes syncs of a node take this long.
    pub fn sync_time(&self, number: u16, range: (Duration, Duration)) {
        if let Some(node) = self.nodes().get(&number) {
            node.disk.faults(|faults| faults.sync_delay = Some(range));
        }
        self.witness().note(Event::Sync { node: number, longest_us: range.1.as_micros() as u64 });
    }

    /// From now on no disk syncs, and all say they do.
    pub fn lie_on_sync(&self) {
        self.nodes().values().for_each(|node| node.disk.faults(|faults| faults.lie_on_sync = true));
    }

    /// All faults end: links open, disks quick, every node runs.
    pub fn heal(&self) {
        self.witness().note(Event::Heal);
        self.calm_network();
        for number in self.numbers() {
            self.mend_disk(number);
            self.sync_time(number, self.scenario().sync);
            self.start(number);
        }
    }

    /// Ends every process without a word, so that nothing of the run stays in memory.
    pub(crate) fn close(&self) {
        self.nodes().values_mut().filter_map(|node| node.process.take()).for_each(Process::end);
        lock(&self.0.tasks).abort_all();
    }

    /// Whether the witness may demand of this node what only a sound disk can keep.
    pub fn is_sound(&self, number: u16) -> bool {
        self.nodes().get(&number).is_some_and(|node| !node.failing && !node.rotten)
    }

    /// Lets the witness look at every running node.
    pub fn look(&self) {
        for (number, running) in self.all_running() {
            let status: GroupStatus = running.group.status();
            let serving = running.group.leader().borrow().serving;
            self.witness().look(number, serving, &status);
            if status.applied.map(|id| id.index) >= self.witness().acked_last()
                && let Some(node) = self.nodes().get_mut(&number)
            {
                // It has everything it ever acknowledged.
                node.forgetful = false;
            }
            if status.members.iter().any(|member| member.id == status.id && member.voter)
                && let Some(node) = self.nodes().get_mut(&number)
            {
                node.wiped = false;
            }
        }
    }
}

fn new_disk(scenario: &Scenario, seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.faults(|faults| faults.sync_delay = Some(scenario.sync));
    disk
}
