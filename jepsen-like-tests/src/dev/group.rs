//! The group while it runs: its processes, and who leads it.
//!
//! A node is believed about itself only: the leader is whoever says of itself that it leads, in the highest term. What a
//! status call says about peers may be old, and a dead peer would make it slow.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{CommandLine, DevError, GroupPlan, NodePlan};
use crate::{
    chaos::{Exit, Launch, NodeLaunch, Processes},
    world::{NodeView, Role, World},
};

/// How often the nodes are asked who leads, and so the resolution of election times.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// A node that takes longer to say how it is counts as silent.
const STATUS_PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a group may take to elect a leader before the run is given up.
const LEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a node may take to come back and catch up.
const REJOIN_PATIENCE: Duration = Duration::from_secs(60);

/// Three processes and the means to ask them.
#[derive(Debug)]
pub struct Group<W> {
    pub plan: GroupPlan,
    processes: Processes,
    world: Arc<W>,
}

/// A leader, as it says itself.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub number: u32,
    pub term: u64,
    pub committed_index: u64,
}

/// How a node came back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rejoined {
    pub took: Duration,
    /// Log entries it had to catch up on.
    pub entries: u64,
}

impl<W: World> Group<W> {
    /// Prepares the processes and starts none.
    pub(crate) fn new(
        plan: GroupPlan,
        program: &Path,
        command_line: &CommandLine,
        world: Arc<W>,
    ) -> Result<(Self, mpsc::Receiver<Exit>), DevError> {
        let failed = |what: &'static str| move |source| DevError::Io { what: what.to_owned(), source };
        let mut nodes = Vec::new();
        for node in &plan.nodes {
            let args = command_line(&plan, node).map_err(failed("preparing a node's command line"))?;
            nodes.push(NodeLaunch { number: node.number, args, log: node.log.clone() });
        }
        let launch = Launch { program: program.to_owned(), nodes };
        let started = Processes::new(launch);
        let (processes, exits) = started.map_err(failed("starting the thread that keeps the processes"))?;
        Ok((Self { plan, processes, world }, exits))
    }

    /// Starts all nodes and waits until every one of them knows the same leader. A node that ends meanwhile is an error
    /// that shows the end of its log.
    pub(crate) async fn start_all(&self, exits: &mut mpsc::Receiver<Exit>) -> Result<Leader, DevError> {
        for node in &self.plan.nodes {
            self.processes.start(node.number).await?;
        }
        let agreed = async {
            loop {
                let views = self.views(None).await;
                let leader = leader_among(&views);
                let known = leader.iter().flat_map(|leader| views.values().filter(|v| v.leader == Some(leader.number)));
                if known.count() == self.plan.nodes.len() {
                    return leader;
                }
                sleep(ASK_EVERY).await;
            }
        };
        tokio::select! {
            leader = timeout(LEADER_PATIENCE, agreed) => leader.ok().flatten().ok_or_else(|| self.too_long("electing a first leader")),
            exit = exits.recv() => Err(self.ended(exit)),
        }
    }

    fn ended(&self, exit: Option<Exit>) -> DevError {
        let Some(exit) = exit else { return DevError::Process(crate::chaos::ProcessError::KeeperGone) };
        let log = self.plan.nodes.iter().find(|node| node.number == exit.number).map(|node| node.log.as_path());
        DevError::BrokerEnded {
            number: exit.number,
            status: exit.status.to_string(),
            log: log.map(|log| log.display().to_string()).unwrap_or_default(),
            tail: log.map(tail).unwrap_or_default(),
        }
    }

    fn too_long(&self, what: &'static str) -> DevError {
        let logs = self.plan.folder.join("log");
        let seconds = LEADER_PATIENCE.as_secs();
        DevError::TooLong { what, seconds, hint: format!("; the nodes' logs are in {}", logs.display()) }
    }

    /// What each node but `except` says of itself; silent ones are missing.
    async fn views(&self, except: Option<u32>) -> BTreeMap<u32, NodeView> {
        let asked = self.plan.nodes.iter().filter(|node| Some(node.number) != except);
        let answers = join_all(asked.map(|node| self.view(node))).await;
        answers.into_iter().flatten().map(|view| (view.number, view)).collect()
    }

