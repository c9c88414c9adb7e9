//! The gate of the client listener: which service a request goes to, and how many bytes are let in at once.
//!
//! A decoder holds a request whole before anyone can refuse it, so bytes are counted here, as they arrive: each request holds what it
//! has sent until it is answered, and beyond the node's limit a request is turned away (`RESOURCE_EXHAUSTED`, the one answer outside
//! RocketMQ's codes, since its message was not read). Only SendMessage may be large; everything else fits a small limit.
//! Telemetry streams are long, so they are not counted; what they may say at once is tiny instead.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use quorate_proto::{
    admin::broker_admin_server::BrokerAdminServer,
    health::health_server::HealthServer,
    v2::{admin_server::AdminServer, messaging_service_server::MessagingServiceServer},
};
use tokio::time::Instant;
use tonic::{Status, body::Body, metadata::MetadataValue};
use tower::Service as TowerService;

use super::{
    Service,
    admin::{Operators, ProtocolAdmin},
    client::CameBy,
    health::Readiness,
    messaging::Messaging,
    unread::{self, Asked},
};
use crate::{
    metrics::{Latencies, Metrics},
    registrar::ListenerName,
};

/// Decode limit of everything that carries no message body: an ack of a thousand entries fits many times.
const SMALL_REQUEST_BYTES: usize = 1 << 20;
/// Decode limit of what clients say about themselves.
const TELEMETRY_BYTES: usize = 64 << 10;

const MESSAGING: &str = "/apache.rocketmq.v2.MessagingService/";
const PROTOCOL_ADMIN: &str = "/apache.rocketmq.v2.Admin/";
const HEALTH: &str = "/grpc.health.v1.Health/";
const OPERATORS: &str = "/quorate.admin.BrokerAdmin/";

/// Routes requests to services. Cheap to clone, one per connection.
#[derive(Clone)]
pub(crate) struct Gate {
    sends: MessagingServiceServer<Messaging>,
    messaging: MessagingServiceServer<Messaging>,
    telemetry: MessagingServiceServer<Messaging>,
    operators: BrokerAdminServer<Operators>,
    protocol_admin: AdminServer<ProtocolAdmin>,
    health: HealthServer<Readiness>,
    inbound: Arc<Inbound>,
    listener: ListenerName,
}

/// Bytes of requests being served.
struct Inbound {
    bytes: AtomicU64,
    bytes_max: u64,
    service: Arc<Service>,
}

impl Gate {
    /// The gate to a node's services, at the default listener.
    pub fn new(service: Arc<Service>) -> Self {
        let limits = &service.config.limits;
        let large = usize::try_from(limits.request_bytes_max).unwrap_or(usize::MAX);
        let inbound =
            Inbound { bytes: AtomicU64::new(0), bytes_max: limits.inbound_bytes_max, service: service.clone() };
        let messaging = MessagingServiceServer::new(Messaging(service.clone()));
        Self {
            sends: messaging.clone().max_decoding_message_size(large),
            telemetry: messaging.clone().max_decoding_message_size(TELEMETRY_BYTES),
            messaging: messaging.max_decoding_message_size(SMALL_REQUEST_BYTES),
            health: HealthServer::new(Readiness(service.clone())).max_decoding_message_size(TELEMETRY_BYTES),
            operators: BrokerAdminServer::new(Operators(service)).max_decoding_message_size(SMALL_REQUEST_BYTES),
            protocol_admin: AdminServer::new(ProtocolAdmin).max_decoding_message_size(SMALL_REQUEST_BYTES),
            inbound: Arc::new(inbound),
            listener: None,
        }
    }

