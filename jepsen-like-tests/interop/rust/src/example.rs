//! A producer and a consumer in Rust, as the README shows them. Run by CI.

use rocketmq::{
    conf::{ClientOption, ProducerOption, SimpleConsumerOption},
    model::{
        common::{FilterExpression, FilterType},
        message::MessageBuilder,
    },
    Producer, SimpleConsumer,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = std::env::args().nth(1).unwrap_or("127.0.0.1:8081,127.0.0.1:8082,127.0.0.1:8083".into());
    let mut client = ClientOption::default();
    client.set_access_url(endpoints.replace(';', ","));
    client.set_long_polling_timeout(std::time::Duration::from_secs(5));

    let mut options = ProducerOption::default();
    options.set_topics(vec!["hello"]);
    let mut producer = Producer::new(options, client.clone())?;
    producer.start().await?;
    let message = MessageBuilder::builder().set_topic("hello").set_body(b"hello from Rust".to_vec()).build()?;
    println!("sent {}", producer.send(message).await?.message_id());

    let mut options = SimpleConsumerOption::default();
    options.set_consumer_group("hello-readers");
    let mut consumer = SimpleConsumer::new(options, client)?;
    consumer.start().await?;
    for message in consumer.receive("hello", &FilterExpression::new(FilterType::Tag, "*")).await? {
        println!("received {:?}", String::from_utf8_lossy(message.body()));
        consumer.ack(&message).await?;
    }

    consumer.shutdown().await?;
    producer.shutdown().await?;
    Ok(())
}
