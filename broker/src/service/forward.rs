//! Any node serves any call: here, at the leader, or a little later.
//!
//! ```text
//!               ┌ this node leads ──▶ execute
//!   call ─▶ who leads? ├ another does ──▶ send it there (once; it never sends it on)
//!        ▲      └ nobody yet ──▶ hold: in arrival order, bounded by bytes and time
//!        └── not the leader any more · connection lost · outcome unknown and repeatable ──┘
//! ```
//! A call that was never handed over ends as [`Undone::NotNow`], one that may have been as [`Undone::Unknown`]; the two are never mixed.
//! Sends are repeated here after an unknown outcome, because the machine recognises a repeat by its message id, receives because
//! of their attempt id; calls whose repeat would be answered differently are not ([`Call::REPEATABLE`]). A node that reaches no peer
//! holds nothing: its clients are better served elsewhere.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use quorate_proto::{admin::NodeStatus, time::Timestamp, v2::Code};
use quorate_raft::{CallError, CallHandler, Group, LeaderView, NodeId, ProposeError};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    leadership,
    members::{self, Picture},
    producers::{ASK_CHECK, ASK_PRODUCERS, Streams, answer_check, answer_producers},
    wire::status::Fault,
};
use crate::{
    config::Limits,
    leader::{
        Failure, Leader, PeerClocks, TermClock,
        calls::{AnyCall, Call, No, framed},
        mend::ASK_POINTERS,
        propose::LogFuture,
        rescue::ASK_RECORD,
        space::{ASK_SPACE, Space},
    },
    metrics::Metrics,
    replica::Replica,
};

/// Rest before the same leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

// First byte of an answer between nodes.
const ANSWER: u8 = 1;
const REFUSED: u8 = 2;
const NOT_LEADER: u8 = 3;
const OVERLOADED: u8 = 4;
const UNKNOWN: u8 = 5;

// First byte of a question to any node; calls to the leader are below.
const ASK_CLOCK: u8 = 100;

/// Why a call came back without its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undone {
    /// The broker says no; nothing has changed.
    Refused(Fault),
    /// Nobody took it in time; certainly no effect.
    NotNow,
    /// Too much under way; certainly no effect.
    Overloaded,
    /// It may or may not have taken effect.
    Unknown,
}

impl From<Undone> for Fault {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Refused(fault) => fault,
            Undone::NotNow => Self::no_leader(),
            Undone::Overloaded => ProposeError::Overloaded.into(),
            Undone::Unknown => ProposeError::Unknown.into(),
        }
    }
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until {
    /// It is answered by then.
    pub answer: Instant,
    /// A receive waits for messages until then.
    pub wait: Instant,
}

/// What one try came to.
enum Try<A> {
    Done(A),
    /// Not handed over; try again.
    NotTaken,
    /// Handed over, no answer.
    Lost,
    Ended(Undone),
}

/// Finds whoever can execute a call.
pub(crate) struct Dispatch {
    group: Group<Replica>,
    leader: Arc<Leader>,
    me: NodeId,
    /// Bytes of calls that are held or sent to the leader.
    held_bytes: AtomicU64,
    held_bytes_max: u64,
    /// The oldest held call stands here; the others queue behind it in the order they came.
    turnstile: Semaphore,
    metrics: Arc<Metrics>,
}

impl Dispatch {
    /// The dispatcher of a node.
    pub fn new(group: Group<Replica>, leader: Arc<Leader>, limits: &Limits, metrics: Arc<Metrics>) -> Self {
        let me = group.status().id;
        Self {
            group,
            leader,
            me,
            held_bytes: AtomicU64::new(0),
            held_bytes_max: limits.held_bytes_max,
            turnstile: Semaphore::new(1),
            metrics,
        }
    }

