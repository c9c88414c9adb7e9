//! The `quorate` binary: roles to run and tools to run them by. The only `main` that ships.

#![forbid(unsafe_code)]

mod backup;
mod bench;
mod broker;
mod cli;
mod cluster;
mod config;
mod dev;
mod dlq;
mod doctor;
mod failure;
mod group;
mod health;
mod leadership;
mod logging;
mod members;
mod message;
mod moment;
mod namesrv;
mod output;
mod page;
mod position;
mod status;
mod stop;
mod store;
mod topic;
mod transaction;

use std::{future::Future, process::ExitCode};

use clap::Parser as _;
use quorate_client::{CallError, Client, ClientConfig, Doors};

use crate::{
    cli::{Cli, Command},
    cluster::ClusterCommand,
    failure::Failure,
    members::Change,
    output::{Answer, note},
};

fn main() -> ExitCode {
    // First of all: a node started by `dev` must not outlive it.
    if let Err(error) = quorate_jepsen::chaos::die_with_harness() {
        note(error.to_string());
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(failure) => {
            note(failure.to_string());
            failure.exit_code()
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let endpoints = cli.endpoints.as_str();
    let called = |what: String| move |error: CallError| failure::call(what, &error, endpoints);
    match &cli.command {
        Command::Broker(args) => args.run(),
        Command::Namesrv(args) => on(2, args.run()),
        Command::Health(args) => args.run(cli.output),
        Command::Dev(command) => on(2, command.run()),
        Command::Topic(command) => on(1, async {
            let failed = called(command.purpose());
            let answer = match client(endpoints) {
                Ok(client) => command.run(&client.admin()).await,
                Err(error) => Err(error),
            };
            print(cli, answer.map_err(failed)?)
        }),
        Command::Group(command) => on(1, async {
            let failed = called(command.purpose());
            let answer = match client(endpoints) {
                Ok(client) => command.run(&client.admin()).await,
                Err(error) => Err(error),
            };
            print(cli, answer.map_err(failed)?)
        }),
        Command::Transaction(command) => on(1, async {
            let failed = called(command.purpose());
            let answer = match client(endpoints) {
                Ok(client) => command.run(&client.admin()).await,
                Err(error) => Err(error),
            };
            print(cli, answer.map_err(failed)?)
        }),
        Command::Dlq(command) => on(1, async {
            let failed = called(command.purpose());
            let answer = match client(endpoints) {
                Ok(client) => command.run(&client.admin()).await,
                Err(error) => Err(error),
            };
            let answer = answer.map_err(failed)?;
            let some_failed = dlq::has_failed(&answer);
            let printed = print(cli, answer)?;
            Ok(if some_failed { ExitCode::FAILURE } else { printed })
        }),
        Command::Message(command) => on(1, async {
            let failed = called(command.purpose());
            let answer = match client(endpoints) {
                Ok(client) => command.run(&client).await,
                Err(error) => Err(error),
            };
            print(cli, answer.map_err(failed)?)
        }),
        Command::Cluster(command) => on(1, async {
            let failed = called(command.purpose().to_owned());
            let client = client(endpoints).map_err(called(command.purpose().to_owned()))?;
            let change = |change| Change::run(change, command.purpose(), client.admin(), endpoints, cli.output);
            let health = match command {
                ClusterCommand::Add(args) => Ok(change(args.into()).await?),
                ClusterCommand::Remove(args) => Ok(change(args.into()).await?),
                ClusterCommand::Replace(args) => Ok(change(args.into()).await?),
                ClusterCommand::Backup(args) => return args.run(&client.admin(), endpoints, cli.output).await,
                ClusterCommand::Restore(args) => return args.run(&client.admin(), endpoints, cli.output).await,
                ClusterCommand::Status(status) => status.run(&client.admin(), endpoints, cli.output).await?,
                ClusterCommand::Transfer(args) => {
                    Ok(cluster::transfer(args, &client.admin(), cli.output).await.map_err(failed)?)
                }
                ClusterCommand::History => Ok(cluster::history(&client.admin(), cli.output).await.map_err(failed)?),
            };
            Ok(health.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS))
        }),
        Command::Store(command) => command.run(cli.output),
        Command::Doctor(command) => on(1, command.run(endpoints, cli.output)),
        Command::Bench(command) => on(command.threads(), async {
            match command.run(endpoints).await? {
                Some(answer) => print(cli, answer),
                None => Ok(ExitCode::SUCCESS),
            }
        }),
    }
}

fn client(endpoints: &str) -> Result<Client, CallError> {
    Client::new(ClientConfig::parse(endpoints)?, Doors::system())
}

fn print(cli: &Cli, answer: Answer) -> Result<ExitCode, Failure> {
    answer
        .print(cli.output)
        .map_err(|error| failure::error("the result was not printed", error.to_string(), "open the output"))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a command's future on as many threads; on one, it runs on this one.
fn on<T>(threads: usize, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    let runtime = runtime
        .map_err(|error| failure::error("no runtime", error.to_string(), "raise the limit of threads and files"))?;
    let done = runtime.block_on(work);
    // Whatever a command left under way is of no more use.
    runtime.shutdown_background();
    done
}
