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

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{BufMut, BytesMut};
use quorate_raft::Position;

use super::{files::OpenFiles, lane::Lane};
use crate::machine::{
    Machine, QueueId, QueueOffset, TopicId,
    record::{POINTER_BYTES, Pointer},
};

/// Records per file, as in RocketMQ: 6,000,000 bytes.
pub const RECORDS_PER_FILE: u64 = 300_000;

/// Written records that the tail of one queue keeps.
const TAIL_MAX: usize = 1_024;

/// Records in all tails together before the written ones are let go.
const TAILS_MAX: usize = 262_144;

/// One record on its way into its queue.
#[derive(Clone, Copy)]
pub(crate) struct Append {
    pub(crate) topic: TopicId,
    pub(crate) queue: QueueId,
    pub(crate) offset: QueueOffset,
    pub(crate) pointer: Pointer,
}

/// All consume queues of a node. The applier writes, services read.
pub(crate) struct ConsumeQueues {
    files: Arc<OpenFiles>,
    root: PathBuf,
    per_file: u64,
    queues: Mutex<Queues>,
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
        Self { files, root, per_file, queues: Mutex::default() }
    }

    /// Follows a machine that was just loaded. Changes no file.
    ///
    /// `Ok(false)` if the files lack records that the machine has and whose messages stand at or above `floor`.
    pub(crate) fn restore(&self, machine: &Machine, floor: Position) -> io::Result<bool> {
        let mut queues = Queues::default();
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
                let lane = Arc::new(lane);
                let queue_state = Queue { lane, lowest, written: end.0, end: end.0, tail: VecDeque::new() };
                queues.by_key.insert((topic.id(), queue), queue_state);
            }
        }
        *self.lock() = queues;
        Ok(true)
    }

    /// Removes everything from the files that the restored machine does not have.
    pub(crate) fn cut(&self) -> io::Result<()> {
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
        for Append { topic, queue, offset, pointer } in records {
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
            let count = (bytes.len() / POINTER_BYTES) as u64;
            lane.write(&self.files, from, bytes.freeze())?;
            self.lock().written(key, from + count);
        }
        let mut queues = self.lock();
        if queues.in_tails > TAILS_MAX {
            queues.let_go();
        }
        Ok(())
    }

    /// Pointers of up to `count` neighbouring offsets. `None` where there is no record here, and nothing behind the end.
    pub(crate) fn pointers(
        &self,
        topic: TopicId,
        queue: QueueId,
        from: QueueOffset,
        count: u64,
    ) -> io::Result<Vec<Option<Pointer>>> {
        let mut pointers = Vec::new();
        let (lane, end, tail_from) = {
            let queues = self.lock();
            let Some(state) = queues.by_key.get(&(topic, queue)) else { return Ok(pointers) };
            let end = state.end.min(from.0.saturating_add(count));
            let tail_from = state.tail_from();
            if from.0 >= tail_from {
                let skip = (from.0 - tail_from) as usize;
                let wanted = end.saturating_sub(from.0) as usize;
                pointers.extend(state.tail.iter().skip(skip).take(wanted).copied().map(Some));
                return Ok(pointers);
            }
            (state.lane.clone(), end, tail_from)
        };
        let mut at = from.0;
        while at < end.min(tail_from) {
            let bytes = lane.read(&self.files, at, end.min(tail_from) - at)?;
            let read = bytes.chunks_exact(POINTER_BYTES).map(|record| record.first_chunk().and_then(Pointer::decode));
            let before = pointers.len();
            pointers.extend(read);
            if pointers.len() == before {
                pointers.push(None);
            }
            at = from.0 + pointers.len() as u64;
        }
        if at < end {
            pointers.extend(self.pointers(topic, queue, QueueOffset(at), end - at)?);
        }
        Ok(pointers)
    }

    /// Removes files below a queue's first offset.
    pub(crate) fn drop_below(&self, topic: TopicId, queue: QueueId, min: QueueOffset) -> io::Result<()> {
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
        for queue in self.queues_on_disk(topic)? {
            self.lane((topic, queue)).cut(&self.files, 0)?;
        }
        Ok(())
    }

    fn lane(&self, (topic, queue): Key) -> Lane {
        let dir = self.root.join(topic.to_string()).join(queue.to_string());
        Lane { root: self.root.clone(), dir, record_bytes: POINTER_BYTES as u64, per_file: self.per_file }
    }

    fn keys_on_disk(&self) -> io::Result<Vec<Key>> {
        let mut keys = Vec::new();
        for name in self.files.disk().list(&self.root)? {
            if let Ok(topic) = name.parse().map(TopicId) {
                keys.extend(self.queues_on_disk(topic)?.into_iter().map(|queue| (topic, queue)));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    fn queues_on_disk(&self, topic: TopicId) -> io::Result<Vec<QueueId>> {
        let names = self.files.disk().list(&self.root.join(topic.to_string()))?;
        Ok(names.iter().filter_map(|name| name.parse().ok().map(QueueId)).collect())
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn unwritten_of(&self, key: Key) -> Option<(Arc<Lane>, u64, BytesMut)> {
        let queue = self.by_key.get(&key)?;
        let count = (queue.end - queue.written) as usize;
        let mut bytes = BytesMut::with_capacity(count * POINTER_BYTES);
        for pointer in queue.tail.range(queue.tail.len() - count..) {
            bytes.put_slice(&pointer.encode());
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
