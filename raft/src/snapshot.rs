//! Image files: the machine's state at a segment border, `data/image/<border>.img`.
//!
//! An image holds no bodies. The newest one is where a restart begins to replay; the *current* one is the Raft snapshot at
//! the floor, which a new or far-lagging node gets. Which one is current is recorded in `data/image/current`, moves
//! forward only, and is durable before anything older goes: the log is purged to the current image and no further, so
//! without it the node could not rebuild its state. Every file is written under another name, synced, renamed, and the
//! directory synced; one with its final name is whole. Must never make an image durable whose entries are not
//! (LAW-ORDER): the caller syncs the log first. Called by the machine's task. Little endian:
//!
//! | offset | bytes | field of an image |
//! |---|---|---|
//! | 0 | 4 | magic `QRIM` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | flags: 1 there is an applied entry |
//! | 8 | 8 | border: first position not contained |
//! | 16 | 24 | last entry contained: term, node, index |
//! | 40 | 4 | chain after that entry |
//! | 44 | 4 | length of the membership, m |
//! | 48 | 8 | length of the machine's bytes |
//! | 56 | 4 | crc32c of bytes 0..56 and the membership |
//! | 60 | 4 | crc32c of the machine's bytes |
//! | 64 | m | membership as of that entry, encoded by the group |
//! | 64 + m | … | the machine's bytes |
//!
//! | offset | bytes | field of `current` |
//! |---|---|---|
//! | 0 | 4 | magic `QRCU` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | zero |
//! | 8 | 8 | border of the current image |
//! | 16 | 4 | crc32c of bytes 0..16 |

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tracing::{error, warn};

use crate::{
    config::GroupConfig,
    disk::{Disk, DiskFile},
    hard_state::{OpenError, REJOIN},
    log::{parse_position, position_name},
    types::{ImagePoint, LogId, LogIndex, NodeId, Position, Term},
};

const MAGIC: [u8; 4] = *b"QRIM";
const CURRENT_MAGIC: [u8; 4] = *b"QRCU";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 64;
const CURRENT_BYTES: usize = 20;

/// What an image says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMeta {
    /// Where it was taken.
    pub point: ImagePoint,
    /// Chain after `point.applied`.
    pub chain: u32,
    /// Membership as of that point, encoded by the group.
    pub membership: Bytes,
}

/// An image in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What it says about itself.
    pub meta: ImageMeta,
    /// What the machine saved.
    pub machine: Bytes,
}

/// What to do about an image that this node needs.
pub(crate) const COPY: &str = "copy the file of this name from another node, stopped or running, where it is the same byte for byte, and start \
    again. If no other node has it, and only while the other nodes are up and whole (`quorate cluster status`), move the data directory aside: \
    the node will join the group again as a new one (docs/OPERATIONS.md, \"One node is lost\")";

/// Bytes that are no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image: {0}")]
pub struct ImageError(pub String);

impl Image {
    /// The bytes of the file, which are also what travels to a peer: header, membership, machine.
    pub fn parts(&self) -> [Bytes; 3] {
        let mut out = [0; HEADER_BYTES];
        let applied = self.meta.point.applied.unwrap_or_default();
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = u8::from(self.meta.point.applied.is_some());
        out[8..16].copy_from_slice(&self.meta.point.border.0.to_le_bytes());
        out[16..24].copy_from_slice(&applied.term.0.to_le_bytes());
        out[24..32].copy_from_slice(&applied.node.0.to_le_bytes());
        out[32..40].copy_from_slice(&applied.index.0.to_le_bytes());
        out[40..44].copy_from_slice(&self.meta.chain.to_le_bytes());
        let membership_len = u32::try_from(self.meta.membership.len()).expect("a membership is some hundred bytes");
        out[44..48].copy_from_slice(&membership_len.to_le_bytes());
        out[48..56].copy_from_slice(&(self.machine.len() as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..56]), &self.meta.membership);
        out[56..60].copy_from_slice(&crc.to_le_bytes());
        out[60..64].copy_from_slice(&crc32c::crc32c(&self.machine).to_le_bytes());
        [Bytes::copy_from_slice(&out), self.meta.membership.clone(), self.machine.clone()]
    }

    /// [`parts`](Self::parts) in one piece.
    pub fn encode(&self) -> Bytes {
        let parts = self.parts();
        let mut out = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| out.extend_from_slice(part));
        out.freeze()
    }

    /// Checks and takes apart what [`encode`](Self::encode) made. Slices, does not copy.
    pub fn decode(bytes: Bytes) -> Result<Self, ImageError> {
        let header = ImageHeader::decode(&bytes)?;
        let start = HEADER_BYTES + header.membership_len;
        if bytes.len() < start || (bytes.len() - start) as u64 != header.machine_len {
            return Err(ImageError(format!("{} bytes are not the length its header says", bytes.len())));
        }
        let meta = header.meta(bytes.slice(HEADER_BYTES..start))?;
        let machine = bytes.slice(start..);
        if crc32c::crc32c(&machine) != header.machine_crc {
            return Err(ImageError("crc of the machine's bytes does not match".into()));
        }
        Ok(Self { meta, machine })
    }
}

