//! One small HTTP request to a node's HTTP listener: no runtime, no threads, an answer within two seconds whatever happens.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

/// Longest wait for the whole answer.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// More than any answer has that is asked for here.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Whether a text can be the address of a listener.
///
/// # Errors
/// It is no `host:port`.
pub fn check_address(text: &str) -> Result<(), String> {
    let parts = text
        .rsplit_once(':')
        .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
    parts.map(drop).ok_or_else(|| format!("{text:?} is not host:port, for example 127.0.0.1:9872"))
}

/// An answer: its status, and what stands behind the head.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Asks once, within [`PATIENCE`].
///
/// # Errors
/// The address leads nowhere, nobody answers in time, or what answers there speaks no HTTP.
pub fn get(address: &str, path: &str) -> io::Result<Page> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = connect(address, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_late()),
            Err(error) => return Err(error),
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the answer is longer than any answer of a node"));
        }
    }
    parse(&answer)
}

/// Connects to the first of the name's addresses that takes it. An address that means every interface is asked on loopback.
fn connect(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for mut found in address.to_socket_addrs()? {
        if found.ip().is_unspecified() {
            found = SocketAddr::new(loopback_of(found.ip()), found.port());
        }
        match TcpStream::connect_timeout(&found, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn loopback_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(too_late()) } else { Ok(left) }
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()))
}

/// That something else listens there is an error, and says so.
pub fn no_node(what: &str) -> io::Error {
    io::Error::other(format!("what answers there is no Quorate node ({what})"))
}

fn parse(answer: &[u8]) -> io::Result<Page> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(|| no_node("no HTTP"))?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| no_node("not text"))?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| no_node("no HTTP/1.1"))?;
    Ok(Page { status, body: answer[end + 4..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_a_status_and_whatever_bytes_follow() {
        let page = parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n\xff\r\n\r\n").unwrap();
        assert_eq!(page, Page { status: 200, body: b"\xff\r\n\r\n".to_vec() });
        for wrong in
            [&b""[..], b"\xff\xff\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 x\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_listener_on_every_interface_is_asked_on_loopback() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = connect(&format!("0.0.0.0:{port}"), Instant::now() + PATIENCE).unwrap();
        assert!(stream.peer_addr().unwrap().ip().is_loopback());
        let silent = get(&format!("127.0.0.1:{port}"), "/health/live").unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    }
}
