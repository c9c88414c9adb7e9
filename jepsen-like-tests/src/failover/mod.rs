//! A group of three real processes whose leader, or a follower, is struck again and again, for measurements.
//!
//! Strikes and their repair only: who sends, and how long the silence was, is the caller's business. A cut needs a place to
//! cut, so for that kind every node reaches each of its peers through a proxy of its own ([`proxy`]); the others have none, because
//! a proxy would answer for a process that is gone.

mod proxy;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::{sync::mpsc, time::Instant};

use self::proxy::Proxies;
use crate::{
    chaos::Exit,
    dev::{CommandLine, DevError, DevOptions, Group, GroupPlan, Lock, NodePlan},
    workload::Drain,
    world::World,
};

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The leader is killed (SIGKILL).
    Kill,
    /// The leader freezes (SIGSTOP).
    Stop,
    /// The leader's connections with both others carry nothing any more.
    Cut,
    /// The leader is told to stop (SIGTERM).
    Term,
    /// A follower is killed.
    Follower,
}

/// Between SIGTERM and SIGKILL when the group is stopped.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// How long a process may take to end after a SIGTERM.
const EXIT_PATIENCE: Duration = Duration::from_secs(40);

/// The group.
#[derive(Debug)]
pub struct Target<W> {
    group: Group<W>,
    exits: mpsc::Receiver<Exit>,
    proxies: Option<Proxies>,
    _lock: Lock,
    _folder: Option<TempDir>,
}

impl<W: World> Target<W> {
    /// Starts three nodes for strikes of this kind and waits for their leader.
    ///
    /// # Errors
    /// What kept them from starting; none is left running.
    pub async fn start(
        program: PathBuf,
        strike: Strike,
        command_line: CommandLine,
        world: Arc<W>,
    ) -> Result<Self, DevError> {
        let drain = Drain::default();
        let options = DevOptions { program, port: None, data: None, demo: false, seconds: 1, rate: 1, drain };
        let (plan, lock, folder) = GroupPlan::make(&options)?;
        let proxies = match strike {
            Strike::Cut => Some(
                Proxies::open(&plan)
                    .await
                    .map_err(|source| DevError::Io { what: "opening proxies between the nodes".to_owned(), source })?,
            ),
            Strike::Kill | Strike::Stop | Strike::Term | Strike::Follower => None,
        };
        let command_line = match &proxies {
            Some(proxies) => {
                let seen = proxies.addresses();
                let through: CommandLine = Box::new(move |plan: &GroupPlan, node: &NodePlan| {
                    let mut plan = plan.clone();
                    for other in plan.nodes.iter_mut().filter(|other| other.number != node.number) {
                        if let Some(address) = seen.get(&(node.number, other.number)) {
                            other.peer.clone_from(address);
                        }
                    }
                    command_line(&plan, node)
                });
                through
            }
            None => command_line,
        };
        let (group, mut exits) = Group::new(plan, &options.program, &command_line, world)?;
        group.start_all(&mut exits).await?;
        Ok(Self { group, exits, proxies, _lock: lock, _folder: folder })
    }

    /// Who leads, and in which term.
    pub async fn leader(&self) -> Option<(u32, u64)> {
        self.group.leader().await.map(|leader| (leader.number, leader.term))
    }

    /// Whom a strike of this kind hits.
    pub async fn victim(&self, strike: Strike) -> Option<u32> {
        let (leader, _) = self.leader().await?;
        match strike {
            Strike::Kill | Strike::Stop | Strike::Cut | Strike::Term => Some(leader),
            Strike::Follower => self.group.plan.nodes.iter().map(|node| node.number).find(|number| *number != leader),
        }
    }

    /// All nodes: number, and where clients reach it.
    pub fn nodes(&self) -> Vec<(u32, String)> {
        self.group.plan.nodes.iter().map(|node| (node.number, node.client.clone())).collect()
    }

    /// Strikes. Returns the moment before it did.
    ///
    /// # Errors
    /// The process has ended before.
    pub async fn strike(&self, strike: Strike, victim: u32) -> Result<Instant, DevError> {
        let at = Instant::now();
        match strike {
            Strike::Kill | Strike::Follower => self.group.kill(victim).await.map(drop)?,
            Strike::Stop => self.group.pause(victim).await?,
            Strike::Term => self.group.terminate(victim).await?,
            Strike::Cut => {
                if let Some(proxies) = &self.proxies {
                    proxies.cut(Some(victim));
                }
            }
        }
        Ok(at)
    }

    /// Undoes a strike and waits until the node is back and has caught up.
    ///
    /// # Errors
    /// It did not come back.
    pub async fn repair(&mut self, strike: Strike, victim: u32) -> Result<(), DevError> {
        match strike {
            Strike::Kill | Strike::Follower => self.group.restart(victim).await.map(drop)?,
            Strike::Stop => self.group.resume(victim).await?,
            Strike::Term => {
                self.gone(victim).await?;
                self.group.restart(victim).await?;
            }
            Strike::Cut => {
                if let Some(proxies) = &self.proxies {
                    proxies.cut(None);
                }
            }
        }
        self.group.rejoined(victim, None).await.map(drop)
    }

    /// Waits until a process that was told to stop has ended.
    async fn gone(&mut self, victim: u32) -> Result<(), DevError> {
        let gone = async {
            while let Some(exit) = self.exits.recv().await {
                if exit.number == victim {
                    return;
                }
            }
        };
        let what = "stopping in order";
        let too_long = |_| DevError::TooLong { what, seconds: EXIT_PATIENCE.as_secs(), hint: String::new() };
        tokio::time::timeout(EXIT_PATIENCE, gone).await.map_err(too_long)
    }

    /// Ends the nodes.
    ///
    /// # Errors
    /// The thread that keeps them has ended, and they with it.
    pub async fn stop(self) -> Result<(), DevError> {
        self.group.stop(STOP_PATIENCE).await
    }
}
