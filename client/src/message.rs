//! What an application sends, and what it gets.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use md5::{Digest as _, Md5};
use quorate_proto::{time::Timestamp, v2};

/// A message to send. The body is never copied until it is written to the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub(crate) topic: String,
    pub(crate) body: Bytes,
    pub(crate) tag: Option<String>,
    pub(crate) keys: Vec<String>,
    pub(crate) properties: HashMap<String, String>,
    pub(crate) message_group: Option<String>,
    pub(crate) deliver_at: Option<Timestamp>,
    pub(crate) check_after: Option<Duration>,
    pub(crate) id: Option<String>,
}

impl Message {
    /// A message of 1 byte to 4 MiB to a topic.
    pub fn new(topic: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            body: body.into(),
            tag: None,
            keys: Vec::new(),
            properties: HashMap::new(),
            message_group: None,
            deliver_at: None,
            check_after: None,
            id: None,
        }
    }

    /// One word that consumers may filter by.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// One more word to find the message by.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// A property of the application's own; the same name again replaces it.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// Makes it an ordered message: messages of one group keep their order.
    #[must_use]
    pub fn message_group(mut self, group: impl Into<String>) -> Self {
        self.message_group = Some(group.into());
        self
    }

    /// Makes it a delayed message: consumers see it at `moment` and not before; at once if that has passed. The broker takes up to 40
    /// days ahead unless its operator chose otherwise.
    #[must_use]
    pub fn deliver_at(mut self, moment: Timestamp) -> Self {
        self.deliver_at = Some(moment);
        self
    }

    /// How long the broker leaves a half message alone before it asks for its fate; 6 s unless its operator chose otherwise. Of no
    /// meaning for other messages.
    #[must_use]
    pub fn check_after(mut self, duration: Duration) -> Self {
        self.check_after = Some(duration);
        self
    }

    /// Fixes the message id (34 hex characters), for an application that repeats a send of unknown outcome: within 60 s, the same id,
    /// topic and body from the same producer are stored once.
    #[must_use]
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Consumers get the message.
    Commit,
    /// Nobody ever gets it.
    Rollback,
}

/// A message that was handed out, with what acks it.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub body: Bytes,
    /// The producer's id of it.
    pub message_id: String,
    /// The word to filter by.
    pub tag: Option<String>,
    /// The words to find it by.
    pub keys: Vec<String>,
    /// The application's properties.
    pub properties: HashMap<String, String>,
    /// Its ordering group.
    pub message_group: Option<String>,
    /// When it was to be delivered, if it was delayed.
    pub deliver_at: Option<Timestamp>,
    /// When the producer made it.
    pub born: Timestamp,
    /// When the broker stored it.
    pub stored: Timestamp,
    /// Numbered lane of the topic.
    pub queue: u32,
    /// Number in the queue.
    pub queue_offset: u64,
    /// How often it was handed out to this group, starting at 1.
    pub attempt: u32,
    /// The token for ack and change of the invisible duration.
    pub receipt_handle: String,
    /// How long it stays hidden from others, counted from the delivery.
    pub invisible_duration: Duration,
    /// The body does not have the digest that the broker stored.
    pub corrupted: bool,
}

impl Delivery {
    pub(crate) fn from_wire(message: v2::Message, verify: bool) -> Self {
        let system = message.system_properties.unwrap_or_default();
        let corrupted = verify && !digest_matches(system.body_digest.as_ref(), &message.body);
        Self {
            topic: message.topic.unwrap_or_default().name,
            body: message.body,
            message_id: system.message_id,
            tag: system.tag,
            keys: system.keys,
            properties: message.user_properties,
            message_group: system.message_group,
            deliver_at: system.delivery_timestamp.as_ref().map(Timestamp::from_proto),
            born: system.born_timestamp.as_ref().map(Timestamp::from_proto).unwrap_or_default(),
            stored: system.store_timestamp.as_ref().map(Timestamp::from_proto).unwrap_or_default(),
            queue: u32::try_from(system.queue_id).unwrap_or(0),
            queue_offset: u64::try_from(system.queue_offset.unwrap_or(0)).unwrap_or(0),
            attempt: u32::try_from(system.delivery_attempt.unwrap_or(1)).unwrap_or(1),
            receipt_handle: system.receipt_handle.unwrap_or_default(),
            invisible_duration: system
                .invisible_duration
                .and_then(|duration| Duration::try_from(duration).ok())
                .unwrap_or_default(),
            corrupted,
        }
    }
}

/// A message as it stands in its queue, for whoever pulled it: nobody holds it, so there is nothing to acknowledge.
#[derive(Clone, Debug, PartialEq)]
pub struct PulledMessage {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub body: Bytes,
    /// The producer's id of it.
    pub message_id: String,
    /// The word to filter by.
    pub tag: Option<String>,
    /// The words to find it by.
    pub keys: Vec<String>,
    /// The application's properties.
    pub properties: HashMap<String, String>,
    /// Its ordering group.
    pub message_group: Option<String>,
    /// When it was to be delivered, if it was delayed.
    pub deliver_at: Option<Timestamp>,
    /// When the producer made it.
    pub born: Timestamp,
    /// When the broker stored it.
    pub stored: Timestamp,
    /// Numbered lane of the topic.
    pub queue: u32,
    /// Number in the queue.
    pub queue_offset: u64,
    /// The body does not have the digest that the broker stored.
    pub corrupted: bool,
}

impl PulledMessage {
    pub(crate) fn from_wire(message: v2::Message, verify: bool) -> Self {
        let Delivery {
            topic,
            body,
            message_id,
            tag,
            keys,
            properties,
            message_group,
            deliver_at,
            born,
            stored,
            queue,
            queue_offset,
            attempt: _,
            receipt_handle: _,
            invisible_duration: _,
            corrupted,
        } = Delivery::from_wire(message, verify);
        Self {
            topic,
            body,
            message_id,
            tag,
            keys,
            properties,
            message_group,
            deliver_at,
            born,
            stored,
            queue,
            queue_offset,
            corrupted,
        }
    }
}

/// True unless the digest is an MD5 that differs: other kinds are written differently by different clients.
fn digest_matches(digest: Option<&v2::Digest>, body: &[u8]) -> bool {
    let Some(digest) = digest.filter(|digest| digest.r#type() == v2::DigestType::Md5) else { return true };
    let found = Md5::digest(body);
    let text = digest.checksum.as_bytes();
    let nibble = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    text.len() == 2 * found.len()
        && found
            .iter()
            .zip(text.as_chunks::<2>().0)
            .all(|(byte, pair)| nibble(pair[0]) == Some(byte >> 4) && nibble(pair[1]) == Some(byte & 15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_lost_its_digest_s_bytes_is_marked() {
        let digest =
            |r#type: v2::DigestType, checksum: &str| v2::Digest { r#type: r#type.into(), checksum: checksum.into() };
        let md5 = digest(v2::DigestType::Md5, "5D41402ABC4B2A76B9719D911017C592");
        assert!(digest_matches(Some(&md5), b"hello"));
        assert!(!digest_matches(Some(&md5), b"hellp"));
        assert!(!digest_matches(Some(&digest(v2::DigestType::Md5, "5D")), b"hello"));
        assert!(digest_matches(Some(&digest(v2::DigestType::Crc32, "1")), b"hello"));
        assert!(digest_matches(None, b"hello"));
    }

    #[test]
    fn a_delivery_without_any_system_property_is_read_without_harm() {
        let delivery = Delivery::from_wire(v2::Message::default(), true);
        assert_eq!((delivery.attempt, delivery.queue, delivery.corrupted), (1, 0, false));
    }
}
