//! PullMessage, UpdateOffset, GetOffset and QueryOffset: consumers that keep their own books.
//!
//! ```text
//!   pull stream    status · messages … · next offset           nothing came: 40401, and where to go on
//!                                                              offset not in the queue: 40019, and the nearest one that is
//! ```
//! As in a receive the headers leave at once, and without a leader the poll goes on; at its end the answer is "no message". The stream ends
//! with the next offset whatever came, so that whoever pulls needs no arithmetic: with a filter it lies behind all that was looked at.

use std::{sync::Arc, time::Duration};

use quorate_proto::v2::{
    Code, GetOffsetRequest, GetOffsetResponse, PullMessageRequest, PullMessageResponse, QueryOffsetPolicy,
    QueryOffsetRequest, QueryOffsetResponse, UpdateOffsetRequest, UpdateOffsetResponse, pull_message_response::Content,
};
use tokio::time::Instant;

use super::{
    Client, Service,
    forward::Undone,
    wire::{
        convert,
        status::{Fault, ok},
        validate,
    },
};
use crate::{
    leader::calls::{self, Pulled},
    machine::{QueueOffset, Refusal},
    metrics::{Latencies, Outcome},
};

/// What a pull came to.
struct Answer {
    status: Result<(), Fault>,
    messages: Vec<quorate_proto::v2::Message>,
    next_offset: Option<u64>,
}

impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        Self { status: Err(fault), messages: Vec::new(), next_offset: None }
    }
}

impl Service {
    /// Everything the stream of a pull will hold.
    pub async fn pull_message(
        self: Arc<Self>,
        client: Client,
        request: PullMessageRequest,
    ) -> Vec<PullMessageResponse> {
        let began = Instant::now();
        let answer = self.try_pull(&client, request).await.unwrap_or_else(Answer::from);
        let detail = &self.metrics.detail;
        detail.latencies.at(Latencies::place("PullMessage")).record_time(began.elapsed());
        detail.pulls.count(match &answer.status {
            Ok(()) => Outcome::Ok,
            Err(fault) if fault.code == Code::MessageNotFound => Outcome::Empty,
            Err(fault) => Outcome::of(fault.code as i32),
        });
        let status = answer.status.map_or_else(Into::into, |()| ok());
        let mut parts = vec![Content::Status(status)];
        parts.extend(answer.messages.into_iter().map(Content::Message));
        parts.extend(answer.next_offset.map(|offset| Content::NextOffset(wire(offset))));
        parts.into_iter().map(|content| PullMessageResponse { content: Some(content) }).collect()
    }

    async fn try_pull(&self, client: &Client, request: PullMessageRequest) -> Result<Answer, Fault> {
        let (call, wait) = self.check_pull(client, request)?;
        // A node that is about to stop gives what is there and lets nobody wait.
        let wait = if self.draining.is_cancelled() { Some(Duration::ZERO) } else { wait };
        let until = client.until_polled(Instant::now(), wait, &self.config.limits);
        let (topic, group, queue, asked) = (call.topic.clone(), call.group.clone(), call.queue, call.offset);
        let pulled = tokio::select! {
            pulled = self.dispatch.call(call, until) => pulled,
            () = async { self.closing().cancelled().await } => Err(Undone::NotNow),
            () = self.draining.cancelled(), if !self.draining.is_cancelled() => Err(Undone::NotNow),
        };
        let pulled = match pulled {
            Ok(pulled) => pulled,
            Err(Undone::NotNow | Undone::Unknown) => Pulled { next_offset: asked, ..Pulled::default() },
            Err(undone @ (Undone::Refused(_) | Undone::Overloaded)) => return Err(undone.into()),
        };
        if let Some(calls::Range { min, end }) = pulled.out_of_range {
            let refusal = Refusal::OffsetOutOfRange { min: QueueOffset(min), end: QueueOffset(end) };
            let fault = Fault::new(Code::IllegalOffset, format!("offset {asked}: {refusal}"));
            return Ok(Answer { next_offset: Some(asked.clamp(min, end)), ..fault.into() });
        }
        let convert = |one| convert::to_pulled_message(one, queue, &self.address);
        let messages: Vec<_> = pulled.messages.into_iter().filter_map(convert).collect();
        let bytes = messages.iter().map(|message| message.body.len() as u64).sum();
        self.metrics.detail.traffic.received(&topic, &group, messages.len() as u64, bytes);
        let status = if messages.is_empty() { Err(none()) } else { Ok(()) };
        Ok(Answer { status, messages, next_offset: Some(pulled.next_offset) })
    }

