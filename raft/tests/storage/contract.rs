//! What the log promises, on both disks.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quorate_raft::{
    FlushMode, LogIndex, Position, SimDisk,
    disk::sim::Keep,
    log::{CatchUpReason, Diverged, Floor, Frame, HEADER_BYTES, Payload},
    types::ImagePoint,
};

use crate::node::{Place, entry, id, next, payload, waiter};

const HEADER: u64 = HEADER_BYTES as u64;

/// Waits for a condition with a deadline.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

#[test]
fn what_was_appended_is_read_back_from_memory_and_from_files() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, (0..40).map(|n| n * 13));
        let before = node.all().unwrap();
        assert_eq!(before.len(), 40);
        assert!(before.iter().enumerate().all(|(n, frame)| frame.payload_bytes() == payload(1, n as u64, n * 13)));
        assert_eq!(node.log.end(), node.log.synced());
        node.close();
        let (node, recovery) = place.open().unwrap();
        assert!(recovery.clean && recovery.catch_up.is_none() && recovery.cut_bytes == 0, "{recovery:?}");
        assert_eq!(recovery.last, Some(id(1, 39)));
        assert_eq!(node.all().unwrap(), before);
    }
}

#[test]
fn a_position_is_a_function_of_the_content_alone() {
    // One node writes entry by entry, another all at once, a third with a truncation in between.
    let sizes = [100, 1500, 1500, 900, 2000, 1, 1990, 0, 4096 - 72];
    let [first, second, third] = [1, 2, 3].map(|seed| Place::sim(&SimDisk::new(seed)));
    let (first, second, third) = (first.start(), second.start(), third.start());
    first.fill(1, sizes);
    second.append(sizes.iter().enumerate().map(|(n, size)| entry(1, n as u64, *size)).collect()).unwrap();
    third.fill(1, sizes[..4].iter().copied());
    third.fill(1, [777, 1999]);
    third.truncate(Some(id(1, 3))).unwrap();
    third.fill(1, sizes[4..].iter().copied());
    let frames = first.all().unwrap();
    assert_eq!(frames, second.all().unwrap());
    assert_eq!(frames, third.all().unwrap());
    assert_eq!(frames[3].place.unwrap().position, Position(4096), "what does not fit starts the next segment");
}

#[test]
fn a_frame_that_a_peer_sends_lands_where_it_stood_or_is_refused_as_divergence() {
    let [leader, follower] = Place::both();
    let (leader, follower) = (leader.start(), follower.start());
    leader.fill(1, [100, 3000, 2000]);
    for frame in leader.all().unwrap() {
        let received = Frame::from_wire(&frame.wire_header(), frame.payload_bytes()).unwrap();
        follower.append(vec![received]).unwrap();
    }
    assert_eq!(leader.log.chain_at(LogIndex(2)).unwrap(), follower.log.chain_at(LogIndex(2)).unwrap());
    // Same id, other content, behind it one more that agrees with the leader.
    follower.fill(1, [10]);
    leader.fill(1, [11, 50]);
    let frame = leader.log.read(LogIndex(4), LogIndex(5), None).unwrap().remove(0);
    let end = follower.log.end();
    let refused = follower.append(vec![frame]).unwrap_err();
    assert!(refused.get_ref().is_some_and(|inner| inner.is::<Diverged>()), "{refused}");
    assert_eq!(follower.log.end(), end, "nothing has happened");
}

#[test]
fn an_entry_that_cannot_follow_is_refused_and_changes_nothing() {
    for place in Place::both() {
        let node = place.start();
        node.fill(3, [10]);
        let end = node.log.end();
        for wrong in [entry(3, 1, 1), entry(3, 3, 1), entry(2, 2, 1), entry(3, 2, 5000)] {
            let refused = node.append(vec![entry(3, 1, 1), wrong]);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!((node.log.end(), node.log.last()), (end, Some(id(3, 0))));
    }
}

#[test]
fn a_truncated_suffix_is_gone_and_never_comes_back() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [500; 30]);
        node.truncate(Some(id(1, 11))).unwrap();
        assert_eq!(node.all().unwrap().len(), 12);
        node.fill(2, [400; 3]);
        drop(node);
        let (node, _) = place.open().unwrap();
        assert_eq!(node.log.last(), Some(id(2, 14)));
        node.truncate(None).unwrap();
        assert_eq!((node.log.last(), node.log.end()), (None, Position(0)));
        drop(node);
        let (node, recovery) = place.open().unwrap();
        assert_eq!((recovery.last, recovery.end), (None, Position(0)));
        node.fill(2, [10]);
        drop(node);
        assert_eq!(place.start().log.last(), Some(id(2, 0)));
    }
}

