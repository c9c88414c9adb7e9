//! `apache.rocketmq.v2.MessagingService`: all of its calls, each handed to the file that knows it, or answered "not implemented".

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use quorate_proto::v2::{
    AckMessageRequest, AckMessageResponse, ChangeInvisibleDurationRequest, ChangeInvisibleDurationResponse,
    EndTransactionRequest, EndTransactionResponse, ForwardMessageToDeadLetterQueueRequest,
    ForwardMessageToDeadLetterQueueResponse, GetOffsetRequest, GetOffsetResponse, HeartbeatRequest, HeartbeatResponse,
    NotifyClientTerminationRequest, NotifyClientTerminationResponse, PullMessageRequest, PullMessageResponse,
    QueryAssignmentRequest, QueryAssignmentResponse, QueryOffsetRequest, QueryOffsetResponse, QueryRouteRequest,
    QueryRouteResponse, RecallMessageRequest, RecallMessageResponse, ReceiveMessageRequest, ReceiveMessageResponse,
    SendMessageRequest, SendMessageResponse, Status as V2Status, SyncLiteSubscriptionRequest,
    SyncLiteSubscriptionResponse, TelemetryCommand, UpdateOffsetRequest, UpdateOffsetResponse,
    messaging_service_server::MessagingService,
};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Client, Service, telemetry, wire::status::Fault};

type Answer<T> = Result<Response<T>, Status>;
type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service as tonic calls it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Messaging(pub Arc<Service>);

fn open<T>(request: Request<T>) -> (Client, T) {
    let (metadata, extensions, message) = request.into_parts();
    (Client::of(&metadata, &extensions), message)
}

fn not_built(what: &str) -> Option<V2Status> {
    Some(Fault::not_built(what).into())
}

#[async_trait]
impl MessagingService for Messaging {
    type ReceiveMessageStream = AnswerStream<ReceiveMessageResponse>;
    type PullMessageStream = AnswerStream<PullMessageResponse>;
    type TelemetryStream = telemetry::Answers;

    async fn query_route(&self, request: Request<QueryRouteRequest>) -> Answer<QueryRouteResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.query_route(client, request).await))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.heartbeat(&client, &request)))
    }

    async fn send_message(&self, request: Request<SendMessageRequest>) -> Answer<SendMessageResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.send_message(client, request).await))
    }

    async fn query_assignment(&self, request: Request<QueryAssignmentRequest>) -> Answer<QueryAssignmentResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.query_assignment(client, request).await))
    }

    async fn receive_message(&self, request: Request<ReceiveMessageRequest>) -> Answer<Self::ReceiveMessageStream> {
        let (client, request) = open(request);
        let answer = self.0.clone().receive_message(client, request);
        let items = stream::once(answer).flat_map(|items| stream::iter(items.into_iter().map(Ok)));
        Ok(Response::new(Box::pin(items)))
    }

    async fn ack_message(&self, request: Request<AckMessageRequest>) -> Answer<AckMessageResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.ack_message(client, request).await))
    }

    async fn change_invisible_duration(
        &self,
        request: Request<ChangeInvisibleDurationRequest>,
    ) -> Answer<ChangeInvisibleDurationResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.change_invisible_duration(client, request).await))
    }

    async fn telemetry(&self, request: Request<Streaming<TelemetryCommand>>) -> Answer<Self::TelemetryStream> {
        let (client, inbound) = open(request);
        Ok(Response::new(self.0.clone().telemetry(client, inbound)))
    }

    async fn notify_client_termination(
        &self,
        request: Request<NotifyClientTerminationRequest>,
    ) -> Answer<NotifyClientTerminationResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.notify_client_termination(&client, &request).await))
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        request: Request<ForwardMessageToDeadLetterQueueRequest>,
    ) -> Answer<ForwardMessageToDeadLetterQueueResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.forward_to_dead_letters(client, request).await))
    }

    async fn pull_message(&self, request: Request<PullMessageRequest>) -> Answer<Self::PullMessageStream> {
        let (client, request) = open(request);
        let answer = self.0.clone().pull_message(client, request);
        let items = stream::once(answer).flat_map(|items| stream::iter(items.into_iter().map(Ok)));
        Ok(Response::new(Box::pin(items)))
    }

    async fn update_offset(&self, request: Request<UpdateOffsetRequest>) -> Answer<UpdateOffsetResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.update_offset(client, request).await))
    }

    async fn get_offset(&self, request: Request<GetOffsetRequest>) -> Answer<GetOffsetResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.get_offset(client, request).await))
    }

    async fn query_offset(&self, request: Request<QueryOffsetRequest>) -> Answer<QueryOffsetResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.query_offset(client, request).await))
    }

    async fn end_transaction(&self, request: Request<EndTransactionRequest>) -> Answer<EndTransactionResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.end_transaction(client, request).await))
    }

    async fn recall_message(&self, request: Request<RecallMessageRequest>) -> Answer<RecallMessageResponse> {
        let (client, request) = open(request);
        Ok(Response::new(self.0.recall_message(client, request).await))
    }

    async fn sync_lite_subscription(
        &self,
        _: Request<SyncLiteSubscriptionRequest>,
    ) -> Answer<SyncLiteSubscriptionResponse> {
        Ok(Response::new(SyncLiteSubscriptionResponse { status: not_built("SyncLiteSubscription") }))
    }
}
