//! The door: what a client may send, and the code it gets for everything else.
//!
//! Pure. Each check either returns the checked value in a type of ours or a [`Fault`] that names the value, the rule and the remedy.
//! Limits and codes are RocketMQ's. What this broker has not built (lite and prioritised messages) is refused here by
//! name, so that nothing is ever stored as something it is not.

use std::{collections::HashMap, time::Duration};

use quorate_proto::{
    names::{DEAD_LETTER_PREFIX, GroupName, NameError, TopicName},
    v2::{self, Code, FilterType, MessageType},
};

use super::status::Fault;
use crate::{
    config::{Limits, units},
    leader::{
        calls::FilterText,
        filter::{Filter, FilterKind},
    },
};

/// Longest message id.
const MESSAGE_ID_BYTES_MAX: usize = 128;
/// Longest message group.
const MESSAGE_GROUP_BYTES_MAX: usize = 64;
/// Most user properties of a message.
const USER_PROPERTIES_MAX: usize = 128;
/// Bytes of all user property keys and values of a message.
const USER_PROPERTY_BYTES_MAX: usize = 16 << 10;
/// Bytes of all properties of a message: user's, tag, keys and the other texts.
const PROPERTY_BYTES_MAX: usize = 32_767;
/// How a message of RocketMQ's older clients says how long its producer is left alone; whole seconds, and ignored if it is no number.
const IMMUNITY_PROPERTY: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
/// Longest attempt id.
const ATTEMPT_ID_BYTES_MAX: usize = 256;

/// Property keys that RocketMQ keeps for itself, sorted.
const RESERVED_PROPERTY_KEYS: [&str; 49] = [
    "1ST_POP_TIME",
    "ARRIVE_TIME",
    "BORN_TIMESTAMP",
    "BUYER_ID",
    "CLUSTER",
    "CONSUME_START_TIME",
    "CORRECTION_FLAG",
    "CORRELATION_ID",
    "DELAY",
    "DUP_INFO",
    "EXTEND_UNIQ_INFO",
    "INNER_MULTI_QUEUE_OFFSET",
    "INSTANCE_ID",
    "KEYS",
    "MAX_OFFSET",
    "MAX_RECONSUME_TIMES",
    "MIN_OFFSET",
    "MQ2_FLAG",
    "MSG_REGION",
    "MSG_TYPE",
    "ORIGIN_MESSAGE_ID",
    "PGROUP",
    "POP_CK",
    "POP_CK_OFFSET",
    "PUSH_REPLY_TIME",
    "REAL_QID",
    "REAL_TOPIC",
    "RECONSUME_TIME",
    "REPLY_TO_CLIENT",
    "RETRY_TOPIC",
    "TAGS",
    "TIMER_DELAY_LEVEL",
    "TIMER_DELAY_MS",
    "TIMER_DELAY_SEC",
    "TIMER_DELIVER_MS",
    "TIMER_DEL_UNIQKEY",
    "TIMER_DEQUEUE_MS",
    "TIMER_ENQUEUE_MS",
    "TIMER_OUT_MS",
    "TIMER_ROLL_TIMES",
    "TRACE_ON",
    "TRANSFER_FLAG",
    "TRAN_MSG",
    "TRAN_PREPARED_QUEUE_OFFSET",
    "TTL",
    "UNIQ_KEY",
    "WAIT",
    "__BORNHOST",
    "__transactionId__",
];

/// The topic a request names; `namespace` is what the `x-mq-namespace` header says, for clients that leave the resource's empty.
pub(crate) fn topic(resource: Option<&v2::Resource>, namespace: &str) -> Result<TopicName, Fault> {
    let illegal = |error: NameError| Fault::new(Code::IllegalTopic, error.to_string());
    let parse = |name: &str| TopicName::parse(name).map_err(illegal);
    // The dead letters of a consumer group of a namespace: it is the group's name that carries the namespace, as in RocketMQ.
    let group = resource.and_then(|resource| resource.name.strip_prefix(DEAD_LETTER_PREFIX));
    if let (Some(resource), Some(group)) = (resource, group) {
        let group = v2::Resource { name: group.to_owned(), ..resource.clone() };
        return with_namespace(Some(&group), namespace, |name| parse(&format!("{DEAD_LETTER_PREFIX}{name}")));
    }
    with_namespace(resource, namespace, parse)
}

