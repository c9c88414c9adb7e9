//! The client listeners: open while this node can serve, closed while it cannot.
//!
//! All of them open and close together; they differ in their names, which routes depend on. A node that reaches no peer would only make its clients wait, so it says GOAWAY, closes its listeners (connects are refused, which
//! clients take as "next address") and opens them again once it is back. Planned stops go the same way. What is under way may end
//! within a grace period; after that connections are cut, so that no client can keep a node from closing.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use quorate_proto::doors::{Net, NetListener, Stream, incoming};
use quorate_raft::LeaderView;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::Server;
use tracing::{info, warn};

use super::{Gate, Service};
use crate::{metrics::Metrics, registrar::ListenerName};

/// What calls under way get before connections are cut.
const GRACE: Duration = Duration::from_secs(1);
/// What cut connections get to notice.
const AFTER_CUT: Duration = Duration::from_millis(200);
/// Flow control: what one call, and all calls of a connection, may send ahead of being read.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// A call with many messages comes in one frame instead of one for every 16 KiB.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// A connection that is silent this long is pinged, and cut if no answer comes.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Rest before a port is tried again that could not be bound.
const REBIND_PAUSE: Duration = Duration::from_millis(200);

/// A bound listener of clients.
pub(crate) struct Entrance {
    /// Its name.
    pub name: ListenerName,
    /// The port.
    pub listener: Arc<dyn NetListener>,
}

/// The listeners of one node.
pub(crate) struct ClientServer {
    /// The door.
    pub net: Arc<dyn Net>,
    /// What is served.
    pub service: Arc<Service>,
    /// Whether this node is cut off.
    pub leadership: watch::Receiver<LeaderView>,
}

impl ClientServer {
    /// Serves at `entrances`, closing and reopening their addresses as the group comes and goes, until `stop`.
    pub async fn run(mut self, entrances: Vec<Entrance>, stop: CancellationToken) {
        let address = |entrance: &Entrance| (entrance.name.clone(), entrance.listener.local_address());
        let addresses: Vec<_> = entrances.iter().map(address).collect();
        let mut entrances = Some(entrances);
        let gate = Gate::new(self.service.clone());
        while !stop.is_cancelled() {
            if let Some(entrances) = entrances.take() {
                self.serve(&gate, entrances, &stop).await;
                continue;
            }
            let reached = tokio::select! {
                () = stop.cancelled() => return,
                reached = self.leadership.wait_for(|view| !view.isolated) => reached.is_ok(),
            };
            if reached {
                entrances = self.reopen(&addresses).await;
            } else {
                // The group has stopped; the node is about to follow.
                stop.cancelled().await;
            }
        }
    }

    /// All of them, or none: clients of one network must not take a node for live that those of another cannot reach.
    async fn reopen(&self, addresses: &[(ListenerName, String)]) -> Option<Vec<Entrance>> {
        let mut entrances = Vec::new();
        for (name, address) in addresses {
            match self.net.listen(address).await {
                Ok(listener) => entrances.push(Entrance { name: name.clone(), listener }),
                Err(error) => {
                    warn!(address, %error, "client listener could not be opened again");
                    tokio::time::sleep(REBIND_PAUSE).await;
                    return None;
                }
            }
        }
        for (_, address) in addresses {
            info!(address, "client listener open again");
        }
        Some(entrances)
    }

    /// Serves until this node is cut off or stops.
    async fn serve(&mut self, gate: &Gate, entrances: Vec<Entrance>, stop: &CancellationToken) {
        let closing = self.service.open();
        let cut = CancellationToken::new();
        let mut served: FuturesUnordered<_> =
            entrances.into_iter().map(|entrance| self.server(gate, entrance, &closing, &cut)).collect();
        tokio::select! {
            // The incoming stream never ends by itself.
            result = served.next() => warn!(?result, "client server ended"),
            () = stop.cancelled() => info!("client listener closes, the node stops"),
            _ = self.leadership.wait_for(|view| view.isolated) => {
                warn!("client listener closes, no peer can be reached");
            }
        }
        closing.cancel();
        let all = async { while served.next().await.is_some() {} };
        tokio::pin!(all);
        if tokio::time::timeout(GRACE, &mut all).await.is_err() {
            cut.cancel();
            // Cut connections end as soon as they are polled.
            let _ = tokio::time::timeout(AFTER_CUT, all).await;
        }
    }

    /// What serves one listener; it lets go when `closing`, and its connections are cut by `cut`.
    fn server(
        &self,
        gate: &Gate,
        Entrance { name, listener }: Entrance,
        closing: &CancellationToken,
        cut: &CancellationToken,
    ) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<> {
        let limits = &self.service.config.limits;
        let connections = connections(listener, limits.connections_max, cut.clone(), self.service.metrics.clone());
        Server::builder()
            .max_concurrent_streams(limits.streams_per_connection_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .http2_keepalive_interval(Some(PING_AFTER))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .serve_with_incoming_shutdown(gate.at(name), connections, closing.clone().cancelled_owned())
    }
}

/// Accepted connections that can be cut, at most `max` at once.
fn connections(
    listener: Arc<dyn NetListener>,
    max: usize,
    cut: CancellationToken,
    metrics: Arc<Metrics>,
) -> impl futures_util::Stream<Item = io::Result<Stream>> + Send + 'static {
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    incoming(listener).filter_map(move |accepted| {
        let accepted = accepted.map(|stream| {
            // Dropping it closes it: a client that is refused here tries the next address.
            (metrics.connections.value() < max).then(|| Connection::new(stream, cut.clone(), metrics.clone()).wrap())
        });
        std::future::ready(accepted.transpose())
    })
}

/// A connection of a client.
struct Connection {
    stream: Stream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    metrics: Arc<Metrics>,
}

impl Connection {
    fn new(stream: Stream, cut: CancellationToken, metrics: Arc<Metrics>) -> Self {
        metrics.connections.add(1);
        Self { stream, cut: Box::pin(cut.cancelled_owned()), metrics }
    }

    /// As the door's type, which is what tonic serves.
    fn wrap(self) -> Stream {
        let peer = self.stream.peer().to_owned();
        Stream::new(self, peer)
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the node closes its connections")),
            Poll::Pending => Ok(()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.connections.add(-1);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
