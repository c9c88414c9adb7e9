//! One table per rule: the input at the edge that is let in, and the code of the one behind it.

use std::collections::HashMap;

use quorate_proto::v2::{FilterExpression, Resource, SystemProperties};

use super::*;

fn named(name: &str) -> Option<Resource> {
    Some(Resource { resource_namespace: String::new(), name: name.into() })
}

fn plain() -> v2::Message {
    v2::Message {
        topic: named("t"),
        system_properties: Some(SystemProperties {
            message_id: "01AA01020304FF12340000010200000000".into(),
            message_type: MessageType::Normal as i32,
            ..Default::default()
        }),
        body: "x".into(),
        ..Default::default()
    }
}

/// The code that a plain message gets after `change`; 0 if it is let in.
fn code(change: impl FnOnce(&mut v2::Message, &mut SystemProperties)) -> i32 {
    let mut message = plain();
    let mut system = message.system_properties.take().expect("set");
    change(&mut message, &mut system);
    message.system_properties = Some(system);
    super::message(&message, &Limits::default(), IMMUNITY_MAX).map_or_else(|fault| fault.code as i32, |()| 0)
}

const IMMUNITY_MAX: Duration = Duration::from_secs(3600);

#[test]
fn a_half_message_is_let_in_with_what_it_says_of_its_checks() {
    let half = |change: fn(&mut v2::Message, &mut SystemProperties)| {
        code(|message, system| {
            system.message_type = MessageType::Transaction as i32;
            change(message, system);
        })
    };
    let recovery = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    assert_eq!(half(|_, _| {}), 0);
    assert_eq!(half(|_, system| system.message_group = Some(String::new())), 0, "an empty one is none");
    assert_eq!(half(|_, system| system.message_group = Some("g".into())), 40014);
    assert_eq!(half(|_, system| system.delivery_timestamp = Some(prost_types::Timestamp::default())), 40014);
    for (seconds, nanos, code) in [(0, 0, 0), (3600, 0, 0), (3600, 1, 40000), (-1, 0, 40000), (0, -1, 40000)] {
        let named = recovery(seconds, nanos);
        let message = v2::Message {
            system_properties: Some(SystemProperties {
                message_type: MessageType::Transaction as i32,
                orphaned_transaction_recovery_duration: named,
                ..plain().system_properties.expect("set")
            }),
            ..plain()
        };
        let answer = super::message(&message, &Limits::default(), IMMUNITY_MAX);
        assert_eq!(answer.map_or_else(|fault| fault.code as i32, |()| 0), code, "{seconds} s {nanos} ns");
    }
    let property = |text: &str| std::collections::HashMap::from([(IMMUNITY_PROPERTY.to_owned(), text.to_owned())]);
    assert_eq!(half(|message, _| message.user_properties = [(IMMUNITY_PROPERTY.into(), "3601".into())].into()), 40000);
    assert_eq!(immunity(None, &property("7")), Some(Duration::from_secs(7)));
    assert_eq!(immunity(None, &property("soon")), None);
    assert_eq!(
        immunity(recovery(2, 0).as_ref(), &property("7")),
        Some(Duration::from_secs(2)),
        "the protocol's own leads"
    );
}

#[test]
fn a_plain_message_is_let_in() {
    assert_eq!(code(|_, _| {}), 0);
    assert_eq!(code(|_, system| system.message_type = 0), 0);
}

#[test]
fn reserved_keys_are_sorted_because_they_are_searched_by_halving() {
    assert!(RESERVED_PROPERTY_KEYS.is_sorted());
}

