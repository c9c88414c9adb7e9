//! Runs a name server: binds, serves until told to stop, and says what went wrong otherwise.

use std::{
    convert::Infallible,
    future::Future,
    io,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use quorate_proto::{
    doors::{Net, incoming, parse_addresses},
    namesrv::name_server_server::{self, NameServerServer},
    time::Clock,
    unread::{Asked, explain},
    v2::messaging_service_server::MessagingServiceServer,
};
use tokio::task::JoinSet;
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
    /// More listeners, by the names that brokers have for theirs: a client is given the addresses that brokers have for clients of the
    /// listener of that name.
    pub listeners: Vec<NamedListener>,
    /// The only cluster id taken. None: that of the first broker that registers, while it lives.
    pub cluster: Option<String>,
}

/// A listener that has a name, as text `name@host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedListener {
    /// What brokers call theirs.
    pub name: String,
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
}

impl FromStr for NamedListener {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('@').map(|(name, listen)| (name.trim(), listen.trim()));
        match parts.filter(|(name, listen)| !name.is_empty() && parse_addresses(listen).is_ok_and(|all| all.len() == 1))
        {
            Some((name, listen)) => Ok(Self { name: name.to_owned(), listen: listen.to_owned() }),
            None => Err(format!("{text:?} is not a listener; write name@host:port, for example \"host@0.0.0.0:9976\"")),
        }
    }
}

/// Where a name server listens, with real ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The listener that every name server has.
    pub address: String,
    /// The named ones.
    pub listeners: Vec<NamedListener>,
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
/// `ready` is called once with the bound addresses as soon as connections are accepted. The table starts empty: until the brokers'
/// next heartbeat, a second later at most, every topic is unknown. Not cancel safe in one respect only: dropped, it cuts connections
/// instead of saying goodbye.
///
/// # Errors
/// [`RunError`] names the address and the cause; `ready` was not called if it could not be bound.
pub async fn run(
    config: NamesrvConfig,
    doors: Doors,
    shutdown: CancellationToken,
    ready: impl FnOnce(Bound) + Send,
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
    ready: impl FnOnce(Bound) + Send,
) -> Result<(), RunError> {
    let NamesrvConfig { listen, listeners, cluster } = config;
    let service = NameService::new(Table::new(cluster), doors.clock, metrics.clone());
    metrics.table.set(service.look());
    let (main, address) = serve(doors.net.as_ref(), &listen, service.clone(), &shutdown).await?;
    let (mut servers, mut bound) = (JoinSet::new(), Bound { address, listeners: Vec::new() });
    servers.spawn(main);
    for NamedListener { name, listen } in listeners {
        let (server, address) = serve(doors.net.as_ref(), &listen, service.at(Some(&name)), &shutdown).await?;
        servers.spawn(server);
        bound.listeners.push(NamedListener { name, listen: address });
    }
    info!(address = bound.address, "name server started");
    let address = bound.address.clone();
    ready(bound);

    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(STOP_MAX).await;
    };
    let all = async {
        while let Some(ended) = servers.join_next().await {
            match ended {
                Ok(ended) => ended?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        Ok(())
    };
    let ended = tokio::select! {
        ended = all => ended,
        () = overdue => Ok(()),
    };
    info!(address, "name server stopped");
    ended
}

/// Binds one listener; the future serves it until `shutdown`.
async fn serve(
    net: &dyn Net,
    listen: &str,
    service: NameService,
    shutdown: &CancellationToken,
) -> Result<(impl Future<Output = Result<(), RunError>> + Send + use<>, String), RunError> {
    let listener = match net.listen(listen).await {
        Ok(listener) => listener,
        Err(source) => return Err(RunError::Bind { address: listen.to_owned(), source }),
    };
    let address = listener.local_address();
    let served = Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .serve_with_incoming_shutdown(Services::new(service), incoming(listener), shutdown.clone().cancelled_owned());
    let bound = address.clone();
    Ok((async move { served.await.map_err(|source| RunError::Serve { address, source }) }, bound))
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
        let (asked, answer) = match service {
            Some(name_server_server::SERVICE_NAME) => (Asked::Other, self.brokers.call(request)),
            Some(_) | None => (Asked::Messaging, self.clients.call(request)),
        };
        Box::pin(async move {
            Ok(explain(asked, answer.await?, || "a name server takes no messages; send to a broker".to_owned()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_listener_is_a_name_and_where_it_listens() {
        let host: NamedListener = "host@0.0.0.0:9976".parse().expect("legal");
        assert_eq!((host.name.as_str(), host.listen.as_str()), ("host", "0.0.0.0:9976"));
        for wrong in ["0.0.0.0:9976", "@0.0.0.0:9976", "host@9976", "host@a:1;b:2"] {
            assert!(wrong.parse::<NamedListener>().is_err_and(|why| why.contains(wrong)), "{wrong}");
        }
    }
}
