//! What a request says about its client: its headers, the listener it came in by, and how long it waits for an answer.

use std::time::Duration;

use quorate_proto::v2::Code;
use tokio::time::Instant;
use tonic::{Extensions, metadata::MetadataMap};

use super::{forward::Until, wire::status::Fault};
use crate::{config::Limits, registrar::ListenerName, session::Language};

/// Longest client id.
const CLIENT_ID_BYTES_MAX: usize = 256;
/// An answer leaves this long before the client's deadline.
const ANSWER_AHEAD: Duration = Duration::from_millis(300);
/// A long poll ends this long before it. Some clients put exactly the long poll into their deadline.
const POLL_AHEAD: Duration = Duration::from_secs(1);
/// What a hand-out that began at the end of a long poll may still take.
const HAND_OUT: Duration = Duration::from_secs(2);
/// The wait of a receive whose client names neither a long poll nor a deadline.
const LONG_POLL_DEFAULT: Duration = Duration::from_secs(20);

/// The client of a request.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// `x-mq-client-id`; empty if the header is missing.
    pub id: String,
    /// `x-mq-language`.
    pub language: Language,
    /// `x-mq-namespace`, for requests whose resources name none.
    pub namespace: String,
    /// The listener that the request came in by.
    pub listener: ListenerName,
    /// `grpc-timeout`.
    timeout: Option<Duration>,
}

/// What the gate notes on each request: the listener that it came in by.
#[derive(Debug, Clone)]
pub(crate) struct CameBy(pub ListenerName);

/// The listener that a request came in by.
pub(crate) fn came_by(extensions: &Extensions) -> ListenerName {
    extensions.get::<CameBy>().and_then(|CameBy(listener)| listener.clone())
}

impl Client {
    /// Reads the headers. Nothing in them is trusted or required here.
    pub fn of(metadata: &MetadataMap, extensions: &Extensions) -> Self {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Self {
            id: text("x-mq-client-id").to_owned(),
            language: Language::from_header(text("x-mq-language")),
            namespace: text("x-mq-namespace").to_owned(),
            listener: came_by(extensions),
            timeout: parse_timeout(text("grpc-timeout")),
        }
    }

    /// The client's id.
    ///
    /// # Errors
    /// [`Code::ClientIdRequired`] without one.
    pub fn id(&self) -> Result<&str, Fault> {
        let problem = match self.id.len() {
            0 => "the header x-mq-client-id is missing; every client sets it to an id of its own",
            len if len > CLIENT_ID_BYTES_MAX => "the header x-mq-client-id is longer than 256 bytes; shorten it",
            _ => return Ok(&self.id),
        };
        Err(Fault::new(Code::ClientIdRequired, problem))
    }

    /// When a call that came in at `now` is answered at the latest.
    pub fn until(&self, now: Instant, limits: &Limits) -> Until {
        let answer = now + self.ahead(ANSWER_AHEAD).map_or(limits.hold_max, |left| left.min(limits.hold_max));
        Until { answer, wait: answer }
    }

    /// The same for a receive that `asked` to wait. It waits until it must leave the client a second, and answers by then unless a
    /// hand-out is just under way.
    pub fn until_polled(&self, now: Instant, asked: Option<Duration>, limits: &Limits) -> Until {
        let poll_max = self.ahead(POLL_AHEAD);
        let wait = asked.or(poll_max).unwrap_or(LONG_POLL_DEFAULT).min(limits.long_poll_max);
        let wait = poll_max.map_or(wait, |max| wait.min(max));
        let answer = self.ahead(ANSWER_AHEAD).map_or(wait + HAND_OUT, |left| left.min(wait + HAND_OUT));
        Until { answer: now + answer.max(wait), wait: now + wait }
    }

    /// The deadline less `ahead`, or half of a deadline too short for that.
    fn ahead(&self, ahead: Duration) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.saturating_sub(ahead).max(timeout.min(ahead * 2) / 2))
    }
}

/// `grpc-timeout`: up to eight digits and a unit. What is malformed is as good as absent.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last().filter(char::is_ascii)?;
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number * 3600)),
        'M' => Some(Duration::from_secs(number * 60)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(headers: &[(&'static str, &str)]) -> Client {
        let mut metadata = MetadataMap::new();
        for (key, value) in headers {
            metadata.insert(*key, value.parse().expect("ascii"));
        }
        Client::of(&metadata, &Extensions::new())
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_client_is_known_by_its_headers() {
        let node = client(&[("x-mq-client-id", "h@1@0@x"), ("x-mq-language", "HTTP"), ("x-mq-namespace", "shop")]);
        assert_eq!((node.id(), node.language, node.namespace.as_str()), (Ok("h@1@0@x"), Language::Node, "shop"));
        assert_eq!(client(&[("x-mq-language", "KLINGON")]).language, Language::Other);
        assert_eq!(client(&[]).id().map_err(|fault| fault.code), Err(Code::ClientIdRequired));
        let long = "i".repeat(257);
        assert!(client(&[("x-mq-client-id", &long)]).id().is_err());
    }

    #[test]
    fn every_unit_of_a_timeout_is_read_and_nonsense_is_none() {
        for (text, expected) in [("1H", ms(3_600_000)), ("2M", ms(120_000)), ("3S", ms(3000)), ("2700m", ms(2700))] {
            assert_eq!(parse_timeout(text), Some(expected), "{text}");
        }
        assert_eq!(parse_timeout("5000u"), Some(ms(5)));
        assert_eq!(parse_timeout("5000000n"), Some(ms(5)));
        for text in ["", "S", "3", "3s", "-3S", "123456789S", "3é", "3 S"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    #[test]
    fn a_call_is_answered_300_ms_before_its_deadline_and_within_10_s() {
        let (now, limits) = (Instant::now(), Limits::default());
        let answer = |timeout: &str| client(&[("grpc-timeout", timeout)]).until(now, &limits).answer - now;
        assert_eq!(answer("3S"), ms(2700));
        assert_eq!(answer("60S"), ms(10_000));
        assert_eq!(answer("400m"), ms(200), "half of a deadline that is too short");
        assert_eq!(client(&[]).until(now, &limits).answer - now, ms(10_000));
    }

    #[test]
    fn a_long_poll_ends_a_second_before_the_deadline() {
        let (now, limits) = (Instant::now(), Limits::default());
        let wait = |timeout: &str, asked: Option<u64>| {
            let until = client(&[("grpc-timeout", timeout)]).until_polled(now, asked.map(ms), &limits);
            (until.wait - now, until.answer - now)
        };
        assert_eq!(wait("33S", Some(30_000)), (ms(30_000), ms(32_000)), "Java: long poll + 3 s");
        assert_eq!(wait("30S", Some(30_000)), (ms(29_000), ms(29_700)), "Rust: exactly the long poll");
        assert_eq!(wait("23S", None), (ms(22_000), ms(22_700)), "Go: only the deadline");
        assert_eq!(wait("", None), (ms(20_000), ms(22_000)));
        assert_eq!(wait("9S", Some(0)).0, ms(0), "a client that does not want to wait does not");
        assert_eq!(wait("1S", Some(5000)).0, ms(500));
        assert_eq!(wait("99S", Some(90_000)).0, ms(30_000));
    }
}