#[test]
fn names_are_rocketmq_s_and_carry_their_namespace() {
    let code = |fault: Fault| fault.code as i32;
    assert_eq!(topic(named("order").as_ref(), "").map(|name| name.to_string()), Ok("order".into()));
    assert_eq!(topic(named("order").as_ref(), "shop").map(|name| name.to_string()), Ok("shop%order".into()));
    let own = Resource { resource_namespace: "own".into(), name: "order".into() };
    assert_eq!(topic(Some(&own), "shop").map(|name| name.to_string()), Ok("own%order".into()));
    // Dead letters are a consumer group's, so its name carries the namespace.
    for (namespace, full) in [("shop", "%DLQ%shop%billing"), ("", "%DLQ%billing")] {
        let dead = topic(named("%DLQ%billing").as_ref(), namespace);
        assert_eq!(dead.map(|name| name.to_string()), Ok(full.into()));
    }
    for bad in [None, named(""), named("a b"), named("TBW102"), named(&"t".repeat(128))] {
        assert_eq!(topic(bad.as_ref(), "").map_err(code), Err(40002), "{bad:?}");
    }
    assert_eq!(topic(named("").as_ref(), "shop").map_err(code), Err(40002));
    for bad in [None, named(""), named("a.b"), named(&"g".repeat(121))] {
        assert_eq!(group(bad.as_ref(), "").map_err(code), Err(40003), "{bad:?}");
    }
}

#[test]
fn a_call_has_one_topic_and_a_bounded_number_of_messages() {
    let limits = Limits { messages_per_call_max: 2, ..Limits::default() };
    let code = |messages: &[v2::Message]| send(messages, &limits).map_or_else(|fault| fault.code as i32, |_| 0);
    let other = v2::Message { topic: named("u"), ..plain() };
    assert_eq!(code(&[plain(), plain()]), 0);
    assert_eq!(code(&[]), 40016);
    assert_eq!(code(&[plain(), other]), 40016);
    assert_eq!(code(&[plain(), plain(), plain()]), 41300);
}

#[test]
fn a_body_has_one_byte_to_four_mebibytes() {
    assert_eq!(code(|message, _| message.body = vec![0; 4 << 20].into()), 0);
    assert_eq!(code(|message, _| message.body = vec![0; (4 << 20) + 1].into()), 41301);
    assert_eq!(code(|message, _| message.body.clear()), 41302);
}

#[test]
fn ids_tags_keys_and_groups_have_their_own_codes() {
    assert_eq!(code(|_, system| system.message_id.clear()), 40009);
    assert_eq!(code(|_, system| system.message_id = "a b".into()), 40009);
    assert_eq!(code(|_, system| system.message_id = "a".repeat(129)), 40009);
    for (tag, expected) in [("paid", 0), ("", 0), ("  ", 40004), ("a|b", 40004), ("a\n", 40004)] {
        assert_eq!(code(|_, system| system.tag = Some(tag.into())), expected, "{tag:?}");
    }
    for (key, expected) in [("order 7", 0), (" ", 40005), ("a\u{1}b", 40005)] {
        assert_eq!(code(|_, system| system.keys = vec!["fine".into(), key.into()]), expected, "{key:?}");
    }
    for group in [" ", "a\tb", &"g".repeat(65)] {
        assert_eq!(code(|_, system| system.message_group = Some(group.into())), 40006, "{group:?}");
    }
}

#[test]
fn user_properties_are_bounded_in_number_bytes_and_names() {
    let with =
        |properties: Vec<(String, String)>| code(|message, _| message.user_properties = HashMap::from_iter(properties));
    let many = |count: usize| (0..count).map(|at| (format!("k{at}"), "v".to_owned())).collect();
    assert_eq!(with(many(128)), 0);
    assert_eq!(with(many(129)), 43101);
    assert_eq!(with(vec![("k".into(), "v".repeat((16 << 10) - 1))]), 0);
    assert_eq!(with(vec![("k".into(), "v".repeat(16 << 10))]), 43101);
    assert_eq!(code(|_, system| system.keys = vec!["k".repeat(32_767)]), 43101);
    for (key, value) in [("KEYS", "v"), ("__transactionId__", "v"), (" ", "v"), ("a\u{1}", "v"), ("a", "v\u{2}")] {
        assert_eq!(with(vec![(key.into(), value.into())]), 40007, "{key:?}");
    }
}

