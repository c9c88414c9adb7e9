//! The membership changes while entries are proposed: nodes are added, removed and replaced, leaders die in between, and nothing that was
//! acknowledged is lost.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quorate_raft::{ChangeError, ChangeStep, Group, MemberChange, ProposeError, Role, StartError};
use tokio::time::Instant;

use crate::support::{Cluster, Counter, SEGMENT, address, entry, host, simulate, until};

fn add(number: u16) -> MemberChange {
    MemberChange::Add { number, peer_address: address(number) }
}

fn remove(number: u16) -> MemberChange {
    MemberChange::Remove { number }
}

fn replace(old: u16, new: u16) -> MemberChange {
    MemberChange::Replace { old, new, peer_address: address(new) }
}

/// Lower numbers are those of a test itself.
const FIRST: u64 = 1000;

/// Proposes numbers of which each is used once, at whoever leads among the nodes it knows, until it is told to stop.
struct Load {
    groups: Arc<Mutex<Vec<Group<Counter>>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Proposed>,
}

/// What was proposed, by number.
#[derive(Default)]
struct Proposed {
    acknowledged: BTreeSet<u64>,
    unknown: BTreeSet<u64>,
}

impl Load {
    fn start(cluster: &Cluster, ballast: usize) -> Self {
        let groups = cluster.running().into_iter().map(|number| cluster.group(number)).collect();
        let groups: Arc<Mutex<Vec<Group<Counter>>>> = Arc::new(Mutex::new(groups));
        let stop = Arc::new(AtomicBool::new(false));
        let (known, over) = (groups.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut proposed = Proposed::default();
            for number in FIRST.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let leader = known.lock().unwrap().iter().find(|group| group.leader().borrow().serving).cloned();
                let Some(leader) = leader else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let answer = tokio::time::timeout(Duration::from_secs(3), leader.propose(entry(number, ballast))).await;
                match answer {
                    Ok(Ok(_)) => drop(proposed.acknowledged.insert(number)),
                    Ok(Err(ProposeError::Unknown)) | Err(_) => drop(proposed.unknown.insert(number)),
                    Ok(Err(_)) => {}
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            proposed
        });
        Self { groups, stop, task }
    }

    fn knows(&self, group: Group<Counter>) {
        self.groups.lock().unwrap().push(group);
    }

