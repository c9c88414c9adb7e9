//! Serves a few small pages over HTTP, to whoever asks, and never changes anything.
//!
//! Everything about a connection is bounded: one request each, a head of a few KiB within seconds, an end within ten, GET and HEAD only. When
//! all places are taken the oldest connection makes way for the newest, so whoever sits on connections keeps no health check out. Which
//! pages there are says a [`Site`]: a node's, or a name server's.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use quorate_proto::doors::{NetListener, Stream};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Connections at once.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's head, and its headers.
pub(super) const HEAD_BYTES_MAX: usize = 16 << 10;
pub(super) const HEADERS_MAX: usize = 64;
/// Longest wait for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest life of a connection, so that nobody who reads slowly stays.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Rest after the system refused to accept (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// The pages of a process. Cheap to clone.
pub trait Site: Clone + Send + Sync + 'static {
    /// The page at `path`, which begins with a slash; a query is not part of it.
    fn page(&self, path: &str) -> impl Future<Output = Page> + Send;
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    status: StatusCode,
    kind: &'static str,
    body: Bytes,
}

impl Page {
    /// A page of this kind (its media type).
    pub(super) fn of(kind: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, kind, body: body.into() }
    }

    /// A text for people.
    pub fn text(text: impl Into<String>) -> Self {
        Self::of(TEXT, text.into())
    }

    /// There is nothing to say yet.
    pub fn not_yet(why: &str) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::text(format!("{why}\n")) }
    }

    /// There is no such page.
    pub fn missing() -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::text("no such page; see /\n") }
    }

    /// Whether a check holds: 200, or 503 with what keeps it from holding.
    pub fn check(name: &str, why_not: &[String]) -> Self {
        let ok = why_not.is_empty();
        let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::json!({ "check": name, "ok": ok, "why": why_not });
        Self { status, ..Self::of(JSON, format!("{body}\n")) }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut answer = Response::new(Full::new(self.body));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer
    }
}

/// Serves `site` on `listener` until `stop`; what is under way then is cut. Cancel safe: dropped, it cuts connections.
pub async fn serve(site: impl Site, listener: Arc<dyn NetListener>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut order: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(ended) = connections.join_next() => {
                pass_on_panic(ended);
                order.retain(|connection| !connection.is_finished());
            }
            accepted = listener.accept() => match accepted {
                Ok(stream) => {
                    if order.len() >= CONNECTIONS_MAX && let Some(oldest) = order.pop_front() {
                        oldest.abort();
                    }
                    order.push_back(connections.spawn(connection(site.clone(), stream)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// Serves one request. Whatever goes wrong is the other side's: it is gone or speaks no HTTP.
async fn connection(site: impl Site, stream: Stream) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(|request: Request<Incoming>| {
                let site = site.clone();
                async move { Ok::<_, Infallible>(answer(&site, request.method(), request.uri().path()).await) }
            }),
        );
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
}

async fn answer(site: &impl Site, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method == Method::GET || method == Method::HEAD {
        return site.page(path).await.into_response();
    }
    let wrong = Page { status: StatusCode::METHOD_NOT_ALLOWED, ..Page::text("only GET and HEAD\n") };
    let mut answer = wrong.into_response();
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    answer
}

fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}
