//! One node, from its settings to its end: opens, connects, spawns, watches, closes.
//!
//! Every task belongs to one set. The first that panics, or a fault of the log, ends the node with an error; nothing is restarted
//! inside a process whose state may be broken. A planned stop hands leadership over first, so that the group is without a leader for
//! the time of one message rather than of an election.

use std::{
    future::Future,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicU64},
    time::Duration,
};

use prost::Message as _;
use quorate_proto::{
    doors::{Net, NetListener},
    time::Clock,
};
use quorate_raft::{Disk, Group, Network, StartError, WriterMode};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::task::{JoinError, JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use crate::{
    config::{BrokerConfig, ConfigError, split_address},
    health::Health,
    http::{
        ClusterPage, Pages,
        scrape::{Beside, Scrape},
        serve,
    },
    leader::{
        Instruments, Leader, PeerClocks, RaftLog, TermClock,
        checks::Checker,
        dead_letters::Undertaker,
        propose::{Proposer, ProposerTask},
        pump::Pump,
        space::Space,
        timer::Timer,
    },
    metrics::Metrics,
    registrar::{Addresses, Live, Registrar},
    replica::{CheckpointMode, Replica, ReplicaSettings, Shared},
    service::{
        Service,
        forward::{AskPeers, Desk, DeskParts, Dispatch, to_no},
        leadership::can_go_without_me,
        node::Reporter,
        producers::{AskProducers, Streams},
        renew::Renewals,
        server::{ClientServer, Entrance},
        wire::convert::accepted_types,
    },
    session::Sessions,
};

/// Longest wait for another node to take over leadership at a planned stop, beyond the election timeout after which it is taken back.
const HAND_OVER: Duration = Duration::from_secs(1);
/// Longest wait for a faulty log to stop.
const BREAK_OFF: Duration = Duration::from_secs(3);

/// Longest wait for the reason behind a task that has ended.
const REASON: Duration = Duration::from_secs(1);

/// Everything a node touches outside itself.
#[derive(Clone)]
pub struct Doors {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Connections between nodes.
    pub peers: Arc<dyn Network>,
    /// Connections of clients and to name servers.
    pub net: Arc<dyn Net>,
    /// Where the log's own tasks run; on the caller's runtime if `None`. A runtime of its own keeps heartbeats on time under load.
    pub raft_runtime: Option<tokio::runtime::Handle>,
    /// Seed of every random choice.
    pub seed: u64,
    /// Everything happens in tasks of one runtime: the log is written by a task, and the checkpoint is a plain file, since sled would
    /// open files behind `disk`.
    pub simulation: bool,
}

/// Where a node listens, with real ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Listener of clients and operators.
    pub client: String,
    /// What clients are told.
    pub advertised: String,
    /// The named listeners.
    pub listeners: Vec<BoundListener>,
    /// Listener of peers, as configured.
    pub peer: String,
    /// Listener of health checks and metrics; `None` if it is switched off.
    pub http: Option<String>,
}

/// A named listener of clients, with its real port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundListener {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub client: String,
    /// What its clients are told.
    pub advertised: String,
}

/// Why a node did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting is wrong; nothing was opened.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listener could not be bound.
    #[error("{key} = {address}: {source}; is another process using the port? choose another one")]
    Listen {
        /// The setting that names it.
        key: &'static str,
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The log did not start; says the file or address and the remedy.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A task panicked: a bug.
    #[error("a task of the node failed: {0}")]
    Task(String),
    /// The log has stopped by a fault.
    #[error("{0}")]
    Fatal(String),
    /// The node was removed from its group; says the remedy if that was not meant.
    #[error("{0}")]
    Removed(String),
}

/// Runs a node until `shutdown`. `ready` is called once its listeners are bound and it takes part in the group.
///
/// Returns `Ok` after a planned stop: leadership handed over, calls finished, log synced and marked clean.
///
/// # Errors
/// See [`RunError`]. The process must then exit non-zero; the data directory is as a `kill -9` would leave it.
pub async fn run(
    config: BrokerConfig,
    doors: Doors,
    shutdown: CancellationToken,
    ready: impl FnOnce(Bound) + Send,
) -> Result<(), RunError> {
    run_beside(config, doors, None, shutdown, ready).await
}

