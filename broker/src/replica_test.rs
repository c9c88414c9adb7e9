use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use quorate_proto::names::{GroupName, TopicName};
use quorate_raft::{
    LogIndex, NodeId, Term,
    disk::{SimDisk, sim::Keep},
};

use super::*;
use crate::machine::{
    Ack, Command, DropTopic, GroupId, PutGroup, PutTopic, Receive, Send, SendKey, StartAt, TopicKind,
};

#[path = "replica_damage_test.rs"]
mod damage;

/// A log of entries, of which raft would tell how far it is synced.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<LogState>>);

#[derive(Default)]
struct LogState {
    entries: Vec<CommittedEntry>,
    floor: Position,
    /// Nothing of it can be read.
    is_damaged: bool,
}

/// Room of a frame's header before every payload, so that positions have gaps as real ones do.
const HEADER_BYTES: u64 = 64;

impl Log {
    fn state(&self) -> std::sync::MutexGuard<'_, LogState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> Position {
        let last = self.state().entries.last().map(|entry| entry.position.0 + entry.payload.len() as u64);
        Position(last.unwrap_or(0))
    }

    fn append(&self, payload: Bytes) -> CommittedEntry {
        let position = Position(self.end().0 + HEADER_BYTES);
        let mut state = self.state();
        let index = LogIndex(state.entries.len() as u64);
        let entry = CommittedEntry { id: LogId { term: Term(1), node: NodeId::new(1, 7), index }, position, payload };
        state.entries.push(entry.clone());
        entry
    }

    fn after(&self, applied: Option<LogId>) -> Vec<CommittedEntry> {
        let entries = self.state().entries.clone();
        entries.into_iter().filter(|entry| applied.is_none_or(|applied| entry.id > applied)).collect()
    }
}

impl ReadLog for Log {
    fn read(&self, position: Position, len: usize) -> io::Result<Bytes> {
        let state = self.state();
        if state.is_damaged {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let after = state.entries.partition_point(|entry| entry.position <= position);
        let entry = after.checked_sub(1).map(|before| &state.entries[before]).filter(|_| position >= state.floor);
        let entry = entry.ok_or(io::ErrorKind::NotFound)?;
        let at = (position.0 - entry.position.0) as usize;
        Ok(entry.payload.slice(at..at + len))
    }

    fn floor(&self) -> Position {
        self.state().floor
    }
}

/// One node with its disk and its log.
struct Node {
    disk: SimDisk,
    log: Log,
    mode: CheckpointMode,
    replica: Replica,
    shared: Shared,
    images: Vec<(ImagePoint, Bytes)>,
    now: u64,
    sent: u64,
}

fn settings(checkpoint: CheckpointMode) -> ReplicaSettings {
    ReplicaSettings { data_dir: PathBuf::from("/data"), checkpoint, queue_file_records: 4 }
}

impl Node {
    fn new(seed: u64, mode: CheckpointMode) -> Self {
        Self::on(SimDisk::new(seed), Log::default(), mode)
    }

    fn on(disk: SimDisk, log: Log, mode: CheckpointMode) -> Self {
        disk.disk().create_dir("/data".as_ref()).expect("a directory");
        disk.disk().sync_dir("/".as_ref()).expect("durable");
        let (replica, shared) = Replica::open(settings(mode), disk.disk(), log.clone()).expect("opens");
        Self { disk, log, mode, replica, shared, images: Vec::new(), now: 1_000, sent: 0 }
    }

    /// What raft does at a start: the checkpoint, else the newest image that is accepted, then replay.
    fn restart(&mut self) {
        let (replica, shared) =
            Replica::open(settings(self.mode), self.disk.disk(), self.log.clone()).expect("opens again");
        (self.replica, self.shared) = (replica, shared);
        let mut applied = self.replica.applied();
        if applied.is_none() {
            for (at, image) in self.images.iter().rev() {
                if self.replica.load_image(*at, image).is_ok() {
                    applied = at.applied;
                    break;
                }
            }
        }
        self.come_to_borders(applied);
        for entry in self.log.after(applied) {
            let id = entry.id;
            self.replica.apply(entry);
            self.come_to_borders(Some(id));
        }
    }

