//! Opening after every kind of end: torn tails are cut, damage is refused, other people's directories too.

use quorate_raft::{
    LogIndex, SimDisk,
    disk::sim::{Damage, Keep},
    log::{Frame, OpenError},
};

use crate::node::{Node, Place, entry, id};

/// Copies all files of one disk to a fresh one, durable.
fn copy(from: &SimDisk, change: impl Fn(&str, &mut Vec<u8>)) -> SimDisk {
    let to = SimDisk::new(99);
    for path in from.files() {
        let mut bytes = from.peek(&path).unwrap().to_vec();
        change(path.to_str().unwrap(), &mut bytes);
        let file = to.disk().open(&path, true).unwrap();
        file.write_at(0, &[bytes.into()]).unwrap();
        file.sync().unwrap();
        to.disk().sync_dir(path.parent().unwrap()).unwrap();
    }
    to
}

/// A log with some acked entries, and a last write of several frames; the hard state is that of before it.
fn with_a_last_write(sizes: &[usize]) -> (SimDisk, usize, Vec<Frame>) {
    let sim = SimDisk::new(2);
    let place = Place::sim(&sim);
    let node = place.start();
    node.fill(1, [30, 0, 100]);
    let acked = node.log.end().0 as usize;
    let hard_state = sim.peek(&place.path("hard_state")).unwrap();
    node.append(sizes.iter().enumerate().map(|(n, size)| entry(1, 3 + n as u64, *size)).collect()).unwrap();
    let frames = node.all().unwrap();
    drop(node);
    let sim = copy(&sim, |path, bytes| {
        if path.ends_with("hard_state") {
            bytes.clone_from(&hard_state.to_vec());
        }
    });
    (sim, acked, frames)
}

#[test]
fn a_log_cut_at_any_byte_of_its_last_write_recovers_to_exactly_a_prefix() {
    let (sim, acked, frames) = with_a_last_write(&[50, 0, 7, 200, 1]);
    let end = frames.last().unwrap().end().0 as usize;
    for cut in acked..=end {
        let torn = copy(&sim, |path, bytes| {
            if path.contains("/log/") {
                bytes[cut..].fill(0);
            }
        });
        let (node, recovery) = Place::sim(&torn).open().unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let whole: Vec<_> = frames.iter().filter(|frame| frame.end().0 as usize <= cut).cloned().collect();
        assert_eq!(node.all().unwrap(), whole, "cut at {cut}");
        let kept = whole.last().unwrap().end().0;
        assert!(recovery.cut_bytes <= cut as u64 - kept, "cut at {cut}: {recovery:?}");
        // What is written now continues the prefix, and what was cut does not come back behind it.
        node.fill(2, [40]);
        drop(node);
        let after = Place::sim(&torn).open().unwrap().1.last;
        assert_eq!(after, Some(id(2, whole.len() as u64)), "cut at {cut}");
    }
}

#[test]
fn a_file_that_ends_inside_its_last_write_recovers_too() {
    let (sim, acked, frames) = with_a_last_write(&[50, 7]);
    for cut in acked..=frames.last().unwrap().end().0 as usize {
        let torn = copy(&sim, |path, bytes| {
            if path.contains("/log/") {
                bytes.truncate(cut);
            }
        });
        let (node, _) = Place::sim(&torn).open().unwrap();
        assert_eq!(node.all().unwrap().len(), frames.iter().filter(|frame| frame.end().0 as usize <= cut).count());
        node.fill(2, [3000, 3000]);
    }
}

#[test]
fn a_hole_in_the_last_write_cuts_what_stands_behind_it() {
    // Sectors reach the disk in any order: the second frame is missing, the third is whole. Nobody was told of either.
    let (sim, _, frames) = with_a_last_write(&[50, 60, 70]);
    let hole = frames[4].place.unwrap().position.0 as usize..frames[4].end().0 as usize;
    let torn = copy(&sim, |path, bytes| {
        if path.contains("/log/") {
            bytes[hole.clone()].fill(0);
        }
    });
    let (node, recovery) = Place::sim(&torn).open().unwrap();
    assert_eq!(node.all().unwrap(), frames[..4]);
    assert!(recovery.cut_bytes > 70);
    // The very same entry again in front of the stale one: it must not attach.
    node.append(vec![frames[4].clone()]).unwrap();
    drop(node);
    assert_eq!(Place::sim(&torn).open().unwrap().1.last, Some(frames[4].id));
}

