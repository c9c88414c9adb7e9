//! Every rule is shown to fail: a checker that cannot is none.

use bytes::Bytes;
use quorate_raft::{NodeId, Role, Term};

use super::*;

fn witness() -> Witness {
    let witness = Witness::new(10, false);
    (1..=3).for_each(|node| witness.start(node, 1));
    witness
}

fn id(term: u64, node: u16, index: u64) -> LogId {
    LogId { term: Term(term), node: NodeId::new(node, 1), index: LogIndex(index) }
}

fn entry(index: u64, payload: &'static str) -> CommittedEntry {
    CommittedEntry {
        id: id(1, 1, index),
        position: Position(index * 100),
        payload: Bytes::from_static(payload.as_bytes()),
    }
}

fn crc(payload: &str) -> u32 {
    crc32c::crc32c(payload.as_bytes())
}

/// A node that has written, synced, committed and applied everything up to `index`.
fn status(node: u16, index: u64) -> GroupStatus {
    let (last, end) = (Some(id(1, 1, index)), Position(index * 100 + 100));
    GroupStatus {
        id: NodeId::new(node, 1),
        role: Role::Follower,
        term: Term(1),
        leader: Some(NodeId::new(1, 1)),
        last,
        committed: last,
        applied: last,
        end,
        synced: end,
        floor: Position(0),
        chain: index as u32,
        syncs: 0,
        entries: 0,
        damaged: Vec::new(),
        membership: None,
        members: Vec::new(),
    }
}

fn broken(witness: &Witness) -> Vec<&'static str> {
    witness.summary().4.iter().map(|violation| violation.rule).collect()
}

#[test]
fn nodes_that_do_the_same_break_nothing() {
    let witness = witness();
    for node in 1..=3 {
        witness.apply(node, 1, &entry(1, "a"));
        witness.apply(node, 1, &entry(2, "b"));
        witness.look(node, node == 1, &status(node, 2));
    }
    let asked = witness.invoke(0, 0, 1);
    witness.acked(0, 0, asked, LogIndex(2), crc("b"));
    assert_eq!(broken(&witness), [""; 0]);
    assert!(!witness.broken().is_cancelled());
}

#[test]
fn another_payload_at_an_index_is_not_the_same_log() {
    let witness = witness();
    witness.apply(1, 1, &entry(1, "a"));
    witness.apply(2, 1, &entry(1, "b"));
    assert_eq!(broken(&witness), ["same-log"]);
    assert!(witness.broken().is_cancelled());
}

#[test]
fn another_running_hash_at_an_index_is_not_the_same_log() {
    let witness = witness();
    witness.look(1, false, &status(1, 5));
    witness.look(2, false, &GroupStatus { chain: 77, ..status(2, 5) });
    assert_eq!(broken(&witness), ["same-log"]);
}

#[test]
fn another_log_id_committed_at_an_index_is_not_the_same_log() {
    let witness = witness();
    witness.look(1, false, &status(1, 5));
    let other = Some(id(2, 2, 5));
    witness.look(2, false, &GroupStatus { committed: other, last: other, applied: Some(id(1, 1, 4)), ..status(2, 5) });
    assert_eq!(broken(&witness), ["same-log"]);
}

#[test]
fn an_entry_executed_twice_or_skipped_or_by_a_dead_process_is_out_of_order() {
    let twice = witness();
    twice.apply(1, 1, &entry(1, "a"));
    twice.apply(1, 1, &entry(1, "a"));
    assert_eq!(broken(&twice), ["in-order"]);

    let skipped = witness();
    skipped.apply(1, 1, &entry(1, "a"));
    skipped.apply(1, 1, &entry(2, "b"));
    skipped.apply(2, 1, &entry(2, "b"));
    assert_eq!(broken(&skipped), ["in-order"]);

    let dead = witness();
    dead.end(1, Event::Kill { node: 1 });
    dead.apply(1, 1, &entry(1, "a"));
    assert_eq!(broken(&dead), ["in-order"]);
}

#[test]
fn images_that_differ_are_found_when_saved_and_when_loaded() {
    let saved = witness();
    saved.save(1, Position(4096), b"one");
    saved.save(2, Position(4096), b"two");
    assert_eq!(broken(&saved), ["same-image"]);

    let loaded = witness();
    loaded.save(1, Position(4096), b"one");
    loaded.load(2, Position(4096), Some(id(1, 1, 3)), b"one");
    assert_eq!(broken(&loaded), [""; 0]);
    loaded.load(3, Position(8192), Some(id(1, 1, 6)), b"nobody saved this");
    assert_eq!(broken(&loaded), ["same-image"]);
}

