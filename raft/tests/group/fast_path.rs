//! Leaders that are gone, leaders that only seem to be, and leaders that hand over to nobody.

use std::time::Duration;

use crate::support::{Cluster, host, simulate, until};
use quorate_raft::{Cause, FastPath, LeaderChange, TransferError};
use tokio::time::Instant;

/// With these timeouts nobody is elected by a timeout within a second.
const SLOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

async fn born(seed: u64, fast_path: Option<FastPath>) -> Cluster {
    let mut cluster = Cluster::new(seed, 3);
    cluster.config.election_timeout = SLOW;
    cluster.config.fast_path = fast_path;
    for number in 1..=3 {
        cluster.start(number).await;
    }
    cluster.leader().await;
    cluster.add(1, 0).await;
    cluster.agree().await;
    cluster
}

/// Kills the leader; returns it, its successor, and how long nobody led.
async fn kill_leader(cluster: &mut Cluster) -> (u16, u16, Duration) {
    let old = cluster.leader().await;
    let before = Instant::now();
    cluster.kill(old);
    let new = cluster.leader().await;
    (old, new, before.elapsed())
}

fn last_change(cluster: &Cluster, number: u16) -> LeaderChange {
    *cluster.group(number).history().last().expect("a leader was seen")
}

#[test]
fn a_killed_leader_is_replaced_within_a_few_heartbeats() {
    for seed in 0..30 {
        simulate(seed, async {
            let mut cluster = born(seed, Some(FastPath::default())).await;
            let term = cluster.group(1).status().term;
            let (old, new, took) = kill_leader(&mut cluster).await;
            assert!(took <= cluster.config.heartbeat * 4, "seed {seed}: {took:?}");
            assert_eq!(cluster.group(new).status().term.0, term.0 + 1, "seed {seed}: one election");
            cluster.add(2, 0).await;
            cluster.agree().await;
            for number in cluster.running() {
                let change = last_change(&cluster, number);
                assert_eq!((change.cause, change.leader.number()), (Cause::Crash, new), "seed {seed}: {change:?}");
                assert_eq!(change.previous.map(|node| node.number()), Some(old));
                let gap = change.without_leader.expect("an entry was applied");
                assert!(gap <= took + cluster.config.heartbeat * 2, "seed {seed}: {gap:?} of {took:?}");
            }
        });
    }
}

/// The log under way when the leader died differs between the survivors: the longer one leads, whoever asks first.
#[test]
fn the_survivor_with_the_longer_log_leads() {
    for seed in 0..10 {
        simulate(seed, async {
            let mut cluster = born(seed, Some(FastPath::default())).await;
            let leader = cluster.leader().await;
            let others: Vec<u16> = cluster.running().into_iter().filter(|number| *number != leader).collect();
            let (short, long) = if seed % 2 == 0 { (others[0], others[1]) } else { (others[1], others[0]) };
            cluster.network.cut(&host(leader), &host(short));
            for number in 0..5 {
                cluster.add(number, 100).await;
            }
            cluster.kill(leader);
            cluster.network.heal_all();
            assert_eq!(cluster.leader().await, long, "seed {seed}");
            assert_eq!(cluster.add(0, 0).await, 11);
            cluster.agree().await;
        });
    }
}

