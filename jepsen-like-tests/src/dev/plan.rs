//! Who listens where, and which folder is whose. Written down in the data folder, so that a group that is started again
//! on the same folder finds its peers where it left them.
//!
//! ```text
//! DATA/lock               held by the process whose group it is; who that is
//! DATA/plan.json          ports of the nodes
//! DATA/node-1/ …          a node's own files
//! DATA/log/node-1.log …   what its process printed
//! DATA/history-….jsonl.gz histories of demo runs
//! ```

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use quorate_raft::{Disk as _, disk::RealDisk};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{DevError, DevOptions, NODES};
use crate::chaos::{check_free, free_ports};

/// Makes the arguments of one node's process, and the files they name.
pub type CommandLine = Box<dyn Fn(&GroupPlan, &NodePlan) -> io::Result<Vec<OsString>> + Send + Sync>;

/// One node of the group.
#[derive(Clone, Debug)]
pub struct NodePlan {
    pub number: u32,
    /// Its own folder; not made yet when the node first starts.
    pub folder: PathBuf,
    pub log: PathBuf,
    /// `127.0.0.1:port` each.
    pub client: String,
    pub peer: String,
    pub name_server: String,
    /// Health checks and metrics.
    pub http: String,
}

/// The group.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    pub folder: PathBuf,
    pub nodes: Vec<NodePlan>,
}

/// `plan.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ports {
    client: u16,
    peer: u16,
    name_server: u16,
    http: u16,
}

impl GroupPlan {
    /// The plan for `options`, the folder's lock, and the temporary folder it lives in, if the user named none.
    pub(crate) fn make(options: &DevOptions) -> Result<(Self, Lock, Option<TempDir>), DevError> {
        let failed = |what: String| |source| DevError::Io { what, source };
        let (folder, temporary) = if let Some(folder) = &options.data {
            (folder.clone(), None)
        } else {
            let made = tempfile::Builder::new().prefix("quorate-dev-").tempdir();
            let made = made.map_err(failed("making a temporary folder".to_owned()))?;
            (made.path().to_owned(), Some(made))
        };
        let said = |folder: &Path| format!("making {}", folder.display());
        fs::create_dir_all(&folder).map_err(failed(said(&folder)))?;
        let folder = folder.canonicalize().map_err(failed(said(&folder)))?;
        // Before the ports, which another group on this folder has.
        let lock = lock(&folder)?;
        let ports = choose_ports(&folder, options.port)?;
        let loopback = |port: u16| format!("127.0.0.1:{port}");
        let node = |(number, ports): (u32, &Ports)| NodePlan {
            number,
            folder: folder.join(format!("node-{number}")),
            log: folder.join("log").join(format!("node-{number}.log")),
            client: loopback(ports.client),
            peer: loopback(ports.peer),
            name_server: loopback(ports.name_server),
            http: loopback(ports.http),
        };
        let nodes = (1..).zip(&ports).map(node).collect();
        Ok((Self { folder, nodes }, lock, temporary))
    }

    /// What clients are given: `host:port;host:port;host:port`.
    pub fn endpoints(&self) -> String {
        self.list(|node| &node.client)
    }

    /// The name servers, in the same form.
    pub fn name_servers(&self) -> String {
        self.list(|node| &node.name_server)
    }

    fn list(&self, of: impl Fn(&NodePlan) -> &String) -> String {
        self.nodes.iter().map(|node| of(node).as_str()).collect::<Vec<_>>().join(";")
    }

    pub(super) fn describe_folder(&self, temporary: bool) -> String {
        if temporary {
            "a temporary folder (removed on exit; keep with --data ./dev)".to_owned()
        } else {
            self.folder.display().to_string()
        }
    }

    /// Where the history of a run that starts now goes: into the data folder, or, if that one will be removed, beside it.
    pub(super) fn history(&self, temporary: bool, run: &str) -> PathBuf {
        let name = format!("history-{run}.jsonl.gz");
        if temporary { env::temp_dir().join(format!("quorate-dev-{name}")) } else { self.folder.join(name) }
    }
}

/// Keeps others from the folder for as long as it lives.
pub(crate) struct Lock {
    _held: Box<dyn Send + Sync>,
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lock")
    }
}

