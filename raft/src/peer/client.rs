//! openraft's view of a peer: votes and heartbeats over the control connection, entries and images over their own.
//!
//! A replication stream keeps its connection between sessions. What fails here is one attempt: openraft tries again by
//! itself, after [`BACKOFF`] if the peer could not be reached at all.

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    binding::{AppendRequest, Node, RaftVote, Snapshot, TypeConfig},
    peer::{
        Peers,
        append::AppendStream,
        codec::{
            APPEND_RESULT_BYTES_MAX, Class, HANDSHAKE_BYTES_MAX, Kind, Refused, decode_append_response, decode_vote,
            decode_vote_response, encode_append, encode_transfer, encode_vote, encode_vote_request,
        },
        dial::{Connection, DIAL, DialError, dial},
        mux::CallFailure,
        wire::write_pieces,
    },
    snapshot::Image,
    types::{NodeId, Term},
};

type RpcResult<T> = Result<T, RPCError<TypeConfig>>;

/// Pause before a peer that could not be reached is tried again: short, so that a restarted node is back at once.
const BACKOFF: Duration = Duration::from_millis(100);

/// Longest time without progress while an image is sent, or installed at the other side.
const IMAGE_PATIENCE: Duration = Duration::from_secs(30);

/// Pieces of an image between which progress is noted.
const IMAGE_PIECE: usize = 1 << 20;

/// Makes clients.
pub(crate) struct Factory {
    pub peers: Arc<Peers>,
}

/// What a client's streams are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Entries, over a connection of its own.
    Entries,
    /// Heartbeats, over the control connection.
    Heartbeats,
}

/// One peer, for one task of openraft.
pub(crate) struct Client {
    peers: Arc<Peers>,
    target: NodeId,
    address: String,
    purpose: Purpose,
    /// Never locked, only opened by its one owner: openraft wants to share what it owns.
    connection: Mutex<Option<Connection>>,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Node) -> Client {
        self.client(target, node, Purpose::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Node) -> Client {
        self.client(target, node, Purpose::Heartbeats)
    }
}

impl Factory {
    fn client(&self, target: NodeId, node: &Node, purpose: Purpose) -> Client {
        let address = node.peer_address.clone();
        Client { peers: self.peers.clone(), target, address, purpose, connection: Mutex::new(None) }
    }
}

fn unreachable(reason: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

fn broken(reason: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(reason))
}

fn failed(failure: CallFailure) -> RPCError<TypeConfig> {
    match failure {
        CallFailure::NotSent(_) | CallFailure::Refused(_) => unreachable(failure),
        CallFailure::Lost(_) => broken(failure),
    }
}

impl Client {
    async fn control(&self, kind: Kind, body: Bytes, within: Duration) -> RpcResult<Bytes> {
        let deadline = Instant::now() + within;
        self.peers.control(self.target, &self.address, kind, body, deadline).await.map_err(failed)
    }

    async fn open(&self, class: Class, bytes_max: usize) -> Result<Connection, DialError> {
        let peer = self.peers.peer(self.target.number(), &self.address);
        if let Some(seen) = peer.seen().filter(|seen| seen.card.node != self.target) {
            // Its directory was wiped: whoever is there now is somebody else, and refuses.
            let refused = Refused(format!("{:?} is meant, {:?} answers", self.target, seen.card.node));
            return Err(DialError::Refused { address: self.address.clone(), refused });
        }
        dial(&self.peers, &peer, class, Some(self.target), bytes_max, Instant::now() + DIAL).await
    }

    /// Longest wait for an answer of a stream: far above a slow sync, and below what would hold back a purge for long.
    fn patience(&self) -> Duration {
        (self.peers.config.election_timeout.1 * 4).max(Duration::from_secs(2))
    }
}

/// Both ends of what a request covers: the entry before it and its last one.
fn range(request: &AppendRequest) -> (Option<crate::binding::RaftLogId>, Option<crate::binding::RaftLogId>) {
    use openraft::entry::RaftEntry;
    (request.prev_log_id, request.entries.last().map(RaftEntry::log_id).or(request.prev_log_id))
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Option<Image>;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<TypeConfig>> {
        let pieces = encode_append(&request);
        let body = Bytes::from(pieces[1..].concat());
        let answer = self.control(Kind::Append, body, option.hard_ttl()).await?;
        decode_append_response(answer).map_err(broken)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        match self.purpose {
            Purpose::Heartbeats => Box::pin(async move {
                let answers = stream::once(async move {
                    let request = input.next().await?;
                    let (prev, last) = range(&request);
                    let response = self.append_entries(request, option).await;
                    Some(response.map(|response| response.into_stream_result(prev, last)))
                });
                let answers: BoxStream<'s, _> = Box::pin(answers.filter_map(|answer| async move { answer }));
                Ok(answers)
            }),
            Purpose::Entries => Box::pin(async move {
                let kept = self.connection.get_mut().unwrap_or_else(PoisonError::into_inner).take();
                let connection = match kept {
                    Some(connection) => connection,
                    None => match self.open(Class::Append, APPEND_RESULT_BYTES_MAX).await {
                        Ok(connection) => connection,
                        Err(error) => {
                            // openraft pauses only once a stream is there, and would come back at once.
                            tokio::time::sleep(BACKOFF).await;
                            return Err(unreachable(error));
                        }
                    },
                };
                let (window, patience) = (self.peers.config.follower_window_bytes, self.patience());
                let home = self.connection.get_mut().unwrap_or_else(PoisonError::into_inner);
                let answers = AppendStream::new(home, connection, input, window, patience, self.peers.log.clone());
                let answers: BoxStream<'s, _> = Box::pin(answers);
                Ok(answers)
            }),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        self.peers.note_campaign(Term(request.vote.leader_id.term), request.leadership_transfer);
        let answer = self.control(Kind::Vote, encode_vote_request(&request), option.hard_ttl()).await?;
        decode_vote_response(answer).map_err(broken)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let answer = self.control(Kind::PreVote, encode_vote_request(&request), option.hard_ttl()).await?;
        decode_vote_response(answer).map_err(broken)
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Some(image) = snapshot.snapshot else {
            return Err(StreamingError::Unreachable(Unreachable::from_string(
                "this node's own image cannot be read now",
            )));
        };
        let connection = self.open(Class::Image, HANDSHAKE_BYTES_MAX).await;
        let connection = connection.map_err(|error| StreamingError::Unreachable(Unreachable::from_string(error)))?;
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send_image(connection, vote, image) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => Err(StreamingError::Network(NetworkError::new(&error))),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        self.control(Kind::Transfer, encode_transfer(&request), option.hard_ttl()).await?;
        // What the target makes of it shows in the election that follows.
        Ok(Ok(()))
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}

/// Length, vote, image; then the follower's vote comes back once it is installed.
async fn send_image(mut connection: Connection, vote: RaftVote, image: Image) -> io::Result<RaftVote> {
    let body = image.encode();
    let vote = encode_vote(&vote);
    let mut head = BytesMut::new();
    head.put_u32_le((vote.len() + body.len()) as u32);
    head.put_slice(&vote);
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    timeout(IMAGE_PATIENCE, write_pieces(&mut connection.writer, &[head.freeze()])).await.map_err(late)??;
    let mut rest = body;
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(IMAGE_PIECE));
        timeout(IMAGE_PATIENCE, write_pieces(&mut connection.writer, &[piece])).await.map_err(late)??;
    }
    let answer = timeout_at(Instant::now() + IMAGE_PATIENCE, connection.reader.next()).await.map_err(late)??;
    let mut answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    decode_vote(&mut answer).map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))
}
