//! RecallMessage: a delayed message is taken back before its time, through any node.

use quorate_proto::v2::{Code, RecallMessageRequest, RecallMessageResponse};

use super::{
    Client, Service,
    wire::{
        status::{Fault, ok},
        validate,
    },
};
use crate::leader::calls::Recall;

impl Service {
    /// Takes a message back. OK, once more OK for a repeat before its time, 40400 when it is too late.
    pub async fn recall_message(&self, client: Client, request: RecallMessageRequest) -> RecallMessageResponse {
        match self.try_recall(&client, request).await {
            Ok(message_id) => RecallMessageResponse { status: Some(ok()), message_id },
            Err(fault) => RecallMessageResponse { status: Some(fault.into()), message_id: String::new() },
        }
    }

    async fn try_recall(&self, client: &Client, request: RecallMessageRequest) -> Result<String, Fault> {
        client.id()?;
        let topic = validate::topic(request.topic.as_ref(), &client.namespace)?.to_string();
        if request.recall_handle.is_empty() {
            let text = "the recall handle is empty; use the one that the send was answered with";
            return Err(Fault::new(Code::InvalidReceiptHandle, text));
        }
        let until = self.until(client);
        let recalled = self.dispatch.call(Recall { topic, handle: request.recall_handle }, until).await?;
        Ok(recalled.message_id)
    }
}