/// Runs a node whose `/metrics` also tells of what stands beside it in the process.
///
/// # Errors
/// As [`run`].
pub async fn run_beside(
    config: BrokerConfig,
    doors: Doors,
    beside: Option<Beside>,
    shutdown: CancellationToken,
    ready: impl FnOnce(Bound) + Send,
) -> Result<(), RunError> {
    config.validate()?;
    let config = Arc::new(config);
    let (started, scrape) = (tokio::time::Instant::now(), Arc::new(OnceLock::new()));
    let cluster = Arc::new(OnceLock::new());
    let (gone, health) = (CancellationToken::new(), Arc::new(Health::new()));
    let mut tasks = Tasks::default();
    let http = match config.network.http_listen.as_str() {
        "" => None,
        address => Some(listen(&doors, "network.http_listen", address).await?),
    };
    let entrances = bind(&config, &doors).await?;
    let (addresses, mut bound) = find(&config, &entrances).await;
    bound.http = http.as_ref().map(|http| http.local_address());
    // From here on the node can be asked how it is: opening a long log takes a while.
    tasks.spawn("pulse", health.clone().run(gone.clone()));
    if let Some(http) = http {
        let pages = Pages { health: health.clone(), scrape: scrape.clone(), cluster: cluster.clone() };
        tasks.spawn("http server", serve(pages, http, gone.clone()));
    }
    let (node, proposer) = tokio::select! {
        opened = Node::open(config, &doors, addresses, health) => opened?,
        // Nothing of it takes part in the group yet, so the log is left as a kill would leave it.
        () = shutdown.cancelled() => return Ok(()),
    };
    let _ = scrape.set(Scrape {
        group: node.group.clone(),
        shared: node.shared.clone(),
        metrics: node.service.metrics.clone(),
        health: node.service.health.clone(),
        config: node.service.config.clone(),
        disk: doors.disk.clone(),
        started,
        beside,
    });
    let _ = cluster.set(cluster_page(node.service.clone()));
    ready(bound);
    node.work(proposer, doors, entrances, tasks, Stopping { shutdown, gone }).await
}

/// What the HTTP listener says of the group, with the addresses of the default listener.
fn cluster_page(service: Arc<Service>) -> ClusterPage {
    Arc::new(move || {
        let service = service.clone();
        Box::pin(async move { service.cluster_status(&None).await.encode_to_vec() })
    })
}

/// Binds the address of a setting.
async fn listen(doors: &Doors, key: &'static str, address: &str) -> Result<Arc<dyn NetListener>, RunError> {
    let bound = doors.net.listen(address).await;
    bound.map_err(|source| RunError::Listen { key, address: address.to_owned(), source })
}

/// Binds every client listener, the default one first.
async fn bind(config: &BrokerConfig, doors: &Doors) -> Result<Vec<Entrance>, RunError> {
    let network = &config.network;
    let listener = listen(doors, "network.client_listen", &network.client_listen).await?;
    let mut entrances = vec![Entrance { name: None, listener }];
    for named in &network.listeners {
        let listener = listen(doors, "network.listeners", &named.listen).await?;
        entrances.push(Entrance { name: Some(Arc::from(named.name.as_str())), listener });
    }
    Ok(entrances)
}

