//! A bare gRPC service and its callers: what the machine and the library cost before any broker does anything.
//!
//! The server is a process of its own, as brokers are, and nothing but tonic: one unary method that gives its bytes back.

use std::{
    io::{self, Read as _, Write as _},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use quorate_proto::doors::{Net as _, TcpNet, incoming};
use tonic::{Request, Response, Status, body::Body, transport::Channel};
use tonic_prost::ProstCodec;

use crate::failure::{self, Failure};

const PATH: &str = "/quorate.bench.Echo/Echo";
/// More than any number in flight, so that the library's default of 200 does not measure itself.
const STREAMS_MAX: u32 = 4096;

/// Serves until its standard input ends, so it never outlives who started it.
#[derive(Debug, Args)]
pub struct EchoServer {}

impl EchoServer {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            failure::error("the echo server did not start", error.to_string(), "quorate bench floor")
        };
        let listener = TcpNet.listen("127.0.0.1:0").await.map_err(failed)?;
        println!("{}", listener.local_address());
        io::stdout().flush().map_err(failed)?;
        let (gone, parent) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            drop(gone);
        });
        let server = tonic::transport::Server::builder().max_concurrent_streams(STREAMS_MAX);
        let serving = server.serve_with_incoming(Echo, incoming(listener));
        tokio::select! {
            ended = serving => ended.map_err(|error| failed(io::Error::other(error))),
            _ = parent => Ok(()),
        }
    }
}

/// The service, as generated code would have it.
#[derive(Clone)]
struct Echo;

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec: ProstCodec<Bytes, Bytes> = ProstCodec::default();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(Echoes, request).await) })
    }
}

struct Echoes;

impl tonic::server::UnaryService<Bytes> for Echoes {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

/// A running echo server and a channel to it.
pub(super) struct EchoPair {
    server: Child,
    channel: Channel,
}

/// Calls per second, and the median latency.
pub(super) struct Rate {
    pub per_s: f64,
    pub p50_us: u64,
}

impl EchoPair {
    /// Starts this program again as the server.
    pub(super) async fn start() -> io::Result<Self> {
        let mut server = Command::new(std::env::current_exe()?)
            .args(["bench", "echo-server"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = server.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            io::BufRead::read_line(&mut io::BufReader::new(out), &mut line).map(|_| line)
        });
        let address = reading.await.map_err(io::Error::other)??;
        let endpoint = Channel::from_shared(format!("http://{}", address.trim())).map_err(io::Error::other)?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(io::Error::other)?;
        Ok(Self { server, channel })
    }

    /// Echoes 1 KiB with so many calls in flight, for so long.
    pub(super) async fn measure(&self, in_flight: usize, lasting: Duration) -> io::Result<Rate> {
        let body = Bytes::from(vec![b'q'; 1024]);
        let record: Arc<std::sync::Mutex<Histogram<u64>>> = Arc::new(std::sync::Mutex::new(
            Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are valid"),
        ));
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            let (mut grpc, body, record) =
                (tonic::client::Grpc::new(self.channel.clone()), body.clone(), record.clone());
            tasks.spawn(async move {
                while start.elapsed() < lasting {
                    let begin = Instant::now();
                    grpc.ready().await.map_err(io::Error::other)?;
                    let codec: ProstCodec<Bytes, Bytes> = ProstCodec::default();
                    let path = http::uri::PathAndQuery::from_static(PATH);
                    grpc.unary(Request::new(body.clone()), path, codec).await.map_err(io::Error::other)?;
                    let latency = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                    record.lock().expect("no holder of this lock panics").saturating_record(latency);
                }
                Ok::<(), io::Error>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        let elapsed = start.elapsed().as_secs_f64();
        let record = record.lock().expect("no holder of this lock panics");
        Ok(Rate { per_s: record.len() as f64 / elapsed, p50_us: record.value_at_quantile(0.5) })
    }
}

impl Drop for EchoPair {
    fn drop(&mut self) {
        // Closing its input ends it; should it not, this does. It is our own child and not reaped yet.
        drop(self.server.stdin.take());
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
