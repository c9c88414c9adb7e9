//! Sends two half messages: one is committed at once, the other is left open, and the broker asks what became of it.
//!
//! `cargo run -p quorate-client --example transactions -- "127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083"`

use std::time::Duration;

use quorate_client::{CheckListener, Client, ClientConfig, ConsumerOptions, Delivery, Doors, Message, Resolution};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = std::env::args().nth(1).unwrap_or("127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083".into());
    let client = Client::new(ClientConfig::parse(&endpoints)?, Doors::system())?;

    // What the application's own database would say of the order that the message is about.
    let listener = CheckListener::new(|half: Delivery| async move {
        println!("asked about {:?}", String::from_utf8_lossy(&half.body));
        Some(Resolution::Commit)
    });
    let producer = client.transactional_producer(["orders"], listener);

    let paid = producer.send_half(Message::new("orders", "order 1 is paid")).await?;
    // … here the order is written to the database …
    producer.commit(&paid).await?;

    // And here the process dies before it can say so, or as good as.
    producer.send_half(Message::new("orders", "order 2 is paid").check_after(Duration::from_secs(2))).await?;

    let consumer = client.simple_consumer("shipping", ConsumerOptions::default())?;
    let mut received = 0;
    while received < 2 {
        let deliveries = consumer.receive("orders").await?;
        for delivery in &deliveries {
            println!("received {:?}", String::from_utf8_lossy(&delivery.body));
        }
        received += deliveries.len();
        consumer.ack_many(&deliveries).await;
    }
    Ok(())
}
