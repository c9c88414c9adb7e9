//! Consume queue files that rot: what is read of them, how they are mended, and that a start makes them again.

use super::*;
use crate::{
    machine::{MessageGroup, tag_hash},
    scan::{Ask, Claimed, Look, Scans},
};

const TOPIC: TopicId = TopicId(0);
/// Messages in each of the two queues; four to a file.
const EACH: u64 = 12;

/// What is done to the second file of queue 0, given that of queue 1; and the offsets whose records it takes.
type Damage = (&'static str, fn(&mut Vec<u8>, other: &[u8]), &'static [u64]);

const DAMAGES: [Damage; 10] = [
    ("all zeros", |bytes, _| bytes.fill(0), &[4, 5, 6, 7]),
    ("a zeroed record", |bytes, _| bytes[20..40].fill(0), &[5]),
    ("zeros across a border", |bytes, _| bytes[35..45].fill(0), &[5, 6]),
    ("a bit of a position", |bytes, _| bytes[40] ^= 16, &[6]),
    ("a bit of a size", |bytes, _| bytes[48] ^= 1, &[6]),
    ("a bit of a tag hash", |bytes, _| bytes[52] ^= 0x80, &[6]),
    ("a bit of a crc", |bytes, _| bytes[56] ^= 1, &[6]),
    (
        "two swapped",
        |bytes, _| {
            let (first, third) = (bytes[..20].to_vec(), bytes[40..60].to_vec());
            bytes[..20].copy_from_slice(&third);
            bytes[40..60].copy_from_slice(&first);
        },
        &[4, 6],
    ),
    ("another queue's record", |bytes, other| bytes[60..80].copy_from_slice(&other[60..80]), &[7]),
    ("shortened", |bytes, _| bytes.truncate(27), &[5, 6, 7]),
];

fn path(queue: u16, first: u64) -> PathBuf {
    PathBuf::from(format!("/data/queue/v2/0/{queue}/{first:020}"))
}

fn damage(node: &Node, (_, change, _): Damage) {
    let mut bytes = node.disk.peek(&path(0, 4)).expect("written").to_vec();
    change(&mut bytes, &node.disk.peek(&path(1, 4)).expect("written"));
    overwrite(node, &path(0, 4), bytes);
}

fn overwrite(node: &Node, path: &std::path::Path, bytes: Vec<u8>) {
    let file = node.disk.disk().open(path, true).expect("opens");
    file.set_len(bytes.len() as u64).expect("changed");
    file.write_at(0, &[bytes.into()]).expect("written");
    file.sync().expect("synced");
}

/// A node that has all its records in files and none in memory.
fn filled(mode: CheckpointMode) -> Node {
    let mut node = Node::new(20, mode);
    node.begin();
    node.now += 10_000;
    node.send(EACH * 2);
    match mode {
        CheckpointMode::Off => node.save_image(node.log.end()),
        CheckpointMode::Plain | CheckpointMode::Database => node.replica.settle(node.log.end()),
    }
    node.disk.kill();
    node.restart();
    node
}

fn places() -> Vec<(QueueId, QueueOffset)> {
    (0..EACH).map(|offset| (QueueId(0), QueueOffset(offset))).collect()
}

fn spot(offset: u64) -> Spot {
    Spot { topic: TOPIC, queue: QueueId(0), offset: QueueOffset(offset) }
}

#[test]
fn a_damaged_record_is_damage_and_its_neighbours_are_read() {
    for one in DAMAGES {
        let (what, _, taken) = one;
        let node = filled(CheckpointMode::Plain);
        damage(&node, one);
        let found = node.shared.records(TOPIC, &places()).expect("readable");
        for (offset, found) in (0..).zip(found) {
            match found {
                Found::Damaged(damaged) => {
                    assert!(damaged == spot(offset) && taken.contains(&offset), "{what}: {damaged:?}")
                }
                Found::Record(record) => {
                    assert!(!taken.contains(&offset), "{what}: {offset} was read");
                    assert_eq!(record.bytes, body(offset * 2), "{what}");
                }
                found @ (Found::Gone | Found::Rotten(_)) => panic!("{what}: {offset} is {found:?}"),
            }
        }
    }
}

