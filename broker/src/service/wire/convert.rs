//! Words of the wire to words of the house and back: messages, digests, topic kinds.
//!
//! A message is normalised once, at the node that took it: what the server decides is stripped, the digest is verified, and the result
//! is encoded once. Those bytes are what travels to the leader, stands in the log and comes back at delivery, where what belongs to the
//! delivery is added, and the digest: MD5, the only one that every official client understands, unless the sender gave that. Hashing
//! costs more than the rest of a send, and between the two the log's own check sums watch over the body. Pure.

use prost::Message as _;
use quorate_proto::v2::{self, Code, DigestType, Encoding, MessageType, SystemProperties};
use sha1::Digest as _;

use super::{status::Fault, validate};
use crate::{
    leader::{
        calls::{Delivered, Outgoing, PulledOne},
        checks::Check,
        letter::StoredMessage,
    },
    machine::{MessageGroup, TopicKind, handle::to_hex, tag_hash},
};

/// Makes the record of a message that has passed [`super::validate::message`].
///
/// # Errors
/// [`Code::MessageCorrupted`] if the digest the client sent is not that of the body.
pub(crate) fn to_record(message: v2::Message) -> Result<Outgoing, Fault> {
    let given = message.system_properties.unwrap_or_default();
    let body_digest = verified(given.body_digest, &message.body)?;
    let body_encoding = match Encoding::try_from(given.body_encoding) {
        Ok(Encoding::Unspecified | Encoding::Identity) => Encoding::Identity,
        Ok(Encoding::Gzip) => Encoding::Gzip,
        Err(_) => {
            let text = format!("body encoding {} is unknown; send the body as it is or gzipped", given.body_encoding);
            return Err(Fault::new(Code::BadRequest, text));
        }
    };
    let message_id = given.message_id;
    let tag = given.tag.filter(|tag| !tag.is_empty());
    let tag_hash = tag.as_deref().map_or(0, tag_hash);
    let message_group = given.message_group.filter(|group| !group.is_empty());
    let ordered_by = message_group.as_deref().map(|group| MessageGroup::of(group).0);
    let body_crc = crc32c::crc32c(&message.body);
    let due_ms = given.delivery_timestamp.as_ref().map_or(0, due_ms);
    let half_immunity_ms = (given.message_type == MessageType::Transaction as i32).then(|| {
        let named = validate::immunity(given.orphaned_transaction_recovery_duration.as_ref(), &message.user_properties);
        named.map_or(0, |immunity| u64::try_from(immunity.as_millis()).unwrap_or(u64::MAX).max(1))
    });
    let message_type = match (due_ms, &message_group) {
        _ if half_immunity_ms.is_some() => MessageType::Transaction,
        (0, None) => MessageType::Normal,
        (0, Some(_)) => MessageType::Fifo,
        _ => MessageType::Delay,
    };
    let system = SystemProperties {
        tag,
        keys: given.keys,
        message_id: message_id.clone(),
        body_digest,
        body_encoding: body_encoding as i32,
        message_type: message_type as i32,
        delivery_timestamp: given.delivery_timestamp,
        born_timestamp: given.born_timestamp,
        born_host: given.born_host,
        message_group,
        trace_context: given.trace_context,
        ..SystemProperties::default()
    };
    let stored = StoredMessage {
        topic: message.topic,
        user_properties: message.user_properties.into_iter().collect(),
        system_properties: Some(system),
        body: message.body,
    };
    let record = stored.encode_to_vec().into();
    Ok(Outgoing { message_id, body_crc, tag_hash, record, due_ms, message_group: ordered_by, half_immunity_ms })
}

