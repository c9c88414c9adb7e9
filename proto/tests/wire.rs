//! Holds our compiled protocol against `rocketmq-v2-wire.json`, a list of the facts of RocketMQ 5's `apache.rocketmq.v2`.
//!
//! Both sides are written as sets of sentences ("field Message.body = 4: bytes"), so a difference in either direction prints
//! itself: what is on the wire there and missing here, and what is here and nobody else would understand.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use serde_json::Value;

const PACKAGE: &str = "apache.rocketmq.v2";

/// One sentence for each thing another implementation relies on.
type Facts = BTreeSet<String>;

/// Damages a file on purpose.
type Change = fn(&mut FileDescriptorProto);

#[test]
fn our_protocol_is_rocketmq_s_name_by_name_and_number_by_number() {
    let (ours, theirs) = (facts_of_descriptors(&compiled()), facts_of_list(&list()));
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let invented: Vec<_> = ours.difference(&theirs).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing here: {missing:#?}\nonly here: {invented:#?}");
}

/// Without this, a reader that finds nothing on both sides would pass the test above.
#[test]
fn the_list_has_every_message_enum_and_rpc() {
    let facts = facts_of_list(&list());
    let count = |kind: &str| facts.iter().filter(|fact| fact.starts_with(kind)).count();
    assert_eq!(
        (count("message "), count("enum "), count("rpc MessagingService."), count("rpc Admin.")),
        (106, 17, 17, 16)
    );
}

#[test]
fn a_changed_number_type_label_or_stream_is_noticed() {
    let whole = facts_of_descriptors(&compiled());
    let changes: [(&str, Change); 4] = [
        ("field ", |file| message(file, "Message").field[3].number = Some(5)),
        ("field ", |file| message(file, "Message").field[3].set_type(Type::String)),
        ("field ", |file| message(file, "Endpoints").field[1].set_label(Label::Optional)),
        ("rpc ", |file| file.service[0].method[4].server_streaming = Some(false)),
    ];
    for (kind, change) in changes {
        let mut set = compiled();
        let name = if kind == "rpc " { "service.proto" } else { "definition.proto" };
        let file = set.file.iter_mut().find(|file| file.name().ends_with(name)).expect("compiled");
        change(file);
        let facts = facts_of_descriptors(&set);
        let gone: Vec<_> = whole.difference(&facts).collect();
        assert!(gone.len() == 1 && gone[0].starts_with(kind), "{gone:?}");
    }
}

fn compiled() -> FileDescriptorSet {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    FileDescriptorSet::decode(bytes).expect("written by build.rs")
}

fn list() -> Value {
    serde_json::from_str(include_str!("rocketmq-v2-wire.json")).expect("committed JSON")
}

fn message<'a>(file: &'a mut FileDescriptorProto, name: &str) -> &'a mut DescriptorProto {
    file.message_type.iter_mut().find(|message| message.name() == name).expect("in the file")
}

// What was compiled.

fn facts_of_descriptors(set: &FileDescriptorSet) -> Facts {
    let mut facts = Facts::new();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        for message in &file.message_type {
            add_message(&mut facts, "", message);
        }
        for one in &file.enum_type {
            add_enum(&mut facts, "", one);
        }
        for service in &file.service {
            for method in &service.method {
                facts.insert(rpc(
                    service.name(),
                    method.name(),
                    (method.client_streaming(), &local(method.input_type())),
                    (method.server_streaming(), &local(method.output_type())),
                ));
            }
        }
    }
    facts
}

fn add_message(facts: &mut Facts, outer: &str, message: &DescriptorProto) {
    let name = format!("{outer}{}", message.name());
    facts.insert(format!("message {name}"));
    for field in &message.field {
        let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
        let oneof = oneof.map(|index| message.oneof_decl[index as usize].name());
        let map = map_entry(message, field);
        let label = if field.label() == Label::Repeated && map.is_none() {
            "repeated "
        } else if field.proto3_optional() {
            "optional "
        } else {
            ""
        };
        let kind = map.unwrap_or_else(|| type_of(field));
        facts.insert(field_fact(&name, field.name(), field.number().into(), label, &kind, oneof));
    }
    let inner = format!("{name}.");
    for nested in message.nested_type.iter().filter(|nested| !is_map_entry(nested)) {
        add_message(facts, &inner, nested);
    }
    for nested in &message.enum_type {
        add_enum(facts, &inner, nested);
    }
}

fn add_enum(facts: &mut Facts, outer: &str, one: &EnumDescriptorProto) {
    let name = format!("{outer}{}", one.name());
    facts.insert(format!("enum {name}"));
    for value in &one.value {
        facts.insert(format!("value {name}.{} = {}", value.name(), value.number()));
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

/// `map<key,value>` if the field is a map: protobuf writes one as a repeated message of its own.
fn map_entry(message: &DescriptorProto, field: &FieldDescriptorProto) -> Option<String> {
    let entry = message.nested_type.iter().find(|nested| {
        is_map_entry(nested) && field.type_name().ends_with(&format!(".{}.{}", message.name(), nested.name()))
    })?;
    Some(format!("map<{},{}>", type_of(&entry.field[0]), type_of(&entry.field[1])))
}

fn type_of(field: &FieldDescriptorProto) -> String {
    if field.type_name.is_some() {
        return local(field.type_name());
    }
    field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase()
}

/// The name as a file of the package would write it.
fn local(type_name: &str) -> String {
    let full = type_name.trim_start_matches('.');
    full.strip_prefix(PACKAGE).map_or(full, |rest| rest.trim_start_matches('.')).to_owned()
}

// What the list says.

fn facts_of_list(list: &Value) -> Facts {
    assert_eq!(list["package"], PACKAGE);
    let mut facts = Facts::new();
    for message in array(&list["messages"]) {
        let name = text(&message["name"]);
        facts.insert(format!("message {name}"));
        for field in array(&message["fields"]) {
            let label = match (field["repeated"].as_bool(), field["optional"].as_bool()) {
                (Some(true), _) => "repeated ",
                (_, Some(true)) => "optional ",
                _ => "",
            };
            facts.insert(field_fact(
                name,
                text(&field["name"]),
                number(&field["number"]),
                label,
                text(&field["type"]),
                field["oneof"].as_str(),
            ));
        }
    }
    for one in array(&list["enums"]) {
        let name = text(&one["name"]);
        facts.insert(format!("enum {name}"));
        for value in array(&one["values"]) {
            facts.insert(format!("value {name}.{} = {}", text(&value["name"]), number(&value["number"])));
        }
    }
    for service in array(&list["services"]) {
        for method in array(&service["methods"]) {
            facts.insert(rpc(
                text(&service["name"]),
                text(&method["name"]),
                (method["client_streaming"] == true, text(&method["request"])),
                (method["server_streaming"] == true, text(&method["response"])),
            ));
        }
    }
    facts
}

fn array(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn number(value: &Value) -> i64 {
    value.as_i64().expect("a number")
}

// The sentences, written once for both sides.

fn field_fact(message: &str, name: &str, number: i64, label: &str, kind: &str, oneof: Option<&str>) -> String {
    let oneof = oneof.map(|name| format!(" in oneof {name}")).unwrap_or_default();
    format!("field {message}.{name} = {number}: {label}{kind}{oneof}")
}

fn rpc(service: &str, name: &str, request: (bool, &str), response: (bool, &str)) -> String {
    let stream = |(streams, kind): (bool, &str)| format!("{}{kind}", if streams { "stream " } else { "" });
    format!("rpc {service}.{name}({}) returns ({})", stream(request), stream(response))
}
