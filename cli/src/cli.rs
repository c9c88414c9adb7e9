//! The command line's grammar.

use clap::{Parser, Subcommand};

use crate::{
    bench::BenchCommand, broker::BrokerArgs, cluster::ClusterCommand, dev::DevCommand, dlq::DlqCommand,
    doctor::DoctorCommand, group::GroupCommand, health::HealthArgs, message::MessageCommand, namesrv::NamesrvArgs,
    output::Format, store::StoreCommand, topic::TopicCommand, transaction::TransactionCommand,
};

/// A message broker that speaks RocketMQ 5's protocol and keeps everything in one Raft log per broker group.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, propagate_version = true, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Nodes to talk to, host:port, several separated by ;
    #[arg(long, global = true, env = "QUORATE_ENDPOINTS", default_value = "127.0.0.1:8081", hide_env_values = true)]
    pub endpoints: String,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 error, 2 usage or configuration, 3 unhealthy, 4 no leader, no quorum or \
                          nobody that answers, 5 verification failed";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one node of a broker group, with a name server beside it
    Broker(BrokerArgs),
    /// Run a name server alone
    Namesrv(NamesrvArgs),
    /// Ask a node how it is: live, ready, safe to stop
    Health(HealthArgs),
    /// Run a three-node group on this machine: load, SIGKILL of the leader, verdict
    Dev(DevCommand),
    /// Create, list, describe and delete topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Create, list and delete consumer groups
    #[command(subcommand)]
    Group(GroupCommand),
    /// List half messages that wait for their end, commit them and roll them back
    #[command(subcommand)]
    Transaction(TransactionCommand),
    /// Look at messages that nobody gets again, and send them once more
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Look at the broker group
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Check from a client's place that the group can be used: addresses, routes, clocks, quorum; exit code 3 if something is wrong
    Doctor(DoctorCommand),
    /// Read the data directory of a stopped node: is it whole, and what is in it
    #[command(subcommand)]
    Store(StoreCommand),
    /// Send and receive single messages
    #[command(subcommand)]
    Message(MessageCommand),
    /// Measure what the group carries and what the machine could
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[cfg(test)]
#[path = "cli_test.rs"]
mod tests;
