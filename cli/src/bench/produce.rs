//! `quorate bench produce`

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Args;
use quorate_client::{Message, Producer};
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

/// How to send.
#[derive(Debug, Args)]
pub struct ProduceBench {
    #[command(flatten)]
    pub(super) load: LoadArgs,
    /// Messages per call
    #[arg(long, default_value_t = 1)]
    per_call: usize,
    /// Bytes of each body
    #[arg(long, default_value_t = 1024)]
    size: usize,
    /// Producers, each a client of its own to the broker
    #[arg(long, default_value_t = 1)]
    producers: usize,
    /// Messages per second, sent by the clock (open loop); --in-flight then only bounds the calls under way
    #[arg(long)]
    rate: Option<f64>,
    /// Transactional messages, each committed as soon as it is stored: two calls one after the other, counted once
    #[arg(long, conflicts_with = "per_call")]
    transactional: bool,
}

impl ProduceBench {
    pub(super) async fn run(&self, endpoints: &str) -> Result<Answer, Failure> {
        let counts = [self.per_call, self.load.in_flight, self.size, self.producers];
        if counts.contains(&0) || self.rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
            return Err(failure::config(
                "the load is empty",
                "--per-call, --in-flight, --size, --producers and --rate are at least 1",
                "quorate bench produce --help",
            ));
        }
        let failed = |error| failure::call("the load did not start", &error, endpoints);
        let client = client(endpoints, self.load.connections).map_err(failed)?;
        let producers: Arc<[Producer]> = (0..self.producers).map(|_| client.producer()).collect();
        producers[0].prepare(&self.load.topic).await.map_err(failed)?;
        let (topic, per_call): (Arc<str>, usize) = (self.load.topic.as_str().into(), self.per_call);
        let body = Bytes::from((0..self.size).map(|at| b'a' + (at % 26) as u8).collect::<Vec<u8>>());
        let transactional = self.transactional;
        let call = {
            let producers = producers.clone();
            move |slot: usize| {
                let producer = producers[slot % producers.len()].clone();
                let message = Message::new(&*topic, body.clone());
                async move {
                    if transactional {
                        transact(&producer, message).await
                    } else {
                        send(&producer, message, per_call).await
                    }
                }
            }
        };
        let plan = Plan {
            slots: self.load.in_flight,
            warmup: Duration::from_secs(self.load.warmup),
            measured: Duration::from_secs(self.load.seconds),
            calls_per_s: self.rate.map(|rate| rate / per_call as f64),
        };
        let outcome = run(plan, &Servers::new(client.admin()), call).await;
        outcome.worked(endpoints)?;
        let mut figures = outcome.figures(self.size as u64);
        figures.extend([
            ("mode", json!(if self.rate.is_some() { "open" } else { "closed" })),
            ("rate", json!(self.rate)),
            ("in_flight", json!(self.load.in_flight)),
            ("per_call", json!(self.per_call)),
            ("transactional", json!(self.transactional)),
            ("size", json!(self.size)),
            ("producers", json!(producers.len())),
            ("connections", json!(self.load.connections)),
        ]);
        Ok(Answer::of_figures(figures))
    }
}

/// Sends a half message and commits it.
async fn transact(producer: &Producer, message: Message) -> Done {
    let committed = async {
        let half = producer.send_half(message).await?;
        producer.commit(&half).await
    };
    match committed.await {
        Ok(()) => Done { acked: 1, ..Done::default() },
        Err(error) => Done { failed: 1, reason: Some(error), ..Done::default() },
    }
}

async fn send(producer: &Producer, message: Message, per_call: usize) -> Done {
    let mut done = Done::default();
    for result in producer.send_many(vec![message; per_call]).await {
        match result {
            Ok(_) => done.acked += 1,
            Err(error) => {
                done.failed += 1;
                done.reason.get_or_insert(error);
            }
        }
    }
    done
}
