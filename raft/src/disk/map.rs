//! Read-only memory maps of files. The only file of the project with `unsafe` in it.
//!
//! A map is never written through. What may go wrong with one is a bus error when the file behind it ends before the
//! map does, and bytes that change under a reader. The rules that keep both away are not checked here but kept by the
//! log: a segment has its full length before it is mapped, is never shortened, is deleted by `unlink` alone (the map keeps
//! the bytes alive), and only committed bytes or sealed files are borrowed, which are never written again.
#![allow(unsafe_code)]

use std::{fs::File, io};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

/// A map as the owner of `Bytes`.
struct Owner(Mmap);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps the first `len` bytes of `file`, which has at least as many. The map lives until the last slice of it is dropped,
/// also if the file was unlinked meanwhile.
///
/// # Errors
/// Those of `mmap(2)`; nothing is mapped then.
pub(super) fn map(file: &File, len: usize) -> io::Result<Bytes> {
    // SAFETY: the file is one of this node's own (the data directory is locked) and is at least `len` bytes long. It is
    // never truncated while it lives and borrowed bytes are never rewritten, as the module's doc says.
    let map = unsafe { MmapOptions::new().len(len).map(file)? };
    Ok(Bytes::from_owner(Owner(map)))
}