fn lock(folder: &Path) -> Result<Lock, DevError> {
    let path = folder.join("lock");
    RealDisk.lock(&path).map(|held| Lock { _held: held }).map_err(|source| {
        if source.kind() == io::ErrorKind::WouldBlock {
            DevError::InUse { folder: folder.display().to_string(), holder: source.to_string() }
        } else {
            DevError::Io { what: format!("locking {}", path.display()), source }
        }
    })
}

/// The ports of an earlier run in `folder`, or new ones; the clients' ports are the user's if given.
fn choose_ports(folder: &Path, first: Option<u16>) -> Result<Vec<Ports>, DevError> {
    let path = folder.join("plan.json");
    let failed = |what: &str| {
        let what = format!("{what} {}", path.display());
        |source| DevError::Io { what, source }
    };
    let mut ports: Vec<Ports> = match fs::read(&path) {
        Ok(text) => match serde_json::from_slice::<Vec<Ports>>(&text) {
            Ok(ports) if ports.len() == NODES as usize => ports,
            Ok(_) | Err(_) => {
                let found = String::from_utf8_lossy(&text[..text.len().min(80)]).into_owned();
                return Err(DevError::Plan { path: path.display().to_string(), found });
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let free = free_ports(4 * NODES as usize).map_err(failed("finding free ports for"))?;
            let ports = |p: &[u16]| Ports { client: p[0], peer: p[1], name_server: p[2], http: p[3] };
            free.chunks_exact(4).map(ports).collect()
        }
        Err(source) => return Err(failed("reading")(source)),
    };
    if let Some(first) = first {
        for (ports, port) in ports.iter_mut().zip(first..=u16::MAX) {
            ports.client = port;
        }
    }
    for port in ports.iter().flat_map(|ports| [ports.client, ports.peer, ports.name_server, ports.http]) {
        check_free(port).map_err(|source| DevError::Io { what: "a listener of the group".to_owned(), source })?;
    }
    let text = serde_json::to_vec(&ports).map_err(|error| failed("writing")(error.into()))?;
    fs::write(&path, text).map_err(failed("writing"))?;
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Drain;

    fn options(data: &Path, port: Option<u16>) -> DevOptions {
        let (program, data) = (PathBuf::new(), Some(data.to_owned()));
        DevOptions { program, port, data, demo: true, seconds: 1, rate: 1, drain: Drain::default() }
    }

    #[test]
    fn a_group_finds_its_ports_again_and_the_clients_ports_are_the_users() {
        let folder = tempfile::tempdir().unwrap();
        let (first, lock, temporary) = GroupPlan::make(&options(folder.path(), None)).unwrap();
        assert!(temporary.is_none());
        drop(lock);
        let (again, lock, _) = GroupPlan::make(&options(folder.path(), None)).unwrap();
        drop(lock);
        assert_eq!(first.endpoints(), again.endpoints());
        let port = free_ports(1).unwrap()[0];
        let (moved, _lock, _) = GroupPlan::make(&options(folder.path(), Some(port))).unwrap();
        assert_eq!(moved.endpoints(), format!("127.0.0.1:{port};127.0.0.1:{};127.0.0.1:{}", port + 1, port + 2));
        assert_eq!(moved.nodes[2].peer, first.nodes[2].peer);
    }

    /// A port that is taken would be the wrong thing to name, and to change.
    #[test]
    fn a_folder_in_use_is_named_with_the_process_that_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let (plan, _lock, _) = GroupPlan::make(&options(folder.path(), None)).unwrap();
        let _taken = std::net::TcpListener::bind(&plan.nodes[0].client).unwrap();
        let error = GroupPlan::make(&options(folder.path(), None)).expect_err("it is in use").to_string();
        let expected = format!("data directory {} is used by process {}", plan.folder.display(), std::process::id());
        assert!(error.starts_with(&expected) && error.contains("--data"), "{error}");
    }

    #[test]
    fn a_folder_with_another_plan_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plan.json"), "[1]").unwrap();
        let error = GroupPlan::make(&options(folder.path(), None)).expect_err("no plan").to_string();
        assert!(error.contains("plan.json holds [1]"), "{error}");
    }
}