#[test]
fn positions_and_indices_out_of_order_break_the_law() {
    let ahead = [
        GroupStatus { applied: Some(id(1, 1, 6)), ..status(1, 5) },
        GroupStatus { committed: Some(id(1, 1, 6)), ..status(1, 5) },
        GroupStatus { synced: Position(9999), ..status(1, 5) },
        GroupStatus { floor: Position(9999), ..status(1, 5) },
    ];
    for wrong in ahead {
        let witness = witness();
        witness.look(1, false, &wrong);
        assert_eq!(broken(&witness), ["law-order"], "{wrong:?}");
    }
}

#[test]
fn a_commit_that_goes_back_is_found_but_a_new_process_may_know_less() {
    let witness = witness();
    witness.look(1, false, &status(1, 5));
    witness.end(1, Event::Kill { node: 1 });
    witness.start(1, 2);
    let less = GroupStatus { committed: Some(id(1, 1, 3)), applied: Some(id(1, 1, 3)), ..status(1, 5) };
    witness.look(1, false, &less);
    assert_eq!(broken(&witness), [""; 0]);
    witness.look(1, false, &GroupStatus { committed: Some(id(1, 1, 2)), applied: Some(id(1, 1, 2)), ..status(1, 5) });
    assert_eq!(broken(&witness), ["commit-forward"]);
}

#[test]
fn a_synced_and_committed_entry_that_is_not_there_after_a_cut_was_not_durable() {
    let witness = witness();
    witness.apply(2, 1, &entry(1, "a"));
    witness.apply(2, 1, &entry(2, "b"));
    witness.look(1, false, &status(1, 2));
    witness.end(1, Event::PowerCut { node: 1 });
    witness.start(1, 2);
    witness.ready(1, 2, &status(1, 1));
    assert_eq!(broken(&witness), ["durable"]);
}

#[test]
fn a_leader_that_serves_without_what_was_acknowledged_is_no_leader() {
    let witness = witness();
    for index in 1..=3 {
        witness.apply(1, 1, &entry(index, "a"));
    }
    let asked = witness.invoke(0, 0, 1);
    witness.acked(0, 0, asked, LogIndex(3), crc("a"));
    let fresh = GroupStatus { term: Term(2), ..status(2, 2) };
    witness.look(2, true, &fresh);
    assert_eq!(broken(&witness), ["one-leader"]);
}

#[test]
fn damaged_bodies_are_found() {
    let witness = witness();
    witness.apply(1, 1, &entry(1, "a"));
    let known = witness.known(LogIndex(1)).expect("it was executed");
    witness.body(2, known, Some(b"a"));
    witness.body(2, known, None);
    assert_eq!(broken(&witness), [""; 0]);
    witness.body(2, known, Some(b"b"));
    assert_eq!(broken(&witness), ["body"]);
}

#[test]
fn acknowledgements_and_reads_follow_what_was_acknowledged_before_they_were_asked_for() {
    let witness = witness();
    for index in 1..=3 {
        witness.apply(1, 1, &entry(index, "a"));
    }
    let early = witness.invoke(0, 0, 1);
    let first = witness.invoke(1, 0, 1);
    witness.acked(1, 0, first, LogIndex(2), crc("a"));
    // Concurrent with the first: any order is fine.
    witness.acked(0, 0, early, LogIndex(1), crc("a"));
    assert_eq!(broken(&witness), [""; 0]);
    let late = witness.invoke(0, 1, 1);
    witness.read(0, 1, late, Some(LogIndex(1)));
    witness.acked(0, 1, late, LogIndex(1), crc("a"));
    assert_eq!(broken(&witness), ["fresh-read", "ack-order"]);
}

#[test]
fn an_acknowledgement_of_something_else_is_found() {
    let witness = witness();
    witness.apply(1, 1, &entry(1, "a"));
    let asked = witness.invoke(0, 0, 1);
    witness.acked(0, 0, asked, LogIndex(1), crc("b"));
    assert_eq!(broken(&witness), ["same-log"]);
}
