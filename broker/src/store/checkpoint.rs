//! The checkpoint: the machine as it was some seconds ago, so that a restart replays seconds of log and not a segment.
//!
//! Kept in sled, on a thread of its own, since it flushes and sometimes takes its time. Every part of a [`Save`] is one or
//! more values; what differs from the save before is written in one atomic batch with the stamp. Losing a checkpoint costs
//! replay time and nothing else, and so does a database that will not open: it is moved aside and begun anew. Nothing that
//! Raft's safety needs is kept here. Only this file names sled; why it is trusted so little stands in
//! `docs/adr/0004-checkpoint.md`.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use md5::{Digest, Md5};
use quorate_raft::Disk;
use tracing::{info, warn};

use super::save::{Checkpoint, Place, Save, Saved, decode_stamp, encode_stamp};
use crate::machine::{codec::DecodeError, image::Part};

/// Bytes of a part per database value; larger values would each become a file of their own.
const CHUNK_BYTES: usize = 32 * 1024;
/// Page cache of the database.
const CACHE_BYTES: u64 = 4 << 20;
/// The database is begun anew when its files have grown to this and eight times what they hold.
const FILES_BYTES_MAX: u64 = 64 << 20;
/// Broken databases kept for whoever wants to know why.
const ASIDE_MAX: usize = 2;
/// Key of the stamp; parts begin with small numbers.
const STAMP: &[u8] = &[0xFF];

/// sled, on a thread of its own.
pub(crate) struct Database {
    saves: Option<SyncSender<Save>>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    busy: AtomicBool,
    cost_bytes: AtomicU64,
    fault: Mutex<Option<String>>,
}

/// What the thread works with.
struct Keeper {
    place: Place,
    dir: PathBuf,
    /// `None` after a failure: checkpoints stop, the node goes on.
    db: Option<sled::Db>,
    /// Digest and chunks of every part in the database.
    kept: BTreeMap<Bytes, ([u8; 16], u16)>,
}

/// Why a node has no database, although a broken one would have been replaced.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint {}: {reason}; {remedy}", dir.display())]
pub(crate) struct NotOpened {
    dir: PathBuf,
    reason: Broken,
    remedy: &'static str,
}

/// What can be wrong with a database.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Database(#[from] sled::Error),
    #[error("the database panicked")]
    Panicked,
    #[error("its stamp: {0}")]
    Stamp(#[from] DecodeError),
    #[error("a part has lost a chunk")]
    Chunks,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Database {
    /// Opens the database of a node and reads what it keeps. One that will not open or makes no sense is moved aside.
    ///
    /// # Errors
    /// It can be neither opened nor moved aside; says where and what to do.
    pub(crate) fn open(place: Place) -> Result<(Self, Option<Saved>), NotOpened> {
        let dir = place.data_dir.join("checkpoint");
        let not_opened = |remedy| {
            let dir = dir.clone();
            move |reason| NotOpened { dir, reason, remedy }
        };
        let (db, saved) = match open_and_read(&dir) {
            Ok(opened) => opened,
            Err(reason) => {
                warn!(dir = %dir.display(), %reason, "checkpoint moved aside");
                move_aside(place.disk(), &dir)
                    .map_err(Broken::Io)
                    .map_err(not_opened("a broken one is in the way and cannot be renamed; remove it"))?;
                open_and_read(&dir).map_err(not_opened("check the permissions and the space of the disk"))?
            }
        };
        let kept = saved.iter().flat_map(|saved| &saved.parts).map(|part| (part.key.clone(), summary(part))).collect();
        let keeper = Keeper { place, dir: dir.clone(), db: Some(db), kept };
        let state = Arc::new(State::default());
        let (saves, inbox) = sync_channel(1);
        let shared = state.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || keeper.run(&inbox, &shared))
            .map_err(Broken::Io)
            .map_err(not_opened("the system is out of threads"))?;
        Ok((Self { saves: Some(saves), state, thread: Some(thread) }, saved))
    }
}

impl Checkpoint for Database {
    fn is_idle(&self) -> bool {
        !self.state.busy.load(Ordering::Acquire)
    }

    fn save(&mut self, save: Save) -> io::Result<()> {
        if let Some(fault) = &*self.state.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(io::Error::other(fault.clone()));
        }
        if self.is_idle()
            && let Some(saves) = &self.saves
        {
            self.state.busy.store(true, Ordering::Release);
            if saves.try_send(save).is_err() {
                warn!("checkpoint thread has ended; a restart will replay from the newest image");
            }
        }
        Ok(())
    }

    fn cost_bytes(&self) -> u64 {
        self.state.cost_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.saves.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was caught and logged there.
            let _ = thread.join();
        }
    }
}

impl Keeper {
    fn run(mut self, inbox: &Receiver<Save>, state: &State) {
        for save in inbox {
            if let Err(error) = self.place.vouch(&save.unsynced, &save.remembered) {
                *state.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                // Stays busy: nothing is saved after a failed sync.
                return;
            }
            match self.keep(&save) {
                Ok(cost) => state.cost_bytes.store(cost, Ordering::Relaxed),
                Err(reason) => {
                    warn!(%reason, "checkpoints stopped; a restart will replay from the newest image");
                    self.db = None;
                }
            }
            state.busy.store(false, Ordering::Release);
        }
    }

    fn keep(&mut self, save: &Save) -> Result<u64, Broken> {
        if self.db.is_none() {
            return Ok(0);
        }
        let kept = catch_unwind(AssertUnwindSafe(|| self.keep_in_database(save)));
        let cost = kept.map_err(|_| Broken::Panicked)??;
        self.place.let_go(&save.remembered)?;
        Ok(cost + save.remembered.bytes.len() as u64)
    }

