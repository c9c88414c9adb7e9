//! One HTTP/2 connection as the service that tonic's generated clients call.
//!
//! tonic's own `Channel` would serve, but it hides two things this client lives on: whether a failed call had left the process (that
//! keeps *not now* and *unknown* apart), and the state of the connection itself. Each call is driven by the task that
//! makes it: no task is spawned and nothing passes through a queue on its way to the connection.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::{RecvStream, SendStream, client::SendRequest};
use http_body::{Body as _, Frame};
use quorate_proto::doors::{BoxFuture, Net};
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;

/// Bytes a server may send ahead on one stream: a receive of full bodies takes few round trips.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// The same for all streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A delivery of many messages comes in one frame instead of one for every 16 KiB.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// A call that failed below gRPC, and whether the server can have seen it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct TransportError {
    /// False only if the call certainly did not reach the server.
    pub(crate) sent: bool,
    message: String,
}

impl TransportError {
    fn not_sent(error: impl fmt::Display) -> Self {
        Self { sent: false, message: format!("not sent: {error}") }
    }

    /// A stream that the server refused was not processed (RFC 9113 §8.7); of every other failure nothing is known.
    fn lost(error: &h2::Error) -> Self {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        Self { sent: !refused, message: format!("connection: {error}") }
    }
}

/// A live connection. Cheap to clone; it closes when the last clone and the last call on it are gone.
#[derive(Clone)]
pub(crate) struct Connection {
    requests: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

struct Shared {
    address: Arc<str>,
    origin: http::Uri,
    retired: AtomicBool,
    /// Moves the bytes of all calls.
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Connects to `address` within `timeout`, and waits until the other side has said that it speaks HTTP/2: a node with too many
    /// connections, or a port that somebody else forwards to nobody, takes a connection only to close it, and a call handed to that
    /// would be one of unknown outcome.
    ///
    /// # Errors
    /// Those of the network door; `TimedOut` if nobody answered, `InvalidInput` if it is no address. Nothing was asked of the other side.
    pub(crate) async fn dial(net: &dyn Net, address: &Arc<str>, timeout: Duration) -> io::Result<Self> {
        let origin: http::Uri = format!("http://{address}").parse().map_err(io::Error::other)?;
        let dialing = async {
            let stream = net.connect(address).await?;
            let (requests, mut driver) = h2::client::Builder::new()
                .initial_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES_MAX)
                .enable_push(false)
                // None, until the other side's settings say how many.
                .initial_max_send_streams(0)
                .handshake::<_, Bytes>(stream)
                .await
                .map_err(io::Error::other)?;
            poll_fn(|cx| match Pin::new(&mut driver).poll(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(io::Error::other(error))),
                Poll::Ready(Ok(())) => Poll::Ready(Err(closed())),
                Poll::Pending if driver.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            })
            .await?;
            Ok::<_, io::Error>((requests, driver))
        };
        let (requests, driver) = tokio::time::timeout(timeout, dialing)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}")))??;
        let shared = Arc::new_cyclic(|shared: &std::sync::Weak<Shared>| {
            let (shared, address) = (shared.clone(), address.clone());
            let driver = tokio::spawn({
                let address = address.clone();
                async move {
                    let ended = driver.await;
                    tracing::debug!(%address, ended = ?ended.err().map(|error| error.to_string()), "connection closed");
                    if let Some(shared) = shared.upgrade() {
                        shared.retired.store(true, Ordering::Release);
                    }
                }
            });
            Shared { address, origin, retired: AtomicBool::new(false), _driver: AbortOnDropHandle::new(driver) }
        });
        Ok(Self { requests, shared })
    }

    /// Where it leads.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.shared.address
    }

    /// The URI calls are addressed to.
    pub(crate) fn origin(&self) -> http::Uri {
        self.shared.origin.clone()
    }

    /// No new call should use it: it closed, is closing, or stopped answering.
    pub(crate) fn is_retired(&self) -> bool {
        self.shared.retired.load(Ordering::Acquire)
    }

    /// Keeps new calls away. Those under way go on.
    pub(crate) fn retire(&self) {
        self.shared.retired.store(true, Ordering::Release);
    }

    async fn exchange(mut self, request: http::Request<Body>) -> Result<http::Response<Download>, TransportError> {
        let ready = poll_fn(|cx| self.requests.poll_ready(cx)).await;
        ready.map_err(|error| {
            self.retire();
            TransportError::not_sent(error)
        })?;
        let (head, body) = request.into_parts();
        let (mut response, stream) =
            self.requests.send_request(http::Request::from_parts(head, ()), false).map_err(|error| {
                self.retire();
                TransportError::not_sent(error)
            })?;
        let mut upload = Some(Upload { body, stream, held: None });
        let response = poll_fn(|cx| {
            if let Some(sending) = &mut upload
                && sending.poll(cx)?.is_ready()
            {
                upload = None;
            }
            response.poll_unpin(cx).map_err(|error| TransportError::lost(&error))
        })
        .await?;
        Ok(response.map(|stream| Download { stream, data_ended: false, upload, _connection: self.shared }))
    }
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        "closed as soon as it was made (the node may have too many connections)",
    )
}

impl tower::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Download>;
    type Error = TransportError;
    type Future = BoxFuture<'static, Result<Self::Response, TransportError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

/// The request's body on its way out. One frame is held back so that the last one carries the end of the stream.
struct Upload {
    body: Body,
    stream: SendStream<Bytes>,
    held: Option<Bytes>,
}

impl Upload {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => {
                    self.flush(false)?;
                    return Poll::Pending;
                }
                Poll::Ready(frame) => frame,
            };
            match frame {
                None => {
                    self.flush(true)?;
                    return Poll::Ready(Ok(()));
                }
                Some(Err(status)) => {
                    self.stream.send_reset(h2::Reason::CANCEL);
                    return Poll::Ready(Err(TransportError { sent: true, message: status.to_string() }));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.flush(false)?;
                        self.held = Some(data);
                    }
                }
            }
        }
    }

    fn flush(&mut self, end: bool) -> Result<(), TransportError> {
        match self.held.take() {
            Some(data) => self.stream.send_data(data, end),
            None if end => self.stream.send_data(Bytes::new(), true),
            None => Ok(()),
        }
        .map_err(|error| TransportError::lost(&error))
    }
}

/// The answer's body. Keeps the connection alive, and the request's body moving if that is still open.
pub(crate) struct Download {
    stream: RecvStream,
    data_ended: bool,
    upload: Option<Upload>,
    _connection: Arc<Shared>,
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = TransportError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransportError>>> {
        if let Some(sending) = &mut self.upload
            && sending.poll(cx)?.is_ready()
        {
            self.upload = None;
        }
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only if the stream is gone, which the next poll reports.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(TransportError::lost(&error)))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|error| TransportError::lost(&error))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