    async fn view(&self, node: &NodePlan) -> Option<NodeView> {
        let answer = timeout(STATUS_PATIENCE, self.world.status(&node.client)).await.ok()?.ok()?;
        answer.into_iter().find(|view| view.number == node.number)
    }

    /// Who leads now, if anyone says so.
    pub(crate) async fn leader(&self) -> Option<Leader> {
        leader_among(&self.views(None).await)
    }

    /// Waits until a node other than `except` leads in a term above `term`.
    pub(super) async fn new_leader(&self, except: u32, term: u64) -> Result<Leader, DevError> {
        let found = async {
            loop {
                let leader = leader_among(&self.views(Some(except)).await);
                if let Some(leader) = leader.filter(|leader| leader.term > term) {
                    return leader;
                }
                sleep(ASK_EVERY).await;
            }
        };
        timeout(LEADER_PATIENCE, found).await.map_err(|_| self.too_long("electing a new leader"))
    }

    /// The last index in the log of node `number`, if it says so.
    pub(super) async fn last_index(&self, number: u32) -> Option<u64> {
        let node = self.plan.nodes.iter().find(|node| node.number == number)?;
        self.view(node).await.map(|view| view.last_index)
    }

    /// SIGKILL. Returns when the signal is sent; the kernel does the rest at once.
    pub(crate) async fn kill(&self, number: u32) -> Result<u32, DevError> {
        Ok(self.processes.kill(number).await?)
    }

    /// SIGSTOP: it freezes, its connections stay open.
    pub(crate) async fn pause(&self, number: u32) -> Result<(), DevError> {
        Ok(self.processes.pause(number).await.map(drop)?)
    }

    /// SIGCONT.
    pub(crate) async fn resume(&self, number: u32) -> Result<(), DevError> {
        Ok(self.processes.resume(number).await.map(drop)?)
    }

    /// SIGTERM: it is told to stop, and does when it is ready.
    pub(crate) async fn terminate(&self, number: u32) -> Result<(), DevError> {
        Ok(self.processes.terminate(number).await.map(drop)?)
    }

    /// Starts a node again with the directory it has; returns its process id.
    pub(crate) async fn restart(&self, number: u32) -> Result<u32, DevError> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match self.processes.start(number).await {
                // The signal is sent, the process not quite gone.
                Err(crate::chaos::ProcessError::Running(_)) if Instant::now() < deadline => sleep(ASK_EVERY).await,
                started => return Ok(started?),
            }
        }
    }

    /// Waits until node `number` has applied all that its leader had committed when it first answered. `had` is the
    /// last index it had before.
    pub(crate) async fn rejoined(&self, number: u32, had: Option<u64>) -> Result<Rejoined, DevError> {
        let since = Instant::now();
        let caught_up = async {
            let mut goal: Option<u64> = None;
            loop {
                let views = self.views(None).await;
                let leader = leader_among(&views);
                if let (Some(view), Some(leader)) = (views.get(&number), leader) {
                    let goal = *goal.get_or_insert(leader.committed_index);
                    if view.applied_index >= goal && view.leader.is_some() {
                        return goal;
                    }
                }
                sleep(ASK_EVERY).await;
            }
        };
        match timeout(REJOIN_PATIENCE, caught_up).await {
            Ok(goal) => Ok(Rejoined { took: since.elapsed(), entries: goal.saturating_sub(had.unwrap_or(goal)) }),
            Err(_) => Err(DevError::TooLong {
                what: "catching up after the restart",
                seconds: REJOIN_PATIENCE.as_secs(),
                hint: format!("; the nodes' logs are in {}", self.plan.folder.join("log").display()),
            }),
        }
    }

    /// Ends all nodes, within `patience` and the blink of an eye.
    pub(crate) async fn stop(&self, patience: Duration) -> Result<(), DevError> {
        Ok(self.processes.stop_all(patience).await?)
    }

    /// The end of the log of node `number`, for a person.
    pub(super) fn log_tail(&self, number: u32) -> String {
        self.plan.nodes.iter().find(|node| node.number == number).map(|node| tail(&node.log)).unwrap_or_default()
    }
}

fn leader_among(views: &BTreeMap<u32, NodeView>) -> Option<Leader> {
    let leaders = views.values().filter(|view| view.role == Role::Leader);
    leaders.max_by_key(|view| view.term).map(|view| Leader {
        number: view.number,
        term: view.term,
        committed_index: view.committed_index,
    })
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
