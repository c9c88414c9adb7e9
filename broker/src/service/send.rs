//! SendMessage: one or many messages of one topic, stored together or not at all as far as checking goes.

use quorate_proto::v2::{Message, MessageType, SendMessageRequest, SendMessageResponse, SendResultEntry, Status};

use super::{
    Client, Service,
    forward::from_no,
    wire::{
        convert,
        status::{Fault, ok, summary},
        validate,
    },
};
use crate::{
    leader::calls::{self, SentOne},
    metrics::Outcome,
};

impl Service {
    /// Stores messages. The answer has as many entries as the request has messages, whatever happens.
    pub async fn send_message(&self, client: Client, request: SendMessageRequest) -> SendMessageResponse {
        let ids: Vec<String> = request.messages.iter().map(message_id).collect();
        let sizes: Vec<u64> = request.messages.iter().map(|message| message.body.len() as u64).collect();
        let kind = message_type(&request.messages);
        let answered = match self.try_send(client, request.messages).await {
            Ok((topic, results)) => {
                self.count_stored(&topic, kind, &sizes, &results);
                answer(ids, results)
            }
            Err(fault) => {
                let status = Status::from(fault);
                let entry = |message_id| SendResultEntry {
                    status: Some(status.clone()),
                    message_id,
                    ..SendResultEntry::default()
                };
                SendMessageResponse { entries: ids.into_iter().map(entry).collect(), status: Some(status) }
            }
        };
        let code = answered.status.as_ref().map_or(0, |status| status.code);
        self.metrics.detail.sends.count(Outcome::of(code));
        answered
    }

    /// Counts what was stored.
    fn count_stored(&self, topic: &str, kind: &str, sizes: &[u64], results: &[SentOne]) {
        let stored = sizes.iter().zip(results).filter(|(_, result)| result.no.is_none());
        let (mut messages, mut bytes) = (0, 0);
        for (size, _) in stored {
            self.metrics.detail.message_size.record(*size);
            messages += 1;
            bytes += size;
        }
        self.metrics.detail.traffic.sent(topic, kind, messages, bytes);
    }

    /// The topic, and what became of each message.
    async fn try_send(&self, client: Client, messages: Vec<Message>) -> Result<(String, Vec<SentOne>), Fault> {
        let limits = &self.config.limits;
        let client_id = client.id()?.to_owned();
        let first = validate::send(&messages, limits)?;
        let topic = validate::topic(first.topic.as_ref(), &client.namespace)?.to_string();
        for message in &messages {
            validate::message(message, limits, self.config.transactions.immunity_max)?;
        }
        let messages = messages.into_iter().map(convert::to_record).collect::<Result<_, _>>()?;
        let until = self.until(&client);
        let sent = self.dispatch.call(calls::Send { topic: topic.clone(), client_id, messages }, until).await?;
        Ok((topic, sent.results))
    }
}

fn message_id(message: &Message) -> String {
    message.system_properties.as_ref().map(|system| system.message_id.clone()).unwrap_or_default()
}

/// RocketMQ's word for the kind of messages that a call brings; they are all of one kind.
fn message_type(messages: &[Message]) -> &'static str {
    let system = messages.first().and_then(|message| message.system_properties.as_ref());
    match system.map_or(MessageType::Unspecified, |system| system.message_type()) {
        MessageType::Fifo => "fifo",
        MessageType::Delay => "delay",
        MessageType::Transaction => "transaction",
        MessageType::Lite => "lite",
        MessageType::Priority => "priority",
        MessageType::Unspecified | MessageType::Normal => "normal",
    }
}

fn answer(ids: Vec<String>, results: Vec<SentOne>) -> SendMessageResponse {
    let entry = |(message_id, result): (String, SentOne)| match result.no {
        None => SendResultEntry {
            status: Some(ok()),
            message_id,
            offset: i64::try_from(result.offset).unwrap_or(i64::MAX),
            recall_handle: result.recall_handle,
            transaction_id: result.transaction_id,
        },
        Some(no) => SendResultEntry { status: Some(from_no(no).into()), message_id, ..SendResultEntry::default() },
    };
    let entries: Vec<SendResultEntry> = ids.into_iter().zip(results).map(entry).collect();
    let status = summary(entries.iter().filter_map(|entry| entry.status.as_ref()));
    SendMessageResponse { status: Some(status), entries }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::calls::No;

    #[test]
    fn every_message_has_its_entry_and_the_status_sums_them_up() {
        let stored = |offset| SentOne { queue: 1, offset, ..SentOne::default() };
        let refused = SentOne { no: Some(No { code: 40402, message: "gone".into() }), ..SentOne::default() };
        let all = answer(vec!["a".into(), "b".into()], vec![stored(7), stored(8)]);
        assert_eq!(all.status.expect("set").code, 20000);
        assert_eq!(
            all.entries.iter().map(|entry| (entry.message_id.as_str(), entry.offset)).collect::<Vec<_>>(),
            [("a", 7), ("b", 8)]
        );
        let mixed = answer(vec!["a".into(), "b".into()], vec![stored(7), refused]);
        assert_eq!(mixed.status.expect("set").code, 30000);
        assert_eq!(mixed.entries[1].status.as_ref().expect("set").code, 40402);
    }
}
