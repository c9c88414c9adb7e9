//! Many requests at once over one connection, made when needed and made again when it breaks.
//!
//! Two tasks serve a live connection: one writes what is queued, as much as there is in one go; one reads answers and hands
//! them to who waits. A request ends at its deadline, and whoever stops waiting tells the other side so.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    peer::{
        Peer, Peers,
        codec::{Class, Kind, Tag},
        dial::{Connection, dial},
        wire::write_pieces,
    },
    runtime,
    types::NodeId,
};

/// Messages queued for a connection's writer.
const QUEUE: usize = 1024;

/// Messages written together.
const WRITE_BATCH: usize = 64;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallFailure {
    /// It never left this node.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have arrived.
    #[error("no answer: {0}")]
    Lost(String),
    /// The other side said no, before it did anything.
    #[error("refused: {0}")]
    Refused(String),
}

type Waiting = Mutex<BTreeMap<u64, oneshot::Sender<Result<Bytes, String>>>>;

/// A connection in use.
struct Live {
    peer: NodeId,
    queue: mpsc::Sender<[Bytes; 2]>,
    waiting: Waiting,
    next: AtomicU64,
    closed: AtomicBool,
}

impl Live {
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Whoever waits sees its channel end.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// A shared connection to one peer for one purpose.
pub(crate) struct Mux {
    class: Class,
    bytes_max: usize,
    live: Mutex<Option<Arc<Live>>>,
    /// Only one task opens a connection at a time.
    dialing: tokio::sync::Mutex<()>,
}

/// Takes a request back if nobody waits for it any more.
struct Withdraw<'a> {
    live: &'a Live,
    id: u64,
    queued: bool,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let was_waiting = self.live.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id).is_some();
        if was_waiting && self.queued {
            let tag = Tag { kind: Kind::Cancel, id: self.id };
            // A full queue or a closed connection: the other side finds out by itself.
            let _ = self.live.queue.try_send(tag.message(&Bytes::new()));
        }
    }
}

impl Mux {
    pub(crate) fn new(class: Class, bytes_max: usize) -> Self {
        Self { class, bytes_max, live: Mutex::new(None), dialing: tokio::sync::Mutex::new(()) }
    }

    fn live(&self) -> Option<Arc<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|live| !live.is_closed())
    }

    /// The connection, and whether it is new.
    async fn connected(&self, peers: &Peers, peer: &Peer, deadline: Instant) -> Result<(Arc<Live>, bool), CallFailure> {
        if let Some(live) = self.live() {
            return Ok((live, false));
        }
        let not_sent = |reason: String| CallFailure::NotSent(reason);
        let Ok(_turn) = timeout_at(deadline, self.dialing.lock()).await else {
            return Err(not_sent(format!("{}: timed out while connecting", peer.address())));
        };
        if let Some(live) = self.live() {
            return Ok((live, true));
        }
        let dialed = dial(peers, peer, self.class, None, self.bytes_max, deadline).await;
        let connection = dialed.map_err(|error| not_sent(error.to_string()))?;
        let live = serve(connection);
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
        Ok((live, true))
    }

    /// Sends a request and waits for its answer until `deadline`.
    ///
    /// A connection may turn out to be dead only when it is used; if `repeatable`, the request is then sent once more over a
    /// new one. Cancel safe: dropped, the other side is told.
    ///
    /// # Errors
    /// See [`CallFailure`].
    #[allow(clippy::too_many_arguments)]
    pub(crate) async fn request(
        &self,
        peers: &Peers,
        peer: &Peer,
        expected: Option<NodeId>,
        kind: Kind,
        body: Bytes,
        deadline: Instant,
        repeatable: bool,
    ) -> Result<Bytes, CallFailure> {
        loop {
            let (live, is_new) = self.connected(peers, peer, deadline).await?;
            if let Some(expected) = expected.filter(|expected| *expected != live.peer) {
                let reason = format!("{expected:?} is meant, {:?} answers", live.peer);
                return Err(CallFailure::NotSent(reason));
            }
            match ask(&live, kind, &body, deadline).await {
                Err(CallFailure::NotSent(_)) if !is_new && live.is_closed() => continue,
                Err(CallFailure::Lost(_)) if !is_new && repeatable && live.is_closed() => continue,
                result => return result,
            }
        }
    }
}

async fn ask(live: &Live, kind: Kind, body: &Bytes, deadline: Instant) -> Result<Bytes, CallFailure> {
    let id = live.next.fetch_add(1, Ordering::Relaxed);
    let (send, receive) = oneshot::channel();
    live.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, send);
    let mut withdraw = Withdraw { live, id, queued: false };
    let message = Tag { kind, id }.message(body);
    match timeout_at(deadline, live.queue.send(message)).await {
        // Queued: the writer may get to it, or may have got to it before the connection broke.
        Ok(Ok(())) => withdraw.queued = true,
        Ok(Err(_)) => return Err(CallFailure::NotSent("connection closed".into())),
        Err(_) => return Err(CallFailure::NotSent("timed out in the send queue".into())),
    }
    if live.is_closed() {
        return Err(CallFailure::Lost("connection closed".into()));
    }
    let answer = timeout_at(deadline, receive).await;
    match answer {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(reason))) => Err(CallFailure::Refused(reason)),
        Ok(Err(_)) => Err(CallFailure::Lost("connection closed".into())),
        Err(_) => Err(CallFailure::Lost("timed out".into())),
    }
}

/// Starts the two tasks of a connection.
fn serve(connection: Connection) -> Arc<Live> {
    let Connection { mut reader, mut writer, peer } = connection;
    let (queue, mut queued) = mpsc::channel::<[Bytes; 2]>(QUEUE);
    let live = Arc::new(Live {
        peer,
        queue,
        waiting: Mutex::default(),
        next: AtomicU64::new(1),
        closed: AtomicBool::new(false),
    });

    let (stop_writer, mut stopped) = oneshot::channel::<()>();
    let of_writer = Arc::downgrade(&live);
    runtime::spawn(async move {
        let mut batch = Vec::with_capacity(WRITE_BATCH);
        loop {
            batch.clear();
            let more = tokio::select! {
                biased;
                _ = &mut stopped => break,
                more = queued.recv_many(&mut batch, WRITE_BATCH) => more,
            };
            if more == 0 {
                break;
            }
            let pieces: Vec<Bytes> = batch.drain(..).flatten().filter(|piece| !piece.is_empty()).collect();
            let written = tokio::select! {
                biased;
                _ = &mut stopped => break,
                written = write_pieces(&mut writer, &pieces) => written,
            };
            if written.is_err() {
                break;
            }
        }
        if let Some(live) = of_writer.upgrade() {
            live.close();
        }
    });

    let of_reader = live.clone();
    runtime::spawn(async move {
        let live = of_reader;
        while let Ok(Some(mut message)) = reader.next().await {
            let Ok(tag) = Tag::take(&mut message) else {
                break;
            };
            let answer = match tag.kind {
                Kind::Answer => Ok(message),
                Kind::Refusal => Err(String::from_utf8_lossy(&message).into_owned()),
                Kind::Vote
                | Kind::PreVote
                | Kind::Append
                | Kind::Transfer
                | Kind::Card
                | Kind::Join
                | Kind::ReadIndex
                | Kind::Call
                | Kind::Suspect
                | Kind::Lend
                | Kind::Cancel => break,
            };
            let waiting = live.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&tag.id);
            if let Some(waiting) = waiting {
                let _ = waiting.send(answer);
            }
        }
        live.close();
        let _ = stop_writer.send(());
    });
    live
}
