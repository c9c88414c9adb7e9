//! `quorate namesrv`: a name server alone, with a listener for health checks and metrics if one is wanted.

use std::{net::IpAddr, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use quorate_broker::{
    Page, Site,
    config::collide,
    metrics::{Family, Kind, Metric},
    metrics_page, serve_pages,
};
use quorate_namesrv::{Bound, Doors, LEASE, Metrics, NamedListener, NamesrvConfig, RunError, metrics};
use quorate_proto::{
    doors::{Net as _, NetListener, TcpNet},
    time::{Clock, SystemClock},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{
    config::{Layers, Loaded, Settings, read},
    failure::{self, Failure},
    logging::{self, LogConfig, LogFormat},
    output::note,
    stop::Stop,
};

/// Where it listens.
#[derive(Debug, Args)]
pub struct NamesrvArgs {
    /// TOML file with the name server's settings
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listener of brokers and clients (name_server.listen)
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Listener of health checks and metrics, "" for none (name_server.http_listen)
    #[arg(long, value_name = "HOST:PORT")]
    http_listen: Option<String>,
    /// The only cluster it serves (name_server.cluster)
    #[arg(long, value_name = "ID")]
    cluster: Option<String>,
    /// Allow a listener beyond loopback although nothing is encrypted or authenticated (name_server.insecure)
    #[arg(long)]
    insecure: bool,
    /// How log lines look (log.format)
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Print all settings with their origin as a TOML file, check them, and do nothing else
    #[arg(long)]
    print_config: bool,
}

/// A name server's file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NamesrvFile {
    name_server: Table,
    log: LogConfig,
}

/// The `[name_server]` table.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    /// Where it listens. Default `127.0.0.1:9876`; port 0 takes a free one.
    listen: String,
    /// More listeners, `name@host:port`, for clients of the brokers' listeners of those names. Default none.
    listeners: Vec<String>,
    /// Listener of health checks and metrics (HTTP). Default: none; port 0 takes a free one. It answers everyone who reaches it and changes
    /// nothing.
    http_listen: String,
    /// The only cluster it serves. Default: that of the first broker that registers, while it lives.
    cluster: Option<String>,
    /// Allow a listener beyond loopback. Default false.
    insecure: bool,
}

impl Settings for NamesrvFile {
    fn range(_: &str) -> Option<String> {
        None
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9876".to_owned(),
            listeners: Vec::new(),
            http_listen: String::new(),
            cluster: None,
            insecure: false,
        }
    }
}

impl NamesrvArgs {
    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// What kept it from starting or going on.
    pub async fn run(&self) -> Result<ExitCode, Failure> {
        let loaded = self.load()?;
        // Before they are checked: the place of a wrong one is to be seen there.
        if self.print_config {
            print!("{}", loaded.print());
        }
        let NamesrvFile { name_server, log } = &loaded.settings;
        let refused = |key: &str, why: String| {
            let what = format!("{key} cannot be used ({})", loaded.origin(key));
            failure::config(what, why, "quorate namesrv --print-config")
        };
        check_listen(&name_server.listen, name_server.insecure).map_err(|why| refused("name_server.listen", why))?;
        let listeners = parse_listeners(&name_server.listeners, name_server.insecure)
            .map_err(|why| refused("name_server.listeners", why))?;
        check_http(name_server, &listeners).map_err(|why| refused("name_server.http_listen", why))?;
        logging::check(log, loaded.origin("log.filter"))?;
        if self.print_config {
            return Ok(ExitCode::SUCCESS);
        }
        logging::start(log)?;
        loaded.print_changed().for_each(|line| note(format!("config: {line}")));
        let config =
            NamesrvConfig { listen: name_server.listen.clone(), listeners, cluster: name_server.cluster.clone() };
        let doors = Doors { net: Arc::new(TcpNet), clock: Arc::new(SystemClock::new()) };
        let metrics = Arc::new(Metrics::default());
        let http = listen_http(&name_server.http_listen).await?;
        let at = http.as_ref().map_or_else(|| "off".to_owned(), |http| http.local_address());
        let ready = |bound: Bound| note(format!("ready name_server={} http={at}", bound.address));
        let stop = Stop::listen()?;
        let mut pages = JoinSet::new();
        if let Some(http) = http {
            let site = Pages::new(metrics.clone(), doors.clock.clone(), name_server.cluster.clone());
            pages.spawn(serve_pages(site, http, stop.token.clone()));
        }
        let ended = quorate_namesrv::run_counted(config, doors, metrics, stop.token.clone(), ready).await;
        ended.map(|()| ExitCode::SUCCESS).map_err(|error| failed(&error))
    }

    fn load(&self) -> Result<Loaded<NamesrvFile>, Failure> {
        let mut layers = Layers::of::<NamesrvFile>();
        if let Some(path) = &self.config {
            layers.file(path.clone(), &read(path)?)?;
        }
        layers.variables(
            std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok())),
        )?;
        layers.flag("--listen", "name_server.listen", self.listen.as_deref());
        layers.flag("--http-listen", "name_server.http_listen", self.http_listen.as_deref());
        layers.flag("--cluster", "name_server.cluster", self.cluster.as_deref());
        layers.switch("--insecure", "name_server.insecure", self.insecure);
        layers.flag("--log-format", "log.format", self.log_format.map(LogFormat::name));
        layers.load()
    }
}

