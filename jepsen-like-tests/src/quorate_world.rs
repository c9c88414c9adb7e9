//! The real world: our own client against a real broker group.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use quorate_client::{
    Admin, CallError, Client, ClientConfig, ConsumerOptions, Delivery, Doors, Message as Outgoing, Producer,
    SimpleConsumer, TopicType,
};

use crate::{
    op::{Acked, Sent, Spot},
    world::{Consuming, Handed, Message, NodeView, Producing, Role, World, WorldError},
};

/// Shortest that brokers take: what is lost on the way is back soonest.
const INVISIBLE: Duration = Duration::from_secs(10);
const LONG_POLLING: Duration = Duration::from_secs(5);
/// A status call is repeated by its caller, so one attempt must not wait long.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// PRECONDITION_FAILED: a topic or group of that name exists with other settings, which serve as well.
const ALREADY_THERE: i32 = 42800;

/// Makes clients of the group's endpoints; keeps one connection per node for status calls.
#[derive(Default)]
pub struct QuorateWorld {
    admins: Mutex<BTreeMap<String, Admin>>,
}

/// A producer bound to its topic.
pub struct QuorateProducer {
    producer: Producer,
    topic: String,
}

/// A consumer bound to its topic.
pub struct QuorateConsumer {
    consumer: SimpleConsumer,
    topic: String,
}

impl Producing for QuorateProducer {
    async fn send(&self, key: &str, body: Bytes) -> Sent {
        match self.producer.send(Outgoing::new(self.topic.as_str(), body).key(key)).await {
            Ok(sent) => Sent::Stored { queue: None, offset: Some(sent.queue_offset) },
            Err(error) if error.is_without_effect() => Sent::Failed(error.to_string().into()),
            Err(error) => Sent::Unknown(error.to_string().into()),
        }
    }
}

impl Consuming for QuorateConsumer {
    type Receipt = Delivery;

    async fn receive(&self, max: u32) -> Handed<Delivery> {
        let batch = u16::try_from(max).unwrap_or(u16::MAX);
        let options =
            quorate_client::ReceiveOptions { batch, invisible_duration: INVISIBLE, long_polling: LONG_POLLING };
        match self.consumer.receive_with(&self.topic, options).await {
            Ok(deliveries) => Handed::Messages(deliveries.into_iter().map(message).collect()),
            Err(error) if error.is_without_effect() => Handed::Failed(error.to_string().into()),
            Err(error) => Handed::Unknown(error.to_string().into()),
        }
    }

    async fn ack(&self, receipt: Delivery) -> Acked {
        match self.consumer.ack(&receipt).await {
            Ok(()) => Acked::Done,
            Err(error) if error.is_without_effect() => Acked::Failed(error.to_string().into()),
            Err(error) => Acked::Unknown(error.to_string().into()),
        }
    }
}

fn message(delivery: Delivery) -> Message<Delivery> {
    Message {
        body: delivery.body.clone(),
        spot: Spot { queue: delivery.queue, offset: delivery.queue_offset },
        attempt: delivery.attempt,
        receipt: delivery,
    }
}

impl World for QuorateWorld {
    type Producer = QuorateProducer;
    type Consumer = QuorateConsumer;

    async fn producer(&self, endpoints: &str, topic: &str) -> Result<QuorateProducer, WorldError> {
        let producer = connect(endpoints)?.producer();
        producer.prepare(topic).await.map_err(failed("preparing a producer"))?;
        Ok(QuorateProducer { producer, topic: topic.to_owned() })
    }

    async fn consumer(&self, endpoints: &str, topic: &str, group: &str) -> Result<QuorateConsumer, WorldError> {
        let consumer = connect(endpoints)?.simple_consumer(group, ConsumerOptions::default());
        Ok(QuorateConsumer { consumer: consumer.map_err(failed("making a consumer"))?, topic: topic.to_owned() })
    }

    async fn arrange(&self, endpoints: &str, topic: &str, queues: u32, group: &str) -> Result<(), WorldError> {
        let admin = connect(endpoints)?.admin();
        accept_existing(admin.create_topic(topic, queues, TopicType::Any).await)
            .map_err(failed("creating the topic"))?;
        accept_existing(admin.create_group(group, false).await).map_err(failed("creating the group"))
    }

    async fn status(&self, endpoint: &str) -> Result<Vec<NodeView>, WorldError> {
        let status = self.admin(endpoint)?.cluster_status().await.map_err(failed("asking for the status"))?;
        let view = |node: quorate_client::NodeStatus| NodeView {
            number: node.number,
            reachable: node.reachable,
            role: Role::parse(&node.role),
            term: node.term,
            leader: (node.leader != 0).then_some(node.leader),
            last_index: node.last_index,
            committed_index: node.committed_index,
            applied_index: node.applied_index,
            pid: node.pid,
        };
        Ok(status.nodes.into_iter().map(view).collect())
    }
}

impl QuorateWorld {
    fn admin(&self, endpoint: &str) -> Result<Admin, WorldError> {
        let mut admins = self.admins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(admin) = admins.get(endpoint) {
            return Ok(admin.clone());
        }
        let mut config = ClientConfig::parse(endpoint).map_err(failed("reading an endpoint"))?;
        (config.request_timeout, config.connect_timeout) = (STATUS_TIMEOUT, STATUS_TIMEOUT);
        (config.total_timeout, config.attempts) = (STATUS_TIMEOUT, 1);
        let admin = Client::new(config, Doors::system()).map_err(failed("making a client"))?.admin();
        admins.insert(endpoint.to_owned(), admin.clone());
        Ok(admin)
    }
}

fn connect(endpoints: &str) -> Result<Client, WorldError> {
    let config = ClientConfig::parse(endpoints).map_err(failed("reading the endpoints"))?;
    Client::new(config, Doors::system()).map_err(failed("making a client"))
}

fn failed(call: &'static str) -> impl Fn(CallError) -> WorldError {
    move |error| WorldError { call, why: error.to_string() }
}

fn accept_existing(outcome: Result<(), CallError>) -> Result<(), CallError> {
    match outcome {
        Err(CallError::Refused { code: ALREADY_THERE, .. }) => Ok(()),
        other => other,
    }
}
