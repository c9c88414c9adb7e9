//! Open files: some hundred handles at most, and a list of what was written and not synced yet.
//!
//! A broker may have thousands of queues and a process may have a thousand handles, so the least recently used one goes.
//! A file that was written stays on the unsynced list (and open) until somebody takes the list and syncs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use quorate_raft::{Disk, DiskFile};

/// Most handles kept for reading and writing.
const OPEN_MAX: usize = 256;

/// Handles by path. Shared by the applier, which writes, and the services, which read.
pub(crate) struct OpenFiles {
    disk: Arc<dyn Disk>,
    open: Mutex<Open>,
    /// Held while syncing; true after a sync has failed.
    failed: Mutex<bool>,
}

#[derive(Default)]
struct Open {
    files: BTreeMap<PathBuf, (Arc<dyn DiskFile>, u64)>,
    uses: u64,
    unsynced: Unsynced,
}

/// Files and directories whose changes may be lost with the power.
#[derive(Clone, Default)]
pub(crate) struct Unsynced {
    files: BTreeMap<PathBuf, Arc<dyn DiskFile>>,
    dirs: BTreeSet<PathBuf>,
}

impl OpenFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, open: Mutex::default(), failed: Mutex::default() }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Every change below is one insertion or removal, so a panic elsewhere leaves nothing half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file at `path`; `None` if there is none.
    pub(crate) fn existing(&self, path: &Path) -> io::Result<Option<Arc<dyn DiskFile>>> {
        if let Some(file) = self.lock().use_file(path) {
            return Ok(Some(file));
        }
        match self.disk.open(path, false) {
            Ok(file) => Ok(Some(self.lock().keep(path, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes into the file at `path`, which is made, with its directories up to `root`, if it does not exist.
    pub(crate) fn write(&self, root: &Path, path: &Path, offset: u64, bytes: Bytes) -> io::Result<()> {
        let file = match self.existing(path)? {
            Some(file) => file,
            None => self.create(root, path)?,
        };
        file.write_at(offset, &[bytes])?;
        self.lock().unsynced.files.insert(path.to_owned(), file);
        Ok(())
    }

    fn create(&self, root: &Path, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let dir = path.parent().unwrap_or(root);
        self.disk.create_dir(dir)?;
        let file = self.disk.open(path, true)?;
        let mut open = self.lock();
        let above = dir.ancestors().take_while(|dir| dir.starts_with(root)).map(Path::to_owned);
        open.unsynced.dirs.extend(above);
        open.unsynced.dirs.extend(root.parent().map(Path::to_owned));
        Ok(open.keep(path, file))
    }

    /// Shortens a file; fine if it is not there or short already.
    pub(crate) fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        let Some(file) = self.existing(path)? else { return Ok(()) };
        if file.len()? > len {
            file.set_len(len)?;
            self.lock().unsynced.files.insert(path.to_owned(), file);
        }
        Ok(())
    }

    /// Removes a file; fine if it is not there.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        {
            let mut open = self.lock();
            open.files.remove(path);
            open.unsynced.files.remove(path);
        }
        self.disk.remove(path)
    }

    /// What was written since the last call.
    pub(crate) fn take_unsynced(&self) -> Unsynced {
        std::mem::take(&mut self.lock().unsynced)
    }

    /// Syncs files, then the directories they are in. One caller at a time.
    ///
    /// # Errors
    /// A sync has failed, now or before: nothing is ever synced again, the node must stop.
    pub(crate) fn sync(&self, unsynced: &Unsynced) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(io::Error::other("an earlier sync has failed"));
        }
        let files = unsynced.files.values().try_for_each(|file| file.sync());
        let synced = files.and_then(|()| unsynced.dirs.iter().rev().try_for_each(|dir| self.disk.sync_dir(dir)));
        *failed = synced.is_err();
        synced
    }
}

impl Open {
    fn use_file(&mut self, path: &Path) -> Option<Arc<dyn DiskFile>> {
        self.uses += 1;
        let (file, used) = self.files.get_mut(path)?;
        *used = self.uses;
        Some(file.clone())
    }

    fn keep(&mut self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        self.uses += 1;
        self.files.insert(path.to_owned(), (file.clone(), self.uses));
        if self.files.len() > OPEN_MAX {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            oldest.and_then(|path| self.files.remove(&path));
        }
        file
    }
}
