//! The other end of every connection: accepts, checks the handshake, and serves by class.
//!
//! Each connection is one task. Control and call connections serve many requests at once inside it; an append connection
//! feeds openraft's own pipeline and writes its answers back; an image connection takes one image. A connection that sends
//! garbage is closed and noted; the node does not care.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{AbortHandle, Abortable},
    stream::{self, FuturesUnordered},
};
use tokio::{
    io::{ReadHalf, WriteHalf, split},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    binding::{AppendRequest, RaftVote},
    network::{BoxFuture, Duplex, Listener},
    peer::{
        Incoming, Peers,
        append::AppendAnswer,
        codec::{
            CALL_BYTES_MAX, CONTROL_BYTES_MAX, Class, HANDSHAKE_BYTES_MAX, Hello, IMAGE_BYTES_MAX, Kind, Tag, Welcome,
            decode_append, decode_vote, encode_append_result, encode_vote,
        },
        dial::{DIAL, check_hello},
        wire::{Reader, framed, write_pieces},
    },
    runtime,
    snapshot::Image,
    types::NodeId,
};

type In = Reader<ReadHalf<Box<dyn Duplex>>>;
type Out = WriteHalf<Box<dyn Duplex>>;

/// Requests one connection may have open (long polls stay open for long); more wait in the socket.
const REQUESTS_MAX: usize = 32 << 10;

/// Longest wait for a peer to take an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Answers to appends written together.
const ANSWERS_MAX: usize = 256;

/// Bytes that an append message may have beyond its entries' limit: several entries up to the leader's own bound, and heads.
const APPEND_BYTES_EXTRA: usize = 2 << 20;

/// Answers of this node's Raft and of the layer above it.
pub(crate) trait Service: Send + Sync + 'static {
    /// One request on a control or call connection; `Err` is a refusal in words.
    fn request(&self, from: NodeId, kind: Kind, body: Bytes) -> BoxFuture<'static, Result<Bytes, String>>;
    /// A replication stream; answers in the order of the requests.
    fn append(
        &self,
        requests: std::pin::Pin<Box<dyn Stream<Item = AppendRequest> + Send>>,
    ) -> std::pin::Pin<Box<dyn Stream<Item = AppendAnswer> + Send>>;
    /// An image that the leader of `vote` sends.
    fn install(&self, vote: RaftVote, image: Image) -> BoxFuture<'static, Result<RaftVote, String>>;
}

