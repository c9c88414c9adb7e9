//! `quorate bench consume`

use std::{sync::Arc, time::Duration};

use clap::Args;
use quorate_client::{ConsumerOptions, SimpleConsumer};
use serde_json::json;

use super::{
    LoadArgs, client,
    load::{Done, Plan, run},
    servers::Servers,
};
use crate::{
    failure::{self, Failure},
    output::Answer,
};

/// How to receive.
#[derive(Debug, Args)]
pub struct ConsumeBench {
    #[command(flatten)]
    pub(super) load: LoadArgs,
    /// The consumer group
    #[arg(long, default_value = "bench")]
    group: String,
    /// Most messages of one receive; acked in one call
    #[arg(long, default_value_t = 32)]
    per_call: u16,
    /// Consumers, each a client of its own to the broker
    #[arg(long, default_value_t = 1)]
    consumers: usize,
    /// Stop as soon as nothing is left
    #[arg(long)]
    until_empty: bool,
}

impl ConsumeBench {
    pub(super) async fn run(&self, endpoints: &str) -> Result<Answer, Failure> {
        if self.per_call == 0 || self.load.in_flight == 0 || self.consumers == 0 {
            return Err(failure::config(
                "the load is empty",
                "--per-call, --in-flight and --consumers are at least 1",
                "quorate bench consume --help",
            ));
        }
        let failed = |error| failure::call("the load did not start", &error, endpoints);
        let client = client(endpoints, self.load.connections).map_err(failed)?;
        let options = ConsumerOptions {
            batch: self.per_call,
            invisible_duration: Duration::from_secs(60),
            long_polling: Duration::from_secs(5),
        };
        let consumers = (0..self.consumers).map(|_| client.simple_consumer(&self.group, options));
        let consumers: Arc<[SimpleConsumer]> = consumers.collect::<Result<_, _>>().map_err(failed)?;
        let (topic, until_empty): (Arc<str>, bool) = (self.load.topic.as_str().into(), self.until_empty);
        let call = {
            let consumers = consumers.clone();
            move |slot: usize| {
                let (consumer, topic) = (consumers[slot % consumers.len()].clone(), topic.clone());
                async move { receive_and_ack(&consumer, &topic, until_empty).await }
            }
        };
        let plan = Plan {
            slots: self.load.in_flight,
            warmup: Duration::from_secs(self.load.warmup),
            measured: Duration::from_secs(self.load.seconds),
            calls_per_s: None,
        };
        let outcome = run(plan, &Servers::new(client.admin()), call).await;
        outcome.worked(endpoints)?;
        // The size of bodies is the producer's choice; megabytes are left to its report.
        let mut figures = outcome.figures(0);
        figures.retain(|(name, _)| *name != "mb_per_s");
        figures.extend([
            ("in_flight", json!(self.load.in_flight)),
            ("per_call", json!(self.per_call)),
            ("consumers", json!(consumers.len())),
            ("connections", json!(self.load.connections)),
        ]);
        Ok(Answer::of_figures(figures))
    }
}

/// A receive with its ack is one call of the load.
async fn receive_and_ack(consumer: &SimpleConsumer, topic: &str, until_empty: bool) -> Done {
    let received = match consumer.receive(topic).await {
        Ok(received) if received.is_empty() => return Done { idle: true, last: until_empty, ..Done::default() },
        Ok(received) => received,
        Err(error) => return Done { failed: 1, reason: Some(error), ..Done::default() },
    };
    let mut done = Done::default();
    for result in consumer.ack_many(&received).await {
        match result {
            Ok(()) => done.acked += 1,
            Err(error) => {
                done.failed += 1;
                done.reason.get_or_insert(error);
            }
        }
    }
    done
}
