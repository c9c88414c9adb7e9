//! `quorate message …`: one message in, a few messages out, for trying things.

use std::time::Duration;

use clap::Subcommand;
use quorate_client::{CallError, Client, ConsumerOptions, Delivery, Message};
use serde_json::{Value, json};

use crate::output::Answer;

/// What to do with messages.
#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// Send one message
    Send {
        /// The topic
        topic: String,
        /// Its payload, as text
        body: String,
        /// One word to filter by
        #[arg(long)]
        tag: Option<String>,
        /// A word to find it by; may be given several times
        #[arg(long = "key")]
        keys: Vec<String>,
        /// NAME=VALUE; may be given several times
        #[arg(long = "property", value_parser = pair)]
        properties: Vec<(String, String)>,
        /// Leave it half: nobody gets it before `quorate transaction commit` with the id that is printed
        #[arg(long)]
        half: bool,
    },
    /// Receive messages; without --ack they come back after --invisible
    Receive {
        /// The topic
        topic: String,
        /// The consumer group
        #[arg(long)]
        group: String,
        /// Most messages, 1 to 65535
        #[arg(long, default_value_t = 32, allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..))]
        max: u16,
        /// Seconds to wait for a first message
        #[arg(long, default_value_t = 5, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(..=3_600))]
        wait: u64,
        /// Seconds that they stay hidden from others
        #[arg(long, default_value_t = 30, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=2_592_000))]
        invisible: u64,
        /// Ack what was received
        #[arg(long)]
        ack: bool,
    },
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

impl MessageCommand {
    /// What it was for, to be said when it fails.
    pub fn purpose(&self) -> String {
        match self {
            Self::Send { topic, .. } => format!("the message to {topic} was not confirmed"),
            Self::Receive { topic, .. } => format!("nothing could be received from {topic}"),
        }
    }

    /// Does it.
    pub async fn run(&self, client: &Client) -> Result<Answer, CallError> {
        match self {
            Self::Send { topic, body, tag, keys, properties, half } => {
                let mut message = Message::new(topic.as_str(), body.clone().into_bytes());
                message = tag.iter().fold(message, |message, tag| message.tag(tag.as_str()));
                message = keys.iter().fold(message, |message, key| message.key(key.as_str()));
                message = properties
                    .iter()
                    .fold(message, |message, (name, value)| message.property(name.as_str(), value.as_str()));
                let producer = client.producer();
                if *half {
                    let half = producer.send_half(message).await?;
                    producer.close().await;
                    return Ok(Answer {
                        header: vec!["MESSAGE ID", "TRANSACTION"],
                        rows: vec![vec![half.message_id.clone(), half.transaction_id.clone()]],
                        json: json!({ "message_id": half.message_id, "transaction_id": half.transaction_id }),
                    });
                }
                let sent = producer.send(message).await?;
                producer.close().await;
                Ok(Answer {
                    header: vec!["MESSAGE ID", "QUEUE OFFSET"],
                    rows: vec![vec![sent.message_id.clone(), sent.queue_offset.to_string()]],
                    json: json!({ "message_id": sent.message_id, "queue_offset": sent.queue_offset }),
                })
            }
            Self::Receive { topic, group, max, wait, invisible, ack } => {
                let options = ConsumerOptions {
                    batch: *max,
                    invisible_duration: Duration::from_secs(*invisible),
                    long_polling: Duration::from_secs(*wait),
                };
                // A receive of its own would make the topic where that is allowed, and wait in vain.
                // A name server cannot be asked, and then is not.
                if let Err(error @ CallError::Refused { code: 40402, .. }) = client.admin().describe_topic(topic).await
                {
                    return Err(error);
                }
                let consumer = client.simple_consumer(group, options)?;
                let received = consumer.receive(topic).await?;
                if *ack {
                    consumer.ack_many(&received).await.into_iter().collect::<Result<(), CallError>>()?;
                }
                consumer.close().await;
                if received.is_empty() {
                    // A group without a leader answers a receive like one without messages.
                    let status = client.admin().cluster_status().await?;
                    if !status.nodes.iter().any(|node| node.reachable && node.role == "leader") {
                        let message = "no node leads, so nothing could be handed out".to_owned();
                        return Err(CallError::NotNow { code: 50002, message });
                    }
                }
                Ok(list(&received))
            }
        }
    }
}

fn list(received: &[Delivery]) -> Answer {
    let body = |delivery: &Delivery| String::from_utf8_lossy(&delivery.body).into_owned();
    let row = |delivery: &Delivery| {
        let place = format!("{}@{}", delivery.queue, delivery.queue_offset);
        let tag = delivery.tag.clone().unwrap_or_default();
        vec![delivery.message_id.clone(), place, delivery.attempt.to_string(), tag, body(delivery)]
    };
    let object = |delivery: &Delivery| -> Value {
        json!({
            "message_id": delivery.message_id,
            "queue": delivery.queue,
            "queue_offset": delivery.queue_offset,
            "attempt": delivery.attempt,
            "tag": delivery.tag,
            "keys": delivery.keys,
            "properties": delivery.properties,
            "born_ms": delivery.born.0,
            "stored_ms": delivery.stored.0,
            "receipt_handle": delivery.receipt_handle,
            "body": body(delivery),
        })
    };
    Answer {
        header: vec!["MESSAGE ID", "QUEUE@OFFSET", "ATTEMPT", "TAG", "BODY"],
        rows: received.iter().map(row).collect(),
        json: received.iter().map(object).collect(),
    }
}