#[test]
fn what_is_committed_cannot_be_truncated() {
    let place = Place::real();
    let node = place.start();
    node.fill(1, [10; 5]);
    node.log.save_committed(Some(id(1, 3)));
    assert_eq!(node.truncate(Some(id(1, 2))).unwrap_err().kind(), ErrorKind::InvalidInput);
    node.truncate(Some(id(1, 3))).unwrap();
    assert_eq!(node.truncate(Some(id(9, 3))).unwrap_err().kind(), ErrorKind::InvalidInput, "not in the log");
}

#[test]
fn a_purge_unlinks_whole_segments_and_reads_below_it_are_errors() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [1000; 20]);
        let segments = place.disk.list(&place.path("log")).unwrap().len();
        node.purge(id(1, 9)).unwrap();
        assert!(place.disk.list(&place.path("log")).unwrap().len() < segments);
        assert_eq!(node.log.read(LogIndex(9), LogIndex(12), None).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(node.log.read(LogIndex(10), LogIndex(12), None).unwrap().len(), 2);
        let floor = node.log.floor();
        assert_eq!(node.log.view().read(Position(0), 1).unwrap_err().kind(), ErrorKind::NotFound);
        node.purge(id(1, 5)).unwrap();
        assert_eq!(node.log.floor(), floor, "a floor does not go back");
        drop(node);
        let (node, recovery) = place.open().unwrap();
        assert_eq!((node.log.floor(), recovery.last), (floor, Some(id(1, 19))));
        assert_eq!(node.all().unwrap().len(), 10);
        // All of it, and beyond.
        node.purge(id(1, 19)).unwrap();
        assert_eq!(node.log.last(), Some(id(1, 19)));
        node.fill(1, [10]);
        node.purge(id(2, 40)).unwrap();
        assert_eq!((node.log.last(), node.all().unwrap().len()), (Some(id(2, 40)), 0));
        node.fill(3, [10, 20]);
        drop(node);
        assert_eq!(place.start().log.last(), Some(id(3, 42)));
    }
}

#[test]
fn a_log_may_begin_at_any_index_and_be_told_what_came_before() {
    for place in Place::both() {
        let node = place.start();
        node.append(vec![entry(1, 7, 10), entry(1, 8, 10)]).unwrap();
        assert_eq!(node.log.read(LogIndex(0), LogIndex(9), None).unwrap().len(), 2);
        assert_eq!(node.purge(id(1, 5)).unwrap_err().kind(), ErrorKind::InvalidInput, "a gap");
        node.purge(id(1, 6)).unwrap();
        drop(node);
        let node = place.start();
        assert_eq!(
            (node.log.purged(), node.log.last(), node.all().unwrap().len()),
            (Some(id(1, 6)), Some(id(1, 8)), 2)
        );
    }
}

#[test]
fn purging_to_a_border_frees_the_segment_before_it() {
    let place = Place::sim(&SimDisk::new(5));
    let node = place.start();
    node.fill(1, [1000; 5]);
    let border = Position(4096);
    let (last, chain) = node.log.last_below(border).unwrap().unwrap();
    assert_eq!(last, id(1, 2));
    node.log.save_committed(Some(id(1, 3)));
    node.purge(last).unwrap();
    assert_eq!(node.log.floor(), Floor { purged: Some(last), position: border, chain });
    assert_eq!(place.disk.list(&place.path("log")).unwrap(), ["00000000000000004096"]);
    assert_eq!(node.log.last_below(border).unwrap(), Some((last, chain)));
    assert_eq!(node.log.last_below(Position(0)).unwrap(), None);
    drop(node);
    let (node, _) = place.open().unwrap();
    assert_eq!(node.log.last_below(border).unwrap(), Some((last, chain)));
    assert_eq!(node.log.last_below(Position(8192)).unwrap(), None, "the log does not reach it");
}

