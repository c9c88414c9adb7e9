//! One more listener of clients: a door with a name and an address of its own.
//!
//! ```text
//!   clients in the same network   10.0.0.1:8081   ──▶ network.client_listen             told 10.0.0.1:8081
//!   clients on the host          127.0.0.1:8081   ──▶ network.listeners, named "host"   told 127.0.0.1:8081
//! ```
//! A client is given the addresses that the nodes have for the listener it came in by, so a network behind a NAT, a container engine or a
//! VPN gets addresses that it can reach. Written as one text, `name@listen=advertise`, so that a variable can say it too.

use std::{
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{ConfigError, check, is_wildcard, split_address};

/// Most named listeners of one node.
const LISTENERS_MAX: usize = 8;
/// Longest name.
const NAME_BYTES_MAX: usize = 32;
/// Longest address: a node tells all of its own in a text of at most 1,024 bytes.
const ADVERTISE_BYTES_MAX: usize = 80;

const KEY: &str = "network.listeners";

/// A named listener of clients and operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ListenerConfig {
    /// What all nodes call it, 1 to 32 of `[a-z0-9_-]`.
    pub name: String,
    /// Where it listens, `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Address of this node that its clients are given. Must be set when `listen` is a wildcard.
    pub advertise: Option<String>,
}

impl FromStr for ListenerConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let error = || ConfigError {
            key: KEY,
            problem: format!(
                "{text:?} is not a listener; write name@listen=advertise, for example \"host@0.0.0.0:8181=127.0.0.1:8081\""
            ),
        };
        let (name, addresses) = text.split_once('@').ok_or_else(error)?;
        let (listen, advertise) = match addresses.split_once('=') {
            Some((listen, advertise)) => (listen, Some(advertise)),
            None => (addresses, None),
        };
        for address in advertise.into_iter().chain([listen]) {
            split_address(address.trim()).ok_or_else(error)?;
        }
        let owned = |text: &str| text.trim().to_owned();
        Ok(Self { name: owned(name), listen: owned(listen), advertise: advertise.map(owned) })
    }
}

impl TryFrom<String> for ListenerConfig {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<ListenerConfig> for String {
    fn from(ListenerConfig { name, listen, advertise }: ListenerConfig) -> Self {
        match advertise {
            Some(advertise) => format!("{name}@{listen}={advertise}"),
            None => format!("{name}@{listen}"),
        }
    }
}

/// Checks all of them together; each one's `listen` is checked like every listener.
///
/// # Errors
/// The first that cannot work, with the remedy.
pub(super) fn check_all(listeners: &[ListenerConfig]) -> Result<(), ConfigError> {
    check(listeners.len() <= LISTENERS_MAX, KEY, || {
        format!("{} listeners are more than a node can tell its peers; write at most {LISTENERS_MAX}", listeners.len())
    })?;
    for (at, ListenerConfig { name, listen, advertise }) in listeners.iter().enumerate() {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        let ok = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(legal);
        check(ok, KEY, || format!("{name:?} is not a name; write 1 to {NAME_BYTES_MAX} of a-z 0-9 _ -"))?;
        let twice = listeners[..at].iter().any(|other| other.name == *name);
        check(!twice, KEY, || format!("{name} is listed twice; give every listener a name of its own"))?;
        check_advertised(KEY, listen, advertise.as_deref())?;
        let long = advertise.as_ref().is_some_and(|advertise| advertise.len() > ADVERTISE_BYTES_MAX);
        check(!long, KEY, || format!("the address of {name} is too long; write at most {ADVERTISE_BYTES_MAX} bytes"))?;
    }
    Ok(())
}

/// Whether two listeners would take the same port of the same host. Texts that are no addresses, and free ports, collide with nothing.
pub fn collide(one: &str, other: &str) -> bool {
    let (Some((host, port)), Some((other_host, other_port))) = (split_address(one), split_address(other)) else {
        return false;
    };
    let ip =
        |host: &str| if host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { host.parse::<IpAddr>().ok() };
    let same_host = match (ip(host), ip(other_host)) {
        (Some(one), Some(other)) => {
            // Every interface: IPv6's takes the ports of IPv4 too.
            let takes = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
            one == other || takes(one, other) || takes(other, one)
        }
        _ => host == other_host,
    };
    port != 0 && port == other_port && same_host
}

/// Checks that clients of a listener are given an address that can be one.
pub(super) fn check_advertised(key: &'static str, listen: &str, advertise: Option<&str>) -> Result<(), ConfigError> {
    let Some(advertise) = advertise else {
        let wildcard = split_address(listen).is_some_and(|(host, _)| is_wildcard(host));
        return check(!wildcard, key, || format!("must be set, because {listen} is not an address clients can use"));
    };
    let (host, port) = split_address(advertise).ok_or_else(|| super::not_an_address(key, advertise))?;
    check(!is_wildcard(host) && port != 0, key, || {
        format!("{advertise} cannot be reached by a client; write the address clients use for this node")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(text: &str) -> ListenerConfig {
        text.parse().expect("legal")
    }

    #[test]
    fn a_listener_is_a_name_where_it_listens_and_what_its_clients_are_told() {
        let host = listener("host@0.0.0.0:8181=127.0.0.1:8081");
        assert_eq!((host.name.as_str(), host.listen.as_str()), ("host", "0.0.0.0:8181"));
        assert_eq!(host.advertise.as_deref(), Some("127.0.0.1:8081"));
        assert_eq!(listener("vpn@10.8.0.1:0").advertise, None);
        for text in ["host@0.0.0.0:8181=127.0.0.1:8081", "vpn@[::1]:8081"] {
            assert_eq!(String::from(listener(text)), text);
        }
        for text in ["0.0.0.0:8181", "host@8181", "host@0.0.0.0:8181=", "host@0.0.0.0:8181=a", ""] {
            assert!(text.parse::<ListenerConfig>().is_err(), "{text}");
        }
    }

    #[test]
    fn two_listeners_collide_at_one_port_of_one_host_only() {
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("localhost:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "10.0.0.1:1"),
            ("[::]:1", "10.0.0.1:1"),
            ("node-1:1", "node-1:1"),
        ] {
            assert!(collide(one, other) && collide(other, one), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("", ""),
        ] {
            assert!(!collide(one, other) && !collide(other, one), "{one} {other}");
        }
    }

    #[test]
    fn listeners_that_cannot_work_are_refused_with_the_remedy() {
        let said = |texts: &[&str]| {
            let all: Vec<_> = texts.iter().map(|text| listener(text)).collect();
            check_all(&all).map_err(|error| error.to_string())
        };
        assert_eq!(said(&["a@0.0.0.0:1=10.0.0.1:1", "b@127.0.0.1:0"]), Ok(()));
        let refused = |texts: &[&str], word: &str| {
            let error = said(texts).expect_err("must be refused");
            assert!(error.contains(word), "{error}");
        };
        refused(&["a@127.0.0.1:1", "a@127.0.0.1:2"], "twice");
        refused(&["a@0.0.0.0:1"], "must be set");
        refused(&["a@0.0.0.0:1=0.0.0.0:1"], "cannot be reached");
        refused(&["Host@127.0.0.1:1"], "a-z");
        refused(&["a;b@127.0.0.1:1"], "a-z");
        refused(&[&format!("a@127.0.0.1:1={}:1", "h".repeat(90))], "too long");
        let many: Vec<String> = (0..9).map(|n| format!("l{n}@127.0.0.1:0")).collect();
        refused(&many.iter().map(String::as_str).collect::<Vec<_>>(), "at most 8");
    }
}
