//! Sends by the clock, over one plain connection to each of some nodes, each sent once.
//!
//! Not our producer: it would repeat, and choose whom to ask. What is measured here is what the nodes make of a call.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use quorate_proto::{
    message_id::MessageIds,
    time::{Clock, SystemClock},
    v2::{self, messaging_service_client::MessagingServiceClient},
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Deadline of each send.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked which sends are due.
const TICK: Duration = Duration::from_millis(1);
/// What sends under way get when the load stops.
const LAST: Duration = Duration::from_secs(2);
const OK: i32 = 20_000;

/// One send.
#[derive(Debug, Clone)]
pub(super) struct Timed {
    pub started: Instant,
    pub acked: Option<Instant>,
    /// Why not.
    pub failure: Option<String>,
}

/// A load that runs.
pub(super) struct Load {
    stop: CancellationToken,
    running: JoinSet<Vec<Timed>>,
}

impl Load {
    /// Connects to the nodes and begins to send to them in turn.
    pub(super) async fn start(addresses: Vec<String>, topic: &str, rate: u32, size: usize) -> io::Result<Self> {
        let mut channels = Vec::new();
        for address in addresses {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(io::Error::other)?;
            channels.push(endpoint.tcp_nodelay(true).connect().await.map_err(io::Error::other)?);
        }
        let stop = CancellationToken::new();
        let sender = Sender::new(channels, topic, size);
        let mut running = JoinSet::new();
        running.spawn(send_by_the_clock(sender, rate, stop.clone()));
        Ok(Self { stop, running })
    }

    /// Stops, and tells of every send.
    pub(super) async fn stop(mut self) -> Vec<Timed> {
        self.stop.cancel();
        match self.running.join_next().await {
            Some(Ok(sends)) => sends,
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => Vec::new(),
        }
    }
}

async fn send_by_the_clock(sender: Arc<Sender>, rate: u32, stop: CancellationToken) -> Vec<Timed> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begun, mut sent) = (Instant::now(), 0_u64);
    let (mut sends, mut under_way) = (Vec::new(), JoinSet::new());
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {
                let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                while sent < due {
                    under_way.spawn(sender.clone().send(sent));
                    sent += 1;
                }
            }
            Some(Ok(send)) = under_way.join_next() => sends.push(send),
        }
    }
    let deadline = Instant::now() + LAST;
    while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, under_way.join_next()).await {
        sends.extend(ended.ok());
    }
    sends
}

struct Sender {
    nodes: Vec<MessagingServiceClient<Channel>>,
    topic: v2::Resource,
    body: Bytes,
    ids: MessageIds,
    clock: SystemClock,
}

impl Sender {
    fn new(channels: Vec<Channel>, topic: &str, size: usize) -> Arc<Self> {
        let process = (std::process::id() & 0xffff) as u16;
        Arc::new(Self {
            nodes: channels.into_iter().map(MessagingServiceClient::new).collect(),
            topic: v2::Resource { resource_namespace: String::new(), name: topic.to_owned() },
            body: Bytes::from(vec![b'x'; size]),
            ids: MessageIds::new(rand::random(), process),
            clock: SystemClock::new(),
        })
    }

    async fn send(self: Arc<Self>, number: u64) -> Timed {
        let now = self.clock.now();
        let system_properties = v2::SystemProperties {
            message_id: self.ids.next(now),
            message_type: v2::MessageType::Normal.into(),
            body_encoding: v2::Encoding::Identity.into(),
            born_timestamp: Some(now.to_proto()),
            born_host: "bench".to_owned(),
            ..v2::SystemProperties::default()
        };
        let message = v2::Message {
            topic: Some(self.topic.clone()),
            system_properties: Some(system_properties),
            body: self.body.clone(),
            ..v2::Message::default()
        };
        let mut request = tonic::Request::new(v2::SendMessageRequest { messages: vec![message] });
        request.set_timeout(TIMEOUT);
        let headers = request.metadata_mut();
        headers.insert("x-mq-client-id", tonic::metadata::MetadataValue::from_static("bench-failover"));
        headers.insert("x-mq-language", tonic::metadata::MetadataValue::from_static("RUST"));
        let mut node = self.nodes[number as usize % self.nodes.len()].clone();
        let started = Instant::now();
        let answer = tokio::time::timeout(TIMEOUT, node.send_message(request)).await;
        let failure = match answer {
            Ok(Ok(answer)) => {
                answer.into_inner().status.filter(|status| status.code != OK).map(|status| status.message)
            }
            Ok(Err(status)) => Some(status.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        Timed { started, acked: failure.is_none().then(Instant::now), failure }
    }
}