/// Accepts connections until `stop`.
pub(crate) async fn serve(
    listener: Arc<dyn Listener>,
    peers: Arc<Peers>,
    service: Arc<dyn Service>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let (peers, service, stop) = (peers.clone(), service.clone(), stop.clone());
                runtime::spawn(async move {
                    let ended = tokio::select! {
                        biased;
                        () = stop.cancelled() => Ok(()),
                        ended = serve_connection(stream, peers, service) => ended,
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%from, %error, "peer connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others may go away meanwhile.
                tracing::warn!(%error, "accepting a peer failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(stream: Box<dyn Duplex>, peers: Arc<Peers>, service: Arc<dyn Service>) -> io::Result<()> {
    let (read, mut writer) = split(stream);
    let mut reader = Reader::new(read, HANDSHAKE_BYTES_MAX);
    let first = timeout(DIAL, reader.next()).await??;
    let Some(first) = first else {
        return Ok(());
    };
    let hello = Hello::decode(first);
    let accepted = match &hello {
        Ok(hello) => check_hello(&peers, hello),
        Err(refused) => Err(refused.clone()),
    };
    if let Err(refused) = &accepted {
        peers.report_refusal(&refused.0);
    }
    let welcome = Welcome { accepted, card: peers.my_card() };
    timeout(WRITE_PATIENCE, write_pieces(&mut writer, &framed(&welcome.encode()))).await??;
    let (Ok(hello), Ok(())) = (hello, welcome.accepted) else {
        return Ok(());
    };
    let from = hello.card.node;
    peers.observe(hello.card);
    let incoming = peers.incoming(from, hello.class);
    match hello.class {
        Class::Control => {
            reader.set_bytes_max(CONTROL_BYTES_MAX);
            serve_requests(reader, writer, from, &peers, &incoming, service).await
        }
        Class::Call => {
            reader.set_bytes_max(CALL_BYTES_MAX);
            serve_requests(reader, writer, from, &peers, &incoming, service).await
        }
        Class::Append => {
            reader.set_bytes_max(peers.config.entry_bytes_max + APPEND_BYTES_EXTRA);
            serve_append(reader, writer, service).await
        }
        Class::Image => {
            reader.set_bytes_max(IMAGE_BYTES_MAX);
            serve_image(reader, writer, service).await
        }
    }
}

/// A served request: its number and answer, or `None` if it was taken back.
type Served = (u64, Option<Result<Bytes, String>>);

async fn serve_requests(
    mut reader: In,
    mut writer: Out,
    from: NodeId,
    peers: &Peers,
    incoming: &Incoming<'_>,
    service: Arc<dyn Service>,
) -> io::Result<()> {
    let mut open: BTreeMap<u64, AbortHandle> = BTreeMap::new();
    let mut running: FuturesUnordered<BoxFuture<'static, Served>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            message = reader.next(), if open.len() < REQUESTS_MAX => {
                let Some(mut message) = message? else {
                    return Ok(());
                };
                peers.touch(from);
                incoming.touch();
                let tag = Tag::take(&mut message).map_err(invalid)?;
                if tag.kind == Kind::Cancel {
                    if let Some(handle) = open.remove(&tag.id) {
                        handle.abort();
                    }
                    continue;
                }
                let (handle, registration) = AbortHandle::new_pair();
                let work = Abortable::new(service.request(from, tag.kind, message), registration);
                open.insert(tag.id, handle);
                running.push(Box::pin(work.map(move |answer| (tag.id, answer.ok()))));
            }
            served = running.next(), if !running.is_empty() => {
                let mut pieces = Vec::new();
                let mut next = served;
                // Whatever else is answered by now goes out with it.
                while let Some((id, answer)) = next {
                    open.remove(&id);
                    if let Some(answer) = answer {
                        let (kind, body) = match answer {
                            Ok(body) => (Kind::Answer, body),
                            Err(reason) => (Kind::Refusal, Bytes::from(reason)),
                        };
                        pieces.extend(Tag { kind, id }.message(&body).into_iter().filter(|piece| !piece.is_empty()));
                    }
                    next = running.next().now_or_never().flatten();
                }
                timeout(WRITE_PATIENCE, write_pieces(&mut writer, &pieces)).await??;
            }
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn serve_append(reader: In, mut writer: Out, service: Arc<dyn Service>) -> io::Result<()> {
    let requests = stream::unfold(reader, |mut reader| async move {
        let message = match reader.next().await {
            Ok(message) => message?,
            Err(error) => {
                tracing::debug!(%error, "append connection broke");
                return None;
            }
        };
        match decode_append(message) {
            Ok(request) => Some((request, reader)),
            Err(malformed) => {
                tracing::warn!(%malformed, "append connection closed");
                None
            }
        }
    });
    let mut answers = service.append(Box::pin(requests)).ready_chunks(ANSWERS_MAX);
    let mut out = BytesMut::new();
    while let Some(ready) = answers.next().await {
        for answer in ready {
            let Ok(answer) = answer else {
                return Err(io::Error::other("this node stops"));
            };
            encode_append_result(&answer, &mut out);
        }
        timeout(WRITE_PATIENCE, write_pieces(&mut writer, &[out.split().freeze()])).await??;
    }
    Ok(())
}

async fn serve_image(mut reader: In, mut writer: Out, service: Arc<dyn Service>) -> io::Result<()> {
    while let Some(mut message) = reader.next().await? {
        let vote = decode_vote(&mut message).map_err(invalid)?;
        let image = Image::decode(message).map_err(invalid)?;
        let answer = service.install(vote, image).await.map_err(io::Error::other)?;
        timeout(WRITE_PATIENCE, write_pieces(&mut writer, &framed(&encode_vote(&answer)))).await??;
    }
    Ok(())
}
