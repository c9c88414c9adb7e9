//! Reads every queue of a topic by itself, says how far it is, and goes back.
//!
//! `cargo run -p quorate-client --example pull -- "127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083"`

use std::time::Duration;

use quorate_client::{Client, ClientConfig, Doors, Message, OffsetOf, PullOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = std::env::args().nth(1).unwrap_or("127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083".into());
    let client = Client::new(ClientConfig::parse(&endpoints)?, Doors::system())?;
    let producer = client.producer();
    for number in 0..20 {
        producer.send(Message::new("readings", format!("reading {number}"))).await?;
    }

    let options = PullOptions { long_polling: Duration::from_millis(200), ..PullOptions::default() };
    let consumer = client.pull_consumer("reading-archive", options)?;
    for queue in consumer.queues("readings").await? {
        let mut count = 0;
        loop {
            let messages = consumer.pull(&queue).await?;
            if messages.is_empty() {
                break;
            }
            count += messages.len();
            // Done with them for good: now the group is, and a new process begins behind them.
            consumer.commit(&queue).await?;
        }
        let end = consumer.query_offset(&queue, OffsetOf::End).await?;
        println!(
            "queue {}: {count} new messages, committed {:?} of {end}",
            queue.id(),
            consumer.committed(&queue).await?
        );
        // Once more from the first one that is kept, for this process only.
        consumer.seek(&queue, consumer.query_offset(&queue, OffsetOf::First).await?);
    }
    consumer.close().await;
    Ok(())
}