    /// Has `call` executed, by `until.answer` at the latest. Dropped, the call may still take effect.
    pub async fn call<C: Call>(&self, mut call: C, until: Until) -> Result<C::Answer, Undone> {
        let mut leadership = self.group.leader();
        let mut lost = false;
        let mut room = None;
        loop {
            let view = *leadership.borrow_and_update();
            if view.isolated {
                break;
            }
            call.set_wait(until.wait.saturating_duration_since(Instant::now()));
            let tried = if view.serving {
                self.execute(&call, until.answer).await
            } else {
                if room.is_none() {
                    room = Some(self.make_room(call.encoded_len() as u64, view)?);
                }
                match view.leader.filter(|leader| *leader != self.me) {
                    Some(leader) => self.send_to(leader, &call, until.answer, &mut leadership).await,
                    None => Try::NotTaken,
                }
            };
            match tried {
                Try::Done(answer) => return Ok(answer),
                Try::Ended(undone) => return Err(undone),
                Try::NotTaken => {}
                Try::Lost if C::REPEATABLE => lost = true,
                Try::Lost => return Err(self.give_up(true)),
            }
            if !self.hold(&mut leadership, view, until.answer).await {
                break;
            }
        }
        Err(self.give_up(lost))
    }

    fn give_up(&self, lost: bool) -> Undone {
        if lost {
            self.metrics.unknown.add(1);
            return Undone::Unknown;
        }
        self.metrics.not_now.add(1);
        Undone::NotNow
    }

    /// Takes room for a call that leaves this node or waits here.
    fn make_room(&self, bytes: u64, view: LeaderView) -> Result<Room<'_>, Undone> {
        let room = Room { held: &self.held_bytes, bytes };
        let before = self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before == 0 || before + bytes <= self.held_bytes_max {
            return Ok(room);
        }
        // With a leader there, so much waits because there is too much; without one, because nobody takes it.
        if view.leader.is_none() {
            return Err(self.give_up(false));
        }
        self.metrics.overloaded.add(1);
        Err(Undone::Overloaded)
    }

    /// Executes on this node.
    async fn execute<C: Call>(&self, call: &C, deadline: Instant) -> Try<C::Answer> {
        match timeout_at(deadline, call.execute(&self.leader)).await {
            Ok(Ok(answer)) => Try::Done(answer),
            Ok(Err(failure)) => self.failed(failure),
            Err(_) => Try::Lost,
        }
    }

    fn failed<A>(&self, failure: Failure) -> Try<A> {
        match failure {
            Failure::Propose(ProposeError::NotLeader { .. }) => Try::NotTaken,
            Failure::Propose(ProposeError::Unknown | ProposeError::Stopped(_)) => Try::Lost,
            Failure::Propose(ProposeError::Overloaded) => {
                self.metrics.overloaded.add(1);
                Try::Ended(Undone::Overloaded)
            }
            failure @ (Failure::Propose(ProposeError::TooLarge(_))
            | Failure::Refused(_)
            | Failure::TopicTakes { .. }
            | Failure::DelayTooLong { .. }
            | Failure::StillWaiting { .. }
            | Failure::HoldsDeadLetters { .. }
            | Failure::Filter(_)
            | Failure::FiltersDiffer { .. }
            | Failure::Retry(_)
            | Failure::NoDeadLetters
            | Failure::NoOrigin
            | Failure::DiskFull(_)
            | Failure::Unreadable(_)) => Try::Ended(Undone::Refused(failure.into())),
        }
    }

    /// Sends to another node. Given up as soon as that one no longer leads: its successor can answer, it perhaps never will.
    async fn send_to<C: Call>(
        &self,
        leader: NodeId,
        call: &C,
        deadline: Instant,
        leadership: &mut watch::Receiver<LeaderView>,
    ) -> Try<C::Answer> {
        self.metrics.forwarded.add(1);
        let timeout = deadline.saturating_duration_since(Instant::now());
        let answer = tokio::select! {
            biased;
            answer = self.group.call(leader, call.to_request(), timeout) => answer,
            () = succeeded(leadership, leader) => return Try::Lost,
        };
        match answer {
            Ok(answer) => self.read_answer(answer),
            Err(CallError::NotSent(_)) => Try::NotTaken,
            Err(CallError::Unknown(_)) => Try::Lost,
        }
    }

    /// An answer that cannot be read is one of another version: what it answered is unknown.
    fn read_answer<A: Message + Default>(&self, mut answer: Bytes) -> Try<A> {
        if answer.is_empty() {
            return Try::Lost;
        }
        match answer.split_to(1)[0] {
            ANSWER => A::decode(answer).map_or(Try::Lost, Try::Done),
            REFUSED => No::decode(answer).map_or(Try::Lost, |no| Try::Ended(Undone::Refused(from_no(no)))),
            NOT_LEADER => Try::NotTaken,
            OVERLOADED => {
                self.metrics.overloaded.add(1);
                Try::Ended(Undone::Overloaded)
            }
            _ => Try::Lost,
        }
    }

    /// Waits until another try makes sense. False when time is up.
    ///
    /// Calls wait in arrival order: the first in line watches who leads, the rest stands behind it, and all go one after another.
    async fn hold(&self, leadership: &mut watch::Receiver<LeaderView>, tried: LeaderView, deadline: Instant) -> bool {
        self.metrics.held.add(1);
        let _holding = self.metrics.holding.hold();
        let retry_at = Instant::now() + RETRY_PAUSE;
        let turn = async {
            let _first = self.turnstile.acquire().await;
            loop {
                let view = *leadership.borrow_and_update();
                let taker = view.serving || view.leader.is_some_and(|leader| leader != self.me);
                let news = (view.leader, view.serving) != (tried.leader, tried.serving);
                if view.isolated || taker && (news || Instant::now() >= retry_at) {
                    return;
                }
                tokio::select! {
                    changed = leadership.changed() => if changed.is_err() {
                        // The group has stopped; nothing will change until the deadline.
                        std::future::pending::<()>().await;
                    },
                    () = tokio::time::sleep_until(retry_at), if taker => {}
                }
            }
        };
        timeout_at(deadline, turn).await.is_ok()
    }
}

