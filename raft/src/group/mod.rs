//! One node of one group, running: the handle everybody above this crate holds.
//!
//! ```text
//! start ── recover, restore the machine, bind ──▶ birth (a new node) ──▶ watch: leader, isolation, faults
//!                                                  members (a leader)     floor: image at the floor → snapshot → purge
//!                                                  gate (a node that may have forgotten what it acked)
//!                                                  removed (a node that has left)
//! propose, transfer, change, status: what callers do with it
//! ```
//! All tasks of a node run in one scope: they end together, at shutdown or in a simulated crash.

use std::{
    io,
    marker::PhantomData,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::Raft;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    binding::TypeConfig,
    config::{ConfigError, GroupConfig},
    disk::Disk,
    fatal::Fatal,
    hard_state::OpenError,
    log::{Log, LogView},
    machine::{
        StateMachine,
        applier::{Applied, Applier},
        erased::erase,
    },
    metrics::Family,
    network::{BoxFuture, Network},
    peer::{Peers, mux::CallFailure},
    runtime::Scope,
    snapshot::Images,
    store::completion,
    types::{LogId, LogIndex, NodeId, Position, Term},
};

mod birth;
mod change;
mod fast_path;
mod floor;
mod gate;
mod health;
mod history;
mod members;
mod mend;
mod metrics;
mod propose;
mod removed;
mod service;
mod start;
mod status;
mod transfer;
mod watcher;

pub use change::{ChangeError, ChangeStep, MemberChange};
pub use history::{Cause, LeaderChange};
pub use transfer::TransferError;

use fast_path::Turn;
use gate::Gate;
pub use health::{GroupHealth, VoterHealth};
use history::History;

/// The doors of a node: everything it touches outside itself.
#[derive(Clone)]
pub struct Doors {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Connections to peers.
    pub network: Arc<dyn Network>,
}

/// Answers what a peer asks of this node by [`Group::call`] / [`Group::call_leader`].
pub trait CallHandler: Send + Sync + 'static {
    /// Serves one request of the node `from`. Dropped when the caller gave up or its connection ended.
    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'static, Bytes>;
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error("config: {0}")]
    Config(String),
    /// A file or port could not be used; says which.
    #[error("{what}: {source}")]
    Io {
        /// The file or address.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory belongs to another node, cluster or format; says the remedy.
    #[error("{0}")]
    WrongDirectory(String),
    /// Damage that is not a torn tail; says file, place and remedy.
    #[error("{0}")]
    Corrupt(String),
    /// LAW-BIRTH refuses to form or join a group; says why and the runbook.
    #[error("{0}")]
    Birth(String),
    /// openraft did not start.
    #[error("raft: {0}")]
    Raft(String),
}

/// Why a proposal has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not the leader; certainly no effect.
    #[error("not the leader")]
    NotLeader {
        /// The leader this node knows.
        leader: Option<NodeId>,
    },
    /// Too many bytes in flight; certainly no effect.
    #[error("overloaded")]
    Overloaded,
    /// Larger than `entry_bytes_max`; certainly no effect.
    #[error("entry of {0} bytes is larger than the limit")]
    TooLarge(usize),
    /// Handed over, then leadership or time was lost: it may or may not take effect.
    #[error("the outcome is unknown")]
    Unknown,
    /// The node has stopped or is stopping because of a fault.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

/// Why a call to a peer has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nobody to ask, or the request did not leave this node: certainly no effect.
    #[error("not sent: {0}")]
    NotSent(String),
    /// Sent, and no answer came: may have had an effect.
    #[error("no answer: {0}")]
    Unknown(String),
}

/// A node's part in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Orders the log, and a majority answers it.
    Leader,
    /// Votes and replicates.
    Follower,
    /// Asks for votes, or has won them and is not answered by a majority (any more).
    Candidate,
    /// Replicates without a vote.
    Learner,
}

/// Who leads, as this node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaderView {
    /// Highest term seen.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
    /// This node is that leader, has applied everything from before its term, and may serve.
    pub serving: bool,
    /// No peer answered for longer than the election timeout (never true in a group of one).
    pub isolated: bool,
}

/// One member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its identity.
    pub id: NodeId,
    /// Where its peer listener is.
    pub peer_address: String,
    /// Its `GroupConfig::info`, if it ever said so.
    pub info: Option<String>,
    /// It votes.
    pub voter: bool,
    /// This node has heard from it within the election timeout (always true for itself).
    pub alive: bool,
    /// On the leader: the last entry it has.
    pub matched: Option<LogIndex>,
}

