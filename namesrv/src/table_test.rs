use proptest::prelude::*;

use super::*;

const T0: Duration = Duration::from_secs(1_000);

fn seconds(seconds: u64) -> Duration {
    T0 + Duration::from_secs(seconds)
}

fn topic(name: &str) -> TopicName {
    TopicName::parse(name).expect("valid")
}

/// Node `number` of group `group` in `term`, which says that the topic "t" exists and that only `live` are alive.
fn claim(group: &str, number: u32, term: u64, live: &[&str]) -> Claim {
    Claim {
        cluster: "c".into(),
        group: group.into(),
        number,
        term,
        leader: false,
        live: live.iter().map(|&address| address.to_owned()).collect(),
        listeners: BTreeMap::new(),
        topics_version: 1,
        topics: BTreeMap::from([(topic("t"), Topic { queues: 8, accept_message_types: vec![1] })]),
    }
}

/// The live addresses of the first group that has the topic "t".
fn live(table: &Table, now: Duration) -> Option<Vec<String>> {
    table.route(&topic("t"), None, now).into_iter().next().map(|route| route.live)
}

fn addresses(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|&address| address.to_owned()).collect())
}

#[test]
fn a_claim_counts_for_ten_seconds_and_each_repeat_starts_them_anew() {
    let mut table = Table::new(None);
    table.register(claim("a", 1, 1, &["n1:1"]), T0).expect("taken");
    assert_eq!(live(&table, T0 + LEASE - Duration::from_nanos(1)), addresses(&["n1:1"]));
    assert_eq!(live(&table, T0 + LEASE), None);

    table.register(claim("a", 1, 1, &["n1:1"]), seconds(9)).expect("taken");
    assert_eq!(live(&table, seconds(18)), addresses(&["n1:1"]));
    assert_eq!(live(&table, seconds(19)), None);
}

#[test]
fn what_counts_is_counted_and_what_ended_unrepeated_too() {
    let mut table = Table::new(None);
    table.register(claim("a", 1, 1, &["n1:1"]), T0).expect("taken");
    table.register(claim("a", 2, 1, &["n1:1"]), seconds(5)).expect("taken");
    table.register(claim("b", 1, 1, &["n3:1"]), seconds(5)).expect("taken");
    assert_eq!(table.standing(seconds(5)), Standing { nodes: 3, groups: 2, topics: 1, expired: 0 });
    assert_eq!(table.standing(seconds(10)), Standing { nodes: 2, groups: 2, topics: 1, expired: 1 });
    table.unregister("c", "b", 1);
    assert_eq!(table.standing(seconds(10)), Standing { nodes: 1, groups: 1, topics: 1, expired: 1 });
    assert_eq!(table.standing(seconds(15)), Standing { nodes: 0, groups: 0, topics: 0, expired: 2 });
}

#[test]
fn clients_of_a_named_listener_get_its_addresses_and_the_usual_ones_of_groups_that_have_none() {
    let mut table = Table::new(None);
    let listeners = BTreeMap::from([("host".to_owned(), vec!["h1:1".to_owned(), "h2:1".to_owned()])]);
    table.register(Claim { listeners, ..claim("a", 1, 1, &["n1:1", "n2:1"]) }, T0).expect("taken");
    table.register(claim("b", 1, 1, &["n3:1"]), T0).expect("taken");
    let live = |listener: Option<&str>| {
        let routes = table.route(&topic("t"), listener, T0);
        routes.into_iter().flat_map(|route| route.live).collect::<Vec<_>>()
    };
    assert_eq!(live(Some("host")), ["h1:1", "h2:1", "n3:1"]);
    assert_eq!(live(Some("vpn")), ["n1:1", "n2:1", "n3:1"]);
    assert_eq!(live(None), ["n1:1", "n2:1", "n3:1"]);
}

#[test]
fn when_the_leader_dies_silently_the_others_are_believed_as_soon_as_they_know_a_higher_term() {
    let mut table = Table::new(None);
    let leader = Claim { leader: true, ..claim("a", 1, 5, &["n1:1", "n2:1", "n3:1"]) };
    table.register(leader, T0).expect("taken");
    table.register(claim("a", 2, 5, &["n1:1", "n3:1", "n2:1"]), T0).expect("taken");
    assert_eq!(live(&table, T0), addresses(&["n1:1", "n2:1", "n3:1"]));

    table.register(claim("a", 3, 6, &["n2:1", "n3:1"]), seconds(2)).expect("taken");
    assert_eq!(live(&table, seconds(2)), addresses(&["n2:1", "n3:1"]));
}