#[test]
fn a_delivery_timestamp_and_the_type_delay_go_together() {
    let timestamp = |nanos| Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos });
    let typed = |kind: MessageType, nanos| {
        code(|_, system| {
            system.message_type = kind as i32;
            system.delivery_timestamp = timestamp(nanos);
        })
    };
    assert_eq!(typed(MessageType::Delay, 0), 0);
    assert_eq!(typed(MessageType::Unspecified, 999_999_999), 0);
    assert_eq!(code(|_, system| system.message_type = MessageType::Delay as i32), 40012, "no timestamp");
    assert_eq!(typed(MessageType::Delay, 1_000_000_000), 40012);
    assert_eq!(typed(MessageType::Delay, -1), 40012);
    assert_eq!(typed(MessageType::Normal, 0), 40014);
    assert_eq!(typed(MessageType::Transaction, 0), 40014);
    let with_group = code(|_, system| {
        system.message_type = MessageType::Delay as i32;
        system.delivery_timestamp = timestamp(0);
        system.message_group = Some("g".into());
    });
    assert_eq!(with_group, 40014);
}

#[test]
fn what_is_not_built_is_refused_by_type_and_by_property() {
    for kind in [MessageType::Lite, MessageType::Priority] {
        assert_eq!(code(|_, system| system.message_type = kind as i32), 50100, "{kind:?}");
    }
    assert_eq!(code(|_, system| system.lite_topic = Some("l".into())), 50100);
    assert_eq!(code(|_, system| system.priority = Some(1)), 50100);
    assert_eq!(code(|_, system| system.message_type = 99), 40000);
}

#[test]
fn a_message_with_a_message_group_is_ordered_and_one_that_says_so_needs_one() {
    for kind in [MessageType::Unspecified, MessageType::Normal, MessageType::Fifo] {
        let grouped = |group: Option<&str>| {
            code(|_, system| {
                system.message_type = kind as i32;
                system.message_group = group.map(str::to_owned);
            })
        };
        assert_eq!(grouped(Some("order 7")), 0, "{kind:?}");
        let without = if kind == MessageType::Fifo { 40006 } else { 0 };
        assert_eq!((grouped(None), grouped(Some(""))), (without, without), "{kind:?}");
    }
    let delayed_in_order = code(|_, system| {
        system.message_group = Some("g".into());
        system.delivery_timestamp = Some(Default::default());
    });
    assert_eq!(delayed_in_order, 40014);
}

