//! Consume queues: for every queue of every topic, where its messages stand in the commit log.
//!
//! Records arrive one by one as sends are applied and are kept in memory, in the *tail* of their queue. They are written
//! in bulk, one write per queue, when many have gathered or a checkpoint or image is about to vouch for them; until then
//! a crash costs nothing but replay. The tail stays for a while after it was written, because consumers usually read what
//! was just sent; older offsets are read from the file.
//!
//! ```text
//!   offsets   min ………… files ………… written ……… unwritten ……… end
//!                               └────────── tail ──────────┘
//! ```
//! The files may hold more than the machine knows, on both sides: after a restart everything behind `end` is cut before
//! anything is appended, and below `min` whole files go when the floor moves.
//!
//! Every record is checked against its own crc and place when it is read ([`super::queue_record`]). A start reads all that its checkpoint
//! or image counts on, and refuses one whose records have rotted, so that they are made again from the log; what rots later is put back
//! by [`ConsumeQueues::mend`]. Must never take a record that does not belong where it stands, nor call a hole below the kept part damage.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{BufMut, Bytes, BytesMut};
use quorate_raft::Position;
use tracing::warn;

use super::{
    files::OpenFiles,
    lane::Lane,
    queue_record::{self, RECORD_BYTES, Spot},
};
use crate::machine::{Machine, Pointer, QueueId, QueueOffset, TopicId};

/// The folder of this format's files in `queue/`. Those of the first format, whose records had no crc, stood in `queue/` itself.
pub(super) const FORMAT: &str = "v2";

/// Records per file, as in RocketMQ: 6,000,000 bytes.
pub const RECORDS_PER_FILE: u64 = 300_000;

/// Written records that the tail of one queue keeps.
const TAIL_MAX: usize = 1_024;

/// Records that a start checks in one go.
const CHECKED_AT_ONCE: u64 = 16_384;

/// Records that are given up together when the disk does not give them out: about a page.
const UNREADABLE_AT_ONCE: u64 = 200;

/// Records in all tails together before the written ones are let go.
const TAILS_MAX: usize = 262_144;

/// One record on its way into its queue.
#[derive(Clone, Copy)]
pub(crate) struct Append {
    pub(crate) spot: Spot,
    pub(crate) pointer: Pointer,
}

/// All consume queues of a node. The applier writes, services read.
pub(crate) struct ConsumeQueues {
    files: Arc<OpenFiles>,
    root: PathBuf,
    per_file: u64,
    queues: Mutex<Queues>,
    /// Held while files are removed and while records are put back, so that neither undoes the other. Nobody hands out messages under it.
    standing: Mutex<()>,
}

type Key = (TopicId, QueueId);

#[derive(Default)]
struct Queues {
    by_key: BTreeMap<Key, Queue>,
    dirty: BTreeSet<Key>,
    unwritten: usize,
    in_tails: usize,
}

struct Queue {
    lane: Arc<Lane>,
    /// No file holds a record below.
    lowest: u64,
    written: u64,
    end: u64,
    /// The last records before `end`, all unwritten ones among them.
    tail: VecDeque<Pointer>,
}

impl ConsumeQueues {
    /// Nothing is read or written yet; [`ConsumeQueues::restore`] says what there is.
    pub(crate) fn new(files: Arc<OpenFiles>, root: PathBuf, per_file: u64) -> Self {
        Self { files, root, per_file, queues: Mutex::default(), standing: Mutex::default() }
    }

    /// Removes the files of the format before this one. Says whether there were any: then nothing can be restored, and everything is
    /// made again from the log.
    pub(crate) fn remove_older(&self) -> io::Result<bool> {
        let (disk, mut removed) = (self.files.disk(), false);
        for topic in disk.list(&self.root)?.iter().filter(|name| name.parse::<u32>().is_ok()) {
            let topic = self.root.join(topic);
            for queue in disk.list(&topic)?.iter().filter(|name| name.parse::<u16>().is_ok()) {
                let queue = topic.join(queue);
                for file in disk.list(&queue)?.iter().filter(|name| name.len() == 20 && name.parse::<u64>().is_ok()) {
                    disk.remove(&queue.join(file))?;
                    removed = true;
                }
            }
        }
        Ok(removed)
    }