#[test]
fn another_node_s_records_mend_the_file_and_only_true_ones_do() {
    for one in DAMAGES {
        let (what, _, taken) = one;
        let node = filled(CheckpointMode::Plain);
        let other = Node::on(SimDisk::new(21), node.log.clone(), CheckpointMode::Off);
        let mut other = Node { now: node.now, ..other };
        other.restart();
        damage(&node, one);
        let first = spot(taken[0]);
        assert!(node.shared.is_damaged(first), "{what}");

        let wrong = other.shared.lend(spot(taken[0] - 1), 8);
        assert!(!node.shared.mend(first, &wrong).expect("nothing to write"), "{what}: the records of other places");
        assert!(
            !node.shared.mend(first, b"no records, but long enough to be one").expect("nothing to write"),
            "{what}"
        );
        assert!(!node.shared.mend(first, &[]).expect("nothing to write"), "{what}");

        let lent = other.shared.lend(first, 256);
        assert!(node.shared.mend(first, &lent).expect("written"), "{what}");
        node.check_messages();
        // What was put back is on the disk, where a start counts on it.
        let mut node = node;
        node.disk.kill();
        let opened = Replica::open(settings(node.mode), node.disk.disk(), node.log.clone()).expect("opens");
        assert!(opened.0.applied().is_some(), "{what}: the checkpoint was refused");
        node.restart();
        node.check_messages();
    }
}

#[test]
fn what_the_disk_does_not_give_out_is_damage_too_and_is_lent_by_nobody() {
    let node = filled(CheckpointMode::Plain);
    node.disk.faults(|faults| faults.read_error = true);
    let found = node.shared.records(TOPIC, &places()).expect("the log is readable");
    let expected: Vec<_> = (0..EACH).map(|offset| Found::Damaged(spot(offset))).collect();
    assert_eq!(found, expected);
    assert!(node.shared.is_damaged(spot(4)));
    assert!(node.shared.lend(spot(4), 4).iter().all(|byte| *byte == 0));
    node.disk.faults(|faults| faults.read_error = false);
    assert!(!node.shared.is_damaged(spot(4)));
    node.check_messages();
}

#[test]
fn a_node_lends_nothing_that_has_rotted() {
    let node = filled(CheckpointMode::Plain);
    let sound = node.shared.lend(spot(4), 4);
    damage(&node, DAMAGES[7]);
    let lent = node.shared.lend(spot(4), 4);
    assert_eq!((&lent[20..40], &lent[60..]), (&sound[20..40], &sound[60..]));
    assert!(lent[..20].iter().chain(&lent[40..60]).all(|byte| *byte == 0));
    let none = Spot { topic: TopicId(9), ..spot(0) };
    assert!(node.shared.lend(none, 4).is_empty());
}

#[test]
fn a_start_makes_damaged_queues_again_from_the_log() {
    let deleted: Damage = ("deleted", |_, _| {}, &[4]);
    for mode in [CheckpointMode::Off, CheckpointMode::Plain] {
        for one in DAMAGES.into_iter().chain([deleted]) {
            let what = one.0;
            let mut node = filled(mode);
            let before = (node.image(), node.disk.peek(&path(0, 4)).expect("written"));
            node.disk.kill();
            damage(&node, one);
            if what == "deleted" {
                node.disk.disk().remove(&path(0, 4)).expect("removed");
            }
            let opened = Replica::open(settings(mode), node.disk.disk(), node.log.clone()).expect("opens");
            assert_eq!(opened.0.applied(), None, "{what}: a checkpoint that counts on it is refused");
            node.restart();
            node.check_messages();
            node.replica.write_queues();
            assert_eq!((node.image(), node.disk.peek(&path(0, 4)).expect("written")), before, "{what}");
        }
    }
}

#[test]
fn a_start_goes_back_no_further_than_to_the_image_before_the_damage() {
    let mut node = Node::new(22, CheckpointMode::Off);
    node.begin();
    node.send(8);
    node.save_image(node.log.end());
    node.send(EACH * 2 - 8);
    node.save_image(node.log.end());
    let before = node.image();
    node.disk.kill();
    damage(&node, DAMAGES[1]);
    let (mut replica, _) = Replica::open(settings(node.mode), node.disk.disk(), node.log.clone()).expect("opens");
    let [(older, old_image), (newer, new_image)] = &node.images[..] else { panic!("two images") };
    assert!(replica.load_image(*newer, new_image).is_err());
    replica.load_image(*older, old_image).expect("nothing that it counts on is damaged");
    node.restart();
    node.check_messages();
    assert_eq!(node.image(), before);
}