/// The fixed part of an image; believed only after [`ImageHeader::meta`].
struct ImageHeader {
    fixed: [u8; 56],
    point: ImagePoint,
    chain: u32,
    membership_len: usize,
    machine_len: u64,
    header_crc: u32,
    machine_crc: u32,
}

impl ImageHeader {
    fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let Some(fixed) = bytes.get(..HEADER_BYTES) else {
            return Err(ImageError(format!("{} bytes are too short", bytes.len())));
        };
        let u32_at = |offset: usize| u32::from_le_bytes(fixed[offset..offset + 4].try_into().expect("four bytes"));
        let u64_at = |offset: usize| u64::from_le_bytes(fixed[offset..offset + 8].try_into().expect("eight bytes"));
        let version = u16::from_le_bytes([fixed[4], fixed[5]]);
        if fixed[..4] != MAGIC || version != VERSION {
            return Err(ImageError(format!("not an image of version {VERSION}")));
        }
        let id = LogId { term: Term(u64_at(16)), node: NodeId(u64_at(24)), index: LogIndex(u64_at(32)) };
        Ok(Self {
            fixed: fixed[..56].try_into().expect("56 bytes"),
            point: ImagePoint { applied: (fixed[6] & 1 != 0).then_some(id), border: Position(u64_at(8)) },
            chain: u32_at(40),
            membership_len: u32_at(44) as usize,
            machine_len: u64_at(48),
            header_crc: u32_at(56),
            machine_crc: u32_at(60),
        })
    }

    fn meta(&self, membership: Bytes) -> Result<ImageMeta, ImageError> {
        if crc32c::crc32c_append(crc32c::crc32c(&self.fixed), &membership) != self.header_crc {
            return Err(ImageError("crc of the header does not match".into()));
        }
        Ok(ImageMeta { point: self.point, chain: self.chain, membership })
    }
}

/// The images of a node. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    known: Mutex<Known>,
    /// One change of the directory at a time.
    change: Mutex<()>,
    /// Images whose files could not be read.
    damaged: watch::Sender<BTreeSet<Position>>,
}

#[derive(Default)]
struct Known {
    images: BTreeMap<Position, ImageMeta>,
    current: Option<Position>,
}

impl Images {
    /// Lists `data/image`: removes what unfinished saves and deletions left, leaves unreadable images aside with a warning.
    /// Reads headers, not the machines' bytes; [`load`](Self::load) checks those.
    ///
    /// An image newer than the log's end and not current is an installation that was cut: the caller passes it over.
    ///
    /// # Errors
    /// `Corrupt` if the current image cannot be told or read.
    pub fn open(disk: Arc<dyn Disk>, config: &GroupConfig) -> Result<Self, OpenError> {
        let dir = disk.join(&config.data_dir, "image");
        let mut images = BTreeMap::new();
        for name in disk.list(&dir).map_err(OpenError::io(&dir))? {
            let path = disk.join(&dir, &name);
            if name.ends_with(".tmp") {
                disk.remove(&path).map_err(OpenError::io(&path))?;
            } else if let Some(border) = name.strip_suffix(".img").and_then(parse_position) {
                match read_meta(disk.as_ref(), &path).map_err(OpenError::io(&path))? {
                    Ok(meta) if meta.point.border == border => drop(images.insert(border, meta)),
                    Ok(meta) => {
                        warn!(path = %path.display(), border = %meta.point.border, "an image under another's name is passed over")
                    }
                    Err(error) => warn!(path = %path.display(), %error, "an unreadable image is passed over"),
                }
            }
        }
        let current = read_current(disk.as_ref(), &dir, &images)?;
        let this = Self {
            inner: Arc::new(Inner {
                disk,
                dir,
                known: Mutex::new(Known { images, current }),
                change: Mutex::default(),
                damaged: watch::Sender::default(),
            }),
        };
        if let Some(current) = current {
            this.delete(|border| border < current).map_err(OpenError::io(&this.inner.dir))?;
        }
        Ok(this)
    }

