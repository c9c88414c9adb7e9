//! `quorate broker`: one node of a broker group, with a name server beside it.
//!
//! ```text
//!   main runtime    clients' gRPC, planning, applying, name server
//!   "raft" runtime  the log's own tasks: heartbeats stay on time while the other is busy
//! ```
//! Settings come in layers (`config`), are checked once and printed with their origin where somebody set them. SIGTERM or Ctrl-C stops in
//! order: leadership handed over, calls finished, log closed; a second one ends the process at once.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use quorate_broker::{
    Beside, Bound, BoundListener, Doors, RunError,
    config::{BrokerConfig, ConfigError},
};
use quorate_namesrv::{NamedListener, NamesrvConfig};
use quorate_proto::{
    doors::TcpNet,
    time::{Clock, SystemClock},
};
use quorate_raft::{Disk as _, StartError, TcpNetwork, disk::RealDisk};
use serde::{Deserialize, Serialize};
use tokio::{runtime, sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Layers, Loaded, Settings, read},
    failure::{self, Failure},
    logging::{self, LogConfig, LogFormat},
    output::note,
    stop::Stop,
};

/// Threads of the log's own runtime: with one, a long step would stand before the heartbeats.
const RAFT_THREADS: usize = 2;

/// How long what is left on the runtimes may take to end.
const LAST_RITES: Duration = Duration::from_secs(1);

/// Where the node is, who it is, and where its settings are. Everything else is set in the file or by QUORATE_… variables.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// TOML file with the node's settings
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of this node in its group (node.number)
    #[arg(long, value_name = "NUMBER")]
    node: Option<u16>,
    /// All nodes of the group, NUMBER@HOST:PORT, separated by ; (node.peers)
    #[arg(long, value_name = "LIST")]
    peers: Option<String>,
    /// Id of the cluster (node.cluster)
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// Directory of this node alone (storage.data_dir)
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Listener of clients and operators (network.client_listen)
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address that clients are given for this node (network.client_advertise)
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Listener of the other nodes (network.peer_listen)
    #[arg(long, value_name = "HOST:PORT")]
    peer_listen: Option<String>,
    /// Listener of health checks and metrics, "" for none (network.http_listen)
    #[arg(long, value_name = "HOST:PORT")]
    http_listen: Option<String>,
    /// Name servers to register with, separated by ; (network.name_servers)
    #[arg(long, value_name = "LIST")]
    name_servers: Option<String>,
    /// Allow listeners beyond loopback although nothing is encrypted or authenticated (network.insecure)
    #[arg(long)]
    insecure: bool,
    /// Form the group although a peer is unreachable or not empty, once, by hand (node.bootstrap)
    #[arg(long)]
    bootstrap: bool,
    /// Join the group of the peers and never form one, on a node that is added (node.join)
    #[arg(long)]
    join: bool,
    /// How log lines look (log.format)
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Print all settings with their origin as a TOML file, check them, and do nothing else
    #[arg(long)]
    print_config: bool,
}

/// A broker's file: the node's own tables, and those of what stands beside it in the process.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct BrokerFile {
    #[serde(flatten)]
    broker: BrokerConfig,
    name_server: NameServerConfig,
    log: LogConfig,
}

/// The `[name_server]` table.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NameServerConfig {
    /// Run a name server in this process. Default true.
    enabled: bool,
    /// Where it listens. Default `127.0.0.1:9876`; port 0 takes a free one. The node registers with it if `network.name_servers` is empty.
    listen: String,
    /// More listeners, `name@host:port`, for clients of the nodes' listeners of those names (`network.listeners`). Default none.
    listeners: Vec<String>,
}

impl Settings for BrokerFile {
    fn range(key: &str) -> Option<String> {
        BrokerConfig::range(key)
    }
}

impl Default for NameServerConfig {
    fn default() -> Self {
        Self { enabled: true, listen: "127.0.0.1:9876".to_owned(), listeners: Vec::new() }
    }
}