#[test]
fn after_an_image_the_log_continues_at_its_border_with_its_chain() {
    let [source, target] = Place::both();
    let (source, target) = (source.start(), target.start());
    source.fill(1, [1000; 12]);
    let border = Position(8192);
    let (applied, chain) = source.log.last_below(border).unwrap().unwrap();
    target.fill(1, [7; 3]);
    let (done, wait) = waiter();
    target.log.reset_to(ImagePoint { applied: Some(applied), border }, chain, done);
    wait().unwrap();
    assert_eq!((target.log.last(), target.log.purged(), target.log.end()), (Some(applied), Some(applied), border));
    target.purge(applied).unwrap();
    let rest = source.log.read(LogIndex(applied.index.0 + 1), LogIndex(99), None).unwrap();
    target.append(rest.clone()).unwrap();
    assert_eq!(target.all().unwrap(), rest);
    // A log that holds the entry keeps what follows it.
    let (done, wait) = waiter();
    source.log.reset_to(ImagePoint { applied: Some(applied), border }, chain, done);
    wait().unwrap();
    assert_eq!((source.log.purged(), source.all().unwrap()), (Some(applied), rest));
}

#[test]
fn a_read_is_bounded_by_bytes_but_never_empty() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [1000; 10]);
        for bytes_max in [0, 1, 1072, 3000] {
            let frames = node.log.read(LogIndex(1), LogIndex(9), Some(bytes_max)).unwrap();
            assert_eq!(frames.len(), (bytes_max / 1072).max(1));
        }
        assert_eq!(node.log.read(LogIndex(3), LogIndex(99), None).unwrap().len(), 7);
        assert_eq!(node.log.read(LogIndex(10), LogIndex(99), None).unwrap().len(), 0);
    }
}

#[test]
fn a_view_borrows_bodies_of_committed_entries() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [900; 12]);
        node.log.save_committed(Some(id(1, 11)));
        let view = node.log.view();
        for frame in node.all().unwrap() {
            let at = Position(frame.payload_position().0 + 10);
            assert_eq!(view.read(at, 50).unwrap(), frame.payload_bytes().slice(10..60));
        }
        assert_eq!(view.read(Position(4090), 10).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(view.read(Position(u64::MAX), 10).unwrap_err().kind(), ErrorKind::InvalidInput);
        let body = view.read(Position(HEADER), 900).unwrap();
        node.purge(id(1, 11)).unwrap();
        assert_eq!(body, payload(1, 0, 900), "what is borrowed outlives the segment");
    }
}

#[test]
fn an_entry_can_be_read_before_it_is_written() {
    let place = Place::sim(&SimDisk::new(7));
    let (log, _) = place.open_idle().unwrap();
    let (done, wait) = waiter();
    log.append(vec![next(&log, 1, 1500), entry(1, 1, 1500), entry(1, 2, 1500)], done).unwrap();
    assert_eq!((log.written(), log.synced()), (Position(0), Position(0)));
    let frames = log.read(LogIndex(0), LogIndex(9), None).unwrap();
    assert_eq!(frames.len(), 3, "the tail holds it although it is longer than the tail may be");
    assert_eq!(log.view().read(frames[2].payload_position(), 1500).unwrap(), payload(1, 2, 1500));
    let writer = log.spawn_writer_thread().unwrap();
    wait().unwrap();
    assert_eq!(log.synced(), log.end());
    assert_eq!(log.view().read(frames[2].payload_position(), 1500).unwrap(), payload(1, 2, 1500));
    log.abandon();
    writer.join().unwrap();
}

#[test]
fn many_appends_share_few_syncs() {
    let sim = SimDisk::new(3);
    let mut place = Place::sim(&sim);
    place.config.segment_bytes = 1 << 20;
    let (log, _) = place.open_idle().unwrap();
    let answered = Arc::new(AtomicU64::new(0));
    for index in 0..1000 {
        let answered = answered.clone();
        log.append(
            vec![entry(1, index, 100)],
            Box::new(move |result| {
                result.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }),
        )
        .unwrap();
    }
    let before = log.syncs();
    let writer = log.spawn_writer_thread().unwrap();
    until("all answers", || answered.load(Ordering::Relaxed) == 1000);
    assert!(
        log.syncs() - before <= 3,
        "{} syncs: one for the new segment and one for the entries",
        log.syncs() - before
    );
    log.abandon();
    writer.join().unwrap();
}