/// Bytes of a call that is held or under way; given back when dropped.
struct Room<'a> {
    held: &'a AtomicU64,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Completes when a node other than `leader` is known to lead, or this one is cut off.
async fn succeeded(leadership: &mut watch::Receiver<LeaderView>, leader: NodeId) {
    let another = |view: &LeaderView| view.isolated || view.serving || view.leader.is_some_and(|now| now != leader);
    if leadership.wait_for(another).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A "no" as it travels between nodes.
pub(crate) fn to_no(failure: Failure) -> No {
    let fault = Fault::from(failure);
    No { code: fault.code as i32, message: fault.message }
}

/// And back.
pub(crate) fn from_no(no: No) -> Fault {
    Fault { code: Code::try_from(no.code).unwrap_or(Code::InternalServerError), message: no.message }
}

/// Answers what other nodes ask of this one. Given to the group before the node's parts exist, which are put in once they do.
#[derive(Clone, Default)]
pub(crate) struct Desk {
    parts: Arc<OnceLock<DeskParts>>,
}

/// What the desk needs to answer.
pub(crate) struct DeskParts {
    /// Whether this node leads.
    pub group: Group<Replica>,
    /// Executes calls.
    pub leader: Arc<Leader>,
    /// This node's clock.
    pub clock: Arc<TermClock>,
    /// This node's disk.
    pub space: Arc<Space>,
    /// Producers whose streams are open on this node.
    pub producers: Arc<Streams>,
    /// What this node says about itself.
    pub report: Arc<dyn Fn() -> NodeStatus + Send + Sync>,
    /// Cancelled when this node is told to stop.
    pub stopping: CancellationToken,
}

impl Desk {
    /// Puts the parts in; from now on calls are answered.
    pub fn staff(&self, parts: DeskParts) {
        let staffed = self.parts.set(parts).is_ok();
        assert!(staffed, "a node is put together once");
    }
}

impl CallHandler for Desk {
    fn call(&self, _from: NodeId, request: Bytes) -> quorate_raft::network::BoxFuture<'static, Bytes> {
        let parts = self.parts.clone();
        Box::pin(async move {
            let Some(parts) = parts.get() else { return Bytes::from_static(&[NOT_LEADER]) };
            match request.first() {
                Some(&ASK_CLOCK) => Bytes::copy_from_slice(&parts.clock.wall().0.to_le_bytes()),
                Some(&ASK_RECORD) => parts.leader.lend(&request),
                Some(&ASK_POINTERS) => parts.leader.lend_pointers(&request),
                Some(&ASK_PRODUCERS) => answer_producers(&parts.producers, request.slice(1..)),
                Some(&ASK_CHECK) => answer_check(&parts.producers, request.slice(1..)),
                Some(&ASK_SPACE) => parts.space.report().encode_to_vec().into(),
                Some(&members::ASK_STATUS) => (parts.report)().encode_to_vec().into(),
                Some(&members::ASK_PICTURE) => Picture::own(&parts.group, (parts.report)()).await.encode(),
                Some(&members::ASK_CHANGE) => members::answer_change(&parts.group, request.slice(1..)).await,
                Some(&leadership::ASK_HISTORY) => {
                    leadership::own_history(&parts.group, parts.clock.wall()).encode_to_vec().into()
                }
                Some(&leadership::ASK_TRANSFER) => leadership::answer_transfer(&parts.group, request.slice(1..)).await,
                Some(&leadership::ASK_LEAVING) => leadership::answer_leaving(&parts.stopping),
                _ => parts.lead(request).await,
            }
        })
    }
}

