//! The HTTP listener of operators: health checks for orchestrators, metrics for Prometheus. It reads and never changes anything.
//!
//! Everything about a connection is bounded: one request each, a head of a few KiB within seconds, an end within ten, GET and HEAD only. When
//! all places are taken the oldest connection makes way for the newest, so whoever sits on connections keeps no health check out.

pub(crate) mod scrape;
mod text;

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use quorate_proto::doors::{BoxFuture, NetListener, Stream};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::scrape::Scrape;
use crate::health::{Check, Health};

/// Connections at once.
const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's head, and its headers.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// Longest wait for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest life of a connection, so that nobody who reads slowly stays.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Rest after the system refused to accept (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/x-protobuf";

const INDEX: &str = "\
quorate

/health/live          the node runs
/health/ready         it can serve or forward
/health/safe-to-stop  the group keeps its quorum without it
/metrics              numbers for Prometheus
/cluster              every node of the group (protobuf, for `quorate cluster status`)
";

/// Gathers the state of the broker group as `quorate.admin.ClusterStatusResponse`. It stands here too because a node that reaches no other
/// closes its client listeners, and is then the one that operators want to ask.
pub(crate) type ClusterPage = Arc<dyn Fn() -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

/// What is served. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pages {
    /// The node's health.
    pub health: Arc<Health>,
    /// Its metrics, once there is a node.
    pub scrape: Arc<OnceLock<Scrape>>,
    /// The state of the group, once the node has joined it.
    pub cluster: Arc<OnceLock<ClusterPage>>,
}

impl Pages {
    /// Serves on `listener` until `stop`; what is under way then is cut.
    pub async fn serve(self, listener: Arc<dyn NetListener>, stop: CancellationToken) {
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
                        order.push_back(connections.spawn(self.clone().connection(stream)));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }

    /// Serves one request. Whatever goes wrong is the other side's: it is gone or speaks no HTTP.
    async fn connection(self, stream: Stream) {
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(false)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(|request: Request<Incoming>| {
                    let pages = self.clone();
                    async move { Ok::<_, Infallible>(pages.answer(request.method(), request.uri().path()).await) }
                }),
            );
        let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut answer = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        if path == "/" {
            return page(StatusCode::OK, TEXT, INDEX.to_owned());
        }
        if path == "/metrics" {
            return match self.scrape.get() {
                Some(scrape) => page(StatusCode::OK, text::KIND, scrape.text()),
                None => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the node reads its log\n".to_owned()),
            };
        }
        if path == "/cluster" {
            return match self.cluster.get() {
                Some(gather) => page(StatusCode::OK, PROTOBUF, gather().await),
                None => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the node reads its log\n".to_owned()),
            };
        }
        let asked = path.strip_prefix("/health/");
        if let Some(check) = Check::ALL.into_iter().find(|check| asked == Some(check.name())) {
            return self.health(check);
        }
        page(StatusCode::NOT_FOUND, TEXT, "no such page; see /\n".to_owned())
    }

    fn health(&self, check: Check) -> Response<Full<Bytes>> {
        let why = self.health.why_not(check);
        let ok = why.is_empty();
        let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::json!({ "check": check.name(), "ok": ok, "why": why });
        page(status, JSON, format!("{body}\n"))
    }
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

#[cfg(test)]
#[path = "pages_test.rs"]
mod tests;
