//! The checkpoint in one file through the `Disk` door, replaced each time: written, synced, renamed.
//!
//! For disks that only simulation knows, where the database cannot open files of its own. It keeps the same promises in
//! the same order, so power cuts in simulation test that order for both.

use std::{io, path::PathBuf};

use bytes::{BufMut, Bytes, BytesMut};

use super::save::{Checkpoint, Place, STAMP_BYTES, Save, Saved, decode_stamp, encode_stamp};
use crate::machine::{
    codec::{DecodeError, Reader},
    image::Part,
};

/// The keeper of one file.
pub(crate) struct Plain {
    place: Place,
    path: PathBuf,
    cost_bytes: u64,
}

impl Plain {
    /// Reads what the file keeps; a file that makes no sense is passed over.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn open(place: Place) -> io::Result<(Self, Option<Saved>)> {
        let path = place.data_dir.join("checkpoint.plain");
        let saved = match place.disk().open(&path, false) {
            Ok(file) => decode_plain(file.read_at(0, usize::try_from(file.len()?).unwrap_or(usize::MAX))?).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok((Self { place, path, cost_bytes: 0 }, saved))
    }
}

impl Checkpoint for Plain {
    fn is_idle(&self) -> bool {
        true
    }

    fn save(&mut self, save: Save) -> io::Result<()> {
        self.place.vouch(&save.unsynced, &save.remembered)?;
        let bytes = encode_plain(&save);
        self.cost_bytes = bytes.len() as u64;
        let new = self.place.data_dir.join("checkpoint.new");
        let disk = self.place.disk();
        disk.remove(&new)?;
        let file = disk.open(&new, true)?;
        file.write_at(0, &[bytes])?;
        file.sync()?;
        disk.rename(&new, &self.path)?;
        disk.sync_dir(&self.place.data_dir)?;
        self.place.let_go(&save.remembered)
    }

    fn cost_bytes(&self) -> u64 {
        self.cost_bytes
    }
}

fn encode_plain(save: &Save) -> Bytes {
    let mut out = BytesMut::new();
    out.put_slice(&encode_stamp(save.applied));
    out.put_u32_le(save.parts.len() as u32);
    for part in &save.parts {
        out.put_u32_le(part.key.len() as u32);
        out.put_slice(&part.key);
        out.put_u32_le(part.bytes.len() as u32);
        out.put_slice(&part.bytes);
    }
    out.put_u32_le(crc32c::crc32c(&out));
    out.freeze()
}

fn decode_plain(bytes: Bytes) -> Result<Saved, DecodeError> {
    let body = bytes.len().checked_sub(4).ok_or(DecodeError { what: "ends too soon", at: 0 })?;
    if Reader::new(bytes.slice(body..)).u32()? != crc32c::crc32c(&bytes[..body]) {
        return Err(DecodeError { what: "checksum does not match", at: body });
    }
    let applied = decode_stamp(bytes.slice(..body.min(STAMP_BYTES)))?;
    let mut reader = Reader::new(bytes.slice(body.min(STAMP_BYTES)..body));
    let mut parts = Vec::new();
    for _ in 0..reader.count(8)? {
        let key_len = reader.u32()? as usize;
        let key = reader.slice(key_len)?;
        let len = reader.u32()? as usize;
        parts.push(Part { key, bytes: reader.slice(len)? });
    }
    reader.end()?;
    Ok(Saved { applied, parts })
}