impl BrokerArgs {
    /// Runs the node until it is told to stop.
    ///
    /// # Errors
    /// What kept it from starting or going on, with the file, port or key and the remedy.
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let loaded = self.load()?;
        // Before they are checked: the place of a wrong one is to be seen there.
        if self.print_config {
            print!("{}", loaded.print());
        }
        let file = &loaded.settings;
        file.broker.validate().map_err(|error| wrong(&error, &loaded))?;
        let listeners = check_name_server(file, &loaded)?;
        logging::check(&file.log, loaded.origin("log.filter"))?;
        if self.print_config {
            return Ok(ExitCode::SUCCESS);
        }
        logging::start(&file.log)?;
        loaded.print_changed().for_each(|line| note(format!("config: {line}")));
        let raft = build(runtime::Builder::new_multi_thread().worker_threads(RAFT_THREADS).thread_name("raft"))?;
        let main = build(runtime::Builder::new_multi_thread().thread_name("broker"))?;
        let data_dir = file.broker.storage.data_dir.clone();
        let ended = main.block_on(run(loaded, listeners, raft.handle().clone()));
        main.shutdown_timeout(LAST_RITES);
        raft.shutdown_timeout(LAST_RITES);
        // Two nodes of one file meet at their ports first; the directory is what they must not share.
        ended.map(|()| ExitCode::SUCCESS).map_err(|failure| in_use(&data_dir).unwrap_or(failure))
    }

    fn load(&self) -> Result<Loaded<BrokerFile>, Failure> {
        let mut layers = outside(self.config.as_ref())?;
        layers.flag("--node", "node.number", self.node.map(|number| number.to_string()));
        layers.flag("--peers", "node.peers", self.peers.as_deref());
        layers.flag("--cluster", "node.cluster", self.cluster.as_deref());
        layers.flag("--data", "storage.data_dir", self.data.as_deref());
        layers.flag("--listen", "network.client_listen", self.listen.as_deref());
        layers.flag("--advertise", "network.client_advertise", self.advertise.as_deref());
        layers.flag("--peer-listen", "network.peer_listen", self.peer_listen.as_deref());
        layers.flag("--http-listen", "network.http_listen", self.http_listen.as_deref());
        layers.flag("--name-servers", "network.name_servers", self.name_servers.as_deref());
        layers.switch("--insecure", "network.insecure", self.insecure);
        layers.switch("--bootstrap", "node.bootstrap", self.bootstrap);
        layers.switch("--join", "node.join", self.join);
        layers.flag("--log-format", "log.format", self.log_format.map(LogFormat::name));
        layers.load()
    }
}

/// What a file and the variables say.
fn outside(config: Option<&PathBuf>) -> Result<Layers, Failure> {
    let mut layers = Layers::of::<BrokerFile>();
    if let Some(path) = config {
        layers.file(path.clone(), &read(path)?)?;
    }
    layers.variables(
        std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok())),
    )?;
    Ok(layers)
}

/// Where a node with this file and these variables listens for health checks.
///
/// # Errors
/// Wrong settings, and settings that name no place to ask.
pub fn http_listen(config: Option<&PathBuf>) -> Result<String, Failure> {
    let loaded: Loaded<BrokerFile> = outside(config)?.load()?;
    let address = &loaded.settings.broker.network.http_listen;
    let origin = loaded.origin("network.http_listen");
    let nowhere = |why: String| failure::error("nobody can be asked", why, "name the HTTP listener with --address");
    if address.is_empty() {
        return Err(nowhere(format!("network.http_listen is switched off ({origin})")));
    }
    if address.ends_with(":0") {
        return Err(nowhere(format!(
            "network.http_listen takes any free port ({origin}); the node says which when it is ready"
        )));
    }
    Ok(address.clone())
}

fn wrong<T>(error: &ConfigError, loaded: &Loaded<T>) -> Failure {
    let what = format!("{} cannot be used ({})", error.key, loaded.origin(error.key));
    failure::config(what, error.problem.clone(), "quorate broker --print-config shows every setting and its origin")
}

/// The named listeners of the name server, once all it is told can be used.
fn check_name_server(file: &BrokerFile, loaded: &Loaded<BrokerFile>) -> Result<Vec<NamedListener>, Failure> {
    let (name_server, insecure) = (&file.name_server, file.broker.network.insecure);
    let wrong = |key| move |problem| wrong(&ConfigError { key, problem }, loaded);
    crate::namesrv::check_listen(&name_server.listen, insecure).map_err(wrong("name_server.listen"))?;
    let listeners = crate::namesrv::parse_listeners(&name_server.listeners, insecure);
    let listeners = listeners.map_err(wrong("name_server.listeners"))?;
    if name_server.enabled {
        let mut beside = vec![("name_server.listen", name_server.listen.as_str())];
        beside.extend(listeners.iter().map(|one| ("name_server.listeners", one.listen.as_str())));
        file.broker.check_apart(&beside).map_err(|error| self::wrong(&error, loaded))?;
    }
    Ok(listeners)
}

fn build(builder: &mut runtime::Builder) -> Result<runtime::Runtime, Failure> {
    let built = builder.enable_all().build();
    built.map_err(|error| {
        failure::error("no threads to run on", error.to_string(), "raise the limit of threads and open files")
    })
}