    fn check_pull(
        &self,
        client: &Client,
        request: PullMessageRequest,
    ) -> Result<(calls::Pull, Option<Duration>), Fault> {
        let client_id = client.id()?.to_owned();
        let (topic, queue) = validate::queue(request.message_queue.as_ref(), &client.namespace)?;
        let group = validate::group(request.group.as_ref(), &client.namespace)?.to_string();
        let offset = validate::offset(request.offset)?;
        let filter = validate::filter(request.filter_expression.as_ref())?;
        let max = u32::from(validate::batch_size(request.batch_size, &self.config.limits)?);
        let wait = validate::long_poll(request.long_polling_timeout.as_ref())?;
        self.heard(&client_id);
        Ok((calls::Pull { group, topic: topic.to_string(), queue, offset, max, wait_ms: 0, filter, client_id }, wait))
    }

    /// Where a group stands in a queue; 40404 if it has not begun.
    pub async fn get_offset(&self, client: Client, request: GetOffsetRequest) -> GetOffsetResponse {
        let found = self.try_get_offset(&client, request).await;
        let offset = found.as_ref().copied().unwrap_or_default();
        GetOffsetResponse { status: Some(found.map_or_else(Into::into, |_| ok())), offset }
    }

    async fn try_get_offset(&self, client: &Client, request: GetOffsetRequest) -> Result<i64, Fault> {
        client.id()?;
        let (topic, queue) = validate::queue(request.message_queue.as_ref(), &client.namespace)?;
        let group = validate::group(request.group.as_ref(), &client.namespace)?.to_string();
        let call = calls::GetOffset { group, topic: topic.to_string(), queue };
        let place = self.dispatch.call(call, self.until(client)).await?;
        place.offset.map(wire).ok_or_else(|| {
            let text = "the consumer group has neither received from the topic nor updated an offset of it; \
                        ask the queue for its beginning or end and start there";
            Fault::new(Code::OffsetNotFound, text)
        })
    }

    /// Puts a group's place in a queue, forwards or back. OK once a majority has it; 40019 if the queue has no such offset.
    pub async fn update_offset(&self, client: Client, request: UpdateOffsetRequest) -> UpdateOffsetResponse {
        let done = self.try_update_offset(&client, request).await;
        UpdateOffsetResponse { status: Some(done.map_or_else(Into::into, |()| ok())) }
    }

    async fn try_update_offset(&self, client: &Client, request: UpdateOffsetRequest) -> Result<(), Fault> {
        client.id()?;
        let (topic, queue) = validate::queue(request.message_queue.as_ref(), &client.namespace)?;
        let group = validate::group(request.group.as_ref(), &client.namespace)?.to_string();
        let offset = validate::offset(request.offset)?;
        let call = calls::UpdateOffset { group, topic: topic.to_string(), queue, offset };
        self.dispatch.call(call, self.until(client)).await?;
        Ok(())
    }

    /// An offset of a queue: its first message, its end, or the first message stored at a time or later.
    pub async fn query_offset(&self, client: Client, request: QueryOffsetRequest) -> QueryOffsetResponse {
        let found = self.try_query_offset(&client, request).await;
        let offset = found.as_ref().copied().unwrap_or_default();
        QueryOffsetResponse { status: Some(found.map_or_else(Into::into, |_| ok())), offset }
    }

    async fn try_query_offset(&self, client: &Client, request: QueryOffsetRequest) -> Result<i64, Fault> {
        client.id()?;
        let (topic, queue) = validate::queue(request.message_queue.as_ref(), &client.namespace)?;
        let policy = request.query_offset_policy;
        let (end, since_ms) = match QueryOffsetPolicy::try_from(policy) {
            Ok(QueryOffsetPolicy::Beginning) => (false, None),
            Ok(QueryOffsetPolicy::End) => (true, None),
            Ok(QueryOffsetPolicy::Timestamp) => (false, Some(validate::query_time(request.timestamp.as_ref())?)),
            Err(_) => {
                let text = format!("query offset policy {policy} is unknown; ask for the beginning, the end or a time");
                return Err(Fault::new(Code::BadRequest, text));
            }
        };
        let call = calls::QueryOffset { topic: topic.to_string(), queue, end, since_ms };
        let place = self.dispatch.call(call, self.until(client)).await?;
        Ok(wire(place.offset.unwrap_or_default()))
    }
}

fn wire(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

fn none() -> Fault {
    Fault::new(Code::MessageNotFound, "no new message")
}
