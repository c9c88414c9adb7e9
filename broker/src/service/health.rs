//! `grpc.health.v1.Health` on the client port: readiness for those who speak gRPC (Kubernetes probes, load balancers).
//!
//! The node as a whole (the empty name) and the service that clients call are the same here: ready or not. While a node reaches no peer its
//! client listener is closed, and this with it.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use quorate_proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

use super::Service;
use crate::health::Check;

/// Names of what can be asked about.
const SERVICES: [&str; 2] = ["", "apache.rocketmq.v2.MessagingService"];

/// The service as tonic calls it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Readiness(pub Arc<Service>);

fn serving(ready: bool) -> HealthCheckResponse {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

/// The state now, and again each time it is another.
fn changes(ready: watch::Receiver<bool>) -> impl Stream<Item = Result<HealthCheckResponse, Status>> + Send {
    stream::unfold((ready, true), |(mut ready, is_first)| async move {
        if !is_first && ready.changed().await.is_err() {
            return None;
        }
        let state = serving(*ready.borrow_and_update());
        Some((Ok(state), (ready, false)))
    })
}

#[async_trait]
impl Health for Readiness {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found("no such service; ask for the empty name"));
        }
        Ok(Response::new(serving(self.0.health.why_not(Check::Ready).is_empty())))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let closing = self.0.closing();
        let states: Self::WatchStream = if SERVICES.contains(&service.as_str()) {
            Box::pin(changes(self.0.health.watch_ready()))
        } else {
            // The protocol's word for it: the call stays, the service might appear.
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            Box::pin(stream::once(std::future::ready(Ok(unknown))).chain(stream::pending()))
        };
        Ok(Response::new(Box::pin(states.take_until(async move { closing.cancelled().await }))))
    }
}
