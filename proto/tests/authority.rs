//! The bytes of official clients with two addresses, against a real server: answered through [`incoming`], refused without it.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use quorate_proto::doors::{Net as _, NetListener, Stream, TcpNet, incoming};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Preface, SETTINGS, and SETTINGS acknowledged.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";

/// First header block of grpc-core 1.x for the target `ipv4:127.0.0.1:28091,127.0.0.1:28092`, up to the authority.
const CORE_FIRST: &[u8] = b"\x86\x83\x44\x0d/test.Seen/It\x40\x0a:authority\x1f127.0.0.1:28091,127.0.0.1:28092";
/// The next ones: the authority and the path (62 is the newest entry) by their indices.
const CORE_NEXT: &[u8] = b"\x86\x83\xbf\xbe";
/// First header block of grpc-go for the same two; the text is Huffman's form of `127.0.0.1:28091%2C127.0.0.1:28092`.
const GO_FIRST: &[u8] = b"\x83\x86\x44\x0d/test.Seen/It\x41\x97\
    \x08\x9d\x5c\x0b\x81\x70\xdc\x13\xc0\x7c\x2a\x8a\xf0\x44\xea\xe0\x5c\x0b\x86\xe0\x9e\x03\xe2";
const GO_NEXT: &[u8] = b"\x83\x86\xbf\xbe";

const FRAME_DATA: u8 = 0;
const FRAME_HEADERS: u8 = 1;
const FRAME_RESET: u8 = 3;
const PROTOCOL_ERROR: &[u8] = b"\0\0\0\x01";

/// Answers every call, and remembers the authority that it named.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl tower_service::Service<http::Request<tonic::body::Body>> for Seen {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        self.0.lock().expect("no test panicked with it").push(authority);
        ready(Ok(tonic::Status::ok("").into_http()))
    }
}

/// One connection, as it was accepted.
struct Bare(Option<Stream>);

impl futures_core::Stream for Bare {
    type Item = io::Result<Stream>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.take().map_or(Poll::Pending, |stream| Poll::Ready(Some(Ok(stream))))
    }
}

/// Which frame ended a stream, and its payload.
type End = (u8, Vec<u8>);

/// Makes three calls on one connection, one after the other; tells how each ended and which authorities the server saw.
async fn call_three_times(first: &[u8], next: &[u8], mended: bool) -> (Vec<End>, Vec<String>) {
    let listener = TcpNet.listen("127.0.0.1:0").await.expect("a free port");
    let mut client = TcpNet.connect(&listener.local_address()).await.expect("it listens");
    let seen = Seen::default();
    let server = tokio::spawn(serve(seen.clone(), listener, mended));

    let mut ends = Vec::new();
    client.write_all(GREETING).await.expect("the connection stays");
    for (stream, block) in [(1, first), (3, next), (5, next)] {
        let mut call = frame(FRAME_HEADERS, 4, stream, block);
        call.extend(frame(FRAME_DATA, 1, stream, b"\0\0\0\0\0"));
        client.write_all(&call).await.expect("the connection stays");
        let end = tokio::time::timeout(Duration::from_secs(20), end_of(&mut client, stream));
        ends.push(end.await.expect("each call ends"));
    }
    server.abort();
    let seen = seen.0.lock().expect("no test panicked with it").clone();
    (ends, seen)
}

async fn serve(seen: Seen, listener: Arc<dyn NetListener>, mended: bool) {
    let server = tonic::transport::Server::builder();
    if mended {
        server.serve_with_incoming(seen, incoming(listener)).await.expect("serves until aborted");
    } else {
        let stream = listener.accept().await.expect("the client connects");
        server.serve_with_incoming(seen, Bare(Some(stream))).await.expect("serves until aborted");
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Reads until the server answers or resets the stream.
async fn end_of(client: &mut Stream, stream: u8) -> End {
    loop {
        let mut header = [0; 9];
        client.read_exact(&mut header).await.expect("the connection stays");
        let mut payload = vec![0; usize::from(header[1]) << 8 | usize::from(header[2])];
        client.read_exact(&mut payload).await.expect("the connection stays");
        if header[8] == stream && [FRAME_HEADERS, FRAME_RESET].contains(&header[3]) {
            return (header[3], payload);
        }
    }
}

#[tokio::test]
async fn calls_with_a_list_as_authority_are_answered() {
    for (first, next, expected) in [
        (CORE_FIRST, CORE_NEXT, "127.0.0.1.28091.127.0.0.1.28092"),
        (GO_FIRST, GO_NEXT, "127.0.0.1.28091.2C127.0.0.1.28092"),
    ] {
        let (ends, seen) = call_three_times(first, next, true).await;
        assert!(ends.iter().all(|(kind, _)| *kind == FRAME_HEADERS), "{ends:?}");
        assert_eq!(seen, [expected; 3]);
    }
}

/// The reason for [`quorate_proto::authority`]. When this fails, h2 reads such authorities by itself, and the module can go.
#[tokio::test]
async fn without_mending_the_same_calls_are_refused() {
    for (first, next) in [(CORE_FIRST, CORE_NEXT), (GO_FIRST, GO_NEXT)] {
        let (ends, seen) = call_three_times(first, next, false).await;
        assert_eq!(ends, vec![(FRAME_RESET, PROTOCOL_ERROR.to_vec()); 3]);
        assert!(seen.is_empty());
    }
}

#[tokio::test]
async fn calls_with_one_address_as_authority_arrive_as_they_are() {
    let first = b"\x86\x83\x44\x0d/test.Seen/It\x40\x0a:authority\x0f127.0.0.1:28091";
    let (ends, seen) = call_three_times(first, CORE_NEXT, true).await;
    assert!(ends.iter().all(|(kind, _)| *kind == FRAME_HEADERS), "{ends:?}");
    assert_eq!(seen, ["127.0.0.1:28091"; 3]);
}