#[test]
fn votes_survive_and_entries_before_them_too() {
    for place in Place::both() {
        let node = place.start();
        let (done, _) = waiter();
        node.log.append(vec![entry(1, 0, 10)], done).unwrap();
        node.vote(5, true).unwrap();
        drop(node);
        let (node, recovery) = place.open().unwrap();
        let vote = node.log.vote().unwrap();
        assert_eq!((vote.term.0, vote.committed, recovery.last), (5, true, Some(id(1, 0))));
    }
}

#[test]
fn the_last_membership_and_floor_are_known_at_start() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [1000; 4]);
        let membership = Frame::new(id(1, 4), Payload::Membership(b"one".as_slice().into()));
        node.append(vec![membership, Frame::new(id(1, 5), Payload::Floor(Position(4096)))]).unwrap();
        node.fill(1, [1000; 20]);
        node.append(vec![Frame::new(id(1, 26), Payload::Membership(b"two".as_slice().into()))]).unwrap();
        node.close();
        let node = place.start();
        let (membership, floor) = node.log.last_special(LogIndex(20));
        assert_eq!(membership.unwrap().payload, Payload::Membership(b"one".as_slice().into()));
        assert_eq!(floor.unwrap().payload, Payload::Floor(Position(4096)));
        let (membership, _) = node.log.last_special(LogIndex(99));
        assert_eq!(membership.unwrap().id, id(1, 26));
        assert_eq!(node.log.last_special(LogIndex(3)), (None, None));
        node.truncate(Some(id(1, 25))).unwrap();
        assert_eq!(node.log.last_special(LogIndex(99)).0.unwrap().id, id(1, 4));
    }
}

#[test]
fn a_lost_or_damaged_index_is_rebuilt() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [700; 40]);
        let frames = node.all().unwrap();
        node.close();
        let names = place.disk.list(&place.path("index")).unwrap();
        assert!(names.len() > 5);
        for (number, name) in names.iter().enumerate() {
            let path = place.path(&format!("index/{name}"));
            if number % 2 == 0 {
                place.disk.remove(&path).unwrap();
            } else {
                place.disk.open(&path, false).unwrap().write_at(20, &[vec![0xff; 5].into()]).unwrap();
            }
        }
        assert_eq!(place.start().all().unwrap(), frames);
        assert_eq!(place.disk.list(&place.path("index")).unwrap(), names, "and stored again");
    }
}

#[test]
fn a_full_disk_is_an_error_and_nothing_acked_is_lost() {
    let sim = SimDisk::new(11);
    let place = Place::sim(&sim);
    let node = place.start();
    sim.faults(|faults| faults.capacity = Some(40_000));
    let mut acked = 0;
    let error = loop {
        match node.append(vec![next(&node.log, 1, 1000)]) {
            Ok(()) => acked += 1,
            Err(error) => break error,
        }
        assert!(acked < 100, "the disk never got full");
    };
    assert!(error.to_string().contains("failed"), "{error}");
    assert!(node.vote(3, false).is_err(), "a failed log stays failed");
    assert!(node.log.failure().is_some());
    drop(node);
    sim.faults(|faults| faults.capacity = None);
    let (node, recovery) = place.open().unwrap();
    assert!(recovery.last.is_some_and(|last| last.index.0 + 1 >= acked), "{recovery:?} after {acked}");
    node.fill(1, [1000; 3]);
}

#[test]
fn a_failed_sync_is_for_ever_and_remembered() {
    let sim = SimDisk::new(12);
    let place = Place::sim(&sim);
    let node = place.start();
    node.fill(1, [10; 3]);
    let counted = sim.syncs();
    sim.faults(|faults| faults.sync_error = true);
    assert!(node.append(vec![entry(1, 3, 10)]).is_err());
    sim.faults(|faults| faults.sync_error = false);
    assert!(node.append(vec![entry(1, 4, 10)]).is_err());
    assert!(node.truncate(Some(id(1, 0))).is_err());
    assert_eq!(sim.syncs(), counted, "nothing was synced again");
    drop(node);
    sim.kill();
    let (node, recovery) = Place::sim(&sim).open().unwrap();
    assert!(recovery.last >= Some(id(1, 2)));
    drop(node);
    // What recovery kept was written again: a power cut takes nothing of it.
    sim.power_cut(Keep::Nothing);
    assert_eq!(Place::sim(&sim).open().unwrap().1.last, recovery.last);
}

