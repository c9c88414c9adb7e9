//! Files of one node rot or are cut short: the group serves on, no node dies of it, and nothing acknowledged is lost.

use std::path::{Path, PathBuf};

use quorate_raft::{StartError, disk::sim::Damage, types::Position};

use crate::support::{Cluster, SEGMENT, simulate, until};

fn image_at(border: u64) -> PathBuf {
    format!("/data/image/{border:020}.img").into()
}

fn segment_at(position: u64) -> PathBuf {
    format!("/data/log/{position:020}").into()
}

/// Damages the last byte of a file, which in an image is one of the machine's own.
fn rot(cluster: &Cluster, number: u16, path: &Path) {
    let disk = &cluster.nodes[&number].disk;
    let len = disk.peek(path).unwrap().len() as u64;
    disk.damage(path, Damage::Flip { offset: len - 1, mask: 1 }).unwrap();
}

/// A group whose floor stands at the third border everywhere.
async fn purged(seed: u64) -> Cluster {
    let cluster = Cluster::born(seed).await;
    for _ in 0..80 {
        cluster.add(1, 1000).await;
    }
    cluster.group(cluster.leader().await).propose_floor(Position(3 * SEGMENT)).await.unwrap();
    until("all have purged", || (1..=3).all(|number| cluster.group(number).status().floor == Position(3 * SEGMENT)))
        .await;
    cluster
}

async fn until_voter(cluster: &Cluster, number: u16) {
    let id = cluster.group(number).id();
    until("it votes", || cluster.group(number).status().members.iter().any(|member| member.id == id && member.voter))
        .await;
}

#[test]
fn a_leader_whose_image_has_rotted_puts_it_back_from_another_node_and_sends_it() {
    simulate(31, async {
        let mut cluster = purged(31).await;
        let leader = cluster.leader().await;
        let path = image_at(3 * SEGMENT);
        rot(&cluster, leader, &path);
        let (wiped, other) = ((leader % 3) + 1, ((leader + 1) % 3) + 1);
        cluster.wipe(wiped);
        cluster.start(wiped).await;
        until_voter(&cluster, wiped).await;
        assert_eq!(cluster.leader().await, leader, "it leads on");
        assert_eq!(cluster.agree().await.sum, 80);
        assert_eq!(cluster.group(wiped).status().floor, Position(3 * SEGMENT), "with every body that the others keep");
        let peek = |number: u16| cluster.nodes[&number].disk.peek(&path).unwrap();
        assert_eq!(peek(leader), peek(other));
        assert_eq!(cluster.group(leader).status().damaged, [] as [String; 0], "it is whole again");
    });
}