#[test]
fn files_of_the_format_before_are_removed_and_made_again() {
    for mode in [CheckpointMode::Off, CheckpointMode::Plain] {
        let mut node = filled(mode);
        let before = node.image();
        node.disk.kill();
        let files: Vec<PathBuf> =
            node.disk.files().into_iter().filter(|path| path.starts_with("/data/queue/v2")).collect();
        let older =
            |path: &PathBuf| PathBuf::from("/data/queue").join(path.strip_prefix("/data/queue/v2").expect("below"));
        for path in &files {
            node.disk.disk().rename(path, &older(path)).expect("renamed");
        }
        node.restart();
        node.check_messages();
        assert_eq!(node.image(), before);
        assert!(!files.iter().any(|path| node.disk.files().contains(&older(path))));
    }
}

#[test]
fn nothing_is_put_back_where_no_file_stands_any_more() {
    let mut node = filled(CheckpointMode::Off);
    let lent = node.shared.lend(spot(0), EACH);
    let border = node.log.end();
    node.replica.floor(border);
    node.log.state().floor = border;
    node.send(2);
    node.replica.settle(node.log.end());
    let files = node.disk.files();
    assert!(!files.contains(&path(0, 4)), "{files:?}");
    assert!(!node.shared.is_damaged(spot(4)), "retention has taken it");
    assert_eq!(node.shared.record(TOPIC, QueueId(0), QueueOffset(4)).expect("readable"), Found::Gone);
    node.shared.mend(spot(0), &lent).expect("nothing to write");
    node.apply(vec![Command::DropTopic(DropTopic { topic: TOPIC })]);
    node.log.state().floor = node.log.end();
    node.replica.settle(node.log.end());
    assert!(!node.shared.is_damaged(spot(11)), "its topic is gone");
    node.shared.mend(spot(0), &lent).expect("nothing to write");
    assert!(!node.disk.files().iter().any(|path| path.starts_with("/data/queue")), "{:?}", node.disk.files());
}

/// Wants every message with a tag of odd number, as a filter does.
struct Odd;

impl Look for Odd {
    fn is_filter(&self) -> bool {
        true
    }

    fn may_want(&self, pointer: &Pointer) -> bool {
        pointer.tag_hash % 4 == 2
    }

    fn look(&self, _: &Bytes) -> Option<MessageGroup> {
        Some(MessageGroup::NONE)
    }
}

#[test]
fn reading_ahead_stops_at_a_damaged_record_and_passes_nothing_over() {
    let node = filled(CheckpointMode::Plain);
    // The record of a message that the filter does not want, so that only its record could tell.
    damage(&node, DAMAGES[3]);
    let (mut scans, claimed) = (Scans::default(), Claimed::default());
    let ask = |max| Ask {
        group: GroupId(0),
        topic: TOPIC,
        first: QueueId(0),
        now: Timestamp(node.now),
        max,
        claimed: &claimed,
    };
    let plan = scans.plan(&node.shared, &ask(100), &Odd).expect("readable");
    assert_eq!(plan.damaged, Some(spot(6)));
    let ends: Vec<_> = scans.unwanted(&node.shared, &ask(0)).iter().map(|scan| (scan.queue, scan.end)).collect();
    assert!(ends.iter().all(|(queue, end)| *queue != QueueId(0) || end.0 <= 6), "{ends:?}");

    let other = Node::on(SimDisk::new(23), node.log.clone(), CheckpointMode::Off);
    let mut other = Node { now: node.now, ..other };
    other.restart();
    let lent = other.shared.lend(spot(6), 1);
    assert!(node.shared.mend(spot(6), &lent).expect("written"));
    let plan = scans.plan(&node.shared, &ask(100), &Odd).expect("readable");
    assert_eq!((plan.damaged, plan.expects.new.get(&QueueId(0))), (None, Some(&(EACH / 2))));
}

#[test]
fn a_tag_of_either_sign_is_the_same_from_memory_and_from_a_file() {
    let mut node = Node::new(24, CheckpointMode::Off);
    node.begin();
    let hashes = ["", "TagA", "polygenelubricants"].map(tag_hash);
    let commands = (0u64..).zip(hashes).map(|(number, tag_hash)| {
        let key = SendKey(u128::from(number));
        let (topic, queue, record) = (TOPIC, QueueId(0), body(number).into());
        Command::Send(Send { topic, queue, key, body_crc: 0, tag_hash, record })
    });
    node.apply(commands.collect::<Vec<_>>());
    let tags = |node: &Node| {
        let pointers = node.shared.pointers(TOPIC, QueueId(0), QueueOffset(0), 3);
        pointers.into_iter().map(|pointer| pointer.expect("sound").tag_hash).collect::<Vec<_>>()
    };
    assert_eq!(tags(&node), hashes);
    node.save_image(node.log.end());
    node.restart();
    assert_eq!(tags(&node), hashes);
}
