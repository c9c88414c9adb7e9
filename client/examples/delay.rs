//! Sends a delayed message and one that is taken back, and receives the first at its time.
//!
//! `cargo run -p quorate-client --example delay -- "127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083"`

use std::time::Duration;

use quorate_client::{Client, ClientConfig, ConsumerOptions, Doors, Message};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoints = std::env::args().nth(1).unwrap_or("127.0.0.1:8081;127.0.0.1:8082;127.0.0.1:8083".into());
    let doors = Doors::system();
    let clock = doors.clock.clone();
    let client = Client::new(ClientConfig::parse(&endpoints)?, doors)?;
    let producer = client.producer();

    let moment = clock.now().after(Duration::from_secs(3));
    producer.send(Message::new("reminders", "call back").deliver_at(moment)).await?;
    let sent = producer.send(Message::new("reminders", "never mind").deliver_at(moment)).await?;
    let handle = sent.recall_handle.ok_or("a message that waits has a recall handle")?;
    println!("recalled {}", producer.recall("reminders", &handle).await?);

    let consumer = client.simple_consumer("reminder-readers", ConsumerOptions::default())?;
    let deliveries = consumer.receive("reminders").await?;
    for delivery in &deliveries {
        let late = clock.now().since(moment);
        println!("received {:?} {late:?} after its time", String::from_utf8_lossy(&delivery.body));
    }
    consumer.ack_many(&deliveries).await;
    Ok(())
}