    fn keep_in_database(&mut self, save: &Save) -> Result<u64, sled::Error> {
        self.begin_anew_if_bloated()?;
        let Some(db) = &self.db else { return Ok(0) };
        let mut batch = sled::Batch::default();
        let mut cost = 0;
        let mut now = BTreeMap::new();
        for part in &save.parts {
            let summary = summary(part);
            let before = self.kept.remove(&part.key);
            if before.map(|(digest, _)| digest) != Some(summary.0) {
                cost += put_part(&mut batch, part);
                let stale = summary.1..before.map_or(0, |(_, chunks)| chunks);
                stale.for_each(|chunk| batch.remove(chunk_key(&part.key, chunk)));
            }
            now.insert(part.key.clone(), summary);
        }
        for (key, (_, chunks)) in std::mem::replace(&mut self.kept, now) {
            (0..chunks).for_each(|chunk| batch.remove(chunk_key(&key, chunk)));
        }
        batch.insert(STAMP, encode_stamp(save.applied).to_vec());
        db.apply_batch(batch)?;
        db.flush()?;
        Ok(cost)
    }

    /// sled's files grow by far more than what is overwritten in them; a fresh start is the one cure it has.
    fn begin_anew_if_bloated(&mut self) -> Result<(), sled::Error> {
        let Some(db) = &self.db else { return Ok(()) };
        let held: u64 = self.kept.values().map(|(_, chunks)| u64::from(*chunks) * CHUNK_BYTES as u64).sum();
        let on_disk = db.size_on_disk()?;
        if on_disk > FILES_BYTES_MAX && on_disk > held.saturating_mul(8) {
            self.db = None;
            self.kept.clear();
            std::fs::remove_dir_all(&self.dir)?;
            self.db = Some(open_database(&self.dir)?);
            info!(bytes = on_disk, "checkpoint begun anew");
        }
        Ok(())
    }
}

fn summary(part: &Part) -> ([u8; 16], u16) {
    (Md5::digest(&part.bytes).into(), chunks_of(part.bytes.len()))
}

fn chunks_of(bytes: usize) -> u16 {
    u16::try_from(bytes.div_ceil(CHUNK_BYTES).max(1))
        .expect("a part is bounded by the in-flight limit, far below 2 GiB")
}

fn chunk_key(key: &[u8], chunk: u16) -> Vec<u8> {
    [key, &chunk.to_be_bytes()].concat()
}

fn put_part(batch: &mut sled::Batch, part: &Part) -> u64 {
    for chunk in 0..chunks_of(part.bytes.len()) {
        let at = usize::from(chunk) * CHUNK_BYTES;
        let end = part.bytes.len().min(at + CHUNK_BYTES);
        batch.insert(chunk_key(&part.key, chunk), part.bytes.slice(at..end).to_vec());
    }
    part.bytes.len() as u64
}

fn open_database(dir: &Path) -> Result<sled::Db, sled::Error> {
    sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()
}

/// Opens and reads in a thread of its own: sled may panic on files that a crash has damaged.
fn open_and_read(dir: &Path) -> Result<(sled::Db, Option<Saved>), Broken> {
    let dir = dir.to_owned();
    let opened = std::thread::Builder::new().name("checkpoint-open".to_owned()).spawn(move || {
        catch_unwind(|| {
            let db = open_database(&dir)?;
            let saved = read(&db)?;
            Ok((db, saved))
        })
    });
    match opened.map(JoinHandle::join) {
        Ok(Ok(Ok(result))) => result,
        Ok(Ok(Err(_)) | Err(_)) => Err(Broken::Panicked),
        Err(error) => Err(error.into()),
    }
}

fn read(db: &sled::Db) -> Result<Option<Saved>, Broken> {
    let Some(stamp) = db.get(STAMP)? else { return Ok(None) };
    let applied = decode_stamp(Bytes::copy_from_slice(&stamp))?;
    let mut parts: Vec<(Part, u16)> = Vec::new();
    for item in db.iter() {
        let (key, value) = item?;
        if key == STAMP {
            continue;
        }
        let (name, chunk) = key.split_last_chunk::<2>().ok_or(Broken::Chunks)?;
        let chunk = u16::from_be_bytes(*chunk);
        match parts.last_mut() {
            Some((part, last)) if part.key == name && last.checked_add(1) == Some(chunk) => {
                part.bytes = [&part.bytes[..], &value].concat().into();
                *last = chunk;
            }
            Some(_) | None if chunk == 0 => {
                let part = Part { key: Bytes::copy_from_slice(name), bytes: Bytes::copy_from_slice(&value) };
                parts.push((part, 0));
            }
            Some(_) | None => return Err(Broken::Chunks),
        }
    }
    Ok(Some(Saved { applied, parts: parts.into_iter().map(|(part, _)| part).collect() }))
}

/// Renames a broken database to `checkpoint.bad-<n>` and removes all but the newest of those.
fn move_aside(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let parent = dir.parent().unwrap_or(dir);
    let names = disk.list(parent)?;
    let mut aside: Vec<u32> =
        names.iter().filter_map(|name| name.strip_prefix("checkpoint.bad-")?.parse().ok()).collect();
    aside.sort_unstable();
    let number = aside.last().map_or(1, |last| last + 1);
    disk.rename(dir, &parent.join(format!("checkpoint.bad-{number}")))?;
    while aside.len() >= ASIDE_MAX {
        std::fs::remove_dir_all(parent.join(format!("checkpoint.bad-{}", aside.remove(0))))?;
    }
    disk.sync_dir(parent)
}

#[cfg(test)]
#[path = "checkpoint_test.rs"]
mod tests;
