//! Image files.

use std::io::ErrorKind;

use bytes::Bytes;
use quorate_raft::{
    Position, SimDisk,
    disk::sim::{Damage, Keep},
    log::OpenError,
    snapshot::{Image, ImageMeta, Images},
    types::ImagePoint,
};

use crate::node::{Place, id};

pub fn image(border: u64) -> Image {
    let point = ImagePoint { applied: Some(id(2, border / 100)), border: Position(border) };
    let meta = ImageMeta { point, chain: border as u32 ^ 0x5555, membership: Bytes::from_static(b"members") };
    Image { meta, machine: vec![border as u8; 3000].into() }
}

fn open(place: &Place) -> Images {
    Images::open(place.disk.clone(), &place.config).unwrap()
}

#[test]
fn images_are_kept_listed_and_found_by_border() {
    for place in Place::both() {
        place.start().close();
        let images = open(&place);
        assert_eq!((images.newest(), images.current()), (None, None));
        for border in [4096, 12288, 8192] {
            images.save(&image(border)).unwrap();
        }
        images.save(&image(8192)).unwrap();
        let images = open(&place);
        assert_eq!(images.list().iter().map(|meta| meta.point.border.0).collect::<Vec<_>>(), [4096, 8192, 12288]);
        assert_eq!(images.newest_upto(Position(12287)), Some(image(8192).meta));
        assert_eq!(images.newest_upto(Position(4095)), None);
        assert_eq!(images.load(Position(8192)).unwrap(), image(8192));
        assert_eq!(images.load(Position(1)).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn the_current_image_moves_forward_only_and_takes_the_older_ones_away() {
    for place in Place::both() {
        place.start().close();
        let images = open(&place);
        for border in [4096, 8192, 12288] {
            images.save(&image(border)).unwrap();
        }
        images.make_current(Position(8192)).unwrap();
        images.make_current(Position(8192)).unwrap();
        assert_eq!(images.make_current(Position(4096)).unwrap_err().kind(), ErrorKind::NotFound);
        images.save(&image(4096)).unwrap();
        assert_eq!(images.make_current(Position(4096)).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(images.install(&image(4096)).unwrap_err().kind(), ErrorKind::InvalidInput);
        let images = open(&place);
        assert_eq!(images.current(), Some(image(8192).meta));
        assert_eq!(images.list().len(), 2, "older ones are gone, the newer one stays");
        images.install(&image(40960)).unwrap();
        let images = open(&place);
        assert_eq!(images.list(), [image(40960).meta]);
        assert_eq!(images.current(), images.newest());
    }
}

#[test]
fn a_power_cut_leaves_the_image_and_the_marker_from_before_or_after() {
    for seed in 0..40 {
        let sim = SimDisk::new(seed);
        let keep = [Keep::Nothing, Keep::Prefix, Keep::Sectors][seed as usize % 3];
        let place = Place::sim(&sim);
        place.start().close();
        let images = open(&place);
        images.save(&image(4096)).unwrap();
        images.make_current(Position(4096)).unwrap();
        images.save(&image(8192)).unwrap();
        if seed % 2 == 0 {
            images.make_current(Position(8192)).unwrap();
        } else {
            // Fails at its first sync: nothing of it may count.
            sim.faults(|faults| faults.sync_error = true);
            images.make_current(Position(8192)).unwrap_err();
            images.save(&image(12288)).unwrap_err();
            sim.faults(|faults| faults.sync_error = false);
        }
        sim.power_cut(keep);
        let images = open(&Place::sim(&sim));
        let expected = if seed % 2 == 0 { 8192 } else { 4096 };
        assert_eq!(images.current(), Some(image(expected).meta), "seed {seed}");
        assert_eq!(images.load(Position(8192)).unwrap(), image(8192));
        assert!(images.newest_upto(Position(99999)).is_some_and(|newest| newest.point.border == Position(8192)));
    }
}

#[test]
fn a_flip_of_any_byte_is_seen() {
    let good = image(4096).encode();
    assert_eq!(Image::decode(good.clone()), Ok(image(4096)));
    for byte in 0..good.len() {
        let mut bad = good.to_vec();
        bad[byte] ^= 0x10;
        assert!(Image::decode(bad.into()).is_err(), "byte {byte}");
        assert!(Image::decode(good.slice(..byte)).is_err(), "cut at {byte}");
    }
}

#[test]
fn a_damaged_newer_image_is_passed_over_and_a_damaged_current_one_refused() {
    let sim = SimDisk::new(3);
    let place = Place::sim(&sim);
    place.start().close();
    let images = open(&place);
    for border in [4096, 8192] {
        images.save(&image(border)).unwrap();
    }
    images.make_current(Position(4096)).unwrap();
    let flip = |border: u64| {
        sim.damage(&place.path(&format!("image/{border:020}.img")), Damage::Flip { offset: 20, mask: 4 }).unwrap()
    };
    flip(8192);
    assert_eq!(open(&place).list(), [image(4096).meta]);
    flip(4096);
    let refused = Images::open(place.disk.clone(), &place.config).err().unwrap();
    assert!(
        matches!(&refused, OpenError::Corrupt(text) if text.contains("image/current") && text.contains("join")),
        "{refused}"
    );
}
