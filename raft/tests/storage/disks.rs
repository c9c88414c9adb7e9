//! One suite for every disk, and what only the disk in memory can do.

use std::{io::ErrorKind, path::PathBuf};

use bytes::Bytes;
use quorate_raft::{
    Disk, SimDisk,
    disk::{RealDisk, sim::Keep},
};

fn on_both(check: impl Fn(&dyn Disk, PathBuf)) {
    let temporary = tempfile::tempdir().unwrap();
    check(&RealDisk, temporary.path().join("a/b"));
    check(SimDisk::new(1).disk().as_ref(), PathBuf::from("/a/b"));
}

#[test]
fn files_are_written_in_parts_and_read_back() {
    on_both(|disk, dir| {
        disk.create_dir(&dir).unwrap();
        let path = disk.join(&dir, "file");
        assert_eq!(disk.open(&path, false).err().unwrap().kind(), ErrorKind::NotFound);
        let file = disk.open(&path, true).unwrap();
        let parts: Vec<Bytes> = (0..3000u32).map(|n| vec![n as u8; (n % 5) as usize].into()).collect();
        file.write_at(5000, &parts).unwrap();
        let whole: Vec<u8> = parts.concat();
        assert_eq!(file.len().unwrap(), 5000 + whole.len() as u64);
        assert_eq!(file.read_at(5000, whole.len()).unwrap(), whole);
        assert_eq!(file.read_at(0, 5000).unwrap(), vec![0; 5000], "a hole is zeros");
        for (offset, len) in [(5000, whole.len() + 1), (u64::MAX, 2), (0, usize::MAX)] {
            assert_eq!(file.read_at(offset, len).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
        file.sync().unwrap();
    });
}

/// Through a memory map this would be a bus error, which ends the process without a word.
#[test]
fn a_file_that_is_cut_short_under_its_reader_is_an_error_and_what_was_read_stays() {
    on_both(|disk, dir| {
        disk.create_dir(&dir).unwrap();
        let path = disk.join(&dir, "file");
        let file = disk.open(&path, true).unwrap();
        for (at, len) in [(0, 3), (9000, 3), (1 << 20, 2 << 20)] {
            file.write_at(at, &[Bytes::from(vec![7; len])]).unwrap();
            let read = file.read_at(at, len).unwrap();
            disk.open(&path, false).unwrap().set_len(at + 1).unwrap();
            assert_eq!(file.read_at(at, len).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            assert_eq!(read, vec![7; len]);
        }
    });
}

#[test]
fn names_come_go_and_change() {
    on_both(|disk, dir| {
        assert!(disk.list(&dir).unwrap().is_empty());
        disk.create_dir(&dir).unwrap();
        for name in ["b", "a"] {
            disk.open(&disk.join(&dir, name), true).unwrap();
        }
        disk.create_dir(&disk.join(&dir, "sub")).unwrap();
        for name in ["x", "y"] {
            disk.open(&disk.join(&dir, "sub").join(name), true).unwrap();
            disk.remove(&disk.join(&dir, "sub").join("x")).unwrap();
        }
        assert_eq!(disk.list(&dir).unwrap(), ["a", "b", "sub"]);
        assert_eq!(disk.list(&disk.join(&dir, "sub")).unwrap(), ["y"]);
        disk.rename(&disk.join(&dir, "a"), &disk.join(&dir, "b")).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["b", "sub"]);
        disk.remove(&disk.join(&dir, "b")).unwrap();
        disk.remove(&disk.join(&dir, "b")).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["sub"]);
        let (free, total) = disk.space(&dir).unwrap();
        assert!(free <= total && total > 0);
        assert!(!disk.file_system(&dir).is_empty());
        assert_eq!(disk.boot_id().unwrap(), disk.boot_id().unwrap());
    });
}

#[test]
fn a_directory_has_one_owner_at_a_time() {
    on_both(|disk, dir| {
        disk.create_dir(&dir).unwrap();
        let path = disk.join(&dir, "lock");
        let held = disk.lock(&path).unwrap();
        assert_eq!(disk.lock(&path).err().unwrap().kind(), ErrorKind::WouldBlock);
        drop(held);
        disk.lock(&path).unwrap();
    });
}

#[test]
fn a_kill_keeps_the_cache_and_a_power_cut_does_not() {
    let sim = SimDisk::new(4);
    let path = PathBuf::from("/d/file");
    let file = sim.disk().open(&path, true).unwrap();
    sim.disk().sync_dir(path.parent().unwrap()).unwrap();
    file.write_at(0, &[Bytes::from_static(b"one")]).unwrap();
    file.sync().unwrap();
    file.write_at(3, &[Bytes::from_static(b"two")]).unwrap();
    let boot = sim.disk().boot_id().unwrap();
    sim.kill();
    assert!(file.write_at(0, &[Bytes::from_static(b"xxx")]).is_err(), "a dead process writes nothing");
    assert_eq!(sim.peek(&path).unwrap(), "onetwo");
    assert_eq!(sim.disk().boot_id().unwrap(), boot);
    sim.power_cut(Keep::Nothing);
    assert_eq!(sim.peek(&path).unwrap(), "one");
    assert_ne!(sim.disk().boot_id().unwrap(), boot);
}

#[test]
fn a_name_is_durable_after_the_directory_is_synced() {
    let sim = SimDisk::new(4);
    let path = PathBuf::from("/d/file");
    sim.disk().open(&path, true).unwrap().sync().unwrap();
    sim.power_cut(Keep::Nothing);
    assert!(sim.files().is_empty(), "a synced file without a name is lost");
    sim.disk().open(&path, true).unwrap();
    sim.disk().sync_dir(path.parent().unwrap()).unwrap();
    sim.disk().remove(&path).unwrap();
    sim.power_cut(Keep::Nothing);
    assert_eq!(sim.files(), [path], "an unsynced removal is undone");
}

#[test]
fn a_cut_may_keep_any_prefix_or_any_sectors_of_what_was_not_synced() {
    let (mut lengths, mut holes) = (std::collections::BTreeSet::new(), 0);
    for seed in 0..60 {
        for keep in [Keep::Prefix, Keep::Sectors] {
            let sim = SimDisk::new(seed);
            let path = PathBuf::from("/d/file");
            let file = sim.disk().open(&path, true).unwrap();
            sim.disk().sync_dir(path.parent().unwrap()).unwrap();
            file.set_len(4096).unwrap();
            file.sync().unwrap();
            for part in 0..4u64 {
                file.write_at(part * 1024, &[vec![1; 1024].into()]).unwrap();
            }
            sim.power_cut(keep);
            let bytes = sim.peek(&path).unwrap();
            let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "sectors are whole");
            let first = sectors.iter().take_while(|sector| **sector == 1).count();
            if keep == Keep::Prefix {
                assert!(sectors[first..].iter().all(|sector| *sector == 0), "{sectors:?} is no prefix");
                lengths.insert(first);
            } else {
                holes += usize::from(sectors[first..].contains(&1));
            }
        }
    }
    assert!(lengths.len() > 4 && holes > 30, "{lengths:?}, {holes}");
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed| {
        let sim = SimDisk::new(seed);
        let path = PathBuf::from("/d/file");
        let file = sim.disk().open(&path, true).unwrap();
        sim.disk().sync_dir(path.parent().unwrap()).unwrap();
        file.write_at(0, &[vec![9; 20_000].into()]).unwrap();
        sim.power_cut(Keep::Sectors);
        (sim.peek(&path).unwrap(), sim.disk().boot_id().unwrap())
    };
    assert_eq!(run(8), run(8));
    assert_ne!(run(8), run(9));
}

#[test]
fn a_full_disk_says_so() {
    let sim = SimDisk::new(4);
    sim.faults(|faults| faults.capacity = Some(8192));
    let file = sim.disk().open(&PathBuf::from("/d/file"), true).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_at(0, &[vec![1; 8192].into()]).unwrap();
    assert_eq!(file.write_at(1 << 20, &[vec![1; 1].into()]).unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_at(100, &[vec![2; 100].into()]).unwrap();
    assert_eq!(sim.disk().space(&PathBuf::from("/d")).unwrap(), (0, 8192));
}