/// The consumer group a request names.
pub(crate) fn group(resource: Option<&v2::Resource>, namespace: &str) -> Result<GroupName, Fault> {
    let illegal = |error: NameError| Fault::new(Code::IllegalConsumerGroup, error.to_string());
    with_namespace(resource, namespace, |name| GroupName::parse(name).map_err(illegal))
}

/// The topic and the queue that a pull, or a question about an offset, names.
pub(crate) fn queue(queue: Option<&v2::MessageQueue>, namespace: &str) -> Result<(TopicName, u32), Fault> {
    let topic = topic(queue.and_then(|queue| queue.topic.as_ref()), namespace)?;
    let id = queue.map_or(-1, |queue| queue.id);
    let number = u32::try_from(id).map_err(|_| {
        let text = format!("queue {id} stands for no queue in particular; name one of the topic's route");
        Fault::new(Code::BadRequest, text)
    })?;
    Ok((topic, number))
}

/// An offset as a client writes it.
pub(crate) fn offset(offset: i64) -> Result<u64, Fault> {
    let negative = |_| Fault::new(Code::IllegalOffset, format!("offset {offset} is negative; offsets begin at 0"));
    u64::try_from(offset).map_err(negative)
}

/// The time that a queue is asked for, in milliseconds since 1970: the first one that is not before it.
pub(crate) fn query_time(time: Option<&prost_types::Timestamp>) -> Result<u64, Fault> {
    let Some(time) = time.filter(|time| (0..1_000_000_000).contains(&time.nanos)) else {
        let text = "the query is for a time and its timestamp is missing or malformed; set it";
        return Err(Fault::new(Code::BadRequest, text));
    };
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    let ms = u64::from(time.nanos.unsigned_abs()).div_ceil(1_000_000);
    Ok(if time.seconds < 0 { 0 } else { seconds.saturating_mul(1000).saturating_add(ms) })
}

/// A resource of a namespace is stored under `namespace%name`, as RocketMQ does.
fn with_namespace<T>(
    resource: Option<&v2::Resource>,
    namespace: &str,
    parse: impl Fn(&str) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let Some(resource) = resource else { return parse("") };
    let namespace = if resource.resource_namespace.is_empty() { namespace } else { &resource.resource_namespace };
    // An empty name stays empty, so that it is refused as such.
    if namespace.is_empty() || resource.name.is_empty() {
        return parse(&resource.name);
    }
    parse(&format!("{namespace}%{}", resource.name))
}

/// The messages of one send: at least one, not too many, all of one topic. Their content is checked by [`message`].
pub(crate) fn send<'a>(messages: &'a [v2::Message], limits: &Limits) -> Result<&'a v2::Message, Fault> {
    let Some((first, rest)) = messages.split_first() else {
        return Err(Fault::new(Code::MessageCorrupted, "the call has no message; send at least one"));
    };
    let max = usize::from(limits.messages_per_call_max);
    if messages.len() > max {
        let text = format!("the call has {} messages, at most {max} are allowed; split it", messages.len());
        return Err(Fault::new(Code::PayloadTooLarge, text));
    }
    if rest.iter().any(|message| message.topic != first.topic) {
        return Err(Fault::new(Code::MessageCorrupted, "the messages of one call must have the same topic; split it"));
    }
    Ok(first)
}

/// Everything about one message except its topic and its digest.
pub(crate) fn message(message: &v2::Message, limits: &Limits, max_immunity: Duration) -> Result<(), Fault> {
    let Some(system) = &message.system_properties else {
        return Err(Fault::new(
            Code::MessageCorrupted,
            "the message has no system properties; set at least message_id",
        ));
    };
    message_id(&system.message_id)?;
    body(message.body.len(), limits)?;
    tag(system.tag.as_deref())?;
    for key in &system.keys {
        text("message key", key, Code::IllegalMessageKey)?;
    }
    message_group(system.message_group.as_deref())?;
    properties(message, system)?;
    delivery(system)?;
    half(message, system, max_immunity)?;
    built_type(system)
}