/// Where clients find this node, by listener.
async fn find(config: &BrokerConfig, entrances: &[Entrance]) -> (Addresses, Bound) {
    let network = &config.network;
    let settings = std::iter::once(&network.client_advertise);
    let settings = settings.chain(network.listeners.iter().map(|listener| &listener.advertise));
    let mut addresses = Addresses::default();
    let mut bound = Bound {
        client: String::new(),
        advertised: String::new(),
        listeners: Vec::new(),
        peer: network.peer_listen.clone(),
        http: None,
    };
    for (entrance, setting) in entrances.iter().zip(settings) {
        let client = entrance.listener.local_address();
        let told = advertised(setting.clone().unwrap_or_else(|| client.clone())).await;
        match &entrance.name {
            None => {
                addresses.own.clone_from(&told);
                (bound.client, bound.advertised) = (client, told);
            }
            Some(name) => {
                addresses.named.insert(name.clone(), told.clone());
                bound.listeners.push(BoundListener { name: name.to_string(), client, advertised: told });
            }
        }
    }
    (addresses, bound)
}

/// How a node's end is told to its tasks.
struct Stopping {
    /// Begins a planned stop.
    shutdown: CancellationToken,
    /// Ends what serves to the last.
    gone: CancellationToken,
}

/// A node whose parts stand.
struct Node {
    group: Group<Replica>,
    shared: Shared,
    service: Arc<Service>,
    addresses: Addresses,
    clock: Arc<TermClock>,
    peers: Arc<dyn PeerClocks>,
    space: Arc<Space>,
    /// Told to stop, though perhaps still needed.
    stopping: CancellationToken,
    leader: Arc<Leader>,
}

impl Node {
    async fn open(
        config: Arc<BrokerConfig>,
        doors: &Doors,
        addresses: Addresses,
        health: Arc<Health>,
    ) -> Result<(Self, ProposerTask), RunError> {
        let metrics = Arc::new(Metrics::default());
        let (desk, stopping) = (Desk::default(), CancellationToken::new());
        let (group, shared) = start_group(&config, doors, addresses.to_string(), desk.clone()).await?;
        let clock = Arc::new(TermClock::new(doors.clock.clone(), metrics.clone()));
        let space = Arc::new(Space::new(&config, doors.disk.clone(), metrics.clone()));
        let (proposing, proposer) = Proposer::new(&config.limits, metrics.clone());
        let leader = Arc::new(Leader::new(
            group.clone(),
            shared.clone(),
            proposing,
            Instruments { clock: clock.clone(), space: space.clone(), metrics: metrics.clone() },
            config.clone(),
            to_no,
        ));
        let producers = Arc::new(Streams::default());
        let own = addresses.own.clone();
        let reporter = Reporter::new(group.clone(), doors.clock.clone(), space.clone(), own, &config);
        let report = reporter.clone();
        desk.staff(DeskParts {
            group: group.clone(),
            leader: leader.clone(),
            clock: clock.clone(),
            space: space.clone(),
            producers: producers.clone(),
            report: Arc::new(move || report.report()),
            stopping: stopping.clone(),
        });
        health.opened(group.clone(), metrics.clone(), config.network.name_servers.len());
        let service = Arc::new(Service {
            health,
            dispatch: Dispatch::new(group.clone(), leader.clone(), &config.limits, metrics.clone()),
            shared: shared.clone(),
            sessions: Sessions::new(config.limits.clients_max, config.limits.client_idle_max),
            producers,
            renewals: Renewals::new(config.limits.renewals_max),
            live: Live::new(&addresses),
            address: addresses.own.clone(),
            clock: doors.clock.clone(),
            metrics,
            reporter,
            closing: Mutex::new(CancellationToken::new()),
            draining: CancellationToken::new(),
            attempts: AtomicU64::new(first_attempt(doors.seed ^ doors.clock.now().0 ^ group.status().id.0)),
            config,
        });
        let peers = Arc::new(AskPeers(group.clone()));
        Ok((Self { group, shared, service, addresses, clock, peers, space, stopping, leader }, proposer))
    }

    /// Completes when the log or the machine has stopped: why.
    async fn fault(&self) -> RunError {
        let reason = tokio::select! {
            biased;
            reason = self.group.fatal() => reason,
            reason = self.shared.given_up() => reason,
        };
        match self.group.is_removed() {
            true => RunError::Removed(reason),
            false => RunError::Fatal(self.space.explain(reason)),
        }
    }

