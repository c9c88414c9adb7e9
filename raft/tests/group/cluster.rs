//! Three nodes in one process: birth, elections, catching up, wiped directories, strangers.

use std::time::Duration;

use crate::support::{Cluster, POISON, SEGMENT, entry, host, simulate, until};
use bytes::Bytes;
use quorate_raft::{CallError, ProposeError, Role, StartError, TransferError, metrics::Value, types::Position};
use tokio::time::Instant;

#[test]
fn a_group_is_born_when_all_members_are_there_and_counts() {
    simulate(1, async {
        let mut cluster = Cluster::new(1, 3);
        cluster.start(3).await;
        cluster.start(1).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(cluster.group(1).leader().borrow().leader, None, "two of three form no group");
        cluster.start(2).await;
        cluster.leader().await;
        for number in 1..=50u64 {
            assert_eq!(cluster.add(number, 0).await, number * (number + 1) / 2);
        }
        assert_eq!(cluster.agree().await.sum, 1275);
        let status = cluster.group(cluster.leader().await).status();
        assert_eq!(status.role, Role::Leader);
        assert_eq!(status.members.len(), 3);
        for member in &status.members {
            assert!(member.voter && member.alive, "{member:?}");
            assert_eq!(member.info.as_deref(), Some(format!("client-{}", member.id.number()).as_str()));
        }
    });
}

/// openraft keeps a leader in its state for as long as nobody tells it of a higher term.
#[test]
fn an_old_leader_that_is_left_alone_says_that_it_leads_nobody() {
    simulate(1, async {
        let mut cluster = Cluster::born(3).await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.group(leader).status().role, Role::Leader);
        for other in (1..=3).filter(|number| *number != leader) {
            cluster.kill(other);
        }
        until("it notices", || cluster.group(leader).status().role == Role::Candidate).await;
        let roles = cluster.group(leader).metrics();
        let roles = roles.iter().find(|family| family.metric.name == "quorate_raft_role").expect("it is told");
        let is_leader = roles.samples.iter().find(|sample| sample.labels == ["leader"]).expect("it is told");
        assert!(matches!(is_leader.value, Value::Number(0.0)), "{is_leader:?}");
        assert_eq!(cluster.group(leader).status().leader, None);
    });
}

#[test]
fn a_group_of_one_serves_alone_and_is_never_isolated() {
    simulate(2, async {
        let mut cluster = Cluster::new(2, 1);
        cluster.start(1).await;
        assert_eq!(cluster.add(7, 0).await, 7);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!cluster.group(1).leader().borrow().isolated);
        cluster.kill(1);
        cluster.start(1).await;
        assert_eq!(cluster.add(1, 0).await, 8);
    });
}

#[test]
fn the_leader_dies_and_nothing_acknowledged_is_lost() {
    simulate(3, async {
        let mut cluster = Cluster::born(3).await;
        let mut sum = 0;
        for round in 1..=5u64 {
            for number in 1..=20 {
                sum = cluster.add(number * round, 100).await;
            }
            let leader = cluster.leader().await;
            cluster.kill(leader);
            let before = Instant::now();
            cluster.leader().await;
            assert!(before.elapsed() < Duration::from_secs(2), "failover took {:?}", before.elapsed());
            cluster.add(1, 0).await;
            sum += 1;
            cluster.start(leader).await;
        }
        assert_eq!(cluster.agree().await.sum, sum);
    });
}

#[test]
fn power_loss_of_all_nodes_keeps_what_was_acknowledged() {
    simulate(4, async {
        let mut cluster = Cluster::born(4).await;
        let mut sum = 0;
        for number in 1..=60 {
            sum = cluster.add(number, 700).await;
        }
        for number in 1..=3 {
            cluster.power_cut(number);
        }
        for number in 1..=3 {
            cluster.start(number).await;
        }
        assert_eq!(cluster.add(5, 0).await, sum + 5);
        assert_eq!(cluster.agree().await.sum, sum + 5);
    });
}

#[test]
fn a_follower_behind_the_floor_catches_up_by_image_and_log() {
    simulate(5, async {
        let mut cluster = Cluster::born(5).await;
        cluster.add(1, 0).await;
        let leader = cluster.leader().await;
        let late = (1..=3).find(|number| *number != leader).unwrap();
        cluster.kill(late);
        let mut sum = 1;
        for _ in 0..100 {
            sum = cluster.add(2, 1000).await;
        }
        let end = cluster.group(cluster.leader().await).status().end;
        assert!(end.0 > 5 * SEGMENT);
        // Not at a border: the largest border below is meant.
        cluster.group(cluster.leader().await).propose_floor(Position(4 * SEGMENT + 17)).await.unwrap();
        let running = cluster.running();
        until("both nodes have purged", || {
            running.iter().all(|number| cluster.group(*number).status().floor == Position(4 * SEGMENT))
        })
        .await;
        assert_eq!(cluster.count(leader).floor, Position(4 * SEGMENT));
        cluster.start(late).await;
        assert_eq!(cluster.agree().await.sum, sum);
        assert_eq!(cluster.count(late).loads, 1, "an image was installed");
        assert_eq!(cluster.group(late).status().floor, Position(4 * SEGMENT));
        // And once more from its own disk.
        cluster.kill(late);
        cluster.start(late).await;
        assert_eq!(cluster.agree().await.sum, sum);
        let error = cluster.group(late).log().read(Position(0), 10).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    });
}