#[test]
fn a_leader_whose_image_nobody_else_has_leads_on_without_sending_another() {
    simulate(32, async {
        let mut cluster = purged(32).await;
        let leader = cluster.leader().await;
        for number in 1..=3 {
            rot(&cluster, number, &image_at(3 * SEGMENT));
        }
        let wiped = (leader % 3) + 1;
        cluster.wipe(wiped);
        cluster.start(wiped).await;
        for number in 0..40 {
            assert_eq!(cluster.add(1, 0).await, 81 + number);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert_eq!(cluster.leader().await, leader);
        assert_eq!(cluster.count(wiped).loads, 0, "a newer image would leave out bodies");
    });
}

#[test]
fn a_node_whose_image_at_the_floor_has_rotted_starts_from_a_newer_one_and_puts_it_back() {
    simulate(33, async {
        let mut cluster = purged(33).await;
        let path = image_at(3 * SEGMENT);
        cluster.kill(2);
        rot(&cluster, 2, &path);
        cluster.start(2).await;
        assert_eq!(cluster.agree().await.sum, 80);
        until("it is put back", || {
            let peek = |number: u16| cluster.nodes[&number].disk.peek(&path).ok();
            peek(2) == peek(1)
        })
        .await;
    });
}

#[test]
fn a_node_without_a_usable_image_names_the_file_and_that_another_node_has_it() {
    simulate(34, async {
        let mut cluster = purged(34).await;
        let path = image_at(3 * SEGMENT);
        cluster.kill(2);
        let disk = cluster.nodes[&2].disk.clone();
        let whole = disk.peek(&path).unwrap();
        for image in disk.files().into_iter().filter(|path| path.extension().is_some_and(|it| it == "img")) {
            rot(&cluster, 2, &image);
        }
        let check = |refused: StartError| {
            let StartError::Corrupt(text) = &refused else { panic!("{refused}") };
            for words in [&path.display().to_string(), "byte for byte", "up and whole", "One node is lost"] {
                assert!(text.contains(words), "{text}");
            }
        };
        check(cluster.try_start(2).await.err().unwrap());
        disk.kill();
        disk.disk().remove(&path).unwrap();
        check(cluster.try_start(2).await.err().unwrap());
        disk.kill();
        // The remedy: as another node has it.
        disk.disk().open(&path, true).unwrap().write_at(0, &[whole]).unwrap();
        cluster.start(2).await;
        assert_eq!(cluster.agree().await.sum, 80);
    });
}

/// A group in which the first segments are in no memory, and its leader.
async fn long(seed: u64) -> (Cluster, u16) {
    let cluster = Cluster::born(seed).await;
    for _ in 0..200 {
        cluster.add(1, 1000).await;
    }
    let leader = cluster.leader().await;
    (cluster, leader)
}

#[test]
fn a_leader_with_a_damaged_segment_hands_over_to_feed_a_new_node_and_does_not_come_back() {
    for (seed, damage) in [
        (35, Damage::Flip { offset: SEGMENT / 2, mask: 1 }),
        (36, Damage::Truncate { len: SEGMENT / 2 }),
        (37, Damage::Zero { offset: 0, len: SEGMENT }),
    ] {
        simulate(seed, async move {
            let (mut cluster, damaged) = long(seed).await;
            cluster.nodes[&damaged].disk.damage(&segment_at(SEGMENT), damage).unwrap();
            let wiped = (damaged % 3) + 1;
            cluster.wipe(wiped);
            cluster.start(wiped).await;
            until_voter(&cluster, wiped).await;
            assert_eq!(cluster.running().len(), 3);
            let leader = cluster.leader().await;
            assert_ne!(leader, damaged, "another one leads");
            let known = cluster.group(damaged).status().damaged;
            assert!(known.len() == 1 && known[0].contains(segment_at(SEGMENT).to_str().unwrap()), "{known:?}");
            assert!(cluster.group(leader).status().damaged.is_empty());
            assert_eq!(cluster.add(1, 0).await, 201);
            assert_eq!(cluster.agree().await.sum, 201);
            // Not by request either.
            let back = cluster.group(damaged).id();
            let _ = cluster.group(leader).transfer(Some(back)).await;
            assert_eq!(cluster.add(1, 0).await, 202);
            assert_ne!(cluster.leader().await, damaged);
        });
    }
}

/// Nobody can take over, since the other voter is the one that lacks what cannot be read: what it has must be served.
#[test]
fn a_leader_with_a_damaged_segment_whom_nobody_can_replace_stays_and_serves() {
    simulate(38, async {
        let (mut cluster, leader) = long(38).await;
        let (wiped, other) = ((leader % 3) + 1, ((leader + 1) % 3) + 1);
        cluster.wipe(wiped);
        for number in [leader, other] {
            let flip = Damage::Flip { offset: SEGMENT / 2, mask: 1 };
            cluster.nodes[&number].disk.damage(&segment_at(SEGMENT), flip).unwrap();
        }
        cluster.start(wiped).await;
        for number in 0..100 {
            assert_eq!(cluster.add(1, 0).await, 201 + number);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(
            !cluster
                .group(wiped)
                .status()
                .members
                .iter()
                .any(|member| member.id.number() == wiped && member.voter && member.id == cluster.group(wiped).id())
        );
    });
}

#[test]
fn a_follower_whose_disk_has_lost_the_last_synced_entries_is_given_them_again_by_the_same_leader() {
    simulate(39, async {
        let mut cluster = Cluster::born(39).await;
        for _ in 0..10 {
            cluster.add(1, 100).await;
        }
        let leader = cluster.leader().await;
        let follower = (leader % 3) + 1;
        cluster.agree().await;
        let kept = cluster.group(follower).status();
        for _ in 0..3 {
            cluster.add(1, 100).await;
        }
        let had = cluster.group(leader).status().last;
        until("it has said that they are synced", || {
            let status = cluster.group(follower).status();
            status.last == had && status.synced == status.end
        })
        .await;
        cluster.kill(follower);
        let disk = cluster.nodes[&follower].disk.clone();
        disk.damage(&segment_at(0), Damage::Zero { offset: kept.end.0, len: u64::MAX }).unwrap();
        cluster.start(follower).await;
        assert!(cluster.group(follower).status().last < had, "something was lost");
        assert_eq!(cluster.agree().await.sum, 13, "without a new entry");
        assert_eq!(cluster.add(1, 0).await, 14);
        assert_eq!(cluster.agree().await.sum, 14);
        assert_eq!(cluster.leader().await, leader);
    });
}