    /// The same gate at another listener: the bytes let in are counted together.
    pub fn at(&self, listener: ListenerName) -> Self {
        Self { listener, ..self.clone() }
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl TowerService<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer {
        request.extensions_mut().insert(CameBy(self.listener.clone()));
        let path = request.uri().path();
        if let Some(method) = path.strip_prefix(MESSAGING) {
            let timed = Timed::new(method, &self.inbound.service.metrics);
            return match method {
                "SendMessage" => timed.until(self.inbound.clone().admit(request, &mut self.sends, Asked::Send)),
                "Telemetry" => self.telemetry.call(request),
                // Their headers leave at once: what takes time is counted where the answer is made.
                "ReceiveMessage" | "PullMessage" => {
                    self.inbound.clone().admit(request, &mut self.messaging, Asked::Messaging)
                }
                _ => timed.until(self.inbound.clone().admit(request, &mut self.messaging, Asked::Messaging)),
            };
        }
        if path.starts_with(OPERATORS) {
            return self.inbound.clone().admit(request, &mut self.operators, Asked::Other);
        }
        if path.starts_with(PROTOCOL_ADMIN) {
            return self.inbound.clone().admit(request, &mut self.protocol_admin, Asked::Other);
        }
        if path.starts_with(HEALTH) {
            return self.health.call(request);
        }
        let status = Status::unimplemented(format!("there is no {path} here"));
        Box::pin(std::future::ready(Ok(status.into_http())))
    }
}

/// Measures a call from here to its answer.
struct Timed {
    /// Where the method stands among the latencies.
    method: usize,
    began: Instant,
    metrics: Arc<Metrics>,
}

impl Timed {
    fn new(method: &str, metrics: &Arc<Metrics>) -> Self {
        Self { method: Latencies::place(method), began: Instant::now(), metrics: metrics.clone() }
    }

    fn until(self, answer: Answer) -> Answer {
        Box::pin(async move {
            let answer = answer.await;
            self.metrics.detail.latencies.at(self.method).record_time(self.began.elapsed());
            answer
        })
    }
}

impl Inbound {
    /// Lets a request in and counts its bytes until it is answered.
    fn admit<S>(self: Arc<Self>, request: Request<Body>, service: &mut S, asked: Asked) -> Answer
    where
        S: TowerService<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>,
    {
        let share = Arc::new(Share { inbound: self, bytes: AtomicU64::new(0) });
        if share.inbound.bytes.load(Ordering::Relaxed) >= share.inbound.bytes_max {
            return Box::pin(std::future::ready(Ok(share.turn_away().into_http())));
        }
        let counted = |body| Body::new(Counted { body, share: share.clone() });
        let answer = service.call(request.map(counted));
        Box::pin(async move {
            let answer = answer.await;
            let answer = answer.map(|answer| unread::explain(asked, answer, &share.inbound.service.config.limits));
            drop(share);
            answer
        })
    }
}

/// The answer to a request that was not taken, with gRPC's own word for "ask again": without that, RESOURCE_EXHAUSTED is what servers say of a
/// request that is too large.
fn turned_away() -> Status {
    let mut busy = Status::resource_exhausted(
        "the broker is busy with as many bytes of requests as it may hold; nothing was done, try again later",
    );
    busy.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from_static("100"));
    busy
}

/// The bytes of one request; given back when both its body and its answer are done with it.
struct Share {
    inbound: Arc<Inbound>,
    bytes: AtomicU64,
}

impl Share {
    fn add(&self, bytes: u64) -> Result<(), Status> {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = self.inbound.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes <= self.inbound.bytes_max { Ok(()) } else { Err(self.turn_away()) }
    }

    fn turn_away(&self) -> Status {
        self.inbound.service.metrics.turned_away.add(1);
        turned_away()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.inbound.bytes.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// A request body that is counted as it arrives.
struct Counted {
    body: Body,
    share: Arc<Share>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(status) = self.share.add(data.len() as u64)
        {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our client, and gRPC's own retries, tell it by this from a request that is too large.
    #[test]
    fn a_request_that_is_turned_away_may_be_repeated_and_says_so() {
        let answer = turned_away().into_http::<Body>();
        assert_eq!(answer.headers().get("grpc-status").map(|code| code.as_bytes()), Some(&b"8"[..]));
        assert!(answer.headers().contains_key("grpc-retry-pushback-ms"));
    }
}