/// Replay saves an image at each border, and the saver takes a few at a time: it must run before replay begins.
#[test]
fn a_node_whose_images_are_gone_replays_over_many_borders_and_starts() {
    simulate(21, async {
        let mut cluster = Cluster::born(21).await;
        let mut sum = 0;
        for _ in 0..150 {
            sum = cluster.add(1, 1000).await;
        }
        cluster.kill(2);
        let disk = cluster.nodes[&2].disk.clone();
        let images: Vec<_> = disk.files().into_iter().filter(|path| path.starts_with("/data/image")).collect();
        assert!(images.len() > 5, "{images:?}");
        for image in images {
            disk.disk().remove(&image).unwrap();
        }
        tokio::time::timeout(Duration::from_secs(20), cluster.start(2)).await.expect("it starts");
        assert_eq!(cluster.agree().await.sum, sum);
    });
}

#[test]
fn a_floor_survives_restarts_of_everybody() {
    simulate(6, async {
        let mut cluster = Cluster::born(6).await;
        for _ in 0..60 {
            cluster.add(1, 1000).await;
        }
        cluster.group(cluster.leader().await).propose_floor(Position(2 * SEGMENT)).await.unwrap();
        for number in 1..=3 {
            cluster.kill(number);
        }
        for number in 1..=3 {
            cluster.start(number).await;
        }
        cluster.add(1, 0).await;
        until("all have purged", || {
            (1..=3).all(|number| cluster.group(number).status().floor == Position(2 * SEGMENT))
        })
        .await;
        assert_eq!(cluster.agree().await.sum, 61);
    });
}

#[test]
fn a_wiped_node_comes_back_as_a_learner_and_takes_its_old_place() {
    simulate(7, async {
        let mut cluster = Cluster::born(7).await;
        for _ in 0..80 {
            cluster.add(1, 1000).await;
        }
        cluster.group(cluster.leader().await).propose_floor(Position(3 * SEGMENT)).await.unwrap();
        let wiped = (1..=3).find(|number| Some(*number) != cluster.running().first().copied()).unwrap();
        let old = cluster.group(wiped).id();
        cluster.wipe(wiped);
        cluster.add(1, 0).await;
        cluster.start(wiped).await;
        let new = cluster.group(wiped).id();
        assert_ne!(old, new);
        assert_eq!(new.number(), wiped);
        until("it votes in place of its old identity", || {
            let members = cluster.group(wiped).status().members;
            members.iter().any(|member| member.id == new && member.voter)
                && !members.iter().any(|member| member.id == old)
        })
        .await;
        assert_eq!(cluster.agree().await.sum, 81);
        // Its vote counts: with one of the others gone the two still serve.
        let other = cluster.running().into_iter().find(|number| *number != wiped).unwrap();
        cluster.kill(other);
        assert_eq!(cluster.add(1, 0).await, 82);
    });
}

#[test]
fn two_wiped_of_three_are_refused_with_the_runbook() {
    simulate(8, async {
        let mut cluster = Cluster::born(8).await;
        cluster.add(1, 0).await;
        cluster.wipe(2);
        cluster.wipe(3);
        cluster.start(2).await;
        cluster.start(3).await;
        let reason = tokio::time::timeout(Duration::from_secs(10), cluster.group(3).fatal()).await.unwrap();
        assert!(reason.contains("[2, 3]") && reason.contains("OPERATIONS.md"), "{reason}");
        assert!(!cluster.group(1).leader().borrow().serving);
    });
}

#[test]
fn a_node_of_another_cluster_is_refused_in_words() {
    simulate(9, async {
        let mut cluster = Cluster::born(9).await;
        cluster.add(1, 0).await;
        cluster.wipe(3);
        let mut config = cluster.config_of(3);
        config.cluster = "another".into();
        cluster.start_with(3, config).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(cluster.group(3).leader().borrow().isolated);
        assert_eq!(cluster.group(3).status().last, None);
        assert_eq!(cluster.add(1, 0).await, 2);
        cluster.kill(3);
        // Nor does a directory of one cluster serve another.
        let config = cluster.config_of(3);
        let refused = cluster.start_with(3, config).await.err().unwrap();
        assert!(matches!(refused, StartError::WrongDirectory(_)), "{refused}");
    });
}