/// Three segments of entries, closed.
fn closed() -> (SimDisk, Vec<Frame>) {
    let sim = SimDisk::new(6);
    let node = Place::sim(&sim).start();
    node.fill(1, [700, 900, 0, 900, 300, 1500, 64, 800, 1000, 500, 20]);
    let frames = node.all().unwrap();
    node.close();
    (sim, frames)
}

#[test]
fn a_flip_of_any_byte_of_a_closed_log_is_refused_or_found_on_reading() {
    let (sim, frames) = closed();
    let end = frames.last().unwrap().end().0;
    assert!(end > 2 * 4096);
    let mut refused = 0;
    for position in (0..end).filter(|position| {
        frames.iter().any(|frame| (frame.place.unwrap().position.0..frame.end().0).contains(position))
    }) {
        let segment = position - position % 4096;
        let flipped = copy(&sim, |path, bytes| {
            if path.ends_with(&format!("log/{segment:020}")) {
                bytes[(position - segment) as usize] ^= 0x04;
            }
        });
        match Place::sim(&flipped).open() {
            Err(OpenError::Corrupt(text)) => {
                assert!(text.contains(&format!("{segment:020}")) && text.contains("join the group again"), "{text}");
                refused += 1;
            }
            Err(other) => panic!("position {position}: {other}"),
            Ok((node, recovery)) => {
                assert_eq!(recovery.last, frames.last().map(|frame| frame.id), "position {position}");
                assert!(node.all().is_err(), "position {position} was neither refused nor found");
            }
        }
    }
    assert!(refused > end - 2 * 4096 - 100, "the segments that are not sealed are refused at start");
}

#[test]
fn a_later_frame_vouches_for_a_damaged_place_although_the_hard_state_is_older() {
    let sim = SimDisk::new(8);
    let place = Place::sim(&sim);
    let node = place.start();
    let hard_state = sim.peek(&place.path("hard_state")).unwrap().to_vec();
    node.fill(1, [100, 200, 300, 1500, 1500, 900]);
    let frames = node.all().unwrap();
    drop(node);
    let last = frames.last().unwrap().place.unwrap().position;
    for frame in &frames {
        let at = frame.place.unwrap().position;
        for offset in [0, 30, 60, 69, 75] {
            let damaged = copy(&sim, |path, bytes| {
                let segment = at.0 - at.0 % 4096;
                if path.ends_with("hard_state") {
                    bytes.clone_from(&hard_state);
                } else if path.ends_with(&format!("log/{segment:020}")) {
                    bytes[(at.0 - segment) as usize + offset] ^= 0x80;
                }
            });
            match Place::sim(&damaged).open() {
                Err(OpenError::Corrupt(_)) => assert!(at < last),
                Err(other) => panic!("{other}"),
                // Nothing proves that the very last write was ever done.
                Ok((_, recovery)) => assert!(at == last && recovery.last == Some(frames[frames.len() - 2].id)),
            }
        }
    }
}

#[test]
fn a_missing_segment_is_refused() {
    let (sim, _) = closed();
    for segment in [0, 4096, 8192] {
        let missing = copy(&sim, |_, _| ());
        let place = Place::sim(&missing);
        place.disk.remove(&place.segment(segment)).unwrap();
        let refused = place.open().err().unwrap();
        assert!(matches!(&refused, OpenError::Corrupt(text) if text.contains(&format!("{segment:020}"))), "{refused}");
    }
}

#[test]
fn a_damaged_filler_does_not_hide_the_segment_behind_it() {
    let (sim, frames) = closed();
    let filler = frames
        .iter()
        .find(|frame| {
            frame.end().0 % 4096 != 0
                && frames
                    .iter()
                    .any(|next| next.id.index.0 == frame.id.index.0 + 1 && next.place.unwrap().position != frame.end())
        })
        .unwrap()
        .end();
    let segment = filler.0 - filler.0 % 4096;
    let place = Place::sim(&sim);
    sim.damage(&place.segment(segment), Damage::Flip { offset: filler.0 - segment + 20, mask: 1 }).unwrap();
    match place.open() {
        Err(OpenError::Corrupt(_)) => (),
        Err(other) => panic!("{other}"),
        Ok((node, _)) => {
            assert!(node.all().is_ok_and(|all| all == frames), "a sealed segment's filler is not needed to read it")
        }
    }
}

