//! The official Rust client sends and receives through each node alone, and every part of a message comes back as it was.
//!
//! `send_receive 'a:1;b:2;c:3'`. The published client never repeats a send and asks for a route once, so a send is tried three times
//! here, as its users are told to do.

use std::{
    collections::HashMap,
    error::Error,
    process::ExitCode,
    time::{Duration, Instant},
};

use rocketmq::{
    conf::{ClientOption, ProducerOption, SimpleConsumerOption},
    model::{
        common::{FilterExpression, FilterType},
        message::MessageBuilder,
    },
    Producer, SimpleConsumer,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

const SEND_ATTEMPTS: u32 = 3;
const RECEIVE_MAX: Duration = Duration::from_secs(30);
const INVISIBLE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    let endpoints = std::env::args().nth(1).expect("endpoints as the only argument");
    for (number, endpoint) in endpoints.split(';').enumerate() {
        match through(endpoint, number).await {
            Ok(count) => println!("ok: {endpoint}: {count} messages"),
            Err(error) => {
                println!("FAIL: {endpoint}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("PASS");
    ExitCode::SUCCESS
}

/// A message as it goes out.
struct Sent {
    body: Vec<u8>,
    key: String,
    kind: &'static str,
}

/// Sends one message of each kind by `endpoint` and receives them by the same.
async fn through(endpoint: &str, number: usize) -> Outcome<usize> {
    let topic = format!("interop-rust-{number}");
    let mut client = ClientOption::default();
    client.set_access_url(endpoint);
    client.set_long_polling_timeout(Duration::from_secs(5));

    let mut options = ProducerOption::default();
    options.set_topics(vec![topic.clone()]);
    let mut producer = Producer::new(options, client.clone())?;
    producer.start().await?;
    let mut sent = HashMap::new();
    for (kind, body) in [
        ("text", "a body with ünïcödé, 消息队列 and \n lines".into()),
        ("zeros", vec![0; 1024]),
        ("every byte", (0..=255).cycle().take(4096).collect()),
        ("large", vec![b'x'; 1 << 20]),
    ] {
        let one = Sent { body, key: format!("order-{number}-{kind}").replace(' ', "-"), kind };
        sent.insert(send(&producer, &topic, &one).await?, one);
    }

    let mut options = SimpleConsumerOption::default();
    options.set_consumer_group(format!("interop-rust-group-{number}"));
    options.set_topics(vec![topic.clone()]);
    let mut consumer = SimpleConsumer::new(options, client)?;
    consumer.start().await?;
    let (everything, begun) = (FilterExpression::new(FilterType::Tag, "*"), Instant::now());
    let count = sent.len();
    while !sent.is_empty() {
        if begun.elapsed() > RECEIVE_MAX {
            return Err(format!("{} of {count} messages not received within {RECEIVE_MAX:?}", sent.len()).into());
        }
        for message in consumer.receive_with(&topic, &everything, 32, INVISIBLE).await? {
            let Some(out) = sent.remove(message.message_id()) else {
                return Err(format!("{} came and was not sent, or came twice", message.message_id()).into());
            };
            let properties = HashMap::from([("region".to_owned(), "北京".to_owned()), ("kind".into(), out.kind.into())]);
            let same = message.topic() == topic
                && message.body() == out.body
                && message.tag() == Some("paid")
                && message.keys() == [out.key]
                && *message.properties() == properties
                && message.delivery_attempt() == 1;
            if !same {
                return Err(format!("the {} message came back changed: {message:?}", out.kind).into());
            }
            consumer.ack(&message).await?;
        }
    }
    consumer.shutdown().await?;
    producer.shutdown().await?;
    Ok(count)
}

/// The message id, as the server acknowledged it.
async fn send(producer: &Producer, topic: &str, one: &Sent) -> Outcome<String> {
    let mut attempt = 1;
    loop {
        let message = MessageBuilder::builder()
            .set_topic(topic)
            .set_body(one.body.clone())
            .set_tag("paid")
            .set_keys(vec![one.key.clone()])
            .set_properties(HashMap::from([("region", "北京"), ("kind", one.kind)]))
            .build()?;
        match producer.send(message).await {
            Ok(receipt) => return Ok(receipt.message_id().to_owned()),
            Err(error) if attempt == SEND_ATTEMPTS => return Err(error.into()),
            Err(error) => println!("send attempt {attempt}: {error}"),
        }
        attempt += 1;
    }
}