/// The state of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// This node.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Its last entry.
    pub last: Option<LogId>,
    /// Last committed entry it knows.
    pub committed: Option<LogId>,
    /// Last applied entry.
    pub applied: Option<LogId>,
    /// End of the written log.
    pub end: Position,
    /// End of what is on stable storage.
    pub synced: Position,
    /// First position kept.
    pub floor: Position,
    /// Chained hash of the last applied entry (equal on all nodes at the same index).
    pub chain: u32,
    /// Syncs of the log since start.
    pub syncs: u64,
    /// Entries appended since start.
    pub entries: u64,
    /// Files of its own that it knows to be damaged and that are not put back yet, each with what was met first. It serves around them.
    pub damaged: Vec<String>,
    /// Where the membership that this node goes by stands in the log; `None` before the group is born.
    pub membership: Option<LogIndex>,
    /// Everyone in it.
    pub members: Vec<MemberStatus>,
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Io { what, source } => Self::Io { what, source },
            OpenError::WrongDirectory(reason) => Self::WrongDirectory(reason),
            OpenError::Corrupt(reason) => Self::Corrupt(reason),
        }
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<CallFailure> for CallError {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::NotSent(reason) => Self::NotSent(reason),
            CallFailure::Refused(_) => Self::NotSent(failure.to_string()),
            CallFailure::Lost(reason) => Self::Unknown(reason),
        }
    }
}

/// The machine could not be made (checkpoint folder not usable and not movable).
pub type MachineStart = String;

/// What all tasks of a node share.
struct Inner {
    config: Arc<GroupConfig>,
    me: NodeId,
    raft: Raft<TypeConfig, Applier>,
    log: Log,
    images: Images,
    peers: Arc<Peers>,
    calls: Arc<dyn CallHandler>,
    leader: watch::Receiver<LeaderView>,
    applied: watch::Receiver<Applied>,
    inflight: Semaphore,
    gate: Arc<Gate>,
    turn: Turn,
    history: History,
    fatal: Fatal,
    scope: Scope,
    stop: CancellationToken,
    /// One change of membership at a time.
    admitting: tokio::sync::Mutex<()>,
    under_way: change::UnderWay,
    /// This node was removed from the group, which is why it ends.
    is_removed: AtomicBool,
    /// Held while the node runs.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

/// Handle of a running node. Cheap to clone.
///
/// Only this handle knows the machine's type: everything behind it is compiled once, whatever the machine is.
pub struct Group<M: StateMachine> {
    inner: Arc<Inner>,
    replies: PhantomData<fn() -> M>,
}

impl<M: StateMachine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), replies: PhantomData }
    }
}

impl<M: StateMachine> Group<M> {
    /// Opens the data directory, recovers, restores the machine (checkpoint or image, then replay of what was known committed),
    /// binds the peer listener and joins or forms the group in the background. `make` gets the view it will read bodies through.
    ///
    /// Must run inside a tokio runtime; every task of the node is spawned on it. Dropped half way, everything that was begun
    /// ends as in [`Group::kill`].
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then, and the directory can be opened again.
    pub async fn start(
        config: GroupConfig,
        doors: Doors,
        calls: Arc<dyn CallHandler>,
        make: impl FnOnce(LogView) -> Result<M, MachineStart> + Send,
    ) -> Result<Self, StartError> {
        let make = move |view| make(view).map(erase);
        let inner = start::start(config, doors, calls, Box::new(make)).await?;
        Ok(Self { inner, replies: PhantomData })
    }

    /// This node's identity.
    pub fn id(&self) -> NodeId {
        self.inner.me
    }

    /// Proposes an entry and waits until it is applied here. Not cancel safe in meaning: dropped, the outcome is unknown.
    ///
    /// # Errors
    /// `NotLeader`, `Overloaded`, `TooLarge`, `Stopped`: certainly no effect. `Unknown`: handed over, then discarded or lost
    /// from sight; it may have been applied, may still be, or never.
    pub async fn propose(&self, payload: Bytes) -> Result<M::Reply, ProposeError> {
        let reply = propose::propose(&self.inner, payload).await?;
        // Only an entry of the machine is answered in its own type, and this is one.
        reply.take::<M::Reply>().ok_or(ProposeError::Unknown)
    }

    /// Proposes that everything below the largest segment border ≤ `floor` may be dropped by every node.
    ///
    /// Returns once the new floor is applied here; files go away later, in the background of each node. A floor that is not
    /// above the present one changes nothing and is fine.
    ///
    /// # Errors
    /// As [`Group::propose`].
    pub async fn propose_floor(&self, floor: Position) -> Result<(), ProposeError> {
        propose::propose_floor(&self.inner, floor).await
    }