/// A delivery timestamp belongs to a message of type DELAY and to no other. How far ahead it may lie is the leader's to say, by
/// log time.
fn delivery(system: &v2::SystemProperties) -> Result<(), Fault> {
    let is_delay = system.message_type == MessageType::Delay as i32;
    let Some(timestamp) = &system.delivery_timestamp else {
        if is_delay {
            let text = "the message is of type DELAY and has no delivery timestamp; set one";
            return Err(Fault::new(Code::IllegalDeliveryTime, text));
        }
        return Ok(());
    };
    if !(0..1_000_000_000).contains(&timestamp.nanos) {
        let text = format!("the delivery timestamp is malformed ({} ns); set it to 0 to 999999999 ns", timestamp.nanos);
        return Err(Fault::new(Code::IllegalDeliveryTime, text));
    }
    let has_group = system.message_group.as_ref().is_some_and(|group| !group.is_empty());
    if has_group || !is_delay && system.message_type != MessageType::Unspecified as i32 {
        let text = "the message has a delivery timestamp and is of another type than DELAY; send it as one of them";
        return Err(Fault::new(Code::MessagePropertyConflictWithType, text));
    }
    Ok(())
}

/// A half message is not ordered or delayed at once, and its producer is not left alone for longer than is allowed.
fn half(message: &v2::Message, system: &v2::SystemProperties, max: Duration) -> Result<(), Fault> {
    if system.message_type != MessageType::Transaction as i32 {
        return Ok(());
    }
    if system.message_group.as_ref().is_some_and(|group| !group.is_empty()) {
        let text = "the message is of type TRANSACTION and has a message group; send it as one of them";
        return Err(Fault::new(Code::MessagePropertyConflictWithType, text));
    }
    let named = system.orphaned_transaction_recovery_duration.as_ref();
    if named.is_some_and(|named| to_duration(named).is_none()) {
        let text = "the orphaned transaction recovery duration is negative or malformed; set it to 0s or more";
        return Err(Fault::new(Code::BadRequest, text));
    }
    match immunity(named, &message.user_properties).filter(|immunity| *immunity > max) {
        None => Ok(()),
        Some(immunity) => {
            let max = units::format_duration(max);
            let text = format!(
                "the orphaned transaction recovery duration of {} s is longer than {max}; choose a shorter one \
                 (transactions.immunity_max)",
                immunity.as_secs()
            );
            Err(Fault::new(Code::BadRequest, text))
        }
    }
}

/// How long a producer wants to be left alone with a half message, if the message says so: in its system properties, or in the
/// property by which RocketMQ's older clients say it.
pub(crate) fn immunity(
    named: Option<&prost_types::Duration>,
    user_properties: &HashMap<String, String>,
) -> Option<Duration> {
    let property = || user_properties.get(IMMUNITY_PROPERTY)?.parse().ok().map(Duration::from_secs);
    named.and_then(to_duration).or_else(property)
}

fn message_id(id: &str) -> Result<(), Fault> {
    let legal = !id.is_empty() && id.len() <= MESSAGE_ID_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
    if legal {
        return Ok(());
    }
    let rule =
        format!("a message id is 1 to {MESSAGE_ID_BYTES_MAX} printable ASCII characters (clients make 34 hex digits)");
    Err(Fault::new(Code::IllegalMessageId, rule))
}

fn body(len: usize, limits: &Limits) -> Result<(), Fault> {
    if len == 0 {
        return Err(Fault::new(Code::MessageBodyEmpty, "the message body is empty; send at least one byte"));
    }
    if len as u64 > limits.message_bytes_max {
        let max = units::format_bytes(limits.message_bytes_max);
        let text = format!("the message body has {len} bytes, at most {max} are allowed; send less or compress it");
        return Err(Fault::new(Code::MessageBodyTooLarge, text));
    }
    Ok(())
}

fn tag(tag: Option<&str>) -> Result<(), Fault> {
    let Some(tag) = tag else { return Ok(()) };
    text("message tag", tag, Code::IllegalMessageTag)?;
    if tag.contains('|') {
        let rule = format!(
            "message tag {tag:?} contains |, which separates tags in filters; a message has one tag without it"
        );
        return Err(Fault::new(Code::IllegalMessageTag, rule));
    }
    Ok(())
}

