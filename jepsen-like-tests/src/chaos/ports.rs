//! Ports on loopback for children.
//!
//! They are taken from below the range that the kernel gives to outgoing connections: a broker that was killed must get
//! its port back, and a port of that range may by then be the near end of somebody's connection.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
};

use rand::RngExt;

/// Below this are the well-known servers.
const LOWEST: u16 = 10_000;
/// Where the kernel's range begins if it does not say.
const EPHEMERAL_DEFAULT: u16 = 32_768;

/// `count` different ports on which nobody listens on loopback now. Nothing keeps them free.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ephemeral = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(EPHEMERAL_DEFAULT);
    let end = if ephemeral > LOWEST + 1_000 { ephemeral } else { u16::MAX };
    let mut held = Vec::with_capacity(count);
    for _ in 0..10_000 {
        if held.len() == count {
            break;
        }
        let port = rand::rng().random_range(LOWEST..end);
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(|listener| (port, listener)));
    }
    if held.len() < count {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no {count} free ports from {LOWEST} to {end}")));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// An error naming `port` if somebody listens on it.
pub fn check_free(port: u16) -> io::Result<()> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map(drop)
        .map_err(|error| io::Error::new(error.kind(), format!("port {port} on 127.0.0.1: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn free_ports_are_different_and_can_be_bound() {
        let ports = free_ports(20).unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 20);
        ports.iter().for_each(|port| check_free(*port).unwrap());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(check_free(port).unwrap_err().to_string().contains(&port.to_string()));
    }
}
