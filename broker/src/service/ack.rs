//! AckMessage, ChangeInvisibleDuration and ForwardMessageToDeadLetterQueue: what consumers say about what they hold.
//!
//! Receipts describe themselves and what is in flight is in the log, so both work on any node and after any change of leader.

use quorate_proto::v2::{
    AckMessageRequest, AckMessageResponse, AckMessageResultEntry, ChangeInvisibleDurationRequest,
    ChangeInvisibleDurationResponse, Code, ForwardMessageToDeadLetterQueueRequest,
    ForwardMessageToDeadLetterQueueResponse, Status,
};

use super::{
    Client, Service,
    forward::from_no,
    wire::{
        status::{Fault, ok, summary},
        validate,
    },
};
use crate::leader::calls;

impl Service {
    /// Marks messages as done. One entry per entry of the request, whatever happens.
    pub async fn ack_message(&self, client: Client, request: AckMessageRequest) -> AckMessageResponse {
        let statuses = match self.try_ack(&client, &request).await {
            Ok(statuses) => statuses,
            Err(fault) => vec![fault.into(); request.entries.len().max(1)],
        };
        let status = summary(statuses.iter());
        let entry = |(entry, status): (quorate_proto::v2::AckMessageEntry, Status)| AckMessageResultEntry {
            message_id: entry.message_id,
            receipt_handle: entry.receipt_handle,
            status: Some(status),
        };
        AckMessageResponse {
            status: Some(status),
            entries: request.entries.into_iter().zip(statuses).map(entry).collect(),
        }
    }

    async fn try_ack(&self, client: &Client, request: &AckMessageRequest) -> Result<Vec<Status>, Fault> {
        client.id()?;
        let topic = validate::topic(request.topic.as_ref(), &client.namespace)?.to_string();
        let group = validate::group(request.group.as_ref(), &client.namespace)?.to_string();
        if request.entries.is_empty() {
            return Err(Fault::new(Code::BadRequest, "the call acks nothing; give at least one entry"));
        }
        if request.entries.iter().any(|entry| entry.lite_topic.as_ref().is_some_and(|topic| !topic.is_empty())) {
            return Err(Fault::not_built("acking messages of lite topics"));
        }
        let handles: Vec<String> = request.entries.iter().map(|entry| entry.receipt_handle.clone()).collect();
        let acked = self.dispatch.call(calls::Ack { group, topic, handles }, self.until(client)).await?;
        // Acked or expired: either way there is nothing left to prolong.
        for entry in &request.entries {
            self.renewals.remove(&entry.receipt_handle);
        }
        let status = |result: calls::AckedOne| result.no.map_or_else(ok, |no| from_no(no).into());
        Ok(acked.results.into_iter().map(status).collect())
    }

    /// Hides a delivery for another time. The answer holds the receipt that is valid from now on.
    pub async fn change_invisible_duration(
        &self,
        client: Client,
        request: ChangeInvisibleDurationRequest,
    ) -> ChangeInvisibleDurationResponse {
        match self.try_change(&client, request).await {
            Ok(receipt_handle) => ChangeInvisibleDurationResponse { status: Some(ok()), receipt_handle },
            Err(fault) => ChangeInvisibleDurationResponse { status: Some(fault.into()), receipt_handle: String::new() },
        }
    }

    /// Moves a delivery to the dead letters of its group. OK, once more OK for a repeat and for what was acked; 40013 if it was handed out again
    /// since.
    pub async fn forward_to_dead_letters(
        &self,
        client: Client,
        request: ForwardMessageToDeadLetterQueueRequest,
    ) -> ForwardMessageToDeadLetterQueueResponse {
        let status = match self.try_forward(&client, request).await {
            Ok(()) => ok(),
            Err(fault) => fault.into(),
        };
        ForwardMessageToDeadLetterQueueResponse { status: Some(status) }
    }

    async fn try_forward(&self, client: &Client, request: ForwardMessageToDeadLetterQueueRequest) -> Result<(), Fault> {
        let client_id = client.id()?.to_owned();
        let topic = validate::topic(request.topic.as_ref(), &client.namespace)?.to_string();
        let group = validate::group(request.group.as_ref(), &client.namespace)?.to_string();
        if request.lite_topic.as_ref().is_some_and(|topic| !topic.is_empty()) {
            return Err(Fault::not_built("forwarding messages of lite topics"));
        }
        // The client counts its own tries; one that does not is believed the broker's count.
        let attempts = u32::try_from(request.delivery_attempt).unwrap_or(0);
        let handle = request.receipt_handle;
        let call = calls::ForwardToDeadLetters { group, topic, handle: handle.clone(), client_id, attempts };
        self.dispatch.call(call, self.until(client)).await?;
        self.renewals.remove(&handle);
        Ok(())
    }

    async fn try_change(&self, client: &Client, request: ChangeInvisibleDurationRequest) -> Result<String, Fault> {
        client.id()?;
        let topic = validate::topic(request.topic.as_ref(), &client.namespace)?.to_string();
        let group = validate::group(request.group.as_ref(), &client.namespace)?.to_string();
        if request.lite_topic.as_ref().is_some_and(|topic| !topic.is_empty()) {
            return Err(Fault::not_built("changing the invisible duration of messages of lite topics"));
        }
        let invisible = validate::changed_invisible(request.invisible_duration.as_ref(), &self.config.limits)?;
        let handle = request.receipt_handle;
        // The consumer decides from here on; a renewal in between would undo it.
        self.renewals.remove(&handle);
        let invisible_ms = u64::try_from(invisible.as_millis()).unwrap_or(u64::MAX);
        let call = calls::ChangeInvisible { group, topic, handle, invisible_ms };
        Ok(self.dispatch.call(call, self.until(client)).await?.handle)
    }
}