fn message_group(group: Option<&str>) -> Result<(), Fault> {
    let Some(group) = group else { return Ok(()) };
    if group.len() > MESSAGE_GROUP_BYTES_MAX {
        let text =
            format!("the message group has {} bytes, at most {MESSAGE_GROUP_BYTES_MAX} are allowed", group.len());
        return Err(Fault::new(Code::IllegalMessageGroup, text));
    }
    text("message group", group, Code::IllegalMessageGroup)
}

/// Not blank (empty is "none" to RocketMQ) and without control characters.
fn text(what: &str, text: &str, code: Code) -> Result<(), Fault> {
    if !text.is_empty() && text.trim().is_empty() {
        return Err(Fault::new(code, format!("the {what} consists of blanks; leave it out or write something")));
    }
    if text.chars().any(char::is_control) {
        return Err(Fault::new(code, format!("the {what} {text:?} has control characters; remove them")));
    }
    Ok(())
}

fn properties(message: &v2::Message, system: &v2::SystemProperties) -> Result<(), Fault> {
    let user = &message.user_properties;
    if user.len() > USER_PROPERTIES_MAX {
        let text = format!("the message has {} user properties, at most {USER_PROPERTIES_MAX} are allowed", user.len());
        return Err(Fault::new(Code::MessagePropertiesTooLarge, text));
    }
    for (key, value) in user {
        let problem = if key.trim().is_empty() {
            "is blank; give it a name"
        } else if RESERVED_PROPERTY_KEYS.binary_search(&key.as_str()).is_ok() {
            "is reserved by RocketMQ; choose another key"
        } else if key.chars().chain(value.chars()).any(char::is_control) {
            "has control characters in its key or value; remove them"
        } else {
            continue;
        };
        return Err(Fault::new(Code::IllegalMessagePropertyKey, format!("user property {key:?} {problem}")));
    }
    let user_bytes: usize = user.iter().map(|(key, value)| key.len() + value.len()).sum();
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let system_bytes = optional(&system.tag)
        + system.keys.iter().map(|key| key.len() + 1).sum::<usize>()
        + optional(&system.trace_context)
        + system.born_host.len()
        + system.message_id.len();
    for (what, bytes, max) in [
        ("user properties", user_bytes, USER_PROPERTY_BYTES_MAX),
        ("properties", user_bytes + system_bytes, PROPERTY_BYTES_MAX),
    ] {
        if bytes > max {
            let text =
                format!("the message has {bytes} bytes of {what}, at most {max} are allowed; move data into the body");
            return Err(Fault::new(Code::MessagePropertiesTooLarge, text));
        }
    }
    Ok(())
}

/// Refuses every kind of message but the plain, the ordered, the delayed and the transactional one. A message with a message group is ordered, whatever
/// type it states, as in RocketMQ; one that states to be ordered and names no message group cannot be.
fn built_type(system: &v2::SystemProperties) -> Result<(), Fault> {
    let kind = MessageType::try_from(system.message_type)
        .map_err(|_| Fault::new(Code::BadRequest, format!("message type {} is unknown", system.message_type)))?;
    let what = match kind {
        MessageType::Fifo if system.message_group.as_ref().is_none_or(String::is_empty) => {
            let text = "the message is of type FIFO and names no message group; set one";
            return Err(Fault::new(Code::IllegalMessageGroup, text));
        }
        MessageType::Lite => Some("sending to lite topics"),
        MessageType::Priority => Some("sending messages with a priority"),
        MessageType::Normal
        | MessageType::Unspecified
        | MessageType::Fifo
        | MessageType::Delay
        | MessageType::Transaction => None,
    };
    let what = what.or_else(|| {
        if system.lite_topic.is_some() {
            Some("sending to lite topics")
        } else if system.priority.is_some() {
            Some("sending messages with a priority")
        } else {
            None
        }
    });
    what.map_or(Ok(()), |what| Err(Fault::not_built(what)))
}