    /// Runs every task until `shutdown` or a fault.
    async fn work(
        self,
        proposer: ProposerTask,
        doors: Doors,
        entrances: Vec<Entrance>,
        mut tasks: Tasks,
        Stopping { shutdown, gone }: Stopping,
    ) -> Result<(), RunError> {
        // Two steps: leaving (no new calls, out of the route), then gone.
        let leaving = CancellationToken::new();
        let log = RaftLog {
            group: self.group.clone(),
            shared: self.shared.clone(),
            clock: self.clock.clone(),
            peers: self.peers.clone(),
        };
        // Ends by itself when the last proposer is dropped; `gone` comes first.
        tasks.spawn("proposer", until(gone.clone(), proposer.run(Arc::new(log))));
        let pump = Pump {
            group: self.group.clone(),
            shared: self.shared.clone(),
            clock: self.clock.clone(),
            peers: self.peers.clone(),
            config: self.service.config.clone(),
            leader: self.leader.clone(),
        };
        tasks.spawn("space", self.space.clone().watch(self.group.clone(), leaving.clone()));
        tasks.spawn("space of the others", self.space.clone().ask(self.group.clone(), leaving.clone()));
        tasks.spawn("pump", pump.run(leaving.clone()));
        tasks.spawn("timer", Timer { leader: self.leader.clone() }.run(leaving.clone()));
        let producers = AskProducers { group: self.group.clone(), streams: self.service.producers.clone() };
        let checker = Checker { leader: self.leader.clone(), producers: Arc::new(producers) };
        tasks.spawn("checker", checker.run(leaving.clone()));
        tasks.spawn("undertaker", Undertaker { leader: self.leader.clone() }.run(leaving.clone()));
        let registrar = Registrar {
            net: doors.net.clone(),
            group: self.group.clone(),
            shared: self.shared.clone(),
            live: self.service.live.clone(),
            addresses: self.addresses.clone(),
            clock: doors.clock.clone(),
            config: self.service.config.clone(),
            metrics: self.service.metrics.clone(),
            accepted_types,
        };
        tasks.spawn("registrar", registrar.run(leaving.clone()));
        tasks.spawn("renewals", self.service.clone().run_renewals(leaving.clone()));
        let server = ClientServer { net: doors.net, service: self.service.clone(), leadership: self.group.leader() };
        tasks.spawn("client server", server.run(entrances, leaving.clone()));

        let leave = async {
            shutdown.cancelled().await;
            info!("node stops");
            self.leave().await;
        };
        let ended = tokio::select! {
            biased;
            () = leave => Ok(()),
            fault = self.fault() => Err(fault),
            // What ends the log ends tasks that work on it, too, and perhaps before it is known why.
            error = tasks.failed() => Err(tokio::time::timeout(REASON, self.fault()).await.unwrap_or(error)),
        };
        leaving.cancel();
        // The server lets calls under way finish; the proposer must outlive it, and health is told to the end.
        let finished = tasks.finish_all_but(&["proposer", "pulse", "http server"]).await;
        gone.cancel();
        match &ended {
            Ok(()) => self.group.shutdown().await,
            // What is broken may not be able to stop; the process ends anyway.
            Err(_) => drop(tokio::time::timeout(BREAK_OFF, self.group.shutdown()).await),
        }
        ended.and(finished).and(tasks.finish().await)
    }

    /// What a planned stop does while the node still serves: waits until the group can spare it, lets nobody wait here any more, and
    /// hands leadership over.
    async fn leave(&self) {
        self.stopping.cancel();
        let max = self.service.config.node.stop_wait_max;
        if !can_go_without_me(&self.group, max).await {
            warn!("the group has no majority without this node, which stops all the same");
        }
        self.service.health.leave();
        self.service.draining.cancel();
        self.hand_over().await;
    }