#[test]
fn a_segment_vouches_for_all_of_the_one_before_it_although_one_write_filled_both() {
    let sim = SimDisk::new(21);
    let place = Place::sim(&sim);
    let node = place.start();
    node.fill(1, [10]);
    let hard_state = sim.peek(&place.path("hard_state")).unwrap().to_vec();
    node.append((1..6).map(|index| entry(1, index, 1500)).collect()).unwrap();
    let frames = node.all().unwrap();
    drop(node);
    let last_below = frames.iter().rfind(|frame| frame.end().0 < 4096).unwrap();
    for at in [last_below.place.unwrap().position.0, last_below.end().0, last_below.end().0 + 40] {
        let damaged = copy(&sim, |path, bytes| {
            if path.ends_with("hard_state") {
                bytes.clone_from(&hard_state);
            } else if path.ends_with(&format!("log/{:020}", 0)) {
                bytes[at as usize] ^= 1;
            }
        });
        assert!(matches!(Place::sim(&damaged).open(), Err(OpenError::Corrupt(_))), "byte {at}");
    }
}

#[test]
fn stale_frames_behind_a_truncation_vouch_for_nothing() {
    // Frames with marks lie behind the new end; a torn write in front of them must not look like corruption.
    let sim = SimDisk::new(9);
    let node = Place::sim(&sim).start();
    node.fill(1, [300; 25]);
    node.truncate(Some(id(1, 2))).unwrap();
    drop(node);
    for keep in [Keep::Nothing, Keep::Prefix, Keep::Sectors] {
        for _ in 0..20 {
            let (log, recovery) = Place::sim(&sim).open_idle().unwrap();
            assert!(recovery.last >= Some(id(1, 2)), "{recovery:?}");
            // Write without a sync, then lose power.
            sim.faults(|faults| faults.sync_error = true);
            let last = recovery.last.unwrap();
            let (done, wait) = crate::node::waiter();
            log.append((1..4).map(|n| entry(9, last.index.0 + n, 250)).collect(), done).unwrap();
            let writer = log.spawn_writer_thread().unwrap();
            wait().unwrap_err();
            writer.join().unwrap();
            sim.faults(|faults| faults.sync_error = false);
            sim.power_cut(keep);
            if let Ok((node, _)) = Place::sim(&sim).open() {
                node.truncate(Some(last)).unwrap();
            } else {
                panic!("a torn write looks like corruption");
            }
        }
    }
}

#[test]
fn every_damage_of_the_hard_state_costs_nothing_or_is_refused() {
    let sim = SimDisk::new(10);
    let node = Place::sim(&sim).start();
    node.fill(1, [10; 3]);
    node.vote(7, true).unwrap();
    node.close();
    let damaged = |slots: &[usize]| {
        copy(&sim, |path, bytes| {
            if path.ends_with("hard_state") {
                slots.iter().for_each(|slot| bytes[slot * 4096 + 100] ^= 1);
            }
        })
    };
    for slot in [0, 1] {
        let (node, _) = Place::sim(&damaged(&[slot])).open().unwrap();
        assert_eq!(node.log.vote().unwrap().term.0, 7, "both slots hold what must not be lost");
        assert_eq!(node.log.last(), Some(id(1, 2)));
    }
    let refused = Place::sim(&damaged(&[0, 1])).open().err().unwrap();
    assert!(
        matches!(&refused, OpenError::Corrupt(text) if text.contains("hard_state") && text.contains("join the group again")),
        "{refused}"
    );
    let gone = copy(&sim, |_, _| ());
    gone.disk().remove(&Place::sim(&gone).path("hard_state")).unwrap();
    assert!(matches!(Place::sim(&gone).open(), Err(OpenError::Corrupt(_))), "a log without a hard state");
}

#[test]
fn a_torn_save_of_the_hard_state_leaves_the_one_before() {
    for seed in 0..60 {
        let sim = SimDisk::new(seed);
        let node = Place::sim(&sim).start();
        node.vote(1, false).unwrap();
        sim.faults(|faults| faults.sync_error = true);
        node.vote(2, false).unwrap_err();
        drop(node);
        sim.faults(|faults| faults.sync_error = false);
        sim.power_cut(Keep::Sectors);
        let (node, _) = Place::sim(&sim).open().unwrap();
        assert!(matches!(node.log.vote().unwrap().term.0, 1 | 2), "seed {seed}");
    }
}

