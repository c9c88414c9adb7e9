//! Who a producer or consumer is on the wire: its client id, the metadata headers of its calls, and its settings.

use std::{sync::Arc, time::Duration};

use quorate_proto::v2;
use tonic::metadata::{MetadataMap, MetadataValue};

/// Fixed for the life of a producer or consumer; cloned into each call.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) client_id: String,
    pub(crate) client_type: v2::ClientType,
    pub(crate) group: Option<v2::Resource>,
    /// Headers with `grpc-timeout` set for `request_timeout`, so that the usual call changes nothing and HTTP/2 sends an index.
    headers: MetadataMap,
    request_timeout: Duration,
}

impl Identity {
    /// `client_id` is made of printable ASCII.
    pub(crate) fn new(
        client_id: String,
        client_type: v2::ClientType,
        group: Option<&str>,
        request_timeout: Duration,
    ) -> Arc<Self> {
        let mut headers = MetadataMap::new();
        if let Ok(value) = MetadataValue::try_from(client_id.as_str()) {
            headers.insert("x-mq-client-id", value);
        }
        // The date and request id headers of other clients are left out: one serves a signature only, the other a trace, and both
        // would be sent in full with every call.
        headers.insert("x-mq-language", MetadataValue::from_static("RUST"));
        headers.insert("x-mq-client-version", MetadataValue::from_static(env!("CARGO_PKG_VERSION")));
        headers.insert("x-mq-protocol", MetadataValue::from_static("v2"));
        headers.insert("x-mq-protocol-version", MetadataValue::from_static("2.0.0"));
        headers.insert("grpc-timeout", grpc_timeout(request_timeout));
        let group = group.map(resource);
        Arc::new(Self { client_id, client_type, group, headers, request_timeout })
    }

    /// A request with these headers and a deadline for the server.
    pub(crate) fn request<T>(&self, body: T, timeout: Duration) -> tonic::Request<T> {
        let mut headers = self.headers.clone();
        if timeout != self.request_timeout {
            headers.insert("grpc-timeout", grpc_timeout(timeout));
        }
        tonic::Request::from_parts(headers, tonic::Extensions::default(), body)
    }

    /// A request without a deadline, for streams that live as long as the client.
    pub(crate) fn open_request<T>(&self, body: T) -> tonic::Request<T> {
        let mut headers = self.headers.clone();
        headers.remove("grpc-timeout");
        tonic::Request::from_parts(headers, tonic::Extensions::default(), body)
    }

    /// What the first message of the telemetry stream says.
    pub(crate) fn settings(&self, topics: Vec<(String, v2::FilterExpression)>) -> v2::TelemetryCommand {
        let topics = topics.into_iter().map(|(topic, expression)| (resource(&topic), expression));
        let pub_sub = match &self.group {
            None => v2::settings::PubSub::Publishing(v2::Publishing {
                topics: topics.map(|(topic, _)| topic).collect(),
                max_body_size: 0,
                validate_message_type: true,
            }),
            Some(group) => v2::settings::PubSub::Subscription(v2::Subscription {
                group: Some(group.clone()),
                subscriptions: topics
                    .map(|(topic, expression)| v2::SubscriptionEntry {
                        topic: Some(topic),
                        expression: Some(expression),
                    })
                    .collect(),
                ..v2::Subscription::default()
            }),
        };
        let settings = v2::Settings {
            client_type: Some(self.client_type.into()),
            request_timeout: prost_types::Duration::try_from(self.request_timeout).ok(),
            user_agent: Some(v2::Ua {
                language: v2::Language::Rust.into(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                platform: std::env::consts::OS.to_owned(),
                hostname: String::new(),
            }),
            pub_sub: Some(pub_sub),
            ..v2::Settings::default()
        };
        v2::TelemetryCommand { status: None, command: Some(v2::telemetry_command::Command::Settings(settings)) }
    }
}

/// A name as the wire has it.
pub(crate) fn resource(name: &str) -> v2::Resource {
    v2::Resource { resource_namespace: String::new(), name: name.to_owned() }
}

/// The filter that lets everything through.
pub(crate) fn every_message() -> v2::FilterExpression {
    v2::FilterExpression { r#type: v2::FilterType::Tag.into(), expression: "*".to_owned() }
}

/// Milliseconds, at least one, at most eight digits.
fn grpc_timeout(timeout: Duration) -> MetadataValue<tonic::metadata::Ascii> {
    let millis = timeout.as_millis().clamp(1, 99_999_999);
    MetadataValue::try_from(format!("{millis}m")).expect("digits and a letter are a valid header")
}