    /// Writes an image; durable when it returns. One that is there already (a replay) is left as it is.
    pub fn save(&self, image: &Image) -> io::Result<()> {
        let _change = lock(&self.inner.change);
        let border = image.meta.point.border;
        if lock(&self.inner.known).images.get(&border) == Some(&image.meta) {
            return Ok(());
        }
        self.write(image)
    }

    /// Reads an image whole and checks it. One that is known and cannot be read is said and noted, see [`damaged`](Self::damaged).
    ///
    /// # Errors
    /// `NotFound` if there is none at `border`, `InvalidData` if it is damaged; with the file's name.
    pub fn load(&self, border: Position) -> io::Result<Image> {
        let loaded = self.read(border);
        if let Err(error) = &loaded
            && lock(&self.inner.known).images.contains_key(&border)
        {
            let is_new = self.inner.damaged.send_if_modified(|damaged| damaged.insert(border));
            if is_new {
                error!(%error, "an image is damaged on this disk; it is asked of the other nodes, whose file of this name is the same");
            }
        }
        loaded
    }

    fn read(&self, border: Position) -> io::Result<Image> {
        let path = self.path(border);
        let read = || {
            let file = self.inner.disk.open(&path, false)?;
            let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
            file.read_at(0, len)
        };
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let image = Image::decode(read().map_err(named)?);
        image.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))
    }

    /// Images that could not be read, now and later.
    pub(crate) fn damaged(&self) -> watch::Receiver<BTreeSet<Position>> {
        self.inner.damaged.subscribe()
    }

    /// Up to `len` bytes of an image's file from `offset` on, unchecked, and the file's length: for another node to put its own back.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn piece(&self, border: Position, offset: u64, len: usize) -> io::Result<(u64, Bytes)> {
        let file = self.inner.disk.open(&self.path(border), false)?;
        let total = file.len()?;
        let len = total.saturating_sub(offset).min(len as u64) as usize;
        Ok((total, file.read_at(offset, len)?))
    }

    /// Puts the file of a damaged image back, as another node has lent it: images are the same byte for byte (LAW-SAME).
    ///
    /// # Errors
    /// `InvalidData` if these bytes are no whole image or not this one, nothing has happened then; the disk's.
    pub(crate) fn mend(&self, border: Position, bytes: Bytes) -> io::Result<()> {
        let _change = lock(&self.inner.change);
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let image = Image::decode(bytes).map_err(|error| invalid(error.to_string()))?;
        // It may have gone meanwhile: then there is nothing to put back.
        let known = lock(&self.inner.known).images.get(&border).cloned();
        if let Some(known) = known {
            if known != image.meta {
                return Err(invalid(format!("image at {border}: another one than this node had")));
            }
            self.write(&image)?;
        }
        self.inner.damaged.send_if_modified(|damaged| damaged.remove(&border));
        Ok(())
    }

    /// The file of an image.
    pub fn file(&self, border: Position) -> PathBuf {
        self.path(border)
    }

    /// All images, the oldest first.
    pub fn list(&self) -> Vec<ImageMeta> {
        lock(&self.inner.known).images.values().cloned().collect()
    }

    /// The newest image with a border ≤ `target`.
    pub fn newest_upto(&self, target: Position) -> Option<ImageMeta> {
        lock(&self.inner.known).images.range(..=target).next_back().map(|(_, meta)| meta.clone())
    }

    /// The newest image.
    pub fn newest(&self) -> Option<ImageMeta> {
        self.newest_upto(Position(u64::MAX))
    }

    /// The Raft snapshot at the floor.
    pub fn current(&self) -> Option<ImageMeta> {
        let known = lock(&self.inner.known);
        known.images.get(&known.current?).cloned()
    }

    /// Makes the image at `border` the current one, durable when it returns, then deletes the older ones. Forward only.
    ///
    /// # Errors
    /// `NotFound` if there is no such image, `InvalidInput` if a newer one is current; nothing happened then.
    pub fn make_current(&self, border: Position) -> io::Result<()> {
        let _change = lock(&self.inner.change);
        {
            let known = lock(&self.inner.known);
            if known.current == Some(border) {
                return Ok(());
            }
            if !known.images.contains_key(&border) {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no image at {border}")));
            }
        }
        self.record_current(border)?;
        self.delete(|other| other < border)
    }

    /// Writes an image that came from a peer, makes it current and deletes all others; durable when it returns.
    ///
    /// # Errors
    /// `InvalidInput` if a newer image is current; nothing happened then.
    pub fn install(&self, image: &Image) -> io::Result<()> {
        let _change = lock(&self.inner.change);
        let border = image.meta.point.border;
        self.check_forward(border)?;
        self.write(image)?;
        self.record_current(border)?;
        self.delete(|other| other != border)
    }

    fn check_forward(&self, border: Position) -> io::Result<()> {
        match lock(&self.inner.known).current.filter(|current| *current > border) {
            Some(current) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the image at {current} is current and newer than {border}"),
            )),
            None => Ok(()),
        }
    }

    fn write(&self, image: &Image) -> io::Result<()> {
        let border = image.meta.point.border;
        self.write_file(&self.path(border), &image.parts())?;
        lock(&self.inner.known).images.insert(border, image.meta.clone());
        Ok(())
    }

    fn record_current(&self, border: Position) -> io::Result<()> {
        self.check_forward(border)?;
        let mut out = [0; CURRENT_BYTES];
        out[0..4].copy_from_slice(&CURRENT_MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[8..16].copy_from_slice(&border.0.to_le_bytes());
        let crc = crc32c::crc32c(&out[..16]);
        out[16..20].copy_from_slice(&crc.to_le_bytes());
        self.write_file(&self.inner.disk.join(&self.inner.dir, "current"), &[Bytes::copy_from_slice(&out)])?;
        lock(&self.inner.known).current = Some(border);
        Ok(())
    }

    /// Whole or not at all.
    fn write_file(&self, path: &Path, parts: &[Bytes]) -> io::Result<()> {
        let Inner { disk, dir, .. } = &*self.inner;
        let name = path.file_name().and_then(|name| name.to_str()).expect("the names of this directory are ours");
        let unfinished = disk.join(dir, &format!("{name}.tmp"));
        disk.remove(&unfinished)?;
        let file: Arc<dyn DiskFile> = disk.open(&unfinished, true)?;
        file.write_at(0, parts)?;
        file.sync()?;
        disk.rename(&unfinished, path)?;
        disk.sync_dir(dir)
    }

    fn delete(&self, which: impl Fn(Position) -> bool) -> io::Result<()> {
        let gone: Vec<_> = lock(&self.inner.known).images.keys().copied().filter(|border| which(*border)).collect();
        for border in gone {
            lock(&self.inner.known).images.remove(&border);
            self.inner.damaged.send_if_modified(|damaged| damaged.remove(&border));
            self.inner.disk.remove(&self.path(border))?;
        }
        Ok(())
    }

    fn path(&self, border: Position) -> PathBuf {
        self.inner.disk.join(&self.inner.dir, &format!("{}.img", position_name(border)))
    }
}

