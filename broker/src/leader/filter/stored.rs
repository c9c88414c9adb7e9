//! A stored message as filters see it: the names that RocketMQ's proxy gives to what a client sent (`SendMessageActivity.buildMessageProperty`,
//! names from `MessageConst`). Never looks at the body. Pure; called by whoever holds a filter against a record.

use std::borrow::Cow;

use bytes::Bytes;
use prost::Message as _;
use quorate_proto::v2::{self, SystemProperties};

use super::Properties;

/// The properties of a message that was read back from the commit log.
pub(crate) struct StoredProperties(v2::Message);

impl StoredProperties {
    /// Reads a record; its body is borrowed, its properties are copied. `None` if the bytes are not a message.
    pub fn decode(record: Bytes) -> Option<Self> {
        v2::Message::decode(record).ok().map(Self)
    }

    fn system(&self) -> Option<&SystemProperties> {
        self.0.system_properties.as_ref()
    }
}

impl Properties for StoredProperties {
    fn tag(&self) -> Option<Cow<'_, str>> {
        written(self.system()?.tag.as_deref()?)
    }

    fn property(&self, name: &str) -> Option<Cow<'_, str>> {
        let millis = |time: &prost_types::Timestamp| {
            let millis = time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos) / 1_000_000);
            Cow::Owned(millis.to_string())
        };
        match name {
            "TAGS" => self.tag(),
            "KEYS" => self.system().filter(|system| !system.keys.is_empty()).map(|system| system.keys.join(" ").into()),
            "UNIQ_KEY" => written(&self.system()?.message_id),
            "__SHARDINGKEY" => written(self.system()?.message_group.as_deref()?),
            "TRACE_CONTEXT" => written(self.system()?.trace_context.as_deref()?),
            "__BORNHOST" => written(&self.system()?.born_host),
            "BORN_TIMESTAMP" => self.system()?.born_timestamp.as_ref().map(millis),
            "TIMER_DELIVER_MS" => self.system()?.delivery_timestamp.as_ref().map(millis),
            _ => self.0.user_properties.get(name).map(|value| Cow::Borrowed(value.as_str())),
        }
    }
}

/// Empty texts of the wire are texts that were not sent.
fn written(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_message_shows_its_properties_under_rocketmq_s_names() {
        let time = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let message = v2::Message {
            user_properties: [("region".to_owned(), "Hangzhou".to_owned()), ("empty".to_owned(), String::new())].into(),
            system_properties: Some(SystemProperties {
                tag: Some("TagA".into()),
                keys: vec!["k1".into(), "k2".into()],
                message_id: "ID".into(),
                message_group: Some("g".into()),
                trace_context: Some("t".into()),
                born_host: "h".into(),
                born_timestamp: time(1_700_000_000, 123_000_000),
                delivery_timestamp: time(2, 0),
                ..SystemProperties::default()
            }),
            ..v2::Message::default()
        };
        let stored = StoredProperties::decode(message.encode_to_vec().into()).expect("a message");
        for (name, expected) in [
            ("TAGS", Some("TagA")),
            ("KEYS", Some("k1 k2")),
            ("UNIQ_KEY", Some("ID")),
            ("__SHARDINGKEY", Some("g")),
            ("TRACE_CONTEXT", Some("t")),
            ("__BORNHOST", Some("h")),
            ("BORN_TIMESTAMP", Some("1700000000123")),
            ("TIMER_DELIVER_MS", Some("2000")),
            ("region", Some("Hangzhou")),
            ("empty", Some("")),
            ("Region", None),
            ("tags", None),
        ] {
            assert_eq!(stored.property(name).as_deref(), expected, "{name}");
        }
        assert_eq!(stored.tag().as_deref(), Some("TagA"));
    }

    #[test]
    fn what_was_not_sent_is_missing_and_bytes_that_are_no_message_are_refused() {
        let bare = v2::Message {
            system_properties: Some(SystemProperties { tag: Some(String::new()), ..SystemProperties::default() }),
            ..v2::Message::default()
        };
        for message in [v2::Message::default(), bare] {
            let stored = StoredProperties::decode(message.encode_to_vec().into()).expect("a message");
            for name in ["TAGS", "KEYS", "UNIQ_KEY", "__SHARDINGKEY", "BORN_TIMESTAMP", "a"] {
                assert_eq!(stored.property(name), None, "{name}");
            }
            assert_eq!(stored.tag(), None);
        }
        assert!(StoredProperties::decode(Bytes::from_static(&[0xff; 3])).is_none());
    }
}
