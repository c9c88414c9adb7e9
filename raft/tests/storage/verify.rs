//! Reading a stopped node's directory: all that is there is found whole, and whatever is changed is found.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use quorate_raft::{
    LogIndex, Position, SimDisk,
    disk::sim::Damage,
    hard_state::OpenError,
    inspect::{Finding, Inspector, Severity},
    log::Payload,
    snapshot::Images,
};

use crate::{
    images::image,
    node::{Place, entry},
};

/// Three segments, an image, and a hard state that knows of them.
fn written() -> (SimDisk, Place, Position) {
    let sim = SimDisk::new(5);
    let place = Place::sim(&sim);
    let node = place.start();
    Images::open(place.disk.clone(), &place.config).unwrap().save(&image(4096)).unwrap();
    node.fill(1, [1000; 10]);
    node.vote(2, true).unwrap();
    let end = node.log.end();
    node.close();
    (sim, place, end)
}

fn findings(place: &Place) -> Vec<Finding> {
    inspect(place).verify(&mut |_, _| ()).unwrap().findings
}

fn inspect(place: &Place) -> Inspector {
    Inspector::open(place.disk.clone(), Path::new(&place.config.data_dir)).unwrap()
}

fn segments(sim: &SimDisk) -> Vec<PathBuf> {
    sim.files().into_iter().filter(|path| path.to_str().unwrap().contains("/log/")).collect()
}

#[test]
fn a_directory_as_it_was_written_is_whole() {
    let (sim, place, end) = written();
    let mut told = Vec::new();
    let verified = inspect(&place).verify(&mut |done, total| told.push((done, total))).unwrap();
    assert_eq!(verified.findings, []);
    assert_eq!((verified.entries, verified.images, verified.end), (10, 1, end));
    assert_eq!(verified.segments, segments(&sim).len() as u64);
    assert!(verified.segments >= 3);
    assert!(told.is_sorted() && told.last().is_some_and(|(done, total)| done == total), "{told:?}");
    let (first, last) = verified.range.unwrap();
    assert_eq!((first.index, last.index), (LogIndex(0), LogIndex(9)));
    assert!(inspect(&place).identity().clean);
}

#[test]
fn any_changed_byte_of_any_file_is_a_finding_in_that_file() {
    let (sim, place, end) = written();
    let used = |path: &Path, len: usize| match path.to_str().unwrap() {
        // Three frames and a filler, behind which nothing was written.
        log if log.contains("/log/") => {
            (end.0 - log[log.len() - 20..].parse::<u64>().unwrap()).min(3 * (72 + 1000) + 72)
        }
        // Two slots, of 512 bytes each.
        hard if hard.ends_with("hard_state") => 512,
        _ => len as u64,
    };
    for path in sim.files() {
        let name = path.to_str().unwrap().to_owned();
        if name.ends_with("/lock") || name.ends_with("/current") {
            continue;
        }
        for byte in (0..used(&path, sim.peek(&path).unwrap().len())).step_by(7) {
            sim.damage(&path, Damage::Flip { offset: byte, mask: 4 }).unwrap();
            let found = findings(&place);
            assert!(found.iter().any(|finding| finding.path == path), "byte {byte} of {name}: {found:?}");
            let is_log = name.contains("/log/");
            let worst = found.iter().map(|finding| finding.severity).max();
            assert_eq!(worst == Some(Severity::Corrupt), is_log, "byte {byte} of {name}: {found:?}");
            sim.damage(&path, Damage::Flip { offset: byte, mask: 4 }).unwrap();
        }
    }
    assert_eq!(findings(&place), []);
}

#[test]
fn damage_in_one_segment_does_not_hide_what_is_behind_it() {
    let (sim, place, _) = written();
    let segments = segments(&sim);
    for path in &segments[..2] {
        sim.damage(path, Damage::Flip { offset: 100, mask: 1 }).unwrap();
    }
    let verified = inspect(&place).verify(&mut |_, _| ()).unwrap();
    let places: Vec<_> = verified.findings.iter().map(|finding| (&finding.path, finding.byte)).collect();
    assert_eq!(places, [(&segments[0], Some(0)), (&segments[1], Some(0))]);
    assert!(verified.entries > 0, "the last segment's");
}

