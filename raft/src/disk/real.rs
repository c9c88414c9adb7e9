//! The operating system's files.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, IoSlice},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::{Disk, DiskFile};

/// Parts handed to one `pwritev(2)`; Linux takes at most 1024.
const PARTS_MAX: usize = 1024;

/// A read of more than this asks for the file's length first.
const UNCHECKED_BYTES_MAX: usize = 1 << 20;

/// The real disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(create).truncate(false);
        let file = match how.open(path) {
            // Whoever only looks need not write.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem && !create => File::open(path)?,
            opened => opened?,
        };
        Ok(Arc::new(RealFile { file }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let status = rustix::fs::statvfs(path)?;
        let used = status.f_blocks.saturating_sub(status.f_bfree);
        Ok((status.f_bavail * status.f_frsize, (used + status.f_bavail) * status.f_frsize))
    }

    fn file_system(&self, path: &Path) -> String {
        let Ok(status) = rustix::fs::statfs(path) else { return "unknown".to_owned() };
        // Numbers from statfs(2).
        let name = match status.f_type as u64 & 0xffff_ffff {
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x0102_1994 => "tmpfs",
            0x794c_7630 => "overlay",
            0x2fc1_2fc1 => "zfs",
            0xf2f5_2010 => "f2fs",
            0x6969 => "nfs",
            0x6573_5546 => "fuse",
            0x0102_1997 => "9p",
            other => return format!("{other:#x}"),
        };
        name.to_owned()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                // For people only: what counts is the lock.
                file.set_len(0)?;
                file.write_all_at(std::process::id().to_string().as_bytes(), 0)?;
                Ok(Box::new(file))
            }
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
                let holder = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
                Err(io::Error::new(io::ErrorKind::WouldBlock, holder))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn boot_id(&self) -> io::Result<u128> {
        let text = std::fs::read_to_string(PathBuf::from("/proc/sys/kernel/random/boot_id"))?;
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        u128::from_str_radix(&digits, 16).map_err(io::Error::other)
    }
}

struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn write_at(&self, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let (mut part, mut skip) = (0, 0);
        while part < parts.len() {
            let end = parts.len().min(part + PARTS_MAX);
            let mut slices: Vec<_> = parts[part..end].iter().map(|bytes| IoSlice::new(bytes)).collect();
            slices[0] = IoSlice::new(&parts[part][skip..]);
            if slices.iter().all(|slice| slice.is_empty()) {
                (part, skip) = (end, 0);
                continue;
            }
            let mut written = match rustix::io::pwritev(&self.file, &slices, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            offset += written as u64;
            while written > 0 {
                let left = parts[part].len() - skip;
                let taken = left.min(written);
                written -= taken;
                (part, skip) = if taken == left { (part + 1, 0) } else { (part, skip + taken) };
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset.checked_add(len as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        // Checked first: a length from damaged bytes must not become a large allocation.
        if len > UNCHECKED_BYTES_MAX && self.len().is_ok_and(|file_len| end > file_len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = BytesMut::zeroed(len);
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.freeze())
    }

    fn forget(&self, offset: u64, len: u64) {
        // Advice: a file system that does not take it has lost nothing.
        let _ = rustix::fs::fadvise(&self.file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::DontNeed);
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}
