//! `quorate health`: asks a node how it is, for a person, a script or a container's HEALTHCHECK.
//!
//! Made to be started every second or two: no runtime, no threads, one small HTTP request, an answer within two seconds whatever happens.
//! The address is where `quorate broker` would listen with the same file and variables.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    broker,
    failure::{self, Exit, Failure},
    output::Format,
};

/// Longest wait for the whole answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any answer has.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What to ask, and whom.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 it holds, 3 it does not, 1 nobody could be asked, 2 wrong usage or configuration"
)]
pub struct HealthArgs {
    /// Does it run? Never restart a node for anything else
    #[arg(long, conflicts_with_all = ["ready", "safe_to_stop"])]
    live: bool,
    /// Can it serve or forward? (the default)
    #[arg(long, conflicts_with = "safe_to_stop")]
    ready: bool,
    /// Would the group keep its quorum without it?
    #[arg(long)]
    safe_to_stop: bool,
    /// HTTP listener of the node [default: network.http_listen, as the node itself would read it]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// TOML file with the node's settings
    #[arg(long, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What the node says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    check: String,
    ok: bool,
    why: Vec<String>,
}

impl HealthArgs {
    /// Asks and prints one line.
    ///
    /// # Errors
    /// Nobody could be asked.
    pub fn run(&self, format: Format) -> Result<ExitCode, Failure> {
        let address = match &self.address {
            Some(address) => address.clone(),
            None => broker::http_listen(self.config.as_ref())?,
        };
        let answer = ask(&address, self.check()).map_err(|error| {
            let next = "start the node, or name its HTTP listener with --address";
            failure::error(format!("{address} cannot be asked"), error.to_string(), next)
        })?;
        // Nobody reads the words of a HEALTHCHECK; the code counts.
        let _ = writeln!(io::stdout(), "{}", answer.render(format));
        Ok(if answer.ok { ExitCode::SUCCESS } else { Exit::Unhealthy.into() })
    }

    fn check(&self) -> &'static str {
        match (self.live, self.safe_to_stop) {
            (true, _) => "live",
            (false, true) => "safe-to-stop",
            (false, false) => "ready",
        }
    }
}

impl Answer {
    fn render(&self, format: Format) -> String {
        match format {
            Format::Json => serde_json::to_string(self).expect("plain data has a text"),
            Format::Table if self.ok => format!("{}: yes", self.check),
            Format::Table => format!("{}: no, {}", self.check, self.why.join("; ")),
        }
    }
}

/// Asks once, within [`PATIENCE`].
fn ask(address: &str, check: &str) -> io::Result<Answer> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = connect(address, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    write!(stream, "GET /health/{check} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
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
        if answer.len() as u64 > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the answer is longer than any answer of a node"));
        }
    }
    parse(&answer, check)
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

/// Status and body must agree, and must be about what was asked: something else may listen there.
fn parse(answer: &[u8], check: &str) -> io::Result<Answer> {
    let wrong = |what: &str| io::Error::other(format!("what answers there is no Quorate node ({what})"));
    let text = std::str::from_utf8(answer).map_err(|_| wrong("not text"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| wrong("no HTTP"))?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).ok_or_else(|| wrong("no HTTP/1.1"))?;
    let answer: Answer = serde_json::from_str(body).map_err(|_| wrong(&format!("status {status}")))?;
    let expected = if answer.ok { "200" } else { "503" };
    if status != expected || answer.check != check {
        return Err(wrong(&format!("status {status}, check {:?}", answer.check)));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_READY: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\n{\"check\":\"ready\",\"ok\":false,\"why\":[\"a\",\"b\"]}\n";

    #[test]
    fn an_answer_is_one_line_for_people_and_one_object_for_programs() {
        let answer = parse(NOT_READY, "ready").unwrap();
        assert_eq!(answer.render(Format::Table), "ready: no, a; b");
        assert_eq!(answer.render(Format::Json), r#"{"check":"ready","ok":false,"why":["a","b"]}"#);
        let fine = parse(b"HTTP/1.1 200 OK\r\n\r\n{\"check\":\"live\",\"ok\":true,\"why\":[]}", "live").unwrap();
        assert_eq!(fine.render(Format::Table), "live: yes");
    }

    #[test]
    fn what_is_no_node_s_answer_is_an_error() {
        assert!(parse(NOT_READY, "live").is_err());
        for wrong in [
            &b""[..],
            b"\xff\xff",
            b"HTTP/1.1 200 OK\r\n\r\n<html>",
            b"HTTP/1.1 200 OK\r\n\r\n{\"check\":\"ready\",\"ok\":false,\"why\":[]}",
            b"SSH-2.0-x\r\n\r\n",
        ] {
            assert!(parse(wrong, "ready").is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_listener_on_every_interface_is_asked_on_loopback() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = connect(&format!("0.0.0.0:{port}"), Instant::now() + PATIENCE).unwrap();
        assert!(stream.peer_addr().unwrap().ip().is_loopback());
        let silent = ask(&format!("127.0.0.1:{port}"), "live").unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    }
}
