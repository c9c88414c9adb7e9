//! `quorate dev`: three real broker processes on this machine, and a demo that kills the leader.
//!
//! The engine is [`quorate_jepsen::dev`]; here are its flags, its screen and the children's config files. Milestones and
//! the report go to standard output (with `--json` to standard error, so that standard output holds one JSON object),
//! progress and warnings to standard error.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use quorate_jepsen::{
    dev::{self, DevEnd, DevError, DevOptions, GroupPlan, NodePlan, Screen, StopSignals},
    quorate_world::QuorateWorld,
    workload::{Drain, Progress},
};
use serde::Serialize;

use crate::failure::{self, Failure};

/// Between two lines of progress where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Run a three-node group on this machine: load, SIGKILL of the leader, verdict
#[derive(Debug, clap::Args)]
pub struct DevCommand {
    /// Keep the group up until Ctrl-C instead of running the demo; prints one line `ready endpoints=…` when it serves
    #[arg(long)]
    no_demo: bool,
    /// Clients' port of the first node; the others take the next two [default: free ones]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65533))]
    port: Option<u16>,
    /// Folder for the nodes' files, kept afterwards [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Length of the demo's load
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Messages per second of the demo
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// End with one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl DevCommand {
    /// Runs it. The exit code is the verdict: 0 for PASS, 1 for FAIL; 0 when `--no-demo` was told to stop, 130 when a demo was.
    ///
    /// # Errors
    /// There is no verdict; the children are gone.
    pub async fn run(&self) -> Result<ExitCode, Failure> {
        let failed = |error: io::Error| {
            failure::error("the group was not started", error.to_string(), "check the limits of this machine")
        };
        let options = DevOptions {
            program: std::env::current_exe().map_err(failed)?,
            port: self.port,
            data: self.data.clone(),
            demo: !self.no_demo,
            seconds: self.seconds,
            rate: self.rate,
            drain: Drain::default(),
        };
        let signals = StopSignals::listen().map_err(failed)?;
        let screen = Arc::new(Terminal::new(self.json));
        let world = Arc::new(QuorateWorld::default());
        let end = dev::run(options, Box::new(command_line), world, screen, signals.token()).await;
        match end {
            Ok(DevEnd::Judged(report)) => {
                if self.json {
                    let json = serde_json::to_string(&report).map_err(|error| failed(error.into()))?;
                    print(&mut io::stdout(), &json);
                }
                Ok(if report.is_pass() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Ok(DevEnd::Stopped) if self.no_demo => Ok(ExitCode::SUCCESS),
            Ok(DevEnd::Stopped) => Ok(ExitCode::from(130)),
            Err(error @ DevError::InUse { .. }) => {
                let next = "stop that process, or run this group on another folder with --data";
                Err(failure::error("the group was not started", error.to_string(), next))
            }
            Err(error) => {
                let next = "see the nodes' logs in the folder `log` of the data folder; quorate dev --help";
                Err(failure::error("dev came to no verdict", error.to_string(), next))
            }
        }
    }
}

/// The arguments of one node, and its config file: a whole example of one.
pub fn command_line(group: &GroupPlan, node: &NodePlan) -> io::Result<Vec<OsString>> {
    let folder = group.folder.join("config");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("node-{}.toml", node.number));
    let text = toml::to_string(&NodeFile::of(group, node)).map_err(io::Error::other)?;
    fs::write(&path, text)?;
    Ok(vec!["broker".into(), "--config".into(), path.into()])
}

/// What a node's file says; all else is at its default.
#[derive(Serialize)]
struct NodeFile<'a> {
    node: Node<'a>,
    network: Network<'a>,
    storage: Storage<'a>,
    retention: Retention,
    name_server: NameServer<'a>,
}

#[derive(Serialize)]
struct Node<'a> {
    cluster: &'a str,
    number: u32,
    peers: Vec<String>,
}

#[derive(Serialize)]
struct Network<'a> {
    client_listen: &'a str,
    peer_listen: &'a str,
    http_listen: &'a str,
    name_servers: Vec<&'a str>,
}

#[derive(Serialize)]
struct Storage<'a> {
    data_dir: &'a Path,
}

/// A trial goes on on a full laptop: it stores little, and for minutes.
#[derive(Serialize)]
struct Retention {
    disk_warn_percent: u8,
    disk_full_percent: u8,
}

#[derive(Serialize)]
struct NameServer<'a> {
    listen: &'a str,
}