    /// Replay comes to the same borders again, and so does a start right at one.
    fn come_to_borders(&mut self, applied: Option<LogId>) {
        for (at, image) in self.images.iter().filter(|(at, _)| at.applied == applied) {
            assert_eq!(self.replica.save_image(at.border), *image, "the same image as before");
        }
    }

    fn apply(&mut self, commands: Vec<Command>) -> Vec<Reply> {
        let payload = Batch { now: Timestamp(self.now), commands }.encode();
        let entry = self.log.append(payload);
        self.replica.apply(entry).replies
    }

    fn begin(&mut self) {
        let name = TopicName::parse("t").expect("a name");
        let topic = PutTopic { name, queues: 2, kind: TopicKind::Any, auto: false, replace: false };
        let name = GroupName::parse("g").expect("a name");
        let group = PutGroup { name, fifo: false, start: StartAt::First, auto: false, replace: false, retry: None };
        self.apply(vec![Command::PutTopic(topic), Command::PutGroup(group)]);
    }

    /// Sends `count` messages in turn to both queues.
    fn send(&mut self, count: u64) {
        let numbers = self.sent..self.sent + count;
        self.sent += count;
        let commands = numbers.map(|number| {
            Command::Send(Send {
                topic: TopicId(0),
                queue: QueueId((number % 2) as u16),
                key: SendKey(u128::from(number)),
                body_crc: 0,
                tag_hash: number,
                record: body(number).into(),
            })
        });
        let commands = commands.collect();
        self.apply(commands);
    }

    fn receive_and_ack(&mut self, max: u16) {
        let (group, topic) = (GroupId(0), TopicId(0));
        let receive =
            Receive { group, topic, max, invisible_ms: 5_000, first_queue: QueueId(0), attempt: None, consumer: None };
        let replies = self.apply(vec![Command::Receive(receive)]);
        let Some(Reply::Received { deliveries }) = replies.first() else { panic!("{replies:?}") };
        let entries = deliveries.iter().skip(1).map(|delivery| delivery.handle).collect();
        self.apply(vec![Command::Ack(Ack { group, entries })]);
    }

    fn save_image(&mut self, border: Position) {
        let image = self.replica.save_image(border);
        let applied = self.log.after(None).last().map(|entry| entry.id);
        self.images.push((ImagePoint { applied, border }, image));
    }

    fn image(&self) -> Bytes {
        self.shared.read(Machine::save_image)
    }

