//! What a checkpoint keeps, and what a keeper must do: the parts that [`super::checkpoint`] and [`super::plain`] share.
//!
//! A save holds the machine's parts (see [`crate::machine::image`]) stamped with the last applied log id. Remembered sends
//! are many and only appended to, so they stand beside it in a [`Lane`] of 40-byte records that the saved numbers point
//! into. The order of a save is LAW-ORDER in small:
//!
//! ```text
//!   log synced up to the save  →  consume queues and remembered sends synced  →  parts + stamp, durable
//! ```

use std::{io, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use quorate_raft::{Disk, LogId, LogIndex, NodeId, Term};

use super::{
    files::{OpenFiles, Unsynced},
    lane::Lane,
};
use crate::machine::{
    codec::{DecodeError, Reader},
    image::{Part, REMEMBERED_BYTES},
};

/// Remembered sends per file of their lane.
pub(super) const REMEMBERED_PER_FILE: u64 = 65_536;

/// One state to keep.
pub(crate) struct Save {
    /// Last entry it contains.
    pub(crate) applied: LogId,
    /// The machine without its remembered sends.
    pub(crate) parts: Vec<Part>,
    /// Remembered sends `[first, …)`; those below `from` were part of earlier saves.
    pub(crate) remembered: Remembered,
    /// What must be on stable storage before the save is.
    pub(crate) unsynced: Unsynced,
}

/// The new remembered sends of a save.
pub(crate) struct Remembered {
    /// Oldest one kept.
    pub(crate) first: u64,
    /// Number of the first one in `bytes`.
    pub(crate) from: u64,
    /// [`REMEMBERED_BYTES`] each.
    pub(crate) bytes: Bytes,
}

impl Remembered {
    /// How many are in `bytes`.
    pub(crate) fn count(&self) -> u64 {
        (self.bytes.len() / REMEMBERED_BYTES) as u64
    }
}

/// A state that was kept.
pub(crate) struct Saved {
    pub(crate) applied: LogId,
    pub(crate) parts: Vec<Part>,
}

/// Keeps the newest save.
pub(crate) trait Checkpoint: Send {
    /// A save would be taken on now.
    fn is_idle(&self) -> bool;

    /// Takes a save on; it is durable some time later, and until then the one before stands. Dropped if not idle.
    ///
    /// # Errors
    /// A sync has failed, of this save or an earlier one: the node must stop.
    fn save(&mut self, save: Save) -> io::Result<()>;

    /// Bytes that the last save wrote.
    fn cost_bytes(&self) -> u64;
}

/// What a keeper needs to know of its node.
#[derive(Clone)]
pub(crate) struct Place {
    /// Handles of the remembered sends, apart from the consume queues': a keeper syncs what it wrote itself.
    files: Arc<OpenFiles>,
    queue_files: Arc<OpenFiles>,
    pub(super) data_dir: PathBuf,
}

impl Place {
    pub(crate) fn new(queue_files: Arc<OpenFiles>, data_dir: PathBuf) -> Self {
        Self { files: Arc::new(OpenFiles::new(queue_files.disk().clone())), queue_files, data_dir }
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &**self.files.disk()
    }

    /// Where remembered sends stand.
    fn remembered(&self) -> Lane {
        let dir = self.data_dir.join("dedup");
        let record_bytes = REMEMBERED_BYTES as u64;
        Lane { root: dir.clone(), dir, record_bytes, per_file: REMEMBERED_PER_FILE }
    }

    /// Reads remembered sends `[first, end)`.
    pub(crate) fn load_remembered(&self, first: u64, end: u64) -> io::Result<Bytes> {
        let lane = self.remembered();
        let mut all = BytesMut::new();
        let mut at = first;
        while at < end {
            let some = lane.read(&self.files, at, end - at)?;
            if some.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "remembered sends are missing"));
            }
            at += some.len() as u64 / REMEMBERED_BYTES as u64;
            all.extend_from_slice(&some);
        }
        Ok(all.freeze())
    }

    /// Makes what a save refers to durable.
    pub(super) fn vouch(&self, unsynced: &Unsynced, remembered: &Remembered) -> io::Result<()> {
        self.remembered().write(&self.files, remembered.from, remembered.bytes.clone())?;
        self.queue_files.sync(unsynced)?;
        self.files.sync(&self.files.take_unsynced())
    }

    /// Lets go of remembered sends that no save refers to any more.
    pub(super) fn let_go(&self, remembered: &Remembered) -> io::Result<()> {
        let lane = self.remembered();
        match lane.list(&self.files)?.first() {
            Some(lowest) => lane.drop_below(&self.files, *lowest, remembered.first),
            None => Ok(()),
        }
    }
}

const VERSION: u8 = 3;

/// Bytes of an encoded stamp: version (1) | term (8) | node (8) | index (8)
pub(super) const STAMP_BYTES: usize = 25;

pub(super) fn encode_stamp(applied: LogId) -> [u8; STAMP_BYTES] {
    let mut out = [0; STAMP_BYTES];
    out[0] = VERSION;
    out[1..9].copy_from_slice(&applied.term.0.to_le_bytes());
    out[9..17].copy_from_slice(&applied.node.0.to_le_bytes());
    out[17..].copy_from_slice(&applied.index.0.to_le_bytes());
    out
}

pub(super) fn decode_stamp(bytes: Bytes) -> Result<LogId, DecodeError> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(DecodeError { what: "unknown checkpoint version", at: 0 });
    }
    let id = LogId { term: Term(reader.u64()?), node: NodeId(reader.u64()?), index: LogIndex(reader.u64()?) };
    reader.end()?;
    Ok(id)
}