// What these locks guard is changed in one step each: a panic elsewhere leaves it sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_meta(disk: &dyn Disk, path: &Path) -> io::Result<Result<ImageMeta, ImageError>> {
    let file = disk.open(path, false)?;
    let len = file.len()?;
    let fixed = file.read_at(0, len.min(HEADER_BYTES as u64) as usize)?;
    let header = match ImageHeader::decode(&fixed) {
        Ok(header) => header,
        Err(error) => return Ok(Err(error)),
    };
    // Checked before it is read: a damaged length must not become an allocation.
    let expected = (HEADER_BYTES + header.membership_len) as u64;
    if expected.checked_add(header.machine_len) != Some(len) {
        return Ok(Err(ImageError(format!("{len} bytes are not the length its header says"))));
    }
    Ok(header.meta(file.read_at(HEADER_BYTES as u64, header.membership_len)?))
}

fn read_current(
    disk: &dyn Disk,
    dir: &Path,
    images: &BTreeMap<Position, ImageMeta>,
) -> Result<Option<Position>, OpenError> {
    let path = disk.join(dir, "current");
    let corrupt = |what: &str| {
        OpenError::Corrupt(format!("{}: {what}, so the state below the log's floor is lost; {REJOIN}", path.display()))
    };
    let file = match disk.open(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::io(&path)(error)),
    };
    let len = file.len().map_err(OpenError::io(&path))?;
    if len != CURRENT_BYTES as u64 {
        return Err(corrupt("it has the wrong length"));
    }
    let bytes = file.read_at(0, CURRENT_BYTES).map_err(OpenError::io(&path))?;
    let crc = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes"));
    if bytes[0..4] != CURRENT_MAGIC || crc32c::crc32c(&bytes[..16]) != crc || bytes[4..6] != VERSION.to_le_bytes() {
        return Err(corrupt("it is damaged"));
    }
    let border = Position(u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")));
    if !images.contains_key(&border) {
        let image = disk.join(dir, &format!("{}.img", position_name(border)));
        return Err(OpenError::Corrupt(format!(
            "{}: the image of what came before the log is missing or unreadable ({} names it); {COPY}",
            image.display(),
            path.display()
        )));
    }
    Ok(Some(border))
}
