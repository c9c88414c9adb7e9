//! A disk in memory that loses what a real one loses.
//!
//! Every file has what was written (the page cache) and what is durable. [`SimDisk::kill`] is `kill -9`: the cache survives.
//! [`SimDisk::power_cut`] drops what was not synced, or, as real disks do, keeps parts of it: a prefix of the unsynced writes
//! with the last one torn, or any of their 512-byte sectors. Names are durable after `sync_dir`; on a cut a prefix of the
//! unsynced creations, removals and renames of a directory survives. After either, handles from before fail for ever
//! and have no effect, so a task of the old life that still runs can do no harm. Files are sparse. All chance comes from one seed.
//!
//! Faults are set by [`SimDisk::faults`] and [`SimDisk::damage`]. Used by tests and by the simulation of whole groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{Disk, DiskFile};

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

/// What a power cut leaves of unsynced writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Nothing of them.
    Nothing,
    /// The first ones, the last of these cut at a sector.
    Prefix,
    /// Each sector of each write by the toss of a coin.
    Sectors,
}

/// What this disk does wrong. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Syncs fail with an I/O error.
    pub sync_error: bool,
    /// Reads fail with an I/O error.
    pub read_error: bool,
    /// A sync says yes and does nothing: the planted bug.
    pub lie_on_sync: bool,
    /// A sync takes between these two, in virtual time.
    pub sync_delay: Option<(Duration, Duration)>,
    /// Bytes that fit; a write beyond fails with `StorageFull`.
    pub capacity: Option<u64>,
}

/// Damage to the bytes of one file, cache and durable, as a bad medium does it.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// Flips the bits of `mask` in the byte at `offset`.
    Flip {
        /// Which byte.
        offset: u64,
        /// Which bits.
        mask: u8,
    },
    /// Fills a part of it with zeros.
    Zero {
        /// From which byte on.
        offset: u64,
        /// How many; no further than the file goes.
        len: u64,
    },
    /// Shortens the file.
    Truncate {
        /// Its new length.
        len: u64,
    },
}

/// The disk of one node. Cheap to clone; outlives the node's kills.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

struct World {
    names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    durable_names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    /// Unsynced changes of names, oldest first.
    renames: Vec<(PathBuf, Option<Arc<Mutex<Inode>>>)>,
    incarnation: u64,
    boot: u128,
    locked: BTreeMap<PathBuf, u64>,
    faults: Faults,
    random: StdRng,
    syncs: u64,
}

#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8]>>,
}

#[derive(Default)]
struct Inode {
    cache: Content,
    durable: Content,
    dirty: BTreeSet<u64>,
    /// Unsynced writes, oldest first.
    writes: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    Bytes(u64, Bytes),
    Len(u64),
}

/// A node's view of its disk in one of its lives.
struct Handle {
    disk: SimDisk,
    incarnation: u64,
}

struct SimFile {
    disk: SimDisk,
    incarnation: u64,
    inode: Arc<Mutex<Inode>>,
}