#[test]
fn a_segment_that_is_cut_short_or_gone_is_named() {
    let (sim, place, _) = written();
    let segments = segments(&sim);
    let whole = sim.peek(&segments[1]).unwrap();
    sim.damage(&segments[1], Damage::Truncate { len: 1500 }).unwrap();
    let found = findings(&place);
    assert_eq!((&found[0].path, found[0].severity), (&segments[1], Severity::Corrupt));
    assert!(found[0].what.contains("cut short to 1500 bytes"), "{found:?}");
    place.disk.remove(&segments[1]).unwrap();
    let found = findings(&place);
    assert_eq!((&found[0].path, found[0].what.as_str()), (&segments[1], "the file is missing"));
    let file = place.disk.open(&segments[1], true).unwrap();
    file.write_at(0, &[whole]).unwrap();
    assert_eq!(findings(&place), []);
}

#[test]
fn the_end_of_a_write_that_was_cut_is_torn_and_no_loss() {
    let sim = SimDisk::new(6);
    let place = Place::sim(&sim);
    let node = place.start();
    node.fill(1, [30, 0, 100]);
    let hard_state = sim.peek(&place.path("hard_state")).unwrap();
    let end = node.log.end().0;
    node.append(vec![entry(1, 3, 200)]).unwrap();
    drop(node);
    let file = place.disk.open(&place.path("hard_state"), false).unwrap();
    file.write_at(0, &[hard_state]).unwrap();
    sim.damage(&segments(&sim)[0], Damage::Zero { offset: end + 100, len: u64::MAX }).unwrap();
    let found = findings(&place);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].severity, found[0].byte), (Severity::Torn, Some(end)));
    assert_eq!(inspect(&place).verify(&mut |_, _| ()).unwrap().entries, 3);
}

#[test]
fn entries_are_shown_from_any_index_up_to_damage() {
    let (sim, place, _) = written();
    let shown = |from: u64, max: usize| {
        let mut shown = Vec::new();
        let stopped = inspect(&place).entries(LogIndex(from), &mut |entry| {
            assert!(matches!(&entry.payload, Payload::Normal(bytes) if bytes.len() == 1000));
            assert_eq!(entry.payload_position.0, entry.position.0 + 72);
            shown.push(entry.id.index.0);
            if shown.len() == max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (shown, stopped.unwrap())
    };
    assert_eq!(shown(0, 100), ((0..10).collect(), None));
    assert_eq!(shown(7, 2), (vec![7, 8], None));
    assert_eq!(shown(10, 2), (vec![], None));
    let damaged = &segments(&sim)[1];
    sim.damage(damaged, Damage::Flip { offset: 100, mask: 1 }).unwrap();
    let (before, stopped) = shown(0, 100);
    assert!(before.len() < 10 && before == (0..before.len() as u64).collect::<Vec<_>>());
    assert!(stopped.is_some_and(|why| why.contains(damaged.to_str().unwrap())));
}

#[test]
fn a_directory_whose_node_runs_and_one_that_is_none_are_refused() {
    let sim = SimDisk::new(7);
    let place = Place::sim(&sim);
    let open = || Inspector::open(place.disk.clone(), Path::new(&place.config.data_dir)).err();
    assert!(matches!(open(), Some(OpenError::WrongDirectory(why)) if why.contains("no node's data")));
    let node = place.start();
    node.fill(1, [30]);
    node.close();
    let running = place.disk.lock(&place.path("lock")).unwrap();
    assert!(matches!(open(), Some(OpenError::WrongDirectory(why)) if why.contains("its node runs")));
    drop(running);
    assert!(open().is_none());
    for slot in [0, 4096] {
        sim.damage(&place.path("hard_state"), Damage::Flip { offset: slot + 40, mask: 1 }).unwrap();
    }
    assert!(matches!(open(), Some(OpenError::Corrupt(why)) if why.contains("hard_state")));
}