#[test]
fn a_firewall_that_rejects_between_a_survivor_and_the_leader_changes_nothing() {
    for seed in 0..6 {
        simulate(seed, async {
            let cluster = born(seed, Some(FastPath::default())).await;
            let leader = cluster.leader().await;
            let term = cluster.group(leader).status().term;
            for other in cluster.running().into_iter().filter(|number| *number != leader) {
                for _ in 0..10 {
                    cluster.network.reject(&host(leader), &host(other));
                    tokio::time::sleep(Duration::from_millis(700)).await;
                    cluster.network.accept(&host(leader), &host(other));
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
            cluster.add(2, 0).await;
            cluster.agree().await;
            assert_eq!(cluster.leader().await, leader, "seed {seed}");
            assert_eq!(cluster.group(leader).status().term, term, "seed {seed}: no election at all");
        });
    }
}

/// A leader that both others see refused is cut off in truth: one change, and no fight afterwards.
#[test]
fn a_leader_rejected_by_both_is_replaced_once() {
    simulate(5, async {
        let cluster = born(5, Some(FastPath::default())).await;
        let old = cluster.leader().await;
        let term = cluster.group(old).status().term;
        let others: Vec<u16> = cluster.running().into_iter().filter(|number| *number != old).collect();
        for other in &others {
            cluster.network.reject(&host(old), &host(*other));
        }
        let before = Instant::now();
        let new = cluster.leader_among(&others).await;
        assert!(before.elapsed() <= cluster.config.heartbeat * 4, "{:?}", before.elapsed());
        tokio::time::sleep(Duration::from_secs(20)).await;
        cluster.network.heal_all();
        cluster.add(2, 0).await;
        cluster.agree().await;
        assert_eq!(cluster.leader().await, new);
        assert_eq!(cluster.group(new).status().term.0, term.0 + 1);
    });
}

#[test]
fn after_a_fast_election_the_group_rests() {
    for seed in 0..5 {
        simulate(seed, async {
            let mut cluster = born(seed, Some(FastPath::default())).await;
            let (first, _, took) = kill_leader(&mut cluster).await;
            assert!(took < SLOW.0, "{took:?}");
            cluster.start(first).await;
            cluster.add(2, 0).await;
            cluster.agree().await;
            // Within the rest: by timeout.
            let (second, new, took) = kill_leader(&mut cluster).await;
            assert!(took >= SLOW.0, "seed {seed}: {took:?}");
            assert_ne!(last_change(&cluster, new).cause, Cause::Crash);
            cluster.start(second).await;
            cluster.add(2, 0).await;
            cluster.agree().await;
            // After it: fast again.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let (_, new, took) = kill_leader(&mut cluster).await;
            assert!(took < SLOW.0, "seed {seed}: {took:?}");
            assert_eq!(last_change(&cluster, new).cause, Cause::Crash);
        });
    }
}

#[test]
fn switched_off_an_election_waits_for_its_timeout() {
    simulate(6, async {
        let mut cluster = born(6, None).await;
        let (_, new, took) = kill_leader(&mut cluster).await;
        assert!(took >= SLOW.0, "{took:?}");
        cluster.add(2, 0).await;
        assert_eq!(last_change(&cluster, new).cause, Cause::Timeout);
    });
}

/// One node that does not take part is enough: its word would be missing.
#[test]
fn a_host_without_power_is_left_to_the_timeout() {
    simulate(7, async {
        let mut cluster = born(7, Some(FastPath::default())).await;
        let old = cluster.leader().await;
        let before = Instant::now();
        cluster.power_cut(old);
        cluster.leader().await;
        assert!(before.elapsed() >= SLOW.0, "{:?}", before.elapsed());
    });
}

#[test]
fn a_transfer_is_seen_as_one_and_costs_less_than_a_heartbeat() {
    for seed in 0..10 {
        simulate(seed, async {
            let cluster = born(seed, Some(FastPath::default())).await;
            let old = cluster.leader().await;
            let to = cluster.running().into_iter().find(|number| *number != old).unwrap();
            let before = Instant::now();
            let asked = cluster.group(old).transfer(Some(cluster.group(to).id())).await.unwrap();
            assert_eq!(asked.number(), to);
            until("the target leads", || cluster.group(to).leader().borrow().serving).await;
            assert!(before.elapsed() <= cluster.config.heartbeat, "seed {seed}: {:?}", before.elapsed());
            cluster.add(2, 0).await;
            cluster.agree().await;
            for number in 1..=3 {
                assert_eq!(last_change(&cluster, number).cause, Cause::Transfer, "seed {seed}, node {number}");
            }
        });
    }
}

/// openraft would leave the group without a leader until the third node's timeout, or longer.
#[test]
fn a_transfer_to_a_node_that_is_cut_off_meanwhile_is_taken_back() {
    for seed in 0..20 {
        simulate(seed, async {
            let cluster = born(seed, Some(FastPath::default())).await;
            let old = cluster.leader().await;
            let to = cluster.running().into_iter().find(|number| *number != old).unwrap();
            let target = cluster.group(to).id();
            cluster.isolate(to);
            let before = Instant::now();
            cluster.group(old).transfer(Some(target)).await.unwrap();
            let others: Vec<u16> = cluster.running().into_iter().filter(|number| *number != to).collect();
            let term = cluster.group(old).status().term;
            until("somebody serves in a later term", || {
                others.iter().any(|number| {
                    let group = cluster.group(*number);
                    group.leader().borrow().serving && group.status().term > term
                })
            })
            .await;
            let took = before.elapsed();
            assert!(took <= SLOW.1 + cluster.config.heartbeat * 4, "seed {seed}: {took:?}");
            assert_eq!(cluster.leader_among(&others).await, old, "seed {seed}: it led and leads again");
            cluster.network.heal_all();
            cluster.add(2, 0).await;
            assert_eq!(cluster.agree().await.sum, 3);
        });
    }
}

#[test]
fn a_transfer_to_nobody_changes_nothing() {
    simulate(9, async {
        let mut cluster = born(9, None).await;
        let old = cluster.leader().await;
        let term = cluster.group(old).status().term;
        let away = cluster.running().into_iter().find(|number| *number != old).unwrap();
        let id = cluster.group(away).id();
        cluster.kill(away);
        tokio::time::sleep(SLOW.1 * 2).await;
        assert_eq!(cluster.group(old).transfer(Some(id)).await, Err(TransferError::Nobody));
        assert_eq!(cluster.add(2, 0).await, 3);
        assert_eq!(cluster.group(old).status().term, term);
    });
}