impl<'a> NodeFile<'a> {
    fn of(group: &'a GroupPlan, node: &'a NodePlan) -> Self {
        let peers = group.nodes.iter().map(|node| format!("{}@{}", node.number, node.peer)).collect();
        let name_servers = group.nodes.iter().map(|node| node.name_server.as_str()).collect();
        Self {
            node: Node { cluster: "dev", number: node.number, peers },
            network: Network {
                client_listen: &node.client,
                peer_listen: &node.peer,
                http_listen: &node.http,
                name_servers,
            },
            storage: Storage { data_dir: &node.folder },
            retention: Retention { disk_warn_percent: 97, disk_full_percent: 99 },
            name_server: NameServer { listen: &node.name_server },
        }
    }
}

/// Where the engine's words go.
struct Terminal {
    /// Milestones make way for the JSON object.
    json: bool,
    /// On a terminal.
    bar: Option<ProgressBar>,
    /// When progress was last written as a line.
    plain: Mutex<Instant>,
}

impl Terminal {
    fn new(json: bool) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {spinner} {msg}").expect("the template is fixed and right");
            ProgressBar::new_spinner().with_style(style)
        });
        Self { json, bar, plain: Mutex::new(Instant::now()) }
    }

    fn write(&self, out: &mut impl Write, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print(out, text)),
            None => print(out, text),
        }
    }
}

impl Screen for Terminal {
    fn line(&self, text: &str) {
        if self.json { self.write(&mut io::stderr(), text) } else { self.write(&mut io::stdout(), text) }
    }

    fn warn(&self, text: &str) {
        self.write(&mut io::stderr(), text);
    }

    fn progress(&self, progress: Option<&Progress>) {
        match (&self.bar, progress) {
            (Some(bar), Some(progress)) => {
                bar.set_message(said(progress));
                bar.tick();
            }
            (Some(bar), None) => bar.finish_and_clear(),
            (None, Some(progress)) => {
                let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
                if plain.elapsed() >= PLAIN_EVERY {
                    *plain = Instant::now();
                    print(&mut io::stderr(), &format!("  {}", said(progress)));
                }
            }
            (None, None) => {}
        }
    }

    fn ready(&self, text: &str) {
        self.write(&mut io::stdout(), text);
    }
}

fn said(progress: &Progress) -> String {
    let Progress { acked, consumed, failed, unknown, p99_us, .. } = progress;
    let p99_ms = *p99_us as f64 / 1_000.0;
    format!("acked {acked}  consumed {consumed}  p99 {p99_ms:.1} ms  client errors {}", failed + unknown)
}

/// Writes a line; a reader that has gone away is no reason to stop.
fn print(out: &mut impl Write, text: &str) {
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_file_names_its_listeners_its_folder_and_every_peer() {
        let folder = tempfile::tempdir().unwrap();
        let node = |number: u32| NodePlan {
            number,
            folder: folder.path().join(format!("node-{number}")),
            log: folder.path().join("log"),
            client: format!("127.0.0.1:1{number}"),
            peer: format!("127.0.0.1:2{number}"),
            name_server: format!("127.0.0.1:3{number}"),
            http: format!("127.0.0.1:4{number}"),
        };
        let group = GroupPlan { folder: folder.path().to_owned(), nodes: vec![node(1), node(2), node(3)] };
        let arguments = command_line(&group, &group.nodes[1]).unwrap();
        let path = folder.path().join("config/node-2.toml");
        assert_eq!(arguments, ["broker".as_ref(), "--config".as_ref(), path.as_os_str()]);
        let file: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
        assert_eq!(file["node"]["number"].as_integer(), Some(2));
        let peers: Vec<_> = file["node"]["peers"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
        assert_eq!(peers, ["1@127.0.0.1:21", "2@127.0.0.1:22", "3@127.0.0.1:23"]);
        assert_eq!(file["network"]["client_listen"].as_str(), Some("127.0.0.1:12"));
        assert_eq!(file["network"]["http_listen"].as_str(), Some("127.0.0.1:42"));
        assert_eq!(file["network"]["name_servers"].as_array().map(Vec::len), Some(3));
        assert_eq!(file["name_server"]["listen"].as_str(), Some("127.0.0.1:32"));
        assert!(file["storage"]["data_dir"].as_str().is_some_and(|folder| folder.ends_with("node-2")));
    }
}
