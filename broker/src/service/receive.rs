//! ReceiveMessage: a long poll that ends with messages or with "none".
//!
//! The stream's headers leave at once, since some clients count their deadline to the headers; then come a status, the messages and
//! the time of delivery. The queue a client names is not looked at: any queue of the topic may deliver, as in RocketMQ's proxy.
//! Without a leader the poll goes on; at its end the answer is "no message", which every client takes for what it is.

use std::sync::Arc;

use quorate_proto::{
    time::Timestamp,
    v2::{Code, Message, ReceiveMessageRequest, ReceiveMessageResponse, receive_message_response::Content},
};
use tokio::time::Instant;

use super::{
    Client, Service,
    forward::Undone,
    renew,
    wire::{
        convert,
        status::{Fault, ok},
        validate,
    },
};
use crate::{
    leader::calls,
    metrics::{Latencies, Outcome},
};

/// A receive that has passed the door.
struct Wish {
    call: calls::Receive,
    wait: Option<std::time::Duration>,
    renewed_for: Option<String>,
}

impl Service {
    /// Everything the stream of a receive will hold.
    pub async fn receive_message(
        self: Arc<Self>,
        client: Client,
        request: ReceiveMessageRequest,
    ) -> Vec<ReceiveMessageResponse> {
        let began = Instant::now();
        let received = self.try_receive(&client, request).await;
        self.count_receive(began, &received);
        let (messages, now) = match received {
            Ok(received) => received,
            Err(fault) => return vec![content(Content::Status(fault.into()))],
        };
        let mut answer = Vec::with_capacity(messages.len() + 2);
        answer.push(content(Content::Status(if messages.is_empty() { none().into() } else { ok() })));
        answer.extend(messages.into_iter().map(|message| content(Content::Message(message))));
        answer.push(content(Content::DeliveryTimestamp(now.to_proto())));
        answer
    }

    /// Counts what came of a receive.
    fn count_receive(&self, began: Instant, received: &Result<(Vec<Message>, Timestamp), Fault>) {
        self.metrics.detail.latencies.at(Latencies::place("ReceiveMessage")).record_time(began.elapsed());
        self.metrics.detail.receives.count(match received {
            Ok((messages, _)) if messages.is_empty() => Outcome::Empty,
            Ok(_) => Outcome::Ok,
            Err(fault) => Outcome::of(fault.code as i32),
        });
    }

    async fn try_receive(
        &self,
        client: &Client,
        request: ReceiveMessageRequest,
    ) -> Result<(Vec<Message>, Timestamp), Fault> {
        let wish = self.check(client, request)?;
        // A node that is about to stop gives what is there and lets nobody wait.
        let wait = if self.draining.is_cancelled() { Some(std::time::Duration::ZERO) } else { wish.wait };
        let until = client.until_polled(Instant::now(), wait, &self.config.limits);
        let (topic, group) = (wish.call.topic.clone(), wish.call.group.clone());
        let received = tokio::select! {
            received = self.dispatch.call(wish.call, until) => received,
            () = async { self.closing().cancelled().await } => Err(Undone::NotNow),
            () = self.draining.cancelled(), if !self.draining.is_cancelled() => Err(Undone::NotNow),
        };
        let received = match received {
            Ok(received) => received,
            Err(Undone::NotNow | Undone::Unknown) => return Ok((Vec::new(), self.clock.now())),
            Err(undone @ (Undone::Refused(_) | Undone::Overloaded)) => return Err(undone.into()),
        };
        if let Some(client_id) = wish.renewed_for {
            let handles = received.deliveries.iter().map(|delivery| delivery.handle.as_str());
            self.renewals.add(&client_id, &group, handles, self.clock.monotonic());
        }
        let deliveries = received.deliveries.into_iter();
        let messages: Vec<Message> =
            deliveries.filter_map(|delivered| convert::to_message(delivered, &self.address)).collect();
        let bytes = messages.iter().map(|message| message.body.len() as u64).sum();
        self.metrics.detail.traffic.received(&topic, &group, messages.len() as u64, bytes);
        Ok((messages, Timestamp(received.now_ms)))
    }

    fn check(&self, client: &Client, request: ReceiveMessageRequest) -> Result<Wish, Fault> {
        let limits = &self.config.limits;
        let client_id = client.id()?;
        let queue = request.message_queue.as_ref();
        let topic = validate::topic(queue.and_then(|queue| queue.topic.as_ref()), &client.namespace)?;
        let group = validate::group(request.group.as_ref(), &client.namespace)?;
        let filter = validate::filter(request.filter_expression.as_ref())?;
        let max = validate::batch_size(request.batch_size, limits)?;
        let wait = validate::long_poll(request.long_polling_timeout.as_ref())?;
        let attempt_id = validate::attempt_id(request.attempt_id.as_deref())?;
        let invisible = match (&request.invisible_duration, request.auto_renew) {
            (None, true) => renew::INVISIBLE,
            (given, _) => validate::receive_invisible(given.as_ref(), limits)?,
        };
        self.heard(client_id);
        let call = calls::Receive {
            group: group.to_string(),
            topic: topic.to_string(),
            max: u32::from(max),
            invisible_ms: u64::try_from(invisible.as_millis()).unwrap_or(u64::MAX),
            // Two clients may choose the same id, so theirs are kept apart.
            attempt_id: attempt_id.map_or_else(|| self.attempt_id(), |id| format!("{client_id}/{id}")),
            wait_ms: 0,
            filter,
            client_id: client_id.to_owned(),
        };
        Ok(Wish { call, wait, renewed_for: request.auto_renew.then(|| client_id.to_owned()) })
    }
}

fn none() -> Fault {
    Fault::new(Code::MessageNotFound, "no new message")
}

fn content(content: Content) -> ReceiveMessageResponse {
    ReceiveMessageResponse { content: Some(content) }
}
