//! Every format on disk has a stored sample: a program that can no longer read one has changed the format.
//!
//! The samples are a directory with two segments, of which the first begins behind an image. To write them anew (with a new
//! version number in the format): `cargo test -p quorate-raft --test storage -- --ignored write_the_samples`.

use std::path::PathBuf;

use quorate_raft::{
    LogIndex, Position, SimDisk, Term,
    log::{Frame, Payload},
    snapshot::Images,
    types::ImagePoint,
};

use crate::{
    images::image,
    node::{Place, id, payload, waiter},
};

const FILES: [&str; 6] = [
    "hard_state",
    "log/00000000000000004096",
    "log/00000000000000008192",
    "index/00000000000000004096",
    "image/00000000000000004096.img",
    "image/current",
];

fn stored(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name.replace('/', "_"))
}

fn make() -> SimDisk {
    let sim = SimDisk::new(1);
    let place = Place::sim(&sim);
    let node = place.start();
    let images = Images::open(place.disk.clone(), &place.config).unwrap();
    images.install(&image(4096)).unwrap();
    let (done, wait) = waiter();
    let ImagePoint { applied, .. } = image(4096).meta.point;
    node.log.reset_to(image(4096).meta.point, image(4096).meta.chain, done);
    wait().unwrap();
    let first = applied.unwrap().index.0 + 1;
    node.append(vec![
        Frame::new(id(2, first), Payload::Blank),
        Frame::new(id(2, first + 1), Payload::Membership(b"one two three".as_slice().into())),
        Frame::new(id(2, first + 2), Payload::Floor(Position(4096))),
    ])
    .unwrap();
    node.fill(3, [1500, 1500, 1500, 10]);
    node.vote(4, true).unwrap();
    node.log.save_committed(node.log.last());
    node.close();
    sim
}

#[test]
#[ignore = "writes the samples"]
fn write_the_samples() {
    let sim = make();
    for name in FILES {
        let bytes = sim.peek(&PathBuf::from(crate::node::DATA).join(name)).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        std::fs::create_dir_all(stored(name).parent().unwrap()).unwrap();
        std::fs::write(stored(name), if name.starts_with("log") { &bytes[..end] } else { &bytes[..] }).unwrap();
    }
}

#[test]
fn the_stored_samples_are_read() {
    let sim = SimDisk::new(2);
    let place = Place::sim(&sim);
    for name in FILES {
        let file = place.disk.open(&place.path(name), true).unwrap();
        file.write_at(0, &[std::fs::read(stored(name)).unwrap().into()]).unwrap();
        if name.starts_with("log") {
            // Stored without the zeros behind its last frame.
            file.set_len(place.config.segment_bytes).unwrap();
        }
    }
    let (node, recovery) = place.open().unwrap();
    let first = 41;
    assert!(recovery.clean);
    assert_eq!(recovery.last, Some(id(3, first + 6)));
    let vote = node.log.vote().unwrap();
    assert_eq!((vote.term, vote.committed), (Term(4), true));
    assert_eq!(node.log.committed(), Some(id(3, first + 6)));
    let frames = node.all().unwrap();
    assert_eq!(frames[0].payload, Payload::Blank);
    assert_eq!(frames[1].payload, Payload::Membership(b"one two three".as_slice().into()));
    assert_eq!(frames[2].payload, Payload::Floor(Position(4096)));
    for (number, size) in [1500, 1500, 1500, 10].into_iter().enumerate() {
        let index = first + 3 + number as u64;
        assert_eq!(frames[number + 3].payload, Payload::Normal(payload(3, index, size)));
    }
    assert_eq!(node.log.position_of(LogIndex(first + 5)).unwrap(), Some(Position(8192)));
    let images = Images::open(place.disk.clone(), &place.config).unwrap();
    assert_eq!(images.current(), Some(image(4096).meta));
    assert_eq!(images.load(Position(4096)).unwrap(), image(4096));
}

#[test]
fn what_is_written_today_is_what_is_stored() {
    let sim = make();
    for name in FILES {
        let mut stored = std::fs::read(stored(name)).unwrap();
        let written = sim.peek(&PathBuf::from(crate::node::DATA).join(name)).unwrap();
        stored.resize(written.len(), 0);
        assert!(written == stored, "{name} has changed: a new format needs a new version and a new sample");
    }
}