    /// Every message above the queues' first offsets reads as it was sent.
    fn check_messages(&self) {
        for queue in [QueueId(0), QueueId(1)] {
            let (min, end) = self.shared.read(|machine| machine.queue_range(TopicId(0), queue)).expect("a queue");
            for offset in (min.0..end.0).map(QueueOffset) {
                let found = self.shared.record(TopicId(0), queue, offset).expect("readable");
                let Found::Record(record) = found else { panic!("{queue}@{offset}: {found:?}") };
                assert_eq!(record.bytes, body(offset.0 * 2 + u64::from(queue.0)), "{queue}@{offset}");
                assert!(record.stored_at.0 >= 1_000);
            }
        }
    }
}

fn body(number: u64) -> Bytes {
    Bytes::from(format!("message {number}"))
}

#[test]
fn a_message_is_read_back_with_its_store_time_from_memory_and_from_files() {
    let mut node = Node::new(1, CheckpointMode::Off);
    node.begin();
    node.now = 5_000;
    node.send(25);
    node.check_messages();
    let found = node.shared.record(TopicId(0), QueueId(1), QueueOffset(3)).expect("readable");
    assert_eq!(found, Found::Record(StoredRecord { bytes: body(7), stored_at: Timestamp(5_000) }));
    // An image writes the queues; a restart has nothing in memory, so everything comes from files of four records.
    node.save_image(node.log.end());
    node.restart();
    node.check_messages();
    // Partly from files, partly from memory.
    node.send(3);
    let places: Vec<_> = (0..15).map(|offset| (QueueId(0), QueueOffset(offset))).collect();
    let records = node.shared.records(TopicId(0), &places).expect("readable");
    let found: Vec<bool> = records.iter().map(|found| matches!(found, Found::Record(_))).collect();
    assert_eq!(found, [vec![true; 14], vec![false]].concat(), "fourteen of queue 0, and nothing behind the end");
    assert_eq!(node.shared.record(TopicId(9), QueueId(0), QueueOffset(0)).expect("readable"), Found::Gone);
}

#[test]
fn a_restart_replays_only_what_came_after_the_checkpoint() {
    let mut node = Node::new(2, CheckpointMode::Plain);
    node.begin();
    node.send(30);
    node.now += 10_000;
    node.receive_and_ack(7);
    node.replica.settle(node.log.end());
    let saved = node.replica.applied();
    node.send(6);
    let before = node.image();
    node.disk.kill();
    let (replica, _) = Replica::open(settings(node.mode), node.disk.disk(), node.log.clone()).expect("opens");
    assert_eq!(replica.applied(), saved);
    assert!(saved.is_some());
    node.restart();
    assert_eq!(node.image(), before);
    node.check_messages();
}

#[test]
fn a_checkpoint_waits_until_this_node_s_log_is_synced_that_far() {
    let mut node = Node::new(3, CheckpointMode::Plain);
    node.begin();
    let synced = node.log.end();
    node.now += 10_000;
    node.send(4);
    node.replica.settle(synced);
    let end = node.log.end();
    node.now += 10_000;
    node.send(4);
    let kept = |node: &Node| {
        let opened = Replica::open(settings(CheckpointMode::Plain), node.disk.disk(), node.log.clone());
        opened.expect("opens").0.applied()
    };
    assert_eq!(kept(&node), None, "captured, but not kept");
    node.replica.settle(end);
    assert_eq!(kept(&node).map(|id| id.index), Some(LogIndex(1)), "what was captured, not what is applied by now");
}

#[test]
fn after_any_power_cut_the_same_log_gives_the_same_machine_and_messages() {
    for seed in 0..60 {
        let mut node = Node::new(seed, if seed % 4 == 0 { CheckpointMode::Off } else { CheckpointMode::Plain });
        node.begin();
        // A small generator is enough: what matters is that steps come in many orders.
        let mut chance = seed * 2_654_435_761 + 1;
        let mut synced = Position(0);
        for _ in 0..120 {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            node.now += (chance >> 40) % 3_000;
            match (chance >> 33) % 16 {
                0..=5 => node.send(1 + (chance >> 50) % 9),
                6..=8 => node.receive_and_ack(4),
                9 | 10 => node.replica.settle(synced),
                11 | 12 => {
                    synced = node.log.end();
                    node.replica.settle(synced);
                }
                13 => {
                    node.save_image(node.log.end());
                    synced = node.log.end();
                }
                14 => {
                    let before = node.image();
                    node.disk.kill();
                    node.restart();
                    assert_eq!(node.image(), before, "seed {seed}: after a kill");
                }
                _ => {
                    let before = node.image();
                    let keep = [Keep::Nothing, Keep::Prefix, Keep::Sectors][(chance >> 37) as usize % 3];
                    node.disk.power_cut(keep);
                    let opened = Replica::open(settings(node.mode), node.disk.disk(), node.log.clone());
                    let applied = opened.expect("opens").0.applied();
                    if let Some(applied) = applied {
                        let entry = node.log.after(None).into_iter().find(|entry| entry.id == applied);
                        let entry = entry.expect("a checkpoint of this log");
                        assert!(entry.position < synced, "seed {seed}: the checkpoint ran ahead of the log");
                    }
                    node.restart();
                    assert_eq!(node.image(), before, "seed {seed}: after a power cut");
                }
            }
        }
        node.check_messages();
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let mut node = Node::new(4, CheckpointMode::Plain);
    node.begin();
    node.now += 10_000;
    node.send(4);
    node.replica.settle(node.log.end());
    let before = node.image();
    let path = PathBuf::from("/data/checkpoint.plain");
    node.disk.damage(&path, quorate_raft::disk::sim::Damage::Flip { offset: 30, mask: 4 }).expect("damaged");
    node.restart();
    assert_eq!(node.image(), before);
}

#[test]
fn a_node_that_starts_from_another_node_s_image_has_what_stands_above_it() {
    let mut old = Node::new(5, CheckpointMode::Off);
    old.begin();
    old.send(21);
    let border = Position(old.log.end().0 + HEADER_BYTES);
    old.save_image(border);
    let (at, image) = old.images[0].clone();
    old.log.state().floor = border;
    let mut new = Node::on(SimDisk::new(6), old.log.clone(), CheckpointMode::Plain);
    new.replica.load_image(at, &image).expect("its log begins at the border, so nothing is missing");
    old.send(6);
    for entry in old.log.after(at.applied) {
        new.replica.apply(entry);
    }
    assert_eq!(new.image(), old.image());
    assert_eq!(new.shared.record(TopicId(0), QueueId(0), QueueOffset(3)).expect("a hole"), Found::Gone);
    let found = new.shared.record(TopicId(0), QueueId(1), QueueOffset(10)).expect("readable");
    assert!(matches!(&found, Found::Record(record) if record.bytes == body(21)), "{found:?}");
    // A second border, then the floor moves to the first: everything that is left can be read, after a restart too.
    let second = new.log.end();
    for node in [&mut old, &mut new] {
        node.save_image(second);
        node.replica.floor(border);
        node.check_messages();
    }
    new.disk.power_cut(Keep::Nothing);
    new.restart();
    new.replica.floor(border);
    assert_eq!(new.image(), old.image());
    new.check_messages();
}

#[test]
fn an_image_is_refused_when_consume_queue_files_below_it_are_gone() {
    let mut node = Node::new(7, CheckpointMode::Off);
    node.begin();
    node.send(20);
    node.save_image(node.log.end());
    let disk = node.disk.disk();
    disk.remove("/data/queue/v2/0/1/00000000000000000004".as_ref()).expect("removed");
    let (mut replica, _) = Replica::open(settings(node.mode), disk, node.log.clone()).expect("opens");
    let (at, image) = &node.images[0];
    let error = replica.load_image(*at, image).expect_err("records are missing");
    assert!(error.to_string().contains("missing"), "{error}");
    // Raft then begins with the empty machine and replays everything.
    node.images.clear();
    node.restart();
    node.check_messages();
}

#[test]
fn bytes_that_are_no_image_are_refused_and_nothing_has_changed() {
    let mut node = Node::new(8, CheckpointMode::Off);
    node.begin();
    let before = node.image();
    let at = ImagePoint { applied: node.replica.applied(), border: Position(0) };
    assert!(node.replica.load_image(at, b"no image").is_err());
    assert_eq!(node.image(), before);
}

#[test]
fn a_message_that_has_rotted_in_the_log_is_named_and_its_neighbours_are_read() {
    let mut node = Node::new(12, CheckpointMode::Off);
    node.begin();
    node.send(6);
    {
        let mut state = node.log.state();
        let entry = state.entries.last_mut().expect("sent");
        let mut bytes = entry.payload.to_vec();
        let at = bytes.windows(9).position(|window| window == b"message 2").expect("stored");
        bytes[at + 8] ^= 1;
        entry.payload = bytes.into();
    }
    let places: Vec<_> = (0..3).map(|offset| (QueueId(0), QueueOffset(offset))).collect();
    let found = node.shared.records(TopicId(0), &places).expect("readable");
    assert!(matches!(&found[0], Found::Record(record) if record.bytes == body(0)), "{found:?}");
    assert!(matches!(&found[1], Found::Rotten(pointer) if pointer.size == 9), "{found:?}");
    assert!(matches!(&found[2], Found::Record(record) if record.bytes == body(4)), "{found:?}");
}

#[test]
fn a_message_in_a_part_of_the_log_that_cannot_be_read_has_rotted() {
    let mut node = Node::new(13, CheckpointMode::Off);
    node.begin();
    node.send(6);
    node.log.state().is_damaged = true;
    let found = node.shared.record(TopicId(0), QueueId(0), QueueOffset(1)).expect("no failure");
    assert!(matches!(&found, Found::Rotten(pointer) if pointer.size == 9), "{found:?}");
}

#[test]
fn files_go_when_the_floor_moves_and_when_a_topic_is_dropped() {
    let mut node = Node::new(9, CheckpointMode::Off);
    node.begin();
    node.send(20);
    let border = node.log.end();
    node.save_image(border);
    node.send(2);
    let queue_files = |node: &Node| node.disk.files().iter().filter(|path| path.starts_with("/data/queue")).count();
    node.replica.write_queues();
    assert_eq!(queue_files(&node), 6);
    node.replica.floor(border);
    assert_eq!(queue_files(&node), 6, "the log has not let go of them yet");
    node.log.state().floor = border;
    node.replica.settle(node.log.end());
    assert_eq!(queue_files(&node), 2, "of each queue the file that holds offset 10");
    node.check_messages();
    node.apply(vec![Command::DropTopic(DropTopic { topic: TopicId(0) })]);
    assert_eq!(node.shared.record(TopicId(0), QueueId(0), QueueOffset(10)).expect("readable"), Found::Gone);
    assert_eq!(queue_files(&node), 2);
    node.log.state().floor = node.log.end();
    node.replica.settle(node.log.end());
    assert_eq!(queue_files(&node), 0);
}

/// Between the command that moves the floor and the log's own move a node may die. It then starts from an image of before,
/// which still counts on the files that the command made superfluous; the same holds for the files of a dropped topic.
#[test]
fn a_node_that_dies_before_its_log_s_floor_has_moved_starts_from_the_image_below() {
    let mut node = Node::new(11, CheckpointMode::Off);
    node.begin();
    node.send(20);
    let border = node.log.end();
    node.save_image(border);
    node.send(4);
    node.replica.floor(border);
    node.apply(vec![Command::DropTopic(DropTopic { topic: TopicId(0) })]);
    node.replica.settle(node.log.end());
    let after = node.image();
    node.disk.kill();
    let (mut replica, shared) =
        Replica::open(settings(node.mode), node.disk.disk(), node.log.clone()).expect("opens again");
    let (at, image) = &node.images[0];
    replica.load_image(*at, image).expect("everything it counts on is there");
    let mut entries = node.log.after(at.applied);
    let drop = entries.pop().expect("the topic was dropped last");
    for entry in entries {
        replica.apply(entry);
    }
    replica.floor(border);
    replica.apply(drop);
    assert_eq!(shared.read(Machine::save_image), after);
}

#[test]
fn many_records_are_written_without_a_checkpoint() {
    let mut node = Node::new(10, CheckpointMode::Off);
    node.begin();
    node.send(UNWRITTEN_MAX as u64 - 1);
    assert!(node.disk.files().is_empty());
    node.send(1);
    assert!(!node.disk.files().is_empty());
    assert_eq!(node.shared.inner.queues.unwritten(), 0);
    node.check_messages();
}

#[test]
fn a_long_poll_is_woken_when_something_arrives() {
    let mut node = Node::new(11, CheckpointMode::Off);
    let mut topics = node.shared.waiters().topics_changed();
    node.begin();
    assert!(topics.has_changed().expect("the sender lives"));
    topics.mark_unchanged();
    let (topic, group) = (TopicId(0), GroupId(0));
    let mut waiting = [node.shared.waiters().wait(topic, group), node.shared.waiters().wait(topic, group)];
    node.send(1);
    let woken = waiting.each_mut().map(|waiter| waiter.now_or_never().is_some());
    assert_eq!(woken, [true, false]);
    assert!(!topics.has_changed().expect("the sender lives"));
}

#[test]
#[should_panic(expected = "is not a batch")]
fn a_committed_entry_that_is_no_batch_stops_the_node() {
    let mut node = Node::new(12, CheckpointMode::Off);
    let entry = node.log.append(Bytes::from_static(b"garbage"));
    node.replica.apply(entry);
}