    /// Returns once a quorum has confirmed that this node leads and everything committed before the call is applied here (ReadIndex).
    ///
    /// # Errors
    /// `NotLeader` also when no quorum answered in time; nothing is changed in any case.
    pub async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        propose::confirm_leadership(&self.inner).await
    }

    /// Changes of leadership.
    pub fn leader(&self) -> watch::Receiver<LeaderView> {
        self.inner.leader.clone()
    }

    /// Asks the current leader's [`CallHandler`] (this node's own one if it leads).
    ///
    /// # Errors
    /// `NotSent`: no leader is known, it could not be reached, or it refused before it did anything. `Unknown`: see [`CallError`].
    pub async fn call_leader(&self, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let leader = self.inner.leader.borrow().leader;
        match leader {
            Some(leader) => self.call(leader, request, timeout).await,
            None => Err(CallError::NotSent("no leader is known".into())),
        }
    }

    /// Asks one member's [`CallHandler`]. Cancel safe: dropped, the member is told and drops its work.
    ///
    /// # Errors
    /// As [`Group::call_leader`].
    pub async fn call(&self, to: NodeId, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + timeout;
        if to == self.inner.me {
            let answer = tokio::time::timeout_at(deadline, self.inner.calls.call(to, request)).await;
            return answer.map_err(|_| CallError::Unknown("timed out".into()));
        }
        Ok(self.inner.peers.call(to, request, deadline).await?)
    }

    /// The state of this node now.
    pub fn status(&self) -> GroupStatus {
        status::status(&self.inner)
    }

    /// How sound this node and its group are, as this node sees it now.
    pub fn health(&self) -> GroupHealth {
        health::health(&self.inner)
    }

    /// Every metric of this node's log and of its part in the group, as it stands now.
    pub fn metrics(&self) -> Vec<Family> {
        metrics::families(&self.inner)
    }

    /// Reader of committed bytes.
    pub fn log(&self) -> LogView {
        self.inner.log.view()
    }

    /// Asks this leader to hand leadership to `to` (default: the most caught-up voter). Returns whom it has asked, not when done.
    ///
    /// From then on this node refuses proposals, until the new leader is there. If nobody is within one election timeout, this
    /// node has itself elected again.
    ///
    /// # Errors
    /// See [`TransferError`]; nothing has changed then.
    pub async fn transfer(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        transfer::transfer(&self.inner, to).await
    }

    /// Takes a change of membership one step further, and tells how far it is: to be asked again until it is [`ChangeStep::Done`], of
    /// whoever leads. Nothing is remembered elsewhere than in the membership, so the same question asked of a later leader, or once more
    /// after its answer was lost, goes on or says that it is done. Nothing acknowledged is lost at any step, and no step takes the group's
    /// quorum away as long as its live voters stay.
    ///
    /// A new node must be running, empty, of the same cluster and segment size, and configured with some nodes of this group. It becomes a
    /// learner, and a voter once it lacks at most 1,000 entries. A leader that is removed hands leadership over first. A removed node that
    /// runs ends by itself with a reason, see [`Group::fatal`], and refuses to start again from its directory.
    ///
    /// Dropped half way, what was begun is finished in the background.
    ///
    /// # Errors
    /// See [`ChangeError`]. After 5 s without a question a change counts as given up and no longer keeps others from beginning.
    pub async fn change_members(&self, change: MemberChange) -> Result<ChangeStep, ChangeError> {
        change::step(&self.inner, change).await
    }

    /// The last changes of leadership that this node has seen, oldest first.
    pub fn history(&self) -> Vec<LeaderChange> {
        self.inner.history.list()
    }

    /// Resolves when the node has stopped by a fault, with its reason. The process must then exit non-zero.
    pub async fn fatal(&self) -> String {
        self.inner.fatal.wait().await
    }

    /// Whether the reason is that this node was removed from its group: no fault, and no start from its directory will do.
    pub fn is_removed(&self) -> bool {
        self.inner.is_removed.load(Ordering::Acquire)
    }

    /// Stops: no more proposals, listener closed, log synced and marked clean, lock released.
    ///
    /// Transfer leadership first if others should not wait for an election. Calling it again is fine.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        // openraft ends between two steps; what is queued at the writer is written below.
        let _ = self.inner.raft.shutdown().await;
        let (done, closed) = completion();
        self.inner.log.close(done);
        if let Err(error) = closed.await
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::error!(%error, "log was not closed cleanly");
        }
        self.inner.end();
    }

    /// Ends every task of this node at its next step and never writes again, as `SIGKILL` would. For simulations.
    pub fn kill(&self) {
        self.inner.log.abandon();
        self.inner.stop.cancel();
        self.inner.end();
    }
}

impl Inner {
    fn end(&self) {
        self.scope.end();
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Why nothing can be asked of this node any more, if so.
    fn stopped(&self) -> Option<String> {
        self.fatal.reason().or_else(|| self.stop.is_cancelled().then(|| "it was shut down".into()))
    }

    /// A segment of this node's log is known to be damaged: it serves, and others lead if they can.
    fn is_damaged(&self) -> bool {
        !self.log.damaged().borrow().is_empty()
    }

    fn is_leader(&self) -> bool {
        self.leader.borrow().leader == Some(self.me)
    }
}