    /// Gives leadership to another node and waits until it is taken, so that held calls find a leader.
    async fn hand_over(&self) {
        let mut leadership = self.group.leader();
        let alone = self.group.status().members.iter().filter(|member| member.voter).count() < 2;
        if alone || leadership.borrow_and_update().leader != Some(self.group.id()) {
            return;
        }
        if let Err(error) = self.group.transfer(None).await {
            warn!(%error, "leadership not handed over");
            return;
        }
        let me = self.group.id();
        let taken = leadership.wait_for(|view| view.leader.is_some_and(|leader| leader != me));
        let patience = HAND_OVER + self.service.config.election.timers().timeout_max;
        if tokio::time::timeout(patience, taken).await.is_err() {
            warn!("nobody took over leadership in time");
        }
    }
}

/// Starts the log, on its own runtime if there is one.
async fn start_group(
    config: &BrokerConfig,
    doors: &Doors,
    info: String,
    desk: Desk,
) -> Result<(Group<Replica>, Shared), RunError> {
    let writer = if doors.simulation { WriterMode::Task } else { WriterMode::Thread };
    let group_config = config.to_group(info, doors.seed, writer);
    let mut settings = ReplicaSettings::new(config.storage.data_dir.clone());
    if doors.simulation {
        settings.checkpoint = CheckpointMode::Plain;
    }
    let raft_doors = quorate_raft::Doors { disk: doors.disk.clone(), network: doors.peers.clone() };
    let disk = doors.disk.clone();
    let start = async move {
        let mut read_side = None;
        let group = Group::start(group_config, raft_doors, Arc::new(desk), |log| {
            let (replica, shared) = Replica::open(settings, disk, log)?;
            read_side = Some(shared);
            Ok(replica)
        })
        .await?;
        Ok((group, read_side.expect("the group makes its machine before it is started")))
    };
    match &doors.raft_runtime {
        None => start.await,
        Some(runtime) => {
            let starting = AbortOnDropHandle::new(runtime.spawn(start));
            starting.await.map_err(|error| RunError::Task(error.to_string()))?
        }
    }
}

/// An address clients are told, as an IP literal wherever possible: gRPC's `ipv4:` targets and several clients take nothing else.
async fn advertised(address: String) -> String {
    if split_address(&address).is_none_or(|(host, _)| host.parse::<IpAddr>().is_ok()) {
        return address;
    }
    let found = tokio::net::lookup_host(&address).await.map(Iterator::collect::<Vec<_>>);
    match found {
        Ok(found) => {
            let best = found.iter().find(|address| address.is_ipv4()).or(found.first());
            best.map_or(address, ToString::to_string)
        }
        Err(error) => {
            warn!(address, %error, "the advertised name does not resolve; clients that need an IP address cannot use this node");
            address
        }
    }
}

/// Attempt ids of receives go on from a number that no earlier life of this node has reached.
fn first_attempt(seed: u64) -> u64 {
    SmallRng::seed_from_u64(seed).random()
}

/// Ends a task's work at `stop`, wherever it is.
async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// The tasks of a node, by name.
#[derive(Default)]
struct Tasks {
    set: JoinSet<&'static str>,
    running: Vec<&'static str>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.running.push(name);
        self.set.spawn(async move {
            work.await;
            name
        });
    }

    /// Completes when a task ends that should not have.
    async fn failed(&mut self) -> RunError {
        match self.set.join_next().await {
            Some(Ok(name)) => RunError::Task(format!("{name} ended early")),
            Some(Err(error)) => RunError::Task(error.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Waits until nothing runs but `last`.
    async fn finish_all_but(&mut self, last: &[&'static str]) -> Result<(), RunError> {
        while self.running.iter().any(|name| !last.contains(name)) {
            let Some(ended) = self.set.join_next().await else { break };
            self.note(ended)?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), RunError> {
        while let Some(ended) = self.set.join_next().await {
            self.note(ended)?;
        }
        Ok(())
    }

    fn note(&mut self, ended: Result<&'static str, JoinError>) -> Result<(), RunError> {
        let name = ended.map_err(|error| RunError::Task(error.to_string()))?;
        self.running.retain(|running| *running != name);
        Ok(())
    }
}