#[test]
fn async_flush_survives_a_kill_and_owes_catching_up_after_a_power_cut() {
    let sim = SimDisk::new(13);
    let open = || {
        let mut place = Place::sim(&sim);
        place.config.flush = FlushMode::Async(Duration::from_secs(3600));
        place.open().unwrap()
    };
    let (node, _) = open();
    node.fill(1, [100; 10]);
    assert!(node.log.synced() < node.log.written());
    drop(node);
    sim.kill();
    let (node, recovery) = open();
    assert_eq!((recovery.last, recovery.catch_up), (Some(id(1, 9)), None));
    node.fill(1, [100; 10]);
    let (done, wait) = waiter();
    node.log.sync_all(done);
    wait().unwrap();
    node.fill(1, [100; 10]);
    drop(node);
    sim.power_cut(Keep::Nothing);
    let (node, recovery) = open();
    assert!(recovery.last >= Some(id(1, 19)) && recovery.last < Some(id(1, 29)), "{recovery:?}");
    assert_eq!(recovery.catch_up.unwrap().reason, CatchUpReason::PowerLoss);
    node.close();
    let (node, recovery) = open();
    assert!(recovery.catch_up.is_some(), "the duty outlives a clean restart");
    let (done, wait) = waiter();
    node.log.caught_up(done);
    wait().unwrap();
    drop(node);
    sim.kill();
    assert_eq!(open().1.catch_up, None);
}

#[test]
fn async_flush_syncs_in_the_background() {
    for mut place in Place::both() {
        place.config.flush = FlushMode::Async(Duration::from_millis(1));
        let node = place.start();
        node.fill(1, [1000; 9]);
        until("the background sync", || node.log.synced() == node.log.end());
        node.truncate(Some(id(1, 2))).unwrap();
        node.fill(2, [10; 3]);
        until("the background sync", || node.log.synced() == node.log.end());
    }
}

#[test]
fn after_close_nothing_is_accepted() {
    let place = Place::real();
    let node = place.start();
    let log = node.log.clone();
    node.close();
    assert!(log.append(vec![entry(1, 0, 1)], Box::new(|_| ())).is_err());
    let (done, wait) = waiter();
    log.save_vote(Default::default(), done);
    assert!(wait().is_err());
}

/// Through a memory map this would be a bus error, which ends the process without a word.
#[test]
fn a_segment_cut_short_under_a_running_log_is_damage_that_names_its_file() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [700; 30]);
        node.log.save_committed(node.log.last());
        let second = &node.all().unwrap()[1];
        let at = Position(second.place.unwrap().position.0 + HEADER);
        let view = node.log.view();
        assert_eq!(view.read(at, 700).unwrap(), second.payload_bytes());
        let path = place.segment(0);
        place.disk.open(&path, false).unwrap().set_len(0).unwrap();
        for error in [view.read(at, 700).unwrap_err(), node.all().unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        // The rest is there.
        let last = node.log.last().unwrap().index;
        assert_eq!(node.log.read(LogIndex(last.0 - 9), LogIndex(u64::MAX), None).unwrap().len(), 10);
    }
}

/// Retention must be able to take what is damaged, and a node must not end of it.
#[test]
fn a_segment_whose_last_entry_has_rotted_is_purged() {
    for place in Place::both() {
        let node = place.start();
        node.fill(1, [700; 30]);
        node.log.save_committed(node.log.last());
        let frames = node.all().unwrap();
        let last = frames.iter().rfind(|frame| frame.place.unwrap().position.0 < 4096).unwrap();
        let at = last.place.unwrap().position.0;
        place.disk.open(&place.segment(0), false).unwrap().write_at(at + 20, &[vec![0xff; 30].into()]).unwrap();
        node.purge(last.id).unwrap();
        assert_eq!((node.log.purged(), node.log.floor().position), (Some(last.id), Position(4096)));
        assert_eq!(node.all().unwrap(), frames[last.id.index.0 as usize + 1..]);
        node.close();
        let node = place.start();
        assert_eq!(node.all().unwrap(), frames[last.id.index.0 as usize + 1..]);
    }
}