#[test]
fn a_hard_state_older_than_the_log_is_refused() {
    let sim = SimDisk::new(14);
    let place = Place::sim(&sim);
    let node = place.start();
    let old = sim.peek(&place.path("hard_state")).unwrap().to_vec();
    node.fill(1, [10; 3]);
    node.truncate(Some(id(1, 0))).unwrap();
    node.fill(2, [10; 3]);
    drop(node);
    let older = copy(&sim, |path, bytes| {
        if path.ends_with("hard_state") {
            bytes.clone_from(&old);
        }
    });
    let refused = Place::sim(&older).open().err().unwrap();
    assert!(matches!(&refused, OpenError::Corrupt(text) if text.contains("hard_state")), "{refused}");
}

#[test]
fn a_directory_of_somebody_else_is_refused_with_the_remedy() {
    let sim = SimDisk::new(15);
    Place::sim(&sim).start().close();
    type Change = fn(&mut quorate_raft::GroupConfig);
    let changes: [(Change, &str); 3] = [
        (|config| config.cluster = "other".into(), "cluster"),
        (|config| config.number = 2, "node"),
        (|config| config.segment_bytes = 8192, "segments"),
    ];
    for (change, word) in changes {
        let mut place = Place::sim(&sim);
        change(&mut place.config);
        let refused = place.open().err().unwrap();
        assert!(
            matches!(&refused, OpenError::WrongDirectory(text) if text.contains(word) && text.contains("hard_state") && text.contains("data_dir")),
            "{refused}"
        );
    }
    Place::sim(&sim).start().close();
}

#[test]
fn a_start_that_was_cut_while_it_made_the_directory_begins_anew() {
    for seed in 0..30 {
        let sim = SimDisk::new(seed);
        sim.faults(|faults| faults.sync_error = true);
        assert!(Place::sim(&sim).open().is_err());
        sim.faults(|faults| faults.sync_error = false);
        sim.power_cut([Keep::Nothing, Keep::Prefix, Keep::Sectors][seed as usize % 3]);
        let node: Node = Place::sim(&sim).start();
        node.fill(1, [1]);
    }
}

#[test]
fn arbitrary_bytes_in_place_of_a_segment_never_panic() {
    let (sim, frames) = closed();
    for seed in 0..200u64 {
        let noisy = copy(&sim, |path, bytes| {
            if path.contains("/log/") || (seed % 4 == 0 && path.contains("/index/")) {
                let mut state = seed * 7919 + bytes.len() as u64;
                for _ in 0..1 + seed % 9 {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let at = (state >> 33) as usize % bytes.len();
                    bytes[at] = (state >> 20) as u8;
                }
            }
        });
        if let Ok((node, _)) = Place::sim(&noisy).open()
            && let Ok(read) = node.log.read(LogIndex(0), LogIndex(99), None)
        {
            assert_eq!(read, frames[..read.len()], "seed {seed}");
        }
    }
}

/// Its index tells where its entries stand, so nothing of it is read at a start; its length tells.
#[test]
fn a_sealed_segment_that_was_cut_short_is_refused_although_its_index_covers_it() {
    for len in [0, 100, 4095] {
        let (sim, _) = closed();
        let place = Place::sim(&sim);
        sim.damage(&place.segment(0), Damage::Truncate { len }).unwrap();
        let refused = place.open().err().unwrap_or_else(|| panic!("cut to {len} bytes and not refused"));
        let OpenError::Corrupt(text) = &refused else { panic!("{refused}") };
        for words in [&place.segment(0).display().to_string(), "join the group again", "up and whole"] {
            assert!(text.contains(words), "{text}");
        }
    }
}

#[test]
fn a_damaged_segment_without_its_index_is_refused_with_file_and_remedy() {
    let (sim, frames) = closed();
    let place = Place::sim(&sim);
    let second = frames[1].place.unwrap().position.0;
    sim.damage(&place.segment(0), Damage::Flip { offset: second + 20, mask: 1 }).unwrap();
    sim.disk().remove(&place.path(&format!("index/{:020}", 0))).unwrap();
    let refused = place.open().err().unwrap();
    let OpenError::Corrupt(text) = &refused else { panic!("{refused}") };
    for words in [&place.segment(0).display().to_string(), "join the group again", "up and whole"] {
        assert!(text.contains(words), "{text}");
    }
}