    /// Follows a machine that was just loaded. Reads every record that it counts on.
    ///
    /// `Ok(false)` if the files lack records that the machine has and whose messages stand at or above `floor`, or if one of those has
    /// rotted: its file is cut there, so nothing that counts on it will be restored either, and replay writes it again.
    pub(crate) fn restore(&self, machine: &Machine, floor: Position) -> io::Result<bool> {
        let mut queues = Queues::default();
        let mut counted_on = Vec::new();
        for topic in machine.topics() {
            for queue in (0..topic.queues()).map(QueueId) {
                let (_, end) = topic.range(queue).unwrap_or_default();
                let kept = topic.first_kept(queue, floor).unwrap_or_default();
                if end == QueueOffset(0) {
                    continue;
                }
                let lane = self.lane((topic.id(), queue));
                if !lane.covers(&self.files, kept.0..end.0)? {
                    return Ok(false);
                }
                let lowest = lane.list(&self.files)?.first().copied().unwrap_or(end.0);
                counted_on.push(((topic.id(), queue), kept.0..end.0));
                let lane = Arc::new(lane);
                let queue_state = Queue { lane, lowest, written: end.0, end: end.0, tail: VecDeque::new() };
                queues.by_key.insert((topic.id(), queue), queue_state);
            }
        }
        for (key, range) in counted_on {
            let lane = self.lane(key);
            if let Some(damaged) = self.first_damaged(key, &lane, range)? {
                let file = lane.path_of(damaged);
                warn!(file = %file.display(), offset = damaged, "a consume queue record has rotted; it is made again from the log");
                lane.cut(&self.files, damaged)?;
                return Ok(false);
            }
        }
        *self.lock() = queues;
        Ok(true)
    }

    /// The first offset of `range` whose record is not what was written there.
    fn first_damaged(&self, key: Key, lane: &Lane, range: Range<u64>) -> io::Result<Option<u64>> {
        let mut at = range.start;
        while at < range.end {
            let records = lane.read(&self.files, at, CHECKED_AT_ONCE.min(range.end - at))?;
            let count = (records.len() / RECORD_BYTES) as u64;
            let damaged = queue_record::decode_all(spot(key, at), &records).position(|found| found.is_none());
            if damaged.is_some() || count == 0 {
                return Ok(Some(at + damaged.unwrap_or(0) as u64));
            }
            at += count;
        }
        Ok(None)
    }

    /// Removes everything from the files that the restored machine does not have.
    pub(crate) fn cut(&self) -> io::Result<()> {
        let _standing = self.stand();
        let ends: BTreeMap<Key, u64> = self.lock().by_key.iter().map(|(key, queue)| (*key, queue.end)).collect();
        for key in self.keys_on_disk()? {
            self.lane(key).cut(&self.files, ends.get(&key).copied().unwrap_or(0))?;
        }
        Ok(())
    }

    /// Takes on records. Offsets of a queue must come without gaps.
    pub(crate) fn append(&self, records: impl Iterator<Item = Append>) {
        let mut queues = self.lock();
        let queues = &mut *queues;
        for Append { spot: Spot { topic, queue, offset }, pointer } in records {
            let key = (topic, queue);
            let state = queues.by_key.entry(key).or_insert_with(|| Queue {
                lane: Arc::new(self.lane(key)),
                lowest: offset.0,
                written: offset.0,
                end: offset.0,
                tail: VecDeque::new(),
            });
            assert_eq!(state.end, offset.0, "queue {topic}/{queue} must grow without gaps");
            if state.written == state.end {
                queues.dirty.insert(key);
            }
            state.tail.push_back(pointer);
            state.end += 1;
            queues.unwritten += 1;
            queues.in_tails += 1;
        }
    }

    /// Records taken on and not written yet.
    pub(crate) fn unwritten(&self) -> usize {
        self.lock().unwritten
    }