#[test]
fn when_the_leader_dies_and_nobody_follows_it_its_claim_gives_way_after_the_lease() {
    let mut table = Table::new(None);
    table.register(Claim { leader: true, ..claim("a", 1, 5, &["n1:1"]) }, T0).expect("taken");
    table.register(claim("a", 2, 5, &["n2:1"]), seconds(9)).expect("taken");
    assert_eq!(live(&table, seconds(9)), addresses(&["n1:1"]));
    assert_eq!(live(&table, seconds(10)), addresses(&["n2:1"]));
}

#[test]
fn a_deposed_leader_is_not_believed_against_a_higher_term() {
    let mut table = Table::new(None);
    table.register(claim("a", 2, 6, &["n2:1", "n3:1"]), T0).expect("taken");
    table.register(Claim { leader: true, ..claim("a", 1, 5, &["n1:1"]) }, seconds(1)).expect("taken");
    assert_eq!(live(&table, seconds(1)), addresses(&["n2:1", "n3:1"]));
}

#[test]
fn a_late_claim_of_a_lower_term_is_refused_and_renews_nothing() {
    let mut table = Table::new(None);
    table.register(claim("a", 1, 6, &["new:1"]), T0).expect("taken");
    let late = table.register(claim("a", 1, 5, &["old:1"]), seconds(5));
    assert_eq!(late, Err(NotClaimed::OldTerm { group: "a".into(), number: 1, known: 6, term: 5 }));
    assert_eq!(live(&table, seconds(9)), addresses(&["new:1"]));
    assert_eq!(live(&table, seconds(10)), None);
}

/// A wiped group starts at term 1 again; it must not stay unknown because of what the old one once said.
#[test]
fn a_group_made_anew_is_found_once_the_old_claims_have_expired() {
    let mut table = Table::new(None);
    table.register(claim("a", 1, 900, &["old:1"]), T0).expect("taken");
    table.register(claim("a", 1, 1, &["new:1"]), seconds(5)).expect_err("the old one still counts");
    table.register(claim("a", 1, 1, &["new:1"]), seconds(10)).expect("taken");
    assert_eq!(live(&table, seconds(10)), addresses(&["new:1"]));
}

#[test]
fn groups_that_share_a_topic_are_listed_by_name() {
    let mut table = Table::new(None);
    for (group, address) in [("b", "b1:1"), ("a", "a1:1"), ("c", "c1:1")] {
        table.register(claim(group, 1, 1, &[address]), T0).expect("taken");
    }
    table.register(Claim { topics: BTreeMap::new(), ..claim("b", 1, 1, &["b1:1"]) }, T0).expect("taken");
    let groups: Vec<_> = table.route(&topic("t"), None, T0).into_iter().map(|route| route.group).collect();
    assert_eq!(groups, ["a", "c"]);
}

#[test]
fn a_node_that_leaves_is_forgotten_at_once() {
    let mut table = Table::new(None);
    table.register(claim("a", 1, 2, &["n1:1"]), T0).expect("taken");
    table.register(claim("a", 2, 1, &["n2:1"]), T0).expect("taken");
    table.unregister("other", "a", 1);
    assert_eq!(live(&table, T0), addresses(&["n1:1"]));
    table.unregister("c", "a", 1);
    assert_eq!(live(&table, T0), addresses(&["n2:1"]));
    table.unregister("c", "a", 2);
    table.unregister("c", "a", 2);
    assert_eq!(live(&table, T0), None);
}

#[test]
fn two_clusters_never_share_a_table() {
    let other = || Claim { cluster: "d".into(), ..claim("z", 1, 9, &["d1:1"]) };
    let refused = Err(NotClaimed::OtherCluster { ours: "c".into(), theirs: "d".into() });

    let mut fixed = Table::new(Some("c".into()));
    assert_eq!(fixed.register(other(), T0), refused);

    let mut free = Table::new(None);
    free.register(claim("a", 1, 1, &["n1:1"]), T0).expect("taken");
    assert_eq!(free.register(other(), seconds(9)), refused);
    free.register(other(), seconds(10)).expect("nobody else is left");
    assert_eq!(live(&free, seconds(10)), addresses(&["d1:1"]));
}