impl DeskParts {
    /// Executes a call that a follower sent. It is not sent on: two nodes that take each other for the leader would play ping-pong.
    async fn lead(&self, request: Bytes) -> Bytes {
        if !self.group.leader().borrow().serving {
            return Bytes::from_static(&[NOT_LEADER]);
        }
        let Some(call) = AnyCall::decode(request) else {
            let message = "a node of the group sent a call that this one does not know; run one version on all nodes";
            let no = No { code: Code::InternalServerError as i32, message: message.into() };
            return framed(REFUSED, &no);
        };
        match call.execute(&self.leader, ANSWER).await {
            Ok(answer) => answer,
            Err(Failure::Propose(ProposeError::NotLeader { .. })) => Bytes::from_static(&[NOT_LEADER]),
            Err(Failure::Propose(ProposeError::Overloaded)) => Bytes::from_static(&[OVERLOADED]),
            Err(Failure::Propose(ProposeError::Unknown | ProposeError::Stopped(_))) => Bytes::from_static(&[UNKNOWN]),
            Err(failure) => {
                let Fault { code, message } = failure.into();
                framed(REFUSED, &No { code: code as i32, message })
            }
        }
    }
}

/// Asks peers for their wall clocks over the group's connections.
pub(crate) struct AskPeers(pub Group<Replica>);

impl PeerClocks for AskPeers {
    fn ask(&self, timeout: Duration) -> LogFuture<Option<Vec<Timestamp>>> {
        let group = self.0.clone();
        Box::pin(async move {
            let status = group.status();
            let others: Vec<_> = status.members.iter().filter(|member| member.id != status.id).collect();
            if others.is_empty() {
                return None;
            }
            let ask = |member: &quorate_raft::MemberStatus| {
                let (group, id) = (group.clone(), member.id);
                async move { group.call(id, Bytes::from_static(&[ASK_CLOCK]), timeout).await.ok() }
            };
            let answers = futures_util::future::join_all(others.into_iter().map(ask)).await;
            let read = |answer: Bytes| Some(Timestamp(u64::from_le_bytes(answer.as_ref().try_into().ok()?)));
            Some(answers.into_iter().flatten().filter_map(read).collect())
        })
    }
}
