//! The listener against clients that are slow, large, many or wrong.

use std::time::Instant;

use quorate_proto::doors::{Net, TcpNet};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    server::{CONNECTION_TIMEOUT, CONNECTIONS_MAX, HEAD_BYTES_MAX, HEADERS_MAX},
    *,
};

/// A listener, and what ends it.
async fn start() -> (String, CancellationToken, JoinSet<()>) {
    let listener = TcpNet.listen("127.0.0.1:0").await.expect("a free port");
    let (address, stop) = (listener.local_address(), CancellationToken::new());
    let mut tasks = JoinSet::new();
    let pages = Pages { health: Arc::new(Health::new()), scrape: Arc::default(), cluster: Arc::default() };
    tasks.spawn(serve(pages, listener, stop.clone()));
    (address, stop, tasks)
}

async fn said(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    // An end without an answer is an answer too.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn pages_answer_with_code_kind_and_reason() {
    let (address, _stop, _tasks) = start().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let live = said(&address, &get("/health/live")).await;
    assert!(live.starts_with("HTTP/1.1 200 ") && live.contains("application/json"), "{live}");
    assert!(live.ends_with("{\"check\":\"live\",\"ok\":true,\"why\":[]}\n"), "{live}");
    let ready = said(&address, &get("/health/ready?x=1")).await;
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("reads its log"), "{ready}");
    assert!(said(&address, &get("/health/safe-to-stop")).await.starts_with("HTTP/1.1 503 "));
    assert!(said(&address, &get("/metrics")).await.starts_with("HTTP/1.1 503 "));
    assert!(said(&address, &get("/cluster")).await.starts_with("HTTP/1.1 503 "));
    assert!(said(&address, &get("/")).await.contains("/health/safe-to-stop"));
    for path in ["/health", "/health/", "/health/dead", "//", "/metric"] {
        assert!(said(&address, &get(path)).await.starts_with("HTTP/1.1 404 "), "{path}");
    }
}

#[tokio::test]
async fn only_get_and_head_are_answered() {
    let (address, _stop, _tasks) = start().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        let answer = said(&address, &format!("{method} /health/live HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"), "{answer}");
    }
    let head = said(&address, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_head_that_is_too_large_or_never_ends_is_cut_off() {
    let (address, _stop, _tasks) = start().await;
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
    let answer = said(&address, &large).await;
    assert!(!answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1));
    let answer = said(&address, &many).await;
    assert!(!answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let began = Instant::now();
    let answer = said(&address, "GET / HTTP/1.1\r\nHost: x\r\n").await;
    assert!(!answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(began.elapsed() < CONNECTION_TIMEOUT, "cut by the timeout of the head");
}

#[tokio::test]
async fn whoever_sits_on_every_connection_keeps_nobody_out() {
    let (address, _stop, _tasks) = start().await;
    let mut idle = Vec::new();
    for _ in 0..2 * CONNECTIONS_MAX {
        idle.push(TcpStream::connect(&address).await.expect("it listens"));
    }
    let answer = said(&address, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The first of them has made way.
    let mut first = idle.swap_remove(0);
    assert_eq!(first.read(&mut [0; 64]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn stopping_cuts_what_is_under_way() {
    let (address, stop, mut tasks) = start().await;
    let mut idle = TcpStream::connect(&address).await.expect("it listens");
    stop.cancel();
    tasks.join_next().await.expect("one task").expect("no panic");
    assert_eq!(idle.read(&mut [0; 64]).await.unwrap_or(0), 0);
}