/// Why there may be no listener of health checks where it is wanted, or two listeners of the name server are in each other's way.
fn check_http(Table { listen, http_listen, insecure, .. }: &Table, named: &[NamedListener]) -> Result<(), String> {
    let all: Vec<&str> =
        [listen.as_str(), http_listen].into_iter().chain(named.iter().map(|one| one.listen.as_str())).collect();
    for (at, address) in all.iter().enumerate() {
        if all[..at].iter().any(|other| collide(address, other)) {
            return Err(format!("two listeners want {address}; give each a port of its own"));
        }
    }
    if http_listen.is_empty() { Ok(()) } else { check_listen(http_listen, *insecure) }
}

async fn listen_http(address: &str) -> Result<Option<Arc<dyn NetListener>>, Failure> {
    if address.is_empty() {
        return Ok(None);
    }
    TcpNet.listen(address).await.map(Some).map_err(|error| {
        let next = "stop what uses the port, or choose another with --http-listen (\"\" switches it off)";
        failure::error("the name server did not start", format!("name_server.http_listen {address}: {error}"), next)
    })
}

const INDEX: &str = "\
quorate namesrv

/health/live   it runs
/health/ready  it knows the brokers
/metrics       numbers for Prometheus
";

/// What the HTTP listener of a name server serves.
#[derive(Clone)]
struct Pages {
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    /// When it started.
    from: std::time::Duration,
    cluster: Option<String>,
}

impl Pages {
    fn new(metrics: Arc<Metrics>, clock: Arc<dyn Clock>, cluster: Option<String>) -> Self {
        let from = clock.monotonic();
        Self { metrics, clock, from, cluster }
    }

    /// A name server that has just started knows no topic, and would tell clients so. Waiting for brokers ends: they may be waiting for it,
    /// where only what is ready is found.
    fn why_not_ready(&self) -> Vec<String> {
        let waits = self.metrics.claims_taken() == 0 && self.clock.monotonic().saturating_sub(self.from) < LEASE;
        waits.then(|| "no broker has registered since it started".to_owned()).into_iter().collect()
    }
}

impl Site for Pages {
    async fn page(&self, path: &str) -> Page {
        match path {
            "/" => Page::text(INDEX),
            "/health/live" => Page::check("live", &[]),
            "/health/ready" => Page::check("ready", &self.why_not_ready()),
            "/metrics" => {
                let mut common = vec![("node_type", "namesrv")];
                common.extend(self.cluster.as_deref().map(|cluster| ("cluster", cluster)));
                metrics_page(&families(&self.metrics), &common)
            }
            _ => Page::missing(),
        }
    }
}

/// A name server's numbers as a page of metrics takes them.
pub fn families(counted: &Metrics) -> Vec<Family> {
    let family = |reading: metrics::Reading| {
        let kind = match reading.kind {
            metrics::Kind::Counter => Kind::Counter,
            metrics::Kind::Gauge => Kind::Gauge,
        };
        Metric { name: reading.name, kind, labels: &[], help: reading.help }.is(reading.value as f64)
    };
    counted.read().into_iter().map(family).collect()
}

/// Says why a name server may not listen there.
///
/// # Errors
/// It is no address, or one beyond loopback without the word for it.
pub fn check_listen(listen: &str, insecure: bool) -> Result<(), String> {
    let host = listen.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map(|(host, _)| host);
    let host = host.filter(|host| !host.is_empty()).ok_or_else(|| format!("{listen:?} is not host:port"))?;
    let is_loopback =
        host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if insecure || is_loopback {
        return Ok(());
    }
    Err(format!(
        "{listen} is reachable from other machines, and nothing is encrypted or authenticated; \
         use 127.0.0.1, or give --insecure inside a trusted network"
    ))
}

/// The named listeners of a name server.
///
/// # Errors
/// One is none, is named like another, or may not listen there.
pub fn parse_listeners(texts: &[String], insecure: bool) -> Result<Vec<NamedListener>, String> {
    let mut listeners: Vec<NamedListener> = Vec::new();
    for text in texts {
        let listener: NamedListener = text.parse()?;
        check_listen(&listener.listen, insecure)?;
        if listeners.iter().any(|other| other.name == listener.name) {
            return Err(format!("{} is listed twice; give every listener a name of its own", listener.name));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Why a name server stopped, for people.
pub fn failed(error: &RunError) -> Failure {
    let next = "stop what uses the port, or choose another with name_server.listen";
    failure::error("the name server has stopped", error.to_string(), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_stays_on_loopback_unless_told_otherwise() {
        for fine in ["127.0.0.1:9876", "localhost:0", "[::1]:1"] {
            assert_eq!(check_listen(fine, false), Ok(()), "{fine}");
        }
        assert!(check_listen("0.0.0.0:9876", false).is_err_and(|why| why.contains("--insecure")));
        assert_eq!(check_listen("0.0.0.0:9876", true), Ok(()));
        assert!(check_listen("nowhere", true).is_err());
    }

    #[test]
    fn named_listeners_obey_the_same_rule() {
        let parse = |texts: &[&str], insecure| {
            parse_listeners(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), insecure)
        };
        assert_eq!(parse(&["host@127.0.0.1:0", "vpn@0.0.0.0:1"], true).map(|listeners| listeners.len()), Ok(2));
        assert!(parse(&["host@0.0.0.0:1"], false).is_err_and(|why| why.contains("--insecure")));
        assert!(parse(&["host@127.0.0.1:1", "host@127.0.0.1:2"], true).is_err_and(|why| why.contains("twice")));
        assert!(parse(&["127.0.0.1:1"], true).is_err());
    }
}