/// The first millisecond that is not before `timestamp`, and at least 1: 0 stands for a message without one.
fn due_ms(timestamp: &prost_types::Timestamp) -> u64 {
    let nanos = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
    let ms = nanos.max(1) as u128;
    u64::try_from(ms.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// The message of a delivery, as the client gets it. `None` if the stored bytes are not a message, which only a bug can bring about.
pub(crate) fn to_message(delivered: Delivered, store_host: &str) -> Option<v2::Message> {
    let mut message = v2::Message::decode(delivered.record).ok()?;
    let system = message.system_properties.get_or_insert_default();
    system.body_digest.get_or_insert_with(|| md5_of(&message.body));
    system.store_timestamp = Some(quorate_proto::time::Timestamp(delivered.stored_ms).to_proto());
    system.store_host = store_host.to_owned();
    system.receipt_handle = Some(delivered.handle);
    system.queue_id = i32::try_from(delivered.queue).ok()?;
    system.queue_offset = Some(i64::try_from(delivered.offset).ok()?);
    system.invisible_duration = Some(milliseconds(delivered.invisible_ms));
    system.delivery_attempt = Some(i32::try_from(delivered.attempt).unwrap_or(i32::MAX));
    Some(message)
}

/// A message of a queue as whoever pulled it gets it: nobody holds it, so it has no receipt. `None` as for [`to_message`].
pub(crate) fn to_pulled_message(pulled: PulledOne, queue: u32, store_host: &str) -> Option<v2::Message> {
    let mut message = v2::Message::decode(pulled.record).ok()?;
    let system = message.system_properties.get_or_insert_default();
    system.body_digest.get_or_insert_with(|| md5_of(&message.body));
    system.store_timestamp = Some(quorate_proto::time::Timestamp(pulled.stored_ms).to_proto());
    system.store_host = store_host.to_owned();
    system.queue_id = i32::try_from(queue).ok()?;
    system.queue_offset = Some(i64::try_from(pulled.offset).ok()?);
    Some(message)
}

/// A half message, as its producer gets it when it is asked. `None` as for [`to_message`].
pub(crate) fn to_half_message(check: Check, store_host: &str) -> Option<v2::Message> {
    let mut message = v2::Message::decode(check.record).ok()?;
    let system = message.system_properties.get_or_insert_default();
    system.body_digest.get_or_insert_with(|| md5_of(&message.body));
    system.store_timestamp = Some(quorate_proto::time::Timestamp(check.sent_ms).to_proto());
    system.store_host = store_host.to_owned();
    system.queue_id = i32::try_from(check.queue).ok()?;
    Some(message)
}

/// A duration on the wire.
pub(crate) fn milliseconds(ms: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
    }
}

/// The message types a topic takes, for routes and settings.
pub(crate) fn accepted_types(kind: TopicKind) -> Vec<i32> {
    let types: &[MessageType] = match kind {
        TopicKind::Normal => &[MessageType::Normal],
        TopicKind::Fifo => &[MessageType::Fifo],
        TopicKind::Delay => &[MessageType::Delay],
        TopicKind::Transaction => &[MessageType::Transaction],
        TopicKind::Any => &[MessageType::Normal, MessageType::Fifo, MessageType::Delay, MessageType::Transaction],
    };
    types.iter().map(|kind| *kind as i32).collect()
}

/// Checks the digest that the client sent. It is kept if it is an MD5; any other makes room for one, see [`md5_of`].
///
/// CRC32 comes as hex with or without leading zeros (Java, Python) or as a decimal number (Node).
fn verified(given: Option<v2::Digest>, body: &[u8]) -> Result<Option<v2::Digest>, Fault> {
    let Some(given) = given.filter(|given| !given.checksum.is_empty()) else { return Ok(None) };
    let checksum = given.checksum.as_str();
    let (holds, kept) = match DigestType::try_from(given.r#type) {
        Ok(DigestType::Md5) => {
            let md5 = md5_of(body);
            (checksum.eq_ignore_ascii_case(&md5.checksum), Some(md5))
        }
        Ok(DigestType::Sha1) => (checksum.eq_ignore_ascii_case(&to_hex(&sha1::Sha1::digest(body))), None),
        Ok(DigestType::Crc32) => {
            let crc = crc32fast::hash(body);
            (u32::from_str_radix(checksum, 16) == Ok(crc) || checksum.parse() == Ok(crc), None)
        }
        Ok(DigestType::Unspecified) => (true, None),
        Err(_) => {
            let text = format!("digest type {} is unknown; use CRC32, MD5 or SHA1", given.r#type);
            return Err(Fault::new(Code::BadRequest, text));
        }
    };
    if holds {
        return Ok(kept);
    }
    let text = "the body does not have the digest that was sent with it; it was damaged on the way, send it again";
    Err(Fault::new(Code::MessageCorrupted, text))
}

/// The digest that every official client understands.
fn md5_of(body: &[u8]) -> v2::Digest {
    v2::Digest { r#type: DigestType::Md5 as i32, checksum: to_hex(&md5::Md5::digest(body)) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(digest: Option<(DigestType, &str)>) -> v2::Message {
        v2::Message {
            topic: Some(v2::Resource { resource_namespace: "ns".into(), name: "t".into() }),
            user_properties: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            system_properties: Some(SystemProperties {
                message_id: "ID".into(),
                tag: Some("TagA".into()),
                keys: vec!["k".into()],
                body_digest: digest
                    .map(|(kind, checksum)| v2::Digest { r#type: kind as i32, checksum: checksum.into() }),
                receipt_handle: Some("forged".into()),
                delivery_attempt: Some(77),
                queue_id: 5,
                ..SystemProperties::default()
            }),
            body: "hello".into(),
        }
    }

    fn delivered(record: Bytes) -> Delivered {
        Delivered {
            queue: 3,
            offset: 9,
            attempt: 2,
            handle: "HANDLE".into(),
            stored_ms: 1_500,
            invisible_ms: 10_250,
            record,
        }
    }

    #[test]
    fn a_message_comes_back_with_what_the_client_said_and_what_the_delivery_adds() {
        let outgoing = to_record(message(None)).expect("no digest to check");
        assert_eq!((outgoing.message_id.as_str(), outgoing.tag_hash), ("ID", 2_598_919));
        let back = to_message(delivered(outgoing.record), "10.0.0.1:8081").expect("a message");
        assert_eq!(back.body, "hello");
        assert_eq!(back.topic, message(None).topic);
        assert_eq!(back.user_properties.get("a").map(String::as_str), Some("1"));
        let system = back.system_properties.expect("set");
        assert_eq!(system.receipt_handle.as_deref(), Some("HANDLE"), "what the client forged is gone");
        assert_eq!((system.queue_id, system.queue_offset, system.delivery_attempt), (3, Some(9), Some(2)));
        assert_eq!(system.invisible_duration, Some(prost_types::Duration { seconds: 10, nanos: 250_000_000 }));
        assert_eq!(system.store_timestamp, Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(system.body_encoding, Encoding::Identity as i32);
        let digest = system.body_digest.expect("always");
        assert_eq!((digest.r#type, digest.checksum.as_str()), (2, "5D41402ABC4B2A76B9719D911017C592"));
    }

    #[test]
    fn a_pulled_message_says_where_it_stands_and_has_no_receipt() {
        let record = to_record(message(None)).expect("no digest to check").record;
        let pulled = PulledOne { offset: 9, stored_ms: 1_500, record };
        let back = to_pulled_message(pulled, 3, "10.0.0.1:8081").expect("a message");
        assert_eq!(back.body, "hello");
        let system = back.system_properties.expect("set");
        assert_eq!((system.queue_id, system.queue_offset), (3, Some(9)));
        assert_eq!((system.receipt_handle, system.delivery_attempt, system.invisible_duration), (None, None, None));
        assert_eq!(system.store_timestamp, Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(system.body_digest.expect("always").checksum, "5D41402ABC4B2A76B9719D911017C592");
    }

    #[test]
    fn a_delivery_timestamp_is_kept_and_rounded_up_to_a_millisecond() {
        let due = |seconds, nanos| {
            let mut message = message(None);
            let timestamp = prost_types::Timestamp { seconds, nanos };
            message.system_properties.as_mut().expect("set").delivery_timestamp = Some(timestamp);
            to_record(message).expect("legal")
        };
        let outgoing = due(5, 1);
        assert_eq!(outgoing.due_ms, 5_001, "never early");
        let system = to_message(delivered(outgoing.record), "").and_then(|message| message.system_properties);
        let system = system.expect("a message");
        assert_eq!(system.message_type, MessageType::Delay as i32);
        assert_eq!(system.delivery_timestamp, Some(prost_types::Timestamp { seconds: 5, nanos: 1 }));
        assert_eq!(due(5, 1_000_000).due_ms, 5_001);
        assert_eq!((due(0, 0).due_ms, due(-7, 5).due_ms), (1, 1), "the past is not \"no timestamp\"");
        assert_eq!(due(i64::MAX, 0).due_ms, u64::MAX);
        assert_eq!(to_record(message(None)).expect("legal").due_ms, 0);
    }

    #[test]
    fn a_message_group_makes_a_message_ordered_and_comes_back_with_it() {
        let mut grouped = message(None);
        let system = grouped.system_properties.get_or_insert_default();
        system.message_group = Some("order 7".into());
        system.message_type = MessageType::Fifo as i32;
        let outgoing = to_record(grouped).expect("legal");
        assert_eq!(outgoing.message_group, Some(MessageGroup::of("order 7").0));
        let system = to_message(delivered(outgoing.record), "").expect("a message").system_properties.expect("set");
        assert_eq!((system.message_type, system.message_group.as_deref()), (2, Some("order 7")));
        let mut without = message(None);
        without.system_properties.get_or_insert_default().message_group = Some(String::new());
        let outgoing = to_record(without).expect("legal");
        assert_eq!(outgoing.message_group, None, "an empty one is none");
        let system = to_message(delivered(outgoing.record), "").expect("a message").system_properties.expect("set");
        assert_eq!((system.message_type, system.message_group), (1, None));
    }

    #[test]
    fn equal_messages_have_equal_records() {
        let records: Vec<_> = (0..8).map(|_| to_record(message(None)).expect("legal").record).collect();
        assert!(records.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn every_way_clients_write_a_digest_is_verified() {
        for (kind, checksum) in [
            (DigestType::Md5, "5d41402abc4b2a76b9719d911017c592"),
            (DigestType::Sha1, "AAF4C61DDCC5E8A2DABEDE0F3B482CD9AEA9434D"),
            (DigestType::Crc32, "3610A686"),
            (DigestType::Crc32, "3610a686"),
            (DigestType::Crc32, "907060870"),
        ] {
            assert!(to_record(message(Some((kind, checksum)))).is_ok(), "{kind:?} {checksum}");
            let wrong = format!("{}0", &checksum[..checksum.len() - 1]);
            let refused = to_record(message(Some((kind, &wrong)))).map_err(|fault| fault.code);
            if wrong != checksum {
                assert_eq!(refused.err(), Some(Code::MessageCorrupted), "{kind:?} {wrong}");
            }
        }
    }

    #[test]
    fn an_md5_that_the_sender_gave_is_kept_and_any_other_digest_becomes_one_at_delivery() {
        let md5 = "5D41402ABC4B2A76B9719D911017C592";
        for (given, kept) in [
            (Some((DigestType::Md5, "5d41402abc4b2a76b9719d911017c592")), Some(md5)),
            (Some((DigestType::Crc32, "3610A686")), None),
            (Some((DigestType::Md5, "")), None),
            (None, None),
        ] {
            let record = to_record(message(given)).expect("the digest holds").record;
            let digest = |message: v2::Message| message.system_properties.expect("set").body_digest;
            let stored = digest(v2::Message::decode(record.clone()).expect("a message"));
            assert_eq!(stored.map(|digest| digest.checksum).as_deref(), kept, "{given:?}");
            let delivered = digest(to_message(delivered(record), "").expect("a message")).expect("always");
            assert_eq!((delivered.r#type, delivered.checksum.as_str()), (2, md5), "{given:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_message_are_not_delivered() {
        assert_eq!(to_message(delivered(Bytes::from_static(b"\xff\xff")), ""), None);
    }
}