#[test]
fn leadership_is_handed_over_without_an_election_timeout() {
    simulate(10, async {
        let cluster = Cluster::born(10).await;
        cluster.add(1, 0).await;
        cluster.agree().await;
        let old = cluster.leader().await;
        let before = Instant::now();
        cluster.group(old).transfer(None).await.unwrap();
        let view = cluster.group(old).leader();
        until("another node leads", || view.borrow().leader.is_some_and(|leader| leader.number() != old)).await;
        assert!(before.elapsed() < Duration::from_millis(100), "took {:?}", before.elapsed());
        assert_eq!(cluster.add(1, 0).await, 2);
        let follower = cluster.group(old).transfer(None).await;
        assert!(matches!(follower, Err(TransferError::NotLeader { leader: Some(_) })));
    });
}

#[test]
fn a_follower_refuses_proposals_and_names_the_leader() {
    simulate(11, async {
        let cluster = Cluster::born(11).await;
        let leader = cluster.leader().await;
        let id = cluster.group(leader).id();
        let follower = (1..=3).find(|number| *number != leader).unwrap();
        until("the follower knows", || cluster.group(follower).leader().borrow().leader == Some(id)).await;
        let refused = cluster.group(follower).propose(entry(1, 0)).await;
        assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(id) }));
        assert_eq!(
            cluster.group(follower).confirm_leadership().await,
            Err(ProposeError::NotLeader { leader: Some(id) })
        );
        cluster.group(leader).confirm_leadership().await.unwrap();
        let large = cluster.group(leader).propose(entry(1, 5000)).await;
        assert_eq!(large, Err(ProposeError::TooLarge(5008)));
    });
}

#[test]
fn a_leader_cut_off_serves_nobody_and_the_others_go_on() {
    simulate(12, async {
        let cluster = Cluster::born(12).await;
        cluster.add(1, 0).await;
        let old = cluster.leader().await;
        cluster.isolate(old);
        let others: Vec<u16> = (1..=3).filter(|number| *number != old).collect();
        let new = cluster.leader_among(&others).await;
        assert_eq!(cluster.group(new).propose(entry(1, 0)).await, Ok(2));
        until("the old leader knows it is alone", || cluster.group(old).leader().borrow().isolated).await;
        assert!(cluster.group(old).confirm_leadership().await.is_err());
        let lost = tokio::time::timeout(Duration::from_secs(1), cluster.group(old).propose(entry(100, 0))).await;
        assert!(!matches!(lost, Ok(Ok(_))), "an isolated leader acknowledges nothing");
        cluster.network.heal_all();
        assert_eq!(cluster.agree().await.sum, 2);
        assert!(!cluster.group(old).leader().borrow().isolated);
    });
}