impl SimDisk {
    /// An empty disk whose chances follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let boot = u128::from(random.next_u64());
        let world = World {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renames: Vec::new(),
            incarnation: 0,
            boot,
            locked: BTreeMap::new(),
            faults: Faults::default(),
            random,
            syncs: 0,
        };
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// The door for the node's present life.
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(Handle { disk: self.clone(), incarnation: self.lock().incarnation })
    }

    /// The node's process dies: handles end, the page cache survives.
    pub fn kill(&self) {
        let mut world = self.lock();
        world.incarnation += 1;
        world.locked.clear();
    }

    /// The machine loses power: handles end, unsynced writes are lost but for what `keep` says, and it boots anew.
    pub fn power_cut(&self, keep: Keep) {
        let mut world = self.lock();
        world.incarnation += 1;
        world.locked.clear();
        world.boot = u128::from(world.random.next_u64());
        let world = &mut *world;
        world.cut_names(keep);
        let World { durable_names, random, .. } = world;
        for inode in durable_names.values() {
            lock(inode).cut(keep, random);
        }
        world.names = world.durable_names.clone();
    }

    /// Changes what this disk does wrong from now on.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.lock().faults);
    }

    /// Damages a file. `NotFound` if there is none.
    pub fn damage(&self, path: &Path, damage: Damage) -> io::Result<()> {
        let world = self.lock();
        let inode = world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let mut inode = lock(inode);
        let Inode { cache, durable, .. } = &mut *inode;
        for content in [cache, durable] {
            match damage {
                Damage::Flip { offset, mask } if offset < content.len => {
                    let byte = content.read(offset, 1)[0] ^ mask;
                    content.write(offset, &[byte]);
                }
                Damage::Flip { .. } => (),
                Damage::Zero { offset, len } => {
                    let len = len.min(content.len.saturating_sub(offset));
                    content.write(offset.min(content.len), &vec![0; len as usize]);
                }
                Damage::Truncate { len } => content.set_len(len.min(content.len)),
            }
        }
        Ok(())
    }

    /// Syncs of files since the disk was made.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Bytes held by files.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Reads a whole file as it is now, of whatever life.
    pub fn peek(&self, path: &Path) -> io::Result<Bytes> {
        let world = self.lock();
        let inode = world.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        let inode = lock(inode);
        Ok(inode.cache.read(0, inode.cache.len as usize))
    }

    /// Paths of all files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    fn alive(&self, incarnation: u64) -> io::Result<MutexGuard<'_, World>> {
        let world = self.lock();
        if world.incarnation == incarnation { Ok(world) } else { Err(io::Error::other("this process has been killed")) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that panicked while it held the lock has failed anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn used(&self) -> u64 {
        self.names.values().map(|inode| lock(inode).cache.pages.len() as u64 * PAGE).sum()
    }

    /// Is there room for a write of `len` bytes at `offset` into `inode`?
    fn check_space(&self, inode: &Mutex<Inode>, offset: u64, len: usize) -> io::Result<()> {
        let Some(capacity) = self.faults.capacity else { return Ok(()) };
        if len == 0 {
            return Ok(());
        }
        let used = self.used();
        let pages = offset / PAGE..=(offset + len as u64 - 1) / PAGE;
        let held = lock(inode);
        let new = pages.filter(|page| !held.cache.pages.contains_key(page)).count() as u64;
        if used + new * PAGE > capacity { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn rename(&mut self, path: &Path, inode: Option<Arc<Mutex<Inode>>>) {
        set_name(&mut self.names, path, inode.clone());
        self.renames.push((path.to_owned(), inode));
    }

    fn cut_names(&mut self, keep: Keep) {
        let kept = match keep {
            Keep::Nothing => 0,
            Keep::Prefix | Keep::Sectors => self.random.random_range(0..=self.renames.len()),
        };
        for (path, inode) in self.renames.drain(..).take(kept) {
            set_name(&mut self.durable_names, &path, inode);
        }
    }
}

fn set_name(names: &mut BTreeMap<PathBuf, Arc<Mutex<Inode>>>, path: &Path, inode: Option<Arc<Mutex<Inode>>>) {
    match inode {
        Some(inode) => names.insert(path.to_owned(), inode),
        None => names.remove(path),
    };
}

impl Content {
    fn read(&self, offset: u64, len: usize) -> Bytes {
        let mut out = BytesMut::zeroed(len);
        each_page(offset, len, |page, within, range| {
            if let Some(bytes) = self.pages.get(&page) {
                out[range.clone()].copy_from_slice(&bytes[within..within + range.len()]);
            }
        });
        out.freeze()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        each_page(offset, bytes.len(), |page, within, range| {
            let held = self.pages.entry(page).or_insert_with(|| Arc::from([0; PAGE as usize]));
            Arc::make_mut(held)[within..within + range.len()].copy_from_slice(&bytes[range]);
        });
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.retain(|page, _| page * PAGE < len);
            if let Some(last) = self.pages.get_mut(&(len / PAGE)) {
                Arc::make_mut(last)[(len % PAGE) as usize..].fill(0);
            }
        }
        self.len = len;
    }
}

/// Splits a range of bytes at page borders: page, offset within it, range within the bytes.
fn each_page(offset: u64, len: usize, mut visit: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let part = (PAGE as usize - within).min(len - done);
        visit(at / PAGE, within, done..done + part);
        done += part;
    }
}

impl Inode {
    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            match self.cache.pages.get(&page) {
                Some(bytes) => self.durable.pages.insert(page, bytes.clone()),
                None => self.durable.pages.remove(&page),
            };
        }
        if self.durable.len != self.cache.len {
            self.durable.set_len(self.cache.len);
        }
        self.writes.clear();
    }

    fn cut(&mut self, keep: Keep, random: &mut StdRng) {
        let writes = std::mem::take(&mut self.writes);
        let kept = match keep {
            Keep::Nothing => 0,
            Keep::Prefix => random.random_range(0..=writes.len()),
            Keep::Sectors => writes.len(),
        };
        for (number, write) in writes.into_iter().take(kept).enumerate() {
            match write {
                Write::Len(len) => self.durable.set_len(len),
                Write::Bytes(offset, bytes) if keep == Keep::Prefix => {
                    let cut = if number + 1 == kept {
                        random.random_range(0..=bytes.len()) / SECTOR * SECTOR
                    } else {
                        bytes.len()
                    };
                    self.durable.write(offset, &bytes[..cut]);
                }
                Write::Bytes(offset, bytes) => self.keep_sectors(offset, &bytes, random),
            }
        }
        self.dirty.clear();
        self.cache = self.durable.clone();
    }

    fn keep_sectors(&mut self, offset: u64, bytes: &[u8], random: &mut StdRng) {
        let mut done = 0;
        while done < bytes.len() {
            let part = (SECTOR - (offset as usize + done) % SECTOR).min(bytes.len() - done);
            if random.random_bool(0.5) {
                self.durable.write(offset + done as u64, &bytes[done..done + part]);
            }
            done += part;
        }
    }
}

