//! A message on its way to the dead letters and back: what its record says then.
//!
//! A dead letter keeps everything that its sender said and tells where it came from, under RocketMQ's names where it has them
//! (`DLQ_ORIGIN_TOPIC`, `DLQ_ORIGIN_MESSAGE_ID`, and the wire's `dead_letter_queue`). Redriven, it is the message it was before. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use quorate_proto::{
    names::TopicName,
    v2::{self, MessageType, SystemProperties},
};

use crate::machine::{MessageGroup, TopicKind, tag_hash};

/// Why a message is a dead letter when its consumer group did not acknowledge it.
pub(crate) const EXHAUSTED: &str = "no attempt left";
/// And when a consumer gave it up itself.
pub(crate) const FORWARDED: &str = "given up by its consumer";

const ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
const ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
const ORIGIN_QUEUE: &str = "DLQ_ORIGIN_QUEUE";
const ORIGIN_OFFSET: &str = "DLQ_ORIGIN_OFFSET";
const ORIGIN_STORE_MS: &str = "DLQ_ORIGIN_STORE_MS";
const ATTEMPTS: &str = "DLQ_ATTEMPTS";
const REASON: &str = "DLQ_REASON";
const LAST_CONSUMER: &str = "DLQ_LAST_CONSUMER";

/// What a dead letter says about itself, and a message before and after does not.
const PROPERTIES: [&str; 8] =
    [ORIGIN_TOPIC, ORIGIN_MESSAGE_ID, ORIGIN_QUEUE, ORIGIN_OFFSET, ORIGIN_STORE_MS, ATTEMPTS, REASON, LAST_CONSUMER];

/// `apache.rocketmq.v2.Message` with its properties in order, so that equal messages have equal bytes in every process.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredMessage {
    #[prost(message, optional, tag = "1")]
    pub topic: Option<v2::Resource>,
    #[prost(btree_map = "string, string", tag = "2")]
    pub user_properties: BTreeMap<String, String>,
    #[prost(message, optional, tag = "3")]
    pub system_properties: Option<SystemProperties>,
    #[prost(bytes = "bytes", tag = "4")]
    pub body: Bytes,
}

/// Where a dead letter came from, and how it came to be one.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Origin {
    /// The topic, by its full name.
    pub topic: String,
    pub queue: u64,
    pub offset: u64,
    /// Log time at which it was stored there.
    pub stored_ms: u64,
    /// How often it was handed out.
    pub attempts: u64,
    pub reason: String,
    /// Client id of the last consumer; empty if nobody knows.
    pub consumer: String,
}

/// What a message was before it died.
pub(crate) struct Revived {
    pub record: Bytes,
    pub tag_hash: u64,
    pub message_group: Option<MessageGroup>,
    /// The kind of message it is.
    pub kind: TopicKind,
}

/// A dead letter as it is shown.
pub(crate) struct Letter {
    pub message_id: String,
    pub keys: Vec<String>,
    pub tag: String,
    pub body_bytes: u64,
    /// `None` for a message that somebody sent to the topic.
    pub origin: Option<Origin>,
}

/// The record of a message as a dead letter in `to`, with its tag's hash. `None` if the bytes are no message, which only a bug can bring about.
pub(crate) fn to_dead_letter(record: Bytes, to: &TopicName, origin: &Origin) -> Option<(Bytes, u64)> {
    let mut message = StoredMessage::decode(record).ok()?;
    let system = message.system_properties.get_or_insert_default();
    let hash = system.tag.as_deref().map_or(0, tag_hash);
    let message_id = system.message_id.clone();
    system.dead_letter_queue =
        Some(v2::DeadLetterQueue { topic: origin.topic.clone(), message_id: message_id.clone() });
    let mut say = |name: &str, value: String| {
        if value.is_empty() {
            message.user_properties.remove(name);
        } else {
            message.user_properties.insert(name.to_owned(), value);
        }
    };
    say(ORIGIN_TOPIC, origin.topic.clone());
    say(ORIGIN_MESSAGE_ID, message_id);
    say(ORIGIN_QUEUE, origin.queue.to_string());
    say(ORIGIN_OFFSET, origin.offset.to_string());
    say(ORIGIN_STORE_MS, origin.stored_ms.to_string());
    say(ATTEMPTS, origin.attempts.to_string());
    say(REASON, origin.reason.clone());
    say(LAST_CONSUMER, origin.consumer.clone());
    message.topic = Some(resource(message.topic.as_ref(), to));
    Some((message.encode_to_vec().into(), hash))
}

/// The message that a dead letter was, for the topic `to`. `None` as for [`to_dead_letter`].
pub(crate) fn revive(record: Bytes, to: &TopicName) -> Option<Revived> {
    let mut message = StoredMessage::decode(record).ok()?;
    message.user_properties.retain(|name, _| !PROPERTIES.contains(&name.as_str()));
    message.topic = Some(resource(message.topic.as_ref(), to));
    let system = message.system_properties.get_or_insert_default();
    system.dead_letter_queue = None;
    let kind = match MessageType::try_from(system.message_type) {
        Ok(MessageType::Fifo) => TopicKind::Fifo,
        Ok(MessageType::Delay) => TopicKind::Delay,
        Ok(MessageType::Transaction) => TopicKind::Transaction,
        Ok(MessageType::Normal | MessageType::Unspecified | MessageType::Lite | MessageType::Priority) | Err(_) => {
            TopicKind::Normal
        }
    };
    let (tag_hash, message_group) =
        (system.tag.as_deref().map_or(0, tag_hash), system.message_group.as_deref().map(MessageGroup::of));
    Some(Revived { record: message.encode_to_vec().into(), tag_hash, message_group, kind })
}