#[test]
fn a_one_way_cut_to_one_node_does_not_stop_the_group() {
    simulate(13, async {
        let cluster = Cluster::born(13).await;
        let leader = cluster.leader().await;
        let deaf = (1..=3).find(|number| *number != leader).unwrap();
        cluster.network.cut(&host(leader), &host(deaf));
        let term = cluster.group(leader).leader().borrow().term;
        for number in 1..=20 {
            cluster.add(number, 0).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(
            cluster.group(leader).leader().borrow().term,
            term,
            "pre-vote keeps the deaf node from unseating the leader"
        );
        cluster.network.heal_all();
        assert_eq!(cluster.agree().await.sum, 210);
    });
}

#[test]
fn calls_reach_the_leader_and_end_with_their_caller() {
    simulate(14, async {
        let cluster = Cluster::born(14).await;
        let leader = cluster.leader().await;
        let follower = (1..=3).find(|number| *number != leader).unwrap();
        let group = cluster.group(follower);
        let id = cluster.group(leader).id();
        until("the follower knows", || group.leader().borrow().leader == Some(id)).await;
        let answer = group.call_leader(Bytes::from_static(b"hello"), Duration::from_secs(1)).await.unwrap();
        assert_eq!(answer, format!("{leader} heard hello from {follower}"));
        let own = cluster.group(leader).call_leader(Bytes::from_static(b"me"), Duration::from_secs(1)).await.unwrap();
        assert_eq!(own, format!("{leader} heard me from {leader}"));
        let late = group.call_leader(Bytes::from_static(b"never"), Duration::from_millis(300)).await;
        assert!(matches!(late, Err(CallError::Unknown(_))), "{late:?}");
        let many = (0..200).map(|number| {
            let group = group.clone();
            async move { group.call_leader(Bytes::from(number.to_string()), Duration::from_secs(2)).await }
        });
        for (number, answer) in futures_util::future::join_all(many).await.into_iter().enumerate() {
            assert_eq!(answer.unwrap(), format!("{leader} heard {number} from {follower}"));
        }
    });
}

#[test]
fn too_many_bytes_in_flight_are_refused_at_once() {
    simulate(15, async {
        let cluster = Cluster::born(15).await;
        let leader = cluster.group(cluster.leader().await);
        let waiting = (0..600).map(|_| leader.propose(entry(1, 3000)));
        let answers = futures_util::future::join_all(waiting).await;
        let overloaded = answers.iter().filter(|answer| **answer == Err(ProposeError::Overloaded)).count();
        assert!(overloaded > 0 && overloaded < 600, "{overloaded}");
        let applied = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(applied + overloaded, 600);
        assert_eq!(cluster.agree().await.sum, applied as u64);
    });
}

#[test]
fn bootstrap_starts_alone_and_takes_the_others_in() {
    simulate(16, async {
        let mut cluster = Cluster::new(16, 3);
        let mut config = cluster.config_of(2);
        config.bootstrap = true;
        cluster.start_with(2, config).await.unwrap();
        assert_eq!(cluster.add(3, 0).await, 3);
        cluster.start(1).await;
        cluster.start(3).await;
        until("three voters", || {
            (1..=3)
                .all(|number| cluster.group(number).status().members.iter().filter(|member| member.voter).count() == 3)
        })
        .await;
        // While a change is half done, both memberships must agree to everything.
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.kill(2);
        assert_eq!(cluster.add(4, 0).await, 7);
    });
}

#[test]
fn a_clean_stop_and_start_loses_and_repeats_nothing() {
    simulate(17, async {
        let mut cluster = Cluster::born(17).await;
        for number in 1..=10 {
            cluster.add(number, 2000).await;
        }
        for number in 1..=3 {
            cluster.group(number).shutdown().await;
            cluster.nodes.get_mut(&number).unwrap().group = None;
        }
        for number in 1..=3 {
            cluster.start(number).await;
        }
        assert_eq!(cluster.add(0, 0).await, 55);
        assert_eq!(cluster.agree().await.sum, 55);
    });
}

#[test]
fn a_directory_in_use_is_refused() {
    simulate(18, async {
        let mut cluster = Cluster::new(18, 1);
        cluster.start(1).await;
        let first = cluster.group(1);
        let refused = cluster.try_start(1).await.err().unwrap();
        assert!(
            matches!(&refused, StartError::WrongDirectory(reason) if reason.contains("is used by another process")),
            "{refused}"
        );
        first.shutdown().await;
        cluster.try_start(1).await.unwrap();
    });
}

#[test]
fn the_option_that_loses_entries_is_refused_at_start() {
    simulate(19, async {
        let mut cluster = Cluster::new(19, 1);
        let mut config = cluster.config_of(1);
        config.leader_restore = true;
        let started = cluster.start_with(1, config).await;
        if cfg!(feature = "mutant-leader-restore") {
            started.unwrap();
        } else {
            assert!(matches!(started, Err(StartError::Config(_))));
        }
    });
}

#[test]
fn a_machine_that_cannot_go_on_ends_its_node_with_its_own_words() {
    simulate(20, async {
        let cluster = Cluster::born(20).await;
        let leader = cluster.group(cluster.leader().await);
        let _ = tokio::time::timeout(Duration::from_secs(1), leader.propose(entry(POISON, 0))).await;
        let reason = tokio::time::timeout(Duration::from_secs(5), leader.fatal()).await.unwrap();
        assert!(reason.contains("the disk is on fire"), "{reason}");
        let after = leader.propose(entry(1, 0)).await;
        assert!(matches!(&after, Err(ProposeError::Stopped(words)) if words.contains("on fire")), "{after:?}");
        until("it does not lead", || leader.leader().borrow().leader.is_none()).await;
    });
}

#[test]
fn a_restart_from_a_checkpoint_anywhere_crosses_every_border_once() {
    simulate(21, async {
        let mut cluster = Cluster::born(21).await;
        for round in 0..60u64 {
            let sum = cluster.add(1, 1000).await;
            assert_eq!(sum, round + 1);
            // Its state is what a checkpoint of this very moment would hold.
            let restarted = (round % 3 + 1) as u16;
            cluster.nodes[&restarted].count.lock().unwrap().is_checkpoint = true;
            cluster.agree().await;
            cluster.kill(restarted);
            cluster.start(restarted).await;
            cluster.agree().await;
            if round == 40 {
                cluster.group(cluster.leader().await).propose_floor(Position(2 * SEGMENT)).await.unwrap();
            }
        }
        let crossed = cluster.group(1).status().end.0 / SEGMENT;
        assert!(crossed > 3);
        for number in 1..=3 {
            assert_eq!(cluster.count(number).borders, crossed, "node {number}");
            assert_eq!(cluster.count(number).sum, 60);
        }
    });
}
