//! The addresses a route holds: which nodes, in which order, in which shape for which client.
//!
//! No official client asks for a new route when a call fails, so failover happens inside the `Endpoints` a client already holds: one
//! broker (id 0) per group, the addresses of all live nodes, leader first. Clients that cannot take a list get what they can take.

use std::net::IpAddr;

use quorate_proto::v2::{Address, AddressScheme, Endpoints};

use crate::{
    config::{RouteConfig, RouteMode, split_address},
    session::Language,
};

/// The endpoints a client gets: `addresses` as it can take them, or what it `asked`, if the site wants that.
pub(crate) fn shape(
    addresses: &[String],
    language: Language,
    asked: Option<&Endpoints>,
    config: &RouteConfig,
) -> Endpoints {
    match (config.mode, asked) {
        (RouteMode::Echo, Some(asked)) if !asked.addresses.is_empty() => return asked.clone(),
        (RouteMode::Echo | RouteMode::Live, _) => {}
    }
    let split = |address: &String| split_address(address).map(|(host, port)| (host.to_owned(), i32::from(port)));
    let hosts: Vec<(String, i32)> = addresses.iter().filter_map(split).collect();
    let Some(scheme) = common_scheme(&hosts) else {
        // Names and mixed kinds: a list of them is refused by several clients, so the leader alone.
        return endpoints(
            hosts.first().map_or(AddressScheme::DomainName, |(host, _)| scheme_of(host)),
            &hosts[..hosts.len().min(1)],
        );
    };
    match language {
        Language::Node if hosts.len() > 1 => node_endpoints(scheme, &hosts, config.node_all_addresses),
        Language::Node | Language::Rust | Language::Other => endpoints(scheme, &hosts),
    }
}

/// Node joins addresses to a target of its own making, which works for one address only. Its gRPC library does take
/// `ipv4:a:1,b:2,c:3` as a target, so that text minus the last port stands in for a host.
fn node_endpoints(scheme: AddressScheme, hosts: &[(String, i32)], all: bool) -> Endpoints {
    let (Some((last, before)), AddressScheme::IPv4, true) = (hosts.split_last(), scheme, all) else {
        return endpoints(scheme, &hosts[..1]);
    };
    let mut host = String::from("ipv4:");
    for (ip, port) in before {
        host += &format!("{ip}:{port},");
    }
    host += &last.0;
    endpoints(AddressScheme::IPv4, &[(host, last.1)])
}

fn endpoints(scheme: AddressScheme, hosts: &[(String, i32)]) -> Endpoints {
    let addresses = hosts.iter().map(|(host, port)| Address { host: host.clone(), port: *port }).collect();
    Endpoints { scheme: scheme as i32, addresses }
}

/// The scheme of a list that may have several addresses: all IPv4 or all IPv6.
fn common_scheme(hosts: &[(String, i32)]) -> Option<AddressScheme> {
    let first = scheme_of(&hosts.first()?.0);
    let same = hosts.iter().all(|(host, _)| scheme_of(host) == first);
    (same && first != AddressScheme::DomainName).then_some(first)
}

fn scheme_of(host: &str) -> AddressScheme {
    match host.parse() {
        Ok(IpAddr::V4(_)) => AddressScheme::IPv4,
        Ok(IpAddr::V6(_)) => AddressScheme::IPv6,
        Err(_) => AddressScheme::DomainName,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(addresses: &[&str], language: Language, config: &RouteConfig) -> (i32, Vec<(String, i32)>) {
        let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
        let Endpoints { scheme, addresses } = shape(&addresses, language, None, config);
        (scheme, addresses.into_iter().map(|address| (address.host, address.port)).collect())
    }

    const THREE: [&str; 3] = ["10.0.0.2:8081", "10.0.0.1:8082", "10.0.0.3:8083"];

    #[test]
    fn most_clients_get_the_whole_list_as_ip_literals() {
        let three = THREE.map(|address| {
            let (host, port) = split_address(address).expect("legal");
            (host.to_owned(), i32::from(port))
        });
        for language in [Language::Rust, Language::Other] {
            assert_eq!(shaped(&THREE, language, &RouteConfig::default()), (1, three.to_vec()));
        }
    }

    #[test]
    fn node_gets_one_address_that_means_all_of_them_or_the_leader() {
        let mut config = RouteConfig::default();
        let all = ("ipv4:10.0.0.2:8081,10.0.0.1:8082,10.0.0.3".to_owned(), 8083);
        assert_eq!(shaped(&THREE, Language::Node, &config), (1, vec![all]));
        assert_eq!(shaped(&THREE[..1], Language::Node, &config), (1, vec![("10.0.0.2".into(), 8081)]));
        config.node_all_addresses = false;
        assert_eq!(shaped(&THREE, Language::Node, &config), (1, vec![("10.0.0.2".into(), 8081)]));
        let v6 = ["[::1]:8081", "[::2]:8081"];
        assert_eq!(shaped(&v6, Language::Node, &config), (2, vec![("::1".into(), 8081)]));
    }

    #[test]
    fn names_come_alone_because_clients_refuse_lists_of_them() {
        let config = RouteConfig::default();
        let names = ["broker-2:8081", "broker-1:8081"];
        assert_eq!(shaped(&names, Language::Other, &config), (3, vec![("broker-2".into(), 8081)]));
        let mixed = ["10.0.0.2:8081", "broker-1:8081"];
        assert_eq!(shaped(&mixed, Language::Other, &config), (1, vec![("10.0.0.2".into(), 8081)]));
        assert_eq!(shaped(&[], Language::Other, &config), (3, vec![]));
    }

    #[test]
    fn in_echo_mode_the_client_keeps_what_it_asked() {
        let config = RouteConfig { mode: RouteMode::Echo, ..RouteConfig::default() };
        let asked = endpoints(AddressScheme::DomainName, &[("mq.example.org".into(), 443)]);
        let addresses = ["10.0.0.1:8081".to_owned()];
        assert_eq!(shape(&addresses, Language::Other, Some(&asked), &config), asked);
        assert_eq!(shape(&addresses, Language::Other, Some(&Endpoints::default()), &config).scheme, 1);
    }
}