/// What a record of a dead letter topic says. `None` as for [`to_dead_letter`].
pub(crate) fn read(record: Bytes) -> Option<Letter> {
    let message = StoredMessage::decode(record).ok()?;
    let system = message.system_properties.unwrap_or_default();
    let text = |name: &str| message.user_properties.get(name).cloned().unwrap_or_default();
    let number = |name: &str| text(name).parse().unwrap_or_default();
    let origin = system.dead_letter_queue.map(|from| Origin {
        topic: from.topic,
        queue: number(ORIGIN_QUEUE),
        offset: number(ORIGIN_OFFSET),
        stored_ms: number(ORIGIN_STORE_MS),
        attempts: number(ATTEMPTS),
        reason: text(REASON),
        consumer: text(LAST_CONSUMER),
    });
    Some(Letter {
        message_id: system.message_id,
        keys: system.keys,
        tag: system.tag.unwrap_or_default(),
        body_bytes: message.body.len() as u64,
        origin,
    })
}

/// A topic as the clients of the message's namespace name it.
fn resource(before: Option<&v2::Resource>, topic: &TopicName) -> v2::Resource {
    let namespace = before.map(|resource| resource.resource_namespace.as_str()).unwrap_or_default();
    let own = || {
        let inside = |name: &str| Some(name.strip_prefix(namespace)?.strip_prefix('%')?.to_owned());
        match topic.dead_letters_of() {
            Some(group) => inside(group).map(|group| format!("{}{group}", quorate_proto::names::DEAD_LETTER_PREFIX)),
            None => inside(topic.as_str()),
        }
    };
    match Some(namespace).filter(|namespace| !namespace.is_empty()).and_then(|_| own()) {
        Some(name) => v2::Resource { resource_namespace: namespace.to_owned(), name },
        None => v2::Resource { resource_namespace: String::new(), name: topic.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::parse(name).expect("a name")
    }

    fn record(namespace: &str) -> Bytes {
        let system = SystemProperties {
            tag: Some("TagA".into()),
            keys: vec!["k".into()],
            message_id: "ID".into(),
            message_group: Some("g".into()),
            message_type: MessageType::Fifo as i32,
            ..SystemProperties::default()
        };
        let message = StoredMessage {
            topic: Some(v2::Resource { resource_namespace: namespace.into(), name: "orders".into() }),
            user_properties: [("a".to_owned(), "1".to_owned())].into(),
            system_properties: Some(system),
            body: "hello".into(),
        };
        message.encode_to_vec().into()
    }

    fn origin() -> Origin {
        Origin {
            topic: "orders".into(),
            queue: 3,
            offset: 9,
            stored_ms: 77,
            attempts: 17,
            reason: EXHAUSTED.into(),
            consumer: "host@1".into(),
        }
    }

    #[test]
    fn a_dead_letter_says_where_it_came_from_and_revived_it_is_what_it_was() {
        let (dead, hash) = to_dead_letter(record(""), &topic("%DLQ%billing"), &origin()).expect("a message");
        let message = StoredMessage::decode(dead.clone()).expect("a message");
        let property = |name: &str| message.user_properties.get(name).map(String::as_str);
        for (name, value) in [
            ("a", "1"),
            ("DLQ_ORIGIN_TOPIC", "orders"),
            ("DLQ_ORIGIN_MESSAGE_ID", "ID"),
            ("DLQ_ORIGIN_QUEUE", "3"),
            ("DLQ_ORIGIN_OFFSET", "9"),
            ("DLQ_ORIGIN_STORE_MS", "77"),
            ("DLQ_ATTEMPTS", "17"),
            ("DLQ_REASON", "no attempt left"),
            ("DLQ_LAST_CONSUMER", "host@1"),
        ] {
            assert_eq!(property(name), Some(value), "{name}");
        }
        assert_eq!(message.topic.map(|topic| topic.name).as_deref(), Some("%DLQ%billing"));
        assert_eq!(hash, tag_hash("TagA"));
        let letter = read(dead.clone()).expect("a message");
        assert_eq!((letter.origin, letter.body_bytes, letter.tag.as_str()), (Some(origin()), 5, "TagA"));

        let revived = revive(dead, &topic("orders")).expect("a message");
        assert_eq!(revived.record, record(""));
        assert_eq!((revived.kind, revived.message_group), (TopicKind::Fifo, Some(MessageGroup::of("g"))));
        assert!(read(record("")).expect("a message").origin.is_none());
    }

    #[test]
    fn in_a_namespace_its_topic_is_named_as_its_clients_name_it() {
        let (dead, _) = to_dead_letter(record("shop"), &topic("%DLQ%shop%billing"), &origin()).expect("a message");
        let named = |record: &Bytes| StoredMessage::decode(record.clone()).expect("a message").topic.expect("set");
        let resource =
            |namespace: &str, name: &str| v2::Resource { resource_namespace: namespace.into(), name: name.into() };
        assert_eq!(named(&dead), resource("shop", "%DLQ%billing"));
        let again = revive(dead.clone(), &topic("shop%orders")).expect("a message").record;
        assert_eq!(again, record("shop"));
        let elsewhere = revive(dead, &topic("repair")).expect("a message").record;
        assert_eq!(named(&elsewhere), resource("", "repair"));
    }

    #[test]
    fn bytes_that_are_no_message_are_none() {
        let bad = Bytes::from_static(&[0xff; 3]);
        assert!(to_dead_letter(bad.clone(), &topic("t"), &origin()).is_none() && read(bad.clone()).is_none());
        assert!(revive(bad, &topic("t")).is_none());
    }
}
