//! Async flush: a node that lost its tail to a power cut stays out of elections until it has caught up.

use std::time::Duration;

use crate::support::{Cluster, simulate};
use quorate_raft::{FlushMode, MemberChange};

async fn born(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, 3);
    cluster.config.flush = FlushMode::Async(Duration::from_millis(100));
    for number in 1..=3 {
        cluster.start(number).await;
    }
    cluster.leader().await;
    cluster
}

#[test]
fn a_kill_of_all_processes_loses_nothing() {
    simulate(31, async {
        let mut cluster = born(31).await;
        for _ in 0..30 {
            cluster.add(1, 200).await;
        }
        for number in 1..=3 {
            cluster.kill(number);
        }
        for number in 1..=3 {
            cluster.start(number).await;
        }
        assert_eq!(cluster.add(1, 0).await, 31);
    });
}

#[test]
fn a_node_that_lost_its_tail_helps_nobody_to_lead_until_it_has_caught_up() {
    simulate(32, async {
        let mut cluster = born(32).await;
        cluster.add(1, 0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let leader = cluster.leader().await;
        let (lost, behind) = {
            let others: Vec<u16> = (1..=3).filter(|number| *number != leader).collect();
            (others[0], others[1])
        };
        // Acknowledged by the leader and the node that will forget it; the third never hears of it.
        cluster.isolate(behind);
        cluster.add(10, 0).await;
        cluster.power_cut(lost);
        cluster.isolate(leader);
        cluster.network.heal(&crate::support::host(behind), &crate::support::host(lost));
        cluster.network.heal(&crate::support::host(lost), &crate::support::host(behind));
        cluster.start(lost).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        for number in [lost, behind] {
            assert_eq!(cluster.group(number).leader().borrow().leader, None, "node {number} must not have a leader");
        }
        cluster.network.heal_all();
        assert_eq!(cluster.add(100, 0).await, 111);
        assert_eq!(cluster.agree().await.sum, 111);
        // It votes again: the others cannot do without it now.
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.kill(cluster.leader().await);
        assert_eq!(cluster.add(1000, 0).await, 1111);
    });
}

/// It still counts the node that has left, which answers nobody any more.
#[test]
fn a_tail_that_ends_before_a_removal_is_compared_among_those_who_are_left() {
    for seed in 50..55 {
        simulate(seed, async move {
            let mut cluster = born(seed).await;
            cluster.add(1, 0).await;
            cluster.agree().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let leader = cluster.leader().await;
            let gone = (1..=3).find(|number| *number != leader).unwrap();
            cluster.kill(gone);
            cluster.change(MemberChange::Remove { number: gone }).await;
            // Both have it, and the leader has it in its page cache, most likely.
            cluster.power_cut(leader);
            cluster.start(leader).await;
            assert_eq!(cluster.add(10, 0).await, 11);
            assert_eq!(cluster.voters().await.len(), 2);
        });
    }
}

#[test]
fn a_follower_back_with_a_shorter_log_does_not_end_its_leader() {
    for seed in 40..45 {
        simulate(seed, async move {
            let mut cluster = born(seed).await;
            for _ in 0..10 {
                cluster.add(1, 0).await;
            }
            let leader = cluster.leader().await;
            let lost = (1..=3).find(|number| *number != leader).unwrap();
            let had = cluster.group(lost).status().last;
            cluster.power_cut(lost);
            cluster.start(lost).await;
            assert!(cluster.group(lost).status().last < had, "something was lost");
            assert_eq!(cluster.add(1, 0).await, 11);
            cluster.agree().await;
            assert_eq!(cluster.leader().await, leader, "seed {seed}");
        });
    }
}

#[test]
fn after_a_power_cut_of_all_the_longest_tail_leads() {
    simulate(33, async {
        let mut cluster = born(33).await;
        for _ in 0..20 {
            cluster.add(1, 0).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..3 {
            cluster.add(1, 0).await;
        }
        for number in 1..=3 {
            cluster.power_cut(number);
        }
        for number in 1..=2 {
            cluster.start(number).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(
            (1..=2).all(|number| cluster.group(number).leader().borrow().leader.is_none()),
            "two of three tails are too few"
        );
        cluster.start(3).await;
        let sum = cluster.add(0, 0).await;
        assert!((20..=23).contains(&sum), "what was synced is there: {sum}");
        cluster.agree().await;
        // The others ask the new leader how far they must come, and then campaign again.
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.kill(cluster.leader().await);
        cluster.add(1, 0).await;
    });
}
