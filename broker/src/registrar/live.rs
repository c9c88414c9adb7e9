//! Which nodes are in the route. A changed list costs clients new connections, so a node leaves it late and returns later. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::addresses::Addresses;
use crate::config::RouteConfig;

/// Which nodes are in the route. Fed with what this node hears; time comes as an argument.
#[derive(Debug, Default)]
pub(crate) struct LiveNodes {
    nodes: BTreeMap<u16, Presence>,
    leader: Option<u16>,
}

/// A node as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its number.
    pub number: u16,
    /// Where clients find it.
    pub addresses: Addresses,
    /// It was heard of just now.
    pub alive: bool,
}

#[derive(Debug)]
struct Presence {
    addresses: Addresses,
    listed: bool,
    /// Since when it has been alive, or gone.
    since: Duration,
    alive: bool,
}

impl LiveNodes {
    /// Takes note of what is seen at `now`. A node new to this one is listed at once.
    pub fn update(&mut self, now: Duration, seen: Vec<Seen>, leader: Option<u16>, config: &RouteConfig) {
        self.leader = leader;
        self.nodes.retain(|number, _| seen.iter().any(|node| node.number == *number));
        for Seen { number, addresses, alive } in seen {
            let node = self.nodes.entry(number).or_insert_with(|| Presence {
                addresses: addresses.clone(),
                listed: alive,
                since: now,
                alive,
            });
            if node.alive != alive {
                (node.alive, node.since) = (alive, now);
            }
            let long = now.saturating_sub(node.since);
            node.listed = match alive {
                true => node.listed || long >= config.return_after,
                false => node.listed && long < config.drop_after,
            };
            // A leader serves, however short it has been back.
            node.listed |= alive && leader == Some(number);
            node.addresses = addresses;
        }
    }

    /// The listed nodes, leader first, the others by number.
    pub fn listed(&self) -> Vec<&Addresses> {
        let listed = self.nodes.iter().filter(|(_, node)| node.listed);
        let (mut first, rest): (Vec<_>, Vec<_>) = listed.partition(|(number, _)| Some(**number) == self.leader);
        first.extend(rest);
        first.into_iter().map(|(_, node)| &node.addresses).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn seen(alive: [bool; 3]) -> Vec<Seen> {
        let addresses = |number| Addresses::parse(&format!("10.0.0.{number}:81"));
        (1..).zip(alive).map(|(number, alive)| Seen { number, addresses: addresses(number), alive }).collect()
    }

    fn numbers(nodes: &LiveNodes) -> Vec<char> {
        nodes.listed().iter().filter_map(|node| node.own.chars().nth(7)).collect()
    }

    #[test]
    fn the_leader_comes_first_and_the_others_by_number() {
        let (mut nodes, config) = (LiveNodes::default(), RouteConfig::default());
        nodes.update(s(0), seen([true; 3]), Some(2), &config);
        assert_eq!(numbers(&nodes), ['2', '1', '3']);
        nodes.update(s(0), seen([true; 3]), None, &config);
        assert_eq!(numbers(&nodes), ['1', '2', '3']);
    }

    #[test]
    fn a_node_leaves_after_five_seconds_and_returns_after_ten() {
        let (mut nodes, config) = (LiveNodes::default(), RouteConfig::default());
        nodes.update(s(0), seen([true; 3]), Some(1), &config);
        nodes.update(s(1), seen([true, true, false]), Some(1), &config);
        nodes.update(s(5), seen([true, true, false]), Some(1), &config);
        assert_eq!(numbers(&nodes), ['1', '2', '3'], "gone for 4 s");
        nodes.update(s(6), seen([true, true, false]), Some(1), &config);
        assert_eq!(numbers(&nodes), ['1', '2']);
        nodes.update(s(7), seen([true; 3]), Some(1), &config);
        nodes.update(s(16), seen([true; 3]), Some(1), &config);
        assert_eq!(numbers(&nodes), ['1', '2'], "back for 9 s");
        nodes.update(s(17), seen([true; 3]), Some(1), &config);
        assert_eq!(numbers(&nodes), ['1', '2', '3']);
    }

    #[test]
    fn a_short_absence_changes_nothing_and_a_new_leader_is_always_listed() {
        let (mut nodes, config) = (LiveNodes::default(), RouteConfig::default());
        nodes.update(s(0), seen([true; 3]), Some(1), &config);
        nodes.update(s(1), seen([false, true, true]), Some(1), &config);
        nodes.update(s(3), seen([true, true, true]), Some(2), &config);
        assert_eq!(numbers(&nodes), ['2', '1', '3']);
        nodes.update(s(4), seen([false, true, true]), Some(2), &config);
        nodes.update(s(30), seen([false, true, true]), Some(2), &config);
        assert_eq!(numbers(&nodes), ['2', '3']);
        nodes.update(s(31), seen([true, true, true]), Some(1), &config);
        assert_eq!(numbers(&nodes), ['1', '2', '3']);
    }
}