/// Which messages a receive wants, as the leader takes it: nothing for all of them. Without a type it is about tags.
pub(crate) fn filter(filter: Option<&v2::FilterExpression>) -> Result<Option<FilterText>, Fault> {
    let Some(v2::FilterExpression { r#type, expression }) = filter else { return Ok(None) };
    let kind = match FilterType::try_from(*r#type) {
        Ok(FilterType::Sql) => FilterKind::Sql,
        Ok(FilterType::Tag | FilterType::Unspecified) => FilterKind::Tag,
        Err(_) => {
            let text = format!("filter type {type} is unknown; filter by tag or by SQL");
            return Err(Fault::new(Code::IllegalFilterExpression, text));
        }
    };
    let parsed = Filter::parse(kind, expression)
        .map_err(|error| Fault::new(Code::IllegalFilterExpression, error.to_string()))?;
    let wanted = FilterText { sql: kind == FilterKind::Sql, text: expression.clone() };
    Ok((parsed != Filter::All).then_some(wanted))
}

/// How many messages to hand out: none asked for means RocketMQ's 32, more than the limit means the limit.
pub(crate) fn batch_size(asked: i32, limits: &Limits) -> Result<u16, Fault> {
    match u32::try_from(asked) {
        Ok(0) => Ok(limits.receive_batch_max.min(32)),
        Ok(asked) => Ok(u16::try_from(asked).unwrap_or(u16::MAX).min(limits.receive_batch_max)),
        Err(_) => Err(Fault::new(Code::BadRequest, format!("batch size {asked} is negative; ask for 1 or more"))),
    }
}

/// The invisible duration of a receive. A push consumer sends none and has it renewed by the server.
pub(crate) fn receive_invisible(duration: Option<&prost_types::Duration>, limits: &Limits) -> Result<Duration, Fault> {
    invisible(duration, limits.invisible_min, limits.invisible_max)
}

/// The new invisible duration of a delivery; zero shows it at once.
pub(crate) fn changed_invisible(duration: Option<&prost_types::Duration>, limits: &Limits) -> Result<Duration, Fault> {
    invisible(duration, Duration::ZERO, limits.invisible_max)
}

fn invisible(duration: Option<&prost_types::Duration>, min: Duration, max: Duration) -> Result<Duration, Fault> {
    let given = duration.and_then(to_duration);
    given.filter(|given| (min..=max).contains(given)).ok_or_else(|| {
        let (min, max) = (units::format_duration(min), units::format_duration(max));
        let found = match (duration, given) {
            (None, _) => "is missing".to_owned(),
            (Some(_), None) => "is negative or malformed".to_owned(),
            (Some(_), Some(given)) => format!("of {} ms is out of range", given.as_millis()),
        };
        Fault::new(Code::IllegalInvisibleTime, format!("the invisible duration {found}; set it to {min} to {max}"))
    })
}

/// How long a receive may wait, if the client says so.
pub(crate) fn long_poll(duration: Option<&prost_types::Duration>) -> Result<Option<Duration>, Fault> {
    let Some(duration) = duration else { return Ok(None) };
    to_duration(duration).map(Some).ok_or_else(|| {
        Fault::new(Code::IllegalPollingTime, "the long polling timeout is negative or malformed; set it to 0s or more")
    })
}

fn to_duration(duration: &prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(duration.seconds).ok()?, nanos))
}

/// The attempt id of a receive, if it has one.
pub(crate) fn attempt_id(id: Option<&str>) -> Result<Option<&str>, Fault> {
    match id.filter(|id| !id.is_empty()) {
        Some(id) if id.len() > ATTEMPT_ID_BYTES_MAX => {
            Err(Fault::new(Code::BadRequest, format!("the attempt id is longer than {ATTEMPT_ID_BYTES_MAX} bytes")))
        }
        id => Ok(id),
    }
}

/// The free texts that newer clients put into their settings.
pub(crate) fn client_properties<'a>(
    properties: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), Fault> {
    let fault = |text: String| Fault::new(Code::InvalidClientProperties, text);
    if properties.len() > 32 {
        return Err(fault(format!("{} client properties were given, at most 32 are allowed", properties.len())));
    }
    let mut bytes = 0;
    for (key, value) in properties {
        let legal = key.starts_with(|c: char| c.is_ascii_alphabetic())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !legal || key.len() > 64 || value.len() > 256 {
            return Err(fault(format!(
                "client property {key:?} is illegal; a key has at most 64 of a-z A-Z 0-9 _ . - and begins with a letter, \
                 a value has at most 256 bytes"
            )));
        }
        bytes += key.len() + value.len();
    }
    if bytes > 4 << 10 {
        return Err(fault(format!("the client properties have {bytes} bytes, at most 4096 are allowed")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "validate_test.rs"]
mod tests;
