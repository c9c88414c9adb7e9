use std::time::{Duration, Instant};

use quorate_raft::{
    LogId, LogIndex, NodeId, Term,
    disk::{RealDisk, SimDisk, sim::Keep},
};

use super::*;
use crate::{
    machine::image::REMEMBERED_BYTES,
    store::{
        files::{OpenFiles, Unsynced},
        plain::Plain,
        save::{REMEMBERED_PER_FILE, Remembered},
    },
};

fn part(key: &[u8], bytes: Vec<u8>) -> Part {
    Part { key: Bytes::copy_from_slice(key), bytes: bytes.into() }
}

fn id(index: u64) -> LogId {
    LogId { term: Term(3), node: NodeId::new(1, 9), index: LogIndex(index) }
}

fn save(index: u64, parts: Vec<Part>, remembered: std::ops::Range<u64>) -> Save {
    let bytes = remembered.clone().flat_map(|number| [number as u8; REMEMBERED_BYTES]).collect();
    let remembered = Remembered { first: remembered.start, from: remembered.start, bytes };
    Save { applied: id(index), parts, remembered, unsynced: Unsynced::default() }
}

fn place(disk: Arc<dyn Disk>, data_dir: &Path) -> Place {
    Place::new(Arc::new(OpenFiles::new(disk)), data_dir.to_owned())
}

fn open(dir: &Path) -> (Database, Option<Saved>) {
    Database::open(place(Arc::new(RealDisk), dir)).expect("opens")
}

/// Saves and waits until it is kept.
fn keep(database: &mut Database, save: Save) {
    database.save(save).expect("no sync has failed");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !database.is_idle() {
        assert!(Instant::now() < deadline, "the checkpoint thread does not get done");
        std::thread::yield_now();
    }
}

fn check(saved: Option<Saved>, index: u64, parts: &[Part]) {
    let saved = saved.expect("something was kept");
    assert_eq!(saved.applied, id(index));
    assert!(saved.parts == parts, "{} parts", saved.parts.len());
}

#[test]
fn the_database_keeps_the_newest_save_and_nothing_of_older_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut database, saved) = open(dir.path());
    assert!(saved.is_none());
    let large = part(&[2, 0, 0, 0, 1], (0..100_000u32).map(|n| n as u8).collect());
    keep(&mut database, save(1, vec![part(&[0], vec![1]), part(&[1, 0, 0, 0, 0], vec![]), large.clone()], 0..3));
    drop(database);
    let (mut database, saved) = open(dir.path());
    check(saved, 1, &[part(&[0], vec![1]), part(&[1, 0, 0, 0, 0], vec![]), large]);
    // One part grows, one shrinks to fewer chunks, one goes.
    let small = part(&[2, 0, 0, 0, 1], vec![7; 10]);
    keep(&mut database, save(2, vec![part(&[0], vec![2; 40_000]), small.clone()], 3..4));
    drop(database);
    check(open(dir.path()).1, 2, &[part(&[0], vec![2; 40_000]), small]);
}

#[test]
fn only_what_changed_is_written_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut database, _) = open(dir.path());
    let same = part(&[1, 0, 0, 0, 0], vec![5; 5_000]);
    keep(&mut database, save(1, vec![part(&[0], vec![1; 100]), same.clone()], 0..0));
    assert_eq!(database.cost_bytes(), 5_100);
    keep(&mut database, save(2, vec![part(&[0], vec![2; 100]), same], 0..0));
    assert_eq!(database.cost_bytes(), 100);
}

#[test]
fn remembered_sends_are_read_back_by_number_and_old_files_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut database, _) = open(dir.path());
    let parts = || vec![part(&[0], vec![1])];
    keep(&mut database, save(1, parts(), 0..REMEMBERED_PER_FILE + 10));
    let place = place(Arc::new(RealDisk), dir.path());
    let bytes = place.load_remembered(REMEMBERED_PER_FILE - 1, REMEMBERED_PER_FILE + 1).expect("both files");
    assert_eq!(bytes.chunks(REMEMBERED_BYTES).map(|entry| entry[0]).collect::<Vec<_>>(), [255, 0]);
    assert!(place.load_remembered(REMEMBERED_PER_FILE, REMEMBERED_PER_FILE + 11).is_err(), "more than there are");
    keep(&mut database, save(2, parts(), REMEMBERED_PER_FILE + 10..REMEMBERED_PER_FILE + 20));
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(dir.path().join("dedup")).expect("listed").count() > 1 {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_database_that_will_not_open_is_moved_aside_and_begun_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let database_dir = dir.path().join("checkpoint");
    for round in 1..=4 {
        let (mut database, saved) = open(dir.path());
        assert!(saved.is_none(), "round {round}");
        keep(&mut database, save(1, vec![part(&[0], vec![1; 50_000])], 0..0));
        drop(database);
        for entry in std::fs::read_dir(&database_dir).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                std::fs::write(&path, vec![round; 60_000]).expect("damaged");
            }
        }
    }
    assert!(open(dir.path()).1.is_none());
    let names = std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("an entry").file_name());
    let mut aside: Vec<_> = names.filter(|name| name.to_string_lossy().contains("bad")).collect();
    aside.sort();
    assert_eq!(aside, ["checkpoint.bad-3", "checkpoint.bad-4"], "the last two are kept to be looked at");
}

#[test]
fn the_plain_file_is_the_old_save_or_the_new_one_after_any_power_cut() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let data = Path::new("/data");
        disk.disk().create_dir(data).expect("a directory");
        disk.disk().sync_dir("/".as_ref()).expect("durable");
        let (mut plain, saved) = Plain::open(place(disk.disk(), data)).expect("opens");
        assert!(saved.is_none());
        plain.save(save(1, vec![part(&[0], vec![1; 3_000])], 0..5)).expect("kept");
        disk.faults(|faults| faults.sync_error = true);
        assert!(plain.save(save(2, vec![part(&[0], vec![2; 3_000])], 5..9)).is_err(), "no sync, no save");
        disk.faults(|faults| faults.sync_error = false);
        disk.power_cut([Keep::Nothing, Keep::Prefix, Keep::Sectors][seed as usize % 3]);
        let (_, saved) = Plain::open(place(disk.disk(), data)).expect("opens");
        check(saved, 1, &[part(&[0], vec![1; 3_000])]);
        assert_eq!(place(disk.disk(), data).load_remembered(0, 5).expect("kept").len(), 5 * REMEMBERED_BYTES);
    }
}

#[test]
fn a_failed_sync_is_reported_at_the_next_save_and_never_tried_again() {
    let disk = SimDisk::new(1);
    let files = Arc::new(OpenFiles::new(disk.disk()));
    let root = Path::new("/queue");
    let path = root.join("0");
    files.write(root, &path, 0, Bytes::from_static(b"x")).expect("written");
    disk.faults(|faults| faults.sync_error = true);
    assert!(files.sync(&files.take_unsynced()).is_err());
    disk.faults(|faults| faults.sync_error = false);
    files.write(root, &path, 0, Bytes::from_static(b"x")).expect("written");
    assert!(files.sync(&files.take_unsynced()).is_err());
}
