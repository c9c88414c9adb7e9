//! `quorate bench …`: how much the group carries, how fast, and at what cost, beside what the machine can do at best.
//!
//! ```text
//!   produce, consume   closed loop: so many calls in flight, each slot starts the next when its last is answered
//!   produce --rate     open loop: calls are due by the clock, and a late one's wait counts (no coordinated omission)
//!   failover           a group of its own whose nodes are struck; how long nothing was acknowledged
//!   floor              a sync and a bare gRPC call, so that every other figure can be read as a ratio
//! ```
//! The load runs on one thread unless told otherwise: on a shared machine what the client burns, the servers lack.

mod consume;
mod echo;
mod failover;
mod floor;
mod load;
mod produce;
mod servers;

use clap::{Args, Subcommand};
use quorate_client::{CallError, Client, ClientConfig, Doors};

pub use self::{
    consume::ConsumeBench, echo::EchoServer, failover::FailoverBench, floor::FloorBench, produce::ProduceBench,
};
use crate::{failure::Failure, output::Answer};

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Send messages and measure
    Produce(ProduceBench),
    /// Receive and ack messages and measure
    Consume(ConsumeBench),
    /// Measure the machine: log syncs and bare gRPC calls
    Floor(FloorBench),
    /// Strike nodes of a group of three and measure how long it is silent
    Failover(FailoverBench),
    /// The other side of the floor's gRPC calls
    #[command(hide = true)]
    EchoServer(EchoServer),
}

/// What loads have in common.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// The topic; made by its first use where the broker allows that
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Calls under way at once, over all producers or consumers
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Seconds that count
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seconds before, which do not
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Connections per address
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Threads of this process that drive the load
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

impl BenchCommand {
    /// Threads the runtime should have.
    pub fn threads(&self) -> usize {
        match self {
            Self::Produce(bench) => bench.load.threads,
            Self::Consume(bench) => bench.load.threads,
            Self::Floor(_) | Self::Failover(_) => 1,
            // A bare server as anybody would start it: one thread per core.
            Self::EchoServer(_) => std::thread::available_parallelism().map_or(2, usize::from),
        }
    }

    /// Measures.
    ///
    /// # Errors
    /// What kept the load from starting. Calls that fail under way are counted, not errors.
    pub async fn run(&self, endpoints: &str) -> Result<Option<Answer>, Failure> {
        match self {
            Self::Produce(bench) => bench.run(endpoints).await.map(Some),
            Self::Consume(bench) => bench.run(endpoints).await.map(Some),
            Self::Floor(bench) => bench.run().await.map(Some),
            Self::Failover(bench) => bench.run().await.map(Some),
            Self::EchoServer(server) => server.run().await.map(|()| None),
        }
    }
}

fn client(endpoints: &str, connections: usize) -> Result<Client, CallError> {
    let config = ClientConfig { connections, ..ClientConfig::parse(endpoints)? };
    Client::new(config, Doors::system())
}
