//! One change at a time to a group in which all is well, and what is said about it.

use super::*;

const NOW: u64 = 1_800_000_000_000;

fn status(answered_by: u32) -> ClusterStatusResponse {
    let node = |number: u32| NodeStatus {
        number,
        reachable: true,
        role: if number == 1 { "leader" } else { "follower" }.into(),
        term: 4,
        last_index: 90_000,
        version: "0.1.0".into(),
        flush: "sync".into(),
        file_system: "ext4".into(),
        wall_ms: NOW,
        ..NodeStatus::default()
    };
    ClusterStatusResponse {
        cluster: "quorate".into(),
        group: "broker-a".into(),
        nodes: (1..=3).map(node).collect(),
        answered_by,
        ..ClusterStatusResponse::default()
    }
}

fn visit(address: &str, number: u32, route: &[&str]) -> Visit {
    let node = Node {
        status: status(number),
        route: route.iter().map(|&address| address.to_owned()).collect(),
        asked: None,
        here_ms: NOW,
        uncertain_ms: 2,
    };
    Visit { address: address.into(), reached: Reached::Node(Box::new(node)) }
}

const ROUTE: [&str; 3] = ["10.0.0.1:8081", "10.0.0.2:8081", "10.0.0.3:8081"];

/// One endpoint was given; its route names all three nodes.
fn facts() -> Facts {
    let visits = ROUTE.iter().zip(1..).map(|(address, number)| visit(address, number, &ROUTE)).collect();
    Facts { visits, endpoints: 1 }
}

fn change(facts: &mut Facts, change: impl Fn(&mut ClusterStatusResponse)) {
    for visit in &mut facts.visits {
        if let Reached::Node(node) = &mut visit.reached {
            change(&mut node.status);
        }
    }
}

/// The one finding that is not ok.
fn only(facts: &Facts) -> Finding {
    let bad: Vec<Finding> = judge(facts).into_iter().filter(|finding| finding.level != Level::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:#?}");
    assert!(!bad[0].fix.is_empty(), "every finding says what to do");
    bad[0].clone()
}

#[test]
fn a_sound_group_is_told_point_by_point() {
    let findings = judge(&facts());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok && finding.fix.is_empty()), "{findings:#?}");
    let abouts: Vec<&str> = findings.iter().map(|finding| finding.about.as_str()).collect();
    assert_eq!(abouts[0], "10.0.0.1:8081");
    assert!(abouts.contains(&"group broker-a") && abouts.contains(&"clocks"), "{abouts:?}");
}

#[test]
fn an_endpoint_that_is_not_reached_is_wrong_and_says_how_far_one_gets() {
    for (reached, word) in [
        (Reached::NotResolved("no such host".into()), "does not resolve"),
        (Reached::NotConnected("refused".into()), "cannot be connected to"),
        (Reached::NotAnswered(CallError::Unknown { code: 0, message: "reset".into() }), "does not answer"),
        (Reached::NotAnswered(CallError::Refused { code: 50100, message: String::new() }), "name server"),
    ] {
        let mut facts = facts();
        facts.visits.insert(0, Visit { address: "mq:8081".into(), reached });
        facts.endpoints = 2;
        let finding = only(&facts);
        assert_eq!((finding.level, finding.about.as_str()), (Level::Wrong, "mq:8081"));
        assert!(finding.what.contains(word), "{finding:?}");
    }
}

#[test]
fn an_address_that_clients_are_given_and_cannot_reach_is_wrong_and_named_with_its_source() {
    let mut facts = facts();
    facts.visits[2].reached = Reached::NotConnected("no route to host".into());
    let finding = only(&facts);
    assert_eq!(finding.level, Level::Wrong);
    assert!(finding.about.starts_with("10.0.0.3:8081, given to clients of 10.0.0.1:8081"), "{finding:?}");
    assert!(finding.fix.contains("network.listeners"), "{finding:?}");

    // The classic: a node on another machine that advertises its own loopback.
    let mut facts = facts_with_loopback();
    facts.visits[1].reached = Reached::NotConnected("refused".into());
    assert!(only(&facts).fix.contains("every machine's own"));
}

fn facts_with_loopback() -> Facts {
    let route = ["10.0.0.1:8081", "127.0.0.1:8082", "10.0.0.3:8081"];
    let visits = route.iter().zip(1..).map(|(address, number)| visit(address, number, &route)).collect();
    Facts { visits, endpoints: 1 }
}

#[test]
fn a_node_without_the_clients_listener_is_a_warning() {
    let route = &ROUTE[..2];
    let facts = Facts { visits: vec![visit(ROUTE[0], 1, route), visit(ROUTE[1], 2, route)], endpoints: 1 };
    let finding = only(&facts);
    assert_eq!(finding.level, Level::Warn);
    assert!(finding.what.starts_with("2 of 3 live nodes"), "{finding:?}");
}

#[test]
fn two_addresses_of_one_node_and_addresses_of_another_group_are_wrong() {
    let mut facts = facts();
    facts.visits[2] = visit(ROUTE[2], 2, &ROUTE);
    assert!(only(&facts).what.contains("both lead to node 2"));

    let mut facts = self::facts();
    if let Reached::Node(node) = &mut facts.visits[2].reached {
        node.status.cluster = "other".into();
    }
    let finding = only(&facts);
    assert_eq!((finding.level, finding.about.as_str()), (Level::Wrong, ROUTE[2]));
}

#[test]
fn what_is_wrong_with_the_group_is_found() {
    type Case = (fn(&mut ClusterStatusResponse), Level, &'static str);
    let cases: [Case; 6] = [
        (|status| status.nodes[0].role = "candidate".into(), Level::Wrong, "nobody leads"),
        (|status| status.nodes[1].role = "learner".into(), Level::Warn, "learner"),
        (|status| status.nodes[1].last_index = 9, Level::Warn, "89991 entries behind"),
        (|status| status.nodes[1].file_system = "overlay".into(), Level::Warn, "overlay"),
        (|status| status.nodes[1].version = "0.2.0".into(), Level::Warn, "0.1.0, 0.2.0"),
        (|status| status.nodes[1].flush = "async".into(), Level::Wrong, "some do not"),
    ];
    for (how, level, word) in cases {
        let mut facts = facts();
        change(&mut facts, how);
        let finding = only(&facts);
        assert!(finding.level == level && finding.what.contains(word), "{finding:?}");
    }
    let mut away = facts();
    change(&mut away, |status| {
        status.nodes[2] = NodeStatus { number: 3, error: "refused".into(), ..NodeStatus::default() }
    });
    assert!(only(&away).what.contains("is away: refused"));
}

#[test]
fn a_clock_is_judged_by_how_far_it_is_off_beyond_what_the_answer_s_way_may_hide() {
    let told = |off: u64, uncertain_ms: u64| {
        let mut facts = facts();
        change(&mut facts, |status| status.nodes[1].wall_ms = NOW + off);
        for visit in &mut facts.visits {
            if let Reached::Node(node) = &mut visit.reached {
                node.uncertain_ms = uncertain_ms;
            }
        }
        let clocks = judge(&facts).into_iter().filter(|finding| finding.what.contains("clock is"));
        clocks.map(|finding| finding.level).collect::<Vec<_>>()
    };
    assert_eq!(told(900, 2), []);
    assert_eq!(told(1_500, 600), []);
    assert_eq!(told(1_500, 2), [Level::Warn]);
    assert_eq!(told(20_000, 2), [Level::Wrong]);
}