/// Name server first, because the node registers with it; each one's end ends the other.
async fn run(
    loaded: Loaded<BrokerFile>,
    listeners: Vec<NamedListener>,
    raft_runtime: runtime::Handle,
) -> Result<(), Failure> {
    let Loaded { settings: BrokerFile { mut broker, name_server, .. }, .. } = loaded;
    let stop = Stop::listen()?;
    let shutdown = &stop.token;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let net = Arc::new(TcpNet);
    let mut parts: JoinSet<Result<(), Failure>> = JoinSet::new();
    let mut beside = None;
    if name_server.enabled {
        let metrics = Arc::new(quorate_namesrv::Metrics::default());
        beside = Some(told_beside(metrics.clone()));
        let cluster = Some(broker.node.cluster.clone());
        let config = NamesrvConfig { listen: name_server.listen, listeners, cluster };
        let doors = quorate_namesrv::Doors { net: net.clone(), clock: clock.clone() };
        let (ready, bound) = oneshot::channel();
        let stop = shutdown.clone();
        parts.spawn(async move {
            let ready = |bound: quorate_namesrv::Bound| drop(ready.send(bound.address));
            let ended = quorate_namesrv::run_counted(config, doors, metrics, stop, ready).await;
            ended.map_err(|error| crate::namesrv::failed(&error))
        });
        let Ok(address) = bound.await else {
            // It has not come up, and says why.
            return finish(parts, shutdown).await;
        };
        if broker.network.name_servers.is_empty() {
            broker.network.name_servers = vec![address];
        }
    }
    let doors = Doors {
        clock,
        disk: Arc::new(RealDisk),
        peers: Arc::new(TcpNetwork),
        net,
        raft_runtime: Some(raft_runtime),
        seed: seed(),
        simulation: false,
    };
    let stop = shutdown.clone();
    parts.spawn(async move {
        let ready = |bound: Bound| note(ready(&bound));
        quorate_broker::run_beside(broker, doors, beside, stop, ready).await.map_err(|error| failed(&error))
    });
    finish(parts, shutdown).await
}

/// The name server's numbers, for the page of the node's metrics.
fn told_beside(metrics: Arc<quorate_namesrv::Metrics>) -> Beside {
    Arc::new(move || crate::namesrv::families(&metrics))
}

/// The line that says where the node is; a named listener as `name@client=advertised`.
fn ready(Bound { client, advertised, listeners, peer, http }: &Bound) -> String {
    let http = http.as_deref().unwrap_or("off");
    let mut line = format!("ready client={client} advertised={advertised} peer={peer} http={http}");
    for (at, BoundListener { name, client, advertised }) in listeners.iter().enumerate() {
        line += if at == 0 { " listeners=" } else { ";" };
        line += &format!("{name}@{client}={advertised}");
    }
    line
}

/// What to say instead of anything else if another process has the data directory.
fn in_use(data_dir: &Path) -> Option<Failure> {
    let lock = data_dir.join("lock");
    if !lock.exists() {
        return None;
    }
    let holder = RealDisk.lock(&lock).err().filter(|error| error.kind() == io::ErrorKind::WouldBlock)?.to_string();
    (holder != format!("process {}", std::process::id())).then(|| {
        let why = format!("data directory {} is used by {holder}", data_dir.display());
        failure::error(
            "the node did not start",
            why,
            "stop that one, or give this node a directory of its own with --data",
        )
    })
}

/// Waits for all parts. The first that ends stops the others, and the first failure is the process's.
async fn finish(mut parts: JoinSet<Result<(), Failure>>, shutdown: &CancellationToken) -> Result<(), Failure> {
    let mut outcome = Ok(());
    while let Some(ended) = parts.join_next().await {
        shutdown.cancel();
        let ended = ended.unwrap_or_else(|error| {
            Err(failure::error("a part of the node failed", error.to_string(), "restart it; report this as a bug"))
        });
        outcome = outcome.and(ended);
    }
    outcome
}

fn failed(error: &RunError) -> Failure {
    let next = match error {
        RunError::Config(_) => {
            return failure::config("the node did not start", error.to_string(), "quorate broker --print-config");
        }
        RunError::Listen { key: "network.http_listen", .. } => {
            "stop what uses the port, or choose another with --http-listen (\"\" switches it off)"
        }
        RunError::Listen { .. } => "stop what uses the port, or choose another with --listen",
        RunError::Start(StartError::Config(_)) => {
            return failure::config("the node did not start", error.to_string(), "quorate broker --print-config");
        }
        RunError::Start(_) => "do as the reason says, then start the node again",
        RunError::Task(_) => "start the node again; report this as a bug",
        RunError::Removed(_) => "nothing, if it was meant: the group goes on without this node",
        RunError::Fatal(_) => "look at the disk and at the log above, then start the node again",
    };
    let what = match error {
        RunError::Task(_) | RunError::Fatal(_) | RunError::Removed(_) => "the node has stopped",
        RunError::Config(_) | RunError::Listen { .. } | RunError::Start(_) => "the node did not start",
    };
    failure::error(what, error.to_string(), next)
}