#[test]
fn a_filter_is_for_everything_or_goes_to_the_leader_as_it_was_written() {
    let asked = |kind: i32, expression: &str| {
        let expression = FilterExpression { r#type: kind, expression: expression.into() };
        filter(Some(&expression)).map_err(|fault| fault.code as i32)
    };
    assert_eq!(filter(None), Ok(None));
    for (kind, expression) in [(0, ""), (0, "*"), (1, "*"), (1, " * ")] {
        assert_eq!(asked(kind, expression), Ok(None), "{kind} {expression:?}");
    }
    for (kind, text) in [(0, "TagA"), (1, "TagA || TagB"), (2, "a > 1"), (2, "TRUE")] {
        let wanted = FilterText { sql: kind == 2, text: text.to_owned() };
        assert_eq!(asked(kind, text), Ok(Some(wanted)), "{kind} {text:?}");
    }
    for (kind, expression) in [(9, "*"), (1, "a | b"), (1, "||"), (2, ""), (2, "*"), (2, "a >")] {
        assert_eq!(asked(kind, expression), Err(40010), "{kind} {expression:?}");
    }
}

#[test]
fn invisible_durations_are_ten_seconds_to_twelve_hours() {
    let limits = Limits::default();
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let received =
        |given: Option<prost_types::Duration>| receive_invisible(given.as_ref(), &limits).map_err(|f| f.code as i32);
    assert_eq!(received(Some(seconds(10))), Ok(Duration::from_secs(10)));
    assert_eq!(received(Some(seconds(43_200))), Ok(Duration::from_secs(43_200)));
    for bad in [None, Some(seconds(9)), Some(seconds(43_201)), Some(seconds(-1)), Some(seconds(i64::MAX))] {
        assert_eq!(received(bad), Err(40011), "{bad:?}");
    }
    let malformed = prost_types::Duration { seconds: 20, nanos: -1 };
    assert_eq!(received(Some(malformed)), Err(40011));
    assert_eq!(changed_invisible(Some(&seconds(0)), &limits), Ok(Duration::ZERO));
    assert!(changed_invisible(None, &limits).is_err());
}

#[test]
fn batch_sizes_polling_times_and_attempt_ids_are_bounded() {
    let limits = Limits::default();
    assert_eq!(batch_size(0, &limits), Ok(32));
    assert_eq!(batch_size(7, &limits), Ok(7));
    assert_eq!(batch_size(i32::MAX, &limits), Ok(1024));
    assert!(batch_size(-1, &limits).is_err());
    assert_eq!(long_poll(None), Ok(None));
    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    assert_eq!(long_poll(Some(&negative)).map_err(|fault| fault.code as i32), Err(40018));
    assert_eq!(attempt_id(Some("")), Ok(None));
    assert_eq!(attempt_id(Some("a")), Ok(Some("a")));
    assert!(attempt_id(Some(&"a".repeat(257))).is_err());
}

#[test]
fn client_properties_are_bounded() {
    let check = |properties: &[(&str, &str)]| {
        let map: HashMap<String, String> = properties.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        client_properties(map.iter()).map_or_else(|fault| fault.code as i32, |()| 0)
    };
    assert_eq!(check(&[("app.name-1", "shop")]), 0);
    assert_eq!(check(&[("1a", "v")]), 40021);
    assert_eq!(check(&[("a b", "v")]), 40021);
    assert_eq!(check(&[("a", &"v".repeat(257))]), 40021);
    let many: Vec<String> = (0..33).map(|at| format!("k{at}")).collect();
    assert_eq!(check(&many.iter().map(|key| (key.as_str(), "v")).collect::<Vec<_>>()), 40021);
}

#[test]
fn a_queue_is_named_by_topic_and_number_and_one_that_stands_for_all_is_not_one() {
    let named = |id| {
        let topic = Some(v2::Resource { resource_namespace: String::new(), name: "t".into() });
        queue(Some(&v2::MessageQueue { topic, id, ..v2::MessageQueue::default() }), "")
    };
    assert_eq!(named(7).map(|(topic, id)| (topic.to_string(), id)), Ok(("t".to_owned(), 7)));
    assert_eq!(named(-1).map_err(|fault| fault.code as i32), Err(40000));
    assert_eq!(queue(None, "").map_err(|fault| fault.code as i32), Err(40002));
}

#[test]
fn an_offset_and_a_time_are_checked() {
    assert_eq!((offset(0), offset(i64::MAX)), (Ok(0), Ok(i64::MAX as u64)));
    assert_eq!(offset(-1).map_err(|fault| fault.code as i32), Err(40019));
    let time = |seconds, nanos| query_time(Some(&prost_types::Timestamp { seconds, nanos }));
    assert_eq!((time(1, 0), time(1, 1), time(1, 1_000_000)), (Ok(1000), Ok(1001), Ok(1001)), "never before it");
    assert_eq!((time(-5, 7), time(i64::MAX, 0)), (Ok(0), Ok(u64::MAX)));
    assert_eq!(time(1, -1).map_err(|fault| fault.code as i32), Err(40000));
    assert_eq!(query_time(None).map_err(|fault| fault.code as i32), Err(40000));
}