impl Disk for Handle {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.disk.alive(self.incarnation)?;
        let inode = match world.names.get(path) {
            Some(inode) => inode.clone(),
            None if create => {
                let inode = Arc::<Mutex<Inode>>::default();
                world.rename(path, Some(inode.clone()));
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { disk: self.disk.clone(), incarnation: self.incarnation, inode }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.disk.alive(self.incarnation)?;
        let entry =
            |path: &PathBuf| path.strip_prefix(dir).ok()?.components().next()?.as_os_str().to_str().map(str::to_owned);
        let mut names: Vec<String> = world.names.keys().filter_map(entry).collect();
        // Paths are sorted, so those below one directory stand together.
        names.dedup();
        Ok(names)
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        // Directories are there when something is in them.
        self.disk.alive(self.incarnation).map(drop)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.disk.alive(self.incarnation)?;
        if world.names.contains_key(path) {
            world.rename(path, None);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.disk.alive(self.incarnation)?;
        let inode = world.names.get(from).cloned().ok_or(io::ErrorKind::NotFound)?;
        // In this order a cut between the two leaves both names, never none.
        world.rename(to, Some(inode));
        world.rename(from, None);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.disk.alive(self.incarnation)?;
        if world.faults.sync_error {
            return Err(io::Error::other("injected sync error"));
        }
        if world.faults.lie_on_sync {
            return Ok(());
        }
        let (synced, left) =
            std::mem::take(&mut world.renames).into_iter().partition(|(path, _)| path.parent() == Some(dir));
        world.renames = left;
        let synced: Vec<(PathBuf, _)> = synced;
        for (path, inode) in synced {
            set_name(&mut world.durable_names, &path, inode);
        }
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<(u64, u64)> {
        let world = self.disk.alive(self.incarnation)?;
        let total = world.faults.capacity.unwrap_or(1 << 40);
        Ok((total.saturating_sub(world.used()), total))
    }

    fn file_system(&self, _path: &Path) -> String {
        "memory".to_owned()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut world = self.disk.alive(self.incarnation)?;
        if world.locked.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another process"));
        }
        world.locked.insert(path.to_owned(), self.incarnation);
        Ok(Box::new(Lock { disk: self.disk.clone(), path: path.to_owned(), incarnation: self.incarnation }))
    }

    fn boot_id(&self) -> io::Result<u128> {
        Ok(self.disk.alive(self.incarnation)?.boot)
    }
}

struct Lock {
    disk: SimDisk,
    path: PathBuf,
    incarnation: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut world = self.disk.lock();
        if world.locked.get(&self.path) == Some(&self.incarnation) {
            world.locked.remove(&self.path);
        }
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let world = self.disk.alive(self.incarnation)?;
        for bytes in parts {
            world.check_space(&self.inode, offset, bytes.len())?;
            let mut inode = lock(&self.inode);
            inode.cache.write(offset, bytes);
            each_page(offset, bytes.len(), |page, _, _| {
                inode.dirty.insert(page);
            });
            inode.writes.push(Write::Bytes(offset, bytes.clone()));
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let world = self.disk.alive(self.incarnation)?;
        if world.faults.read_error {
            return Err(io::Error::other("injected read error"));
        }
        let inode = lock(&self.inode);
        if offset.checked_add(len as u64).is_none_or(|end| end > inode.cache.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(inode.cache.read(offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.disk.alive(self.incarnation)?;
        if world.faults.sync_error {
            // As Linux does: what could not be written back counts as clean, so a later sync says yes and writes nothing of it.
            let mut inode = lock(&self.inode);
            inode.dirty.clear();
            inode.writes.clear();
            return Err(io::Error::other("injected sync error"));
        }
        world.syncs += 1;
        if !world.faults.lie_on_sync {
            lock(&self.inode).sync();
        }
        Ok(())
    }

    fn sync_delay(&self) -> Duration {
        let Ok(mut world) = self.disk.alive(self.incarnation) else { return Duration::ZERO };
        match world.faults.sync_delay {
            Some((shortest, longest)) if longest > shortest => {
                let nanos = (longest - shortest).as_nanos() as u64;
                shortest + Duration::from_nanos(world.random.random_range(0..=nanos))
            }
            Some((shortest, _)) => shortest,
            None => Duration::ZERO,
        }
    }

    fn len(&self) -> io::Result<u64> {
        let _world = self.disk.alive(self.incarnation)?;
        Ok(lock(&self.inode).cache.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _world = self.disk.alive(self.incarnation)?;
        let mut inode = lock(&self.inode);
        if len < inode.cache.len {
            let cut: Vec<u64> = inode.cache.pages.range(len / PAGE..).map(|(page, _)| *page).collect();
            inode.dirty.extend(cut);
        }
        inode.cache.set_len(len);
        inode.writes.push(Write::Len(len));
        Ok(())
    }
}
