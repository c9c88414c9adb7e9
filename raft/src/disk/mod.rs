//! The disk door: all files of a node are opened through [`Disk`], so that the simulator can lose what was not synced.
//!
//! Whoever writes through it keeps three rules: a file is there after its directory was synced, bytes are there after the file was
//! synced, and a file whose sync has failed is never synced again. Reads of damaged lengths are errors, never allocations.
//! `real` is the operating system, `sim` a disk in memory that loses what a real one loses.
//!
//! There are no memory maps: a file that is cut short, or a sector that cannot be read, must be an error of the read that meets it, and under a
//! map it is a signal that ends the process (`docs/adr/0008-damage.md`).

mod real;
pub mod sim;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

pub use real::RealDisk;
pub use sim::SimDisk;

/// A directory tree.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing, creating it (empty) if `create`.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// Names of the entries of a directory; empty if it does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a directory and its parents.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes a file; fine if it is not there. Durable after `sync_dir`.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file over another. Durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes creations, removals and renames in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Free and total bytes of the file system that holds `path`. Total is what is used and what is free for this process together, so
    /// that the used share is the one that `df` shows; 0 if the file system does not say.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Type of that file system, for reports ("ext4", "xfs", "memory").
    fn file_system(&self, path: &Path) -> String;
    /// Takes the exclusive lock of a data directory; released when the guard drops. `WouldBlock` if another process holds it; the error's text
    /// is who that is.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Names the boot of the machine: another one than last time means that the page cache is gone.
    fn boot_id(&self) -> io::Result<u128>;
    /// Joins like `Path::join`; here so that a memory disk may keep its own names.
    fn join(&self, dir: &Path, name: &str) -> PathBuf {
        dir.join(name)
    }
}

/// An open file. Positioned I/O only.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all of `parts` one after another from `offset` on. On error an unknown prefix may be written.
    fn write_at(&self, offset: u64, parts: &[Bytes]) -> io::Result<()>;
    /// Reads exactly `len` bytes, as a copy; `UnexpectedEof` if the file is shorter.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;
    /// `fdatasync`. After an error the file must not be synced again: the caller stops.
    fn sync(&self) -> io::Result<()>;
    /// Says that these bytes, which are synced, will hardly be read soon: the page cache may give up its copy of them.
    fn forget(&self, _offset: u64, _len: u64) {}
    /// How long the next `sync` takes in virtual time: a task that writes sleeps that long before it calls `sync`. Zero on real disks.
    fn sync_delay(&self) -> Duration {
        Duration::ZERO
    }
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Sets the length (sparse when growing).
    fn set_len(&self, len: u64) -> io::Result<()>;
}