    async fn end(self) -> Proposed {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Every acknowledged number stands once in the log of each of these nodes, and nothing stands there that nobody proposed.
async fn hold(cluster: &Cluster, numbers: &[u16], proposed: &Proposed) {
    let last = |number: &u16| cluster.group(*number).status().applied;
    until("all have applied the same", || numbers.iter().all(|number| last(number) == last(&numbers[0]))).await;
    let mut whole = 0;
    for number in numbers {
        let (count, first) = (cluster.count(*number), cluster.count(numbers[0]));
        assert_eq!((count.sum, count.entries), (first.sum, first.entries), "node {number}");
        assert_eq!(cluster.group(*number).status().chain, cluster.group(numbers[0]).status().chain, "node {number}");
        if count.seen.len() as u64 != count.entries {
            // It began with an image, which holds the sum alone.
            continue;
        }
        whole += 1;
        let seen: Vec<u64> = count.seen.into_values().filter(|n| *n >= FIRST).collect();
        let once: BTreeSet<u64> = seen.iter().copied().collect();
        assert_eq!(seen.len(), once.len(), "node {number} has something twice");
        let lost: Vec<_> = proposed.acknowledged.difference(&once).collect();
        assert!(lost.is_empty(), "node {number} lacks {lost:?}");
        let known = |n: &&u64| proposed.acknowledged.contains(n) || proposed.unknown.contains(n);
        let more: Vec<_> = once.iter().filter(|n| !known(n)).collect();
        assert!(more.is_empty(), "node {number} has {more:?}");
    }
    assert!(whole > 0, "somebody remembers every entry");
}

/// The node ends by itself and says that it was removed; started again it refuses, with the remedy.
async fn ends_as_removed(cluster: &mut Cluster, number: u16) {
    let reason = tokio::time::timeout(Duration::from_secs(10), cluster.group(number).fatal()).await.expect("it ends");
    assert!(reason.contains("removed from its group") && reason.contains("cluster add"), "{reason}");
    cluster.kill(number);
    let refused = cluster.try_start(number).await.expect_err("it does not start again");
    assert!(
        matches!(&refused, StartError::WrongDirectory(reason) if reason.contains("move its data directory")),
        "{refused}"
    );
}

#[test]
fn a_group_grows_from_one_to_five_and_shrinks_to_three_while_entries_are_proposed() {
    simulate(101, async {
        let mut cluster = Cluster::new(101, 1);
        cluster.start(1).await;
        cluster.leader().await;
        let load = Load::start(&cluster, 300);
        for number in 2..=5 {
            cluster.start_new(number).await;
            cluster.change(add(number)).await;
            load.knows(cluster.group(number));
        }
        assert_eq!(cluster.voters().await, [1, 2, 3, 4, 5]);
        for number in [1, 2] {
            cluster.change(remove(number)).await;
            ends_as_removed(&mut cluster, number).await;
        }
        assert_eq!(cluster.voters().await, [3, 4, 5]);
        // Two of the three carry the group: the change left no trace of those that have gone.
        cluster.kill(5);
        cluster.leader().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.restart_new(5).await;
        let proposed = load.end().await;
        assert!(proposed.acknowledged.len() > 200, "{}", proposed.acknowledged.len());
        hold(&cluster, &[3, 4, 5], &proposed).await;
        let status = cluster.group(3).status();
        let addresses: Vec<&str> = status.members.iter().map(|member| member.peer_address.as_str()).collect();
        assert_eq!(addresses, ["n3:9870", "n4:9870", "n5:9870"], "none of them is in the others' configuration");
    });
}

#[test]
fn a_dead_node_is_replaced_and_stays_away_when_it_comes_back() {
    simulate(102, async {
        let mut cluster = Cluster::born(102).await;
        let load = Load::start(&cluster, 200);
        let dead = (1..=3).find(|number| Some(*number) != cluster.running().first().copied()).unwrap();
        cluster.kill(dead);
        cluster.start_new(4).await;
        cluster.change(replace(dead, 4)).await;
        load.knows(cluster.group(4));
        let mut left: Vec<u16> = (1..=4).filter(|number| *number != dead).collect();
        assert_eq!(cluster.voters().await, left);
        cluster.change(replace(dead, 4)).await;
        // The old machine is back, with a log that calls it a voter.
        let term = cluster.group(4).leader().borrow().term;
        cluster.start(dead).await;
        ends_as_removed(&mut cluster, dead).await;
        assert_eq!(cluster.group(4).leader().borrow().term, term, "it disturbed nobody");
        // And with one of the others gone the new one counts.
        let gone = left.remove(0);
        cluster.kill(gone);
        cluster.leader().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let proposed = load.end().await;
        hold(&cluster, &left, &proposed).await;
    });
}

#[test]
fn a_removed_node_that_was_away_finds_out_even_if_all_whom_it_knows_have_been_replaced_but_one() {
    simulate(103, async {
        let mut cluster = Cluster::born(103).await;
        cluster.add(1, 0).await;
        cluster.agree().await;
        cluster.kill(3);
        cluster.start_new(4).await;
        cluster.change(replace(3, 4)).await;
        cluster.start_new(5).await;
        cluster.change(replace(2, 5)).await;
        ends_as_removed(&mut cluster, 2).await;
        cluster.start(3).await;
        ends_as_removed(&mut cluster, 3).await;
        assert_eq!(cluster.voters().await, [1, 4, 5]);
        assert_eq!(cluster.add(1, 0).await, 2);
    });
}

#[test]
fn members_that_are_in_nobody_s_configuration_find_each_other_after_restarts() {
    simulate(104, async {
        let mut cluster = Cluster::new(104, 1);
        cluster.start(1).await;
        for number in 2..=3 {
            cluster.start_new(number).await;
            cluster.change(add(number)).await;
        }
        cluster.add(1, 0).await;
        cluster.agree().await;
        // Followers that nobody told of each other but the membership.
        for number in [2, 3] {
            until("it hears of all", || cluster.group(number).status().members.iter().all(|member| member.alive)).await;
        }
        // Node 1 still has itself alone in its configuration, 2 and 3 have node 1.
        for number in 1..=3 {
            cluster.kill(number);
        }
        cluster.start(1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(cluster.group(1).leader().borrow().leader, None, "one of three leads nobody");
        cluster.restart_new(2).await;
        cluster.restart_new(3).await;
        assert_eq!(cluster.add(1, 0).await, 2);
        cluster.agree().await;
        cluster.kill(1);
        assert_eq!(cluster.add(1, 0).await, 3, "2 and 3 reach each other without 1");
        for number in [2, 3] {
            until("they hear of each other", || {
                let members = cluster.group(number).status().members;
                members.iter().filter(|member| member.alive).map(|member| member.id.number()).eq([2, 3])
            })
            .await;
        }
    });
}

#[test]
fn the_leader_hands_over_before_it_is_removed() {
    simulate(105, async {
        let mut cluster = Cluster::born(105).await;
        cluster.add(1, 0).await;
        cluster.agree().await;
        let leader = cluster.leader().await;
        let load = Load::start(&cluster, 0);
        let step = cluster.ask_change(remove(leader)).await;
        assert!(matches!(&step, Ok(ChangeStep::Waiting(what)) if what.contains("leadership goes to node")), "{step:?}");
        cluster.change(remove(leader)).await;
        assert!(!cluster.voters().await.contains(&leader));
        ends_as_removed(&mut cluster, leader).await;
        let proposed = load.end().await;
        hold(&cluster, &cluster.running(), &proposed).await;
    });
}

#[test]
fn a_new_leader_goes_on_with_a_change_that_the_old_one_began() {
    for seed in 110..118 {
        simulate(seed, async move {
            let mut cluster = Cluster::born(seed).await;
            let load = Load::start(&cluster, 100);
            cluster.start_new(4).await;
            let leader = cluster.leader().await;
            // The change is dropped at a random place, its leader dies, and the next one is asked the same.
            let asked = cluster.group(leader);
            let begun = tokio::spawn(async move {
                loop {
                    let _ = asked.change_members(add(4)).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            tokio::time::sleep(Duration::from_millis(3 + 4 * (seed - 110))).await;
            begun.abort();
            cluster.kill(leader);
            cluster.change(add(4)).await;
            load.knows(cluster.group(4));
            assert_eq!(cluster.voters().await, [1, 2, 3, 4]);
            cluster.start(leader).await;
            until("no change is half done anywhere", || {
                cluster.running().iter().all(|number| !cluster.group(*number).health().is_changing)
            })
            .await;
            let proposed = load.end().await;
            hold(&cluster, &[1, 2, 3, 4], &proposed).await;
        });
    }
}

#[test]
fn a_change_that_was_left_half_done_is_finished_without_anybody_asking() {
    simulate(106, async {
        let mut cluster = Cluster::born(106).await;
        cluster.add(1, 0).await;
        cluster.start_new(4).await;
        let leader = cluster.group(cluster.leader().await);
        until("it is a learner", || leader.status().members.len() == 4).await;
        until("it has caught up", || cluster.group(4).status().applied == leader.status().applied).await;
        let mut asked = tokio::spawn({
            let leader = leader.clone();
            async move {
                while let Ok(ChangeStep::CatchingUp { .. }) = leader.change_members(add(4)).await {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let half = async {
            while !leader.health().is_changing {
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        };
        tokio::select! {
            () = half => asked.abort(),
            _ = &mut asked => panic!("it was never half done"),
        }
        until("it is finished", || {
            let health = cluster.group(4).health();
            health.is_voter && !health.is_changing && !leader.health().is_changing
        })
        .await;
    });
}

#[test]
fn what_would_take_the_quorum_away_is_refused_with_the_reason() {
    simulate(107, async {
        let mut cluster = Cluster::born(107).await;
        cluster.add(1, 0).await;
        cluster.agree().await;
        let leader = cluster.leader().await;
        let dead = (1..=3).find(|number| *number != leader).unwrap();
        let other = (1..=3).find(|number| ![leader, dead].contains(number)).unwrap();
        cluster.kill(dead);
        // At once: its card is still fresh.
        for wanted in [other, leader] {
            let refused = cluster.ask_change(remove(wanted)).await;
            let Err(ChangeError::Refused(reason)) = refused else { panic!("{refused:?}") };
            assert!(reason.contains("2 must live") && reason.contains(&format!("bring nodes {dead} back")), "{reason}");
        }
        assert_eq!(cluster.add(1, 0).await, 2, "nothing was done");
        cluster.change(remove(dead)).await;
        assert_eq!(cluster.voters().await.len(), 2);
        let unknown = cluster.ask_change(remove(9)).await;
        assert_eq!(unknown, Ok(ChangeStep::Done("node 9 is not a member".into())));
        let unknown = cluster.ask_change(replace(9, 8)).await;
        assert!(matches!(&unknown, Err(ChangeError::Refused(why)) if why.contains("9 is not a member")), "{unknown:?}");
        // The last one.
        cluster.change(remove(other)).await;
        let refused = cluster.ask_change(remove(leader)).await;
        assert!(matches!(&refused, Err(ChangeError::Refused(why)) if why.contains("only voter")), "{refused:?}");
        assert_eq!(cluster.add(1, 0).await, 3);
    });
}

#[test]
fn one_change_at_a_time_and_only_at_the_leader() {
    simulate(108, async {
        let mut cluster = Cluster::born(108).await;
        for _ in 0..60 {
            cluster.add(1, 2000).await;
        }
        cluster.agree().await;
        let leader = cluster.leader().await;
        cluster.start_new(4).await;
        // The new node is let in, and then hears nothing more.
        let step = cluster.ask_change(add(4)).await;
        assert!(matches!(step, Ok(ChangeStep::CatchingUp { number: 4, .. })), "{step:?}");
        cluster.network.cut(&host(leader), &host(4));
        let busy = cluster.ask_change(remove(2)).await;
        assert!(
            matches!(&busy, Err(ChangeError::Busy(why)) if why.contains("node 4 at n4:9870 is being added")),
            "{busy:?}"
        );
        let follower = (1..=3).find(|number| *number != leader).unwrap();
        let refused = cluster.group(follower).change_members(add(4)).await;
        assert_eq!(refused, Err(ChangeError::NotLeader { leader: Some(cluster.group(leader).id()) }));
        // Given up, it is in nobody's way any more.
        tokio::time::sleep(Duration::from_secs(6)).await;
        cluster.change(remove(4)).await;
        cluster.network.heal_all();
        cluster.change(remove(follower)).await;
        assert_eq!(cluster.voters().await.len(), 2);
    });
}

#[test]
fn a_new_node_says_what_is_wrong_with_it() {
    simulate(109, async {
        let mut cluster = Cluster::born(109).await;
        cluster.add(1, 0).await;
        let refused = |answer: Result<ChangeStep, ChangeError>| match answer {
            Err(ChangeError::Refused(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let away = cluster.ask_change(add(4)).await;
        assert!(
            matches!(&away, Err(ChangeError::Unreachable(why)) if why.contains("node 4 does not answer at n4:9870")),
            "{away:?}"
        );
        // Of another cluster.
        cluster.start_new(4).await;
        cluster.wipe(4);
        let mut config = cluster.config_of(4);
        config.cluster = "another".into();
        cluster.start_with(4, config).await.unwrap();
        let reason = refused(cluster.ask_change(add(4)).await);
        assert!(reason.contains("node 4 to \"another\""), "{reason}");
        // At another one's address, or under another number.
        let taken = MemberChange::Add { number: 4, peer_address: address(2) };
        assert!(refused(cluster.ask_change(taken).await).contains("address of node 2"));
        let moved = MemberChange::Add { number: 2, peer_address: address(5) };
        assert!(refused(cluster.ask_change(moved).await).contains("node 2 is a voter already, at n2:9870"));
        cluster.wipe(4);
        cluster.start_new(5).await;
        let wrong = MemberChange::Add { number: 4, peer_address: address(5) };
        assert!(refused(cluster.ask_change(wrong).await).contains("node 4 was called, this is node 5"));
        cluster.kill(5);
        assert_eq!(cluster.add(1, 0).await, 2);
    });
}

#[test]
fn a_node_that_formed_a_group_of_its_own_is_refused_and_harms_nobody() {
    simulate(119, async {
        let mut cluster = Cluster::born(119).await;
        for _ in 0..30 {
            cluster.add(1, 0).await;
        }
        cluster.start_new(4).await;
        cluster.wipe(4);
        let mut config = cluster.config_of(4);
        config.members.retain(|member| member.number == 4);
        config.members.push(quorate_raft::Member { number: 4, peer_address: address(4) });
        // Whom others call looks for them first.
        cluster.isolate(4);
        cluster.start_with(4, config).await.unwrap();
        let alone = cluster.group(4);
        until("it leads itself", || alone.leader().borrow().serving).await;
        cluster.network.heal_all();
        for _ in 0..10 {
            alone.propose(entry(5, 0)).await.unwrap();
        }
        let leader = cluster.leader_among(&[1, 2, 3]).await;
        let refused = cluster.group(leader).change_members(add(4)).await;
        let Err(ChangeError::Refused(reason)) = refused else { panic!("{refused:?}") };
        assert!(reason.contains("log of another group, whose voters are nodes 4"), "{reason}");
        // They have seen each other's cards now, and hold different entries under the same numbers.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(cluster.group(leader).propose(entry(1, 0)).await, Ok(31));
        assert_eq!(alone.propose(entry(5, 0)).await, Ok(55));
    });
}

#[test]
fn a_node_that_is_told_to_join_forms_no_group_whatever_it_finds() {
    simulate(120, async {
        let mut cluster = Cluster::new(120, 3);
        for number in 1..=3 {
            let mut config = cluster.config_of(number);
            config.join = true;
            cluster.start_with(number, config).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        for number in 1..=3 {
            assert_eq!(cluster.group(number).status().last, None);
            assert_eq!(cluster.group(number).status().role, Role::Learner);
        }
        let mut config = cluster.config_of(1);
        config.join = true;
        config.members.retain(|member| member.number == 1);
        cluster.kill(1);
        let refused = cluster.start_with(1, config).await.err().unwrap();
        assert!(matches!(&refused, StartError::Config(why) if why.contains("no group to join")), "{refused}");
    });
}

#[test]
fn a_node_is_added_behind_the_floor_by_image_and_log_and_tells_how_far_it_is() {
    simulate(121, async {
        let mut cluster = Cluster::born(121).await;
        for _ in 0..100 {
            cluster.add(1, 1000).await;
        }
        let leader = cluster.leader().await;
        cluster.group(leader).propose_floor(quorate_raft::Position(3 * SEGMENT)).await.unwrap();
        until("it is purged", || cluster.group(leader).status().floor.0 == 3 * SEGMENT).await;
        cluster.start_new(4).await;
        let mut told = Vec::new();
        let began = Instant::now();
        loop {
            match cluster.ask_change(add(4)).await.unwrap() {
                ChangeStep::Done(_) => break,
                ChangeStep::CatchingUp { number, matched, last, bytes } => {
                    assert_eq!((number, last.0 > 100), (4, true));
                    told.push((matched, bytes));
                }
                ChangeStep::Waiting(what) => panic!("{what}"),
            }
            assert!(began.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(told.first(), Some(&(None, None)), "nothing is known of it at first");
        assert_eq!(cluster.agree().await.sum, 100);
        assert_eq!(cluster.count(4).loads, 1, "it began with an image");
    });
}

#[test]
fn a_learner_whose_joining_a_dead_leader_took_along_is_taken_in_again() {
    simulate(122, async {
        let mut cluster = Cluster::born(122).await;
        cluster.add(1, 0).await;
        cluster.agree().await;
        let leader = cluster.leader().await;
        let others: Vec<u16> = (1..=3).filter(|number| *number != leader).collect();
        cluster.start_new(4).await;
        // The leader reaches the new node alone: its joining is written there, and never committed.
        for other in &others {
            cluster.network.cut(&host(leader), &host(*other));
            cluster.network.cut(&host(*other), &host(leader));
        }
        let alone = cluster.group(leader);
        let asked = tokio::spawn(async move { alone.change_members(add(4)).await });
        until("it has an entry", || cluster.group(4).status().last.is_some()).await;
        asked.abort();
        cluster.kill(leader);
        cluster.network.heal_all();
        assert_eq!(cluster.add(1, 0).await, 2);
        cluster.change(add(4)).await;
        cluster.start(leader).await;
        assert_eq!(cluster.agree().await.sum, 2);
        assert_eq!(cluster.voters().await, [1, 2, 3, 4]);
    });
}

/// The settings of a node that began alone, as they were then.
fn alone(cluster: &mut Cluster, number: u16) -> quorate_raft::GroupConfig {
    let mut config = cluster.config_of(number);
    config.members.retain(|member| member.number == number);
    config
}

#[test]
fn the_only_voter_serves_on_although_a_learner_is_away() {
    simulate(122, async {
        let mut cluster = Cluster::new(122, 1);
        cluster.start(1).await;
        cluster.leader().await;
        cluster.start_new(2).await;
        until("it is a learner", || cluster.group(1).status().members.len() == 2).await;
        cluster.kill(2);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let view = *cluster.group(1).leader().borrow();
        assert!(view.serving && !view.isolated, "{view:?}");
        assert_eq!(cluster.group(1).propose(entry(1, 0)).await, Ok(1));
    });
}

#[test]
fn a_node_that_began_alone_and_lost_its_directory_finds_its_group_again() {
    for downtime in [0, 1, 30] {
        simulate(123, async move {
            let mut cluster = Cluster::new(123, 1);
            cluster.start(1).await;
            for number in 2..=3 {
                cluster.start_new(number).await;
                cluster.change(add(number)).await;
            }
            cluster.add(1, 0).await;
            cluster.wipe(1);
            tokio::time::sleep(Duration::from_secs(downtime)).await;
            let config = alone(&mut cluster, 1);
            cluster.start_with(1, config).await.unwrap();
            let id = cluster.group(1).id();
            until("it votes again, in the same group", || {
                cluster.group(2).status().members.iter().any(|member| member.id == id && member.voter)
            })
            .await;
            assert_eq!(cluster.agree().await.sum, 1, "after {downtime} s");
        });
    }
}

#[test]
fn a_second_group_that_began_beside_the_first_ends_when_they_meet_and_says_what_to_do() {
    simulate(124, async {
        let mut cluster = Cluster::new(124, 1);
        cluster.start(1).await;
        for number in 2..=3 {
            cluster.start_new(number).await;
            cluster.change(add(number)).await;
        }
        for _ in 0..20 {
            cluster.add(1, 0).await;
        }
        cluster.wipe(1);
        cluster.isolate(1);
        let config = alone(&mut cluster, 1);
        cluster.start_with(1, config).await.unwrap();
        let second = cluster.group(1);
        until("it leads itself", || second.leader().borrow().serving).await;
        cluster.network.heal_all();
        let reason = tokio::time::timeout(Duration::from_secs(20), second.fatal()).await.expect("it ends");
        assert!(reason.contains("second group") && reason.contains("node.join = true"), "{reason}");
        cluster.kill(1);
        assert_eq!(cluster.add(1, 0).await, 21);
    });
}

#[test]
fn a_learner_gets_its_vote_at_an_address_where_it_answers_and_no_other() {
    simulate(125, async {
        let mut cluster = Cluster::new(125, 1);
        cluster.start(1).await;
        cluster.leader().await;
        cluster.start_new(2).await;
        until("it is a learner", || cluster.group(1).status().members.len() == 2).await;
        for (wrong, word) in [("n2:1", "does not answer at n2:1"), ("n1:9870", "n1:9870")] {
            let change = MemberChange::Add { number: 2, peer_address: wrong.into() };
            let refused = cluster.group(1).change_members(change).await.expect_err("it is not there");
            assert!(refused.to_string().contains(word), "{refused}");
        }
        cluster.change(add(2)).await;
        assert_eq!(cluster.group(1).status().members[1].peer_address, address(2));
    });
}
