//! SIGTERM while clients hold on to the node, and what is logged of the names they bring.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod nodes;

use std::time::{Duration, Instant};

use nodes::{Role, config};
use quorate_proto::{
    namesrv::{UnregisterRequest, name_server_client::NameServerClient},
    v2::{
        self, ReceiveMessageRequest, Resource, TelemetryCommand, messaging_service_client::MessagingServiceClient,
        receive_message_response::Content,
    },
};
use tonic::{Request, transport::Endpoint};

/// Well within the ten seconds that Docker gives by default.
const GRACE: Duration = Duration::from_secs(8);

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-mq-client-id", "client-1".parse().unwrap());
    request.metadata_mut().insert("x-mq-language", "RUST".parse().unwrap());
    request
}

fn named(name: &str) -> Option<Resource> {
    Some(Resource { resource_namespace: String::new(), name: name.to_owned() })
}

/// Long polls and Telemetry streams have no end of their own, so a stop must end them.
#[tokio::test]
async fn a_node_stops_in_time_while_clients_wait_for_messages_and_hold_streams_open() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    let mut node = Role::start(&nodes::broker(&dir.path().join("data"), &["--config", &config]));
    let (client, http) = node.ready_both("client", "http");
    nodes::run_until_fine(&["topic", "create", "t", "--endpoints", &client]);

    let channel = Endpoint::from_shared(format!("http://{client}")).unwrap().connect().await.unwrap();
    let mut messaging = MessagingServiceClient::new(channel);
    let (said, commands) = tokio::sync::mpsc::channel::<TelemetryCommand>(1);
    let commands = futures_util::stream::unfold(commands, |mut commands| async move {
        commands.recv().await.map(|command| (command, commands))
    });
    let mut telemetry = messaging.telemetry(request(commands)).await.unwrap().into_inner();
    let poll = ReceiveMessageRequest {
        group: named("g"),
        message_queue: Some(v2::MessageQueue { topic: named("t"), ..Default::default() }),
        batch_size: 1,
        invisible_duration: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        long_polling_timeout: Some(prost_types::Duration { seconds: 29, nanos: 0 }),
        ..Default::default()
    };
    let mut receive = messaging.receive_message(request(poll)).await.unwrap().into_inner();
    let deadline = Instant::now() + nodes::PATIENCE;
    let page = || nodes::get(&http, "/metrics").1;
    let is_parked = |page: &str| {
        page.lines().any(|line| line.starts_with("quorate_broker_receives_parked{") && line.ends_with(" 1"))
    };
    while !is_parked(&page()) {
        assert!(Instant::now() < deadline, "the receive is not parked");
        tokio::task::yield_now().await;
    }

    let began = Instant::now();
    let stopped = tokio::task::spawn_blocking(move || node.stop());
    // The receive ends with "no message", as at the end of a long poll.
    let first = receive.message().await.unwrap().unwrap();
    assert!(matches!(first.content, Some(Content::Status(status)) if status.code == 40401));
    while let Ok(Some(_)) = telemetry.message().await {}
    assert_eq!(stopped.await.unwrap().code(), Some(0));
    assert!(began.elapsed() < GRACE, "{:?}", began.elapsed());
    drop(said);
}

/// What a stranger names is told in one line, in which nothing is obeyed by a terminal.
#[tokio::test]
async fn a_name_with_control_characters_stays_within_its_log_line() {
    for format in ["text", "json"] {
        let mut server = Role::start(&["namesrv", "--listen", "127.0.0.1:0", "--log-format", format]);
        let address = server.ready("name_server");
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let group = "a\n\u{1b}[2J\r\u{9b}forged".to_owned();
        let goodbye = UnregisterRequest { cluster: "c".to_owned(), group, number: 7 };
        NameServerClient::new(channel).unregister(goodbye).await.unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let line = server.line("node left");
            assert_eq!(server.stop().code(), Some(0));
            line
        });
        let line = line.await.unwrap();
        assert!(line.contains("forged") && !line.contains(char::is_control), "{line:?}");
    }
}