#[test]
fn groups_and_nodes_are_bounded() {
    let mut table = Table::new(None);
    for group in 0..GROUPS_MAX {
        table.register(claim(&format!("g{group}"), 1, 1, &["n:1"]), T0).expect("taken");
    }
    assert_eq!(
        table.register(claim("one-more", 1, 1, &["n:1"]), T0),
        Err(NotClaimed::TooMany { what: "broker groups", max: GROUPS_MAX })
    );
    table.register(claim("g7", 1, 2, &["n:1"]), T0).expect("known groups go on");
    for number in 2..=NODES_MAX as u32 {
        table.register(claim("g7", number, 1, &["n:1"]), T0).expect("taken");
    }
    assert!(table.register(claim("g7", 1_000, 1, &["n:1"]), T0).is_err());
}

/// One step of a history: a node claims (or leaves), some time after the step before.
#[derive(Debug, Clone)]
struct Step {
    after_ms: u64,
    number: u32,
    /// None: the node leaves.
    said: Option<(u64, bool, u64)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let said = prop::option::weighted(0.95, (0..6_u64, any::<bool>(), 0..3_u64));
    let step = (0..3_000_u64, 1..=4_u32, said).prop_map(|(after_ms, number, said)| Step { after_ms, number, said });
    prop::collection::vec(step, 1..60)
}

fn claim_of(number: u32, (term, leader, topics_version): (u64, bool, u64), at: Duration) -> Claim {
    // The address names its claim, so that a route shows which one it came from.
    let address = format!("n{number}-t{term}-{}:1", at.as_millis());
    Claim { leader, topics_version, ..claim("a", number, term, &[&address]) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// The rules, said again by a model that keeps every claim ever taken.
    #[test]
    fn the_route_is_the_best_claim_that_still_counts(steps in steps()) {
        let mut table = Table::new(None);
        let mut taken: BTreeMap<u32, (Claim, Duration)> = BTreeMap::new();
        let mut now = T0;
        for step in steps {
            now += Duration::from_millis(step.after_ms);
            taken.retain(|_, (_, at)| now - *at < LEASE);
            match step.said {
                None => {
                    table.unregister("c", "a", step.number);
                    taken.remove(&step.number);
                }
                Some(said) => {
                    let claim = claim_of(step.number, said, now);
                    let late = taken.get(&step.number).is_some_and(|(known, _)| known.term > claim.term);
                    prop_assert_eq!(table.register(claim.clone(), now).is_err(), late);
                    if !late {
                        taken.insert(step.number, (claim, now));
                    }
                }
            }
            let route = live(&table, now);
            prop_assert_eq!(route.is_none(), taken.is_empty());
            let Some(route) = route else { continue };
            let (source, _) = taken.values().find(|(claim, _)| claim.live == route).expect("a route is some node's claim");
            for (other, _) in taken.values() {
                prop_assert!(other.term <= source.term);
                prop_assert!(other.term < source.term || source.leader || !other.leader);
            }
        }
    }

    /// Claims of different nodes reach two name servers in different orders within one moment; the answers are equal.
    #[test]
    fn equal_name_servers_give_equal_answers(steps in steps()) {
        let (mut forward, mut backward) = (Table::new(None), Table::new(None));
        let mut now = T0;
        for round in steps.chunks(4) {
            now += Duration::from_millis(round[0].after_ms);
            // At most one thing per node and round: the order of one node's own words is kept by its connection.
            let said: BTreeMap<u32, &Step> = round.iter().map(|step| (step.number, step)).collect();
            let tell = |table: &mut Table, step: &Step| match step.said {
                None => table.unregister("c", "a", step.number),
                Some(said) => drop(table.register(claim_of(step.number, said, now), now)),
            };
            said.values().for_each(|step| tell(&mut forward, step));
            said.values().rev().for_each(|step| tell(&mut backward, step));
            prop_assert_eq!(forward.route(&topic("t"), None, now), backward.route(&topic("t"), None, now));
        }
    }
}
