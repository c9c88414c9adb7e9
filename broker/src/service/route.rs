//! QueryRoute and QueryAssignment: which queues a topic has and where to reach them, seen from the listener that the client came in by.

use quorate_proto::{
    names::TopicName,
    v2::{
        Assignment, Broker, Endpoints, MessageQueue, Permission, QueryAssignmentRequest, QueryAssignmentResponse,
        QueryRouteRequest, QueryRouteResponse, Resource,
    },
};

use super::{
    Client, Service,
    wire::{
        convert, endpoints,
        status::{Fault, ok},
        validate,
    },
};
use crate::{
    leader::{self, calls},
    machine::TopicKind,
};

/// What a route says of a topic.
#[derive(Debug, Clone, Copy)]
struct Shape {
    queues: u16,
    kind: TopicKind,
}

impl Service {
    /// The queues of a topic, all on one broker whose endpoints are the live nodes. Makes an unknown topic if that is allowed.
    pub async fn query_route(&self, client: Client, request: QueryRouteRequest) -> QueryRouteResponse {
        match self.try_route(&client, request).await {
            Ok(message_queues) => QueryRouteResponse { status: Some(ok()), message_queues },
            Err(fault) => QueryRouteResponse { status: Some(fault.into()), message_queues: Vec::new() },
        }
    }

    async fn try_route(&self, client: &Client, request: QueryRouteRequest) -> Result<Vec<MessageQueue>, Fault> {
        let name = validate::topic(request.topic.as_ref(), &client.namespace)?;
        let shape = self.shape(client, &name).await?;
        let queue = self.queue(client, request.topic, request.endpoints.as_ref(), shape.kind);
        Ok((0..shape.queues).map(|id| MessageQueue { id: i32::from(id), ..queue.clone() }).collect())
    }

    /// What a push consumer receives from: one queue that stands for all (id −1), or each queue if its group is ordered.
    pub async fn query_assignment(&self, client: Client, request: QueryAssignmentRequest) -> QueryAssignmentResponse {
        match self.try_assign(&client, request).await {
            Ok(assignments) => QueryAssignmentResponse { status: Some(ok()), assignments },
            Err(fault) => QueryAssignmentResponse { status: Some(fault.into()), assignments: Vec::new() },
        }
    }

    async fn try_assign(&self, client: &Client, request: QueryAssignmentRequest) -> Result<Vec<Assignment>, Fault> {
        let name = validate::topic(request.topic.as_ref(), &client.namespace)?;
        let group = validate::group(request.group.as_ref(), &client.namespace)?;
        let shape = self.shape(client, &name).await?;
        let fifo = self.shared.read(|machine| machine.group(&group).is_some_and(crate::machine::Group::is_fifo));
        let queue = self.queue(client, request.topic, request.endpoints.as_ref(), shape.kind);
        let ids = if fifo { 0..i32::from(shape.queues) } else { -1..0 };
        let assignment = |id| Assignment { message_queue: Some(MessageQueue { id, ..queue.clone() }) };
        Ok(ids.map(assignment).collect())
    }

    /// From this node's own state if it knows the topic: a route may be some milliseconds old, and during an election it is
    /// answered at once.
    async fn shape(&self, client: &Client, name: &TopicName) -> Result<Shape, Fault> {
        let known = self
            .shared
            .read(|machine| machine.topic(name).map(|topic| Shape { queues: topic.queues(), kind: topic.kind() }));
        if let Some(known) = known {
            return Ok(known);
        }
        let call = calls::EnsureTopic { name: name.to_string() };
        let made = self.dispatch.call(call, self.until(client)).await?;
        Ok(Shape { queues: u16::try_from(made.queues).unwrap_or(u16::MAX), kind: leader::kind_of(made.kind) })
    }

    /// The queue that all of a topic are copies of. The topic comes back exactly as the client wrote it.
    fn queue(
        &self,
        client: &Client,
        topic: Option<Resource>,
        asked: Option<&Endpoints>,
        kind: TopicKind,
    ) -> MessageQueue {
        let endpoints =
            endpoints::shape(&self.live.addresses(&client.listener), client.language, asked, &self.config.route);
        MessageQueue {
            topic,
            id: 0,
            permission: Permission::ReadWrite as i32,
            broker: Some(Broker { name: self.config.node.group.clone(), id: 0, endpoints: Some(endpoints) }),
            accept_message_types: convert::accepted_types(kind),
        }
    }
}