/// Something no two nodes share.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rand::random::<u64>() ^ u64::from(now.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every table of the file is there, and the flags name keys that exist.
    #[test]
    fn flags_and_file_meet_the_node_s_settings() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("broker.toml");
        std::fs::write(&path, "[node]\ncluster = \"east\"\n[name_server]\nlisten = \"127.0.0.1:0\"\n")
            .expect("written");
        let args = BrokerArgs {
            config: Some(path),
            node: Some(2),
            peers: Some("1@127.0.0.1:1;2@127.0.0.1:2".to_owned()),
            cluster: None,
            data: Some("/tmp/x".to_owned()),
            listen: Some("127.0.0.1:0".to_owned()),
            advertise: None,
            peer_listen: Some("127.0.0.1:2".to_owned()),
            http_listen: Some(String::new()),
            name_servers: Some("127.0.0.1:1".to_owned()),
            insecure: true,
            bootstrap: true,
            join: false,
            log_format: Some(LogFormat::Json),
            print_config: false,
        };
        let loaded = args.load().expect("all of it is known");
        let BrokerFile { broker, name_server, log } = &loaded.settings;
        assert_eq!((broker.node.number, broker.node.cluster.as_str(), broker.node.peers.len()), (2, "east", 2));
        assert!(broker.network.insecure && broker.node.bootstrap);
        assert_eq!((name_server.listen.as_str(), log.format), ("127.0.0.1:0", LogFormat::Json));
        assert_eq!(broker.storage.data_dir, PathBuf::from("/tmp/x"));
        broker.validate().expect("and it can be used");
        assert_eq!(loaded.origin("network.peer_listen").to_string(), "--peer-listen");
    }

    #[test]
    fn the_ready_line_names_every_listener() {
        let listener = |name: &str, port: u16| BoundListener {
            name: name.to_owned(),
            client: format!("0.0.0.0:{port}"),
            advertised: format!("127.0.0.1:{port}"),
        };
        let mut bound =
            Bound { client: "a:1".into(), advertised: "b:1".into(), listeners: vec![], peer: "c:1".into(), http: None };
        assert_eq!(ready(&bound), "ready client=a:1 advertised=b:1 peer=c:1 http=off");
        bound.listeners = vec![listener("host", 8181), listener("vpn", 8281)];
        assert!(ready(&bound).ends_with(" listeners=host@0.0.0.0:8181=127.0.0.1:8181;vpn@0.0.0.0:8281=127.0.0.1:8281"));
    }

    /// A compose file sets everything by variables.
    #[test]
    fn listeners_are_set_by_variables_too() {
        let mut layers = Layers::of::<BrokerFile>();
        let variables = [
            ("QUORATE_NETWORK_LISTENERS", "host@0.0.0.0:8181=127.0.0.1:8081; vpn@10.8.0.1:8081"),
            ("QUORATE_NAME_SERVER_LISTENERS", "host@0.0.0.0:9976"),
            ("QUORATE_NETWORK_CLIENT_ADVERTISE", "172.28.81.11:8081"),
        ];
        layers.variables(variables.map(|(name, value)| (name.to_owned(), value.to_owned()))).expect("known");
        let loaded: Loaded<BrokerFile> = layers.load().expect("legal");
        let names: Vec<_> = loaded.settings.broker.network.listeners.iter().map(|one| one.name.as_str()).collect();
        assert_eq!((names, loaded.settings.name_server.listeners.len()), (vec!["host", "vpn"], 1));
        let mut layers = Layers::of::<BrokerFile>();
        layers.variables([("QUORATE_NETWORK_LISTENERS".to_owned(), "8181".to_owned())]).expect("known");
        let refused = layers.load::<BrokerFile>().expect_err("not a listener").to_string();
        assert!(refused.contains("QUORATE_NETWORK_LISTENERS") && refused.contains("name@listen"), "{refused}");
    }

    #[test]
    fn an_open_name_server_needs_the_same_word_as_an_open_node() {
        let loaded = Layers::of::<BrokerFile>().load().expect("defaults load");
        let mut file = BrokerFile::default();
        file.name_server.listen = "0.0.0.0:9876".to_owned();
        assert!(check_name_server(&file, &loaded).is_err());
        file.broker.network.insecure = true;
        assert!(check_name_server(&file, &loaded).is_ok());
    }
}