    /// Writes what was taken on, one write per queue (two across a file border). Only the applier calls this.
    pub(crate) fn write(&self) -> io::Result<()> {
        let dirty = std::mem::take(&mut self.lock().dirty);
        for key in dirty {
            let Some((lane, from, bytes)) = self.lock().unwritten_of(key) else { continue };
            let count = (bytes.len() / RECORD_BYTES) as u64;
            lane.write(&self.files, from, bytes.freeze())?;
            self.lock().written(key, from + count);
        }
        let mut queues = self.lock();
        if queues.in_tails > TAILS_MAX {
            queues.let_go();
        }
        Ok(())
    }

    /// Pointers of up to `count` neighbouring offsets. `None` where there is no sound record here, or none that the disk gives out, and
    /// nothing behind the end.
    pub(crate) fn pointers(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        count: u64,
    ) -> Vec<Option<Pointer>> {
        let mut pointers = Vec::new();
        let (lane, end, tail_from) = {
            let queues = self.lock();
            let Some(state) = queues.by_key.get(&(topic, queue)) else { return pointers };
            let end = state.end.min(from.0.saturating_add(count));
            let tail_from = state.tail_from();
            if from.0 >= tail_from {
                let skip = (from.0 - tail_from) as usize;
                let wanted = end.saturating_sub(from.0) as usize;
                pointers.extend(state.tail.iter().skip(skip).take(wanted).copied().map(Some));
                return pointers;
            }
            (state.lane.clone(), end, tail_from)
        };
        let in_files = end.min(tail_from);
        let (mut at, mut at_once) = (from.0, u64::MAX);
        while at < in_files {
            let before = pointers.len();
            // Nothing there is nothing up to the next file.
            let none = match lane.read(&self.files, at, at_once.min(in_files - at)) {
                Ok(records) => {
                    pointers.extend(queue_record::decode_all(spot((topic, queue), at), &records));
                    in_files.min(lane.next_file(at)) - at
                }
                Err(error) => {
                    let file = lane.path_of(at);
                    warn!(file = %file.display(), offset = at, %error, "consume queue records cannot be read");
                    // From here on in small steps: what stands beside a bad place may be readable.
                    at_once = UNREADABLE_AT_ONCE;
                    at_once.min(in_files.min(lane.next_file(at)) - at)
                }
            };
            if pointers.len() == before {
                pointers.resize(before + none as usize, None);
            }
            at = from.0 + pointers.len() as u64;
        }
        if at < end {
            pointers.extend(self.pointers(topic, queue, QueueOffset(at), end - at));
        }
        pointers
    }

    /// Where a queue ends; 0 if there is nothing of it here.
    pub(crate) fn end(&self, topic: TopicId, queue: QueueId) -> QueueOffset {
        QueueOffset(self.lock().by_key.get(&(topic, queue)).map_or(0, |state| state.end))
    }

    /// The file that holds, or should hold, a record.
    pub(crate) fn file_of(&self, spot: Spot) -> PathBuf {
        self.lane((spot.topic, spot.queue)).path_of(spot.offset.0)
    }

    /// Puts records back that have rotted, from `from` on, `None` where nobody has one. Nothing is written where no file of this queue
    /// holds written records: below its lowest file, behind what was written, and of a topic that is gone.
    pub(crate) fn mend(&self, from: Spot, pointers: &[Option<Pointer>]) -> io::Result<()> {
        let _standing = self.stand();
        let (lane, files) = {
            let queues = self.lock();
            let Some(state) = queues.by_key.get(&(from.topic, from.queue)) else { return Ok(()) };
            (state.lane.clone(), state.lowest..state.written)
        };
        let spots = (0..).map(|step| from.ahead(step));
        for (spot, pointer) in spots.zip(pointers).filter(|(spot, _)| files.contains(&spot.offset.0)) {
            if let Some(pointer) = pointer {
                let record = queue_record::encode(spot, pointer);
                lane.write(&self.files, spot.offset.0, Bytes::copy_from_slice(&record))?;
            }
        }
        Ok(())
    }

