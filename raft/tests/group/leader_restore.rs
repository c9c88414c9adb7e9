//! A leader that is cut inside its own sync and back before any election (openraft's `enable_leader_restore`).
//!
//! The leader sends an entry before its own sync is done; both followers sync it, so it is committed and acknowledged. Then
//! the leader loses power, and with it the entry. If it came back as leader of the same term, it would write another entry
//! under the same id, and the followers would take the two for one.

use std::time::Duration;

use crate::support::{Cluster, entry, simulate, until};
use quorate_raft::ProposeError;

const LOST: u64 = 1_000;
const OTHER: u64 = 1;

/// Plays the scenario; `Err` says what was lost.
async fn play(seed: u64, leader_restore: bool) -> Result<(), String> {
    let mut cluster = Cluster::born(seed).await;
    for _ in 0..5 {
        cluster.add(0, 0).await;
    }
    cluster.agree().await;
    let leader = cluster.leader().await;
    let slow = (Duration::from_millis(900), Duration::from_millis(900));
    cluster.nodes[&leader].disk.faults(|faults| faults.sync_delay = Some(slow));
    let acknowledged = cluster.group(leader).propose(entry(LOST, 0)).await;
    assert_eq!(acknowledged, Ok(LOST), "two followers have it on disk");
    let had = cluster.group(leader).status().last;

    cluster.power_cut(leader);
    let fast = (Duration::from_micros(100), Duration::from_micros(200));
    cluster.nodes[&leader].disk.faults(|faults| faults.sync_delay = Some(fast));
    let mut config = cluster.config_of(leader);
    config.leader_restore = leader_restore;
    cluster.start_with(leader, config).await.unwrap();
    let has = cluster.group(leader).status().last;
    assert!(has < had, "the leader has lost the entry: {has:?} {had:?}");

    // Whoever leads is asked for another entry.
    let other = loop {
        let now = cluster.leader().await;
        match cluster.group(now).propose(entry(OTHER, 0)).await {
            Ok(reply) => break reply,
            Err(ProposeError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(format!("{error}")),
        }
    };
    if other != LOST + OTHER {
        return Err(format!("an acknowledged entry is gone: the sum is {other}"));
    }
    let sums = |number: &u16| cluster.count(*number).sum;
    until("all nodes have both", || [1, 2, 3].iter().all(|number| sums(number) == LOST + OTHER)).await;
    Ok(())
}

#[test]
fn a_leader_cut_inside_its_own_sync_and_back_before_any_election_loses_nothing() {
    for seed in 1..=10 {
        simulate(seed, async move {
            let played = play(seed, false).await;
            assert_eq!(played, Ok(()), "seed {seed}");
        });
    }
}

/// The proof that the scenario is the right one: with the option on, it loses the entry, every time.
#[cfg(feature = "mutant-leader-restore")]
#[test]
fn with_leader_restore_the_same_scenario_loses_an_acknowledged_entry() {
    for seed in 1..=10 {
        simulate(seed, async move {
            let lost = play(seed, true).await;
            assert!(lost.is_err(), "seed {seed}: the planted bug was not seen");
        });
    }
}

/// And it is never silent: the nodes compare what they applied, and stop.
#[cfg(feature = "mutant-leader-restore")]
#[test]
fn two_bodies_under_one_id_stop_the_nodes_that_hold_them() {
    simulate(1, async {
        let mut cluster = Cluster::born(1).await;
        cluster.add(0, 0).await;
        cluster.agree().await;
        let leader = cluster.leader().await;
        let slow = (Duration::from_millis(900), Duration::from_millis(900));
        cluster.nodes[&leader].disk.faults(|faults| faults.sync_delay = Some(slow));
        cluster.group(leader).propose(entry(LOST, 0)).await.unwrap();
        cluster.power_cut(leader);
        cluster.nodes[&leader].disk.faults(|faults| faults.sync_delay = None);
        let mut config = cluster.config_of(leader);
        config.leader_restore = true;
        cluster.start_with(leader, config).await.unwrap();
        until("it leads again", || cluster.group(leader).leader().borrow().leader.is_some()).await;
        let _ = cluster.group(leader).propose(entry(OTHER, 0)).await;
        let reason = tokio::time::timeout(Duration::from_secs(5), cluster.group(leader).fatal()).await.unwrap();
        assert!(reason.contains("chain"), "{reason}");
    });
}
