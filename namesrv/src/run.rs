//! Runs a name server: binds, serves until told to stop, and says what went wrong otherwise.

use std::{
    convert::Infallible,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use quorate_proto::{
    doors::{Net, incoming},
    namesrv::name_server_server::{self, NameServerServer},
    time::Clock,
    v2::messaging_service_server::MessagingServiceServer,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
    transport::Server,
};
use tracing::info;

use crate::{metrics::Metrics, service::NameService, table::Table};

/// Largest registration taken: some hundred thousand topics.
const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Calls at a time on one connection.
const CALLS_MAX: u32 = 256;
/// A connection that does not answer a ping for this long is dropped, and with it what it holds.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long a stop waits for clients to let go.
const STOP_MAX: Duration = Duration::from_secs(1);

/// The settings of a name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesrvConfig {
    /// `host:port` to listen on; port 0 takes a free one. Usual: port 9876.
    pub listen: String,
    /// The only cluster id taken. None: that of the first broker that registers, while it lives.
    pub cluster: Option<String>,
}

/// What a name server touches outside itself.
#[derive(Clone)]
pub struct Doors {
    /// The network.
    pub net: Arc<dyn Net>,
    /// Leases run on its monotonic time.
    pub clock: Arc<dyn Clock>,
}

/// Why a name server stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The port is taken or the address is not this machine's.
    #[error("name server cannot listen on {address}: {source}; choose another address or stop what uses it")]
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The gRPC server ended by itself.
    #[error("name server on {address} stopped: {source}")]
    Serve {
        /// The bound address.
        address: String,
        /// What it said.
        source: tonic::transport::Error,
    },
}

/// Serves until `shutdown`, then lets clients go and returns within about a second.
///
/// `ready` is called once with the bound address as soon as connections are accepted. The table starts empty: until the brokers'
/// next heartbeat, a second later at most, every topic is unknown. Not cancel safe in one respect only: dropped, it cuts connections
/// instead of saying goodbye.
///
/// # Errors
/// [`RunError`] names the address and the cause; `ready` was not called if it could not be bound.
pub async fn run(
    config: NamesrvConfig,
    doors: Doors,
    shutdown: CancellationToken,
    ready: impl FnOnce(String) + Send,
) -> Result<(), RunError> {
    run_counted(config, doors, Arc::default(), shutdown, ready).await
}

/// Serves as [`run`] does, and counts in `metrics`.
///
/// # Errors
/// As [`run`].
pub async fn run_counted(
    config: NamesrvConfig,
    doors: Doors,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    ready: impl FnOnce(String) + Send,
) -> Result<(), RunError> {
    let NamesrvConfig { listen, cluster } = config;
    let listener = match doors.net.listen(&listen).await {
        Ok(listener) => listener,
        Err(source) => return Err(RunError::Bind { address: listen, source }),
    };
    let address = listener.local_address();
    let service = NameService::new(Table::new(cluster), doors.clock, metrics);
    let server = Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .serve_with_incoming_shutdown(Services::new(service), incoming(listener), shutdown.cancelled());
    info!(address, "name server started");
    ready(address.clone());

    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(STOP_MAX).await;
    };
    let ended = tokio::select! {
        ended = server => ended,
        () = overdue => Ok(()),
    };
    info!(address, "name server stopped");
    ended.map_err(|source| RunError::Serve { address, source })
}

/// The two services of one port. Two need no router with a table: the path says which of them is meant.
#[derive(Clone)]
struct Services {
    brokers: NameServerServer<NameService>,
    clients: MessagingServiceServer<NameService>,
}

impl Services {
    fn new(service: NameService) -> Self {
        Self {
            brokers: NameServerServer::new(service.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
            clients: MessagingServiceServer::new(service),
        }
    }
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = request.uri().path().trim_start_matches('/').split('/').next();
        if service == Some(name_server_server::SERVICE_NAME) {
            self.brokers.call(request)
        } else {
            self.clients.call(request)
        }
    }
}