    /// Removes files below a queue's first offset.
    pub(crate) fn drop_below(&self, topic: TopicId, queue: QueueId, min: QueueOffset) -> io::Result<()> {
        let _standing = self.stand();
        let (lane, lowest) = {
            let mut queues = self.lock();
            let Some(state) = queues.by_key.get_mut(&(topic, queue)) else { return Ok(()) };
            let above = state.lowest.max(min.0);
            (state.lane.clone(), std::mem::replace(&mut state.lowest, above))
        };
        lane.drop_below(&self.files, lowest, min.0)
    }

    /// Nothing of a topic is found any more. Its files stay.
    pub(crate) fn forget_topic(&self, topic: TopicId) {
        self.lock().forget_topic(topic);
    }

    /// Removes the files of a topic that is forgotten.
    pub(crate) fn remove_topic(&self, topic: TopicId) -> io::Result<()> {
        let _standing = self.stand();
        for queue in self.queues_on_disk(topic)? {
            self.lane((topic, queue)).cut(&self.files, 0)?;
        }
        Ok(())
    }

    fn lane(&self, (topic, queue): Key) -> Lane {
        let dir = self.root.join(FORMAT).join(topic.to_string()).join(queue.to_string());
        Lane { root: self.root.clone(), dir, record_bytes: RECORD_BYTES as u64, per_file: self.per_file }
    }

    fn keys_on_disk(&self) -> io::Result<Vec<Key>> {
        let mut keys = Vec::new();
        for name in self.files.disk().list(&self.root.join(FORMAT))? {
            if let Ok(topic) = name.parse().map(TopicId) {
                keys.extend(self.queues_on_disk(topic)?.into_iter().map(|queue| (topic, queue)));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    fn queues_on_disk(&self, topic: TopicId) -> io::Result<Vec<QueueId>> {
        let names = self.files.disk().list(&self.root.join(FORMAT).join(topic.to_string()))?;
        Ok(names.iter().filter_map(|name| name.parse().ok().map(QueueId)).collect())
    }

    fn stand(&self) -> MutexGuard<'_, ()> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn unwritten_of(&self, key: Key) -> Option<(Arc<Lane>, u64, BytesMut)> {
        let queue = self.by_key.get(&key)?;
        let count = (queue.end - queue.written) as usize;
        let mut bytes = BytesMut::with_capacity(count * RECORD_BYTES);
        let spots = (queue.written..).map(|offset| spot(key, offset));
        for (spot, pointer) in spots.zip(queue.tail.range(queue.tail.len() - count..)) {
            bytes.put_slice(&queue_record::encode(spot, pointer));
        }
        Some((queue.lane.clone(), queue.written, bytes))
    }

    fn written(&mut self, key: Key, end: u64) {
        let Some(queue) = self.by_key.get_mut(&key) else { return };
        self.unwritten -= (end - queue.written) as usize;
        queue.written = end;
        self.in_tails -= queue.shorten(TAIL_MAX);
    }

    /// Drops all written records from memory.
    fn let_go(&mut self) {
        for queue in self.by_key.values_mut() {
            self.in_tails -= queue.shorten(0);
        }
    }

    fn forget_topic(&mut self, topic: TopicId) {
        let keys = (topic, QueueId(0))..=(topic, QueueId(u16::MAX));
        let gone: Vec<Key> = self.by_key.range(keys).map(|(key, _)| *key).collect();
        for queue in gone.iter().filter_map(|key| self.by_key.remove(key)) {
            self.unwritten -= (queue.end - queue.written) as usize;
            self.in_tails -= queue.tail.len();
        }
        self.dirty.retain(|(dirty, _)| *dirty != topic);
    }
}

impl Queue {
    fn tail_from(&self) -> u64 {
        self.end - self.tail.len() as u64
    }

    /// Keeps at most `written_max` written records in the tail. Says how many went.
    fn shorten(&mut self, written_max: usize) -> usize {
        let unwritten = (self.end - self.written) as usize;
        let surplus = (self.tail.len() - unwritten).saturating_sub(written_max);
        self.tail.drain(..surplus);
        surplus
    }
}

fn spot((topic, queue): Key, offset: u64) -> Spot {
    Spot { topic, queue, offset: QueueOffset(offset) }
}
